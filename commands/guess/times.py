# core
"""Which columns hold times, in which unit or format, and what those times are.

Numbers may count seconds, milliseconds, microseconds or nanoseconds since 1970, or write a date in digits
(``14102923`` is 2014-10-29 23:00). Texts may be ISO 8601 or one of a few formats that public logs use. A column
holds times when *every* value of it reads as a time between 1990 and 2100.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from commands.guess.columns import Column
from millrace.contracts.clock import DAY_MS

FIRST_MS, LAST_MS = 631_152_000_000, 4_102_444_800_000
"""1990 and 2100."""
_UNITS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}

TIME_WORDS = frozenset({"time", "timestamp", "ts", "date", "dt", "day", "hour", "ms", "at"})
"""Words that name times."""

_DIGITS = {"%y%m%d%H": (8, 3_600_000), "%Y%m%d": (8, DAY_MS), "%Y%m%d%H": (10, 3_600_000)} | {
    "%Y%m%d%H%M": (12, 60_000),
    "%Y%m%d%H%M%S": (14, 1000),
}
"""Times written in digits: (how many, the resolution in ms)."""
_TEXTS = {
    "%m/%d/%Y %I:%M:%S %p": 1000,
    "%m/%d/%Y %H:%M:%S": 1000,
    "%d/%m/%Y %H:%M:%S": 1000,
    "%d.%m.%Y %H:%M:%S": 1000,
    "%Y/%m/%d %H:%M:%S": 1000,
    "%d/%b/%Y:%H:%M:%S %z": 1000,
    "%m %d, %Y": DAY_MS,
    "%Y/%m/%d": DAY_MS,
    "%m/%d/%Y": DAY_MS,
    "%d.%m.%Y": DAY_MS,
}


@dataclass(frozen=True)
class Times:
    """A column read as times."""

    ms: NDArray[np.int64]
    """(n,) Unix ms; -1 where there is none."""
    unit: str | None
    """``"s"``, ``"ms"``, ``"us"``, ``"ns"`` of a number; None of a text, a date in digits or a type of its own."""
    format: str | None
    """A strptime format, where it is not one that needs no word (ISO 8601, a type of its own)."""
    grain_ms: int
    """Its resolution."""
    never: float | None = None
    """The number that stands for 'did not happen', where a column of numbers has one: -1 or 0."""

    @property
    def there(self) -> NDArray[np.bool_]:
        return self.ms >= 0


def times_of(column: Column) -> Times | None:
    """The column as times, or None if it holds none."""
    if column.is_list or not column.there.any() or pa.types.is_boolean(column.kind):
        return None
    if column.is_temporal:
        ms = column.numbers
        grain = DAY_MS if pa.types.is_date(column.kind) else _grain(ms[column.there])
        return _checked(np.where(column.there, ms, -1.0), None, None, grain)
    if column.is_numeric:
        return _of_numbers(column)
    return _of_texts(column) if column.is_text else None


def _checked(ms: NDArray[np.float64], unit: str | None, form: str | None, grain: int) -> Times | None:
    ms = np.where(np.isnan(ms), -1.0, ms)
    there = ms >= 0
    if not there.any() or ((ms[there] < FIRST_MS) | (ms[there] > LAST_MS)).any():
        return None
    return Times(np.floor(ms).astype(np.int64), unit, form, grain)


def _grain(ms: NDArray[np.float64]) -> int:
    for grain in (DAY_MS, 3_600_000, 60_000, 1000):
        if not (ms % grain).any():
            return grain
    return 1


def _of_numbers(column: Column) -> Times | None:
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
                found = _parsed(np.unique(some), form)
                if found is not None:
                    at = np.searchsorted(np.unique(some), np.where(np.isnan(values), some.min(), values))
                    ms = np.where(np.isnan(values), np.nan, found[at])
                    times = _checked(ms, None, form, grain)
                    if times is not None:
                        return Times(times.ms, None, form, grain, never)
    for unit, factor in _UNITS.items():
        times = _checked(values * factor, unit, None, _grain(some * factor))
        if times is not None:
            return Times(times.ms, unit, None, times.grain_ms, never)
    return None


def _parsed(values: NDArray[np.float64], form: str) -> NDArray[np.float64] | None:
    """Unix ms of distinct values in digits; None where one is no such time."""
    if len(values) > 20_000:  # a format is told by so many
        step = len(values) // 1000
        if _parsed(values[::step], form) is None:
            return None
    width = _DIGITS[form][0]
    try:
        out = [datetime.strptime(f"{int(v):0{width}d}+0000", f"{form}%z").timestamp() * 1000.0 for v in values]
    except ValueError:
        return None
    return np.array(out)


def _of_texts(column: Column) -> Times | None:
    kept = np.flatnonzero(column.counts > 0)
    texts = column.values.take(pa.array(kept)).to_pylist()
    if not texts or not any(c.isdigit() for c in texts[0]):
        return None
    ms = np.full(len(column.counts), np.nan)
    iso = _iso(texts)
    form, grain = None, 0
    if iso is not None:
        ms[kept], grain = iso, _grain(iso)
    else:
        for form, grain in _TEXTS.items():  # noqa: B007
            try:
                found = [_stamp(text, form) for text in texts[:50]]
                found += [_stamp(text, form) for text in texts[50:]]
            except ValueError:
                continue
            ms[kept] = found
            break
        else:
            return None
    return _checked(np.where(column.there, ms[column.codes], np.nan), None, form, grain)


def _stamp(text: str, form: str) -> float:
    if "%z" not in form:
        text, form = f"{text} +0000", f"{form} %z"
    return datetime.strptime(text, form).timestamp() * 1000.0  # noqa: DTZ007 - the format has %z


def _iso(texts: list[str]) -> NDArray[np.float64] | None:
    """Unix ms of ISO 8601 texts; None where one is none. A number is not taken for a time here."""
    if any(text.replace(".", "").isdigit() for text in texts[:50]):
        return None
    zoned = any(text.endswith("Z") or text[10:].count("+") or text[10:].count("-") for text in texts[:50])
    try:
        stamps = pc.cast(pa.array(texts, pa.string()), pa.timestamp("us", "UTC" if zoned else None))
    except pa.ArrowException:
        return None
    return np.asarray(pc.cast(stamps, pa.int64()).to_numpy(zero_copy_only=False) / 1000.0, np.float64)
