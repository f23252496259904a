# core
"""The join's state of one request: a whole page, or a settled one in some bytes.

::

    page log ────► PageState: its message (some KB), parts, masks, what waits
                      │  attribution has passed, every label is given, nothing waits
                      ▼
                   settled: 20-60 bytes: when it is dropped, the Kafka offset of its page log, what was said of it
                      │  a late click, or a late exposure of other positions
                      ▼
                   PageState without its page log, which is asked for by its offset: it is *away*

A settled page, packed (msgpack)::

    drop_ms, offset of the page log, exposed, acted (5 masks, or nil), parts: (drop_ms - ts_ms, brought, mask,
    offset within the page, policy code, and slots if the page was shown otherwise than it was answered)

Masks are bytes, little-endian; nil means "as ``exposed``". Of a promise, a part whose label is given needs only the
policy's code: corrections name it. Sets of positions are bit masks: bit p is position p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from millrace.contracts.events import Action, Event, Id
from millrace.labels import Promise, label_ms
from stream.join.page_rows import LoggedPage

UNKNOWN, GONE = -1, -2
"""In place of a page log's offset: unknown (so the page is never settled); its log is gone."""


class InputMessage(NamedTuple):
    """One Kafka message of the partition.

    ``clock_ms`` is the event clock when it came to Kafka; None: not known. ``key`` is a tombstone's; None: it is
    none.
    """

    topic: str
    offset: int
    raw: bytes
    clock_ms: int | None = None
    key: bytes | None = None


@dataclass(slots=True, eq=False)
class PagePart:
    """The new positions of one exposure message."""

    mask: int  # without those that became dead letters
    ts_ms: int
    offset: int
    items: list[Id] | None  # until it is matched, as the message
    message: InputMessage | None
    promise: Promise[int]
    slots: list[int] | None = None  # positions as answered, in the order shown; None: as answered, from ``offset`` on
    placed: bool = False  # whether the page's ``shown`` has the part's rows
    brought: int = field(init=False)

    def __post_init__(self) -> None:
        self.brought = self.mask

    @property
    def places(self) -> Sequence[int]:
        """The position as answered of each item of the message, while its items are here."""
        return self.slots or range(self.offset, self.offset + len(self.items or ()))

    @property
    def label_ms(self) -> int:
        """The watermark at which exposures without a click are negatives."""
        return self.ts_ms + label_ms(self.promise)

    @property
    def clicks_ms(self) -> int:
        """The watermark before which clicks are kept waiting; 0 when none waits."""
        return self.ts_ms + self.promise.hold_ms - self.promise.slack_ms if self.promise.hold_ms else 0


@dataclass(slots=True, eq=False)
class PageState:
    """All that is known about one request."""

    request: str
    page_log: LoggedPage | None = None
    shown: LoggedPage | None = None  # the same with some parts' rows as they were shown
    at: int = UNKNOWN  # Kafka offset of the page log
    parts: list[PagePart] = field(default_factory=list)
    exposed: int = 0
    labelled: int = 0
    acted: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0])  # by action kind
    # Actions whose exposure or page log is not here yet, and the watermark when each came.
    held: dict[tuple[int, int, str], tuple[Action, InputMessage, int]] = field(default_factory=dict)
    waiting: list[tuple[int, int, int]] = field(default_factory=list)
    """(position, kind, origin) of actions that wait for the label."""
    drop_ms: int = 0
    settle_ms: int = 0
    in_time: int = 0  # clicked within the attribution window, by all clocks
    sent_again: bool = False  # for the loss within the page

    @property
    def is_away(self) -> bool:
        """Whether the page log has come and was dropped."""
        return self.page_log is None and self.at != UNKNOWN

    @property
    def can_settle(self) -> bool:
        """Whether every label is given and no action is held."""
        if self.at == UNKNOWN or self.held or self.waiting:
            return False
        return all(part.message is None and not part.mask & ~self.labelled for part in self.parts)

    def holds(self, event: Action) -> bool:
        """Whether the same action of the same user is held. Only the page log tells whose the page is."""
        return (event.position, event.kind, f"{event.user_id}\0{event.item_id}") in self.held

    def hold(self, event: Action, message: InputMessage, came_ms: int) -> None:
        """Keeps an action until it can be attached. The same action again is kept beside it: only the page log tells
        whether it is a duplicate or names a wrong item."""
        named = f"{event.user_id}\0{event.item_id}"
        if self.holds(event):
            named += f"\0{message.offset}"
        self.held[event.position, event.kind, named] = (event, message, came_ms)

    def part_of(self, position: int) -> PagePart | None:
        for part in self.parts:
            if part.brought >> position & 1:
                return part
        return None


