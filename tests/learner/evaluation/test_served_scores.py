"""Figures of served scores against the exact ones of the same exposures, whatever the policy, the partitions' pace and
the order in which labels come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from learner.evaluation.progressive import Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats, page_hashes
from learner.samples.eventtime import EventTime, proofs
from learner.training.trainer import Trainer
from millrace.basics.ranking_metrics import FIGURES, ORDER, auc, calibration, log_loss, within
from millrace.contracts.events import ARMS
from millrace.contracts.samples import CORRECTION, NEGATIVE, PAGE, POLICIES, POSITIVE, SampleBatch
from millrace.labels import Waits, policy_named
from tests.scenes.learning import SCHEMA, START_MS, make_samples

SECOND_MS = 1000
WAITS = Waits(attribution_ms=300 * SECOND_MS, observation_ms=30 * SECOND_MS, disorder_ms=60 * SECOND_MS)
PARTITIONS = 3
MODEL = OnlineModel(SCHEMA, {"model": "logistic"}, 0)
LONG_MS = 10**12
BASELINE = SCHEMA.layout.num_names.index("item_id.click_rate.7d")


def served(window_rows: int = 10_000, waiting_rows: int = 20_000) -> ServedExposures:
    return ServedExposures(SCHEMA, Segments(SCHEMA, {"category": ("1",)}), WAITS, window_rows, waiting_rows)


def exposures(rows: int, seed: int = 0) -> SampleBatch:
    """Pages of ten rows, three seconds apart, of all arms; labelled with what is true in the end."""
    rng, batch = np.random.default_rng(seed), make_samples(rows, seed)
    pages = len(batch.request)
    arm, version = rng.integers(0, 2, pages)[batch.page], rng.integers(-1, 2, pages)[batch.page]
    return replace(
        batch,
        ts_ms=START_MS + rng.permutation(pages)[batch.page] * 3 * SECOND_MS,
        score=np.clip(rng.random(rows) * 0.6 + 0.2 * batch.label, 0, 1).astype(np.float32),
        arm=arm.astype(np.uint8),
        version=version,
    )


def arm_of(batch: SampleBatch) -> np.ndarray[Any, Any]:
    return np.where(batch.version < 0, ARMS.index("logged"), batch.arm)


@dataclass(frozen=True)
class Exact:
    """The figures of an arm, computed from whole columns."""

    p: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    page: np.ndarray[Any, Any]
    base: np.ndarray[Any, Any]

    @classmethod
    def of(cls, batch: SampleBatch, arm: str, newest: int) -> Exact:
        page = page_hashes(batch)
        rows = np.lexsort((batch.position, page, batch.ts_ms))
        rows = rows[arm_of(batch)[rows] == ARMS.index(arm)][-newest:]
        return cls(batch.score[rows], batch.label[rows], page[rows], batch.num[rows, BASELINE])

    def check(self, found: ServedExposures, arm: str) -> None:
        f = found.figures(arm)
        assert f["rows"] == len(self.p)
        assert {key: f[key] for key in (*FIGURES, *(f"baseline_{k}" for k in ORDER))} == pytest.approx(
            {
                "auc": auc(self.p, self.y),
                **within(self.p, self.y, self.page),
                "baseline_auc": auc(self.base, self.y),
                **{f"baseline_{k}": v for k, v in within(self.base, self.y, self.page).items()},
                "log_loss": log_loss(self.p, self.y),
                "calibration": calibration(self.p, self.y),
            },
            nan_ok=True,
        )


def labelled(batch: SampleBatch, policy: str, seed: int) -> list[tuple[int, SampleBatch]]:
    """The samples that a stream makes of exposures under a policy, with their partitions, in the order of ``samples``.

    Clicks come up to 100 minutes after the exposure, so some come when the attribution window is over. The second
    partition lags far behind the others.
    """
    rng = np.random.default_rng(seed)
    code = POLICIES.index(policy)
    promise = policy_named(policy).promise(WAITS, LONG_MS)
    kept = WAITS.disorder_ms - promise.slack_ms
    said: list[tuple[float, int, int, int]] = []  # when in event time, kind, row, partition
    for row in range(len(batch)):
        ts, partition = int(batch.ts_ms[row]), int(batch.page[row]) % PARTITIONS
        if row % 3 == 0:
            said.append((ts + WAITS.settled_ms, PAGE, row, partition))
        label_at = ts + promise.observe_ms + kept
        if batch.label[row] == 0:
            said.append((label_at, NEGATIVE, row, partition))
            continue
        delay = int(rng.choice([5, 40, 200, 6000]) * SECOND_MS * rng.random())
        click_at = ts + delay + int(rng.random() * WAITS.disorder_ms * (delay < WAITS.attribution_ms))
        if click_at <= label_at:
            held = ts + promise.hold_ms + kept if promise.hold_ms else 0
            said.append((max(click_at, held), POSITIVE, row, partition))
        else:
            said += [(label_at, NEGATIVE, row, partition), (click_at, CORRECTION, row, partition)]
    lag = 45 * 60 * SECOND_MS  # of the second partition, in the order in which samples are read
    said.sort(key=lambda s: (s[0] + lag * (s[3] == 1), s[3]))
    messages = []
    at = 0
    while at < len(said):
        size = int(rng.integers(1, 40))
        for partition in range(PARTITIONS):
            own = [(kind, row) for _, kind, row, of in said[at : at + size] if of == partition]
            if own:
                kinds = np.array([kind for kind, _ in own], np.uint8)
                part = batch.take(np.array([row for _, row in own]))
                label = np.where(kinds == PAGE, part.label, kinds != NEGATIVE).astype(np.float32)
                policies = np.full(len(own), code, np.uint8)
                messages.append((partition, replace(part, kind=kinds, label=label, policy=policies)))
        at += size
    return messages


def later(policy: str = "wait", ms: int = 10**8) -> Iterator[tuple[int, SampleBatch]]:
    """A sample of each partition when much time has passed."""
    for partition in range(PARTITIONS):
        one = make_samples(1, 1000 + partition, start_ms=START_MS + ms)
        yield partition, replace(one, policy=np.full(1, POLICIES.index(policy), np.uint8), kind=np.zeros(1, np.uint8))


def of(partition: int, batch: SampleBatch) -> SampleBatch:
    return replace(batch, partition=np.full(len(batch), partition, np.uint16))


def feed(found: ServedExposures, messages: Any) -> None:
    for partition, batch in messages:
        found.take(of(partition, batch))
        found.enter(MODEL)


# -- the figures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_figures_are_those_of_the_same_exposures_under_every_policy(policy: str) -> None:
    batch, newest = exposures(3000), 700
    found, rng = served(newest), np.random.default_rng(1)
    found.time.expect(range(PARTITIONS))
    for partition, samples in labelled(batch, policy, seed=2):
        found.take(of(partition, samples))
        if rng.random() < 0.5:
            found.enter(MODEL)
        if rng.random() < 0.1:
            found.settle()
    feed(found, later(policy))
    found.settle()
    for arm in ARMS:
        Exact.of(batch, arm, newest).check(found, arm)
    assert (found.waiting, found.dropped, found.headline) == (0, 0, "model")


def test_figures_before_the_end_are_those_of_the_exposures_that_are_settled() -> None:
    """At each moment: clicks that have come, rows that event time has passed, and none of the others."""
    batch = exposures(1500)
    found = served()
    found.time.expect(range(PARTITIONS))
    seen: dict[tuple[str, int], float] = {}
    looked = 0
    for partition, samples in labelled(batch, "prompt", seed=3):
        first = samples.labelled
        for name, label in zip(first.ids(), first.label.tolist(), strict=True):
            seen[name] = max(label, seen.get(name, 0))
        feed(found, [(partition, samples)])
        found.settle()
        settled = batch.ts_ms <= found.time.now_ms - WAITS.settled_ms
        if not settled.any():
            continue
        looked += 1
        part = batch.take(settled)
        known = replace(part, label=np.array([seen[name] for name in part.ids()], np.float32))
        Exact.of(known, "control", 10_000).check(found, "control")
    assert looked > 20


def test_what_a_user_beyond_the_limit_did_leaves_the_figures() -> None:
    """Of two bots who click on all one has rows that are settled, the other some that wait."""
    batch = exposures(3000)
    bots = np.unique(batch.user)[:2]
    own = np.isin(batch.user, bots)
    batch = replace(batch, label=np.where(own, 1, batch.label).astype(np.float32))
    found = served(20_000)
    feed(found, labelled(batch, "prompt", seed=5))
    feed(found, later("prompt"))
    found.settle()
    Exact.of(batch, "model", 20_000).check(found, "model")
    made = exposures(20, 6)
    waits = replace(made, user=np.repeat(bots[1:], 20), ts_ms=made.ts_ms + 2 * 10**8)
    beyond = exposures(2, 7)
    found.take(waits)
    found.take(replace(beyond, user=bots), np.ones(2, np.bool_))
    found.enter(MODEL)
    assert found.waiting == 20
    found.settle()
    for arm in ARMS:
        Exact.of(batch.take(~own), arm, 20_000).check(found, arm)
    assert (found.waiting, len(found)) == (0, int((~own).sum()))
    assert found.over_limit == own.sum() + 20 + 2


def test_segments_are_of_the_same_rows_without_random_pages() -> None:
    batch, newest = exposures(2000), 500
    found = served(newest)
    feed(found, labelled(batch, "prompt", seed=4))
    feed(found, later("prompt"))
    found.settle()
    page = page_hashes(batch)
    rows = np.lexsort((batch.position, page, batch.ts_ms))
    part = batch.take(rows[arm_of(batch)[rows] != ARMS.index("control")][-newest:])
    masks = found.segments.members(part, MODEL)
    exact = found.segments.metrics(part.score.astype(np.float64), part.label, masks)
    assert found.by_segment().keys() == exact.keys()
    for name, own in found.by_segment().items():
        assert own.rows == exact[name].rows
        assert (own.auc, own.log_loss, own.calibration) == pytest.approx(
            (exact[name].auc, exact[name].log_loss, exact[name].calibration), nan_ok=True
        )
    assert exact["category=1"].rows > 20


def test_a_page_that_nobody_scored_has_no_figure_and_one_class_has_no_auc() -> None:
    batch = exposures(200)
    found = served()
    nobody = replace(batch, score=np.full(200, np.nan, np.float32), version=np.full(200, -1))
    feed(found, [(0, replace(nobody, kind=np.where(batch.label > 0, POSITIVE, NEGATIVE).astype(np.uint8)))])
    assert (len(found), found.not_finite) == (0, 0)
    none = batch.take(batch.label == 0)
    feed(found, [(0, replace(none, kind=np.full(len(none), NEGATIVE, np.uint8)))])
    feed(found, later())
    found.settle()
    figures = found.figures("model")
    assert figures["rows"] > 10
    assert all(math.isnan(figures[key]) for key in (*ORDER, *(f"baseline_{k}" for k in ORDER), "calibration"))
    assert math.isfinite(figures["log_loss"])
    empty = served().figures("model")
    assert (empty["rows"], math.isnan(empty["log_loss"])) == (0, True)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_counts_as_wrong(broken: float) -> None:
    batch = replace(exposures(400), version=np.full(400, 3), arm=np.zeros(400, np.uint8))
    score = batch.score.copy()
    score[::7] = broken
    wrong = np.where(np.isfinite(score), score, 1 - batch.label)
    found = served()
    feed(found, [(0, replace(batch, score=score, kind=(batch.label > 0).astype(np.uint8)))])
    feed(found, later())
    found.settle()
    Exact.of(replace(batch, score=wrong), "model", 400).check(found, "model")
    assert found.not_finite == len(score[::7])
    assert found.figures("model")["auc"] < auc(batch.score, batch.label)


def test_logged_pages_are_the_headline_where_the_model_made_none() -> None:
    batch = replace(exposures(100), arm=np.full(100, ARMS.index("logged"), np.uint8), version=np.full(100, 5))
    found = served()
    assert found.headline == "model"
    feed(found, [(0, batch)])
    feed(found, later())
    found.settle()
    assert (found.headline, found.figures("logged")["rows"], found.figures("model")["rows"]) == ("logged", 100, 0)


# -- labels that change --------------------------------------------------------------------------------------


def test_a_click_after_its_row_was_settled_mends_it() -> None:
    batch = replace(exposures(100), version=np.full(100, 1), arm=np.zeros(100, np.uint8))
    found = served()
    first = replace(batch, kind=np.full(100, NEGATIVE, np.uint8), label=np.zeros(100, np.float32))
    feed(found, [(0, first), *later()])
    found.settle()
    assert math.isnan(found.figures("model")["auc"])
    clicked = replace(batch, kind=np.full(100, CORRECTION, np.uint8)).take(batch.label > 0)
    feed(found, [(0, clicked)])
    Exact.of(batch, "model", 100).check(found, "model")


def test_a_click_on_an_exposure_that_is_not_held_changes_nothing() -> None:
    batch = exposures(100)
    found = served()
    feed(found, [(0, replace(batch, kind=np.full(100, CORRECTION, np.uint8)))])
    assert len(found) == 0


# -- partitions ----------------------------------------------------------------------------------------------


def one_row(ts_s: int, name: str, kind: int = NEGATIVE) -> SampleBatch:
    one = make_samples(1, 0, start_ms=START_MS + ts_s * SECOND_MS)
    return replace(
        one,
        request=(name,),
        kind=np.full(1, kind, np.uint8),
        score=np.full(1, 0.5, np.float32),
        version=np.ones(1, np.int64),
        policy=np.full(1, POLICIES.index("fake-negative-weighted"), np.uint8),
    )


def test_the_slowest_partition_is_waited_for_unless_it_is_silent() -> None:
    found = served()
    found.time.expect([0, 1])
    feed(found, [(0, one_row(0, "a")), (0, one_row(1000, "b"))])
    found.settle()
    assert found.figures("model")["rows"] == 0, "partition 1 may have an earlier exposure"
    feed(found, [(1, one_row(10, "c"))])
    found.settle()
    assert found.figures("model")["rows"] == 0
    found.time.silent([1])
    found.settle()
    assert found.figures("model")["rows"] == 2
    feed(found, [(1, one_row(5, "d")), (1, one_row(5, "d", CORRECTION))])
    found.settle()
    figures = found.figures("model")
    assert (figures["rows"], figures["calibration"]) == (3, 1.5), "it came late, and has its click"


def test_a_row_that_comes_late_goes_to_its_place() -> None:
    found = served(window_rows=2)
    feed(found, [(0, one_row(ts, name)) for ts, name in ((0, "a"), (20, "b"), (1000, "c"))])
    found.settle()
    feed(found, [(0, one_row(10, "late", POSITIVE))])  # before the newest two
    found.settle()
    feed(found, [(0, one_row(2000, "d"))])
    found.settle()
    assert (found.figures("model")["rows"], found.waiting) == (2, 1)
    assert math.isfinite(found.figures("model")["calibration"]) is False, "b and c: the late one is older"
    feed(found, [(0, one_row(1500, "late too", POSITIVE)), (0, one_row(3000, "e"))])
    found.settle()
    assert found.figures("model")["calibration"] == 1.0, "late too and d"


def test_event_time_is_what_samples_prove() -> None:
    table = proofs(WAITS)
    seconds = {
        name: (table[code, [NEGATIVE, POSITIVE, CORRECTION]] // SECOND_MS).tolist()
        for code, name in enumerate(POLICIES)
    }
    assert seconds["wait"] == [360, 0, 360]
    assert seconds["equal-wait"] == [360, 360, 360]
    assert seconds["fake-negative-weighted"] == [0, 0, 0]
    assert seconds["prompt"] == [30, 0, 30]
    assert seconds["es-dfm"] == [30, 30, 30]
    assert set(table[:, PAGE].tolist()) == {360 * SECOND_MS}, "a page is sent again when its labels are final"
    time = EventTime(WAITS)
    assert time.advance() == 0
    time.hear(of(0, one_row(50, "a")))
    time.hear(of(0, one_row(10, "a")))
    assert time.advance() == START_MS + 50 * SECOND_MS
    time.hear(of(1, one_row(20, "b")))
    assert time.advance() == START_MS + 50 * SECOND_MS, "it never goes back"
    time.hear(of(0, one_row(70, "c")))
    assert time.advance() == START_MS + 50 * SECOND_MS
    time.silent([0, 1])
    assert time.advance() == START_MS + 70 * SECOND_MS, "the silent follow the newest"


# -- memory --------------------------------------------------------------------------------------------------


def test_too_many_waiting_rows_leave_out_whole_pages() -> None:
    batch = replace(exposures(4000), version=np.ones(4000, np.int64), arm=np.zeros(4000, np.uint8))
    found = served(window_rows=5000, waiting_rows=600)
    code = np.full(4000, POLICIES.index("fake-negative-weighted"), np.uint8)
    at_once = replace(batch, policy=code, kind=np.zeros(4000, np.uint8), ts_ms=START_MS + batch.page.astype(np.int64))
    for start in range(0, 4000, 50):
        feed(found, [(0, at_once.take(slice(start, start + 50)))])
        assert found.waiting <= 600
    feed(found, [(0, replace(at_once, kind=np.full(4000, CORRECTION, np.uint8)).take(batch.label > 0))])
    kept = batch.take(found._kept(page_hashes(batch)))
    assert 0 < len(kept) == found.waiting < 4000
    feed(found, later())
    found.settle()
    Exact.of(replace(kept, ts_ms=START_MS + kept.page.astype(np.int64)), "model", 5000).check(found, "model")
    assert found.dropped == 4000 - len(kept)


def test_a_process_that_resumes_judges_no_exposure_that_the_one_before_saw() -> None:
    spec = {"model": "logistic"}

    def trainer() -> Trainer:
        return Trainer(OnlineModel(SCHEMA, spec, 0), Progressive(100), Repeats(10**9), 64, served())

    before, after = trainer(), trainer()
    first = replace(exposures(100, 1), ts_ms=START_MS + np.arange(100, dtype=np.int64))
    clicks = first.label > 0
    before.take(first.take(clicks))
    before.step(drain=True)
    image, training = before.model.snapshot()
    after.model.resume(image, training)
    after.resume({**training, **before.snapshot()}, {})
    newest = int(first.ts_ms[clicks].max())
    rest = replace(first, version=np.ones(100, np.int64), arm=np.zeros(100, np.uint8)).take(~clicks)
    after.take(rest)
    while after.step(drain=True) is not None:
        pass
    assert after.served is not None
    assert after.served.waiting == int((rest.ts_ms > newest).sum()) < len(rest)
