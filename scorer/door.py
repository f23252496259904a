# shell
"""The door: threads change through it what requests read. The changes run on the event loop, between two requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The scorer ends; nobody takes changes any more."""


class Door:
    """Runs functions on the event loop, one at a time for each thread that asks, and waits for them.

    Args:
        loop: the loop that requests are answered on.
        stop: set when the scorer ends; then waiting ends too.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        self._loop, self._stop = loop, stop

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """The result of ``function(*args)``, run between two requests; its exception is raised here.

        Raises:
            Stopped: the loop has ended.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:  # raised again in the thread that asked
                future.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError:
            raise Stopped from None
        while True:
            try:
                return future.result(timeout=0.5)
            except TimeoutError:
                if future.done():
                    raise
                if self._stop.is_set():
                    raise Stopped from None
