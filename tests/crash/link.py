"""A TCP proxy: the way between two of our processes, which can be made slow, dead or closed while both run on.

::

    client ──► Link ──► one of its targets, in turn       open     as if it were not there
                                                          slow     each piece comes DELAY later
                                                          dead     nothing comes through, nobody is told
                                                          closed   connections end, new ones are refused
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterable
from itertools import count
from typing import Any, Literal, Self, TypeVar

T = TypeVar("T")
State = Literal["open", "slow", "dead", "closed"]

DELAY_SECONDS = 0.1
_PIECE = 64 * 1024


class Link:
    """Listens on a loopback port from its making until :meth:`close`.

    Args:
        targets: ``host:port`` each. Connections go to them in turn, past those that refuse.

    Attributes:
        address: where it listens.
        targets: may be replaced at any time; connections that are there stay.
    """

    def __init__(self, targets: Iterable[str], port: int = 0) -> None:
        self.targets = tuple(targets)
        self.state: State = "open"
        self._turns, self._open = count(), set[asyncio.WriteTransport]()
        self._tasks = set[asyncio.Task[Any] | None]()  # nobody else holds them for good
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        self._server = self._do(self._listen(port))
        self._port: int = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"

    def set(self, state: State) -> None:
        """Changes what comes through, for the connections that are there too."""
        self._do(self._set(state))

    def close(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- in the link's own thread ----------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self, port: int) -> asyncio.Server:
        self._passes.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def _set(self, state: State) -> None:
        before, self.state = self.state, state
        if state == "dead":
            self._passes.clear()
        else:
            self._passes.set()
        if state == "closed":
            self._server.close()
            self._cut()
        elif before == "closed":
            self._server = await self._listen(self._port)

    async def _end(self) -> None:
        self._server.close()
        self._cut()
        mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    def _cut(self) -> None:
        for transport in list(self._open):
            transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, ends = asyncio.current_task(), {writer.transport}
        self._tasks.add(task)
        try:
            far = await self._connect()
            if far is not None:
                ends.add(far[1].transport)
                self._open |= ends
                await asyncio.gather(self._pass_on(reader, far[1]), self._pass_on(far[0], writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._open -= ends
            for transport in ends:
                transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        await self._passes.wait()
        targets = self.targets
        first = next(self._turns)
        for i in range(len(targets)):
            host, _, port = targets[(first + i) % len(targets)].rpartition(":")
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, int(port))
        return None

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                await self._passes.wait()
                if self.state == "slow":
                    await asyncio.sleep(DELAY_SECONDS)
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
