"""Down-sampled negatives and the guard on the loss: each against its formula and on a known rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.ranker.guard import WARM_ROWS, LossGuard
from learner.ranker.model import OnlineModel
from learner.ranker.sampling import chosen
from millrace.basics.ranking_metrics import calibration
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from tests.scenes.learning import SCHEMA, make_samples

SMALL: dict[str, Any] = {"hidden": [16, 16], "width": 4, "step_rows": 1}


def rare(rows: int, seed: int) -> SampleBatch:
    """Samples of which about one in eight is clicked, by taste."""
    batch = make_samples(rows, seed)
    label = batch.label * (np.random.default_rng(seed).random(rows) < 0.25)
    return replace(batch, label=label.astype(np.float32), kind=np.where(label > 0, POSITIVE, NEGATIVE).astype(np.uint8))


# -- negatives left out ----------------------------------------------------------------------------------------


def test_the_choice_is_of_negatives_only_of_the_share_and_the_same_again() -> None:
    batch = rare(20_000, 0)
    kept = chosen(batch, 0.25)
    negative = batch.label == 0
    assert kept[~negative].all()
    assert kept[negative].mean() == pytest.approx(0.25, abs=0.015)
    half = np.arange(0, 20_000, 2)
    np.testing.assert_array_equal(chosen(batch.take(half), 0.25), kept[half])
    assert not (kept & ~chosen(batch, 0.5)).any()  # a greater share keeps what a smaller one does
    assert chosen(batch, 1.0).all()


@pytest.mark.parametrize("name", ["logistic", "wide_deep", "wide_resnet_bn"])
def test_calibration_holds_with_a_quarter_of_the_negatives(name: str) -> None:
    model = OnlineModel(SCHEMA, {**SMALL, "model": name, "negative_keep": 0.25, "ftrl_alpha": 0.1}, 0)
    learnt = left_out = 0
    for i in range(120):
        report = model.learn(rare(256, i))
        learnt, left_out = learnt + report.rows, left_out + report.left_out
    assert learnt + left_out == 120 * 256
    assert 0.55 < left_out / (120 * 256) < 0.75
    test = rare(8000, 1000)
    q = model.score(test.cat, test.num).astype(np.float64)
    assert calibration(q, test.label) == pytest.approx(1.0, abs=0.12)
    p = q / (q + (1 - q) * 0.25)  # what a model of the thinned stream would say: q = p / (p + (1 - p) / w), inverted
    np.testing.assert_allclose(p / (p + (1 - p) / 0.25), q, rtol=1e-9)
    assert calibration(p, test.label) > 2


def test_served_answers_are_the_corrected_ones_of_the_model_of_the_thinned_stream() -> None:
    """The same weights with and without correction differ by q = p / (p + (1 - p) / w)."""
    w = 0.25
    thinned = OnlineModel(SCHEMA, {**SMALL, "model": "logistic", "negative_keep": w}, 0)
    for i in range(20):
        thinned.learn(rare(256, i))
    probe = rare(500, 99)
    q = thinned.score(probe.cat, probe.num).astype(np.float64)
    inputs = thinned._inputs
    inputs.prior_logit -= np.log(w)  # the logit that was trained
    p = thinned.score(probe.cat, probe.num).astype(np.float64)
    np.testing.assert_allclose(q, p / (p + (1 - p) / w), rtol=1e-5)


def test_a_batch_of_negatives_left_out_changes_nothing() -> None:
    model, twin = (OnlineModel(SCHEMA, {**SMALL, "negative_keep": 1e-9}, 0) for _ in range(2))
    report = model.learn(replace(make_samples(50, 0), label=np.zeros(50, np.float32)))
    assert (report.rows, report.left_out, report.skipped) == (0, 50, None)
    assert model.snapshot()[0].same_bits(twin.snapshot()[0]) == ""


# -- the loss against the recent past --------------------------------------------------------------------------


def fed(ratio: float = 10.0) -> LossGuard:
    guard = LossGuard(ratio)
    rng = np.random.default_rng(0)
    for _ in range(100):
        click = rng.random(512) < 0.1
        assert not guard.exploded(np.where(click, 2.5, 0.1), np.ones(512), click)
    return guard


def test_the_guard_is_about_the_mix_and_the_past() -> None:
    guard = fed()
    np.testing.assert_allclose(guard.means, [0.1, 2.5])
    clicks, none = np.ones(512, np.bool_), np.zeros(512, np.bool_)
    assert not guard.exploded(np.full(512, 2.5), np.ones(512), clicks)  # seven times the usual loss, but of clicks
    assert not guard.exploded(np.full(512, 0.9), np.ones(512), none)
    assert guard.exploded(np.full(512, 1.5), np.ones(512), none)  # no more than an absolute bound would let pass
    assert not guard.exploded(np.full(1, 1.5), np.ones(1), none[:1])  # a single row may be that far off
    young = LossGuard(10.0)
    assert not young.exploded(np.full(WARM_ROWS - 1, 0.1), np.ones(WARM_ROWS - 1), np.zeros(WARM_ROWS - 1, np.bool_))
    assert not young.exploded(np.full(512, 9.0), np.ones(512), none)
    assert not any(LossGuard(0.0).exploded(np.full(512, 99.0), np.ones(512), none) for _ in range(20))


def test_the_guard_gives_way_to_a_world_that_has_changed() -> None:
    guard = fed()
    none = np.zeros(512, np.bool_)
    refused = 0
    while guard.exploded(np.full(512, 8.0), np.ones(512), none):
        refused += 1
    assert 2 <= refused <= 20


def test_a_jump_of_the_loss_leaves_weights_and_tables_alone() -> None:
    spec = {**SMALL, "model": "wide_deep", "max_loss": 1e9, "max_gradient": 1e9, "loss_ratio": 3.0}
    model = OnlineModel(SCHEMA, spec, 0)
    for i in range(40):
        assert model.learn(make_samples(256, i)).skipped is None
    image, training = model.snapshot()
    twin = OnlineModel(SCHEMA, spec, 0)
    twin.resume(image, training)
    np.testing.assert_array_equal(twin.guard.snapshot(), model.guard.snapshot())
    with torch.no_grad():
        model.dense.weights.mul_(40)  # whatever blew it up
    batch = make_samples(256, 99, users=5000)
    report = model.learn(batch)
    assert report.skipped == "loss_jumped"
    with torch.no_grad():
        model.dense.weights.copy_(twin.dense.weights)
    after, rest = model.snapshot()
    assert after.same_bits(image) == ""
    assert {n for n in rest if rest[n].tobytes() != training[n].tobytes()} == {"guard"}
    assert model.learn(make_samples(256, 41)).skipped is None


def test_a_loss_on_items_that_were_never_learnt_is_no_jump() -> None:
    spec = {**SMALL, "model": "wide_deep", "max_loss": 1e9, "max_gradient": 1e9, "loss_ratio": 3.0}
    model = OnlineModel(SCHEMA, spec, 0)
    for i in range(40):
        model.learn(make_samples(256, i))
    known = make_samples(256, 99)
    column = SCHEMA.layout.cat_names.index("item_id")
    new = replace(known, cat=known.cat.copy())
    new.cat[:, column] += 1  # no id that was ever drawn
    assert not model.knows("item_id", new.cat).any()
    with torch.no_grad():
        model.dense.weights.mul_(40)  # a network that knows nothing of what it sees
    means = model.guard.means.copy()
    assert model.learn(new).skipped is None
    np.testing.assert_array_equal(model.guard.means, means)
    with torch.no_grad():
        model.dense.weights.mul_(40)
    mixed = replace(known, cat=np.where(np.arange(256)[:, None] % 2, known.cat, make_samples(256, 7).cat + 7))
    assert model.learn(mixed).skipped == "loss_jumped"
