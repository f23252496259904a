# shell
"""Lets aiokafka (and so Faust) read Kafka headers whose names are not UTF-8.

aiokafka's compiled parser raises at such a name each time that the batch is fetched again, and aiokafka drops what
it had read of other partitions meanwhile. Here aiokafka's parser in Python reads the rest of that answer, with
replacement characters in such names. :func:`millrace.processes.kafka.read_any_header` serves the other client.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy

from millrace.processes.kafka import read_any_header


class _Kept:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        records = MemoryRecords(raw)
        self.has_next, self.next_batch, self.size_in_bytes = records.has_next, records.next_batch, records.size_in_bytes


class _InPython(_MemoryRecordsPy):  # type: ignore[misc]
    def next_batch(self, *args: Any) -> Any:
        piece, batch = self._next_slice, super().next_batch(*args)
        return _DefaultRecordBatchPy(bytearray(piece)) if isinstance(batch, DefaultRecordBatch) else batch


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    _records: Any

    def _unpack_records(self) -> Iterator[Any]:
        try:
            yield from super()._unpack_records()
        except UnicodeDecodeError:
            self._records = _InPython(self._records.raw)
            yield from super()._unpack_records()  # goes on at `next_fetch_offset`, which it keeps


def install() -> None:
    """Makes aiokafka's consumers read any header. A second call changes nothing."""
    if fetcher.PartitionRecords is not _PartitionRecords:
        read_any_header(_DefaultRecordBatchPy)
        fetcher.MemoryRecords, fetcher.PartitionRecords = _Kept, _PartitionRecords
