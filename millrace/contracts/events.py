# core
"""Every message that crosses Kafka, as types.

What comes from outside (``events``, ``users``, ``items``) is JSON, so that any program can send it; what Millrace
writes for itself is MessagePack with packed arrays (little-endian, C order). Nothing is ever unpickled.

=================  ========================  ==================================================
topic              message                   key
=================  ========================  ==================================================
``events``         :data:`Event` (JSON)      ``user_id``
``page_logs``    :class:`PageLog`       ``user_id`` (same number of partitions as ``events``)
``users``          :class:`User` (JSON)      ``user_id`` (compacted, same number of partitions)
``items``          :class:`Item` (JSON)      ``item_id`` (compacted)
``samples``        :class:`~millrace.contracts.samples.SampleBatch`  none: written to the partition its events came from
``dead-letters``   :class:`DeadLetter` (JSON)  reason
``features.items`` :class:`ItemTiles`        partition number
``features.coclicks``  lists of items: :mod:`millrace.contracts.coclick_message`  partition number
``model.deltas``   claims, deltas, snapshots: :mod:`millrace.versions.modellog`  none
``truth``          :class:`Truth`            ``user_id`` (known to the simulator; read by reports only)
=================  ========================  ==================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from millrace.basics.hashing import value_hash

Id = int | str
"""Users and items are named by integers or by text, as their owner likes; ``7`` and ``"7"`` are the same id."""

LAST_MS = 32_503_680_000_000
"""The year 3000. A later time is not in Unix milliseconds."""

# Integers have 64 bits: a larger one fits into no column, no MessagePack and no checkpoint.
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
WireId = Int64 | Name
"""An :data:`Id` as it may come from outside."""
Attribute = str | Int64 | float | bool | list[str | Int64 | float] | None
TimeMs = Annotated[int, Meta(ge=1, le=LAST_MS, description="Unix milliseconds, up to the year 3000")]
TimeOrNever = Annotated[int, Meta(ge=0, le=LAST_MS, description="Unix milliseconds; 0: not known")]

ACTIONS = ("exposure", "click", "collect", "cart", "purchase")
"""Action kinds in their fixed order: the column order of every array of counts."""
EXPOSURE, CLICK, COLLECT, CART, PURCHASE = range(len(ACTIONS))

ARMS = MODEL, CONTROL, LOGGED, OTHER = "model", "control", "logged", "other"
"""Who made a page that was logged: the model, chance, nobody here (a page of a log, or of another system, that was
only scored here), or another rule, as for an arm of popular items. In the order of the codes of ``SampleBatch.arm``."""
UNRANKED = CONTROL, OTHER
"""Pages that the model scored and did not order: figures of the model's own pages leave them out."""

SOURCES = ("none", "vectors", "liked", "coclicked", "hot", "new", "random", "whole", "control", "asked", "pinned")
"""Where recall found an item of a page (:mod:`scorer.recall.candidate_lists`), in the order of the codes of
``PageLog.sources``. ``none``: it was not recorded. ``whole``: the shop is so small that all of it was ranked.
``control``: a random page. ``asked``: the caller named the item, or the list that it comes from does not say.
``pinned``: the shop has it in this slot."""

CHANGE_MARK = b"\xff"

MOST_SESSIONS = 8
"""Ids of guests of one user: a page reads each of them."""

MAX_EVENT_BYTES = 256 * 1024
"""An event, user or item larger than this is a dead letter: a page of 1,000 items is some 20 KiB."""

MAX_ITEMS, MAX_OFFSET = 1000, 100_000
"""Items of one exposure message, and the slot of its first at most."""

Position = Annotated[int, Meta(ge=0, le=MAX_OFFSET)]
Lacking = Annotated[int, Meta(ge=0, le=255)]
"""What a page was made without: bits of :data:`PROFILE_MISSING`, :data:`WINDOWS_MISSING`, :data:`NOT_READ`."""
PROFILE_MISSING, WINDOWS_MISSING, NOT_READ = 1, 2, 4
"""The user's attributes were not there; the user's window counts were not there; neither was read, since the online
store did not answer in time. Without the last one the store answered and had none: a guest, a new or a deleted user, or
a store that lost its data."""
"""A slot of a page or list, from 0."""

MESSAGE_BYTES = 700_000
"""Messages of Millrace's own (samples, item tiles, dead letters) are cut to this, below the 1 MiB that brokers take."""

MAX_DEPTH = 32
"""JSON nested deeper than this is refused before it is decoded. The decoder's own limit depends on the depth of the
call stack: a message near that limit would be readable in one place and unreadable in another."""


