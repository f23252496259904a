# core
"""From feature arrays to the model's input: which id columns go to which table, and how numbers are scaled.

::

    cat (B, F columns) ──► deep fields by embedding width ──► table "w16", "w8" ...   embedding + wide weight
                       └─► bias fields and crosses        ──► table "w0"              wide weight only
    num (B, N)         ─┬► finite, then raw or log          (the network learns the running normalisation)
                        └► columns with transform "bucket"  ──► one more id column each, as a deep field
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.network.models.base import Columns
from learner.tables import table_kernels
from millrace.basics.hashing import U64, combine, mix, salt
from millrace.contracts.schema import ITEM_AGES, LAST, Schema
from millrace.versions.image import HEAD
from millrace.windows.lastactions import BUCKET_HASHES

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

AGE_STEP = 0.25
"""Days. Where all goods came at one time, as with a new catalogue, their ages are one number, in whole hours. Its
variance is nearly 0 within an hour: then each full hour would be a step of ten deviations, for all goods at once."""

_MAX_CROSS_COLUMNS = 16
"""A cross of multi-valued fields crosses their slots, up to this many combinations."""


@dataclass(frozen=True, slots=True)
class TableColumns:
    """The id columns of one table. C columns, F fields of embedding width D (0: wide only). A user's last clicks read
    the items' rows, as their last field: embeddings alone, since a wide weight is that of the item on the page."""

    name: str
    width: int
    lent: int  # of the C columns, the last ones: they read rows that another field's wide weights are of
    columns: NDArray[np.intp]  # (C,) columns of cat, past its F columns those of the buckets
    starts: NDArray[np.int32]  # (F + 1,) first column of each field, in this group
    fields: tuple[str, ...]
    attended: int  # of the fields, the last ones: they are pooled by attention
    texts: NDArray[np.bool_]  # (F - attended,) fields that are pooled by how rare their words are

    @property
    def table_width(self) -> int:
        """D, and with texts one more: a count (learner/tables/table.py)."""
        return self.width + int(self.texts.any())

    @property
    def meant(self) -> NDArray[np.int32]:
        """The starts of the fields that are pooled by their mean."""
        return self.starts[: len(self.starts) - self.attended]


class Content(NamedTuple):
    """A text of the item whose pooled embedding is added to that of the item's id, which has its width. So an item
    begins at what its words say, and departs from it as it learns."""

    group: int
    text: int  # its first column in the network's input
    item: int  # that of the item's id
    width: int  # D


@dataclass(frozen=True, slots=True)
class Attended:
    """A field that is pooled by attention (learner/ranker/attended.py)."""

    name: str
    number: int  # among these fields
    group: int  # of its table, which is the item's
    width: int  # D
    query: int  # column of the item's id in the group
    first: int  # column of its first slot in the group
    slots: int  # L
    at: int  # its first column in the network's input
    age_group: int  # of the table of its ages
    age_columns: tuple[int, int]  # in that group
    ages: Ids  # (A,) feature ids of the ages, the youngest first
    cat: NDArray[np.intp]  # (L,) columns of cat with the ages

    def bucket(self, ids: Ids) -> NDArray[np.intp]:
        """The buckets of feature ids, from 1; 0: it is no age. Same shape"""
        order = np.argsort(self.ages)
        at = np.minimum(np.searchsorted(self.ages, ids, sorter=order), len(order) - 1)
        found: NDArray[np.intp] = np.where(self.ages[order[at]] == ids, order[at] + 1, 0)
        return found

    def bias(self, ages: Floats, buckets: NDArray[np.intp]) -> Floats:
        """a of each slot, from the network's ``ages`` (fields, A) and :meth:`bucket`; 0 without an age. Same shape"""
        return np.append(np.float32(0), ages[self.number])[buckets]


