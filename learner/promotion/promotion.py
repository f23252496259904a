# core
"""The gate between what comes and what is served: samples and models are judged, and what fails never happened.

::

    samples ─► Trainer ─► admit ─► cut ─► predict ─► Screen ─► learn            Quota, Heldout: as rows come
                            │                           │ refused
                            └ absurd rows ─► Quarantine ◄─┴──────────────┐
    delta    ─► unsound? ─► Shift, once a stretch ─► published           │
                   └────────────┴── refused ─► WAY BACK ─────────────────┤ rows since the mark
    snapshot ─► unsound parts? ─► Heldout ── refused ─► WAY BACK ────────┘ rows since the snapshot before

A *stretch* is what was learnt since the *mark*, the state at the last stretch that passed. Within a stretch deltas go
out at once: it passes or fails as a whole. A snapshot, and a root, is made at a mark: so what a restart goes on from
was judged. A way back rebuilds the model, bit for bit: the newest snapshot, and what was learnt since it, up to the
mark, once more. What was learnt behind the mark goes to quarantine. If any of it was published, the rebuilt model is
published as a root: a new version with old content.

::

    promoting ── refused ──► probation: nothing is published until a whole stretch has passed ── passed ──► promoting
                                 │ refused for ``quarantine_ms`` of event time by one kind of checks (samples, held-out
                                 │ pages, the model), which has passed nothing between
                                 └──► the world is different: bounds begin anew, what was kept since then is learnt

Where nothing may be published for long, as in a hold, snapshots are *held*: no scorer reads them. So memory has a
bound, and a restart is as quick as ever. No clock, no Kafka: event time is that of the samples
(:mod:`learner.gate.median_clock`). One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import structlog

from learner.gate.checks import QUARANTINED, Checks
from learner.gate.model_checks import unsound, unsound_part
from learner.gate.quarantine import Quarantine
from learner.gate.verdicts import GateRefusal
from learner.promotion.gatecommands import GateCommands
from learner.promotion.gatejudge import GateJudge
from learner.promotion.learnerstate import LearnerState
from learner.promotion.restorer import Base, Restorer
from learner.promotion.rowadmission import without_exposure
from learner.promotion.savedstate import go_on, saved_state
from learner.ranker.interfaces import Slicing
from learner.ranker.model import LearnReport
from learner.ranker.snapshot_slices import Part
from learner.training.learner_versions import Build, FoundSnapshot, Last, Progress, Versions, write_root
from learner.training.trainer import MicroBatch, Trainer
from millrace.basics.errors import BrokerError, StoreError, one_line
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import LogPart, encode_decisions
from millrace.versions.modelstore import Announcement, ModelStore

log = structlog.get_logger("learner")

MOST_DECISIONS = 20_000
"""Decisions since the newest snapshot: some 40 MB, and minutes of a restart."""
_MOST_WAITING = 20_000
"""Decisions that are not durable. With more no samples are taken."""
_MOST_BYTES = 100_000
"""Of decisions in the message of a delta. More, as after a long stop, go before it."""


class Published(NamedTuple):
    """A version that is to be sent. A snapshot among them is a root: it lies in the store already."""

    note: Announcement
    body: bytes | None = None


def _nobody(_: LogPart) -> None:
    """Where decisions go that nobody keeps."""


class Promotion:
    """A learner with a gate: trainer and versions together.

    Call :meth:`begin` and :meth:`start` first. Then :meth:`take` for each message and :meth:`step` until it gives None,
    :meth:`delta` to publish, and for a snapshot :meth:`passes` for each part, :meth:`finish` for the end, and then
    :meth:`written`.

    Args:
        checks: what judges samples and models; None: nothing is judged, and what was learnt is only written down.
        quarantine: where what they refused is.
        build: makes the model of a snapshot from its parts.
        progress: what the next version says of itself.

    Attributes:
        commands: what persons ask for.
        where: gives ``follows`` and ``log`` of a root.
        durable: makes decisions durable, at once; raises BrokerError where that cannot be.
    """

    def __init__(
        self,
        trainer: Trainer,
        versions: Versions,
        store: ModelStore,
        checks: Checks | None,
        quarantine: Quarantine,
        build: Build,
        progress: Callable[[], Progress],
    ) -> None:
        self.trainer, self.versions, self.store, self.checks = trainer, versions, store, checks
        self._own_progress = progress
        self.state = LearnerState(trainer, versions, checks, quarantine, Restorer(store, build))
        self.commands = GateCommands(self.state)
        self.judge = GateJudge(self.state, self.commands)
        self.where: Callable[[], Mapping[str, Any]] = dict
        self.durable: Callable[[LogPart], None] = _nobody
        self.promoted_version = self.promoted_ms = -1
        self._rooted = False  # whether deltas have a version to follow
        self._alone = False  # whether decisions were sent without a delta since the newest one
        self._ending: tuple[int, list[str]] | None = None  # newest decision and quarantine of what is being written
        self._base_held = False  # whether the newest snapshot has the hold

    # -- samples ---------------------------------------------------------------------------------------------

    def take(self, batch: SampleBatch, joined_ms: int = 0, offset: int = 0) -> None:
        """Queues what is new in a message of ``samples``: see :meth:`Trainer.take`."""
        self.state.take(batch, joined_ms, offset)

    @property
    def takes(self) -> bool:
        """Whether samples may be taken and learnt: not while the model has to go back, or a root, or decisions, cannot
        be written; nor while what was released is learnt."""
        state, standing = self.state, self.state.standing
        if state.root_due or standing.back >= 0 or state.log.waiting > _MOST_WAITING:
            return False
        return not standing.releasing or bool(state.unjudged)

    def step(self, drain: bool = False) -> LearnReport | None:
        """Predicts, judges and, if it passes, learns one micro-batch. See :meth:`Trainer.step`; ``skipped`` is
        "quarantined" where it was refused."""
        trainer, checks, state = self.trainer, self.checks, self.state
        cut = trainer.cut(drain) if self.takes else None
        if cut is None:
            return None
        if checks is None:
            trainer.judge(cut.batch)
            return state.learnt(cut)
        p = trainer.judge(cut.batch)
        if not np.isfinite(p).all() and self.judge.mend():  # no batch makes a sound model predict that
            p = trainer.model.score(cut.batch.cat, cut.batch.num)
        refusal = checks.screen.look(cut.batch, p)  # whatever becomes of it, as when it is done again
        if not np.isfinite(p).all():  # as of a class of one's own that raises
            return self._set_aside(LearnReport(float("nan"), 0, "prediction_not_finite"), cut)
        if not self.judge.samples(refusal, cut):
            return LearnReport(0.0, 0, QUARANTINED)
        before, aside = state.log.newest, without_exposure(checks, cut.batch)
        report = state.learnt(cut, p, aside=aside)
        of_model = report.skipped not in (None, "loss_jumped")
        if of_model and self.judge.mend(before):  # the model was at fault, not the batch
            report = state.learnt(cut, p, aside=aside)
        return report if report.skipped is None else self._set_aside(report, cut)

    def _set_aside(self, report: LearnReport, cut: MicroBatch) -> LearnReport:
        """Keeps a batch that the model itself refused. Its guard bears with a world that has changed: nothing else is
        suspect."""
        self.state.refused(GateRefusal("loss", report.loss, 0.0, report.skipped or ""), cut.batch, cut.places)
        return report

    # -- decisions -------------------------------------------------------------------------------------------

    def make_durable(self) -> None:
        """Sends what was decided, and waits until all of it is there. Raises BrokerError where that cannot be."""
        log_ = self.state.log
        try:
            self.durable(log_.take_unsent())
        except BrokerError:
            log_.send_again()
            raise
        log_.durable(log_.newest)
        self._alone = False

    def take_unsent(self) -> LogPart | None:
        """What was decided and no delta has taken, for a message of its own; None where that is nothing."""
        if not self.state.log.unsent:
            return None
        self._alone = True
        return self.state.log.take_unsent()

    # -- versions --------------------------------------------------------------------------------------------

    def begin(self, found: FoundSnapshot | None) -> bool:
        """Goes on from a snapshot. Called once, before samples are taken; what was decided since comes next
        (:class:`~learner.promotion.replay.Replay`). Returns whether that can be done again.

        Raises:
            StoreError: quarantine cannot be read.
        """
        same = go_on(self.state, found)
        note = None if found is None else found.note
        seen = self.store.latest() if note is not None and note.held else note
        if seen is not None:
            self.state.restorer.origin = seen.place
            self._told(seen)
        self._base_held = self.state.standing.held and same
        return same

    def start(self, ms: int) -> Published | None:
        """The root: what a learner publishes first. None where the model has what may not be seen yet: the root comes
        when it may. Raises as :meth:`delta`."""
        self.state.verdicts.clear()  # another process counted them
        return self.delta(ms)

    @property
    def publishing(self) -> bool:
        """Whether anything may go out that is newer than what was promoted: nobody holds it, no refusal is open, and
        nothing of quarantine is just being learnt."""
        standing = self.state.standing
        return self._rooted and not (standing.held or standing.probation or self.state.root_due or standing.releasing)

    @property
    def at_mark(self) -> bool:
        """Whether all that was learnt was judged: a snapshot may be made."""
        return self.checks is None or not self.state.unjudged

    def delta(self, ms: int, dense: bool = True, retrieval: bool = True, ends: bool = False) -> Published | None:
        """The next version, if something was learnt and it passes. See :meth:`Versions.delta`.

        Args:
            ends: a snapshot waits for the end of a stretch: where this is one, with all there is.

        Raises:
            BrokerError: what was decided cannot be made durable, or rows cannot be read: nothing goes out.
            StoreError, SnapshotError: see :meth:`Versions.delta`; or no model is sound.
        """
        self.judge.wall_ms, state = ms, self.state
        self.judge.go_back()
        if not state.root_due:
            self.judge.stretch(ends=bool(state.standing.releasing and state.unjudged) and not state.standing.probation)
            self.judge.go_back()
        if self._may_be_root:
            return self._root(ms)
        if not self.publishing:
            return None
        if self._alone or len(encode_decisions(state.log.log, state.log.unsent)) > _MOST_BYTES:
            self.make_durable()  # what the delta follows from is there before it
        if ends and self.at_mark:
            dense = retrieval = True
        try:
            found = self.versions.delta(self._progress(), ms, dense, retrieval)
        finally:
            state.published = state.log.newest
        if found is None:
            return None
        note, body = found
        self._told(note)
        return Published(msgspec.structs.replace(note, decisions=encode_decisions(*state.log.take_unsent())), body)

    def end_stretch(self) -> None:
        """What was learnt since the mark is judged as a stretch, as when a learner ends."""
        if self.publishing and not self.at_mark:
            self.judge.stretch(ends=True)

    @property
    def _may_be_root(self) -> bool:
        """Whether a root is due, and the model as it is may be seen: behind a way back it is at the mark."""
        state, standing = self.state, self.state.standing
        if state.root_due:
            return True
        if standing.held or standing.releasing or (standing.probation and state.unjudged):
            return False
        return not self._rooted or (standing.probation and self.snapshot_wanted)  # in a long refusal memory asks for it

    def _root(self, ms: int) -> Published | None:
        state = self.state
        if self.checks is not None:
            if state.unjudged and not self.judge.stretch(ends=True):
                self.judge.go_back()
            if unsound(self.trainer.model) is not None:
                self.judge.mend()
        note = self._write_root(ms, **self.where())
        state.root_due, state.published, self._rooted = False, state.log.newest, True
        self._told(note)
        try:
            self.store.remove_held()
        except StoreError as error:
            log.warning("a snapshot that nobody sees cannot be removed yet", error=one_line(error))
        return Published(note)

    def _write_root(self, ms: int, **where: Any) -> Announcement:
        """The model as it is becomes a snapshot, while learning waits, and what is gone back to."""
        state, self._rooted = self.state, False  # deltas have nothing to follow before it is written
        state.saved()
        self.make_durable()  # before anybody sees what follows from it
        at, training, cuts = state.log.newest, self.trainer.snapshot(False) | saved_state(state), state.restorer.cuts()
        note = write_root(self.store, self.versions, self._progress(), training, ms, cuts, **where)
        self._begin_at(Base(note, at))
        self._base_held = state.standing.held
        return note

    def _begin_at(self, base: Base, names: Collection[str] = ()) -> None:
        """``names``: what it has in quarantine."""
        self.state.restorer.begin_at(base)
        if self.checks is not None:
            self.checks.minutes.forget(base.at)
        try:
            self.state.quarantine.remove_copies(names)
        except StoreError as error:
            log.warning("copies of what left quarantine cannot be removed yet", error=one_line(error))

    def _told(self, note: Announcement) -> None:
        self.promoted_version, self.promoted_ms = note.version, note.event_ms

    # -- snapshots -------------------------------------------------------------------------------------------

    def _progress(self) -> Progress:
        """What a version says of itself, with what others need to know of the gate."""
        progress = self._own_progress()
        progress.extra["decision"] = self.state.log.newest
        if self.state.root_due and self.state.root_why is not None:
            progress.extra["way_back"] = {"why": str(self.state.root_why)}
        if self.checks is not None:
            progress.extra["heldout"] = self.checks.heldout.told  # a shadow holds out the same pages
        return progress

    def passes(self, part: Part) -> bool:
        """Whether all rows of a part are sound. If not, there is no snapshot: the model has gone back."""
        return self.checks is None or self.judge.part(unsound_part(*part))

    def finish(self, slices: Slicing, ms: int) -> Last | None:
        """The end of a snapshot, :attr:`at_mark` and right behind a delta with all there is; with its acts. None: it
        did not pass, and the model has gone back."""
        state = self.state
        if not self.judge.snapshot():
            return None
        last = state.versions.finish(slices, self._progress(), self.trainer.snapshot(False), ms)
        if not self.passes(last.part):
            return None
        self._ending = (state.log.newest, [entry.name for entry in state.quarantine.entries()])
        image, training = last.part
        return replace(last, part=(image, {**training, **saved_state(state)}), cuts=state.restorer.cuts())

    def written(self, note: Announcement | None) -> None:
        """What became of the snapshot that :meth:`finish` gave the end of; None: it was not written."""
        ending, self._ending = self._ending, None
        if note is not None and ending is not None:
            self._begin_at(Base(note, ending[0]), ending[1])
            self._base_held = False

    @property
    def snapshot_wanted(self) -> bool:
        """Whether so much is kept since the newest snapshot that memory asks for the next."""
        return len(self.state.log.kept.decided) > MOST_DECISIONS

    def write_private(self, ms: int) -> bool:
        """Makes a snapshot that nobody sees, in a hold or a release: where the newest does not know of the hold, or
        memory asks for one. Learning waits. Returns whether there is one.

        Raises:
            StoreError: it cannot be written.
            BrokerError: its decisions cannot be made durable.
        """
        state, standing = self.state, self.state.standing
        if not (standing.held or standing.releasing) or state.root_due or standing.back >= 0:
            return False
        if not self.snapshot_wanted and standing.held == self._base_held:
            return False
        if not (self.at_mark or standing.probation or standing.releasing):
            self.judge.stretch(ends=True)
        if not self.at_mark or standing.back >= 0:
            return False
        self._write_root(ms, held=True)
        self.store.prune(epoch=self.versions.epoch)
        return True
