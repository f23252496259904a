# core
"""Compiled loops of :mod:`scorer.recall.neighbours`. Plain Python semantics, the GIL released.

Symbols: L lists (one of a partition and an item each), m neighbours in all of them, D = 7 days, R index rows, M = 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled

Array = NDArray[Any]


@compiled
def merge(
    rows: Array,
    order: Array,
    ends: Array,
    ages: Array,
    near: Array,
    counts: Array,
    weights: Array,
    out: Array,
    worths: Array,
) -> Any:
    """Sums the lists of each index row and keeps the best M neighbours, best first (of equals, the lower row).

    Args:
        rows: (L,) index row of each list; -1: unknown.
        order: (L,) lists by row.
        ends: (L,) where each list ends in ``near``.
        ages: (L,) days since the newest day of a list's counts.
        near: (m,) index rows of the neighbours; -1: unknown.
        counts: (m, D) by age.
        weights: (D,) of a click by its age.
        out, worths: (R, M) int32, which take the neighbours and what each is worth.

    Returns the number of neighbours of each row, (R,).
    """
    most, span = out.shape[1], len(weights)
    sizes = np.zeros(len(out), np.int32)
    found, worth = np.empty(len(near), np.int64), np.empty(len(near), np.int64)
    at = 0
    while at < len(order):
        row, n = rows[order[at]], 0
        while at < len(order) and rows[order[at]] == row:
            of = order[at]
            at += 1
            if row < 0:
                continue
            for k in range(ends[of - 1] if of > 0 else 0, ends[of]):
                total = np.int64(0)
                for d in range(span - ages[of]):
                    total += np.int64(counts[k, d]) * weights[d + ages[of]]
                if near[k] < 0 or near[k] == row or total == 0:
                    continue
                j = 0
                while j < n and found[j] != near[k]:
                    j += 1
                if j == n:
                    found[n], worth[n] = near[k], 0
                    n += 1
                worth[j] += total
        for k in range(min(n, most)):  # the best of what is left comes next
            best = k
            for j in range(k + 1, n):
                if worth[j] > worth[best] or (worth[j] == worth[best] and found[j] < found[best]):
                    best = j
            found[k], found[best] = found[best], found[k]
            worth[k], worth[best] = worth[best], worth[k]
            out[row, k], worths[row, k] = found[k], min(worth[k], 2**31 - 1)
        if row >= 0:
            sizes[row] = min(n, most)
    return sizes


@compiled
def interleaved(starts: Array, near: Array, rows: Array, most: Any) -> Any:
    """The first neighbour of each of ``rows``, then the second of each, and so on: distinct, none of ``rows``, at most
    ``most``. Unknown rows have none."""
    out, n, rank, left = np.empty(most, np.int64), 0, 0, True
    while left and n < most:
        left = False
        for row in rows:
            if row < 0 or row + 1 >= len(starts) or starts[row] + rank >= starts[row + 1]:
                continue
            left = True
            candidate = np.int64(near[starts[row] + rank])
            new = True
            for other in rows:
                new = new and other != candidate
            for k in range(n):
                if out[k] == candidate:
                    new = False
                    break
            if new and n < most:
                out[n] = candidate
                n += 1
        rank += 1
    return out[:n].copy()
