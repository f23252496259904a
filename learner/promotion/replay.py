# core
"""The fold of a log: what was decided behind a snapshot is done once more, with the rows that it names.

Nothing is judged again. The checks are asked where they were asked then, since that moves their windows, but what they
say is passed over. A model that comes of it is the one before, to the bit, on the same processor with the same
libraries; where a micro-batch learns another number of rows than then, that is said.

Where it cannot go on, since the topic has lost samples or a message was lost, what follows is void: samples are judged
anew from there. But what persons decided holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import structlog

from learner.gate.checks import OF_ROWS
from learner.gate.verdicts import GateRefusal
from learner.promotion.learnerstate import LearnerState
from learner.promotion.releasedrows import ReleasedRows
from learner.promotion.restorer import Restored
from learner.samples.batch_reader import SampleMessage
from learner.training.decisionlog import among, places_of, same_rows
from learner.training.trainer import MicroBatch
from millrace.basics.errors import SchemaError, SnapshotError, one_line
from millrace.basics.store import AbsentError, DamagedError
from millrace.versions.decisions import (
    Adopted,
    Began,
    Decided,
    Discarded,
    HeldBack,
    Learnt,
    Passed,
    Promoted,
    Rebased,
    Refused,
    Released,
    RolledBack,
    Saved,
    Span,
    WentBack,
    in_force,
)
from millrace.versions.modelstore import ModelStore, Place

log = structlog.get_logger("learner")


class SamplesAgain(Protocol):
    """The messages behind a snapshot, read again."""

    def upto(self, stop: int) -> Iterator[SampleMessage]:
        """The next ones that can be used, before offset ``stop``. Raises SnapshotError where some are gone."""


class Replay:
    """Does decisions on a state, in order. One thread.

    Args:
        tick: called before each decision; what it raises ends the replay.

    Attributes:
        done: how many were done.
        void: how many could not be.
        differ: micro-batches of which another number of rows was learnt than then.
    """

    def __init__(
        self, state: LearnerState, store: ModelStore, samples: SamplesAgain, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._state, self._store, self._samples, self._tick = state, store, samples, tick
        self._cut: MicroBatch | None = None  # the newest micro-batch, and what was predicted of it
        self._p: Any = None
        self._released = ReleasedRows(state)
        self.done = self.differ = self.void = 0

    def run(self, decided: Sequence[Decided], possible: bool = True) -> None:
        """Does once more what led on from the state's newest decision; says where that ends. Then this life begins.

        Args:
            decided: all that is known of this log, in any order; some may come twice.
            possible: whether it can be done again at all.
        """
        state = self._state
        found, behind_gap = in_force(decided, state.log.newest)
        state.log.again = True
        try:
            rest = [*(self._again(found) if possible else found), *behind_gap]
        finally:
            state.log.again = False
        after, ms = state.log.newest, max((each.ms for each in found), default=0)
        state.log.at(max([after, *(each.n for each in decided)]) + 1)
        state.log.append(Began(after), ms)
        self.void = len(rest)
        if rest:
            log.error("decisions are void: samples behind them are judged anew", decisions=len(rest), after=after)
            self._persons(rest)
        if self.differ:
            log.error("what was learnt again is not what was learnt before: another processor?", batches=self.differ)

    def _again(self, decided: Sequence[Decided]) -> Sequence[Decided]:
        """Does decisions; returns those that could not be done."""
        state = self._state
        for i, each in enumerate(decided):
            self._tick()
            of_rows = isinstance(each.what, Refused) and each.what.check in OF_ROWS  # comes of the samples by itself
            came = of_rows and state.log.newest >= each.n
            try:
                if not came:
                    state.log.at(each.n)
                    for message in self._samples.upto(each.read):
                        state.take(message.batch, message.joined_ms, message.offset)
                if not of_rows:
                    state.log.at(each.n)
                self._do(each)
            except (SnapshotError, SchemaError, AbsentError, DamagedError) as error:
                state.log.at(each.n)
                log.error("what was decided cannot be done again", decision=each.n, why=one_line(error))
                return decided[i:]
            if state.log.newest < each.n:  # it came of the samples, and does not come now
                state.log.append(each.what, each.ms)
            self.done += 1
            standing = state.standing
            if not (standing.held or standing.probation or standing.releasing):
                state.published = each.n
        return ()

    def _do(self, each: Decided) -> None:
        state, checks, what = self._state, self._state.checks, each.what
        match what:
            case Learnt() if what.of:
                self._learn_released(what)
            case Learnt():
                self._take((*what.spans, *what.aside))
                assert self._cut is not None
                aside = among(self._cut.places, what.aside) if what.aside else None
                report = state.learnt(self._cut, self._p if checks is not None else None, what.rows, aside)
                self.differ += what.rows > 0 and report.rows != what.rows
            case Passed():
                assert checks is not None
                checks.shift.look(state.trainer.model)
                state.passed()
            case Saved():
                state.saved(what.judged)
            case Refused():
                self._refuse(what)
            case WentBack():
                model = state.restorer.learnt_again(what.to)
                state.went_back(Restored(model, what.to))
            case RolledBack():
                note = next((n for n in self._store.snapshots() if n.place == Place(what.epoch, what.version)), None)
                if note is None:
                    raise AbsentError(f"version {what.version} is not in the store", "a newer one is gone on from")
                state.rolled_back(note, state.restorer.snapshot(note), what.by)
            case Adopted():
                raise SnapshotError(f"a model of '{what.source}' was adopted, and never published", "adopt it again")
            case Rebased():
                state.rebased(what.by)
            case Began():
                state.log.append(what, each.ms)
            case _:
                self._person(what)

    def _person(self, what: Any) -> None:
        """What needs no rows."""
        state = self._state
        match what:
            case HeldBack():
                state.hold(True, what.by)
            case Promoted():
                state.hold(False, what.by)
            case Released():
                state.released(what.names, what.by)
            case Discarded():
                state.discarded(what.names, what.by)

    def _persons(self, rest: Iterable[Decided]) -> None:
        """What was decided of hold and quarantine holds, as far as it is of what there is."""
        there = {entry.name for entry in self._state.quarantine.entries()}
        for what in (each.what for each in rest):
            if isinstance(what, Released | Discarded):
                names = tuple(name for name in what.names if name in there)
                if names:
                    self._person(type(what)(names, what.by))
            else:
                self._person(what)

    def _take(self, spans: Sequence[Span]) -> None:
        """The next micro-batch is cut, predicted, and seen by the checks; not so where it is the newest one again."""
        state, places = self._state, places_of(spans)
        if self._cut is not None and same_rows(self._cut.places, places):
            return
        self._cut = state.trainer.cut_at(places)
        self._p = state.trainer.judge(self._cut.batch)
        if state.checks is not None:
            state.checks.screen.look(self._cut.batch, self._p)

    def _learn_released(self, learnt: Learnt) -> None:
        piece = self._released.next()
        if not np.array_equal(piece.cut.places, places_of(learnt.spans)):
            raise SnapshotError(f"rows of '{learnt.of}' are gone since they were learnt", "they are judged anew")
        self._state.learnt_released(piece.cut, learnt.of, piece.size, learnt.ends, piece.unfit)

    def _refuse(self, what: Refused) -> None:
        state = self._state
        if what.check in OF_ROWS:
            return
        refusal = GateRefusal(what.check, what.value, what.bound, what.what)
        if not what.spans:
            state.refused(refusal, back=what.back)
            return
        self._take(what.spans)
        assert self._cut is not None
        state.refused(refusal, self._cut.batch, self._cut.places, what.back)
