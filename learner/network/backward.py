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
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.network import elementwise
from learner.network.models.base import Deep, Network
from learner.network.models.norm import BOUND, EPSILON, SMALL_BATCH, BatchNorm, BatchRenorm, InputNorm
from learner.network.models.wide_deep import WideDeep
from learner.network.models.wide_resnet import Residual, WideResNet

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


class WrittenPass(Protocol):
    """A network's training pass. ``forward`` advances running statistics, as the network's ``forward`` does."""

    products: Products

    def forward(self, x: Tensor) -> Floats:
        """Logits (B,) of inputs x (B, I), which must stay as they are until :meth:`backward`."""
        ...

    def backward(self, slope: Floats, columns: int) -> Tensor:
        """Writes every parameter's gradient, for ``slope`` = d loss / d logit (B,). Returns d loss / d x (B, >=
        columns); only its first ``columns`` columns are valid."""
        ...

    def infer(self, x: Tensor, room: Workspace) -> Floats:
        """Logits (B,) of x (B, I) in evaluation mode, float32. Threads may call it at once, each with a ``room``."""
        ...


def _nothing() -> None:
    """The wait for finished work."""


def written_pass(network: Network, half: bool = False) -> WrittenPass | None:
    """The written-out pass of a network; None if there is none. ``half``: matrix products in bfloat16."""
    products = Products(half)
    if type(network) is WideDeep:
        return DeepPass(network.deep_part, products) if _plain(network.deep_part) else None
    if isinstance(network, WideResNet):
        units = [unit for unit in network.units if isinstance(unit, Residual)]
        if all(isinstance(u.norm, BatchNorm | nn.Identity) for u in units):
            return ResNetPass(units, network.out, products)
    return None


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


def _plain(deep: Deep) -> bool:
    return all(isinstance(layer, nn.Linear | nn.ReLU) for layer in deep.layers)


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


class DeepPass:
    """A stack of L hidden layers over a_0 = x::

    a_{l+1} = ReLU(a_l W_l^T + b_l)        logit = <w, a_L> + b
    g_l     = d loss / d a_l:  g_L = slope w^T,  g_l = (g_{l+1} where a_{l+1} > 0) W_l
    """

    def __init__(self, deep: Deep, products: Products) -> None:
        self.products = self._products = products
        self.layers = [layer for layer in deep.layers if isinstance(layer, nn.Linear)]
        self.logit = _Logit(deep.out)
        self._room = Workspace()
        self._a: list[Tensor] = []

    @torch.no_grad()
    def forward(self, x: Tensor) -> Floats:
        self._a = [x]  # a_0 .. a_L
        for k, layer in enumerate(self.layers):
            a = self._room.take(f"a{k}", len(x), layer.out_features)  # (B, H)
            self._products.mm(self._a[-1], layer.weight.t(), a)  # a_l W_l^T: (B, I or H), (I or H, H) -> (B, H)
            elementwise.bias_relu(_array(a), _array(layer.bias))
            self._a.append(a)
        return self.logit.forward(self._a[-1])

    @torch.no_grad()
    def infer(self, x: Tensor, room: Workspace) -> Floats:
        for k, layer in enumerate(self.layers):
            a = room.take(f"a{k}", len(x), layer.out_features)  # (B, H)
            torch.mm(x, layer.weight.t(), out=a)
            elementwise.bias_relu(_array(a), _array(layer.bias))
            x = a
        return self.logit.forward(x)

    @torch.no_grad()
    def backward(self, slope: Floats, columns: int) -> Tensor:
        a = self._a
        grad = self._room.take(f"grad{len(self.layers)}", *a[-1].shape)  # g_L: (B, H)
        self.logit.backward(slope, a[-1], grad)
        waits = []
        for k, layer in reversed(list(enumerate(self.layers))):
            elementwise.through_relu(_array(grad), _array(a[k + 1]), _array(_slot(layer.bias)))
            waits.append(
                self._products.mm_aside(grad.t(), a[k], _slot(layer.weight))
            )  # (H, B), (B, I or H) -> (H, I or H)
            wanted = a[k].shape[1] if k else columns
            below = self._room.take(f"grad{k}", len(grad), wanted)  # g_l: (B, H), at last (B, columns)
            self._products.mm(grad, layer.weight[:, :wanted], below)
            grad = below
        for wait in waits:
            wait()
        return grad


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

    def infer(self, x: Floats, bias: Floats | None, relu: bool, out: Floats) -> None:
        """``out`` = y (B, C) of ``x + bias`` by the running statistics."""
        norm = self.norm
        mean = _array(norm.mean) if bias is None else _array(norm.mean) - bias
        factor = _array(norm.gamma) / np.sqrt(_array(norm.var) + np.float32(EPSILON))
        elementwise.scale(x, mean, factor, _array(norm.beta), relu, out)

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


