# core
"""Reading an exposure log: anyone's table with one row an exposure, as a schema's ``[log]`` section describes it.

Replay, experiments and the simulator's playback read logs here. The result is a clean table, or one error that names
the value. Checks of columns are in :mod:`millrace.logs.columns`, forms of files in :mod:`millrace.logs.files`.

- Parquet (a file or a folder of files), CSV, TSV or JSON lines, by the name's ending; text files may be compressed.
- Side tables (``[[join]]``) stand beside the log and are joined from the left; where both have a column, the log's
  wins.
- Only the columns that the schema names are kept. Outcomes of the exposure (dwell time, likes) are inputs only if a
  schema names them, and the label or an action's time may never be a field.
- Rows are sorted by time, ties in file order. Of the copies of one exposure (``log.identity``) the earliest is kept,
  with the greatest label and the earliest time of each action of all copies: where copies disagree, one of them saw it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.contracts.errors import LogError, SchemaError
from millrace.contracts.schema import DERIVED, Join, LogColumns, Schema
from millrace.logs.columns import check_columns, check_single, flat, iso_day, labels, numbers, positions, time_ms
from millrace.logs.files import column_names, read_columns

TS = "ts_ms"


@dataclass(frozen=True, slots=True)
class LogTable:
    """A log, sorted by time, without duplicates."""

    table: pa.Table
    """The schema's columns under their own names, the label as int8, action times as ms (null: did not happen), and
    ``ts_ms`` int64, the time of the exposure."""
    user: str
    item: str
    label: str
    """Names of the columns with the ids and the label."""
    rows_read: int
    duplicates: int
    notes: tuple[str, ...] = ()
    """What the reader decided and a person may want to know, one line each."""


def read_log(path: Path | str, schema: Schema) -> LogTable:
    """Reads and cleans the log at ``path``; the module's docstring says how.

    Raises:
        LogError: no such file, unreadable, empty, a wanted column that stands twice or holds lists, a missing time,
            user, item, label or day, a label that is not 0 or 1, a value that is no time, day, position or number where
            there must be one, ids that mix numbers and text or that a float cannot tell apart.
        SchemaError: the schema has no [log] section, feeds the label as a field, or names a column that neither the log
            nor a side table has.
    """
    path = Path(path)
    log = schema.log
    if log is None:
        raise SchemaError(f"schema '{schema.name}' has no [log] section", "say there which columns mean what")
    required, optional = _columns(schema, log)
    wanted = {*required, *optional}
    table = read_columns(path, wanted | {j.on for j in schema.join}, {j.file for j in schema.join})
    table, notes = _join(path, table, schema.join, wanted)
    for name in required:
        if name not in table.column_names:
            raise _missing(name, schema, path)
    if not table.num_rows:
        raise LogError(f"log '{path}' has no rows", "give a log with at least one exposure")

    rows_read = table.num_rows
    columns = {name: table[name] for name in table.column_names if name in wanted}
    check_columns(columns, schema, log, path)
    columns[TS] = time_ms(columns[log.time], log.time, log, path)
    columns[log.label] = labels(columns[log.label], log.label, path)
    for name in dict.fromkeys(log.action_times.values()):
        columns[name] = time_ms(columns[name], name, log, path)
    if log.position is not None:
        columns[log.position] = positions(columns[log.position], log.position, path)
    for field in schema.fields:
        if field.kind == "numeric" and field.name in columns:
            columns[field.name] = numbers(columns[field.name], field.name, path)

    order = np.argsort(columns[TS].to_numpy(), kind="stable")
    identity = log.identity or (log.time, log.user, log.item)
    copies = [columns[TS if name == log.time else name] for name in identity]
    exposure, first = _groups([flat(c).take(pa.array(order)) for c in copies])
    if log.time not in {TS, log.day, log.request, *log.action_times.values(), *(f.name for f in schema.fields)}:
        del columns[log.time]
    clean = pa.table(columns).take(pa.array(order)).combine_chunks()
    duplicates = clean.num_rows - len(first)
    if duplicates:
        clean = _merge(clean, log, exposure, first)
    return LogTable(clean, log.user, log.item, log.label, rows_read, duplicates, notes)


def local_days(log: LogTable, schema: Schema) -> list[str]:
    """The local day of each row as ``YYYY-MM-DD``: the log's day column if it has one, else from time and offset."""
    if schema.log is not None and schema.log.day is not None:
        names = {v: iso_day(v) for v in log.table[schema.log.day].unique().to_pylist()}
        return [names[v] for v in log.table[schema.log.day].to_pylist()]
    local = (log.table[TS].to_numpy() + schema.utc_offset_ms).astype("datetime64[ms]").astype("datetime64[D]")
    return [str(day) for day in local]


