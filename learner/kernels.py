"""The compiled loops of the sparse side. Plain Python semantics, no allocation, the GIL released.

All of them live in one file because numba's on-disk cache does not notice a change in a callee of another file.
Symbols: B samples, C id columns, U distinct ids of a batch, F fields, D embedding width, R table rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

EMPTY = -1  # a slot that holds no row; an id that has none
_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)


@njit(inline="always")
def _home(key: Any, shift: Any) -> Any:
    """Home slot of an id: multiplicative (Fibonacci) hashing onto the slots. Ids are hashes already; small ones too."""
    return np.int64((np.uint64(key) * _FIBONACCI) >> np.uint64(shift))


@njit(nogil=True, cache=True)
def find(slots: Array, shift: int, ids: Array, keys: Array, out: Array) -> None:
    """``out[i]``: row of ``keys[i]`` or EMPTY. ``slots`` (2^k,) int32 rows, ``ids`` (R,) int64; linear probing."""
    mask = len(slots) - 1
    for i in range(len(keys)):
        key = keys[i]
        out[i] = EMPTY
        if key != 0:
            slot = _home(key, shift)
            while slots[slot] != EMPTY:
                row = slots[slot]
                if ids[row] == key:
                    out[i] = row
                    break
                slot = (slot + 1) & mask


@njit(nogil=True, cache=True)
def insert(slots: Array, shift: int, ids: Array, keys: Array, rows: Array) -> None:
    """Puts each (absent, distinct, nonzero) key at the row given for it."""
    mask = len(slots) - 1
    for i in range(len(keys)):
        slot = _home(keys[i], shift)
        while slots[slot] != EMPTY:
            slot = (slot + 1) & mask
        slots[slot] = rows[i]
        ids[rows[i]] = keys[i]


@njit(nogil=True, cache=True)
def erase(slots: Array, shift: int, ids: Array, keys: Array) -> None:
    """Takes the (present, distinct) keys out, shifting followers back so that no tombstone is ever needed."""
    mask = len(slots) - 1
    for i in range(len(keys)):
        slot = _home(keys[i], shift)
        while ids[slots[slot]] != keys[i]:
            slot = (slot + 1) & mask
        ids[slots[slot]] = 0
        hole, probe = slot, slot
        while True:
            probe = (probe + 1) & mask
            if slots[probe] == EMPTY:
                break
            home = _home(ids[slots[probe]], shift)
            # The follower may move into the hole unless its home lies (cyclically) after the hole.
            if ((probe - home) & mask) >= ((probe - hole) & mask):
                slots[hole] = slots[probe]
                hole = probe
        slots[hole] = EMPTY


@njit(nogil=True, cache=True)
def distinct(columns: Array, slots: Array, shift: int, unique: Array, inverse: Array, counts: Array) -> int:
    """Distinct ids of ``columns`` (B, C) in order of appearance; returns U.

    ``unique`` gets the ids, ``counts`` how often each occurs, ``inverse`` (B, C) int32 the place of each id in
    ``unique`` or EMPTY where it is 0 (missing). ``slots`` is scratch, filled with EMPTY, longer than B * C.
    """
    mask = len(slots) - 1
    found = 0
    for b in range(columns.shape[0]):
        for c in range(columns.shape[1]):
            key = columns[b, c]
            if key == 0:
                inverse[b, c] = EMPTY
                continue
            slot = _home(key, shift)
            while True:
                u = slots[slot]
                if u == EMPTY:
                    u = found
                    slots[slot] = u
                    unique[u] = key
                    counts[u] = 0
                    found += 1
                    break
                if unique[u] == key:
                    break
                slot = (slot + 1) & mask
            counts[u] += 1
            inverse[b, c] = u
    return found


@njit(nogil=True, cache=True)
def gather(source: Array, rows: Array, out: Array) -> None:
    """``out[u] = source[rows[u]]``; zeros where the row is EMPTY. source (R, D), out (U, D)"""
    for u in range(len(rows)):
        row = rows[u]
        for d in range(out.shape[1]):
            out[u, d] = source[row, d] if row != EMPTY else np.float32(0)


@njit(nogil=True, cache=True)
def initial(keys: Array, seed: np.uint64, scale: np.float32, out: Array) -> None:
    """First embedding of an id: uniform in ``[-scale, scale)``, a function of id and seed alone. out (U, D)

    So a row does not depend on when or in which order ids came, and no generator's state has to be kept.
    """
    for u in range(len(keys)):
        state = np.uint64(keys[u]) ^ seed
        for d in range(out.shape[1]):
            state += _FIBONACCI  # SplitMix64
            x = state
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
            unit = np.float32(np.int64(x >> np.uint64(40))) * np.float32(2.0**-24)
            out[u, d] = (unit * np.float32(2) - np.float32(1)) * scale


@njit(nogil=True, cache=True)
def pool(values: Array, inverse: Array, starts: Array, out: Array) -> None:
    """Mean of a field's embeddings over its slots that are not missing.

    values (U, D), inverse (B, C), ``starts`` (F + 1,) first column of each field, out (B, F, D).
    """
    for b in range(out.shape[0]):
        for f in range(out.shape[1]):
            first, last = starts[f], starts[f + 1]
            if last - first == 1:
                u = inverse[b, first]
                if u != EMPTY:
                    for d in range(out.shape[2]):
                        out[b, f, d] = values[u, d]
                else:
                    for d in range(out.shape[2]):
                        out[b, f, d] = np.float32(0)
                continue
            n = 0
            for d in range(out.shape[2]):
                out[b, f, d] = np.float32(0)
            for c in range(first, last):
                u = inverse[b, c]
                if u != EMPTY:
                    n += 1
                    for d in range(out.shape[2]):
                        out[b, f, d] += values[u, d]
            if n > 1:
                for d in range(out.shape[2]):
                    out[b, f, d] /= np.float32(n)


@njit(nogil=True, cache=True)
def spread(grad: Array, inverse: Array, starts: Array, out: Array) -> None:
    """The transpose of :func:`pool`: adds each sample's gradient to its distinct ids. grad (B, F, D), out (U, D)"""
    for b in range(grad.shape[0]):
        for f in range(grad.shape[1]):
            first, last = starts[f], starts[f + 1]
            n = 0
            for c in range(first, last):
                if inverse[b, c] != EMPTY:
                    n += 1
            if n == 0:
                continue
            share = np.float32(1) / np.float32(n)
            for c in range(first, last):
                u = inverse[b, c]
                if u != EMPTY:
                    for d in range(grad.shape[2]):
                        out[u, d] += grad[b, f, d] * share


