"""Half-lives and means, live and in replay: the partition against the reference implementation, and what a scorer ranks
with, fed by two partitions, against what replay makes of the same events as a log."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.commands.replay.logfeatures import LogRows, unfit
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.events import Item, PageLog, to_msgpack
from millrace.contracts.itemtiles import pack
from millrace.contracts.online_layout import window_fields
from millrace.contracts.schema import parse_schema
from millrace.logs import read_log
from millrace.windows.affinity import preferences
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import ItemTable
from scorer.page.rank import Ranker
from scorer.recall.candidate_lists import make_lists
from scorer.users.userrecord import KnownUser
from stream.join.join import InputMessage
from stream.partition.partition import Partition
from stream.worker.shop_lists import ShopLists
from tests.scenes.arrivals import NOW, arrivals
from tests.scenes.exploring import examples
from tests.scenes.parity_shop import FIELDS, SCHEMA, SCHEMAS, Shop, rich
from tests.scenes.reference_partition import ReferencePartition
from tests.scenes.stream_world import (
    HOUR,
    MINUTE,
    POLICY,
    T0,
    Log,
    action,
    exposure,
    hashed,
    keys_of,
    resumed,
    rows,
)
from tests.scenes.tile_streams import first_exposed

GROUP = """
[[windows.keys]]
columns = ["user_id", "shelf"]
[[fields]]
name = "shelf"
of = "item"
"""
LAYOUT = SCHEMA.layout


@examples(50)
@given(arrivals(wild=True), st.integers(0, 2**32), st.sampled_from(sorted(SCHEMAS)))
def test_a_partition_counts_and_sums_as_its_reference_does(messages: list[InputMessage], seed: int, which: str) -> None:
    schema = SCHEMAS[which]
    messages = [rich(m, schema) if m.topic == "page_logs" else m for m in messages]
    reference, rng = ReferencePartition(schema, POLICY), random.Random(seed)
    reference.take(messages, NOW)
    partition, at = Partition(0, schema, POLICY), 0
    made = []
    while at < len(messages):
        n = rng.randrange(1, 8)
        made += rows(partition.take(messages[at : at + n], NOW).samples)
        at += n
        if rng.random() < 0.3:
            partition = resumed(partition.snapshot().to_bytes(), schema, POLICY)
            at = max(0, at - rng.randrange(4))
    assert sorted(made) == hashed(reference.samples)
    keys = np.concatenate([keys_of(user, range(1, 13), schema) for user in range(3)]).ravel()
    ts = partition.newest_ms + 1
    for later in (ts, ts + 11 * MINUTE, ts + 5 * HOUR + 1, ts + 100 * HOUR):
        assert partition.windows.counts(keys, later).tolist() == [reference.window(int(k), later) for k in keys]


def test_unfit_values_are_counted_once_for_each_event_that_would_have_added_them() -> None:
    log = Log()
    num = np.zeros((3, LAYOUT.N), "<f4")
    num[:, 0], num[:, 1] = [-1.0, np.nan, 5.0], [3.0, -1.0, 4.0]  # prices, bids
    served = PageLog(
        request_id="r",
        ts_ms=T0,
        user_id=7,
        arm="model",
        model_version=1,
        schema_id=SCHEMA.id,
        items=[1, 2, 3],
        scores=bytes(12),
        keys=keys_of(7, [1, 2, 3], SCHEMA).astype("<u8").tobytes(),
        cat=bytes(24 * LAYOUT.F),
        num=num.tobytes(),
    )
    partition = Partition(0, SCHEMA, POLICY)
    shown = [*log.page_logs(to_msgpack(served)), *log.events(exposure("r", T0, [1, 2, 3]))]
    assert partition.take(shown, NOW).counts["unfit"] == 1  # a bid
    clicks = log.events(*(action("click", "r", T0 + MINUTE, p, p + 1) for p in range(3)))
    assert partition.take(clicks, NOW).counts["unfit"] == 2  # prices
    at_once = Partition(0, SCHEMA, POLICY).take([*shown, *clicks], NOW)
    assert at_once.counts["unfit"] == 3
    assert "unfit" not in partition.take(log.events(action("purchase", "r", T0 + MINUTE, 0, 1)), NOW).counts
    spans = partition.windows.counts(keys_of(7, [3], SCHEMA)[:, 0], T0 + HOUR)[0, 0].tolist()
    assert spans == [1, 1, 0, 500, 4]


def log_rows(seed: int, n: int = 150) -> list[dict[str, Any]]:
    """Exposures with ties, hours' edges and gaps of days; items whose price is missing, negative, broken."""
    rng = np.random.default_rng(seed)
    gaps = rng.choice(
        [0, MINUTE, 20 * MINUTE, HOUR, 7 * HOUR, 30 * HOUR, 9 * 24 * HOUR], n, p=[0.2, 0.3, 0.2, 0.1, 0.1, 0.08, 0.02]
    )
    at = T0 + np.cumsum(gaps + rng.choice([0, 0, 1, 777], n) * (gaps > 0))
    prices = [4.99, None, -3.0, 120.5, 0.004]
    made = []
    for i in range(n):
        item = int(rng.integers(5))
        click = int(at[i]) + int(rng.choice([0, MINUTE, 25 * MINUTE])) if rng.random() < 0.5 else None
        made.append(
            {
                "at": int(at[i]),
                "user_id": int(rng.integers(3)),
                "item_id": f"i{item}",
                "price": prices[item],
                "bid": float(rng.integers(-1, 9)),
                "label": int(click is not None),
                "click_at": click,
                "purchase_at": click + 2 * MINUTE if click is not None and rng.random() < 0.4 else None,
            }
        )
    seen = {(r["at"], r["user_id"], r["item_id"]): r for r in made}  # copies of an exposure are one
    return list(seen.values())


