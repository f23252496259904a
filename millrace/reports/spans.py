# core
"""Lengths of time as people write them: ``10s``, ``5min``, ``1h``, ``1d``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from millrace.basics.errors import SettingError

_MS = {"ms": 1, "s": 1000, "min": 60_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "day": 86_400_000}


def span_ms(text: str) -> int:
    """Milliseconds. Raises SettingError when the text is not a length of time above 0."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|days?)\s*", text)
    ms = 0 if found is None else round(float(found[1]) * _MS[found[2].removesuffix("s") or "s"])
    if ms < 1:
        raise SettingError(f"'{text}' is no length of time", "write it as 10s, 5min, 1h or 1d")
    return ms


def listed(given: str | Sequence[Any] | None) -> list[Any]:
    """The parts of a text with commas; of a sequence, itself.

    >>> listed("never, daily")
    ['never', 'daily']
    """
    if isinstance(given, str):
        return [part.strip() for part in given.split(",") if part.strip()]
    return list(given or ())
