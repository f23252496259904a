# core
"""Rows of a database: a table of a ``.duckdb`` file, or what the SELECT in a ``.sql`` file gives.

A SELECT reads, and no more. Its text alone must be one SELECT; it runs as a subquery, in which nothing else can stand.
Databases are attached read-only. Python's own variables are out of reach. Nothing is installed, and no extension is
loaded that is not named. The configuration is locked before the text is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from millrace.basics.errors import LogError
from millrace.logs.faults import Faults
from millrace.logs.plain_types import plain_types
from millrace.logs.text import FileForm

MEMORY = "1GB"
"""That a SELECT, and sorting, takes at most; what does not fit lies in a folder meanwhile."""


def opened(room: Path | None, **how: Any) -> duckdb.DuckDBPyConnection:
    """An empty database; with a ``room``, what does not fit into the memory that it may take lies there. It draws no
    bar of its own, as it would in a notebook: on standard output."""
    bounds = {} if room is None else {"memory_limit": MEMORY, "temp_directory": str(room)}
    made = duckdb.connect(":memory:", config=bounds | how)
    if made.sql("SELECT current_setting('enable_progress_bar')").fetchall()[0][0]:  # a kernel without any refuses SET
        made.execute("SET enable_progress_bar=false")
    return made


def literal(text: str) -> str:
    """The text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def name(column: str) -> str:
    """A column's or table's name as SQL writes it."""
    return '"' + column.replace('"', '""') + '"'


class Query:
    """The rows of one ``.duckdb`` or ``.sql`` file, in the order in which the database gives them.

    Args:
        wanted: the columns to keep; None: all.
        room: a folder for what does not fit into memory.
    """

    def __init__(self, path: Path, form: FileForm, wanted: set[str] | None, room: Path) -> None:
        self.path, self.rows = path, 0
        self._sql = opened(room, file_search_path=str(path.parent), python_enable_replacements="false")
        for extension in form.extensions:
            if not extension.isidentifier():
                raise LogError(f"'{extension}' names no extension of DuckDB", "correct log.extensions")
            self._sql.execute(f"LOAD {extension}")
        self._sql.execute("SET autoinstall_known_extensions=false; SET autoload_known_extensions=false")
        for database, address in form.attach:
            file = path.parent / address
            self._attach(str(file) if file.exists() else address, database)
        asked = self._table(form.table) if path.suffix.lower() == ".duckdb" else self._select(path.read_text())
        self._sql.execute("SET lock_configuration=true")
        self._schema = self._sql.sql(f"SELECT * FROM {asked} LIMIT 0").to_arrow_table().schema
        self.names = list(self._schema.names)
        self._names = [one for one in self.names if wanted is None or one in wanted]
        columns = ", ".join(name(one) for one in self._names) or "NULL"
        self._asked = f"SELECT {columns} FROM {asked}"

    def _attach(self, address: str, database: str) -> None:
        self._sql.execute(f"ATTACH {literal(address)} AS {name(database)} (READ_ONLY)")

    def _table(self, table: str | None) -> str:
        self._attach(str(self.path), "log")
        found = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = 'log' ORDER BY ALL"
        there = {one[1]: one for one in self._sql.execute(found).fetchall()}
        if table is None and len(there) == 1:
            (table,) = there
        if table not in there:
            problem = f"'{self.path}' has no table '{table}'" if table else f"'{self.path}' has {len(there)} tables"
            raise LogError(problem, f"name one in log.table: {', '.join(there) or 'there is none'}")
        return ".".join(name(part) for part in ("log", *there[table]))

    def _select(self, text: str) -> str:
        try:
            found = duckdb.extract_statements(text)
        except duckdb.Error as error:
            raise LogError(f"'{self.path}' is no SELECT ({str(error).split(chr(10))[0]})", "correct it") from None
        if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(one.type.name for one in found) or "nothing"
            raise LogError(f"'{self.path}' must be one SELECT, and holds {kinds}", "leave the SELECT alone in it")
        raw = text.encode()  # tokens are counted in bytes
        end = next((at for at, _ in duckdb.tokenize(text) if raw[at : at + 1] == b";"), len(raw))
        return f"(\n{raw[:end].decode()}\n)"

    def types(self) -> dict[str, pa.DataType]:
        return plain_types(self._schema, self._names)

    def stretches(self, rows: int, row: int, faults: Faults, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
        for batch in self._sql.sql(self._asked).to_arrow_reader(rows):
            yield pa.Table.from_batches([batch]).select(self._names)
