"""PNN with the group-wise product layer: fields of different embedding widths meet through projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.models.base import Deep, Network, Shape, register
from learner.models.products import GroupProducts
from learner.spec import Spec


@register("pnn_group")
class GroupPNN(Network):
    """``logit = wide + Deep([z, p, x])``, p from :class:`~learner.models.products.GroupProducts`. With one group it
    is the PNN with inner products."""

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        fields = sum(f for f, _ in shape.groups)
        self.products = GroupProducts(shape.groups)
        self.deep_part = Deep(shape.flat + fields * (fields - 1) // 2, spec)

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        z = self.flat(embeddings, numbers)
        p = [self.products(embeddings)] if embeddings else []
        logit: Tensor = self.deep_part(torch.cat([z, *p], 1))
        return logit
