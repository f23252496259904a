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

from benchmarks.learner import DIM, FIELDS, as_samples, schema
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.ranker.slices import Part
from learner.role.warm import warm_up
from learner.serving.serving import ServingModel
from learner.tables.index import Index
from millrace.contracts.samples import SampleBatch
from millrace.processes.memory import measured_bytes
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


def _index_bytes(index: Index) -> int:
    return table_bytes(len(index), int(index.data.shape[1]))


# -- snapshots beside learning ----------------------------------------------------------------------------------------


def snapshot_holds_up(rows: int = ROWS, seconds: float = SNAPSHOT_S, slices: int = SLICE) -> dict[str, float]:
    """How long the calls of a snapshot in slices hold learning up, in ms: a slice, the last part, and for comparison
    the batches between them and the delta before the last part. A slice is taken as often as spreads them over
    ``seconds``, a delta once a second. ``cpu`` is the longest of the calls by the thread's CPU time, which other
    processes do not lengthen."""
    with threads(1):
        model, state = blank(rows)
        model.resume(made_up(rows, state))
        found = batches(rows)
        for batch in found:
            model.learn(batch)
        model.changes()
        gc.collect()
        held: list[float] = []
        worked: list[float] = []
        learnt: list[float] = []
        deltas: list[float] = []
        snapshot = model.slices(slices)
        every = seconds / (rows / slices)
        started = time.perf_counter()
        due, publish, turn, corrections = started, started + 1, 0, 0
        whole = False
        while not whole:
            learnt.append(_ms(lambda turn=turn: model.learn(_fresh(found, turn, rows))))  # type: ignore[misc]
            turn += 1
            if time.perf_counter() >= publish:
                deltas.append(_ms(model.changes))
                publish += 1
            if snapshot.whole or time.perf_counter() >= due:
                began, busy = time.perf_counter(), time.thread_time()
                part = snapshot.next()
                held.append((time.perf_counter() - began) * 1e3)
                worked.append((time.thread_time() - busy) * 1e3)
                whole = part is None
                corrections += len(held) > rows / slices and not whole
                due += every
        deltas.append(_ms(model.changes))
        behind = snapshot.behind
        busy = time.thread_time()
        finish = _ms(snapshot.finish)
        worked.append((time.thread_time() - busy) * 1e3)
        calls = np.array([*held, finish])
        return {
            "snapshot_holds_up_ms": float(calls.max()),
            "snapshot_holds_up_p99_ms": float(np.percentile(calls, 99)),
            "snapshot_holds_up_median_ms": float(np.median(calls)),
            "snapshot_holds_up_cpu_ms": max(worked),
            "finish_ms": finish,
            "rows_in_last_part": float(behind),
            "calls": float(len(calls)),
            "parts_of_corrections": float(corrections),
            "batch_ms": float(np.median(learnt)),
            "delta_ms": float(max(deltas)),
            "seconds": time.perf_counter() - started,
        }