class Exposure(Struct, frozen=True, tag_field="type", tag="exposure"):
    """A user saw ``items`` of the page ``request_id`` in consecutive slots, the first of which is ``offset``.

    One message a page, not one an item. An exposure's identity is ``(request_id, position)``, with the position that
    the page was answered with; sending it again changes nothing. Without ``slots`` a page is shown as it was answered.
    A client that leaves items out, or shows them in another order, names in ``slots`` the position of each item as
    answered, in the order shown::

        answered   0: a   1: b   2: c   3: d            items [a, b, c, d]
        shown      0: c   1: a   2: d                   items [c, a, d], slots [2, 0, 3]

    Actions name the position as answered.
    """

    event_id: Name
    request_id: Name
    ts_ms: TimeMs
    user_id: WireId
    items: Annotated[list[WireId], Meta(min_length=1, max_length=MAX_ITEMS)]
    offset: Position = 0
    sent_ms: TimeOrNever = 0  # wall time of sending, for tracing; 0 when unknown
    slots: Annotated[list[Position], Meta(min_length=1, max_length=MAX_ITEMS)] | None = None
    kind: ClassVar[int] = 0

    def __post_init__(self) -> None:
        slots = self.slots
        if slots is None:
            return
        if len(slots) != len(self.items):
            raise ValueError(f"{len(slots)} slots for {len(self.items)} items; name the position of each item shown")
        if len(set(slots)) != len(slots):
            twice = next(slot for n, slot in enumerate(slots) if slot in slots[:n])
            raise ValueError(f"slots name the position {twice} twice; name each item shown once")

    @property
    def places(self) -> Sequence[int]:
        """The position as answered of each of ``items``."""
        return self.slots or range(self.offset, self.offset + len(self.items))

    @property
    def mask(self) -> int:
        """The same as a bit mask: bit p is position p."""
        if self.slots is None:
            return ((1 << len(self.items)) - 1) << self.offset
        return sum(1 << slot for slot in self.slots)


class Action(Struct, frozen=True, tag_field="type"):
    """What a user did with one item of a page it was exposed on."""

    event_id: Name
    request_id: Name
    ts_ms: TimeMs
    user_id: WireId
    item_id: WireId
    position: Position
    sent_ms: TimeOrNever = 0
    kind: ClassVar[int] = -1


class Click(Action, frozen=True, tag="click"):
    kind: ClassVar[int] = 1


class Collect(Action, frozen=True, tag="collect"):
    kind: ClassVar[int] = 2


class Cart(Action, frozen=True, tag="cart"):
    kind: ClassVar[int] = 3


class Purchase(Action, frozen=True, tag="purchase"):
    kind: ClassVar[int] = 4


class Order(Struct, frozen=True, tag_field="type", tag="order"):
    """A purchase that names no page, as a shop's orders do.

    It belongs to the user's last click on the item that has come and whose outcome is still open
    (:mod:`stream.join.outcome_book`). It counts in no window.
    """

    event_id: Name
    ts_ms: TimeMs
    user_id: WireId
    item_id: WireId
    sent_ms: TimeOrNever = 0
    kind: ClassVar[int] = 5


class Refund(Order, frozen=True, tag="refund"):
    """A purchase was returned or cancelled: the user's last one of the item, dated no later than this."""

    kind: ClassVar[int] = 6


Event = Exposure | Click | Collect | Cart | Purchase | Order | Refund

EVENT_KINDS = (*ACTIONS, "order", "refund")
"""The name of each event by its ``kind``."""


class User(Struct, frozen=True, omit_defaults=True):
    """A user's slowly changing attributes; names as in the schema. The newest message replaces the older ones.

    ``sessions`` are ids that the same person had as a guest. What happened under them counts for the user too, while
    it stays under its id: nothing is copied, so each event counts once and expires as always. Who deletes the user
    deletes them."""

    user_id: WireId
    attributes: dict[str, Attribute]
    sessions: Annotated[list[WireId], Meta(max_length=MOST_SESSIONS)] = []


class Item(Struct, frozen=True):
    """An item of the catalogue. ``gone`` takes it out of recall; it may still be scored. At ``expires_ms`` of event
    time it is gone by itself."""

    item_id: WireId
    attributes: dict[str, Attribute]
    born_ms: TimeOrNever = 0
    gone: bool = False
    expires_ms: TimeMs | UnsetType = UNSET


class ItemChange(Struct, frozen=True):
    """New values of some attributes of an item that is there; all others stay. In a topic each has a key of its own
    (:func:`change_key`), so compaction keeps the newest value of each attribute, and whoever reads in order has the
    item, however many intakes wrote: nobody has to read an item before changing it."""

    item_id: WireId
    changes: dict[str, Attribute]
    gone: bool | UnsetType = UNSET


