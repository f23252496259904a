# core
"""The columns of the archive's two tables, made from the schema. Pure.

::

    events      a row a message      type, ids, times, items and slots as they came, place in the topic
    exposures   a row an exposure    time_ms, request_id, position, slot │ user, item │ their attributes │ context │
                                     label, click_ms, collect_ms, cart_ms, purchase_ms │ score, model_version,
                                     arm, source, odds, ranked, over_limit

Attributes have the names of the schema's fields: float64 for a numeric field, text for a categorical one, a list of
texts for one with several slots. An archive column whose name a field has already gets the prefix ``archive_``.

A text hashes like the value that it stands for (:func:`millrace.basics.hashing.value_hash`): ``true`` becomes ``1``,
``7.0`` becomes ``7``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import SettingError
from millrace.basics.hashing import value_text
from millrace.contracts.events import ACTIONS
from millrace.contracts.field_values import parts_of
from millrace.contracts.schema import DERIVED, Field, Schema, Side
from millrace.windows.features import vector_read

TIMES = tuple(f"{action}_ms" for action in ACTIONS[1:])
"""Columns with the time of each action; null: it did not happen."""

_FIRST = {"time_ms": pa.int64(), "request_id": pa.string(), "position": pa.int32(), "slot": pa.int32()}
_LAST = {
    "label": pa.int8(),
    **dict.fromkeys(TIMES, pa.int64()),
    "score": pa.float32(),
    "model_version": pa.int64(),
    "arm": pa.string(),
    "source": pa.string(),
    "odds": pa.float32(),
    "ranked": pa.float32(),
    "over_limit": pa.bool_(),
}

EVENTS_SCHEMA = pa.schema(
    [
        ("type", pa.string()),
        ("event_id", pa.string()),
        ("request_id", pa.string()),
        ("ts_ms", pa.int64()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),  # of an action
        ("position", pa.int32()),
        ("items", pa.list_(pa.string())),  # of an exposure
        ("offset", pa.int32()),
        ("slots", pa.list_(pa.int32())),  # null: shown as answered
        ("sent_ms", pa.int64()),
        ("log_partition", pa.int32()),
        ("log_offset", pa.int64()),
        ("after_row", pa.bool_()),  # true: an action that the stream counts, and whose row was written before it came
    ]
)
"""Of the table of events."""


class SettledRow(NamedTuple):
    """An exposure whose attribution window is over."""

    ts_ms: int
    request: str
    position: int  # as answered
    slot: int  # where it was shown, counted in the list that the page is a part of
    user: str
    item: str
    user_raw: bytes | None  # attributes as :meth:`ArchiveColumns.pack` gives them; None: none were known
    item_raw: bytes | None
    times: tuple[int | None, int | None, int | None, int | None]  # of click, collect, cart, purchase
    score: float | None
    version: int | None
    arm: str | None
    source: str | None
    odds: float | None  # of the item in its slot, given those above; None: not said
    log: bytes = b""  # the page's log, where features are kept
    ranked: float | None = None  # what it was ordered by; None: its score. NaN: it was pinned
    over_limit: bool = False  # of a user beyond the training limit of an hour
    late_click: bool = False  # its click came after the attribution window


class ArchiveColumns:
    """Stateless."""

    def __init__(self, schema: Schema) -> None:
        log = schema.log
        self.user, self.item = (log.user, log.item) if log else ("user_id", "item_id")
        fields = {f.name: f for f in schema.fields}
        ids = {self.user, self.item}

        def of(side: Side) -> list[Field]:
            named = [n for n in schema.columns_of(side) if n not in ids and (n == "age_days" or n not in DERIVED)]
            return [fields.get(name, Field(name, side)) for name in named]

        self._fields: dict[str, list[Field]] = {side: of(side) for side in ("user", "item")}
        self._context = of("context")
        self._age = next((n for n, f in enumerate(self._fields["item"]) if f.name == "age_days"), -1)
        taken = ids | {f.name for side in (*self._fields.values(), self._context) for f in side}
        self.own = {name: _free(name, taken) for name in (*_FIRST, *_LAST)}
        attributes = [*self._fields["user"], *self._fields["item"], *self._context]
        self.schema = pa.schema(
            [(self.own[name], kind) for name, kind in _FIRST.items()]
            + [(self.user, pa.string()), (self.item, pa.string())]
            + [(f.name, _type(f)) for f in attributes]
            + [(self.own[name], kind) for name, kind in _LAST.items()]
        )

    def names(self, side: str) -> list[str]:
        """The attributes of one side that are kept, in the order of :meth:`pack`."""
        return [f.name for f in self._fields[side]]

    def pack(self, side: str, attributes: Mapping[str, Any], born_ms: int = 0) -> bytes:
        """A user's or an item's attributes, packed."""
        return msgspec.msgpack.encode([born_ms, *[attributes.get(f.name) for f in self._fields[side]]])

    def with_changes(self, side: str, raw: bytes, changes: Mapping[str, Any]) -> bytes:
        """What :meth:`pack` gave, with other values of some attributes."""
        born_ms, *values = msgspec.msgpack.decode(raw)
        return self.pack(side, {**dict(zip(self.names(side), values, strict=True)), **changes}, born_ms)

    def number(self, name: str) -> Callable[[bytes | None], float]:
        """Reads a numeric attribute of an item's packed ones; 0 where it is missing. Raises SettingError: there is
        none."""
        numeric = [f.name for f in self._fields["item"] if f.kind == "numeric"]
        if name not in numeric:
            raise SettingError(f"'{name}' is no number of an item", f"choose from {', '.join(numeric) or 'none'}")
        at = self.names("item").index(name)
        field = self._fields["item"][at]
        return lambda raw: _value(field, msgspec.msgpack.decode(raw)[1 + at]) or 0.0 if raw else 0.0

    def repack(self, side: str, names: Sequence[str], raw: bytes | None) -> bytes | None:
        """What :meth:`pack` gave for the attributes ``names``, packed for the present schema."""
        if raw is None or list(names) == self.names(side):
            return raw
        born_ms, *values = msgspec.msgpack.decode(raw)
        return self.pack(side, dict(zip(names, values, strict=True)), born_ms)

    def table(self, rows: Sequence[SettledRow]) -> pa.Table:
        known: dict[tuple[str, bytes], list[Any]] = {}

        def values(side: str, raw: bytes | None, ts_ms: int) -> list[Any]:
            if raw is None:
                return [None] * len(self._fields[side])
            found = known.get((side, raw))
            if found is None:
                found = known[side, raw] = msgspec.msgpack.decode(raw)
                found[1:] = [_value(f, v) for f, v in zip(self._fields[side], found[1:], strict=True)]
            born_ms, *rest = found
            if side == "item" and born_ms and self._age >= 0:
                rest[self._age] = max(0.0, (ts_ms - born_ms) / DAY_MS)
            return rest

        nothing = [None] * len(self._context)
        made: list[list[Any]] = []
        for r in rows:
            about = [r.ts_ms, r.request, r.position, r.slot, r.user, r.item]
            about += [*values("user", r.user_raw, r.ts_ms), *values("item", r.item_raw, r.ts_ms), *nothing]
            clicked = int(r.times[0] is not None and not r.late_click)
            made.append(
                [*about, clicked, *r.times, r.score, r.version, r.arm, r.source, r.odds, r.ranked, r.over_limit]
            )
        columns = zip(*made, strict=True) if made else [()] * len(self.schema)
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)], self.schema)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"archive_{name}"
    return name


def _type(field: Field) -> pa.DataType:
    if field.kind == "vector":
        return pa.list_(pa.float32())
    if field.kind == "numeric":
        return pa.float64()
    return pa.list_(pa.string()) if field.slots > 1 and field.kind != "text" else pa.string()


def _value(field: Field, value: Any) -> Any:
    if value is None:
        return None
    if field.kind == "numeric":
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None
    if field.kind == "vector":
        return vector_read(field, value)
    if field.slots == 1 or field.kind == "text":
        return None if isinstance(value, list) else text(value)
    return [said for said in map(text, parts_of(field, value)) if said is not None]


def text(value: Any) -> str | None:
    """A value as text with the same hash; None where it is missing."""
    return value_text(value) or None
