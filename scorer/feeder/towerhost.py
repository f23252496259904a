# shell
"""The feeder's thread that makes vectors of the catalogue: all of them for each retrieval version, and between versions
those of new or changed items.

::

    feed of models   install, patch ──► [news] ─┐ all of it, in order                   ┌► "retrieval"  a version, whole
    item tables      rows that changed ► [rows] ─┴► thread: own copy of the items ──────┤
                     (already queued for the workers)          item tower, in slices    └► "vectors"    what came since

    versions    v10 ... v20 ... v30 ... v40       built one at a time, always the newest: v20 and v30 are skipped, and
    built       [──── v10 ────][──── v40 ────]    their changes are in v40

Rows arrive here after they were queued for each worker, so vectors never come before their rows. A dead item has no
vector; a page checks its item table too, so it does not wait for this thread.

Shared memory has each version once. It is freed when the next one is published and the last worker has swapped.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Gauge

from learner.retrieval.tower import Tower, UserTower
from millrace.basics.errors import one_line
from millrace.processes.priority import step_back
from millrace.processes.shared import Pool
from millrace.versions.image import Image
from millrace.versions.versioning import Announcement
from millrace.windows.features import FeatureBuilder
from scorer.catalog.itemtable import TableForm, longer
from scorer.feeder.state import FeederState
from scorer.ipc.link import Packet, Receiver
from scorer.ipc.meters import RETRIEVAL_BUILD_SECONDS, RETRIEVAL_INDEX_RECALL, RETRIEVAL_ITEMS, RETRIEVAL_VERSION
from scorer.recall import nearestkernels
from scorer.recall.approximate import Approximate, Builder, check_usearch
from scorer.recall.nearest import Retrieval, best, new_tiles
from scorer.worker.page_app import retrieval_facts

log = structlog.get_logger("scorer")

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]
Rows = NDArray[np.int32]

SLICE = 4096
"""Items between two checks whether the scorer ends."""
SENT_AT_ONCE = 1024
"""Items of one "vectors" message: a worker needs some .3 ms for it."""
REBUILT = 8 * SENT_AT_ONCE
"""Changes up to this number are always sent one by one. With more, and more than half of all items, all vectors are
built again."""
WAIT_SECONDS, FAILED_SECONDS = 0.5, 1.0
QUERIES, CLICKS = 32, 3
"""Measurement of an approximate index: random users, each with so many random clicks."""


class ItemRows:
    """The items' rows as the item tables have them, for making vectors. Ages are computed on request."""

    def __init__(self, builder: FeatureBuilder) -> None:
        form = TableForm(builder)
        self._builder = builder
        self._age = form.plain_names.index("age_days") if "age_days" in form.plain_names else -1
        self._arrays: dict[str, NDArray[Any]] = {
            "cat": np.zeros((0, len(form.cat_columns)), np.int64),
            "plain": np.zeros((0, len(form.plain_names)), np.float32),
            "born_ms": np.zeros(0, np.int64),
            "alive": np.zeros(0, np.bool_),
        }
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def take(self, arrays: Arrays) -> Rows:
        """Applies a slice for item tables; returns the changed rows."""
        rows: Rows = arrays["rows"]
        most = int(rows.max()) + 1
        if most > len(self._arrays["alive"]):
            self._arrays = {name: longer(old, 2 * most) for name, old in self._arrays.items()}
        self._n = max(self._n, most)
        changed = np.zeros(len(rows), np.bool_)
        for name, held in self._arrays.items():
            given = arrays[name]
            differs = held[rows] != given
            changed |= differs if differs.ndim == 1 else differs.any(axis=1)
            held[rows] = given
        return rows[changed]

    @property
    def alive(self) -> NDArray[np.bool_]:
        alive: NDArray[np.bool_] = self._arrays["alive"][: self._n]
        return alive

    def inputs(self, rows: Rows, now_ms: int) -> tuple[NDArray[np.int64], Floats]:
        """The item tower's inputs for these rows at this event time."""
        cat, plain = self._arrays["cat"][rows], self._arrays["plain"][rows]
        if self._age >= 0:
            plain[:, self._age] = self._builder.age_days(np.array([now_ms], np.int64), self._arrays["born_ms"][rows])
        return cat, plain


