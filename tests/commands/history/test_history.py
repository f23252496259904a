"""Start from history: what a log leaves is what a loop that lived through it has."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

import millrace as mr
from learner.evaluation.progressive import Progressive
from learner.network.dense import threads
from learner.ranker.repeats import Repeats
from learner.role import service
from learner.training.trainer import Trainer
from millrace.basics.durations import DAY_MS
from millrace.basics.errors import LogError, SchemaError, SettingError, StoreError
from millrace.basics.hashing import kafka_partition
from millrace.basics.store import Store
from millrace.commands.history import command, into
from millrace.commands.history.attempt import attempt, check_empty
from millrace.commands.history.command import past_windows
from millrace.commands.history.fill import RecentRows, _Filling, cut_ms, fill
from millrace.commands.history.into import Left, _Pupil, check_schema
from millrace.commands.history.into import leave as leave_in
from millrace.commands.history.logevents import LogEvents
from millrace.commands.history.people import items_of, users_of
from millrace.commands.replay.logfeatures import LogRows
from millrace.commands.replay.reading import reading
from millrace.commands.replay.stretches import Stretches
from millrace.commands.up.uprun import UpOptions, up
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Click, Exposure, Item, User, key_of, to_json
from millrace.contracts.online_layout import PROFILE, RECENT, pack_profile, window_field
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, ITEMS, USERS
from millrace.logs import LogTable, read_log
from millrace.processes import profiles
from millrace.processes.kafka import make_producer, open_broker, read_all
from millrace.processes.profiles import (
    MARKS,
    PLACE,
    STATE,
    UNFINISHED,
    WRITING,
    check_whole,
    leave_partitions,
    leave_profiles,
    publish_profiles,
)
from millrace.processes.services import EmbeddedBroker
from millrace.processes.wall import wall_ms
from millrace.reports.lines import LEFT, LINE_SECONDS, Lines
from scorer.catalog import index_checkpoint
from scorer.catalog.index_checkpoint import TilePart
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import ItemTable
from scorer.feeder import scorer_main
from scorer.page.rank import Ranker
from scorer.users.userrecord import KnownUser as Known
from simulator.daylog import write_days
from stream.partition.partition import InputMessage, Partition, Policy
from stream.worker import stream_worker
from tests.scenes.history_loop import LiveLoop, Pages, from_store, later, live
from tests.scenes.parity_shop import LAST
from tests.scenes.schemas import named, of_item, of_user, table, windows_of

SCHEMA = shop_schema()
PARTITIONS = 3
SHOPPERS = 60


def leave(log: LogTable, schema: Schema, settings: Settings) -> Left:
    """A whole try."""
    with attempt(settings) as check:
        return leave_in(check, log, schema, settings)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two days of few shoppers."""
    return write_days(tmp_path_factory.mktemp("days"), 2, 5, "2026-02-26", SHOPPERS)


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

    def recent(self, from_ms: int) -> RecentRows:
        first = int(np.searchsorted(self.rows.ts_ms, from_ms))
        late = self.rows.n - first
        return RecentRows(first, self.num[first:], np.zeros((late, 0), np.int64), np.full(late, 0.25, np.float32))

    def fill(self, schema: Schema, policy: Policy, from_ms: int) -> list[Partition]:
        return fill(self.events, self.rows, schema, policy, PARTITIONS, self.recent(from_ms), from_ms)


def state(partition: Partition) -> dict[str, Any]:
    """All that a partition is, in an order of its own; without how far a sweep through memory is."""
    snapshot, counted = partition.snapshot(), partition.counters.snapshot()
    head = snapshot.head | {name: value for name, value in counted.values.items() if name != "sweep"}
    users, bounds, keys = counted.users
    changed = {str(u): sorted(keys[bounds[i] : bounds[i + 1]].tolist()) for i, u in enumerate(users)}
    ids, who, owned = counted.owners
    owners = {key: ids[w] for w, key in zip(who.tolist(), owned.tolist(), strict=True)}
    alive = np.sort(partition.windows.keys())
    tiles = dict(zip(alive.tolist(), partition.windows.export(alive), strict=True))
    items = np.unique(counted.items).tolist()
    rest = {"changed": changed, "owners": owners, "tiles": tiles, "items": items}
    return head | rest | {"shared": counted.shared.tolist(), "coclicks": counted.coclicks.plain()}


