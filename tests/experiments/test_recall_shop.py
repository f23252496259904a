"""A shop in one process: what it holds at a time is what stream, learner and scorer would hold, and nothing later."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from experiments.recall.recallloop import Pupil, learn_days
from experiments.recall.recallshop import RecallShop, Waiting, params_of
from learner.ranker.model import OnlineModel
from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.contracts.events import CLICK, PURCHASE
from millrace.contracts.online_layout import unpack_recent
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.windows.tiles import TileStore
from scorer.page import candidates
from simulator.daylog import day_table, parse_day
from simulator.world import World, start_of

DAY = parse_day("2026-03-02")
START = start_of(DAY)
NOON = START + 12 * HOUR_MS
SCHEMA = shop_schema()


@cache
def world() -> World:
    return World(101, 200, params_of(800))


@cache
def log() -> pa.Table:
    return day_table(world(), DAY)


@pytest.fixture(autouse=True)
def retrieval_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "LEAST_CLICKS", 10)


def shop() -> RecallShop:
    return RecallShop(world(), SCHEMA, START, Settings(candidates=100))


@cache
def pupil() -> Pupil:
    """What learnt the log's morning."""
    morning = log().filter(pc.less(log()["ts_ms"], NOON))
    spec = {"retrieval_width": 8, "width": 4, "hidden": [8], "blocks": 1}
    return Pupil(learn_days(OnlineModel(SCHEMA, spec, 0), [morning]), 128)


@cache
def at_noon() -> RecallShop:
    found = shop()
    found.take(log())
    found.advance(NOON)
    pupil().renew(found)
    return found


def test_rows_wait_for_their_time_and_keep_their_order() -> None:
    waiting = Waiting()
    assert waiting.due(10) == {}
    waiting.put({"ms": np.array([5, 7]), "name": np.array(["a", "b"])})
    waiting.put({"ms": np.array([5, 6]), "name": np.array(["c", "d"])})
    assert waiting.due(5) == {}, "what happens at a time is not before it"
    assert waiting.due(7)["name"].tolist() == ["a", "c", "d"]
    assert waiting.due(8)["name"].tolist() == ["b"]
    assert waiting.due(99) == {}


def test_what_is_on_sale_follows_the_world() -> None:
    found = shop()
    for ts_ms in (START + DAY_MS, START + DAY_MS + 20 * HOUR_MS):
        found.advance(ts_ms)
        day = world().day(DAY + 1)
        assert set(found.item_ids(np.flatnonzero(found.items.alive))) == set(day.inventory.item_id[day.alive(ts_ms)])
        assert set(found.lists.living.tolist()) == set(np.flatnonzero(found.items.alive).tolist())
    assert not found.index.alive.all(), "some left the shop"


def test_only_what_happened_before_is_counted() -> None:
    """The counts of every key equal those of a plain loop over the log's events of before noon."""
    found, table = at_noon(), log()
    store = TileStore.of(SCHEMA.windows)
    columns = {
        n: found.builder.column(n, table[n].to_numpy(zero_copy_only=False)) for n in ("user_id", "item_id", "category")
    }
    keys = found.builder.keys(columns, table.num_rows)
    for action, name in enumerate(("ts_ms", "click_ms", "collect_ms", "cart_ms", "purchase_ms")):
        ms = table[name].fill_null(NOON).to_numpy()
        done = np.flatnonzero(ms < NOON)
        store.add(keys[done], ms[done], np.full(len(done), action))
    every = np.unique(keys)
    np.testing.assert_array_equal(found.windows.counts(every, NOON), store.counts(every, NOON))
    clicks = table["click_ms"].fill_null(NOON).to_numpy()
    clicked = np.unique(table["item_id"].to_numpy()[clicks < NOON])
    assert len(clicked) > 20
    heat = found.clicks_a_day()
    assert set(found.item_ids(np.flatnonzero(heat))) <= set(clicked)
    assert (heat[found.rows_of(clicked)] > 0).all()


def test_a_record_has_what_a_user_did_and_nothing_later() -> None:
    found, table = at_noon(), log()
    user, item = table["user_id"].to_numpy() - 1, table["item_id"].to_numpy()
    compared = 0
    for what, name in ((CLICK, "click_ms"), (PURCHASE, "purchase_ms")):
        ms = table[name].fill_null(NOON).to_numpy()
        for who in np.unique(user[ms < NOON]).tolist():
            mine = np.flatnonzero((user == who) & (ms < NOON))
            mine = mine[np.argsort(-ms[mine], kind="stable")][:16]
            recent = found.user(who).recent
            pasts = recent.clicks if what == CLICK else recent.purchases
            assert [p.ts_ms for p in pasts] == ms[mine].tolist()
            assert {p.item_id for p in pasts} == set(item[mine].tolist())
            compared += 1
    assert compared > 20
    assert unpack_recent(found.record(0).get(b"recent")) == found.user(0).recent


def test_neighbours_are_what_one_user_clicked_within_a_day() -> None:
    """Against a plain loop: every pair of clicks of one user, of which the five before count."""
    found, table = at_noon(), log()
    assert found.neighbours is not None
    user, item = table["user_id"].to_numpy(), table["item_id"].to_numpy()
    ms = table["click_ms"].fill_null(NOON).to_numpy()
    order = [i for i in np.argsort(ms, kind="stable").tolist() if ms[i] < NOON]
    past: dict[int, list[int]] = {}
    pairs: dict[int, set[int]] = {}
    for i in order:
        mine, one = past.setdefault(int(user[i]), []), int(item[i])
        for other in [o for o in dict.fromkeys(mine[:5]) if o != one]:
            pairs.setdefault(one, set()).add(other)
            pairs.setdefault(other, set()).add(one)
        mine.insert(0, one)
    compared = 0
    for one, others in pairs.items():
        if len(others) <= 16:
            near = found.neighbours.of(found.rows_of(np.array([one])), 100)
            assert set(found.item_ids(near).tolist()) == others
            compared += 1
    assert compared > 20


def test_a_user_without_events_is_known_by_attributes_alone() -> None:
    found, seen = at_noon(), set((log()["user_id"].to_numpy() - 1).tolist())
    stranger = next(u for u in range(world().shoppers.n) if u not in seen)
    user = found.user(stranger)
    assert set(found.record(stranger)) == {b"profile"}
    assert "kind" in user.columns


def test_a_version_has_vectors_of_all_living_items() -> None:
    found, head = at_noon(), pupil().model.head
    assert head is not None
    assert found.retrieval is not None
    assert found.retrieval.clicks == head.clicks > 20
    assert len(found.retrieval) == int(found.items.alive.sum())
    nearest = found.retrieval.nearest(np.ones(8, np.float32), 10)
    assert found.items.alive[nearest].all()
    assert len(set(nearest.tolist())) == 10


@pytest.mark.parametrize("who", [0, 5, 17])
def test_recall_gives_distinct_living_items_by_the_seed_alone(who: int) -> None:
    found = at_noon()
    user = found.user(who)
    rows = found.recall(user, NOON, 100, 7)
    assert len(set(rows.tolist())) == len(rows) == 100
    assert found.items.alive[rows].all()
    np.testing.assert_array_equal(rows, found.recall(user, NOON, 100, 7))
    assert rows.tolist() != found.recall(user, NOON, 100, 8).tolist()
