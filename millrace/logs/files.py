# core
"""The forms a log or side table may have: Parquet (a file or a folder of files), CSV, TSV, JSON lines.

The file name's ending tells the form. Text may be compressed (.gz, .bz2, .zst, .lz4). A column has one type in the
whole file. If a column of numbers has a text somewhere, the whole column is text in CSV; in other forms it is an error
that names the column. The result is plain (:func:`_plain`): a value is the same, whatever type a form stored it in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from millrace.contracts.errors import LogError

_BLOCK = 1 << 30  # in text files up to this size, each column's type is inferred from the whole file
_HEAD = 1 << 20  # a header is searched for in this many bytes
_FORMS = "Parquet, CSV (.csv), TSV (.tsv) or JSON lines (.jsonl)"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_NO_TEXT = {
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"\x1f\x8b": ("compressed (gzip)", "let its name end in .gz too"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"PK\x03\x04": ("a spreadsheet or a zip archive", "export it as CSV"),
}
"""Bytes that a text file does not begin with: (what the file is instead, what to do)."""


def read_columns(path: Path, wanted: set[str], side_files: Iterable[str] = ()) -> pa.Table:
    """The wanted columns that the file, or folder of Parquet files, has.

    Raises:
        LogError: there is no such file, it is unreadable or not of the form that its ending tells; or a wanted column
            occurs twice, is not UTF-8 text or does not fit.
    """
    if not path.exists():
        raise LogError(f"log file '{path}' does not exist", f"give the path of a log: {_FORMS}")
    if path.is_dir():
        files = [f for f in sorted(path.glob("*.parquet")) if f.name not in set(side_files)]
        if not files:
            raise LogError(f"folder '{path}' has no Parquet files", "give a folder of *.parquet files, or one file")
        return _concat([read_columns(f, wanted) for f in files], path)
    try:
        table = _read_file(path, wanted)
    except UnicodeDecodeError as error:
        raise LogError(f"'{path}' is no UTF-8 text ({error})", "save it as UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        if "changed from" in reason:  # pyarrow.json on a column of numbers and texts
            raise LogError(
                f"'{path}' mixes kinds of values in one column ({reason})", "use one kind a column"
            ) from None
        twice = re.search(r"Column\(/(.*)\) was specified twice in row (\d+)", reason)
        if twice:  # pyarrow.json on a key, wanted or not
            problem = f"'{path}': column '{twice[1]}' stands twice in row {int(twice[2]) + 1}"
            raise LogError(problem, "write each key of an object once") from None
        raise LogError(f"'{path}' cannot be read ({reason})", "check the file and its ending") from None
    names = list(table.column_names)
    return pa.table({name: _plain(table[name], name, path) for name in names})


def column_names(file: Path) -> list[str]:
    """All columns of one file."""
    if file.suffix.lower() in (".parquet", ".pq"):
        return list(pq.read_schema(file).names)
    return list(_read_file(file, None).column_names)


def _read_file(path: Path, wanted: set[str] | None) -> pa.Table:
    """The wanted columns, each once; or (None) all columns, however often each occurs."""
    endings = [s.lower() for s in path.suffixes]
    if endings and endings[-1] in (".gz", ".bz2", ".zst", ".lz4"):
        endings.pop()
    ending = endings[-1] if endings else ""
    if ending in (".parquet", ".pq"):
        names = _once(pq.read_schema(path).names, wanted or set(), path)
        return pq.ParquetFile(path).read(names).select(names)  # read() takes "a.b" for a part of "a"
    if ending not in (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json"):
        raise LogError(f"'{path}' ends in '{ending}'", f"the ending tells the form: {_FORMS}")
    with pa.input_stream(str(path)) as stream:
        raw = stream.read_buffer()
    head = raw.slice(0, min(_HEAD, raw.size)).to_pybytes()
    for start, (what, remedy) in _NO_TEXT.items():
        if head.startswith(start):
            raise LogError(f"'{path}' ends in '{ending}' but is {what}", remedy)
    block = min(max(raw.size + 1, 1 << 20), _BLOCK)
    if ending in (".csv", ".tsv", ".tab"):
        _check_separator(head, ending, wanted or set(), path)
        table = pacsv.read_csv(
            pa.BufferReader(raw),
            pacsv.ReadOptions(block_size=block),
            pacsv.ParseOptions(delimiter=_separator(ending)),
        )
    else:
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            raise LogError(f"'{path}' is one JSON array", "write one object a line, without brackets around them")
        table = pajson.read_json(pa.BufferReader(raw), pajson.ReadOptions(block_size=block))
    return table if wanted is None else table.select(_once(table.column_names, wanted, path))


def _once(names: Sequence[str], wanted: set[str], path: Path) -> list[str]:
    """The wanted ones of a file's columns. A column that occurs twice has two values a row: which counts is unknown."""
    for name in sorted(wanted):
        if names.count(name) > 1:
            raise LogError(f"'{path}': column '{name}' stands {names.count(name)} times", "rename or drop all but one")
    return [name for name in names if name in wanted]


