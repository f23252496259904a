"""The forms a log or side table may have: Parquet (a file or a folder of files), CSV, TSV, JSON lines.

The name's ending tells the form; text may be compressed (.gz, .bz2, .zst, .lz4). A column has one type in the whole
file: a text deep in a column of numbers makes all of it text in CSV, and is an error that names the column elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from millrace.errors import LogError

_BLOCK = 1 << 30  # text files up to this size have each column's type inferred from the whole file
_FORMS = "Parquet, CSV (.csv), TSV (.tsv) or JSON lines (.jsonl)"


def read_columns(path: Path, wanted: set[str] | None, side_files: Iterable[str] = ()) -> pa.Table:
    """The wanted columns (None: all) that the file, or folder of Parquet files, has."""
    if not path.exists():
        raise LogError(f"log file '{path}' does not exist", f"give the path of a log: {_FORMS}")
    if path.is_dir():
        files = [f for f in sorted(path.glob("*.parquet")) if f.name not in set(side_files)]
        if not files:
            raise LogError(f"folder '{path}' has no Parquet files", "give a folder of *.parquet files, or one file")
        return _concat([read_columns(f, wanted) for f in files], path)
    try:
        return _read_file(path, wanted)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        if "changed from" in reason:  # pyarrow.json on a column of numbers and texts
            raise LogError(
                f"'{path}' mixes kinds of values in one column ({reason})", "use one kind a column"
            ) from None
        raise LogError(f"'{path}' cannot be read ({reason})", "check the file and its ending") from None


def _read_file(path: Path, wanted: set[str] | None) -> pa.Table:
    endings = [s.lower() for s in path.suffixes]
    if endings and endings[-1] in (".gz", ".bz2", ".zst", ".lz4"):
        endings.pop()
    ending = endings[-1] if endings else ""
    if ending in (".parquet", ".pq"):
        names = pq.read_schema(path).names
        return pq.ParquetFile(path).read([n for n in names if wanted is None or n in wanted])
    if ending not in (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json"):
        raise LogError(f"'{path}' ends in '{ending}'", f"the ending tells the form: {_FORMS}")
    with pa.input_stream(str(path)) as stream:
        raw = stream.read_buffer()
    block = min(max(raw.size + 1, 1 << 20), _BLOCK)
    if ending in (".csv", ".tsv", ".tab"):
        table = pacsv.read_csv(
            pa.BufferReader(raw),
            pacsv.ReadOptions(block_size=block),
            pacsv.ParseOptions(delimiter="," if ending == ".csv" else "\t"),
        )
    else:
        table = pajson.read_json(pa.BufferReader(raw), pajson.ReadOptions(block_size=block))
    return table.select([n for n in table.column_names if wanted is None or n in wanted])


def _concat(tables: list[pa.Table], path: Path) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        raise LogError(f"the files of '{path}' disagree ({reason})", "give each column one type in all files") from None


def column_names(file: Path) -> list[str]:
    """All columns of one file."""
    if file.suffix.lower() in (".parquet", ".pq"):
        return list(pq.read_schema(file).names)
    return list(_read_file(file, None).column_names)
