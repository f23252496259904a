# core
"""What the intake takes and gives, as types; a body becomes lines, and each line a message for Kafka or a refusal.

::

    body ──► one object | array | JSON lines ──► lines ──► decode, as the stream will ──► Message
               └─ none of them: the request is refused       └─ Refused: this line alone

A line is kept byte for byte, with ``ts_ms`` and ``sent_ms`` in front where an event left them out. So unknown fields
travel on. A line is refused where the stream could only make a dead letter of it, with the same reason, and where
its time is plainly in seconds, which the stream might take for 1970.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from millrace.basics.durations import span_name
from millrace.basics.errors import MillraceError
from millrace.contracts.events import (
    LAST_MS,
    MAX_EVENT_BYTES,
    BadEventError,
    Event,
    Exposure,
    ItemChange,
    change_key,
    decode_event,
    key_of,
    to_json,
)
from millrace.contracts.profile_reader import Intake
from millrace.contracts.profile_warnings import SECONDS_MS, ProfileChecks, ProfileWarning
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, ITEMS, USERS

MAX_LINES = 1000
"""Messages of one request."""
MAX_BODY_BYTES = 4 << 20
MOST_ID = 200
"""Characters of an id in a path, as in a message."""

ARCHIVED = "the archive keeps the user's rows until 'millrace data forget USER' (docs/how-to/delete-a-user.md)"
"""What remains to be done after a user is deleted."""
LINES_TYPES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/ndjson")

What = Literal["events", "users", "items"]
WHATS: tuple[What, ...] = ("events", "users", "items")

_NO_TIME = "missing required field `ts_ms`"
_SENT, _SENT_BYTES = b'"sent_ms"', 30
_TYPE = re.compile(r"^\s*([^;\s]*)")
L = TypeVar("L")


class Verdict(Struct, frozen=True, omit_defaults=True):
    """What became of one line."""

    status: Literal["kept", "duplicate", "refused"]
    reason: Annotated[str, Meta(description="Where refused: a word of docs/how-to/send-events.md")] | UnsetType = UNSET
    detail: Annotated[str, Meta(description="Where refused: one line that names the value")] | UnsetType = UNSET
    note: Annotated[str, Meta(description="Where kept: a warning about it, or what is left to do")] | UnsetType = UNSET


KEPT, DUPLICATE = Verdict("kept"), Verdict("duplicate")


class Taken(Struct, frozen=True):
    """Answer of POST: what became of the lines, in their order."""

    kept: int
    duplicates: int
    refused: int
    verdicts: list[Verdict]


class IntakeRequestError(MillraceError):
    """A request that cannot be answered as a whole.

    Args:
        status: the HTTP status.
        after: seconds until it may be sent again; 0: it is refused for good.
    """

    def __init__(self, problem: str, remedy: str, status: int = 400, after: int = 0) -> None:
        super().__init__(problem, remedy)
        self.status, self.after = status, after


class OutMessage(NamedTuple):
    """One message for Kafka, all that is decided of it."""

    topic: str  # logical
    key: bytes
    value: bytes | None  # None: a tombstone
    event_id: str = ""  # empty: sending it again changes nothing
    ts_ms: int = 0  # of an event
    exposure: bool = False
    note: str = ""  # part of the verdict, when the line is kept
    came_ms: int = LAST_MS  # the event clock when an event came
    before: tuple[OutMessage, ...] = ()  # others of the same line and partition, which go before it


_raw = msgspec.json.Decoder(msgspec.Raw).decode
_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode


def lines_of(body: bytes, content_type: str = "") -> list[bytes]:
    """The messages of a body, each as it came.

    Raises:
        IntakeRequestError: it is neither an object, nor an array, nor lines of JSON; or holds too many.
    """
    text = body.strip()
    if not text:
        raise IntakeRequestError("the body is empty", "send a JSON object, an array of them, or one object a line")
    kind = _TYPE.match(content_type)
    if kind is not None and kind[1].lower() in LINES_TYPES:
        return bounded(_split(text))
    try:
        if text[0] == 0x5B:  # [
            return list(map(bytes, bounded(_raws(text))))
        _raw(text)
        return [text]
    except RecursionError:
        problem = "nested too deep"
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        problem = str(error)
    found = _split(text) if text[0] != 0x5B else []
    if len(found) > 1 and any(map(_is_whole, found[: MAX_LINES + 1])):  # more than that are refused anyway
        return bounded(found)
    start = text[:40].decode("utf-8", "replace")
    raise IntakeRequestError(
        f"the body {start!r} is not JSON ({problem})",
        "send a JSON object, an array of them, or one object a line with Content-Type: application/x-ndjson",
    )


def _split(text: bytes) -> list[bytes]:
    return [line for line in map(bytes.strip, text.split(b"\n")) if line]


def _is_whole(line: bytes) -> bool:
    if line[0] != 0x7B or line[-1] != 0x7D:
        return False
    try:
        _raw(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def bounded(lines: list[L]) -> list[L]:
    if len(lines) > MAX_LINES:
        raise IntakeRequestError(f"{len(lines)} messages in one request", f"send at most {MAX_LINES} at a time", 413)
    return lines


class LineReader:
    """Reads lines. Stateless; the time is an argument.

    Args:
        schema: that users and items have to fit.
        ahead_ms: how far ahead of the event clock an event may be dated.
    """

    def __init__(self, schema: Schema, ahead_ms: int) -> None:
        self._intake, self._checks, self._ahead_ms = Intake(schema), ProfileChecks(schema), ahead_ms
        self._of: dict[What, Callable[[bytes, int, int], OutMessage]] = {
            "events": self._event,
            "users": self._user,
            "items": self._item,
        }

    def read(self, what: What, raw: bytes, now_ms: int, wall_ms: int) -> OutMessage:
        """One line.

        Args:
            raw: without white space around it.
            now_ms: the event clock.
            wall_ms: the wall clock, for ``sent_ms`` of events without it.

        Raises:
            BadEventError: it is refused: ``malformed``, ``oversized``, ``unknown-type``, ``wrong-type``, ``bad-value``,
                ``seconds`` or ``future``.
        """
        return self._of[what](raw, now_ms, wall_ms)

    def _event(self, raw: bytes, now_ms: int, wall_ms: int) -> OutMessage:
        try:
            event: Event = decode_event(raw)
        except BadEventError as error:
            if _NO_TIME not in error.detail:
                raise
            raw = b'{"ts_ms":%d,' % now_ms + raw[1:]
            event = decode_event(raw)
        ts_ms = event.ts_ms
        if ts_ms < SECONDS_MS <= now_ms:
            raise BadEventError("seconds", f"ts_ms {ts_ms} is a time in seconds; send milliseconds: {ts_ms}000")
        if ts_ms > now_ms + self._ahead_ms:
            ahead, limit = span_name(ts_ms - now_ms), f"at most {span_name(self._ahead_ms)} are taken"
            raise BadEventError("future", f"ts_ms {ts_ms} is {ahead} ahead of the event clock; {limit}")
        if event.sent_ms == 0 and _SENT not in raw and len(raw) + _SENT_BYTES <= MAX_EVENT_BYTES:
            raw = b'{"sent_ms":%d,' % wall_ms + raw[1:]
        exposure = isinstance(event, Exposure)
        return OutMessage(EVENTS, _key(event.user_id), raw, event.event_id, ts_ms, exposure, came_ms=now_ms)

    def _user(self, raw: bytes, now_ms: int, wall_ms: int) -> OutMessage:
        user = self._intake.user(raw)
        return OutMessage(USERS, _key(user.user_id), raw, note=_details(self._checks.of_user(user)))

    def _item(self, raw: bytes, now_ms: int, wall_ms: int) -> OutMessage:
        item = self._intake.item(raw)
        if isinstance(item, ItemChange):
            return self._change(item)._replace(note=_details(self._checks.of_item(item)))
        for name in ("born_ms", "expires_ms"):
            ms = getattr(item, name) or 0  # unset: false
            if 0 < ms < SECONDS_MS <= now_ms:
                raise BadEventError("seconds", f"{name} {ms} is a time in seconds; send milliseconds: {ms}000")
        return OutMessage(ITEMS, _key(item.item_id), raw, note=_details(self._checks.of_item(item)))

    def _change(self, change: ItemChange) -> OutMessage:
        """A message for each attribute, so that compaction keeps the newest of each."""
        _key(change.item_id)  # text that cannot be written
        of = {name: ItemChange(change.item_id, {name: value}) for name, value in change.changes.items()}
        if change.gone is not UNSET:
            of[""] = ItemChange(change.item_id, {}, change.gone)
        if not of:
            raise BadEventError("bad-value", f"item {change.item_id!r}: it changes nothing; name an attribute, or gone")
        *before, last = (OutMessage(ITEMS, change_key(one.item_id, name), to_json(one)) for name, one in of.items())
        return last._replace(before=tuple(before))

    def removal(self, what: What, identifier: str) -> OutMessage:
        """The tombstone of a user or an item. Raises BadEventError (``bad-key``) for an unusable id.

        Those of an item's changes go first: between them and the item's, another intake's change goes to an item that
        is about to be removed. After it, one of a new item with the same id would be removed from the topic."""
        if not 1 <= len(identifier) <= MOST_ID:
            raise BadEventError("bad-key", f"an id of {len(identifier)} characters; ids have 1 to {MOST_ID}")
        key = _key(identifier)
        if what == "users":
            return OutMessage(USERS, key, None, note=ARCHIVED)
        names = ("", *self._intake.of_items)
        before = tuple(OutMessage(ITEMS, change_key(identifier, name), None) for name in names)
        return OutMessage(ITEMS, key, None, before=before)


def _details(warnings: list[ProfileWarning]) -> str:
    return "; ".join(warning.detail for warning in warnings)


def _key(identifier: int | str) -> bytes:
    try:
        return key_of(identifier)
    except UnicodeEncodeError:
        raise BadEventError("wrong-type", f"the id {identifier!r} is no text that UTF-8 can write") from None


def late(message: OutMessage, newest_ms: int, life_ms: int, disorder_ms: int) -> BadEventError | None:
    """Why an exposure is too late for the stream, by a later event that was kept in its partition; None: it is not. (An
    action of any age may still find its page.)

    Args:
        newest_ms: the newest event kept in the partition, or the time it came: one dated ahead does not move the time.
        life_ms: how long a page lives: attribution and lateness.
        disorder_ms: how much out of order events may come.
    """
    behind_ms = newest_ms - disorder_ms - message.ts_ms
    if not message.exposure or behind_ms < life_ms:
        return None
    detail = (
        f"ts_ms {message.ts_ms} is {span_name(behind_ms)} behind what was kept already; pages live for "
        f"{span_name(life_ms)} (MILLRACE_ATTRIBUTION_MINUTES and MILLRACE_LATENESS_MINUTES)"
    )
    return BadEventError("late", detail)
