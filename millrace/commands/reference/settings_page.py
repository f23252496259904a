# core
"""The page of the public settings, and a settings file with them, made from the types of
:class:`millrace.contracts.settings.Settings`. Pure.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any, NamedTuple, get_type_hints

import msgspec
from msgspec import inspect as types

from millrace.contracts.settings import ABOUT, SECTIONS, Settings, variable

_HEAD = """# Settings

This page is made from `millrace/contracts/settings.py` by `millrace dev reference --out docs/`; do not edit it.

A setting comes from, in this order: a flag, the variable `MILLRACE_<NAME>`, a settings file, the default. They are read
once, at the start of a process. The file is the one that `MILLRACE_CONFIG` names (empty: none), else `millrace.toml` in
the folder of the loop, else in the current folder. `millrace init` writes one, `millrace config show` prints each value
with its origin, `millrace config check` every mistake.

`MILLRACE_LOG_FORMAT` of the environment is `log_format` in the file, below its section. A relative path in a file is
relative to the file. In the environment a table is a JSON object, or short: `user=1000,item=20000`,
`kind:business|consumer;seller:1`. Times of the *event* clock say so; all others are wall time.
"""
_INIT = """# Settings of Millrace. Each line below is a default: remove its mark to change it.
# A flag and a variable MILLRACE_<NAME> go before this file. 'millrace config show' prints what holds.
"""


_BARE = re.compile(r"[A-Za-z0-9_-]+").fullmatch


class SettingRow(NamedTuple):
    name: str
    type: str
    default: Any
    meaning: str


def rows(section: str) -> list[SettingRow]:
    """The public settings of a section."""
    told, struct, default = get_type_hints(Settings, include_extras=True), types.type_info(Settings), Settings()
    assert isinstance(struct, types.StructType)
    kinds = {field.name: _type(field.type) for field in struct.fields if field.name in SECTIONS[section]}
    return [
        SettingRow(
            name,
            kinds[name],
            getattr(default, name),
            "".join(part for part in getattr(told[name], "__metadata__", ()) if isinstance(part, str)),
        )
        for name in SECTIONS[section]
    ]


def page() -> str:
    """The page as Markdown."""
    out = [_HEAD]
    for section, about in ABOUT.items():
        out += [f"{'' if len(out) == 1 else chr(10)}## [{section}]\n\n{about}\n"]
        out += ["| variable | type (default) | |", "|---|---|---|"]
        for row in rows(section):
            default = f" (`{as_toml(row.default)}`)" if row.default not in ("", {}) else ""
            cells = (f"`{variable(row.name)}`", row.type + default, row.meaning)
            out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(out) + "\n"


def template() -> str:
    """A settings file in which every public setting is commented out, with its default."""
    out = [_INIT]
    for section, about in ABOUT.items():
        out += ["", *_remark(about), f"[{section}]"]
        for row in rows(section):
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
    raise TypeError(f"a setting of the type {kind}; teach millrace/commands/reference/settings_page.py to write it")
