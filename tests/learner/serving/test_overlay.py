"""Tables of versions: a base that is written while it is read, and overlays before it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.serving import overlaykernels as kernels
from learner.serving.model_form import ModelForm
from learner.serving.overlay import Layer, Table, TableWriter, as_rows, entries, overlay_slots, record_width
from learner.tables.table import distinct
from millrace.basics.errors import SettingError
from millrace.basics.probing import EMPTY, FREE, GONE
from millrace.versions.modelstore import TableRows
from tests.scenes.exploring import examples
from tests.scenes.learning import SCHEMA, make_samples

WIDTH = 2
_FACTOR = 0x9E3779B97F4A7C15


def close(count: int) -> list[int]:
    """Ids that begin their search in the same few of 2,048 slots, so that each is in the others' way."""
    found: list[int] = []
    id_ = 0
    while len(found) < count:
        id_ += 1
        if (id_ * _FACTOR % 2**64) >> 53 < 6:
            found.append(id_)
    return found


CLOSE = close(45)
IDS = st.sampled_from(CLOSE[:40])
CHANGES = st.lists(st.tuples(st.sets(IDS, max_size=12), st.sets(IDS, max_size=12)), min_size=1, max_size=8)


def change(ids: Any, removed: Any, turn: int, width: int = WIDTH) -> TableRows:
    """Rows whose values say which id and turn they are of."""
    own = np.array(sorted(ids), np.int64)
    values = (own[:, None] * 100 + turn + np.arange(width + 1) / 8).astype(np.float32)
    rows = as_rows(own, values)
    rows.removed = np.array(sorted(removed), np.int64)
    return rows


class Plain:
    """The plain version: a dictionary for each version."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[float, ...]] = {}

    def apply(self, rows: TableRows) -> None:
        for id_ in rows.removed.tolist():
            self.rows.pop(id_, None)
        for k, id_ in enumerate(rows.ids.tolist()):
            self.rows[id_] = (*rows.columns["embedding"][k].tolist(), float(rows.columns["wide"][k]))

    def values(self, ids: Any) -> Any:
        return [list(self.rows.get(id_, (0.0,) * (WIDTH + 1))) for id_ in ids]


class Side:
    """A writer and a reader beside it, as two processes have them."""

    def __init__(self, max_rows: int = 64) -> None:
        self.writer = TableWriter(WIDTH, max_rows)
        self.plain = Plain()
        self.attach()

    def attach(self) -> None:
        self.reader = Table(WIDTH, Layer.of(self.writer.slots, self.writer.data), ())

    def load(self, rows: TableRows) -> None:
        assert self.writer.check(rows) == ""
        self.writer.load(rows)
        self.plain.apply(rows)
        self.attach()

    def stage(self, rows: TableRows) -> None:
        assert self.writer.check(rows) == ""
        n = entries(rows)
        slots, data = np.zeros(overlay_slots(n), np.int32), np.zeros((n, record_width(WIDTH)), np.float32)
        self.writer.stage(rows, slots, data)
        layer = Layer.of(slots, data, len(rows.ids))
        self.reader = Table(WIDTH, self.reader.base, (*self.reader.overlays, layer))
        self.plain.apply(rows)

    def fold(self, rows: int) -> bool:
        """A slice of the oldest overlay; whether it is whole."""
        if not self.reader.overlays or self.writer.fold(rows):
            return False
        self.writer.settle()
        base = Layer.of(self.writer.slots, self.writer.data)
        self.reader = Table(WIDTH, base, self.reader.overlays[1:])
        return True

    def check(self) -> None:
        ids = np.array([0, *CLOSE])
        out = np.full((len(ids), WIDTH + 1), 7, np.float32)
        self.reader.values(ids, out)
        assert out.tolist() == self.plain.values(ids.tolist())
        assert self.reader.has(ids).tolist() == [id_ in self.plain.rows for id_ in ids.tolist()]
        room = self.writer.max_rows - len(self.plain.rows)
        assert self.writer.check(change(range(10**6, 10**6 + room), (), 0)) == ""
        more = change(range(10**6, 10**6 + room + 1), (), 0)
        assert f"make {self.writer.max_rows + 1} where" in self.writer.check(more)
        state = self.reader.snapshot()
        assert state.ids.tolist() == sorted(self.plain.rows)
        rows = np.column_stack([state.columns["embedding"], state.columns["wide"]])
        assert rows.tolist() == self.plain.values(state.ids.tolist())


@examples(150)
@given(st.sets(IDS), CHANGES, st.lists(st.integers(1, 9), max_size=40))
def test_a_version_reads_as_a_dictionary_would(first: set[int], changes: Any, slices: list[int]) -> None:
    """However changes come, and however slices of the fold lie between them: at each moment the reader's version is
    the plain one's. Few ids, so that rows go and come back and slots are used again."""
    side = Side()
    side.load(change(first, (), 0))
    for turn, (ids, removed) in enumerate(changes, 1):
        side.stage(change(ids, removed, turn))
        side.check()
        for rows in slices[turn :: len(changes)]:
            side.fold(rows)
            side.check()
    while side.reader.overlays:
        side.fold(3)
        side.check()


