# core
"""A log that was read once: clean rows in their order, as Parquet by local day, with all columns of the source.

::

    DIR/manifest.json         by which rules it was read, from which files, and what was decided
    DIR/2022-04-24.parquet    the rows of a day
    DIR/rows-SCHEMA.arrow     the columns of a schema that has read it, to be mapped: the next command begins at once
    DIR/rows-SCHEMA.json      what is to be said of them

Reading it applies the schema's fields alone. The schema's ``[log]`` and ``[[join]]`` must be those of the import: times
are ms, labels 0 or 1, lists unrolled, side tables joined, copies merged. The manifest is written last: a folder whose
manifest cannot be read is an import that was killed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

import millrace
from millrace.basics.errors import LogError, SchemaError
from millrace.contracts.schema import Schema
from millrace.logs.faults import Decision

MANIFEST = "manifest.json"
_OURS = re.compile(r"manifest\.json|\d{4}-\d\d-\d\d\.parquet|rows-[0-9a-f]{16}\.(arrow|json)")
_LATER = ("attribution_minutes", "disorder")
"""Rules of ``[log]`` that act on clean rows: they may differ from the import's."""


def is_ours(file: Path) -> bool:
    """Whether a file of an import's folder is one of its own."""
    return _OURS.fullmatch(file.name) is not None


class SourceFile(Struct, frozen=True):
    path: str
    bytes: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        found = path.stat()
        return cls(str(path.absolute()), found.st_size, found.st_mtime_ns)


class DayFile(Struct, frozen=True):
    name: str
    rows: int


class ImportedLog(Struct, frozen=True):
    """What stands in ``manifest.json``."""

    rules: dict[str, Any]
    """The schema's ``[log]`` entries; under ``join`` and ``outcome`` its side tables and outcomes' columns."""
    sources: list[SourceFile]
    days: list[DayFile]
    rows_read: int
    duplicates: int
    skipped: int
    notes: list[str]
    decisions: list[Decision]

    @classmethod
    def of(cls, folder: Path) -> ImportedLog | None:
        """The manifest of an import; None for any other folder or file. Raises LogError for one that is broken."""
        file = folder / MANIFEST
        if not file.is_file():
            return None
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls)
        except (msgspec.DecodeError, OSError) as error:
            raise LogError(f"'{file}' cannot be read ({error})", "import the log again") from None

    def files(self, folder: Path) -> list[Path]:
        """Raises LogError where one is lost."""
        files = [folder / day.name for day in self.days]
        for file in files:
            if not file.is_file():
                raise LogError(f"'{file}' of an import is gone", "import the log again")
        return files

    def key(self, schema: Schema, *more: object) -> str:
        """What names these rows as a schema reads them."""
        asked = msgspec.json.encode([self, schema, *more, millrace.__version__])
        return sha256(asked).hexdigest()[:16]

    def changed(self) -> list[str]:
        """A line for each source that is there, but not as it was."""
        lines = []
        for source in self.sources:
            path = Path(source.path)
            if path.exists() and SourceFile.of(path) != source:
                lines.append(f"'{source.path}' has changed since it was imported; the import has it as it was")
        return lines

    def settled(self, schema: Schema, folder: Path) -> Schema:
        """The schema by which the imported rows are read. Raises SchemaError where its rules are not the import's."""
        assert schema.log is not None
        mine = rules_of(schema)
        differ = [name for name in mine if mine[name] != self.rules.get(name) and name not in _LATER]
        if differ:
            was = ", ".join(f"{one} = {msgspec.json.encode(self.rules.get(one)).decode()}" for one in differ)
            problem = f"'{folder}' was imported by other rules than those of schema '{schema.name}': {was[:300]}"
            raise SchemaError(problem, "import the log again, or correct the schema's [log]")
        plain: dict[str, Any] = {
            "time_unit": "ms", "time_format": None, "local_times": False, "time_start": None, "rows_per_day": None,
            "never": (), "label_at_least": None, "label_action": None, "combine": {}, "items": None, "labels": None,
            "clicked": None, "pairs": None, "along": (), "identity": (), "users": (), "table": None,
            "attach": {}, "extensions": (),
        }  # fmt: skip
        outcomes = tuple(msgspec.structs.replace(one, at_least=None) for one in schema.outcome)
        log = msgspec.structs.replace(schema.log, **plain)
        return msgspec.structs.replace(schema, log=log, join=(), outcome=outcomes)


def imported_of(log: Sequence[object]) -> tuple[ImportedLog, Path] | None:
    """The import that a log is, and its folder; None for any other log."""
    folder = log[0]
    found = ImportedLog.of(folder) if len(log) == 1 and isinstance(folder, Path) else None
    return None if found is None or not isinstance(folder, Path) else (found, folder)


def rules_of(schema: Schema) -> dict[str, Any]:
    """The entries of a schema that say how a log is read, as they stand in a manifest."""
    assert schema.log is not None
    rules: dict[str, Any] = {**msgspec.to_builtins(schema.log), "join": msgspec.to_builtins(schema.join)}
    outcomes = {one.column: one.at_least for one in schema.outcome if one.column}
    rules |= {"outcome": outcomes, "utc_offset": schema.utc_offset}
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(rules))  # tuples are lists there
    return made
