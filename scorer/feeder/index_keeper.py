# shell
"""Keeps the item index in the store, for scorers that start: reads the newest checkpoint, and writes the next ones.

::

    start      newest valid checkpoint ─► index; the feeds of items and counts read on from its positions
    later      every `index_seconds`: positions ─► rows and lists, a small slice at a time ─► parts ─► manifest

Of several scorers on one store only one needs to write. So each checks the age of the newest checkpoint first, and
writes none while it is young. Simultaneous checkpoints are both valid. A slice is copied under the index's lock; files
are written in this thread.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping

import numpy as np
import structlog

from millrace.basics.errors import UNFIT, StoreError, one_line
from millrace.basics.store import DamagedError, Store
from millrace.processes.priority import step_back
from scorer.catalog import index_checkpoint
from scorer.catalog.index_checkpoint import Manifest, TilePart, Writer, age_ms
from scorer.catalog.itemimage import ItemImage
from scorer.feeder.kafka_feed import TopicFeed
from scorer.feeder.state import FeederState, Stopped

log = structlog.get_logger("scorer")

ROW_SLICE = 1024
KEY_SLICE = 512
LOOKS = 4
"""Checks of the newest checkpoint's age within ``index_seconds``."""


class IndexKeeper(threading.Thread):
    """See the module's text. ``name`` is unique to this scorer and part of its files' names."""

    def __init__(self, state: FeederState, name: str) -> None:
        super().__init__(name="index keeper", daemon=True)
        self.state, self.primary, self.meters, self.stop = state, state.primary, state.meters, state.stop
        self.settings = state.primary.settings
        self.feeds: Mapping[str, TopicFeed] = {}  # of items and counts, by topic; set before anything starts
        self._own_name = name
        self._loading, self._loaded = threading.Lock(), False
        self._failing = False

    # -- at the start -----------------------------------------------------------------------------------------

    def load(self) -> None:
        """Fills the index from the newest valid checkpoint, and gives the feeds their positions. Later calls only wait
        for the first."""
        with self._loading:
            if not self._loaded:
                self._loaded = True
                try:
                    self._load()
                except Stopped:
                    pass
                except Exception as error:  # what cannot be read here is read from Kafka
                    self.meters.error("index")
                    log.warning("no item index from the store: reading topics again", error=one_line(error))

    def _load(self) -> None:
        store = Store(self.settings.place("index"))
        for name, manifest in index_checkpoint.manifests(store, lambda name, error: self._damaged(store, name, error)):
            if manifest.form != index_checkpoint.FORM or manifest.schema_id != self.primary.schema.id:
                log.warning(
                    "item index in the store is of another schema or version: not used",
                    file=name,
                    schema=manifest.schema_id,
                    form=manifest.form,
                )
                continue
            if self._fill(store, name, manifest):
                return
        log.info("no item index in the store: items and counts are read from their beginning")

    def _fill(self, store: Store, name: str, manifest: Manifest) -> bool:
        """Applies a checkpoint to the index; returns whether all of it was valid.
        :mod:`scorer.catalog.index_checkpoint` says why parts may be applied one by one."""
        age = age_ms(manifest, self.primary.wall())
        unfit = self._unfit_rows(manifest, age)
        tiles: dict[int, list[TilePart]] = {}
        file = None
        try:
            for file in manifest.parts:
                part = index_checkpoint.read_part(store, file)
                if isinstance(part, TilePart):
                    tiles.setdefault(part.partition, []).append(part)
                elif not unfit:
                    self._put_items(part)
            for partition, parts in tiles.items():
                counts = index_checkpoint.store_of(parts, self.primary.schema.windows)
                self.state.alone(self.primary.index.put_store, partition, counts)
        except DamagedError as error:
            self._damaged(store, file.name if file else name, error)
            return False
        except (StoreError, *UNFIT) as error:  # gone meanwhile, or whole and yet none of ours
            self.meters.error("index")
            log.warning("item index in the store is not used: trying the one before", file=name, error=one_line(error))
            return False
        for topic, mark in manifest.topics.items():
            if topic in self.feeds and not (unfit and self.feeds[topic].what == "items"):
                self.feeds[topic].go_on_from(mark)
        self.primary.newest_counted_ms = max(self.primary.newest_counted_ms, manifest.newest_counted_ms)
        if unfit:
            log.info("items are read from their beginning", why=unfit)
        age_s = round(age / 1000) if math.isfinite(age) else "unknown: it is from the future"
        log.info("item index loaded", file=name, items=manifest.items, keys=manifest.keys, age_s=age_s)
        return True

    def _unfit_rows(self, manifest: Manifest, age: float) -> str:
        """Why the item rows of a checkpoint are unusable, though its counts are valid; empty: they are usable."""
        if age > index_checkpoint.TOMBSTONE_MS:
            return "the index in the store is too old to know which are gone"
        missing = sorted(set(self.primary.schema.filters) - set(manifest.filters))
        if missing:
            return f"the index in the store does not have {', '.join(missing)}, which the schema's filters name"
        return ""

    def _put_items(self, image: ItemImage) -> None:
        for start in range(0, len(image.ids), ROW_SLICE):
            self.state.alone(self.primary.index.put, [image.slice(start, start + ROW_SLICE)])

    def _damaged(self, store: Store, name: str, error: DamagedError) -> None:
        self.meters.error("index")
        try:
            store.rename_damaged(name, one_line(error))
        except StoreError as other:  # we may only read here
            log.warning("damaged file stays where it is", file=name, error=one_line(other))

    # -- later ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        step_back()
        while not self.stop.wait(self.settings.index_seconds / LOOKS):
            try:
                self.keep()
                self._failing = False
            except Stopped:
                return
            except Exception as error:  # scorers that start take longer; nothing else suffers
                self.meters.error("index")
                if not self._failing:
                    self._failing = True
                    log.warning("item index cannot be written; trying again", error=one_line(error))

    def keep(self) -> Manifest | None:
        """Writes a checkpoint if the newest is old and the index is up to date; None: not now. Raises StoreError, or
        Stopped when the scorer ends."""
        if not all(feed.caught_up for feed in self.feeds.values()):
            return None
        store = Store(self.settings.place("index"))
        for _, newest in index_checkpoint.manifests(store, lambda name, error: self._damaged(store, name, error)):
            if newest.form == index_checkpoint.FORM and newest.schema_id == self.primary.schema.id:
                if not set(self.primary.schema.filters) <= set(newest.filters):
                    break
                if age_ms(newest, self.primary.wall()) < 1000 * self.settings.index_seconds:
                    return None
                break
        manifest = self._write(store)
        index_checkpoint.prune(store)
        return manifest

    def _write(self, store: Store) -> Manifest:
        writer = Writer(store, index_checkpoint.newest_number(store) + 1, self._own_name)
        try:
            return self._copy(writer)
        except BaseException:
            with contextlib.suppress(StoreError):
                writer.give_up()
            raise

    def _copy(self, writer: Writer) -> Manifest:
        index, call = self.primary.index, self.state.alone
        facts = {
            "schema_id": self.primary.schema.id,
            "filters": list(self.primary.schema.filters),
            "written_ms": self.primary.wall(),
            "newest_counted_ms": self.primary.newest_counted_ms,
            "topics": {topic: feed.bookmark for topic, feed in self.feeds.items()},  # before anything is copied
        }
        start = 0
        while (image := call(index.image, start, start + ROW_SLICE)).ids:
            writer.rows(image)
            start += ROW_SLICE
        for partition in call(lambda: sorted(index.counts.tiles)):
            tiles = index.counts.tiles[partition]
            keys = np.sort(call(tiles.keys))
            for start in range(0, len(keys), KEY_SLICE):
                some = keys[start : start + KEY_SLICE]
                blobs = call(tiles.export, some)
                writer.tiles(partition, tiles.newest_unit, some, blobs)
        return writer.finish(**facts)
