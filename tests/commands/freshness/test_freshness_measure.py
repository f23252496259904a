"""Figures of models over slices: intervals over users cover, seeds widen them; words follow."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.basics.clustered import FEWEST
from millrace.basics.ranking_metrics import auc, log_loss
from millrace.commands.freshness.freshnesswords import FROZEN, named, verdict
from millrace.commands.freshness.measure import ALL, Figure, Measured, MeasuredScores, ScoredRows


def world(rng: np.random.Generator, users: int = 120) -> tuple[ScoredRows, dict[str, MeasuredScores]]:
    """Users of different rates, whose rows are alike; a second model that errs with each user in a way of its own."""
    each = rng.integers(1, 25, users)
    user = np.repeat(np.arange(users), each)
    rate = rng.normal(-1, 1, users)[user]
    row = rng.normal(0, 1, len(user))
    y = (rng.random(len(user)) < 1 / (1 + np.exp(-rate - row))).astype(np.float32)
    seen = rng.normal(0, 1, users)[user] * 0.5  # what both models say, alike for all rows of a user
    one = 1 / (1 + np.exp(-(rate * 0.3 + seen + 0.5 * row)))
    two = 1 / (1 + np.exp(-(rate * 0.3 + seen + 0.5 * row + rng.normal(0, 0.3, users)[user])))
    models = {"a": MeasuredScores([one.astype(np.float32)], []), "b": MeasuredScores([two.astype(np.float32)], [])}
    return ScoredRows(y, user.astype(np.intp), user.astype(np.intp)), models


def test_the_error_of_a_difference_is_that_between_logs() -> None:
    """Many logs of one world: the spread of the paired difference over them is what one log's users say of it."""
    gaps, errors = [], []
    for seed in range(60):
        rows, models = world(np.random.default_rng(seed))
        gap = Measured(rows, models, {}).gap("b", "a", "auc")
        gaps.append(gap.value)
        errors.append(gap.error)
    assert np.mean(errors) == pytest.approx(np.std(gaps, ddof=1), rel=0.3)
    rows, models = world(np.random.default_rng(0))
    alone = Measured(rows, models, {})
    single = np.hypot(alone.figure("a", "auc").error, alone.figure("b", "auc").error)
    assert alone.gap("b", "a", "auc").error < single  # paired


def two_seeds() -> tuple[Figure, Figure, float]:
    """The AUC of a model whose two seeds are alike, that of one whose seeds differ, and the mean of the latter's."""
    rows, models = world(np.random.default_rng(2))
    (p,) = models["a"].p
    q = np.random.default_rng(0).permutation(p)
    alike, apart = (Measured(rows, {"a": MeasuredScores([p, r], [])}, {}).figure("a", "auc") for r in (p, q))
    return alike, apart, (auc(p, rows.y) + auc(q, rows.y)) / 2


def test_seeds_that_differ_widen_the_interval() -> None:
    alike, apart, mean = two_seeds()
    assert apart.error > 2 * alike.error
    assert apart.value == pytest.approx(mean)


def test_a_slice_has_the_figures_of_its_rows_and_one_without_clicks_has_none() -> None:
    rows, models = world(np.random.default_rng(3))
    odd, none = np.arange(1, len(rows.y), 2), np.flatnonzero(rows.y == 0)
    found = Measured(rows, models, {"odd": odd, "none": none})
    (p,) = models["a"].p
    assert found.figure("a", "auc", "odd").value == auc(p[odd], rows.y[odd])
    assert found.figure("a", "auc", ALL).value == auc(p, rows.y)
    assert np.isnan(found.figure("a", "auc", "none").value)
    assert np.isnan(found.figure("a", "auc", "none").half)
    assert np.isfinite(found.figure("a", "log_loss", "none").value)


def test_a_slice_of_few_users_has_no_interval() -> None:
    """One user has no spread, which would show every difference. Nor do many users tell anything where a few have
    clicked."""
    rows, models = world(np.random.default_rng(3))
    both = np.bincount(rows.user, weights=rows.y > 0) * np.bincount(rows.user, weights=rows.y == 0)
    most = np.argsort(-both)
    few, enough = np.isin(rows.user, most[: FEWEST - 1]), np.isin(rows.user, most[:FEWEST])
    slices = {"one": rows.user == most[0], "few": few, "enough": enough, "few who clicked": (rows.y == 0) | few}
    found = Measured(rows, models, {name: np.flatnonzero(own) for name, own in slices.items()})
    for name in slices:
        gap = found.gap("b", "a", "log_loss", name)
        assert gap.value != 0
        assert np.isfinite(gap.half) == np.isfinite(gap.smallest) == (name == "enough"), name
        assert not gap.shown or name == "enough"
    assert found.users_of("few") == FEWEST - 1


