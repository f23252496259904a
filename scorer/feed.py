# shell
"""The inputs of a scorer: three threads that read Kafka, and the door by which their changes reach the event loop.

::

    items           ─ thread: decode, hash ─┐
    features.items  ─ thread: decode ───────┼─► door ─► one callback on the loop, between two requests
    model.deltas    ─ thread: read, verify,─┘           (put rows | put tiles | patch | swap the reference)
                      build the new model

A thread hands over one small slice and waits until it is taken. So a request waits for three slices at most, and a
scorer that catches up with a long topic goes on answering.

No message is read again because of its content. A message that cannot be used is counted, logged and passed over, even
when its failure was not foreseen. Only failures of the broker are waited out and tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TypeVar

import structlog

from millrace.contracts.errors import MillraceError, one_line
from millrace.contracts.events import BadEventError, decode_item_tiles
from millrace.contracts.itemtiles import unpack
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS
from millrace.processes.kafka import make_reader
from scorer.door import Door, Stopped
from scorer.index import Prepared
from scorer.meters import ScorerMeters
from scorer.serving import Serving

log = structlog.get_logger("scorer")

ITEM_SLICE = 64
KEY_SLICE = 512
T = TypeVar("T")
Record = tuple[bytes | None, bytes | None]
"""Key and value of a message."""


class Feed(threading.Thread):
    """Reads one topic from its beginning and takes every message. Subclasses say how.

    A broken connection is logged once and counted. The feed then tries again from its last position.
    """

    topic = ""

    def __init__(self, settings: Settings, serving: Serving, meters: ScorerMeters, door: Door, stop: threading.Event):
        super().__init__(name=f"feed {self.topic}", daemon=True)
        self.settings, self.serving, self.meters, self.door, self.stop = settings, serving, meters, door, stop
        self.position: dict[int, int] = {}

    def run(self) -> None:
        said = False
        while not self.stop.is_set():
            try:
                self.start_up()
                reader = make_reader(self.settings, self.topic, self.position)
                try:
                    while not self.stop.is_set():
                        for tp, records in reader.poll(timeout_ms=100).items():
                            self.take_all([(r.key, r.value) for r in records])
                            self.position[tp.partition] = records[-1].offset + 1
                            said = False
                finally:
                    reader.close()
            except Stopped:
                return
            except Exception as error:  # a feed survives every failure, and counts each
                self.meters.error("feed")
                if not said:
                    said = True
                    log.warning("feed interrupted; trying again", topic=self.topic, error=one_line(error))
                self.stop.wait(1.0)

    def start_up(self) -> None:
        """Called before the first read, and again after an interruption."""

    def take_all(self, records: list[Record]) -> None:
        """Calls :meth:`take`. Messages that fail together are taken again one by one. The faulty one is counted and
        passed over. Those before it are taken twice, which changes nothing."""
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

    def take(self, records: list[Record]) -> None:
        """Takes messages in order. Taking the same messages again changes nothing."""
        raise NotImplementedError

    def bad(self, what: str, error: object) -> None:
        """Counts a message that cannot be used; it stays in its topic."""
        self.meters.error(what)
        log.warning("message skipped", topic=self.topic, error=" ".join(str(error).split()))


class ItemFeed(Feed):
    """The catalogue."""

    topic = ITEMS

    def take(self, records: list[Record]) -> None:
        intake, index = self.serving.intake, self.serving.index
        for part in slices(records, ITEM_SLICE):
            prepared: list[Prepared] = []
            for key, value in part:
                try:
                    if value is None:  # a tombstone of the compacted topic
                        gone = intake.removed(key)
                        self._put(prepared)
                        prepared = []
                        self.door.call(index.remove, gone)
                    else:
                        prepared.append(index.prepare(intake.item(value)))
                except BadEventError as error:  # a dead letter: the stream's list keeper writes it
                    self.bad("item", error)
            self._put(prepared)

    def _put(self, prepared: list[Prepared]) -> None:
        if prepared:
            self.door.call(self.serving.index.put, prepared)


class TileFeed(Feed):
    """Item-side window counts."""

    topic = FEATURES_ITEMS

    def take(self, records: list[Record]) -> None:
        for _, value in records:
            try:
                message = decode_item_tiles(value)
                keys, tiles = unpack(message)
            except BadEventError as error:
                self.bad("item-tiles", error)
                continue
            for start in range(0, len(keys), KEY_SLICE):
                end = start + KEY_SLICE
                try:
                    self.door.call(self.serving.index.put_tiles, message.partition, keys[start:end], tiles[start:end])
                except MillraceError as error:
                    self.bad("item-tiles", error)
            self.serving.heard_ms = max(self.serving.heard_ms, message.event_ms)


def slices(records: list[T], size: int) -> Iterator[list[T]]:
    """The records, ``size`` at a time."""
    for start in range(0, len(records), size):
        yield records[start : start + size]
