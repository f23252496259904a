# core
"""Alarms of drift detectors over a log's progressive scores, in four ways of looking at the same losses.

::

    way                    what ADWIN is given                       in the order of
    rows by label          the log loss of each row                  its label: a click at once, none after the window
    rows by exposure       the same                                  exposure
    rows shuffled          the same                                  chance: nothing can change, so each alarm is false
    pages by exposure      the mean excess loss of each page         exposure: the live detector (drift.py)

ADWIN (Bifet and Gavalda 2007) bounds its false alarms for values that are independent. The rows of a page are not: they
share a user and a moment. Labels that become known at a time are even less: clicks come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift

from learner.evaluation.drift import DELTA, Drift
from millrace.basics.merit import log_losses

LABEL, EXPOSURE, SHUFFLED, PAGES = "rows by label", "rows by exposure", "rows shuffled", "pages by exposure"
WAYS = (LABEL, EXPOSURE, SHUFFLED, PAGES)


@dataclass(frozen=True, slots=True)
class Judged:
    """n scored rows of a log in the order of exposure, their labels, and when these can be known."""

    p: NDArray[np.float32]  # (n,)
    label: NDArray[np.int8]  # (n,)
    page: NDArray[np.intp]  # (n,) a number for each page
    known_ms: NDArray[np.int64]  # (n,) when the label was known: a click at once, else after the attribution window
    settled_ms: NDArray[np.int64]  # (n,) when it can change no more

    def since(self, row: int) -> Judged:
        """The rows from ``row`` on."""
        return Judged(self.p[row:], self.label[row:], self.page[row:], self.known_ms[row:], self.settled_ms[row:])


@dataclass(frozen=True, slots=True)
class Alarms:
    """The alarms of one detector, ascending in time."""

    row: NDArray[np.intp]  # (a,) the row that set it off
    at_ms: NDArray[np.int64]  # (a,) when it could be known


def alarms(way: str, rows: Judged, rng: np.random.Generator) -> Alarms:
    """The alarms over ``rows`` in one of the :data:`WAYS`; ``rng`` shuffles."""
    n = len(rows.p)
    if way == PAGES:
        return _of_pages(rows)
    order = np.arange(n)
    if way == LABEL:
        order = np.argsort(rows.known_ms, kind="stable")
    elif way == SHUFFLED:
        order = rng.permutation(n)
    adwin: Any = drift.ADWIN(delta=DELTA)  # type: ignore[no-untyped-call]
    found = []
    for i, loss in zip(order.tolist(), log_losses(rows.p, rows.label)[order].tolist(), strict=True):
        adwin.update(loss)
        if adwin.drift_detected:
            found.append(i)
    row = np.array(found, np.intp)
    return Alarms(row, (rows.known_ms if way == LABEL else rows.settled_ms)[row])


def _of_pages(rows: Judged) -> Alarms:
    """A page's alarm is known when the next page's first row is settled: only then is the page known to be whole."""
    detector, found = Drift(DELTA), []
    order = np.argsort(rows.page, kind="stable")  # within one time, pages may lie across each other
    order = order[np.argsort(rows.settled_ms[order], kind="stable")]
    page = rows.page[order]
    starts = np.flatnonzero(np.concatenate([[True], page[1:] != page[:-1]])).tolist()
    for start, stop in zip(starts, [*starts[1:], len(page)], strict=True):
        part = order[start:stop]
        detector.update(rows.p[part], rows.label[part], rows.page[part])
        if detector.found:
            detector.found.clear()
            found.append(int(part[0]))
    row = np.array(found, np.intp)
    return Alarms(row, rows.settled_ms[row])
