"""Messages that nobody should send, for every topic: each field of a good one with each of many bad values, and whole
messages that are broken, empty, huge, deep, cut off or of another encoding.

Not all of them are unusable: a null may stand where nothing is needed. What each must come to is the tests' to say.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from millrace.basics.durations import DAY_MS
from millrace.contracts import coclick_message
from millrace.contracts.events import MAX_EVENT_BYTES, PageLog
from millrace.contracts.page_logs import page_log_bytes
from millrace.contracts.pagepack import Rates
from millrace.contracts.samples import NEGATIVE, SampleBatch
from millrace.contracts.schema import Schema
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
from millrace.versions.clicks import ClickHistogram
from millrace.versions.modellog import _sealed
from millrace.versions.versioning import MAX_EPOCH

PARTITIONS = Settings().partitions


class Bad(NamedTuple):
    """A message and what is bad about it. ``partition``: where its producer puts it; None: where Kafka's default
    partitioner does, by its key."""

    topic: str
    name: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None


class Bytes(str):
    """The name of a header that a producer writes as bytes which are no UTF-8."""

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"\xff\xfe"


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


DEEP = 20_000
VALUES: Mapping[str, bytes] = {
    "null": b"null",
    "true": b"true",
    "minus one": b"-1",
    "a fraction": b"1.5",
    "1e39": b"1e39",
    "1e400": b"1e400",
    "400 digits": b"9" * 401,
    "2^63": b"9223372036854775808",
    "2^64": b"18446744073709551616",
    "-2^63-1": b"-9223372036854775809",
    "9e18": b"9000000000000000000",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "empty text": b'""',
    "a comma": b'"12,50"',
    "long text": b'"' + b"x" * 5000 + b'"',
    "half a surrogate": b'"\\ud800"',
    "latin-1": b'"caf\xe9"',
    "NUL": b'"a\\u0000b"',
    "raw NUL": b'"a\x00b"',
    "a list": b'["a", "b"]',
    "a mixed list": b'[1, "a", null, 2.5]',
    "2^70 in a list": b"[1180591620717411303424]",
    "an object": b'{"a": 1}',
    "40 deep": deep(40),
    "very deep": deep(DEEP),
}
"""JSON by what is bad about it; some of it is no JSON."""

PACKED: Mapping[str, Any] = {
    "nil": None,
    "true": True,
    "minus one": -1,
    "a fraction": 1.5,
    "infinity": float("inf"),
    "2^64-1": 2**64 - 1,
    "-2^63": -(2**63),
    "9e18": 9 * 10**18,
    "empty text": "",
    "text": "x" * 300,
    "no bytes": b"",
    "seven bytes": b"1234567",
    "ones": b"\xff" * 64,
    "a list": ["a", 1],
    "a list of nothing": [None],
    "a map": {"a": 1},
    "an extension": msgspec.msgpack.Ext(5, b"x"),
}


def json_object(fields: Mapping[str, bytes]) -> bytes:
    return b"{" + b", ".join(b'"%s": %s' % (name.encode(), value) for name, value in fields.items()) + b"}"


def json_fields(**values: Any) -> dict[str, bytes]:
    return {name: msgspec.json.encode(value) for name, value in values.items()}


def whole(topic: str, key: bytes, good: bytes) -> Iterator[Bad]:
    """A good message, broken as a whole."""
    for name, value in {
        "empty": b"",
        "a blank": b" ",
        "null": b"null",
        "a list": b"[]",
        "a number": b"7",
        "no JSON": b"{not json",
        "a mark of byte order": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode(errors="replace").encode("utf-16"),
        "twice": good + good,
        "zeros": bytes(64),
        "0xc1": b"\xc1",
        "open brackets": b"[" * DEEP,
        "open maps": b'{"a":' * DEEP,
        "open arrays, packed": b"\x91" * DEEP,
        "quotes": b'"' + b'\\"' * 100_000,
        "a quarter": good[: len(good) // 4],
        "a half": good[: len(good) // 2],
        "all but the end": good[:-1],
    }.items():
        yield Bad(topic, name, key, value)
    yield Bad(topic, "a tombstone", key, None)
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 0x80
    yield Bad(topic, "a bit flipped", key, bytes(flipped))


def json_bad(topic: str, key: bytes, good: Mapping[str, bytes], inner: str = "") -> Iterator[Bad]:
    """A good JSON object with each bad value in each field, and in each attribute of the field ``inner``."""
    yield from whole(topic, key, json_object(good))
    for name in good:
        yield Bad(topic, f"without {name}", key, json_object({n: v for n, v in good.items() if n != name}))
        for what, value in VALUES.items():
            yield Bad(topic, f"{name}: {what}", key, json_object({**good, name: value}))
    for what, value in VALUES.items():
        yield Bad(topic, f"an unknown field: {what}", key, json_object({"unknown": value, **good}))
    if inner:
        attributes = {n: msgspec.json.encode(v) for n, v in msgspec.json.decode(good[inner]).items()}
        for name in attributes:
            for what, value in VALUES.items():
                body = json_object({**good, inner: json_object({**attributes, name: value})})
                yield Bad(topic, f"{inner}.{name}: {what}", key, body)
    large = json_object({**good, "padding": b'"' + b"x" * MAX_EVENT_BYTES + b'"'})
    yield Bad(topic, "oversized", key, large)


def packed_bad(topic: str, key: bytes, good: Mapping[str, Any]) -> Iterator[Bad]:
    """A good MessagePack map with each bad value in each field."""
    encode = msgspec.msgpack.encode
    yield from whole(topic, key, encode(good))
    for name in good:
        yield Bad(topic, f"without {name}", key, encode({n: v for n, v in good.items() if n != name}))
        for what, value in PACKED.items():
            yield Bad(topic, f"{name}: {what}", key, encode({**good, name: value}))
    head = encode({**good, "unknown": None})[:-1]  # the nil is the last byte
    yield Bad(topic, "an unknown field: very deep", key, head + b"\x91" * DEEP + b"\xc0")


def bad_events(ts_ms: int) -> Iterator[Bad]:
    common = json_fields(event_id="bad", request_id="bad-page", ts_ms=ts_ms, user_id=7, sent_ms=ts_ms)
    page = json_fields(type="exposure", items=[1, 2], offset=0) | common
    yield from json_bad(EVENTS, b"7", page)
    yield from json_bad(EVENTS, b"7", page | json_fields(slots=[1, 0]))
    for slots in ([0, 100_000], [2, 3], [0], [0, 0], [0, 1, 2], [[0], [1]]):
        odd = json_fields(slots=slots, request_id=f"slots-{slots}"[:40])
        yield Bad(EVENTS, f"slots {slots}", b"7", json_object(page | odd))
        yield Bad(
            EVENTS, f"slots {slots} of a page that was served", b"7", json_object(page | json_fields(slots=slots))
        )
    yield from json_bad(EVENTS, b"7", json_fields(type="click", item_id=1, position=0) | common)
    good = json_object(page | json_fields(request_id="headers", event_id="headers"))
    clocks = (b"", b"noon", b"\xff", b"1:2:nan", b"1:2:inf", b"1:2:0", b"1:2:1e300", b"9" * 400 + b":1:1", b"-5:-5:1")
    for clock in clocks:
        yield Bad(EVENTS, f"clock {clock[:20]!r}", b"7", good, (("clock", clock),))
    yield Bad(EVENTS, "a header's name of bytes", b"7", good, ((Bytes("x"), b"v"),))
    yield Bad(EVENTS, "no key", None, good)
    yield Bad(EVENTS, "a key of bytes", b"\xff\xfe\x00", good)


def astray(schema: Schema, ts_ms: int) -> Iterator[Bad]:
    """Good messages of the user 7, whose partition is the last of four, in other partitions: under no key, under
    another user's key, and put there by the CRC-32 of the right key, as librdkafka does it by default."""
    common = json_fields(user_id=7, ts_ms=ts_ms)
    served = {"ts_ms": ts_ms, "user_id": 7, "arm": "model", "model_version": 3, "schema_id": schema.id}
    layout = schema.layout
    arrays = {"scores": bytes(4), "keys": bytes(8 * layout.K), "cat": bytes(8 * layout.F), "num": bytes(4 * layout.N)}
    for number, (how, key, partition) in enumerate(
        [
            ("no key", None, 0),
            ("no key, elsewhere", None, 1),
            ("another user's key", b"11", None),
            ("CRC-32 of the key", b"7", zlib.crc32(b"7") % PARTITIONS),
        ]
    ):
        page = f"astray-{number}"
        named = common | json_fields(request_id=page, event_id=page)
        seen = json_object(named | json_fields(type="exposure", items=[1, 2]))
        clicked = json_object(named | json_fields(type="click", item_id=1, position=0))
        page_log = msgspec.msgpack.encode({"request_id": page, "items": [1], **served, **arrays})
        user = json_object(json_fields(user_id=7, attributes={}))
        yield Bad(EVENTS, f"seen: {how}", key, seen, partition=partition)
        yield Bad(EVENTS, f"clicked: {how}", key, clicked, partition=partition)
        yield Bad(PAGE_LOGS, f"served: {how}", key, page_log, partition=partition)
        if key is not None:  # no compacted topic takes a message without a key
            yield Bad(USERS, f"profile: {how}", key, user, partition=partition)


