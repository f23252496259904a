"""Record batches as a producer sends them, whole and with a flipped bit."""

from __future__ import annotations

from kafka.record.default_records import DefaultRecordBatchBuilder

from millrace.broker.log import PartitionLog

Row = tuple[bytes | None, bytes | None, int]
"""Key, value, time in ms."""


CODECS = {"none": 0, "gzip": 1, "zstd": 4}


def batch(rows: list[Row], codec: str = "none", producer: int = -1, sequence: int = -1, epoch: int = -1) -> bytes:
    """A record batch as kafka-python's producer makes it."""
    builder = DefaultRecordBatchBuilder(2, CODECS[codec], False, producer, epoch, sequence, 1 << 30)
    for number, (key, value, time_ms) in enumerate(rows):
        assert builder.append(number, time_ms, key, value, []) is not None
    return bytes(builder.build())


def one(value: bytes = b"v", time_ms: int = 1000, key: bytes | None = None) -> bytes:
    return batch([(key, value, time_ms)])


def put(log: PartitionLog, data: bytes, now_ms: int = 0) -> int:
    return log.append(memoryview(data), now_ms)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
