"""Closed loops: all of a world have the same luck, and differ by the pages alone, which the scorer's service makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec import structs

from experiments import judgeloops
from experiments.judgeloops import EQUAL, RIVAL, SHARES, STOPPED, Stopped, begun, loop_report
from experiments.recall.recallloop import FIRST_DAY, ClosedLoop, Pupil, learn_days, start_shop
from experiments.recall.recallshop import RecallShop, Rows, params_of
from learner.ranker.model import OnlineModel
from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import column_hash
from millrace.contracts.events import CLICK, EXPOSURE, MODEL, PageLog
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
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


def test_the_same_items_get_the_same_clicks_in_any_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Luck depends on shopper, page and position: a loop that shows the previous recommender's pages has its clicks."""
    table = day_table(world, NUMBER)
    ids, views = table["item_id"].to_numpy(), table["request_id"].to_pylist()
    pages: dict[str, list[int]] = {}
    for request, item in zip(views, ids.tolist(), strict=True):
        pages.setdefault(request, []).append(item)
    numbers = iter(range(world.visits(NUMBER).n))

    async def shown(shop: RecallShop, body: bytes) -> None:
        items, layout = pages[f"{NUMBER}-{next(numbers)}"], shop.schema.layout
        scores, keys, cat, num = (bytes(len(items) * k) for k in (4, 8 * layout.K, 8 * layout.F, 4 * layout.N))
        shop.logged = PageLog("r", 1, 1, MODEL, 0, "", list(items), scores, keys, cat, num)

    monkeypatch.setattr(RecallShop, "recommend", shown)
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
    monkeypatch.setattr("millrace.evidence.sequences.LEAST_OUTCOMES", 1)
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
