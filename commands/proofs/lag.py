# core
"""What a page did not know yet: its newest events are taken away until all its counts are equal.

A published tile list holds what its partition had counted by then. So of each partition a page knows all events up to a
moment, and none after it; one moment for all the keys of a page::

    partition 0    e1 e2 e4 | e6          the cuts that leave the fewest counts wrong, over all keys of the page
    partition 1    e3 | e5 e7             logged counts = counts without e5, e6, e7

    left = lacking counts, by key and action (B, A)        start: one moment for all partitions
    a partition's events, newest first, are taken away while that brings |left| down; then the next partition
    where that ends with counts that are wrong, the cuts of two partitions are moved together, over all pairs of cuts

That is a guess about time. It is proved by the window code: what the events taken away add to each window is read off a
tile store that holds these events alone, and the counts without them must be the logged ones, in every window.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from commands.proofs.views import Counts, Events, count
from millrace.basics.hashing import U64
from millrace.contracts.schema import Windows
from millrace.windows.tiles import TileStore

HORIZON_MS = 600_000
"""How long before a page an event may have come that the page did not know. Wall time."""
MOST_EVENTS = 4096
"""Of one key that may be taken away."""
_ROUNDS = 6
_MOST_CUTS = 96
"""Newest messages of a partition between which two cuts are moved together."""
MOST_DIFFERENCES = 4_000_000_000
"""Between two counts, in one such search: some seconds. Where there are more to compare, cuts are fewer."""
HELD_MS = 3000
"""How much later than its neighbours a page's log may reach the stream. Wall time."""
MOST_HELD = 32
"""Pages of which that is tried for one page."""


class Near(NamedTuple):
    """Recent events of B window keys of a page, newest first."""

    event: NDArray[np.intp]  # (e,)
    block: NDArray[np.intp]  # (e,) which of the keys
    action: NDArray[np.intp]
    visible: NDArray[np.int64]
    partition: NDArray[np.int64]
    message: NDArray[np.intp]  # descending; see :class:`~commands.proofs.archived.Happened`
    page: NDArray[np.intp]  # the page that each belongs to

    def part(self, which: NDArray[Any]) -> Near:
        """Some of them."""
        return Near(*(column[which] for column in self))


class KeyEvents:
    """Events by window key.

    Args:
        events: in the order in which they become visible.
        partition: (e,) the partition each was counted in.
        message: (e,) ascending.
        page: (e,) the page each belongs to.
    """

    def __init__(
        self,
        events: Events,
        partition: NDArray[np.int64],
        message: NDArray[np.intp],
        page: NDArray[np.intp],
        windows: Windows,
    ) -> None:
        self.events, self._windows = events, windows
        self._partition, self._message, self._page = partition, message, page
        width = events.keys.shape[1]
        flat = events.keys.reshape(-1)
        order = np.argsort(flat, kind="stable")
        order = order[flat[order] != 0]
        self._keys: U64 = flat[order]
        self._event: NDArray[np.intp] = order // max(1, width)

    def around(self, key: int, asked: int, beyond: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(its newest events before ``asked``, oldest first; those that became visible next, at most ``beyond``)"""
        wanted = np.uint64(key)
        mine = self._event[np.searchsorted(self._keys, wanted) : np.searchsorted(self._keys, wanted, "right")]
        # Events ascend in both, so the two times are searched among all events, and the places among the key's.
        first, at = np.searchsorted(mine, np.searchsorted(self.events.visible, [asked - HORIZON_MS, asked])).tolist()
        return mine[max(first, at - MOST_EVENTS) : at], mine[at : at + beyond]

    def near(self, keys: U64, asked: int) -> Near:
        """The newest events of some keys (B,) before ``asked``."""
        found = [self.around(int(key), asked)[0] for key in keys]
        event = np.concatenate(found) if found else np.zeros(0, np.intp)
        block = np.repeat(np.arange(len(found)), [len(f) for f in found])
        action, visible = self.events.action[event].astype(np.intp), self.events.visible[event]
        message = self._message[event]
        order = np.argsort(-message, kind="stable")
        near = Near(event, block, action, visible, self._partition[event], message, self._page[event])
        return near.part(order)

    def amounts(self, near: Near, blocks: int, at_ms: int) -> Counts:
        """What events add to the counts of their keys when they are read at ``at_ms``. (B, S, C)"""
        store = TileStore.of(self._windows)
        keys = (near.block + 1).astype(np.uint64)[:, None]
        count(store, self._windows, self.events.part(near.event)._replace(keys=keys))
        return store.counts(np.arange(1, blocks + 1, dtype=np.uint64), at_ms)


def taken(near: Near, lacking: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which events to take away so that the fewest counts are wrong: of each partition the newest ones, (e,).

    Args:
        lacking: (B, A) counted, and not in the logged counts.
    """
    actions = lacking.shape[1]
    cell = near.block * actions + near.action
    left = lacking.reshape(-1)
    gone = _newest(cell, near.message, left)
    of = [np.flatnonzero(near.partition == p) for p in np.unique(near.partition).tolist()]
    for _ in range(_ROUNDS if len(of) > 1 else 0):
        before = gone.copy()
        for mine in of:
            others = gone.copy()
            others[mine] = False
            rest = left - np.bincount(cell[others], minlength=len(left))
            gone[mine] = _newest(cell[mine], near.message[mine], rest)
        if (gone == before).all():
            break
    wrong = np.bincount(cell[gone], minlength=len(left)) != left
    # A count without an event near stays wrong wherever the cuts are.
    return _moved_in_pairs(near, cell, left, gone) if len(of) > 1 and wrong[cell].any() else gone


def _moved_in_pairs(
    near: Near, cell: NDArray[np.intp], left: NDArray[np.int64], gone: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Cuts that leave no more counts wrong than ``gone`` does, (e,): moving one alone may make worse what moving two
    makes right."""
    cells, column = np.unique(cell, return_inverse=True)
    left = left[cells]
    partitions = np.unique(near.partition).tolist()
    tables = len(partitions) * (len(partitions) - 1) * _ROUNDS  # at most: each pair, from two starts
    most = min(_MOST_CUTS, max(1, math.isqrt(MOST_DIFFERENCES // (tables * len(cells))) - 1))
    rank = np.zeros(len(cell), np.intp)  # of an event's message in its partition, newest first
    # Of each partition (cuts, cells): what its newest messages hold. Whole numbers.
    sums: list[NDArray[np.float64]] = []
    start: list[int] = []
    for p in partitions:
        mine = np.flatnonzero(near.partition == p)
        rank[mine] = np.cumsum(np.diff(near.message[mine], prepend=near.message[mine[0]]) != 0)
        some = mine[rank[mine] < most]
        held_by = np.zeros((int(rank[some].max()) + 2, len(cells)))
        np.add.at(held_by, (rank[some] + 1, column[some]), 1)
        sums.append(np.cumsum(held_by, axis=0))
        start.append(min(int(rank[mine[gone[mine]]].max(initial=-1)) + 1, len(held_by) - 1))

    found = []
    for first in (start, [0] * len(start)):
        cut = list(first)
        rest = left - sum(one[c] for one, c in zip(sums, cut, strict=True))
        for _ in range(_ROUNDS):
            before = list(cut)
            for p, q in combinations(range(len(cut)), 2):
                rest = rest + sums[p][cut[p]] + sums[q][cut[q]]
                wrong = cdist(rest - sums[p], sums[q], "cityblock")  # (cuts of p, cuts of q)
                cut[p], cut[q] = (int(i) for i in np.unravel_index(int(np.argmin(wrong)), wrong.shape))
                rest = rest - sums[p][cut[p]] - sums[q][cut[q]]
            if cut == before:
                break
        found.append((int(np.abs(rest).sum()), cut))
        if not found[-1][0]:
            break
    best, cut = min(found)
    if best >= np.abs(left - np.bincount(column[gone], minlength=len(cells))).sum():
        return gone
    moved: NDArray[np.bool_] = rank < np.array(cut)[np.searchsorted(partitions, near.partition)]
    return moved


def _newest(cell: NDArray[np.intp], message: NDArray[np.intp], left: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The newest events up to the moment at which ``|left|`` is least. Events of one message stay together. (e,)"""
    n = len(cell)
    order = np.argsort(cell, kind="stable")
    sorted_cell = cell[order]
    starts = np.flatnonzero(np.diff(sorted_cell, prepend=-1))
    rank = np.empty(n, np.int64)  # of an event among those of its cell, newest first, from 1
    rank[order] = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n))) + 1
    change = np.cumsum(np.where(rank <= left[cell], -1, 1))
    change[:-1][message[:-1] == message[1:]] = n + 1
    best = int(np.argmin(change)) if n else 0
    gone = np.zeros(n, np.bool_)
    if n and change[best] < 0:
        gone[: best + 1] = True
    return gone


