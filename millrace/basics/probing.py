# core
"""Hash tables with open addressing: the one linear probing of all compiled loops.

A table has 2^k slots, and some are always free. It has one of two forms, and zeros are an empty table of either, so
what the system gives needs no filling::

    keys  (2^k,)         [ . | key | key | . | key ]    the key itself; 0 is free           place, vacate
    slots (2^k,) int32   [ . | ~2  | ~0  | . | ~1  ]    a row; its key is ``keys[row]``     slot_of, seek, put, take_out

Key 0 is none; a search for it in the first form ends at a free slot. A search begins at the key's home, which is the
caller's: :func:`home_slot`, or :func:`home_of` where the table's size is at hand and its shift is not. What a table
keeps beside its keys, and when it grows, is the caller's too.

Searches are inlined as machine code (``forceinline``), not as source: so arrays are borrowed, and numba counts no
references to them within the caller's loop. Their loops have one exit for the same reason. It is up to twice as fast.

Slots that other processes read while one writes, without a lock, have functions of their own (:func:`seek_beside`,
:func:`slot_and_hole`). There a slot goes from free to a row, from a row to :data:`GONE`, and from that to a row again,
but never back to free. So a concurrent search for a key passes all changes of other keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import GOLDEN

Array = NDArray[Any]

EMPTY = -1  # the row of a key that has none
FREE = 0  # a slot that holds no row; others hold ``~row``, below 0
GONE = 1  # a slot whose row went while others may read


@njit(forceinline=True)
def home_slot(key: Any, shift: Any) -> Any:
    """The first slot to search for a key in a table of 2^(64 - shift) slots: multiplicative (Fibonacci) hashing. Keys
    are hashes already; small ones are spread too."""
    return np.int64((np.uint64(key) * GOLDEN) >> np.uint64(shift))


@njit(forceinline=True)
def home_of(key: Any, size: Any) -> Any:
    """As :func:`home_slot`, in a table of ``size`` slots, at most 2^32."""
    return home_slot(key, 32) & (size - 1)


@njit(forceinline=True)
def _may_move(at: Any, home: Any, hole: Any, mask: Any) -> Any:
    """Whether what is at ``at`` may go into a hole before it: unless its home lies (cyclically) after the hole."""
    return ((at - home) & mask) >= ((at - hole) & mask)


# -- keys in the table itself -----------------------------------------------------------------------------------------


@njit(forceinline=True)
def place(keys: Any, at: Any, key: Any) -> Any:
    """Where a key whose home is ``at`` stands, or the free place for it."""
    while keys[at] != 0 and keys[at] != key:
        at = (at + 1) & (len(keys) - 1)
    return at


@njit(nogil=True)
def vacate(table: Array, hole: int, shift: int) -> None:
    """Empties a place of a table (2^k, 2) of keys and what belongs to them, and moves those after it back, so that no
    tombstone is needed."""
    at, mask = hole, len(table) - 1
    while True:
        at = (at + 1) & mask
        if table[at, 0] == 0:
            break
        if _may_move(at, home_slot(table[at, 0], shift), hole, mask):
            table[hole, 0], table[hole, 1] = table[at, 0], table[at, 1]
            hole = at
    table[hole, 0] = table[hole, 1] = 0


# -- rows in the table, their keys elsewhere --------------------------------------------------------------------------


@njit(forceinline=True)
def slot_of(slots: Any, at: Any, keys: Any, key: Any) -> Any:
    """The slot with the row of a key whose home is ``at``, or the free one for it."""
    while slots[at] != FREE and keys[~slots[at]] != key:
        at = (at + 1) & (len(slots) - 1)
    return at


@njit(forceinline=True)
def seek(slots: Any, at: Any, keys: Any, key: Any) -> Any:
    """Row of a key whose home is ``at``, or EMPTY."""
    return ~slots[slot_of(slots, at, keys, key)]


@njit(forceinline=True)
def put(slots: Any, at: Any, row: Any) -> None:
    """Enters the row of an absent key whose home is ``at``."""
    while slots[at] != FREE:
        at = (at + 1) & (len(slots) - 1)
    slots[at] = ~row


@njit(nogil=True)
def take_out(slots: Array, at: int, shift: int, keys: Array, key: Any) -> int:
    """Frees row and slot of a key whose home is ``at``, shifting followers back to need no tombstone. Returns the row,
    or EMPTY."""
    hole, mask = slot_of(slots, at, keys, key), len(slots) - 1
    taken = ~slots[hole]
    if taken == EMPTY:
        return EMPTY
    keys[taken] = 0
    at = hole
    while True:
        at = (at + 1) & mask
        if slots[at] == FREE:
            break
        if _may_move(at, home_slot(keys[~slots[at]], shift), hole, mask):
            slots[hole] = slots[at]
            hole = at
    slots[hole] = FREE
    return int(taken)


# -- the same, read while they are written ----------------------------------------------------------------------------


@njit(forceinline=True)
def seek_beside(slots: Any, at: Any, keys: Any, key: Any) -> Any:
    """Row of a key whose home is ``at``, or EMPTY. It reads each slot once, and ends, whatever another process does to
    the slots."""
    left, held = len(slots), slots[at]
    while left > 0 and held != FREE and (held == GONE or keys[~held] != key):
        at = (at + 1) & (len(slots) - 1)
        left, held = left - 1, slots[at]
    return ~held if left > 0 else EMPTY


@njit(forceinline=True)
def slot_and_hole(slots: Any, at: Any, keys: Any, key: Any) -> Any:
    """For the one that writes, of a key whose home is ``at``: its slot, or the free one for it; its row, or EMPTY; and
    the first slot before it whose row went, or EMPTY."""
    hole, held = EMPTY, slots[at]
    while held != FREE and (held == GONE or keys[~held] != key):
        if held == GONE and hole == EMPTY:
            hole = at
        at = (at + 1) & (len(slots) - 1)
        held = slots[at]
    return at, ~held, hole
