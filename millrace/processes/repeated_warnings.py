# core
"""Repeated warnings by kind, so that frequent bad messages do not fill a log. Pure.

The first case is logged immediately, then at most one line a minute with the number of cases.
"""

from __future__ import annotations

from typing import NamedTuple

QUIET_S = 60.0
MOST_KINDS = 100  # number of separate kinds; further ones share one, :data:`OTHERS`
OTHERS = "others"


class KindCount(NamedTuple):
    """A line: ``times`` cases of ``kind`` since its last line, of which ``example`` is the first."""

    kind: str
    times: int
    example: str


class Kinds:
    """Counts by kind. One thread at a time. ``quiet_s``: seconds between two lines of a kind, at least.

    >>> kinds = Kinds(quiet_s=60)
    >>> kinds.note("late", "offset 7", 2)
    >>> kinds.due(1000.0)
    [KindCount(kind='late', times=2, example='offset 7')]
    >>> kinds.note("late", "offset 9")
    >>> kinds.due(1059.0), kinds.due(1060.0)
    ([], [KindCount(kind='late', times=1, example='offset 9')])
    """

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        self._quiet_s = quiet_s
        self._waiting: dict[str, KindCount] = {}
        self._logged_s: dict[str, float] = {}

    def note(self, kind: str, example: str = "", n: int = 1) -> None:
        """Counts ``n`` cases of ``kind``; ``example`` describes the first in one line."""
        if kind not in self._logged_s and kind not in self._waiting and self._full:
            kind = OTHERS
        there = self._waiting.get(kind)
        times, example = (n, example) if there is None else (there.times + n, there.example)
        self._waiting[kind] = KindCount(kind, times, " ".join(example.split()))

    @property
    def _full(self) -> bool:
        return len(self._logged_s.keys() | self._waiting.keys()) >= MOST_KINDS

    def due(self, now_s: float) -> list[KindCount]:
        """The lines due at ``now_s``, steady time in seconds. Call it often: it is quick while nothing waits."""
        if not self._waiting:
            return []
        never = float("-inf")
        ready = [t for kind, t in self._waiting.items() if now_s - self._logged_s.get(kind, never) >= self._quiet_s]
        for line in ready:
            del self._waiting[line.kind]
            self._logged_s[line.kind] = now_s
        return ready
