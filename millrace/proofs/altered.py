# core
"""A log with another future: everything from a time on is altered, nothing before it.

::

                      time T
    exposures   ------ | ~~~~~~~~     later ones: other ids, fields, labels, action times; some are removed
    their labels  ------ | ~~~~       an action at T or later: removed or moved to another later time; where it gave the
                                      label, the label goes too. An exposure that waits for its label at T may get one
    side tables ------ | ~~~~~~~~     rows that hold from T on: other values (:func:`altered_side`)

What anybody could know before T is as it was: exposures before it with all their fields, actions before it, and labels
that became known before it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable

_REMOVED = 0.1  # of later exposures
_NEVER = np.iinfo(np.int64).max


def altered(log: LogTable, schema: Schema, at_ms: int, rng: np.random.Generator) -> LogTable:
    """The log with another future from ``at_ms`` on. Rows before it stay in their places."""
    assert schema.log is not None
    table, columns = log.table, schema.log
    ts = table[TS].to_numpy()
    cut = int(np.searchsorted(ts, at_ms, side="left"))
    kept = np.flatnonzero(rng.random(len(ts) - cut) >= _REMOVED) + cut
    where = pa.array(np.concatenate([np.arange(cut), kept]))
    ts, n = ts[where.to_numpy()], len(where)
    later = np.arange(n) >= cut
    made: dict[str, Any] = {}
    fixed = {TS, log.label, columns.time, columns.day, *columns.action_times.values()}
    for name in table.column_names:
        column = table[name].take(where)
        made[name] = column if name in fixed else _shuffled(column, cut, rng)
    label = table[log.label].take(where).to_numpy().copy()
    label[later] = 1 - label[later]
    horizon = max(1, int(ts[-1]) - at_ms + 1)
    wait_ms = round(columns.attribution_minutes * 60_000) if columns.action_times else 0
    for action, name in columns.action_times.items():
        times = pc.fill_null(table[name].take(where), _NEVER).to_numpy().copy()
        if action == schema.windows.labelling:
            _relabel(times, label, ts, later, at_ms, wait_ms, rng)
        times = _moved(times, ts, later, at_ms, horizon, rng)
        made[name] = pa.array(times, mask=times == _NEVER)
    made[log.label] = pa.array(label.astype(np.int8))
    return dataclasses.replace(log, table=pa.table(made))


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


def _shuffled(column: pa.ChunkedArray, cut: int, rng: np.random.Generator) -> pa.ChunkedArray:
    """The column with values from ``cut`` on that are others: drawn from all of it, and for text some that are new."""
    n = len(column)
    if cut >= n:
        return column
    drawn = column.take(pa.array(rng.integers(0, n, n - cut)))
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        drawn = pc.cast(drawn, kind)
        new = pa.array(rng.random(n - cut) < 0.3)
        drawn = pc.if_else(new, pc.binary_join_element_wise(drawn, pa.scalar("altered", kind), "-"), drawn)
        return pa.chunked_array([*pc.cast(column.slice(0, cut), kind).chunks, *_chunks(drawn)], kind)
    return pa.chunked_array([*column.slice(0, cut).chunks, *_chunks(pc.cast(drawn, column.type))], column.type)


def _chunks(column: Any) -> list[pa.Array]:
    return list(column.chunks) if isinstance(column, pa.ChunkedArray) else [column]


def altered_side(table: pa.Table, holds_ms: NDArray[np.int64], on: str, at: str, at_ms: int, seed: int) -> pa.Table:
    """A side table whose rows that hold from ``at_ms`` on have other values.

    Args:
        holds_ms: (n,) the times of validity.
    """
    rng = np.random.default_rng(seed)
    later = holds_ms >= at_ms
    order = np.argsort(later, kind="stable")
    table, cut = table.take(pa.array(order)), int(np.count_nonzero(~later))
    for n, name in enumerate(table.column_names):
        if name not in (on, at):
            table = table.set_column(n, name, _shuffled(table[name], cut, rng))
    return table
