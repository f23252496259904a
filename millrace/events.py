"""Every message that crosses Kafka, as types.

What comes from outside (``events``, ``users``, ``items``) is JSON, so that any program can send it; what Millrace
writes for itself is MessagePack with packed arrays (little-endian, C order). Nothing is ever unpickled.

=================  ========================  ==================================================
topic              message                   key
=================  ========================  ==================================================
``events``         :data:`Event` (JSON)      ``user_id``
``impressions``    :class:`Impression`       ``user_id`` (same number of partitions as ``events``)
``users``          :class:`User` (JSON)      ``user_id`` (compacted, same number of partitions)
``items``          :class:`Item` (JSON)      ``item_id`` (compacted)
``samples``        :class:`~millrace.samples.SampleBatch`  none: written to the partition its events came from
``dead-letters``   :class:`DeadLetter` (JSON)  reason
``features.items`` :class:`ItemTiles`        partition number
``model.deltas``   :class:`~millrace.modelstore.Announcement` (JSON)  none
``truth``          :class:`Truth`            ``user_id`` (known to the simulator; read by reports only)
=================  ========================  ==================================================
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Struct

Id = int | str
"""Users and items are named by integers or by text, as their owner likes; ``7`` and ``"7"`` are the same id."""

Attribute = str | int | float | bool | list[str | int] | None
TimeMs = Annotated[int, Meta(ge=1, le=32503680000000, description="Unix milliseconds, up to the year 3000")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]

ACTIONS = ("exposure", "click", "collect", "cart", "purchase")
"""Action kinds in their fixed order: the column order of every array of counts."""
CLICK = 1

MAX_EVENT_BYTES = 256 * 1024
"""An event larger than this is a dead letter: a page of 1,000 items is some 20 KiB."""


class Exposure(Struct, frozen=True, tag_field="type", tag="exposure"):
    """A user saw ``items``: consecutive slots of the page ``request_id``, the first at position ``offset``.

    One message a page, not one an item. An exposure's identity is ``(request_id, position)``; sending it again
    changes nothing.
    """

    event_id: Name
    request_id: Name
    ts_ms: TimeMs
    user_id: Id
    items: Annotated[list[Id], Meta(min_length=1, max_length=1000)]
    offset: Annotated[int, Meta(ge=0, le=100_000)] = 0
    sent_ms: int = 0  # wall time of sending, for tracing; 0 when unknown
    kind: ClassVar[int] = 0


class Action(Struct, frozen=True, tag_field="type"):
    """What a user did with one item of a page it was exposed on."""

    event_id: Name
    request_id: Name
    ts_ms: TimeMs
    user_id: Id
    item_id: Id
    position: Annotated[int, Meta(ge=0, le=100_000)]
    sent_ms: int = 0
    kind: ClassVar[int] = -1


class Click(Action, frozen=True, tag="click"):
    kind: ClassVar[int] = 1


class Collect(Action, frozen=True, tag="collect"):
    kind: ClassVar[int] = 2


class Cart(Action, frozen=True, tag="cart"):
    kind: ClassVar[int] = 3


class Purchase(Action, frozen=True, tag="purchase"):
    kind: ClassVar[int] = 4


Event = Exposure | Click | Collect | Cart | Purchase


class User(Struct, frozen=True):
    """A user's slowly changing attributes; names as in the schema. The newest message replaces the older ones."""

    user_id: Id
    attributes: dict[str, Attribute]


class Item(Struct, frozen=True):
    """An item of the catalogue. ``gone`` takes it out of recall; it may still be scored."""

    item_id: Id
    attributes: dict[str, Attribute]
    born_ms: int = 0
    gone: bool = False


class Impression(Struct, frozen=True):
    """What the scorer knew and said when it made a page: features and scores, item by item, in page order.

    Arrays are packed: ``keys`` (n, K) uint64 window keys, ``cat`` (n, F) int64 feature ids, ``num`` (n, N)
    float32, ``scores`` (n,) float32 click probabilities. F, N and K are those of the schema ``schema_id``.
    """

    request_id: str
    ts_ms: int
    user_id: Id
    arm: str  # "model" or "control" (a random page)
    model_version: int
    schema_id: str
    items: list[Id]
    scores: bytes
    keys: bytes
    cat: bytes
    num: bytes
    served_ms: int = 0  # wall time


class ItemTiles(Struct, frozen=True):
    """New states of item-side window keys in one partition of ``events``; the sum over partitions is the count.

    ``keys`` packs (n,) uint64, ``sizes`` (n,) uint32 byte lengths, ``tiles`` the concatenated tile lists.
    """

    partition: int
    seq: int
    event_ms: int
    keys: bytes
    sizes: bytes
    tiles: bytes


class Truth(Struct, frozen=True):
    """True click probabilities of a page's exposures, known to the simulator alone. ``p`` packs (n,) float32."""

    request_id: str
    ts_ms: int
    offset: int
    p: bytes


class DeadLetter(Struct, frozen=True):
    """A message that could not be used, whole, with the reason. ``raw`` is base64 in the JSON form."""

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    exposures: int  # exposures lost with it: those of a well-formed page, 0 for what was never readable
    raw: bytes
    truncated: bool = False


class BadEventError(ValueError):
    """An event that cannot be used.

    Args:
        reason: one of the fixed words that dead letters are counted by.
        detail: one line that names the value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


_event_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Event)
_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()


def decode_event(raw: bytes, max_bytes: int = MAX_EVENT_BYTES) -> Event:
    """One event from its JSON.

    Raises:
        BadEventError: with the reason ``oversized``, ``malformed`` (not JSON), ``unknown-type`` or ``wrong-type``.
    """
    if len(raw) > max_bytes:
        raise BadEventError("oversized", f"{len(raw)} bytes, at most {max_bytes} are taken")
    try:
        event: Event = _event_decoder.decode(raw)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = "$.type" in text and "Invalid value" in text
        raise BadEventError("unknown-type" if unknown else "wrong-type", text) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEventError("malformed", str(error)) from None
    return event


def to_json(message: Struct) -> bytes:
    """The JSON form of an event, user, item, dead letter or announcement."""
    return _json.encode(message)


def to_msgpack(message: Struct) -> bytes:
    """The MessagePack form of an impression, item tiles or truth record."""
    return _msgpack.encode(message)


decode_user = msgspec.json.Decoder(User).decode
decode_item = msgspec.json.Decoder(Item).decode
decode_dead_letter = msgspec.json.Decoder(DeadLetter).decode
decode_impression = msgspec.msgpack.Decoder(Impression).decode
decode_item_tiles = msgspec.msgpack.Decoder(ItemTiles).decode
decode_truth = msgspec.msgpack.Decoder(Truth).decode


def key_of(identifier: Id) -> bytes:
    """The Kafka key of a user or an item: the id's text."""
    return str(identifier).encode()
