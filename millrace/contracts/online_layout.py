# core
"""The layout of the online store: keys in Redis and their packing. Pure: no client here.

::

    user:{user_id}        hash      profile        JSON of the user's attributes
                                    <8 bytes>      packed tile list of the window key (little-endian uint64)
                                    guests         JSON of the ids that the user had as a guest
                    recent         the last clicks and the last purchases (:func:`pack_recent`)
    filled:{partition}    string    "filled": every user of that partition of `events` is here; "filling": not yet
    list:{name}           sorted set of item ids, best first: hot and hot:{column}:{value} by clicks a day, new by birth
    list:names            set of the keys `list:{name}` that there are
    ranked:{list}         string    the items that one request ranked, to be handed out in parts (scorer/page/ranked.py)

=====================  ==========================================  ==================================================
key                    written by                                  read by
=====================  ==========================================  ==================================================
``user:``              the stream, absolute values only            the scorer, one round trip a request
``filled:``            the stream                                  the stream: a Redis that lost its data has lost it
``list:``              the stream's worker that has partition 0    the scorer until it is ready; other services
``ranked:``            the scorer, for `list_seconds`              the scorer's workers
=====================  ==========================================  ==================================================

The setting ``prefix`` stands before each key, so that several loops can share one Redis
(:meth:`millrace.contracts.settings.Settings.key`). The functions here give keys without it, and so do the members of
``list:names``. The Redis client's caller adds it.

A window key with an empty tile list, or whose windows have ended, has no field: readers take a missing field for
zeros. A user without a click or purchase in the last 30 days has no field ``recent``. A profile stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from millrace.basics.errors import StoreError
from millrace.basics.hashing import U64
from millrace.contracts.events import Attribute, Id

PROFILE = b"profile"
GUESTS = b"guests"
RECENT = b"recent"
MOST_RECENT = 16
"""Clicks, and purchases, of a user that are kept."""
FILLED, FILLING = b"filled", b"filling"
HOT, NEW = "hot", "new"
"""Names of lists: hot items of the whole shop, and the items born last."""
LIST_NAMES = "list:names"
LIST_SIZE = 200
"""Entries of a list at most."""

_LIST = "list:"
WINDOW_BYTES = 8
"""Length of the field of a window key; no other field has it."""
_guests = msgspec.json.Decoder(list[Id])
_profile = msgspec.json.Decoder(dict[str, Any])
_recent = msgspec.msgpack.Decoder(tuple[list[int | str], list[int | str]])


def user_key(user_id: Id) -> str:
    return f"user:{user_id}"


def filled_key(partition: int) -> str:
    """The key of the mark that says whether all of a partition's users are in the store."""
    return f"filled:{partition}"


def window_field(key: int) -> bytes:
    """The field of a window key in a user's hash.

    >>> window_field(258)
    b'\\x02\\x01\\x00\\x00\\x00\\x00\\x00\\x00'
    """
    return int(key).to_bytes(WINDOW_BYTES, "little")


def window_fields(keys: U64) -> list[bytes]:
    """:func:`window_field` of each of ``keys`` (any shape), in their flat order."""
    packed = np.ascontiguousarray(keys, "<u8").tobytes()
    return [packed[i : i + WINDOW_BYTES] for i in range(0, len(packed), WINDOW_BYTES)]


def window_keys(record: Iterable[bytes]) -> U64:
    """The window keys among the fields of a user's hash. (n,) uint64"""
    return np.frombuffer(b"".join(field for field in record if len(field) == WINDOW_BYTES), "<u8")


def pack_profile(attributes: Mapping[str, Attribute]) -> bytes:
    """The value of the field :data:`PROFILE`."""
    return msgspec.json.encode(dict(attributes))


def unpack_profile(raw: bytes | None) -> dict[str, Any]:
    """A user's attributes; empty without a profile. Raises StoreError when the profile is no JSON object."""
    if raw is None:
        return {}
    try:
        return _profile.decode(raw)
    except msgspec.MsgspecError as error:
        shown = raw[:40].decode("utf-8", "replace")
        raise StoreError(f"the profile {shown!r} is no JSON object ({error})", "send the user again") from None


def unpack_guests(raw: bytes | None) -> list[Id]:
    """The value of the field :data:`GUESTS`; empty without it, or where it is damaged."""
    try:
        return _guests.decode(raw) if raw else []
    except msgspec.MsgspecError:
        return []


class Past(NamedTuple):
    """What a user did with one item, at an event time."""

    item_id: Id  # as the catalogue's owner writes it
    ts_ms: int


class Recent(NamedTuple):
    """What a user did last: newest first, at most :data:`MOST_RECENT` of each."""

    clicks: Sequence[Past]
    purchases: Sequence[Past]


NOTHING = Recent((), ())


def pack_recent(recent: Recent) -> bytes:
    """The value of the field :data:`RECENT`: msgpack of two lists, each ``[item id, ts_ms, item id, ts_ms, ...]``.

    >>> unpack_recent(pack_recent(Recent([Past("7", 2000), Past(9, 1000)], [])))
    Recent(clicks=[Past(item_id='7', ts_ms=2000), Past(item_id=9, ts_ms=1000)], purchases=[])
    """
    return msgspec.msgpack.encode([[value for past in pasts for value in past] for pasts in recent])


def unpack_recent(raw: bytes | None) -> Recent:
    """What a user did last; empty without the field. Raises StoreError for other bytes."""
    if not raw:
        return NOTHING
    try:
        clicks, purchases = _recent.decode(raw)
        return Recent(_pasts(clicks), _pasts(purchases))
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        problem = f"the last clicks {raw[:40]!r} are damaged ({error})"
        raise StoreError(
            problem, "the user's next click replaces them; deleting the keys filled:* has all users written again"
        ) from None


def _pasts(flat: list[int | str]) -> list[Past]:
    ids, times = flat[::2], flat[1::2]
    past = [Past(item_id, ts_ms) for item_id, ts_ms in zip(ids, times, strict=True) if isinstance(ts_ms, int)]
    if len(past) != len(times) or len(past) > MOST_RECENT:
        raise ValueError(f"{len(flat)} values are no {MOST_RECENT} items with their times")
    return past


def list_key(name: str) -> str:
    """The key of the list ``name``.

    >>> list_key(hot_in("category", "shoes"))
    'list:hot:category:shoes'
    """
    return f"{_LIST}{name}"


def hot_in(column: str, value: str) -> str:
    return f"{HOT}:{column}:{value}"


def values_listed(keys: Iterable[str], column: str) -> list[str]:
    """The values of ``column`` that have a list of hot items, from the members of :data:`LIST_NAMES`, sorted.

    >>> values_listed(["list:new", "list:hot", "list:hot:category:shoes"], "category")
    ['shoes']
    """
    start = list_key(hot_in(column, ""))
    return sorted(key.removeprefix(start) for key in keys if key.startswith(start))


def ranked_key(list_id: str) -> str:
    """The key of a ranked list.

    >>> ranked_key("5b1c")
    'ranked:5b1c'
    """
    return f"ranked:{list_id}"
