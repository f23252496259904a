# core
"""Users and items from outside, checked against one schema.

::

    bytes ──► JSON, of the right types (contracts.events) ──► values that the schema's fields can hold ──► User, Item
                  └─ malformed, oversized, wrong-type            └─ bad-value ──► BadEventError, a dead letter

Stream, scorer and lists all read with this module, so a message is usable for all of them or for none. A missing
value (no attribute, null, empty text, NaN) is no error. Text in place of a number is an error, and so is a number
that no float32 holds: it would be learnt from as 0 as long as the item lives. Attributes outside the schema are
kept. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from millrace.contracts import filter_attributes
from millrace.contracts.events import (
    CHANGE_MARK,
    Attribute,
    BadEventError,
    Item,
    ItemChange,
    User,
    decode_item,
    decode_user,
)
from millrace.contracts.field_values import numbers_of
from millrace.contracts.schema import DERIVED, Field, Schema, Side

TOO_LARGE = (2.0 - 2.0**-24) * 2.0**127  # from here on a float32 is infinite
_SHOWN = 60  # characters of an offending value


def read_columns(schema: Schema) -> dict[Side, dict[str, Field | None]]:
    """The attributes that are read, by side, with their fields; None: a column that only makes window keys."""
    fields = {f.name: f for f in schema.fields}
    sides: tuple[Side, ...] = ("user", "item")
    return {side: {name: fields.get(name) for name in schema.columns_of(side) if name not in DERIVED} for side in sides}


class Intake:
    """Reads users and items by ``schema``. Stateless; any thread may call it."""

    def __init__(self, schema: Schema) -> None:
        fields = {f.name: f for f in schema.fields}
        self._looked_at = read_columns(schema)
        self._filtered_by = {name: fields.get(name) for name in schema.filters}
        _, item_id = schema.ids
        self.of_items = tuple(n for n in dict.fromkeys((*self._looked_at["item"], *schema.filters)) if n != item_id)
        """Attributes of items that something reads."""

    def user(self, raw: bytes | None) -> User:
        """A user from the topic ``users``; :meth:`removed` reads tombstones.

        Raises:
            BadEventError: ``malformed``, ``oversized``, ``wrong-type`` or ``bad-value``, with the field and its value.
        """
        user = decode_user(raw)
        self._check("user", user.attributes)
        return user

    def item(self, raw: bytes | None) -> Item | ItemChange:
        """An item from the topic ``items``, or a change of one; as :meth:`user`. A change names attributes that
        something reads, so those of an item are few."""
        item = decode_item(raw)
        given = item.changes if isinstance(item, ItemChange) else item.attributes
        self._check("item", given)
        for name, field in self._filtered_by.items():
            why = filter_attributes.too_many(field, given.get(name))
            if why:
                raise BadEventError("bad-value", f"{name} {why}")
        if isinstance(item, ItemChange):
            for name in given:
                if name not in self.of_items:
                    raise BadEventError("bad-value", f"{name[:_SHOWN]!r} is no attribute of items in the schema")
        return item

    @staticmethod
    def removed(key: bytes | None) -> str:
        """The id of the item or user that a tombstone of ``items`` or ``users`` removes; empty: it removes a change of
        an item, of which nothing follows.

        Raises:
            BadEventError: ``bad-key``: the key is missing or no text.
        """
        if not key:
            raise BadEventError("bad-key", "a tombstone without a key takes nothing out; send the id as key")
        try:
            of, mark, name = key.partition(CHANGE_MARK)
            if of and mark:
                of.decode(), name.decode()
                return ""
            return key.decode()
        except UnicodeDecodeError:
            raise BadEventError("bad-key", f"the key {key[:_SHOWN]!r} is not UTF-8; send the id as text") from None

    def _check(self, side: Side, attributes: Mapping[str, Attribute]) -> None:
        for name, field in self._looked_at[side].items():
            value = attributes.get(name)
            if value is None:
                continue
            why = unfit(field, value)
            if why:
                shown = repr(value)
                shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
                raise BadEventError("bad-value", f"{name} {shown} {why}")


def unfit(field: Field | None, value: Attribute) -> str:
    """Why a field (None: a column that only makes window keys) cannot hold a value; empty when it can."""
    if field is not None and field.kind == "numeric":
        if isinstance(value, list):
            return "is a list where a number is needed"
        try:
            number = float(value or 0)
        except ValueError:
            return "is no number"
        # NaN is missing, like null; it fails no comparison.
        return "is beyond what a float32 holds" if abs(number) >= TOO_LARGE else ""
    if field is not None and field.kind == "vector":
        try:
            numbers_of(field, value)
        except ValueError as error:
            return str(error)
        return ""
    if isinstance(value, list) and (field is None or field.slots == 1 or field.kind == "text"):
        return "is a list where one value is needed"
    if isinstance(value, list) and any(isinstance(one, float) for one in value):
        return "is a list of numbers with a fraction"
    return ""


def no_item(change: ItemChange) -> BadEventError:
    """A change of an item that is not there."""
    return BadEventError("bad-item", f"item {change.item_id!r} is not in the catalogue; send it whole before a change")
