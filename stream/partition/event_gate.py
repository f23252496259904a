# core
"""Decides which messages reach the label join, and when: the part of a partition that stream and archive share.

::

    event ────► readable, of our time, of our user? ──► too early? ──► watermark moves ──► LabelJoin
                  └─ dead letter                          └─ held until its time comes
    page log ─► readable, of our user? ────────────────────────────────────────────────► LabelJoin
"""

from __future__ import annotations

from millrace.basics.durations import span_name
from millrace.contracts.clock import Reached
from millrace.contracts.events import EVENT_KINDS, BadEventError, Event, Exposure, Id, Order, decode_event
from millrace.contracts.profile_warnings import SECONDS_MS
from stream.join.join import Dead, InputMessage, LabelJoin, Outcome, Policy
from stream.partition.decoder import Decoder
from stream.partition.early_events import EarlyEvents

_ACCEPTED = tuple(f"events.{kind}" for kind in EVENT_KINDS)


class Counts(dict[str, int]):
    """How often things happened, by name."""

    def add(self, name: str, n: int = 1) -> None:
        if n:
            self[name] = self.get(name, 0) + n


class EventGate:
    """Of one partition.

    Attributes:
        early: events that are held until their time comes.
        reached: how far the events have come.
    """

    def __init__(self, policy: Policy, decoder: Decoder, join: LabelJoin) -> None:
        self.policy, self.decoder, self.join = policy, decoder, join
        self._several = decoder.partitions is not None
        self.early, self.reached = EarlyEvents(), Reached(policy.disorder_ms)

    def _event(self, message: InputMessage, clock_ms: int, limit_ms: int, outcome: Outcome, counts: Counts) -> None:
        try:
            event = decode_event(message.raw)
        except BadEventError as error:
            outcome.dead.append(Dead(error.reason, error.detail, message, 0))
            return
        lost = len(event.items) if isinstance(event, Exposure) else 0  # where it becomes a dead letter
        if event.ts_ms > limit_ms:
            detail = f"{span_name(event.ts_ms - limit_ms)} beyond what is allowed ahead of the clock"
            outcome.refuse("future", detail, message, lost)
            return
        if event.ts_ms < SECONDS_MS <= clock_ms:
            # Left in, it would be counted in windows of 1970, and its label would wait a thousand times too long.
            outcome.refuse("seconds", f"ts_ms {event.ts_ms} seems to be in seconds", message, lost)
            return
        if (
            self._several
            and event.user_id not in self.decoder.own
            and self._is_astray(event.user_id, message, outcome, lost)
        ):
            return
        counts.add(_ACCEPTED[event.kind])
        if self.early:
            self._release(clock_ms, outcome)
        before_ms = self.reached.newest_ms
        is_near = self.reached.see(event.ts_ms, clock_ms, event.user_id if isinstance(event, Exposure) else None)
        if not is_near:
            if self.early.hold(event.ts_ms, message):
                counts.add("ahead")
            else:
                by_ms = event.ts_ms - clock_ms
                detail = f"{span_name(by_ms)} ahead of the clock, where {len(self.early)} such events wait already"
                outcome.refuse("future", detail, message, lost)
            if self.reached.newest_ms > before_ms:
                self._release(clock_ms, outcome)
        elif event.ts_ms < self.join.watermark_ms:
            outcome.late += 1
        if self.reached.newest_ms > before_ms:
            self._move(self.reached.newest_ms, outcome)
        if is_near:
            self._join_in(event, message, outcome)

    def _join_in(self, event: Event, message: InputMessage, outcome: Outcome) -> None:
        if isinstance(event, Exposure):
            self.join.expose(event, message, outcome)
        elif isinstance(event, Order):
            self.join.order(event, message, outcome)
        else:
            self.join.act(event, message, outcome)

    def _release(self, clock_ms: int, outcome: Outcome) -> None:
        """Takes held events, in the order of their times, as far as time has come."""
        for ts_ms, message in self.early.until(max(self.reached.newest_ms, clock_ms)):
            self.reached.see(ts_ms, clock_ms)
            self._move(ts_ms, outcome)
            self._join_in(decode_event(message.raw), message, outcome)

    def _page_log(self, message: InputMessage, outcome: Outcome, counts: Counts) -> None:
        try:
            request, page = self.decoder.page(message.raw)
        except ValueError as error:  # a BadEventError is one too
            outcome.dead.append(Dead("bad-page-log", str(error), message, 0))
            return
        if not self._is_astray(page.user_id, message, outcome):
            counts.add("page_logs")
            self.join.serve(request, page, outcome, message.offset)

    def _is_astray(self, user: Id, message: InputMessage, outcome: Outcome, exposures: int = 0) -> bool:
        """Whether the user belongs to another partition; then the message becomes a dead letter, with so many
        ``exposures``."""
        why = self.decoder.astray(user)
        if why:
            outcome.refuse("wrong-partition", why, message, exposures)
        return bool(why)

    def _move(self, to_ms: int, outcome: Outcome) -> None:
        watermark = to_ms - self.policy.disorder_ms
        if watermark > self.join.watermark_ms:
            self.join.watermark_ms = watermark
            self.join.expire(outcome)
