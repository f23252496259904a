"""Evidence of looks: what it says, by the plain product; how often it is wrong, and how soon it is right, by simulated
streams with fixed seeds. By the null, at most a share s/T of looks with the stake s may have an alarm."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from millrace.evidence.clusters import clusters
from millrace.evidence.edetector import FRACTIONS, EvidenceError, evidence

Numbers = NDArray[np.float64]
Rng = np.random.Generator

M, B = 0.01, 0.1
T = 100.0  # hours
STREAMS = 400
SLACK = 2 / math.sqrt(STREAMS)  # four standard errors of a share, at most


def look(x: Numbers, bounds: Numbers | float = B, stake: float = 1.0) -> Numbers:
    return evidence(x, np.broadcast_to(bounds, x.shape), stake, M, B)


# -- what it says ---------------------------------------------------------------------------------------------


def test_the_evidence_is_the_product_of_what_each_bet_leaves() -> None:
    rng = np.random.default_rng(0)
    bounds = B * rng.choice([0.3, 1.0, 6.0], 60)
    x = rng.uniform(-bounds, bounds)
    by_hand = []
    for k in range(1, len(x) + 1):
        each = (
            math.prod(1 + min(f / (B + M), 0.9 / (own + M)) * (v - M) for v, own in zip(x[:k], bounds, strict=False))
            for f in FRACTIONS
        )
        by_hand.append(math.log(0.3 * sum(each) / len(FRACTIONS)))
    np.testing.assert_allclose(look(x, bounds, 0.3), by_hand, rtol=1e-9)


def test_numbers_at_their_bounds_leave_finite_evidence_behind_many_of_them() -> None:
    assert np.isfinite(look(np.full(50_000, -B))).all()
    found = look(np.full(50_000, B))
    assert np.isfinite(found).all()
    assert found[-1] > math.log(T)


def test_what_is_not_within_its_bounds_is_named() -> None:
    for x in ([0.05, 0.2], [float("nan")]):
        with pytest.raises(EvidenceError, match="give bounds that hold"):
            look(np.array(x))
    with pytest.raises(EvidenceError, match=r"mean of 0\.3 where 0\.2 is the bound"):
        look(np.array([0.05, 0.3]), np.array([0.1, 0.2]))


# -- how often it is wrong ------------------------------------------------------------------------------------

STAKE = 10.0  # hours


def share_of_alarms(stream: Callable[[Rng, int], Numbers], clusters: int = 800) -> float:
    """Of many looks, each at another stream of so many clusters."""
    rngs = (np.random.default_rng([7, number]) for number in range(STREAMS))
    return float(np.mean([look(stream(rng, clusters), stake=STAKE).max() >= math.log(T) for rng in rngs]))


def even(rng: Rng, n: int) -> Numbers:
    """Either bound: as wide as it can be, its mean just m."""
    return np.where(rng.random(n) < (1 + M / B) / 2, B, -B)


def rare(rng: Rng, n: int) -> Numbers:
    """Much above it, seldom; a little below mostly."""
    return np.where(rng.random(n) < 0.05, B, (M - 0.05 * B) / 0.95)


def nights_and_sales(rng: Rng, n: int) -> Numbers:
    """Loss of one probability less that of another, for click rates that change all the time: the mean is just m."""
    hour = np.arange(n) / n * 4 * np.pi
    rate = 0.1 + 0.08 * np.sin(hour) + 0.4 * (np.sin(hour / 3) > 0.9)  # both predict half of it too much or too little
    spread = 0.06 * rng.random(n)  # how far the two are apart at this page
    return np.where(rng.random(n) < rate, spread * (1 - rate), -spread * rate) + M


def against_it(rng: Rng, n: int) -> Numbers:
    """Whoever makes it knows the evidence, and picks what is most likely to bring an alarm: wide steps while there is
    little, then narrow ones with a mean of m, and never more than m."""
    x = np.empty(n)
    level, draws = 0.0, rng.random(n)
    for k in range(n):
        wide = level < math.log(T) - 1
        up = B if wide else 0.5 * B
        down = -B if wide else M - 0.1 * B
        x[k] = up if draws[k] < (M - down) / (up - down) else down
        level = max(0.0, level + math.log1p(0.25 / (B + M) * (x[k] - M)))
    return x


def far_below_then_just_m(rng: Rng, n: int) -> Numbers:
    """Better by far for half of the time: what it is good for is not saved up against what comes."""
    return np.where(np.arange(n) < n // 2, -B / 2, even(rng, n))


def rows_of_clusters(rng: Rng, n: int, size: int = 10) -> Numbers:
    """Rows (n * size,) of which those of a cluster are all but equal."""
    return np.repeat(even(rng, n), size)


def means_of_clusters(rng: Rng, n: int) -> Numbers:
    page = np.repeat(np.arange(n, dtype=np.uint64), 10)
    return clusters(page, np.zeros_like(page)).means(rows_of_clusters(rng, n)).clip(-B, B)


def of_widths(rng: Rng, n: int) -> tuple[Numbers, Numbers]:
    """Numbers with a mean of just m and the bound of each, some of them far beyond B."""
    bounds = B * rng.choice([0.5, 1.0, 8.0], n)
    return np.where(rng.random(n) < (1 + M / bounds) / 2, bounds, -bounds), bounds


NULLS = (even, rare, nights_and_sales, against_it, far_below_then_just_m, means_of_clusters)


@pytest.mark.parametrize("stream", NULLS, ids=[stream.__name__ for stream in NULLS])
def test_a_look_gives_a_false_alarm_as_seldom_as_is_stated(stream: Callable[[Rng, int], Numbers]) -> None:
    assert share_of_alarms(stream) <= STAKE / T + SLACK


@pytest.mark.parametrize("clusters", [100, 4000])
def test_the_stated_time_holds_at_any_traffic(clusters: int) -> None:
    assert share_of_alarms(even, clusters) <= STAKE / T + SLACK


def test_clusters_with_bounds_of_their_own_keep_the_stated_time() -> None:
    looks = (look(*of_widths(np.random.default_rng([17, number]), 800), STAKE) for number in range(STREAMS))
    assert np.mean([found.max() >= math.log(T) for found in looks]) <= STAKE / T + SLACK


def test_the_bound_is_near_enough_to_fail_where_dependence_is_left_out() -> None:
    each_row = share_of_alarms(lambda rng, n: rows_of_clusters(rng, -(-n // 10))[:n], 4000)
    assert each_row > STAKE / T + SLACK, "each row was taken for a cluster"
    assert share_of_alarms(lambda rng, n: np.minimum(even(rng, n) + 0.03, B)) > STAKE / T + SLACK, "above m"


def test_looks_at_the_same_clusters_with_ever_other_candidates_keep_the_stated_time() -> None:
    """Labels of 60 clusters are judged by for 50 hours. Each two hours another candidate is laid over them."""
    found = np.full(STREAMS, np.inf)
    for number in range(STREAMS):
        rng = np.random.default_rng([15, number])
        labels = np.where(rng.random(60) < 0.5, 1.0, -1.0)
        for hour in range(2, 52, 2):
            x = M + (B - M) * labels * np.where(rng.random(60) < 0.5, 1.0, -1.0)
            if look(x, stake=2.0).max() >= math.log(T):
                found[number] = hour
                break
    assert (found <= 50).mean() > 0.05, "near enough to the bound for it to say something"
    assert all((found <= share * T).mean() <= share + SLACK for share in (0.1, 0.25, 0.5))


# -- how soon it is right -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("above", "stake"), [(0.02, 0.125), (0.02, 0.00125), (0.05, 0.125)])
def test_what_is_worse_is_found_about_as_soon_as_is_stated(above: float, stake: float) -> None:
    spread = 0.03
    bets = FRACTIONS / (B + M)
    growth = (bets * above - bets**2 * (spread**2 + above**2) / 2).max()
    stated = (math.log(T / stake) + math.log(len(FRACTIONS))) / growth  # clusters
    needed = []
    for number in range(STREAMS):
        x = np.random.default_rng([7, number]).normal(M + above, spread, round(6 * stated)).clip(-B, B)
        over = np.flatnonzero(look(x, stake=stake) >= math.log(T))
        needed.append(over[0] + 1)
    assert 0.5 * stated < np.mean(needed) < 1.3 * stated
    assert np.quantile(needed, 0.95) < 2 * stated
