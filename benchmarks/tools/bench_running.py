# shell
"""A role in processes of its own, as a user starts it, and what its processes take. It may be killed and started."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

import msgspec

from millrace.basics.errors import ServiceError
from millrace.contracts.settings import Settings
from millrace.processes.resident_memory import resident_bytes
from millrace.processes.spawn import spawn, stop, tail

PATIENCE_S = 600.0
CALM_S = 0.05
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class RunningRole:
    """``millrace ROLE``, started and awaited by ``with`` or :meth:`start`.

    Args:
        command: the role and its flags.
        port: of its HTTP server.
        folder: for its log, to which each start appends.
        ready: the path that answers 200 when it is ready.
        core: the core that it is bound to; None: any.

    Raises:
        ServiceError: it ended, or was not ready within ten minutes.
    """

    def __init__(
        self,
        command: Sequence[str],
        settings: Settings,
        port: int,
        folder: Path,
        ready: str = "/healthz",
        core: int | None = None,
    ) -> None:
        self.settings, self.log_path = settings, folder / f"{command[0]}.log"
        self._command, self._port, self._ready, self._core = command, port, ready, core
        self._child: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0
        """From the last start of the process until it was ready."""

    @classmethod
    def scorer(cls, settings: Settings, folder: Path) -> Self:
        """``millrace run serve``, awaited until it answers with pages."""
        return cls(["serve"], settings, settings.port, folder, "/readyz")

    @classmethod
    def intake(cls, settings: Settings, folder: Path, core: int | None = None) -> Self:
        """``millrace run intake`` at ``settings.intake_port``."""
        return cls(["intake"], settings, settings.intake_port, folder, core=core)

    @property
    def pid(self) -> int:
        """Of the process that was started; others are its children."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Starts it, and returns when it is ready."""
        environment = {**os.environ, **self.settings.environment()}
        began = time.monotonic()
        self._child = spawn([sys.executable, "-m", "commands", "run", *self._command], environment, self.log_path)
        if self._core is not None:
            os.sched_setaffinity(self._child.pid, {self._core})
        while self.status(self._ready) != 200:
            if self._child.poll() is not None or time.monotonic() - began > PATIENCE_S:
                stop(self._child)
                what = f"'millrace {self._command[0]}' is not ready ({tail(self.log_path)})"
                raise ServiceError(what, f"see {self.log_path}")
            time.sleep(0.02)
        self.start_seconds = time.monotonic() - began

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    def end(self) -> int:
        """Asks it to end; its status."""
        assert self._child is not None
        return stop(self._child, 30.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            stop(self._child, 30.0)

    def status(self, path: str) -> int:
        """What it answers with now; 0: nothing."""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)) as connection:
                connection.request("GET", path)
                return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0

    def version(self) -> int:
        """The model version that a scorer serves; -1: none, or it does not answer now."""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)) as connection:
                connection.request("GET", "/model")
                return int(msgspec.json.decode(connection.getresponse().read())["version"])
        except (OSError, http.client.HTTPException, msgspec.MsgspecError, KeyError):
            return -1

    def await_version(self, version: int, patience_s: float = 60.0) -> float:
        """Waits until a scorer serves ``version`` or a later one; the seconds that took.

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

    def await_calm(self, patience_s: float = 60.0) -> None:
        """Waits until it answers at once, twice. For after an overload."""
        began, prompt = time.monotonic(), 0
        while prompt < 2 and time.monotonic() - began < patience_s:
            asked = time.monotonic()
            prompt = prompt + 1 if self.status("/healthz") == 200 and time.monotonic() - asked < CALM_S else 0
            time.sleep(0.05)

    def resident_bytes(self) -> int:
        """Resident memory of all its processes; what they share counts in each."""
        return sum(resident_bytes(process) or 0 for process in family(self.pid))

    def cpu_s(self) -> float:
        """Seconds of CPU that its processes have used, and ended children of theirs."""
        return sum(map(cpu_seconds, family(self.pid)))


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


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, system calls and ended children included; 0: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) * _TICK_S


def anonymous_mb(pid: int) -> float:
    """Memory of a process and its descendants that no file stands behind, in MB. Pages of mapped files do not count:
    the system takes them back at will."""
    total = 0.0
    for process in family(pid):
        try:
            lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)
    return total
