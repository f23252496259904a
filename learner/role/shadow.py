# shell
"""The role ``shadow``: a second learner on the same samples, judged beside the first on pages that neither has learnt.

::

    [ samples ] ─► first learner ──► DATA/models ──► scorers
         │                               │ newest snapshot, read only
         └───────► shadow ── model ──────┴─► both score the same held-out rows ─► metrics, shadow.jsonl
                     │
                     └► DATA/shadow/models, for a restart, and for `millrace promote --shadow`

It is a learner in all but being heard: the same trainer, the same gate, another model. It claims no epoch, announces
nothing, and no scorer follows it. It reads without a consumer group, so nobody's offsets move.

**The same rows.** The first learner's snapshots say which share of pages it holds out, and since when. The shadow holds
out the same, and no more, or it would learn from less than the first. It hears of a new share somewhat late; a row
counts only if both have held its page out. A shadow that begins with the oldest sample is judged only on exposures
newer than the first learner's snapshot of then: whether there was a gate before, nobody knows.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
import torch
from kafka import KafkaConsumer
from prometheus_client import Counter, Gauge

from learner.evaluation.progressive import Progressive
from learner.evaluation.versus import FIGURES, Versus, versus
from learner.gate.gatestate import KEEP_SECONDS, keep_gate, resume_gate
from learner.gate.heldout import scores
from learner.gate.promotion import Checks, Promotion
from learner.ranker.repeats import Repeats, keep_ms_of
from learner.ranker.verbs import Learning
from learner.role.adopting import shadow_policy, shadow_settings
from learner.role.making import model_of, reader_of, wanted_spec, writer_of
from learner.role.warm import warm_up
from learner.samples.formersamples import FormerSamples
from learner.samples.relabel import Relabel
from learner.training.trainer import Trainer
from learner.training.versions import Found, Progress, Versions, newest_sound, same_head, same_shape, without_head
from millrace.basics.errors import SchemaError, SettingError, SnapshotError, StoreError, one_line
from millrace.basics.store import AbsentError
from millrace.contracts import schemabook
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.labels import Waits
from millrace.processes.kafka import gone_before, lag_of, make_reader, open_broker, topic_ids
from millrace.processes.kinds import Kinds
from millrace.processes.metrics import LOOP_TIMESTAMP, READY, serve_metrics
from millrace.processes.priority import step_back
from millrace.processes.profiles import check_whole
from millrace.processes.wall import wall_ms
from millrace.versions.image import split
from millrace.versions.modelstore import Announcement, Array, Image, ModelStore, Place

log = structlog.get_logger("shadow")

TRAINED = Counter("millrace_shadow_trained_total", "Samples that the shadow has learnt from since it started.")
SHADOW_LAG = Gauge("millrace_shadow_lag", "Messages of samples that the shadow has not read.")
AHEAD = Gauge("millrace_shadow_ahead_seconds", "Event time by which the shadow is ahead of the snapshot compared with.")
SHADOW_VERSION = Gauge("millrace_shadow_version", "Newest snapshot of the shadow.")
FIRST_VERSION = Gauge("millrace_shadow_first_version", "Snapshot of the first learner that was compared last.")
ROWS = Gauge("millrace_shadow_rows", "Held-out rows that both models were compared on last.")
SHADOW = {name: Gauge(f"millrace_shadow_{name}", f"{name} of the shadow on held-out rows.") for name in FIGURES}
FIRST = {name: Gauge(f"millrace_shadow_first_{name}", f"{name} of the first model, same rows.") for name in FIGURES}
GAP = {name: Gauge(f"millrace_shadow_{name}_gap", f"{name} of the shadow less the first's.") for name in FIGURES}
HALF = {name: Gauge(f"millrace_shadow_{name}_half", f"Half of the gap's 95% interval, {name}.") for name in FIGURES}
for _gauge in (AHEAD, SHADOW_VERSION, FIRST_VERSION):
    _gauge.set(float("nan"))
for _gauge in (*SHADOW.values(), *FIRST.values(), *GAP.values(), *HALF.values()):
    _gauge.set(float("nan"))

_POLL_MS = 50
_LOOK_SECONDS = 1.0
"""Between two looks at the first learner's store, and between two judgements of what was learnt."""
_EASE = 9
"""After a comparison so many times what it took passes before the next: it holds the shadow's learning up."""
_PATIENCE = 4
"""Snapshots of the first learner for which the shadow is waited for, until it has learnt as far as the newest."""
_FAILURES = 3


