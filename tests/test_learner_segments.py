"""Figures by segment against the exact ones of the same rows; drift; labels that come after their negative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner.model import OnlineModel
from learner.progressive import Progressive, auc, calibration, grouped_auc, log_loss
from learner.repeats import Repeats, exposure_ids
from learner.segments import Drift, Segments, parse_segments
from learner.trainer import Trainer
from learner.unsettled import Unsettled
from millrace.contracts.errors import SettingError
from millrace.contracts.hashing import column_hash
from millrace.contracts.samples import CORRECTION, NEGATIVE, SampleBatch
from tests.learning import SCHEMA, START_MS, make_samples

SPEC: dict[str, Any] = {"model": "wide_deep", "hidden": [16, 16], "width": 4}
NAMED = {"category": ("1", "2"), "tags": ("3",), "price": ("4",), "nothing": ("5",)}
NAMES = ["category=1", "category=2", "tags=3", "user=known", "user=new", "item=known", "item=new"]


def replaced(batch: SampleBatch, **columns: Any) -> SampleBatch:
    return SampleBatch(**{f: columns.get(f, getattr(batch, f)) for f in SampleBatch.__dataclass_fields__})


def test_segments_are_read_from_a_line() -> None:
    assert parse_segments("kind:business|consumer; seller: 1") == {"kind": ("business", "consumer"), "seller": ("1",)}
    assert parse_segments("") == {}
    for bad in ("kind", "kind:", "a:" + "|".join(str(i) for i in range(51))):
        with pytest.raises(SettingError):
            parse_segments(bad)


def test_members_are_values_and_ids_met_before() -> None:
    segments, model = Segments(SCHEMA, NAMED, 100), OnlineModel(SCHEMA, SPEC, 0)
    assert segments.names == NAMES
    first, second = make_samples(60, 0, users=20), make_samples(200, 1, users=200)
    assert not segments.members(first, model)[:, [3, 5]].any()
    model.learn(first)
    rows, members = model.rows, segments.members(second, model)
    assert model.rows == rows
    category = (np.flatnonzero(np.isin(second.item, column_hash(np.arange(5, 31, 5)))), 0)  # item % 5 + 1
    assert members[category].all()
    assert members[:, 0].sum() == len(category[0])
    np.testing.assert_array_equal(members[:, 3], np.isin(second.user, first.user))
    np.testing.assert_array_equal(members[:, 4], ~members[:, 3])
    np.testing.assert_array_equal(members[:, 5], np.isin(second.item, first.item))
    assert 0 < members[:, 3].sum() < 200


def test_figures_are_the_exact_ones_of_the_newest_rows() -> None:
    rng = np.random.default_rng(0)
    segments = Segments(SCHEMA, NAMED, 300)
    p, user = rng.random(1000), rng.integers(1, 30, 1000).astype(np.uint64)
    y = (rng.random(1000) < p).astype(np.float32)
    members = rng.random((1000, len(NAMES))) < 0.3
    members[:, 1] = False
    for at in (0, 170, 340):  # round the ring
        segments.update(p[at : at + 170], y[at : at + 170], user[at : at + 170], members[at : at + 170])
    segments.update(p[510:], y[510:], user[510:], members[510:])  # longer than the ring
    figures = segments.metrics()
    for column, name in enumerate(NAMES):
        own = 700 + np.flatnonzero(members[700:, column])
        expected = (auc(p[own], y[own]), log_loss(p[own], y[own]), calibration(p[own], y[own]))
        found = figures[name]
        np.testing.assert_allclose((found.auc, found.log_loss, found.calibration), expected)
        assert found.rows == len(own)
    assert segments.grouped_auc == pytest.approx(grouped_auc(p[700:], y[700:], user[700:]))
    assert np.isnan(figures["category=2"].auc)


def test_the_trainer_judges_segments_before_it_learns() -> None:
    segments = Segments(SCHEMA, NAMED, 1000)
    trainer = Trainer(OnlineModel(SCHEMA, SPEC, 0), Progressive(1000), Repeats(10**9), 64, segments)
    trainer.take(make_samples(64, 0))
    trainer.step()
    assert segments.metrics()["user=new"].rows == 64
    trainer.take(make_samples(64, 1))
    trainer.step()
    assert segments.metrics()["user=known"].rows > 32
    whole = trainer.progressive
    figures = segments.metrics()
    parts = [figures["user=new"], figures["user=known"]]
    assert whole.log_loss == pytest.approx(sum(f.log_loss * f.rows for f in parts) / sum(f.rows for f in parts))


def test_drift_is_found_where_the_loss_changes_and_not_elsewhere() -> None:
    rng = np.random.default_rng(0)
    drift = Drift()
    for _ in range(20):
        p = rng.random(500) * 0.4
        drift.update(p, (rng.random(500) < p).astype(float))
    assert drift.found == []
    for _ in range(4):
        p = rng.random(500) * 0.4
        drift.update(p, (rng.random(500) < 0.7).astype(float))
    assert drift.found
    before, after = drift.found[0]
    assert before < 0.5 < after


# -- negatives at once -----------------------------------------------------------------------------------------


def test_predictions_wait_for_their_click_or_their_time() -> None:
    waiting = Unsettled(1000, max_rows=5)
    ids, users = np.array([1, 2, 3], np.uint64), np.array([7, 8, 9], np.uint64)
    waiting.add(ids, np.array([0, 500, 900]), users, np.array([[0.1], [0.2], [0.3]]))
    user, values, label = waiting.settle(np.array([2, 99], np.uint64))
    assert (user.tolist(), values.tolist(), label.tolist()) == ([8], [[0.2]], [1])
    waiting.add(np.array([4], np.uint64), np.array([1000]), users[:1], np.array([[0.4]]))
    user, values, label = waiting.settle(np.array([], np.uint64))
    assert (user.tolist(), values.tolist(), label.tolist()) == ([7], [[0.1]], [0])
    waiting.add(np.arange(10, 16).astype(np.uint64), np.full(6, 1000), np.ones(6, np.uint64), np.zeros((6, 1)))
    assert (len(waiting), waiting.lost) == (5, 3)


def test_fake_negatives_are_judged_by_what_became_of_them() -> None:
    """Each exposure as a negative, its click as a correction later: the figures are those of the true labels."""
    fake = {**SPEC, "delayed_feedback": "fake_negative_weighted"}
    segments = Segments(SCHEMA, {}, 1000)
    trainer = Trainer(OnlineModel(SCHEMA, fake, 0), Progressive(1000), Repeats(10**9), 64, segments, wait_ms=100_000)
    batch = make_samples(192, 0)
    untrained = OnlineModel(SCHEMA, fake, 0)
    clicked = batch.label > 0
    first = replaced(batch, label=np.zeros(192, np.float32), kind=np.full(192, NEGATIVE, np.uint8))
    later = replaced(batch, kind=np.full(192, CORRECTION, np.uint8)).take(clicked)
    p = []
    for part in (slice(0, 64), slice(64, 128), slice(128, 192)):
        p.append(trainer.model.score(batch.cat[part], batch.num[part]))
        trainer.take(first.take(part))
        trainer.step()
        trainer.take(later.take(np.isin(exposure_ids(later), exposure_ids(first.take(part)))))
        trainer.step(drain=True)
    np.testing.assert_array_equal(p[0], untrained.score(batch.cat[:64], batch.num[:64]))
    last = make_samples(2, 5, start_ms=START_MS + 10**6)  # time passes
    trainer.take(replaced(last, label=np.zeros(2, np.float32), kind=np.full(2, NEGATIVE, np.uint8)))
    trainer.step(drain=True)
    assert trainer.progressive.rows == 192
    assert trainer.progressive.auc == pytest.approx(auc(np.concatenate(p), batch.label))
    assert trainer.progressive.calibration == pytest.approx(calibration(np.concatenate(p), batch.label))
    assert segments.metrics()["user=new"].rows + segments.metrics()["user=known"].rows == 192
    users = grouped_auc(np.concatenate(p), batch.label, batch.user)
    assert segments.grouped_auc == pytest.approx(users)
