"""Figures of served scores, recomputed from the topics: which rows count, what they say, that the learner agrees."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.ranker.model import OnlineModel
from millrace.basics.errors import ServiceError, SettingError
from millrace.basics.ranking_metrics import FIGURES
from millrace.commands.demo.conservation import Ledger
from millrace.commands.demo.demorun import DemoOptions, demo, may_take_usual_ports
from millrace.commands.demo.servedrows import LabelledExposures, auc_of, by_minute, curve, figures, first, headline
from millrace.commands.demo.twin import LoggedPages, blocks, twin_scores
from millrace.contracts.clock import EventClock
from millrace.contracts.events import ARMS, LOGGED, MODEL, PageLog, Truth, to_msgpack
from millrace.contracts.samples import CORRECTION, NEGATIVE, POLICIES, POSITIVE, SampleBatch
from millrace.contracts.settings import Settings
from millrace.labels import Waits
from tests.scenes.learning import SCHEMA, labelled

T0 = 1_772_600_000_000
MINUTE = 60_000


def rows(n: int, seed: int = 0, **given: Any) -> LabelledExposures:
    """Rows a second apart; labels are drawn from the true probabilities, and scores are near these."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.05, 0.6, n).astype(np.float32)
    made: dict[str, Any] = {
        "ts_ms": T0 + 1000 * np.arange(n, dtype=np.int64),
        "page": np.array([f"p{i // 10}" for i in range(n)], np.object_),
        "position": np.arange(n) % 10,
        "label": (rng.random(n) < true).astype(np.int8),
        "score": np.clip(true + rng.normal(0, 0.1, n), 0.01, 0.99).astype(np.float32),
        "true": true,
        "arm": np.zeros(n, np.int8),
        "own": np.ones(n, np.bool_),
        "settled": np.ones(n, np.bool_),
    }
    return LabelledExposures(**made | given)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(pairs: Sequence[tuple[int, bool]]) -> None:
    score = np.array([s for s, _ in pairs], np.float64)
    label = np.array([clicked for _, clicked in pairs])
    won = [(p > n) + 0.5 * (p == n) for p in score[label] for n in score[~label]]
    assert auc_of(score, label) == (pytest.approx(np.mean(won)) if won else None)


def test_auc_leaves_out_what_was_never_scored() -> None:
    assert auc_of(np.array([0.1, np.nan, 0.9]), np.array([0, 1, 1])) == 1.0


def test_one_class_and_no_rows_have_no_figure_and_no_number_that_means_nothing() -> None:
    some = rows(50)
    nobody = some.where(some.label == 0)
    assert figures(nobody)["auc"] is None
    assert figures(nobody)["calibration"] is None
    assert figures(some.where(slice(0, 0))) == {"rows": 0, **dict.fromkeys(FIGURES)}


def test_a_broken_score_counts_as_wrong_and_is_not_left_out() -> None:
    some = rows(400)
    broken = np.arange(400) % 20 == 0
    score = some.score.copy()
    score[broken] = np.array([np.nan, np.inf, -np.inf, np.nan] * 5, np.float32)
    reported = figures(replace(some, score=score))
    worst = figures(replace(some, score=np.where(broken, 1.0 - some.label, some.score).astype(np.float32)))
    assert reported == worst
    assert reported["rows"] == 400
    without = figures(some.where(~broken))
    assert reported["auc"] is not None
    assert without["auc"] is not None
    assert reported["auc"] < without["auc"]


def test_what_is_not_settled_is_not_judged_nor_is_a_logged_page_that_nobody_scored() -> None:
    some = rows(30)
    settled, score, arm = np.ones(30, np.bool_), some.score.copy(), np.zeros(30, np.int8)
    settled[20:] = False
    arm[:6] = ARMS.index(LOGGED)
    score[:3], score[6] = np.nan, np.nan
    judged = replace(some, settled=settled, score=score, arm=arm).judged
    assert judged.ts_ms.tolist() == some.ts_ms[3:20].tolist()


def test_the_headline_is_the_models_and_a_logs_where_no_model_made_a_page() -> None:
    some = rows(20)
    assert headline(some) == MODEL
    assert headline(some.where(slice(0, 0))) == MODEL
    logged = np.full(20, ARMS.index(LOGGED), np.int8)
    assert headline(replace(some, arm=logged)) == LOGGED
    logged[3] = ARMS.index(MODEL)
    assert headline(replace(some, arm=logged)) == MODEL


