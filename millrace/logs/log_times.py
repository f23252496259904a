# core
"""Times of a log in any notation (numbers since a start, ISO 8601, strptime), as Unix ms and a mask of invalid
values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.contracts.events import LAST_MS
from millrace.contracts.logforms import NAMED, LogColumns, TimeUnit, start_ms, strptime_of
from millrace.contracts.schema import Schema
from millrace.logs.values import flat, is_text

FIRST_MS = 631_152_000_000
"""1 January 1990. No log is older: an earlier time means another unit or format."""

_UNITS = {"ms": 1.0, "s": 1000.0, "us": 0.001, "ns": 0.000001}
_PER_MS = {"us": 1000, "ns": 1_000_000}
_NUMBER = r"^[+-]?\d+(\.\d*)?$"


@dataclass(frozen=True, slots=True)
class Clock:
    """The notation of a column of times."""

    unit: TimeUnit = "ms"
    strptime: str = ""  # a strptime format; empty: numbers in ``unit``, or ISO 8601
    start_ms: int = 0  # zero of the numbers
    local_ms: int = 0  # offset of times without a zone

    @classmethod
    def of(cls, log: LogColumns, schema: Schema) -> Clock:
        """The log's own."""
        start = 0 if log.time_start is None else start_ms(log.time_start)
        local = schema.utc_offset_ms if log.local_times else 0
        return cls(log.time_unit, strptime_of(log.time_format), start, local)