class _PartBytes(msgspec.Struct, array_like=True):
    before_drop_ms: int
    brought: bytes | None
    mask: bytes | None
    offset: int
    code: int
    slots: list[int] | None = None


class _PageBytes(msgspec.Struct, array_like=True):
    drop_ms: int
    at: int
    exposed: bytes
    acted: list[bytes] | None
    parts: list[_PartBytes]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_PageBytes).decode
_when = msgspec.msgpack.Decoder(tuple[int, int, bytes, Any, Any]).decode


def settle(page: PageState) -> bytes:
    """A page for which :attr:`PageState.can_settle` holds, packed."""
    exposed, drop_ms = page.exposed, page.drop_ms

    def short(mask: int) -> bytes | None:
        return None if mask == exposed else to_bytes(mask)

    parts = [
        _PartBytes(drop_ms - p.ts_ms, short(p.brought), short(p.mask), p.offset, p.promise.code, p.slots)
        for p in page.parts
    ]
    acted = [to_bytes(mask) for mask in page.acted] if any(page.acted) else None
    return _encode(_PageBytes(drop_ms, page.at, to_bytes(exposed), acted, parts))


def unsettle(request: str, raw: bytes) -> PageState:
    found = _decode(raw)
    page = PageState(request)
    page.drop_ms, page.at, page.exposed = found.drop_ms, found.at, to_mask(found.exposed)
    page.sent_again = True  # before it was settled, or not at all
    if found.acted is not None:
        page.acted = [to_mask(mask) for mask in found.acted]
    for one in found.parts:
        brought = page.exposed if one.brought is None else to_mask(one.brought)
        promise = Promise(one.code, 0, 0, 0)
        part = PagePart(brought, found.drop_ms - one.before_drop_ms, one.offset, None, None, promise, one.slots)
        part.mask = page.exposed if one.mask is None else to_mask(one.mask)
        page.labelled |= part.mask
        page.parts.append(part)
    return page


def peek(raw: bytes) -> tuple[int, int]:
    """When a settled page is dropped, and which positions were exposed."""
    drop_ms, _, exposed, _, _ = _when(raw)
    return drop_ms, to_mask(exposed)


def without_log(raw: bytes) -> bytes:
    """Marks a settled page's page log as gone."""
    found = _decode(raw)
    found.at = GONE
    return _encode(found)


def plain(page: PageState) -> tuple[Any, ...]:
    """A page as plain values that do not change afterwards."""
    return (
        page.request,
        None if page.page_log is None else page.page_log.raw,
        [
            (to_bytes(t.brought), to_bytes(t.mask), t.ts_ms, t.offset, t.items, t.message, t.promise, t.slots)
            for t in page.parts
        ],
        to_bytes(page.exposed),
        to_bytes(page.labelled),
        [to_bytes(mask) for mask in page.acted],
        [(message, came_ms) for _, message, came_ms in page.held.values()],
        list(page.waiting),
        page.drop_ms,
        page.at,
        page.settle_ms,
        to_bytes(page.in_time),
        page.sent_again,
    )


def page_of(state: Any, page_log: Callable[[bytes], LoggedPage], decode: Callable[[bytes], Event]) -> PageState:
    """The inverse of :func:`plain`. ``page_log`` and ``decode`` read messages."""
    request, served, parts, exposed, labelled, acted, held, waiting, drop_ms, at, settle_ms, in_time, again = state
    page = PageState(request)
    page.in_time, page.sent_again = to_mask(in_time), again
    page.at, page.settle_ms = at, settle_ms
    page.page_log = None if served is None else page_log(served)
    for brought, mask, ts, offset, items, message, promise, slots in parts:
        part = PagePart(
            to_mask(brought), ts, offset, items, message and InputMessage(*message), Promise(*promise), slots
        )
        part.mask = to_mask(mask)
        page.parts.append(part)
    page.exposed, page.labelled, page.drop_ms = to_mask(exposed), to_mask(labelled), drop_ms
    page.acted = [to_mask(m) for m in acted]
    page.waiting = [tuple(w) for w in waiting]
    for raw, came_ms in held:
        message = InputMessage(*raw)
        event = decode(message.raw)
        assert isinstance(event, Action)
        page.hold(event, message, came_ms)
    return page


def to_bytes(mask: int) -> bytes:
    """A mask as bytes, little-endian; none for no position."""
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def to_mask(raw: bytes) -> int:
    """The inverse of :func:`to_bytes`."""
    return int.from_bytes(raw, "little")