def test_intervals_of_slices_with_few_users_cover() -> None:
    """Many small logs of one world, with as few users as a slice may have. Normal intervals cover less."""
    rows, models = world(np.random.default_rng(0), 8_000)
    (a,), (b,) = models["a"].p, models["b"].p
    true = log_loss(b, rows.y) - log_loss(a, rows.y)
    covered, by_normal = [], []
    for seed in range(1, 161):
        rows, models = world(np.random.default_rng(seed), 7)
        gap = Measured(rows, models, {}).gap("b", "a", "log_loss")
        if np.isfinite(gap.half):
            covered.append(abs(gap.value - true) <= gap.half)
            by_normal.append(abs(gap.value - true) <= Figure(gap.value, gap.error * np.sqrt(6 / 7)).half)
    assert len(covered) > 100
    assert np.mean(covered) > 0.91
    assert np.mean(by_normal) < 0.88


def test_two_seeds_that_differ_tell_little_of_how_seeds_differ() -> None:
    alike, apart, _ = two_seeds()
    assert alike.freedom > 30
    assert 1 <= apart.freedom < 1.5, "the seeds make nearly all of the error, and there are two"


def test_the_sentence_says_gains_losses_and_that_nothing_could_be_shown() -> None:
    rng = np.random.default_rng(4)
    user = np.repeat(np.arange(300), 8)
    log_odds = rng.normal(-1, 1, 300)[user] + rng.normal(0, 1, len(user))
    best = 1 / (1 + np.exp(-log_odds))
    rows = ScoredRows((rng.random(len(user)) < best).astype(np.float32), user, user)
    half = 1 / (1 + np.exp(-0.6 * log_odds - 0.4 * log_odds.mean() + rng.normal(0, 0.7, len(user))))
    a, b = MeasuredScores([half.astype(np.float32)], []), MeasuredScores([best.astype(np.float32)], [])

    def said(fresh: MeasuredScores, reference: MeasuredScores, old: MeasuredScores, oldest: MeasuredScores = a) -> str:
        scored = {"minute": fresh, "daily": reference}
        scored |= {named("day-old", "minute"): old, named("day-old", "daily"): oldest}
        return verdict(Measured(rows, scored, {}), "minute", "daily", True)

    gain = said(b, a, a)
    assert "learning every minute instead of every day gains ." in gain
    assert "live window features instead of day-old ones gain ." in gain
    loss = said(a, b, b)
    assert "instead of every day loses ." in loss
    assert "ones lose ." in loss
    same = said(a, a, a)  # one model by two names: its spread of zero is no smallest gain
    assert "every day gives the same scores" in same
    assert "day-old ones give the same scores" in same
    assert ".0000" not in same
    noise = rng.normal(0, 1e-3, len(user))
    near = MeasuredScores([(half + noise).astype(np.float32)], [])
    nothing = said(near, a, a)
    assert "no difference could be shown for learning every minute instead of every day" in nothing
    assert "the smallest" in nothing
    # A tenth of the noise of that gain: too small for so few rows.
    few = ScoredRows(rows.y[:60], rows.user[:60], rows.group[:60])
    scored = {"minute": MeasuredScores([b.p[0][:60]], []), "daily": MeasuredScores([a.p[0][:60]], [])}
    small = Measured(few, scored, {})
    gap = small.gap("minute", "daily", "auc")
    text = verdict(small, "minute", "daily", False)
    assert ("no difference could be shown" in text) == (
        not gap.shown and not small.gain_percent("minute", "daily").shown
    )


def test_the_sentence_says_the_whole_first_where_each_part_alone_gains_nothing() -> None:
    """Either fresh weights or fresh features find the same: beyond the other, none gains much; together they do."""
    rng = np.random.default_rng(4)
    user = np.repeat(np.arange(300), 8)
    best = 1 / (1 + np.exp(-rng.normal(-1, 1.5, len(user))))
    rows = ScoredRows((rng.random(len(user)) < best).astype(np.float32), user, user)
    knows = MeasuredScores([best.astype(np.float32)], [])
    guesses = MeasuredScores([rng.random(len(user)).astype(np.float32)], [])
    scored = {"minute": knows, "daily": knows, named("day-old", "minute"): knows, named("day-old", "daily"): guesses}
    found = Measured(rows, scored, {})
    first, rest = verdict(found, "minute", "daily", True).split(". ", 1)
    gap = found.gap("minute", named("day-old", "daily"), "auc")
    assert first.startswith(
        "On this log a live loop (learning every minute, live window features) instead of a nightly job (learning "
        f"every day, {FROZEN}) gains {gap.value:.4f}".replace("0.", ".")
    )
    assert "% log loss" in first
    assert rest.startswith("Beyond live features, learning every minute instead of every day gives the same scores")
    assert "beyond that learning, live window features instead of day-old ones give the same scores" in rest


def test_the_smallest_gain_is_what_four_in_five_logs_would_show() -> None:
    figure = Figure(0.0, 0.01)
    gains = np.random.default_rng(0).normal(figure.smallest, figure.error, 20_000)
    assert np.mean(np.abs(gains) > figure.half) == pytest.approx(0.8, abs=0.01)
