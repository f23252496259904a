# core
"""Record batches, Kafka's format 2: reading heads, checking batches, reading records.

::

    0        8     12       16  17    21           23            27        35        43    51      53    57  61
    | base   | len | leader | 2 | crc | attributes | last offset | first   | latest  | pid | epoch | seq | n | records
    | offset |     | epoch  |   |     |            | - base      | time ms | time ms |     |       |     |   |
                                      └──────────── the CRC32C covers all from here ────────────────────────────►

The checksum leaves out the base offset and the leader epoch: a broker writes them when it takes the batch. Source:
Kafka's documentation, "Record Batch" and "Record"; varints are zigzag coded as in protocol buffers.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import crc32c
import zstandard

from millrace.broker import codes
from millrace.broker.codes import BrokerRefusal

HEAD = struct.Struct(">qiibIhiqqqhii")
HEAD_BYTES = HEAD.size  # 61
LENGTH_AT = 12  # offset in a batch from which its length counts: behind the base offset and the length itself
CRC_FROM = 21
PLACE = struct.Struct(">qi11xi")  # base offset, length and last offset less the base, for a walk over batches
PLACE_BYTES = PLACE.size  # 27
PREFIX = struct.Struct(">qii")

NO_CODEC, GZIP, SNAPPY, LZ4, ZSTD = range(5)
INFLATED_BYTES = 64 * 1024 * 1024  # limit for one inflated batch: a hostile one inflates to gigabytes


class BatchHeader(NamedTuple):
    """The first 61 bytes of a batch."""

    base: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_delta: int
    first_ms: int
    max_ms: int
    producer: int
    producer_epoch: int
    sequence: int
    records: int

    @property
    def size(self) -> int:
        return LENGTH_AT + self.length

    @property
    def last(self) -> int:
        """Offset of the last record that the producer sent."""
        return self.base + self.last_delta

    @property
    def codec(self) -> int:
        return self.attributes & 7


def read_head(data: bytes | bytearray | memoryview, at: int = 0) -> BatchHeader:
    """Raises struct.error when fewer than 61 bytes are there."""
    return BatchHeader._make(HEAD.unpack_from(data, at))


def checksum_fits(data: bytes | bytearray | memoryview, head: BatchHeader, at: int = 0) -> bool:
    """Whether the batch at ``at`` has the CRC32C of its head."""
    return bool(crc32c.crc32c(memoryview(data)[at + CRC_FROM : at + head.size]) == head.crc)


def admit(data: memoryview, limit: int) -> BatchHeader:
    """The head of a producer's record set for one partition, which must be exactly one valid batch of ``limit`` bytes
    at most. Raises Refusal with Kafka's code for the fault."""
    if len(data) > limit:
        raise BrokerRefusal(codes.MESSAGE_TOO_LARGE, f"{len(data)} bytes are more than {limit}")
    if len(data) > 16 and data[16] != 2:
        raise BrokerRefusal(codes.UNSUPPORTED_FOR_MESSAGE_FORMAT, f"record format {data[16]} instead of 2")
    if len(data) < HEAD_BYTES:
        raise BrokerRefusal(codes.CORRUPT_MESSAGE, f"{len(data)} bytes are no record batch")
    head = read_head(data)
    if head.size != len(data):
        raise BrokerRefusal(codes.CORRUPT_MESSAGE, f"a batch of {head.size} bytes in a record set of {len(data)}")
    if not checksum_fits(data, head):
        raise BrokerRefusal(codes.CORRUPT_MESSAGE, "wrong checksum")
    if head.codec > ZSTD:
        raise BrokerRefusal(codes.UNSUPPORTED_COMPRESSION_TYPE, f"compression {head.codec}")
    if head.records < 1 or head.last_delta != head.records - 1:
        raise BrokerRefusal(codes.INVALID_RECORD, f"{head.records} records with a last offset of {head.last_delta}")
    if head.attributes & 0x30:
        raise BrokerRefusal(codes.INVALID_RECORD, "transactions are not supported")
    return head


class Unreadable(ValueError):
    """The records of a batch are damaged, too large, or of an unsupported compression."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One record; ``raw`` is its bytes with their length in front."""

    offset: int
    time_ms: int
    key: bytes | None
    is_tombstone: bool
    raw: bytes


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag number at ``at``, and the position behind it. Raises IndexError at the end of the data."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise Unreadable("a number of more than 64 bits")


def records_of(batch: bytes) -> list[BatchRecord]:
    """The records of one whole batch. Raises Unreadable."""
    head = read_head(batch)
    data = _inflate(batch[HEAD_BYTES:], head.codec)
    append_time = head.attributes & 8
    records = []
    at = 0
    try:
        for _ in range(head.records):
            start = at
            length, at = varint(data, at)
            end = at + length
            if length < 0 or end > len(data):
                raise Unreadable(f"a record of {length} bytes")
            time_delta, at = varint(data, at + 1)  # one byte of attributes, unused
            offset_delta, at = varint(data, at)
            key_length, at = varint(data, at)
            key = data[at : at + key_length] if key_length >= 0 else None
            value_length, _ = varint(data, at + max(key_length, 0))
            time_ms = head.max_ms if append_time else head.first_ms + time_delta
            records.append(BatchRecord(head.base + offset_delta, time_ms, key, value_length < 0, data[start:end]))
            at = end
    except IndexError:
        raise Unreadable("a record that ends early") from None
    return records


def without(batch: bytes, kept: Iterable[BatchRecord], count: int) -> bytes:
    """The batch with only the ``count`` records ``kept``, in order, at their old offsets. The range of offsets
    stays."""
    head = read_head(batch)
    body = _deflate(b"".join(record.raw for record in kept), head.codec)
    length = HEAD_BYTES - LENGTH_AT + len(body)
    out = bytearray(HEAD.pack(*head._replace(length=length, records=count)) + body)
    struct.pack_into(">I", out, CRC_FROM - 4, crc32c.crc32c(memoryview(out)[CRC_FROM:]))
    return bytes(out)


def _inflate(data: bytes, codec: int) -> bytes:
    try:
        if codec == NO_CODEC:
            return data
        if codec == GZIP:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as unzipped:
                found = unzipped.read(INFLATED_BYTES + 1)
        elif codec == ZSTD:
            with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
                found = reader.read(INFLATED_BYTES + 1)
        else:
            raise Unreadable(f"compression {codec} is not read here")
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise Unreadable(f"damaged compression: {error}") from None
    if len(found) > INFLATED_BYTES:
        raise Unreadable(f"more than {INFLATED_BYTES} bytes when inflated")
    return found


def _deflate(data: bytes, codec: int) -> bytes:
    if codec == GZIP:
        return gzip.compress(data, mtime=0)
    if codec == ZSTD:
        return zstandard.ZstdCompressor().compress(data)
    return data
