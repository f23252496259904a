# core
"""The item index: every item of the catalogue as a row of arrays, and the item-side window counts.

::

    row        0        1        2      ...          one row an item, in order of arrival, never reused
    ids        7       "b3"      9                   as their owner wrote them
    columns    category (rows,) u64, tags (rows, slots) u64 ...      value hashes, by schema column
    plain      price (rows,) f32 ...                                 numbers
    filters    region (rows, values) u64 ...                         value hashes of attributes that are no features
    born_ms, expires_ms, alive, heat (clicks and exposures a day, seen)          (rows,)

    own (rows, J)           slots of the item's window keys (:mod:`scorer.catalog.counts`)
    unsent_rows (rows,)     rows with changes that replicas do not have yet

Changes need exclusive access. Pages read a replica, :class:`scorer.catalog.itemtable.ItemTable`, which
:meth:`ItemIndex.changes` updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.events import Id, Item, ItemChange
from millrace.contracts.filter_attributes import hashes_of
from millrace.contracts.schema import ITEM_AGES
from millrace.versions.image import below
from millrace.windows.affinity import ACTION, EXPOSED, events_a_day
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.catalog.counts import Counts, ItemCounts, Slots
from scorer.catalog.itemimage import REMOVED_MS, ItemImage, wider
from scorer.catalog.itemtable import Arrays, ItemRows, TableForm, longer, pack_ids


class Heat(NamedTuple):
    """Window counts of each of n items over the whole shop; zeros where the schema has no such counts."""

    clicks: NDArray[np.float32]  # (n,) the mean over windows of clicks a day
    exposures: NDArray[np.float32]  # (n,) of exposures a day
    seen: NDArray[np.float32]  # (n,) exposures in the longest window

    @classmethod
    def none(cls, n: int) -> Heat:
        return cls(*(np.zeros(n, np.float32) for _ in cls._fields))


class ItemIndex:
    """See the module's text. ``builder`` says which columns and numbers the schema needs."""

    def __init__(self, builder: FeatureBuilder) -> None:
        self.builder = builder
        schema = builder.schema
        self.counts = ItemCounts(schema.windows, builder.exposed is not None)
        self.ids: list[Id] = []
        self._row: dict[str, int] = {}
        self._stale: set[int] = set()  # rows whose hotness may have changed
        self._cursor = 0
        self.form = TableForm(builder)
        self.own_keys = self.form.own_keys
        self._hot_key = self.form.hot_key
        self._hot_row: dict[int, int] = {}  # row by the slot of its hot key
        self._unsent_rows = np.zeros(0, np.bool_)
        self._capacity = 0
        fields = {f.name: f for f in schema.fields}
        self._filter_fields = {name: fields.get(name) for name in schema.filters}
        times = {name: np.zeros(0, np.int64) for name in ("born_ms", "expires_ms")}
        self._rows: Arrays = {**times, "alive": np.zeros(0, np.bool_)}  # as in an ItemImage
        self._expiring: list[tuple[int, int]] = []  # a heap of (expires_ms, row); some are of earlier messages
        for name in self.form.names:
            slots = fields[name].slots if name in fields else 1
            self._rows[f"column/{name}"] = np.zeros(0 if slots == 1 else (0, slots), np.uint64)
        for field in schema.layout.plain_fields:
            if field.of == "item" and field.name not in ITEM_AGES:
                self._rows[f"plain/{field.name}"] = np.zeros(0, np.float32)
        for name in schema.filters:  # as wide as the most values that an item has
            self._rows[f"filter/{name}"] = np.zeros((0, 1), np.uint64)
        self._heat = Heat.none(0)
        self._own = np.zeros((0, len(self.own_keys)), np.intp)
        self._grow(1024)

    def __len__(self) -> int:
        return len(self.ids)

    # -- writing: between two requests ------------------------------------------------------------------------

    def prepare(self, item: Item) -> ItemImage:
        """Hashes an item's attributes. Any thread may call it: it changes nothing."""
        columns, plain = self.builder.attributes("item", {**item.attributes, self.builder.item_column: item.item_id})
        arrays: Arrays = {}
        for name, held in self._rows.items():
            kind, _, of = name.partition("/")
            if kind == "column":
                arrays[name] = columns.get(of, np.zeros((1, *held.shape[1:]), np.uint64))
            elif kind == "plain":
                with np.errstate(over="ignore"):  # what fits in no float32 reads as 0 later
                    arrays[name] = np.array([plain.get(of, 0.0)], np.float32)
            elif kind == "filter":
                values = hashes_of(self._filter_fields[of], item.attributes.get(of))
                arrays[name] = np.array([values or [0]], np.uint64)
        arrays["keys"] = self.builder.keys(columns, 1)[:, self.own_keys]
        expires_ms = 0 if item.expires_ms is UNSET else item.expires_ms
        arrays |= {
            name: np.array([ms], np.int64) for name, ms in (("born_ms", item.born_ms), ("expires_ms", expires_ms))
        }
        arrays["alive"] = np.array([not item.gone])
        return ItemImage([item.item_id], arrays)

    def image(self, start: int, stop: int) -> ItemImage:
        """A copy of the existing rows in [start, stop)."""
        rows = np.arange(start, min(stop, len(self.ids)))
        arrays = {name: array[rows] for name, array in self._rows.items()}
        return ItemImage(self.ids[start:stop], {**arrays, "keys": self.counts.keys[self._own[rows]]})

    def put(self, images: Iterable[ItemImage]) -> None:
        """Adds or replaces items. Raises ValueError for items of another schema, and then changes nothing."""
        given = list(images)
        if not given:
            return
        image = ItemImage.joined(given)
        for name, held in self._rows.items():
            array = image.arrays.get(name)
            if array is None or (held.shape[1:] != array.shape[1:] and not name.startswith("filter/")):
                raise ValueError(f"items without the array '{name}', as it is here, are not of this schema")
        if image.arrays["keys"].shape[1] != len(self.own_keys):
            raise ValueError(f"items with {image.arrays['keys'].shape[1]} window keys are not of this schema")
        known = self._row
        rows = np.empty(len(image.ids), np.intp)
        for n, item_id in enumerate(image.ids):
            row = rows[n] = known.setdefault(str(item_id), len(self.ids))
            if row == len(self.ids):
                self.ids.append(item_id)
                self._stale.add(int(row))
        while len(self.ids) > self._capacity:
            self._grow(2 * self._capacity)
        distinct, where = np.unique(image.arrays["keys"], return_inverse=True)
        slots = np.array([self.counts.slot_of(key) for key in distinct.tolist()], np.intp)
        self._own[rows] = slots[where.reshape(image.arrays["keys"].shape)]
        if self._hot_key is not None:
            self._hot_row.update(zip(self._own[rows, self._hot_key].tolist(), rows.tolist(), strict=True))
        for name in self._rows:
            array = image.arrays[name]
            if name.startswith("filter/"):
                self._rows[name] = wider(self._rows[name], 1 << (array.shape[1] - 1).bit_length())
                array = wider(array, self._rows[name].shape[1])
            self._rows[name][rows] = array
        self._unsent_rows[rows] = True
        for n in np.flatnonzero(image.arrays["expires_ms"] * image.arrays["alive"]).tolist():
            heappush(self._expiring, (int(image.arrays["expires_ms"][n]), int(rows[n])))

    def change(self, change: ItemChange) -> bool:
        """Replaces the attributes that a change names; returns whether there is such an item."""
        row = self._row.get(str(change.item_id), -1)
        if row < 0 or self._rows["born_ms"][row] == REMOVED_MS:
            return False
        held = self.image(row, row + 1)
        gone = not self._rows["alive"][row] if change.gone is UNSET else change.gone
        given = self.prepare(Item(held.ids[0], change.changes, int(self._rows["born_ms"][row]), bool(gone))).arrays
        arrays = {n: given[n] if n.partition("/")[2] in change.changes else a for n, a in held.arrays.items()}
        arrays["keys"] = self.builder.keys(below("column/", arrays), 1)[:, self.own_keys]
        self.put([ItemImage(held.ids, {**arrays, "alive": given["alive"]})])
        return True

    def remove(self, item_id: Id) -> None:
        """Removes an item from the catalogue; an unknown item is ignored."""
        row = self._row.get(str(item_id))
        if row is not None:
            self._rows["alive"][row], self._rows["born_ms"][row] = False, REMOVED_MS
            self._unsent_rows[row] = True

    def _expire(self, now_ms: int) -> None:
        """Items whose time has come are gone."""
        while self._expiring and self._expiring[0][0] <= now_ms:
            expires_ms, row = heappop(self._expiring)
            if self._rows["expires_ms"][row] == expires_ms and self._rows["alive"][row]:
                self._rows["alive"][row], self._unsent_rows[row] = False, True

    def put_tiles(self, partition: int, keys: U64, tiles: Sequence[bytes]) -> None:
        """Replaces tile lists as :meth:`ItemCounts.put`, and raises as it does."""
        self.counts.put(partition, keys, tiles)
        known = self.counts.outdate(keys.tolist(), make=self.form.loose)
        self._stale.update(self._hot_row[slot] for slot in known if slot in self._hot_row)

    def put_store(self, partition: int, store: TileStore) -> None:
        self.counts.tiles[partition] = store
        if self.form.loose:
            self.counts.outdate(store.keys().tolist(), make=True)
        self.counts.outdate(None)
        self._stale.update(range(len(self.ids)))

    def refresh_hot(self, now_ms: int, limit: int = 2048) -> int:
        """Refreshes :attr:`heat` for at most ``limit`` rows: those with new counts, then others in turn, whose old
        events may have left their windows. Returns how many rows with new counts remain. Definition:
        :func:`millrace.windows.affinity.events_a_day`."""
        n = len(self.ids)
        if not n or self._hot_key is None:
            self._stale.clear()
            return 0
        stale = [self._stale.pop() for _ in range(min(limit, len(self._stale)))]
        start = 0 if self._cursor >= n else self._cursor
        self._cursor = min(start + limit - len(stale), n)
        rows = np.concatenate([np.array(stale, np.intp), np.arange(start, self._cursor)])
        counts = self.counts.fresh(self._own[rows, self._hot_key], now_ms)  # (rows, S, A)
        windows, heat = self.builder.schema.windows, self._heat
        heat.clicks[rows] = events_a_day(counts, windows, ACTION)
        heat.exposures[rows] = events_a_day(counts, windows, EXPOSED)
        heat.seen[rows] = counts[:, len(windows.durations) - 1, windows.actions.index(EXPOSED)]
        return len(self._stale)

    # -- for replicas -----------------------------------------------------------------------------------------

    def changes(self, now_ms: int, rows: int = 1024, slots: int = 4096) -> Arrays:
        """The next changes for all :class:`~scorer.catalog.itemtable.ItemTable` replicas, as absolute values: at most
        so many rows and slots, and the slots of these rows. Empty: no more since the last call.

        Called every few milliseconds. When a unit of the tiles begins (an hour, or 15 or 5 minutes), counts change
        without a message. Each call then checks ``slots`` of them, until all are of the new unit. ``left`` (1,) is how
        many are unchecked: more may come even if this call found no change. ``now_ms`` is event time.
        """
        counts = self.counts
        self._expire(now_ms)
        some = np.flatnonzero(self._unsent_rows[: len(self.ids)])[:rows]
        counts.refresh(np.union1d(counts.due(now_ms, slots), self._own[some].ravel()), now_ms)
        arrays = self._arrays_of(some, counts.unsent(slots))
        if left := counts.left(now_ms):
            arrays["left"] = np.array([left])
        self._unsent_rows[some] = False
        if "slots" in arrays:
            counts.sent(arrays["slots"])
        return arrays

    def whole(self, start: int, stop: int, now_ms: int) -> Arrays:
        """The rows and slots [start, stop) in the same form, for a new replica; empty past the end. Meanwhile the
        replica also receives all changes."""
        counts = self.counts
        some = np.arange(start, min(stop, len(self.ids)))
        wanted = np.arange(max(start, 1), min(stop, len(counts)))
        if not len(some) and not len(wanted):
            return {}
        counts.refresh(counts.stale(np.union1d(wanted, self._own[some].ravel()), now_ms), now_ms)
        room = np.array([len(self.ids), len(counts)], np.int64)
        return {**self._arrays_of(some, wanted), "room": room}

    def _arrays_of(self, rows: ItemRows, slots: Slots) -> Arrays:
        arrays: Arrays = {}
        slots = np.union1d(slots, self._own[rows].ravel())
        slots = slots[slots > 0]
        if len(slots):
            arrays |= {
                "slots": slots.astype(np.int32),
                "keys": self.counts.keys[slots],
                "counts": self.counts.sums[slots],
            }
        if len(rows):
            held = {name: array[rows] for name, array in self._rows.items()}
            arrays |= self.form.rows(below("column/", held), below("plain/", held), len(rows))
            arrays |= {name: array for name, array in held.items() if name.startswith("filter/")}
            arrays |= {
                "rows": rows.astype(np.int32),
                "ids": pack_ids([self.ids[row] for row in rows.tolist()]),
                "own": self._own[rows].astype(np.int32),
                "born_ms": held["born_ms"],
                "alive": held["alive"],
            }
        return arrays

    # -- reading ----------------------------------------------------------------------------------------------

    def rows_of(self, ids: Sequence[Id]) -> ItemRows:
        """Rows of items by id, -1 where the item is unknown. (n,)"""
        known = self._row
        return np.fromiter((known.get(str(i), -1) for i in ids), np.intp, len(ids))

    def copies(self, names: Iterable[str]) -> dict[str, U64]:
        """Copies of whole columns, for a thread that works on them while the index changes."""
        return {name: self._rows[f"column/{name}"][: len(self.ids)].copy() for name in names}

    def columns(self, rows: ItemRows) -> dict[str, U64]:
        """Item-side columns at ``rows``: (n,) or (n, slots) value hashes by name."""
        return {name: column[rows] for name, column in below("column/", self._rows).items()}

    def counts_at(self, rows: ItemRows, ts_ms: int) -> Counts:
        """Counts of the window keys ``own_keys`` of the items at ``rows``, exact at any time. (n, J, S, A)"""
        slots, where = np.unique(self._own[rows], return_inverse=True)
        counts = self.counts.at(self.counts.keys[slots], ts_ms)
        return counts[where.reshape(len(rows), len(self.own_keys))]

    @property
    def born_ms(self) -> NDArray[np.int64]:
        return self._rows["born_ms"][: len(self.ids)]

    @property
    def alive(self) -> NDArray[np.bool_]:
        return self._rows["alive"][: len(self.ids)]

    @property
    def heat(self) -> Heat:
        return Heat(*(array[: len(self.ids)] for array in self._heat))

    # -- within -----------------------------------------------------------------------------------------------

    def _grow(self, capacity: int) -> None:
        self._rows = {name: longer(array, capacity) for name, array in self._rows.items()}
        self._unsent_rows = longer(self._unsent_rows, capacity)
        self._heat = Heat(*(longer(array, capacity) for array in self._heat))
        self._own = longer(self._own, capacity)
        self._capacity = capacity