def test_an_older_reader_keeps_its_version_while_later_rows_are_folded() -> None:
    """A reader that has the overlay, but not that it was folded, and one that has later overlays besides."""
    side = Side()
    side.load(change({1, 2, 3}, (), 0))
    side.stage(change({2, 4}, {3}, 1))
    one = side.reader
    side.stage(change({4, 5}, {2}, 2))
    both = side.reader
    slices = 0
    while not side.fold(1):
        slices += 1
        for version, expected in ((one, [100, 201, 0, 401, 0]), (both, [100, 0, 0, 402, 502])):
            out = np.empty((5, WIDTH + 1), np.float32)
            version.values(np.arange(1, 6), out)
            assert out[:, 0].tolist() == expected
    assert slices > 1


def test_growth_moves_slots_in_slices_and_changes_nothing_meanwhile() -> None:
    side = Side(10_000)
    side.load(change(range(1, 1400), (), 0))
    old = side.writer.slots
    side.stage(change(range(1400, 4000), (), 1))
    calls = 0
    before = old.copy()
    while side.writer.slots is old:
        assert not side.fold(100)
        calls += 1
        if side.writer.slots is old and side.writer._after is not None:
            np.testing.assert_array_equal(old, before)
        before = old.copy()
    assert calls > len(old) // 100
    assert len(side.writer.slots) > len(old)
    while not side.fold(100):
        pass
    out = np.empty((4000, WIDTH + 1), np.float32)
    side.reader.values(np.arange(4000), out)
    assert out[:, 0].tolist() == [0.0, *(i * 100 + (i >= 1400) for i in range(1, 4000))]


def test_slots_that_are_gone_are_cleared_before_they_fill_the_hash() -> None:
    """Ids that come and go for ever: neither rows nor slots grow, and a search for an unknown id ends."""
    side = Side(300)
    for turn in range(60):
        ids = range(1 + 100 * turn, 101 + 100 * turn)
        side.stage(change(ids, range(max(1, 1 + 100 * (turn - 1)), 1 + 100 * turn), turn))
        while not side.fold(64):
            pass
    assert len(side.writer.slots) == 2048
    assert int(side.writer._counts[0]) <= 200
    assert (side.writer.slots != FREE).mean() <= 0.76
    assert not side.reader.has(np.arange(10**6, 10**6 + 1000)).any()


def test_a_search_ends_where_no_slot_is_free() -> None:
    """As a reader may find them when its writer has damaged them."""
    slots, ids, out = np.full(8, GONE, np.int32), np.zeros((4, 3), np.int64), np.zeros(2, np.int32)
    kernels.find(slots, 61, ids, np.array([5, 6]), out)
    assert out.tolist() == [EMPTY, EMPTY]


def test_more_rows_than_there_is_room_for_are_refused_over_all_versions() -> None:
    side = Side(20)
    side.load(change(range(1, 16), (), 0))
    side.stage(change({30, 31, 32}, {1}, 1))  # 17, of which none is in the base yet
    assert "rows that make 21 where 20 have room" in side.writer.check(change({40, 41, 42, 43}, (), 2))
    assert side.writer.check(change({40, 41, 42, 43, 2, 30}, {3}, 2)) == ""
    side.stage(change({40, 41, 42, 43, 2, 30}, {3}, 2))
    while side.reader.overlays:
        side.fold(2)
    side.check()
    assert len(side.writer) == 20


def test_memory_that_cannot_be_had_is_a_named_error() -> None:
    def allocate(shape: tuple[int, ...], dtype: Any) -> Any:
        raise OSError("no room")

    with pytest.raises(SettingError, match="lower max_rows"):
        TableWriter(16, 10**9, allocate)


def test_removed_ids_that_come_back_or_never_were() -> None:
    side = Side()
    side.load(change({1, 2}, (), 0))
    rows = change({2, 3}, {1, 2, 9}, 1)
    rows.removed = np.array([1, 1, 2, 9, 0])
    side.stage(rows)
    side.check()
    while not side.fold(1):
        side.check()
    assert side.reader.snapshot().ids.tolist() == [2, 3]


