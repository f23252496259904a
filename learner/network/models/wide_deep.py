# core
"""Wide&Deep (Cheng et al. 2016, arXiv 1606.07792): ``logit = wide + w . a_L + b``, a_L the last hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from learner.network.models.base import Axes, Columns, Deep, Network, Shape, register
from learner.network.models.spec import Spec


@register("wide_deep")
class WideDeep(Network):
    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        self.deep_part = Deep(shape.flat, spec)

    def axes(self, columns: Columns) -> Axes:
        return {**super().axes(columns), **self.deep_part.axes(columns.flat)}

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        logit: Tensor = self.deep_part(self.flat(embeddings, numbers))
        return logit
