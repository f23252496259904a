"""Lists of the shop against a plain recount, and in Redis by one of two workers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from millrace.basics.hashing import combine, value_hash
from millrace.contracts.events import BadEventError, Item, ItemTiles, to_json, to_msgpack
from millrace.contracts.itemtiles import pack
from millrace.contracts.online_layout import LIST_NAMES, list_key, window_fields
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.processes.services import EmbeddedRedis, stop
from millrace.windows.affinity import preferences, taste_columns
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from stream.worker.listkeeper import write
from stream.worker.shop_lists import ShopLists
from tests.scenes import worker_loop
from tests.scenes.waiting import LONG, until
from tests.scenes.worker_loop import NEWEST_MS, SCHEMA, STEADY, Loops, flush

loops = worker_loop.loops

DAY = 86_400_000
NOW = 20_000 * DAY + 1
SMALL = parse_schema(
    """
    name = "small"
    fields = [{name = "user_id", of = "user"}, {name = "item_id", of = "item"}, {name = "shelf", of = "item"},
              {name = "tags", of = "item", slots = 3, separator = "|"}]
    [windows]
    days = [1, 7]
    actions = ["exposure", "click"]
    keys = [{columns = ["item_id"]}, {columns = ["user_id", "shelf"]}, {columns = ["user_id", "tags"]}]
    """
)


def key_of(schema: Schema, item: int | str) -> int:
    return int(combine(schema.layout.key_salt("item_id"), np.array([value_hash(item)], np.uint64))[0])


def tiles_of(schema: Schema, partition: int, clicks: Sequence[tuple[int | str, int]]) -> ItemTiles:
    """The message that tells of ``clicks``: (item, time) each."""
    store = TileStore(schema.windows.days, len(schema.windows.actions))
    keys = np.array([key_of(schema, item) for item, _ in clicks], np.uint64)
    store.add(keys, np.array([ts for _, ts in clicks]), np.full(len(clicks), schema.windows.actions.index("click")))
    keys = np.unique(keys)
    (message,) = pack(partition, 1, max(ts for _, ts in clicks), keys, store.export(keys))
    return message


def lists_with(size: int = 200) -> tuple[ShopLists, dict[str, Item]]:
    """A catalogue of 60 items, some of them gone, some replaced."""
    rng, lists, items = random.Random(1), ShopLists(SMALL, size=size), dict[str, Item]()
    for number in [*range(60), 3, 4, 5]:
        item_id: int | str = number if number % 2 else f"b{number}"
        tags = "|".join(rng.sample(["new", "sale", "red"], rng.randrange(4)))
        attributes: Any = {"shelf": rng.randrange(4), "tags": tags} if number % 7 else {}
        item = Item(item_id, attributes, born_ms=NOW - rng.randrange(100) * DAY, gone=rng.random() < 0.1)
        lists.put(item)
        items[str(item_id)] = item
    lists.remove("b8")
    del items["b8"]
    return lists, {name: item for name, item in items.items() if not item.gone}


def clicks_on(items: dict[str, Item], seed: int) -> list[tuple[int | str, int]]:
    rng = random.Random(seed)
    chosen = rng.sample(list(items.values()), 25)
    return [(item.item_id, NOW - 1 - rng.randrange(12 * DAY)) for item in chosen for _ in range(rng.randrange(1, 9))]


def test_an_item_is_on_no_list_from_its_expiry_on() -> None:
    lists = ShopLists(SMALL)
    lists.put(Item(1, {"shelf": "a"}, NOW, expires_ms=NOW + DAY))
    lists.put(Item(2, {"shelf": "a"}, NOW - 1))
    lists.count(tiles_of(SMALL, 0, [(1, NOW), (2, NOW)]))
    before, after = lists.make(NOW + DAY - 1), lists.make(NOW + DAY)
    assert [*before] == [*after]
    assert [set(entries) for entries in before.values()] == [{"1", "2"}] * len(before)
    assert [set(entries) for entries in after.values()] == [{"2"}] * len(before)


def test_equals_a_recount() -> None:
    lists, items = lists_with()
    clicks = {partition: clicks_on(items, partition) for partition in (0, 1)}
    lists.count(tiles_of(SMALL, 0, clicks[1]))  # what a later message replaces
    for partition, some in clicks.items():
        extra = [(item, 0) for item in {i for i, _ in clicks[1]}] if partition == 0 else []
        lists.count(tiles_of(SMALL, partition, [*some, *extra]))
    heat: dict[str, float] = defaultdict(float)
    for clicked, ts in [*clicks[0], *clicks[1]]:
        # A window reaches back to the beginning of the tile that its tail lies in: an hour or six.
        for days, grain in ((1, 3_600_000), (7, 6 * 3_600_000)):
            heat[str(clicked)] += 1 / days / 2 if ts >= (NOW - days * DAY) // grain * grain else 0
    hot = {name: h for name, h in heat.items() if h > 0 and name in items}
    expected: dict[str, dict[str, float]] = {"hot": hot, "new": {name: float(i.born_ms) for name, i in items.items()}}
    for name, item in items.items():
        tags = str(item.attributes.get("tags", "")).split("|")
        for place in [f"hot:shelf:{item.attributes.get('shelf')}", *(f"hot:tags:{t}" for t in tags if t)]:
            if name in hot and item.attributes:
                expected.setdefault(place, {})[name] = hot[name]
    made = lists.make(NOW)
    assert len(made) > 6
    assert made == {name: pytest.approx(entries) for name, entries in expected.items()}
    for entries in made.values():
        assert list(entries.values()) == sorted(entries.values(), reverse=True)


def test_lists_are_cut_and_old_clicks_leave_them() -> None:
    short, items = lists_with(size=3)
    long, _ = lists_with()
    message = tiles_of(SMALL, 0, clicks_on(items, 5))
    short.count(message)
    long.count(message)
    made, whole = short.make(NOW), long.make(NOW)
    assert {name: list(e) for name, e in made.items()} == {name: list(e)[:3] for name, e in whole.items()}
    assert len(whole["hot"]) > 3
    assert short.make(NOW + 9 * DAY).keys() == {"new"}


def test_a_damaged_message_is_refused() -> None:
    lists, items = lists_with()
    good = tiles_of(SMALL, 0, clicks_on(items, 5))
    with pytest.raises(BadEventError, match="do not fit"):
        lists.count(ItemTiles(0, 1, NOW, good.keys, good.sizes, good.tiles[:-1]))
    assert lists.make(NOW).keys() == {"new"}


def test_what_a_user_likes_is_read_off_the_tiles_that_are_there() -> None:
    builder = FeatureBuilder(shop_schema())
    windows = builder.schema.windows
    assert taste_columns(builder) == {"category": 3}
    user = {"user_id": np.array([value_hash(7)], np.uint64)}
    store = TileStore(windows.days, len(windows.actions))
    clicks = [("shoes", NOW - 1000)] * 2 + [("hats", NOW - 2 * DAY)] * 3 + [("bags", NOW - 40 * DAY)]
    salt = builder.layout.key_salt("user_id*category")
    for value, ts in clicks:
        hashed = np.array([value_hash(value)], np.uint64)
        store.add(combine(salt, user["user_id"], hashed), np.array([ts]), np.array([1]))
    keys = store.keys()
    record = dict(zip(window_fields(keys), store.export(keys), strict=True))
    liked = preferences(builder, "category", ["bags", "hats", "shoes", "belts"], user, record, NOW)
    shoes = 2 * sum(1 / d for d in windows.days) / len(windows.days)
    hats = 3 * sum(1 / d for d in windows.days if d > 2) / len(windows.days)
    assert [value for value, _ in liked] == ["shoes", "hats"]
    assert [affinity for _, affinity in liked] == pytest.approx([shoes, hats])


# -- in Redis ----------------------------------------------------------------------------------------------------


def redis_lists(address: str) -> dict[str, dict[str, float]]:
    with redis.Redis.from_url(f"redis://{address}") as client:
        names = [n for n in client.scan_iter(list_key("*")) if n != LIST_NAMES.encode()]
        return {n.decode()[5:]: {i.decode(): s for i, s in client.zrange(n, 0, -1, withscores=True)} for n in names}


@pytest.mark.services
def test_lists_are_replaced_and_those_that_are_no_more_go(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(f"redis://{server.address}") as client:
        written: dict[str, dict[str, float]] = {}
        first = {"hot": {"a": 2.0, "b": 1.0}, **{f"hot:shelf:{n}": {"a": 1.0 + n} for n in range(120)}}
        write(client, first, written)
        assert redis_lists(server.address) == first
        second = {"hot": {"c": 3.0}, "hot:shelf:5": {"a": 6.0}}
        write(client, second, dict(first))
        assert redis_lists(server.address) == second
        write(client, second, {})  # by the next worker, which knows nothing of the one before
        assert redis_lists(server.address) == second
        client.flushall()
        write(client, second, dict(second))
        assert redis_lists(server.address) == second
        mine: dict[str, dict[str, float]] = {}
        write(client, first, mine, "b.")  # another loop's
        write(client, {"hot": {"z": 1.0}}, mine, "b.")
        assert redis_lists(server.address) == second
        assert set(client.scan_iter("b.*")) == {b"b.list:hot", b"b.list:names"}


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
def test_one_of_two_workers_keeps_the_lists(loops: Loops) -> None:
    loop = loops(**STEADY)
    workers = [loop.worker(), loop.worker()]
    until(lambda: all(loop.figure(w, "millrace_ready") == 1 for w in workers), "both work")
    oracle, clicks = ShopLists(SCHEMA), []
    for number in range(20):
        item = Item(number, {"category": number % 3}, born_ms=1 + number)
        oracle.put(item)
        loop.producer.send("items", to_json(item), key=b"%d" % number, partition=0)
        clicks += [(number, NEWEST_MS - DAY // 2)] * number
    message = tiles_of(SCHEMA, 0, clicks)
    oracle.count(message)
    for raw in (b"\xc1", to_msgpack(message)):
        loop.producer.send("features.items", raw, partition=0)
    loop.producer.flush()
    expected = oracle.make(NEWEST_MS)
    assert expected.keys() == {"hot", "new", *(f"hot:category:{n}" for n in range(3))}
    until(lambda: redis_lists(loop.settings.redis) == expected, "the lists are in Redis")
    flush(loop)
    until(lambda: redis_lists(loop.settings.redis) == expected, "the lists are back")
    assert sorted(loop.figure(w, "millrace_lists_written_total") > 0 for w in workers) == [False, True]
    assert sum(loop.figure(w, "millrace_lists_errors_total") for w in workers) == 1
    assert [*loop.dead_letters().values()] == ["bad-item-tiles"]
    assert [stop(w, 120) for w in workers] == [0, 0]
