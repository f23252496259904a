# shell
"""Access control of the HTTP listeners. With bearer tokens (``Authorization: Bearer TOKEN``) others get 401; without
any, every client has access but web pages of elsewhere (:class:`Callers`), which get 403.

A valid token is one of MILLRACE_TOKENS, or a line of MILLRACE_TOKEN_FILE, which is read again when it changes. Checks
of life and readiness never need a token. Tokens never come from an argument, which every user of the machine could
read, and no log line and no error contains them. If the file becomes unreadable or empty, its old tokens stay valid,
and a log line says so. A web page knows no token, so where one is needed nothing else is checked.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import msgspec
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from millrace.basics.atomic_files import temporary_beside
from millrace.basics.errors import SettingError
from millrace.contracts.settings import Settings, entries

log = structlog.get_logger("tokens")

OPEN = ("/healthz", "/readyz", "/v2/health/")
"""Paths that need no token; one that ends in a slash stands for all below it."""
OWN = "admin.token"  # file in the data folder of a `demo` or `up` with the token that controls its learner
LOOK_SECONDS = 1.0  # shortest time between two checks of the file
FIGURES = "/metrics"  # nor does it matter who reads this one, while it needs no token
REMEDY = "send the header 'Authorization: Bearer TOKEN' with one of the tokens of MILLRACE_TOKENS or of the token file"

_TOKEN = re.compile(r"[!-~]+")  # visible ASCII, as RFC 6750 has it and more
_OF_OTHERS = 0o066
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:,\s]+?)\.?(:\d*)?")  # of the header `Host`: a name or address, then a port
_FREE_TYPES = frozenset({b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"})
"""Types of a body that any page may send anywhere without asking first (CORS-safelisted, https://fetch.spec.whatwg.org)."""


class Tokens:
    """The valid tokens: ``tokens`` of the settings, and those in ``file``, one a line; empty lines and lines that begin
    with ``#`` are skipped. One thread. Raises SettingError when a token has an invalid character, or the file holds
    none or cannot be read."""

    def __init__(self, tokens: Iterable[str] = (), file: Path | None = None) -> None:
        self._given = [_digest(token) for token in _checked(tokens, "MILLRACE_TOKENS")]
        self._file, self._of_file = file, list[bytes]()
        self._looked_s, self._mark = time.monotonic(), self._stat()
        if file is not None:
            self._of_file = self._read()
            _warn_of_readers(file)

    @classmethod
    def of(cls, settings: Settings) -> Tokens:
        """The settings' tokens. Raises SettingError as the class."""
        file = Path(settings.token_file) if settings.token_file else None
        return cls(_split(settings.tokens), file)

    def __bool__(self) -> bool:
        return bool(self._given or self._of_file)

    def allow(self, authorization: bytes | None) -> bool:
        """Whether a request with this header may pass. Takes the same time for every wrong token."""
        self._look()
        if not self:
            return True
        kind, _, token = (authorization or b"").strip().partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        good = False
        for digest in (*self._given, *self._of_file):
            good |= hmac.compare_digest(digest, given)
        return good and kind.lower() == b"bearer"

    def _look(self) -> None:
        if self._file is None or (now := time.monotonic()) - self._looked_s < LOOK_SECONDS:
            return
        self._looked_s, mark = now, self._stat()
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._of_file = self._read()
        except SettingError as error:
            log.warning("the token file has changed and cannot be used; its former tokens stay", error=str(error))
            return
        log.info("the token file was read again", file=str(self._file), tokens=len(self._of_file))
        _warn_of_readers(self._file)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat() if self._file is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)

    def _read(self) -> list[bytes]:
        assert self._file is not None
        return [_digest(token) for token in tokens_of(self._file)]


