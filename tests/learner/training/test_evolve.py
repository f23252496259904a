"""Warm starts: what both models have answers as before, what is new is silent until learnt, and the report says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from learner.network.models import REGISTRY
from learner.ranker.model import OnlineModel
from learner.serving.serving_model import ServingModel
from learner.tables.table_kernels import ONE_ITEM
from learner.training.evolve import Report, evolve, read_columns
from millrace.basics.errors import SnapshotError
from millrace.basics.hashing import column_hash, mix
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Field, Mean, Schema
from millrace.versions.image import RETRIEVAL_TABLES, split
from tests.scenes.learning import SCHEMA, START_MS, make_samples

SMALL: dict[str, Any] = {"hidden": [16, 16], "width": 8}
VARIANTS: dict[str, dict[str, Any]] = {name: {"model": name} for name in sorted(REGISTRY)} | {
    "post": {"model": "wide_resnet_bn", "placement": "post"},
    "pre": {"model": "wide_resnet_bn", "placement": "pre", "norm": "batch"},
    "adagrad": {"model": "wide_deep", "dense": "adagrad"},
    "newest": {"model": "wide_resnet_bn", "averaging": 0.0},
}
STOCK = Field("stock", "item", "numeric")
COLOUR = Field("colour", "item")


@pytest.fixture(params=sorted(VARIANTS))
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**SMALL, **VARIANTS[request.param]}


def with_fields(*fields: Field, without: str = "", **changes: Any) -> Schema:
    kept = tuple(f for f in SCHEMA.fields if f.name != without)
    return msgspec.structs.replace(SCHEMA, fields=(*fields, *kept), **changes)


def altered(name: str, **changes: Any) -> Schema:
    fields = tuple(msgspec.structs.replace(f, **changes) if f.name == name else f for f in SCHEMA.fields)
    return msgspec.structs.replace(SCHEMA, fields=fields)


def under(batch: SampleBatch, schema: Schema, seed: int = 0) -> SampleBatch:
    """Samples of SCHEMA with the columns of another: those of the same name, what else there is made up."""
    rng = np.random.default_rng(seed)
    old, new = SCHEMA.layout, schema.layout
    cat = np.zeros((len(batch), new.F), np.int64)
    for field, first in zip(new.cat_fields, new.cat_starts, strict=True):
        if field.name in old.cat_names:
            at = old.cat_names.index(field.name)
            cat[:, first : first + field.slots] = batch.cat[:, at : at + field.slots]
        else:
            cat[:, first] = mix(new.field_salt(field), column_hash(rng.integers(1, 9, len(batch)))).view(np.int64)
    num = rng.lognormal(3.0, 1.0, (len(batch), new.N)).astype(np.float32)
    for i, name in enumerate(new.num_names):
        if name in old.num_names:
            num[:, i] = batch.num[:, old.num_names.index(name)]
    return replace(batch, cat=cat, num=num)


def fed(spec: dict[str, Any], batches: int = 8, schema: Schema = SCHEMA) -> OnlineModel:
    model = OnlineModel(schema, spec, 3)
    for i in range(batches):
        assert model.learn(under(make_samples(64, i), schema, i)).skipped is None
    return model


def carried(model: OnlineModel, schema: Schema, spec: dict[str, Any] | None = None) -> tuple[OnlineModel, Report]:
    image, training = model.snapshot()
    columns = read_columns(msgspec.json.decode(msgspec.json.encode(model.columns)))
    new, report = evolve(columns, model.spec, image, training, schema, {**model.spec, **(spec or {})}, 3)
    image, training = new.snapshot()
    probe = under(make_samples(50, 5), schema)
    served = ServingModel.of(schema, new.spec, split(image)[0]).score(probe.cat, probe.num)
    np.testing.assert_allclose(served, new.score(probe.cat, probe.num), rtol=1e-6)
    return new, report


def answers(model: OnlineModel, seed: int = 77) -> Any:
    probe = under(make_samples(300, seed), model.schema)
    return model.score(probe.cat, probe.num)


def test_nothing_changed_is_the_same_model_to_the_last_bit(spec: dict[str, Any]) -> None:
    model = fed(spec)
    image, training = model.snapshot()
    new, report = carried(model, SCHEMA)
    again, rest = new.snapshot()
    assert image.same_bits(again) == ""
    assert {n for n in training if training[n].tobytes() != rest[n].tobytes()} == {"guard"}  # that begins again
    assert (report.changed, report.new, report.dropped) == ([], [], [])
    assert all(any(name in line for line in report.kept) for name in ("user_id", "category", "price", "table w0"))


def test_a_new_number_changes_no_answer_and_is_learnt(spec: dict[str, Any]) -> None:
    model = fed(spec)
    schema = with_fields(STOCK)
    new, report = carried(model, schema)
    np.testing.assert_allclose(answers(new), answers(model), rtol=2e-5)
    assert "number stock, a number" in report.new
    probe = under(make_samples(100, 5), schema)
    before = new.score(probe.cat, probe.num)
    loud = probe.num.copy()
    loud[:, schema.layout.num_names.index("stock")] = 1e6
    if spec.get("norm") != "layer":
        np.testing.assert_allclose(new.score(probe.cat, loud), before, rtol=2e-5)
    for i in range(20):
        assert new.learn(under(make_samples(64, 100 + i), schema, 100 + i)).skipped is None
    assert np.abs(new.score(probe.cat, loud) - new.score(probe.cat, probe.num)).max() > 1e-5


def test_half_lives_and_means_come_and_go_as_numbers_do(spec: dict[str, Any]) -> None:
    model = fed(spec)
    windows = msgspec.structs.replace(SCHEMA.windows, half_lives=(1.0, 7.0), means=(Mean("price", 0.01),))
    schema = with_fields(windows=windows)
    added = set(schema.layout.num_names) - set(SCHEMA.layout.num_names)
    assert {"item_id.click.h7d", "item_id.click_rate.h1d", "item_id.price_mean_click.h7d"} < added
    new, report = carried(model, schema)
    np.testing.assert_allclose(answers(new), answers(model), rtol=2e-5)
    assert set(report.new) == {f"number {name}, a number" for name in added}
    _, report = carried(new, SCHEMA)
    assert set(report.dropped) == {f"number {name}, a number" for name in added}


def test_a_dropped_number_takes_its_columns_along(spec: dict[str, Any]) -> None:
    """It is gone from the layers: a plain one answers as the old model did where the number is at its mean."""
    model = fed(spec)
    schema = with_fields(without="price")
    new, report = carried(model, schema)
    assert "number price, a number" in report.dropped
    probe = make_samples(300, 77)
    num = probe.num.copy()
    mean = float(model.dense.changes()["scale.mean"][0])
    num[:, 0] = np.copysign(np.expm1(abs(mean)), mean)
    expected = model.score(probe.cat, num)
    if "resnet" in new.spec["model"]:  # a residual unit has also written to the column that is gone
        assert np.corrcoef(answers(new), expected)[0, 1] > 0.8
    else:
        np.testing.assert_allclose(answers(new), expected, atol=2e-5)


def test_a_new_field_changes_no_answer_until_it_has_rows(spec: dict[str, Any]) -> None:
    model = fed(spec)
    schema = with_fields(COLOUR, crosses=(*SCHEMA.crosses, ("colour", "hour")))
    new, report = carried(model, schema)
    np.testing.assert_allclose(answers(new), answers(model), rtol=2e-5)
    assert any(line.startswith("field colour") for line in report.new)
    assert "cross colour*hour, wide weights only" in report.new
    rows = new.rows
    for i in range(10):
        assert new.learn(under(make_samples(64, 100 + i), schema, 100 + i)).skipped is None
    assert new.rows > rows
    assert np.abs(answers(new) - answers(model)).max() > 1e-3


def test_a_dropped_field_leaves_the_others_rows(spec: dict[str, Any]) -> None:
    model = fed(spec)
    schema = with_fields(without="hour", crosses=SCHEMA.crosses[:1])
    new, report = carried(model, schema)
    assert any(line.startswith("field hour") for line in report.dropped)
    assert "cross tags*hour, wide weights only" in report.dropped
    assert {n: len(t) for n, t in new.tables.items()} == {n: len(t) for n, t in model.tables.items()}
    assert np.corrcoef(answers(new), answers(model))[0, 1] > 0.5
    for i in range(3):
        assert new.learn(under(make_samples(64, 100 + i), schema, 100 + i)).skipped is None


def test_another_order_of_fields_is_the_same_model(spec: dict[str, Any]) -> None:
    """Columns, rows and the optimiser's state go by name: there and back again is where it was, to the last bit."""
    model = fed(spec)
    schema = msgspec.structs.replace(SCHEMA, fields=tuple(reversed(SCHEMA.fields)))
    assert schema.layout.cat_names != SCHEMA.layout.cat_names
    new, report = carried(model, schema)
    assert (report.new, report.dropped) == ([], [])
    np.testing.assert_allclose(answers(new), answers(model), rtol=2e-5)
    back, _ = carried(new, SCHEMA)
    (image, training), (again, rest) = model.snapshot(), back.snapshot()
    assert image.same_bits(again) == ""
    assert {n for n in training if training[n].tobytes() != rest[n].tobytes()} == {"guard"}
    _, turned = new.snapshot()
    assert spec["model"] == "logistic" or turned["dense/second"].tobytes() != training["dense/second"].tobytes()


