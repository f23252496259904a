# core
"""Copies of one exposure: of rows that are equal in the columns of ``log.identity`` the earliest stays.

It gets the greatest label and the earliest time of each action of all copies: any copy may have seen the action.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.contracts.logforms import LogColumns
from millrace.logs.values import flat

TS = "ts_ms"


def of_outcomes(name: str) -> str:
    """The column by which outcomes are told, beside that with an action's times, where the log has later events."""
    return f"{name} of outcomes"


def time_columns(log: LogColumns, there: Collection[str]) -> list[tuple[str, str]]:
    """(action, column) of all columns with times of actions that are there."""
    return [(action, n) for action, name in log.action_times.items() for n in (name, of_outcomes(name)) if n in there]


_ODD = np.int64(-7046029254386353131)  # multiplying by an odd number maps 64 bits onto themselves


def sorted_once(
    table: pa.Table, log: LogColumns, copy_of: list[pa.Array], outcomes: Sequence[str] = ()
) -> tuple[pa.Table, NDArray[np.intp]]:
    """(the rows by time, ties in their order, one for each exposure; (m,) the row of ``table`` of each). ``table`` has
    ``ts_ms``. ``copy_of``: the columns of the identity, (n,) each; empty: no row is a copy. ``outcomes``: columns."""
    order = np.argsort(table[TS].to_numpy(), kind="stable")
    if not copy_of:
        return table.take(pa.array(order)).combine_chunks(), order
    group, first = groups([c.take(pa.array(order)) for c in copy_of])
    clean = table.take(pa.array(order)).combine_chunks()
    if len(first) < len(order):
        clean = _merge(clean, log, group, first, outcomes)
    return clean, order[first]


def identity(columns: dict[str, pa.ChunkedArray], log: LogColumns) -> list[pa.Array]:
    """The columns that distinguish exposures, the time as ``ts_ms``. Empty: each row is an exposure."""
    return [flat(columns[TS if name == log.time else name]) for name in log.identity]


def groups(columns: list[pa.Array]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(group of each row, first row of each group, ascending); rows equal in all columns are one group. Codes are
    numbered by their first appearance, column after column: a hash table each, and no sorting."""
    group, groups = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        coded = _mixed(column).dictionary_encode()
        code = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        both = _mixed(pa.array(group * (len(coded.dictionary) + 1) + code + 1)).dictionary_encode()
        group, groups = both.indices.to_numpy().astype(np.intp), len(both.dictionary)
    first = np.empty(groups if len(group) else 0, np.intp)
    first[group[::-1]] = np.arange(len(group))[::-1]  # of the rows of a group, the first is written last
    return group, first


def _mixed(column: pa.Array) -> pa.Array:
    """Other numbers in place of whole numbers, equal where they were: Arrow's hash table is slow on times in order."""
    if not pa.types.is_int64(column.type) or column.null_count:
        return column
    return pa.array(column.to_numpy() * _ODD)


def _merge(
    table: pa.Table, log: LogColumns, group: NDArray[np.intp], first: NDArray[np.intp], outcomes: Sequence[str]
) -> pa.Table:
    """One row a group: the first, with the greatest label and outcomes, and the earliest time of each action."""
    merged = {}
    for name in (log.label, *outcomes):
        greatest = np.full(len(first), -1, np.int8)
        np.maximum.at(greatest, group, pc.fill_null(table[name], -1).to_numpy())
        merged[name] = pa.array(greatest, mask=greatest < 0)
    never = np.iinfo(np.int64).max
    for _, name in time_columns(log, table.column_names):
        earliest = np.full(len(first), never, np.int64)
        np.minimum.at(earliest, group, pc.fill_null(table[name], never).to_numpy())
        merged[name] = pa.array(earliest, mask=earliest == never)
    kept = table.take(pa.array(first))
    for name, values in merged.items():
        kept = kept.set_column(kept.column_names.index(name), name, values)
    return kept
