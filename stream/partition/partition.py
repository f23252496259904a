# core
"""One partition of the stream: messages in; samples, window changes, dead letters out. Pure and deterministic.

::

    take(messages) ─► decode ─► LabelJoin ─┬─► rows of samples ──► SampleBatch
                        │                  ├─► rows to count ───► TileStore ──► changes()
                        │                  └─► clicks, purchases: Recents, CoClicks ──┘
                        └─► dead letters: malformed, unknown-type, wrong-type, oversized, future, late, no-impression,
                                          impression-gone, no-exposure, wrong-item, wrong-partition, wrong-user,
                                          seconds, bad-impression, bad-user (millrace.contracts.reasons)

Exposures taken in = positives + negatives + :attr:`Partition.pending` + exposures in dead letters, always.

The watermark is the newest event's time less the allowed disorder. It moves message by message, so it does not matter
how messages are cut into batches. :meth:`Partition.snapshot` is the whole state with the offsets it covers.

An event that is dated ahead of the event clock, by more than the disorder and no more than is allowed, does not move
the watermark (:class:`~millrace.contracts.clock.Reached`). It is held, and taken when the partition's time has come to
its own.

A user is forgotten by a tombstone (a message of ``users`` without a value, under the user's key): profile, last
clicks and the windows of keys that have the user's id in them go at once. Pages that were made before go on to their
labels, so that the books balance, but what is still done on them counts in no window of the user's. Windows that many
users share (of an age band) stay. A user who comes again begins with nothing.

What a partition becomes depends on what is done to it and on nothing else. So whoever gives it a
:class:`~stream.partition.journal.Journal` finds in there everything that was done, and :meth:`Partition.replay` does
it again.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import StoreError
from millrace.basics.hashing import kafka_partition, value_hash
from millrace.contracts.carry import Carry, former, same_tiles
from millrace.contracts.clock import Reached
from millrace.contracts.coclicks import Lists
from millrace.contracts.doubts import SECONDS_MS, Doubt, Doubts
from millrace.contracts.events import (
    ACTIONS,
    CLICK,
    EXPOSURE,
    PURCHASE,
    BadEventError,
    DeadLetter,
    Event,
    Exposure,
    Id,
    User,
    decode_event,
    key_of,
)
from millrace.contracts.impressions import Served, decode_served
from millrace.contracts.intake import Intake
from millrace.contracts.samples import KIND_NAMES, SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, IMPRESSIONS, USERS
from millrace.windows.features import steps
from millrace.windows.kernels import HOUR_MS
from millrace.windows.tiles import SLACK_H, TilesSnapshot, TileStore
from stream.join.join import Dead, LabelJoin, Message, Outcome, Policy
from stream.join.rows import Counted, LoggedPage, batch_of, keys_of, numbers_of, rows_of
from stream.join.shown import Shown
from stream.partition.coclicks import EARLIER, CoClicks, CoClicksSnapshot
from stream.partition.journal import Did, Entry, Journal
from stream.partition.owners import Owners, within
from stream.partition.recents import CLICKS, PURCHASES, Recents, UserRecent

__all__ = ["Changes", "Message", "Output", "Partition", "PartitionSnapshot", "Policy"]

Array = NDArray[Any]
FORM = 5
_FORMS = (1, 2, 3, 4, FORM)
"""1: from before there were label policies, without promises; 2: and before pages were settled; 3: and before users'
last clicks and co-clicks were kept: they begin with nothing; 4: and before events ahead of the clock were held."""
AHEAD_BYTES = 8 << 20
"""Of the events ahead of the clock that a partition holds. Beyond, they are from the future."""
_EACH_BYTES = 256  # what holding one takes besides
_ACCEPTED = tuple(f"events.{action}" for action in ACTIONS)
_KNOWN = 1_000_000  # id hashes remembered
_WHOLE_KEYS = 8192  # lists handed out at a time by Partition.whole
_SWEEPS = 64  # slices in which the windows are swept


@dataclass(slots=True)
class Output:
    """The result of one step.

    ``counts``, where not 0: ``events.<type>`` accepted messages by type, ``impressions``, ``users``, ``forgotten``
    (deletions of users), ``ahead`` (accepted events that are held until their time comes), ``exposures`` (distinct ones
    taken in), ``matched`` (exposures that found their impression), ``samples.negative|positive|correction|follow_up``,
    ``duplicates`` (messages without anything new), ``late`` (events behind the watermark, used or not), ``unseen``
    (served pages that were never exposed), ``skipped`` (messages that the state already covered), ``recalled`` and
    ``impressions_gone`` (settled pages whose impression was read again, or could not be), ``unfit`` (values that are
    negative, not finite or too great for a mean, see :func:`millrace.windows.features.steps`).
    """

    samples: SampleBatch | None = None
    dead: list[DeadLetter] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    doubts: list[Doubt] = field(default_factory=list)  # about users that were taken


@dataclass(slots=True)
class Changes:
    """The changes to publish. They are absolute new states, so publishing them twice changes nothing."""

    forgotten: list[Id]  # users of whom all goes that was published before
    users: list[tuple[Id, list[tuple[int, bytes]]]]  # user-side tile lists by user, empty where a key has ended
    profiles: list[User]
    item_keys: NDArray[np.uint64]  # (n,)
    item_tiles: list[bytes]
    event_ms: int  # newest event in it
    recents: list[UserRecent]  # what users did last, empty where it has ended
    coclicks: Lists


class Whole(NamedTuple):
    """Some of what a partition holds of its users."""

    users: list[tuple[Id, list[tuple[int, bytes]]]]
    recents: list[UserRecent]


class Partition:
    """See the module's text. One thread at a time.

    >>> from millrace.contracts.events import Exposure, to_json
    >>> from millrace.contracts.schema import shop_schema
    >>> schema, policy = shop_schema(), Policy(attribution_ms=300_000, disorder_ms=0, lateness_ms=60_000, ahead_ms=0)
    >>> partition = Partition(0, schema, policy)
    >>> seen = to_json(Exposure("e1", "page-1", ts_ms=1000, user_id=7, items=[11, 12]))
    >>> output = partition.take([Message("events", 0, seen), Message("events", 1, b"rubbish")], now_ms=2000)
    >>> output.counts["exposures"], output.dead[0].reason
    (2, 'malformed')
    >>> partition.pending, partition.offsets  # they wait for the impression that they were made from
    (2, {'events': 2})

    Time alone ends the waiting. What comes back from a checkpoint goes on as the first would have:

    >>> again = Partition(0, schema, policy)
    >>> again.resume(partition.snapshot().to_bytes())
    >>> [(letter.reason, letter.exposures) for letter in again.advance(1000 + policy.life_ms).dead]
    [('no-impression', 2)]
    >>> again.pending
    0

    Args:
        number: the partition's number, for dead letters.
        schema: gives the shape of impressions and the windows.
        policy: how long to wait.
        partitions: how many the topics have. A message about a user whose partition is another one can never meet the
            user's other messages, so it becomes a dead letter at once. None: it is not looked at.
        settles: whether pages give their impressions up once they are labelled. Then somebody has to read those that
            are :attr:`wanted` and hand them to :meth:`returned`. Samples and counts are the same either way.
        history: the schemas that were used one after another. What was logged or kept under one before ``schema`` is
            carried over by the names of its columns; of any other schema it is a dead letter, or refused.

    Attributes:
        journal: what is told of all that is done from now on; None: nobody is.
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
        self._former = {id: Carry(old, schema) for id, old in former(history, schema).items()}
        self.journal: Journal | None = None
        self.offsets: dict[str, int] = {}
        self._reached = Reached(policy.disorder_ms)
        self._ahead: list[tuple[int, int, Message]] = []  # a heap: time, number
        self._held = self._ahead_bytes = 0  # numbers given, and how much is held
        self.advance_ms: int | None = None  # an advance that is still to be made: the checkpoint was taken before it
        self._join = LabelJoin(policy, settles, Shown(schema).page)
        self._intake, self._doubts = Intake(schema), Doubts(schema)
        layout, windows = schema.layout, schema.windows
        self._shape = (layout.F, layout.N, layout.K)
        self._tiles = TileStore.of(windows)
        self._recents, self._coclicks = Recents(), CoClicks()
        self._anew = False  # the checkpoint was from before these two were kept
        # For each mean: the column of its action, the column of its field in num, the size of a step.
        plain = [f.name for f in layout.plain_fields]
        self._means = [(windows.actions.index(m.action), plain.index(m.of), m.step) for m in windows.means]
        self._column = [windows.actions.index(a) if a in windows.actions else -1 for a in ACTIONS]
        self._user_side = np.array([schema.key_side(k) == "user" for k in windows.keys], np.bool_)
        whose = schema.log.user if schema.log is not None else "user_id"
        self._shared_side = self._user_side & np.array([whose not in k.columns for k in windows.keys], np.bool_)
        self._shared: NDArray[np.uint64] = np.zeros(0, np.uint64)  # user-side keys of several users, ascending
        self._forgotten: dict[str, int] = {}  # users, and the event time at which each was: the oldest first
        self._untold: dict[str, Id] = {}  # of these, those that the readers were not told of
        self._changed_users: list[tuple[list[Id], Array, NDArray[np.uint64]]] = []  # users, (n,) whose, (n,) keys
        self._changed_items: list[NDArray[np.uint64]] = []
        self._profiles: dict[str, User] = {}
        self._item_hashes: dict[Id, bytes] = {}  # value hashes, as samples carry them
        self._user_hashes: dict[Id, int] = {}
        self._own: set[Id] = set()  # users known to belong to this partition
        self._swept_turn, self._sweep_hour, self._sweep_at = -1, 0, _SWEEPS
        self._owners, self._ended = Owners(), False  # user-side keys; whether a sweep has dropped any key

    @property
    def newest_ms(self) -> int:
        """The newest event that was taken; 0 before the first."""
        return self._reached.newest_ms

    @property
    def ahead_ms(self) -> int:
        """The first event that is held until its time comes; 0: none is."""
        return self._ahead[0][0] if self._ahead else 0

    @property
    def watermark_ms(self) -> int:
        """Event time up to which all events are assumed to have come; 0 before the first event."""
        return self._join.watermark_ms

    @property
    def pending(self) -> int:
        """Exposures that are neither labelled nor dead."""
        return self._join.pending

    @property
    def unserved(self) -> str:
        """The request of an exposure that still waits for its impression, one of the oldest; empty: none waits. It
        looks at all pages."""
        return next((page.request for page in self._join.pages.values() if page.parts and page.impression is None), "")

    @property
    def wanted(self) -> Mapping[str, int]:
        """Settled pages for which something came that needs the impression: its Kafka offset, by request."""
        return self._join.wanted

    @property
    def settled(self) -> int:
        """Pages that are kept without their impression."""
        return len(self._join.settled)

    @property
    def window_keys(self) -> int:
        return len(self._tiles)

    @property
    def windows(self) -> TileStore:
        """The window counts, to be read."""
        return self._tiles

    @property
    def coclicks(self) -> CoClicks:
        """Which items are clicked together, to be read."""
        return self._coclicks

    def item_keys(self) -> NDArray[np.uint64]:
        """Item-side window keys that changed since the last :meth:`changes`, ascending. Of a partition that never told
        of any, all of them."""
        return np.unique(np.concatenate([np.zeros(0, np.uint64), *self._changed_items]))

    # ------------------------------------------------------------------ messages in

    def take(self, messages: Sequence[Message], now_ms: int) -> Output:
        """Takes messages in the order given; those below ``offsets`` of their topic are in the state already.

        Args:
            now_ms: the event clock, to recognise events from the future. It is used for messages that do not say what
                the clock was when they came. (A message that is read again must be judged as it was the first time.)
        """
        if self.journal is not None:
            self.journal.note(Did.TAKE, now_ms, messages)
        outcome, counts = Outcome(), _Counts()
        self._take(messages, now_ms, outcome, counts)
        return self._finish(outcome, counts)

    def _take(self, messages: Sequence[Message], now_ms: int, outcome: Outcome, counts: _Counts) -> None:
        ahead_ms = self.policy.ahead_ms
        offsets = self.offsets
        for message in messages:
            topic, offset, raw, clock_ms, _ = message
            if offset < offsets.get(topic, 0):
                counts.add("skipped")
                continue
            offsets[topic] = offset + 1
            if topic == EVENTS:
                clock = now_ms if clock_ms is None or clock_ms > now_ms else clock_ms
                self._event(message, clock, clock + ahead_ms, outcome, counts)
            elif topic == IMPRESSIONS:
                self._impression(message, outcome, counts)
            elif topic == USERS and message.key is not None:
                self._forget(message, now_ms, outcome, counts)
            elif topic == USERS:
                try:
                    user = self._intake.user(raw)
                except BadEventError as error:
                    outcome.dead.append(Dead("bad-user", str(error), message, 0))
                    continue
                if self._is_own(user.user_id, message, outcome):
                    self._profiles[str(user.user_id)] = user
                    counts.add("users")
                    outcome.doubts += self._doubts.of_user(user)
            else:
                raise ValueError(f"messages of the topic '{topic}' are not for a partition")

    def _forget(self, message: Message, now_ms: int, outcome: Outcome, counts: _Counts) -> None:
        """A tombstone: what the partition knows of the user goes."""
        try:
            user = self._intake.removed(message.key)
        except BadEventError as error:
            outcome.dead.append(Dead("bad-user", str(error), message, 0))
            return
        if not self._is_own(user, message, outcome):
            return
        counts.add("forgotten")
        self._tally(outcome, counts)  # what came before counts before
        self._profiles.pop(user, None)
        self._tell_again(self._recents.forget(user))
        users, bounds, keys = self._by_user()
        self._owners.add(users, bounds, keys)
        at = next((i for i, one in enumerate(users) if str(one) == user), None)
        told_next = keys[:0] if at is None else keys[bounds[at] : bounds[at + 1]]
        mine = np.union1d(self._owners.forget(user), told_next)
        shared = np.isin(mine, self._shared)
        self._tiles.settle(mine[shared])  # whose user changes one next is told of it
        self._tiles.drop(mine[~shared])
        self._changed_users = [_without(changed, user) for changed in self._changed_users]
        clock_ms = now_ms if message.clock_ms is None else min(message.clock_ms, now_ms)
        self._forgotten.pop(user, None)
        self._forgotten[user] = clock_ms
        self._untold[user] = user

    def _is_forgotten(self, page: LoggedPage) -> bool:
        """Whether the page was made for a user who was forgotten since."""
        at_ms = self._forgotten.get(str(page.user_id)) if self._forgotten else None
        return at_ms is not None and page.ts_ms <= at_ms

    def lived(self, counted: Sequence[Counted], to_ms: int) -> None:
        """Counts what was done on pages of long ago, of which nothing more is said: neither samples nor dead letters
        come of it. Windows, last clicks and co-clicks are as if the pages' messages had come in this order.

        For a partition that begins with a history (:mod:`commands.history`), before its first checkpoint.

        Args:
            counted: in the order of time, none older than what came before.
            to_ms: time of the newest event among them.

        Raises:
            ValueError: somebody keeps a journal, which has no word for this.
        """
        if self.journal is not None:
            raise ValueError("a partition that keeps a journal cannot be given a history")
        outcome = Outcome(counted=list(counted))
        for one in counted:
            if one.action == EXPOSURE:
                self._reached.see(one.ts_ms, to_ms, one.impression.user_id)
        self._reached.see(to_ms, to_ms)
        self._move(to_ms, outcome)
        self._tally(outcome, _Counts())
        self._sweep()
        while self._sweep_at < _SWEEPS:
            self._sweep()

    def waits_for(self, now_ms: int) -> bool:
        """Whether :meth:`advance` to ``now_ms`` may lead to something."""
        due_ms = self._join.due_ms
        is_due = due_ms is not None and due_ms <= now_ms - self.policy.disorder_ms
        return is_due or 0 < self.ahead_ms <= now_ms

    def advance(self, now_ms: int) -> Output:
        """Moves an idle partition's watermark to ``now_ms`` less the disorder. Call it only when nothing is left to
        read: otherwise an event that was only slow would be late afterwards.

        No message records this move of the watermark. A caller that recovers from checkpoints writes one first, with
        ``snapshot(advance_ms=now_ms)``.
        """
        if self.journal is not None:
            self.journal.note(Did.ADVANCE, now_ms)
        outcome = Outcome()
        self._advance(now_ms, outcome)
        return self._finish(outcome, _Counts())

    def _advance(self, now_ms: int, outcome: Outcome) -> None:
        self.advance_ms = None
        self._release(now_ms, outcome)
        self._move(now_ms, outcome)

    def set_back(self) -> None:
        """Takes back how far :meth:`advance` has moved the watermark beyond the events, for another event clock
        (:mod:`stream.worker.ahead`). What silence has decided stays decided: labels that were given, pages that are
        gone."""
        if self.journal is not None:
            self.journal.note(Did.SET_BACK)
        self._join.set_back(self.newest_ms - self.policy.disorder_ms)

    def returned(self, found: Mapping[str, bytes | None]) -> Output:
        """The impressions of some requests of :attr:`wanted`, as they were read from Kafka again; None: it is gone, or
        another message lies in its place."""
        if self.journal is not None:
            self.journal.note(Did.RETURNED, dict(found))
        outcome = Outcome()
        self._returned(found, outcome)
        return self._finish(outcome, _Counts())

    def _returned(self, found: Mapping[str, bytes | None], outcome: Outcome) -> None:
        for request, raw in found.items():
            page = None
            if raw is not None:
                with contextlib.suppress(ValueError):
                    served = decode_served(raw)
                    if served.request_id == request:
                        page = self._arrays(served, raw)
            self._join.recall(request, page, outcome)

    def begin_anew(self, topics: Sequence[str]) -> Output:
        """These topics are other logs than those that were read: their offsets begin again. Windows and pages stay;
        impressions that were to be read again are gone if theirs is among the topics."""
        if self.journal is not None:
            self.journal.note(Did.BEGIN_ANEW, list(topics))
        outcome = Outcome()
        self._begin_anew(topics, outcome)
        return self._finish(outcome, _Counts())

    def _begin_anew(self, topics: Sequence[str], outcome: Outcome) -> None:
        for topic in topics:
            self.offsets.pop(topic, None)
        if IMPRESSIONS in topics:
            self._join.forget_log(outcome)

    def cut_back(self, ends: Mapping[str, int]) -> None:
        """These topics have lost their ends, and what comes now has offsets that were read before: it is taken from
        there. What was taken of the lost end stays taken."""
        if self.journal is not None:
            self.journal.note(Did.CUT_BACK, dict(ends))
        self.offsets.update(ends)

    def replay(self, entries: Iterable[Entry]) -> None:
        """Does again what a journal tells of; nothing comes out, and nothing is noted. All of it has been sent, or the
        checkpoint would not be there.

        Raises:
            ValueError, TypeError: an entry is none.
        """
        for did, *what in entries:
            outcome = Outcome()
            match did:
                case Did.TAKE:
                    self._take(what[1], what[0], outcome, _Counts())
                case Did.ADVANCE:
                    self._advance(what[0], outcome)
                case Did.SET_BACK:
                    self._join.set_back(self.newest_ms - self.policy.disorder_ms)
                case Did.RETURNED:
                    self._returned(what[0], outcome)
                case Did.BEGIN_ANEW:
                    self._begin_anew(what[0], outcome)
                case Did.CUT_BACK:
                    self.offsets.update(what[0])
                case Did.CHANGES:
                    self._told()
                case Did.WHOLE:
                    self._owners.add(*self._by_user())
                case _:
                    raise ValueError(f"an entry {did!r} of a journal")
            if did not in (Did.CHANGES, Did.WHOLE, Did.SET_BACK, Did.CUT_BACK):
                self._tally(outcome, _Counts())
                self._sweep()
        if self._anew:  # a journal from then says what was handed out, which these two were not
            self._recents.all_changed()
            self._coclicks.all_changed()
        # A slice of a sweep may have other keys here, so one may have ended that the readers were not told of. They are
        # told again.
        self._ended = True

    def _told(self) -> None:
        """What :meth:`changes` does to the state, for keys that live."""
        items = np.concatenate(self._changed_items) if self._changed_items else np.zeros(0, np.uint64)
        owners, bounds, user_keys = self._by_user()
        self._tiles.settle(np.concatenate([items, user_keys]))
        self._owners.add(owners, bounds, user_keys)
        self._changed_users, self._changed_items, self._profiles, self._untold = [], [], {}, {}
        self._recents.changes()
        self._coclicks.changes()

    def _event(self, message: Message, clock_ms: int, limit_ms: int, outcome: Outcome, counts: _Counts) -> None:
        try:
            event = decode_event(message.raw)
        except BadEventError as error:
            outcome.dead.append(Dead(error.reason, error.detail, message, 0))
            return
        if event.ts_ms > limit_ms:
            detail = f"{event.ts_ms - limit_ms} ms beyond what is allowed ahead of the clock"
            self._refuse("future", detail, event, message, outcome)
            return
        if event.ts_ms < SECONDS_MS <= clock_ms:
            # Left in, it would be counted in windows of 1970, and its label would wait a thousand times too long.
            self._refuse("seconds", f"ts_ms {event.ts_ms} seems to be in seconds", event, message, outcome)
            return
        if self.partitions is not None and event.user_id not in self._own:
            lost = len(event.items) if isinstance(event, Exposure) else 0
            if not self._is_own(event.user_id, message, outcome, lost):
                return
        counts.add(_ACCEPTED[event.kind])
        if self._ahead:
            self._release(clock_ms, outcome)
        before_ms = self.newest_ms
        is_near = self._reached.see(event.ts_ms, clock_ms, event.user_id if isinstance(event, Exposure) else None)
        if not is_near:
            if self._keep_ahead(event.ts_ms, message):
                counts.add("ahead")
            else:
                by_ms = event.ts_ms - clock_ms
                detail = f"{by_ms} ms ahead of the clock, where {len(self._ahead)} such events wait already"
                self._refuse("future", detail, event, message, outcome)
            if self.newest_ms > before_ms:
                self._release(clock_ms, outcome)
        elif event.ts_ms < self._join.watermark_ms:
            outcome.late += 1
        if self.newest_ms > before_ms:
            self._move(self.newest_ms, outcome)
        if is_near:
            self._join_in(event, message, outcome)

    def _join_in(self, event: Event, message: Message, outcome: Outcome) -> None:
        if isinstance(event, Exposure):
            self._join.expose(event, message, outcome)
        else:
            self._join.act(event, message, outcome)

    def _refuse(self, reason: str, detail: str, event: Event, message: Message, outcome: Outcome) -> None:
        """An event that becomes a dead letter, with the exposures that are lost with it."""
        lost = len(event.items) if isinstance(event, Exposure) else 0
        outcome.exposures += lost
        outcome.dead.append(Dead(reason, detail, message, lost))

    def _keep_ahead(self, ts_ms: int, message: Message) -> bool:
        """Holds an event until its time comes; whether there was room."""
        size = len(message.raw) + _EACH_BYTES
        if self._ahead_bytes + size > AHEAD_BYTES:
            return False
        self._held += 1
        self._ahead_bytes += size
        heappush(self._ahead, (ts_ms, self._held, message))
        return True

    def _release(self, clock_ms: int, outcome: Outcome) -> None:
        """Takes what was held, in the order of its time, as far as this time has come."""
        until_ms = max(self.newest_ms, clock_ms)
        while self._ahead and self._ahead[0][0] <= until_ms:
            ts, _, message = heappop(self._ahead)
            self._ahead_bytes -= len(message.raw) + _EACH_BYTES
            self._reached.see(ts, clock_ms)
            self._move(ts, outcome)
            self._join_in(decode_event(message.raw), message, outcome)

    def _impression(self, message: Message, outcome: Outcome, counts: _Counts) -> None:
        try:
            served = decode_served(message.raw)
            impression = self._arrays(served, message.raw)
        except ValueError as error:  # a BadEventError is one too
            outcome.dead.append(Dead("bad-impression", str(error), message, 0))
            return
        if not self._is_own(served.user_id, message, outcome):
            return
        counts.add("impressions")
        self._join.serve(served.request_id, impression, outcome, message.offset)

    def _is_own(self, user: Id, message: Message, outcome: Outcome, exposures: int = 0) -> bool:
        """Whether the user belongs to this partition; a message about any other user becomes a dead letter.

        Args:
            exposures: how many are lost with the message.
        """
        if self.partitions is None or user in self._own:
            return True
        key = key_of(user)
        home = kafka_partition(key, self.partitions)
        if home == self.number:
            if len(self._own) > _KNOWN:
                self._own.clear()
            self._own.add(user)
            return True
        outcome.exposures += exposures
        detail = (
            f"user {user!r} came in partition {self.number}, but belongs to partition {home} of {self.partitions}; "
            f"send with the key {key.decode()!r} and Kafka's default partitioner (murmur2)"
        )
        outcome.dead.append(Dead("wrong-partition", detail, message, exposures))
        return False

    def _read(self, raw: bytes) -> LoggedPage:
        return self._arrays(decode_served(raw), raw)

    def _arrays(self, served: Served, raw: bytes) -> LoggedPage:
        """Raises ValueError where the arrays are not of the schema, nor of one before it."""
        if served.schema_id != self.schema.id:
            carry = self._former.get(served.schema_id)
            if carry is None:
                raise ValueError(f"schema {served.schema_id}, not {self.schema.id}")
            served = carry.page(served)
        users, hashes = self._user_hashes, self._hashes(served.items)
        user = users.get(served.user_id)
        if user is None:
            if len(users) > _KNOWN:
                users.clear()
            user = users[served.user_id] = value_hash(served.user_id)
        return LoggedPage(served, raw, user, hashes, self._shape)

    def _hashes(self, items: Sequence[Id]) -> bytes:
        """Value hashes of items, as samples carry them."""
        known = self._item_hashes
        try:
            return b"".join(map(known.__getitem__, items))
        except KeyError:
            if len(known) > _KNOWN:
                known.clear()
            for item in items:
                if item not in known:
                    known[item] = value_hash(item).to_bytes(8, "little")
            return b"".join(map(known.__getitem__, items))

    def _move(self, to_ms: int, outcome: Outcome) -> None:
        watermark = to_ms - self.policy.disorder_ms
        if watermark > self._join.watermark_ms:
            self._join.watermark_ms = watermark
            self._join.expire(outcome)

    # ------------------------------------------------------------------ results out

    def _finish(self, outcome: Outcome, counts: _Counts) -> Output:
        out = Output()
        self._tally(outcome, counts)
        if outcome.sampled:
            out.samples = batch_of(outcome.sampled, self._shape)
            for name, n in zip(
                KIND_NAMES, np.bincount(out.samples.kind, minlength=len(KIND_NAMES)).tolist(), strict=True
            ):
                counts.add(f"samples.{name}", n)
        out.dead = [self._letter(d) for d in outcome.dead]
        out.doubts = outcome.doubts
        for name in ("exposures", "duplicates", "late", "unseen", "recalled"):
            counts.add(name, getattr(outcome, name))
        counts.add("impressions_gone", outcome.lost)
        self._sweep()
        out.counts = dict(counts)
        return out

    def _tally(self, outcome: Outcome, counts: _Counts) -> None:
        """Counts what is to be counted, and notes clicks and purchases; each once."""
        if outcome.counted:
            counts.add("matched", sum([c.n for c in outcome.counted if c.action == EXPOSURE]))
            counts.add("unfit", self._count(outcome.counted))
            self._remember(outcome.counted)
            outcome.counted = []

    def _letter(self, dead: Dead) -> DeadLetter:
        topic, offset, raw, _, key = dead.message
        return DeadLetter.of(dead.reason, dead.detail, topic, self.number, offset, raw or key, dead.exposures)

    def _count(self, counted: Iterable[Counted]) -> int:
        """Counts rows under the window keys of their impression, and notes the changed keys for each reader. Returns
        how many values were unfit for a mean."""
        column = self._column
        chunks = [c for c in counted if column[c.action] >= 0]
        if not chunks or not self._shape[2]:
            return 0
        keys = keys_of(chunks, self._shape[2])
        sizes = [c.n for c in chunks]
        if self._forgotten:
            theirs = np.repeat(np.array([self._is_forgotten(c.impression) for c in chunks]), sizes)
            keys[theirs[:, None] & self._user_side] = 0  # no key
        times = np.repeat(np.array([c.ts_ms for c in chunks], np.int64), sizes)
        actions = np.repeat(np.array([column[c.action] for c in chunks], np.int64), sizes)
        fresh = self._tiles.add(keys, times, actions)
        unfit = 0
        for m, (action, number, step) in enumerate(self._means, len(self.schema.windows.actions)):
            acted = np.flatnonzero(actions == action)
            if len(acted):  # the same keys were just counted for the actions, so they are noted as changed already
                values = numbers_of([c for c in chunks if column[c.action] == action], self._shape[1])
                amounts, bad = steps(values[:, number], step)
                unfit += bad
                self._tiles.add(keys[acted], times[acted], np.full(len(acted), m), amounts)
        if not len(fresh):
            return unfit
        rows, which = np.divmod(fresh, self._shape[2])
        mine = self._user_side[which]
        flat = keys.ravel()
        items = flat[fresh[~mine]]
        if len(items):
            self._changed_items.append(items)
        if self._shared_side.any():
            shared = flat[fresh[self._shared_side[which]]]
            new = shared[~within(shared, self._shared)]
            if len(new):  # seldom: a merge copies them all
                self._shared = np.union1d(self._shared, new)
        owner = np.repeat(np.arange(len(chunks)), sizes)[rows[mine]]
        if len(owner):
            users, owner = np.unique(owner, return_inverse=True)
            named = [chunks[i].impression.user_id for i in users.tolist()]
            self._changed_users.append((named, owner, flat[fresh[mine]]))
        return unfit

    def _remember(self, counted: Iterable[Counted]) -> None:
        """Notes clicks and purchases as what their users did last, and counts clicks with those before them."""
        recents = self._recents
        clicked: list[bytes] = []
        times: list[int] = []
        sizes: list[int] = []
        ids: list[Id] = []
        times_before: list[int] = []
        for page, runs, _, ts_ms, action in counted:
            if self._is_forgotten(page):
                if action == CLICK:
                    self._tell_again([page.items[runs[0][0]]])
                continue
            if action == CLICK:
                at = runs[0][0]
                before = recents.add(page.user_id, CLICKS, page.items[at], ts_ms, EARLIER)
                if before:
                    clicked.append(page.item[8 * at : 8 * at + 8])
                    times.append(ts_ms)
                    sizes.append(len(before) // 2)
                    ids += before[::2]
                    times_before += before[1::2]
            elif action == PURCHASE:
                recents.add(page.user_id, PURCHASES, page.items[runs[0][0]], ts_ms)
        if clicked:
            of_clicks = rows_of(clicked, "<u8"), np.array(times, np.int64), np.array(sizes, np.int64)
            others = rows_of([self._hashes(ids)], "<u8")
            self._coclicks.click(*of_clicks, others, np.array(times_before, np.int64))

    def _tell_again(self, items: Sequence[Id]) -> None:
        """Has the co-clicks of a forgotten user's items told again. Before a crash that took the state back, the
        tombstone may have come after clicks that it comes before now: readers were told of them then."""
        self._coclicks.tell_again(rows_of([self._hashes(items)], "<u8"))

    def _sweep(self) -> None:
        """Merges tiles and ends keys when they are due. It works in slices, so that no step takes long."""
        # No page lives longer: it is seen within a life of being made, and dropped a life after that. What came for it
        # may wait longer, for its impression.
        while self._forgotten and not self._join.is_leaving:
            user, at_ms = next(iter(self._forgotten.items()))
            if at_ms + 2 * self.policy.life_ms >= self._join.watermark_ms:
                break
            del self._forgotten[user]
        self._recents.sweep(self.newest_ms)
        self._coclicks.sweep(self.newest_ms)
        hour = self.newest_ms // HOUR_MS
        turn = (hour - SLACK_H) // self._tiles.sweep_hours
        if turn > self._swept_turn and self._sweep_at == _SWEEPS:
            self._swept_turn, self._sweep_hour, self._sweep_at = turn, hour, 0
        if self._sweep_at < _SWEEPS:
            at = self._sweep_at
            dropped = self._tiles.sweep(self._sweep_hour * HOUR_MS, at / _SWEEPS, (at + 1) / _SWEEPS)
            self._ended = self._ended or dropped > 0
            self._sweep_at += 1

    def changes(self) -> Changes:
        """What changed since the last call. Publish it before you write a checkpoint that is taken later: the state
        does not record which changes were handed out here."""
        if self.journal is not None:
            self.journal.note(Did.CHANGES)
        items = np.concatenate(self._changed_items) if self._changed_items else np.zeros(0, np.uint64)
        owners, bounds, user_keys = self._by_user()
        tiles = self._tiles.export(np.concatenate([items, user_keys]), settle=True)
        lists = list(zip(user_keys.tolist(), tiles[len(items) :], strict=True))
        users = _lists_of(owners, bounds, lists)
        self._owners.add(owners, bounds, user_keys)
        if self._ended and self._sweep_at == _SWEEPS:  # once a sweep: the last window of a key ends with a day
            self._ended = False
            alive = self._tiles.keys()
            owners, bounds, gone = self._owners.end(alive)
            self._shared = np.intersect1d(self._shared, alive)
            users += _lists_of(owners, bounds, [(key, b"") for key in gone.tolist()])
        profiles, tiles = list(self._profiles.values()), tiles[: len(items)]
        told = self._recents.changes(), self._coclicks.changes()
        changes = Changes(list(self._untold.values()), users, profiles, items, tiles, self.newest_ms, *told)
        self._changed_users, self._changed_items, self._profiles, self._untold = [], [], {}, {}
        return changes

    def whole(self) -> Iterator[Whole]:
        """All user-side tile lists by user, and what users did last, some thousand at a time, for a store that lost its
        data. The partition may go on in between. What changes meanwhile is in :meth:`changes` as usual, so write the
        lists from here first."""
        if self.journal is not None:
            self.journal.note(Did.WHOLE)
        self._owners.add(*self._by_user())
        owners, bounds, keys = self._owners.all()
        start = 0
        while start < len(owners):
            end = max(start + 1, bisect_right(bounds, bounds[start] + _WHOLE_KEYS) - 1)
            part = keys[bounds[start] : bounds[end]]
            lists = list(zip(part.tolist(), self._tiles.export(part), strict=True))
            yield Whole(_lists_of(owners[start:end], [b - bounds[start] for b in bounds[start : end + 1]], lists), [])
            start = end
        for recents in self._recents.whole():
            yield Whole([], recents)

    def _by_user(self) -> tuple[list[Id], list[int], NDArray[np.uint64]]:
        """Users with changed keys; where each user's keys begin (and where the last user's end); all keys in order."""
        first: dict[str, Id] = {}
        number: dict[str, int] = {}
        whose: list[Array] = [np.zeros(0, np.int64)]
        for named, owner, _ in self._changed_users:
            known = [number.setdefault(str(first.setdefault(str(u), u)), len(number)) for u in named]
            whose.append(np.array(known)[owner])
        by = np.concatenate(whose)
        order = np.argsort(by, kind="stable")
        bounds = [0, *np.cumsum(np.bincount(by, minlength=len(number))).tolist()]
        keys = np.concatenate([np.zeros(0, np.uint64), *(keys for _, _, keys in self._changed_users)])
        return list(first.values()), bounds, keys[order]

    # ------------------------------------------------------------------ state

    def snapshot(self, advance_ms: int | None = None) -> PartitionSnapshot:
        """The whole state now. What happens to the partition later does not change it. Its
        :meth:`PartitionSnapshot.to_bytes` may run in another thread.

        Args:
            advance_ms: :meth:`advance` will be called with this before the next message is taken. A reader of the
                checkpoint makes the same call (:attr:`advance_ms`), so it comes to the same results.
        """
        return PartitionSnapshot(
            self._tiles.snapshot(),
            {
                "form": FORM,
                "schema": self.schema.id,
                "number": self.number,
                "advance_ms": advance_ms,
                "offsets": dict(self.offsets),
                "newest_ms": self.newest_ms,
                "ahead": ([(ts, message) for ts, _, message in sorted(self._ahead)], self._reached.snapshot()),
                "join": self._join.snapshot(),
                "users": self._by_user(),
                "profiles": list(self._profiles.values()),
                "owners": self._owners.snapshot(),
                "sweep": (self._swept_turn, self._sweep_hour, self._sweep_at),
                "recents": self._recents.snapshot(),
                "forgotten": (list(self._forgotten.items()), list(self._untold)),
            },
            self._shared,
            list(self._changed_items),
            self._coclicks.snapshot(),
        )

    def resume(self, raw: bytes) -> None:
        """Becomes the partition that it was. Call it on a new one, before anything else.

        Args:
            raw: what :meth:`PartitionSnapshot.to_bytes` gave.

        Raises:
            StoreError: the bytes are not a checkpoint of this version, or are of another schema or partition. The
                object is not usable afterwards.
        """
        try:
            head = msgspec.msgpack.decode(raw, type=_Head)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{len(raw)} bytes are no checkpoint of a partition ({error})", _REMEDY) from None
        if head.form not in _FORMS:
            raise StoreError(f"a checkpoint of form {head.form}, this version reads {FORM}", _REMEDY)
        if head.schema != self.schema.id and head.schema not in self._former:
            raise StoreError(f"a checkpoint of schema {head.schema}, the settings name {self.schema.id}", _REMEDY)
        was = self._former[head.schema].old if head.schema != self.schema.id else None
        if was is not None and not same_tiles(was, self.schema):
            raise StoreError(
                f"the checkpoint's schema {head.schema} counts other actions, means or windows than {self.schema.id}: "
                "its counts cannot go on",
                _REMEDY_TILES,
            )
        if head.number != self.number:
            raise StoreError(f"a checkpoint of partition {head.number} in the place of {self.number}'s", _REMEDY)
        try:
            self.offsets = head.offsets
            held, pages = head.ahead
            self._reached.resume(head.newest_ms, pages)
            for ts_ms, message in held:
                self._keep_ahead(ts_ms, Message(*message))
            self.advance_ms = head.advance_ms
            self._join.resume(head.join, self._read, decode_event)
            arrays = {name: np.frombuffer(head.tiles[name], dtype) for name, dtype in _ARRAYS.items()}
            if was is None or was.windows.keys:  # else nothing was counted, and time may have other units
                self._tiles.resume(arrays)
            users, bounds, keys = head.users
            if users:
                owner = np.repeat(np.arange(len(users)), np.diff(bounds))
                self._changed_users = [(users, owner, np.frombuffer(keys, "<u8"))]
            self._changed_items = [np.frombuffer(head.items, "<u8")]
            self._profiles = {str(user.user_id): user for user in head.profiles}
            ids, who, keys = head.owners
            self._owners.resume((ids, np.frombuffer(who, "<i4"), np.frombuffer(keys, "<u8")))
            if was is None:  # with other windows, turns have other numbers: the next sweep begins at once
                self._swept_turn, self._sweep_hour, self._sweep_at = head.sweep
            self._ended = True  # a key may have ended after the checkpoint
            self._anew = head.coclicks is None
            if head.recents is not None:
                self._recents.resume(head.recents)
            if head.coclicks is not None:
                self._coclicks.resume(head.coclicks)
            forgotten, untold = head.forgotten
            self._forgotten, self._untold = dict(forgotten), {user: user for user in untold}
            self._shared = np.frombuffer(head.shared, "<u8")
        except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
            raise StoreError(f"a damaged checkpoint ({error})", _REMEDY) from None


@dataclass(slots=True)
class PartitionSnapshot:
    """A partition's state at one moment."""

    tiles: TilesSnapshot
    head: dict[str, Any]
    shared: NDArray[np.uint64]
    items: list[NDArray[np.uint64]]
    coclicks: CoClicksSnapshot

    def to_bytes(self) -> bytes:
        arrays = self.tiles.arrays()
        items = np.concatenate(self.items) if self.items else np.zeros(0, np.uint64)
        users, bounds, keys = self.head["users"]
        owners, who, owned = self.head["owners"]
        late = {
            "users": (users, bounds, _raw(keys, "<u8")),
            "items": _raw(items, "<u8"),
            "shared": _raw(self.shared, "<u8"),
            "owners": (owners, _raw(who, "<i4"), _raw(owned, "<u8")),
            "tiles": {name: _raw(arrays[name], dtype) for name, dtype in _ARRAYS.items()},
            "coclicks": self.coclicks.plain(),
        }
        return msgspec.msgpack.encode(self.head | late)


def _lists_of(
    owners: Sequence[Id], bounds: Sequence[int], lists: list[tuple[int, bytes]]
) -> list[tuple[Id, list[tuple[int, bytes]]]]:
    return [(user, lists[a:b]) for user, (a, b) in zip(owners, pairwise(bounds), strict=True)]


def _without(
    changed: tuple[list[Id], Array, NDArray[np.uint64]], user: str
) -> tuple[list[Id], Array, NDArray[np.uint64]]:
    """Changed keys without those of a user."""
    named, owner, keys = changed
    kept = ~np.isin(owner, [i for i, one in enumerate(named) if str(one) == user])
    return named, owner[kept], keys[kept]


def _raw(array: Array, dtype: str) -> memoryview:
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data


class _Head(msgspec.Struct):
    form: int
    schema: str
    number: int
    offsets: dict[str, int]
    newest_ms: int
    join: Any
    users: tuple[list[Id], list[int], memoryview]
    profiles: list[User]
    items: memoryview
    tiles: dict[str, memoryview]
    owners: tuple[list[Id], memoryview, memoryview] = ([], memoryview(b""), memoryview(b""))
    advance_ms: int | None = None
    sweep: tuple[int, int, int] = (-1, 0, _SWEEPS)
    recents: tuple[dict[str, bytes], list[str], int] | None = None
    coclicks: dict[str, Any] | None = None
    forgotten: tuple[list[tuple[str, int]], list[str]] = ([], [])
    shared: memoryview = memoryview(b"")
    ahead: tuple[list[tuple[int, list[Any]]], list[tuple[Id, int]]] = ([], [])


_ARRAYS = {"keys": "<u8", "ends": "<i8", "packed": "u1", "changed": "u1", "newest": "<i8"}
_REMEDY = "move the checkpoint folder away to read the topics from their beginning, or run the version that wrote it"
_REMEDY_TILES = (
    "keep the actions, the means and every window of the former schema (keys, windows and half-lives may be added), or "
    "move the checkpoint folder away: the topics are read from their beginning and counted anew"
)


class _Counts(dict[str, int]):
    def add(self, name: str, n: int = 1) -> None:
        if n:
            self[name] = self.get(name, 0) + n
