# shell
"""The role ``learn``: samples from Kafka, versions to the topic ``model.deltas`` and the model store.

It makes a model, or resumes one, and gives it to :class:`~learner.role.learnloop.LearnLoop`. One snapshot holds the
model and its offsets in the samples, so the two cannot disagree. After a crash it learns again what came after the
snapshot; it never skips. Of two learners on one store one ends (:mod:`learner.training.learner_claim`).

A learner with a name has a store and a topic of its own (:mod:`millrace.evidence.learners`), and is compared with the
first one (:mod:`learner.role.comparison`). It begins with the first's newest snapshot where its model has that shape,
else with an untrained model and the oldest sample.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
import torch
from kafka import KafkaProducer
from kafka.errors import KafkaError

from learner.custom.ownclass import is_own
from learner.evaluation.progressive import Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.gate.admin import Admin
from learner.gate.checks import GATE, QUARANTINED
from learner.gate.quarantine import PLACE
from learner.network.dense import role_threads
from learner.promotion.promotion_status import promotion_status
from learner.ranker.model import LearnReport, OnlineModel
from learner.ranker.repeats import Repeats, keep_ms_of
from learner.ranker.snapshot_slices import merge
from learner.ranker.verbs import Learning
from learner.role.comparison import Comparison, newest_of
from learner.role.learner_metrics import (
    DELTA_BYTES,
    DELTAS,
    HELD_UP,
    LAG,
    LEARN_SECONDS,
    SKIPPED,
    SNAPSHOTS,
    VERSION,
    Board,
)
from learner.role.learner_warmup import shop_hours, small, warm_up
from learner.role.learnloop import LearnLoop
from learner.role.loopoutput import LoopOutput
from learner.role.model_factory import model_of, wanted_spec
from learner.role.samplereader import SampleReader
from learner.samples.viewpoint import Viewpoint
from learner.training.evolve import evolve, read_columns
from learner.training.learner_claim import HEARTBEAT_SECONDS, LearnerClaim
from learner.training.learner_versions import (
    FoundSnapshot,
    adopted,
    asked,
    newest_valid,
    same_head,
    same_shape,
    without_head,
)
from learner.training.publisher import Publisher
from learner.training.trainer import ClickCounts, Trainer
from millrace.basics.errors import MillraceError, SnapshotError, StoreError
from millrace.basics.ranking_metrics import ROLLING_ROWS
from millrace.basics.store import Store
from millrace.contracts.events import DeadLetter, dead_letter_bytes
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, MODEL_DELTAS, SAMPLES
from millrace.evidence.learners import REPAIRED
from millrace.labels import Waits
from millrace.processes.kafka import make_producer, open_broker, topic_ids
from millrace.processes.metrics import serve_metrics
from millrace.processes.priority import step_back
from millrace.processes.profiles import check_whole
from millrace.processes.tally import CLICK_STAGE
from millrace.processes.wall import wall_ms
from millrace.versions.decisions import LogPart
from millrace.versions.image import below
from millrace.versions.modelstore import Announcement, Array, Image, ModelStore
from millrace.versions.versioning import Claim

log = structlog.get_logger("learner")


class TopicOutput(LoopOutput):
    """Sends a learner's versions to Kafka, shows its figures, and runs the commands of the admin port."""

    def __init__(self, learner: Learner, tenure: LearnerClaim, producer: KafkaProducer, publisher: Publisher) -> None:
        self._learner, self._promotion = learner, learner.loop.promotion
        self._tenure, self._producer, self._publisher = tenure, producer, publisher
        self._board = Board(learner.trainer, learner.settings.folder("learner") / "history.jsonl")
        self._said: dict[str, Any] = {}  # what the admin port says of the gate
        self._unpublished: list[tuple[int, int]] = []  # (wall time of a step, its clicks) since the last delta
        self._heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        self._comparison = learner.comparison()
        self._admin = Admin(learner.settings, lambda: self._said)

    def close(self) -> None:
        self._admin.close()

    def check(self) -> None:
        self._tenure.check()

    def delta(self, note: Announcement, body: bytes) -> None:
        VERSION.set(note.version)
        self._publisher.delta(note, body)
        waited_ms = [max(0, note.published_ms - learnt_ms) for learnt_ms, _ in self._unpublished]
        CLICK_STAGE.observe(np.array(waited_ms) / 1000, [clicks for _, clicks in self._unpublished], "published")
        self._unpublished.clear()
        DELTAS.inc()
        DELTA_BYTES.inc(len(body))

    def root(self, note: Announcement) -> None:
        VERSION.set(note.version)
        self._unpublished.clear()
        self.snapshot(note)

    def snapshot(self, note: Announcement) -> None:
        self._publisher.snapshot(note)
        SNAPSHOTS.inc()

    def decided(self, part: LogPart) -> None:
        self._publisher.decisions(self._tenure.epoch, self._tenure.claimant, part)

    def settled(self) -> None:
        self._tenure.check_at(self._publisher.settled())

    @property
    def sent(self) -> int:
        return self._publisher.sent

    def heard(self) -> tuple[bool, int]:
        return self._publisher.heard()

    def behind_newest(self) -> Callable[[], dict[str, Any]]:
        return self._publisher.behind_newest()

    def forget_before(self, offset: int) -> None:
        self._publisher.forget_before(offset)

    def learnt(self, report: LearnReport, clicks: list[ClickCounts], seconds: float) -> None:
        LEARN_SECONDS.observe(seconds)
        if report.skipped is not None and report.skipped != QUARANTINED:
            SKIPPED.labels(report.skipped).inc()
            log.error("batch refused, weights untouched", reason=report.skipped, loss=report.loss)
        for each in clicks:
            now_ms = wall_ms()
            joined_ms = each.joined_ms[each.joined_ms > 0]  # some brokers do not report when a message was made
            CLICK_STAGE.observe(np.maximum(now_ms - joined_ms, 0) / 1000, label="learnt")
            self._unpublished.append((now_ms, len(each.sent_ms)))

    def held_up(self, seconds: float) -> None:
        HELD_UP.observe(seconds)

    def between(self, now: float) -> None:
        """Runs commands, compares, and reports that this learner is still there."""
        if self._comparison is not None:
            self._comparison.between(now)
        while (command := self._admin.next()) is not None:
            self._learner.loop.learn(drain=True)  # what waits came before it; what fails of it is not the command's
            try:
                said = self._learner.do(command.name, command.args)
            except MillraceError as error:
                command.fail(error)
                continue
            self._said = promotion_status(self._promotion)
            command.answer(said | {"state": self._said["state"]})
        self.at_work(now)

    def at_work(self, now: float) -> None:
        """Sends the learner's heartbeat."""
        if now >= self._heartbeat:
            self._publisher.still_here(Claim(self._tenure.epoch, self._tenure.claimant))
            self._heartbeat = now + HEARTBEAT_SECONDS

    def report(self, lags: Mapping[int, int]) -> None:
        for partition, lag in lags.items():
            LAG.labels(str(partition)).set(lag)
        self._said = promotion_status(self._promotion)
        if self._promotion.checks is None:
            self._board.show()
        else:
            self._board.show(self._said, self._promotion.state.verdicts)

    def bad(self, record: Any, why: Exception) -> None:
        """Keeps an unusable message of samples as a dead letter. Its offset reveals a repetition after a crash."""
        SKIPPED.labels("unreadable").inc()
        letter = DeadLetter.of("bad-samples", str(why), SAMPLES, record.partition, record.offset, record.value)
        self._producer.send(DEAD_LETTERS, dead_letter_bytes(letter), letter.reason.encode()).add_errback(
            lambda error: log.error("dead letter lost; the message is still in its topic", error=str(error))
        )

    def gone(self, messages: int) -> None:
        SKIPPED.labels("gone").inc(messages)


