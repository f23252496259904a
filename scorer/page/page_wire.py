# core
"""Requests and answers of the HTTP API as types. A bad request gets one line with the value and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from millrace.contracts.events import MAX_DEPTH, SOURCES, Int64, Name, Position, TimeMs, WireId, key_at
from millrace.contracts.online_layout import MOST_RECENT
from millrace.contracts.profile_reader import unfit
from millrace.contracts.schema import DERIVED, Schema
from millrace.evidence.rerank import Rerank

MOST_VALUES, MOST_TEXT = 100, 1000
"""Limits of a context: values of a list, characters of a text."""
Text = Annotated[str, Meta(max_length=MOST_TEXT)]
Scalar = Text | Int64 | float | bool | Annotated[list[Text | Int64], Meta(max_length=MOST_VALUES)] | None
MOST_EXCLUDED, MOST_ATTRIBUTES = 1000, 16
"""Limits of a request: excluded ids, and attributes of one kind of filter."""
HIDDEN = ("bought", "clicked", "seen")
MAX_CAP = 1 << 20
"""A larger cap has no effect."""
Value = Text | Int64 | float | bool


class Range(Struct, frozen=True, forbid_unknown_fields=True, rename={"low": "min", "high": "max"}):
    """Numbers from ``min`` to ``max``, both included; without one of them: all above, or all below."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{'' if self.low is None else f'{self.low:g}'}..{'' if self.high is None else f'{self.high:g}'}"


Values = Value | list[Value] | Range
Clause = dict[str, Values]
_FEW = {"maxProperties": MOST_ATTRIBUTES}
MAX_BODY_BYTES = 1 << 20
MAX_SCORED = 1000
"""Items in one /score request: as many as one page of exposures may have."""
MOST_REQUEST_ID = 180
"""Characters of a list's request id. Those of its parts are longer, and must remain valid names."""


class RequestError(Exception):
    """A request that cannot be answered: ``status`` and one line for the client."""

    def __init__(self, problem: str, remedy: str, status: int = 400) -> None:
        self.status = status
        super().__init__(f"{problem}; {remedy}")


class Filters(Struct, frozen=True, array_like=True):
    """What a page must not show, and caps; ``only`` and ``without`` have values by attribute."""

    exclude: list[WireId] = []
    only: dict[str, list[Value] | Range] = {}
    without: dict[str, list[Value] | Range] = {}
    caps: dict[str, int] = {}
    hide: list[str] = []

    def __str__(self) -> str:
        """In words, for notes.

        >>> str(Filters(only={"in_stock": [True], "price": Range(5, None)}, exclude=[1, 2], hide=["bought"]))
        'only in_stock=true, only price=5.., 2 excluded, hidden: bought'
        """
        words = [
            f"{what} {name}={values if isinstance(values, Range) else '|'.join(map(_shown, values))[:60]}"
            for what, clause in (("only", self.only), ("not", self.without))
            for name, values in clause.items()
        ]
        if self.exclude:
            words.append(f"{len(self.exclude)} excluded")
        if self.hide:
            words.append(f"hidden: {', '.join(self.hide)}")
        return ", ".join([*words, *(f"at most {most} of each {name}" for name, most in self.caps.items())])


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class ListRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"without": "not"}):
    """POST /popular, and what every request for a page of items has."""

    user_id: (
        Annotated[WireId, Meta(description="Who gets the page, so that it is scored and logged; default: nobody")]
        | None
    ) = None
    session: (
        Annotated[WireId, Meta(description="Id that the user had as a guest: its last actions count as the user's")]
        | None
    ) = None
    size: Annotated[int, Meta(ge=1, description="Items wanted; default: the page limit")] | None = None
    request_id: Annotated[Name, Meta(description="Names the page in events about it; default: a new id")] | None = None
    ts_ms: Annotated[TimeMs, Meta(description="Event time in Unix ms; default: now by the event clock")] | None = None
    context: Annotated[dict[str, Scalar], Meta(description="Values of the schema's context fields")] = {}
    exclude: Annotated[
        list[WireId], Meta(description="Items that must not come", extra_json_schema={"maxItems": MOST_EXCLUDED})
    ] = []
    only: Annotated[
        Clause,
        Meta(
            description="By attribute: values of which an item must have one, or a range of its number; all must hold",
            extra_json_schema=_FEW,
        ),
    ] = {}
    without: Annotated[
        Clause,
        Meta(description="By attribute: values, or a range, of which an item must have none", extra_json_schema=_FEW),
    ] = {}
    caps: Annotated[
        dict[str, Annotated[int, Meta(extra_json_schema={"minimum": 1})]],
        Meta(description="By attribute: items of a page with the same value, at most", extra_json_schema=_FEW),
    ] = {}
    hide: (
        Annotated[
            list[Annotated[str, Meta(extra_json_schema={"enum": list(HIDDEN)})]],
            Meta(description="What the user did; /recommend: default: the setting hide"),
        ]
        | UnsetType
    ) = UNSET


