# shell
"""Prometheus metrics of a role: module-level objects of the role that owns them, all named ``millrace_*``.

Dashboards may rely on the names in ``docs/reference/metrics.md``.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from typing import Any

import structlog
from prometheus_client import REGISTRY, Gauge, generate_latest, start_http_server
from prometheus_client.metrics_core import Metric

from millrace.basics.errors import PortError

log = structlog.get_logger("metrics")

READY = Gauge("millrace_ready", "1 when the role does its work, 0 while it starts or waits.")
LOOP_TIMESTAMP = Gauge(
    "millrace_loop_timestamp_seconds",
    "Unix time at which the last round of the role's main loop began; if it stands still, the other figures are old.",
)
ROLE_INFO = Gauge("millrace_role_info", "Which role this is.", ["role", "version"])


PORT_PATIENCE_SECONDS = 10.0
PORTS = {
    "serve": 8701,
    "stream": 8702,
    "learn": 8703,
    "simulate": 8704,
    "intake": 8705,
    "archive": 8706,
}
"""Default port of each role's metrics; ``metrics_port`` changes it."""


_shown: Any = REGISTRY


def show(collector: Any) -> None:
    """Shows ``collector`` in place of this process's registry: a role of several processes sums them."""
    global _shown
    _shown = collector


def latest() -> bytes:
    return generate_latest(_shown)


class _Shown:
    def collect(self) -> Iterable[Metric]:
        found: Iterable[Metric] = _shown.collect()
        return found


def _server(port: int, host: str, shown: Any, patience_seconds: float) -> Any:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return start_http_server(port, addr=host, registry=shown)[0]
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise
        time.sleep(0.05)


def serve_metrics(role: str, port: int | None, host: str = "127.0.0.1") -> int:
    """Serves ``/metrics`` on ``host:port`` in a daemon thread, logs where, and returns the port.

    Port 0 lets the system choose. None is the role's own of :data:`PORTS`, or a free one (logged) if that is taken, as
    by a second worker on one machine. Raises PortError when the requested port stays taken for
    :data:`PORT_PATIENCE_SECONDS`: processes of a role that was killed may hold it, or a connection of another's.
    """
    from millrace import __version__

    ROLE_INFO.labels(role, __version__).set(1)
    shown: Any = _Shown()
    wanted = PORTS.get(role, 0) if port is None else port
    try:
        try:
            server = _server(wanted, host, shown, 0.0 if port is None else PORT_PATIENCE_SECONDS)
        except OSError:
            if port is not None:
                raise
            log.warning("the role's metrics port is taken; another is used", role=role, taken=wanted)
            server = _server(0, host, shown, 0.0)
    except OSError as error:
        raise PortError(
            f"metrics port {host}:{port} of the role '{role}' cannot be bound ({error.strerror})",
            "set MILLRACE_METRICS_PORT to a free port, or 0",
        ) from None
    log.info("metrics are served", role=role, url=f"http://{host}:{server.server_port}/metrics")
    return int(server.server_port)
