# shell
"""Sends to Kafka: batches by partition, one after another, through a producer that is replaced when it has failed.

::

    Keeper ── take ──► a lane a partition: waits LINGER_SECONDS for more ──► producer (idempotent, acks=all)
       ▲                  ├─ acknowledged ──► kept
       │                  ├─ too large for the broker ──► half as much; a single message is refused
       └── put back ◄─────┴─ the producer has failed, or nothing moves though the broker answers ──► another one

A lane has one batch under way, so the topic keeps the order. While the broker is away the producer retries; messages
taken meanwhile wait here, bounded by the keeper. After some errors an idempotent producer is of no use: its next
batch has a number that the broker does not expect. Then all lanes put back what is under way and go on with a new
producer. Messages that the broker had taken are sent twice; the stream recognises them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from functools import lru_cache

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from millrace.basics.errors import BrokerError, MillraceError, one_line
from millrace.basics.hashing import kafka_partition
from millrace.connections.kafka_hooks import hush
from millrace.contracts.events import BadEventError
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, ITEMS, USERS
from millrace.processes.async_kafka import make_async_producer
from millrace.processes.kafka import BATCH_BYTES, broker_error, ensure_topics
from millrace.processes.metrics import LOOP_TIMESTAMP, READY
from stream.intake.intake_metrics import PRODUCERS, WAITING
from stream.intake.intake_queue import Keeper, Lane

log = structlog.get_logger("intake")
hush("aiokafka")

TOPICS = (EVENTS, USERS, ITEMS)
LINGER_SECONDS = 0.01
"""How long a lane waits for more before it sends. An event's way to the model has waits of tens of ms after it."""
LOOK_SECONDS = 1.0
MOST_WAITING = 20_000  # messages that are not kept yet; beyond it, requests get 429
AWAY_SECONDS = 2.0
"""The broker counts as away when a batch is under way, or an answer is missing, for longer than this."""
STUCK_SECONDS = 15.0
"""A batch that is under way for longer, while the broker answers, needs another producer."""
START_SECONDS = 15.0
CLOSE_SECONDS = 5.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
AGAIN_SECONDS = 30.0
"""Between two lines about a broker that stays away."""

_FAILURES = (KafkaError, MillraceError, OSError, TimeoutError)


class _StuckError(BrokerError):
    """Nothing moves though the broker answers."""


