# core
"""Quality metrics: the one definition of AUC, log loss and calibration for pages, reports and comparisons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]

ROLLING_ROWS = 10_000
"""Rows that rolling figures are of: the standard error of an AUC is then some .01 at a click rate of 10%."""

_CLIP = 1e-7


def auc(p: Numbers, y: Numbers) -> float:
    """Area under the ROC curve of scores p for labels y, (n,): P(p of a positive > p of a negative), ties count half.

    By the rank sum (Mann and Whitney 1947): ``(R_pos - n_pos (n_pos + 1) / 2) / (n_pos n_neg)``, mean ranks in ties.
    NaN with one class only, or if a score is NaN.
    """
    positive = np.asarray(y) > 0.5
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if not n_pos or not n_neg:
        return float("nan")
    p = np.asarray(p, np.float64)
    if np.isnan(p).any():
        return float("nan")
    ranks = _mean_ranks(p)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2.0) / (n_pos * n_neg))


def grouped_auc(p: Numbers, y: Numbers, group: Numbers) -> float:
    """Grouped AUC: the mean of the groups' own AUCs, weighted by their rows (Zhou et al. 2018, DIN, eq. 9).

    All rows of a group must be scored in one state of model and windows: the rows of a page, or a user's day that
    neither has learnt from yet. Otherwise labels drawn at random do not give .5: the labels learnt first move the later
    scores of the same user, against the labels that remain.

    Groups with one class only are left out. NaN when no group is left. ``p``, ``y``, ``group``: (n,)
    """
    own, rows = group_aucs(p, y, group)
    return float(own @ rows / rows.sum()) if len(own) else float("nan")


def group_aucs(p: Numbers, y: Numbers, group: Numbers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(AUC of each of the G groups that have both classes (G,), their rows (G,)), groups ascending. Inputs: (n,)"""
    p, y, group = np.asarray(p, np.float64), np.asarray(y) > 0.5, np.asarray(group)
    if not len(p):
        return np.empty(0), np.empty(0)
    order = np.lexsort((p, group))
    p, y, group = p[order], y[order], group[order]
    start = np.concatenate([[True], group[1:] != group[:-1]])
    number = np.cumsum(start) - 1  # (n,) of each row's group
    first = np.flatnonzero(start)  # row of each group
    run = np.cumsum(start | np.concatenate([[True], p[1:] != p[:-1]]))  # (n,) number of each run of equal (group, p)
    rank = _mean_ranks(run) - first[number]  # (n,) within the group
    rows = np.bincount(number).astype(np.float64)
    n_pos = np.bincount(number, weights=y)
    both = (n_pos > 0) & (n_pos < rows)
    rank_sum = np.bincount(number, weights=rank * y)[both]
    rows, n_pos = rows[both], n_pos[both]
    return (rank_sum - n_pos * (n_pos + 1) / 2.0) / (n_pos * (rows - n_pos)), rows


def _mean_ranks(values: Numbers) -> NDArray[np.float64]:
    """Ranks from 1; ties share their mean. (n,) As ``scipy.stats.rankdata``, whose import takes most of a second."""
    _, number, ties = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(ties) - (ties - 1) / 2.0)[number]
    return ranks


def log_losses(p: Numbers, y: Numbers) -> NDArray[np.float64]:
    """``-y ln p - (1 - y) ln(1 - p)`` of each sample, p clipped to [1e-7, 1 - 1e-7]. (n,)"""
    q = np.clip(np.asarray(p, np.float64), _CLIP, 1 - _CLIP)
    t = np.asarray(y, np.float64)
    losses: NDArray[np.float64] = -t * np.log(q) - (1 - t) * np.log1p(-q)
    return losses


def log_loss(p: Numbers, y: Numbers) -> float:
    """Mean of :func:`log_losses`. NaN without samples."""
    return float(log_losses(p, y).mean()) if len(p) else float("nan")


def calibration(p: Numbers, y: Numbers) -> float:
    """Clicks predicted over clicks observed, ``sum p / sum y``. NaN without a click."""
    clicks = float(np.sum(y, dtype=np.float64))
    return float(np.sum(p, dtype=np.float64)) / clicks if clicks else float("nan")


def is_probability(p: Numbers) -> NDArray[np.bool_]:
    """(n,) whether each prediction is a probability."""
    p = np.asarray(p)
    found: NDArray[np.bool_] = (p >= 0) & (p <= 1)  # NaN is not
    return found


def judged(p: Numbers, y: Numbers) -> NDArray[np.float64]:
    """``p`` with the worst prediction, ``1 - y``, in place of each value that fails :func:`is_probability`. (n,)"""
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    return np.where(is_probability(p), p, 1.0 - y)


def known(figure: float) -> float | None:
    """The figure, or None for NaN: JSON has no NaN."""
    return figure if math.isfinite(figure) else None


class Newest:
    """Scores and labels of the newest ``size`` rows, for metrics on request."""

    def __init__(self, size: int) -> None:
        self.rows = 0  # ever added
        self._p, self._y = np.zeros(size), np.zeros(size)  # a ring

    def add(self, p: Numbers, y: Numbers) -> None:
        """Takes rows in order, (n,); keeps the newest if they are too many."""
        size = len(self._p)
        new = slice(max(0, len(p) - size), None)
        at = (self.rows + np.arange(len(p))[new]) % size
        self._p[at], self._y[at] = p[new], y[new]
        self.rows += len(p)

    @property
    def held(self) -> tuple[Numbers, Numbers]:
        """Scores and labels, (n,) each, in no order. Views: the next :meth:`add` changes them."""
        n = min(self.rows, len(self._p))
        return self._p[:n], self._y[:n]
