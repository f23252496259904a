# core
"""The learner's side of the model store: it numbers its versions, and writes snapshots beside learning.

A later delta has what this one leaves out, as it is then. So followers hold what was last published of each part::

    rows of the ranker   v60  v61  v62  v63  v64 ...        each delta
    dense tensors        v60            v63                 each ``PACE.dense_seconds``, and before a snapshot
    retrieval head                 v62                      each ``PACE.retrieval_seconds``, and before a snapshot

A snapshot is begun, copied slice by slice while the model learns and publishes on, and finished at a version::

    begin at v80 ─ slice ─ slice ─ (v81) ─ slice ─ (v82) ─ slice ─ (v83, with dense tensors) finish ──► snapshot v83
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from learner.custom.ownclass import is_own
from learner.network.models.spec import read_spec
from learner.ranker.interfaces import Learning, Slicing
from learner.ranker.snapshot_slices import Part
from millrace.basics.errors import SnapshotError, StoreError
from millrace.basics.store import AbsentError, DamagedError, Sealed
from millrace.versions.clicks import ClickHistogram
from millrace.versions.image import RETRIEVAL_TABLES
from millrace.versions.modelstore import Announcement, Array, Cuts, Image, ModelStore, Place, chain
from millrace.versions.packing import pack

log = structlog.get_logger("learner")


@dataclass(slots=True)
class Progress:
    """What a version reports besides its tensors."""

    trained: int = 0
    offset: int | None = None  # next of samples to read; None: from the beginning
    log: str = ""  # id of the topic that the offset is of
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Last:
    """The end of a snapshot: its last part, and the content of the manifest."""

    part: Part
    own_hash: str | None  # None: a root
    meta: dict[str, Any]
    cuts: Cuts | None = None


class Versions:
    """Numbers and announces a model's versions. ``model`` may learn between any two calls.

    ``published_ms`` is the wall time of publication in Unix ms; the caller has the clock.

    Args:
        epoch: the one that this learner has.
        claimant: the name in its claim.
        version: the highest number that was ever published, -1: none was.
    """

    def __init__(self, model: Learning, epoch: int = 0, claimant: str = "learner", version: int = -1) -> None:
        self.model = model
        self.epoch, self.claimant, self.version = epoch, claimant, version
        self.hash = ""
        self._clicks: list[NDArray[np.int64]] = []  # when those learnt since the last version were sent
        self._changed = False
        self._dense: dict[str, Array] | None = None  # as followers hold them
        self._dense_behind = self._head_behind = False
        self._snapshot_version = self._root_version = -1

    def replace(self, model: Learning) -> None:
        """Goes on with another model: one that followers hold already, or whose root comes next. Dense tensors and the
        retrieval head go out again, since followers may have older ones."""
        self.model = model
        self._changed, self._clicks = False, []
        self._dense_behind, self._head_behind = True, model.head is not None
        self._snapshot_version = -1

    def learnt(self, clicks_ms: NDArray[np.int64]) -> None:
        """Reports that the model has learnt since the last version, among others from clicks sent then (wall time)."""
        self._changed = self._dense_behind = True
        self._head_behind = self.model.head is not None
        self._clicks.append(clicks_ms)

    # -- deltas ----------------------------------------------------------------------------------------------

    def delta(
        self, progress: Progress, published_ms: int, dense: bool = True, retrieval: bool = True
    ) -> tuple[Announcement, bytes] | None:
        """The next version and its packed body, or None when nothing was learnt since the last.

        Args:
            dense: with the network's tensors.
            retrieval: with the retrieval head. A snapshot can only be finished after a delta that had both.

        Raises:
            SnapshotError: it is too large. Followers then lack its content: the version counts as published, and the
                next snapshot repairs that.
        """
        dense = (dense or not self.model.tables) and self._dense_behind  # without rows they are all there is to tell
        retrieval = retrieval and self._head_behind
        if not self._changed and not dense and not retrieval:
            return None
        image, before = self.model.changes(dense, retrieval), self._dense
        self.version += 1
        # From here on the version counts, whatever becomes of it: the model has forgotten what it had changed.
        parent, self.hash = self.hash, chain(self.hash, "")
        meta = self._meta(progress, published_ms)
        self._changed, self._clicks = False, []
        if dense:
            self._dense, self._dense_behind = image.dense, False
        if retrieval:
            self._head_behind = False
        body = pack(image, before)
        digest = hashlib.sha256(body).hexdigest()
        self.hash = chain(parent, digest)
        note = Announcement(
            kind="delta",
            parent=parent,
            hash=self.hash,
            digest=digest,
            size=len(body),
            spec={},
            retrieval_clicks=self._head_clicks if retrieval else -1,
            **meta,
        )
        return note, body

    @property
    def _head_clicks(self) -> int:
        """How many the retrieval head has learnt; -1: there is none."""
        return -1 if self.model.head is None else self.model.head.clicks

    # -- snapshots -------------------------------------------------------------------------------------------

    @property
    def place(self) -> Place:
        return Place(self.epoch, self.version)

    @property
    def snapshot_ready(self) -> bool:
        """Whether a snapshot of the newest version would hold exactly what its deltas had."""
        return not (self._changed or self._dense_behind or self._head_behind)

    def snapshot_lost(self) -> None:
        """Reports that a snapshot was not written: its version has none."""
        self._snapshot_version = -1

    @property
    def snapshot_due(self) -> bool:
        """Whether the newest version has no snapshot yet, or something was learnt since."""
        return not self.snapshot_ready or self._snapshot_version != self.version

    @property
    def root_newest(self) -> bool:
        """Whether the newest version is a root: a snapshot begun before the next delta would use its file names."""
        return self._root_version == self.version

    def begin(self, rows: int = 100_000) -> Slicing:
        """Begins a snapshot that is copied ``rows`` rows at a time, and gives up an earlier one. Not at
        :attr:`root_newest`. Take parts between steps of learning until there is none; then, right after a delta with
        all there is, call :meth:`finish`. :class:`SnapshotFiles` writes the files, under the name of :attr:`place` as
        it is now."""
        return self.model.slices(rows)

    def begin_root(self) -> Slicing:
        """Begins a snapshot above every published version. The model must not learn until it is finished."""
        self.version += 1
        self._root_version = self.version
        self.model.changes()  # the root has them
        self._changed = self._dense_behind = self._head_behind = False
        self.hash = ""
        return self.model.slices()

    def finish(self, slices: Slicing, progress: Progress, trainer: Mapping[str, Array], published_ms: int) -> Last:
        """The end of a snapshot, of the newest version. ``trainer``: the trainer's own snapshot. Raises SnapshotError
        where something was learnt, or left out, since the newest version."""
        image, training = slices.finish()
        if not self.snapshot_ready:
            raise SnapshotError(
                f"a snapshot of version {self.version} would have what no delta had", "publish a delta with all first"
            )
        meta = self._meta(progress, published_ms) | {
            "spec": self.model.spec,
            "retrieval_clicks": self._head_clicks,
            "offset": progress.offset,
            "samples_log": progress.log,
            "extra": {**progress.extra, "rows": {name: len(table) for name, table in self.model.tables.items()}},
        }
        self._snapshot_version = self.version
        if self.root_newest:
            self._dense = image.dense
        return Last((image, {**training, **trainer}), self.hash or None, meta)

    def announced(self, root: Announcement) -> None:
        """Reports that the root was written: deltas follow it from now on."""
        self.hash = root.hash

    def _meta(self, progress: Progress, published_ms: int) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "version": self.version,
            "claimant": self.claimant,
            "schema_id": self.model.schema.id,
            "event_ms": self.model.newest_ms,
            "trained": progress.trained,
            "published_ms": published_ms,
            "clicks": ClickHistogram.of(np.concatenate(self._clicks)) if self._clicks else ClickHistogram(),
        }


class SnapshotFiles:
    """Writes a snapshot's files, which count only with the manifest. StoreError where one cannot be written."""

    def __init__(self, store: ModelStore, begun: Place) -> None:
        self._store, self._begun = store, begun
        self._parts: list[tuple[Sealed, Sealed]] = []
        self._ends: Place | None = None  # where the manifest is to be

    def add(self, part: Part) -> None:
        self._parts.append(self._store.write_part(self._begun, len(self._parts), *part))

    def give_up(self) -> None:
        """Removes what was written, so that a full store gets room: not where the manifest is there, though its write
        has failed. The next snapshot removes the rest."""
        with contextlib.suppress(StoreError):
            if self._ends is not None and self._ends in [note.place for note in self._store.snapshots(held=True)]:
                return
            self._store.store.remove(file.name for part in self._parts for file in part)

    def end(self, last: Last, **where: Any) -> Announcement:
        """Writes the last part and the manifest. ``where``: ``follows`` and ``log`` of the announcement."""
        self.add(last.part)
        self._ends = Place(last.meta["epoch"], last.meta["version"])
        if last.cuts is not None:  # first: a snapshot without them is one that cannot be learnt again
            self._store.write_cuts(self._ends, last.cuts)
        return self._store.write_manifest(self._parts, last.own_hash, **last.meta, **where)


