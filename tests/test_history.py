"""Start from history: what a log leaves is what a loop that lived through it has."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from learner.dense import threads
from learner.progressive import Progressive
from learner.repeats import Repeats
from learner.trainer import Trainer
from millrace.bench.history import _from, _from_store, _live, _Pages
from millrace.bench.historytwin import LiveLoop
from millrace.contracts.clock import EventClock
from millrace.contracts.errors import LogError, SchemaError, SettingError
from millrace.contracts.events import Click, Exposure, Item, User, key_of, to_json
from millrace.contracts.hashing import kafka_partition
from millrace.contracts.online import PROFILE, RECENT, pack_profile, window_field
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.store import Store
from millrace.contracts.topics import EVENTS, ITEMS, USERS
from millrace.history.events import LogEvents
from millrace.history.fill import Recent, cut_ms, fill, pending
from millrace.history.into import Left, check_empty, check_schema, leave
from millrace.history.people import items_of, users_of
from millrace.logs import LogTable, read_log
from millrace.processes.kafka import make_producer, open_broker, read_all
from millrace.processes.profiles import PLACE, leave_profiles, publish_profiles
from millrace.processes.services import EmbeddedBroker
from millrace.processes.wall import wall_ms
from millrace.replay.logfeatures import LogRows
from scorer import checkpoint
from scorer.checkpoint import TilePart
from scorer.index import ItemIndex
from scorer.rank import Ranker
from scorer.rank import User as Known
from scorer.shelf import Shelf
from simulator.daylog import write_days
from stream.partition import Message, Partition, Policy

SCHEMA = shop_schema()
PARTITIONS = 3
SHOPPERS = 60


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two days of few shoppers."""
    return write_days(tmp_path_factory.mktemp("days"), 2, 5, "2026-02-26", SHOPPERS, quiet=True)


@pytest.fixture(scope="module")
def yesterday(days: list[Path]) -> LogTable:
    return read_log(days[0], SCHEMA)


class Settled:
    """A log's events, with features that are all different, as a replay would have made them."""

    def __init__(self, log: LogTable, schema: Schema, policy: Policy) -> None:
        self.rows = LogRows(log, schema)
        self.events = LogEvents(log, schema, self.rows, policy.life_ms)
        self.num = np.random.default_rng(0).random((self.rows.n, schema.layout.N), np.float32)
        plain = self.rows.columns(slice(0, self.rows.n))[1]
        for i, field in enumerate(schema.layout.plain_fields):  # means are made of these
            self.num[:, i] = plain[field.name]

    def recent(self, from_ms: int) -> Recent:
        first = int(np.searchsorted(self.rows.ts_ms, from_ms))
        return Recent(first, self.num[first:], np.full(self.rows.n - first, 0.25, np.float32))

    def fill(self, schema: Schema, policy: Policy, from_ms: int) -> list[Partition]:
        return fill(self.events, self.rows, schema, policy, PARTITIONS, self.recent(from_ms), from_ms)


def state(partition: Partition) -> dict[str, Any]:
    """All that a partition is, in an order of its own; without how far a sweep through memory is."""
    snapshot = partition.snapshot()
    head = {name: value for name, value in snapshot.head.items() if name not in ("users", "owners", "sweep")}
    users, bounds, keys = snapshot.head["users"]
    changed = {str(u): sorted(keys[bounds[i] : bounds[i + 1]].tolist()) for i, u in enumerate(users)}
    ids, who, owned = snapshot.head["owners"]
    owners = {key: ids[w] for w, key in zip(who.tolist(), owned.tolist(), strict=True)}
    alive = np.sort(partition.windows.keys())
    tiles = dict(zip(alive.tolist(), partition.windows.export(alive), strict=True))
    items = np.unique(np.concatenate(snapshot.items)).tolist() if snapshot.items else []
    rest = {"changed": changed, "owners": owners, "tiles": tiles, "items": items}
    return head | rest | {"shared": snapshot.shared.tolist(), "coclicks": snapshot.coclicks.plain()}


MEANS = """\
name = "means"
[[fields]]
name = "user_id"
of = "user"
[[fields]]
name = "age_band"
of = "user"
[[fields]]
name = "item_id"
of = "item"
[[fields]]
name = "price"
of = "item"
kind = "numeric"
[windows]
days = [1, 7]
half_lives = [0.25]
actions = ["exposure", "click", "purchase"]
keys = [{columns = ["item_id"]}, {columns = ["user_id"]}, {columns = ["age_band"]}]
means = [{of = "price", action = "click", step = 0.01}]
[log]
time = "ts_ms"
user = "user_id"
item = "item_id"
label = "click"
attribution_minutes = 5
action_times = { click = "click_ms", purchase = "purchase_ms" }
"""


