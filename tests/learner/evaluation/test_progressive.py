"""Figures of merit against counting pairs, rolling ones against the exact ones of the same window; drift;
segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from learner.evaluation.drift import Drift
from learner.evaluation.progressive import Progressive, baseline_column
from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.training.trainer import Trainer
from millrace.basics.errors import SettingError
from millrace.basics.hashing import column_hash
from millrace.basics.ranking_metrics import auc, calibration, judged, log_loss, within
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import parse_schema, shop_schema
from millrace.labels import Waits
from tests.scenes.learning import SCHEMA, make_samples

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


def count_pairs(p: list[int], y: list[bool]) -> float:
    wins = [
        (a > b) + (a == b) / 2 for a, ya in zip(p, y, strict=True) if ya for b, yb in zip(p, y, strict=True) if not yb
    ]
    return sum(wins) / len(wins) if wins else float("nan")


@given(PAIRS)
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    p, y = [r[0] for r in rows], [r[1] for r in rows]
    assert auc(np.array(p) / 5, np.array(y)) == pytest.approx(count_pairs(p, y), nan_ok=True)


@given(st.lists(st.floats(width=32, allow_nan=False) | st.integers(0, 5), min_size=2, max_size=200))
def test_auc_has_the_bits_that_the_librarys_ranks_give(values: list[float]) -> None:
    p, y = np.array(values, np.float64), np.arange(len(values)) % 3 == 0
    n_pos, n_neg = int(y.sum()), int((~y).sum())
    assert auc(p, y) == (rankdata(p)[y].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)
    p[-1] = np.nan
    assert math.isnan(auc(p, y))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), max_size=40))
def test_grouped_auc_weighs_groups_with_both_classes_by_rows_and_page_auc_alike(
    rows: list[tuple[int, bool, int]],
) -> None:
    areas, sizes = [], []
    for user in range(4):
        own = [(p, y) for p, y, u in rows if u == user]
        if len({y for _, y in own}) == 2:
            areas.append(count_pairs([p for p, _ in own], [y for _, y in own]))
            sizes.append(len(own))
    p, y, u = (np.array([r[k] for r in rows]) for k in range(3))
    found = within(p, y, u)
    assert found["grouped_auc"] == pytest.approx(np.average(areas, weights=sizes) if areas else math.nan, nan_ok=True)
    assert found["page_auc"] == pytest.approx(np.mean(areas) if areas else math.nan, nan_ok=True)


def ndcg_in_order(clicked: Sequence[bool]) -> float:
    """nDCG@10 of rows from the first rank on, as the paper has it."""

    def dcg(gains: Sequence[bool]) -> float:
        return sum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains[:10], 1))

    return dcg(clicked) / dcg(sorted(clicked, reverse=True))


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 2)), max_size=14))
def test_ndcg_of_ties_is_its_mean_over_their_orders(rows: list[tuple[int, bool, int]]) -> None:
    expected = []
    for page in range(3):
        own = [(p, y) for p, y, u in rows if u == page][:5]
        if len({y for _, y in own}) == 2:
            orders = [sorted(rows, key=lambda row: -row[0]) for rows in permutations(own)]
            expected.append(np.mean([ndcg_in_order([y for _, y in order]) for order in orders]))
    kept = [row for page in range(3) for row in [row for row in rows if row[2] == page][:5]]
    p, y, u = (np.array([r[k] for r in kept]) for k in range(3))
    assert within(p, y, u)["ndcg"] == pytest.approx(np.mean(expected) if expected else math.nan, nan_ok=True)


def test_ndcg_counts_ten_ranks_and_each_page_alike() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 60, 50)
    page = np.repeat(rng.permutation(50), sizes)
    p, y = rng.random(len(page)), rng.random(len(page)) < 0.3
    pages = [(p[page == k], y[page == k]) for k in range(50)]
    expected = [ndcg_in_order(y[np.argsort(-p)].tolist()) for p, y in pages if 0 < y.sum() < len(y)]
    assert within(p, y, page)["ndcg"] == pytest.approx(np.mean(expected))
    assert within(y.astype(float), y, page)["ndcg"] == pytest.approx(1.0)


def test_log_loss_and_calibration() -> None:
    p, y = np.array([0.9, 0.2, 0.5]), np.array([1.0, 0.0, 1.0])
    assert log_loss(p, y) == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.5)) / 3)
    assert calibration(p, y) == pytest.approx(1.6 / 2)
    assert math.isnan(calibration(p, np.zeros(3)))
    assert math.isnan(log_loss(p[:0], y[:0]))
    assert math.isfinite(log_loss(np.array([0.0]), np.array([1.0])))


def test_rolling_figures_are_those_of_the_newest_rows() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(1000).round(2)  # with ties
    y = (rng.random(1000) < p).astype(np.float32)
    rolling = Progressive(300)
    for part in np.split(np.arange(1000), [100, 200, 650, 651, 900]):  # one of them longer than the window
        rolling.update(p[part], y[part])
    last = slice(700, None)
    assert rolling.rows == 1000
    assert rolling.auc == pytest.approx(auc(p[last], y[last]))
    assert rolling.log_loss == pytest.approx(log_loss(p[last], y[last]))
    assert rolling.calibration == pytest.approx(calibration(p[last], y[last]))


def test_before_anything_was_judged_there_are_no_figures() -> None:
    rolling = Progressive(300)
    assert all(map(math.isnan, (rolling.auc, rolling.log_loss, rolling.calibration)))


ROWS = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60)


@given(ROWS, st.integers(1, 20), st.integers(1, 30))
def test_rolling_figures_have_no_value_exactly_where_the_exact_ones_have_none(
    rows: list[tuple[int, bool]], window: int, size: int
) -> None:
    """Windows of one class too, also such as held both before."""
    p, y = (np.array([row[k] for row in rows], np.float64) for k in range(2))
    p /= 10
    rolling = Progressive(window)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        rolling.update(p[part], y[part])
    p, y = p[-window:], y[-window:]
    assert rolling.auc == pytest.approx(auc(p, y), nan_ok=True)
    assert rolling.log_loss == pytest.approx(log_loss(p, y), nan_ok=True)
    assert rolling.calibration == pytest.approx(calibration(p, y), nan_ok=True)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_no_number_counts_as_wrong(broken: float) -> None:
    p, y = np.array([0.9, broken, 0.2, broken]), np.array([1.0, 1.0, 0.0, 0.0])
    wrong = np.array([0.9, 0.0, 0.2, 1.0])
    np.testing.assert_array_equal(judged(p, y), wrong)
    rolling = Progressive(100)
    rolling.update(p, y)
    assert rolling.auc == auc(wrong, y) == 0.25
    assert rolling.log_loss == pytest.approx(log_loss(wrong, y))
    assert rolling.calibration == pytest.approx(calibration(wrong, y))


def test_grouped_auc_of_chance_is_a_half_where_a_group_is_scored_in_one_state() -> None:
    """Labels drawn at a rate per user. A score that has learnt from the group's other labels is drawn away from .5."""
    rng = np.random.default_rng(0)
    users, rows = 3000, 10
    y = (rng.random((users, rows)) < rng.random((users, 1))).astype(float)
    user = np.repeat(np.arange(users), rows)
    fixed = rng.random((users, rows))
    seen = (np.cumsum(y, 1) - y) / np.maximum(1, np.arange(rows))  # the user's click rate before each row
    error = 0.5 / np.sqrt(users)  # of a mean of AUCs, whose deviation is below a half
    assert abs(within(fixed.ravel(), y.ravel(), user)["grouped_auc"] - 0.5) < 3 * error
    assert within(seen.ravel(), y.ravel(), user)["grouped_auc"] < 0.5 - 10 * error


