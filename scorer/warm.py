# core
"""Runs every compiled function once on a shop of its own, so that no shopper waits for a compiler."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.warm import warm_tables
from millrace.contracts import once
from millrace.contracts.events import Item
from millrace.contracts.online import window_fields
from millrace.contracts.schema import Schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.index import ItemIndex
from scorer.rank import Ranker, User
from scorer.recall import largest, make_lists, recall

_TS_MS = 1_700_000_000_000


def warm_up(schema: Schema) -> None:
    """Compiles what a request and the feeds will call. Touches nothing but objects of its own."""
    once.warm_up()
    warm_tables()
    builder = FeatureBuilder(schema)
    index = ItemIndex(builder)
    index.put([index.prepare(Item(i, {})) for i in range(4)])
    rows = np.arange(4)
    keys = np.array([1, 2], np.uint64)
    events = TileStore.of(schema.windows)
    events.add(keys, np.full(2, _TS_MS - 1000, np.int64), np.zeros(2, np.uint8))
    tiles = events.export(keys)
    index.put_tiles(0, keys, tiles)
    index.refresh_hot(_TS_MS)
    index.expire(_TS_MS)
    user = User.of(builder, 1, {})
    ranker = Ranker(builder, index)
    user = User(user.columns, user.plain, _every_key(ranker, user, rows, tiles[0]), True)
    features = ranker.features(user, rows, _TS_MS)
    ranker.placed(features, largest(features.num[:, :1].sum(axis=1), 2), user, rows, _TS_MS)
    lists = make_lists(builder, index.columns(rows), index.alive, index.born_ms, index.clicks_a_day)
    recall(lists, 2, np.random.default_rng(0), ranker.likings(lists.groups, user, _TS_MS))


def _every_key(ranker: Ranker, user: User, rows: NDArray[np.intp], tile: bytes) -> dict[bytes, bytes]:
    """A record that holds ``tile`` under each window key of these rows, so that reading it is warmed as well."""
    keys = ranker.features(user, rows, _TS_MS).keys
    return dict.fromkeys(window_fields(keys), tile)
