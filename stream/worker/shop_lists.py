# core
"""The shop's lists: hot items overall, hot items by category, new items. Pure.

Taobao's iGraph serves such lists to its recommendation platform. Hot items are ordered by their heat
(:mod:`millrace.windows.affinity`). A schema without a window key of the item alone has no hot lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from millrace.basics.durations import HOUR_MS
from millrace.basics.hashing import U64, combine, value_hash
from millrace.contracts.events import Attribute, Item, ItemChange, ItemTiles
from millrace.contracts.field_values import parts_of
from millrace.contracts.itemtiles import unpack
from millrace.contracts.online_layout import HOT, LIST_SIZE, NEW, hot_in
from millrace.contracts.schema import Schema
from millrace.windows.affinity import clicks_a_day, taste_columns
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore

_KEYS_AT_ONCE = 8192
Entries = dict[str, float]
"""Item id -> score, best first."""


class _Entry(NamedTuple):
    key: int  # window key
    born_ms: int
    expires_ms: float
    values: tuple[tuple[str, ...], ...]  # those of each column, as the catalogue writes them
    gone: bool


class ShopLists:
    """Makes the lists from the catalogue and its counts. One thread at a time.

    Args:
        columns: attributes by which hot items are listed (default: the schema's taste columns).
        size: the most entries of a list.
    """

    def __init__(self, schema: Schema, columns: Sequence[str] | None = None, size: int = LIST_SIZE) -> None:
        builder = FeatureBuilder(schema)
        self.columns = tuple(taste_columns(builder) if columns is None else columns)
        self.size = size
        self._fields = {f.name: f for f in schema.fields}
        self._windows = schema.windows
        self._counts_items = any(key.columns == (builder.item_column,) for key in schema.windows.keys)
        self._salt = schema.layout.key_salt(builder.item_column)
        self._items: dict[str, _Entry] = {}
        self._tiles: dict[int, TileStore] = {}
        self._swept_hour = 0
        self.newest_ms = 0

    def put(self, item: Item) -> None:
        """Adds or replaces an item. One that is gone is on no list."""
        values = tuple(self._texts(c, item.attributes.get(c)) for c in self.columns)
        key = int(combine(self._salt, np.array([value_hash(item.item_id)], np.uint64))[0])
        self._items[str(item.item_id)] = _Entry(
            key, item.born_ms, math.inf if item.expires_ms is UNSET else item.expires_ms, values, item.gone
        )

    def change(self, change: ItemChange) -> bool:
        """Changes an item; returns whether there is such an item."""
        name, new = str(change.item_id), change.changes
        held = self._items.get(name)
        if held is None:
            return False
        columns = zip(self.columns, held.values, strict=True)
        values = tuple(self._texts(c, new[c]) if c in new else texts for c, texts in columns)
        gone = held.gone if change.gone is UNSET else bool(change.gone)
        self._items[name] = held._replace(values=values, gone=gone)
        return True

    def remove(self, item_id: str) -> None:
        """Removes an item from all lists, if it is there."""
        self._items.pop(item_id, None)

    def count(self, message: ItemTiles) -> None:
        """Replaces tile lists of a partition. Raises BadEventError or StoreError for a damaged message, which changes
        nothing."""
        keys, tiles = unpack(message)
        store = self._tiles.get(message.partition)
        if store is None:
            store = self._tiles[message.partition] = TileStore(self._windows.durations, self._windows.columns)
        store.put(keys, tiles)
        self.newest_ms = max(self.newest_ms, message.event_ms)

    def make(self, now_ms: int) -> dict[str, Entries]:
        """The lists by name: ``hot``, ``hot:{column}:{value}``, ``new`` (scored by time of birth). Empty lists are left
        out. Items with equal scores keep the catalogue's order. ``now_ms``: event time, after the newest event."""
        if now_ms // HOUR_MS > self._swept_hour:
            self._swept_hour = now_ms // HOUR_MS
            for store in self._tiles.values():
                store.expire(now_ms)
        there = {name: entry for name, entry in self._items.items() if not entry.gone and now_ms < entry.expires_ms}
        names, entries = list(there), list(there.values())
        heat = self._heat(np.fromiter((e.key for e in entries), np.uint64, len(entries)), now_ms)
        out: dict[str, Entries] = {}
        for i in np.argsort(-heat, kind="stable")[: np.count_nonzero(heat)].tolist():
            places = (hot_in(c, v) for c, vs in zip(self.columns, entries[i].values, strict=True) for v in vs)
            for place in (HOT, *places):
                entry = out.setdefault(place, {})
                if len(entry) < self.size:
                    entry[names[i]] = float(heat[i])
        born = np.fromiter((e.born_ms for e in entries), np.int64, len(entries))
        newest = np.argsort(-born, kind="stable")[: self.size].tolist()
        return out | ({NEW: {names[i]: float(born[i]) for i in newest}} if newest else {})

    def _texts(self, column: str, value: Attribute) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(str(v) for v in parts_of(self._fields.get(column), value) if v is not None and v != "")
        )

    def _heat(self, keys: U64, now_ms: int) -> NDArray[np.float64]:
        heat = np.zeros(len(keys))
        if not self._counts_items:
            return heat
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            part = slice(start, start + _KEYS_AT_ONCE)
            for store in self._tiles.values():
                heat[part] += clicks_a_day(store.counts(keys[part], now_ms), self._windows)
        return heat
