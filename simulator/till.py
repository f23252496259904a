"""Events on their way out: held until their time comes by the event clock, then sent, some twice, some late.

What goes wrong on the way is drawn here: duplicates, disorder, lateness, and extra malformed messages. All of it
stays within what the settings allow, so that nothing but the malformed messages is unusable.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from millrace.contracts.events import (
    Action,
    Cart,
    Click,
    Collect,
    Event,
    Exposure,
    Id,
    Purchase,
    Truth,
    key_of,
    to_json,
    to_msgpack,
)
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, TRUTH
from millrace.processes.wall import wall_ms
from simulator import figures
from simulator.mischief import bad_message

SLACK = 0.8
"""Share of an allowed delay that is used: the way through Kafka takes time too."""
FOLLOW_UPS: tuple[type[Action], ...] = (Click, Collect, Cart, Purchase)
NAMES = {Click: "click", Collect: "collect", Cart: "cart", Purchase: "purchase"}


class Sink(Protocol):
    """Where messages go: :class:`simulator.wire.Outlet`."""

    def put(self, topic: str, key: bytes, value: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of messages (of clicks, for ``late``); ``malformed`` are extra messages per message."""

    duplicate: float = 0.01
    out_of_order: float = 0.02
    late: float = 0.005
    malformed: float = 0.002


class Till:
    """Holds events and sends each at its time. Not thread-safe: the event loop's own.

    Args:
        name: of this incarnation, for the ids of extra messages.
        cut: leave out actions that would come too late for the label join.
    """

    def __init__(
        self,
        sink: Sink,
        settings: Settings,
        rates: Rates,
        rng: np.random.Generator,
        name: str,
        cut: bool = True,
    ) -> None:
        self._sink, self._rates, self._rng, self._name, self._cut = sink, rates, rng, name, cut
        self._heap: list[tuple[int, int, Event, str, bool]] = []  # due, number, event, arm, a duplicate
        self._number = 0
        self._bad = 0
        self._disorder_ms = SLACK * settings.disorder_seconds * 1000
        self._attribution_ms = settings.attribution_minutes * 60_000
        self._late_ms = SLACK * settings.lateness_minutes * 60_000
        self._ahead_ms = round(settings.ahead_minutes * 60_000)
        self.newest_ms = 0

    def __len__(self) -> int:
        return len(self._heap)

    def page(self, exposure: Exposure, arm: str, p: bytes | None = None) -> None:
        """A page that was seen, and the true probabilities of its exposures, if known."""
        figures.PAGES.labels(arm).inc()
        self._hold(exposure, exposure.ts_ms, arm)
        if p is not None:
            truth = Truth(exposure.request_id, exposure.ts_ms, exposure.offset, p)
            self._sink.put(TRUTH, key_of(exposure.user_id), to_msgpack(truth))

    def actions(self, exposure: Exposure, slot: int, times: tuple[int, int, int, int], arm: str) -> None:
        """What was done with the item in a slot of a page: times of click, collect, cart, purchase; 0: not done."""
        item: Id = exposure.items[slot]
        position = exposure.offset + slot
        last = exposure.ts_ms + self._attribution_ms + self._late_ms
        arrives = 0.0
        if self._rates.late > 0 and self._rng.random() < self._rates.late:
            # The telephone was off the net: all that was done with this item is told after its label was given.
            arrives = exposure.ts_ms + self._attribution_ms + self._late_ms * (0.1 + 0.6 * self._rng.random())
        for kind, at in zip(FOLLOW_UPS, times, strict=True):
            if not at or (self._cut and at > last):
                continue
            action = kind(
                f"{exposure.request_id}/{position}/{NAMES[kind]}",
                exposure.request_id,
                at,
                exposure.user_id,
                item,
                position,
            )
            self._hold(action, max(at, round(arrives)), arm)  # type: ignore[arg-type]

    def _hold(self, event: Event, due_ms: int, arm: str) -> None:
        if self._rng.random() < self._rates.out_of_order:
            due_ms += round(self._disorder_ms * self._rng.random())
        self._push(due_ms, event, arm, False)
        if self._rng.random() < self._rates.duplicate:
            self._push(due_ms + 1 + round(self._disorder_ms * self._rng.random()), event, arm, True)

    def _push(self, due_ms: int, event: Event, arm: str, again: bool) -> None:
        self._number += 1
        heapq.heappush(self._heap, (due_ms, self._number, event, arm, again))

    def send_due(self, now_ms: int) -> None:
        """Sends what is due by ``now_ms``, in order of its time."""
        while self._heap and self._heap[0][0] <= now_ms:
            _, _, event, arm, again = heapq.heappop(self._heap)
            self._send(event, arm, again, now_ms)

    def close(self) -> None:
        """Sends the pages that are still held, so that no action stands without its page; drops all else."""
        for _, _, event, arm, again in sorted(self._heap, key=lambda held: held[:2]):
            if isinstance(event, Exposure) and not again:
                self._send(event, arm, False, None)
        self._heap.clear()

    def _send(self, event: Event, arm: str, again: bool, now_ms: int | None) -> None:
        key = key_of(event.user_id)
        self._sink.put(EVENTS, key, to_json(msgspec.structs.replace(event, sent_ms=wall_ms())))
        if again:
            figures.DUPLICATES.inc()
            return
        if event.ts_ms > self.newest_ms:
            self.newest_ms = event.ts_ms
            figures.EVENT_TIME.set(event.ts_ms / 1000)
        if isinstance(event, Exposure):
            figures.EXPOSURES.inc(len(event.items))
            figures.PAGE_EXPOSURES.labels(arm).inc(len(event.items))
        else:
            figures.ACTIONS.labels(NAMES[type(event)]).inc()
            if isinstance(event, Click):
                figures.CLICKS.inc()
                figures.PAGE_CLICKS.labels(arm).inc()
        if now_ms is not None and self._rng.random() < self._rates.malformed:
            self._bad += 1
            _, raw = bad_message(self._rng, f"{self._name}-bad-{self._bad}", event.user_id, now_ms, self._ahead_ms)
            self._sink.put(EVENTS, key, raw)
            figures.MALFORMED.inc()
