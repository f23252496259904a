# core
"""The loss within pages: a clicked row belongs above the rows of its page that were not clicked.

For a page with clicked rows C and others N, logits t and the spec's weight w, as RankNet has it (Burges et al. 2005,
"Learning to rank using gradient descent", section 3)::

    loss    = w sum_{i in C} mean_{j in N} log(1 + exp(t_j - t_i))
    slope_i = -w mean_{j in N} q_ij    slope_j = w / |N| sum_{i in C} q_ij    q_ij = sigmoid(t_j - t_i)

A page without a click, or without a row that was not clicked, teaches nothing. What moves all rows of a page alike
cancels in ``t_j - t_i``: so a page whose items are shown often and clicked rarely teaches no wrong sign.

Calibration stays. Where ``sigmoid(t)`` are the true chances and clicks are independent, the expected slope is 0: with
odds ``o = exp(t)``, "i and not j" comes to "j and not i" as ``o_i`` to ``o_j``, and ``q_ij = o_j / (o_i + o_j)``. It
stays 0 for weights that depend on the numbers of clicks and others, and for others drawn without regard to their items.

Symbols: B rows of a batch, n of them taught by page, on G pages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.contracts.samples import CORRECTION, PAGE, SampleBatch
from millrace.labels import final

Array = NDArray[Any]


class PageRows(NamedTuple):
    """The rows of a batch that are taught by page."""

    rows: NDArray[np.intp]  # (n,) page after page
    starts: NDArray[np.intp]  # (G + 1,) where each page begins among them, and the end


def taught_by_page(kind: NDArray[np.uint8], policy: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which rows are: those sent again with their final label, and those whose first label is final. (B,)"""
    taught: NDArray[np.bool_] = (kind == PAGE) | (final(policy) & (kind < CORRECTION))
    return taught


def page_rows(batch: SampleBatch) -> PageRows | None:
    """The rows of a batch that are taught by page; None: there are none."""
    rows = np.flatnonzero(taught_by_page(batch.kind, batch.policy))
    if not len(rows):
        return None
    page = batch.page[rows]
    steps = np.diff(page)
    if (steps < 0).any():
        order = np.argsort(page, kind="stable")
        rows, steps = rows[order], np.diff(page[order])
    return PageRows(rows, np.concatenate([[0], np.flatnonzero(steps) + 1, [len(rows)]]))


def page_end(page: NDArray[Any], kind: NDArray[np.uint8], policy: NDArray[np.uint8], size: int) -> int:
    """Where to end a batch of ``size`` rows so that it does not cut a page that is taught as one: the row behind the
    last one of the page of row ``size - 1``, among rows of these pages, kinds and policies, (B,) each."""
    if not 0 < size < len(page):
        return size
    from_there = slice(size - 1, None)
    apart = (page[from_there] != page[size - 1]) | ~taught_by_page(kind[from_there], policy[from_there])
    if apart[0]:
        return size
    return size - 1 + int(np.argmax(apart)) if apart.any() else len(page)


@compiled
def teach_pages(t: Array, label: Array, rows: Array, starts: Array, weight: np.float32, slope: Array) -> float:
    """Adds the slopes of pages to ``slope`` (B,), for logits t and labels (B,); returns the loss, summed over pages.
    ``rows``, ``starts``: as :class:`PageRows` has them."""
    loss = 0.0
    for g in range(len(starts) - 1):
        page = rows[starts[g] : starts[g + 1]]
        others = 0
        for i in page:
            others += label[i] <= np.float32(0.5)
        if not 0 < others < len(page):
            continue
        share = weight / np.float32(others)
        for i in page:
            if label[i] <= np.float32(0.5):
                continue
            for j in page:
                if label[j] > np.float32(0.5):
                    continue
                d = t[j] - t[i]
                small = np.exp(-np.abs(d))  # at most 1
                loss += share * (max(d, np.float32(0)) + np.log1p(small)) if d == d else d
                q = np.float32(1) / (np.float32(1) + small)
                step = share * (q if d >= np.float32(0) else np.float32(1) - q)
                slope[i] -= step
                slope[j] += step
    return loss