@pytest.mark.parametrize("width", [5, 11])
def test_another_default_width_cuts_or_fills_embeddings(spec: dict[str, Any], width: int) -> None:
    model = fed(spec)
    new, report = carried(model, SCHEMA, {"width": width})
    assert f"width: 8 -> {width}" in report.changed
    if not REGISTRY[spec["model"]].deep:
        np.testing.assert_array_equal(answers(new), answers(model))
        return
    before, after = (m.snapshot()[0].tables[f"w{w}"] for m, w in ((model, 8), (new, width)))
    ids = np.intersect1d(before.ids, after.ids)
    assert len(ids) == len(before.ids)
    common = min(8, width)
    old, now = (t.columns["embedding"][np.searchsorted(t.ids, ids), :common] for t in (before, after))
    np.testing.assert_array_equal(now, old)
    if width > 8 and "pnn" not in spec["model"] and spec["model"] != "deepfm":  # products see the filled part
        np.testing.assert_allclose(answers(new), answers(model), rtol=2e-5)
    weights = after.columns["wide"][np.searchsorted(after.ids, ids)]
    np.testing.assert_array_equal(weights, before.columns["wide"][np.searchsorted(before.ids, ids)])
    for i in range(3):
        assert new.learn(make_samples(64, 100 + i)).skipped is None


