# core
"""A slow reader of JSON lines: it finds all faults in a block that the fast reader refuses.

The fast reader (:mod:`pyarrow.json`) stops at the first error. This one is a hundred times slower and finds each: lines
that are not objects, keys that stand twice, and values of another kind than most of their column's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from millrace.logs.faults import Faults

_FIRST_NULL, _NULL = re.compile(rb"(?:\xef\xbb\xbf)?\s*null"), re.compile(rb"\n[ \t\r]*null")


def has_null_line(raw: bytes | pa.Buffer) -> bool:
    """Whether a line is a null in place of an object. The fast reader takes it for a row of nulls, and ends the whole
    process (pyarrow 26: a segmentation fault) where it comes first."""
    return _FIRST_NULL.match(raw) is not None or _NULL.search(raw) is not None


class _DuplicateNameError(ValueError):
    """A key stands twice in an object."""


def readable(
    raw: bytes,
    path: Path,
    wanted: set[str] | None,
    faults: Faults,
    row: int,
    types: Mapping[str, pa.DataType] | None,
) -> bytes | None:
    """The lines that are rows, reduced to the wanted keys. None when no line and no key is left out: this reader then
    knows of no fault. ``row``: number of rows before this block. ``types``: of the columns, if known; else the kind of
    most values counts."""
    rows: list[tuple[int, dict[str, Any]]] = []
    wrong, unwanted = 0, False
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    number = row
    for place, line in enumerate(lines):
        if not line.strip():
            continue
        number += 1
        try:
            found = json.loads(line, object_pairs_hook=_object)
            if not isinstance(found, dict):
                raise ValueError("no object")
            own = found if wanted is None else {k: v for k, v in found.items() if k in wanted}
            unwanted |= len(own) < len(found)
            rows.append((number, own))
        except _DuplicateNameError as error:
            wrong += 1
            problem = f"'{path}': column '{error}' stands twice in row {{row}}"
            faults.count("twice", str(path), 1, number, str(error), problem, "write each key of an object once")
        except (ValueError, RecursionError):
            wrong += 1
            shown = line.strip().decode("utf-8", "replace")[:60]
            if place == len(lines) - 1:
                problem = f"'{path}' cannot be read to its end: row {{row}} is cut off"
                faults.count(
                    "cut off", str(path), 1, number, shown, problem, f"copy it again; its last line is: {shown}"
                )
            else:
                problem = f"'{path}' cannot be read: row {{row}} is no JSON object"
                faults.count("json", str(path), 1, number, shown, problem, f"correct the line: {shown}")
    kept, mixed = _of_one_kind(rows, path, faults, types)
    if not wrong and not mixed and not unwanted:
        return None
    return b"".join(json.dumps(found).encode() + b"\n" for found in kept)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _DuplicateNameError(next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1))
    return found


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "booleans"
    for kind, name in ((str, "texts"), (int | float, "numbers"), (list, "lists")):
        if isinstance(value, kind):
            return name
    return "objects"


def _of_one_kind(
    rows: list[tuple[int, dict[str, Any]]], path: Path, faults: Faults, types: Mapping[str, pa.DataType] | None
) -> tuple[list[dict[str, Any]], int]:
    """(rows whose values are of their columns' kinds, number of the others)."""
    kinds: dict[str, Counter[str]] = {}
    for _, found in rows:
        for name, value in found.items():
            if value is not None:
                kinds.setdefault(name, Counter())[_kind(value)] += 1
    right = {name: counts.most_common(1)[0][0] for name, counts in kinds.items()}
    for name, kind in (types or {}).items():
        right[name] = "texts" if pa.types.is_string(kind) or pa.types.is_temporal(kind) else (
            "booleans" if pa.types.is_boolean(kind) else "lists" if pa.types.is_list(kind) else
            "objects" if pa.types.is_struct(kind) else "numbers"
        )  # fmt: skip
        if pa.types.is_null(kind):
            right.pop(name)
    kept, mixed = [], 0
    for number, found in rows:
        odd = [n for n, v in found.items() if v is not None and _kind(v) != right.get(n, _kind(v))]
        for name in odd[:1]:
            mixed += 1
            shown = str(found[name])[:60]
            problem = (
                f"'{path}' mixes kinds of values: column '{name}' has {shown!r} in row {{row}} among {right[name]}"
            )
            faults.count("mixed", name, 1, number, shown, problem, "use one kind a column")
        if not odd:
            kept.append(found)
    return kept, mixed
