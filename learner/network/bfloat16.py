# core
"""The elementwise loops between matrix products in bfloat16, each a single pass over its arrays.

A bfloat16 is the upper half of a float32 (8 bits of mantissa, the same exponents). Arrays of them are uint16 here:
numpy and numba know no such type, and torch sees the same memory as its own. A float32 is rounded to the nearest, ties
to even, as in torch; NaN stays NaN. The GIL is released. Symbols: n rows, C columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from millrace.basics.compiled import compiled

Array = NDArray[Any]
Half = NDArray[np.uint16]


@njit(inline="always")
def to_single(half: Any) -> Any:
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def to_half(single: Any) -> Any:
    bits = np.float32(single).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(rounded if single == single else np.uint32(0x7FC0))


@compiled
def rounded(x: Array, out: Half) -> None:
    """``out`` (n, >= C) = ``x`` (n, C) in bfloat16, and 0 in further columns."""
    columns = x.shape[1]
    for b in range(len(x)):
        row, into = x[b], out[b]
        for c in range(columns):
            into[c] = to_half(row[c])
        for c in range(columns, len(into)):
            into[c] = np.uint16(0)


@compiled
def bias_relu(z: Half, bias: Array) -> None:
    """``z = ReLU(z + bias)``; z (n, C), bias (C,) float32"""
    for b in range(len(z)):
        row = z[b]
        for c in range(len(bias)):
            value = to_single(row[c]) + bias[c]
            row[c] = to_half(np.float32(0) if value <= np.float32(0) else value)


@compiled
def residual(x: Half, factor: Array, z: Half, bias: Array, floor: np.float32) -> None:
    """``x = max(factor x + z + bias, floor)``; x, z (n, C), factor, bias (C,) float32"""
    for b in range(len(x)):
        row, more = x[b], z[b]
        for c in range(len(bias)):
            value = factor[c] * to_single(row[c]) + to_single(more[c]) + bias[c]
            row[c] = to_half(floor if value <= floor else value)  # not max(): NaN comes through


@compiled(fastmath={"reassoc", "contract"})  # sums side by side, in vector registers
def residual_dot(
    x: Half, factor: Array, z: Half, bias: Array, floor: np.float32, weight: Array, shift: np.float32, out: Array
) -> None:
    """``out[b] = <max(factor x_b + z_b + bias, floor), weight> + shift``; weight (C,), out (n,)"""
    for b in range(len(x)):
        row, more, total = x[b], z[b], shift
        for c in range(len(bias)):
            value = factor[c] * to_single(row[c]) + to_single(more[c]) + bias[c]
            total += (floor if value <= floor else value) * weight[c]
        out[b] = total


@compiled(fastmath={"reassoc", "contract"})
def relu_dot(z: Half, bias: Array, weight: Array, shift: np.float32, out: Array) -> None:
    """``out[b] = <ReLU(z_b + bias), weight> + shift``; z (n, C), bias, weight (C,) float32, out (n,)"""
    for b in range(len(z)):
        row, total = z[b], shift
        for c in range(len(bias)):
            value = to_single(row[c]) + bias[c]
            total += (np.float32(0) if value <= np.float32(0) else value) * weight[c]
        out[b] = total


def as_tensor(array: Half) -> Tensor:
    return torch.from_numpy(array).view(torch.bfloat16)
