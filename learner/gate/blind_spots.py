# core
"""What the gate cannot know, or not soon, at the traffic it has: said to people, in rows and in hours.

Each fault is laid on what the screen's clean past is like, and judged by the screen's own bounds: how many rows must
come until one of them is broken, on average. Where none is, only held-out pages can tell, by the model that has learnt
it: no sooner than as many visits with them as refuse it at the least can be judged by, as :meth:`Heldout.judges_in_ms
<learner.gate.heldout.Heldout.judges_in_ms>` says. And only what makes that model's loss worse by more than
:data:`~learner.gate.heldout.DIFFERENCE`.
"""

from __future__ import annotations

from typing import NamedTuple

from learner.gate.heldout import Heldout
from learner.gate.screen import MEMORY_ROWS, Screen
from millrace.basics.durations import HOUR_MS

_FAULTS = {  # as shares of rows: whose label is the other one, who click on all
    "a tenth of labels flipped": (0.1, 0.0),
    "5% of users who click everything": (0.0, 0.05),
    "one item of 1% of rows that is always clicked": (0.0, 0.01),
}
LEAST_VISITS = 12
"""With held-out pages, each served worse, that are evidence enough; see :mod:`learner.gate.heldout`."""
DRIP = "a change so slow that the bounds move along with it"


class BlindSpot(NamedTuple):
    """A fault, and when it is told of at the traffic of now. None: it is not."""

    fault: str
    rows: int | None
    hours: float | None
    by: str  # "samples", "held-out pages"; empty: by nothing

    def __str__(self) -> str:
        """
        >>> str(BlindSpot("a tenth of labels flipped", 160_000, 44.4, "held-out pages"))
        'a tenth of labels flipped: told by held-out pages at the earliest, after 160,000 rows, 44.4 hours'
        >>> str(BlindSpot("a tenth of labels flipped", 0, 0.0, "held-out pages"))
        'a tenth of labels flipped: told by held-out pages at the earliest, with the next snapshot'
        >>> str(BlindSpot("one item", None, None, ""))
        'one item: cannot be known at this traffic'
        """
        if self.rows is None or self.hours is None:
            return f"{self.fault}: cannot be known at this traffic"
        if not self.rows:
            return f"{self.fault}: told by {self.by} at the earliest, with the next snapshot"
        early = " at the earliest" if self.by == "held-out pages" else ""
        return f"{self.fault}: told by {self.by}{early}, after {self.rows:,} rows, {self.hours:.3g} hours"


def blind_spots(screen: Screen, heldout: Heldout) -> list[BlindSpot]:
    """Of a warm screen whose traffic is known; else nothing can be said, and the list is empty."""
    rows_an_hour = heldout.rows_an_hour
    if not screen.warm or rows_an_hour <= 0:
        return []
    pages = _heldout_rows(heldout)
    found = []
    for fault, (flipped, clicked) in _FAULTS.items():
        rows, by = screen.tells_after(flipped, clicked, rows_an_hour), "samples"
        if rows is None:
            rows, by = pages, "held-out pages"
        found.append(
            BlindSpot(fault, rows, rows if rows is None else rows / rows_an_hour, by if rows is not None else "")
        )
    slow = f"{DRIP}, over {MEMORY_ROWS:,} rows or {MEMORY_ROWS / rows_an_hour:.3g} hours"
    by = "held-out pages" if pages is not None else ""
    found.append(BlindSpot(slow, pages, pages if pages is None else pages / rows_an_hour, by))
    return found


def _heldout_rows(heldout: Heldout) -> int | None:
    """Rows of traffic until held-out pages can be evidence against a model that has learnt something else, at the
    earliest. None: they never are, as there are none, or too few while they are of an age to be judged by."""
    in_ms = heldout.judges_in_ms(LEAST_VISITS) if heldout.share else None
    return None if in_ms is None else round(in_ms / HOUR_MS * heldout.rows_an_hour)
