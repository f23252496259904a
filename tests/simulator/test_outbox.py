"""Events on their way out: what goes wrong stays within what the settings allow; what cannot be used is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from kafka.errors import KafkaError, MessageSizeTooLargeError

from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.events import Action, BadEventError, Click, Event, Exposure, decode_event
from millrace.contracts.settings import Settings
from simulator import simulator_metrics
from simulator.mischief import KINDS, SHARES, bad_message, bad_message_of
from simulator.outbox import FaultRates, Outbox
from simulator.simulator_wire import SimulatorSender

SETTINGS = Settings()
NOW = 1_772_240_000_000
MINUTE = 60_000
STEP_MS = 1000
WALL = 1_760_000_000_000


def of_page(raw: bytes) -> Exposure | Action:
    event = decode_event(raw)
    assert isinstance(event, Exposure | Action)
    return event


class Deliveries:
    """Keeps what an outbox says that it did."""

    def __init__(self) -> None:
        self.pages = self.malformed = 0
        self.first: list[str] = []  # ids
        self.again: list[str] = []

    def seen(self, arm: str) -> None:
        self.pages += 1

    def sent(self, event: Event, arm: str) -> None:
        self.first.append(event.event_id)

    def sent_again(self, event: Event) -> None:
        self.again.append(event.event_id)

    def sent_malformed(self) -> None:
        self.malformed += 1


class Book:
    """Keeps what is sent, with the event time of sending, and what the outbox says of it."""

    def __init__(self) -> None:
        self.now = NOW
        self.sent: list[tuple[int, bytes]] = []
        self.deliveries = Deliveries()

    def put(self, topic: str, key: bytes, value: bytes) -> None:
        if topic == "events":
            self.sent.append((self.now, value))


def run_outbox(rates: FaultRates, pages: int = 400, cut: bool = True) -> Book:
    """A page of five every ten seconds, each item clicked after 20 s, collected after a minute, bought after 100."""
    book = Book()
    outbox = Outbox(book, book.deliveries, SETTINGS, rates, np.random.default_rng(1), "n", cut)
    start = NOW
    for k in range(pages):
        page = Exposure(f"p{k}/e", f"p{k}", start + k * 10_000, k % 7, [1, 2, 3, 4, 5])
        outbox.page(page, "model", b"")
        for slot in range(5):
            outbox.actions(
                page,
                slot,
                (page.ts_ms + 20_000, page.ts_ms + MINUTE, 0, page.ts_ms + (100 + 60 * slot) * MINUTE),
                "model",
            )
    while len(outbox):
        book.now += STEP_MS
        outbox.send_due(book.now, WALL)
    return book


def test_without_mischief_events_go_out_in_time_and_order() -> None:
    book = run_outbox(FaultRates(0, 0, 0, 0))
    events = [(at, of_page(raw)) for at, raw in book.sent]
    assert [e.ts_ms for _, e in events] == sorted(e.ts_ms for _, e in events)
    assert all(0 <= at - e.ts_ms <= STEP_MS for at, e in events)
    assert {e.sent_ms for _, e in events} == {WALL}, "the wall time is what it was handed"
    # Purchases after attribution and (most of) lateness would be dead letters: an app does not send them.
    limit = (SETTINGS.attribution_minutes + SETTINGS.lateness_minutes) * MINUTE
    page_ms = {e.request_id: e.ts_ms for _, e in events if isinstance(e, Exposure)}
    waits = [e.ts_ms - page_ms[e.request_id] for _, e in events]
    assert 100 * MINUTE in waits
    assert max(waits) < limit
    whole = run_outbox(FaultRates(0, 0, 0, 0), cut=False)
    assert len(whole.sent) > len(book.sent)


def test_disorder_stays_within_what_is_allowed() -> None:
    book = run_outbox(FaultRates(0, 0.3, 0, 0))
    delays = np.array([at - decode_event(raw).ts_ms for at, raw in book.sent])
    assert delays.max() <= SETTINGS.disorder_seconds * 1000
    assert 0.2 < (delays > STEP_MS).mean() < 0.35
    assert delays.max() > 0.5 * SETTINGS.disorder_seconds * 1000


def test_late_is_after_the_label_and_before_it_is_too_late() -> None:
    book = run_outbox(FaultRates(0, 0, 0.2, 0))
    events = [(at, of_page(raw)) for at, raw in book.sent]
    page_ms = {e.request_id: e.ts_ms for _, e in events if isinstance(e, Exposure)}
    late = [(at, e) for at, e in events if at - e.ts_ms > STEP_MS]
    clicks = [e for _, e in events if isinstance(e, Click)]
    late_clicks = [e for _, e in late if isinstance(e, Click)]
    assert len(late_clicks) / len(clicks) == pytest.approx(0.2, abs=0.03)
    attribution = SETTINGS.attribution_minutes * MINUTE
    for at, event in late:
        assert attribution < at - page_ms[event.request_id] < attribution + SETTINGS.lateness_minutes * MINUTE
    # Nothing overtakes: an exposure's actions come in their order.
    order: dict[tuple[str, int], list[int]] = {}
    for _, event in events:
        if not isinstance(event, Exposure):
            order.setdefault((event.request_id, event.position), []).append(event.ts_ms)
    assert all(times == sorted(times) for times in order.values())


def test_duplicates_are_the_same_event_again() -> None:
    book = run_outbox(FaultRates(0.2, 0, 0, 0))
    events = [of_page(raw) for _, raw in book.sent]
    first: dict[str, object] = {}
    again = 0
    for event in events:
        if event.event_id in first:
            again += 1
            assert first[event.event_id] == (event.request_id, event.ts_ms, event.user_id)
        first[event.event_id] = (event.request_id, event.ts_ms, event.user_id)
    assert again / len(first) == pytest.approx(0.2, abs=0.02)


def test_malformed_messages_come_on_top() -> None:
    clean, dirty = run_outbox(FaultRates(0, 0, 0, 0)), run_outbox(FaultRates(0, 0, 0, 0.1))
    unreadable = 0
    good = []
    for at, raw in dirty.sent:
        try:
            event = decode_event(raw)
        except BadEventError:
            unreadable += 1
            continue
        if event.ts_ms <= at + MAX_AHEAD_MS:
            good.append(event.event_id)
    assert sorted(good) == sorted(decode_event(raw).event_id for _, raw in clean.sent)
    assert (len(dirty.sent) - len(good)) / len(good) == pytest.approx(0.1, abs=0.015)
    assert unreadable > 0


def test_closing_sends_the_pages_that_are_held_and_nothing_else() -> None:
    book = Book()
    outbox = Outbox(book, book.deliveries, SETTINGS, FaultRates(1.0, 1.0, 0, 0), np.random.default_rng(1), "n")
    for k in range(20):
        page = Exposure(f"p{k}/e", f"p{k}", NOW, k, [1])
        outbox.page(page, "model")
        outbox.actions(page, 0, (NOW + 1, 0, 0, 0), "model")
    outbox.send_due(NOW + 10_000, WALL)
    held = 20 - sum(isinstance(decode_event(raw), Exposure) for _, raw in book.sent)
    assert held > 0
    before = len(book.sent)
    outbox.close(WALL)
    assert len(outbox) == 0
    rest = [decode_event(raw) for _, raw in book.sent[before:]]
    assert all(isinstance(e, Exposure) for e in rest)
    exposures = {e.request_id for e in map(decode_event, (raw for _, raw in book.sent)) if isinstance(e, Exposure)}
    assert len(exposures) == 20
    assert len(rest) == 20 - len(
        {e.request_id for e in map(decode_event, (r for _, r in book.sent[:before])) if isinstance(e, Exposure)}
    )


def test_the_observer_is_given_every_message_once() -> None:
    book = run_outbox(FaultRates(0.2, 0.2, 0.1, 0.1))
    ids = Counter(_id_of(raw) for _, raw in book.sent)
    bad = Counter({name: n for name, n in ids.items() if name.startswith("n-bad-")})
    assert Counter(book.deliveries.first + book.deliveries.again) == ids - bad
    assert len(set(book.deliveries.first)) == len(book.deliveries.first)
    assert book.deliveries.malformed == bad.total() > 0
    assert len(book.deliveries.again) > 0
    assert book.deliveries.pages == 400


def _id_of(raw: bytes) -> str:
    """The event's id, also where the rest of the message is damaged."""
    try:
        return decode_event(raw).event_id
    except BadEventError:
        return "n-bad-"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "future"])
