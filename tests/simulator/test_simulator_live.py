"""The live loop against a scorer that keeps the HTTP contract and a producer that keeps what it is given."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from kafka.errors import KafkaTimeoutError

from millrace.contracts.clock import MAX_AHEAD_MS, EventClock
from millrace.contracts.events import ARMS, Click, Exposure, decode_item, decode_truth, decode_user
from millrace.contracts.settings import Settings
from millrace.processes.metrics import READY
from millrace.processes.wall import wall_ms
from simulator import simulator_metrics
from simulator.live import ShopOptions, run
from simulator.mischief import KINDS
from simulator.oracle_auc import OracleAuc
from simulator.outbox import FaultRates
from simulator.world import World, start_of
from tests.scenes.waiting import PATIENCE, until
from tests.simulator.simulator_doubles import FakeScorer, Recorder

USERS = 300
MONDAY = 20_514  # a local day
SEED = 3


@pytest.fixture(scope="module")
def world() -> World:
    return World(SEED, USERS)


@pytest.fixture
def make_scorer(world: World) -> Iterator[Callable[..., FakeScorer]]:
    made: list[FakeScorer] = []

    def make(**options: Any) -> FakeScorer:
        inventory = world.day(MONDAY).inventory
        made.append(FakeScorer(inventory.item_id[inventory.born_ms < start_of(MONDAY)].tolist(), **options))
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
    names = ("EXPOSURES", "CLICKS", "MALFORMED", "DUPLICATES")
    counters = {name: getattr(simulator_metrics, name) for name in names}
    before, pages_before = {n: value(c) for n, c in counters.items()}, labelled(simulator_metrics.PAGES)
    options = ShopOptions(users=USERS, max_pages=150, rates=FaultRates(0.1, 0.1, 0.1, 0.1))
    run(settings, threading.Event(), options, sink)
    assert sink.flushed
    assert sink.closed
    assert READY._value.get() == 0
    assert sink.headers == settings.event_clock().headers != []

    sent, bad = sink.events()
    events = [e for e in sent if "-bad-" not in e.event_id]
    future = [(at, e) for at, e in enumerate(sent) if "-bad-" in e.event_id]
    for at, event in future:  # of the clock as it was then, which had come as far as what was sent before
        past = max((e.ts_ms for e in sent[:at] if "-bad-" not in e.event_id), default=start_of(MONDAY))
        assert event.ts_ms > past + MAX_AHEAD_MS
    distinct = {e.event_id: e for e in events}
    exposures = [e for e in distinct.values() if isinstance(e, Exposure)]
    assert len(exposures) >= 150
    assert {e.request_id for e in exposures} <= set(scorer.ids)
    ids = [*scorer.ids]
    assert len(set(ids)) == len(ids)
    assert set(bad) <= set(KINDS)
    happened = {
        "EXPOSURES": sum(len(e.items) for e in exposures),
        "CLICKS": sum(isinstance(e, Click) for e in distinct.values()),
        "MALFORMED": sum(bad.values()) + len(future),
        "DUPLICATES": len(events) - len(distinct),
    }
    assert {name: value(counter) - before[name] for name, counter in counters.items()} == happened
    assert min(happened.values()) > 0
    assert labelled(simulator_metrics.PAGES) - pages_before == len(exposures)

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


def test_keys_are_the_users_and_random_pages_do_not_judge_the_oracle(
    make_scorer: Callable[..., FakeScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many shoppers come as the settings say, too."""
    judged: list[int] = []
    monkeypatch.setattr(OracleAuc, "add", lambda _, ts_ms, chances, clicked: judged.append(len(clicked)))
    before = {arm: value(simulator_metrics.PAGE_EXPOSURES.labels(arm)) for arm in ARMS}
    sink, settings = Recorder(), msgspec.structs.replace(settings_for(make_scorer()), shoppers=USERS)
    run(settings, threading.Event(), ShopOptions(max_pages=30, rates=FaultRates(malformed=0)), sink)
    assert sum(topic == "users" for topic, _, _ in sink.messages) == World(SEED, USERS).shoppers.n
    events = [(key, json.loads(raw)) for topic, key, raw in sink.messages if topic == "events"]
    assert len(events) > 30
    for key, event in events:
        assert key == str(event["user_id"]).encode()
    grown = {arm: value(simulator_metrics.PAGE_EXPOSURES.labels(arm)) - n for arm, n in before.items()}
    assert sum(judged) == grown["model"]
    assert grown["control"] > 0


