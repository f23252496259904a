# core
"""Logistic regression: ``logit = b + sum_i w_i + v . x``; w by FTRL with L1 (McMahan et al., KDD 2013)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.network.models.base import Axes, Columns, Network, Shape, register
from learner.network.models.spec import Spec


class Linear(nn.Module):
    """``b + v . x``, zero at first; N may be 0. (B, N) -> (B, 1)"""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, inputs))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@register("logistic")
class Logistic(Network):
    """The tables hold the ids' weights. This network holds the bias and the weights of the numbers x (B, N)."""

    deep = False

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        self.out = Linear(shape.numbers)

    def axes(self, columns: Columns) -> Axes:
        return {**super().axes(columns), "out.weight": (None, list(columns.numbers))}

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        logit: Tensor = self.out(self.scale(numbers))  # (B, 1)
        return logit.squeeze(1)
