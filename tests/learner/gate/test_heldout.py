"""Held-out pages: never learnt, kept until their labels are in; a snapshot of which they give evidence that it is worse
than the anchor is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.gate import heldout
from learner.gate.heldout import DIFFERENCE, MEAN_DAYS, MOST_ROWS, Heldout
from learner.gate.median_clock import MedianClock
from learner.ranker.repeats import page_hashes
from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.hashing import combine, salt
from millrace.basics.ranking_metrics import auc, log_loss
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, SampleBatch
from tests.learner.gate.plain_model import MINUTE_MS, START_MS, Plain, rows

AGE_MS = 30 * MINUTE_MS


def old(held: Heldout, model: Plain, n: int = 3000, seed: int = 0) -> SampleBatch:
    """Rows of many users that came an hour ago and were held out, all of them."""
    now_ms = held.clock.now_ms or START_MS
    batch = rows(n, seed, now_ms, step_ms=1)
    batch = replace(batch, user=batch.user + 50 * (np.arange(n, dtype=np.uint64) // 10))
    held.take(batch)
    held.clock.now_ms = now_ms + HOUR_MS
    return batch


def ready(n: int = 3000) -> tuple[Heldout, Plain]:
    """One with rows to judge by, n of them, and the model that is their anchor."""
    held, model = Heldout(0.01, AGE_MS, follows=False), Plain()
    old(held, model, n)
    held.rebase(model)
    return held, model


# -- which pages ----------------------------------------------------------------------------------------------


def test_a_share_of_pages_is_held_out_each_as_a_whole() -> None:
    held = Heldout(0.05)
    batch = rows(50_000, 1)
    which = held.held(batch)
    assert (which.reshape(-1, 10).all(1) == which.reshape(-1, 10).any(1)).all()
    assert 0.04 < which.mean() < 0.06
    assert (which == Heldout(0.05).held(batch)).all()
    assert (which <= Heldout(0.1).held(batch)).all(), "a larger share holds out the same pages, and more"
    assert not Heldout(0.0).held(batch).any()


def test_the_share_follows_traffic_between_bounds() -> None:
    def after(rows_an_hour: int, base: float) -> float:
        held = Heldout(base)
        for minute in range(0, 90, 5):
            held.clock.now_ms = START_MS + minute * MINUTE_MS
            held.held(rows(rows_an_hour // 12, minute, held.clock.now_ms))
        return held.share

    assert after(2400, 0.01) == pytest.approx(0.05)  # five times as much
    assert after(2400, 0.05) == pytest.approx(0.1)  # never more than that
    assert after(1_200_000, 0.01) == pytest.approx(8000 / 1_200_000, rel=0.3)
    assert after(2400, 0.0) == 0.0


def test_a_client_that_is_days_ahead_does_not_delay_a_share() -> None:
    held = Heldout(0.01)
    for minute in range(0, 90, 5):
        held.clock.now_ms = START_MS + minute * MINUTE_MS
        batch = rows(200, minute, held.clock.now_ms)
        held.held(replace(batch, ts_ms=np.append(batch.ts_ms[:-1], held.clock.now_ms + 5 * DAY_MS)))
    assert held.share == pytest.approx(0.05)
    assert held.holds(page_hashes(rows(50_000, 99)), np.full(50_000, held.clock.now_ms)).mean() > 0.04


def test_a_page_stays_what_it_was_when_the_share_changes() -> None:
    held = Heldout(0.01, follows=False)
    held.clock.now_ms = START_MS + HOUR_MS
    page = rows(20_000, 3, START_MS + HOUR_MS - MINUTE_MS, step_ms=0)
    before = held.held(page)
    for share in (0.1, 0.002):
        held._step_to(share)
        assert (held.held(page) == before).all()
        later = held.held(replace(page, ts_ms=page.ts_ms * 0 + held.clock.now_ms + 10 * MINUTE_MS))
        assert (later == Heldout(share).held(page)).all()
        assert (later != before).any()
        held.clock.now_ms += HOUR_MS


def test_another_one_follows_its_shares() -> None:
    held, shadow = Heldout(0.01), Heldout(0.1, follows=False)
    for hour in range(1, 5):
        held.clock.now_ms = START_MS + hour * HOUR_MS
        held.held(rows(100, hour))
    assert held.share != 0.01
    shadow.follow(held.snapshot())
    batch = rows(20_000, 7, START_MS, step_ms=1000)
    assert (shadow.held(batch) == held.held(batch)).all()


# -- rows -----------------------------------------------------------------------------------------------------


def test_rows_are_judged_by_when_they_are_old_enough() -> None:
    held = Heldout(0.01, AGE_MS)
    batch = rows(100, 1, START_MS, step_ms=MINUTE_MS)  # pages ten minutes apart
    held.take(batch)
    held.clock.now_ms = START_MS + 60 * MINUTE_MS
    aged = held.aged()
    assert aged.ts_ms.tolist() == batch.ts_ms[:40].tolist()
    assert aged.label.tolist() == batch.label[:40].tolist()
    assert aged.user.tolist() == batch.user[:40].tolist()
    assert len(set(aged.page.tolist())) == 4
    assert held.aged(START_MS + 20 * MINUTE_MS).ts_ms.tolist() == batch.ts_ms[20:40].tolist()


def test_a_client_that_is_ahead_makes_no_fresh_page_aged() -> None:
    """One client in five says times that are 59 minutes ahead; its own pages are of then, too."""
    held, model, clock = Heldout(1.0, AGE_MS, follows=False), Plain(), MedianClock()
    held.clock = clock
    for minute in range(20):
        batch = rows(100, minute, START_MS + minute * MINUTE_MS, step_ms=0)
        ahead = (np.arange(100) // 10 % 5 == 2) * 59 * MINUTE_MS
        batch = replace(batch, ts_ms=batch.ts_ms + ahead, user=np.arange(100, dtype=np.uint64) // 10 % 5 + 1)
        clock.meet(batch)
        held.held(batch)
        held.take(batch)
        model.newest_ms = max(model.newest_ms, int(batch.ts_ms.max()))
        assert not len(held.aged().label)
    assert held.judge(model).rows == 0


def test_rows_older_than_a_day_judge_nothing() -> None:
    """As with a row a second, of which pages of three days would be judged by."""
    held = Heldout(1.0, AGE_MS, follows=False)
    batch = rows(3000, 1, START_MS, step_ms=5 * MINUTE_MS)  # a page each fifty minutes, for ten days
    held.take(batch)
    held.clock.now_ms = int(batch.ts_ms[-1])
    ages = held.clock.now_ms - held.aged().ts_ms
    assert len(ages) == 280
    assert ages.min() >= AGE_MS
    assert ages.max() <= DAY_MS


def test_a_late_click_mends_the_label_and_one_without_its_exposure_is_passed_over() -> None:
    held = Heldout(0.01, AGE_MS)
    batch = rows(100, 1)
    batch = replace(batch, label=np.zeros(100, np.float32), kind=np.full(100, NEGATIVE, np.uint8))
    late = batch.take(np.array([3, 5, 70]))
    late = replace(late, kind=np.array([CORRECTION, FOLLOW_UP, CORRECTION], np.uint8), label=np.ones(3, np.float32))
    stranger = replace(late, request=tuple(f"other {r}" for r in late.request))
    held.take(SampleBatch.concat([batch.take(slice(0, 50)), late]))  # the exposure of one is still to come
    held.take(batch.take(slice(50, 100)))
    held.take(late.take(slice(2, 3)))
    held.take(stranger)
    held.clock.now_ms = START_MS + 2 * HOUR_MS
    assert len(held.snapshot()["ts_ms"]) == 100
    assert np.flatnonzero(held.aged().label).tolist() == [3, 70]


def test_unusable_rows_are_not_kept_and_rows_without_a_score_judge_nothing() -> None:
    held, model = Heldout(0.01, AGE_MS), Plain()
    batch = rows(40, 1)
    label, num = batch.label.copy(), batch.num.copy()
    label[:3], num[5] = (np.nan, -1.0, 2.0), np.nan
    held.take(replace(batch, label=label, num=num))
    assert len(held.snapshot()["ts_ms"]) == 37
    held.rebase(model)
    held.clock.now_ms = START_MS + 2 * HOUR_MS
    assert (held.judge(model).rows, held.judge(model).refusal) == (36, None)


def test_pages_are_drawn_by_their_hash_and_the_share_of_their_time() -> None:
    held, rng = Heldout(0.3, follows=False), np.random.default_rng(0)
    held.follow({"from_ms": [0, 1000, 2000], "shares": [0.3, 0.0, 0.6]})
    page = np.append(rng.integers(0, 1 << 63, 9999).astype(np.uint64) * np.uint64(2), np.uint64(0))
    ts_ms = rng.integers(-10, 3000, 10_000)
    draw = combine(salt("heldout"), page) >> np.uint64(11)
    share = np.array([0.3, 0.0, 0.6])[np.maximum(ts_ms // 1000, 0)]
    assert held.holds(page, ts_ms).tolist() == (draw.astype(np.float64) < share * 2.0**53).tolist()
    assert held.holds(page, ts_ms).mean() == pytest.approx(0.3, abs=0.02)


def test_visits_are_users_hours_and_pages_of_nobody() -> None:
    """What evidence is counted by: rows of a user's pages within an hour are one."""
    held = Heldout(0.01, AGE_MS)
    batch = rows(60, 1, step_ms=0)  # six pages
    user = np.repeat(np.array([7, 7, 7, 8, 0, 0], np.uint64), 10)
    held.take(replace(batch, user=user))
    held.rebase(Plain())
    assert held.rows_a_visit == 60 / 4
    other = Heldout(0.01, AGE_MS)
    other.resume(held.snapshot())
    assert other.rows_a_visit == held.rows_a_visit


