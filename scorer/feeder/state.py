# shell
"""What the feeder's threads share: its state, its meters, one lock on the item index, and whether it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from scorer.feeder.primary import Primary
from scorer.ipc.meters import ScorerMeters

T = TypeVar("T")


class Stopped(Exception):
    """The scorer ends and accepts no more changes."""


class FeederState:
    """See the module's text. ``stop`` is set when the scorer ends, ``changed`` when the index may have changes to
    send."""

    def __init__(self, primary: Primary, meters: ScorerMeters, stop: threading.Event) -> None:
        self.primary, self.meters, self.stop = primary, meters, stop
        self.changed = threading.Event()
        self._lock = threading.RLock()

    def alone(self, function: Callable[..., T], *args: Any) -> T:
        """The result of ``function(*args)`` under the lock of the item index. Raises Stopped: the scorer ends."""
        with self._lock:
            if self.stop.is_set():
                raise Stopped
            return function(*args)
