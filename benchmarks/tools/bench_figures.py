# core
"""Figures of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import NotRequired, TypedDict


class Figure(TypedDict):
    """One measured figure. ``against`` and ``ratio`` are None where nothing was compared. ``ratio_low`` is there where
    an interval was worked out."""

    name: str
    value: float
    unit: str
    against: str | None
    ratio: float | None
    ratio_low: NotRequired[float]


def figure(name: str, value: float, unit: str, against: str | None = None, ratio: float | None = None) -> Figure:
    """One figure; ``ratio`` is what the value is to that of ``against``."""
    return {"name": name, "value": float(value), "unit": unit, "against": against, "ratio": ratio}


Say = Callable[[str], None]
