# core
"""Runs every compiled function on small models of its own, before a learner or scorer reports that it is ready.
Compiling takes half a minute where nothing is cached; else the loop would stop that long at its first samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from learner.custom.own import OwnModel
from learner.custom.ownclass import is_own
from learner.custom.ownids import KnownIds
from learner.gate.model_checks import unsound
from learner.network.forward import Arithmetic
from learner.ranker.interfaces import Learning
from learner.ranker.model import OnlineModel
from learner.samples.batch_reader import SampleMessage
from learner.serving.serving_model import ServingModel
from learner.serving.staging import ModelWriter
from learner.tables.row_index import Index
from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.contracts import pagepack
from millrace.contracts.samples import CORRECTION, NEGATIVE, PAGE, POLICIES, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import split
from millrace.versions.packing import pack, unpack

_ROWS = (64, 17)  # a full batch and a small one
_MAX_ROWS = 4096
_MANY = 60_000
_MESSAGES = 24
_ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "bfloat16")  # loops are compiled for the type, not for the library


def warm_up(model: Learning) -> None:
    """Compiles all that learning, judging and publishing with ``model`` will call. ``model`` itself stays unchanged."""
    pagepack.warm_up()
    if isinstance(model, OwnModel):  # its class was tried when it was made
        known = KnownIds(_ROWS[0])
        for ids in np.array_split(np.arange(1, 4 * _ROWS[0]), 5):
            known.add(ids)
            known.has(ids)
        warm_tables()
        return
    own, twin = (OnlineModel(model.schema, small(model.spec), seed=0) for _ in range(2))
    for turn, rows in enumerate(_ROWS):
        batch = _batch(model.schema, rows, turn)
        for given in (batch, SampleBatch.from_bytes(batch.to_bytes())):  # arrays of a message cannot be written to
            own.score(given.cat, given.num)
            own.learn(given)
            own.learn(replace(given, kind=np.full(rows, PAGE, np.uint8)))
            if own.head is not None:
                own.head.flush()
            unsound(own)
            own.changes()
    for field in model.schema.layout.cat_fields:
        own.knows(field.name, batch.cat)
    twin.resume(*own.snapshot())
    slices = own.slices()
    twin.resume([*iter(slices.next, None), slices.finish()])
    for table in own.tables.values():
        table.expire(0)
    warm_tables()


def small(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a small model that calls what one of ``spec`` does; of a class of one's own, the default."""
    return {} if is_own(spec["model"]) else {**spec, "max_rows": min(spec["max_rows"], _MAX_ROWS)}


def shop_hours(schema: Schema) -> Iterator[SampleMessage]:
    """Samples of four hours of a small shop, as the topic brings them: what a learner rehearses with."""
    for turn in range(_MESSAGES):
        rows = _ROWS[turn % 2]
        ts_ms = np.full(rows, DAY_MS + 10 * turn * MINUTE_MS)
        batch = replace(_batch(schema, rows, turn), request=(f"page {turn}",), ts_ms=ts_ms, version=np.zeros(rows, int))
        policy = np.full(rows, turn % len(POLICIES), np.uint8)
        batch = replace(batch, policy=policy, score=np.full(rows, 0.1, np.float32), origin_ms=policy.astype(np.int64))
        late = replace(
            batch, kind=np.where(batch.kind == NEGATIVE, CORRECTION, batch.kind), label=np.ones_like(batch.label)
        )
        for part, offset in ((batch, 2 * turn), (late.take(slice(0, 4)), 2 * turn + 1)):
            yield SampleMessage(SampleBatch.from_bytes(part.to_bytes()), offset, joined_ms=1)


def warm_tables() -> None:
    """Compiles what any table of ids will call, also when it grows."""
    memory = Index({}, _MANY)
    for ids in np.array_split(np.arange(1, _MANY), 20):  # so many that the slots move
        memory.add(ids)
    memory.find(ids)
    memory.remove(ids)


def warm_serving(schema: Schema) -> None:
    """For a scorer: compiles what versions that serve will call, and what makes them, whatever they compute in."""
    for kind, arithmetic in product(("wide_resnet", "wide_deep"), _ARITHMETICS):
        source = OnlineModel(schema, {"model": kind, "max_rows": _MAX_ROWS}, seed=0)
        source.learn(_batch(schema, _ROWS[0], 0))
        image = split(unpack(pack(source.changes())))[0]
        many = dict.fromkeys(source.tables, _MANY)
        writer = ModelWriter.of(schema, source.spec, image, many, choose=partial(_chosen, arithmetic))
        reader = ServingModel.attach(schema, source.spec, writer.base())
        for rows in image.tables.values():
            rows.removed, rows.ids = rows.ids[:1], rows.ids[1:]
            rows.columns = {name: column[1:] for name, column in rows.columns.items()}
        reader = reader.followed(writer.stage(image))
        batch = _batch(schema, _ROWS[0], 0)
        reader.score(batch.cat, batch.num)
        reader.warm(len(batch))
        while writer.fold(_ROWS[1]):
            pass
        reader.settled(writer.folded, writer.base()).snapshot()


def _chosen(arithmetic: Arithmetic, _: ModelWriter) -> Arithmetic:
    return arithmetic


def _batch(schema: Schema, rows: int, seed: int) -> SampleBatch:
    rng, layout = np.random.default_rng(seed), schema.layout
    kind = np.where(np.arange(rows) % 2 > 0, POSITIVE, NEGATIVE).astype(np.uint8)
    user, item = (rng.integers(1, 9, rows).astype(np.uint64) for _ in range(2))
    return SampleBatch.of_rows(
        kind,
        np.full(rows, (seed + 1) * DAY_MS),
        rng.integers(1, 50, (rows, layout.F)),
        rng.random((rows, layout.N), dtype=np.float32),
        position=np.arange(rows, dtype=np.int32),
        user=user,
        item=item,
    )
