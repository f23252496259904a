"""Schemas in few lines: each function gives a piece of a schema's TOML, and pieces are added up.

``named("small") + of_user("user_id") + of_item("item_id", "price:numeric") + windows_of("item_id", days=[1, 7])`` is
the text of a schema, to be written to a file or parsed by ``parse_schema``. Fields come in the order in which they
stand.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from millrace.basics.errors import SchemaError
from millrace.contracts.schema import parse_schema


def table(heading: str, **values: Any) -> str:
    """One table of TOML, such as ``[[outcome]]`` or ``[log]``; without a heading, keys of the top. A value is anything
    that JSON writes as TOML does; a dictionary becomes an inline table."""
    lines = [f"{key} = {_value(value)}\n" for key, value in values.items()]
    return (f"{heading}\n" if heading else "") + "".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def named(name: str, **values: Any) -> str:
    """How a schema begins: its name, and what else stands above its fields, as ``crosses``."""
    return table("", name=name, **values)


def _fields(of: str, names: tuple[str, ...], settings: dict[str, Any]) -> str:
    text = ""
    for each in names:
        name, _, kind = each.partition(":")
        text += table("[[fields]]", name=name, of=of, **({"kind": kind} if kind else {}), **settings)
    return text


def of_user(*names: str, **settings: Any) -> str:
    """Fields of a user, ``"age:numeric"`` with its kind; ``settings`` are those of each of them."""
    return _fields("user", names, settings)


def of_item(*names: str, **settings: Any) -> str:
    """Fields of an item."""
    return _fields("item", names, settings)


def of_context(*names: str, **settings: Any) -> str:
    """Fields of a page's context."""
    return _fields("context", names, settings)


def windows_of(
    *keys: str,
    actions: tuple[str, ...] = ("exposure", "click"),
    means: tuple[dict[str, Any], ...] = (),
    parent: tuple[str, ...] = (),
    **settings: Any,
) -> str:
    """The windows of ``keys``, such as ``"user_id item_id"``, over ``days`` or ``lengths``. Keys of several columns
    shrink towards ``parent``, if one is named. It is the last piece but outcomes and the log."""
    text = table("[windows]", **settings, actions=list(actions))
    text += "".join(table("[[windows.means]]", **mean) for mean in means)
    for key in keys:
        columns = key.split()
        text += table(
            "[[windows.keys]]", columns=columns, **({"parent": parent} if parent and len(columns) > 1 else {})
        )
    return text


def outcome(name: str, event: str, within: str, *, on: str = "click", **settings: Any) -> str:
    """What is told later of a click, or of a page."""
    return table("[[outcome]]", name=name, on=on, event=event, within=within, **settings)


def mistake(text: str) -> str:
    """The one line that refuses a schema; it names the schema's file."""
    with pytest.raises(SchemaError) as caught:
        parse_schema(text, "s.toml")
    said = str(caught.value)
    assert "s.toml" in said
    assert "\n" not in said
    return said