@pytest.mark.parametrize("schema", [SCHEMA, parse_schema(MEANS, "means")], ids=["shop", "means, no requests"])
def test_partitions_filled_in_bulk_are_those_that_took_every_message(days: list[Path], schema: Schema) -> None:
    """The plain way is the reference: each page an impression and an exposure, each act a message."""
    policy = Policy.of(Settings())
    log = read_log(days[0], schema)
    made = Settled(log, schema, policy)
    from_ms = cut_ms(made.events.end_ms, policy)
    assert 0 < int(np.searchsorted(made.events.page_ms, from_ms)) < made.events.pages  # both ways are used
    bulk, plain = made.fill(schema, policy, from_ms), made.fill(schema, policy, 0)
    assert pending(bulk) == pending(plain) == 0
    for ours, reference in zip(bulk, plain, strict=True):
        assert ours.window_keys > 100
        one, other = state(ours), state(reference)
        join, lived = list(one.pop("join")), list(other.pop("join"))
        watermark, gone, known = join[0], join.pop(3), lived.pop(3)
        assert join == lived
        # A page whose end came late, since its partition was silent, is remembered for longer by whoever saw it end.
        assert set(gone) <= set(known)
        assert all(until_ms > watermark for _, until_ms, _ in gone)
        assert one == other


def test_a_partition_goes_on_from_its_past_as_one_that_lived_it(yesterday: LogTable) -> None:
    """A late click on a page of the log is a correction; one on a page that is long gone is a dead letter."""
    policy = Policy.of(Settings())
    made = Settled(yesterday, SCHEMA, policy)
    from_ms = cut_ms(made.events.end_ms, policy)
    partitions = made.fill(SCHEMA, policy, from_ms)
    unclicked_pages = made.events.page_of[made.rows.label == 0]
    for page, kind in ((int(unclicked_pages.max()), "correction"), (int(unclicked_pages.min()), "late")):
        rows = made.events.order[made.events.starts[page] : made.events.starts[page + 1]]
        unclicked = rows[made.rows.label[rows] == 0][:1]
        user, item = made.events.users(slice(page, page + 1))[0], made.events.items(unclicked)[0]
        place = int(made.events.place_of[unclicked[0]])
        name = made.events.names(slice(page, page + 1))[0]
        at_ms = int(made.events.page_ms[-1]) + 60_000
        click = Click("late", name, at_ms, user, item, place)
        partition = partitions[kafka_partition(key_of(user), PARTITIONS)]
        out = partition.take([Message(EVENTS, 0, to_json(click))], at_ms)
        if kind == "correction":
            assert out.samples is not None
            assert out.counts["samples.correction"] == 1
            assert np.array_equal(out.samples.num[0], made.num[unclicked[0]])
        else:
            assert out.samples is None
            assert partition.take([], at_ms).samples is None


def test_a_new_exposure_is_taken_from_offset_0(yesterday: LogTable) -> None:
    policy = Policy.of(Settings())
    made = Settled(yesterday, SCHEMA, policy)
    partition = made.fill(SCHEMA, policy, cut_ms(made.events.end_ms, policy))[0]
    user = next(u for u in range(1, 999) if kafka_partition(key_of(u), PARTITIONS) == 0)
    seen = Exposure("e", "new-page", made.events.end_ms + 10 * 60_000, user, [1, 2])
    assert partition.offsets == {}
    assert partition.take([Message(EVENTS, 0, to_json(seen))], seen.ts_ms).counts["exposures"] == 2