class _Unit:
    """A residual unit (learner/network/models/wide_resnet.py), with a norm or none, in its place::

        inner   h = ReLU(norm(x W1^T + b1))    y = ReLU(x + h W2^T + b2)
        pre     h = ReLU(norm(x) W1^T + b1)    y = x + h W2^T + b2
        post    h = ReLU(x W1^T + b1)          y = ReLU(norm(x + h W2^T + b2))

    x, y (B, I); h (B, H). ``_normed`` keeps what goes into the norm (of "pre": what comes out of it).
    """

    def __init__(self, unit: Residual, room: Workspace, name: str, products: Products) -> None:
        self._products = products
        self.unit, self.name, self._room = unit, name, room
        self.norm = _Norm(unit.norm) if isinstance(unit.norm, BatchNorm) else None
        # Without a norm "post" and "inner" are the same.
        self.placement = "inner" if self.norm is None and unit.placement == "post" else unit.placement
        self._x = self._h = self._y = self._normed = torch.empty(0)

    def _take(self, name: str, columns: int) -> Tensor:
        return self._room.take(f"{self.name}.{name}", len(self._x), columns)

    def forward(self, x: Tensor) -> Tensor:
        """y of x: (B, I) -> (B, I)"""
        unit, norm, self._x = self.unit, self.norm, x
        b1, b2 = _array(unit.w1.bias), _array(unit.w2.bias)
        width, hidden = x.shape[1], unit.w1.out_features
        total = np.empty(hidden if self.placement == "inner" else width, np.float32)
        h, y = self._take("h", hidden), self._take("y", width)  # (B, H), (B, I)
        if norm is not None and self.placement == "pre":
            self._normed = self._take("normed", width)  # (B, I)
            elementwise.sums(_array(x), total)
            norm.forward(_array(x), total, False, _array(self._normed))
            self._products.mm(self._normed, unit.w1.weight.t(), h)
            elementwise.bias_relu(_array(h), b1)
        elif norm is not None and self.placement == "inner":
            self._normed = self._take("normed", hidden)  # (B, H)
            self._products.mm(x, unit.w1.weight.t(), self._normed)
            elementwise.add_bias(_array(self._normed), b1, total)
            norm.forward(_array(self._normed), total, True, _array(h))
        else:
            self._products.mm(x, unit.w1.weight.t(), h)
            elementwise.bias_relu(_array(h), b1)
        self._products.add(x, h, unit.w2.weight.t(), y)  # x + h W2^T: (B, I) + (B, H), (H, I) -> (B, I)
        if self.placement == "inner":
            elementwise.bias_relu(_array(y), b2)
        elif self.placement == "pre":
            elementwise.add_bias(_array(y), b2, np.empty(width, np.float32))
        elif norm is not None:
            self._normed, y = y, self._take("out", width)
            elementwise.add_bias(_array(self._normed), b2, total)
            norm.forward(_array(self._normed), total, True, _array(y))
        self._h, self._y = h, y
        return y

    def infer(self, x: Tensor, room: Workspace) -> Tensor:
        unit, norm, placement = self.unit, self.norm, self.placement
        b1, b2 = _array(unit.w1.bias), _array(unit.w2.bias)
        below = x
        if norm is not None and placement == "pre":
            below = room.take("normed", *x.shape)
            norm.infer(_array(x), None, False, _array(below))
        hidden = room.take("h", len(x), unit.w1.out_features)  # (B, H)
        torch.mm(below, unit.w1.weight.t(), out=hidden)
        h = _array(hidden)
        if norm is not None and placement == "inner":
            norm.infer(h, b1, True, h)
        else:
            elementwise.bias_relu(h, b1)
        out = room.take(f"{self.name}.y", *x.shape)  # (B, I)
        if norm is not None and placement == "post":
            torch.addmm(x, hidden, unit.w2.weight.t(), out=out)
            norm.infer(_array(out), b2, True, _array(out))
        else:
            torch.mm(hidden, unit.w2.weight.t(), out=out)
            elementwise.residual(_array(x), _array(out), b2, np.float32(-np.inf if placement == "pre" else 0))
        return out

    def backward(self, grad: Tensor, columns: int, wait: Callable[[], None]) -> Callable[[], None]:
        """Turns ``grad`` (B, I) of y into that of x, in its first ``columns`` columns at least. ``wait``: for a product
        of the unit above, which reads its (B, H) where this one writes. Returns the wait for such a product of this
        one."""
        unit, norm, x, h = self.unit, self.norm, self._x, self._h
        g = _array(grad)
        grad_b1, grad_b2 = _array(_slot(unit.w1.bias)), _array(_slot(unit.w2.bias))
        total = np.empty(grad.shape[1], np.float32)  # (I,)
        if self.placement == "inner":
            elementwise.through_relu(g, _array(self._y), grad_b2)
        elif self.placement == "pre":
            elementwise.sums(g, grad_b2)
        elif norm is not None:
            elementwise.through_relu(g, _array(self._y), total)
            norm.backward(g, _array(self._normed), total)
            _bias_before(norm, g, grad_b2)
        wait2 = self._products.mm_aside(grad.t(), h, _slot(unit.w2.weight))  # (I, B), (B, H) -> (I, H)
        wait()
        inner = self._room.take("grad_h", len(h), h.shape[1])  # (B, H)
        self._products.mm(grad, unit.w2.weight, inner)
        i = _array(inner)
        elementwise.through_relu(i, _array(h), grad_b1)
        below = x
        if norm is not None and self.placement == "inner":
            norm.backward(i, _array(self._normed), grad_b1.copy())
            _bias_before(norm, i, grad_b1)
        elif norm is not None and self.placement == "pre":
            below = self._normed
        wait1 = self._products.mm_aside(inner.t(), below, _slot(unit.w1.weight))  # (H, B), (B, I) -> (H, I)
        wait2()  # it reads what is written from here on
        if norm is not None and self.placement == "pre":
            past = self._take("grad_normed", x.shape[1])  # (B, I)
            self._products.mm(inner, unit.w1.weight, past)
            elementwise.sums(_array(past), total)
            norm.backward(_array(past), _array(x), total)
            grad += past
        else:
            wanted = grad[:, :columns]
            self._products.add(wanted, inner, unit.w1.weight[:, :columns], wanted)
        return wait1


