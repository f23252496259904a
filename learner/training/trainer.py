# core
"""The learner without its shell: samples in, a model that has predicted each of them and then learnt from it.

Of each message it drops repeated samples and queues the admitted ones; a full queue, or a drain, is cut into a
micro-batch, judged, then learnt. With a gate, :mod:`learner.promotion.promotion` decides what is admitted, and comes
between a cut and learning from it. :mod:`learner.evaluation.progressive` judges the learner's predictions,
:mod:`learner.evaluation.served_scores` the served pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.evaluation.progressive import LateClicks, Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.ranker.interfaces import Learning
from learner.ranker.model import LearnReport, OnlineModel
from learner.ranker.repeats import Repeats
from learner.ranker.within_page import page_end
from learner.samples.viewpoint import OWN
from learner.training.decisionlog import Places, same_rows
from millrace.basics.errors import SnapshotError
from millrace.basics.ranking_metrics import ROLLING_ROWS
from millrace.contracts.events import NOT_READ
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, OUTCOME, PAGE, SampleBatch
from millrace.versions.image import Array, below

BATCH_ROWS = 128
BATCH_MS = 250.0
"""Bounds of a micro-batch of the live learner: its rows, and how long the first of them waits for more."""

_LATE_TIMES, _LATE_LEAST = 2.0, 0.05  # late clicks to a negative: so many times what is usual, and so many at least
_LATE_ROWS, _USUAL_ROWS = 128, 8192  # negatives whose late clicks may come without them; that tell what is usual
_LATE = (_LATE_TIMES * _LATE_ROWS, 1.0)  # before anything is known

TRAINER = "trainer/"
"""Arrays of a snapshot whose names begin with it are a trainer's."""

Times = NDArray[np.int64]


class ClickCounts(NamedTuple):
    """Clicks that were learnt from, by wall time (Unix ms)."""

    sent_ms: Times  # (n,) when they were sent
    joined_ms: Times  # (n,) when their samples were made


class MicroBatch(NamedTuple):
    batch: SampleBatch  # B rows
    places: Places  # (B, 2) where its rows lie on the topic
    joined_ms: Times  # (B,) when its samples were made

    def take(self, rows: NDArray[np.bool_]) -> MicroBatch:
        """Some of the rows, (B,)."""
        return MicroBatch(self.batch.take(rows), self.places[rows], self.joined_ms[rows])


