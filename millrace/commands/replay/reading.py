# shell
"""Reads a log for commands: one or several paths, and a place on disk for a log that is larger than memory.

The reader's decisions are printed, and stand in run.json.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from millrace.basics.atomic_files import scratch
from millrace.contracts.schema import Schema, load_schema
from millrace.logs import LogTable, read_log
from millrace.logs.frames import Frame, Log
from millrace.logs.imported import ImportedLog
from millrace.logs.importing import import_log
from millrace.reports.progress import bars


@contextmanager
def reading(
    log: Log | Sequence[Path | Frame], schema: Schema, folder: Path | None, skip_bad: bool = False, say: bool = True
) -> Iterator[LogTable]:
    """The log, for as long as the context lasts.

    Args:
        folder: where a log that is larger than memory is laid out while it is used, or above it if it is not there yet.
            None: the system's folder for temporary files, which may itself be in memory.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
    """
    above = None if folder is None else next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    with scratch(above or Path(tempfile.gettempdir()), "log") as spool:
        now_ms = int(time.time() * 1000)
        with bars(say) as tick:
            table = read_log(log, schema, skip_bad=skip_bad, spool=spool, now_ms=now_ms, tick=partial(tick, "reading"))
        if say:
            say_decisions(table)
        yield table


def import_into(log: Path | Sequence[Path], schema: Path, out: Path, *, skip_bad: bool = False) -> ImportedLog:
    """As :func:`~millrace.logs.importing.import_log`, with progress; prints what was decided."""
    paths = [log] if isinstance(log, Path) else list(log)
    with bars() as tick:
        made = import_log(paths, load_schema(schema), out, skip_bad=skip_bad, now_ms=int(time.time() * 1000), tick=tick)
    rows = sum(day.rows for day in made.days)
    console = Console()
    for line in (*made.notes, f"{rows:,} rows of {len(made.days):,} days in {out}"):
        console.print(line, highlight=False, markup=False)
    return made


def say_decisions(table: LogTable) -> None:
    console = Console()
    if table.skipped:
        console.print(f"{table.skipped:,} bad rows left out", highlight=False)
    for decision in table.decisions:
        console.print(str(decision), highlight=False, markup=False)


def read(log: Log, schema: Schema | Path | str, *, skip_bad: bool = False) -> LogTable:
    """The clean rows of a log, in memory and in the order of time: what a replay runs through.

    Args:
        log: a path, several that are one log, or a frame of pandas, Polars, pyarrow or DuckDB.
        skip_bad: leaves out and counts bad rows, instead of an error.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
    """
    return read_log(log, load_schema(schema), skip_bad=skip_bad, now_ms=int(time.time() * 1000))


def about(log: Sequence[Path | Frame], plan: Schema, table: LogTable) -> dict[str, Any]:
    decisions = [{"what": d.what, "column": d.column, "rows": d.rows, "remedy": d.remedy} for d in table.decisions]
    return {
        "log": str(log[0]) if len(log) == 1 else [str(path) for path in log],
        "schema": plan.source,
        "schema_id": plan.id,
        "notes": list(table.notes),
        "reading": {"rows_read": table.rows_read, "skipped": table.skipped, "decisions": decisions},
    }


def name_of_log(log: Sequence[Path | Frame]) -> str:
    return log[0].name + (f" and {len(log) - 1} more" if len(log) > 1 else "")
