"""Playing a log through the loop: every page, every action, at its time, attributes first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import LogError
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Action, Click, Exposure, Item, decode_item, decode_user
from millrace.contracts.schema import parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import read_log
from millrace.processes.wall import event_now_ms, wall_ms
from simulator import outbox, playback
from simulator.daylog import write_days
from simulator.playback import PlaybackOptions, first_ms, play
from simulator.script import CLICK_AFTER_MS, Script
from tests.scenes.waiting import PATIENCE, until
from tests.simulator.simulator_doubles import FakeScorer, Recorder

T0 = 1_650_000_000_000
NEAR_DAYS = 300
SCHEMA = """
name = "small"
[log]
time = "when"
user = "who"
item = "what"
label = "hit"
[[fields]]
name = "who"
of = "user"
[[fields]]
name = "mood"
of = "user"
[[fields]]
name = "what"
of = "item"
[[fields]]
name = "size"
of = "item"
kind = "numeric"
[[fields]]
name = "tab"
of = "context"
[[fields]]
name = "hour"
of = "context"
"""
ROWS = """when,who,what,hit,mood,size,tab
{0},ann,11,0,glad,1.5,home
{1},bob,11,1,,1.5,search
{2},ann,12,0,sad,,home
{3},ann,11,1,sad,2.5,home
"""


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A log without pages or action times, in which attributes change; and its schema."""
    log, schema = tmp_path / "log.csv", tmp_path / "schema.toml"
    log.write_text(ROWS.format(*(T0 + 60_000 * k for k in range(4))))
    schema.write_text(SCHEMA)
    return log, schema


