# core
"""The fake client's server: intake and scorer in memory, with the same HTTP.

::

    POST /items, /users, /events    a verdict a line; a repeated event id is a duplicate
    DELETE /items/ID, /users/ID
    POST /recommend                 most clicked first, then the newest; filters, caps, lists by cursor
    POST /popular, /similar         the same order; similar: those with most attributes in common first
    GET  /items/ID, /readyz

It learns nothing and knows no schema.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta, Struct

from millrace_client.calls import MOST_BYTES, MOST_LINES, Answer, Call
from millrace_client.messages import (
    Action,
    Event,
    Exposure,
    Id,
    Item,
    ItemChange,
    ItemFacts,
    PlacedItem,
    Receipt,
    User,
    Verdict,
)

PAGE_LIMIT, MOST_EXCLUDED = 600, 1000


class _Kind(Struct):
    type: str = ""


class _Rerank(Struct, forbid_unknown_fields=True):
    diversity: float = 0.0
    boosts: dict[str, dict[str, float]] = {}
    pins: dict[str, Annotated[int, Meta(ge=0)]] = {}  # alone change pages here, where nothing has a score


class _Limits(Struct, kw_only=True, forbid_unknown_fields=True, rename={"without": "not"}):
    user_id: Id | None = None
    session: Id | None = None
    size: Annotated[int, Meta(ge=1, le=PAGE_LIMIT)] = PAGE_LIMIT
    context: dict[str, Any] = {}
    exclude: Annotated[list[Id], Meta(max_length=MOST_EXCLUDED)] = []
    only: dict[str, Any] = {}
    without: dict[str, Any] = {}
    caps: dict[str, Annotated[int, Meta(ge=1)]] = {}
    hide: list[Literal["bought", "clicked", "seen"]] = []


class _Like(_Limits, kw_only=True):
    item_id: Id


class _Asked(_Limits, kw_only=True, rename={"length": "list"}):
    user_id: Id
    explain: bool = False
    length: Annotated[int, Meta(ge=1, le=PAGE_LIMIT)] | None = None
    cursor: str | None = None
    rerank: _Rerank | None = None


class Failing(Struct):
    """Planned failures: ``status`` 0 means no answer."""

    status: int
    times: int
    path: str
    retry_after_s: float | None


class FakeServer:
    """Intake and scorer in memory.

    Args:
        numeric: attributes that must be numbers, as numeric fields of a schema must.

    Attributes:
        items, users: by the ids' text, as last sent; events: each once, in order.
        requests: number of requests, with failed ones.
        young: pages are made of lists, as of a scorer that has no model yet: ``request_id`` is null.
    """

    def __init__(self, numeric: Collection[str] = ()) -> None:
        self.items: dict[str, Item] = {}
        self.users: dict[str, User] = {}
        self.events: list[Event] = []
        self.requests = 0
        self.young = False
        self._numeric = frozenset(numeric)
        self._known: set[str] = set()
        self._lists: dict[str, tuple[str, list[str], int]] = {}
        self._pages = 0
        self._failing: list[Failing] = []

    def fail(self, status: int, times: int = 1, path: str = "", retry_after_s: float | None = None) -> None:
        """Makes the next requests to paths with this prefix fail with 429, 503 or any other status; 0: no answer."""
        self._failing.append(Failing(status, times, path, retry_after_s))

    def answer(self, call: Call) -> Answer:
        """Answers one request. Raises ConnectionError for a planned failure without an answer."""
        self.requests += 1
        path = urlsplit(call.url).path
        failing = next((one for one in self._failing if one.times and path.startswith(one.path)), None)
        if failing is not None:
            failing.times -= 1
            if not failing.status:
                raise ConnectionError("the fake is set not to answer")
            after = {} if failing.retry_after_s is None else {"retry-after": f"{failing.retry_after_s:g}"}
            return _error(failing.status, f"the fake is set to answer {failing.status}; go on", after)
        kind = path.strip("/").partition("/")[0]
        if call.method == "POST" and path in ("/events", "/users", "/items"):
            return self._take(kind, call.body)
        if call.method == "DELETE" and kind in ("users", "items"):
            return self._forget(kind, unquote(path.rpartition("/")[2]))
        if call.method == "POST" and path in ("/recommend", "/similar", "/popular"):
            return self._page(kind, call.body)
        if call.method == "GET" and kind == "items":
            return self._facts(unquote(path.removeprefix("/items/")))
        if path == "/readyz":
            return Answer(200, b"{}")
        return _error(404, f"{call.method} {path} is not served; see docs/reference/http-api.md")

    # -- intake ----------------------------------------------------------------------------------------------------

    def _take(self, kind: str, body: bytes) -> Answer:
        lines = [line for line in body.split(b"\n") if line.strip()]
        if len(lines) > MOST_LINES or len(body) > MOST_BYTES:
            return _error(413, f"{len(lines)} messages, {len(body)} bytes; send at most {MOST_LINES}, {MOST_BYTES}")
        take = {"events": self._event, "users": self._user, "items": self._item}[kind]
        return _receipt([self._verdict(take, line) for line in lines])

    @staticmethod
    def _verdict(take: Any, line: bytes) -> Verdict:
        try:
            verdict: Verdict = take(line)
            return verdict
        except msgspec.ValidationError as error:
            return Verdict("refused", "wrong-type", str(error))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Verdict("refused", "malformed", str(error))

    def _event(self, line: bytes) -> Verdict:
        kind = msgspec.json.decode(line, type=_Kind).type
        if kind not in ("exposure", "click", "collect", "cart", "purchase"):
            return Verdict("refused", "unknown-type", f"type {kind!r}")
        decode = msgspec.json.decode
        event: Event = decode(line, type=Exposure) if kind == "exposure" else decode(line, type=Action)
        if event.event_id in self._known:
            return Verdict("duplicate")
        self._known.add(event.event_id)
        self.events.append(event)
        return Verdict("kept")

    def _user(self, line: bytes) -> Verdict:
        user = msgspec.json.decode(line, type=User)
        self.users[str(user.user_id)] = user
        return Verdict("kept")

    def _item(self, line: bytes) -> Verdict:
        if "changes" in msgspec.json.decode(line):
            change = msgspec.json.decode(line, type=ItemChange)
            held = self.items.get(str(change.item_id))
            if held is None:  # the real intake cannot know; a dead letter says it
                return Verdict("kept")
            gone = held.gone if change.gone is None else change.gone
            item = Item(held.item_id, {**held.attributes, **change.changes}, held.born_ms, gone, held.expires_ms)
        else:
            item = msgspec.json.decode(line, type=Item)
        for name in sorted(self._numeric & set(item.attributes)):
            value = item.attributes[name]
            if value is not None and not isinstance(value, int | float):
                return Verdict("refused", "bad-value", f"{name} {value!r} is no number; send a number")
        self.items.pop(str(item.item_id), None)  # the newest is last
        self.items[str(item.item_id)] = item
        return Verdict("kept")

    def _forget(self, kind: str, identifier: str) -> Answer:
        (self.users if kind == "users" else self.items).pop(identifier, None)
        if kind == "users":
            self.events = [event for event in self.events if str(event.user_id) != identifier]
        return _receipt([Verdict("kept")])

    # -- pages -----------------------------------------------------------------------------------------------------

    def _facts(self, identifier: str) -> Answer:
        item = self.items.get(identifier)
        if item is None:
            return _error(404, f"item {identifier!r} is not in the catalogue; send it")
        clicks, known = self._clicks()[identifier], item.attributes
        numbers = {name: float(x) if isinstance(x := known.get(name), int | float) else 0.0 for name in self._numeric}
        facts = ItemFacts(item.item_id, not item.gone, item.born_ms, numbers, float(clicks), 0.0, 0, False)
        return Answer(200, msgspec.json.encode(facts))

    def _page(self, kind: str, body: bytes) -> Answer:
        try:
            asked = msgspec.json.decode(body, type={"recommend": _Asked, "similar": _Like}.get(kind, _Limits))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error(400, f"bad request: {error}; see docs/reference/http-api.md")
        if not self.items:
            return _error(503, "not ready: no item yet; send items", {"retry-after": "0"})
        if isinstance(asked, _Asked):
            return self._recommend(asked)
        if asked.user_id is None and (asked.hide or asked.session is not None):
            return _error(400, "'session' and 'hide' need a user; name the user as user_id")
        ranked = list(self._ranked(asked))[: asked.size]
        made = asked.user_id is not None and bool(ranked)
        return self._made(ranked, [] if made else ["not logged: report no events of it"], "logged" if made else "lists")

    def _recommend(self, asked: _Asked) -> Answer:
        user, notes = str(asked.user_id), []
        if user not in self.users:
            notes.append(f"user {asked.user_id!r} is unknown and served as a new one")
        ranked, offset = list(self._ranked(asked)), 0
        pins = {i: slot for i, slot in (asked.rerank.pins if asked.rerank else {}).items() if i in ranked}
        ranked = [i for i in ranked if i not in pins]
        for i, slot in sorted(pins.items(), key=lambda pin: pin[1]):
            ranked.insert(slot, i)
        if asked.cursor is not None:
            if asked.length or asked.exclude or asked.only or asked.without or asked.caps or asked.hide or asked.rerank:
                return _error(400, "filters and 'list' do not go with 'cursor'; the list keeps its own: leave them out")
            owner, kept, at = self._lists.get(asked.cursor, (user, [], 0))
            if owner != user:
                return _error(400, f"cursor {asked.cursor!r} is another user's; ask with the user's own")
            if kept:
                ranked, offset = kept, at
            else:
                notes.append(f"the list of {asked.cursor!r} is no more; this is the first part of a new one")
        ranked = ranked[: asked.length or len(ranked)] if asked.length or asked.cursor else ranked[: asked.size]
        part = ranked[offset : offset + asked.size]
        cursor = None
        if (asked.length or asked.cursor) and offset + asked.size < len(ranked):
            cursor = f"list-{self._pages + 1}.{offset + asked.size}"
            self._lists[cursor] = (user, ranked, offset + asked.size)
        return self._made(part, notes, "model", "hot" if asked.explain else None, offset, cursor)

    def _made(
        self,
        part: list[str],
        notes: list[str],
        arm: str,
        source: str | None = "hot",
        offset: int = 0,
        cursor: str | None = None,
    ) -> Answer:
        self._pages += 1
        logged = arm != "lists" and not self.young and bool(part)
        page = {
            "request_id": f"page-{self._pages}" if logged else None,
            "model_version": self._pages if logged else -1,
            "arm": "lists" if self.young else arm,
            "ts_ms": 1,
            "items": [PlacedItem(self.items[i].item_id, n, None, source) for n, i in enumerate(part)],
            "notes": notes if part else [*notes, "no item is left by what was asked for"],
            "offset": offset,
            "cursor": cursor,
        }
        return Answer(200, msgspec.json.encode(page))

    def _clicks(self) -> Counter[str]:
        return Counter(str(e.item_id) for e in self.events if isinstance(e, Action) and e.type == "click")

    def _ranked(self, asked: _Limits) -> Iterator[str]:
        """All eligible items: those most like the item that is asked for, then most clicked, then the newest."""
        clicks, like = self._clicks(), str(asked.item_id) if isinstance(asked, _Like) else None
        own = self.items[like].attributes if like in self.items else {}
        out = {str(i) for i in asked.exclude} | {like} | self._hidden(asked)
        taken: Counter[tuple[str, str]] = Counter()

        def order(one: tuple[str, Item]) -> tuple[int, int]:
            known = one[1].attributes
            return -sum(_holds(known.get(name), value) for name, value in own.items()), -clicks[one[0]]

        newest_first = list(reversed(self.items.items()))
        for i, item in sorted(newest_first, key=order):
            if item.gone or i in out:
                continue
            known = item.attributes
            if not all(_holds(known.get(n), wanted) for n, wanted in asked.only.items()):
                continue
            if any(_holds(known.get(n), wanted) for n, wanted in asked.without.items()):
                continue
            values = [(n, value) for n in asked.caps for value in _values(known.get(n))[:1]]  # the first counts
            if any(taken[n, value] >= asked.caps[n] for n, value in values):
                continue
            taken.update(values)
            yield i

    def _hidden(self, asked: _Limits) -> set[str]:
        """Items that a user bought, clicked or saw, or bought and clicked as a guest."""
        users = {str(asked.user_id), str(asked.session)}
        own = [event for event in self.events if str(event.user_id) in users]
        seen = {
            str(i) for e in own if isinstance(e, Exposure) and str(e.user_id) == str(asked.user_id) for i in e.items
        }
        found = seen if "seen" in asked.hide else set()
        actions = {"bought": "purchase", "clicked": "click"}
        names = {actions[name] for name in asked.hide if name in actions}
        return found | {str(e.item_id) for e in own if isinstance(e, Action) and e.type in names}


_TRUTH = {"true": "1", "True": "1", "TRUE": "1", "false": "0", "False": "0", "FALSE": "0"}


def _values(value: Any) -> list[str]:
    """The values of an attribute as comparable texts: ``7``, ``7.0`` and ``"7"`` are one, missing ones none."""
    many = value if isinstance(value, list) else [value]
    return [_plain(one) for one in many if one is not None and one != ""]


def _plain(value: Any) -> str:
    if isinstance(value, bool | float) and float(value).is_integer():
        value = int(value)
    return _TRUTH.get(str(value), str(value))


def _holds(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        number = float(value or 0)
        return bool(wanted.get("min", number) <= number <= wanted.get("max", number))
    return not set(_values(wanted)).isdisjoint(_values(value))


def _receipt(verdicts: list[Verdict]) -> Answer:
    receipt = Receipt.of(verdicts)
    refused_all = bool(verdicts) and receipt.refused == len(verdicts)
    return Answer(422 if refused_all else 200, msgspec.json.encode(receipt))


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, msgspec.json.encode({"error": text}), headers or {})
