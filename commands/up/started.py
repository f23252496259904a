# shell
"""A `millrace up` as a process of its own, for programs that drive one: tests, benchmarks. It cannot outlive them.

::

    with Started(folder, "--schema", "my.toml") as loop:
        where = loop.where()  # {"scorer": "http://127.0.0.1:...", "intake": ..., "kafka": ...}
        loop.kill()           # as a power switch would: every process of it
        loop.start()          # on the same folder
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from commands.up.data_folder import addresses
from millrace.basics.errors import ServiceError
from millrace.processes.spawn import spawn

PATIENCE_SECONDS = 300.0
LOOK_SECONDS = 0.1


class Started:
    """A loop on free ports, in a folder.

    Args:
        flags: of ``millrace up``, beside ``--data`` and ``--free-ports``.
        env: MILLRACE_* variables; it gets none of this process's.
    """

    def __init__(self, data: Path, *flags: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.data, self.flags = Path(data), flags
        self.output = self.data.parent / f"{self.data.name}.out"
        self.process: subprocess.Popen[bytes] | None = None
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")} | dict(env or {})
        self._cwd = cwd

    def start(self) -> None:
        """Starts it, or starts it again. Its output goes to ``output``, after what was there."""
        command = [sys.executable, "-m", "commands", "up", "--data", str(self.data), "--free-ports", *self.flags]
        self.process = spawn(command, self._env, self.output, cwd=self._cwd)

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def where(self, patience_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The addresses in ``up.json``, when all is ready. Raises ServiceError if it ended before, or all is not there
        in time."""
        assert self.process is not None
        deadline = time.monotonic() + patience_seconds
        while True:
            found = addresses(self.data)
            if found.get("pid") == self.process.pid:
                return found
            if self.process.poll() is not None or time.monotonic() > deadline:
                state = "ended" if self.process.poll() is not None else "is not there in time"
                raise ServiceError(f"'millrace up' {state}: {self.text()[-2000:]}", f"see {self.output}")
            time.sleep(LOOK_SECONDS)

    def kill(self) -> None:
        """SIGKILL to the program. All its processes die with it (:mod:`millrace.processes.spawn`)."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM, patience_seconds: float = PATIENCE_SECONDS) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(patience_seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
