# core
"""The tables that serve: one base that versions share, and an overlay for each version that is not in it yet.

::

    base      slots (2^k,) int32      [ .. | ~2 | gone | ~0 | ~1 | .. ]        open addressing, linear probing
              data  (max_rows, W)     [ id id | embedding . . . | wide ]       float32; id 0: the row is free
    overlay   slots, data             the same for the rows that a delta changed, then its removed ids, as zeros

    a version's value of an id:  the newest of its overlays that has the id, else the base, else zeros

:class:`Table` reads; :class:`TableWriter` writes. They may be in different processes, on the same memory and without a
lock, because the writer changes the base only for ids of an overlay that all readers have (:meth:`TableWriter.fold`). A
reader's overlay hides such a row of the base, whatever its state. For all other ids the base reads the same before,
during and after (learner/serving/overlaykernels.py).

When too many slots are filled, larger ones replace them: the writer makes them in slices beside the old ones, with no
other change meanwhile, then hands them to the readers (:attr:`TableWriter.slots`). The old ones stay right for all ids
but those that later overlays change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.serving import overlaykernels as kernels
from learner.serving.overlaykernels import FILLED, SPARE, USED, VALUES
from learner.tables.table import BatchIds, as_read, distinct
from millrace.basics.errors import SettingError
from millrace.basics.probing import EMPTY, FREE
from millrace.versions.image import TableRows, problem_of

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Slots = NDArray[np.int32]
Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]
"""Zeroed memory of a shape and dtype."""

_FIRST_BITS = 11
_EVERYTHING = 2**31 - 1


def record_width(width: int) -> int:
    """W, float32 columns of a record with embeddings of D = ``width``: even, so that ids are aligned."""
    return (VALUES + width + 1 + 1) // 2 * 2


def overlay_slots(entries: int) -> int:
    """Slots of an overlay of so many ids, changed and removed: at most half of them are filled."""
    return 1 << max(1, 2 * entries - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Layer:
    """A hash and its records, read only. ``changed``: how many of an overlay's records, the first ones, are rows."""

    slots: Slots
    data: Floats
    changed: int = 0

    @classmethod
    def of(cls, slots: Slots, data: Floats, changed: int = 0) -> Layer:
        return cls(as_read(slots), as_read(data), changed)

    @property
    def shift(self) -> int:
        return 65 - len(self.slots).bit_length()

    @property
    def ids(self) -> Ids:
        return self.data.view(np.int64)

    def read(self, keys: Ids, absent: bool, out: Floats) -> None:
        """Puts the values of the keys that it has into ``out`` (U, D + 1), and zeros for the others if ``absent``."""
        if len(self.data):  # an overlay may have none
            kernels.read(self.slots, self.shift, self.data, self.ids, keys, absent, out)

    def find(self, keys: Ids) -> NDArray[np.int32]:
        """The record of each key, or EMPTY. (U,)"""
        out = np.full(len(keys), EMPTY, np.int32)
        if len(self.data):
            kernels.find(self.slots, self.shift, self.ids, keys, out)
        return out


@dataclass(frozen=True, slots=True)
class Table:
    """One version of a table: ids, embeddings of D = ``width``, wide weights.

    Attributes:
        base: the rows of the folded versions.
        overlays: those of the versions since, oldest first.
    """

    width: int
    base: Layer
    overlays: tuple[Layer, ...]

    def values(self, ids: Ids, out: Floats) -> None:
        """``out`` (U, D + 1): embedding and wide weight of ids (U,); zeros where an id is unknown. Reads only."""
        self.base.read(ids, True, out)
        for overlay in self.overlays:
            overlay.read(ids, False, out)

    def read(self, columns: Ids) -> BatchIds:
        """The values of a batch's ids (B, C); unknown ids are zero."""
        ids, counts, inverse = distinct(columns)
        out = np.empty((len(ids), self.width + 1), np.float32)
        self.values(ids, out)
        none = np.full(len(ids), EMPTY, np.int32)
        embedding, wide = np.ascontiguousarray(out[:, : self.width]), np.ascontiguousarray(out[:, self.width])
        return BatchIds(ids, counts, inverse, none, none > EMPTY, embedding, wide)

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.base.find(ids) != EMPTY
        for overlay in self.overlays:
            record = overlay.find(ids)
            found = np.where(record == EMPTY, found, record < overlay.changed)
        return found

    def snapshot(self) -> TableRows:
        """All rows in order of id. Call it only while nothing writes to the base."""
        held = self.base.slots[self.base.slots < FREE]
        layers: list[tuple[Layer, NDArray[Any], int]] = [
            (layer, np.arange(len(layer.data)), layer.changed) for layer in reversed(self.overlays)
        ]
        layers.append((self.base, ~held, _EVERYTHING))
        ids = np.concatenate([layer.ids[rows, 0] for layer, rows, _ in layers])
        values = np.concatenate([layer.data[rows, VALUES : VALUES + self.width + 1] for layer, rows, _ in layers])
        alive = np.concatenate([rows < changed for _, rows, changed in layers])
        _, newest = np.unique(ids, return_index=True)  # the first of each, so that of the newest layer
        newest = newest[alive[newest] & (ids[newest] != 0)]
        return as_rows(ids[newest], values[newest])