class PageLog(Struct, frozen=True):
    """What the scorer knew and said when it made a page: features and scores, item by item, in page order.

    Arrays are packed: ``keys`` (n, K) uint64 window keys, ``cat`` (n, F) int64 feature ids, ``num`` (n, N)
    float32, ``scores`` (n,) float32 click probabilities. F, N and K are those of the schema ``schema_id``.
    :mod:`millrace.contracts.page_logs` writes and reads the message.

    Events count a page's items from 0. Where it is a part of a longer list, its first item has the slot ``offset`` of
    that list, and the feature ``position`` counts from there.
    """

    request_id: str
    ts_ms: TimeMs
    user_id: Id
    arm: str  # one of ARMS
    model_version: Int64
    schema_id: str
    items: list[Id]
    scores: bytes
    keys: bytes
    cat: bytes
    num: bytes
    served_ms: int = 0  # wall time
    offset: int = 0
    sources: bytes = b""  # (n,) uint8 codes of SOURCES; empty: not recorded
    user_missing: Lacking = 0  # what was not there of the user
    among: bytes = b""  # of one page in 100: (G, m) float32 the set of candidates it was measured against
    odds: bytes = b""  # (n,) float32 of each item in its slot (millrace.evidence.exploration); empty: not said
    # As the settings name the arm (millrace.evidence.user_arms), or whoever asked to score the page; empty: as `arm`.
    arm_name: str = ""
    # (n,) float32 what each item was ordered by in place of its score; NaN: pinned to its slot
    ranked: bytes | UnsetType = UNSET


class ItemTiles(Struct, frozen=True):
    """New states of item-side window keys in one partition of ``events``; the sum over partitions is the count.

    ``keys`` packs (n,) uint64, ``sizes`` (n,) uint32 byte lengths, ``tiles`` the concatenated tile lists.
    """

    partition: Annotated[int, Meta(ge=0, lt=1024)]  # as many as the settings allow
    seq: int
    event_ms: TimeOrNever
    keys: bytes
    sizes: bytes
    tiles: bytes


class Truth(Struct, frozen=True):
    """True click probabilities of a page's exposures, known to the simulator alone. ``p`` packs (n,) float32."""

    request_id: str
    ts_ms: int
    offset: Position
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

    @classmethod
    def of(
        cls, reason: str, detail: str, topic: str, partition: int, offset: int, raw: bytes | None, exposures: int = 0
    ) -> DeadLetter:
        """The dead letter of a message; of a very large one the beginning is kept."""
        kept = bytes(raw or b"")[:MAX_EVENT_BYTES]
        return cls(reason, detail, topic, partition, offset, exposures, kept, len(raw or b"") > MAX_EVENT_BYTES)


