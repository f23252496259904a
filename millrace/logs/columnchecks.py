# core
"""Checks of a log's columns against its schema (times, ids, labels, days, positions, numbers).

Each check marks bad rows in :class:`~millrace.logs.faults.Faults`. Some return the column in its final type, with
nulls in bad rows. A column that cannot be checked at all, such as one of lists, is a fault of the whole column.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.errors import LogError
from millrace.contracts.events import LAST_MS, MAX_OFFSET
from millrace.contracts.field_values import numbers_of
from millrace.contracts.logforms import LogColumns
from millrace.contracts.schema import Field, Schema
from millrace.logs.faults import Faults
from millrace.logs.log_times import FIRST_MS, Clock, meant, to_ms
from millrace.logs.values import as_numbers, flat, is_text, mask, missing, said

Columns = dict[str, pa.ChunkedArray]


def check_columns(columns: Columns, schema: Schema, log: LogColumns, path: str, faults: Faults) -> set[str]:
    """Marks rows that lack what each row needs, and returns the columns that cannot be read at all. Times, labels,
    positions and numbers are checked as they are read."""
    lists = {f.name for f in schema.fields if f.kind == "vector" or (f.slots > 1 and f.kind == "categorical")}
    roles = dict.fromkeys(columns, "field") | {
        f.name: f"{f.kind} field" for f in schema.fields if f.kind != "categorical"
    }
    roles |= dict.fromkeys(log.action_times.values(), "action time") | dict.fromkeys(log.identity, "identity")
    roles |= {} if log.born is None else {log.born: "birth time"}
    roles |= dict.fromkeys(schema.outcome_columns, "outcome")
    for role in ("position", "request", "day", "label", "item", "user", "time"):
        roles[getattr(log, role)] = role
    broken: set[str] = set()
    for name, column in columns.items():
        try:
            check_single(column, roles[name], name, path, lists="field" in roles[name] and name in lists)
        except LogError as error:
            faults.fault(name, error)
            broken.add(name)
    for role in ("time", "user", "item", "label", "day"):
        name = getattr(log, role)
        if name is not None and name not in broken:
            _check_all_there(columns[name], role, name, path, faults)
    for exact in dict.fromkeys((log.user, log.item, log.request, *log.identity)):
        if exact is not None and exact != log.time and exact not in broken:
            _check_exact(columns[exact], exact, path, faults)
    if log.day is not None and log.day not in broken:
        _check_days(columns[log.day], log.day, path, faults)
    return broken


def check_single(column: pa.ChunkedArray, role: str, name: str, path: object, lists: bool = False) -> None:
    """Raises LogError unless each row has one value that Python can hold, or a list of such where ``lists`` allows it.
    ``role`` names the column's use in the error."""
    values = pc.list_flatten(column) if lists and pa.types.is_list(column.type) else column
    kind = values.type
    if pa.types.is_nested(kind):
        value = column.drop_null().slice(0, 1).to_pylist()
        remedy = "give the field slots, or name" if role == "field" and pa.types.is_list(kind) and not lists else "name"
        if role in ("item", "label") and pa.types.is_list(kind):
            remedy = "name it as log.items, log.labels or log.clicked if a row is a page, or name"
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


def _check_all_there(column: pa.ChunkedArray, role: str, name: str, path: str, faults: Faults) -> None:
    lost = missing(column)
    if lost.any():
        problem = f"log '{path}': row {{row}} has no {role} ('{name}')"
        faults.mark("missing", name, lost, "", problem, "drop such rows, or correct them")


def _check_exact(column: pa.ChunkedArray, name: str, path: str, faults: Faults) -> None:
    """Ids beyond 64 bits become floats in CSV and JSON, where several may be equal."""
    if pa.types.is_floating(column.type):
        great = mask(pc.greater_equal(pc.abs(column), float(2**53)))
        if great.any():
            value = f"{_first(column, great):.0f}"
            faults.mark(
                "inexact", name, great, value,
                f"log '{path}': '{name}' has {value}, beyond what a float tells from its neighbours",
                "write such ids as text; of a CSV, name the column in log.texts",
            )  # fmt: skip


