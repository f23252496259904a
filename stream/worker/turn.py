# core
"""Decides what is due for each partition of a worker, and when. Pure: the worker executes it and decides nothing.

::

    page log, user ───────────────────────────────────────► waiting ─┐
    event ──► gate, until page logs have been read as far ───────────┴─► Take       Pause, Resume: too many at the gate

    every publish_s                        Publish
    every checkpoint_s, if anything came   Publish, Checkpoint
    silent for idle_s                      Publish, Checkpoint(advance_ms) ── it is written ──► Advance ──► Take, ...
    handed over to another worker          Publish, Checkpoint
    taken over, ahead of another clock     SetBack, before any Take
    taken over, of topics that are gone    ResetOffsets, before any Take
    a settled page needs its page log      Recall ── it has been read ──► Return

A :class:`Turn` gets the messages, how far the topics have been read, the time and the finished jobs. It answers with
what is due, in order. The worker keeps that order. It does the short things (:class:`Take`, :class:`Advance`,
reading the state for :class:`Publish` and :class:`Checkpoint`) before it asks again. It does the long things
(delivering, writing) one after another in the background, and calls :meth:`Turn.done` after each.

Each past fault has a rule, and each rule its own method, so that a test can remove it and see its case fail:

===============================  ============================================================================
:meth:`Turns.positions`          Messages came before the checkpoint was loaded, and were lost.
:meth:`Turn._released`           Events ran ahead of page logs, which are larger; their pages were lost.
:meth:`Turn._silent_until`       A worker that stood still took its own absence for silence of its partitions.
:meth:`Turn._announce`           A label given to silence was forgotten in a crash, and given again differently.
:meth:`Turn._announcing`         The same, when the crash came before the checkpoint was written.
:func:`clock_at`                 An event from another run's future was taken when our clock had come as far.
:func:`is_set_back`              Another run's clock had left the watermark hours ahead; every event was late.
:func:`other_logs`               The broker came back empty; the worker refused to start with the state it had.
===============================  ============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from millrace.basics.errors import BrokerError
from millrace.contracts.clock import EventClock, Headers, data_now_ms, sent_by
from millrace.contracts.events import LAST_MS
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, PAGE_LOGS, USERS
from stream.join.join import InputMessage
from stream.join.topic_order import Arrival, ReadTo, TopicOrder, silent_until
from stream.partition.partition import Partition, PartitionSnapshot
from stream.worker.clock_check import is_set_back

INPUTS = (EVENTS, PAGE_LOGS, USERS)
TAKE_MESSAGES = 500
"""Messages in one :class:`Take`. With so many, the worker's event loop runs again within some tens of milliseconds."""
HELD_MESSAGES = 4096
"""Fetching of events pauses when more events than this wait for page logs. It resumes at half of this number."""
BEYOND_S = 3.0
"""A topic that ends before the checkpoint's offset for longer than this is taken to be another topic."""
RECALLED = 256
"""Page logs in one :class:`Recall`, at most. There is one at a time for each partition."""
RECALL_S = 1.0
"""Seconds between a reading that failed and the next."""
AHEAD_S = 3600.0
"""A Kafka time stamp further ahead of our clock than this is not believed (brokers refuse it from Kafka 4 on).
Otherwise one such page log would release all events before the page logs that they wait for."""
QUIET_S = 1.0
"""A longer time between two looks counts as not looking: a sleeping machine hears no broker."""

PUBLISH_SECONDS = 1.0  # between two publications of item windows to the scorer

Reads = Mapping[str, ReadTo | None]
"""How far each input topic of a partition has been read."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things are due, in seconds."""

    publish_s: float
    checkpoint_s: float
    idle_s: float

    @classmethod
    def of(cls, settings: Settings) -> Pace:
        return cls(PUBLISH_SECONDS, settings.checkpoint_seconds, settings.idle_seconds)


class Now(NamedTuple):
    """One moment on two clocks, in seconds."""

    steady_s: float  # never set back: for what is due at regular intervals
    wall_s: float  # Unix time: Kafka's time stamps and answers are compared with it