class Tail:
    """Vectors sent since a version: one message of it brings a new worker up to date."""

    def __init__(self, width: int) -> None:
        self._at: dict[int, int] = {}
        self._vectors = np.zeros((64, width), np.float32)
        self._gone: set[int] = set()

    def take(self, rows: Rows, vectors: Floats, gone: Rows) -> None:
        for row, vector in zip(rows.tolist(), vectors, strict=True):
            at = self._at.setdefault(row, len(self._at))
            if at == len(self._vectors):
                self._vectors = longer(self._vectors, 2 * at)
            self._vectors[at] = vector
        self._gone.difference_update(rows.tolist())
        self._gone.update(gone.tolist())

    def arrays(self) -> Arrays:
        rows = np.fromiter(self._at, np.int32, len(self._at))
        return _vector_arrays(rows, self._vectors[: len(rows)], np.fromiter(self._gone, np.int32, len(self._gone)))


class _News(NamedTuple):
    """A head, or its changes (``image``). Neither ``tower`` nor image: the head is gone."""

    note: Announcement
    tower: Tower | None = None
    image: Image | None = None


class _Version(NamedTuple):
    note: Announcement
    packet: Packet
    recall: float | None  # of an approximate index


class TowerHost:
    """See the module's text. Methods for other threads return at once. Start ``thread``, or call :meth:`step`. Raises
    SettingError: the index's package is not installed."""

    def __init__(self, state: FeederState) -> None:
        self.thread = threading.Thread(target=self._run, name="towers", daemon=True)
        primary = self.primary = state.primary
        self._meters, self.stop, self._learner = state.meters, state.stop, primary.settings.learner
        self._approximate = primary.settings.recall_index == "usearch"
        if self._approximate:
            check_usearch()
        self._wanted = max(1, primary.settings.candidates // 2)
        self._users = sum(field.slots for field in primary.schema.layout.cat_fields if field.of == "user")
        self._pool = Pool()
        self._changed = threading.Condition()  # guards what others put in
        self._news: deque[_News] = deque()
        self._slices: deque[Arrays] = deque()
        self._sending = threading.Lock()  # guards what goes out, and to whom
        self._workers: set[Receiver] = set()
        self._version: _Version | None = None
        self._tail = Tail(1)
        # Used only by the thread:
        self._items = ItemRows(primary.builder)
        self._ahead: Tower | None = None  # with all news
        self._newest: Announcement | None = None  # the version of ``_ahead``
        self._built: Announcement | None = None  # the version that is out or is being built
        self._out: Tower | None = None  # of the version that is out; None: it has moved on
        self._dirty: set[int] = set()  # rows whose vectors are to be sent
        self._since: set[int] | None = None  # while a version is built: rows that are not in it as they are now

    # -- from other threads -----------------------------------------------------------------------------------

    def install(self, note: Announcement, tower: Tower | None) -> None:
        """Another head, as of the version ``note``: from now on its tower belongs to this thread. None: the model has
        no head, and the published version is withdrawn."""
        self._put(_News(note, tower))

    def patch(self, note: Announcement, image: Image) -> None:
        self._put(_News(note, None, image))

    def take(self, arrays: Arrays) -> None:
        """A slice of the index that is queued for each worker; its arrays must not change any more."""
        if "rows" in arrays:
            with self._changed:
                self._slices.append(arrays)
                self._changed.notify()

    def add(self, worker: Receiver) -> None:
        """A new worker, after its item table was sent."""
        with self._sending:
            self._workers.add(worker)
            if self._version is not None:
                worker.put(self._version.packet)
                arrays = self._tail.arrays()
                if len(arrays["rows"]) or len(arrays["gone"]):
                    worker.put(self._vectors_packet(self._version.note, arrays))

    def remove(self, worker: Receiver) -> None:
        with self._sending:
            self._workers.discard(worker)

    def facts(self) -> dict[str, Any] | None:
        """The published version, for GET /model; None: there is none."""
        version = self._version
        if version is None:
            return None
        note = version.note
        facts = retrieval_facts(note.epoch, note.version, note.retrieval_clicks)
        return facts if version.recall is None else facts | {"index_recall": round(version.recall, 4)}

    @property
    def published_ms(self) -> int | None:
        version = self._version
        return None if version is None else version.note.published_ms

    # -- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        step_back()
        while not self.stop.is_set():
            try:
                if not self.step():
                    with self._changed:
                        if not self._news and not self._slices:
                            self._changed.wait(WAIT_SECONDS)
            except Exception as error:  # workers go on with what they have
                self._meters.error("retrieval")
                log.error("vectors of items could not be made", error=one_line(error), exc_info=True)
                self.stop.wait(FAILED_SECONDS)

    def step(self) -> bool:
        """Does the next piece of work; returns whether there was any."""
        self._absorb()
        if self._take_news():
            return True
        if self._due():
            self._build()
            return True
        return self._send_changed()

    def _due(self) -> bool:
        """Whether to build a version: there is a newer head, or most items have changed since the published one, as at
        the start; then the same version is published again. (An approximate index takes longer to build than changes
        take to send.)"""
        living = int(np.count_nonzero(self._items.alive))
        if self._newest is not self._built:
            return living > 0
        possible = self._out is not None and self._ahead is not None and not self._approximate
        return possible and living > 0 and len(self._dirty) > max(REBUILT, living // 2)

    def _put(self, news: _News) -> None:
        with self._changed:
            self._news.append(news)
            self._changed.notify()

    def _absorb(self) -> None:
        """Applies queued changes of the item tables."""
        while self._slices:
            changed = self._items.take(self._slices.popleft()).tolist()
            if self._version is not None:  # else all of them are in the first version
                self._dirty.update(changed)
            if self._since is not None:
                self._since.update(changed)

    def _take_news(self) -> bool:
        """Applies all news to the next tower; returns whether there was any."""
        found = False
        while self._news:
            found = True
            note, tower, image = self._news.popleft()
            if image is None:
                self._ahead, self._newest = tower, note
                if tower is None:
                    self._withdraw(note)
            elif self._ahead is not None:
                if self._ahead is self._out:
                    self._out = None
                ahead, self._ahead = self._ahead, None  # one that fails is of no use any more
                ahead.apply(image)
                self._ahead, self._newest = ahead, note
        return found

    def _withdraw(self, note: Announcement) -> None:
        self._built, self._out = note, None
        with self._sending:
            self._version = None
            self._put_all(Packet("retrieval", self._facts(note)))
        for gauge in (RETRIEVAL_VERSION, RETRIEVAL_ITEMS, RETRIEVAL_INDEX_RECALL):
            self._show(gauge, math.nan)

    def _build(self) -> None:
        """Builds the vectors of all living items with the next tower, and publishes them."""
        started, note, tower = time.perf_counter(), self._newest, self._ahead
        assert note is not None
        self._built = note
        if tower is None:
            return
        self._since = set()
        if not self._approximate:
            self._dirty.clear()  # what they are now goes into the version
        rows, now_ms = np.flatnonzero(self._items.alive).astype(np.int32), self.primary.now_ms
        tiles, longest = new_tiles(0, 1), 0.0
        places = np.full(len(self._items), -1, np.int32)
        for first in range(0, len(rows), SLICE):
            if self.stop.is_set():
                return
            some = rows[first : first + SLICE]
            vectors, finite = self._vectors(tower, some, now_ms)
            if not first:
                tiles = new_tiles(len(rows), vectors.shape[1], self._pool.allocate)
            nearestkernels.lay(vectors, np.arange(first, first + len(some)), tiles)
            places[some[finite]] = first + np.flatnonzero(finite)
            if self._approximate:
                longest = max(longest, float(np.linalg.norm(vectors[finite], axis=1).max(initial=0.0)))
        index = Builder(tiles.shape[1], longest) if self._approximate else None
        arrays: dict[str, NDArray[Any]] = {"rows": rows, "tiles": tiles, "at": places, **tower.user_arrays()}
        recall = None
        if index is not None:
            self._fill(index, tiles, len(rows))
            arrays["index"] = index.saved()
            recall = self._measured(note, arrays)
        self._publish(
            note, Packet("retrieval", self._facts(note), arrays, self._pool), len(rows), tiles.shape[1], recall
        )
        self._out = tower.copy() if self._approximate else tower
        self._show(RETRIEVAL_BUILD_SECONDS, time.perf_counter() - started)

    def _fill(self, index: Builder, tiles: NDArray[np.uint16], n: int) -> None:
        """Puts n vectors into an approximate index. That takes long, so item changes go on meanwhile with the published
        version."""
        for first in range(0, n, SLICE):
            if self.stop.is_set():
                return
            vectors = np.empty((min(SLICE, n - first), tiles.shape[1]), np.float32)
            nearestkernels.fetch(tiles, np.arange(first, first + len(vectors)), vectors)
            index.add(first, np.nan_to_num(vectors))
            self._absorb()
            self._send_changed()

    def _publish(self, note: Announcement, packet: Packet, items: int, width: int, recall: float | None) -> None:
        with self._sending:
            self._version, self._tail = _Version(note, packet, recall), Tail(width)
            self._put_all(packet)
        assert self._since is not None
        self._dirty, self._since = self._since, None
        self._show(RETRIEVAL_VERSION, note.version)
        self._show(RETRIEVAL_ITEMS, items)
        if recall is not None:
            self._show(RETRIEVAL_INDEX_RECALL, recall)

    def _send_changed(self) -> bool:
        """Sends vectors of some new or changed items; returns whether there were any."""
        if not self._dirty:
            return False
        tower, version = self._out, self._version
        if version is None:
            self._dirty.clear()  # they will be in the first version
            return False
        if tower is None:
            return False  # it has moved on: they will be in the next version
        some = np.fromiter((self._dirty.pop() for _ in range(min(SENT_AT_ONCE, len(self._dirty)))), np.int32)
        alive = self._items.alive[some]
        rows, gone = some[alive], some[~alive]
        vectors, finite = self._vectors(tower, rows, self.primary.now_ms)
        gone = np.concatenate([gone, rows[~finite]])
        changed = np.ascontiguousarray(rows[finite]), np.ascontiguousarray(vectors[finite]), gone
        with self._sending:
            self._tail.take(*changed)
            self._put_all(self._vectors_packet(version.note, _vector_arrays(*changed)))
        return True

    # -- within -----------------------------------------------------------------------------------------------

    def _show(self, gauge: Gauge, value: float) -> None:
        """Sets a gauge: they tell of the first learner's vectors."""
        if not self._learner:
            gauge.set(value)

    def _facts(self, note: Announcement) -> dict[str, Any]:
        return retrieval_facts(note.epoch, note.version, note.retrieval_clicks) | {"learner": self._learner}

    def _vectors(self, tower: Tower, rows: Rows, now_ms: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Vectors (n, W), and which are finite. Others become NaN, so no search finds them."""
        vectors = tower.item_vectors(*self._items.inputs(rows, now_ms))
        finite: NDArray[np.bool_] = np.isfinite(vectors).all(axis=1).reshape(-1)
        if not finite.all():
            self._meters.error("retrieval")
            vectors[~finite] = np.nan
        return vectors, finite

    def _measured(self, note: Announcement, arrays: Arrays) -> float:
        """Recall of the approximate index: its share of the items with the largest products."""
        user = UserTower.of_arrays(arrays)
        exact = Retrieval.of_arrays(self._facts(note), arrays, user)
        index = Approximate(arrays["tiles"].shape[1], arrays["index"])
        generator = np.random.default_rng(note.version)
        nobody, ages = np.zeros(self._users, np.int64), np.zeros(CLICKS, np.int64)
        found = wanted = 0
        for _ in range(QUERIES):
            clicked = arrays["rows"][generator.integers(0, len(arrays["rows"]), CLICKS)]
            query = exact.query(nobody, clicked.astype(np.intp), ages)
            places = best(exact.scores(query), self._wanted)
            wanted += len(places)
            found += np.isin(places, index.find(query, len(places))).sum()
        return float(found / max(1, wanted))

    def _vectors_packet(self, note: Announcement, arrays: Arrays) -> Packet:
        return Packet("vectors", self._facts(note), arrays)

    def _put_all(self, packet: Packet) -> None:
        for worker in self._workers:
            worker.put(packet)


def _vector_arrays(rows: Rows, vectors: Floats, gone: Rows) -> dict[str, NDArray[Any]]:
    return {"rows": rows, "vectors": vectors, "gone": gone}
