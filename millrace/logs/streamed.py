# core
"""A log that is larger than memory: read in stretches, sorted within a bound, written to a mapped file.

::

    file  ... 09:58 10:02 09:31 10:00 │ 10:04 ...       disorder = "1h": no row is more than an hour late
    held                  rows from 09:04 on            they wait, since an earlier one may still come
    out   ... 08:57 08:59 09:03                         sorted, without copies, written to the Arrow file

Memory holds the side tables, one stretch, and the rows of twice the bound. An earlier pass over the files finds the
types of text columns: the join of what :func:`pyarrow.csv.read_csv` infers from each block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from millrace.basics import durations
from millrace.basics.durations import DAY_MS
from millrace.basics.errors import LogError
from millrace.contracts.schema import Schema
from millrace.logs.cleanrows import Rows
from millrace.logs.copies import TS, identity, sorted_once
from millrace.logs.faults import Faults
from millrace.logs.log_files import PARQUET, Ending, named, text_ending
from millrace.logs.plain_types import common, plain, plain_type
from millrace.logs.plausibility import Plausibility
from millrace.logs.text import TextForm, TextReader, blocks, wanted_once


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limit for reading whole, and sizes of stretches."""

    whole_bytes: int = 1 << 27  # logs whose wanted columns take about so much or less are read whole
    block_bytes: int = 1 << 24  # text: uncompressed bytes of a stretch
    batch_rows: int = 1 << 16
    """Parquet: rows of a stretch. Also rows of a batch in the mapped file."""


class Streamed:
    """The files of a log as stretches of raw rows, each column of one type."""

    def __init__(
        self, files: Sequence[Path], wanted: set[str], form: TextForm, faults: Faults, bounds: Bounds, log: Path
    ) -> None:
        self._files, self._wanted, self._form, self._faults, self._bounds = files, wanted, form, faults, bounds
        found: list[dict[str, pa.DataType]] = []
        self._read: list[Path] = []
        for file in files:
            with faults.whole():
                found.append(self._types(file))
                self._read.append(file)
        with faults.whole():
            self._all = common(found, log)

    def stretches(self) -> Iterator[pa.Table]:
        row = 0
        for file in self._read:
            for part in self._parts(file, row):
                yield part
                row += part.num_rows

    def _parts(self, file: Path, row: int) -> Iterator[pa.Table]:
        """A file that breaks off is a fault; the parts before stay."""
        with self._faults.whole(), named(file):
            if Ending.of(file).form in PARQUET:
                with pq.ParquetFile(file, memory_map=True, pre_buffer=False) as source:
                    names = [n for n in source.schema_arrow.names if n in self._wanted]
                    for batch in source.iter_batches(self._bounds.batch_rows, columns=names):
                        table = pa.Table.from_batches([batch]).select(names)
                        yield self._plain(table, file, row)
                        row += table.num_rows
                return
            reader = TextReader(file, text_ending(file, self._form), self._form, self._wanted, self._faults, row)
            for raw in blocks(file, self._bounds.block_bytes, self._faults):
                before = reader.row
                yield self._plain(reader.table(raw, self._all), file, before)

    def _plain(self, table: pa.Table, file: Path, row: int) -> pa.Table:
        columns = {}
        for name in table.column_names:
            column = plain(table[name], name, file, row)
            columns[name] = column if column.type == self._all[name] else column.cast(self._all[name])
        return pa.table(columns)

    def _types(self, file: Path) -> dict[str, pa.DataType]:
        with named(file):
            if Ending.of(file).form in PARQUET:
                schema = pq.read_schema(file)
                names = wanted_once(list(schema.names), self._wanted, file)
                return {name: _stored(plain_type(schema.field(name).type)) for name in names}
            # Lines that are no rows are reported in the second pass, not twice.
            silent = Faults(str(file), skip_bad=True)
            reader = TextReader(file, text_ending(file, self._form), self._form, self._wanted, silent)
            found: list[dict[str, pa.DataType]] = []
            for raw in blocks(file, self._bounds.block_bytes, silent):
                table = reader.table(raw)
                found.append({name: table[name].type for name in table.column_names})
            return common(found, file)


def _stored(kind: pa.DataType) -> pa.DataType:
    return pa.string() if isinstance(kind, pa.BaseExtensionType) else kind


