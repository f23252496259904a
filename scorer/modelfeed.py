# shell
"""The feed of model versions: announcements from Kafka, files from the model store, changes through the door.

Reading, verifying and building happen in this feed's thread. The event loop only patches a delta into the served model,
or swaps the reference to a new model, which this thread has built and warmed.
"""

from __future__ import annotations

import threading

import numpy as np
import structlog

from learner.model import ServingModel
from millrace.contracts.errors import MillraceError, SnapshotError
from millrace.contracts.modelstore import Announcement, Image, ModelStore, decode_announcement
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from scorer.door import Door, Stopped
from scorer.feed import Feed, Record
from scorer.meters import ScorerMeters
from scorer.serving import Serving
from scorer.versions import judge, order, path_from

log = structlog.get_logger("scorer")


class ModelFeed(Feed):
    """Model versions: deltas patched in order; after a gap, the newest snapshot and the deltas after it."""

    topic = MODEL_DELTAS

    def __init__(self, settings: Settings, serving: Serving, meters: ScorerMeters, door: Door, stop: threading.Event):
        super().__init__(settings, serving, meters, door, stop)
        self.store = ModelStore(settings.folder("models"))
        self.head: Announcement | None = None  # the version that is served, as this thread last made it
        self._in_gap = False
        self._foreign: set[str] = set()

    def start_up(self) -> None:
        if self.head is None:
            self.resynchronise(count=False)

    def take(self, records: list[Record]) -> None:
        for _, value in records:
            try:
                note = decode_announcement(value)
            except SnapshotError as error:
                self.bad("announcement", error)
                continue
            if note.schema_id != self.serving.schema.id:
                if note.schema_id not in self._foreign:
                    self._foreign.add(note.schema_id)
                    self.bad("schema", f"version {note.version} is of schema {note.schema_id}, not of ours")
                continue
            self.follow(note)

    def follow(self, note: Announcement) -> None:
        """Handles one announcement as :func:`scorer.versions.judge` says."""
        verdict = judge(self.head, note)
        if verdict == "ignore":
            return
        if verdict == "gap":
            self._gap(note, f"version {note.version} does not follow {self.head.version if self.head else 'nothing'}")
            return
        try:
            image = self.store.read(note)
            if verdict == "load":
                model = build(self.serving, note, image)
                self.door.call(self.serving.install, note, model, 0, note.origins)
            else:
                self.door.call(self.serving.patch, note, image)
        except Stopped:
            raise
        except SnapshotError as error:  # pruned or damaged
            self._gap(note, str(error))
        except Exception as error:  # the model may be half patched: load it again
            self.meters.error("patch")
            log.warning("a delta could not be applied", version=note.version, error=f"{type(error).__name__}: {error}")
            self.resynchronise(count=True, anew=True)
        else:
            self.head, self._in_gap = note, False

    def _gap(self, note: Announcement, reason: str) -> None:
        if not self._in_gap and self.head is not None:
            self._in_gap = True
            self.meters.gap()
            log.warning("resynchronising the model", reason=reason)
        self.resynchronise(count=True)

    def resynchronise(self, count: bool, anew: bool = False) -> None:
        """Loads the newest snapshot and the deltas after it, unless the served version is as new as these.

        Args:
            count: whether the clicks learnt on the way count as served now (not at the start of a scorer).
            anew: load them even if the served version is as new.
        """
        try:
            snapshots = [n for n in self.store.snapshots() if n.schema_id == self.serving.schema.id]
            deltas = list(self.store.deltas())
        except SnapshotError as error:
            self.bad("snapshot", error)
            return
        for snapshot in sorted(snapshots, key=order, reverse=True):
            path = path_from(snapshot, deltas)
            newest = path[-1] if path else snapshot
            if self.head is not None and not anew and order(newest) <= order(self.head):
                return
            try:
                model = build(self.serving, snapshot, self.store.read(snapshot))
            except MillraceError as error:  # damaged, or of a kind that this scorer is too old to read
                self.bad("snapshot", error)
                continue
            self._replay(snapshot, model, path, count)
            return

    def _replay(self, snapshot: Announcement, model: ServingModel, path: list[Announcement], count: bool) -> None:
        """Patches a model that is not served yet with the deltas after its snapshot, then serves it."""
        reached, origins, applied = snapshot, list(snapshot.origins), 0
        for note in path:
            try:
                model.patch(self.store.read(note))
            except SnapshotError as error:
                self.bad("delta", error)
                break
            reached, applied = note, applied + 1
            if self.head is None or order(note) > order(self.head):
                origins += note.origins
        self.door.call(self.serving.install, reached, model, applied, origins if count else [])
        self.head, self._in_gap = reached, False
        log.info("model loaded", version=reached.version, snapshot=snapshot.version, deltas=applied)


def build(serving: Serving, note: Announcement, image: Image) -> ServingModel:
    """A model from a snapshot, warmed by one batch so that no request pays for its first call."""
    model = ServingModel.of(serving.schema, note.spec, image)
    layout, n = serving.schema.layout, serving.settings.candidates
    model.score(np.ones((n, layout.F), np.int64), np.zeros((n, layout.N), np.float32))
    return model