def test_the_first_rows_are_of_this_run_and_all_arms_beside_the_loss_of_the_truth() -> None:
    some = rows(900)
    arm = (np.arange(900) % 2).astype(np.int8)
    own = np.arange(900) >= 300
    reported = first(replace(some, arm=arm, own=own), 500)
    part = slice(300, 800)
    y, q = some.label[part].astype(np.float64), some.true[part].astype(np.float64)
    assert reported["rows"] == 500
    assert reported["oracle_log_loss"] == pytest.approx(-np.mean(y * np.log(q) + (1 - y) * np.log(1 - q)))
    p = some.score[part].astype(np.float64)
    assert reported["log_loss"] == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
    assert reported["calibration"] == pytest.approx(p.sum() / y.sum())
    assert reported["auc"] == auc_of(p, y)


def test_minutes_hold_every_judged_row_of_the_run_once() -> None:
    some = rows(600)
    arm = (np.arange(600) % 3 == 0).astype(np.int8)
    reported = by_minute(replace(some, arm=arm), T0 + 60_000, 120_000, some.true * 2)
    assert [(m["minute"], m["arm"]) for m in reported] == [(m, a) for m in range(5) for a in ("model", "control")][:10]
    assert sum(m["rows"] for m in reported) == 600 - 60
    assert sum(m["clicks"] for m in reported) == some.label[60:].sum()
    assert sum(m["predicted"] for m in reported) == pytest.approx(some.score[60:].sum(dtype=np.float64))
    assert sum(m["expected"] for m in reported) == pytest.approx(some.true[60:].sum(dtype=np.float64))
    assert sum(m["twin"] for m in reported) == pytest.approx(2 * some.true[60:].sum(dtype=np.float64))
    nobody_knows = by_minute(replace(some, true=np.full(600, np.nan, np.float32)), T0, 120_000)
    assert {(m["expected"], m["twin"]) for m in nobody_knows} == {(None, None)}