class Trainer:
    """Feeds ``model`` from a stream of sample batches, in micro-batches of at most ``batch_rows``.

    ``counts`` counts samples by outcome: "trained", "repeated", "follow_ups", "refused" (unusable label or weight),
    "left_out" (negatives not chosen), "bad_numbers", "not_finite" (predictions), "skipped" (rows in refused batches),
    "skipped:REASON" (batches), "unread" (of pages whose user was not read), "others" (of pages that are not its own),
    "alone" (late clicks without negatives). With a gate also "held_out", "absurd", "over_limit", "quarantined",
    "released", "discarded", "set_aside"
    (:mod:`learner.promotion.promotion`).

    Attributes:
        admit: chooses the new rows of a message to learn, (B,). Held-out pages, for one, are not learnt.
        beyond: the new rows of a message that are of users beyond their limit, (B,): no model learns them, and no
            figure counts them.
        diverted: whether pages of other models than its own are as if they were not there.
        outcomes: figures of the schema's outcomes, as ``progressive`` has those of the click, once some are told.
    """

    diverted = False
    admit: Callable[[SampleBatch, Places], NDArray[np.bool_]] | None = None
    beyond: Callable[[SampleBatch], NDArray[np.bool_]] | None = None

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
        self._pending: list[SampleBatch] = []
        self._joined: list[Times] = []  # of each pending row: when its sample was made
        self._places: list[Places] = []
        self._clicks: list[ClickCounts] = []
        self._late = _LATE  # late clicks that may be learnt now; that are usual to a negative

    @property
    def pending(self) -> int:
        return sum(len(b) for b in self._pending)

    def take(self, batch: SampleBatch, joined_ms: int = 0, offset: int = 0) -> None:
        """Queues what is new in a message, whose columns are those of the model's schema. ``joined_ms``:
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
        places = np.column_stack([np.full(len(rows), offset), rows])
        over = np.zeros(len(new), np.bool_) if self.beyond is None else self.beyond(new)
        if self.served is not None:
            self.served.take(new, over)
        if over.any():
            self.counts["over_limit"] += int(np.count_nonzero(over))
            new, places = new.take(~over), places[~over]
        if self.diverted and not (own := new.arm == OWN).all():
            self.counts["others"] += int((~own).sum())
            new, places = new.take(own), places[own]
        # An online store that is away for an hour would teach that a known user without his numbers clicks like all.
        if (unread := (new.user_missing & NOT_READ) > 0).any():
            self.counts["unread"] += int(np.count_nonzero(unread))
            new, places = new.take(~unread), places[~unread]
        if self.admit is not None:
            admitted = self.admit(new, places)
            if not admitted.all():
                new, places = new.take(admitted), places[admitted]
        if not (beside := self._beside(new)).all():
            new, places = new.take(beside), places[beside]
        if len(new):
            self.queue(new, places, np.full(len(new), joined_ms, np.int64))

    def _beside(self, batch: SampleBatch) -> NDArray[np.bool_]:
        """All but late clicks that are far more than usual for the negatives that came. (B,)

        A late click corrects a negative: learnt beside others, the two cancel. Where pages stop, as behind a scorer
        that is away, late clicks come alone for minutes. A model that learns nothing else expects clicks of everybody.
        """
        late, negatives = batch.kind == CORRECTION, int(np.count_nonzero(batch.kind == NEGATIVE))
        room, usual = self._late
        a_negative = _LATE_TIMES * max(usual, _LATE_LEAST)
        room += a_negative * negatives
        beyond: NDArray[np.bool_] = late & (np.cumsum(late) > room)
        alone = int(np.count_nonzero(beyond))
        learnt = int(np.count_nonzero(late)) - alone
        usual = (usual * _USUAL_ROWS + learnt) / (_USUAL_ROWS + negatives)
        self._late = min(room - learnt, a_negative * _LATE_ROWS), usual
        self.counts["alone"] += alone
        return ~beyond

    def queue(self, batch: SampleBatch, places: Places, joined_ms: Times) -> None:
        """Queues rows without any check."""
        self._pending.append(batch)
        self._places.append(places)
        self._joined.append(joined_ms)

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
        return self._cut(min(rows, self.batch_rows), self.model.by_page)

    def cut_at(self, places: Places) -> MicroBatch:
        """The micro-batch of just these rows, in any order. Raises SnapshotError where they are not the next ones."""
        queued = np.concatenate(self._places) if self._places else np.empty((0, 2), np.int64)
        if not same_rows(queued[: len(places)], places):
            raise SnapshotError(f"the next {len(places)} rows are not those that were learnt", "rules have changed")
        return self._cut(len(places))

    def _cut(self, size: int, by_page: bool = False) -> MicroBatch:
        whole, joined = SampleBatch.concat(self._pending), np.concatenate(self._joined)
        places = np.concatenate(self._places)
        if by_page:
            size = page_end(whole.page, whole.kind, whole.policy, size)
        batch, rest = whole.take(slice(0, size)), whole.take(slice(size, None))
        self._pending, self._joined, self._places = [], [], []
        if len(rest):
            self.queue(rest, places[size:], joined[size:])
        if self.served is not None:
            self.served.enter(self.model)
        return MicroBatch(batch, places[:size], joined[:size])

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

    def learn(self, cut: MicroBatch, vouched: bool = False) -> LearnReport:
        """Learns a micro-batch, and counts its outcome. ``vouched``: see :meth:`OnlineModel.learn`."""
        batch = cut.batch
        report = self.model.learn(batch, vouched)
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
        self._pending, self._joined, self._places = [], [], []
        self._late = _LATE
        self.repeats = Repeats(self.repeats.keep_ms)
        self._resume(training)

    def _resume(self, training: Mapping[str, Array]) -> None:
        own = below(TRAINER, training)
        if not own:
            return
        self.repeats.resume(own)
        self._late = tuple(own["late"].tolist()) if "late" in own else _LATE
        waiting = below("waiting/", own)
        if not waiting:
            return
        batch = SampleBatch.from_bytes(waiting["batch"].tobytes())
        layout = self.model.schema.layout
        if (batch.cat.shape[1], batch.num.shape[1]) == (layout.F, layout.N):
            self.queue(batch, waiting["places"].copy(), waiting["joined"].copy())
        else:  # of another schema; they were admitted, and are nowhere else
            self.counts["set_aside"] += len(batch)

    def snapshot(self, ordered: bool = True) -> dict[str, Array]:
        """What a snapshot keeps besides the model: the ids already learnt from, by default in order, and the rows that
        wait. Call it with the model's own snapshot. Rolling figures are not kept; they restart with a process."""
        own: dict[str, Array] = {**self.repeats.snapshot(ordered), "late": np.array(self._late)}
        if self._pending:
            batch = SampleBatch.concat(self._pending)
            own["waiting/batch"] = np.frombuffer(batch.to_bytes(), np.uint8)
            own["waiting/places"], own["waiting/joined"] = np.concatenate(self._places), np.concatenate(self._joined)
        return {f"{TRAINER}{n}": a for n, a in own.items()}

    def resume(self, training: Mapping[str, Array], counts: Mapping[str, Any]) -> None:
        """The inverse of :meth:`snapshot`, with the counts of the snapshot's announcement. Call it after the model's
        resume. Served pages of which the snapshot's process had seen something are not judged again. ``training``:
        arrays of a whole snapshot; the model's are ignored."""
        self._resume(training)
        if self.served is not None:
            self.served.begin_after(max(self.model.newest_ms, self.repeats.newest_ms))
        self.counts.update({name: int(value) for name, value in counts.items()})
