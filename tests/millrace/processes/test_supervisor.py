"""The supervisor against real child processes: restarts, back-off, giving up, stopping, nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.basics.errors import ServiceError
from millrace.processes.spawn import bound, spawn, stop
from millrace.processes.supervisor import Patience, Supervisor
from tests.scenes.waiting import PATIENCE, until

SLEEPER = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]
BROKEN = [sys.executable, "-S", "-c", "import sys; print('millrace: no such thing; mend it'); sys.exit(1)"]
QUICK = Patience(failures=3, within_seconds=3600, first_pause_seconds=0.01, longest_pause_seconds=0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path, QUICK)
    yield made
    made.kill()


def pid_of(supervisor: Supervisor, name: str) -> int:
    pid = supervisor.roles[name].pid
    assert pid is not None
    return pid


def up(supervisor: Supervisor, name: str) -> None:
    until(lambda: supervisor.roles[name].log_path.read_text().endswith("\n"), f"the {name} has said that it is up")


def test_a_killed_role_is_restarted_aloud_and_counted(supervisor: Supervisor) -> None:
    said: list[str] = []
    supervisor._say = said.append
    supervisor.start("sleeper", {}, SLEEPER)
    first = pid_of(supervisor, "sleeper")
    os.kill(first, signal.SIGKILL)

    def restarted() -> bool:
        supervisor.poll()
        return supervisor.roles["sleeper"].pid not in (None, first)

    until(restarted, "it runs again")
    assert supervisor.restarts == {"sleeper": 1}
    assert len(said) == 1
    assert "SIGKILL" in said[0]


def test_it_gives_up_with_the_last_line_of_the_log(supervisor: Supervisor) -> None:
    supervisor.start("broken", {}, BROKEN)

    def poll_for_ever() -> None:
        while True:
            supervisor.poll()
            time.sleep(0.005)

    with pytest.raises(ServiceError, match=r"role 'broken' ended 3 times .*status 1: millrace: no such thing; mend it"):
        poll_for_ever()
    assert supervisor.roles["broken"].state == "gave up"
    supervisor.poll()  # says it once


def test_deaths_far_apart_are_forgiven(tmp_path: Path) -> None:
    now = 0.0
    supervisor = Supervisor(tmp_path, Patience(failures=2, within_seconds=60), clock=lambda: now)
    try:
        supervisor.start("broken", {}, BROKEN)
        for _ in range(4):
            process = supervisor.roles["broken"].process
            assert process is not None
            process.wait(PATIENCE)
            supervisor.poll()
            assert supervisor.roles["broken"].state == "waiting"
            now += 100.0
            supervisor.poll()
        assert supervisor.restarts == {"broken": 4}
    finally:
        supervisor.kill()


def test_pauses_double_and_are_bounded() -> None:
    patience = Patience(first_pause_seconds=0.25, longest_pause_seconds=5)
    assert [patience.pause(n) for n in (1, 2, 3, 10)] == [0.25, 0.5, 1.0, 5.0]


def test_stop_terminates_then_kills_the_stubborn(supervisor: Supervisor) -> None:
    supervisor.start("sleeper", {}, SLEEPER)
    supervisor.start("stubborn", {}, STUBBORN)
    up(supervisor, "sleeper")
    up(supervisor, "stubborn")
    pids = {name: pid_of(supervisor, name) for name in supervisor.roles}
    supervisor.stop("sleeper")
    assert not alive(pids["sleeper"])
    assert alive(pids["stubborn"])
    supervisor.poll()  # a stopped role is not restarted
    assert supervisor.roles["sleeper"].state == "stopped"
    supervisor.stop(grace_seconds=0.2)
    assert not alive(pids["stubborn"])
    code = supervisor.roles["stubborn"].process
    assert code is not None
    assert code.returncode == -signal.SIGKILL


def test_what_a_dead_role_left_running_is_ended(supervisor: Supervisor) -> None:
    parent = [
        sys.executable,
        "-S",
        "-c",
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "print('up', child.pid, flush=True)\ntime.sleep(600)",
    ]
    supervisor.start("parent", {}, parent)
    up(supervisor, "parent")
    grandchild = int(supervisor.roles["parent"].log_path.read_text().split()[1])
    os.kill(pid_of(supervisor, "parent"), signal.SIGKILL)

    def restarted() -> bool:
        supervisor.poll()
        return supervisor.restarts["parent"] == 1

    until(restarted, "the parent runs again")
    until(lambda: not running(grandchild), "the first one's child is gone")


def running(pid: int) -> bool:
    """Alive and no zombie (an orphan is reaped by whoever is init here)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_log_is_bounded_and_its_writer_goes_on(tmp_path: Path) -> None:
    """The child writes a line for each of ours, so what it has written when is known."""
    pipe, path = tmp_path / "lines", tmp_path / "role.log"
    os.mkfifo(pipe)
    child = spawn(["/bin/sh", "-c", f"exec cat < {pipe}"], None, path)
    try:
        with pipe.open("w", buffering=1) as lines:
            for n in range(1, 4):
                lines.write(f"line {n}\n")
                until(lambda line=f"line {n}\n": path.exists() and path.read_text().endswith(line), "the line is there")  # type: ignore[misc]
                bound(path, most_bytes=10)
    finally:
        stop(child)
    assert path.with_name("role.log.1").read_text() == "line 1\nline 2\n"
    assert path.read_text() == "line 3\n"