class Shadow:
    """A shadow that runs. See :func:`run`.

    Args:
        settings: the first learner's.
    """

    def __init__(self, settings: Settings, schema: Schema) -> None:
        self.settings, self.schema = settings, schema
        self.own = shadow_settings(settings)
        self.wanted = wanted_spec(self.own, schema)
        policy = shadow_policy(settings)
        self.relabel = Relabel(policy, Waits.of(settings)) if policy else None
        self.asked = msgspec.json.decode(msgspec.json.encode(self.wanted | {"label_policy": policy}))
        self.first = ModelStore(settings.place("models"), writes=False)
        self.store = ModelStore(self.own.place("models"), keep_ms=round(settings.keep_minutes * 60_000))
        self.offsets: dict[int, int] = {}
        self._logs: dict[str, str] = {}
        self.compares_from_ms = 0  # exposures before that are not compared on
        highest = self.store.highest()
        found, mine = self._found()
        model = model_of(schema, self.wanted, settings.seed, live=True) if found is None else found.model
        repeats = Repeats(keep_ms_of(settings))
        self.trainer = Trainer(model, Progressive(settings.rolling_rows), repeats, settings.batch_rows)
        self.versions = Versions(model, highest.epoch + 1, "shadow", highest.number)
        self.checks = Checks.of(self.own, schema)
        self.promotion = Promotion(self.trainer, self.versions, self.store, self.checks, self._build, self._progress)
        self._begun = found if mine else None
        if found is not None:
            self._resume(found)
        if self._begun is not None:
            self.compares_from_ms = int(self._begun.note.extra.get("from_ms", 0))
            resume_gate(self.own, self.promotion)
        self.promotion.begin(self._begun)
        self._former = FormerSamples(schema, SchemaBook(settings.place(schemabook.PLACE), writes=False))
        self._kinds = Kinds()
        self._history = Path(self.own.folder(), "shadow.jsonl")
        self._compared: Place | None = None
        self._compared_s = time.monotonic()
        self._heard: dict[int, float] = {}  # when a partition's newest message came (monotonic seconds)
        self._failures = 0
        self._shown = self.trainer.counts["trained"]

    # -- what it goes on from --------------------------------------------------------------------------------

    def _found(self) -> tuple[Found | None, bool]:
        """What the shadow goes on from, and whether that is its own. Its own newest snapshot, if its settings are those
        of then; else the first learner's, if it is of the same shape; else nothing."""
        newest = self.store.latest()
        if newest is not None:
            if newest.schema_id == self.schema.id and newest.extra.get("asked") == self.asked:
                return newest_sound(self.store, self.schema.id, {}, self._build), True
            log.warning("the shadow's settings or the schema were changed: it begins anew", version=newest.version)
            self.store.store.remove(self.store.store.names())
        first = self.first.latest()
        if first is None:
            return None, False
        if first.schema_id == self.schema.id and same_shape(first.spec, {**first.spec, **self.wanted}):
            log.info("the shadow begins as the first learner's newest snapshot", version=first.version)
            return newest_sound(self.first, self.schema.id, {}, self._build), False
        log.info("the shadow is another model than the first: it begins with the oldest sample")
        self.compares_from_ms = first.event_ms
        return None, False

    def _build(self, note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
        spec = {**note.spec, **self.wanted}
        model = model_of(self.schema, spec, self.settings.seed, live=True)
        model.resume(parts if same_head(note.spec, spec) else without_head(parts))
        return model

    def _resume(self, found: Found) -> None:
        note = found.note
        self.trainer.resume(found.training, note.extra.get("counts", {}))
        self.offsets = {int(p): o for p, o in note.offsets.items()}
        self._logs = note.logs
        log.info("resumed", version=note.version, trained=note.trained, offsets=note.offsets)

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Learns, and compares, until ``stop`` is set."""
        self._know_log(topic_ids(self.settings).get(SAMPLES, ""))
        reader = make_reader(self.settings, SAMPLES, self.offsets)
        try:
            self._follow()
            self.promotion.start(self._begun, wall_ms())
            SHADOW_VERSION.set(self.versions.version)
            READY.set(1)
            self._loop(reader, stop)
            self._learn(drain=True)
            self._snapshot()
            keep_gate(self.own, self.promotion)
        finally:
            READY.set(0)
            reader.close()

    def _know_log(self, now: str) -> None:
        before = self._logs.get(SAMPLES, "")
        if before and now and before != now and self.offsets:
            log.warning("the samples on the broker are another log than the snapshot's; it is read from the beginning")
            self.offsets = {}
        self._logs = {SAMPLES: now} if now else {}

    def _loop(self, reader: KafkaConsumer, stop: threading.Event) -> None:
        settings = self.settings
        now = time.monotonic()
        self._heard = {tp.partition: now for tp in reader.assignment()}
        if self.relabel is not None:
            self.relabel.time.expect(self._heard)
        due_batch, due_look, due_compare = now, now, now
        due_snapshot, due_gate = now + settings.snapshot_seconds, now + KEEP_SECONDS
        while not stop.is_set():
            LOOP_TIMESTAMP.set(time.time())
            self._take(reader)
            now = time.monotonic()
            if self._learn(drain=now >= due_batch) or not self.trainer.pending:
                due_batch = time.monotonic() + settings.batch_ms / 1000
            if now >= due_look:
                self._publish(dense=False)
                self._show(reader)
                due_look = now + _LOOK_SECONDS
            if now >= due_compare:
                began = time.monotonic()
                self._compare()
                now = time.monotonic()
                due_compare = now + max(_LOOK_SECONDS, _EASE * (now - began))
            if now >= due_snapshot or self.promotion.snapshot_wanted:
                self._learn(drain=True)
                self._snapshot()
                due_snapshot = time.monotonic() + settings.snapshot_seconds
            if now >= due_gate:
                keep_gate(self.own, self.promotion)
                due_gate = time.monotonic() + KEEP_SECONDS

    def _take(self, reader: KafkaConsumer) -> None:
        polled: dict[Any, list[Any]] = reader.poll(timeout_ms=_POLL_MS)
        for partition, records in polled.items():
            gone_before(SAMPLES, partition.partition, self.offsets.get(partition.partition), records[0].offset)
            for record in records:
                try:
                    batch = self._former.carried(SampleBatch.from_bytes(record.value), record.headers)
                    if not self.trainer.fits(batch):
                        raise SchemaError("samples of another schema", "give stream and shadow one schema")
                    self._give(batch, partition.partition, record.offset)
                except SchemaError as error:  # the first learner buries it
                    self._kinds.note(
                        "samples passed over", f"partition {partition.partition}, offset {record.offset}: {error}"
                    )
                self.offsets[partition.partition] = record.offset + 1
            self._heard[partition.partition] = time.monotonic()
        if self.relabel is not None:
            for due in self.relabel.due():
                self.trainer.take(due.batch, due.partition, 0, due.offset)
        for told in self._kinds.due(time.monotonic()):
            log.warning(told.kind, count=told.times, example=told.example)

    def _give(self, batch: SampleBatch, partition: int, offset: int) -> None:
        """Gives a message to the trainer, or what the shadow's own label policy lets pass of it now."""
        if self.relabel is None:
            self.trainer.take(batch, partition, 0, offset)
            return
        for now in self.relabel.take(batch, partition, offset):
            self.trainer.take(now.batch, now.partition, 0, now.offset)

    def _learn(self, drain: bool) -> bool:
        learnt = False
        while self.promotion.step(drain) is not None:
            learnt = True
        self.promotion.take_clicks()  # nobody waits for them here
        if self.promotion.release_some():
            learnt = True
        return learnt

    def _progress(self) -> Progress:
        counts = dict(self.trainer.counts)
        extra = {
            "counts": counts,
            "columns": msgspec.to_builtins(self.trainer.model.columns),
            "asked": self.asked,
            "from_ms": self.compares_from_ms,
        }
        offsets = dict(self.offsets) if self.relabel is None else self.relabel.offsets(self.offsets)
        return Progress(counts.get("trained", 0), offsets, self._logs, extra)

    def _publish(self, dense: bool = True) -> None:
        """Judges what was learnt, as if it were to be published. Nobody follows: the version goes nowhere."""
        try:
            found = self.promotion.delta(wall_ms(), dense, dense)
        except StoreError as error:
            self._failed(error)
            return
        if found is not None and found.note.kind == "snapshot":
            SHADOW_VERSION.set(found.note.version)

    def _failed(self, error: StoreError) -> None:
        """Raises StoreError: it was not the first time."""
        self._failures += 1
        if self._failures >= _FAILURES:
            raise error
        log.error("the shadow's store takes nothing; tried again with the next snapshot", error=one_line(error))

    def _snapshot(self) -> None:
        """Writes a snapshot, if it passes. Learning waits for it: nobody waits for the shadow."""
        self._publish()
        try:
            note = self.promotion.write_snapshot(wall_ms())
        except StoreError as error:
            self._failed(error)
            return
        if note is None:
            self._publish()  # the root, where it did not pass
            return
        self.store.prune()
        self._failures = 0
        SHADOW_VERSION.set(note.version)

    # -- beside the first ------------------------------------------------------------------------------------

    def _follow(self) -> Announcement | None:
        """Holds out the pages that the first learner does, as its newest snapshot says. That snapshot; None where
        nothing is held out."""
        note = self.first.latest()
        if note is None or self.checks is None:
            return None
        try:
            self.checks.heldout.follow(note.extra["heldout"])
        except (KeyError, ValueError, TypeError):
            self._kinds.note("the first learner says nothing of held-out pages: nothing is compared", str(note.place))
            return None
        return note

    def _compare(self) -> None:
        """Compares with the first learner's newest snapshot, if it is a new one, as soon as the shadow has learnt as
        far; but not much later, however far behind it is."""
        try:
            note, newest_ms = self._follow(), self.trainer.model.newest_ms
            if note is None or self.checks is None or self._compared == note.place:
                return
            now = time.monotonic()
            if newest_ms < note.event_ms and now < self._compared_s + _PATIENCE * self.settings.snapshot_seconds:
                return
            self._compared, self._compared_s = note.place, now
            rows = self.checks.heldout.aged(self.compares_from_ms, newest_ms)
            # A share that became smaller was heard of late: what the first learner has learnt meanwhile is left out.
            both = self.checks.heldout.holds(rows.page, rows.ts_ms)
            ROWS.set(int(both.sum()))
            if not both.any():
                return
            cat, num = rows.cat[both], rows.num[both]
            first = scores(self._first(note), cat, num)
        except AbsentError:  # removed while it was read: there is a newer one
            return
        except (StoreError, SnapshotError) as error:
            self._kinds.note("not compared with the first", one_line(error))
            return
        self._tell(note, versus(scores(self.trainer.model, cat, num), first, rows.label[both], rows.user[both]))

    def _first(self, note: Announcement) -> Any:
        """The first learner's model, to score with."""
        if note.schema_id != self.schema.id:
            raise SnapshotError(f"the first learner's schema is {note.schema_id}", "restart the shadow with it")
        parts = (split(image)[0] for image in self.first.read_parts(note))
        named = self.settings.model
        writer = writer_of(self.schema, note.spec, parts, named=named)
        return reader_of(self.schema, note.spec, writer.base(), named=named)

    def _tell(self, note: Announcement, found: Versus) -> None:
        ahead_ms = self.trainer.model.newest_ms - note.event_ms
        ROWS.set(found.rows)
        FIRST_VERSION.set(note.version)
        AHEAD.set(ahead_ms / 1000)
        for name in FIGURES:
            SHADOW[name].set(found.shadow[name])
            FIRST[name].set(found.first[name])
            GAP[name].set(found.gaps[name].value)
            HALF[name].set(found.gaps[name].half)
        line = {"event_ms": self.trainer.model.newest_ms, "ahead_ms": ahead_ms, "first_version": note.version}
        line |= {"shadow_version": self.versions.version, **found.line()}
        with self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        log.info("beside the first", rows=found.rows, figures=str(found))

    def _show(self, reader: KafkaConsumer) -> None:
        lags, quiet = lag_of(reader), time.monotonic() - self.settings.idle_seconds
        SHADOW_LAG.set(sum(lags.values()))
        if self.relabel is not None:
            self.relabel.time.silent(p for p, lag in lags.items() if not lag and self._heard.get(p, quiet) <= quiet)
        trained = self.trainer.counts["trained"]
        TRAINED.inc(max(0, trained - self._shown))  # a way back takes some out
        self._shown = trained


def run(settings: Settings, stop: threading.Event) -> None:
    """Learns and compares until ``stop`` is set; then writes a last snapshot, and returns.

    Raises:
        SettingError: no model of a shadow is named, or it is not one.
        StoreError: a store cannot be used.
        BrokerError: the broker or the topic is not there.
        PortError: the metrics port is taken.
    """
    if not settings.shadow_model:
        raise SettingError("no shadow is named", "set MILLRACE_SHADOW_MODEL to the model of the second learner")
    check_whole(settings)
    step_back()  # whoever serves, or teaches who serves, comes first
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 4))
    serve_metrics("shadow", settings.metrics_port, settings.host)
    schema = settings.load_schema()
    shadow = Shadow(settings, schema)
    warm_up(shadow.trainer.model)
    open_broker(settings)
    shadow.run(stop)
