# core
"""Columns that a schema names and a log lacks, with suggestions of similar names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from millrace.basics.errors import LogError, SchemaError
from millrace.contracts.profile_warnings import near_names
from millrace.contracts.schema import Schema
from millrace.logs.frames import Frame
from millrace.logs.log_files import Ending, sources_of
from millrace.logs.source import column_names
from millrace.logs.text import FileForm, is_data


def lacking(names: Sequence[str], schema: Schema, paths: Sequence[Path | Frame]) -> SchemaError:
    """The error that names all missing columns, each with similar names."""
    assert schema.log is not None
    path = paths[0]
    log_only = set(schema.log.action_times.values())
    folder = path if isinstance(path, Path) and path.is_dir() else path.parent
    form = FileForm.of(schema.log)
    files: list[tuple[Path | Frame, FileForm]] = [
        (file, form) for file in sources_of([path], {j.file for j in schema.join})[:1]
    ]
    files += [(folder / j.file, FileForm.of(j)) for j in schema.join]
    there: set[str] = set()
    for file, written in files:
        try:
            if (headless := without_header(file, written)) is not None:
                return headless
            there |= set(column_names(file, written)) if file.exists() else set()
        except (LogError, OSError, ValueError):
            continue
    where = "the log" if names[0] in log_only or not schema.join else "the log and its side tables"
    columns = ", ".join(f"'{name}'" for name in names)
    what = f"the column {columns}" if len(names) == 1 else f"the columns {columns}"
    like = [near for name in names for near in near_names(name, there)]
    said = f"near matches: {', '.join(dict.fromkeys(like))}" if like else (
        f"there are: {', '.join(sorted(there)[:20]) or 'none'}"
    )  # fmt: skip
    return SchemaError(f"{where} ('{path}') lack {what} of schema '{schema.name}'", said)


def without_header(file: Path | Frame, form: FileForm) -> SchemaError | None:
    """The error of a CSV without a header and without column names in the schema; None for any other file."""
    ending = Ending.of(file, text=form.separator is not None).form
    if form.columns or ending not in (".csv", ".tsv", ".tab"):
        return None
    with pa.input_stream(str(file)) as stream:
        text = stream.read(1 << 20).decode(form.encoding, "replace")
    line = text.lstrip("\ufeff\r\n").partition("\n")[0].rstrip("\r")
    if not is_data(line.split(form.separator or ("," if ending == ".csv" else "\t"))):
        return None
    problem = f"'{file}' has no header line, but begins with '{line[:60]}'"
    return SchemaError(problem, "name its columns in the schema: columns = [...]")
