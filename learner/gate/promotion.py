# core
"""The gate between what comes and what is served: samples and models are judged, and what fails never happened.

::

    samples ─► Trainer ─► admit ─► cut ─► predict ─► Screen ─► learn ─► acts          Quota, Heldout: at the door
                            │                           │ refused
                            └ absurd rows ─► Quarantine ◄─┴──────────────┐
    delta    ─► unsound? ─► Shift, once a stretch ─► published           │
                   └────────────┴── refused ─► WAY BACK ─────────────────┤ rows since the mark
    snapshot ─► unsound parts? ─► Heldout ── refused ─► WAY BACK ────────┘ rows since the snapshot before

A *stretch* is what was learnt since the *mark*, the state at the last stretch that passed. Within a stretch deltas go
out at once: it passes or fails as a whole. A way back rebuilds the model, bit for bit: the newest snapshot at or before
the mark, and the acts since it, up to the mark, once more. What was learnt behind the mark goes to quarantine. If any
of it was published, the rebuilt model is published as a root: a new version with old content.

::

    promoting ── refused ──► probation: nothing is published until a whole stretch has passed ── passed ──► promoting
                                 │ refused for ``quarantine_ms`` of event time by one kind of checks (samples, held-out
                                 │ pages, the model), which has passed nothing between
                                 └──► the world is different: bounds begin anew, what was kept since then is learnt

No clock, no Kafka: event time is that of the samples (:mod:`learner.gate.median_clock`). One thread.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import structlog

from learner.gate.blind_spots import blind_spots
from learner.gate.heldout import Heldout, Judgement
from learner.gate.median_clock import MedianClock
from learner.gate.model_checks import unsound, unsound_part
from learner.gate.quarantine import PLACE, Quarantine
from learner.gate.quota import Quota
from learner.gate.screen import Screen
from learner.gate.shift import Shift
from learner.gate.verdicts import KINDS, OF_MODEL, OF_PAGES, GateRefusal, kind_of
from learner.ranker.model import LearnReport
from learner.ranker.snapshot_slices import Part
from learner.ranker.verbs import Learning, Slicing
from learner.tables.table import SparseTable
from learner.training.learner_versions import (
    Build,
    Cuts,
    FoundSnapshot,
    Last,
    Progress,
    SnapshotFiles,
    Versions,
    write_root,
)
from learner.training.ledger import Act, Flushed, Learnt, Places, encode_acts, learn_again, places_of, spans_of
from learner.training.trainer import ClickCounts, MicroBatch, Trainer
from millrace.basics.errors import SchemaError, SnapshotError, StoreError, one_line
from millrace.basics.hashing import salt
from millrace.basics.store import AbsentError, DamagedError, Store
from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.versions.image import Array, Image, below
from millrace.versions.modelstore import Announcement, ModelStore, Place

log = structlog.get_logger("learner")

_MINUTE_MS = 60_000
_LEDGER_ROWS = 50_000
"""Rows that are kept in memory for a way back before a snapshot is asked for: the shop's take 2.3 KB each."""
_SLICE = 100_000
QUARANTINED = "quarantined"


@dataclass(slots=True)
class Checks:
    """What judges, and what keeps what was refused."""

    screen: Screen
    quota: Quota
    shift: Shift
    heldout: Heldout
    quarantine: Quarantine
    quarantine_ms: int
    observe: bool = False  # a refusal is only told of, unless what is refused is damaged or absurd
    clock: MedianClock = field(default_factory=MedianClock)  # of all of them

    @classmethod
    def of(cls, settings: Settings, schema: Schema) -> Checks | None:
        """As the settings say; None: nothing is judged.

        Raises:
            SettingError: ``teach_limits`` cannot be read.
            StoreError: the place of quarantine cannot be used.
        """
        if settings.gate == "off":
            return None
        clock = MedianClock()
        return cls(
            Screen(schema, MAX_AHEAD_MS, clock),
            Quota(schema, settings.teach_limits, clock),
            Shift(clock=clock),
            Heldout(settings.heldout_share, clock=clock),
            Quarantine(Store(settings.place(PLACE)), schema.id),
            round(settings.quarantine_minutes * _MINUTE_MS),
            settings.gate == "observe",
            clock,
        )


class Published(NamedTuple):
    """A version that is to be sent. A snapshot among them is a root: it lies in the store already."""

    note: Announcement
    body: bytes | None = None


class _Base(NamedTuple):
    """A snapshot in the store that a way back may begin at."""

    note: Announcement
    at: int  # acts before it


