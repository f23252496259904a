"""The stream role: a Faust worker around :class:`stream.partition.Partition`. It connects; it decides nothing.

::

    Faust agent ──► buffer ──► pump ── take, advance (event loop, short) ──► samples, dead letters (not awaited)
                                 │ every publish_seconds     changed()
                                 │ every checkpoint_seconds  changed(), to_bytes()
                                 ▼
                              outlet, one job after another, while the pump goes on:
                                 publish ─► Redis, features.items
                                 checkpoint ─► samples delivered ─► file written (thread) ─► offsets committed

    a thread of the worker that holds partition 0: items, features.items ─► the shop's lists in Redis

The outlet's order is the guarantee: when a checkpoint exists, everything that follows from the messages it covers has
been delivered; when an offset is committed, the checkpoint that covers it exists. After a crash the rest is done again
from the newest checkpoint, with the same ids and absolute values.

An infrastructure error is waited out, aloud, while heart-beats go on (the consumer has its own thread); what lasts
longer than ``outage_seconds`` ends the process with one line, and whoever started it starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from faust.types import TP
from prometheus_client import Counter, Gauge, Histogram

from millrace.contracts.clock import EventClock, sent_by
from millrace.contracts.errors import BrokerError, MillraceError, ServiceError
from millrace.contracts.events import (
    LAST_MS,
    MESSAGE_BYTES,
    BadEventError,
    DeadLetter,
    ItemTiles,
    User,
    letter_bytes,
    to_msgpack,
)
from millrace.contracts.intake import Intake
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, EVENTS, FEATURES_ITEMS, IMPRESSIONS, SAMPLES, USERS
from millrace.processes.kafka import REMEDY, ensure_topics, read_all, wait_for_broker
from millrace.processes.metrics import READY, TURNED, serve_metrics
from millrace.processes.wall import event_now_ms, wall_ms
from stream.checkpoint import CheckpointStore
from stream.faustio import INPUTS, StreamApp, calm_client
from stream.gate import Arrival, Gate, silent_seconds
from stream.listkeeper import ListKeeper
from stream.online import OnlineStore
from stream.partition import Changes, Message, Output, Partition, Policy
from stream.warm import calm_collector, warm_up

log = structlog.get_logger("stream")

GATHER_SECONDS = 0.02  # how long a micro-batch may fill after its first message
BUFFER_MESSAGES = 4096  # the agent waits while more than this are not taken
TAKE_MESSAGES = 500  # in one go: the event loop is back within some tens of milliseconds
HELD_MESSAGES = 4096  # fetching of events pauses while more than this wait for impressions
QUIET_SECONDS = 1.0
BEYOND_SECONDS = 3.0
AHEAD_SECONDS = 3600.0
"""A Kafka time stamp further ahead of our clock than this is no time at which a message came (brokers refuse it from
Kafka 4 on); were it believed, one such impression would let all events pass those that they wait for."""
DAY_MS = 86_400_000

EVENTS_IN = Counter("millrace_events_total", "Events taken, by type.", ["type"])
SAMPLES_OUT = Counter("millrace_samples_total", "Samples sent, by kind.", ["kind"])
DUPLICATES = Counter("millrace_duplicates_dropped_total", "Events that had been taken before.")
DEAD = Counter("millrace_dead_letters_total", "Messages that could not be used, by reason.", ["reason"])
LATE = Counter("millrace_late_events_total", "Events that came after the watermark had passed them.")
UNFIT = Counter(
    "millrace_unfit_values_total", "Values negative, not finite or too great for the mean that they belong to."
)
PENDING = Gauge("millrace_pending_exposures", "Exposures that wait for their label.", ["partition"])
WATERMARK = Gauge("millrace_watermark_seconds", "Event time up to which everything has come.", ["partition"])
WINDOW_KEYS = Gauge("millrace_window_keys", "Keys with counts, over all partitions of this worker.")
LAG = Gauge("millrace_stream_lag", "Messages not read yet.", ["topic", "partition"])
CHECKPOINTS = Counter("millrace_checkpoints_total", "Checkpoints written.")
CHECKPOINT_SECONDS = Histogram("millrace_checkpoint_seconds", "From taking a checkpoint to its commit.")


@dataclass(slots=True)
class Slot:
    """One assigned partition and what of it is under way."""

    partition: Partition
    heard_s: float  # time.time() of its last message, or of its assignment
    published: float
    saved: float
    dirty: bool = False  # something happened since the last checkpoint was taken
    publishing: bool = False
    fresh: bool = False  # it began empty and nothing was published yet: all there is comes with its changes
    saving: bool = False
    gate: Gate = field(default_factory=Gate)  # events that wait for impressions to be read as far
    advance_ms: int | None = None  # where the watermark of the idle partition will be moved, next of all
    advance_saved: bool = False  # a checkpoint says so
    waiting: list[Message] = field(default_factory=list)  # impressions and users that came meanwhile
    paused: bool = False
    beyond_since: float = 0.0  # monotonic time since which the topic ends before the checkpoint; 0: it does not
    sent: list[asyncio.Future[Any]] = field(default_factory=list)  # samples and dead letters not yet covered


class Worker:
    """The worker's state between Faust's callbacks. All methods run in one asyncio loop."""

    def __init__(self, settings: Settings, schema: Schema, clock: EventClock) -> None:
        self.settings, self.schema, self.clock = settings, schema, clock
        self.policy = Policy.of(settings)
        self.checkpoints = CheckpointStore(settings.folder("checkpoints"))
        self.online = OnlineStore(settings.redis, settings.outage_seconds)
        self.app = StreamApp(settings, self.positions, settings.folder("faust"))
        self.app.feed(self.receive)
        self.app.on_partitions_revoked.connect(self.revoked)
        self.app.on_partitions_assigned.connect(self.assigned)
        self.lists = ListKeeper(settings, schema, clock, self.tell)
        self.slots: dict[int, Slot] = {}
        self.failure: BaseException | None = None
        self._ticked, self._asked_s, self._silent_s = 0.0, 0.0, 0.0
        self._seq = wall_ms()  # of item tiles: rises over restarts too
        self._buffer: list[Arrival] = []
        self._arrived, self._room, self._loaded = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._lock = asyncio.Lock()  # held by whoever changes slots: the pump or a rebalance
        self._jobs: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._producer: AIOKafkaProducer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------------ Faust's callbacks

    async def positions(self) -> dict[TP, int]:
        """The next offset to read of every assigned input, once the checkpoints are loaded."""
        await self._loaded.wait()
        return {TP(t, p): slot.partition.offsets.get(t, 0) for p, slot in self.slots.items() for t in INPUTS}

    async def receive(self, m: Any) -> None:
        """The agent's body: one Kafka message into the buffer, unless it belongs to an assignment that is over."""
        await self._room.wait()
        if m.generation_id != self.app.consumer_generation_id:
            return
        now_s = time.time()
        stamp_s = m.timestamp or 0.0
        if stamp_s > now_s + AHEAD_SECONDS:
            stamp_s = now_s
        clock = sent_by(m.headers) or self.clock
        # Before a clock's own beginning (in another run, which did not name its own) it cannot say what the time was.
        known = stamp_s * 1000 >= clock.wall_zero_ms
        clock_ms = min(clock.at(round(stamp_s * 1000)), LAST_MS) if known else None
        message = Message(m.topic, m.offset, m.value or b"", clock_ms)
        self._buffer.append(Arrival(m.partition, stamp_s, now_s, message))
        self._arrived.set()
        if len(self._buffer) >= BUFFER_MESSAGES:
            self._room.clear()

    async def revoked(self, *_: Any, **__: Any) -> None:
        """Before partitions go: what is held becomes a checkpoint, and its offsets are committed."""
        with self._guarded("giving partitions up"):
            self._loaded.clear()
            self.lists.active.clear()
            READY.set(0)
            async with self._lock:
                self._empty_buffer()
                await self._save_all()
                self._forget(self.slots)
                self.slots = {}

    async def assigned(self, *args: Any, **_: Any) -> None:
        """After partitions came, before their first message: their newest checkpoints are loaded."""
        with self._guarded("taking partitions over"):
            self._loaded.clear()
            async with self._lock:
                self._empty_buffer()
                assigned: set[TP] = args[1]  # args[0] is the app
                by_topic = {t: {tp.partition for tp in assigned if tp.topic == t} for t in INPUTS}
                numbers = by_topic[EVENTS]
                if any(numbers != others for others in by_topic.values()):
                    raise BrokerError(
                        f"partitions of {', '.join(INPUTS)} come apart: {by_topic}", "give them equal counts"
                    )
                now = time.monotonic()
                loaded = {p: await asyncio.to_thread(self._load, p) for p in sorted(numbers)}
                heard_s = time.time()
                self.slots = {p: Slot(part, heard_s, 0.0, now, fresh=not part.offsets) for p, part in loaded.items()}
                for slot in self.slots.values():
                    slot.advance_ms = slot.partition.advance_ms
                    slot.advance_saved = slot.advance_ms is not None
                self._loaded.set()
                if 0 in self.slots:
                    self.lists.active.set()
                READY.set(1)
                log.info("partitions", held=sorted(numbers), resumed=sorted(p for p in loaded if loaded[p].offsets))

    def _load(self, number: int) -> Partition:
        body = self.checkpoints.newest(number)
        if body is None:
            return Partition(number, self.schema, self.policy)
        return Partition.from_bytes(body, self.schema, self.policy)

    # ------------------------------------------------------------------ the pump

    async def pump(self) -> None:
        """Takes micro-batches, moves idle partitions on, hands publications and checkpoints to the outlet."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), 0.1)
                await asyncio.sleep(GATHER_SECONDS)
            async with self._lock:
                batch = self._empty_buffer()
                await self._take(batch)
                await self._tick()

    def _empty_buffer(self) -> list[Arrival]:
        batch, self._buffer = self._buffer, []
        self._arrived.clear()
        self._room.set()
        return batch

    async def _take(self, batch: Sequence[Arrival]) -> None:
        ready: dict[int, list[Message]] = {number: [] for number in self.slots}
        now, heard_s = time.monotonic(), time.time()
        for arrival in batch:
            slot = self.slots.get(arrival.partition)
            if slot is None:
                continue
            slot.heard_s = heard_s
            if arrival.message.topic == EVENTS:
                slot.gate.hold(arrival)
                continue
            ready[arrival.partition].append(arrival.message)
            if arrival.message.topic == IMPRESSIONS:
                slot.gate.served(arrival)
        for number, arrived in ready.items():
            slot = self.slots[number]
            slot.waiting += arrived
            if slot.advance_ms is not None:
                if not slot.advance_saved:
                    continue
                await self._advance(number, slot, slot.advance_ms)
            messages, slot.waiting = slot.waiting, []
            self._release(number, slot, messages, now)
            for start in range(0, len(messages), TAKE_MESSAGES):
                slot.dirty = True
                output = slot.partition.take(messages[start : start + TAKE_MESSAGES], event_now_ms(self.clock))
                await self._emit(number, slot, output)
                await asyncio.sleep(0)

    def _release(self, number: int, slot: Slot, into: list[Message], now: float) -> None:
        """Events whose impressions have been read go on; while too many wait, no more of them are fetched."""
        if len(slot.gate):
            before = slot.partition.offsets.get(IMPRESSIONS, 0)
            taken = max([before, *(m.offset + 1 for m in into if m.topic == IMPRESSIONS)])
            into += slot.gate.release(self.app.read_to(TP(IMPRESSIONS, number)), taken, now)
        if slot.paused != (len(slot.gate) > HELD_MESSAGES // (2 if slot.paused else 1)):
            slot.paused = not slot.paused
            self.app.hold(TP(EVENTS, number), slot.paused)

    async def _advance(self, number: int, slot: Slot, until_ms: int) -> None:
        """Moves the watermark of a partition that was idle: a checkpoint says so already, so a worker that recovers
        from it does the same before it takes another message."""
        slot.advance_ms, slot.advance_saved, slot.dirty = None, False, True
        await self._emit(number, slot, slot.partition.advance(until_ms))

    async def _emit(self, number: int, slot: Slot, output: Output) -> None:
        """Sends samples and dead letters; their delivery is awaited by the next checkpoint."""
        count(output)
        if output.samples is not None and len(output.samples):
            for part in parts(output.samples):
                slot.sent.append(await self._send(SAMPLES, part.to_bytes(), number))
        for letter in output.dead:
            slot.sent.append(await self._send(DEAD_LETTERS, letter_bytes(letter), 0, letter.reason.encode()))

    def tell(self, letters: Sequence[DeadLetter]) -> None:
        """Sends dead letters and waits until they are delivered. For another thread than the loop's."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._tell(letters), self._loop).result(self.settings.outage_seconds)

    async def _tell(self, letters: Sequence[DeadLetter]) -> None:
        await asyncio.gather(
            *[await self._send(DEAD_LETTERS, letter_bytes(one), 0, one.reason.encode()) for one in letters]
        )
        for letter in letters:
            DEAD.labels(letter.reason).inc()

    async def _send(self, topic: str, value: bytes, partition: int, key: bytes | None = None) -> asyncio.Future[Any]:
        assert self._producer is not None
        sent: asyncio.Future[Any] = await self._producer.send(topic, value, key, partition)
        return sent

    async def _tick(self) -> None:
        now = time.monotonic()
        TURNED.set(time.time())
        self._listen(now)
        for number, slot in self.slots.items():
            if slot.advance_ms is None and not slot.saving and now - slot.saved >= self.settings.checkpoint_seconds:
                until_ms = self._idle_until(number, slot)
                if until_ms is not None and slot.partition.waits_for(until_ms):
                    slot.advance_ms = until_ms
                    self._queue_checkpoint(number, slot)
            if not slot.publishing and now - slot.published >= self.settings.publish_seconds:
                self._queue_publication(number, slot)
            if slot.dirty and not slot.saving and now - slot.saved >= self.settings.checkpoint_seconds:
                self._queue_checkpoint(number, slot)
            PENDING.labels(number).set(slot.partition.pending)
            WATERMARK.labels(number).set((slot.partition.watermark_ms or float("nan")) / 1000)  # 0: no event yet
            beyond = ""
            for topic in INPUTS:
                read = self.app.read_to(TP(topic, number))
                if read is not None:
                    lag = read.end - slot.partition.offsets.get(topic, 0)
                    LAG.labels(topic, number).set(max(0, lag))
                    beyond = topic if lag < 0 else beyond
            slot.beyond_since = (slot.beyond_since or now) if beyond else 0.0
            if beyond and now - slot.beyond_since > BEYOND_SECONDS:
                raise BrokerError(
                    f"topic '{beyond}' partition {number} ends before offset {slot.partition.offsets[beyond]} of its "
                    "checkpoint: it is not the topic that was read",
                    "move the checkpoints away (MILLRACE_DATA), or name the old broker",
                )
        WINDOW_KEYS.set(sum(slot.partition.window_keys for slot in self.slots.values()))

    def _listen(self, now: float) -> None:
        """A worker with nothing to send notices here that the broker is away: by fetches that are not answered. Time in
        which we did not look (a machine asleep) does not count."""
        reads = [self.app.read_to(TP(topic, number)) for number in self.slots for topic in INPUTS]
        asked_s = max((read.asked_s for read in reads if read is not None), default=0.0)
        if not self.slots or asked_s != self._asked_s:
            self._asked_s, self._silent_s = asked_s, 0.0
        else:
            self._silent_s += min(now - self._ticked, QUIET_SECONDS)
        self._ticked = now
        if self._silent_s > self.settings.outage_seconds:
            raise BrokerError(f"broker '{self.settings.kafka}' has not answered for {self._silent_s:.0f} s", REMEDY)

    def _idle_until(self, number: int, slot: Slot) -> int | None:
        """Event time to move a silent partition to; None when it is not silent or something waits to be read.

        That is the event clock, unless the clock is more than a day ahead of the newest event anywhere: then it is
        not the clock of this data (an old log is played), and the partition follows the others.
        """
        partition = slot.partition
        if partition.newest_ms <= 0 or len(slot.gate):
            return None
        offsets = partition.offsets
        reads = [(self.app.read_to(TP(topic, number)), offsets.get(topic, 0)) for topic in (EVENTS, IMPRESSIONS)]
        if silent_seconds(reads, slot.heard_s) < self.settings.idle_seconds:
            return None
        newest = max(s.partition.newest_ms for s in self.slots.values())
        clock = event_now_ms(self.clock)
        return clock if clock - max(newest, partition.watermark_ms) <= DAY_MS else newest

    # ------------------------------------------------------------------ the outlet

    async def outlet(self) -> None:
        """Does the queued jobs, one after another."""
        while True:
            job = await self._jobs.get()
            await job()
            self._jobs.task_done()

    def _queue_publication(self, number: int, slot: Slot) -> None:
        changes = slot.partition.changed()
        slot.published = time.monotonic()
        slot.publishing = True
        fresh, slot.fresh = slot.fresh, False

        async def publish() -> None:
            await self._fill(number, slot.partition, fresh)
            await self._publish(number, changes)
            slot.publishing = False

        self._jobs.put_nowait(publish)

    async def _fill(self, number: int, partition: Partition, fresh: bool) -> None:
        """Writes all of the partition's users to a Redis that does not hold them, in particular one that lost them."""
        if await self.online.filled(number):
            return
        await self.online.begin_filling(number)
        if not fresh:
            log.info("filling Redis", partition=number)
            profiles = await asyncio.to_thread(profiles_of, self.settings, number)
            await self.online.write([], [(user.user_id, user.attributes) for user in profiles])
            for users in partition.whole():
                await self.online.write(users, [])
        await self.online.end_filling(number)

    async def _publish(self, number: int, changes: Changes) -> None:
        await self.online.write(changes.users, [(user.user_id, user.attributes) for user in changes.profiles])
        sent = []
        for keys, tiles in item_parts(changes):
            self._seq += 1
            message = ItemTiles(
                partition=number,
                seq=self._seq,
                event_ms=changes.event_ms,
                keys=np.ascontiguousarray(keys, "<u8").tobytes(),
                sizes=np.fromiter(map(len, tiles), "<u4", len(tiles)).tobytes(),
                tiles=b"".join(tiles),
            )
            sent.append(await self._send(FEATURES_ITEMS, to_msgpack(message), 0, str(number).encode()))
        await asyncio.gather(*sent)

    def _queue_checkpoint(self, number: int, slot: Slot) -> None:
        """Everything the state holds is published first: a restart from this checkpoint does not do it again."""
        self._queue_publication(number, slot)
        started = time.monotonic()
        frozen, offsets = slot.partition.freeze(slot.advance_ms), dict(slot.partition.offsets)
        before_advance = slot.advance_ms is not None
        sent, slot.sent = slot.sent, []
        slot.saved, slot.saving, slot.dirty = started, True, False

        async def checkpoint() -> None:
            await asyncio.gather(*sent)
            await asyncio.to_thread(lambda: self.checkpoints.write(number, frozen.to_bytes(), offsets))
            await self._commit({TP(topic, number): offset for topic, offset in offsets.items()})
            slot.saving, slot.advance_saved = False, before_advance
            CHECKPOINTS.inc()
            CHECKPOINT_SECONDS.observe(time.monotonic() - started)

        self._jobs.put_nowait(checkpoint)

    async def _commit(self, offsets: dict[TP, int]) -> None:
        """A commit that fails is not repeated: the next one follows, and the checkpoint says where to resume."""
        try:
            await asyncio.wait_for(self.app.commit_offsets(offsets), 5.0)
        except (KafkaError, TimeoutError) as error:
            log.warning("offsets not committed; the checkpoint holds them", error=type(error).__name__)

    async def _save_all(self) -> None:
        """A last checkpoint of everything held, done before this returns."""
        for number, slot in self.slots.items():
            if slot.dirty:
                self._queue_checkpoint(number, slot)
        await self._jobs.join()

    def _forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            for gauge, labels in ((PENDING, ()), (WATERMARK, ()), *((LAG, (topic,)) for topic in INPUTS)):
                with contextlib.suppress(KeyError):
                    gauge.remove(*labels, str(number))

    # ------------------------------------------------------------------ life

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Faust would log a callback's exception and go on or crash by itself: we end with one line instead."""
        try:
            yield
        except Exception as error:
            self.failure = self.failure or named(error, what, self.settings)
            raise

    async def run(self, should_stop: Callable[[], bool]) -> None:
        """Works until ``should_stop`` says so, then leaves a last checkpoint.

        Raises:
            MillraceError: something that the worker cannot do without stayed away.
        """
        await self.online.wait()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self.settings.kafka.split(","),
            enable_idempotence=self.settings.idempotence,
            acks="all",
            linger_ms=5,
            max_request_size=self.settings.message_bytes,
            request_timeout_ms=round(self.settings.outage_seconds * 1000),
        )
        await self._producer.start()
        self._loop = asyncio.get_running_loop()
        self.lists.start()
        tasks = {
            asyncio.create_task(self.app.start()): "Faust",
            asyncio.create_task(self.pump()): "the pump",
            asyncio.create_task(self.outlet()): "the outlet",
        }
        try:
            while not should_stop():
                self._check(tasks)
                await asyncio.sleep(0.1)
            async with self._lock:
                self._empty_buffer()
                saving = asyncio.create_task(self._save_all())
                while not saving.done():
                    self._check(tasks)
                    await asyncio.wait([saving], timeout=0.1)
                await saving
                self.slots = {}
        finally:
            READY.set(0)
            self.lists.ending.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            lists = asyncio.to_thread(self.lists.join, 5.0)
            for closing in (self.app.leave(5.0), self._producer.stop(), self.online.close(), lists):
                try:
                    await asyncio.wait_for(closing, 11.0)
                except Exception as error:
                    log.warning("not closed cleanly", error=f"{type(error).__name__}: {error}")

    def _check(self, tasks: dict[asyncio.Task[None], str]) -> None:
        if self.failure is not None:
            raise self.failure
        for task, what in tasks.items():
            if task.done() and not task.cancelled() and task.exception() is not None:
                raise named(task.exception(), what, self.settings)
        if self.app.crashed:
            raise named(self.app.crash_reason, "Faust", self.settings)


