# core
"""``millrace data forget``: rewrites the archive's files without one user.

Each file with rows of the user is replaced whole, under its name and with its date, so that it expires as before.
The archive may run meanwhile: it never changes a file that its manifest names. Rows that it has not written yet (of
the last ``archive_seconds``, and exposures that wait for their label) are not found: run it again later.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import StoreError
from millrace.contracts.schema import load_schema
from stream.archive.archive_columns import ArchiveColumns
from stream.archive.archive_folder import KINDS, parquet


@dataclass(frozen=True, slots=True)
class Forgotten:
    rows: int
    files: int
    looked_at: int


def forget(archive: Path, user: str) -> Forgotten:
    """Removes all rows of ``user`` from the archive in the folder ``archive``.

    Raises:
        StoreError: there is no archive, or a file cannot be read or written. Files before it are done.
        SchemaError: the archive's schema file cannot be read.
    """
    if not (archive / "schema.toml").exists():
        raise StoreError(
            f"'{archive}' is no archive", "name the data folder that `millrace run archive` writes to with --data"
        )
    user_column = ArchiveColumns(load_schema(archive / "schema.toml")).user
    column = {"events": "user_id", "exposures": user_column, "features": "user_id"}
    rows = files = looked_at = 0
    for kind in KINDS:
        for path in sorted((archive / kind).glob("*.parquet")):
            try:
                removed = _without(path, column[kind], user)
            except FileNotFoundError:  # expired meanwhile
                continue
            except (OSError, pa.ArrowException) as error:
                raise StoreError(f"file '{path}' cannot be written again ({error})", "mend it, or remove it") from None
            looked_at += 1
            files += removed > 0
            rows += removed
    return Forgotten(rows, files, looked_at)


def _without(path: Path, column: str, user: str) -> int:
    found = pc.sum(pc.equal(pq.read_table(path, columns=[column])[column], user)).as_py() or 0
    if found:
        table, date = pq.read_table(path), path.stat()
        kept = table.filter(pc.fill_null(pc.not_equal(table[column], user), True))
        write_whole(path, parquet(kept), durable=True)
        os.utime(path, ns=(date.st_atime_ns, date.st_mtime_ns))
    return int(found)
