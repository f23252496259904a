"""The passes of Wide&Deep and Wide&ResNet written out: forward, backward without autograd, and forward to score.

::

    x (B, I) ──ahead──► logits (B,)            what the way back needs is kept in a workspace, used again by every batch
    d loss / d x (B, E) ◄──back── slope (B,)   each parameter's gradient is written where ``p.grad`` points

The networks' ``forward`` stays the definition: tests hold these passes against it.
What is gained: fresh memory for every intermediate (as dear as a product at thousands of rows), nodes and small
operators (dear at a hundred), and the input gradient of the number columns, which nobody wants.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner import passes
from learner.models.base import Deep, Network
from learner.models.norm import BOUND, EPSILON, SMALL_BATCH, BatchNorm, BatchRenorm, InputNorm
from learner.models.wide_deep import WideDeep
from learner.models.wide_resnet import Residual, WideResNet

Floats = NDArray[np.float32]


class Workspace:
    """Arrays by name that are made once and again only for more rows. What they hold is of the last batch."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """(rows, columns), whatever was in it."""
        size = rows * columns
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = torch.empty(size)
        return flat[:size].view(rows, columns)


class Products:
    """Matrix products into given memory, in float32, or in bfloat16 (with float32 sums; twice as fast where the
    processor has it): operands and result are rounded to 8 bits, everything else stays float32."""

    def __init__(self, half: bool) -> None:
        self.half = half
        self._room: dict[str, Tensor] = {}

    def mm(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """``out = a b``"""
        if self.half:
            out.copy_(self._product(a, b))
        else:
            torch.mm(a, b, out=out)

    def add(self, c: Tensor, a: Tensor, b: Tensor, out: Tensor) -> None:
        """``out = c + a b``; out may be c."""
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
        if x.t().is_contiguous():  # as it lies: products take transposed operands, copies across are dear
            return self._rounded(name, x.t()).t()
        return self._take(name, *x.shape).copy_(x)

    def _take(self, name: str, rows: int, columns: int) -> Tensor:
        flat = self._room.get(name)
        if flat is None or flat.numel() < rows * columns:
            flat = self._room[name] = torch.empty(rows * columns, dtype=torch.bfloat16)
        return flat[: rows * columns].view(rows, columns)


class Pass(Protocol):
    """A network's training pass. ``ahead`` advances running statistics, as the network's ``forward`` does."""

    def ahead(self, x: Tensor) -> Floats:
        """Logits (B,) of inputs x (B, I), which must stay as they are until :meth:`back`."""
        ...

    def back(self, slope: Floats, columns: int) -> Tensor:
        """Writes every gradient, for d loss / d logit (B,). What is returned, (B, >= columns), has that of x in its
        first columns; the rest means nothing."""
        ...

    def answer(self, x: Tensor, room: Workspace) -> Floats:
        """Logits (B,) in evaluation mode, in float32; writes to ``room`` alone, so several threads may ask at once."""
        ...


def pass_of(network: Network, half: bool = False) -> Pass | None:
    """The written-out pass of a network; None if there is none for it. ``half``: products in bfloat16."""
    products = Products(half)
    if type(network) is WideDeep:
        return DeepPass(network.deep_part, products) if _plain(network.deep_part) else None
    if isinstance(network, WideResNet):
        units = [unit for unit in network.units if isinstance(unit, Residual)]
        if all(isinstance(u.norm, BatchNorm | BatchRenorm | nn.Identity) for u in units):
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
        mean, var = (np.empty(numbers.shape[1], np.float32) for _ in range(2))
        passes.sums(numbers, mean)
        mean /= rows
        passes.squares(numbers, mean, var)
        var /= rows
        norm.mix(len(numbers), torch.from_numpy(mean), torch.from_numpy(var))
    factor = 1 / np.sqrt(_array(norm.var) + np.float32(EPSILON))
    passes.standardise(numbers, _array(norm.mean), factor, np.float32(BOUND), out, at)


def _plain(deep: Deep) -> bool:
    return all(isinstance(layer, nn.Linear | nn.ReLU) for layer in deep.layers)


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().numpy()
    return array


def _slot(parameter: Tensor) -> Tensor:
    """Where a parameter's gradient goes."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _Logit:
    """``logit = <w, a> + b``: (B, I) -> (B,)"""

    def __init__(self, out: nn.Linear) -> None:
        self.out = out

    def ahead(self, a: Tensor) -> Floats:
        logits = np.empty(len(a), np.float32)
        passes.dot(_array(a), _array(self.out.weight)[0], _array(self.out.bias), logits)
        return logits

    def back(self, slope: Floats, a: Tensor, grad: Tensor) -> None:
        """Puts the gradient of a (B, I) into ``grad``."""
        torch.mm(torch.from_numpy(slope).unsqueeze(0), a, out=_slot(self.out.weight))
        _slot(self.out.bias).fill_(float(slope.sum(dtype=np.float64)))
        passes.outer(slope, _array(self.out.weight)[0], _array(grad))


