# core
"""Model stores of the form before: read once, to go on from, and removed when two new snapshots are there.

::

    models/snapshot-00000030/  serving.safetensors  training.safetensors (no digest)  manifest.json
    models/delta-00000031.safetensors  delta-00000031.safetensors.json
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.numpy import load

from millrace.basics.errors import SnapshotError
from millrace.basics.store import AbsentError, DamagedError
from millrace.contracts.events import BadEventError, read_json
from millrace.versions.image import Array, Image
from millrace.versions.versioning import MAX_NOTE_BYTES, Announcement

log = structlog.get_logger("modelstore")

_SNAPSHOT = re.compile(r"(?:damaged-)?snapshot-(\d{8,})")
_DELTA = re.compile(r"delta-(\d{8,})\.safetensors(\.json)?")
_CLAIMANT = "of the form before"
"""What notes from here name as their claimant: they were made when there were no epochs."""


class _Manifest(Struct, frozen=True):
    version: int
    hash: str
    digest: str
    size: int
    schema_id: str
    spec: dict[str, Any]
    event_ms: int
    trained: int
    published_ms: int
    offsets: dict[str, int] = {}
    extra: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Manifest).decode


def is_old(note: Announcement) -> bool:
    """Whether it is a snapshot of the form before."""
    return note.epoch == 0 and not note.parts and note.claimant == _CLAIMANT


def snapshots(url: str) -> list[Announcement]:
    """Snapshots whose manifest can be read; their epoch is 0."""
    notes = []
    for folder in _folders(url):
        try:
            old = read_json(_decode, (folder / "manifest.json").read_bytes(), MAX_NOTE_BYTES)
            notes.append(
                Announcement(
                    kind="snapshot",
                    epoch=0,
                    claimant=_CLAIMANT,
                    parent=old.hash,
                    logs={},
                    **{name: getattr(old, name) for name in old.__struct_fields__},
                )
            )
        except (OSError, BadEventError) as error:
            log.error("a manifest of the old form cannot be read", file=str(folder), error=str(error))
    return notes


def read(url: str, note: Announcement) -> Image:
    """The whole state.

    Raises:
        AbsentError: it was removed.
        DamagedError: it is not the file of the manifest.
    """
    body = _body(url, note, "serving.safetensors")
    if len(body) != note.size or hashlib.sha256(body).hexdigest() != note.digest:
        raise DamagedError(f"'serving.safetensors' of snapshot {note.version} is damaged", "the one before is used")
    return Image.of_tensors(_tensors(body, note))


def read_training(url: str, note: Announcement) -> dict[str, Array]:
    """What only training needs. The old form has no digest of it.

    Raises:
        AbsentError: it was removed.
        DamagedError: it cannot be read.
    """
    return _tensors(_body(url, note, "training.safetensors"), note)


def highest(url: str) -> int:
    """The highest version that left a trace; -1: none did."""
    root = _root(url)
    names = [path.name for path in root.iterdir()] if root else []
    found = [match for name in names if (match := _SNAPSHOT.fullmatch(name) or _DELTA.fullmatch(name))]
    return max((int(match[1]) for match in found), default=-1)


def remove(url: str) -> None:
    """Removes all files of the old form, but for those that were set aside."""
    for folder in _folders(url):
        shutil.rmtree(folder, ignore_errors=True)
    root = _root(url)
    for path in root.glob("delta-*.safetensors*") if root else ():
        if _DELTA.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _folders(url: str) -> list[Path]:
    root = _root(url)
    found = sorted(root.glob("snapshot-*")) if root else []
    return [path for path in found if _SNAPSHOT.fullmatch(path.name) and path.is_dir()]


def _root(url: str) -> Path | None:
    """The folder, where it is one: the old form knew no other place."""
    path = Path(url.removeprefix("file://"))
    return path if path.is_dir() else None


def _body(url: str, note: Announcement, name: str) -> bytes:
    root = _root(url)
    if root is None:
        raise AbsentError(f"store '{url}' is gone", "give it back")
    try:
        return (root / f"snapshot-{note.version:08d}" / name).read_bytes()
    except OSError as error:
        raise AbsentError(
            f"'{name}' of snapshot {note.version} cannot be read ({error})", "the one before is used"
        ) from None


def _tensors(body: bytes, note: Announcement) -> dict[str, Array]:
    try:
        return dict(load(body))
    except (SafetensorError, SnapshotError, ValueError) as error:
        raise DamagedError(
            f"a file of snapshot {note.version} is damaged ({error})", "the one before is used"
        ) from None
