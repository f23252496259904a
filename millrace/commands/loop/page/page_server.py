# shell
"""Serves the live page and its state on loopback, from a thread of the demo (Starlette on uvicorn).

The page needs four files and ``/state.json``, nothing from other hosts. A content security policy enforces this. What a
person commands goes on to the learner, and a page that is asked for to the scorer, as it came: the token is the
person's, and is neither kept nor known here. A click on such a page is an event in a demo alone.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from http import client
from importlib import resources
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace.basics.errors import PortError, one_line
from millrace.connections.learner_call import post
from millrace.contracts.events import Id
from millrace.contracts.settings import Settings
from millrace.processes.httpserver import bind
from millrace.processes.tokens import AccessGate, Tokens

HOST, FIRST_PORT = "127.0.0.1", 8710
_TRIES, _MOST_BODY = 50, 1000
_DRAIN_SECONDS = 2
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
}
COMMANDS = {"/model/hold": "learner", "/model/promote": "learner", "/model/rollback": "learner", "/recommend": "scorer"}
"""Of a person, from the page, and the role that each goes to."""

DEFAULTS = Settings()
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}


Titles = Callable[[list[Id]], dict[str, str]]
"""Titles of items, by the text of their ids."""
Send = Callable[[bytes], tuple[int, bytes]]
"""Status and answer to the body of a ``/click``."""


def unsent(_: bytes) -> tuple[int, bytes]:
    """The answer to a click where it is no event."""
    return 403, msgspec.json.encode(
        {"error": "a click here is no event, but in a demo; ask for a page with if_clicked"}
    )


def make_app(
    state: Callable[[], dict[str, Any]],
    at: Callable[[str], str],
    titles: Titles,
    send: Send = unsent,
    users: Callable[[], list[Id]] = list,
) -> Starlette:
    """The page's files, the state and some users, for GET, commands to learner and scorer, clicks, and titles of items;
    anything else is one line with status 404 or 405."""

    async def show_state(_: Request) -> Response:
        return Response(msgspec.json.encode(state()), media_type="application/json", headers=_HEADERS)

    async def body_of(request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MOST_BODY:
                raise HTTPException(413)
        return bytes(body)

    async def show_titles(request: Request) -> Response:
        try:
            items = msgspec.json.decode(await body_of(request), type=list[Id])
        except ValueError:
            raise HTTPException(400) from None
        said = msgspec.json.encode(await asyncio.to_thread(titles, items))
        return Response(said, media_type="application/json", headers=_HEADERS)

    async def show_users(_: Request) -> Response:
        said = msgspec.json.encode(await asyncio.to_thread(users))
        return Response(said, media_type="application/json", headers=_HEADERS)

    async def click(request: Request) -> Response:
        status, said = await asyncio.to_thread(send, await body_of(request))
        return Response(said, status, media_type="application/json", headers=_HEADERS)

    async def command(request: Request) -> Response:
        body = await body_of(request)
        word = request.headers.get("authorization", "")
        path = request.url.path
        status, said = await asyncio.to_thread(forward, COMMANDS[path], at(COMMANDS[path]), path, body, word)
        return Response(said, status, media_type="application/json", headers=_HEADERS)

    async def refuse(_: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        said = {400: "not a list of item ids", 413: "a longer body than any command has"}
        return Response(
            f"{said.get(status, 'not here; the page is at /')}\n", status, media_type="text/plain", headers=_HEADERS
        )

    def file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        body = resources.files(__package__).joinpath(name).read_bytes()

        async def show(_: Request) -> Response:
            return Response(body, media_type=kind, headers=_HEADERS)

        return show

    return Starlette(
        routes=[
            Route("/state.json", show_state),
            Route("/users.json", show_users),
            Route("/titles", show_titles, methods=["POST"]),
            Route("/click", click, methods=["POST"]),
            *(Route(path, command, methods=["POST"]) for path in COMMANDS),
            *(Route(path, file(name, kind)) for path, (name, kind) in _FILES.items()),
        ],
        exception_handlers=dict.fromkeys((400, 404, 405, 413), refuse),
    )


def forward(role: str, at: str, path: str, body: bytes, word: str) -> tuple[int, bytes]:
    """Status and answer of a role at an address to a command; 503 where there is none. ``word``: the person's
    ``Authorization``."""
    try:
        if not at:
            raise ConnectionError(f"this loop has no {role}")
        return post(at, path, body or b"{}", word)
    except (OSError, client.HTTPException) as error:
        return 503, msgspec.json.encode({"error": f"the {role} does not answer: {one_line(error)}"})


class PageServer:
    """Answers GET for the page's files and the state, and hands commands on.

    It leaves signals to the demo: uvicorn handles them in the main thread only, and this is another thread.

    Args:
        state: gives the state at each poll of a browser; called in the server's thread.
        at: gives the base URL of the learner's admin port, or of the scorer; empty: there is none.
        port: the port to bind; None: 8710 or the next free one.
        settings: whose pages may ask beside its own (:class:`~millrace.processes.tokens.Callers`).
        titles: of items, for pages that are explained; called in a thread of its own.
        send: sends a click on such a page as an event; called in a thread of its own.
        users: some whose pages may be looked at; called in a thread of its own.

    Raises:
        PortError: the given port is taken.
    """

    def __init__(
        self,
        state: Callable[[], dict[str, Any]],
        port: int | None = None,
        at: Callable[[str], str] = lambda _: "",
        settings: Settings = DEFAULTS,
        titles: Titles = lambda _: {},
        send: Send = unsent,
        users: Callable[[], list[Id]] = list,
    ) -> None:
        self._listener = _bind(port)
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}/"
        config = uvicorn.Config(
            AccessGate(make_app(state, at, titles, send, users), Tokens(), settings),
            lifespan="off",
            access_log=False,
            log_config=None,  # the demo's logging stays as it is
            server_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
        self._server = uvicorn.Server(config)
        sockets = [self._listener]
        self._thread = threading.Thread(target=self._server.run, args=(sockets,), name="page", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(_DRAIN_SECONDS + 3)
        self._listener.close()


def _bind(port: int | None) -> socket.socket:
    candidates = range(FIRST_PORT, FIRST_PORT + _TRIES) if port is None else (port,)
    for candidate in candidates:
        try:
            return bind("live page", HOST, candidate, "--page-port", listens=True)
        except PortError as error:
            problem = error
    raise problem
