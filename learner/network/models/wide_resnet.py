# core
"""Wide&ResNet, without and with batch norm: residual units in place of Wide&Deep's plain hidden layers.

The unit is that of Deep Crossing (Shan et al., KDD 2016) with normalisation as FuxiCTR places it::

    post (after the addition):   y = ReLU(norm(x + W2 ReLU(W1 x + b1) + b2))
    pre  (before the unit):      y = x + W2 ReLU(W1 norm(x) + b1) + b2        (He et al. 2016, arXiv 1603.05027)
    inner (within the unit):     y = ReLU(x + W2 ReLU(norm(W1 x + b1)) + b2)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from learner.network.models.base import Axes, Columns, Network, Shape, register
from learner.network.models.norm import make_norm
from learner.network.models.spec import Spec


class Residual(nn.Module):
    """One unit, (B, I) -> (B, I), with an inner layer of H."""

    def __init__(self, width: int, hidden: int, norm: str, placement: str, momentum: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)
        self.placement = placement
        self.norm = make_norm(norm, hidden if placement == "inner" else width, momentum)

    def forward(self, x: Tensor) -> Tensor:
        # Works in place where no one else needs the tensor. The caller needs x; autograd needs the input of a norm.
        if self.placement == "inner":
            inner = self.norm(self.w1(x)).relu_()  # (B, H)
            return self.w2(inner).add_(x).relu_()  # type: ignore[no-any-return]
        if self.placement == "pre":
            inner = self.w1(self.norm(x)).relu_()  # (B, H)
            return self.w2(inner).add_(x)  # type: ignore[no-any-return]
        inner = self.w1(x).relu_()  # (B, H)
        return self.norm(self.w2(inner).add_(x)).relu_()  # type: ignore[no-any-return]


@register("wide_resnet")
class WideResNet(Network):
    """Residual units over all embeddings and numbers side by side, no normalisation inside."""

    def __init__(self, shape: Shape, spec: Spec, norm: str = "none") -> None:
        super().__init__(shape, spec)
        width = shape.flat
        self.units = nn.Sequential(
            *(Residual(width, spec.hidden[0], norm, spec.placement, spec.momentum) for _ in range(spec.blocks))
        )
        self.out = nn.Linear(width, 1)

    def axes(self, columns: Columns) -> Axes:
        x = columns.flat
        found = {**super().axes(columns), "out.weight": (None, x)}
        for k, unit in enumerate(self.units):
            found |= {f"units.{k}.w1.weight": (None, x), f"units.{k}.w2.weight": (x, None), f"units.{k}.w2.bias": (x,)}
            if isinstance(unit, Residual) and unit.placement != "inner":
                found |= {f"units.{k}.norm.{n}": (x,) for n in (*dict(unit.norm.named_parameters()), "mean", "var")}
        return found

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        logit: Tensor = self.out(self.units(self.flat(embeddings, numbers)))  # (B, 1)
        return logit.squeeze(1)


@register("wide_resnet_bn")
class WideResNetBN(WideResNet):
    """The same with the spec's normalisation (default: batch norm) in every unit."""

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec, spec.norm)
