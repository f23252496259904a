"""What was not measured has no value: freshness before anything was learnt, the oracle's AUC of one class."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY

from learner.serving.staging import ModelWriter
from millrace.basics.ranking_metrics import auc
from millrace.contracts.settings import Settings
from millrace.processes.wall import event_now_ms
from scorer.feeder.feeder import set_gauges
from simulator.oracle_auc import OracleAuc
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_shop import NOW_MS, SCHEMA, Learner, call, own_app


def freshness() -> float:
    value = REGISTRY.get_sample_value("millrace_freshness_seconds")
    assert value is not None
    return value


def test_a_model_has_an_age_once_it_has_learnt_from_an_exposure(tmp_path: Path) -> None:
    whole = Whole(Settings(data=str(tmp_path)))
    set_gauges(whole.primary)
    app = own_app(whole.serving, whole.meters)
    assert math.isnan(freshness())
    learner = Learner(tmp_path)
    note = learner.snapshot()
    writer = ModelWriter.of(SCHEMA, note.spec, learner.store.read(note), allocate=whole.host.pool.allocate)
    whole.host.install(msgspec.structs.replace(note, event_ms=0), writer, 0, [])
    assert math.isnan(freshness())
    assert asyncio.run(call(app, "GET", "/model"))[1]["event_ms"] is None
    _, text = asyncio.run(call(app, "GET", "/metrics"))
    assert "\nmillrace_freshness_seconds NaN\n" in text
    whole.host.install(msgspec.structs.replace(note, event_ms=NOW_MS), writer, 0, [])
    assert asyncio.run(call(app, "GET", "/model"))[1]["event_ms"] == NOW_MS
    clock = whole.primary.clock
    before = event_now_ms(clock)
    age_ms = freshness() * 1000 * clock.speed
    assert before - NOW_MS - 1 <= age_ms <= event_now_ms(clock) - NOW_MS + 1  # rounded


def test_the_oracle_has_no_auc_of_one_class_or_of_no_rows() -> None:
    oracle, rng = OracleAuc(40, 1000), np.random.default_rng(0)
    chances: list[float] = []
    outcomes: list[bool] = []
    oracle.settle(10**9)
    assert math.isnan(oracle.auc())
    clicks = [*([0.0] * 3), *([0.5] * 6), *([0.0] * 6), *([1.0] * 6)]  # the share on each page
    for number, share in enumerate(clicks):
        p, clicked = rng.random(10).round(1), (rng.random(10) < share).tolist()  # with ties
        oracle.add(number * 1000, p, clicked)
        oracle.settle(number * 1000 + 1000)
        chances += p.tolist()
        outcomes += clicked
        newest = slice(-40, None)
        expected = auc(np.array(chances[newest]), np.array(outcomes[newest]))
        assert oracle.auc() == pytest.approx(expected, nan_ok=True)
    assert math.isnan(oracle.auc())