FIELDS = named("means") + of_user("user_id", "age_band") + of_item("item_id", "price:numeric")
COUNTED: dict[str, Any] = {
    "days": [1, 7],
    "half_lives": [0.25],
    "actions": ("exposure", "click", "purchase"),
}
KEYS = ("item_id", "user_id", "age_band")
LOG: dict[str, Any] = {
    "time": "ts_ms",
    "user": "user_id",
    "item": "item_id",
    "label": "click",
    "attribution_minutes": 5,
}
MEANS = (
    FIELDS
    + windows_of(*KEYS, **COUNTED, means=({"of": "price", "action": "click", "step": 0.01},))
    + table("[log]", **LOG, action_times={"click": "click_ms", "purchase": "purchase_ms"})
)


@pytest.mark.parametrize("schema", [SCHEMA, parse_schema(MEANS, "means")], ids=["shop", "means, no requests"])
def test_partitions_filled_in_bulk_are_those_that_took_every_message(days: list[Path], schema: Schema) -> None:
    """The plain way is the reference: each page a page log and an exposure, each act a message."""
    policy = Policy.of(Settings())
    log = read_log(days[0], schema)
    made = Settled(log, schema, policy)
    from_ms = cut_ms(made.events.end_ms, policy)
    assert 0 < int(np.searchsorted(made.events.page_ms, from_ms)) < made.events.pages  # both ways are used
    bulk, plain = made.fill(schema, policy, from_ms), made.fill(schema, policy, 0)
    assert sum(partition.pending for partition in (*bulk, *plain)) == 0
    for ours, reference in zip(bulk, plain, strict=True):
        assert len(ours.windows) > 100
        one, other = state(ours), state(reference)
        join, lived = list(one.pop("join")), list(other.pop("join"))
        watermark, gone, known = join[0], join.pop(2), lived.pop(2)
        assert join == lived
        # A page whose end came late, since its partition was silent, is remembered for longer by whoever saw it end.
        assert set(gone) <= set(known)
        assert all(until_ms > watermark for _, until_ms, _ in gone)
        assert one == other


def test_the_last_pages_of_a_log_have_what_their_users_did_last(days: list[Path]) -> None:
    """As the replay has scored them: a later click on such a page is learnt with the same features."""
    text = resources.files("millrace.contracts").joinpath("shop.toml").read_text(encoding="utf-8")
    schema = parse_schema(text.replace("\n[windows]\n", f"{LAST}\n[windows]\n", 1))
    log, policy = read_log(days[0], schema), Policy.of(Settings())
    rows = LogRows(log, schema)
    events = LogEvents(log, schema, rows, policy.life_ms)
    first = rows.n // 2
    cat, num = Stretches(log, schema).of(np.arange(rows.n))
    pupil = _Pupil(schema, Settings(), first, rows.n)
    pupil.scored(np.arange(rows.n), cat, num, np.zeros(rows.n, np.float32))
    recent = RecentRows(first, pupil.num, pupil.last, np.zeros(rows.n - first, np.float32))
    filling = _Filling(events, rows, schema, policy, PARTITIONS, recent)
    later_pages = int(np.searchsorted(events.page_ms, rows.ts_ms[first], side="right"))
    compared = 0
    for page, (_, messages) in filling._page_logs(slice(later_pages, events.pages)).items():
        own = events.order[events.starts[page] : events.starts[page + 1]]
        logged = decode_page_log(messages[0].raw)
        assert bytes(logged.cat) == cat[own].astype("<i8").tobytes()
        compared += int(np.count_nonzero(cat[own][:, schema.layout.last_columns]))
    assert compared > 1000


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
        out = partition.take([InputMessage(EVENTS, 0, to_json(click))], at_ms)
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
    assert partition.take([InputMessage(EVENTS, 0, to_json(seen))], seen.ts_ms).counts["exposures"] == 2


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
    text = FIELDS + windows_of(*KEYS, **COUNTED) + table("[log]", **LOG, request="request_id", position="position")
    schema = parse_schema(text, "pages")
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


