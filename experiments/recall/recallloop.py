# shell
"""Simulated days in closed loop: pages are made, shoppers react, and what they did is counted and learnt from.

::

    visits ──► page: as the scorer makes it, by the learner of the user's arm ──► react(): clicks, carts, purchases,
                 ▲                                      │                                  each at its time
                 │        every step_ms:                ▼
                 └── counts, lists, models ◄── what has happened by then: exposures and actions are counted,
                                               labels that are known by then are learnt from, each by its page's learner

The scorer's pages and the learner's model without Kafka, Redis and HTTP, in one thread. State follows in steps of
minutes, where the live loop takes a second. A click is a sample as soon as it happens, a negative when the label policy
says so. Visits, the draws of :func:`simulator.reaction.react` and the chance of each page, in recall and in exploring,
are the same in each loop of a world (common random numbers), so loops differ by the items that they show alone. In a
world with orders a purchase is an order that is kept, and the schema's outcomes are of purchases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from experiments.recall.recallshop import NOTE, RecallShop, Rows, Waiting
from learner.network.models.spec import read_spec
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import Tower
from learner.serving.serving_model import ServingModel
from learner.training.trainer import BATCH_ROWS
from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import column_hash
from millrace.commands.replay.logsamples import KnownSamples, batch_of
from millrace.commands.replay.steps import steps
from millrace.commands.replay.stretches import AT_ONCE
from millrace.contracts.events import MODEL, PageLog
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.labels import Traffic, policy_named
from millrace.logs import LogTable
from millrace.versions.image import split
from scorer.page.page_arms import PageArms
from scorer.page.rank import RankingModel
from scorer.recall.nearest import Retrieval
from simulator.daylog import parse_day
from simulator.late_orders import draw_orders
from simulator.reaction import react
from simulator.visits import Visits
from simulator.world import Day, World, start_of

FIRST_DAY = parse_day("2026-03-02")  # of a history, a Monday
DRAWN = 0.5  # odds that only a drawn page has, if fewer than half are
WIDTH = 32  # of the retrieval head, as the role `learn` has it
Ints = NDArray[np.int64]


class Pupil:
    """A model that learns, and what serves of it: the ranker, and the retrieval head's tower where it has one."""

    def __init__(self, model: OnlineModel, batch_rows: int) -> None:
        self.model, self._batch_rows = model, batch_rows
        model.changes()
        ranker, head = split(model.snapshot()[0])
        self.serving = ServingModel.of(model.schema, model.spec, ranker)
        self.ranks: RankingModel = self.serving
        self.retrieval: Retrieval | None = None
        self.tower = None if model.head is None else Tower(model.schema, read_spec(model.spec))
        if self.tower is not None:
            self.tower.apply(head)
        self.rows = 0

    def learn(self, batch: SampleBatch) -> None:
        """Learns samples, in their order, in micro-batches."""
        for at in range(0, len(batch), self._batch_rows):
            part = batch.take(slice(at, at + self._batch_rows))
            self.rows += self.model.learn(part).rows

    def publish(self) -> None:
        """What serves becomes what was learnt by now."""
        if self.model.head is not None:
            self.model.head.flush()
        ranker, head = split(self.model.changes())
        self.serving.patch(ranker)
        if self.tower is not None:
            self.tower.apply(head)

    def renew(self, shop: RecallShop) -> None:
        """Gives a shop its next retrieval version."""
        if self.tower is not None and self.model.head is not None:
            shop.publish(self.tower, self.model.head.clicks)
            self.retrieval = shop.retrieval

    def serve(self, shop: RecallShop) -> None:
        """The next page is by this one."""
        shop.install(NOTE, self.ranks)
        shop.retrieval = self.retrieval


