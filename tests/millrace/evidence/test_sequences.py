"""Bands that hold at every look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.evidence.sequences import (
    BEST_AT,
    ERROR,
    LEAST,
    NOTHING,
    Estimate,
    band,
    difference,
    error_each,
    gap,
    half_width,
    ratio,
)
from tests.scenes.exploring import examples

TESTS, USERS, EVERY = 1000, 3000, 100


def winners(lift: float) -> tuple[float, float]:
    """Of 1,000 tests of two arms that are looked at 29 times: the share in which a band decides, and in which an
    interval of 95% that is made for one look does. Users come again and again, and click by their own taste."""
    rng = np.random.default_rng(4)
    treated = rng.random((TESTS, USERS)) < 0.3
    pages = 1.0 + rng.poisson(2, (TESTS, USERS))
    taste = np.minimum(rng.gamma(0.5, 0.2, (TESTS, USERS)) * np.where(treated, 1 + lift, 1), 1)
    clicks = rng.binomial(pages.astype(int), taste).astype(float)
    decided = naive = 0
    for t in range(TESTS):
        late = early = False
        for n in range(2 * EVERY, USERS + 1, EVERY):
            mine, c, d = treated[t, :n], clicks[t, :n], pages[t, :n]
            one, other = ratio(c[mine], d[mine]), ratio(c[~mine], d[~mine])
            late |= difference(one, other).decided
            if min(one.n, other.n) >= LEAST:
                error = math.sqrt(one.variance / one.n + other.variance / other.n)
                early |= abs(one.value - other.value) > 1.96 * error
        decided += late
        naive += early
    return decided / TESTS, naive / TESTS


def test_equal_arms_have_at_most_one_false_winner_in_twenty_however_often_one_looks() -> None:
    false, naive = winners(0.0)
    assert false <= 0.05 + 1.64 * math.sqrt(0.05 * 0.95 / TESTS), "5%, within the error of 1,000 tests"
    assert naive > 0.15, "an interval for one look is looked at too often"


def test_a_better_arm_is_found() -> None:
    assert winners(0.5)[0] > 0.9


@examples(50)
@given(n=st.integers(1, 10**6), variance=st.floats(1e-6, 1e3), error=st.floats(0.001, 0.5))
def test_a_band_is_that_of_a_normal_mixture(n: int, variance: float, error: float) -> None:
    """As the package `ville` writes it: sqrt((n + rho) log((n + rho) / (rho error^2))) over n."""
    ville = pytest.importorskip("ville._boundaries", reason="the package ville is not installed")
    rho = BEST_AT / (-2 * math.log(error) + math.log(1 - 2 * math.log(error)))
    theirs = math.sqrt(variance) * float(ville.normal_mixture(float(n), error, rho)) / n
    assert math.isclose(half_width(n, variance, error), theirs, rel_tol=1e-9)


def test_a_band_is_tightest_near_the_units_that_it_is_made_for() -> None:
    at = [half_width(BEST_AT, 1.0, best_at=m) for m in (BEST_AT / 100, BEST_AT, BEST_AT * 100)]
    assert at[1] < min(at[0], at[2])


def test_a_ratio_has_the_error_of_its_linearised_mean() -> None:
    rng = np.random.default_rng(0)
    values = []
    for _ in range(2000):
        pages = 1.0 + rng.poisson(2, 400)
        values.append(ratio(rng.binomial(pages.astype(int), rng.beta(1, 5, 400)), pages))
    told = np.mean([one.variance / one.n for one in values])
    assert math.isclose(told, np.var([one.value for one in values]), rel_tol=0.1)
    plain = ratio([1.0, 2.0, 6.0])
    assert (plain.value, plain.n) == (3.0, 3)
    assert math.isclose(plain.variance, 14 / 3)


def test_nothing_is_said_of_few_units_or_of_few_that_decide() -> None:
    few, rare = ratio(np.ones(LEAST - 1)), ratio(np.arange(10 * LEAST) < LEAST - 1)
    enough = ratio(np.arange(2 * LEAST) % 2)
    assert [one.said for one in (few, rare, enough)] == [False, False, True]
    assert (few.effective, rare.effective, enough.effective) == pytest.approx((LEAST - 1, LEAST - 1, LEAST))
    one_large = np.append(np.ones(3 * LEAST), 10.0 * LEAST)
    assert not ratio(one_large).said, "one decides"
    assert not ratio(np.ones(len(one_large)), one_large).said, "one has nearly all pages"
    assert band(few) == band(rare) == difference(enough, rare) == NOTHING
    assert not NOTHING.decided
    none = ratio([], [])
    assert (math.isnan(none.value), none.n, none.said) == (True, 0, False)
    assert not ratio([0.0], [0.0]).said
    assert band(Estimate(1.0, 10_000, 1.0, LEAST)).decided


def test_an_arm_has_at_least_the_others_variance_at_its_own_mean() -> None:
    small, large = Estimate(1.0, 100, 1.0, LEAST), Estimate(2.0, 900, 16.0, LEAST)
    found = gap(large, small)
    assert (found.value, found.n) == (1.0, 1000)
    assert math.isclose(found.variance, 1000 * (16 / 900 + 4 / 100)), "half the mean has a quarter of the variance"
    assert math.isclose(gap(small, large).variance, found.variance)
    seen = Estimate(1.0, 100, 25.0, LEAST)
    assert math.isclose(gap(seen, large).variance, 1000 * (25 / 100 + 25 / 900))
    never = Estimate(0.0, 100, 0.0, LEAST)
    assert math.isclose(gap(never, large).variance, 1000 * 16 / 900)


def test_arms_share_the_error() -> None:
    assert [error_each(arms) for arms in (1, 2, 6)] == [ERROR, ERROR, ERROR / 5]
    one, other = Estimate(1.0, 1000, 1.0, LEAST), Estimate(1.1, 1000, 1.0, LEAST)
    wide, narrow = difference(one, other, error_each(6)), difference(one, other)
    assert wide.low < narrow.low < narrow.high < wide.high
