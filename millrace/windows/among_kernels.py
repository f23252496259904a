# core
"""Numbers of an item in relation to the other candidates of its page. Compiled loops.

::

    set       the m candidates that a page is made of: live, those that recall found; in a log, the rows of one page
              and time; for /score, the items sent
    s         (m,) a number of theirs, ascending: s_1 .. s_m
    v         the same number of an item, mostly one of the set

    rank      (r - 1) / (m - 1)    r: the mean place of v in s, which equal values share; .5 where m is 1
    of_mean   v / mean(s)          1 where the mean is 0
    of_max    v / s_m              1 where the largest is 0
    count     m

A page may also have items that are not of its set: those of a random page, or of a later part of a list. A value that
lies between s_k and s_k+1 has the place k + .5. Nothing leaves the range of a member: ``rank`` and ``of_max`` end at 1,
``of_mean`` at m. In ratios a negative value counts as 0.

Sums are taken over ascending values in float64, so the order of candidates changes no bit.

Symbols: n items, m members of a set, G numbers that are compared, C columns made of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled

Array = NDArray[Any]

RANK, OF_MEAN, OF_MAX, COUNT = 0, 1, 2, 3
FORMS = {"rank": RANK, "of_mean": OF_MEAN, "of_max": OF_MAX, "count": COUNT}


@compiled(error_model="numpy")
def _ranks(values: Array, s: Array, place: Array, out: Array) -> None:
    """Writes the ranks ``out`` (n,) of ``values`` (n,). ``place`` (m,): of each value of s, from 0. A binary search
    takes each step for all values, so that the compiler runs many at a time: one value after another costs five times
    as much, in branches that no processor can guess."""
    n, m = len(values), len(s)
    below, size = np.zeros(n, np.int32), m  # how many members are smaller, but for the last step
    while size > 1:
        half = np.int32(size >> 1)
        for i in range(n):
            below[i] += half * np.int32(s[below[i] + half - 1] < values[i])
        size -= size >> 1
    for i in range(n):
        at = below[i] + np.int32(s[below[i]] < values[i])
        found = place[at] if at < m and s[at] == values[i] else at - 0.5
        out[i] = min(max(found / (m - 1), 0.0), 1.0)


@compiled(error_model="numpy")
def _fill(values: Array, s: Array, place: Array, mean: float, largest: float, form: int, out: Array) -> None:
    """One column: ``out`` (n,) for ``values`` (n,)."""
    n, m = len(values), np.float64(len(s))
    if form == RANK and m > 1:
        _ranks(values, s, place, out)
    elif form == OF_MEAN and mean > 0:
        for i in range(n):
            out[i] = min(max(np.float64(values[i]), 0.0) / mean, m)
    elif form == OF_MAX and largest > 0:
        for i in range(n):
            out[i] = min(max(np.float64(values[i]), 0.0) / largest, 1.0)
    else:
        out[:n] = m if form == COUNT else 0.5 if form == RANK else 1.0


def ascending(values: Array) -> Array:
    """The columns of ``values`` (m, G), each sorted: (G, m) float32. All that is kept of a set."""
    return np.sort(np.ascontiguousarray(values.T), axis=1)


@compiled(error_model="numpy")
def measure(values: Array, kept: Array, wanted: Array, out: Array) -> None:
    """Writes ``out`` (n, C) float32 for ``values`` (n, G) float32, measured against the set ``kept`` (G, m) of
    :func:`ascending`. ``wanted``: (C, 2) which of the G, and which form. Values are finite."""
    m = kept.shape[1]
    place = np.empty(m, np.float64)
    for g in range(len(kept)):
        s = kept[g]
        total, first = 0.0, 0
        for i in range(m):
            total += max(np.float64(s[i]), 0.0)
            if i + 1 == m or s[i + 1] != s[i]:  # a run of equal values ends: all have its mean place, from 0
                for j in range(first, i + 1):
                    place[j] = 0.5 * (first + i)
                first = i + 1
        mean, largest = total / max(m, 1), max(np.float64(s[m - 1]), 0.0) if m > 0 else 0.0
        for c in range(len(wanted)):
            if wanted[c, 0] == g:
                _fill(values[:, g], s, place, mean, largest, wanted[c, 1], out[:, c])


@compiled(error_model="numpy")
def among(values: Array, starts: Array, wanted: Array, out: Array) -> None:
    """Writes ``out`` (n, C) for ``values`` (n, G) of whole sets, one behind another: set r has the rows from
    ``starts[r]`` up to ``starts[r + 1]``, (R + 1,)."""
    for r in range(len(starts) - 1):
        own = values[starts[r] : starts[r + 1]]
        kept = np.empty((own.shape[1], len(own)), np.float32)
        for g in range(len(kept)):
            kept[g] = own[:, g]
            kept[g].sort()
        measure(own, kept, wanted, out[starts[r] : starts[r + 1]])
