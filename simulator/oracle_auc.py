# core
"""The oracle's AUC: how well the true click probabilities rank the items that were shown. No model
can do better for long.

It is over rows such as the learner's own figure is over (:mod:`learner.served`): the newest exposures whose outcome is
final, in the order of exposure. The two stay apart, since the simulator knows no learner.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from simulator.dice import F64


class OracleAuc:
    """Rolling AUC of true probabilities over the exposures whose outcome is final (their time for a click is over).

    Args:
        rows: how many of the newest exposures count.
        final_after_ms: event time from a page to the end of its attribution window.
    """

    def __init__(self, rows: int, final_after_ms: int) -> None:
        self._chance, self._clicked = np.zeros(rows), np.zeros(rows, np.bool_)  # a ring
        self._open: deque[tuple[int, F64, list[bool]]] = deque()
        self._final_after_ms = final_after_ms
        self.rows = 0

    def add(self, ts_ms: int, p: F64, clicked: list[bool]) -> None:
        """Takes a page seen at ``ts_ms``: its true click probabilities (n,) and which items are clicked (n,)."""
        self._open.append((ts_ms + self._final_after_ms, p, clicked))

    def settle(self, now_ms: int) -> None:
        """Counts the exposures whose outcome is final by the event time ``now_ms``."""
        while self._open and self._open[0][0] <= now_ms:
            _, chances, clicked = self._open.popleft()
            at = (self.rows + np.arange(len(chances))) % len(self._chance)
            self._chance[at], self._clicked[at] = chances, clicked
            self.rows += len(chances)

    def auc(self) -> float:
        """P(chance of a clicked row > chance of another one), ties count half, by the rank sum (Mann and Whitney 1947).
        NaN while there are no final exposures, or of one class only."""
        held = min(self.rows, len(self._chance))
        clicked = self._clicked[:held]
        n_pos = int(clicked.sum())
        if not 0 < n_pos < held:
            return math.nan
        _, value, ties = np.unique(self._chance[:held], return_inverse=True, return_counts=True)
        rank = (np.cumsum(ties) - (ties - 1) / 2.0)[value]  # mean rank of each row among its ties, from 1
        return float((rank[clicked].sum() - n_pos * (n_pos + 1) / 2.0) / (n_pos * (held - n_pos)))
