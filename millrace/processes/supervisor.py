# shell
"""Keeps role processes alive: starts them, restarts one that dies, gives up with an error, leaves no process behind.

::

              start                    dies                  back-off over
    (none) ─────────► running ──────────────────► waiting ──────────────────► running
                         │                           │ too often in short succession
                         └── stop ──► stopped        └──────────────────────► gave up (ServiceError)

It has no thread: its owner calls :meth:`Supervisor.poll` a few times a second. The children die with this process in
any case (:mod:`millrace.processes.spawn`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from millrace.basics.errors import FENCED_STATUS, ServiceError
from millrace.processes.spawn import spawn, tail

log = structlog.get_logger("supervisor")

State = Literal["running", "waiting", "stopped", "gave up"]


@dataclass(frozen=True, slots=True)
class Patience:
    """When to try again, and when to give up: ``failures`` deaths within ``within_seconds`` are too many."""

    failures: int = 5
    within_seconds: float = 60.0
    first_pause_seconds: float = 0.25
    longest_pause_seconds: float = 5.0

    def pause(self, deaths: int) -> float:
        """Seconds to wait after the ``deaths``-th death in short succession: doubling, bounded."""
        return min(self.first_pause_seconds * 2.0 ** (deaths - 1), self.longest_pause_seconds)


@dataclass(slots=True)
class Role:
    name: str
    argv: list[str]
    env: Mapping[str, str]
    log_path: Path
    needed: bool = True  # the run ends when it is given up; else it goes on without it
    state: State = "stopped"
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    deaths: list[float] = field(default_factory=list)  # times of the recent ones
    again_at: float = 0.0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.state == "running" else None


PYTHON = (sys.executable, "-P", "-m")
"""This interpreter, to run a module. ``-P`` keeps the working folder off its path, as with the command ``millrace``. So
all roles find a custom class, or none does."""


def role_argv(name: str) -> list[str]:
    """The command ``millrace run NAME`` of one of our own roles, under this interpreter."""
    return [*PYTHON, "millrace", "run", name]


class Supervisor:
    """Owns the processes of a run. Each role appends to its own log file in ``folder``. ``patience`` limits restarts;
    ``say`` is called with a line about each, besides the log. ``clock``: monotonic seconds."""

    def __init__(
        self,
        folder: Path,
        patience: Patience = Patience(),
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.roles: dict[str, Role] = {}
        self._patience = patience
        self._say = say
        self._clock = clock

    def start(self, name: str, env: Mapping[str, str], argv: list[str] | None = None, *, needed: bool = True) -> None:
        """Starts a role, or ``argv`` under its name. ``env`` is its whole environment. The run ends when a ``needed``
        role is given up; without another role it goes on, and logs this."""
        known = self.roles.get(name)
        role = Role(name, argv or role_argv(name), env, self.folder / f"{name}.log", needed)
        role.restarts = known.restarts if known else 0
        self.roles[name] = role
        self._launch(role)

    def _launch(self, role: Role) -> None:
        role.process = spawn(role.argv, role.env, role.log_path)
        role.state = "running"
        log.info("started", child=role.name, pid=role.process.pid)

    def poll(self) -> None:
        """Checks every role: notices deaths, restarts roles after their pause. Raises ServiceError, with the end of its
        log, when a needed role gave way to another process, or died too often in short succession."""
        for role in self.roles.values():
            now = self._clock()
            if role.state == "running" and role.process is not None and role.process.poll() is not None:
                self._died(role, now)
            elif role.state == "waiting" and now >= role.again_at:
                role.restarts += 1
                self._launch(role)

    def _died(self, role: Role, now: float) -> None:
        assert role.process is not None
        how = _status(role.process.returncode)
        _kill_session(role.process.pid)
        if role.process.returncode == FENCED_STATUS:  # started again, it would only end another one
            role.state = "gave up"
            self._lost(
                role,
                ServiceError(
                    f"role '{role.name}' gave way to another: {tail(role.log_path, 1)}", f"see {role.log_path}"
                ),
            )
            return
        recent = [at for at in role.deaths if now - at < self._patience.within_seconds]
        role.deaths = [*recent, now]
        if len(role.deaths) >= self._patience.failures:
            role.state = "gave up"
            said = tail(role.log_path, 1)
            error = ServiceError(
                f"role '{role.name}' ended {len(role.deaths)} times within {self._patience.within_seconds:g} s"
                f" (last: {how}{': ' + said if said else ''})",
                f"see {role.log_path}",
            )
            self._lost(role, error)
            return
        pause = self._patience.pause(len(role.deaths))
        role.state, role.again_at = "waiting", now + pause
        if role.process.returncode > 0 and (said := tail(role.log_path, 1)):
            how = f"{how}: {said}"
        log.warning("role died", child=role.name, how=how, restart_in_seconds=pause)
        self._say(f"role '{role.name}' ended ({how}); restarting it in {pause:g} s")

    def _lost(self, role: Role, error: ServiceError) -> None:
        """A role is not started again."""
        if role.needed:
            raise error
        log.error("a role is given up; the others go on without it", child=role.name)
        self._say(f"{error}; the others go on without it")

    def stop(self, *names: str, grace_seconds: float = 10.0) -> None:
        """Stops the named roles (none named: all) together: SIGTERM, then SIGKILL after ``grace_seconds``. Idempotent.
        A role that waits for its restart is not started again."""
        chosen = [self.roles[n] for n in names if n in self.roles] if names else list(self.roles.values())
        running = [r for r in chosen if r.process is not None and r.process.poll() is None]
        for role in chosen:
            if role.state != "gave up":
                role.state = "stopped"
        for role in running:
            assert role.process is not None
            role.process.terminate()
        deadline = self._clock() + grace_seconds
        for role in running:
            assert role.process is not None
            try:
                role.process.wait(max(0.0, deadline - self._clock()))
            except subprocess.TimeoutExpired:
                log.warning("killed after its grace", child=role.name, seconds=grace_seconds)
                if grace_seconds > 0:
                    self._say(f"role '{role.name}' did not stop within {grace_seconds:g} s and was killed")
                role.process.kill()
                role.process.wait()
        for role in running:
            assert role.process is not None
            _kill_session(role.process.pid)

    def kill(self) -> None:
        self.stop(grace_seconds=0.0)

    @property
    def restarts(self) -> dict[str, int]:
        return {name: role.restarts for name, role in self.roles.items()}


def _status(code: int) -> str:
    if code >= 0:
        return f"status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _kill_session(leader: int) -> None:
    """Ends the remaining processes of a dead role's session."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