@pytest.mark.slow
def test_the_next_day_begins_as_for_a_loop_that_lived_the_day_before(
    days: list[Path], yesterday: LogTable, left: tuple[Settings, Left]
) -> None:
    settings, _ = left
    opens_ms = int(yesterday.table["ts_ms"].to_numpy()[-1]) + 9 * 3_600_000
    today = later(read_log(days[1], SCHEMA), opens_ms)
    with threads(1):
        past = from_store(settings, SCHEMA)
        policy = Policy.of(settings)
        fresh = [Partition(n, SCHEMA, policy, PARTITIONS) for n in range(PARTITIONS)]
        twin = LiveLoop(SCHEMA, fresh, Trainer(past.trainer.model, Progressive(100), Repeats(1), 10**9))
        live(twin, yesterday, SCHEMA)  # it learns nothing here: what is compared are counts
        pages = [Pages(), Pages()]
        for loop, into in zip((past, twin), pages, strict=True):
            for partition in loop.partitions:
                partition.advance(opens_ms)
            live(loop, today, SCHEMA, into, 500)
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
    loop = from_store(settings, SCHEMA)
    rows = LogRows(yesterday, SCHEMA)
    builder = rows.builder
    index = ItemIndex(builder)
    store = Store(settings.place("index"))
    ((_, manifest),) = list(index_checkpoint.manifests(store, lambda name, error: pytest.fail(str(error))))
    tiles: dict[int, list[TilePart]] = {}
    for file in manifest.parts:
        part = index_checkpoint.read_part(store, file)
        if isinstance(part, TilePart):
            tiles.setdefault(part.partition, []).append(part)
        else:
            index.put([part])
    for number, parts in tiles.items():
        index.put_store(number, index_checkpoint.store_of(parts, SCHEMA.windows))
    assert len(index) == found.items == len(items_of(yesterday, SCHEMA, rows))
    now_ms = found.end_ms + 3_600_000
    table = ItemTable(builder)
    table.follow(lambda: index.changes(now_ms))
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
    ranker, compared = Ranker(builder, table), 0
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
    ends_ms = int(yesterday.table["ts_ms"].to_numpy()[-1])
    for now_ms, said in ((begins_ms, r"[\d.]+ (h|days?)"), (ends_ms - 90_000, r"[\d.]+ min")):
        settings = Settings(data=str(tmp_path), clock=EventClock(wall_ms(), now_ms, 1e-6).encode())
        with pytest.raises(LogError, match=rf"the log's last event is {said} after now"):
            leave(yesterday, SCHEMA, settings)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def files(settings: Settings) -> list[str]:
    """All that lies in the places of a store, by name."""
    return sorted(f"{p.parent.name}/{p.name}" for p in Path(settings.data).rglob("*") if p.is_file())


def in_places(settings: Settings) -> None:
    """Writes a file into each place that a history fills."""
    for place in ("checkpoints", "models", "index", "schemas", PLACE):
        Store(settings.place(place)).put("half", None)


OVERTAKEN = "another replay has begun .*; let that one end"
MARK_GONE = "the mark of this replay, .* is gone from '.*': .*; what is there may be"
TRIES = {  # acts of a try and of another one, the error, how many files lie there then, and when the other has ended
    "what a failed try wrote is removed": ("check write fail", "disk full", 0, 0),
    "what a whole try wrote stays": ("check write", "", 5, 5),
    "of two tries the one that began last goes on": ("other other-check write check", OVERTAKEN, 7, 5),
    "one that is overtaken while it writes removes nothing of the other": (
        "check other other-check write check",
        OVERTAKEN,
        7,
        5,
    ),
    "and leaves nothing to the other": ("check other write", OVERTAKEN, 1, 0),
    "one whose mark is gone while it writes": ("check other other-ends write check", MARK_GONE, 7, 7),
    "a loop that began meanwhile keeps its files": ("write check", "a loop has lived there", 5, 5),
}


