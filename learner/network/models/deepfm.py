# core
"""DeepFM (Guo et al. 2017, arXiv 1703.04247): a factorisation machine and hidden layers over the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from learner.network.models.base import register
from learner.network.models.products import factorisation
from learner.network.models.wide_deep import WideDeep


@register("deepfm")
class DeepFM(WideDeep):
    """``logit = wide + sum_{i<j} <v_i, v_j> + Deep([z, x])``; the first order is the wide part."""

    own_widths = False

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        logit = super().forward(embeddings, numbers)
        for v in embeddings:  # one width: one tensor, or none
            logit = logit + factorisation(v)
        return logit