def test_the_curve_is_that_of_full_windows_and_begins_half_way_in_a_short_run() -> None:
    n, rng = 3000, np.random.default_rng(3)
    some = rows(n)
    score = np.where(np.arange(n) < n // 2, rng.random(n), some.true).astype(np.float32)  # it learns half way
    learning = replace(some, score=score)
    points = curve(learning, 500)
    assert points[0]["event_time"] == some.ts_ms[499]
    assert points[-1] == {
        "event_time": some.ts_ms[-1],
        "auc": auc_of(score[-500:], some.label[-500:]),
        "oracle_auc": auc_of(some.true[-500:], some.label[-500:]),
    }
    assert points[0]["auc"] < points[-1]["auc"] == points[-1]["oracle_auc"]
    assert curve(learning, 10_000)[0]["event_time"] == some.ts_ms[n // 2 - 1]
    assert curve(learning.where(slice(0, 0)), 500) == []


# -- from the topics -------------------------------------------------------------------------------------------


def batch(
    request: str, ts_ms: int, kinds: dict[int, int], policy: str, score: float = 0.3, arm: int = 0
) -> SampleBatch:
    n = len(kinds)
    arms, policies = np.full(n, arm, np.uint8), np.full(n, POLICIES.index(policy), np.uint8)
    return labelled(request, ts_ms, kinds.items(), score, arm=arms, policy=policies)


def ledger_of(*batches: SampleBatch) -> Ledger:
    ledger = Ledger(EventClock(), 3_600_000, {}, Waits(5 * MINUTE, 30_000, MINUTE))
    for offset, made in enumerate(batches):
        record: Any = SimpleNamespace(partition=0, offset=offset, timestamp=T0, value=made.to_bytes())
        ledger.sample_message(record)
    truth = to_msgpack(Truth("a", T0, 0, np.array([0.5, 0.25], "<f4").tobytes()))
    ledger.truth_message(SimpleNamespace(partition=0, offset=0, timestamp=T0, value=truth))
    return ledger


def test_a_click_that_came_before_its_fellows_labels_is_not_settled_before_they_are() -> None:
    at_once = batch("a", T0, {0: POSITIVE}, "wait")
    assert not ledger_of(at_once).rows().settled.any()
    later = batch("b", T0 + MINUTE, {0: POSITIVE, 1: NEGATIVE}, "wait")
    reported = ledger_of(at_once, batch("a", T0, {1: NEGATIVE}, "wait"), later).rows()
    assert reported.page.tolist() == ["a", "a", "b", "b"]
    assert reported.settled.tolist() == [True] * 4
    assert reported.label.tolist() == [1, 0, 1, 0]
    assert reported.true[:2].tolist() == [0.5, 0.25]
    assert np.isnan(reported.true[2:]).all()


def test_a_correction_makes_the_label_a_click_and_an_early_negative_settles_nothing() -> None:
    early = batch("a", T0, {0: NEGATIVE, 1: NEGATIVE}, "prompt")
    corrected = batch("a", T0, {1: CORRECTION}, "prompt")
    assert not ledger_of(early, corrected).rows().settled.any()
    reported = ledger_of(early, corrected, batch("b", T0 + 6 * MINUTE, {0: POSITIVE}, "prompt")).rows()
    assert reported.label.tolist() == [0, 1, 1]
    assert reported.settled.tolist() == [True, True, False]


def test_a_page_that_no_model_made_is_logged() -> None:
    made = batch("a", T0, {0: POSITIVE}, "wait")
    assert ledger_of(replace(made, version=np.full(1, -1))).rows().arm.tolist() == [ARMS.index(LOGGED)]


def test_the_newest_rows_of_an_arm_are_those_that_the_learner_judges() -> None:
    """Two programs, one stream of samples: the learner as they come, the report when all is over."""
    from learner.evaluation.served_scores import ServedExposures as Live
    from learner.evaluation.traffic_segments import Segments
    from learner.ranker.model import OnlineModel
    from tests.scenes.learning import SCHEMA

    rng = np.random.default_rng(5)
    layout = SCHEMA.layout
    waits = Waits(5 * MINUTE, 30_000, MINUTE)
    model = OnlineModel(SCHEMA, {"model": "wide_deep", "hidden": [4]}, 0)
    live = Live(SCHEMA, Segments(SCHEMA, {}), waits, 300)
    ledger = Ledger(EventClock(), 3_600_000, {}, waits)
    for number in range(120):
        kinds = {int(p): int(rng.random() < 0.3) for p in range(10)}  # POSITIVE is 1
        made = batch(f"r{number}", T0 + number * 7000, kinds, "prompt", arm=int(rng.random() < 0.2))
        n = len(made)
        score = rng.uniform(0, 1, n).astype(np.float32)
        score[rng.random(n) < 0.02] = np.nan
        made = replace(
            made, score=score, cat=np.zeros((n, layout.F), np.int64), num=np.zeros((n, layout.N), np.float32)
        )
        record: Any = SimpleNamespace(offset=number, timestamp=T0, value=made.to_bytes())
        ledger.sample_message(record)
        live.take(made)
    live.enter(model)
    live.settle()
    for arm in ("model", "control"):
        shown = live.figures(arm)
        judged = ledger.rows().judged.of(arm)
        reported = figures(judged.where(slice(max(0, len(judged) - 300), None)))
        assert reported["rows"] == shown["rows"]
        for name in FIGURES:
            figure = reported[name]
            assert figure is not None
            assert math.isclose(figure, shown[name], rel_tol=1e-5), name
    assert live.figures("model")["rows"] == 300


# -- The twin: it learns the same exposures in the same order, each after it was scored, with its final label ----------


SPEC = {"model": "wide_deep", "hidden": [8]}


def run(pages: int = 120, size: int = 10) -> tuple[LabelledExposures, LoggedPages]:
    """Pages a second apart. Items of category 1 are clicked, others are not; other fields mean nothing."""
    rng, layout = np.random.default_rng(2), SCHEMA.layout
    category = layout.cat_starts[[f.name for f in layout.cat_fields].index("category")]
    held, label = LoggedPages(SCHEMA), []
    for number in range(pages):
        cat = rng.integers(100, 110, (size, layout.F))
        cat[:, category] = rng.integers(1, 4, size)
        label += (cat[:, category] == 1).tolist()
        held.message(SimpleNamespace(value=page_log(f"p{number}", cat)))
    n = pages * size
    rows = LabelledExposures(
        ts_ms=T0 + 1000 * (np.arange(n, dtype=np.int64) // size),
        page=np.array([f"p{i // size}" for i in range(n)], np.object_),
        position=np.arange(n) % size,
        label=np.array(label, np.int8),
        score=np.full(n, 0.5, np.float32),
        true=np.full(n, np.nan, np.float32),
        arm=np.zeros(n, np.int8),
        own=np.ones(n, np.bool_),
        settled=np.ones(n, np.bool_),
    )
    return rows, held


def page_log(request: str, cat: Any, schema_id: str = SCHEMA.id) -> bytes:
    n = len(cat)
    num = np.zeros((n, SCHEMA.layout.N), "<f4").tobytes()
    items: list[int | str] = list(range(1, n + 1))
    scores, keys = np.zeros(n, "<f4").tobytes(), np.zeros((n, SCHEMA.layout.K), "<u8").tobytes()
    return to_msgpack(
        PageLog(request, T0, 1, "model", 0, schema_id, items, scores, keys, cat.astype("<i8").tobytes(), num)
    )


def test_it_scores_each_block_before_it_learns_it_and_learns_what_the_label_is() -> None:
    rows, pages = run()
    p = twin_scores(rows, pages, SCHEMA, SPEC, 0, 1000.0, 512)
    _, cat, num = pages.features(rows)
    untrained = OnlineModel(SCHEMA, SPEC, 0)
    assert np.array_equal(p[:10], untrained.score(cat[:10], num[:10]))
    assert not np.array_equal(p[10:20], untrained.score(cat[10:20], num[10:20]))
    late = auc_of(p[600:], rows.label[600:])
    assert late is not None
    assert late > 0.95
    turned = twin_scores(rows.where(np.arange(len(rows)) < 20), pages, SCHEMA, SPEC, 0, 1000.0, 512)
    assert np.array_equal(turned, p[:20])  # what comes later changes nothing


def test_a_row_without_page_log_has_no_score_and_is_not_learnt() -> None:
    rows, pages = run(3)
    stranger, beyond = rows.page.copy(), rows.position.copy()
    stranger[0], beyond[1] = "nobody's", 99
    lacking = LabelledExposures(
        rows.ts_ms, stranger, beyond, rows.label, rows.score, rows.true, rows.arm, rows.own, rows.settled
    )
    p = twin_scores(lacking, pages, SCHEMA, SPEC, 0, 1000.0, 512)
    assert np.isnan(p).tolist() == [True, True, *[False] * 28]
    assert np.isnan(twin_scores(rows.where(slice(0, 0)), pages, SCHEMA, SPEC, 0, 1000.0, 512)).tolist() == []


@pytest.mark.parametrize("bad", [b"", b"[]", None, "other schema", "cut"])
def test_page_logs_that_cannot_be_used_are_counted_and_passed_over(bad: Any) -> None:
    _, pages = run(1)
    cat = np.zeros((2, SCHEMA.layout.F), np.int64)
    raw = {"other schema": page_log("x", cat, "other"), "cut": page_log("x", cat)[:-3]}.get(bad, bad)
    pages.message(SimpleNamespace(value=raw))
    assert (len(pages), pages.unread) == (1, 1)


def test_a_twin_without_a_report_to_appear_in_is_refused() -> None:
    with pytest.raises(SettingError, match="--twin without --report; name the file"):
        demo(Settings(), DemoOptions(twin=True))


def test_prometheus_is_asked_for_and_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match="no prometheus is on the PATH; install one"):
        demo(Settings(), DemoOptions(prometheus=True, data=tmp_path / "data"))
    assert not list(tmp_path.iterdir())


def test_the_first_page_log_of_a_page_counts() -> None:
    rows, pages = run(1)
    _, before, _ = pages.features(rows)
    pages.message(SimpleNamespace(value=page_log("p0", before + 1)))
    _, after, _ = pages.features(rows)
    assert np.array_equal(before, after)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 30), st.integers(1, 8))
def test_blocks_take_every_row_once_in_order_and_keep_their_bounds(gaps: list[int], block_ms: int, most: int) -> None:
    ts_ms = T0 + np.cumsum(np.array(gaps, np.int64))
    cut = blocks(ts_ms, float(block_ms), most)
    assert [i for b in cut for i in range(b.start, b.stop)] == list(range(len(gaps)))
    for block in cut:
        assert 1 <= block.stop - block.start <= most
        assert ts_ms[block.stop - 1] - ts_ms[block.start] < block_ms


def test_of_two_demos_at_once_one_takes_the_usual_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ExitStack() as first, ExitStack() as second:
        assert may_take_usual_ports(first)
        assert not may_take_usual_ports(second)
        first.close()
        assert may_take_usual_ports(second)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with ExitStack() as nowhere:
        assert not may_take_usual_ports(nowhere)
