# core
"""DeepFM (Guo et al. 2017, arXiv 1703.04247): a factorisation machine and hidden layers over the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from learner.network.models.base import Axes, Columns, Deep, Network, Shape, register
from learner.network.models.products import factorisation
from learner.network.models.spec import Spec


@register("deepfm")
class DeepFM(Network):
    """``logit = wide + sum_{i<j} <v_i, v_j> + Deep([z, x])``; the first order is the wide part."""

    own_widths = False

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__(shape, spec)
        self.deep_part = Deep(shape.flat, spec)

    def axes(self, columns: Columns) -> Axes:
        return {**super().axes(columns), **self.deep_part.axes(columns.flat)}

    def forward(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        logit: Tensor = self.deep_part(self.flat(embeddings, numbers))
        for v in embeddings:  # one width: one tensor, or none
            logit = logit + factorisation(v)
        return logit
