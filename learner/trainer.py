# core
"""The learner without its shell: samples in, a model that has predicted each of them and then learnt from it.

::

    message ──► drop what was seen ──► pending ──(batch_rows, or drain)──► predict ──► judge ──► learn
                                                                         rolling figures     OnlineModel
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from learner.model import LearnReport, OnlineModel
from learner.progressive import Progressive, baseline_column
from learner.repeats import Repeats, exposure_ids
from learner.segments import Drift, Segments
from learner.unsettled import Unsettled
from millrace.contracts.modelstore import Array
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, SampleBatch

_PREFIX = "trainer/"


class Trainer:
    """Feeds ``model`` from a stream of sample batches, in micro-batches of at most ``batch_rows``.

    Where each exposure comes as a negative at once (``delayed_feedback``), a prediction is judged when its click comes,
    or ``wait_ms`` of event time later.

    ``counts`` has what became of samples: "trained", "repeated", "follow_ups", "refused" (unusable label or weight),
    "left_out" (negatives not chosen), "bad_numbers", "skipped" (rows in refused batches), "skipped:REASON" (batches).
    """

    def __init__(
        self,
        model: OnlineModel,
        progressive: Progressive,
        repeats: Repeats,
        batch_rows: int,
        segments: Segments | None = None,
        wait_ms: int = 300_000,
    ) -> None:
        self.model, self.progressive, self.repeats = model, progressive, repeats
        self.batch_rows = batch_rows
        self.segments, self.drift = segments, Drift()
        fake = model.spec["delayed_feedback"] == "fake_negative_weighted"
        self.unsettled = Unsettled(wait_ms) if fake else None
        self.counts: Counter[str] = Counter()
        self.origins: list[int] = []  # of clicks learnt from; the publisher empties it
        self._pending: list[SampleBatch] = []
        self._baseline = baseline_column(model.schema)

    @property
    def pending(self) -> int:
        """Rows taken and not yet learnt from."""
        return sum(len(b) for b in self._pending)

    def fits(self, batch: SampleBatch) -> bool:
        """Whether the batch has the feature columns of the model's schema."""
        layout = self.model.schema.layout
        return (batch.cat.shape[1], batch.num.shape[1]) == (layout.F, layout.N)

    def take(self, batch: SampleBatch) -> None:
        """Queues what is new in a message. The caller has checked that it :meth:`fits`."""
        fresh = self.repeats.first_time(batch)
        self.counts["repeated"] += int(len(batch) - fresh.sum())
        follow = batch.kind == FOLLOW_UP
        self.counts["follow_ups"] += int((fresh & follow).sum())
        fresh &= ~follow
        if fresh.any():
            self._pending.append(batch if fresh.all() else batch.take(fresh))

    def step(self, drain: bool = False) -> LearnReport | None:
        """Predicts, judges and learns one micro-batch.

        Args:
            drain: also one that is not full.

        Returns:
            What became of it; None when there are not rows enough. Call again until then.
        """
        rows = self.pending
        if not rows or (rows < self.batch_rows and not drain):
            return None
        whole = SampleBatch.concat(self._pending)
        batch, rest = whole.take(slice(0, self.batch_rows)), whole.take(slice(self.batch_rows, None))
        self._pending = [rest] if len(rest) else []
        self._judge(batch)
        report = self.model.learn(batch)
        self.counts["trained"] += report.rows
        self.counts["refused"] += report.refused
        self.counts["left_out"] += report.left_out
        self.counts["bad_numbers"] += report.bad_numbers
        if report.skipped is not None:
            self.counts["skipped"] += len(batch) - report.refused - report.left_out
            self.counts[f"skipped:{report.skipped}"] += 1
        else:
            self.origins.extend(batch.origin_ms[batch.origin_ms > 0].tolist())
        return report

    def _judge(self, batch: SampleBatch) -> None:
        """Judges predictions. A correction is not judged: its exposure was judged as a negative, or waits for it."""
        clicked = batch.take((batch.kind == CORRECTION) & (batch.label > 0)) if self.unsettled is not None else None
        with np.errstate(invalid="ignore"):
            judged = (batch.kind != CORRECTION) & (batch.label >= 0) & (batch.label <= 1)
        if not judged.all():
            batch = batch.take(judged)
        if len(batch):
            p = self.model.score(batch.cat, batch.num)
            baseline = None if self._baseline is None else np.nan_to_num(batch.num[:, self._baseline])
            segments = None if self.segments is None else self.segments.members(batch, self.model)
            if not np.isfinite(p).all():
                return
            if self.unsettled is None:
                self._take_in(p, batch.label, baseline, batch.user, segments)
            else:
                self._keep(self.unsettled, batch, p, baseline, segments)
        if self.unsettled is not None and clicked is not None:
            user, values, label = self.unsettled.settle(exposure_ids(clicked))
            if len(label):
                known = None if self._baseline is None else values[:, 1]
                self._take_in(values[:, 0], label, known, user, values[:, 2:] > 0)

    def _keep(
        self,
        unsettled: Unsettled,
        batch: SampleBatch,
        p: Array,
        baseline: Array | None,
        segments: Array | None,
    ) -> None:
        """Keeps predictions until their labels are known. A click that came first has its label already."""
        columns = [p, np.zeros(len(p)) if baseline is None else baseline]
        values = np.column_stack(columns if segments is None else [*columns, segments]).astype(np.float64)
        at_once = batch.label > 0
        if at_once.any():
            known = None if baseline is None else baseline[at_once]
            own = None if segments is None else segments[at_once]
            self._take_in(p[at_once], batch.label[at_once], known, batch.user[at_once], own)
        rest = ~at_once
        unsettled.add(exposure_ids(batch)[rest], batch.ts_ms[rest], batch.user[rest], values[rest])

    def _take_in(self, p: Array, label: Array, baseline: Array | None, user: Array, segments: Array | None) -> None:
        self.progressive.update(p, label, baseline)
        self.drift.update(p, label)
        if self.segments is not None and segments is not None:
            self.segments.update(p, label, user, segments)

    def snapshot(self) -> dict[str, Array]:
        """What a snapshot keeps besides the model: the ids already learnt from.

        Called with the model's own snapshot, when nothing is pending: a pending row counts as seen, but no weight has
        seen it. Rolling figures are not kept; they begin anew with a process.
        """
        return {f"{_PREFIX}{n}": a for n, a in self.repeats.snapshot().items()}

    def resume(self, training: Mapping[str, Array], counts: Mapping[str, Any]) -> None:
        """The inverse of :meth:`snapshot`, with the counts that the snapshot's announcement carries.

        Args:
            training: arrays of a whole snapshot; those of the model are passed over.
        """
        own = {n.removeprefix(_PREFIX): a for n, a in training.items() if n.startswith(_PREFIX)}
        if own:
            self.repeats.resume(own)
        self.counts.update({name: int(value) for name, value in counts.items()})
