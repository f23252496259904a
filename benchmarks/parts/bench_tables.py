# shell
"""Tables of millions of rows: how long their snapshots hold learning up, what memory they take, how fast they load.

The rows are made up (ids and values at random, as no learning would leave them, but as many and as large) and come as
the parts of a snapshot do, so that five million of them are there within seconds. What is learnt meanwhile are batches
of 30 ids a row, drawn by log-uniform popularity from all of them, at the full speed of one thread.

*Tables* means what the rows need at the least: their records (id and columns) and the slots of the index, for the rows
that are live. Memory is the process's resident memory beyond what it had with an empty model,
as the kernel counts it; a peak is the kernel's high-water mark of the same. Each role is measured in a process of its
own.
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

from benchmarks.parts.bench_fields import DIM, FIELDS, as_samples, schema
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.ranker.snapshot_slices import Part
from learner.role.learner_warmup import warm_up
from learner.serving.serving_model import ServingModel
from millrace.contracts.samples import SampleBatch
from millrace.processes.resident_memory import measured_bytes
from millrace.versions.modelstore import Image, TableRows

ROWS = 5_000_000
SLICE = 100_000
BATCH = 512  # what the learner's service takes at most
SNAPSHOT_S = 20.0  # a snapshot's slices are spread over so long
NOW_MIN = 28_333_333  # event time of the batches, in minutes
GROWTH = 1.4  # rows are added until there are so many times more: beyond where the index doubles

_TABLE = f"w{DIM}"
_TURNS = 8  # batches made; they are learnt from again and again


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


# -- snapshots beside learning ----------------------------------------------------------------------------------------


def snapshot_holds_up(rows: int = ROWS, seconds: float = SNAPSHOT_S, slices: int = SLICE) -> dict[str, float]:
    """How long the calls of a snapshot in slices hold learning up, in ms: the longest of a slice and the last part,
    its 99th percentile, and the longest by the thread's CPU time, which other processes do not lengthen; for comparison
    the median batch between them. A slice is taken as often as spreads them over ``seconds``, a delta once a second."""
    with threads(1):
        model, state = blank(rows)
        model.resume(made_up(rows, state))
        found = batches(rows)
        for batch in found:
            model.learn(batch)
        model.changes()
        gc.collect()
        held: list[tuple[float, float]] = []  # by the wall, of CPU
        learnt: list[float] = []
        snapshot, every = model.slices(slices), seconds / (rows / slices)
        due = time.perf_counter()
        publish, turn, part = due + 1, 0, True
        while part:
            batch = _fresh(found, turn)
            learnt.append(_ms(lambda batch=batch: model.learn(batch))[0])  # type: ignore[misc]
            turn += 1
            if time.perf_counter() >= publish:
                model.changes()
                publish += 1
            if snapshot.whole or time.perf_counter() >= due:
                parts: list[Part | None] = []
                held.append(_ms(lambda parts=parts: parts.append(snapshot.next())))  # type: ignore[misc]
                part = parts[0] is not None
                due += every
        model.changes()
        held.append(_ms(snapshot.finish))
        wall, cpu = np.array(held).T
        return {
            "snapshot_holds_up_ms": float(wall.max()),
            "snapshot_holds_up_p99_ms": float(np.percentile(wall, 99)),
            "snapshot_holds_up_cpu_ms": float(cpu.max()),
            "batch_ms": float(np.median(learnt)),
        }


def _fresh(found: list[SampleBatch], turn: int) -> SampleBatch:
    """A batch with other ids than before: those of a batch, moved on among all ids."""
    batch = found[turn % len(found)]
    step = np.int64(-7046029254386353131)
    with np.errstate(over="ignore"):
        batch.cat[:, : FIELDS // 2] += step if turn % 97 else -step  # the next row's id, mostly one that is there
    return batch


def _ms(do: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds by the wall, and of the thread's CPU."""
    began, busy = time.perf_counter(), time.thread_time()
    do()
    return (time.perf_counter() - began) * 1e3, (time.thread_time() - busy) * 1e3


# -- memory and loading -----------------------------------------------------------------------------------------------


def memory(rows: int = ROWS) -> dict[str, float]:
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
        for batch in found:
            model.learn(batch)
        model.resume([state])
        measured = _Measured()
        model.resume(made_up(rows, state))
        index = model.tables[_TABLE].index
        measured.loaded(table_bytes(len(index), int(index.data.shape[1])))
        for batch in found:
            model.learn(batch)
            model.changes()
        return measured.figures("learner")


def _scorer(rows: int) -> dict[str, float]:
    with threads(1):
        _, state = blank(rows)
        cat, spec = batches(rows)[0].cat, spec_of(rows)
        num = np.zeros((len(cat), 0), np.float32)
        ServingModel.of(schema(), spec, state[0]).score(cat, num)
        measured = _Measured()
        model = ServingModel.of(schema(), spec, (image for image, _ in made_up(rows, state)), {_TABLE: rows})
        table = model.tables[_TABLE]
        measured.loaded(table_bytes(len(table), int(table.base.data.shape[1])))
        model.score(cat, num)
        return measured.figures("scorer")


class _Measured:
    """Memory and seconds from now on."""

    def __init__(self) -> None:
        gc.collect()
        self._empty, self._began = measured_bytes(), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")  # lets the kernel's high-water mark begin here. Linux

    def loaded(self, least: int) -> None:
        self._seconds, self._least = time.perf_counter() - self._began, least
        self._peak = (measured_bytes(peak=True) - self._empty) / least
        gc.collect()

    def figures(self, role: str) -> dict[str, float]:
        steady = (measured_bytes() - self._empty) / self._least
        return {
            f"{role} memory_ratio": steady,
            f"{role} memory_ratio, peak of loading": self._peak,
            f"{role} loading_seconds": self._seconds,
        }
