# core
"""Checkpoints of the item index in the store, so a scorer that starts need not read the whole topics from Kafka.

::

    index-00000007-c0ffee          manifest: number, schema, when, `newest_counted_ms`, each topic: its id, positions
    index-00000007-c0ffee-items-0  rows of the index: ids, hashed columns, numbers, window keys
    index-00000007-c0ffee-tiles-0  window keys counted in one partition of `events`, with their packed tile lists
    index-00000007-c0ffee-tiles-1  ...

``number`` rises by one from checkpoint to checkpoint. The name after it belongs to one writer, so two scorers never
touch each other's files. The manifest is written last. Without it the parts are not valid.

The index changes during the copy, so a copy shows no single moment. This is safe: the positions are older than the
first copied row, an item message replaces a whole row, and a tile message replaces whole tile lists. Messages after the
positions replace again whatever changed. For the same reason a reader may apply parts one by one. If a later part is
damaged, the reader applies an older checkpoint with its older positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from millrace.basics.arrays import ArraySpec, lay, specs_of, view
from millrace.basics.errors import UNFIT, SnapshotError
from millrace.basics.hashing import U64
from millrace.basics.store import AbsentError, DamagedError, Sealed, Store
from millrace.contracts.events import Int64
from millrace.contracts.schema import Windows
from millrace.windows.tiles import TileStore
from scorer.catalog.itemimage import ItemImage

FORM = 2
PREFIX = "index-"
PART_BYTES = 16 << 20
KEEP = 2
TOMBSTONE_MS = 12 * 3_600_000
"""A compacted topic keeps the tombstone of an item for a day (``delete.retention.ms``). Rows of a checkpoint older than
half of that are not used, because the topic may no longer contain the tombstones of items in it."""

Arrays = Mapping[str, NDArray[Any]]
OnDamage = Callable[[str, DamagedError], None]


class Bookmark(Struct, frozen=True):
    """Where reading of a topic continues: the next offset of each partition, in the log with the id ``log``."""

    log: str  # "": the broker tells no ids
    positions: dict[int, int]


class Manifest(Struct, frozen=True):
    form: int
    number: int
    schema_id: str
    written_ms: Int64  # wall time
    newest_counted_ms: Int64  # newest event in the counts
    topics: dict[str, Bookmark]
    parts: list[Sealed]
    items: int
    keys: int  # window keys, over all partitions
    filters: list[str] = []  # attributes whose values rows have, for pages to be filtered by


class CheckpointPart(Struct, frozen=True):
    """The head of a part: rows of items (``ids``), or window keys of ``partition`` of ``events``."""

    arrays: list[ArraySpec]
    ids: list[int | str] | None = None
    partition: int = 0
    newest_hour: int | None = None  # of the partition's counts: units of its tiles since 1970


@dataclass(frozen=True, slots=True)
class TilePart:
    partition: int
    newest_unit: int | None
    keys: U64  # (n,)
    packed: NDArray[np.uint8]
    ends: NDArray[np.int64]  # (n,) where each list ends

    @classmethod
    def of_arrays(cls, part: CheckpointPart, arrays: Arrays) -> TilePart:
        """Raises KeyError or ValueError when the arrays do not fit together."""
        keys, packed, ends = arrays["keys"], arrays["packed"], arrays["ends"]
        kinds = ((keys, np.uint64), (packed, np.uint8), (ends, np.int64))
        if any(a.dtype != dtype or a.ndim != 1 for a, dtype in kinds) or len(keys) != len(ends):
            raise ValueError("keys, lists and their ends do not fit together")
        if len(ends) and (ends[0] < 0 or ends[-1] != len(packed) or np.any(ends[1:] < ends[:-1])):
            raise ValueError("lists do not end where they say")
        return cls(part.partition, part.newest_hour, keys, packed, ends)


def store_of(parts: Sequence[TilePart], windows: Windows) -> TileStore:
    """The counts of one partition, from all its parts. Raises StoreError: a tile list cannot be read."""
    newest = [part.newest_unit for part in parts if part.newest_unit is not None]
    starts = np.cumsum([0, *(len(part.packed) for part in parts[:-1])])
    keys = np.concatenate([part.keys for part in parts])
    store = TileStore.of(windows)
    if newest:
        store.resume(
            {
                "keys": keys,
                "packed": np.concatenate([part.packed for part in parts]),
                "ends": np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=True)]),
                "changed": np.zeros(len(keys), np.uint8),
                "newest": np.array([max(newest)]),
            }
        )
    return store


_manifest = msgspec.json.Decoder(Manifest)
_part = msgspec.json.Decoder(CheckpointPart)


# -- writing ---------------------------------------------------------------------------------------------------------


class Writer:
    """Writes one checkpoint: parts as they fill, then the manifest. Every method raises StoreError.

    ``number`` is one more than that of the newest in ``store``; ``name`` is unique to this writer.
    """

    def __init__(self, store: Store, number: int, name: str) -> None:
        self._store, self._number = store, number
        self._base = f"{PREFIX}{number:08d}-{name}"
        self._parts: list[Sealed] = []
        self._items = self._keys = 0
        self._rows: list[ItemImage] = []
        self._tiles: list[tuple[U64, list[bytes]]] = []
        self._partition, self._size = 0, 0
        self._newest_unit: int | None = None

    def rows(self, image: ItemImage) -> None:
        self._rows.append(image)
        self._items += len(image.ids)
        self._size += sum(a.nbytes for a in image.arrays.values()) + 16 * len(image.ids)
        if self._size >= PART_BYTES:
            self._close()

    def tiles(self, partition: int, newest_unit: int | None, keys: U64, blobs: list[bytes]) -> None:
        """Adds window keys of a partition, with their packed tile lists. Partitions come one after another."""
        if self._rows or partition != self._partition:
            self._close()
        self._partition, self._newest_unit = partition, newest_unit
        self._tiles.append((keys, blobs))
        self._keys += len(keys)
        self._size += 16 * len(keys) + sum(map(len, blobs))
        if self._size >= PART_BYTES:
            self._close()

    def finish(self, **facts: Any) -> Manifest:
        """Writes the rest and the manifest; ``facts`` are its other fields."""
        self._close()
        manifest = Manifest(
            form=FORM, number=self._number, parts=self._parts, items=self._items, keys=self._keys, **facts
        )
        self._store.put(self._base, manifest)
        return manifest

    def give_up(self) -> None:
        """Removes what was written, because nobody else would, and a full store must not get fuller."""
        self._store.remove(part.name for part in self._parts)

    def _close(self) -> None:
        if self._rows:
            name = f"{self._base}-items-{len(self._parts)}"
            image = ItemImage.joined(self._rows)
            part = CheckpointPart(specs_of(image.arrays), ids=image.ids)
            self._parts.append(self._store.put(name, part, *lay(image.arrays)))
        elif self._tiles:
            name = f"{self._base}-tiles-{len(self._parts)}"
            blobs = [blob for _, some in self._tiles for blob in some]
            arrays = {
                "keys": np.concatenate([keys for keys, _ in self._tiles]),
                "packed": np.frombuffer(b"".join(blobs), np.uint8),
                "ends": np.cumsum(np.fromiter(map(len, blobs), np.int64, len(blobs))),
            }
            part = CheckpointPart(specs_of(arrays), partition=self._partition, newest_hour=self._newest_unit)
            self._parts.append(self._store.put(name, part, *lay(arrays)))
        self._rows, self._tiles, self._size = [], [], 0


def prune(store: Store) -> None:
    """Removes all checkpoints but the newest :data:`KEEP` complete ones, and parts without a manifest. Parts with a
    higher number than these stay, since their writer may be at work. Raises StoreError."""
    names = set(store.names(PREFIX))
    whole = [n for n, m in manifests(store, lambda *_: None) if names.issuperset(part.name for part in m.parts)]
    kept = whole[:KEEP]
    if not kept:
        return
    newest = _number(kept[0])
    stale = [n for n in names if _number(n) <= newest and not any(n == k or n.startswith(k + "-") for k in kept)]
    # Manifests first: a manifest without parts would look like a damaged checkpoint.
    store.remove(sorted(stale, key=lambda name: not _is_manifest(name)))


# -- reading ---------------------------------------------------------------------------------------------------------


def manifests(store: Store, hears: OnDamage) -> Iterator[tuple[str, Manifest]]:
    """The checkpoints with their names, newest first. ``hears`` receives each damaged manifest; files that were removed
    meanwhile are skipped. Raises StoreError: the store cannot be read."""
    for name in sorted((n for n in store.names(PREFIX) if _is_manifest(n)), key=_number, reverse=True):
        try:
            head, _, _ = store.get(name)
            yield name, _read(_manifest, head, name)
        except AbsentError:
            continue
        except DamagedError as error:
            hears(name, error)


def newest_number(store: Store) -> int:
    """The highest number that any file in the store has; 0 when there is none. Raises StoreError."""
    return max(map(_number, store.names(PREFIX)), default=0)


def read_part(store: Store, file: Sealed) -> ItemImage | TilePart:
    """Content of a part. Raises AbsentError, DamagedError (it is not what the manifest names) or StoreError."""
    head, body = store.expect(file)
    part = _read(_part, head, file.name)
    try:
        arrays = view(part.arrays, body)
        if part.ids is not None:
            return ItemImage.checked(part.ids, arrays)
        return TilePart.of_arrays(part, arrays)
    except (SnapshotError, *UNFIT) as error:
        raise _not_ours(file.name, error) from None


def _read(decoder: Any, head: bytes, name: str) -> Any:
    try:
        return decoder.decode(head)
    except UNFIT as error:
        raise _not_ours(name, error) from None


def _not_ours(name: str, error: Exception) -> DamagedError:
    return DamagedError(f"file '{name}' is whole, but no part of an item index ({error})", "it is not used")


def _is_manifest(name: str) -> bool:
    return name.count("-") == 2 and _number(name) > 0


def _number(name: str) -> int:
    digits = name.removeprefix(PREFIX).split("-")[0]
    return int(digits) if digits.isdecimal() and digits.isascii() else 0


def age_ms(manifest: Manifest, now_ms: int) -> float:
    """Age of a checkpoint. A time in the future is unreliable and counts as very old."""
    age = now_ms - manifest.written_ms
    return age if age >= 0 else math.inf
