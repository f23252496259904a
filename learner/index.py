"""A collisionless map from 64-bit ids to rows of growable arrays.

::

    slots (2^k,) int32   [ -1 | 2 | -1 | 0 | 1 | -1 ... ]     open addressing, at most 3/4 full
    ids   (capacity,)    [ a , b , c , 0 , 0 ... ]            id of a row; 0: the row is free
    columns              [ whatever lies at a row ]           grown together with ids, in place

Two ids never share a row: the hash only says where to look first. Rows that were freed are used again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner import kernels
from learner.kernels import EMPTY

Ids = NDArray[np.int64]
RowNumbers = NDArray[np.int32]

_FIRST_ROWS = 1024


class Index:
    """Ids, their rows, and the columns that live and die with a row.

    Args:
        columns: per-row shape and type of each column, for instance ``{"embedding": ((16,), np.float32)}``.
        max_rows: rows that will ever be held; :meth:`add` gives no more than that.
    """

    def __init__(self, columns: dict[str, tuple[tuple[int, ...], Any]], max_rows: int) -> None:
        self.max_rows = max_rows
        capacity = min(_FIRST_ROWS, max_rows)
        self.ids: Ids = np.zeros(capacity, np.int64)
        self.columns = {name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in columns.items()}
        self._used = 0  # rows below this were given out at least once
        self._free: RowNumbers = np.empty(0, np.int32)
        self._slots: RowNumbers
        self._shift: int
        self._rehash(11)

    def __len__(self) -> int:
        return self._used - len(self._free)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        columns = sum(c.nbytes for c in self.columns.values())
        return int(columns + self.ids.nbytes + self._slots.nbytes + self._free.nbytes)

    def find(self, ids: Ids) -> RowNumbers:
        """Row of each id, EMPTY (-1) where there is none. Reads only. (n,) int32"""
        out = np.empty(len(ids), np.int32)
        kernels.find(self._slots, self._shift, self.ids, ids, out)
        return out

    def add(self, ids: Ids) -> RowNumbers:
        """New rows for ids that are absent, distinct and not 0; their columns are zero.

        Returns rows for the first ids only when ``max_rows`` leaves no room for all: (m,) with m <= n.
        """
        ids = ids[: max(0, self.max_rows - len(self))]
        again = self._free[len(self._free) - min(len(ids), len(self._free)) :][::-1]
        self._free = self._free[: len(self._free) - len(again)]
        fresh = np.arange(self._used, self._used + len(ids) - len(again), dtype=np.int32)
        self._used += len(fresh)
        self._reserve(self._used)
        rows = np.concatenate([again, fresh])
        for column in self.columns.values():
            column[again] = 0
        bits = 64 - self._shift
        while 4 * len(self) > 3 << bits:
            bits += 1
        if bits != 64 - self._shift:
            self._rehash(bits)  # inserts what ids hold: not yet the new ones
        kernels.insert(self._slots, self._shift, self.ids, ids, rows)
        return rows

    def remove(self, ids: Ids) -> None:
        """Frees the rows of these ids; ids that have none are ignored."""
        ids = np.unique(ids)
        rows = self.find(ids)
        present = rows != EMPTY
        kernels.erase(self._slots, self._shift, self.ids, ids[present])
        self._free = np.concatenate([self._free, rows[present]])

    def rows(self) -> RowNumbers:
        """Rows in use, in ascending order of id: an order that does not depend on how they came to be."""
        live = np.flatnonzero(self.ids[: self._used]).astype(np.int32)
        ordered: RowNumbers = live[np.argsort(self.ids[live], kind="stable")]
        return ordered

    def _reserve(self, rows: int) -> None:
        """Grows by an eighth. ``resize`` is ``realloc``: large blocks move by remapping, not by copying."""
        capacity = len(self.ids)
        if rows <= capacity:
            return
        while capacity < rows:
            capacity += capacity // 8 + _FIRST_ROWS
        capacity = max(rows, min(capacity, self.max_rows))
        self.ids.resize(capacity, refcheck=False)
        for column in self.columns.values():
            column.resize((capacity, *column.shape[1:]), refcheck=False)

    def _rehash(self, bits: int) -> None:
        self._slots = np.full(1 << bits, EMPTY, np.int32)
        self._shift = 64 - bits
        rows = np.flatnonzero(self.ids[: self._used]).astype(np.int32)
        kernels.insert(self._slots, self._shift, self.ids, self.ids[rows], rows)