def test_other_ids_read_the_same_while_a_thread_folds() -> None:
    """A reader beside the writer, in another thread: ids that no overlay changes are never missed, though ids around
    them go, come and go over their slots."""
    side = Side(6000)
    stay = np.arange(1, 2001)
    side.load(change(range(10_000, 11_000), (), 0))
    side.load(change(stay.tolist(), (), 0))  # after those that go: many lie behind them
    for turn in range(1, 7):
        first = 10_000 + 1000 * (turn % 3)  # those of two turns ago go
        gone = range(10_000 + 1000 * ((turn + 2) % 3), 11_000 + 1000 * ((turn + 2) % 3))
        side.stage(change(range(first, first + 1000), gone, turn))
    reader, writer = side.reader, side.writer
    expected = stay * 100.0
    done = threading.Event()

    def fold() -> None:
        for _ in range(6):
            while writer.fold(7):
                pass
            writer.settle()
        done.set()

    thread = threading.Thread(target=fold)
    out = np.empty((len(stay), WIDTH + 1), np.float32)
    thread.start()
    reads = 0
    while not done.is_set() or reads < 3:
        reader.values(stay, out)
        assert out[:, 0].tolist() == expected.tolist()
        reads += 1
    thread.join()
    newest = np.arange(10_000, 11_000)
    values = np.empty((1000, WIDTH + 1), np.float32)
    reader.values(newest, values)
    assert values[:, 0].tolist() == (newest * 100.0 + 6).astype(np.float32).tolist()


@examples(80)
@given(st.data())
def test_pooling_is_that_of_learning(data: st.DataObject) -> None:
    """:func:`kernels.pool` after :func:`kernels.distinct`, with fields that are read once, against the kernels that
    the learner uses: bit for bit."""
    from learner.tables import table_kernels as plain

    n, width = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([0, 1, 3]))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    starts = np.cumsum([0, *sizes]).astype(np.int32)
    columns = int(starts[-1])
    cat = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 9), min_size=columns, max_size=columns), min_size=n, max_size=n)),
        np.int64,
    )
    same = np.array(data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))))
    once = np.repeat(same, sizes)
    cat[:, once] = cat[0, once]
    rare = np.array(data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))) & (width > 0)
    counted = int(rare.any())
    table = np.random.default_rng(0).standard_normal((10, width + counted + 1)).astype(np.float32)
    table[:, width : width + counted] = data.draw(st.sampled_from([0, 1, 3]))  # 0: without a row
    table[5:, width : width + counted] = 7
    unique, inverse = np.empty(cat.size, np.int64), np.full(cat.shape, 99, np.int32)
    scratch = np.zeros(64, np.int32)
    order = np.arange(columns, dtype=np.intp)
    u = kernels.distinct(cat, order, once, scratch, 58, unique, inverse)
    x, t = np.full((n, 1 + len(sizes) * width), 7, np.float32), np.ones(n, np.float32)
    own, lone = x.copy(), x[0].copy()
    place = 1 + width * np.arange(len(sizes), dtype=np.int32)
    lent = data.draw(st.sampled_from([0, sizes[-1]]))
    places = np.where(same, -1 - place, place)
    kernels.pool(table[unique[:u]], inverse, starts, rare, once, lent, places, own, lone, t)
    if width:
        fields = np.repeat(same, width)
        assert (own[:, 1:][:, fields] == 7).all()
        assert (lone[1:][~fields] == 7).all()
        x[:, 1:] = np.where(fields, lone[1:], own[:, 1:])

    ids, _, where = distinct(cat)
    assert sorted(unique[:u].tolist()) == sorted(ids.tolist())
    embedding, wide_weights = table[ids, :-1].copy(), table[ids, -1].copy()
    expected, wide = np.full_like(x, 7), np.ones(n, np.float32)
    plain.wide_sum(wide_weights, where, lent, wide)
    if width:
        plain.pool(embedding, where, starts, rare, expected, 1)
    assert x.tobytes() == expected.tobytes()
    assert t.tobytes() == wide.tobytes()


def test_crosses_are_those_of_learning() -> None:
    form, probe = ModelForm(SCHEMA, {}), make_samples(200, 1)
    probe.cat[::7, :3] = 0  # where one is missing, so is the cross
    (group,) = (g for g in form.inputs.groups if not g.width)
    expected, own = form.inputs.ids(group, probe.cat), len(group.columns)
    found = np.zeros_like(expected)
    found[:, :own] = expected[:, :own]
    kernels.cross(np.ascontiguousarray(probe.cat), form.crossed, form.seeds, own, found)
    assert found.shape[1] > own
    np.testing.assert_array_equal(found, expected)
