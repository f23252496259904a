# shell
"""An intake in a process of its own, as a user starts it, pinned to a core if wanted; it may be killed and started."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Self

from millrace.basics.errors import ServiceError
from millrace.contracts.settings import Settings
from millrace.processes.spawn import spawn, stop, tail

PATIENCE_S = 120.0


class RunningIntake:
    """``millrace intake`` at ``settings.intake_port``, started and awaited by ``with`` or :meth:`start`.

    Args:
        folder: for its log, to which each start appends.
        core: the core that it is bound to; None: any.

    Raises:
        ServiceError: it ended, or did not answer within two minutes.
    """

    def __init__(self, settings: Settings, folder: Path, core: int | None = None) -> None:
        self.settings, self.log_path, self._core = settings, folder / "intake.log", core
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        environment = {**os.environ, **self.settings.environment()}
        self._child = spawn([sys.executable, "-m", "commands", "run", "intake"], environment, self.log_path)
        if self._core is not None:
            os.sched_setaffinity(self._child.pid, {self._core})
        began = time.monotonic()
        while not self.lives():
            if self._child.poll() is not None or time.monotonic() - began > PATIENCE_S:
                stop(self._child)
                raise ServiceError(f"the intake does not answer ({tail(self.log_path)})", f"see {self.log_path}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    def end(self) -> int:
        """Asks it to end; its status."""
        assert self._child is not None
        return stop(self._child, 30.0)

    def lives(self) -> bool:
        """Whether it answers."""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.settings.intake_port, timeout=5)) as connection:
                connection.request("GET", "/healthz")
                return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            stop(self._child, 30.0)
