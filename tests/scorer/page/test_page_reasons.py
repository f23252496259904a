"""Reasons: taking an input away changes the logit by what the input brought."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.contracts.schema import shop_schema
from scorer.page.score_reasons import ROWS_AT_ONCE, Input, effects, inputs_of, strongest
from tests.scenes.scorer_shop import LAYOUT, SCHEMA


class Additive:
    """The logit is a sum over the inputs, so that each one's share is known."""

    def __init__(self, of_id: dict[int, float], weights: Any) -> None:
        self.of_id, self.weights = of_id, weights
        self.asked: list[int] = []

    def score(self, cat: Any, num: Any) -> Any:
        self.asked.append(len(cat))
        ids = np.array([sum(self.of_id.get(i, 0.0) for i in row) for row in cat.tolist()])
        return (1 / (1 + np.exp(-(ids + num @ self.weights)))).astype(np.float32)


def test_inputs_cover_each_column_that_ranking_knows_exactly_once() -> None:
    for schema in (SCHEMA, shop_schema()):
        inputs, layout = inputs_of(schema), schema.layout
        late = {f.name for f in schema.fields if f.bias} | {"position"}
        cat = [c for i in inputs for c in i.cat]
        assert sorted(cat) == [c for c, name in enumerate(layout.cat_names) if name not in late]
        assert sorted(n for i in inputs for n in i.num) == list(range(layout.N))
        assert {layout.num_names[n].split(".")[0] for i in inputs for n in i.num} <= {i.name for i in inputs}
        names = [i.name for i in inputs]
        assert "position" not in names
        assert len(set(names)) == len(names), "a reason's name says which input is meant"


def test_the_effect_is_what_the_input_adds_to_the_logit() -> None:
    inputs = inputs_of(SCHEMA)
    random = np.random.default_rng(3)
    cat = random.integers(1, 50, (7, LAYOUT.F))
    num = random.normal(size=(7, LAYOUT.N)).astype(np.float32)
    model = Additive({i: random.normal() / 9 for i in range(1, 50)}, random.normal(size=LAYOUT.N) / 20)
    found = effects(model, cat, num, inputs)
    plain = np.zeros((7, len(inputs)))
    for i in range(7):
        for g, taken in enumerate(inputs):
            plain[i, g] += sum(model.of_id[int(cat[i, c])] for c in taken.cat)
            plain[i, g] += sum(model.weights[n] * (num[i, n] - num[:, n].mean()) for n in taken.num)
    np.testing.assert_allclose(found, plain, atol=2e-5)


def test_the_model_is_never_asked_for_more_rows_than_a_page_has() -> None:
    inputs = [Input(f"f{g}", (g % LAYOUT.F,), ()) for g in range(200)]
    model = Additive({}, np.zeros(LAYOUT.N))
    effects(model, np.ones((20, LAYOUT.F), np.int64), np.zeros((20, LAYOUT.N), np.float32), inputs)
    assert max(model.asked) <= ROWS_AT_ONCE
    assert sum(model.asked) == 20 * 201


def test_scores_of_0_and_1_have_effects_that_are_numbers() -> None:
    class Sure:
        def score(self, cat: Any, num: Any) -> Any:
            return (cat[:, 0] > 0).astype(np.float32)

    found = effects(Sure(), np.ones((2, 1), np.int64), np.zeros((2, 0), np.float32), [Input("id", (0,), ())])
    assert np.isfinite(found).all()
    assert (found > 10).all()


def test_an_input_without_effect_is_no_reason() -> None:
    inputs = [Input(n, (), ()) for n in "abcd"]
    found = np.array([[2.4e-7, np.nan, -0.2, 0.1], [0.0, 0.0, 0.0, 0.0]], np.float32)  # of p near .5, one bit is 2.4e-7
    assert [[name for name, _ in reasons] for reasons in strongest(found, inputs, 4)] == [["c", "d"], []]


def test_nothing_is_asked_of_an_empty_page() -> None:
    model = Additive({}, np.zeros(LAYOUT.N))
    nothing = effects(model, np.zeros((0, LAYOUT.F), np.int64), np.zeros((0, LAYOUT.N), np.float32), inputs_of(SCHEMA))
    assert nothing.shape == (0, len(inputs_of(SCHEMA)))
    assert not model.asked
