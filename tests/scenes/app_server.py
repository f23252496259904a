"""An ASGI application that is asked in this process, or behind a real socket by what speaks HTTP itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp, Message, Scope

from millrace.processes.httpserver import bind
from tests.scenes.waiting import PATIENCE, until


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The address of the application, which a thread serves."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    with bind("test", "127.0.0.1", 0, "a test's port", listens=True) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            until(lambda: server.started, "the server answers")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


async def asked(
    app: ASGIApp, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, chunk: int = 1 << 16
) -> tuple[int, bytes, dict[str, str]]:
    """One HTTP request to an ASGI application, its body in pieces: status, body and headers of the answer."""
    parts = [body[at : at + chunk] for at in range(0, max(1, len(body)), chunk)]
    coming = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:]), found