def _fresh(found: list[SampleBatch], turn: int, rows: int) -> SampleBatch:
    """A batch with other ids than before: those of a batch, moved on among all ids."""
    batch = found[turn % len(found)]
    step = np.int64(-7046029254386353131)
    with np.errstate(over="ignore"):
        batch.cat[:, : FIELDS // 2] += step if turn % 97 else -step  # the next row's id, mostly one that is there
    return batch


def _ms(do: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    do()
    return (clock() - began) * 1e3


def single_calls(rows: int = ROWS) -> dict[str, float]:
    """The longest that a table holds learning up for reasons of its own, in ms of CPU time: looking for rows that are
    too old, making room in a full table (a sixteenth of it), and the slowest of the calls in which it grows past where
    the index doubles."""
    with threads(1):
        model, state = blank(rows)
        model.resume(made_up(rows, state))
        table = model.tables[_TABLE]
        table.max_age_min = 100_000
        expire = _ms(lambda: table.expire(NOW_MIN), time.thread_time)
        room = _ms(lambda: table._make_room(1), time.thread_time)
        coming = ids_of(int(rows * GROWTH))
        coming = coming[table.index.find(coming) < 0]
        grow = [
            _ms(lambda part=part: table.index.add(part), time.thread_time)  # type: ignore[misc]
            for part in np.array_split(coming, max(1, len(coming) // 2000))
        ]
        return {
            "expire_ms": expire,
            "make_room_ms": room,
            "grow_ms": max(grow),
            "grow_median_ms": float(np.median(grow)),
        }


# -- memory and loading -----------------------------------------------------------------------------------------------


def memory(rows: int = ROWS) -> dict[str, float]:
    """``memory_ratio`` of a learner's and of a scorer's tables when steady, and their peaks while loading, growing, and
    (the learner) making a snapshot beside learning; all over the bytes of the tables at that moment's rows."""
    return {**_apart(_learner_memory, rows), **_apart(_scorer_memory, rows)}


def loading(rows: int = ROWS) -> dict[str, float]:
    """Seconds until a learner and a scorer have taken in the parts of a snapshot, parts given in memory."""
    return {**_apart(_learner_loading, rows), **_apart(_scorer_loading, rows)}


def _apart(measure: Callable[[int], dict[str, float]], rows: int) -> dict[str, float]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, rows).result()


def _learner_memory(rows: int) -> dict[str, float]:
    with threads(1):
        model, state = blank(rows)
        found = batches(rows)
        for batch in found:
            model.learn(batch)
        model.resume([state])
        gc.collect()
        empty = measured_bytes()
        reset_peak()
        model.resume(made_up(rows, state))
        index = model.tables[_TABLE].index
        load = (measured_bytes(peak=True) - empty) / _index_bytes(index)
        gc.collect()
        for batch in found:
            model.learn(batch)
            model.changes()
        steady = (measured_bytes() - empty) / _index_bytes(index)
        reset_peak()
        snapshot, part = model.slices(SLICE), None
        while (part := snapshot.next()) is not None:
            model.learn(found[0])
        model.changes()
        part = snapshot.finish()
        copying = (measured_bytes(peak=True) - empty) / _index_bytes(index)
        del part
        gc.collect()
        reset_peak()
        coming = ids_of(int(rows * GROWTH))
        coming = coming[index.find(coming) < 0]
        gc.collect()
        empty += coming.nbytes
        for own in np.array_split(coming, max(1, len(coming) // 2000)):
            index.add(own)
        growth = (measured_bytes(peak=True) - empty) / _index_bytes(index)
        return {
            "learner memory_ratio": steady,
            "learner memory_ratio, peak of loading": load,
            "learner memory_ratio, peak of a snapshot": copying,
            "learner memory_ratio, peak of growth": growth,
            "learner bytes of tables": float(_index_bytes(index)),
        }


def _scorer_memory(rows: int) -> dict[str, float]:
    with threads(1):
        _, state = blank(rows)
        spec = spec_of(rows)
        small = ServingModel.of(schema(), spec, state[0])
        cat = batches(rows)[0].cat
        num = np.zeros((len(cat), 0), np.float32)
        small.score(cat, num)
        del small
        gc.collect()
        empty = measured_bytes()
        reset_peak()
        model = ServingModel.of(schema(), spec, (image for image, _ in made_up(rows, state)), {_TABLE: rows})
        table = model.tables[_TABLE]
        least = table_bytes(len(table), int(table.base.data.shape[1]))
        load = (measured_bytes(peak=True) - empty) / least
        gc.collect()
        model.score(cat, num)
        return {
            "scorer memory_ratio": (measured_bytes() - empty) / least,
            "scorer memory_ratio, peak of loading": load,
            "scorer bytes of tables": float(least),
        }


def _learner_loading(rows: int) -> dict[str, float]:
    with threads(1):
        model, state = blank(rows)
        parts = list(made_up(rows, state))
        busy, wall = time.thread_time(), _ms(lambda: model.resume(parts)) / 1e3
        return {"learner loading_seconds": wall, "learner loading_cpu_seconds": time.thread_time() - busy}


def _scorer_loading(rows: int) -> dict[str, float]:
    with threads(1):
        _, state = blank(rows)
        ServingModel.of(schema(), spec_of(rows), [image for image, _ in made_up(1000, state)])
        parts = [image for image, _ in made_up(rows, state)]
        busy = time.thread_time()
        wall = _ms(lambda: ServingModel.of(schema(), spec_of(rows), parts, {_TABLE: rows})) / 1e3
        return {"scorer loading_seconds": wall, "scorer loading_cpu_seconds": time.thread_time() - busy}


def reset_peak() -> None:
    """Lets the kernel's high-water mark begin anew. Linux."""
    Path("/proc/self/clear_refs").write_text("5")
