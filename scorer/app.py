# shell
"""The scorer's HTTP server and its life: start, warm up, serve, drain.

``POST /recommend``, ``POST /score``, ``GET /model``, ``/healthz``, ``/readyz``, ``/metrics``; see ``docs/api.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import msgspec
import structlog
import torch
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from millrace.contracts.errors import BrokerError, PortError
from millrace.contracts.events import Impression, key_of
from millrace.contracts.impressions import impression_bytes
from millrace.contracts.once import Rates
from millrace.contracts.settings import Settings
from millrace.contracts.topics import IMPRESSIONS
from millrace.processes.kafka import PAGE_LINGER_MS, know_topic, make_producer, open_broker
from millrace.processes.metrics import READY, serve_metrics
from millrace.processes.wall import event_now_ms, wall_ms
from scorer.door import Door
from scorer.feed import Feed, ItemFeed, TileFeed
from scorer.keeper import IndexKeeper
from scorer.meters import FRESHNESS, ITEM_KEYS, ITEMS, REQUEST_SECONDS, REQUESTS, ScorerMeters
from scorer.modelfeed import ModelFeed
from scorer.serving import Serving
from scorer.store import OnlineReader, connect
from scorer.warm import warm_up
from scorer.wire import MAX_BODY_BYTES, RequestError

log = structlog.get_logger("scorer")

LIST_SECONDS = 1.0
READY_SECONDS = 0.05
"""Between two looks whether the index is complete."""
EXPIRE_PARTS = 64
DRAIN_SECONDS = 5
_json = msgspec.json.Encoder()


def make_app(serving: Serving, meters: ScorerMeters) -> Starlette:
    """The ASGI application over ``serving``. Background work is :func:`upkeep`'s."""

    async def recommend(request: Request) -> Response:
        return await _answer("recommend", request, serving.recommend, meters)

    async def score(request: Request) -> Response:
        return await _answer("score", request, serving.score, meters)

    async def model(_: Request) -> Response:
        return _respond(model_facts(serving, meters))

    async def healthz(_: Request) -> Response:
        return _respond({"alive": True})

    async def readyz(_: Request) -> Response:
        reason = serving.not_ready()
        return _respond({"ready": False, "error": reason}, 503) if reason else _respond({"ready": True})

    async def show_metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def missing(request: Request, _: Exception) -> Response:
        routes = "POST /recommend, POST /score, GET /model, /healthz, /readyz, /metrics"
        return _respond({"error": f"{request.method} {request.url.path} is not served; use {routes}"}, 404)

    def freshness() -> float:
        newest_ms = serving.newest_ms
        if newest_ms is None:
            return float("nan")
        return (event_now_ms(serving.clock) - newest_ms) / 1000 / serving.clock.speed

    FRESHNESS.set_function(freshness)
    ITEMS.set_function(lambda: len(serving.index))
    ITEM_KEYS.set_function(lambda: serving.index.keys)
    return Starlette(
        routes=[
            Route("/recommend", recommend, methods=["POST"]),
            Route("/score", score, methods=["POST"]),
            Route("/model", model),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
        ],
        exception_handlers={404: missing, 405: missing},
    )


def model_facts(serving: Serving, meters: ScorerMeters) -> dict[str, Any]:
    """What GET /model says."""
    note = serving.note
    return {
        "version": note.version if note else -1,
        "hash": note.hash if note else "",
        "schema_id": serving.schema.id,
        "spec": note.spec if note else {},
        "event_ms": serving.newest_ms,
        "trained": note.trained if note else 0,
        "age_ms": wall_ms() - note.published_ms if note else None,
        "click_to_served_ms": meters.click_to_served(),
        "versions_served": meters.versions_served,
        "gaps": meters.gaps,
        "loads": meters.loads,
        "errors": sum(meters.errors.values()),
        "errors_by_kind": dict(meters.errors),
    }


async def refresh_lists(serving: Serving) -> None:
    """Sorts recall's lists anew: hotness in bounded slices on the loop, the sorting in a thread."""
    while serving.refresh_hot():
        await asyncio.sleep(0)
    serving.lists = await asyncio.to_thread(serving.sorting())


async def upkeep(serving: Serving, meters: ScorerMeters) -> None:
    """Every second, recall's lists are sorted anew, and a part of the item-side window keys is looked over for those
    whose windows have all run empty. While the index is still being read, nothing is sorted; once it is, at once."""
    part = 0
    while True:
        if not serving.index_complete:
            await asyncio.sleep(READY_SECONDS)
            continue
        try:
            await refresh_lists(serving)
            serving.index.expire(event_now_ms(serving.clock), part / EXPIRE_PARTS, (part + 1) / EXPIRE_PARTS)
            part = (part + 1) % EXPIRE_PARTS
        except Exception as error:  # old lists serve on
            meters.error("lists")
            log.error("recall's lists could not be made", error=f"{type(error).__name__}: {error}")
        READY.set(0 if serving.not_ready() else 1)
        await asyncio.sleep(LIST_SECONDS)