def bad_users() -> Iterator[Bad]:
    user = json_fields(user_id=7, attributes={"kind": "business", "age": 3, "tags": ["a"]})
    yield from json_bad(USERS, b"7", user, "attributes")


def bad_items(ts_ms: int) -> Iterator[Bad]:
    attributes = {"category": "shoes", "price": 2.5, "tags": ["a", "b"]}
    item = json_fields(item_id="bad-item", attributes=attributes, born_ms=ts_ms, gone=False)
    yield from json_bad(ITEMS, b"bad-item", item, "attributes")
    yield Bad(ITEMS, "a header's name of bytes", b"bad-item", json_object(item), ((Bytes("x"), b"v"),))
    yield Bad(ITEMS, "a tombstone whose key is no text", b"\xff\xfe", None)
    yield Bad(ITEMS, "a tombstone of nothing", b"", None)


def bad_page_logs(schema: Schema, ts_ms: int) -> Iterator[Bad]:
    layout, n = schema.layout, 2
    good: dict[str, Any] = {
        "request_id": "bad-page",
        "ts_ms": ts_ms,
        "user_id": 7,
        "arm": "model",
        "model_version": 3,
        "schema_id": schema.id,
        "items": [1, 2],
        "scores": bytes(4 * n),
        "keys": bytes(8 * n * layout.K),
        "cat": bytes(8 * n * layout.F),
        "num": bytes(4 * n * layout.N),
        "served_ms": ts_ms,
        "offset": 20,
        "sources": bytes([1, 6]),
    }
    yield from packed_bad(PAGE_LOGS, b"7", good)
    once = page_log_bytes(PageLog(**good), Rates.of(schema))
    yield from whole(PAGE_LOGS, b"7", once)
    message = msgspec.msgpack.decode(once)
    for place, part in enumerate(message):
        for value in (None, -1, 1 << 63, "x", b"\xff", [], [part], part * 2 if isinstance(part, bytes) else {}):
            changed = [*message[:place], value, *message[place + 1 :]]
            yield Bad(PAGE_LOGS, f"entry {place} is {str(value)[:20]}", b"7", msgspec.msgpack.encode(changed))
    for name, fill in {"num": b"\xff", "scores": b"\x7f", "cat": b"\x80", "keys": b"\xff"}.items():
        # Whole arrays of NaN, of huge numbers, of the same key: of the right size, so the message is taken.
        odd = {**good, "request_id": f"odd-{name}", name: fill * len(good[name])}
        yield Bad(PAGE_LOGS, f"{name}: all {fill!r}", b"7", msgspec.msgpack.encode(odd))
        page = json_fields(type="exposure", event_id=f"odd-{name}", request_id=f"odd-{name}", user_id=7, items=[1, 2])
        yield Bad(EVENTS, f"seen: {name} all {fill!r}", b"7", json_object(page | json_fields(ts_ms=ts_ms)))
        click = json_fields(type="click", event_id=f"c-{name}", request_id=f"odd-{name}", user_id=7, position=0)
        yield Bad(EVENTS, f"clicked: {name}", b"7", json_object(click | json_fields(ts_ms=ts_ms + 1, item_id=1)))


