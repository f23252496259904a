# core
"""A log as arrays on disk: features are made in event time, before all runs of an experiment, which then read them.

Features do not depend on the model, so the code that serves computes them one time
(:mod:`millrace.commands.replay.logfeatures`) for dozens of models. They are ``.npy`` files, mapped into each
worker's memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from msgspec import structs
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.basics.errors import LogError
from millrace.commands.offline.slicing import Slice, slice_of
from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.logfeatures import CHUNK_ROWS, Labels, LogRows
from millrace.commands.replay.stretches import Stretches, bounds, write_features
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import EXPOSURE_AGE, Schema
from millrace.logs import LogTable, read_log
from millrace.logs.frames import Frame, Log, log_parts
from millrace.windows.features import finite32

TRUTH = "p_true"
"""Column of a simulated log with the true click probability; no schema names it, so no model can see it."""

FROZEN, DAY_OLD, ABOUT = "frozen.npy", "day_old.npy", "about.json"
SCALED = {"num": "scaled.npy", "frozen": "frozen_scaled.npy", "day_old": "day_old_scaled.npy"}

_FROZEN_AT_ONCE = 4096


def plain_schema(schema: Schema) -> Schema:
    """The schema with every number fed as it is, since an experiment itself decides how its inputs are scaled."""
    fields = tuple(structs.replace(f, transform="raw") for f in schema.fields)
    return structs.replace(schema, fields=fields, windows=structs.replace(schema.windows, transform="raw"))


@dataclass(frozen=True, slots=True)
class Dataset:
    """n exposures in time order. ``day`` numbers ``days``; ``truth`` is NaN where the true probability is unknown.

    Grouped AUC compares the rows of a ``group``, scored with ``frozen`` in place of ``num`` unless that is None
    (:mod:`millrace.commands.replay.grouped`; ``compares`` says it in words). ``figures``: those that the
    groups allow.

    ``day_old`` are the inputs of a daily job: as ``num``, but windows are read at the midnight that begins the row's
    local day, with what happened before it. All of a day's rows of one key see the same counts. Where a log's own days
    do not begin at midnight, windows are read at the day's first row. Beside them ages of items are given to all models
    as the log of the row's own minutes: any job knows them when it serves, and live windows tell them by the minute.

    ``delay_ms`` says how long after its exposure a click came.
    """

    folder: Path
    schema: Schema
    days: tuple[str, ...]
    cat: NDArray[np.int64]  # (n, F)
    num: NDArray[np.float32]  # (n, N) raw statistics
    label: NDArray[np.float32]  # (n,)
    day: NDArray[np.int32]  # (n,)
    user: NDArray[np.uint64]  # (n,)
    item: NDArray[np.uint64]  # (n,)
    ts_ms: NDArray[np.int64]  # (n,)
    truth: NDArray[np.float32]  # (n,)
    group: NDArray[np.intp]  # (n,)
    compares: str
    figures: tuple[str, ...]
    frozen: NDArray[np.float32] | None  # (n, N) as num, windows frozen at the day's start; 0 in days not asked for
    day_old: NDArray[np.float32] | None = None  # (n, N); None where it was not asked for
    delay_ms: NDArray[np.int64] | None = None  # (n,) -1 without a click or its time; None: the log has no such times
    slices: Mapping[str, Slice] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # of the log's reader

    def rows(self, days: Sequence[int]) -> slice:
        first, last = np.searchsorted(self.day, [min(days), max(days) + 1])
        return slice(int(first), int(last))

    def batches(self, rows: slice, size: int, num: NDArray[np.float32]) -> Iterator[SampleBatch]:
        """Consecutive micro-batches, in time order. ``num`` (n, N) are the inputs to use, raw or scaled."""
        for start in range(rows.start, rows.stop, size):
            yield self.batch(slice(start, min(start + size, rows.stop)), num)

    def batch(self, part: slice | NDArray[np.intp], num: NDArray[np.float32]) -> SampleBatch:
        label = np.array(self.label[part])
        kind = np.where(label > 0, POSITIVE, NEGATIVE).astype(np.uint8)
        return SampleBatch.of_rows(
            kind,
            np.array(self.ts_ms[part]),
            np.array(self.cat[part]),
            np.array(num[part]),
            user=np.array(self.user[part]),
        )


_ARRAYS = ("cat", "num", "label", "day", "user", "item", "ts_ms", "truth", "group")


def prepare(
    log: Log | Sequence[Path | Frame],
    schema: Schema,
    folder: Path,
    frozen_days: int = 0,
    *,
    day_old: bool = False,
    slices: Sequence[str] = (),
    skip_bad: bool = False,
) -> Dataset:
    """Reads ``log``, computes its features and writes them to ``folder``.

    Args:
        frozen_days: the last days, for which ``frozen`` is wanted. It is None where grouped AUC does not need it.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
        SettingError: the log has no such column to slice by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = read_log(log, schema, skip_bad=skip_bad, spool=folder)
    cuts_by = {name: slice_of(table, schema, name) for name in slices}
    rows = LogRows(table, schema)
    groups = GroupedRows(table, schema)
    days, day = groups.days, groups.day
    if np.any(np.diff(day) < 0):
        # A log's own day column may disagree with its times around midnight. An experiment needs whole days in order.
        day = np.maximum.accumulate(day)
    shape = (rows.n, schema.layout.N)
    # (cut, the time to read the windows at, rows, where their numbers go)
    wanted: list[tuple[int, int, NDArray[np.intp], NDArray[np.float32]]] = []
    if len(groups.cuts) and frozen_days:
        frozen = np.lib.format.open_memmap(folder / FROZEN, "w+", np.float32, shape)
        starting = groups.starting(slice(0, rows.n), len(days) - frozen_days)
        wanted += [(cut, int(rows.ts_ms[cut]), own, frozen) for cut, own in starting]
    if day_old:
        old = np.lib.format.open_memmap(folder / DAY_OLD, "w+", np.float32, shape)
        wanted += [(*start, old) for start in _day_starts(day, days, rows.ts_ms, schema.utc_offset_ms)]
    wanted.sort(key=lambda one: one[:2])
    cuts = np.unique(np.array([cut for cut, *_ in wanted], np.intp))
    labels = Labels(table, schema, rows)
    made = Stretches(table, schema, cuts=cuts)
    filled = [(own, out) for *_, own, out in wanted]

    def freeze(row: int) -> None:
        while wanted and wanted[0][0] == row:
            cut, at_ms, own, out = wanted.pop(0)
            out[own] = made.frozen(cut, own, at_ms)[1]

    write_features(made, folder, freeze)
    ages = _ages(table, schema, rows) if day_old else {}
    if ages:
        num = np.load(folder / "num.npy", mmap_mode="r+")
        for own, out in filled + [(own, num) for own, out in filled if out is old]:  # a job's days are all of the log
            part = np.array(out[own])
            for column, age in ages.items():
                part[:, column] = age[own]
            rows.builder.compare(part, rows.page[own], rows.ts_ms[own])
            out[own] = part
    np.save(folder / "group.npy", groups.group)
    for i, one in enumerate(cuts_by.values()):
        np.save(folder / f"slice{i}.npy", one.code)
    about = {
        "compares": groups.how,
        "figures": groups.figures,
        "notes": list(table.notes),
        "slices": {name: list(one.values) for name, one in cuts_by.items()},
    }
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    late = _delays(labels, table, schema, rows.ts_ms)
    if late is not None:
        np.save(folder / "delay_ms.npy", late)
    np.save(folder / "label.npy", rows.label.astype(np.float32))
    np.save(folder / "day.npy", day)
    np.save(folder / "user.npy", rows.hashes(rows.builder.user_column, slice(None)))
    np.save(folder / "item.npy", rows.hashes(rows.builder.item_column, slice(None)))
    np.save(folder / "ts_ms.npy", rows.ts_ms)
    np.save(folder / "truth.npy", truth_of(log, schema, rows.n, rows.ts_ms))
    return open_dataset(folder, schema, days)


