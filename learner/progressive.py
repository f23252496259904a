# core
"""Progressive validation: every sample is predicted before it is learnt from, and judged on that prediction.

(Liu et al. 2022, Monolith, algorithm 1; prequential evaluation, Gama et al. 2013.) Rolling metrics are river's, for the
live view. The functions below are exact, for reports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import metrics, stats, utils
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


def grouped_auc(p: Numbers, y: Numbers, user: Numbers) -> float:
    """Grouped AUC: the mean of the users' own AUCs, weighted by their rows (Zhou et al. 2018, DIN, eq. 9).

    Users with one class only are left out. NaN when no user is left. ``p``, ``y``, ``user``: (n,)
    """
    p, y, user = np.asarray(p, np.float64), np.asarray(y) > 0.5, np.asarray(user)
    if not len(p):
        return float("nan")
    order = np.lexsort((p, user))
    p, y, user = p[order], y[order], user[order]
    start = np.concatenate([[True], user[1:] != user[:-1]])
    group = np.cumsum(start) - 1  # (n,)
    first = np.flatnonzero(start)  # of each user
    run = np.cumsum(start | np.concatenate([[True], p[1:] != p[:-1]]))  # (n,) number of each run of equal (user, p)
    rank = rankdata(run) - first[group]  # (n,) within the user
    rows = np.bincount(group).astype(np.float64)
    n_pos = np.bincount(group, weights=y)
    both = (n_pos > 0) & (n_pos < rows)
    if not both.any():
        return float("nan")
    rank_sum = np.bincount(group, weights=rank * y)[both]
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


class _RollingAuc:
    """River's rolling AUC, but NaN while the window holds one class only: river's is 0 then, as of the worst model."""

    def __init__(self, window_rows: int) -> None:
        self._auc: Any = metrics.RollingROCAUC(window_size=window_rows)  # type: ignore[no-untyped-call]
        self._positive: deque[bool] = deque(maxlen=window_rows)  # of the rows that river's window holds

    def update(self, scores: Iterable[float], positive: Sequence[bool]) -> None:
        for score, y in zip(scores, positive, strict=True):
            self._auc.update(y, score)
        self._positive.extend(positive)

    @property
    def positives(self) -> int:
        """Rows of the window with a click."""
        return sum(self._positive)

    def get(self) -> float:
        return float(self._auc.get()) if 0 < self.positives < len(self._positive) else float("nan")


class Progressive:
    """Rolling metrics over the newest ``window_rows`` samples. NaN where there is no metric: no rows, or one class.

    Not kept in snapshots: they begin anew with a process.
    """

    def __init__(self, window_rows: int) -> None:
        self.rows = 0
        self._auc, self._baseline = _RollingAuc(window_rows), _RollingAuc(window_rows)
        self._means: dict[str, Any] = {
            name: utils.Rolling(stats.Mean, window_size=window_rows) for name in ("loss", "p", "y")
        }

    def update(self, p: Numbers, label: Numbers, baseline: Numbers | None = None) -> None:
        """Takes predictions made *before* learning, with their labels and the baseline's scores, all (n,)."""
        losses = log_losses(p, label)
        scores: Sequence[float] = np.asarray(p, np.float64).tolist()
        labels: Sequence[float] = np.asarray(label, np.float64).tolist()
        positive = [y > 0.5 for y in labels]
        self._auc.update(scores, positive)
        if baseline is not None:
            self._baseline.update(np.asarray(baseline, np.float64).tolist(), positive)
        for name, values in (("loss", losses.tolist()), ("p", scores), ("y", labels)):
            update = self._means[name].update
            for value in values:
                update(value)
        self.rows += len(scores)

    @property
    def auc(self) -> float:
        return self._auc.get()

    @property
    def baseline_auc(self) -> float:
        """NaN also where no baseline was ever given."""
        return self._baseline.get()

    @property
    def log_loss(self) -> float:
        return float(self._means["loss"].get()) if self.rows else float("nan")

    @property
    def calibration(self) -> float:
        """NaN without a click. Clicks are counted for that: rounding may leave a running mean of zeros other than 0."""
        if not self._auc.positives:
            return float("nan")
        return float(self._means["p"].get()) / float(self._means["y"].get())
