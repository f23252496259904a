# core
"""Progressive validation: every sample is predicted before it is learnt from, and judged on that prediction.

(Liu et al. 2022, Monolith, algorithm 1; prequential evaluation, Gama et al. 2013.)
:mod:`learner.evaluation.served_scores` judges the *served* pages instead.
"""

from __future__ import annotations

import numpy as np

from millrace.basics.ranking_metrics import Newest, Numbers, auc, calibration, judged, log_loss
from millrace.contracts.samples import CORRECTION, POSITIVE
from millrace.contracts.schema import Schema

FEWEST = 100
"""Clicks of a kind that a mean of their predictions is of."""


def baseline_column(schema: Schema) -> int | None:
    """The column of num with an item's smoothed click rate over the longest window; None if the schema has none. A
    model must beat the baseline that ranks by it."""
    _, item = schema.ids
    layout = schema.layout
    for key in sorted(schema.windows.keys, key=lambda k: len(k.columns)):
        if item in key.columns and schema.key_side(key) == "item":
            longest = schema.windows.spans[len(schema.windows.durations) - 1]
            name = f"{key.name}.click_rate.{longest}"
            if name in layout.num_names:
                return layout.num_names.index(name)
    return None


class Progressive:
    """Figures of the newest ``window_rows`` predictions that were made before learning. NaN where there is no figure:
    no rows, or one class. They do not show how good the served pages were: samples come when labels become known, so a
    page's clicks may be learnt before the rest of it is predicted. Snapshots do not keep them; they restart with a
    process."""

    def __init__(self, window_rows: int) -> None:
        self._newest = Newest(window_rows)

    def update(self, p: Numbers, label: Numbers) -> None:
        """Takes predictions made *before* learning, with their labels, (n,). What is not finite counts as wrong."""
        self._newest.add(judged(p, label), label)

    @property
    def rows(self) -> int:
        return self._newest.rows

    @property
    def auc(self) -> float:
        return auc(*self._newest.held)

    @property
    def log_loss(self) -> float:
        return log_loss(*self._newest.held)

    @property
    def calibration(self) -> float:
        return calibration(*self._newest.held)


class LateClicks:
    """Whether a model can tell late clicks from early ones before it learns them. It should not: both were shown
    alike. But a late click is learnt minutes behind its exposure, among younger rows that have no click yet. So a
    feature that moves with time tells it, and a model that reads such a feature expects no clicks of what is shown
    now."""

    def __init__(self, window_rows: int) -> None:
        self._newest = Newest(window_rows)

    def update(self, p: Numbers, kind: Numbers) -> None:
        """Takes predictions made before learning, and the kinds of their samples, (n,)."""
        rows = np.isfinite(p) & ((kind == CORRECTION) | (kind == POSITIVE))
        self._newest.add(p[rows], kind[rows] == CORRECTION)

    @property
    def ratio(self) -> float:
        """The mean prediction of late clicks over that of early ones; NaN with fewer than :data:`FEWEST` of either."""
        p, late = self._newest.held
        early = late == 0
        if min(early.sum(), len(p) - early.sum()) < FEWEST:
            return float("nan")
        return float(p[~early].mean() / p[early].mean())
