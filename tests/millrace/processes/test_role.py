"""The one entry of every role: its name, its signals, its last figures; and what `simulate` does under a supervisor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from threading import Event, Thread

import pytest

from commands.cli import cli, cliroles
from millrace.contracts.settings import Settings
from millrace.processes.role import ROLES, last_figures, set_from_signal
from millrace.processes.supervisor import role_argv
from simulator.playback import PlaybackOptions
from tests.scenes.waiting import PATIENCE, until

PROGRAM = """
import os, signal, sys, time
import structlog
from prometheus_client import Counter
from commands.cli import cli
from millrace.contracts.settings import Settings
from millrace.processes.role import run_role

ROUNDS = Counter("rounds", "What a role may count.")

def run(settings, stop):
    ROUNDS.inc()
    assert not stop.is_set()
    try:
        for number in sys.argv[2:]:
            os.kill(os.getpid(), int(number))
    except (Exception, SystemExit):
        pass  # as what keeps a role alive when code of others raises or exits
    assert stop.wait(60)
    structlog.get_logger("any").info("asked to stop")

cli.app = lambda _: run_role("learn", Settings(kafka="127.0.0.1:1", data=sys.argv[1]), run)
cli.main()
"""


LOGS = """
import logging, structlog
from millrace.processes.role import calm_logs

calm_logs(log_format="json")
structlog.contextvars.bind_contextvars(role="learn")
structlog.get_logger("any").info("a version", number=7)
for log in (structlog.get_logger("any"), logging.getLogger("library")):
    try:
        1 / 0
    except ZeroDivisionError:
        log.error("it failed\\nhere", exc_info=True)
"""


def role(folder: Path, *signals: int) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", PROGRAM, str(folder), *map(str, signals)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.timeout(PATIENCE)
def test_a_signal_may_come_while_the_main_thread_holds_the_lock_of_the_event() -> None:
    event = Event()
    with event._cond:  # type: ignore[attr-defined]  # as in the middle of its wait()
        set_from_signal(event)
    assert event.wait(PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
def test_a_signal_asks_a_role_to_stop_and_it_ends_in_its_own_time(tmp_path: Path, number: int) -> None:
    done = role(tmp_path, number)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "asked to stop" in line
    assert "role=learn" in line
    assert "rounds_total 1.0" in last_figures(tmp_path, "learn").read_text()


def test_a_log_in_json_has_an_object_a_line_of_libraries_too() -> None:
    done = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, timeout=PATIENCE, check=True)
    first, *failed = map(json.loads, done.stderr.splitlines())
    assert datetime.fromisoformat(first.pop("timestamp")).tzinfo is not None
    assert first == {"event": "a version", "number": 7, "role": "learn", "level": "info"}
    assert [line.get("logger") for line in failed] == [None, "library"]
    for line in failed:
        assert (line["event"], line["level"], line["role"]) == ("it failed\nhere", "error", "learn")
        assert "ZeroDivisionError" in line["exception"]


@pytest.mark.slow
def test_the_second_signal_ends_a_role_at_once(tmp_path: Path) -> None:
    done = role(tmp_path, 15, 2)
    assert done.returncode == 130
    assert "asked to stop" not in done.stderr
    assert "rounds_total 1.0" in last_figures(tmp_path, "learn").read_text()


def test_every_role_is_a_command_and_the_supervisor_starts_that() -> None:
    for name in ROLES:
        assert callable(cli.app["run"][name].default_command)
        assert role_argv(name) == [sys.executable, "-P", "-m", "commands", "run", name]


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[..., None], list[PlaybackOptions], Event]:
    """The command in this process, over a playback whose log is over at once; what was played; what asks it to stop."""
    played: list[PlaybackOptions] = []
    stop = Event()

    def play(settings: Settings, stop: Event, options: PlaybackOptions) -> None:
        played.append(options)

    def run_role(name: str, settings: Settings, run: Callable[[Settings, Event], None]) -> None:
        assert name == "simulate"
        run(settings, stop)

    monkeypatch.setattr("simulator.playback.play", play)
    monkeypatch.setattr("millrace.processes.role.run_role", run_role)
    monkeypatch.delenv("MILLRACE_FROM_LOG", raising=False)
    return cliroles.simulate, played, stop


def test_a_person_s_playback_ends_with_its_log(
    simulate: tuple[Callable[..., None], list[PlaybackOptions], Event],
) -> None:
    command, played, _ = simulate
    command(from_log=Path("a.csv"))
    assert [(options.log, options.quiet) for options in played] == [(Path("a.csv"), False)]


def test_a_supervised_playback_stays_when_its_log_is_over(
    simulate: tuple[Callable[..., None], list[PlaybackOptions], Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it ended, the supervisor would start it, and so play the log, again."""
    command, played, stop = simulate
    monkeypatch.setenv("MILLRACE_FROM_LOG", "a.csv")
    running = Thread(target=command)
    running.start()
    until(lambda: bool(played), "the log is played")
    running.join(0.2)
    assert running.is_alive()
    stop.set()
    running.join(PATIENCE)
    assert not running.is_alive()
    assert [(options.log, options.quiet) for options in played] == [(Path("a.csv"), True)]
