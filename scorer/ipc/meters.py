# shell
"""A scorer's counts: Prometheus metrics of the process, and the exact figures of GET /model."""

from __future__ import annotations

import math
import threading
from collections import Counter as Tally
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

from millrace.contracts.events import SOURCES
from millrace.processes.tally import CLICK_STAGE, TimesHistogram
from millrace.versions.versioning import VersionClicks
from scorer.users.userrecord import AWAY, ERROR, READS

_FAST = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 5)

REQUESTS = Counter("millrace_requests_total", "HTTP requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram("millrace_request_seconds", "Time to answer.", ["route"], buckets=_FAST)
SERVED_VERSION = Gauge("millrace_served_version", "Model version that scores now.")
LEARNER_VERSION = Gauge(
    "millrace_learner_served_version", "Version that scores now, of a learner beside the first.", ["learner"]
)
DELTAS_APPLIED = Counter("millrace_deltas_applied_total", "Deltas applied between two requests.")
DELTA_GAPS = Counter("millrace_delta_gaps_total", "Times that a version was missing or could not be used.")
MODEL_LOADS = Counter("millrace_model_loads_total", "Snapshots loaded whole.")
MODEL_WAITS = Gauge("millrace_model_waits", "1 while versions are missing until the next snapshot.")
FRESHNESS = Gauge(
    "millrace_freshness_seconds", "Wall seconds since the newest exposure that the serving model has learnt from."
)
ITEMS = Gauge("millrace_items", "Items in the index.")
COCLICK_LISTS = Gauge("millrace_coclick_lists", "Lists of co-clicks that the feeder holds, of all partitions.")
NEIGHBOURS = Gauge("millrace_neighbours", "Pairs of an item and a neighbour that recall knows.")
ITEM_KEYS = Gauge("millrace_item_keys", "Item-side window keys in the index, over all partitions.")
USER_READS = Counter("millrace_user_reads_total", "Requests by where their user's record was found.", ["found"])
LIST_PAGES = Counter("millrace_list_pages_total", "Pages made of the shop's lists before the scorer was ready.")
LIST_PARTS = Counter("millrace_list_parts_total", "Parts of ranked lists that were handed out.", ["kind"])
SCORER_ITEMS = Counter("millrace_scorer_items_total", "Items handed out, by where recall found them.", ["source"])
FILTERED_PAGES = Counter(
    "millrace_filtered_pages_total", "Pages that were asked for with filters, by how full they were.", ["filled"]
)
ERRORS = Counter("millrace_errors_total", "What went wrong and was survived.", ["what"])
LOG_LOST_PAGES = Counter("millrace_log_lost_pages_total", "Pages whose log will never be in Kafka.", ["reason"])
LOG_LOST_EXPOSURES = Counter("millrace_log_lost_exposures_total", "Items on these pages.", ["reason"])
STORE_FALLBACKS = Counter(
    "millrace_store_fallbacks_total",
    "Reads of Redis that a request did not wait for, and what was found in their place.",
    ["reason", "found"],
)
REFUSED = Counter("millrace_requests_refused_total", "Requests beyond the limit, answered 503.")
WORKERS = Gauge("millrace_scorer_workers", "Worker processes that answer requests.")
WORKER_RESTARTS = Counter("millrace_scorer_worker_restarts_total", "Workers that ended and were started again.")
STAGED = Gauge("millrace_model_overlays", "Versions that workers hold beside the model's tables, not folded in yet.")
RETRIEVAL_VERSION = Gauge("millrace_retrieval_version", "Model version that recall's vectors are of.")
RETRIEVAL_LAG = Gauge(
    "millrace_retrieval_lag_versions", "Model versions between the one that scores and the one that vectors are of."
)
RETRIEVAL_AGE = Gauge(
    "millrace_retrieval_age_seconds", "Wall seconds since the learner published the version that vectors are of."
)
RETRIEVAL_ITEMS = Gauge("millrace_retrieval_items", "Living items when the vectors were built.")
RETRIEVAL_BUILD_SECONDS = Gauge("millrace_retrieval_build_seconds", "What the last build of all vectors took.")
RETRIEVAL_INDEX_RECALL = Gauge(
    "millrace_scorer_index_recall",
    "Share of the items with the largest products that the approximate index finds; no value with exact products.",
)
ERROR_KINDS = (
    *("announcement", "delta", "snapshot", "patch", "fold", "schema", "fenced", "store", "feed", "message"),
    *("index", "item", "item-tiles", "lists", "co-clicks", "neighbours", "retrieval", "worker", "ask"),
    *("redis", "profile", "recent", "request", "scores", "tiles", "ranked", "page_logs", "settings"),
)
LOSSES = (
    *("ring-full", "ring-damaged", "not-packed", "too-large"),
    *("spool-full", "disk", "spool-damaged", "refused"),
)
for _found in READS:  # from 0 on, so that the first of a kind is an increase too
    USER_READS.labels(_found)
for _kind in ERROR_KINDS:
    ERRORS.labels(_kind)
for _reason in LOSSES:
    LOG_LOST_PAGES.labels(_reason)
    LOG_LOST_EXPOSURES.labels(_reason)
_BY_SOURCE = [SCORER_ITEMS.labels(source) for source in SOURCES]
_UNMEASURED = (
    SERVED_VERSION,
    FRESHNESS,
    RETRIEVAL_VERSION,
    RETRIEVAL_LAG,
    RETRIEVAL_AGE,
    RETRIEVAL_ITEMS,
    RETRIEVAL_BUILD_SECONDS,
    RETRIEVAL_INDEX_RECALL,
)
for _gauge in _UNMEASURED:
    _gauge.set(math.nan)  # no value until there is one


CLICK_TO_SERVED = TimesHistogram(
    "millrace_click_to_served_seconds", "From a click's sending to serving the weights it changed."
)
RECENT = 10_000
_STEP_MS = 10
_STEPS = 6_000
"""Times up to a minute have steps of 10 ms; beyond that a step is a hundredth of the time."""


class ClickTrace:
    """Time from clicks to the weights that serve: the last stage, and the whole. Any thread may call it."""

    def __init__(self) -> None:
        self._all = Steps()
        self._recent: deque[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = deque()
        self._recent_clicks = 0
        self._lock = threading.Lock()

    def served(self, versions: Sequence[VersionClicks], now_ms: int) -> None:
        """All workers serve these versions since ``now_ms`` (wall time)."""
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
    """Counts of times in constant memory, fine enough for percentiles."""

    def __init__(self) -> None:
        self._counts = np.zeros(_STEPS + 2_000, np.int64)

    def add(self, took_ms: Any, counts: Any) -> None:
        """Adds times (ms), each ``counts`` times."""
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
    if place < _STEPS:
        return _STEP_MS * (place + 0.5)
    return float(_STEP_MS * _STEPS * np.exp((place + 0.5 - _STEPS) / 100))


class ScorerMeters:
    """The counts of one scorer. Any thread may call it: each call is one atomic step or harmless when interleaved."""

    def __init__(self) -> None:
        self.errors: Tally[str] = Tally()
        self.versions_served = 0
        self.gaps = 0
        self.loads = 0
        self.clicks = ClickTrace()

    def error(self, what: str) -> None:
        """Counts one handled error, of :data:`ERROR_KINDS`."""
        self.errors[what] += 1
        ERRORS.labels(what).inc()

    def user_read(self, found: str) -> None:
        """``found``: one of :data:`scorer.users.userrecord.READS`."""
        USER_READS.labels(found).inc()

    def lost(self, reason: str, pages: int, exposures: int) -> None:
        """Counts pages whose log is lost, by one of :data:`LOSSES`. They were answered, so these are no errors."""
        LOG_LOST_PAGES.labels(reason).inc(pages)
        LOG_LOST_EXPOSURES.labels(reason).inc(exposures)

    def fallback(self, reason: str, cached: bool) -> None:
        """Counts a request that went on without the online store; ``away`` and ``error`` count as errors too."""
        STORE_FALLBACKS.labels(reason, "cache" if cached else "nothing").inc()
        if reason in (AWAY, ERROR):
            self.error("redis")

    def refused(self) -> None:
        REFUSED.inc()

    def unauthorized(self, status: str) -> None:
        REQUESTS.labels("unauthorized", status).inc()

    def list_page(self) -> None:
        LIST_PAGES.inc()

    def part(self, kind: str) -> None:
        """Counts a part of a ranked list: ``first``, ``next``, or ``remade``."""
        LIST_PARTS.labels(kind).inc()

    def items(self, sources: bytes) -> None:
        """Counts items on pages, by their codes of recall's sources."""
        for code in set(sources):
            _BY_SOURCE[code].inc(sources.count(code))

    def filtered(self, filled: str) -> None:
        """Counts a page with filters as ``full``, ``short`` or ``empty``."""
        FILTERED_PAGES.labels(filled).inc()

    def gap(self) -> None:
        """Counts a missing or unusable version, but not those after it until the next snapshot."""
        self.gaps += 1
        DELTA_GAPS.inc()

    def load(self) -> None:
        self.loads += 1
        MODEL_LOADS.inc()

    def waits(self, waiting: bool) -> None:
        """Whether versions are missing until the next snapshot."""
        MODEL_WAITS.set(waiting)

    def served(self, version: int, deltas: int, clicks: Sequence[VersionClicks], now_ms: int) -> None:
        """A version serves since ``now_ms`` (wall time), ``deltas`` after the one before it, with the ``clicks`` new in
        it."""
        self.versions_served += 1
        SERVED_VERSION.set(version)
        DELTAS_APPLIED.inc(deltas)
        self.clicks.served(clicks, now_ms)

    def click_to_served(self) -> dict[str, Any]:
        return self.clicks.figures()


class LearnerMeters(ScorerMeters):
    """Of the versions of a learner beside the first, without what would be taken for the first's."""

    def __init__(self, learner: str) -> None:
        super().__init__()
        self._version = LEARNER_VERSION.labels(learner)
        self._version.set(math.nan)

    def waits(self, waiting: bool) -> None:
        pass

    def served(self, version: int, deltas: int, clicks: Sequence[VersionClicks], now_ms: int) -> None:
        self._version.set(version)
