"""The item index: rows, columns, counts over partitions, hotness."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from millrace.basics.errors import StoreError
from millrace.basics.hashing import column_hash, value_hash
from millrace.contracts.events import Item, ItemChange
from millrace.contracts.schema import parse_schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemimage import REMOVED_MS
from scorer.catalog.itemtable import Arrays, ItemTable
from scorer.recall.candidate_lists import Shares, make_lists, recall
from tests.scenes.exploring import examples
from tests.scenes.schemas import named, of_context, of_item, of_user, windows_of
from tests.scenes.scorer_shop import (
    BUILDER,
    CATEGORY,
    DAY_MS,
    ITEM,
    NOW_MS,
    index_of,
    item,
    table_of,
    tiles,
    window_keys,
)
from tests.scorer.page.plain_page import plain_of


def test_a_row_holds_what_the_item_says_and_a_newer_message_replaces_it() -> None:
    index = index_of([item(7, "shoes"), item("b", "hats", attributes={"price": 9.5, "tags": "x"})])
    rows = index.rows_of([7, "7", "b", "nobody"])
    assert rows.tolist() == [0, 0, 1, -1], "7 and '7' are the same id"
    columns = index.columns(rows[[0, 2]])
    assert columns["category"].tolist() == [value_hash("shoes"), value_hash("hats")]
    assert columns["item_id"].tolist() == [value_hash(7), value_hash("b")]
    assert columns["tags"].tolist() == [[value_hash("red"), value_hash("new")], [value_hash("x"), 0]]
    plain = plain_of(index, rows[[0, 2]], NOW_MS)
    assert plain["price"].tolist() == [5.0, 9.5]
    assert plain["age_days"].tolist() == [1.0, 1.0]

    index.put([index.prepare(item(7, "boots", gone=True, attributes={"tags": None}))])
    assert len(index) == 2
    assert index.columns(np.array([0]))["category"].tolist() == [value_hash("boots")]
    assert index.columns(np.array([0]))["tags"].tolist() == [[0, 0]], "an attribute that is no longer there is missing"
    assert index.alive.tolist() == [False, True]


def test_it_grows_without_losing_a_row() -> None:
    index = index_of([item(i, f"c{i % 7}", attributes={"price": float(i)}) for i in range(3000)])
    rows = index.rows_of(list(range(3000)))
    assert rows.tolist() == list(range(3000))
    assert plain_of(index, rows, NOW_MS)["price"].tolist() == [float(i) for i in range(3000)]
    assert index.columns(rows)["category"].tolist() == [value_hash(f"c{i % 7}") for i in range(3000)]


def test_counts_are_the_sum_over_partitions_and_a_newer_list_replaces_the_older() -> None:
    shoe = item(1)
    index = index_of([shoe])
    key = window_keys("u", [shoe])[:, ITEM]
    index.put_tiles(0, key, tiles(key, 10, 3).export(key))
    index.put_tiles(3, key, tiles(key, 5, 1).export(key))
    assert index.counts.at(key, NOW_MS)[0, 0].tolist() == [15, 4, 0]
    index.put_tiles(3, key, tiles(key, 6, 2).export(key))
    assert index.counts.at(key, NOW_MS)[0, 0].tolist() == [16, 5, 0]
    assert index.counts.at(key, NOW_MS + 2 * DAY_MS)[0].tolist() == [[0, 0, 0], [16, 5, 0]], (
        "the one-day window ran out"
    )


def test_reading_unknown_keys_and_ids_allocates_nothing() -> None:
    index = index_of([item(1)])
    key = window_keys("u", [item(1)])[:, CATEGORY]
    index.put_tiles(0, key, tiles(key, 1, 0).export(key))
    held = index.counts.held, index.counts.tiles[0].nbytes, len(index)
    index.rows_of([f"unseen {i}" for i in range(5000)])
    index.counts.at(np.arange(1, 5001, dtype=np.uint64), NOW_MS)
    assert (index.counts.held, index.counts.tiles[0].nbytes, len(index)) == held


def test_hotness_follows_new_counts_and_runs_out_with_the_windows() -> None:
    items = [item(i) for i in range(4)]
    index = index_of(items)
    keys = window_keys("u", items)[:, ITEM]
    index.put_tiles(0, keys[1:2], tiles(keys[1:2], 50, 6).export(keys[1:2]))
    index.put_tiles(1, keys[2:3], tiles(keys[2:3], 50, 3).export(keys[2:3]))
    assert index.refresh_hot(NOW_MS) == 0
    # 6 clicks within 1 and within 3 days: (6 / 1 + 6 / 3) / 2 clicks a day
    assert index.heat.clicks.tolist() == [0, 4, 2, 0]
    np.testing.assert_allclose(index.heat.exposures, [0, (50 + 50 / 3) / 2, (50 + 50 / 3) / 2, 0], rtol=1e-6)
    assert index.heat.seen.tolist() == [0, 50, 50, 0], "exposures in the longest window"
    index.refresh_hot(NOW_MS + 10 * DAY_MS)
    assert index.heat.clicks.tolist() == [0, 0, 0, 0], "nobody wrote, but the clicks are old"
    assert not np.any(index.heat)
    assert index.counts.expire(NOW_MS + 10 * DAY_MS) == 2
    assert index.counts.held == 0


def test_hotness_is_refreshed_in_bounded_steps() -> None:
    items = [item(i) for i in range(100)]
    index = index_of(items)
    keys = window_keys("u", items)[:, ITEM]
    index.put_tiles(0, keys, tiles(keys, 3, 1).export(keys))
    left = [index.refresh_hot(NOW_MS, limit=30) for _ in range(4)]
    assert left == [70, 40, 10, 0]
    assert (index.heat.clicks > 0).all()


def test_tiles_may_come_before_their_item() -> None:
    index = index_of([item(1)])
    late = item(2)
    key = window_keys("u", [late])[:, ITEM]
    index.put_tiles(0, key, tiles(key, 9, 3).export(key))
    index.refresh_hot(NOW_MS)
    index.put([index.prepare(late)])
    index.refresh_hot(NOW_MS)
    assert index.heat.clicks.tolist() == [0, 2]


def test_a_removed_item_is_dead_and_an_unknown_one_no_concern() -> None:
    index = index_of([item(1), item(2)])
    index.remove("1")
    index.remove("never seen")
    assert index.alive.tolist() == [False, True]
    again = ItemIndex(BUILDER)
    again.put([index.image(0, 2)])  # as a checkpoint does
    table = ItemTable(BUILDER)
    table.follow(lambda: again.changes(NOW_MS))
    assert table.rows_of([1, 2]).tolist() == [-1, 1]


def test_an_item_is_gone_by_itself_when_its_time_comes() -> None:
    def until(name: str, expires_ms: int, **told: Any) -> Item:
        return replace(item(name, "news", **told), expires_ms=expires_ms)

    items = [
        until("first", NOW_MS + 5),
        until("second", NOW_MS + 9),
        item("for ever"),
        until("gone", NOW_MS, gone=True),
    ]
    index = index_of(items)
    copy_of, table = index_of([]), ItemTable(BUILDER)
    copy_of.put([index.image(0, len(index))])  # as from a checkpoint

    def alive(now_ms: int) -> list[bool]:
        copy_of.changes(now_ms)
        table.follow(lambda: index.changes(now_ms))
        found: list[bool] = table.alive.tolist()
        assert index.alive.tolist() == copy_of.alive.tolist() == found
        return found

    assert alive(NOW_MS + 4) == [True, True, True, False]
    assert alive(NOW_MS + 5) == [False, True, True, False]
    for one in (index, copy_of):
        one.put([one.prepare(until("first", NOW_MS + 20)), one.prepare(item("second", "news"))])  # prolonged, for good
        assert one.change(ItemChange("first", {"category": "old"}))
    assert alive(NOW_MS + 19) == [True, True, True, False]
    assert alive(NOW_MS + 20) == [False, True, True, False]
    for one in (index, copy_of):
        assert one.change(ItemChange("first", {}, gone=False))
    assert alive(NOW_MS + 21) == [False, True, True, False], "only a new message prolongs it"


def test_a_damaged_tile_list_is_refused() -> None:
    index = index_of([item(1)])
    key = window_keys("u", [item(1)])[:, ITEM]
    with pytest.raises(StoreError):
        index.put_tiles(0, key, [b"\x01\x63rubbish"])


def test_slots_grow_with_the_distinct_keys() -> None:
    items = [item(i, f"c{i}") for i in range(1500)]  # 3,000 keys
    index = index_of(items)
    keys = window_keys("u", items)[:, index.own_keys]
    index.put_tiles(0, keys.ravel(), tiles(keys.ravel(), 2, 1).export(keys.ravel()))
    assert (index.counts_at(np.arange(1500), NOW_MS)[..., 0] == 2).all()
    index.refresh_hot(NOW_MS)
    assert (index.heat.clicks > 0).all()


@pytest.mark.parametrize(
    ("windows", "seen"),
    [
        ('days = [1, 3]\nactions = ["exposure", "click"]\nkeys = [{ columns = ["user_id"] }]', [0, 0, 0]),
        ('days = [1, 3]\nactions = ["exposure", "cart"]\nkeys = [{ columns = ["item_id"] }]', [0, 7, 0]),
        ("days = [1]\nkeys = []", [0, 0, 0]),
    ],
)
def test_heat_is_what_the_schema_counts_and_lists_are_made_of_any(windows: str, seen: list[int]) -> None:
    """No window key of the item alone; no clicks; no windows."""
    text = named("bare") + of_user("user_id") + of_item("item_id")
    builder = FeatureBuilder(parse_schema(f"{text}[windows]\n{windows}"))
    index = ItemIndex(builder)
    index.put([index.prepare(Item(i, {}, NOW_MS - i)) for i in range(3)])
    if any(seen):
        (own,) = index.own_keys
        keys = builder.keys({"item_id": column_hash([1])}, 1)[:, own]
        store = TileStore.of(builder.schema.windows)
        store.add(keys, np.array([NOW_MS - 60_000]), np.array([0]), 7)
        index.put_tiles(0, keys, store.export(keys))
    assert index.refresh_hot(NOW_MS) == 0
    assert index.heat.seen.tolist() == seen
    assert not index.heat.clicks.any()
    lists = make_lists(builder, index.columns(np.arange(3)), index.alive, index.born_ms, index.heat, new_exposures=7)
    assert lists.new.tolist() == [row for row in range(3) if seen[row] < 7], "born last first"
    assert (lists.hot.tolist(), lists.groups) == ([0, 1, 2], ()), "nothing is hot, so those born last"
    assert len(recall(lists, Shares.of({"hot": 0.5, "new": 0.5}), 2, 0).rows) == 2


# -- An item table holds what the index holds, whichever way and however often it was sent -----------------------------


HOUR_MS = 3_600_000
CONTEXT = (
    named("by hour")
    + of_user("user_id")
    + of_item("item_id", "category")
    + of_context("hour")
    + windows_of("category hour", "item_id", days=[1])
)
MINUTES = FeatureBuilder(
    parse_schema(
        named("minutes")
        + (of_user("user_id") + of_item("item_id", "category"))
        + windows_of("item_id", "category", lengths=["30min", "6h", "1d"], half_lives=["30min"])
    )
)


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
    st.sampled_from(["events", "time", "hour", "five minutes", "category", "new", "gone", "hot", "told", "store"]),
    st.integers(0, 2**31),
)


def keys_of(index: ItemIndex, items: list[Item]) -> Any:
    """Of each item those that lists and ranks read: (n, J)."""
    category = column_hash([i.attributes.get("category") for i in items])
    columns = {"user_id": column_hash(["u"]), "item_id": column_hash([i.item_id for i in items]), "category": category}
    return index.builder.keys(columns, len(items))[:, index.own_keys]


@examples(100)
@given(
    builder=st.sampled_from([BUILDER, MINUTES]),
    walk=st.lists(STEPS, max_size=40),
    rows=st.integers(1, 6),
    slots=st.integers(1, 6),
    step=st.integers(1, 9),
)
def test_an_item_table_that_follows_holds_what_the_index_holds(
    builder: FeatureBuilder, walk: Walk, rows: int, slots: int, step: int
) -> None:
    """A walk over everything that can change. One table is sent all along, in small slices and each slice twice; one
    starts late and follows; one starts at the end. The index's counts of any time are those of its tiles."""
    items = [item(i, f"c{i % 3}") for i in range(4)]
    index = index_of(items, builder)
    stores = [TileStore.of(builder.schema.windows) for _ in range(2)]
    now_ms, far_ms = NOW_MS, 2 * DAY_MS if builder is BUILDER else 3 * HOUR_MS // 2
    followers: list[ItemTable] = [ItemTable(builder)]

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
            keys = keys_of(index, [items[i]])[0]
            store = stores[draw % 2]
            store.add(keys, np.full(len(keys), now_ms - 1), np.full(len(keys), int(rng.integers(0, 2))))
            index.put_tiles(draw % 2, keys, store.export(keys))
        elif what == "time":
            now_ms += int(rng.integers(1, far_ms))
        elif what in ("hour", "five minutes"):
            unit_ms = HOUR_MS if what == "hour" else HOUR_MS // 12
            now_ms += unit_ms - now_ms % unit_ms
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
    keys = keys_of(index, items)
    for at in (now_ms, now_ms - now_ms % HOUR_MS, now_ms - DAY_MS):  # requests may name a time of their own
        expected = np.stack([index.counts.at(keys[:, j], at) for j in range(keys.shape[1])], axis=1)
        np.testing.assert_array_equal(index.counts_at(np.arange(len(items)), at), expected)


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


@pytest.mark.parametrize("whole", [False, True])
def test_counts_that_were_read_again_before_they_were_published_are_published(whole: bool) -> None:
    """An item's twice, or those of a partition as a whole."""
    index = index_of([item(1)])
    table = table_of(index)
    key = window_keys("u", [item(1)])[0, index.own_keys]
    if whole:
        index.put_store(0, tiles(key, 9, 3))
    else:
        for _ in range(2):
            index.put_tiles(0, key, tiles(key, 9, 3).export(key))
            index.refresh_hot(NOW_MS)
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
