# shell
"""The topic ``samples`` as a learner reads it: without a consumer group, from the offsets in its newest snapshot.

Each message is decoded, carried over to the learner's schema, and seen as by this learner. An unusable one is counted,
logged at most once a minute, and handed to ``bad``.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from millrace.contracts.topics import SAMPLES, miscounted
from millrace.processes.kafka import REMEDY, gone_before, held_offsets, lag_of, make_reader, topic_ids, topics_of
from millrace.processes.repeated_warnings import Kinds
from millrace.versions.decisions import Learnt
from millrace.versions.versioning import Announcement

log = structlog.get_logger("learner")

_AGAIN_MS = 100


class SampleReader:
    """Reads from :attr:`offset` on, and tracks its progress. One thread.

    Args:
        settings: where broker and schemas are.
        time: event time to inform of silent partitions.

    Attributes:
        offset: the next to read; None: from the beginning.
        began: the first that the model, or one that it goes on from, was given; None: it was given none.
        log: id of the topic that offsets are of; empty where the broker gives none.
        offset_holds: whether the broker has the log that the snapshot's offset is of.
        bad: called with an unusable record, and why.
        gone: called with how many messages the broker removed before they were read.
    """

    def __init__(self, settings: Settings, schema: Schema, time: EventTime) -> None:
        self.offset: int | None = None
        self.began: int | None = None
        self.log = ""
        self.offset_holds = True
        self.bad: Callable[[Any, SchemaError], None] = lambda record, why: None
        self.gone: Callable[[int], None] = lambda messages: None
        self._settings, self._time = settings, time
        book = SchemaBook(settings.place(schemabook.PLACE), writes=False)
        self._former = FormerSamples(schema, book, Viewpoint.of(settings))
        self._kinds = Kinds()  # of messages that could not be used
        self._heard: dict[int, float] = {}  # when samples of a partition of the stream came last (monotonic seconds)
        self._reader: KafkaConsumer
        self._ahead: deque[Any] = deque()  # records that came, and were not given yet
        self._held = range(0)  # offsets that the broker had at first

    def resume(self, note: Announcement) -> None:
        """Goes on from a snapshot. Call it before :meth:`open`."""
        self.offset, self.began, self.log = note.offset, note.extra.get("began"), note.samples_log

    def open(self) -> None:
        """Begins to read. An offset is of one log: of another, as after the broker was emptied, all is read. Raises
        BrokerError where the topic has more than one partition, or cannot be read."""
        before, self.log = self.log, topic_ids(self._settings).get(SAMPLES, "")
        if before and self.log and before != self.log and self.offset is not None:
            log.warning("the samples on the broker are another log than the snapshot's; it is read from the beginning")
            self.offset, self.offset_holds = None, False
        held, topic = held_offsets(self._settings, SAMPLES), self._settings.topic(SAMPLES)
        for fault in miscounted(topics_of(self._settings), {topic: len(held)}, self._settings.partitions):
            raise BrokerError(*fault)
        self._held = held[0]
        self._reader = make_reader(self._settings, SAMPLES, {} if self.offset is None else {0: self.offset})
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
        topic = SampleTopic(self._settings, self.log, patience_seconds=0.0)
        with contextlib.closing(BatchReader(learnt, topic, self.decode)) as reader:
            yield from reader.batches(learnt)

    def seek(self) -> None:
        """Reads on from :attr:`offset`."""
        self._ahead.clear()
        for tp in self._reader.assignment():
            if self.offset is None:
                self._reader.seek_to_beginning(tp)
            else:
                self._reader.seek(tp, self.offset)

    def poll(self, patience_ms: float, stop: int = 1 << 63) -> Iterator[SampleMessage]:
        """Messages within ``patience_ms``, before offset ``stop``. The offset of a message counts as read when the next
        is asked for."""
        if not self._ahead:
            for records in self._reader.poll(timeout_ms=patience_ms).values():
                self._begins(records[0].offset)
                self._ahead.extend(records)
        while self._ahead and self._ahead[0].offset < stop:
            record = self._ahead[0]
            try:
                batch = self.decode(record)
            except SchemaError as error:
                self._kinds.note("bad-samples", f"offset {record.offset}: {error}")
                self.bad(record, error)
            else:
                self._heard |= dict.fromkeys(np.unique(batch.partition).tolist(), time.monotonic())
                yield SampleMessage(batch, record.offset, record.timestamp or 0)
            self._ahead.popleft()
            self.offset = record.offset + 1
        for told in self._kinds.due(time.monotonic()):
            log.error("messages of samples passed over", count=told.times, example=told.example)

    def _begins(self, offset: int) -> None:
        """Says what is between the next offset and that of the next message."""
        expected = self.offset
        if expected is None:
            self.began = offset
        if gone := gone_before(SAMPLES, 0, expected, offset):
            self.gone(gone)
        if offset < (expected or 0):
            log.warning(
                "samples begin anew on the broker; they are read from their beginning", offset=offset, expected=expected
            )

    def upto(self, stop: int) -> Iterator[SampleMessage]:
        """The next messages, before offset ``stop``, which were read already by another process.

        Raises:
            SnapshotError: the topic does not have them.
            BrokerError: the broker does not give them.
        """
        held, heard = self._held, time.monotonic()
        while (at := held.start if self.offset is None else self.offset) < stop:
            if at < held.start or stop > held.stop or (self._ahead and self._ahead[0].offset >= stop):
                raise SnapshotError(
                    f"samples that were decided on are gone: the topic has offsets {held.start} to {held.stop - 1}, "
                    f"not {at} to {stop - 1}",
                    "keep samples longer (docs/how-to/run-in-production.md)",
                )
            yield from self.poll(_AGAIN_MS, stop)
            if self.offset is not None and self.offset > at:
                heard = time.monotonic()
            elif time.monotonic() - heard > self._settings.patience_seconds:
                raise BrokerError(f"the samples end before offset {stop}", REMEDY)

    def lag(self) -> int:
        """Unread messages. A partition of the stream is silent after ``idle_seconds`` without samples;
        where some are unread, up to the newest that came."""
        lag = sum(lag_of(self._reader).values())
        until = max(self._heard.values()) if lag else time.monotonic()
        quiet = until - self._settings.idle_seconds
        self._time.silent(partition for partition, heard in self._heard.items() if heard <= quiet)
        return lag
