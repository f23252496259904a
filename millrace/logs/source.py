# core
"""The files of a log as stretches of raw rows, each column of one type in the whole log.

DuckDB finds lines, quotes and JSON. What a value is, is decided here: text is read as text, and a column of it becomes
one of whole numbers, of numbers or of booleans only if all its values in all files are such. So a first pass looks at
the values of text; a second one reads them. Values are plain (:mod:`millrace.logs.plain_types`).

Lines that are no rows are counted as faults and left out: a line with another number of columns, a broken JSON object,
a lost end.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millrace.basics.errors import LogError
from millrace.logs.faults import Faults
from millrace.logs.frames import Frame, FrameRows
from millrace.logs.log_files import DATABASE, PARQUET, Ending, named, text_ending
from millrace.logs.plain_types import common, plain, plain_type, plain_types
from millrace.logs.query import Query, literal, name, opened
from millrace.logs.text import CSV, NO_QUOTING, FileForm, first_lines, unpacked
from millrace.logs.values import is_text, mask

STRETCH_ROWS = 1 << 16
_LONGEST = 1 << 23  # bytes of a line
_NONE = "\x1e"  # stands for no value in place of an empty text, which stays one
_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA", "NULL"),
    *("NaN", "n/a", "nan", "null"),
)
"""Values of a CSV's column of numbers or booleans that mean none."""
_INT, _FLOAT, _BIT, _WORD, _TEXT = 1, 2, 4, 8, 16
"""Kinds of a text: a whole number of 64 bits; another number; 0 or 1; true or false; any other."""
_INTEGERS = "UBIGINT", "BIGINT", "HUGEINT", "UHUGEINT"
_TOLD = {**dict.fromkeys((*_INTEGERS, "DOUBLE"), "numbers"), "VARCHAR": "texts", "BOOLEAN": "booleans",
         "ARRAY": "lists", "OBJECT": "objects"}  # fmt: skip
"""What a person calls JSON's types."""


_FORGET = "DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans"
# Lines that are no rows are always noted: without it (DuckDB 2.0.1), one quote that is not closed makes a file of none.


class _File(Protocol):
    """A file of a log. ``stretches``: at most so many rows at a time, of the row after ``row`` of the log on."""

    names: list[str]
    rows: int
    """How many there are, once :meth:`types` was called; 0: not known."""

    @property
    def path(self) -> Path | Frame: ...
    def types(self) -> dict[str, pa.DataType]: ...
    def stretches(self, rows: int, row: int, faults: Faults, types: dict[str, pa.DataType]) -> Iterator[pa.Table]: ...


class LogSource:
    """The files as one sequence of rows.

    Args:
        wanted: the columns to keep, each of which may occur once in a file; None: all.
        faults: takes what cannot be read.
        room: a folder for files that must be unpacked.
    """

    def __init__(
        self,
        files: Sequence[Path | Frame],
        wanted: set[str] | None,
        form: FileForm,
        faults: Faults,
        log: Path | Frame,
        room: Path,
    ) -> None:
        self._faults = faults
        self._files: list[_File] = []
        self.names: list[str] = []  # of all columns of all files, one after the other
        found = []
        for file in files:
            with faults.whole():
                with named(file):
                    try:
                        one = self._open(file, wanted, form, room)
                        types = one.types()
                    except (duckdb.IOException, OSError):  # as of a compressed file that is cut off
                        one = self._open(file, wanted, form, room, faults)
                        types = one.types()
                self._files.append(one)
                self.names += one.names
                found.append(types)
        self.rows = sum(file.rows for file in self._files)
        self.types: dict[str, pa.DataType] = {}
        with faults.whole():
            self.types = common(found, log, any(isinstance(file, _Csv) for file in self._files))

    @cached_property
    def _sql(self) -> duckdb.DuckDBPyConnection:
        return opened(None, autoinstall_known_extensions="false")

    def _open(
        self, file: Path | Frame, wanted: set[str] | None, form: FileForm, room: Path, lost: Faults | None = None
    ) -> _File:
        """``lost``: reads a text only as far as it can be unpacked; takes the fault of the end."""
        if isinstance(file, Frame):
            return FrameRows(file, wanted_once(file.names, set(file.names) if wanted is None else wanted, file))
        if Ending.of(file).form in PARQUET and not Ending.of(file).compressed:
            return _Parquet(file, wanted)
        if Ending.of(file).form in DATABASE:
            return Query(file, form, wanted, room)
        ending = text_ending(file, form)
        kind = _Csv if ending in CSV else _Json
        return kind(file, unpacked(file, form, room, lost), ending, form, wanted, self._sql)

    def stretches(self, rows: int = STRETCH_ROWS) -> Iterator[pa.Table]:
        """At most so many rows at a time, in the order of files and lines."""
        row = 0
        for file in self._files:
            with self._faults.whole(), named(file.path):
                for part in file.stretches(rows, row, self._faults, self.types):
                    columns = {}
                    for column in dict.fromkeys([*self.types, *part.column_names]):
                        if column not in part.column_names:  # as in files before the first with a new field
                            columns[column] = pa.chunked_array([pa.nulls(part.num_rows, self.types[column])])
                            continue
                        made = plain(part[column], column, file.path, row)
                        kind = self.types.get(column, made.type)  # where files disagree, there are none
                        columns[column] = made if made.type == kind else made.cast(kind)
                    yield pa.table(columns) if columns else part
                    row += part.num_rows


