# core
"""Items clicked together: the feeder merges the stream's lists, a worker looks up neighbours of items.

::

    features.coclicks ──► CoClicks: newest list of each partition and item ── arrays(), every ten seconds ──► Neighbours

    starts (R + 1,) i32   │ 0 │ 3 │ 3 │ 5 │ ...     by index row
    near   (m,) i32       │ 9  4  7 │ 2  0 │ ...    index rows, best first, at most 16 each
    worth  (m,) i32       │ 8  5  5 │ 9  1 │ ...    the sum of its counts over partitions, weighted by day
                                                    (:data:`millrace.contracts.coclick_message.WEIGHTS`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64, value_hash
from millrace.contracts.coclick_message import DAYS, MOST, WEIGHTS, Lists
from millrace.contracts.events import Id
from scorer.recall import neighbourkernels

Arrays = dict[str, NDArray[Any]]
ItemRows = NDArray[np.intp]

MOST_LISTS = 1 << 18
"""Limit of the feeder, over all partitions: 175 MB with sixteen neighbours each. Beyond it, the least recently updated
lists go."""

_ENTRY = np.dtype([("near", "<u8"), ("counts", "<u2", (DAYS,))])
_WEIGHTS = np.array(WEIGHTS, np.int64)
WORTH_OF_ONE = 420
"""What one common click a day is worth in :data:`WEIGHTS`."""


class CoClickFeed:
    """The feeder's half. One thread at a time.

    >>> said = Lists(10, np.array([5], "u8"), np.array([1], "u1"), np.array([6], "u8"), np.ones((1, 7), "u2"))
    >>> merged = CoClickFeed()
    >>> merged.take(0, said)
    >>> merged.know([])  # rows of the index get their numbers from the ids of the items
    >>> len(merged), merged.arrays(10)["starts"].tolist()
    (1, [0])
    """

    def __init__(self, most_lists: int = MOST_LISTS) -> None:
        self._most = most_lists
        self._lists: dict[tuple[int, int], tuple[int, bytes]] = {}  # partition, item -> day, entries; as they came
        self._hashes: U64 = np.zeros(0, np.uint64)  # (R,) of the index's items
        self._sorted = self._hashes, np.zeros(0, np.intp)
        self.newest_day = 0
        self.changed = False

    def __len__(self) -> int:
        return len(self._lists)

    def take(self, partition: int, lists: Lists) -> None:
        """Replaces the lists of items as counted in a partition. An empty list removes the item's list."""
        entries = np.empty(len(lists.near), _ENTRY)
        entries["near"], entries["counts"] = lists.near, lists.counts
        raw, held, start = entries.tobytes(), self._lists, 0
        for item, size in zip(lists.items.tolist(), lists.sizes.tolist(), strict=True):
            end = start + size * _ENTRY.itemsize
            held.pop((partition, item), None)
            if size:
                held[partition, item] = lists.day, raw[start:end]
            start = end
        if len(held) > self._most:
            for key in list(islice(held, len(held) - self._most + self._most // 16)):
                del held[key]
        self.newest_day = max(self.newest_day, lists.day)
        self.changed = True

    @property
    def known(self) -> int:
        """Number of index rows whose items are known."""
        return len(self._hashes)

    def know(self, ids: Sequence[Id]) -> None:
        """Adds the items of the next index rows, from :attr:`known` on."""
        if ids:
            more = np.fromiter(map(value_hash, ids), np.uint64, len(ids))
            self._hashes = np.concatenate([self._hashes, more])
            order = np.argsort(self._hashes)
            self._sorted = self._hashes[order], order
            self.changed = True

    def rows_of(self, hashes: U64) -> NDArray[np.int64]:
        """Index rows of value hashes (n,), -1 where there is no such item. (n,)"""
        ascending, rows = self._sorted
        if not len(rows):
            return np.full(len(hashes), -1, np.int64)
        at = np.minimum(np.searchsorted(ascending, hashes), len(rows) - 1)
        return np.where(ascending[at] == hashes, rows[at], -1).astype(np.int64)

    def arrays(self, day: int) -> Arrays:
        """The arrays of :class:`Neighbours` as of an event day. Lists with only expired days are dropped."""
        self._lists = {key: own for key, own in self._lists.items() if own[0] > day - DAYS}
        n = len(self._lists)
        entries = np.frombuffer(bytearray().join(raw for _, raw in self._lists.values()), _ENTRY)
        ends = np.cumsum(np.fromiter((len(raw) for _, raw in self._lists.values()), np.int64, n)) // _ENTRY.itemsize
        ages = np.maximum(day - np.fromiter((of for of, _ in self._lists.values()), np.int64, n), 0)
        rows = self.rows_of(np.fromiter((item for _, item in self._lists), np.uint64, n))
        best, worth = np.empty((2, self.known, MOST), np.int32)
        sizes = neighbourkernels.merge(
            rows, np.argsort(rows, kind="stable"), ends, ages, self.rows_of(np.ascontiguousarray(entries["near"])),
            np.ascontiguousarray(entries["counts"]), _WEIGHTS, best, worth,
        )  # fmt: skip
        starts = np.zeros(self.known + 1, np.int32)
        np.cumsum(sizes, out=starts[1:])
        self.changed = False
        kept = np.arange(MOST) < sizes[:, None]
        return {"starts": starts, "near": best[kept], "worth": worth[kept]}


class Neighbours:
    """A worker's half: see the module's text. It never changes.

    >>> along = Neighbours(np.array([0, 3, 3, 5], "i4"), np.array([9, 4, 7, 4, 0], "i4"), np.full(5, 420, "i4"))
    >>> along.of(np.array([0, 2, 1, -1]), 10).tolist()
    [9, 4, 7]
    >>> along.counted(2)
    (array([4, 0]), array([1., 1.]))
    """

    def __init__(self, starts: NDArray[np.int32], near: NDArray[np.int32], worth: NDArray[np.int32]) -> None:
        self._starts, self._near, self._worth = starts, near, worth

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Neighbours:
        return cls(arrays["starts"], arrays["near"], arrays["worth"])

    def __len__(self) -> int:
        """Number of pairs of an item and a neighbour."""
        return len(self._near)

    def of(self, rows: ItemRows, most: int) -> ItemRows:
        """Neighbours of items, at most ``most``: each item's best, then each item's second, and so on. Distinct, and
        none of ``rows`` (h,). Unknown rows (-1, or newer than these arrays) have none. (n,)"""
        found: ItemRows = neighbourkernels.interleaved(
            self._starts, self._near, np.array(rows, np.int64), min(most, MOST * len(rows))
        )
        return found

    def counted(self, row: int) -> tuple[ItemRows, NDArray[np.float64]]:
        """Neighbours of the item at ``row``, best first, with their common clicks a day: the mean over the windows, as
        :func:`millrace.windows.affinity.clicks_a_day`. (n,) each"""
        own = slice(*self._starts[row : row + 2]) if 0 <= row < len(self._starts) - 1 else slice(0)
        return self._near[own].astype(np.intp), self._worth[own] / WORTH_OF_ONE
