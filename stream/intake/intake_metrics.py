# shell
"""The intake's figures for Prometheus, and its lines in the log about what it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog
from prometheus_client import Counter, Gauge, Histogram

from millrace.processes.repeated_warnings import Kinds
from stream.intake.intake_wire import Verdict, What

log = structlog.get_logger("intake")

LINES = Counter("millrace_intake_lines_total", "Lines with a verdict.", ["what", "verdict"])
REFUSED = Counter("millrace_intake_refused_total", "Lines refused.", ["what", "reason"])
REQUESTS = Counter("millrace_intake_requests_total", "HTTP requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "millrace_intake_request_seconds",
    "Time to answer.",
    ["route"],
    buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
WAITING = Gauge("millrace_intake_waiting", "Messages taken that Kafka has not acknowledged yet.")
PRODUCERS = Counter("millrace_intake_producers_total", "Kafka producers made: one, and one after each that failed.")


class Refusals:
    """Counts refused lines, and logs each kind at once, then in one line a minute at most.

    >>> lines: list[str] = []
    >>> refusals = Refusals(lambda: 0.0, lambda line, **_: lines.append(line))
    >>> for _ in range(3):
    ...     refusals.note("events", [Verdict("refused", "seconds", "ts_ms 1764000000 is a time in seconds")])
    >>> lines
    ['lines are refused']

    Args:
        now_s: steady time in seconds.
        tell: writes a line of the log.
    """

    def __init__(
        self, now_s: Callable[[], float] = time.monotonic, log_due: Callable[..., object] = log.warning
    ) -> None:
        self._now_s, self._say = now_s, log_due
        self._kinds = Kinds()

    def note(self, what: What, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.status == "refused":
                REFUSED.labels(what, str(verdict.reason)).inc()
                self._kinds.note(f"{what}: {verdict.reason}", str(verdict.detail))
        self.log_due()

    def log_due(self) -> None:
        """Writes the lines that are due. Call it regularly: later refusals of a minute are logged after that minute."""
        for lines in self._kinds.due(self._now_s()):
            self._say("lines are refused", kind=lines.kind, times=lines.times, example=lines.example)
