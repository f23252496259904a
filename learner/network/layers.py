# core
"""The layers of Wide&Deep and Wide&ResNet as one list: what their passes that score are written over.

::

    a_{l+1} = max(after(before(a_l) W_l^T + b_l + a_{l-1}), floor_l)        logit = <a_L, w> + b

``before`` and ``after`` are norms or nothing, and a_{l-1} is added where a layer ends a residual unit. By the norm's
placement (learner/network/models/wide_resnet.py)::

    inner   ReLU(norm(x W1^T + b1))    ReLU(x + h W2^T + b2)
    pre     ReLU(norm(x) W1^T + b1)    x + h W2^T + b2
    post    ReLU(x W1^T + b1)          ReLU(norm(x + h W2^T + b2))
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from learner.network.models import Network
from learner.network.models.norm import EPSILON, BatchNorm
from learner.network.models.wide_deep import WideDeep
from learner.network.models.wide_resnet import Residual, WideResNet


class Folded(NamedTuple):
    """A layer ``max(s a_{l-1} + a_l W^T + b, floor)`` whose norms are part of it."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)
    skip: Tensor  # (out,) s


class DenseLayer(NamedTuple):
    linear: nn.Linear
    before: BatchNorm | None = None
    after: BatchNorm | None = None
    skips: bool = False
    """Whether a_{l-1} is added."""
    floor: float = 0.0

    @torch.no_grad()
    def folded(self) -> Folded:
        """Norms by their running statistics, f = gamma / deviation::

        before   W := W f, b := b + W (beta - f m)        after   W := f W, b := f (b - m) + beta, s = f
        """
        weight, bias = self.linear.weight.detach(), self.linear.bias.detach()
        skip = torch.ones_like(bias)
        if self.before is not None:
            f, shift = _affine(self.before)
            weight, bias = weight * f, bias + weight @ shift
        if self.after is not None:
            f, shift = _affine(self.after)
            weight, bias, skip = f[:, None] * weight, f * bias + shift, f
        return Folded(weight, bias, skip)


def _affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """A norm as ``f x + shift``."""
    f = norm.gamma / torch.sqrt(norm.var + EPSILON)
    return f, norm.beta - f * norm.mean


def layers_of(network: Network) -> tuple[list[DenseLayer], nn.Linear] | None:
    """A network's layers and what makes the logit of the last; None for a network whose passes are not written out."""
    if type(network) is WideDeep:
        deep = network.deep_part
        if all(isinstance(layer, nn.Linear | nn.ReLU) for layer in deep.layers):
            return [DenseLayer(layer) for layer in deep.layers if isinstance(layer, nn.Linear)], deep.out
    if isinstance(network, WideResNet):
        units = [unit for unit in network.units if isinstance(unit, Residual)]
        if all(isinstance(unit.norm, BatchNorm | nn.Identity) for unit in units):
            return [layer for unit in units for layer in _of_unit(unit)], network.out
    return None


def _of_unit(unit: Residual) -> tuple[DenseLayer, DenseLayer]:
    norms = {unit.placement: unit.norm if isinstance(unit.norm, BatchNorm) else None}
    floor = -torch.inf if unit.placement == "pre" else 0.0
    first = DenseLayer(unit.w1, norms.get("pre"), norms.get("inner"))
    return first, DenseLayer(unit.w2, None, norms.get("post"), True, floor)
