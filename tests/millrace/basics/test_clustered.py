"""Gaps with intervals over users: the figures are those of the plain functions, the intervals those of a bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.clustered import FEWEST, PARTS, auc_parts, gap, quantile, user_numbers
from millrace.basics.ranking_metrics import auc, calibration, log_loss
from tests.scenes.exploring import examples

PLAIN = {"auc": auc, "log_loss": log_loss, "calibration": calibration}


def scene(users: int = 300, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(p, q, y, user): p knows more than q; a user's rows share luck, so that rows are not independent."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rng.integers(2, 20, users))
    bent = rng.normal(0, 1, users)[user]
    own = rng.normal(0, 1, len(user))
    chance = 1 / (1 + np.exp(1.5 - bent - own))
    y = (rng.random(len(user)) < chance).astype(np.int8)
    p = 1 / (1 + np.exp(1.5 - own - 0.6 * bent))
    q = np.round(1 / (1 + np.exp(1.5 - own)), 2)  # with ties
    return p, q, y, user


@examples(60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=40))
def test_figures_are_those_of_the_plain_functions_and_parts_add_up_to_nothing(rows: list[tuple[int, int]]) -> None:
    p = np.array([r[0] for r in rows]) / 7 + 0.1
    y = np.array([r[1] for r in rows])
    for key, parts in PARTS.items():
        value, each = parts(p, y)
        assert value == PLAIN[key](p, y) or (math.isnan(value) and math.isnan(PLAIN[key](p, y)))
        if math.isfinite(value):
            assert each.sum() == pytest.approx(0, abs=1e-12)


def test_a_rows_part_is_what_the_plain_definition_says() -> None:
    p, _, y, _ = scene(20)
    value, each = auc_parts(p, y)
    clicked, others = p[y == 1], p[y == 0]
    for i in range(len(p)):
        if y[i]:
            share = np.mean((others < p[i]) + 0.5 * (others == p[i]))
            assert each[i] == pytest.approx((share - value) / len(clicked))
        else:
            share = np.mean((clicked > p[i]) + 0.5 * (clicked == p[i]))
            assert each[i] == pytest.approx((share - value) / len(others))


@pytest.mark.parametrize("key", list(PARTS))
def test_the_interval_is_that_of_a_bootstrap_over_users(key: str) -> None:
    p, q, y, user = scene()
    found = gap(PARTS[key](p, y), PARTS[key](q, y), y, user)
    assert found.value == pytest.approx(PLAIN[key](p, y) - PLAIN[key](q, y))
    rng = np.random.default_rng(3)
    rows_of = [np.flatnonzero(user == u) for u in range(int(user.max()) + 1)]
    drawn = []
    for _ in range(400):
        rows = np.concatenate([rows_of[u] for u in rng.integers(len(rows_of), size=len(rows_of))])
        drawn.append(PLAIN[key](p[rows], y[rows]) - PLAIN[key](q[rows], y[rows]))
    assert found.half == pytest.approx(1.96 * np.std(drawn), rel=0.15)
    alone = gap(PARTS[key](p, y), PARTS[key](q, y), y, np.arange(len(y)))
    if key == "calibration":
        assert alone.half < 0.85 * found.half, "rows that are taken for independent would promise too much"


def test_equal_scores_have_no_gap_and_one_user_has_no_interval() -> None:
    p, _, y, user = scene(30)
    same = gap(auc_parts(p, y), auc_parts(p, y), y, user)
    assert (same.value, same.half, same.is_significant) == (0.0, 0.0, False)
    assert math.isnan(gap(auc_parts(p, y), auc_parts(p[::-1], y), y, np.zeros(len(y), np.intp)).half)


def test_users_are_numbered_alike_whether_encoded_or_not_and_however_chunked() -> None:
    names = ["b", "a", "b", "c", "a", "c"]
    for column in (
        pa.chunked_array([names]),
        pa.chunked_array([names[:2], names[2:]]),
        pa.chunked_array([pa.array(names[:2]).dictionary_encode(), pa.array(names[2:]).dictionary_encode()]),
    ):
        numbers = user_numbers(column)
        assert len(set(numbers.tolist())) == 3
        assert [numbers[i] == numbers[j] for i in range(6) for j in range(i)] == [
            names[i] == names[j] for i in range(6) for j in range(i)
        ]


@pytest.mark.parametrize(("users", "tail"), [(6, 0.3), (10, 1.3)], ids=["few users", "some with most rows"])
def test_intervals_of_few_users_cover(users: int, tail: float) -> None:
    """Many small logs of one world: nearly all of their intervals have the world's own gap, and fewer of those that a
    normal distribution would give. The gains of users are even here: where one user gains many times what others do,
    no interval of ten users knows it (docs/how-to/measure-freshness.md has figures)."""

    def log_of(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        user = np.repeat(np.arange(users), np.ceil(rng.lognormal(2.5, tail, users)).astype(int))
        bent, own, luck = (rng.normal(0, 1, users)[user], rng.normal(0, 1, len(user)), rng.normal(0, 0.5, users)[user])
        y = (rng.random(len(user)) < 1 / (1 + np.exp(1 - bent - own))).astype(np.int8)
        p, q = 1 / (1 + np.exp(1 - own)), 1 / (1 + np.exp(1 - own - luck))
        return p, q, y, user

    p, q, y, _ = log_of(np.random.default_rng(0), 20_000)
    true = log_loss(p, y) - log_loss(q, y)
    covered, by_normal = [], []
    for seed in range(1, 401):
        p, q, y, user = log_of(np.random.default_rng(seed), users)
        found = gap(PARTS["log_loss"](p, y), PARTS["log_loss"](q, y), y, user)
        if math.isnan(found.half):
            continue  # fewer than five of six users have clicked
        covered.append(abs(found.value - true) <= found.half)
        narrow = quantile(0.975, math.inf) / quantile(0.975, found.freedom)
        by_normal.append(abs(found.value - true) <= found.half * narrow)
    assert len(covered) > 300
    assert np.mean(covered) > 0.91
    assert np.mean(by_normal) < 0.89


@pytest.mark.parametrize("few_clicked", [True, False])
def test_many_users_tell_little_where_few_have_clicked_or_have_not(few_clicked: bool) -> None:
    """Five hundred users, of whom a few alone make the AUC's spread."""
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(500), 4)
    p, q = rng.random((2, len(user)))
    for clickers in (FEWEST - 1, FEWEST, 50):
        y = ((user < clickers) & (np.arange(len(user)) % 4 < 2)).astype(np.int8)  # a clicker clicks half of his
        y = y if few_clicked else 1 - y
        found = gap(auc_parts(p, y), auc_parts(q, y), y, user)
        if clickers < FEWEST:
            assert math.isfinite(found.value)
            assert math.isnan(found.half)
            assert not found.is_significant
        else:
            assert found.half > 0
            assert found.freedom == clickers - 1


def test_the_best_of_many_has_a_wider_interval() -> None:
    p, q, y, user = scene(30)
    found = gap(auc_parts(p, y), auc_parts(q, y), y, user)
    assert found.half_of_best(1) == pytest.approx(found.half)
    assert found.half_of_best(20) > 1.4 * found.half
