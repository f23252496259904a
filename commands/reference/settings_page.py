# core
"""The page of the public settings, and a settings file with them, made from the source of
:mod:`millrace.contracts.settings`. Pure.

::

    class Settings:                          section    of SECTIONS; about: the comment behind an empty line
                                             row        name, variable, type and bounds, default
        # Serving. What a scorer makes ...   meaning    the comments before and beside a field
        workers: ... = 1  # processes
"""

from __future__ import annotations

import ast
import inspect
import io
import itertools
import re
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as types

from millrace.contracts import settings as module
from millrace.contracts.settings import SECTIONS, Settings, variable

_HEAD = """# Settings

This page is made from `millrace/contracts/settings.py` by `millrace dev reference --out docs/`; do not edit it.

A setting comes from, in this order: a flag of the command, the variable `MILLRACE_<NAME>`, a settings file, the
default. They are read once, at the start of a process. The file is the one that `MILLRACE_CONFIG` names (empty: none),
else `millrace.toml` in the folder of the loop, else in the current folder. `millrace init` writes one with every
setting commented out; `millrace config show` prints each value with its origin, `millrace config check` every mistake.

A name is the same in the file, below its section, and in the environment, in capitals. A relative path in a file is
relative to the file. In the environment a table is a JSON object, or short: `user=1000,item=20000`,
`kind:business|consumer;seller:1`. Times of the *event* clock say so; all others are wall time.
"""
_INIT = """# Settings of Millrace. Each line below is a default: remove its mark to change it.
# A flag and a variable MILLRACE_<NAME> go before this file. 'millrace config show' prints what holds.
"""


_BARE = re.compile(r"[A-Za-z0-9_-]+").fullmatch


class SettingRow(NamedTuple):
    """A setting. ``section``: of the file. ``about``: the comment that stands over the section."""

    section: str
    about: str
    name: str
    type: str
    default: Any
    meaning: str


def rows() -> list[SettingRow]:
    """Every public setting, in the order of the source."""
    source = inspect.getsource(module)
    comments = _comments(source)
    lines = source.splitlines()
    kinds = {field.name: field for field in _fields()}
    sections = {name: section for section, names in SECTIONS.items() for name in names}
    found, about, default = [], "", Settings()
    for node in _class(source).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first = node.lineno
        while first - 1 in comments and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        before = " ".join(comments[n] for n in range(first, node.lineno))
        if not lines[first - 2].strip():
            about, before = before, ""
        meaning = " ".join(text for text in (before, comments.get(node.end_lineno or node.lineno, "")) if text)
        name = node.target.id
        if name in sections:
            kind = _type(kinds[name].type)
            found.append(SettingRow(sections[name], about, name, kind, getattr(default, name), meaning))
    return found


def page() -> str:
    """The page as Markdown."""
    out = [_HEAD]
    for section, group in itertools.groupby(rows(), lambda row: row.section):
        of_section = list(group)
        about = of_section[0].about.partition(". ")[2]
        out += [f"{'' if len(out) == 1 else chr(10)}## [{section}]\n\n{about}\n"]
        out += ["| setting | variable | type | default | |", "|---|---|---|---|---|"]
        for row in of_section:
            default = f"`{as_toml(row.default)}`" if row.default not in ("", {}) else ""
            cells = (f"`{row.name}`", f"`{variable(row.name)}`", row.type, default, row.meaning)
            out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(out) + "\n"


def template() -> str:
    """A settings file in which every public setting is commented out, with its default."""
    out = [_INIT]
    for section, group in itertools.groupby(rows(), lambda row: row.section):
        of_section = list(group)
        out += ["", *_remark(of_section[0].about.partition(". ")[2]), f"[{section}]"]
        for row in of_section:
            out += [*_remark(row.meaning), f"#{row.name} = {as_toml(row.default)}"]
    return "\n".join(out) + "\n"


def _remark(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ")


def as_toml(value: Any) -> str:
    """A value as TOML writes it, in one line.

    >>> as_toml({"user": 1000, "kind": ["a"]})
    '{ user = 1000, kind = ["a"] }'
    >>> as_toml({"sku 7": 0})
    '{ "sku 7" = 0 }'
    """
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, dict):
        named = [(name if _BARE(name) else as_toml(name), inner) for name, inner in value.items()]
        return f"{{ {', '.join(f'{name} = {as_toml(inner)}' for name, inner in named)} }}" if named else "{}"
    return msgspec.json.encode(value).decode()


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
        case types.DictType():
            return f"table of {_type(kind.value_type)}"
        case types.ListType():
            return f"lists of {_type(kind.item_type)}"
        case types.StructType():
            return f"tables ({', '.join(field.name for field in kind.fields)})"
        case types.AnyType():
            return "values"
        case types.StrType():
            return "text" if kind.pattern is None else f"text like `{kind.pattern}`"
    raise TypeError(f"a setting of the type {kind}; teach commands/reference/settings_page.py to write it")