class BadEventError(ValueError):
    """An event that cannot be used.

    Args:
        reason: one of the fixed words that dead letters are counted by.
        detail: one line that names the value. Of a long one, which names a value of any length, the middle is left out.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail if len(detail) <= 400 else f"{detail[:300]}…{detail[-90:]}"
        super().__init__(f"{reason}: {self.detail}")


T = TypeVar("T")
_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()
_PIECES = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
"""Brackets, and texts (whole or cut off), so that a bracket within a text does not count. Linear in the message."""
_COLON = re.compile(rb"\s*:")


def is_deep(raw: bytes) -> bool:
    """Whether the JSON in ``raw`` is nested deeper than :data:`MAX_DEPTH`."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:  # nearly always, and much faster
        return False
    depth = 0
    for piece in _PIECES.finditer(raw):
        first = raw[piece.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def key_at(raw: bytes, byte: int, depth: int = MAX_DEPTH) -> str:
    """The name of the entry of the JSON object in ``raw`` within which ``byte`` lies, or within which it is nested
    deeper than ``depth``. Empty: none. For the text of an error; linear in the message.

    >>> key_at(b'{"a": 1, "b": {"c": NaN}}', 20)
    'b'
    """
    level, key = 0, b""
    for piece in _PIECES.finditer(raw):
        first = raw[piece.start()]
        if piece.start() >= byte or (first in b"[{" and level >= depth):
            break
        if first in b"[{":
            level += 1
        elif first in b"]}":
            level -= 1
        elif level == 1 and _COLON.match(raw, piece.end()):
            key = piece[0]
    return key.strip(b'"')[:40].decode("utf-8", "replace")


def read_json(decode: Callable[[bytes], T], raw: bytes | None, max_bytes: int = MAX_EVENT_BYTES) -> T:
    """The value of JSON that may come from anybody.

    Args:
        decode: a msgspec decoder's method.
        raw: a message's value; None is a tombstone.

    Raises:
        BadEventError: with the reason ``oversized``, ``malformed`` (not JSON, or nested too deep), ``unknown-type`` or
            ``wrong-type``.
    """
    if not raw:
        raise BadEventError("malformed", "the message is empty")
    if len(raw) > max_bytes:
        raise BadEventError("oversized", f"{len(raw)} bytes, at most {max_bytes} are taken")
    if is_deep(raw):
        raise BadEventError("malformed", f"nested deeper than {MAX_DEPTH} levels")
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = "$.type" in text and "Invalid value" in text
        text += "; send milliseconds since 1970 as a whole number" if text.endswith("_ms`") else ""
        raise BadEventError("unknown-type" if unknown else "wrong-type", text) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEventError("malformed", str(error)) from None


def read_msgpack(decode: Callable[[bytes], T], raw: bytes | None) -> T:
    """The value of a MessagePack message that Millrace should have written, but anybody may have.

    Raises:
        BadEventError: with the reason ``malformed`` or ``wrong-type``.
    """
    try:
        return decode(raw or b"")
    except msgspec.ValidationError as error:
        raise BadEventError("wrong-type", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEventError("malformed", str(error)) from None
    except RecursionError:
        raise BadEventError("malformed", "nested too deep") from None


_event = msgspec.json.Decoder(Event).decode
_user = msgspec.json.Decoder(User).decode
_item = msgspec.json.Decoder(Item).decode
_item_change = msgspec.json.Decoder(ItemChange).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_dead_letter = msgspec.json.Decoder(DeadLetter).decode
_item_tiles = msgspec.msgpack.Decoder(ItemTiles).decode
_truth = msgspec.msgpack.Decoder(Truth).decode


def decode_event(raw: bytes | None) -> Event:
    """One event from its JSON. Raises BadEventError as :func:`read_json` does."""
    event: Event = read_json(_event, raw)
    return event


def decode_user(raw: bytes | None) -> User:
    """A user from its JSON. :class:`~millrace.contracts.profile_reader.Intake` decides whether a schema can use the
    attributes. Raises BadEventError as :func:`read_json` does."""
    return read_json(_user, raw)


def decode_item(raw: bytes | None) -> Item | ItemChange:
    """An item from its JSON, or a change of one, as :func:`decode_user`."""
    if raw and b'"changes"' in raw and "changes" in (found := read_json(_object, raw)):
        if "attributes" in found:
            raise BadEventError("wrong-type", "`attributes` replace an item and `changes` change it; send one of them")
        return read_json(_item_change, raw)
    return read_json(_item, raw)


def decode_dead_letter(raw: bytes | None) -> DeadLetter:
    """Raises BadEventError as :func:`read_json` does."""
    return read_json(_dead_letter, raw, 8 * MAX_EVENT_BYTES)


def decode_item_tiles(raw: bytes | None) -> ItemTiles:
    """Raises BadEventError as :func:`read_msgpack` does."""
    return read_msgpack(_item_tiles, raw)


def decode_truth(raw: bytes | None) -> Truth:
    """Raises BadEventError as :func:`read_msgpack` does."""
    return read_msgpack(_truth, raw)


def to_json(message: Struct) -> bytes:
    """The JSON form of an event, user, item, dead letter or announcement."""
    return _json.encode(message)


def to_msgpack(message: Struct) -> bytes:
    """The MessagePack form of item tiles or a truth record."""
    return _msgpack.encode(message)


def key_of(identifier: Id) -> bytes:
    """The Kafka key of a user or an item: the id's text."""
    return str(identifier).encode()


def name_hash(event: Action | Order) -> int:
    """64 bits by which an event is known: of its user and its ``event_id``. What has them too is the same event again,
    whatever else it says."""
    return value_hash(f"{event.user_id}\0{event.event_id}")


def change_key(item: Id, name: str) -> bytes:
    """The Kafka key of a change of one attribute (empty: of ``gone``). No id has the byte between: it is no UTF-8."""
    return key_of(item) + CHANGE_MARK + name.encode()


def dead_letter_bytes(dead_letter: DeadLetter) -> bytes:
    """A dead letter's JSON. Of a message too large to travel within another one, only the beginning is kept."""
    encoded = to_json(dead_letter)
    if len(encoded) > MESSAGE_BYTES:
        start = dead_letter.raw[: MESSAGE_BYTES // 2]
        encoded = to_json(msgspec.structs.replace(dead_letter, raw=start, truncated=True))
    return encoded
