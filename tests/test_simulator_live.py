"""The live loop against a scorer that keeps the HTTP contract and a producer that keeps what it is given."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from kafka.errors import KafkaTimeoutError

from millrace.clock import EventClock, wall_ms
from millrace.events import BadEventError, Click, Exposure, decode_event, decode_item, decode_truth, decode_user
from millrace.metrics import READY
from millrace.settings import Settings
from simulator import figures
from simulator.live import Options, run
from simulator.mischief import KINDS
from simulator.world import World, start_of

USERS = 300
MONDAY = 20_512  # a local day
SEED = 3


class Sent:
    """What ``send`` returns: delivered, or given back."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def add_callback(self, call: Callable[..., Any], *args: Any) -> None:
        if self._error is None:
            call(*args, None)

    def add_errback(self, call: Callable[..., Any], *args: Any) -> None:
        if self._error is not None:
            call(*args, self._error)


class Recorder:
    """A producer that keeps everything. ``trouble`` is asked before each message; what it returns goes wrong."""

    def __init__(self, trouble: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self.messages: list[tuple[str, bytes, bytes]] = []
        self.calls = 0
        self.flushed = self.closed = False
        self._trouble = trouble

    def send(self, topic: str, *, key: bytes, value: bytes) -> Sent:
        self.calls += 1
        error = self._trouble(self.calls)
        if isinstance(error, KafkaTimeoutError):
            raise error
        if error is None:
            self.messages.append((topic, key, value))
        return Sent(error)

    def flush(self, timeout: float | None = None) -> None:
        self.flushed = True

    def close(self, timeout: float | None = None) -> None:
        self.closed = True

    def of(self, topic: str) -> list[bytes]:
        return [value for t, _, value in self.messages if t == topic]

    def events(self) -> tuple[list[Any], Counter[str]]:
        """Readable events in order, and how many could not be read, by reason."""
        good, bad = [], Counter[str]()
        for raw in self.of("events"):
            try:
                good.append(decode_event(raw))
            except BadEventError as error:
                bad[error.reason] += 1
        return good, bad


class FakeScorer:
    """The scorer's HTTP contract: random pages from the items it is told, in a thread with its own loop."""

    def __init__(self, items: list[int], trouble: Callable[[int], web.Response | None] = lambda _: None) -> None:
        self.items, self.requests, self.ids = items, 0, []  # type: ignore[var-annotated]
        self.bodies: list[dict[str, Any]] = []
        self.ready_after = 0
        self.asked_ready = 0
        self._trouble = trouble
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> str:
        app = web.Application()
        app.add_routes([web.get("/readyz", self._ready), web.post("/recommend", self._recommend)])
        app.add_routes([web.post("/score", self._score)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _ready(self, _: web.Request) -> web.Response:
        self.asked_ready += 1
        return web.json_response({"ready": True}, status=200 if self.asked_ready > self.ready_after else 503)

    async def _take(self, request: web.Request) -> tuple[dict[str, Any], web.Response | None]:
        body = await request.json()
        self.requests += 1
        self.bodies.append(body)
        self.ids.append(body["request_id"])
        return body, self._trouble(self.requests)

    async def _recommend(self, request: web.Request) -> web.Response:
        body, trouble = await self._take(request)
        if trouble is not None:
            return trouble
        start = self.requests * 7
        page = [self.items[(start + k) % len(self.items)] for k in range(body["size"])]
        placed = [{"item_id": item, "position": k, "score": 0.1} for k, item in enumerate(page)]
        arm = "control" if self.requests % 3 == 0 else "model"
        return web.json_response(
            {"request_id": body["request_id"], "model_version": 1, "arm": arm, "ts_ms": 1, "items": placed, "notes": []}
        )

    async def _score(self, request: web.Request) -> web.Response:
        body, trouble = await self._take(request)
        if trouble is not None:
            return trouble
        scores = [0.1] * len(body["items"])
        return web.json_response(
            {"request_id": body["request_id"], "model_version": 1, "scores": scores, "unknown_items": []}
        )

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def world() -> World:
    return World(SEED, USERS)


@pytest.fixture
def make_scorer(world: World) -> Iterator[Callable[..., FakeScorer]]:
    made: list[FakeScorer] = []

    def make(**options: Any) -> FakeScorer:
        goods = world.day(MONDAY).goods
        made.append(FakeScorer(goods.item_id[goods.born_ms < start_of(MONDAY)].tolist(), **options))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


def settings_for(scorer: FakeScorer, speed: float = 3000.0, hour: float = 10.0) -> Settings:
    """Event time begins at an hour of a Monday."""
    clock = EventClock(wall_ms(), start_of(MONDAY) + round(hour * 3_600_000), speed)
    return Settings(scorer=scorer.url, clock=clock.encode(), seed=SEED)


def value(counter: Any) -> float:
    return float(counter._value.get())


def labelled(counter: Any) -> float:
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return float(sum(sample.value for sample in samples if sample.name.endswith("_total")))


def test_shoppers_ask_look_and_act(make_scorer: Callable[..., FakeScorer], world: World) -> None:
    scorer, sink = make_scorer(), Recorder()
    settings = settings_for(scorer)
    before = {c: value(c) for c in (figures.EXPOSURES, figures.CLICKS, figures.MALFORMED, figures.DUPLICATES)}
    pages_before = labelled(figures.PAGES)
    options = Options(users=USERS, max_pages=150, duplicate=0.1, malformed=0.1, out_of_order=0.1, late=0.1)
    run(settings, options, threading.Event(), sink)
    assert sink.flushed
    assert sink.closed
    assert READY._value.get() == 0

    events, bad = sink.events()
    future = [e for e in events if e.ts_ms > settings.event_clock().now() + settings.ahead_minutes * 60_000]
    events = [e for e in events if e not in future]
    distinct = {e.event_id: e for e in events}
    exposures = [e for e in distinct.values() if isinstance(e, Exposure)]
    assert len(exposures) >= 150
    assert {e.request_id for e in exposures} <= set(scorer.ids)
    assert len(set(scorer.ids)) == len(scorer.ids)
    assert sum(bad.values()) + len(future) == value(figures.MALFORMED) - before[figures.MALFORMED] > 0
    assert set(bad) <= set(KINDS)
    assert len(events) - len(distinct) == value(figures.DUPLICATES) - before[figures.DUPLICATES] > 0
    assert sum(len(e.items) for e in exposures) == value(figures.EXPOSURES) - before[figures.EXPOSURES]
    clicks = [e for e in distinct.values() if isinstance(e, Click)]
    assert len(clicks) == value(figures.CLICKS) - before[figures.CLICKS] > 0
    assert labelled(figures.PAGES) - pages_before == len(exposures)

    # Every action is of an exposure that was sent, with the item that stood there.
    pages = {e.request_id: e for e in exposures}
    for action in (e for e in distinct.values() if not isinstance(e, Exposure)):
        page = pages[action.request_id]
        assert page.items[action.position - page.offset] == action.item_id
        assert action.user_id == page.user_id
        assert action.ts_ms > page.ts_ms
    # The truth of every page is known, and is that of the world.
    truth = {t.request_id: t for t in map(decode_truth, sink.of("truth"))}
    assert set(pages) <= set(truth)
    assert all(len(truth[r].p) == 4 * len(page.items) for r, page in pages.items())
    # Users and items are there before the first event.
    assert len({decode_user(raw).user_id for raw in sink.of("users")}) == world.shoppers.n
    on_sale = {decode_item(raw).item_id for raw in sink.of("items")}
    assert set(scorer.items) <= on_sale
    topics = [topic for topic, _, _ in sink.messages]
    assert topics.index("events") > topics.index("items") > topics.index("users")


def test_keys_are_the_users(make_scorer: Callable[..., FakeScorer]) -> None:
    sink = Recorder()
    run(settings_for(make_scorer()), Options(users=USERS, max_pages=30, malformed=0), threading.Event(), sink)
    for topic, key, raw in sink.messages:
        if topic == "events":
            assert key == str(json.loads(raw)["user_id"]).encode()


def test_an_outage_of_the_scorer_is_waited_out(make_scorer: Callable[..., FakeScorer]) -> None:
    def trouble(n: int) -> web.Response | None:
        return web.json_response({"error": "restarting"}, status=503) if 10 <= n < 30 else None

    scorer, sink = make_scorer(trouble=trouble), Recorder()
    scorer.ready_after = 2
    before = value(figures.REQUEST_ERRORS)
    run(settings_for(scorer), Options(users=USERS, max_pages=40), threading.Event(), sink)
    events, _ = sink.events()
    pages = {e.request_id for e in events if isinstance(e, Exposure)}
    assert value(figures.REQUEST_ERRORS) - before == 20
    assert len(pages) >= 40
    # A try that failed has its own id: the scorer may have logged its impression.
    assert len(set(scorer.ids)) == len(scorer.ids) == scorer.requests
    assert not pages & set(scorer.ids[9:29])


def test_what_the_broker_gives_back_is_sent_again(make_scorer: Callable[..., FakeScorer]) -> None:
    def trouble(n: int) -> BaseException | None:
        if n % 50 == 0:
            return ConnectionError("given back")
        return KafkaTimeoutError("no room") if n == 777 else None

    sink, whole = Recorder(trouble), Recorder()
    options = Options(users=USERS, max_pages=20, malformed=0)
    run(settings_for(make_scorer()), options, threading.Event(), sink)
    run(settings_for(make_scorer()), options, threading.Event(), whole)
    assert sorted(sink.of("users")) == sorted(whole.of("users"))
    events, _ = sink.events()
    pages = {e.request_id for e in events if isinstance(e, Exposure)}
    assert pages == {t.request_id for t in map(decode_truth, sink.of("truth"))}


def test_open_loop_shows_its_own_pages_and_has_them_logged(make_scorer: Callable[..., FakeScorer]) -> None:
    scorer, sink = make_scorer(), Recorder()
    run(settings_for(scorer), Options(users=USERS, max_pages=30, open_loop=True), threading.Event(), sink)
    events, _ = sink.events()
    asked = {b["request_id"]: b for b in scorer.bodies}
    exposures = [e for e in events if isinstance(e, Exposure)]
    assert exposures
    for page in exposures:
        assert asked[page.request_id]["items"] == page.items
        assert asked[page.request_id]["log"] is True
        assert len(set(page.items)) == len(page.items)


def test_it_stops_when_told_even_while_waiting(make_scorer: Callable[..., FakeScorer]) -> None:
    scorer, sink, stop = make_scorer(), Recorder(), threading.Event()
    scorer.ready_after = 10**9
    role = threading.Thread(target=run, args=(settings_for(scorer), Options(users=USERS), stop, sink))
    role.start()
    while not scorer.asked_ready:
        stop.wait(0.01)
    stop.set()
    role.join(20)
    assert not role.is_alive()
    assert sink.closed
    assert not sink.of("events")


def test_a_restart_does_not_repeat_request_ids(make_scorer: Callable[..., FakeScorer]) -> None:
    scorer = make_scorer()
    for _ in range(2):
        run(settings_for(scorer), Options(users=USERS, max_pages=10), threading.Event(), Recorder())
    assert len(set(scorer.ids)) == len(scorer.ids)
