# core
"""Takes a sample of a log in any form: one stretch of rows from the beginning, and stretches spread over the rest.

The beginning keeps pages and users together, which shows what belongs to whom. The spread stretches, the last of them
at the end, show how long the log is. A compressed text file cannot be entered in the middle, so its sample is its
beginning.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from millrace.basics.errors import LogError
from millrace.logs.faults import Fault, Faults, LogFaults
from millrace.logs.log_files import DATABASE, PARQUET, Ending, files_of, named
from millrace.logs.plain_types import plain
from millrace.logs.source import STRETCH_ROWS, LogSource, column_names
from millrace.logs.text import NO_QUOTING, FileForm, is_data

HEAD_ROWS = 100_000
SPREAD_ROWS = 12_500
STRETCHES = 8
"""A sample is at most 100,000 rows of the beginning and 8 stretches of 12,500 rows."""
_ROW_BYTES = 64 << 20  # text: at most so much for the beginning, an eighth of it for a stretch

_TEXT = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON = (".jsonl", ".ndjson", ".json")
_FORMS = {
    "number": r"^\s*[-+]?\d+(\.\d+)?([eE][-+]?\d+)?\s*$",
    "date": r"^\s*\d{1,4}[-/.]([A-Za-z]{3}|\d{1,2})[-/.]\d{1,4}",
}
LEFT_OUT = "replay refuses such rows; --skip-bad leaves them out"
MOST_STRAY = 0.01
"""Share of a column's cells that may be of another form."""
_PLAIN = FileForm()
_SEPARATORS = ("::", "\t", ",", ";", "|")


@dataclass(frozen=True, slots=True)
class Stray:
    name: str
    what: str
    """How many there are, and an example."""
    rows: NDArray[np.bool_] | None = None
    """(n,) where they stand; None: the reader of logs refuses them, and they are not in the sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    table: pa.Table
    whole: bool
    where: str
    """How it was taken, for the reader of the guess."""
    files: tuple[Path, ...]
    form: FileForm = _PLAIN
    """What a schema must say of the files. A text without a header has ``columns`` called ``column_1`` and so on."""
    strays: tuple[Stray, ...] = ()
    notes: tuple[str, ...] = ()
    """What the reader of logs will say of lines and columns of the sample."""


def read_sample(path: Path, files: Sequence[Path] = ()) -> Sample:
    """Reads a sample of the log at ``path``: a file, or a folder of files of one form.

    Args:
        files: of the folder, those with the same columns (default: those that take the most bytes).

    Raises:
        LogError: there is no such file or folder, it is of no known form, empty or unreadable.
    """
    files = files or kinds_of(path)[0]
    form = _form(files[0])
    with named(path):
        if form in PARQUET:
            sample = _parquet(path, files)
        else:
            sample = _database(path) if form in DATABASE else _text(path, files, form)
    if not sample.table.num_rows or not sample.table.num_columns:
        raise LogError(f"log '{path}' has no rows", "give a log with at least one exposure")
    table, strays = without_strays(sample.table)
    return replace(sample, table=table, strays=(*sample.strays, *strays))


def kinds_of(path: Path) -> list[list[Path]]:
    """The files of a folder, grouped by their columns, the groups with the most bytes first: one is the log, others
    may be side tables."""
    files = files_of([path])
    if len(files) == 1:
        return [files]
    alike: dict[tuple[str, ...], list[Path]] = {}
    for file in files:
        alike.setdefault((_form(file), *_first_names(file)), []).append(file)
    return sorted(alike.values(), key=lambda group: -sum(f.stat().st_size for f in group))


def _form(file: Path) -> str:
    return Ending.of(file, text=True).form


def _first_names(file: Path) -> tuple[str, ...]:
    """The columns of a file as far as its first line tells them; of a text without a header, their number."""
    if _form(file) in PARQUET:
        return tuple(pq.read_schema(file).names)
    if _form(file) in _JSON:
        return ()
    line = _lines(file, 0, 1, 1 << 20)[0].decode("utf-8", "replace")
    cells = line.strip("\r\n").split(_TEXT[_form(file)])
    return (str(len(cells)),) if is_data(cells) else tuple(cells)


def without_strays(table: pa.Table) -> tuple[pa.Table, tuple[Stray, ...]]:
    """(the table, in which cells that are no number or no date are missing where nearly all others of their column are
    one; such cells by column). So a word in a column of numbers, or a line of names within a file, does not change the
    column's type."""
    found = []
    for i, name in enumerate(table.column_names):
        column = table[name]
        if not pa.types.is_string(column.type):
            continue
        full = pc.not_equal(column, "")
        for what, form in _FORMS.items():
            fits = pc.match_substring_regex(column, form)
            odd = pc.and_(full, pc.invert(fits))
            count, rows = (pc.sum(x).as_py() or 0 for x in (odd, full))
            if not count or count > MOST_STRAY * rows:
                continue
            example = column.filter(odd)[0].as_py()
            said = f"'{name}': {count:,} of {rows:,} cells hold no {what}, such as {example!r:.40}"
            found.append(Stray(name, said, pc.fill_null(odd, False).to_numpy()))
            kept = pc.if_else(fits, pc.utf8_trim_whitespace(column), None)
            if what == "number":
                whole = pc.all(pc.match_substring_regex(kept, r"^-?\d{1,18}$")).as_py()
                kept = pc.cast(kept, pa.int64() if whole else pa.float64())
            table = table.set_column(i, name, kept)
            break
    return table, tuple(found)


