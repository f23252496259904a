# core
"""The page of all settings, made from the source of :mod:`millrace.contracts.settings`. Pure.

::

    class Settings:                          section    the comment behind an empty line
                                             row        name, variable, type and bounds, default
        # scorer                             meaning    the comments before and beside a field
        workers: ... = 1  # processes
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from msgspec import inspect as types

from millrace.contracts import settings as module
from millrace.contracts.settings import Settings

_HEAD = """# Settings

This page is made from `millrace/contracts/settings.py` by `millrace reference --out docs/`; do not edit it.

A setting comes from, in this order: a flag of the command, the variable `MILLRACE_<NAME>`, the TOML file that
`MILLRACE_CONFIG` names (same names, in small letters), the default. They are read once, at the start of a process. An
unknown name in the file, or a value outside its bounds, is an error at the start, which names it. Times of the *event*
clock say so; all others are wall time.
"""


class Row(NamedTuple):
    """A setting. ``section``: the comment that stands over it and its neighbours."""

    section: str
    name: str
    type: str
    default: str
    meaning: str


def rows() -> list[Row]:
    """Every setting, in the order of the source."""
    source = inspect.getsource(module)
    comments = _comments(source)
    lines = source.splitlines()
    kinds = {field.name: field for field in _fields()}
    found, section = [], ""
    for node in _class(source).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first = node.lineno
        while first - 1 in comments and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        before = " ".join(comments[n] for n in range(first, node.lineno))
        if not lines[first - 2].strip() or lines[first - 2].rstrip().endswith('"""'):
            section, before = before, ""
        meaning = " ".join(text for text in (before, comments.get(node.end_lineno or node.lineno, "")) if text)
        kind = kinds[node.target.id]
        found.append(Row(section, kind.name, _type(kind.type), _default(kind.default), meaning))
    return found


def page() -> str:
    """The page as Markdown."""
    out, section = [_HEAD], None
    for row in rows():
        if row.section != section:
            section = row.section
            title, _, rest = (section or "others").partition(". ")
            out += [f"{'' if len(out) == 1 else chr(10)}## {title[0].upper()}{title[1:].rstrip('.')}\n"]
            out += [f"{rest}\n"] if rest else []
            out += ["| setting | variable | type | default | |", "|---|---|---|---|---|"]
        cells = (f"`{row.name}`", f"`MILLRACE_{row.name.upper()}`", row.type, row.default, row.meaning)
        out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(out) + "\n"


def _fields() -> Iterator[types.Field]:
    kind = types.type_info(Settings)
    assert isinstance(kind, types.StructType)
    yield from kind.fields


def _class(source: str) -> ast.ClassDef:
    return next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == Settings.__name__)


def _comments(source: str) -> dict[int, str]:
    """The comment of each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


def _type(kind: types.Type) -> str:
    match kind:
        case types.BoolType():
            return "true or false"
        case types.IntType() | types.FloatType():
            name = "whole number" if isinstance(kind, types.IntType) else "number"
            low, high = kind.ge, kind.le
            if low is not None and high is not None:
                return f"{name}, {low:,} to {high:,}"
            bounds = [f"above {kind.gt:,}"] if kind.gt is not None else []
            bounds += [f"{low:,} or more"] if low is not None else []
            return ", ".join([name, *bounds])
        case types.LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case types.UnionType():
            return " or nothing".join([_type(t) for t in kind.types if not isinstance(t, types.NoneType)] + [""])
        case types.StrType():
            return "text" if kind.pattern is None else f"text like `{kind.pattern}`"
    raise TypeError(f"a setting of the type {kind}; teach commands/reference/settings.py to write it")


def _default(value: object) -> str:
    if value is None or value == "":
        return ""
    return f"`{msgspec.json.encode(value).decode()}`" if not isinstance(value, str) else f"`{value}`"
