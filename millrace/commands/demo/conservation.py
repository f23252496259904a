# core
"""The audit of a run: it accounts for every exposure from the messages of the topics.

::

    events ──────► sent      every (request_id, position) of a page that could be read
    samples ─────► positive, negative (then perhaps corrected)           one label each, never both
    dead-letters ► dead      pages that were readable but unusable
    the rest ────► pending   must be the number that the stream role itself reports
    samples ─────► trained, refused      what the learner says that it did with each
                   held out, over a limit, in quarantine, rolled back     not learnt, or no longer

A page has one :class:`PageAccount`. A set of its positions is one integer, bit ``i`` for position ``i``: "no exposure
twice" is an ``&`` that gives 0, and memory stays small.

After a crash a role may write a sample or a dead letter again, with the same identity. Such repeats are counted, and
are no error.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from learner.samples.eventtime import EventTime
from millrace.basics.errors import ConservationError, SchemaError
from millrace.commands.demo.servedrows import LabelledExposures
from millrace.contracts.clock import EventClock
from millrace.contracts.events import (
    ARMS,
    LOGGED,
    BadEventError,
    Exposure,
    decode_dead_letter,
    decode_event,
    decode_truth,
)
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, OUTCOME, PAGE, POSITIVE, SampleBatch
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, EVENTS, SAMPLES, TRUTH
from millrace.labels import Waits

Offsets = dict[int, int]
"""Offsets of ``events`` by partition at which a run begins. Earlier messages belong to earlier runs."""

UNREADABLE = ("oversized", "malformed", "unknown-type", "wrong-type")
REFUSED = ("future", "wrong-partition")
"""Reasons of dead letters whose events could be read but were not taken in."""


@dataclass(slots=True)
class PageAccount:
    """What became of the exposures of one page: sets of positions as bits."""

    sent: int = 0
    dead: int = 0  # taken in, then in a dead letter: what is sent of it again is a duplicate
    refused: int = 0  # in a dead letter before it was taken in (REFUSED): it may be sent again, and taken
    positive: int = 0
    negative: int = 0
    corrected: int = 0
    again: int = 0  # sent again to be compared within the page
    own: bool = False  # of this run
    at: tuple[int, int, int] = (-1, -1, 0)  # partition, offset and time (Unix ms) of its newest exposure

    @property
    def labelled(self) -> int:
        return self.positive | self.negative | self.corrected

    @property
    def settled(self) -> int:
        return self.positive | self.negative

    @property
    def known(self) -> int:
        return self.sent | self.dead | self.refused

    @property
    def pending(self) -> int:
        return self.sent & ~self.settled & ~self.dead

    @property
    def lost(self) -> int:
        """Exposures in dead letters without any other outcome."""
        return (self.dead & ~self.settled) | (self.refused & ~self.sent & ~self.dead)


@dataclass(slots=True)
class Ledger:
    """What the topics say about one run. Feed it with the ``*_message`` methods, dead letters first."""

    clock: EventClock = field(default_factory=EventClock)
    ahead_ms: int = 3_600_000
    since: Offsets = field(default_factory=dict)
    waits: Waits = field(default_factory=lambda: Waits.of(Settings()))
    by_page: bool = False  # whether the learner learns what is sent again
    pages: dict[str, PageAccount] = field(default_factory=dict)
    clicks: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0  # an event_id again, in a dead letter too
    unreadable: Counter[str] = field(default_factory=Counter)  # events that no one can decode, by reason
    future: int = 0
    dead: Counter[str] = field(default_factory=Counter)  # dead letters of events, by reason
    dead_of_earlier: Counter[str] = field(default_factory=Counter)  # the same, of events of earlier runs
    dead_elsewhere: Counter[str] = field(default_factory=Counter)  # of other topics
    unread: Counter[str] = field(default_factory=Counter)  # messages of the other topics that cannot be read
    dead_exposures: int = 0  # as the stream counted them
    repeated_dead: int = 0
    repeated_samples: int = 0
    outcomes: int = 0  # samples that tell some
    undecided: list[str] = field(default_factory=list)  # ids that got both labels
    orphans: list[str] = field(default_factory=list)  # corrections of what was no negative
    truth: dict[str, dict[int, float]] = field(default_factory=dict)
    _dead_at: dict[tuple[str, int, int], str] = field(default_factory=dict)
    _time: EventTime = field(init=False)
    _event_ids: set[str] = field(default_factory=set)
    _told: dict[tuple[str, int, int], int] = field(default_factory=lambda: defaultdict(int))  # outcomes, as bits
    _follow_ups: set[tuple[str, int, int]] = field(default_factory=set)
    _rows: dict[tuple[str, int], tuple[float, int, int]] = field(default_factory=dict)  # score, arm, ts of a label

    def __post_init__(self) -> None:
        self._time = EventTime(self.waits)

    def dead_letter_message(self, record: Any) -> None:
        try:
            dead_letter = decode_dead_letter(record.value)
        except BadEventError:  # not of ours: whoever wrote it, it stands for no event
            self.unread[DEAD_LETTERS] += 1
            return
        at = (dead_letter.topic, dead_letter.partition, dead_letter.offset)
        if at in self._dead_at:
            self.repeated_dead += 1
            return
        self._dead_at[at] = dead_letter.reason
        if dead_letter.topic != EVENTS:
            self.dead_elsewhere[f"{dead_letter.topic}: {dead_letter.reason}"] += 1
            return
        if dead_letter.offset >= self.since.get(dead_letter.partition, 0):
            self.dead[dead_letter.reason] += 1
            self.dead_exposures += dead_letter.exposures
        else:
            self.dead_of_earlier[dead_letter.reason] += 1

    def event_message(self, record: Any) -> None:
        """Takes a record of ``events``, after all of ``dead-letters``."""
        own = record.offset >= self.since.get(record.partition, 0)
        try:
            event = decode_event(record.value)
        except BadEventError as bad:
            self.unreadable[bad.reason] += own
            return
        why = self._dead_at.get((EVENTS, record.partition, record.offset))
        dead = why is not None
        future = dead and event.ts_ms > self.clock.at(record.timestamp) + self.ahead_ms
        if future:
            self.future += own
        again = event.event_id in self._event_ids
        self.duplicates += again and own  # whatever became of either
        self._event_ids.add(event.event_id)
        if isinstance(event, Exposure):
            bits = event.mask
            page = self.pages.setdefault(event.request_id, PageAccount())
            page.own = page.own or own
            page.at = record.partition, record.offset, event.ts_ms
            if why in REFUSED:
                page.refused |= bits
            elif dead:
                page.dead |= bits
            else:
                page.sent |= bits
        elif own and not again:
            self.actions[type(event).__name__.lower()] += not dead
            self.clicks += event.kind == 1 and not future  # sent, whatever became of its page

    def sample_message(self, record: Any) -> None:
        try:
            batch = SampleBatch.from_bytes(record.value)
        except SchemaError:  # the learner passes it over as well
            self.unread[SAMPLES] += 1
            return
        self._time.hear(batch)
        self._time.silent(batch.partition.tolist())  # nothing more will come: the newest partition tells the time
        arms = np.where(batch.version < 0, ARMS.index(LOGGED), batch.arm)  # (B,)
        columns = zip(
            batch.ids(), batch.kind.tolist(), batch.score.tolist(), arms.tolist(), batch.ts_ms.tolist(),
            batch.actions.tolist(), batch.told.tolist(), batch.telling.tolist(), strict=True,
        )  # fmt: skip
        for (request, position), kind, score, arm, ts_ms, actions, tells, telling in columns:
            page = self.pages.setdefault(request, PageAccount())
            bit = 1 << position
            if kind == FOLLOW_UP:
                if (request, position, actions) in self._follow_ups:
                    self.repeated_samples += 1
                self._follow_ups.add((request, position, actions))
            elif kind == OUTCOME:
                again = bool(tells & self._told[request, position, telling])
                self.repeated_samples += again
                self.outcomes += not again
                self._told[request, position, telling] |= tells
            elif kind == PAGE:
                self.repeated_samples += bool(page.again & bit)
                page.again |= bit
            elif kind == CORRECTION:
                self.repeated_samples += bool(page.corrected & bit)
                if not page.negative & bit:
                    self.orphans.append(f"{request}/{position}")
                page.corrected |= bit
            else:
                self.repeated_samples += bool((page.positive if kind == POSITIVE else page.negative) & bit)
                if (page.negative if kind == POSITIVE else page.positive) & bit:
                    self.undecided.append(f"{request}/{position}")
                assert kind in (NEGATIVE, POSITIVE)
                if kind == POSITIVE:
                    page.positive |= bit
                else:
                    page.negative |= bit
                self._rows[request, position] = (score, arm, ts_ms)

    def truth_message(self, record: Any) -> None:
        try:
            truth = decode_truth(record.value)
            chances = np.frombuffer(truth.p, "<f4").tolist()
        except ValueError:  # a BadEventError is one too
            self.unread[TRUTH] += 1
            return
        known = self.truth.setdefault(truth.request_id, {})
        for position, p in enumerate(chances, truth.offset):
            known[position] = p

    # -- sums ------------------------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        """Positions of this run in one of the sets of :class:`PageAccount`."""
        return sum(getattr(page, name).bit_count() for page in self.pages.values() if page.own)

    def count_all(self, name: str) -> int:
        """The same with earlier runs, since the roles do not distinguish runs."""
        return sum(getattr(page, name).bit_count() for page in self.pages.values())

    @property
    def exposures(self) -> int:
        """Exposures sent in this run, those of dead pages included."""
        return self.count("known")

    @property
    def dead_only(self) -> int:
        return self.count("lost")

    @property
    def foreign(self) -> list[str]:
        """A few pages with labels that were never sent."""
        lost = [r for r, page in self.pages.items() if page.labelled & ~page.known]
        return lost[:5]

    @property
    def both(self) -> list[str]:
        """A few pages with exposures that have both a label and a dead letter (the stream read its input again)."""
        lost = [r for r, page in self.pages.items() if page.labelled & page.dead & ~page.sent]
        return lost[:5]

    @property
    def missing(self) -> list[dict[str, int | str]]:
        """Pages with exposures whose label is due and missing: how many of each, where and when they were sent, and
        how long ago that was when the newest label was given."""
        now = self._time.advance()
        due = now - self.waits.settled_ms
        return [
            {
                "page": request,
                "exposures": page.pending.bit_count(),
                "partition": page.at[0],
                "offset": page.at[1],
                "ts_ms": page.at[2],
                "ago_ms": now - page.at[2],
            }
            for request, page in self.pages.items()
            if page.pending and page.at[2] < due
        ]

    @property
    def follow_ups(self) -> int:
        """Distinct follow-ups: a collect, cart or purchase after the label."""
        return len(self._follow_ups)

    @property
    def malformed(self) -> int:
        """Events that cannot be used in any case: unreadable, or dated in the future."""
        return sum(self.unreadable.values()) + self.future

    def rows(self) -> LabelledExposures:
        """Labelled exposures in the order of exposure, earlier runs' included."""
        ordered = sorted(self._rows.items(), key=lambda entry: (entry[1][2], entry[0]))
        label = [self._clicked(request, position) for (request, position), _ in ordered]
        true = [self.truth.get(request, {}).get(position, math.nan) for (request, position), _ in ordered]
        ts_ms = np.array([ts for _, (_, _, ts) in ordered], np.int64)
        return LabelledExposures(
            ts_ms=ts_ms,
            page=np.array([request for (request, _), _ in ordered], np.object_),
            position=np.array([position for (_, position), _ in ordered], np.int64),
            label=np.array(label, np.int8),
            score=np.array([score for _, (score, _, _) in ordered], np.float32),
            true=np.array(true, np.float32),
            arm=np.array([arm for _, (_, arm, _) in ordered], np.int8),
            own=np.array([self.pages[request].own for (request, _), _ in ordered], np.bool_),
            settled=ts_ms <= self._time.advance() - self.waits.settled_ms,
        )

    def _clicked(self, request: str, position: int) -> bool:
        page = self.pages[request]
        return bool((page.positive | page.corrected) >> position & 1)


