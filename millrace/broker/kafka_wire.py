# core
"""Kafka's frames, and the two requests that carry data: Produce (versions 3 to 8) and Fetch (4 to 11), by hand.

::

    frame      | size 4 | request or answer |
    request    | key 2 | version 2 | correlation 4 | client's name | fields ...
    answer     | correlation 4 | fields ...

These versions are the newest that both clients speak without "flexible" fields. Record sets are slices of the frame and
go to the file without a copy. ``calls.py`` decodes all other requests. Source of the fields: Kafka's message schemas,
``ProduceRequest.json`` and so on.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PRODUCE, FETCH = 0, 1
PRODUCE_VERSIONS, FETCH_VERSIONS = (3, 8), (4, 11)

FRAME_BYTES = 100 * 1024 * 1024
"""The largest request, as Kafka's ``socket.request.max.bytes``. No Kafka client sends a larger one."""

_HEAD = struct.Struct(">hhi")
_I16, _I32, _I64 = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q")


class Malformed(ValueError):
    """Bytes that are not a request of this protocol."""


class Request(NamedTuple):
    """The head of a request. ``at``: start of its fields (or, for flexible versions, of the head's tags)."""

    key: int
    version: int
    correlation: int
    client: str
    at: int


class PutPart(NamedTuple):
    topic: str
    partition: int
    records: memoryview


class Put(NamedTuple):
    acks: int
    parts: list[PutPart]


class Placed(NamedTuple):
    topic: str
    partition: int
    code: int
    base: int
    start: int
    why: str = ""


class GetPart(NamedTuple):
    topic: str
    partition: int
    offset: int
    max_bytes: int


class Get(NamedTuple):
    max_wait_ms: int
    min_bytes: int
    max_bytes: int
    parts: list[GetPart]


class Got(NamedTuple):
    topic: str
    partition: int
    code: int
    end: int
    start: int
    records: bytes


class _Reader:
    """Reads fields in order. Every read raises :class:`Malformed` at the end of the frame."""

    __slots__ = ("at", "data")

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at

    def _fixed(self, form: struct.Struct) -> int:
        try:
            value: int = form.unpack_from(self.data, self.at)[0]
        except struct.error:
            raise Malformed("the request ends early") from None
        self.at += form.size
        return value

    def i8(self) -> int:
        if self.at >= len(self.data):
            raise Malformed("the request ends early")
        self.at += 1
        return self.data[self.at - 1]

    def i16(self) -> int:
        return self._fixed(_I16)

    def i32(self) -> int:
        return self._fixed(_I32)

    def i64(self) -> int:
        return self._fixed(_I64)

    def count(self) -> int:
        """The length of an array. Each element has four bytes at least, which bounds it by the frame."""
        count = self.i32()
        if count > (len(self.data) - self.at) // 4:
            raise Malformed(f"an array of {count} in {len(self.data) - self.at} bytes")
        return max(count, 0)

    def slice(self, size: int) -> memoryview:
        end = self.at + max(size, 0)
        if end > len(self.data):
            raise Malformed(f"{size} bytes where {len(self.data) - self.at} are left")
        found = self.data[self.at : end]
        self.at = end
        return found

    def string(self) -> str:
        try:
            return str(self.slice(self.i16()), "utf-8")
        except UnicodeDecodeError:
            raise Malformed("a name that is not UTF-8") from None


def frame_size(data: bytearray) -> int:
    """Bytes of the first frame in ``data`` (four bytes at least), without the size itself. Raises Malformed when it is
    not a Kafka frame."""
    size: int = _I32.unpack_from(data)[0]
    if not _HEAD.size + 2 <= size <= FRAME_BYTES:
        raise Malformed(f"a frame of {size} bytes")
    return size


def read_request(frame: memoryview) -> Request:
    """The head of a frame of at least ten bytes."""
    key, version, correlation = _HEAD.unpack_from(frame)
    fields = _Reader(frame, _HEAD.size)
    client = fields.string()
    return Request(key, version, correlation, client, fields.at)


def read_put(frame: memoryview, at: int) -> Put:
    """The fields of a Produce request. Raises Malformed."""
    fields = _Reader(frame, at)
    fields.string()  # transactional id; a transactional batch is refused later
    acks = fields.i16()
    fields.i32()  # time-out: there are no replicas to wait for
    parts = []
    for _ in range(fields.count()):
        topic = fields.string()
        for _ in range(fields.count()):
            number = fields.i32()
            parts.append(PutPart(topic, number, fields.slice(fields.i32())))
    return Put(acks, parts)


def read_get(frame: memoryview, at: int, version: int) -> Get:
    """The fields of a Fetch request. Raises Malformed."""
    fields = _Reader(frame, at)
    fields.i32()  # replica
    max_wait_ms, min_bytes, max_bytes = fields.i32(), fields.i32(), fields.i32()
    fields.i8()  # isolation: there are no transactions
    if version >= 7:
        fields.i64()  # session id and epoch: every request here is a whole one
    parts = []
    for _ in range(fields.count()):
        topic = fields.string()
        for _ in range(fields.count()):
            number = fields.i32()
            if version >= 9:
                fields.i32()  # the leader's epoch
            offset = fields.i64()
            if version >= 5:
                fields.i64()  # a follower's start
            parts.append(GetPart(topic, number, offset, fields.i32()))
    return Get(max_wait_ms, min_bytes, max_bytes, parts)


def _string(text: str) -> bytes:
    data = text.encode()
    return _I16.pack(len(data)) + data


def _by_topic(rows: list[tuple[str, bytes]]) -> list[bytes]:
    """An array of topics with an array of partitions each, of (topic, encoded partition) pairs."""
    topics: dict[str, list[bytes]] = {}
    for topic, row in rows:
        topics.setdefault(topic, []).append(row)
    out = [_I32.pack(len(topics))]
    for topic, found in topics.items():
        out += [_string(topic), _I32.pack(len(found)), *found]
    return out


_PLACED = struct.Struct(">ihqq")
_GOT = struct.Struct(">ihqq")
_NO_TIME = -1


def put_answer(correlation: int, version: int, placed: list[Placed]) -> list[bytes]:
    rows = []
    for part in placed:
        row = _PLACED.pack(part.partition, part.code, part.base, _NO_TIME)
        if version >= 5:
            row += _I64.pack(part.start)
        if version >= 8:
            row += _I32.pack(0) + (_string(part.why[:1000]) if part.why else b"\xff\xff")
        rows.append((part.topic, row))
    return framed(correlation, [*_by_topic(rows), _I32.pack(0)])


def get_answer(correlation: int, version: int, got: list[Got]) -> list[bytes]:
    rows: dict[str, list[bytes]] = {}
    for part in got:
        head = _GOT.pack(part.partition, part.code, part.end, part.end)
        if version >= 5:
            head += _I64.pack(part.start)
        head += b"\xff\xff\xff\xff"  # no aborted transactions
        if version >= 11:
            head += b"\xff\xff\xff\xff"  # no nearer replica
        rows.setdefault(part.topic, []).extend((head + _I32.pack(len(part.records)), part.records))
    out = [b"\0" * (10 if version >= 7 else 4), _I32.pack(len(rows))]  # throttle; no error, no session
    for topic, found in rows.items():
        out += [_string(topic) + _I32.pack(len(found) // 2), *found]
    return framed(correlation, out)


def framed(correlation: int, pieces: list[bytes]) -> list[bytes]:
    """The pieces of an answer behind their frame."""
    return [_HEAD_OUT.pack(4 + sum(map(len, pieces)), correlation), *pieces]


_HEAD_OUT = struct.Struct(">ii")
