# shell
"""Page logs from the workers' rings to Kafka, in two threads of the feeder.

::

    ring ─┐
    ring ─┼─► drain: pack ──► spool on disk ──► send: Kafka
    ring ─┘   when the bell rings               bounded, with retries

Neither a request nor the drain waits for Kafka. A kill of a worker loses nothing. A kill of the feeder loses nothing
either: its workers end, and write down what it had not drained (:func:`rescue`). A kill of all processes at once loses
the pages that the drain has not taken yet.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import Gauge, Histogram

from millrace.basics.errors import SettingError, one_line
from millrace.contracts.events import PageLog, key_of
from millrace.contracts.page_logs import page_log_bytes
from millrace.contracts.pagepack import Rates
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import PAGE_LOGS
from millrace.processes.kafka import PAGE_LINGER_MS, REQUEST_BYTES, know_topic, make_producer
from millrace.processes.wall import wall_ms
from scorer.pagelog.delivery import DELIVERY_SECONDS, TOO_LARGE, Delivery
from scorer.pagelog.ring import RingReader
from scorer.pagelog.spool import Lost, Spool

log = structlog.get_logger("scorer")

ADOPT_SECONDS = 5.0
"""Between two looks for files of dead scorers: a worker may outlive its feeder and see the next one. The drain looks
into the rings as often, whatever the bell says: a worker may be killed before it rings."""
REQUEST_SECONDS = 20.0
"""Timeout of the producer for the broker's answer."""
REMAKE_SECONDS = 3.0
"""Timeout of a new producer for the broker, before a pause and another one."""
RING_FULL, RING_DAMAGED, UNPACKED = "ring-full", "ring-damaged", "not-packed"
"""Reasons for lost pages."""
_PAGES = 16
"""Pages of one ring before the next one has its turn."""

