# core
"""Forward and backward passes of Wide&Deep and Wide&ResNet written out, without autograd; and forward to score.

The networks' ``forward`` stays the definition: tests compare these passes with it. They save fresh memory for each
intermediate (at thousands of rows it costs as much as a matrix product), autograd's nodes and small operators (which
cost most at a hundred rows), and the unused gradient of the number columns of x.

Symbols: B rows of a batch; I input columns, of which the first E are embeddings and the rest numbers; H hidden columns
of a layer or of a residual unit; C normalised columns (I or H). ``grad`` is d loss / d (the array it is named after),
of the same shape. All arrays are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.network import elementwise
from learner.network.layers import DenseLayer, layers_of
from learner.network.models.base import Network
from learner.network.models.norm import BOUND, EPSILON, SMALL_BATCH, BatchNorm, BatchRenorm, InputNorm

Floats = NDArray[np.float32]


class Workspace:
    """Arrays by name, allocated at first use, and again only for more rows. They hold values of the last batch."""

    def __init__(self) -> None:
        self._flat: dict[str, tuple[Tensor, Floats]] = {}  # numpy's views cost a tenth of torch's

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """An uninitialised array (rows, columns)."""
        size = rows * columns
        return self._of(name, size)[0][:size].view(rows, columns)

    def array(self, name: str, rows: int, columns: int) -> Floats:
        """The memory of :meth:`take` as a numpy array."""
        size = rows * columns
        found: Floats = self._of(name, size)[1][:size].reshape(rows, columns)
        return found

    def _of(self, name: str, size: int) -> tuple[Tensor, Floats]:
        held = self._flat.get(name)
        if held is None or len(held[1]) < size:
            made = torch.empty(size)
            held = self._flat[name] = made, made.numpy()
        return held


class Aside(Protocol):
    """Runs a piece of work beside the caller's own, in a thread that this core does not have."""

    def begin(self, work: Callable[[], None]) -> Callable[[], None]:
        """Hands ``work`` over. Returns a function that waits for it, and does the work itself if it has not begun. Call
        it one time; until then leave alone what the work reads and writes."""
        ...


