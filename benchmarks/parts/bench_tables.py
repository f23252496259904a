# shell
"""Tables of millions of rows: how long their snapshots hold learning up, what memory they take, how fast they load.

Ids and values are at random and come as the parts of a snapshot do, so five million rows are there within seconds. What
is learnt meanwhile are batches of 30 ids a row, drawn by log-uniform popularity, at the full speed of one thread.

*Tables* means what live rows need at the least: their records and the slots of the index. Memory is the process's
resident memory beyond what it had with an empty model; a peak is the kernel's high-water mark of it. Each role is
measured in a process of its own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.ranker.snapshot_slices import Part
from learner.role.learner_warmup import warm_up
from learner.serving.serving_model import ServingModel
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from millrace.processes.resident_memory import measured_bytes
from millrace.versions.modelstore import Image, TableRows

FIELDS, DIM = 30, 16
SLICE = 100_000
BATCH = 512  # what the learner's service takes at most
NOW_MIN = 28_333_333  # event time of the batches, in minutes
GROWTH = 1.4  # rows are added until there are so many times more: beyond where the index doubles

_TABLE = f"w{DIM}"
_TURNS = 8  # batches made; they are learnt from again and again


def schema() -> Schema:
    fields = "".join(f'[[fields]]\nname = "f{i}"\nof = "context"\n' for i in range(FIELDS))
    return parse_schema(f'name = "bench"\n{fields}')


def as_samples(cat: NDArray[np.int64], y: NDArray[np.float32]) -> SampleBatch:
    kind = np.where(y > 0, POSITIVE, NEGATIVE).astype(np.uint8)
    return SampleBatch.of_rows(kind, np.full(len(y), 1_700_000_000_000), cat, np.zeros((len(y), 0), np.float32))


def ids_of(rows: int) -> NDArray[np.int64]:
    """Distinct ids, spread over all of int64."""
    ids = np.random.default_rng(1).permutation(np.arange(1, rows + 1, dtype=np.int64))
    return ids * np.int64(-7046029254386353131)


def spec_of(rows: int) -> dict[str, Any]:
    """A Wide&ResNet as it comes, but for its room."""
    return {"model": "wide_resnet", "width": DIM, "max_rows": int(rows * GROWTH) + BATCH * FIELDS}


def made_up(rows: int, blank: Part) -> Iterator[Part]:
    """The parts of a snapshot of ``rows`` rows; the last is the ``blank`` snapshot of an empty model."""
    ids, rng = ids_of(rows), np.random.default_rng(2)
    for start in range(0, rows, SLICE):
        own = ids[start : start + SLICE]
        n = len(own)
        columns = {"embedding": rng.random((n, DIM), np.float32), "wide": np.zeros(n, np.float32)}
        training: dict[str, Any] = {f"table/{_TABLE}/{c}": rng.random(n, np.float32) for c in ("square", "z", "n")}
        training[f"table/{_TABLE}/seen_min"] = rng.integers(NOW_MIN - 50_000, NOW_MIN, n, np.int32)
        yield Image({}, {_TABLE: TableRows(own, columns)}), training
    yield blank


def blank(rows: int) -> tuple[OnlineModel, Part]:
    """A model without rows, with everything compiled, and its snapshot."""
    model = OnlineModel(schema(), spec_of(rows), 0)
    warm_up(model)
    return model, model.snapshot()


def batches(rows: int) -> list[SampleBatch]:
    """Micro-batches whose ids are drawn by log-uniform popularity from those of :func:`ids_of`."""
    ids, rng = ids_of(rows), np.random.default_rng(3)
    rank = (float(rows) ** rng.random((_TURNS, BATCH, FIELDS))).astype(np.int64) - 1
    y = (rng.random((_TURNS, BATCH)) < 0.2).astype(np.float32)
    found = [as_samples(ids[r], t) for r, t in zip(rank, y, strict=True)]
    for batch in found:
        batch.ts_ms[:] = NOW_MIN * 60_000
    return found


def table_bytes(rows: int, record: int) -> int:
    """What so many live rows, with records of so many float32 columns, need at the least."""
    bits = 11
    while 4 * rows > 3 << bits:
        bits += 1
    return rows * record * 4 + (4 << bits)


def snapshot_holds_up(rows: int, seconds: float) -> float:
    """The longest time, in ms, for which a call of a snapshot in slices holds learning up. A slice is taken as often as
    spreads them over ``seconds``, a delta once a second."""
    with threads(1):
        model, state = blank(rows)
        model.resume(made_up(rows, state))
        found = batches(rows)
        for batch in found:
            model.learn(batch)
        model.changes()
        gc.collect()
        longest, turn, part = 0.0, 0, True
        snapshot, every = model.slices(SLICE), seconds / (rows / SLICE)
        due = time.perf_counter()
        publish = due + 1
        while part:
            model.learn(_fresh(found, turn))
            turn += 1
            now = time.perf_counter()
            if now >= publish:
                model.changes()
                publish += 1
            if snapshot.whole or now >= due:
                began = time.perf_counter()
                part = snapshot.next() is not None
                longest = max(longest, time.perf_counter() - began)
                due += every
        model.changes()
        began = time.perf_counter()
        snapshot.finish()
        return 1000 * max(longest, time.perf_counter() - began)


def _fresh(found: list[SampleBatch], turn: int) -> SampleBatch:
    """A batch with other ids than before: those of a batch, moved on among all ids."""
    batch = found[turn % len(found)]
    step = np.int64(-7046029254386353131)
    with np.errstate(over="ignore"):
        batch.cat[:, : FIELDS // 2] += step if turn % 97 else -step  # the next row's id, mostly one that is there
    return batch


def memory(rows: int) -> dict[str, float]:
    """``memory_ratio`` of a learner's and of a scorer's tables when steady, and its peak while loading, both over the
    bytes of the tables; and the seconds of loading the parts of a snapshot, which are made on the way."""
    found: dict[str, float] = {}
    for measure in (_learner, _scorer):  # each in a process of its own
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found |= pool.submit(measure, rows).result()
    return found


def _learner(rows: int) -> dict[str, float]:
    with threads(1):
        model, state = blank(rows)
        found = batches(rows)

        def learn() -> None:
            for batch in found:
                model.learn(batch)
                model.changes()

        def load() -> int:
            model.resume(made_up(rows, state))
            index = model.tables[_TABLE].index
            return table_bytes(len(index), int(index.data.shape[1]))

        learn()
        model.resume([state])
        return _measured("learner", load, learn)


def _scorer(rows: int) -> dict[str, float]:
    with threads(1):
        _, state = blank(rows)
        cat, spec, held = batches(rows)[0].cat, spec_of(rows), list[ServingModel]()
        num = np.zeros((len(cat), 0), np.float32)
        ServingModel.of(schema(), spec, state[0]).score(cat, num)

        def load() -> int:
            images = (image for image, _ in made_up(rows, state))
            held.append(ServingModel.of(schema(), spec, images, {_TABLE: rows}))
            return table_bytes(rows, int(held[0].tables[_TABLE].base.data.shape[1]))

        return _measured("scorer", load, lambda: held[0].score(cat, num))


def _measured(role: str, load: Callable[[], int], use: Callable[[], object]) -> dict[str, float]:
    """``load`` returns what its tables need at the least."""
    gc.collect()
    empty, began = measured_bytes(), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # lets the kernel's high-water mark begin here. Linux
    least = load()
    seconds, peak = time.perf_counter() - began, measured_bytes(peak=True) - empty
    gc.collect()
    use()
    return {
        f"{role} memory_ratio": (measured_bytes() - empty) / least,
        f"{role} memory_ratio, peak of loading": peak / least,
        f"{role} loading_seconds": seconds,
    }
