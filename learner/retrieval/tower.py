# core
"""The two towers of retrieval as they serve: an item's vector, and the query of a user.

An item has a vector v_i = [factors, bias], a user a query q_u = [factors, 1], (W,) each. They are sums over rows of
"retrieval_item" and "retrieval_user", by feature x: factors e_x and bias w_x. The score s(u, i) = q_u . v_i is a sum
over the pairs of a feature of the user and one of the item, and the item's bias. So a new item has a vector, and a new
user a query, from their attributes at once. With ``m`` the mean of the factors of the last clicks (RECENT at most, 0 if
there are none), and a map ``M`` (D, D)::

    q_u = sum over x of u: a_x e_x  +  GAIN m + m M          a: 1, but OWN_USER of the user's own id
    v_i = sum over x of i: a_x e_x                           a: 1, but OWN_ITEM of the item's own id
    bias = sum over x of i: w_x

The ids of a field with several values share its ``a``. A number is two features, the knots on both sides of it.

:class:`Tower` holds one retrieval version, with the tables as the learner publishes them. :class:`UserTower` is the
user's half of it, in arrays that processes share. learner/retrieval/retrieval.py learns the same formula.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from learner.network.models.spec import Spec
from learner.retrieval import retrievalkernels
from learner.tables import table_kernels
from learner.tables.row_index import Ids, Index, RowNumbers
from learner.tables.table import as_read, distinct
from millrace.basics.errors import SettingError
from millrace.basics.hashing import combine, salt
from millrace.contracts.schema import DERIVED, Schema
from millrace.versions.image import Array, Image, TableRows

Floats = NDArray[np.float32]

USER, ITEM = "retrieval_user", "retrieval_item"
RECENT = 16
"""The most last clicks of a user that count."""
GAIN = np.float32(0.5)
"""Share of their mean in a query before anything is learnt."""
OWN_USER, OWN_ITEM = 0.2, 0.2
"""Weights of the factors of own ids: with few clicks each, they should move less than attributes do, at the same
rate."""
_KNOTS = 65
"""Of a number: log(1 + |x|) up to 16 on both sides of 0."""
_LEAST = 4


class Sides:
    """Which columns describe a user, and which an item. Raises SettingError where the schema has neither."""

    def __init__(self, schema: Schema) -> None:
        if not Sides.fits(schema):
            raise SettingError(
                f"schema '{schema.name}' has no categorical field of the user, or no field of the item",
                "add one, or set retrieval_width to 0 in the spec",
            )
        layout = schema.layout
        user, own = schema.ids
        self.user_columns, self.user_starts, self.user_share, users = _columns(schema, "user", user, OWN_USER)
        self.own_user = users.index(user) if user in users else -1
        self.item_columns, self.item_starts, self.item_share, names = _columns(schema, "item", own, OWN_ITEM)
        self.own_column = names.index(own) if own in names else -1
        """The place of the item's own id among its columns; -1: there is none."""
        self.plain_columns = np.array(layout.item_numbers, np.intp)
        plain_names = [layout.plain_fields[i].name for i in self.plain_columns]
        self.knots = np.zeros((len(plain_names), _KNOTS), np.int64)  # (P, K)
        for row, name in zip(self.knots, plain_names, strict=True):
            row[:] = _made("retrieval number", name, _KNOTS)

    @staticmethod
    def fits(schema: Schema) -> bool:
        """Whether users and items of this schema have any column for a vector."""
        user = any(f.of == "user" and f.kind != "numeric" and not f.bias for f in schema.fields)
        return user and any(f.of == "item" and not f.bias for f in schema.fields)

    @property
    def features(self) -> int:
        """S, features of an item: its ids, and two for each number."""
        return len(self.item_columns) + 2 * len(self.plain_columns)

    def item_features(self, cat: Ids, plain: Floats) -> tuple[Ids, Floats]:
        """Ids and weights of items, from their columns (n, C) and numbers (n, P). (n, S) each"""
        ids = np.empty((len(cat), self.features), np.int64)
        weights = np.empty(ids.shape, np.float32)
        given = as_read(cat), as_read(plain)
        retrievalkernels.item_features(*given, self.item_starts, self.item_share, self.knots, ids, weights)
        return ids, weights

    def bias_weights(self, weights: Floats) -> Floats:
        """Weights of the biases of items' features, from those of the factors: own ids count whole. (n, S)"""
        if self.own_column < 0:
            return weights
        weights = weights.copy()
        weights[:, self.own_column] = weights[:, self.own_column] > 0
        return weights

    def user_features(self, cat: Ids) -> tuple[Ids, Floats]:
        """Ids and weights of users, from their columns (n, C). (n, C) each"""
        ids, weights = np.empty(cat.shape, np.int64), np.empty(cat.shape, np.float32)
        retrievalkernels.user_features(as_read(cat), self.user_starts, self.user_share, ids, weights)
        return ids, weights


