"""A page's features the plain way: each column, each key and each count by itself, straight from the item index.

The reference for :mod:`scorer.page.rank`, which makes the same in one compiled pass from an item table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from millrace.basics.hashing import U64
from millrace.contracts.online_layout import window_fields
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import counts_of
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import ItemRows
from scorer.page.rank import Features
from scorer.users.userrecord import KnownUser
from tests.scenes.plain_numbers import plain_num


def plain_features(
    index: ItemIndex, user: KnownUser, rows: ItemRows, ts_ms: int, context: Mapping[str, Any] | None = None
) -> Features:
    """Features before anybody knows the page: (n, F), (n, N), (n, K)."""
    builder, n = index.builder, len(rows)
    columns, plain = _inputs(index, user, rows, ts_ms, context)
    columns = {name: column for name, column in columns.items() if name not in late_names(builder)}
    keys = builder.keys(columns, n)
    each = [_counts(index, user, keys[:, k], k, ts_ms) for k in range(keys.shape[1])]
    counts = np.stack(each, axis=1) if each else np.zeros((n, 0, 1, 1), np.uint32)
    num = plain_num(builder, plain, counts, n, ts_ms)
    builder.compare(num, np.zeros(n, np.intp))
    return Features(builder.cat(columns, n), num, keys)


def plain_page(
    index: ItemIndex,
    features: Features,
    order: ItemRows,
    user: KnownUser,
    rows: ItemRows,
    ts_ms: int,
    context: Mapping[str, Any] | None = None,
    offset: int = 0,
) -> Features:
    """Features of the page with its slots: every column of all, the numbers of before."""
    builder, n = index.builder, len(order)
    columns, _ = _inputs(index, user, rows[order], ts_ms, context)
    columns["position"] = builder.position(np.arange(offset, offset + n))
    return Features(builder.cat(columns, n), features.num[order], builder.keys(columns, n))


def late_names(builder: FeatureBuilder) -> set[str]:
    return {f.name for f in builder.schema.fields if f.bias} | {"position"}


def _counts(index: ItemIndex, user: KnownUser, keys: U64, k: int, ts_ms: int) -> Any:
    windows = index.builder.schema.windows
    if index.builder.schema.key_side(windows.keys[k]) == "item":
        return index.counts.at(keys, ts_ms)
    held = [user.tiles.get(field) for field in window_fields(keys)]
    found = counts_of(held, ts_ms, windows.durations, windows.columns, windows.half_lives, len(windows.means))
    return found if index.builder.exposed is None else np.pad(found, ((0, 0), (0, 1), (0, 0)))  # only items' are asked


def plain_of(index: ItemIndex, rows: ItemRows, ts_ms: int) -> dict[str, Any]:
    """Item-side numbers at ``rows``, ages as of ``ts_ms``. (n,) by name"""
    arrays = index.image(0, len(index)).arrays
    out = {name.removeprefix("plain/"): a[rows] for name, a in arrays.items() if name.startswith("plain/")}
    if "age_days" in index.builder.needs("item"):
        out["age_days"] = index.builder.age_days(np.array([ts_ms], np.int64), index.born_ms[rows])
    return out


def _inputs(
    index: ItemIndex, user: KnownUser, rows: ItemRows, ts_ms: int, context: Mapping[str, Any] | None
) -> tuple[dict[str, U64], dict[str, Any]]:
    builder = index.builder
    named, numbers = builder.attributes("context", context or {})
    columns = {**index.columns(rows), **user.columns, **named, **builder.context(np.array([ts_ms], np.int64))}
    constants = {name: np.array([value], np.float32) for name, value in {**user.plain, **numbers}.items()}
    return columns, {**plain_of(index, rows, ts_ms), **constants}
