"""The one entry of every role: its name, its signals, its last figures; and what `simulate` does under a supervisor."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tenacity import AsyncRetrying, Retrying

from millrace.basics.errors import PortError
from millrace.commands.cli import cli, cliroles
from millrace.commands.loop.monitor import fetch
from millrace.contracts.dead_letter_reasons import REASONS, WARNINGS
from millrace.contracts.events import DeadLetter, Item, User
from millrace.contracts.profile_warnings import SECONDS_MS, ProfileChecks
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.processes import metrics
from millrace.processes.patience import patience
from millrace.processes.repeated_warnings import MOST_KINDS, OTHERS, Kinds
from millrace.processes.role import ROLES, last_figures, set_from_signal
from millrace.processes.services import free_port
from millrace.processes.supervisor import role_argv
from simulator.playback import PlaybackOptions
from stream.worker.problemlog import ProblemLog
from tests.scenes.waiting import PATIENCE, until

PROGRAM = """
import os, signal, sys, time
import structlog
from prometheus_client import Counter
from millrace.commands.cli import cli
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
        assert role_argv(name) == [sys.executable, "-P", "-m", "millrace", "run", name]


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


# -- One line a minute a kind; and warnings about users and items that are used ----------------------------------------


SCHEMA = parse_schema(
    """
    name = "small"
    filters = ["region"]
    [[fields]]
    name = "user_id"
    of = "user"
    [[fields]]
    name = "kind"
    of = "user"
    [[fields]]
    name = "tags"
    of = "item"
    slots = 2
    [[fields]]
    name = "category"
    of = "item"
    [[fields]]
    name = "price"
    of = "item"
    kind = "numeric"
    [[fields]]
    name = "age_days"
    of = "item"
    kind = "numeric"
    """
)


# quarters of a second: their sums are exact
@given(st.lists(st.tuples(st.integers(0, 400).map(lambda n: n / 4), st.sampled_from("abc"), st.integers(1, 5))))
def test_every_case_is_reported_once_and_no_kind_twice_a_minute(story: list[tuple[float, str, int]]) -> None:
    kinds, now, noted, reported = Kinds(60.0), 0.0, Counter[str](), Counter[str]()
    last: dict[str, float] = {}
    for wait, kind, n in story:
        now += wait
        kinds.note(kind, f"case of {kind}", n)
        noted[kind] += n
        for line in kinds.due(now):
            assert now - last.get(line.kind, -60.0) >= 60.0
            assert line.example == f"case of {line.kind}"
            last[line.kind] = now
            reported[line.kind] += line.times
    reported.update({line.kind: line.times for line in kinds.due(now + 60.0)})
    assert reported == noted
    assert kinds.due(now + 600.0) == []


def test_a_sender_cannot_make_kinds_without_end() -> None:
    kinds = Kinds()
    for number in range(10 * MOST_KINDS):
        kinds.note(f"kind {number}")
    reported = kinds.due(0.0)
    assert len(reported) == MOST_KINDS + 1
    assert next(line.times for line in reported if line.kind == OTHERS) == 9 * MOST_KINDS


def test_the_worker_tells_each_reason_with_its_remedy_and_not_more_than_once_a_minute() -> None:
    problems = ProblemLog()
    dead_letter = DeadLetter.of("late", "7 ms behind the watermark", "events", 1, 42, b"{}")
    with structlog.testing.capture_logs() as lines:
        for second in range(60):
            problems.note([dead_letter], ProfileChecks(SCHEMA).of_user(User(7, {"tint": "red"})))
            problems.write(float(second))
        assert [(line["reason"], line["count"]) for line in lines if "reason" in line] == [("late", 1)]
        problems.write(60.0)
    late = [line for line in lines if "reason" in line]
    assert [line["count"] for line in late] == [1, 59]
    assert late[0]["remedy"] == REASONS["late"].mend
    assert late[0]["example"] == "events, partition 1, offset 42: 7 ms behind the watermark"
    assert [line["kind"] for line in lines if "kind" in line] == ["unknown-attribute"], "once an hour"


@pytest.mark.parametrize(
    ("item", "key", "kinds"),
    [
        (Item("a", {"tags": ["x", "y"], "category": 7, "price": 12.5, "region": "de"}, SECONDS_MS), b"a", []),
        (Item("a", {"tags": "x,y, x,"}), b"a", []),
        (Item("a", {"tags": "x,y,z"}), b"a", ["beyond-slots"]),
        (Item("a", {"tags": ["x", "y", "z"]}), b"a", ["beyond-slots"]),
        (Item("a", {"tags": ["x", "y", "x"]}), b"a", []),
        (Item("a", {"category": 12.5}), b"a", ["fraction"]),
        (Item("a", {"category": 12.0, "tags": None, "price": None}), b"a", []),
        (Item("a", {"colour": None}), b"a", ["unknown-attribute"]),
        (Item("a", {}, born_ms=SECONDS_MS - 1), b"a", ["born-in-seconds"]),
        (Item("a", {}), b"b", ["wrong-key"]),
        (Item(7, {}), b"7", []),
        (Item(7, {}), None, []),
    ],
)
def test_warnings_about_items(item: Item, key: bytes | None, kinds: list[str]) -> None:
    assert [warning.kind for warning in ProfileChecks(SCHEMA).of_item(item, key)] == kinds
    assert set(kinds) <= WARNINGS.keys()


