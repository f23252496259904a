# core
"""The item table: a replica of the dense part of the item index, from which a process makes pages.

::

    ItemIndex ── changes(), whole() ──► Arrays ── apply() ──► ItemTable     one index, a table in each process

    row        0        1        2      ...          the rows of the index, with its numbers
    ids        7       "b3"      9
    cat        (rows, C) i64     feature ids of the item's fields, as they stand in `cat`
    values     (rows, V) u64     value hashes that window keys with other sides' columns are made of
    plain      (rows, P) f32     numbers of the item's fields; 0 for age_days, which follows from born_ms
    own        (rows, J) i32     slots of the window keys of the item alone
    filters    (rows, values) u64 by attribute: value hashes of attributes that pages are filtered by
    slots      keys (slots,) u64, counts (slots, S, A)   as of the index's event time; slot 0 is "missing": zeros.
                                         One span more where the schema has ages since the first exposure

Messages carry absolute values of whole rows and whole slots. So a repeated message, or an older one about other rows,
does no harm. A row never comes before the counts of its slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.events import Id
from millrace.windows.features import FeatureBuilder, finite32
from millrace.windows.tiles import TileStore
from scorer.catalog import pagekernels
from scorer.catalog.itemimage import REMOVED_MS, wider
from scorer.catalog.pagekernels import Keyed

Arrays = dict[str, NDArray[Any]]
"""Arrays by flat name, for transport between processes."""
ItemRows = NDArray[np.intp]

_FIRST_ROWS = 1024
_ids = msgspec.msgpack.Decoder(list[int | str])


class TableForm:
    """Which arrays a schema's items need in an item table. The index writes them, the table reads them."""

    def __init__(self, builder: FeatureBuilder) -> None:
        schema, layout = builder.schema, builder.layout
        self.builder = builder
        item_fields = {f.name for f in schema.fields if f.of == "item"}
        self.cat_columns = np.array([c for c, name in enumerate(layout.cat_names) if name in item_fields], np.intp)
        self.plain_columns = np.array(layout.item_numbers, np.intp)
        self.plain_names = tuple(layout.plain_fields[i].name for i in self.plain_columns)
        self.names = tuple(n for n in builder.needs("item") if not builder.is_numeric(n))
        # Window keys of item columns alone never change for an item, so each has a slot.
        known = set(self.names) - {f.name for f in schema.fields if f.bias}
        self.own_keys = [k for k, key in enumerate(schema.windows.keys) if set(key.columns) <= known]
        hot = [j for j, k in enumerate(self.own_keys) if schema.windows.keys[k].columns == (builder.item_column,)]
        self.hot_key = hot[0] if hot else None
        """Which of the own keys is the item's alone: its counts tell how hot it is, and how often it was seen."""
        late = {f.name for f in schema.fields if f.bias} | {"position"}
        others = [key for k, key in enumerate(schema.windows.keys) if k not in set(self.own_keys)]
        self.value_names = tuple(n for n in self.names if any(n in key.columns for key in others))
        # Keys of an item and the context, such as category and hour, belong to no item. Each one with counts has a
        # slot, found by the key.
        self.loose = any(schema.key_side(key) == "item" and not late & set(key.columns) for key in others)

    def rows(self, columns: Mapping[str, U64], plain: Mapping[str, NDArray[np.float32]], n: int) -> Arrays:
        """The arrays ``cat``, ``values`` and ``plain`` of n items from their hashed columns and numbers."""
        values = np.zeros((n, len(self.value_names)), np.uint64)
        for v, name in enumerate(self.value_names):
            column = columns[name]
            values[:, v] = column if column.ndim == 1 else column[:, 0]
        numbers = np.zeros((n, len(self.plain_names)), np.float32)
        for p, name in enumerate(self.plain_names):
            if name in plain:
                numbers[:, p] = finite32(plain[name])
        cat = np.ascontiguousarray(self.builder.cat(columns, n)[:, self.cat_columns])
        return {"cat": cat, "values": values, "plain": numbers}


def pack_ids(ids: Sequence[Id]) -> NDArray[np.uint8]:
    return np.frombuffer(msgspec.msgpack.encode(ids), np.uint8)


