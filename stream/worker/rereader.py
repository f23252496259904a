# shell
"""Reads page logs from Kafka again, by partition and offset, for settled pages.

::

    wanted    17 18 21 ............ 940 941            offsets, in order
    reading   └─ one seek, read on ─┘    └─ another ─┘    what lies between is read through while it is little

A thread with its own consumer, in no group, independent of the worker's. Late clicks are few, so it connects when
the first comes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.errors import CorruptRecordError, KafkaError, OffsetOutOfRangeError

from millrace.basics.errors import BrokerError, one_line
from millrace.contracts.settings import Settings
from millrace.contracts.topics import PAGE_LOGS
from millrace.processes.kafka import make_consumer

log = structlog.get_logger("recall")

NEAR = 200
"""Messages between two wanted ones that are read through. Above that it seeks."""
PATIENCE_S = 10.0
"""For one reading. Offsets not read in time are asked for again."""
PATIENCE_MS = 3000
"""For the broker to answer at all."""
POLL_MS = 500
UNREADABLE = (OffsetOutOfRangeError, CorruptRecordError, ValueError)
"""Errors that a second try does not help."""


class PageLogReader:
    """Any thread may call :meth:`read`; readings are made one after another."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: Any = None
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "recall")

    def read(self, partition: int, offsets: Iterable[int]) -> dict[int, bytes | None] | None:
        """The messages at these offsets of a partition of ``page_logs``; None for one that has expired or is beyond
        the log's end. A missing offset was not reached in time: ask again. None for all: the broker does not answer
        (logged each reading). Blocks."""
        return self._thread.submit(self._read, partition, sorted(set(offsets))).result()

    def close(self) -> None:
        """Ends the thread. A reading under way gives up soon."""
        self._closing = True
        self._thread.submit(self._let_go)
        self._thread.shutdown()

    def _read(self, partition: int, offsets: list[int]) -> dict[int, bytes | None] | None:
        try:
            tp = TopicPartition(self._settings.topic(PAGE_LOGS), partition)
            return self._found(tp, offsets, time.monotonic() + PATIENCE_S)
        except (BrokerError, KafkaError, OSError) as error:  # TimeoutError is an OSError
            log.warning("page logs cannot be read again yet", partition=partition, error=one_line(error))
            self._let_go()
            return None

    def _found(self, tp: TopicPartition, offsets: list[int], until_s: float) -> dict[int, bytes | None]:
        if self._consumer is None:
            self._consumer = make_consumer(
                self._settings,
                auto_offset_reset="none",  # the beginning of the log is no answer
                fetch_max_wait_ms=50,
                max_partition_fetch_bytes=1024 * 1024,
                bootstrap_timeout_ms=PATIENCE_MS,
            )
        consumer = self._consumer
        consumer.assign([tp])
        first = consumer.beginning_offsets([tp], timeout_ms=PATIENCE_MS)[tp]
        # Asked for again: the end that the consumer knows of is that of an earlier reading, until a fetch is answered.
        end = consumer.end_offsets([tp], timeout_ms=PATIENCE_MS)[tp]
        found: dict[int, bytes | None] = {offset: None for offset in offsets if not first <= offset < end}
        left = [offset for offset in offsets if first <= offset < end]
        if left:
            consumer.seek(tp, left[0])
        while left:
            if self._closing or time.monotonic() > until_s:
                if found:
                    break
                raise TimeoutError(f"{len(left)} page logs of {tp} not read in {PATIENCE_S:g} s")
            try:
                records = consumer.poll(timeout_ms=POLL_MS).get(tp, [])
            except UNREADABLE as error:  # the log ends before it, it was cut off meanwhile, or it is damaged
                if not isinstance(error, OffsetOutOfRangeError):
                    log.error("page log cannot be read", partition=tp.partition, offset=left[0], error=str(error))
                found[left.pop(0)] = None
                if left:
                    consumer.seek(tp, left[0])
                continue
            for record in records:
                while left and left[0] < record.offset:  # no message has this offset
                    found[left.pop(0)] = None
                if left and left[0] == record.offset:
                    found[left.pop(0)] = record.value
            if records and left and left[0] - records[-1].offset > NEAR:
                consumer.seek(tp, left[0])
        return found

    def _let_go(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(KafkaError, OSError):
                consumer.close()
