# core
"""One retrieval version in a worker: the user tower, the vectors of all living items, and the search for the nearest.

::

    version (5, 1230)                          the same for all workers, in shared memory, never written to again
      tiles (T, W, 64)  places 0 .. n-1        vectors in bfloat16; see scorer/recall/nearestkernels.py
      rows (n,)         index row of a place
      at (R,)           place of an index row, -1: it had no vector
      user/...          the user tower
    tail                places 64 T ..         vectors of items that came or changed since, by the same version's tower;
                                               each worker keeps its own
    stale               places of the version that no longer count: of items that changed or are gone
                        (an item of the tail that is gone has NaN there: it is never found)

    query ── products with every place ──► scores ── stale: -inf ──► threshold from a sample ──► exact pick ──► rows

All vectors of a page come from one such object, so versions never mix. A version is some seconds old; the tail is as
new as the items.

Products are exact except that vectors have 8 bits of mantissa; sums are float32. Beyond a million items an approximate
index (:mod:`scorer.recall.approximate`) finds the places. The tail stays exact, and found vectors are scored again
exactly, so the order is right.

Symbols: W columns of a vector, n places, R rows of the item index, k items wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scorer.catalog.itemtable import ItemRows
from scorer.recall import nearestkernels as kernels
from scorer.recall.nearestkernels import LANES, Tiles

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]

NEVER = np.float32(-np.inf)
SAMPLES = 4096
"""Size of the sample for the first threshold."""
SPREAD = 4.0
"""Standard deviations by which the sample may miss k items before all scores are examined."""
_FIRST_TAIL = 4 * LANES
MASKED_SHARE, MASKED_MARGIN = 0.25, 1.25
"""With a filter, an approximate index is asked for proportionally more, times the margin. Below this share of allowed
items exact products are faster."""


class QueryTower(Protocol):
    """The part of :class:`learner.retrieval.tower.QueryTower` used here."""

    def query(self, ids: NDArray[np.int64], recent: Floats, age_ms: NDArray[np.int64]) -> Floats: ...


class Finder(Protocol):
    """An approximate index of a version's places; see :class:`scorer.recall.approximate.Approximate`."""

    def find(self, query: Floats, k: int) -> Places: ...


