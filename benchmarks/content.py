# shell
"""``millrace dev bench content``: what a title of twelve words and a vector of 384 numbers cost.

Two shops live through the same day; the goods of one have such content, and its model learns it. They take turns, by
the CPU time of one thread: batches that a ranker learns, and one with a retrieval head; pages of 20 out of 1,000
candidates.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from benchmarks.parts.pagestages import WARM, Pages, page_cost
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import cpu_s
from experiments.recall.recallloop import FIRST_DAY, WIDTH, Pupil, start_shop
from experiments.recall.recallshop import params_of
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.training.trainer import BATCH_ROWS
from millrace.commands.replay.steps import steps
from millrace.commands.replay.stretches import AT_ONCE
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable
from scorer.page.reranking import Reranker
from simulator.catalogue import Catalogue
from simulator.daylog import day_table
from simulator.world import World

WORDS, VOCABULARY, NUMBERS = 12, 30_000, 384
MORE = (
    {"name": "title", "of": "item", "kind": "text"},
    {"name": "vector", "of": "item", "kind": "vector", "size": NUMBERS},
)
PLAIN = "without them"


class Size(NamedTuple):
    items: int = 20_000  # on sale, about
    users: int = 4000  # on the day
    pages: int = 500
    batches: int = 400  # that models learn


SHORT = Size(300, 60, 10, 20)


@cache
def content(item: int) -> dict[str, str]:
    """The title and vector of an item; words are drawn log-uniformly."""
    rng = np.random.default_rng(item)
    words = (VOCABULARY ** rng.random(WORDS)).astype(int).tolist()
    vector = b64encode(rng.standard_normal(NUMBERS).astype("<f2").tobytes()).decode()
    return {"title": " ".join(f"w{word}" for word in words), "vector": vector}


def run(out: Path, say: Say, size: Size) -> Iterator[Figure]:
    """The figures, as in the module's text."""
    world = World(1, size.users, params_of(size.items))
    table = day_table(world, FIRST_DAY)
    told = [content(item) for item in table["item_id"].to_pylist()]
    rich = table
    for name in ("title", "vector"):
        rich = rich.append_column(name, pa.array([one[name] for one in told]))
    schema = shop_schema()
    grown = schema.edit(fields=[*schema.fields, *MORE])
    plain_item = Catalogue.item

    def item(self: Catalogue, *given: Any, **named: Any) -> Any:
        made = plain_item(self, *given, **named)
        made.attributes.update(content(made.item_id))
        return made

    with threads(1):
        batches = [list(_batches(*pair)) for pair in ((table, schema), (rich, grown))]
        say(f"{table.num_rows:,} exposures of {len(set(table['item_id'].to_pylist())):,} items")
        for name, width in (("ranker_rows", 0), ("rows", WIDTH)):
            models = [OnlineModel(one, {"retrieval_width": width}, 0) for one in (schema, grown)]
            yield _rows(name, models, batches, size.batches)
        pages = []
        for model, rows in zip(models, (table, rich), strict=True):
            with patch.object(Catalogue, "item", item if rows is rich else plain_item):
                shop = start_shop(world, Settings(), FIRST_DAY + 1, [rows], model.schema)
            pupil = Pupil(model, 1)
            pupil.renew(shop)
            pages.append(Pages(shop, shop.ranker, pupil.serving, Reranker(shop.filters, [])))
        users = np.random.default_rng(1).integers(0, world.shoppers.n, WARM + size.pages).tolist()
        yield page_cost("content", pages[0], pages[1], users)
        held = [sum(own.nbytes for own in page.shop.items.rows) / len(page.shop.items) for page in pages]
        yield figure("item_bytes", held[1], "bytes an item in a scorer", PLAIN, held[1] / held[0])


def _batches(table: pa.Table, schema: Schema) -> Iterator[SampleBatch]:
    log = schema.log
    assert log is not None
    whole = LogTable(table, log.user, log.item, log.label, table.num_rows, 0)
    return (step.batch for step in steps(whole, schema, BATCH_ROWS, AT_ONCE) if step.batch is not None)


def _rows(name: str, models: list[OnlineModel], batches: list[list[SampleBatch]], most: int) -> Figure:
    """Rows a second that are learnt of content, batch by batch in turn; the first tenth warms up."""
    spent = [list[float](), list[float]()]
    for pair in list(zip(*batches, strict=True))[:most]:
        for model, batch, own in zip(models, pair, spent, strict=True):
            own.append(cpu_s(partial(model.learn, batch)) / len(batch))
    plain, rich = (float(np.mean(own[len(own) // 10 :])) for own in spent)
    return figure(name, 1 / rich, "rows/s", PLAIN, plain / rich)
