# core
"""The learner without its shell: samples in, a model that has predicted each of them and then learnt from it.

Of each message it drops repeated samples and queues the admitted ones, late clicks beside other rows
(:mod:`learner.training.samplequeue`). A full queue, or a drain, is cut into a micro-batch, judged, then learnt. With a
gate, :mod:`learner.promotion.promotion` decides what is admitted, and comes between a cut and learning from it.
:mod:`learner.evaluation.progressive` judges the learner's predictions, :mod:`learner.evaluation.served_scores` the
served pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.evaluation.progressive import LateClicks, Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.ranker.model import LearnReport, OnlineModel
from learner.ranker.repeats import Repeats
from learner.ranker.verbs import Learning
from learner.ranker.within_page import page_end
from learner.samples.viewpoint import OWN
from learner.training.decisionlog import Places
from learner.training.samplequeue import LateClickQueue, MicroBatch, SampleQueue, Times
from millrace.basics.errors import SnapshotError
from millrace.basics.ranking_metrics import ROLLING_ROWS
from millrace.contracts.events import NOT_READ
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, OUTCOME, PAGE, SampleBatch
from millrace.versions.image import Array, below

BATCH_ROWS = 128
BATCH_MS = 250.0
"""Bounds of a micro-batch of the live learner: its rows, and how long the first of them waits for more."""

TRAINER = "trainer/"
"""Arrays of a snapshot whose names begin with it are a trainer's."""


class ClickCounts(NamedTuple):
    """Clicks that were learnt from, by wall time (Unix ms)."""

    sent_ms: Times  # (n,) when they were sent
    joined_ms: Times  # (n,) when their samples were made


