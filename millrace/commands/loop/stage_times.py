# core
"""Where a click's time goes on its way to the weights that serve: each stage, from the roles' histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

Buckets = Mapping[str, float]
"""Cumulative counts of a Prometheus histogram by upper bound, as ``le`` names it."""

METRIC = "millrace_click_stage_seconds"
ROLE_OF = {"joined": "stream", "learnt": "learn", "published": "learn", "applied": "serve"}
"""The stages of a click in their order, and the role that observes each."""
WHOLE, SERVED = "served", "millrace_click_to_served_seconds"
"""All stages together, and the scorer's histogram of it."""


class StageTimes(NamedTuple):
    """What a histogram counted of one stage, up to a moment or between two."""

    seconds: float
    clicks: float
    buckets: Buckets

    def since(self, before: StageTimes) -> StageTimes:
        buckets = {bound: count - before.buckets.get(bound, 0.0) for bound, count in self.buckets.items()}
        return StageTimes(self.seconds - before.seconds, self.clicks - before.clicks, buckets)

    def figures(self) -> dict[str, float | None]:
        """Mean, p50 and p99 (ms) and how many clicks there were; None where there were none."""
        mean = 1000 * self.seconds / self.clicks if self.clicks else None
        p50, p99 = (quantile_ms(self.buckets, share) for share in (0.5, 0.99))
        return {"mean": mean, "p50": p50, "p99": p99, "count": self.clicks}


Stages = Mapping[str, StageTimes]
"""By stage, and :data:`WHOLE`."""


def quantile_ms(buckets: Buckets, share: float) -> float | None:
    """A quantile of a histogram in ms, by a straight line within its bucket, as PromQL's ``histogram_quantile`` has it.
    None without values; the highest bound where it lies beyond.

    >>> quantile_ms({"0.5": 10, "1.0": 30, "+Inf": 40}, 0.5)
    750.0
    """
    known = sorted((math.inf if bound == "+Inf" else float(bound), count) for bound, count in buckets.items())
    if not known or not known[-1][1]:
        return None
    wanted, low, below = share * known[-1][1], 0.0, 0.0
    for bound, count in known:
        if count >= wanted:
            if bound == math.inf:
                break
            return 1000 * (low + (bound - low) * (wanted - below) / (count - below or 1.0))
        low, below = bound, count
    return 1000 * low
