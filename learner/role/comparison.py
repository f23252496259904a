# shell
"""A learner with a name beside the first one: both models on the same pages, which neither has learnt.

**The same rows.** The first learner's snapshots name the share of held-out pages, and since when. Another learner holds
out the same, and no more, or it would learn from less than the first. It sees a new share somewhat late; a row counts
only if both have held its page out. One that begins with the oldest sample is judged only on exposures newer than the
first learner's snapshot at that time, for it cannot know whether there was a gate before.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from prometheus_client import Gauge

from learner.evaluation.versus import FIGURES, Versus, versus
from learner.gate.heldout import scores
from learner.ranker.interfaces import Learning
from learner.role.learnloop import LearnLoop
from learner.role.model_factory import reader_of, resumed, writer_of
from learner.training.learner_versions import FoundSnapshot, newest_valid
from millrace.basics.errors import SnapshotError, StoreError, one_line
from millrace.basics.store import AbsentError
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.processes.repeated_warnings import Kinds
from millrace.versions.image import split
from millrace.versions.modelstore import Announcement, Array, Image, ModelStore, Place

log = structlog.get_logger("learner")

AHEAD = Gauge("millrace_compared_ahead_seconds", "Event time by which this learner is ahead of the first's snapshot.")
FIRST_VERSION = Gauge("millrace_compared_first_version", "Snapshot of the first learner that was compared last.")
ROWS = Gauge("millrace_compared_rows", "Held-out rows that both models were compared on last.")
COMPARED = Gauge(
    "millrace_compared",
    "A figure on these rows: own, the first learner's, own less the first's, half of that gap's 95% interval.",
    ["figure", "of"],
)
AHEAD.set(math.nan)
FIRST_VERSION.set(math.nan)
for _figure in FIGURES:
    for _of in ("own", "first", "gap", "half"):
        COMPARED.labels(_figure, _of).set(math.nan)

FILE = "compared.jsonl"
"""In the learner's folder: a line for each comparison."""

_LOOK_SECONDS = 1.0
"""Between two checks of the first learner's store."""
_EASE = 9
"""After a comparison, so many times its duration passes before the next: it holds learning up."""
_PATIENCE = 4
"""Snapshots of the first learner to wait for this one, until it has learnt as far as the newest."""


class Comparison:
    """Compares what a loop has learnt with the first learner's newest snapshot.

    Args:
        first: settings of the first learner.
        own: of this one.
        from_ms: exposures before are not compared on.
    """

    def __init__(self, first: Settings, own: Settings, loop: LearnLoop, schema: Schema, from_ms: int) -> None:
        self._trainer, self._versions, self._checks = loop.trainer, loop.versions, loop.promotion.checks
        self._first, self._models = first, ModelStore(first.place("models"), writes=False)
        self._schema, self._patience_s, self._from_ms = schema, _PATIENCE * own.snapshot_seconds, from_ms
        self._history = own.folder("learner") / FILE
        self._kinds = Kinds()
        self._compared: Place | None = None
        self._compared_s = self._due = time.monotonic()
        self._follow()

    def between(self, now: float) -> None:
        """Compares when it is due: between two rounds of the loop."""
        if now < self._due:
            return
        began = time.monotonic()
        self._compare()
        now = time.monotonic()
        self._due = now + max(_LOOK_SECONDS, _EASE * (now - began))
        for told in self._kinds.due(now):
            log.warning(told.kind, count=told.times, example=told.example)

    def _follow(self) -> Announcement | None:
        """Holds out the first learner's pages. Returns its newest snapshot; None where nothing is held out."""
        note = self._models.latest()
        if note is None or self._checks is None:
            return None
        try:
            self._checks.heldout.follow(note.extra["heldout"])
        except (KeyError, ValueError, TypeError):
            self._kinds.note("the first learner says nothing of held-out pages: nothing is compared", str(note.place))
            return None
        return note

    def _compare(self) -> None:
        """Compares with a new snapshot of the first learner, when this one has learnt as far, or soon after."""
        try:
            note, newest_ms = self._follow(), self._trainer.model.newest_ms
            if note is None or self._checks is None or self._compared == note.place:
                return
            now = time.monotonic()
            if newest_ms < note.event_ms and now < self._compared_s + self._patience_s:
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
            raise SnapshotError(f"the first learner's schema is {note.schema_id}", "restart this one with it")
        parts = (split(image)[0] for image in self._models.read_parts(note))
        named = self._first.model
        writer = writer_of(self._schema, note.spec, parts, named=named)
        return reader_of(self._schema, note.spec, writer.base(), named=named)

    def _show(self, note: Announcement, found: Versus) -> None:
        newest_ms = self._trainer.model.newest_ms
        ahead_ms = newest_ms - note.event_ms
        FIRST_VERSION.set(note.version)
        AHEAD.set(ahead_ms / 1000)
        for name in FIGURES:
            gap = found.gaps[name]
            values = {"own": found.own[name], "first": found.first[name], "gap": gap.value, "half": gap.half}
            for of, value in values.items():
                COMPARED.labels(name, of).set(value)
        line = {"event_ms": newest_ms, "ahead_ms": ahead_ms, "first_version": note.version}
        line |= {"version": self._versions.version, **found.line()}
        with self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        log.info("compared with the first", rows=found.rows, figures=str(found))


def newest_of(name: str, settings: Settings, schema: Schema) -> FoundSnapshot:
    """The newest whole snapshot of another learner, as a model that can learn on. ``settings``: of the learner that
    takes it over.

    Raises:
        SettingError: there is no learner of this name.
        SnapshotError: there is none; or it is of another schema, or of a class that ``settings.model`` does not name.
        StoreError: the store cannot be read.
    """
    store = ModelStore(settings.of_learner(name).place("models"), writes=False)

    def build(note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
        return resumed(schema, note, parts, settings.model, settings.seed)

    newest = store.latest()
    if newest is not None and newest.schema_id != schema.id:
        raise SnapshotError(
            f"the learner '{name}' is of schema {newest.schema_id}, this one's is {schema.id}",
            f"restart 'millrace run learn --name {name}' with this schema",
        )
    found = newest_valid(store, schema.id, {}, build) if newest is not None else None
    if found is None:
        raise SnapshotError(
            f"there is no model of '{name}' to adopt: '{store.url}' has no snapshot",
            f"run 'millrace run learn --name {name}' first",
        )
    return found