def test_memory_has_a_bound_and_the_newest_stay() -> None:
    held = Heldout(0.01, AGE_MS)
    for number in range(5):
        held.take(rows(5000, number, START_MS + number * HOUR_MS, step_ms=1))
    held.clock.now_ms = START_MS + 6 * HOUR_MS
    assert len(held.snapshot()["ts_ms"]) == MOST_ROWS
    assert held.aged().ts_ms.min() >= START_MS + 2 * HOUR_MS


def test_spoilt_rows_go() -> None:
    held = Heldout(0.01, AGE_MS)
    batch = rows(100, 1, START_MS, step_ms=MINUTE_MS)
    held.take(batch)
    held.spoilt(START_MS + 45 * MINUTE_MS)
    assert len(held.snapshot()["ts_ms"]) == 50
    held.take(rows(10, 2))
    assert len(held.snapshot()["ts_ms"]) == 60


# -- judging --------------------------------------------------------------------------------------------------


def test_nothing_is_judged_while_most_goods_are_new() -> None:
    held, model = ready()
    model.slope = -1
    assert held.judge(model).refusal is not None
    found = held.judge(model, new_items=True)
    assert (found.refusal, found.judged) == (None, False)


def test_without_rows_or_with_one_class_nothing_is_judged() -> None:
    held, model = Heldout(0.01, AGE_MS), Plain()
    assert not held.judge(model).judged
    for label in (0.0, 1.0):
        held, batch = Heldout(0.01, AGE_MS), rows(1000, 1)
        held.take(replace(batch, label=np.full(1000, label, np.float32)))
        held.clock.now_ms = START_MS + DAY_MS // 2
        held.rebase(model)
        found = held.judge(Plain(-3.0))
        assert not found.judged
        assert (found.refusal, found.rows) == (None, 1000)


