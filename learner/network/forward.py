# core
"""The network's half of scoring, of one version: x (n, I) in, logits (n,) out, in float32 or with bfloat16 products.

In float32 it is the passes of learner/network/backward.py, bit for bit the learner's scores. With matrix products in
bfloat16 (:class:`HalfForward`) the writer of a version converts its weights (:func:`prepared`), and norms become part
of them: in evaluation mode a norm is ``y = f (x - m) + beta`` with a constant f = gamma / sqrt(var + eps). Every
network with written-out passes then has one form::

    Wide&Deep     h = ReLU(x W1^T + b1)                                     layer by layer, then <h, w> + b
    Wide&ResNet   h = ReLU(x W1^T + b1)    x = max(s x + h W2^T + b2, floor)    unit by unit, then <x, w> + b

where for the norm's placement (see learner/network/models/wide_resnet.py; the rest is the network's own, s = 1)::

    inner   W1 := f W1, b1 := f (b1 - m) + beta          floor = 0
    pre     W1 := W1 f, b1 := b1 + W1 (beta - f m)       floor = -inf
    post    W2 := f W2, b2 := f (b2 - m) + beta, s = f   floor = 0

Operands and results of the products, and x, are rounded to 8 bits; sums, biases, norms and the logit are float32. A
matrix lies as W^T (in, out). Zeros widen all columns to multiples of :data:`_STEP`, which makes the products a third
faster. Arbitrary values widen the rows (:func:`rows_of`): torch's library compiles a kernel for each new size of a
product, for more than a millisecond.

Symbols: n rows; I input columns; H hidden columns of a layer or unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.network import bfloat16
from learner.network.backward import Workspace, written_pass
from learner.network.models import Network
from learner.network.models.norm import EPSILON, BatchNorm
from learner.network.models.wide_deep import WideDeep
from learner.network.models.wide_resnet import Residual, WideResNet

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

_STEP = 32  # bfloat16 values in a row of a matrix unit's tile
_ROWS = 64
_MATRICES, _VECTORS = "half/matrices", "half/vectors"  # names of what :func:`prepared` gives


def matrix_units() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware that torch uses (AMX, by Linux's cpuinfo).
    Without it bfloat16 products are no faster than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "amx_bf16" in flags and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Forward(Protocol):
    def infer(self, x: Tensor, room: Workspace) -> Floats:
        """Logits (n,) of x (n, I). Writes to ``room`` alone: threads may call it at once, each with its own."""
        ...


def has_forward(network: Network) -> bool:
    return written_pass(network) is not None


def forward_of(network: Network, arrays: Mapping[str, NDArray[Any]]) -> Forward:
    """The forward pass of a network: in bfloat16 if its ``arrays`` were :func:`prepared`, else the one of learning."""
    if _MATRICES in arrays:
        return HalfForward(_stack(network), arrays[_MATRICES], arrays[_VECTORS])
    written = written_pass(network)
    assert written is not None
    return written


# -- bfloat16 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stack:
    """``layers``: (in, out) of each matrix. ``floors``: of each residual unit (two matrices); none for plain layers."""

    layers: tuple[tuple[int, int], ...]
    floors: tuple[float, ...]

    @property
    def units(self) -> bool:
        return bool(self.floors)


def _linears(network: Network) -> list[nn.Linear]:
    assert isinstance(network, WideDeep)
    return [layer for layer in network.deep_part.layers if isinstance(layer, nn.Linear)]


def _units(network: Network) -> list[Residual]:
    assert isinstance(network, WideResNet)
    return [unit for unit in network.units if isinstance(unit, Residual)]


def _stack(network: Network) -> _Stack:
    if isinstance(network, WideDeep):
        return _Stack(tuple(_shape(layer) for layer in _linears(network)), ())
    units = _units(network)
    layers = tuple(_shape(layer) for unit in units for layer in (unit.w1, unit.w2))
    return _Stack(layers, tuple(-np.inf if unit.placement == "pre" else 0.0 for unit in units))


def rows_of(n: int) -> int:
    """The rows of a padded product of n rows: 32, or a multiple of 64."""
    return _STEP if n <= _STEP else -(-n // _ROWS) * _ROWS


def _shape(layer: nn.Linear) -> tuple[int, int]:
    return layer.in_features, layer.out_features


def _wide(size: int) -> int:
    return -(-size // _STEP) * _STEP


@torch.no_grad()
def prepared(network: Network) -> Arrays:
    """The weights of one version for :class:`HalfForward`: all matrices in bfloat16, all vectors in float32, one behind
    another. Empty without matrices. For a network that :func:`has_forward`."""
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    if isinstance(network, WideDeep):
        for layer in _linears(network):
            matrices.append(layer.weight)
            vectors.append(layer.bias)
        out = network.deep_part.out
    else:
        for unit in _units(network):
            w1, b1, w2, b2, s = _without_norm(unit)
            matrices += [w1, w2]
            vectors += [b1, s, b2]
        out = network.out  # type: ignore[assignment]
    vectors.append(out.weight[0])
    if not matrices:
        return {}
    laid = [torch.zeros(_wide(m.shape[1]), _wide(m.shape[0]), dtype=torch.bfloat16) for m in matrices]
    for into, matrix in zip(laid, matrices, strict=True):
        into[: matrix.shape[1], : matrix.shape[0]] = matrix.t()
    flat = torch.cat([m.reshape(-1) for m in laid])
    wide = [nn.functional.pad(v, (0, _wide(len(v)) - len(v))) for v in vectors]
    return {_MATRICES: flat.view(torch.uint16).numpy(), _VECTORS: torch.cat([*wide, out.bias]).numpy()}


def _without_norm(unit: Residual) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W1, b1, W2, b2, s of a unit whose norm is part of them, by the module's formulas."""
    norm = unit.norm
    w1, b1, w2, b2 = (t.detach() for t in (unit.w1.weight, unit.w1.bias, unit.w2.weight, unit.w2.bias))
    s = torch.ones_like(b2)
    if isinstance(norm, BatchNorm):
        f = norm.gamma / torch.sqrt(norm.var + EPSILON)
        shift = norm.beta - f * norm.mean
        if unit.placement == "inner":
            w1, b1 = f[:, None] * w1, f * b1 + shift
        elif unit.placement == "pre":
            w1, b1 = w1 * f, b1 + w1 @ shift
        else:
            w2, b2, s = f[:, None] * w2, f * b2 + shift, f
    return w1, b1, w2, b2, s