@njit(nogil=True, cache=True)
def wide_sum(weights: Array, inverse: Array, out: Array) -> None:
    """``out[b] += sum_c weights[inverse[b, c]]``. weights (U,), out (B,)"""
    for b in range(inverse.shape[0]):
        total = np.float32(0)
        for c in range(inverse.shape[1]):
            u = inverse[b, c]
            if u != EMPTY:
                total += weights[u]
        out[b] += total


@njit(nogil=True, cache=True)
def wide_spread(grad: Array, inverse: Array, out: Array) -> None:
    """The transpose of :func:`wide_sum`. grad (B,), out (U,)"""
    for b in range(inverse.shape[0]):
        for c in range(inverse.shape[1]):
            u = inverse[b, c]
            if u != EMPTY:
                out[u] += grad[b]


@njit(nogil=True, cache=True)
def adagrad(values: Array, total: Array, rows: Array, grad: Array, rate: np.float32, epsilon: np.float32) -> None:
    """Row-wise Adagrad in place: ``G_r += mean_d g_d^2``, ``e_r -= rate * g / (sqrt(G_r) + epsilon)``.

    One accumulator a row instead of one a weight (Adagrad: Duchi et al. 2011). values (R, D), total (R,),
    rows (U,) distinct, EMPTY rows are skipped, grad (U, D).
    """
    width = grad.shape[1]
    for u in range(len(rows)):
        row = rows[u]
        if row == EMPTY:
            continue
        square = np.float32(0)
        for d in range(width):
            square += grad[u, d] * grad[u, d]
        total[row] += square / np.float32(width)
        step = rate / (np.sqrt(total[row]) + epsilon)
        for d in range(width):
            values[row, d] -= step * grad[u, d]


@njit(nogil=True, cache=True)
def ftrl(
    weights: Array,
    z: Array,
    n: Array,
    rows: Array,
    grad: Array,
    alpha: np.float32,
    beta: np.float32,
    l1: np.float32,
    l2: np.float32,
) -> None:
    """FTRL-Proximal in place (McMahan et al., KDD 2013, algorithm 1), one coordinate a row::

    sigma = (sqrt(n + g^2) - sqrt(n)) / alpha;  z += g - sigma w;  n += g^2
    w = 0 if |z| <= l1 else -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)
    """
    for u in range(len(rows)):
        row = rows[u]
        if row == EMPTY:
            continue
        g = grad[u]
        square = n[row] + g * g
        sigma = (np.sqrt(square) - np.sqrt(n[row])) / alpha
        z[row] += g - sigma * weights[row]
        n[row] = square
        if np.abs(z[row]) <= l1:
            weights[row] = np.float32(0)
        else:
            shrunk = z[row] - np.sign(z[row]) * l1
            weights[row] = -shrunk / ((beta + np.sqrt(square)) / alpha + l2)
