# core
"""Exposures of an archive, as both questions to it count them: of users within the training limit, from a time on, on
pages of an arm by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from millrace.basics.errors import LogError, one_line
from millrace.basics.hashing import combine, salt
from millrace.commands.proofs.archived import matched, named
from millrace.contracts.events import LOGGED
from millrace.contracts.schema import load_schema
from millrace.logs.later_events import LaterEvents
from millrace.logs.values import hashes
from stream.archive.archive_columns import ArchiveColumns
from stream.archive.logged import arrays

Outcome = Literal["click", "collect", "cart", "purchase"]
PART_ROWS = 1 << 18
"""Rows in memory at a time, and those of one file more."""
_PAGE = salt("judge", "page")


class ArchiveReader:
    """Reads an archive part by part.

    Args:
        folder: the folder ``archive`` of a loop's data.
        outcome: what is counted. ``came_ms`` of all but clicks is by the archive's events, however late they came.
        value: a numeric item attribute that an outcome counts; None: 1 each.
        since_ms: exposures before count for nothing.

    Attributes:
        logged: exposures read so far of pages that were only scored, of no arm by name: left out.

    Raises:
        LogError: there is no archive, or a file that cannot be read, here or in any of the methods.
        SettingError: no such attribute.
        SchemaError: the archive's schema file cannot be read.
    """

    def __init__(self, folder: Path, outcome: Outcome, value: str | None, since_ms: int) -> None:
        self._folder, self._outcome, self._value, self._since_ms = folder, outcome, value, since_ms
        self._files = sorted((folder / "exposures").glob("*.parquet"))
        if not (folder / "schema.toml").exists() or not self._files:
            raise LogError(
                f"'{folder}' holds no archived exposures", "name the folder 'archive' of a loop that ran with --archive"
            )
        self.schema = load_schema(folder / "schema.toml")
        self._columns = ArchiveColumns(self.schema)
        if value is not None:
            self._columns.number(value)
        self.logged = 0
        self._beyond = self._users_beyond()

    @property
    def beyond(self) -> int:
        """Users with an exposure beyond the training limit of an hour: bots, or an account of many people. A user is
        the unit that is judged, so all of theirs counts for nothing."""
        return len(self._beyond)

    @property
    def left_out(self) -> str:
        """Sentences of what counts in no arm."""
        said = f" Users beyond the training limit of an hour count in no arm: {self.beyond:,}." if self.beyond else ""
        if self.logged:
            said += (
                f" {self.logged:,} exposures of pages that were only scored here, of no arm by name ('{LOGGED}'), count"
                " in none: name it as `arm` in POST /score."
            )
        return said

    def parts(
        self, more: Mapping[str, pa.DataType] = MappingProxyType({})
    ) -> Iterator[tuple[Sequence[Path], pa.Table]]:
        """The next files that have :data:`PART_ROWS` together, and of their exposures whose page log came ts_ms, user,
        item, request, arm, came_ms and value, and ``more`` of the archive's own columns, null in files without them."""
        later = None if self._outcome == "click" else LaterEvents(self._folder / "events", [self._outcome])
        read: list[Path] = []
        tables: list[pa.Table] = []
        for file in self._files:
            read.append(file)
            table = self._of_file(file, more)
            wanted = pc.and_(pc.is_valid(table["arm"]), pc.greater_equal(table["ts_ms"], self._since_ms))
            table = table.filter(pc.and_(wanted, pc.invert(pc.is_in(table["user"], value_set=self._beyond))))
            own = table.filter(pc.not_equal(table["arm"], LOGGED))
            self.logged += table.num_rows - own.num_rows
            if later is not None:
                came_ms = later.times(self._outcome, *(own[name] for name in ("came_ms", "user", "request", "item")))
                own = own.set_column(own.column_names.index("came_ms"), "came_ms", pa.chunked_array([came_ms]))
            tables.append(own)
            if file is self._files[-1] or sum(map(len, tables)) >= PART_ROWS:
                yield read, pa.concat_tables(tables)
                read, tables = [], []

    def features(
        self, files: Sequence[Path], rows: pa.Table
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Logged features of exposures (n,) with request, position and user, of ``files`` of exposures: cat (n, F), num
        (n, N), and for which there are any, (n,)."""
        layout, n = self.schema.layout, rows.num_rows
        cat, num, there = np.zeros((n, layout.F), np.int64), np.zeros((n, layout.N), np.float32), np.zeros(n, np.bool_)
        names = named(rows["request"], rows["position"], rows["user"])
        columns = ["request_id", "position", "user_id", "schema_id", "cat", "num"]
        for file in filter(Path.exists, (self._folder / "features" / one.name for one in files)):
            with _readable(file):
                kept = pq.read_table(file, columns=columns)
            at, own = matched(kept, names, self.schema)
            cat[at], num[at] = arrays(own, self.schema)
            there[at] = True
        return cat, num, there

    def _users_beyond(self) -> pa.Array:
        mark, at, user = self._columns.own["over_limit"], self._columns.own["time_ms"], self._columns.user
        found = pa.array([], pa.string())
        for file in self._files:
            with _readable(file):
                if mark in pq.read_schema(file).names:
                    table = pq.read_table(file, columns=[user, mark, at])
                    of = table.filter(pc.and_(table[mark], pc.greater_equal(table[at], self._since_ms)))[user]
                    found = pc.unique(pa.concat_arrays([found, *of.cast(pa.string()).chunks]))
        return found

    def _of_file(self, file: Path, more: Mapping[str, pa.DataType]) -> pa.Table:
        """A file's rows; a number that it has not is unknown. An older file may have the archive's own columns under
        other names, since a field of the present schema took one."""
        value, names = self._value, self._columns.own
        with _readable(file):
            reader = pq.ParquetFile(file)
            there = set(reader.schema_arrow.names)

            def own(name: str) -> str:
                return names[name] if names[name] in there else name

            kinds = {
                "ts_ms": (own("time_ms"), pa.int64()),
                "user": (self._columns.user, pa.string()),
                "item": (self._columns.item, pa.string()),
                "request": (own("request_id"), pa.string()),
                "arm": (own("arm"), pa.string()),
                "came_ms": (own(f"{self._outcome}_ms"), pa.int64()),
            }
            kinds |= {name: (own(name), kind) for name, kind in more.items() if own(name) in there}
            if value is not None and value in there:
                kinds["value"] = value, pa.float64()
            table = reader.read(columns=[column for column, _ in kinds.values()])
            made = {name: table[column].cast(kind) for name, (column, kind) in kinds.items()}
        if "value" not in made:
            made["value"] = pa.array(np.full(table.num_rows, 1.0 if value is None else 0.0))
        lacking = {name: pa.nulls(table.num_rows, kind) for name, kind in more.items() if name not in made}
        return pa.table(made | lacking).select(["ts_ms", "user", "item", "request", "arm", "came_ms", "value", *more])


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Raises LogError for a file that cannot be read."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LogError(f"'{file}' cannot be read ({one_line(error)})", "move it away, or restore it") from None


def page_numbers(table: pa.Table) -> NDArray[np.int64]:
    """Of each exposure's page. Two users' pages may have one name, so a page is of its user."""
    user, request = (hashes(table[name]) for name in ("user", "request"))
    return combine(_PAGE, request, user | np.uint64(1)).view(np.int64)  # a guest's hash is 0
