# core
"""Progressive validation: every sample is predicted before it is learnt from, and judged on that prediction.

(Liu et al. 2022, Monolith, algorithm 1; prequential evaluation, Gama et al. 2013.) The functions are the figures of
merit that everything here is judged by; :class:`Progressive` applies them to what the learner predicts when it learns.
How well pages were *served* is another question, and :mod:`learner.served` answers it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from millrace.contracts.schema import Schema

Numbers = NDArray[Any]

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
    ranks = rankdata(np.asarray(p, np.float64))  # (n,)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2.0) / (n_pos * n_neg))


def grouped_auc(p: Numbers, y: Numbers, group: Numbers) -> float:
    """Grouped AUC: the mean of the groups' own AUCs, weighted by their rows (Zhou et al. 2018, DIN, eq. 9).

    Only rows that were scored in one state of model and windows may share a group: the rows of a page, or those of a
    user's day of which neither model nor windows knew anything yet. Where a row is scored after the labels of another
    row of its group were learnt, the figure is not .5 for labels drawn at random: the labels learnt first move the
    later scores of the same user, against what is left to come.

    Groups with one class only are left out. NaN when no group is left. ``p``, ``y``, ``group``: (n,)
    """
    p, y, group = np.asarray(p, np.float64), np.asarray(y) > 0.5, np.asarray(group)
    if not len(p):
        return float("nan")
    order = np.lexsort((p, group))
    p, y, group = p[order], y[order], group[order]
    start = np.concatenate([[True], group[1:] != group[:-1]])
    number = np.cumsum(start) - 1  # (n,) of each row's group
    first = np.flatnonzero(start)  # row of each group
    run = np.cumsum(start | np.concatenate([[True], p[1:] != p[:-1]]))  # (n,) number of each run of equal (group, p)
    rank = rankdata(run) - first[number]  # (n,) within the group
    rows = np.bincount(number).astype(np.float64)
    n_pos = np.bincount(number, weights=y)
    both = (n_pos > 0) & (n_pos < rows)
    if not both.any():
        return float("nan")
    rank_sum = np.bincount(number, weights=rank * y)[both]
    rows, n_pos = rows[both], n_pos[both]
    own = (rank_sum - n_pos * (n_pos + 1) / 2.0) / (n_pos * (rows - n_pos))
    return float(own @ rows / rows.sum())


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


def sound(p: Numbers) -> NDArray[np.bool_]:
    """Which predictions are probabilities. (n,)"""
    p = np.asarray(p)
    found: NDArray[np.bool_] = (p >= 0) & (p <= 1)  # NaN is not
    return found


def judged(p: Numbers, y: Numbers) -> NDArray[np.float64]:
    """``p`` with the most wrong prediction, ``1 - y``, where it is no probability (:func:`sound`). (n,)

    So such a prediction ranks as badly as its label allows, and has the log loss of the clip.
    """
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    return np.where(sound(p), p, 1.0 - y)


def baseline_column(schema: Schema) -> int | None:
    """The column of num that is an item's smoothed click rate over the longest window; None if the schema has none.

    The baseline that a model must beat is to rank by that rate.
    """
    item = schema.log.item if schema.log is not None else "item_id"
    layout = schema.layout
    for key in sorted(schema.windows.keys, key=lambda k: len(k.columns)):
        if item in key.columns and schema.key_side(key) == "item":
            name = f"{key.name}.click_rate.{schema.windows.days[-1]}d"
            if name in layout.num_names:
                return layout.num_names.index(name)
    return None


class Progressive:
    """Figures of the newest ``window_rows`` predictions that were made before learning. NaN where there is no figure:
    no rows, or one class.

    They say what the learner knows when a sample comes. They do not say how good the served pages were: samples come in
    the order in which labels become known, so a page's clicks may be learnt before the rest of it is predicted.

    A ring of rows is kept; figures are made from it when asked for. Not kept in snapshots: they begin anew with a
    process.
    """

    def __init__(self, window_rows: int) -> None:
        self.rows = 0
        self._p, self._y = np.zeros(window_rows), np.zeros(window_rows)

    def update(self, p: Numbers, label: Numbers) -> None:
        """Takes predictions made *before* learning, with their labels, (n,). What is not finite counts as wrong."""
        size = len(self._p)
        new = slice(max(0, len(p) - size), None)
        at = (self.rows + np.arange(len(p))[new]) % size
        self._p[at], self._y[at] = judged(p, label)[new], label[new]
        self.rows += len(p)

    def _held(self) -> tuple[Numbers, Numbers]:
        held = min(self.rows, len(self._p))
        return self._p[:held], self._y[:held]

    @property
    def auc(self) -> float:
        return auc(*self._held())

    @property
    def log_loss(self) -> float:
        return log_loss(*self._held())

    @property
    def calibration(self) -> float:
        return calibration(*self._held())