class SimilarRequest(ListRequest, frozen=True, kw_only=True):
    """POST /similar: items like one."""

    item_id: WireId


class RecommendRequest(ListRequest, frozen=True, kw_only=True, rename={"length": "list"}):
    """POST /recommend: a page, the first part of a list (with ``list``), or the next part of one (with ``cursor``)."""

    user_id: WireId
    length: Annotated[int, Meta(ge=1, description="Items to rank, of which `size` are handed out at a time")] | None = (
        None
    )
    cursor: Annotated[str, Meta(min_length=1, max_length=300, description="As the part before answered it")] | None = (
        None
    )
    explain: Annotated[bool, Meta(description="Say of each item where recall found it, and of the first why")] = False
    if_clicked: (
        Annotated[
            list[WireId],
            Meta(
                description="A what-if, which is not logged: the page as if the user had just clicked these items; "
                "counts of items alone and the model stay. The same request_id and ts_ms draw the same by chance",
                extra_json_schema={"maxItems": MOST_RECENT},
            ),
        ]
        | None
    ) = None
    rerank: (
        Annotated[Rerank, Meta(description="Weights, diversity, boosts and pins, in place of those of the settings")]
        | None
    ) = None


class ScoreRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """POST /score."""

    user_id: WireId
    items: Annotated[list[WireId], Meta(extra_json_schema={"minItems": 1, "maxItems": MAX_SCORED})]
    request_id: Name | None = None
    ts_ms: TimeMs | None = None
    context: dict[str, Scalar] = {}
    log: Annotated[bool, Meta(description="Log the page, to be learnt from as if it had been made here")] = False
    offset: Annotated[Position, Meta(description="Slot of the first item on its page, for the feature position")] = 0
    arm: Annotated[str, Meta(description="With log: a name for who made the page, an arm to judge by its users")] = ""


class Reason(Struct, frozen=True):
    """Why an item is here: an input that made its score what it is; on pages of /similar and /popular, a measure."""

    input: Annotated[
        str,
        Meta(
            description="A field, or a window key with all its counts, or both; boost, diversity, worth; or the measure"
        ),
    ]
    effect: Annotated[float, Meta(description="By how much it raised log(score / (1 - score)); or the measure's value")]


class PlacedItem(Struct, frozen=True):
    """An item in its slot of a page."""

    item_id: int | str
    position: Annotated[int, Meta(description="What events about the item name it by")]
    score: Annotated[float | None, Meta(description="Click probability; null: nothing was scored")]
    source: Annotated[str, Meta(description=f"Where it was found: {', '.join(SOURCES)}")] | UnsetType = UNSET
    reasons: Annotated[list[Reason], Meta(description="Strongest first; /recommend: of the first")] | UnsetType = UNSET


class RecommendAnswer(Struct, frozen=True):
    """Answer of /recommend, /similar and /popular."""

    request_id: Annotated[str | None, Meta(description="null: nothing was logged, so send no events of this page")]
    model_version: Annotated[int, Meta(description="-1: no model made it")]
    arm: Annotated[
        str,
        Meta(description="model, control (random), an arm of the settings, logged (not ranked), lists (not logged)"),
    ]
    ts_ms: int
    items: list[PlacedItem]
    notes: Annotated[list[str], Meta(description="What was missing for this page, in words")]
    offset: Annotated[int, Meta(description="Slot in the list of the first item")] = 0
    cursor: Annotated[str | None, Meta(description="Asks for the next part of the list; null: there is none")] = None
    retrieval_version: (
        Annotated[int, Meta(description="With explain: the version that recall looked for near items with; -1: none")]
        | UnsetType
    ) = UNSET


