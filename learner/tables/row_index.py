# core
"""A collisionless map from 64-bit ids to rows of one array of records.

::

    slots (2^k,) int32   [ .. | ~2 | .. | ~0 | ~1 | .. ... ]               open addressing, at most 3/4 full; 0 is free
    data  (max_rows, W)  [ id id | embedding . . . | G | z | n | mark ]    a record is contiguous
                         [ id id | ...                                ]    id 0: the row is free

Two ids never share a row: the hash only gives the first slot to look at. Freed rows are used again. ``data`` is
reserved whole, but the system gives it memory only as rows are used, so growth neither moves nor copies it.

When the slots get too full, twice as many take over, in steps with each :meth:`Index.add`, so that no batch waits for
all of it. Meanwhile the home slot of an id decides where to look for it::

    slots   [ .. .. .. .. .. .. .. .. | ~7 .. ~3 ~5 ... ]       home before the bar: moved, look into ``next``
    next    [ ~2 .. .. ~0 .. ~1 .. .. .. ~4 ...         ]       (2^(k+1),)
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.tables import table_kernels
from millrace.basics.errors import SettingError
from millrace.basics.probing import EMPTY, FREE

Ids = NDArray[np.int64]
RowNumbers = NDArray[np.int32]
Columns = NDArray[Any]

_ID_WIDTH = 2  # float32 columns that an id takes
_FIRST_BITS = 11
_AT_ONCE_BITS = 16  # so few slots (some ms) are not worth a slow move
_PACE = 8  # slots moved for each id added (see kernels.move: 2 at least); so the new slots are not full before the end


def first_of_each(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Which elements of an ordered array differ from the one before. (``np.unique`` takes twenty times as long.)"""
    first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first


def _width(columns: dict[str, int]) -> int:
    """float32 columns of a record: an even number, so that ids are aligned."""
    width = _ID_WIDTH + sum(columns.values())
    return width + width % 2


def _bits(ids: int, least: int) -> int:
    """2^bits slots for so many ids."""
    while 4 * ids > 3 << least:
        least += 1
    return least


