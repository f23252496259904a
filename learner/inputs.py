"""From feature arrays to what a model sees: which id columns go to which table, and how numbers are scaled.

::

    cat (B, F columns) ──► deep fields by embedding width ──► table "w16", "w8" ...   embedding + wide weight
                       └─► bias fields and crosses        ──► table "w0"              wide weight only
    num (B, N)         ──► finite, then raw or log          (the running normalisation is the network's, it is learnt)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from millrace.hashing import U64, combine, salt
from millrace.schema import Layout, Schema

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

_MAX_CROSS_COLUMNS = 16
"""A cross of multi-valued fields crosses their slots; no more combinations than this are made."""


@dataclass(frozen=True, slots=True)
class Group:
    """The id columns of one table. C columns, F fields of embedding width D (0: wide only)."""

    name: str
    width: int
    columns: NDArray[np.intp]  # (C,) columns of cat
    starts: NDArray[np.int32]  # (F + 1,) first column of each field, in this group
    fields: tuple[str, ...]


class Inputs:
    """The input side of a model with this schema.

    Args:
        width: default embedding width; 0 makes every field wide only (logistic regression).
        own_widths: whether a field's own width counts; else all have ``width``.
        squash: every number is fed as its logarithm, whatever the schema says (shares in [0, 1] hardly change).
    """

    def __init__(self, schema: Schema, width: int, own_widths: bool, squash: bool) -> None:
        layout = schema.layout
        self.layout = layout
        # A model that knows nothing yet answers with the schema's prior rate, not with one half: a young model would
        # else have to walk its intercept there first, and be far too sure of clicks on the way.
        rate = min(max(schema.windows.prior_rate, 0.001), 0.999)
        self.prior_logit = math.log(rate / (1 - rate))
        by_width: dict[int, list[int]] = {}
        for i, field in enumerate(layout.cat_fields):
            own = 0 if field.bias or not width else (field.width or width) if own_widths else width
            by_width.setdefault(own, []).append(i)
        self.crosses = _crosses(schema)
        if self.crosses:
            by_width.setdefault(0, [])
        self.groups = tuple(_group(layout, w, by_width[w]) for w in sorted(by_width, reverse=True))
        self.deep = tuple(g for g in self.groups if g.width)
        self.log_columns = np.arange(layout.N) if squash else _log_columns(schema)

    @property
    def numbers(self) -> int:
        """N: numeric columns that the network sees."""
        return self.layout.N

    def ids(self, group: Group, cat: Ids) -> Ids:
        """The id columns of a group's table. (B, C), crosses included in the wide-only one"""
        own = cat[:, group.columns]
        if group.width or not self.crosses:
            return own
        unsigned: U64 = np.ascontiguousarray(cat).view(np.uint64)
        made: list[Ids] = [
            combine(seed, *(unsigned[:, c] for c in columns)).view(np.int64) for seed, columns in self.crosses
        ]
        return np.column_stack([own, *made])

    def clean(self, num: Floats) -> tuple[Floats, int]:
        """Numbers with log columns as ``sign(x) log1p(|x|)`` and what is not finite as 0; how many were not."""
        bad = 0
        if not np.isfinite(num.sum(dtype=np.float64)):
            finite = np.isfinite(num)
            bad = int(finite.size - finite.sum())
            num = np.where(finite, num, np.float32(0))
        if len(self.log_columns):
            whole = len(self.log_columns) == num.shape[1]
            part = num if whole else num[:, self.log_columns]
            part = np.copysign(np.log1p(np.abs(part)), part)
            if whole:
                num = part
            else:
                num = num.copy()
                num[:, self.log_columns] = part
        return np.ascontiguousarray(num, np.float32), bad


def _group(layout: Layout, width: int, fields: list[int]) -> Group:
    columns: list[int] = []
    starts = [0]
    for i in fields:
        first = layout.cat_starts[i]
        columns.extend(range(first, first + layout.cat_fields[i].slots))
        starts.append(len(columns))
    names = tuple(layout.cat_fields[i].name for i in fields)
    return Group(f"w{width}", width, np.array(columns, np.intp), np.array(starts, np.int32), names)


def _crosses(schema: Schema) -> list[tuple[np.uint64, tuple[int, ...]]]:
    """Salt and columns of cat of each crossed column."""
    layout = schema.layout
    at = {f.name: range(s, s + f.slots) for f, s in zip(layout.cat_fields, layout.cat_starts, strict=True)}
    made: list[tuple[np.uint64, tuple[int, ...]]] = []
    for names in schema.crosses:
        seed = salt("cross", *names)
        combinations = list(product(*(at[n] for n in names)))[:_MAX_CROSS_COLUMNS]
        made.extend((seed, columns) for columns in combinations)
    return made


def _log_columns(schema: Schema) -> NDArray[np.intp]:
    """Columns of num that are fed as logarithms: plain fields that say so, and window counts (rates are raw)."""
    layout = schema.layout
    chosen = [i for i, f in enumerate(layout.plain_fields) if f.transform == "log"]
    if schema.windows.transform == "log":
        chosen += [i for i in range(layout.window_start, layout.N) if "_rate." not in layout.num_names[i]]
    return np.array(chosen, np.intp)
