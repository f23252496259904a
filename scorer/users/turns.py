# shell
"""Requests one after the other, with looks at the sockets between two of them.

Several answers of Redis come in one read. If all their requests went on in the same turn of the event loop, it would
not look at its sockets before the last of them was done. And one look is not enough: uvloop takes one new connection a
turn. With a page in each turn, connections would wait in the kernel, where nobody counts or refuses them, as long as
there is too much to do. So the loop turns some times between two pages, and whoever knocks is heard at once: a request
that is refused, a change of the model, ``/healthz``.
"""

from __future__ import annotations

import asyncio
from collections import deque

LOOKS = 16
"""Turns of the loop between two requests; each takes some microseconds."""
IDLE_LOOKS = 4
"""The same when nobody waits."""


class Turns:
    """Who waits for a turn, first come first served. For one event loop."""

    def __init__(self) -> None:
        self._taken = False
        self._looks = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Returns when it is the caller's turn. It is for as long as the caller does not wait for anything."""
        loop = asyncio.get_running_loop()
        if self._taken:
            mine = loop.create_future()
            self._waiting.append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._look()  # the turn had come, and nobody takes it
                raise
        self._taken, self._looks = True, 0
        loop.call_soon(self._look)

    def _look(self) -> None:
        self._looks += 1
        if self._looks < (LOOKS if self._waiting else IDLE_LOOKS):
            asyncio.get_running_loop().call_soon(self._look)
            return
        while self._waiting:
            following = self._waiting.popleft()
            if not following.done():
                following.set_result(None)
                return
        self._taken = False
