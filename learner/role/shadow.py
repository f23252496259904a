# shell
"""The role ``shadow``: a second learner on the same samples, judged beside the first on pages that neither has learnt.

It scores the same held-out rows as the first learner's newest snapshot, for metrics and shadow.jsonl. Its own snapshots
serve a restart, and `millrace model promote shadow`.

It has the same trainer, the same gate, another model, and publishes nothing: it claims no epoch, and no scorer follows
it. It reads without a consumer group, so no offsets move.

**The same rows.** The first learner's snapshots name the share of held-out pages, and since when. The shadow holds out
the same, and no more, or it would learn from less than the first. It sees a new share somewhat late; a row counts only
if both have held its page out. A shadow that begins with the oldest sample is judged only on exposures newer than the
first learner's snapshot at that time, for it cannot know whether there was a gate before.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
import torch
from prometheus_client import Counter, Gauge

from learner.evaluation.progressive import Progressive
from learner.evaluation.versus import FIGURES, Versus, versus
from learner.gate.checks import Checks
from learner.gate.heldout import scores
from learner.ranker.repeats import Repeats, keep_ms_of
from learner.ranker.verbs import Learning
from learner.role.learner_warmup import warm_up
from learner.role.learnloop import LearnLoop, LearnPace
from learner.role.loopoutput import LoopOutput
from learner.role.model_factory import model_of, reader_of, wanted_spec, writer_of
from learner.role.samplereader import SampleReader
from learner.role.shadow_view import shadow_policy, shadow_settings
from learner.samples.relabel import Relabel
from learner.training.learner_versions import FoundSnapshot, newest_valid, same_head, same_shape, without_head
from learner.training.trainer import Trainer
from millrace.basics.errors import SettingError, SnapshotError, StoreError, one_line
from millrace.basics.ranking_metrics import ROLLING_ROWS
from millrace.basics.store import AbsentError
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.labels import Waits
from millrace.processes.kafka import open_broker
from millrace.processes.kinds import Kinds
from millrace.processes.metrics import serve_metrics
from millrace.processes.priority import step_back
from millrace.processes.profiles import check_whole
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
_FIGURES = (*SHADOW.values(), *FIRST.values(), *GAP.values(), *HALF.values())
for _gauge in (AHEAD, SHADOW_VERSION, FIRST_VERSION, *_FIGURES):
    _gauge.set(math.nan)

_LOOK_SECONDS = 1.0
"""Between two checks of the first learner's store, and between two judgements of what was learnt."""
_EASE = 9
"""After a comparison, so many times its duration passes before the next: it holds the shadow's learning up."""
_PATIENCE = 4
"""Snapshots of the first learner to wait for the shadow, until it has learnt as far as the newest."""


