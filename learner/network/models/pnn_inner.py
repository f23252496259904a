# core
"""PNN with inner products (Qu et al. 2016, arXiv 1611.00144): hidden layers over embeddings and their products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.network.models.base import Axes, Columns, Deep, Network, Shape, register
from learner.network.models.products import InnerProducts
from learner.network.models.spec import Spec


@register("pnn_inner")
class InnerPNN(Network):
    """``logit = wide + Deep([z, p, x])``: z the embeddings side by side, ``p_ij = <v_i, v_j>``, x the numbers."""

    own_widths = False

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        fields = sum(f for f, _ in shape.groups)
        self.products = InnerProducts(fields)
        self.deep_part = Deep(shape.flat + fields * (fields - 1) // 2, spec)

    def axes(self, columns: Columns) -> Axes:
        return {**super().axes(columns), **self.deep_part.axes([*columns.flat, *columns.pairs])}

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        z = self.flat(embeddings, numbers)
        p = [self.products(v) for v in embeddings]  # one width: one tensor, or none
        logit: Tensor = self.deep_part(torch.cat([z, *p], 1))
        return logit
