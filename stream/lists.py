"""Lists of the shop (what iGraph holds for TPP's users): hot items overall and by category, new items; and what a user
likes. Pure: items, item-side tiles and a time in, lists out.

An item's hotness is the mean over the windows of *clicks a day in that window*, so that a recent click weighs most. It
needs a window key of the item alone; without one there are no hot lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.events import Attribute, Item, ItemTiles
from millrace.contracts.hashing import U64, combine, value_hash
from millrace.contracts.schema import Schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore, counts_of

SIZE = 200
CHUNK = 8192
Entries = dict[str, float]  # item id -> score, best first


class _Entry(NamedTuple):
    key: int  # window key
    born_ms: int
    values: tuple[tuple[str, ...], ...]  # of each column, as the catalogue writes them


def taste_columns(builder: FeatureBuilder) -> dict[str, int]:
    """Item columns that make a window key together with the user's columns alone, and the column of ``keys``."""
    found: dict[str, int] = {}
    users, items = builder.needs("user"), set(builder.needs("item")) - {builder.item_column}
    for k, key in enumerate(builder.schema.windows.keys):
        others = [c for c in key.columns if c not in users]
        if len(others) == 1 and len(key.columns) > 1 and others[0] in items:
            found.setdefault(others[0], k)
    return found


class Lists:
    """The catalogue and its counts. One thread at a time.

    Args:
        columns: attributes by which hot items are listed (default: :func:`taste_columns`).
        size: entries of a list at most.
    """

    def __init__(self, schema: Schema, columns: Sequence[str] | None = None, size: int = SIZE) -> None:
        builder = FeatureBuilder(schema)
        self.columns = tuple(taste_columns(builder) if columns is None else columns)
        self.size = size
        self._separators = {f.name: f.separator for f in schema.fields if f.slots > 1}
        windows = schema.windows
        self.days, self._columns = windows.days, windows.columns
        own = any(k.columns == (builder.item_column,) for k in windows.keys)
        self._click = windows.actions.index("click") if own and "click" in windows.actions else None
        self._salt = schema.layout.key_salt(builder.item_column)
        self._items: dict[str, _Entry] = {}
        self._tiles: dict[int, TileStore] = {}
        self._swept_hour = 0
        self.newest_ms = 0

    def put(self, item: Item) -> None:
        """Adds an item, or replaces what is known of it; one that is gone goes."""
        name = str(item.item_id)
        if item.gone:
            self.remove(name)
            return
        values = tuple(_texts(item.attributes.get(c), self._separators.get(c)) for c in self.columns)
        key = int(combine(self._salt, np.array([value_hash(item.item_id)], np.uint64))[0])
        self._items[name] = _Entry(key, item.born_ms, values)

    def remove(self, item_id: str) -> None:
        self._items.pop(item_id, None)

    def count(self, message: ItemTiles) -> None:
        """Takes new tile lists of a partition.

        Raises:
            ValueError, StoreError: the message is damaged; nothing of it is taken.
        """
        keys = np.frombuffer(message.keys, "<u8")
        ends = np.cumsum(np.frombuffer(message.sizes, "<u4"), dtype=np.int64)
        if len(keys) != len(ends) or (ends[-1] if len(ends) else 0) != len(message.tiles):
            raise ValueError(f"{len(keys)} keys, {len(ends)} sizes, {len(message.tiles)} bytes do not fit")
        store = self._tiles.get(message.partition)
        if store is None:
            store = self._tiles[message.partition] = TileStore(self.days, self._columns)
        starts = [0, *ends[:-1].tolist()]
        store.put(keys, [message.tiles[a:b] for a, b in zip(starts, ends.tolist(), strict=False)])
        self.newest_ms = max(self.newest_ms, message.event_ms)

    def make(self, now_ms: int) -> dict[str, Entries]:
        """The lists by name: ``hot``, ``hot:{column}:{value}``, ``new`` (its scores are the times of birth); none that
        is empty. Equally good ones stand in the catalogue's order.

        Args:
            now_ms: event time, after the newest event.
        """
        if now_ms // 3_600_000 > self._swept_hour:
            self._swept_hour = now_ms // 3_600_000
            for store in self._tiles.values():
                store.expire(now_ms)
        names, entries = list(self._items), list(self._items.values())
        heat = self._heat(np.fromiter((e.key for e in entries), np.uint64, len(entries)), now_ms)
        out: dict[str, Entries] = {}
        for i in np.argsort(-heat, kind="stable")[: np.count_nonzero(heat)].tolist():
            places = (f"hot:{c}:{v}" for c, vs in zip(self.columns, entries[i].values, strict=True) for v in vs)
            for place in ("hot", *places):
                entry = out.setdefault(place, {})
                if len(entry) < self.size:
                    entry[names[i]] = float(heat[i])
        born = np.fromiter((e.born_ms for e in entries), np.int64, len(entries))
        newest = np.argsort(-born, kind="stable")[: self.size].tolist()
        return out | ({"new": {names[i]: float(born[i]) for i in newest}} if newest else {})

    def _heat(self, keys: U64, now_ms: int) -> NDArray[np.float64]:
        heat = np.zeros(len(keys))
        if self._click is None:
            return heat
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK]
            for store in self._tiles.values():
                clicks = store.counts(part, now_ms)[:, :, self._click]
                heat[start : start + CHUNK] += (clicks / np.array(self.days)).mean(axis=1)
        return heat


def preferences(
    builder: FeatureBuilder,
    column: str,
    values: Sequence[str | int],
    user: Mapping[str, U64],
    record: Mapping[bytes, bytes],
    ts_ms: int,
) -> list[tuple[str | int, float]]:
    """How much a user likes each of ``values`` of an item column, in clicks a day as for hot items, best first; those
    never clicked are left out.

    Args: one of :func:`taste_columns`; the user's columns, of (1,) hashes; the user's hash in the online store by
    field; an event time after the newest event. Raises StoreError when a tile list in it is damaged.
    """
    windows = builder.schema.windows
    hashes = np.array([value_hash(v) for v in values], np.uint64)
    keys = builder.keys({**user, column: hashes}, len(values))[:, taste_columns(builder)[column]]
    blobs = [record.get(key.to_bytes(8, "little")) for key in keys.tolist()]
    clicks = counts_of(blobs, ts_ms, windows.days, windows.columns)[:, :, windows.actions.index("click")]
    liking = (clicks / np.array(windows.days)).mean(axis=1)
    order = np.argsort(-liking, kind="stable")[: np.count_nonzero(liking)]
    return [(values[i], float(liking[i])) for i in order.tolist()]


def _texts(value: Attribute, separator: str | None) -> tuple[str, ...]:
    if isinstance(value, str):
        values = [part.strip() for part in value.split(separator)] if separator else [value]
    else:
        values = [str(v) for v in (value if isinstance(value, list) else [] if value is None else [value])]
    return tuple(dict.fromkeys(v for v in values if v))
