# core
"""Label policies: when an exposure's label is learnt, and with what weight. One file each, one contract (policy.py)."""

from millrace.labels.policy import LabelPolicy, Promise, Traffic, Waits, is_early, label_ms
from millrace.labels.registry import REGISTRY, WITH_EXPOSURE, asks, final, policy_named, weigh, weighs

__all__ = [
    "REGISTRY",
    "WITH_EXPOSURE",
    "LabelPolicy",
    "Promise",
    "Traffic",
    "Waits",
    "asks",
    "final",
    "is_early",
    "label_ms",
    "policy_named",
    "weigh",
    "weighs",
]
