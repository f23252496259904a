# core
"""Clean rows in their order: by time, ties as they were read, one for each exposure.

Rows lie in a file until all are there. DuckDB sorts those that are out of order and finds copies, in bounded memory;
what does not fit lies in the same folder meanwhile. Copies are rows that are equal in the columns of ``log.identity``;
the earliest stays. It gets the greatest label and the earliest time of each action of all copies: any copy may have
seen the action.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from millrace.contracts.logforms import LogColumns
from millrace.logs.query import name, opened

TS = "ts_ms"
THREADS: int | None = None
"""That sort; None: as many as there are processors. The result is the same with any number."""
_SEQ = "\x1fseq"


def of_outcomes(name: str) -> str:
    """The column by which outcomes are told, beside that with an action's times, where the log has later events."""
    return f"{name} of outcomes"


def mapped(file: Path) -> pa.Table:
    """The rows of a file, without reading it: pages come from disk as they are used, and may leave memory again."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def laid(file: Path, parts: Iterator[pa.Table]) -> pa.Table:
    """The rows, mapped from a file that is written here."""
    first = next(parts)
    with pa.ipc.new_file(str(file), first.schema) as out:
        out.write_table(first)
        for part in parts:
            out.write_table(part)
    return mapped(file)


def time_columns(log: LogColumns, there: Collection[str]) -> list[tuple[str, str]]:
    """(action, column) of all columns with times of actions that are there."""
    return [(action, n) for action, name in log.action_times.items() for n in (name, of_outcomes(name)) if n in there]


class Sorting:
    """Takes the rows of a log, and gives them sorted.

    Args:
        outcomes: columns of outcomes, which copies share as they share the label.
        drop: columns that are not given.
        room: a folder for the rows.
    """

    def __init__(self, log: LogColumns, outcomes: tuple[str, ...], drop: set[str], room: Path) -> None:
        self._log, self._outcomes, self._drop, self._room = log, outcomes, drop, room
        self._schema: pa.Schema | None = None
        self._file: pa.ipc.RecordBatchFileWriter | None = None
        self._newest_ms = np.int64(0)
        self.ordered = True  # whether the rows came in the order of time
        self.rows = 0

    def add(self, rows: pa.Table) -> None:
        """Takes rows in the order of reading."""
        if self._schema is None or self._file is None:
            self._schema = rows.schema
            self._file = pa.ipc.new_file(str(self._unsorted), self._schema.append(pa.field(_SEQ, pa.int64())))
        seq = np.arange(self.rows, self.rows + rows.num_rows)
        self._file.write_table(rows.cast(self._schema).append_column(_SEQ, pa.array(seq)))
        ts_ms = np.r_[self._newest_ms, rows[TS].to_numpy()]
        self.ordered = self.ordered and bool((ts_ms[1:] >= ts_ms[:-1]).all())
        self._newest_ms = ts_ms[-1]
        self.rows += rows.num_rows

    @property
    def _unsorted(self) -> Path:
        return self._room / "unsorted.arrow"

    @cached_property
    def _read(self) -> pa.Table:
        """The rows as they were read, mapped."""
        assert self._file is not None
        self._file.close()
        return mapped(self._unsorted)

    @cached_property
    def _sql(self) -> duckdb.DuckDBPyConnection:
        """A database in which the rows are ``log``."""
        how = {"threads": str(THREADS)} if THREADS else {}
        return opened(self._room, **how).register("log", self._read)

    def sorted(self, size: int) -> Iterator[pa.Table]:
        """The rows in their order, so many at a time."""
        assert self._schema is not None
        kept = [field for field in self._schema if field.name not in self._drop]
        if self.ordered and not self._log.identity:
            rows = self._read.select([field.name for field in kept])
            yield from (pa.Table.from_batches([batch]) for batch in rows.to_batches(size))
            return
        copy_of = [name(TS if column == self._log.time else column) for column in self._log.identity]
        if copy_of:
            group = ", ".join(copy_of)
            greatest = {self._log.label, *self._outcomes}
            earliest = {column for _, column in time_columns(self._log, self._schema.names)}
            chosen = [
                f"max({name(f.name)}) OVER (PARTITION BY {group})" if f.name in greatest else
                f"min({name(f.name)}) OVER (PARTITION BY {group})" if f.name in earliest else name(f.name)
                for f in kept
            ]  # fmt: skip
            select = ", ".join(f"{made} AS {name(field.name)}" for made, field in zip(chosen, kept, strict=True))
            copies = f"row_number() OVER (PARTITION BY {group} ORDER BY {TS}, {name(_SEQ)})"
            query = f"SELECT {select}, {name(_SEQ)} FROM log QUALIFY {copies} = 1"
        else:
            query = "SELECT * FROM log"
        columns, schema = ", ".join(name(field.name) for field in kept), pa.schema(kept)
        for batch in self._sql.sql(f"SELECT {columns} FROM ({query}) ORDER BY {TS}, {name(_SEQ)}").to_arrow_reader(
            size
        ):
            yield pa.Table.from_batches([batch]).cast(schema)

    def alike(self) -> int:
        """Rows that have the time, user and item of a row before."""
        if self.rows < 2:
            return 0
        same = ", ".join(name(column) for column in (TS, self._log.user, self._log.item))
        found = self._sql.execute(f"SELECT count(*) FROM (SELECT DISTINCT {same} FROM log)").fetchall()[0]
        return self.rows - int(found[0])