class DeepPass:
    """``a_{l+1} = ReLU(W_l a_l + b_l)``, ``logit = <w, a_L> + b``"""

    def __init__(self, deep: Deep, products: Products) -> None:
        self._products = products
        self.layers = [layer for layer in deep.layers if isinstance(layer, nn.Linear)]
        self.logit = _Logit(deep.out)
        self._room = Workspace()
        self._a: list[Tensor] = []

    @torch.no_grad()
    def ahead(self, x: Tensor) -> Floats:
        self._a = [x]
        for k, layer in enumerate(self.layers):
            a = self._room.take(f"a{k}", len(x), layer.out_features)
            self._products.mm(self._a[-1], layer.weight.t(), a)
            passes.bias_relu(_array(a), _array(layer.bias))
            self._a.append(a)
        return self.logit.ahead(self._a[-1])

    @torch.no_grad()
    def answer(self, x: Tensor, room: Workspace) -> Floats:
        for k, layer in enumerate(self.layers):
            a = room.take(f"a{k}", len(x), layer.out_features)
            torch.mm(x, layer.weight.t(), out=a)
            passes.bias_relu(_array(a), _array(layer.bias))
            x = a
        return self.logit.ahead(x)

    @torch.no_grad()
    def back(self, slope: Floats, columns: int) -> Tensor:
        a = self._a
        grad = self._room.take(f"grad{len(self.layers)}", *a[-1].shape)
        self.logit.back(slope, a[-1], grad)
        for k, layer in reversed(list(enumerate(self.layers))):
            passes.through_relu(_array(grad), _array(a[k + 1]), _array(_slot(layer.bias)))
            self._products.mm(grad.t(), a[k], _slot(layer.weight))
            wanted = a[k].shape[1] if k else columns
            below = self._room.take(f"grad{k}", len(grad), wanted)
            self._products.mm(grad, layer.weight[:, :wanted], below)
            grad = below
        return grad