def test_baseline_is_the_item_rate_over_the_longest_window() -> None:
    column = baseline_column(SCHEMA)
    assert column is not None
    assert SCHEMA.layout.num_names[column] == "item_id.click_rate.7d"
    shop = shop_schema()
    column = baseline_column(shop)
    assert column is not None
    assert shop.layout.num_names[column] == "item_id.click_rate.30d"
    assert baseline_column(parse_schema('name = "x"\n[[fields]]\nname = "user_id"\nof = "user"')) is None


# -- Drift -------------------------------------------------------------------------------------------------------------
# Page means in the order of exposure; silent while nothing changes, also where a page's rows move together.


PAGE_ROWS = 10
Floats = np.ndarray[Any, Any]


def pages(n: int, rng: np.random.Generator, rate: float | None = None) -> tuple[Floats, Floats]:
    """Predictions and labels of n pages, (n, ROWS). What is clicked is what was predicted, or at ``rate``."""
    p = rng.random((n, PAGE_ROWS)) * 0.4
    return p, (rng.random((n, PAGE_ROWS)) < (p if rate is None else rate)).astype(float)


def given_scores(drift: Drift, p: Floats, y: Floats, first: int = 0) -> None:
    drift.update(p.ravel(), y.ravel(), np.repeat(first + np.arange(len(p)), PAGE_ROWS))


