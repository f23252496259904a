# core
"""How much is learnt before it is promoted together.

::

    learning   ── stretch ──┬── stretch ──┬── stretch ──┬─ ...           of 2,048 rows, or of 5 minutes
                        promoted      promoted      promoted

A stretch ends by rows or by time, whichever comes first: with a row a second 2,048 rows are half an hour. But it has
256 rows at least. At night that is longer than five minutes, and tells of nobody: nothing else is learnt meanwhile.

How far the stretch moved the logits of recent rows was judged here (its bound grew with what was usual). Of twenty
poisons it refused none that the screen had not refused before, and a new catalogue was what it refused most.
"""

from __future__ import annotations

from collections.abc import Mapping

from learner.gate.median_clock import MedianClock
from millrace.versions.image import Array, resume_state, state_of

_SAVED = ("_since", "_began_ms")


class Stretch:
    """What was learnt since the last promotion. One thread.

    Args:
        rows: that make a stretch.
        long_ms, least: or so long, where there are as many rows as ``least``.
        clock: the gate's.
    """

    def __init__(
        self, rows: int = 2048, clock: MedianClock | None = None, long_ms: int = 300_000, least: int = 256
    ) -> None:
        self.rows, self.clock, self.long_ms, self.least = rows, clock or MedianClock(), long_ms, least
        self._since = self._began_ms = 0

    def learnt(self, rows: int) -> None:
        """So many rows more were learnt."""
        if not self._since:
            self._began_ms = self.clock.now_ms
        self._since += rows

    @property
    def due(self) -> bool:
        """Whether a whole stretch was learnt."""
        long = self.clock.now_ms - self._began_ms >= self.long_ms
        return self._since >= (min(self.least, self.rows) if long else self.rows)

    def begin(self) -> None:
        """It was promoted, or the model is another one."""
        self._since = 0

    def snapshot(self) -> dict[str, Array]:
        """Rows and time."""
        return state_of(self, _SAVED)

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`, on a fresh one; an empty state leaves it fresh. Raises KeyError where an
        array is missing."""
        resume_state(self, _SAVED, state or Stretch().snapshot())
