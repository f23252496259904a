"""Retrieval heads for the scorer's tests: towers with made-up rows, and what they plainly give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from learner.network.models.spec import read_spec
from learner.retrieval.tower import Tower, UserTower
from millrace.contracts.events import Item
from millrace.versions.image import Image, TableRows
from millrace.versions.versioning import Announcement
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import TableForm
from tests.scenes.scorer_shop import BUILDER, LAYOUT, NOW_MS, SCHEMA
from tests.scorer.page.plain_page import plain_of

WIDTH = 8
SPEC = read_spec({"retrieval_width": WIDTH})
USER_IDS = sum(field.slots for field in LAYOUT.cat_fields if field.of == "user")


Inputs = tuple[Any, Any]


def inputs(items: Sequence[Item], now_ms: int = NOW_MS) -> Inputs:
    """What an item tower takes of these items, each with another id, by the plain way: through an index of their own,
    ages by hand."""
    assert len({i.item_id for i in items}) == len(items)
    index, form = ItemIndex(BUILDER), TableForm(BUILDER)
    index.put([index.prepare(i) for i in items])
    rows = np.arange(len(items))
    arrays = form.rows(index.columns(rows), plain_of(index, rows, now_ms), len(rows))
    age = np.array([max(0, (now_ms - i.born_ms) // 3_600_000) / 24 for i in items], np.float32)  # whole hours
    arrays["plain"][:, form.plain_names.index("age_days")] = age
    return arrays["cat"], arrays["plain"]


def features(*some: Inputs) -> Any:
    """Ids of all features of these items."""
    sides = Tower(SCHEMA, SPEC).sides
    return np.setdiff1d(np.concatenate([sides.item_features(*given)[0].ravel() for given in some]), [0])


def head(seed: int, ids: Any, users: Iterable[int] = ()) -> Image:
    """Rows for these features of items, and for users' ids, drawn: with another seed all vectors are others."""
    rng = np.random.default_rng(seed)

    def rows(some: Any) -> TableRows:
        wide, embedding = rng.standard_normal(len(some)), rng.standard_normal((len(some), WIDTH - 1))
        return TableRows(some, {"embedding": embedding.astype(np.float32), "wide": wide.astype(np.float32)})

    return Image({}, {"retrieval_item": rows(ids), "retrieval_user": rows(np.array(sorted(users), np.int64))})


def tower(*images: Image) -> Tower:
    made = Tower(SCHEMA, SPEC)
    for image in images:
        made.apply(image)
    return made


def note(version: int, epoch: int = 1, clicks: int = 5000, published_ms: int = 0) -> Announcement:
    return Announcement(
        kind="delta",
        epoch=epoch,
        version=version,
        claimant="learner",
        parent="",
        hash="",
        digest="",
        size=0,
        schema_id=SCHEMA.id,
        spec={},
        event_ms=NOW_MS,
        trained=0,
        retrieval_clicks=clicks,
        published_ms=published_ms,
    )


def rounded(vectors: Any) -> Any:
    """To bfloat16 and back, as workers keep vectors."""
    return torch.from_numpy(np.ascontiguousarray(vectors, np.float32)).bfloat16().float().numpy()


def plain_scores(by: Tower, items: Inputs, user_ids: Any, clicked: Inputs | None = None) -> Any:
    """The product of the user's query with each item's vector. (n,)"""
    user = UserTower.of_arrays(by.user_arrays())
    recent = rounded(by.item_vectors(*clicked)) if clicked else np.empty((0, WIDTH), np.float32)
    query = user.query(user_ids, recent, np.zeros(len(recent), np.int64))
    return rounded(by.item_vectors(*items)) @ query
