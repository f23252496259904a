# shell
"""Plays a log through Kafka and the live loop: the scorer scores and logs each of its pages, then it is shown.

The loop meets the log in event time, by the event clock, as it would have met the shoppers. If the clock is at the time
of the log's first page, times are the log's own. Otherwise the whole log is moved to begin now, with a warning.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog

from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.events import Exposure, key_of, to_json
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import ITEMS, USERS
from millrace.logs import read_log
from millrace.processes.kafka import make_producer, open_broker
from millrace.processes.metrics import READY, serve_metrics
from millrace.processes.wall import event_now_ms, wall_ms
from millrace.reports.lines import Tick
from millrace.reports.progress import bars
from simulator import simulator_metrics
from simulator.dice import generator
from simulator.live import REQUEST_SECONDS, TICK_SECONDS
from simulator.outbox import FaultRates, Outbox
from simulator.script import PlayedPage, Script
from simulator.simulator_wire import Producer, ScorerClient, SimulatorSender, ThrottledWarning

log = structlog.get_logger("playback")

ARM = "log"
REFUSALS = 30  # number of retries for a page whose items the scorer does not know yet


@dataclass(frozen=True)
class PlaybackOptions:
    log: Path
    max_pages: int | None = None
    concurrency: int = 8
    incarnation: str = field(default_factory=lambda: os.urandom(4).hex())
    quiet: bool = False  # no progress


def first_ms(path: Path, schema: Schema) -> int:
    """Time of the log's first exposure. An event clock must begin here to keep the log's own times."""
    first: int = read_log(path, schema).table["ts_ms"][0].as_py()
    return first


def play(settings: Settings, stop: threading.Event, options: PlaybackOptions, producer: Producer | None = None) -> None:
    """Plays the log until its end, or until ``stop`` is set. ``producer`` replaces Kafka's in tests.

    Raises:
        LogError, SchemaError: the log cannot be read.
        BrokerError, SettingError, PortError: an address is unusable at the start. Later outages are waited out.
    """
    schema = settings.load_schema()
    script = Script(read_log(options.log, schema), schema)
    if producer is None:
        open_broker(settings)
        producer = make_producer(settings)
    serve_metrics("simulate", settings.metrics_port, settings.host)
    log.info("playing a log", log=str(options.log), pages=script.pages, exposures=len(script.ts_ms))
    outlet = SimulatorSender(producer, settings.event_clock().headers)
    try:
        asyncio.run(Playback(settings, options, script, outlet, stop).play())
    finally:
        READY.set(0)
        outlet.close()


class Playback:
    def __init__(
        self,
        settings: Settings,
        options: PlaybackOptions,
        script: Script,
        outlet: SimulatorSender,
        stop: threading.Event,
    ) -> None:
        self._options, self._script, self._outlet, self._stop = options, script, outlet, stop
        self._settings = settings
        self._clock = settings.event_clock()
        nothing = FaultRates(0.0, 0.0, 0.0, 0.0)  # a log is played as it is
        rng, name = generator(0, "playback"), options.incarnation
        self._outbox = Outbox(outlet, simulator_metrics.OutboxMetrics(), settings, nothing, rng, name, cut=False)
        self._gate = asyncio.Semaphore(options.concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._shift_ms = 0
        self._requests = 0
        self._lost = 0
        self._warn = ThrottledWarning()
        self._failure: BaseException | None = None

    async def play(self) -> None:
        """Publishes the first users and items, waits for the scorer, plays, and waits for the last action."""
        for user in self._script.cast:
            self._outlet.put(USERS, key_of(user.user_id), to_json(user))
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            scorer = ScorerClient(self._settings.scorer, session, self._stop.is_set)
            self._set_time()
            for item in self._script.stock:
                self._put_item(item)
            await self._outlet.room()
            if not await scorer.ready():
                return
            READY.set(1)
            sending = asyncio.create_task(self._send_due())
            try:
                with bars(not self._options.quiet) as tick:
                    await self._pages(scorer, tick)
                while len(self._outbox) and not self._stop.is_set():
                    await asyncio.sleep(TICK_SECONDS)
            finally:
                for task in (sending, *self._tasks):
                    task.cancel()
                await asyncio.gather(sending, *self._tasks, return_exceptions=True)
                self._outbox.close(wall_ms())
        if self._lost:
            log.error("pages were refused by the scorer and not played", pages=self._lost)
        log.info("the log is played", requests=self._requests)

    def _set_time(self) -> None:
        first, now = int(self._script.ts_ms[0]), event_now_ms(self._clock)
        near_ms = max(MAX_AHEAD_MS, 10_000 * self._clock.speed)
        if abs(first - now) > near_ms:
            self._shift_ms = now - first
            log.warning(
                "the log is moved to begin now; its hours and weekdays change",
                days=round(self._shift_ms / 86_400_000, 2),
                remedy="start the event clock at the log's first exposure",
                first_ms=first,
            )

    async def _pages(self, scorer: ScorerClient, tick: Tick) -> None:
        for number, scene in enumerate(self._script.scenes()):
            if self._stop.is_set() or number == self._options.max_pages:
                break
            await self._until(scene.ts_ms + self._shift_ms)
            await self._outlet.room()
            await self._gate.acquire()
            if self._failure is not None:
                raise self._failure
            task = asyncio.create_task(self._page(scorer, scene))
            self._tasks.add(task)
            task.add_done_callback(self._finished)
            tick("pages", number + 1, self._script.pages)
        while self._tasks and not self._stop.is_set():
            await asyncio.sleep(TICK_SECONDS)
        if self._failure is not None:
            raise self._failure

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._gate.release()
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _until(self, event_ms: int) -> None:
        while (ahead := event_ms - event_now_ms(self._clock)) > 0 and not self._stop.is_set():
            await asyncio.sleep(min(ahead / 1000 / self._clock.speed, 0.2))
        if -ahead > self._settings.lateness_minutes * 60_000:
            self._warn(
                "the log is played slower than the event clock runs",
                behind_minutes=round(-ahead / 60_000),
                remedy="give the clock a lower speed",
            )

    async def _page(self, scorer: ScorerClient, scene: PlayedPage) -> None:
        ts_ms = scene.ts_ms + self._shift_ms
        for user in scene.users:
            self._outlet.put(USERS, key_of(user.user_id), to_json(user))
        for item in scene.inventory:
            self._put_item(item)

        def ask() -> dict[str, Any]:
            self._requests += 1
            return {
                "user_id": scene.user_id,
                "items": scene.items,
                "ts_ms": ts_ms,
                "context": scene.context,
                "request_id": f"{self._options.incarnation}-{self._requests}",
                "offset": scene.first_position,
                "log": True,
            }

        answered = await scorer.ask("/score", ask, refusals=REFUSALS)
        if answered is None:
            self._lost += not self._stop.is_set()
            return
        request_id = str(answered[0]["request_id"])
        # The scorer counts slots from our first item, whatever the log's own slots are.
        exposure = Exposure(f"{request_id}/e", request_id, ts_ms, scene.user_id, scene.items)
        self._outbox.page(exposure, ARM)
        for slot, times in enumerate(scene.times):
            if any(times):
                moved = [at + self._shift_ms if at else 0 for at in times]
                self._outbox.actions(exposure, slot, (moved[0], moved[1], moved[2], moved[3]), ARM)

    def _put_item(self, item: Any) -> None:
        if item.born_ms:
            item = msgspec.structs.replace(item, born_ms=item.born_ms + self._shift_ms)
        self._outlet.put(ITEMS, key_of(item.item_id), to_json(item))

    async def _send_due(self) -> None:
        while True:
            self._outbox.send_due(event_now_ms(self._clock), wall_ms())
            await asyncio.sleep(TICK_SECONDS)
