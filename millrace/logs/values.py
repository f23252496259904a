# core
"""Helpers for a column's values that several readers share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.hashing import U64, column_hash


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The values' texts; a whole number stays one: 7.0 is 7, as in value_hash."""
    if pa.types.is_floating(column.type):
        whole = pc.cast(column, pa.int64(), safe=False)
        if pc.all(pc.equal(pc.cast(whole, column.type), column)).as_py() is not False:
            column = whole
    return pc.cast(column, pa.string())


def hashes(column: pa.Array | pa.ChunkedArray) -> U64:
    """:func:`value_hash` of each value. (n,)"""
    coded = flat(pc.dictionary_encode(as_text(column)))
    of_values = np.append(column_hash(np.asarray(coded.dictionary.to_pylist(), object)), np.uint64(0))
    found: U64 = of_values[pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)]
    return found


def missing(column: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """(n,) True for a missing value: null, empty text or NaN, as in ``basics.hashing.value_hash``."""
    out = pc.is_null(column, nan_is_null=True)
    if is_text(column.type):
        out = pc.or_(out, pc.fill_null(pc.equal(column, ""), False))
    return mask(out)


def first_there(columns: Iterable[pa.Array | pa.ChunkedArray]) -> pa.Array:
    """The text of the first column that has a value. (n,)"""
    return pc.coalesce(*(pc.if_else(pa.array(~missing(one)), flat(as_text(one)), None) for one in columns))


def mask(column: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.fill_null(flat(column), False).to_numpy(zero_copy_only=False)
    return found


YES = ("true", "yes", "y", "t", "ja", "j", "oui", "si", "sí", "sì", "sim", "tak", "wahr", "vrai")
NO = ("false", "no", "n", "f", "nein", "non", "nee", "não", "nie", "falsch", "faux")


def said(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """1.0 for texts that mean yes, 0.0 for those that mean no, in any case of letters; null for all others."""
    word = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    yes, no = (pc.is_in(word, value_set=pa.array(words, word.type)) for words in (YES, NO))
    return pc.if_else(yes, 1.0, pc.if_else(no, 0.0, pa.scalar(None, pa.float64())))


_FLOAT = r"^\s*[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:nan|inf|infinity))\s*$"


def as_numbers(column: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """(float64, null for a value that is not a number; (n,) whether it is one). Booleans are 0 and 1; texts may be
    numbers."""
    kind = column.type
    if pa.types.is_boolean(kind):
        column = pc.cast(column, pa.int8())
    elif is_text(kind):
        column = pc.if_else(pc.fill_null(pc.match_substring_regex(column, _FLOAT), False), column, None)
        column = pc.utf8_trim_whitespace(column)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return pa.nulls(len(column), pa.float64()), np.zeros(len(column), bool)
    number = pc.cast(column, pa.float64(), safe=False)
    return number, pc.is_valid(number).to_numpy(zero_copy_only=False)
