"""Bodies and lines of the intake: every body is read or refused whole, every line by itself, and nothing crashes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.events import (
    MAX_EVENT_BYTES,
    BadEventError,
    Exposure,
    decode_event,
    decode_item,
    decode_user,
    key_of,
)
from millrace.contracts.schema import shop_schema
from stream.intake.intake_wire import (
    ARCHIVED,
    MAX_LINES,
    WHATS,
    IntakeRequestError,
    LineReader,
    OutMessage,
    What,
    late,
    lines_of,
)
from stream.partition import partition as stream
from stream.partition.partition import Partition, Policy
from tests.scenes.bad_messages import corpus
from tests.scenes.intake_desk import AHEAD_MS, DISORDER_MS, LIFE_MS, click, exposure

NOW_MS = 1_772_323_200_000
READER = LineReader(shop_schema(), AHEAD_MS)
ONE = msgspec.json.encode(click(1))


def read(what: What, raw: bytes) -> OutMessage:
    return READER.read(what, raw, NOW_MS, NOW_MS + 5)


def outcome(what: What, raw: bytes) -> str:
    """The reason of a refusal, or "kept"."""
    try:
        read(what, raw)
    except BadEventError as error:
        return error.reason
    return "kept"


def reason(what: What, line: Any) -> str:
    return outcome(what, line if isinstance(line, bytes) else msgspec.json.encode(line))


# -- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "lines"),
    [
        (b' {"a": 1}\n', "", [b'{"a": 1}']),
        (b'[{"a": 1}, 7 , "x"]', "", [b'{"a": 1}', b"7", b'"x"']),
        (b"[]", "", []),
        (b'{"a":1}\n\n{"b":2}\r\n', "", [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\nrubbish', "", [b'{"a":1}', b"rubbish"]),
        (b'rubbish\n{"b":2}', "", [b"rubbish", b'{"b":2}']),
        (b'{\n"a": {\n"b": 2\n}\n}', "", [b'{\n"a": {\n"b": 2\n}\n}']),  # one object on several lines
        (b'{"a":\n1}', "application/x-ndjson; charset=utf-8", [b'{"a":', b"1}"]),
        (b"rubbish", "application/jsonl", [b"rubbish"]),
    ],
)
def test_a_body_is_an_object_an_array_or_lines(body: bytes, kind: str, lines: list[bytes]) -> None:
    assert lines_of(body, kind) == lines


@pytest.mark.parametrize(
    "body", [b"", b" \n ", b"{", b"[1, 2", b"oops", b'{"a":1}{"b":2}', b"\xff", b"[" * 9999, b"{\n}}"]
)
def test_a_body_that_cannot_be_read_is_refused_whole(body: bytes) -> None:
    with pytest.raises(IntakeRequestError) as caught:
        lines_of(body)
    assert caught.value.status == 400


def test_a_request_holds_so_many_messages_at_most() -> None:
    assert len(lines_of(b"[" + b"1," * (MAX_LINES - 1) + b"1]")) == MAX_LINES
    for body in (b"[" + b"1," * MAX_LINES + b"1]", b"{}\n" * (MAX_LINES + 1)):
        with pytest.raises(IntakeRequestError) as caught:
            lines_of(body)
        assert caught.value.status == 413


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:1e\\n\n ', max_size=80).map(str.encode))
def test_any_bytes_are_lines_or_refused(body: bytes) -> None:
    try:
        lines = lines_of(body)
    except IntakeRequestError:
        return
    for line in lines:
        for what in WHATS:
            assert outcome(what, line)


def test_a_refusal_names_a_value_of_any_length_in_a_short_line() -> None:
    raw = msgspec.json.encode(click(1, type="x" * 200_000))
    with pytest.raises(BadEventError) as caught:
        LineReader(shop_schema(), AHEAD_MS).read("events", raw, 10**12, 10**12)
    assert (caught.value.reason, caught.value.detail[-8:]) == ("unknown-type", "`$.type`")
    assert len(str(caught.value)) < 500


def test_of_lines_that_are_too_many_only_so_many_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []

    def broken(line: bytes) -> bool:
        looked.append(line)
        return False

    monkeypatch.setattr("stream.intake.intake_wire._is_whole", broken)
    with pytest.raises(IntakeRequestError):
        lines_of(b"{x}\n" * 50_000)
    assert len(looked) <= MAX_LINES + 1


# -- lines ----------------------------------------------------------------------------------------------------------


def test_an_event_is_kept_as_it_came_with_its_times_filled_in() -> None:
    found = read("events", msgspec.json.encode(click(1, more={"own": [1]})))
    assert (found.topic, found.key, found.event_id, found.ts_ms) == ("events", b"7", "e1", NOW_MS)
    assert found.value is not None
    assert msgspec.json.decode(found.value) == click(1, more={"own": [1]}, ts_ms=NOW_MS, sent_ms=NOW_MS + 5)
    whole = msgspec.json.encode(click(1, ts_ms=NOW_MS - 9, sent_ms=4))
    assert read("events", whole) == OutMessage("events", b"7", whole, "e1", NOW_MS - 9, came_ms=NOW_MS)


def test_what_is_kept_is_what_the_stream_reads() -> None:
    found = read("events", msgspec.json.encode(exposure(1, slots=[4, 2], user_id="é")))
    event = decode_event(found.value)
    assert isinstance(event, Exposure)
    assert (event.slots, found.exposure, found.key) == ([4, 2], True, key_of("é"))


@given(st.integers(min_value=MAX_EVENT_BYTES - 200, max_value=MAX_EVENT_BYTES + 10))
def test_filling_times_in_makes_no_event_too_large_for_the_stream(size: int) -> None:
    raw = msgspec.json.encode(click(1, pad=""))
    raw = raw.replace(b'"pad":""', b'"pad":"' + b"x" * (size - len(raw)) + b'"')
    assert len(raw) == size
    if outcome("events", raw) == "kept":
        decode_event(read("events", raw).value)
    else:
        assert reason("events", raw) == "oversized"


def test_times_that_cannot_be_meant_are_refused() -> None:
    assert reason("events", click(1, ts_ms=NOW_MS // 1000)) == "seconds"
    for name in ("born_ms", "expires_ms"):
        assert reason("items", {"item_id": 1, "attributes": {}, name: NOW_MS // 1000}) == "seconds"
    assert reason("events", click(1, ts_ms=NOW_MS + AHEAD_MS + 1)) == "future"
    read("events", msgspec.json.encode(click(1, ts_ms=NOW_MS + AHEAD_MS)))
    played = LineReader(shop_schema(), AHEAD_MS)  # a log of 1971, played by its own clock
    played.read("events", msgspec.json.encode(click(1, ts_ms=40_000_000_000)), 40_000_000_000, NOW_MS)


def test_users_and_items_are_refused_for_what_their_fields_cannot_hold() -> None:
    good = msgspec.json.encode({"item_id": "7", "attributes": {"price": 12.5}, "gone": True})
    assert read("items", good) == OutMessage("items", b"7", good)
    assert reason("items", {"item_id": 7, "attributes": {"price": "12,50"}}) == "bad-value"
    assert reason("users", {"user_id": 7}) == "wrong-type"
    assert reason("users", {"user_id": None, "attributes": {}}) == "wrong-type"
    assert READER.removal("users", "7") == OutMessage("users", b"7", None, note=ARCHIVED)
    for bad in ("", "x" * 201):
        with pytest.raises(BadEventError, match="bad-key"):
            READER.removal("items", bad)


def test_a_line_is_refused_by_the_intake_or_read_by_those_it_is_for() -> None:
    """The corpus of messages that nobody should send: what the intake takes, the stream and the scorer can decode."""
    decoders = {"events": decode_event, "users": decode_user, "items": decode_item}
    refused = 0
    for bad in corpus(shop_schema(), NOW_MS):
        if bad.topic not in WHATS or not bad.value:
            continue
        try:
            found = read(bad.topic, bad.value.strip())
        except BadEventError:
            refused += 1
            continue
        decoders[bad.topic](found.value)
    assert refused > 300


# -- late -----------------------------------------------------------------------------------------------------------


def test_an_exposure_is_late_when_the_stream_says_so_and_an_action_never() -> None:
    policy = Policy(LIFE_MS - 60_000, DISORDER_MS, 60_000, AHEAD_MS)
    edge = NOW_MS - DISORDER_MS - LIFE_MS
    for ts_ms in (edge - 5, edge, edge + 1, NOW_MS):
        message = read("events", msgspec.json.encode(exposure(1, ts_ms=ts_ms)))
        partition = Partition(0, shop_schema(), policy)
        newest = msgspec.json.encode(exposure("newest", ts_ms=NOW_MS, request_id="other"))
        pair = [stream.InputMessage("events", 0, newest), stream.InputMessage("events", 1, message.value or b"")]
        reasons = [dead_letter.reason for dead_letter in partition.take(pair, NOW_MS).dead]
        why = late(message, NOW_MS, LIFE_MS, DISORDER_MS)
        assert reasons == ([] if why is None else ["late"])
        assert why is None or why.reason == "late"
    assert late(read("events", msgspec.json.encode(click(1, ts_ms=edge))), NOW_MS, LIFE_MS, DISORDER_MS) is None