class Inputs:
    """The input side of a model with this schema.

    Args:
        width: default embedding width; 0 makes every field wide only (logistic regression).
        own_widths: whether a field's own width counts; else all have ``width``.
        squash: every number is fed as its logarithm, whatever the schema has (shares in [0, 1] hardly change); numbers
            among candidates are fed as they are.
        buckets: Q, quantile buckets of a number with the transform "bucket".
        bucket_width: embedding width of buckets whose field names none.
    """

    def __init__(
        self, schema: Schema, width: int, own_widths: bool, squash: bool, buckets: int = 10, bucket_width: int = 4
    ) -> None:
        layout = schema.layout
        self.layout = layout
        self.outcomes = tuple(one.name for one in schema.outcome)
        self.heads = tuple(name + HEAD for name in self.outcomes)
        # A model that has learnt nothing predicts the schema's prior rate, not one half. Otherwise a young model would
        # first have to move its intercept there, and would predict far too many clicks on the way.
        rate = min(max(schema.windows.prior_rate, 0.001), 0.999)
        self.prior_logit = math.log(rate / (1 - rate))
        by_width: dict[int, list[tuple[str, int, int]]] = {}  # name, first column and columns of each field
        homes: dict[str, int] = {}
        for field, first in zip(layout.cat_fields, layout.cat_starts, strict=True):
            own = 0 if field.bias or not width else (field.width or width) if own_widths else width
            homes[field.name] = own
            if field.name not in LAST:
                by_width.setdefault(own, []).append((field.name, first, field.slots))
        self.bucket_columns = _bucket_columns(schema)  # (C,) of num
        self.bucket_names = tuple(layout.num_names[c] for c in self.bucket_columns.tolist())
        for j, (column, name) in enumerate(zip(self.bucket_columns.tolist(), self.bucket_names, strict=True)):
            named = layout.plain_fields[column].width if column < layout.window_start else None
            own = (named or bucket_width) if own_widths and width else width
            by_width.setdefault(own, []).append((name, layout.F + j, 1))
        self.bucket_ids = _bucket_ids(self.bucket_names, buckets)  # (C, Q)
        self.crosses = _crosses(schema)
        self.cross_names = schema.crosses
        if self.crosses:
            by_width.setdefault(0, [])
        lent: dict[int, list[tuple[str, int, int]]] = {}
        for field, first in zip(layout.cat_fields, layout.cat_starts, strict=True):
            if field.name in LAST and homes[layout.item]:
                lent.setdefault(homes[layout.item], []).append((field.name, first, field.slots))
        attended = {f.name for f in schema.fields if f.pool == "attention"}
        texts = {f.name for f in schema.fields if f.kind == "text"}
        self.groups = tuple(
            _group(w, by_width[w], lent.get(w, []), attended, texts) for w in sorted(by_width, reverse=True)
        )
        self.deep = tuple(g for g in self.groups if g.width)
        homes_of_item = ((k, g) for k, g in enumerate(self.groups) if layout.item in g.fields)
        self.item = next(((k, int(g.starts[g.fields.index(layout.item)])) for k, g in homes_of_item), None)
        """The group and the column in it that have the item's id."""
        ends = np.cumsum([0, *(len(g.fields) * g.width for g in self.groups)]).tolist()
        self.spans = tuple(pairwise(ends))  # of each group's embeddings, all side by side
        self.deep_columns: int = ends[-1]
        self.contents = tuple(self._contents(schema))
        self.attended = tuple(self._attended(schema))
        self.plain_columns = np.setdiff1d(np.arange(layout.N), self.bucket_columns)  # of num, those fed as numbers
        self.number_names = tuple(layout.num_names[c] for c in self.plain_columns.tolist())
        chosen = np.arange(layout.among_start) if squash else _log_columns(schema)
        chosen = np.intersect1d(chosen, self.plain_columns)
        self.log_columns = np.searchsorted(self.plain_columns, chosen)
        self.one_event = self.plain(_one_event(schema)[None])[0]
        """(P,) by how much one event can move each number that the network sees; 0 where this is unknown."""

    def _contents(self, schema: Schema) -> Iterator[Content]:
        if self.item is None:
            return
        k, group = self.item[0], self.groups[self.item[0]]
        at, own = self.spans[k][0], group.fields.index(self.layout.item)
        of_item = {f.name for f in schema.fields if f.of == "item"}
        for f in np.flatnonzero(group.texts).tolist():
            if group.fields[f] in of_item:
                yield Content(k, at + f * group.width, at + own * group.width, group.width)

    def _attended(self, schema: Schema) -> Iterator[Attended]:
        layout = self.layout
        fields = {f.name: f for f in layout.cat_fields}
        at = dict(zip(fields, layout.cat_starts, strict=True))
        home = {name: (k, f) for k, g in enumerate(self.groups) for f, name in enumerate(g.fields)}
        wanted = [f for f in schema.fields if f.pool == "attention" and f.name in home]
        for number, field in enumerate(wanted):
            (k, f), (a, beside), (_, item) = home[field.name], home[f"{field.name}_age"], home[layout.item]
            group, ages, age = self.groups[k], self.groups[a], fields[f"{field.name}_age"]
            yield Attended(
                field.name,
                number,
                k,
                group.width,
                int(group.starts[item]),
                int(group.starts[f]),
                field.slots,
                self.spans[k][0] + f * group.width,
                a,
                (int(ages.starts[beside]), int(ages.starts[beside + 1])),
                mix(layout.field_salt(age), BUCKET_HASHES).view(np.int64),
                at[age.name] + np.arange(age.slots),
            )

    @property
    def numbers(self) -> int:
        """Numeric columns that the network sees: N but those in buckets."""
        return len(self.plain_columns)

    @property
    def columns(self) -> Columns:
        shallow = [f for g in self.groups if not g.width for f in g.fields]
        crosses = ["*".join(names) for names in self.cross_names]
        fields, widths = tuple(g.fields for g in self.deep), tuple(g.width for g in self.deep)
        attended = tuple(field.name for field in self.attended)
        return Columns(
            fields, widths, self.number_names, self.bucket_names, (*shallow, *crosses), attended, self.outcomes
        )

    def ids(self, group: TableColumns, cat: Ids) -> Ids:
        """The id columns of a group's table, crosses included in the wide-only one. (B, C)"""
        own = cat[:, group.columns]
        if group.width or not self.crosses:
            return own
        unsigned: U64 = np.ascontiguousarray(cat).view(np.uint64)
        made: list[Ids] = [
            combine(seed, *(unsigned[:, c] for c in columns)).view(np.int64) for seed, columns in self.crosses
        ]
        return np.column_stack([own, *made])

    def bucketed(self, cat: Ids, num: Floats, edges: Floats) -> Ids:
        """``cat`` with one more column for each number in buckets: the id of its bucket, (B, F + C). ``edges``
        (C, Q - 1), ascending: x is in bucket ``|{k: edges_k <= x}|``. Infinite edges are not known yet: every id is
        missing (0) then. ``num`` (B, N) must be finite."""
        if not len(self.bucket_columns):
            return cat
        wide = np.empty((len(cat), cat.shape[1] + len(self.bucket_columns)), np.int64)
        wide[:, : cat.shape[1]] = cat
        table_kernels.buckets(num, self.bucket_columns, edges, self.bucket_ids, wide[:, cat.shape[1] :])
        return wide

    def plain(self, num: Floats) -> Floats:
        """What the network sees of finite numbers: log columns as ``sign(x) log1p(|x|)``, none that is in buckets."""
        if len(self.bucket_columns):
            num = num[:, self.plain_columns]
        if len(self.log_columns):
            whole = len(self.log_columns) == num.shape[1]
            part = num if whole else num[:, self.log_columns]
            part = np.copysign(np.log1p(np.abs(part)), part)
            if whole:
                num = part
            else:
                num = num.copy()
                num[:, self.log_columns] = part
        return np.ascontiguousarray(num, np.float32)


