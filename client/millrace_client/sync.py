# shell
"""The client for threads, :class:`Millrace`: it runs the asynchronous coroutines on a loop in a thread."""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self

from millrace_client.connection import Connection
from millrace_client.errors import MillraceClientError, QueueFull, Unavailable
from millrace_client.messages import Event, ItemFacts, Page, Receipt
from millrace_client.options import CLOSE_S, log


class _Loop(asyncio.SelectorEventLoop):
    """Resolves addresses without a thread, because none can start when the interpreter ends."""

    async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().getaddrinfo(*args, **kwargs)
        except RuntimeError:
            return socket.getaddrinfo(*args, **kwargs)


class Millrace(Connection[bool, Receipt, Page, None, ItemFacts]):
    """A shop's connection to Millrace, for any number of threads (:class:`~millrace_client.connection.Connection`).

    Create it after a fork, in the process that uses it, and close it::

        with Millrace() as shop:
            page = shop.recommend("u1", size=20, only={"in_stock": True})
            shop.exposure(page, shown=range(8))
            shop.click(page, page.items[2])
    """

    _thread: threading.Thread | None = None
    _pid = 0
    _loop: asyncio.AbstractEventLoop
    _end: asyncio.Event

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        problem = self._start()
        if problem is not None:
            work.close()
            raise problem
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise Unavailable("the client was closed meanwhile", "make a new one") from None
        except BaseException:
            future.cancel()
            raise

    def _start(self) -> MillraceClientError | None:
        """Starts the thread if needed. Returns why its loop cannot be used, or None."""
        with _starting:
            if self._requests.closed:
                return Unavailable("the client is closed", "make a new one")
            if self._thread is None:
                ready = threading.Event()
                self._thread, self._pid = threading.Thread(target=self._serve, args=(ready,), daemon=True), os.getpid()
                self._thread.name = "millrace-client"
                self._thread.start()
                ready.wait()
                atexit.register(self._at_exit)
        if self._pid != os.getpid():
            return MillraceClientError("this client was used before the process forked", "make one after the fork")
        if threading.current_thread() is self._thread:
            return MillraceClientError("on_refused waits for its own client", "let it report events only")
        return None

    def _serve(self, ready: threading.Event) -> None:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            self._loop, self._end = runner.get_loop(), asyncio.Event()
            ready.set()
            runner.run(self._end.wait())  # calls that still run then are cancelled

    def _report(self, event: Event | None) -> bool:
        if self._requests.closed:
            raise QueueFull("the client is closed", "make a new one")
        if threading.current_thread() is self._thread:  # on_refused: who makes room cannot wait for it
            return self._put(event)
        return super()._report(event)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flushes, and ends the thread and the connections. Raises as :meth:`flush`; then the events are lost."""
        if self._requests.closed:
            return
        try:
            self._do(self._close(timeout_s))
        finally:
            self._join()

    def _join(self) -> None:
        if self._thread is not None and self._requests.closed:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()
            atexit.unregister(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self.close()
        except MillraceClientError as problem:
            if error is None:
                raise
            log.warning("%s", problem)  # the error that is on its way says more

    def _at_exit(self) -> None:
        """Sends the events of a client that the program did not close, or logs their loss."""
        try:
            self.close()
        except MillraceClientError as error:
            log.warning("%s", error)


_starting = threading.Lock()
