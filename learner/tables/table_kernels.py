# core
"""The compiled loops of the sparse side. Plain Python semantics, no allocation, the GIL released.

Symbols: B samples, C id columns, U distinct ids of a batch, F fields, D embedding width, R table rows. A table is one
array of records, ``data`` (R, W) float32, also seen as int64 (``ids`` (R, W / 2): the id is the first word) and as
int32 (``marks`` (R, W)); so an id costs one or two cache lines, not one a column.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import GOLDEN, compiled, split_mix
from millrace.basics.probing import EMPTY, FREE, home_slot, put, seek, slot_of, take_out

Array = NDArray[Any]

TOUCHED, AGAIN = 1, 2  # flags of a mark, see stamp
ONE_ITEM = np.float32(2**-10)  # by which a word's count grows
MOST_COUNTED = np.float32(2**13)
COMMON = np.float32(1 / 64)  # of the count of a text's commonest word: far rarer words weigh alike
AHEAD = 64  # keys that are fetched before they are looked up


@njit(inline="always")
def _has_moved(home: Any, mask: Any, move: Any) -> Any:
    """Whether the ids of this home slot are in the next slots already (``move``: where that began, how far it is)."""
    return ((home - move[0]) & mask) < move[1]


@njit(inline="always")
def fetch(slots: Any, shift: Any, ids: Any, keys: Any, first: Any, last: Any) -> int:
    """Touches what the search for ``keys[first:last]`` will need, in two passes without dependencies, so that the
    memory is waited for once a group and not once a key (group prefetching: Chen et al., "Improving hash join
    performance through prefetching", ICDE 2004). The sum means nothing: it keeps the compiler from leaving this out."""
    touched = 0
    for i in range(first, last):
        touched += slots[home_slot(keys[i], shift)]
    for i in range(first, last):
        touched += ids[max(~slots[home_slot(keys[i], shift)], 0), 0]
    return touched


@compiled
def find(slots: Array, shift: int, after: Array, move: Array, ids: Array, keys: Array, out: Array) -> int:
    """``out[i]``: row of ``keys[i]`` or EMPTY. ``slots`` (2^k,) int32; while they move, ``after`` (2^(k+1),). The
    result means nothing (:func:`fetch`)."""
    mask, held = len(slots) - 1, ids[:, 0]
    touched = 0
    for first in range(0, len(keys), AHEAD):
        last = min(first + AHEAD, len(keys))
        touched += fetch(slots, shift, ids, keys, first, last)
        for i in range(first, last):
            key = keys[i]
            out[i] = EMPTY
            if key != 0:
                home = home_slot(key, shift)
                if _has_moved(home, mask, move):
                    out[i] = seek(after, home_slot(key, shift - 1), held, key)
                else:
                    out[i] = seek(slots, home, held, key)
    return touched


@compiled
def insert(slots: Array, shift: int, after: Array, move: Array, ids: Array, keys: Array, rows: Array) -> None:
    """Puts each (absent, distinct, nonzero) key at the row given for it."""
    mask = len(slots) - 1
    for i in range(len(keys)):
        key = keys[i]
        home = home_slot(key, shift)
        if _has_moved(home, mask, move):
            put(after, home_slot(key, shift - 1), rows[i])
        else:
            put(slots, home, rows[i])
        ids[rows[i], 0] = key


@compiled
def erase(slots: Array, shift: int, after: Array, move: Array, ids: Array, keys: Array, rows: Array) -> int:
    """Removes keys and puts their rows into ``rows``; returns how many. Unknown keys are ignored."""
    mask, held = len(slots) - 1, ids[:, 0]
    found = 0
    for i in range(len(keys)):
        key = keys[i]
        home = home_slot(key, shift)
        if key == 0:
            continue
        if _has_moved(home, mask, move):
            row = take_out(after, home_slot(key, shift - 1), shift - 1, held, key)
        else:
            row = take_out(slots, home, shift, held, key)
        if row != EMPTY:
            rows[found] = row
            found += 1
    return found


@compiled
def move(slots: Array, shift: int, after: Array, place: Array, ids: Array, least: int) -> None:
    """Moves ``least`` slots, and on to the next free one, over to ``after``; ``place`` has the progress. It began at a
    free slot and stops at one. So no run of slots is ever cut in two: an id lies, as a whole run does, on the side of
    its home. The last run may go past the end of the slots, into those that were moved first. It cannot go past all of
    them, because the slots move faster than ids come."""
    mask = len(slots) - 1
    start, moved = place[0], place[1]
    goal = min(moved + least, len(slots))
    while moved < goal or slots[(start + moved) & mask] != FREE:
        slot = (start + moved) & mask
        if slots[slot] != FREE:
            row = ~slots[slot]
            put(after, home_slot(ids[row, 0], shift - 1), row)
            slots[slot] = FREE
        moved += 1
    place[1] = moved


@compiled
def live(ids: Array, first: int, last: int, out: Array) -> int:
    """The rows from ``first`` to before ``last`` that hold an id; returns how many."""
    found = 0
    for row in range(first, last):
        if ids[row, 0] != 0:
            out[found] = row
            found += 1
    return found


@compiled
def distinct(columns: Array, slots: Array, shift: int, unique: Array, inverse: Array, counts: Array) -> int:
    """Distinct ids of ``columns`` (B, C) in order of appearance; returns U. ``unique`` gets the ids, ``counts`` how
    often each occurs, ``inverse`` (B, C) int32 the place of each id in ``unique`` or EMPTY where it is 0 (missing).
    ``slots`` is scratch, all free, longer than B * C."""
    found = 0
    for b in range(columns.shape[0]):
        for c in range(columns.shape[1]):
            key = columns[b, c]
            if key == 0:
                inverse[b, c] = EMPTY
                continue
            slot = slot_of(slots, home_slot(key, shift), unique, key)
            u = ~slots[slot]
            if u == EMPTY:
                u = found
                slots[slot] = ~u
                unique[u] = key
                counts[u] = 0
                found += 1
            counts[u] += 1
            inverse[b, c] = u
    return found


@compiled
def gather(data: Array, first: int, rows: Array, out: Array) -> None:
    """``out[u] = data[rows[u], first : first + D]``; zeros where the row is EMPTY. out (U, D)"""
    for u in range(len(rows)):
        row = rows[u]
        for d in range(out.shape[1]):
            out[u, d] = data[row, first + d] if row != EMPTY else np.float32(0)


@compiled
def scatter(data: Array, first: int, rows: Array, values: Array) -> None:
    """The inverse of :func:`gather`: ``data[rows[u], first : first + D] = values[u]``, but no EMPTY row. (U, D)"""
    for u in range(len(rows)):
        row = rows[u]
        if row != EMPTY:
            for d in range(values.shape[1]):
                data[row, first + d] = values[u, d]


@compiled
def initial(keys: Array, seed: np.uint64, scale: np.float32, out: Array) -> None:
    """First embedding of an id: uniform in ``[-scale, scale)``, a function of id and seed alone. out (U, D)

    So a row does not depend on when or in which order ids came, and no generator's state must be kept.
    """
    for u in range(len(keys)):
        state = np.uint64(keys[u]) ^ seed
        for d in range(out.shape[1]):
            state += GOLDEN
            unit = np.float32(np.int64(split_mix(state) >> np.uint64(40))) * np.float32(2.0**-24)
            out[u, d] = (unit * np.float32(2) - np.float32(1)) * scale


@njit(inline="always")
def commonest(values: Any, ids: Any, first: Any, last: Any, width: Any) -> Any:
    """The greatest count of the words in slots from ``first`` to before ``last`` of ids (C,)."""
    most = np.float32(0)
    for c in range(first, last):
        if ids[c] != EMPTY:
            most = max(most, values[ids[c], width])
    return most


@njit(inline="always")
def rarity(count: Any, most: Any) -> Any:
    """The weight of a word in the mean of its text: smooth inverse frequency (Arora et al., ICLR 2017), in proportion
    to the text's :func:`commonest` word, so that it is the same in a shop of any size. 0 without a row."""
    return np.float32(1) / (count + COMMON * most) if count > 0 else np.float32(0)


@compiled
def pool(values: Array, inverse: Array, starts: Array, rare: Array, out: Array, at: int) -> None:
    """Mean of a field's embeddings over its slots that are not missing, weighted by :func:`rarity` where the field is
    ``rare`` (F,). values (U, D), or (U, D + 1) if any is; inverse (B, C), ``starts`` (F + 1,) first column of each
    field; field f of row b goes to ``out[b, at + f D :]``."""
    width = values.shape[1] - int(rare.any())
    for b in range(len(inverse)):
        place = at
        for f in range(len(starts) - 1):
            first, last = starts[f], starts[f + 1]
            if last - first == 1:
                u = inverse[b, first]
                if u != EMPTY:
                    for d in range(width):
                        out[b, place + d] = values[u, d]
                else:
                    for d in range(width):
                        out[b, place + d] = np.float32(0)
                place += width
                continue
            most, total = np.float32(0), np.float32(0)
            if rare[f]:
                most = commonest(values, inverse[b], first, last, width)
            for d in range(width):
                out[b, place + d] = np.float32(0)
            for c in range(first, last):
                u = inverse[b, c]
                if u != EMPTY:
                    weight = rarity(values[u, width], most) if rare[f] else np.float32(1)
                    total += weight
                    for d in range(width):
                        out[b, place + d] += weight * values[u, d]
            if total > 0:
                for d in range(width):
                    out[b, place + d] /= total
            place += width


@compiled
def spread(
    grad: Array, at: int, factor: np.float32, values: Array, inverse: Array, starts: Array, rare: Array, out: Array
) -> None:
    """The transpose of :func:`pool`: adds each sample's gradient, times ``factor``, to its distinct ids. out (U, D)"""
    width = out.shape[1]
    for b in range(len(inverse)):
        place = at
        for f in range(len(starts) - 1):
            first, last = starts[f], starts[f + 1]
            most, total = np.float32(0), np.float32(0)
            if rare[f]:
                most = commonest(values, inverse[b], first, last, width)
            for c in range(first, last):
                if inverse[b, c] != EMPTY:
                    total += rarity(values[inverse[b, c], width], most) if rare[f] else np.float32(1)
            if total == 0:
                total = np.float32(1)
            for c in range(first, last):
                u = inverse[b, c]
                if u != EMPTY:
                    share = factor * rarity(values[u, width], most) / total if rare[f] else factor / total
                    for d in range(width):
                        out[u, d] += grad[b, place + d] * share
            place += width


@compiled
def wide_sum(weights: Array, inverse: Array, lent: int, out: Array) -> None:
    """``out[b] += sum_c weights[inverse[b, c]]``, without the last ``lent`` columns. weights (U,), out (B,)"""
    for b in range(inverse.shape[0]):
        total = np.float32(0)
        for c in range(inverse.shape[1] - lent):
            u = inverse[b, c]
            if u != EMPTY:
                total += weights[u]
        out[b] += total


@compiled
def wide_spread(grad: Array, inverse: Array, lent: int, out: Array) -> None:
    """The transpose of :func:`wide_sum`. grad (B,), out (U,)"""
    for b in range(inverse.shape[0]):
        for c in range(inverse.shape[1] - lent):
            u = inverse[b, c]
            if u != EMPTY:
                out[u] += grad[b]


class Ftrl(NamedTuple):
    """Step sizes of wide weights."""

    alpha: np.float32
    beta: np.float32
    l1: np.float32
    l2: np.float32


@njit(inline="always")
def _ftrl_weight(z: Any, n: Any, ftrl: Any) -> Any:
    if np.abs(z) <= ftrl.l1:
        return np.float32(0)
    return -(z - np.sign(z) * ftrl.l1) / ((ftrl.beta + np.sqrt(n)) / ftrl.alpha + ftrl.l2)


@compiled
def values(data: Array, first: int, at: int, rows: Array, embedding: Array, wide: Array, ftrl: Ftrl) -> None:
    """Embeddings ``data[row, first : first + D]`` and FTRL's weights from its state ``z, n = data[row, at : at + 2]``
    (McMahan et al., KDD 2013)::

        w = 0 if |z| <= l1 else -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)

    So the weight itself takes no memory. rows (U,), embedding (U, D), wide (U,); zero where the row is EMPTY.
    """
    width = embedding.shape[1]
    for u in range(len(rows)):
        row = rows[u]
        if row == EMPTY:
            for d in range(width):
                embedding[u, d] = np.float32(0)
            wide[u] = np.float32(0)
        else:
            for d in range(width):
                embedding[u, d] = data[row, first + d]
            wide[u] = _ftrl_weight(data[row, at], data[row, at + 1], ftrl)


@compiled
def trained(data: Array, marks: Array, total: int, at: int, mark: int, rows: Array, out: Array, seen: Array) -> None:
    """What only training needs of rows: G, z and n as ``out`` (3, U), and the minute ``seen`` (U,). ``total``, ``at``
    and ``mark`` are the columns as in :func:`step`."""
    for u in range(len(rows)):
        row = rows[u]
        out[0, u] = data[row, total]
        out[1, u] = data[row, at]
        out[2, u] = data[row, at + 1]
        seen[u] = marks[row, mark] >> 2


@compiled
def step(
    data: Array,
    first: int,
    total: int,
    at: int,
    rows: Array,
    grad: Array,
    grad_wide: Array,
    rate: np.float32,
    epsilon: np.float32,
    ftrl: Ftrl,
) -> None:
    """One step of both optimisers on distinct rows, each record once; grad (U, D), grad_wide (U,).

    The embedding e (D columns from ``first``), by row-wise Adagrad, with one accumulator G (column ``total``) a row
    instead of one a weight (Adagrad: Duchi et al. 2011)::

        G += mean_d g_d^2;  e -= rate g / (sqrt(G) + epsilon)

    The wide weight, by FTRL-Proximal (McMahan et al., KDD 2013, algorithm 1), its z and n at ``at``::

        sigma = (sqrt(n + g^2) - sqrt(n)) / alpha;  z += g - sigma w;  n += g^2
    """
    width = grad.shape[1]
    for u in range(len(rows)):
        row = rows[u]
        if row == EMPTY:
            continue
        if width:
            square = np.float32(0)
            for d in range(width):
                square += grad[u, d] * grad[u, d]
            data[row, total] += square / np.float32(width)
            pace = rate / (np.sqrt(data[row, total]) + epsilon)
            for d in range(width):
                data[row, first + d] -= pace * grad[u, d]
        g, z, n = grad_wide[u], data[row, at], data[row, at + 1]
        square = n + g * g
        sigma = (np.sqrt(square) - np.sqrt(n)) / ftrl.alpha
        data[row, at] = z + g - sigma * _ftrl_weight(z, n, ftrl)
        data[row, at + 1] = square


@compiled
def count(data: Array, at: int, rows: Array, more: Array) -> None:
    """Adds ``more`` items (U,) to column ``at`` of the rows, up to :data:`MOST_COUNTED`."""
    for u in range(len(rows)):
        if rows[u] != EMPTY:
            data[rows[u], at] = min(data[rows[u], at] + ONE_ITEM * np.float32(more[u]), MOST_COUNTED)


@compiled
def stamp(marks: Array, at: int, rows: Array, minute: int, copied: int, touched: Array, again: Array) -> Any:
    """Marks rows as seen at ``minute`` and touched. A mark is three things in one number::

        mark = 4 minute + 2 (touched since a snapshot's slices copied it) + (touched since the last version)

    Puts the rows that were not touched before into ``touched``. Those below ``copied``, which slices have copied, go
    into ``again`` unless they are there. Returns how many went into each.
    """
    found = late = 0
    for u in range(len(rows)):
        row = rows[u]
        if row != EMPTY:
            flags = marks[row, at] & (TOUCHED | AGAIN)
            if not flags & TOUCHED:
                touched[found] = row
                found += 1
            if row < copied and not flags & AGAIN:
                again[late] = row
                late += 1
                flags |= AGAIN
            marks[row, at] = 4 * minute + (flags | TOUCHED)
    return found, late


@compiled
def seen(marks: Array, ids: Array, at: int, last: int, before: int, rows: Array, minutes: Array) -> int:
    """Rows in use below ``last`` that were last seen before a minute, and the minute of each; returns how many."""
    found = 0
    for row in range(last):
        minute = marks[row, at] >> 2
        if minute < before and ids[row, 0] != 0:
            rows[found] = row
            minutes[found] = minute
            found += 1
    return found


@compiled
def buckets(num: Array, columns: Array, edges: Array, ids: Array, out: Array) -> None:
    """``out`` (B, C): ``ids[j, |{k: edges[j, k] <= x}|]`` of ``x = num[i, columns[j]]``; 0 where edges are infinite.
    ``edges`` (C, Q - 1) float32 ascending, ``ids`` (C, Q)."""
    count = edges.shape[1]
    for j in range(len(columns)):
        known = count == 0 or np.isfinite(edges[j, 0])
        for i in range(len(num)):
            if not known:
                out[i, j] = 0
                continue
            x = num[i, columns[j]]
            low, high = 0, count
            while low < high:
                middle = (low + high) // 2
                if edges[j, middle] <= x:
                    low = middle + 1
                else:
                    high = middle
            out[i, j] = ids[j, low]
