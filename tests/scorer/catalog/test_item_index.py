"""The item index: rows, columns, counts over partitions, hotness."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.basics.errors import StoreError
from millrace.basics.hashing import column_hash, value_hash
from millrace.contracts.events import Item
from millrace.contracts.schema import parse_schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import ItemTable
from scorer.recall.candidate_lists import Shares, make_lists, recall
from tests.scenes.scorer_shop import BUILDER, CATEGORY, DAY_MS, ITEM, NOW_MS, item, tiles, window_keys
from tests.scorer.page.plain_page import plain_of


def index_of(*items: object) -> ItemIndex:
    index = ItemIndex(BUILDER)
    index.put([index.prepare(i) for i in items])  # type: ignore[arg-type]
    return index


def test_a_row_holds_what_the_item_says_and_a_newer_message_replaces_it() -> None:
    index = index_of(item(7, "shoes"), item("b", "hats", attributes={"price": 9.5, "tags": "x"}))
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
    index = index_of(*(item(i, f"c{i % 7}", attributes={"price": float(i)}) for i in range(3000)))
    rows = index.rows_of(list(range(3000)))
    assert rows.tolist() == list(range(3000))
    assert plain_of(index, rows, NOW_MS)["price"].tolist() == [float(i) for i in range(3000)]
    assert index.columns(rows)["category"].tolist() == [value_hash(f"c{i % 7}") for i in range(3000)]


def test_counts_are_the_sum_over_partitions_and_a_newer_list_replaces_the_older() -> None:
    shoe = item(1)
    index = index_of(shoe)
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
    index = index_of(item(1))
    key = window_keys("u", [item(1)])[:, CATEGORY]
    index.put_tiles(0, key, tiles(key, 1, 0).export(key))
    held = index.counts.held, index.counts.tiles[0].nbytes, len(index)
    index.rows_of([f"unseen {i}" for i in range(5000)])
    index.counts.at(np.arange(1, 5001, dtype=np.uint64), NOW_MS)
    assert (index.counts.held, index.counts.tiles[0].nbytes, len(index)) == held


def test_hotness_follows_new_counts_and_runs_out_with_the_windows() -> None:
    items = [item(i) for i in range(4)]
    index = index_of(*items)
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
    index = index_of(*items)
    keys = window_keys("u", items)[:, ITEM]
    index.put_tiles(0, keys, tiles(keys, 3, 1).export(keys))
    left = [index.refresh_hot(NOW_MS, limit=30) for _ in range(4)]
    assert left == [70, 40, 10, 0]
    assert (index.heat.clicks > 0).all()


def test_tiles_may_come_before_their_item() -> None:
    index = index_of(item(1))
    late = item(2)
    key = window_keys("u", [late])[:, ITEM]
    index.put_tiles(0, key, tiles(key, 9, 3).export(key))
    index.refresh_hot(NOW_MS)
    index.put([index.prepare(late)])
    index.refresh_hot(NOW_MS)
    assert index.heat.clicks.tolist() == [0, 2]


def test_a_removed_item_is_dead_and_an_unknown_one_no_concern() -> None:
    index = index_of(item(1), item(2))
    index.remove("1")
    index.remove("never seen")
    assert index.alive.tolist() == [False, True]
    again = ItemIndex(BUILDER)
    again.put([index.image(0, 2)])  # as a checkpoint does
    table = ItemTable(BUILDER)
    table.follow(lambda: again.changes(NOW_MS))
    assert table.rows_of([1, 2]).tolist() == [-1, 1]


def test_a_damaged_tile_list_is_refused() -> None:
    index = index_of(item(1))
    key = window_keys("u", [item(1)])[:, ITEM]
    with pytest.raises(StoreError):
        index.put_tiles(0, key, [b"\x01\x63rubbish"])


def test_counts_of_any_time_are_those_of_the_tiles() -> None:
    """A random walk over everything that can change a count; the oracle reads key by key."""
    rng = np.random.default_rng(3)
    items = [item(i, f"c{i % 3}") for i in range(12)]
    index = index_of(*items)
    stores = [TileStore.of(index.builder.schema.windows) for _ in range(2)]
    rows = np.arange(12)
    now = NOW_MS
    for step in range(150):
        what = rng.integers(0, 4)
        if what == 0:  # events, published
            p = int(rng.integers(0, 2))
            i = int(rng.integers(0, 12))
            keys = window_keys("u", [items[i]])[0, index.own_keys]
            stores[p].add(keys, np.full(len(keys), now - 1), np.full(len(keys), int(rng.integers(0, 3))))
            index.put_tiles(p, keys, stores[p].export(keys))
        elif what == 1:  # time passes; now and then to the full hour
            now += int(rng.integers(1, 5 * 3_600_000))
            if rng.random() < 0.3:
                now -= now % 3_600_000
        elif what == 2:  # an item changes its category
            i = int(rng.integers(0, 12))
            items[i] = item(i, f"c{rng.integers(0, 4)}")
            index.put([index.prepare(items[i])])
        else:
            index.refresh_hot(now, limit=5)
            index.counts.expire(now)
        # requests may name a time of their own, the full hour among them
        at = (now, now, now - now % 3_600_000, now - DAY_MS)[step % 4]
        keys = window_keys("u", items)[:, index.own_keys]
        expected = np.stack([index.counts.at(keys[:, j], at) for j in range(keys.shape[1])], axis=1)
        np.testing.assert_array_equal(index.counts_at(rows, at), expected)
    assert sum(len(s) for s in stores) > 10


def test_slots_grow_with_the_distinct_keys() -> None:
    items = [item(i, f"c{i}") for i in range(1500)]  # 3,000 keys
    index = index_of(*items)
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
    text = '[[fields]]\nname = "user_id"\nof = "user"\n[[fields]]\nname = "item_id"\nof = "item"\n'
    builder = FeatureBuilder(parse_schema(f'name = "bare"\n{text}[windows]\n{windows}'))
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
