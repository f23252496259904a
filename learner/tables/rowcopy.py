# core
"""How far a table has been copied in slices while it is written to."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.tables.row_index import Ids, Index, RowNumbers, first_of_each
from learner.tables.table_kernels import AGAIN

_ALL = 2**31 - 1
_SOME = 100_000  # rows and ids that may always be kept track of: a megabyte


class RowCopy:
    """Tracks which rows a copy has, and which of them changed since. The table reports its changes.

    Attributes:
        copied: rows below this number are in a part. A later row is copied at its turn, whatever happens to it before.
        ended: tracking has stopped: another copy has begun, or the parts were not taken.
    """

    def __init__(self, index: Index, mark: int) -> None:
        self._index, self._mark = index, mark
        self.copied = 0
        self.ended = False
        self._again: list[RowNumbers] = []
        self._gone: list[Ids] = []

    def touched(self, rows: RowNumbers) -> None:
        """Reports copied rows that were written to, and have their mark."""
        self._again.append(rows)

    def removed(self, ids: Ids) -> None:
        """Reports ids that have no row any more."""
        self._gone.append(ids)
        if self.behind > max(_SOME, 4 * self._index.max_rows):  # the parts are not taken: memory has a bound
            self.end()

    @property
    def behind(self) -> int:
        """Rows and ids that changed since a part had them."""
        return sum(map(len, self._again)) + sum(map(len, self._gone))

    @property
    def whole(self) -> bool:
        """Whether every row has been copied at least one time."""
        return self.copied == _ALL

    def take(self, most: int, again: bool) -> tuple[RowNumbers, Ids]:
        """The rows of the next part, and the ids that are removed with it; at most ``most`` in all. Removed ids come
        first, and rows only with the last of them. So an id that came back is in no part before the one that removes
        it; and the parts never hold rows of two different moments, more than the table had room for. ``again``: rows
        that were touched behind the copy, not new ones."""
        index = self._index
        gone = _some(self._gone, most, np.int64)
        left = most - len(gone)  # 0 while more ids wait
        if again:
            rows = np.sort(_some(self._again, left, np.int32))
            rows = rows[first_of_each(rows) & (index.ids_of(rows) != 0)]
            index.marks[rows, self._mark] &= ~AGAIN
        else:
            end = min(self.copied + left, index.used)
            rows = index.live(self.copied, end)
            self.copied = _ALL if end >= index.used else end
        return rows, gone

    def end(self) -> None:
        for rows in self._again:
            self._index.marks[rows, self._mark] &= ~AGAIN
        self._again, self._gone = [], []
        self.copied, self.ended = 0, True


def _some(lists: list[Any], most: int, dtype: type) -> Any:
    """Takes arrays off a list, until they have ``most`` numbers or it is empty; cuts one in two where need be."""
    taken: list[Any] = [np.empty(0, dtype)]
    while lists and most > 0:
        array = lists.pop()
        if len(array) > most:
            lists.append(array[most:])
            array = array[:most]
        taken.append(array)
        most -= len(array)
    return np.concatenate(taken)