SPOOLED = Histogram(
    "millrace_log_spooled_seconds",
    "From making a page to its log being on disk.",
    buckets=(0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
MOST_SPOOL_BYTES = 256 << 20  # logs of pages kept on disk while the broker is away
SPOOL_BYTES = Gauge("millrace_log_spool_bytes", "Logs of pages on disk.")


def open_spool(settings: Settings, lost: Lost) -> Spool:
    """The spool of this scorer in the folder ``data``; without that setting, in a temporary folder. Raises
    SettingError: its folder cannot be used."""
    if settings.data:
        folder = settings.folder("spool")
    else:
        folder = Path(tempfile.mkdtemp(prefix="millrace-spool-"))
        log.warning("no MILLRACE_DATA: logs of pages do not outlive a scorer that is killed", folder=str(folder))
    try:
        spool = Spool(folder, MOST_SPOOL_BYTES, lost)
        if not settings.data:
            weakref.finalize(spool, shutil.rmtree, folder, ignore_errors=True)
        return spool
    except OSError as error:
        raise SettingError(
            f"the spool of page logs in '{folder}' cannot be used ({error.strerror})",
            "set MILLRACE_DATA to a folder you can write to",
        ) from None


class Drain:
    """Takes pages out of the rings, packs them, and writes them to the spool. For one thread.

    Args:
        rates: of the pages' schema.
        most_bytes: a larger packed page cannot be sent.
        lost: called with each loss before the spool.
    """

    def __init__(
        self, spool: Spool, rates: Rates | None, most_bytes: int, lost: Lost, wall: Callable[[], int] = wall_ms
    ) -> None:
        self._spool, self._rates, self._most, self._lost, self._wall = spool, rates, most_bytes, lost, wall
        self._logged: set[str] = set()

    def step(self, ring: RingReader) -> int:
        """Takes some pages out of a ring; returns how many."""
        pages, exposures = ring.lost()
        if pages:
            self._count(RING_FULL, pages, exposures, "the ring of a worker was full")
        try:
            taken = ring.take(_PAGES)
        except ValueError as error:
            self._count(RING_DAMAGED, 1, 0, one_line(error))
            taken = []
        for page in taken:
            self._keep(page)
        ring.give_back()
        return len(taken)

    def _keep(self, page: PageLog) -> None:
        exposures = len(page.items)
        try:
            value = page_log_bytes(page, self._rates)
        except Exception as error:  # whatever is in it: other pages go on
            self._count(UNPACKED, 1, exposures, one_line(error))
            return
        if len(value) > self._most:
            detail = f"{exposures} items take {len(value)} bytes, more than {self._most}; ask for fewer items"
            self._count(TOO_LARGE, 1, exposures, detail)
            return
        reason = self._spool.append(key_of(page.user_id), value, exposures)
        if reason:
            held, most = self._spool.held_bytes, MOST_SPOOL_BYTES
            detail = f"{held} bytes are in {self._spool.folder}, which takes {most} while the disk has room"
            self._count(reason, 1, exposures, detail)
        else:
            SPOOLED.observe(max(0, self._wall() - page.served_ms) / 1000)

    def _count(self, reason: str, pages: int, exposures: int, detail: str) -> None:
        self._lost(reason, pages, exposures)
        if reason not in self._logged:  # the first tells what it is; the metrics tell how many there are
            self._logged.add(reason)
            log.error("logs of pages are lost: nothing is learnt from them", reason=reason, detail=detail)


def rescue(settings: Settings, schema: Schema, ring: RingReader, lost: Lost) -> None:
    """For a worker whose feeder has died, after its last page: undrained pages go to a spool, and the next scorer
    delivers it. Without a permanent folder it does nothing. Raises SettingError."""
    if ring.empty or not settings.data:
        return
    spool = open_spool(settings, lost)
    drain = Drain(spool, Rates.of(schema), REQUEST_BYTES, lost)
    while drain.step(ring):
        pass
    spool.close()


class Shipper:
    """Both threads. Both call ``lost`` with each loss: a reason, pages, exposures.

    Attributes:
        bell: an eventfd, which a writer of a ring rings after each page.
    """

    def __init__(self, settings: Settings, schema: Schema, spool: Spool, lost: Lost) -> None:
        self._settings, self._spool, self._lost = settings, spool, lost
        self._drain = Drain(spool, Rates.of(schema), REQUEST_BYTES, lost)
        self._rings: list[RingReader] = []
        self._wake = threading.Event()  # of the sending thread
        self._draining, self._sending = threading.Event(), threading.Event()  # set: end
        self._deadline = 0.0
        self.bell = os.eventfd(0)
        weakref.finalize(self, os.close, self.bell)
        self._threads: list[threading.Thread] = []
        SPOOL_BYTES.set_function(lambda: spool.held_bytes)

    def start(self) -> None:
        """Raises BrokerError: there is no producer."""
        first = self._make(self._settings.patience_seconds)
        know_topic(first, PAGE_LOGS, self._settings)
        delivery = Delivery(self._spool, first, self._make, self._lost, self._wake)
        self._threads = [
            threading.Thread(target=self._run_drain, name="drain", daemon=True),
            threading.Thread(target=self._run_send, args=(delivery,), name="send", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def add(self, ring: RingReader) -> None:
        """Drains this ring as well from now on, whichever worker writes to it."""
        self._rings.append(ring)

    def end(self, seconds: float = 10.0) -> None:
        """Drains the rings, and waits for Kafka at most so long; the spool keeps the rest. Call it after the last
        worker."""
        self._deadline = time.monotonic() + seconds
        self._draining.set()
        os.eventfd_write(self.bell, 1)
        if self._threads:
            self._threads[0].join()
        self._sending.set()
        self._wake.set()
        if self._threads:
            self._threads[1].join()
        self._spool.close()

    def _make(self, patience_seconds: float = REMAKE_SECONDS) -> Any:
        return make_producer(
            self._settings,
            bootstrap_timeout_ms=round(1000 * patience_seconds),
            max_block_ms=1000,
            linger_ms=PAGE_LINGER_MS,
            request_timeout_ms=round(1000 * REQUEST_SECONDS),
            delivery_timeout_ms=round(1000 * DELIVERY_SECONDS),
            reconnect_backoff_max_ms=1000,
        )

    def _run_drain(self) -> None:
        ending, look_at = False, time.monotonic() + ADOPT_SECONDS
        while not ending:
            if select.select([self.bell], [], [], ADOPT_SECONDS)[0]:
                os.eventfd_read(self.bell)
            ending = self._draining.is_set()
            with _survived("drained"):
                while self._drain_all():
                    self._wake.set()
                if time.monotonic() > look_at:
                    look_at = time.monotonic() + ADOPT_SECONDS
                    self._spool.adopt()

    def _drain_all(self) -> int:
        return sum([self._drain.step(ring) for ring in self._rings])

    def _run_send(self, delivery: Delivery) -> None:
        while not self._sending.is_set() or (not delivery.done and time.monotonic() < self._deadline):
            self._wake.wait(0.05 if self._sending.is_set() else 0.5)
            self._wake.clear()
            with _survived("delivered"):
                delivery.step()
        delivery.close(max(0.0, self._deadline - time.monotonic()))


@contextlib.contextmanager
def _survived(what: str) -> Iterator[None]:
    """Keeps a thread alive, whose end would stop the log: an unforeseen error becomes one log line."""
    try:
        yield
    except Exception as error:
        log.error(f"logs of pages could not be {what}", error=one_line(error), exc_info=True)
