# core
"""Has the mean of bounded numbers gone above a stated one? Evidence that may be asked for at any moment.

Numbers x_1, x_2, ... lie in [-b_k, b_k]: each is the mean of a *cluster* of rows that depend on each other
(:mod:`millrace.evidence.clusters`). Nothing is said of their distribution, and it may change with each of them. Each
*look* at them judges another candidate, by the settled clusters of a day for instance::

    null        E[x_k | x_1, ..., x_(k-1)] <= m                   m: the stated difference
    bet         L_k = 1 + a_k (x_k - m)                           0 < a_k < 1 / (b_k + m), so L_k > 0 and, by the null,
                                                                  E[L_k | the past] <= 1
    evidence    R_k = s L_1 ... L_k                               s: the stake, time from the look before to this one
    alarm       R_k >= T, for any k                               T: the stated mean time

By Ville's inequality a look gives an alarm with probability s / T at most, by the null, however its clusters overlap
with those of other looks. So alarms within a time t have an expected number of t / T at most, and the mean time until
one is at least T: the same at any traffic. (It is the e-detector of Shin, Ramdas and Rinaldo (2022, arXiv 2203.03532)
with the stakes of a look on its first cluster.) The bound of a cluster must be known before its labels are. (The loss
of one probability less that of another has two values: so its bound is. To cut differences to a bound instead would
make another null of it: of two models the less sure one is worse by a little mostly, and better by much at times.)

Which a is best depends on how far the mean goes above m, and on the spread. So several gamblers share each stake, with
a = f / (b + m) for f = .9, .45, ..., .03 and the bound b of an ordinary cluster, and .9 / (b_k + m) at most. R is the
sum of what they have: a mixture of e-processes is one. Bets on means of bounded numbers are of Waudby-Smith and Ramdas
(2024, "Estimating means of bounded random variables by betting", J. R. Stat. Soc. B 86). With a mean of m + d and a
variance of v, log R grows by about a d - a^2 (v + d^2) / 2 a cluster under the best of the a, so an alarm takes about
(log(T / s) + log 6) over that.

What is assumed: the past tells of no cluster's mean that it is above m. A user for whom the candidate is worse than for
others may come again, as long as who comes next is not known before. Rows of the few who come again and again belong
into one cluster.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import MillraceError

Numbers = NDArray[np.float64]

FRACTIONS: Numbers = np.array([0.9 * 0.5**halved for halved in range(6)])
"""f: bets as shares of the largest that leaves something in any case. (B,)"""


class EvidenceError(MillraceError):
    """What is to be evidence is not within its bounds."""


def evidence(x: Numbers, bounds: Numbers, stake: float, difference: float, bound: float) -> Numbers:
    """log R of a look, behind each of its clusters. (n,)

    Args:
        x: their means, in order. (n,)
        bounds: b_k of each. (n,)
        stake: s, above 0. To say less than has passed, as behind a night without traffic, is to be on the safe side.
        difference: m.
        bound: b, above the absolute value of m.

    Raises:
        EvidenceError: a mean is not within its bound.

    >>> bool(evidence(np.full(40, 0.6), np.ones(40), stake=1.0, difference=0.0, bound=1.0).max() > np.log(1000))
    True
    """
    wrong = np.flatnonzero(~(np.abs(x) <= bounds * (1 + 1e-9)))
    if len(wrong):
        k = wrong[0]
        raise EvidenceError(f"a cluster's mean of {x[k]} where {bounds[k]} is the bound", "give bounds that hold")
    bets = np.minimum(FRACTIONS / (bound + difference), FRACTIONS[0] / (bounds + difference)[:, None])  # (n, B) a_k
    growth = np.cumsum(np.log1p(bets * (x - difference)[:, None]), axis=0)  # (n, B) log of L_1 ... L_k
    logs: Numbers = np.logaddexp.reduce(growth + np.log(stake / len(FRACTIONS)), axis=1)
    return logs