class Learner:
    """A learner: what it goes on from, and its commands for persons. ``settings``: of the loop, with its name.

    Attributes:
        settings: its own.
        first: those of the first learner; None: it is the first.
        found: the newest snapshot of its own, if there is one.
        compares_from_ms: exposures before are not compared on: the first one may not have held them out.
    """

    def __init__(self, settings: Settings, schema: Schema) -> None:
        own = settings.of_learner(settings.learner)
        self.settings, self._schema, self._wanted = own, schema, wanted_spec(own, schema)
        self.first = settings.of_learner("") if own.learner else None
        self.compares_from_ms = 0
        self.store = ModelStore(own.place("models"), keep_ms=round(own.keep_minutes * 60_000))
        self.found = newest_valid(self.store, schema.id, self._wanted, self._build, own.evolve, held=True)
        found = self._like_first(self.first) if self.first is not None and self.found is None else self.found
        model = model_of(schema, self._wanted, own.seed, live=True) if found is None else found.model
        segments = Segments(schema, own.segments)
        self.served = ServedExposures(schema, segments, Waits.of(own), ROLLING_ROWS)
        progressive, repeats = Progressive(ROLLING_ROWS), Repeats(keep_ms_of(own))
        self.trainer = Trainer(model, progressive, repeats, served=self.served)
        self.trainer.diverted = Viewpoint.of(own).diverted
        self.samples = SampleReader(own, schema, self.served.time)
        self._adopted: Any = None
        if found is not None:
            note = found.note
            self.trainer.resume(found.training, note.extra.get("counts", {}))
            self.samples.resume(note)
            self._adopted = self._adoption_of(note) if found is self.found else None
            if found is not self.found:
                self.samples.began = dict(self.samples.offsets)
            self.compares_from_ms = int(note.extra.get("from_ms", 0))
            log.info("resumed", epoch=note.epoch, version=note.version, trained=note.trained, offsets=note.offsets)
        self.loop = LearnLoop(own, self.samples, self.trainer, self.store, self._build, self._extra)
        checks = self.loop.promotion.checks
        if found is not None and found is not self.found and checks is not None:
            checks.minutes.resume(below(f"{GATE}minutes/", found.training))  # what it never learnt, this one has not

    def _like_first(self, first: Settings) -> FoundSnapshot | None:
        """The first learner's newest snapshot, where this one's model has its shape."""
        models = ModelStore(first.place("models"), writes=False)
        newest = models.latest()
        if newest is None:
            return None
        if newest.schema_id == self._schema.id and same_shape(newest.spec, {**newest.spec, **self._wanted}):
            log.info("it begins as the first learner's newest snapshot", version=newest.version)
            return newest_valid(models, self._schema.id, {}, self._build)
        log.info("its model is another one than the first's: it begins with the oldest sample")
        self.compares_from_ms = newest.event_ms
        return None

    def comparison(self) -> Comparison | None:
        """With the first learner; None: it is the first, or each knows its own pages alone, and is at home on them."""
        if self.first is None or self.trainer.diverted:
            return None
        return Comparison(self.first, self.settings, self.loop, self._schema, self.compares_from_ms)

    def _build(self, note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
        return _going_on(note, parts, self._schema, asked(note, self._wanted), self.settings)

    def _extra(self) -> dict[str, Any]:
        extra = {} if self._adopted is None else {"adopted": self._adopted}
        return extra | ({"from_ms": self.compares_from_ms} if self.first is not None else {})

    def _adoption_of(self, note: Announcement) -> Any:
        return None if asked(note, self._wanted) else note.extra.get("adopted")

    def run(self, stop: threading.Event, tenure: LearnerClaim, producer: KafkaProducer, publisher: Publisher) -> None:
        """Learns until ``stop`` is set, as the module's :func:`run`. ``tenure``: an epoch that was won."""
        versions = self.loop.versions
        versions.epoch, versions.claimant = tenure.epoch, tenure.claimant
        versions.version = max(self.store.highest().number, tenure.newest)
        with contextlib.closing(TopicOutput(self, tenure, producer, publisher)) as output:
            self.loop.output = output
            self.samples.bad, self.samples.gone = output.bad, output.gone
            decided, tenure.decided = tenure.decided, []
            self.loop.run(self.found, stop, decided)
            try:
                producer.flush(timeout=10)
            except KafkaError as error:  # all of it is in the snapshot too, but for dead letters
                log.warning("the broker took not all of what was sent last", error=type(error).__name__)

    # -- what persons ask for --------------------------------------------------------------------------------

    def do(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a command of the admin port; returns its outcome, which is durable by then.

        Raises:
            MillraceError: it was not done.
            BrokerError: it was done, and a restart would not know it.
        """
        said = self._done(name, args)
        self.loop.promotion.make_durable()
        return said

    def _done(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        promotion, commands = self.loop.promotion, self.loop.promotion.commands
        match name:
            case "rollback":
                note = self._to_go_back_to(args["version"])
                gone = commands.roll_back(note)
                self._adopted = self._adoption_of(note)
                self._publish_root()
                return {"version": promotion.promoted_version, "content": note.version, "set_aside": gone}
            case "adopt":
                self._adopt(args["from"])
                return {"version": promotion.promoted_version}
            case "hold":
                commands.hold()
                return {"version": promotion.promoted_version}
            case "promote":
                commands.promote()
                self.loop.publish()
                return {"version": promotion.promoted_version}
        if name == "release":
            return {"entries": commands.release(args["names"])}
        return {"rows": commands.discard(args["names"])}

    def _publish_root(self) -> None:
        """Raises StoreError where it cannot be written: nothing has changed then for those who are served."""
        self.loop.publish()
        if self.loop.promotion.state.root_due:
            raise StoreError(
                "the model has changed, and cannot be published: the old one is served",
                "make room in the store, or start the broker: it is tried again by itself",
            )

    def _to_go_back_to(self, version: int | None) -> Announcement:
        """The snapshot for a rollback: of this version, or the newest that is older than what is served."""
        notes = self.store.snapshots()
        if version is None:
            found = next((note for note in notes if note.place < self.loop.promotion.state.restorer.origin), None)
        else:
            found = next((note for note in notes if note.version == version), None)
        if found is None:
            known = ", ".join(str(note.version) for note in notes)
            which = "older than what is served" if version is None else f"of version {version}"
            raise SnapshotError(f"there is no snapshot {which}", f"the store has versions {known}")
        return found

    def _adopt(self, source: str) -> None:
        """Goes on with a model that was learnt elsewhere, from the samples behind it."""
        if source != REPAIRED:
            found = newest_of(source, self.settings, self._schema)
            theirs = Store(self.settings.of_learner(source).place(PLACE), writes=False)
            self.loop.promotion.state.quarantine.take_copies(theirs, source)
        else:
            repaired = newest_valid(
                ModelStore(self.settings.place(REPAIRED), writes=False), self._schema.id, self._wanted, self._build
            )
            if repaired is None:
                raise SnapshotError("there is no repaired model to adopt", "run 'millrace model repair' first")
            found = repaired
        self.loop.promotion.commands.adopt(found, source, same_samples=source == REPAIRED)
        self.trainer.begin_again(found.training)
        self.samples.resume(found.note)
        self.samples.seek(self.samples.offsets)
        own = found.note.extra.get("adopted")  # of a repaired model that had been another learner's
        self._adopted = own if source == REPAIRED else adopted(source, found.note, self._wanted)
        self._publish_root()


def _going_on(
    note: Announcement,
    parts: Iterable[tuple[Image, Mapping[str, Array]]],
    schema: Schema,
    wanted: dict[str, Any],
    settings: Settings,
) -> Learning:
    """The model of a snapshot, with the ``wanted`` entries of a spec; carried over where its shape differs."""
    spec = {**note.spec, **wanted}
    if note.schema_id == schema.id and same_shape(note.spec, spec):
        model = model_of(schema, spec, settings.seed, live=True)
        if same_head(note.spec, spec):
            model.resume(parts)
            return model
        model.resume(without_head(parts))
        if model.head is not None:
            log.warning("the snapshot has no retrieval head like this one: it begins empty", version=note.version)
        else:
            log.warning("the snapshot's retrieval head is left behind: there is none now", version=note.version)
        return model
    if is_own(note.spec.get("model")) or is_own(spec["model"]):
        raise SnapshotError(
            f"nothing of snapshot {note.version} ('{note.spec.get('model')}', schema {note.schema_id}) can "
            f"be carried over to '{spec['model']}' with schema {schema.id}: one of them is a model of one's own",
            "set MILLRACE_MODEL and MILLRACE_SCHEMA as they were, or MILLRACE_DATA to an empty folder",
        )
    old = read_columns(note.extra.get("columns"))
    made, report = evolve(old, note.spec, *merge(parts), schema, spec, settings.seed)
    log.warning("the model was carried over to another schema or spec", version=note.version, schema=note.schema_id)
    for line in report.lines:
        log.info("carried over", what=line)
    return made


def run(settings: Settings, stop: threading.Event) -> None:
    """Learns until ``stop`` is set; then learns what it has read, publishes a last snapshot, and returns.

    Raises:
        SnapshotError: the model store is of another schema or model.
        BrokerError: the broker or the topic is not there.
        PortError: the metrics port is taken.
        StoreError: the model store cannot be written, or the history in the store is not whole.
        FencedError: another learner has taken over.
        SettingError: there is no learner of this name.
    """
    check_whole(settings)
    own = settings.of_learner(settings.learner)
    if own.learner and own.learner not in settings.served_learners:
        step_back()  # pages, and those learners that make them, come first
    torch.set_num_threads(role_threads())
    serve_metrics(own.learner_role, settings.metrics_port, settings.host)
    schema = settings.load_schema()
    # A learner that cannot read the store ends here, before it takes the epoch from one that can.
    learner = Learner(settings, schema)
    warm_up(learner.trainer.model)
    rehearse(own, schema, learner.trainer.model.spec)
    open_broker(settings)
    decision = 0 if learner.found is None else learner.found.note.extra.get("decision", 0)
    tenure = LearnerClaim(own, uuid.uuid4().hex, _mark(own), decision)
    try:
        producer = make_producer(own, linger_ms=0)  # a delta is sent whole: it has nothing to wait for
        try:
            publisher = Publisher(own, producer, topic_ids(own).get(MODEL_DELTAS, ""))
            if not tenure.win(publisher, learner.store.highest(), stop):
                return
            newest = next(iter(learner.store.snapshots(held=True)), None)
            if newest is not None and (learner.found is None or newest.place > learner.found.note.place):
                learner = Learner(settings, schema)  # the one before has published since
            learner.run(stop, tenure, producer, publisher)
        finally:
            with contextlib.suppress(KafkaError):  # it may not hide what ends this role
                producer.close(timeout=5)
    finally:
        tenure.close()


def rehearse(settings: Settings, schema: Schema, spec: Mapping[str, Any]) -> None:
    """Lets a learner with a model of ``spec`` learn and publish in a temporary folder, and throws it away."""
    with tempfile.TemporaryDirectory(dir=settings.folder("learner")) as folder:
        own, few = msgspec.structs.replace(settings, data=folder, store="", heldout_share=0.5), small(spec)

        def build(note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
            return _going_on(note, parts, schema, few, own)

        served = ServedExposures(schema, Segments(schema, own.segments), Waits.of(own), ROLLING_ROWS)
        repeats = Repeats(keep_ms_of(own))
        trainer = Trainer(OnlineModel(schema, few, own.seed), Progressive(ROLLING_ROWS), repeats, served=served)
        samples, store = SampleReader(own, schema, served.time), ModelStore(own.place("models"))
        LearnLoop(own, samples, trainer, store, build, dict).rehearse(shop_hours(schema))


def _mark(settings: Settings) -> Path:
    return settings.folder("learner") / "fenced"