class ClosedLoop:
    """Days in their order. One thread.

    Args:
        shop: what a scorer holds, as of the first day's start; the loop changes it.
        pupils: the learner of each arm of the shop's settings; where an arm has none, the one of ``model``.
        step_ms: how often all state is brought up to date, in event time; a divisor of an hour.
    """

    def __init__(self, shop: RecallShop, pupils: Mapping[str, Pupil], step_ms: int) -> None:
        self.shop, self._pupils, self._step_ms = shop, pupils, step_ms
        self._world, settings = shop.world, shop.settings
        self._as_ranked = PageArms(msgspec.structs.replace(settings, explore="0"), shop.ranker)
        self._policy = policy_named(settings.label_policy)
        self._wait_ms = round(settings.attribution_minutes * 60_000)
        self._observation_ms = round(settings.observation_seconds * 1000)
        self._traffic = Traffic(newest_ms=shop.now_ms, began_ms=shop.now_ms)
        self._samples = {arm: Waiting() for arm in pupils}
        self._shown = list[Rows]()

    def play(self, number: int) -> Rows:
        """Lets a local day happen. Its exposures: ts_ms, user (index of the shopper), page (from 0 on), arm, click_ms
        (0: none came), chance, the true one of a click, as_ranked, of the item that stood there if nothing had been
        drawn, order, the true chance that a click ends in an order that is kept, and price; (n,) each."""
        visits, start_ms, view = self._world.visits(number), start_of(number), 0
        starts, self._shown = visits.start_ms.tolist(), []
        with asyncio.Runner() as runner:
            for now_ms in range(start_ms, start_ms + DAY_MS, self._step_ms):
                self._follow(now_ms)
                while view < visits.n and starts[view] < now_ms + self._step_ms:
                    self._page(runner, number, view, visits)
                    view += 1
        return {name: np.concatenate([page[name] for page in self._shown]) for name in self._shown[0]}

    # -- pages ------------------------------------------------------------------------------------------------

    def _page(self, runner: asyncio.Runner, number: int, view: int, visits: Visits) -> None:
        shop, request = self.shop, f"{number}-{view}"
        user_at, ts_ms, size = int(visits.user[view]), int(visits.start_ms[view]), int(visits.size[view])
        named = shop.arms.of(user_at + 1).name
        arm = named if named in self._pupils else MODEL
        self._pupils[arm].serve(shop)
        asked = msgspec.json.encode({"user_id": user_at + 1, "size": size, "request_id": request, "ts_ms": ts_ms})
        log = self._made(runner, asked)
        items, n = np.array(log.items, np.int64), len(log.items)
        keys = np.frombuffer(log.keys, np.uint64).reshape(n, -1)
        cat, num = np.frombuffer(log.cat, np.int64).reshape(n, -1), np.frombuffer(log.num, np.float32).reshape(n, -1)
        position, day = np.arange(n), self._world.day(number)
        about = position, ts_ms, float(visits.shift[view])
        rows = day.rows(items)
        chance = as_ranked = day.click_probability(user_at, rows, *about)
        if len(log.odds) and np.frombuffer(log.odds, np.float32).min() < DRAWN:
            exploring, shop.arms = shop.arms, self._as_ranked
            ranked, shop.arms = np.array(self._made(runner, asked).items, np.int64), exploring
            as_ranked = day.click_probability(user_at, day.rows(ranked), *about)
        at = (user_at, visits.day, int(visits.session[view]), int(visits.page[view]))
        business = bool(self._world.shoppers.business[user_at])
        done = react(self._world.seed, self._world.params, chance, business, ts_ms, position, at)
        order, bought_ms = self._ordered(day, user_at, rows, done.click_ms, at)
        times = np.full(n, ts_ms), done.click_ms, done.collect_ms, done.cart_ms, done.purchase_ms + bought_ms
        for action, at_ms in enumerate(times):
            which = np.flatnonzero(at_ms)
            shop.put(at_ms[which], action, keys[which], np.full(len(which), user_at), items[which])
        page = {
            "ts_ms": np.full(n, ts_ms),
            "cat": cat,
            "num": num,
            "request": np.full(n, request),
            "slot": position,
            "user": np.resize(column_hash([user_at + 1]), n),
            "item": column_hash(items),
            "clicked": done.click_ms > 0,
            "odds": np.frombuffer(log.odds, np.float32) if log.odds else np.zeros(n, np.float32),
        }
        self._promise(arm, done.click_ms, times[-1], page)
        told = {"ts_ms": ts_ms, "user": user_at, "page": view, "arm": named}
        came = {"click_ms": done.click_ms, "chance": chance, "as_ranked": as_ranked}
        came |= {"order": order, "price": day.inventory.price[rows]}
        self._shown.append({name: np.full(n, value) for name, value in told.items()} | came)

    def _made(self, runner: asyncio.Runner, asked: bytes) -> PageLog:
        runner.run(self.shop.recommend(asked))
        assert self.shop.logged is not None
        return self.shop.logged

    def _ordered(self, day: Day, user: int, rows: Ints, click_ms: Ints, keys: Any) -> tuple[NDArray[np.float64], Ints]:
        """The chance that a click on each item ends in an order that is kept, and when it was ordered; 0: not. (n,)"""
        p, bought_ms, at = self._world.params, np.zeros(len(rows), np.int64), np.flatnonzero(click_ms)
        if not p.order_rate:
            return np.zeros(len(rows)), bought_ms
        chance, business = day.order_chance(user, rows), self._world.shoppers.business[user]
        drawn = draw_orders(self._world.seed, p, chance[at], business, click_ms[at], (*keys, at))
        bought_ms[at] = np.where(drawn.refund_ms > 0, 0, drawn.order_ms)
        return chance * (1 - p.return_rate), bought_ms

    def _promise(self, arm: str, click_ms: Ints, bought_ms: Ints, page: Rows) -> None:
        """When each label of a page will be known."""
        labels: Any = SimpleNamespace(clicked=click_ms > 0, acted_ms=click_ms, wait_ms=self._wait_ms)
        labels.corrects = np.zeros(len(click_ms), np.bool_)  # times alone say what is late
        outcomes, bought = self.shop.schema.outcome, bought_ms[:, None]
        labels.of_events = []  # each outcome is told one time
        labels.on_click = np.array([one.on == "click" for one in outcomes], np.bool_)
        base_ms = np.where(labels.on_click, click_ms[:, None], page["ts_ms"][:, None])  # (n, K)
        labels.outcome_ms = base_ms + np.array([one.within_ms for one in outcomes], np.int64)
        defined = ~labels.on_click | (click_ms > 0)[:, None]
        came = ((bought > 0) & (bought < labels.outcome_ms)).astype(np.float32)
        labels.outcomes = np.where(defined, came, np.float32(np.nan))
        known = KnownSamples.of(page["ts_ms"], labels, self._policy, self._observation_ms, self._traffic)
        sent = {name: column[known.row] for name, column in page.items()}
        sent |= {"ms": known.known_ms, "kind": known.kind, "policy": known.policy, "outcomes": known.outcomes}
        self._samples[arm].put(sent)

    # -- what follows from them -------------------------------------------------------------------------------

    def _follow(self, now_ms: int) -> None:
        """Counts, lists and models become what they are when all that has happened before ``now_ms`` has been read."""
        for arm, pupil in self._pupils.items():
            batch = self._due(arm, now_ms)
            if batch is not None:
                pupil.learn(batch)
                pupil.publish()
        self.shop.advance(now_ms)
        for pupil in self._pupils.values():
            pupil.renew(self.shop)

    def _due(self, arm: str, now_ms: int) -> SampleBatch | None:
        """The samples that are known by now, in the order in which they became known."""
        due = self._samples[arm].due(now_ms)
        if not due:
            return None
        requests, page = np.unique(due["request"], return_inverse=True)
        known = KnownSamples.told_once(np.arange(len(page)), due["ms"], due["kind"], due["policy"], due["outcomes"])
        return replace(batch_of(known, tuple(requests.tolist()), page, due), odds=due["odds"])


def learn_days(model: OnlineModel, tables: Sequence[pa.Table]) -> OnlineModel:
    """Learns days of the previous recommender's pages in one pass: features in event time, settled labels, samples in
    the order of exposure."""
    log = model.schema.log
    assert log is not None
    table = pa.concat_tables(tables)
    whole = LogTable(table, log.user, log.item, log.label, table.num_rows, 0)
    for step in steps(whole, model.schema, BATCH_ROWS, replace(AT_ONCE, by_page=model.by_page)):
        if step.batch is not None:
            model.learn(step.batch)
    return model


def start_shop(
    world: World, settings: Settings, number: int, log: Sequence[pa.Table], schema: Schema | None = None
) -> RecallShop:
    """The shop at the beginning of a local day, after the days in ``log`` (none: nothing has been counted)."""
    start_ms = start_of(number)
    shop = RecallShop(world, schema or shop_schema(), start_ms, settings)
    for table in log:
        shop.take(table)
    shop.advance(start_ms)
    return shop
