# shell
"""The topic ``samples`` as a learner reads it: without a consumer group, from the offsets in its newest snapshot.

Each message is decoded, carried over to the learner's schema, and seen as by this learner. An unusable one is counted,
logged at most once a minute, and handed to ``bad``.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import structlog
from kafka import KafkaConsumer

from learner.role.sampletopic import SampleTopic
from learner.samples.batch_reader import BatchReader, SampleMessage
from learner.samples.eventtime import EventTime
from learner.samples.formersamples import FormerSamples
from learner.samples.viewpoint import Viewpoint
from millrace.basics.errors import BrokerError, SchemaError, SnapshotError
from millrace.contracts import schemabook
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.processes.kafka import REMEDY, gone_before, held_offsets, lag_of, make_reader, topic_ids
from millrace.processes.repeated_warnings import Kinds
from millrace.versions.decisions import Learnt
from millrace.versions.versioning import Announcement

log = structlog.get_logger("learner")

_AGAIN_MS = 100


class TakenAgain:
    """The messages behind a reader's offsets, as decisions name them: not in the order in which they lie, and some
    twice. Call :meth:`end` then: reading goes on behind what was given."""

    def __init__(self, reader: SampleReader, settings: Settings) -> None:
        self._reader, self._patience_s = reader, settings.patience_seconds
        self._given = dict(reader.offsets)  # the next offset of each partition
        self._held = held_offsets(settings, SAMPLES)
        self._ahead: dict[int, deque[SampleMessage]] = defaultdict(deque)  # read, and not given yet

    def messages(self, partition: int, first: int, stop: int) -> Iterator[SampleMessage]:
        """All that can be used of these offsets.

        Raises:
            SnapshotError: the topic does not have them.
            BrokerError: the broker does not give them.
        """
        reader, ahead, held = self._reader, self._ahead[partition], self._held.get(partition, range(0))
        if first < held.start or stop > held.stop:
            raise SnapshotError(
                f"samples that were decided on are gone: partition {partition} has offsets {held.start} to "
                f"{held.stop - 1}, not {first} to {stop - 1}",
                "keep samples longer (docs/how-to/run-in-production.md)",
            )
        if first < self._given.get(partition, first):
            ahead.clear()
            reader.seek({**reader.offsets, partition: first})
        heard = time.monotonic()
        while reader.offsets.get(partition, 0) < stop:
            before = dict(reader.offsets)
            for message in reader.poll(_AGAIN_MS):
                self._ahead[message.partition].append(message)
            if reader.offsets != before:
                heard = time.monotonic()
            elif time.monotonic() - heard > self._patience_s:
                raise BrokerError(f"partition {partition} of the samples ends before offset {stop}", REMEDY)
        while ahead and ahead[0].offset < stop:
            message = ahead.popleft()
            if message.offset >= first:
                yield message
        self._given[partition] = stop

    def end(self) -> None:
        """Goes on reading behind what was given."""
        self._reader.seek(self._given)


class SampleReader:
    """Reads from :attr:`offsets` on, and tracks its progress. One thread.

    Args:
        settings: where broker and schemas are.
        time: event time to inform of silent partitions.

    Attributes:
        offsets: the next to read, by partition.
        began: the first offsets that the model, or one that it goes on from, was given, by partition.
        logs: ids of the topics that the offsets are of.
        offsets_hold: whether the broker has the log that the snapshot's offsets are of.
        bad: called with an unusable record, and why.
        gone: called with how many messages the broker removed before they were read.
    """

    def __init__(self, settings: Settings, schema: Schema, time: EventTime) -> None:
        self.offsets: dict[int, int] = {}
        self.began: dict[int, int] = {}
        self.logs: dict[str, str] = {}
        self.offsets_hold = True
        self.bad: Callable[[Any, SchemaError], None] = lambda record, why: None
        self.gone: Callable[[int], None] = lambda messages: None
        self._settings, self._time = settings, time
        book = SchemaBook(settings.place(schemabook.PLACE), writes=False)
        self._former = FormerSamples(schema, book, Viewpoint.of(settings))
        self._kinds = Kinds()  # of messages that could not be used
        self._heard: dict[int, float] = {}  # when samples of a partition of the stream came last (monotonic seconds)
        self._reader: KafkaConsumer

    def resume(self, note: Announcement) -> None:
        """Goes on from a snapshot. Call it before :meth:`open`."""
        self.offsets = {int(p): o for p, o in note.offsets.items()}
        self.began = {int(p): o for p, o in note.extra.get("began", {}).items()}
        self.logs = note.logs

    def open(self) -> None:
        """Begins to read. Offsets are of one log: of another, as after the broker was emptied, all is read."""
        before, now = self.logs.get(SAMPLES, ""), topic_ids(self._settings).get(SAMPLES, "")
        if before and now and before != now and self.offsets:
            log.warning("the samples on the broker are another log than the snapshot's; it is read from the beginning")
            self.offsets, self.offsets_hold = {}, False
        self.logs = {SAMPLES: now} if now else {}
        self._reader = make_reader(self._settings, SAMPLES, self.offsets)
        self._heard = dict.fromkeys(range(self._settings.partitions), time.monotonic())
        self._time.expect(self._heard)

    def close(self) -> None:
        self._reader.close()

    def decode(self, record: Any) -> SampleBatch:
        """The samples of a message, with the columns of the learner's schema. Raises SchemaError where it cannot be
        read."""
        return self._former.carried(SampleBatch.from_bytes(record.value), record.headers)

    def again(self, learnt: Sequence[Learnt]) -> Iterator[SampleBatch]:
        """The batches of micro-batches once more, from the topic."""
        topic = SampleTopic(self._settings, self.logs.get(SAMPLES, ""), patience_seconds=0.0)
        with contextlib.closing(BatchReader(learnt, topic, self.decode)) as reader:
            yield from reader.batches(learnt)

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Reads on from other offsets; in a partition that is not named, from the beginning."""
        self.offsets = dict(offsets)
        for tp in self._reader.assignment():
            if tp.partition in self.offsets:
                self._reader.seek(tp, self.offsets[tp.partition])
            else:
                self._reader.seek_to_beginning(tp)

    def poll(self, patience_ms: float) -> Iterator[SampleMessage]:
        """Messages within ``patience_ms``. The offset of a message counts as read when the next is asked for."""
        polled: dict[Any, list[Any]] = self._reader.poll(timeout_ms=patience_ms)
        for at, records in polled.items():
            partition = at.partition
            expected = self.offsets.get(partition)
            if expected is None:
                self.began[partition] = records[0].offset
            if gone := gone_before(SAMPLES, partition, expected, records[0].offset):
                self.gone(gone)
            if records[0].offset < (expected or 0):
                log.warning(
                    "samples begin anew on the broker; they are read from their beginning",
                    partition=partition,
                    offset=records[0].offset,
                    expected=expected,
                )
            for record in records:
                try:
                    batch = self.decode(record)
                except SchemaError as error:
                    self._kinds.note("bad-samples", f"partition {partition}, offset {record.offset}: {error}")
                    self.bad(record, error)
                else:
                    self._heard |= dict.fromkeys(np.unique(batch.partition).tolist(), time.monotonic())
                    yield SampleMessage(batch, partition, record.offset, record.timestamp or 0)
                self.offsets[partition] = record.offset + 1
        for told in self._kinds.due(time.monotonic()):
            log.error("messages of samples passed over", count=told.times, example=told.example)

    def lags(self) -> Mapping[int, int]:
        """Unread messages by partition. A partition of the stream is silent after ``idle_seconds`` without samples;
        where some are unread, up to the newest that came."""
        lags = lag_of(self._reader)
        until = max(self._heard.values()) if any(lags.values()) else time.monotonic()
        quiet = until - self._settings.idle_seconds
        self._time.silent(partition for partition, heard in self._heard.items() if heard <= quiet)
        return lags