@pytest.fixture
def make_scorer() -> Iterator[Callable[..., FakeScorer]]:
    made: list[FakeScorer] = []

    def make(**options: Any) -> FakeScorer:
        made.append(FakeScorer([1], **options))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is this near to the clock is not moved, so the clock may have run for a while when playing begins."""
    for module in (playback, outbox):
        monkeypatch.setattr(module, "MAX_AHEAD_MS", NEAR_DAYS * DAY_MS)


def settings_at(scorer: FakeScorer, event_ms: int, speed: float, schema: Path | None = None) -> Settings:
    clock = EventClock(wall_ms(), event_ms, speed).encode()
    return Settings(scorer=scorer.url, clock=clock, schema=str(schema) if schema else "")


def test_a_log_without_pages(small: tuple[Path, Path], make_scorer: Callable[..., FakeScorer]) -> None:
    log, schema = small
    scorer, sink = make_scorer(), Recorder()
    settings = settings_at(scorer, T0, 2000.0, schema)
    play(settings, threading.Event(), PlaybackOptions(log, quiet=True, concurrency=1), sink)
    assert sink.flushed
    assert sink.closed
    assert sink.headers == settings.event_clock().headers != []
    events, bad = sink.events()
    assert not bad
    pages = [e for e in events if isinstance(e, Exposure)]
    assert [(p.user_id, p.items, p.ts_ms) for p in pages] == [
        ("ann", [11], T0),
        ("bob", [11], T0 + 60_000),
        ("ann", [12], T0 + 120_000),
        ("ann", [11], T0 + 180_000),
    ]
    clicks = [e for e in events if isinstance(e, Click)]
    assert [(c.user_id, c.ts_ms) for c in clicks] == [
        ("bob", T0 + 60_000 + CLICK_AFTER_MS),
        ("ann", T0 + 180_000 + CLICK_AFTER_MS),
    ]
    assert [b["context"] for b in scorer.bodies] == [{"tab": t} for t in ("home", "search", "home", "home")]
    assert all(b["log"] is True for b in scorer.bodies)
    assert [b["request_id"] for b in scorer.bodies] == [p.request_id for p in pages]
    # First appearances before the play, changes when they come; what is missing is left out.
    users = [decode_user(raw) for raw in sink.of("users")]
    assert [(u.user_id, u.attributes) for u in users] == [
        ("ann", {"mood": "glad"}),
        ("bob", {}),
        ("ann", {"mood": "sad"}),
    ]
    items = [item for raw in sink.of("items") if isinstance(item := decode_item(raw), Item)]
    assert [(i.item_id, i.attributes) for i in items] == [(11, {"size": 1.5}), (12, {}), (11, {"size": 2.5})]
    topics = [t for t, _, _ in sink.messages]
    assert topics.index("events") > [k for k, t in enumerate(topics) if t == "users"][1]


def test_a_day_of_the_shop_comes_through_whole(tmp_path: Path, make_scorer: Callable[..., FakeScorer]) -> None:
    write_days(tmp_path, 1, seed=1, users=12)
    schema = shop_schema()
    table = read_log(tmp_path, schema).table
    scorer, sink = make_scorer(), Recorder()
    settings = settings_at(scorer, first_ms(tmp_path, schema), 40_000.0)
    play(settings, threading.Event(), PlaybackOptions(tmp_path, quiet=True), sink)
    events, bad = sink.events()
    assert not bad
    assert len({e.event_id for e in events}) == len(events)
    pages = {e.request_id: e for e in events if isinstance(e, Exposure)}
    assert len(pages) == len(set(table["request_id"].to_pylist()))
    seen = sorted((p.ts_ms, p.user_id, item, slot) for p in pages.values() for slot, item in enumerate(p.items))
    names = ("ts_ms", "user_id", "item_id", "position")
    assert seen == sorted(zip(*(table[n].to_pylist() for n in names), strict=True))
    for kind in ("click", "collect", "cart", "purchase"):
        times = f"{kind}_ms"
        reported = [e for e in events if isinstance(e, Action) and type(e).__name__.lower() == kind]
        done = table.filter(table[times].is_valid())
        assert sorted((a.user_id, a.item_id, a.position, a.ts_ms) for a in reported) == sorted(
            zip(*(done[n].to_pylist() for n in ("user_id", "item_id", "position", times)), strict=True)
        )
    for action in (e for e in events if isinstance(e, Action)):
        assert pages[action.request_id].items[action.position] == action.item_id
    # An item's age comes through as the time of its birth.
    item = decode_item(sink.of("items")[0])
    assert isinstance(item, Item)
    first = table.filter(table["item_id"].to_numpy() == item.item_id).slice(0, 1).to_pylist()[0]
    assert (first["ts_ms"] - item.born_ms) / 86_400_000 == pytest.approx(first["age_days"], abs=1e-4)
    assert set(item.attributes) == {"parent_category", "category", "shop_id", "price_band", "price", "min_order"}


def test_a_gap_in_a_page_makes_two_of_it(tmp_path: Path) -> None:
    text = SCHEMA.replace('label = "hit"', 'label = "hit"\nrequest = "page"\nposition = "slot"')
    log = tmp_path / "log.csv"
    rows = [("x", 1, 7, 0), ("x", 0, 5, 1), ("y", 0, 5, 0), ("x", 4, 9, 1)]
    lines = [f"{T0 + k},ann,{item},{hit},glad,1,home,{page},{slot}" for k, (page, slot, item, hit) in enumerate(rows)]
    log.write_text("\n".join(["when,who,what,hit,mood,size,tab,page,slot", *lines]) + "\n")
    schema = parse_schema(text)
    scenes = list(Script(read_log(log, schema), schema).scenes())
    assert [(s.items, s.first_position, s.ts_ms) for s in scenes] == [
        ([5, 7], 0, T0),
        ([9], 4, T0 + 3),
        ([5], 0, T0 + 2),
    ]
    assert [bool(t[0]) for s in scenes for t in s.times] == [True, False, True, False]


def test_a_log_of_another_time_is_moved_to_now(
    small: tuple[Path, Path], make_scorer: Callable[..., FakeScorer]
) -> None:
    log, schema = small
    now = T0 + (NEAR_DAYS + 100) * 86_400_000
    scorer, sink = make_scorer(), Recorder()
    settings = settings_at(scorer, now, 2000.0, schema)
    play(settings, threading.Event(), PlaybackOptions(log, quiet=True), sink)
    events, _ = sink.events()
    pages = sorted(e.ts_ms for e in events if isinstance(e, Exposure))
    assert now <= pages[0] <= pages[-1] <= event_now_ms(settings.event_clock())
    assert [b - pages[0] for b in pages] == [0, 60_000, 120_000, 180_000]
    assert len(events) == 6


def not_logged() -> web.Response:
    """What the scorer answers to a page with an item that it does not know."""
    return web.json_response({"request_id": None, "scores": [None], "unknown_items": [11], "notes": ["not logged"]})


def test_a_page_whose_items_are_not_known_yet_is_sent_again(
    small: tuple[Path, Path], make_scorer: Callable[..., FakeScorer]
) -> None:
    def trouble(n: int) -> web.Response | None:
        return not_logged() if n <= 3 else None

    log, schema = small
    scorer, sink = make_scorer(trouble=trouble), Recorder()
    play(settings_at(scorer, T0, 2000.0, schema), threading.Event(), PlaybackOptions(log, quiet=True), sink)
    events, _ = sink.events()
    assert sum(isinstance(e, Exposure) for e in events) == 4
    assert len(set(scorer.ids)) == len(scorer.ids) == 7


def test_a_page_whose_items_stay_unknown_is_given_up(
    small: tuple[Path, Path], make_scorer: Callable[..., FakeScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.playback.REFUSALS", 1)
    log, schema = small
    scorer, sink = make_scorer(trouble=lambda n: not_logged()), Recorder()
    play(settings_at(scorer, T0, 2000.0, schema), threading.Event(), PlaybackOptions(log, quiet=True), sink)
    assert sink.events()[0] == [], "events of a page that is not logged would be dead letters"
    assert scorer.requests == 2 * 4, "each of four pages was tried once more"


def test_it_stops_when_asked(small: tuple[Path, Path], make_scorer: Callable[..., FakeScorer]) -> None:
    log, schema = small
    scorer, sink, stop = make_scorer(), Recorder(), threading.Event()
    settings = settings_at(scorer, T0, 0.001, schema)  # the second page is a day's wait away
    role = threading.Thread(target=play, args=(settings, stop, PlaybackOptions(log, quiet=True), sink))
    role.start()
    until(lambda: scorer.requests > 0, "it plays")
    stop.set()
    role.join(PATIENCE)
    assert not role.is_alive()
    assert sink.closed


def test_a_log_that_is_not_there(small: tuple[Path, Path]) -> None:
    log, schema = small
    settings = Settings(scorer="http://127.0.0.1:1", schema=str(schema))
    with pytest.raises(LogError, match=r"absent\.csv"):
        play(settings, threading.Event(), PlaybackOptions(log.with_name("absent.csv"), quiet=True), Recorder())
