# shell
"""The role ``learn``: samples from Kafka, versions to the topic ``model.deltas`` and the model store.

The shell around :class:`~learner.training.trainer.Trainer` and :class:`~learner.training.versions.Versions`. It
reads without a consumer group, from the offsets in its newest snapshot. One snapshot holds what it has learnt and
where it stands, so the two cannot disagree. After a crash it learns again what came after the snapshot; it never skips.

Snapshots are made beside learning: this thread copies a slice after each step,
:class:`~learner.training.writer.SnapshotWriter` writes it. Of two learners on one store one ends
(:mod:`learner.training.tenure`).
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
import torch
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

from learner.custom.ownclass import is_own
from learner.evaluation.progressive import Progressive
from learner.evaluation.segments import Segments, parse_segments
from learner.evaluation.served import Served
from learner.gate.admin import Admin
from learner.gate.gatestate import KEEP_SECONDS, keep_gate, resume_gate
from learner.gate.promotion import QUARANTINED, Checks, Promotion, Published
from learner.network.dense import role_threads
from learner.ranker.repeats import Repeats, keep_ms_of
from learner.ranker.slices import merge
from learner.ranker.verbs import Learning
from learner.role.adopting import REPAIRED, SHADOW, shadow_found
from learner.role.figures import DELTA_BYTES, DELTAS, HELD_UP, LAG, LEARN_SECONDS, SKIPPED, SNAPSHOTS, VERSION, Board
from learner.role.making import model_of, wanted_spec
from learner.role.warm import warm_up
from learner.samples.formersamples import FormerSamples
from learner.training.evolve import evolve, read_columns
from learner.training.publisher import Publisher
from learner.training.tenure import HEARTBEAT_SECONDS, Tenure
from learner.training.trainer import Clicks, Trainer
from learner.training.versions import (
    Copying,
    Found,
    Progress,
    Versions,
    adopted,
    asked,
    newest_sound,
    same_head,
    same_shape,
    without_head,
)
from learner.training.writer import End, SnapshotWriter
from millrace.basics.errors import MillraceError, SchemaError, SettingError, SnapshotError, StoreError, one_line
from millrace.contracts import schemabook
from millrace.contracts.events import DeadLetter, letter_bytes
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, MODEL_DELTAS, SAMPLES
from millrace.labels import Waits
from millrace.processes.kafka import gone_before, lag_of, make_producer, make_reader, open_broker, topic_ids
from millrace.processes.kinds import Kinds
from millrace.processes.metrics import LOOP_TIMESTAMP, READY, serve_metrics
from millrace.processes.profiles import check_whole
from millrace.processes.tally import CLICK_STAGE
from millrace.processes.wall import wall_ms
from millrace.versions.modelstore import Announcement, Array, Image, ModelStore
from millrace.versions.versioning import Claim

log = structlog.get_logger("learner")

_POLL_MS = 50
_FAILURES = 3
"""Snapshots or deltas in succession that cannot be written before the role ends. A disk may be full for a moment; a
learner whose work is nowhere kept must not seem to be well."""

_LAST_SNAPSHOT_S = 600.0


@dataclass(slots=True)
class _Due:
    """When each periodic duty falls due next (monotonic seconds)."""

    delta: float
    dense: float
    retrieval: float
    snapshot: float
    report: float
    batch: float
    heartbeat: float


class Learner:
    """The state of a running learner: trainer, versions, reader, producer. See :func:`run`."""

    def __init__(self, settings: Settings, schema: Schema) -> None:
        self.settings = settings
        self.store = ModelStore(settings.place("models"), keep_ms=round(settings.keep_minutes * 60_000))
        self.offsets: dict[int, int] = {}
        self._logs: dict[str, str] = {}  # ids of the topics that the offsets are of
        wanted = wanted_spec(settings, schema)
        self._schema, self._wanted = schema, wanted

        def build(note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
            return _going_on(note, parts, schema, asked(note, wanted), settings)

        self._build = build
        found = newest_sound(self.store, schema.id, wanted, build, settings.evolve)
        model = model_of(schema, wanted, settings.seed, live=True) if found is None else found.model
        segments = Segments(schema, parse_segments(settings.segments))
        progressive = Progressive(settings.rolling_rows)
        self.served = Served(schema, segments, Waits.of(settings), settings.rolling_rows)
        self.trainer = Trainer(model, progressive, Repeats(keep_ms_of(settings)), settings.batch_rows, self.served)
        self.found = found
        if found:
            self._resume(found)
        self._adopted: Any = found.note.extra.get("adopted") if found and not asked(found.note, wanted) else None
        self.versions = Versions(model)
        self.promotion = self._promotion()
        self._board = Board(self.trainer, settings.folder("learner") / "history.jsonl")
        self._former = FormerSamples(schema, SchemaBook(settings.place(schemabook.PLACE), writes=False))
        self._kinds = Kinds()  # of messages that could not be used
        self._heard: dict[int, float] = {}  # when a partition's newest message came (monotonic seconds)
        self._copying: Copying | None = None
        self._writing = False  # whether the writer has not yet told what became of a snapshot
        self._failures = 0
        self._unpublished: list[tuple[int, int]] = []  # (wall time of a step, its clicks) since the last delta
        self._gate_saved = (
            True,
            0.0,
        )  # whether it let versions out when kept last, and when (monotonic seconds)
        self._said: dict[str, Any] = {}  # what the admin port says of the gate
        # From run() on:
        self._reader: KafkaConsumer
        self._admin: Admin
        self.tenure: Tenure
        self._publisher: Publisher
        self._writer: SnapshotWriter
        self._due: _Due

    def _promotion(self) -> Promotion:
        checks = Checks.of(self.settings, self._schema)
        return Promotion(
            *(self.trainer, self.versions, self.store, checks),
            *(self._build, self._progress, self._behind_newest, self._settle),
        )

    def _resume(self, found: Found) -> None:
        note = found.note
        self.trainer.resume(found.training, note.extra.get("counts", {}))
        self.offsets = {int(p): o for p, o in note.offsets.items()}
        self._logs = note.logs
        log.info("resumed", epoch=note.epoch, version=note.version, trained=note.trained, offsets=note.offsets)

    def run(self, stop: threading.Event, tenure: Tenure, producer: KafkaProducer, publisher: Publisher) -> None:
        """Learns until ``stop`` is set. See :func:`run`.

        Args:
            tenure: an epoch that was won.
        """
        self.tenure, self._publisher = tenure, publisher
        highest = max(self.store.highest().number, tenure.newest)
        keep = self.store.write_delta if self.settings.delta_bodies == "store" else None
        self.versions = Versions(self.trainer.model, tenure.epoch, tenure.claimant, highest, keep)
        self._know_log(topic_ids(self.settings).get(SAMPLES, ""))
        self.promotion = self._promotion()
        resume_gate(self.settings, self.promotion)
        self.promotion.begin(self.found)
        reader = self._reader = make_reader(self.settings, SAMPLES, self.offsets)
        self._admin = Admin(self.settings, lambda: self._said)
        try:
            root = self.promotion.start(self.found, wall_ms())
            tenure.check()
            self._send(root)
            self._writer = SnapshotWriter(self.store, publisher.snapshot, publisher.forget_before)
            try:
                READY.set(1)
                self._loop(reader, producer, stop)
                self._last_words(reader)
                try:
                    producer.flush(timeout=10)
                except KafkaError as error:  # all of it is in the snapshot too, but for dead letters
                    log.warning("the broker took not all of what was sent last", error=type(error).__name__)
            except BaseException:
                self._writer.close(cancel=True)
                raise
            finally:
                READY.set(0)
            self._writer.close()
        finally:
            self._admin.close()
            reader.close()

    def _know_log(self, now: str) -> None:
        """The offsets of a snapshot are of one log. Of another, as after the broker was emptied, all is read: what was
        learnt from is recognised for as long as repeats are."""
        before = self._logs.get(SAMPLES, "")
        if before and now and before != now and self.offsets:
            log.warning("the samples on the broker are another log than the snapshot's; it is read from the beginning")
            self.offsets = {}
        self._logs = {SAMPLES: now} if now else {}

    def _loop(self, reader: KafkaConsumer, producer: KafkaProducer, stop: threading.Event) -> None:
        settings = self.settings
        now = time.monotonic()
        self._heard = {tp.partition: now for tp in reader.assignment()}
        self.served.time.expect(self._heard)
        due = self._due = _Due(
            now + settings.delta_seconds,
            now + settings.dense_seconds,
            now + settings.retrieval_seconds,
            now + settings.snapshot_seconds,
            now + 1.0,
            now,
            now + HEARTBEAT_SECONDS,
        )
        while not stop.is_set():
            LOOP_TIMESTAMP.set(time.time())
            self._take(reader, producer, self._patience_ms())
            now = time.monotonic()
            publish = now >= due.delta  # with all that has come: what waited for a full batch would wait for the next
            drain = bool(self.trainer.pending) and (publish or now >= due.batch)
            if self._learn(drain) or not self.trainer.pending:
                due.batch = time.monotonic() + settings.batch_ms / 1000
            if publish:
                now = time.monotonic()
                self._publish(dense=now >= due.dense, retrieval=now >= due.retrieval)
                due.delta = now + settings.delta_seconds
                due.dense = now + settings.dense_seconds if now >= due.dense else due.dense
                due.retrieval = now + settings.retrieval_seconds if now >= due.retrieval else due.retrieval
            self.promotion.release_some()
            self._obey()
            self._look_at_snapshots(now)
            if now >= due.heartbeat:
                self._publisher.still_here(Claim(self.tenure.epoch, self.tenure.claimant))
                due.heartbeat = now + HEARTBEAT_SECONDS
            if now >= due.report:
                self._report(reader)
                due.report = now + 1.0

    def _patience_ms(self) -> float:
        """How long to wait for samples: until something of what came is due."""
        due = min(self._due.delta, self._due.batch) if self.trainer.pending else self._due.delta
        return min(_POLL_MS, max(0.0, due - time.monotonic()) * 1000)

    def _take(self, reader: KafkaConsumer, producer: KafkaProducer, patience_ms: float) -> None:
        polled: dict[Any, list[Any]] = reader.poll(timeout_ms=patience_ms)
        for partition, records in polled.items():
            self._heard[partition.partition] = time.monotonic()
            gone = gone_before(SAMPLES, partition.partition, self.offsets.get(partition.partition), records[0].offset)
            if gone:
                SKIPPED.labels("gone").inc(gone)
            if records[0].offset < self.offsets.get(partition.partition, 0):
                log.warning(
                    "samples begin anew on the broker; they are read from their beginning",
                    partition=partition.partition,
                    offset=records[0].offset,
                    expected=self.offsets[partition.partition],
                )
            for record in records:
                try:
                    batch = self._former.carried(SampleBatch.from_bytes(record.value), record.headers)
                    if not self.trainer.fits(batch):
                        raise SchemaError(
                            f"samples of {batch.cat.shape[1]} + {batch.num.shape[1]} features",
                            "give stream and learner one schema",
                        )
                    self.trainer.take(batch, partition.partition, record.timestamp or 0, record.offset)
                except SchemaError as error:
                    SKIPPED.labels("unreadable").inc()
                    self._kinds.note("bad-samples", f"partition {partition.partition}, offset {record.offset}: {error}")
                    self._bury(producer, record, str(error))
                self.offsets[partition.partition] = record.offset + 1
        for told in self._kinds.due(time.monotonic()):
            log.error("messages of samples passed over: dead letters", count=told.times, example=told.example)

    def _bury(self, producer: KafkaProducer, record: Any, why: str) -> None:
        """Keeps a message of samples that cannot be used. Its place tells it from a repetition after a crash."""
        letter = DeadLetter.of("bad-samples", why, SAMPLES, record.partition, record.offset, record.value)
        producer.send(DEAD_LETTERS, letter_bytes(letter), letter.reason.encode()).add_errback(
            lambda error: log.error("dead letter lost; the message is still in its topic", error=str(error))
        )

    def _learn(self, drain: bool) -> bool:
        learnt = False
        while True:
            began = time.perf_counter()
            report = self.promotion.step(drain)
            if report is None:
                return learnt
            learnt = True
            LEARN_SECONDS.observe(time.perf_counter() - began)
            if report.skipped is not None and report.skipped != QUARANTINED:
                SKIPPED.labels(report.skipped).inc()
                log.error("batch refused, weights untouched", reason=report.skipped, loss=report.loss)
            for clicks in self.promotion.take_clicks():
                self._learnt(clicks)
            self._copy_slice()

    def _learnt(self, clicks: Clicks) -> None:
        now_ms = wall_ms()
        joined_ms = clicks.joined_ms[clicks.joined_ms > 0]  # some brokers do not say when a message was made
        CLICK_STAGE.observe(np.maximum(now_ms - joined_ms, 0) / 1000, label="learnt")
        self._unpublished.append((now_ms, len(clicks.sent_ms)))

    def _progress(self) -> Progress:
        counts = dict(self.trainer.counts)
        extra = {"counts": counts, "columns": msgspec.to_builtins(self.trainer.model.columns)}
        if self._adopted is not None:
            extra["adopted"] = self._adopted
        return Progress(counts.get("trained", 0), dict(self.offsets), self._logs, extra)

    # -- deltas ----------------------------------------------------------------------------------------------

    def _publish(self, dense: bool = True, retrieval: bool = True) -> None:
        """The next delta, if something was learnt. One that is lost is mended by a snapshot, which is due at once."""
        self.tenure.check()
        try:
            found = self.promotion.delta(wall_ms(), dense, retrieval)
        except StoreError as error:
            self._failed(error)
            self._due.snapshot = 0.0
            return
        except SnapshotError as error:
            log.error("a delta cannot be packed; a snapshot mends that", error=str(error))
            self._due.snapshot = 0.0
            return
        if found is not None:
            self._send(found)
        if self._publisher.take_lost():
            self._due.snapshot = 0.0

    def _send(self, found: Published) -> None:
        """Sends a version; a root lies in the store already."""
        note = found.note
        VERSION.set(note.version)
        if found.body is None:
            self._publisher.snapshot(note)
            SNAPSHOTS.inc()
            self._unpublished.clear()
            return
        self._publisher.delta(note, found.body)
        waited_ms = [max(0, note.published_ms - learnt_ms) for learnt_ms, _ in self._unpublished]
        CLICK_STAGE.observe(np.array(waited_ms) / 1000, [clicks for _, clicks in self._unpublished], "published")
        self._unpublished.clear()
        DELTAS.inc()
        DELTA_BYTES.inc(len(found.body))

    def _failed(self, error: StoreError) -> None:
        """Says that the store took something not; the next snapshot is the next try.

        Raises:
            StoreError: it was not the first time.
        """
        self._failures += 1
        if self._failures >= _FAILURES:
            raise error
        log.error("the model store takes nothing; tried again with the next snapshot", error=one_line(error))

    # -- snapshots -------------------------------------------------------------------------------------------

    def _look_at_snapshots(self, now: float) -> None:
        """Begins a snapshot when it is due, goes on with one, and hears what became of it. None is made of what the
        gate, or a person, holds back."""
        self._hear()
        if not self.promotion.publishing:
            self._give_up()
            return
        wanted = now >= self._due.snapshot or self.promotion.snapshot_wanted
        if not self._writing and wanted:
            self._due.snapshot = now + self.settings.snapshot_seconds
            if self.versions.snapshot_due and self.versions.root_newest:
                self._publish()
            if self.versions.snapshot_due and self.promotion.publishing and not self.versions.root_newest:
                self._begin()
        if self._copying is not None and self._copy_slice():
            self._learn(drain=True)  # so that the offsets say exactly what the weights have seen
            self._finish()

    def _hear(self, wait_seconds: float = 0.0) -> None:
        outcome = self._writer.outcome(wait_seconds)
        if outcome is None:
            return
        self._writing = False
        if isinstance(outcome, StoreError):
            self._give_up()
            self.promotion.written(None)
            self.versions.snapshot_lost()
            self._failed(outcome)
        else:
            self._failures = 0
            self.promotion.written(outcome)
            SNAPSHOTS.inc()

    def _give_up(self) -> None:
        """The snapshot that is being copied will not be ended. Its files go with the next."""
        if self._copying is not None:
            self._copying.give_up()
            self._copying, self._writing = None, False

    def _behind_newest(self) -> dict[str, Any]:
        return self._publisher.behind_newest()()

    def _settle(self) -> None:
        """Before the model is another one: a snapshot that is copied is given up, one that has its end is awaited."""
        self._give_up()
        if self._writing:
            self._hear(_LAST_SNAPSHOT_S)

    def _begin(self) -> None:
        self._copying = self.versions.begin()
        self._writing = True
        self._writer.give(self._copying.begun)

    def _copy_slice(self, wait: bool = False) -> bool:
        """Copies one slice of the snapshot that is being made, if the writer has room for it. Whether all are copied
        but the end."""
        if self._copying is None or not (wait or self._writer.ready):
            return False
        began = time.perf_counter()
        part = self._copying.next()
        HELD_UP.observe(time.perf_counter() - began)
        if part is None:
            return True
        if self.promotion.passes(part):
            self._writer.give(part)
        return False

    def _finish(self) -> None:
        """Copies what is left, and ends the snapshot at a new version. Later, if the writer has no room now."""
        while self._copying is not None and self._writer.ready:
            if not self._copy_slice():
                continue
            self._publish()
            if self._copying is not None:  # the delta passed
                self._end(self._copying)

    def _end(self, copying: Copying) -> bool:
        """The end of a snapshot, right behind a delta. Whether the gate let it pass."""
        if not self.promotion.publishing:
            self._give_up()
            return False
        began = time.perf_counter()
        last = self.promotion.finish(copying, wall_ms())
        HELD_UP.observe(time.perf_counter() - began)
        if last is None:
            return False
        self._writer.give(End(last, self._publisher.behind_newest()))
        self._copying = None
        return True

    def _last_words(self, reader: KafkaConsumer) -> None:
        """What was read is learnt, and is in a last snapshot. What is held back is in none: it is read again."""
        self._learn(drain=True)
        self._publish()
        if self._writing and self._copying is None:
            self._hear(_LAST_SNAPSHOT_S)
        may = self.promotion.publishing and not self.versions.root_newest
        if may and self.versions.snapshot_due and self._copying is None:
            self._begin()
        while self._copying is not None and not self._copy_slice(wait=True):
            pass
        if self._copying is not None and self._end(self._copying):
            outcome = self._writer.outcome(_LAST_SNAPSHOT_S)
            if isinstance(outcome, StoreError):
                raise outcome
            SNAPSHOTS.inc()
        self._report(reader)
        self._keep_gate()

    def _report(self, reader: KafkaConsumer) -> None:
        """Metrics and history. A partition of which nothing came for ``idle_seconds``, though all was read, is silent:
        its labels are no longer waited for."""
        lags, quiet = lag_of(reader), time.monotonic() - self.settings.idle_seconds
        for partition, lag in lags.items():
            LAG.labels(str(partition)).set(lag)
        self.served.time.silent(p for p, lag in lags.items() if not lag and self._heard.get(p, quiet) <= quiet)
        self._said = self.promotion.status
        if self.promotion.checks is None:
            self._board.show()
            return
        self._board.show(self._said, self.promotion.verdicts)
        publishing, kept_s = self._gate_saved
        if self.promotion.publishing != publishing or time.monotonic() - kept_s > KEEP_SECONDS:
            self._keep_gate()

    # -- the gate --------------------------------------------------------------------------------------------

    def _keep_gate(self) -> None:
        self._gate_saved = (self.promotion.publishing, time.monotonic())
        keep_gate(self.settings, self.promotion)

    def _obey(self) -> None:
        """Does what persons ask for at the admin port."""
        while (command := self._admin.next()) is not None:
            try:
                said = self._do(command.name, command.args)
            except MillraceError as error:
                command.fail(error)
                continue
            self._said = self.promotion.status
            command.answer(said | {"state": self._said["state"]})

    def _do(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        promotion = self.promotion
        match name:
            case "rollback":
                note = self._to_go_back_to(args["version"])
                gone = promotion.roll_back(note)
                self._adopted = note.extra.get("adopted") if not asked(note, self._wanted) else None
                self._publish()
                return {"version": promotion.promoted_version, "content": note.version, "set_aside": gone}
            case "adopt":
                self._adopt(args["from"])
                return {"version": promotion.promoted_version}
            case "hold":
                promotion.hold()
                return {"version": promotion.promoted_version}
            case "promote":
                promotion.promote()
                self._publish()
                return {"version": promotion.promoted_version}
        if promotion.checks is None:
            raise SettingError("MILLRACE_GATE is off: nothing is in quarantine", "set it to on or observe")
        if name == "release":
            return {"entries": promotion.release(args["names"])}
        return {"rows": promotion.discard(args["names"])}

    def _to_go_back_to(self, version: int | None) -> Announcement:
        """The snapshot of a version, or the newest that is older than what is served."""
        notes = self.store.snapshots()
        if version is None:
            found = next((note for note in notes if note.place < self.promotion.origin), None)
        else:
            found = next((note for note in notes if note.version == version), None)
        if found is None:
            known = ", ".join(str(note.version) for note in notes)
            which = "older than what is served" if version is None else f"of version {version}"
            raise SnapshotError(f"there is no snapshot {which}", f"the store has versions {known}")
        return found

    def _adopt(self, source: str) -> None:
        """Goes on with a model that was learnt elsewhere, from the samples behind it."""
        if source == SHADOW:
            found = shadow_found(self.settings, self._schema)
        else:
            repaired = newest_sound(
                ModelStore(self.settings.place(REPAIRED), writes=False), self._schema.id, self._wanted, self._build
            )
            if repaired is None:
                raise SnapshotError("there is no repaired model to adopt", "run 'millrace repair' first")
            found = repaired
        self.promotion.adopt(found, same_samples=source != SHADOW)
        self.trainer.begin_again(found.training)
        self.promotion.begin(found)
        self.offsets = {int(p): o for p, o in found.note.offsets.items()}
        for tp in self._reader.assignment():
            if tp.partition in self.offsets:
                self._reader.seek(tp, self.offsets[tp.partition])
            else:
                self._reader.seek_to_beginning(tp)
        own = found.note.extra.get("adopted")  # of a repaired model that had been a shadow
        self._adopted = adopted(source, found.note, self._wanted) if source == SHADOW else own
        self._publish()


def _going_on(
    note: Announcement,
    parts: Iterable[tuple[Image, Mapping[str, Array]]],
    schema: Schema,
    wanted: dict[str, Any],
    settings: Settings,
) -> Learning:
    """The model of a snapshot, with the spec's entries that are ``wanted``; carried over where its shape differs."""
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
    """
    check_whole(settings)
    torch.set_num_threads(role_threads())
    serve_metrics("learn", settings.metrics_port, settings.host)
    schema = settings.load_schema()
    # Whoever cannot read the store, or may not, ends here, before it takes the epoch from one who can.
    learner = Learner(settings, schema)
    warm_up(learner.trainer.model)
    open_broker(settings)
    tenure = Tenure(settings, uuid.uuid4().hex, _mark(settings))
    try:
        producer = make_producer(settings, linger_ms=0)  # a delta is sent whole: it has nothing to wait for
        try:
            publisher = Publisher(settings, producer, topic_ids(settings).get(MODEL_DELTAS, ""))
            if not tenure.win(publisher, learner.store.highest(), stop):
                return
            newest, found = learner.store.latest(), learner.found
            if newest is not None and (found is None or newest.place > found.note.place):
                learner = Learner(settings, schema)  # the one before has published since
            learner.run(stop, tenure, producer, publisher)
        finally:
            with contextlib.suppress(KafkaError):  # it may not hide what ends this role
                producer.close(timeout=5)
    finally:
        tenure.close()


def _mark(settings: Settings) -> Path:
    return settings.folder("learner") / "fenced"
