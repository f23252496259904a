"""Clicks that are learnt behind their negatives must not make the network read from an id that there were some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from learner.ranker.model import OnlineModel
from millrace.basics.hashing import column_hash, mix
from millrace.basics.ranking_metrics import log_loss
from millrace.contracts.samples import CORRECTION, NEGATIVE, SampleBatch
from tests.scenes.learning import SCHEMA, make_samples

VISITS, ROWS, RATE = 8, 20, 0.1  # at once, of each, and clicks that depend on nothing
STEPS, TURNS = 280, 4
SPEC = {"blocks": 1, "hidden": [32], "averaging": 0, "dense_rate": 0.003}  # finds it soon


def visits(step: int, rng: np.random.Generator) -> tuple[SampleBatch, NDArray[np.bool_]]:
    """Rows of people who were never here, as negatives, and which of them are clicked."""
    batch = make_samples(VISITS * ROWS, step)
    layout = SCHEMA.layout
    user = column_hash(np.repeat(1000 + VISITS * step + np.arange(VISITS), ROWS))
    cat = batch.cat.copy()
    cat[:, layout.cat_names.index("user_id")] = mix(layout.field_salt(layout.cat_fields[0]), user).view(np.int64)
    negative = np.full(len(batch), NEGATIVE, np.uint8)
    clicked = rng.random(len(batch)) < RATE
    return replace(batch, cat=cat, user=user, kind=negative, label=np.zeros(len(batch), np.float32)), clicked


def clicks_of(batch: SampleBatch, rows: NDArray[np.bool_]) -> SampleBatch:
    clicks = batch.take(np.flatnonzero(rows))
    ones = np.ones(len(clicks), np.float32)
    return replace(clicks, kind=np.full(len(clicks), CORRECTION, np.uint8), label=ones)


def test_people_who_clicked_are_not_expected_to_click_everything() -> None:
    """A row's first step once had the length of the rate, whatever its gradient. A visit's negatives are learnt before
    its clicks, so the network learnt from the length of an id's vector whether clicks had come: people who were never
    here had a probability of 0, and all that the others had seen one of 1."""
    assert SCHEMA.layout.cat_fields[0].name == "user_id"
    rng = np.random.default_rng(0)
    model = OnlineModel(SCHEMA, SPEC, 0)
    shown: list[tuple[SampleBatch, NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]] = []
    for step in range(STEPS):
        late = [
            clicks_of(b, clicked & (turn == ago))
            for ago, (b, clicked, turn, _) in enumerate(shown[: -TURNS - 1 : -1], 1)
        ]
        batch, clicked = visits(step, rng)
        shown.append((batch, clicked, 1 + rng.integers(0, TURNS, len(batch)), model.score(batch.cat, batch.num).copy()))
        model.learn(SampleBatch.concat([batch, *late]))
    ended = shown[-60:-TURNS]
    label = np.concatenate([clicked for _, clicked, _, _ in ended]).astype(np.float32)
    then = np.concatenate([p for _, _, _, p in ended])
    now = np.concatenate([model.score(batch.cat, batch.num).copy() for batch, _, _, _ in ended])
    assert log_loss(now, label) < log_loss(then, label) + 0.005
    assert abs(now.mean() - RATE) < 0.02
    assert abs(then.mean() - RATE) < 0.02