class _Parquet:
    def __init__(self, path: Path, wanted: set[str] | None) -> None:
        self.path = path
        self.names = names = list(pq.read_schema(path).names)
        self.rows = pq.read_metadata(path).num_rows
        self._names = wanted_once(names, set(names) if wanted is None else wanted, path)

    def types(self) -> dict[str, pa.DataType]:
        return plain_types(pq.read_schema(self.path), self._names)

    def stretches(self, rows: int, row: int, faults: Faults, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
        with pq.ParquetFile(self.path, memory_map=True, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, columns=self._names):
                yield pa.Table.from_batches([batch]).select(self._names)


class _Text:
    """A file of lines that DuckDB reads. ``read``: where its unpacked text is."""

    def __init__(
        self, path: Path, read: Path, ending: str, form: FileForm, wanted: set[str] | None,
        sql: duckdb.DuckDBPyConnection,
    ) -> None:  # fmt: skip
        self.path, self._read, self._ending, self._form, self._wanted = path, read, ending, form, wanted
        self._sql = sql
        self.rows = 0

    def _table(self, **more: str) -> str:
        said = {"auto_detect": "false", "nullstr": literal(_NONE), "max_line_size": str(_LONGEST),
                "ignore_errors": "true", "store_rejects": "true", "rejects_limit": "0", **more}  # fmt: skip
        return f"read_csv({literal(str(self._read))}, {', '.join(f'{key}={value}' for key, value in said.items())})"

    def _single_lines(self) -> str:
        """The file as a column ``line``."""
        none = literal("")
        return self._table(header="false", columns="{'line': 'VARCHAR'}", delim="chr(1)", quote=none, escape=none)

    def _ask(self, query: str) -> list[Any]:
        found: list[Any] = self._sql.execute(query).fetchall()
        self._sql.execute(_FORGET)
        return found

    def _rejected(self) -> list[tuple[int, str, str, str, int]]:
        """(line, kind of error, the line, message, its first byte) of each line that was left out, in their order."""
        asked = ("error_type", "csv_line", "error_message", "line_byte_position")
        query = f"SELECT line, {', '.join(f'any_value({one})' for one in asked)} FROM reject_errors"
        found = self._sql.execute(query + " GROUP BY line ORDER BY line").fetchall()
        self._sql.execute(_FORGET)
        return found

    def _no_text(self, line: int, at: int) -> LogError:
        """The error of a line that is no UTF-8, with what is none in it."""
        found: list[tuple[str, bytes]] = []
        with pa.input_stream(str(self._read)) as stream:
            stream.read(at - 1)
            raw = stream.read(_LONGEST).split(b"\n")[0]
        with suppress(ValueError):  # a line that is no JSON either
            found = [(column, value.encode("latin-1")) for column, value in self._values(raw.decode("latin-1"))]
        column, value = next(((column, value) for column, value in found if not _is_text(value)), ("", raw))
        row = line - (not self._form.columns and self._ending in CSV)
        problem = f"'{self.path}': column '{column}', row {row}: {value[:60]!r} is no UTF-8 text"
        return LogError(problem, "save it as UTF-8, or name its encoding")

    def _values(self, line: str) -> Iterable[tuple[str, str]]:
        """Names and texts of a line."""
        raise NotImplementedError


class _Csv(_Text):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._by = self._form.separator or ("," if self._ending == ".csv" else "\t")
        head = first_lines(self._read, self.path, self._ending, self._form, self._wanted)
        self.names = names = list(self._form.columns) or _header(head, self._by, self._form.quoting)
        if not names:
            raise LogError(f"'{self.path}' cannot be read (it is empty)", "give a log with at least one exposure")
        wanted = wanted_once(names, set(names) if self._wanted is None else self._wanted, self.path)
        self._names = {names.index(one): one for one in wanted}
        self._columns = "{" + ", ".join(f"'c{n}': 'VARCHAR'" for n in range(len(names))) + "}"

    def _values(self, line: str) -> Iterable[tuple[str, str]]:
        values = next(csv.reader([line], delimiter=self._by), [])
        return [(one, values[n]) for n, one in self._names.items() if n < len(values)]

    def _lines_read(self) -> str:
        quote = literal('"' if self._form.quoting else "")
        return self._table(
            header=str(not self._form.columns).lower(), columns=self._columns, delim=literal(self._by), quote=quote,
            escape=quote,
        )  # fmt: skip

    def types(self) -> dict[str, pa.DataType]:
        if not self._names:
            return {}
        texts = {n for n, one in self._names.items() if one in self._form.texts}
        asked = [
            f"bit_or(CASE WHEN c{n} IN {_MISSING} THEN 0 WHEN c{n} IN ('0', '1') THEN {_BIT}"
            rf" WHEN regexp_full_match(c{n}, '[ \t]*-?\d{{1,19}}[ \t]*') AND TRY_CAST(c{n} AS BIGINT) IS NOT NULL"
            rf" THEN {_INT} WHEN regexp_full_match(c{n},"
            rf" '[ \t]*-?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity))[ \t]*') THEN {_FLOAT}"
            f" WHEN c{n} IN ('true', 'True', 'TRUE', 'false', 'False', 'FALSE') THEN {_WORD} ELSE {_TEXT} END)"
            if n not in texts
            else str(_TEXT)
            for n in self._names
        ]
        self.rows, *found = self._ask(f"SELECT count(*), {', '.join(asked)} FROM {self._lines_read()}")[0]
        return {one: _kind(kinds) for one, kinds in zip(self._names.values(), found, strict=True)}

    def stretches(self, rows: int, row: int, faults: Faults, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
        if not self._names:
            yield pa.table({})
            return
        selected = ", ".join(f"c{n} AS {name(one)}" for n, one in self._names.items())
        read = self._sql.sql(f"SELECT {selected} FROM {self._lines_read()}")
        there = 0
        for batch in read.to_arrow_reader(rows):
            table = pa.Table.from_batches([batch])
            there += table.num_rows
            yield pa.table({one: _cast(table[one], types[one]) for one in table.column_names})
        rejected = self._rejected()
        self._report(rejected, row, faults)
        if self._form.quoting and not rejected:
            faults.decide(
                f"lines of '{self.path}' stand within a quoted value that began on a line before, and are no rows",
                str(self.path), self._quoted_lines(there), NO_QUOTING,
            )  # fmt: skip

    def _quoted_lines(self, rows: int) -> int:
        """How many lines more than rows there are, in a file with quotes."""
        asked = "count(*), coalesce(bool_or(contains(line, '\"')), FALSE)"
        lines, quotes = self._ask(f"SELECT {asked} FROM {self._single_lines()} WHERE trim(line) != ''")[0]
        return max(lines - rows - (not self._form.columns), 0) if quotes else 0

    def _report(self, rejected: list[tuple[int, str, str, str, int]], row: int, faults: Faults) -> None:
        for line, kind, text, why, at in rejected:
            if kind == "INVALID ENCODING":
                raise self._no_text(line, at)
            number, shown = row + line - (not self._form.columns), text.strip()[:60]
            problem, remedy = (
                f"'{self.path}': row {number} is no row ({_reason(why)})",
                "correct the line",
            )
            if "COLUMNS" in kind:
                expected, there = re.findall(r"\d+", why)[:2]
                problem = f"'{self.path}': row {number} has {there} columns, not {expected}"
                remedy = "correct the line; a last line that is cut off means that the file is"
            if self._form.quoting and (text.count('"') % 2 or "\n" in text.strip()):
                problem += ", since a quote in it is not closed"
                remedy = NO_QUOTING
            faults.count("columns", str(self.path), 1, number, shown, f"{problem} ('{shown}')", remedy)


class _Json(_Text):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        first_lines(self._read, self.path, self._ending, self._form, self._wanted)
        asked = f"FROM {self._single_lines()} WHERE {_OBJECT}"
        first = self._ask(f"SELECT unnest(json_keys(line)) FROM (SELECT line {asked} LIMIT 1)")
        others = self._ask(f"SELECT DISTINCT unnest(json_keys(line)) AS k {asked} ORDER BY k")
        self.names = there = list(dict.fromkeys(one for (one,) in first + others))
        self._names = there if self._wanted is None else [one for one in there if one in self._wanted]
        form = msgspec.json.encode(dict.fromkeys(self._names or ["-"], "JSON")).decode()
        self._kinds: dict[str, tuple[str, str, pa.DataType]] = {}
        self._parsed = f"SELECT line, CASE WHEN {_OBJECT} THEN json_transform(line, {literal(form)}) END AS o"

    def _values(self, line: str) -> Iterable[tuple[str, str]]:
        return [(one, str(value)) for one, value in json.loads(line).items()]

    def types(self) -> dict[str, pa.DataType]:
        if not self._names:
            return {}
        asked = []
        for one in self._names:
            value, kind = f"o.{name(one)}", f"json_type(o.{name(one)})"
            asked += [
                f"histogram({kind}) FILTER ({kind} != 'NULL')",
                f"count_if({kind} IN {_INTEGERS} AND TRY_CAST({value} AS BIGINT) IS NULL)",
                f"list(DISTINCT json_structure({value})) FILTER ({kind} = 'ARRAY')",
                f"any_value(json_structure({value})) FILTER ({kind} = 'OBJECT')",
            ]
        query = f"SELECT count(*), {', '.join(asked)} FROM ({self._parsed} FROM {self._single_lines()})"
        self.rows, *found = self._ask(query)[0]
        for n, one in enumerate(self._names):
            kinds, great, lists, objects = found[4 * n : 4 * n + 4]
            self._kinds[one] = self._sort(kinds or {}, great, lists, objects)
        return {one: kind for one, (_, _, kind) in self._kinds.items()}

    def _sort(
        self, kinds: dict[str, int], great: int, lists: list[str] | None, objects: str | None
    ) -> tuple[str, str, pa.DataType]:
        """(what most values of a column are, what SQL makes of it, its type)."""
        told = Counter[str]()
        for kind, times in kinds.items():
            told[_TOLD[kind]] += times
        if not told:
            return "nulls", "NULL", pa.null()
        (most, _), *_ = told.most_common(1)
        if most == "numbers":
            whole = not great and "DOUBLE" not in kinds
            return most, f"TRY_CAST({{}} AS {'BIGINT' if whole else 'DOUBLE'})", pa.int64() if whole else pa.float64()
        if most == "texts":
            return most, "{}->>'$'", pa.string()
        if most == "booleans":
            return most, "CAST({} AS BOOLEAN)", pa.bool_()
        form = str(objects) if most == "objects" else f'["{_inner(lists or [])}"]'
        if form[0] not in "[{":  # objects without a key
            return most, "{}->>'$'", pa.string()
        made = self._sql.sql(
            f"SELECT from_json('{form[0]}{chr(ord(form[0]) + 2)}', {literal(form)}) AS made"
        ).to_arrow_table()
        return most, f"from_json({{}}, {literal(form)})", plain_type(made.schema.field(0).type)

    def stretches(self, rows: int, row: int, faults: Faults, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
        asked = ["line", _OBJECT, _TWICE]
        for one, (most, made, _) in self._kinds.items():
            value = f"o.{name(one)}"
            fits = f"json_type({value}) IN {(*(k for k, told in _TOLD.items() if told == most), 'NULL')}"
            asked += [
                f"CASE WHEN {fits} THEN {made.replace('{}', value, 1)} END",
                f"{value} IS NULL OR coalesce({fits}, TRUE)",
            ]
        columns = ", ".join(f"{part} AS c{n}" for n, part in enumerate(asked))
        lines = self._single_lines()
        read = self._sql.sql(f"SELECT {columns} FROM ({self._parsed} FROM {lines}) WHERE trim(line) != ''")
        last: tuple[int, str] | None = None  # a line that is no object, if nothing came after it yet
        for batch in read.to_arrow_reader(rows):
            if last is not None:
                self._broken(*last, faults)
                last = None
            objects, twice = (mask(batch.column(n)) for n in (1, 2))
            good = objects & ~twice
            for at in np.flatnonzero(~good).tolist():
                number, line = row + at + 1, batch.column(0)[at].as_py()
                if objects[at]:
                    found = next((key for key, times in Counter(k for k, _ in _pairs(line)).items() if times > 1), "")
                    problem = f"'{self.path}': column '{found}' stands twice in row {{row}}"
                    faults.count("twice", str(self.path), 1, number, found, problem, "write each key of an object once")
                elif at == batch.num_rows - 1:
                    last = number, line
                else:
                    self._broken(number, line, faults)
            for n, (one, (most, _, _)) in enumerate(self._kinds.items()):
                odd = good & ~mask(batch.column(4 + 2 * n))
                for at in np.flatnonzero(odd).tolist():
                    shown = str(dict(_pairs(batch.column(0)[at].as_py())).get(one, "[[["))[:60]
                    problem = (
                        f"'{self.path}' mixes kinds of values: column '{one}' has {shown!r} in row {{row}} among {most}"
                    )
                    faults.count("mixed", one, 1, row + at + 1, shown, problem, "use one kind a column")
                good &= ~odd
            kept = {one: batch.column(3 + 2 * n) for n, one in enumerate(self._kinds)}
            row += batch.num_rows
            if kept:
                yield pa.table(kept).filter(pa.array(good))
        if last is not None:
            number, line = last
            shown = line.strip()[:60]
            problem = f"'{self.path}' cannot be read to its end: row {{row}} is cut off"
            faults.count(
                "cut off", str(self.path), 1, number, shown, problem, f"copy it again; its last line is: {shown}"
            )
        for line, kind, text, why, at in self._rejected():
            if kind == "INVALID ENCODING":
                raise self._no_text(line, at)
            self._broken(line, text, faults, f" ({_reason(why)})")

    def _broken(self, number: int, line: str, faults: Faults, why: str = "") -> None:
        shown = line.strip()[:60]
        problem = f"'{self.path}' cannot be read: row {{row}} is no JSON object{why}"
        faults.count("json", str(self.path), 1, number, shown, problem, f"correct the line: {shown}")


_OBJECT = "CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE FALSE END"
_TWICE = "CASE WHEN json_valid(line) THEN len(json_keys(line)) > len(list_distinct(json_keys(line))) ELSE FALSE END"


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _pairs(line: str) -> list[tuple[str, Any]]:
    try:
        found: list[tuple[str, Any]] = json.loads(line, object_pairs_hook=list)
    except RecursionError:  # lists within lists
        return []
    return found


def _reason(message: str) -> str:
    """What DuckDB says of a line, in one line."""
    return message.splitlines()[0].rstrip(".")


def _inner(structures: Sequence[str]) -> str:
    """What lists of these structures hold; VARCHAR holds anything."""
    inner = (
        {json.loads(one)[0] for one in structures} - {"NULL"}
        if all("[[" not in s and "{" not in s for s in structures)
        else {"VARCHAR"}
    )
    if inner <= {*_INTEGERS, "DOUBLE"} and inner:
        return "DOUBLE" if "DOUBLE" in inner else "BIGINT"
    return "BOOLEAN" if inner == {"BOOLEAN"} else "VARCHAR"


def _header(head: str, by: str, quoting: bool) -> list[str]:
    line = head.lstrip("\r\n")
    if len(by) > 1:
        return line.splitlines()[0].split(by) if line else []
    read = csv.reader(
        io.StringIO(line, newline=None), delimiter=by, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    )
    return next(read, [])


def _kind(kinds: int | None) -> pa.DataType:
    """The type of a column with these kinds of texts."""
    kinds = kinds or 0
    if kinds & _TEXT or (kinds & _WORD and kinds & (_INT | _FLOAT)):
        return pa.string()
    if kinds & _WORD:
        return pa.bool_()
    return pa.float64() if kinds & _FLOAT else pa.int64() if kinds else pa.null()


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Texts as values of a type that all of the log's have."""
    if is_text(kind):
        return column
    if pa.types.is_null(kind):
        return pa.chunked_array([pa.nulls(len(column))])
    there = pc.if_else(pc.is_in(column, value_set=pa.array(_MISSING)), None, column)
    return pc.cast(pc.utf8_trim_whitespace(there), kind)


def wanted_once(names: list[str], wanted: set[str], path: Path | Frame) -> list[str]:
    """The wanted columns of a file. Raises for a column that occurs twice: which value counts is unknown."""
    for column in sorted(wanted):
        if names.count(column) > 1:
            raise LogError(
                f"'{path}': column '{column}' stands {names.count(column)} times", "rename or drop all but one"
            )
    return [column for column in names if column in wanted]


def column_names(file: Path | Frame, form: FileForm) -> list[str]:
    """All columns of a file, however often each occurs."""
    with TemporaryDirectory(prefix="log-") as room:
        faults = Faults(str(file), skip_bad=True)
        return LogSource([file], set(), form, faults, file, Path(room)).names
