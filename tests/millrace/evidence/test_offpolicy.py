"""Off-policy estimators: against Open Bandit Pipeline on its own logs, and against all pages that can be drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from millrace.evidence.offpolicy import (
    Numbers,
    cascade_dr,
    dros,
    effective,
    ips,
    order_odds,
    shrinkage,
    slots,
    snips,
    weights,
)
from tests.scenes.open_bandit import FILE, SHRINK


@pytest.fixture(scope="module")
def log() -> dict[str, np.ndarray]:
    with np.load(FILE) as kept:
        return dict(kept)


def test_single_slots_are_judged_as_by_open_bandit_pipeline(log: dict[str, np.ndarray]) -> None:
    place = log["action"], log["position"]
    r = log["reward"].astype(np.float64)
    w, q, v = log["policy"][place] / log["pscore"], log["q"][place], (log["policy"] * log["q"]).sum(0)[log["position"]]
    assert r.sum() > 10, "there are clicks to count"
    found = {
        "ips": ips(w, r),
        "snips": snips(w, r),
        "dm": dros(w, r, q, v, 0.0),
        "dr": dros(w, r, q, v),
        "dros": dros(w, r, q, v, SHRINK),
    }
    for name, numbers in found.items():
        assert math.isclose(numbers.mean(), log[name], rel_tol=1e-6), name
    assert len({round(float(log[name]), 7) for name in found}) == 5, "they say different things"


def test_slates_are_judged_as_by_open_bandit_pipeline(log: dict[str, np.ndarray]) -> None:
    of = [np.flatnonzero(log["position"] == k) for k in range(3)]
    rows = np.stack([one[: min(map(len, of))] for one in of], axis=1)
    at, action = np.arange(3), log["action"][rows]
    r = log["reward"][rows].astype(np.float64)
    alone = log["policy"][action, at] / log["pscore"]
    above, q = np.cumprod(alone, axis=1), log["q"][action, at]
    v = np.broadcast_to((log["policy"] * log["q"]).sum(0), q.shape)
    found = {
        "slate_ips": ips(above[:, -1], r.sum(1)),
        "iips": slots(alone, r),
        "rips": slots(above, r),
        "cascade_dr": cascade_dr(above, r, q, v),
    }
    for name, numbers in found.items():
        assert math.isclose(numbers.mean(), log[name], rel_tol=1e-6), name
    assert len({round(float(log[name]), 7) for name in found}) == 4, "they say different things"


def drawn_rows(n: int, m: int, seed: int) -> tuple[Numbers, np.ndarray]:
    """n rows of the first m of 6 items of different strengths, drawn without replacement: odds and items."""
    rng, strength = np.random.default_rng(seed), np.array([5.0, 3.0, 2.0, 1.0, 1.0, 0.2])
    items = np.argsort(-(np.log(strength) + rng.gumbel(size=(n, 6))), axis=1)
    theirs = strength[items]
    return (theirs / np.cumsum(theirs[:, ::-1], axis=1)[:, ::-1])[:, :m], items[:, :m]


def test_odds_of_an_order_given_the_items_are_how_often_it_comes() -> None:
    odds, items = drawn_rows(200_000, 3, 0)
    mine = (np.sort(items, axis=1) == [0, 2, 4]).all(1)
    found, own = order_odds(odds[mine]), items[mine]
    for order in ((0, 2, 4), (4, 2, 0), (2, 4, 0)):
        same = own == order
        here = np.flatnonzero(same.all(1))[0]
        for name, held in (("above", np.logical_and.accumulate(same, axis=1)), ("alone", same)):
            np.testing.assert_allclose(getattr(found, name)[here], held.mean(0), atol=4 * math.sqrt(0.25 / len(own)))


def test_weights_of_an_order_add_up_to_the_number_of_rows() -> None:
    odds, items = drawn_rows(100_000, 3, 1)
    w = weights(order_odds(odds), np.argsort(items, axis=1))
    for one in (*w.above.T, *w.alone.T):
        assert abs(one.mean() - 1) < 4 * one.std() / math.sqrt(len(one))


def test_a_set_of_all_items_and_one_of_equal_ones() -> None:
    all_of_them = order_odds(np.array([[0.5, 2 / 3, 1.0]]))  # strengths 3, 2, 1
    np.testing.assert_allclose(all_of_them.above, [[1 / 2, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(all_of_them.alone[0, 0], 0.5)
    equal = order_odds(np.array([[1 / 9, 1 / 8, 1 / 7, 1 / 6]]))
    np.testing.assert_allclose(equal.alone, np.full((1, 4), 1 / 4))
    np.testing.assert_allclose(equal.above, [[1 / 4, 1 / 12, 1 / 24, 1 / 24]])


def test_effective_size_counts_equal_weights() -> None:
    assert effective(np.array([0.0, 6.0, 6.0, 0.0])) == 2
    assert effective(np.zeros(3)) == 0
    assert effective(np.array([1.0, 1.0, 1.0, 100.0])) < 1.1


def test_shrinkage_gives_in_to_noise_and_not_to_evidence() -> None:
    rng, q, n = np.random.default_rng(0), np.full(400, 0.1), 400
    errors = []
    for _ in range(200):
        w = rng.lognormal(-2, 2, n)  # of mean 1
        r = (rng.random(n) < 0.1).astype(float)
        shrunk = dros(w, r, q, q, shrinkage(w, r, q, q)).mean()
        errors.append((shrunk - 0.1, dros(w, r, q, q).mean() - 0.1))
    of_shrunk, of_plain = np.mean(np.square(errors), axis=0)
    assert of_shrunk < of_plain / 2, "the estimates are right, so weights only add noise"
    w = rng.lognormal(-0.5, 1, n)
    r = (rng.random(n) < 0.9).astype(float)  # the estimates are far off: weights must make it good
    assert abs(dros(w, r, q, q, shrinkage(w, r, q, q)).mean() - 0.9) < 0.2 < abs(q.mean() - 0.9)
    assert shrinkage(np.zeros(3), q[:3], q[:3], q[:3]) == 0


def test_no_row_in_the_order_that_is_judged_is_no_number() -> None:
    assert np.isnan(snips(np.zeros(4), np.ones(4))).all()
