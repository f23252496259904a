"""A learner as the role drives it, with its topic in memory: for the tests of repair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Never

import numpy as np

from learner.evaluation.progressive import Progressive
from learner.gate.quarantine import Quarantine
from learner.promotion.promotion import Promotion
from learner.promotion.replay import Replay
from learner.ranker.repeats import Repeats
from learner.role.model_factory import model_of
from learner.samples.batch_reader import TopicMessage
from learner.training.decisionlog import places_of
from learner.training.learner_versions import FoundSnapshot, Progress, SnapshotFiles, Versions, newest_valid
from learner.training.trainer import Trainer
from millrace.basics.errors import SnapshotError
from millrace.basics.store import Store
from millrace.commands.repair.without import Without
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Decision, Learnt
from millrace.versions.modelstore import Announcement, ModelStore
from tests.scenes.learning import SCHEMA

HOUR_MS = 3_600_000
SPEC = {
    "model": "wide_resnet_bn",
    "hidden": [8, 8],
    "width": 2,
    "max_rows": 40,
    "max_age_days": 0.01,  # 14 minutes
    "retrieval_width": 4,
}


class MemoryTopic:
    """Messages of ``samples`` by offset, which counts up."""

    def __init__(self) -> None:
        self.messages: dict[int, bytes] = {}
        self.begins = 0

    def send(self, batch: SampleBatch) -> int:
        offset = len(self.messages)
        self.messages[offset] = batch.to_bytes()
        return offset

    def first(self) -> int:
        return self.begins

    def open(self, wanted: range) -> MemoryTopic._Reading:
        offsets = [offset for offset in self.messages if offset in wanted and offset >= self.begins]
        return self._Reading([TopicMessage(offset, self.messages[offset]) for offset in sorted(offsets)])

    class _Reading:
        def __init__(self, left: list[TopicMessage]) -> None:
            self._left = left[::-1]

        def more(self) -> Sequence[TopicMessage]:
            return [self._left.pop()] if self._left else []

        def close(self) -> None: ...


def decode(message: TopicMessage) -> SampleBatch:
    return SampleBatch.from_bytes(message.value)


class _NothingBehind:
    """Samples behind a snapshot that has all that was read."""

    def upto(self, stop: int) -> Iterator[Never]:
        raise SnapshotError(f"offset {stop - 1} was never read", "it is read when it comes")


class Live:
    """Trainer, versions and store as the role connects them. ``script`` has what was done: ("take", offset)
    and ("act", act); ``at`` how much of it each snapshot came after."""

    def __init__(self, folder: str | Path, topic: MemoryTopic, spec: Mapping[str, Any] = SPEC) -> None:
        self.topic, self.spec = topic, spec
        self.store = ModelStore(folder)
        self.script: list[tuple[Any, ...]] = []
        self.at: dict[int, int] = {}
        self._start(None)

    def _start(self, found: FoundSnapshot | None) -> None:
        model = model_of(SCHEMA, self.spec, 0) if found is None else found.model
        self.trainer = Trainer(model, Progressive(1000), Repeats(HOUR_MS), 64)
        self.offset: int | None = None
        if found is not None:
            self.trainer.resume(found.training, found.note.extra["counts"])
            self.offset = found.note.offset
        highest = self.store.highest()
        self.versions = Versions(model, highest.epoch + 1, version=highest.number)
        quarantine = Quarantine(Store(f"{self.store.url}-quarantine"), SCHEMA.id)
        self.gate = Promotion(self.trainer, self.versions, self.store, None, quarantine, self._build, self._progress)
        self._watched()
        possible = self.gate.begin(found)
        Replay(self.gate.state, self.store, _NothingBehind()).run([], possible)
        root = self.gate.start(0)
        assert root is not None
        self.at[root.note.version] = len(self.script)

    def _watched(self) -> None:
        log = self.gate.state.log
        append = log.append

        def noted(what: Decision, ms: int) -> int:
            if isinstance(what, Learnt):
                self.script.append(("act", what))
            return append(what, ms)

        log.append = noted  # type: ignore[method-assign]

    def _build(self, note: Announcement, parts: Any) -> Any:
        model = model_of(SCHEMA, note.spec, 0)
        model.resume(parts)
        return model

    def _progress(self) -> Progress:
        counts = dict(self.trainer.counts)
        return Progress(counts.get("trained", 0), self.offset, "", {"counts": counts})

    def take(self, batch: SampleBatch) -> None:
        """A message is sent, and read."""
        offset = self.topic.send(batch)
        self.script.append(("take", offset))
        self.trainer.take(decode(TopicMessage(offset, self.topic.messages[offset])), 0, offset)
        self.offset = offset + 1

    def learn(self, rows: int) -> None:
        """One micro-batch of so many rows at most, if any row waits."""
        self.trainer.batch_rows = rows
        self.gate.step(drain=True)
        self.gate.state.clicks.clear()  # nobody waits for them here

    def drain(self) -> None:
        while self.trainer.pending:
            self.learn(self.trainer.batch_rows)

    def delta(self, retrieval: bool) -> None:
        self.gate.delta(0, retrieval=retrieval)

    def snapshot(self) -> None:
        """As the role does it, if one is due: in slices, drained, right behind a delta."""
        self.drain()
        self.gate.delta(0)  # no two snapshots begin at one version
        if not self.versions.snapshot_due:
            return
        slices = self.versions.begin(16)
        files = SnapshotFiles(self.store, self.versions.place)
        while (part := slices.next()) is not None:
            files.add(part)
        self.drain()
        self.gate.delta(0)
        last = self.gate.finish(slices, 0)
        assert last is not None
        note = files.end(last)
        self.gate.written(note)
        self.at[note.version] = len(self.script)

    def restart(self) -> None:
        """Ends in good order, and goes on from its newest snapshot."""
        self.snapshot()
        self._start(newest_valid(self.store, SCHEMA.id, {}, self._build))


def twin(live: Live, start: Announcement, without: Without) -> Trainer:
    """A trainer that was given the same topic, from which rows were taken that came after ``start``, and the same
    cuts."""
    trainer = Trainer(model_of(SCHEMA, live.spec, 0), Progressive(1000), Repeats(HOUR_MS), 64)
    for k, (what, *args) in enumerate(live.script):
        late = k >= live.at[start.version]
        if what == "take":
            (offset,) = args
            batch = decode(TopicMessage(offset, live.topic.messages[offset]))
            stay = ~without.rows(batch) if late else np.ones(len(batch), np.bool_)
            trainer.take(batch.take(stay), 0, offset)
        elif isinstance(args[0], Learnt):
            places = places_of(args[0].spans)
            rows = [
                decode(TopicMessage(offset, live.topic.messages[offset])).take(np.array([row]))
                for offset, row in places.tolist()
            ]
            gone = without.rows(SampleBatch.concat(rows)) if late else np.zeros(len(rows), np.bool_)
            trainer.batch_rows = int(len(rows) - gone.sum())
            if trainer.batch_rows:
                trainer.step(drain=True)
    return trainer
