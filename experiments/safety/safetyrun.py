# core
"""A learner behind its gate and the scorer that follows it, in one process, without Kafka and without a clock.

::

    moment ──► shown rows ──► Scorer.score ──► what was served, against the clean truth
          └──► batch ──(poison)──► Trainer.take ─► Promotion.step ─► .delta ──► Scorer.take
                                                              └─ every so often a snapshot, judged before it ends

All parts are those that the roles run (:mod:`learner.promotion.promotion`), and versions come to the scorer as bodies.
Time is event time. A twin goes through the same moments without the poison, behind the same gate.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.safety.safetyworld import BATCH_ROWS, Moment
from learner.evaluation.progressive import Progressive
from learner.gate.checks import Checks
from learner.gate.quarantine import PLACE, Quarantine
from learner.gate.verdicts import GateRefusal
from learner.promotion.promotion import Promotion, Published
from learner.ranker.interfaces import Learning
from learner.ranker.repeats import Repeats, keep_ms_of
from learner.role.model_factory import model_of
from learner.serving.serving_model import ServingModel
from learner.training.learner_versions import FoundSnapshot, Progress, SnapshotFiles, Versions, newest_valid
from learner.training.trainer import Trainer
from millrace.basics.ranking_metrics import ROLLING_ROWS, auc
from millrace.basics.store import Store
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.versions import decisions
from millrace.versions.image import Array, Image, split
from millrace.versions.modelstore import Announcement, ModelStore
from millrace.versions.packing import unpack


class Pace(NamedTuple):
    """After how many micro-batches a life publishes."""

    delta: int = 1
    dense: int = 4  # a delta with the network
    snapshot: int = 16


_PACE = Pace()
WINDOW_ROWS = 8192  # that one AUC is of

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Scorer:
    """What is served: the versions that were published, applied one by one.

    Attributes:
        not_finite: scores that were not finite.
        bad_numbers: numbers in published versions that were not finite.
    """

    def __init__(self, schema: Schema, store: ModelStore) -> None:
        self._schema, self._store = schema, store
        self._model: ServingModel | None = None
        self.not_finite = self.bad_numbers = 0

    def take(self, published: Published) -> None:
        """Serves the next version."""
        if published.body is None:
            parts = [image for image, _ in self._store.read_whole(published.note)]
            self._look(parts)
            self._model = ServingModel.of(self._schema, published.note.spec, [split(image)[0] for image in parts])
        else:
            assert self._model is not None
            delta = unpack(published.body, self._model.dense())
            self._look([delta])
            self._model.patch(split(delta)[0])

    def _look(self, images: Iterable[Image]) -> None:
        for image in images:
            for array in image.tensors().values():
                if array.dtype.kind == "f":
                    self.bad_numbers += int(array.size - np.isfinite(array).sum())

    def score(self, cat: Ids, num: Floats) -> Floats:
        """Probabilities (n,) as a scorer serves them: what is not finite reads 0."""
        assert self._model is not None
        with np.errstate(invalid="ignore", over="ignore"):
            p = self._model.score(cat, num)
        self.not_finite += int(len(p) - np.isfinite(p).sum())
        return np.nan_to_num(p, nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(slots=True)
class Log:
    """What became of a life."""

    refused: list[tuple[int, GateRefusal]] = field(default_factory=list)  # event time, and why
    rows: int = 0  # that came

    def by_check(self) -> dict[str, int]:
        """Refusals by check."""
        return dict(sorted(Counter(why.check for _, why in self.refused).items()))


class Life:
    """A learner and a scorer.

    Args:
        folder: of their data; it must not be there yet.
        origin: the data of a life that has ended, which this one goes on from.
        gate: whether anything is judged.
        serves: whether pages are scored. What the gate says does not depend on it.
    """

    def __init__(
        self,
        schema: Schema,
        folder: Path,
        origin: Path | None = None,
        gate: bool = True,
        pace: Pace = _PACE,
        serves: bool = True,
    ) -> None:
        if origin is not None:
            shutil.copytree(origin, folder)
        self._settings = settings = Settings(data=str(folder), gate="on" if gate else "off")
        self.pace, self.folder, self.store, self.serves = pace, folder, ModelStore(settings.place("models")), serves
        self.log = Log()

        def build(note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
            model = model_of(schema, note.spec, 0)
            model.resume(parts)
            return model

        found: FoundSnapshot | None = newest_valid(self.store, schema.id, {}, build)
        model = model_of(schema, {}, 0) if found is None else found.model
        trainer = self.trainer = Trainer(model, Progressive(ROLLING_ROWS), Repeats(keep_ms_of(settings)), BATCH_ROWS)
        if found is not None:
            trainer.resume(found.training, found.note.extra.get("counts", {}))
        self.versions = Versions(model, epoch=1, version=self.store.highest().number)
        checks, quarantine = Checks.of(settings, schema), Quarantine(Store(settings.place(PLACE)), schema.id)
        self.promotion = Promotion(trainer, self.versions, self.store, checks, quarantine, build, self._progress)
        self._messages: dict[int, SampleBatch] = {}  # what may be learnt again
        self.promotion.state.restorer.read_again = self._again
        self.promotion.state.quarantine.samples_log = folder.name  # what a life before refused is nowhere
        self.promotion.begin(found)
        self.scorer = Scorer(schema, self.store)
        self._batches = self._noted = 0
        self._snapshot_due = False
        self._publish(self.promotion.start(self._now_ms))

    @property
    def _now_ms(self) -> int:
        return self.trainer.model.newest_ms

    def _progress(self) -> Progress:
        return Progress(self.trainer.counts["trained"], extra={"counts": dict(self.trainer.counts)})

    def learn(self, batch: SampleBatch) -> None:
        """Learns what has come, and publishes what may go out."""
        self._batches += 1
        self.log.rows += len(batch)
        promotion = self.promotion
        self._messages[self._batches] = batch
        promotion.take(batch, 0, self._batches)
        while promotion.step(drain=True) is not None or promotion.commands.learn_some():
            pass
        if self._batches % self.pace.delta == 0:
            dense = self._batches % self.pace.dense == 0
            self._snapshot_due |= self._batches % self.pace.snapshot == 0
            self._publish(promotion.delta(self._now_ms, dense, dense, ends=self._snapshot_due))
            promotion.make_durable()
            if self._snapshot_due and promotion.at_mark:
                self._snapshot_due = False
                self.snapshot()
        if promotion.write_private(self._now_ms):  # in a hold
            self._forget()
        self._note_refusals()

    def snapshot(self) -> None:
        """Writes a snapshot, if it passes."""
        promotion, versions = self.promotion, self.versions
        promotion.end_stretch()
        self._publish(promotion.delta(self._now_ms, True, True))
        if not (promotion.publishing and promotion.at_mark and versions.snapshot_ready and versions.snapshot_due):
            return
        slices, files = versions.begin(), SnapshotFiles(self.store, versions.place)
        while (part := slices.next()) is not None and promotion.passes(part):
            files.add(part)
        last = promotion.finish(slices, self._now_ms) if part is None else None
        if last is None:
            slices.abandon()
            files.give_up()
            versions.snapshot_lost()
            promotion.written(None)
            self._publish(promotion.delta(self._now_ms))
        else:
            promotion.written(files.end(last))
            self.store.prune(epoch=versions.epoch)
            self._forget()

    def _again(self, learnt: Sequence[decisions.Learnt]) -> Iterator[SampleBatch]:
        for one in learnt:
            yield SampleBatch.concat([self._messages[s.offset].take(slice(s.first, s.stop)) for s in one.spans])

    def _forget(self) -> None:
        """Lets go of messages that nothing in quarantine is of; the snapshot has the others."""
        quarantine = self.promotion.state.quarantine
        needed = {span.offset for entry in quarantine.entries() for span in quarantine.spans(entry.name)}
        self._messages = {offset: batch for offset, batch in self._messages.items() if offset in needed}

    def _publish(self, published: Published | None) -> None:
        if published is not None and self.serves:
            self.scorer.take(published)

    def _note_refusals(self) -> None:
        for n, ms, what in ((one.n, one.ms, one.what) for one in self.promotion.state.log.notable):
            if n > self._noted and isinstance(what, decisions.Refused):
                self.log.refused.append((ms, GateRefusal(what.check, what.value, what.bound, what.what)))
        self._noted = self.promotion.state.log.newest


class Served(NamedTuple):
    """What was shown while a life went through moments. n rows."""

    p: Floats  # (n,)
    clicked: NDArray[np.bool_]  # (n,)

    def aucs(self, rows: int = WINDOW_ROWS) -> NDArray[np.float64]:
        """AUC of consecutive windows; a rest is left out. (n // rows,)"""
        ends = range(rows, len(self.p) + 1, rows)
        return np.array([auc(self.p[end - rows : end], self.clicked[end - rows : end]) for end in ends])


def live(
    life: Life, moments: Iterable[Moment], spoil: Callable[[SampleBatch], SampleBatch] = lambda batch: batch
) -> Served:
    """Goes through moments: pages are scored with what serves, then samples are learnt. ``spoil`` poisons a
    micro-batch."""
    p, clicked = [np.empty(0, np.float32)], [np.empty(0, np.bool_)]
    for moment in moments:
        if life.serves and len(moment.cat):
            p.append(life.scorer.score(moment.cat, moment.num))
            clicked.append(moment.clicked)
        if moment.batch is not None:
            batch = spoil(moment.batch)
            if len(batch):
                life.learn(batch)
    return Served(np.concatenate(p), np.concatenate(clicked))


def loss(twin: Served, other: Served, rows: int = WINDOW_ROWS) -> float:
    """How far the AUC of what was served fell below the twin's, in the worst of consecutive windows."""
    return float((twin.aucs(rows) - other.aucs(rows)).max())
