# core
"""Imports a log (:mod:`millrace.logs.imported`): reads it once by a schema's rules, and writes its days."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pyarrow.parquet as pq

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import LogError
from millrace.contracts.schema import Schema
from millrace.logs.exposures import TS, read_log
from millrace.logs.imported import MANIFEST, DayFile, Manifest, SourceFile, rules_of
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
) -> Manifest:
    """Imports a log into the folder ``out``, which may have an import: that is replaced.

    Args:
        tick: called with what is done ("rows", then "days"), how many of them, and how many there are.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`; an archive, whose later events are no columns; a
            folder that holds something else.
    """
    if schema.log is not None and schema.log.events is not None:
        raise LogError(f"'{paths[0]}' has later events beside it, as an archive has", "give the archive as it is")
    if out.exists() and any(out.iterdir()) and Manifest.of(out) is None:
        raise LogError(f"'{out}' holds something that is no import", "give a new folder")
    sources = files_of(paths, {j.file for j in schema.join})
    sources += [file for join in schema.join for file in files_of([beside(paths, join.file)])]
    were = [SourceFile.of(file) for file in sources]
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".import-", ignore_cleanup_errors=True) as spool:
        rows = partial(tick, "rows")
        log = read_log(
            list(paths), schema, skip_bad=skip_bad, spool=Path(spool), now_ms=now_ms, everything=True, tick=rows
        )
        day = (log.table[TS].to_numpy() + schema.utc_offset_ms) // DAY_MS
        starts = np.flatnonzero(np.r_[True, day[1:] != day[:-1]])
        (out / MANIFEST).unlink(missing_ok=True)  # from here on it is no import, until all days are there
        for old in out.glob("*.parquet"):
            old.unlink()
        days = []
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(day)], strict=True):
            name = f"{np.datetime64(int(day[start]), 'D')}.parquet"
            pq.write_table(
                log.table.slice(start, stop - start), out / name, row_group_size=_GROUP_ROWS, compression="zstd"
            )
            days.append(DayFile(name, stop - start))
            tick("days", len(days), len(starts))
        decisions = [(one.what, one.column, one.rows, one.remedy) for one in log.decisions]
        made = Manifest(
            rules_of(schema), were, days, log.rows_read, log.duplicates, log.skipped, list(log.notes), decisions
        )
        (Path(spool) / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(made)))
        (Path(spool) / MANIFEST).replace(out / MANIFEST)
    return made
