# core
"""Text files of a log: how they are written, and what their first lines say."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from millrace.basics.errors import LogError
from millrace.contracts.logforms import Join, LogColumns
from millrace.logs.faults import Faults

CSV = (".csv", ".tsv", ".tab")
HEAD = 1 << 20
"""A header is searched for in this many bytes."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
NO_QUOTING = "say quoting = false where quotes are letters of the text, as in titles"
"""Remedy for a quote that opens a value and is never closed."""
_NO_TEXT = {
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"\x1f\x8b": ("compressed (gzip)", "let its name end in .gz too"),
    b"\x28\xb5\x2f\xfd": ("compressed (zstd)", "let its name end in .zst too"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"PK\x03\x04": ("a spreadsheet or a zip archive", "export it as CSV"),
}
"""First bytes that no text file has: (form of such a file, remedy)."""


@dataclass(frozen=True, slots=True)
class FileForm:
    """What is to be known of a file, beyond its ending."""

    columns: tuple[str, ...] = ()  # names of the columns of a text file without a header line
    separator: str | None = None
    encoding: str = "utf-8"
    quoting: bool = True
    """A value in quotes may hold separators and line breaks; else a quote is an ordinary character."""
    texts: frozenset[str] = frozenset()
    """Columns of CSV that are text, whatever they look like: ids beyond 64 bits, or with zeros in front."""
    table: str | None = None  # of a database's file
    attach: tuple[tuple[str, str], ...] = ()  # name and address of each database that a SELECT may name
    extensions: tuple[str, ...] = ()  # of DuckDB, to load

    @classmethod
    def of(cls, said: LogColumns | Join) -> FileForm:
        """As a schema's section describes it."""
        text = said.columns, said.separator, said.encoding, said.quoting
        if not isinstance(said, LogColumns):
            return cls(*text)
        return cls(*text, frozenset(said.texts), said.table, tuple(said.attach.items()), said.extensions)


def first_lines(read: Path, path: Path, ending: str, form: FileForm, wanted: set[str] | None) -> str:
    """The beginning of a text file. ``read``: where its text is, if not in ``path``. Raises LogError for a file of
    another form."""
    with pa.input_stream(str(read)) as stream:
        head = stream.read(HEAD)
    for start, (what, remedy) in _NO_TEXT.items():
        if head.startswith(start):
            raise LogError(f"'{path}' ends in '{ending}' but is {what}", remedy)
    text: str = head.decode("utf-8-sig", "replace")
    if ending not in CSV:
        if text.lstrip().startswith("["):
            raise LogError(f"'{path}' is one JSON array", "write one object a line, without brackets")
    else:
        head.split(b"\n", 1)[0].decode()
        _check_separator(text, path, ending, form, wanted)
    return text


def unpacked(path: Path, form: FileForm, room: Path, faults: Faults | None = None) -> Path:
    """A file of UTF-8 text that DuckDB reads: the file itself, or a copy in ``room``. ``faults``: a copy in any case,
    of what can be read; a lost end is a fault."""
    utf8 = codecs.lookup(form.encoding).name in ("utf-8", "utf-8-sig")
    if faults is None and utf8 and path.suffix.lower() not in (".bz2", ".lz4"):
        return path
    copy, decode = room / f"{len(list(room.iterdir()))}.txt", codecs.getincrementaldecoder(form.encoding)()
    with copy.open("wb") as out:
        for piece in _pieces(path, faults or Faults(str(path), skip_bad=True)):
            out.write(piece if utf8 else decode.decode(piece).encode())
    return copy


def _pieces(path: Path, faults: Faults) -> Iterator[bytes]:
    rest, some = b"", False
    with pa.input_stream(str(path)) as stream:
        while True:
            try:
                read = stream.read(1 << 16)
            except OSError as error:
                reason = str(error).strip().split("\n")[0][:200]
                problem = f"'{path}' cannot be read to its end ({reason})"
                if b"\n" not in rest and not some:
                    raise
                faults.count("cut off", str(path), 1, 0, "", problem, "copy it again; its end is lost")
                yield rest[: rest.rfind(b"\n") + 1]
                return
            if not read:
                yield rest
                return
            yield rest
            rest, some = read, some or b"\n" in rest


def _check_separator(text: str, path: Path, ending: str, form: FileForm, wanted: set[str] | None) -> None:
    """Raises where only another separator splits the header: else it would be read as one odd column."""
    by = form.separator or ("," if ending == ".csv" else "\t")
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    columns = {one: [name.strip(' "') for name in header.split(one)] for one in _SEPARATORS}
    mine = columns.pop(by, None) or header.split(by)
    meant = _SEPARATORS.get(by, f"'{by}'")
    wanted = wanted or set()
    for other_by, found in columns.items():
        if form.columns:
            other_one = len(mine) == 1 < len(form.columns) == len(found)
        else:
            named = wanted.isdisjoint(mine) and not wanted.isdisjoint(found)
            other_one = len(found) > 1 and (len(mine) == 1 or named)
        if other_one and not (form.separator and form.separator in header):
            remedy = f"write it with {meant}, or as Parquet, or name its separator in the schema"
            other = {",": ".csv", "\t": ".tsv"}.get(other_by)
            where = f"the schema says {meant}" if form.separator else f"'{ending}' means {meant}"
            raise LogError(
                f"'{path}' is separated by {_SEPARATORS[other_by]} ('{header[:60]}'), where {where}",
                remedy + (f", or let its name end in {other}" if other and not form.separator else ""),
            )


_DATA = re.compile(r"^[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?$|^\d{1,4}[-/]\d\d?[-/]\d{1,4}|^\S+-[01]( \S+-[01])*$")


def is_data(cells: Sequence[str]) -> bool:
    """Whether a first line is no header: it has a number, a date or pairs of item and label."""
    return any(_DATA.match(cell.strip(' "\r\n')) for cell in cells)