def as_rows(ids: Ids, values: Floats) -> TableRows:
    width = values.shape[1] - 1
    columns = {"embedding": np.ascontiguousarray(values[:, :width])} if width else {}
    return TableRows(ids, {**columns, "wide": np.ascontiguousarray(values[:, width])})


@dataclass(slots=True)
class _Staged:
    """A change on its way into the base: its layer, and how many of its entries are there. Removed ids go first."""

    layer: Layer
    folded: int = 0

    @property
    def whole(self) -> bool:
        return self.folded == len(self.layer.data)


class TableWriter:
    """The base of one table, which it alone writes, and the changes that are not in it yet. Raises SettingError where
    the system refuses to reserve the memory that ``max_rows`` would need.

    Args:
        width: D; 0 for a table of wide weights alone.
        max_rows: rows that will ever be held.
        allocate: allocates what readers see.
    """

    def __init__(self, width: int, max_rows: int, allocate: Allocate = np.zeros) -> None:
        self.width, self.max_rows, self._allocate = width, max_rows, allocate
        columns = record_width(width)
        try:
            self.data: Floats = allocate((max_rows, columns), np.float32)
        except (MemoryError, OSError):
            raise SettingError(
                f"a table of {max_rows} rows needs {max_rows * columns * 4 / 1e9:.1f} GB", "lower max_rows in the spec"
            ) from None
        self.slots: Slots = allocate((1 << _FIRST_BITS,), np.int32)
        self._after: Slots | None = None  # slots that are being made
        self._moved = 0  # slots that are in them
        self._ids = self.data.view(np.int64)
        self._spare: Slots = np.empty(max_rows, np.int32)  # rows to give out again; memory comes as it is used
        self._counts = np.zeros(3, np.int64)
        self._staged: list[_Staged] = []

    def __len__(self) -> int:
        """Rows of the base."""
        return int(self._counts[USED] - self._counts[SPARE])

    @property
    def newest(self) -> Table:
        overlays = tuple(staged.layer for staged in self._staged)
        return Table(self.width, Layer.of(self.slots, self.data), overlays)

    def reserve(self, count: int) -> None:
        """Makes slots for ``count`` ids (``max_rows`` at most) at once, before any reader attaches."""
        bits = _bits(min(count, self.max_rows))
        if 1 << bits > len(self.slots):
            self._begin_slots(bits)
            self._move(_EVERYTHING)

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """Embeddings of ``count`` rows of the base, drawn with repeats; zeros where it has none. (count, D)"""
        rows = rng.integers(0, max(1, int(self._counts[USED])), count)
        return self.data[rows, VALUES : VALUES + self.width]

    def check(self, change: TableRows) -> str:
        """What is wrong with a snapshot's or delta's rows, in words; empty when they can be staged."""
        if problem := problem_of(change, self.width):
            return problem
        most = len(self) + sum(staged.layer.changed for staged in self._staged) + len(change.ids)
        if most > self.max_rows:  # else there is room for certain
            after = self._rows_after(change)
            if after > self.max_rows:
                return f"rows that make {after} where {self.max_rows} have room"
        return ""

    def load(self, change: TableRows) -> None:
        """Puts a part of a snapshot, which passed :meth:`check`, into the base at once, before any reader attaches."""
        self._make_slots(len(change.ids))
        self._move(_EVERYTHING)
        kernels.drop(self.slots, self._shift, self._ids, self._spare, self._counts, as_read(_gone(change)))
        self._put(change.ids, change.columns.get("embedding"), change.columns["wide"])

    def stage(self, change: TableRows, slots: Slots, data: Floats) -> None:
        """Lays the overlay of a change, which passed :meth:`check`, into ``slots`` and ``data``, which are zero;
        (:func:`overlay_slots` of its :func:`entries`,) and (entries, W)."""
        embedding, wide = self._columns(change.columns.get("embedding"), change.columns["wide"])
        shift = 65 - len(slots).bit_length()
        kernels.lay(
            as_read(change.ids), embedding, wide, as_read(_gone(change)), slots, shift, data, data.view(np.int64)
        )
        self._staged.append(_Staged(Layer.of(slots, data, len(change.ids))))

    def fold(self, rows: int) -> int:
        """Moves at most ``rows`` rows of the oldest staged change into the base, or as many slots to larger ones.
        Returns how many that took: 0 when that change is in the base whole, and ready for :meth:`settle`."""
        staged = self._staged[0]
        if staged.whole:
            return 0
        layer = staged.layer
        rows = min(rows, len(layer.data) - staged.folded)
        if self._after is None:
            self._make_slots(rows)
        if self._after is not None:
            return self._move(rows)
        removed = len(layer.data) - layer.changed
        if staged.folded < removed:
            rows = min(rows, removed - staged.folded)
            first = layer.changed + staged.folded
            gone = as_read(layer.ids[first : first + rows, 0])
            kernels.drop(self.slots, self._shift, self._ids, self._spare, self._counts, gone)
        else:
            first = staged.folded - removed
            part = layer.data[first : first + rows]
            wide = part[:, VALUES + self.width]
            self._put(layer.ids[first : first + rows, 0], part[:, VALUES : VALUES + self.width], wide)
        staged.folded += rows
        return rows

    def settle(self) -> None:
        """Forgets the oldest staged change, which is in the base whole."""
        self._staged.pop(0)

    @property
    def _shift(self) -> int:
        return 65 - len(self.slots).bit_length()

    def _columns(self, embedding: NDArray[Any] | None, wide: NDArray[Any]) -> tuple[Floats, Floats]:
        none = np.empty((len(wide), 0), np.float32)
        return as_read(none if embedding is None else embedding), as_read(wide)

    def _put(self, ids: Ids, embedding: NDArray[Any] | None, wide: NDArray[Any]) -> None:
        columns = self._columns(embedding, wide)
        kernels.put(self.slots, self._shift, self.data, self._ids, self._spare, self._counts, as_read(ids), *columns)

    def _rows_after(self, change: TableRows) -> int:
        """The rows of the version that the change makes: those of the base, and what the ids of all changes make other
        of them."""
        gone = _gone(change)
        ids = np.unique(np.concatenate([*(staged.layer.ids[:, 0] for staged in self._staged), change.ids, gone]))
        newest = self.newest
        has = (newest.has(as_read(ids)) & ~np.isin(ids, gone)) | np.isin(ids, change.ids)
        return len(self) + int(has.sum()) - int((newest.base.find(as_read(ids)) != EMPTY).sum())

    # -- growth ----------------------------------------------------------------------------------------------

    def _make_slots(self, coming: int) -> None:
        """Begins new slots where the coming ids could fill more than three quarters of these."""
        if 4 * (int(self._counts[FILLED]) + coming) > 3 * len(self.slots):
            self._begin_slots(_bits(len(self) + coming))

    def _begin_slots(self, bits: int) -> None:
        self._after, self._moved = self._allocate((1 << bits,), np.int32), 0
        self._counts[FILLED] = 0

    def _move(self, slots: int) -> int:
        """Moves up to so many slots; returns how many. When all have moved, the new ones take over."""
        if self._after is None:
            return 0
        first, last = self._moved, min(self._moved + slots, len(self.slots))
        shift = 65 - len(self._after).bit_length()
        self._counts[FILLED] += kernels.move(self.slots, self._after, shift, self._ids, first, last)
        self._moved = last
        if last == len(self.slots):
            self.slots, self._after = self._after, None
        return last - first


def entries(change: TableRows) -> int:
    return len(change.ids) + len(_gone(change))


def _gone(change: TableRows) -> Ids:
    """Removed ids, without repeats and without those that the change brings back."""
    if not len(change.removed):
        return change.removed
    gone: Ids = np.setdiff1d(change.removed, change.ids)
    return gone[np.flatnonzero(gone)]


def _bits(count: int) -> int:
    """2^bits slots are at most five eighths full with so many ids, so that growth is rare."""
    bits = _FIRST_BITS
    while 8 * count > 5 << bits:
        bits += 1
    return bits