def _check_days(column: pa.ChunkedArray, name: str, path: str, faults: Faults) -> None:
    wrong = []
    for value in column.unique().to_pylist():
        try:
            iso_day(value)
        except ValueError:
            wrong.append(value)
    if wrong:
        rows = mask(pc.is_in(column, value_set=pa.array(wrong, column.type))) & ~missing(column)
        if rows.any():
            value = str(_first(column, rows))[:60]
            faults.mark(
                "day", name, rows, value, f"log '{path}': '{name}' has {value!r}, which is no day",
                "write days as YYYYMMDD or YYYY-MM-DD, or leave log.day out of the schema",
            )  # fmt: skip


def time_ms(column: pa.ChunkedArray, name: str, clock: Clock, path: str, faults: Faults) -> pa.Array:
    """Unix ms, int64; null for no time. Marks rows whose value is not a time between 1990 and 3000."""
    column = flat(column)
    out, wrong = to_ms(column, clock)
    form = f"in '{clock.strptime}'" if clock.strptime else f"in {clock.unit}"
    if wrong.any():
        value = _first(column, wrong)
        finite = not isinstance(value, float) or bool(np.isfinite(value))
        faults.mark(
            "no time", name, wrong, str(value),
            f"log '{path}': column '{name}' is no time ({str(value)[:60]!r}"
            + (f", read {form})" if clock.strptime else ")") if finite
            else f"log '{path}': '{name}' has a time that is not finite",
            "use Unix time, ISO 8601, or name log.time_format" if finite else "drop such rows, or correct them",
        )  # fmt: skip
    outside = mask(pc.or_(pc.less(out, 1 if not clock.start_ms else FIRST_MS), pc.greater(out, LAST_MS)))
    early = mask(pc.less(out, FIRST_MS)) & ~outside
    if outside.any():  # early ones of the same notation have the same cause
        value = _first(column, outside)
        faults.mark(
            "outside", name, outside | early, str(value),
            f"log '{path}': '{name}' has {value}, which read {form} is no time between 1970 and 3000",
            meant(value, clock.unit) if clock.strptime or _positive(value) else
            "correct log.time_unit (s, ms, us or ns) in the schema",
        )  # fmt: skip
    elif early.any():
        value, at = _first(column, early), np.datetime64(int(out.filter(pa.array(early))[0].as_py()), "ms")
        faults.mark(
            "before 1990", name, early, str(value),
            f"log '{path}': '{name}' has {value}, which read {form} is {str(at)[:10]}, before 1990",
            meant(value, clock.unit),
        )  # fmt: skip
    return pc.if_else(pa.array(wrong | outside | early), None, out) if (wrong | outside | early).any() else out


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def labels(column: pa.ChunkedArray, name: str, path: str, faults: Faults, at_least: float | None = None) -> pa.Array:
    """Labels 0 or 1, int8. Marks rows with any other value, and makes it 0. Words for yes and no are 1 and 0. With
    ``at_least``, values from this on are 1, all others 0."""
    column, there = flat(column), ~missing(column)
    number, known = as_numbers(column)
    if is_text(column.type) and at_least is None:
        number = pc.coalesce(number, said(column))
        known = mask(pc.is_valid(number))
    if at_least is not None:
        wrong = there & ~known
        out = pc.cast(pc.greater_equal(number, at_least), pa.int8())
    else:
        wrong = there & ~(known & mask(pc.is_in(number, value_set=pa.array([0.0, 1.0]))))
        out = pc.cast(pc.if_else(pa.array(wrong | ~there), None, number), pa.int8())
    if wrong.any():
        value = _first(column, wrong)
        shown = f"{value:g}" if isinstance(value, float) else str(value)[:60]
        faults.mark(
            "label", name, wrong, shown, f"log '{path}': label '{name}' has the value {shown}, not 0 or 1",
            "name a 0/1 column, or say log.label_at_least for ratings",
        )  # fmt: skip
    return pc.fill_null(out, 0)


