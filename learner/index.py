# core
"""A collisionless map from 64-bit ids to rows of one array of records.

::

    slots (2^k,) int32   [ -1 | 2 | -1 | 0 | 1 | -1 ... ]                  open addressing, at most 3/4 full
    data  (max_rows, W)  [ id id | embedding . . . | G | z | n | mark ]    a record is contiguous
                         [ id id | ...                                ]    id 0: the row is free

Two ids never share a row: the hash only says where to look first. Rows that were freed are used again. ``data`` is
reserved whole, but the system gives it memory only as rows are used. So it is neither moved nor copied when it grows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner import kernels
from learner.kernels import EMPTY
from millrace.contracts.errors import SettingError

Ids = NDArray[np.int64]
RowNumbers = NDArray[np.int32]
Columns = NDArray[Any]

_ID_WIDTH = 2  # float32 columns that an id takes
_FIRST_BITS = 11


class Index:
    """Ids, their rows, and the record of each row.

    Args:
        columns: name and number of float32 columns of each part of a record, in order.
        max_rows: rows that will ever be held; :meth:`add` gives no more than that.

    Raises:
        SettingError: the system refuses to reserve the memory that ``max_rows`` would need.
    """

    def __init__(self, columns: dict[str, int], max_rows: int) -> None:
        self.max_rows = max_rows
        self.at: dict[str, int] = {}
        width = _ID_WIDTH
        for name, size in columns.items():
            self.at[name] = width
            width += size
        self._sizes = columns
        width += width % 2  # so that ids are aligned
        try:
            self.data: NDArray[np.float32] = np.zeros((max_rows, width), np.float32)
        except MemoryError:
            raise SettingError(
                f"a table of {max_rows} rows needs {max_rows * width * 4 / 1e9:.1f} GB", "lower max_rows in the spec"
            ) from None
        self._words: Ids = self.data.view(np.int64)
        self.marks: NDArray[np.int32] = self.data.view(np.int32)
        self._used = 0  # rows below this were given out at least once
        self._free: RowNumbers = np.empty(0, np.int32)
        self._slots: RowNumbers
        self._shift: int
        self._rehash(_FIRST_BITS)

    def __len__(self) -> int:
        return self._used - len(self._free)

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        return int(self._used * self.data.shape[1] * 4 + self._slots.nbytes + self._free.nbytes)

    def ids_of(self, rows: RowNumbers) -> Ids:
        """Ids of rows; 0 where a row is free. A copy."""
        ids: Ids = self._words[rows, 0]
        return ids

    def column(self, name: str) -> NDArray[np.float32]:
        """A part of every record, as a view: (max_rows,) or, if wider than one, (max_rows, size)."""
        at, size = self.at[name], self._sizes[name]
        return self.data[:, at] if size == 1 else self.data[:, at : at + size]

    def find(self, ids: Ids) -> RowNumbers:
        """Row of each id, EMPTY (-1) where there is none. Reads only. (n,) int32"""
        out = np.empty(len(ids), np.int32)
        kernels.find(self._slots, self._shift, self._words, ids, out)
        return out

    def add(self, ids: Ids) -> RowNumbers:
        """New rows for ids that are absent, distinct and not 0; their records are zero.

        Returns rows for the first ids only when ``max_rows`` leaves no room for all: (m,) with m <= n.
        """
        ids = ids[: max(0, self.max_rows - len(self))]
        again = self._free[len(self._free) - min(len(ids), len(self._free)) :][::-1]
        self._free = self._free[: len(self._free) - len(again)]
        fresh = np.arange(self._used, self._used + len(ids) - len(again), dtype=np.int32)
        self._used += len(fresh)
        self.data[again] = 0
        rows = np.concatenate([again, fresh])
        bits = 64 - self._shift
        while 4 * len(self) > 3 << bits:
            bits += 1
        if bits != 64 - self._shift:
            self._rehash(bits)  # inserts the ids that are in the records, which do not have the new ones yet
        kernels.insert(self._slots, self._shift, self._words, ids, rows)
        return rows

    def remove(self, ids: Ids) -> None:
        """Frees the rows of these ids; ids that have none are ignored."""
        ids = np.unique(ids)
        rows = self.find(ids)
        present = rows != EMPTY
        kernels.erase(self._slots, self._shift, self._words, ids[present])
        self._free = np.concatenate([self._free, rows[present]])

    def live(self) -> RowNumbers:
        """Rows in use, in an undefined order."""
        return np.flatnonzero(self._words[: self._used, 0]).astype(np.int32)

    def rows(self) -> RowNumbers:
        """Rows in use, in ascending order of id, which does not depend on the order in which ids were added."""
        live = self.live()
        ordered: RowNumbers = live[np.argsort(self.ids_of(live), kind="stable")]
        return ordered

    def _rehash(self, bits: int) -> None:
        self._slots = np.full(1 << bits, EMPTY, np.int32)
        self._shift = 64 - bits
        rows = self.live()
        kernels.insert(self._slots, self._shift, self._words, self.ids_of(rows), rows)
