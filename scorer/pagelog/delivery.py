# shell
"""From the spool to Kafka: a bounded number of bytes in flight, and retries.

::

    spool ── next ──► in flight ── acknowledged ──► spool: not needed any more
                 ▲        │ failed
                 └── later, a retry; a record that fails alone several times is given up, counted

Only records in flight use memory, so an unavailable broker costs disk, up to the spool's bound.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RetriableError

from millrace.basics.errors import MillraceError, one_line
from millrace.contracts.topics import PAGE_LOGS
from scorer.pagelog.spool import Lost, Spool
from scorer.pagelog.spoolfile import Position, RecordPlace

log = structlog.get_logger("scorer")

MOST_BYTES = 16 * 1024 * 1024
"""In flight at a time."""
RETRY_SECONDS = 1.0
TRIES = 3
"""A record is given up after so many refusals, each while others succeeded."""
DELIVERY_SECONDS = 30.0
"""Timeout of a producer for a record. Until then it recovers by itself; then it is replaced."""
STUCK_SECONDS = 45.0
"""A producer without any result for so long is replaced too."""
CLOSE_SECONDS = 2.0
TOO_LARGE, REFUSED = "too-large", "refused"
"""Reasons for lost pages."""


@dataclass(slots=True)
class _Sent:
    size: int
    exposures: int
    at_s: float
    producer: int  # which one has it


@dataclass(slots=True)
class _Refusals:
    count: int = 0
    delivered: int = -1
    """Total of delivered records at the last refusal."""


class Delivery:
    """Sends a spool's records, in the one thread that reads it.

    Args:
        make: makes a producer, also as a replacement.
        lost: called with each loss.
        wake: set when a result has come; the caller of :meth:`step` waits for it.
        monotonic: seconds.
    """

    def __init__(
        self,
        spool: Spool,
        producer: Any,
        make: Callable[[], Any],
        lost: Lost,
        wake: threading.Event,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool, self._make, self._lost, self._wake, self._monotonic = spool, make, lost, wake, monotonic
        self._producer: Any | None = producer
        self._number = 0
        self._under_way: dict[Position, _Sent] = {}
        self._bytes = 0
        self._results: deque[tuple[Position, int, BaseException | None]] = deque()
        self._failed: deque[Position] = deque()
        self._refusals: dict[Position, _Refusals] = {}
        self._pause_until = 0.0
        self._away = False
        self._logged: set[str] = set()
        self.delivered = 0

    def step(self) -> None:
        """Handles results and sends what is ready. Call it at least once a second."""
        while self._results:
            self._result(*self._results.popleft())
        oldest = next(iter(self._under_way.values()), None)
        if oldest is not None and self._monotonic() - oldest.at_s > STUCK_SECONDS:
            self._drop_producer("said nothing of a record")
        while self._bytes < MOST_BYTES and self._may_send():
            if self._failed:
                entry = self._spool.again(self._failed[0])  # may raise: then it is tried again
                self._failed.popleft()
            else:
                entry = self._spool.next()
            if entry is not None:
                self._send(entry)
            elif not self._failed:
                return

    @property
    def done(self) -> bool:
        """Whether Kafka has all that is in the spool."""
        return not self._results and self._spool.empty

    def close(self, seconds: float) -> None:
        """Ends the producer. Undelivered records stay in the spool."""
        if self._producer is not None:
            _close(self._producer, seconds)
        while self._results:
            self._result(*self._results.popleft())

    def _may_send(self) -> bool:
        if self._monotonic() < self._pause_until:
            return False
        if self._producer is None:
            try:
                self._producer = self._make()
            except MillraceError:
                self._pause_until = self._monotonic() + RETRY_SECONDS
        return self._producer is not None

    def _send(self, entry: RecordPlace) -> None:
        assert self._producer is not None
        assert entry.key is not None
        at, size = entry.at, len(entry.value)
        self._under_way[at] = _Sent(size, entry.exposures, self._monotonic(), self._number)
        self._bytes += size
        number = self._number
        try:
            future = self._producer.send(PAGE_LOGS, value=entry.value, key=entry.key)
        except Exception as error:  # whatever it is: the record stays in the spool
            self._result(at, number, error, asked=False)
            return
        future.add_callback(lambda _: self._said(at, number, None))
        future.add_errback(lambda error: self._said(at, number, error))

    def _said(self, at: Position, number: int, error: BaseException | None) -> None:
        """Runs in a thread of the producer."""
        self._results.append((at, number, error))
        self._wake.set()

    def _result(self, at: Position, number: int, error: BaseException | None, asked: bool = True) -> None:
        """Handles a record's result. ``asked``: the producer had accepted it."""
        sent = self._under_way.get(at)
        if sent is None or (error is not None and sent.producer != number):
            return  # it was delivered by another producer, or is with another one now
        del self._under_way[at]
        self._bytes -= sent.size
        if error is None:
            self.delivered += 1
            self._refusals.pop(at, None)
            self._spool.acknowledge(at)
            if self._away:
                self._away = False
                log.info("logs of pages are delivered again")
        elif isinstance(error, MessageSizeTooLargeError):
            self._give_up(at, sent, TOO_LARGE, error)
            self._drop_producer("got the answer that a message is too large")  # it cannot go on after that
        else:
            self._try_later(at, sent, error, asked)

    def _try_later(self, at: Position, sent: _Sent, error: BaseException, asked: bool) -> None:
        if not self._away:
            self._away = True
            log.warning("logs of pages are not delivered, and wait in the spool", error=one_line(error))
        self._pause_until = self._monotonic() + RETRY_SECONDS
        if not isinstance(error, RetriableError):
            refusals = self._refusals.setdefault(at, _Refusals())
            if self.delivered > refusals.delivered:  # else it is not this record that is refused
                refusals.count, refusals.delivered = refusals.count + 1, self.delivered
            if refusals.count >= TRIES:
                self._give_up(at, sent, REFUSED, error)
                return
            self._drop_producer("has failed")
        elif asked and isinstance(error, KafkaTimeoutError):
            # An idempotent kafka-python producer that has given up a record may send nothing for a minute after the
            # broker is back (observed), though it accepts records.
            self._drop_producer("could not deliver in time")
        self._failed.append(at)

    def _give_up(self, at: Position, sent: _Sent, reason: str, error: BaseException) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            log.error("logs of pages are given up: nothing is learnt from them", reason=reason, error=one_line(error))
        self._refusals.pop(at, None)
        self._lost(reason, 1, sent.exposures)
        self._spool.acknowledge(at)

    def _drop_producer(self, why: str) -> None:
        """Drops the producer; the next one gets its records."""
        log.warning("the producer of page logs is replaced", because=f"it {why}")
        self._failed.extend(self._under_way)
        self._under_way.clear()
        self._bytes = 0
        self._pause_until = self._monotonic() + RETRY_SECONDS
        self._number += 1
        if self._producer is not None:
            _close(self._producer, 0)
            self._producer = None


def _close(producer: Any, seconds: float) -> None:
    """Ends a producer. Its own ``close`` raises when it could not deliver all in time, and leaves its thread running,
    which would send these records again when the broker is back."""
    try:
        producer.close(timeout=seconds)
    except KafkaError:
        producer._sender.force_close()
        producer._sender.join(CLOSE_SECONDS)  # lets go of what it has
        with contextlib.suppress(KafkaError):
            producer.close(timeout=0)
