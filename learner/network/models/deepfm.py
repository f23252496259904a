# core
"""DeepFM (Guo et al. 2017, arXiv 1703.04247): a factorisation machine and hidden layers over the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.network.models.base import Shape, register
from learner.network.models.products import factorisation
from learner.network.models.spec import Spec
from learner.network.models.wide_deep import WideDeep


@register("deepfm")
class DeepFM(WideDeep):
    """``logit = wide + sum_{i<j} <v_i, v_j> / F + Deep([z, x])``; the first order is the wide part.

    The slope of the paper's plain sum at one embedding is the sum of all others, so by F fields the second order learns
    and overshoots F times as fast as the hidden layers that share its embeddings. Its share ``1 / F`` is the same
    machine over ``v / sqrt(F)``. A model that gets another field keeps the share that it had, and so its answers."""

    own_widths = False
    share: Tensor

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        self.register_buffer("share", torch.tensor([1 / max(1, sum(fields for fields, _ in shape.groups))]))

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        logit = super().forward(embeddings, numbers)
        for v in embeddings:  # one width: one tensor, or none
            logit = logit + self.share.item() * factorisation(v)
        return logit
