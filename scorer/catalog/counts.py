# core
"""Counts of item-side window keys, as received by partition of ``events`` and as summed for pages by slot.

::

    tiles   partition -> TileStore       the count of a key is the sum over partitions, since partitions are by user
    slot    key -> slot                  one a distinct key, shared by the items of a category; slot 0 is "missing"
    sums    (slots, S, A)                of the slot's key, as of the time in ``stamps`` (slots,);
                                         S spans: windows, half-lives, and one row more where first exposures are asked
                                         for (:meth:`TileStore.counts`), of which partitions give the earliest
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.schema import Windows
from millrace.windows.tiles import TileStore

Slots = NDArray[np.intp]
Counts = NDArray[np.integer[Any]]


class ItemCounts:
    """See the module's text. Changes need exclusive access."""

    def __init__(self, windows: Windows, first: bool = False) -> None:
        self._windows, self._first = windows, first
        self._empty = TileStore.of(windows)  # gives the counts of a key without events
        self.tiles: dict[int, TileStore] = {}
        self._slot: dict[int, int] = {0: 0}
        self.keys = np.zeros(1024, np.uint64)
        """By slot, with spare capacity at the end."""
        self.sums = self._empty.counts(self.keys, 0, first)
        self._stamps = np.full(1024, -1, np.int64)
        self._unsent = np.zeros(1024, np.bool_)

    def __len__(self) -> int:
        """Number of slots, with "missing"."""
        return len(self._slot)

    @property
    def held(self) -> int:
        """Number of window keys over all partitions."""
        return sum(len(store) for store in self.tiles.values())

    # -- what was counted -------------------------------------------------------------------------------------

    def put(self, partition: int, keys: U64, tiles: Sequence[bytes]) -> None:
        """Replaces the tile lists of ``keys`` (n,) as counted in ``partition``. Raises StoreError when a list is
        damaged, and then replaces nothing."""
        store = self.tiles.get(partition)
        if store is None:
            store = self.tiles[partition] = TileStore.of(self._windows)
        store.put(keys, tiles)

    def expire(self, now_ms: int, start: float = 0.0, stop: float = 1.0) -> int:
        """Drops keys whose windows are all empty, in a share [start, stop) of each store; returns how many."""
        return sum(store.sweep(now_ms, start, stop) for store in self.tiles.values())

    def at(self, keys: U64, ts_ms: int) -> Counts:
        """:meth:`TileStore.counts` of ``keys`` (n,) at ``ts_ms``, summed over partitions. (n, S, A)"""
        total = self._empty.counts(keys, ts_ms, self._first)
        earliest = total[:, -1, 0]
        for store in self.tiles.values():
            found = store.counts(keys, ts_ms, self._first)
            if self._first:
                first = found[:, -1, 0]
                found[:, -1, 0] = np.where((earliest > 0) & ((first == 0) | (earliest < first)), earliest, first)
                earliest[:] = 0
            total += found
        return total

    # -- by slot ----------------------------------------------------------------------------------------------

    def slot_of(self, key: int) -> int:
        """The slot of a key; a new key gets one."""
        slot = self._slot.get(key)
        if slot is None:
            slot = self._slot[key] = len(self._slot)
            if slot == len(self._stamps):
                self.keys, self._stamps, self.sums, self._unsent = (
                    np.concatenate([old, np.full_like(old, fill)])
                    for old, fill in ((self.keys, 0), (self._stamps, -1), (self.sums, 0), (self._unsent, False))
                )
            self.keys[slot] = key
        return slot

    def outdate(self, keys: Iterable[int] | None, make: bool = False) -> list[int]:
        """Marks the counts of these keys (None: all) as outdated. Returns their slots; with ``make``, new keys get
        one."""
        if keys is None:
            self._stamps[:] = -1
            return []
        slot_of = self.slot_of if make else self._slot.get
        known = [slot for slot in map(slot_of, keys) if slot]
        self._stamps[known] = -1
        return known

    def fresh(self, slots: Slots, now_ms: int) -> Counts:
        """Counts of the keys in ``slots`` (...), refreshed to ``now_ms``. (..., S, A)"""
        self.refresh(np.unique(self.stale(slots, now_ms)), now_ms)
        found: Counts = self.sums[slots]
        return found

    def refresh(self, slots: Slots, now_ms: int) -> None:
        """Reads the counts of distinct ``slots`` (n,) again, and notes which of them have changed.

        Windows begin and end with a unit of the tiles, and decayed counts are as of the full unit. So counts change
        only when a tile list is replaced or the time passes into another unit. At the full unit itself, that unit's
        tile does not count yet.
        """
        if len(slots):
            fresh = self.at(self.keys[slots], now_ms)
            self._unsent[slots] |= (fresh != self.sums[slots]).any(axis=(1, 2))
            self.sums[slots] = fresh
            self._stamps[slots] = self._stamp(now_ms)

    def stale(self, slots: Slots, now_ms: int) -> Slots:
        found: Slots = slots[self._stamps[slots] != self._stamp(now_ms)]
        return found

    def due(self, now_ms: int, most: int) -> Slots:
        """At most ``most`` slots that are not as of ``now_ms``: those with new tiles first."""
        stamps = self._stamps[: len(self)]
        found = np.flatnonzero(stamps == -1)[:most]
        if len(found) < most:
            of_before = np.flatnonzero((stamps != self._stamp(now_ms)) & (stamps != -1))
            found = np.concatenate([found, of_before[: most - len(found)]])
        return found

    def left(self, now_ms: int) -> int:
        """How many slots are not as of ``now_ms``."""
        return int(np.count_nonzero(self._stamps[: len(self)] != self._stamp(now_ms)))

    def unsent(self, most: int) -> Slots:
        """Slots whose counts have changed since the last :meth:`sent`."""
        return np.flatnonzero(self._unsent[: len(self)])[:most]

    def sent(self, slots: NDArray[Any]) -> None:
        """Marks slots as known to the replicas."""
        self._unsent[slots] = False

    def _stamp(self, ts_ms: int) -> int:
        """The unit of a time; a time exactly on a boundary counts as between two units."""
        unit_ms = self._windows.unit_ms
        return 2 * (ts_ms // unit_ms) + (ts_ms % unit_ms > 0)
