# core
"""Side tables beside a log: files with one row for each user or item, joined on its id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from millrace.basics.errors import LogError
from millrace.commands.guess.sample import Sample, read_sample
from millrace.commands.guess.samplecolumns import Column, columns_of

LEAST_MATCH = 0.5
"""Share of the log's ids that a side table must have."""
_ENDINGS = (".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Side:
    file: str
    on: str
    of: str
    columns: dict[str, Column]
    match: float
    """Share of the sample's ids that it knows."""


def sides_beside(log: Path, ids: dict[str, Column], sample: Sample) -> tuple[list[Side], list[str]]:
    """(side tables in the log's folder, reasons against others), by file name. ``ids``: ``"user"`` and ``"item"`` ->
    the id's column in the log."""
    found: list[Side] = []
    notes: list[str] = []
    own = {file.resolve() for file in sample.files}
    folder = log if log.is_dir() else log.parent
    for file in sorted(folder.iterdir()):
        if file.resolve() in own or not file.is_file() or not file.name.lower().endswith(_ENDINGS):
            continue
        try:
            side = read_sample(file)
        except LogError:
            continue
        if side.form.columns or side.form.separator is not None:
            continue
        for of, column in ids.items():
            if column.name not in side.table.column_names:
                continue
            columns = columns_of(side.table)
            key = columns[column.name]
            if key.distinct < key.there.sum():
                if side.whole and key.distinct > 1 and set(ids) - {of} and len(key.codes) < 5 * key.distinct:
                    notes.append(f"{file.name} has several rows for one '{column.name}': it may be joined by time")
                continue
            known = _share(column, key)
            if known >= LEAST_MATCH or not side.whole:
                rest = {name: c for name, c in columns.items() if name != column.name}
                found.append(Side(file.name, column.name, of, rest, known))
                break
            notes.append(f"{file.name} knows only {known:.1%} of the log's '{column.name}'")
    return found, notes


def _share(column: Column, key: Column) -> float:
    left = {str(v) for v in column.values.to_pylist() if v is not None}
    right = {str(v) for v in key.values.to_pylist() if v is not None}
    return len(left & right) / max(len(left), 1)
