"""Snapshots in slices: whatever happens to the rows meanwhile, the parts make up the state of the last moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.ranker.model import OnlineModel
from learner.ranker.snapshot_slices import Part, Slices, merge
from learner.serving.serving_model import ServingModel
from learner.serving.staging import ModelWriter
from learner.tables import rowcopy
from learner.tables.table import SparseTable
from millrace.basics.errors import SnapshotError
from millrace.versions.modelstore import Image, TableRows
from tests.scenes.exploring import examples
from tests.scenes.learning import SCHEMA, START_MS, make_samples
from tests.scenes.same_state import differs

SPEC = {"model": "wide_deep", "hidden": [4], "width": 2, "max_rows": 30, "max_age_days": 0.01}  # 14 minutes

TOUCH = st.tuples(st.just("touch"), st.integers(0, 1), st.lists(st.integers(1, 60), min_size=1, max_size=12))
STEPS = st.lists(
    st.one_of(
        TOUCH,
        st.tuples(
            st.sampled_from(["next", "next", "wait", "expire", "version", "learn", "remade"]), st.none(), st.none()
        ),
    ),
    max_size=30,
)


def touch(table: SparseTable, ids: list[int], now_min: int) -> None:
    block = table.read(np.array(ids, np.int64).reshape(-1, 1), learning=True)
    grads = np.full((len(block.ids), table.width), 0.1, np.float32)
    table.write(block, grads, np.full(len(block.ids), 0.3, np.float32), now_min)


class World:
    """A model, a snapshot of it in the making, and a scorer that follows by deltas."""

    def __init__(self, rows: int) -> None:
        self.model = OnlineModel(SCHEMA, SPEC, 0)
        self.rows, self.now_min, self.turn = rows, START_MS // 60_000, 0
        self.tables = list(self.model.tables.values())
        self.scorer = ServingModel.of(SCHEMA, SPEC, self.model.snapshot()[0])
        self.begin()

    def begin(self) -> None:
        self.slices = self.model.slices(self.rows)
        self.parts: list[Part] = []
        self.loaded = ModelWriter(SCHEMA, SPEC)  # by somebody who reads the parts as they come

    def next(self) -> bool:
        part = self.slices.next()
        if part is not None:
            self.parts.append(part)
            self.loaded.load(part[0])  # refuses more rows than a table ever had
        return part is not None

    def step(self, what: str, table: int | None, ids: list[int] | None) -> None:
        if what == "touch" and table is not None and ids is not None:
            touch(self.tables[table], ids, self.now_min)
        elif what == "next":
            self.next()
        elif what == "remade":
            self.begin()
        elif what == "wait":
            self.now_min += 8
        elif what == "expire":
            for each in self.tables:
                each.expire(self.now_min)
        elif what == "learn":
            self.turn += 1
            self.model.learn(make_samples(9, self.turn, start_ms=self.now_min * 60_000, users=25, items=25))
        elif what == "version":
            self.scorer.patch(self.model.changes())

    def finish(self) -> None:
        while self.next():
            pass
        self.scorer.patch(self.model.changes())
        self.parts.append(self.slices.finish())
        self.loaded.load(self.parts[-1][0])


@pytest.mark.slow
@examples(120)
@given(STEPS, STEPS, STEPS, st.integers(1, 40))
def test_parts_make_up_the_snapshot_of_the_last_moment(before: Any, during: Any, after: Any, rows: int) -> None:
    """However learning, versions, eviction by age and for want of room, and slices come one after another."""
    world = World(rows)
    for step in before:
        if step[0] != "next":
            world.step(*step)
    world.begin()
    for step in during:
        world.step(*step)
    while world.next():
        pass
    for step in after:
        world.step(*step)
    world.finish()
    whole = world.model.snapshot()
    assert differs(merge(world.parts), whole) == ""
    image = world.parts[0][0]
    for part, _ in world.parts[1:]:
        image = image.apply(part)
    assert image.same_bits(whole[0]) == ""
    assert ServingModel.attach(SCHEMA, SPEC, world.loaded.base()).snapshot().same_bits(whole[0]) == ""
    assert world.scorer.snapshot().same_bits(whole[0]) == ""
    again = OnlineModel(SCHEMA, SPEC, 7)
    again.resume(iter(world.parts))
    assert differs(again.snapshot(), whole) == ""
    world.begin()  # a second one, after the first
    for step in after:
        world.step(*step)
    world.finish()
    assert differs(merge(world.parts), world.model.snapshot()) == ""


def fed(batches: int = 6, rows: int = 64, **spec: Any) -> OnlineModel:
    model = OnlineModel(SCHEMA, {**SPEC, "max_rows": 5000, "max_age_days": 60.0, **spec}, 0)
    for i in range(batches):
        model.learn(make_samples(rows, i, users=100, items=100))
    return model


def test_a_part_has_no_more_than_a_slice_and_every_table() -> None:
    model = fed()
    slices = model.slices(50)
    parts = [*iter(slices.next, None), slices.finish()]
    assert len(parts) >= model.rows / 50
    for image, training in parts:
        assert set(image.tables) == set(model.tables)
        assert sum(len(t.ids) for t in image.tables.values()) <= 50
        assert all(len(training[f"table/{n}/seen_min"]) == len(t.ids) for n, t in image.tables.items())
    assert [bool(image.dense) for image, _ in parts] == [False] * (len(parts) - 1) + [True]


def test_rows_that_change_behind_the_copy_are_copied_again_before_the_end() -> None:
    """So the last part, which nothing can be learnt beside, stays small."""
    model = fed()
    slices = model.slices(40)
    while not slices.whole:
        slices.next()
    for i in [*range(6)] * 3:
        model.learn(make_samples(64, i, users=100, items=100))
    assert 200 < slices.behind <= model.rows  # a row that was touched again and again counts once
    parts = [*iter(slices.next, None)]
    assert slices.behind <= 5
    assert sum(len(t.ids) for image, _ in parts for t in image.tables.values()) > 200


def test_rows_that_change_faster_than_they_are_copied_come_to_an_end() -> None:
    model, batch = fed(), make_samples(200, 0, users=100, items=100)
    slices = model.slices(8)
    calls = 0
    while slices.next() is not None:
        model.learn(batch)
        calls += 1
        assert calls < 6 * model.rows / 8 + 10
    model.changes()
    assert slices.behind > 8
    last = slices.finish()
    assert sum(len(t.ids) for t in last[0].tables.values()) > 8


def test_a_snapshot_ends_once_all_is_copied_and_only_once() -> None:
    model = fed()
    slices = model.slices(50)
    with pytest.raises(SnapshotError, match="before all its rows"):
        slices.finish()
    while slices.next() is not None:
        pass
    slices.finish()
    for call in (slices.next, slices.finish):
        with pytest.raises(SnapshotError, match="given up"):
            call()


@pytest.mark.parametrize("how", ["another", "resumed", "abandoned"])
def test_a_snapshot_that_was_given_up_says_so(how: str) -> None:
    model = fed()
    state, slices = model.snapshot(), model.slices(50)
    slices.next()
    newer: Slices | None = None
    if how == "another":
        newer = model.slices(50)
    elif how == "resumed":
        model.resume(*state)
    else:
        slices.abandon()
    with pytest.raises(SnapshotError, match="given up"):
        slices.next()
    if newer is not None:
        parts = [*iter(newer.next, None), newer.finish()]
        assert differs(merge(parts), model.snapshot()) == ""


def test_what_one_snapshot_kept_track_of_is_nothing_to_the_next() -> None:
    """Rows that were touched behind a copy which was given up are noticed when they are touched behind another."""
    model, batch = fed(), make_samples(64, 1, users=100, items=100)
    for _ in range(2):
        slices = model.slices(10_000)
        parts = [*iter(slices.next, None)]
        model.learn(batch)
        assert slices.behind > 50
    model.changes()
    parts.append(slices.finish())
    assert differs(merge(parts), model.snapshot()) == ""


def test_a_snapshot_that_nobody_goes_on_with_takes_no_memory_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowcopy, "_SOME", 100)
    model = fed(1, max_rows=40)
    slices = model.slices(1000)
    slices.next()
    for i in range(60):
        model.learn(make_samples(64, i, users=100_000, items=100_000))
        assert slices.behind <= (4 * 40 + 100) * len(model.tables)
    with pytest.raises(SnapshotError, match="given up"):
        slices.next()


def test_within_a_part_ids_go_before_rows_come() -> None:
    """As a delta is applied: an id that a part removes and has is there."""

    def part(ids: list[int], removed: list[int]) -> Part:
        rows = TableRows(np.array(ids), {"wide": np.array(ids, np.float32)}, np.array(removed, np.int64))
        return Image({}, {"w0": rows}), {"table/w0/z": np.array(ids, np.float32) / 2}

    parts = [part([3, 1, 2], []), part([2, 5], [1, 2]), part([4], [5, 9]), part([1], [])]
    image, training = merge(parts)
    assert image.tables["w0"].ids.tolist() == [1, 2, 3, 4]
    assert training["table/w0/z"].tolist() == [0.5, 1.0, 1.5, 2.0]
    applied = parts[0][0]
    for later, _ in parts[1:]:
        applied = applied.apply(later)
    assert applied.same_bits(image) == ""


def test_slices_have_rows() -> None:
    with pytest.raises(ValueError, match="slices of 0 rows"):
        fed(1).slices(0)


@pytest.mark.parametrize("lost", ["first", "last", "a table", "a training column"])
def test_a_snapshot_in_parts_is_resumed_whole_or_not_at_all(lost: str) -> None:
    model, other = fed(), fed(2)
    slices = model.slices(50)
    parts = [*iter(slices.next, None), slices.finish()]
    if lost == "last":
        parts = parts[:-1]
    elif lost == "a table":
        parts[1] = Image({}, {"w2": parts[1][0].tables["w2"]}), parts[1][1]
    elif lost == "a training column":
        parts[1] = parts[1][0], {n: a for n, a in parts[1][1].items() if not n.endswith("/z")}
    before = other.snapshot()
    if lost == "first":  # fewer rows: nothing says so but the manifest that names the parts
        other.resume(parts[1:])
        assert other.rows == model.rows - sum(len(t.ids) for t in parts[0][0].tables.values())
        return
    with pytest.raises(SnapshotError, match="not of a"):
        other.resume(parts)
    assert differs(other.snapshot(), before) == ""


def test_dense_tensors_can_stay_out_of_changes() -> None:
    model = fed()
    scorer = ServingModel.of(SCHEMA, model.spec, model.snapshot()[0])
    model.changes()
    for i in range(10, 13):
        model.learn(make_samples(64, i, users=200))
        rows = model.changes(dense=False)
        assert rows.dense == {}
        assert any(len(t.ids) for t in rows.tables.values())
        scorer.patch(rows)
    scorer.patch(model.changes())
    assert scorer.snapshot().same_bits(model.snapshot()[0]) == ""
