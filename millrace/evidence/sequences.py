# core
"""Means, ratios and their differences with bands that hold at every look: asymptotic confidence sequences.

An interval of 95% that is looked at each hour misses the truth at some look far more often than in 5 of 100 runs. A
band of a confidence sequence misses it at any look, ever, in 5 of 100. For n independent units with a variance s^2 its
half width is (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, "Time-uniform central limit theory and asymptotic
confidence sequences", Annals of Statistics 52, theorem 2.2 and equation 10)::

    s sqrt( 2 (n r^2 + 1) / (n^2 r^2)  log( sqrt(n r^2 + 1) / a ) )      r^2 = (-2 log a + log(1 - 2 log a)) / m

It is tightest near m units. It is *asymptotic*: it holds for a count of units from which the mean is as good as normal
on. Unlike bounds for bounded numbers it needs no largest value, which purchases do not have. But a small arm in which
no unit with much has come yet has a mean and a variance that are both too low, and named false winners. Hence three
rules for arms:

- Nothing is said below :data:`LEAST` *effective* units of an arm, (sum c)^2 / sum c^2: as many of equal outcomes would
  tell as much. Of units that have an outcome or have none it is the count of those that have one.
- Equal arms have equal variances. So of two arms neither counts for less than the other's variance (:func:`gap`), which
  may have seen the units with much. It is taken down to the arm's own mean, for an arm with half the clicks has half
  the spread.
- Where k arms are compared with one, each difference has a k-th of the error (:func:`error_each`).

Units are users, for a user's pages are alike. What is told a page is a ratio of two sums over users, clicks c over
pages d. Its error is that of the mean of the linearised (c - R d) / mean(d) (Deng, Knoblich and Lu 2018, "Applying the
delta method in metric analytics", section 3). The same with d = 1 is a plain mean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from millrace.evidence.offpolicy import effective

ERROR = 0.05
"""The probability that a band, or one of the bands of all arms' differences, ever misses the truth."""
LEAST = 100
"""Effective units of an arm before anything is said of it."""
BEST_AT = 2000
"""m: units at which a band is tightest."""


class Estimate(NamedTuple):
    """A mean or a ratio over n units."""

    value: float
    n: int
    variance: float  # of one unit: the squared error of the value times n
    effective: float  # so many units with equal outcomes would tell as much

    @property
    def said(self) -> bool:
        """Whether there is enough to say anything."""
        return self.effective >= LEAST


class Band(NamedTuple):
    """Values within which the truth is at all looks together with the stated probability."""

    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether 0 is outside."""
        return self.low > 0 or self.high < 0


NOTHING = Band(-math.inf, math.inf)


def ratio(outcomes: ArrayLike, of: ArrayLike | None = None) -> Estimate:
    """The sum of outcomes over the sum of what they are of.

    Args:
        outcomes: of each unit. (n,)
        of: the same of what they are counted by, at least 0. (n,) Default: 1 each, for a plain mean.
    """
    c: NDArray[np.float64] = np.asarray(outcomes, np.float64)
    d = np.ones_like(c) if of is None else np.asarray(of, np.float64)
    if not len(c) or not d.sum() > 0:
        return Estimate(math.nan, len(c), math.nan, 0.0)
    value = float(c.sum() / d.sum())
    variance = float(np.mean(((c - value * d) / d.mean()) ** 2))
    return Estimate(value, len(c), variance, min(effective(np.abs(c)), effective(d)))


def mean_of(n: int, total: float, squares: float) -> Estimate:
    """The mean of n outcomes, at least 0, of which only the sum and the sum of squares are known."""
    if not n:
        return Estimate(math.nan, 0, math.nan, 0.0)
    value = total / n
    variance = max(0.0, squares / n - value * value)  # rounding may leave less than nothing
    return Estimate(value, n, variance, total * total / squares if squares else 0.0)


def half_width(n: float, variance: float, error: float = ERROR, best_at: float = BEST_AT) -> float:
    """Half the width of the band after n units.

    Args:
        n: above 0.
        variance: of one unit.
        error: the probability that the truth is ever outside.
        best_at: units at which the band is tightest.
    """
    r2 = (-2 * math.log(error) + math.log(1 - 2 * math.log(error))) / best_at
    return math.sqrt(variance * 2 * (n * r2 + 1) / (n * n * r2) * math.log(math.sqrt(n * r2 + 1) / error))


def band(of: Estimate, error: float = ERROR) -> Band:
    """The band of a value."""
    if not of.said:
        return NOTHING
    half = half_width(of.n, of.variance, error)
    return Band(of.value - half, of.value + half)


def gap(one: Estimate, other: Estimate) -> Estimate:
    """The first value less the second, where units are in one of two arms by chance.

    Of n units in both, one tells a variance of n (v_1 / n_1 + v_2 / n_2): that of the arms' mean of a unit that is in
    either by chance.
    """
    n, least = one.n + other.n, min(one.effective, other.effective)
    variance = math.nan
    if n and least:
        variance = n * (_variance(one, other) / one.n + _variance(other, one) / other.n)
    return Estimate(one.value - other.value, n, variance, least)


def _variance(own: Estimate, other: Estimate) -> float:
    """An arm's variance, at least the other's at the arm's own mean where that is the lower one."""
    share = min(1.0, abs(own.value / other.value)) if other.value else 1.0
    return max(own.variance, other.variance * share * share)


def difference(one: Estimate, other: Estimate, error: float = ERROR) -> Band:
    """The band of :func:`gap`."""
    return band(gap(one, other), error)


def error_each(arms: int) -> float:
    """The error of each difference where all arms are compared with one of them, so that it is :data:`ERROR` in all."""
    return ERROR / max(1, arms - 1)
