# core
"""Ranking: features of one user and n items, their scores, the page, and what is logged of it.

The arrays come from :class:`millrace.windows.features.FeatureBuilder`, as they do in replay; this module only collects
its inputs (columns and window counts of both sides) and puts the final positions in. Shapes: n items, F, N, K of the
schema's layout, S spans (W windows, then half-lives), A columns of tiles (actions, then sums).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.errors import StoreError
from millrace.contracts.events import Id
from millrace.contracts.hashing import U64
from millrace.contracts.online import PROFILE, unpack_profile, window_fields, window_keys
from millrace.windows.features import FeatureBuilder
from millrace.windows.likings import ACTION, clicks_a_day
from millrace.windows.tiles import counts_of
from scorer.index import Counts, ItemIndex, ItemRows
from scorer.recall import Groups


class Model(Protocol):
    """What ranking asks of a model: click probabilities, (n,) float32; reads only."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class User:
    """What is known of a user at a request: attributes, and a packed tile list per window key."""

    columns: dict[str, U64]
    plain: dict[str, float]
    tiles: Mapping[bytes, bytes]  # the online store's hash: window field -> tile list
    known: bool
    damaged: bool = False  # the stored profile was no JSON object; served without it

    @classmethod
    def of(cls, builder: FeatureBuilder, user_id: Id, record: Mapping[bytes, bytes]) -> User:
        """A user from the online store's hash; an empty ``record`` is a user whom nobody knows."""
        attributes: dict[str, Any] = {}
        damaged = False
        try:
            attributes = unpack_profile(record.get(PROFILE))
        except StoreError:
            damaged = True
        columns, plain = builder.attributes("user", {**attributes, builder.user_column: user_id})
        return cls(columns, plain, record, bool(record), damaged)


@dataclass(frozen=True, slots=True)
class Features:
    """Feature arrays of n items, as learnt from and as logged."""

    cat: NDArray[np.int64]  # (n, F)
    num: NDArray[np.float32]  # (n, N)
    keys: U64  # (n, K)


class Ranker:
    """Builds features and pages from an index. Holds no state of its own but the schema's column order.

    Args:
        count_error: told of what was survived: ``tiles``, a damaged tile list in a user's record.
    """

    def __init__(
        self, builder: FeatureBuilder, index: ItemIndex, count_error: Callable[[str], None] = lambda _: None
    ) -> None:
        self.builder, self.index, self._count_error = builder, index, count_error
        schema, layout = builder.schema, builder.layout
        windows = schema.windows
        self._read = (windows.days, windows.columns, windows.half_lives, len(windows.means))
        sides = [schema.key_side(key) for key in schema.windows.keys]
        own = set(index.own_keys)
        self._item_keys = [k for k, side in enumerate(sides) if side == "item" and k not in own]
        self._user_keys = [k for k, side in enumerate(sides) if side == "user"]
        # Known only once the page is made: these read as missing while it is ranked.
        self._late = {f.name for f in schema.fields if f.bias} | {"position"}
        self._late_cat = np.array([name in self._late for name in layout.cat_names], np.bool_)
        self._late_keys = [k for k, key in enumerate(schema.windows.keys) if self._late & set(key.columns)]

    def likings(self, groups: tuple[Groups, ...], user: User, ts_ms: int) -> list[tuple[Groups, NDArray[np.float64]]]:
        """How much a user likes each group (:mod:`millrace.windows.likings`). (G,) for each grouping"""
        held = window_keys(user.tiles)
        if not len(held) or ACTION not in self.builder.schema.windows.actions:
            return []
        out = []
        for grouping in groups:
            keys = self.builder.keys({**grouping.columns, **user.columns}, len(grouping.example))[:, grouping.key]
            met = np.flatnonzero(np.isin(keys, held) & (keys != 0))
            liking = np.zeros(len(keys))
            if len(met):
                liking[met] = clicks_a_day(self._user_counts(user, keys[met], ts_ms), self.builder.schema.windows)
            out.append((grouping, liking))
        return out

    def features(self, user: User, rows: ItemRows, ts_ms: int, context: Mapping[str, Any] | None = None) -> Features:
        """Features of the items at ``rows`` for ``user`` at ``ts_ms``, as they are before anybody knows the page."""
        n = len(rows)
        columns, plain = self._inputs(user, rows, ts_ms, context)
        columns = {name: column for name, column in columns.items() if name not in self._late}
        keys = self.builder.keys(columns, n)
        counts = counts_of([None] * keys.size, ts_ms, *self._read)
        counts = counts.reshape(*keys.shape, *counts.shape[1:])
        counts[:, self.index.own_keys] = self.index.own_counts(rows, ts_ms)
        self._fill(counts, keys, self._item_keys, lambda some: self.index.counts(some, ts_ms))
        self._fill(counts, keys, self._user_keys, lambda some: self._user_counts(user, some, ts_ms))
        return Features(self.builder.cat(columns, n), self.builder.num(plain, counts, n, ts_ms), keys)

    def placed(
        self,
        features: Features,
        order: NDArray[np.intp],
        user: User,
        rows: ItemRows,
        ts_ms: int,
        context: Mapping[str, Any] | None = None,
        offset: int = 0,
    ) -> Features:
        """The features of the page ``order`` (positions in ``features``), with its slots, from ``offset`` on, in the
        fields and window keys that were missing when it was ranked. The numbers stay what was scored.

        Args:
            rows: the index rows that ``features`` was made of.
        """
        n = len(order)
        cat, keys = features.cat[order], features.keys[order]
        columns, _ = self._inputs(user, rows[order], ts_ms, context)
        columns["position"] = self.builder.position(np.arange(offset, offset + n))
        late = {name: column for name, column in columns.items() if name in self._late}
        cat[:, self._late_cat] = self.builder.cat(late, n)[:, self._late_cat]
        if self._late_keys:
            keys[:, self._late_keys] = self.builder.keys(columns, n)[:, self._late_keys]
        return Features(cat, features.num[order], keys)

    def _inputs(
        self, user: User, rows: ItemRows, ts_ms: int, context: Mapping[str, Any] | None
    ) -> tuple[dict[str, U64], dict[str, NDArray[Any]]]:
        named, numbers = self.builder.attributes("context", context or {})
        columns = {
            **self.index.columns(rows),
            **user.columns,
            **named,
            **self.builder.context(np.array([ts_ms], np.int64)),
        }
        constants = {name: np.array([value], np.float32) for name, value in {**user.plain, **numbers}.items()}
        return columns, {**self.index.plain(rows, ts_ms), **constants}

    def _fill(self, counts: Counts, keys: U64, which: list[int], read: Any) -> None:
        """Reads each distinct key of the columns ``which`` once: a page has few categories, and one user."""
        if not which:
            return
        distinct, where = np.unique(keys[:, which], return_inverse=True)
        counts[:, which] = read(distinct)[where.reshape(len(keys), len(which))]

    def _user_counts(self, user: User, keys: U64, ts_ms: int) -> Counts:
        held = user.tiles
        blobs = [held.get(field) for field in window_fields(keys)]
        try:
            return counts_of(blobs, ts_ms, *self._read)
        except StoreError:  # rare: find the damaged one, and do without it
            out = counts_of([None] * len(blobs), ts_ms, *self._read)
            for i, blob in enumerate(blobs):
                try:
                    out[i] = counts_of([blob], ts_ms, *self._read)[0]
                except StoreError:
                    self._count_error("tiles")
            return out
