"""The e-detector: what it says, by the plain double sum; how often it is wrong, and how soon it is right, by simulated
streams with fixed seeds. By the null, at most a share t/T of the streams may have an alarm by time t, for each t."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from millrace.evidence.clusters import clusters
from millrace.evidence.edetector import FRACTIONS, EDetector, EvidenceError

Numbers = NDArray[np.float64]
Rng = np.random.Generator

M, B = 0.01, 0.1
T = 100.0  # hours
STREAMS = 400
SLACK = 2 / math.sqrt(STREAMS)  # four standard errors of a share, at most


def by_hand(x: Numbers, s: Numbers, bounds: Numbers) -> Numbers:
    """log R behind each number, by the sum over all beginnings."""
    out = []
    for k in range(1, len(x) + 1):
        total = 0.0
        for fraction in FRACTIONS:
            factors = [
                1 + min(fraction / (B + M), 0.9 / (own + M)) * (v - M) for v, own in zip(x[:k], bounds, strict=False)
            ]
            total += sum(s[j] / len(FRACTIONS) * math.prod(factors[j:]) for j in range(k))
        out.append(math.log(total) if total else -math.inf)
    return np.array(out)


# -- what it says ---------------------------------------------------------------------------------------------


def test_the_evidence_is_the_sum_over_all_beginnings_however_the_stream_is_cut() -> None:
    rng = np.random.default_rng(0)
    s, bounds = rng.exponential(0.3, 60), B * rng.choice([0.3, 1.0, 6.0], 60)
    x = rng.uniform(-bounds, bounds)
    s[[0, 7]] = 0.0
    whole, pieces = EDetector(M, B, T), EDetector(M, B, T)
    found = whole.update(x, s, bounds)
    np.testing.assert_allclose(found, by_hand(x, s, bounds), rtol=1e-9)
    cuts = ((0, 1), (1, 1), (1, 25), (25, 60))
    cut = np.concatenate([pieces.update(x[i:j], s[i:j], bounds[i:j]) for i, j in cuts])
    np.testing.assert_allclose(cut, found, rtol=1e-9)
    assert whole.log_evidence == pytest.approx(found[-1])


def test_numbers_at_their_bounds_leave_finite_evidence_behind_many_of_them() -> None:
    detector = EDetector(M, B, T)
    assert np.isfinite(detector.update(np.full(50_000, -B))).all()
    assert not detector.alarm
    assert np.isfinite(detector.update(np.full(50_000, B))).all()
    assert detector.alarm


def test_an_alarm_stays() -> None:
    detector = EDetector(M, B, T)
    detector.update(np.concatenate([np.full(50, B), np.full(500, -B)]))
    assert detector.log_evidence < math.log(T)
    assert detector.alarm


def test_what_is_not_within_its_bounds_is_named_and_changes_nothing() -> None:
    detector = EDetector(M, B, T)
    before = detector.update([0.01, 0.02])[-1]
    for x, elapsed in (([0.05, 0.2], 1.0), ([float("nan")], 1.0), ([0.05], -1.0), ([0.05], float("inf"))):
        with pytest.raises(EvidenceError, match="order of time"):
            detector.update(x, elapsed)
    with pytest.raises(EvidenceError, match=r"mean of 0\.3 where 0\.2 is the bound"):
        detector.update([0.05, 0.3], 1.0, [0.1, 0.2])
    assert detector.log_evidence == before
    for difference, bound, mean_time in ((0.1, 0.1, 1.0), (0.0, 0.1, 0.0), (float("nan"), 0.1, 1.0)):
        with pytest.raises(EvidenceError, match="above the difference"):
            EDetector(difference, bound, mean_time)


# -- how often it is wrong ------------------------------------------------------------------------------------


def first_alarms(stream: Callable[[Rng, int], Numbers], an_hour: float, hours: float = T) -> Numbers:
    """The hour of the first alarm in each of many streams of that many hours; infinite where there is none. Clusters
    come at random times, ``an_hour`` of them on average."""
    found = np.full(STREAMS, np.inf)
    for number in range(STREAMS):
        rng = np.random.default_rng([7, number])
        s = rng.exponential(1 / an_hour, round(an_hour * hours))
        over = np.flatnonzero(EDetector(M, B, T).update(stream(rng, len(s)), s) >= math.log(T))
        if len(over):
            found[number] = s[: over[0] + 1].sum()
    return found


def kept(alarms: Numbers) -> bool:
    """Whether at most t/T of the streams have an alarm by t."""
    return all((alarms <= share * T).mean() <= share + SLACK for share in (0.1, 0.25, 0.5, 0.75))


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


def test_clusters_with_bounds_of_their_own_keep_the_stated_time() -> None:
    found = np.full(STREAMS, np.inf)
    for number in range(STREAMS):
        x, bounds = of_widths(np.random.default_rng([17, number]), round(8 * T))
        over = np.flatnonzero(EDetector(M, B, T).update(x, 1 / 8, bounds) >= math.log(T))
        if len(over):
            found[number] = (over[0] + 1) / 8
    assert kept(found)


NULLS = (even, rare, nights_and_sales, against_it, far_below_then_just_m, means_of_clusters)


@pytest.mark.parametrize("stream", NULLS, ids=[stream.__name__ for stream in NULLS])
def test_false_alarms_come_at_most_once_in_the_stated_time(stream: Callable[[Rng, int], Numbers]) -> None:
    assert kept(first_alarms(stream, an_hour=8))


@pytest.mark.parametrize("an_hour", [1, 40])
def test_the_stated_time_holds_at_any_traffic(an_hour: int) -> None:
    assert kept(first_alarms(even, an_hour))


def test_the_bound_is_near_enough_to_fail_where_dependence_is_left_out() -> None:
    alarms = first_alarms(lambda rng, n: rows_of_clusters(rng, -(-n // 10))[:n], an_hour=40)
    assert not kept(alarms), "each row was taken for a cluster"
    assert not kept(first_alarms(lambda rng, n: np.minimum(even(rng, n) + 0.03, B), an_hour=8)), "above m"


def test_looks_at_the_same_clusters_with_ever_other_candidates_keep_the_stated_time() -> None:
    """Labels of 60 clusters are judged by for 50 hours. Each two hours another candidate is laid over them."""
    found = np.full(STREAMS, np.inf)
    for number in range(STREAMS):
        rng = np.random.default_rng([15, number])
        labels = np.where(rng.random(60) < 0.5, 1.0, -1.0)
        for look in range(25):
            x = M + (B - M) * labels * np.where(rng.random(60) < 0.5, 1.0, -1.0)
            detector = EDetector(M, B, T)
            detector.update(x, np.append(2.0, np.zeros(59)))
            if detector.alarm:
                found[number] = 2.0 * (look + 1)
                break
    assert (found <= 50).mean() > 0.05, "near enough to the bound for it to say something"
    assert kept(found)


def test_behind_an_alarm_another_begins_and_the_mean_time_holds_over_a_long_life() -> None:
    alarms, hours = 0, 0.0
    for number in range(40):
        rng, detector = np.random.default_rng([9, number]), EDetector(M, B, T)
        for _ in range(200):
            s = rng.exponential(1 / 8, 40)
            detector.update(even(rng, 40), s)
            hours += s.sum()
            if detector.alarm:
                alarms += 1
                detector = EDetector(M, B, T)
    assert 0 < alarms <= hours / T * 1.1


# -- how soon it is right -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("above", "an_hour"), [(0.02, 8), (0.02, 800), (0.05, 8)])
def test_what_is_worse_is_found_about_as_soon_as_is_stated(above: float, an_hour: int) -> None:
    spread = 0.03
    bets = FRACTIONS / (B + M)
    growth = (bets * above - bets**2 * (spread**2 + above**2) / 2).max()
    stated = (math.log(T * an_hour) + math.log(len(FRACTIONS))) / growth  # clusters

    def worse(rng: Rng, n: int) -> Numbers:
        return np.clip(rng.normal(M + above, spread, n), -B, B)

    alarms = first_alarms(worse, an_hour, hours=6 * stated / an_hour)
    assert np.isfinite(alarms).all()
    assert 0.5 * stated < alarms.mean() * an_hour < 1.3 * stated
    assert np.quantile(alarms, 0.95) * an_hour < 2 * stated


def test_a_change_late_in_a_long_life_is_found_as_soon_as_an_early_one() -> None:
    def delay(before: int) -> float:
        late = []
        for number in range(60):
            rng, detector = np.random.default_rng([11, number]), EDetector(M, B, T)
            detector.update(rng.normal(0.0, 0.02, before).clip(-B, B), 0.1)
            over = detector.update(rng.normal(0.03, 0.02, 400).clip(-B, B), 0.1) >= math.log(T)
            late.append(np.flatnonzero(over)[0])
        return float(np.mean(late))

    assert delay(5000) < delay(50) + 5


# -- what else it serves --------------------------------------------------------------------------------------


def test_with_one_stake_a_false_alarm_ever_is_as_rare_as_is_stated() -> None:
    alpha, wrong, right = 0.1, 0, 0
    once = np.append(1.0, np.zeros(1999))
    for number in range(STREAMS):
        rng = np.random.default_rng([13, number])
        for better, count in ((0.0, 0), (0.03, 1)):
            test = EDetector(M, B, 1 / alpha)
            test.update((rng.normal(M + better, 0.05, 2000)).clip(-B, B) * 0.9, once)
            wrong += test.alarm * (1 - count)
            right += test.alarm * count
    assert wrong / STREAMS <= alpha + SLACK / 2
    assert right == STREAMS