def named(error: BaseException | None, what: str, settings: Settings) -> BaseException:
    """``error`` as an expected failure where it is one; a bug stays itself, with its traceback."""
    if isinstance(error, KafkaError):
        return BrokerError(f"broker '{settings.kafka}' failed {what} ({type(error).__name__}: {error})", REMEDY)
    if isinstance(error, OSError):
        return ServiceError(f"{what} failed ({error})", "see the log above; the role can be started again")
    return error or ServiceError(f"{what} ended by itself", "see the log above; the role can be started again")


def count(output: Output) -> None:
    """What a step did, into the role's figures."""
    for name, n in output.counts.items():
        group, _, label = name.partition(".")
        if group == "events":
            EVENTS_IN.labels(label).inc(n)
        elif group == "samples":
            SAMPLES_OUT.labels(label).inc(n)
        elif name == "duplicates":
            DUPLICATES.inc(n)
        elif name == "late":
            LATE.inc(n)
        elif name == "unfit":
            UNFIT.inc(n)
    for letter in output.dead:
        DEAD.labels(letter.reason).inc()


def parts(samples: SampleBatch) -> Iterator[SampleBatch]:
    """``samples`` in pieces that fit into a message."""
    width = 8 * samples.cat.shape[1] + 4 * samples.num.shape[1] + 128
    rows = max(1, MESSAGE_BYTES // width)
    for start in range(0, len(samples), rows):
        yield samples.take(slice(start, start + rows)) if len(samples) > rows else samples


def item_parts(changes: Changes) -> Iterator[tuple[np.ndarray[Any, Any], list[bytes]]]:
    """Changed item-side keys with their tile lists, in pieces that fit into a message."""
    start = size = 0
    for i, tiles in enumerate(changes.item_tiles):
        if size and size + len(tiles) > MESSAGE_BYTES:
            yield changes.item_keys[start:i], changes.item_tiles[start:i]
            start, size = i, 0
        size += len(tiles) + 12
    if start < len(changes.item_tiles):
        yield changes.item_keys[start:], changes.item_tiles[start:]


def profiles_of(settings: Settings, number: int) -> list[User]:
    """The newest profile of every user of a partition, from the compacted topic. Blocks: for a thread.

    Raises:
        BrokerError: the topic cannot be read.
    """
    intake = Intake(settings.load_schema())
    found: dict[str, User] = {}

    def take(record: Any) -> None:
        if record.partition == number:
            with contextlib.suppress(BadEventError):  # a dead letter on its usual way
                user = intake.user(record.value)
                found[str(user.user_id)] = user

    read_all(settings, USERS, take)
    return list(found.values())


def run(settings: Settings, stop: threading.Event | None = None) -> None:
    """The role, in the main thread, until ``stop`` is set (None: until SIGTERM or SIGINT).

    Raises:
        MillraceError: the schema, the broker, Redis or the checkpoints cannot be used.
    """
    schema, clock = settings.load_schema(), settings.event_clock()
    if stop is None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    calm_client()
    serve_metrics("stream", settings.metrics_port, settings.host)
    warm_up(schema, Policy.of(settings))
    calm_collector()
    wait_for_broker(settings)
    ensure_topics(settings)

    async def main() -> None:
        await Worker(settings, schema, clock).run(stop.is_set)

    try:
        asyncio.run(main())
    except MillraceError:
        raise
    except (KafkaError, OSError) as error:
        raise named(error, "the stream role", settings) from None
