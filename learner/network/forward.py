# core
"""The network's half of scoring a page, of one version: n rows in, logits (n,) out, in one of several arithmetics.

The rows of a page differ in V of the network's I input columns; the others are the user's and the context's, the same
in all. Their part of the first product is computed once::

    x (n, I) = own (n, V) | same (1, S)          x W1^T = own W1_own^T + same W1_same^T      (n, H) + (1, H)

and what follows is for own first, then same. The writer of a version lays its weights so (:func:`prepared`), and norms
become part of the matrices beside them (f = gamma / deviation). A pass then has one form::

    Wide&Deep     h = ReLU(x W1^T + b1)                                     layer by layer, then <h, w> + b
    Wide&ResNet   h = ReLU(x W1^T + b1)    x = max(s x + h W2^T + b2, floor)    unit by unit, then <x, w> + b

where for the norm's placement (see learner/network/models/wide_resnet.py; the rest is the network's own, s = 1)::

    inner   W1 := f W1, b1 := f (b1 - m) + beta          floor = 0
    pre     W1 := W1 f, b1 := b1 + W1 (beta - f m)       floor = -inf
    post    W2 := f W2, b2 := f (b2 - m) + beta, s = f   floor = 0

Which arithmetic is fastest depends on processor and library, so a scorer measures them (scorer/feeder/arithmetic.py)::

    float32          torch's products, as the learner's
    float32_onednn   products by oneDNN: where MKL does not use the processor well, less than half of the time
    bfloat16         operands and results of the products, and x, are rounded to 8 bits; sums, biases, norms, what is
                     the same in all rows and the logit are float32

A matrix lies as W^T (in, out). In bfloat16 zeros widen all columns to multiples of :data:`_STEP`, which makes the
products a third faster. Arbitrary values widen the rows (:func:`rows_of`): torch's library compiles a kernel for each
new size of a product, for more than a millisecond.

Symbols: n rows; I input columns, V own, S same; H hidden columns of a layer or unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

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
Arithmetic = Literal["float32", "float32_onednn", "bfloat16"]
ARITHMETICS: tuple[Arithmetic, ...] = get_args(Arithmetic)

_STEP = 32  # bfloat16 values in a row of a matrix unit's tile
_ROWS = 64
_MATRICES, _VECTORS = "page/matrices/", "page/vectors"  # names of what :func:`prepared` gives; the first names how


@dataclass(frozen=True, slots=True, eq=False)
class PageColumns:
    """Columns of a network's input: those that differ between the rows of a page, and those that do not."""

    own: NDArray[np.intp]  # (V,)
    same: NDArray[np.intp]  # (S,)

    @classmethod
    def of(cls, same: NDArray[np.bool_]) -> PageColumns:
        return cls(np.flatnonzero(~same), np.flatnonzero(same))

    @property
    def place(self) -> NDArray[np.int32]:
        """Where each column of the network lies: p >= 0 in ``own``, -1 - p in ``same``. (I,)"""
        place = np.empty(len(self.own) + len(self.same), np.int32)
        place[self.own] = np.arange(len(self.own))
        place[self.same] = -1 - np.arange(len(self.same))
        return place


class PageInput(NamedTuple):
    """The input of n rows. ``same`` may have a row for each, where no page is scored."""

    own: Floats  # (rows_of(n), V), of which the first n rows count
    same: Floats  # (1 or n, S)
    n: int


