# core
"""Reading an exposure log: any table with one row an exposure, as a schema's ``[log]`` section describes it.

The result is a clean table, or one error that names all faults.

- Files: Parquet, CSV, TSV, JSON lines (:mod:`~millrace.logs.log_files`), or a page a row
  (:mod:`~millrace.logs.unrolled`).
- Side tables (``[[join]]``) stand beside the log (:mod:`~millrace.logs.log_joins`). The log wins where both have a
  column.
- Only the columns that the schema names are kept. Outcomes of the exposure (dwell time, likes) are inputs only if a
  schema names them, and the label or an action's time may never be a field.
- Rows are sorted by time, ties in file order. Copies are merged by ``log.identity`` (:mod:`~millrace.logs.sorting`);
  without it, rows that look like copies are counted.
- The rows lie in a mapped file, if the caller names a folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pyarrow as pa

from millrace.basics import durations
from millrace.basics.arrow_rows import ArrowRows
from millrace.basics.atomic_files import scratch, write_whole
from millrace.basics.errors import LogError, SchemaError
from millrace.contracts.events import LAST_MS
from millrace.contracts.schema import Schema
from millrace.logs.cleanrows import Rows, Wanted
from millrace.logs.columnchecks import iso_day
from millrace.logs.faults import Decision, Faults
from millrace.logs.frames import Frame, Log, log_parts
from millrace.logs.imported import ImportedLog, imported_of
from millrace.logs.log_files import sources_of
from millrace.logs.log_joins import SideTables
from millrace.logs.plausibility import Plausibility, out_of_order
from millrace.logs.sorting import TS, Sorting, laid, mapped
from millrace.logs.source import STRETCH_ROWS, LogSource
from millrace.logs.text import FileForm

ROWS = "log.arrow"
"""The mapped file of a table, in its folder."""

__all__ = ["TS", "LogTable", "local_days", "read_log"]


@dataclass(frozen=True, slots=True)
class LogTable(ArrowRows):
    """A log, sorted by time, without duplicates. Any reader of Arrow takes it."""

    table: pa.Table
    """The schema's columns under their own names, the label as int8, action times as ms (null: did not happen), and
    ``ts_ms`` int64, the time of the exposure. A log that is mapped from a file is in many pieces: take slices of it,
    never all of a text column."""
    user: str
    item: str
    label: str  # user, item, label: names of columns
    rows_read: int
    duplicates: int
    notes: tuple[str, ...] = ()  # decisions of the reader and other remarks for a person, one line each
    decisions: tuple[Decision, ...] = ()  # decisions about rows, with counts
    skipped: int = 0
    ordered: bool = True  # whether the rows came in the order of time


def read_log(
    path: Log | Sequence[Path | Frame],
    schema: Schema,
    *,
    skip_bad: bool = False,
    spool: Path | None = None,
    now_ms: int | None = None,
    stretch_rows: int = STRETCH_ROWS,
    everything: bool = False,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> LogTable:
    """Reads and cleans the log; the rules are in the module's docstring.

    Args:
        path: a file or a folder, or several: one log, in their order; or a frame (:mod:`~millrace.logs.frames`).
        skip_bad: leaves out and counts bad rows, instead of an error.
        spool: a folder for the mapped file of the table. The caller removes it when the table is no longer used.
            Without it the table is in memory.
        now_ms: the present, to count times of the future.
        stretch_rows: so many rows are read, checked and written at a time.
        everything: keeps all columns of the log and of its side tables, fields as they come: for an import.
        tick: called with rows read, and all rows of the log, where they are known.

    Raises:
        LogError: no such file, unreadable, empty.
        LogFaults: all faults of rows and columns together: a wanted column that stands twice or holds lists; a missing
            time, user, item, label or day; a label that is not 0 or 1; an invalid time, day, position or number; a time
            before 1990; ids that mix numbers and text or that a float cannot distinguish.
        SchemaError: the schema has no [log] section, feeds the label as a field, or names a column that neither the log
            nor a side table has.
    """
    paths = log_parts(path)
    log = schema.log
    if log is None:
        raise SchemaError(f"schema '{schema.name}' has no [log] section", "say there which columns mean what")
    if not paths:
        raise LogError("no log is named", "give the path of a log")
    imported = imported_of(paths)
    if imported is not None:
        return _of_import(*imported, schema, skip_bad=skip_bad, spool=spool, now_ms=now_ms, tick=tick)
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    faults, wanted, form = Faults(name, skip_bad), Wanted(schema, log, everything), FileForm.of(log)
    files = sources_of(paths, {j.file for j in schema.join})
    with TemporaryDirectory(prefix="log-", dir=spool) as made:
        room = Path(made)
        side = SideTables.read(paths, schema, None if everything else wanted.kept, faults, room)
        rows, plausibility = Rows(paths, schema, wanted, side, faults), Plausibility(schema, faults, now_ms)
        used = {TS, log.day, log.request, *log.action_times.values(), *(f.name for f in schema.fields)}
        drop = set() if everything else {log.time, log.born or log.time} - used  # their places are ts_ms and age_days
        source, sorting = (
            LogSource(files, wanted.raw, form, faults, paths[0], room),
            Sorting(log, tuple(schema.outcome_columns), drop, room),
        )
        if faults.broken():
            for _ in source.stretches(stretch_rows):  # which tells of the lines that are no rows
                pass
            faults.verdict()
        rows_read = late = newest_ms = 0
        bound_ms = durations.minutes_of(log.disorder) * durations.MINUTE_MS
        future_ms = LAST_MS if now_ms is None else now_ms + durations.DAY_MS
        for raw in source.stretches(stretch_rows):
            cleaned = rows.clean(raw, rows_read)
            rows_read += raw.num_rows
            if source.rows:
                tick(min(rows_read, source.rows), source.rows)
            if cleaned is None or faults.broken():
                continue
            columns = pa.table(cleaned[0])
            behind, newest_ms = out_of_order(columns[TS].to_numpy(), newest_ms, bound_ms, future_ms)
            late += int(behind.sum())
            sorting.add(columns)
        _verdict(faults, sorting.rows, rows_read, name)
        faults.decide(f"rows come more than {log.disorder} too late in the file, and are sorted", log.time, late,
                      "sort the log by time")  # fmt: skip
        parts = sorting.sorted(stretch_rows)
        if spool is None:
            table = pa.concat_tables([_looked(part, plausibility) for part in parts]).combine_chunks()
        else:
            table = laid(spool / ROWS, (_looked(part, plausibility) for part in parts))
        if not log.identity:
            plausibility.alike(sorting.alike())
    plausibility.end()
    decisions = faults.decisions()
    notes = (*side.notes(), *map(str, decisions))
    copies = sorting.rows - table.num_rows
    return LogTable(
        table, log.user, log.item, log.label, rows_read, copies, notes, decisions, faults.skipped, sorting.ordered
    )


def _of_import(
    imported: ImportedLog, folder: Path, schema: Schema, *, skip_bad: bool, spool: Path | None, **how: Any
) -> LogTable:
    """The rows of an import, mapped from a file that the first command with this schema makes."""
    settled = imported.settled(schema, folder)
    kept = folder / f"rows-{imported.key(settled, skip_bad)}.arrow"
    if kept.exists():
        said = msgspec.json.decode(kept.with_suffix(".json").read_bytes(), type=_Said)
        table = mapped(kept)
    else:
        with ExitStack() as ours:
            if os.access(folder, os.W_OK):
                spool = ours.enter_context(scratch(folder, kept.stem))
            read = read_log(imported.files(folder), settled, skip_bad=skip_bad, spool=spool, **how)
            notes = [note for note in read.notes if note not in imported.notes]
            said = _Said(notes, list(dict.fromkeys((*imported.decisions, *read.decisions))), read.skipped)
            table = read.table
            if spool is not None and spool.parent == folder:
                write_whole(kept.with_suffix(".json"), msgspec.json.encode(said), durable=False)
                (spool / ROWS).replace(kept)
    log, skipped = settled.log, imported.skipped + said.skipped
    assert log is not None
    return LogTable(
        table, log.user, log.item, log.label, imported.rows_read, imported.duplicates,
        (*imported.notes, *imported.changed(), *said.notes),
        tuple(said.decisions), skipped, True,
    )  # fmt: skip


class _Said(msgspec.Struct):
    """What was said of rows that are kept."""

    notes: list[str]
    decisions: list[Decision]
    skipped: int


def _looked(part: pa.Table, plausibility: Plausibility) -> pa.Table:
    plausibility.look(part)
    return part


def _verdict(faults: Faults, rows: int, read: int, log: str) -> None:
    faults.verdict()
    if not rows:
        if read:
            raise LogError(f"log '{log}' has no good row among {read:,}", "see without --skip-bad what is wrong")
        raise LogError(f"log '{log}' has no rows", "give a log with at least one exposure")


def local_days(log: LogTable, schema: Schema) -> list[str]:
    """The local day of each row as ``YYYY-MM-DD``: the log's day column if it has one, else from time and offset."""
    if schema.log is not None and schema.log.day is not None:
        names = {v: iso_day(v) for v in log.table[schema.log.day].unique().to_pylist()}
        return [names[v] for v in log.table[schema.log.day].to_pylist()]
    local = (log.table[TS].to_numpy() + schema.utc_offset_ms).astype("datetime64[ms]").astype("datetime64[D]")
    return [str(day) for day in local]
