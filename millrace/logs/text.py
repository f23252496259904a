# core
"""Text files of a log: bytes to blocks of whole lines, blocks to tables. CSV and JSON lines, compressed or not.

A file is one block when read whole, many when streamed. Invalid lines are counted as faults and left out: a line with
another number of columns, a broken JSON object, a lost end.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from millrace.basics.errors import LogError
from millrace.contracts.logforms import Join, LogColumns
from millrace.logs.faults import Faults
from millrace.logs.jsonlines import has_null_line, readable

_BLOCK = 1 << 30  # in text files up to this size, each column's type is inferred from the whole file
_HEAD = 1 << 20  # a header is searched for in this many bytes
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_QUOTE = '"'
NO_QUOTING = "say quoting = false where quotes are letters of the text, as in titles"
"""Remedy for a quote that opens a value and is never closed."""
_ONE_BYTE = "\x1f"  # stands for a separator of more than one character: ASCII's own separator of units
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
class TextForm:
    """How a text file is written, beyond its ending."""

    columns: tuple[str, ...] = ()  # names of the columns of a file without a header line
    separator: str | None = None
    encoding: str = "utf-8"
    quoting: bool = True
    """A value in quotes may hold separators and line breaks; else a quote is an ordinary character."""
    as_written: frozenset[str] = frozenset()
    """Columns of times that may name a zone or not: the reader of JSON would forget which."""
    texts: frozenset[str] = frozenset()
    """Columns of CSV that are text, whatever they look like: ids beyond 64 bits, or with zeros in front."""

    @classmethod
    def of(cls, said: LogColumns | Join) -> TextForm:
        """As a schema's section describes it."""
        if not isinstance(said, LogColumns):
            return cls(said.columns, said.separator, said.encoding, said.quoting)
        times = frozenset((said.time, *said.action_times.values())) if said.local_times else frozenset()
        return cls(said.columns, said.separator, said.encoding, said.quoting, times, frozenset(said.texts))


def blocks(path: Path, size: int | None, faults: Faults) -> Iterator[pa.Buffer]:
    """The file's bytes, uncompressed, in pieces of whole lines; ``size`` None: in one piece. A file whose compression
    breaks off is a fault; the pieces hold what could be read before it."""
    with pa.input_stream(str(path)) as stream:
        if size is not None:
            yield from _pieces(stream, size, path, faults)
            return
        try:
            whole = stream.read_buffer()
        except OSError:
            whole = _as_far(path, faults)
        yield whole


def _as_far(path: Path, faults: Faults) -> pa.Buffer:
    """The readable part of a file that breaks off. Raises OSError if it is empty."""
    with pa.input_stream(str(path)) as stream:
        found = b"".join(piece.to_pybytes() for piece in _pieces(stream, 1 << 16, path, faults))
    return pa.py_buffer(found)


def _pieces(stream: pa.NativeFile, size: int, path: Path, faults: Faults) -> Iterator[pa.Buffer]:
    rest, some = b"", False
    while True:
        try:
            read = stream.read(size)
        except OSError as error:
            if not (rest or some):
                raise
            reason = str(error).strip().split("\n")[0][:200]
            problem = f"'{path}' cannot be read to its end ({reason})"
            faults.count("cut off", str(path), 1, 0, "", problem, "copy it again; its end is lost")
            read, rest = b"", rest[: rest.rfind(b"\n") + 1]
        if not read:
            if rest or not some:
                yield pa.py_buffer(rest)
            return
        cut = read.rfind(b"\n") + 1
        if cut:
            yield pa.py_buffer(rest + read[:cut])
            rest, some = read[cut:], True
        else:
            rest += read