@pytest.mark.parametrize("which", sorted(SCHEMAS))
@examples(4)
@given(seed=st.integers(0, 2**32))
def test_ranking_and_replay_see_the_same_to_the_bit(tmp_path_factory: Any, which: str, seed: int) -> None:
    schema, layout = SCHEMAS[which], SCHEMAS[which].layout
    made = log_rows(seed)
    path: Path = tmp_path_factory.mktemp("parity") / "log.parquet"
    pq.write_table(pa.Table.from_pylist(made), path)
    log = read_log(path, schema)
    replayed = LogRows(log, schema)
    cat, expected = Stretches(log, schema, rows_at_once=40).of(np.arange(log.table.num_rows))
    who = (replayed.ts_ms.tolist(), log.table["user_id"].to_pylist(), log.table["item_id"].to_pylist())
    order = list(zip(*who, strict=True))
    prices = {r["item_id"]: r["price"] for r in made}
    shop = Shop([Item(i, {"price": p}, T0) for i, p in prices.items()], schema)

    events = [(r["at"], 0, r, "exposure") for r in made]
    events += [(r["click_at"], 1, r, "click") for r in made if r["click_at"] is not None]
    events += [(r["purchase_at"], 2, r, "purchase") for r in made if r["purchase_at"] is not None]
    events.sort(key=lambda e: e[:2])
    given_rows = {(r["at"], r["user_id"], r["item_id"]): r for r in made}
    compared, at = 0, 0
    for i, identity in enumerate(order):
        r = given_rows[identity]
        while at < len(events) and events[at][0] < r["at"]:  # what happened strictly before
            send(shop, *events[at])
            at += 1
        shop.publish()
        got = shop.rank(r["user_id"], r["item_id"], r["at"], r["bid"])
        named = dict(zip(layout.num_names, got.num[0].tolist(), strict=True))
        assert named == dict(zip(layout.num_names, expected[i].tolist(), strict=True)), i
        assert got.cat[0].tolist() == cat[i].tolist(), i
        if "exposure_age_days" in named:
            shown = [(1, e["at"], 0) for e in made if e["item_id"] == r["item_id"]]
            first_ms = first_exposed(shown, 1, r["at"], schema.windows.minutes) * schema.windows.unit_ms
            assert named["exposure_age_days"] == shop.builder.age_days(np.array(r["at"]), np.array(first_ms))
        served = PageLog(
            request_id=name_of(r),
            ts_ms=r["at"],
            user_id=r["user_id"],
            arm="model",
            model_version=1,
            schema_id=schema.id,
            items=[r["item_id"]],
            scores=bytes(4),
            keys=got.keys.astype("<u8").tobytes(),
            cat=got.cat.tobytes(),
            num=got.num.tobytes(),
        )
        shop.take(r["user_id"], shop.log("page_logs", to_msgpack(served)))
        compared += int(np.count_nonzero(got.num[0, layout.window_start :]))
    assert compared > 10 * len(made)
    why = "values are missing, negative or too great for the mean"
    bad = sum(r["price"] in (None, -3.0) for r in made), sum(r["bid"] < 0 for r in made)
    assert unfit(log, schema) == [f"'price': {bad[0]} {why}", f"'bid': {bad[1]} {why}"]


