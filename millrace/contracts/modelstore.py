# core
"""The delta log: how a model leaves the learner and reaches the scorers, in an order that can be proved.

A model is an :class:`Image`: dense tensors (weights and normalisation statistics) and tables of rows by id. The one
writer, the learner, makes a chain of versions::

    snapshot v0 ──► delta v1 ──► delta v2 ──► ... ──► delta v30 = snapshot v30 ──► delta v31 ──► ...
    hash h0         h1 = H(h0, d1)                    h30 (same state, same hash)

A delta names its parent's hash, so a gap, a repetition or a foreign delta is recognised, refused, and mended by
loading the newest snapshot. ``base + deltas`` equals the snapshot of the same version bit for bit; :func:`verify`
proves it from the files alone.

Files are safetensors, written whole and durably (:mod:`millrace.contracts.files`), a snapshot's folder likewise; what
has its final name is whole::

    models/snapshot-00000030/  serving.safetensors  training.safetensors (optimiser state)  manifest.json
    models/delta-00000031.safetensors
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from millrace.contracts.errors import SnapshotError
from millrace.contracts.events import BadEventError, Int64, TimeOrNever, read_json
from millrace.contracts.files import clear_leftovers, sync_folder, temporary_beside, write_whole

Array = NDArray[Any]


MAX_NOTE_BYTES = 16 << 20
"""An announcement has some 20 KB, more where a wide schema gives the learner many columns."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
FileName = Annotated[str, Meta(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)?$", max_length=200)]
"""The name of a file within the store. No announcement can name a hidden file, or one outside of the store."""


@dataclass(slots=True)
class TableRows:
    """Rows of one table: ``ids`` (n,) int64, each column (n, ...), and ids that are ``removed`` (tombstones)."""

    ids: NDArray[np.int64]
    columns: dict[str, Array]
    removed: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def sorted(self) -> TableRows:
        """The same rows in ascending order of id: the canonical form in which two tables are compared."""
        order = np.argsort(self.ids, kind="stable")
        return TableRows(self.ids[order], {n: c[order] for n, c in self.columns.items()}, np.sort(self.removed))


@dataclass(slots=True)
class Image:
    """A model's state, or (as a delta) what changed of it: every dense tensor whole, and the touched rows."""

    dense: dict[str, Array]
    tables: dict[str, TableRows]

    def apply(self, delta: Image) -> Image:
        """This state with ``delta`` applied. The plain version, for proofs; scorers patch their arrays in place."""
        tables = {}
        for name, base in self.tables.items():
            change = delta.tables.get(name)
            if change is None:
                tables[name] = base
                continue
            stay = ~np.isin(base.ids, np.concatenate([change.ids, change.removed]))
            ids = np.concatenate([base.ids[stay], change.ids])
            columns = {n: np.concatenate([base.columns[n][stay], change.columns[n]]) for n in base.columns}
            tables[name] = TableRows(ids, columns).sorted()
        return Image({**self.dense, **delta.dense}, tables)

    def tensors(self) -> dict[str, Array]:
        """Flat names for a safetensors file."""
        flat = {f"dense/{n}": np.ascontiguousarray(a) for n, a in self.dense.items()}
        for name, rows in self.tables.items():
            flat[f"table/{name}/ids"] = rows.ids
            flat[f"table/{name}/removed"] = rows.removed
            flat.update({f"table/{name}/column/{n}": np.ascontiguousarray(c) for n, c in rows.columns.items()})
        return flat

    @classmethod
    def of_tensors(cls, flat: Mapping[str, Array]) -> Image:
        """The inverse of :meth:`tensors`."""
        dense = {n.removeprefix("dense/"): a for n, a in flat.items() if n.startswith("dense/")}
        tables: dict[str, TableRows] = {}
        for full, array in flat.items():
            if full.startswith("table/") and full.endswith("/ids"):
                name = full.split("/")[1]
                prefix = f"table/{name}/column/"
                columns = {n.removeprefix(prefix): a for n, a in flat.items() if n.startswith(prefix)}
                tables[name] = TableRows(array, columns, flat[f"table/{name}/removed"])
        return cls(dense, tables)

    def same_bits(self, other: Image) -> str:
        """Empty when both states are equal bit for bit, else the name of the first tensor that differs."""
        mine = Image(self.dense, {n: t.sorted() for n, t in self.tables.items()}).tensors()
        theirs = Image(other.dense, {n: t.sorted() for n, t in other.tables.items()}).tensors()
        for name in sorted(mine.keys() | theirs.keys()):
            a, b = mine.get(name), theirs.get(name)
            if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                return name
        return ""


class Announcement(Struct, frozen=True):
    """A message of ``model.deltas``: this version exists, and where its file is (relative to the store)."""

    kind: Literal["snapshot", "delta"]
    version: Count
    parent: str  # hash of the version before it; a snapshot's own hash for a snapshot
    hash: str
    digest: str  # sha256 of the serving file
    file: FileName
    size: Count
    schema_id: str
    spec: dict[str, Any]  # what the model is, enough to build it
    event_ms: TimeOrNever  # newest exposure it has learnt from
    trained: Count  # samples learnt from, in total
    origins: list[Int64]  # wall times (ms) at which the clicks first learnt in this version were sent (newest 1,000)
    published_ms: TimeOrNever
    offsets: dict[str, Count] = {}  # snapshot: next offset of `samples` to read, by partition
    extra: dict[str, Any] = {}  # snapshot: the learner's small state (metrics, counters)

    @property
    def is_root(self) -> bool:
        """Whether this snapshot starts a chain: it follows no delta."""
        return self.kind == "snapshot" and self.hash == chain("", self.digest)


_announcement = msgspec.json.Decoder(Announcement).decode


def decode_announcement(raw: bytes | None) -> Announcement:
    """A message of ``model.deltas``, or a note that lies in the store.

    Raises:
        SnapshotError: it cannot be read as one, whatever is in it.
    """
    try:
        return read_json(_announcement, raw, MAX_NOTE_BYTES)
    except BadEventError as error:
        raise SnapshotError(f"an announcement is {error}", "only a learner of this version may write there") from None


def chain(parent: str, digest: str) -> str:
    """Hash of the version that the file with ``digest`` makes of its ``parent``."""
    return hashlib.sha256(f"{parent}:{digest}".encode()).hexdigest()


class ModelStore:
    """The folder of one model's snapshots and deltas. One process writes; any number read."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    # -- writing ---------------------------------------------------------------------------------------------

    def write_snapshot(self, image: Image, training: Mapping[str, Array], **meta: Any) -> Announcement:
        """Writes a full state. ``meta`` are the other fields of :class:`Announcement`; without ``hash`` the
        snapshot starts a chain of its own.

        Raises:
            OSError: it cannot be written.
        """
        body = save_tensors(image.tensors())
        digest = hashlib.sha256(body).hexdigest()
        own = meta.pop("hash", None) or chain("", digest)
        name = f"snapshot-{meta['version']:08d}"
        note = Announcement(
            kind="snapshot",
            parent=own,
            hash=own,
            digest=digest,
            file=f"{name}/serving.safetensors",
            size=len(body),
            **meta,
        )
        final = self.folder / name
        temporary = temporary_beside(final)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write_whole(temporary / "serving.safetensors", body, durable=True)
            write_whole(temporary / "training.safetensors", save_tensors(dict(training)), durable=True)
            write_whole(temporary / "manifest.json", msgspec.json.format(msgspec.json.encode(note)), durable=True)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.folder)
        return note

    def write_delta(self, change: Image, parent: str, **meta: Any) -> Announcement:
        """Writes what changed since the version whose hash is ``parent``. The note comes last: with it the delta is
        there.

        Raises:
            OSError: it cannot be written.
        """
        facts = {"version": meta["version"], "parent": parent, "schema_id": meta["schema_id"]}
        body = save_tensors(change.tensors(), metadata={"millrace": json.dumps(facts)})
        digest = hashlib.sha256(body).hexdigest()
        name = f"delta-{meta['version']:08d}.safetensors"
        note = Announcement(
            kind="delta",
            parent=parent,
            hash=chain(parent, digest),
            digest=digest,
            file=name,
            size=len(body),
            **meta,
        )
        write_whole(self.folder / name, body, durable=True)
        write_whole(self.folder / f"{name}.json", msgspec.json.encode(note), durable=True)
        return note

    def prune(self, keep_snapshots: int = 3) -> None:
        """Removes all but the newest snapshots, the deltas that only the removed ones needed, and what writers that
        died left unfinished. For the writer."""
        clear_leftovers(self.folder)
        notes = list(self.snapshots())
        for note in notes[:-keep_snapshots]:
            shutil.rmtree(self.folder / f"snapshot-{note.version:08d}", ignore_errors=True)
        if len(notes) > keep_snapshots:
            oldest = notes[-keep_snapshots].version
            for path in sorted(self.folder.glob("delta-*.safetensors*")):
                if int(path.name[6:14]) <= oldest:
                    path.unlink(missing_ok=True)

    # -- reading ---------------------------------------------------------------------------------------------

    def snapshots(self) -> Iterator[Announcement]:
        """Whole snapshots, oldest first."""
        for path in sorted(self.folder.glob("snapshot-*/manifest.json")):
            try:
                yield decode_announcement(path.read_bytes())
            except FileNotFoundError:  # pruned while we looked
                continue
            except SnapshotError as error:
                raise SnapshotError(
                    f"manifest '{path}' is damaged ({error.problem})", "remove that snapshot's folder"
                ) from None

    def deltas(self) -> Iterator[Announcement]:
        """Whole deltas, oldest first."""
        for path in sorted(self.folder.glob("delta-*.safetensors.json")):
            try:
                yield decode_announcement(path.read_bytes())
            except FileNotFoundError:
                continue
            except SnapshotError as error:
                raise SnapshotError(f"delta note '{path}' is damaged ({error.problem})", "remove that delta") from None

    def latest(self) -> Announcement | None:
        """The newest snapshot, if any."""
        return max(self.snapshots(), key=lambda note: note.version, default=None)

    def read(self, note: Announcement) -> Image:
        """The image of a snapshot or delta.

        Raises:
            SnapshotError: the file is gone, or not the one that was announced.
        """
        path = self.folder / note.file
        try:
            # The size first: a note that names something else must not make us read all of it.
            body = path.read_bytes() if path.stat().st_size == note.size else b""
            if hashlib.sha256(body).hexdigest() != note.digest:
                raise SnapshotError(
                    f"'{path}' is not the file that was announced as version {note.version}", "resynchronise"
                )
            return Image.of_tensors(load_tensors(body))
        except (OSError, SafetensorError) as error:
            raise SnapshotError(
                f"'{path}' cannot be read ({error})", "resynchronise from the newest snapshot"
            ) from None

    def read_training(self, note: Announcement) -> dict[str, Array]:
        """The optimiser state and other private arrays of a snapshot."""
        path = self.folder / f"snapshot-{note.version:08d}" / "training.safetensors"
        try:
            return dict(load_tensors(path.read_bytes()))
        except (OSError, SafetensorError) as error:
            raise SnapshotError(f"'{path}' cannot be read ({error})", "remove that snapshot's folder") from None


@dataclass(frozen=True, slots=True)
class Proof:
    """What :func:`verify` found: chains of ``base`` + ``deltas`` that equal the ``target`` snapshot."""

    base: int
    target: int
    deltas: int
    rows: int


def verify(folder: Path | str) -> list[Proof]:
    """Proves that each snapshot plus the deltas after it equals the next snapshot, bit for bit.

    Raises:
        SnapshotError: a delta is missing, does not follow its parent, or the states differ; names version and tensor.
    """
    store = ModelStore(folder)
    deltas = {note.version: note for note in store.deltas()}
    proofs = []
    for base, target in pairwise(store.snapshots()):
        if target.is_root:
            continue  # the learner was restarted between the two
        state, own = store.read(base), base.hash
        for version in range(base.version + 1, target.version + 1):
            delta = deltas.get(version)
            if delta is None:
                between = f"between snapshots {base.version} and {target.version}"
                raise SnapshotError(f"delta {version} is missing {between}", "restore its file")
            if delta.parent != own:
                raise SnapshotError(
                    f"delta {version} does not follow version {version - 1}", "restore the delta that does"
                )
            state, own = state.apply(store.read(delta)), delta.hash
        differs = "hash" if own != target.hash else state.same_bits(store.read(target))
        if differs:
            raise SnapshotError(
                f"snapshot {base.version} plus deltas differs from snapshot {target.version} in '{differs}'",
                "do not serve from this store; start the learner with an empty one",
            )
        rows = sum(len(t.ids) for t in state.tables.values())
        proofs.append(Proof(base.version, target.version, target.version - base.version, rows))
    return proofs
