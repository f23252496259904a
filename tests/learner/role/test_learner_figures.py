"""What the learner shows: gauges by arm, NaN and null where there is no figure, one line when predictions break."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from learner.evaluation.progressive import Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.role.learner_metrics import Board
from learner.training.trainer import Trainer
from millrace.basics.ranking_metrics import auc, log_loss
from millrace.contracts.events import ARMS
from millrace.contracts.logforms import OutcomeRule
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.labels import Waits
from tests.scenes.learning import SCHEMA, START_MS, make_samples

BY_ARM = (
    *("rolling_auc", "grouped_auc", "page_auc", "ndcg"),
    *("baseline_auc", "baseline_grouped_auc", "baseline_page_auc", "baseline_ndcg"),
    *("rolling_log_loss", "calibration", "click_rate"),
)
LEARNING = ("learning_auc", "learning_log_loss", "learning_calibration")


def trainer() -> Trainer:
    served = ServedExposures(SCHEMA, Segments(SCHEMA, {}), Waits(1000, 1000, 0), 1000)
    return Trainer(OnlineModel(SCHEMA, {"model": "logistic"}, 0), Progressive(1000), Repeats(10**9), 10_000, served)


def served_with(batch: SampleBatch, score: Any, version: int = 1) -> SampleBatch:
    n = len(batch)
    versions, policies = np.full(n, version), np.full(n, 2, np.uint8)
    return replace(batch, score=np.asarray(score, np.float32), version=versions, policy=policies)


def learn(t: Trainer, *batches: SampleBatch) -> None:
    for batch in batches:
        t.take(batch)
    t.step(drain=True)


def gauge(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(f"millrace_{name}", labels)
    assert value is not None
    return value


def lines(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]  # strict: it takes no NaN


def test_figures_that_do_not_exist_are_nan_for_prometheus_and_null_in_the_history(tmp_path: Path) -> None:
    t, path = trainer(), tmp_path / "history.jsonl"
    board = Board(t, path)
    board.show()
    for arm in ARMS:
        assert all(math.isnan(gauge(name, arm=arm)) for name in BY_ARM)
        assert gauge("served_rows", arm=arm) == 0
    assert all(math.isnan(gauge(name)) for name in LEARNING)
    assert not path.exists()

    samples = make_samples(300, 0)
    score = np.random.default_rng(0).random(300).astype(np.float32)
    served = served_with(samples, score)
    last = served_with(make_samples(1, 9, start_ms=START_MS + 10**6), [0.5])
    none = samples.label == 0
    learn(t, served.take(none), last)
    board.show()
    assert [n for n in BY_ARM if not math.isnan(gauge(n, arm="model"))] == ["rolling_log_loss", "click_rate"]
    assert gauge("click_rate", arm="model") == 0.0
    learn(t, served.take(~none))
    board.show()
    board.show()  # nothing learnt since
    assert gauge("rolling_auc", arm="model") == pytest.approx(auc(score, samples.label))
    assert gauge("rolling_log_loss", arm="model") == pytest.approx(log_loss(score, samples.label))
    assert gauge("served_rows", arm="model") == 300
    assert gauge("click_rate", arm="model") == pytest.approx(samples.label.mean())
    assert math.isnan(gauge("rolling_auc", arm="control"))
    assert gauge("learning_auc") == t.progressive.auc != gauge("rolling_auc", arm="model")
    assert gauge("segment_auc", segment="user=new") > 0
    first, second = lines(path)
    assert (first["auc"], first["calibration"], first["baseline_auc"], first["learning_auc"]) == (None,) * 4
    assert first["log_loss"] == pytest.approx(log_loss(score[none], samples.label[none]))
    assert (second["arm"], second["rows"], second["trained"]) == ("model", 300, 301)
    assert second["auc"] == gauge("rolling_auc", arm="model")
    assert second["learning_auc"] == gauge("learning_auc")
    assert second["event_time"] == t.model.newest_ms


def test_each_outcome_has_the_figures_of_what_was_predicted_before_it_was_learnt(tmp_path: Path) -> None:
    schema = msgspec.structs.replace(SCHEMA, outcome=(OutcomeRule("buy", on="click", event="purchase", within="2d"),))
    model = OnlineModel(schema, {"model": "logistic"}, 0)
    t = Trainer(model, Progressive(1000), Repeats(10**9), 10_000)
    said, true = [], []
    for seed in range(3):
        batch = make_samples(300, seed)
        told = np.where(batch.label > 0, batch.user % np.uint64(2) == 0, np.nan).astype(np.float32)
        known = np.isfinite(told)
        said.append(model.predict(batch.cat, batch.num)[known, 1])  # given a click
        true.append(told[known])
        learn(t, replace(batch, outcomes=told[:, None]))
    Board(t, tmp_path / "history.jsonl").show()
    p, y = np.concatenate(said), np.concatenate(true)
    assert gauge("outcome_rows", outcome="buy") == len(y) > 100
    assert gauge("outcome_log_loss", outcome="buy") == pytest.approx(log_loss(p, y))
    assert gauge("outcome_auc", outcome="buy") == pytest.approx(auc(p, y))


def test_an_outcome_told_by_age_has_the_auc_of_first_tellings_alone(tmp_path: Path) -> None:
    schema = msgspec.structs.replace(SCHEMA, outcome=(OutcomeRule("buy", on="click", event="purchase", within="30d"),))
    model = OnlineModel(schema, {"model": "logistic"}, 0)
    t = Trainer(model, Progressive(1000), Repeats(10**9), 10_000)
    batch = make_samples(600, 0)
    number, value = np.resize([1, 1, 1, 2, 3], 600), np.resize([0, 1, 0, 1, 2], 600)
    told = replace(batch, outcomes=value.astype(np.float32)[:, None], telling=number.astype(np.uint8))
    q = model.predict(told.cat, told.num)[:, 1]
    t.judge(told)
    Board(t, tmp_path / "history.jsonl").show()
    first = number == 1
    assert gauge("outcome_rows", outcome="buy") == first.sum()
    assert gauge("outcome_auc", outcome="buy") == pytest.approx(auc(q[first], value[first]))
    assert math.isnan(gauge("outcome_log_loss", outcome="buy"))
    assert math.isnan(gauge("outcome_calibration", outcome="buy"))


def test_late_clicks_that_a_model_tells_from_early_ones_are_seen(tmp_path: Path) -> None:
    t = trainer()
    expects = {NEGATIVE: 0.05, POSITIVE: 0.1, CORRECTION: 0.8}
    batch = make_samples(600, 0)
    kind = np.resize(np.array([NEGATIVE, POSITIVE, CORRECTION], np.uint8), 600)
    for rows, ratio in ((slice(0, 270), math.nan), (slice(270, 600), 8.0)):
        part = replace(batch.take(rows), kind=kind[rows])
        said = np.array([expects[k] for k in part.kind.tolist()], np.float32)
        t.model.score = lambda cat, num, said=said: said  # type: ignore[method-assign,misc]
        t.judge(part)
        Board(t, tmp_path / "history.jsonl").show()
        assert gauge("late_click_ratio") == pytest.approx(ratio, nan_ok=True)


def test_the_history_tells_of_logged_pages_where_the_model_made_none(tmp_path: Path) -> None:
    t, path = trainer(), tmp_path / "history.jsonl"
    batch = make_samples(300, 0)
    last = make_samples(1, 9, start_ms=START_MS + 10**6)
    learn(t, served_with(batch, batch.num[:, 0] / 1000, version=-1), served_with(last, [0.5], version=-1))
    Board(t, path).show()
    (line,) = lines(path)
    assert (line["arm"], line["rows"]) == ("logged", 300)
    assert line["auc"] == gauge("rolling_auc", arm="logged")


def test_predictions_that_are_no_numbers_are_counted_and_told_once_a_minute(tmp_path: Path) -> None:
    t, now = trainer(), [0.0]
    board = Board(t, tmp_path / "history.jsonl", lambda: now[0])
    before = gauge("predictions_not_finite_total")
    told = []
    for second in (0, 1, 59, 61):
        now[0] = float(second)
        learn(t, served_with(make_samples(10, 100 + second), np.full(10, np.nan)))
        with capture_logs() as said:
            board.show()
            board.show()
        told.append([(line["log_level"], line["rows"]) for line in said])
    assert told == [[("error", 10)], [], [], [("error", 10)]]
    assert gauge("predictions_not_finite_total") - before == 40
    honest = t.model.score
    t.model.score = lambda cat, num: honest(cat, num) * np.float32(np.nan)  # type: ignore[method-assign]
    learn(t, served_with(make_samples(10, 7), np.full(10, 0.5)))
    board.show()
    assert gauge("predictions_not_finite_total") - before == 50, "of the learner's own predictions too"
    assert gauge("learning_log_loss") > 1


def test_drift_is_counted_and_told_once(tmp_path: Path) -> None:
    t = trainer()
    board, before = Board(t, tmp_path / "history.jsonl"), gauge("drift_total")
    assert t.served is not None
    t.served.drift.found += [(0.01, 0.05), (0.05, 0.01)]
    with capture_logs() as said:
        board.show()
        board.show()
    assert [(line["before"], line["after"]) for line in said] == [(0.01, 0.05), (0.05, 0.01)]
    worse, better = said
    assert ("worse" in worse["event"], "millrace model bisect" in worse["remedy"]) == (True, True)
    assert ("better" in better["event"], better["remedy"]) == (True, "nothing is to be done")
    assert gauge("drift_total") - before == 2


def shown(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"millrace_{name}", labels) or 0.0


GATE: dict[str, Any] = {
    "state": "promoting",
    "promoted_version": -1,
    "promoted_ms": -1,
    "quarantined_rows": 0,
    "heldout": {},
}


def test_what_the_gate_decided_is_counted_once_and_its_state_is_shown(tmp_path: Path) -> None:
    t, now = trainer(), [100.0]
    t.counts["quarantined:auc"] = 70  # an earlier process's
    board = Board(t, tmp_path / "history.jsonl", wall=lambda: now[0])
    names = [("quarantined_rows_total", {"check": "auc"}), ("rollbacks_total", {"by": "gate"})]
    names += [("gate_verdicts_total", {"check": "auc", "verdict": "refused"})]
    names += [("samples_held_out_total", {}), ("teach_limited_rows_total", {}), ("samples_rolled_back_total", {})]
    names += [("quarantine_ended_rows_total", {"how": how}) for how in ("released", "discarded")]
    before = [shown(name, **labels) for name, labels in names]
    board.show(GATE, {})
    assert math.isnan(gauge("gate_promoted_version"))
    assert math.isnan(gauge("gate_last_promotion_timestamp_seconds"))
    assert math.isnan(gauge("heldout_auc", model="newest"))
    t.counts += {"quarantined:auc": 5, "quarantined": 5, "way_back:gate": 1, "held_out": 3, "over_limit": 2}
    t.counts += {"set_aside": 4, "released": 2, "discarded": 1}
    judged = {"rows": 9000, "auc": 0.71, "anchor_auc": 0.72, "log_loss": 0.3, "anchor_log_loss": 0.29}
    gate = GATE | {"state": "blocked", "promoted_version": 57, "promoted_ms": 9, "quarantined_rows": 5}
    for _ in range(2):
        board.show(gate | {"heldout": judged}, {("auc", "refused"): 2})
        now[0] += 1
    assert [shown(name, **labels) for name, labels in names] == [
        b + n for b, n in zip(before, (5, 1, 2, 3, 2, 4, 2, 1), strict=True)
    ]
    assert {state: gauge("gate_state", state=state) for state in ("promoting", "probation", "blocked", "held")} == {
        "promoting": 0, "probation": 0, "blocked": 1, "held": 0
    }  # fmt: skip
    assert (gauge("quarantine_rows"), gauge("heldout_rows")) == (5, 9000)
    assert (gauge("heldout_auc", model="anchor"), gauge("heldout_log_loss", model="newest")) == (0.72, 0.3)
    assert gauge("gate_promoted_version") == 57
    assert gauge("gate_last_promotion_timestamp_seconds") == 100, "the same promotion shown again is none"
    board.show(gate | {"promoted_version": 58}, {("auc", "refused"): 2})
    assert gauge("gate_last_promotion_timestamp_seconds") == 102


def test_what_a_way_back_took_out_is_a_counter_of_its_own(tmp_path: Path) -> None:
    t = trainer()
    learn(t, make_samples(300, 0))
    board = Board(t, tmp_path / "history.jsonl")
    learnt, back = gauge("samples_trained_total"), gauge("samples_taken_back_total")
    learn(t, make_samples(200, 1))
    board.show()
    t.counts["trained"] -= 200
    board.show()
    t.counts["trained"] -= 50  # of earlier; at once 80 more are learnt
    t.counts["trained"] += 80
    board.show()
    assert (gauge("samples_trained_total") - learnt, gauge("samples_taken_back_total") - back) == (230, 200)
    assert t.counts["trained"] == 300 + 230 - 200
