# core
"""Figures over seeds: a mean and its 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(name: str, values: Sequence[float]) -> dict[str, float]:
    """``name``: the mean of some seeds' figures; ``name_ci``: half the width of its 95% interval (Student's t)."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return {name: rounded(mean), f"{name}_ci": rounded(half)}


DIGITS = 5
"""Behind the point: finer than any of the intervals."""


def rounded(value: float) -> float:
    return round(value, DIGITS)
