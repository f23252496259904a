"""The contracts between the packages: what goes in comes out, and what is wrong is refused in one line."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import MillraceError, SchemaError, SettingError, StoreError
from millrace.basics.hashing import column_hash, combine, mix, salt, value_hash
from millrace.contracts.clock import EventClock, data_now_ms, sent_by
from millrace.contracts.events import (
    MAX_EVENT_BYTES,
    MESSAGE_BYTES,
    Attribute,
    BadEventError,
    Click,
    Exposure,
    ItemTiles,
    decode_event,
    decode_item_tiles,
    to_json,
    to_msgpack,
)
from millrace.contracts.itemtiles import pack, unpack
from millrace.contracts.online_layout import (
    PROFILE,
    hot_in,
    list_key,
    pack_profile,
    unpack_profile,
    values_listed,
    window_field,
    window_fields,
    window_keys,
)
from millrace.contracts.schema import parse_schema, shop_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import TOPICS, unsafe_prefix
from millrace.evidence.learners import NamedLearner
from millrace.evidence.rerank import Rerank
from millrace.evidence.user_arms import Arm
from tests.scenes.schemas import mistake, named, of_item, of_user, windows_of

# -- events --------------------------------------------------------------------------------------------------


def test_an_event_survives_its_json() -> None:
    page = Exposure("e1", "r1", 1_700_000_000_000, "u7", [1, "two", 3], offset=20, sent_ms=5)
    click = Click("e2", "r1", 1_700_000_001_000, 7, 3, 22)
    assert decode_event(to_json(page)) == page
    assert decode_event(to_json(click)) == click


GOOD = {"type": "exposure", "event_id": "e", "request_id": "r", "ts_ms": 1, "user_id": 1, "items": [1]}


@pytest.mark.parametrize(
    ("raw", "reason", "names"),
    [
        (b"{not json", "malformed", ""),
        (b"\xff\xfe\x00", "malformed", ""),
        (b"[]", "wrong-type", "object"),
        (json.dumps(GOOD | {"type": "teleport"}).encode(), "unknown-type", "teleport"),
        (json.dumps(GOOD | {"ts_ms": "soon"}).encode(), "wrong-type", "`$.ts_ms`; send milliseconds since 1970"),
        (json.dumps(GOOD | {"ts_ms": -5}).encode(), "wrong-type", "ts_ms"),
        (json.dumps(GOOD | {"items": []}).encode(), "wrong-type", "items"),
        (json.dumps(GOOD | {"items": [1.5]}).encode(), "wrong-type", "items"),
        (b'{"type":"exposure","ts_ms":NaN}', "malformed", ""),
        (b" " * (MAX_EVENT_BYTES + 1), "oversized", str(MAX_EVENT_BYTES)),
    ],
)
def test_a_bad_event_says_why(raw: bytes, reason: str, names: str) -> None:
    with pytest.raises(BadEventError) as caught:
        decode_event(raw)
    assert caught.value.reason == reason
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(raw: bytes) -> None:
    with pytest.raises(BadEventError) as caught:
        decode_event(raw)
    assert caught.value.reason in {"malformed", "wrong-type", "unknown-type", "oversized"}


# -- hashing -------------------------------------------------------------------------------------------------


def test_ids_are_the_same_in_every_version() -> None:
    """Models and checkpoints outlive the program: these values are a file format."""
    assert value_hash("shoes") == 0x1CB746BB21E8E885
    assert salt("field", "user_id") == 0x64A8839FF083AEB5
    five, six = np.array([5], np.uint64), np.array([6], np.uint64)
    assert mix(salt("f"), five)[0] == 0x806954F713319DAF
    assert combine(salt("k"), five, six)[0] == 0xD020CAEE54223FC6
    assert value_hash(7) == value_hash("7") == value_hash(7.0) == value_hash(np.int32(7))
    assert value_hash(None) == value_hash("") == value_hash(float("nan")) == 0
    assert value_hash(True) == value_hash(1)


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3)), min_size=1, max_size=30))
def test_a_column_hashes_like_its_values(values: list[object]) -> None:
    column = np.array(values, dtype=object)
    assert column_hash(column).tolist() == [value_hash(v) for v in values]


def test_missing_stays_missing_and_order_matters() -> None:
    a, b = column_hash(np.array([1, 2, 3])), column_hash(np.array([4, 5, 6]))
    zero = np.zeros(3, np.uint64)
    assert mix(salt("f"), zero).tolist() == [0, 0, 0]
    assert combine(salt("k"), a, zero).tolist() == [0, 0, 0]
    assert not np.any(combine(salt("k"), a, b) == combine(salt("k"), b, a))
    assert not np.any(mix(salt("f"), a) == mix(salt("g"), a))


def test_a_million_keys_do_not_collide() -> None:
    values = mix(salt("f"), np.arange(1, 1_000_001, dtype=np.uint64))
    assert len(np.unique(values)) == 1_000_000


# -- schema --------------------------------------------------------------------------------------------------

BASE = named("t") + of_user("u") + of_item("i", "price:numeric") + windows_of("i", "u i", parent=("i",), days=[1, 7])


def test_the_layout_follows_the_schema() -> None:
    layout = parse_schema(BASE).layout
    assert layout.cat_names == ("u", "i")
    assert layout.num_names == (
        "price",
        *("i.exposure.1d", "i.click.1d", "i.click_rate.1d", "i.exposure.7d", "i.click.7d", "i.click_rate.7d"),
        *("u*i.exposure.1d", "u*i.click.1d", "u*i.click_rate.1d"),
        *("u*i.exposure.7d", "u*i.click.7d", "u*i.click_rate.7d"),
    )
    schema = parse_schema(BASE)
    assert [schema.key_side(k) for k in schema.windows.keys] == ["item", "user"]


def test_the_identity_is_that_of_the_arrays() -> None:
    assert parse_schema(BASE).id == parse_schema(BASE.replace('"t"', '"renamed"')).id
    assert parse_schema(BASE).id != parse_schema(BASE.replace("[1, 7]", "[1, 3]")).id


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('columns = ["u", "i"]', 'columns = ["u", "colour"]', "colour"),
        ('parent = ["i"]', 'parent = ["u"]', "'u'"),
        ("[1, 7]", "[7, 1]", "[7, 1]"),
        ('"click"]', '"wink"]', "wink"),
        ('of = "user"', 'of = "usr"', "of`: use context, item or user"),
        ('name = "price"', 'name = "u"', "'u'"),
        ('name = "t"', 'name = "t"\ncolour = 3', "colour"),
        ('name = "t"', 'name = "t', "line 1"),
        ('name = "t"', 'name = "t"\ncrosses = [["u", "price"]]', "price"),
        ('name = "t"', 'name = "t"\nutc_offset = "east"', "east"),
    ],
)
def test_a_wrong_schema_names_the_entry(old: str, new: str, names: str) -> None:
    assert old in BASE
    assert names in mistake(BASE.replace(old, new))


def test_the_shop_has_windows_on_both_sides() -> None:
    schema = shop_schema()
    assert {schema.key_side(k) for k in schema.windows.keys} == {"user", "item"}


# -- settings and clock --------------------------------------------------------------------------------------


def test_a_prefix_stands_before_names_and_may_make_no_other_name() -> None:
    settings = load_settings({}, {"MILLRACE_PREFIX": "b-shop."})
    assert {settings.logical(settings.topic(t.name)) for t in TOPICS} == {t.name for t in TOPICS}
    assert settings.logical("events") == "events"
    assert settings.topic("events") == "b-shop.events"
    assert settings.group("g") == "b-shop.g"
    assert settings.key("user:7") == "b-shop.user:7"
    for prefix in ("features.", "b.features.", "a b", "ü"):
        with pytest.raises(SettingError, match="prefix"):
            load_settings({"prefix": prefix}, {})


PREFIXES = st.lists(st.sampled_from(["", ".", "a", "features.", "model.", "dead-", "items"]), max_size=4).map("".join)


@given(a=PREFIXES, b=PREFIXES)
def test_two_prefixes_never_give_one_name(a: str, b: str) -> None:
    assume(a != b and not unsafe_prefix(a) and not unsafe_prefix(b))
    one, other = Settings(prefix=a), Settings(prefix=b)
    assert not {one.topic(t.name) for t in TOPICS} & {other.topic(t.name) for t in TOPICS}


def test_settings_survive_the_environment() -> None:
    arms = {"hits": Arm("popular", 0.1), "wide": Arm("model", 0.2, recall={"hot": 1.0}, explore="0.1,swap")}
    learners = {"b": NamedLearner("deepfm", {"dense_rate": 0.1})}
    arms |= {"b": Arm("model", 0.1, learner="b"), "unlike": Arm("model", 0.1, rerank=Rerank(2.0))}
    rerank = Rerank(0.5, {"category": {"c 1": 2.0}}, {"7": 0})
    settings = Settings(kafka="h:1", seed=9, archive_features=True, control_share=0.25, arms=arms, rerank=rerank)
    settings = replace(settings, learners=learners, learner="b", learns_from="own")
    assert load_settings({}, settings.environment()) == settings


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({"MILLRACE_PORT": "x"}, "port"),
        ({"MILLRACE_PORT": "70000"}, "port"),
        ({"MILLRACE_PARTITIONS": "0"}, "partitions"),
        ({"MILLRACE_CONTROL_SHARE": "1.5"}, "control_share"),
        ({"MILLRACE_EXPLORE": "1.5"}, "explore"),
        ({"MILLRACE_EXPLORE": "0.1,best"}, "explore"),
        ({"MILLRACE_ARMS": '{"hits": {"kind": "best", "share": 0.1}}'}, "MILLRACE_ARMS: .*kind.*: use .*popular"),
        ({"MILLRACE_ARMS": '{"hits": {"share": 0.1}}'}, "kind"),
        ({"MILLRACE_ARMS": '{"hits": {"kind": "popular", "share": 1.5}}'}, "share"),
        (
            {"MILLRACE_ARMS": '{"hits": {"kind": "popular", "share": 0.95}}'},
            "add up to 1.05 .control 0.1, hits 0.95.; have",
        ),
        ({"MILLRACE_ARMS": '{"hits": {"kind": "popular", "share": NaN}}'}, "share|add up"),
        ({"MILLRACE_ARMS": '{"a": {"kind": "random", "share": 0}, "a": {"kind": "random", "share": 0}}'}, "'a' twice"),
        ({"MILLRACE_ARMS": '{"control": {"kind": "popular", "share": 0.1}}'}, "named 'control', .*; give it another"),
        ({"MILLRACE_ARMS": '{"a b": {"kind": "popular", "share": 0.1}}'}, "named 'a b'; use"),
        (
            {"MILLRACE_ARMS": '{"a": {"kind": "random", "share": 0.1, "explore": "0.1"}}'},
            "'random' have no 'explore'; leave",
        ),
        ({"MILLRACE_ARMS": '{"a": {"kind": "model", "share": 0.1, "explore": "x"}}'}, "'x' is no share of pages"),
        ({"MILLRACE_ARMS": "{'a'"}, "MILLRACE_ARMS"),
        (
            {"MILLRACE_ARMS": '{"a": {"kind": "random", "share": 0.1, "rerank": {"diversity": 1}}}'},
            "'random' have no 'rerank'; leave",
        ),
        ({"MILLRACE_RERANK": '{"pins": {"7": 600}}'}, "item '7' is pinned to slot 600; give one from 0 to 599"),
        ({"MILLRACE_RERANK": '{"pins": {"7": 1, "9": 1}}'}, "slot 1 has two pins, '7' and '9'; leave one out"),
        ({"MILLRACE_RERANK": '{"pins": {"7": 1, "7": 2}}'}, "names '7' twice"),
        ({"MILLRACE_RERANK": '{"boost": {}}'}, "unknown field `boost`"),
        ({"MILLRACE_RERANK": "diversity=high"}, "MILLRACE_RERANK: .*high"),
        ({"MILLRACE_RECALL_INDEX": "faiss"}, "faiss.*: use exact or usearch"),
        ({"MILLRACE_CONFIG": "missing.toml"}, "missing.toml"),
    ],
)
def test_a_wrong_setting_is_named(env: dict[str, str], names: str) -> None:
    with pytest.raises(SettingError, match=names):
        load_settings({}, env)


def test_the_clock_travels_as_text() -> None:
    clock = EventClock(1_000, 5_000_000, 240.0)
    assert EventClock.decode(clock.encode()) == clock
    assert clock.at(1_010) == 5_000_000 + 2_400
    assert EventClock.decode("") == EventClock()
    for text in ("1:2", "1:2:fast", "1:2:0", "1:2:-3"):
        with pytest.raises(SettingError, match="clock"):
            EventClock.decode(text)


def test_an_event_names_its_clock() -> None:
    clock = EventClock(1_000, 5_000_000, 240.0)
    assert sent_by([("other", b"1"), *clock.headers]) == sent_by(dict(clock.headers)) == clock
    assert EventClock().headers == []
    for headers in (None, (), [("clock", b"noon")], [("clock", b"\xff")], [("clock", b"1:2:0")]):
        assert sent_by(headers) is None


@pytest.mark.parametrize(
    ("clock_ms", "newest_ms", "reached_ms", "now_ms"),
    [
        (5 * DAY_MS, 4 * DAY_MS, 0, 5 * DAY_MS),  # a day ahead is believed
        (5 * DAY_MS + 1, 4 * DAY_MS, 0, 4 * DAY_MS),  # more is not: the data is older than the clock
        (5 * DAY_MS + 1, 4 * DAY_MS, 4 * DAY_MS + 1, 5 * DAY_MS + 1),  # silence had moved it on
        (3 * DAY_MS, 4 * DAY_MS, 0, 3 * DAY_MS),  # events may be ahead of the clock
    ],
)
def test_a_clock_far_ahead_of_the_data_is_not_its_clock(
    clock_ms: int, newest_ms: int, reached_ms: int, now_ms: int
) -> None:
    assert data_now_ms(clock_ms, newest_ms, reached_ms) == now_ms


# -- item tiles ------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=60), max_size=40), st.integers(1, 300))
def test_item_tiles_come_out_as_they_went_in(tiles: list[bytes], most_bytes: int) -> None:
    keys = np.random.default_rng(len(tiles)).integers(0, 2**64, len(tiles), np.uint64)
    messages = list(pack(3, 100, 77, keys, tiles, most_bytes))
    read = [unpack(decode_item_tiles(to_msgpack(message))) for message in messages]
    assert [key for some, _ in read for key in some.tolist()] == keys.tolist()
    assert [blob for _, blobs in read for blob in blobs] == tiles
    assert [(m.partition, m.seq, m.event_ms) for m in messages] == [(3, 100 + i, 77) for i in range(len(messages))]
    for message, (some, _) in zip(messages, read, strict=True):
        assert len(some) == 1 or len(message.keys + message.sizes + message.tiles) <= most_bytes
    for one, after in zip(messages, read[1:], strict=False):  # no message is cut before it is full
        assert len(one.keys + one.sizes + one.tiles) + 12 + len(after[1][0]) > most_bytes


def test_a_message_of_item_tiles_is_one_that_a_broker_takes() -> None:
    tiles = [bytes(1000)] * 1500
    messages = list(pack(0, 1, 1, np.arange(1500, dtype=np.uint64), tiles))
    assert len(messages) == 3
    assert max(len(to_msgpack(m)) for m in messages) < MESSAGE_BYTES + 100


@pytest.mark.parametrize(
    ("keys", "sizes", "tiles"),
    [
        (8, [3, 4], 7),
        (16, [3], 3),
        (15, [3], 3),
        (8, [3], 4),
        (8, [3], 2),
        (0, [], 1),
        (8, [], 0),
        (16, [2**32 - 1] * 2, 6),
        (8, b"\0\0\0", 0),  # sizes that end within a number
    ],
)
def test_damaged_item_tiles_are_refused(keys: int, sizes: list[int] | bytes, tiles: int) -> None:
    raw = sizes if isinstance(sizes, bytes) else np.array(sizes, "<u4").tobytes()
    with pytest.raises(BadEventError, match=r"malformed: .* do not fit"):
        unpack(ItemTiles(0, 1, 1, bytes(keys), raw, bytes(tiles)))


# -- the online store ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_window_keys_survive_their_fields(keys: list[int]) -> None:
    fields = window_fields(np.array(keys, np.uint64))
    assert fields == [window_field(key) for key in keys] == [key.to_bytes(8, "little") for key in keys]
    assert window_keys([PROFILE, *fields]).tolist() == keys, "the profile is no window key"


def test_a_profile_survives_its_field_and_a_damaged_one_is_named() -> None:
    attributes: dict[str, Attribute] = {"kind": "business", "tags": ["a", 1], "age": None}
    assert unpack_profile(pack_profile(attributes)) == attributes
    assert unpack_profile(None) == {}
    for raw in (b"", b"{", b"[]", b"\xff"):
        with pytest.raises(StoreError, match="profile"):
            unpack_profile(raw)


def test_values_are_found_among_the_lists() -> None:
    names = ["hot", "new", hot_in("shelf", "b:1"), hot_in("shelf", "a"), hot_in("shelf2", "c")]
    assert values_listed(map(list_key, names), "shelf") == ["a", "b:1"]
    assert values_listed(map(list_key, names), "tags") == []


def test_every_expected_error_is_one_line() -> None:
    assert str(MillraceError("a\nb", "c\n  d")) == "a b; c d"


def test_an_error_crosses_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(SchemaError("a", "b")))
    assert type(error) is SchemaError
    assert (error.problem, error.remedy, str(error)) == ("a", "b", "a; b")
