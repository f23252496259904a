# shell
"""The inputs of a scorer: threads of the feeder that read Kafka.

::

    items           ─ thread: decode, hash ──► item index ─► the item tables of all workers
    features.items  ─ thread: decode ────────┘
    model.deltas    ─ thread: read, verify ──► versions in shared memory (scorer/feeder/modelfeed.py)
    features.coclicks ─ thread: merge ───────► neighbours of items (scorer/feeder/cofeed.py)

A thread applies one small slice at a time under the index's lock, so others wait only briefly.

A message that fails is counted, logged and skipped, even for an unforeseen reason. Only failures of the broker are
retried.

A feed that starts notes where its topic ends. It has *caught up* when it has read up to there. The scorer is ready when
the first three feeds have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import structlog
from kafka.errors import KafkaError

from millrace.basics.errors import MillraceError, one_line
from millrace.contracts.events import BadEventError, Item, decode_item_tiles
from millrace.contracts.itemtiles import unpack
from millrace.contracts.profile_reader import no_item
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS
from millrace.processes.kafka import make_reader, topic_ids
from millrace.processes.priority import step_back
from millrace.processes.repeated_warnings import Kinds
from scorer.catalog.index_checkpoint import Bookmark
from scorer.catalog.itemimage import ItemImage
from scorer.feeder.state import FeederState, Stopped

log = structlog.get_logger("scorer")

OFFSETS_MS = 5000
FIRST_POLL_MS, POLL_MS = 100, 1000
"""Of a feed that has not caught up, and later. A poll returns as soon as something comes."""
ITEM_SLICE = 64
KEY_SLICE = 512
T = TypeVar("T")


class FeedRecord(NamedTuple):
    key: bytes | None
    value: bytes | None
    offset: int = -1


class FeedConsumer(Protocol):
    """The part of a Kafka consumer that a feed needs; see :func:`millrace.processes.kafka.make_reader`."""

    def poll(self, timeout_ms: int) -> Mapping[Any, list[Any]]: ...

    def assignment(self) -> Iterable[Any]: ...

    def position(self, partition: Any) -> int | None: ...

    def end_offsets(self, partitions: Any) -> dict[Any, int]: ...

    def highwater(self, partition: Any) -> int | None: ...

    def seek(self, partition: Any, offset: int) -> None: ...

    def close(self) -> None: ...


class TopicSource:
    """Where feeds read. Tests use one in memory."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def reader(self, topic: str, start: dict[int, int]) -> FeedConsumer:
        """A consumer of all partitions of ``topic`` from ``start`` (missing: the beginning)."""
        reader: FeedConsumer = make_reader(self._settings, topic, start)
        return reader

    def since(self, topic: str, since_ms: int) -> dict[int, int]:
        """The offset of each partition's first message since ``since_ms`` (wall time). Partitions without one are
        missing, and all are when the broker cannot answer."""
        reader = make_reader(self._settings, topic)
        try:
            found = reader.offsets_for_times(dict.fromkeys(reader.assignment(), since_ms), timeout_ms=OFFSETS_MS)
        except (KafkaError, ValueError) as error:  # a broker that is too old to know times
            log.info("no offsets for times: the topic is read from its beginning", topic=topic, error=one_line(error))
            return {}
        finally:
            reader.close()
        return {tp.partition: place.offset for tp, place in found.items() if place is not None}

    def log_id(self, topic: str) -> str:
        """The id of the log under this name: a recreated topic has another. "" where the broker gives none."""
        return topic_ids(self._settings).get(topic, "")


