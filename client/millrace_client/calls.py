# core
"""Requests as data and answers as values: all of HTTP except the transport, for both clients and the fake.

::

    Addresses ── .page(path, asked) ─► Call ── sent by a Connection ──► Answer ── read_answer ──► Page, ItemFacts
              ── .post(kind, lines) ─► Call                                    ── read_receipt ─► Receipt
                                                                               ── else: an error, raised
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Struct

from millrace_client.errors import BadAnswer, BadRequest, MillraceClientError, TooMuch, Unauthorised, Unavailable
from millrace_client.messages import Id, Message, Receipt, Refusal, Wanted

MOST_LINES, MOST_BYTES = 1000, 4 << 20
"""Limits of the intake for one request: messages and bytes."""

Hidden = Literal["bought", "clicked", "seen"]
Kind = Literal["events", "users", "items"]
T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. ``repr`` omits ``headers``, which contain the token."""

    method: str
    url: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, with header names in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Addresses:
    """URLs of Millrace, such as ``http://127.0.0.1:8720``, and the ``token`` for ``Authorization: Bearer TOKEN`` (None:
    no header). Raises BadRequest: not a URL."""

    def __init__(self, intake: str, scorer: str, token: str | None = None) -> None:
        for name, url in (("intake", intake), ("scorer", scorer)):
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise BadRequest(f"{name} {url!r} is no address", f"give a URL, as {name}='http://127.0.0.1:8720'")
        self.intake, self.scorer = intake.rstrip("/"), scorer.rstrip("/")
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def post(self, kind: Kind, lines: Iterable[bytes]) -> Call:
        """Messages to the intake, a JSON object a line."""
        return self._call("POST", f"{self.intake}/{kind}", b"\n".join(lines) + b"\n", "application/x-ndjson")

    def delete(self, kind: Kind, identifier: Id) -> Call:
        """Deletion of a user or an item."""
        return self._call("DELETE", f"{self.intake}/{kind}/{quote(str(identifier), safe='')}")

    def ready(self) -> tuple[Call, Call]:
        """Whether the intake and the scorer are ready."""
        return self._call("GET", f"{self.intake}/readyz"), self._call("GET", f"{self.scorer}/readyz")

    def page(self, path: str, asked: Mapping[str, Any]) -> Call:
        """A page. Unset fields are not sent, so an older scorer understands the request."""
        body = {name: value for name, value in asked.items() if not _nothing(value)}
        return self._call("POST", f"{self.scorer}/{path}", encoded(body, "request"), "application/json")

    def item(self, item_id: Id) -> Call:
        """What the scorer knows of an item."""
        return self._call("GET", f"{self.scorer}/items/{quote(str(item_id), safe='')}")

    def _call(self, method: str, url: str, body: bytes = b"", content: str = "") -> Call:
        return Call(method, url, body, {**self._headers, **({"content-type": content} if content else {})})


def _nothing(value: Any) -> bool:
    """Whether a field is unset. A size of 0 is not: the scorer refuses it."""
    return value is None or value is False or (isinstance(value, dict | list) and not value)


class Limits(TypedDict, total=False):
    """What every request for a page may say.

    Attributes:
        session: the id that the user had as a guest: its last actions count as the user's own.
        context: values of the schema's context fields.
        exclude: ids that must not appear.
        only, without: item attributes; every one of ``only`` must hold and none of ``without`` may. A list means any of
            its values, ``{"min": 5, "max": 10}`` a number in that range.
        caps: attribute -> limit of items on the page with the same value of it.
        hide: items by this user's actions: ``bought``, ``clicked``, ``seen``.
    """

    session: Id | None
    context: Mapping[str, Any] | None
    exclude: Iterable[Id]
    only: Wanted | None
    without: Wanted | None
    caps: Mapping[str, int] | None
    hide: Collection[Hidden]


def limits(asked: Limits) -> dict[str, Any]:
    """:class:`Limits` as the scorer has them: sets and tuples, also of an attribute's values, become lists."""
    return {"not" if name == "without" else name: _plain(value) for name, value in asked.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def line_of(message: Message) -> bytes:
    """A message's JSON on one line. Raises BadRequest for an attribute without a JSON form."""
    return encoded(message, "message")


def encoded(value: Any, what: str) -> bytes:
    """Raises BadRequest for a value without a JSON form."""
    try:
        return _encode(value)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the {what} is no JSON: {error}", "give texts, numbers and lists of them") from None


def parts(lines: Iterable[bytes], most_lines: int = MOST_LINES, most_bytes: int = MOST_BYTES) -> Iterator[list[bytes]]:
    """Cuts messages into requests that the intake takes.

    >>> [len(part) for part in parts([b"{}"] * 5, 2)]
    [2, 2, 1]
    """
    part: list[bytes] = []
    held = 0
    for line in lines:
        if part and (len(part) == most_lines or held + len(line) + 1 > most_bytes):
            yield part
            part, held = [], 0
        part.append(line)
        held += len(line) + 1
    if part:
        yield part


class _Failure(Struct, frozen=True):
    error: str = ""


def read_answer(call: Call, answer: Answer, kind: type[T], **known: Any) -> T:
    """An answer of the scorer, with ``known`` values that it does not contain. Raises an error of :func:`failure_of`,
    or BadAnswer."""
    if answer.status != 200:
        raise failure_of(call, answer)
    return _read(call, answer, kind, **known)


def read_receipt(call: Call, answer: Answer, lines: Sequence[bytes] | None = None) -> Receipt:
    """Verdicts in the order of ``lines``. Raises an error of :func:`failure_of`, or BadAnswer."""
    if answer.status not in (200, 422):
        raise failure_of(call, answer)
    receipt = _read(call, answer, Receipt)
    if lines is not None and len(receipt.verdicts) != len(lines):
        raise BadAnswer(
            f"{call.url} gave {len(receipt.verdicts)} verdicts for {len(lines)} messages", "look at what answers there"
        )
    return receipt


def refusals(lines: Sequence[bytes], receipt: Receipt) -> list[Refusal]:
    """The refused messages."""
    return [
        Refusal(line, verdict.reason, verdict.detail)
        for line, verdict in zip(lines, receipt.verdicts, strict=True)
        if verdict.status == "refused"
    ]


def failure_of(call: Call, answer: Answer) -> MillraceClientError:
    """The error for an answer's status."""
    try:
        said = msgspec.json.decode(answer.body, type=_Failure).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = ""
    where = f"{call.method} {call.url} answered {answer.status}"
    problem = f"{where}: {said}" if said else where
    if answer.status == 401:
        return Unauthorised(problem, "give the token that the server was started with, as token=...")
    if answer.status == 429:
        return TooMuch(problem, "send more slowly, or wait as it says", retry_after_s(answer))
    if answer.status >= 500:
        return Unavailable(problem, "try again, and look at its log if that lasts", retry_after_s(answer))
    if answer.status >= 400:
        return BadRequest(problem, "mend the request; the same one would fail again")
    return BadAnswer(problem, "give the address of the intake or the scorer itself")


def retry_after_s(answer: Answer) -> float | None:
    """The seconds in ``Retry-After``; None without one, or where it is a date."""
    try:
        seconds = float(answer.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _read(call: Call, answer: Answer, kind: type[T], **known: Any) -> T:
    """Decodes an answer, with ``known`` values that it does not contain."""
    try:
        return msgspec.convert(msgspec.json.decode(answer.body, type=dict[str, Any]) | known, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        start = answer.body[:40].decode("utf-8", "replace")
        raise BadAnswer(
            f"{call.url} answered {start!r}, which is not Millrace's ({error})", "look at what answers there"
        ) from None
