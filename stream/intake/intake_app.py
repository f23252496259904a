# shell
"""The intake's HTTP routes; see ``docs/how-to/send-events.md``.

::

    POST ──► body ──► lines ──► Reader ──► Keeper ──► Kafka has them ──► 200, a verdict a line
              400,413,415         │           429        503: not in time; they stay on their way
                                  └─ every line refused: 422

The three POST routes are plain ASGI applications: Starlette's request and response objects would double the cost of
a small request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from millrace.basics.errors import one_line
from millrace.basics.openapi import Alive, Failure, Ready
from millrace.contracts.events import BadEventError
from millrace.contracts.settings import Settings
from millrace.processes.wall import event_now_ms, wall_ms
from stream.intake.intake_metrics import LINES, REQUEST_SECONDS, REQUESTS, Refusals
from stream.intake.intake_openapi import described, description
from stream.intake.intake_producer import IntakeProducer
from stream.intake.intake_queue import Parcel, refused
from stream.intake.intake_wire import (
    MAX_BODY_BYTES,
    MAX_LINES,
    WHATS,
    IntakeRequestError,
    LineReader,
    OutMessage,
    Taken,
    Verdict,
    What,
    bounded,
    lines_of,
)
from stream.intake.vendor_events import TABLES, mapped

log = structlog.get_logger("intake")

BODY_SECONDS = 10.0
"""How long a body may take to come."""
BODIES_BYTES = 64 << 20
"""Bodies being handled, all together. Beyond it a request gets the answer to come again."""
FULL_AFTER_SECONDS, AWAY_AFTER_SECONDS = 1, 2
"""Retry-After: waiting messages are kept within a second as a rule; a broker that is away takes longer."""

_json = msgspec.json.Encoder()
_JSON = (b"content-type", b"application/json")


class _Anything(PathConvertor):
    """The rest of a path with its line breaks: with Starlette's own, ``/users/a%0A`` would name the user "a"."""

    regex = "(?s:.*)"


register_url_convertor("anything", _Anything())


class _Gone(Exception):
    """The client has gone."""


class IntakeHandler:
    """Takes lines and answers when they are kept. ``outlet`` is open already."""

    def __init__(
        self, settings: Settings, reader: LineReader, outlet: IntakeProducer, refusals: Refusals | None = None
    ) -> None:
        self._reader, self._outlet, self._keeper = reader, outlet, outlet.keeper
        self._clock, self._seconds = settings.event_clock(), settings.intake_seconds
        self._refusals = Refusals() if refusals is None else refusals
        self._held = 0  # bytes of bodies in work

    async def post(self, what: What, scope: Scope, receive: Receive, source: str = "") -> Taken:
        """The answer to a POST; ``source``: the tool whose messages they are.

        Raises:
            IntakeRequestError: it is refused as a whole, or it is not yet known whether all of it is kept.
        """
        kind = ""
        for name, value in scope["headers"]:
            if name == b"content-type":
                kind = value.decode("latin-1")
            elif name == b"content-encoding" and value.strip().lower() != b"identity":
                shown = value[:40].decode("latin-1")
                raise IntakeRequestError(f"the body is encoded as '{shown}'", "send it as it is", 415)
        held = 0
        try:
            parts: list[bytes] = []
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    more = True
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise _Gone
                        parts.append(message.get("body", b""))
                        more = message.get("more_body", False)
                        held += len(parts[-1])
                        self._held += len(parts[-1])
                        self._check(held)
            except TimeoutError:
                problem = f"{held} bytes of the body came in {BODY_SECONDS:g} seconds, and not its end"
                raise IntakeRequestError(problem, "send the whole body at once", 408) from None
            lines = lines_of(parts[0] if len(parts) == 1 else b"".join(parts), kind)
            if not source:
                return await self.take(what, self._read(what, lines))
            made = bounded([one for line in lines for one in mapped(source, line)])
            read = iter(self._read(what, [one for one in made if isinstance(one, bytes)]))
            return await self.take(what, [next(read) if isinstance(one, bytes) else refused(one) for one in made])
        finally:
            self._held -= held

    def _check(self, held: int) -> None:
        if held > MAX_BODY_BYTES:
            remedy = f"send at most {MAX_BODY_BYTES} bytes and {MAX_LINES} messages at a time"
            raise IntakeRequestError(f"the body is larger than {MAX_BODY_BYTES} bytes", remedy, 413)
        if self._held > BODIES_BYTES:
            raise IntakeRequestError("too many bodies are in work", "send the same again", 429, FULL_AFTER_SECONDS)

    def _read(self, what: What, lines: list[bytes]) -> list[OutMessage | Verdict]:
        now_ms, wall = event_now_ms(self._clock), wall_ms()
        found: list[OutMessage | Verdict] = []
        for line in lines:
            try:
                found.append(self._reader.read(what, line, now_ms, wall))
            except BadEventError as error:
                found.append(refused(error))
            except Exception as error:  # a bug: it costs this line alone, and is logged
                log.error("a line cannot be read", what=what, line=line[:200], error=one_line(error), exc_info=True)
                found.append(Verdict("refused", "error", f"internal error ({type(error).__name__})"))
        return found

    async def take(self, what: What, lines: list[OutMessage | Verdict]) -> Taken:
        """The verdicts of lines that have been read, once all are known.

        Raises:
            IntakeRequestError: too many wait (429), or Kafka did not take them in time (503).
        """
        keeper, outlet = self._keeper, self._outlet
        if not keeper.has_room(len(lines)):
            if outlet.away:
                raise self._broker_away()
            problem = f"{keeper.waiting} messages wait for the broker"
            raise IntakeRequestError(problem, "send the same again", 429, FULL_AFTER_SECONDS)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        parcel = Parcel(lambda: None if done.done() else done.set_result(None))
        outlet.wake(keeper.admit(parcel, lines))
        if parcel.left:
            try:
                async with asyncio.timeout(self._seconds):
                    await done
            except TimeoutError:
                raise self._broker_away() from None
            finally:
                parcel.gone = True
        verdicts = [verdict for verdict in parcel.verdicts if verdict is not None]
        kept = sum(v.status == "kept" for v in verdicts)
        duplicates = sum(v.status == "duplicate" for v in verdicts) if kept < len(verdicts) else 0
        taken = Taken(kept, duplicates, len(verdicts) - kept - duplicates, verdicts)
        for name, count in (("kept", kept), ("duplicate", duplicates), ("refused", taken.refused)):
            if count:
                LINES.labels(what, name).inc(count)
        if taken.refused:
            self._refusals.note(what, verdicts)
        return taken

    def _broker_away(self) -> IntakeRequestError:
        problem = f"the broker does not take messages ({self._outlet.away or 'slow'})"
        remedy = "send the same again: with the same event_id it is kept once"
        return IntakeRequestError(problem, remedy, 503, AWAY_AFTER_SECONDS)

    async def remove(self, what: What, identifier: str) -> Taken:
        """The answer to a DELETE. Raises IntakeRequestError as :meth:`take`."""
        try:
            lines: list[OutMessage | Verdict] = [self._reader.removal(what, identifier)]
        except BadEventError as error:
            lines = [refused(error)]
        return await self.take(what, lines)


