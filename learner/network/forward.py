# core
"""The network's half of scoring a page, of one version: n rows in, logits (n,) out, in one of several arithmetics.

The rows of a page differ in V of the network's I input columns; the others are the user's and the context's, the same
in all. Their part of the first product is computed once::

    x (n, I) = own (n, V) | same (1, S)          x W1^T = own W1_own^T + same W1_same^T      (n, H) + (1, H)

and what follows is for own first, then same. The writer of a version lays its weights so (:func:`prepared`): of the
list of the network's layers (learner/network/layers.py) norms are folded into the matrices beside them, and columns are
split and widened. Then all passes have one form, layer by layer::

    a_{l+1} = max(s_l a_{l-1} + a_l W_l^T + b_l, floor_l)        logit = <a_L, w> + b        (s_l = 0: a plain layer)

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
from learner.network.backward import Workspace
from learner.network.layers import DenseLayer, layers_of
from learner.network.models import Network

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
    """Whether there is a :class:`PageForward` of this network: its layers are listed, and there are some."""
    found = layers_of(network)
    return found is not None and bool(found[0])


def forward_of(network: Network, columns: PageColumns, arrays: Mapping[str, NDArray[Any]]) -> PageForward | None:
    """The pass of a network whose weights :func:`prepared` laid into ``arrays``; None: it did not."""
    for arithmetic in ARITHMETICS:
        if _MATRICES + arithmetic in arrays:
            return PageForward(network, columns, arithmetic, arrays[_MATRICES + arithmetic], arrays[_VECTORS])
    return None


def _listed(network: Network) -> tuple[list[DenseLayer], nn.Linear]:
    found = layers_of(network)
    assert found is not None
    return found


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

    def laid(self, rows: Tensor, inputs: bool) -> Tensor:
        """(I, ...) -> (whole, ...) of input columns, else (H, ...) -> (wide H, ...)"""
        laid = rows.new_zeros(self.whole if inputs else self.wide(len(rows)), *rows.shape[1:])
        laid[self.input if inputs else slice(len(rows))] = rows
        return laid


@torch.no_grad()
def prepared(network: Network, columns: PageColumns, arithmetic: Arithmetic) -> Arrays:
    """The weights of one version for :class:`PageForward`: all matrices as the arithmetic takes them, and all vectors
    in float32, one behind another; the part of the first matrix that is for ``same`` is among the vectors. For a
    network that :func:`has_forward`."""
    places = _Places(columns, arithmetic)
    matrices: list[Tensor] = []  # (in, out)
    vectors: list[Tensor] = []
    inputs = True  # whether what goes into the layer has the network's input columns
    layers, out = _listed(network)
    for layer in layers:
        folded = layer.folded()
        matrices.append(places.laid(places.laid(folded.weight, layer.skips).t(), inputs))
        inputs = layer.skips
        vectors += [places.laid(v, inputs) for v in ([folded.skip] if inputs else []) + [folded.bias]]
    of_own, of_same = matrices[0][: places.own], matrices[0][places.own : places.own + places.same]
    of_own = nn.functional.pad(of_own, (0, 0, 0, places.first - places.own))
    flat = torch.cat([m.reshape(-1) for m in (of_own, *matrices[1:])])
    laid = flat.to(torch.bfloat16).view(torch.uint16) if arithmetic == "bfloat16" else flat
    whole = torch.cat([of_same.reshape(-1), *vectors, places.laid(out.weight[0], inputs), out.bias])
    return {_MATRICES + arithmetic: laid.numpy(), _VECTORS: whole.numpy()}


class _Laid(NamedTuple):
    """A layer as :func:`prepared` laid it."""

    matrix: Tensor  # (in, out)
    bias: Floats  # (out,)
    skip: Floats | None  # (out,) s
    floor: np.float32


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

        self._layers: list[_Laid] = []
        inner = places.first
        for layer in _listed(network)[0]:
            outer = places.whole if layer.skips else places.wide(layer.linear.out_features)
            if not self._layers:
                self._of_same = torch.from_numpy(vector(places.same * outer)).view(places.same, outer)
            matrix = flat[at : at + inner * outer].view(inner, outer)
            skip = vector(outer) if layer.skips else None
            self._layers.append(_Laid(matrix, vector(outer), skip, np.float32(layer.floor)))
            at, inner = at + inner * outer, outer
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
        entry = earlier = given.own[:n], same  # what goes into a layer, and went into the one before
        out = np.empty(n, np.float32)
        with torch.no_grad():
            bias = (torch.from_numpy(same) @ self._of_same).numpy()
            bias += self._layers[0].bias
            for k, layer in enumerate(self._layers):
                x = self._product(x, layer.matrix, room, f"a{k % 3}")  # two before it are still read
                z, last = x[:n], layer is self._layers[-1]
                if layer.skip is not None:
                    grown = (*earlier, self._own, layer.skip, z, layer.bias, layer.floor)
                    if last:
                        bfloat16.residual_dot(*grown, self._weight, self._bias, out)
                    else:
                        bfloat16.residual(*grown)
                elif last:
                    bfloat16.relu_dot(z, bias if not k else layer.bias[None], self._weight, self._bias, out)
                else:
                    bfloat16.bias_relu(z, bias if not k else layer.bias[None])
                earlier, entry = entry, (z, same[:1, :0])
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
