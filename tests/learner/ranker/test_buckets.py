"""Quantile buckets: edges against numpy, the same bucket when learning and when serving, and the state's round trip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from learner.network.models import REGISTRY
from learner.ranker.buckets import FIRST_ROWS, SAMPLE_ROWS, Reservoir
from learner.ranker.inputs import Inputs
from learner.ranker.model import OnlineModel
from learner.serving.serving_model import ServingModel
from millrace.basics.ranking_metrics import auc
from millrace.contracts.samples import SampleBatch
from millrace.versions.modelstore import Image
from tests.scenes.learning import SCHEMA, make_samples

PRICE = msgspec.structs.replace(
    SCHEMA,
    fields=tuple(msgspec.structs.replace(f, transform="bucket") if f.name == "price" else f for f in SCHEMA.fields),
)
ALL = msgspec.structs.replace(PRICE, windows=msgspec.structs.replace(PRICE.windows, transform="bucket"))
SMALL = {"hidden": [16, 16], "width": 8}


def same(a: OnlineModel, b: OnlineModel) -> bool:
    (image, training), (image_b, training_b) = a.snapshot(), b.snapshot()
    return image.same_bits(image_b) == "" and all(
        training[n].tobytes() == training_b[n].tobytes() for n in training.keys() | training_b.keys()
    )


def test_edges_are_numpys_quantiles_of_what_was_seen() -> None:
    model = OnlineModel(ALL, {**SMALL, "buckets": 8}, 0)
    assert np.isinf(model.dense.changes()["edges"]).all()
    seen: list[Any] = []
    for i in range(8):
        batch = make_samples(FIRST_ROWS, i, ALL)
        model.learn(batch)
        seen.append(batch.num)
        if len(seen) in (1, 2, 4, 8):  # at each doubling
            expected = np.quantile(np.concatenate(seen), np.arange(1, 8) / 8, axis=0).T
            np.testing.assert_allclose(model.dense.changes()["edges"], expected, rtol=1e-6)


def test_edges_of_a_long_stream_are_those_of_a_uniform_sample() -> None:
    values = np.random.default_rng(0).lognormal(size=(20 * SAMPLE_ROWS, 2)).astype(np.float32)
    sample, one_by_one = Reservoir(2), Reservoir(2)
    for part in np.split(values, 80):
        sample.add(part)
    ranks = [(values[:, c, None] <= sample.edges(10)[c]).mean(0) for c in range(2)]
    np.testing.assert_allclose(ranks, [np.arange(1, 10) / 10] * 2, atol=0.03)  # 4 sigma at 4096 values
    for row in values[: 2 * SAMPLE_ROWS]:
        one_by_one.add(row[None])
    again = Reservoir(2)
    again.add(values[: 2 * SAMPLE_ROWS])
    np.testing.assert_array_equal(again.values, one_by_one.values)


def test_a_number_goes_to_the_bucket_between_its_edges() -> None:
    inputs = Inputs(PRICE, 8, True, True, buckets=4)
    edges = np.array([[1.0, 2.0, 2.0]], np.float32)
    num = np.zeros((6, PRICE.layout.N), np.float32)
    num[:, 0] = [-5, 0.9, 1.0, 1.9, 2.0, 7]
    wide = inputs.bucketed(np.zeros((6, PRICE.layout.F), np.int64), num, edges)
    expected = inputs.bucket_ids[0, np.searchsorted(edges[0], num[:, 0], side="right")]
    np.testing.assert_array_equal(wide[:, PRICE.layout.F], expected)
    unknown = inputs.bucketed(np.zeros((6, PRICE.layout.F), np.int64), num, np.full((1, 3), np.inf, np.float32))
    assert not unknown.any()
    assert len(set(Inputs(ALL, 8, True, True, buckets=4).bucket_ids.ravel())) == 4 * ALL.layout.N  # salted by column


def test_what_is_in_buckets_is_no_number_any_more_and_has_its_width() -> None:
    inputs = Inputs(PRICE, 8, True, True, bucket_width=2)
    assert "price" not in inputs.number_names
    assert inputs.numbers == PRICE.layout.N - 1
    assert next(g.width for g in inputs.groups if "price" in g.fields) == 2
    num = np.random.default_rng(0).lognormal(size=(5, PRICE.layout.N)).astype(np.float32)
    np.testing.assert_allclose(inputs.plain(num), np.log1p(num[:, 1:]), rtol=1e-6)
    raw = Inputs(PRICE, 8, True, False)
    shown = [name for i, name in enumerate(raw.number_names) if i not in raw.log_columns]
    assert shown == [n for n in raw.number_names if "_rate." in n]


@pytest.mark.parametrize("schema", [PRICE, ALL], ids=["price", "all"])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_serving_equals_learning_through_deltas_and_resume(name: str, schema: Any) -> None:
    model = OnlineModel(schema, {**SMALL, "model": name}, 0)
    state, _ = model.snapshot()
    serving = ServingModel.of(schema, model.spec, state)
    probe = make_samples(200, 99, schema)
    moved = set()
    for i in range(6):
        model.learn(make_samples(50, i, schema))
        delta = model.changes()
        state = state.apply(Image.of_tensors(delta.tensors()))
        serving.patch(delta)
        moved.add(delta.dense["edges"].tobytes())
        np.testing.assert_array_equal(model.score(probe.cat, probe.num), serving.score(probe.cat, probe.num))
    assert len(moved) == 4  # unknown, after 64, 128 and 256 rows
    image, training = model.snapshot()
    assert state.same_bits(image) == ""
    again = OnlineModel(schema, model.spec, 5)
    again.resume(image, training)
    for i in range(6, 16):
        assert model.learn(make_samples(50, i, schema)) == again.learn(make_samples(50, i, schema))
    assert same(model, again)


def test_a_refused_batch_moves_no_edge() -> None:
    model, twin = (OnlineModel(PRICE, {**SMALL, "max_gradient": 1e-9}, 0) for _ in range(2))
    assert model.learn(make_samples(500, 0, PRICE)).skipped == "gradient_exploded"
    assert same(model, twin)


def test_numbers_that_are_not_finite_fall_where_zero_does() -> None:
    model = OnlineModel(PRICE, SMALL, 0)
    for i in range(4):
        model.learn(make_samples(100, i, PRICE))
    probe = make_samples(50, 9, PRICE)
    bad, zero = probe.num.copy(), probe.num.copy()
    bad[:, 0], zero[:, 0] = np.nan, 0
    np.testing.assert_array_equal(model.score(probe.cat, bad), model.score(probe.cat, zero))


@pytest.mark.parametrize("name", ["logistic", "wide_resnet_bn"])
def test_learns_what_is_no_line(name: str) -> None:
    """Clicks on middling prices only: a linear model of the number cannot see it, one of its buckets can."""

    def samples(seed: int) -> SampleBatch:
        batch = make_samples(256, seed, PRICE)
        rng = np.random.default_rng(seed)
        middle = (batch.num[:, 0] > np.exp(0.4)) & (batch.num[:, 0] < np.exp(1.6))
        return replace(batch, label=(rng.random(256) < np.where(middle, 0.9, 0.1)).astype(np.float32))

    spec = {**SMALL, "model": name, "ftrl_alpha": 0.1}
    found = {}
    for schema in (PRICE, SCHEMA):
        model = OnlineModel(schema, spec, 0)
        for i in range(40):
            model.learn(samples(i))
        test = SampleBatch.concat([samples(i) for i in range(100, 110)])
        found[schema.id] = auc(model.score(test.cat, test.num), test.label)
    assert found[PRICE.id] > 0.85
    if name == "logistic":
        assert found[SCHEMA.id] < 0.65
