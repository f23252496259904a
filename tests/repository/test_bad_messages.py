"""Messages that nobody should send, in process, through everything that reads a topic: each comes to a value, a dead
letter or a named error, and what follows it is taken as if it had not been there."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stream.worker.stream_output
from learner.evaluation.progressive import Progressive
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.samples.formersamples import FormerSamples
from learner.samples.viewpoint import Viewpoint
from learner.training.trainer import Trainer
from millrace.basics.errors import SchemaError, SnapshotError
from millrace.basics.hashing import kafka_partition
from millrace.commands.demo.conservation import Ledger
from millrace.contracts import coclick_message
from millrace.contracts.clock import sent_by
from millrace.contracts.events import (
    MAX_DEPTH,
    BadEventError,
    Click,
    DeadLetter,
    Exposure,
    Item,
    User,
    dead_letter_bytes,
    decode_dead_letter,
    decode_event,
    decode_item_tiles,
    decode_truth,
    is_deep,
    to_json,
)
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.profile_reader import Intake
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import (
    DEAD_LETTERS,
    EVENTS,
    FEATURES_COCLICKS,
    FEATURES_ITEMS,
    ITEMS,
    MODEL_DELTAS,
    PAGE_LOGS,
    SAMPLES,
    TRUTH,
    USERS,
)
from millrace.versions.modellog import Assembler
from millrace.versions.modellog import Bad as BadEntry
from scorer.feeder.cofeed import CoFeed
from scorer.feeder.kafka_feed import FeedConsumer, FeedRecord, ItemFeed, TileFeed, TopicFeed
from stream.partition.partition import InputMessage, Partition, Policy
from stream.worker.listkeeper import take
from stream.worker.shop_lists import ShopLists
from tests.scenes.bad_messages import PARTITIONS, VALUES, Bad, astray, corpus, deep, json_fields, json_object
from tests.scenes.feed_scene import Scene, feed, same_model
from tests.scenes.feed_scene import records as as_records
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_log import MemoryBroker
from tests.scenes.scorer_shop import ITEMS as SHOP_ITEMS
from tests.scenes.scorer_shop import NOW_MS, SCHEMA, SCHEMA_TOML, SPEC, batch, item
from tests.scenes.stream_world import resumed

TS_MS = NOW_MS - 60_000
INTAKE = Intake(SCHEMA)
MINUTE = 60_000
POLICY = Policy(attribution_ms=5 * MINUTE, disorder_ms=MINUTE, lateness_ms=20 * MINUTE, ahead_ms=60 * MINUTE)
REASONS = {"oversized", "malformed", "unknown-type", "wrong-type", "bad-value", "bad-key"}


@cache
def all_bad() -> list[Bad]:
    return corpus(SCHEMA, TS_MS)


def of(topic: str) -> list[Bad]:
    return [bad for bad in all_bad() if bad.topic == topic]


def records(topic: str) -> list[tuple[bytes | None, bytes | None]]:
    return [(bad.key, bad.value) for bad in of(topic)]


def test_there_are_some_hundred_for_the_topics_that_anybody_may_write_to_and_some_for_all() -> None:
    counts = Counter(bad.topic for bad in all_bad())
    assert counts.keys() == {
        EVENTS, USERS, ITEMS, PAGE_LOGS, SAMPLES, FEATURES_ITEMS, FEATURES_COCLICKS, MODEL_DELTAS, DEAD_LETTERS,
        TRUTH,
    }  # fmt: skip
    assert counts[EVENTS] > 400
    assert min(counts.values()) > 90


# -- decoders -----------------------------------------------------------------------------------------------------


def model_message(value: bytes | None) -> None:
    """A message of ``model.deltas`` alone."""
    for entry in Assembler().take(value):
        if isinstance(entry, BadEntry):
            raise SnapshotError(entry.why, "nothing")


DECODERS: dict[str, tuple[Callable[[bytes | None], Any], type[Exception]]] = {
    EVENTS: (decode_event, BadEventError),
    USERS: (INTAKE.user, BadEventError),
    ITEMS: (INTAKE.item, BadEventError),
    PAGE_LOGS: (decode_page_log, BadEventError),
    FEATURES_ITEMS: (decode_item_tiles, BadEventError),
    FEATURES_COCLICKS: (coclick_message.unpack, BadEventError),
    TRUTH: (decode_truth, BadEventError),
    DEAD_LETTERS: (decode_dead_letter, BadEventError),
    SAMPLES: (SampleBatch.from_bytes, SchemaError),
    MODEL_DELTAS: (model_message, SnapshotError),
}


@pytest.mark.parametrize("topic", DECODERS)
def test_decoding_ends_in_a_value_or_in_the_named_error(topic: str) -> None:
    decode, named = DECODERS[topic]
    ends, said, reasons = Counter[str](), set[str](), set[str]()
    for bad in of(topic):
        try:
            decode(bad.value)
            ends["value"] += 1
        except named as error:
            ends["error"] += 1
            said.add(str(error))
            reasons.add(getattr(error, "reason", "malformed"))
    assert not [line for line in said if "\n" in line]
    assert reasons <= REASONS
    assert ends["error"] > 60  # it can fail: most of them are bad
    assert ends["value"] > 0  # and some are good enough


@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        ({"price": "12,50"}, "price '12,50' is no number"),
        ({"price": ["1"]}, "price ['1'] is a list"),
        ({"price": 1e39}, "price 1e+39 is beyond"),
        ({"price": "1e39"}, "beyond"),
        ({"price": "inf"}, "beyond"),
        ({"category": ["a", "b"]}, "category ['a', 'b'] is a list"),
        ({"category": ["a" * 500]}, "…"),
    ],
)
def test_an_item_whose_values_no_field_can_hold_is_named(attributes: dict[str, Any], names: str) -> None:
    with pytest.raises(BadEventError) as caught:
        INTAKE.item(to_json(Item("i", attributes)))
    assert caught.value.reason == "bad-value"
    assert names in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"price": None, "category": None},
        {"price": "", "category": ""},
        {"price": " 12.5 "},
        {"price": "nan"},
        {"price": True},
        {"price": 3.4028235e38},
        {"tags": ["a", "b", "c"]},
        {"tags": "a,b"},
        {"tags": []},
        {"unknown to the schema": ["a", 1], "price": 1},
        {"age_days": "derived: not looked at"},
    ],
)
def test_what_is_missing_or_fits_is_taken(attributes: dict[str, Any]) -> None:
    assert INTAKE.item(to_json(Item("i", attributes))) == Item("i", attributes)


@pytest.mark.parametrize("born_ms", [b"-1", b"9000000000000000000", b"100000000000000000000", b"1.5"])
def test_a_birth_that_is_no_time_is_named(born_ms: bytes) -> None:
    with pytest.raises(BadEventError, match=r"wrong-type.*born_ms"):
        INTAKE.item(b'{"item_id": 1, "attributes": {}, "born_ms": ' + born_ms + b"}")


JSON = st.recursive(
    st.sampled_from(list(VALUES.values())) | st.from_type(float).map(lambda x: str(x).encode()),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda v: b"[" + b",".join(v) + b"]")
        | st.dictionaries(st.sampled_from(["a", "price", "type"]), inner, max_size=3).map(json_object)
    ),
    max_leaves=8,
)
GOOD: dict[str, dict[str, bytes]] = {
    EVENTS: json_fields(
        type="exposure", event_id="e", request_id="r", ts_ms=1, user_id=1, items=[1], offset=0, sent_ms=1
    ),
    USERS: json_fields(user_id=1, attributes={}),
    ITEMS: json_fields(item_id=1, attributes={}, born_ms=0, gone=False),
}


@pytest.mark.parametrize("topic", GOOD)
@given(data=st.data())
def test_any_json_anywhere_is_a_value_or_a_named_error(topic: str, data: st.DataObject) -> None:
    fields = dict(GOOD[topic])
    for name in data.draw(st.sets(st.sampled_from([*fields, "unknown"]), max_size=3)):
        fields[name] = data.draw(JSON)
    raw = json_object(fields)
    raw = raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2]))]
    reason = "malformed"
    try:
        DECODERS[topic][0](raw)
    except BadEventError as error:
        reason = error.reason
    assert reason in REASONS


@pytest.mark.parametrize("topic", DECODERS)
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_a_value_or_a_named_error(topic: str, raw: bytes) -> None:
    decode, named = DECODERS[topic]
    try:
        decode(raw)
    except named:
        return


def test_how_deep_json_may_be_does_not_depend_on_who_asks() -> None:
    """The decoder's own limit is the interpreter's, less the stack it is called from."""

    def at_depth(levels: int, raw: bytes) -> bool:
        if levels:
            return at_depth(levels - 1, raw)
        try:
            decode_event(raw)
        except BadEventError:
            return False
        return True

    fields = GOOD[EVENTS] | {"unknown": deep(MAX_DEPTH - 1)}
    assert at_depth(0, json_object(fields))
    assert at_depth(700, json_object(fields))
    deeper = json_object(fields | {"unknown": deep(MAX_DEPTH)})
    assert not at_depth(0, deeper)
    assert not at_depth(700, deeper)


@given(st.text(alphabet='[]{}"\\a', max_size=60))
def test_brackets_in_texts_do_not_count(text: str) -> None:
    body = msgspec.json.encode([text] * (MAX_DEPTH + 1))
    assert not is_deep(body)
    assert is_deep(b"[" * MAX_DEPTH + body + b"]" * MAX_DEPTH)


def test_a_hostile_clock_header_is_no_clock() -> None:
    for bad in of(EVENTS):
        for name, value in bad.headers:
            assert sent_by([(name, value)]) is None, bad.name
    assert sent_by({"clock": None}) is None


# -- the stream ---------------------------------------------------------------------------------------------------


def partition_messages() -> list[InputMessage]:
    offsets = Counter[str]()
    found = []
    for bad in all_bad():
        if bad.topic in (EVENTS, PAGE_LOGS, USERS):
            found.append(InputMessage(bad.topic, offsets[bad.topic], bad.value or b""))  # as the worker hands them over
            offsets[bad.topic] += 1
    return found


def good_page(request: str, ts_ms: int) -> list[tuple[str, bytes]]:
    layout = SCHEMA.layout
    served = {
        "request_id": request, "ts_ms": ts_ms, "user_id": 7, "arm": "model", "model_version": 3,
        "schema_id": SCHEMA.id, "items": [1, 2], "scores": bytes(8), "cat": bytes(16 * layout.F),
        "num": bytes(8 * layout.N), "keys": np.arange(1, 2 * layout.K + 1, dtype="<u8").tobytes(),
    }  # fmt: skip
    return [
        (PAGE_LOGS, msgspec.msgpack.encode(served)),
        (EVENTS, to_json(Exposure(f"{request}/e", request, ts_ms, 7, [1, 2]))),
        (EVENTS, to_json(Click(f"{request}/c", request, ts_ms + 1, 7, 2, 1))),
    ]


def test_a_partition_takes_or_buries_each_and_goes_on() -> None:
    partition = Partition(0, SCHEMA, POLICY)
    dead: list[DeadLetter] = []
    exposures = labels = 0
    bad = partition_messages()
    for start in range(0, len(bad), 50):  # a checkpoint between: whatever was taken in can be written and read
        for message in bad[start : start + 50]:
            before, out = len(dead), partition.take([message], NOW_MS)
            dead += out.dead
            exposures += out.counts.get("exposures", 0)
            labels += sum(out.counts.get(f"samples.{kind}", 0) for kind in ("positive", "negative"))
            taken = sum(
                n for name, n in out.counts.items() if name.startswith("events.") or name in ("page_logs", "users")
            )
            own = [d for d in dead[before:] if (d.topic, d.offset) == (message.topic, message.offset)]
            assert taken + len([d for d in own if d.exposures == 0]) >= 1, message
            assert partition.offsets[message.topic] == message.offset + 1
        changes = partition.changes()
        msgspec.json.encode([user.attributes for user in changes.profiles])
        partition = resumed(partition.snapshot().to_bytes(), SCHEMA, POLICY)
    for dead_letter in dead:
        assert decode_dead_letter(dead_letter_bytes(dead_letter)) == dead_letter
        assert "Error:" not in dead_letter.detail, dead_letter
    assert {d.reason for d in dead} >= {
        "malformed",
        "wrong-type",
        "unknown-type",
        "oversized",
        "bad-user",
        "bad-page-log",
    }

    offsets = dict(partition.offsets)
    kinds = Counter[int]()
    for topic, raw in good_page("good", NOW_MS):
        out = partition.take([InputMessage(topic, offsets[topic], raw)], NOW_MS)
        offsets[topic] += 1
        assert not out.dead
        exposures += out.counts.get("exposures", 0)
        kinds.update([] if out.samples is None else out.samples.kind.tolist())
    assert kinds[1] == 1
    out = partition.advance(NOW_MS + 24 * 60 * MINUTE)
    exposures_dead = sum(d.exposures for d in [*dead, *out.dead])
    labels += 1 + sum(out.counts.get(f"samples.{kind}", 0) for kind in ("positive", "negative"))
    assert partition.pending == 0
    assert exposures == labels + exposures_dead, "the books balance"


def test_what_came_in_another_partition_is_a_dead_letter_at_once_and_nothing_waits_for_it() -> None:
    """The whole corpus, as its producers place it, through all partitions of the topics."""
    partitions = [Partition(number, SCHEMA, POLICY, PARTITIONS) for number in range(PARTITIONS)]
    offsets = Counter[tuple[str, int]]()
    lost_way = set(astray(SCHEMA, TS_MS))
    found, exposures = list[DeadLetter](), 0

    def send(topic: str, raw: bytes, number: int) -> list[DeadLetter]:
        nonlocal exposures
        out = partitions[number].take([InputMessage(topic, offsets[topic, number], raw)], NOW_MS)
        offsets[topic, number] += 1
        exposures += out.counts.get("exposures", 0) - out.counts.get("samples.negative", 0)
        exposures -= out.counts.get("samples.positive", 0) + sum(dead_letter.exposures for dead_letter in out.dead)
        return out.dead

    for bad in all_bad():
        if bad.topic not in (EVENTS, PAGE_LOGS, USERS):
            continue
        home = 0 if bad.key is None else kafka_partition(bad.key, PARTITIONS)
        number = home if bad.partition is None else bad.partition
        held, dead_letters = partitions[number].pending, send(bad.topic, bad.value or b"", number)
        if bad in lost_way:
            (dead_letter,) = dead_letters
            assert dead_letter.reason == "wrong-partition", bad.name
            right = kafka_partition(b"7", PARTITIONS)
            assert (
                f"user 7 came in partition {number}, but belongs to partition {right} of {PARTITIONS}"
                in dead_letter.detail
            )
            assert dead_letter.exposures == (2 if bad.name.startswith("seen") else 0)
            assert partitions[number].pending == held
            lost_way.discard(bad)
        found += dead_letters
    assert not lost_way
    assert Counter(dead_letter.reason for dead_letter in found)["wrong-partition"] >= 12
    right = kafka_partition(b"7", PARTITIONS)
    for topic, raw in good_page("good", NOW_MS):
        assert not send(topic, raw, right)
    for partition in partitions:
        out = partition.advance(NOW_MS + 24 * 60 * MINUTE)
        exposures -= out.counts.get("samples.negative", 0) + out.counts.get("samples.positive", 0)
        exposures -= sum(dead_letter.exposures for dead_letter in out.dead)
        assert partition.pending == 0
        assert "astray" not in "".join(dead_letter.detail for dead_letter in out.dead)
    assert exposures == 0, "the books balance"


def test_profiles_are_read_past_what_nobody_can_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = to_json(User(7, {"kind": "business"}))
    topic = [good, *(bad.value for bad in of(USERS)), to_json(User("ann", {"kind": "consumer"}))]

    def read_all(_: Settings, name: str, visit: Callable[[Any], None]) -> int:
        assert name == USERS
        for value in topic:
            visit(SimpleNamespace(partition=0, value=value, key=None))
        return len(topic)

    monkeypatch.setattr(stream.worker.stream_output, "read_all", read_all)
    schema = tmp_path / "schema.toml"
    schema.write_text(SCHEMA_TOML.read_text())
    settings = Settings(schema=str(schema))
    found = {
        user.user_id: user for user in stream.worker.stream_output.profiles_of(settings, settings.load_schema(), 0)
    }
    assert {7, "ann"} <= found.keys()
    msgspec.json.encode([user.attributes for user in found.values()])


# -- items, by the lists and by the scorer ------------------------------------------------------------------------


def test_the_lists_take_or_bury_each_and_are_made(tmp_path: Path) -> None:
    lists = ShopLists(SCHEMA)
    dead_letters: list[DeadLetter] = []
    for topic in (ITEMS, FEATURES_ITEMS):
        for offset, bad in enumerate(of(topic)):
            record = SimpleNamespace(topic=topic, partition=0, offset=offset, key=bad.key, value=bad.value)
            dead_letter = take(lists, INTAKE, record)
            if dead_letter is not None:
                assert (dead_letter.topic, dead_letter.offset) == (topic, offset)
                assert "Error:" not in dead_letter.detail, (bad.name, dead_letter.detail)
                dead_letters.append(dead_letter)
    assert Counter(dead_letter.reason for dead_letter in dead_letters).keys() == {"bad-item", "bad-item-tiles"}
    assert len(dead_letters) > 150
    good = SimpleNamespace(topic=ITEMS, partition=0, offset=0, key=b"good", value=to_json(item("good", born_ms=NOW_MS)))
    assert take(lists, INTAKE, good) is None
    assert "good" in lists.make(max(NOW_MS, lists.newest_ms + 1))["new"]
    assert lists.newest_ms <= 32_503_680_000_000


def test_an_item_is_usable_for_lists_and_scorer_or_for_neither(tmp_path: Path) -> None:
    reader, _, figures, _ = feed(ItemFeed, tmp_path)
    lists = ShopLists(SCHEMA)
    for offset, bad in enumerate(of(ITEMS)):
        before = figures.errors["item"]
        reader.take_all(as_records((bad.key, bad.value)))
        record = SimpleNamespace(topic=ITEMS, partition=0, offset=offset, key=bad.key, value=bad.value)
        assert (figures.errors["item"] > before) == (take(lists, INTAKE, record) is not None), bad.name
    assert figures.errors.keys() == {"item"}


def test_the_item_feed_passes_over_each_and_takes_what_follows(tmp_path: Path) -> None:
    reader, scorer, figures, _ = feed(ItemFeed, tmp_path)
    bad = records(ITEMS)
    good = [(str(i.item_id).encode(), to_json(i)) for i in SHOP_ITEMS]
    mixed = [record for pair in zip(bad, good * 2, strict=False) for record in pair]
    reader.take_all(as_records(*mixed, *good, (b"5", None)))
    assert figures.errors.keys() == {"item"}, "each was foreseen"
    rows = scorer.index.rows_of([i.item_id for i in SHOP_ITEMS])
    assert (rows >= 0).all()
    assert scorer.index.alive[rows].sum() == len(SHOP_ITEMS) - 1
    scorer.spread()
    assert len(scorer.serving.lists.living) >= len(SHOP_ITEMS) - 1


def test_the_tile_feed_passes_over_each_and_counts_can_be_read(tmp_path: Path) -> None:
    reader, scorer, figures, _ = feed(TileFeed, tmp_path)
    reader.take_all(as_records(*records(FEATURES_ITEMS)))
    assert figures.errors.keys() == {"item-tiles"}
    assert figures.errors["item-tiles"] > 50
    scorer.index.counts.at(np.array([99, 1], np.uint64), NOW_MS)
    scorer.index.counts.expire(NOW_MS)
    scorer.index.refresh_hot(NOW_MS)


def test_the_feed_of_co_clicks_passes_over_each_and_makes_neighbours(tmp_path: Path) -> None:
    scorer = Whole(Settings(data=str(tmp_path)))
    scorer.stock(SHOP_ITEMS)
    kept: list[Any] = []
    reader = CoFeed(scorer.state, lambda *sent: kept.append(sent))
    reader.take_all(as_records(*records(FEATURES_COCLICKS)))
    assert scorer.meters.errors.keys() == {"co-clicks"}, "each was foreseen"
    assert scorer.meters.errors["co-clicks"] > 80
    reader.renew()
    assert len(kept) == 1


def test_the_model_feed_passes_over_each_and_follows_the_learner(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    learner, log = scene.learner, scene.broker.log(MODEL_DELTAS)
    learner.snapshot()
    learner.delta()
    assert scene.read() == 1
    for _, value in records(MODEL_DELTAS):
        log.append(value)
    scene.read()
    assert same_model(scene.scorer, learner)
    assert "message" not in scene.meters.errors, "each was foreseen"
    learner.delta()
    learner.snapshot()
    learner.delta()
    assert scene.read() == 3
    assert same_model(scene.scorer, learner)


def test_a_failure_that_nobody_foresaw_costs_one_message_and_no_more(tmp_path: Path) -> None:
    reader, scorer, figures, _ = feed(ItemFeed, tmp_path)
    prepare = scorer.index.prepare

    def fails_on_some(item: Item) -> Any:
        if item.item_id in (3, 70):
            raise MemoryError("an item like no other")
        return prepare(item)

    scorer.index.prepare = fails_on_some  # type: ignore[method-assign]
    reader.take_all(as_records(*((b"", to_json(i)) for i in SHOP_ITEMS)))
    assert figures.errors == {"message": 2}
    assert len(scorer.index) == len(SHOP_ITEMS) - 2


def test_a_feed_reads_no_message_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that fails on a message goes on behind it; what it tries again is the broker."""
    stop, polled, starts = threading.Event(), list[bytes | None](), list[dict[int, int]]()

    class Failing(MemoryBroker):
        def reader(self, topic: str, start: dict[int, int]) -> FeedConsumer:
            starts.append(dict(start))
            return super().reader(topic, start)

    broker = Failing()
    monkeypatch.setattr("tests.scenes.scorer_log.MemoryReader.MOST", 1)  # a message a poll

    class Fails(TopicFeed):
        topic = ITEMS

        def take(self, records: list[FeedRecord]) -> None:
            polled.extend(record.value for record in records)
            if len(polled) == 1:
                broker.fails = OSError("the broker went away")
            if len(polled) == 4:
                stop.set()
            raise RecursionError("again and again")

    for n in range(4):
        broker.log(ITEMS).append(b"%d" % n)
    reader, _, figures, _ = feed(Fails, tmp_path, broker=broker)
    reader.stop = stop
    reader.run()
    assert polled == [b"0", b"1", b"2", b"3"]
    assert starts == [{}, {0: 1}]
    assert figures.errors == {"message": 4, "feed": 1}


