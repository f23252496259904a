# core
"""The compiled loops of the tables that serve (learner/serving/overlay.py). Plain Python semantics, the GIL released.

They differ from learner/tables/table_kernels.py because these hashes are read while they are written, without a
lock (:mod:`millrace.basics.probing`). A changing id itself is found in the overlay that brought the change.

Symbols: S slots (2^k), R rows, W columns of a record, U distinct ids, C id columns, F fields, D embedding width, n
samples. ``ids`` (R, W / 2) int64 is the same memory as ``data`` (R, W) float32; the id is the first word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from learner.tables.table_kernels import AHEAD, commonest, fetch, rarity
from millrace.basics import probing
from millrace.basics.compiled import GOLDEN, compiled, split_mix
from millrace.basics.probing import EMPTY, FREE, GONE, home_slot, seek_beside, slot_and_hole, slot_of

Array = NDArray[Any]

VALUES = 2  # first column of a record's values: the id takes two
# Places in a table's counts: rows given out ever, rows to give out again, slots that are not free.
USED, SPARE, FILLED = 0, 1, 2


@compiled
def find(slots: Array, shift: int, ids: Array, keys: Array, out: Array) -> int:
    """``out[i]``: row of ``keys[i]`` or EMPTY. The return value means nothing."""
    touched, held = 0, ids[:, 0]
    for first in range(0, len(keys), AHEAD):
        last = min(first + AHEAD, len(keys))
        touched += fetch(slots, shift, ids, keys, first, last)
        for i in range(first, last):
            out[i] = EMPTY if keys[i] == 0 else seek_beside(slots, home_slot(keys[i], shift), held, keys[i])
    return touched


@compiled
def read(slots: Array, shift: int, data: Array, ids: Array, keys: Array, absent: bool, out: Array) -> int:
    """``out[i]`` (U, W'): the values of ``keys[i]``; without a row zeros if ``absent``, else unchanged. The return
    value means nothing."""
    touched, held = 0, ids[:, 0]
    for first in range(0, len(keys), AHEAD):
        last = min(first + AHEAD, len(keys))
        touched += fetch(slots, shift, ids, keys, first, last)
        for i in range(first, last):
            row = seek_beside(slots, home_slot(keys[i], shift), held, keys[i]) if keys[i] != 0 else EMPTY
            if row != EMPTY:
                for d in range(out.shape[1]):
                    out[i, d] = data[row, VALUES + d]
            elif absent:
                for d in range(out.shape[1]):
                    out[i, d] = np.float32(0)
    return touched


@compiled
def lay(
    keys: Array, embedding: Array, wide: Array, removed: Array, slots: Array, shift: int, data: Array, ids: Array
) -> None:
    """Makes an overlay: the changed rows ``keys`` (m,), ``embedding`` (m, D), ``wide`` (m,), then the ``removed`` ids
    as records of zeros, and slots for all of them. Ids are distinct and not 0."""
    changed, width = len(keys), embedding.shape[1]
    for i in range(changed + len(removed)):
        key = keys[i] if i < changed else removed[i - changed]
        ids[i, 0] = key
        if i < changed:
            for d in range(width):
                data[i, VALUES + d] = embedding[i, d]
            data[i, VALUES + width] = wide[i]
        probing.put(slots, home_slot(key, shift), i)


@compiled
def put(
    slots: Array,
    shift: int,
    data: Array,
    ids: Array,
    spare: Array,
    counts: Array,
    keys: Array,
    embedding: Array,
    wide: Array,
) -> int:
    """Writes rows; a new one for a key that has none, from ``spare`` (R,) or beyond those used. The caller makes sure
    of enough slots and rows; without a row the rest is not written. The return value means nothing. A row is written
    before its slot, so a reader that finds the slot finds the row."""
    touched, width, held = 0, embedding.shape[1], ids[:, 0]
    for first in range(0, len(keys), AHEAD):
        last = min(first + AHEAD, len(keys))
        touched += fetch(slots, shift, ids, keys, first, last)
        for i in range(first, last):
            key = keys[i]
            slot, row, hole = slot_and_hole(slots, home_slot(key, shift), held, key)
            new = row == EMPTY
            if new:
                if counts[SPARE] > 0:
                    counts[SPARE] -= 1
                    row = spare[counts[SPARE]]
                elif counts[USED] < len(data):
                    row = counts[USED]
                    counts[USED] += 1
                else:
                    return touched
            for d in range(width):
                data[row, VALUES + d] = embedding[i, d]
            data[row, VALUES + width] = wide[i]
            if new:
                ids[row, 0] = key
                if hole == EMPTY:
                    counts[FILLED] += 1
                    hole = slot
                slots[hole] = ~row
    return touched


@compiled
def drop(slots: Array, shift: int, ids: Array, spare: Array, counts: Array, keys: Array) -> None:
    """Removes keys; unknown ones are ignored. Their slots stay behind as gone."""
    held = ids[:, 0]
    for i in range(len(keys)):
        key = keys[i]
        if key == 0:
            continue
        slot, row, _ = slot_and_hole(slots, home_slot(key, shift), held, key)
        if row != EMPTY:
            slots[slot] = GONE
            ids[row, 0] = 0
            spare[counts[SPARE]] = row
            counts[SPARE] += 1


@compiled
def move(slots: Array, after: Array, shift: int, ids: Array, first: int, last: int) -> int:
    """Enters the rows of the slots from ``first`` to before ``last`` into ``after``, whose shift is given; returns how
    many there were. ``slots`` stays unchanged for its readers."""
    found = 0
    for held in slots[first:last]:
        if held < FREE:
            probing.put(after, home_slot(ids[~held, 0], shift), ~held)
            found += 1
    return found


@compiled
def cross(cat: Array, columns: Array, seeds: Array, at: int, out: Array) -> None:
    """``out[:, at + x]``: the ids of cross x, :func:`millrace.basics.hashing.combine` of ``columns[x]`` (those from 0
    up) of cat (n, F) with ``seeds[x]``; out (n, >= at + X)"""
    for b in range(len(cat)):
        for x in range(len(seeds)):
            key, missing = seeds[x], False
            for c in range(columns.shape[1]):
                if columns[x, c] >= 0:
                    part = np.uint64(cat[b, columns[x, c]])
                    missing |= part == np.uint64(0)
                    key = split_mix(part * GOLDEN + key) if c == 0 else split_mix(key * GOLDEN + part)
            key = key if key != np.uint64(0) else np.uint64(1)
            out[b, at + x] = np.int64(np.uint64(0) if missing else key)


@compiled
def distinct(cat: Array, columns: Array, once: Array, scratch: Array, shift: int, unique: Array, inverse: Array) -> int:
    """Distinct ids of the ``columns`` (C,) of ``cat`` in order of appearance; returns U. A column that is ``once`` (C,)
    has one id in all rows: only ``inverse[0, c]`` is written for it. ``inverse`` (n, C) int32: place in ``unique``,
    EMPTY where the id is 0. ``scratch`` is all free, longer than the ids."""
    found = 0
    for b in range(len(inverse)):
        for c in range(len(columns)):
            if b > 0 and once[c]:
                continue
            key = cat[b, columns[c]]
            if key == 0:
                inverse[b, c] = EMPTY
                continue
            slot = slot_of(scratch, home_slot(key, shift), unique, key)
            u = ~scratch[slot]
            if u == EMPTY:
                u = found
                scratch[slot] = ~u
                unique[u] = key
                found += 1
            inverse[b, c] = u
    return found


@compiled
def pool(
    values: Array,
    inverse: Array,
    starts: Array,
    rare: Array,
    once: Array,
    lent: int,
    places: Array,
    own: Array,
    same: Array,
    t: Array,
) -> None:
    """The mean of each field's embeddings over its ids that are not missing, from column p = ``places[f]`` on: into
    ``own[b, p:]`` (>= n, V) where p >= 0, else, one time, into ``same[-1 - p:]`` (S,). Onto ``t`` (n,) the sum of the
    wide weights of all columns but the last ``lent``. values (U, D + 1): embedding, wide weight. inverse and once as in
    :func:`distinct`, ``starts`` (F + 1,) first column of each field, ``rare`` (F,). The arithmetic is that of ``pool``
    and ``wide_sum`` in learner/tables/table_kernels.py, in their order."""
    last = values.shape[1] - 1
    width = last - int(rare.any())
    for b in range(len(inverse)):
        total = np.float32(0)
        for c in range(len(once) - lent):
            u = inverse[0 if once[c] else b, c]
            if u != EMPTY:
                total += values[u, last]
        t[b] += total
        if width == 0:
            continue
        for f in range(len(starts) - 1):
            place = places[f]
            if place < 0:
                if b == 0:
                    _mean(values, inverse[0], starts[f], starts[f + 1], rare[f], same[-1 - place : -1 - place + width])
            else:
                _mean(values, inverse[b], starts[f], starts[f + 1], rare[f], own[b, place : place + width])


@njit(inline="always")
def _mean(values: Any, ids: Any, first: Any, last: Any, rare: Any, out: Any) -> None:
    if last - first == 1 and ids[first] != EMPTY:
        for d in range(len(out)):
            out[d] = values[ids[first], d]
        return
    most, total = np.float32(0), np.float32(0)
    if rare:
        most = commonest(values, ids, first, last, len(out))
    for d in range(len(out)):
        out[d] = np.float32(0)
    for c in range(first, last):
        u = ids[c]
        if u != EMPTY:
            weight = rarity(values[u, len(out)], most) if rare else np.float32(1)
            total += weight
            for d in range(len(out)):
                out[d] += weight * values[u, d]
    if total > 0:
        for d in range(len(out)):
            out[d] /= total
