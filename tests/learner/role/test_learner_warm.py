"""Before a learner is ready it has compiled what it will call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.evaluation.progressive import Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.network import elementwise
from learner.ranker import within_page
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.retrieval import retrievalkernels
from learner.role.learner_warmup import warm_up
from learner.tables import table_kernels
from learner.tables.row_index import Index
from learner.training.trainer import Trainer
from millrace.contracts.samples import PAGE, SampleBatch
from millrace.labels import Waits
from tests.scenes.learning import SCHEMA, START_MS, make_samples

HEADED = {"model": "wide_deep", "retrieval_width": 8}
WAITS = Waits(1000, 1000, 0)


def compiled() -> dict[str, int]:
    """Compiled kernels and for how many kinds of arguments each."""
    found = {}
    for module in (elementwise, table_kernels, retrievalkernels, within_page):
        for name, kernel in vars(module).items():
            if hasattr(kernel, "signatures"):
                found[f"{module.__name__}.{name}"] = len(kernel.signatures)
    return found


@pytest.mark.parametrize(
    "spec", [{}, {"model": "wide_deep"}, {"admit": 2, "negative_keep": 0.5}, HEADED, {"page_weight": 0.5}]
)
def test_after_a_warm_up_learning_compiles_nothing_more(spec: dict[str, object]) -> None:
    model = OnlineModel(SCHEMA, spec, seed=3)
    warm_up(model)
    assert model.rows == 0
    before = compiled()
    assert sum(before.values())
    for seed in range(3):
        batch = make_samples(100 + seed, seed)
        model.score(batch.cat, batch.num)
        model.learn(batch)
        model.learn(replace(batch, kind=np.full(len(batch), PAGE, np.uint8)))
        if model.head is not None:
            model.head.flush()
        model.changes()
    trainer = Trainer(
        model, Progressive(100), Repeats(0, 50), 64, ServedExposures(SCHEMA, Segments(SCHEMA, {}), WAITS, 100, 50)
    )
    for seed in range(3):
        batch = make_samples(64, seed, start_ms=START_MS + seed * 10**6)
        for kind in (batch.kind, np.full(64, PAGE, np.uint8)):
            trainer.take(SampleBatch.from_bytes(replace(batch, kind=kind).to_bytes()))
            trainer.step()
    OnlineModel(SCHEMA, spec, seed=3).resume(*model.snapshot())
    slices = model.slices(50)
    assert slices.next() is not None
    model.learn(make_samples(100, 4))
    while slices.next() is not None:
        pass
    slices.finish()
    for table in model.tables.values():
        table.expire(0)
    memory = Index({}, 100_000)
    for ids in np.array_split(np.arange(1, 100_000), 40):
        memory.add(ids)
    assert compiled() == before
