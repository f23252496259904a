# core
"""One simulated day in closed loop: pages are made, shoppers react, and what they did is counted and learnt from.

::

    visits ──► page: candidates ──► ranked ──► the first `size` ──► react(): clicks, carts, purchases, each at its time
                 ▲                                   │
                 │        every step_ms:             ▼
                 └── counts, lists, model ◄── what has happened by then: exposures and actions are counted,
                                              labels that are known by then are learnt from

The scorer's ranking and the learner's model without Kafka, Redis and HTTP, in one thread. State follows in steps of a
minute, where the live loop takes a second. A click is a sample as soon as it happens, a negative when the label policy
says so. Visits, the draws of :func:`simulator.reaction.react` and the seed of each page's recall are the same in each
arm (common random numbers), so arms differ by the items that they show alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from commands.replay.known import KnownSamples, Traffic, batch_of
from commands.replay.sent_again import with_pages_again
from commands.replay.steps import steps
from commands.replay.stretches import AT_ONCE
from experiments.recall.recallshop import RecallShop, Rows, Waiting
from learner.network.models.spec import read_spec
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import Tower
from learner.serving.serving_model import ServingModel
from learner.training.trainer import BATCH_ROWS
from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import column_hash, value_hash
from millrace.contracts.events import CLICK, EXPOSURE
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.labels import policy_named
from millrace.logs import LogTable
from millrace.versions.image import split
from scorer.catalog.itemtable import ItemRows
from scorer.recall.candidate_lists import largest
from scorer.users.userrecord import KnownUser
from simulator.reaction import react
from simulator.world import World, day_of, start_of

STEP_MS = 60_000  # how often all state is brought up to date, where nothing else is asked for

_EXPOSED, _CLICKED = 1 << EXPOSURE, 1 << EXPOSURE | 1 << CLICK

Recall = Callable[[int, KnownUser, int, int, int], ItemRows]
"""A way to find candidates: from (shopper, user, ts_ms, size, seed) to distinct rows of the item index that are on
sale. (n,)"""


class Pupil:
    """A model that learns, and what serves of it: the ranker, and the retrieval head's tower where it has one."""

    def __init__(self, model: OnlineModel, batch_rows: int) -> None:
        self.model, self._batch_rows = model, batch_rows
        model.changes()
        ranker, head = split(model.snapshot()[0])
        self.serving = ServingModel.of(model.schema, model.spec, ranker)
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