class _Norm:
    """Batch norm or renormalisation (learner/models/norm.py), with m and s the batch's mean and deviation, or the
    running ones where a batch is too small::

        y = gamma (r (x - m) / s + d) + beta
        grad_x = gamma r / s (grad - [mean grad + (x - m) / s^2 mean grad (x - m)])      [...]: of a batch's own m, s
    """

    def __init__(self, norm: BatchNorm | BatchRenorm) -> None:
        self.norm = norm
        self.own = False
        self._mean: Floats = np.empty(0, np.float32)
        self._inverse = self._r = self._d = self._mean

    def ahead(self, x: Floats, total: Floats, relu: bool, out: Floats) -> None:
        """``out`` (B, C) of x (B, C), whose sum over rows is ``total`` (C,)."""
        norm, rows = self.norm, len(x)
        running, deviation = _array(norm.mean), np.sqrt(_array(norm.var) + np.float32(EPSILON))
        self.own = rows >= SMALL_BATCH
        mean: Floats = total / np.float32(rows)
        var = np.empty_like(mean)
        passes.squares(x, mean, var)
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
        passes.scale(x, self._mean, gamma * self._r * self._inverse, gamma * self._d + beta, relu, out)

    def answer(self, x: Floats, bias: Floats | None, relu: bool, out: Floats) -> None:
        """``out`` of ``x + bias`` by the running statistics."""
        norm = self.norm
        mean = _array(norm.mean) if bias is None else _array(norm.mean) - bias
        factor = _array(norm.gamma) / np.sqrt(_array(norm.var) + np.float32(EPSILON))
        passes.scale(x, mean, factor, _array(norm.beta), relu, out)

    def back(self, grad: Floats, x: Floats, total: Floats) -> None:
        """Turns ``grad`` of y, whose sum over rows is ``total`` (C,), into that of x."""
        norm, rows = self.norm, np.float32(len(x))
        product = np.empty_like(total)
        passes.products(grad, x, self._mean, product)
        product *= self._inverse
        _array(_slot(norm.gamma))[:] = self._r * product + self._d * total
        _array(_slot(norm.beta))[:] = total
        a = _array(norm.gamma) * self._r * self._inverse
        if self.own:
            k, shift = -a * self._inverse * product / rows, -a * total / rows
        else:
            k = shift = np.zeros_like(a)
        passes.combine(grad, x, self._mean, a, k, shift)