def test_drift_is_found_where_the_loss_changes_and_not_elsewhere() -> None:
    rng = np.random.default_rng(0)
    drift = Drift()
    given_scores(drift, *pages(2000, rng))
    assert drift.found == []
    given_scores(drift, *pages(400, rng, 0.7), first=2000)
    assert drift.found
    before, after = drift.found[0]
    assert before < 0.05 < after, "above what is expected"


def test_rows_of_a_page_that_move_together_are_one_value() -> None:
    """Whole pages clicked or not. Row by row, that looks like a change again and again."""
    rng = np.random.default_rng(1)
    y = np.repeat(rng.random((3000, 1)) < 0.5, PAGE_ROWS, 1).astype(float)
    p = np.full(y.shape, 0.3)
    by_page, by_row = Drift(), Drift()
    given_scores(by_page, p, y)
    by_row.update(p.ravel(), y.ravel(), np.arange(y.size))
    assert len(by_page.found) < len(by_row.found)
    assert (by_page.pages, by_row.pages) == (2999, y.size - 1)


def test_other_visitors_are_no_drift_where_the_predictions_are_right() -> None:
    """A small shop: forty visits at a time, some of people who click much and some of people who do not."""
    rng = np.random.default_rng(4)
    n, often = 40_000, rng.normal(0.0, 1.0, 500)
    visits = rng.integers(0, 500, 40)
    who = np.empty(n, np.intp)
    for page in range(n):
        visit = rng.integers(40)
        if rng.random() < 1 / 8:
            visits[visit] = rng.integers(500)
        who[page] = visits[visit]
    p = 1 / (1 + np.exp(2 - often[who][:, None] - rng.normal(0.0, 0.7, (n, PAGE_ROWS))))
    y = (rng.random((n, PAGE_ROWS)) < p).astype(float)
    drift = Drift()
    given_scores(drift, p, y)
    assert drift.found == []
    given_scores(drift, p[:2000], (rng.random((2000, PAGE_ROWS)) < p[:2000] * 1.5).astype(float), first=n)
    assert drift.found, "they click half as much again"


@pytest.mark.parametrize("size", [1, 7, 10, 33, 5000])
def test_it_does_not_matter_how_pages_are_cut_into_calls(size: int) -> None:
    rng = np.random.default_rng(2)
    p, y = (np.concatenate(both) for both in zip(pages(300, rng), pages(100, rng, 0.8), strict=True))
    whole, parts = Drift(), Drift()
    given_scores(whole, p, y)
    page = np.repeat(rng.permutation(1 << 20)[: len(p)].astype(np.uint64) << np.uint64(44), PAGE_ROWS)  # hashes
    for start in range(0, p.size, size):
        part = slice(start, start + size)
        parts.update(p.ravel()[part], y.ravel()[part], page[part])
    assert whole.found
    np.testing.assert_allclose(parts.found, whole.found)
    assert parts.pages == whole.pages == 399, "the last page may go on"


def test_predictions_that_are_no_numbers_count_as_wrong() -> None:
    rng = np.random.default_rng(3)
    drift = Drift()
    given_scores(drift, *pages(500, rng))
    assert drift.found == []
    p, y = pages(500, rng)
    given_scores(drift, np.where(rng.random(p.shape) < 0.5, np.nan, p), y, first=500)
    (before, after), *_ = drift.found
    assert np.isfinite(after)
    assert after > before
    drift.update(np.zeros(0), np.zeros(0), np.zeros(0))


