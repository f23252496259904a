# core
"""Runs every compiled function once on a small shop of its own, so no request waits for a compiler."""

from __future__ import annotations

import numpy as np

from learner.network.models.spec import read_spec
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import Sides, Tower
from learner.role.learner_warmup import warm_serving
from learner.serving.serving_model import ServingModel
from millrace.basics.hashing import value_hash
from millrace.contracts import pagepack
from millrace.contracts.coclick_message import DAYS, Lists
from millrace.contracts.events import Item
from millrace.contracts.online_layout import window_fields
from millrace.contracts.schema import Schema
from millrace.versions.image import RETRIEVAL_TABLES, Image, TableRows, split
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import ItemTable, TableForm
from scorer.page import page_filters
from scorer.page.rank import Ranker
from scorer.recall import nearest
from scorer.recall.candidate_lists import NO_ROWS, Allowed, CandidateLists, Shares, largest, make_lists, recall
from scorer.recall.neighbours import CoClickFeed, Neighbours
from scorer.users.userrecord import KnownUser

_TS_MS = 1_700_000_000_000
_WIDTH = 8


def warm_up(schema: Schema) -> None:
    """Compiles what a request and the feeds will call. Touches no shared objects."""
    pagepack.warm_up()
    warm_serving(schema)
    builder = FeatureBuilder(schema)
    index, items = ItemIndex(builder), ItemTable(builder)
    index.put([index.prepare(Item(i, dict.fromkeys(builder.needs("item"), 1))) for i in range(4)])
    rows = np.arange(4)
    keys = np.array([1, 2], np.uint64)
    events = TileStore.of(schema.windows)
    events.add(keys, np.full(2, _TS_MS - 1000, np.int64), np.zeros(2, np.uint8))
    tiles = events.export(keys)
    index.put_tiles(0, keys, tiles)
    index.refresh_hot(_TS_MS)
    index.counts.expire(_TS_MS)
    items.follow(lambda: index.changes(_TS_MS))
    ranker = Ranker(builder, items)
    made = make_lists(builder, index.columns(rows), index.alive, index.born_ms, index.heat)
    lists = CandidateLists.of_arrays(made.arrays())
    user = KnownUser.of(builder, 1, {})
    model = _model(schema)
    _warm_vectors(schema)
    _warm_neighbours()
    for _ in range(2):
        found = ranker.rank(user, rows, _TS_MS, {}, model)
        record = dict.fromkeys(window_fields(found.keys), tiles[0])  # with each window key of these rows
        user = KnownUser(user.columns, user.plain, record)
        ranker.placed(found, largest(found.scores, 2), user, rows, _TS_MS, {})
    shares = Shares.of({"vectors": 0.2, "liked": 0.2, "coclicked": 0.1, "hot": 0.2, "new": 0.2, "random": 0.1})
    liked = [(groups, np.ones_like(affinity)) for groups, affinity in ranker.affinities(lists.groups, user, _TS_MS)]
    passing = Allowed(items.alive.copy(), rows.astype(np.int32))
    for bought, allowed in ((NO_ROWS, None), (rows[:1], None), (rows[:1], passing)):
        recall(
            lists, shares, 2, 0,
            vectors=rows, liked=liked, coclicked=rows, bought=bought, alive=items.alive,
            allowed=allowed, born_ms=items.rows.born_ms,
        )  # fmt: skip
    page_filters.warm_up(ranker)


def _warm_neighbours() -> None:
    merged, one = CoClickFeed(), np.ones(1, np.uint8)
    merged.know([1, 2])
    hashes = np.array([value_hash(1), value_hash(2)], np.uint64)
    merged.take(0, Lists(1, hashes[:1], one, hashes[1:], np.ones((1, DAYS), np.uint16)))
    Neighbours.of_arrays(merged.arrays(1)).of(np.arange(1), 2)


def _warm_vectors(schema: Schema) -> None:
    nearest.warm_up(_WIDTH)
    if Sides.fits(schema):
        tower, builder = Tower(schema, read_spec({"retrieval_width": _WIDTH, "max_rows": 64})), FeatureBuilder(schema)
        form = TableForm(builder)
        columns = {"embedding": np.ones((2, _WIDTH - 1), np.float32), "wide": np.ones(2, np.float32)}
        rows = TableRows(np.arange(1, 3), columns)
        tower.apply(Image({}, dict.fromkeys(RETRIEVAL_TABLES, rows)))
        tower.item_vectors(
            np.ones((2, len(form.cat_columns)), np.int64), np.ones((2, len(form.plain_columns)), np.float32)
        )
        tower.user_arrays()


def _model(schema: Schema) -> ServingModel:
    image, _ = OnlineModel(schema, {}, 0).snapshot()
    return ServingModel.of(schema, {}, split(image)[0])
