# core
"""Compiled loops of :mod:`scorer.recall.nearest`: products of one query with all vectors, and storage in tiles.

::

    tiles (T, W, 64) bfloat16       vector p lies in tile p // 64, lane p % 64

             lane   0  1  2 ... 63
    column 0      [ a  b  c      z ]     64 items side by side: a product is 64 sums that run along in vector
    column 1      [ a  b  c      z ]     registers, and no sum ever goes across a register

A bfloat16 is the upper half of a float32; arrays of them are uint16 here, as in :mod:`learner.network.bfloat16`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.network.bfloat16 import to_half, to_single
from millrace.basics.compiled import compiled

Array = NDArray[Any]
Tiles = NDArray[np.uint16]

LANES = 64
"""Items in a tile. 16 and 32 were four times as slow: the compiler kept no sums in registers."""


@compiled(fastmath={"reassoc", "contract"})
def products(tiles: Array, query: Array, out: Array) -> None:
    """``out[p] = <vector p, query>`` in float32; tiles (T, W, 64), query (W,) float32, out (>= 64 T,) float32"""
    sums = np.empty(LANES, np.float32)
    for t in range(len(tiles)):
        tile = tiles[t]
        for lane in range(LANES):
            sums[lane] = np.float32(0)
        for c in range(len(query)):
            weight = query[c]
            for lane in range(LANES):
                sums[lane] += np.uint32(np.uint32(tile[c, lane]) << np.uint32(16)).view(np.float32) * weight
        for lane in range(LANES):
            out[t * LANES + lane] = sums[lane]


@compiled
def cosines(tiles: Array, query: Array, out: Array) -> None:
    """``out[p] = <vector p, query> / |vector p|`` over the first len(query) columns; NaN for a vector of zeros."""
    sums, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for t in range(len(tiles)):
        sums[:], squares[:] = np.float32(0), np.float32(0)
        for c in range(len(query)):
            for lane in range(LANES):
                value = np.uint32(np.uint32(tiles[t, c, lane]) << np.uint32(16)).view(np.float32)
                sums[lane] += value * query[c]
                squares[lane] += value * value
        for lane in range(LANES):
            out[t * LANES + lane] = sums[lane] / np.sqrt(squares[lane]) if squares[lane] else np.nan


@compiled
def forbid(rows: Array, allowed: Array, scores: Array) -> None:
    """``scores[p]`` (>= n,) float32 becomes -inf where ``allowed`` (R,) is false at the row of place p; rows (n,)
    int32"""
    for p in range(len(rows)):
        row = rows[p]
        if row >= len(allowed) or not allowed[row]:
            scores[p] = -np.inf


@compiled
def lay(vectors: Array, places: Array, tiles: Array) -> None:
    """Rounds vector i and stores it at ``places[i]``; vectors (n, W) float32, places (n,) int64"""
    for i in range(len(places)):
        t, lane = places[i] // LANES, places[i] % LANES
        for c in range(vectors.shape[1]):
            tiles[t, c, lane] = to_half(vectors[i, c])


@compiled
def fetch(tiles: Array, places: Array, out: Array) -> None:
    """The inverse: out (n, W) float32 are the vectors at ``places`` (n,) int64"""
    for i in range(len(places)):
        t, lane = places[i] // LANES, places[i] % LANES
        for c in range(tiles.shape[1]):
            out[i, c] = to_single(tiles[t, c, lane])