class Trainer:
    """Feeds ``model`` from a stream of sample batches, in micro-batches of at most ``batch_rows``.

    ``counts`` counts samples by outcome: "trained", "repeated", "follow_ups", "refused" (unusable label or weight),
    "left_out" (negatives not chosen), "bad_numbers", "not_finite" (predictions), "skipped" (rows in refused batches),
    "skipped:REASON" (batches), "unread" (of pages whose user was not read), "others" (of pages that are not its own).
    With a gate also "held_out", "absurd", "over_limit", "quarantined", "released", "discarded", "set_aside"
    (:mod:`learner.promotion.promotion`).

    Attributes:
        admit: chooses the new rows of a message to learn, (B,). Held-out pages, for one, are not learnt.
        diverted: whether pages of other models than its own are as if they were not there.
        outcomes: figures of the schema's outcomes, as ``progressive`` has those of the click, once some are told.
    """

    diverted = False
    admit: Callable[[SampleBatch, Places], NDArray[np.bool_]] | None = None

    def __init__(
        self,
        model: Learning,
        progressive: Progressive,
        repeats: Repeats,
        batch_rows: int = BATCH_ROWS,
        served: ServedExposures | None = None,
    ) -> None:
        self.model, self.progressive, self.repeats, self.served = model, progressive, repeats, served
        self.batch_rows = batch_rows
        self.counts: Counter[str] = Counter()
        self.outcomes: dict[str, Progressive] = {}
        self.late_clicks = LateClicks(ROLLING_ROWS)
        self._queue, self._late = SampleQueue(), LateClickQueue()
        self._clicks: list[ClickCounts] = []

    @property
    def pending(self) -> int:
        """Rows that can be learnt now."""
        return self._queue.rows

    @property
    def waiting(self) -> Places:
        """Where late clicks lie that are learnt once there are other rows. (n, 3)"""
        late = self._late.waiting
        return late.head(late.rows).places if late.rows else np.empty((0, 3), np.int64)

    def take(self, batch: SampleBatch, partition: int = 0, joined_ms: int = 0, offset: int = 0) -> None:
        """Queues what is new in a message of a partition, whose columns are those of the model's schema. ``joined_ms``:
        when the message was made (wall time), for tracing alone. ``offset``: of the message."""
        fresh = self.repeats.first_time(batch)
        self.counts["repeated"] += len(batch) - int(np.count_nonzero(fresh))
        follow = batch.kind == FOLLOW_UP
        self.counts["follow_ups"] += int(np.count_nonzero(fresh & follow))
        fresh &= ~follow
        if not self.model.by_page:
            fresh &= batch.kind != PAGE
        if not self.model.schema.outcome:
            fresh &= batch.kind != OUTCOME
        if not fresh.any():
            return
        rows = np.flatnonzero(fresh)
        new = batch if fresh.all() else batch.take(rows)
        if self.served is not None:
            self.served.take(new, partition)
        places = np.empty((len(rows), 3), np.int64)
        places[:, 0], places[:, 1], places[:, 2] = partition, offset, rows
        part = MicroBatch(new, places, np.full(len(new), joined_ms, np.int64))
        if self.diverted and not (own := new.arm == OWN).all():
            self.counts["others"] += int((~own).sum())
            part = part.take(own)
        # An online store that is away for an hour would teach that a known user without his numbers clicks like all.
        if (unread := (part.batch.user_missing & NOT_READ) > 0).any():
            self.counts["unread"] += int(np.count_nonzero(unread))
            part = part.take(~unread)
        part = self._late.through(part)
        if self.admit is not None and not (admitted := self.admit(part.batch, part.places)).all():
            part = part.take(admitted)
        self._queue.put(part)

    def step(self, drain: bool = False) -> LearnReport | None:
        """Predicts, judges and learns one micro-batch, with ``drain`` also one that is not full. Returns None when
        there are too few rows. Call again until then."""
        cut = self.cut(drain)
        if cut is None:
            return None
        self.judge(cut.batch)
        return self.learn(cut)

    def cut(self, drain: bool = False) -> MicroBatch | None:
        """The next micro-batch, owned by the caller; None when there are too few rows. It is longer than
        ``batch_rows`` where it would cut a page that is taught as one."""
        rows = self.pending
        if not rows or (rows < self.batch_rows and not drain):
            return None
        size = min(rows, self.batch_rows)
        if self.model.by_page:
            whole = self._queue.head(rows).batch
            size = page_end(whole.page, whole.kind, whole.policy, size)
        return self._cut(size)

    def cut_at(self, places: Places) -> MicroBatch:
        """The micro-batch of just these rows. Raises SnapshotError where they are not the next ones."""
        queued = self._queue.head(len(places)).places if self.pending else np.empty((0, 3), np.int64)
        if not np.array_equal(queued[: len(places)], places):
            raise SnapshotError(f"the next {len(places)} rows are not those that were learnt", "rules have changed")
        return self._cut(len(places))

    def _cut(self, size: int) -> MicroBatch:
        if self.served is not None:
            self.served.enter(self.model)
        return self._queue.pop(size)

    def judge(self, batch: SampleBatch) -> NDArray[np.float32]:
        """Predicts a micro-batch (B,), and judges what is labelled for the first time in it."""
        p = self.model.score(batch.cat, batch.num)
        with np.errstate(invalid="ignore"):
            judged = (batch.kind < CORRECTION) & (batch.label >= 0) & (batch.label <= 1)
        if wrong := int(judged.sum() - np.isfinite(p[judged]).sum()):
            self.counts["not_finite"] += wrong
        if judged.any():
            self.progressive.update(p[judged], batch.label[judged])
        self.late_clicks.update(p, batch.kind)
        if isinstance(self.model, OnlineModel) and (told := np.isfinite(batch.outcomes).any(axis=1)).any():
            rows = batch.take(np.flatnonzero(told))
            said = self.model.predict(rows.cat, rows.num)[:, 1:]  # (n, K)
            for one, q, y in zip(self.model.schema.outcome, said.T, rows.outcomes.T, strict=True):
                known = (rows.telling <= 1) & (y >= 0) & (y <= 1)  # by age: whether it came before the first age
                self.outcomes.setdefault(one.name, Progressive(ROLLING_ROWS)).update(q[known], y[known])
        return p

    def learn(self, cut: MicroBatch) -> LearnReport:
        """Learns a micro-batch, and counts its outcome."""
        batch = cut.batch
        report = self.model.learn(batch)
        self.counts["trained"] += report.rows
        self.counts["refused"] += report.refused
        self.counts["left_out"] += report.left_out
        self.counts["bad_numbers"] += report.bad_numbers
        if report.skipped is not None:
            self.counts["skipped"] += len(batch) - report.refused - report.left_out
            self.counts[f"skipped:{report.skipped}"] += 1
        else:
            clicked = batch.origin_ms > 0
            self._clicks.append(ClickCounts(batch.origin_ms[clicked], cut.joined_ms[clicked]))
        return report

    def take_clicks(self) -> ClickCounts:
        clicks, self._clicks = self._clicks, []
        if not clicks:
            return ClickCounts(np.empty(0, np.int64), np.empty(0, np.int64))
        return ClickCounts(np.concatenate([c.sent_ms for c in clicks]), np.concatenate([c.joined_ms for c in clicks]))

    def begin_again(self, training: Mapping[str, Array]) -> None:
        """Takes over the samples of another snapshot, before a seek to its offsets: those seen, and those that wait."""
        self._queue, self._late = SampleQueue(), LateClickQueue()
        self.repeats = Repeats(self.repeats.keep_ms)
        self._resume(training)

    def _resume(self, training: Mapping[str, Array]) -> None:
        own = below(TRAINER, training)
        if not own:
            return
        self.repeats.resume(own)
        self._late.resume(below("late/", own))
        self._queue.resume(below("waiting/", own))
        layout = self.model.schema.layout
        for queue in (self._late.waiting, self._queue):
            if queue.rows:
                batch = queue.head(1).batch
                if (batch.cat.shape[1], batch.num.shape[1]) != (layout.F, layout.N):  # of another schema; nowhere else
                    self.counts["set_aside"] += queue.clear()

    def snapshot(self, ordered: bool = True) -> dict[str, Array]:
        """What a snapshot keeps besides the model: the ids already learnt from, by default in order, and the rows that
        wait. Call it with the model's own snapshot. Rolling figures are not kept; they restart with a process."""
        own: dict[str, Array] = dict(self.repeats.snapshot(ordered))
        own |= {f"waiting/{name}": array for name, array in self._queue.snapshot().items()}
        own |= {f"late/{name}": array for name, array in self._late.snapshot().items()}
        return {f"{TRAINER}{n}": a for n, a in own.items()}

    def resume(self, training: Mapping[str, Array], counts: Mapping[str, Any]) -> None:
        """The inverse of :meth:`snapshot`, with the counts of the snapshot's announcement. Call it after the model's
        resume. Served pages of which the snapshot's process had seen something are not judged again. ``training``:
        arrays of a whole snapshot; the model's are ignored."""
        self._resume(training)
        if self.served is not None:
            self.served.begin_after(max(self.model.newest_ms, self.repeats.newest_ms))
        self.counts.update({name: int(value) for name, value in counts.items()})
