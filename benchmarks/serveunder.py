# shell
"""A scorer in processes of its own, as a user starts it, and requests to it from yet another process."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import msgspec

from benchmarks.openloop import Outcome, Plan
from millrace.basics.errors import ServiceError
from millrace.contracts.settings import Settings
from millrace.processes.memory import resident_bytes
from millrace.processes.spawn import spawn, stop, tail

PATIENCE_S = 600.0
CALM_S = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


class RunningScorer:
    """``millrace serve``, started and awaited by ``with``.

    Args:
        workers: processes that answer requests; 1 is the default of ``serve``, and not named.
        folder: for its log.

    Raises:
        ServiceError: it ended, or was not ready within ten minutes.
    """

    def __init__(self, settings: Settings, folder: Path, workers: int = 1) -> None:
        self.settings, self.log_path = settings, folder / f"scorer-{time.monotonic_ns()}.log"
        self._arguments = ["--workers", str(workers)] if workers > 1 else []
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started; others are its children."""
        assert self._child is not None
        return self._child.pid

    def __enter__(self) -> Self:
        environment = {**os.environ, **self.settings.environment()}
        self._child = spawn(
            [sys.executable, "-m", "commands", "run", "serve", *self._arguments], environment, self.log_path
        )
        began = time.monotonic()
        while self._status("/readyz") != 200:
            if self._child.poll() is not None or time.monotonic() - began > PATIENCE_S:
                stop(self._child)
                raise ServiceError(f"the scorer is not ready ({tail(self.log_path)})", f"see {self.log_path}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            stop(self._child, 20.0)

    def version(self) -> int:
        """The version that it serves; -1: none, or it does not answer now."""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.settings.port, timeout=5)) as connection:
                connection.request("GET", "/model")
                return int(msgspec.json.decode(connection.getresponse().read())["version"])
        except (OSError, http.client.HTTPException, msgspec.MsgspecError, KeyError):
            return -1

    def await_version(self, version: int, patience_s: float = 60.0) -> float:
        """Waits until it serves ``version`` or a later one; the seconds that took.

        Raises:
            ServiceError: it does not come to that.
        """
        began = time.monotonic()
        while (found := self.version()) < version:
            if time.monotonic() - began > patience_s:
                raise ServiceError(
                    f"the scorer serves version {found}, not {version}, after {patience_s:g} s ({tail(self.log_path)})",
                    f"see {self.log_path}",
                )
            time.sleep(0.1)
        return time.monotonic() - began

    def await_calm(self, patience_s: float = 60.0) -> float:
        """Waits until it answers at once, twice; the seconds that took. For after an overload."""
        began, prompt = time.monotonic(), 0
        while prompt < 2 and time.monotonic() - began < patience_s:
            asked = time.monotonic()
            prompt = prompt + 1 if self._status("/healthz") == 200 and time.monotonic() - asked < CALM_S else 0
            time.sleep(0.05)
        return time.monotonic() - began

    def resident_bytes(self) -> int:
        """Resident memory of all its processes; what they share counts in each."""
        return sum(resident_bytes(process) or 0 for process in family(self.pid))

    def cpu_s(self) -> dict[int, float]:
        """Seconds of CPU that each of its processes has used, and ended children of theirs. Empty where there is no
        ``/proc``."""
        return {process: seconds for process in family(self.pid) if (seconds := _used(process)) is not None}

    def _status(self, path: str) -> int:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.settings.port, timeout=5)) as connection:
                connection.request("GET", path)
                return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0


def family(pid: int) -> list[int]:
    """A process and all that descend from it and live, on Linux; elsewhere the process alone."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except (OSError, ValueError):  # it ended meanwhile
                continue
    return found


def _used(pid: int) -> float | None:
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = told[told.rindex(")") + 2 :].split()
    return sum(map(int, fields[11:15])) / _TICKS  # user and system time, its own and of children that ended


class Asking:
    """The load generator at work, in a process of its own; :meth:`outcome` waits for its end."""

    def __init__(self, plan: Plan) -> None:
        command = [sys.executable, "-m", "benchmarks.openloop"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._said: list[bytes] = []
        self._waiter = threading.Thread(target=self._wait, args=(msgspec.json.encode(plan),), daemon=True)
        self._waiter.start()

    def _wait(self, plan: bytes) -> None:
        self._said.append(self._process.communicate(plan)[0])

    def outcome(self) -> Outcome:
        """What came of it.

        Raises:
            ServiceError: the generator failed; its error stands above.
        """
        self._waiter.join()
        if self._process.returncode or not self._said:
            raise ServiceError(f"the load generator ended with status {self._process.returncode}", "see its output")
        return msgspec.json.decode(self._said[0], type=Outcome)


def ask(plan: Plan, **changed: Any) -> Outcome:
    """Runs the load generator to its end."""
    return Asking(msgspec.structs.replace(plan, **changed)).outcome()
