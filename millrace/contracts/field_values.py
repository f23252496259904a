# core
"""The values that one attribute has in a field: one, several, or the words of a text.

::

    slots = 1         "eu,us"                 ──► "eu,us"
    slots = 4         "eu, us"  ["eu", "us"]  ──► "eu" "us"
    kind = "text"     "Tariff talks stall"    ──► "tariff" "talks" "stall"    with bigrams: "tariff talks" "talks stall"

Everything that reads attributes, live or of a log, asks here; :func:`millrace.basics.hashing.value_hash` of a value is
its id. A word is a run of letters, digits and their marks, in NFKC and without case, so it is the same however a text
is written; a number is a word. Chinese characters and Japanese kana, which no spaces part, are a word each. Other
scripts without spaces, such as Thai, are not split: a phrase is a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import value_text
from millrace.contracts.schema import Field

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
