"""What flows into a scorer: three threads that read Kafka, and the door by which their changes reach the event loop.

::

    items           ─ thread: decode, hash ─┐
    features.items  ─ thread: decode ───────┼─► door ─► one callback on the loop, between two requests
    model.deltas    ─ thread: read, verify,─┘           (put rows | put tiles | patch | swap the reference)
                      build the new model

A thread hands over one small slice and waits until it was taken, so that at most three slices can ever stand between
a request and its turn, and a scorer that catches up with a long topic goes on answering.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
import numpy as np
import structlog

from learner.model import ServingModel
from millrace.errors import MillraceError, SnapshotError
from millrace.events import decode_item, decode_item_tiles
from millrace.kafka import make_reader
from millrace.modelstore import Announcement, ModelStore, decode_announcement
from millrace.settings import Settings
from millrace.topics import FEATURES_ITEMS, ITEMS, MODEL_DELTAS
from scorer.figures import Figures
from scorer.index import Prepared
from scorer.serving import Serving
from scorer.versions import judge, order, path_from

log = structlog.get_logger("scorer")

ITEM_SLICE = 64
KEY_SLICE = 512
T = TypeVar("T")


class Stopped(Exception):
    """The scorer ends; nobody takes changes any more."""


class Door:
    """Runs functions on the event loop, one at a time for each thread that asks, and waits for them.

    Args:
        loop: the loop that requests are answered on.
        stop: set when the scorer ends; then waiting ends too.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        self._loop, self._stop = loop, stop

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """The result of ``function(*args)``, run between two requests; its exception is raised here.

        Raises:
            Stopped: the loop has ended.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError:
            raise Stopped from None
        while True:
            try:
                return future.result(timeout=0.5)
            except TimeoutError:
                if future.done():
                    raise
                if self._stop.is_set():
                    raise Stopped from None


class Feed(threading.Thread):
    """Reads one topic from its beginning and takes every message. Subclasses say how.

    A broken connection is said aloud once, counted, and tried again from where the feed was.
    """

    topic = ""

    def __init__(self, settings: Settings, serving: Serving, figures: Figures, door: Door, stop: threading.Event):
        super().__init__(name=f"feed {self.topic}", daemon=True)
        self.settings, self.serving, self.figures, self.door, self.stop = settings, serving, figures, door, stop
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
                            self.take([(r.key, r.value) for r in records])
                            self.position[tp.partition] = records[-1].offset + 1
                            said = False
                finally:
                    reader.close()
            except Stopped:
                return
            except Exception as error:
                self.figures.error("feed")
                if not said:
                    said = True
                    text = error if isinstance(error, MillraceError) else f"{type(error).__name__}: {error}"
                    log.warning("feed interrupted; trying again", topic=self.topic, error=str(text))
                self.stop.wait(1.0)

    def start_up(self) -> None:
        """Called before the first read, and again after an interruption."""

    def take(self, records: list[tuple[bytes | None, bytes | None]]) -> None:
        """Takes messages, (key, value) each, in order."""
        raise NotImplementedError

    def bad(self, what: str, error: object) -> None:
        """Counts a message that cannot be used; it stays in its topic."""
        self.figures.error(what)
        log.warning("message skipped", topic=self.topic, error=" ".join(str(error).split()))


class ItemFeed(Feed):
    """The catalogue."""

    topic = ITEMS

    def take(self, records: list[tuple[bytes | None, bytes | None]]) -> None:
        for part in slices(records, ITEM_SLICE):
            prepared: list[Prepared] = []
            for key, value in part:
                if value is None:  # a compacted topic's "no longer there"
                    if key is not None:
                        self._put(prepared)
                        prepared = []
                        self.door.call(self.serving.index.remove, key.decode(errors="replace"))
                    continue
                try:
                    prepared.append(self.serving.index.prepare(decode_item(value)))
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    self.bad("item", error)
            self._put(prepared)

    def _put(self, prepared: list[Prepared]) -> None:
        if prepared:
            self.door.call(self.serving.index.put, prepared)


class TileFeed(Feed):
    """Item-side window counts."""

    topic = FEATURES_ITEMS

    def take(self, records: list[tuple[bytes | None, bytes | None]]) -> None:
        for _, value in records:
            try:
                message = decode_item_tiles(value or b"")
                keys = np.frombuffer(message.keys, "<u8")
                ends = np.cumsum(np.frombuffer(message.sizes, "<u4"), dtype=np.int64)
                if len(keys) != len(ends) or (len(ends) and ends[-1] != len(message.tiles)):
                    raise ValueError(f"{len(keys)} keys, {len(ends)} sizes, {len(message.tiles)} bytes do not fit")
            except (msgspec.MsgspecError, ValueError) as error:
                self.bad("item-tiles", error)
                continue
            starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
            tiles = [message.tiles[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
            for start in range(0, len(keys), KEY_SLICE):
                end = start + KEY_SLICE
                try:
                    self.door.call(self.serving.index.put_tiles, message.partition, keys[start:end], tiles[start:end])
                except MillraceError as error:
                    self.bad("item-tiles", error)


class ModelFeed(Feed):
    """Model versions: deltas patched in order; after a gap, the newest snapshot and the deltas after it."""

    topic = MODEL_DELTAS

    def __init__(self, settings: Settings, serving: Serving, figures: Figures, door: Door, stop: threading.Event):
        super().__init__(settings, serving, figures, door, stop)
        self.store = ModelStore(settings.folder("models"))
        self.head: Announcement | None = None  # what is served, as this thread last made it
        self._in_gap = False
        self._foreign: set[str] = set()

    def start_up(self) -> None:
        if self.head is None:
            self.resynchronise(count=False)

    def take(self, records: list[tuple[bytes | None, bytes | None]]) -> None:
        for _, value in records:
            try:
                note = decode_announcement(value or b"")
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self.bad("announcement", error)
                continue
            if note.schema_id != self.serving.schema.id:
                if note.schema_id not in self._foreign:
                    self._foreign.add(note.schema_id)
                    self.bad("schema", f"version {note.version} is of schema {note.schema_id}, not of ours")
                continue
            self.follow(note)

    def follow(self, note: Announcement) -> None:
        """Does with one announcement what :func:`scorer.versions.judge` says."""
        verdict = judge(self.head, note)
        if verdict == "ignore":
            return
        if verdict == "gap":
            self._gap(note, f"version {note.version} does not follow {self.head.version if self.head else 'nothing'}")
            return
        try:
            image = self.store.read(note)
            if verdict == "load":
                model = build(self.serving, note, image)
                self.door.call(self.serving.install, note, model, 0, note.origins)
            else:
                self.door.call(self.serving.patch, note, image)
        except Stopped:
            raise
        except SnapshotError as error:  # pruned or damaged
            self._gap(note, str(error))
        except Exception as error:
            self.figures.error("patch")
            log.warning("a delta could not be applied", version=note.version, error=f"{type(error).__name__}: {error}")
            self.resynchronise(count=True, anew=True)
        else:
            self.head, self._in_gap = note, False

    def _gap(self, note: Announcement, reason: str) -> None:
        if not self._in_gap and self.head is not None:
            self._in_gap = True
            self.figures.gap()
            log.warning("resynchronising the model", reason=reason)
        self.resynchronise(count=True)

    def resynchronise(self, count: bool, anew: bool = False) -> None:
        """Loads the newest snapshot and the deltas after it, unless they lead no further than what is served.

        Args:
            count: whether the clicks learnt on the way count as served now (not at the start of a scorer).
            anew: load it even if it leads no further.
        """
        try:
            snapshots = [n for n in self.store.snapshots() if n.schema_id == self.serving.schema.id]
            deltas = list(self.store.deltas())
        except SnapshotError as error:
            self.bad("snapshot", error)
            return
        for snapshot in sorted(snapshots, key=order, reverse=True):
            path = path_from(snapshot, deltas)
            newest = path[-1] if path else snapshot
            if self.head is not None and not anew and order(newest) <= order(self.head):
                return
            try:
                model = build(self.serving, snapshot, self.store.read(snapshot))
            except MillraceError as error:  # damaged, or of a kind that this scorer is too old for
                self.bad("snapshot", error)
                continue
            self._replay(snapshot, model, path, count)
            return

    def _replay(self, snapshot: Announcement, model: ServingModel, path: list[Announcement], count: bool) -> None:
        """Patches a model that nobody serves yet with the deltas after its snapshot, then serves it."""
        reached, origins, applied = snapshot, list(snapshot.origins), 0
        for note in path:
            try:
                model.patch(self.store.read(note))
            except SnapshotError as error:
                self.bad("delta", error)
                break
            reached, applied = note, applied + 1
            if self.head is None or order(note) > order(self.head):
                origins += note.origins
        self.door.call(self.serving.install, reached, model, applied, origins if count else [])
        self.head, self._in_gap = reached, False
        log.info("model loaded", version=reached.version, snapshot=snapshot.version, deltas=applied)


def build(serving: Serving, note: Announcement, image: Any) -> ServingModel:
    """A model from a snapshot, warmed by one batch so that no request pays for its first call."""
    model = ServingModel.of(serving.schema, note.spec, image)
    layout, n = serving.schema.layout, serving.settings.candidates
    model.score(np.ones((n, layout.F), np.int64), np.zeros((n, layout.N), np.float32))
    return model


def slices(records: list[T], size: int) -> Iterator[list[T]]:
    """The records, ``size`` at a time."""
    for start in range(0, len(records), size):
        yield records[start : start + size]


def start_feeds(
    settings: Settings,
    serving: Serving,
    figures: Figures,
    door: Door,
    stop: threading.Event,
    kinds: Iterable[type[Feed]] = (ItemFeed, TileFeed, ModelFeed),
) -> list[Feed]:
    """Starts the threads."""
    feeds = [kind(settings, serving, figures, door, stop) for kind in kinds]
    for feed in feeds:
        feed.start()
    return feeds