# -- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(path: Path, files: Sequence[Path]) -> Sample:
    total = sum(pq.read_metadata(file).num_rows for file in files)
    most = HEAD_ROWS + STRETCHES * SPREAD_ROWS
    if total <= most:
        table = pa.concat_tables([pq.ParquetFile(file).read() for file in files], promote_options="permissive")
        return Sample(_plain(table, path), True, f"all {total:,} rows", tuple(files))
    starts = [0, *(int(s) for s in np.linspace(HEAD_ROWS, total - SPREAD_ROWS, STRETCHES))]
    parts = [part for start in starts for part in _slices(files, start, SPREAD_ROWS if start else HEAD_ROWS)]
    table = pa.concat_tables(parts, promote_options="permissive")
    where = f"the first {HEAD_ROWS:,} of {total:,} rows and {STRETCHES} stretches of {SPREAD_ROWS:,} over the rest"
    return Sample(_plain(table, path), False, where, tuple(files))


def _plain(table: pa.Table, log: Path) -> pa.Table:
    """The table with one plain type for all ways in which a form stores a value, as the reader of logs makes them."""
    return pa.table({name: plain(table[table.column_names.index(name)], name, log) for name in table.column_names})


def _slices(files: Sequence[Path], start: int, count: int) -> Iterator[pa.Table]:
    """``count`` rows from row ``start`` of all files on, read in the row groups that hold them."""
    for file in files:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if -count < start < size:
                yield parquet.read_row_group(group).slice(max(start, 0), min(start, 0) + count)
            start -= size


# -- text and databases -----------------------------------------------------------------------------------------------


def _database(path: Path) -> Sample:
    most = HEAD_ROWS + STRETCHES * SPREAD_ROWS
    table, faults, _ = _rows(path, _PLAIN, path, None, most + 1)
    whole = table.num_rows <= most
    taken = f"{'all' if whole else 'the first'} {min(table.num_rows, most):,} rows"
    return Sample(table.slice(0, most), whole, taken, (path,), notes=_refused(faults))


def _text(path: Path, files: Sequence[Path], ending: str) -> Sample:
    raw, whole, where = _bytes(files)
    encoding = "utf-8"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise LogError(f"'{path}' is UTF-16 text", "save it as UTF-8") from None
        text, encoding = raw.decode("latin-1"), "latin-1"
    if not text.strip():
        raise LogError(f"log '{path}' has no rows", "give a log with at least one exposure")
    with TemporaryDirectory(prefix="log-") as room:
        copy = Path(room) / f"sample{ending}"
        copy.write_bytes(text.encode())
        if ending in _JSON:
            table, faults, _ = _rows(copy, _PLAIN, path)
            rows = table.num_rows + sum(fault.rows for fault in faults)
            mixed = [fault for fault in faults if fault.column in table.column_names]
            strays = tuple(Stray(str(fault.column), _mixed(table, fault, rows)) for fault in mixed)
            notes = _refused([fault for fault in faults if fault not in mixed])
            return Sample(table, whole, where(rows), tuple(files), _PLAIN, strays, notes)
        by = _separator([line for line in text[: 1 << 20].splitlines()[:50] if line], _TEXT[ending])
        form = FileForm(separator=by)
        names = column_names(copy, form)
        if is_data(names):
            form = replace(form, columns=tuple(f"column_{i + 1}" for i in range(len(names))))
        table, faults, form = _csv(copy, form, path)
    twice = [] if form.columns else [name for name, times in Counter(names).items() if times > 1]
    notes = (*(f"'{name}' is the name of several columns: none is used" for name in twice), *_refused(faults))
    usual = Ending.of(files[0]).form in _TEXT and by == _TEXT[ending]
    form = replace(form, separator=None if usual else by, encoding=encoding)
    return Sample(table, whole, where(table.num_rows), tuple(files), form, notes=notes)


def _rows(
    file: Path, form: FileForm, log: Path, wanted: set[str] | None = None, most: int = 1 << 62
) -> tuple[pa.Table, Sequence[Fault], bool]:
    """(rows of a file as the reader of logs gives them; its faults; whether lines may stand within a quoted value by
    mistake). ``log``: to name in errors."""
    faults = Faults(str(log), skip_bad=False)
    parts: list[pa.Table] = []
    with TemporaryDirectory(prefix="log-") as room:
        source = LogSource([file], wanted, form, faults, log, Path(room))
        for part in () if faults.broken() else source.stretches(min(STRETCH_ROWS, most)):
            parts.append(part)
            if sum(one.num_rows for one in parts) >= most:
                break
    found: Sequence[Fault] = ()
    try:
        faults.verdict()
    except LogFaults as error:
        if faults.broken():
            first = error.faults[0]
            raise LogError(first.problem.replace(str(file), str(log)), first.remedy) from None
        found = error.faults
    quoted = any(NO_QUOTING in remedy for remedy in [f.remedy for f in found] + [d.remedy for d in faults.decisions()])
    return pa.concat_tables(parts) if parts else pa.table({}), found, quoted


