# core
"""Quality metrics: the one definition of AUC, log loss, calibration and order within pages, and of the figures of
scores (:func:`figures_of`), for live loops, reports and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]

ROLLING_ROWS = 10_000
"""Rows that rolling figures are of: the standard error of an AUC is then some .01 at a click rate of 10%."""

WITHIN = ("grouped_auc", "page_auc", "ndcg")
"""Figures of the order within groups of rows (:func:`within`)."""

ORDER = ("auc", *WITHIN)
"""Figures of an order: those that a baseline has too, which gives no probabilities."""

FIGURES = (*ORDER, "log_loss", "calibration")
"""The figures of scores, in the order in which reports show them."""

CUT = 10  # ranks that nDCG counts
DIGITS = 6  # behind the point, of a report's figures

_CLIP = 1e-7
AT_ONCE = 1 << 18
"""Rows that a figure is computed of at a time: a log has ten million and more, and each takes some hundred bytes."""
_DISCOUNTS = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(1.0 + np.arange(1, CUT + 1)))])
"""Sums of the discounts of the first 0, 1, ... ranks. (CUT + 1,)"""


def auc(p: Numbers, y: Numbers) -> float:
    """Area under the ROC curve of scores p for labels y, (n,): P(p of a positive > p of a negative), ties count half.

    The rank sum (Mann and Whitney 1947): for each positive the negatives below it, and half of its equals. These are
    whole and half numbers, exact in float64 up to 2^53, in whatever order and parts they are summed. NaN with one class
    only, or if a score is NaN.
    """
    p, positive = np.asarray(p), np.asarray(y) > 0.5
    high, low = p[positive], p[~positive]
    if not len(high) or not len(low) or np.isnan(p).any():
        return math.nan
    low.sort()
    parts = (high[at : at + AT_ONCE] for at in range(0, len(high), AT_ONCE))
    twice = sum(int(np.searchsorted(low, part, side).sum()) for part in parts for side in ("left", "right"))
    return twice / 2.0 / (len(high) * len(low))


class GroupRanks(NamedTuple):
    """How the rows of the G groups that have both classes are ordered, each group by itself; groups ascending."""

    auc: NDArray[np.float64]  # (G,)
    ndcg: NDArray[np.float64]  # (G,) of the first :data:`CUT` rows
    rows: NDArray[np.float64]  # (G,)
    first: NDArray[np.intp]  # (G,) place of each group's first row

    def weighted(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """By key of :data:`WITHIN`, each group's figure and its weight in the mean, (G,) each."""
        alike = np.ones(len(self.rows))
        return {"grouped_auc": (self.auc, self.rows), "page_auc": (self.auc, alike), "ndcg": (self.ndcg, alike)}

    def means(self) -> dict[str, float]:
        """By key of :data:`WITHIN`; NaN without a group."""
        if not len(self.rows):
            return dict.fromkeys(WITHIN, math.nan)
        return {key: float(own @ weight / weight.sum()) for key, (own, weight) in self.weighted().items()}


def within(p: Numbers, y: Numbers, group: Numbers) -> dict[str, float]:
    """How scores p order rows with labels y within groups, (n,) each: a mean over groups for each key of
    :data:`WITHIN`.

    ==============  =======  ==========
    key             of each  weighed by
    ==============  =======  ==========
    grouped_auc     AUC      rows (Zhou et al. 2018, DIN, eq. 9)
    page_auc        AUC      page
    ndcg            nDCG@10  page
    ==============  =======  ==========

    All rows of a group must be scored in one state of model and windows: the rows of a page, or a user's day that
    neither has learnt from yet. Otherwise labels drawn at random do not give .5: the labels learnt first move the later
    scores of the same user, against the labels that remain.

    Groups with one class only are left out: no order of theirs is better than another. NaN when no group is left.
    """
    return group_ranks(p, y, group).means()


def group_ranks(p: Numbers, y: Numbers, group: Numbers, at_once: int = AT_ONCE) -> GroupRanks:
    """AUC and nDCG of each group. Inputs: (n,); ``at_once`` of them at a time, or the one group that is larger.

    With gain 1 for a click and c clicks in the group (Jarvelin and Kekalainen 2002, section 2.2; the discount of all
    ranks is that of Burges et al. 2005)::

        nDCG@10 = sum over ranks r <= 10 of [clicked] / log2(1 + r), over the same sum of the first min(c, 10) ranks

    Rows of equal scores share the mean gain of their ranks (McSherry and Najork 2008), so neither figure depends on
    the order in which rows come.
    """
    p, y, group = np.asarray(p), np.asarray(y) > 0.5, np.asarray(group)
    order = None if (group[1:] >= group[:-1]).all() else np.argsort(group, kind="stable")
    ordered = group if order is None else group[order]
    found, start = [GroupRanks(np.empty(0), np.empty(0), np.empty(0), np.empty(0, np.intp))], 0
    while start < len(p):
        stop = int(np.searchsorted(ordered, ordered[min(start + at_once, len(p)) - 1], side="right"))
        rows = slice(start, stop) if order is None else order[start:stop]
        part = _ranks_of(np.asarray(p[rows], np.float64), y[rows], ordered[start:stop])
        first = part.first + start
        found.append(part._replace(first=first if order is None else order[first]))
        start = stop
    return GroupRanks(*map(np.concatenate, zip(*found, strict=True)))


