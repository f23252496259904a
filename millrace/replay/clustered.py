# core
"""Gaps between two scorings of the same exposures, with 95% intervals over users: one pass, no draws.

Exposures of one user are alike, so an interval must treat users as drawn, not exposures. A figure of merit is a mean or
a ratio of sums over rows, to the first order, so a gap's error is a sum over users of what each user adds to it::

    AUC(p) = 1/(n1 n0) sum over clicked i, others j of [p_i > p_j] + [p_i = p_j] / 2
    a row's part    clicked i:  (share of the others below p_i, ties half) - AUC,   over n1
                    other j:    (share of the clicked above p_j, ties half) - AUC,  over n0
    log loss        (loss of the row - log loss) / n
    calibration     (p - calibration * y) / n1
    a gap's part    that under p less that under q
    variance        U / (U - 1) * sum over the U users of (sum of their rows' parts)^2

The AUC's parts are DeLong's (DeLong, DeLong and Clarke-Pearson 1988), summed by cluster (Obuchowski 1997,
"Nonparametric analysis of clustered ROC curve data"). A bootstrap that draws users anew with all their rows gives the
same intervals, as tests/test_clustered.py shows, for some hundred times the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from millrace.contracts.merit import log_losses

Numbers = NDArray[Any]
Parts = tuple[float, NDArray[np.float64]]
"""A figure, and what each row adds to its error, (n,)."""

_95 = 1.959964
"""Of the normal distribution: there are hundreds of users or more."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A figure under p less that under q, and half of its 95% interval; NaN where there is none."""

    value: float
    half: float

    @property
    def told(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.value) > self.half


def auc_parts(p: Numbers, y: Numbers) -> Parts:
    """Of scores p for labels y, (n,). NaN with one class only."""
    positive = np.asarray(y) > 0.5
    n, n1 = len(positive), int(positive.sum())
    n0 = n - n1
    if not n1 or not n0:
        return math.nan, np.full(n, math.nan)
    # Four bytes a number where they do: a log has ten million rows and more.
    order = np.argsort(p, kind="stable").astype(np.int32)
    ordered, hit = np.asarray(p)[order], positive[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])  # of each run of equal scores
    run = np.cumsum(first, dtype=np.int32) - np.int32(1)  # (n,) number of each place's run
    start = np.flatnonzero(first).astype(np.int32)
    clicked = np.add.reduceat(hit, start, dtype=np.int32)
    others = np.diff(start, append=np.int32(n)) - clicked
    below0 = (np.cumsum(others) - others / 2.0) / n0  # others below a run, half of those in it
    above1 = (n1 - np.cumsum(clicked) + clicked / 2.0) / n1
    share = np.empty(n)
    share[order] = np.where(hit, below0[run], above1[run])
    value = float(share[positive].mean())
    return value, (share - value) / np.where(positive, n1, n0)


def log_loss_parts(p: Numbers, y: Numbers) -> Parts:
    """Of probabilities p for labels y, (n,)."""
    losses = log_losses(p, y)
    value = float(losses.mean()) if len(losses) else math.nan
    return value, (losses - value) / max(1, len(losses))


def calibration_parts(p: Numbers, y: Numbers) -> Parts:
    """Of probabilities p for labels y, (n,). NaN without a click."""
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    clicks = float(y.sum())
    if not clicks:
        return math.nan, np.full(len(y), math.nan)
    value = float(p.sum()) / clicks
    return value, (p - value * y) / clicks


PARTS = {"auc": auc_parts, "log_loss": log_loss_parts, "calibration": calibration_parts}
"""The figures that have intervals, by key."""


def gap(own: Parts, base: Parts, user: NDArray[np.intp]) -> Gap:
    """The gap between two scorings of the same rows.

    Args:
        user: a number from 0 on for each user, (n,).
    """
    users = int(user.max(initial=-1)) + 1
    if users < 2 or not math.isfinite(own[0] - base[0]):
        return Gap(own[0] - base[0], math.nan)
    sums = np.bincount(user, weights=own[1] - base[1], minlength=users)
    return Gap(own[0] - base[0], _95 * math.sqrt(users / (users - 1) * float(sums @ sums)))


def user_numbers(column: pa.ChunkedArray) -> NDArray[np.intp]:
    """A number from 0 on for each user of a log's column, plain or dictionary-encoded. (n,)"""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.unify_dictionaries().chunks]
    codes = np.concatenate(chunks) if chunks else np.empty(0, np.intp)
    numbers: NDArray[np.intp] = np.unique(codes, return_inverse=True)[1].astype(np.intp)
    return numbers
