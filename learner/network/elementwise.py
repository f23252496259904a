# core
"""The elementwise loops between the matrix products of learner/network/backward.py, each a single pass over its arrays.

Torch would pass over the arrays a dozen times between two products, each time into fresh memory; for wide layers that
costs as much as the products. The GIL is released.

Symbols: B rows, C columns. Arrays are float32, by default (B, C) or (C,). A sum over rows is a float64 sum of float32
sums of :data:`_ROWS` rows each, so its error does not grow with B.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled

Array = NDArray[Any]

_ROWS = 64


@compiled
def bias_relu(x: Array, bias: Array) -> None:
    """``x = ReLU(x + bias)``"""
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            value = x[b, c] + bias[c]
            # Not max(): NaN must come through, so that the guard sees it.
            x[b, c] = np.float32(0) if value <= np.float32(0) else value


@compiled
def residual(x: Array, z: Array, bias: Array, floor: np.float32) -> None:
    """``z = max(x + z + bias, floor)``"""
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            value = x[b, c] + z[b, c] + bias[c]
            z[b, c] = floor if value <= floor else value  # not max(): NaN comes through


@compiled
def add_bias(x: Array, bias: Array, total: Array) -> None:
    """``x += bias``; ``total = sum_b x``"""
    part = np.empty(x.shape[1], np.float32)
    whole = np.zeros(len(part))
    for first in range(0, x.shape[0], _ROWS):
        part[:] = np.float32(0)
        for b in range(first, min(first + _ROWS, x.shape[0])):
            for c in range(x.shape[1]):
                value = x[b, c] + bias[c]
                x[b, c] = value
                part[c] += value
        whole += part
    total[:] = whole


@compiled
def sums(x: Array, total: Array) -> None:
    """``total = sum_b x``"""
    part = np.empty(x.shape[1], np.float32)
    whole = np.zeros(len(part))
    for first in range(0, x.shape[0], _ROWS):
        part[:] = np.float32(0)
        for b in range(first, min(first + _ROWS, x.shape[0])):
            for c in range(x.shape[1]):
                part[c] += x[b, c]
        whole += part
    total[:] = whole


@compiled
def squares(x: Array, mean: Array, total: Array) -> None:
    """``total = sum_b (x - mean)^2``"""
    part = np.empty(x.shape[1], np.float32)
    whole = np.zeros(len(part))
    for first in range(0, x.shape[0], _ROWS):
        part[:] = np.float32(0)
        for b in range(first, min(first + _ROWS, x.shape[0])):
            for c in range(x.shape[1]):
                shift = x[b, c] - mean[c]
                part[c] += shift * shift
        whole += part
    total[:] = whole


@compiled
def scale(x: Array, mean: Array, factor: Array, shift: Array, relu: bool, out: Array) -> None:
    """``out = factor (x - mean) + shift``, and its ReLU if ``relu``."""
    if relu:
        for b in range(x.shape[0]):
            for c in range(x.shape[1]):
                value = factor[c] * (x[b, c] - mean[c]) + shift[c]
                out[b, c] = np.float32(0) if value <= np.float32(0) else value
    else:
        for b in range(x.shape[0]):
            for c in range(x.shape[1]):
                out[b, c] = factor[c] * (x[b, c] - mean[c]) + shift[c]


@compiled
def standardise(x: Array, mean: Array, factor: Array, bound: np.float32, out: Array, at: int) -> None:
    """``out[:, at + c] = clip(factor (x - mean), -bound, bound)``; out (B, >= at + C)"""
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            value = factor[c] * (x[b, c] - mean[c])
            value = bound if value > bound else value
            out[b, at + c] = -bound if value < -bound else value


@compiled
def through_relu(grad: Array, out: Array, total: Array) -> None:
    """Backward through ``out = ReLU(.)``: ``grad = 0 where out is 0``; ``total = sum_b grad``"""
    part = np.empty(grad.shape[1], np.float32)
    whole = np.zeros(len(part))
    for first in range(0, grad.shape[0], _ROWS):
        part[:] = np.float32(0)
        for b in range(first, min(first + _ROWS, grad.shape[0])):
            for c in range(grad.shape[1]):
                value = grad[b, c] if out[b, c] > np.float32(0) else np.float32(0)
                grad[b, c] = value
                part[c] += value
        whole += part
    total[:] = whole


@compiled
def products(grad: Array, x: Array, mean: Array, total: Array) -> None:
    """``total = sum_b grad (x - mean)``"""
    part = np.empty(grad.shape[1], np.float32)
    whole = np.zeros(len(part))
    for first in range(0, grad.shape[0], _ROWS):
        part[:] = np.float32(0)
        for b in range(first, min(first + _ROWS, grad.shape[0])):
            for c in range(grad.shape[1]):
                part[c] += grad[b, c] * (x[b, c] - mean[c])
        whole += part
    total[:] = whole


@compiled
def combine(grad: Array, x: Array, mean: Array, a: Array, k: Array, shift: Array) -> None:
    """``grad = a grad + k (x - mean) + shift``"""
    for b in range(grad.shape[0]):
        for c in range(grad.shape[1]):
            grad[b, c] = a[c] * grad[b, c] + k[c] * (x[b, c] - mean[c]) + shift[c]


@compiled
def dot(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """``out[b] = <x_b, weight> + bias``; weight (C,), bias (1,), out (B,)"""
    lanes = np.empty(16, np.float32)  # sixteen sums side by side: one vector register
    whole = x.shape[1] // 16 * 16
    for b in range(x.shape[0]):
        lanes[:] = np.float32(0)
        for first in range(0, whole, 16):
            for j in range(16):
                lanes[j] += x[b, first + j] * weight[first + j]
        total = bias[0]
        for j in range(16):
            total += lanes[j]
        for c in range(whole, x.shape[1]):
            total += x[b, c] * weight[c]
        out[b] = total


@compiled
def outer(slope: Array, weight: Array, out: Array) -> None:
    """``out = slope weight^T``; slope (B,), weight (C,)"""
    for b in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[b, c] = slope[b] * weight[c]


@compiled
def logistic(logit: Array, wide: Array, label: Array, weight: Array, loss: Array, slope: Array) -> float:
    """Losses ``-y log p - (1 - y) log(1 - p)`` of ``p = sigmoid(logit + wide)``, and ``slope = weight (p - y)``, all
    (B,); returns ``sum weight loss``."""
    total = 0.0
    for b in range(len(logit)):
        t = logit[b] + wide[b]
        small = np.exp(-np.abs(t))  # at most 1
        loss[b] = max(t, np.float32(0)) - t * label[b] + np.log1p(small) if t == t else t
        p = np.float32(1) / (np.float32(1) + small)
        slope[b] = ((p if t >= np.float32(0) else np.float32(1) - p) - label[b]) * weight[b]
        total += weight[b] * loss[b]
    return total
