# shell
"""A `millrace up` as a process of its own, for programs that drive one: tests, benchmarks. It cannot outlive them.

::

    with Started(folder, "--schema", "my.toml") as loop:
        where = loop.where()  # {"scorer": "http://127.0.0.1:...", "intake": ..., "kafka": ...}
        loop.kill()           # as a power switch would: every process of it
        loop.start()          # on the same folder

:func:`up` is the same for a script or a notebook: with a client, and stopped in good order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from millrace.basics.arrow_rows import package
from millrace.basics.errors import ServiceError
from millrace.commands.up.data_folder import addresses
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.settings import DATA, load_settings
from millrace.processes.spawn import spawn, stop
from millrace.processes.tokens import bearer
from millrace.reports import say

PATIENCE_SECONDS = 300.0
LOOK_SECONDS = 0.1
_one = threading.Lock()
"""Held by the loop of this process."""


class Started:
    """A loop on free ports, in a folder.

    Args:
        flags: of ``millrace up``, beside ``--data`` and ``--free-ports``.
        env: MILLRACE_* variables; it gets none of this process's.
        output: a file for what it says (default: beside the folder).
        free_ports: False: the fixed ones.
    """

    def __init__(
        self,
        data: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        output: Path | None = None,
        free_ports: bool = True,
    ) -> None:
        self.data, self.flags = Path(data), (*["--free-ports"] * free_ports, *flags)
        self.output = output or self.data.parent / f"{self.data.name}.out"
        self.process: subprocess.Popen[bytes] | None = None
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")} | dict(env or {})
        self._cwd = cwd

    def start(self) -> None:
        """Starts it, or starts it again. Its output goes to ``output``, after what was there."""
        command = [sys.executable, "-m", "millrace", "up", "--data", str(self.data), *self.flags]
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

    def end(self) -> None:
        """Stops it in good order; what does not end in time, or while this is interrupted, is killed."""
        if self.process is not None:
            try:
                stop(self.process, PATIENCE_SECONDS)
            finally:
                self.process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


class Loop:
    """A running loop: what :func:`up` gives.

    ::

        client      a millrace_client.Millrace that knows the addresses; it is closed before the loop stops
        page        the live page's address
        addresses   of up.json: scorer, intake, page, admin, kafka, redis, metrics by role
        data        the folder with all lasting state
    """

    def __init__(self, addresses: dict[str, Any], data: Path, client: Any) -> None:
        self.addresses, self.data, self.client = addresses, data, client
        self.page: str = addresses["page"]

    def __repr__(self) -> str:
        return f"<Loop on '{self.data}': live page {self.page}>"


@contextmanager
def up(
    schema: Schema | Path | str | None = None,
    *,
    data: Path | str | None = None,
    free_ports: bool = True,
    sync: bool = False,
    archive: bool = True,
    evolve: bool | None = None,
    progress: bool = True,
) -> Iterator[Loop]:
    """Runs the loop of ``millrace up`` in a process of its own: ``with mr.up(schema, data=folder) as loop:``.

    It waits until every role works, and stops the loop at the end of the block, also after an error. The loop cannot
    outlive this process. Settings come from the environment and millrace.toml, as the command's.

    Args:
        schema: which attributes of users and items are features (default: that of the data folder).
        data: the folder with all lasting state, where the next loop goes on (default: the setting, or millrace-data).
        free_ports: any free ports; False: the fixed ones of the command.
        sync: the embedded broker writes to the disk before it acknowledges.
        archive: writes events and labelled exposures as Parquet.
        evolve: with a schema that has changed, carries over what both have (default: the setting).
        progress: a line at the start, and one when it is up.

    Raises:
        SchemaError, SettingError: a schema or setting is unusable.
        ServiceError: this process runs a loop already, or it did not start: with what it said.
    """
    settings, client = load_settings(), package("millrace_client")
    folder = Path(data or settings.data or DATA).absolute()
    plan = None if schema is None else load_schema(schema)
    if not _one.acquire(blocking=False):
        raise ServiceError(
            f"a loop on '{folder}' beside another of this process", "leave the block of the other one first"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="millrace-up-") as place:
            flags = ["--sync"] * sync + ["--no-archive"] * (not archive)
            flags += [] if evolve is None else ["--evolve" if evolve else "--no-evolve"]
            if plan is not None:
                plan.write(Path(place, "schema.toml"))
                flags += ["--schema", str(Path(place, "schema.toml"))]
            own = {name: value for name, value in os.environ.items() if name.startswith("MILLRACE_")}
            child = Started(folder, *flags, env=own, output=Path(place, "output"), free_ports=free_ports)
            try:
                if progress:
                    say(f"Starting a loop on '{folder}'.")
                found = _ready(child)
                if progress:
                    say(f"It is up: {found['page']}")
                token = bearer(settings).get("Authorization", "").removeprefix("Bearer ")
                with client.Millrace(found["intake"], found["scorer"], token or None) as shop:
                    yield Loop(found, folder, shop)
            finally:
                child.end()
    finally:
        _one.release()


def _ready(child: Started) -> dict[str, Any]:
    """Starts it, and waits for its addresses. Raises ServiceError with the line that it ended with."""
    child.start()
    try:
        return child.where()
    except ServiceError as error:
        said = [line for line in child.text().splitlines() if line.strip()]
        if child.process is None or child.process.poll() is None or not said:
            raise
        problem, _, remedy = said[-1].removeprefix("millrace: ").partition("; ")
        raise ServiceError(problem, remedy or error.remedy) from None
