# core
"""The compiled loops of :mod:`stream.partition.coclick_counts`. Plain Python semantics, the GIL released.

Symbols: R rows (items), M = 16 places of a row, D = 7 days, S = 2^k slots of the hash. A row's neighbours fill its
first ``filled`` places, in no order. Column ``day % D`` of the counts belongs to ``day``; ``when`` is the number of
the last counted pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.basics.probing import EMPTY, FREE, home_slot, put, slot_of

Array = NDArray[Any]

_FULL = 65_535


class CoClickRows(NamedTuple):
    """What is kept of items, R rows."""

    items: Array  # (R,) uint64
    filled: Array  # (R,) neighbours
    touched: Array  # (R,) when a pair was counted last: twice its number, and which side of it
    changed: Array  # (R,) bool
    near: Array  # (R, M) neighbours
    counts: Array  # (R, M, D)
    when: Array  # (R, M)


@njit(inline="always")
def _score(counts: Any, worths: Any) -> Any:
    """A neighbour's worth by its counts (D,), given the worth of a click in each column."""
    total = np.int64(0)
    for d in range(len(worths)):
        total += np.int64(counts[d]) * worths[d]
    return total


@njit(inline="always")
def _wear(counts: Any, day: Any) -> None:
    for age in range(len(counts) - 1, -1, -1):
        at = (day - age) % len(counts)
        if counts[at] > 0:
            counts[at] -= 1
            return


@njit(inline="always")
def _count(
    near: Any, counts: Any, when: Any, filled: Any, other: Any, column: Any, day: Any, clock: Any, worths: Any
) -> Any:
    """Counts ``other`` as a neighbour of a row with ``near`` (M,), ``counts`` (M, D) and ``when`` (M,). Returns the
    number of neighbours. For full rows see :mod:`stream.partition.coclick_counts`."""
    at: Any = np.int64(0)
    while at < filled and near[at] != other:
        at += 1
    if at == filled:
        if filled == len(near):
            at = np.int64(0)
            least = _score(counts[0], worths)
            for k in range(1, filled):
                worth = _score(counts[k], worths)
                if worth < least or (worth == least and when[k] < when[at]):
                    least, at = worth, k
            if least > worths[column]:
                _wear(counts[at], day)
                return filled
        else:
            filled += 1
        near[at] = other
        counts[at, :] = 0
    if counts[at, column] < _FULL:
        counts[at, column] += 1
    when[at] = clock
    return filled


@compiled
def pairs(clicked: Array, times: Array, sizes: Array, before: Array, before_ms: Array, within_ms: Any) -> Any:
    """Pairs of each clicked item (n,) with its user's earlier clicks: ``sizes`` (n,) of them each, newest first, in
    ``before`` and ``before_ms`` (m,). Those within ``within_ms`` count, each other item once.

    Returns:
        Pairs (p, 2) and their times (p,).
    """
    out, out_ms = np.empty((len(before), 2), np.uint64), np.empty(len(before), np.int64)
    p = start = 0
    for i in range(len(clicked)):
        for j in range(start, start + sizes[i]):
            new = before[j] != clicked[i] and before_ms[j] > times[i] - within_ms
            for k in range(start, j):
                new = new and before[k] != before[j]
            if new:
                out[p, 0], out[p, 1], out_ms[p] = clicked[i], before[j], times[i]
                p += 1
        start += sizes[i]
    return out[:p], out_ms[:p]


@compiled
def count(
    slots: Array,
    shift: Any,
    rows: CoClickRows,
    used: Any,
    clock: Any,
    pairs: Array,
    days: Array,
    first: Any,
    day: Any,
    weights: Array,
) -> Any:
    """Counts the pairs (n, 2) from ``first`` on, each both ways, until all are counted or there is no room for two more
    rows.

    Args:
        slots: where the row of an item is; ``used`` rows are taken.
        clock: number of the last counted pair.
        days: (n,) of each pair.
        day: the newest.
        weights: (D,) worth of a click by its age.

    Returns:
        The first pair that is not counted, the rows taken, the number of the last pair.
    """
    items, filled, touched, changed, near, counts, when = rows
    n, span = len(pairs), len(weights)
    worths = np.empty(span, np.int64)  # by column
    for age in range(span):
        worths[(day - age) % span] = weights[age]
    while first < n:
        of_day = days[first]
        if day - of_day >= span:
            first += 1
            continue
        if used + 2 > len(items):
            break
        clock += 1
        for side in range(2):
            item, other = pairs[first, side], pairs[first, 1 - side]
            at = slot_of(slots, home_slot(item, shift), items, item)
            row = ~slots[at]
            if row == EMPTY:
                row = used
                slots[at] = ~row
                items[row], filled[row] = item, 0
                used += 1
            filled[row] = _count(
                near[row], counts[row], when[row], np.int64(filled[row]), other, of_day % span, day, clock, worths
            )
            touched[row], changed[row] = 2 * clock + side, True
        first += 1
    return first, used, clock


@compiled
def settle(filled: Array, near: Array, counts: Array, when: Array, used: Any) -> None:
    """Drops neighbours without counts; the others close up."""
    for row in range(used):
        kept = 0
        for k in range(filled[row]):
            lives = False
            for d in range(counts.shape[2]):
                lives = lives or counts[row, k, d] > 0
            if lives:
                if kept < k:
                    near[row, kept], when[row, kept] = near[row, k], when[row, k]
                    for d in range(counts.shape[2]):
                        counts[row, kept, d] = counts[row, k, d]
                kept += 1
        filled[row] = kept


@compiled
def index(slots: Array, shift: Any, items: Array, used: Any) -> None:
    slots[:] = FREE
    for row in range(used):
        put(slots, home_slot(items[row], shift), row)


@compiled
def gather(rows: Array, filled: Array, near: Array, counts: Array, when: Array, columns: Array) -> Any:
    """The neighbours of some rows one after another: ``near`` (m,), ``counts`` (m, D) with the days in the order of
    ``columns`` (D,), ``when`` (m,)."""
    m = 0
    for row in rows:
        m += filled[row]
    span = len(columns)
    out, days, last = np.empty(m, np.uint64), np.empty((m, span), np.uint16), np.empty(m, np.int64)
    at = 0
    for row in rows:
        for k in range(filled[row]):
            out[at], last[at] = near[row, k], when[row, k]
            for d in range(span):
                days[at, d] = counts[row, k, columns[d]]
            at += 1
    return out, days, last


@compiled
def keep(kept: Array, rows: CoClickRows) -> None:
    """Moves the ``kept`` rows, which ascend, to the front."""
    items, filled, touched, changed, near, counts, when = rows
    for to in range(len(kept)):
        row = kept[to]
        if row == to:
            continue
        items[to], touched[to], changed[to], filled[to] = items[row], touched[row], changed[row], filled[row]
        for k in range(filled[row]):
            near[to, k], when[to, k] = near[row, k], when[row, k]
            for d in range(counts.shape[2]):
                counts[to, k, d] = counts[row, k, d]
