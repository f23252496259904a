# core
"""Differences between two scorings of the same exposures, with 95% intervals over users: one pass, no draws.

Exposures of one user are alike, so an interval must treat users as drawn, not exposures. A quality metric is a mean or
a ratio of sums over rows, to the first order. So a difference's error is a sum over users::

    AUC(p) = 1/(n1 n0) sum over clicked i, others j of [p_i > p_j] + [p_i = p_j] / 2
    a row's part    clicked i:  (share of the others below p_i, ties half) - AUC,   over n1
                    other j:    (share of the clicked above p_j, ties half) - AUC,  over n0
    log loss        (loss of the row - log loss) / n
    calibration     (p - calibration * y) / n1
    a gap's part    that under p less that under q
    variance        U / (U - 1) * sum over the U users of (sum of their rows' parts)^2
    interval        Student's t with min(E, C) - 1 degrees of freedom

E = (sum of m_u)^2 / sum of m_u^2, for m_u rows of user u, is the equivalent number of users of equal size (Kish 1965,
section 5.4). C is the smaller of two counts: users who have clicked, and users who have not. The smaller group makes
the spread. With few users, or a few who have most rows, the estimate of the spread is poor, and a normal interval
covers far less than 95% (figures: tests/millrace/basics/test_clustered.py). Below :data:`FEWEST` there is no interval.

The AUC's parts are DeLong's (DeLong, DeLong and Clarke-Pearson 1988), summed by cluster (Obuchowski 1997,
"Nonparametric analysis of clustered ROC curve data"). A bootstrap over many users gives the same intervals for a
hundred times the work (same test).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.ranking_metrics import AT_ONCE, GroupRanks, calibration, judged, log_losses

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = NDArray[Any]
Parts = tuple[float, NDArray[np.float64]]  # a figure, and each row's part of its error, (n,)

FEWEST = 5  # users who have clicked, or who have not, below which there is no interval
FEW = f"fewer than {FEWEST} users have clicked, or have not"  # reason for a missing interval


@dataclass(frozen=True, slots=True)
class Gap:
    """A figure under p less that under q, and half of its 95% interval; NaN where there is none."""

    value: float
    half: float
    freedom: float = math.inf

    def half_of_best(self, looks: int) -> float:
        """Half of the interval of the best of so many gaps: it is wider, as k looks need (Bonferroni)."""
        return self.half * quantile(1 - 0.025 / looks, self.freedom) / quantile(0.975, self.freedom)

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.value) > self.half


def auc_parts(p: Numbers, y: Numbers) -> Parts:
    """Of scores p for labels y, (n,). NaN with one class only."""
    positive = np.asarray(y) > 0.5
    n, n1 = len(positive), int(positive.sum())
    n0 = n - n1
    if not n1 or not n0 or np.isnan(p).any():
        return math.nan, np.full(n, math.nan)
    # Four bytes a number where they suffice, and in parts: a log has ten million rows and more.
    order = np.argsort(p, kind="stable").astype(np.int32)
    ordered, hit = np.asarray(p)[order], positive[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])  # of each run of equal scores
    run = np.cumsum(first, dtype=np.int32) - np.int32(1)  # (n,) number of each place's run
    start = np.flatnonzero(first).astype(np.int32)
    del ordered, first
    clicked = np.add.reduceat(hit, start, dtype=np.int32)
    others = np.diff(start, append=np.int32(n)) - clicked
    below = np.cumsum(others, dtype=np.float64)
    below -= others / 2.0  # others below a run, half of those in it
    del start, others
    value = float(clicked @ below) / (n1 * n0)
    above = n1 - np.cumsum(clicked, dtype=np.float64)
    above += clicked / 2.0
    share = np.empty(n)
    for at in range(0, n, AT_ONCE):
        part = slice(at, at + AT_ONCE)
        own, clicks = run[part], hit[part]
        of = np.where(clicks, below[own] / n0, above[own] / n1) - value
        share[order[part]] = of / np.where(clicks, n1, n0)
    return value, share


def rank_parts(ranks: GroupRanks, key: str, n: int) -> Parts:
    """Of a key of :data:`~millrace.basics.ranking_metrics.WITHIN`, for n rows; a group's part stands at its first."""
    (own, weight), value = ranks.weighted()[key], ranks.means()[key]
    parts = np.zeros(n)
    parts[ranks.first] = weight * (own - value) / weight.sum() if len(own) else 0.0
    return value, parts