@dataclass(frozen=True, slots=True)
class Apart:
    """Samples that the gate keeps out of the model; see docs/concepts/trust.md."""

    held_out: int = 0  # of pages to judge models by
    over_limit: int = 0  # beyond what one id may teach
    quarantined: int = 0  # ever put into quarantine, with those that a rollback put there
    released: int = 0  # of these learnt later
    rolled_back: int = 0  # taken out of the model by a rollback of a person
    others: int = 0  # of pages that other learners' models made, where learns_from is "own"
    unread: int = 0  # of pages whose user was not read

    @property
    def total(self) -> int:
        taken = self.quarantined - self.released + self.rolled_back
        return self.held_out + self.over_limit + taken + self.others + self.unread

    def __str__(self) -> str:
        return (
            f"{self.held_out} held out, {self.over_limit} over a limit, {self.quarantined} quarantined less "
            f"{self.released} released, {self.rolled_back} rolled back, {self.others} of other models' pages, "
            f"{self.unread} of pages without their user"
        )


@dataclass(frozen=True, slots=True)
class Reported:
    """What the roles report, to compare with the ledger. None: unknown (a restart, no answer)."""

    pending: int | None
    trained: int | None
    refused: int  # samples that the learner found unusable
    skipped: int  # batches that it did not learn from
    exposures: int | None
    clicks: int | None
    malformed: int | None
    duplicates: int | None
    apart: Apart = field(default_factory=Apart)
    one_life: bool = True  # one life of the learner; of several, what is ``apart`` may be counted again in each


