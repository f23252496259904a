"""Numbers that a model reads: quantile buckets, with edges against numpy, the same when learning and when serving; and
counts in a young stream, whose first events are steps that the network can follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from learner.network.models import REGISTRY
from learner.network.models.norm import InputNorm
from learner.network.models.spec import Spec
from learner.ranker.buckets import FIRST_ROWS, SAMPLE_ROWS, Reservoir
from learner.ranker.inputs import AGE_STEP, Inputs
from learner.ranker.model import OnlineModel, build
from learner.serving.serving_model import ServingModel
from millrace.basics.ranking_metrics import auc
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from millrace.versions.modelstore import Image
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.model_contract import equal
from tests.scenes.schemas import named, of_item, windows_of

PRICE = msgspec.structs.replace(
    SCHEMA,
    fields=tuple(msgspec.structs.replace(f, transform="bucket") if f.name == "price" else f for f in SCHEMA.fields),
)
ALL = msgspec.structs.replace(PRICE, windows=msgspec.structs.replace(PRICE.windows, transform="bucket"))
SMALL = {"hidden": [16, 16], "width": 8}


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
    assert equal(model, again) == ""


def test_a_refused_batch_moves_no_edge() -> None:
    model, twin = (OnlineModel(PRICE, {**SMALL, "max_gradient": 1e-9}, 0) for _ in range(2))
    assert model.learn(make_samples(500, 0, PRICE)).skipped == "gradient_exploded"
    assert equal(model, twin) == ""


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


# -- Counts in a young stream: the first events are steps that the network can follow, not ten deviations --------------


COUNTED = parse_schema(
    named("counted")
    + of_item("item_id", "price:numeric", "age_days:numeric")
    + windows_of("item_id", days=[1], half_lives=[0.5], prior_weight=4, means=({"of": "price", "step": 0.01},))
)


def test_what_one_event_moves_is_known_of_counts_rates_and_ages_alone() -> None:
    inputs = Inputs(COUNTED, 4, True, squash=True)
    moved = dict(zip(inputs.number_names, inputs.one_event.tolist(), strict=True))
    one, rate = pytest.approx(np.log(2)), pytest.approx(np.log1p(1 / 5))
    of_item = {"exposure": one, "click": one, "click_rate": rate, "price_mean_click": 0}
    expected = {f"item_id.{name}.{span}": value for span in ("1d", "h0.5d") for name, value in of_item.items()}
    assert moved == {"price": 0, "age_days": pytest.approx(np.log1p(AGE_STEP))} | expected


def test_what_one_event_moves_is_in_the_units_that_the_network_sees() -> None:
    raw = Inputs(SCHEMA, 4, True, squash=False)
    by_name = dict(zip(raw.number_names, raw.one_event.tolist(), strict=True))
    assert by_name["item_id.click_rate.1d"] == pytest.approx(1 / 21)
    assert by_name["item_id.click.1d"] == pytest.approx(np.log(2))  # the schema's transform of windows is "log"


def test_first_events_are_a_step_of_one_deviation_at_most() -> None:
    layer = InputNorm(2, 0.01).train()
    layer.one_event = torch.tensor([0.7, 0.0])
    for _ in range(1000):
        layer(torch.zeros(256, 2))
    first = layer.eval()(torch.full((1, 2), 0.7))
    assert 0.9 < float(first[0, 0]) <= 1.0
    assert float(first[0, 1]) == 10.0, "of a number whose unit is not known, only the deviation that was seen counts"


def test_numbers_that_vary_more_than_an_event_moves_them_are_scaled_as_before() -> None:
    x = torch.from_numpy(np.random.default_rng(3).normal(0.0, 2.0, (256, 2)).astype(np.float32))
    plain, counts = InputNorm(2, 0.01).train(), InputNorm(2, 0.01).train()
    counts.one_event = torch.full((2,), 0.7)
    assert torch.equal(plain(x), counts(x))


def test_a_layer_that_was_learnt_without_moves_there_step_by_step() -> None:
    """A model from before goes on: no input jumps at the first batch."""
    layer = InputNorm(1, 0.01).train()
    layer.seen.fill_(1e6)
    layer.var.fill_(0.01)
    layer.one_event = torch.tensor([0.7])
    layer(torch.zeros(256, 1))
    assert 0.01 < float(layer.var[0]) < 0.016
    for _ in range(600):
        layer(torch.zeros(256, 1))
    assert float(layer.var[0]) == pytest.approx(0.49, rel=0.01)


def test_a_full_hour_is_a_small_step_where_all_goods_are_of_one_age() -> None:
    _, network = build(COUNTED, Spec(), 0)
    assert isinstance(network.scale, InputNorm)
    layer, column = network.scale.train(), Inputs(COUNTED, 4, True, squash=True).number_names.index("age_days")
    ages = np.log1p(np.array([3, 4], np.float32) / 24)
    rows = torch.zeros(256, len(layer.mean))
    rows[:, column] = float(ages[0])
    for _ in range(1000):
        layer(rows)
    rows[:, column] = float(ages[1])
    assert 0.1 < float(layer.eval()(rows)[0, column]) < 0.2


@pytest.mark.parametrize("age", ["1min", "5min", "20min", "1d"])
def test_ages_in_other_steps_are_no_number_that_moves_for_all_goods_at_once(age: str) -> None:
    fields = of_item("item_id") + of_item("age_days:numeric", transform="bucket")
    inputs = Inputs(parse_schema(named("aged", age=age) + fields), 4, True, squash=True)
    assert (inputs.bucket_names, inputs.number_names, inputs.one_event.tolist()) == (("age_days",), (), [])


@pytest.mark.parametrize("schema", [SCHEMA, COUNTED])
def test_models_know_it_and_do_not_publish_it(schema: Schema) -> None:
    inputs, network = build(schema, Spec(), 0)
    assert isinstance(network.scale, InputNorm)
    assert network.scale.one_event.tolist() == inputs.one_event.tolist()
    assert "scale.one_event" not in network.state_dict()


def test_a_young_model_scores_an_item_with_its_first_clicks_by_what_it_knows_of_clicks() -> None:
    """Nothing was seen of counts above 0, and other inputs are the same: the score stays where it was, about."""
    samples = make_samples(4096, 1)
    layout = SCHEMA.layout
    nothing = samples.num.copy()
    nothing[:, layout.window_start :] = 0
    model = OnlineModel(SCHEMA, {}, 0)
    for at in range(0, len(samples), 128):
        model.learn(replace(samples, num=nothing).take(slice(at, at + 128)))
    clicked = nothing[:256].copy()
    for name in ("item_id.exposure.1d", "item_id.exposure.7d", "item_id.click.1d", "item_id.click.7d"):
        clicked[:, layout.num_names.index(name)] = 1
    before, after = model.score(samples.cat[:256], nothing[:256]), model.score(samples.cat[:256], clicked)
    moved = np.abs(np.log(after / (1 - after)) - np.log(before / (1 - before)))
    assert float(np.median(moved)) < 0.5
