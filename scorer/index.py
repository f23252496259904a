# core
"""The item index: every item of the catalogue as a row of arrays, and the item-side window counts.

::

    row        0        1        2      ...          one row an item, in order of arrival, never reused
    ids        7       "b3"      9                   as their owner wrote them
    columns    category (rows,) u64, tags (rows, slots) u64 ...      value hashes, by schema column
    plain      price (rows,) f32 ...                                 numbers
    born_ms, alive, clicks_a_day                                     (rows,)

    tiles      partition of `events` -> TileStore       item-side window keys; the count is the sum over partitions

    slots (rows, J)     which window keys an item has: one slot a distinct key, shared by the items of a category
    sums  (slots, S, A) the counts of a slot's key, summed over partitions, as of the hour in ``stamps`` (slots,)
                        over S spans: windows, then half-lives

An item-side key may be counted in every partition, since partitions are by user. The index is changed by one thread
between two requests (see :mod:`scorer.feed`); reading it never adds a row, a key or a tile, it only remembers sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.events import Id, Item
from millrace.contracts.hashing import U64
from millrace.windows.features import FeatureBuilder
from millrace.windows.likings import ACTION, clicks_a_day
from millrace.windows.tiles import TileStore

HOUR_MS = 3_600_000
ItemRows = NDArray[np.intp]
"""Rows of the item index, one an item."""
KeySlots = NDArray[np.intp]
"""Slots of ``sums``, one a distinct window key."""
Counts = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item with its attributes hashed. A feed's thread makes it, so that the index only has to copy it."""

    item: Item
    columns: dict[str, U64]  # (1,) or (1, slots)
    plain: dict[str, float]
    keys: list[int]  # (J,) window keys of the item alone


