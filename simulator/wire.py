"""The simulator's two doors: a thread that hands messages to Kafka, and an HTTP client that does not give up.

Neither blocks the event loop, and neither lets an outage end the role: what cannot be sent now is sent later, aloud.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import aiohttp
import msgspec
import structlog
from kafka.errors import KafkaError, MessageSizeTooLargeError

from millrace.contracts.errors import SettingError
from simulator import figures

log = structlog.get_logger("simulator")

Message = tuple[str, bytes, bytes]
"""topic, key, value"""
FULL = 20_000
"""Messages that may wait for the producer before the loop is asked to pause."""
GIVE_UP_SECONDS = 20.0
"""How long a closing outlet tries to deliver what it holds."""
QUIET_SECONDS, MOST_QUIET_SECONDS = 1.0, 30.0
LOUD_AGAIN_SECONDS = 10.0
"""After so long without the trouble, its next time is a new one."""


class Producer(Protocol):
    """What is used of ``kafka.KafkaProducer``."""

    def send(self, topic: str, *, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> Any: ...
    def flush(self, timeout: float | None = None) -> Any: ...
    def close(self, timeout: float | None = None) -> Any: ...


class Aloud:
    """Warns of a trouble that lasts at growing intervals, so that it is heard and does not flood.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause = QUIET_SECONDS
        self._next = self._last = -LOUD_AGAIN_SECONDS
        self._unsaid = 0

    def __call__(self, event: str, **values: Any) -> None:
        now = self._clock()
        if now - self._last >= LOUD_AGAIN_SECONDS:  # a new trouble
            self._pause, self._next = QUIET_SECONDS, now
        self._last = now
        if now < self._next:
            self._unsaid += 1
            return
        log.warning(event, **values, **({"as_often_since": self._unsaid} if self._unsaid else {}))
        self._next, self._unsaid = now + self._pause, 0
        self._pause = min(2 * self._pause, MOST_QUIET_SECONDS)


class Outlet:
    """Sends messages in the order given, from a thread of its own. Call :meth:`put` from anywhere, :meth:`close` once.

    A message that the producer gives back (the broker was away for longer than the producer waits) is put in line
    again: at least once, and nothing lost while this process lives.

    Args:
        headers: Kafka headers of every message.
    """

    def __init__(self, producer: Producer, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self._producer, self._headers = producer, list(headers)
        self._line: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._aloud = Aloud()
        self._open = 0  # given and not yet acknowledged
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._work, name="outlet", daemon=True)
        self._thread.start()

    def put(self, topic: str, key: bytes, value: bytes) -> None:
        """Puts a message in line; returns at once."""
        with self._lock:
            self._open += 1
        self._line.put((topic, key, value))

    @property
    def waiting(self) -> int:
        """Messages in line before the producer."""
        return self._line.qsize()

    async def room(self) -> None:
        """Returns when the line is not over-long."""
        while self.waiting > FULL:
            await asyncio.sleep(0.01)

    def close(self) -> int:
        """Delivers what is in line and ends; returns how many messages could not be delivered."""
        self._deadline = time.monotonic() + GIVE_UP_SECONDS
        # Messages that are given back while flushing stand behind the mark, hence the loop.
        while True:
            self._line.put(None)
            self._thread.join()
            try:
                self._producer.flush(timeout=max(0.1, self._deadline - time.monotonic()))
            except KafkaError as error:
                self._aloud("the broker does not take the last messages", error=type(error).__name__)
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
            topic, key, value = message
            while True:
                try:
                    future = self._producer.send(topic, key=key, value=value, headers=self._headers)
                except MessageSizeTooLargeError:
                    self._refused(message)
                    break
                except KafkaError as error:
                    self._aloud("the broker does not take messages", error=type(error).__name__, waiting=self.waiting)
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

    def _refused(self, message: Message) -> None:
        """Too large for any try: it is told and left out."""
        topic, key, value = message
        figures.REFUSED.inc()
        self._aloud("a message is too large and is not sent", topic=topic, key=repr(key[:40]), bytes=len(value))
        self._delivered(None)

    def _given_back(self, message: Message, error: BaseException) -> None:
        if isinstance(error, MessageSizeTooLargeError):
            self._refused(message)
            return
        self._aloud("a message came back and is sent again", topic=message[0], error=type(error).__name__)
        self._line.put(message)


class Scorer:
    """The scorer's HTTP API. Every failure is counted, told, and tried again with back-off, until ``stopped()``."""

    def __init__(self, url: str, session: aiohttp.ClientSession, stopped: Callable[[], bool]) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingError(f"scorer address '{url}' is no URL", "set MILLRACE_SCORER to http://host:port")
        self._url = url.rstrip("/")
        self._session = session
        self._stopped = stopped
        self._aloud = Aloud()

    async def ready(self) -> bool:
        """Waits until the scorer says that it can serve; False when told to stop before."""
        pause = 0.1
        while not self._stopped():
            try:
                async with self._session.get(f"{self._url}/readyz") as answer:
                    if answer.status == 200:
                        return True
                    why = (await answer.text())[:200]
            except (aiohttp.ClientError, TimeoutError) as error:
                why = type(error).__name__
            self._aloud("waiting for the scorer", address=self._url, why=why)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 2.0)
        return False

    async def ask(
        self, route: str, make_body: Callable[[], dict[str, Any]], refusals: int = 0
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """POSTs until it is answered: the body that was answered, and the answer.

        ``make_body`` is called for each try and must name a new request id each time: the scorer may have logged the
        impression of a try whose answer was lost.

        Args:
            refusals: how often a refusal (4xx) is tried again. A page may name items that the scorer has not heard of
                yet.

        Returns:
            None when told to stop, or refused for good.
        """
        pause = 0.05
        while not self._stopped():
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
                    figures.RECOMMEND_SECONDS.observe(time.perf_counter() - started)
                    return body, page
                why = f"{answer.status} {raw[:200].decode('utf-8', 'replace')}"
                if answer.status < 500 and answer.status != 429:
                    if refusals <= 0:
                        figures.REQUEST_ERRORS.inc()
                        self._aloud("the scorer refused a request", route=route, why=why)
                        return None
                    refusals -= 1
            except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
                why = f"{type(error).__name__} {error}"[:200]
            figures.REQUEST_ERRORS.inc()
            self._aloud("the scorer does not answer; the shopper waits", address=self._url, why=why)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
        return None