def test_the_figures_are_those_of_the_rows() -> None:
    held, model = ready()
    batch = held.aged()
    model.slope, model.bias = 0.3, 0.4
    found = held.judge(model)
    p, first = model.score(batch.cat, batch.num), Plain().score(batch.cat, batch.num)
    assert (found.auc, found.anchor_auc) == (auc(p, batch.label), auc(first, batch.label))
    assert found.anchor_log_loss == log_loss(first, batch.label)
    t = 0.3 * batch.num[:, 0].astype(np.float64) + 0.4
    levelled = [1 / (1 + np.exp(-(t + c))) for c in np.linspace(-3, 1, 4001)]
    best = min(levelled, key=lambda q: abs(q.mean() - first.mean()))
    assert found.log_loss == pytest.approx(log_loss(best, batch.label), abs=1e-4)
    assert found.log_loss > found.anchor_log_loss


def test_a_worse_ranking_and_a_worse_fit_are_refused_and_another_click_rate_is_not() -> None:
    held, model = ready()
    for slope in (-0.2, 2.5):  # the same ranking, too sure of itself
        model.slope = slope
        found = held.judge(model)
        assert found.refusal is not None
        assert (found.refusal.check, found.refusal.bound) == ("heldout", MEAN_DAYS)
        assert found.refusal.value == found.evidence_days >= MEAN_DAYS
        held.clock.now_ms += HOUR_MS
    model.slope, model.bias = 1.0, 1.0  # e^2 times the odds of a click, for all rows alike
    assert held.judge(model).refusal is None
    model.bias = float("nan")
    found = held.judge(model)
    assert found.refusal is not None
    assert found.refusal.check == "finite"


