"""The contract of every registered model, found by itself. A model that cannot keep a part must say why here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from learner.network.models import REGISTRY
from learner.ranker.model import OnlineModel
from learner.serving.serving_model import ServingModel
from millrace.basics.errors import SettingError, SnapshotError
from millrace.basics.ranking_metrics import auc
from millrace.versions.modelstore import Image
from tests.scenes.learning import SCHEMA, START_MS, make_samples, poison
from tests.scenes.model_contract import Make, ModelContract, equal

MODELS = sorted(REGISTRY)
VARIANTS: dict[str, dict[str, Any]] = {name: {"model": name} for name in MODELS} | {
    f"resnet-{norm}-{placement}": {"model": "wide_resnet_bn", "norm": norm, "placement": placement}
    for norm in ("batch", "renorm", "layer", "none")
    for placement in ("post", "pre", "inner")
    if norm == "batch" or placement == "post"
}
VARIANTS["adagrad"] = {"model": "wide_deep", "dense": "adagrad", "dense_rate": 0.05}
VARIANTS["newest"] = {"model": "wide_resnet_bn", "averaging": 0.0}
VARIANTS["waiting"] = {"model": "wide_deep", "step_rows": 150}  # gradients of some batches wait for a step
VARIANTS["admit"] = {"model": "wide_resnet_bn", "admit": 3}
SMALL = {"hidden": [32, 32], "width": 8, "step_rows": 1}


@pytest.fixture(params=sorted(VARIANTS))
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**SMALL, **VARIANTS[request.param]}


class TestContract(ModelContract):
    @pytest.fixture
    def make(self, spec: dict[str, Any]) -> Make:
        return lambda seed=0: OnlineModel(SCHEMA, spec, seed)


def fed(spec: dict[str, Any], batches: int = 4, rows: int = 64, seed: int = 0) -> OnlineModel:
    model = OnlineModel(SCHEMA, spec, seed)
    for i in range(batches):
        assert model.learn(make_samples(rows, i)).rows == rows
    return model


def test_registry_has_the_models_of_the_original() -> None:
    assert set(MODELS) >= {
        *("logistic", "wide_deep", "pnn_inner", "pnn_outer", "pnn_group", "deepfm", "wide_resnet", "wide_resnet_bn"),
    }


@pytest.mark.parametrize("name", MODELS)
def test_learns_a_taste(name: str) -> None:
    """Clicks depend on user and category together: logistic regression knows it by the cross, the others learn it."""
    model = OnlineModel(SCHEMA, {**SMALL, "model": name, "ftrl_alpha": 0.1}, 0)
    for i in range(80):
        model.learn(make_samples(128, i))
    test = make_samples(4000, 1000)
    assert auc(model.score(test.cat, test.num), test.label) > 0.82  # 0.88 is what the true probabilities reach


def test_missing_ids_are_not_learnt(spec: dict[str, Any]) -> None:
    model = OnlineModel(SCHEMA, spec, 0)
    batch = make_samples(50, 0)
    batch.cat[:] = 0
    model.learn(batch)
    assert model.rows == 0


def test_base_and_deltas_equal_the_snapshot(spec: dict[str, Any]) -> None:
    """Also where rows were removed, by age and for want of room."""
    model = OnlineModel(SCHEMA, {**spec, "max_rows": 150, "max_age_days": 1.0}, 0)
    state, _ = model.snapshot()
    serving = ServingModel.of(SCHEMA, model.spec, state)
    removed = 0
    for i in range(12):
        model.learn(make_samples(64, i, start_ms=START_MS + i * 10 * 3_600_000, users=20 + 30 * i, items=60))
        if i % 3 == 2:
            delta = model.changes()
            removed += sum(len(t.removed) for t in delta.tables.values())
            state = state.apply(Image.of_tensors(delta.tensors()))
            serving.patch(delta)
    snapshot, _ = model.snapshot()
    assert removed > 0
    assert state.same_bits(snapshot) == ""
    assert serving.snapshot().same_bits(snapshot) == ""
    probe = make_samples(100, 77)
    np.testing.assert_array_equal(model.score(probe.cat, probe.num), serving.score(probe.cat, probe.num))


def test_memory_is_bounded(spec: dict[str, Any]) -> None:
    model = OnlineModel(SCHEMA, {**spec, "max_rows": 200}, 0)
    for i in range(10):
        model.learn(make_samples(200, i, users=100_000, items=100_000))
        assert all(len(t) <= 200 for t in model.tables.values())
    first = model.nbytes
    for i in range(10, 30):
        model.learn(make_samples(200, i, users=100_000, items=100_000))
    assert model.nbytes <= first + 100 * 200 * len(model.tables)  # at most what full tables take


def test_exploding_batches_leave_no_trace(spec: dict[str, Any]) -> None:
    """Each guard fires, and weights, statistics, tables and optimiser state stay as they were."""
    batch = make_samples(64, 5, users=900)  # new ids too: they must get no row
    for bound, reason in (({"max_loss": 1e-9}, "loss_exploded"), ({"max_gradient": 1e-9}, "gradient_exploded")):
        model, twin = (OnlineModel(SCHEMA, {**spec, **bound}, 0) for _ in range(2))
        image, training = fed(spec).snapshot()
        model.resume(image, training)
        twin.resume(image, training)
        report = model.learn(batch)
        assert (report.skipped, report.rows) == (reason, 0)
        assert equal(model, twin) == ""


def test_weights_that_are_not_finite_refuse_every_batch(spec: dict[str, Any]) -> None:
    model = fed(spec)
    with torch.no_grad():
        model.dense.weights[-1] = float("nan")
    report = model.learn(make_samples(64, 5))
    assert report.skipped == "loss_not_finite"


def test_weighted_samples(spec: dict[str, Any]) -> None:
    """A weight scales a sample's slope: heavy clicks pull scores up further than light ones."""
    heavy, light = fed(spec), fed(spec)
    batch = poison(make_samples(64, 5), label=(slice(0, 32), 1.0))
    heavy.learn(poison(batch, weight=(slice(0, 32), 9.0)))
    light.learn(poison(batch, weight=(slice(0, 32), 0.1)))
    assert heavy.score(batch.cat[:32], batch.num[:32]).mean() > light.score(batch.cat[:32], batch.num[:32]).mean()