class PostRoute:
    """POST of one kind of lines, as an ASGI application."""

    def __init__(self, what: What, desk: IntakeHandler, source: str = "") -> None:
        self._what, self._desk, self._source = what, desk, source
        self._seconds = REQUEST_SECONDS.labels(what)
        self._good, *_ = (REQUESTS.labels(what, status) for status in ("200", "429", "503"))  # an alert asks for these

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status, after = 200, 0
        try:
            taken = await self._desk.post(self._what, scope, receive, self._source)
            body = _json.encode(taken)
            if taken.refused and taken.refused == len(taken.verdicts):
                status = 422
        except IntakeRequestError as error:
            status, after, body = error.status, error.after, _json.encode(Failure(str(error)))
        except _Gone:
            REQUESTS.labels(self._what, "499").inc()
            return
        except Exception as error:  # the client gets one line, the log the rest
            status, body = 500, _bug(self._what, error)
        if status == 200:
            self._good.inc()
        else:
            REQUESTS.labels(self._what, str(status)).inc()
        self._seconds.observe(time.perf_counter() - started)
        headers = [_JSON, (b"content-length", b"%d" % len(body))]
        if after:
            headers.append((b"retry-after", b"%d" % after))
        if status in (408, 413):  # the rest of the body is not read
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def make_app(desk: IntakeHandler, outlet: IntakeProducer) -> Starlette:
    described_api = _json.encode(description())

    def deletes(what: What) -> Any:
        async def remove(request: Request) -> Response:
            try:
                taken = await desk.remove(what, request.scope["path"].removeprefix(f"/{what}/"))
                status, after, content = 422 if taken.refused else 200, 0, _json.encode(taken)
            except IntakeRequestError as error:
                status, after, content = error.status, error.after, _json.encode(Failure(str(error)))
            except Exception as error:
                status, after, content = 500, 0, _bug(f"delete {what}", error)
            REQUESTS.labels(f"delete {what}", str(status)).inc()
            headers = {"Retry-After": str(after)} if after else {}
            return Response(content, status, headers, media_type="application/json")

        return remove

    async def healthz(_: Request) -> Response:
        return _respond(Alive(True))

    async def readyz(_: Request) -> Response:
        if outlet.away:
            return _respond(Ready(False, f"the broker does not take messages ({outlet.away})"), 503)
        return _respond(Ready(True))

    async def openapi(_: Request) -> Response:
        return Response(described_api, media_type="application/json")

    async def missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = f"{request.method} {request.url.path[:100]} is not served; use {described()}"
        return _respond(Failure(" ".join(said.split())), error.status_code, error.headers)

    return Starlette(
        routes=[
            *(Route(f"/{what}", PostRoute(what, desk), methods=["POST"]) for what in WHATS),
            *(Route(f"/events/{name}", PostRoute("events", desk, name), methods=["POST"]) for name in TABLES),
            Route("/users/{id:anything}", deletes("users"), methods=["DELETE"]),
            Route("/items/{id:anything}", deletes("items"), methods=["DELETE"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/openapi.json", openapi),
        ],
        exception_handlers={404: missing, 405: missing},
    )


def _bug(route: str, error: Exception) -> bytes:
    log.error("request failed", route=route, error=one_line(error), exc_info=True)
    return _json.encode(Failure(f"internal error ({type(error).__name__}); see the intake's log"))


def _respond(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_json.encode(content), status, headers, media_type="application/json")
