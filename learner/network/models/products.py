# core
"""Products of field embeddings, as layers. Each model decides how they enter its logit. Shared by PNN and DeepFM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def factorisation(v: Tensor) -> Tensor:
    """Second order of a factorisation machine (Rendle 2010, eq. 1 by lemma 3.1): (B, F, D) -> (B,)

    ``sum_{i<j} <v_i, v_j> = 1/2 sum_d [ (sum_i v_id)^2 - sum_i v_id^2 ]``
    """
    total = v.sum(1)  # (B, D)
    return 0.5 * (total * total - (v * v).sum(1)).sum(1)


class InnerProducts(nn.Module):
    """``p_ij = <v_i, v_j>`` for i < j: (B, F, D) -> (B, F (F - 1) / 2), pairs in row order."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        pairs = torch.triu_indices(fields, fields, 1)
        self.pairs = (pairs[0] * fields + pairs[1]).contiguous()  # no buffer: it is not learnt, so it is not published

    def forward(self, v: Tensor) -> Tensor:
        return torch.bmm(v, v.transpose(1, 2)).flatten(1).index_select(1, self.pairs)


def outer_product(v: Tensor) -> Tensor:
    """Outer product by superposition (Qu et al. 2016, section 3.2): ``p = s s^T``, ``s = sum_i v_i``. (B, F, D) ->
    (B, D D)"""
    s = v.sum(1)  # (B, D)
    return (s.unsqueeze(2) * s.unsqueeze(1)).flatten(1)


class GroupProducts(nn.Module):
    """The group-wise product layer: products of all pairs of fields, whose embedding widths may differ.

    Fields are grouped by width. Within group a: ``<v_i, v_j>``, i < j. Between groups a and b, a field of width D_a
    meets one of width D_b through a learnt projection: ``v_i^T P_ab v_j``, P_ab (D_a, D_b).

    [(B, F_a, D_a), ...] -> (B, F (F - 1) / 2), F = sum F_a: first within each group, then between pairs of groups.
    """

    def __init__(self, groups: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.within = nn.ModuleList(InnerProducts(f) for f, _ in groups)
        self.between = nn.ParameterList(
            nn.Parameter(torch.randn(groups[a][1], groups[b][1]) / groups[a][1] ** 0.5)
            for a in range(len(groups))
            for b in range(a + 1, len(groups))
        )

    def forward(self, embeddings: Sequence[Tensor]) -> Tensor:
        products = [layer(v) for layer, v in zip(self.within, embeddings, strict=True)]
        projections = iter(self.between)
        for a in range(len(embeddings)):
            for b in range(a + 1, len(embeddings)):
                projected = embeddings[a] @ next(projections)  # (B, F_a, D_b)
                products.append(torch.bmm(projected, embeddings[b].transpose(1, 2)).flatten(1))
        return torch.cat(products, 1)
