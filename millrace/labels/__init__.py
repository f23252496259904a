# core
"""Label policies: when an exposure's label is learnt, and with what weight. One file each, one contract (policy.py)."""

from millrace.labels.policy import LabelPolicy, Promise, Waits
from millrace.labels.registry import REGISTRY, asks, policy_named, weigh, weighs

__all__ = ["REGISTRY", "LabelPolicy", "Promise", "Waits", "asks", "policy_named", "weigh", "weighs"]
