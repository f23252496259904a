"""Before a learner is ready it has compiled what it will call."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from learner.evaluation.progressive import Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.network import elementwise
from learner.ranker import within_page
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.retrieval import retrievalkernels
from learner.role.learner import Learner, rehearse
from learner.role.learner_warmup import warm_up
from learner.samples.batch_reader import SampleMessage
from learner.tables import table_kernels
from learner.tables.row_index import Index
from learner.training.trainer import Trainer
from millrace.contracts.samples import PAGE, POLICIES, SampleBatch
from millrace.contracts.settings import Settings
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


def kernels() -> dict[str, int]:
    """Every compiled function of this process and for how many kinds of arguments it is compiled."""
    modules = [(name, module) for name, module in list(sys.modules.items()) if name.startswith(("learner", "millrace"))]
    found = [(f"{name}.{own}", value) for name, module in modules for own, value in vars(module).items()]
    return {name: len(value.signatures) for name, value in found if isinstance(value, Dispatcher)}


def small_settings(folder: Path) -> Settings:
    return Settings(data=str(folder), heldout_share=0.2, model_spec={"hidden": [8, 8]})


def messages() -> list[SampleMessage]:
    """Five hours, of every label policy; some have features that are packed."""
    made = [make_samples(40 + n, n, start_ms=START_MS + n * 600_000) for n in range(30)]
    made = [replace(batch, policy=np.full(len(batch), n % len(POLICIES), np.uint8)) for n, batch in enumerate(made)]
    made[::3] = [replace(batch, cat=np.ones_like(batch.cat), num=np.ones_like(batch.num)) for batch in made[::3]]
    return [SampleMessage(SampleBatch.from_bytes(b.to_bytes()), n) for n, b in enumerate(made)]


def compiled_after_a_rehearsal(folder: Path) -> list[str]:
    settings = small_settings(folder)
    learner = Learner(settings, SCHEMA)
    warm_up(learner.trainer.model)
    rehearse(settings, SCHEMA, learner.trainer.model.spec)
    before = kernels()
    learner.loop.rehearse(messages())
    assert learner.trainer.counts["trained"] > 500
    assert learner.trainer.counts["held_out"] > 0
    assert learner.store.latest() is not None
    return sorted(name for name, kinds in kernels().items() if kinds > before.get(name, 0))


def test_a_learner_that_has_rehearsed_compiles_nothing_while_it_judges_learns_publishes_and_saves(
    tmp_path: Path,
) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # nothing is compiled in it by other tests
        assert fresh.submit(compiled_after_a_rehearsal, tmp_path).result() == []


def test_a_rehearsal_changes_nothing_of_the_learner_and_leaves_nothing_behind(tmp_path: Path) -> None:
    learners = [Learner(small_settings(tmp_path / name), SCHEMA) for name in "ab"]
    rehearse(small_settings(tmp_path / "a"), SCHEMA, learners[0].trainer.model.spec)
    assert not list((tmp_path / "a" / "learner").iterdir())
    for learner in learners:
        learner.loop.rehearse(messages())
    (a, more), (b, same) = (learner.trainer.model.snapshot() for learner in learners)
    assert a.same_bits(b) == ""
    assert {name: array.tobytes() for name, array in more.items()} == {n: array.tobytes() for n, array in same.items()}
    assert learners[0].trainer.counts == learners[1].trainer.counts