def _columns(schema: Schema, log: LogColumns) -> tuple[list[str], list[str]]:
    """(columns that must be there, columns that are used when there), in the schema's order."""
    roles = {"time": log.time, "user": log.user, "item": log.item, "label": log.label}
    for role, name in roles.items():
        for other in [r for r, n in roles.items() if n == name and r != role]:
            raise SchemaError(
                f"schema '{schema.name}' names '{name}' for log.{role} and log.{other}", "name a column for each"
            )
    outcomes = {log.label, *log.action_times.values()}
    fields = [f.name for f in schema.fields] + [c for k in schema.windows.keys for c in k.columns]
    for name in fields:
        if name in outcomes:
            raise SchemaError(
                f"schema '{schema.name}' feeds '{name}', the outcome to be predicted", "take it out of fields and keys"
            )
    named = [log.time, log.user, log.item, log.label, log.day, log.request, log.position, *log.identity]
    named += list(log.action_times.values())
    required = [n for n in named if n is not None] + [n for n in fields if n not in DERIVED]
    return list(dict.fromkeys(required)), ["age_days"] if "age_days" in fields else []


def _join(path: Path, table: pa.Table, joins: Iterable[Join], wanted: set[str]) -> tuple[pa.Table, tuple[str, ...]]:
    """The log with the wanted columns of the side tables that it lacks; rows without a match get nulls."""
    notes: list[str] = []
    folder = path if path.is_dir() and not path.name.endswith(".parquet") else path.parent
    for join in joins:
        file = next((f for f in (folder / join.file, path.parent / join.file) if f.exists()), None)
        if file is None:
            raise LogError(f"side table '{join.file}' is not beside the log '{path}'", "put it there, or drop the join")
        side = read_columns(file, wanted | {join.on})
        for where, columns in ((file, side), (path, table)):
            if join.on not in columns.column_names:
                raise SchemaError(f"'{where}' has no column '{join.on}' to join on", "correct the schema's [[join]]")
            check_single(columns[join.on], "join column", join.on, where)
        left, right = table[join.on], side[join.on].combine_chunks()
        if left.type != right.type:
            left, right = _text(left), _text(right)
        rows = pc.index_in(left, value_set=right)
        doubled = len(right) - pc.count_distinct(right, mode="all").as_py()
        if doubled:
            notes.append(f"{join.file}: {doubled} rows repeat a '{join.on}', the first of each is used")
        for name in side.column_names:
            if name == join.on:
                continue
            if name in table.column_names:
                notes.append(f"'{name}' is taken from the log, not from {join.file}")
            else:
                table = table.append_column(name, side[name].take(rows))
        unmatched = rows.null_count
        if unmatched:
            notes.append(f"{join.file}: {unmatched} of {table.num_rows} rows of the log have no match")
    return table, tuple(notes)


def _text(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):  # a whole number stays one: 7.0 is 7, as in value_hash
        whole = pc.cast(column, pa.int64(), safe=False)
        if pc.all(pc.equal(pc.cast(whole, column.type), column)).as_py() is not False:
            column = whole
    return pc.cast(column, pa.string())


def _missing(name: str, schema: Schema, path: Path) -> SchemaError:
    """Names the column and the ones that look like it."""
    log_only = set(schema.log.action_times.values()) if schema.log else set()
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))[:1]
    files += [folder / j.file for j in schema.join]
    there: set[str] = set()
    for file in files:
        there |= set(column_names(file)) if file.exists() else set()
    near = difflib.get_close_matches(name, sorted(there), n=3, cutoff=0.5)
    lower = {n.lower(): n for n in there}
    if name.lower() in lower and lower[name.lower()] not in near:
        near.insert(0, lower[name.lower()])
    where = "the log" if name in log_only or not schema.join else "the log and its side tables"
    like = f"near matches: {', '.join(near)}" if near else f"there are: {', '.join(sorted(there)[:20]) or 'none'}"
    return SchemaError(f"{where} ('{path}') lack the column '{name}' of schema '{schema.name}'", like)


def _groups(columns: list[pa.Array]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(group of each row, first row of each group, ascending); rows equal in all columns are one group."""
    group: NDArray[np.intp] = np.zeros(len(columns[0]), np.intp)
    for column in columns:
        codes = pc.fill_null(column.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        _, group = np.unique(group * (codes.max(initial=0) + 2) + codes + 1, return_inverse=True)
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.intp)
    order = np.argsort(first)
    rank[order] = np.arange(len(first))
    return rank[group], first[order]


def _merge(table: pa.Table, log: LogColumns, group: NDArray[np.intp], first: NDArray[np.intp]) -> pa.Table:
    """One row a group: the first, with the greatest label and the earliest time of each action."""
    label = np.zeros(len(first), np.int8)
    np.maximum.at(label, group, table[log.label].to_numpy())
    merged = {log.label: pa.array(label)}
    never = np.iinfo(np.int64).max
    for name in dict.fromkeys(log.action_times.values()):
        earliest = np.full(len(first), never, np.int64)
        np.minimum.at(earliest, group, pc.fill_null(table[name], never).to_numpy())
        merged[name] = pa.array(earliest, mask=earliest == never)
    kept = table.take(pa.array(first))
    for name, values in merged.items():
        kept = kept.set_column(kept.column_names.index(name), name, values)
    return kept
