# core
"""A learner as a fold of its decisions: what each of them does to model, gate and quarantine.

::

    Promotion (judges) ──► a decision ──┐
    Commands (a person) ─► a decision ──┼──► LearnerState: writes it down, and does it ──► trainer, checks, quarantine
    replay (the log) ────► a decision ──┘

A method here is one decision. It judges nothing, and it looks at no clock: so a process that does the same decisions
with the same rows has the same state, to the bit. What may fail, as reading rows, comes before the decision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import structlog
from msgspec import Struct
from numpy.typing import NDArray

from learner.gate.checks import ASIDE, OF_ROWS, QUARANTINED, Checks
from learner.gate.checks import GATE as ARRAYS
from learner.gate.quarantine import Quarantine
from learner.gate.verdicts import OF_MODEL, OF_PAGES, GateRefusal, kind_of
from learner.promotion.restorer import Base, Restored, Restorer
from learner.promotion.rowadmission import admit, beyond
from learner.ranker.interfaces import Learning
from learner.ranker.model import LearnReport
from learner.training.decisionlog import Places, rows_in, spans_of
from learner.training.learner_versions import FoundSnapshot, Versions
from learner.training.trainer import ClickCounts, MicroBatch, Trainer
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import (
    Adopted,
    Decided,
    Decision,
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
)
from millrace.versions.image import below
from millrace.versions.modelstore import Announcement

log = structlog.get_logger("learner")

GATE = "gate"
"""Who decides where no person does."""

_NAMES = 1000
"""Entries in a decision: a message has a bound."""
_STEP_MS, _BACK_MS = 1_200_000, 3_600_000
"""A longer pause of the stream, as at night, counts as so much; and a clock that stays back for longer is right."""


class GateState(Struct):
    """The small part of the state. Times are event time in Unix ms."""

    held: bool = False  # a person holds back what is newer
    probation: bool = False  # nothing is published until a whole stretch has passed
    suspected: bool = False  # samples, not the model alone, are under suspicion
    since: dict[str, tuple[int, int]] = {}  # first refusal by a kind of checks since one passed: when, `busy_ms`
    refusal: GateRefusal | None = None  # the newest
    refused_ms: int = 0
    refused_busy_ms: int = 0
    back: int = -1  # decision that the model has to go back to, and has not yet
    mark: int = 0  # decision behind which the newest stretch that passed ended
    releasing: list[str] = []  # entries of quarantine that are to be learnt
    released: int = 0  # rows of the first of them that were, or could not be
    skipped: list[Span] = []  # those among them that could not be
    clock_ms: int = 0  # highest that was met
    busy_ms: int = 0  # event time in which samples came, in all, beyond the highest that was met before
    behind: tuple[int, int] = (0, 0)  # where the clock is an hour back: the highest since then, and `busy_ms` of it

    def met(self, now_ms: int) -> None:
        """Samples came. Late pages count for nothing: a burst of them each minute would make an hour of three."""
        if now_ms > self.clock_ms - _BACK_MS:
            if now_ms > self.clock_ms:
                self.busy_ms += min(now_ms - self.clock_ms, _STEP_MS) if self.clock_ms else 0
                self.clock_ms = now_ms
            self.behind = (0, 0)
            return
        newest_ms, busy_ms = self.behind
        if now_ms <= newest_ms - _BACK_MS or not newest_ms:
            newest_ms, busy_ms = now_ms, 0
        busy_ms += min(max(0, now_ms - newest_ms), _STEP_MS)
        self.behind = max(newest_ms, now_ms), busy_ms
        if busy_ms > _BACK_MS:  # it was ahead, and is right now
            self.clock_ms, self.behind = self.behind[0], (0, 0)

    def refused(self, refusal: GateRefusal, back: int, now_ms: int) -> None:
        """A check of more than single rows refused; nothing is published until a whole stretch has passed."""
        kind = kind_of(refusal.check)
        self.suspected = self.probation or kind != OF_MODEL
        self.refusal, self.back, self.probation = refusal, back, True
        self.refused_ms, self.refused_busy_ms = now_ms, self.busy_ms
        self.since.setdefault(kind, (now_ms, self.busy_ms))

    @property
    def half(self) -> int:
        """Rows that were learnt of an entry that is there yet."""
        return self.released - rows_in(self.skipped)

    @property
    def refusing_ms(self) -> int:
        """How long the kind of checks that refused last had refused by then, without nights."""
        since = self.since.get(kind_of(self.refusal.check)) if self.refusal else None
        return self.refused_busy_ms - since[1] if since else 0


class LearnerState:
    """See the module's text. One thread.

    Attributes:
        settle: called before the model is replaced: a snapshot in the making is given up, one that has its end is
            awaited.
        published: the newest decision that what is served may have.
        root_due: whether what is served is not what was promoted: a root has to say so.
        root_why: the refusal that it comes of; None: a person wants it.
        clicks: those learnt from, a part for each micro-batch, until the owner takes them.
        verdicts: how often each check passed, refused, would have refused ("observed") or could not judge.
    """

    def __init__(
        self, trainer: Trainer, versions: Versions, checks: Checks | None, quarantine: Quarantine, restorer: Restorer
    ) -> None:
        self.trainer, self.versions, self.checks, self.quarantine = trainer, versions, checks, quarantine
        self.restorer, self.log, self.standing = restorer, restorer.log, GateState()
        self.settle: Callable[[], None] = lambda: None
        self.published, self.root_due = 0, False
        self.root_why: GateRefusal | None = None
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.clicks: list[ClickCounts] = []
        if checks is not None:
            trainer.beyond = lambda batch: beyond(checks, batch)
            trainer.admit = lambda batch, places: admit(checks, trainer.counts, self.refused, batch, places)

    def _decided(self, what: Decision) -> int:
        """Writes a decision down: its number."""
        return self.log.append(what, self.checks.clock.now_ms if self.checks else self.trainer.model.newest_ms)

    # -- samples ---------------------------------------------------------------------------------------------

    def take(self, batch: SampleBatch, joined_ms: int = 0, offset: int = 0) -> None:
        """Queues what is new in a message of ``samples``: see :meth:`Trainer.take`."""
        self.log.read = offset + 1
        self.trainer.take(batch, joined_ms, offset)
        if self.checks is not None:
            self.standing.met(self.checks.clock.now_ms)

    def learnt(
        self, cut: MicroBatch, p: Any = None, rows: int = -1, aside: NDArray[np.bool_] | None = None
    ) -> LearnReport:
        """The model was given a micro-batch.

        Args:
            p: what it predicted before, (B,); None: nobody judged.
            rows: how many it learnt then, where this is done again.
            aside: rows that it was not given, since it never learnt their exposures, (B,). They go to quarantine.
        """
        given, out = cut, None
        if aside is not None and aside.any():
            given, out = cut.take(~aside), cut.take(aside)
        spans = () if out is None else spans_of(out.places)
        report = self._learn(given, rows=rows, aside=spans)
        if report.skipped is not None or p is None or self.checks is None:
            return report
        if out is not None:
            self.verdicts["page", "refused"] += 1
            self._keep(self.log.newest, GateRefusal("page", float(len(out.batch)), 0.0), spans, _times(out.batch))
        self.checks.screen.learnt(cut.batch, p)
        if report.rows:
            self.checks.shift.meet(given.batch.labelled)
            self.checks.shift.learnt(report.rows)
        return report

    def learnt_released(self, cut: MicroBatch, name: str, size: int, ends: bool, unfit: Places) -> None:
        """The model was given rows of the first entry that is released. Who released it vouches for them: nothing goes
        back behind an entry. What the model cannot learn stays in the entry, until it is released once more.

        Args:
            size: rows of the entry that these stand for; others of them are gone from its copy.
            ends: they are its last ones.
            unfit: places of rows that it was not given, since no model can learn them, (n, 2).
        """
        standing, counts = self.standing, self.trainer.counts
        skipped = self._learn(cut, name, ends).skipped is not None
        standing.skipped += spans_of(np.concatenate([unfit, cut.places]) if skipped else unfit)
        counts["released"] += 0 if skipped else len(cut.batch)
        counts["discarded"] += size - len(cut.batch) - len(unfit)
        standing.released += size
        if ends:
            standing.releasing.remove(name)
            if standing.skipped:
                log.warning("rows were refused again: they stay", name=name, rows=rows_in(standing.skipped))
            self.quarantine.only(name, standing.skipped)
            standing.released, standing.skipped = 0, []
            standing.mark = self.log.newest

    def _learn(
        self, cut: MicroBatch, of: str = "", ends: bool = False, rows: int = -1, aside: Sequence[Span] = ()
    ) -> LearnReport:
        report = self.trainer.learn(cut, bool(of)) if len(cut.batch) else LearnReport(0.0, 0)
        if rows >= 0:
            self.trainer.counts["trained"] += rows - report.rows
        learnt = Learnt(spans_of(cut.places), report.rows if rows < 0 else rows, of, ends, tuple(aside))
        n = self._decided(learnt)  # of a batch that the model refuses, too: it moves what bounds the next one
        clicks = self.trainer.take_clicks()
        if report.skipped is None and report.rows:
            self.versions.learnt(clicks.sent_ms)
            self.clicks.append(clicks)
            if self.checks is not None and not (of and self.quarantine.entry(of).check in OF_ROWS):
                self.checks.minutes.learnt(n, cut.batch, released=bool(of))
        return report

    @property
    def unjudged(self) -> list[Decided]:
        """What was learnt since the mark, but for what somebody vouched for."""
        line = self.log.line(self.standing.mark)
        return [d for d in line if isinstance(d.what, Learnt) and d.what.rows and not d.what.of]

    # -- refusals --------------------------------------------------------------------------------------------

    def refused(
        self, refusal: GateRefusal, batch: SampleBatch | None = None, places: Places | None = None, back: int = -1
    ) -> None:
        """Rows were refused, or, without any, the model as it was.

        Args:
            places: where the rows lie, (n, 2).
            back: the decision that the model has to go back to; -1: it stays. :meth:`went_back` is next then.
        """
        self.verdicts[refusal.check, "refused"] += 1
        spans = () if places is None else spans_of(places)
        n = self._decided(Refused(spans, *refusal, back))
        if refusal.check not in ASIDE and kind_of(refusal.check) not in self.standing.since:
            self.quarantine.close()  # no entry is older than the refusal that began it
        if batch is not None:
            self._keep(n, refusal, spans, _times(batch))
        if batch is not None and self.checks is not None and refusal.check not in OF_ROWS:
            self.checks.minutes.refused(batch)
        if refusal.check in ASIDE:
            return
        assert self.checks is not None
        self.standing.refused(refusal, back, self.checks.clock.now_ms)
        if kind_of(refusal.check) == OF_PAGES:
            self.checks.heldout.looked()
        if batch is not None:
            self.checks.heldout.spoilt(int(np.median(batch.ts_ms)))

    def _keep(self, n: int, refusal: GateRefusal, spans: Sequence[Any], event_ms: tuple[int, int]) -> None:
        counts, rows = self.trainer.counts, rows_in(spans)
        counts[QUARANTINED] += rows
        counts[f"{QUARANTINED}:{refusal.check}"] += rows
        # The clock may go back. What is refused is never older than the refusal that began it.
        now_ms = self.checks.clock.now_ms if self.checks else event_ms[1]
        made_ms = max(now_ms, *(ms for ms, _ in self.standing.since.values()), 0)
        self.quarantine.keep(n, refusal, spans, event_ms, made_ms)
        standing = self.standing
        there = {entry.name for entry in self.quarantine.entries()} if standing.releasing else ()
        if standing.releasing and standing.releasing[0] not in there:
            standing.released, standing.skipped = 0, []
        standing.releasing = [name for name in standing.releasing if name in there]

    def went_back(self, restored: Restored) -> None:
        """The model is an earlier one. What was learnt since goes to quarantine."""
        standing, counts, refusal, to = self.standing, self.trainer.counts, self.standing.refusal, restored.to
        assert refusal is not None
        n = self._decided(WentBack(to))
        gone = [d for d in self.log.cut(to) if isinstance(d.what, Learnt) and d.what.rows]
        if gone:
            _keep_gone(self, n, refusal, gone)
        at_mark = to >= standing.mark
        standing.mark, standing.back = min(standing.mark, to), -1
        self._become(restored.model)
        if not at_mark and self.checks is not None:  # the mark is another state now
            self.checks.shift.rebase(restored.model)
        if not gone and not standing.suspected:  # a slot was damaged, no sample was at fault: nothing is open
            standing.probation = False
            standing.since.pop(OF_MODEL, None)
        counts["way_back:gate"] += 1
        of_model = kind_of(refusal.check) == OF_MODEL and not standing.held
        self.root_due |= of_model or any(d.n <= self.published for d in gone)
        self.root_why = refusal
        log.warning("went back to an earlier model", decision=to, batches=len(gone), root=self.root_due)

    def _become(self, model: Learning) -> None:
        self.trainer.model = model
        self.versions.replace(model)
        if self.checks is not None:
            self.checks.screen.went_back()
            self.checks.shift.went_back()

    # -- promotion -------------------------------------------------------------------------------------------

    def passed(self) -> None:
        """A whole stretch has passed: the mark moves, and what was blocked is open."""
        assert self.checks is not None
        standing = self.standing
        standing.mark = self._decided(Passed())
        self.checks.screen.promoted()
        self.checks.shift.promoted(self.trainer.model)
        self.quarantine.close(but=OF_ROWS)  # what is refused later has a cause of its own
        standing.probation = False
        standing.since = {kind: since for kind, since in standing.since.items() if kind == OF_PAGES}

    def saved(self, judged: bool = False) -> None:
        """A snapshot is made of all up to here, which was judged."""
        self.standing.mark = self._decided(Saved(judged))
        self.quarantine.close(but=OF_ROWS)
        if judged and self.checks is not None:
            heldout = self.checks.heldout
            heldout.looked()
            if self.checks.shift.goods_gone:
                heldout.spoilt(0)
            elif not self.checks.shift.of_new_items:
                heldout.promoted(self.trainer.model)
            self.standing.since.pop(OF_PAGES, None)

    def rebased(self, by: str) -> None:
        """The model as it is is what later ones are compared with."""
        self.standing.mark = self._decided(Rebased(by))
        self._rebase()

    def _rebase(self) -> None:
        self.standing.probation, self.standing.since = False, {}
        if self.checks is not None:
            self.checks.screen.rebase()
            self.checks.shift.rebase(self.trainer.model)
            self.checks.heldout.rebase(self.trainer.model)

    def hold(self, holds: bool, by: str) -> None:
        """Nothing newer is published while it ``holds``. The learner learns on."""
        self._decided(HeldBack(by) if holds else Promoted(by))
        self.standing.held = holds

    # -- quarantine ------------------------------------------------------------------------------------------

    def released(self, names: Sequence[str], by: str) -> int:
        """Entries of quarantine are to be learnt. How many were not to be before."""
        known = set(self.standing.releasing)
        new = [name for name in names if name not in known]
        self._decided_of(Released, new, by)
        self.standing.releasing += new
        return len(new)

    def discarded(self, names: Sequence[str], by: str) -> int:
        """Entries of quarantine go for good: how many rows."""
        self._decided_of(Discarded, names, by)
        standing, learnt = self.standing, 0
        if standing.releasing and standing.releasing[0] in names:
            learnt = standing.half
            standing.released, standing.skipped = 0, []
        standing.releasing = [name for name in standing.releasing if name not in names]
        rows = self.quarantine.remove(names) - learnt
        self.trainer.counts["discarded"] += rows
        return rows

    def _decided_of(self, what: type[Released | Discarded], names: Sequence[str], by: str) -> None:
        for start in range(0, len(names), _NAMES):
            self._decided(what(tuple(names[start : start + _NAMES]), by))
        if names:
            self.quarantine.close()

    # -- other models ----------------------------------------------------------------------------------------

    def rolled_back(self, note: Announcement, model: Learning, by: str) -> int:
        """The model is a snapshot's of this store. What was learnt since, from quarantine too, is set aside, uncounted
        in ``trained``: rows. What is to be released stays in quarantine."""
        minutes = self.restorer.minutes(note) if self.checks is not None else {}
        n = self._decided(RolledBack(*note.place, by))
        counts = self.trainer.counts
        gone, half = max(0, counts["trained"] - note.trained), self.standing.half
        counts["set_aside"] += gone - half  # what was learnt of an entry that stays is in it
        counts["released"] -= half
        counts["trained"] -= gone
        counts["way_back:gate" if by == GATE else "way_back:person"] += 1
        self._begin_from(Base(note, n), model)
        if self.checks is not None:
            self.checks.minutes.rolled_back(minutes)
        self.root_why = self.standing.refusal if by == GATE else None
        log.warning("rolled back", version=note.version, set_aside=gone, by=by)
        return gone

    def adopted(self, found: FoundSnapshot, source: str, by: str, quarantine: bytes | None, own: bool) -> None:
        """The model is one that was learnt elsewhere; samples are read on from its offsets.

        Args:
            quarantine: as it was then; None: it does not say.
            own: the model was learnt of what this learner had decided, so quarantine and counts are this learner's
                of then. Of another learner's, entries here stay of samples from before it began; its own are added.
        """
        self._decided(Adopted(*found.note.place, source, by))
        self.log.read = found.note.offset or 0
        self._begin_from(None, found.model)
        self.root_why = None
        _take_over(self, found, source, quarantine, own)
        log.warning("another model was adopted", version=found.note.version, model=found.model.spec.get("model"))

    def _begin_from(self, base: Base | None, model: Learning) -> None:
        self.log.cut(-1)
        self.restorer.base = base
        if base is not None:
            self.restorer.origin = base.note.place
        standing = self.standing
        standing.mark, standing.back = self.log.newest, -1
        standing.releasing, standing.released, standing.skipped = [], 0, []
        self.root_due = True
        self.quarantine.close()
        self._become(model)
        self._rebase()


def _keep_gone(state: LearnerState, n: int, refusal: GateRefusal, gone: Sequence[Decided]) -> None:
    """What was learnt, and is not any more, goes to quarantine by decision ``n``."""
    standing, counts = state.standing, state.trainer.counts
    acts = [d.what for d in gone if isinstance(d.what, Learnt)]
    again = [state.quarantine.has(act.of, act.spans[0]) for act in acts]  # what was learnt of one goes back to it
    counts["released"] -= sum(rows_in(act.spans) for act, own in zip(acts, again, strict=True) if own)
    if any(act.of for act in acts):
        standing.released, standing.skipped = 0, []
    spans = [span for act, own in zip(acts, again, strict=True) if not own for span in act.spans]
    times = [d.ms for d in gone]
    state._keep(n, refusal, spans, (min(times), max(times)))
    counts["trained"] -= sum(d.what.rows for d in gone if isinstance(d.what, Learnt))
    if state.checks is not None:
        state.checks.minutes.went_back([d.n for d in gone])
        state.checks.heldout.spoilt(int(np.median(times)))


def _take_over(state: LearnerState, found: FoundSnapshot, source: str, quarantine: bytes | None, own: bool) -> None:
    """What an adopted model says of its own samples, as far as it does, is so here."""
    counts, note = state.trainer.counts, found.note
    if own and quarantine is not None and "counts" in note.extra:
        state.quarantine.resume(quarantine)
        counts.clear()
        counts.update({name: int(value) for name, value in note.extra["counts"].items()})
    else:
        # What a learner has read is in its model, or in its quarantine. Of two that learn from their own pages alone,
        # neither has the other's.
        read_from = note.offset if state.trainer.diverted else note.extra.get("began")
        counts[QUARANTINED] -= state.quarantine.forget_behind(read_from or 0)
        counts[QUARANTINED] += 0 if quarantine is None else state.quarantine.take_over(quarantine, source)
        counts["set_aside"] += max(0, counts["trained"] - note.trained)
        counts["trained"] = note.trained
    if state.checks is not None:  # what was learnt and refused of all before its offsets
        state.checks.minutes.resume(below(f"{ARRAYS}minutes/", found.training))


def _times(batch: SampleBatch) -> tuple[int, int]:
    """Of the oldest and of the newest row."""
    return int(batch.ts_ms.min()), int(batch.ts_ms.max())
