# core
"""One simulated day in closed loop: pages are made, shoppers react, and what they did is counted and learnt from.

::

    visits ──► page: candidates ──► ranked ──► the first `size` ──► react(): clicks, carts, purchases, each at its time
                 ▲                                   │
                 │        every step_ms:             ▼
                 └── counts, lists, model ◄── what has happened by then: exposures and actions are counted,
                                              labels that are known by then are learnt from

It is the scorer's ranking and the learner's model without Kafka, Redis and HTTP, in one thread. Times are the world's,
so a day is a day, but state follows in steps (of a minute), where the live loop takes a second. That holds for each arm
alike. A click is a sample as soon as it happens, a negative when the label policy says so (:mod:`millrace.labels`).

Common random numbers: the day's visits, the draws of :func:`simulator.reaction.react` (by shopper, session, page and
position) and the seed of each page's recall are the same in each arm, so arms differ by the items that they show alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from experiments.recall.recallfigures import Tally
from experiments.recall.recallshop import RecallShop
from learner.network.models.spec import read_spec
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import Tower
from learner.serving.serving_model import ServingModel
from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import column_hash, value_hash
from millrace.contracts.events import ACTIONS, CART, CLICK, COLLECT, EXPOSURE, PURCHASE, SOURCES
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.labels import Waits, policy_named
from millrace.versions.image import split
from scorer.catalog.itemtable import ItemRows
from scorer.recall.candidate_lists import largest
from scorer.users.userrecord import KnownUser
from simulator.reaction import react
from simulator.world import World, day_of, start_of

STEP_MS = 60_000
"""How often all state is brought up to date, unless told otherwise."""

HOT = 2000
"""Of the most clicked items, so many are sorted for the arm without a model."""
_ACTED = (CLICK, COLLECT, CART, PURCHASE)
"""In the order of :meth:`simulator.reaction.Reaction.times`."""
_EXPOSED, _CLICKED = 1 << EXPOSURE, 1 << EXPOSURE | 1 << CLICK

Rows = NDArray[np.intp]


class Recall(NamedTuple):
    """A way to find candidates: ``page`` (shopper, user, ts_ms, size, seed) gives distinct rows of the item index that
    are on sale, (n,), and a code for the source of each, (n,), which ``names`` names."""

    page: Callable[[int, KnownUser, int, int, int], tuple[ItemRows, NDArray[np.uint8]]]
    names: Sequence[str]


@dataclass(slots=True, eq=False)
class _Seen:
    """A page as it was shown. n items."""

    request: str
    user: int
    ts_ms: int
    items: list[int]
    hashes: NDArray[np.uint64]  # (n,) of the ids
    keys: NDArray[np.uint64]  # (n, K)
    cat: NDArray[np.int64]  # (n, F); nothing is learnt from a page without
    num: NDArray[np.float32]  # (n, N)
    scores: NDArray[np.float32]  # (n,)


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
        self.rows = self.skipped = 0

    def learn(self, batch: SampleBatch) -> None:
        """Learns samples, in their order, in micro-batches."""
        for at in range(0, len(batch), self._batch_rows):
            part = batch.take(slice(at, at + self._batch_rows))
            report = self.model.learn(part)
            self.rows += report.rows
            self.skipped += 0 if report.skipped is None else len(part)

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
        recall: makes candidates, which ``pupil`` ranks. None: pages are of the most clicked items, without a model.
        step_ms: how often all state is brought up to date, in event time; a divisor of an hour.
    """

    def __init__(
        self,
        world: World,
        shop: RecallShop,
        number: int,
        settings: Settings,
        recall: Recall | None,
        pupil: Pupil | None,
        step_ms: int = STEP_MS,
    ) -> None:
        self._world, self._shop, self._settings, self._recall, self._pupil = world, shop, settings, recall, pupil
        self._number, self._start_ms, self._step_ms = number, start_of(number), step_ms
        self._day, self._visits = world.day(number), world.visits(number)
        self._policy = policy_named(settings.label_policy)
        ms = round(settings.attribution_minutes * 60_000)
        self._waits = Waits(ms, round(settings.observation_seconds * 1000), 0)
        self._last_ms = self._began_ms = self._start_ms  # of the traffic, for the label policy
        actions = shop.builder.schema.windows.actions
        self._column = np.array([actions.index(name) if name in actions else -1 for name in ACTIONS])
        self._shown: list[_Seen] = []
        self._acts: list[tuple[int, int, _Seen, int, int]] = []  # a heap: when, number, page, position, action
        self._labels: list[tuple[int, int, _Seen, Rows, int, int]] = []  # ... page, positions, kind, policy
        self._count = 0
        self._hot: Rows | None = None  # the most clicked items, sorted when the first page of a step asks for them

    def play(self) -> dict[str, Any]:
        """Lets the day happen; the figures of :class:`~experiments.recall.recallfigures.Tally`, and what was learnt."""
        visits = self._visits
        self._tally = Tally(visits.n)
        starts, view = visits.start_ms.tolist(), 0
        for now_ms in range(self._start_ms, self._start_ms + DAY_MS, self._step_ms):
            self._follow(now_ms)
            while view < visits.n and starts[view] < now_ms + self._step_ms:
                self._page(view)
                view += 1
        learnt = {} if self._pupil is None else {"learnt": self._pupil.rows, "not_learnt": self._pupil.skipped}
        return self._tally.figures() | learnt

    # -- pages ------------------------------------------------------------------------------------------------

    def _page(self, view: int) -> None:
        visits, shop = self._visits, self._shop
        user_at, ts_ms, size = int(visits.user[view]), int(visits.start_ms[view]), int(visits.size[view])
        request = f"{self._number}-{view}"
        user = shop.user(user_at)
        seed = value_hash(request)
        if self._recall is None or self._pupil is None:
            rows = self._popular(size, seed)
            names = ["popular"] * len(rows)
            page = self._plain(request, user_at, user, ts_ms, rows)
        else:
            found, sources = self._recall.page(user_at, user, ts_ms, max(self._settings.candidates, size), seed)
            ranked = shop.ranker.rank(user, found, ts_ms, {}, self._pupil.serving)
            order = largest(np.nan_to_num(ranked.scores, nan=0.0), size)
            placed = shop.ranker.placed(ranked, order, user, found, ts_ms, {})
            rows, names = found[order], [self._recall.names[code] for code in sources[order].tolist()]
            items = self._ids(rows)
            page = _Seen(
                request, user_at, ts_ms, items, column_hash(items), placed.keys, placed.cat, placed.num,
                ranked.scores[order],
            )  # fmt: skip
        self._react(view, page, names)

    def _popular(self, size: int, seed: int) -> Rows:
        """The most clicked items that are on sale; what is missing of a page is drawn of the others."""
        shop, alive = self._shop, self._shop.index.alive
        if self._hot is None:
            hottest = shop.popular(HOT)
            self._hot = hottest[shop.clicks_a_day()[hottest] > 0]
        hot = self._hot[alive[self._hot]][:size]
        if len(hot) < size:
            rest = np.setdiff1d(np.flatnonzero(alive), hot)
            hot = np.concatenate([hot, np.random.default_rng(seed).permutation(rest)[: size - len(hot)]])
        return hot

    def _plain(self, request: str, user_at: int, user: KnownUser, ts_ms: int, rows: Rows) -> _Seen:
        """A page that is counted, and not learnt from."""
        n, builder, items = len(rows), self._shop.builder, self._ids(rows)
        keys = builder.keys({**user.columns, **self._shop.index.columns(rows)}, n)
        cat, num = np.empty((n, 0), np.int64), np.empty((n, 0), np.float32)
        return _Seen(request, user_at, ts_ms, items, column_hash(items), keys, cat, num, np.zeros(n, np.float32))

    def _ids(self, rows: Rows) -> list[int]:
        ids: list[int] = self._shop.item_ids(rows).tolist()
        return ids

    def _react(self, view: int, page: _Seen, names: list[str]) -> None:
        world, visits, day, n = self._world, self._visits, self._day, len(page.items)
        position = np.arange(n)
        chance = day.click_probability(page.user, day.rows(np.array(page.items)), position)
        keys = (page.user, visits.day, int(visits.session[view]), int(visits.page[view]))
        business = bool(world.shoppers.business[page.user])
        done = react(world.seed, world.params, chance, business, page.ts_ms, position, keys)
        clicked = done.click_ms > 0
        self._shown.append(page)
        for slot in np.flatnonzero(clicked).tolist():
            for action, at_ms in zip(_ACTED, done.times(slot), strict=True):
                if at_ms:
                    self._later(self._acts, at_ms, page, slot, action)
        if self._pupil is not None:
            self._promise(page, clicked, done.click_ms)
        self._tally.page(view, page.user, clicked, chance, int((done.purchase_ms > 0).sum()), names)

    def _promise(self, page: _Seen, clicked: NDArray[np.bool_], click_ms: NDArray[np.int64]) -> None:
        """When each label will be known: as :class:`commands.replay.known.KnownSamples` has it of a log."""
        ts_ms = page.ts_ms
        if ts_ms - self._last_ms > self._waits.attribution_ms:
            self._began_ms = ts_ms
        self._last_ms = ts_ms
        code, hold_ms, observe_ms, _ = self._policy.promise(self._waits, ts_ms - self._began_ms)
        early = clicked & (click_ms - ts_ms <= observe_ms)
        for slot in np.flatnonzero(clicked).tolist():
            at_ms = int(click_ms[slot])
            if early[slot]:
                at_ms = max(at_ms, ts_ms + hold_ms)
            kind = POSITIVE if early[slot] else CORRECTION
            self._later(self._labels, at_ms, page, np.array([slot]), kind, code)
        self._later(self._labels, ts_ms + observe_ms, page, np.flatnonzero(~early), NEGATIVE, code)

    def _later(self, heap: list[Any], at_ms: int, *what: Any) -> None:
        self._count += 1  # of equal times the first comes first, and pages are never compared
        heapq.heappush(heap, (at_ms, self._count, *what))

    # -- what follows from them -------------------------------------------------------------------------------

    def _follow(self, now_ms: int) -> None:
        """Counts, lists and model become what they are when all that has happened by ``now_ms`` has been read."""
        shown, self._shown, self._hot = self._shown, [], None
        if shown:
            self._exposed(shown)
        acted = []
        while self._acts and self._acts[0][0] <= now_ms:
            acted.append(heapq.heappop(self._acts))
        if acted:
            self._acted(acted)
        batch = self._due(now_ms) if self._pupil is not None else None
        if self._pupil is not None and batch is not None:
            self._pupil.learn(batch)
            self._pupil.publish()
        self._shop.advance(now_ms)
        if self._pupil is not None:
            self._pupil.renew(self._shop)

    def _exposed(self, shown: list[_Seen]) -> None:
        sizes = [len(page.items) for page in shown]
        times = np.repeat(np.array([page.ts_ms for page in shown]), sizes)
        users = np.repeat(np.array([page.user for page in shown]), sizes)
        column = np.full(len(times), self._column[EXPOSURE])
        self._shop.count(np.concatenate([page.keys for page in shown]), times, column, users)

    def _acted(self, acted: list[tuple[int, int, _Seen, int, int]]) -> None:
        """Counts actions, in order of time, and notes them as the shoppers' last ones."""
        times, users = np.array([a[0] for a in acted]), np.array([a[2].user for a in acted])
        items, actions = np.array([a[2].items[a[3]] for a in acted]), np.array([a[4] for a in acted])
        for action in (CLICK, PURCHASE):
            which = np.flatnonzero(actions == action)
            self._shop.acted(users[which], items[which], times[which], action)
        column = self._column[actions]
        counted = np.flatnonzero(column >= 0)
        if len(counted):
            keys = np.stack([acted[i][2].keys[acted[i][3]] for i in counted.tolist()])
            self._shop.count(keys, times[counted], column[counted], users[counted])

    def _due(self, now_ms: int) -> SampleBatch | None:
        """The samples that are known by now, in the order in which they became known."""
        due = []
        while self._labels and self._labels[0][0] <= now_ms:
            _, _, page, slots, kind, code = heapq.heappop(self._labels)
            if len(slots):
                due.append((page, slots, kind, code))
        if not due:
            return None
        sizes = np.array([len(slots) for _, slots, *_ in due])
        number: dict[str, int] = {}
        pages = np.array([number.setdefault(page.request, len(number)) for page, *_ in due], np.int32)
        kinds = np.repeat(np.array([k for *_, k, _ in due], np.uint8), sizes)
        users = column_hash([page.user + 1 for page, *_ in due])
        return SampleBatch.of_rows(
            kinds,
            np.repeat(np.array([page.ts_ms for page, *_ in due], np.int64), sizes),
            np.concatenate([page.cat[slots] for page, slots, *_ in due]),
            np.concatenate([page.num[slots] for page, slots, *_ in due]),
            tuple(number),
            page=np.repeat(pages, sizes),
            position=np.concatenate([slots for _, slots, *_ in due]).astype(np.int32),
            user=np.repeat(users, sizes),
            item=np.concatenate([page.hashes[slots] for page, slots, *_ in due]),
            score=np.concatenate([page.scores[slots] for page, slots, *_ in due]),
            actions=np.where(kinds != NEGATIVE, _CLICKED, _EXPOSED).astype(np.uint8),
            policy=np.repeat(np.array([c for *_, c in due], np.uint8), sizes),
        )


