# shell
"""HTTP listeners as the roles have them: a bound port, and a server under uvicorn that leaves signals to its role."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from millrace.basics.errors import PortError

BACKLOG = 1024


def bind(
    who: str, host: str, port: int, variable: str, *, listens: bool = False, patience_seconds: float = 0.0
) -> socket.socket:
    """A socket bound to ``host:port``, which listens already or will. Port 0: any that is free.

    Args:
        who: whose listener it is, and ``variable``: what changes the port, for the error.
        patience_seconds: how long processes of a killed role may hold the port.

    Raises:
        PortError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + patience_seconds
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            if listens:
                listener.listen(BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise PortError(
                f"the {who}'s address {host}:{port} cannot be bound ({error.strerror})",
                f"set {variable} to a free port, or 0",
            ) from None


def config(app: ASGIApp, drain_seconds: int) -> uvicorn.Config:
    """``drain_seconds``: how long requests in work may take after the end was asked for."""
    return uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=drain_seconds,
        timeout_keep_alive=65,
        backlog=BACKLOG,
    )


class HttpServer(uvicorn.Server):
    """Leaves signals to the role's runner, and looks less often than uvicorn's ten times a second whether it is to end.

    Attributes:
        tick_seconds: between two looks; a second at most, for the header `Date`.
    """

    tick_seconds = 0.25

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(self.tick_seconds)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
