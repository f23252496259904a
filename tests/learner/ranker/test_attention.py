"""Attention over a user's last actions, and words by their counts: against torch's own, in learning and in serving."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.network.forward import PageInput
from learner.network.models import REGISTRY
from learner.ranker.model import OnlineModel
from learner.serving.model_form import NumberPlan
from learner.serving.serving_model import ServingModel
from learner.tables import attention
from learner.tables.table import BatchIds, SparseTable
from learner.tables.table_kernels import COMMON, ONE_ITEM
from millrace.basics.probing import EMPTY
from millrace.windows.lastactions import AGE_BUCKETS
from tests.scenes.exploring import examples
from tests.scenes.learning import ATTENDED, MEANT, SCHEMA, make_samples

Floats = NDArray[np.float32]
SPEC: dict[str, Any] = {"hidden": [16, 16], "width": 8, "step_rows": 1, "averaging": 0.0}
LAYOUT = ATTENDED.layout


def plain(values: torch.Tensor, query: Any, slots: Any, bias: torch.Tensor) -> torch.Tensor:
    """The formula, row by row. values (U, D), query (B,), slots (B, L), bias (B, L)"""
    rows = []
    for b in range(len(query)):
        there = [c for c, u in enumerate(slots[b]) if u != EMPTY]
        if not there:
            rows.append(torch.zeros(values.shape[1]))
            continue
        keys = values[slots[b][there]]  # (l, D)
        q = values[query[b]] if query[b] != EMPTY else torch.zeros(values.shape[1])
        p = torch.softmax(keys @ q / values.shape[1] ** 0.5 + bias[b][there], 0)
        rows.append(p @ keys)
    return torch.stack(rows)


@examples(60)
@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([1, 4, 16]), st.sampled_from([1, 3, 16]))
def test_values_and_gradients_are_torchs(seed: int, n: int, width: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((7, width)).astype(np.float32)
    query = rng.integers(EMPTY, 7, n).astype(np.int32)
    slots = rng.integers(EMPTY, 7, (n, most)).astype(np.int32)
    slots[rng.random(n) < 0.2] = EMPTY
    bias = rng.standard_normal((n, most)).astype(np.float32)
    grad = rng.standard_normal((n, width + 2)).astype(np.float32)
    v, a = torch.tensor(values, requires_grad=True), torch.tensor(bias, requires_grad=True)
    expected = plain(v, query, slots, a)
    out = np.full((n, width + 3), 7, np.float32)
    attention.attend(values, width, query, slots, bias, out, 2)
    np.testing.assert_allclose(out[:, 2:-1], expected.detach(), rtol=1e-5, atol=1e-6)
    assert (out[:, [0, 1, -1]] == 7).all()
    if expected.requires_grad:
        expected.backward(torch.from_numpy(3 * grad[:, 1:-1]))  # type: ignore[no-untyped-call]
    share, slope = np.full(slots.shape, 9, np.float32), np.full(slots.shape, 9, np.float32)
    attention.slopes(values, width, query, slots, bias, grad, 1, share, slope)
    of_values = np.zeros_like(values)
    attention.spread(values, query, slots, share, slope, grad, 1, np.float32(3), of_values)
    none = torch.zeros(1)
    np.testing.assert_allclose(of_values, (none if v.grad is None else v.grad) + 0 * v.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(3 * slope, (none if a.grad is None else a.grad) + 0 * a.detach(), rtol=1e-4, atol=1e-5)


@examples(30)
@given(st.integers(0, 2**32), st.integers(2, 40))
def test_a_page_of_one_user_is_that_of_its_rows_to_the_bit(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((50, 9)).astype(np.float32)  # eight, and the wide weight
    query, slots = rng.integers(EMPTY, 50, n).astype(np.int32), rng.integers(EMPTY, 50, (1, 16)).astype(np.int32)
    bias = rng.standard_normal((1, 16)).astype(np.float32)
    once, each = np.zeros((n, 8), np.float32), np.zeros((n, 8), np.float32)
    attention.attend(values, 8, query, slots, bias, once, 0)
    own = np.ascontiguousarray(values[:, :8])
    attention.attend(own, 8, query, np.repeat(slots, n, 0), np.repeat(bias, n, 0), each, 0)
    assert once.tobytes() == each.tobytes()


def of_one_user(rows: int, seed: int) -> Any:
    """Rows with the user's side and context of the first."""
    batch = make_samples(rows, seed, ATTENDED)
    items = {f.name for f in ATTENDED.fields if f.of == "item"}
    wide = [c for c, name in enumerate(LAYOUT.cat_names) if name not in items]
    batch.cat[:, wide] = batch.cat[:1, wide]
    return batch


