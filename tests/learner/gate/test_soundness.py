"""Soundness: whatever learning makes passes; one number that it cannot have made does not, in whatever slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learner.custom.own import OwnModel
from learner.gate.model_checks import LARGEST, MOST_SUM, unsound, unsound_part
from learner.ranker.model import OnlineModel
from learner.ranker.snapshot_slices import merge
from learner.tables.table import SparseTable
from millrace.contracts.samples import POLICIES
from millrace.contracts.schema import parse_schema
from tests.learner.own_models import Hashed
from tests.learner.retrieval_scene import SCHEMA as RETRIEVAL_SCHEMA
from tests.scenes.learning import SCHEMA, START_MS, make_samples

NAN, INF = float("nan"), float("inf")
SMALL: dict[str, Any] = {"hidden": (16,), "blocks": 1, "width": 8, "step_rows": 100}


def learnt(spec: dict[str, Any] | None = None, batches: int = 6) -> OnlineModel:
    """A model that has learnt, published once, and learnt on."""
    model = OnlineModel(SCHEMA, SMALL | (spec or {}), 0)
    for seed in range(batches):
        if seed == batches // 2:
            model.changes()
        model.learn(make_samples(130, seed, start_ms=START_MS + seed * 600_000))
    return model


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"dense": "adagrad", "averaging": 0.0},
        {"model": "wide_resnet_bn", "norm": "renorm", "numerics": "norm"},
        {"model": "logistic"},
        {"admit": 3, "max_rows": 60},
        {"retrieval_width": 8},
        {"dense_rate": 0.5, "embedding_rate": 5.0},
    ],
    ids=str,
)
def test_what_learning_makes_is_sound(spec: dict[str, Any]) -> None:
    schema = RETRIEVAL_SCHEMA if "retrieval_width" in spec else SCHEMA
    model = OnlineModel(schema, SMALL | spec, 0)
    for seed in range(12):
        batch = make_samples(64, seed, schema=schema, start_ms=START_MS + seed * 7_200_000)
        if seed % 3 == 2:  # numbers of a size that no shop has, and labels that contradict what was learnt
            batch = replace(batch, num=batch.num * np.float32(1e6), label=1 - batch.label)
        model.learn(replace(batch, policy=np.full(64, POLICIES.index("es-dfm"), np.uint8)))
        assert unsound(model) is None
        if seed % 4 == 3:
            model.changes()
            assert unsound_part(*model.snapshot()) is None
    slices = model.slices(40)
    for part in [*iter(slices.next, None), slices.finish()]:
        assert unsound_part(*part) is None


def _column(model: OnlineModel, name: str, value: float) -> None:
    """Of a row that the next version has."""
    table = next(t for t in model.tables.values() if isinstance(t, SparseTable) and name in t.index.at)
    column = table.index.column(name)
    column[table.touched[3]] = value


def _tensor(part: str, value: float) -> Callable[[OnlineModel], None]:
    def spoil(model: OnlineModel) -> None:
        getattr(model.dense, part).view(-1)[7] = value

    return spoil


def _seen(model: OnlineModel, minute: int) -> None:
    table = next(iter(model.tables.values()))
    table.index.marks[table.touched[3], table.index.at["mark"]] = 4 * minute + 1


SLOTS: dict[str, tuple[str, Callable[[OnlineModel], Any]]] = {
    "average NaN": ("finite", _tensor("average", NAN)),
    "average huge": ("bounds", _tensor("average", 2 * LARGEST)),
    "weights NaN": ("finite", _tensor("weights", NAN)),
    "weights infinite": ("finite", _tensor("weights", INF)),
    "first NaN": ("finite", _tensor("first", NAN)),
    "first 1e38": ("bounds", _tensor("first", 1e38)),
    "first more than its second allows": ("bounds", _tensor("first", 3.0)),
    "second NaN": ("finite", _tensor("second", NAN)),
    "second 1e38": ("bounds", _tensor("second", 1e38)),
    "second negative": ("bounds", _tensor("second", -1e-6)),
    "second gone": ("bounds", lambda m: m.dense.second.zero_()),
    "total NaN": ("finite", _tensor("total", NAN)),
    "total huge": ("bounds", _tensor("total", 1e30)),
    "steps NaN": ("finite", lambda m: m.dense.steps.fill_(NAN)),
    "rows negative": ("bounds", lambda m: setattr(m.dense, "rows", -3)),
    "variance negative": ("bounds", lambda m: dict(m.network.named_buffers())["scale.var"].fill_(-0.5)),
    "mean NaN": ("finite", lambda m: dict(m.network.named_buffers())["scale.mean"].fill_(NAN)),
    "delays NaN": ("finite", lambda m: m.network.delays.fill_(NAN)),
    "embedding NaN": ("finite", lambda m: _column(m, "embedding", NAN)),
    "embedding huge": ("bounds", lambda m: _column(m, "embedding", -2 * LARGEST)),
    "square NaN": ("finite", lambda m: _column(m, "square", NAN)),
    "square 1e38": ("bounds", lambda m: _column(m, "square", 1e38)),
    "square negative": ("bounds", lambda m: _column(m, "square", -1.0)),
    "z NaN": ("finite", lambda m: _column(m, "z", NAN)),
    "z 1e38": ("bounds", lambda m: _column(m, "z", 1e38)),
    "z that makes a wide weight huge": ("bounds", lambda m: _column(m, "z", 0.1 * MOST_SUM)),
    "n NaN": ("finite", lambda m: _column(m, "n", NAN)),
    "n negative": ("bounds", lambda m: _column(m, "n", -4.0)),
    "n infinite": ("finite", lambda m: _column(m, "n", INF)),
    "seen later than all": ("bounds", lambda m: _seen(m, m.newest_ms // 60_000 + 1)),
    "seen before all time": ("bounds", lambda m: _seen(m, -5)),
    "guard NaN": ("finite", lambda m: m.guard.means.fill(NAN)),
    "guard negative": ("bounds", lambda m: m.guard.means.fill(-1.0)),
    "clock": ("bounds", lambda m: setattr(m, "newest_ms", 2**62)),
}


@pytest.mark.parametrize("slot", SLOTS)
def test_each_slot_of_the_next_version_is_looked_at(slot: str) -> None:
    check, spoil = SLOTS[slot]
    model = learnt({"numerics": "norm"})
    assert unsound(model) is None
    spoil(model)
    refusal = unsound(model)
    assert refusal is not None
    assert refusal.check == check, refusal


def test_a_refusal_says_where() -> None:
    model = learnt()
    table = model.tables["w8"]
    row = table.touched[5]
    table.index.column("square")[row] = -2.0
    found = unsound(model)
    assert found is not None
    assert (found.what, found.value, found.bound) == (f"w8/square of id {table.index.ids_of(row[None])[0]}", -2.0, 0.0)


def test_rows_of_the_next_version_alone_are_looked_at_before_a_delta_and_all_of_them_in_a_snapshot() -> None:
    model = learnt()
    model.changes()
    model.tables["w8"].index.column("square")[3] = NAN
    assert unsound(model) is None  # nobody is told of this row
    refusal = unsound_part(*model.snapshot())
    assert refusal is not None
    assert refusal.what.startswith("w8/square")


def test_a_row_that_is_free_again_is_passed_over() -> None:
    model = learnt()
    table = model.tables["w8"]
    row = table.touched[5]
    table.index.column("square")[row] = NAN
    assert unsound(model) is not None
    table._remove(row[None])
    assert unsound(model) is None


NOT_NEGATIVE = (
    "square",
    "/n",
    "seen_min",
    "counters",
    "second",
    "steps",
    "dense/rows",
    "guard",
    "squares",
    "scale.var",
)


def test_each_array_of_a_snapshot_is_looked_at() -> None:
    """Found by themselves: a new array with fractions is looked at, or this fails."""
    model = OnlineModel(RETRIEVAL_SCHEMA, SMALL | {"retrieval_width": 8, "numerics": "norm", "admit": 2}, 0)
    for seed in range(8):
        model.learn(make_samples(100, seed, schema=RETRIEVAL_SCHEMA, start_ms=START_MS + seed * 600_000))
    image, training = merge([model.snapshot()])
    assert unsound_part(image, training) is None
    homes: list[tuple[str, dict[str, Any], str]] = [(f"dense {n}", image.dense, n) for n in image.dense]
    homes += [(f"{t} {n}", rows.columns, n) for t, rows in image.tables.items() for n in rows.columns]
    homes += [(n, training, n) for n in training]
    spoilt = 0
    for what, home, name in homes:
        array = home[name]
        if not array.size:
            continue
        bad = [NAN, INF, -INF] if array.dtype.kind == "f" and "edges" not in name else []
        bad += [-3.0] if what.endswith(NOT_NEGATIVE) else []
        for value in bad:
            copy = array.copy()
            copy.reshape(-1)[-1] = value
            home[name] = copy
            refusal = unsound_part(image, training)
            assert refusal is not None, (what, value)
            assert refusal.check == ("bounds" if np.isfinite(value) else "finite"), (what, value)
            spoilt += 1
        home[name] = array
    assert spoilt > 60
    for name, value in (("admission", 255), ("seen_min", 2**30)):  # an integer that learning cannot reach
        key = next(n for n in training if n.endswith(name))
        broken = {**training, key: np.full_like(training[key], value)}
        assert unsound_part(image, broken) is not None, name


def test_edges_of_buckets_are_infinite_at_first_and_rise_later() -> None:
    text = 'name="b"\n[[fields]]\nname="price"\nof="item"\nkind="numeric"\ntransform="bucket"\n[windows]\n'
    schema = parse_schema(text + 'days=[1]\nactions=["exposure", "click"]\n')
    model = OnlineModel(schema, SMALL, 0)
    assert unsound(model) is None
    assert bool(np.isinf(model.network.edges.numpy()).all())
    model.learn(make_samples(200, 0, schema=schema))
    assert unsound(model) is None
    assert bool(np.isfinite(model.network.edges.numpy()).all())
    model.network.edges[0, 3] = model.network.edges[0, 4] + 1
    refusal = unsound(model)
    assert refusal is not None
    assert refusal.what.startswith("steps of edges")


def test_a_model_of_ones_own_is_looked_at_too() -> None:
    spec = {"model": f"{Hashed.__module__}:{Hashed.__name__}"}
    model = OwnModel(SCHEMA, spec, 0, live=True)
    for seed in range(3):
        model.learn(make_samples(100, seed))
        assert unsound(model) is None
    image, training = model.snapshot()
    image.dense["weights"][5] = 1e6  # its class may know what for
    assert unsound_part(image, training) is None
    image.dense["weights"][5] = NAN
    refusal = unsound_part(image, training)
    assert refusal is not None
    assert (refusal.check, refusal.what) == ("finite", "weights[5]")
    model._delay_weights.fill_(NAN)
    assert unsound(model) is not None
