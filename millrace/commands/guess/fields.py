# core
"""Decides what a column is as a feature: categorical or numeric, one value or several, raw or as a logarithm; or none.

Whole numbers are the hard case: 7 may be a brand or a count. A column of at most 50 different ones is categorical, and
so is one called an id or a code. More are a number where the name says so (``price``, ``num``, ``days``), or where
small values are the common ones, as with counts.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from millrace.commands.guess.samplecolumns import Column
from millrace.commands.guess.timeformats import TIME_WORDS, times_of
from millrace.contracts.schema import Transform

FEW = 50
"""Up to this many different whole numbers are categories."""
SIZES = 20.0
"""A number whose 99th percentile is this many times its median is fed by its logarithm."""
MOST_SLOTS = 16

_ID = {"id", "ids", "code", "hash", "zip", "zipcode", "postcode", "type", "class", "category", "kind", "model", "key"}
_NUMBER = {"num", "count", "cnt", "price", "age", "duration", "size", "length", "len", "width", "height", "score"} | {
    "ratio", "rate", "days", "day", "amount", "cost", "weight", "ms", "sec", "seconds", "minutes", "hours", "distance",
    "total", "avg", "mean", "freq", "frequency", "quantity", "stock", "since",
}  # fmt: skip
_BREAKS = {" ": r"\S+", ",": r"[^,]+", "|": r"[^|]+", ";": r"[^;]+"}


@dataclass(frozen=True, slots=True)
class Feature:
    """One ``[[fields]]`` entry without its owner."""

    kind: Literal["categorical", "numeric", "text", "vector"] = "categorical"
    slots: int = 1
    size: int = 0
    separator: str = ","
    transform: Transform = "raw"
    why: str = ""


def feature_of(column: Column) -> Feature | str:
    """The column as a feature, or the reason why it is none."""
    if column.distinct == 0:
        return "it has no value in the sample"
    if pa.types.is_nested(column.kind) and not column.is_list:
        return f"it holds records ({column.kind}), not values"
    if column.is_list:
        return _listed(column)
    if column.distinct == 1 and column.filled > 0.999:
        return f"it is {column.examples(1)[0]!r:.40} in every row"
    if column.is_temporal:
        return "it is a time: a model sees it as one category for each; derive an age or an hour from it"
    numbers = column.numbers[column.there]
    if column.is_numeric and not column.is_whole:
        return _number(numbers, f"numbers with a fraction, {numbers.min():g} to {numbers.max():g}")
    if column.is_numeric:
        return _whole(column, numbers)
    return _text(column)


def _whole(column: Column, numbers: np.ndarray) -> Feature | str:
    tokens = set(column.tokens)
    shown = f"{column.distinct:,} values"
    if tokens & _ID or column.distinct <= FEW:
        return _category(column, shown)
    low, high = numbers.min(), numbers.max()
    counted = low >= 0 and np.median(numbers) <= high / 8 and high <= 1e9
    dense = column.distinct >= 0.5 * (high - low + 1)  # every number from here to there occurs
    if tokens & _NUMBER or (counted and (low <= 1 or dense)):
        return _number(numbers, f"whole numbers, {low:g} to {high:g}")
    return _category(column, shown)


def _number(numbers: np.ndarray, why: str) -> Feature:
    size = np.abs(numbers[np.isfinite(numbers) & (numbers != 0)])
    spans = len(size) > 0 and np.percentile(size, 99) >= SIZES * np.percentile(size, 50) > 0
    wide = len(size) > 0 and np.percentile(size, 99) >= 100 * max(np.percentile(size, 5), 1e-12) and size.max() > 100
    return Feature("numeric", transform="log" if spans or wide or size.max(initial=0) > 1000 else "raw", why=why)


def _category(column: Column, shown: str) -> Feature | str:
    rows = int(column.there.sum())
    if column.distinct > 0.9 * rows and rows > 100:
        return f"nearly every row has a value of its own ({column.distinct:,} in {rows:,} rows)"
    missing = "" if column.filled == 1 else f", {1 - column.filled:.1%} missing"
    return Feature(why=shown + missing)


def _text(column: Column) -> Feature | str:
    if column.has_commas:
        shown = f"numbers with a decimal comma, such as {column.value(0)!r}"
        return f"{shown}, which cannot be read as numbers: write them with a point"
    texts = [t for t in column.values.slice(0, 20_000).to_pylist() if t]
    shown = f"{column.distinct:,} values"
    for separator, piece in _BREAKS.items():
        if np.mean([separator in text for text in texts]) < 0.2:
            continue
        lists = [re.findall(piece, text) for text in texts]
        words = Counter(word.strip() for parts in lists for word in parts)
        # Lists share their words; one text of several words ("New York") does not break into words used elsewhere.
        if len(words) <= 0.5 * len(texts) and max(map(len, words)) <= 40:
            slots, said = _slots([len(parts) for parts in lists])
            return Feature(slots=slots, separator=separator, why=f"lists of {len(words):,} words in one text; {said}")
    if texts[0].startswith(("http://", "https://")):
        return "addresses of pages: no feature"
    if all(text[0] + text[-1] in ("[]", "{}") for text in texts[:100]):
        return "text of records or lists: no feature as it is"
    long, words = np.mean([(len(text), len(text.split())) for text in texts], axis=0)
    if (long > 40 or (column.distinct > FEW and words >= 3)) and np.mean([" " in t for t in texts]) > 0.5:
        return Feature("text", why=f"sentences of about {words:.0f} words; leave it out if persons are named in it")
    return _category(column, shown)


def _listed(column: Column) -> Feature | str:
    if pa.types.is_nested(column.kind.value_type):
        return "lists of lists or records"
    rows = [v or () for v in column.data.slice(0, 20_000).to_pylist()]
    if pa.types.is_floating(column.kind.value_type):
        sizes = {len(v) for v in rows if v}
        if len(sizes) != 1:
            return f"lists of numbers with a fraction, of {len(sizes)} lengths: no vector, and no categories"
        return Feature("vector", size=sizes.pop(), why="lists of numbers with a fraction, all of one length")
    if not any(rows):
        return "its lists are empty in the sample"
    words = {word for parts in rows for word in parts}
    times = times_of(Column(column.name, pa.chunked_array([pa.array(list(words), column.kind.value_type)])))
    if times is not None and (times.unit is None or set(column.tokens) & TIME_WORDS):
        return "lists of times: a model sees each as one category"
    slots, said = _slots([len(v) for v in rows])
    return Feature(slots=slots, why=f"lists of {len(words):,} values; {said}")


def _slots(sizes: list[int]) -> tuple[int, str]:
    """(slots for lists of such sizes, what they leave out, in words)."""
    high, middle = np.percentile(sizes, 95), np.median(sizes)
    if high <= MOST_SLOTS:
        slots = int(max(high, 2))
        return slots, f"95% of rows have at most {slots}"
    return MOST_SLOTS, f"the first {MOST_SLOTS} are used: half of the rows have {middle:.0f} or more"