def rows_of(n: int) -> int:
    """The rows of a padded product of n rows: 32, or a multiple of 64."""
    return _STEP if n <= _STEP else -(-n // _ROWS) * _ROWS


def has_forward(network: Network) -> bool:
    """Whether there is a :class:`PageForward` of this network: its pass is written out, and it has matrices."""
    return written_pass(network) is not None and bool(_matrices(network))


def forward_of(network: Network, columns: PageColumns, arrays: Mapping[str, NDArray[Any]]) -> PageForward | None:
    """The pass of a network whose weights :func:`prepared` laid into ``arrays``; None: it did not."""
    for arithmetic in ARITHMETICS:
        if _MATRICES + arithmetic in arrays:
            return PageForward(network, columns, arithmetic, arrays[_MATRICES + arithmetic], arrays[_VECTORS])
    return None


def _units(network: WideResNet) -> list[Residual]:
    return [unit for unit in network.units if isinstance(unit, Residual)]


def _matrices(network: Network) -> list[nn.Linear]:
    """In the order of the pass; of each residual unit two."""
    if isinstance(network, WideDeep):
        return [layer for layer in network.deep_part.layers if isinstance(layer, nn.Linear)]
    assert isinstance(network, WideResNet)
    return [layer for unit in _units(network) for layer in (unit.w1, unit.w2)]


class _Places:
    """Where columns lie in the arrays of a pass: input columns own first, then same. Both together are widened to
    ``step``; and own alone, for the first product."""

    def __init__(self, columns: PageColumns, arithmetic: Arithmetic) -> None:
        self.step = _STEP if arithmetic == "bfloat16" else 1
        self.own, self.same = len(columns.own), len(columns.same)
        self.first, self.whole = self.wide(self.own), self.wide(self.own + self.same)
        place = columns.place
        self.input = torch.from_numpy(np.where(place < 0, self.own - 1 - place, place).astype(np.int64))  # (I,)

    def wide(self, size: int) -> int:
        return -(-size // self.step) * self.step

    def widened(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., wide H)"""
        return nn.functional.pad(hidden, (0, self.wide(hidden.shape[-1]) - hidden.shape[-1]))

    def inputs(self, rows: Tensor) -> Tensor:
        """(I, ...) -> (whole, ...)"""
        laid = rows.new_zeros(self.whole, *rows.shape[1:])
        laid[self.input] = rows
        return laid


@torch.no_grad()
def prepared(network: Network, columns: PageColumns, arithmetic: Arithmetic) -> Arrays:
    """The weights of one version for :class:`PageForward`: all matrices as the arithmetic takes them, and all vectors
    in float32, one behind another; the part of the first matrix that is for ``same`` is among the vectors. For a
    network that :func:`has_forward`."""
    places = _Places(columns, arithmetic)
    matrices: list[Tensor] = []  # (in, out)
    vectors: list[Tensor] = []
    if isinstance(network, WideDeep):
        for layer in _matrices(network):
            of_inputs = not matrices
            matrix = places.widened(layer.weight.t())
            matrices.append(places.inputs(matrix) if of_inputs else places.widened(matrix.t()).t())
            vectors.append(places.widened(layer.bias))
        out, weight = network.deep_part.out, places.widened(network.deep_part.out.weight[0])
    else:
        assert isinstance(network, WideResNet)
        for unit in _units(network):
            w1, b1, w2, b2, s = _without_norm(unit)
            matrices += [places.inputs(places.widened(w1.t())), places.inputs(places.widened(w2)).t()]
            vectors += [places.widened(b1), places.inputs(s), places.inputs(b2)]
        out, weight = network.out, places.inputs(network.out.weight[0])
    of_own, of_same = matrices[0][: places.own], matrices[0][places.own : places.own + places.same]
    of_own = nn.functional.pad(of_own, (0, 0, 0, places.first - places.own))
    flat = torch.cat([m.reshape(-1) for m in (of_own, *matrices[1:])])
    laid = flat.to(torch.bfloat16).view(torch.uint16) if arithmetic == "bfloat16" else flat
    whole = torch.cat([of_same.reshape(-1), *vectors, weight, out.bias])
    return {_MATRICES + arithmetic: laid.numpy(), _VECTORS: whole.numpy()}


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


class PageForward:
    """Writes to the ``room`` of its callers alone: threads may call it at once, each with its own."""

    def __init__(
        self,
        network: Network,
        columns: PageColumns,
        arithmetic: Arithmetic,
        matrices: NDArray[Any],
        vectors: Floats,
    ) -> None:
        self.arithmetic, self._columns = arithmetic, columns
        places = _Places(columns, arithmetic)
        self._own, self._first = places.own, places.first
        flat = bfloat16.as_tensor(matrices) if arithmetic == "bfloat16" else torch.from_numpy(matrices)
        at = place = 0

        def vector(size: int) -> Floats:
            nonlocal place
            place += size
            return vectors[place - size : place]

        self._floors: list[np.float32] = []  # of each residual unit; none for plain layers
        if isinstance(network, WideResNet):
            self._floors = [np.float32(-np.inf if u.placement == "pre" else 0) for u in _units(network)]
        self._matrices: list[Tensor] = []
        self._vectors: list[Floats] = []
        for k, layer in enumerate(_matrices(network)):
            inner, outer = places.wide(layer.in_features), places.wide(layer.out_features)
            if self._floors:
                inner, outer = (inner, places.whole) if k % 2 else (places.whole, outer)
            if not k:
                inner = places.first
                self._of_same = torch.from_numpy(vector(places.same * outer)).view(places.same, outer)
            self._matrices.append(flat[at : at + inner * outer].view(inner, outer))
            at += inner * outer
            self._vectors += [vector(outer) for _ in range(2 if self._floors and k % 2 else 1)]
        self._weight, self._bias = vectors[place:-1], np.float32(vectors[-1])

    def infer(self, x: Tensor, room: Workspace) -> Floats:
        """Logits (n,) of any rows x (n, I), in the order of the network's columns."""
        n, columns = len(x), self._columns
        own = room.array("rows own", rows_of(n), len(columns.own))
        np.take(x.numpy(), columns.own, axis=1, out=own[:n])
        return self.page(PageInput(own, x.numpy()[:, columns.same], n), room)

    def page(self, given: PageInput, room: Workspace) -> Floats:
        """Logits (n,)"""
        x, same, n = self._operand(given, room), given.same, given.n
        with torch.no_grad():
            first = (torch.from_numpy(same) @ self._of_same).numpy()
            first += self._vectors[0]
            out = np.empty(n, np.float32)
            if self._floors:
                self._through_units(x, given, first, room, out)
            else:
                self._through_layers(x, first, room, out)
        return out

    def _operand(self, given: PageInput, room: Workspace) -> NDArray[Any]:
        """The input of the first product."""
        if self.arithmetic == "float32_onednn":
            return given.own
        if self.arithmetic == "float32":
            return given.own[: given.n]
        half = _halves(room, "x", len(given.own), self._first)
        bfloat16.rounded(given.own[: given.n], half[: given.n])
        return half

    def _through_layers(self, x: NDArray[Any], bias: Floats, room: Workspace, out: Floats) -> None:
        n, last = len(out), len(self._matrices) - 1
        for k, matrix in enumerate(self._matrices):
            z = self._product(x, matrix, room, f"h{k}")
            bias = self._vectors[k][None] if k else bias
            if k == last:
                bfloat16.relu_dot(z[:n], bias, self._weight, self._bias, out)
            else:
                bfloat16.bias_relu(z[:n], bias)
            x = z

    def _through_units(self, x: NDArray[Any], given: PageInput, bias: Floats, room: Workspace, out: Floats) -> None:
        n, last = len(out), len(self._floors) - 1
        before, same = given.own[:n], given.same
        for k, floor in enumerate(self._floors):
            b1, s, b2 = self._vectors[3 * k : 3 * k + 3]
            h = self._product(x, self._matrices[2 * k], room, "h")
            bfloat16.bias_relu(h[:n], b1[None] if k else bias)
            x = self._product(h, self._matrices[2 * k + 1], room, f"z{k % 2}")
            z = x[:n]
            if k == last:
                bfloat16.residual_dot(before, same, self._own, s, z, b2, floor, self._weight, self._bias, out)
            else:
                bfloat16.residual(before, same, self._own, s, z, b2, floor)
            before, same = z, same[:1, :0]

    def _product(self, a: NDArray[Any], matrix: Tensor, room: Workspace, name: str) -> NDArray[Any]:
        """``a matrix``: (n, in), (in, out) -> (n, out)"""
        if self.arithmetic == "float32_onednn":
            z = torch.ops.mkldnn._linear_pointwise(torch.from_numpy(a), matrix.t(), None, "none", [], "")
            found: Floats = z.numpy()
            return found
        if self.arithmetic == "float32":
            single = room.array(name, len(a), matrix.shape[1])
            torch.mm(torch.from_numpy(a), matrix, out=torch.from_numpy(single))
            return single
        half = _halves(room, name, len(a), matrix.shape[1])
        torch.mm(bfloat16.as_tensor(a), matrix, out=bfloat16.as_tensor(half))
        return half


def _halves(room: Workspace, name: str, rows: int, columns: int) -> bfloat16.Half:
    single = room.array(f"half {name}", rows, (columns + 1) // 2)
    flat: bfloat16.Half = single.reshape(-1).view(np.uint16)
    return flat[: rows * columns].reshape(rows, columns)
