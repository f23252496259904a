# core
"""Side tables of a log: read one time, joined from the left to each stretch of it.

With a time of validity (``at``), an exposure gets the newest row of the side table that is not later than itself::

    side table  on  at   price        log  on  time        price
                7   10   1.50              7   12    ->    1.50
                7   20   1.20              7   20    ->    1.20
                                           7    9    ->    null: nothing was known then
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.errors import LogError, SchemaError
from millrace.contracts.logforms import Join, LogColumns, strptime_of
from millrace.contracts.schema import Schema
from millrace.logs.columnchecks import check_single, time_ms
from millrace.logs.faults import Faults
from millrace.logs.frames import Frame
from millrace.logs.log_files import files_of
from millrace.logs.log_times import Clock
from millrace.logs.missing_columns import without_header
from millrace.logs.source import LogSource
from millrace.logs.text import FileForm
from millrace.logs.values import as_text, flat, missing

I64 = NDArray[np.int64]


class SideTables:
    """All side tables of a log, in memory."""

    def __init__(self, tables: list[SideTable]) -> None:
        self._tables = tables

    @classmethod
    def read(
        cls, paths: Sequence[Path | Frame], schema: Schema, wanted: set[str] | None, faults: Faults, room: Path
    ) -> SideTables:
        """The schema's side tables, from beside the log, with the ``wanted`` columns (None: all). An unreadable table
        is a fault. Raises SchemaError when a table has no column to join on."""
        tables = []
        for join in schema.join:
            with faults.whole():
                tables.append(SideTable(beside(paths, join.file), join, schema, wanted, faults, room))
        return cls(tables)

    def join(self, table: pa.Table, ts_ms: pa.Array | None, path: object) -> pa.Table:
        """The stretch with the columns that it lacks; rows without a match get nulls."""
        for side in self._tables:
            table = side.join(table, ts_ms, path)
        return table

    def notes(self) -> list[str]:
        return [note for side in self._tables for note in side.notes()]


class SideTable:
    """One side table, and counts of matches."""

    def __init__(
        self, file: Path, join: Join, schema: Schema, wanted: set[str] | None, faults: Faults, room: Path
    ) -> None:
        assert schema.log is not None
        self._spec = join
        keys = {join.on} if join.at is None else {join.on, join.at}
        columns = None if wanted is None else wanted | keys
        source = LogSource(files_of([file]), columns, FileForm.of(join), faults, file, room)
        if faults.broken():
            faults.verdict()
        side = pa.concat_tables([pa.table({n: pa.nulls(0, t) for n, t in source.types.items()}), *source.stretches()])
        if join.on not in side.column_names and (headless := without_header(file, FileForm.of(join))) is not None:
            raise headless
        _check_key(side, join.on, file)
        at: I64 | None = None
        if join.at is not None:
            if join.at not in side.column_names:
                raise SchemaError(f"'{file}' has no column '{join.at}' for join.at", "correct the schema's [[join]]")
            times = _times(side, join, schema, schema.log, file, faults)
            kept = ~np.isnan(times)
            side, at = side.filter(pa.array(kept)), times[kept].astype(np.int64)
        self._table = side
        self._key = flat(side[join.on])
        self._key_text = flat(as_text(self._key))
        self._at = at
        self._repeated = 0
        if at is None:
            self._repeated = len(self._key) - pc.count_distinct(self._key, mode="all").as_py()
        self._from_log: list[str] = []
        self._rows = self._unmatched = 0
        self._index: dict[bool, _AsOf] = {}

    @property
    def held(self) -> tuple[pa.Table, I64 | None]:
        """The rows, and each one's time of validity; None: the table has no such time."""
        return self._table, self._at

    def join(self, table: pa.Table, ts_ms: pa.Array | None, path: object) -> pa.Table:
        """As :meth:`SideTables.join`. ``ts_ms``: (n,) times of the exposures, for tables with a time of validity."""
        on = self._spec.on
        _check_key(table, on, path)
        left, text = table[on], table[on].type != self._key.type
        right = self._key_text if text else self._key
        left = as_text(left) if text else left
        if self._at is None:
            rows = pc.index_in(left, value_set=right)
        else:
            assert ts_ms is not None
            if text not in self._index:
                self._index[text] = _AsOf(right, self._at)
            rows = pa.chunked_array([self._index[text].rows(flat(left), ts_ms)])
        for name in self._table.column_names:
            if name == on:
                continue
            if name not in table.column_names:
                table = table.append_column(name, self._table[name].take(rows))
            elif name not in self._from_log:
                self._from_log.append(name)
        self._rows += table.num_rows
        self._unmatched += rows.null_count
        return table

    def notes(self) -> list[str]:
        file, on = self._spec.file, self._spec.on
        lines = []
        if self._repeated:
            lines.append(f"{file}: {self._repeated} rows repeat a '{on}', the first of each is used")
        lines += [f"'{name}' is taken from the log, not from {file}" for name in self._from_log]
        if self._unmatched:
            when = "" if self._at is None else " that is not later than the exposure"
            lines.append(f"{file}: {self._unmatched} of {self._rows} rows of the log have no match{when}")
        return lines


