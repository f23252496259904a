# shell
"""The simulator's role: shoppers who come, look, click and buy against a running loop.

Closed loop: pages come from the scorer's ``/recommend``. Open loop: pages come from the shop's previous recommender;
the scorer only scores and logs them (``/score``), so that the label join has its page log.

The world (a function of seed and event time) decides when shoppers come and how they judge an item. A page is seen at
the event time of the scorer's answer. A restarted simulator continues in the same world, at the present time.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import structlog

from millrace.basics.ranking_metrics import ROLLING_ROWS
from millrace.contracts.clock import EventClock
from millrace.contracts.events import CONTROL, Exposure, key_of, to_json
from millrace.contracts.settings import Settings
from millrace.contracts.topics import ITEMS, USERS
from millrace.processes.kafka import make_producer, open_broker
from millrace.processes.metrics import READY, serve_metrics
from millrace.processes.wall import event_now_ms, wall_ms
from simulator import simulator_metrics
from simulator.dice import generator
from simulator.late_orders import draw_orders
from simulator.oracle_auc import OracleAuc
from simulator.outbox import FaultRates, Outbox
from simulator.params import PAGE, WORLDS
from simulator.reaction import react
from simulator.simulator_wire import Producer, ScorerClient, SimulatorSender, ThrottledWarning
from simulator.visits import Visits
from simulator.world import UNKNOWN, PagePolicy, World, day_of

log = structlog.get_logger("simulator")

TICK_SECONDS = 0.01
LINGER_MS = 50
"""Time that messages wait for more. It halves the requests to the broker; a click comes some 15 ms later."""
NAP_SECONDS = 2.0
"""Longest wait before another look at the clock: the machine may have slept. Hundreds of shoppers wait."""
REQUEST_SECONDS = 10.0


def _item_id(item: int | str) -> int:
    """The id of a simulated item; an id that the simulator did not make is :data:`UNKNOWN`."""
    name = str(item)
    return int(name) if name.isdecimal() and len(name) <= 18 else UNKNOWN


def _nonce() -> str:
    return os.urandom(4).hex()


@dataclass(frozen=True)
class ShopOptions:
    """The shop and its opening time. The event clock is in the settings."""

    seed: int | None = None  # None: the settings'
    users: int | None = None  # who come on an average day; None: the settings'
    rates: FaultRates = field(default_factory=FaultRates)
    open_loop: bool = False
    world: str = "shop"  # of simulator.params.WORLDS
    max_pages: int | None = None
    seconds: float | None = None  # wall time
    concurrency: int = 8  # requests at once
    line: int = 200  # shoppers who may wait for a page; more are turned away
    incarnation: str = field(default_factory=_nonce)  # makes request ids unique over restarts


def run(
    settings: Settings, stop: threading.Event, options: ShopOptions | None = None, producer: Producer | None = None
) -> None:
    """Runs shoppers until ``stop`` is set, or ``options.seconds`` or ``options.max_pages`` are over. ``producer``
    replaces Kafka's in tests. Raises BrokerError, SettingError, PortError when an address is unusable at the start.
    Later outages are waited out."""
    options = options or ShopOptions()
    if producer is None:
        open_broker(settings)
        producer = make_producer(settings, linger_ms=LINGER_MS)
    port = serve_metrics("simulate", settings.metrics_port, settings.host)
    seed = settings.seed if options.seed is None else options.seed
    users = settings.shoppers if options.users is None else options.users
    log.info("building the world", seed=seed, users=users, metrics_port=port)
    world = World(seed, users, WORLDS[options.world])
    outlet = SimulatorSender(producer, settings.event_clock().headers)
    try:
        asyncio.run(Shop(settings, options, world, outlet, stop).open())
    finally:
        READY.set(0)
        outlet.close()


class Shop:
    def __init__(
        self, settings: Settings, options: ShopOptions, world: World, outlet: SimulatorSender, stop: threading.Event
    ) -> None:
        self._settings, self._options, self._world, self._outlet, self._stop = settings, options, world, outlet, stop
        self._clock: EventClock = settings.event_clock()
        rng = generator(world.seed, "mischief", int.from_bytes(options.incarnation.encode()[:8], "little"))
        self._outbox = Outbox(
            outlet, simulator_metrics.OutboxMetrics(), settings, options.rates, rng, options.incarnation
        )
        self._oracle_auc = OracleAuc(ROLLING_ROWS, round(settings.attribution_minutes * 60_000))
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(options.concurrency)
        self._in_line = 0
        self._requests = 0
        self._pages = 0
        self._over = False
        self._warn = ThrottledWarning()
        self._policy: tuple[int, PagePolicy] | None = None

    def _stopped(self) -> bool:
        return self._over or self._stop.is_set()

    async def open(self) -> None:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        connector = aiohttp.TCPConnector(limit=self._options.concurrency + 1)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            scorer = ScorerClient(self._settings.scorer, session, self._stopped)
            now = event_now_ms(self._clock)
            self._publish_users()
            day = day_of(now)
            self._publish_inventory(day, now)
            await self._outlet.room()
            if not await scorer.ready():
                return
            READY.set(1)
            log.info("the shop is open", event_ms=event_now_ms(self._clock), open_loop=self._options.open_loop)
            loops = [
                asyncio.create_task(work)
                for work in (self._admit(scorer), self._send_due(), self._stock(now), self._keep_auc())
            ]
            try:
                await self._until_over(loops)
            finally:
                self._over = True
                for task in (*loops, *self._tasks):
                    task.cancel()
                await asyncio.gather(*loops, *self._tasks, return_exceptions=True)
                self._outbox.send_due(event_now_ms(self._clock), wall_ms())
                self._outbox.close(wall_ms())
                self._settle()
                log.info("the shop is closed", pages=self._pages)

    async def _until_over(self, loops: list[asyncio.Task[None]]) -> None:
        end = None if self._options.seconds is None else time.monotonic() + self._options.seconds
        while not self._stopped():
            if end is not None and time.monotonic() >= end:
                return
            for task in loops:
                if task.done():
                    task.result()  # a loop ends by cancellation alone: this raises what broke it
            await asyncio.sleep(0.05)

    # -- shoppers --------------------------------------------------------------------------------------------

    async def _admit(self, scorer: ScorerClient) -> None:
        now = event_now_ms(self._clock)
        for visits, views in self._sessions(day_of(now), now):
            await self._until(int(visits.start_ms[views[0]]))
            await self._outlet.room()
            if self._in_line >= self._options.line:
                simulator_metrics.TURNED_AWAY.inc()
                self._warn("the line before the scorer is too long; a shopper is turned away", line=self._in_line)
                continue
            task = asyncio.create_task(self._session(scorer, visits, views))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _sessions(self, day: int, from_ms: int) -> Iterator[tuple[Visits, Any]]:
        """Sessions from a time on, by their start, day after day: the day's visits and the session's views."""
        while True:
            visits = self._world.visits(day)
            order = np.lexsort((visits.page, visits.session))
            first = np.flatnonzero(np.diff(visits.session[order], prepend=-1))
            sessions = np.split(order, first[1:])
            for views in sorted(sessions, key=lambda v: int(visits.start_ms[v[0]])):
                if visits.start_ms[views[0]] >= from_ms:
                    yield visits, views
            day += 1

    async def _until(self, event_ms: int) -> None:
        while (ahead := event_ms - event_now_ms(self._clock)) > 0:
            await asyncio.sleep(min(ahead / 1000 / self._clock.speed, NAP_SECONDS))

    async def _session(self, scorer: ScorerClient, visits: Visits, views: Any) -> None:
        try:
            for view in views.tolist():
                await self._until(int(visits.start_ms[view]))
                self._in_line += 1
                try:
                    async with self._gate:
                        seen = await self._page(scorer, visits, view)
                finally:
                    self._in_line -= 1
                if not seen:
                    return
        except Exception as error:  # one failed session does not close the shop, but it must be reported
            simulator_metrics.REQUEST_ERRORS.inc()
            log.error("a session failed", error=f"{type(error).__name__}: {error}", exc_info=True)

    async def _page(self, scorer: ScorerClient, visits: Visits, view: int) -> bool:
        user, size = int(visits.user[view]), int(visits.size[view])
        shown: list[int] = []

        def ask() -> dict[str, Any]:
            now = event_now_ms(self._clock)
            body: dict[str, Any] = {"user_id": user + 1, "ts_ms": now, "request_id": self._request_id()}
            if not self._options.open_loop:
                return body | {"size": size}
            shown[:] = self._own_page(visits, view)[:size]
            return body | {"items": shown, "log": True}

        if self._options.open_loop:
            answered = await scorer.ask("/score", ask, refusals=20)
        else:
            answered = await scorer.ask("/recommend", ask)
        if answered is None or self._stopped():
            return False
        body, page = answered
        arm = "open" if self._options.open_loop else str(page["arm"])
        items: list[int | str] = [*shown] if self._options.open_loop else [i["item_id"] for i in page["items"]]
        if not items:
            return True  # an empty page is nothing to look at
        seen_ms = max(body["ts_ms"], event_now_ms(self._clock))
        self._look(visits, view, str(body["request_id"]), items[:size], seen_ms, arm)
        self._pages += 1
        if self._options.max_pages is not None and self._pages >= self._options.max_pages:
            self._over = True
        return True

    def _look(self, visits: Visits, view: int, request_id: str, items: list[int | str], ts_ms: int, arm: str) -> None:
        world, user, n = self._world, int(visits.user[view]), len(items)
        day = world.day(day_of(ts_ms))
        rows = day.rows(np.array([_item_id(i) for i in items]))
        position = np.arange(n)
        chance = day.click_probability(user, rows, position, ts_ms, float(visits.shift[view]))
        keys = (user, visits.day, int(visits.session[view]), int(visits.page[view]))
        reaction = react(world.seed, world.params, chance, bool(world.shoppers.business[user]), ts_ms, position, keys)
        exposure = Exposure(f"{request_id}/e", request_id, ts_ms, user + 1, list(items))
        self._outbox.page(exposure, arm, chance.astype("<f4").tobytes())
        clicked = reaction.click_ms > 0
        for slot in np.flatnonzero(clicked).tolist():
            self._outbox.actions(exposure, slot, reaction.times(slot), arm)
        if world.params.order_rate and clicked.any():
            at = np.flatnonzero(clicked)
            likely = day.order_chance(user, rows[at])
            own = bool(world.shoppers.business[user])
            orders = draw_orders(world.seed, world.params, likely, own, reaction.click_ms[at], (*keys, at))
            for n, slot in enumerate(at.tolist()):
                self._outbox.order(exposure, slot, int(orders.order_ms[n]), int(orders.refund_ms[n]), arm)
        if arm != CONTROL:  # random pages are easier to rank: their rows would raise it beside the model's own AUC
            self._oracle_auc.add(ts_ms, chance, clicked.tolist())

    def _own_page(self, visits: Visits, view: int) -> list[int]:
        if self._policy is None or self._policy[0] != visits.day:
            self._policy = (visits.day, PagePolicy(self._world, self._world.day(visits.day)))
        rows = self._policy[1].pages(visits, np.array([view]))[0]
        ids: list[int] = self._world.day(visits.day).inventory.item_id[rows[:PAGE]].tolist()
        return ids

    def _request_id(self) -> str:
        self._requests += 1
        return f"{self._options.incarnation}-{self._requests}"

    # -- the shop --------------------------------------------------------------------------------------------

    async def _send_due(self) -> None:
        while True:
            self._outbox.send_due(event_now_ms(self._clock), wall_ms())
            await asyncio.sleep(TICK_SECONDS)

    async def _keep_auc(self) -> None:
        while True:
            self._settle()
            await asyncio.sleep(1.0)

    def _settle(self) -> None:
        self._oracle_auc.settle(event_now_ms(self._clock))
        simulator_metrics.ORACLE_AUC.set(self._oracle_auc.auc())

    def _publish_users(self) -> None:
        for index in range(self._world.shoppers.n):
            user = self._world.shoppers.user(index)
            self._outlet.put(USERS, key_of(user.user_id), to_json(user))

    def _publish_inventory(self, day: int, now_ms: int) -> None:
        """Publishes all goods on sale, and those that left lately as gone."""
        inventory = self._world.day(day).inventory
        for row in np.flatnonzero(inventory.born_ms <= now_ms).tolist():
            self._put_item(inventory, row, bool(inventory.dies_ms[row] <= now_ms))

    def _put_item(self, inventory: Any, row: int, gone: bool) -> None:
        item = self._world.catalogue.item(inventory, row, gone)
        self._outlet.put(ITEMS, key_of(item.item_id), to_json(item))

    async def _stock(self, from_ms: int) -> None:
        """Puts new goods on sale and takes old ones off, each at its time."""
        day = day_of(from_ms)
        while True:
            inventory = self._world.day(day).inventory
            changes = [(int(at), row, False) for row, at in enumerate(inventory.born_ms) if day_of(int(at)) == day]
            changes += [(int(at), row, True) for row, at in enumerate(inventory.dies_ms) if day_of(int(at)) == day]
            for at, row, gone in sorted(changes):
                if at > from_ms:
                    await self._until(at)
                    self._put_item(inventory, row, gone)
            day += 1
