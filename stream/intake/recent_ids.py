# core
"""The recent event ids: exact on 64 bits, bounded, and without work to forget.

::

    add ──► young  [ . h . . h h . ... ]     full: it becomes the old one, which is let go
            old    [ h . h h . . h ... ]     an id is known that is in one of the two

Each half is a hash table with open addressing over one array of 64-bit numbers: 8 bytes a slot, half of the slots
used (a Python set takes some sixty bytes an id). So the memory knows at least the newest ``capacity`` ids, at most
twice as many. The system gives memory to an array as ids come.
"""

from __future__ import annotations

import mmap

CAPACITY = 1_000_000


class IdMemory:
    """Not thread-safe.

    >>> memory = IdMemory(capacity=2)
    >>> for one in (11, 12, 13):
    ...     memory.add(one)
    >>> 12 in memory, 13 in memory, 14 in memory
    (True, True, False)

    Args:
        capacity: how many of the newest ids are known at least.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._mask = (1 << (2 * capacity).bit_length()) - 1  # more than twice as many slots: a search ends soon
        self._young, self._old = self._empty(), self._empty()
        self._count = 0  # in the young half

    def __contains__(self, hashed: int) -> bool:
        return self._slot(self._young, hashed) < 0 or self._slot(self._old, hashed) < 0

    def add(self, hashed: int) -> None:
        """Remembers an id's hash: 1 to 2^64 - 1."""
        slot = self._slot(self._young, hashed)
        if slot < 0:
            return
        if self._count >= self._capacity:
            self._old, self._young, self._count = self._young, self._empty(), 0
            slot = hashed & self._mask
        self._young[slot] = hashed
        self._count += 1

    def _slot(self, table: memoryview[int], hashed: int) -> int:
        """The slot for the hash; -1: it is there already."""
        mask, slot = self._mask, hashed & self._mask
        while found := table[slot]:
            if found == hashed:
                return -1
            slot = (slot + 1) & mask
        return slot

    def _empty(self) -> memoryview[int]:
        return memoryview(mmap.mmap(-1, 8 * (self._mask + 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).cast("Q")