def test_snapshot_of_another_model_is_refused(spec: dict[str, Any]) -> None:
    other = "wide_deep" if spec["model"] != "wide_deep" else "deepfm"
    image, training = fed(spec, 1).snapshot()
    model = OnlineModel(SCHEMA, {**SMALL, "model": other, "width": 5}, 0)
    twin = OnlineModel(SCHEMA, {**SMALL, "model": other, "width": 5}, 0)
    with pytest.raises(SnapshotError, match="not of a"):
        model.resume(image, training)
    assert equal(model, twin) == ""
    with pytest.raises(SnapshotError):
        ServingModel.of(SCHEMA, model.spec, image)


def test_squashed_numbers_do_not_depend_on_how_the_schema_feeds_them() -> None:
    """The default input layer takes logarithms itself: a schema that feeds raw counts gives the same model."""
    raw = msgspec.structs.replace(SCHEMA, windows=msgspec.structs.replace(SCHEMA.windows, transform="raw"))
    models = [OnlineModel(schema, SMALL, 0) for schema in (SCHEMA, raw)]
    plain = OnlineModel(raw, {**SMALL, "numerics": "norm"}, 0)
    for i in range(3):
        for model in (*models, plain):
            model.learn(make_samples(64, i))
    assert equal(*models) == ""
    assert equal(models[0], plain) != ""


def test_unknown_model_or_setting_is_named() -> None:
    with pytest.raises(SettingError, match="'fancy'"):
        OnlineModel(SCHEMA, {"model": "fancy"}, 0)
    with pytest.raises(SettingError, match="blocks"):
        OnlineModel(SCHEMA, {"model": "wide_deep", "blocks": 0}, 0)
    with pytest.raises(SettingError, match="colour"):
        OnlineModel(SCHEMA, {"model": "wide_deep", "colour": "red"}, 0)


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {n: v for n, v in values.items() if n != name}