# -- Which segments rows are in, and figures by segment against the exact ones of the same rows ------------------------


SPEC: dict[str, Any] = {"model": "wide_deep", "hidden": [16, 16], "width": 4}
NAMED = {"category": ("1", "2"), "tags": ("3",), "price": ("4",), "nothing": ("5",)}
NAMES = ["category=1", "category=2", "tags=3", "user=known", "user=new", "item=known", "item=new"]


def test_members_are_values_and_ids_met_before() -> None:
    segments, model = Segments(SCHEMA, NAMED), OnlineModel(SCHEMA, SPEC, 0)
    assert segments.names == NAMES

    def members(batch: SampleBatch) -> np.ndarray[Any, Any]:
        masks = segments.members(batch, model)
        return masks[:, None] >> np.arange(len(NAMES), dtype=np.uint64) & np.uint64(1) > 0

    first, second = make_samples(60, 0, users=20), make_samples(200, 1, users=200)
    assert not members(first)[:, [3, 5]].any()
    model.learn(first)
    rows, found = model.rows, members(second)
    assert model.rows == rows
    category = (np.flatnonzero(np.isin(second.item, column_hash(np.arange(5, 31, 5)))), 0)  # item % 5 + 1
    assert found[category].all()
    assert found[:, 0].sum() == len(category[0])
    np.testing.assert_array_equal(found[:, 3], np.isin(second.user, first.user))
    np.testing.assert_array_equal(found[:, 4], ~found[:, 3])
    np.testing.assert_array_equal(found[:, 5], np.isin(second.item, first.item))
    assert 0 < found[:, 3].sum() < 200


def test_figures_are_the_exact_ones_of_the_rows_in_each_segment() -> None:
    rng = np.random.default_rng(0)
    segments = Segments(SCHEMA, NAMED)
    p = rng.random(1000)
    y = (rng.random(1000) < p).astype(np.float32)
    members = rng.random((1000, len(NAMES))) < 0.3
    members[:, 1] = False
    masks = (members << np.arange(len(NAMES))).sum(1).astype(np.uint64)
    figures = segments.metrics(p, y, masks)
    for column, name in enumerate(NAMES):
        own = np.flatnonzero(members[:, column])
        expected = (auc(p[own], y[own]), log_loss(p[own], y[own]), calibration(p[own], y[own]))
        found = figures[name]
        np.testing.assert_allclose((found.auc, found.log_loss, found.calibration), expected)
        assert found.rows == len(own)
    assert np.isnan(figures["category=2"].auc)


def test_a_mask_holds_the_most_segments_that_can_be_named() -> None:
    most = tuple(str(i) for i in range(50))
    segments, batch = Segments(SCHEMA, {"category": most}), make_samples(50, 0)
    assert len(segments.names) == 54
    members = segments.members(batch, OnlineModel(SCHEMA, SPEC, 0))
    figures = segments.metrics(batch.label, batch.label, members)
    assert sum(figures[f"category={i}"].rows for i in most) == figures["item=new"].rows == 50
    assert figures["item=known"].rows == 0
    with pytest.raises(SettingError, match="segments names more than 50 values"):
        Segments(SCHEMA, {"category": (*most, "50")})


def test_the_trainer_looks_at_ids_before_it_learns_them() -> None:
    served = ServedExposures(SCHEMA, Segments(SCHEMA, NAMED), Waits(0, 0, 0), 1000)
    trainer = Trainer(OnlineModel(SCHEMA, SPEC, 0), Progressive(1000), Repeats(10**9), 64, served)
    for seed in (0, 1):
        batch = make_samples(64, seed)
        trainer.take(replace(batch, score=batch.num[:, 0], version=np.ones(64, np.int64)))
        trainer.step()
        served.settle()
        figures = served.by_segment()
        if not seed:
            assert figures["user=new"].rows == 64
    assert figures["user=known"].rows > 32
    assert figures["user=known"].rows + figures["user=new"].rows == served.figures("model")["rows"] == 128