class ItemAnswer(Struct, frozen=True):
    """Answer of GET /items/{id}: what pages are made of, so not the attributes' texts."""

    item_id: int | str
    on_pages: Annotated[bool, Meta(description="false: it is gone")]
    born_ms: Annotated[int, Meta(description="0: unknown")]
    numbers: Annotated[dict[str, float], Meta(description="By numeric field; 0 where the item has none")]
    clicks: Annotated[float, Meta(description="A day: the mean over the windows of those of the whole shop")]
    click_rate: Annotated[float, Meta(description="Over exposures, near the shop's own where these are few")]
    coclicked: Annotated[int, Meta(description="Number of items that are often clicked along with it, at most 16")]
    vector: Annotated[bool, Meta(description="Whether it can be found by its vector")]


class ScoreAnswer(Struct, frozen=True):
    """Answer of /score: ``scores`` in the order of the request's items, null for unknown ones."""

    request_id: Annotated[str | None, Meta(description="null: the page was to be logged and could not be")]
    model_version: int
    scores: list[float | None]
    unknown_items: list[int | str]
    notes: Annotated[list[str], Meta(description="What was missing, in words")]


R = TypeVar("R", bound=Struct)
_LOOKED_AT = 1 << 16
"""Bytes of an unreadable body in which the name of the field is searched."""
_BYTE = re.compile(r"\(byte (\d+)\)")


