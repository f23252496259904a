"""A planted effect of slots: most pages are in the order of the model that learns, which puts the best items above."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from learner.ranker.model import OnlineModel
from learner.ranker.slot_effect import SLOTS
from learner.training.evolve import evolve
from millrace.basics.errors import SnapshotError
from millrace.basics.hashing import column_hash, mix
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import Settings
from millrace.evidence.exploration import Exploration
from millrace.evidence.user_arms import Arm
from tests.scenes.schemas import named, of_context, of_item

SCHEMA = parse_schema(named("slots") + of_item("item_id") + of_context("position", bias=True))
SPEC = {"model": "wide_deep", "hidden": [8], "width": 4, "max_rows": 1000}
ITEMS, CANDIDATES, SIZE, AT_ONCE = 150, 30, 8, 30
EFFECT = -1.2 * np.log1p(np.arange(SIZE) / 2)
AT_ITEM, AT_POSITION = (SCHEMA.layout.cat_names.index(name) for name in ("item_id", "position"))
FIELD = next(field for field in SCHEMA.layout.cat_fields if field.name == "position")
IN_SLOT = mix(SCHEMA.layout.field_salt(FIELD), column_hash(np.arange(SIZE))).view(np.int64)


class Lived(NamedTuple):
    model: OnlineModel
    truth: np.ndarray  # (ITEMS,) logits
    expected: float  # clicks that the second half's served scores expect, over those that came

    @property
    def scores(self) -> np.ndarray:
        return self.model.score(features(np.arange(ITEMS)), np.empty((ITEMS, SCHEMA.layout.N), np.float32))

    @property
    def order(self) -> float:
        """The correlation of what items are ranked by with the truth."""
        return float(np.corrcoef(np.log(self.scores / (1 - self.scores)), self.truth)[0, 1])


def features(items: np.ndarray, slot: np.ndarray | None = None) -> np.ndarray:
    cat = np.zeros((len(items), SCHEMA.layout.F), np.int64)
    cat[:, AT_ITEM] = 1000 + items
    cat[:, AT_POSITION] = 0 if slot is None else IN_SLOT[slot]
    return cat


def live(seed: int, says_odds: bool, pages: int = 12_000) -> Lived:
    rng, how = np.random.default_rng(seed), Exploration(0.15, "uniform")
    truth, model = rng.normal(-1.5, 1, ITEMS), OnlineModel(SCHEMA, SPEC, seed)
    slot, served, came = np.tile(np.arange(SIZE), AT_ONCE), 0.0, 0.0
    for at in range(0, pages, AT_ONCE):
        scores = Lived(model, truth, 0).scores
        items, odds = [], []
        for _ in range(AT_ONCE):
            there = rng.permutation(ITEMS)[:CANDIDATES]
            there = there[np.argsort(-scores[there], kind="stable")]
            page = how.draw(scores[there], SIZE, SIZE, rng)
            items.append(there[page.order])
            odds.append(page.odds)
        item = np.concatenate(items)
        clicked = rng.random(len(item)) < 1 / (1 + np.exp(-truth[item] - EFFECT[slot]))
        if at >= pages / 2:
            served, came = served + scores[item].sum(), came + clicked.sum()
        kind, ts_ms = np.where(clicked, POSITIVE, NEGATIVE).astype(np.uint8), np.full(len(item), 1_700_000_000_000 + at)
        num = np.empty((len(item), SCHEMA.layout.N), np.float32)
        own = np.concatenate(odds) * np.float32(says_odds)
        model.learn(SampleBatch.of_rows(kind, ts_ms, features(item, slot), num, odds=own))
    return Lived(model, truth, served / came)


@pytest.fixture(scope="module")
def lived() -> Lived:
    return live(0, True)


def test_the_planted_effect_is_found_from_drawn_slots_and_items_are_ranked_free_of_it(lived: Lived) -> None:
    found = lived.model.slots.weights[:SIZE]
    assert np.abs((found - found.mean()) - (EFFECT - EFFECT.mean())).max() < 0.3
    assert lived.expected == pytest.approx(1, abs=0.04), "served scores are right over all slots together"
    other = live(0, False)
    assert lived.order > other.order + 0.05, "of a model that takes what is above for what is better"


def test_what_a_model_puts_above_is_no_effect_of_the_slot() -> None:
    """Ranked by another model, which knows more: all slots would learn that from its pages."""
    rng, model = np.random.default_rng(0), OnlineModel(SCHEMA, SPEC, 0)
    num = np.empty((SIZE, SCHEMA.layout.N), np.float32)
    for page in range(6000):
        drawn = page % 4 == 0
        appeal = rng.normal(size=SIZE)
        z = -1 + (appeal if drawn else np.sort(appeal)[::-1]) + EFFECT
        odds = np.full(SIZE, 0.1 if drawn else 0.97, np.float32)
        kind = np.where(rng.random(SIZE) < 1 / (1 + np.exp(-z)), POSITIVE, NEGATIVE).astype(np.uint8)
        cat = features(np.zeros(SIZE, np.int64), np.arange(SIZE))
        model.learn(SampleBatch.of_rows(kind, np.full(SIZE, 1_700_000_000_000), cat, num, odds=odds))
    found = model.slots.weights[:SIZE] - model.slots.weights[:SIZE].mean()
    assert np.abs(found - (EFFECT - EFFECT.mean())).max() < 0.5


def test_without_odds_nothing_is_learnt_of_slots_but_by_the_wide_weight() -> None:
    rng = np.random.default_rng(0)
    schema = parse_schema(named("s") + of_item("item_id"))
    for of, odds in ((SCHEMA, 0.0), (schema, 0.2)):  # there are none, or no field
        model = OnlineModel(of, SPEC, 0)
        cat = rng.integers(1, 9, (50, of.layout.F))
        kind, ts_ms = rng.integers(0, 2, 50).astype(np.uint8), np.full(50, 1_700_000_000_000)
        num = np.empty((50, of.layout.N), np.float32)
        model.learn(SampleBatch.of_rows(kind, ts_ms, cat, num, odds=np.full(50, odds, np.float32)))
        assert not any(name.startswith("slots/") for name in model.snapshot()[1])


def test_a_slot_that_nobody_knows_has_no_effect(lived: Lived) -> None:
    cat = features(np.arange(3), np.arange(3))
    cat[2, AT_POSITION] = 12345
    apart, slots = lived.model.slots.of(cat, np.array([0.2, 0, 0.2], np.float32))
    assert slots is not None
    assert slots.tolist() == [0, SLOTS, SLOTS]
    assert apart[:, AT_POSITION].tolist() == [0, IN_SLOT[1], 0]
    assert lived.model.slots.logits(slots)[1:].tolist() == [0, 0]


def test_it_goes_on_after_a_restart_and_under_another_spec(lived: Lived) -> None:
    image, training = lived.model.snapshot()
    again = OnlineModel(SCHEMA, SPEC, 7)
    again.resume(image, training)
    grown, _ = evolve(lived.model.columns, lived.model.spec, image, training, SCHEMA, SPEC | {"hidden": [6]}, 0)
    for model in (again, grown):
        for name, array in lived.model.slots.snapshot().items():
            assert np.array_equal(model.slots.snapshot()[name], array), name
    short = training | {"slots/rows": training["slots/rows"][1:]}
    with pytest.raises(SnapshotError, match="not of a"):
        again.resume(image, short)


def test_samples_say_odds_where_pages_are_drawn() -> None:
    assert not Settings().samples_say_arms
    assert Settings(explore="0.05").samples_say_arms
    assert Settings(arms={"a": Arm("model", 0.1, explore="0.2,uniform")}).samples_say_arms
