# shell
"""The simulator's two connections: a thread that sends messages to Kafka, and an HTTP client that retries.

Neither blocks the event loop, and no outage ends the role: unsent messages are sent later, with warnings.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
import structlog
from kafka.errors import KafkaError, MessageSizeTooLargeError

from millrace.basics.errors import SettingError
from millrace.processes.repeated_warnings import Kinds
from simulator import simulator_metrics

log = structlog.get_logger("simulator")

T = TypeVar("T")

Record = tuple[str, bytes, bytes]  # topic, key, value
FULL = 20_000  # messages that may wait for the producer before the loop is asked to pause
GATHER_SECONDS = 0.005
"""How long the thread lets messages gather: waking it costs more than sending one message."""
GIVE_UP_SECONDS = 20.0  # how long a closing outlet tries to deliver what it holds
MOST_PAUSE_SECONDS = 2.0  # between two tries


class Producer(Protocol):
    """The used part of ``kafka.KafkaProducer``."""

    def send(self, topic: str, *, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> Any: ...
    def flush(self, timeout: float | None = None) -> Any: ...
    def close(self, timeout: float | None = None) -> Any: ...


class ThrottledWarning:
    """Warns of each kind of trouble at most one time a minute, with the number of cases since."""

    def __init__(self) -> None:
        self._kinds = Kinds()

    def __call__(self, event: str, **values: Any) -> None:
        self._kinds.note(event, ", ".join(f"{name}={value}" for name, value in values.items()))
        for line in self._kinds.due(time.monotonic()):
            log.warning(line.kind, times=line.times, example=line.example)


class SimulatorSender:
    """Sends messages in order, from its own thread. Call :meth:`put` from any thread, :meth:`close` one time.

    A message that the producer returns (after a long outage of the broker) is queued again: at least once, and nothing
    is lost while this process lives. ``headers`` are Kafka headers of every message.
    """

    def __init__(self, producer: Producer, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self._producer, self._headers = producer, list(headers)
        self._line: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._warn = ThrottledWarning()
        self._open = 0  # given and not yet acknowledged
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._work, name="outlet", daemon=True)
        self._thread.start()

    def put(self, topic: str, key: bytes, value: bytes) -> None:
        """Queues a message; returns immediately."""
        with self._lock:
            self._open += 1
        self._line.put((topic, key, value))

    @property
    def waiting(self) -> int:
        return self._line.qsize()

    async def room(self) -> None:
        """Returns when at most :data:`FULL` messages wait."""
        while self.waiting > FULL:
            await asyncio.sleep(0.01)

    def close(self) -> int:
        """Delivers the queued messages and ends; returns the number of undelivered messages."""
        self._deadline = time.monotonic() + GIVE_UP_SECONDS
        # Messages that are given back while flushing stand behind the mark, hence the loop.
        while True:
            self._line.put(None)
            self._thread.join()
            try:
                self._producer.flush(timeout=max(0.1, self._deadline - time.monotonic()))
            except KafkaError as error:
                self._warn("the broker does not take the last messages", error=type(error).__name__)
            if self._line.empty() or time.monotonic() >= self._deadline:
                break
            self._thread = threading.Thread(target=self._work, name="outlet", daemon=True)
            self._thread.start()
        self._producer.close(timeout=1.0)
        if self._open:
            log.error("messages could not be delivered", count=self._open, remedy="start the broker and run again")
        return self._open

    def _work(self) -> None:
        while (message := self._line.get()) is not None:
            if self._line.empty():
                time.sleep(GATHER_SECONDS)
            topic, key, value = message
            while True:
                try:
                    future = self._producer.send(topic, key=key, value=value, headers=self._headers)
                except MessageSizeTooLargeError:
                    self._refused(message)
                    break
                except KafkaError as error:
                    self._warn("the broker does not take messages", error=type(error).__name__, waiting=self.waiting)
                    if self._deadline is not None and time.monotonic() >= self._deadline:
                        return
                    time.sleep(0.2)
                else:
                    future.add_callback(self._delivered)
                    future.add_errback(self._given_back, message)
                    break

    def _delivered(self, _: object) -> None:
        with self._lock:
            self._open -= 1

    def _refused(self, message: Record) -> None:
        topic, key, value = message
        simulator_metrics.REFUSED.inc()
        self._warn("a message is too large and is not sent", topic=topic, key=repr(key[:40]), bytes=len(value))
        self._delivered(None)

    def _given_back(self, message: Record, error: BaseException) -> None:
        if isinstance(error, MessageSizeTooLargeError):
            self._refused(message)
            return
        self._warn("a message came back and is sent again", topic=message[0], error=type(error).__name__)
        self._line.put(message)


class _Unanswered(Exception):
    """A try without a usable answer; its text gives the reason."""


class ScorerClient:
    """The scorer's HTTP API. Every failure is counted, logged, and retried with back-off, until ``stopped()``."""

    def __init__(self, url: str, session: aiohttp.ClientSession, stopped: Callable[[], bool]) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingError(f"scorer address '{url}' is no URL", "set MILLRACE_SCORER to http://host:port")
        self._url = url.rstrip("/")
        self._session = session
        self._stopped = stopped
        self._warn = ThrottledWarning()

    async def ready(self) -> bool:
        """Waits until the scorer can serve; False when stopped before."""

        async def look() -> bool:
            if self._stopped():
                return False
            try:
                async with self._session.get(f"{self._url}/readyz") as answer:
                    if answer.status == 200:
                        return True
                    raise _Unanswered((await answer.text())[:200])
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _Unanswered(type(error).__name__) from None

        return await self._insist(look, "waiting for the scorer", 0.1)

    async def ask(
        self, route: str, make_body: Callable[[], dict[str, Any]], refusals: int = 0
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """POSTs until it is answered; returns the body of the answered try, and the answer. None when stopped, or
        refused finally: ``refusals`` times (4xx, or unknown items), since the scorer may not know a page's items yet.

        An answer without a request id has no page log: it is a page of the shop's lists, since the scorer is not ready,
        or has items that the scorer does not know. Events of such a page would become dead letters, so this call asks
        again.

        ``make_body`` is called for each try and must name a new request id each time: the scorer may have logged the
        page of a try whose answer was lost.
        """
        trouble = "the scorer gives no page; the shopper waits"

        async def post() -> tuple[dict[str, Any], dict[str, Any]] | None:
            nonlocal refusals
            if self._stopped():
                return None
            body = make_body()
            started = time.perf_counter()
            try:
                async with self._session.post(
                    f"{self._url}{route}",
                    data=msgspec.json.encode(body),
                    headers={"Content-Type": "application/json"},
                ) as answer:
                    raw = await answer.read()
                if answer.status == 200:
                    page: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
                    if page.get("request_id") is not None:
                        simulator_metrics.RECOMMEND_SECONDS.observe(time.perf_counter() - started)
                        return body, page
                    unknown = page.get("unknown_items", [])
                    refused = bool(unknown)
                    why = (
                        f"it does not know {unknown[:3]}" if unknown else "it is not ready: a page of the shop's lists"
                    )
                else:
                    refused = 200 < answer.status < 500 and answer.status != 429
                    why = f"{answer.status} {raw[:200].decode('utf-8', 'replace')}"
                if refused:
                    if refusals <= 0:
                        simulator_metrics.REQUEST_ERRORS.inc()
                        self._warn("the scorer refused a request", route=route, why=why)
                        return None
                    refusals -= 1
            except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
                why = f"{type(error).__name__} {error}"[:200]
            simulator_metrics.REQUEST_ERRORS.inc()
            raise _Unanswered(why)

        return await self._insist(post, trouble, 0.05)

    async def _insist(self, try_once: Callable[[], Coroutine[Any, Any, T]], trouble: str, pause_s: float) -> T:
        """Retries until there is an answer, after pauses that double. ``try_once`` checks for a stop before each try,
        and then returns an answer."""
        while True:
            try:
                return await try_once()
            except _Unanswered as error:
                self._warn(trouble, address=self._url, why=str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_SECONDS)