def test_requests_of_several_times_are_pages_of_their_own() -> None:
    columns: dict[str, Any] = {
        "ts_ms": np.array([10, 10, 20, 20, 30], np.int64) * 1000 + 1_700_000_000_000,
        "request_id": ["a", "a", "a", "b", "b"],
        "position": np.array([1, 0, 2, 0, 1], np.int64),
        "user_id": [1, 1, 1, 2, 2],
        "item_id": [5, 6, 7, 8, 9],
        "click": np.array([0, 1, 0, 0, 0], np.int8),
    }
    log = LogTable(pa.table(columns), "user_id", "item_id", "click", 5, 0)
    text = MEANS.replace("[log]", '[log]\nrequest = "request_id"\nposition = "position"')
    text = text.replace("action_times = { click", "# {").replace("means =", "# means =")
    schema = parse_schema(text.replace('"purchase"]', '"purchase"]'), "pages")
    events = LogEvents(log, schema, LogRows(log, schema), 10_000_000)
    pages = [events.order[a:b].tolist() for a, b in zip(events.starts[:-1], events.starts[1:], strict=True)]
    assert pages == [[1, 0], [2], [3], [4]]
    assert events.names(slice(None)) == ["a", "a#1", "b", "b#1"]
    assert events.items(events.order[:2]) == [6, 5]
    assert events.act_row.tolist() == [1]


def later_at(rows: LogRows, ts_ms: int) -> LogRows:
    """The rows, as if all of them were seen at one time."""
    out = copy.copy(rows)
    out.ts_ms = np.full(rows.n, ts_ms, np.int64)
    return out


# -- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, yesterday: LogTable) -> tuple[Settings, Left]:
    settings = Settings(data=str(tmp_path_factory.mktemp("data")), partitions=PARTITIONS)
    return settings, leave(yesterday, SCHEMA, settings)


def test_the_next_day_begins_as_for_a_loop_that_lived_the_day_before(
    days: list[Path], yesterday: LogTable, left: tuple[Settings, Left]
) -> None:
    settings, _ = left
    opens_ms = int(yesterday.table["ts_ms"].to_numpy()[-1]) + 9 * 3_600_000
    today = _from(read_log(days[1], SCHEMA), opens_ms)
    with threads(1):
        past = _from_store(settings, SCHEMA)
        policy = Policy.of(settings)
        fresh = [Partition(n, SCHEMA, policy, PARTITIONS) for n in range(PARTITIONS)]
        twin = LiveLoop(SCHEMA, fresh, Trainer(past.trainer.model, Progressive(100), Repeats(1), 10**9))
        _live(twin, yesterday, SCHEMA)  # it learns nothing here: what is compared are counts
        pages = [_Pages(), _Pages()]
        for loop, into in zip((past, twin), pages, strict=True):
            for partition in loop.partitions:
                partition.advance(opens_ms)
            _live(loop, today, SCHEMA, into, 500)
    assert sum(len(rows) for rows in pages[0].rows) >= 500
    assert any(num.any() for _, num in pages[0].features)
    for (cat, num), (other_cat, other_num) in zip(pages[0].features, pages[1].features, strict=True):
        assert np.array_equal(cat, other_cat)
        assert np.array_equal(num, other_num)


def test_the_scorer_makes_a_first_page_of_it(
    days: list[Path], yesterday: LogTable, left: tuple[Settings, Left]
) -> None:
    """The scorer's own ranking, on the item index as it is loaded and the user's record as the stream fills it."""
    settings, found = left
    loop = _from_store(settings, SCHEMA)
    rows = LogRows(yesterday, SCHEMA)
    builder = rows.builder
    index = ItemIndex(builder)
    store = Store(settings.place("index"))
    ((_, manifest),) = list(checkpoint.manifests(store, lambda name, error: pytest.fail(str(error))))
    tiles: dict[int, list[TilePart]] = {}
    for file in manifest.parts:
        part = checkpoint.read_part(store, file)
        if isinstance(part, TilePart):
            tiles.setdefault(part.partition, []).append(part)
        else:
            index.put_image(part)
    for number, parts in tiles.items():
        index.put_store(number, checkpoint.store_of(parts, SCHEMA.windows))
    assert len(index) == found.items == len(items_of(yesterday, SCHEMA, rows))
    now_ms = found.end_ms + 3_600_000
    shelf = Shelf(builder)
    shelf.follow(lambda: index.changes(now_ms))
    people = {str(user.user_id): user for user in users_of(yesterday, SCHEMA, rows)}
    records: dict[str, dict[bytes, bytes]] = {
        name: {PROFILE: pack_profile(user.attributes)} for name, user in people.items()
    }
    for partition in loop.partitions:
        for whole in partition.whole():
            for user_id, lists in whole.users:
                records[str(user_id)] |= {window_field(key): blob for key, blob in lists}
            for user_id, raw in whole.recents:
                records[str(user_id)][RECENT] = raw
    assert any(RECENT in record for record in records.values())
    today = read_log(days[1], SCHEMA)
    later = LogRows(today, SCHEMA)
    known = {str(i): n for n, i in enumerate(index.ids)}
    ranker, compared = Ranker(builder, shelf), 0
    for row in range(0, later.n, 11):
        user_id, item_id = today.table["user_id"][row].as_py(), today.table["item_id"][row].as_py()
        if str(user_id) not in records or str(item_id) not in known:
            continue
        mine = np.array([row])
        at = np.array([known[str(item_id)]], np.intp)
        user = Known.of(builder, user_id, records[str(user_id)])
        ranked = ranker.rank(user, at, now_ms, {}, loop.trainer.model)
        home = kafka_partition(key_of(user_id), PARTITIONS)
        moment = later_at(later, now_ms)
        counts_keys, num = loop.features(moment, mine, home)
        assert np.array_equal(ranked.keys, counts_keys)
        window = SCHEMA.layout.window_start
        assert np.array_equal(ranked.num[:, window:], num[:, window:])
        compared += int(num[:, window:].any())
    assert compared > 20


