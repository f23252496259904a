# core
"""The item table and the click history of retrieval: items shown lately, items clicked lately, and who clicked them.

::

    table      entry   0      1      2      ...           (R,) distinct items, at most; the longest unseen makes room
               key     item   item   item                 value hash of the id
               cat, plain                                 the item's columns, as it was shown last
               clicks  0      2      1                    of the ring
    ring       [ 2, 1, 1, ... ]                           entries of the last clicks, the cache of negatives
    history    user ──► keys of the last H items clicked, with the times of their exposures
    pending    clicks that wait until a micro-batch is full, each with its user's history as it stood

Samples alone fill them, so a replay gives the same. All are bounded, and all are part of a snapshot: ``snapshot``
copies what is filled, and ``resume``, its inverse on an object of the same size, raises KeyError where an array is
missing and ValueError where one has another shape or impossible values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from learner.retrieval import retrievalkernels
from learner.retrieval.retrievalkernels import (
    HAND,
    RING_AT,
    RING_USED,
    USED,
    ClickArrays,
    ItemArrays,
    UserArrays,
)
from learner.tables.row_index import Ids
from millrace.versions.image import Array

U64 = NDArray[np.uint64]


class RecentItems:
    """The items that were shown lately (the item table), and the ring of the last clicks.

    Args:
        columns: C, of an item in ``cat``.
        plain: P, numbers of an item.
        items: R.
        ring: clicks of the ring; fewer than ``items``.
    """

    def __init__(self, columns: int, plain: int, items: int, ring: int) -> None:
        if ring >= items:
            raise ValueError(f"a ring of {ring} clicks for {items} items; give it fewer")
        self.shift = 63 - (items - 1).bit_length()
        self.keys: U64 = np.zeros(items, np.uint64)
        self.cat: Ids = np.zeros((items, columns), np.int64)
        self.plain: NDArray[np.float32] = np.zeros((items, plain), np.float32)
        self.shown: NDArray[np.bool_] = np.zeros(items, np.bool_)
        self.clicks: NDArray[np.int32] = np.zeros(items, np.int32)
        self.ring: NDArray[np.int32] = np.zeros(ring, np.int32)
        self.counts: Ids = np.zeros(4, np.int64)
        self.slots: NDArray[np.int32] = np.zeros(1 << (64 - self.shift), np.int32)
        self.arrays = ItemArrays(
            *(self.slots, self.keys[:, None], self.cat, self.plain),
            *(self.shown, self.clicks, self.ring, self.counts),
        )

    def __len__(self) -> int:
        return int(self.counts[USED])

    @property
    def nbytes(self) -> int:
        arrays = (self.keys, self.cat, self.plain, self.shown, self.clicks, self.ring, self.slots)
        return sum(a.nbytes for a in arrays)

    def entries(self, keys: U64) -> NDArray[np.int64]:
        """Entries of items by key, -1 where there is none. Same shape"""
        out = np.empty(keys.size, np.int64)
        retrievalkernels.entries_of(self.slots, self.shift, self.arrays.ids, keys.reshape(-1), out)
        return out.reshape(keys.shape)

    def snapshot(self) -> dict[str, Array]:
        n, r = len(self), int(self.counts[RING_USED])
        return {
            "keys": self.keys[:n].copy(),
            "cat": self.cat[:n].copy(),
            "plain": self.plain[:n].copy(),
            "shown": self.shown[:n].copy(),
            "ring": self.ring[:r].copy(),
            "counts": self.counts.copy(),
        }

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`, on an empty table."""
        n, ring, counts = len(state["keys"]), state["ring"], state["counts"]
        if n > len(self.keys) or len(ring) > len(self.ring):
            raise ValueError(f"a table of {n} items and {len(ring)} clicks")
        for name in ("keys", "cat", "plain", "shown"):
            _fill(getattr(self, name)[:n], state[name], name)
        _fill(self.ring[: len(ring)], ring, "ring")
        _fill(self.counts, counts, "counts")
        if counts[USED] != n or counts[RING_USED] != len(ring) or not 0 <= counts[RING_AT] < len(self.ring):
            raise ValueError("a table whose counts are not its own")
        if not 0 <= counts[HAND] < len(self.keys) or (len(ring) and not 0 <= ring.min() <= ring.max() < n):
            raise ValueError("a table with places that it does not have")
        self.clicks[:] = np.bincount(ring, minlength=len(self.clicks))
        self.slots[:] = 0
        retrievalkernels.enter(self.slots, self.shift, self.arrays.ids, np.arange(n))


