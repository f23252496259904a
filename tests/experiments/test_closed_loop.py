"""Closed loops: all of a world have the same luck, and differ by the pages alone, which the scorer's service makes."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from msgspec import structs

from experiments import judgeloops
from experiments.judgeloops import (
    BOTH,
    CLICKS,
    EQUAL,
    MARGINS,
    ORDERS,
    RIVAL,
    SHARES,
    STOPPED,
    Stopped,
    begun,
    loop_report,
    value_report,
)
from experiments.recall.recallloop import FIRST_DAY, ClosedLoop, Pupil, learn_days, start_shop
from experiments.recall.recallshop import RecallShop, Rows, params_of
from learner.ranker.model import OnlineModel
from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.hashing import column_hash
from millrace.contracts.events import CLICK, EXPOSURE, MODEL, PURCHASE, PageLog
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.evidence.rerank import Rerank
from millrace.evidence.user_arms import Arm
from scorer.page import candidates
from simulator.daylog import day_table
from simulator.world import World, start_of

SEED, USERS, ITEMS, DAYS = 101, 12, 400, 1
STEP_MS = 600_000
SPEC: dict[str, Any] = {"width": 4, "hidden": [8], "blocks": 1}
SETTINGS = Settings(candidates=60, control_share=0)
NUMBER = FIRST_DAY + DAYS


@pytest.fixture(autouse=True)
def retrieval_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is used from its first click on."""
    monkeypatch.setattr(candidates, "LEAST_CLICKS", 0)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SEED, USERS, params_of(ITEMS))


class Diary(Pupil):
    """A learner that writes down what it learns."""

    def __init__(self, model: OnlineModel) -> None:
        super().__init__(model, 64)
        self.learnt: list[SampleBatch] = []

    def learn(self, batch: SampleBatch) -> None:
        self.learnt.append(batch)
        super().learn(batch)


def played(
    world: World, settings: Settings = SETTINGS, head: bool = False, arms: tuple[str, ...] = (MODEL,)
) -> tuple[Rows, ClosedLoop, dict[str, Diary]]:
    shop = start_shop(world, settings, NUMBER, [day_table(world, FIRST_DAY)])
    pupils = {arm: Diary(OnlineModel(shop_schema(), {**SPEC, "retrieval_width": 8 * head}, 0)) for arm in arms}
    loop = ClosedLoop(shop, pupils, STEP_MS)
    return loop.play(NUMBER), loop, pupils


Once = tuple[Rows, ClosedLoop, dict[str, Diary]]


@pytest.fixture(scope="module")
def once(world: World) -> Once:
    return played(world)


# -- the loop ------------------------------------------------------------------------------------------------


def test_equal_loops_have_equal_days(world: World, once: Once) -> None:
    found, again = once[0], played(world)[0]
    assert np.count_nonzero(found["click_ms"]) > 0
    assert all(np.array_equal(found[name], again[name]) for name in found)
    visits = world.visits(NUMBER)
    assert np.array_equal(np.bincount(found["page"]), visits.size)
    assert np.array_equal(found["ts_ms"], np.repeat(visits.start_ms, visits.size))


