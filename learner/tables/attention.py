# core
"""Attention of the item on the page over what its user did last, and its gradients, written out.

A mean takes all of a user's last clicks alike, whatever is on the page. Here each item sees those that are like it
(DIN: Zhou et al., "Deep interest network for click-through rate prediction", KDD 2018), by the scaled dot product of
Vaswani et al. (2017). With q the item's embedding, k_l those of the user's last items, a_l a learnt number for the age
of each, and sums over the slots that are not missing::

    s_l = <q, k_l> / sqrt(D) + a_l        p_l = exp s_l / sum_m exp s_m        y = sum_l p_l k_l      0 without a slot

    g = d loss / d y:    h_l = <g, k_l>    e_l = p_l (h_l - sum_m p_m h_m) = d loss / d s_l = d loss / d a_l
                         d k_l = p_l g + e_l q / sqrt(D)            d q = sum_l e_l k_l / sqrt(D)

Learner and scorer call the same compiled :func:`attend`, so their y are equal to the bit. A page has one user: its
``slots`` and ``bias`` are one row for all, and its keys are gathered a single time.

Symbols: n rows, L slots, D embedding width, U distinct ids of a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.basics.probing import EMPTY

Array = NDArray[Any]


@njit(inline="always")
def _gather(values: Any, slots: Any, bias: Any, keys: Any, start: Any) -> Any:
    """``keys[d, l]``, ``start[l]``: embedding and bias of slot l; zeros and minus infinity where it is missing. Returns
    whether there is any."""
    there = False
    for c in range(len(slots)):
        u = slots[c]
        there |= u != EMPTY
        start[c] = bias[c] if u != EMPTY else np.float32(-np.inf)
        for d in range(keys.shape[0]):
            keys[d, c] = values[u, d] if u != EMPTY else np.float32(0)
    return there


@njit(inline="always")
def _shares(values: Any, query: Any, keys: Any, start: Any, scale: Any, share: Any) -> None:
    """``share`` (L,) = p of one row with a slot. Loops run along the slots, where they need no order of sums."""
    for c in range(len(share)):
        share[c] = start[c]
    if query != EMPTY:
        for d in range(keys.shape[0]):
            q = values[query, d] * scale
            for c in range(len(share)):
                share[c] += q * keys[d, c]
    top = share[0]
    for c in range(1, len(share)):
        top = max(top, share[c])
    total = np.float32(0)
    for c in range(len(share)):
        share[c] = np.exp(share[c] - top)
        total += share[c]
    for c in range(len(share)):
        share[c] /= total


@compiled
def attend(values: Array, width: int, query: Array, slots: Array, bias: Array, out: Array, at: int) -> None:
    """``out[b, at : at + D]`` = y of row b. values (U, >= D), ``width`` is D, query (n,) and slots (n or 1, L) places
    in values or EMPTY, bias (n or 1, L), out (>= n, > at)."""
    keys, start = np.empty((width, slots.shape[1]), np.float32), np.empty(slots.shape[1], np.float32)
    share, scale = np.empty(slots.shape[1], np.float32), np.float32(1 / np.sqrt(width))
    there = False
    for b in range(len(query)):
        row = b if len(slots) > 1 else 0
        if b == 0 or len(slots) > 1:
            there = _gather(values, slots[row], bias[row], keys, start)
        y = out[b, at : at + width]
        for d in range(width):
            y[d] = np.float32(0)
        if not there:
            continue
        _shares(values, query[b], keys, start, scale, share)
        for c in range(len(share)):
            if slots[row, c] != EMPTY:
                k = values[slots[row, c]]
                for d in range(width):
                    y[d] += share[c] * k[d]


@compiled
def slopes(
    values: Array, width: int, query: Array, slots: Array, bias: Array, grad: Array, at: int, share: Array, slope: Array
) -> None:
    """``share`` and ``slope`` (B, L): p and e of each slot, 0 where it is missing, for the gradient g of row b in
    ``grad[b, at : at + D]``. Other arguments as in :func:`attend`, with a row of slots for each of B rows."""
    most = slots.shape[1]
    keys, start, scale = np.empty((width, most), np.float32), np.empty(most, np.float32), np.float32(1 / np.sqrt(width))
    for b in range(len(query)):
        p, h = share[b], slope[b]
        for c in range(most):
            p[c] = h[c] = np.float32(0)
        if not _gather(values, slots[b], bias[b], keys, start):
            continue
        _shares(values, query[b], keys, start, scale, p)
        for d in range(width):
            g = grad[b, at + d]
            for c in range(most):
                h[c] += g * keys[d, c]
        mean = np.float32(0)
        for c in range(most):
            mean += p[c] * h[c]
        for c in range(most):
            h[c] = p[c] * (h[c] - mean)


@compiled
def spread(
    values: Array, query: Array, slots: Array, share: Array, slope: Array, grad: Array, at: int, factor: np.float32,
    out: Array,
) -> None:  # fmt: skip
    """Adds to ``out`` (U, D) the gradients of queries and keys, times ``factor``; ``share`` and ``slope`` are those of
    :func:`slopes`."""
    width = out.shape[1]
    scale = np.float32(1 / np.sqrt(width))
    for b in range(len(query)):
        q = query[b]
        for c in range(slots.shape[1]):
            u = slots[b, c]
            if u == EMPTY:
                continue
            p, e = factor * share[b, c], factor * scale * slope[b, c]
            for d in range(width):
                out[u, d] += p * grad[b, at + d]
            if q != EMPTY:
                for d in range(width):
                    out[u, d] += e * values[q, d]
                    out[q, d] += e * values[u, d]