def log_loss_parts(p: Numbers, y: Numbers) -> Parts:
    """Of probabilities p for labels y, (n,)."""
    losses = log_losses(p, y)
    value = float(losses.mean()) if len(losses) else math.nan
    return value, (losses - value) / max(1, len(losses))


def calibration_parts(p: Numbers, y: Numbers) -> Parts:
    """Of probabilities p for labels y, (n,). NaN without a click."""
    value, p, y = calibration(p, y), np.asarray(p, np.float64), np.asarray(y, np.float64)
    return value, (p - value * y) / (float(y.sum()) or math.nan)


PARTS = {"auc": auc_parts, "log_loss": log_loss_parts, "calibration": calibration_parts}
"""The figures that have intervals, by key. Values are those of :mod:`millrace.basics.ranking_metrics`, to the bit."""


def parts_of(p: Numbers, y: Numbers) -> dict[str, Parts]:
    """By key of :data:`PARTS`. A score that is no probability counts as the worst one."""
    p = judged(p, y)
    return {key: of(p, y) for key, of in PARTS.items()}


def quantile(share: float, freedom: float) -> float:
    """Of Student's t distribution; of the normal one where ``freedom`` is infinite."""
    from scipy import special  # only here: a learner has intervals for a shadow alone, and this takes 10 MB

    return float(special.ndtri(share) if math.isinf(freedom) else special.stdtrit(freedom, share))


@dataclass(frozen=True, slots=True)
class Users:
    """Number of users of some rows, and the degrees of freedom that they give an interval."""

    count: int
    freedom: float  # degrees of freedom; NaN where there is no interval

    @classmethod
    def of(cls, y: Numbers, user: NDArray[np.intp]) -> Users:
        """Of rows with labels y, (n,). ``user``: a number from 0 on for each row's user, (n,); numbers may be left
        out."""
        rows = np.bincount(user)
        clicks = np.bincount(user[np.asarray(y) > 0.5], minlength=len(rows))
        count = int(np.count_nonzero(rows))
        least = min(int(np.count_nonzero(clicks)), int(np.count_nonzero(rows - clicks)))
        if least < FEWEST:
            return cls(count, math.nan)
        sizes = rows.astype(np.float64)
        alike = float(sizes.sum() ** 2 / (sizes @ sizes))  # E
        return cls(count, max(min(alike, least) - 1, 1.0))

    @property
    def few(self) -> bool:
        return math.isnan(self.freedom)

    @property
    def widen(self) -> float:
        """A spread around the users' own mean is that of U - 1 users, not of U."""
        return math.sqrt(self.count / (self.count - 1))


def gap(own: Parts, base: Parts, y: Numbers, user: NDArray[np.intp]) -> Gap:
    """The difference between two scorings of the same rows with labels y, (n,). ``user`` as in :meth:`Users.of`."""
    value, users = own[0] - base[0], Users.of(y, user)
    if users.few or not math.isfinite(value):
        return Gap(value, math.nan)
    sums = np.bincount(user, weights=own[1] - base[1])
    error = users.widen * math.sqrt(float(sums @ sums))
    return Gap(value, quantile(0.975, users.freedom) * error, users.freedom)


def user_numbers(column: pa.ChunkedArray) -> NDArray[np.intp]:
    """A number from 0 on for each user of a log's column, plain or dictionary-encoded. (n,)"""
    import pyarrow as pa  # only for logs; a live comparison of models runs without it

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.unify_dictionaries().chunks]
    codes = np.concatenate(chunks) if chunks else np.empty(0, np.intp)
    numbers: NDArray[np.intp] = (np.cumsum(np.bincount(codes) > 0) - 1)[codes]  # a dictionary may hold others
    return numbers