def map_ids(width: int) -> Ids:
    """Ids of the rows of the map M, which lie in the item's table. (D,)"""
    return _made("retrieval map", "recent", width)


def factors_of(spec: Spec) -> int:
    """D, the width of the factors: one column of a vector is the bias. Raises SettingError where nothing is left."""
    if spec.retrieval_width < _LEAST:
        raise SettingError(f"retrieval_width {spec.retrieval_width}", f"give at least {_LEAST}, or 0 for no head")
    return spec.retrieval_width - 1


class Tower:
    """One retrieval version: vectors of items, and the arrays of a :class:`UserTower`. One thread at a time. Raises
    SettingError where the head does not fit the schema, or the spec has no width for it."""

    def __init__(self, schema: Schema, spec: Spec) -> None:
        self.sides = Sides(schema)
        self.width = factors_of(spec)  # D
        self._tables = {name: Index({"embedding": self.width, "wide": 1}, spec.max_rows) for name in (USER, ITEM)}

    def __len__(self) -> int:
        return sum(len(index) for index in self._tables.values())

    def apply(self, image: Image) -> None:
        """Takes a snapshot's part or a delta. Raises KeyError for a missing column, ValueError for another width."""
        for name, index in self._tables.items():
            change = image.tables.get(name)
            if change is None:
                continue
            if change.columns["embedding"].shape[1:] != (self.width,) or change.columns["wide"].ndim != 1:
                raise ValueError(f"table '{name}' has rows of another width than {self.width}")
            index.remove(as_read(change.removed))
            rows = index.find_or_add(as_read(change.ids))
            table_kernels.scatter(
                index.data, index.at["embedding"], rows, as_read(_floats(change.columns["embedding"]))
            )
            wide = as_read(_floats(change.columns["wide"]).reshape(-1, 1))
            table_kernels.scatter(index.data, index.at["wide"], rows, wide)

    def item_vectors(self, cat: Ids, plain: Floats) -> Floats:
        """Vectors of n items: D factors, then the bias. (n, W)

        Args:
            cat: ids of the item's columns, in their order in the layout, (n, C); 0 is missing.
            plain: the item's numbers in their order in the layout, (n, P). ``age_days`` as it is now.
        """
        out = np.empty((len(cat), self.width + 1), np.float32)
        ids, weights = self.sides.item_features(cat, plain)
        unique, _, inverse = distinct(ids)
        values = self._rows(ITEM, unique)
        retrievalkernels.pool(values, inverse, weights, out)
        bias = np.empty(len(cat), np.float32)
        retrievalkernels.pool_wide(
            np.ascontiguousarray(values[:, self.width]), inverse, self.sides.bias_weights(weights), bias
        )
        out[:, self.width] = bias
        return out

    def user_arrays(self) -> dict[str, Array]:
        """The arguments of :meth:`UserTower.of_arrays`. They share no memory with this."""
        index = self._tables[USER]
        rows = index.rows()
        embedding = np.empty((len(rows), self.width), np.float32)
        table_kernels.gather(index.data, index.at["embedding"], rows, embedding)
        matrix = self._rows(ITEM, map_ids(self.width))[:, : self.width]
        return {
            "user/ids": index.ids_of(rows),
            "user/vectors": embedding,
            "user/map": np.ascontiguousarray(matrix),
            "user/starts": self.sides.user_starts,
            "user/share": self.sides.user_share,
        }

    def table(self, name: str) -> tuple[Ids, Floats, Floats]:
        """Ids in ascending order, embeddings (n, D) and biases (n,) of a table. A copy, for proofs."""
        index = self._tables[name]
        rows = index.rows()
        ids = index.ids_of(rows)
        values = self._rows(name, ids)
        return ids, values[:, : self.width].copy(), values[:, self.width].copy()

    def copy(self) -> Tower:
        """The same version with tables of its own. It copies no arrays: they are reserved for many more rows."""
        other = copy.copy(self)
        other._tables = {
            name: Index({"embedding": self.width, "wide": 1}, index.max_rows) for name, index in self._tables.items()
        }
        tables = {}
        for name in self._tables:
            ids, embedding, wide = self.table(name)
            tables[name] = TableRows(ids, {"embedding": embedding, "wide": wide})
        other.apply(Image({}, tables))
        return other

    def _rows(self, name: str, ids: Ids) -> Floats:
        """Embedding and bias of ids, zeros where there is no row. (n, D + 1)"""
        index = self._tables[name]
        out = np.empty((len(ids), self.width + 1), np.float32)
        rows: RowNumbers = index.find(as_read(ids))
        table_kernels.gather(index.data, index.at["embedding"], rows, out)  # the bias lies behind the factors
        return out


