# shell
"""The scorer's listening socket, and who answers while no worker accepts from it, as in the seconds of a start: a
connection that nobody accepts would keep its client until a time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket

import numpy as np
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from millrace.processes.httpserver import config
from millrace.processes.shared import Region
from millrace.processes.tokens import refuse
from scorer.worker.acceptor import NOBODY, WorkerServer
from scorer.worker.request_limit import RETRY_AFTER_SECONDS
from scorer.worker.template import Fork

LOOK_SECONDS = 0.02
"""Between two looks whether workers accept, while connections come."""
READ_SECONDS = 0.05
"""How long the rest of a request may take that nobody will work on."""


class Door:
    """The feeder's side: a listening socket, the workers' numbers of connections, and a process with the stand-in:
    imports stop every thread of this one. Made while this process has one thread. Raises OSError.

    Attributes:
        shares: as of :class:`WorkerServer`, in shared memory.
    """

    def __init__(self, listener: socket.socket, workers: int) -> None:
        self.listener, self.shares = listener, Region(8 * workers)
        self.connections = self.shares.array((workers,), np.int64)
        self.connections[:] = NOBODY
        self._feeder = os.getpid()
        self._stand_in = Fork(self._stand, listener.fileno())

    def close(self) -> None:
        """Who comes from now on is refused; workers still accept who has come."""
        self._stand_in.kill()
        self._stand_in.wait()
        self.listener.close()

    def _stand(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the feeder says when to end
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        StandIn(self.listener, self.connections, self._feeder).run()


class StandIn(WorkerServer):
    """Accepts while no worker does, and answers 503, in a child of the process ``feeder``. It ends with that."""

    def __init__(self, listener: socket.socket, shares: NDArray[np.int64], feeder: int) -> None:
        super().__init__(config(_no_worker, 1), listener, shares, 0)
        self._feeder = feeder

    async def on_tick(self, counter: int) -> bool:
        if os.getppid() != self._feeder:
            os._exit(0)  # the port is to be free for the next one
        if self._shares.min() < NOBODY:
            for idle in list(self.server_state.connections):  # whoever asks on them later should reach a worker
                idle.shutdown()
        return await super().on_tick(counter)

    def _count(self) -> int:
        return 0  # no worker leaves it a connection, or waits for it

    def _accept(self) -> None:
        if self._shares.min() == NOBODY:
            super()._accept()
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        loop.call_later(LOOK_SECONDS, self._watch)


async def _no_worker(scope: Scope, receive: Receive, send: Send) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_SECONDS):
            while (await receive()).get("more_body"):  # closed with bytes unread, a connection would lose the answer
                pass
    after = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
    await refuse(send, 503, "no worker answers now; ask again in a second", after, (b"connection", b"close"))