# -- the learner and the books ------------------------------------------------------------------------------------


def test_the_learner_takes_or_refuses_each_and_goes_on_learning(tmp_path: Path) -> None:
    reads = FormerSamples(SCHEMA, SchemaBook(tmp_path, writes=False), Viewpoint())
    trainer = Trainer(OnlineModel(SCHEMA, SPEC, 0), Progressive(1000), Repeats(10**9), 64)
    refused = 0
    for bad in of(SAMPLES):
        try:
            trainer.take(reads.carried(SampleBatch.from_bytes(bad.value), None))
            while trainer.step(drain=True) is not None:
                pass
        except SchemaError:
            refused += 1
    assert refused > 60
    before = trainer.counts["trained"]
    trainer.take(batch(77, 64))
    trainer.step(drain=True)
    assert trainer.counts["trained"] > before
    assert np.isfinite(trainer.model.score(batch(78, 8).cat, batch(78, 8).num)).all()
    assert trainer.model.newest_ms <= 32_503_680_000_000


def test_the_books_can_be_read_whatever_lies_in_the_topics() -> None:
    ledger = Ledger()
    visits = {
        DEAD_LETTERS: ledger.dead_letter_message,
        EVENTS: ledger.event_message,
        SAMPLES: ledger.sample_message,
        TRUTH: ledger.truth_message,
    }
    for topic, visit in visits.items():
        for offset, bad in enumerate(of(topic)):
            visit(SimpleNamespace(partition=0, offset=offset, key=bad.key, value=bad.value, timestamp=TS_MS))
    assert ledger.unread.keys() == {DEAD_LETTERS, SAMPLES, TRUTH}
    assert sum(ledger.unreadable.values()) > 300
    ledger.rows()