def _csv(copy: Path, form: FileForm, log: Path) -> tuple[pa.Table, Sequence[Fault], FileForm]:
    """(rows, faults, the form). Where some quotes are never closed, quotes are plain characters."""

    def read(form: FileForm) -> tuple[pa.Table, Sequence[Fault], bool]:
        names = list(form.columns) or column_names(copy, form)
        return _rows(copy, form, log, {name for name in names if name and names.count(name) == 1})

    table, faults, quoted = read(form)
    if quoted:
        unquoted = replace(form, quoting=False)
        rows, others, _ = read(unquoted)
        if sum(one.rows for one in others) <= sum(one.rows for one in faults):
            table, faults, form = rows, others, unquoted
    great = frozenset(name for name in table.column_names if _great(table[name]))
    if great:
        form = replace(form, texts=great)
        table, faults, _ = read(form)
    return table, faults, form


def _mixed(table: pa.Table, fault: Fault, rows: int) -> str:
    kind = table[fault.column].type
    what = "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else "value of the others' kind"
    return f"'{fault.column}': {fault.rows:,} of {rows:,} cells hold no {what}, such as {fault.value!r:.40}"


def _refused(faults: Sequence[Fault]) -> tuple[str, ...]:
    return tuple(f"{one.rows:,} lines of the sample are no rows, such as {one.value!r}: {LEFT_OUT}" for one in faults)


def _great(column: pa.ChunkedArray) -> bool:
    """Whole numbers that do not fit 64 bits, which a reader of text takes for numbers with a fraction."""
    if not pa.types.is_floating(column.type):
        return False
    numbers = column.drop_null().to_numpy()
    return bool(len(numbers) and np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all()
                and np.abs(numbers).max() >= 2**53)  # fmt: skip


def _separator(lines: Sequence[str], usual: str) -> str:
    """The separator that cuts all of the first lines into the same number of cells, more than one; else the usual."""

    def cells(by: str) -> int:
        rows = [x.split(by) for x in lines[:20]] if len(by) > 1 else csv.reader(lines[:20], delimiter=by)
        counts = {len(row) for row in rows if row}
        return counts.pop() if len(counts) == 1 else 0

    if cells(usual) > 1:
        return usual
    best = max(_SEPARATORS, key=cells)
    return best if cells(best) > 1 else usual


def _bytes(files: Sequence[Path]) -> tuple[bytes, bool, Callable[[int], str]]:
    """(whole lines of the sample, with the first file's first line first; is it all; a function that tells how)."""
    first, more = _lines(files[0], 0, HEAD_ROWS + 1, _ROW_BYTES)
    if not more and len(files) == 1:
        return first, True, lambda rows: f"all {rows:,} rows"
    parts = [first]
    if len(files) > 1:
        top = first.split(b"\n", 1)[0]
        for i in sorted({int(i) for i in np.linspace(1, len(files) - 1, STRETCHES)}):
            part = _lines(files[i], 0, SPREAD_ROWS, _ROW_BYTES // STRETCHES)[0]
            begin, _, rest = part.partition(b"\n")
            parts.append(rest if begin == top else part)
    elif Ending.of(files[0]).compressed:
        return first, False, lambda rows: f"the first {rows:,} rows (a compressed text is read from its beginning)"
    else:
        size, a_row = files[0].stat().st_size, len(first) / max(first.count(b"\n"), 1)
        stretch = min(int(SPREAD_ROWS * a_row), _ROW_BYTES // STRETCHES)
        if size - len(first) <= STRETCHES * stretch:
            return files[0].read_bytes(), True, lambda rows: f"all {rows:,} rows"
        spots = np.linspace(len(first), size - stretch, STRETCHES)
        parts += [_lines(files[0], int(spot), 1 << 60, stretch)[0] for spot in spots]
    raw = b"".join(p if p.endswith(b"\n") or not p else p + b"\n" for p in parts)
    return raw, False, lambda rows: f"{rows:,} rows: the beginning and {len(parts) - 1} stretches over the rest"


def _lines(file: Path, start: int, rows: int, most: int) -> tuple[bytes, bool]:
    """(whole lines of a file from a byte on: the first that begins at or after it, unless it is the file's first;
    whether the file goes on). Of a compressed file, from the beginning."""
    if Ending.of(file).compressed:
        with pa.input_stream(str(file)) as stream:
            raw: bytes = stream.read(most + 1)
    else:
        with file.open("rb") as plain:
            plain.seek(max(start - 1, 0))
            if start:
                plain.readline()
            raw = plain.read(most + 1)
    end, more = -1, len(raw) > most
    for _ in range(rows):
        nearest = raw.find(b"\n", end + 1)
        if nearest < 0:  # the last line of a file may lack its end; a line that was cut off is dropped
            return raw[: end + 1] if more else raw, more
        end = nearest
    return raw[: end + 1], more or end + 1 < len(raw)