class Shadow:
    """A running shadow. ``settings``: the first learner's."""

    def __init__(self, settings: Settings, schema: Schema) -> None:
        self.settings, self.schema = settings, schema
        self.own = shadow_settings(settings)
        self.wanted = wanted_spec(self.own, schema)
        policy = shadow_policy(settings)
        if policy and self.own.gate == "on":  # its samples are no topic's: what it refused could never be learnt
            self.own = msgspec.structs.replace(self.own, gate="observe")
        self.relabel = Relabel(policy, Waits.of(settings)) if policy else None
        self.asked = msgspec.json.decode(msgspec.json.encode(self.wanted | {"label_policy": policy}))
        self.first = ModelStore(settings.place("models"), writes=False)
        self.store = ModelStore(self.own.place("models"), keep_ms=round(settings.keep_minutes * 60_000))
        self.compares_from_ms = 0  # exposures before that are not compared on
        highest = self.store.highest()
        found, mine = self._found()
        model = model_of(schema, self.wanted, settings.seed, live=True) if found is None else found.model
        progressive, repeats = Progressive(ROLLING_ROWS), Repeats(keep_ms_of(settings))
        self.trainer = Trainer(model, progressive, repeats)
        time = None if self.relabel is None else self.relabel.time
        self.samples = SampleReader(settings, schema, time, self.relabel)
        self._begun = found if mine else None
        if found is not None:
            note = found.note
            self.trainer.resume(found.training, note.extra.get("counts", {}))
            self.samples.resume(note)
            log.info("resumed", version=note.version, trained=note.trained, offsets=note.offsets)
        if self._begun is not None:
            self.compares_from_ms = int(self._begun.note.extra.get("from_ms", 0))
        # It is judged as if it were published. Whole tensors are reported with snapshots alone.
        pace = LearnPace(delta_seconds=_LOOK_SECONDS, dense_seconds=math.inf, retrieval_seconds=math.inf)
        self.loop = LearnLoop(self.own, self.samples, self.trainer, self.store, self._build, self._extra, pace)
        versions = self.loop.versions
        versions.epoch, versions.claimant, versions.version = highest.epoch + 1, "shadow", highest.number

    def _found(self) -> tuple[FoundSnapshot | None, bool]:
        """What the shadow goes on from, and whether that is its own: its own newest snapshot, if its settings are
        unchanged; else the first learner's, if it is of the same shape; else nothing."""
        newest = self.store.latest()
        if newest is not None:
            if newest.schema_id == self.schema.id and newest.extra.get("asked") == self.asked:
                return newest_valid(self.store, self.schema.id, {}, self._build), True
            log.warning("the shadow's settings or the schema were changed: it begins anew", version=newest.version)
            self.store.store.remove(self.store.store.names())
        first = self.first.latest()
        if first is None:
            return None, False
        if first.schema_id == self.schema.id and same_shape(first.spec, {**first.spec, **self.wanted}):
            log.info("the shadow begins as the first learner's newest snapshot", version=first.version)
            return newest_valid(self.first, self.schema.id, {}, self._build), False
        log.info("the shadow is another model than the first: it begins with the oldest sample")
        self.compares_from_ms = first.event_ms
        return None, False

    def _build(self, note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
        spec = {**note.spec, **self.wanted}
        model = model_of(self.schema, spec, self.settings.seed, live=True)
        model.resume(parts if same_head(note.spec, spec) else without_head(parts))
        return model

    def _extra(self) -> dict[str, Any]:
        return {"asked": self.asked, "from_ms": self.compares_from_ms}

    def run(self, stop: threading.Event) -> None:
        beside = self.loop.output = Beside(self)
        beside.follow()
        self.loop.run(self._begun, stop)


class Beside(LoopOutput):
    """Compares what a shadow has learnt with the first learner's newest snapshot. It publishes no version."""

    def __init__(self, shadow: Shadow) -> None:
        self._trainer, self._first, self._versions = shadow.trainer, shadow.first, shadow.loop.versions
        self._checks: Checks | None = shadow.loop.promotion.checks
        self._schema, self._settings = shadow.schema, shadow.settings
        self._from_ms = shadow.compares_from_ms
        self._history = Path(shadow.own.folder(), "shadow.jsonl")
        self._kinds = Kinds()
        self._compared: Place | None = None
        self._compared_s = self._due = time.monotonic()
        self._shown = shadow.trainer.counts["trained"]

    def root(self, note: Announcement) -> None:
        self.snapshot(note)

    def snapshot(self, note: Announcement) -> None:
        SHADOW_VERSION.set(note.version)

    def between(self, now: float) -> None:
        if now < self._due:
            return
        began = time.monotonic()
        self._compare()
        now = time.monotonic()
        self._due = now + max(_LOOK_SECONDS, _EASE * (now - began))
        for told in self._kinds.due(now):
            log.warning(told.kind, count=told.times, example=told.example)

    def report(self, lags: Mapping[int, int]) -> None:
        SHADOW_LAG.set(sum(lags.values()))
        trained = self._trainer.counts["trained"]
        TRAINED.inc(max(0, trained - self._shown))  # a rollback takes some out
        self._shown = trained

    def follow(self) -> Announcement | None:
        """Holds out the first learner's pages. Returns its newest snapshot; None where nothing is held out."""
        note = self._first.latest()
        if note is None or self._checks is None:
            return None
        try:
            self._checks.heldout.follow(note.extra["heldout"])
        except (KeyError, ValueError, TypeError):
            self._kinds.note("the first learner says nothing of held-out pages: nothing is compared", str(note.place))
            return None
        return note

    def _compare(self) -> None:
        """Compares with a new snapshot of the first learner, when the shadow has learnt as far, or soon after."""
        try:
            note, newest_ms = self.follow(), self._trainer.model.newest_ms
            if note is None or self._checks is None or self._compared == note.place:
                return
            now = time.monotonic()
            if newest_ms < note.event_ms and now < self._compared_s + _PATIENCE * self._settings.snapshot_seconds:
                return
            self._compared, self._compared_s = note.place, now
            rows = self._checks.heldout.aged(self._from_ms)
            # A smaller share is seen late: what the first learner has learnt meanwhile is left out.
            both = self._checks.heldout.holds(rows.page, rows.ts_ms)
            ROWS.set(int(both.sum()))
            if not both.any():
                return
            cat, num = rows.cat[both], rows.num[both]
            first = scores(self._model_of(note), cat, num)
        except AbsentError:  # removed while it was read: there is a newer one
            return
        except (StoreError, SnapshotError) as error:
            self._kinds.note("not compared with the first", one_line(error))
            return
        self._show(note, versus(scores(self._trainer.model, cat, num), first, rows.label[both], rows.user[both]))

    def _model_of(self, note: Announcement) -> Any:
        if note.schema_id != self._schema.id:
            raise SnapshotError(f"the first learner's schema is {note.schema_id}", "restart the shadow with it")
        parts = (split(image)[0] for image in self._first.read_parts(note))
        named = self._settings.model
        writer = writer_of(self._schema, note.spec, parts, named=named)
        return reader_of(self._schema, note.spec, writer.base(), named=named)

    def _show(self, note: Announcement, found: Versus) -> None:
        newest_ms = self._trainer.model.newest_ms
        ahead_ms = newest_ms - note.event_ms
        ROWS.set(found.rows)
        FIRST_VERSION.set(note.version)
        AHEAD.set(ahead_ms / 1000)
        for name in FIGURES:
            SHADOW[name].set(found.shadow[name])
            FIRST[name].set(found.first[name])
            GAP[name].set(found.gaps[name].value)
            HALF[name].set(found.gaps[name].half)
        line = {"event_ms": newest_ms, "ahead_ms": ahead_ms, "first_version": note.version}
        line |= {"shadow_version": self._versions.version, **found.line()}
        with self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        log.info("beside the first", rows=found.rows, figures=str(found))


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
    step_back()  # serving, and the first learner, come first
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 4))
    serve_metrics("shadow", settings.metrics_port, settings.host)
    schema = settings.load_schema()
    shadow = Shadow(settings, schema)
    warm_up(shadow.trainer.model)
    open_broker(settings)
    shadow.run(stop)
