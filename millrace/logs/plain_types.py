# core
"""One plain type for all types that hold the same values: the storage type of a file does not change a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from millrace.basics.errors import LogError


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The one type that replaces all types that hold the same values."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind if isinstance(kind, pa.UuidType) else plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_decimal(kind):  # as it would be read from CSV
        return pa.int64() if kind.scale <= 0 else pa.float64()
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # Python has no nanoseconds
        return pa.timestamp("us", kind.tz)
    texts = (pa.types.is_string_view, pa.types.is_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    if any(is_text(kind) for is_text in texts):  # many writers of Parquet do not say that their bytes are text
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.large_string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def plain_types(schema: pa.Schema, names: Sequence[str]) -> dict[str, pa.DataType]:
    """The types that :func:`plain` gives columns of a file, query or frame."""
    kinds = {name: plain_type(schema.field(name).type) for name in names}
    return {name: pa.string() if isinstance(kind, pa.BaseExtensionType) else kind for name, kind in kinds.items()}


def plain(column: pa.ChunkedArray, name: str, path: object, row: int = 0) -> pa.ChunkedArray:
    """The column in its plain type. Features hash a value's text, so ``b"a"``, ``Decimal("7.00")`` or a dictionary's
    code would differ from ``a`` and ``7``. Raises LogError for bytes that are not UTF-8 text, or a decimal beyond 64
    bits. ``row``: number of rows of the log before these."""
    kind = plain_type(column.type)
    if isinstance(kind, pa.BaseExtensionType):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])

    def converted(part: pa.ChunkedArray) -> pa.ChunkedArray:
        if pa.types.is_dictionary(part.type) and pa.types.is_string_view(part.type.value_type):  # Arrow has no way
            part = pc.cast(part, pa.dictionary(part.type.index_type, kind))
        if part.type != kind:
            return pc.cast(part, kind, safe=not pa.types.is_timestamp(kind))  # checks that bytes are text
        part.validate(full=True)  # and so does this
        return part

    try:
        return converted(column)
    except pa.ArrowException:
        where = "" if pa.types.is_nested(column.type) else _first_bad(column, converted, row)
        what = "does not fit 64 bits" if pa.types.is_decimal(column.type) else "is no UTF-8 text"
        raise LogError(f"'{path}': column '{name}'{where} {what}", "write the column as UTF-8 text") from None


def _first_bad(column: pa.ChunkedArray, converted: Callable[[pa.ChunkedArray], pa.ChunkedArray], before: int) -> str:
    """Row and value of the first value that ``converted`` refuses, found by halving."""
    row, end = 0, len(column)
    while end - row > 1:
        middle = (row + end) // 2
        try:
            converted(column.slice(row, middle - row))
            row = middle
        except pa.ArrowException:
            end = middle
    one = column.slice(row, 1)
    value = pc.cast(one, pa.large_binary()) if one.type in (pa.string(), pa.large_string()) else one
    return f", row {before + row + 1}: {value.to_pylist()[0]!r:.60}"


def common(found: Sequence[dict[str, pa.DataType]], where: object, texts: bool = True) -> dict[str, pa.DataType]:
    """The common type of each column over several files. ``texts``: what is no text in one is a text where it is one in
    another, as in CSV. Raises LogError where kinds are mixed otherwise."""
    out: dict[str, pa.DataType] = {}
    for types in found:
        for name, kind in types.items():
            flat = plain_type(kind)
            out[name] = flat if name not in out else _joined(out[name], flat, name, where, texts)
    return out


def _joined(one: pa.DataType, other: pa.DataType, name: str, where: object, texts: bool) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_nested(one) or pa.types.is_nested(other):
        both = pa.types.is_list(one) and pa.types.is_list(other)
        if both:
            return pa.list_(_joined(one.value_type, other.value_type, name, where, texts))
        raise _disagree(one, other, name, where)
    number = (pa.types.is_integer, pa.types.is_floating)
    if all(any(of(kind) for of in number) for kind in (one, other)):
        return pa.int64() if pa.types.is_integer(one) and pa.types.is_integer(other) else pa.float64()
    times = (pa.types.is_timestamp, pa.types.is_date)
    if all(any(of(kind) for of in times) for kind in (one, other)):
        zone = getattr(one, "tz", None), getattr(other, "tz", None)
        if zone[0] == zone[1]:
            fine = any(pa.types.is_timestamp(k) and k.unit in ("us", "ns", "ms") for k in (one, other))
            return pa.timestamp("us" if fine else "s", zone[0])
    if not texts:
        raise _disagree(one, other, name, where)
    return pa.string()


def _disagree(one: pa.DataType, other: pa.DataType, name: str, where: object) -> LogError:
    return LogError(f"the files of '{where}' disagree: '{name}' is {one} and {other}", "give each column one type")
