# shell
"""``millrace run intake``: one process, one loop. Binds the port, connects to Kafka, answers until it is stopped.

::

    stop ──► no new connections ──► requests in work are answered ──► what waits is delivered ──► the producer is closed
"""

from __future__ import annotations

import asyncio
import socket
import threading

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.settings import Settings
from millrace.processes.httpserver import HttpServer, bind, config
from millrace.processes.kafka import open_broker
from millrace.processes.metrics import READY, serve_metrics
from millrace.processes.tokens import AccessGate, Tokens, warn_if_open
from stream.intake.intake_app import IntakeHandler, make_app
from stream.intake.intake_metrics import REQUESTS, Refusals
from stream.intake.intake_producer import IntakeProducer
from stream.intake.intake_wire import LineReader

log = structlog.get_logger("intake")

LOOK_SECONDS = 0.25


def run(settings: Settings, stop: threading.Event) -> None:
    """Serves until ``stop`` is set, then drains.

    Raises:
        PortError: the port is taken.
        BrokerError: the broker does not answer, or its topics cannot be prepared.
        SchemaError, SettingError: a file or setting is unusable.
    """
    schema, tokens = settings.load_schema(), Tokens.of(settings)
    with bind("intake", settings.host, settings.intake_port, "MILLRACE_INTAKE_PORT") as listener:
        warn_if_open(settings.host, tokens, "intake")
        open_broker(settings)
        serve_metrics("intake", settings.metrics_port, settings.host)
        reader = LineReader(schema, MAX_AHEAD_MS)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
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
        app: ASGIApp = make_app(IntakeHandler(settings, reader, outlet, refusals), outlet)
        app = AccessGate(app, tokens, settings, lambda status: REQUESTS.labels("unauthorized", status).inc())
        server = HttpServer(config(app, round(settings.intake_seconds) + 1))
        READY.set(1)
        log.info("events, users and items are taken", url=f"http://{settings.host}:{listener.getsockname()[1]}")
        watching = asyncio.create_task(_end(server, stop, refusals))
        await server.serve(sockets=[listener])
        watching.cancel()
        READY.set(0)
        left = await outlet.finished(settings.intake_seconds)
        if left:
            log.warning("messages were not delivered; no client got the answer that they are kept", messages=left)
    finally:
        if delivering is not None:
            delivering.cancel()
            await asyncio.wait([delivering])
        await outlet.close()


async def _end(server: uvicorn.Server, stop: threading.Event, refusals: Refusals) -> None:
    while not stop.is_set():
        refusals.log_due()
        await asyncio.sleep(LOOK_SECONDS)
    server.should_exit = True
