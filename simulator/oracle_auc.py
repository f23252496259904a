# core
"""The oracle's AUC: how well the true click probabilities rank the items that were shown. No model
can do better for long.

River keeps the window, as it does for the learner's own rolling AUC (:mod:`learner.progressive`). The two stay apart:
the learner's rows are final when it gets them, these wait for their outcome, and the simulator knows no learner.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from river import metrics

from simulator.dice import F64


class OracleAuc:
    """Rolling AUC of true probabilities over the exposures whose outcome is final (their time for a click is over).

    Args:
        rows: how many of the newest exposures count.
        final_after_ms: event time from a page to the end of its attribution window.
    """

    def __init__(self, rows: int, final_after_ms: int) -> None:
        self._auc: Any = metrics.RollingROCAUC(window_size=rows)  # type: ignore[no-untyped-call]
        self._clicked: deque[bool] = deque(maxlen=rows)  # of the rows that river's window holds
        self._open: deque[tuple[int, list[float], list[bool]]] = deque()
        self._final_after_ms = final_after_ms
        self.rows = 0

    def add(self, ts_ms: int, p: F64, clicked: list[bool]) -> None:
        """Takes a page seen at ``ts_ms``: its true click probabilities (n,) and which items are clicked (n,)."""
        self._open.append((ts_ms + self._final_after_ms, p.tolist(), clicked))

    def settle(self, now_ms: int) -> None:
        """Counts the exposures whose outcome is final by the event time ``now_ms``."""
        while self._open and self._open[0][0] <= now_ms:
            _, chances, clicked = self._open.popleft()
            for chance, outcome in zip(chances, clicked, strict=True):
                self._auc.update(outcome, chance)
            self._clicked.extend(clicked)
            self.rows += len(chances)

    def auc(self) -> float:
        """NaN while there are no final exposures, or of one class only: river's 0 would say "the worst ranking"."""
        return float(self._auc.get()) if 0 < sum(self._clicked) < len(self._clicked) else math.nan
