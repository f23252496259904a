"""An item table holds what the index holds, whichever way and however often it was sent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.events import Item
from millrace.contracts.schema import parse_schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemimage import REMOVED_MS
from scorer.catalog.itemtable import Arrays, ItemTable
from tests.scenes.exploring import examples
from tests.scenes.scorer_shop import BUILDER, DAY_MS, NOW_MS, index_of, item, table_of, tiles, window_keys
from tests.scorer.page.plain_page import plain_of

HOUR_MS = 3_600_000
CONTEXT = """
name = "by hour"
[[fields]]
name = "user_id"
of = "user"
[[fields]]
name = "item_id"
of = "item"
[[fields]]
name = "category"
of = "item"
[[fields]]
name = "hour"
of = "context"
[windows]
days = [1]
actions = ["exposure", "click"]
[[windows.keys]]
columns = ["category", "hour"]
[[windows.keys]]
columns = ["item_id"]
"""


def late(index: ItemIndex, now_ms: int, step: int) -> ItemTable:
    """The item table of a process that starts now."""
    table, start = ItemTable(index.builder), 0
    while arrays := index.whole(start, start + step, now_ms):
        table.apply(arrays)
        start += step
    return table


def counts_on(table: ItemTable, rows: Any) -> Any:
    """(n, J, S, A)"""
    return table.slots.counts[table.rows.own[rows]]


def assert_equal(table: ItemTable, index: ItemIndex, now_ms: int) -> None:
    n = len(index)
    rows = np.arange(n)
    assert table.ids == index.ids
    removed = index.born_ms == REMOVED_MS
    assert table.rows_of(index.ids).tolist() == np.where(removed, -1, rows).tolist()
    assert table.alive.tolist() == index.alive.tolist()
    columns, form = index.columns(rows), table.form
    held = table.rows
    expected: Arrays = {"cat": index.builder.cat(columns, n)[:, form.cat_columns], "born_ms": index.born_ms}
    for name, column in expected.items():
        np.testing.assert_array_equal(getattr(held, name)[:n], column)
    for v, name in enumerate(form.value_names):
        column = columns[name]
        np.testing.assert_array_equal(held.values[:n, v], column if column.ndim == 1 else column[:, 0])
    for p, name in enumerate(form.plain_names):
        if name != "age_days":
            np.testing.assert_array_equal(held.plain[:n, p], plain_of(index, rows, now_ms)[name])
    np.testing.assert_array_equal(counts_on(table, rows), index.counts_at(rows, now_ms))
    own = index.builder.keys(columns, n)[:, form.own_keys]
    np.testing.assert_array_equal(table.slots.keys[held.own[:n]], own)


Walk = list[tuple[str, int]]
STEPS = st.tuples(
    st.sampled_from(["events", "time", "hour", "category", "new", "gone", "hot", "told", "store"]),
    st.integers(0, 2**31),
)


@examples(60)
@given(walk=st.lists(STEPS, max_size=40), rows=st.integers(1, 6), slots=st.integers(1, 6), step=st.integers(1, 9))
def test_an_item_table_that_follows_holds_what_the_index_holds(walk: Walk, rows: int, slots: int, step: int) -> None:
    """A walk over everything that can change. One table is sent all along, in small slices and each slice twice; one
    starts late and follows; one starts at the end."""
    items = [item(i, f"c{i % 3}") for i in range(4)]
    index = index_of(items)
    stores = [TileStore.of(index.builder.schema.windows) for _ in range(2)]
    now_ms = NOW_MS
    followers: list[ItemTable] = [ItemTable(BUILDER)]

    def send() -> Arrays:
        arrays = index.changes(now_ms, rows, slots)
        for table in followers:
            before = copy.deepcopy(arrays)
            table.apply(arrays)
            table.apply(arrays)
            assert all(np.array_equal(before[name], array) for name, array in arrays.items()), "applying only reads"
        return arrays

    for number, (what, draw) in enumerate(walk):
        rng = np.random.default_rng(draw)
        i = int(rng.integers(0, len(items)))
        if what == "events":
            keys = window_keys("u", [items[i]])[0, index.own_keys]
            store = stores[draw % 2]
            store.add(keys, np.full(len(keys), now_ms - 1), np.full(len(keys), int(rng.integers(0, 3))))
            index.put_tiles(draw % 2, keys, store.export(keys))
        elif what == "time":
            now_ms += int(rng.integers(1, 2 * DAY_MS))
        elif what == "hour":
            now_ms += HOUR_MS - now_ms % HOUR_MS
        elif what == "category":
            items[i] = item(items[i].item_id, f"c{rng.integers(0, 5)}", attributes={"price": float(draw % 7)})
            index.put([index.prepare(items[i])])
        elif what == "new":
            items.append(item(len(items), f"c{rng.integers(0, 5)}"))
            index.put([index.prepare(items[-1])])
        elif what == "gone":
            index.remove(items[i].item_id)
        elif what == "hot":
            index.refresh_hot(now_ms, 3)
            index.counts.expire(now_ms)
        elif what == "store":
            index.put_store(draw % 2, stores[draw % 2])
            stores[draw % 2] = copy.deepcopy(stores[draw % 2])
        else:
            send()
        if number == len(walk) // 2:
            followers.append(late(index, now_ms, step))
    while send():
        pass
    followers.append(late(index, now_ms, step))
    for table in followers:
        assert_equal(table, index, now_ms)
    assert index.changes(now_ms) == {}, "what has been told is not told again"


def test_a_slice_is_as_small_as_it_was_asked_for() -> None:
    index = index_of([item(i, f"c{i % 3}") for i in range(20)])
    keys = window_keys("u", [item(i, f"c{i % 3}") for i in range(20)])[:, index.own_keys]
    index.put_tiles(0, keys.ravel(), tiles(keys.ravel(), 2, 1).export(keys.ravel()))
    sizes = []
    while arrays := index.changes(NOW_MS, 3, 2):
        sizes.append((len(arrays.get("rows", ())), len(arrays.get("slots", ()))))
    assert max(r for r, _ in sizes) == 3
    assert max(s for _, s in sizes) <= 2 + 3 * 2, "two, and those of three rows"
    assert sum(r for r, _ in sizes) == 20


def test_a_row_never_comes_before_its_counts() -> None:
    items = [item(i) for i in range(30)]
    index, table = index_of(items), ItemTable(BUILDER)
    keys = window_keys("u", items)[:, index.own_keys]
    index.put_tiles(0, keys.ravel(), tiles(keys.ravel(), 7, 1).export(keys.ravel()))
    while arrays := index.changes(NOW_MS, 4, 1):
        table.apply(arrays)
        there = np.array([row for row, i in enumerate(table.ids) if i is not None])
        assert (counts_on(table, there)[..., 0] > 0).all()
    assert sum(i is not None for i in table.ids) == 30


def test_an_hour_that_begins_changes_only_what_counts_otherwise_then() -> None:
    items = [item(i, f"c{i}") for i in range(50)]
    index = index_of(items)
    key = window_keys("u", items[:1])[0, index.own_keys]
    index.put_tiles(0, key, tiles(key, 9, 3, NOW_MS - DAY_MS + HOUR_MS).export(key))
    table_of(index)
    reported: list[int] = []
    while arrays := index.changes(NOW_MS + 3 * HOUR_MS, slots=10):
        reported += arrays["slots"].tolist() if "slots" in arrays else []
    assert len(reported) == 2, "the item's and its category's; the others counted nothing, and still do not"


def test_what_was_read_again_twice_before_it_was_published_is_published() -> None:
    index = index_of([item(1)])
    table = table_of(index)
    key = window_keys("u", [item(1)])[0, index.own_keys]
    for _ in range(2):
        index.put_tiles(0, key, tiles(key, 9, 3).export(key))
        index.refresh_hot(NOW_MS)
    table.follow(lambda: index.changes(NOW_MS))
    assert counts_on(table, np.array([0]))[0, :, 0, 0].tolist() == [9, 9]


def test_counts_that_were_replaced_as_a_whole_are_reported() -> None:
    index = index_of([item(1)])
    table = table_of(index)
    key = window_keys("u", [item(1)])[0, index.own_keys]
    index.put_store(0, tiles(key, 9, 3))
    table.follow(lambda: index.changes(NOW_MS))
    assert counts_on(table, np.array([0]))[0, :, 0, 0].tolist() == [9, 9]


def test_a_row_that_was_not_published_yet_is_not_alive() -> None:
    items = [item(i) for i in range(10)]
    index, table = index_of(items), ItemTable(BUILDER)
    table.apply(index.whole(6, 8, NOW_MS))
    assert np.flatnonzero(table.alive).tolist() == [6, 7]
    assert table.rows_of([0, 6, 9]).tolist() == [-1, 6, -1]


def test_keys_of_an_item_and_the_context_are_found_by_the_key() -> None:
    builder = FeatureBuilder(parse_schema(CONTEXT))
    items = [Item(i, {"category": f"c{i}"}) for i in range(3000)]
    index = index_of(items, builder)
    table = table_of(index)
    columns = {**index.columns(np.arange(3000)), **builder.context(np.array([NOW_MS]))}
    keys = np.ascontiguousarray(builder.keys(columns, 3000)[:, 0])
    store = TileStore.of(builder.schema.windows)
    store.add(keys, np.full(3000, NOW_MS - 1), np.zeros(3000), np.arange(1, 3001))
    index.put_tiles(0, keys, store.export(keys))
    table.follow(lambda: index.changes(NOW_MS))
    keyed = table.slots
    for slots in (keyed.table, late(index, NOW_MS, 700).slots.table):
        assert np.count_nonzero(slots) == 6000, "each item's own, and these"
    slot_of = {int(keyed.keys[~held]): ~held for held in keyed.table if held}
    assert [int(keyed.counts[slot_of[key], 0, 0]) for key in keys.tolist()] == list(range(1, 3001))


@pytest.mark.parametrize("read", [lambda s: s.rows_of([f"unseen {i}" for i in range(5000)]), lambda s: s.alive])
def test_reading_allocates_nothing(read: Callable[[ItemTable], Any]) -> None:
    table = table_of(index_of([item(1)]))
    held = len(table), [a.nbytes for a in (*table.rows, *table.slots)]
    read(table)
    assert (len(table), [a.nbytes for a in (*table.rows, *table.slots)]) == held
