"""Whose pages samples are of, as each learner sees them, and what a learner makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from learner.evaluation.progressive import Progressive
from learner.ranker.repeats import Repeats
from learner.role.model_factory import model_of
from learner.samples.viewpoint import MOST, OWN, Viewpoint
from learner.training.trainer import Trainer
from millrace.basics.hashing import value_hash
from millrace.contracts.events import ARMS
from millrace.contracts.samples import SampleBatch
from millrace.contracts.settings import Settings
from millrace.evidence.learners import NamedLearner
from millrace.evidence.user_arms import Arm
from tests.scenes.learning import SCHEMA, make_samples

SETTINGS = Settings(
    learners={"x": NamedLearner("logistic"), "shadow": NamedLearner("logistic")},
    arms={
        "b": Arm("model", 0.2, learner="x"),
        "c": Arm("model", 0.2, learner="x", candidates=9),
        "hits": Arm("popular", 0.1),
        "near": Arm("model", 0.1, candidates=9),
    },
)
PAGES = {"": "model", "near": "model", "random": "control", "hits": "other", "b": "other", "c": "other"}
"""Arms by name, and what page logs say of them. The first is that of all other users."""
OWN_ARMS = {"": {"", "near"}, "x": {"b", "c"}, "shadow": set()}


def samples(seed: int = 0, rows: int = 600) -> tuple[SampleBatch, list[str]]:
    """Rows of pages of all these arms, and the arm of each."""
    batch, names = make_samples(rows, seed), list(PAGES)
    of = np.random.default_rng(seed).integers(0, len(names), len(batch.request))[batch.page]
    codes = np.array([ARMS.index(kind) for kind in PAGES.values()], np.uint8)
    hashes = np.array([value_hash(name) if name else 0 for name in names], np.uint64)
    return replace(batch, arm=codes[of], arm_name=hashes[of]), [names[i] for i in of.tolist()]


def of(name: str, learns_from: Any = "all") -> Viewpoint:
    return Viewpoint.of(msgspec.structs.replace(SETTINGS, learns_from=learns_from).of_learner(name))


@pytest.mark.parametrize("name", OWN_ARMS)
def test_a_learner_knows_its_own_pages(name: str) -> None:
    batch, arms = samples()
    seen = of(name).seen(batch)
    assert (seen.arm == OWN).tolist() == [arm in OWN_ARMS[name] for arm in arms]
    unranked = np.array([arm in ("random", "hits") for arm in arms])
    assert (seen.arm[unranked] == batch.arm[unranked]).all()
    assert (seen.weight == batch.weight).all()


def trained(name: str, learns_from: Any, batches: list[SampleBatch]) -> tuple[Trainer, set[tuple[str, int]]]:
    """A trainer behind these batches, and the samples that it was given to learn."""
    view, learnt = of(name, learns_from), set[tuple[str, int]]()
    trainer = Trainer(model_of(SCHEMA, {"model": "logistic"}, 0), Progressive(1000), Repeats(1 << 40))
    trainer.diverted = view.diverted
    for batch in batches:
        trainer.take(view.seen(batch))
        while (cut := trainer.cut(drain=True)) is not None:
            learnt.update(cut.batch.ids())
            trainer.learn(cut)
    return trainer, learnt


def test_diverted_learners_learn_just_the_rows_of_their_arms() -> None:
    """Every row is of one learner, or of a page that no model ordered."""
    given = [samples(seed) for seed in range(3)]
    batches = [batch for batch, _ in given]
    arm_of = {id: arm for batch, arms in given for id, arm in zip(batch.ids(), arms, strict=True)}
    taken = {}
    for name in ("", "x"):
        trainer, taken[name] = trained(name, "own", batches)
        assert taken[name] == {id for id, arm in arm_of.items() if arm in OWN_ARMS[name]}
        assert trainer.counts["trained"] == len(taken[name])
        assert trainer.counts["trained"] + trainer.counts["others"] == len(arm_of)
    assert not taken[""] & taken["x"]
    assert {arm_of[id] for id in arm_of.keys() - taken[""] - taken["x"]} == {"random", "hits"}


@pytest.mark.parametrize(("name", "learns_from"), [("", "all"), ("x", "all"), ("x", "weighted"), ("shadow", "own")])
def test_all_others_learn_all_rows(name: str, learns_from: str) -> None:
    """A learner that makes no arm's pages has none of its own: it learns from all."""
    batch, _ = samples()
    trainer, learnt = trained(name, learns_from, [batch])
    assert (len(learnt), trainer.counts["others"]) == (len(batch), 0)


def test_a_row_weighs_what_its_odds_say_within_bounds_and_one_without_odds_weighs_1() -> None:
    batch, _ = samples(rows=6)
    odds = np.array([1, 0.5, 0.2, 1e-9, 0, 0], np.float32)
    weighs = of("x", "weighted").seen(replace(batch, odds=odds, weight=np.full(6, 2, np.float32))).weight
    assert weighs.tolist() == pytest.approx([2, 4, 10, 2 * MOST, 2, 2])
    assert of("", "weighted").seen(replace(batch, odds=odds)).weight.tolist() == pytest.approx([1, 2, 5, MOST, 1, 1])


def test_with_weights_each_item_counts_as_if_all_had_been_shown_as_often() -> None:
    """The weighted click rate of pages that show one item nine times as often as another is that of even pages."""
    rng = np.random.default_rng(1)
    good = rng.random(40_000) < 0.9
    batch = make_samples(len(good), 0)
    label = np.where(good, rng.random(len(good)) < 0.3, rng.random(len(good)) < 0.1).astype(np.float32)
    shown = replace(batch, label=label, odds=np.where(good, 0.9, 0.1).astype(np.float32))
    weight = of("", "weighted").seen(shown).weight
    assert float((weight * label).sum() / weight.sum()) == pytest.approx(0.2, abs=0.01)
    assert float(label.mean()) == pytest.approx(0.28, abs=0.01)


@pytest.mark.parametrize("said", [True, False])
def test_samples_name_arms_and_odds_where_a_learner_asks(said: bool) -> None:
    batch, _ = samples(rows=40)
    batch = replace(batch, odds=np.random.default_rng(0).random(40, np.float32))
    plain = make_samples(40, 0).to_bytes()
    back = SampleBatch.from_bytes(batch.to_bytes(says_arms=said))
    assert (back.arm_name == batch.arm_name).all() == said
    assert (back.odds == batch.odds).all() == said
    assert (back.cat == batch.cat).all()
    assert make_samples(40, 0).to_bytes(says_arms=False) == plain, "without arms of other models nothing changes"
    assert len(msgspec.msgpack.decode(plain)[3]) == 16
    assert not Settings(arms={"hits": Arm("popular", 0.1)}).samples_say_arms
    assert SETTINGS.samples_say_arms
    assert Settings(learns_from="weighted").samples_say_arms