class Promotion:
    """A learner with a gate: trainer and versions together.

    Call :meth:`start` first. Then :meth:`step` after samples were taken, :meth:`delta` to publish, and for a snapshot
    :meth:`write_snapshot`; or, beside learning, :meth:`passes` for each part, :meth:`finish` and :meth:`written`.

    Args:
        checks: None: nothing is judged, and what was learnt is only written down.
        build: makes the model of a snapshot from its parts.
        progress: what the next version says of itself.
        where: ``follows`` and ``log`` of a root.
        settle: called before the model is replaced: a snapshot in the making is given up, one that has its end is
            awaited.

    Attributes:
        verdicts: how often each check passed, refused, would have refused ("observed") or could not judge.
        observed: the newest refusal that was only told of.
        held: whether a person holds back what is newer.
    """

    def __init__(
        self,
        trainer: Trainer,
        versions: Versions,
        store: ModelStore,
        checks: Checks | None,
        build: Build,
        progress: Callable[[], Progress],
        where: Callable[[], Mapping[str, Any]] = dict,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.trainer, self.versions, self.store, self.checks = trainer, versions, store, checks
        self._build, self._progress, self._where, self._settle = build, progress, where, settle
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.held = False
        self.judgement: Judgement | None = None  # of the newest snapshot
        self.refusal: GateRefusal | None = None  # the newest
        self.refused_ms = 0  # event time of it
        self.observed: GateRefusal | None = None
        self._told_ms: dict[str, int] = {}  # when a check was last told of; ``ms`` of :meth:`delta`
        self._ms = 0
        self.promoted_version = self.promoted_ms = -1
        self._probation = False
        self._suspected = False  # whether samples, not the model alone, are under suspicion
        self._since_ms: dict[str, int] = {}  # event time of the first refusal by a kind of checks since one has passed
        self._acts: list[Act] = []
        self._batches: list[SampleBatch | None] = []  # of each act; None: a flush
        self._bases: list[_Base] = []
        self._mark = self._published = 0  # acts
        self._ending: int | None = None  # acts in the snapshot that is being written
        self._origin = Place(0, -1)
        self._root_due = False
        self._held_out: list[SampleBatch] = []
        self._clicks: list[ClickCounts] = []
        self._release: deque[str] = deque()  # names of entries of quarantine that are to be learnt
        self._done: list[str] = []  # learnt since the newest snapshot
        self._ending_done: list[str] = []
        versions.flushed = lambda: self._noted(Flushed(), None)
        store.needed = self._needed
        if checks is not None:
            trainer.admit = self._admit

    # -- samples ---------------------------------------------------------------------------------------------

    def _admit(self, batch: SampleBatch, places: Places) -> Any:
        """Which rows are to be learnt. (B,)"""
        assert self.checks is not None
        checks, counts = self.checks, self.trainer.counts
        checks.clock.meet(batch)
        absurd = checks.screen.absurd(batch)
        if absurd.any():
            refusal = GateRefusal("absurd", float(absurd.sum()), 0.0)
            self._keep(refusal, batch.take(absurd), places[absurd])
            self.verdicts["absurd", "refused"] += 1
        held = checks.heldout.held(batch) & ~absurd
        if held.any():
            counts["held_out"] += int(held.sum())
            self._held_out.append(batch.take(held))
        rest = ~(absurd | held)
        if not rest.any():
            return rest
        over = np.zeros(len(batch), np.bool_)
        over[rest] = checks.quota.over(batch if rest.all() else batch.take(rest))
        counts["over_limit"] += int(over.sum())
        return rest & ~over

    def step(self, drain: bool = False) -> LearnReport | None:
        """Predicts, judges and, if it passes, learns one micro-batch. See :meth:`Trainer.step`; ``skipped`` is
        "quarantined" where it was refused."""
        trainer, checks = self.trainer, self.checks
        if checks is not None and self._held_out:
            held, self._held_out = SampleBatch.concat(self._held_out), []
            checks.heldout.take(held)
        cut = trainer.cut(drain)
        if cut is None:
            return None
        p = trainer.judge(cut.batch)
        if checks is None:
            return self._learn(cut)
        if not np.isfinite(p).all():  # no batch makes a sound model predict that
            if self._mend():
                p = trainer.model.score(cut.batch.cat, cut.batch.num)
            if not np.isfinite(p).all():  # as of a class of one's own that raises
                return self._set_aside(LearnReport(float("nan"), 0, "prediction_not_finite"), cut)
        refusal = self._judged("screen", checks.screen.look(cut.batch, p))
        if refusal is None:
            report = self._learn(cut)
            if report.skipped not in (None, "loss_jumped") and self._mend():  # the model was at fault, not the batch
                report = self._learn(cut)
            if report.skipped is None:
                checks.screen.learnt(cut.batch, p)
                if report.rows:
                    checks.shift.meet(cut.batch)
                    checks.shift.learnt(report.rows)
                return report
            return self._set_aside(report, cut)
        self._refused(refusal, cut.batch, cut.places)
        return LearnReport(0.0, 0, QUARANTINED)

    def _set_aside(self, report: LearnReport, cut: MicroBatch) -> LearnReport:
        """Keeps a batch that the model itself refused. Its guard bears with a world that has changed: nothing else is
        suspect."""
        self.verdicts["loss", "refused"] += 1
        self._keep(GateRefusal("loss", report.loss, 0.0, report.skipped or ""), cut.batch, cut.places)
        return report

    def _learn(self, cut: MicroBatch) -> LearnReport:
        report = self.trainer.learn(cut)
        # A batch that the model refuses too: it moves what bounds the next one.
        self._noted(Learnt(spans_of(cut.places), report.rows), cut.batch)
        clicks = self.trainer.take_clicks()
        if report.skipped is None and report.rows:
            self.versions.learnt(clicks.sent_ms)
            self._clicks.append(clicks)
        return report

    def take_clicks(self) -> list[ClickCounts]:
        """The clicks learnt from since the last call, a part for each micro-batch."""
        clicks, self._clicks = self._clicks, []
        return clicks

    def _noted(self, act: Act, batch: SampleBatch | None) -> None:
        self._acts.append(act)
        self._batches.append(batch)

    # -- refusals --------------------------------------------------------------------------------------------

    def _judged(self, name: str, refusal: GateRefusal | None) -> GateRefusal | None:
        """Counts what a check says. A refusal that is only to be observed is told of and is None: what was judged goes
        on as if it had passed."""
        assert self.checks is not None
        if refusal is None:
            self.verdicts[name, "passed"] += 1
        elif self.checks.observe and kind_of(refusal.check) != OF_MODEL:
            self.verdicts[refusal.check, "observed"] += 1
            self.observed = refusal
            if self._ms >= self._told_ms.get(refusal.check, -_MINUTE_MS) + _MINUTE_MS:
                self._told_ms[refusal.check] = self._ms
                log.warning("the gate would have refused; it only observes", why=str(refusal))
            return None
        return refusal

    def _keep(self, refusal: GateRefusal, batch: SampleBatch, places: Places) -> None:
        assert self.checks is not None
        self.trainer.counts[QUARANTINED] += len(batch)
        self.trainer.counts[f"{QUARANTINED}:{refusal.check}"] += len(batch)
        # The clock may go back. What is refused is never older than the refusal that began it.
        made_ms = max(self.checks.clock.now_ms, *self._since_ms.values(), 0)
        self.checks.quarantine.keep(refusal, batch, places, made_ms)

    def _refused(self, refusal: GateRefusal, batch: SampleBatch, places: Places) -> None:
        """A micro-batch was refused, and with it what was learnt since the mark."""
        assert self.checks is not None
        self._say(refusal, batch)
        self._keep(refusal, batch, places)
        if self._open:
            self._go_back(refusal, lambda: self._mark)
        self._bear()

    def _bear(self) -> None:
        """After a refusal: what has stayed different for the stated time is no fault but the world."""
        assert self.checks is not None
        since_ms = self._since_ms.get(kind_of(self.refusal.check), 0) if self.refusal else 0
        if self._suspected and since_ms and self.refused_ms - since_ms >= self.checks.quarantine_ms:
            self._world_changed("time", since_ms)

    @property
    def _open(self) -> bool:
        """Whether anything was learnt since the mark."""
        return any(isinstance(act, Learnt) and act.rows for act in self._acts[self._mark :])

    def _say(self, refusal: GateRefusal, batch: SampleBatch | None = None) -> None:
        assert self.checks is not None
        self.verdicts[refusal.check, "refused"] += 1
        now_ms = self.checks.clock.now_ms
        if not self._probation:
            log.error("the gate refused; what was promoted last is served", why=str(refusal))
        self.refusal, self.refused_ms = refusal, now_ms
        self._suspected = self._probation or kind_of(refusal.check) != OF_MODEL
        self._probation = True
        self._since_ms.setdefault(kind_of(refusal.check), now_ms)
        if batch is not None:
            self.checks.heldout.spoilt(int(np.median(batch.ts_ms)))

    def _go_back(self, refusal: GateRefusal, where: Callable[[], int]) -> bool:
        """Makes the model what it was after some acts, or fewer where that is not sound. The acts behind are forgotten,
        and their rows go to quarantine. Whether a root is due.

        Args:
            where: gives the number of acts. It is asked when the writer is done: a snapshot that it has written lets
                acts go, and those behind have other numbers from then on.

        Raises:
            SnapshotError, StoreError: no snapshot can be read.
        """
        self._settle()
        target = where()
        wanted = {self._behind_flushes(at) for at in (target, min(target, self._mark))}
        model, target, whole = self._rebuilt(sorted(wanted, reverse=True))
        acts = zip(self._acts[target:], self._batches[target:], strict=True)
        gone = [(a, b) for a, b in acts if isinstance(a, Learnt) and a.rows and b is not None]
        published = any(isinstance(a, Learnt) and a.rows for a in self._acts[target : self._published])
        if gone:
            batch = SampleBatch.concat([b for _, b in gone])
            self._keep(refusal, batch, np.concatenate([places_of(a.spans) for a, _ in gone]))
            self.trainer.counts["trained"] -= sum(a.rows for a, _ in gone)
            assert self.checks is not None
            self.checks.heldout.spoilt(int(np.median(batch.ts_ms)))
        del self._acts[target:], self._batches[target:]
        at_mark = whole and target >= self._mark
        late = [base.note.place for base in self._bases if base.at > target]  # they hold what never happened
        self._bases = [base for base in self._bases if base.at <= target]
        self.store.forget(late)
        self._mark, self._published = min(self._mark, target), min(self._published, target)
        self._become(model)
        if not at_mark and self.checks is not None:  # the mark is another state now
            self.checks.shift.rebase(model)
        if whole and not gone and not self._suspected:  # a slot was damaged, no sample was at fault: nothing is open
            self._probation = False
            self._since_ms.pop(OF_MODEL, None)
        self.trainer.counts["way_back:gate"] += 1
        self._root_due = published or not whole or kind_of(refusal.check) == OF_MODEL
        log.warning("went back to an earlier model", rows=sum(len(b) for _, b in gone), root=self._root_due)
        return self._root_due

    def _needed(self) -> list[Place]:
        """Snapshots that a way back begins at: that of the mark, and where none of its own is sound, the origin. The
        writer's thread asks for them."""
        return [*(base.note.place for base in self._bases[:1]), self._origin]

    def _behind_flushes(self, target: int) -> int:
        """The act behind those by which the retrieval head learnt, at that point, what had waited."""
        while target < len(self._acts) and isinstance(self._acts[target], Flushed):
            target += 1
        return target

    def _rebuilt(self, targets: Sequence[int]) -> tuple[Learning, int, bool]:
        """A sound model after as many acts as the first target that gives one, that number, and whether it is all of
        them: not so where only an older snapshot is sound."""
        for base in reversed(self._bases):
            reachable = [target for target in targets if target >= base.at]
            if not reachable:  # it holds what is gone back behind
                continue
            for target in dict.fromkeys([*reachable, base.at]):
                try:
                    model = self._build(base.note, _sound_parts(self.store, base.note))
                except (AbsentError, DamagedError, UnsoundError) as error:
                    log.error("a snapshot cannot be gone back to", version=base.note.version, error=str(error))
                    break
                learn_again(model, self._acts[base.at : target], _in_order(self._batches[base.at : target]))
                refusal = unsound(model)
                if refusal is None:
                    return model, target, True
                log.error("a way back ends at a model that is not sound", version=base.note.version, why=str(refusal))
        known = {base.note.place for base in self._bases}
        for note in self.store.snapshots():
            if note.place in known or note.place > self._origin:
                continue
            with contextlib.suppress(AbsentError, DamagedError, UnsoundError):
                model = self._build(note, _sound_parts(self.store, note))
                self._lost(note)
                return model, 0, False
        raise SnapshotError(
            f"no snapshot of '{self.store.url}' gives a sound model", "empty the store to begin with an untrained one"
        )

    def _lost(self, note: Announcement) -> None:
        """Acts before the first that is known are not done again: only an older snapshot is sound."""
        counts = self.trainer.counts
        learnt = sum(act.rows for act in self._acts if isinstance(act, Learnt))
        counts["set_aside"] += max(0, counts["trained"] - learnt - note.trained)
        counts["trained"] = note.trained + learnt
        self._bases = [_Base(note, 0)]

    def _become(self, model: Learning) -> None:
        self.trainer.model = model
        self.versions.replace(model)
        if self.checks is not None:
            self.checks.screen.went_back()
            self.checks.shift.went_back()

    def _mend(self) -> bool:
        """Goes back if the model itself is not sound. Whether it was so: what was asked may be asked again."""
        refusal = _unsound_whole(self.trainer.model)
        if refusal is None:
            return False
        self._say(refusal)
        self._go_back(refusal, lambda: len(self._acts))
        return True

    # -- versions --------------------------------------------------------------------------------------------

    def start(self, found: FoundSnapshot | None, ms: int) -> Published:
        """The root: what a learner publishes first. ``found`` is what it goes on from.

        Raises:
            StoreError: it cannot be written.
        """
        if found is not None:
            self._bases = [_Base(found.note, 0)]
        self._mark = self._published = 0
        if self.checks is not None:  # what it knows of the mark is of the process before
            self.checks.shift.rebase(self.trainer.model)
        return self._root(ms)

    def _root(self, ms: int, refusal: GateRefusal | None = None) -> Published:
        progress = self._snapshot_progress()
        if refusal is not None:
            progress.extra["way_back"] = {"why": str(refusal)}

        def cuts() -> Cuts | None:
            base = self._bases[-1] if self._bases else None
            return None if base is None else Cuts(base.note.place, encode_acts(self._acts[base.at :]))

        note = write_root(
            self.store, self.versions, progress, self.trainer.snapshot(False), ms, cuts, **dict(self._where())
        )
        self._root_due = False
        self._base(note, len(self._acts))
        self._mark = self._published = len(self._acts)
        self._forget_done(self._done)
        self._told(note)
        return Published(note)

    def _snapshot_progress(self) -> Progress:
        """What a snapshot says of itself, with what others need to know of the gate."""
        progress = self._progress()
        if self.checks is not None:
            progress.extra["quarantine"] = {"released": list(self._done)}
            progress.extra["heldout"] = self.checks.heldout.told  # a shadow holds out the same pages
        return progress

    def _base(self, note: Announcement, at: int) -> None:
        """A snapshot that a way back may begin at. Acts before the newest that the mark has are let go."""
        self._bases.append(_Base(note, at))
        first = max((i for i, base in enumerate(self._bases) if base.at <= max(self._mark, 0)), default=0)
        gone = self._bases[first].at
        self._bases = [_Base(base.note, base.at - gone) for base in self._bases[first:]]
        del self._acts[:gone], self._batches[:gone]
        self._mark, self._published = self._mark - gone, self._published - gone
        if self._ending is not None:
            self._ending -= gone
        self._origin = note.place

    def _told(self, note: Announcement) -> None:
        self.promoted_version, self.promoted_ms = note.version, note.event_ms

    @property
    def publishing(self) -> bool:
        """Whether anything may go out that is newer than what was promoted: nobody holds it, no refusal is open, and
        nothing of quarantine is just being learnt."""
        return not (self.held or self._probation or self._root_due or self._release)

    def delta(self, ms: int, dense: bool = True, retrieval: bool = True) -> Published | None:
        """The next version, if something was learnt and it passes. See :meth:`Versions.delta`.

        Raises:
            StoreError, SnapshotError: see :meth:`Versions.delta`; or no model is sound.
        """
        self._ms = ms
        if self._root_due:
            return self._root(ms, self.refusal)
        if self.checks is not None and not self._release:
            refusal = self._judge()
            if refusal is not None:
                self._say(refusal)
                of_model = kind_of(refusal.check) == OF_MODEL
                root = self._go_back(refusal, lambda: len(self._acts) if of_model else self._mark)
                self._bear()
                return self._root(ms, refusal) if root else None
        if not self.publishing:
            return None
        try:
            found = self.versions.delta(self._progress(), ms, dense, retrieval)
        finally:
            self._published = len(self._acts)
        if found is None:
            return None
        self._told(found[0])
        return Published(*found)

    def _judge(self) -> GateRefusal | None:
        """Judges what was learnt since the mark; a whole stretch that passes moves the mark."""
        assert self.checks is not None
        shift, model = self.checks.shift, self.trainer.model
        if self._probation and not shift.due:
            return None
        refusal = unsound(model)
        if refusal is not None:
            return refusal
        self.verdicts["soundness", "passed"] += 1
        if not shift.due:
            return None
        refusal = self._judged("shift", shift.look(model))
        if refusal is None:
            self._passed()
        return refusal

    def _passed(self) -> None:
        assert self.checks is not None
        self._mark = len(self._acts)
        self.checks.screen.promoted()
        self.checks.shift.promoted(self.trainer.model)
        if self._probation:
            log.warning("a whole stretch has passed the gate: versions are published again")
        self._probation = False
        self._since_ms = {kind: ms for kind, ms in self._since_ms.items() if kind == OF_PAGES}

    # -- snapshots -------------------------------------------------------------------------------------------

    def passes(self, part: Part) -> bool:
        """Whether all rows of a part of a snapshot are sound. If not, there is no snapshot: the model has gone back."""
        return self._passes(self._unsound(part))

    def _passes(self, refusal: GateRefusal | None) -> bool:
        """Goes back to the promoted snapshot before, if there is a refusal. :meth:`delta` gives the root."""
        if refusal is None:
            return True
        self._say(refusal)
        of_model = kind_of(refusal.check) == OF_MODEL
        self._go_back(refusal, lambda: len(self._acts) if of_model else self._bases[-1].at)
        self._bear()
        return False

    def _unsound(self, part: Part) -> GateRefusal | None:
        if self.checks is None:
            return None
        refusal = unsound_part(*part)
        self.verdicts["soundness", "passed"] += refusal is None
        return refusal

    def _judge_snapshot(self) -> GateRefusal | None:
        """Judges the model on held-out pages, where there are enough."""
        if self.checks is None:
            return None
        model = self.trainer.model
        self.judgement = self.checks.heldout.judge(model)
        self.checks.heldout.looked()
        refusal = self.judgement.refusal
        if self.judgement.judged:
            refusal = self._judged("heldout", refusal)
        else:
            self.verdicts["heldout", "unjudged"] += 1
        if refusal is None:
            self.checks.heldout.promoted(model)
            self._since_ms.pop(OF_PAGES, None)
        return refusal

    def finish(self, slices: Slicing, ms: int) -> Last | None:
        """The end of a snapshot, right behind a delta with all there is; with its acts. None: it did not pass, and the
        model has gone back. What was refused before is in files by then, since the snapshot's offsets are behind it."""
        if not self._passes(self._judge_snapshot()):
            return None
        last = self.versions.finish(slices, self._snapshot_progress(), self.trainer.snapshot(False), ms)
        if not self.passes(last.part):
            return None
        self.flush_quarantine()
        self._ending, self._ending_done = len(self._acts), list(self._done)
        if not self._bases:
            return last
        base = self._bases[-1]
        return replace(last, cuts=Cuts(base.note.place, encode_acts(self._acts[base.at : self._ending])))

    def write_snapshot(self, ms: int) -> Announcement | None:
        """Makes a snapshot while learning waits, right behind a delta with all there is. None: nothing is new, it is
        held back, or it did not pass.

        Raises:
            StoreError: it cannot be written; there is none then.
        """
        if not self.publishing or not self.versions.snapshot_due:
            return None
        slices, files = self.versions.begin(), SnapshotFiles(self.store, self.versions.place)
        note = None
        try:
            while (part := slices.next()) is not None and self.passes(part):
                files.add(part)
            last = self.finish(slices, ms) if part is None else None
            note = None if last is None else files.end(last)
        finally:
            if note is None:
                slices.abandon()
                files.give_up()
                self.versions.snapshot_lost()
            self.written(note)
        return note

    def flush_quarantine(self) -> None:
        """Writes what waits to be kept. What cannot be written is tried again."""
        if self.checks is None:
            return
        try:
            self.checks.quarantine.flush()
        except StoreError as error:
            log.error("quarantine cannot be written; it is tried again", error=one_line(error))

    def written(self, note: Announcement | None) -> None:
        """What became of the snapshot that :meth:`finish` gave the end of; None: it was not written."""
        at, self._ending = self._ending, None
        if note is not None and at is not None:
            self._base(note, at)
            self._forget_done(self._ending_done)

    def _forget_done(self, names: Sequence[str]) -> None:
        """What was learnt of quarantine is in a snapshot now."""
        if self.checks is None or not names:
            return
        try:
            self.checks.quarantine.remove(names)
        except StoreError as error:
            log.warning("what was learnt of quarantine cannot be removed yet", error=one_line(error))
            return
        self._done = [name for name in self._done if name not in names]

    @property
    def snapshot_wanted(self) -> bool:
        """Whether so much was learnt since the newest snapshot that memory asks for the next."""
        at = self._bases[-1].at if self._bases else 0
        return sum(len(b) for b in self._batches[at:] if b is not None) > _LEDGER_ROWS

    # -- a world that has changed, and what persons want -----------------------------------------------------

    def _world_changed(self, by: str, since_ms: int) -> None:
        """What is different is the world: bounds begin anew, and what was kept since is learnt."""
        assert self.checks is not None
        checks = self.checks
        try:
            checks.quarantine.flush()
        except StoreError as error:
            log.error("quarantine cannot be written; what is different is not learnt yet", error=one_line(error))
            return
        log.warning("what is different is taken for the world: it is learnt", by=by, since_ms=since_ms)
        kept = checks.quarantine.entries()
        self._to_learn(e.name for e in kept if e.made_ms >= since_ms and e.check != "absurd")
        self._rebase()

    def _rebase(self) -> None:
        assert self.checks is not None
        checks, model = self.checks, self.trainer.model
        checks.screen.rebase()
        checks.shift.rebase(model)
        checks.heldout.rebase(model)
        self._mark = len(self._acts)
        self._probation = False
        self._since_ms.clear()

    def release_some(self) -> bool:
        """Learns one entry of quarantine that is to be learnt, if there is one. When the last is learnt, bounds begin
        anew. For the owner to call now and then; nothing is published between."""
        if not self._release or self.checks is None:
            return False
        name, counts = self._release.popleft(), self.trainer.counts
        try:
            batch, places = self.checks.quarantine.read(name)
        except (AbsentError, DamagedError, SchemaError) as error:
            log.error("an entry of quarantine cannot be learnt", name=name, error=str(error))
        else:
            for start in range(0, len(batch), self.trainer.batch_rows):
                rows = slice(start, start + self.trainer.batch_rows)
                self._learn(MicroBatch(batch.take(rows), places[rows], np.zeros(len(places[rows]), np.int64)))
            counts["released"] += len(batch)
        self._done.append(name)
        if not self._release:
            self._rebase()
        return True

    def _to_learn(self, names: Iterable[str]) -> int:
        before = len(self._release)
        self._release.extend(name for name in names if name not in self._release and name not in self._done)
        return len(self._release) - before

    def release(self, names: Sequence[str] | Literal["all"]) -> int:
        """Has entries of quarantine learnt. How many are to be learnt that were not before.

        Raises:
            AbsentError: there is none of a name.
            StoreError: quarantine cannot be read or written.
        """
        assert self.checks is not None
        self.checks.quarantine.flush()
        return self._to_learn(self.checks.quarantine.chosen(names))

    def discard(self, names: Sequence[str] | Literal["all"]) -> int:
        """Removes entries of quarantine for good: how many rows. Those that were learnt are not among them.

        Raises:
            AbsentError: there is none of a name.
            StoreError: quarantine cannot be read or written.
        """
        assert self.checks is not None
        quarantine, taken = self.checks.quarantine, {*self._release, *self._done}
        quarantine.flush()
        gone = [name for name in quarantine.chosen(names) if name not in taken]
        rows = sum(entry.rows for entry in quarantine.entries() if entry.name in gone)
        quarantine.remove(gone)
        self.trainer.counts["discarded"] += rows
        return rows

    def hold(self) -> None:
        """Nothing newer is published until :meth:`promote`. The learner learns on."""
        self.held = True

    def promote(self) -> None:
        """A person vouches for what comes: a hold ends, and what is open at the gate passes."""
        self.held = False
        if self.checks is not None:
            if self._since_ms:
                self._world_changed("person", min(self._since_ms.values()))
            else:
                self._rebase()

    def roll_back(self, note: Announcement) -> int:
        """Goes back to a snapshot of the store. What was learnt since is set aside, uncounted in ``trained``: rows.
        :meth:`delta` gives the root.

        Raises:
            StoreError, SnapshotError: the snapshot cannot be read; nothing has changed then.
        """
        self._settle()
        model = self._build(note, _sound_parts(self.store, note))
        self._begin_from(note, model)
        counts = self.trainer.counts
        gone = max(0, counts["trained"] - note.trained)
        counts["set_aside"] += gone
        counts["trained"] -= gone
        counts["way_back:person"] += 1
        log.warning("rolled back", version=note.version, set_aside=gone)
        return gone

    def adopt(self, found: FoundSnapshot, same_samples: bool = False) -> None:
        """Goes on with a model that was learnt elsewhere. :meth:`delta` gives the root.

        Args:
            same_samples: it was learnt of this learner's own samples, and counts what became of them, too.
        """
        self._settle()
        self._begin_from(found.note, found.model)
        self._bases = []  # it lies in another store
        counts = self.trainer.counts
        if same_samples and (own := found.note.extra.get("counts")):
            counts.clear()
            counts.update({name: int(n) for name, n in own.items()})
        else:
            counts["set_aside"] += max(0, counts["trained"] - found.note.trained)
            counts["trained"] = found.note.trained
        log.warning("another model was adopted", version=found.note.version, model=found.model.spec.get("model"))

    def _begin_from(self, note: Announcement, model: Learning) -> None:
        self._acts, self._batches, self._bases = [], [], [_Base(note, 0)]
        self._mark = self._published = 0
        self._ending, self._origin, self._root_due = None, note.place, True
        self._become(model)
        if self.checks is not None:
            self._rebase()

    @property
    def origin(self) -> Place:
        """The snapshot whose content the newest root had, or the newest snapshot."""
        return self._origin

    def begin(self, found: FoundSnapshot | None) -> None:
        """Goes on from a snapshot: what a process before put into quarantine stays there, and is not learnt when its
        samples come again. Called once, before samples are taken.

        Raises:
            StoreError: quarantine cannot be read.
        """
        if self.checks is None:
            return
        quarantine, repeats = self.checks.quarantine, self.trainer.repeats
        kept = found.note.extra.get("quarantine", {}) if found is not None else {}
        quarantine.begin(kept.get("released", []))
        again = 0
        for entry in quarantine.entries():
            if entry.to_ms < repeats.newest_ms - repeats.keep_ms:
                continue
            try:
                batch, _ = quarantine.read(entry.name)
            except (AbsentError, DamagedError, SchemaError) as error:
                log.warning("an entry of quarantine cannot be read", name=entry.name, error=one_line(error))
                continue
            new = int(repeats.first_time(batch).sum())
            again += new
            self.trainer.counts[QUARANTINED] += new
            self.trainer.counts[f"{QUARANTINED}:{entry.check}"] += new
        if again:
            log.warning("samples that were refused before are not learnt now either", rows=again)

    # -- what is shown, and what is kept ---------------------------------------------------------------------

    @property
    def status(self) -> dict[str, Any]:
        """What is open at the gate, for people. Times are event time in Unix ms."""
        checks, counts, name = self.checks, self.trainer.counts, "held" if self.held else "promoting"
        if self._probation:
            name = "probation" if self._open else "blocked"
        return {
            "state": name,
            "refusal": str(self.refusal) if self.refusal else None,  # the newest; it may be over
            "check": self.refusal.check if self.refusal else None,
            "refused_ms": self.refused_ms,
            "observes": self.checks is not None and self.checks.observe,
            "observed": str(self.observed) if self.observed else None,  # what would have been refused last
            "blocked_since_ms": min(self._since_ms.values(), default=0),
            "promoted_version": self.promoted_version,
            "promoted_ms": self.promoted_ms,
            "heldout": {k: v for k, v in self.judgement._asdict().items() if k != "refusal"} if self.judgement else {},
            "quarantined_rows": counts[QUARANTINED] - counts["released"] - counts["discarded"],
            "releasing": len(self._release),
            "unseen": [str(one) for one in blind_spots(checks.screen, checks.heldout)] if checks else [],
        }

    def snapshot(self) -> dict[str, Array]:
        """What the gate knows, apart from the model and its acts."""
        if self.checks is None:
            return {}
        since = (self._since_ms.get(kind, 0) for kind in KINDS)
        own = np.array([self.held, self._probation, self.refused_ms, *since], np.int64)
        return {"gate": own, "schema": self._schema()} | {
            f"{name}/{key}": array for name, part in self._parts().items() for key, array in part.snapshot().items()
        }

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`, before :meth:`start`. Whatever a process before refused stays refused. Of a
        state of another schema only a person's hold is kept: its rows and figures are of other columns.

        Raises:
            KeyError, ValueError: it is not of this form.
        """
        if self.checks is None or not state:
            return
        held, probation, refused_ms, *since = (int(v) for v in state["gate"])
        self.held = bool(held)
        if not np.array_equal(state.get("schema", ()), self._schema()):
            log.warning("the gate's state is of another schema: it warms up anew")
            return
        self._probation, self.refused_ms = bool(probation), refused_ms
        self._since_ms = {kind: ms for kind, ms in zip(KINDS, since, strict=True) if ms}
        for name, part in self._parts().items():
            part.resume(below(f"{name}/", state))

    def _schema(self) -> Array:
        """What a state is bound to. (1,)"""
        return np.array([salt("gate", self.trainer.model.schema.id)], np.uint64)

    def _parts(self) -> dict[str, Any]:
        assert self.checks is not None
        checks = self.checks
        own = {"screen": checks.screen, "quota": checks.quota, "shift": checks.shift, "heldout": checks.heldout}
        return {"clock": checks.clock, **own}


def _in_order(batches: Sequence[SampleBatch | None]) -> Callable[[Learnt], SampleBatch]:
    rest = iter([batch for batch in batches if batch is not None])
    return lambda _: next(rest)


def _unsound_whole(model: Learning) -> GateRefusal | None:
    """Looks at everything, all rows of all tables too."""
    refusal = unsound(model)
    for name, table in model.tables.items():
        if refusal is not None or not isinstance(table, SparseTable):
            break
        rows = table.index.rows()
        for start in range(0, len(rows), _SLICE):
            serving, training = table.part(rows[start : start + _SLICE])
            refusal = unsound_part(Image({}, {name: serving}), {f"table/{name}/{n}": a for n, a in training.items()})
            if refusal is not None:
                break
    return refusal


class UnsoundError(SnapshotError):
    """A snapshot's part has something that is not finite, or out of bounds."""


def _sound_parts(store: ModelStore, note: Announcement) -> Iterator[tuple[Image, Mapping[str, Array]]]:
    for image, training in store.read_whole(note):
        refusal = unsound_part(image, training)
        if refusal is not None:
            raise UnsoundError(f"snapshot {note.version} is not sound ({refusal})", "an older one is tried")
        yield image, training