def _check_separator(head: bytes, ending: str, wanted: set[str], path: Path) -> None:
    """Raises where only another separator splits the header: with this one, it would be read as one odd column."""
    header = re.split(r"[\r\n]", head.decode("utf-8-sig", "replace").lstrip("\r\n"), maxsplit=1)[0]
    columns = {by: [name.strip(' "') for name in header.split(by)] for by in _SEPARATORS}
    mine = columns.pop(_separator(ending))
    meant = _SEPARATORS[_separator(ending)]
    for by, found in columns.items():
        if len(found) > 1 and (len(mine) == 1 or (wanted.isdisjoint(mine) and not wanted.isdisjoint(found))):
            remedy = f"write it with {meant}, or as Parquet"
            other = {",": ".csv", "\t": ".tsv"}.get(by)
            raise LogError(
                f"'{path}' is separated by {_SEPARATORS[by]} ('{header[:60]}'), where '{ending}' means {meant}",
                remedy + (f", or let its name end in {other}" if other else ""),
            )


def _separator(ending: str) -> str:
    return "," if ending == ".csv" else "\t"


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The one type that replaces all types that hold the same values."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind if isinstance(kind, pa.UuidType) else _plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_decimal(kind):  # as it would be read from CSV
        return pa.int64() if kind.scale <= 0 else pa.float64()
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # Python has no nanoseconds
        return pa.timestamp("us", kind.tz)
    texts = (pa.types.is_string_view, pa.types.is_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    if any(is_text(kind) for is_text in texts):  # many writers of Parquet do not say that their bytes are text
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.large_string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _plain(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """The column in its plain type. Features hash a value's text, so ``b"a"``, ``Decimal("7.00")`` or a dictionary's
    code would differ from ``a`` and ``7``.

    Raises:
        LogError: bytes that are not UTF-8 text, or a decimal beyond 64 bits.
    """
    kind = _plain_type(column.type)
    if isinstance(kind, pa.BaseExtensionType):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])

    def converted(part: pa.ChunkedArray) -> pa.ChunkedArray:
        if part.type != kind:
            return pc.cast(part, kind, safe=not pa.types.is_timestamp(kind))  # checks that bytes are text
        part.validate(full=True)  # and so does this
        return part

    try:
        return converted(column)
    except pa.ArrowException:
        where = "" if pa.types.is_nested(column.type) else _first_bad(column, converted)
        what = "does not fit 64 bits" if pa.types.is_decimal(column.type) else "is no UTF-8 text"
        raise LogError(f"'{path}': column '{name}'{where} {what}", "write the column as UTF-8 text") from None


def _first_bad(column: pa.ChunkedArray, converted: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> str:
    """Row and value of the first value that ``converted`` refuses, found by halving."""
    row, end = 0, len(column)
    while end - row > 1:
        middle = (row + end) // 2
        try:
            converted(column.slice(row, middle - row))
            row = middle
        except pa.ArrowException:
            end = middle
    one = column.slice(row, 1)
    value = pc.cast(one, pa.large_binary()) if one.type in (pa.string(), pa.large_string()) else one
    return f", row {row + 1}: {value.to_pylist()[0]!r:.60}"


def _concat(tables: list[pa.Table], path: Path) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        raise LogError(f"the files of '{path}' disagree ({reason})", "give each column one type in all files") from None
