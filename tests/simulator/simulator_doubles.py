"""Doubles for the simulator's shells: a producer that keeps all it is given, a scorer that keeps the HTTP contract."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web
from kafka.errors import KafkaTimeoutError

from millrace.contracts.events import BadEventError, decode_event
from tests.scenes.waiting import PATIENCE


class Sent:
    """What ``send`` returns: delivered, or given back."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def add_callback(self, call: Callable[..., Any], *args: Any) -> None:
        if self._error is None:
            call(*args, None)

    def add_errback(self, call: Callable[..., Any], *args: Any) -> None:
        if self._error is not None:
            call(*args, self._error)


class Recorder:
    """A producer that keeps everything. ``trouble`` is asked before each message; what it returns goes wrong."""

    def __init__(self, trouble: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self.messages: list[tuple[str, bytes, bytes]] = []
        self.calls = 0
        self.headers: list[tuple[str, bytes]] = []  # of the last message
        self.flushed = self.closed = False
        self._trouble = trouble

    def send(self, topic: str, *, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> Sent:
        self.calls += 1
        self.headers = headers
        error = self._trouble(self.calls)
        if isinstance(error, KafkaTimeoutError):
            raise error
        if error is None:
            self.messages.append((topic, key, value))
        return Sent(error)

    def flush(self, timeout: float | None = None) -> None:
        self.flushed = True

    def close(self, timeout: float | None = None) -> None:
        self.closed = True

    def of(self, topic: str) -> list[bytes]:
        return [value for t, _, value in self.messages if t == topic]

    def events(self) -> tuple[list[Any], Counter[str]]:
        """Readable events in order, and how many could not be read, by reason."""
        good, bad = [], Counter[str]()
        for raw in self.of("events"):
            try:
                good.append(decode_event(raw))
            except BadEventError as error:
                bad[error.reason] += 1
        return good, bad


class FakeScorer:
    """The scorer's HTTP contract: random pages from the items it is told, in a thread with its own loop."""

    def __init__(self, items: list[int], trouble: Callable[[int], web.Response | None] = lambda _: None) -> None:
        self.items, self.requests, self.ids = items, 0, []  # type: ignore[var-annotated]
        self.bodies: list[dict[str, Any]] = []
        self.ready_after = 0
        self.asked_ready = 0
        self._trouble = trouble
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(PATIENCE)

    async def _start(self) -> str:
        app = web.Application()
        app.add_routes([web.get("/readyz", self._ready), web.post("/recommend", self._recommend)])
        app.add_routes([web.post("/score", self._score)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _ready(self, _: web.Request) -> web.Response:
        self.asked_ready += 1
        return web.json_response({"ready": True}, status=200 if self.asked_ready > self.ready_after else 503)

    async def _take(self, request: web.Request) -> tuple[dict[str, Any], web.Response | None]:
        body = await request.json()
        self.requests += 1
        self.bodies.append(body)
        self.ids.append(body["request_id"])
        return body, self._trouble(self.requests)

    async def _recommend(self, request: web.Request) -> web.Response:
        body, trouble = await self._take(request)
        if trouble is not None:
            return trouble
        start = self.requests * 7
        page = [self.items[(start + k) % len(self.items)] for k in range(body["size"])]
        placed = [{"item_id": item, "position": k, "score": 0.1} for k, item in enumerate(page)]
        arm = "control" if self.requests % 3 == 0 else "model"
        return web.json_response(
            {"request_id": body["request_id"], "model_version": 1, "arm": arm, "ts_ms": 1, "items": placed, "notes": []}
        )

    async def _score(self, request: web.Request) -> web.Response:
        body, trouble = await self._take(request)
        if trouble is not None:
            return trouble
        scores = [0.1] * len(body["items"])
        return web.json_response(
            {"request_id": body["request_id"], "model_version": 1, "scores": scores, "unknown_items": []}
        )

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
