"""The item index: every item of the catalogue as a row of arrays, and the item-side window counts.

::

    row        0        1        2      ...          one row an item, in order of arrival, never reused
    ids        7       "b3"      9                   as their owner wrote them
    columns    category (rows,) u64, tags (rows, slots) u64 ...      value hashes, by schema column
    plain      price (rows,) f32 ...                                 numbers
    born_ms, alive, clicks_a_day                                     (rows,)

    tiles      partition of `events` -> TileStore       item-side window keys; the count is the sum over partitions

An item-side key may be counted in every partition, since partitions are by user. The index is changed by one thread
between two requests (see :mod:`scorer.feed`); reading it never adds a row, a key or a tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.events import CLICK, Id, Item
from millrace.hashing import U64
from stream.features import FeatureBuilder
from stream.tiles import TileStore

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item with its attributes hashed: what a feed's thread makes, so that the index has only to copy."""

    item: Item
    columns: dict[str, U64]  # (1,) or (1, slots)
    plain: dict[str, float]


class ItemIndex:
    """See the module's text. ``builder`` says which columns and numbers the schema asks for."""

    def __init__(self, builder: FeatureBuilder) -> None:
        self.builder = builder
        schema = builder.schema
        self.days, self.actions = schema.windows.days, len(schema.windows.actions)
        self.tiles: dict[int, TileStore] = {}
        self.ids: list[Id] = []
        self._row: dict[str, int] = {}
        self._row_of_key: dict[int, int] = {}
        self._stale: set[int] = set()  # rows whose hotness may have changed
        self._cursor = 0
        self._slots = {f.name: f.slots for f in schema.fields}
        needed = builder.needs("item")
        self._names = tuple(n for n in needed if not builder.is_numeric(n))
        self._numbers = tuple(n for n in needed if builder.is_numeric(n) and n != "age_days")
        self._ages = "age_days" in needed
        # The window key of the item alone tells how hot an item is.
        own = [k for k, key in enumerate(schema.windows.keys) if key.columns == (builder.item_column,)]
        self._own_key = own[0] if own else None
        has_clicks = "click" in schema.windows.actions
        self._click = schema.windows.actions.index("click") if has_clicks else CLICK
        self._hot_by_clicks = self._own_key is not None and has_clicks
        self._capacity = 0
        self._columns: dict[str, U64] = {}
        self._plain: dict[str, NDArray[np.float32]] = {}
        self._born = np.zeros(0, np.int64)
        self._alive = np.zeros(0, np.bool_)
        self._hot = np.zeros(0, np.float32)
        self._own = np.zeros(0, np.uint64)
        self._grow(1024)

    def __len__(self) -> int:
        return len(self.ids)

    # -- writing: between two requests ------------------------------------------------------------------------

    def prepare(self, item: Item) -> Prepared:
        """Hashes an item's attributes. Changes nothing: any thread may call it."""
        columns, plain = self.builder.attributes("item", {**item.attributes, self.builder.item_column: item.item_id})
        return Prepared(item, columns, plain)

    def put(self, prepared: Iterable[Prepared]) -> None:
        """Adds items, or replaces what is known of them."""
        for new in prepared:
            name = str(new.item.item_id)
            row = self._row.get(name)
            if row is None:
                row = len(self.ids)
                if row == self._capacity:
                    self._grow(2 * self._capacity)
                self._row[name] = row
                self.ids.append(new.item.item_id)
                own = self._key_of(new)
                self._own[row] = own
                if own:
                    self._row_of_key[own] = row
                self._stale.add(row)
            for column in self._names:
                value = new.columns.get(column)
                self._columns[column][row] = 0 if value is None else value[0]
            for number in self._numbers:
                self._plain[number][row] = new.plain.get(number, 0.0)
            self._born[row] = new.item.born_ms
            self._alive[row] = not new.item.gone

    def remove(self, item_id: Id) -> None:
        """Takes an item out of recall; an unknown one is no concern."""
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
            store = self.tiles[partition] = TileStore(self.days, self.actions)
        store.put(keys, tiles)
        rows = map(self._row_of_key.get, keys.tolist())
        self._stale.update(row for row in rows if row is not None)

    def refresh_hot(self, now_ms: int, limit: int = 2048) -> int:
        """Brings ``clicks_a_day`` up to date for at most ``limit`` rows: those with new counts, then others in turn,
        whose old clicks may have left their windows. Returns how many rows have new counts and had to wait.

        Hotness is the mean over the windows of *clicks a day in that window*, so a recent click weighs most.
        """
        n = len(self.ids)
        if not n or not self._hot_by_clicks:
            self._stale.clear()
            return 0
        stale = [self._stale.pop() for _ in range(min(limit, len(self._stale)))]
        start = 0 if self._cursor >= n else self._cursor
        self._cursor = min(start + limit - len(stale), n)
        rows = np.concatenate([np.array(stale, np.intp), np.arange(start, self._cursor)])
        clicks = self.counts(self._own[rows], now_ms)[:, :, self._click]  # (rows, W)
        self._hot[rows] = (clicks / np.asarray(self.days, np.float32)).mean(axis=1)
        return len(self._stale)

    def expire(self, now_ms: int, start: float = 0.0, stop: float = 1.0) -> int:
        """Drops window keys whose windows are all empty, in a share [start, stop) of each store; returns how many."""
        return sum(store.sweep(now_ms, start, stop) for store in self.tiles.values())

    # -- reading ----------------------------------------------------------------------------------------------

    def rows_of(self, ids: Sequence[Id]) -> Rows:
        """Rows of items by id, -1 where the item is unknown. (n,)"""
        known = self._row
        return np.fromiter((known.get(str(i), -1) for i in ids), np.intp, len(ids))

    def columns(self, rows: Rows) -> dict[str, U64]:
        """Item-side columns at ``rows``: (n,) or (n, slots) value hashes by name."""
        return {name: column[rows] for name, column in self._columns.items()}

    def plain(self, rows: Rows, ts_ms: int) -> dict[str, NDArray[np.float32]]:
        """Item-side numbers at ``rows``, ages as of ``ts_ms``. (n,) by name"""
        out = {name: numbers[rows] for name, numbers in self._plain.items()}
        if self._ages:
            out["age_days"] = self.builder.age_days(np.array([ts_ms], np.int64), self._born[rows])
        return out

    def counts(self, keys: U64, ts_ms: int) -> NDArray[np.uint32]:
        """Window counts of item-side ``keys`` (n,) at ``ts_ms``, summed over partitions. (n, W, A)"""
        total = np.zeros((len(keys), len(self.days), self.actions), np.uint32)
        for store in self.tiles.values():
            total += store.counts(keys, ts_ms)
        return total

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

    def _key_of(self, new: Prepared) -> int:
        if self._own_key is None:
            return 0
        return int(self.builder.keys(new.columns, 1)[0, self._own_key])

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
        self._own = longer(self._own, (capacity,))
        self._capacity = capacity