def held(near: Near, lacking: NDArray[np.int64], gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Other whole pages near the cut, taken away or put back one by one while that leaves fewer counts wrong. (e,)

    The stream counts a page when it has the page's log, which takes a way of its own. So of two pages that were sent
    within moments the later one may be counted first.
    """
    actions = lacking.shape[1]
    cell, gone = near.block * actions + near.action, gone.copy()
    cuts = near.visible[gone]
    if not len(cuts):
        return gone
    close = (near.visible >= cuts.min() - HELD_MS) & (near.visible <= cuts.max())
    pages, place = np.unique(near.page[close], return_inverse=True)
    used, column = np.unique(cell[close], return_inverse=True)  # cells that anything close is in
    moves = np.zeros((2, len(pages), len(used)), np.int64)  # what taking away, and putting back, does to `left`
    left = (lacking.reshape(-1) - np.bincount(cell[gone], minlength=lacking.size))[used]
    for _ in range(MOST_HELD):
        moves[:] = 0
        away = gone[close]
        np.add.at(moves[0], (place[~away], column[~away]), -1)
        np.add.at(moves[1], (place[away], column[away]), 1)
        gain = np.abs(left + moves).sum(axis=2) - np.abs(left).sum()
        back, page = np.unravel_index(int(np.argmin(gain)), gain.shape)
        if gain[back, page] >= 0:
            break
        left = left + moves[back, page]
        gone[np.flatnonzero(close)[place == page]] = back == 0
    return gone


def own_newest(near: Near, lacking: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The same for each key by itself: as many of its newest events as it lacks. (e,)"""
    of_block = lacking.sum(axis=1)
    order = np.argsort(near.block, kind="stable")
    starts = np.flatnonzero(np.diff(near.block[order], prepend=-1))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    gone: NDArray[np.bool_] = place < of_block[near.block]
    return gone


def spread(lags_ms: list[int]) -> dict[str, Any]:
    """How long before a page the oldest event had been sent that it did not know: pages, seconds."""
    if not lags_ms:
        return {"pages": 0}
    p50, p99, most = np.percentile(lags_ms, [50, 99, 100]) / 1000
    return {"pages": len(lags_ms), "p50_s": round(p50, 3), "p99_s": round(p99, 3), "most_s": round(most, 3)}