class TextReader:
    """Makes tables of one file's blocks, in their order."""

    def __init__(
        self, path: Path, ending: str, form: TextForm, wanted: set[str] | None, faults: Faults, row: int = 0
    ) -> None:
        """
        Args:
            wanted: the columns to keep, each of which may occur once; None: all, however often they occur.
            row: number of rows of the log before this file.
        """
        self._path, self._form, self._wanted, self._faults = path, form, wanted, faults
        self.row = row
        self._json = ending not in (".csv", ".tsv", ".tab")
        self._by = form.separator or ("," if ending == ".csv" else "\t")
        self._ending = ending
        self._names: list[str] | None = list(form.columns) or None
        self._started = False
        self._left_out = 0

    def table(self, raw: pa.Buffer, types: Mapping[str, pa.DataType] | None = None) -> pa.Table:
        """The block's rows. ``types``: of the columns, from an earlier pass; None: inferred from the block.

        Raises:
            LogError: the file is of another form, or a wanted column stands twice.
            UnicodeDecodeError, pyarrow.ArrowException, OSError: the block cannot be read.
        """
        if not self._started:
            self._look(raw)
        table = self._from_json(raw, types) if self._json else self._from_csv(raw, types)
        self._started = True
        self.row += table.num_rows
        return (
            table if self._wanted is None else table.select(wanted_once(table.column_names, self._wanted, self._path))
        )

    def _look(self, raw: pa.Buffer) -> None:
        head = raw.slice(0, min(_HEAD, raw.size)).to_pybytes()
        for start, (what, remedy) in _NO_TEXT.items():
            if head.startswith(start):
                raise LogError(f"'{self._path}' ends in '{self._ending}' but is {what}", remedy)
        if self._json:
            if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                raise LogError(f"'{self._path}' is one JSON array", "write one object a line, without brackets")
        else:
            self._check_separator(head)

    def _from_json(self, raw: pa.Buffer, types: Mapping[str, pa.DataType] | None) -> pa.Table:
        block = min(max(raw.size + 1, 1 << 20), _BLOCK)
        parse = None
        if types is not None:
            parse = pajson.ParseOptions(
                explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
            )
        try:
            if has_null_line(raw):
                raise pa.ArrowInvalid("a line is null")
            table = pajson.read_json(pa.BufferReader(raw), pajson.ReadOptions(block_size=block), parse)
            as_text = [n for n in self._form.as_written & set(table.column_names) if _is_time(table[n].type)]
            if as_text and types is None:
                parse = pajson.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in as_text]))
                table = pajson.read_json(pa.BufferReader(raw), pajson.ReadOptions(block_size=block), parse)
            return table
        except pa.ArrowException:
            found = readable(raw.to_pybytes(), self._path, self._wanted, self._faults, self.row, types)
            if found is None:
                raise
            if not found:  # each line is a fault by itself
                return pa.table({name: pa.nulls(0) for name in sorted(self._wanted or ())})
            return pajson.read_json(pa.BufferReader(found), pajson.ReadOptions(block_size=len(found) + 1), parse)

    def _from_csv(self, raw: pa.Buffer, types: Mapping[str, pa.DataType] | None) -> pa.Table:
        by = self._by
        if len(by) > 1:
            raw, by = pa.py_buffer(raw.to_pybytes().replace(by.encode(), _ONE_BYTE.encode())), _ONE_BYTE
        block = min(max(raw.size + 1, 1 << 20), _BLOCK)
        convert = pacsv.ConvertOptions(column_types=dict.fromkeys(self._form.texts, pa.string()) | dict(types or {}))
        if self._started and self._names and self._wanted is not None:  # the first block: all columns
            convert.include_columns = [name for name in self._names if name in self._wanted]

        def read(threads: bool, **more: object) -> pa.Table:
            options = pacsv.ReadOptions(
                block_size=block, column_names=self._names, encoding=self._form.encoding, use_threads=threads
            )
            parse = pacsv.ParseOptions(delimiter=by, quote_char=_QUOTE if self._form.quoting else False, **more)
            return pacsv.read_csv(pa.BufferReader(raw), options, parse, convert)

        try:
            table = read(True)
        except pa.ArrowInvalid as error:
            if not re.search(r"Expected \d+ columns, got", str(error)):
                raise
            if codecs.lookup(self._form.encoding).name == "utf-8":
                str(raw, "utf-8")  # a row of other bytes cannot be handed to us: they are the fault then
            self._left_out = 0
            table = read(False, invalid_row_handler=self._odd)
        self._names = self._names or list(table.column_names)
        if self._form.quoting and re.search(_QUOTE.encode(), raw):
            self._report_swallowed(raw, table.num_rows)
        return table

    def _report_swallowed(self, raw: pa.Buffer, rows: int) -> None:
        """Counts lines within the quotes of a line before: a title with one quote swallows them unseen."""
        header = not self._started and not self._form.columns
        expected = rows + self._left_out + header
        if np.count_nonzero(np.frombuffer(raw, np.uint8) == ord("\n")) + 1 <= expected:
            return
        lines = sum(1 for line in io.BytesIO(raw) if line.strip())
        self._faults.decide(
            f"lines of '{self._path}' stand within a quoted value that began on a line before, and are no rows",
            str(self._path), max(lines - expected, 0), NO_QUOTING,
        )  # fmt: skip

    def _odd(self, row: pacsv.InvalidRow) -> str:
        number = self.row + (row.number or 0) - (0 if self._started or self._form.columns else 1)
        problem = f"'{self._path}': row {number} has {row.actual_columns} columns, not {row.expected_columns}"
        shown = row.text.strip()[:60]
        self._left_out += 1
        remedy = "correct the line; a last line that is cut off means that the file is"
        if self._form.quoting and (row.text.count(_QUOTE) % 2 or "\n" in row.text.strip()):
            problem += ", since a quote in it is not closed"
            remedy = NO_QUOTING
        self._faults.count("columns", str(self._path), 1, number, shown, f"{problem} ('{shown}')", remedy)
        return "skip"

    def _check_separator(self, head: bytes) -> None:
        """Raises where only another separator splits the header: else it would be read as one odd column."""
        encoding = "utf-8-sig" if self._form.encoding in ("utf-8", "utf8") else self._form.encoding
        text = head.decode(encoding, "replace").lstrip("\r\n")
        header = re.split(r"[\r\n]", text, maxsplit=1)[0]
        columns = {by: [name.strip(' "') for name in header.split(by)] for by in _SEPARATORS}
        mine = columns.pop(self._by, None) or header.split(self._by)
        meant = _SEPARATORS.get(self._by, f"'{self._by}'")
        wanted = self._wanted or set()
        for by, found in columns.items():
            if self._form.columns:
                other_one = len(mine) == 1 < len(self._form.columns) == len(found)
            else:
                named = wanted.isdisjoint(mine) and not wanted.isdisjoint(found)
                other_one = len(found) > 1 and (len(mine) == 1 or named)
            if other_one and not (self._form.separator and self._form.separator in header):
                remedy = f"write it with {meant}, or as Parquet, or name its separator in the schema"
                other = {",": ".csv", "\t": ".tsv"}.get(by)
                where = f"the schema says {meant}" if self._form.separator else f"'{self._ending}' means {meant}"
                raise LogError(
                    f"'{self._path}' is separated by {_SEPARATORS[by]} ('{header[:60]}'), where {where}",
                    remedy + (f", or let its name end in {other}" if other and not self._form.separator else ""),
                )


_DATA = re.compile(r"^[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?$|^\d{1,4}[-/]\d\d?[-/]\d{1,4}|^\S+-[01]( \S+-[01])*$")


def is_data(cells: Sequence[str]) -> bool:
    """Whether a first line is no header: it has a number, a date or pairs of item and label."""
    return any(_DATA.match(cell.strip(' "\r\n')) for cell in cells)


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind))


def wanted_once(names: list[str], wanted: set[str], path: Path) -> list[str]:
    """The wanted columns of a file. Raises for a column that occurs twice: which value counts is unknown."""
    for name in sorted(wanted):
        if names.count(name) > 1:
            raise LogError(f"'{path}': column '{name}' stands {names.count(name)} times", "rename or drop all but one")
    return [name for name in names if name in wanted]