def new_recall(shop: RecallShop) -> Recall:
    """The recall that the scorer runs."""
    return Recall(lambda _, user, ts_ms, size, seed: shop.recall(user, ts_ms, size, seed), SOURCES)


def perfect_recall(shop: RecallShop) -> Recall:
    """The items that the shopper truly likes best. No recall can know them: what it earns, no recall can better."""

    def page(shopper: int, _: KnownUser, ts_ms: int, size: int, seed: int) -> tuple[ItemRows, NDArray[np.uint8]]:
        rows, day = np.flatnonzero(shop.items.alive), shop.world.day(day_of(ts_ms))
        return _of_one(rows[largest(day.liking(shopper, day.rows(shop.item_ids(rows))), size)])

    return Recall(page, ("truth",))


def _of_one(rows: ItemRows) -> tuple[ItemRows, NDArray[np.uint8]]:
    return rows, np.zeros(len(rows), np.uint8)


def start_shop(world: World, settings: Settings, number: int, log: Sequence[pa.Table]) -> RecallShop:
    """The shop at the beginning of a local day, after the days in ``log`` (none: nothing has been counted)."""
    start_ms = start_of(number)
    shop = RecallShop(world, shop_schema(), start_ms, settings)
    for table in log:
        shop.take(table)
    shop.advance(start_ms)
    return shop