@dataclass(frozen=True, slots=True)
class ItemImage:
    """Rows of the index as they lie in a checkpoint: what :class:`Prepared` is of one item, of many."""

    ids: list[Id]
    columns: dict[str, U64]  # (n,) or (n, slots)
    plain: dict[str, NDArray[np.float32]]  # (n,)
    keys: U64  # (n, J)
    born_ms: NDArray[np.int64]  # (n,)
    alive: NDArray[np.bool_]  # (n,)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Flat names for a file."""
        columns = {f"column/{name}": a for name, a in self.columns.items()}
        plain = {f"plain/{name}": a for name, a in self.plain.items()}
        return {**columns, **plain, "keys": self.keys, "born_ms": self.born_ms, "alive": self.alive}

    def slice(self, start: int, stop: int) -> ItemImage:
        """The rows [start, stop). Views."""
        cut = {name: a[start:stop] for name, a in self.arrays().items()}
        return ItemImage.of_arrays(self.ids[start:stop], cut)

    @classmethod
    def of_arrays(cls, ids: list[Id], flat: Mapping[str, NDArray[Any]]) -> ItemImage:
        """The inverse of :meth:`arrays`.

        Raises:
            KeyError, ValueError: the arrays are not those of ``ids``.
        """

        def below(prefix: str, dtype: type) -> dict[str, NDArray[Any]]:
            found = {n.removeprefix(prefix): a for n, a in flat.items() if n.startswith(prefix)}
            if any(len(a) != len(ids) or a.dtype != dtype for a in found.values()):
                raise ValueError(f"arrays '{prefix}' are not of {len(ids)} items")
            return found

        keys, born_ms, alive = flat["keys"], flat["born_ms"], flat["alive"]
        kinds = ((keys, np.uint64, 2), (born_ms, np.int64, 1), (alive, np.bool_, 1))
        if any(a.dtype != dtype or a.ndim != axes or len(a) != len(ids) for a, dtype, axes in kinds):
            raise ValueError(f"keys, births and lives are not of {len(ids)} items")
        return cls(ids, below("column/", np.uint64), below("plain/", np.float32), keys, born_ms, alive)

    @classmethod
    def joined(cls, parts: Sequence[ItemImage]) -> ItemImage:
        """Slices as one."""
        each = [part.arrays() for part in parts]
        flat = {name: np.concatenate([arrays[name] for arrays in each]) for name in each[0]}
        return cls.of_arrays([i for part in parts for i in part.ids], flat)


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
        self._slots = {f.name: f.slots for f in schema.fields}
        needed = builder.needs("item")
        self._names = tuple(n for n in needed if not builder.is_numeric(n))
        self._numbers = tuple(n for n in needed if builder.is_numeric(n) and n != "age_days")
        self._ages = "age_days" in needed
        # Window keys of item columns alone: those of an item never change, so their counts are remembered.
        windows = schema.windows
        known = set(self._names) - {f.name for f in schema.fields if f.bias}
        self.own_keys = [k for k, key in enumerate(windows.keys) if set(key.columns) <= known]
        hot = [j for j, k in enumerate(self.own_keys) if windows.keys[k].columns == (builder.item_column,)]
        self._hot_key = hot[0] if hot and ACTION in windows.actions else None  # its clicks tell how hot an item is
        self._slot: dict[int, int] = {0: 0}  # window key -> slot; slot 0 is "missing" and counts nothing
        self._slot_keys = np.zeros(1024, np.uint64)
        self._slot_row = np.full(1024, -1, np.intp)  # the item of a slot whose key is about one item alone
        self._stamps = np.full(1024, -1, np.int64)
        self._sums = np.zeros((1024, self._empty.spans, self._empty.columns), self._empty.dtype)
        self._capacity = 0
        self._columns: dict[str, U64] = {}
        self._plain: dict[str, NDArray[np.float32]] = {}
        self._born = np.zeros(0, np.int64)
        self._alive = np.zeros(0, np.bool_)
        self._hot = np.zeros(0, np.float32)
        self._own = np.zeros((0, len(self.own_keys)), np.intp)
        self._grow(1024)

    def __len__(self) -> int:
        return len(self.ids)

    # -- writing: between two requests ------------------------------------------------------------------------

    def prepare(self, item: Item) -> Prepared:
        """Hashes an item's attributes. Changes nothing: any thread may call it."""
        columns, plain = self.builder.attributes("item", {**item.attributes, self.builder.item_column: item.item_id})
        keys = self.builder.keys(columns, 1)[0, self.own_keys].tolist()
        return Prepared(item, columns, plain, keys)

    def put(self, prepared: Iterable[Prepared]) -> None:
        """Adds items, or replaces what is known about them."""
        for new in prepared:
            name = str(new.item.item_id)
            row = self._row.get(name)
            if row is None:
                row = len(self.ids)
                if row == self._capacity:
                    self._grow(2 * self._capacity)
                self._row[name] = row
                self.ids.append(new.item.item_id)
                self._stale.add(row)
            slots = self._own[row] = [self._slot_of(key) for key in new.keys]
            if self._hot_key is not None:
                self._slot_row[slots[self._hot_key]] = row
            for column in self._names:
                value = new.columns.get(column)
                self._columns[column][row] = 0 if value is None else value[0]
            for number in self._numbers:
                self._plain[number][row] = new.plain.get(number, 0.0)
            self._born[row] = new.item.born_ms
            self._alive[row] = not new.item.gone

    def image(self, start: int, stop: int) -> ItemImage:
        """A copy of the rows [start, stop), or of those of them that there are."""
        rows = np.arange(start, min(stop, len(self.ids)))
        columns = {name: column[rows] for name, column in self._columns.items()}
        plain = {name: numbers[rows] for name, numbers in self._plain.items()}
        keys = self._slot_keys[self._own[rows]]
        return ItemImage(self.ids[start:stop], columns, plain, keys, self._born[rows], self._alive[rows])

    def put_image(self, image: ItemImage) -> None:
        """:meth:`put` of many items at once, as :meth:`image` gave them.

        Raises:
            ValueError: the image is of another schema's items; nothing was changed.
        """
        shapes = {n: c.shape[1:] for n, c in self._columns.items()}, set(self._plain), len(self.own_keys)
        given = {n: c.shape[1:] for n, c in image.columns.items()}, set(image.plain), image.keys.shape[1]
        if shapes != given:
            raise ValueError(f"items with columns {sorted(image.columns)} are not of this schema")
        known = self._row
        rows = np.empty(len(image.ids), np.intp)
        for n, item_id in enumerate(image.ids):
            row = known.setdefault(str(item_id), len(self.ids))
            if row == len(self.ids):
                self.ids.append(item_id)
            rows[n] = row
        while len(self.ids) > self._capacity:
            self._grow(2 * self._capacity)
        distinct, where = np.unique(image.keys, return_inverse=True)
        slots = np.array([self._slot_of(key) for key in distinct.tolist()], np.intp)
        self._own[rows] = slots[where.reshape(image.keys.shape)]
        if self._hot_key is not None:
            self._slot_row[self._own[rows, self._hot_key]] = rows
        for name, column in image.columns.items():
            self._columns[name][rows] = column
        for name, numbers in image.plain.items():
            self._plain[name][rows] = numbers
        self._born[rows], self._alive[rows] = image.born_ms, image.alive
        self._stale.update(rows.tolist())

    def remove(self, item_id: Id) -> None:
        """Takes an item out of recall; an unknown item is ignored."""
        row = self._row.get(str(item_id))
        if row is not None:
            self._alive[row] = False

    def put_tiles(self, partition: int, keys: U64, tiles: Sequence[bytes]) -> None:
        """Replaces the tile lists of ``keys`` (n,) as counted in ``partition`` by the newer ones in ``tiles``.

        Raises:
            StoreError: a tile list is damaged; nothing is replaced then.
        """
        store = self.tiles.get(partition)
        if store is None:
            store = self.tiles[partition] = TileStore.of(self.builder.schema.windows)
        store.put(keys, tiles)
        known = [slot for slot in map(self._slot.get, keys.tolist()) if slot]
        self._stamps[known] = -1
        self._stale.update(self._slot_row[known].tolist())
        self._stale.discard(-1)

    def put_store(self, partition: int, store: TileStore) -> None:
        """Replaces all that was counted in ``partition``."""
        self.tiles[partition] = store
        self._stamps[:] = -1
        self._stale.update(range(len(self.ids)))

    def refresh_hot(self, now_ms: int, limit: int = 2048) -> int:
        """Brings ``clicks_a_day`` up to date for at most ``limit`` rows: those with new counts, then others in turn,
        whose old clicks may have left their windows. Returns how many rows with new counts have to wait.

        :func:`millrace.windows.likings.clicks_a_day` defines these numbers.
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
        self._hot[rows] = clicks_a_day(counts, self.builder.schema.windows)
        return len(self._stale)

    def expire(self, now_ms: int, start: float = 0.0, stop: float = 1.0) -> int:
        """Drops window keys whose windows are all empty, in a share [start, stop) of each store; returns how many."""
        return sum(store.sweep(now_ms, start, stop) for store in self.tiles.values())

    # -- reading ----------------------------------------------------------------------------------------------

    def rows_of(self, ids: Sequence[Id]) -> ItemRows:
        """Rows of items by id, -1 where the item is unknown. (n,)"""
        known = self._row
        return np.fromiter((known.get(str(i), -1) for i in ids), np.intp, len(ids))

    def copies(self, names: Iterable[str]) -> dict[str, U64]:
        """Whole columns, copied, for a thread that works on them while the index changes."""
        return {name: self._columns[name][: len(self.ids)].copy() for name in names}

    def columns(self, rows: ItemRows) -> dict[str, U64]:
        """Item-side columns at ``rows``: (n,) or (n, slots) value hashes by name."""
        return {name: column[rows] for name, column in self._columns.items()}

    def plain(self, rows: ItemRows, ts_ms: int) -> dict[str, NDArray[np.float32]]:
        """Item-side numbers at ``rows``, ages as of ``ts_ms``. (n,) by name"""
        out = {name: numbers[rows] for name, numbers in self._plain.items()}
        if self._ages:
            out["age_days"] = self.builder.age_days(np.array([ts_ms], np.int64), self._born[rows])
        return out

    def counts(self, keys: U64, ts_ms: int) -> Counts:
        """What :meth:`TileStore.counts` gives of item-side ``keys`` (n,) at ``ts_ms``, summed over partitions.
        (n, S, A)"""
        total = self._empty.counts(np.zeros(len(keys), np.uint64), ts_ms)
        for store in self.tiles.values():
            total += store.counts(keys, ts_ms)
        return total

    def own_counts(self, rows: ItemRows, ts_ms: int) -> Counts:
        """:meth:`counts` of the window keys ``own_keys`` of the items at ``rows``. (n, J, S, A)"""
        return self._remembered(self._own[rows], ts_ms)

    @property
    def born_ms(self) -> NDArray[np.int64]:
        return self._born[: len(self.ids)]

    @property
    def alive(self) -> NDArray[np.bool_]:
        return self._alive[: len(self.ids)]

    @property
    def clicks_a_day(self) -> NDArray[np.float32]:
        return self._hot[: len(self.ids)]

    @property
    def keys(self) -> int:
        """Window keys held, over all partitions."""
        return sum(len(store) for store in self.tiles.values())

    # -- within -----------------------------------------------------------------------------------------------

    def _remembered(self, slots: KeySlots, ts_ms: int) -> Counts:
        """Counts of the keys in ``slots`` (...) at ``ts_ms``: (..., S, A).

        Windows begin and end with an hour, and decayed counts are as of the full hour. So the counts of a key stay the
        same until one of its tile lists is replaced, or ``ts_ms`` passes into another hour. At the full hour itself,
        that hour's tile does not count yet.
        """
        stamp = 2 * (ts_ms // HOUR_MS) + (ts_ms % HOUR_MS > 0)
        stale = np.unique(slots[self._stamps[slots] != stamp])
        if len(stale):
            self._sums[stale] = self.counts(self._slot_keys[stale], ts_ms)
            self._stamps[stale] = stamp
        return self._sums[slots]

    def _slot_of(self, key: int) -> int:
        slot = self._slot.get(key)
        if slot is None:
            slot = self._slot[key] = len(self._slot)
            if slot == len(self._stamps):
                self._slot_keys, self._slot_row, self._stamps, self._sums = (
                    np.concatenate([old, np.full_like(old, fill)])
                    for old, fill in ((self._slot_keys, 0), (self._slot_row, -1), (self._stamps, -1), (self._sums, 0))
                )
            self._slot_keys[slot] = key
        return slot

    def _grow(self, capacity: int) -> None:
        def longer(old: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
            new = np.zeros(shape, old.dtype)
            new[: len(old)] = old
            return new

        for name in self._names:
            slots = self._slots.get(name, 1)
            shape = (capacity,) if slots == 1 else (capacity, slots)
            old = self._columns.get(name, np.zeros((0, *shape[1:]), np.uint64))
            self._columns[name] = longer(old, shape)
        for name in self._numbers:
            self._plain[name] = longer(self._plain.get(name, np.zeros(0, np.float32)), (capacity,))
        self._born = longer(self._born, (capacity,))
        self._alive = longer(self._alive, (capacity,))
        self._hot = longer(self._hot, (capacity,))
        self._own = longer(self._own, (capacity, len(self.own_keys)))
        self._capacity = capacity
