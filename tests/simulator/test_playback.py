"""Playing a log through the loop: every page, every action, at its time, attributes first; and the logs that
worlds make: days, feeds, orders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.errors import LogError
from millrace.basics.ranking_metrics import calibration, within
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Action, Click, Exposure, Item, decode_item, decode_user
from millrace.contracts.schema import parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import local_days, read_log
from millrace.processes.wall import event_now_ms, wall_ms
from simulator import outbox, playback
from simulator.daylog import _exposures_of_one, day_table, parse_day, write_days, write_traffic
from simulator.params import CONFOUNDED, DEFAULT, FEED, UTC_OFFSET_MS, WORLDS
from simulator.playback import PlaybackOptions, first_ms, play
from simulator.script import CLICK_AFTER_MS, Script
from simulator.world import PagePolicy, World, start_of
from tests.scenes.schemas import named, of_context, of_item, of_user
from tests.scenes.waiting import PATIENCE, until
from tests.simulator.simulator_doubles import FakeScorer, Recorder

T0 = 1_650_000_000_000
NEAR_DAYS = 300
FIELDS = of_user("who", "mood") + of_item("what", "size:numeric") + of_context("tab", "hour")
LOG = {"time": "when", "user": "who", "item": "what", "label": "hit"}
SCHEMA = named("small", log=LOG) + FIELDS
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
    text = named("small", log={**LOG, "request": "page", "position": "slot"}) + FIELDS
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


# -- Feeds: items age in hours, users tire, pages have 5 to 100 items; and one whose long pages confound ---------------


MONDAY = 20_514


@pytest.fixture(scope="module")
def feed() -> World:
    return World(7, 200, FEED)


def test_worlds_are_named_and_the_shop_is_as_it_was() -> None:
    assert WORLDS["shop"] is DEFAULT
    assert World(0, 600).intercept == pytest.approx(-2.8110687129560574, abs=1e-12)


def test_pages_have_five_to_a_hundred_items_all_on_sale_and_none_twice(feed: World) -> None:
    day, visits = feed.day(MONDAY), feed.visits(MONDAY)
    assert visits.size.min() == 5
    assert 90 < visits.size.max() <= 100
    assert (visits.size < 20).mean() > 0.3
    assert (visits.size > 40).mean() > 0.1
    rows = PagePolicy(feed, day).pages(visits, np.arange(visits.n))
    for view in range(0, visits.n, 7):
        page = rows[view, : visits.size[view]]
        assert len(set(page.tolist())) == len(page)
        assert day.alive(int(visits.start_ms[view]), page).all()
        alone = PagePolicy(feed, day).pages(visits, np.array([view]))[0]
        assert (alone[: len(page)] == page).all()


def test_an_item_ages_in_hours(feed: World) -> None:
    day = feed.day(MONDAY)
    born = day.inventory.born_ms
    row = np.array([int(np.flatnonzero(born >= start_of(MONDAY))[0])])
    ages = [day.affinity(3, row, int(born[row[0]]) + hours * HOUR_MS)[0] for hours in (0, 6, 12, 240)]
    assert [a - ages[-1] for a in ages[:3]] == pytest.approx([FEED.fresh, FEED.fresh / 2, FEED.fresh / 4], abs=1e-6)


def test_a_user_tires_within_a_session(feed: World) -> None:
    visits = feed.visits(MONDAY)
    assert (visits.shift[visits.page == 0] == 0).all()
    for session in np.unique(visits.session[visits.page > 1])[:50].tolist():
        own = np.flatnonzero(visits.session == session)
        assert all(late < early for early, late in pairwise(visits.shift[own[np.argsort(visits.page[own])]]))


def hourly(item: NDArray[np.int64], ts_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Exposures of each row's item in the hour before it. (n,)"""
    found = np.zeros(len(item))
    for one in np.unique(item):
        rows = np.flatnonzero(item == one)
        own = ts_ms[rows]
        found[rows] = np.searchsorted(own, own) - np.searchsorted(own, own - HOUR_MS)
    return found