class RowSpool:
    """Brings stretches of clean rows into order and writes them to an Arrow file."""

    def __init__(
        self, file: Path, schema: Schema, drop: set[str], faults: Faults, plausibility: Plausibility, bounds: Bounds
    ) -> None:
        """
        Args:
            drop: columns that identify copies and are not kept.
        """
        assert schema.log is not None
        self._file, self._drop, self._log = file, drop, schema.log
        self._outcomes = schema.outcome_columns
        self._faults, self._plausibility, self._bounds = faults, plausibility, bounds
        self._bound_ms = durations.minutes_of(schema.log.disorder) * 60_000
        self._newest_ms = 0
        self._held: pa.Table | None = None
        self._fresh: list[pa.Table] = []
        self._writer: pa.RecordBatchFileWriter | None = None
        self._written: pa.Schema | None = None
        self.copies = self.rows = 0

    def add(self, columns: dict[str, pa.ChunkedArray], origin: NDArray[np.intp], now_ms: int | None) -> None:
        """Takes rows in the file's order. ``origin``: (n,) the row of the log that each comes from. ``now_ms``: the
        present: later times do not make the rows after them late."""
        table = pa.table(columns)
        ts_ms = table[TS].to_numpy()
        ahead = np.zeros(len(ts_ms), bool) if now_ms is None else ts_ms > now_ms + DAY_MS
        clock = ts_ms if ahead.all() else np.where(ahead, 0, ts_ms)
        before = np.maximum.accumulate(np.r_[self._newest_ms, clock])
        late, self._newest_ms = ts_ms < before[:-1] - self._bound_ms, int(before[-1])
        if late.any():
            self._report(ts_ms, before[:-1], late, origin)
            table = table.filter(pa.array(~late))
        self._fresh.append(table)
        held = 0 if self._held is None else self._held.num_rows
        # Held rows are sorted again only with as many new ones: the work stays in proportion to the log.
        if sum(part.num_rows for part in self._fresh) >= max(held, self._bounds.batch_rows):
            self._release(self._newest_ms - self._bound_ms)

    def end(self) -> None:
        if self._fresh or self._held is not None:
            self._release(None)
        if self._writer is not None:
            self._writer.close()

    def _report(
        self, ts_ms: NDArray[np.int64], before: NDArray[np.int64], late: NDArray[np.bool_], origin: NDArray[np.intp]
    ) -> None:
        first = int(np.argmax(late))
        hours = (before[late] - ts_ms[late]).max() / 3_600_000
        at, bound = str(np.datetime64(int(ts_ms[first]), "ms")), self._log.disorder
        self._faults.begin(origin)
        self._faults.mark(
            "order", self._log.time, late, at,
            f"'{self._log.time}': row {{row}} ({at}) comes after rows that are more than {bound} later",
            f"name a greater log.disorder (these are up to {hours:.1f} h late), or sort the log by time",
        )  # fmt: skip
        self._faults.leave_out(int(late.sum()))

    def _release(self, before_ms: int | None) -> None:
        parts = [*([] if self._held is None else [self._held]), *self._fresh]
        table = pa.concat_tables(parts, promote_options="permissive")
        self._held, self._fresh = None, []
        copy_of = identity({n: table[n] for n in table.column_names}, self._log)
        clean, _ = sorted_once(table, self._log, copy_of, self._outcomes)
        self.copies += table.num_rows - clean.num_rows
        stop = clean.num_rows
        if before_ms is not None:
            stop = int(np.searchsorted(clean[TS].to_numpy(), before_ms, side="left"))
            # A copy of the rows: a slice would keep all of the stretch in memory.
            self._held = clean.take(pa.array(np.arange(stop, clean.num_rows)))
        out = clean.slice(0, stop)
        self._plausibility.look(out)
        self._write(out.select([n for n in out.column_names if n not in self._drop]))

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer, self._written = pa.ipc.new_file(str(self._file), table.schema), table.schema
        elif table.schema != self._written:
            table = table.cast(self._written)
        self.rows += table.num_rows
        self._writer.write_table(table, max_chunksize=self._bounds.batch_rows)


def streamed(source: Streamed, rows: Rows, spool: RowSpool, faults: Faults, now_ms: int | None) -> int:
    """Passes all stretches through ``rows`` into ``spool``; returns the number of rows read. Raises SchemaError as
    :meth:`Rows.clean`."""
    read = 0
    for raw in source.stretches():
        cleaned = rows.clean(raw, read)
        read += raw.num_rows
        if cleaned is not None and not faults.broken():
            spool.add(*cleaned, now_ms)
    spool.end()
    return read


def mapped(file: Path) -> pa.Table:
    """The file's table, without reading it: pages come from disk as they are used, and may leave memory again."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise LogError(f"spool file '{file}' cannot be mapped ({error})", "give a folder on a disk with room") from None