class _AsOf:
    """Finds the newest row of each key that is not later than a time; of rows of one time, the last in the file."""

    def __init__(self, key: pa.Array, at: I64) -> None:
        self._keys = key.unique()
        code = pc.index_in(key, value_set=self._keys).to_numpy(zero_copy_only=False).astype(np.int64)
        self._times, rank = np.unique(at, return_inverse=True)
        place = code * (len(self._times) + 1) + rank + 1
        self._order = np.argsort(place, kind="stable")
        self._place = place[self._order]

    def rows(self, key: pa.Array, ts_ms: pa.Array) -> pa.Array:
        code = pc.index_in(key, value_set=self._keys)
        none = pc.is_null(code).to_numpy(zero_copy_only=False) | pc.is_null(ts_ms).to_numpy(zero_copy_only=False)
        codes = pc.fill_null(code, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        now = np.searchsorted(self._times, pc.fill_null(ts_ms, 0).to_numpy(zero_copy_only=False), side="right")
        wide = len(self._times) + 1
        found = np.searchsorted(self._place, codes * wide + now, side="right") - 1
        none |= found < 0
        found = np.maximum(found, 0)
        if len(self._place):
            none |= self._place[found] // wide != codes
            # A rank of 0 is of no row, so the place of another key's last row is never this key's.
            found = self._order[found]
        return pa.array(found, pa.int64(), mask=none)


def beside(paths: Sequence[Path | Frame], name: str, entry: str = "join") -> Path:
    """What a schema's entry names, from beside the log."""
    for path in paths:
        folder = (
            path if isinstance(path, Path) and path.is_dir() and not path.name.endswith(".parquet") else path.parent
        )
        for found in (folder / name, path.parent / name):
            if found.exists():
                return found
    raise LogError(f"'{name}' is not beside the log '{paths[0]}'", f"put it there, or drop the {entry}")


def _check_key(table: pa.Table, on: str, where: object) -> None:
    if on not in table.column_names:
        raise SchemaError(f"'{where}' has no column '{on}' to join on", "correct the schema's [[join]]")
    check_single(table[on], "join column", on, where)


def _times(
    side: pa.Table, join: Join, schema: Schema, log: LogColumns, file: Path, faults: Faults
) -> NDArray[np.float64]:
    """(n,) ms from which each row is valid; NaN for no time: such rows never match, and are counted."""
    assert join.at is not None
    clock = Clock.of(log, schema)
    if join.time_format is not None or join.time_unit is not None:
        local = schema.utc_offset_ms if log.local_times else 0
        clock = Clock(join.time_unit or "ms", strptime_of(join.time_format), 0, local)
    column = side[join.at]
    check_single(column, "join time", join.at, file)
    own = Faults(str(file), faults.skip_bad)
    own.begin(np.arange(len(column)))
    at = time_ms(column, join.at, clock, str(file), own)
    lost = missing(column)
    faults.decide(f"rows of '{join.file}' without a time are never used", join.at, int(lost.sum()), "give them a time")
    with faults.whole():
        own.verdict()
    out: NDArray[np.float64] = at.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return out
