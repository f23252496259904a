# shell
"""What a scorer does when more is asked than it can bear, and when its broker is away."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.latency import latencies_ms, percentile
from benchmarks.runner import Figure, figure
from benchmarks.serverun import FEW, Bench
from benchmarks.serveunder import Asking, RunningScorer
from millrace.processes.services import EmbeddedBroker

REFUSED = 503
DELIVERY_S = 60.0
REST_S = 3.0
"""Before the broker goes, and three times that after it is back."""


def overload(bench: Bench, scorer: RunningScorer, capacity: float) -> list[Figure]:
    """Three times the load that is borne, and right behind it a run of the usual one."""
    size = bench.size
    plan = bench.plan(FEW, max(3 * capacity, 4 * size.rate), size.step_s)
    outcome = Asking(plan).outcome()
    after = bench.plan(FEW, size.rate, size.step_s)
    calm = Asking(after).outcome()
    bench.check(plan, outcome, overload=True)
    bench.check(after, calm)
    answered, refused = np.array(outcome.whole), np.array(outcome.status) == REFUSED
    done = np.array([np.nan if at is None else at for at in outcome.done_s])
    ms = 1000 * (done - np.array(outcome.intended_s))
    return [
        figure("overload_pages", plan.rate, "pages/s"),
        figure("overload_answered", float(answered.mean()), "share"),
        figure("overload_failed", float((~answered & ~refused).sum()), "answers"),
        figure("overload_answered_p99_ms", percentile(ms[answered], 0.99) if answered.any() else 0.0, "ms"),
        figure("overload_refused_p99_ms", percentile(ms[refused], 0.99) if refused.any() else 0.0, "ms"),
        figure("overload_after_p99_ms", percentile(latencies_ms(calm), 0.99), "ms"),
    ]


def broker_away(bench: Bench, scorer: RunningScorer, broker: EmbeddedBroker) -> list[Figure]:
    """Pages while the broker is away, and what is missing of their log when it is back."""
    away_s = bench.size.away_s
    plan = bench.plan(FEW, bench.size.rate, away_s + 4 * REST_S)
    held, most = scorer.resident_bytes(), 0
    asking = Asking(plan)
    time.sleep(REST_S)
    began = time.monotonic()
    broker.stop()
    while time.monotonic() < began + away_s:
        most = max(most, scorer.resident_bytes())
        time.sleep(0.5)
    broker.start()
    outcome = asking.outcome()
    lost, failed = bench.counted.lost, bench.counted.failed
    bench.check(plan, outcome, patience_s=DELIVERY_S)
    due = np.array(outcome.intended_s)
    during = (due >= began) & (due < began + away_s)
    return [
        figure("broker_away_seconds", away_s, "s"),
        figure("broker_away_failed", bench.counted.failed - failed, "answers"),
        figure("broker_away_lost", bench.counted.lost - lost, "pages"),
        figure("broker_away_p99_ms", percentile(latencies_ms(outcome)[during], 0.99), "ms"),
        figure("broker_away_growth", (most - held) / 2**20, "MiB"),
    ]
