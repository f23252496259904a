"""How a role shows its figures to Prometheus.

Metrics are module-level objects of the role that owns them, all named ``millrace_*``; the names that dashboards
may rely on are listed in ``docs/metrics.md``, and a test checks every panel against what the running roles expose.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, Gauge, start_http_server

from millrace.errors import PortError

READY = Gauge("millrace_ready", "1 when the role does its work, 0 while it starts or waits.")
TURNED = Gauge(
    "millrace_turned_seconds",
    "Unix time at which the role's main loop last came round; while it stands still, its other figures are old.",
)
ROLE_INFO = Gauge("millrace_role_info", "Which role this is.", ["role", "version"])


def serve_metrics(role: str, port: int, host: str = "127.0.0.1") -> int:
    """Serves ``/metrics`` on ``host:port`` in a daemon thread; returns the port (0 lets the system choose).

    Raises:
        PortError: the port is taken.
    """
    from millrace import __version__

    ROLE_INFO.labels(role, __version__).set(1)
    try:
        server, _ = start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise PortError(
            f"metrics port {host}:{port} of the {role} cannot be bound ({error.strerror})",
            "set MILLRACE_METRICS_PORT to a free port, or 0",
        ) from None
    return int(server.server_port)
