# shell
"""Ctrl-C and SIGTERM as a request to end, which the run takes up between two looks.

::

    first Ctrl-C ──► ending is set          SIGTERM ──► ending is set, and there is no time to lose (hurry)
    second Ctrl-C ─► AtOnce is raised, wherever the main thread is
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from millrace.processes.role import set_from_signal


class AtOnce(KeyboardInterrupt):
    """The second Ctrl-C. Code that lets a Ctrl-C through lets this one through."""


class Signals:
    """``ending``: a signal asked for the end; ``hurry``: it was SIGTERM."""

    def __init__(self) -> None:
        self.ending = threading.Event()
        self.hurry = self._asked = False

    def handle(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self._asked:
            raise AtOnce
        self._asked = True
        self.hurry = self.hurry or number == signal.SIGTERM
        set_from_signal(self.ending)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Takes signals within the context. Outside the main thread Python gives none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.signal(n, self.handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
