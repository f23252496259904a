"""Logistic regression: ``logit = b + sum_i w_i + v . x``; w by FTRL with L1 (McMahan et al., KDD 2013)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from learner.models.base import Network, Shape, register
from learner.spec import Spec


@register("logistic")
class Logistic(Network):
    """The ids' weights are the tables'; here are the bias and the weights of the numbers x (B, N)."""

    deep = False

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        self.out = nn.Linear(shape.numbers, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        logit: Tensor = self.out(self.scale(numbers))  # (B, 1)
        return logit.squeeze(1)
