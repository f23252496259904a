# core
"""Lengths of windows and half-lives, as a schema writes them, the time units that count them, and times in words.

::

    length of a window     up to 1 h    6 h       1 d     7 d       more
    its grain              5 min        15 min    1 h     6 h       1 d          error of its far end, at most
    unit of a tile store   the finest grain of its windows, an hour at most

One short window makes the unit finer for the whole schema: an event is counted in one unit for all windows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

HOUR_MIN = 60
DAY_MIN = 24 * HOUR_MIN
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
GRAINS_MIN = ((HOUR_MIN, 5), (6 * HOUR_MIN, 15), (DAY_MIN, HOUR_MIN), (7 * DAY_MIN, 6 * HOUR_MIN), (1 << 40, DAY_MIN))
"""(longest window, its grain), in minutes."""
SHORTEST_MIN = 15
"""Minutes: the shortest window. A window is at least three of its grains long."""
LONGEST_DAYS = 1800  # the longest window beside one of six hours or less: the limit of five-minute tiles
UNITS_PER_HALF_LIFE = 6
"""A half-life is at least so many units of the store: a fresh event's weight is then within 6 percent."""

_MINUTES = {"min": 1, "h": HOUR_MIN, "d": DAY_MIN}
_form = re.compile(r"(\d{1,7}) ?(min|h|d)")


def minutes_of(text: str) -> int:
    """A duration in minutes. Raises ValueError unless the text is a whole number of min, h or d.

    >>> [minutes_of(text) for text in ("15min", "6h", "7d")]
    [15, 360, 10080]
    """
    found = _form.fullmatch(text.strip())
    if found is None or not int(found[1]):
        raise ValueError(f"'{text}' is no duration; write it like '15min', '6h' or '7d'")
    return int(found[1]) * _MINUTES[found[2]]


def text_of(minutes: int) -> str:
    """A duration as short as it can be written.

    >>> [text_of(minutes) for minutes in (90, 120, 2880)]
    ['90min', '2h', '2d']
    """
    unit = next(unit for unit in ("d", "h", "min") if minutes % _MINUTES[unit] == 0)
    return f"{minutes // _MINUTES[unit]}{unit}"


def life_text(days: float) -> str:
    """A half-life in days as a duration.

    >>> [life_text(days) for days in (15 / 1440, 0.25, 0.3, 7)]
    ['15min', '6h', '432min', '7d']
    """
    minutes = round(days * DAY_MIN) if math.isfinite(days) else 0
    return text_of(minutes) if minutes and abs(minutes - days * DAY_MIN) < 1e-6 else f"{days:g}d"


def span_name(ms: float) -> str:
    """A length of time in words: ``10 s``, ``5 min``, ``1 day``. Two digits where it is not a whole number."""
    for unit, size in (("day", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if ms >= size:
            count = ms / size
            shown = f"{count:.0f}" if count == round(count) or count >= 100 else f"{count:.2g}"
            return f"{shown} {unit}" + ("s" if unit == "day" and shown != "1" else "")
    return f"{ms:.0f} ms"


def utc(ms: int) -> str:
    """A time in Unix ms for people.

    >>> utc(1_772_414_000_000)
    '2026-03-02 01:13 UTC'
    """
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


@lru_cache(maxsize=64)
def lengths_in_minutes(lengths: tuple[int | str, ...]) -> tuple[int, ...]:
    """Lengths of windows in minutes; a number is days, a text is a duration."""
    return tuple(minutes_of(length) if isinstance(length, str) else length * DAY_MIN for length in lengths)


def grain_minutes(minutes: int) -> int:
    """The grain of a window of so many minutes. A count lies between the exact counts of the window and of the window
    plus the grain."""
    return next(grain for longest, grain in GRAINS_MIN if minutes <= longest)


def unit_minutes(minutes: Sequence[int]) -> int:
    return min([HOUR_MIN, *map(grain_minutes, minutes)])


def length_problem(minutes: Sequence[int]) -> tuple[str, str] | None:
    """What is wrong with the lengths of a schema's windows, and the remedy; None when they are valid."""
    if not minutes or list(minutes) != sorted(set(minutes)):
        return f"{[text_of(m) for m in minutes]} is not ascending", "list each window once, shortest first"
    if minutes[0] < SHORTEST_MIN:
        return f"has {text_of(minutes[0])}", f"the shortest window is {text_of(SHORTEST_MIN)}"
    for m in minutes:
        step = min(HOUR_MIN, grain_minutes(m))
        if m % step:
            return f"has {text_of(m)}", f"name a multiple of {text_of(step)} there"
    if minutes[-1] > LONGEST_DAYS * DAY_MIN and unit_minutes(minutes) < HOUR_MIN:
        problem = f"has {text_of(minutes[-1])} beside {text_of(minutes[0])}"
        return problem, f"name at most {LONGEST_DAYS}d beside windows of 6h or less"
    return None


def half_life_problem(days: float, minutes: Sequence[int]) -> tuple[str, str] | None:
    """What is wrong with a half-life beside windows of so many minutes, and the remedy; None when it is valid.

    The tile of a fresh event may be a sixth of the half-life wide at most. Under six hours, some window must be as long
    as the half-life, since such a window keeps its tiles fine for that long.
    """
    unit = unit_minutes(minutes)
    life = days * DAY_MIN
    if not UNITS_PER_HALF_LIFE * unit <= life < float("inf"):  # so that NaN fails too
        least = UNITS_PER_HALF_LIFE * unit
        finer = "" if unit == GRAINS_MIN[0][1] else "; windows.lengths with a short window allow shorter ones"
        return f"has '{life_text(days)}'", f"name '{text_of(least)}' or more{finer}"
    fine = [m for m in minutes if grain_minutes(m) * UNITS_PER_HALF_LIFE <= life]
    if life < UNITS_PER_HALF_LIFE * HOUR_MIN and not any(m >= life for m in fine):
        longest = max(longest for longest, grain in GRAINS_MIN if grain * UNITS_PER_HALF_LIFE <= life)
        problem = f"has '{life_text(days)}', but tiles as old as that are wider than a sixth of it"
        if longest < life:  # no window of that length keeps tiles so fine
            wider = min(grain for _, grain in GRAINS_MIN if grain * UNITS_PER_HALF_LIFE > life)
            return problem, f"name '{text_of(longest)}' or less, or '{text_of(wider * UNITS_PER_HALF_LIFE)}' or more"
        return problem, f"add a window to windows.lengths that is as long as the half-life, up to {text_of(longest)}"
    return None
