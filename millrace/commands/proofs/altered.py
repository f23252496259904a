# core
"""A log with another future: everything after a time is altered, and of that time itself what is not known yet.

::

                      time T
    exposures   ------ | = ~~~~~~     later ones: other ids, fields, labels, action times; some are removed.
                         |            Those at T keep their fields, but for some that get others: exposures of one time
                         |            must not see each other. With [[among]], rows of a page do: whole pages get others
    their labels  ----- ~|~~~~~~      those at T and later flipped, and outcomes not known at T; an action at T or later
                                      removed or moved to another later time, and where it gave the label, the
                                      label goes too. An exposure that waits for its label at T may get one
    side tables ------ | = ~~~~~~     rows that hold from after T on: other values (:func:`altered_side`)

Unchanged is all that anybody could know before T: exposures before it with their fields, actions before it, and labels
that became known before it. Exposures at T that keep their fields are unchanged in these alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable
from millrace.logs.sorting import time_columns

_REMOVED = 0.1  # of later exposures
_NEW = 0.3  # of other values
_NEVER = np.iinfo(np.int64).max


class Altered(NamedTuple):
    log: LogTable
    same: NDArray[np.intp]
    """Rows whose fields are as they were, ascending; they have their places in both logs."""


def altered(log: LogTable, schema: Schema, at_ms: int, rng: np.random.Generator) -> Altered:
    assert schema.log is not None
    table, columns = log.table, schema.log
    ts = table[TS].to_numpy()
    cut, end = (int(np.searchsorted(ts, at_ms, side=side)) for side in ("left", "right"))
    kept = np.flatnonzero(rng.random(len(ts) - end) >= _REMOVED) + end
    where = np.concatenate([np.arange(end), kept])
    ts, n = ts[where], len(where)
    later, other = np.arange(n) >= cut, np.arange(n) >= end
    if schema.among:
        assert columns.request is not None
        page = table[columns.request].slice(cut, end - cut).to_pylist()
        pages = list(dict.fromkeys(page))
        chosen = {pages[i] for i in rng.permutation(len(pages))[: len(pages) // 2].tolist()}
        other[cut:end] = [name in chosen for name in page]
    elif end - cut > 1:
        other[cut + rng.permutation(end - cut)[: (end - cut) // 2]] = True
    made: dict[str, Any] = {}
    times_in = [name for _, name in time_columns(columns, table.column_names)]
    fixed = {TS, log.label, columns.time, columns.day, *times_in, *schema.outcome_columns}
    for name in table.column_names:
        column = table[name].take(pa.array(where))
        moved = other
        if schema.among and name == columns.request:  # no row joins an unaltered page of its time
            moved = other.copy()
            moved[cut:end] = False
        made[name] = column if name in fixed else _shuffled(column, moved, rng)
    label = table[log.label].to_numpy()[where].copy()
    label[later] = 1 - label[later]
    for one in schema.outcome_columns:
        # A column is known as soon as one of its outcomes is.
        waits = min(each.within_ms for each in schema.outcome if each.column == one)
        open_ = later | (waits > 0) & (ts + waits >= at_ms)
        value = made[one].combine_chunks()
        made[one] = pc.if_else(pa.array(open_), pc.cast(pc.subtract(pa.scalar(1, pa.int8()), value), pa.int8()), value)
    horizon = max(1, int(ts[-1]) - at_ms + 1)
    wait_ms = round(columns.attribution_minutes * 60_000) if columns.action_times else 0
    for action, name in time_columns(columns, table.column_names):
        times = pc.fill_null(table[name].take(pa.array(where)), _NEVER).to_numpy().copy()
        if action == schema.windows.labelling:
            _relabel(times, label, ts, later, at_ms, wait_ms, rng)
        times = _moved(times, ts, later, at_ms, horizon, rng)
        made[name] = pa.array(times, mask=times == _NEVER)
    made[log.label] = pa.array(label.astype(np.int8))
    return Altered(dataclasses.replace(log, table=pa.table(made)), np.flatnonzero(~other))


def _relabel(
    times: NDArray[np.int64],
    label: NDArray[np.int8],
    ts: NDArray[np.int64],
    later: NDArray[np.bool_],
    at_ms: int,
    wait_ms: int,
    rng: np.random.Generator,
) -> None:
    """Earlier exposures whose label is not known at ``at_ms``: labels go with an action or come with one."""
    open_ = ~later & (ts + wait_ms >= at_ms)
    gone = ~later & (times != _NEVER) & (times >= at_ms) & (rng.random(len(ts)) < 0.5)
    times[gone], label[gone] = _NEVER, 0
    come = open_ & (times == _NEVER) & (label == 0) & ~gone & (rng.random(len(ts)) < 0.5)
    times[come], label[come] = np.maximum(at_ms, ts[come]) + 1, 1
    new = later & (label == 1) & (times == _NEVER)
    times[new] = ts[new] + 1
    times[later & (label == 0)] = _NEVER


def _moved(
    times: NDArray[np.int64],
    ts: NDArray[np.int64],
    later: NDArray[np.bool_],
    at_ms: int,
    horizon: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Actions at ``at_ms`` or later, at other times that are as late."""
    open_ = (times != _NEVER) & ((times >= at_ms) | later)
    first = np.maximum(at_ms, np.where(later, ts, at_ms))
    return np.where(open_, first + rng.integers(0, horizon, len(times)), times)


def _shuffled(column: pa.ChunkedArray, other: NDArray[np.bool_], rng: np.random.Generator) -> pa.ChunkedArray:
    """The column with other values in the rows ``other`` (n,), drawn from all of it. Some texts and some numbers with
    a fraction are new, and some of these numbers are greater or smaller than any."""
    n = len(column)
    if not other.any():
        return column
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    column = pc.cast(column, kind)
    drawn = column.take(pa.array(rng.integers(0, n, n)))
    new = pa.array(rng.random(n) < _NEW)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        drawn = pc.if_else(new, pc.binary_join_element_wise(drawn, pa.scalar("altered", kind), "-"), drawn)
    elif pa.types.is_floating(kind):
        most = pc.max(pc.abs(pc.if_else(pc.is_finite(column), column, 0.0))).as_py() or 1.0
        drawn = pc.if_else(new, pa.array(rng.uniform(-2, 2, n) * most).cast(kind), drawn)
    both = pa.chunked_array([*column.chunks, *drawn.chunks], kind)
    return both.take(pa.array(np.arange(n) + np.where(other, n, 0)))


def altered_side(table: pa.Table, holds_ms: NDArray[np.int64], on: str, at: str, at_ms: int, seed: int) -> pa.Table:
    """A side table whose rows that hold from after ``at_ms`` have other values. ``holds_ms``: (n,) the times of
    validity."""
    rng = np.random.default_rng(seed)
    for n, name in enumerate(table.column_names):
        if name not in (on, at):
            table = table.set_column(n, name, _shuffled(table[name], holds_ms > at_ms, rng))
    return table