def _day_starts(
    day: NDArray[np.int32], days: Sequence[str], ts_ms: NDArray[np.int64], offset_ms: int
) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
    """(the first row of the time at which a day begins, the midnight before it, some of the day's rows), day by day.
    The time of that row replaces a midnight that does not part the day's rows from those before."""
    ends = np.append(np.flatnonzero(np.diff(day)) + 1, len(day))
    start = 0
    for end in ends.tolist():
        cut = int(np.searchsorted(ts_ms, ts_ms[start], side="left"))  # rows of one time see the same windows
        midnight = int(np.datetime64(days[day[start]], "ms").astype(np.int64)) - offset_ms
        parts = midnight <= ts_ms[cut] and (cut == 0 or ts_ms[cut - 1] < midnight)
        for at, stop in pairwise((start + bounds(ts_ms[start:end], (), _FROZEN_AT_ONCE)).tolist()):
            yield cut, midnight if parts else int(ts_ms[cut]), np.arange(at, stop)
        start = end


def _ages(table: LogTable, schema: Schema, rows: LogRows) -> dict[int, NDArray[np.float32]]:
    """Column of ``num`` of each age that the schema asks for -> the log of 1 + the item's age in minutes, (n,)."""
    names, ages = schema.layout.num_names, {}
    if EXPOSURE_AGE in names:
        item = rows.hashes(rows.builder.item_column, slice(None))
        _, first, own = np.unique(item, return_index=True, return_inverse=True)
        ages[names.index(EXPOSURE_AGE)] = (rows.ts_ms - rows.ts_ms[first[own]]) / DAY_MS
    if "age_days" in names and "age_days" in table.table.column_names:
        ages[names.index("age_days")] = np.maximum(finite32(table.table["age_days"].to_numpy()), 0)
    return {column: np.log1p(days * (DAY_MS / MINUTE_MS)).astype(np.float32) for column, days in ages.items()}


