# core
"""Applies messages, silence and other clocks to a partition: all its rules but those of gate and label join.

::

    message ──► EventGate ──► LabelJoin ──► rows to count ──► Counters
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from millrace.basics.hashing import value_hash
from millrace.contracts.events import EXPOSURE, BadEventError
from millrace.contracts.profile_reader import Intake
from millrace.contracts.profile_warnings import ProfileChecks
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, PAGE_LOGS, USERS
from stream.join.join import Dead, InputMessage, LabelJoin, Outcome, Policy
from stream.join.outcome_book import book_of
from stream.join.page_rows import Counted
from stream.join.shown import ShownPages
from stream.partition.counters import Counters
from stream.partition.decoder import Decoder
from stream.partition.event_gate import Counts, EventGate
from stream.partition.journal import Did


class Ingest(EventGate):
    """Takes one partition's messages.

    Attributes:
        offsets: next to read, by topic.
    """

    def __init__(self, schema: Schema, policy: Policy, decoder: Decoder, settles: bool) -> None:
        book = book_of(schema, decoder.shape, policy.lateness_ms)
        super().__init__(policy, decoder, LabelJoin(policy, ShownPages(schema), settles, book))
        self.offsets: dict[str, int] = {}
        self.counters = Counters(schema, decoder)
        self._intake, self._checks = Intake(schema), ProfileChecks(schema)

    def do(self, did: Did, what: Sequence[Any]) -> tuple[Outcome, Counts]:
        """Does what a journal's entry says, for kinds with output. Raises ValueError for another entry."""
        outcome, counts = Outcome(), Counts()
        match did:
            case Did.TAKE:
                self._take(what[1], what[0], outcome, counts)
            case Did.ADVANCE:
                self._release(what[0], outcome)
                self._move(what[0], outcome)
            case Did.RETURNED:
                self._returned(what[0], outcome)
            case Did.RESET_OFFSETS:
                for topic in what[0]:
                    self.offsets.pop(topic, None)
                if PAGE_LOGS in what[0]:
                    self.join.forget_log(outcome)
            case _:
                raise ValueError(f"an entry {did!r} of a journal")
        self._count(outcome, counts)
        self._sweep()
        return outcome, counts

    def set_back(self) -> None:
        """Takes back how far silence has moved the watermark beyond the events."""
        self.join.set_back(self.reached.newest_ms - self.policy.disorder_ms)

    def lived(self, counted: Sequence[Counted], to_ms: int) -> None:
        """See :meth:`stream.partition.partition.Partition.lived`."""
        outcome = Outcome(counted=list(counted))
        for one in counted:
            if one.action == EXPOSURE:
                self.reached.see(one.ts_ms, to_ms, one.page_log.user_id)
        self.reached.see(to_ms, to_ms)
        self._move(to_ms, outcome)
        self._count(outcome, Counts())
        self._sweep()
        while self.counters.is_sweeping:
            self._sweep()

    # ------------------------------------------------------------------ messages in

    def _take(self, messages: Sequence[InputMessage], now_ms: int, outcome: Outcome, counts: Counts) -> None:
        ahead_ms = self.policy.ahead_ms
        offsets = self.offsets
        for message in messages:
            topic, offset, _, clock_ms, key = message
            if offset < offsets.get(topic, 0):
                counts.add("skipped")
                continue
            offsets[topic] = offset + 1
            if topic == EVENTS:
                clock = now_ms if clock_ms is None or clock_ms > now_ms else clock_ms
                self._event(message, clock, clock + ahead_ms, outcome, counts)
            elif topic == PAGE_LOGS:
                self._page_log(message, outcome, counts)
            elif topic == USERS:
                try:
                    if key is None:
                        self._user(message, outcome, counts)
                    else:
                        self._forget(message, now_ms, outcome, counts)
                except BadEventError as error:
                    outcome.dead.append(Dead("bad-user", str(error), message, 0))
            else:
                raise ValueError(f"messages of the topic '{topic}' are not for a partition")

    def _returned(self, found: Mapping[str, bytes | None], outcome: Outcome) -> None:
        for request, raw in found.items():
            page = None
            if raw is not None:
                with contextlib.suppress(ValueError):
                    named, there = self.decoder.page(raw)
                    page = there if named == request else None
            self.join.recall(request, page, outcome)

    def _user(self, message: InputMessage, outcome: Outcome, counts: Counts) -> None:
        """Raises BadEventError, as :meth:`_forget` does."""
        user = self._intake.user(message.raw)
        if not self._is_astray(user.user_id, message, outcome):
            self.counters.log.profiles[str(user.user_id)] = user
            counts.add("users")
            outcome.warnings += self._checks.of_user(user)

    def _forget(self, message: InputMessage, now_ms: int, outcome: Outcome, counts: Counts) -> None:
        user = self._intake.removed(message.key)
        if not self._is_astray(user, message, outcome):
            counts.add("forgotten")
            self._count(outcome, counts)  # what came before counts before
            if self.join.book is not None:
                self.join.book.forget(value_hash(user), outcome.files)
            self.counters.forget(user, now_ms if message.clock_ms is None else min(message.clock_ms, now_ms))

    def _count(self, outcome: Outcome, counts: Counts) -> None:
        if outcome.counted:
            counts.add("matched", sum([c.n for c in outcome.counted if c.action == EXPOSURE]))
            counts.add("unfit", self.counters.add(outcome.counted))
            outcome.counted = []

    def _sweep(self) -> None:
        # No page lives longer: it is seen within a life of being made, and dropped a life after that. Its events may
        # wait longer, for its page log.
        pages_from_ms = 0 if self.join.is_leaving else self.join.watermark_ms - 2 * self.policy.life_ms
        self.counters.sweep(self.reached.newest_ms, pages_from_ms)
