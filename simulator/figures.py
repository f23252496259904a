"""The simulator's Prometheus metrics, and the best AUC that anybody could reach."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from river import metrics

from simulator.dice import F64

EXPOSURES = Counter("millrace_exposures_sent", "Exposures sent, duplicates not counted.")
CLICKS = Counter("millrace_clicks_sent", "Clicks sent, duplicates not counted.")
ACTIONS = Counter("millrace_actions_sent", "Actions sent, duplicates not counted.", ["kind"])
MALFORMED = Counter("millrace_malformed_sent", "Extra messages sent that nobody can use.")
DUPLICATES = Counter("millrace_duplicates_sent", "Messages sent a second time.")
PAGES = Counter("millrace_pages", "Pages seen.", ["arm"])
PAGE_EXPOSURES = Counter("millrace_page_exposures", "Exposures sent, by what made the page.", ["arm"])
PAGE_CLICKS = Counter("millrace_page_clicks", "Clicks sent, by what made the page.", ["arm"])
REFUSED = Counter("millrace_messages_too_large", "Messages that were larger than a broker takes, and were not sent.")
ORACLE_AUC = Gauge("millrace_oracle_auc", "Rolling AUC of the true click probabilities: the best possible.")
EVENT_TIME = Gauge("millrace_event_time_seconds", "Newest event time sent.")
REQUEST_ERRORS = Counter("millrace_request_errors", "Requests to the scorer that failed; each is tried again.")
TURNED_AWAY = Counter("millrace_sessions_turned_away", "Sessions that found the line before the scorer too long.")
RECOMMEND_SECONDS = Histogram(
    "millrace_recommend_seconds",
    "Wall time of a request for a page, as the shopper has it.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)


for _gauge in (ORACLE_AUC, EVENT_TIME):
    _gauge.set(math.nan)  # no value until there is one


class Oracle:
    """Rolling AUC of true probabilities over the exposures whose outcome is final (their time for a click is over)."""

    def __init__(self, rows: int, final_after_ms: int) -> None:
        self._auc: Any = metrics.RollingROCAUC(window_size=rows)  # type: ignore[no-untyped-call]
        self._clicked: deque[bool] = deque(maxlen=rows)  # of the rows that river's window holds
        self._open: deque[tuple[int, list[float], list[bool]]] = deque()
        self._final_after_ms = final_after_ms
        self.rows = 0

    def add(self, ts_ms: int, p: F64, clicked: list[bool]) -> None:
        """A page seen at ``ts_ms``: (n,) probabilities, (n,) what came of it."""
        self._open.append((ts_ms + self._final_after_ms, p.tolist(), clicked))

    def settle(self, now_ms: int) -> None:
        """Takes in what has become final by ``now_ms``."""
        while self._open and self._open[0][0] <= now_ms:
            _, chances, clicked = self._open.popleft()
            for chance, outcome in zip(chances, clicked, strict=True):
                self._auc.update(outcome, chance)
            self._clicked.extend(clicked)
            self.rows += len(chances)

    def auc(self) -> float:
        """NaN while what is final is of one class only, or nothing yet: river says 0 then, as of the worst ranking."""
        return float(self._auc.get()) if 0 < sum(self._clicked) < len(self._clicked) else math.nan
