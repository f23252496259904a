"""Counts in a young stream: the first events are steps that the network can follow, not ten deviations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.network.models.norm import InputNorm
from learner.network.models.spec import Spec
from learner.ranker.inputs import AGE_STEP, Inputs
from learner.ranker.model import OnlineModel, build
from millrace.contracts.schema import Schema, parse_schema
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.schemas import named, of_item, windows_of

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
