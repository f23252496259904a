# shell
"""The role ``archive``: reads events, page logs, users and items, and writes them as Parquet.

::

    reader (no group) ──► Merge ──► Archive ── every archive_seconds, or MOST_ROWS rows ──► Folder
                                       ▲                                                      │ positions, what waits
                                       └──────────────────── at the start ────────────────────┘

Positions are in the archive's manifest and nowhere else. A partition that the broker reports as silent moves on with
the event clock, so that rows do not wait for the next event.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.basics.errors import one_line
from millrace.contracts import schemabook
from millrace.contracts.clock import MAX_AHEAD_MS, sent_by
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, ITEMS, PAGE_LOGS, USERS
from millrace.labels import Waits
from millrace.processes.kafka import broker_error, open_broker, read_topics, topic_ids
from millrace.processes.metrics import LOOP_TIMESTAMP, READY, serve_metrics
from millrace.processes.wall import event_now_ms, wall_ms
from stream.archive import archive_metrics as metrics
from stream.archive.archive_columns import ArchiveColumns
from stream.archive.archive_folder import ArchiveFolder
from stream.archive.archive_rows import Archive, TopicRecord
from stream.archive.arm_figures import ArmFigure, ArmFigures
from stream.archive.merge import Line, Merge
from stream.archive.schemafile import schema_text

log = structlog.get_logger("archive")

TOPICS_READ = (USERS, ITEMS, PAGE_LOGS, EVENTS)
KEPT_POSITIONS = (EVENTS, PAGE_LOGS)
for _topic in KEPT_POSITIONS:
    metrics.LOST.labels(_topic)  # from 0 on, so that the first is an increase too
MOST_ROWS = 200_000
"""Rows in memory before files are written, whatever the time."""
MOST_WAITING = 500
"""Records of one partition that wait for other topics; beyond it, no more is fetched. A page has up to 100 KB."""
POLL_MS = 500
"""At most, between two looks at the clock; a poll returns as soon as something comes."""
WHOLE_FETCHES = {"max_poll_records": 1_000_000, "max_partition_fetch_bytes": 256 * 1024}
"""A poll takes all that was fetched, in small fetches. Of a partition that is paused in the middle of a fetch, the
client (kafka-python 3.0.12) never delivers the rest, nor fetches more."""


def run(settings: Settings, stop: threading.Event) -> None:
    """Runs until ``stop`` is set; then writes the rows that are due, and ends.

    Raises:
        StoreError: another archive writes to the folder, or it cannot be read or written.
        BrokerError: the broker cannot be reached.
    """
    serve_metrics("archive", settings.metrics_port, settings.host)
    schema = settings.load_schema()
    folder = ArchiveFolder(settings.folder("archive"))
    try:
        makers = settings.makers()
        arms_are = [settings.control_share, settings.arms, settings.arms_value, *([makers] if makers else [])]
        declared = msgspec.json.encode(arms_are).decode()
        worth = ArchiveColumns(schema).number(settings.arms_value) if settings.arms_value else None
        arms = ArmFigures(round(settings.horizon_minutes * MINUTE_MS), declared, worth)
        limit = None if settings.gate == "off" else settings.teach_limits.get("user")
        history = SchemaBook(settings.place(schemabook.PLACE), writes=False).history()
        archive = Archive(
            *(schema, Waits.of(settings), MAX_AHEAD_MS, settings.partitions, settings.archive_features),
            *(arms, limit, history),
        )
        state = folder.load()
        folder.put_makers(makers, event_now_ms(settings.event_clock()))
        for arm, maker in makers.items():
            metrics.ARM_MADE_BY.labels(arm, maker).set(1)
        folder.put_schema(schema_text(schema, settings.attribution_minutes), ArchiveColumns(schema).schema.names)
        if state is not None:
            archive.resume(state)
        open_broker(settings)
        ids = topic_ids(settings)
        for topic, known in state["topics"].items() if state else ():
            if known and ids.get(topic) and known != ids[topic]:
                log.warning("another topic has this name now: it is read from its beginning", topic=topic)
                archive.reset_offsets(topic)
        topics = {t: ids.get(t, "") for t in KEPT_POSITIONS}
        if state is None:
            # Before the first file: so files without a manifest are never left by a killed process.
            folder.write({}, archive.cut().state | {"topics": topics})
        shell = Shell(settings, archive, folder, topics)
        try:
            shell.work(stop)
        finally:
            shell.close()
    finally:
        READY.set(0)
        folder.close()


def show_arms(figures: Sequence[ArmFigure]) -> None:
    for one in figures:
        metrics.ARM_USERS.labels(one.name).set(one.estimate.n)
        metrics.ARM_LEFT_OUT.labels(one.name).set(one.left_out)
        metrics.ARM_EARLY.labels(one.name).set(one.early_rows)
        metrics.ARM_EARLY_RATE.labels(one.name).set(one.early_clicks / one.early_rows if one.early_rows else math.nan)
        metrics.ARM_SINCE.labels(one.name, one.outcome).set(one.since_ms / 1000)
        for gauge, value, (low, high) in (
            (metrics.ARM_OUTCOMES, one.estimate.value, one.band),
            (metrics.ARM_MORE, one.more, one.more_band),
        ):
            for bound, number in (("estimate", value), ("low", low), ("high", high)):
                gauge.labels(one.name, one.outcome, bound).set(number)


class Shell:
    """The role's shell: the reader, the clock, files."""

    def __init__(self, settings: Settings, archive: Archive, folder: ArchiveFolder, topics: Mapping[str, str]) -> None:
        self._settings, self._archive, self._folder, self._topics = settings, archive, folder, dict(topics)
        self._clock = settings.event_clock()
        self._stamps = dict.fromkeys(range(settings.partitions), 0)  # Kafka's time of the last event
        self._written: dict[str, dict[int, int]] = {}  # positions of the last cut
        self._asked_s = 0.0
        starts = {topic: archive.positions.get(topic, {}) for topic in TOPICS_READ}
        self._reader: KafkaConsumer = read_topics(settings, starts, **WHOLE_FETCHES)
        try:
            self._lines: dict[TopicPartition, Line] = {
                tp: (settings.logical(tp.topic), tp.partition) for tp in self._reader.assignment()
            }
            self._merge = Merge(self._lines.values())
            self._look_at_ends()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._reader.close()

    def work(self, stop: threading.Event) -> None:
        log.info("archiving", folder=str(self._folder.path), cut=self._folder.last)
        every_s, cut_s = self._settings.archive_seconds, time.monotonic()
        try:
            while not stop.is_set():
                LOOP_TIMESTAMP.set(time.time())
                self.step()
                if time.monotonic() - cut_s >= every_s or self._archive.rows >= MOST_ROWS:
                    self.write()
                    cut_s = time.monotonic()
        except KafkaError as error:  # nothing is written then: the next start does the rest again
            raise broker_error(f"'{self._settings.kafka}' gives no more", error) from None
        self.write()

    def step(self) -> None:
        reader, at_end = self._reader, set[Line]()
        for tp, records in reader.poll(timeout_ms=POLL_MS).items():
            self._merge.put(self._lines[tp], records)
        for tp, line in self._lines.items():
            end = reader.highwater(tp)
            if end is not None and reader.position(tp) >= end:
                at_end.add(line)
        for record in self._merge.ready(at_end):
            self._take(record)
        paused = reader.paused()
        for tp, line in self._lines.items():
            waits = self._merge.waiting(line) >= MOST_WAITING
            if waits and tp not in paused:
                reader.pause(tp)
            elif tp in paused and not waits:
                reader.resume(tp)
        if len(at_end) == len(self._lines):
            READY.set(1)
        self._silence(at_end)
        self._show()

    def _take(self, record: Any) -> None:
        clock = sent_by(record.headers) or self._clock
        if record.topic == EVENTS:
            self._stamps[record.partition] = record.timestamp
        now_ms = clock.at(min(record.timestamp, wall_ms()))
        at = self._archive.positions.get(record.topic, {}).get(record.partition, 0)
        if record.offset < at:  # the reader begins at the position, so the broker has lost earlier messages
            log.warning("a topic begins again", topic=record.topic, line=record.partition, was_at=at)
            self._archive.reset_offsets(record.topic, record.partition, record.offset)
            self._check_topic(record.topic)
        taken = TopicRecord(record.topic, record.partition, record.offset, record.key, record.value, now_ms)
        try:
            self._archive.take(taken)
        except Exception as error:  # if it were raised, the same message would be read for ever
            metrics.LEFT_OUT.labels("unforeseen").inc()
            log.error("a message is left out", topic=record.topic, offset=record.offset, error=one_line(error))

    def _check_topic(self, topic: str) -> None:
        """The topic may have been replaced by another one of its name. Then the manifest must name it, or the next
        start would read it from the beginning again. The ends of the old topic's other partitions mean nothing for
        the new one."""
        found = topic_ids(self._settings).get(topic, "")
        if not found or found == self._topics.get(topic, ""):
            return
        self._topics[topic] = found
        reader, kept = self._reader, self._archive.positions[topic]
        for tp in self._of(topic):
            if reader.position(tp) == kept.get(tp.partition):  # nothing of the new one has come
                self._archive.reset_offsets(topic, tp.partition)
                reader.seek_to_beginning(tp)

    def _silence(self, at_end: set[Line]) -> None:
        """Moves partitions on whose topics have no more messages, by the broker's present answer."""
        now_s = time.monotonic()
        if now_s - self._asked_s < min(1.0, self._settings.idle_seconds):
            return
        self._asked_s = now_s
        asked_ms, archive = wall_ms(), self._archive
        for number, came_ms in self._stamps.items():
            lines = {(EVENTS, number), (PAGE_LOGS, number)}
            stamp_ms = came_ms or self._begun_ms(number, asked_ms)
            due_ms = archive.due_ms(number)
            gone_ms = self._clock.at(asked_ms) - self._clock.at(stamp_ms)
            newest_ms = archive.newest_ms(number)
            now_ms = newest_ms + gone_ms if newest_ms else self._clock.at(asked_ms)
            silent = asked_ms - stamp_ms >= 1000 * self._settings.idle_seconds and lines <= at_end
            if due_ms is None or now_ms < due_ms or not silent or any(map(self._merge.waiting, lines)):
                continue
            if all(self._is_read(*line) for line in lines):
                archive.advance(number, now_ms)

    def _begun_ms(self, number: int, now_ms: int) -> int:
        """For a partition without an event since the start, silence counts from then."""
        self._stamps[number] = now_ms
        return now_ms

    def _is_read(self, topic: str, number: int) -> bool:
        reader, tp = self._reader, TopicPartition(self._settings.topic(topic), number)
        try:
            return bool(reader.position(tp) >= reader.end_offsets([tp])[tp])
        except (KafkaError, OSError) as error:
            log.warning("the broker does not say where a topic ends", topic=topic, error=type(error).__name__)
            return False

    def write(self) -> None:
        """Writes a cut, if anything came since the last one, and removes old files."""
        archive, folder = self._archive, self._folder
        if archive.rows or archive.positions != self._written:
            cut = archive.cut()
            state = cut.state | {"topics": self._topics}
            tables = {"events": cut.events, "exposures": cut.exposures, "features": cut.features}
            metrics.FILES.inc(folder.write(tables, state))
            self._written = {topic: dict(at) for topic, at in archive.positions.items()}
            metrics.ROWS.labels("events").inc(cut.events.num_rows)
            metrics.ROWS.labels("exposures").inc(cut.exposures.num_rows)
            show_arms(archive.arm_figures)
            if cut.features.num_rows:
                metrics.ROWS.labels("features").inc(cut.features.num_rows)
        if self._settings.archive_days:
            metrics.EXPIRED.inc(folder.expire((wall_ms() - self._settings.archive_days * DAY_MS) / 1000))

    def _show(self) -> None:
        for metric, counts in ((metrics.LATE, self._archive.late), (metrics.LEFT_OUT, self._archive.counts)):
            for name, n in counts.items():
                metric.labels(name).inc(n)
            counts.clear()
        metrics.PENDING.set(self._archive.pending)
        reader = self._reader
        for topic in TOPICS_READ:
            behind = 0
            for tp in self._of(topic):
                behind += max(0, (reader.highwater(tp) or 0) - reader.position(tp))
                behind += self._merge.waiting(self._lines[tp])
            metrics.LAG.labels(topic).set(behind)

    def _of(self, topic: str) -> list[TopicPartition]:
        return [tp for tp, (of, _) in self._lines.items() if of == topic]

    def _look_at_ends(self) -> None:
        """Reports messages that were deleted before they were read. A topic that lost its end, as in a power cut, is
        read on from its present end, as the stream does: the rest is archived already. Where no id tells that it is
        the same topic, it is read from its beginning."""
        for topic in KEPT_POSITIONS:
            reader, kept = self._reader, self._archive.positions[topic]
            lines = self._of(topic)
            firsts, ends = reader.beginning_offsets(lines), reader.end_offsets(lines)
            for tp in [tp for tp in lines if tp.partition in kept]:
                at, first = kept[tp.partition], firsts[tp]
                if at > ends[tp]:
                    to = ends[tp] if self._topics.get(topic) else first
                    log.warning("a topic lost its end", topic=topic, line=tp.partition, was_at=at, goes_on_at=to)
                    self._archive.reset_offsets(topic, tp.partition, to)
                    reader.seek(tp, to)
                elif at < first:
                    metrics.LOST.labels(topic).inc(first - at)
                    log.warning("messages were deleted before they were archived", topic=topic, count=first - at)