@pytest.mark.parametrize("seed", range(20))
def test_every_bad_message_is_refused_for_its_reason(kind: str, seed: int) -> None:
    raw = bad_message_of(kind, np.random.default_rng(seed), "x-bad-1", "some user", NOW, 60 * MINUTE)
    assert len(raw) < 1_000_000  # a broker's limit
    with pytest.raises(BadEventError) as refused:
        decode_event(raw)
    assert refused.value.reason == kind


def test_a_future_event_is_valid_but_for_its_time() -> None:
    raw = bad_message_of("future", np.random.default_rng(0), "x-bad-1", 5, NOW, 60 * MINUTE)
    event = decode_event(raw)
    assert not isinstance(event, Exposure)  # no exposure may be lost with it
    assert event.ts_ms - NOW >= 10 * 60 * MINUTE


def test_kinds_come_by_their_shares() -> None:
    rng = np.random.default_rng(0)
    kinds = [bad_message(rng, f"b{k}", k, NOW, 60 * MINUTE)[0] for k in range(2000)]
    for kind, share in zip(KINDS, SHARES, strict=True):
        assert kinds.count(kind) / 2000 == pytest.approx(share, abs=0.04)
        assert kind in kinds


# -- The outlet's way with messages that no broker takes: told, counted, left out; all others are delivered ------------


class Future:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def add_callback(self, call: Any) -> None:
        if self.error is None:
            call(None)

    def add_errback(self, call: Any, *given: Any) -> None:
        if self.error is not None:
            call(*given, self.error)


class Producer:
    """Refuses what is larger than 100 bytes: at once, or (from 200 on) when the broker has seen it."""

    def __init__(self) -> None:
        self.tries: list[bytes] = []
        self.away = 2  # sends that fail because the broker is away

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Any) -> Future:
        self.tries.append(value[:1])
        if value[:1] == b"w" and self.away:
            self.away -= 1
            raise KafkaError
        if len(value) >= 200:
            return Future(MessageSizeTooLargeError())
        if len(value) > 100:
            raise MessageSizeTooLargeError
        return Future(None)

    def flush(self, timeout: float | None = None) -> None:
        pass

    def close(self, timeout: float | None = None) -> None:
        pass


def test_a_message_too_large_is_left_out_once_and_the_line_goes_on() -> None:
    producer = Producer()
    outlet = SimulatorSender(producer)
    before = simulator_metrics.REFUSED._value.get()
    for value in (b"a", b"b" * 150, b"c", b"d" * 250, b"w", b"e"):
        outlet.put("events", b"key", value)
    assert outlet.close() == 0, "nothing is left that could be delivered"
    assert producer.tries == [b"a", b"b", b"c", b"d", b"w", b"w", b"w", b"e"], "only an outage is tried again"
    assert simulator_metrics.REFUSED._value.get() - before == 2