@pytest.mark.parametrize("case", TRIES)
def test_a_try_and_another_one(case: str, tmp_path: Path) -> None:
    acts, said, then, at_last = TRIES[case]
    settings = Settings(data=str(tmp_path))

    def first(other: ExitStack) -> None:
        with attempt(settings) as check:
            for act in acts.split():
                if act == "other":
                    others = other.enter_context(attempt(settings))
                elif act == "other-ends":
                    other.close()
                elif act == "write":
                    in_places(settings)
                elif act == "fail":
                    raise StoreError("disk full", "-")
                else:
                    (check if act == "check" else others)()

    with ExitStack() as other:
        if said:
            with pytest.raises((SettingError, StoreError), match=said):
                first(other)
        else:
            first(other)
        assert len(files(settings)) == then
    assert len(files(settings)) == at_last
    if said == MARK_GONE:  # what is there is not whole, or of both
        with pytest.raises(StoreError, match="is not whole"):
            check_whole(settings)
    elif at_last:
        with pytest.raises(SettingError, match=r"a loop has lived there \(checkpoints/half\)"):
            check_empty(settings)


def killed(settings: Settings, *marks: str) -> None:
    """What a try leaves that was killed when it had put these marks; if it wrote, it had written half."""
    for mark in marks:
        Store(settings.place(PLACE)).put(mark, {"token": "of one that was killed"})
    if WRITING in marks:
        in_places(settings)


