# shell
"""The ports of `millrace up` and `millrace demo`: fixed ones that a shop can write down, or any that are free.

::

    8700 scorer    8701-8706 metrics of the roles    8710 live page    8720 intake    8730 broker    8740 Redis
    8750 admin: the learner's gate, and commands to it

All are checked before anything is started, so a taken port is one line rather than a role that dies five times.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from millrace.basics.errors import PortError, SettingError
from millrace.contracts.settings import Settings
from millrace.processes.metrics import PORTS
from millrace.processes.services import free_port

LOOPBACK = "127.0.0.1"
REDIS_PORT = 8740


@dataclass(frozen=True, slots=True)
class Ports:
    """Where everything listens. ``broker`` and ``redis`` are 0 where settings name others."""

    scorer: int
    intake: int
    page: int
    broker: int
    redis: int
    admin: int  # the learner's
    metrics: dict[str, int]  # by role

    def wanted(self, host: str) -> list[tuple[str, str, int, str]]:
        """Each listener's name, host, port, and the setting that changes it."""
        public = [("scorer", host, self.scorer, "MILLRACE_PORT"), ("intake", host, self.intake, "MILLRACE_INTAKE_PORT")]
        public.append(("learner's commands", host, self.admin, "MILLRACE_ADMIN_PORT"))
        own = [("live page", LOOPBACK, self.page, "MILLRACE_PAGE_PORT")]
        services = [("broker", self.broker, "MILLRACE_BROKER_PORT"), ("Redis", self.redis, "")]
        own += [(name, LOOPBACK, port, setting) for name, port, setting in services if port]
        return public + own + [(f"{role} metrics", host, port, "") for role, port in self.metrics.items()]

    def targets(self, host: str) -> dict[str, str]:
        """Where each role shows its metrics, by role."""
        return {role: f"{url(host, port)}/metrics" for role, port in self.metrics.items()}

    def or_free(self, host: str) -> Ports:
        """Any free port in place of each of scorer, admin and metrics that cannot be bound."""

        def port(own: int) -> int:
            return free_port() if _problem(host, own) else own

        metrics = {role: port(own) for role, own in self.metrics.items()}
        return replace(self, scorer=port(self.scorer), admin=port(self.admin), metrics=metrics)


def choose(settings: Settings, roles: Iterable[str], *, free: bool) -> Ports:
    """The ports of a run.

    Args:
        settings: fixed ports; one that is set to 0 becomes any that is free.

    Raises:
        SettingError: ``metrics_port`` names one port, where each role needs its own.
    """
    if settings.metrics_port:
        raise SettingError(
            f"metrics_port {settings.metrics_port} for 'millrace up', which starts a role for each of several ports",
            "leave MILLRACE_METRICS_PORT unset (8701 to 8706), or set it to 0 for any that are free",
        )

    def port(fixed: int) -> int:
        return free_port() if free or not fixed else fixed

    return Ports(
        scorer=port(settings.port),
        intake=port(settings.intake_port),
        page=port(settings.page_port),
        broker=0 if settings.kafka else port(settings.broker_port),
        redis=0 if settings.redis else port(REDIS_PORT),
        admin=port(settings.admin_port),
        metrics={role: port(0 if settings.metrics_port == 0 else PORTS.get(role, 0)) for role in roles},
    )


def check(ports: Ports, host: str, patience_seconds: float = 0.0) -> None:
    """Checks that every port can be bound, and that all differ. A killed run's processes may hold ports for
    ``patience_seconds``. Raises PortError if one is taken, or was given twice."""
    deadline = time.monotonic() + patience_seconds
    seen: dict[int, str] = {}
    for name, where, port, setting in ports.wanted(host):
        if port in seen:
            raise PortError(f"port {port} is given to {seen[port]} and to {name}", "give each a port of its own")
        seen[port] = name
        while (problem := _problem(where, port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if problem:
            move = f"set {setting} to another" if setting else "end what listens there"
            raise PortError(
                f"port {where}:{port} for the {name} cannot be bound ({problem})",
                f"{move}, or give --free-ports for any that are free",
            )


def _problem(host: str, port: int) -> str:
    """Why a listener cannot bind there; empty: it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a closed connection left does not count
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def url(host: str, port: int) -> str:
    """The URL at which this machine reaches a listener on ``host:port``.

    >>> url("0.0.0.0", 8700)
    'http://127.0.0.1:8700'
    """
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 (nothing is bound here)
        host = "::1" if host == "::" else LOOPBACK
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
