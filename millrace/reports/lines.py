# core
"""Progress of long work as lines, for a log file or a calling program."""

from __future__ import annotations

from collections.abc import Callable

Tick = Callable[[str, int, int], None]  # takes the name of the work, how much of it is done, and of how much

LINE_SECONDS = 5.0
LEFT = " s left"  # the end of a line of progress: the next such line replaces it


class Lines:
    """Progress in lines, at most one each :data:`LINE_SECONDS`. ``clock``: monotonic seconds."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._say, self._clock = say, clock
        self._what, self._began_s, self._said_s = "", 0.0, 0.0

    def __call__(self, what: str, done: int, of: int) -> None:
        now_s = self._clock()
        if what != self._what:
            self._what, self._began_s, self._said_s = what, now_s, now_s
        if now_s - self._said_s >= LINE_SECONDS and done:
            self._said_s = now_s
            left_s = (now_s - self._began_s) * (of - done) / done
            self._say(f"{what} {done:,} of {of:,} ({done / of:.0%}), about {left_s:.0f}{LEFT}")
