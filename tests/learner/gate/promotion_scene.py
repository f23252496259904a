"""A learner with a gate, without Kafka: its store, a scorer that follows, and checks whose verdicts a test plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from learner.evaluation.progressive import Progressive
from learner.gate.checks import Checks
from learner.gate.heldout import Heldout, Judgement
from learner.gate.median_clock import MedianClock
from learner.gate.quarantine import Quarantine
from learner.gate.quota import Quota
from learner.gate.screen import Screen
from learner.gate.shift import Shift
from learner.gate.verdicts import GateRefusal
from learner.promotion.promotion import Promotion, Published
from learner.promotion.promotion_status import promotion_status
from learner.promotion.replay import Replay
from learner.ranker.interfaces import Learning, Predicting
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.samples.batch_reader import SampleMessage
from learner.training.decisionlog import Places, places_of
from learner.training.learner_versions import FoundSnapshot, Progress, SnapshotFiles, Versions, newest_valid
from learner.training.trainer import Trainer
from millrace.basics.errors import BrokerError, SnapshotError
from millrace.basics.store import Store
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.decisions import Decided, Learnt, LogPart, decode_decisions, in_force
from millrace.versions.image import Image
from millrace.versions.modelstore import Announcement, Array, ModelStore, Place
from millrace.versions.packing import unpack
from tests.scenes.learning import SCHEMA, START_MS, make_samples

SPEC: dict[str, Any] = {
    "model": "wide_resnet",
    "hidden": [8, 8],
    "width": 4,
    "retrieval_width": 4,
    "max_rows": 60,
    "admit": 2,
}
MINUTE_MS = 60_000
BATCH = 32
POISON = "poison"
"""A batch whose request says so is refused by the planned screen."""


class PlannedScreen(Screen):
    """Refuses a batch with a poisoned page in it."""

    warm = False  # it has no bounds

    def __init__(self) -> None:
        self.told: list[str] = []
        self.looks = 0

    def absurd(self, batch: SampleBatch) -> Any:
        return batch.ts_ms > START_MS + 10**11

    def look(self, batch: SampleBatch, p: Any) -> GateRefusal | None:
        self.looks += 1
        poisoned = any(batch.request[page].startswith(POISON) for page in np.unique(batch.page))
        return GateRefusal("labels", 3.0, 1.6) if poisoned else None

    def learnt(self, batch: SampleBatch, p: Any) -> None:
        self.told.append("learnt")

    def promoted(self) -> None:
        self.told.append("promoted")

    def went_back(self) -> None:
        self.told.append("went_back")

    def rebase(self) -> None:
        self.told.append("rebase")

    def snapshot(self) -> dict[str, Array]:
        return {}

    def resume(self, state: Mapping[str, Array]) -> None:
        pass


class PlannedShift(Shift):
    """Due after ``stretch`` rows; refuses where ``refuses`` says so."""

    def __init__(self, stretch: int) -> None:
        self.stretch, self.rows, self.refuses, self.rebased = stretch, 0, False, 0
        self.clock, self._new_ms = MedianClock(), 0

    def meet(self, batch: SampleBatch) -> None:
        pass

    def learnt(self, rows: int) -> None:
        self.rows += rows

    @property
    def due(self) -> bool:
        return self.rows >= self.stretch

    def look(self, model: Predicting) -> GateRefusal | None:
        return GateRefusal("shift", 0.2, 0.06) if self.refuses else None

    def promoted(self, model: Predicting) -> None:
        self.rows = 0

    def went_back(self) -> None:
        self.rows = 0

    def rebase(self, model: Predicting) -> None:
        self.rows, self.rebased = 0, self.rebased + 1

    def snapshot(self) -> dict[str, Array]:
        return {"rows": np.array([self.rows])}

    def resume(self, state: Mapping[str, Array]) -> None:
        self.rows = int(state["rows"][0])


class PlannedHeldout(Heldout):
    """Holds out pages that say so; judges as it is told."""

    def __init__(self) -> None:
        self.refusal: GateRefusal | None = None
        self._rate, self.base = 0.0, 0.01
        self.taken = self.rebased = 0
        self.spoilt_from: list[int] = []

    @property
    def told(self) -> dict[str, list[Any]]:
        return {}

    def held(self, batch: SampleBatch) -> Any:
        mine = np.array([request.startswith("held") for request in batch.request])
        return mine[batch.page]

    def holds(self, page: Any, ts_ms: Any) -> Any:
        return np.zeros(len(page), np.bool_)

    def take(self, batch: SampleBatch) -> None:
        self.taken += len(batch)

    def judge(self, model: Predicting, new_items: bool = False) -> Judgement:
        if new_items:
            return super().judge(model, new_items)
        return Judgement(self.refusal, 9000, 0.7, 0.71, 0.3, 0.3, 0.01)

    def looked(self) -> None:
        pass

    def promoted(self, model: Predicting) -> None:
        pass

    def spoilt(self, from_ms: int) -> None:
        self.spoilt_from.append(from_ms)

    def rebase(self, model: Predicting) -> None:
        self.rebased += 1

    def snapshot(self) -> dict[str, Array]:
        return {}

    def resume(self, state: Mapping[str, Array]) -> None:
        pass


def build(note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
    model = OnlineModel(SCHEMA, note.spec, 0)
    model.resume(parts)
    return model


class Broker:
    """What outlives a learner beside its store: the topic of samples, and the decisions that it was sent."""

    def __init__(self) -> None:
        self.samples: dict[int, SampleBatch] = {}
        self.decided: list[Decided] = []
        self.first = 0  # offset of the oldest message that retention has left
        self.at = 0  # the next that a learner reads again
        self.loses, self.lost = 0, False  # how many messages of decisions it loses next; whether it has
        self.away = False  # whether it gives no samples again
        self.write: Callable[[], None] = lambda: None  # called before each write

    def decide(self, part: LogPart) -> None:
        self.write()
        if self.loses:
            self.loses, self.lost = self.loses - 1, True
        else:
            self.decided += part.decided

    def decide_durably(self, part: LogPart) -> None:
        self.decide(part)
        if self.lost:
            self.lost = False
            raise BrokerError("a message was lost", "it is sent again")

    def upto(self, stop: int) -> Iterator[SampleMessage]:
        while self.at < stop:
            if self.at < self.first:
                raise SnapshotError("samples are gone", "keep them longer")
            yield SampleMessage(self.samples[self.at], self.at)
            self.at += 1

    def learnt_again(self, learnt: Sequence[Learnt]) -> Iterator[SampleBatch]:
        for one in learnt:
            if self.away:
                raise BrokerError("broker 'x' does not answer", "start it")
            if any(span.offset < self.first for span in one.spans):
                raise SnapshotError("samples are gone", "keep them longer")
            yield SampleBatch.concat([self.samples[s.offset].take(slice(s.first, s.stop)) for s in one.spans])


@dataclass
class Scene:
    """One life of a learner on the store in ``folder``."""

    folder: Path
    stretch: int = 128
    gate: bool = True
    observe: bool = False
    spec: dict[str, Any] = field(default_factory=lambda: dict(SPEC))
    schema: Schema = SCHEMA
    broker: Broker = field(default_factory=Broker)
    visitors: dict[str, int] = field(default_factory=dict)  # rows an hour of a user
    share: float = 0.01  # of held-out pages: another one is another rule
    refuses: bool = False  # whether the first look at a stretch refuses
    replayed: Callable[[Scene], None] = lambda scene: None  # called when decisions were done again
    first: Announcement | None = None  # the first snapshot of a story

    def __post_init__(self) -> None:
        self.store = ModelStore(self.folder / "models")
        found: FoundSnapshot | None = newest_valid(self.store, self.schema.id, {}, build, held=True)
        model = OnlineModel(self.schema, self.spec, 0) if found is None else found.model
        self.trainer = Trainer(model, Progressive(1000), Repeats(10**9), BATCH)
        self.messages = self.broker.samples
        self.offset = 0
        if found is not None:
            self.trainer.resume(found.training, found.note.extra.get("counts", {}))
            self.offset = found.note.offset or 0
        self.versions = Versions(model, 1, "me", self.store.highest().number)
        self.screen, self.shift, self.heldout = PlannedScreen(), PlannedShift(self.stretch), PlannedHeldout()
        self.shift.refuses, self.heldout.base = self.refuses, self.share
        quota = Quota(self.schema, {})
        checks = Checks(
            self.screen,
            quota,
            Quota(self.schema, self.visitors),
            self.shift,
            self.heldout,
            60 * MINUTE_MS,
            observe=self.observe,
        )
        self.served = Image({}, {})
        self.sent: list[Announcement] = []
        self.quarantine = Quarantine(Store(self.folder / "quarantine"), self.schema.id)
        judging = checks if self.gate else None
        self.promotion = Promotion(
            self.trainer, self.versions, self.store, judging, self.quarantine, build, self.progress
        )
        self.promotion.durable = self.broker.decide_durably
        self.promotion.state.restorer.read_again = self.broker.learnt_again
        possible = self.promotion.begin(found)
        log = self.promotion.state.log
        self.replay = Replay(self.promotion.state, self.store, self.broker)
        behind, _ = in_force(self.broker.decided, log.newest)
        self.broker.at = self.offset
        self.replay.run(self.broker.decided, possible)
        self.begun_at = behind[self.replay.done - 1].n if self.replay.done else log.newest - 1
        self.offset = max(self.broker.at, self.broker.first)
        self.replayed(self)
        root = self.promotion.start(0)
        if root is not None:
            self._send(root)

    def again(self, **changes: Any) -> Scene:
        """The next life, after this one was killed."""
        kept = ("visitors", "stretch", "gate", "observe", "spec", "schema", "broker", "share", "first")
        return Scene(self.folder, **{name: getattr(self, name) for name in kept} | changes)

    def progress(self) -> Progress:
        counts = dict(self.trainer.counts)
        return Progress(counts.get("trained", 0), self.offset, "", {"counts": counts})

    @property
    def model(self) -> OnlineModel:
        assert isinstance(self.trainer.model, OnlineModel)
        return self.trainer.model

    @property
    def status(self) -> dict[str, Any]:
        return promotion_status(self.promotion)

    @property
    def kept(self) -> list[tuple[SampleBatch, Places]]:
        """The rows of each entry of quarantine, and where they lie."""
        found = []
        for entry in self.quarantine.entries():
            spans = tuple(self.quarantine.spans(entry.name))
            found.append((next(self.broker.learnt_again([Learnt(spans)])), places_of(spans)))
        return found

    def take(self, batch: SampleBatch, step: bool = True) -> None:
        """The next message of the topic."""
        self.messages[self.offset] = batch
        self.promotion.take(batch, 0, self.offset)
        self.offset += 1
        while step and self.promotion.step() is not None:
            pass

    def drain(self) -> None:
        while self.promotion.step(drain=True) is not None:
            pass

    def publish(self, dense: bool = True, retrieval: bool = True) -> Published | None:
        """The next delta, taken by the scorer."""
        if self.broker.lost:
            self.broker.lost = False
            self.promotion.state.log.send_again()
        else:
            self.promotion.state.log.durable(self.promotion.state.log.newest_sent)
        found = self.promotion.delta(0, dense, retrieval)
        if found is not None:
            self._send(found)
        elif unsent := self.promotion.take_unsent():
            self.broker.decide(unsent)
        return found

    def _send(self, found: Published) -> None:
        if found.note.decisions:
            self.broker.decide(decode_decisions(found.note.decisions))
        self.sent.append(found.note)
        if found.body is None:
            self.served = self.store.read(found.note)
        else:
            self.served = self.served.apply(unpack(found.body, self.served.dense))

    def snapshot(self) -> Announcement | None:
        """A snapshot, from its beginning to its end; None where it was refused."""
        if self.versions.root_newest:
            self.publish()
        if self.versions.root_newest or not self.promotion.publishing:
            return None
        slices = self.versions.begin(20)
        files = SnapshotFiles(self.store, self.versions.place)
        while (part := slices.next()) is not None:
            if not self.promotion.passes(part):
                return self._refused()
            files.add(part)
        self.drain()
        self.promotion.end_stretch()
        self.publish()
        if self.status["state"] != "promoting" or not self.versions.snapshot_ready:
            slices.abandon()
            return None
        last = self.promotion.finish(slices, 0)
        if last is None:
            return self._refused()
        note = files.end(last, follows=0, log="")
        self.promotion.written(note)
        return note

    def _refused(self) -> Announcement | None:
        """No snapshot, and the root is published."""
        self.publish()
        return None

    def whole(self) -> tuple[Image, dict[str, Array]]:
        """The model's state, once all that waits is learnt."""
        return self.model.snapshot()

    def lineage(self) -> dict[Place, tuple[Place, list[Learnt]]]:
        """Of each snapshot that was learnt from another: that one, and its acts."""
        found = {}
        for name in self.store.store.names("cuts-"):
            place = Place(*map(int, name.removesuffix(".acts").split("-")[1:]))
            cuts = self.store.read_cuts(place)
            found[place] = (cuts.since, [d.what for d in cuts.decided.decided if isinstance(d.what, Learnt)])
        return found


def batch(seed: int, rows: int = BATCH, minute: int = 0, page: str = "page", **changes: Any) -> SampleBatch:
    """Samples of one page, at a minute of the day."""
    made = make_samples(rows, seed, start_ms=START_MS + minute * MINUTE_MS)
    position = np.arange(rows, dtype=np.int32)
    ts_ms = np.full(rows, START_MS + minute * MINUTE_MS, np.int64)
    return replace(
        made,
        request=(f"{page}-{seed}",),
        page=np.zeros(rows, np.int32),
        **{"position": position, "ts_ms": ts_ms, **changes},
    )