class DayLoop:
    """One arm's day. One thread; :meth:`play` once.

    Args:
        shop: what a scorer holds, as of the day's start; the loop changes it.
        number: the local day.
        recall: makes candidates, which ``pupil`` ranks.
        step_ms: how often all state is brought up to date, in event time; a divisor of an hour.
    """

    def __init__(
        self,
        world: World,
        shop: RecallShop,
        number: int,
        settings: Settings,
        recall: Recall,
        pupil: Pupil,
        step_ms: int = STEP_MS,
    ) -> None:
        self._world, self._shop, self._settings, self._recall, self._pupil = world, shop, settings, recall, pupil
        self._number, self._start_ms, self._step_ms = number, start_of(number), step_ms
        self._day, self._visits = world.day(number), world.visits(number)
        self._policy = policy_named(settings.label_policy)
        self._wait_ms = round(settings.attribution_minutes * 60_000)
        self._observation_ms = round(settings.observation_seconds * 1000)
        self._traffic = Traffic(newest_ms=self._start_ms, began_ms=self._start_ms)
        self._samples = Waiting()
        self.exposures, self.clicks = np.zeros((2, world.shoppers.n), np.int64)
        """Of each shopper. (N,) each"""

    def play(self) -> dict[str, int]:
        """Lets the day happen; what was shown, clicked and learnt."""
        visits = self._visits
        starts, view = visits.start_ms.tolist(), 0
        for now_ms in range(self._start_ms, self._start_ms + DAY_MS, self._step_ms):
            self._follow(now_ms)
            while view < visits.n and starts[view] < now_ms + self._step_ms:
                self._page(view)
                view += 1
        return {"exposures": int(self.exposures.sum()), "clicks": int(self.clicks.sum()), "learnt": self._pupil.rows}

    # -- pages ------------------------------------------------------------------------------------------------

    def _page(self, view: int) -> None:
        visits, shop = self._visits, self._shop
        user_at, ts_ms, size = int(visits.user[view]), int(visits.start_ms[view]), int(visits.size[view])
        request = f"{self._number}-{view}"
        user = shop.user(user_at)
        found = self._recall(user_at, user, ts_ms, max(self._settings.candidates, size), value_hash(request))
        ranked = shop.ranker.rank(user, found, ts_ms, {}, self._pupil.serving)
        order = largest(np.nan_to_num(ranked.scores, nan=0.0), size)
        placed = shop.ranker.placed(ranked, order, user, found, ts_ms, {})
        items, position = shop.item_ids(found[order]), np.arange(len(order))
        shift = float(visits.shift[view])
        chance = self._day.click_probability(user_at, self._day.rows(items), position, ts_ms, shift)
        keys = (user_at, visits.day, int(visits.session[view]), int(visits.page[view]))
        business = bool(self._world.shoppers.business[user_at])
        done = react(self._world.seed, self._world.params, chance, business, ts_ms, position, keys)
        for action, at_ms in enumerate(
            (np.full(len(order), ts_ms), done.click_ms, done.collect_ms, done.cart_ms, done.purchase_ms)
        ):
            which = np.flatnonzero(at_ms)
            shop.put(at_ms[which], action, placed.keys[which], np.full(len(which), user_at), items[which])
        self._promise(
            done.click_ms,
            {
                "ts_ms": np.full(len(order), ts_ms),
                "cat": placed.cat,
                "num": placed.num,
                "request": np.full(len(order), request),
                "slot": position,
                "user": np.resize(column_hash([user_at + 1]), len(order)),
                "item": column_hash(items),
                "clicked": done.click_ms > 0,
            },
        )
        self.exposures[user_at] += len(order)
        self.clicks[user_at] += (done.click_ms > 0).sum()

    def _promise(self, click_ms: NDArray[np.int64], page: Rows) -> None:
        """When each label of a page will be known."""
        labels: Any = SimpleNamespace(clicked=click_ms > 0, acted_ms=click_ms, wait_ms=self._wait_ms)
        known = KnownSamples.of(page["ts_ms"], labels, self._policy, self._observation_ms, self._traffic)
        if self._pupil.model.by_page and not self._policy.final:
            n, name = len(click_ms), str(page["request"][0])
            rows: Any = SimpleNamespace(
                n=n, ts_ms=page["ts_ms"], page=np.zeros(n, int), slots=lambda at: at, requests=lambda _: (name,)
            )
            known = with_pages_again(known, rows, labels)
        sent = {name: column[known.row] for name, column in page.items()}
        self._samples.put({**sent, "ms": known.known_ms, "kind": known.kind, "policy": known.policy})

    # -- what follows from them -------------------------------------------------------------------------------

    def _follow(self, now_ms: int) -> None:
        """Counts, lists and model become what they are when all that has happened before ``now_ms`` has been read."""
        batch = self._due(now_ms)
        if batch is not None:
            self._pupil.learn(batch)
            self._pupil.publish()
        self._shop.advance(now_ms)
        self._pupil.renew(self._shop)

    def _due(self, now_ms: int) -> SampleBatch | None:
        """The samples that are known by now, in the order in which they became known."""
        due = self._samples.due(now_ms)
        if not due:
            return None
        requests, page = np.unique(due["request"], return_inverse=True)
        known = KnownSamples(np.arange(len(page)), due["ms"], due["kind"], due["policy"])
        return batch_of(known, tuple(requests.tolist()), page, due)


def new_recall(shop: RecallShop) -> Recall:
    """The recall that the scorer runs."""
    return lambda _, user, ts_ms, size, seed: shop.recall(user, ts_ms, size, seed)


def perfect_recall(shop: RecallShop) -> Recall:
    """The items that the shopper truly likes best. No recall can know them: what it earns, no recall can better."""

    def page(shopper: int, _: KnownUser, ts_ms: int, size: int, seed: int) -> ItemRows:
        rows, day = np.flatnonzero(shop.items.alive), shop.world.day(day_of(ts_ms))
        return rows[largest(day.affinity(shopper, day.rows(shop.item_ids(rows)), ts_ms), size)]

    return page


def popular_recall(shop: RecallShop) -> Recall:
    """The most clicked items on sale; what is missing is drawn of the others."""

    def page(shopper: int, _: KnownUser, ts_ms: int, size: int, seed: int) -> ItemRows:
        hottest = shop.popular(size)
        hot = hottest[shop.clicks_a_day()[hottest] > 0]
        rest = np.setdiff1d(np.flatnonzero(shop.index.alive), hot)
        return np.concatenate([hot, np.random.default_rng(seed).permutation(rest)[: size - len(hot)]])

    return page


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