def test_a_field_that_moves_to_another_table_takes_its_rows() -> None:
    model = fed({**SMALL, "model": "wide_deep"})
    schema = altered("tags", width=12)
    new, report = carried(model, schema)
    np.testing.assert_allclose(answers(new), answers(model), rtol=2e-5)
    assert "field tags, width 12 (was width 8)" in report.kept
    assert any("table w12" in line and "w8" in line for line in report.kept)
    bias = altered("hour", bias=True)
    new, _ = carried(model, bias)  # embeddings no more, its wide weights stay
    probe = make_samples(50, 0)
    assert new.knows("hour", probe.cat).all()


def test_words_keep_their_counts_and_count_from_the_start_where_there_were_none() -> None:
    old = altered("tags", kind="text")
    model = fed({**SMALL, "model": "wide_deep"}, schema=old)
    texts = np.unique(under(make_samples(64, 0), old).cat[:, old.layout.cat_names.index("tags")])[1:]
    counts = model.tables["w8"].read(texts[None]).embedding[:, -1]
    assert len(set(counts.tolist())) > 1
    for width in (8, 12):
        schema = msgspec.structs.replace(old, fields=(*altered("tags", kind="text", width=width).fields,))
        new, _ = carried(model, schema)
        assert new.tables[f"w{width}"].read(texts[None]).embedding[:, -1].tolist() == counts.tolist()
    new, _ = carried(fed({**SMALL, "model": "wide_deep"}), old)
    assert set(new.tables["w8"].read(texts[None]).embedding[:, -1].tolist()) == {ONE_ITEM}
    plain, _ = carried(model, SCHEMA)
    assert plain.tables["w8"].width == 8


def test_numbers_go_into_buckets_and_come_out_again() -> None:
    spec = {**SMALL, "model": "wide_resnet_bn"}
    model = fed(spec)
    bucketed, report = carried(model, altered("price", transform="bucket"))
    assert "number price, in buckets (was a number)" in report.kept
    assert np.isinf(bucketed.dense.changes()["edges"]).all()
    for i in range(12):
        bucketed.learn(make_samples(64, i))
    edges = bucketed.dense.changes()["edges"]
    assert np.isfinite(edges).all()
    same, _ = carried(bucketed, bucketed.schema)
    np.testing.assert_array_equal(same.dense.changes()["edges"], edges)
    finer, _ = carried(bucketed, bucketed.schema, {"buckets": 20})
    assert finer.dense.changes()["edges"].shape == (1, 19)
    assert np.isfinite(finer.dense.changes()["edges"]).all()
    stock = msgspec.structs.replace(STOCK, transform="bucket")
    schema = msgspec.structs.replace(bucketed.schema, fields=(stock, *bucketed.schema.fields))
    more, report = carried(bucketed, schema)
    np.testing.assert_allclose(answers(more), answers(bucketed), rtol=2e-5)
    assert any(line.startswith("sample") for line in report.new)
    plain, _ = carried(bucketed, SCHEMA)
    assert "edges" not in plain.dense.changes()


