"""Reading an exposure log: anyone's table with one row an exposure, as a schema's ``[log]`` section describes it.

Replay and the simulator's playback read logs here. What comes out is clean, or one error that names the value:

- Parquet (a file or a folder of files), CSV, TSV or JSON lines, by the name's ending; text files may be compressed.
- Side tables (``[[join]]``) stand beside the log and are joined from the left; where both have a column, the log's
  wins.
- Only the columns that the schema names are kept. Outcomes of the exposure (dwell time, likes) are inputs only if a
  schema names them, and the label or an action's time may never be a field.
- Rows are sorted by time, ties in file order. Of the copies of one exposure (``log.identity``) the earliest is kept,
  with the greatest label of them and the earliest time of each action: what the copies disagree on, some copy did see.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.contracts.errors import LogError, SchemaError
from millrace.contracts.events import LAST_MS, MAX_OFFSET
from millrace.contracts.schema import DERIVED, Join, LogColumns, Schema
from millrace.logs.files import column_names, read_columns

TS = "ts_ms"
_UNITS = {"ms": 1.0, "s": 1000.0, "us": 0.001}


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
    """Reads and cleans the log at ``path``; see the module's text.

    Raises:
        LogError: no such file, unreadable, empty, a wanted column that stands twice or holds lists, a missing time,
            user, item, label or day, a label that is not 0 or 1, a time, day, position or number that is none, ids that
            mix numbers and text or that a float cannot tell apart.
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
    _check(columns, schema, log, path)
    columns[TS] = _time(columns[log.time], log.time, log, path)
    columns[log.label] = _label(columns[log.label], log.label, path)
    for name in dict.fromkeys(log.action_times.values()):
        columns[name] = _time(columns[name], name, log, path)
    if log.position is not None:
        columns[log.position] = _position(columns[log.position], log.position, path)
    for field in schema.fields:
        if field.kind == "numeric" and field.name in columns:
            columns[field.name] = _numeric(columns[field.name], field.name, path)

    order = np.argsort(columns[TS].to_numpy(), kind="stable")
    identity = log.identity or (log.time, log.user, log.item)
    copies = [columns[TS if name == log.time else name] for name in identity]
    exposure, first = _groups([_flat(c).take(pa.array(order)) for c in copies])
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
        names = {v: _iso(v) for v in log.table[schema.log.day].unique().to_pylist()}
        return [names[v] for v in log.table[schema.log.day].to_pylist()]
    local = (log.table[TS].to_numpy() + schema.utc_offset_ms).astype("datetime64[ms]").astype("datetime64[D]")
    return [str(day) for day in local]


def _iso(day: object) -> str:
    """``YYYY-MM-DD`` of a date, a time, or a text or number like ``20220424``. Raises ValueError for any other."""
    if isinstance(day, datetime):
        day = day.date()
    if isinstance(day, float) and day.is_integer():
        day = int(day)
    return date.fromisoformat(str(day)).isoformat()


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
            _check_single(columns[join.on], "join column", join.on, where)
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


def _check(columns: dict[str, pa.ChunkedArray], schema: Schema, log: LogColumns, path: Path) -> None:
    """Raises LogError where a column cannot be what the schema takes it for; times and numbers are read later."""
    multi = {f.name for f in schema.fields if f.slots > 1 and f.kind == "categorical"}
    roles = dict.fromkeys(columns, "field") | {f.name: "numeric field" for f in schema.fields if f.kind == "numeric"}
    roles |= dict.fromkeys(log.action_times.values(), "action time") | dict.fromkeys(log.identity, "identity")
    for role in ("position", "request", "day", "label", "item", "user", "time"):
        roles[getattr(log, role)] = role
    for name, column in columns.items():
        _check_single(column, roles[name], name, path, lists=roles[name] == "field" and name in multi)
    for role in ("time", "user", "item", "label", "day"):
        name = getattr(log, role)
        if name is not None:
            _check_all_there(columns[name], role, name, path)
    for exact in (log.user, log.item, log.request, *log.identity):
        if exact is not None and exact != log.time:
            _check_exact(columns[exact], exact, path)
    if log.day is not None:
        _check_days(columns[log.day], log.day, path)


def _check_single(column: pa.ChunkedArray, role: str, name: str, path: Path, lists: bool = False) -> None:
    """Each row has one value, which Python can hold; or, where a field has slots, a list of such."""
    values = pc.list_flatten(column) if lists and pa.types.is_list(column.type) else column
    kind = values.type
    if pa.types.is_nested(kind):
        value = column.drop_null().slice(0, 1).to_pylist()
        remedy = "give the field slots, or name" if role == "field" and pa.types.is_list(kind) and not lists else "name"
        raise LogError(
            f"'{path}': {role} '{name}' holds {str(*value)[:60] or 'nulls'} ({kind}), not one value",
            f"{remedy} a column of numbers or text",
        )
    if pa.types.is_temporal(kind) and "time" not in role:
        try:
            values.unique().to_pylist()
        except (ValueError, OverflowError, KeyError) as error:  # the last: a zone that nobody knows
            raise LogError(
                f"'{path}': {role} '{name}' has {kind} beyond Python's ({error})", "write it as text"
            ) from None