def _ranks_of(p: Numbers, y: Numbers, group: Numbers) -> GroupRanks:
    """:func:`group_ranks` of some rows, (n,), ``group`` ascending."""
    order = np.lexsort((p, group))
    p, y = p[order], y[order]
    starts = np.concatenate([[True], group[1:] != group[:-1]])  # (n,) of groups
    run = np.flatnonzero(starts | np.concatenate([[True], p[1:] != p[:-1]]))  # (R,) first rows of equal (group, p)
    of = np.cumsum(starts)[run] - 1  # (R,) each run's group
    size, clicks = np.diff(run, append=len(p)), np.add.reduceat(y, run, dtype=np.float64)  # (R,)
    first = np.flatnonzero(starts)  # (G,)
    rows, n_pos = np.diff(first, append=len(p)).astype(np.float64), np.bincount(of, weights=clicks)  # (G,)
    rank = run - first[of] + (size + 1) / 2.0  # (R,) mean, from 1 for the lowest score
    rank_sum = np.bincount(of, weights=clicks * rank)
    above = (first[of] + rows[of]).astype(np.intp) - run - size  # (R,) rows with higher scores
    gain = _DISCOUNTS[np.minimum(above + size, CUT)] - _DISCOUNTS[np.minimum(above, CUT)]
    dcg = np.bincount(of, weights=clicks / size * gain)
    both = (n_pos > 0) & (n_pos < rows)
    rank_sum, dcg, rows, n_pos = rank_sum[both], dcg[both], rows[both], n_pos[both]
    area = (rank_sum - n_pos * (n_pos + 1) / 2.0) / (n_pos * (rows - n_pos))
    return GroupRanks(area, dcg / _DISCOUNTS[np.minimum(n_pos, CUT).astype(np.intp)], rows, first[both])


def log_losses(p: Numbers, y: Numbers, at_once: int = AT_ONCE) -> NDArray[np.float64]:
    """``-y ln p - (1 - y) ln(1 - p)`` of each sample, p clipped to [1e-7, 1 - 1e-7]. (n,)"""
    losses = np.empty(len(p))
    for at in range(0, len(p), at_once):
        part = slice(at, at + at_once)
        q = np.clip(np.asarray(p[part], np.float64), _CLIP, 1 - _CLIP)
        t = np.asarray(y[part], np.float64)
        losses[part] = -t * np.log(q) - (1 - t) * np.log1p(-q)
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


def judged(p: Numbers, y: Numbers) -> Numbers:
    """``p`` with the worst prediction, ``1 - y``, in place of each value that fails :func:`is_probability`. (n,) It is
    ``p`` itself where none fails."""
    p = np.asarray(p)
    good = is_probability(p)
    return p if good.all() else np.where(good, p, 1.0 - np.asarray(y, np.float64))


def figures_of(
    p: Numbers,
    y: Numbers,
    group: Numbers | None = None,
    *,
    compared: Numbers | None = None,
    base: tuple[Numbers, Numbers] | None = None,
    keys: Sequence[str] = WITHIN,
) -> dict[str, float]:
    """:data:`FIGURES` of scores p for labels y, (n,); without groups those that need none. A score that is no
    probability counts as the worst one (:func:`judged`). NaN where there is none: no rows, one class, no group with
    both.

    Args:
        group: pages, or what else :func:`within` allows. (n,)
        compared: the scores that may be compared within a group, where p may not. (n,)
        base: the same two of a baseline, which gives no probabilities: its :data:`ORDER` is ``baseline_*``.
        keys: those of :data:`WITHIN` that are wanted.
    """

    def order(scores: Numbers, in_group: Numbers) -> dict[str, float]:
        inside = {} if group is None else within(in_group, y, group)
        return {"auc": auc(scores, y)} | {key: inside[key] for key in keys if key in inside}

    p = judged(p, y)
    found = order(p, p if compared is None else judged(compared, y))
    found |= {"log_loss": log_loss(p, y), "calibration": calibration(p, y)}
    return found if base is None else found | {f"baseline_{key}": value for key, value in order(*base).items()}


def known(figure: float, digits: int | None = None) -> float | None:
    """The figure, rounded to so many ``digits`` behind the point, or None for NaN: JSON has no NaN."""
    if not math.isfinite(figure):
        return None
    return figure if digits is None else round(figure, digits)


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
