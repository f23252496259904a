# core
"""Finds values of users and items that are valid but probably not what the sender meant. They are counted and reported.

::

    User, Item ──► attributes that no field reads ──────► unknown-attribute
                   a list longer than its slots ─────────► beyond-slots
                   12.5 in a categorical field ──────────► fraction
                   born_ms = 1772414000 ─────────────────► born-in-seconds
                   key and id differ ────────────────────► wrong-key

Such a mistake leaves no other trace: pages are only worse than they could be. Remedies:
:data:`millrace.contracts.dead_letter_reasons.WARNINGS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

from millrace.contracts.events import Attribute, Item, ItemChange, User, change_key, key_of
from millrace.contracts.profile_reader import read_columns
from millrace.contracts.schema import Schema, Side

SECONDS_MS = 100_000_000_000
"""In milliseconds this is March 1973, in seconds the year 5138: a smaller time was meant in seconds."""
_SHOWN = 60
_NAMES = 1024
"""Unknown attributes to remember: where one item of a catalogue has one, each item has it."""


class ProfileWarning(NamedTuple):
    """``kind``: one of :data:`~millrace.contracts.dead_letter_reasons.WARNINGS`. ``detail``: one line that names the
    value."""

    kind: str
    detail: str


class ProfileChecks:
    """Checks users and items by ``schema``. Stateless; any thread may call it.

    >>> from millrace.contracts.schema import shop_schema
    >>> checks = ProfileChecks(shop_schema())
    >>> [warning.kind for warning in checks.of_item(Item("b3", {"colour": "red"}, born_ms=1_772_414_000))]
    ['unknown-attribute', 'born-in-seconds']
    >>> checks.of_item(Item("b3", {"catgory": "shoes"}))[0].detail
    "item 'b3': the schema has no 'catgory'; near: 'category'"
    """

    def __init__(self, schema: Schema) -> None:
        self._unknown = lru_cache(_NAMES)(self._name_unknown)
        self._filters = frozenset(schema.filters)
        self._read = read_columns(schema)

    def of_user(self, user: User) -> list[ProfileWarning]:
        """Warnings about a user; none, as a rule."""
        return self._of("user", user.user_id, user.attributes)

    def of_item(self, item: Item | ItemChange, key: bytes | None = None) -> list[ProfileWarning]:
        """Warnings about an item or a change of one. ``key``: of its Kafka message; None: not checked."""
        if isinstance(item, ItemChange):
            found = self._of("item", item.item_id, item.changes)
            if key is not None and not key.startswith(change_key(item.item_id, "")):
                found.append(ProfileWarning("wrong-key", f"change of item {item.item_id!r} under {key[:_SHOWN]!r}"))
            return found
        found = self._of("item", item.item_id, item.attributes)
        if 0 < item.born_ms < SECONDS_MS:
            found.append(ProfileWarning("born-in-seconds", f"item {item.item_id!r}: born_ms {item.born_ms}"))
        if key is not None and key != key_of(item.item_id):
            found.append(ProfileWarning("wrong-key", f"item {item.item_id!r} under the key {key[:_SHOWN]!r}"))
        return found

    def _of(self, side: Side, whose: int | str, attributes: Mapping[str, Attribute]) -> list[ProfileWarning]:
        found = []
        read = self._read[side]
        for name, value in attributes.items():
            if name not in read:
                if side == "user" or name not in self._filters:
                    detail = f"{side} {whose!r}: {self._unknown(side, name[:_SHOWN])}"
                    found.append(ProfileWarning("unknown-attribute", detail))
                continue
            field = read[name]
            if field is None or field.kind != "categorical":
                continue
            if isinstance(value, list) and len(set(map(str, value))) > field.slots:
                detail = f"{side} {whose!r}: {name} has {len(value)} values, {field.slots} slots"
                found.append(ProfileWarning("beyond-slots", detail))
            elif isinstance(value, str) and field.slots > 1 and value.count(field.separator) >= field.slots:
                several = {part.strip() for part in value.split(field.separator)} - {""}
                if len(several) > field.slots:
                    detail = f"{side} {whose!r}: {name} has {len(several)} values, {field.slots} slots"
                    found.append(ProfileWarning("beyond-slots", detail))
            elif isinstance(value, float) and not value.is_integer():
                found.append(ProfileWarning("fraction", f"{side} {whose!r}: {name} {value!r}"))
        return found

    def _name_unknown(self, side: Side, name: str) -> str:
        near = near_names(name, {*self._read[side], *(self._filters if side == "item" else ())})
        return f"the schema has no {name!r}" + (f"; near: {near[0]!r}" if near else "")


def near_names(name: str, there: Collection[str]) -> list[str]:
    """Of the names that are there, those that look like ``name``: at most four."""
    near = difflib.get_close_matches(name, sorted(there), n=3, cutoff=0.5)
    lower = {n.lower(): n for n in there}
    if name.lower() in lower and lower[name.lower()] not in near:
        near.insert(0, lower[name.lower()])
    return near
