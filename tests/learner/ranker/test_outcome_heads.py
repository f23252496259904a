"""Heads of outcomes: the gradients of a step, what reaches them and what they reach, versions, another schema."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from learner.evaluation.progressive import Progressive
from learner.gate.model_checks import unsound
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.ranker.sampling import usable
from learner.serving.serving_model import ServingModel
from learner.training.evolve import evolve
from learner.training.trainer import Trainer
from millrace.basics.ranking_metrics import auc
from millrace.contracts.logforms import OutcomeRule
from millrace.contracts.samples import CORRECTION, OUTCOME, POLICIES, SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Image, split
from tests.scenes.learning import ATTENDED, START_MS, make_samples
from tests.scenes.learning import SCHEMA as PLAIN

LIKE, BUY = OutcomeRule("like", column="like"), OutcomeRule("buy", on="click", event="purchase", within="30d")
SCHEMA = msgspec.structs.replace(PLAIN, outcome=(LIKE, BUY))
SMALL = {"width": 4, "hidden": [16], "blocks": 1}
NAN = np.float32(np.nan)


def with_outcomes(batch: SampleBatch, seed: int = 0) -> SampleBatch:
    """Likes by the item, a fifth unknown; purchases of half of the clicked users."""
    rng = np.random.default_rng([seed, len(batch)])
    like = rng.random(len(batch)) < np.where(batch.item % np.uint64(2), 0.6, 0.05)
    buy = rng.random(len(batch)) < np.where(batch.user % np.uint64(2), 0.8, 0.2)
    told = np.stack([np.where(rng.random(len(batch)) < 0.2, NAN, like), np.where(batch.label > 0, buy, NAN)], axis=1)
    return replace(batch, outcomes=told.astype(np.float32))


def samples(seed: int, rows: int = 256, **more: Any) -> SampleBatch:
    return with_outcomes(make_samples(rows, seed, **more), seed)


def fed(model: OnlineModel, seeds: range, **more: Any) -> OnlineModel:
    for seed in seeds:
        assert model.learn(samples(seed, **more)).skipped is None
    return model


def heads(image: Image) -> dict[str, NDArray[Any]]:
    own = {n: a for n, a in image.dense.items() if n.startswith("outcomes.")}
    return own | {
        f"{n}/{c}": a for n, t in image.tables.items() if ":" in n for c, a in {**t.columns, "": t.ids}.items()
    }


@pytest.mark.parametrize("model", ["wide_resnet", "wide_deep", "wide_resnet_bn", "deepfm", "logistic"])
def test_a_step_has_the_gradients_that_autograd_finds(model: str) -> None:
    """The reference computes z = base + lift t + body + wide with torch, and its gradients of the mean loss."""
    torch.manual_seed(0)
    one = fed(OnlineModel(SCHEMA, SMALL | {"model": model, "averaging": 0.0, "step_rows": 10**6}, 0), range(3))
    batch = samples(9)
    inputs, cat, num = one._inputs, batch.cat, one._inputs.plain(batch.num)
    given = np.linspace(-2, 2, len(batch), dtype=np.float32)
    for k, (name, head) in enumerate(one.network.heads.items()):
        with torch.no_grad():
            head.lift.fill_(0.3)
        seen = head.seen.clone()
        y = batch.outcomes[:, k]
        known = np.isfinite(y)
        blocks = [one.tables[f"{name}:{g.name}"].read(inputs.ids(g, cat[known]), True) for g in inputs.groups]
        leaves, wides, parts = [], [], []
        total = torch.zeros(int(known.sum()))
        for group, block in zip(inputs.groups, blocks, strict=True):
            values = torch.tensor(np.concatenate([block.embedding, np.zeros((1, group.width), np.float32)]))
            wide = torch.tensor(np.append(block.wide, np.float32(0)), requires_grad=True)
            values.requires_grad_(True)
            inverse = torch.from_numpy(block.inverse.astype(np.int64))
            total = total + wide[inverse].sum(1)  # a missing id is -1: the zeros at the end
            fields = []
            for a, b in zip(group.starts[:-1], group.starts[1:], strict=True):
                there = (inverse[:, a:b] >= 0).sum(1, keepdim=True).clamp(min=1)
                fields.append(values[inverse[:, a:b]].sum(1) / there)
            if group.width:
                parts.append(torch.stack(fields, 1))
                leaves.append(values)
            wides.append(wide)
        head.train()
        buffers = [b.clone() for b in head.body.buffers()]
        body = head.body(parts, torch.from_numpy(np.ascontiguousarray(num[known])))
        for mine, before in zip(head.body.buffers(), buffers, strict=True):
            mine.copy_(before)
        ones = float(seen[1] + y[known].sum())
        base = np.log(ones / (float(seen[0]) + known.sum() - ones))
        z = base + head.lift * torch.from_numpy(given[known]) + body + total
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, torch.from_numpy(y[known]), reduction="sum")
        parameters = list(head.parameters())
        found = torch.autograd.grad(loss / len(batch), [*parameters, *leaves, *wides])
        head.seen.copy_(seen)
        steps = {step.head: step for step in one._outcomes.steps(batch, cat, num, given, 1.0)}
        for parameter, gradient in zip(parameters, found, strict=False):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, atol=2e-6), name
        step = steps[f"{name}:"]
        assert np.allclose(step.slope, (torch.sigmoid(z).detach().numpy() - y[known]), atol=1e-5)
        sums = found[len(parameters) : len(parameters) + len(leaves)]
        for own_gradient, leaf, block in zip(
            step.grads, sums, [b for b in blocks if b.embedding.shape[1]], strict=True
        ):
            width = block.embedding.shape[1]
            spread = np.zeros((len(block.ids) + 1, width), np.float32)
            own = own_gradient.array[:, own_gradient.at : own_gradient.end].reshape(len(step.slope), -1, width)
            group = next(g for g in inputs.deep if g.width == width)
            for f, (a, b) in enumerate(zip(group.starts[:-1], group.starts[1:], strict=True)):
                there = np.maximum(1, (block.inverse[:, a:b] >= 0).sum(1))
                for c in range(a, b):
                    np.add.at(spread, block.inverse[:, c], own[:, f] / there[:, None])
            assert np.allclose(spread[:-1], leaf.numpy()[:-1], atol=2e-6)


def test_heads_learn_what_the_click_does_not_tell_and_the_click_is_as_without_them() -> None:
    both, plain = OnlineModel(SCHEMA, SMALL, 0), OnlineModel(PLAIN, SMALL, 0)
    for seed in range(40):
        both.learn(samples(seed))
        plain.learn(make_samples(256, seed))
    new = samples(99, 2000)
    p = both.predict(new.cat, new.num)
    assert np.array_equal(p[:, 0], both.score(new.cat, new.num))
    assert np.abs(p[:, 0] - plain.score(new.cat, new.num)).max() < 1e-3  # the network's steps round otherwise
    liked, bought, clicked = new.item % np.uint64(2) > 0, new.user % np.uint64(2) > 0, new.label > 0
    for k, tasted, rows in ((1, liked, np.ones(2000, np.bool_)), (2, bought, clicked)):
        assert auc(p[rows, k], tasted[rows]) > 0.95
        assert auc(p[rows, 0], tasted[rows]) < 0.65
        assert abs(p[rows, k].mean() / np.nanmean(new.outcomes[rows, k - 1]) - 1) < 0.1


def test_negatives_that_are_left_out_count_in_those_that_stay() -> None:
    kept = fed(OnlineModel(SCHEMA, SMALL | {"negative_keep": 0.3}, 0), range(60))
    new = samples(99, 4000)
    known = np.isfinite(new.outcomes[:, 0])
    share = kept.predict(new.cat, new.num)[known, 1].mean() / new.outcomes[known, 0].mean()
    assert abs(share - 1) < 0.1


def test_what_is_not_known_teaches_no_head() -> None:
    model = fed(OnlineModel(SCHEMA, SMALL | {"averaging": 0.0, "step_rows": 1}, 0), range(3))
    before = model.snapshot()[0]
    for batch in (make_samples(256, 7), make_samples(256, 8).telling_none(2)):
        assert model.learn(batch).rows == 256
    after = model.snapshot()[0]
    tables = {n for n in heads(before) if ":" in n}
    assert tables
    for name in tables:
        assert np.array_equal(heads(before)[name], heads(after)[name]), name
    assert np.array_equal(before.dense["outcomes.like.seen"], after.dense["outcomes.like.seen"])


def test_an_outcome_that_comes_later_teaches_its_head_and_no_click() -> None:
    model = fed(OnlineModel(SCHEMA, SMALL | {"numerics": "none"}, 0), range(3))
    first = model.snapshot()[0]
    later = samples(1)
    assert model.learn(replace(later, kind=np.full(len(later), OUTCOME, np.uint8))).rows == len(later)
    second = model.snapshot()[0]
    changed = {n for n, t in first.tables.items() if not _same(t.columns, second.tables[n].columns)}
    assert {n.partition(":")[0] for n in changed} == {"like", "buy"}
    assert not usable(replace(later, kind=np.full(len(later), OUTCOME, np.uint8)))[0].kind.size


def _same(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    return all(np.array_equal(one[n], other[n]) for n in one)


def trainer_of(schema: Schema) -> Trainer:
    return Trainer(OnlineModel(schema, SMALL, 0), Progressive(100), Repeats(10**9), 64)


def test_each_outcome_of_an_exposure_is_learnt_one_time() -> None:
    trainer = trainer_of(SCHEMA)
    like, buy = (replace(samples(1, 64), kind=np.full(64, OUTCOME, np.uint8)) for _ in range(2))
    like.outcomes[:, 0], like.outcomes[:, 1] = 1, NAN
    buy.outcomes[:, 0], buy.outcomes[:, 1] = NAN, 0
    for batch in (samples(1, 64), like, like, buy, like):
        trainer.take(batch)
    assert trainer.pending == 3 * 64
    aged = [replace(buy, telling=np.full(64, number, np.uint8)) for number in (1, 2, 2, 1)]
    for batch in aged:
        trainer.take(batch)
    assert trainer.pending == 5 * 64, "each telling by age, too"
    none = trainer_of(PLAIN)
    none.take(like)
    assert none.pending == 0


@pytest.mark.parametrize("model", ["wide_resnet", "wide_deep", "pnn_group"])
def test_versions_carry_heads_and_scorers_predict_by_them(model: str) -> None:
    spec = SMALL | {"model": model, "retrieval_width": 8, "max_rows": 60, "max_age_days": 0.5}
    one = fed(OnlineModel(SCHEMA, spec, 0), range(4))
    assert unsound(one, whole=True) is None
    image, training = one.snapshot()
    one.changes()
    twin = OnlineModel(SCHEMA, spec, 5)
    twin.resume(image, training)
    for seed in range(4, 8):
        batch = samples(seed, start_ms=START_MS + seed * 6 * 3_600_000)
        assert one.learn(batch) == twin.learn(batch)
    assert image.apply(one.changes()).same_bits(one.snapshot()[0]) == ""
    assert twin.snapshot()[0].same_bits(one.snapshot()[0]) == ""
    parts = one.slices(20)
    sliced = OnlineModel(SCHEMA, spec, 5)
    sliced.resume([*iter(parts.next, None), parts.finish()])
    assert sliced.snapshot()[0].same_bits(one.snapshot()[0]) == ""
    assert np.array_equal(sliced.predict(batch.cat, batch.num), one.predict(batch.cat, batch.num))
    ranker = split(one.snapshot()[0])[0]
    assert set(ranker.tables) == {name for name in one.tables if "retrieval" not in name}
    serving = ServingModel.of(SCHEMA, spec, ranker)
    assert np.array_equal(serving.score(batch.cat, batch.num), one.score(batch.cat, batch.num))
    assert np.array_equal(serving.predict(batch.cat, batch.num), one.predict(batch.cat, batch.num))
    one.learn(samples(20))
    serving.patch(split(one.changes())[0])
    assert np.array_equal(serving.score(batch.cat, batch.num), one.score(batch.cat, batch.num))
    assert np.array_equal(serving.predict(batch.cat, batch.num), one.predict(batch.cat, batch.num))


def test_a_refused_batch_leaves_no_trace_in_heads() -> None:
    model = fed(OnlineModel(SCHEMA, SMALL, 0), range(3))
    with torch.no_grad():
        model.network.get_parameter("outcomes.buy.body.out.weight").fill_(np.nan)
    before, known = model.snapshot()
    assert model.learn(samples(9)).skipped == "gradient_not_finite"
    after, later = model.snapshot()
    assert after.same_bits(before) == ""
    assert all(known[name].tobytes() == later[name].tobytes() for name in known)


@pytest.mark.parametrize("model", ["wide_resnet", "pnn_group"])
@pytest.mark.parametrize("schema", [PLAIN, ATTENDED])
def test_another_schema_keeps_the_heads_that_it_has_too(model: str, schema: Schema) -> None:
    spec = SMALL | {"model": model}
    old = msgspec.structs.replace(schema, outcome=(LIKE, BUY))
    new = msgspec.structs.replace(schema, outcome=(OutcomeRule("view", column="view"), LIKE))
    one = OnlineModel(old, spec, 0)
    for seed in range(6):
        one.learn(with_outcomes(make_samples(128, seed, schema), seed))
    image, training = one.snapshot()
    two, report = evolve(one.columns, one.spec, image, training, new, spec, 1)
    batch = make_samples(200, 50, schema)
    p, q = one.predict(batch.cat, batch.num), two.predict(batch.cat, batch.num)
    assert np.array_equal(p[:, 0], q[:, 0])
    assert np.array_equal(p[:, 1], q[:, 2])
    assert "outcome like, a head" in report.kept
    assert "outcome view, a head" in report.new
    assert "outcome buy, a head" in report.dropped
    assert any(name.startswith("table buy:") for name in report.dropped)
    assert two.learn(with_outcomes(make_samples(128, 9, schema), 9)).skipped is None


def told_by_age(rows: int, seed: int, policy: str) -> list[SampleBatch]:
    """Exposures that are bought with .6, or .3 where the hour is odd; three in ten of these before the first telling.
    More are bought and brought back. First the first telling, then two of what changed."""
    batch = make_samples(rows, seed)
    rng, hour = np.random.default_rng([seed, 7]), batch.cat[:, PLAIN.layout.cat_names.index("hour")]
    keeps = rng.random(rows) < np.where(np.isin(hour, HOURS[::2]), 0.6, 0.3)
    early, back = rng.random(rows) < 0.3, ~keeps & (rng.random(rows) < 0.3)
    code = np.full(rows, POLICIES.index(policy), np.uint8)
    batch = replace(batch, kind=np.full(rows, OUTCOME, np.uint8), policy=code, ts_ms=batch.ts_ms + seed * 3_600_000)
    values = [
        np.where((keeps | back) & early, 1, 0),
        np.where((keeps | back) & ~early, 2, np.nan),
        np.where(back, np.where(early, -1, -2), np.nan),
    ]
    made = []
    for number, value in enumerate(values, 1):
        told = np.stack([np.full(rows, NAN), value], axis=1).astype(np.float32)
        made.append(replace(batch, outcomes=told, telling=np.full(rows, number, np.uint8)).take(np.isfinite(value)))
    return made


HOURS = np.unique(make_samples(2000, 0).cat[:, PLAIN.layout.cat_names.index("hour")])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fake-negative-weighted", "es-dfm"])
def test_a_head_that_is_told_by_age_comes_to_the_true_rate(policy: str) -> None:
    """With refunds; and without weights it does not. The share of early ones is learnt too."""
    spec = {"model": "logistic", "ftrl_alpha": 0.1, "dense_rate": 0.02, "numerics": "norm", "step_rows": 256}
    schema = msgspec.structs.replace(PLAIN, outcome=(LIKE, msgspec.structs.replace(BUY, within="1h")))
    weighted, plain = OnlineModel(schema, spec, 0), OnlineModel(schema, spec, 0)
    told = [told_by_age(256, seed, policy) for seed in range(150)]
    for now in range(2, 150):  # as they come: what is new, and what changed of older ones
        batch = SampleBatch.concat([told[now - number][number] for number in range(3)])
        weighted.learn(batch)
        plain.learn(replace(batch, policy=np.zeros(len(batch), np.uint8)))
    probe = make_samples(6000, 999)
    even = np.isin(probe.cat[:, PLAIN.layout.cat_names.index("hour")], HOURS[::2])
    found, biased = ([m.predict(probe.cat, probe.num)[r, 2].mean() for r in (even, ~even)] for m in (weighted, plain))
    np.testing.assert_allclose(found, [0.6, 0.3], atol=0.035)
    np.testing.assert_allclose(biased, [0.6 / 1.42, 0.3 / 1.21], atol=0.035)
    early = weighted._outcomes.delays["buy"].early(probe.position, probe.cat)
    assert early.mean() == pytest.approx(0.3 if policy == "es-dfm" else 0.5, abs=0.08)


def test_the_delays_of_outcomes_go_with_snapshots_and_with_another_schema() -> None:
    model = OnlineModel(SCHEMA, SMALL, 0)
    for seed in range(4):
        for batch in told_by_age(256, seed, "es-dfm"):
            model.learn(batch)
    image, training = model.snapshot()
    assert len(training["outcome/buy/places"])
    twin = OnlineModel(SCHEMA, SMALL, 1)
    twin.resume(image, training)
    (first, *_) = told_by_age(256, 9, "es-dfm")
    assert twin.learn(first) == model.learn(first)
    again = twin.snapshot()[1]
    assert all(again[name].tobytes() == array.tobytes() for name, array in model.snapshot()[1].items())
    older = {name: array for name, array in training.items() if not name.startswith("outcome/")}
    twin.resume(image, older)
    assert len(twin._outcomes.delays["buy"]) == 0
    weights = training | {"outcome/buy/weights": np.ones_like(training["outcome/buy/weights"])}
    other, _ = evolve(model.columns, model.spec, image, weights, SCHEMA, SMALL | {"model": "wide_deep"}, 0)
    assert (other.snapshot()[1]["outcome/buy/weights"] == 1).all()


def test_a_late_click_tells_what_hangs_on_it() -> None:
    """A correction carries an outcome on clicks, as a positive does."""
    batch = samples(1)
    late = replace(batch, kind=np.where(batch.label > 0, CORRECTION, batch.kind).astype(np.uint8))
    one, two = (fed(OnlineModel(SCHEMA, SMALL, 0), range(2)) for _ in range(2))
    one.learn(batch), two.learn(late)
    assert _same(heads(one.snapshot()[0]), heads(two.snapshot()[0]))