def new_tiles(n: int, width: int, allocate: Any = np.zeros) -> Tiles:
    """Zeroed tiles for n vectors. ``allocate``: memory of a shape and dtype, for instance shared."""
    tiles: Tiles = allocate((-(-n // LANES), width, LANES), np.uint16)
    return tiles


class Retrieval:
    """See the module's text. One thread reads and takes.

    Args:
        version: number of the model version with this head, which had learnt from ``clicks``.
        rows: (n,) int32 index rows, each once, with their vectors in ``tiles``; ``at``: (R,) int32.
        finder: None: exact products.
    """

    def __init__(
        self,
        version: tuple[int, int],
        clicks: int,
        rows: NDArray[np.int32],
        tiles: Tiles,
        at: NDArray[np.int32],
        user: QueryTower,
        finder: Finder | None = None,
    ) -> None:
        self.version, self.clicks = version, clicks
        self._rows, self._tiles, self._at, self._user, self._finder = rows, tiles, at, user, finder
        self._first = len(tiles) * LANES  # place of the tail's first vector
        self._width = tiles.shape[1]
        self._tail = new_tiles(_FIRST_TAIL, self._width)
        self._tail_rows = np.zeros(_FIRST_TAIL, np.int32)
        self._tail_at: dict[int, int] = {}  # index row -> place in the tail
        self._tail_gone: set[int] = set()  # index rows
        self._stale = np.zeros(self._first, np.bool_)
        self._stale_places: Places = np.empty(LANES, np.int64)  # the first ``_stales`` of them
        self._stales = 0
        self._scores = np.empty(self._first + _FIRST_TAIL, np.float32)

    @classmethod
    def of_arrays(
        cls, facts: Mapping[str, Any], arrays: Arrays, user: QueryTower, finder: Finder | None = None
    ) -> Retrieval:
        version = int(facts["epoch"]), int(facts["version"])
        return cls(version, int(facts["clicks"]), arrays["rows"], arrays["tiles"], arrays["at"], user, finder)

    def __len__(self) -> int:
        """Number of items with a vector."""
        return int(np.count_nonzero(self._at >= 0)) + len(self._tail_at) - self._stales - len(self._tail_gone)

    # -- between two requests ---------------------------------------------------------------------------------

    def take(self, rows: NDArray[np.int32], vectors: Floats, gone: NDArray[np.int32]) -> None:
        """Applies newer ``vectors`` (m, W), by this version's tower, of items ``rows`` (m,), each once. ``gone``: items
        without a vector now, even if they are among ``rows``."""
        if len(rows):
            self._lay(rows.tolist(), vectors)
            self._tail_gone.difference_update(rows.tolist())
        self._outdate(np.concatenate([rows, gone]))
        behind = [row for row in gone.tolist() if row in self._tail_at]
        if behind:
            self._lay(behind, np.full((len(behind), self._width), np.nan, np.float32))
            self._tail_gone.update(behind)

    def _lay(self, rows: list[int], vectors: Floats) -> None:
        """Puts the vectors (m, W) of these m items into the tail."""
        places = np.fromiter(map(self._place_in_tail, rows), np.int64, len(rows))
        kernels.lay(np.require(vectors, np.float32, ["C", "W"]), places - self._first, self._tail)

    def _outdate(self, rows: NDArray[np.int32]) -> None:
        """Invalidates the version's own vectors of these items. The cost does not grow with their number."""
        places = np.unique(self._at[rows[rows < len(self._at)]])
        places = places[places >= 0]
        places = places[~self._stale[places]]
        self._stale[places] = True
        end = self._stales + len(places)
        if end > len(self._stale_places):
            self._stale_places = np.concatenate([self._stale_places, np.empty(end, np.int64)])
        self._stale_places[self._stales : end] = places
        self._stales = end

    def _place_in_tail(self, row: int) -> int:
        place = self._tail_at.get(row)
        if place is None:
            n = len(self._tail_at)
            if n == len(self._tail_rows):
                self._tail = np.concatenate([self._tail, np.zeros_like(self._tail)])
                self._tail_rows = np.concatenate([self._tail_rows, np.zeros_like(self._tail_rows)])
                self._scores = np.empty(self._first + len(self._tail_rows), np.float32)
            self._tail_rows[n] = row
            place = self._tail_at[row] = self._first + n
        return place

    # -- requests ---------------------------------------------------------------------------------------------

    def query(self, user_ids: NDArray[np.int64], recent_rows: ItemRows, age_ms: NDArray[np.int64]) -> Floats:
        """The vector of a user, (W,). ``user_ids``: (k,) feature ids. ``recent_rows``: (h,) last clicked items, newest
        first (those without a vector are skipped); ``age_ms``: (h,) how long ago."""
        places = np.fromiter(map(self._place_of, recent_rows.tolist()), np.int64, len(recent_rows))
        known = np.flatnonzero(places >= 0)
        recent = self.vectors(places[known])
        found: Floats = self._user.query(user_ids, recent, np.asarray(age_ms, np.int64)[known])
        return found

    def nearest(self, query: Floats, k: int, allowed: NDArray[np.bool_] | None = None) -> ItemRows:
        """Distinct index rows of the k items with the largest products, best first; fewer where there are fewer. The
        item table knows removed items before this object, which knows them after :meth:`take`. ``allowed``: (rows,)
        which index rows count, None: all. The k best of them are found however few they are."""
        query = np.require(query, np.float32, ["C", "W"])
        places = None
        if self._finder is not None:
            places = self._found(self._finder, query, k, allowed)
        if places is None:
            places = best(self._masked(self.scores(query), allowed), k)
        return self._rows_at(places)

    def has(self, row: int) -> bool:
        """Whether the item at ``row`` has a vector."""
        return self._place_of(row) >= 0

    def similar(self, row: int, k: int, allowed: NDArray[np.bool_], others: ItemRows) -> tuple[ItemRows, Floats]:
        """Distinct index rows of the k allowed items whose vectors are most similar to that of the item at ``row``,
        best first, then of the allowed ``others`` (m,) with a vector; and their cosines. Empty: the item has no vector.

        The last column, the bias, takes no part: it says how much an item is clicked, not by whom. Always exact."""
        own = self._place_of(row)
        if own < 0:
            return np.empty(0, np.intp), np.empty(0, np.float32)
        query = self.vectors(np.array([own]))[0, :-1]
        found = self.scores(query / max(np.float32(1e-30), np.linalg.norm(query)), kernels.cosines)
        where = np.fromiter(map(self._place_of, others.tolist()), np.int64, len(others))
        where = where[where >= 0]
        places = best(self._masked(found, allowed), k)
        places = np.append(places, np.setdiff1d(where, places))
        return self._rows_at(places), found[places]

    def scores(self, query: Floats, of: Callable[[Tiles, Floats, Floats], None] = kernels.products) -> Floats:
        """The product (or another measure) of each place, -inf or NaN for invalid ones. The next call reuses the
        memory."""
        end = self._first + len(self._tail_at)
        scores, first = self._scores, self._first
        of(self._tiles, query, scores)
        scores[len(self._rows) : first] = NEVER
        self._tail_scores(query, scores[first:], of)
        scores[self._stale_places[: self._stales]] = NEVER
        return scores[:end]

    def vectors(self, places: Places) -> Floats:
        """The stored vectors at these places. (m, W)"""
        out = np.empty((len(places), self._width), np.float32)
        base = places < self._first
        for some, tiles, first in ((base, self._tiles, 0), (~base, self._tail, self._first)):
            found = np.empty((int(some.sum()), self._width), np.float32)
            kernels.fetch(tiles, places[some] - first, found)
            out[some] = found
        return out

    def factors(self, rows: ItemRows) -> Floats:
        """The vectors of items without their bias, of length 1; zeros where there is none. (n, W - 1)"""
        places = np.fromiter(map(self._place_of, rows.tolist()), np.int64, len(rows))
        known = np.flatnonzero(places >= 0)
        found = self.vectors(places[known])[:, :-1]
        out = np.zeros((len(rows), self._width - 1), np.float32)
        out[known] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return out

    # -- within -----------------------------------------------------------------------------------------------

    def _place_of(self, row: int) -> int:
        if row in self._tail_at:
            return -1 if row in self._tail_gone else self._tail_at[row]
        place = int(self._at[row]) if 0 <= row < len(self._at) else -1
        return -1 if place < 0 or self._stale[place] else place

    def _rows_at(self, places: Places) -> ItemRows:
        base = places < self._first
        rows = np.empty(len(places), np.intp)
        rows[base], rows[~base] = self._rows[places[base]], self._tail_rows[places[~base] - self._first]
        return rows

    def _tail_scores(self, query: Floats, out: Floats, of: Callable[..., None] = kernels.products) -> None:
        tiles = -(-len(self._tail_at) // LANES)
        of(self._tail[:tiles], query, out)

    def _masked(self, scores: Floats, allowed: NDArray[np.bool_] | None) -> Floats:
        if allowed is not None:
            kernels.forbid(self._rows, allowed, scores)
            kernels.forbid(self._tail_rows[: len(self._tail_at)], allowed, scores[self._first :])
        return scores

    def _found(self, finder: Finder, query: Floats, k: int, allowed: NDArray[np.bool_] | None = None) -> Places | None:
        """The best of the index and the tail. None: too few of them are allowed."""
        wanted = k
        if allowed is not None:
            share = np.count_nonzero(allowed) / max(1, len(self))
            if share < MASKED_SHARE:
                return None
            wanted = k if share >= 1 else round(MASKED_MARGIN * k / share)
        places = finder.find(query, min(wanted + min(self._stales, wanted), len(self._rows)))
        places = places[~self._stale[places]]
        n = len(self._tail_at)
        tail = np.empty(len(self._tail_rows), np.float32)
        self._tail_scores(query, tail)
        if allowed is not None:
            rows = self._rows[places]
            known = rows < len(allowed)
            places = places[known][allowed[rows[known]]]
            kernels.forbid(self._tail_rows[:n], allowed, tail)
            if len(places) < k:
                return None
        scores = np.concatenate([self.vectors(places) @ query, tail[:n]])
        return np.concatenate([places, np.arange(self._first, self._first + n)])[best(scores, k)]


def best(scores: Floats, k: int) -> Places:
    """Positions of the k largest scores, largest first, without -inf and NaN. About linear time: a sample gives a
    threshold with slightly more than k scores above it, and only these are sorted. (<= k,)"""
    n = len(scores)
    step = (n // SAMPLES) | 1  # odd: rows that follow one another in some pattern of two, four, ... do not bend it
    places = np.empty(0, np.int64)
    if step > 1:
        sample = scores[::step]
        expected = k / step
        rank = int(expected + SPREAD * expected**0.5) + 2
        if rank < len(sample):
            threshold = np.partition(sample, len(sample) - rank)[len(sample) - rank]
            if threshold > NEVER:
                places = np.flatnonzero(scores >= threshold)
    if len(places) < k:  # few in all, or the sample was not like the rest
        places = np.flatnonzero(scores > NEVER)
    found = scores[places]
    if len(places) > k > 0:
        chosen = np.argpartition(found, len(found) - k)[len(found) - k :]
        places, found = places[chosen], found[chosen]
    picked: Places = places[np.argsort(-found, kind="stable")][:k]
    return picked


def warm_up(width: int) -> None:
    """Compiles the kernels before the first request."""

    class Nobody:
        def query(self, ids: NDArray[np.int64], recent: Floats, age_ms: NDArray[np.int64]) -> Floats:
            return np.ones(width, np.float32)

    tiles = new_tiles(2, width)
    vectors = np.ones((2, width), np.float32)
    kernels.lay(vectors, np.arange(2), tiles)
    retrieval = Retrieval((0, 0), 0, np.arange(2, dtype=np.int32), tiles, np.arange(2, dtype=np.int32), Nobody())
    retrieval.take(np.array([1], np.int32), vectors[:1], np.array([0], np.int32))
    query = retrieval.query(np.empty(0, np.int64), np.arange(2), np.zeros(2, np.int64))
    for allowed in (None, np.ones(2, np.bool_)):
        retrieval.nearest(query, 1, allowed)
    retrieval.similar(1, 1, np.ones(2, np.bool_), np.arange(1))