def _check_all_there(column: pa.ChunkedArray, role: str, name: str, path: Path) -> None:
    """No row lacks its value; empty text and NaN are none, as in :func:`~millrace.contracts.hashing.value_hash`."""
    missing = pc.is_null(column, nan_is_null=True)
    if _is_text(column.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(column, ""), False))
    if pc.any(missing).as_py():
        row = pc.index(missing, True).as_py()
        raise LogError(f"log '{path}': row {row + 1} has no {role} ('{name}')", "drop such rows, or correct them")


def _check_exact(column: pa.ChunkedArray, name: str, path: Path) -> None:
    """Ids beyond 64 bits become floats in CSV and JSON, and many of them one."""
    if pa.types.is_floating(column.type):
        great = column.filter(pc.greater_equal(pc.abs(column), float(2**53)))
        if len(great):
            raise LogError(
                f"log '{path}': '{name}' has {great[0].as_py():.0f}, beyond what a float tells from its neighbours",
                "write such ids as text; in CSV with a letter in it",
            )


def _check_days(column: pa.ChunkedArray, name: str, path: Path) -> None:
    for value in column.unique().to_pylist():
        try:
            _iso(value)
        except ValueError:
            raise LogError(
                f"log '{path}': '{name}' has {str(value)[:60]!r}, which is no day",
                "write days as YYYYMMDD or YYYY-MM-DD, or leave log.day out of the schema",
            ) from None


def _position(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    """Slots on the page, int32; null where the log does not tell."""
    column = _flat(column)
    if _is_text(column.type):
        column = pc.if_else(pc.equal(column, ""), None, column)
        fit = pc.match_substring_regex(column, r"^[0-9]{1,9}$")
        number = pc.cast(pc.if_else(fit, column, None), pa.float64())
        wrong = pc.invert(fit)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type):
        number = pc.cast(column, pa.float64(), safe=False)  # what a float rounds is too great anyway
        number = pc.if_else(pc.is_nan(number), None, number)
        wrong = pc.not_equal(number, pc.floor(number))
    else:
        number, wrong = pa.nulls(len(column), pa.float64()), pc.is_valid(column)
    wrong = pc.or_kleene(wrong, pc.or_(pc.less(number, 0), pc.greater(number, MAX_OFFSET)))
    if pc.any(wrong).as_py():
        value = column.filter(wrong)[0].as_py()
        raise LogError(
            f"log '{path}': position '{name}' has {str(value)[:60]!r}, no whole number from 0 to {MAX_OFFSET}",
            "name a column of slots on the page, or leave log.position out of the schema",
        )
    return pc.cast(number, pa.int32())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _time(column: pa.ChunkedArray, name: str, log: LogColumns, path: Path) -> pa.Array:
    """Unix ms, int64; nulls stay."""
    column = _flat(column)
    try:
        if _is_text(column.type):
            zoned = pc.any(pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")).as_py()
            column = pc.cast(column, pa.timestamp("ms", "UTC" if zoned else None))
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            out = pc.cast(pc.cast(column, pa.timestamp("ms"), safe=False), pa.int64())
        elif pa.types.is_null(column.type) or (pa.types.is_integer(column.type) and log.time_unit == "ms"):
            out = pc.cast(column, pa.int64())
        elif pa.types.is_integer(column.type) and log.time_unit == "s":
            out = pc.multiply_checked(pc.cast(column, pa.int64()), 1000)
        elif pa.types.is_integer(column.type):
            out = pc.divide(pc.cast(column, pa.int64()), 1000)
        else:
            number = pc.cast(column, pa.float64())
            number = pc.if_else(pc.is_finite(number), number, None)
            out = pc.cast(pc.floor(pc.multiply(number, _UNITS[log.time_unit])), pa.int64())
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        raise LogError(f"log '{path}': column '{name}' is no time ({reason})", "use Unix time or ISO 8601") from None
    wrong = pc.or_(pc.less(out, 1), pc.greater(out, LAST_MS))
    if pc.any(wrong).as_py():
        value = column.filter(wrong)[0].as_py()
        raise LogError(
            f"log '{path}': '{name}' has {value}, which read in {log.time_unit} is no time between 1970 and 3000",
            "correct log.time_unit (s, ms or us) in the schema",
        )
    if name == log.time and out.null_count > column.null_count:
        raise LogError(f"log '{path}': '{name}' has a time that is not finite", "drop such rows, or correct them")
    return out


def _label(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    """0 or 1, int8."""
    try:
        number = pc.cast(column.combine_chunks(), pa.float64() if not pa.types.is_boolean(column.type) else pa.int8())
        wrong = pc.invert(pc.is_in(number, value_set=pa.array([0, 1], number.type)))
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        raise LogError(f"log '{path}': label '{name}' is not 0 or 1 ({reason})", "name a 0/1 column") from None
    if pc.any(wrong).as_py():
        value = number.filter(wrong)[0].as_py()
        raise LogError(f"log '{path}': label '{name}' has the value {value:g}, not 0 or 1", "name a 0/1 column")
    return pc.cast(number, pa.int8())


def _numeric(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    try:
        return pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        raise LogError(
            f"log '{path}': numeric field '{name}' is not a number ({reason})", "make the field categorical"
        ) from None


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
