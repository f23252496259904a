# core
"""Compiled loops of recall, which merge the sources' lists into one page's candidates.

::

    lists (m,)  [ vectors .... | liked ... | coclicked . | hot ..... | new ... ]     each best first
    starts (S + 1,)

    round 1    each source gives its share of `size`, without the items of earlier sources
    round 2    the first `fillers` sources fill the shortage by their shares, as far as they have more; and so on
    then       the other sources that have more, by their shares; and so on
    at last    random ones of all that is left; then what is `late`

Items are rows of the index. Draws are SplitMix64's (Steele, Lea and Flood, OOPSLA 2014): a number for each count,
without state, so the same seed draws the same. Reference in plain Python: ``tests/scorer/recall/plain_recall.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import GOLDEN, compiled, split_mix
from millrace.basics.probing import home_of, place

Array = NDArray[Any]


@njit(inline="always")
def _drawn(seed: Any, count: Any, below: Any) -> Any:
    return np.int64(split_mix(seed + np.uint64(count + 1) * GOLDEN) % np.uint64(below))


@njit(inline="always")
def _place(table: Array, row: Any) -> Any:
    """Position of ``row`` in the hash table of rows + 1, or the free position for it."""
    return place(table, home_of(row, len(table)), row + 1)


@compiled
def merge(
    lists: Array,
    starts: Array,
    shares: Array,
    fillers: Any,
    living: Array,
    alive: Array,
    late: Array,
    seed: Any,
    rows: Array,
    sources: Array,
) -> Any:
    """Fills ``rows`` and ``sources`` (size,) with distinct living rows; returns how many there are.

    Args:
        lists, starts: see above.
        shares: (S + 1,) of the sources, then of chance. A source with share 0 gives nothing.
        fillers: so many of the first sources fill a shortage; the others keep to their shares meanwhile.
        living: rows that chance draws from; more than ``size``.
        alive: by row; dead rows are skipped.
        late: distinct rows that come only where nothing else is left, in this order.
        seed: uint64.
        sources: of each row, 1 + the number of its source; S + 1 also for what comes at last.
    """
    size, chance = len(rows), len(starts) - 1
    room = 16
    while room < 4 * (size + len(late)):
        room *= 2
    table = np.zeros(room, np.int64)
    for row in late:
        table[_place(table, row)] = row + 1
    at, over = starts[:-1].copy(), shares <= 0
    n, draws, asked = 0, 0, chance + 1
    while n < size and not over.all():
        total = 0.0
        for s in range(asked):
            if not over[s]:
                total += shares[s]
        need, cumulated, promised = size - n, 0.0, 0
        for s in range(asked):
            if over[s]:
                continue
            cumulated += shares[s]
            upto = int(np.floor(cumulated / total * need + 0.5))  # sums to `need`, and each is right to within one
            quota, promised = upto - promised, upto
            tries = 4 * quota + 64
            while quota > 0:
                if s == chance:
                    if tries == 0:
                        break
                    tries -= 1
                    row = np.int64(living[_drawn(seed, draws, len(living))])
                    draws += 1
                else:
                    if at[s] == starts[s + 1]:
                        break
                    row = np.int64(lists[at[s]])
                    at[s] += 1
                if row < 0 or row >= len(alive) or not alive[row]:
                    continue
                place = _place(table, row)
                if table[place] == 0:
                    table[place] = row + 1
                    rows[n], sources[n] = row, s + 1
                    n += 1
                    quota -= 1
            if quota > 0:
                over[s] = True
        asked = chance + 1 if over[:fillers].all() else fillers
    if n < size:
        free, count = np.empty(len(living), np.int64), 0
        for row in living:
            if row < len(alive) and alive[row] and table[_place(table, row)] == 0:
                free[count] = row
                count += 1
        for i in range(min(size - n, count)):
            j = i + _drawn(seed, draws, count - i)
            draws += 1
            free[i], free[j] = free[j], free[i]
            rows[n], sources[n] = free[i], chance + 1
            n += 1
    for row in late:
        if n < size and 0 <= row < len(alive) and alive[row]:
            rows[n], sources[n] = row, chance + 1
            n += 1
    return n


@compiled
def interleave(heads: Array, starts: Array, weights: Array, out: Array) -> Any:
    """Interleaves lists so that each prefix of the result represents each list by its weight: the next item comes from
    the list with the largest ``weight / (taken + 1)`` (D'Hondt). Weights are above 0; list g is ``heads[starts[g] :
    starts[g + 1]]``. Returns how many ``out`` holds."""
    taken = np.zeros(len(weights), np.int64)
    for n in range(len(out)):
        best, most = -1, 0.0
        for g in range(len(weights)):
            worth = weights[g] / (taken[g] + 1)
            if worth > most and starts[g] + taken[g] < starts[g + 1]:
                best, most = g, worth
        if best < 0:
            return n
        out[n] = heads[starts[best] + taken[best]]
        taken[best] += 1
    return len(out)


@compiled
def shuffled(items: Array, seed: Any, out: Array) -> None:
    """``out`` (m,): m of the ``items`` (at least m) in random order, each choice equally likely."""
    rest = items.copy()
    for i in range(len(out)):
        j = i + _drawn(seed, i, len(rest) - i)
        rest[i], rest[j] = rest[j], rest[i]
        out[i] = rest[i]
