# core
"""The values that one attribute has in a field: one, several, the words of a text, or the numbers of a vector.

::

    slots = 1         "eu,us"                 ──► "eu,us"
    slots = 4         "eu, us"  ["eu", "us"]  ──► "eu" "us"
    kind = "text"     "Tariff talks stall"    ──► "tariff" "talks" "stall"    with bigrams: "tariff talks" "talks stall"

Everything that reads attributes, live or of a log, asks here; :func:`millrace.basics.hashing.value_hash` of a value is
its id. A word is a run of letters, digits and their marks, in NFKC and without case, so it is the same however a text
is written; a number is a word. Chinese characters and Japanese kana, which no spaces part, are a word each. Other
scripts without spaces, such as Thai, are not split: a phrase is a word.

A model sees at most :data:`VECTOR_NUMBERS` numbers of a vector. Of a longer one these are projections on random signs
(Achlioptas, JCSS 2003), which keep what a linear layer can learn of it, and its direction alone. So samples, page logs
and archives carry what was served, and nothing needs the vector again.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from base64 import b64decode
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from msgspec import json
from numpy.typing import NDArray

from millrace.basics.hashing import value_text
from millrace.contracts.schema import VECTOR_NUMBERS, Field

MOST_LETTERS = 1024
"""Characters of a text that are read."""

_ALONE = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}][^\s{_ALONE}]*")
_NO_LETTER = re.compile(r"[^\w\s]")


def parts_of(field: Field | None, value: Any) -> Sequence[Any] | NDArray[Any]:
    """The values of an attribute, in its order; some may be missing or repeated. None: an attribute that is no field.

    >>> parts_of(Field("title", "item", "text"), "Straße: 3 NEUE Häuser")
    ['strasse', '3', 'neue', 'häuser']
    >>> parts_of(Field("title", "item", "text", bigrams=True), "to be or not to be")
    ['to', 'be', 'or', 'not', 'to be', 'be or', 'or not', 'not to']
    """
    if field is not None and field.kind == "text":
        return () if isinstance(value, list | tuple | np.ndarray) else _words(field, value_text(value))
    if isinstance(value, str):
        return [p.strip() for p in value.split(field.separator)] if field and field.slots > 1 else (value,)
    return value if isinstance(value, list | tuple | np.ndarray) else (value,)


def _words(field: Field, text: str) -> list[str]:
    """The first different words of a text, then the first different pairs of neighbours, up to the field's slots."""
    plain = _NO_LETTER.sub(_apart, unicodedata.normalize("NFKC", text[:MOST_LETTERS]).casefold())
    words = _WORD.findall(plain)
    pairs = [f"{a} {b}" for a, b in pairwise(words)] if field.bigrams else []
    return list(dict.fromkeys(words + pairs))[: field.slots]


def _apart(found: re.Match[str]) -> str:
    """A mark is of the letter before it; what has no width (a joiner, a sign of direction) is nothing; others part."""
    category = unicodedata.category(found[0])
    return found[0] if category[0] == "M" else "" if category == "Cf" else " "


_FINEST = 1 / 32
_MOST = 8.0
"""Projections of a unit vector have a deviation of 1. In steps of 1/32 they rank as well, and take a byte or so."""


def numbers_of(field: Field, value: Any) -> NDArray[np.float32]:
    """The numbers that a model sees of a vector; all 0 where it is missing. Equal bits everywhere: all sums are of
    whole numbers below 2^53. (min(size, VECTOR_NUMBERS),)

    Args:
        value: a list of numbers, or a text: JSON, or base64 of float16, little-endian. Of the length ``field.size``,
            or what this gave.

    Raises:
        ValueError: it is no such vector, or has a number beyond float16.
    """
    made = np.zeros(min(field.size, VECTOR_NUMBERS), np.float32)
    if value is None or (isinstance(value, str) and not value):
        return made
    try:
        if isinstance(value, str):
            value = json.decode(value) if value[:1] == "[" else np.frombuffer(b64decode(value, validate=True), "<f2")
        vector = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):  # the second is also of base64 and JSON
        raise ValueError(f"is no vector of {field.size} numbers") from None
    if vector.shape not in ((field.size,), made.shape):
        raise ValueError(f"has {vector.size:,} numbers, not {field.size:,}")
    largest = np.abs(vector).max()
    if not largest <= _TOP:
        raise ValueError(f"has a number beyond {_TOP:,.0f}, or none")
    if vector.shape == made.shape:
        return vector.astype(np.float32)
    if largest > 0:
        whole = np.rint(vector * (32_767 / largest))
        projected = whole @ _signs(field.size) / np.sqrt(np.square(whole).sum())
        made[:] = np.clip(np.rint(projected / _FINEST) * _FINEST, -_MOST, _MOST)
    return made


_TOP = float(np.finfo(np.float16).max)


@lru_cache(maxsize=16)
def _signs(size: int) -> NDArray[np.float64]:
    """(size, VECTOR_NUMBERS) of -1 and 1."""
    drawn = hashlib.shake_256(b"signs").digest(size * VECTOR_NUMBERS // 8)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(size, VECTOR_NUMBERS)
    return 2 * bits.astype(np.float64) - 1
