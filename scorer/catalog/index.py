# core
"""The item index: every item of the catalogue as a row of arrays, and the item-side window counts.

::

    row        0        1        2      ...          one row an item, in order of arrival, never reused
    ids        7       "b3"      9                   as their owner wrote them
    columns    category (rows,) u64, tags (rows, slots) u64 ...      value hashes, by schema column
    plain      price (rows,) f32 ...                                 numbers
    filters    region (rows, values) u64 ...                         value hashes of attributes that are no features
    born_ms, alive, heat (clicks and exposures a day, seen)          (rows,)

    tiles      partition of `events` -> TileStore       item-side window keys; the count is the sum over partitions

    slots (rows, J)     which window keys an item has: one slot a distinct key, shared by the items of a category
    sums  (slots, S, A) the counts of a slot's key, summed over partitions, as of the time in ``stamps`` (slots,)
                        over S spans: windows, then half-lives
    unsent, unsent_rows     which slots and rows a replica has to be told of

An item-side key may be counted in every partition, since partitions are by user. Whoever changes the index is alone
with it meanwhile. What pages are made from is a replica, :class:`scorer.catalog.shelf.Shelf`, which
:meth:`ItemIndex.changes` keeps up with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.events import Id, Item
from millrace.contracts.filters import hashes_of
from millrace.versions.image import below
from millrace.windows.features import FeatureBuilder
from millrace.windows.likings import ACTION, EXPOSED, events_a_day
from millrace.windows.tiles import TileStore
from scorer.catalog.itemimage import REMOVED_MS, ItemImage, wider
from scorer.catalog.shelf import Arrays, ItemRows, ShelfForm, longer, pack_ids
from scorer.recall.recall import Heat

KeySlots = NDArray[np.intp]
"""Slots of ``sums``, one a distinct window key."""
Counts = NDArray[np.integer[Any]]


class ItemIndex:
    """See the module's text. ``builder`` says which columns and numbers the schema asks for."""

    def __init__(self, builder: FeatureBuilder) -> None:
        self.builder = builder
        schema = builder.schema
        self._empty = TileStore.of(schema.windows)  # gives the counts of a key without events
        self.tiles: dict[int, TileStore] = {}
        self.ids: list[Id] = []
        self._row: dict[str, int] = {}
        self._stale: set[int] = set()  # rows whose hotness may have changed
        self._cursor = 0
        self._unit_ms = schema.windows.unit_ms
        self.form = ShelfForm(builder)
        self.own_keys = self.form.own_keys
        windows = schema.windows
        hot = [j for j, k in enumerate(self.own_keys) if windows.keys[k].columns == (builder.item_column,)]
        self._hot_key = hot[0] if hot else None  # its counts tell how hot an item is, and how often it was seen
        self._slot: dict[int, int] = {0: 0}  # window key -> slot; slot 0 is "missing" and counts nothing
        self._slot_keys = np.zeros(1024, np.uint64)
        self._slot_row = np.full(1024, -1, np.intp)  # the item of a slot whose key is about one item alone
        self._stamps = np.full(1024, -1, np.int64)
        self._sums = np.zeros((1024, self._empty.spans, self._empty.columns), self._empty.dtype)
        self._unsent = np.zeros(1024, np.bool_)
        self._unsent_rows = np.zeros(0, np.bool_)
        self._capacity = 0
        fields = {f.name: f for f in schema.fields}
        self._filter_fields = {name: fields.get(name) for name in schema.filters}
        self._rows: Arrays = {"born_ms": np.zeros(0, np.int64), "alive": np.zeros(0, np.bool_)}  # as in an ItemImage
        for name in self.form.names:
            slots = fields[name].slots if name in fields else 1
            self._rows[f"column/{name}"] = np.zeros(0 if slots == 1 else (0, slots), np.uint64)
        for name in builder.needs("item"):
            if builder.is_numeric(name) and name != "age_days":
                self._rows[f"plain/{name}"] = np.zeros(0, np.float32)
        for name in schema.filters:  # as wide as the most values that an item has
            self._rows[f"filter/{name}"] = np.zeros((0, 1), np.uint64)
        self._heat = Heat.none(0)
        self._own = np.zeros((0, len(self.own_keys)), np.intp)
        self._grow(1024)

    def __len__(self) -> int:
        return len(self.ids)

    # -- writing: between two requests ------------------------------------------------------------------------

    def prepare(self, item: Item) -> ItemImage:
        """Hashes an item's attributes. Changes nothing: any thread may call it."""
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
        arrays |= {"born_ms": np.array([item.born_ms], np.int64), "alive": np.array([not item.gone])}
        return ItemImage([item.item_id], arrays)

    def image(self, start: int, stop: int) -> ItemImage:
        """A copy of the rows [start, stop), or of those of them that there are."""
        rows = np.arange(start, min(stop, len(self.ids)))
        arrays = {name: array[rows] for name, array in self._rows.items()}
        return ItemImage(self.ids[start:stop], {**arrays, "keys": self._slot_keys[self._own[rows]]})

    def put(self, images: Iterable[ItemImage]) -> None:
        """Adds items, or replaces what is known about them.

        Raises:
            ValueError: they are another schema's items; nothing was changed.
        """
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
        slots = np.array([self._slot_of(key) for key in distinct.tolist()], np.intp)
        self._own[rows] = slots[where.reshape(image.arrays["keys"].shape)]
        if self._hot_key is not None:
            self._slot_row[self._own[rows, self._hot_key]] = rows
        for name in self._rows:
            array = image.arrays[name]
            if name.startswith("filter/"):
                self._rows[name] = wider(self._rows[name], 1 << (array.shape[1] - 1).bit_length())
                array = wider(array, self._rows[name].shape[1])
            self._rows[name][rows] = array
        self._unsent_rows[rows] = True

    def remove(self, item_id: Id) -> None:
        """Takes an item out of the catalogue; an unknown item is ignored."""
        row = self._row.get(str(item_id))
        if row is not None:
            self._rows["alive"][row], self._rows["born_ms"][row] = False, REMOVED_MS
            self._unsent_rows[row] = True

    def put_tiles(self, partition: int, keys: U64, tiles: Sequence[bytes]) -> None:
        """Replaces the tile lists of ``keys`` (n,) as counted in ``partition`` by the newer ones in ``tiles``.

        Raises:
            StoreError: a tile list is damaged; nothing is replaced then.
        """
        store = self.tiles.get(partition)
        if store is None:
            store = self.tiles[partition] = TileStore.of(self.builder.schema.windows)
        store.put(keys, tiles)
        slot_of = self._slot_of if self.form.loose else self._slot.get
        known = [slot for slot in map(slot_of, keys.tolist()) if slot]
        self._stamps[known] = -1
        self._stale.update(self._slot_row[known].tolist())
        self._stale.discard(-1)

    def put_store(self, partition: int, store: TileStore) -> None:
        """Replaces all that was counted in ``partition``."""
        self.tiles[partition] = store
        if self.form.loose:
            for key in store.keys().tolist():
                self._slot_of(key)
        self._stamps[:] = -1
        self._stale.update(range(len(self.ids)))

    def refresh_hot(self, now_ms: int, limit: int = 2048) -> int:
        """Brings :attr:`heat` up to date for at most ``limit`` rows: those with new counts, then others in turn, whose
        old events may have left their windows. Returns how many rows with new counts have to wait.

        :func:`millrace.windows.likings.events_a_day` defines these numbers.
        """
        n = len(self.ids)
        if not n or self._hot_key is None:
            self._stale.clear()
            return 0
        stale = [self._stale.pop() for _ in range(min(limit, len(self._stale)))]
        start = 0 if self._cursor >= n else self._cursor
        self._cursor = min(start + limit - len(stale), n)
        rows = np.concatenate([np.array(stale, np.intp), np.arange(start, self._cursor)])
        counts = self._remembered(self._own[rows, self._hot_key], now_ms)  # (rows, S, A)
        windows, heat = self.builder.schema.windows, self._heat
        heat.clicks[rows] = events_a_day(counts, windows, ACTION)
        heat.exposures[rows] = events_a_day(counts, windows, EXPOSED)
        heat.seen[rows] = counts[:, len(windows.durations) - 1, windows.actions.index(EXPOSED)]
        return len(self._stale)

    def expire(self, now_ms: int, start: float = 0.0, stop: float = 1.0) -> int:
        """Drops window keys whose windows are all empty, in a share [start, stop) of each store; returns how many."""
        return sum(store.sweep(now_ms, start, stop) for store in self.tiles.values())

    # -- for replicas -----------------------------------------------------------------------------------------

    def changes(self, now_ms: int, rows: int = 1024, slots: int = 4096) -> Arrays:
        """What a :class:`scorer.catalog.shelf.Shelf` has to be told of, in absolute values: at most so many rows and
        slots, and the slots of these rows. Empty: there is nothing more since the last call.

        Called every few milliseconds, for all replicas at once. With a unit of the tiles that begins (an hour, or 15 or
        5 minutes), counts change of which no message tells: calls look at ``slots`` of them each, until all are of that
        unit. ``left`` (1,) says how many
        slots are still to be looked at, so there is more to come though this call may have found no change.

        Args:
            now_ms: event time.
        """
        n, stamps = len(self._slot), self._stamps[: len(self._slot)]
        some = np.flatnonzero(self._unsent_rows[: len(self.ids)])[:rows]
        stale = np.flatnonzero(stamps == -1)[:slots]  # new tiles first
        if len(stale) < slots:
            of_before = np.flatnonzero((stamps != self._stamp(now_ms)) & (stamps != -1))
            stale = np.concatenate([stale, of_before[: slots - len(stale)]])
        self._refresh(np.union1d(stale, self._own[some].ravel()), now_ms)
        told = np.flatnonzero(self._unsent[:n])[:slots]
        arrays = self._told(some, told)
        left = np.count_nonzero(stamps != self._stamp(now_ms))
        if left:
            arrays["left"] = np.array([left])
        self._unsent_rows[some] = False
        if "slots" in arrays:
            self._unsent[arrays["slots"]] = False
        return arrays

    def whole(self, start: int, stop: int, now_ms: int) -> Arrays:
        """The rows and slots [start, stop) in the same form, for a replica that begins; empty when there are none any
        more. Meanwhile it is told of changes as any other."""
        n = len(self._slot)
        some = np.arange(start, min(stop, len(self.ids)))
        told = np.arange(max(start, 1), min(stop, n))
        if not len(some) and not len(told):
            return {}
        slots = np.union1d(told, self._own[some].ravel())
        self._refresh(slots[self._stamps[slots] != self._stamp(now_ms)], now_ms)
        room = np.array([len(self.ids), n], np.int64)
        return {**self._told(some, told), "room": room}

    def _told(self, rows: ItemRows, slots: KeySlots) -> Arrays:
        """These rows, and these slots together with those of the rows."""
        arrays: Arrays = {}
        slots = np.union1d(slots, self._own[rows].ravel())
        slots = slots[slots > 0]
        if len(slots):
            arrays |= {"slots": slots.astype(np.int32), "keys": self._slot_keys[slots], "counts": self._sums[slots]}
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
        """Whole columns, copied, for a thread that works on them while the index changes."""
        return {name: self._rows[f"column/{name}"][: len(self.ids)].copy() for name in names}

    def columns(self, rows: ItemRows) -> dict[str, U64]:
        """Item-side columns at ``rows``: (n,) or (n, slots) value hashes by name."""
        return {name: column[rows] for name, column in below("column/", self._rows).items()}

    def counts(self, keys: U64, ts_ms: int) -> Counts:
        """What :meth:`TileStore.counts` gives of item-side ``keys`` (n,) at ``ts_ms``, summed over partitions.
        (n, S, A)"""
        total = self._empty.counts(np.zeros(len(keys), np.uint64), ts_ms)
        for store in self.tiles.values():
            total += store.counts(keys, ts_ms)
        return total

    def counts_at(self, rows: ItemRows, ts_ms: int) -> Counts:
        """:meth:`counts` of the window keys ``own_keys`` of the items at ``rows``, exact at any time. (n, J, S, A)"""
        slots, where = np.unique(self._own[rows], return_inverse=True)
        counts = self.counts(self._slot_keys[slots], ts_ms)
        return counts[where.reshape(len(rows), len(self.own_keys))]

    @property
    def born_ms(self) -> NDArray[np.int64]:
        return self._rows["born_ms"][: len(self.ids)]

    @property
    def alive(self) -> NDArray[np.bool_]:
        return self._rows["alive"][: len(self.ids)]

    @property
    def heat(self) -> Heat:
        """Views, by row."""
        return Heat(*(array[: len(self.ids)] for array in self._heat))

    @property
    def keys(self) -> int:
        """Window keys held, over all partitions."""
        return sum(len(store) for store in self.tiles.values())

    # -- within -----------------------------------------------------------------------------------------------

    def _remembered(self, slots: KeySlots, now_ms: int) -> Counts:
        """Counts of the keys in ``slots`` (...) at ``now_ms``, brought up to it: (..., S, A)."""
        self._refresh(np.unique(slots[self._stamps[slots] != self._stamp(now_ms)]), now_ms)
        return self._sums[slots]

    def _refresh(self, slots: KeySlots, now_ms: int) -> None:
        """Reads the counts of distinct ``slots`` (n,) anew, and keeps in mind which of them have changed.

        Windows begin and end with a unit of the tiles, and decayed counts are as of the full unit. So the counts of a
        key stay the same until one of its tile lists is replaced, or the time passes into another unit. At the full
        unit itself, that unit's tile does not count yet.
        """
        if len(slots):
            fresh = self.counts(self._slot_keys[slots], now_ms)
            self._unsent[slots] |= (fresh != self._sums[slots]).any(axis=(1, 2))
            self._sums[slots] = fresh
            self._stamps[slots] = self._stamp(now_ms)

    def _stamp(self, ts_ms: int) -> int:
        """The unit of a time; a full unit by itself is between two units."""
        return 2 * (ts_ms // self._unit_ms) + (ts_ms % self._unit_ms > 0)

    def _slot_of(self, key: int) -> int:
        slot = self._slot.get(key)
        if slot is None:
            slot = self._slot[key] = len(self._slot)
            if slot == len(self._stamps):
                self._slot_keys, self._slot_row, self._stamps, self._sums, self._unsent = (
                    np.concatenate([old, np.full_like(old, fill)])
                    for old, fill in (
                        (self._slot_keys, 0),
                        (self._slot_row, -1),
                        (self._stamps, -1),
                        (self._sums, 0),
                        (self._unsent, False),
                    )
                )
            self._slot_keys[slot] = key
        return slot

    def _grow(self, capacity: int) -> None:
        self._rows = {name: longer(array, capacity) for name, array in self._rows.items()}
        self._unsent_rows = longer(self._unsent_rows, capacity)
        self._heat = Heat(*(longer(array, capacity) for array in self._heat))
        self._own = longer(self._own, capacity)
        self._capacity = capacity