class HalfForward:
    def __init__(self, stack: _Stack, matrices: NDArray[np.uint16], vectors: Floats) -> None:
        self._stack = stack
        flat = bfloat16.as_tensor(matrices)
        self._matrices: list[Tensor] = []
        self._vectors: list[Floats] = []
        at = place = 0
        for k, (inner, outer) in enumerate(stack.layers):
            shape = _wide(inner), _wide(outer)
            self._matrices.append(flat[at : at + shape[0] * shape[1]].view(shape))
            at += shape[0] * shape[1]
            for _ in range(2 if stack.units and k % 2 else 1):
                self._vectors.append(vectors[place : place + shape[1]])
                place += shape[1]
        self._weight, self._bias = vectors[place:-1], np.float32(vectors[-1])

    def infer(self, x: Tensor, room: Workspace) -> Floats:
        out = np.empty(len(x), np.float32)
        half = _take(room, "x", rows_of(len(x)), _wide(x.shape[1]))
        bfloat16.rounded(x.numpy(), half[: len(x)])
        if self._stack.units:
            self._through_units(half, room, out)
        else:
            self._through_layers(half, room, out)
        return out

    def _through_layers(self, x: bfloat16.Half, room: Workspace, out: Floats) -> None:
        last = len(self._matrices) - 1
        for k, (matrix, bias) in enumerate(zip(self._matrices, self._vectors, strict=True)):
            z = self._product(x, matrix, room, f"h{k}")
            if k == last:
                bfloat16.relu_dot(z[: len(out)], bias, self._weight, self._bias, out)
            else:
                bfloat16.bias_relu(z[: len(out)], bias)
            x = z

    def _through_units(self, x: bfloat16.Half, room: Workspace, out: Floats) -> None:
        last, n = len(self._stack.floors) - 1, len(out)
        for k, floor in enumerate(self._stack.floors):
            b1, s, b2 = self._vectors[3 * k : 3 * k + 3]
            h = self._product(x, self._matrices[2 * k], room, "h")
            bfloat16.bias_relu(h[:n], b1)
            z = self._product(h, self._matrices[2 * k + 1], room, "z")
            if k == last:
                bfloat16.residual_dot(x[:n], s, z[:n], b2, np.float32(floor), self._weight, self._bias, out)
            else:
                bfloat16.residual(x[:n], s, z[:n], b2, np.float32(floor))

    def _product(self, a: bfloat16.Half, matrix: Tensor, room: Workspace, name: str) -> bfloat16.Half:
        """``a matrix``: (n, in), (in, out) -> (n, out)"""
        z = _take(room, name, len(a), matrix.shape[1])
        with torch.inference_mode():
            torch.mm(bfloat16.as_tensor(a), matrix, out=bfloat16.as_tensor(z))
        return z


def _take(room: Workspace, name: str, rows: int, columns: int) -> bfloat16.Half:
    single = room.array(f"half {name}", rows, (columns + 1) // 2)
    flat: bfloat16.Half = single.reshape(-1).view(np.uint16)
    return flat[: rows * columns].reshape(rows, columns)