class Products:
    """Matrix products into given memory, in float32 or in bfloat16. In bfloat16 operands and result are rounded to 8
    bits and sums are float32; it is twice as fast where the processor has it. Everything else stays float32."""

    def __init__(self, half: bool) -> None:
        self.half = half
        self.aside: Aside | None = None
        self._room: dict[str, Tensor] = {}

    def mm(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """``out = a b``: (M, K), (K, N) -> (M, N)"""
        if self.half:
            out.copy_(self._product(a, b))
        else:
            torch.mm(a, b, out=out)

    def mm_aside(self, a: Tensor, b: Tensor, out: Tensor) -> Callable[[], None]:
        """:meth:`mm`, at once or :attr:`aside`, the same to the bit. Returns a function that waits for it."""
        if self.aside is None or self.half:
            self.mm(a, b, out)
            return _nothing
        return self.aside.begin(partial(self._mm, a, b, out))

    @torch.no_grad()
    def _mm(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a, b, out=out)

    def add(self, c: Tensor, a: Tensor, b: Tensor, out: Tensor) -> None:
        """``out = c + a b``: (M, N), (M, K), (K, N) -> (M, N); out may be c."""
        if self.half:
            torch.add(c, self._product(a, b), out=out)
        else:
            torch.addmm(c, a, b, out=out)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        out = self._take("out", a.shape[0], b.shape[1])
        return torch.mm(self._rounded("a", a), self._rounded("b", b), out=out)

    def _rounded(self, name: str, x: Tensor) -> Tensor:
        if x.is_contiguous():
            return self._take(name, *x.shape).copy_(x)
        if x.t().is_contiguous():  # as it lies: products take transposed operands, and copies across rows are slow
            return self._rounded(name, x.t()).t()
        return self._take(name, *x.shape).copy_(x)

    def _take(self, name: str, rows: int, columns: int) -> Tensor:
        flat = self._room.get(name)
        if flat is None or flat.numel() < rows * columns:
            flat = self._room[name] = torch.empty(rows * columns, dtype=torch.bfloat16)
        return flat[: rows * columns].view(rows, columns)


def _nothing() -> None:
    """The wait for finished work."""


def written_pass(network: Network, half: bool = False) -> WrittenPass | None:
    """The written-out pass of a network; None if there is none. ``half``: matrix products in bfloat16."""
    found = layers_of(network)
    return None if found is None else WrittenPass(*found, Products(half))


@torch.no_grad()
def scale_numbers(network: Network, numbers: Floats, out: Floats, at: int, training: bool) -> None:
    """``network.scale`` of numbers (B, N), in either mode, into the columns of ``out`` from ``at`` on."""
    norm = network.scale
    if not isinstance(norm, InputNorm):
        out[:, at : at + numbers.shape[1]] = numbers
        return
    if training:
        rows = np.float32(len(numbers))
        mean, var = (np.empty(numbers.shape[1], np.float32) for _ in range(2))  # (N,), (N,)
        elementwise.sums(numbers, mean)
        mean /= rows
        elementwise.squares(numbers, mean, var)
        var /= rows
        norm.mix(len(numbers), torch.from_numpy(mean), torch.from_numpy(var))
    factor = 1 / np.sqrt(_array(norm.var) + np.float32(EPSILON))  # (N,)
    elementwise.standardise(numbers, _array(norm.mean), factor, np.float32(BOUND), out, at)


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().numpy()
    return array


def _slot(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _Logit:
    """``logit = <w, a> + b``: (B, H) -> (B,)"""

    def __init__(self, out: nn.Linear) -> None:
        self.out = out

    def forward(self, a: Tensor) -> Floats:
        logits = np.empty(len(a), np.float32)
        elementwise.dot(_array(a), _array(self.out.weight)[0], _array(self.out.bias), logits)
        return logits

    def backward(self, slope: Floats, a: Tensor, grad: Tensor) -> None:
        """Puts the gradient of a (B, H), ``slope w^T``, into ``grad``."""
        torch.mm(torch.from_numpy(slope).unsqueeze(0), a, out=_slot(self.out.weight))  # (1, B), (B, H) -> (1, H)
        _slot(self.out.bias).fill_(float(slope.sum(dtype=np.float64)))
        elementwise.outer(slope, _array(self.out.weight)[0], _array(grad))


class _Norm:
    """Batch normalisation (Ioffe and Szegedy 2015) or renormalisation (Ioffe 2017), see
    learner/network/models/norm.py::

        y      = gamma (r (x - m) / s + d) + beta
        grad_x = gamma r / s (grad - [mean grad + (x - m) / s^2 mean grad (x - m)])

    m, s (C,) are mean and deviation of the batch, or the running ones where the batch is too small; then [...] is left
    out, since m and s do not depend on x. r = 1 and d = 0 (C,), except in renormalisation. The fields: ``_mean`` m,
    ``_inverse`` 1 / s, ``_r`` r, ``_d`` d, ``own`` whether m and s are the batch's.
    """

    def __init__(self, norm: BatchNorm) -> None:
        self.norm = norm
        self.own = False
        self._mean: Floats = np.empty(0, np.float32)
        self._inverse = self._r = self._d = self._mean

    def forward(self, x: Floats, total: Floats, relu: bool, out: Floats) -> None:
        """``out`` = y (B, C) of x (B, C), whose sum over rows is ``total`` (C,); through a ReLU if ``relu``."""
        norm, rows = self.norm, len(x)
        running, deviation = _array(norm.mean), np.sqrt(_array(norm.var) + np.float32(EPSILON))
        self.own = rows >= SMALL_BATCH
        mean: Floats = total / np.float32(rows)  # (C,)
        var = np.empty_like(mean)  # (C,)
        elementwise.squares(x, mean, var)
        var /= np.float32(rows)
        self._r, self._d = np.ones_like(mean), np.zeros_like(mean)
        if self.own:
            self._mean, self._inverse = mean, 1 / np.sqrt(var + np.float32(EPSILON))
            if isinstance(norm, BatchRenorm):
                r_max, d_max = norm.bounds()
                self._r = (1 / (self._inverse * deviation)).clip(1 / r_max, r_max).astype(np.float32)
                self._d = ((mean - running) / deviation).clip(-d_max, d_max).astype(np.float32)
                norm.mix(rows, torch.from_numpy(mean), torch.from_numpy(var))
            else:
                weight = norm.advance(rows)
                norm.mean.lerp_(torch.from_numpy(mean), weight)
                norm.var.lerp_(torch.from_numpy(var * np.float32(rows / (rows - 1))), weight)
        else:
            norm.mix(rows, torch.from_numpy(mean), torch.from_numpy(var))
            self._mean, self._inverse = running.copy(), 1 / np.sqrt(_array(norm.var) + np.float32(EPSILON))
        gamma, beta = _array(norm.gamma), _array(norm.beta)
        elementwise.scale(x, self._mean, gamma * self._r * self._inverse, gamma * self._d + beta, relu, out)

    def backward(self, grad: Floats, x: Floats, total: Floats) -> None:
        """Turns ``grad`` (B, C) of y, whose sum over rows is ``total`` (C,), into that of x (B, C)."""
        norm, rows = self.norm, np.float32(len(x))
        product = np.empty_like(total)  # (C,)
        elementwise.products(grad, x, self._mean, product)
        product *= self._inverse  # sum_b grad (x - m) / s
        _array(_slot(norm.gamma))[:] = self._r * product + self._d * total
        _array(_slot(norm.beta))[:] = total
        a = _array(norm.gamma) * self._r * self._inverse  # (C,): grad_x = a grad + k (x - m) + shift
        if self.own:
            k, shift = -a * self._inverse * product / rows, -a * total / rows
        else:
            k = shift = np.zeros_like(a)
        elementwise.combine(grad, x, self._mean, a, k, shift)


def _bias_before(norm: _Norm, grad: Floats, out: Floats) -> None:
    """The gradient (C,) of a bias just before a norm; 0 with a batch's own mean, which cancels the bias."""
    if norm.own:
        out[:] = 0
    else:
        elementwise.sums(grad, out)


class _Made(NamedTuple):
    """What a layer's forward pass leaves for the backward one."""

    x: Tensor  # (B, in) what went into the layer
    below: Tensor  # (B, in) what went into the product
    z: Tensor  # (B, out) what went into the norm behind it
    y: Tensor  # (B, out) what came out


class WrittenPass:
    """The passes of listed layers (learner/network/layers.py), and a logit: (B, I) -> (B,). The gradient of y_l goes,
    through the layer's product, to y_{l-1}; of a layer that skips also, as it is, to y_{l-2}."""

    def __init__(self, layers: list[DenseLayer], out: nn.Linear, products: Products) -> None:
        self.products = products
        self._layers = [(layer, _norm(layer.before), _norm(layer.after)) for layer in layers]
        self._logit, self._room = _Logit(out), Workspace()
        self._made: list[_Made] = []
        self._last = torch.empty(0)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Floats:
        """Logits (B,) of inputs x (B, I), which must stay as they are until :meth:`backward`. Running statistics
        advance, as the network's ``forward`` does."""
        take, rows, earlier = self._room.take, len(x), x
        self._made = []
        for k, (layer, before, after) in enumerate(self._layers):
            linear, below, width = layer.linear, x, layer.linear.out_features
            total, bias = np.empty(width, np.float32), _array(linear.bias)
            if before is not None:
                below, sums = take(f"below{k}", *x.shape), np.empty(x.shape[1], np.float32)
                elementwise.sums(_array(x), sums)
                before.forward(_array(x), sums, False, _array(below))
            y = z = take(f"z{k}", rows, width)
            if layer.skips:
                self.products.add(earlier, below, linear.weight.t(), z)
            else:
                self.products.mm(below, linear.weight.t(), z)
            if after is not None:
                y = take(f"y{k}", rows, width)
                elementwise.add_bias(_array(z), bias, total)
                after.forward(_array(z), total, True, _array(y))
            elif layer.floor == 0:
                elementwise.bias_relu(_array(z), bias)
            else:
                elementwise.add_bias(_array(z), bias, total)
            self._made.append(_Made(x, below, z, y))
            earlier, x = x, y
        self._last = x
        return self._logit.forward(x)

    @torch.no_grad()
    def backward(self, slope: Floats, columns: int) -> Tensor:
        """Writes every parameter's gradient, for ``slope`` = d loss / d logit (B,). Returns d loss / d x (B, >=
        columns); only its first ``columns`` columns are valid."""
        take, waits = self._room.take, list[Callable[[], None]]()
        past: tuple[Tensor, Callable[[], None]] | None = None  # a gradient that goes past a layer; the wait for its use
        grad = take("grad", *self._last.shape)
        self._logit.backward(slope, self._last, grad)
        for k in range(len(self._layers) - 1, -1, -1):
            (layer, before, after), (x, below, z, y) = self._layers[k], self._made[k]
            weight, g, bias = layer.linear.weight, _array(grad), _array(_slot(layer.linear.bias))
            if after is not None:
                total = np.empty(len(bias), np.float32)
                elementwise.through_relu(g, _array(y), total)
                after.backward(g, _array(z), total)
                _bias_before(after, g, bias)
            elif layer.floor == 0:
                elementwise.through_relu(g, _array(y), bias)
            else:
                elementwise.sums(g, bias)
            wait = self.products.mm_aside(grad.t(), below, _slot(weight))  # (out, B), (B, in) -> (out, in)
            wanted, into = x.shape[1] if k or before is not None else columns, None
            if before is not None or past is None:
                into = take(f"grad{k}", len(x), wanted)
                self.products.mm(grad, weight[:, :wanted], into)
            if before is not None and into is not None:
                sums = np.empty(wanted, np.float32)
                elementwise.sums(_array(into), sums)
                before.backward(_array(into), _array(x), sums)
            if past is not None:
                beside, read = past
                read()  # it is written to from here on
                if into is None:
                    self.products.add(beside[:, :wanted], grad, weight[:, :wanted], beside[:, :wanted])
                else:
                    beside += into
                into, past = beside, None
            if layer.skips:
                past = grad, wait
            else:
                waits.append(wait)
            assert into is not None
            grad = into
        for wait in waits:
            wait()
        return grad

    @torch.no_grad()
    def infer(self, x: Tensor, room: Workspace) -> Floats:
        """Logits (B,) of x (B, I) in evaluation mode, float32. Threads may call it at once, each with a ``room``."""
        earlier = x  # what went into the layer before
        for k, (layer, _, _) in enumerate(self._layers):
            below, norm, matrix = x, layer.after, layer.linear.weight.t()
            if layer.before is not None:
                below = room.take("normed", *x.shape)
                _scale(layer.before, _array(x), None, False, _array(below))
            z = room.take(f"a{k % 3}", len(x), layer.linear.out_features)  # two before it are still read
            out, bias = _array(z), _array(layer.linear.bias)
            if layer.skips and norm is not None:
                torch.addmm(earlier, below, matrix, out=z)
            else:
                torch.mm(below, matrix, out=z)
            if norm is not None:
                _scale(norm, out, bias, True, out)
            elif layer.skips:
                elementwise.residual(_array(earlier), out, bias, np.float32(layer.floor))
            else:
                elementwise.bias_relu(out, bias)
            earlier, x = x, z
        return self._logit.forward(x)


def _norm(norm: BatchNorm | None) -> _Norm | None:
    return None if norm is None else _Norm(norm)


def _scale(norm: BatchNorm, x: Floats, bias: Floats | None, relu: bool, out: Floats) -> None:
    """``out`` = the norm of ``x + bias`` (B, C) by the running statistics; through a ReLU if ``relu``."""
    mean = _array(norm.mean) if bias is None else _array(norm.mean) - bias
    factor = _array(norm.gamma) / np.sqrt(_array(norm.var) + np.float32(EPSILON))
    elementwise.scale(x, mean, factor, _array(norm.beta), relu, out)
