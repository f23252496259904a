# core
"""The learner's side of the model store: a chain of versions, which begins anew after each start.

::

    start:    newest sound snapshot v57 (older deltas up to v61 on disk) ──resume──► snapshot v62, root of a new chain
    running:  v62 ──delta──► v63 ──► ... ──► v92 = snapshot v92 ──► ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from learner.model import OnlineModel
from learner.spec import read_spec
from millrace.contracts.errors import SnapshotError
from millrace.contracts.modelstore import Announcement, Array, ModelStore, decode_announcement

log = structlog.get_logger("learner")

_ORIGINS = 1000


@dataclass(slots=True)
class Progress:
    """What a version says about itself besides its tensors."""

    trained: int = 0
    offsets: dict[int, int] = field(default_factory=dict)  # next offset of samples to read, by partition
    extra: dict[str, Any] = field(default_factory=dict)


class Versions:
    """Publishes a model's versions in order. ``model`` may learn between any two calls.

    ``published_ms`` is the wall time of publication in Unix ms; the caller has the clock.
    """

    def __init__(self, store: ModelStore, model: OnlineModel) -> None:
        self.store, self.model = store, model
        self.version = _highest(store)
        self.hash = ""
        self._origins: list[int] = []
        self._changed = False
        self._snapshot_version = -1

    def learnt(self, origins: list[int]) -> None:
        """Says that the model has learnt since the last version, among others from clicks sent at ``origins``."""
        self._changed = True
        self._origins = (self._origins + origins)[-_ORIGINS:]

    def root(self, progress: Progress, trainer: Mapping[str, Array], published_ms: int) -> Announcement:
        """The first version after a start: a snapshot above every version that was ever published.

        Args:
            trainer: the trainer's own snapshot, kept beside the model's.
        """
        self.version += 1
        self.model.changes()  # the root has them
        image, training = self.model.snapshot()
        meta = self._meta(progress, published_ms, snapshot=True)
        note = self.store.write_snapshot(image, {**training, **trainer}, **meta)
        return self._published(note)

    def delta(self, progress: Progress, published_ms: int) -> Announcement | None:
        """The next version, or None when nothing was learnt since the last."""
        if not self._changed:
            return None
        self.version += 1
        meta = self._meta(progress, published_ms, snapshot=False)
        note = self.store.write_delta(self.model.changes(), self.hash, **meta)
        return self._published(note)

    def snapshot(self, progress: Progress, trainer: Mapping[str, Array], published_ms: int) -> Announcement | None:
        """The whole state of the newest version; None when that has a snapshot. Call :meth:`delta` before it: a
        snapshot shares the version and the hash of the delta before it, so nothing may be learnt between the two."""
        if self._snapshot_version == self.version:
            return None
        image, training = self.model.snapshot()
        meta = self._meta(progress, published_ms, snapshot=True)
        note = self.store.write_snapshot(image, {**training, **trainer}, hash=self.hash, **meta)
        self.store.prune()
        return self._published(note)

    def _published(self, note: Announcement) -> Announcement:
        self.hash = note.hash
        self._changed, self._origins = False, []
        if note.kind == "snapshot":
            self._snapshot_version = note.version
        return note

    def _meta(self, progress: Progress, published_ms: int, snapshot: bool) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "version": self.version,
            "schema_id": self.model.schema.id,
            "spec": self.model.spec,
            "event_ms": self.model.newest_ms,
            "trained": progress.trained,
            "origins": self._origins,
            "published_ms": published_ms,
        }
        if snapshot:
            meta["offsets"] = {str(p): o for p, o in progress.offsets.items()}
            meta["extra"] = progress.extra
        return meta


def sound_snapshots(store: ModelStore) -> Iterator[Announcement]:
    """Snapshots whose manifest can be read, newest first. A damaged one is logged and set aside, not deleted."""
    for path in sorted(store.folder.glob("snapshot-*/manifest.json"), reverse=True):
        try:
            yield decode_announcement(path.read_bytes())
        except (OSError, SnapshotError) as error:
            set_aside(store, path.parent.name, str(error))


def set_aside(store: ModelStore, name: str, why: str) -> None:
    """Renames a damaged snapshot, so that the store passes it over and a person can still look at it."""
    log.error("snapshot is damaged; the one before it is tried", snapshot=name, error=why, kept_as=f"damaged-{name}")
    (store.folder / name).rename(store.folder / f"damaged-{name}")


_SHAPE = (
    *("model", "width", "blocks", "hidden", "norm", "placement", "numerics", "buckets", "bucket_width"),
    *("dense", "max_rows", "admit"),
)
"""Entries of a spec whose change a snapshot cannot simply resume with. The others are rates and bounds."""


def same_shape(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a model with the spec ``new`` can resume a snapshot made with ``old``."""
    return not _differences(old, new)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    was, now = read_spec(old), read_spec(new)
    return [n for n in _SHAPE if getattr(was, n) != getattr(now, n)]


def newest_sound(
    store: ModelStore, schema_id: str, wanted: Mapping[str, Any], evolve: bool = False
) -> tuple[Announcement, OnlineModelState] | None:
    """The newest snapshot that can be read whole, or None.

    Raises:
        SnapshotError: it is of another schema, or has another shape than the ``wanted`` entries of a spec, and
            ``evolve`` is not set.
    """
    for note in sound_snapshots(store):
        if note.schema_id != schema_id and not evolve:
            raise SnapshotError(
                f"the models in '{store.folder}' are of schema {note.schema_id}, the learner's is {schema_id}",
                "set MILLRACE_EVOLVE=true to carry over what both have, MILLRACE_SCHEMA to the schema they were learnt "
                "with, or MILLRACE_DATA to an empty folder",
            )
        for name in () if evolve else _differences(note.spec, {**note.spec, **wanted}):
            flag = "MILLRACE_MODEL" if name == "model" else "MILLRACE_MODEL_SPEC"
            raise SnapshotError(
                f"the models in '{store.folder}' have {name} {note.spec.get(name)!r}, the learner was told "
                f"{wanted[name]!r}",
                f"set {flag} as it was, MILLRACE_EVOLVE=true to carry over what both have, or MILLRACE_DATA to an "
                "empty folder",
            )
        try:
            return note, OnlineModelState(store.read(note), store.read_training(note))
        except SnapshotError as error:
            set_aside(store, f"snapshot-{note.version:08d}", error.problem)
    return None


@dataclass(slots=True)
class OnlineModelState:
    """What :meth:`OnlineModel.resume` takes."""

    image: Any
    training: dict[str, Array]


def _highest(store: ModelStore) -> int:
    """The highest version that left a trace in the store; -1 in an empty one."""
    names = [p.name for p in store.folder.iterdir()]
    found = [-1]
    for name in names:
        digits = name.removeprefix("damaged-").removeprefix("snapshot-").removeprefix("delta-").split(".")[0]
        if digits.isdigit():
            found.append(int(digits))
    return max(found)