# -- what is refused, and what is published --------------------------------------------------------------------------


def test_a_folder_in_which_a_loop_has_lived_is_refused(yesterday: LogTable, left: tuple[Settings, Left]) -> None:
    with pytest.raises(SettingError, match=r"is not empty: a loop has lived there .*; name an empty folder"):
        leave(yesterday, SCHEMA, left[0])


def test_a_log_that_ends_in_the_future_is_refused(yesterday: LogTable, tmp_path: Path) -> None:
    begins_ms = int(yesterday.table["ts_ms"].to_numpy()[0])
    clock = EventClock(wall_ms(), begins_ms, 1e-6)
    settings = Settings(data=str(tmp_path), clock=clock.encode())
    with pytest.raises(LogError, match=r"the log's last event is \d+\.\d hours after now"):
        leave(yesterday, SCHEMA, settings)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (msgspec.structs.replace(SCHEMA, log=None), r"has no \[log\] section"),
        (
            msgspec.structs.replace(SCHEMA, fields=tuple(f for f in SCHEMA.fields if f.of != "item"), crosses=()),
            "has no fields of users, or none of items",
        ),
    ],
    ids=["no log", "no items"],
)
def test_a_schema_that_no_live_loop_could_go_on_with_is_refused(schema: Schema, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=problem):
        check_schema(schema)


def test_users_and_items_are_as_they_were_last(yesterday: LogTable) -> None:
    rows = LogRows(yesterday, SCHEMA)
    users, items = users_of(yesterday, SCHEMA, rows), items_of(yesterday, SCHEMA, rows)
    assert len(users) == len(set(yesterday.table["user_id"].to_pylist()))
    table = yesterday.table.slice(rows.n - 1).to_pylist()[0]
    (last,) = [item for item in items if item.item_id == table["item_id"]]
    assert last.attributes["category"] == table["category"]
    assert abs(last.born_ms - (table["ts_ms"] - table["age_days"] * 86_400_000)) < 1000


def test_users_and_items_are_published_once_and_never_over_what_the_shop_said(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "broker") as broker:
        settings = Settings(kafka=broker.address, data=str(tmp_path / "data"), idempotence=False, partitions=2)
        open_broker(settings)
        assert publish_profiles(settings) == 0  # there is no history
        mine = [User(1, {"region": "r1"}), User(2, {"region": "r2"})]
        leave_profiles(Store(settings.place(PLACE)), mine, [Item("a", {"category": "c1"})])
        producer = make_producer(settings)
        producer.send(USERS, to_json(User(2, {"region": "newer"})), key=key_of(2))
        producer.flush()
        producer.close()
        assert publish_profiles(settings) == 2
        assert publish_profiles(settings) == 0
        found: dict[bytes, list[bytes]] = {}
        for topic in (USERS, ITEMS):
            read_all(settings, topic, lambda record: found.setdefault(record.key, []).append(record.value))
        assert found == {
            b"1": [to_json(mine[0])],
            b"2": [to_json(User(2, {"region": "newer"}))],
            b"a": [to_json(Item("a", {"category": "c1"}))],
        }
        producer = make_producer(settings)
        producer.send(EVENTS, b"{}")
        producer.flush()
        producer.close()
        empty = msgspec.structs.replace(settings, data=str(tmp_path / "other"))
        with pytest.raises(SettingError, match=r"topic 'events' at '.*' holds 1 messages"):
            check_empty(empty)