def to_ms(column: pa.ChunkedArray | pa.Array, clock: Clock) -> tuple[pa.Array, NDArray[np.bool_]]:
    """(Unix ms int64, null where there is no time; (n,) True where a value is no time). Raises nothing for values."""
    column = flat(column)
    kind = column.type
    if clock.strptime and (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return _formatted(column, clock)
    if is_text(kind):
        digits = pc.fill_null(pc.match_substring_regex(column, _NUMBER), False)
        other = pc.and_(pc.fill_null(pc.not_equal(column, ""), False), pc.invert(digits))
        # One bad value makes text of a CSV's whole column of numbers: what most values are says how it is written.
        if len(column) and (pc.sum(other).as_py() or 0) <= (pc.sum(digits).as_py() or 0):
            number = pc.cast(pc.if_else(digits, column, None), pa.float64())
            whole = pc.all(pc.equal(number, pc.floor(number))).as_py() and (pc.max(number).as_py() or 0) < 2**53
            out, wrong = to_ms(pc.cast(number, pa.int64()) if whole else number, clock)
            return out, wrong | other.to_numpy(False)
        return _iso(column, clock)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        zoned = pa.types.is_timestamp(kind) and kind.tz is not None
        out = pc.cast(pc.cast(column, pa.timestamp("ms", kind.tz if zoned else None), safe=False), pa.int64())
        out = out if zoned or not clock.local_ms else pc.subtract(out, clock.local_ms)
        return out, np.zeros(len(column), bool)
    return _numbers(column, clock)


def _numbers(column: pa.Array, clock: Clock) -> tuple[pa.Array, NDArray[np.bool_]]:
    kind = column.type
    none = np.zeros(len(column), bool)
    if pa.types.is_null(kind):
        return pc.cast(column, pa.int64()), none
    if pa.types.is_integer(kind):
        if pa.types.is_uint64(kind):
            column = pc.min_element_wise(column, pa.scalar(2**63 - 1, kind), skip_nulls=False)
        out = pc.cast(column, pa.int64())
        if clock.unit == "s":
            great = pc.greater(pc.abs(out), 2**53)
            out = pc.if_else(great, LAST_MS + 1, pc.multiply(pc.if_else(great, 0, out), 1000))
        elif clock.unit in _PER_MS:
            out = pc.divide(out, _PER_MS[clock.unit])
    elif pa.types.is_floating(kind):
        number = pc.cast(column, pa.float64())
        number = pc.if_else(pc.is_finite(number), number, None)
        number = pc.floor(pc.multiply(number, _UNITS[clock.unit]))
        number = pc.if_else(pc.greater(pc.abs(number), 2.0**62), 2.0**62, number)
        out = pc.cast(number, pa.int64())
        none = (pc.is_null(out).to_numpy(False)) & ~pc.is_null(column, nan_is_null=True).to_numpy(False)
    else:
        return pa.nulls(len(column), pa.int64()), pc.is_valid(column).to_numpy(False)
    if clock.start_ms or clock.local_ms:
        shift = clock.start_ms - (clock.local_ms if clock.start_ms else 0)
        out = pc.add(pc.min_element_wise(out, LAST_MS + 1, skip_nulls=False), shift)
    return out, none


def _iso(column: pa.Array, clock: Clock) -> tuple[pa.Array, NDArray[np.bool_]]:
    column = pc.if_else(pc.equal(column, ""), None, column)
    zone = pc.fill_null(pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$"), False)
    date_only = pc.fill_null(pc.match_substring_regex(column, r"^\d{4}-\d\d-\d\d$"), False)
    zone = pc.and_(zone, pc.invert(date_only))
    out = pa.nulls(len(column), pa.int64())
    for zoned, rows in ((True, zone), (False, pc.invert(zone))):
        if not pc.any(rows).as_py():
            continue
        part = pc.if_else(rows, column, None)
        parsed = _parsed_iso(part, zoned)
        if not zoned and clock.local_ms:
            parsed = pc.subtract(parsed, clock.local_ms)
        out = pc.coalesce(out, parsed)
    return out, (pc.is_null(out).to_numpy(False) & pc.is_valid(column).to_numpy(False))


def _parsed_iso(texts: pa.Array, zoned: bool) -> pa.Array:
    kind = pa.timestamp("ms", "UTC" if zoned else None)
    try:
        return pc.cast(pc.cast(texts, kind), pa.int64())
    except pa.ArrowException:
        pass
    try:  # finer than milliseconds
        fine = pc.cast(texts, pa.timestamp("ns", kind.tz))
        return pc.cast(pc.cast(fine, kind, safe=False), pa.int64())
    except pa.ArrowException:
        # Some text is no time: parse each distinct one by itself. Slow, but only for faulty logs.
        coded = texts.dictionary_encode()
        times: list[int | None] = []
        for text in coded.dictionary.to_pylist():
            try:
                times.append(pc.cast(pc.cast(pa.array([text]), kind), pa.int64())[0].as_py())
            except pa.ArrowException:
                times.append(None)
        return pa.array(times, pa.int64()).take(coded.indices)


def _formatted(column: pa.Array, clock: Clock) -> tuple[pa.Array, NDArray[np.bool_]]:
    """By strptime, each distinct value one time. A number counts as its digits: 14102923 is "14102923"."""
    missing = pc.is_null(column, nan_is_null=True)
    if pa.types.is_floating(column.type):
        whole = pc.and_(pc.is_finite(column), pc.less(pc.abs(column), 2.0**53))
        column = pc.cast(pc.floor(pc.if_else(whole, column, None)), pa.int64())
    coded = pc.cast(column, pa.string()).dictionary_encode()
    times = [_one(text, clock) for text in coded.dictionary.to_pylist()]
    if not times:
        return pa.nulls(len(column), pa.int64()), ~missing.to_numpy(False)
    out = pa.array(times, pa.int64()).take(coded.indices)
    empty = pc.fill_null(pc.equal(pc.cast(column, pa.string()), ""), False)
    return out, pc.is_null(out).to_numpy(False) & ~missing.to_numpy(False) & ~empty.to_numpy(False)


def _one(text: str, clock: Clock) -> int | None:
    try:
        at = datetime.strptime(text.strip(), clock.strptime)  # noqa: DTZ007 - the zone follows, if it names none
    except ValueError:
        return None
    if at.tzinfo is None:
        return round(at.replace(tzinfo=UTC).timestamp() * 1000) - clock.local_ms
    return round(at.timestamp() * 1000)


def meant(value: object, unit: str) -> str:
    """The remedy for a value that reads as a time before 1990: its probable notation.

    >>> meant(14102923, "ms")
    'name how it is written: log.time_format = "yymmddhh"'
    """
    text = str(value)
    for name in ("yymmddhh", "yyyymmddhh", "yyyymmdd"):
        at = _one(text, Clock(strptime=NAMED[name])) if text.isdigit() and len(text) == len(name) else None
        if at is not None and at >= FIRST_MS:
            return f'name how it is written: log.time_format = "{name}"'
    if text.replace(".", "", 1).isdigit():
        for other in ("s", "ms", "us", "ns"):
            if other != unit and FIRST_MS <= float(text) * _UNITS[other] <= 2 * 1_800_000_000_000:
                return f'correct log.time_unit in the schema: "{other}" gives a time after 1990'
    return "correct log.time_unit, or name log.time_format or, for times that count from 0, log.time_start"