def check(ledger: Ledger, reported: Reported) -> None:
    """Checks that every exposure is accounted for and that the roles report the same. The one line of
    ConservationError names every figure that does not fit."""
    sent, positives, negatives = ledger.exposures, ledger.count("positive"), ledger.count("negative")
    pending, dead = ledger.count("pending"), ledger.dead_only
    wrong = []
    if ledger.undecided:
        wrong.append(f"{len(ledger.undecided)} exposures have two labels (first: {ledger.undecided[0]})")
    if ledger.foreign:
        wrong.append(f"labels for exposures that nobody sent (pages {', '.join(ledger.foreign)})")
    if ledger.both:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted((ledger.dead + ledger.dead_of_earlier).items()))
        wrong.append(f"pages with labels are dead letters too ({', '.join(ledger.both)}; dead letters: {reasons})")
    if ledger.orphans:
        wrong.append(f"{len(ledger.orphans)} corrections of what was no negative (first: {ledger.orphans[0]})")
    if sent != positives + negatives + pending + dead:
        wrong.append(
            f"{sent} sent is not {positives} positive + {negatives} negative + {pending} pending + {dead} dead"
        )
    if reported.pending is None:
        wrong.append("the stream does not say how many exposures are pending")
    elif reported.pending != (held := ledger.count_all("pending")):
        wrong.append(f"{held} exposures have no label, but the stream holds {reported.pending} pending")
    if ledger.dead_exposures < dead:
        wrong.append(f"{dead} exposures went with dead pages, but dead letters own up to {ledger.dead_exposures}")
    unread = sum(ledger.dead[reason] for reason in UNREADABLE)
    if unread != sum(ledger.unreadable.values()):
        wrong.append(f"{sum(ledger.unreadable.values())} events are unreadable, but {unread} dead letters say so")
    samples = sum(ledger.count_all(name) for name in ("positive", "negative", "corrected"))
    samples += ledger.count_all("again") * ledger.by_page + ledger.outcomes
    if reported.trained is not None:
        learnt, apart = reported.trained + reported.refused, reported.apart
        known = learnt + apart.total
        # Rows of refused batches look like rows never read, so after a refusal only "not more" can be checked. Of
        # several lives of a learner the newest version says what was learnt, and the lives together what was apart at
        # most.
        if (known if reported.one_life else learnt) > samples or (known < samples and not reported.skipped):
            wrong.append(
                f"the learner learnt from {reported.trained} samples and refused {reported.refused}"
                f"{f' ({apart})' if apart.total else ''} where there are {samples} (corrections and outcomes with them)"
            )
    for name, said, counted in (
        ("exposures", reported.exposures, sent),
        ("clicks", reported.clicks, ledger.clicks),
        ("malformed events", reported.malformed, ledger.malformed),
        ("duplicates", reported.duplicates, ledger.duplicates),
    ):
        if said is not None and said != counted:
            wrong.append(f"the simulator sent {said} {name}, but {counted} are in the topic")
    if wrong:
        raise ConservationError("; ".join(wrong), "the topics and logs of this run show where; keep them with --data")