class UserTower:
    """The user's half of one retrieval version. Reads only; any number of processes may share the arrays.

    Args:
        ids: of the rows, ascending, (n,).
        vectors: (n, D).
        matrix: M, (D, D).
        starts: first column of each of the user's fields, (F + 1,).
        share: weight of each field, (F,).
    """

    def __init__(self, ids: Ids, vectors: Floats, matrix: Floats, starts: NDArray[np.int32], share: Floats) -> None:
        self._ids, self._vectors, self._matrix = ids, vectors, matrix
        self._share = share
        self.width = vectors.shape[1]  # D
        self._field = np.repeat(np.arange(len(share)), np.diff(starts))  # (k,)

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> UserTower:
        """The inverse of :meth:`Tower.user_arrays`. The arrays are not copied."""
        return cls(*(arrays[f"user/{name}"] for name in ("ids", "vectors", "map", "starts", "share")))

    def query(self, ids: Ids, recent: Floats, age_ms: Ids) -> Floats:
        """The query of one user, (W,): its product with an item's vector is the item's score.

        Args:
            ids: of the user's columns of ``cat``, in their order in the layout, (k,); 0 is missing.
            recent: vectors (h, W) of the known items clicked last, newest first.
            age_ms: the ages of these clicks, (h,). Unused so far.
        """
        out = np.zeros(self.width + 1, np.float32)
        out[self.width] = 1
        there = (ids != 0) & (self._share[self._field] > 0)
        if len(self._ids):
            at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
            count = np.bincount(self._field[there], minlength=len(self._share))
            for c in np.flatnonzero(there & (self._ids[at] == ids)).tolist():
                out[: self.width] += self._vectors[at[c]] * (
                    self._share[self._field[c]] / np.float32(count[self._field[c]])
                )
        if len(recent):
            mean = recent[:RECENT, : self.width].mean(axis=0, dtype=np.float32)
            out[: self.width] += GAIN * mean + mean @ self._matrix
        return out


def _columns(
    schema: Schema, side: str, own: str, own_share: float
) -> tuple[NDArray[np.intp], NDArray[np.int32], Floats, tuple[str, ...]]:
    """Columns of ``cat`` of one side; where each field starts among them; its weight; the columns' names."""
    layout = schema.layout
    columns: list[int] = []
    starts, share, names = [0], [], []
    for field, first in zip(layout.cat_fields, layout.cat_starts, strict=True):
        if field.of == side:
            columns += range(first, first + field.slots)
            starts.append(len(columns))
            unused = field.bias or (side == "user" and field.name in DERIVED)  # last clicks have a part of their own
            share.append(0.0 if unused else own_share if field.name == own else 1.0)
            names += [field.name] * field.slots
    return np.array(columns, np.intp), np.array(starts, np.int32), np.array(share, np.float32), tuple(names)


def _made(kind: str, name: str, count: int) -> Ids:
    """Ids of features that are not in ``cat``. (count,)"""
    ids: Ids = combine(salt(kind, name), np.arange(1, count + 1, dtype=np.uint64)).view(np.int64)
    return ids


def _floats(array: Array) -> Floats:
    return np.ascontiguousarray(array, np.float32)
