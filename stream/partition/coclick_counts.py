# core
"""Which items of a partition are clicked together, counted by whole days of event time. Pure.

::

    a user clicks   a ── b ── c ── d     each with the user's 5 clicks before it, within 24 hours, on other items
                         ╰─ both ways ─╯
    row of an item  neighbours (16)  b   c   f  ...      in no order
                    counts (16, 7)   today, yesterday, ... six days ago

A neighbour is worth the mean of its clicks a day over windows of 1, 3, 5 and 7 days
(:data:`millrace.contracts.coclick_message.WEIGHTS`). When all sixteen places are taken and another item comes, it
replaces the neighbour with the least worth if that is at most a new click's (among equals, the one counted longest
ago). Otherwise that neighbour loses a click of its oldest day, and the newcomer is not counted. So an item that keeps
coming gets in, many items that come only one time replace only the least one, and no count is ever too high (like
the rule of Misra and Gries, Finding repeated elements, 1982, which takes a click from all of them).

Items are at most :data:`MOST_ITEMS`. When they are full, the eighth that was counted longest ago is dropped. When a
day begins, the oldest day's counts end, with neighbours and items that have no others. Readers weigh the days by
their own time, so nothing is published then. Readers keep items that were dropped for want of room until their days
are over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import U64
from millrace.contracts.coclick_message import DAYS, MOST, WEIGHTS, Lists, no_lists
from stream.partition import coclickkernels

Array = NDArray[Any]

MOST_ITEMS = 1 << 16
"""Of a partition: 32 MB."""
EARLIER = 5
"""Earlier clicks that a click is paired with."""
WITHIN_MS = DAY_MS
"""How long before it, at most."""

_FIRST_ROWS = 1024
_WEIGHTS = np.array(WEIGHTS, np.int64)
_BEFORE = -1  # the newest day before there is one


class CoClicks:
    """One thread at a time.

    >>> counted = CoClicks()
    >>> pairs = np.array([[1, 2], [1, 3], [1, 2]], np.uint64)
    >>> counted.add(pairs, np.array([10, 10, 11]) * DAY_MS)
    >>> lists = counted.changes()
    >>> lists.day, lists.items.tolist(), lists.sizes.tolist(), lists.near.tolist()
    (11, [1, 2, 3], [2, 1, 1], [2, 3, 1, 1])
    >>> lists.counts[0].tolist()  # 1 with 2: today, and yesterday
    [1, 1, 0, 0, 0, 0, 0]
    """

    def __init__(self, most_items: int = MOST_ITEMS) -> None:
        self._most = most_items
        self.day, self._clock, self._used = _BEFORE, 0, 0
        self._again: set[int] = set()  # to be published again, present or not
        self._rows(min(_FIRST_ROWS, most_items))

    def __len__(self) -> int:
        return self._used

    def add(self, pairs: U64, ts_ms: NDArray[np.int64]) -> None:
        """Counts pairs of items (n, 2) clicked together at ``ts_ms`` (n,). The split into calls does not matter."""
        if not len(pairs):
            return
        days = np.ascontiguousarray(ts_ms, np.int64) // DAY_MS
        peaks = np.maximum.accumulate(days)
        ends = [*(np.flatnonzero(np.diff(peaks)) + 1).tolist(), len(days)]
        at = 0
        for end in ends:  # of pairs that are counted on the same newest day
            self._begin(int(peaks[at]))
            while at < end:
                at, self._used, self._clock = coclickkernels.count(
                    *(self._slots, self._shift, self._arrays(), self._used, self._clock),
                    *(pairs[:end], days[:end], at, self.day, _WEIGHTS),
                )
                if at < end:
                    self._make_room()

    def click(
        self,
        clicked: U64,
        ts_ms: NDArray[np.int64],
        sizes: NDArray[np.int64],
        before: U64,
        before_ms: NDArray[np.int64],
    ) -> None:
        """Counts clicks with their users' earlier ones.

        Args:
            clicked, ts_ms: (n,) items and times.
            sizes: (n,) how many clicks are given before each: the last :data:`EARLIER` ones.
            before, before_ms: (sum of sizes,) these, newest first.
        """
        self.add(*coclickkernels.pairs(clicked, ts_ms, sizes, before, before_ms, WITHIN_MS))

    def sweep(self, now_ms: int) -> None:
        """Drops everything when all days are over; call it after each step. (Other days end with the first co-click of
        a newer one, so that the split into steps does not matter.) ``now_ms``: the newest event."""
        if self._used and now_ms // DAY_MS >= self.day + DAYS:
            self._begin(now_ms // DAY_MS)

    def changes(self) -> Lists:
        """The items that changed since the last call, whole; items of :meth:`republish` that are not here have no
        neighbours."""
        gone = np.array(sorted(self._again), np.uint64)
        if len(gone):
            here = np.isin(self._items[: self._used], gone)
            self._changed[: self._used] |= here
            gone, self._again = np.setdiff1d(gone, self._items[: self._used][here]), set()
        rows = np.flatnonzero(self._changed[: self._used])
        self._changed[rows] = False
        lists = self._lists(rows)
        if not len(gone):
            return lists
        none = np.zeros(len(gone), np.uint8)
        day = max(self.day, 0)
        return Lists(day, np.concatenate([lists.items, gone]), np.concatenate([lists.sizes, none]), *lists[3:])

    def republish(self, items: U64) -> None:
        """Makes :meth:`changes` give these items (n,) even if nothing is counted of them: readers may know more."""
        self._again.update(items.tolist())

    def part(self, start: float, stop: float) -> Lists:
        """Items in a share [start, stop) of all hashes, whole, for new readers. Changes nothing."""
        items = self._items[: self._used] / 2.0**64
        return self._lists(np.flatnonzero((items >= start) & ((items < stop) | (stop >= 1.0))))

    # ------------------------------------------------------------------ state

    def snapshot(self) -> CoClicksSnapshot:
        n = self._used
        rows = (a[:n].copy() for a in (self._items, self._touched, self._changed, self._filled))
        again = np.array(sorted(self._again), np.uint64)
        return CoClicksSnapshot(self.day, self._clock, (*rows, *self._gather(np.arange(n), np.arange(DAYS)), again))

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`CoClicksSnapshot.plain`. For a new object. Raises ValueError, KeyError or TypeError."""
        arrays = {name: np.frombuffer(state[name], dtype) for name, dtype in _ARRAYS.items()}
        sizes, n = arrays["filled"].astype(np.int64), len(arrays["items"])
        m = int(sizes.sum())
        lengths = [len(arrays[name]) for name in ("touched", "changed", "near", "counts", "when")]
        if lengths != [n, n, m, m * DAYS, m] or (n and sizes.max() > MOST):
            raise ValueError(f"arrays of {lengths} values for {n} items with {m} neighbours")
        self.day, self._clock = int(state["day"]), int(state["clock"])
        self._most = max(self._most, n)
        self._used = 0
        self._rows(min(1 << max(n, _FIRST_ROWS - 1).bit_length(), self._most))
        self._used = n
        self._items[:n], self._touched[:n] = arrays["items"], arrays["touched"]
        self._changed[:n], self._filled[:n] = arrays["changed"], arrays["filled"]
        taken = np.arange(MOST) < arrays["filled"][:, None]
        self._near[:n][taken] = arrays["near"]
        self._counts[:n][taken] = arrays["counts"].reshape(m, DAYS)
        self._when[:n][taken] = arrays["when"]
        self._again = set(arrays["again"].tolist())
        self._index()

    # ------------------------------------------------------------------ within

    def _begin(self, day: int) -> None:
        if day <= self.day:
            return
        if self.day != _BEFORE:
            for new in range(max(self.day + 1, day - DAYS + 1), day + 1):
                self._counts[: self._used, :, new % DAYS] = 0
            coclickkernels.settle(self._filled, self._near, self._counts, self._when, self._used)
            self._keep(np.flatnonzero(self._filled[: self._used]))
        self.day = day

    def _make_room(self) -> None:
        n = len(self._items)
        if n < self._most:
            self._rows(min(2 * n, self._most))
            self._index()
        else:
            going = max(2, n // 8)
            oldest = np.partition(self._touched[: self._used], going - 1)[going - 1]
            self._keep(np.flatnonzero(self._touched[: self._used] > oldest))

    def _keep(self, rows: NDArray[np.intp]) -> None:
        n = len(rows)
        if n == self._used:
            return
        coclickkernels.keep(rows, self._arrays())
        self._changed[n : self._used], self._used = False, n
        self._index()

    def _rows(self, capacity: int) -> None:
        n = self._used

        def longer(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
            new = np.zeros((capacity, *shape), dtype)
            if n:
                new[:n] = getattr(self, name)[:n]
            return new

        self._items: U64 = longer("_items", (), np.uint64)
        self._touched = longer("_touched", (), np.int64)
        self._changed = longer("_changed", (), np.bool_)
        self._filled = longer("_filled", (), np.uint8)
        self._near: U64 = longer("_near", (MOST,), np.uint64)
        self._counts = longer("_counts", (MOST, DAYS), np.uint16)
        self._when = longer("_when", (MOST,), np.int64)
        bits = (2 * capacity - 1).bit_length()
        self._shift, self._slots = 64 - bits, np.zeros(1 << bits, np.int32)

    def _arrays(self) -> coclickkernels.CoClickRows:
        return coclickkernels.CoClickRows(
            *(self._items, self._filled, self._touched, self._changed, self._near, self._counts, self._when)
        )

    def _index(self) -> None:
        coclickkernels.index(self._slots, self._shift, self._items, self._used)

    def _gather(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> tuple[Array, Array, Array]:
        found: tuple[Array, Array, Array] = coclickkernels.gather(
            rows, self._filled, self._near, self._counts, self._when, columns
        )
        return found

    def _lists(self, rows: NDArray[np.intp]) -> Lists:
        if not len(rows):
            return no_lists()
        near, counts, _ = self._gather(rows, (self.day - np.arange(DAYS)) % DAYS)
        return Lists(self.day, self._items[rows], self._filled[rows], near, counts)


_ARRAYS = {
    "items": "<u8",
    "touched": "<i8",
    "changed": "?",
    "filled": "u1",
    "near": "<u8",
    "counts": "<u2",
    "when": "<i8",
    "again": "<u8",
}


@dataclass(frozen=True, slots=True)
class CoClicksSnapshot:
    day: int
    clock: int
    rows: tuple[Array, ...]  # of those that are taken, and items to be published again, in the order of _ARRAYS

    def plain(self) -> dict[str, Any]:
        """Plain values and bytes. Any thread may call it."""
        state = {name: a.astype(d).tobytes() for (name, d), a in zip(_ARRAYS.items(), self.rows, strict=True)}
        return {"day": self.day, "clock": self.clock, **state}