def _bias_before(norm: _Norm, grad: Floats, out: Floats) -> None:
    """The gradient (C,) of a bias just before a norm; 0 with a batch's own mean, which cancels the bias."""
    if norm.own:
        out[:] = 0
    else:
        elementwise.sums(grad, out)


class ResNetPass:
    """Residual units, then a logit: (B, I) -> (B,)"""

    def __init__(self, units: list[Residual], out: nn.Linear, products: Products) -> None:
        self.products = products
        self._room = Workspace()
        self.units = [_Unit(unit, self._room, str(k), products) for k, unit in enumerate(units)]
        self.logit = _Logit(out)
        self._last = torch.empty(0)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Floats:
        for unit in self.units:
            x = unit.forward(x)
        self._last = x
        return self.logit.forward(x)

    @torch.no_grad()
    def infer(self, x: Tensor, room: Workspace) -> Floats:
        for unit in self.units:
            x = unit.infer(x, room)
        return self.logit.forward(x)

    @torch.no_grad()
    def backward(self, slope: Floats, columns: int) -> Tensor:
        grad: Tensor = self._room.take("grad", *self._last.shape)
        self.logit.backward(slope, self._last, grad)
        wait = _nothing
        for k in range(len(self.units) - 1, -1, -1):
            wait = self.units[k].backward(grad, grad.shape[1] if k else columns, wait)
        wait()
        return grad
