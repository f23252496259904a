# core
"""One partition of the stream: messages in; samples, window changes, dead letters out. Pure and deterministic.

::

    take(messages) ─► Decoder ─► LabelJoin ─┬─► rows of samples ──► SampleBatch
                        │                   └─► rows to count ────► Counters ──► changes()
                        └─► dead letters: malformed, unknown-type, wrong-type, oversized, future, late, no-page-log,
                                          page-log-gone, no-exposure, wrong-item, wrong-partition, wrong-user,
                                          seconds, bad-page-log, bad-user (millrace.contracts.dead_letter_reasons)

Exposures taken in = positives + negatives + :attr:`Partition.pending` + exposures in dead letters, always.

The watermark is the newest event's time less the allowed disorder. It moves message by message, so the split into
batches does not matter. :meth:`Partition.snapshot` is the whole state with the offsets it covers.

An event dated ahead of the event clock, by more than the disorder and no more than is allowed, does not move the
watermark (:class:`~millrace.contracts.clock.Reached`). It is held until the partition's time has reached it.

A tombstone (a message of ``users`` without a value, under the user's key) deletes the user's profile, last clicks
and windows at once (:mod:`stream.partition.counters`). Pages made before still get their labels, so that the sum
above holds. A user who comes again begins with nothing.

A partition's state depends on its inputs alone. So its :class:`~stream.partition.journal.Journal` holds everything
that was done, and :meth:`Partition.replay` does it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from millrace.basics.errors import UNFIT, StoreError
from millrace.contracts.carry import same_tiles
from millrace.contracts.events import DeadLetter, Id, decode_event
from millrace.contracts.profile_warnings import ProfileWarning
from millrace.contracts.samples import KIND_NAMES, SampleBatch
from millrace.contracts.schema import Schema
from stream.join.join import Dead, InputMessage, Policy
from stream.join.outcome_book import ToFiles
from stream.join.page_rows import Counted, batch_of
from stream.partition.counters import Changes, CountersSnapshot, CountersState, Whole
from stream.partition.decoder import Decoder
from stream.partition.ingest import Ingest
from stream.partition.journal import Did, Entry, Journal

__all__ = ["InputMessage", "Partition", "PartitionSnapshot", "Policy", "StepOutput"]

FORM = 7


@dataclass(slots=True)
class StepOutput:
    """The result of one step.

    ``counts``, where not 0: ``events.<type>`` accepted messages by type, ``page_logs``, ``users``, ``forgotten``
    (deletions of users), ``ahead`` (accepted events that are held until their time comes), ``exposures`` (distinct ones
    taken in), ``matched`` (exposures that found their page log), ``samples.KIND`` by kind of sample, ``duplicates``
    (messages without anything new), ``late`` (events behind the watermark, used or not), ``unseen``
    (served pages that were never exposed), ``skipped`` (messages that the state already covered), ``recalled`` and
    ``page_logs_gone`` (settled pages whose page log was read again, or could not be), ``unfit`` (values that are
    negative, not finite or too great for a mean, see :func:`millrace.windows.features.steps`).
    """

    samples: SampleBatch | None = None
    dead: list[DeadLetter] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[ProfileWarning] = field(default_factory=list)  # warnings about accepted users
    files: ToFiles = field(default_factory=ToFiles)  # what to do with files of outcomes that come late, after this


class Partition:
    """One thread at a time.

    >>> from millrace.contracts.events import Exposure, to_json
    >>> from millrace.contracts.schema import shop_schema
    >>> schema, policy = shop_schema(), Policy(attribution_ms=300_000, disorder_ms=0, lateness_ms=60_000, ahead_ms=0)
    >>> partition = Partition(0, schema, policy)
    >>> seen = to_json(Exposure("e1", "page-1", ts_ms=1000, user_id=7, items=[11, 12]))
    >>> output = partition.take([InputMessage("events", 0, seen), InputMessage("events", 1, b"rubbish")], now_ms=2000)
    >>> output.counts["exposures"], output.dead[0].reason
    (2, 'malformed')
    >>> partition.pending, partition.offsets  # they wait for the page_log that they were made from
    (2, {'events': 2})

    Time alone ends the waiting. A partition restored from a checkpoint goes on as the first would have:

    >>> again = Partition(0, schema, policy)
    >>> again.resume(partition.snapshot().to_bytes())
    >>> [(dead_letter.reason, dead_letter.exposures) for dead_letter in again.advance(1000 + policy.life_ms).dead]
    [('no-page-log', 2)]
    >>> again.pending
    0

    Args:
        number: the partition's number, for dead letters.
        schema: gives the shape of page logs and the windows.
        policy: how long to wait.
        partitions: how many the topics have. A message about a user of another partition can never meet the user's
            other messages, so it becomes a dead letter at once. None: not checked.
        settles: whether pages drop their page logs once they are labelled. The caller then has to read those that are
            :attr:`wanted` and hand them to :meth:`returned`. Samples and counts are the same either way.
        history: the schemas that were used one after another. Pages and state of one before ``schema`` are carried over
            by the names of the columns. Of any other schema, a page is a dead letter and a state is refused.

    Attributes:
        journal: notes all that is done from now on; None: no journal is kept.
        join, counters, windows, coclicks: read-only.
    """

    def __init__(
        self,
        number: int,
        schema: Schema,
        policy: Policy,
        partitions: int | None = None,
        settles: bool = False,
        history: tuple[Schema, ...] = (),
    ) -> None:
        self.number, self.schema, self.policy, self.partitions = number, schema, policy, partitions
        self.settles, self.history = settles, history
        self.journal: Journal | None = None
        self.advance_ms: int | None = None  # an advance to be made: the checkpoint was taken before it
        self._decoder = Decoder(schema, number, partitions, history)
        self._ingest = ingest = Ingest(schema, policy, self._decoder, settles)
        self.offsets, self.join, self.counters = ingest.offsets, ingest.join, ingest.counters
        self.windows, self.coclicks = self.counters.tiles, self.counters.coclicks

    @property
    def newest_ms(self) -> int:
        """The newest event taken; 0 before the first."""
        return self._ingest.reached.newest_ms

    @property
    def ahead_ms(self) -> int:
        """The first event that is held; 0: none."""
        return self._ingest.early.first_ms

    @property
    def watermark_ms(self) -> int:
        """Event time up to which all events are assumed to have come; 0 before the first event."""
        return self.join.watermark_ms

    @property
    def pending(self) -> int:
        return self.join.pending

    @property
    def wanted(self) -> Mapping[str, int]:
        """Settled pages with an event that needs the page log: its Kafka offset, by request."""
        return self.join.wanted

    # ------------------------------------------------------------------ what is done to it

    def take(self, messages: Sequence[InputMessage], now_ms: int) -> StepOutput:
        """Takes messages in the order given; those below ``offsets`` of their topic are in the state already.

        Args:
            now_ms: the event clock, to recognise events from the future. Used for messages that do not carry the clock
                of their arrival. (A message that is read again must be judged as it was the first time.)
        """
        return self._do(Did.TAKE, now_ms, messages)

    def waits_for(self, now_ms: int) -> bool:
        """Whether :meth:`advance` to ``now_ms`` may lead to something."""
        due_ms = self.join.due_ms
        is_due = due_ms is not None and due_ms <= now_ms - self.policy.disorder_ms
        return is_due or 0 < self.ahead_ms <= now_ms

    def advance(self, now_ms: int) -> StepOutput:
        """Moves an idle partition's watermark to ``now_ms`` less the disorder. Call it only when nothing is left to
        read: otherwise an event that was only slow would be late afterwards.

        No message records this move. A caller that recovers from checkpoints writes one first, with
        ``snapshot(advance_ms=now_ms)``.
        """
        self.advance_ms = None
        return self._do(Did.ADVANCE, now_ms)

    def set_back(self) -> None:
        """Takes back how far :meth:`advance` has moved the watermark beyond the events, for another event clock
        (:mod:`stream.worker.clock_check`). Labels given and pages dropped in silence stay as they are."""
        self._note(Did.SET_BACK)
        self._ingest.set_back()

    def returned(self, found: Mapping[str, bytes | None]) -> StepOutput:
        """Takes page logs of :attr:`wanted`, by request, read from Kafka again; None: it is gone, or its offset has
        another message."""
        return self._do(Did.RETURNED, dict(found))

    def reset_offsets(self, topics: Sequence[str]) -> StepOutput:
        """These topics were replaced by other logs: their offsets begin again. Windows and pages stay; page logs that
        were to be read again are gone if their topic is among them."""
        return self._do(Did.RESET_OFFSETS, list(topics))

    def cut_back(self, ends: Mapping[str, int]) -> None:
        """These topics have lost their ends: new messages have old offsets and are taken. Messages of the lost end stay
        taken."""
        self._note(Did.CUT_BACK, dict(ends))
        self.offsets.update(ends)

    def changes(self) -> Changes:
        """What changed since the last call. Publish it before a checkpoint that is taken later: the state does not
        record which changes were handed out here."""
        self._note(Did.CHANGES)
        return self.counters.changes(self.newest_ms)

    def whole(self) -> Iterator[Whole]:
        """All user-side tile lists by user, and what users did last, some thousand at a time, for a store that lost its
        data. The partition may go on in between: such changes come by :meth:`changes`, so write the lists from here
        first."""
        self._note(Did.WHOLE)
        yield from self.counters.whole()

    def lived(self, counted: Sequence[Counted], to_ms: int) -> None:
        """Counts old pages' rows without making samples or dead letters. Windows, last clicks and co-clicks are as if
        the pages' messages had come in this order. For a partition that begins with a history
        (:mod:`millrace.commands.history`), before its first checkpoint.

        Args:
            counted: in the order of time, none older than earlier ones.
            to_ms: time of the newest event among them.

        Raises:
            ValueError: the partition has a journal, which has no entry for this.
        """
        if self.journal is not None:
            raise ValueError("a partition that keeps a journal cannot be given a history")
        self._ingest.lived(counted, to_ms)

    def replay(self, entries: Iterable[Entry]) -> None:
        """Does again what a journal says, without output: all of it has been sent, or the checkpoint would not exist.

        Raises:
            ValueError, TypeError: an entry is none.
        """
        for did, *what in entries:
            match did:
                case Did.SET_BACK:
                    self._ingest.set_back()
                case Did.CUT_BACK:
                    self.offsets.update(what[0])
                case Did.CHANGES:
                    self.counters.published()
                case Did.WHOLE:
                    self.counters.log.owned_keys()
                case _:
                    self.advance_ms = None if did == Did.ADVANCE else self.advance_ms
                    self._ingest.do(did, what)
        # A slice of a sweep may have other keys here, so a key may have ended without the readers' knowledge.
        self.counters.key_may_have_ended()

    def _note(self, did: Did, *what: Any) -> None:
        if self.journal is not None:
            self.journal.note(did, *what)

    def _do(self, did: Did, *what: Any) -> StepOutput:
        self._note(did, *what)
        outcome, counts = self._ingest.do(did, what)
        samples = batch_of(outcome.sampled, self._decoder.shape) if outcome.sampled else None
        if samples is not None:
            kinds = np.bincount(samples.kind, minlength=len(KIND_NAMES)).tolist()
            for name, n in zip(KIND_NAMES, kinds, strict=True):
                counts.add(f"samples.{name}", n)
        for name in ("exposures", "duplicates", "late", "unseen", "recalled", "page_logs_gone"):
            counts.add(name, getattr(outcome, name))
        dead = [self._dead_letter(d) for d in outcome.dead]
        return StepOutput(samples, dead, dict(counts), outcome.warnings, outcome.files)

    def _dead_letter(self, dead: Dead) -> DeadLetter:
        topic, offset, raw, _, key = dead.message
        return DeadLetter.of(dead.reason, dead.detail, topic, self.number, offset, raw or key, dead.exposures)

    # ------------------------------------------------------------------ state

    def snapshot(self, advance_ms: int | None = None) -> PartitionSnapshot:
        """The whole state now. Later changes do not affect it. Its :meth:`PartitionSnapshot.to_bytes` may run in
        another thread.

        Args:
            advance_ms: :meth:`advance` will be called with this before the next message is taken. A reader of the
                checkpoint makes the same call (:attr:`advance_ms`), so it comes to the same results.
        """
        head = {
            "form": FORM,
            "schema": self.schema.id,
            "number": self.number,
            "advance_ms": advance_ms,
            "offsets": dict(self.offsets),
            "newest_ms": self.newest_ms,
            "ahead": (self._ingest.early.snapshot(), self._ingest.reached.snapshot()),
            "join": self.join.snapshot(),
        }
        if self.join.book is not None:
            head["book"] = self.join.book.snapshot()
        return PartitionSnapshot(head, self.counters.snapshot())

    def resume(self, raw: bytes) -> None:
        """Restores ``raw``, the result of :meth:`PartitionSnapshot.to_bytes`. Call it on a new partition, before
        anything else.

        Raises:
            StoreError: the bytes are no checkpoint of this version, schema or partition. The object is not usable
                afterwards.
        """
        try:
            state = msgspec.msgpack.decode(raw, type=_State)
        except UNFIT as error:
            raise StoreError(f"{len(raw)} bytes are no checkpoint of a partition ({error})", _REMEDY) from None
        was = self._check(state)
        try:
            self.advance_ms = state.advance_ms
            self.offsets.update(state.offsets)
            early, pages = state.ahead
            self._ingest.early.resume(early)
            self._ingest.reached.resume(state.newest_ms, pages)
            self.join.resume(state.join, lambda message: self._decoder.page(message)[1], decode_event)
            self.counters.resume(state, was)
            if self.join.book is not None and state.book is not None:
                carry = self._decoder.former.get(state.schema)
                self.join.book.resume(state.book, carry.samples if carry is not None else lambda rows: rows)
        except UNFIT as error:
            raise StoreError(f"a damaged checkpoint ({error})", _REMEDY) from None

    def _check(self, state: _State) -> Schema | None:
        """The schema of a checkpoint if it is another one than the present. Raises StoreError if the state cannot go on
        here."""
        if state.form != FORM:
            raise StoreError(f"a checkpoint of form {state.form}, this version reads {FORM}", _REMEDY)
        carry = self._decoder.former.get(state.schema)
        if state.schema != self.schema.id and carry is None:
            raise StoreError(f"a checkpoint of schema {state.schema}, the settings name {self.schema.id}", _REMEDY)
        if carry is not None and not same_tiles(carry.old, self.schema):
            raise StoreError(
                f"the checkpoint's schema {state.schema} counts other actions, means or windows than {self.schema.id}: "
                "its counts cannot go on",
                _REMEDY_TILES,
            )
        if state.number != self.number:
            raise StoreError(f"a checkpoint of partition {state.number} in the place of {self.number}'s", _REMEDY)
        return carry.old if carry is not None else None


@dataclass(slots=True)
class PartitionSnapshot:
    head: dict[str, Any]
    counters: CountersSnapshot

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self.head | self.counters.plain())


class _State(CountersState):
    form: int
    schema: str
    number: int
    advance_ms: int | None
    offsets: dict[str, int]
    newest_ms: int
    ahead: tuple[list[tuple[int, list[Any]]], list[tuple[Id, int]]]
    join: Any
    book: Any = None


_REMEDY = "move the checkpoint folder away to read the topics from their beginning, or run the version that wrote it"
_REMEDY_TILES = (
    "keep the actions, the means and every window of the former schema (keys, windows and half-lives may be added), or "
    "move the checkpoint folder away: the topics are read from their beginning and counted again"
)