def _cut(image: Image, **changes: Any) -> Image:
    """A delta with something else in its widest table."""
    rows = image.tables["w8"]
    return Image(image.dense, {**image.tables, "w8": replace(rows, **changes)})


DAMAGES: dict[str, Any] = {
    "'wide'": lambda d: _cut(d, columns=_without(d.tables["w8"].columns, "wide")),
    "'extra'": lambda d: _cut(d, columns={**d.tables["w8"].columns, "extra": d.tables["w8"].columns["wide"]}),
    "float64": lambda d: _cut(
        d, columns={**d.tables["w8"].columns, "wide": d.tables["w8"].columns["wide"].astype(np.float64)}
    ),
    "'embedding' that is float32": lambda d: _cut(
        d, columns={**d.tables["w8"].columns, "embedding": d.tables["w8"].columns["embedding"][:, 1:]}
    ),
    "an id twice": lambda d: _cut(d, ids=np.full_like(d.tables["w8"].ids, 7)),
    "an id 0": lambda d: _cut(d, ids=np.where(np.arange(len(d.tables["w8"].ids)) == 2, 0, d.tables["w8"].ids)),
    "ids that are int32": lambda d: _cut(d, ids=d.tables["w8"].ids.astype(np.int32)),
    "removed ids that are": lambda d: _cut(d, removed=np.zeros((2, 2), np.int64)),
    "table 'w8' .* have room": lambda d: _cut(d, **_many(5000)),
    "'w0' is missing": lambda d: Image(d.dense, _without(d.tables, "w0")),
    "'w9' is unknown": lambda d: Image(d.dense, {**d.tables, "w9": d.tables["w8"]}),
    "tensors: '.*' is missing": lambda d: Image(dict(list(d.dense.items())[1:]), d.tables),
    "'more' is unknown": lambda d: Image({**d.dense, "more": np.zeros(1, np.float32)}, d.tables),
    "a tensor '.*' that is float32 .*, not": lambda d: Image({n: a[..., :0] for n, a in d.dense.items()}, d.tables),
    "a tensor '.*' that is float64": lambda d: Image({n: a.astype(np.float64) for n, a in d.dense.items()}, d.tables),
}


def _many(n: int) -> dict[str, Any]:
    columns = {"embedding": np.zeros((n, 8), np.float32), "wide": np.zeros(n, np.float32)}
    return {"ids": np.arange(10**6, 10**6 + n), "columns": columns}


@pytest.mark.parametrize("wrong", DAMAGES)
def test_a_delta_of_another_form_changes_nothing(wrong: str) -> None:
    """Also one that comes whole, by its digest: it is refused before anything of it is served."""
    model = fed({**SMALL, "model": "wide_deep", "max_rows": 1000})
    serving = ServingModel.of(SCHEMA, model.spec, model.snapshot()[0])
    model.changes()
    before = serving.snapshot()
    model.learn(make_samples(64, 9, users=400))
    delta = model.changes()
    damaged = DAMAGES[wrong](delta)
    for refuse in (serving.check, serving.patch):
        with pytest.raises(SnapshotError, match=wrong):
            refuse(damaged)
    assert serving.snapshot().same_bits(before) == ""
    with pytest.raises(SnapshotError):
        ServingModel.of(SCHEMA, model.spec, [before, damaged])
    serving.check(delta)
    assert serving.snapshot().same_bits(before) == ""
    serving.patch(delta)
    assert serving.snapshot().same_bits(model.snapshot()[0]) == ""


def test_parts_without_dense_tensors_are_no_snapshot() -> None:
    model = fed({**SMALL, "model": "wide_deep"})
    slices = model.slices(50)
    parts = [image for image, _ in iter(slices.next, None)]
    with pytest.raises(SnapshotError, match="no dense tensors"):
        ServingModel.of(SCHEMA, model.spec, parts)
    whole = ServingModel.of(SCHEMA, model.spec, [*parts, slices.finish()[0]], {"w8": 10_000, "w77": 3})
    assert whole.snapshot().same_bits(model.snapshot()[0]) == ""
    assert {n: a.tobytes() for n, a in whole.dense().items()} == {
        n: a.tobytes() for n, a in model.snapshot()[0].dense.items()
    }
