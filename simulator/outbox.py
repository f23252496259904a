# core
"""Outgoing events: each is held until its time by the event clock, then sent. Some go twice, some late.

This module draws duplicates, disorder, lateness, and extra malformed messages. All stays within the settings' limits,
so only the malformed messages are unusable.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.events import (
    EVENT_KINDS,
    Action,
    Cart,
    Click,
    Collect,
    Event,
    Exposure,
    Id,
    Order,
    Purchase,
    Refund,
    Truth,
    key_of,
    to_json,
    to_msgpack,
)
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, TRUTH
from simulator.mischief import bad_message

SLACK = 0.8  # the share of an allowed delay that is used: the way through Kafka takes time too
FOLLOW_UPS: tuple[type[Action], ...] = (Click, Collect, Cart, Purchase)


class Sink(Protocol):
    """Where messages go: :class:`simulator.simulator_wire.SimulatorSender`."""

    def put(self, topic: str, key: bytes, value: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Shares of messages (of clicks, for ``late``); ``malformed`` are extra messages per message."""

    duplicate: float = 0.01
    out_of_order: float = 0.02
    late: float = 0.005
    malformed: float = 0.002


class OutboxObserver(Protocol):
    """Observes an outbox (:class:`simulator.simulator_metrics.OutboxMetrics`). The outbox calls it from the event
    loop, right after each message went to the sink; it must not wait."""

    def seen(self, arm: str) -> None:
        """A page was seen. Its exposure event is sent later, with a call of its own."""

    def sent(self, event: Event, arm: str) -> None:
        """An event was sent for the first time."""

    def sent_again(self, event: Event) -> None:
        """A duplicate of an event was sent. It may be sent before the event itself was."""

    def sent_malformed(self) -> None:
        """An extra message that nobody can use was sent."""


class Outbox:
    """Holds events and sends each at its time. Not thread-safe: it belongs to the event loop. ``name`` of this run goes
    into the ids of extra messages; ``cut`` leaves out actions that would come too late for the label join."""

    def __init__(
        self,
        sink: Sink,
        observer: OutboxObserver,
        settings: Settings,
        rates: FaultRates,
        rng: np.random.Generator,
        name: str,
        cut: bool = True,
    ) -> None:
        self._sink, self._observer, self._rates, self._rng = sink, observer, rates, rng
        self._name, self._cut = name, cut
        self._heap: list[tuple[int, int, Event, str, bool]] = []  # due, number, event, arm, a duplicate
        self._number = 0
        self._bad = 0
        self._disorder_ms = SLACK * settings.disorder_seconds * 1000
        self._attribution_ms = settings.attribution_minutes * 60_000
        self._late_ms = SLACK * settings.lateness_minutes * 60_000
        self._ahead_ms = MAX_AHEAD_MS

    def __len__(self) -> int:
        return len(self._heap)

    def page(self, exposure: Exposure, arm: str, p: bytes | None = None) -> None:
        """Takes a seen page, and the true click probabilities of its exposures (``<f4``), if known."""
        self._observer.seen(arm)
        self._hold(exposure, exposure.ts_ms, arm)
        if p is not None:
            truth = Truth(exposure.request_id, exposure.ts_ms, exposure.offset, p)
            self._sink.put(TRUTH, key_of(exposure.user_id), to_msgpack(truth))

    def actions(self, exposure: Exposure, slot: int, times: tuple[int, int, int, int], arm: str) -> None:
        """Takes the actions on the item in a slot of a page: event times (ms) of click, collect, cart and purchase, 0
        for none."""
        item: Id = exposure.items[slot]
        position = exposure.offset + slot
        last = exposure.ts_ms + self._attribution_ms + self._late_ms
        arrives = 0.0
        if self._rates.late > 0 and self._rng.random() < self._rates.late:
            # The telephone was offline: everything done with this item is sent after its label was given.
            arrives = exposure.ts_ms + self._attribution_ms + self._late_ms * (0.1 + 0.6 * self._rng.random())
        for kind, at in zip(FOLLOW_UPS, times, strict=True):
            if not at or (self._cut and at > last):
                continue
            action = kind(
                f"{exposure.request_id}/{position}/{EVENT_KINDS[kind.kind]}",
                exposure.request_id,
                at,
                exposure.user_id,
                item,
                position,
            )
            self._hold(action, max(at, round(arrives)), arm)  # type: ignore[arg-type]

    def order(self, exposure: Exposure, slot: int, order_ms: int, refund_ms: int, arm: str) -> None:
        """Takes an order of the item in a slot of a page, and its return; event times (ms), 0 for none."""
        for kind, at in ((Order, order_ms), (Refund, refund_ms)):
            if at:
                id = f"{exposure.request_id}/{exposure.offset + slot}/{EVENT_KINDS[kind.kind]}"
                self._hold(kind(id, at, exposure.user_id, exposure.items[slot]), at, arm)

    def _hold(self, event: Event, due_ms: int, arm: str) -> None:
        if self._rng.random() < self._rates.out_of_order:
            due_ms += round(self._disorder_ms * self._rng.random())
        self._push(due_ms, event, arm, False)
        if self._rng.random() < self._rates.duplicate:
            self._push(due_ms + 1 + round(self._disorder_ms * self._rng.random()), event, arm, True)

    def _push(self, due_ms: int, event: Event, arm: str, again: bool) -> None:
        self._number += 1
        heapq.heappush(self._heap, (due_ms, self._number, event, arm, again))

    def send_due(self, now_ms: int, wall_ms: int) -> None:
        """Sends the events due by the event time ``now_ms``, in the order of their times. ``wall_ms``, wall time, is
        each event's time of sending."""
        while self._heap and self._heap[0][0] <= now_ms:
            _, _, event, arm, again = heapq.heappop(self._heap)
            self._send(event, arm, again, wall_ms)
            if not again and self._rng.random() < self._rates.malformed:
                self._send_malformed(event, now_ms)

    def close(self, wall_ms: int) -> None:
        """Sends the held pages, so that no action lacks its page, and drops everything else."""
        for _, _, event, arm, again in sorted(self._heap, key=lambda held: held[:2]):
            if isinstance(event, Exposure) and not again:
                self._send(event, arm, False, wall_ms)
        self._heap.clear()

    def _send(self, event: Event, arm: str, again: bool, wall_ms: int) -> None:
        self._sink.put(EVENTS, key_of(event.user_id), to_json(msgspec.structs.replace(event, sent_ms=wall_ms)))
        if again:
            self._observer.sent_again(event)
        else:
            self._observer.sent(event, arm)

    def _send_malformed(self, event: Event, now_ms: int) -> None:
        """Sends an extra message behind an event, as the same user's client would."""
        self._bad += 1
        _, raw = bad_message(self._rng, f"{self._name}-bad-{self._bad}", event.user_id, now_ms, self._ahead_ms)
        self._sink.put(EVENTS, key_of(event.user_id), raw)
        self._observer.sent_malformed()
