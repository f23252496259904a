# shell
"""The simulator's Prometheus metrics; docs/reference/metrics.md describes each."""

from __future__ import annotations

import math

from prometheus_client import Counter, Gauge, Histogram

from millrace.contracts.events import EVENT_KINDS, Click, Event, Exposure

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


class OutboxMetrics:
    """An :class:`simulator.outbox.OutboxObserver` that counts for Prometheus."""

    def __init__(self) -> None:
        self._newest_ms = 0

    def seen(self, arm: str) -> None:
        PAGES.labels(arm).inc()

    def sent(self, event: Event, arm: str) -> None:
        if event.ts_ms > self._newest_ms:
            self._newest_ms = event.ts_ms
            EVENT_TIME.set(event.ts_ms / 1000)
        if isinstance(event, Exposure):
            EXPOSURES.inc(len(event.items))
            PAGE_EXPOSURES.labels(arm).inc(len(event.items))
            return
        ACTIONS.labels(EVENT_KINDS[event.kind]).inc()
        if isinstance(event, Click):
            CLICKS.inc()
            PAGE_CLICKS.labels(arm).inc()

    def sent_again(self, event: Event) -> None:
        DUPLICATES.inc()

    def sent_malformed(self) -> None:
        MALFORMED.inc()