def trained(spec: dict[str, Any], batches: int = 4) -> OnlineModel:
    model = OnlineModel(ATTENDED, {**SPEC, **spec}, 0)
    for seed in range(batches):
        assert model.learn(make_samples(64, seed, ATTENDED)).skipped is None
    return model


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_every_model_serves_what_it_has_learnt_and_goes_on_from_its_snapshot(kind: str) -> None:
    model = trained({"model": kind})
    batch = of_one_user(50, 9)
    serving = ServingModel.of(ATTENDED, model.spec, model.snapshot()[0])
    np.testing.assert_array_equal(serving.score(batch.cat, batch.num), model.score(batch.cat, batch.num))
    twin = OnlineModel(ATTENDED, model.spec, 1)
    twin.resume(*model.snapshot())
    more = make_samples(64, 10, ATTENDED)
    assert twin.learn(more) == model.learn(more)
    assert model.snapshot()[0].same_bits(twin.snapshot()[0]) == ""


def test_a_word_is_counted_once_for_each_item() -> None:
    """That of the first row of an item that has no row in its table; and what is counted goes on from a snapshot."""
    model, met = OnlineModel(ATTENDED, SPEC, 0), Counter[int]()
    title = [c for c, name in enumerate(LAYOUT.cat_names) if name == "title"]
    item = LAYOUT.cat_names.index("item_id")
    for seed, items in ((0, 15), (1, 30), (2, 30)):  # half of them come again
        batch = make_samples(64, seed, ATTENDED, items=items)
        new = batch.cat[~model.knows("item_id", batch.cat)].tolist()
        for row in {row[item]: row for row in reversed(new)}.values():
            met.update(row[c] for c in title)
        model.learn(batch)
    words = np.array([word for word in met if word])
    table = model.tables["w8"]
    counts = table.read(words[None]).embedding[:, -1] / ONE_ITEM - 1
    assert counts.tolist() == [met[word] for word in words.tolist()]
    assert len({*counts.tolist()}) > 3
    twin = OnlineModel(ATTENDED, SPEC, 1)
    twin.resume(*model.snapshot())
    np.testing.assert_array_equal(twin.tables["w8"].read(words[None]).embedding, table.read(words[None]).embedding)


@pytest.mark.parametrize("kind", ["wide_resnet", "wide_deep"])
def test_a_scorers_pooled_columns_are_the_learners_to_the_bit(kind: str) -> None:
    model, batch = trained({"model": kind}), of_one_user(50, 9)
    serving = ServingModel.of(ATTENDED, model.spec, model.snapshot()[0])
    rooms: list[PageInput] = []

    def zeros(_: NumberPlan, given: PageInput) -> None:
        given.own[:], given.same[:] = 0, 0
        rooms.append(given)

    serving.score_page(batch.cat, zeros)
    (given,) = rooms
    room = Room(model)
    model.score(batch.cat, batch.num)
    (field,), (content,) = model._inputs.attended, model._inputs.contents
    for at in (field.at, content.text, content.item):
        place = int(serving.form.place[at])
        mine = given.own[:50, place : place + field.width]
        assert mine.any()
        assert len({row.tobytes() for row in mine}) > 10  # it differs from item to item
        assert mine.tobytes() == room.x[:, at : at + field.width].tobytes()


class Room:
    """Keeps the input of the network's next pass."""

    def __init__(self, model: OnlineModel) -> None:
        inner = model._inference._written
        assert inner is not None
        self.x = np.empty(0, np.float32)
        self._infer = inner.infer
        inner.infer = self  # type: ignore[method-assign]

    def __call__(self, x: torch.Tensor, room: Any) -> Floats:
        self.x = x.numpy().copy()
        return self._infer(x, room)