def test_pages_of_the_first_half_of_a_shops_life_judge_nothing() -> None:
    held, model = Heldout(0.01, AGE_MS, follows=False), Plain()
    for hour, turned in enumerate((True, True, False, False)):  # who clicks on what in the first half is another matter
        held.clock.now_ms = START_MS + hour * HOUR_MS
        batch = rows(1000, hour, held.clock.now_ms, step_ms=1)
        held.held(batch)
        users = (1000 * hour + np.arange(1000, dtype=np.uint64)) // 10
        held.take(replace(batch, user=users, label=1 - batch.label if turned else batch.label))
    held.clock.now_ms = START_MS + 4 * HOUR_MS
    model.slope = 0.5
    held.rebase(model)
    model.slope = 1.0  # better on the later pages, worse on the first ones
    found = held.judge(model)
    assert (found.rows, found.refusal) == (2000, None)
    assert found.log_loss < found.anchor_log_loss
    held._first_ms = 0
    found = held.judge(model)
    assert found.rows == 4000
    assert found.refusal is not None


def test_few_users_are_little_evidence_and_need_no_row_count() -> None:
    for users, refused in ((10, False), (40, True)):
        held, model = Heldout(0.01, AGE_MS, follows=False), Plain()
        batch = rows(3000, 4, START_MS, step_ms=1)
        held.take(replace(batch, user=np.arange(3000, dtype=np.uint64) // 10 % users + 1))
        held.clock.now_ms = START_MS + HOUR_MS
        held.rebase(model)
        found = held.judge(Plain(-1.0))
        assert found.auc < 0.5
        assert (found.refusal is not None) == refused


def test_rows_since_the_last_anchor_are_left_out_until_the_next() -> None:
    held, model = ready(1000)
    batch = rows(1000, 2, held.clock.now_ms + MINUTE_MS, step_ms=1)
    held.take(replace(batch, label=1 - batch.label))  # a mistake that has just begun
    held.clock.now_ms += 90 * MINUTE_MS
    assert held.judge(model).rows == 1000
    held.promoted(model)
    assert held.judge(model).rows == 2000


def test_the_time_since_the_last_look_is_what_a_look_may_be_wrong_with() -> None:
    held, model = ready()
    model.slope = 0.75
    found = []
    for hours in (48.0, 1.0, 0.5, 0.0, 1.0):  # of the first look nothing is known before it
        held.clock.now_ms += round(hours * HOUR_MS)
        held.most_age_ms += HOUR_MS * 50
        found.append(held.judge(model).evidence_days)
        assert held.judge(model).evidence_days == found[-1], "to judge changes nothing"
        held.looked()
    most = found[0]
    assert found == pytest.approx([most, most, most / 2, most / 3600, most])


def test_no_time_is_staked_twice_when_the_clock_goes_back() -> None:
    held, model = ready()
    model.slope = 0.75
    held.clock.now_ms += HOUR_MS
    held.most_age_ms += HOUR_MS * 50
    held.looked()
    once = held.judge(model).evidence_days
    held.clock.now_ms -= HOUR_MS // 2  # messages of a partition that lags behind
    held.looked()
    held.clock.now_ms += HOUR_MS // 2
    assert held.judge(model).evidence_days == once


def test_a_model_that_goes_up_and_down_is_not_refused_for_a_month() -> None:
    """Each hour's pages come while the model is too sure of itself or not enough, and each candidate is another one."""
    held, model = Heldout(0.01, AGE_MS, follows=False), Plain()
    rng, most = np.random.default_rng(5), 0.0
    for hour in range(24 * 30):
        held.clock.now_ms = START_MS + hour * HOUR_MS
        model.slope, model.bias = 1 + rng.normal(0, 0.06), -1 + rng.normal(0, 0.5)
        batch = rows(60, hour, held.clock.now_ms - 2 * HOUR_MS, step_ms=1000)
        held.take(replace(batch, user=rng.integers(1, 2000, 60).astype(np.uint64)))
        model.slope, model.bias = 1 + rng.normal(0, 0.06), -1 + rng.normal(0, 0.5)
        found = held.judge(model)
        assert found.refusal is None
        most = max(most, found.log_loss - found.anchor_log_loss)
        held.looked()
        held.promoted(model)
    assert most > 2 * DIFFERENCE, "it went up and down by more than the stated difference"


def test_what_was_promoted_is_the_anchor_from_the_next_hour_on() -> None:
    held, model = ready()
    held.promoted(model)
    model.slope = 0.0
    assert held.judge(model).refusal is not None
    held.clock.now_ms += HOUR_MS // 2
    held.promoted(model)
    assert held.judge(model).refusal is not None
    held.clock.now_ms += HOUR_MS // 2
    held.promoted(model)
    assert held.judge(model).refusal is None
    model.slope = 0.5
    held.rebase(model)
    model.slope = -0.5
    assert held.judge(model).refusal is not None


def test_it_goes_on_from_a_snapshot_and_need_not_begin_unjudged() -> None:
    held, model = ready()
    old(held, model, 11_000, seed=5)
    twin = Heldout(0.01, AGE_MS, follows=False)
    twin.resume({name: array.copy() for name, array in held.snapshot().items()})
    twin.clock.now_ms = held.clock.now_ms
    for h in (held, twin):
        h.take(rows(500, 9, held.clock.now_ms))
    model.slope = 0.4
    assert held.judge(model) == twin.judge(model)
    for name, array in held.snapshot().items():
        np.testing.assert_array_equal(array, twin.snapshot()[name])
    Heldout(0.01).resume({})


def test_a_share_that_was_set_otherwise_holds_after_a_restart() -> None:
    held = Heldout(0.01)
    for base, share in ((0.0, 0.0), (0.001, 0.001), (0.02, 0.01)):
        twin = Heldout(base)
        twin.resume(held.snapshot())
        assert twin.share == share
    off = Heldout(0.0)
    twin = Heldout(0.01)
    twin.resume(off.snapshot())
    assert twin.share == 0.01


def test_many_rows_are_scored_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held, model = ready()
    model.slope = 0.9
    whole = held.judge(model)
    held.clock.now_ms += HOUR_MS
    monkeypatch.setattr(heldout, "_AT_ONCE", 7)
    assert held.judge(model) == whole