def write_root(
    store: ModelStore,
    versions: Versions,
    progress: Progress,
    trainer: Mapping[str, Array],
    ms: int,
    cuts: Cuts | None = None,
    **where: Any,
) -> Announcement:
    """Publishes the first version after a start to the store (:meth:`Versions.begin_root`), while learning waits.
    ``cuts``: how it was learnt. Raises StoreError where it cannot be written."""
    slices = versions.begin_root()
    files = SnapshotFiles(store, versions.place)
    try:
        for part in iter(slices.next, None):
            files.add(part)
        note = files.end(replace(versions.finish(slices, progress, trainer, ms), cuts=cuts), **where)
    except BaseException:
        slices.abandon()
        files.give_up()
        versions.snapshot_lost()
        raise
    versions.announced(note)
    return note


_SHAPE = (
    *("model", "width", "blocks", "hidden", "norm", "placement", "numerics", "buckets", "bucket_width"),
    *("dense", "max_rows", "admit"),
)
"""Entries of a spec whose change rules out a plain resume. The others are rates and bounds."""


def same_shape(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a model with the spec ``new`` can resume a snapshot made with ``old``."""
    return not _differences(old, new)


def same_head(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a spec ``new`` keeps the retrieval head of a snapshot of ``old``. If not, an empty head begins."""
    if is_own(old.get("model")) or is_own(new.get("model")):
        return True  # a model of one's own has none
    return read_spec(old).retrieval_width == read_spec(new).retrieval_width


def without_head(
    parts: Iterable[tuple[Image, Mapping[str, Array]]],
) -> Iterator[tuple[Image, Mapping[str, Array]]]:
    for image, training in parts:
        yield Image(image.dense, {n: t for n, t in image.tables.items() if n not in RETRIEVAL_TABLES}), training


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if is_own(old.get("model")) or is_own(new.get("model")):
        return [] if old.get("model") == new.get("model") else ["model"]  # its other entries are its class's to judge
    was, now = read_spec(old), read_spec(new)
    return [n for n in _SHAPE if getattr(was, n) != getattr(now, n)]


def adopted(source: str, note: Announcement, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The value of ``extra["adopted"]`` in snapshots after a person had a learner adopt a model that its settings do
    not ask for, until the settings change.

    Args:
        source: where it came from: a learner's name, or "repair".
        note: of the snapshot that was taken over.
        wanted: the entries of a spec that the settings ask for, at that time.
    """
    return {"from": source, "epoch": note.epoch, "version": note.version, "wanted": dict(wanted)}


def asked(note: Announcement, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What settings ask of a model that goes on from a snapshot: nothing, where a person had the learner adopt another
    model since the settings were given. So a restart with unchanged settings goes on with that model, and changed
    settings hold again. A class is never imported because a snapshot names it."""
    over, name = note.extra.get("adopted"), note.spec.get("model")
    same = isinstance(over, dict) and _json(over.get("wanted")) == _json(wanted)
    return {} if same and (not is_own(name) or name == wanted.get("model")) else dict(wanted)


def _json(values: Any) -> bytes:
    """Equal bytes for values that are equal after a round trip through JSON."""
    return msgspec.json.encode(values, order="deterministic")


@dataclass(frozen=True, slots=True)
class FoundSnapshot:
    """What a learner goes on from: a snapshot that was read whole."""

    note: Announcement
    model: Learning
    training: dict[str, Array]  # of its last part: what belongs to no row


Build = Callable[[Announcement, Iterable[tuple[Image, Mapping[str, Array]]]], Learning]
"""Makes the model of a snapshot from its parts, taken one by one."""


def newest_valid(
    store: ModelStore,
    schema_id: str,
    wanted: Mapping[str, Any],
    build: Build,
    evolve: bool = False,
    held: bool = False,
) -> FoundSnapshot | None:
    """The newest snapshot that can be read whole, or None; with ``held`` also one that nobody may see. A damaged one is
    skipped and logged. ``build``: makes a model of parts. Errors of the store or of a part pass through it.

    Raises:
        SnapshotError: the newest is of another schema, or has another shape than the ``wanted`` entries of a spec
            (:func:`asked`), and ``evolve`` is not set.
        StoreError: the store is unreadable at this moment; or it had snapshots, and none of them is whole.
    """
    for note in store.snapshots(held):
        if note.schema_id != schema_id and not evolve:
            raise SnapshotError(
                f"the models in '{store.url}' are of schema {note.schema_id}, the learner's is {schema_id}",
                "set MILLRACE_EVOLVE=true to carry over what both have, MILLRACE_SCHEMA to the schema they were learnt "
                "with, or MILLRACE_DATA to an empty folder",
            )
        for name in () if evolve else _differences(note.spec, {**note.spec, **asked(note, wanted)}):
            flag = "MILLRACE_MODEL" if name == "model" else "MILLRACE_MODEL_SPEC"
            own = is_own(note.spec.get("model")) or is_own(wanted.get("model"))
            carry = "" if own else " MILLRACE_EVOLVE=true to carry over what both have,"
            raise SnapshotError(
                f"the models in '{store.url}' have {name} {note.spec.get(name)!r}, the learner is set to "
                f"{wanted[name]!r}",
                f"set {flag} as it was,{carry} or MILLRACE_DATA to an empty folder",
            )
        kept: dict[str, Array] = {}
        try:
            return FoundSnapshot(note, build(note, _kept(store, note, kept)), kept)
        except (AbsentError, DamagedError) as error:
            log.error("a snapshot is damaged; the one before it is tried", version=note.version, error=error.problem)
    if store.had_snapshots():
        raise StoreError(
            f"none of the snapshots that were in '{store.url}' is whole",
            "put one back, or empty the store to begin with an untrained model",
        )
    return None


def _kept(store: ModelStore, note: Announcement, kept: dict[str, Array]) -> Iterator[tuple[Image, Mapping[str, Array]]]:
    """The parts of a snapshot; puts all but the rows of tables into ``kept`` on the way."""
    parts = store.read_whole(note)
    while True:
        try:
            image, training = next(parts)
        except StopIteration:
            return
        except SnapshotError as error:  # what was read, not what is made of it
            raise DamagedError(error.problem, error.remedy) from None
        kept.update({n: a for n, a in training.items() if not n.startswith("table/")})
        yield image, training
