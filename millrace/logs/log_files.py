# core
"""The files of a log, and their forms: Parquet, CSV, TSV, JSON lines.

A log is one file, a folder of files, or several of both; files of a folder come in the order of their names. The
name's ending gives the form. Text may be compressed (.gz, .bz2, .zst, .lz4). A column has one type in the whole log. In
CSV, one text makes a column of numbers a column of texts; in other forms that is a fault. Values are plain
(:mod:`millrace.logs.plain_types`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from millrace.basics.errors import LogError
from millrace.logs.faults import Faults
from millrace.logs.plain_types import plain
from millrace.logs.text import TextForm, TextReader, blocks, wanted_once

FORMS = "Parquet, CSV (.csv), TSV (.tsv) or JSON lines (.jsonl)"
PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_TIMES_COMPRESSED = 5  # about how much smaller compressed text is


@dataclass(frozen=True, slots=True)
class Ending:
    """Form and compression by a file's name."""

    form: str  # ``.parquet``, ``.csv`` and so on; empty: unknown
    compressed: bool

    @classmethod
    def of(cls, path: Path, text: bool = False) -> Ending:
        """Of a name like ``log.csv.gz``. ``text``: without a known ending (``u.data``) it is a CSV, since the schema
        names its separator or columns."""
        endings = [s.lower() for s in path.suffixes]
        packed = bool(endings) and endings[-1] in COMPRESSED
        if packed:
            endings.pop()
        form = endings[-1] if endings else ""
        return cls(".csv" if text and form not in (*PARQUET, *TEXT) else form, packed)


def files_of(paths: Sequence[Path], side_files: Iterable[str] = ()) -> list[Path]:
    """The log's files, in their order, without side tables and hidden files. Raises LogError when there are none. A
    folder's Parquet files are its log; without any, its text files; without both, those of the folders in it."""
    side = set(side_files)
    found = []
    for path in paths:
        if not path.exists():
            raise LogError(f"log file '{path}' does not exist", f"give the path of a log: {FORMS}")
        if not path.is_dir():
            found.append(path)
            continue
        files = _in_folder(path, side)
        for folder in sorted(p for p in path.rglob("*") if p.is_dir() and not p.name.startswith((".", "_"))):
            files = files or _in_folder(folder, side) or []
            if files and files[0].parent == folder:  # all folders of the first that has some, side by side
                files = [f for p in sorted(folder.parent.iterdir()) if p.is_dir() for f in _in_folder(p, side)]
                break
        if not files:
            raise LogError(f"folder '{path}' has no Parquet files or text files of a log", f"give a folder of {FORMS}")
        found += files
    return found


def _in_folder(folder: Path, side: set[str]) -> list[Path]:
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name not in side and f.name[0] not in "._"]
    parquet = [f for f in files if f.name.endswith(".parquet")]
    return parquet or [f for f in files if Ending.of(f).form in TEXT]


def estimated_bytes(files: Iterable[Path], wanted: set[str]) -> int:
    """About how much memory the wanted columns take: text counts its file's size, Parquet the unpacked columns.
    Unreadable files count 0: reading them later reports the reason."""
    total = 0
    for file in files:
        ending = Ending.of(file)
        try:
            if ending.form in PARQUET:
                meta = pq.read_metadata(file)
                for g in range(meta.num_row_groups):
                    group = meta.row_group(g)
                    columns = (group.column(c) for c in range(group.num_columns))
                    packed = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in wanted)
                    total += max(packed, 8 * len(wanted) * group.num_rows)  # dictionaries unpack to whole values
            else:
                total += file.stat().st_size * (_TIMES_COMPRESSED if ending.compressed else 1)
        except (OSError, pa.ArrowException):
            continue
    return total


def read_files(files: Sequence[Path], wanted: set[str], log: Path, form: TextForm, faults: Faults) -> pa.Table:
    """The wanted columns of several files, one after the other, read whole. ``faults`` takes the lines that are not
    rows.

    Raises:
        LogFaults: a file is unreadable or not of the form of its ending; or a wanted column occurs twice, is not UTF-8
            text or does not fit.
        LogError: the files disagree.
    """
    tables: list[pa.Table] = []
    for file in files:
        row = sum(t.num_rows for t in tables)
        with faults.whole():
            with named(file):
                table = _read(file, wanted, form, faults, row)
            tables.append(pa.table({name: plain(table[name], name, file, row) for name in table.column_names}))
    if faults.broken():
        faults.verdict()
    try:
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        raise LogError(f"the files of '{log}' disagree ({reason})", "give each column one type in all files") from None


class named:
    """Turns a reader's exceptions into a LogError that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        path = self._path
        if isinstance(error, UnicodeDecodeError):
            raise LogError(f"'{path}' is no UTF-8 text ({error})", "save it as UTF-8, or name its encoding") from None
        if isinstance(error, pa.ArrowException | OSError):
            reason = str(error).strip().split("\n")[0][:300]
            twice = re.search(r"Column\(/(.*)\) was specified twice in row (\d+)", reason)
            if twice:  # pyarrow.json on a key, wanted or not
                problem = f"'{path}': column '{twice[1]}' stands twice in row {int(twice[2]) + 1}"
                raise LogError(problem, "write each key of an object once") from None
            remedy = "check the file and its ending"
            if Ending.of(path).form in PARQUET and ("footer" in reason or "magic" in reason or "too small" in reason):
                remedy = "copy it again: it is cut off, or no Parquet"
            raise LogError(f"'{path}' cannot be read ({reason})", remedy) from None


def column_names(file: Path, form: TextForm) -> list[str]:
    if Ending.of(file).form in PARQUET:
        return list(pq.read_schema(file).names)
    return list(_read(file, None, form, Faults(str(file), skip_bad=True), 0).column_names)


def text_ending(path: Path, form: TextForm) -> str:
    """The ending of a text file. Raises LogError for an unknown ending."""
    ending = Ending.of(path, text=bool(form.columns or form.separator))
    if ending.form in PARQUET and ending.compressed:
        raise LogError(f"'{path}' is Parquet in a compressed file", "unpack it: Parquet compresses within")
    if ending.form not in TEXT:
        raise LogError(f"'{path}' ends in '{ending.form}'", f"the ending tells the form: {FORMS}")
    return ending.form


def _read(path: Path, wanted: set[str] | None, form: TextForm, faults: Faults, row: int) -> pa.Table:
    """The wanted columns, each once; or (None) all columns, however often each occurs."""
    ending = Ending.of(path)
    if ending.form in PARQUET and not ending.compressed:
        names = wanted_once(list(pq.read_schema(path).names), wanted or set(), path)
        return pq.ParquetFile(path).read(names).select(names)  # read() takes "a.b" for a part of "a"
    reader = TextReader(path, text_ending(path, form), form, wanted, faults, row)
    (raw,) = blocks(path, None, faults)
    return reader.table(raw)
