# shell
"""How long clicks took to the weights that serve: the last stage of their way, and the whole of it.

::

    click ──► joined ──► learnt ──► published ──► applied
      stream      learner     learner       scorer          millrace_click_stage_seconds{stage}
      └──────────────────────────────────────────┘          millrace_click_to_served_seconds
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from millrace.processes.tally import CLICK_STAGE, TIMES_S, TimesHistogram
from millrace.versions.clicks import VersionClicks

CLICK_TO_SERVED = TimesHistogram(
    "millrace_click_to_served_seconds", "From a click's sending to serving the weights it changed.", bounds=TIMES_S
)
RECENT = 10_000
_STEP_MS = 10
_STEPS = 6_000
"""Up to a minute times are counted in steps of 10 ms; beyond that a step is a hundredth of the time."""


class ClickTrace:
    """Takes the clicks of each version that has begun to serve. Any thread may call it."""

    def __init__(self) -> None:
        self._all = Steps()
        self._recent: deque[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = deque()
        self._recent_clicks = 0
        self._lock = threading.Lock()

    def served(self, versions: Sequence[VersionClicks], now_ms: int) -> None:
        """These versions serve from now on (wall time): all workers have them."""
        for version in versions:
            counts = np.asarray(version.clicks.counts, np.int64)
            if not counts.size:
                continue
            took_ms = np.maximum(now_ms - version.clicks.sent_ms(), 0)
            CLICK_TO_SERVED.observe(took_ms / 1000, counts)
            CLICK_STAGE.observe(max(0, now_ms - version.published_ms) / 1000, int(counts.sum()), "applied")
            with self._lock:
                self._all.add(took_ms, counts)
                self._recent.append((took_ms, counts))
                self._recent_clicks += int(counts.sum())
                while self._recent_clicks - int(self._recent[0][1].sum()) >= RECENT:
                    self._recent_clicks -= int(self._recent.popleft()[1].sum())

    def figures(self) -> dict[str, Any]:
        """Percentiles (ms, to 10 ms) and counts: over all clicks since the start, and over the newest ones."""
        with self._lock:
            recent = Steps()
            for took_ms, counts in self._recent:
                recent.add(took_ms, counts)
            return {**self._all.figures(), "recent": recent.figures()}


class Steps:
    """Counts of times, fine enough for percentiles. Its memory does not grow."""

    def __init__(self) -> None:
        self._counts = np.zeros(_STEPS + 2_000, np.int64)

    def add(self, took_ms: Any, counts: Any) -> None:
        """Takes times (ms), each ``counts`` times."""
        ms = np.asarray(took_ms, np.float64)
        beyond = _STEPS + 100 * np.log(np.maximum(ms, _STEP_MS * _STEPS) / (_STEP_MS * _STEPS))
        place = np.where(ms < _STEP_MS * _STEPS, ms / _STEP_MS, beyond).astype(np.int64)
        np.add.at(self._counts, np.minimum(place, len(self._counts) - 1), counts)

    def figures(self) -> dict[str, Any]:
        """``p50``, ``p99`` in ms (None: no times), and the ``count``."""
        total = int(self._counts.sum())
        if not total:
            return {"p50": None, "p99": None, "count": 0}
        upto = np.cumsum(self._counts)
        places = np.searchsorted(upto, [0.5 * total, 0.99 * total])
        p50, p99 = (float(_ms(int(place))) for place in places)
        return {"p50": p50, "p99": p99, "count": total}


def _ms(place: int) -> float:
    """The middle of a step."""
    if place < _STEPS:
        return _STEP_MS * (place + 0.5)
    return float(_STEP_MS * _STEPS * np.exp((place + 0.5 - _STEPS) / 100))
