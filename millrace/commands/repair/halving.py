# core
"""Finds the stretch of samples that moved a figure: between kept versions, and then, by halving, between acts.

::

    kept versions    v57 ──────── v92 ──────── v130 ──────── v171          a figure at each
    where it fell most             └────────────────────────┘              neighbours or not
    learnt again                   ├───────────┬────────────┤    a tenth of the fall at the middle? then the first half
                                   ├─────┬─────┤                 ... until it is known where the fall begins,
                                      └ begins            └ ends     and likewise where nine tenths of it are done
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from learner.training.decisionlog import rows_in
from millrace.versions.decisions import Learnt

LEAST_ROWS = 1024
"""A shorter stretch is not halved."""
BEGINS, ENDS = 0.1, 0.9
"""Shares of the move at the begin and the end of the stretch."""


@dataclass(frozen=True, slots=True)
class Point:
    """A model after ``at`` acts, and its figure."""

    at: int
    value: float


@dataclass(frozen=True, slots=True)
class MovedStretch:
    """Acts ``begin.at`` to ``end.at`` (not included) moved a figure from ``begin.value`` to ``end.value``."""

    begin: Point
    end: Point


Move = Callable[[float, float], float]
"""By how much a figure became worse from one value to another."""


def steepest(points: Sequence[Point], move: Move) -> MovedStretch | None:
    """The two points between which the figure became worse most, neighbours or not, since a fault may last for several
    versions. None where it nowhere became worse.

    >>> fall = lambda a, b: a - b
    >>> steepest([Point(0, 0.7), Point(5, 0.72), Point(9, 0.65), Point(12, 0.6), Point(15, 0.66)], fall)
    MovedStretch(begin=Point(at=5, value=0.72), end=Point(at=12, value=0.6))
    """
    pairs = [MovedStretch(a, b) for a, b in combinations(points, 2) if move(a.value, b.value) > 0]
    return max(pairs, key=lambda pair: move(pair.begin.value, pair.end.value), default=None)


def middle(acts: Sequence[Learnt], begin: int, end: int) -> int | None:
    """The act in the middle between two, by rows; None where the stretch is short or has one batch."""
    rows = np.cumsum([rows_in(act.spans) for act in acts[begin:end]])
    if not len(rows) or rows[-1] <= LEAST_ROWS:
        return None
    at = min(begin + 1 + int(np.searchsorted(rows, rows[-1] / 2)), end - 1)  # the last batch may have more than half
    return at if begin < at else None


def narrowed(
    stretch: MovedStretch, acts: Sequence[Learnt], value_at: Callable[[int, int], float], move: Move
) -> tuple[MovedStretch, list[Point]]:
    """The part of a stretch from a tenth of the move to nine tenths; and the points looked at on the way.

    Args:
        value_at: the figure after so many acts, ``(from, at)``. ``from`` is the begin of the stretch, or one of the two
            acts of the call before.
    """
    whole = move(stretch.begin.value, stretch.end.value)
    low, seen = stretch.begin, list[Point]()
    for share in (BEGINS, ENDS):
        high = stretch.end
        while (at := middle(acts, low.at, high.at)) is not None:
            point = Point(at, value_at(low.at, at))
            seen.append(point)
            if move(stretch.begin.value, point.value) < share * whole:
                low = point
            else:  # a figure that is NaN has fallen, too
                high = point
        if share == BEGINS:
            begin = low
    return MovedStretch(begin, high), seen