def _delays(labels: Labels, table: LogTable, schema: Schema, ts_ms: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """How long after its exposure each click came, -1 without one or its time. (n,) None: the log has no such times."""
    assert schema.log is not None
    name = schema.log.action_times.get(labels.action)
    if name is None:
        return None
    timed = table.table[name].is_valid().to_numpy()
    return np.where(labels.clicked & timed, labels.acted_ms - ts_ms, -1)


def open_dataset(folder: Path, schema: Schema, days: tuple[str, ...]) -> Dataset:
    def mapped(name: str) -> Any:
        return np.load(folder / name, mmap_mode="r") if (folder / name).exists() else None

    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return Dataset(
        folder,
        schema,
        days,
        **{name: mapped(f"{name}.npy") for name in _ARRAYS},
        compares=about["compares"],
        figures=tuple(about["figures"]),
        frozen=mapped(FROZEN),
        day_old=mapped(DAY_OLD),
        delay_ms=mapped("delay_ms.npy"),
        slices={name: Slice(mapped(f"slice{i}.npy"), tuple(v)) for i, (name, v) in enumerate(about["slices"].items())},
        notes=tuple(about["notes"]),
    )


def scaled(data: Dataset, train: slice) -> NDArray[np.float32]:
    """``num`` as well-scaled inputs (n, N): ``log1p``, then mean 0 and variance 1 over the training rows. Written
    beside the dataset (:data:`SCALED`) and mapped. ``frozen`` and ``day_old`` are scaled like it."""
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
    for name, given in (("frozen", data.frozen), ("day_old", data.day_old)):
        if given is None:
            continue
        fixed = np.lib.format.open_memmap(data.folder / SCALED[name], "w+", np.float32, data.num.shape)
        for start in range(0, len(fixed), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            fixed[part] = (_logs(given[part]).astype(np.float32).astype(np.float64) - mean) / deviation
        fixed.flush()
    mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def _logs(num: NDArray[np.float32]) -> NDArray[np.float64]:
    x = np.array(num, np.float64)
    return np.copysign(np.log1p(np.abs(x)), x)


def truth_of(
    log: Log | Sequence[Path | Frame], schema: Schema, n: int, ts_ms: NDArray[np.int64]
) -> NDArray[np.float32]:
    """True click probabilities of a simulated log, in the order of ``read_log``; NaN for other logs."""
    unknown = np.full(n, np.nan, np.float32)
    (part, *more) = log_parts(log)
    if more or isinstance(part, Frame):
        return unknown
    files = sorted(part.glob("*.parquet")) if part.is_dir() else [part]
    if (
        not files
        or any(f.suffix != ".parquet" or TRUTH not in pq.read_schema(f).names for f in files)
        or schema.log is None
    ):
        return unknown
    tables = [pq.read_table(f, columns=[schema.log.time, TRUTH]) for f in files]
    time = np.concatenate([t[schema.log.time].to_numpy() for t in tables])
    p = np.concatenate([t[TRUTH].to_numpy() for t in tables])
    order = np.argsort(time, kind="stable")
    if len(order) != n or np.any(time[order] != ts_ms):
        raise LogError(f"'{part}' has a truth for {len(order)} rows of {n}", "use the simulator's day logs unchanged")
    out: NDArray[np.float32] = p[order].astype(np.float32)
    return out