def finite(num: Floats) -> tuple[Floats, int]:
    """Numbers (B, N) with 0 in place of what is not finite; how many were not."""
    known = np.isfinite(num)
    return (num, 0) if known.all() else (np.where(known, num, np.float32(0)), int((~known).sum()))


def _group(
    width: int,
    fields: list[tuple[str, int, int]],
    lent: list[tuple[str, int, int]],
    attended: set[str],
    texts: set[str],
) -> TableColumns:
    columns: list[int] = []
    starts = [0]
    lent = sorted(lent, key=lambda field: field[0] in attended)
    for _, first, slots in fields + lent:
        columns.extend(range(first, first + slots))
        starts.append(len(columns))
    names, more = tuple(name for name, _, _ in fields + lent), sum(slots for _, _, slots in lent)
    last = sum(name in attended for name in names)
    rare = np.array([width > 0 and name in texts for name in names[: len(names) - last]], np.bool_)
    at, ends = np.array(columns, np.intp), np.array(starts, np.int32)
    return TableColumns(f"w{width}", width, more, at, ends, names, last, rare)


def _bucket_columns(schema: Schema) -> NDArray[np.intp]:
    """Columns of num that are fed as quantile buckets: plain fields that say so, and all window statistics."""
    layout = schema.layout
    chosen = [i for i, f in enumerate(layout.plain_fields) if f.transform == "bucket"]
    if schema.windows.transform == "bucket":
        chosen += range(layout.window_start, layout.among_start)
    return np.array(chosen, np.intp)


def _bucket_ids(names: tuple[str, ...], buckets: int) -> Ids:
    """The feature id of each column's buckets, (C, Q)."""
    ids = np.empty((len(names), buckets), np.int64)
    for row, name in zip(ids, names, strict=True):
        row[:] = combine(salt("bucket", name), np.arange(1, buckets + 1, dtype=np.uint64)).view(np.int64)
    return ids


def _crosses(schema: Schema) -> list[tuple[np.uint64, tuple[int, ...]]]:
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
        chosen += [i for i in range(layout.window_start, layout.among_start) if "_rate." not in layout.num_names[i]]
    return np.array(chosen, np.intp)


def _one_event(schema: Schema) -> Floats:
    """By how much the first event can move each column of num: a count by 1, a smoothed rate by ``1 / (1 + s)`` (s: the
    prior weight). An age moves by :data:`AGE_STEP`. 0 for other plain numbers and means, whose units are unknown, and
    among candidates. (N,)"""
    windows, layout = schema.windows, schema.layout
    moved = np.zeros(layout.N, np.float32)
    actions = len(windows.actions)
    block = moved[layout.window_start : layout.among_start].reshape(-1, 2 * actions - 1 + len(windows.means))
    block[:, :actions] = 1
    block[:, actions : 2 * actions - 1] = 1 / (1 + windows.prior_weight)
    for column, plain in enumerate(layout.plain_fields):
        if plain.name in ITEM_AGES:
            moved[column] = AGE_STEP
    return moved