class History:
    """The last clicks of the users who clicked lately. ``users``: the most users; a newcomer replaces the longest
    absent of the few at its possible places. ``length``: H, clicks of each."""

    def __init__(self, users: int, length: int) -> None:
        self.users: U64 = np.zeros(users, np.uint64)
        self.newest: Ids = np.zeros(users, np.int64)
        self.past: U64 = np.zeros((users, length), np.uint64)
        self.past_ms: Ids = np.zeros((users, length), np.int64)
        self.arrays = UserArrays(self.users, self.newest, self.past, self.past_ms)

    @property
    def nbytes(self) -> int:
        return self.users.nbytes + self.newest.nbytes + self.past.nbytes + self.past_ms.nbytes

    def snapshot(self) -> dict[str, Array]:
        at = np.flatnonzero(self.users)
        return {
            "at": at,
            "users": self.users[at],
            "newest": self.newest[at],
            "past": self.past[at],
            "past_ms": self.past_ms[at],
        }

    def resume(self, state: Mapping[str, Array]) -> None:
        at = state["at"]
        if len(at) and not 0 <= at.min() <= at.max() < len(self.users):
            raise ValueError("a history of more users")
        for name in ("users", "newest", "past", "past_ms"):
            array: Array = getattr(self, name)
            own = np.zeros((len(at), *array.shape[1:]), array.dtype)
            _fill(own, state[name], name)
            array[:] = 0
            array[at] = own


class Pending:
    """Clicks that wait for a micro-batch.

    Args:
        size: of a micro-batch.
        columns: C of a user.
        length: H, clicks of a history.
    """

    def __init__(self, size: int, columns: int, length: int) -> None:
        self.count = 0
        self.user: U64 = np.zeros(size, np.uint64)
        self.entry: Ids = np.zeros(size, np.int64)  # in the item table
        self.weight: NDArray[np.float32] = np.zeros(size, np.float32)
        self.cat: Ids = np.zeros((size, columns), np.int64)
        self.past: U64 = np.zeros((size, length), np.uint64)  # items that the user has clicked
        self.known: NDArray[np.bool_] = np.zeros((size, length), np.bool_)  # those that the page could have known
        self.arrays = ClickArrays(self.user, self.entry, self.weight, self.cat, self.past, self.known)

    def __len__(self) -> int:
        return self.count

    def snapshot(self) -> dict[str, Array]:
        return {name: getattr(self, name)[: self.count].copy() for name in _PENDING}

    def resume(self, state: Mapping[str, Array], items: int) -> None:
        """The inverse of :meth:`snapshot`, beside a table of so many items."""
        count, entry = len(state["user"]), state["entry"]
        if count > len(self.user) or (len(entry) and not 0 <= entry.min() <= entry.max() < items):
            raise ValueError(f"{count} pending clicks")
        for name in _PENDING:
            _fill(getattr(self, name)[:count], state[name], name)
        self.count = count


_PENDING = ("user", "entry", "weight", "cat", "past", "known")


def _fill(array: Array, values: Array, name: str) -> None:
    if values.shape != array.shape or values.dtype != array.dtype:
        raise ValueError(f"'{name}' is {values.dtype} {values.shape} in place of {array.dtype} {array.shape}")
    array[:] = values