def test_warnings_about_users() -> None:
    found = ProfileChecks(SCHEMA).of_user(User("ann", {"kind": 1.5, "region": "de", "user_id": "x"}))
    assert [warning.kind for warning in found] == ["fraction", "unknown-attribute"]
    assert "'ann'" in found[0].detail


# -- Where a role's metrics are: at a port of its own, which it names --------------------------------------------------


def test_each_role_has_a_port_of_its_own() -> None:
    assert metrics.PORTS.keys() == set(ROLES)
    ports = [*metrics.PORTS.values(), Settings().port]
    assert len(set(ports)) == len(ports)


def test_the_default_port_is_taken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setitem(metrics.PORTS, "stream", port)
    with capture_logs() as said:
        assert metrics.serve_metrics("stream", Settings().metrics_port) == port
    assert [line["url"] for line in said] == [f"http://127.0.0.1:{port}/metrics"]
    assert "millrace_ready" in fetch(said[0]["url"], 60.0)


def test_a_second_worker_on_a_machine_takes_another_port_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen()
        taken = first.getsockname()[1]
        monkeypatch.setitem(metrics.PORTS, "stream", taken)
        with capture_logs() as said:
            port = metrics.serve_metrics("stream", None)
        assert port != taken
        assert said[0]["log_level"] == "warning"
        assert said[0]["taken"] == taken
        assert said[1]["url"] == f"http://127.0.0.1:{port}/metrics"
        monkeypatch.setattr(metrics, "PORT_PATIENCE_SECONDS", 0.2)
        with pytest.raises(PortError, match=str(taken)):
            metrics.serve_metrics("stream", taken)
        monkeypatch.setattr(metrics, "PORT_PATIENCE_SECONDS", PATIENCE)
        leaves = Timer(0.3, first.close)
        leaves.start()
        assert metrics.serve_metrics("stream", taken) == taken, "a role that was killed held it"
        leaves.join()


def test_any_free_port_is_named_too() -> None:
    with capture_logs() as said:
        port = metrics.serve_metrics("learn", 0)
    assert f":{port}/" in said[0]["url"]


def test_zero_is_not_the_default() -> None:
    assert load_settings({}, Settings(metrics_port=0).environment()).metrics_port == 0
    assert load_settings({}, {}).metrics_port is None


# -- Trying again with back-off: how long the pauses are, what is told, and whose error the caller gets at the end -----


def failing(times: int, error: type[BaseException] = OSError) -> Callable[[], int]:
    """Raises so many times, then returns how often it was called."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error(f"try {calls}")
        return calls

    return call


def tries(seconds: float, pauses: list[float], reported: list[str], **options: float) -> dict[str, Any]:
    def aloud(error: str, seconds_left: int) -> None:
        assert 0 <= seconds_left <= seconds
        reported.append(error)

    return patience(seconds, OSError, aloud, **options) | {"sleep": pauses.append}


def test_pauses_double_up_to_the_longest_and_each_failed_try_is_reported() -> None:
    pauses: list[float] = []
    reported: list[str] = []
    assert Retrying(**tries(1e9, pauses, reported))(failing(7)) == 8
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert reported == [f"OSError: try {n}" for n in range(1, 8)]


def test_pauses_end_with_the_patience_and_are_none_where_a_try_waits_by_itself() -> None:
    pauses: list[float] = []
    assert Retrying(**tries(1e9, pauses, [], first_pause_seconds=0.0))(failing(3)) == 4
    assert pauses == [0.0] * 3
    pauses.clear()
    Retrying(**tries(0.5, pauses, [], first_pause_seconds=60.0))(failing(1))
    assert 0.05 <= pauses.pop() <= 0.5
    assert pauses == []


@pytest.mark.parametrize(("seconds", "kind"), [(0.0, OSError), (1e9, KeyError)])
def test_the_caller_gets_the_last_error_and_at_once_one_of_another_kind(seconds: float, kind: type[Exception]) -> None:
    reported: list[str] = []
    with pytest.raises(kind, match="try 1"):
        Retrying(**tries(seconds, [], reported))(failing(1, kind))
    assert reported == []


def test_a_coroutine_is_tried_again_too() -> None:
    reported: list[str] = []

    def aloud(error: str, seconds_left: int) -> None:
        reported.append(error)

    async def main() -> int:
        call = failing(2)
        async for attempt in AsyncRetrying(**patience(60.0, OSError, aloud, first_pause_seconds=0.001)):
            with attempt:
                return call()
        raise AssertionError

    assert asyncio.run(main()) == 3
    assert reported == ["OSError: try 1", "OSError: try 2"]