LIST_PAGE = {"request_id": None, "model_version": -1, "arm": "lists", "ts_ms": 1, "notes": ["made of the shop's lists"]}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"error": "restarting"}, 503),
        (LIST_PAGE | {"items": [{"item_id": "7", "position": 0, "score": None}]}, 200),
    ],
    ids=["not ready", "page of lists"],
)
def test_an_outage_of_the_scorer_is_waited_out(
    make_scorer: Callable[..., FakeScorer], answer: dict[str, Any], status: int
) -> None:
    def trouble(n: int) -> web.Response | None:
        return web.json_response(answer, status=status) if 10 <= n < 30 else None

    scorer, sink = make_scorer(trouble=trouble), Recorder()
    scorer.ready_after = 2
    before = value(simulator_metrics.REQUEST_ERRORS)
    run(settings_for(scorer), threading.Event(), ShopOptions(users=USERS, max_pages=40), sink)
    events, _ = sink.events()
    pages = {e.request_id for e in events if isinstance(e, Exposure)}
    assert value(simulator_metrics.REQUEST_ERRORS) - before == 20
    assert len(pages) >= 40
    # A try that failed has its own id: the scorer may have logged its page log.
    ids = [*scorer.ids]  # now: what was on its way as the shop closed comes still
    assert len(set(ids)) == len(ids) >= 60
    assert not pages & set(ids[9:29])


def test_what_the_broker_gives_back_is_sent_again(make_scorer: Callable[..., FakeScorer]) -> None:
    def trouble(n: int) -> BaseException | None:
        if n % 50 == 0:
            return ConnectionError("given back")
        return KafkaTimeoutError("no room") if n == 777 else None

    sink, whole = Recorder(trouble), Recorder()
    options = ShopOptions(users=USERS, max_pages=20, rates=FaultRates(malformed=0))
    run(settings_for(make_scorer()), threading.Event(), options, sink)
    run(settings_for(make_scorer()), threading.Event(), options, whole)
    assert sorted(sink.of("users")) == sorted(whole.of("users"))
    events, _ = sink.events()
    pages = {e.request_id for e in events if isinstance(e, Exposure)}
    assert pages == {t.request_id for t in map(decode_truth, sink.of("truth"))}


def test_open_loop_shows_its_own_pages_and_has_them_logged_and_a_restart_repeats_no_request_id(
    make_scorer: Callable[..., FakeScorer],
) -> None:
    scorer, sink = make_scorer(), Recorder()
    for _ in range(2):
        run(settings_for(scorer), threading.Event(), ShopOptions(users=USERS, max_pages=30, open_loop=True), sink)
    events, _ = sink.events()
    asked = {b["request_id"]: b for b in scorer.bodies}
    assert len(asked) == len([*scorer.ids])
    exposures = [e for e in events if isinstance(e, Exposure)]
    assert exposures
    for page in exposures:
        assert asked[page.request_id]["items"] == page.items
        assert asked[page.request_id]["log"] is True
        assert len(set(page.items)) == len(page.items)


def test_it_stops_when_asked_even_while_waiting(make_scorer: Callable[..., FakeScorer]) -> None:
    scorer, sink, stop = make_scorer(), Recorder(), threading.Event()
    scorer.ready_after = 10**9
    role = threading.Thread(target=run, args=(settings_for(scorer), stop, ShopOptions(users=USERS), sink))
    role.start()
    until(lambda: scorer.asked_ready > 0, "it waits for the scorer")
    stop.set()
    role.join(PATIENCE)
    assert not role.is_alive()
    assert sink.closed
    assert not sink.of("events")