def run(settings: Settings, stop: threading.Event) -> None:
    """Serves until ``stop`` is set, then drains: open requests are answered and impressions delivered.

    Raises:
        PortError: the port is taken.
        BrokerError, StoreError, SettingError: an address or folder is unusable.
    """
    torch.set_num_threads(1)
    sys.setswitchinterval(0.001)  # a feed's thread may keep a request waiting for this long
    schema = settings.load_schema()
    listener = bind(settings)
    meters = ScorerMeters()
    with listener:
        client = connect(settings)
        settings.place("models")
        open_broker(settings)
        producer = make_producer(settings, max_block_ms=200, linger_ms=PAGE_LINGER_MS)
        try:
            know_topic(producer, IMPRESSIONS, settings)
            store = OnlineReader(client, lambda: meters.error("redis"))
            send = sender(producer, meters, settings.message_bytes, Rates.of(schema))
            serving = Serving(settings, schema, settings.event_clock(), store, send, meters, wall_ms, new_id)
            with asyncio.Runner() as runner:
                threads = Threads(settings, serving, meters, runner.get_loop())
                threads.start()  # they read files while this thread compiles; what they change waits for the loop
                try:
                    warm_up(schema)
                    port = serve_metrics("serve", settings.metrics_port, settings.host)
                    host, http_port = listener.getsockname()[:2]
                    log.info("scorer listens", url=f"http://{host}:{http_port}", metrics_port=port)
                    runner.run(_serve(serving, meters, listener, stop, threads, client.aclose))
                finally:
                    threads.end()
        finally:
            READY.set(0)
            producer.flush(timeout=10)
            producer.close(timeout=5)


def new_id() -> str:
    """A request id that nobody has used."""
    return uuid4().hex


def bind(settings: Settings) -> socket.socket:
    """A socket that listens on ``host:port``, before anything else is started.

    Raises:
        PortError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise PortError(
            f"the scorer's address {settings.host}:{settings.port} cannot be bound ({error.strerror})",
            "set MILLRACE_PORT to a free port, or 0",
        ) from None
    return listener


def sender(
    producer: Any, meters: ScorerMeters, most_bytes: int, rates: Rates | None = None
) -> Callable[[Impression], None]:
    """Hands impressions to a Kafka producer; deliveries that fail later are counted.

    What it gives raises BrokerError for an impression of more than ``most_bytes``: the broker would refuse it, and the
    producer would be of no use afterwards.
    """
    said = False

    def failed(_: BaseException) -> None:
        meters.error("impressions")

    def send(impression: Impression) -> None:
        nonlocal said
        value = impression_bytes(impression, rates)
        if len(value) > most_bytes:
            error = BrokerError(
                f"an impression of {len(impression.items)} items has {len(value)} bytes, more than {most_bytes}",
                "ask for fewer items, or raise the broker's message.max.bytes and MILLRACE_MESSAGE_BYTES",
            )
            if not said:
                said = True
                log.error("pages are too large to be logged: nothing is learnt from them", error=str(error))
            raise error
        producer.send(IMPRESSIONS, value=value, key=key_of(impression.user_id)).add_errback(failed)

    return send


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the role."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Threads:
    """The feeds of ``serving``, which is not ready before all of them have caught up, and the keeper of its index.

    Args:
        loop: what requests are answered on. It need not run yet.
    """

    def __init__(
        self, settings: Settings, serving: Serving, meters: ScorerMeters, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._ending = threading.Event()
        door = Door(loop, self._ending)
        keeper = IndexKeeper(settings, serving, meters, door, self._ending, wall_ms, new_id()[:8])
        of_index = [kind(settings, serving, meters, door, self._ending, keeper.load) for kind in (ItemFeed, TileFeed)]
        keeper.feeds = {feed.topic: feed for feed in of_index}
        feeds: list[Feed] = [ModelFeed(settings, serving, meters, door, self._ending), *of_index]
        serving.to_read = {feed.what: -1 for feed in feeds}
        self._all: list[threading.Thread] = [*feeds, keeper]

    def start(self) -> None:
        for thread in self._all:
            thread.start()

    def end(self) -> None:
        """They end after the last request was answered, or with the process."""
        self._ending.set()

    def join(self) -> None:
        for thread in self._all:
            thread.join(3)


async def _serve(
    serving: Serving,
    meters: ScorerMeters,
    listener: socket.socket,
    stop: threading.Event,
    threads: Threads,
    close_store: Callable[[], Awaitable[None]],
) -> None:
    config = uvicorn.Config(
        make_app(serving, meters),
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=65,
    )
    server = _Server(config)
    tasks = [asyncio.create_task(upkeep(serving, meters)), asyncio.create_task(_watch(stop, server))]
    try:
        await server.serve(sockets=[listener])
    finally:
        threads.end()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(threads.join)
        await close_store()


async def _watch(stop: threading.Event, server: uvicorn.Server) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.1)
    server.should_exit = True


async def _answer(
    route: str, request: Request, handle: Callable[[bytes], Awaitable[Any]], meters: ScorerMeters
) -> Response:
    started, status = time.perf_counter(), 500
    try:
        response = _respond(await handle(await _body(request)))
        status = 200
    except RequestError as error:
        status = error.status
        response = _respond({"error": " ".join(str(error).split())}, status)
    except ClientDisconnect:  # nobody waits for an answer
        status = 499
        response = Response(status_code=status)
    except Exception as error:  # the client gets one line, the log the rest
        meters.error("request")
        log.error("request failed", route=route, error=f"{type(error).__name__}: {error}", exc_info=True)
        response = _respond({"error": f"internal error ({type(error).__name__}); see the scorer's log"}, 500)
    REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)
    REQUESTS.labels(route, str(status)).inc()
    return response


async def _body(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    stream: AsyncIterator[bytes] = request.stream()
    async for part in stream:
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise RequestError(f"the body is larger than {MAX_BODY_BYTES} bytes", "ask in smaller requests", 413)
        parts.append(part)
    return b"".join(parts)


def _respond(content: Any, status: int = 200) -> Response:
    return Response(_json.encode(content), status, media_type="application/json")
