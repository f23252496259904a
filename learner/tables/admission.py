# core
"""Which new ids get a row: those seen a number of times (Monolith's filter; DeepRec's ``filter_freq``).

A count-min sketch of fixed size (Cormode and Muthukrishnan 2005) with conservative update counts ids that are not
admitted yet, so a stream of ids that never return costs no memory. Counts are halved from time to time: only recent
occurrences admit an id.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CELLS = 1 << 22
_HALVING = _CELLS // 4  # a quarter full: an id is taken for an earlier one in some 2% of cases
MOST_COUNTED = 3 * _HALVING
"""The largest sum of a row of counters: twice the halving, since less is left of all before, and a batch."""
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class Admission:
    """Admits an id at its ``threshold``-th occurrence. A threshold of 1 admits every id and needs no memory."""

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self.counts: NDArray[np.uint8] = np.zeros((2, _CELLS if threshold > 1 else 0), np.uint8)
        self.since = 0  # occurrences counted since the last halving

    def admits(self, ids: NDArray[np.int64], counts: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether each (absent, distinct) id would be admitted if it now occurred ``counts`` times. Reads only."""
        if self.threshold <= 1:
            return np.ones(len(ids), np.bool_)
        verdict: NDArray[np.bool_] = self._seen(ids) + counts >= self.threshold
        return verdict

    def count(self, ids: NDArray[np.int64], counts: NDArray[np.int32]) -> None:
        """Counts occurrences of ids that were not admitted."""
        if self.threshold <= 1 or not len(ids):
            return
        new = np.minimum(self._seen(ids) + counts, 255).astype(np.uint8)
        for row, cells in zip(self.counts, self._cells(ids), strict=True):
            np.maximum.at(row, cells, new)
        self.since += int(counts.sum())
        if self.since >= _HALVING:
            self.counts >>= np.uint8(1)
            self.since = 0

    def _cells(self, ids: NDArray[np.int64]) -> list[NDArray[np.intp]]:
        raw = ids.view(np.uint64)
        with np.errstate(over="ignore"):
            return [((raw * m) >> np.uint64(42)).astype(np.intp) for m in _MULTIPLIERS]

    def _seen(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        first, second = (row[cells] for row, cells in zip(self.counts, self._cells(ids), strict=True))
        seen: NDArray[np.int64] = np.minimum(first, second).astype(np.int64)
        return seen
