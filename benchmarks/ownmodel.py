# shell
"""What the plain path of a model of one's own costs, beside the registered model that Millrace starts with.

The shop's schema, made-up rows. In each round every model in turn::

    learn     micro-batches of 128 rows, with the wrapper's checks      rows a second
    page      Ranker.rank of 600 items: features, scores                ms
    version   taking a version up in a worker                           ms

Ratios are of medians over the rounds of one run, since the machine's speed changes from minute to minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.runner import Figure, Say, figure
from learner.custom.ownclass import probe_rows
from learner.network.dense import threads
from learner.network.forward import matrix_units
from learner.network.models.spec import Spec
from learner.ranker.verbs import Learning
from learner.role.making import model_of, reader_of, writer_of
from millrace.contracts.events import Item
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, shop_schema
from millrace.versions.image import Image
from millrace.windows.features import FeatureBuilder
from scorer.catalog.index import ItemIndex
from scorer.catalog.shelf import Shelf
from scorer.page.rank import Ranker
from scorer.users.userrecord import User

MODELS = (
    Spec().model,
    "learner.custom.adapters.torchmodule:HashedMLP",
    "learner.custom.adapters.rivermodel:RiverFTRL",
)
CANDIDATES, BATCH = 600, 128
_TS_MS = 1_700_000_000_000


def own_model(rounds: int = 5, batches: int = 4, models: Sequence[str] = MODELS, say: Say = print) -> dict[str, Any]:
    """Measures each model.

    Args:
        batches: learnt in a round.

    Returns:
        ``models``: of each ``learn_rows_a_second``, ``page_ms``, ``version_ms`` and, against the first model,
        ``learn_ratio`` (its speed) and ``page_ratio`` (its time).
    """
    schema = shop_schema()
    rows = probe_rows(schema, BATCH * batches)
    rank = _pages(schema)
    half = matrix_units()  # as a scorer decides
    with threads(1):
        held = {name: model_of(schema, {"model": name}, 0) for name in models}
        times: dict[str, dict[str, list[float]]] = {name: {"learn": [], "page": [], "version": []} for name in models}
        for turn in range(rounds + 1):  # the first warms up
            for name, model in held.items():
                learn = _timed(partial(_learn, model, rows))
                image = Image.of_tensors(model.snapshot()[0].tensors())
                writer = writer_of(schema, model.spec, image, half=half, named=name)
                reader = reader_of(schema, model.spec, writer.base(), named=name)
                overlay = writer.stage(Image.of_tensors(model.changes().tensors()))
                version = _timed(partial(reader.followed, overlay))
                rank(reader)
                page = _timed(partial(rank, reader))
                if turn:
                    for what, seconds in (("learn", learn), ("page", page), ("version", version)):
                        times[name][what].append(seconds)
            say(f"round {turn} of {rounds}")
    first = times[models[0]]
    found: dict[str, Any] = {}
    for name, own in times.items():
        found[name] = {
            "learn_rows_a_second": len(rows) / median(own["learn"]),
            "page_ms": 1000 * median(own["page"]),
            "version_ms": 1000 * median(own["version"]),
            "learn_ratio": median(first["learn"]) / median(own["learn"]),
            "page_ratio": median(own["page"]) / median(first["page"]),
        }
    return {"models": found, "candidates": CANDIDATES, "batch_rows": BATCH}


def run(out: Path, say: Say) -> list[Figure]:
    """``millrace bench ownmodel``"""
    found = own_model(say=say)["models"]
    first = next(iter(found))
    figures = []
    for name, own in found.items():
        short = name.rpartition(":")[2]
        figures += [
            figure(f"{short} learns", own["learn_rows_a_second"], "rows/s", first, own["learn_ratio"]),
            figure(f"{short} ranks a page", own["page_ms"], "ms", first, own["page_ratio"]),
            figure(f"{short} next version", own["version_ms"], "ms"),
        ]
    return figures


def _learn(model: Learning, rows: SampleBatch) -> None:
    for at in range(0, len(rows), BATCH):
        model.learn(rows.take(slice(at, at + BATCH)))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _pages(schema: Schema) -> Callable[[Any], Any]:
    """Ranks all items of a made-up shop with the model that it is given."""
    builder = FeatureBuilder(schema)
    index, shelf = ItemIndex(builder), Shelf(builder)
    index.put([index.prepare(Item(i, dict.fromkeys(builder.needs("item"), i % 50))) for i in range(CANDIDATES)])
    shelf.follow(lambda: index.changes(_TS_MS))
    ranker, user = Ranker(builder, shelf), User.of(builder, 1, {})
    rows = np.arange(CANDIDATES)
    return lambda model: ranker.rank(user, rows, _TS_MS, {}, model)