def tokens_of(file: Path) -> list[str]:
    """The tokens in a file. Raises SettingError when it cannot be read, holds none, or holds an invalid character."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise SettingError(f"token file '{file}' cannot be read ({why})", "name a file with a token a line") from None
    found = _checked([line for line in lines if line and not line.startswith("#")], f"token file '{file}'")
    if not found:
        raise SettingError(f"token file '{file}' holds no token", "write one into it, or unset MILLRACE_TOKEN_FILE")
    return found


def own_token(folder: Path) -> Path:
    """The file :data:`OWN` of a data folder, readable only by its owner, made with a random token if missing. Raises
    SettingError when it cannot be written."""
    path = folder / OWN
    if not path.exists():
        temporary = temporary_beside(path)
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
                file.write(f"{secrets.token_hex(32)}\n")
            temporary.replace(path)
        except OSError as error:
            raise SettingError(
                f"token file '{path}' cannot be written ({error.strerror})", "name a folder that you can write to"
            ) from None
    return path


def bearer(settings: Settings) -> dict[str, str]:
    """The header for Millrace's own requests to intake or scorer; empty without tokens. Raises SettingError when the
    token file cannot be used."""
    tokens = _split(settings.tokens) or (tokens_of(Path(settings.token_file)) if settings.token_file else [])
    return {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}


def warn_if_open(host: str, tokens: Tokens, server: str) -> None:
    """Logs a warning when a listener is open to other machines without a token."""
    if not tokens and not is_loopback(host):
        log.warning(
            "everybody who reaches this address may use it: no token is set",
            server=server,
            host=host,
            remedy="set MILLRACE_TOKEN_FILE or MILLRACE_TOKENS, or bind 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Callers:
    """Who may ask without a token: every program, and pages of this listener or of ``allowed_origins``.

    A page of anywhere can have its reader's browser send requests to this machine, or read answers under a name of its
    own that leads here (DNS rebinding). Browsers say so: in `Host` is the name that the page used, in `Origin` and
    `Sec-Fetch-Site` whose page it is, and no page can change these three. A request without them is of a program.
    """

    def __init__(self, settings: Settings) -> None:
        # An address of all interfaces is no name by which anybody comes.
        bound = () if settings.host in ("", "0.0.0.0", "::") else (settings.host.lower(),)  # noqa: S104
        self._hosts = {host.strip("[]").rstrip(".") for host in (*bound, *entries(settings.allowed_hosts.lower()))}
        self._origins = {origin.encode() for origin in entries(settings.allowed_origins.lower())}
        self._known = lru_cache(256)(self._is_ours)

    def refusal(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Why a request is refused, in one line; empty: it is not. ``headers``: names in lower case."""
        given = dict(headers)
        host, origin, site = given.get(b"host"), given.get(b"origin"), given.get(b"sec-fetch-site")
        if host is not None and not self._known(host):
            return f"the request is for the host '{_shown(host)}': name it in MILLRACE_ALLOWED_HOSTS if it is this one"
        if origin is None and site is None:
            return ""
        if origin is not None:
            origin = origin.lower()
            if origin in self._origins:
                return ""
            if host is None or origin.partition(b"://")[2] != host.lower():
                return f"a page of '{_shown(origin)}' asks: name it in MILLRACE_ALLOWED_ORIGINS if it may"
        if site == b"cross-site":
            return "a page of another site asks: open the address itself, or name the page in MILLRACE_ALLOWED_ORIGINS"
        kind = given.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if method == "POST" and kind in _FREE_TYPES:
            return f"a browser sends a body of type '{_shown(kind)}': send application/json"
        return ""

    def _is_ours(self, host: bytes) -> bool:
        found = _HOST.fullmatch(host.decode("latin-1").lower())
        name = found[1].strip("[]") if found else ""
        return is_loopback(name) or name in self._hosts


class AccessGate:
    """An ASGI application around another one: requests without a valid token do not reach it; where no token is set,
    those that :class:`Callers` refuses. ``count_refused`` is called with the status of each refused request."""

    def __init__(
        self, app: ASGIApp, tokens: Tokens, settings: Settings, count_refused: Callable[[str], None] = lambda _: None
    ) -> None:
        self._app, self._tokens, self._count_refused = app, tokens, count_refused
        self._callers = Callers(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        if not self._tokens:
            why = "" if scope["path"] == FIGURES else self._callers.refusal(scope["method"], scope["headers"])
            if why:
                self._count_refused("403")
                await refuse(send, 403, why)
            else:
                await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if self._tokens.allow(given):
            await self._app(scope, receive, send)
            return
        self._count_refused("401")
        problem = "the request names no token" if given is None else "the token is none that is known here"
        challenge = b"Bearer" if given is None else b'Bearer error="invalid_token"'
        await refuse(send, 401, f"{problem}; {REMEDY}", (b"www-authenticate", challenge))


async def refuse(send: Send, status: int, error: str, *more: tuple[bytes, bytes]) -> None:
    """Answers a refused request with one line, as JSON."""
    body = msgspec.json.encode({"error": error})
    length = (b"content-length", str(len(body)).encode())
    headers = [(b"content-type", b"application/json"), length, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_open(path: str) -> bool:
    return any(path.startswith(one) if one.endswith("/") else path == one for one in OPEN)


def _shown(value: bytes) -> str:
    return value[:100].decode("latin-1")


def _split(tokens: str) -> list[str]:
    found = entries(tokens)
    if tokens and not found:
        raise SettingError("MILLRACE_TOKENS holds no token", "give token[,token], or unset it")
    return found


def _checked(tokens: Iterable[str], where: str) -> list[str]:
    found = list(tokens)
    for number, token in enumerate(found, 1):
        if not _TOKEN.fullmatch(token):
            problem = f"token {number} of {where} has a space or a character that is not ASCII"
            raise SettingError(problem, "use letters, digits and signs, for instance of 'openssl rand -hex 32'")
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _warn_of_readers(file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except OSError:
        return
    if mode & _OF_OTHERS:
        log.warning("others on this machine can read or change the token file", file=str(file), remedy="chmod 600")
