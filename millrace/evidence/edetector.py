# core
"""Has the mean of a stream of bounded numbers gone above a stated one? An e-detector, valid whenever one looks.

Numbers x_1, x_2, ... lie in [-b_k, b_k]: each is the mean of a *cluster* of rows that depend on each other
(:mod:`millrace.evidence.clusters`). Nothing is said of their distribution, and it may change with each of them::

    null        E[x_k | x_1, ..., x_(k-1)] <= m                   m: the stated difference
    bet         L_k = 1 + a_k (x_k - m)                           0 < a_k < 1 / (b_k + m), so L_k > 0 and, by the null,
                                                                  E[L_k | the past] <= 1
    evidence    R_k = (R_(k-1) + s_k) L_k,   R_0 = 0              s_k: time from cluster k - 1 to cluster k
              = sum over j <= k of s_j L_j ... L_k                a gambler begins in each moment with one unit
    alarm       R_k >= T                                          T: the stated mean time

R_k - (s_1 + ... + s_k) is a supermartingale by the null. So an alarm within a time t has probability t / T at most, and
the mean time until one is at least T; behind an alarm all begins again. For s_k = 1 this is the Shiryaev-Roberts
e-detector of Shin, Ramdas and Rinaldo (2022, arXiv 2203.03532), whose time is a number of clusters. Here the stake is
the time that passes, so T is a time, the same at any traffic: a month has as many false alarms at one row a second as
at a thousand. What many clusters an hour would cost is log(their number) in evidence. The time and the bound of a
cluster must be known before its labels are. (The loss of one probability less that of another has two values: so its
bound is. To cut differences to a bound instead would make another null of it: of two models the less sure one is worse
by a little mostly, and better by much at times.)

Which a is best depends on how far the mean goes above m, and on the spread. So several gamblers share each stake, with
a = f / (b + m) for f = .9, .45, ..., .03 and the bound b of an ordinary cluster, and .9 / (b_k + m) at most. R is the
sum of what they have: a mixture of e-detectors is one (the same paper, section 4). Bets on means of bounded numbers are
of Waudby-Smith and Ramdas (2024, "Estimating means of bounded random variables by betting", J. R. Stat. Soc. B 86).
With a mean of m + d and a variance of v, log R grows by about a d - a^2 (v + d^2) / 2 a cluster under the best of the
a, so an alarm takes about (log(T / s) + log 6) over that.

What is assumed: the past tells of no cluster's mean that it is above m. A user for whom the candidate is worse than for
others may come again, as long as who comes next is not known before. Rows of the few who come again and again belong
into one cluster.

The same piece serves more. ``elapsed`` says when stakes are made:

- *looks at a window*: each candidate is judged by the same settled clusters, of a day for instance. A look is a fresh
  detector whose whole stake, the time since the look before, is on the first cluster. By Ville's inequality it gives an
  alarm with probability s / T at most, however its clusters overlap with those of other looks. So alarms within t have
  an expected number of t / T at most, as above. This finds a candidate that became worse at once by what came before;
  one detector along the stream finds a small difference that lasts.
- *an arm or a shadow* that is to be better by more than m: one stake of 1 at the first cluster ever, and T = 1 / alpha.
  A false alarm ever comes with probability alpha at most.
- *both sides*: one detector of x and one of -x, each with twice T.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from millrace.basics.errors import MillraceError

Numbers = NDArray[np.float64]

FRACTIONS: Numbers = np.array([0.9 * 0.5**halved for halved in range(6)])
"""f: bets as shares of the largest that leaves something in any case. (B,)"""


class EvidenceError(MillraceError):
    """What is to be evidence is not within its bounds."""


class EDetector:
    """See the module's text. One thread at a time.

    Args:
        difference: m.
        bound: b, above the absolute value of m: of an ordinary cluster, and of each where none of its own is said.
        mean_time: T, in the unit of ``elapsed``.

    Raises:
        EvidenceError: the bound is not above the difference, or the time is not above 0.

    >>> detector = EDetector(difference=0.0, bound=1.0, mean_time=1000.0)
    >>> _ = detector.update(np.tile([0.5, -0.5], 50), elapsed=0.1)
    >>> detector.alarm
    False
    >>> _ = detector.update(np.full(40, 0.6), elapsed=0.1)
    >>> detector.alarm
    True
    """

    def __init__(self, difference: float, bound: float, mean_time: float) -> None:
        if not abs(difference) < bound or not mean_time > 0:
            raise EvidenceError(
                f"a difference of {difference} with a bound of {bound} and a mean time of {mean_time}",
                "give a bound above the difference, and a time above 0",
            )
        self.difference, self.bound, self.mean_time = difference, bound, mean_time
        self._bets: Numbers = FRACTIONS / (bound + difference)
        self._log: Numbers = np.full(len(FRACTIONS), -np.inf)  # of what the gamblers of each bet have. (B,)
        self.alarm = False
        """Whether the evidence has reached T. Behind that begin with another detector."""

    @property
    def log_evidence(self) -> float:
        """log R, now; an alarm is due at log T. It may have been higher before."""
        return float(np.logaddexp.reduce(self._log))

    def update(self, x: ArrayLike, elapsed: ArrayLike = 1.0, bounds: ArrayLike | None = None) -> Numbers:
        """Takes the next clusters, in order, and gives log R behind each. (n,)

        Args:
            x: their means. (n,)
            elapsed: the stake at each, (n,) or one for all: the time since the cluster before. At least 0. To say
                less than has passed, as behind a night without traffic, is to be on the safe side.
            bounds: b_k of each, (n,), where it is not b.

        Raises:
            EvidenceError: a mean is not within its bound, or a time is below 0; nothing has changed then.
        """
        x = np.atleast_1d(np.asarray(x, np.float64))
        s = np.broadcast_to(np.asarray(elapsed, np.float64), x.shape)
        b = np.broadcast_to(np.asarray(self.bound if bounds is None else bounds, np.float64), x.shape)
        wrong = np.flatnonzero(~((np.abs(x) <= b * (1 + 1e-9)) & (s >= 0) & np.isfinite(s)))
        if len(wrong):
            k = wrong[0]
            raise EvidenceError(
                f"a cluster's mean of {x[k]} where {b[k]} is the bound, {s[k]} after the one before",
                "give bounds that hold, and clusters in order of time",
            )
        if not len(x):
            return x
        bets = np.minimum(self._bets, FRACTIONS[0] / (b + self.difference)[:, None])  # (n, B) a_k
        growth = np.cumsum(np.log1p(bets * (x[:, None] - self.difference)), axis=0)  # (n, B) log of L_1 ... L_k
        with np.errstate(divide="ignore"):
            stakes = np.log(s / len(FRACTIONS))[:, None]  # (n, 1)
        # R_k / (L_1 ... L_k) = R_0 + sum over j <= k of s_j / (L_1 ... L_(j-1))
        begun = np.vstack([self._log, stakes - np.vstack([np.zeros_like(self._bets), growth[:-1]])])
        logs = growth + np.logaddexp.accumulate(begun, axis=0)[1:]  # (n, B)
        self._log = logs[-1]
        log_evidence: Numbers = np.logaddexp.reduce(logs, axis=1)
        self.alarm |= bool(log_evidence.max() >= np.log(self.mean_time))
        return log_evidence
