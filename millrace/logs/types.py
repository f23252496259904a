# core
"""One type for a column that several blocks or files have, as if it had been inferred from all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from millrace.basics.errors import LogError
from millrace.logs.plain import plain_type


def common(found: Sequence[dict[str, pa.DataType]], where: Path) -> dict[str, pa.DataType]:
    """The type of each column. Raises LogError where numbers and lists, or lists and texts, are mixed."""
    out: dict[str, pa.DataType] = {}
    for types in found:
        for name, kind in types.items():
            flat = plain_type(kind)
            out[name] = flat if name not in out else _joined(out[name], flat, name, where)
    return out


def _joined(one: pa.DataType, other: pa.DataType, name: str, where: Path) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_nested(one) or pa.types.is_nested(other):
        both = pa.types.is_list(one) and pa.types.is_list(other)
        if both:
            return pa.list_(_joined(one.value_type, other.value_type, name, where))
        raise LogError(f"the files of '{where}' disagree: '{name}' is {one} and {other}", "give each column one type")
    number = (pa.types.is_integer, pa.types.is_floating)
    if all(any(of(kind) for of in number) for kind in (one, other)):
        return pa.int64() if pa.types.is_integer(one) and pa.types.is_integer(other) else pa.float64()
    times = (pa.types.is_timestamp, pa.types.is_date)
    if all(any(of(kind) for of in times) for kind in (one, other)):
        zone = getattr(one, "tz", None), getattr(other, "tz", None)
        if zone[0] == zone[1]:
            fine = any(pa.types.is_timestamp(k) and k.unit in ("us", "ns", "ms") for k in (one, other))
            return pa.timestamp("us" if fine else "s", zone[0])
    return pa.string()