class TopicFeed(threading.Thread):
    """Reads one topic from its beginning or a :class:`~scorer.catalog.index_checkpoint.Bookmark`; subclasses apply the
    messages. A broken connection is logged once, counted, and opened again at the last position. ``before``: called in
    this thread before the first read, for what must be loaded first."""

    topic = ""
    what = ""
    """Content of the topic, for reports on why a scorer is not ready."""

    def __init__(
        self,
        state: FeederState,
        before: Callable[[], None] = lambda: None,
        broker: TopicSource | None = None,
    ) -> None:
        super().__init__(name=f"feed {self.topic}", daemon=True)
        self.state, self.primary, self.meters, self.stop = state, state.primary, state.meters, state.stop
        self.position: dict[int, int] = {}
        self.log_id = ""
        self.caught_up = False
        self._before, self._broker = before, broker or TopicSource(state.primary.settings)
        self._goal: dict[int, int] = {}  # where the topic ended when this feed began, by partition
        self._reader: FeedConsumer | None = None
        self._kinds = Kinds()  # of messages that could not be used
        self.sought: Bookmark | None = None  # where reading is to go on, asked for by take()

    @property
    def bookmark(self) -> Bookmark:
        """The position after the last applied messages."""
        return Bookmark(self.log_id, dict(self.position))

    def go_on_from(self, mark: Bookmark) -> None:
        """Continues at ``mark``. To be called before the first read."""
        self.log_id, self.position = mark.log, dict(mark.positions)

    # -- the thread -------------------------------------------------------------------------------------------

    def run(self) -> None:
        step_back()
        said = False
        self._before()
        while not self.stop.is_set():
            try:
                self.start_up()
                self._reader = self._open()
                try:
                    while not self.stop.is_set():
                        if self.turn():
                            said = False
                finally:
                    self._reader.close()
                    self._reader = None
            except Stopped:
                return
            except Exception as error:  # a feed survives every failure, and counts each
                if self.stop.is_set():  # its reader was closed
                    return
                self.meters.error("feed")
                if not said:
                    said = True
                    log.warning("feed interrupted; trying again", topic=self.topic, error=one_line(error))
                self.stop.wait(1.0)

    def interrupt(self) -> None:
        """Ends a poll, for a feed that is to stop."""
        reader = self._reader
        if reader is not None:
            reader.close()

    def turn(self) -> bool:
        """Reads and applies the available messages; returns whether there were any."""
        assert self._reader is not None
        polled = self._reader.poll(timeout_ms=POLL_MS if self.caught_up else FIRST_POLL_MS)
        self._log_due()
        for tp, records in polled.items():
            self.take_all([FeedRecord(r.key, r.value, r.offset) for r in records])
            self.position[tp.partition] = records[-1].offset + 1
        if self.sought is not None:
            self._go_to(self._reader, self.sought)
        reads_up = not self.caught_up
        if reads_up:
            self._look_how_far(self._reader, bool(polled))
        if polled or reads_up:
            self.state.changed.set()
        return bool(polled)

    def _open(self) -> FeedConsumer:
        """A reader at our position, after a check that the topic is still the same log."""
        found = self._broker.log_id(self.topic)
        if self.position and self.log_id and found and found != self.log_id:
            self._read_again("its log is another one")
        self.log_id = found or self.log_id
        reader = self._broker.reader(self.topic, self.position)
        ends = _by_partition(reader.end_offsets(list(reader.assignment())))
        if any(offset > ends.get(partition, 0) for partition, offset in self.position.items()):
            self._read_again("it ends before our position")
            reader.close()
            reader = self._broker.reader(self.topic, self.position)
        self._goal = {p: min(end, self._goal.get(p, end)) for p, end in ends.items()}
        return reader

    def _go_to(self, reader: FeedConsumer, mark: Bookmark) -> None:
        self.sought = None
        same = not mark.log or not self.log_id or mark.log == self.log_id
        self.position = dict(mark.positions) if same else {}
        if not same:
            self._read_again("the place to read on from is in another log")
        for tp in reader.assignment():
            reader.seek(tp, self.position.get(tp.partition, 0))

    def _read_again(self, why: str) -> None:
        self.position = {}
        log.warning("topic is read from its beginning; what is known is kept", topic=self.topic, why=why)

    def _look_how_far(self, reader: FeedConsumer, busy: bool) -> None:
        """Checks whether the feed has caught up. Without new messages it looks again where the topic ends by the
        broker's last answer: it may have lost its end since."""
        assigned = list(reader.assignment())
        if not busy:
            ends = {tp.partition: end for tp in assigned if (end := reader.highwater(tp)) is not None}
            self._goal = {p: min(end, ends.get(p, end)) for p, end in self._goal.items()}
        left = sum(max(0, self._goal.get(tp.partition, 0) - (reader.position(tp) or 0)) for tp in assigned)
        self.caught_up = not left
        self.primary.to_read[self.what] = left
        if self.caught_up:
            del self.primary.to_read[self.what]
            log.info("caught up", topic=self.topic)

    # -- for subclasses ---------------------------------------------------------------------------------------

    def start_up(self) -> None:
        """Called before the first read, and again after an interruption."""

    def seek(self, mark: Bookmark) -> None:
        """Continues at ``mark`` after the current messages; at the beginning if it is of another log."""
        if self._reader is None:
            self.go_on_from(mark)
        else:
            self.sought = mark

    def take_all(self, records: list[FeedRecord]) -> None:
        """Calls :meth:`take`. After a failure it applies the messages one by one, and counts and skips the faulty one.
        Those before it are applied twice, which changes nothing."""
        try:
            self.take(records)
        except Stopped:
            raise
        except Exception as error:  # unforeseen: if it were raised, the feed would read the same message for ever
            if len(records) > 1:
                for record in records:
                    self.take_all([record])
            else:
                self.bad("message", one_line(error))

    def take(self, records: list[FeedRecord]) -> None:
        """Applies messages in order. Must be idempotent."""
        raise NotImplementedError

    def bad(self, what: str, error: object) -> None:
        """Counts an unusable message, which stays in its topic. The log has one line a minute of each kind."""
        self.meters.error(what)
        self._kinds.note(what, str(error))
        self._log_due()

    def _log_due(self) -> None:
        for line in self._kinds.due(time.monotonic()):
            log.warning("messages skipped", topic=self.topic, kind=line.kind, count=line.times, example=line.example)