def decode(raw: bytes, kind: type[R]) -> R:
    """Raises RequestError: not JSON, or not of this kind."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        fields = ", ".join(kind.__struct_encode_fields__)
        raise RequestError(f"bad request: {error}", f"fields: {fields}; see docs/reference/http-api.md") from None
    except RecursionError:
        where = _at(key_at(raw[:_LOOKED_AT], _LOOKED_AT))
        raise RequestError(f"the body is nested too deep{where}", f"send at most {MAX_DEPTH} levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        found = _BYTE.search(str(error))
        where = _at(key_at(raw, int(found[1]))) if found and int(found[1]) < _LOOKED_AT else ""
        start = raw[:40].decode("utf-8", "replace")
        raise RequestError(f"the body {start!r} is not JSON ({error}){where}", "send a JSON object") from None


def _at(key: str) -> str:
    return f" at '{key}'" if key else ""


def check_size(size: int | None, limit: int, name: str = "size") -> int:
    """The requested page size, or ``limit``, beyond which RequestError is raised."""
    if size is not None and size > limit:
        raise RequestError(f"{name} {size} is above the page limit {limit}", f"ask for 1 to {limit} items")
    return limit if size is None else size


def check_recommend(asked: RecommendRequest, limit: int) -> int:
    """The requested page size, or ``limit``, which applies to lists too. Raises RequestError for fields that exclude
    each other."""
    size, length, cursor = asked.size, asked.length, asked.cursor
    check_size(length, limit, "list")
    for name, value in {"list": length, "cursor": cursor}.items():
        if asked.if_clicked is not None and value is not None:
            raise RequestError(f"'if_clicked' does not go with '{name}'", "ask for a page alone")
    if len(asked.if_clicked or ()) > MOST_RECENT:
        raise RequestError(
            f"if_clicked: {len(asked.if_clicked or ())} items are too many", f"name at most {MOST_RECENT}"
        )
    given = {"list": length, "request_id": asked.request_id, "rerank": asked.rerank}
    if cursor is not None and (name := next((name for name, value in given.items() if value is not None), "")):
        raise RequestError(f"'{name}' does not go with 'cursor'", "a list has them from its first part: leave it out")
    if length is not None and (size is None or size >= length):
        raise RequestError(f"list {length} with size {size} has no parts", f"give a size below {length}, or no list")
    if length is not None and asked.request_id is not None and len(asked.request_id) > MOST_REQUEST_ID:
        text = f"request_id of {len(asked.request_id)} characters is too long for a list"
        raise RequestError(text, f"use at most {MOST_REQUEST_ID}: the ids of its parts begin with it")
    size = check_size(size, limit)
    for item, slot in ((asked.rerank and asked.rerank.pins) or {}).items():
        if slot >= size:
            raise RequestError(f"item '{item[:40]}' is pinned to slot {slot} of a page of {size}", "slots count from 0")
    return size


def filters_of(asked: ListRequest) -> Filters | None:
    """The filters of a request, checked except for attribute names. None: nothing. Raises RequestError: too many,
    unknown, or together with a cursor."""
    hide = asked.hide or []
    given = {"exclude": asked.exclude, "only": asked.only, "not": asked.without, "caps": asked.caps, "hide": hide}
    names = [name for name, value in given.items() if value]
    if not names:
        return None
    if isinstance(asked, RecommendRequest) and asked.cursor is not None:
        raise RequestError(f"'{names[0]}' does not go with 'cursor'", "the list keeps its filters: leave it out")
    if len(asked.exclude) > MOST_EXCLUDED:
        problem = f"exclude: {len(asked.exclude)} ids are too many"
        raise RequestError(problem, f"name at most {MOST_EXCLUDED}; 'hide' leaves out what the user did")
    for name in hide:
        if name not in HIDDEN:
            raise RequestError(f"hide {name[:40]!r} is nothing to hide", f"use {', '.join(HIDDEN)}")
    for what, of in (("only", asked.only), ("not", asked.without), ("caps", asked.caps)):
        if len(of) > MOST_ATTRIBUTES:
            raise RequestError(f"{what}: {len(of)} attributes are too many", f"name at most {MOST_ATTRIBUTES}")
    for attribute, most in asked.caps.items():
        if most < 1:
            remedy = "give 1 or more; 'not' leaves out items by their values"
            raise RequestError(f"caps '{attribute[:40]}' is {most}", remedy)
    only, without = (_clause(what, c) for what, c in (("only", asked.only), ("not", asked.without)))
    caps = {name: min(most, MAX_CAP) for name, most in asked.caps.items()}
    return Filters(asked.exclude, only, without, caps, list(dict.fromkeys(hide)))


def _clause(what: str, clause: Clause) -> dict[str, list[Value] | Range]:
    lists = {name: value if isinstance(value, list | Range) else [value] for name, value in clause.items()}
    for name, values in lists.items():
        where = f"{what} '{name[:40]}'"
        if isinstance(values, Range):
            ends = [end for end in (values.low, values.high) if end is not None]
            if not ends or ends != sorted(ends):
                raise RequestError(f"{where}: no number is in {values}", "give min, or max, or a min up to the max")
            continue
        if not values:
            raise RequestError(f"{where} is []", "name at least one value, or leave the attribute out")
        if len(values) > MOST_VALUES:
            raise RequestError(f"{where}: {len(values)} values are too many", f"name at most {MOST_VALUES}")
        if "" in values:
            raise RequestError(
                f"{where} is ''", "an empty text is a missing value, which no filter finds: leave it out"
            )
    return lists


def check_items(items: Sequence[Any]) -> None:
    """Raises RequestError for an empty or too long list."""
    if not items:
        raise RequestError("items [] is empty", "name at least one item to score")
    if len(items) > MAX_SCORED:
        raise RequestError(f"items: {len(items)} are too many", f"score at most {MAX_SCORED} in one request")


def check_time(ts_ms: int | None, now_ms: int, ahead_ms: int, oldest_ms: int, why: str) -> int:
    """The requested event time, or now. Raises RequestError when it is too far ahead, or at ``oldest_ms`` or before
    (``why`` says why such a page is useless)."""
    if ts_ms is not None and ts_ms <= oldest_ms:
        raise RequestError(
            f"ts_ms {ts_ms} is {(now_ms - ts_ms) / 60_000:.0f} minutes behind the event clock, {why}",
            f"give Unix milliseconds after {oldest_ms}, or leave it out",
        )
    if ts_ms is not None and ts_ms > now_ms + ahead_ms:
        raise RequestError(
            f"ts_ms {ts_ms} is {(ts_ms - now_ms) / 60_000:.0f} minutes ahead of the event clock",
            f"give Unix milliseconds at most {ahead_ms / 60_000:g} minutes ahead, or leave it out",
        )
    return now_ms if ts_ms is None else ts_ms


def check_context(context: dict[str, Any], schema: Schema) -> None:
    """Names must be context fields of the schema that do not follow from time and page, with values of their type; null
    is a missing value."""
    if not context:
        return
    given = {f.name: f for f in schema.fields if f.of == "context" and f.name not in DERIVED}
    for name, value in context.items():
        if name not in given:
            known = ", ".join(sorted(given)) or "none"
            why = "is derived" if name in DERIVED else "is no context field of the schema"
            raise RequestError(f"context '{name[:40]}' {why}", f"leave it out; context fields to give: {known}")
        field = given[name]
        bad = "" if value is None else unfit(field, value)
        if not bad and field.kind == "numeric" and value is not None and not math.isfinite(float(value or 0)):
            bad = "is no finite number"
        if bad:
            raise RequestError(f"context '{name}' {str(value)[:40]!r} {bad}", f"give a value for a {field.kind} field")