def name_of(r: dict[str, Any]) -> str:
    return f"{r['at']}-{r['user_id']}-{r['item_id']}"


def send(shop: Shop, ts_ms: int, _: int, r: dict[str, Any], kind: str) -> None:
    if kind == "exposure":
        raw = exposure(name_of(r), ts_ms, [r["item_id"]], user_id=r["user_id"])
    else:
        raw = action(kind, name_of(r), ts_ms, 0, r["item_id"], user_id=r["user_id"])
    shop.take(r["user_id"], shop.log("events", raw))


def test_hot_items_and_affinities_go_by_the_windows_alone() -> None:
    """Half-lives and sums stand beside the windows' clicks, they do not mix with them."""
    head, _, keys = FIELDS.partition("half_lives = [0.5, 7]\n")
    bare = parse_schema(
        head + keys.replace(keys[keys.index("[[windows.means]]") : keys.index("[[windows.keys]]")], "") + GROUP
    )
    both = parse_schema(FIELDS + GROUP)
    assert (bare.windows.columns, both.windows.columns) == (3, 5)
    items = [Item(i, {"price": 5.0 * i, "shelf": i % 3}, T0) for i in range(1, 9)]
    rng = np.random.default_rng(4)
    clicks = [(int(rng.integers(1, 9)), T0 + int(h) * HOUR) for h in np.sort(rng.integers(0, 25 * 24, 90))]
    now = T0 + 26 * 24 * HOUR
    found = []
    for schema in (bare, both):
        builder = FeatureBuilder(schema)
        index = ItemIndex(builder)
        index.put([index.prepare(i) for i in items])
        store = TileStore.of(schema.windows)
        for i, ts in clicks:
            columns, plain = builder.attributes("item", {"item_id": i, **items[i - 1].attributes})
            own = builder.keys({**columns, **builder.attributes("user", {"user_id": 7})[0]}, 1)
            for m, column in enumerate([1, 3][: 1 + len(schema.windows.means[:1])]):
                store.add(own, np.array([ts]), np.array([column]), 1 if m == 0 else int(plain["price"] * 100))
        packed = store.export(store.keys())
        record = dict(zip(window_fields(store.keys()), packed, strict=True))
        index.put_tiles(0, store.keys(), packed)
        index.refresh_hot(now)
        user = KnownUser.of(builder, 7, record)
        lists = make_lists(builder, index.columns(np.arange(8)), index.alive, index.born_ms, index.heat)
        ((_, affinity),) = Ranker(builder, ItemTable(builder)).affinities(lists.groups, user, now)
        shop = ShopLists(schema)
        for item in items:
            shop.put(item)
        for message in pack(0, 1, now, store.keys(), packed):
            shop.count(message)
        tastes = preferences(builder, "shelf", [0, 1, 2], user.columns, record, now)
        found.append((index.heat.clicks.tolist(), affinity.tolist(), shop.make(now), tastes))
    assert found[0] == found[1]
    assert all(found[0][0])