@pytest.mark.parametrize("kind", ["wide_resnet", "wide_deep", "deepfm"])
def test_what_is_learnt_is_the_gradient_of_the_whole_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, ages and weights of the network against torch's gradient of the loss, with the formula for attention."""
    model, batch = trained({"model": kind}), make_samples(40, 20, ATTENDED)
    with torch.no_grad():
        model.network.ages.copy_(torch.linspace(-1, 1, AGE_BUCKETS)[None])
    inputs, blocks = model._inputs, [model.tables[g.name].read(ids, True) for g, ids in grouped(model, batch)]
    leaves = [torch.tensor(block.embedding, requires_grad=True) for block in blocks]
    parts = []
    for k, (group, block, v) in enumerate(zip(inputs.groups, blocks, leaves, strict=True)):
        if not group.width:
            continue
        columns = []
        for f, (a, z) in enumerate(zip(group.starts[:-1], group.starts[1:], strict=True)):
            inverse = block.inverse[:, a:z]
            if group.fields[f] == "last_clicks":
                (field,) = inputs.attended
                assert field.group == k
                own = v[:, : group.width]
                columns.append(plain(own, block.inverse[:, field.query], inverse, ages_of(model, batch)))
                continue
            weight = torch.from_numpy(inverse != EMPTY).float()
            if group.fields[f] == "title":
                counts = weight * v[np.maximum(inverse, 0), group.width].detach()
                weight /= counts + float(COMMON) * counts.max(1, keepdim=True).values.clamp(min=1e-9)
            part = (v[np.maximum(inverse, 0), : group.width] * weight[:, :, None]).sum(1)
            columns.append(part / weight.sum(1, keepdim=True).clamp(min=1e-9))
        if "title" in group.fields:
            of_title, of_item = map(group.fields.index, ("title", "item_id"))
            columns[of_item] = columns[of_item] + columns[of_title]
        parts.append(torch.stack(columns, 1))
    model.network.train()
    numbers = torch.from_numpy(inputs.plain(batch.num))
    statistics = {name: b.clone() for name, b in model.network.named_buffers()}
    logits = model.network(parts, numbers)
    for name, b in model.network.named_buffers():
        b.copy_(statistics[name])
    wide = sum(torch.tensor(wide_of(block, group.lent)) for block, group in zip(blocks, inputs.groups, strict=True))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits + wide + inputs.prior_logit, torch.from_numpy(batch.label), reduction="sum"
    )
    names = [name for name, _ in model.network.named_parameters()]
    found = torch.autograd.grad(loss, [*leaves, *model.network.parameters()], allow_unused=True)
    told: dict[int, Floats] = {}

    def write(self: SparseTable, block: BatchIds, grad: Floats, grad_wide: Floats, now_min: int) -> None:
        told[grad.shape[1]] = grad

    monkeypatch.setattr(SparseTable, "write", write)
    monkeypatch.setattr(model.dense, "learn", lambda size, again: None)
    assert model.learn(batch).skipped is None
    for group, leaf in zip(inputs.groups, found, strict=False):
        if group.width:
            assert leaf is not None
            leaf = leaf[:, : group.width]
            np.testing.assert_allclose(told[group.width], leaf, rtol=2e-3, atol=1e-4 * float(leaf.abs().max()))
    for name, parameter, expected in zip(names, model.network.parameters(), found[len(blocks) :], strict=True):
        assert parameter.grad is not None
        assert expected is not None
        most = float(expected.abs().max())
        np.testing.assert_allclose(40 * parameter.grad, expected, rtol=2e-3, atol=1e-4 * most, err_msg=name)
    assert float(model.network.ages.grad.abs().max()) > 0  # type: ignore[union-attr]


def grouped(model: OnlineModel, batch: Any) -> Any:
    return [(group, model._inputs.ids(group, batch.cat)) for group in model._inputs.groups]


def ages_of(model: OnlineModel, batch: Any) -> torch.Tensor:
    """a of each slot, looked up one by one."""
    (field,) = model._inputs.attended
    number = {int(age): n for n, age in enumerate(field.ages)}
    columns = [c for c, name in enumerate(LAYOUT.cat_names) if name == "last_clicks_age"]
    zero = torch.zeros(())
    rows = [
        torch.stack([model.network.ages[0, number[i]] if i in number else zero for i in row])
        for row in batch.cat[:, columns].tolist()
    ]
    return torch.stack(rows)


def wide_of(block: BatchIds, lent: int) -> Floats:
    weights = np.append(block.wide, np.float32(0))  # EMPTY, -1, is the last one
    total: Floats = weights[block.inverse[:, : block.inverse.shape[1] - lent]].sum(1)
    return total


@pytest.mark.parametrize("schema", [ATTENDED, MEANT], ids=["attention", "mean"])
def test_last_clicks_read_the_items_rows_and_no_wide_weights(schema: Any) -> None:
    model = OnlineModel(schema, SPEC, 0)
    batch = make_samples(30, 0, schema)
    model.learn(batch)
    layout = schema.layout
    at = [c for c, name in enumerate(layout.cat_names) if name == "last_clicks"]
    item = layout.cat_names.index("item_id")
    alone = batch.cat[:1].copy()
    alone[:, [c for c in range(layout.F) if c not in at]] = 0
    shown = np.zeros_like(alone)
    shown[0, item] = alone[0, at[0]] = batch.cat[0, item]
    (group,) = [g for g in model._inputs.groups if "item_id" in g.fields]
    table = model.tables[group.name]
    one, other = table.read(model._inputs.ids(group, alone)), table.read(model._inputs.ids(group, shown))
    assert set(one.ids.tolist()) >= set(other.ids.tolist())
    assert wide_of(other, group.lent).any()
    assert not wide_of(one, group.lent).any()
    p = model.score(np.concatenate([alone, np.zeros_like(alone)]), np.zeros((2, layout.N), np.float32))
    assert p[0] != p[1]  # the embeddings count


def test_without_the_field_a_model_is_as_it_was() -> None:
    model = OnlineModel(SCHEMA, SPEC, 0)
    assert model._inputs.attended == ()
    assert not hasattr(model.network, "ages")
    assert "ages" not in model.dense.names
