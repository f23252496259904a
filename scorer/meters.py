# shell
"""What a scorer counts: Prometheus metrics of the process, and the exact meters that /model shows."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 5)
_SLOW = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 30, 60, 300)

REQUESTS = Counter("millrace_requests_total", "HTTP requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram("millrace_request_seconds", "Time to answer.", ["route"], buckets=_FAST)
SERVED_VERSION = Gauge("millrace_served_version", "Model version that scores now.")
DELTAS_APPLIED = Counter("millrace_deltas_applied_total", "Deltas applied between two requests.")
DELTA_GAPS = Counter("millrace_delta_gaps_total", "Times that a version was missing or could not be used.")
MODEL_LOADS = Counter("millrace_model_loads_total", "Snapshots loaded whole.")
MODEL_WAITS = Gauge("millrace_model_waits", "1 while versions are missing until the next snapshot.")
CLICK_TO_SERVED = Histogram(
    "millrace_click_to_served_seconds", "From a click's sending to serving the weights it changed.", buckets=_SLOW
)
FRESHNESS = Gauge(
    "millrace_freshness_seconds", "Wall seconds since the newest exposure that the serving model has learnt from."
)
ITEMS = Gauge("millrace_items", "Items in the index.")
ITEM_KEYS = Gauge("millrace_item_keys", "Item-side window keys in the index, over all partitions.")
UNKNOWN_USERS = Counter("millrace_unknown_users_total", "Requests for users that the online store does not know.")
LIST_PAGES = Counter("millrace_list_pages_total", "Pages made of the shop's lists before the scorer was ready.")
ERRORS = Counter("millrace_errors_total", "What went wrong and was survived.", ["what"])
for _gauge in (SERVED_VERSION, FRESHNESS):
    _gauge.set(math.nan)  # no value until there is one


class ScorerMeters:
    """The counts of one scorer. Called from its loop and its feed threads; each call is one atomic step or harmless
    when interleaved.

    Args:
        reservoir: how many of the newest click-to-served times are kept for exact percentiles.
    """

    def __init__(self, reservoir: int = 10_000) -> None:
        self.errors: Tally[str] = Tally()
        self.versions_served = 0
        self.gaps = 0
        self.loads = 0
        self.click_to_served_ms: deque[int] = deque(maxlen=reservoir)
        self.clicks_served = 0

    def error(self, what: str) -> None:
        """Counts one survived error."""
        self.errors[what] += 1
        ERRORS.labels(what).inc()

    def unknown_user(self) -> None:
        """Counts a request for a user whom the store does not know."""
        UNKNOWN_USERS.inc()

    def list_page(self) -> None:
        """Counts a page made of the shop's lists."""
        LIST_PAGES.inc()

    def gap(self) -> None:
        """Counts a version that is missing or cannot be used; those after it until the next snapshot do not count."""
        self.gaps += 1
        DELTA_GAPS.inc()

    def load(self) -> None:
        """Counts a snapshot that was loaded."""
        self.loads += 1
        MODEL_LOADS.inc()

    def waits(self, waiting: bool) -> None:
        """Whether versions are missing until the next snapshot."""
        MODEL_WAITS.set(waiting)

    def served(self, version: int, deltas: int, origins_ms: Sequence[int], now_ms: int) -> None:
        """A version serves from now on, ``deltas`` after the one before it; ``origins_ms``: when its clicks were
        sent (wall time)."""
        self.versions_served += 1
        SERVED_VERSION.set(version)
        DELTAS_APPLIED.inc(deltas)
        for origin in filter(None, origins_ms):  # 0: not known
            took = now_ms - origin
            self.click_to_served_ms.append(took)
            self.clicks_served += 1
            CLICK_TO_SERVED.observe(took / 1000)

    def click_to_served(self) -> dict[str, Any]:
        """Exact p50 and p99 (ms) over the newest times, and how many clicks there were in all."""
        times = list(self.click_to_served_ms)
        p50, p99 = np.percentile(times, [50, 99]).tolist() if times else (None, None)
        return {"p50": p50, "p99": p99, "count": self.clicks_served}
