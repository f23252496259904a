# core
"""The oracle's AUC: that of the true click probabilities, an upper bound for any model in the long run.

Its rows are like those of the learner's own AUC (:mod:`learner.evaluation.served_scores`): the newest exposures with
a final outcome.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from millrace.basics.ranking_metrics import Newest, auc
from simulator.dice import F64


class OracleAuc:
    """Rolling AUC of true probabilities over the newest ``rows`` final exposures. An exposure is final
    ``final_after_ms`` of event time after its page: its attribution window is over."""

    def __init__(self, rows: int, final_after_ms: int) -> None:
        self._newest = Newest(rows)
        self._open: deque[tuple[int, F64, list[bool]]] = deque()
        self._final_after_ms = final_after_ms

    @property
    def rows(self) -> int:
        return self._newest.rows

    def add(self, ts_ms: int, p: F64, clicked: list[bool]) -> None:
        """Takes a page seen at ``ts_ms``: its true click probabilities (n,) and which items are clicked (n,)."""
        self._open.append((ts_ms + self._final_after_ms, p, clicked))

    def settle(self, now_ms: int) -> None:
        """Counts the exposures whose outcome is final by the event time ``now_ms``."""
        while self._open and self._open[0][0] <= now_ms:
            _, chances, clicked = self._open.popleft()
            self._newest.add(chances, np.array(clicked))

    def auc(self) -> float:
        """NaN without final exposures, or with one class only."""
        return auc(*self._newest.held)
