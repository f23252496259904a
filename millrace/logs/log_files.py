# core
"""The files of a log, and their forms: Parquet, CSV, TSV, JSON lines, a database's table, a SELECT.

A log is one file, a folder of files, or several of both; files of a folder come in the order of their names. The
name's ending gives the form. Text may be compressed (.gz, .bz2, .zst, .lz4). A column has one type in the whole log. In
CSV, one text makes a column of numbers a column of texts; in other forms that is a fault. Values are plain
(:mod:`millrace.logs.plain_types`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from millrace.basics.errors import LogError
from millrace.logs.frames import Frame
from millrace.logs.text import FileForm

FORMS = "Parquet, CSV (.csv), TSV (.tsv), JSON lines (.jsonl), a .duckdb file or a SELECT (.sql)"
PARQUET = (".parquet", ".pq")
DATABASE = (".duckdb", ".sql")
TEXT = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


@dataclass(frozen=True, slots=True)
class Ending:
    """Form and compression by a file's name."""

    form: str  # ``.parquet``, ``.csv`` and so on; empty: unknown
    compressed: bool

    @classmethod
    def of(cls, path: Path | Frame, text: bool = False) -> Ending:
        """Of a name like ``log.csv.gz``. ``text``: without a known ending (``u.data``) it is a CSV, since the schema
        names its separator or columns."""
        endings = [s.lower() for s in path.suffixes]
        packed = bool(endings) and endings[-1] in COMPRESSED
        if packed:
            endings.pop()
        form = endings[-1] if endings else ""
        return cls(".csv" if text and form not in (*PARQUET, *TEXT, *DATABASE) else form, packed)


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


def sources_of(parts: Sequence[Path | Frame], side_files: Iterable[str] = ()) -> list[Path | Frame]:
    """Frames as they are, and :func:`files_of` paths, in their order."""
    found: list[Path | Frame] = []
    for part in parts:
        found += [part] if isinstance(part, Frame) else files_of([part], side_files)
    return found


def _in_folder(folder: Path, side: set[str]) -> list[Path]:
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name not in side and f.name[0] not in "._"]
    parquet = [f for f in files if f.name.endswith(".parquet")]
    return parquet or [f for f in files if Ending.of(f).form in TEXT]


class named:
    """Turns a reader's exceptions into a LogError that names the file."""

    def __init__(self, path: Path | Frame) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        path = self._path
        if isinstance(error, UnicodeDecodeError):
            raise LogError(f"'{path}' is no UTF-8 text ({error})", "save it as UTF-8, or name its encoding") from None
        if isinstance(error, pa.ArrowException | OSError | csv.Error | duckdb.Error):
            reason = str(error).strip().split("\n")[0][:300]
            remedy = "correct it" if isinstance(path, Frame) else "check the file and its ending"
            if Ending.of(path).form in PARQUET and ("footer" in reason or "magic" in reason or "too small" in reason):
                remedy = "copy it again: it is cut off, or no Parquet"
            raise LogError(f"'{path}' cannot be read ({reason})", remedy) from None


def text_ending(path: Path, form: FileForm) -> str:
    """The ending of a text file. Raises LogError for an unknown ending."""
    ending = Ending.of(path, text=bool(form.columns or form.separator))
    if ending.form in PARQUET and ending.compressed:
        raise LogError(f"'{path}' is Parquet in a compressed file", "unpack it: Parquet compresses within")
    if ending.form not in TEXT:
        raise LogError(f"'{path}' ends in '{ending.form}'", f"the ending tells the form: {FORMS}")
    return ending.form