def test_a_smaller_table_keeps_the_rows_seen_last() -> None:
    model = OnlineModel(SCHEMA, {**SMALL, "model": "wide_deep"}, 3)
    for i in range(6):
        model.learn(make_samples(64, i, start_ms=START_MS + i * 3_600_000, users=20 + 60 * i))
    new, report = carried(model, SCHEMA, {"max_rows": 60})
    assert all(len(t) <= 60 for t in new.tables.values())
    assert any("for want of room" in line for line in report.dropped)
    last = make_samples(64, 5, start_ms=START_MS + 5 * 3_600_000, users=320)
    assert new.knows("user_id", last.cat).mean() > 0.5
    old = model.tables["w8"]
    stayed = new.tables["w8"].index.find(old.index.ids_of(old.index.rows())) >= 0
    seen = old.snapshot()[1]["seen_min"]
    assert seen[stayed].min() >= seen[~stayed].max()
    bigger, _ = carried(model, SCHEMA, {"max_rows": 10_000})
    np.testing.assert_array_equal(answers(bigger), answers(model))


def test_another_model_or_hidden_layer_starts_afresh_with_the_tables() -> None:
    model = fed({**SMALL, "model": "wide_deep"})
    other, report = carried(model, SCHEMA, {"model": "wide_resnet_bn"})
    assert any("untrained" in line for line in report.new)
    assert other.rows == model.rows
    wider, report = carried(model, SCHEMA, {"hidden": [16, 24]})
    assert "tensor deep_part.layers.2.weight, untrained" in report.new
    kept = "deep_part.layers.0.weight"
    np.testing.assert_array_equal(wider.dense.changes()[kept], model.dense.changes()[kept])
    deeper, report = carried(model, SCHEMA, {"hidden": [16, 16, 16]})
    for m in (other, wider, deeper):
        assert m.learn(make_samples(64, 50)).skipped is None


def test_snapshots_that_do_not_fit_are_named() -> None:
    for note in (None, {"fields": 3}):
        with pytest.raises(SnapshotError, match="does not say"):
            read_columns(note)
    model = fed({**SMALL, "model": "wide_deep"}, 1)
    image, training = model.snapshot()
    wrong = OnlineModel(with_fields(STOCK), model.spec, 0).columns
    with pytest.raises(SnapshotError, match="not those of its spec"):
        evolve(wrong, model.spec, image, training, SCHEMA, model.spec, 0)


HEADED = {**SMALL, "model": "wide_deep", "retrieval_width": 8, "retrieval_negatives": 16}
REORDERED = msgspec.structs.replace(SCHEMA, fields=SCHEMA.fields[::-1])


def heads(model: OnlineModel) -> int:
    """Rows of the retrieval head."""
    assert model.head is not None
    return sum(len(model.head.tables[name]) for name in RETRIEVAL_TABLES)


@pytest.mark.parametrize("schema", [with_fields(COLOUR), with_fields(STOCK), altered("category", slots=2), REORDERED])
def test_a_head_keeps_its_rows_and_forgets_items_with_other_columns(schema: Schema) -> None:
    """What it knows of items is by column: the rows go on, the recent items begin again."""
    model = fed(HEADED)
    assert model.head is not None
    new, report = carried(model, schema)
    assert new.head is not None
    assert heads(new) == heads(model) > 0
    assert new.head.clicks == model.head.clicks > 0
    assert (len(new.head.recent_items), new.head.pending) == (0, 0)
    assert "clicks and items that the retrieval head has seen lately" in report.new
    assert f"retrieval head, {heads(model)} rows" in report.kept
    rows = split(new.snapshot()[0])[1]
    assert rows.same_bits(split(model.snapshot()[0])[1]) == ""
    for i in range(6):
        assert new.learn(under(make_samples(64, 100 + i), schema, i)).skipped is None
    assert new.head.clicks > model.head.clicks


def test_a_head_goes_on_whole_where_its_columns_are_the_same() -> None:
    model = fed(HEADED)
    assert model.head is not None
    new, report = carried(model, SCHEMA, {"hidden": [8], "retrieval_rate": 0.2})
    assert new.head is not None
    assert new.head.pending == model.head.pending > 0
    assert not any("retrieval" in line for line in report.new)
    (image, training), (again, rest) = model.snapshot(), new.snapshot()
    assert split(image)[1].same_bits(split(again)[1]) == ""
    own = [n for n in training if "retrieval" in n]
    assert own
    assert all(training[n].tobytes() == rest[n].tobytes() for n in own)


def test_a_head_of_another_width_begins_again() -> None:
    model = fed(HEADED)
    new, report = carried(model, SCHEMA, {"retrieval_width": 16})
    assert new.head is not None
    assert (heads(new), new.head.clicks, len(new.head.recent_items)) == (0, 0, 0)
    assert "retrieval head, empty" in report.new
    none, report = carried(model, SCHEMA, {"retrieval_width": 0})
    assert none.head is None
    assert report.dropped == ["retrieval head"]
    again, report = carried(none, with_fields(STOCK), {"retrieval_width": 8})
    assert again.head is not None
    assert (heads(again), again.head.clicks) == (0, 0)
    assert "retrieval head, empty" in report.new