# ---------------------------------------------------------------------- what is due


@dataclass(frozen=True, slots=True)
class Take:
    """Take these messages; send the resulting samples and dead letters."""

    messages: Sequence[InputMessage]


@dataclass(frozen=True, slots=True)
class Advance:
    """Move the silent partition's watermark; send the output. A checkpoint that announces it has been written."""

    until_ms: int


@dataclass(frozen=True, slots=True)
class SetBack:
    """Take back how far silence had moved the watermark by another clock (:mod:`stream.worker.clock_check`); log it."""


@dataclass(frozen=True, slots=True)
class ResetOffsets:
    """These topics are other logs than the checkpoint's: begin their offsets again; send the output; log it."""

    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """Read these page logs again, in the background: Kafka offset by request. Then call :meth:`Turn.recalled`."""

    wanted: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Return:
    """Give these page logs to the partition (None: it is gone); send the output."""

    found: Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Pause:
    """Fetch no more events of this partition for now."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Fetch events of this partition again."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Read the partition's changes now and write them to the online store, ``features.items`` and
    ``features.coclicks``.

    ``new``: the first publication of a partition that began empty. A store that does not hold the partition then
    needs these changes only. Any other publication to such a store begins with all that the partition holds.
    """

    new: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Read :meth:`Turn.snapshot` now. Write it once all samples and dead letters so far, and all publications that
    were due before, are delivered. Then commit its offsets.

    ``advance_ms``: the state announces this :class:`Advance`, as the first thing that follows it.
    ``last``: the partition is given up with it.
    """

    advance_ms: int | None
    last: bool = False


Due = Take | Advance | SetBack | ResetOffsets | Recall | Return | Pause | Resume | Publish | Checkpoint


# ---------------------------------------------------------------------- arrivals


def clock_at(stamp_s: float, headers: Headers | None, clock: EventClock) -> int | None:
    """The event clock when a message came to Kafka; None where it is not known.

    The time at which Kafka received an event decides whether it is from the future. A later run, whose clock has
    reached the event's time, may read it again and must decide the same.

    Args:
        stamp_s: Kafka's time stamp.
        headers: the message's; they name the clock by which it was sent, if that is not the wall clock.
        clock: this run's, for messages that name none.
    """
    sender = sent_by(headers) or clock
    stamp_ms = round(stamp_s * 1000)
    # A clock has no time before its beginning (a message of another run that did not name its clock).
    return min(sender.at(stamp_ms), LAST_MS) if stamp_ms >= sender.wall_zero_ms else None


def arrival(
    partition: int,
    topic: str,
    offset: int,
    value: bytes,
    stamp_s: float,
    headers: Headers | None,
    clock: EventClock,
    wall_s: float,
    key: bytes | None = None,
) -> Arrival:
    """A Kafka message that the consumer has just handed over. ``key`` is that of a tombstone; None: it is none."""
    stamp_s = wall_s if stamp_s > wall_s + AHEAD_S else stamp_s
    return Arrival(
        partition, stamp_s, wall_s, InputMessage(topic, offset, value, clock_at(stamp_s, headers, clock), key)
    )


def other_logs(
    said: Mapping[str, str], ids: Mapping[str, str], offsets: Mapping[str, int], ends: Mapping[str, int]
) -> tuple[str, ...]:
    """The topics that have replaced those of a checkpoint under the same names.

    Args:
        said: topic ids in the checkpoint; a topic without one: it was not known.
        ids: those of the broker; empty or missing: the broker gives none.
        offsets: next to read, in the checkpoint.
        ends: of this partition of the broker's topics. Without ids, an end before the offset reveals another topic.
    """
    known = {t for t in offsets if said.get(t) and ids.get(t)}
    by_id = {t for t in known if said[t] != ids[t]}
    return tuple(t for t in INPUTS if t in by_id or (t not in known and ends.get(t, 1 << 62) < offsets.get(t, 0)))


# ---------------------------------------------------------------------- one partition


class Turn:
    """The work in progress for one partition, and what is due next.

    Args:
        partition: in the state of its newest checkpoint. Read here, changed by the worker alone.
        pace: how often things are due.
        clock: event time by wall time.
        now: the moment of its assignment.
        reset: topics that are other logs than those of the checkpoint (:func:`other_logs`).

    Raises:
        ClockError: the partition has taken events that are ahead of the clock.
    """

    def __init__(
        self, partition: Partition, pace: Pace, clock: EventClock, now: Now, reset: tuple[str, ...] = ()
    ) -> None:
        self.partition = partition
        self._pace, self._clock = pace, clock
        self._gate = TopicOrder()
        self._waiting: list[InputMessage] = []  # arrived, not yet taken
        self._last_message_s = now.wall_s  # time of the last message, or of the assignment
        self._published_s = float("-inf")
        self._saved_s = now.steady_s  # when the last checkpoint was due
        self._publications = 0  # in progress
        self._saving = 0  # checkpoints in progress
        self._dirty = False  # something happened since the last checkpoint was due
        self._new = not partition.offsets and not partition.newest_ms
        self._paused = False
        self._advance_ms = partition.advance_ms  # of an advance that is announced or about to be announced
        self._announced = partition.advance_ms is not None  # a checkpoint announces it
        self._back = is_set_back(partition, clock, now.wall_s)  # a SetBack is due
        self._reset = reset  # a ResetOffsets is due
        self._asked = 0  # readings of page logs in progress
        self._ask_s = now.steady_s  # no sooner
        self._found: dict[str, bytes | None] = {}  # read, not yet returned
        self._beyond_s: float | None = None  # since when a topic has ended before the checkpoint's offset

    @property
    def number(self) -> int:
        return self.partition.number

    def position(self, topic: str) -> int:
        return 0 if topic in self._reset else self.partition.offsets.get(topic, 0)

    def arrived(self, message: Arrival, now: Now) -> None:
        self._last_message_s = now.wall_s
        if message.message.topic == EVENTS:
            self._gate.hold(message)
            return
        self._waiting.append(message.message)
        if message.message.topic == PAGE_LOGS:
            self._gate.served(message)

    @property
    def waits(self) -> bool:
        """Whether something here goes on with the broker's next answer, a checkpoint or a reading."""
        return bool(len(self._gate) or self._waiting or self._found or self._asked or self._advance_ms is not None)

    def inbound(self, reads: Reads, now: Now) -> Iterator[Due]:
        """The messages to be taken."""
        if self._announcing():
            return
        if self._advance_ms is not None:
            until_ms, self._advance_ms, self._announced, self._dirty = self._advance_ms, None, False, True
            yield Advance(until_ms)
        if self._back:
            self._back, self._dirty = False, True
            yield SetBack()
        if self._reset:
            topics, self._reset, self._dirty = self._reset, (), True
            yield ResetOffsets(topics)
        if self._found:
            found, self._found, self._dirty = self._found, {}, True
            yield Return(found)
        messages, self._waiting = self._waiting, []
        messages += self._released(reads, messages, now)
        held = len(self._gate)
        if self._paused != (held > HELD_MESSAGES // (2 if self._paused else 1)):
            self._paused = not self._paused
            yield Pause() if self._paused else Resume()
        for start in range(0, len(messages), TAKE_MESSAGES):
            self._dirty = True
            yield Take(messages[start : start + TAKE_MESSAGES])

    def outbound(self, reads: Reads, newest_ms: int, now: Now) -> Iterator[Due]:
        """The publications and checkpoints that are due. Call it after all that :meth:`inbound` gave is done.

        Args:
            newest_ms: the newest event in any partition of this worker.

        Raises:
            BrokerError: a topic ends before the offset that the checkpoint has covered.
        """
        save = not self._saving and now.steady_s - self._saved_s >= self._pace.checkpoint_s
        if save and self._advance_ms is None:
            until_ms = self._idle_until(reads, newest_ms, now)
            if until_ms is not None and self.partition.waits_for(until_ms):
                yield from self._announce(until_ms, now)
                save = False
        if not self._publications and now.steady_s - self._published_s >= self._pace.publish_s:
            yield self._publication(now)
        if save and self._dirty:
            yield from self._checkpoint(now)
        yield from self._recall(now)
        self._check_ends(reads, now)

    def last(self, now: Now) -> Iterator[Due]:
        """The work due before the partition is given up."""
        if self._dirty:
            yield from self._checkpoint(now, last=True)

    def snapshot(self) -> PartitionSnapshot:
        """The content of a :class:`Checkpoint` that is due: the partition, and the advance that follows. A turn has no
        other state: messages that wait here are read from Kafka again, and the rest begins again with an assignment."""
        return self.partition.snapshot(self._advance_ms)

    def given_up(self) -> Partition:
        """The partition as a reader of its last checkpoint finds it, once that is written: an announced advance is the
        next thing to be done."""
        self.partition.advance_ms = self._advance_ms
        return self.partition

    def done(self, due: Due) -> None:
        """A publication or checkpoint that was due is done."""
        if isinstance(due, Publish):
            self._publications -= 1
        elif isinstance(due, Checkpoint):
            self._saving -= 1
            self._announced = due.advance_ms is not None

    def recalled(self, found: Mapping[str, bytes | None] | None, now: Now) -> None:
        """The page logs of a :class:`Recall` were read; None: they could not be."""
        self._asked -= 1
        if found is None:
            self._ask_s = now.steady_s + RECALL_S
        else:
            self._found |= found

    # ------------------------------------------------------------------ rules

    def _announcing(self) -> bool:
        """Whether an advance waits for the checkpoint that announces it. Until then no message is taken: a worker that
        recovers from the checkpoint makes the advance before it takes anything."""
        return self._advance_ms is not None and not self._announced

    def _released(self, reads: Reads, taken_now: Sequence[InputMessage], now: Now) -> list[InputMessage]:
        """Events whose page logs have been taken, or are among ``taken_now``."""
        if not len(self._gate):
            return []
        taken = [m.offset + 1 for m in taken_now if m.topic == PAGE_LOGS]
        end = max([self.partition.offsets.get(PAGE_LOGS, 0), *taken])
        return self._gate.release(reads.get(PAGE_LOGS), end, now.steady_s)

    def _silent_until(self, reads: Reads, now: Now) -> float:
        """The wall time (s) up to which nothing has come since the last message, by the broker's last answers.

        Time in which we did not look is no silence. A worker that stood still (a machine asleep, a compiler, another
        process on its core) must not move the watermark past messages that it has not read.
        """
        offsets = self.partition.offsets
        return silent_until([(reads.get(t), offsets.get(t, 0)) for t in (EVENTS, PAGE_LOGS)], self._last_message_s)

    def _idle_until(self, reads: Reads, newest_ms: int, now: Now) -> int | None:
        """Event time to move a silent partition to: the event clock, or, when an old log is played, the other
        partitions' time. None when it is not silent or something waits to be read."""
        partition = self.partition
        known_ms = max(newest_ms, partition.ahead_ms)
        if max(partition.newest_ms, partition.ahead_ms) <= 0 or len(self._gate):
            return None
        until_s = self._silent_until(reads, now)
        if until_s - self._last_message_s < self._pace.idle_s:
            return None
        return data_now_ms(self._clock.at(round(until_s * 1000)), known_ms, partition.watermark_ms)

    def _announce(self, until_ms: int, now: Now) -> Iterator[Due]:
        """A checkpoint announces the move of the watermark, since no message does. A worker that recovers makes the
        same move before it takes another message, so a label that silence caused stays the same."""
        self._advance_ms = until_ms
        yield from self._checkpoint(now)

    def _recall(self, now: Now) -> Iterator[Due]:
        """Page logs that settled pages need, some at a time, while everything else goes on. A reading that fails is
        due again: what waits is in the state, so nothing is lost."""
        if self._asked or self._found or self._reset or now.steady_s < self._ask_s:
            return
        wanted = dict(islice(self.partition.wanted.items(), RECALLED))
        if wanted:
            self._asked += 1
            yield Recall(wanted)

    def _publication(self, now: Now) -> Publish:
        self._published_s = now.steady_s
        self._publications += 1
        new, self._new = self._new, False
        return Publish(new)

    def _checkpoint(self, now: Now, last: bool = False) -> Iterator[Due]:
        """All changes are published first, so that a restart from this checkpoint has few to publish again."""
        yield self._publication(now)
        self._saved_s, self._dirty = now.steady_s, False
        self._saving += 1
        yield Checkpoint(self._advance_ms, last)

    def _check_ends(self, reads: Reads, now: Now) -> None:
        offsets = self.partition.offsets
        beyond = [t for t in INPUTS if (read := reads.get(t)) is not None and read.end < offsets.get(t, 0)]
        if not beyond:
            self._beyond_s = None
            return
        if self._beyond_s is None:
            self._beyond_s = now.steady_s
        if now.steady_s - self._beyond_s > BEYOND_S:
            raise BrokerError(
                f"topic '{beyond[-1]}' partition {self.number} ends before offset {offsets[beyond[-1]]} of its "
                "checkpoint: it has lost its end, or is not the topic that was read",
                "start the role again: it goes on with its state and reads what the topic holds",
            )


# ---------------------------------------------------------------------- all partitions of a worker


class Turns:
    """The partitions that a worker holds, from one assignment to the next."""

    def __init__(self, pace: Pace, clock: EventClock) -> None:
        self._pace, self._clock = pace, clock
        self._turns: dict[int, Turn] | None = None  # None: not loaded
        self._looked_s, self._answer_s, self._silent_s = 0.0, 0.0, 0.0

    def __iter__(self) -> Iterator[Turn]:
        return iter((self._turns or {}).values())

    @property
    def newest_ms(self) -> int:
        return max((turn.partition.newest_ms for turn in self), default=0)

    @property
    def wait(self) -> bool:
        """Whether one of them waits for something."""
        return any(turn.waits for turn in self)

    def let_go(self) -> None:
        """A rebalance begins: nothing is ours until :meth:`begin`."""
        self._turns = None

    def begin(
        self, partitions: Iterable[Partition], now: Now, reset: Mapping[int, tuple[str, ...]] | None = None
    ) -> None:
        """These partitions are ours, in the state of their newest checkpoints.

        Args:
            reset: by partition, topics that are other logs than its checkpoint's.

        Raises:
            ClockError: one of them has taken events that are ahead of the clock.
        """
        others = reset or {}
        self._turns = {p.number: Turn(p, self._pace, self._clock, now, others.get(p.number, ())) for p in partitions}

    def positions(self) -> dict[tuple[str, int], int] | None:
        """The next offset to read, by topic and partition; None: not known yet, so that nothing may be read. Faust
        hands messages over while an assignment is being handled: before the state is loaded they would reach no
        partition and be lost."""
        if self._turns is None:
            return None
        return {(topic, n): turn.position(topic) for n, turn in self._turns.items() for topic in INPUTS}

    def arrived(self, arrivals: Iterable[Arrival], now: Now) -> None:
        """Messages of partitions that are not ours are dropped: the worker that owns them reads them."""
        turns = self._turns or {}
        for one in arrivals:
            turn = turns.get(one.partition)
            if turn is not None:
                turn.arrived(one, now)

    def silent_s(self, reads: Iterable[ReadTo | None], now: Now) -> float:
        """Seconds for which the broker has answered no fetch: shows an outage to a worker with nothing to send. Call it
        at every look. Time in which we did not look (a machine asleep) does not count.

        Args:
            reads: of every topic and partition.
        """
        answer_s = max((read.asked_s for read in reads if read is not None), default=0.0)
        if not self._turns or answer_s != self._answer_s:
            self._answer_s, self._silent_s = answer_s, 0.0
        else:
            self._silent_s += min(now.steady_s - self._looked_s, QUIET_S)
        self._looked_s = now.steady_s
        return self._silent_s