def order_of_long_pages(table: Any, score: NDArray[Any]) -> float:
    """AUC of a page, of those longer than a page of the shop."""
    page = np.unique(table["request_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    long = np.bincount(page)[page] > 20
    return within(score[long], table["click"].to_numpy()[long], page[long])["page_auc"]


@pytest.mark.parametrize("seed", [0, 3])
def test_counts_order_long_pages_of_the_confounded_feed_backwards(seed: int) -> None:
    orders = {}
    for name in ("feed", "confounded"):
        table = day_table(World(seed, 300, WORLDS[name]), MONDAY)
        counts = hourly(table["item_id"].to_numpy(), table["ts_ms"].to_numpy())
        orders[name] = order_of_long_pages(table, counts), order_of_long_pages(table, table["p_true"].to_numpy())
    assert orders["confounded"][0] < 0.4
    assert orders["confounded"][1] > 0.75, "the order is there for who sees more than counts"
    assert orders["feed"][0] > 0.45, "it is the planted pages, not the world's shape"


def test_long_pages_divide_attention(feed: World) -> None:
    visits = World(7, 200, CONFOUNDED).visits(MONDAY)
    assert (visits.size == feed.visits(MONDAY).size).all()
    first = visits.page == 0
    assert visits.shift[first] == pytest.approx(-np.log(visits.size[first] / 20))


# -- Orders that come days later, and returns --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return day_table(World(3, 3000, WORLDS["orders"]), MONDAY)


def column(table: pa.Table, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = table[name].fill_null(0).to_numpy()
    return values


def test_orders_come_within_thirty_days_of_their_click(table: pa.Table) -> None:
    click, order, refund = (column(table, name) for name in ("click_ms", "order_ms", "refund_ms"))
    bought = order > 0
    delay = (order - click)[bought]
    assert (click[bought] > 0).all()
    assert delay.min() > 0
    assert delay.max() < 30 * DAY_MS
    assert 0.4 < (delay < DAY_MS).mean() < 0.6, "half of them within a day"
    returned = refund > 0
    assert (refund[returned] > order[returned]).all()
    assert (refund[returned] <= click[returned] + 30 * DAY_MS - HOUR_MS).all()
    assert 0.05 < returned.sum() / bought.sum() < 0.15
    kept = column(table, "purchase_ms")
    assert (kept == np.where(returned, 0, order)).all()


def test_business_buyers_order_on_workdays(table: pa.Table) -> None:
    order = column(table, "order_ms")
    weekday = ((order + UTC_OFFSET_MS) // DAY_MS + 3) % 7
    business = pc.equal(table["kind"], "business").to_numpy() & (order > 0)
    assert not (weekday[business] > 4).any()
    assert (weekday[~business & (order > 0)] > 4).any()


def test_the_chance_is_that_of_the_world(table: pa.Table) -> None:
    clicked = column(table, "click") == 1
    kept = (column(table, "purchase_ms") > 0)[clicked]
    chance = column(table, "p_purchase")[clicked]
    low = chance < np.median(chance)
    assert calibration(chance, kept.astype(np.float32)) == pytest.approx(1, abs=0.1)
    assert kept[low].mean() == pytest.approx(chance[low].mean(), rel=0.3)


def test_the_shop_without_orders_has_no_such_columns() -> None:
    table = day_table(World(3, 50), MONDAY)
    assert not {"order_ms", "refund_ms", "p_purchase"} & set(table.column_names)


def test_the_world_depends_on_its_seed_alone() -> None:
    again = [day_table(World(seed, 100, WORLDS["orders"]), MONDAY) for seed in (1, 1, 2)]
    assert again[0].equals(again[1])
    assert not again[0]["order_ms"].equals(again[2]["order_ms"])


# -- Day logs: read by the shop's schema, the same bytes for the same seed, one day independent of another -------------


USERS = 150


def test_the_shops_schema_reads_them(tmp_path: Path) -> None:
    paths = write_days(tmp_path, 2, seed=1, start="2026-03-02", users=USERS)
    assert [p.name for p in paths] == ["shop-2026-03-02.parquet", "shop-2026-03-03.parquet"]
    assert sorted(tmp_path.iterdir()) == paths, "nothing unfinished is left"
    schema = shop_schema()
    log = read_log(tmp_path, schema)
    assert log.rows_read == sum(pq.read_metadata(p).num_rows for p in paths)
    assert log.duplicates == 0
    assert sorted(set(local_days(log, schema))) == ["2026-03-02", "2026-03-03"]
    names = set(log.table.column_names)
    assert {f.name for f in schema.fields} - {"hour", "weekday"} <= names
    # The truth is in the file, and out of reach of whoever reads it by the schema.
    assert "p_true" in pq.read_schema(paths[0]).names
    assert "p_true" not in names
    ts, click_ms = log.table["ts_ms"].to_numpy(), log.table["click_ms"]
    clicked = log.table["click"].to_numpy() == 1
    assert (click_ms.is_valid().to_numpy() == clicked).all()
    assert (click_ms.drop_null().to_numpy() > ts[clicked]).all()
    assert (log.table["age_days"].to_numpy() > 0).all()


def test_same_seed_same_bytes_and_any_day_alone(tmp_path: Path) -> None:
    both = write_days(tmp_path / "a", 2, seed=1, start="2026-03-02", users=USERS)
    again = write_days(tmp_path / "b", 1, seed=1, start="2026-03-03", users=USERS)
    other = write_days(tmp_path / "c", 1, seed=2, start="2026-03-03", users=USERS)
    assert both[1].read_bytes() == again[0].read_bytes()
    assert other[0].read_bytes() != again[0].read_bytes()


def test_business_buyers_have_no_age_and_consumers_no_seller_flag(tmp_path: Path) -> None:
    (path,) = write_days(tmp_path, 1, seed=1, users=USERS)
    table = pq.read_table(path)
    business = np.array(table["kind"].to_pylist()) == "business"
    assert 0.4 < business.mean() < 0.95
    for name in ("age_band", "gender", "household"):
        assert (table[name].is_null().to_numpy() == business).all()
    assert (table["seller"].is_valid().to_numpy() == business).all()
    assert not any("brand" in name for name in table.column_names)


@pytest.mark.parametrize(
    ("days", "start", "says"),
    [(0, "2026-03-02", "0 days"), (1, "2026-02-30", "'2026-02-30'"), (1, "1969-01-01", "'1969-01-01'")],
)
def test_what_cannot_be_written_is_reported(tmp_path: Path, days: int, start: str, says: str) -> None:
    with pytest.raises(LogError, match=says):
        write_days(tmp_path, days, seed=1, start=start, users=USERS)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(LogError, match="taken"):
        write_days(tmp_path / "taken", 1, seed=1, users=USERS)


def test_traffic_is_as_dense_as_asked_and_at_noon(tmp_path: Path) -> None:
    rate, rows = 0.5, 12_000
    (path,) = write_traffic(tmp_path, 1, rate, rows)
    table = pq.read_table(path)
    ts = table["ts_ms"].to_numpy()
    assert table.num_rows == rows
    assert np.all(np.diff(ts) >= 0)
    noon = start_of(parse_day("2026-03-03")) + 12 * HOUR_MS
    assert noon <= ts[0] < noon + HOUR_MS
    # A shopper's exposures come together or not at all: their number's deviation is the root of the sum of squares.
    _, each = np.unique(table["user_id"].to_numpy(), return_counts=True)
    seconds = (ts[-1] - noon) / 1000
    assert abs(rate * seconds - rows) < 4 * np.sqrt(np.sum(each.astype(float) ** 2))


def test_traffic_that_lasts_longer_begins_at_midnight_and_goes_on_over_days(tmp_path: Path) -> None:
    (path,) = write_traffic(tmp_path, 1, 0.1, 12_000)
    ts = pq.read_table(path)["ts_ms"].to_numpy()
    midnight = start_of(parse_day("2026-03-03"))
    assert midnight <= ts[0] < midnight + 12 * HOUR_MS
    assert ts[-1] > midnight + DAY_MS
    # A world of one user a day has the exposures of one, whatever part of the days is looked at.
    day = parse_day("2026-03-03")
    whole = _exposures_of_one(day, 0, 86_400, DEFAULT)
    assert whole == pytest.approx(DEFAULT.exposures)
    parts = _exposures_of_one(day, 0, 43_200, DEFAULT) + _exposures_of_one(day, 43_200, 43_200, DEFAULT)
    assert parts == pytest.approx(whole)
    assert _exposures_of_one(day, 0, 2 * 86_400, DEFAULT) == pytest.approx(2 * whole)


@pytest.mark.slow
def test_a_history_is_thinned_by_shopper_and_traffic_does_not_depend_on_it(tmp_path: Path) -> None:
    made = {}
    for rows in (1000, 4000):
        history, traffic = write_traffic(tmp_path / str(rows), 1, 1.0, 4000, rows)
        made[rows] = pq.read_table(history), traffic.read_bytes()
    again = write_traffic(tmp_path / "again", 1, 1.0, 4000, 1000)
    assert again[0].read_bytes() == (tmp_path / "1000/history.parquet").read_bytes()
    assert made[1000][1] == made[4000][1] == again[1].read_bytes()
    assert write_traffic(tmp_path / "other", 2, 1.0, 4000, 1000)[1].read_bytes() != made[1000][1]
    few, many = (made[k][0] for k in (1000, 4000))
    for table, rows in ((few, 1000), (many, 4000)):
        _, each = np.unique(table["user_id"].to_numpy(), return_counts=True)
        assert abs(table.num_rows - rows) < 4 * np.sqrt(np.sum(each.astype(float) ** 2))
    # Whoever is in the thinner history is in the other with the very same pages.
    own = set(few["user_id"].to_pylist())
    keep = [user in own for user in many["user_id"].to_pylist()]
    assert len(own) < len(set(many["user_id"].to_pylist()))
    assert many.filter(pa.array(keep)).equals(few)
    assert max(few["ts_ms"].to_pylist()) < start_of(parse_day("2026-03-03"))


@pytest.mark.parametrize(
    ("rate", "rows", "history", "says"),
    [
        (0.0, 10, 0, "0 exposures a second"),
        (-1.0, 10, 0, "-1 exposures"),
        (float("nan"), 10, 0, "nan exposures"),
        (1e9, 10, 0, "at most 1000"),
        (1.0, 0, 0, "0 rows"),
        (1.0, 10, -1, "history of -1"),
    ],
)
def test_traffic_that_cannot_be_written_is_reported(
    tmp_path: Path, rate: float, rows: int, history: int, says: str
) -> None:
    with pytest.raises(LogError, match=says):
        write_traffic(tmp_path, 1, rate, rows, history)
    assert not list(tmp_path.iterdir())