class ItemFeed(TopicFeed):
    topic = ITEMS
    what = "items"

    def take(self, records: list[FeedRecord]) -> None:
        intake, index = self.primary.intake, self.primary.index
        for part in slices(records, ITEM_SLICE):
            prepared: list[ItemImage] = []
            for key, value, _ in part:
                try:
                    found = intake.removed(key) if value is None else intake.item(value)
                    if isinstance(found, Item):
                        prepared.append(index.prepare(found))
                        continue
                    self._put(prepared)
                    prepared = []
                    if isinstance(found, str):  # a tombstone of the compacted topic
                        self.state.alone(index.remove, found)
                    elif not self.state.alone(index.change, found):
                        self.bad("item", no_item(found))
                except BadEventError as error:  # a dead letter: the stream's list keeper writes it
                    self.bad("item", error)
            self._put(prepared)

    def _put(self, prepared: list[ItemImage]) -> None:
        if prepared:
            self.state.alone(self.primary.index.put, prepared)


class TileFeed(TopicFeed):
    """Item-side window counts. A message replaces whole tile lists, so a repeated one changes nothing."""

    topic = FEATURES_ITEMS
    what = "item counts"

    def take(self, records: list[FeedRecord]) -> None:
        for _, value, _ in records:
            try:
                message = decode_item_tiles(value)
                keys, tiles = unpack(message)
            except BadEventError as error:
                self.bad("item-tiles", error)
                continue
            for start in range(0, len(keys), KEY_SLICE):
                end = start + KEY_SLICE
                try:
                    self.state.alone(self.primary.index.put_tiles, message.partition, keys[start:end], tiles[start:end])
                except MillraceError as error:
                    self.bad("item-tiles", error)
            self.primary.newest_counted_ms = max(self.primary.newest_counted_ms, message.event_ms)


def slices(records: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


def _by_partition(offsets: Mapping[Any, int]) -> dict[int, int]:
    return {tp.partition: offset for tp, offset in offsets.items()}
