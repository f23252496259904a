# shell
"""The door: threads change the item index through it, and read it, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The scorer ends; nobody takes changes any more."""


class Door:
    """Runs functions alone, between other changes.

    Args:
        stop: set when the scorer ends.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._lock = threading.RLock()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """The result of ``function(*args)``, run while nobody else is behind the door.

        Raises:
            Stopped: the scorer ends.
        """
        with self._lock:
            if self._stop.is_set():
                raise Stopped
            return function(*args)
