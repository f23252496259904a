# core
"""What the HTTP API takes and gives, as types; a bad request becomes one line that names the value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from millrace.contracts.events import Int64, Name, TimeMs, WireId
from millrace.contracts.schema import DERIVED, Schema

Scalar = str | Int64 | float | bool | list[str | Int64] | None
MAX_BODY_BYTES = 1 << 20
MAX_SCORED = 1000
"""Items in one /score request: as many as one page of exposures may have."""


class RequestError(Exception):
    """A request that cannot be answered: ``status`` and one line for the client."""

    def __init__(self, problem: str, remedy: str, status: int = 400) -> None:
        self.status = status
        super().__init__(f"{problem}; {remedy}")


class RecommendRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """POST /recommend."""

    user_id: WireId
    size: Annotated[int, Meta(ge=1)] | None = None  # default: the page limit
    request_id: Name | None = None  # default: a new one
    ts_ms: TimeMs | None = None  # event time; default: now by the event clock
    context: dict[str, Scalar] = {}


class ScoreRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """POST /score."""

    user_id: WireId
    items: list[WireId]
    request_id: Name | None = None
    ts_ms: TimeMs | None = None
    context: dict[str, Scalar] = {}
    log: bool = False  # write the impression, as for a page of ours
    offset: Annotated[int, Meta(ge=0, le=100_000)] = 0  # slot of the first item on that page


class PlacedItem(Struct, frozen=True):
    """An item in its slot of a page."""

    item_id: int | str
    position: int
    score: float | None  # click probability; None: nothing was scored


class RecommendAnswer(Struct, frozen=True):
    """Answer of /recommend."""

    request_id: str | None  # None: no impression was logged, so nobody may report events of this page
    model_version: int  # -1: no model made it
    arm: str
    ts_ms: int
    items: list[PlacedItem]
    notes: list[str]


class ScoreAnswer(Struct, frozen=True):
    """Answer of /score: ``scores`` in the order of the request's items, null for unknown ones."""

    request_id: str
    model_version: int
    scores: list[float | None]
    unknown_items: list[int | str]


R = TypeVar("R", RecommendRequest, ScoreRequest)


def decode(raw: bytes, kind: type[R]) -> R:
    """The request in ``raw``.

    Raises:
        RequestError: it is no JSON, or not of this kind.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        fields = ", ".join(kind.__struct_fields__)
        raise RequestError(f"bad request: {error}", f"the fields are {fields}; see docs/api.md") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        start = raw[:40].decode("utf-8", "replace")
        raise RequestError(f"the body {start!r} is not JSON ({error})", "send a JSON object") from None


def check_size(size: int | None, limit: int) -> int:
    """The page size asked for, or the limit."""
    if size is not None and size > limit:
        raise RequestError(f"size {size} is above the page limit {limit}", f"ask for 1 to {limit} items")
    return limit if size is None else size


def check_items(items: Sequence[Any]) -> None:
    """An empty or far too long list is the caller's mistake."""
    if not items:
        raise RequestError("items [] is empty", "name at least one item to score")
    if len(items) > MAX_SCORED:
        raise RequestError(f"{len(items)} items are too many", f"score at most {MAX_SCORED} in one request")


def check_time(ts_ms: int | None, now_ms: int, ahead_ms: int, oldest_ms: int | None) -> int:
    """The event time asked for, or now.

    The label join would refuse the events of a page that is too far in the future, or not after ``oldest_ms`` (None:
    the page is not logged, and may be of any age).

    Raises:
        RequestError: the time asked for is out of these bounds.
    """
    if ts_ms is not None and oldest_ms is not None and ts_ms <= oldest_ms:
        raise RequestError(
            f"ts_ms {ts_ms} is {(now_ms - ts_ms) / 60_000:.0f} minutes behind the event clock, too late for a label",
            f"give Unix milliseconds after {oldest_ms}, or leave it out",
        )
    if ts_ms is not None and ts_ms > now_ms + ahead_ms:
        raise RequestError(
            f"ts_ms {ts_ms} is {(ts_ms - now_ms) / 60_000:.0f} minutes ahead of the event clock",
            f"give Unix milliseconds at most {ahead_ms / 60_000:g} minutes ahead, or leave it out",
        )
    return now_ms if ts_ms is None else ts_ms


def check_context(context: dict[str, Any], schema: Schema) -> None:
    """Names must be context fields of the schema that are not derived from time and page."""
    given = sorted(f.name for f in schema.fields if f.of == "context" and f.name not in DERIVED)
    for name in context:
        if name not in given:
            known = ", ".join(given) or "none"
            why = "is derived" if name in DERIVED else "is no context field of the schema"
            raise RequestError(f"context '{name}' {why}", f"leave it out; context fields to give: {known}")
