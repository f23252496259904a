# core
"""Drift: whether the log loss of served pages has moved away from what the model itself expects.

ADWIN (Bifet and Gavalda 2007) assumes independent values while nothing changes. Losses of rows are not: labels of one
page, one user, one moment come together, and clicks before the rest. So ADWIN gets one value a page, in the order of
exposure. Mean losses of pages are not independent either: they are high for visitors who click much, so they move with
the visitors, most of all in a small shop. The excess of a page's loss above its expectation does not, as long as
predictions are right. With p_i and y_i of its R rows:

    excess = 1/R sum_i ( loss(p_i, y_i) - loss(p_i, p_i) ),   loss(p, t) = -t ln p - (1 - t) ln(1 - p)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.basics.ranking_metrics import Numbers, judged, log_losses

DELTA = 0.002
"""ADWIN's confidence; river's default."""


class Drift:
    """Finds changes of the mean excess log loss of pages. ``delta`` is ADWIN's confidence; smaller is less eager."""

    def __init__(self, delta: float = DELTA) -> None:
        # Only here, so that a learner alone pays for it: pandas, scipy.stats and scikit-learn come with it, 131 MiB.
        from river.drift import ADWIN

        self._adwin: Any = ADWIN(delta=delta)  # type: ignore[no-untyped-call]
        self.found: list[tuple[float, float]] = []  # mean excess before and after each change; its reader clears it
        self.pages = 0  # handed to ADWIN
        self._page = 0  # the page whose rows may not have all come yet
        self._sum, self._rows = 0.0, 0

    def update(self, p: Numbers, label: Numbers, page: Numbers) -> None:
        """Takes predictions, labels and page numbers or hashes, (n,) each, in the order of exposure. Rows of a page
        follow each other. A page may go on in the next call, so the last page of a call counts only when another one
        begins. A prediction that is not finite counts as wrong."""
        if not len(p):
            return
        p, page = judged(p, label), np.asarray(page)
        losses = log_losses(p, label) - log_losses(p, p)
        first = np.flatnonzero(np.concatenate([[True], page[1:] != page[:-1]]))  # of each page
        sums, rows = np.add.reduceat(losses, first).tolist(), np.diff(first, append=len(page)).tolist()
        for number, total, n in zip(page[first].tolist(), sums, rows, strict=True):
            if self._rows and number != self._page:
                self._count(self._sum / self._rows)
                self._sum, self._rows = 0.0, 0
            self._page = number
            self._sum += total
            self._rows += n

    def _count(self, loss: float) -> None:
        before = float(self._adwin.estimation)
        self._adwin.update(loss)
        self.pages += 1
        if self._adwin.drift_detected:
            self.found.append((before, float(self._adwin.estimation)))