class ItemTable:
    """See the module's text. One thread reads and applies; nothing here blocks."""

    def __init__(self, builder: FeatureBuilder) -> None:
        self.builder, self.form = builder, TableForm(builder)
        self.ids: list[Id | None] = []
        """By row; None where an item's row has not come yet. Such a row is not alive."""
        self._row: dict[str, int] = {}
        empty = TileStore.of(builder.schema.windows)
        form = self.form
        self._rows: Arrays = {
            "cat": np.zeros((0, len(form.cat_columns)), np.int64),
            "values": np.zeros((0, len(form.value_names)), np.uint64),
            "plain": np.zeros((0, len(form.plain_names)), np.float32),
            "own": np.zeros((0, len(form.own_keys)), np.int32),
            "born_ms": np.zeros(0, np.int64),
            "alive": np.zeros(0, np.bool_),
        }
        self._filters: dict[str, U64] = {name: np.zeros((0, 1), np.uint64) for name in builder.schema.filters}
        self.generation = 0
        """Rises with each change of rows, which may invalidate anything derived from them."""
        self._keys = np.zeros(1, np.uint64)
        self._counts = empty.counts(self._keys, 0, builder.exposed is not None)
        self._slots = 1
        self._table = np.zeros(1, np.int32)  # slot of a key, by hash; kept only for keys that belong to no item
        self._reserve(_FIRST_ROWS, _FIRST_ROWS)

    def __len__(self) -> int:
        return len(self.ids)

    # -- writing: between two requests ------------------------------------------------------------------------

    def apply(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Applies the arrays of :meth:`ItemIndex.changes` or :meth:`ItemIndex.whole`; an empty mapping changes
        nothing."""
        if "room" in arrays:
            rows, slots = arrays["room"].tolist()
            self._reserve(rows, slots)
        if "slots" in arrays:
            self._take_slots(arrays["slots"], arrays["keys"], arrays["counts"])
        if "rows" in arrays:
            self._take_rows(arrays["rows"], _ids.decode(arrays["ids"].data), arrays)

    def _take_slots(self, slots: NDArray[np.int32], keys: U64, counts: NDArray[Any]) -> None:
        most = int(slots.max()) + 1
        self._reserve(0, most)
        self._slots = max(self._slots, most)
        fresh = slots[self._keys[slots] == 0]
        self._keys[slots] = keys
        self._counts[slots] = counts
        if self.form.loose:
            if 2 * self._slots > len(self._table):
                self._table = np.zeros(1 << (4 * self._slots).bit_length(), np.int32)
                fresh = np.arange(1, self._slots, dtype=np.int32)
            pagekernels.enter(self._keys, self._table, fresh)

    def _take_rows(self, rows: NDArray[np.int32], ids: Sequence[Id], arrays: Mapping[str, NDArray[Any]]) -> None:
        most = int(rows.max()) + 1
        self._reserve(most, 0)
        if most > len(self.ids):
            self.ids.extend([None] * (most - len(self.ids)))
        for row, item_id, born_ms in zip(rows.tolist(), ids, arrays["born_ms"].tolist(), strict=True):
            self.ids[row] = item_id
            if born_ms == REMOVED_MS:
                self._row.pop(str(item_id), None)
            else:
                self._row[str(item_id)] = row
        for name, array in self._rows.items():
            array[rows] = arrays[name]
        for name in self._filters:
            given = arrays[f"filter/{name}"]
            held = self._filters[name] = wider(self._filters[name], given.shape[1])
            held[rows] = wider(given, held.shape[1])
        self.generation += 1

    def _reserve(self, rows: int, slots: int) -> None:
        """Doubles the capacity when needed. Memory is not touched before its use."""
        if rows > len(self._rows["alive"]):
            self._rows = {name: longer(array, 2 * rows) for name, array in self._rows.items()}
            self._filters = {name: longer(array, 2 * rows) for name, array in self._filters.items()}
        if slots > len(self._keys):
            self._keys, self._counts = longer(self._keys, 2 * slots), longer(self._counts, 2 * slots)

    # -- reading ----------------------------------------------------------------------------------------------

    def rows_of(self, ids: Sequence[Id]) -> ItemRows:
        """Rows of items by id, -1 where the item is unknown or removed. (n,)"""
        known = self._row
        return np.fromiter((known.get(str(i), -1) for i in ids), np.intp, len(ids))

    @property
    def alive(self) -> NDArray[np.bool_]:
        """(rows,)"""
        return self._rows["alive"][: len(self.ids)]

    def filter_values(self, attribute: str) -> U64:
        """Value hashes of a ``filters`` attribute by row, padded with 0, with spare rows at the end. (rows, values)"""
        return self._filters[attribute]

    def counts_of(self, rows: NDArray[Any]) -> NDArray[Any] | None:
        """Counts of the items at ``rows`` (n,) over the whole shop, (n, S, A). None: the schema has none."""
        if self.form.hot_key is None:
            return None
        found: NDArray[Any] = self._counts[self._rows["own"][rows, self.form.hot_key]]
        return found

    @property
    def rows(self) -> pagekernels.ItemColumns:
        return pagekernels.ItemColumns(*(self._rows[name] for name in pagekernels.ItemColumns._fields))

    @property
    def slots(self) -> Keyed:
        return Keyed(self._keys, self._counts, self._table)

    def follow(self, changes: Callable[[], Arrays]) -> None:
        """Applies all changes of an index in the same process, until ``changes`` returns none."""
        while arrays := changes():
            self.apply(arrays)


def longer(old: NDArray[Any], rows: int) -> NDArray[Any]:
    """``old`` extended to so many rows, filled with 0."""
    new = np.zeros((rows, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new