class IntakeProducer:
    """All methods run in one asyncio loop. :meth:`open` first; then :attr:`keeper` is there.

    Attributes:
        away: why nothing goes to the broker at the moment; empty: it does.
    """

    keeper: Keeper

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._headers = settings.event_clock().headers
        self._partitions: dict[str, int] = {}
        self._wake: dict[Lane, asyncio.Event] = {}
        self._most_bytes = BATCH_BYTES - 4096  # of a batch; less where the broker refused larger ones
        self._under_way: dict[Lane, float] = {}  # since when
        self._producer: AIOKafkaProducer | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.away, self._away_s, self._logged_s = "", 0.0, 0.0

    async def open(self, life_ms: int, disorder_ms: int) -> None:
        """Connects, and makes the keeper. Raises BrokerError when the broker does not describe the topics."""
        try:
            producer = self._producer = await self._make()
            for topic in TOPICS:
                async with asyncio.timeout(START_SECONDS):
                    self._partitions[topic] = len(await producer.partitions_for(self._settings.topic(topic)))
        except (KafkaError, OSError, TimeoutError) as error:
            raise broker_error(f"no producer at '{self._settings.kafka}'", error) from None
        self._wake = {(t, p): asyncio.Event() for t, count in self._partitions.items() for p in range(count)}
        home = lru_cache(maxsize=65_536)(kafka_partition)
        self.keeper = Keeper(
            lambda topic, key: (topic, home(key, self._partitions[topic])),
            hash,  # 64 bits, with another key in each process
            MOST_WAITING,
            life_ms,
            disorder_ms,
        )

    def wake(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            self._wake[lane].set()

    async def run(self) -> None:
        """Delivers until it is cancelled."""
        pause_s = FIRST_PAUSE_SECONDS
        while True:
            began_s = time.monotonic()
            try:
                async with self._producing() as producer, asyncio.TaskGroup() as tasks:
                    for lane in self._wake:
                        tasks.create_task(self._lane(producer, lane))
                    tasks.create_task(self._watch(producer))
            except* _FAILURES as group:
                self._is_away(one_line(_first(group)))
            except* Exception as group:  # a bug; waiting messages must not be lost for it
                error = _first(group)
                log.error("delivering failed", error=one_line(error), exc_info=error)
                self._is_away(one_line(error))
            lasted_s = time.monotonic() - began_s
            pause_s = FIRST_PAUSE_SECONDS if lasted_s > AGAIN_SECONDS else min(2 * pause_s, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause_s)

    async def finished(self, seconds: float) -> int:
        """Waits at most so long until all is kept; returns how many messages are left."""
        deadline_s = time.monotonic() + seconds
        while self.keeper.waiting and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        return self.keeper.waiting

    async def close(self) -> None:
        """Closes what :meth:`run` has not."""
        if self._producer is not None:
            self._close(self._producer)
        await asyncio.gather(*self._closing, return_exceptions=True)

    # ------------------------------------------------------------------ lanes

    async def _lane(self, producer: AIOKafkaProducer, lane: Lane) -> None:
        wake = self._wake[lane]
        while True:
            if not self.keeper.depth(lane):
                wake.clear()
                await wake.wait()
            await asyncio.sleep(LINGER_SECONDS)
            await self._deliver(producer, lane)

    async def _deliver(self, producer: AIOKafkaProducer, lane: Lane) -> None:
        topic, partition = lane
        batch = self.keeper.take(lane, self._most_bytes)
        self._under_way[lane] = time.monotonic()
        builder, left = producer.create_batch(), batch
        try:
            headers = self._headers if topic == EVENTS else []
            for one in batch:
                builder.append(timestamp=None, key=one.key, value=one.value, headers=headers)
            builder.close()
            await (await producer.send_batch(builder, self._settings.topic(topic), partition=partition))
            left = []
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            if len(batch) > 1:
                self._most_bytes = sum(one.size for one in batch) // 2
            else:
                left = []
                detail = f"{batch[0].size} bytes are more than the broker takes in one message (its message.max.bytes)"
                self.keeper.refuse(batch[0], BadEventError("oversized", detail))
            raise  # the broker does not expect the next number: another producer is needed
        finally:
            del self._under_way[lane]
            if left:
                self.keeper.put_back(lane, left)
        self.keeper.kept(lane, batch)
        if self.away:
            self._is_back()

    # ------------------------------------------------------------------ the producer

    @contextlib.asynccontextmanager
    async def _producing(self) -> AsyncIterator[AIOKafkaProducer]:
        producer, self._producer = self._producer, None
        if producer is None:
            await asyncio.to_thread(ensure_topics, self._settings)
            producer = await self._make()
        try:
            yield producer
        finally:
            self._close(producer)

    async def _make(self) -> AIOKafkaProducer:
        producer = make_async_producer(self._settings, linger_ms=0)  # lanes wait for more before
        try:
            async with asyncio.timeout(START_SECONDS):
                await producer.start()
        except BaseException:
            self._close(producer)
            raise
        PRODUCERS.inc()
        return producer

    def _close(self, producer: AIOKafkaProducer) -> None:
        """Closes in the background: a producer whose broker is away waits for it."""
        task = asyncio.create_task(_closed(producer))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _watch(self, producer: AIOKafkaProducer) -> None:
        """Asks the broker for its metadata regularly, also when nobody sends anything."""
        answered_s = time.monotonic()
        while True:
            LOOP_TIMESTAMP.set(time.time())
            WAITING.set(self.keeper.waiting)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AWAY_SECONDS):
                    if await producer.client.force_metadata_update():
                        answered_s = time.monotonic()
            now_s = time.monotonic()
            under_way_s = now_s - min(self._under_way.values(), default=now_s)
            silent_s = now_s - answered_s
            if max(under_way_s, silent_s) > AWAY_SECONDS:
                self._is_away("it does not answer" if silent_s > AWAY_SECONDS else "it acknowledges nothing")
            elif self.away:
                self._is_back()
            if under_way_s > STUCK_SECONDS and silent_s < AWAY_SECONDS:
                raise _StuckError(f"nothing was acknowledged for {under_way_s:.0f} s", "another producer is made")
            READY.set(not self.away)
            await asyncio.sleep(LOOK_SECONDS)

    def _is_away(self, why: str) -> None:
        now_s = time.monotonic()
        if not self.away:
            self._away_s, self._logged_s = now_s, float("-inf")
        self.away = why
        READY.set(0)
        if now_s - self._logged_s >= AGAIN_SECONDS:
            self._logged_s = now_s
            log.warning(
                "the broker takes no messages; they wait here, and requests are answered 503",
                address=self._settings.kafka,
                why=why,
                waiting=self.keeper.waiting,
                seconds=round(now_s - self._away_s),
            )

    def _is_back(self) -> None:
        log.info("the broker takes messages again", seconds=round(time.monotonic() - self._away_s))
        self.away = ""
        READY.set(1)


async def _closed(producer: AIOKafkaProducer) -> None:
    """Ends a producer in any state: one that is stuck does not end by itself."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await producer.stop()
            return
    sender = producer._sender.sender_task
    if sender is not None:
        sender.cancel()
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await producer.client.close()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
