# shell
"""The learner's own door: what the gate says, and commands of a person to it.

::

    GET  /model        what is promoted, and why nothing newer is            everybody who reaches the port
    GET  /versions     versions to go back to, newest first
    GET  /quarantine   samples that were refused
    POST /model/rollback      {"version": 42}, or {} for the one before      who has a token of
    POST /model/promote       {}                                             MILLRACE_ADMIN_TOKEN_FILE
    POST /model/hold          {}
    POST /model/adopt         {"from": "repair"} or a learner's name
    POST /quarantine/release  {"names": ["00000042-labels"]}, or "all"
    POST /quarantine/discard  the same

    POST ──► check ──► queue ──► Admin.next(), by the learner between two steps ──► Command.answer ──► 200
              │                     └ not taken in time: 503, and it is never done     Command.fail  ──► 409, 503
              └ 400, 401, 403

The loop does the commands itself: nothing of the model is touched by another thread. Where no token is set nobody may
command: unlike intake and scorer, whose doors are open then, this one changes what every user is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from learner.gate.quarantine import PLACE, listed
from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import BrokerError, MillraceError, PortError, SettingError, StoreError, one_line
from millrace.basics.store import Store
from millrace.contracts.settings import Settings
from millrace.processes.httpserver import HttpServer, bind, config
from millrace.processes.tokens import AccessGate, Tokens
from millrace.versions.modelstore import ModelStore

log = structlog.get_logger("admin")

ADDRESS = "admin.json"
"""File in the learner's folder that says where this door is, as long as it is open: {"url": ...}."""
TAKEN_SECONDS = 60.0
"""How long a command waits to be taken. The learner takes one between two steps; at its start and while it goes back it
may be long in one."""
DONE_SECONDS = 600.0
"""How long one that was taken may be at work. It goes on then, but nobody waits for its answer."""
MOST_BODY = 1 << 20

_LOOK_SECONDS = 0.02
_DRAIN_SECONDS = 2
_CLOSED = (
    "nobody may command this learner: it has no token; set MILLRACE_ADMIN_TOKEN_FILE to a file with a token a line "
    "and start the learner again"
)
_UNKNOWN = "{}; send the header 'Authorization: Bearer TOKEN' with one of MILLRACE_ADMIN_TOKEN_FILE"


class _Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Rollback(Struct, frozen=True, forbid_unknown_fields=True):
    version: int | None = None


class _Adopt(Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}):
    source: str


class _Names(Struct, frozen=True, forbid_unknown_fields=True):
    names: list[str] | Literal["all"]


COMMANDS: dict[str, tuple[str, type[Struct]]] = {
    "/model/rollback": ("rollback", _Rollback),
    "/model/promote": ("promote", _Nothing),
    "/model/hold": ("hold", _Nothing),
    "/model/adopt": ("adopt", _Adopt),
    "/quarantine/release": ("release", _Names),
    "/quarantine/discard": ("discard", _Names),
}
"""By path: the command's name, and what its body may hold. ``args`` of a command are the body's entries."""


class Command:
    """What a person asks of the learner. The learner gives exactly one of :meth:`answer` and :meth:`fail`.

    Attributes:
        name: of :data:`COMMANDS`.
        args: ``rollback`` {"version": int | None}, ``adopt`` {"from": "repair" or a name}, ``release`` and ``discard``
            {"names": list of str | "all"} (:meth:`~learner.gate.quarantine.Quarantine.chosen` takes either), else {}.
    """

    def __init__(self, name: str, args: Mapping[str, Any]) -> None:
        self.name, self.args = name, dict(args)
        self.answered: Future[dict[str, Any]] = Future()

    def take(self) -> bool:
        """Whether somebody still waits for it; nobody can give it up from then on."""
        return self.answered.set_running_or_notify_cancel()

    def answer(self, said: Mapping[str, Any]) -> None:
        """It was done."""
        self.answered.set_result(dict(said))

    def fail(self, error: MillraceError) -> None:
        """It was not done, and why."""
        self.answered.set_exception(error)


