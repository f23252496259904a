# core
"""PNN with the group-wise product layer: fields of different embedding widths meet through projections."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from learner.network.models.base import Axes, Columns, Deep, Network, Shape, pair, register
from learner.network.models.products import GroupProducts
from learner.network.models.spec import Spec


@register("pnn_group")
class GroupPNN(Network):
    """``logit = wide + Deep([z, p, x])``, p the group-wise products. One group makes it the PNN with inner products."""

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        fields = sum(f for f, _ in shape.groups)
        self.products = GroupProducts(shape.groups)
        self.deep_part = Deep(shape.flat + fields * (fields - 1) // 2, spec)

    def axes(self, columns: Columns) -> Axes:
        between = [pair(f, g) for a, b in combinations(columns.fields, 2) for f in a for g in b]
        found = {**super().axes(columns), **self.deep_part.axes([*columns.flat, *columns.pairs, *between])}
        for k, widths in enumerate(combinations(columns.widths, 2)):
            found[f"products.between.{k}"] = tuple([str(d) for d in range(width)] for width in widths)
        return found

    def known_as(self, columns: Columns) -> dict[str, str]:
        return {
            f"products.between.{k}": f"between {a} and {b}" for k, (a, b) in enumerate(combinations(columns.widths, 2))
        }

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        z = self.flat(embeddings, numbers)
        p = [self.products(embeddings)] if embeddings else []
        logit: Tensor = self.deep_part(torch.cat([z, *p], 1))
        return logit
