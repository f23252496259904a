# core
"""Imports a log (:mod:`millrace.logs.imported`): reads it once by a schema's rules, and writes its days."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from millrace.basics.atomic_files import scratch, write_whole
from millrace.basics.durations import DAY_MS
from millrace.basics.errors import LogError
from millrace.contracts.schema import Schema
from millrace.logs.exposures import TS, read_log
from millrace.logs.imported import MANIFEST, DayFile, ImportedLog, SourceFile, is_ours, rules_of
from millrace.logs.log_files import files_of
from millrace.logs.log_joins import beside

_GROUP_ROWS = 1 << 16


def import_log(
    paths: Sequence[Path],
    schema: Schema,
    out: Path,
    *,
    skip_bad: bool = False,
    now_ms: int | None = None,
    tick: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> ImportedLog:
    """Imports a log into the folder ``out``, which may have an import: that is replaced.

    Args:
        tick: called with what is done ("rows read", then "rows written"), how many of them, and how many there are.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`; an archive, whose later events are no columns; a
            folder that holds something else.
    """
    if schema.log is not None and schema.log.events is not None:
        raise LogError(f"'{paths[0]}' has later events beside it, as an archive has", "give the archive as it is")
    there = [path for path in out.iterdir() if not path.name.endswith(".tmp")] if out.exists() else []
    if there and not ((out / MANIFEST).exists() and all(map(is_ours, there))):
        raise LogError(f"'{out}' holds something that is no import", "give a new folder")
    sources = files_of(paths, {j.file for j in schema.join})
    sources += [file for join in schema.join for file in files_of([beside(paths, join.file)])]
    were = [SourceFile.of(file) for file in sources]
    out.mkdir(parents=True, exist_ok=True)
    with scratch(out, "import") as spool:
        rows = partial(tick, "rows read")
        log = read_log(list(paths), schema, skip_bad=skip_bad, spool=spool, now_ms=now_ms, everything=True, tick=rows)
        days = _write_days(log.table, schema.utc_offset_ms, spool, partial(tick, "rows written"))
        told = list(log.notes), list(log.decisions)
        made = ImportedLog(rules_of(schema), were, days, log.rows_read, log.duplicates, log.skipped, *told)
        (out / MANIFEST).write_text("days are being replaced")  # nobody can read them until all are there
        for old in there:
            if old.name != MANIFEST:
                old.unlink(missing_ok=True)
        for day in days:
            (spool / day.name).replace(out / day.name)
        write_whole(out / MANIFEST, msgspec.json.format(msgspec.json.encode(made)), durable=False)
    return made


def _write_days(table: pa.Table, utc_offset_ms: int, out: Path, tick: Callable[[int, int], None]) -> list[DayFile]:
    """Writes rows in order of time, a file a local day. ``tick``: takes rows done, and all rows."""
    days: list[DayFile] = []
    done = 0
    with ExitStack() as open_files:
        for batch in table.to_batches():
            day = (batch.column(TS).to_numpy() + utc_offset_ms) // DAY_MS
            starts = [0, *(np.flatnonzero(np.diff(day)) + 1).tolist()]
            for start, stop in zip(starts, [*starts[1:], len(day)], strict=True):
                name = f"{np.datetime64(int(day[start]), 'D')}.parquet"
                if not days or days[-1].name != name:
                    open_files.close()
                    file = open_files.enter_context(pq.ParquetWriter(out / name, table.schema, compression="zstd"))
                    days.append(DayFile(name, 0))
                file.write_batch(batch.slice(start, stop - start), row_group_size=_GROUP_ROWS)
                days[-1] = DayFile(name, days[-1].rows + stop - start)
            done += len(day)
            tick(done, table.num_rows)
    return days
