"""Made-up samples with a taste to be learnt, for the learner's tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.retrieval.tower import Tower
from millrace.basics.hashing import column_hash, mix
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from millrace.versions.image import RETRIEVAL_TABLES, Image, TableRows
from tests.scenes.schemas import named, of_context, of_item, of_user, windows_of

_FIELDS = (
    named("small", crosses=[["user_id", "category"], ["tags", "hour"]])
    + of_user("user_id")
    + of_item("item_id")
    + of_item("category", width=4)
    + of_item("tags", slots=3)
    + of_item("price:numeric", transform="log")
    + of_context("hour")
    + of_context("position", bias=True)
)
_WINDOWS = windows_of("item_id", days=[1, 7])
_AGES = of_user("last_clicks_age", slots=5, width=2)
SCHEMA = parse_schema(_FIELDS + _WINDOWS)
ATTENDED = parse_schema(
    _FIELDS + of_item("title:text", slots=4) + of_user("last_clicks", slots=5, pool="attention") + _AGES + _WINDOWS
)
"""The same with titles, whose words are pooled by their counts, and the user's last clicks, pooled by attention."""
MEANT = parse_schema(_FIELDS + of_user("last_clicks", slots=5) + _AGES + _WINDOWS)
"""The same by their mean."""
START_MS = 1_700_000_000_000


def make_samples(
    rows: int, seed: int, schema: Schema = SCHEMA, start_ms: int = START_MS, users: int = 40, items: int = 30
) -> SampleBatch:
    """Samples whose clicks depend on user and category together (not on either alone), and on the price."""
    rng = np.random.default_rng(seed)
    layout = schema.layout
    user, item = rng.integers(1, users + 1, rows), rng.integers(1, items + 1, rows)
    category = item % 5 + 1
    values = {"user_id": user, "item_id": item, "category": category}
    cat = np.zeros((rows, layout.F), np.int64)
    slot: dict[str, int] = {}
    for column, name in enumerate(layout.cat_names):
        field = next(f for f in layout.cat_fields if f.name == name)
        k = slot[name] = slot.get(name, -1) + 1
        value = values.get(name, rng.integers(1, 6, rows)) + (0 if k == 0 else 5 * k)
        hashed = mix(layout.field_salt(field), column_hash(value))
        if k:
            hashed = np.where(rng.random(rows) < 0.5, hashed, np.uint64(0))
        cat[:, column] = hashed.view(np.int64)
    num = rng.lognormal(1.0, 1.0, (rows, layout.N)).astype(np.float32)
    logit = np.where((user % 2) == (category % 2), 2.0, -2.0) + 0.8 * (np.log1p(num[:, 0]) - 1.3)
    kind = np.where(rng.random(rows) < 1 / (1 + np.exp(-logit)), POSITIVE, NEGATIVE).astype(np.uint8)
    number, size = np.arange(rows), 10
    return SampleBatch.of_rows(
        kind,
        start_ms + number * 100,
        cat,
        num,
        tuple(f"r{seed}-{i}" for i in range(-(-rows // size))),
        page=(number // size).astype(np.int32),
        position=(number % size).astype(np.int32),
        user=column_hash(user),
        item=column_hash(item),
        origin_ms=np.where(kind == POSITIVE, 1_800_000_000_000 + number, 0),
    )


def tables_of(tower: Tower) -> Image:
    """The head's part of an image that a tower is."""
    tables = {}
    for name in RETRIEVAL_TABLES:
        ids, embedding, wide = tower.table(name)
        tables[name] = TableRows(ids, {"embedding": embedding, "wide": wide})
    return Image({}, tables)


def labelled(
    request: str, ts_ms: int, rows: Iterable[tuple[int, int]], score: float = 0.5, **columns: NDArray[Any]
) -> SampleBatch:
    """Rows of (position, kind) of one page that a model made; their features mean nothing."""
    position, kind = np.array([*rows]).reshape(-1, 2).T
    n = len(kind)
    return SampleBatch.of_rows(
        kind.astype(np.uint8),
        np.full(n, ts_ms, np.int64),
        np.zeros((n, 1), np.int64),
        np.zeros((n, 1), np.float32),
        (request,),
        position=position.astype(np.int32),
        score=np.full(n, score, np.float32),
        version=np.zeros(n, np.int64),
        **columns,
    )


def poison(batch: SampleBatch, **columns: Any) -> SampleBatch:
    """The batch with other values at some places: name=(rows, value)."""
    values = {n: getattr(batch, n).copy() for n in columns}
    for name, (rows, value) in columns.items():
        values[name][rows] = value
    return replace(batch, **values)
