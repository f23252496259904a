# shell
"""A role in processes of its own, as a user starts it, and what it takes. It may be killed and started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

from benchmarks.tools.taken import below, own_cpu_seconds
from millrace.basics.errors import ServiceError
from millrace.commands.loop.monitor import RoleMetrics, fetch
from millrace.contracts.settings import Settings
from millrace.processes.spawn import spawn, stop, tail

PATIENCE_S = 600.0
CALM_S = 0.05


def cpu_s(work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Processor time that a call takes, in seconds; of this thread, or ``time.process_time``: of all."""
    began = clock()
    work()
    return clock() - began


class RunningRole:
    """``millrace ROLE``, started and awaited by ``with`` or :meth:`start`; each start appends to its log in ``folder``.
    It is ready when the path ``ready`` answers 200, and bound to ``core``, if any. Raises ServiceError: it ended, or
    was not ready within ten minutes."""

    def __init__(
        self, role: str, settings: Settings, port: int, folder: Path, ready: str = "/healthz", core: int | None = None
    ) -> None:
        self.settings, self.log_path = settings, folder / f"{role}.log"
        self._role, self._port, self._ready, self._core = role, port, ready, core
        self._child: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0
        """From the last start of the process until it was ready."""

    @property
    def pid(self) -> int:
        """Of the process that was started; others are its children."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Starts it, and returns when it is ready."""
        environment = {**os.environ, **self.settings.environment()}
        began = time.monotonic()
        self._child = spawn([sys.executable, "-m", "millrace", "run", self._role], environment, self.log_path)
        if self._core is not None:
            os.sched_setaffinity(self._child.pid, {self._core})
        while self._get(self._ready) is None:
            if self._child.poll() is not None or time.monotonic() - began > PATIENCE_S:
                stop(self._child)
                what = f"'millrace run {self._role}' is not ready ({tail(self.log_path)})"
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
        self.end()

    def _get(self, path: str) -> str | None:
        """What it answers now; None: nothing, or not with 200."""
        try:
            return fetch(f"http://127.0.0.1:{self._port}{path}", 5.0)
        except OSError:
            return None

    def metrics(self) -> RoleMetrics:
        """What it has measured since it started; nothing where it does not answer. It serves metrics on its port."""
        found = RoleMetrics()
        if (answer := self._get("/metrics")) is not None:
            found.update(answer)
        return found

    def pause(self, deadline: float, what: str) -> None:
        """Between two looks at it. Raises ServiceError, which says ``what``, behind the deadline (monotonic)."""
        if time.monotonic() > deadline:
            raise ServiceError(f"{what} ({tail(self.log_path)})", f"see {self.log_path}")
        time.sleep(0.1)

    def await_version(self, version: int, patience_s: float = 60.0) -> float:
        """Waits until a scorer serves ``version`` or a later one; the seconds that took. Raises ServiceError where it
        does not come to that."""
        began, found = time.monotonic(), -1
        while (answer := self._get("/model")) is None or (found := int(json.loads(answer)["version"])) < version:
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
            prompt = prompt + 1 if self._get("/healthz") is not None and time.monotonic() - asked < CALM_S else 0
            time.sleep(0.05)

    def cpu_s(self) -> tuple[float, float]:
        """Seconds of CPU that its processes have used, and ended children of theirs; and those below the first."""
        whole = sum(map(own_cpu_seconds, below(self.pid)))
        return whole, whole - own_cpu_seconds(psutil.Process(self.pid))
