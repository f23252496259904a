# core
"""Slices of a log: the rows that have one value of a column, by which figures are given apart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.errors import SettingError
from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable

MOST_VALUES = 8
"""A column's most frequent values that have slices. The rows of all others are one slice more."""
QUARTERS = 4
"""A column of numbers with more values than :data:`MOST_VALUES` is cut into this many parts of about equal size."""

MISSING, OTHERS = "(missing)", "(others)"
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, slots=True)
class Slice:
    """A column of n rows as codes: row i has the value ``values[code[i]]``."""

    code: NDArray[np.int32]  # (n,)
    values: tuple[str, ...]


def local_hours(ts_ms: NDArray[np.int64], schema: Schema) -> NDArray[np.int64]:
    """The local hour of the day of each time, 0 to 23. (n,)"""
    hours: NDArray[np.int64] = (ts_ms + schema.utc_offset_ms) // HOUR_MS % 24
    return hours


def slice_of(log: LogTable, schema: Schema, name: str) -> Slice:
    """Slices of a log by a column's most frequent values, or by quarters of a number. ``hour`` and ``weekday`` are the
    exposure's own, as in the schema's fields.

    Raises:
        SettingError: neither the log nor its side tables have such a column, or the schema does not read it.
    """
    table = log.table
    if name not in table.column_names:
        ts_ms: NDArray[np.int64] = table[TS].to_numpy()
        if name == "hour":
            return Slice(local_hours(ts_ms, schema).astype(np.int32), tuple(f"{h:02d} h" for h in range(24)))
        if name == "weekday":
            day = (ts_ms + schema.utc_offset_ms) // DAY_MS
            return Slice(((day + 3) % 7).astype(np.int32), _WEEKDAYS)  # 1970 began on a Thursday
        known = sorted({*(c for c in table.column_names if c != TS), "hour", "weekday"})
        raise SettingError(f"'{name}' names no column that the schema reads", f"choose of {', '.join(known)}")
    column = table[name]
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        values = pc.unique(column.drop_null())
        if len(values) > MOST_VALUES:
            return _quarters(column.cast(pa.float64()).fill_null(np.nan).to_numpy())
    return _frequent(column)


def _quarters(x: NDArray[np.float64]) -> Slice:
    known = np.isfinite(x)
    edges = np.unique(np.quantile(x[known], np.arange(1, QUARTERS) / QUARTERS))
    code = np.searchsorted(edges, x, side="right").astype(np.int32)
    bounds = [f"{e:g}" for e in edges]
    names = [f"below {bounds[0]}"]
    names += [f"{low} to {high}" for low, high in pairwise(bounds)]
    names += [f"{bounds[-1]} and more"]
    code[~known] = len(names)
    return Slice(code, (*names, MISSING))


def _frequent(column: Any) -> Slice:
    """By a column's most frequent values; equally frequent ones in the order of their text."""
    coded = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    if coded.type.num_fields:  # lists: one value each, as they are written
        coded = pa.chunked_array([pa.array([None if v is None else str(v) for v in coded.to_pylist()], pa.string())])
    coded = coded.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.unify_dictionaries().combine_chunks()
    index = coded.indices.fill_null(len(coded.dictionary)).to_numpy().astype(np.intp)  # (n,)
    names = [str(v) for v in coded.dictionary.to_pylist()] + [MISSING]
    count = np.bincount(index, minlength=len(names))
    order = sorted(np.flatnonzero(count).tolist(), key=lambda i: (-count[i], names[i]))
    place = np.full(len(names), min(len(order), MOST_VALUES), np.int32)
    place[order[:MOST_VALUES]] = np.arange(len(order[:MOST_VALUES]), dtype=np.int32)
    shown = tuple(names[i] for i in order[:MOST_VALUES])
    return Slice(place[index], (*shown, OTHERS) if len(order) > MOST_VALUES else shown)
