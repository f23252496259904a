# core
"""Checks of a log's columns: whether they hold what a schema says (times, ids, labels, days, positions, numbers).

A ``check_`` function passes or raises; the others return the column in the type that the reader keeps, or raise. Each
error is one :class:`~millrace.contracts.errors.LogError` that names the file, the column and the first wrong value.
Rows keep their places.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from millrace.contracts.errors import LogError
from millrace.contracts.events import LAST_MS, MAX_OFFSET
from millrace.contracts.schema import LogColumns, Schema

_UNITS = {"ms": 1.0, "s": 1000.0, "us": 0.001}


def check_columns(columns: dict[str, pa.ChunkedArray], schema: Schema, log: LogColumns, path: Path) -> None:
    """Raises LogError where a column cannot hold what the schema says; times, labels, positions and numbers are checked
    as they are read."""
    multi = {f.name for f in schema.fields if f.slots > 1 and f.kind == "categorical"}
    roles = dict.fromkeys(columns, "field") | {f.name: "numeric field" for f in schema.fields if f.kind == "numeric"}
    roles |= dict.fromkeys(log.action_times.values(), "action time") | dict.fromkeys(log.identity, "identity")
    for role in ("position", "request", "day", "label", "item", "user", "time"):
        roles[getattr(log, role)] = role
    for name, column in columns.items():
        check_single(column, roles[name], name, path, lists=roles[name] == "field" and name in multi)
    for role in ("time", "user", "item", "label", "day"):
        name = getattr(log, role)
        if name is not None:
            _check_all_there(columns[name], role, name, path)
    for exact in (log.user, log.item, log.request, *log.identity):
        if exact is not None and exact != log.time:
            _check_exact(columns[exact], exact, path)
    if log.day is not None:
        _check_days(columns[log.day], log.day, path)


def check_single(column: pa.ChunkedArray, role: str, name: str, path: Path, lists: bool = False) -> None:
    """Raises LogError unless each row has one value that Python can hold, or a list of such where ``lists`` allows it.

    Args:
        role: what the column is for, in the error's words.
    """
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
    """No row lacks its value. Empty text and NaN are missing, as in :func:`~millrace.contracts.hashing.value_hash`."""
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
            iso_day(value)
        except ValueError:
            raise LogError(
                f"log '{path}': '{name}' has {str(value)[:60]!r}, which is no day",
                "write days as YYYYMMDD or YYYY-MM-DD, or leave log.day out of the schema",
            ) from None


def time_ms(column: pa.ChunkedArray, name: str, log: LogColumns, path: Path) -> pa.Array:
    """Unix ms, int64; nulls stay. Raises LogError where a value is no time between 1970 and 3000."""
    column = flat(column)
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


def labels(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    """Labels 0 or 1, int8. Raises LogError where a value is neither."""
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


def numbers(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """A numeric field, float64; booleans become 0 and 1. Raises LogError where a value is no number."""
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    try:
        return pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        raise LogError(
            f"log '{path}': numeric field '{name}' is not a number ({reason})", "make the field categorical"
        ) from None


def positions(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    """Slots on the page, int32; null where the log does not say. Raises LogError where a value is no whole number."""
    column = flat(column)
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


def iso_day(day: object) -> str:
    """``YYYY-MM-DD`` of a date, a time, or a text or number like ``20220424``. Raises ValueError for any other."""
    if isinstance(day, datetime):
        day = day.date()
    if isinstance(day, float) and day.is_integer():
        day = int(day)
    return date.fromisoformat(str(day)).isoformat()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