def test_pages_are_drawn_by_the_same_chance_whatever_their_share(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is counted or learnt, a large share draws what a small one draws, and the same for it."""
    pages: dict[str, dict[str, list[Any]]] = {}
    monkeypatch.setattr(RecallShop, "put", lambda *_: None)
    monkeypatch.setattr(ClosedLoop, "_promise", lambda *_: None)
    for share in ("0", "0.1", "0.4"):
        shop = start_shop(world, structs.replace(SETTINGS, explore=f"{share},uniform"), NUMBER, [])
        loop = ClosedLoop(shop, {MODEL: Diary(OnlineModel(shop_schema(), SPEC, 0))}, STEP_MS)
        pages[share] = own = dict[str, list[Any]]()

        def send(log: PageLog, shop: RecallShop = shop, own: dict[str, list[Any]] = own) -> None:
            own.setdefault(log.request_id, log.items)  # then it may be asked for as ranked
            shop._log(log)

        shop.maker.send = send
        loop.play(NUMBER)
    few, many = (
        {name for name, items in pages[share].items() if items != pages["0"][name]} for share in ("0.1", "0.4")
    )
    assert set() < few < many
    assert len(few) < 0.25 * len(pages["0"]) < len(many) < 0.6 * len(pages["0"])
    assert all(pages["0.1"][n] == pages["0.4"][n] for n in few)


def show_logged_pages(table: pa.Table, views_of_day: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of a loop are those of the previous recommender."""
    ids, views = table["item_id"].to_numpy(), table["request_id"].to_pylist()
    pages: dict[str, list[int]] = {}
    for request, item in zip(views, ids.tolist(), strict=True):
        pages.setdefault(request, []).append(item)
    numbers = iter(range(views_of_day))

    async def shown(shop: RecallShop, body: bytes) -> None:
        items, layout = pages[f"{NUMBER}-{next(numbers)}"], shop.schema.layout
        scores, keys, cat, num = (bytes(len(items) * k) for k in (4, 8 * layout.K, 8 * layout.F, 4 * layout.N))
        shop.logged = PageLog("r", 1, 1, MODEL, 0, "", list(items), scores, keys, cat, num)

    monkeypatch.setattr(RecallShop, "recommend", shown)


def test_the_same_items_get_the_same_clicks_in_any_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Luck depends on shopper, page and position: a loop that shows the previous recommender's pages has its clicks."""
    table = day_table(world, NUMBER)
    show_logged_pages(table, world.visits(NUMBER).n, monkeypatch)
    found = played(world)[0]
    clicked = table["click"].to_numpy() == 1
    assert np.array_equal(found["click_ms"] > 0, clicked)
    assert clicked.any()


def test_each_exposure_is_learnt_once_and_each_click_when_it_happened(once: Once) -> None:
    found, loop, pupils = once
    kinds: dict[tuple[str, int], list[int]] = {}
    for batch in pupils[MODEL].learnt:
        for of, kind in zip(batch.ids(), batch.kind.tolist(), strict=True):
            kinds.setdefault(of, []).append(kind)
    left = loop._samples[MODEL].due(1 << 62) or dict.fromkeys(("request", "slot", "kind"), np.empty(0))
    waiting = set(zip(left["request"].tolist(), left["slot"].tolist(), strict=True))
    assert len(kinds.keys() | waiting) == len(found["page"])
    assert all(own in ([NEGATIVE], [POSITIVE], [NEGATIVE, CORRECTION]) for own in kinds.values())
    clicks = sum(own[-1] != NEGATIVE for own in kinds.values())
    assert clicks + int((left["kind"] != NEGATIVE).sum()) == np.count_nonzero(found["click_ms"])
    assert any(CORRECTION in own for own in kinds.values()), "no click was late: the test sees less than it should"


def test_all_that_happened_is_counted(world: World) -> None:
    found, loop, _ = played(world)
    shop, end_ms = loop.shop, start_of(NUMBER) + DAY_MS
    shop.live(end_ms)
    users = np.unique(found["user"])
    keys = np.array([shop.builder.keys(shop.user(u).columns, 1)[0] for u in users.tolist()])
    name = shop.schema.layout.key_names.index("user_id")
    counts = shop.windows.counts(np.ascontiguousarray(keys[:, name]), end_ms)
    log = day_table(world, FIRST_DAY)
    both = np.isin(log["user_id"].to_numpy() - 1, users).sum()
    week = shop.schema.windows.days.index(7)
    assert counts[:, week, EXPOSURE].sum() == len(found["page"]) + both
    before = np.isin(log["user_id"].to_numpy()[log["click"].to_numpy() == 1] - 1, users).sum()
    waiting = int(np.sum(shop._events.due(1 << 62).get("action", np.empty(0)) == CLICK))
    assert counts[:, week, 1].sum() == np.count_nonzero(found["click_ms"]) + before - waiting


def test_a_retrieval_version_follows_what_was_learnt(world: World) -> None:
    _, loop, pupils = played(world, head=True)
    assert loop.shop.retrieval is not None
    head = pupils[MODEL].model.head
    assert head is not None
    assert loop.shop.retrieval.clicks == head.clicks > 0


def test_each_learner_serves_its_own_users_and_learns_from_them_alone(world: World) -> None:
    settings = structs.replace(SETTINGS, arms={RIVAL: Arm("model", 0.5)})
    found, _, pupils = played(world, settings, arms=(MODEL, RIVAL))
    for arm, pupil in pupils.items():
        users = np.unique(found["user"][found["arm"] == arm])
        learnt = np.unique(np.concatenate([batch.user for batch in pupil.learnt]))
        assert len(learnt) > 1
        assert set(learnt.tolist()) <= set(column_hash((users + 1).tolist()).tolist())


# -- the history ----------------------------------------------------------------------------------------------


def test_history_is_learnt_in_order_with_the_labels_of_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, batches = [day_table(world, FIRST_DAY + k) for k in range(2)], list[SampleBatch]()
    learn = OnlineModel.learn

    def spy(model: OnlineModel, batch: SampleBatch) -> Any:
        batches.append(batch)
        return learn(model, batch)

    monkeypatch.setattr(OnlineModel, "learn", spy)
    model = learn_days(OnlineModel(shop_schema(), SPEC, 0), tables)
    whole = SampleBatch.concat(batches)
    assert np.array_equal(whole.ts_ms, np.concatenate([t["ts_ms"].to_numpy() for t in tables]))
    assert np.array_equal(whole.label, np.concatenate([t["click"].to_numpy() for t in tables]).astype(np.float32))
    assert len(set(map(len, batches[:-1]))) == 1
    assert model.newest_ms == whole.ts_ms.max()


# -- orders ----------------------------------------------------------------------------------------------------

_OUTCOME = '[[outcome]]\nname = "order"\non = "click"\nevent = "purchase"\nwithin = "1h"\nvalue = "price"\n'
_SHOP = files("millrace.contracts").joinpath("shop.toml").read_text(encoding="utf-8")
ORDERING = parse_schema(f"{_SHOP}\n{_OUTCOME}")


@pytest.fixture(scope="module")
def ordering() -> World:
    """Every second click is an order, most of them within hours."""
    usual = params_of(ITEMS)
    return World(SEED, 40, replace(usual, order_rate=0.5, order_median_ms=1.0 * HOUR_MS, purchase_rate=(0.0, 0.0)))


def sold(world: World, weights: dict[str, float] | None) -> tuple[Rows, Diary]:
    settings = structs.replace(SETTINGS, rerank=Rerank(weights=weights))
    shop, pupil = start_shop(world, settings, NUMBER, [], ORDERING), Diary(OnlineModel(ORDERING, SPEC, 0))
    return ClosedLoop(shop, {MODEL: pupil}, STEP_MS).play(NUMBER), pupil


def test_orders_are_those_of_the_log_and_are_learnt_when_they_are_known(
    ordering: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = day_table(ordering, NUMBER)
    show_logged_pages(table, ordering.visits(NUMBER).n, monkeypatch)
    put, counted_ms = RecallShop.put, list[int]()

    def spy(shop: RecallShop, ms: Any, action: Any, *others: Any) -> None:
        counted_ms.extend(ms.tolist() if action == PURCHASE else [])
        put(shop, ms, action, *others)

    monkeypatch.setattr(RecallShop, "put", spy)
    found, pupil = sold(ordering, None)
    assert np.allclose(found["order"], table["p_purchase"].to_numpy(), rtol=1e-5)
    assert np.array_equal(found["price"], table["price"].to_numpy())
    click_ms, bought_ms = (table[name].fill_null(0).to_numpy() for name in ("click_ms", "purchase_ms"))
    came = (bought_ms > 0) & (bought_ms < click_ms + HOUR_MS)
    rows = zip(table["request_id"].to_pylist(), table["position"].to_pylist(), click_ms.tolist(), came, strict=True)
    ends_ms = start_of(NUMBER) + DAY_MS - STEP_MS  # what is known by then has been learnt
    due = {(request, k): float(yes) for request, k, ms, yes in rows if ms and ms + HOUR_MS < ends_ms}
    told = {
        of: value
        for batch in pupil.learnt
        for of, value in zip(batch.ids(), batch.outcomes[:, 0].tolist(), strict=True)
        if np.isfinite(value)
    }
    assert told == due
    assert {0.0, 1.0} == set(told.values())
    assert sorted(counted_ms) == sorted(bought_ms[bought_ms > 0].tolist())


def test_a_weight_of_clicks_alone_is_ranking_by_clicks_and_one_of_orders_is_not(ordering: World) -> None:
    """So with equal margins nothing comes of margins: what ranking by orders brings then is what it knows of orders."""
    by_clicks, by_weight, by_value = (sold(ordering, w)[0] for w in (None, {"click": 3.0}, {"order": 1.0}))
    assert all(np.array_equal(by_clicks[name], by_weight[name]) for name in by_clicks)
    assert not np.array_equal(by_clicks["price"], by_value["price"])
    assert by_value["price"].mean() > by_clicks["price"].mean()


def test_twins_by_value_go_on_from_one_history() -> None:
    rows = judgeloops.values(0, 8, 30, history=1, days=1)
    ways = [(CLICKS, 0.0), *((by, power) for power in MARGINS for by in (ORDERS, BOTH) if power or by == ORDERS)]
    assert [(row["by"], row["power"]) for row in rows] == ways
    pages = World(0, 8).visits(FIRST_DAY + 1).n
    assert all(row["pages"] == pages and row["clicks"] > 0 for row in rows)
    assert all(0 < row["revenue 0"] < row["clicks"] for row in rows), "not every click is an order"
    assert len({row["revenue 1"] for row in rows}) > 1
    table, said = value_report(rows + [row | {"seed": 1} for row in rows])
    assert len(table) == len(said) == 5
    assert table[0]["margin"] == "price^0"
    assert table[0]["over_equal"] == table[0]["over_equal_ci"] == 0, "it is the same twin"


def test_the_report_has_gains_and_their_price() -> None:
    def row(seed: int, by: str, power: float, clicks: float, *revenues: float) -> dict[str, Any]:
        told = {f"revenue {p:g}": value * (1 + seed) for p, value in zip(MARGINS, revenues, strict=True)}
        return {"of": "values", "seed": seed, "by": by, "power": power, "clicks": clicks} | told

    rows = [
        row(seed, *of)
        for seed in (0, 1)
        for of in (
            (CLICKS, 0.0, 3.0, 1.0, 2.0, 4.0),
            (ORDERS, 0.0, 2.9, 1.1, 2.2, 4.4),
            *((by, power, 2.5, 0.9, 2.5, 6.0) for power in (0.5, 1.0) for by in (ORDERS, BOTH)),
        )
    ]
    table, said = value_report(rows)
    assert (table[0]["gain"], table[0]["over_equal"], table[0]["price"]) == (0.1, 0.0, 0.1)
    assert (table[-1]["margin"], table[-1]["gain"], table[-1]["price"], table[-1]["price_ci"]) == (
        "price^1",
        0.5,
        0.5,
        0,
    )
    assert table[-1]["over_equal"] == round(6 / 4.4 - 1, 5)
    assert "margins of price^1, ranked by orders: +50.0% ± 0.0% revenue a page over ranking by clicks" in said[3]
    assert value_report([]) == ([], [])


# -- twins and learners ----------------------------------------------------------------------------------------


def test_twins_explore_until_the_last_days(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, play = list[float](), ClosedLoop.play

    def spy(loop: ClosedLoop, number: int) -> Rows:
        found = loop.shop.arms.named(MODEL).exploration
        shares.append(found.share if found else 0.0)
        return play(loop, number)

    monkeypatch.setattr(ClosedLoop, "play", spy)
    monkeypatch.setattr(judgeloops, "EXPLORING", 1)
    rows = judgeloops.twins(0, 6, 20, "0.1", days=2)
    assert shares == [0.1, 0.0]
    visits = [World(0, 6).visits(FIRST_DAY + day).n for day in (1, 2)]
    assert [(row["day"], row["pages"]) for row in rows] == [(1, visits[0]), (2, visits[1])]
    assert all(row["clicks"] > 0 for row in rows)
    assert [row["price"] != 0 for row in rows] == [True, False], "what is not drawn costs nothing"


def test_two_learners_begin_from_the_same_history() -> None:
    loop = begun(0, 6, SETTINGS, {MODEL: (False, 0), RIVAL: (True, 1)})
    own, rival = loop._pupils.values()
    assert isinstance(rival, Stopped)
    began = rival.model.newest_ms
    assert own.model.newest_ms == began > 0
    loop.play(FIRST_DAY + 1)
    assert own.model.newest_ms > rival.model.newest_ms == began


@pytest.mark.slow
def test_two_learners_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace.evidence.sequences.LEAST", 3)
    (row,) = judgeloops.learners(0, 15, 20, EQUAL, days=2)
    assert row["rival"] == EQUAL
    assert row["low"] < row["difference"] < row["high"]
    assert row["users"] > 10
    assert (row["named"] == "") == (row["pages"] is None)


def test_the_report_has_prices_gains_and_who_was_named() -> None:
    rows: list[dict[str, Any]] = [
        {"of": "twins", "seed": seed, "twin": twin, "day": day, "pages": 100}
        | {"clicks": 3 + seed + (0.1 if day > 5 else -0.2) * drawn, "price": 0.25 * drawn}
        for seed in (0, 1)
        for twin, drawn in {SHARES[0]: 0, "0.1": 1}.items()
        for day in range(1, 8)
    ]
    tests = {STOPPED: [(MODEL, 500), (MODEL, 900), ("", None)], EQUAL: [("", None), (RIVAL, 700)]}
    rows += [
        {"of": "learners", "rival": rival, "named": named, "pages": pages}
        for rival, found in tests.items()
        for named, pages in found
    ]
    report, said = loop_report(rows)
    never, twin = report["twins"]
    assert (never["price"], never["gain"]) == (0, 0)
    assert (twin["price"], twin["price_ci"], twin["gain"], twin["worlds"]) == (0.25, 0, 0.1, 2)
    assert [twin[f"day_{day}"] for day in (1, 5, 6)] == [-0.2, -0.2, 0.1]
    assert [(r["tests"], r["shop_named"], r["rival_named"]) for r in report["learners"]] == [(3, 2, 0), (2, 0, 1)]
    assert report["learners"][0]["median_pages"] == 700
    assert "0.1: a price of 0.250 ± 0.000 clicks a page" in said[0]
    assert loop_report([]) == ({"twins": [], "learners": []}, [])
