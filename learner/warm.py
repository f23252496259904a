# core
"""Runs every compiled function once, on a small model of its own, before the learner says that it is ready.

Compiling takes half a minute where nothing is cached. Without this, the loop would stand still that long at its first
samples.
"""

from __future__ import annotations

import numpy as np

from learner.index import Index
from learner.model import OnlineModel
from millrace.contracts import once
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch

_ROWS = (64, 17)  # a full batch and a small one
_MAX_ROWS = 4096
_MANY = 60_000
_DAY_MS = 86_400_000


def warm_up(model: OnlineModel) -> None:
    """Compiles all that learning, judging and publishing with ``model`` will call. ``model`` itself is not touched."""
    once.warm_up()
    spec = {**model.spec, "max_rows": min(model.spec["max_rows"], _MAX_ROWS)}
    own, twin = (OnlineModel(model.schema, spec, seed=0) for _ in range(2))
    for turn, rows in enumerate(_ROWS):
        batch = _batch(model, rows, turn)
        for given in (batch, SampleBatch.from_bytes(batch.to_bytes())):  # arrays of a message cannot be written to
            own.score(given.cat, given.num)
            own.learn(given)
            own.changes()
    for field in model.schema.layout.cat_fields:
        own.knows(field.name, batch.cat)
    twin.resume(*own.snapshot())
    slices = own.slices()
    twin.resume([*iter(slices.next, None), slices.finish()])
    for table in own.tables.values():
        table.expire(0)
    warm_tables()


def warm_tables() -> None:
    """Compiles what any table of ids will call, also when it grows. For a scorer too."""
    memory = Index({}, _MANY)
    for ids in np.array_split(np.arange(1, _MANY), 20):  # so many that the slots move
        memory.add(ids)
    memory.find(ids)
    memory.remove(ids)


def _batch(model: OnlineModel, rows: int, seed: int) -> SampleBatch:
    rng, layout = np.random.default_rng(seed), model.schema.layout
    kind = np.where(np.arange(rows) % 2 > 0, POSITIVE, NEGATIVE).astype(np.uint8)
    user, item = (rng.integers(1, 9, rows).astype(np.uint64) for _ in range(2))
    return SampleBatch.of_rows(
        kind,
        np.full(rows, (seed + 1) * _DAY_MS),
        rng.integers(1, 50, (rows, layout.F)),
        rng.random((rows, layout.N), dtype=np.float32),
        position=np.arange(rows, dtype=np.int32),
        user=user,
        item=item,
    )