def bad_item_tiles(ts_ms: int) -> Iterator[Bad]:
    key, tiles = np.array([99], "<u8").tobytes(), b"\x01\x03\x01\x00" + b"\x81\x80\x1d\x01\x01\x01"
    good = {"partition": 0, "seq": 1, "event_ms": ts_ms, "keys": key, "sizes": np.array([len(tiles)], "<u4").tobytes()}
    good["tiles"] = tiles
    yield from packed_bad(FEATURES_ITEMS, b"0", good)
    draw = np.random.default_rng(0)
    for number in range(40):
        blob = bytes([1, int(draw.integers(0, 6)), int(draw.integers(0, 9)), 0]) + draw.bytes(int(draw.integers(0, 40)))
        rubbish = good | {"tiles": blob, "sizes": np.array([len(blob)], "<u4").tobytes()}
        yield Bad(FEATURES_ITEMS, f"rubbish {number}", b"0", msgspec.msgpack.encode(rubbish))


def bad_coclicks(ts_ms: int) -> Iterator[Bad]:
    """A good message that is cut, longer, changed byte by byte, and rubbish."""
    counts = np.ones((3, coclick_message.DAYS), np.uint16)
    hashes = np.arange(1, 6, dtype=np.uint64)
    lists = coclick_message.Lists(ts_ms // DAY_MS, hashes[:2], np.array([1, 2], np.uint8), hashes[2:], counts)
    (good,) = coclick_message.pack(0, lists)
    yield Bad(FEATURES_COCLICKS, "a tombstone", b"0", None)
    for length in range(0, len(good), 3):
        yield Bad(FEATURES_COCLICKS, f"cut to {length} bytes", b"0", good[:length])
    yield Bad(FEATURES_COCLICKS, "one byte more", b"0", good + b"\0")
    for at in range(40):
        for bits in (1, 0x80, 0xFF):
            changed = bytearray(good)
            changed[at] ^= bits
            yield Bad(FEATURES_COCLICKS, f"byte {at} changed by {bits}", b"0", bytes(changed))
    draw = np.random.default_rng(0)
    for number in range(40):
        yield Bad(FEATURES_COCLICKS, f"rubbish {number}", b"0", good[:1] + draw.bytes(int(draw.integers(0, 200))))


def good_samples(schema: Schema, ts_ms: int) -> SampleBatch:
    """Four negatives of one page."""
    n, layout = 4, schema.layout
    return SampleBatch.of_rows(
        np.full(n, NEGATIVE, np.uint8),
        np.full(n, ts_ms),
        np.ones((n, layout.F), np.int64),
        np.ones((n, layout.N), np.float32),
        ("samples-page",),
        position=np.arange(n, dtype=np.int32),
        score=np.full(n, 0.5, np.float32),
        version=np.zeros(n, np.int64),
    )


def bad_samples(good: SampleBatch) -> Iterator[Bad]:
    raw = good.to_bytes()
    yield from whole(SAMPLES, b"", raw)
    encode = msgspec.msgpack.encode
    message = msgspec.msgpack.decode(raw)
    for place, part in enumerate(message):
        for what, value in {
            "nothing": None,
            "a number": 1 << 62,
            "negative": -1,
            "a text": "x",
            "a byte": b"\x80",
            "empty": [],
            "one more": [*part, b"\xff"] if isinstance(part, list) else [part],
            "one less": part[:-1] if isinstance(part, list) else [part],
        }.items():
            yield Bad(SAMPLES, f"entry {place}: {what}", b"", encode([*message[:place], value, *message[place + 1 :]]))
    columns = message[3]
    for place, body in enumerate(columns):
        for what, value in {
            "nothing": b"",
            "one byte more": body + b"\0",
            "all ones": b"\xff" * len(body),
            "the largest": b"\xff" * (len(body) - 1) + b"\x7f",
            "0x80": b"\x80" * len(body),
        }.items():
            changed = [*columns[:place], value, *columns[place + 1 :]]
            yield Bad(SAMPLES, f"column {place}: {what}", b"", encode([*message[:3], changed, *message[4:]]))


def bad_announcements(schema: Schema, ts_ms: int) -> Iterator[Bad]:
    """Messages of ``model.deltas``: bare JSON; rubbish; and each kind of our own with a right checksum
    and something wrong within. Their epoch is 0: none of them is a learner that takes over, which is no bad message."""
    note = json_fields(
        kind="delta", epoch=0, version=5, claimant="nobody", parent="0" * 64, hash="1" * 64, digest="2" * 64, size=10,
        schema_id=schema.id, spec={"model": "wide_deep"}, event_ms=ts_ms, trained=1, clicks=ClickHistogram.of([ts_ms]),
        published_ms=ts_ms, parts=[], training=[], follows=3, log="", offset=0, samples_log="",
        extra={},
    )  # fmt: skip
    snapshot = note | json_fields(kind="snapshot", parent="3" * 64, hash="3" * 64)
    yield from json_bad(MODEL_DELTAS, b"", note)
    for bad in json_bad(MODEL_DELTAS, b"", snapshot):
        yield from _enclosed("snapshot", bad, b"S")
    for bad in json_bad(MODEL_DELTAS, b"", json_fields(epoch=0, claimant="nobody")):
        yield from _enclosed("claim", bad, b"C")
    piece, length = struct.Struct("<QQ8sII"), struct.Struct("<I")
    head = piece.pack(0, 5, hashlib.sha256(b"nobody").digest()[:8], 0, 1)
    for bad in json_bad(MODEL_DELTAS, b"", note):
        value = bad.value or b""
        yield from _enclosed("delta", bad, b"D", head + length.pack(len(value)))
    for name, rest in {
        "no head": b"x",
        "chunk 1 of 0": piece.pack(0, 5, bytes(8), 1, 0),
        "chunk 0 of 4 billion": piece.pack(0, 5, bytes(8), 0, 2**32 - 1),
        "a note of 4 GB": head + length.pack(2**32 - 1),
        "no note": head,
    }.items():
        yield Bad(MODEL_DELTAS, f"delta: {name}", b"", _sealed(b"D", rest))
    yield Bad(MODEL_DELTAS, "of a kind that is none", b"", _sealed(b"X", b"{}"))
    damaged = bytearray(_sealed(b"S", json_object(snapshot)))
    damaged[-3] ^= 1
    yield Bad(MODEL_DELTAS, "snapshot: flipped", b"", bytes(damaged))
    for name in ("/dev/zero", "../../etc/passwd", "..", ".hidden", "a/b", "", "a\\u0000b", "/etc/passwd", "damaged-x"):
        file = b'{"name":"%s","digest":"00","size":10}' % name.encode()
        for where in ("parts", "training"):
            body = json_object(snapshot | {where: b"[" + file + b"]"})
            yield Bad(MODEL_DELTAS, f"{where}: {name}", b"", _sealed(b"S", body))
        body = json_object(note | {"file": file})
        yield Bad(MODEL_DELTAS, f"file: {name}", b"", _sealed(b"D", head, length.pack(len(body)), body))
    for name, spec in {"unknown": {"model": "no such"}, "no entry": {"x": 1}, "of text": {"width": "wide"}}.items():
        yield Bad(MODEL_DELTAS, f"spec: {name}", b"", _sealed(b"S", json_object(snapshot | json_fields(spec=spec))))


def _enclosed(what: str, bad: Bad, kind: bytes, head: bytes = b"") -> Iterator[Bad]:
    """The bad JSON within a message of ours; not where it names an epoch that can be claimed."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = msgspec.json.decode(bad.value or b"")
        epoch = said.get("epoch") if isinstance(said, dict) else None
        if isinstance(epoch, int) and 0 < epoch <= MAX_EPOCH:
            return
    yield Bad(bad.topic, f"{what}: {bad.name}", bad.key, _sealed(kind, head, bad.value or b""))


def bad_dead_letters() -> Iterator[Bad]:
    dead_letter = json_fields(
        reason="rubbish", detail="", topic="elsewhere", partition=0, offset=10**9, exposures=0, raw="", truncated=False
    )
    yield from json_bad(DEAD_LETTERS, b"rubbish", dead_letter)


def bad_truths(ts_ms: int) -> Iterator[Bad]:
    yield from packed_bad(TRUTH, b"7", {"request_id": "bad-page", "ts_ms": ts_ms, "offset": 0, "p": bytes(8)})


def corpus(schema: Schema, ts_ms: int) -> list[Bad]:
    """Everything. ``ts_ms`` is an event time that is neither late nor ahead."""
    parts: Iterable[Iterator[Bad]] = (
        bad_events(ts_ms),
        astray(schema, ts_ms),
        bad_users(),
        bad_items(ts_ms),
        bad_page_logs(schema, ts_ms),
        bad_item_tiles(ts_ms),
        bad_coclicks(ts_ms),
        bad_samples(good_samples(schema, ts_ms)),
        bad_announcements(schema, ts_ms),
        bad_dead_letters(),
        bad_truths(ts_ms),
    )
    return [bad for part in parts for bad in part]
