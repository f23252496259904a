# core
"""Runs every compiled function once on a shop of its own, so that no shopper waits for a compiler."""

from __future__ import annotations

import numpy as np

from learner.model import OnlineModel
from learner.serving import ServingModel
from learner.warm import warm_serving
from millrace.contracts import once
from millrace.contracts.events import Item
from millrace.contracts.online import window_fields
from millrace.contracts.schema import Schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.index import ItemIndex
from scorer.rank import Ranker, User
from scorer.recall import CandidateLists, largest, make_lists, recall
from scorer.shelf import Shelf

_TS_MS = 1_700_000_000_000


def warm_up(schema: Schema, half: bool = False) -> None:
    """Compiles what a request and the feeds will call. Touches nothing but objects of its own.

    Args:
        half: products are in bfloat16.
    """
    once.warm_up()
    warm_serving(schema, half)
    builder = FeatureBuilder(schema)
    index, shelf = ItemIndex(builder), Shelf(builder)
    index.put([index.prepare(Item(i, dict.fromkeys(builder.needs("item"), 1))) for i in range(4)])
    rows = np.arange(4)
    keys = np.array([1, 2], np.uint64)
    events = TileStore.of(schema.windows)
    events.add(keys, np.full(2, _TS_MS - 1000, np.int64), np.zeros(2, np.uint8))
    tiles = events.export(keys)
    index.put_tiles(0, keys, tiles)
    index.refresh_hot(_TS_MS)
    index.expire(_TS_MS)
    shelf.follow(lambda: index.changes(_TS_MS))
    ranker = Ranker(builder, shelf)
    made = make_lists(builder, index.columns(rows), index.alive, index.born_ms, index.clicks_a_day)
    lists = CandidateLists.of_arrays(made.arrays())
    user = User.of(builder, 1, {})
    model = _model(schema, half)
    for _ in range(2):
        found = ranker.rank(user, rows, _TS_MS, {}, model)
        record = dict.fromkeys(window_fields(found.keys), tiles[0])  # with each window key of these rows
        user = User(user.columns, user.plain, record, True)
        ranker.placed(found, largest(found.scores, 2), user, rows, _TS_MS, {})
    recall(lists, 2, np.random.default_rng(0), ranker.likings(lists.groups, user, _TS_MS))


def _model(schema: Schema, half: bool) -> ServingModel:
    image, _ = OnlineModel(schema, {}, 0).snapshot()
    return ServingModel.of(schema, {}, image, half=half)