def test_the_marks_of_a_try_say_how_far_it_is(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    with attempt(settings) as check:
        assert files(settings) == [f"{PLACE}/{UNFINISHED}"]
        for _ in ("a place", "the next place"):
            check()
            assert files(settings) == [f"{PLACE}/{UNFINISHED}", f"{PLACE}/{WRITING}"]
    assert files(settings) == []


def test_the_next_try_removes_what_a_killed_one_left_and_says_so(tmp_path: Path) -> None:
    settings, said = Settings(data=str(tmp_path)), list[str]()
    killed(settings, *MARKS)
    assert check_empty(settings)
    with attempt(settings, said.append):
        assert files(settings) == [f"{PLACE}/{UNFINISHED}"]
    assert said == [f"an earlier replay did not end: what it left in '{tmp_path}' is removed"]
    assert files(settings) == []


def test_a_try_that_was_killed_before_it_wrote_is_followed_by_another(tmp_path: Path) -> None:
    settings, said = Settings(data=str(tmp_path)), list[str]()
    killed(settings, UNFINISHED)
    with attempt(settings, said.append):
        pass
    assert (said, files(settings)) == ([], [])


def test_a_loop_that_began_beside_a_try_that_was_killed_keeps_its_files_and_goes_on(tmp_path: Path) -> None:
    """It had looked before the mark lay."""
    settings = Settings(data=str(tmp_path))
    killed(settings, UNFINISHED)
    Store(settings.place("checkpoints")).put("a-loops", None)
    before = files(settings)
    with pytest.raises(SettingError, match=r"a loop has lived there \(checkpoints/a-loops\)"):
        attempt(settings).__enter__()
    assert files(settings) == before
    check_whole(settings)


def stream_role(settings: Settings) -> None:
    stream_worker.run(settings, threading.Event())


def learn_role(settings: Settings) -> None:
    service.run(settings, threading.Event())


def serve_role(settings: Settings) -> None:
    scorer_main.run(settings, threading.Event())


def up_of_all(settings: Settings) -> None:
    schema = resources.files("millrace.contracts").joinpath("shop.toml")
    up(msgspec.structs.replace(settings, schema=str(schema)), UpOptions(free_ports=True))


@pytest.mark.parametrize("start", [stream_role, learn_role, serve_role, up_of_all])
@pytest.mark.parametrize("marks", [(UNFINISHED,), MARKS], ids=["it reads", "it writes"])
def test_nothing_of_a_loop_starts_on_a_history_that_is_not_whole(
    start: Callable[[Settings], None], marks: tuple[str, ...], tmp_path: Path
) -> None:
    """Nor does it write anything there, or look for a broker: there is none."""
    settings = Settings(data=str(tmp_path), kafka="127.0.0.1:1", redis="127.0.0.1:1", patience_seconds=0.1)
    killed(settings, *marks)
    before = files(settings)
    with pytest.raises(StoreError, match=r"the history in '.*' is not whole; wait for .* run it again"):
        start(settings)
    assert [name for name in files(settings) if name.split("/")[0] in (*STATE, "schemas")] == before


def test_a_folder_with_a_brokers_topics_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broker" / "topics").mkdir(parents=True)
    with pytest.raises(SettingError, match=r"a broker has its topics there \(broker/topics\)"):
        check_empty(Settings(data=str(tmp_path)))
    assert not check_empty(Settings(data=str(tmp_path / "other")))


def test_nothing_is_left_when_a_replay_fails_while_it_writes(
    yesterday: LogTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("no space left", "-")

    few = LogTable(yesterday.table.slice(0, 500), "user_id", "item_id", "click", 500, 0)
    settings = Settings(data=str(tmp_path), partitions=2)
    with monkeypatch.context() as broken:
        broken.setattr(into, "leave_profiles", full)
        with pytest.raises(StoreError, match="no space left"):
            leave(few, SCHEMA, settings)
    assert files(settings) == []
    assert leave(few, SCHEMA, settings).exposures == 500


def test_a_replay_that_is_overtaken_while_it_writes_a_place_does_not_write_the_next(
    yesterday: LogTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = LogTable(yesterday.table.slice(0, 500), "user_id", "item_id", "click", 500, 0)
    settings = Settings(data=str(tmp_path), partitions=2)
    with ExitStack() as other:
        monkeypatch.setattr(into, "leave_profiles", lambda *_: other.enter_context(attempt(settings)))
        monkeypatch.setattr(into, "write_root", lambda *_: pytest.fail("the next place was written"))
        with pytest.raises(SettingError, match="another replay has begun"):
            leave(few, SCHEMA, settings)
        assert files(settings) == [f"{PLACE}/{UNFINISHED}"]


def test_the_command_marks_the_store_before_it_reads_and_says_what_is_not_settled(
    days: list[Path],
    yesterday: LogTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings(data=str(tmp_path), partitions=PARTITIONS)
    monkeypatch.setenv("MILLRACE_PARTITIONS", str(PARTITIONS))

    @contextmanager
    def looked(*words: Any) -> Iterator[LogTable]:
        assert files(settings) == [f"{PLACE}/{UNFINISHED}"]
        with reading(*words) as table:
            yield table

    monkeypatch.setattr(command, "reading", looked)
    found = mr.bootstrap(days[0], SCHEMA, tmp_path)
    rows = yesterday.table.to_pylist()
    times = ("ts_ms", "click_ms", "collect_ms", "cart_ms", "purchase_ms")
    end_ms = max(row[name] or 0 for row in rows for name in times)
    waits_ms = settings.attribution_minutes * 60_000
    early = [row for row in rows if not row["click"] and end_ms - row["ts_ms"] < waits_ms]
    assert found["early"] == len(early) > 0
    assert not capsys.readouterr().out
    found.print()
    said = " ".join(capsys.readouterr().out.split())
    assert f"{len(early):,} of them were younger than {settings.attribution_minutes:g} min" in said
    assert said.endswith(found["verdict"])
    assert f"{found['users']:,} users" in found._repr_html_()


def test_a_log_older_than_windows_is_reported() -> None:
    shortest, *_, longest = SCHEMA.windows.days
    assert past_windows(SCHEMA, 0, round(shortest * DAY_MS) - 1) == ""
    some = past_windows(SCHEMA, 0, round(shortest * DAY_MS))
    assert (
        f"ended {shortest:.1f} days ago: windows up to {shortest} d had counts for the model, and begin empty" in some
    )
    every = past_windows(SCHEMA, 0, round(longest * DAY_MS))
    assert "every window had counts for the model, and begins empty" in every


def test_progress_is_a_line_every_few_seconds() -> None:
    said: list[str] = []
    times = iter([10.0, 12.0, 10.0 + LINE_SECONDS, 11.0 + LINE_SECONDS, 10.0 + 2 * LINE_SECONDS, 30.0])
    lines = Lines(said.append, lambda: next(times))
    for done in (0, 100, 250, 300, 500):
        lines("learning", done, 1000)
    lines("counting", 0, 50)
    assert said == ["learning 250 of 1,000 (25%), about 15 s left", "learning 500 of 1,000 (50%), about 10 s left"]
    assert all(line.endswith(LEFT) for line in said)


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


def reported(settings: Settings, *users: User, topic: str = USERS) -> None:
    """The shop tells of users."""
    with closing(make_producer(settings)) as producer:
        for user in users:
            producer.send(topic, to_json(user), key=key_of(user.user_id))
        producer.flush()


def newest(settings: Settings) -> dict[bytes, bytes | None]:
    """What each key of ``users`` stands at."""
    found: dict[bytes, bytes | None] = {}
    read_all(settings, USERS, lambda record: found.update({record.key: record.value}))
    return found


def test_the_shops_message_that_came_between_wins_whoever_publishes_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After our look at the topic, and before our message, the shop tells of user 2, and another worker of both."""
    with EmbeddedBroker(tmp_path / "broker") as broker:
        settings = Settings(kafka=broker.address, data=str(tmp_path / "data"), partitions=2)
        other = msgspec.structs.replace(settings, data=str(tmp_path / "other"))
        open_broker(settings)
        mine, newer = [User(1, {"region": "r1"}), User(2, {"region": "r2"})], User(2, {"region": "newer"})
        for one in (settings, other):
            leave_profiles(Store(one.place(PLACE)), mine, [])
        looks = 0

        def look(of: Settings, topic: str, visit: Callable[[Any], None]) -> int:
            nonlocal looks
            seen = read_all(of, topic, visit)
            looks += 1
            if looks == 1:
                reported(settings, newer)
                publish_profiles(other)
            return seen

        monkeypatch.setattr(profiles, "read_all", look)
        publish_profiles(settings)
        assert looks > 2
        assert newest(settings) == {b"1": to_json(mine[0]), b"2": to_json(newer)}


def test_a_user_of_the_history_who_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    """Whatever the topic has forgotten since, the deletion too."""
    settings = Settings(data=str(tmp_path / "data"), partitions=2)
    store = Store(settings.place(PLACE))
    mine = [User(1, {"region": "r1"}), User(2, {"region": "r2"})]
    leave_profiles(store, mine, [])
    with EmbeddedBroker(tmp_path / "broker") as broker:
        settings = msgspec.structs.replace(settings, kafka=broker.address)
        open_broker(settings)
        assert publish_profiles(settings) == 2
        with closing(make_producer(settings)) as producer:
            producer.send(USERS, None, key=key_of(1))
            producer.flush()
    with EmbeddedBroker(tmp_path / "empty") as broker:
        settings = msgspec.structs.replace(settings, kafka=broker.address)
        open_broker(settings)
        assert publish_profiles(settings) == 0
        assert newest(settings) == {}
    left = [path.name for path in Path(store.url.removeprefix("file://")).iterdir()]
    assert left == [], "no file has him"


def test_users_and_items_are_published_once_and_never_over_what_the_shop_said(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "broker") as broker:
        settings = Settings(kafka=broker.address, data=str(tmp_path / "data"), partitions=2)
        open_broker(settings)
        assert publish_profiles(settings) == 0  # there is no history
        leave_partitions(Store(settings.place(PLACE)), 4)
        with pytest.raises(SettingError, match=r"was left for 4 partitions, topic 'events' at '.*' has 2; use topics"):
            publish_profiles(settings)
        leave_partitions(Store(settings.place(PLACE)), 2)
        mine = [User(1, {"region": "r1"}), User(2, {"region": "r2"})]
        leave_profiles(Store(settings.place(PLACE)), mine, [Item("a", {"category": "c1"})])
        reported(settings, User(2, {"region": "newer"}))
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
        empty = msgspec.structs.replace(settings, data=str(tmp_path / "other"))
        with pytest.raises(SettingError, match=r"topic 'events' has 2 partitions where 3 are needed; set MILL"):
            check_empty(msgspec.structs.replace(empty, partitions=3))
        reported(settings, User(2, {}), topic=EVENTS)
        with pytest.raises(SettingError, match=r"topic 'events' at '.*' holds 1 messages"):
            check_empty(empty)