class _Unit:
    """A residual unit (learner/models/wide_resnet.py), ``post``, ``pre`` or ``inner``, with a norm or none."""

    def __init__(self, unit: Residual, room: Workspace, name: str, products: Products) -> None:
        self._products = products
        self.unit, self.name, self._room = unit, name, room
        self.norm = _Norm(unit.norm) if isinstance(unit.norm, BatchNorm | BatchRenorm) else None
        # Without a norm "post" and "inner" are the same.
        self.placement = "inner" if self.norm is None and unit.placement == "post" else unit.placement
        self._x = self._h = self._y = self._normed = torch.empty(0)

    def _take(self, name: str, columns: int) -> Tensor:
        return self._room.take(f"{self.name}.{name}", len(self._x), columns)

    def ahead(self, x: Tensor) -> Tensor:
        """(B, I) -> (B, I)"""
        unit, norm, self._x = self.unit, self.norm, x
        b1, b2 = _array(unit.w1.bias), _array(unit.w2.bias)
        width, hidden = x.shape[1], unit.w1.out_features
        total = np.empty(hidden if self.placement == "inner" else width, np.float32)
        h, y = self._take("h", hidden), self._take("y", width)
        if norm is not None and self.placement == "pre":
            self._normed = self._take("normed", width)
            passes.sums(_array(x), total)
            norm.ahead(_array(x), total, False, _array(self._normed))
            self._products.mm(self._normed, unit.w1.weight.t(), h)
            passes.bias_relu(_array(h), b1)
        elif norm is not None and self.placement == "inner":
            self._normed = self._take("normed", hidden)  # what is normalised, here and below
            self._products.mm(x, unit.w1.weight.t(), self._normed)
            passes.add_bias(_array(self._normed), b1, total)
            norm.ahead(_array(self._normed), total, True, _array(h))
        else:
            self._products.mm(x, unit.w1.weight.t(), h)
            passes.bias_relu(_array(h), b1)
        self._products.add(x, h, unit.w2.weight.t(), y)
        if self.placement == "inner":
            passes.bias_relu(_array(y), b2)
        elif self.placement == "pre":
            passes.add_bias(_array(y), b2, np.empty(width, np.float32))
        elif norm is not None:
            self._normed, y = y, self._take("out", width)
            passes.add_bias(_array(self._normed), b2, total)
            norm.ahead(_array(self._normed), total, True, _array(y))
        self._h, self._y = h, y
        return y

    def answer(self, x: Tensor, room: Workspace) -> Tensor:
        """The same in evaluation mode."""
        unit, norm, placement = self.unit, self.norm, self.placement
        b1, b2 = _array(unit.w1.bias), _array(unit.w2.bias)
        below = x
        if norm is not None and placement == "pre":
            below = room.take("normed", *x.shape)
            norm.answer(_array(x), None, False, _array(below))
        hidden = room.take("h", len(x), unit.w1.out_features)
        torch.mm(below, unit.w1.weight.t(), out=hidden)
        h = _array(hidden)
        if norm is not None and placement == "inner":
            norm.answer(h, b1, True, h)
        else:
            passes.bias_relu(h, b1)
        out = room.take(f"{self.name}.y", *x.shape)
        torch.addmm(x, hidden, unit.w2.weight.t(), out=out)
        y = _array(out)
        if placement == "inner":
            passes.bias_relu(y, b2)
        elif placement == "pre":
            y += b2
        elif norm is not None:
            norm.answer(y, b2, True, y)
        return out

    def back(self, grad: Tensor, columns: int) -> None:
        """Turns ``grad`` of y (B, I) into that of x, in its first columns at least."""
        unit, norm, x, h = self.unit, self.norm, self._x, self._h
        g = _array(grad)
        grad_b1, grad_b2 = _array(_slot(unit.w1.bias)), _array(_slot(unit.w2.bias))
        total = np.empty(grad.shape[1], np.float32)
        if self.placement == "inner":
            passes.through_relu(g, _array(self._y), grad_b2)
        elif self.placement == "pre":
            passes.sums(g, grad_b2)
        elif norm is not None:
            passes.through_relu(g, _array(self._y), total)
            norm.back(g, _array(self._normed), total)
            _bias_before(norm, g, grad_b2)
        self._products.mm(grad.t(), h, _slot(unit.w2.weight))
        inner = self._room.take("grad_h", len(h), h.shape[1])
        self._products.mm(grad, unit.w2.weight, inner)
        i = _array(inner)
        passes.through_relu(i, _array(h), grad_b1)
        below = x
        if norm is not None and self.placement == "inner":
            norm.back(i, _array(self._normed), grad_b1.copy())
            _bias_before(norm, i, grad_b1)
        elif norm is not None and self.placement == "pre":
            below = self._normed
        self._products.mm(inner.t(), below, _slot(unit.w1.weight))
        if norm is not None and self.placement == "pre":
            past = self._take("grad_normed", x.shape[1])
            self._products.mm(inner, unit.w1.weight, past)
            passes.sums(_array(past), total)
            norm.back(_array(past), _array(x), total)
            grad += past
        else:
            wanted = grad[:, :columns]
            self._products.add(wanted, inner, unit.w1.weight[:, :columns], wanted)


def _bias_before(norm: _Norm, grad: Floats, out: Floats) -> None:
    """Gradient of a bias that is added just before a norm: a batch's own mean takes the bias out again, so it is 0."""
    if norm.own:
        out[:] = 0
    else:
        passes.sums(grad, out)


class ResNetPass:
    """Residual units, then a logit."""

    def __init__(self, units: list[Residual], out: nn.Linear, products: Products) -> None:
        self._room = Workspace()
        self.units = [_Unit(unit, self._room, str(k), products) for k, unit in enumerate(units)]
        self.logit = _Logit(out)
        self._last = torch.empty(0)

    @torch.no_grad()
    def ahead(self, x: Tensor) -> Floats:
        for unit in self.units:
            x = unit.ahead(x)
        self._last = x
        return self.logit.ahead(x)

    @torch.no_grad()
    def answer(self, x: Tensor, room: Workspace) -> Floats:
        for unit in self.units:
            x = unit.answer(x, room)
        return self.logit.ahead(x)

    @torch.no_grad()
    def back(self, slope: Floats, columns: int) -> Tensor:
        grad: Tensor = self._room.take("grad", *self._last.shape)
        self.logit.back(slope, self._last, grad)
        for k in range(len(self.units) - 1, -1, -1):
            self.units[k].back(grad, grad.shape[1] if k else columns)
        return grad
