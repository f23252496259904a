# core
"""Attributes that pages can be filtered by, and the values of an item.

::

    schema   filters = ["in_stock", "region"]      attributes that are no features
             [[fields]] of = "item", categorical   each of these can be filtered by as well

    item     region ["eu", "us"]  ──► values_of ──► "eu", "us" ──► hashes_of ──► (2,) value hashes

Values compare as columns do (:func:`millrace.basics.hashing.value_hash`): 7, 7.0 and "7" are one value, true is 1,
false is 0. A request for true or false also matches the texts "true" and "false" (:func:`asked_hashes`), the form
that tables read from files have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from millrace.basics.hashing import value_hash
from millrace.contracts.field_values import parts_of
from millrace.contracts.schema import DERIVED, ITEM_AGES, MOST_DAYS, Field, Schema

MOST_VALUES = 16
"""An item's values of one attribute in ``filters`` at most: the most slots of a categorical field."""

AGE = ITEM_AGES[0]
"""Pages are filtered and boosted by the age of items, whether or not it is a field."""
Value = str | int | float | bool
_AS_TEXT = {True: ("true", "True", "TRUE"), False: ("false", "False", "FALSE")}
_TEXTS = {text: flag for flag, texts in _AS_TEXT.items() for text in texts}


def filterable(schema: Schema) -> tuple[str, ...]:
    """The attributes of items that a page can be filtered by: those in ``filters``, then categorical fields."""
    fields = (f.name for f in schema.fields if f.of == "item" and f.kind == "categorical" and f.name not in DERIVED)
    return tuple(dict.fromkeys((*schema.filters, *fields)))


def unknown(schema: Schema, names: Iterable[str]) -> tuple[str, str] | None:
    """Of the first attribute that pages cannot be filtered by: what is wrong, and the remedy. None: they can by all."""
    known = filterable(schema)
    for name in names:
        if name not in known:
            if name in ITEM_AGES:
                remedy = (
                    'give only or not a range of age_days in days, as {"max": 0.25}, or boosts such ages: {"0.25": 2}'
                )
                return f"'{name}' changes with time, and has no values to tell apart", remedy
            text, use = name.replace('"', "'")[:40], f"use one of {', '.join(known) or 'none'}"
            remedy = f'{use}; or add filters = ["{text}"] at the top of the schema file and restart'
            if name in {field.name for field in schema.fields}:  # the schema refuses these among its filters
                remedy = f'{use}; a number needs a range, as {{"min": 5}}; users and pages have none'
            return f"'{text}' is no attribute that this shop filters by", remedy
    return None


def bad_boost(schema: Schema, boosts: Mapping[str, Iterable[str]]) -> tuple[str, str] | None:
    """As :func:`unknown`, of boosts: attributes with their values; those of the age are days."""
    for days in boosts.get(AGE, ()):
        try:
            good = 0 < float(days) <= MOST_DAYS
        except ValueError:
            good = False
        if not good:
            return f"'{AGE}' has '{days[:40]}'", "name the days up to which the factor holds, such as 0.25"
    return unknown(schema, (name for name in boosts if name != AGE))


def values_of(field: Field | None, value: Value | Sequence[Value] | None) -> list[Value]:
    """The values of an attribute without missing ones. A text counts as one value, except in a multi-valued ``field``,
    whose separator splits it.

    >>> values_of(None, "eu,us")
    ['eu,us']
    >>> values_of(None, ["eu", "us", ""])
    ['eu', 'us']
    """
    return [part for part in parts_of(field, value) if value_hash(part)]


def hashes_of(field: Field | None, value: Value | Sequence[Value] | None) -> list[int]:
    """Hashes of an attribute's distinct values, at most :data:`MOST_VALUES`. Intake refuses items that have more."""
    return list(dict.fromkeys(map(value_hash, values_of(field, value))))[:MOST_VALUES]


def too_many(field: Field | None, value: Value | Sequence[Value] | None) -> str:
    """Why an item cannot have this value of an attribute in ``filters``; empty when it can."""
    n = len(set(map(value_hash, values_of(field, value))))
    return f"has {n} values where pages can be filtered by {MOST_VALUES} at most" if n > MOST_VALUES else ""


def asked_hashes(values: Iterable[Value]) -> list[int]:
    """Sorted hashes of the values that a request names. true and "true" stand for each other, and so do false and
    "false".

    >>> asked_hashes([True]) == asked_hashes(["true"])
    True
    >>> asked_hashes([7]) == asked_hashes(["7"]) == asked_hashes([7.0])
    True
    """
    found = set[int]()
    for value in values:
        found.add(value_hash(value))
        flag = value if isinstance(value, bool) else _TEXTS.get(value) if isinstance(value, str) else None
        if flag is not None:
            found.update(map(value_hash, (flag, *_AS_TEXT[flag])))
    found.discard(0)
    return sorted(found)
