"""An ASGI application behind a real socket, for what speaks HTTP itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

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
