# core
"""The elementwise loops between the matrix products of a page's forward pass, each a single pass over its arrays.

Arrays between products are float32 or bfloat16, the same loops serve both; vectors are float32. A bfloat16 is the upper
half of a float32 (8 bits of mantissa, the same exponents). Arrays of them are uint16 here: numpy and numba know no such
type, and torch sees the same memory as its own. A float32 is rounded to the nearest, ties to even, as in torch; NaN
stays NaN. The GIL is released.

Symbols: n rows, C columns; x has V of them, ``same`` the rest (learner/network/forward.py); ``same`` and ``bias`` have
n rows or one for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
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
    nan = np.uint32(0) - np.uint32(single != single)  # all bits or none: numba warns of a branch that it inlines twice
    return np.uint16((rounded & ~nan) | (np.uint32(0x7FC0) & nan))


def _read(value: Any) -> Any:
    """An element of an array of either kind, as float32."""


def _like(array: Any, value: Any) -> Any:
    """A float32 as an element of ``array``."""


@overload(_read, inline="always", strict=False)
def _reads(value: Any) -> Any:
    if isinstance(value, types.Float):
        return lambda value: value
    return lambda value: to_single(value)  # noqa: PLW0108 - the names of arguments count


@overload(_like, inline="always", strict=False)
def _likes(array: Any, value: Any) -> Any:
    if isinstance(array.dtype, types.Float):
        return lambda array, value: value

    return lambda array, value: to_half(value)


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
def bias_relu(z: Array, bias: Array) -> None:
    """``z = ReLU(z + bias)``; z (n, C), bias (n or 1, C)"""
    for b in range(len(z)):
        row, shift = z[b], bias[b if len(bias) > 1 else 0]
        for c in range(len(shift)):
            value = _read(row[c]) + shift[c]
            row[c] = _like(z, np.float32(0) if value <= np.float32(0) else value)


@njit(inline="always")
def _grow(x: Any, factor: Any, z: Any, bias: Any, floor: Any) -> Any:
    for c in range(len(x)):
        value = factor[c] * _read(x[c]) + _read(z[c]) + bias[c]
        z[c] = _like(z, floor if value <= floor else value)  # not max(): NaN comes through


@compiled
def residual(x: Array, same: Array, at: int, factor: Array, z: Array, bias: Array, floor: np.float32) -> None:
    """``z = max(factor (x, same) + z + bias, floor)``; x (n, V), same (n or 1, S) from column ``at`` on, z (n, C),
    factor, bias (C,)"""
    for b in range(len(z)):
        _grow(x[b], factor, z[b], bias, floor)
        _grow(same[b if len(same) > 1 else 0], factor[at:], z[b, at:], bias[at:], floor)


@compiled(fastmath={"reassoc", "contract"})  # sums side by side, in vector registers
def residual_dot(
    x: Array,
    same: Array,
    at: int,
    factor: Array,
    z: Array,
    bias: Array,
    floor: np.float32,
    weight: Array,
    shift: np.float32,
    out: Array,
) -> None:
    """``out[b] = <max(factor (x, same)_b + z_b + bias, floor), weight> + shift``; weight (C,), out (n,)"""
    for b in range(len(out)):
        row, rest, more, total = x[b], same[b if len(same) > 1 else 0], z[b], shift
        for c in range(len(row)):
            value = factor[c] * _read(row[c]) + _read(more[c]) + bias[c]
            total += (floor if value <= floor else value) * weight[c]
        for c in range(len(rest)):
            value = factor[at + c] * rest[c] + _read(more[at + c]) + bias[at + c]
            total += (floor if value <= floor else value) * weight[at + c]
        out[b] = total


@compiled(fastmath={"reassoc", "contract"})
def relu_dot(z: Array, bias: Array, weight: Array, shift: np.float32, out: Array) -> None:
    """``out[b] = <ReLU(z_b + bias), weight> + shift``; z (n, C), bias (n or 1, C), weight (C,), out (n,)"""
    for b in range(len(out)):
        row, more, total = z[b], bias[b if len(bias) > 1 else 0], shift
        for c in range(len(more)):
            value = _read(row[c]) + more[c]
            total += (np.float32(0) if value <= np.float32(0) else value) * weight[c]
        out[b] = total


def as_tensor(array: Half) -> Tensor:
    return torch.from_numpy(array).view(torch.bfloat16)
