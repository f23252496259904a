# core
"""Means, ratios and their differences with bands that hold at every look: asymptotic confidence sequences.

An interval of 95% that is looked at each hour misses the truth at some look far more often than in 5 of 100 runs. A
band of a confidence sequence misses it at any look, ever, in 5 of 100. For n independent units with a variance s^2 its
half width is (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, "Time-uniform central limit theory and asymptotic
confidence sequences", Annals of Statistics 52, theorem 2.2 and equation 10)::

    s sqrt( 2 (n r^2 + 1) / (n^2 r^2)  log( sqrt(n r^2 + 1) / a ) )      r^2 = (-2 log a + log(1 - 2 log a)) / m

It is tightest near m units. It is *asymptotic*: it holds for a count of units from which the mean is as good as normal
on. So nothing is said below :data:`LEAST` units of an arm. Unlike bounds for bounded numbers it needs no largest value,
which purchases do not have.

Units are users, for a user's pages are alike. What is told a page is a ratio of two sums over users, clicks c over
pages d. Its error is that of the mean of the linearised (c - R d) / mean(d) (Deng, Knoblich and Lu 2018, "Applying the
delta method in metric analytics", section 3). The same with d = 1 is a plain mean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = 100
"""Units of an arm before anything is said of it."""
LEAST_OUTCOMES, LEAST_VALUES = 10, 100
"""Of them so many with an outcome; where outcomes count a value such as a price, whose few large ones decide. With ten
lognormal prices an arm 15% of equal arms had a winner, with a hundred 2%."""
BEST_AT = 2000
"""m: units at which a band is tightest."""


class Estimate(NamedTuple):
    """A mean or a ratio over n units."""

    value: float
    n: int
    variance: float  # of one unit: the squared error of the value times n
    said: bool  # whether there is enough to say anything


class Band(NamedTuple):
    """Values within which the truth is at all looks together with the stated probability."""

    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether 0 is outside."""
        return self.low > 0 or self.high < 0


NOTHING = Band(-math.inf, math.inf)


def ratio(outcomes: ArrayLike, of: ArrayLike | None = None, least: int = LEAST_OUTCOMES) -> Estimate:
    """The sum of outcomes over the sum of what they are of.

    Args:
        outcomes: of each unit. (n,)
        of: the same of what they are counted by, at least 0. (n,) Default: 1 each, for a plain mean.
        least: units with an outcome before anything is said.
    """
    c: NDArray[np.float64] = np.asarray(outcomes, np.float64)
    d = np.ones_like(c) if of is None else np.asarray(of, np.float64)
    if not len(c) or not d.sum() > 0:
        return Estimate(math.nan, len(c), math.nan, False)
    value = float(c.sum() / d.sum())
    variance = float(np.mean(((c - value * d) / d.mean()) ** 2))
    return Estimate(value, len(c), variance, bool(len(c) >= LEAST and np.count_nonzero(c) >= least))


def mean_of(n: int, total: float, squares: float, having: int, least: int = LEAST_OUTCOMES) -> Estimate:
    """The mean of n outcomes, of which only the sum, the sum of squares, and how many are not 0, are known."""
    if not n:
        return Estimate(math.nan, 0, math.nan, False)
    value = total / n
    variance = max(0.0, squares / n - value * value)  # rounding may leave less than nothing
    return Estimate(value, n, variance, n >= LEAST and having >= least)


def half_width(n: float, variance: float, error: float = 0.05, best_at: float = BEST_AT) -> float:
    """Half the width of the band after n units.

    Args:
        n: above 0.
        variance: of one unit.
        error: the probability that the truth is ever outside.
        best_at: units at which the band is tightest.
    """
    r2 = (-2 * math.log(error) + math.log(1 - 2 * math.log(error))) / best_at
    return math.sqrt(variance * 2 * (n * r2 + 1) / (n * n * r2) * math.log(math.sqrt(n * r2 + 1) / error))


def band(of: Estimate, error: float = 0.05) -> Band:
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
    n, said = one.n + other.n, one.said and other.said
    variance = n * (one.variance / one.n + other.variance / other.n) if said else math.nan
    return Estimate(one.value - other.value, n, variance, said)


def difference(one: Estimate, other: Estimate, error: float = 0.05) -> Band:
    """The band of :func:`gap`."""
    return band(gap(one, other), error)
