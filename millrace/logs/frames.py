# core
"""A frame of another library as a log: pandas, Polars, also lazy, pyarrow, a relation of DuckDB, or whatever else has
``__arrow_c_stream__``. A frame is only read.

Its index is no column. NaN is no value, as in a file. A relation is run on its own connection, and is read in the order
in which it gives its rows: give it one, since rows of one time stay in it. Side tables lie in the current folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millrace.basics.errors import LogError
from millrace.logs.faults import Faults
from millrace.logs.plain_types import plain, plain_types


class ArrowStream(Protocol):
    """A frame."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class LazyFrame(Protocol):
    """A frame that is still to be computed."""

    def collect_schema(self) -> Any: ...
    def collect(self) -> Any: ...


Log = Path | str | Sequence[Path | str] | ArrowStream | LazyFrame
"""What a person gives as a log: a path, several that are one log, or a frame."""


class Frame:
    """Stands where the path of a log's file stands. Raises LogError for what is no frame."""

    suffixes: tuple[str, ...] = ()
    parent = Path()

    def __init__(self, given: Any) -> None:
        kind = type(given)
        library = kind.__module__.partition(".")[0].lstrip("_")
        self.name = f"{library} {kind.__name__}"
        self.is_pandas = library == "pandas" and hasattr(given, "iloc")
        self.is_relation = library == "duckdb" and hasattr(given, "to_arrow_reader")
        self.is_lazy = hasattr(given, "collect_schema") and not hasattr(given, "__arrow_c_stream__")
        if isinstance(given, pa.RecordBatchReader):  # which can be read one time
            given = given.read_all()
        if self.is_pandas and getattr(given, "ndim", 0) == 2:
            if getattr(given.columns, "nlevels", 1) > 1:
                raise LogError(f"'{self.name}' has columns of {given.columns.nlevels} levels", "give each one name")
            self.names = [str(name) for name in given.columns]
        elif self.is_relation:
            self.names = list(given.columns)
        elif self.is_lazy:
            self.names = list(self._computed(given.collect_schema).names())
        elif hasattr(given, "__arrow_c_stream__") and not self.is_pandas:
            try:
                given = given if isinstance(given, pa.Table) else pa.table(given)  # no copy
            except (pa.ArrowException, TypeError, ValueError, RuntimeError) as error:
                problem = f"'{self.name}' is no table ({_line(error)})"
                raise LogError(problem, "give a frame with named columns, each of one type") from None
            self.names = given.column_names
        else:
            said = kind.__name__ if library == "builtins" else self.name
            raise LogError(f"a log is no {said}", "give a path, or a frame of pandas, Polars, pyarrow or DuckDB")
        self._given = given

    def __str__(self) -> str:
        return self.name

    def exists(self) -> bool:
        return True

    def columns(self, names: Sequence[str]) -> Any:
        """These columns, each of which it has one time: a pyarrow.Table or a relation. Raises LogError where values
        have no common type."""
        if self.is_pandas:
            # Column by column: what is not wanted may be of any type.
            return pa.table({name: self._converted(name, self.names.index(name)) for name in names})
        if self.is_relation:
            from duckdb import ColumnExpression

            return self._given.select(*map(ColumnExpression, names)) if names else self._given
        if self.is_lazy:
            return pa.table(self._computed(self._given.select(list(names)).collect))
        return self._given.select([self.names.index(name) for name in names])

    def _computed(self, work: Callable[[], Any]) -> Any:
        """What a lazy frame gives. Raises LogError where its own library fails, whatever that raises."""
        try:
            return work()
        except Exception as error:
            said = str(error).split(chr(10), 1)[0]
            raise LogError(f"'{self}' cannot be computed ({said[:200]})", "correct its query") from None

    def _converted(self, name: str, place: int) -> pa.Array | pa.ChunkedArray:
        column = self._given.iloc[:, place]
        try:
            made = pa.array(column, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            kinds = sorted({type(value).__name__ for value in column.dropna().head(100_000)})
            mixed = f"mixes {' and '.join(kinds)}" if len(kinds) > 1 else f"has values of {''.join(kinds)}"
            problem = f"'{self}': column '{name}' {mixed} ({_line(error)})"
            raise LogError(problem, f"make it one kind of value, as with astype(str) for '{name}'") from None
        if "Period" in type(made.type).__name__:
            raise LogError(f"'{self}': column '{name}' holds periods", f"convert it: frame['{name}'].dt.to_timestamp()")
        return made


class FrameRows:
    """Wanted columns of a frame, as the reader of logs takes the rows of a file."""

    def __init__(self, frame: Frame, names: list[str]) -> None:
        self.path, self.names, self._names = frame, frame.names, names
        self._rows = frame.columns(names)
        self.rows: int = self._rows.num_rows if isinstance(self._rows, pa.Table) else 0

    def types(self) -> dict[str, pa.DataType]:
        rows = self._rows
        rows = rows if isinstance(rows, pa.Table) else rows.limit(0).to_arrow_table()
        return plain_types(rows.schema, self._names)

    def stretches(self, rows: int, row: int, faults: Faults, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
        table = self._rows
        if isinstance(table, pa.Table):
            parts = (table.slice(start, rows) for start in range(0, table.num_rows, rows))
        else:
            parts = (pa.Table.from_batches([batch]) for batch in table.to_arrow_reader(rows))
        for part in parts:
            yield pa.table({name: _without_nan(part[name]) for name in self._names})


@contextmanager
def as_file(frame: Frame) -> Iterator[Path]:
    """The frame as Parquet in a folder of its own, for as long as the context lasts: for what looks at files."""
    with TemporaryDirectory(prefix="frame-") as folder:
        rows = FrameRows(frame, frame.names)
        types = rows.types()
        schema = pa.schema(list(types.items()))
        with pq.ParquetWriter(path := Path(folder, "frame.parquet"), schema) as out:
            for part in rows.stretches(1 << 16, 0, Faults(str(frame), skip_bad=False), types):
                out.write_table(pa.table({name: plain(part[name], name, frame) for name in frame.names}, schema))
        yield path


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column


def log_parts(log: Log | Frame | Sequence[Path | Frame]) -> list[Path | Frame]:
    """The files and folders of a log, or its frame. Raises LogError for what is neither."""
    if isinstance(log, Path | str):
        return [Path(log)]
    if isinstance(log, list | tuple) and all(isinstance(part, Path | str | Frame) for part in log):
        return [part if isinstance(part, Frame) else Path(part) for part in log]
    return [log if isinstance(log, Frame) else Frame(log)]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
