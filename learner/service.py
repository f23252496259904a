# shell
"""The role ``learn``: samples from Kafka, versions to the model store and the topic ``model.deltas``.

The shell around :class:`~learner.trainer.Trainer` and :class:`~learner.versions.Versions`. It reads without a consumer
group, from the offsets in its newest snapshot. One file holds what it has learnt and where it stands, so the two cannot
disagree. After a crash it learns again what came after the snapshot; it never skips.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
import torch
from kafka import KafkaConsumer, KafkaProducer

from learner.evolve import evolve, read_columns
from learner.figures import DELTAS, LAG, LEARN_SECONDS, SKIPPED, SNAPSHOTS, VERSION, Board
from learner.model import OnlineModel
from learner.progressive import Progressive
from learner.repeats import Repeats
from learner.segments import Segments, parse_segments
from learner.served import Served
from learner.trainer import Trainer
from learner.versions import OnlineModelState, Progress, Versions, newest_sound, same_shape
from learner.warm import warm_up
from millrace.contracts.errors import SchemaError, StoreError
from millrace.contracts.events import DeadLetter, letter_bytes
from millrace.contracts.modelstore import Announcement, ModelStore
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, MODEL_DELTAS, SAMPLES
from millrace.labels import Waits
from millrace.processes.kafka import lag_of, make_producer, make_reader, open_broker
from millrace.processes.metrics import LOOP_TIMESTAMP, READY, serve_metrics
from millrace.processes.wall import wall_ms

log = structlog.get_logger("learner")

_POLL_MS = 50
_HOUR_MS = 3_600_000
_OUTAGE_MS = 300_000
"""Wall time for which repeated samples are recognised at least, however fast event time runs."""


@dataclass(slots=True)
class _Due:
    """When each periodic duty falls due next (monotonic seconds)."""

    delta: float
    snapshot: float
    report: float
    batch: float


class Learner:
    """The state of a running learner: trainer, versions, reader, producer. See :func:`run`."""

    def __init__(self, settings: Settings, schema: Schema) -> None:
        self.settings = settings
        self.store = ModelStore(settings.folder("models"))
        self.offsets: dict[int, int] = {}
        wanted = {"settled_minutes": settings.attribution_minutes} | settings.spec()
        found = newest_sound(self.store, schema.id, wanted, settings.evolve)
        model = (
            OnlineModel(schema, wanted, settings.seed) if found is None else _going_on(found, schema, wanted, settings)
        )
        keep_ms = round((settings.attribution_minutes + settings.lateness_minutes) * 60_000) + _HOUR_MS
        keep_ms = max(keep_ms, round(_OUTAGE_MS * settings.event_clock().speed))
        segments = Segments(schema, parse_segments(settings.segments))
        progressive = Progressive(settings.rolling_rows)
        self.served = Served(schema, segments, Waits.of(settings), settings.rolling_rows)
        self.trainer = Trainer(model, progressive, Repeats(keep_ms), settings.batch_rows, self.served)
        if found:
            note, state = found
            self.trainer.resume(state.training, note.extra.get("counts", {}))
            self.offsets = {int(p): o for p, o in note.offsets.items()}
            log.info("resumed", version=note.version, trained=note.trained, offsets=note.offsets)
        self.versions = Versions(self.store, model)
        self._board = Board(self.trainer, settings.folder("learner") / "history.jsonl")
        self._heard: dict[int, float] = {}  # when a partition's newest message came (monotonic seconds)

    def run(self, stop: threading.Event) -> None:
        reader = make_reader(self.settings, SAMPLES, self.offsets)
        try:
            producer = make_producer(self.settings)
            try:
                self._announce(producer, self.versions.root(self._progress(), self.trainer.snapshot(), wall_ms()))
                READY.set(1)
                self._loop(reader, producer, stop)
                self._learn(drain=True)
                self._publish(producer, snapshot=True)
                self._report(reader)
                producer.flush(timeout=10)
            finally:
                READY.set(0)
                producer.close(timeout=5)
        finally:
            reader.close()

    def _loop(self, reader: KafkaConsumer, producer: KafkaProducer, stop: threading.Event) -> None:
        settings = self.settings
        now = time.monotonic()
        self._heard = {tp.partition: now for tp in reader.assignment()}
        self.served.time.expect(self._heard)
        due = _Due(now + settings.delta_seconds, now + settings.snapshot_seconds, now + 1.0, now)
        while not stop.is_set():
            LOOP_TIMESTAMP.set(time.time())
            self._take(reader, producer)
            now = time.monotonic()
            drain = bool(self.trainer.pending) and now >= due.batch
            if self._learn(drain) or not self.trainer.pending:
                due.batch = time.monotonic() + settings.batch_ms / 1000
            now = time.monotonic()
            if now >= due.snapshot:
                self._learn(drain=True)  # so that the offsets say exactly what the weights have seen
                self._publish(producer, snapshot=True)
                due.snapshot, due.delta = now + settings.snapshot_seconds, now + settings.delta_seconds
            elif now >= due.delta:
                self._publish(producer, snapshot=False)
                due.delta = now + settings.delta_seconds
            if now >= due.report:
                self._report(reader)
                due.report = now + 1.0

    def _take(self, reader: KafkaConsumer, producer: KafkaProducer) -> None:
        polled: dict[Any, list[Any]] = reader.poll(timeout_ms=_POLL_MS)
        for partition, records in polled.items():
            self._heard[partition.partition] = time.monotonic()
            for record in records:
                try:
                    batch = SampleBatch.from_bytes(record.value)
                    if not self.trainer.fits(batch):
                        raise SchemaError(
                            f"samples of {batch.cat.shape[1]} + {batch.num.shape[1]} features",
                            "give stream and learner one schema",
                        )
                    self.trainer.take(batch, partition.partition)
                except SchemaError as error:
                    SKIPPED.labels("unreadable").inc()
                    log.error(
                        "message of samples passed over",
                        partition=partition.partition,
                        offset=record.offset,
                        error=str(error),
                    )
                    self._bury(producer, record, str(error))
                self.offsets[partition.partition] = record.offset + 1

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
            report = self.trainer.step(drain)
            if report is None:
                return learnt
            learnt = True
            LEARN_SECONDS.observe(time.perf_counter() - began)
            if report.skipped is not None:
                SKIPPED.labels(report.skipped).inc()
                log.error("batch refused, weights untouched", reason=report.skipped, loss=report.loss)
            elif report.rows:
                self.versions.learnt(self.trainer.origins)
            self.trainer.origins = []

    def _progress(self) -> Progress:
        counts = dict(self.trainer.counts)
        return Progress(
            counts.get("trained", 0),
            dict(self.offsets),
            {"counts": counts, "columns": msgspec.to_builtins(self.versions.model.columns)},
        )

    def _publish(self, producer: KafkaProducer, snapshot: bool) -> None:
        try:
            note = self.versions.delta(self._progress(), wall_ms())
            if note is not None:
                self._announce(producer, note)
            if snapshot:
                note = self.versions.snapshot(self._progress(), self.trainer.snapshot(), wall_ms())
                if note is not None:
                    self._announce(producer, note)
        except OSError as error:
            raise StoreError(
                f"model store '{self.store.folder}' cannot be written ({error.strerror or error})",
                "make room there, or set MILLRACE_DATA to another folder",
            ) from None

    def _announce(self, producer: KafkaProducer, note: Announcement) -> None:
        producer.send(MODEL_DELTAS, msgspec.json.encode(note)).add_errback(
            lambda error: log.error("announcement lost; scorers will resynchronise", error=str(error))
        )
        VERSION.set(note.version)
        (SNAPSHOTS if note.kind == "snapshot" else DELTAS).inc()

    def _report(self, reader: KafkaConsumer) -> None:
        """Metrics and history. A partition of which nothing came for ``idle_seconds``, though all was read, is silent:
        its labels are no longer waited for."""
        lags, quiet = lag_of(reader), time.monotonic() - self.settings.idle_seconds
        for partition, lag in lags.items():
            LAG.labels(str(partition)).set(lag)
        self.served.time.silent(p for p, lag in lags.items() if not lag and self._heard.get(p, quiet) <= quiet)
        self._board.show()


def _going_on(
    found: tuple[Announcement, OnlineModelState], schema: Schema, wanted: dict[str, Any], settings: Settings
) -> OnlineModel:
    """The model of a snapshot, with the spec's entries that are ``wanted``; carried over where its shape differs."""
    note, state = found
    spec = {**note.spec, **wanted}
    if note.schema_id == schema.id and same_shape(note.spec, spec):
        model = OnlineModel(schema, spec, settings.seed)
        model.resume(state.image, state.training)
        return model
    old = read_columns(note.extra.get("columns"))
    model, report = evolve(old, note.spec, state.image, state.training, schema, spec, settings.seed)
    log.warning("the model was carried over to another schema or spec", version=note.version, schema=note.schema_id)
    for line in report.lines:
        log.info("carried over", what=line)
    return model


def run(settings: Settings, stop: threading.Event) -> None:
    """Learns until ``stop`` is set; then learns what it has read, publishes a last snapshot, and returns.

    Raises:
        SnapshotError: the model store is of another schema or model.
        BrokerError: the broker or the topic is not there.
        PortError: the metrics port is taken.
        StoreError: the model store cannot be written.
    """
    # The other half of the machine belongs to the roles beside this one.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    serve_metrics("learn", settings.metrics_port, settings.host)
    learner = Learner(settings, settings.load_schema())
    warm_up(learner.versions.model)
    open_broker(settings)
    learner.run(stop)