class Index:
    """Ids, their rows, and the record of each row. Raises SettingError where the system refuses to reserve the memory
    that ``max_rows`` would need. ``columns``: name and number of float32 columns of each part of a record, in order.
    ``max_rows``: rows that will ever be held; :meth:`add` gives no more than that."""

    def __init__(self, columns: dict[str, int], max_rows: int) -> None:
        self.max_rows = max_rows
        self.at = dict(zip(columns, accumulate(columns.values(), initial=_ID_WIDTH), strict=False))
        self._sizes, width = columns, _width(columns)
        try:
            self.data: NDArray[np.float32] = np.zeros((max_rows, width), np.float32)
        except MemoryError:
            raise SettingError(
                f"a table of {max_rows} rows needs {max_rows * width * 4 / 1e9:.1f} GB", "lower max_rows in the spec"
            ) from None
        self._words: Ids = self.data.view(np.int64)
        self.marks: NDArray[np.int32] = self.data.view(np.int32)
        self._used = 0  # rows below this have been in use
        self._free: RowNumbers = np.empty(0, np.int32)
        self._slots: RowNumbers
        self._next: RowNumbers  # the same array when nothing moves
        self._shift: int
        self._move = np.zeros(2, np.int64)  # slot where the move began, slots moved since
        self._rehash(_FIRST_BITS)

    def __len__(self) -> int:
        return self._used - len(self._free)

    @property
    def nbytes(self) -> int:
        slots = self._slots.nbytes + (self._next.nbytes if self._next is not self._slots else 0)
        return int(self._used * self.data.shape[1] * 4 + slots + self._free.nbytes)

    @property
    def used(self) -> int:
        """Rows below this number have been in use; those beyond never were."""
        return self._used

    @staticmethod
    def most_bytes(columns: dict[str, int], max_rows: int) -> int:
        """What :attr:`nbytes` is at most: with every row in use or freed again, while the last slots move."""
        return max_rows * 4 * (_width(columns) + 1) + (6 << _bits(max_rows, _FIRST_BITS))

    def ids_of(self, rows: RowNumbers) -> Ids:
        """Ids of rows; 0 where a row is free. A copy."""
        ids: Ids = self._words[rows, 0]
        return ids

    def column(self, name: str) -> NDArray[np.float32]:
        """A part of every record, as a view: (max_rows,) or, if wider than one, (max_rows, size)."""
        at, size = self.at[name], self._sizes[name]
        return self.data[:, at] if size == 1 else self.data[:, at : at + size]

    def width(self, name: str) -> int:
        """float32 columns of a part of the record."""
        return self._sizes[name]

    def find(self, ids: Ids) -> RowNumbers:
        """Row of each id, EMPTY (-1) where there is none. Reads only. (n,) int32"""
        out = np.empty(len(ids), np.int32)
        table_kernels.find(self._slots, self._shift, self._next, self._move, self._words, ids, out)
        return out

    def add(self, ids: Ids) -> RowNumbers:
        """New rows for ids that are absent, distinct and not 0; their records are zero. Where ``max_rows`` leaves no
        room for all, only the first ids get rows: (m,) with m <= n."""
        ids = ids[: max(0, self.max_rows - len(self))]
        again = self._free[len(self._free) - min(len(ids), len(self._free)) :][::-1]
        self._free = self._free[: len(self._free) - len(again)]
        fresh = np.arange(self._used, self._used + len(ids) - len(again), dtype=np.int32)
        self._used += len(fresh)
        self.data[again] = 0
        rows = np.concatenate([again, fresh])
        self._make_slots(len(ids))  # inserts the ids that are in the records, which do not have the new ones yet
        table_kernels.insert(self._slots, self._shift, self._next, self._move, self._words, ids, rows)
        return rows

    def find_or_add(self, ids: Ids) -> RowNumbers:
        """Row of each id (distinct, not 0); a new one where there is none, EMPTY where there is no room. (n,) int32"""
        rows = self.find(ids)
        absent = np.flatnonzero(rows == EMPTY)
        if len(absent):
            added = self.add(ids[absent])
            rows[absent[: len(added)]] = added
        return rows

    def remove(self, ids: Ids) -> None:
        """Frees the rows of these ids; ids that have none are ignored."""
        rows = np.empty(len(ids), np.int32)
        found = table_kernels.erase(self._slots, self._shift, self._next, self._move, self._words, ids, rows)
        self._free = np.concatenate([self._free, rows[:found]])

    def live(self, first: int = 0, last: int | None = None) -> RowNumbers:
        """Rows in use, in ascending order; of those from ``first`` to before ``last``."""
        last = self._used if last is None else min(last, self._used)
        out = np.empty(max(0, last - first), np.int32)
        return out[: table_kernels.live(self._words, first, last, out)]

    def rows(self) -> RowNumbers:
        """Rows in use, in ascending order of id, which does not depend on the order in which ids were added."""
        live = self.live()
        ordered: RowNumbers = live[np.argsort(self.ids_of(live))]
        return ordered

    def reserve(self, count: int) -> None:
        """Makes slots for ``count`` ids (``max_rows`` at most) at once, where they are expected."""
        bits = 64 - self._shift
        wanted = _bits(min(count, self.max_rows), bits)
        if wanted > bits:
            self._rehash(wanted)

    def _make_slots(self, coming: int) -> None:
        """Grows the slots where the present and the ``coming`` ids would fill more than three quarters of them."""
        bits = 64 - self._shift
        wanted = _bits(len(self), bits)
        moving = self._next is not self._slots
        if 8 * coming > len(self._slots) or bits < _AT_ONCE_BITS:
            if moving or wanted > bits:  # ids would come faster than slots move, or these are few
                self._rehash(max(wanted, bits + moving))
            return
        if not moving and wanted > bits:
            self._next = np.zeros(2 << bits, np.int32)  # the system gives it memory bit by bit, too
            self._move[:] = int(np.argmax(self._slots == FREE)), 0
            moving = True
        if moving:
            table_kernels.move(self._slots, self._shift, self._next, self._move, self._words, _PACE * coming)
            if self._move[1] >= len(self._slots):
                self._slots, self._shift = self._next, self._shift - 1
                self._move[:] = 0

    def _rehash(self, bits: int) -> None:
        self._slots = self._next = np.zeros(1 << bits, np.int32)
        self._shift = 64 - bits
        self._move[:] = 0
        rows = self.live()
        table_kernels.insert(self._slots, self._shift, self._next, self._move, self._words, self.ids_of(rows), rows)
