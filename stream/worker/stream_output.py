# shell
"""The output of a stream worker: samples and dead letters at once, publications and checkpoints one after another.

::

    emit, send_samples ──► dead-letters, samples          handed to the producer, their delivery is not awaited
    publish ──► Redis, features.items,         ┐
                features.coclicks              │
    checkpoint ──► samples delivered ──►       ├ a queue; the worker takes messages meanwhile
        file written (thread) ──► committed    ┘

The order is the guarantee. When a checkpoint exists, all output of the messages that it covers has been delivered.
When an offset is committed, the checkpoint that covers it exists. After a crash the rest is done again from the
newest checkpoint, with the same ids and absolute values.

A checkpoint (:mod:`stream.partition.partition_checkpoint`) is cut off in the loop and written in a thread. Sometimes
the whole state goes with it, frozen in the loop too, which takes some milliseconds.

Readers of co-clicks begin shortly before the topic's end. So each publication also has some unchanged items, in
turn, all of them within :data:`REPUBLISH_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from faust.types import TP

from millrace.basics.hashing import kafka_partition
from millrace.contracts import coclick_message, itemtiles
from millrace.contracts.carry import former
from millrace.contracts.coclick_message import Lists
from millrace.contracts.events import (
    MESSAGE_BYTES,
    BadEventError,
    DeadLetter,
    Id,
    User,
    dead_letter_bytes,
    key_of,
    to_msgpack,
)
from millrace.contracts.pagepack import Rates
from millrace.contracts.profile_reader import Intake
from millrace.contracts.samples import SCHEMA_HEADER, SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, FEATURES_COCLICKS, FEATURES_ITEMS, SAMPLES, USERS
from millrace.processes.async_kafka import make_async_producer
from millrace.processes.kafka import LINGER_MS, read_all
from millrace.processes.wall import wall_ms
from stream.join.hour_rows import Hour
from stream.partition.coclick_counts import CoClicks
from stream.partition.counters import Changes
from stream.partition.partition import Partition, StepOutput
from stream.partition.partition_checkpoint import CheckpointLine, CheckpointStore
from stream.worker.online_writer import OnlineStore
from stream.worker.outcome_files import OutcomeFiles
from stream.worker.stream_metrics import (
    ARRIVED_BYTES,
    CHECKPOINT_BYTES,
    CHECKPOINT_SECONDS,
    CHECKPOINTS,
    COCLICK_BYTES,
    DEAD,
    count,
    joined,
)
from stream.worker.turn import Checkpoint, Publish, Turn

log = structlog.get_logger("stream")

COMMIT_SECONDS = 5.0
REPUBLISH_SECONDS = 480.0
"""Period in which all co-clicks are published again: with a late publication, ten minutes at most."""
REPUBLISH_AT_ONCE = 1 / 16
"""Share of all co-clicks in one publication at most, so that a long silence causes no flood."""

Commit = Callable[[dict[TP, int]], Awaitable[None]]


class WorkerOutput:
    """All methods but :meth:`send_dead_letters` run in one asyncio loop. ``commit`` commits offsets to Kafka."""

    def __init__(self, settings: Settings, schema: Schema, commit: Commit, history: tuple[Schema, ...] = ()) -> None:
        self._settings, self._schema, self._commit_offsets = settings, schema, commit
        self._rates, self._says_arms = Rates.of(schema), settings.samples_say_arms
        self._of_schema = ((SCHEMA_HEADER, schema.id.encode()),)
        layout = schema.layout
        self._most_rows = max(1, MESSAGE_BYTES // (8 * layout.F + 4 * layout.N + 128))  # of samples, in a message
        self._gathered: list[SampleBatch] = []  # of all partitions, for the next message
        self.checkpoints = CheckpointStore(settings.place("checkpoints"))
        self._outcomes = OutcomeFiles(self.checkpoints.store, schema, former(history, schema))
        self._lines: dict[int, CheckpointLine] = {}  # by partition that is ours
        self._rotations: dict[int, Rotation] = {}  # the same
        self._online = OnlineStore(settings.redis, settings.outage_seconds, settings.prefix)
        self._seq = wall_ms()  # of item tiles: rises over restarts too
        self._sent: dict[int, list[asyncio.Future[Any]]] = defaultdict(list)  # not yet covered by a checkpoint
        self._removed: dict[int, list[Hour]] = defaultdict(list)  # files to be removed after the next one
        self._jobs: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._producer: AIOKafkaProducer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Waits for Redis and connects the producer. Raises StoreError when Redis stays away."""
        await self._online.wait()
        self._producer = make_async_producer(self._settings, linger_ms=LINGER_MS)
        await self._producer.start()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():  # the Redis client's wait_for swallows a cancellation now and then (Python 3.11)
            job = await self._jobs.get()
            await job()
            self._jobs.task_done()
        raise asyncio.CancelledError

    async def drained(self) -> None:
        await self._jobs.join()

    async def close(self) -> None:
        try:
            if self._producer is not None:
                await self._producer.stop()
        finally:
            await self._online.close()

    def forget(self) -> None:
        """Another worker owns the partitions now: no checkpoint of ours will cover the messages sent."""
        self._gathered.clear()
        self._sent.clear()
        self._removed.clear()
        self._lines.clear()
        self._rotations.clear()

    # ------------------------------------------------------------------ taking over

    def owns(self, number: int, line: CheckpointLine) -> None:
        self._lines[number] = line

    def line(self, number: int) -> CheckpointLine:
        return self._lines[number]

    def owns_logs(self, number: int, logs: dict[str, str]) -> None:
        """The partition's offsets are of these topics from now on (ids by name)."""
        self._lines[number].logs = logs

    # ------------------------------------------------------------------ at once

    async def emit(self, number: int, output: StepOutput) -> None:
        """Sends dead letters, and gathers samples until there are enough for a message, or :meth:`send_samples`. The
        next checkpoint waits for their delivery."""
        count(output)
        told = await self._told(number, output)
        if output.samples is not None and len(output.samples):
            joined(output.samples, wall_ms())
            told.insert(0, output.samples)
        for samples in told:
            if len(samples):
                self._gathered.append(replace(samples, partition=np.full(len(samples), number, np.uint16)))
        if sum(map(len, self._gathered)) >= self._most_rows:
            await self.send_samples()
        sent = self._sent[number]
        for dead_letter in output.dead:
            sent.append(await self._send(DEAD_LETTERS, dead_letter_bytes(dead_letter), 0, dead_letter.reason.encode()))

    async def send_samples(self) -> None:
        """Sends the samples that were gathered, of all partitions in one message, or in few."""
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        whole, rows = SampleBatch.concat(gathered), self._most_rows
        for part in (whole.take(slice(start, start + rows)) for start in range(0, len(whole), rows)):
            message = part.to_bytes(self._rates, self._says_arms)
            sent = await self._send(SAMPLES, message, 0, headers=self._of_schema)
            for number in np.unique(part.partition).tolist():
                self._sent[number].append(sent)

    async def _told(self, number: int, output: StepOutput) -> list[SampleBatch]:
        """Does what is due with the files of outcomes. Returns what is told; adds to the dead letters of ``output``."""
        files = output.files
        if not (files.sealed or files.told or files.erased or files.removed):
            return []
        self._removed[number] += files.removed
        found = await asyncio.to_thread(lambda: list(self._outcomes.do(number, files)))
        told = [one for one in found if isinstance(one, SampleBatch)]
        lost = [one for one in found if isinstance(one, DeadLetter)]
        count(StepOutput(dead=lost, counts={"samples.outcome": sum(map(len, told))}))
        output.dead += lost
        return told

    def send_dead_letters(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Sends dead letters and waits for their delivery. For another thread than the loop's."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._send_dead_letters(dead_letters), self._loop).result(
            self._settings.outage_seconds
        )

    async def _send_dead_letters(self, dead_letters: Sequence[DeadLetter]) -> None:
        await asyncio.gather(
            *[await self._send(DEAD_LETTERS, dead_letter_bytes(one), 0, one.reason.encode()) for one in dead_letters]
        )
        for dead_letter in dead_letters:
            DEAD.labels(dead_letter.reason).inc()

    async def _send(
        self,
        topic: str,
        value: bytes | None,
        partition: int,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> asyncio.Future[Any]:
        assert self._producer is not None
        name = self._settings.topic(topic)
        sent: asyncio.Future[Any] = await self._producer.send(name, value, key, partition, headers=list(headers))
        return sent

    # ------------------------------------------------------------------ one after another

    def publish(self, turn: Turn, due: Publish) -> None:
        """Reads the changes now; writes them when earlier jobs are done."""
        partition, changes = turn.partition, turn.partition.changes()
        again = self._rotations.setdefault(partition.number, Rotation()).next(partition.coclicks, time.monotonic())

        async def job() -> None:
            await self._fill(partition, due.new)
            await self._forget_guests(changes.forgotten, partition.partitions or 1)
            await self._publish(partition.number, changes, again)
            turn.done(due)

        self._jobs.put_nowait(job)

    async def _fill(self, partition: Partition, new: bool) -> None:
        """Writes all of the partition's users to a Redis that does not hold them, in particular one that lost them."""
        number = partition.number
        if await self._online.filled(number):
            return
        await self._online.begin_filling(number)
        if not new:
            log.info("filling Redis", partition=number)
            profiles = await asyncio.to_thread(profiles_of, self._settings, self._schema, number)
            await self._online.write([], profiles)
            for some in partition.whole():
                await self._online.write(some.users, [], some.recents)
        await self._online.end_filling(number)

    async def _forget_guests(self, forgotten: Mapping[str, Sequence[Id]], partitions: int) -> None:
        """Deletes what deleted users were as guests, by messages as from outside. Redis still has their ids, but for
        those of profiles that were not published: the users are deleted there afterwards, so after a crash this is done
        again."""
        guests = chain(await self._online.guests(forgotten) if forgotten else (), *forgotten.values())
        keys = {key_of(one) for one in guests}
        await asyncio.gather(*[await self._send(USERS, None, kafka_partition(key, partitions), key) for key in keys])

    async def _publish(self, number: int, changes: Changes, again: Lists) -> None:
        await self._online.write(changes.users, changes.profiles, changes.recents, changes.forgotten)
        sent = []
        for lists in (again, changes.coclicks):
            for raw in coclick_message.pack(number, lists):
                COCLICK_BYTES.inc(len(raw))
                sent.append(await self._send(FEATURES_COCLICKS, raw, 0, str(number).encode()))
        for message in itemtiles.pack(number, self._seq + 1, changes.event_ms, changes.item_keys, changes.item_tiles):
            self._seq = message.seq
            sent.append(await self._send(FEATURES_ITEMS, to_msgpack(message), 0, str(number).encode()))
        await asyncio.gather(*sent)

    async def checkpoint(self, turn: Turn, due: Checkpoint) -> None:
        """Reads the state now; writes it when earlier jobs are done. Samples that it covers are sent before."""
        started = time.monotonic()
        await self.send_samples()
        number, partition, line = turn.number, turn.partition, self._lines[turn.number]
        offsets, logs, journal = dict(partition.offsets), dict(line.logs), partition.journal
        assert journal is not None
        entries, arrived, read = journal.cut()
        base = turn.snapshot() if line.wants_base(arrived + read, due.last) else None
        sent, removed = self._sent.pop(number, []), self._removed.pop(number, [])

        async def job() -> None:
            await asyncio.gather(*sent)
            before = line.written_bytes
            await asyncio.to_thread(line.write, entries, base, offsets, due.advance_ms, logs)
            if removed:
                await asyncio.to_thread(self._outcomes.remove, number, removed)
            await self._commit({TP(topic, number): offset for topic, offset in offsets.items()})
            turn.done(due)
            CHECKPOINTS.inc()
            CHECKPOINT_BYTES.inc(line.written_bytes - before)
            ARRIVED_BYTES.inc(arrived)
            CHECKPOINT_SECONDS.observe(time.monotonic() - started)

        self._jobs.put_nowait(job)

    async def _commit(self, offsets: dict[TP, int]) -> None:
        """A commit that fails is not repeated: the next one follows, and the checkpoint decides where to resume."""
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._commit_offsets(offsets)
        except (KafkaError, TimeoutError) as error:
            log.warning("offsets not committed; the checkpoint holds them", error=type(error).__name__)


class Rotation:
    """Which of one partition's co-clicks are published next. Items go by hash, so all get their turn whatever else
    changes."""

    def __init__(self) -> None:
        self._from, self._at_s = 0.0, float("nan")

    def next(self, counted: CoClicks, now_s: float) -> Lists:
        """The items whose turn it is. ``now_s``: steady time, seconds."""
        since_s = now_s - self._at_s if self._at_s == self._at_s else 0.0
        start = self._from if self._from < 1.0 else 0.0
        self._from, self._at_s = min(1.0, start + min(since_s / REPUBLISH_SECONDS, REPUBLISH_AT_ONCE)), now_s
        return counted.part(start, self._from)


def profiles_of(settings: Settings, schema: Schema, number: int) -> list[User]:
    """Every user's newest profile in a partition, from the compacted topic. Blocks. Raises BrokerError."""
    intake = Intake(schema)
    found: dict[str, User] = {}

    def take(record: Any) -> None:
        if record.partition == number:
            with contextlib.suppress(BadEventError):  # the partition makes it a dead letter as usual
                if record.value is None:
                    found.pop(intake.removed(record.key), None)
                    return
                user = intake.user(record.value)
                found[str(user.user_id)] = user

    read_all(settings, USERS, take)
    return list(found.values())
