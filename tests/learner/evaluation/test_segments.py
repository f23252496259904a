"""Which segments rows are in, and figures by segment against the exact ones of the same rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learner.evaluation.progressive import Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.training.trainer import Trainer
from millrace.basics.errors import SettingError
from millrace.basics.hashing import column_hash
from millrace.basics.ranking_metrics import auc, calibration, log_loss
from millrace.contracts.samples import SampleBatch
from millrace.labels import Waits
from tests.scenes.learning import SCHEMA, make_samples

SPEC: dict[str, Any] = {"model": "wide_deep", "hidden": [16, 16], "width": 4}
NAMED = {"category": ("1", "2"), "tags": ("3",), "price": ("4",), "nothing": ("5",)}
NAMES = ["category=1", "category=2", "tags=3", "user=known", "user=new", "item=known", "item=new"]


def test_members_are_values_and_ids_met_before() -> None:
    segments, model = Segments(SCHEMA, NAMED), OnlineModel(SCHEMA, SPEC, 0)
    assert segments.names == NAMES

    def members(batch: SampleBatch) -> np.ndarray[Any, Any]:
        masks = segments.members(batch, model)
        return masks[:, None] >> np.arange(len(NAMES), dtype=np.uint64) & np.uint64(1) > 0

    first, second = make_samples(60, 0, users=20), make_samples(200, 1, users=200)
    assert not members(first)[:, [3, 5]].any()
    model.learn(first)
    rows, found = model.rows, members(second)
    assert model.rows == rows
    category = (np.flatnonzero(np.isin(second.item, column_hash(np.arange(5, 31, 5)))), 0)  # item % 5 + 1
    assert found[category].all()
    assert found[:, 0].sum() == len(category[0])
    np.testing.assert_array_equal(found[:, 3], np.isin(second.user, first.user))
    np.testing.assert_array_equal(found[:, 4], ~found[:, 3])
    np.testing.assert_array_equal(found[:, 5], np.isin(second.item, first.item))
    assert 0 < found[:, 3].sum() < 200


def test_figures_are_the_exact_ones_of_the_rows_in_each_segment() -> None:
    rng = np.random.default_rng(0)
    segments = Segments(SCHEMA, NAMED)
    p = rng.random(1000)
    y = (rng.random(1000) < p).astype(np.float32)
    members = rng.random((1000, len(NAMES))) < 0.3
    members[:, 1] = False
    masks = (members << np.arange(len(NAMES))).sum(1).astype(np.uint64)
    figures = segments.metrics(p, y, masks)
    for column, name in enumerate(NAMES):
        own = np.flatnonzero(members[:, column])
        expected = (auc(p[own], y[own]), log_loss(p[own], y[own]), calibration(p[own], y[own]))
        found = figures[name]
        np.testing.assert_allclose((found.auc, found.log_loss, found.calibration), expected)
        assert found.rows == len(own)
    assert np.isnan(figures["category=2"].auc)


def test_a_mask_holds_the_most_segments_that_can_be_named() -> None:
    most = tuple(str(i) for i in range(50))
    segments, batch = Segments(SCHEMA, {"category": most}), make_samples(50, 0)
    assert len(segments.names) == 54
    members = segments.members(batch, OnlineModel(SCHEMA, SPEC, 0))
    figures = segments.metrics(batch.label, batch.label, members)
    assert sum(figures[f"category={i}"].rows for i in most) == figures["item=new"].rows == 50
    assert figures["item=known"].rows == 0
    with pytest.raises(SettingError, match="segments names more than 50 values"):
        Segments(SCHEMA, {"category": (*most, "50")})


def test_the_trainer_looks_at_ids_before_it_learns_them() -> None:
    served = ServedExposures(SCHEMA, Segments(SCHEMA, NAMED), Waits(0, 0, 0), 1000)
    trainer = Trainer(OnlineModel(SCHEMA, SPEC, 0), Progressive(1000), Repeats(10**9), 64, served)
    for seed in (0, 1):
        batch = make_samples(64, seed)
        trainer.take(replace(batch, score=batch.num[:, 0], version=np.ones(64, np.int64)))
        trainer.step()
        served.settle()
        figures = served.by_segment()
        if not seed:
            assert figures["user=new"].rows == 64
    assert figures["user=known"].rows > 32
    assert figures["user=known"].rows + figures["user=new"].rows == served.figures("model")["rows"] == 128
