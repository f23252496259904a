# core
"""PNN with outer products, superposed (Qu et al. 2016, arXiv 1611.00144): hidden layers over them and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.network.models.base import Axes, Columns, Deep, Network, Shape, register
from learner.network.models.products import outer_product
from learner.network.models.spec import Spec


@register("pnn_outer")
class OuterPNN(Network):
    """``logit = wide + Deep([z, p, x])``: z the embeddings side by side, ``p = s s^T`` with s their sum over fields."""

    own_widths = False

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        self.deep_part = Deep(shape.flat + sum(d * d for _, d in shape.groups), spec)

    def axes(self, columns: Columns) -> Axes:
        outer = [f"{i} x {j}" for d in columns.widths for i in range(d) for j in range(d)]
        return {**super().axes(columns), **self.deep_part.axes([*columns.flat, *outer])}

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        z = self.flat(embeddings, numbers)
        p = [outer_product(v) for v in embeddings]  # one width: one tensor, or none
        logit: Tensor = self.deep_part(torch.cat([z, *p], 1))
        return logit
