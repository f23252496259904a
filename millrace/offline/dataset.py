# core
"""A log as arrays on disk: features are made once, in event time. Every run of an experiment then reads them.

An experiment trains dozens of models on the same exposures. Their features do not depend on the model. So the code that
serves computes them once (:mod:`millrace.offline.logfeatures`). They are written as ``.npy`` files and mapped into each
worker's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from msgspec import structs
from numpy.typing import NDArray

from millrace.contracts.errors import LogError
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import local_days, read_log
from millrace.offline.grouped import Groups
from millrace.offline.logfeatures import CHUNK_ROWS, Labels, LogFeatures, LogRows

TRUTH = "p_true"
"""Column of a simulated log with the true click probability; no schema names it, so no model can see it."""

FROZEN, COMPARES = "frozen.npy", "compares.txt"
SCALED = {"num": "scaled.npy", "frozen": "frozen_scaled.npy"}
"""Files of the scaled inputs."""


def plain_schema(schema: Schema) -> Schema:
    """The schema with every number fed as it is, since an experiment itself decides how its inputs are scaled."""
    fields = tuple(structs.replace(f, transform="raw") for f in schema.fields)
    return structs.replace(schema, fields=fields, windows=structs.replace(schema.windows, transform="raw"))


@dataclass(frozen=True, slots=True)
class Dataset:
    """n exposures in time order. ``day`` numbers ``days``; ``truth`` is NaN where the world is not known.

    Grouped AUC compares the rows of a ``group``, scored with ``frozen`` in place of ``num`` unless that is None
    (:mod:`millrace.offline.grouped`; ``compares`` says it in words).
    """

    folder: Path
    schema: Schema
    days: tuple[str, ...]
    cat: NDArray[np.int64]  # (n, F)
    num: NDArray[np.float32]  # (n, N) raw statistics
    label: NDArray[np.float32]  # (n,)
    day: NDArray[np.int32]  # (n,)
    user: NDArray[np.uint64]  # (n,)
    ts_ms: NDArray[np.int64]  # (n,)
    truth: NDArray[np.float32]  # (n,)
    group: NDArray[np.intp]  # (n,)
    compares: str
    frozen: NDArray[np.float32] | None  # (n, N) as num, windows frozen at the day's start; 0 in days not asked for

    def rows(self, days: Sequence[int]) -> slice:
        """The rows of consecutive days."""
        first, last = np.searchsorted(self.day, [min(days), max(days) + 1])
        return slice(int(first), int(last))

    def batches(self, rows: slice, size: int, num: NDArray[np.float32]) -> Iterator[SampleBatch]:
        """Consecutive micro-batches, in time order. ``num`` (n, N) are the inputs to use, raw or scaled."""
        for start in range(rows.start, rows.stop, size):
            yield self.batch(slice(start, min(start + size, rows.stop)), num)

    def batch(self, part: slice | NDArray[np.intp], num: NDArray[np.float32]) -> SampleBatch:
        """Some rows as a micro-batch."""
        label = np.array(self.label[part])
        kind = np.where(label > 0, POSITIVE, NEGATIVE).astype(np.uint8)
        return SampleBatch.of_rows(
            kind,
            np.array(self.ts_ms[part]),
            np.array(self.cat[part]),
            np.array(num[part]),
            user=np.array(self.user[part]),
        )


_ARRAYS = ("cat", "num", "label", "day", "user", "ts_ms", "truth", "group")


def prepare(log: Path, schema: Schema, folder: Path, frozen_days: int = 0) -> Dataset:
    """Reads ``log``, computes its features and writes them to ``folder``.

    Args:
        frozen_days: the last days, for which ``frozen`` is wanted. It is None where grouped AUC does not need it.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
    """
    table = read_log(log, schema)
    rows = LogRows(table, schema)
    groups = Groups(table, schema)
    features = LogFeatures(rows, Labels(table, schema, rows), schema, groups.cuts)
    names = local_days(table, schema)
    days = tuple(sorted(set(names)))
    number = {day: i for i, day in enumerate(days)}
    day = np.fromiter((number[d] for d in names), np.int32, rows.n)
    if np.any(np.diff(day) < 0):
        # A log's own day column may disagree with its times around midnight. An experiment needs whole days in order.
        day = np.maximum.accumulate(day)
    folder.mkdir(parents=True, exist_ok=True)
    if len(groups.cuts) and frozen_days:
        frozen = np.lib.format.open_memmap(folder / FROZEN, "w+", np.float32, (rows.n, schema.layout.N))

        def freeze(part: slice) -> None:
            for first, own in groups.starting(part, len(days) - frozen_days):
                frozen[own] = features.frozen(first, own)[1]

        features.write(folder, freeze)
        frozen.flush()
    else:
        features.write(folder)
    np.save(folder / "group.npy", groups.group)
    (folder / COMPARES).write_text(groups.how, encoding="utf-8")
    np.save(folder / "label.npy", rows.label.astype(np.float32))
    np.save(folder / "day.npy", day)
    np.save(folder / "user.npy", rows.hashes(rows.builder.user_column, slice(None)))
    np.save(folder / "ts_ms.npy", rows.ts_ms)
    np.save(folder / "truth.npy", truth_of(log, schema, rows.n, rows.ts_ms))
    return open_dataset(folder, schema, days)


def open_dataset(folder: Path, schema: Schema, days: tuple[str, ...]) -> Dataset:
    """A prepared dataset, mapped read-only."""
    arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    frozen = np.load(folder / FROZEN, mmap_mode="r") if (folder / FROZEN).exists() else None
    return Dataset(
        folder, schema, days, **arrays, compares=(folder / COMPARES).read_text(encoding="utf-8"), frozen=frozen
    )


def scaled(data: Dataset, train: slice) -> NDArray[np.float32]:
    """``num`` as well-scaled inputs: ``log1p``, then mean 0 and variance 1 over the training rows. Written beside the
    dataset (:data:`SCALED`) and mapped; (n, N). ``frozen`` is scaled like it."""
    path = data.folder / SCALED["num"]
    out = np.lib.format.open_memmap(path, "w+", np.float32, data.num.shape)
    total, square, count = 0.0, 0.0, 0
    for start in range(0, len(out), CHUNK_ROWS):
        x = _logs(data.num[start : start + CHUNK_ROWS])
        out[start : start + CHUNK_ROWS] = x
        own = x[: max(0, train.stop - start)]
        total, square, count = total + own.sum(0), square + (own**2).sum(0), count + len(own)
    mean = total / count
    deviation = np.sqrt(np.maximum(square / count - mean**2, 1e-12))
    deviation = np.where(deviation < 1e-6, 1.0, deviation)
    for start in range(0, len(out), CHUNK_ROWS):
        x = np.array(out[start : start + CHUNK_ROWS], np.float64)
        out[start : start + CHUNK_ROWS] = (x - mean) / deviation
    out.flush()
    if data.frozen is not None:
        fixed = np.lib.format.open_memmap(data.folder / SCALED["frozen"], "w+", np.float32, data.num.shape)
        for start in range(0, len(fixed), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            fixed[part] = (_logs(data.frozen[part]).astype(np.float32).astype(np.float64) - mean) / deviation
        fixed.flush()
    mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def _logs(num: NDArray[np.float32]) -> NDArray[np.float64]:
    x = np.array(num, np.float64)
    return np.copysign(np.log1p(np.abs(x)), x)


def truth_of(log: Path, schema: Schema, n: int, ts_ms: NDArray[np.int64]) -> NDArray[np.float32]:
    """True click probabilities of a simulated log, in the order of ``read_log``; NaN for other logs."""
    unknown = np.full(n, np.nan, np.float32)
    files = sorted(log.glob("*.parquet")) if log.is_dir() else [log]
    if any(f.suffix != ".parquet" or TRUTH not in pq.read_schema(f).names for f in files) or schema.log is None:
        return unknown
    tables = [pq.read_table(f, columns=[schema.log.time, TRUTH]) for f in files]
    time = np.concatenate([t[schema.log.time].to_numpy() for t in tables])
    p = np.concatenate([t[TRUTH].to_numpy() for t in tables])
    order = np.argsort(time, kind="stable")
    if len(order) != n or np.any(time[order] != ts_ms):
        raise LogError(f"'{log}' has a truth for {len(order)} rows of {n}", "use the simulator's day logs unchanged")
    out: NDArray[np.float32] = p[order].astype(np.float32)
    return out
