# core
"""Where a click's time goes on its way to the weights that serve: each stage, from the roles' histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Buckets = Mapping[str, float]
"""Cumulative counts of a Prometheus histogram by upper bound, as ``le`` names it."""

Totals = Callable[..., float]
"""A role's totals over its restarts: :meth:`commands.loop.monitor.RoleMetrics.total`."""

METRIC = "millrace_click_stage_seconds"
ROLE_OF = {"joined": "stream", "learnt": "learn", "published": "learn", "applied": "serve"}
"""The stages of a click in their order, and the role that observes each."""

Stages = dict[str, dict[str, float | None]]


def stage_of(stage: str, total: Totals, bounds: Buckets) -> dict[str, float | None]:
    """Mean, p50 and p99 of one stage (ms) and how many clicks went through it; None where none did."""
    count = total(f"{METRIC}_count", stage=stage)
    mean = 1000 * total(f"{METRIC}_sum", stage=stage) / count if count else None
    return {"mean": mean, "p50": quantile_ms(bounds, 0.5), "p99": quantile_ms(bounds, 0.99), "count": count}


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
