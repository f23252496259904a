# shell
"""``millrace run intake``: one process, one loop. Binds the port, connects to Kafka, answers until it is stopped.

::

    stop ──► no new connections ──► requests in work are answered ──► what waits is delivered ──► the producer is closed
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from millrace.basics.errors import PortError
from millrace.contracts.settings import Settings
from millrace.processes.kafka import open_broker
from millrace.processes.metrics import READY, serve_metrics
from millrace.processes.tokens import TokenGate, Tokens, warn_if_open
from stream.intake.intake_app import Desk, make_app
from stream.intake.intake_metrics import REQUESTS, Refusals
from stream.intake.intake_producer import IntakeProducer
from stream.intake.intake_wire import LineReader

log = structlog.get_logger("intake")

LOOK_SECONDS = 0.05


def run(settings: Settings, stop: threading.Event) -> None:
    """Serves until ``stop`` is set, then drains.

    Raises:
        PortError: the port is taken.
        BrokerError: the broker does not answer, or its topics cannot be prepared.
        SchemaError, SettingError: a file or setting is unusable.
    """
    schema, tokens = settings.load_schema(), Tokens.of(settings)
    with bind(settings) as listener:
        warn_if_open(settings.host, tokens, "intake")
        open_broker(settings)
        serve_metrics("intake", settings.metrics_port, settings.host)
        reader = LineReader(schema, round(settings.ahead_minutes * 60_000))
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings, reader, tokens, listener, stop))


async def _run(
    settings: Settings, reader: LineReader, tokens: Tokens, listener: socket.socket, stop: threading.Event
) -> None:
    outlet = IntakeProducer(settings)
    life_ms = round(settings.attribution_minutes * 60_000) + round(settings.lateness_minutes * 60_000)
    delivering: asyncio.Task[None] | None = None
    try:
        await outlet.open(life_ms, round(settings.disorder_seconds * 1000))
        delivering = asyncio.create_task(outlet.run())
        refusals = Refusals()
        app: ASGIApp = make_app(Desk(settings, reader, outlet, refusals), outlet)
        app = TokenGate(app, tokens, REQUESTS.labels("unauthorized", "401").inc)
        server = _Server(_config(app, settings.intake_seconds))
        READY.set(1)
        log.info("events, users and items are taken", url=f"http://{settings.host}:{listener.getsockname()[1]}")
        watching = asyncio.create_task(_end(server, stop, refusals))
        await server.serve(sockets=[listener])
        watching.cancel()
        READY.set(0)
        left = await outlet.finished(settings.intake_seconds)
        if left:
            log.warning("messages that nobody was told are kept were not delivered", messages=left)
    finally:
        if delivering is not None:
            delivering.cancel()
            await asyncio.wait([delivering])
        await outlet.close()


def bind(settings: Settings) -> socket.socket:
    """A socket bound to ``host:intake_port``, not listening yet. Raises PortError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.intake_port))
    except OSError as error:
        listener.close()
        raise PortError(
            f"the intake's address {settings.host}:{settings.intake_port} cannot be bound ({error.strerror})",
            "set MILLRACE_INTAKE_PORT to a free port, or 0",
        ) from None
    return listener


class _Server(uvicorn.Server):
    """Leaves signals to the role's runner."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp, drain_seconds: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=round(drain_seconds) + 1,
        timeout_keep_alive=65,
        backlog=1024,
    )


async def _end(server: uvicorn.Server, stop: threading.Event, refusals: Refusals) -> None:
    while not stop.is_set():
        refusals.tell()
        await asyncio.sleep(LOOK_SECONDS)
    server.should_exit = True


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # not on every system
        return None
    return uvloop.new_event_loop
