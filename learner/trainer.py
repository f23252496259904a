# core
"""The learner without its shell: samples in, a model that has predicted each of them and then learnt from it.

::

    message ──► drop what was seen ──► pending ──(batch_rows, or drain)──► predict ──► judge ──► learn
                       │                                                          Progressive    OnlineModel
                       └──► the scores that pages were served with ──► Served

Two questions are answered apart: what the learner predicts when it learns (:mod:`learner.progressive`), and how good
the served pages were (:mod:`learner.served`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.model import LearnReport
from learner.progressive import Progressive
from learner.repeats import Repeats
from learner.served import Served
from learner.verbs import Learning
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, SampleBatch
from millrace.versions.image import Array, below

_PREFIX = "trainer/"

Times = NDArray[np.int64]


class Clicks(NamedTuple):
    """Clicks that were learnt from, by wall time (Unix ms)."""

    sent_ms: Times  # (n,) when they were sent
    joined_ms: Times  # (n,) when their samples were made


class Trainer:
    """Feeds ``model`` from a stream of sample batches, in micro-batches of at most ``batch_rows``.

    ``counts`` has what became of samples: "trained", "repeated", "follow_ups", "refused" (unusable label or weight),
    "left_out" (negatives not chosen), "bad_numbers", "not_finite" (predictions), "skipped" (rows in refused batches),
    "skipped:REASON" (batches).
    """

    def __init__(
        self,
        model: Learning,
        progressive: Progressive,
        repeats: Repeats,
        batch_rows: int,
        served: Served | None = None,
    ) -> None:
        self.model, self.progressive, self.repeats, self.served = model, progressive, repeats, served
        self.batch_rows = batch_rows
        self.counts: Counter[str] = Counter()
        self._pending: list[SampleBatch] = []
        self._joined: list[Times] = []  # of each pending row: when its sample was made
        self._clicks: list[Clicks] = []

    @property
    def pending(self) -> int:
        """Rows taken and not yet learnt from."""
        return sum(len(b) for b in self._pending)

    def fits(self, batch: SampleBatch) -> bool:
        """Whether the batch has the feature columns of the model's schema."""
        layout = self.model.schema.layout
        return (batch.cat.shape[1], batch.num.shape[1]) == (layout.F, layout.N)

    def take(self, batch: SampleBatch, partition: int = 0, joined_ms: int = 0) -> None:
        """Queues what is new in a message of a partition. The caller has checked that it :meth:`fits`.

        Args:
            joined_ms: when the message was made (wall time), for tracing alone.
        """
        fresh = self.repeats.first_time(batch)
        self.counts["repeated"] += int(len(batch) - fresh.sum())
        follow = batch.kind == FOLLOW_UP
        self.counts["follow_ups"] += int((fresh & follow).sum())
        fresh &= ~follow
        if fresh.any():
            new = batch if fresh.all() else batch.take(fresh)
            self._pending.append(new)
            self._joined.append(np.full(len(new), joined_ms, np.int64))
            if self.served is not None:
                self.served.take(new, partition)

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
        whole, joined = SampleBatch.concat(self._pending), np.concatenate(self._joined)
        batch, rest = whole.take(slice(0, self.batch_rows)), whole.take(slice(self.batch_rows, None))
        self._pending = [rest] if len(rest) else []
        self._joined = [joined[self.batch_rows :]] if len(rest) else []
        if self.served is not None:
            self.served.enter(self.model)
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
            clicked = batch.origin_ms > 0
            self._clicks.append(Clicks(batch.origin_ms[clicked], joined[: self.batch_rows][clicked]))
        return report

    def take_clicks(self) -> Clicks:
        """The clicks learnt from since the last call."""
        clicks, self._clicks = self._clicks, []
        if not clicks:
            return Clicks(np.empty(0, np.int64), np.empty(0, np.int64))
        return Clicks(np.concatenate([c.sent_ms for c in clicks]), np.concatenate([c.joined_ms for c in clicks]))

    def _judge(self, batch: SampleBatch) -> None:
        """Judges predictions. A correction is not judged: its exposure was judged as a negative."""
        with np.errstate(invalid="ignore"):
            judged = (batch.kind != CORRECTION) & (batch.label >= 0) & (batch.label <= 1)
        if not judged.all():
            batch = batch.take(judged)
        if len(batch):
            p = self.model.score(batch.cat, batch.num)
            if wrong := int(len(p) - np.isfinite(p).sum()):
                self.counts["not_finite"] += wrong
            self.progressive.update(p, batch.label)

    def snapshot(self, ordered: bool = True) -> dict[str, Array]:
        """What a snapshot keeps besides the model: the ids already learnt from, in order unless told otherwise.

        Called with the model's own snapshot, when nothing is pending: a pending row counts as seen, but no weight has
        seen it. Rolling figures are not kept; they begin anew with a process.
        """
        return {f"{_PREFIX}{n}": a for n, a in self.repeats.snapshot(ordered).items()}

    def resume(self, training: Mapping[str, Array], counts: Mapping[str, Any]) -> None:
        """The inverse of :meth:`snapshot`, with the counts that the snapshot's announcement carries.

        The model has been resumed before. Served pages that the snapshot's process had seen something of are not
        judged again.

        Args:
            training: arrays of a whole snapshot; those of the model are passed over.
        """
        own = below(_PREFIX, training)
        if own:
            self.repeats.resume(own)
        if self.served is not None:
            self.served.begin_after(max(self.model.newest_ms, self.repeats.newest_ms))
        self.counts.update({name: int(value) for name, value in counts.items()})
