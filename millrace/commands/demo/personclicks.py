# shell
"""Clicks of a person on the live page of a demo: events as the shoppers' are, counted for the audit."""

from __future__ import annotations

import threading

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from msgspec import Struct, field

from millrace.basics.errors import BrokerError, one_line
from millrace.contracts.events import Click, Exposure, Name, Position, TimeMs, WireId, key_of, to_json
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS
from millrace.processes.kafka import make_producer
from millrace.processes.wall import event_now_ms, wall_ms

SEND_SECONDS = 10.0


class ClickedPage(Struct, frozen=True, forbid_unknown_fields=True):
    """A logged page that a person saw at ``ts_ms`` (event time), and the position of the item that was clicked."""

    request_id: Name
    user_id: WireId
    ts_ms: TimeMs
    items: list[WireId] = field(default_factory=list)
    position: Position = 0


class PersonClicks:
    """Sends the exposure of a page and a click on it. Any thread may call it.

    Attributes:
        exposures, clicks: sent so far.
    """

    def __init__(self) -> None:
        self.exposures = self.clicks = 0
        self._pages: set[str] = set()
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None  # made for the first click
        self._settings: Settings | None = None

    def open(self, settings: Settings) -> None:
        """Shoppers come, so that a click is one of them."""
        with self._lock:
            self._settings = settings

    def close(self) -> None:
        """From now on clicks are refused: they would come after the books are closed."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=SEND_SECONDS)
            self._producer = self._settings = None

    def send(self, body: bytes) -> tuple[int, bytes]:
        """Status and answer to a :class:`ClickedPage`, as JSON."""
        status, problem = self._send(body)
        return status, msgspec.json.encode({"error": problem} if problem else {"sent": True})

    def _send(self, body: bytes) -> tuple[int, str]:
        try:
            page = msgspec.json.decode(body, type=ClickedPage)
        except ValueError as error:
            return 400, f"no click: {one_line(error)}; fields: {', '.join(ClickedPage.__struct_fields__)}"
        if page.position >= len(page.items):
            return 400, f"position {page.position} of a page of {len(page.items)} items; positions count from 0"
        with self._lock:
            if self._settings is None:
                return 409, "the shop is not open: click while the demo is running"
            if page.request_id in self._pages:
                return 409, f"page '{page.request_id}' was clicked before; ask for a new one"
            self._pages.add(page.request_id)
            return self._produce(self._settings, page)

    def _produce(self, settings: Settings, page: ClickedPage) -> tuple[int, str]:
        clock, id, item = settings.event_clock(), page.request_id, page.items[page.position]
        now_ms, sent_ms = max(page.ts_ms + 1, event_now_ms(clock)), wall_ms()
        exposure = Exposure(f"{id}/e", id, page.ts_ms, page.user_id, page.items, sent_ms=sent_ms)
        click = Click(f"{id}/{page.position}/click", id, now_ms, page.user_id, item, page.position, sent_ms)
        try:
            producer = self._producer = self._producer or make_producer(settings, linger_ms=0)
            for event in (exposure, click):
                producer.send(EVENTS, key=key_of(page.user_id), value=to_json(event), headers=clock.headers)
                self.exposures += len(page.items) if event is exposure else 0
                self.clicks += event is click
            producer.flush(timeout=SEND_SECONDS)
        except (BrokerError, KafkaError) as error:
            return 503, f"the broker does not take the click: {one_line(error)}"
        return 200, ""