class Admin:
    """The door of one learner, in a thread of its own. Closed by :meth:`close`.

    Args:
        state: what GET /model shows, ready for JSON. Called in the door's thread: it reads what the learner has laid
            ready, and touches no model.

    Attributes:
        url: where it is.

    Raises:
        SettingError: the token file cannot be used.
        PortError: no port can be bound.
    """

    def __init__(self, settings: Settings, state: Callable[[], Mapping[str, Any]]) -> None:
        self._settings, self._state = settings, state
        file = Path(settings.admin_token_file) if settings.admin_token_file else None
        try:
            self._tokens = Tokens((), file)
        except SettingError as error:
            raise SettingError(error.problem, "mend the file of MILLRACE_ADMIN_TOKEN_FILE, or unset it") from None
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._models = ModelStore(settings.place("models"), writes=False)
        self._kept = Store(settings.place(PLACE), writes=False)
        self._reading = threading.Lock()
        self._listener = _bind(settings.host, settings.admin_port)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        app = AccessGate(self._app(), Tokens(), settings)  # reading needs no token
        self._server = HttpServer(config(app, _DRAIN_SECONDS))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="admin", daemon=True)
        self._thread.start()
        self._file = settings.folder("learner") / ADDRESS
        write_whole(self._file, msgspec.json.encode({"url": self.url}), durable=False)
        log.info("verdicts are served, and commands taken", url=self.url, token_needed=bool(self._tokens))

    def next(self) -> Command | None:
        """The next command, in the order in which they came; None: there is none. Called by the learner between steps.
        One that nobody waits for any more is passed over."""
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return None
            if command.take():
                log.info("command", name=command.name, **command.args)
                return command

    def close(self) -> None:
        """Takes no command any more. Those that wait hear that the learner ends."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
        self._server.should_exit = True
        self._thread.join(_DRAIN_SECONDS + 3)
        self._listener.close()

    # -- in the door's thread --------------------------------------------------------------------------------

    def _app(self) -> Starlette:
        routes = [
            Route("/model", self._model, methods=["GET"]),
            Route("/versions", self._versions, methods=["GET"]),
            Route("/quarantine", self._quarantine, methods=["GET"]),
            *(Route(path, self._command, methods=["POST"]) for path in COMMANDS),
        ]
        return Starlette(routes=routes, exception_handlers={404: _elsewhere, 405: _elsewhere})

    async def _model(self, _: Request) -> Response:
        return _answer(200, dict(self._state()))

    async def _versions(self, _: Request) -> Response:
        return await self._read(self._versions_now)

    async def _quarantine(self, _: Request) -> Response:
        return await self._read(self._entries_now)

    async def _read(self, look: Callable[[], list[Any]]) -> Response:
        """What lies in the store, read in a thread: an object store may take seconds."""
        try:
            return _answer(200, await asyncio.to_thread(look))
        except StoreError as error:
            return _refusal(503, str(error))

    def _versions_now(self) -> list[dict[str, Any]]:
        with self._reading:
            notes = self._models.snapshots()
        return [
            {"version": n.version, "epoch": n.epoch, "event_ms": n.event_ms, "published_ms": n.published_ms}
            | {"trained": n.trained, "way_back": n.extra.get("way_back"), "adopted": n.extra.get("adopted")}
            for n in notes
        ]

    def _entries_now(self) -> list[Any]:
        with self._reading:
            return [msgspec.to_builtins(entry) for entry in listed(self._kept)]

    async def _command(self, request: Request) -> Response:
        if not self._tokens:
            return _refusal(403, _CLOSED)
        given = request.headers.get("authorization")
        if not self._tokens.allow(given.encode() if given is not None else None):
            problem = "the request names no token" if given is None else "the token is none that is known here"
            challenge = "Bearer" if given is None else 'Bearer error="invalid_token"'
            return _refusal(401, _UNKNOWN.format(problem), {"WWW-Authenticate": challenge})
        name, form = COMMANDS[request.url.path]
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BODY:
                return _refusal(413, f"a body beyond {MOST_BODY} bytes; name fewer, or 'all'")
        try:
            wanted = msgspec.json.decode(bytes(body) or b"{}", type=form)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            see = "see docs/how-to/when-a-check-fails.md"
            return _refusal(400, f"the body of {request.url.path} is no such command ({error}); {see}")
        return await self._done(Command(name, msgspec.to_builtins(wanted)))

    async def _done(self, command: Command) -> Response:
        """Hands a command to the learner, and waits for its answer."""
        self._commands.put(command)
        answered, began = command.answered, time.monotonic()
        while not answered.done():
            waited, closed = time.monotonic() - began, self._closed.is_set()
            if (closed or waited > TAKEN_SECONDS) and answered.cancel():  # nobody has taken it, and nobody will
                why = "the learner ends" if closed else f"the learner took it not within {TAKEN_SECONDS:g} s"
                return _refusal(503, f"'{command.name}' was not done: {why}; send it again when GET /model answers")
            if closed or waited > DONE_SECONDS:
                return _refusal(504, f"'{command.name}' was begun, its end is not known; GET /model says what it did")
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            return _answer(200, answered.result())
        except (BrokerError, StoreError) as error:
            return _refusal(503, one_line(error))
        except MillraceError as error:
            return _refusal(409, one_line(error))


def address(settings: Settings) -> str | None:
    """Where the door of the settings' learner is; None: there is none now, as far as can be told."""
    try:
        file = Path(settings.data, settings.own("learner"), ADDRESS)
        found = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return None
    return found.get("url")


async def _elsewhere(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    paths = ", ".join(["/model", "/versions", "/quarantine", *COMMANDS])
    return _refusal(status, f"{request.method} {request.url.path} is not here; GET or POST one of {paths}")


def _answer(status: int, said: Any, headers: Mapping[str, str] | None = None) -> Response:
    own = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})}
    return Response(msgspec.json.encode(said), status, media_type="application/json", headers=own)


def _refusal(status: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    return _answer(status, {"error": why}, headers)


def _bind(host: str, wanted: int) -> socket.socket:
    """A socket that listens on ``host:wanted``, or on any free port where that is taken; 0: on any."""
    try:
        return bind("learner", host, wanted, "MILLRACE_ADMIN_PORT", listens=True)
    except PortError:
        listener = bind("learner", host, 0, "MILLRACE_HOST", listens=True)
    log.warning("the admin port is taken; another is used", taken=wanted, used=listener.getsockname()[1])
    return listener
