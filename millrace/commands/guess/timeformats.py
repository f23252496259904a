# core
"""Finds columns that hold times, their unit or format, and the times.

Numbers may count seconds, milliseconds, microseconds or nanoseconds since 1970, or write a date in digits
(``14102923`` is 2014-10-29 23:00). Texts may be ISO 8601 or one of a few formats of public logs. A column holds times
when *every* value of it reads as a time between 1990 and 2100.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.commands.guess.samplecolumns import Column
from millrace.logs.log_times import FIRST_MS, Clock, to_ms

LAST_MS = 4_102_444_800_000
"""2100."""
_UNITS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}

TIME_WORDS = frozenset({"time", "timestamp", "ts", "date", "dt", "day", "hour", "ms", "at"})

_DIGITS = {"%y%m%d%H": (8, 3_600_000), "%Y%m%d": (8, DAY_MS), "%Y%m%d%H": (10, 3_600_000)} | {
    "%Y%m%d%H%M": (12, 60_000),
    "%Y%m%d%H%M%S": (14, 1000),
}
"""Times written in digits: (how many, the resolution in ms)."""
_DAYS = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%m-%Y", "%Y.%m.%d")
_CLOCKS = {" %I:%M:%S %p": 1000, " %H:%M:%S": 1000, " %H:%M": 60_000, "": DAY_MS}
_TEXTS = {day + clock: grain for day in _DAYS for clock, grain in _CLOCKS.items()} | {
    **{f"{day}/%H:%M:%S": 1000 for day in (*_DAYS, "%Y-%m-%d")},
    **{f"{day}/%H:%M": 60_000 for day in (*_DAYS, "%Y-%m-%d")},
    "%d/%b/%Y:%H:%M:%S %z": 1000,
    "%m %d, %Y": DAY_MS,
}
"""Formats of texts, and the resolution in ms."""
_ZONE = r"[\d. ](?P<zone>[+-]\d\d:?\d\d)$"


@dataclass(frozen=True)
class TimeColumn:
    ms: NDArray[np.int64]
    """(n,) Unix ms; -1 where there is none."""
    unit: str | None
    """``"s"``, ``"ms"``, ``"us"``, ``"ns"`` of a number; None of a text, a date in digits or a type of its own."""
    format: str | None
    """A strptime format; None where none is needed (ISO 8601, a type of its own)."""
    grain_ms: int
    never: float | None = None
    """The number that stands for 'did not happen', where a column of numbers has one: -1 or 0."""
    also: str | None = None
    """Another format in which all its texts are times."""
    zones: tuple[str, ...] = ()
    """The offsets from UTC, or the zone's name, that the values name, the most frequent first."""

    @property
    def there(self) -> NDArray[np.bool_]:
        return self.ms >= 0


def times_of(column: Column) -> TimeColumn | None:
    """The column as times, or None if it holds none."""
    if column.is_list or not column.there.any() or pa.types.is_boolean(column.kind):
        return None
    if column.is_temporal:
        ms = column.numbers
        grain = DAY_MS if pa.types.is_date(column.kind) else _grain(ms[column.there])
        times = _checked(np.where(column.there, ms, -1.0), None, None, grain)
        zone = getattr(column.kind, "tz", None)
        return times if times is None or zone in (None, "UTC") else replace(times, zones=(zone,))
    if column.is_numeric:
        return _of_numbers(column)
    return _of_texts(column) if column.is_text else None


def _checked(ms: NDArray[np.float64], unit: str | None, form: str | None, grain: int) -> TimeColumn | None:
    ms = np.where(np.isnan(ms), -1.0, ms)
    there = ms >= 0
    if not there.any() or ((ms[there] < FIRST_MS) | (ms[there] > LAST_MS)).any():
        return None
    return TimeColumn(np.floor(ms).astype(np.int64), unit, form, grain)


def _grain(ms: NDArray[np.float64]) -> int:
    for grain in (DAY_MS, 3_600_000, 60_000, 1000):
        if not (ms % grain).any():
            return grain
    return 1


def _of_numbers(column: Column) -> TimeColumn | None:
    values = np.where(column.there, column.numbers, np.nan)
    never = None
    low = np.nanmin(values)
    if low in (-1.0, 0.0) and (values > 0).any():
        never, values = float(low), np.where(values == low, np.nan, values)
    some = values[~np.isnan(values)]
    if not len(some):
        return None
    if column.is_whole:
        digits = {len(str(int(v))) for v in (some.min(), some.max())}
        for form, (length, grain) in _DIGITS.items():
            if digits == {length}:
                ms = _read(pa.array(values, from_pandas=True), form)
                times = None if ms is None else _checked(ms, None, form, grain)
                if times is not None:
                    return TimeColumn(times.ms, None, form, grain, never)
    for unit, factor in _UNITS.items():
        times = _checked(values * factor, unit, None, _grain(some * factor))
        if times is not None:
            return TimeColumn(times.ms, unit, None, times.grain_ms, never)
    return None


def _of_texts(column: Column) -> TimeColumn | None:
    kept = np.flatnonzero(column.counts > 0)
    texts = column.values.take(pa.array(kept))
    first = texts.slice(0, 50).to_pylist()
    if not first or not any(c.isdigit() for c in first[0]):
        return None
    forms = dict(_TEXTS)
    if not any(text.replace(".", "").isdigit() for text in first):  # a number is not taken for an ISO time here
        forms = {"": 0, **_TEXTS}
    for form, grain in forms.items():
        found = _read(texts, form)
        if found is not None:
            ms = np.full(len(column.counts), np.nan)
            ms[kept] = found
            stamps = np.where(column.there, ms[column.codes], np.nan)
            times = _checked(stamps, None, form or None, grain or _grain(found))
            other = _swapped(form)
            also = other if other != form and _read(texts, other) is not None else None
            return times and replace(times, also=also, zones=_zones(column))
    return None


def _swapped(form: str) -> str:
    """The format with day and month in each other's place."""
    return re.sub(r"%([md])(.)%([md])", r"%\3\2%\1", form)


def _zones(column: Column) -> tuple[str, ...]:
    counts = Counter[str]()
    found = pc.struct_field(pc.extract_regex(column.values, _ZONE), "zone").to_pylist()
    for zone, rows in zip(found, column.counts.tolist(), strict=False):
        if zone:
            counts[f"{zone[:3]}:{zone[-2:]}"] += rows
    return tuple(zone for zone, _ in counts.most_common())


def _read(values: pa.Array, form: str) -> NDArray[np.float64] | None:
    """Unix ms of values in a strptime format (empty: ISO 8601), NaN where there is none; None where one is no time."""
    clock = Clock(strptime=form)
    if any(to_ms(values.slice(0, few), clock)[1].any() for few in (1, 50)):
        return None
    ms, wrong = to_ms(values, clock)
    return None if wrong.any() else ms.cast(pa.float64()).to_numpy(zero_copy_only=False)
