"""Figures of merit against counting pairs, rolling ones against the exact ones of the same window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from learner.evaluation.progressive import Progressive, baseline_column
from millrace.basics.ranking_metrics import auc, calibration, judged, log_loss, within
from millrace.contracts.schema import parse_schema, shop_schema
from tests.scenes.learning import SCHEMA

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
