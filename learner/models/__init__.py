"""The models, one file each. :data:`REGISTRY` has them all by name."""

from learner.models import logistic, wide_deep, wide_resnet
from learner.models.base import REGISTRY, Network, Shape, network_of

__all__ = ["REGISTRY", "Network", "Shape", "logistic", "network_of", "wide_deep", "wide_resnet"]
