# core
"""The model store: how a model outlives its learner and reaches the scorers.

Snapshots lie in a :class:`~millrace.basics.store.Store`, a folder or an object store, as sealed files::

    snapshot-00000002-0000000000000030.manifest            the announcement: names and digests of all the others
    part-00000002-0000000000000028-00000.serving           rows of the tables, some 100,000 a part
    part-00000002-0000000000000028-00000.training          what only training needs of the same rows
    ...
    part-00000002-0000000000000028-00007.serving           the last: dense tensors, and corrections
    cuts-00000002-0000000000000030.acts                    what was learnt since then (decisions.py)
    held-00000002-0000000000000045.manifest                the same, of one that nobody may see yet

The numbers are epoch and version (:mod:`millrace.versions.versioning`). The model learns on while parts are copied, so
parts carry the version at which the snapshot began; the last part repeats the rows that changed meanwhile. Applied in
order, the parts are the state of the manifest's version, and no reader needs all of it in memory. The manifest is
written last: parts without one do not count.

A damaged file invalidates its own snapshot alone: the snapshot before it becomes the newest. Scorers and a restart need
the newest two snapshots; older ones are kept for a rollback (:func:`thinned`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog
from msgspec import Struct

from millrace.basics.arrays import ArraySpec, lay, specs_of, view
from millrace.basics.errors import UNFIT, SnapshotError
from millrace.basics.store import ASIDE, AbsentError, DamagedError, Sealed, Store
from millrace.versions.decisions import LogPart, decode_decisions, encode_decisions
from millrace.versions.image import Array, Image, TableRows
from millrace.versions.versioning import MAX_EPOCH, Announcement, Place, chain, decode_announcement, digest_of

__all__ = [
    "Announcement",
    "Array",
    "Image",
    "ModelStore",
    "Place",
    "TableRows",
    "chain",
    "decode_announcement",
]

log = structlog.get_logger("modelstore")

_NUMBERED = re.compile(r"(?:damaged-)?(?:snapshot|held|part|cuts)-(\d{8})-(\d{16})\b.*")


class _Arrays(Struct, frozen=True):
    """The head of a part: what its body holds."""

    arrays: list[ArraySpec]


class Cuts(NamedTuple):
    """What was decided since the snapshot at ``since``, and led to another one."""

    since: Place
    decided: LogPart


class _CutsHead(Struct, frozen=True):
    """The head of a ``cuts-`` file: the snapshot that it starts from."""

    from_epoch: int
    from_version: int


_arrays = msgspec.json.Decoder(_Arrays).decode


class ModelStore:
    """Snapshots of one model. One process writes; any number read. Each method raises StoreError where the
    store is unusable at that moment.

    Args:
        url: a folder, or any URL that fsspec knows.
        writes: whether this process writes here. A writer sets damaged files aside as it meets them.
        keep_ms: event time for which versions are kept for a rollback; 0: only the newest two are.

    Attributes:
        damaged: names of the files found damaged so far.
        needed: a lease: returns the snapshots that a rollback may need. :meth:`prune` calls it each time, from its own
            thread, and keeps them.
    """

    def __init__(self, url: str | Path, writes: bool = True, keep_ms: int = 0) -> None:
        self.store = Store(url, writes)
        self.url, self.writes, self.keep_ms = str(url), writes, keep_ms
        self.damaged: list[str] = []
        self.needed: Callable[[], Iterable[Place]] = tuple

    # -- writing ---------------------------------------------------------------------------------------------

    def write_part(
        self, begun: Place, number: int, image: Image, training: Mapping[str, Array]
    ) -> tuple[Sealed, Sealed]:
        """Writes a part of a snapshot: what serves, and what only training needs. ``begun``: the version at which the
        snapshot began; no two snapshots share it. ``number``: of the part, from 0."""
        name = f"part-{begun.epoch:08d}-{begun.number:016d}-{number:05d}"
        return self._write(f"{name}.serving", image.tensors()), self._write(f"{name}.training", training)

    def _write(self, name: str, arrays: Mapping[str, Array]) -> Sealed:
        return self.store.put(name, _Arrays(specs_of(arrays)), *lay(arrays))

    def write_manifest(
        self, parts: Sequence[tuple[Sealed, Sealed]], own_hash: str | None = None, **meta: Any
    ) -> Announcement:
        """Makes a snapshot of parts that are written. ``own_hash``: hash of the delta of this version; None: the
        snapshot is a root. ``meta``: the other fields of :class:`Announcement`."""
        serving = [part for part, _ in parts]
        digest = digest_of(serving)
        own = own_hash or chain("", digest)
        note = Announcement(
            kind="snapshot",
            parent=own,
            hash=own,
            digest=digest,
            size=sum(part.size for part in serving),
            parts=serving,
            training=[part for _, part in parts],
            **meta,
        )
        self.store.put(_manifest(note), note)
        return note

    def write_cuts(self, place: Place, cuts: Cuts) -> None:
        """Writes what led to the snapshot at ``place``."""
        self.store.put(_cuts(place), _CutsHead(*cuts.since), encode_decisions(*cuts.decided))

    def read_cuts(self, place: Place) -> Cuts:
        """What led to the snapshot at ``place``. Raises AbsentError, DamagedError, or SnapshotError where it is of no
        use."""
        head, body, _ = self.store.get(_cuts(place))
        try:
            since = msgspec.json.decode(head, type=_CutsHead)
        except UNFIT as error:
            raise SnapshotError(f"file '{_cuts(place)}' cannot be read ({error})", "it is passed over") from None
        return Cuts(Place(since.from_epoch, since.from_version), decode_decisions(body))

    def remove_held(self) -> None:
        """Removes the manifests of snapshots that nobody may see. Their parts go with the next :meth:`prune`."""
        self.store.remove(self.store.names("held-"))

    def prune(self, keep: int = 2, epoch: int = MAX_EPOCH) -> None:
        """Removes all files but those of the newest ``keep`` whole snapshots, of the ones kept for a rollback
        (:func:`thinned`), of the :attr:`needed` ones, and of a newer one that nobody may see. The writer calls it while
        it writes no snapshot.

        Cuts stay behind the oldest snapshot of all, so that what was learnt since any of them is known. ``epoch``: the
        writer's. Files of higher epochs stay: another learner may be at work on them.
        """
        notes = self.snapshots()
        newest = notes[:keep]
        if not newest:
            return
        to_go_back_to, needed = thinned(notes, self.keep_ms), set(self.needed())
        kept = [note for note in notes if note in newest or note in to_go_back_to or note.place in needed]
        kept = [note for note in self.snapshots(held=True)[:1] if note.held] + kept
        used = {file.name for note in kept for file in note.files} | {_manifest(note) for note in kept}
        epoch = min(epoch, kept[0].epoch)
        gone = []
        for name in self.store.names():
            place = _place_in(name)
            if place is None or name in used or place.epoch > epoch:
                continue
            if name.startswith("cuts-") and place > kept[-1].place:
                continue
            gone.append(name)
        self.store.remove(manifests_first(gone))

    def highest(self) -> Place:
        """At or above every version that left a trace here. The numbers may be of two versions. (0, -1) if empty."""
        found = [place for name in self.store.names(aside=True) if (place := _place_in(name))]
        return Place(max((p.epoch for p in found), default=0), max((p.number for p in found), default=-1))

    def had_snapshots(self) -> bool:
        """Whether a snapshot was ever whole here, as far as a manifest or a damaged file shows."""
        names = self.store.names(aside=True)
        return any(n.endswith(".manifest") or n.startswith(ASIDE) for n in names)

    # -- reading ---------------------------------------------------------------------------------------------

    def snapshots(self, held: bool = False) -> list[Announcement]:
        """The whole snapshots, newest first. An unreadable manifest is skipped. ``held``: those that nobody may see,
        too."""
        names = self.store.names()
        present, notes = set(names), []
        for name in names:
            if not name.startswith(("snapshot-", "held-") if held else "snapshot-") or not name.endswith(".manifest"):
                continue
            try:
                note = self._note(name)
            except AbsentError:  # removed while we looked
                continue
            except (DamagedError, SnapshotError) as error:
                self._bad(name, str(error))
                continue
            if all(file.name in present for file in note.files):
                notes.append(note)
        return sorted(notes, key=lambda note: note.place, reverse=True)

    def _note(self, name: str) -> Announcement:
        head, _, _ = self.store.get(name)
        note = decode_announcement(head)
        if note.kind != "snapshot" or not note.parts or _manifest(note) != name:
            raise SnapshotError(f"manifest '{name}' is one of {note.kind} {note.place}", "it is passed over")
        return note

    def latest(self) -> Announcement | None:
        return next(iter(self.snapshots()), None)

    def read_parts(self, note: Announcement) -> Iterator[Image]:
        """The parts of a snapshot in order, each checked before it is returned. Their arrays are read-only.

        Raises:
            DamagedError: a file is not the one that was written.
            AbsentError: a file was removed.
            SnapshotError: a part is no image.
        """
        for file in note.parts:
            yield Image.of_tensors(self._read(file))

    def read_training(self, note: Announcement) -> Iterator[dict[str, Array]]:
        """What only training needs, a dict for each part. Errors as :meth:`read_parts`."""
        for file in note.training:
            yield self._read(file)

    def read_whole(self, note: Announcement) -> Iterator[tuple[Image, dict[str, Array]]]:
        """Both halves of each part, for a learner that resumes. Errors as :meth:`read_parts`."""
        return zip(self.read_parts(note), self.read_training(note), strict=True)

    def read(self, note: Announcement) -> Image:
        """A snapshot as one image, for proofs. Errors as :meth:`read_parts`."""
        whole = Image({}, {})
        for part in self.read_parts(note):
            whole = whole.apply(part)
        return whole

    def _read(self, file: Sealed) -> dict[str, Array]:
        head, body = self._expect(file)
        try:
            return view(_arrays(head).arrays, body)
        except (*UNFIT, SnapshotError) as error:
            raise SnapshotError(f"file '{file.name}' holds no arrays ({error})", "it is passed over") from None

    def _expect(self, file: Sealed) -> tuple[bytes, memoryview]:
        try:
            return self.store.expect(file)
        except DamagedError as error:
            self._bad(file.name, str(error))
            raise

    def _bad(self, name: str, why: str) -> None:
        if name not in self.damaged:
            self.damaged.append(name)
        if self.writes:
            self.store.rename_damaged(name, why)


def thinned(notes: Sequence[Announcement], keep_ms: int) -> list[Announcement]:
    """The snapshots to keep for a rollback, newest first: the last of each sixth of ``keep_ms``, and one from before
    it, so that one is always at least so old. Sixths follow the clock, not the newest snapshot: so the one kept of a
    past sixth never changes. ``keep_ms``: event time; 0: none are kept."""
    if keep_ms <= 0 or not notes:
        return []
    since_ms = notes[0].event_ms - keep_ms
    step_ms = max(1, keep_ms // 6)
    last: dict[int, Announcement] = {}
    for note in notes:  # newest first: the first of a sixth is its last
        last.setdefault(note.event_ms // step_ms, note)
    old = [note for note in last.values() if note.event_ms <= since_ms]
    from_before = {max(old, key=lambda note: (note.event_ms, note.place)).place} if old else set()
    return [note for note in last.values() if note.event_ms > since_ms or note.place in from_before]


def _cuts(place: Place) -> str:
    return f"cuts-{place.epoch:08d}-{place.number:016d}.acts"


def manifests_first(names: Iterable[str]) -> list[str]:
    """The order of removal: with its manifest gone first, a snapshot is never half there."""
    return sorted(names, key=lambda name: (not name.endswith(".manifest"), name))


def _manifest(note: Announcement) -> str:
    return f"{'held' if note.held else 'snapshot'}-{note.epoch:08d}-{note.version:016d}.manifest"


def _place_in(name: str) -> Place | None:
    match = _NUMBERED.fullmatch(name)
    return None if match is None else Place(int(match[1]), int(match[2]))