def numbers(column: pa.ChunkedArray, name: str, path: str, faults: Faults) -> pa.ChunkedArray:
    """A numeric field, float64; booleans become 0 and 1. Marks rows whose value is not a number."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return pc.cast(column, pa.float64(), safe=False)
    number, known = as_numbers(flat(column))
    wrong = ~missing(column) & ~known
    if wrong.any():
        value = str(_first(column, wrong))[:60]
        faults.mark(
            "number", name, wrong, value, f"log '{path}': numeric field '{name}' is not a number ({value!r})",
            "make the field categorical, or correct the values",
        )  # fmt: skip
    return pa.chunked_array([number])


def positions(column: pa.ChunkedArray, name: str, path: str, faults: Faults) -> pa.Array:
    """Slots on the page, int32; null where the log has none. Marks rows whose value is not a whole number."""
    column = flat(column)
    if is_text(column.type):
        column = pc.if_else(pc.equal(column, ""), None, column)
        fit = pc.match_substring_regex(column, r"^[0-9]{1,9}$")
        number = pc.cast(pc.if_else(fit, column, None), pa.float64())
        wrong = pc.invert(fit)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type):
        number = pc.cast(column, pa.float64(), safe=False)  # numbers that a float rounds are too great anyway
        number = pc.if_else(pc.is_nan(number), None, number)
        wrong = pc.not_equal(number, pc.floor(number))
    else:
        number, wrong = pa.nulls(len(column), pa.float64()), pc.is_valid(column)
    bad = mask(pc.or_kleene(wrong, pc.or_(pc.less(number, 0), pc.greater(number, MAX_OFFSET))))
    if bad.any():
        value = str(_first(column, bad))[:60]
        faults.mark(
            "position", name, bad, value,
            f"log '{path}': position '{name}' has {value!r}, no whole number from 0 to {MAX_OFFSET}",
            "name a column of slots on the page, or leave log.position out of the schema",
        )  # fmt: skip
        number = pc.if_else(pa.array(bad), None, number)
    return pc.cast(number, pa.int32())


def vectors(column: pa.ChunkedArray, field: Field, path: str, faults: Faults) -> pa.Array:
    """The numbers that a model sees of a vector: lists of float32. Marks rows whose value is none."""
    made = np.zeros((len(column), len(field.numbers)), np.float32)
    bad, why = np.zeros(len(column), np.bool_), ""
    for row, value in enumerate(column.to_numpy()):
        try:
            made[row] = numbers_of(field, value)
        except ValueError as error:
            bad[row], why = True, why or str(error)
    if bad.any():
        value = str(_first(column, bad))[:60]
        problem = f"log '{path}': row {{row}} has the vector '{field.name}' {value}, which {why}"
        faults.mark("vector", field.name, bad, value, problem, "drop such rows, or correct them")
    return pa.FixedSizeListArray.from_arrays(made.ravel(), made.shape[1]).cast(pa.list_(pa.float32()))


def never(column: pa.ChunkedArray, numbers: tuple[float, ...]) -> pa.ChunkedArray:
    """A column of action times without the values that mean "did not happen"."""
    if not numbers:
        return column
    number, _ = as_numbers(flat(column))
    none = pc.is_in(number, value_set=pa.array(numbers, pa.float64()))
    return pa.chunked_array([pc.if_else(pc.fill_null(none, False), None, flat(column))])


def iso_day(day: object) -> str:
    """``YYYY-MM-DD`` of a date, a time, or a text or number like ``20220424``. Raises ValueError for any other."""
    if isinstance(day, datetime):
        day = day.date()
    if isinstance(day, float) and day.is_integer():
        day = int(day)
    return date.fromisoformat(str(day)).isoformat()


def _first(column: pa.Array | pa.ChunkedArray, rows: NDArray[np.bool_]) -> Any:
    one = column[int(np.argmax(rows))]
    try:
        return one.as_py()
    except (OverflowError, ValueError):  # a date or time beyond Python's
        return one.value
