# shell
"""A worker's share of the connections to the common listening socket.

An asyncio server accepts all waiting connections when it wakes, so one worker would get and keep most of a burst. Here
a worker accepts one connection a turn of its loop. A worker with more connections than another leaves it the next one
for :data:`LEAVE_SECONDS`. Shared memory has the number of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray

from millrace.processes.httpserver import HttpServer

LEAVE_SECONDS = 0.005
NOBODY = 2**62
"""The number of a worker that does not run."""
AGAIN_SECONDS = 0.5
"""Until the next try when a connection cannot be accepted, as with too many open files."""


class WorkerServer(HttpServer):
    """Serves connections of a shared listening socket. ``listener`` is closed when the server ends. ``shares``:
    (workers,) connections of each worker, in shared memory; ours is in ``slot``."""

    tick_seconds = 0.1  # as often the others see how many connections it has

    def __init__(self, config: uvicorn.Config, listener: socket.socket, shares: NDArray[np.int64], slot: int) -> None:
        super().__init__(config)
        self._listener, self._shares, self._slot = listener, shares, slot
        self._left = False  # the next connection was left to others, for long enough
        self._taken: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._listener.setblocking(False)
        self._watch()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        await super().shutdown(sockets=[])

    async def on_tick(self, counter: int) -> bool:
        self._count()
        return await super().on_tick(counter)

    def _count(self) -> int:
        own = len(self.server_state.connections) + len(self._taken)
        self._shares[self._slot] = own
        return own

    def _watch(self) -> None:
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        if self._count() > self._shares.min() and not self._left:
            self._left = True
            loop.remove_reader(self._listener.fileno())
            loop.call_later(LEAVE_SECONDS, self._watch)
            return
        self._left = False
        try:
            connection, _ = self._listener.accept()
        except (
            BlockingIOError,
            InterruptedError,
            ConnectionAbortedError,
        ):  # another worker has taken it, or it is gone
            return
        except OSError:
            loop.remove_reader(self._listener.fileno())
            loop.call_later(AGAIN_SECONDS, self._watch)
            return
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(self._serve_one(connection))
        self._taken.add(task)
        task.add_done_callback(self._taken.discard)

    async def _serve_one(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError:  # it ended at once
            connection.close()

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
