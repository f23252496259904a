# core
"""The models, one file each. :data:`REGISTRY` has them all by name."""

from learner.network.models import deepfm, logistic, pnn_group, pnn_inner, pnn_outer, wide_deep, wide_resnet
from learner.network.models.base import REGISTRY, Columns, Head, Network, Shape, network_of

__all__ = [
    "REGISTRY",
    "Columns",
    "Head",
    "Network",
    "Shape",
    "deepfm",
    "logistic",
    "network_of",
    "pnn_group",
    "pnn_inner",
    "pnn_outer",
    "wide_deep",
    "wide_resnet",
]
