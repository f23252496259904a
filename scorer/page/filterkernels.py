# core
"""Compiled loops of filters and re-ranking: which rows pass, which of them fit on a page under caps, which are unlike.

::

    allowed (R,) bool   every clause takes rows away, none gives any back
    values (n, A)       of n items, best first: the value that each of A caps counts; 0: not capped
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.basics.probing import home_of, place
from scorer.catalog.pagekernels import folded

Array = NDArray[Any]


@compiled
def narrow(columns: Array, first: int, stop: int, values: Array, keep: bool, allowed: Array) -> None:
    """Keeps only rows with one of the values (``keep`` true) or only rows without any (``keep`` false).

    Args:
        columns: (rows, C) uint64; an item's values are in the columns [first, stop).
        values: (m,) uint64, ascending, none of them 0.
        allowed: (R,) bool, R <= rows.
    """
    for row in range(len(allowed)):
        if not allowed[row]:
            continue
        hit = False
        for column in range(first, stop):
            value = columns[row, column]
            low, high = 0, len(values)
            while low < high:
                middle = (low + high) // 2
                if values[middle] < value:
                    low = middle + 1
                else:
                    high = middle
            if low < len(values) and values[low] == value:
                hit = True
                break
        if hit != keep:
            allowed[row] = False


@compiled
def unseen(salt: Any, user: Any, items: Array, column: int, user_first: bool, seen: Array, allowed: Array) -> None:
    """Removes the items of which the user has seen something.

    Args:
        salt: of the window key of user and item, uint64.
        user: the user's value hash, uint64.
        items: (rows, C) uint64; an item's value hash is in ``column``.
        user_first: the key's first column is the user's.
        seen: hash table of :func:`table_of` with the user's window keys that have exposures.
        allowed: (R,) bool, R <= rows.
    """
    for row in range(len(allowed)):
        item = items[row, column]
        if not allowed[row] or item == 0:
            continue
        key = folded(folded(user, salt), item) if user_first else folded(folded(item, salt), user)
        key = np.uint64(1) if key == 0 else key
        if seen[place(seen, home_of(key, len(seen)), key)] == key:
            allowed[row] = False


def table_of(keys: Array) -> Array:
    """Hash table of distinct keys (k,) uint64, none of them 0. Its size is a power of two; 0 is empty; never full."""
    table = np.zeros(1 << (2 * len(keys) + 1).bit_length(), np.uint64)
    _enter(np.ascontiguousarray(keys, np.uint64), table)
    return table


@compiled
def _enter(keys: Array, table: Array) -> None:
    for key in keys:
        table[place(table, home_of(key, len(table)), key)] = key


@compiled
def capped(values: Array, limits: Array, out: Array) -> Any:
    """Takes fitting items in order into ``out`` (size,) int64, as places, until it is full; returns how many. An item
    fits while each of its ``values`` (uint64) was taken fewer times than its cap in ``limits`` (A,) int64, 1 or more.

    This greedy choice is maximal. With one cap no other order takes more; with A caps, another order may take up to A
    times as many (each is a partition matroid: Korte and Hausmann, 1978).
    """
    caps = len(limits)
    room = 16
    while room < 4 * len(out):
        room *= 2
    keys, counts = np.zeros((caps, room), np.uint64), np.zeros((caps, room), np.int64)
    places = np.zeros(caps, np.int64)
    n = 0
    for i in range(len(values)):
        if n == len(out):
            break
        fits = True
        for a in range(caps):
            value = values[i, a]
            if value == 0:
                continue
            at = places[a] = place(keys[a], home_of(value, room), value)
            if counts[a, at] >= limits[a]:
                fits = False
                break
        if not fits:
            continue
        for a in range(caps):
            if values[i, a] != 0:
                keys[a, places[a]] = values[i, a]
                counts[a, places[a]] += 1
        out[n] = i
        n += 1
    return n


@compiled(fastmath={"reassoc", "contract"})
def marginal(z: Array, vectors: Array, weight: Any, most: int, near: Array) -> None:
    """Takes ``most`` items one after another, always the one with the largest z - weight near: maximal marginal
    relevance (Carbonell and Goldstein, 1998). ``near`` (n,) float32, zeros at first, is an item's largest cosine to
    those that were taken before it; of an item that was not taken, to all of them. None is below 0.

    Args:
        z: (n,) float64.
        vectors: (n, D) float32 of length 1; zeros are like nothing.
    """
    n, width = vectors.shape
    left = np.ones(n, np.bool_)
    for _ in range(min(most, n)):
        best, largest = -1, -np.inf
        for i in range(n):
            value = z[i] - weight * near[i]
            if left[i] and (best < 0 or value > largest):
                best, largest = i, value
        left[best] = False
        for i in range(n):
            if left[i]:
                cosine = np.float32(0)
                for c in range(width):
                    cosine += vectors[i, c] * vectors[best, c]
                near[i] = max(near[i], cosine)
