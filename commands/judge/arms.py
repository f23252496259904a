# core
"""Outcomes of users by arm, look after look, from the exposures of an archive.

::

    first page of a user ──────────── horizon ────────────► all that came of these pages until then, counted once
                 └ the user is in the arm of that page       at the first look after it

Users are the units: each is in one arm, by a hash of the id, and a user's pages are alike. A user counts for the same
span from the first page on, so an early one tells no more than a late one. The arm is that of the first page, whatever
arm later pages are of: to leave out users with pages of two arms would leave out those who come often. Rows of pages
that were only scored do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.events import LOGGED
from millrace.evidence.sequences import LEAST_OUTCOMES, Estimate, band, difference, gap, half_width, ratio

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]


class Exposures(NamedTuple):
    """Exposures of an archive, n rows."""

    ts_ms: Integers
    user: Integers  # numbers from 0 on
    page: Integers  # numbers from 0 on
    arm: NDArray[np.str_]
    outcome_ms: Integers  # when the outcome came; -1: never
    value: Numbers  # what the outcome counts


class UserOutcomes(NamedTuple):
    """Users whose horizon is over, in the order in which it ended. (u,) each"""

    until_ms: Integers
    arm: NDArray[np.str_]
    outcomes: Numbers
    pages: Numbers
    waiting: int  # users whose horizon is not over


def users_of(rows: Exposures, horizon_ms: int) -> UserOutcomes:
    """Each user's outcomes and pages within the horizon."""
    mine = rows.arm != LOGGED
    ts_ms, user, page, arm = rows.ts_ms[mine], rows.user[mine], rows.page[mine], rows.arm[mine]
    outcome_ms, value = rows.outcome_ms[mine], rows.value[mine]
    by_time = np.argsort(ts_ms, kind="stable")
    own, first = np.unique(user[by_time], return_index=True)
    first = by_time[first]  # each user's first row
    n = int(own[-1]) + 1 if len(own) else 0
    until_ms = np.zeros(n, np.int64)
    until_ms[own] = ts_ms[first] + horizon_ms
    counts = ts_ms < until_ms[user]
    came = counts & (outcome_ms >= 0) & (outcome_ms < until_ms[user])
    outcomes = np.bincount(user[came], value[came], n).astype(np.float64)
    _, once = np.unique(page[counts], return_index=True)
    pages = np.bincount(user[counts][once], minlength=n).astype(np.float64)
    # Outcomes are later than the last exposures that are settled, so they do not say how far the archive goes.
    over = until_ms[own] <= ts_ms.max() if len(own) else np.zeros(0, bool)
    own, arms = own[over], arm[first[over]]
    order = np.argsort(until_ms[own], kind="stable")
    own = own[order]
    return UserOutcomes(until_ms[own], arms[order], outcomes[own], pages[own], int((~over).sum()))


def looks(
    users: UserOutcomes, every_ms: int, by_page: bool, baseline: str, least: int = LEAST_OUTCOMES
) -> list[dict[str, Any]]:
    """A row for each look and arm: its value and band; against the baseline the difference and its band.

    Args:
        every_ms: from look to look.
        by_page: outcomes a page rather than a user.
        baseline: the arm that others are compared with.
        least: users of an arm with an outcome before anything is said of it.
    """
    if not len(users.until_ms):
        return []
    names = sorted(set(users.arm.tolist()), key=lambda name: (name != baseline, name))
    first, last = int(users.until_ms[0]), int(users.until_ms[-1])
    times = [*range(first + every_ms, last, every_ms), last]
    rows: list[dict[str, Any]] = []
    for at_ms in times:
        known = int(np.searchsorted(users.until_ms, at_ms, side="right"))
        found = {name: estimate(users, known, name, by_page, least) for name in names}
        for name, one in found.items():
            rows.append({"at_ms": at_ms, "arm": name, **_row(one)} | _against(one, found.get(baseline), name, baseline))
    return rows


def estimate(users: UserOutcomes, known: int, name: str, by_page: bool, least: int = LEAST_OUTCOMES) -> Estimate:
    """What the first ``known`` users say of an arm."""
    mine = users.arm[:known] == name
    return ratio(users.outcomes[:known][mine], users.pages[:known][mine] if by_page else None, least)


def _row(one: Estimate) -> dict[str, Any]:
    low, high = band(one)
    return {"users": one.n, "value": plain(one.value), "low": plain(low), "high": plain(high)}


def _against(one: Estimate, other: Estimate | None, name: str, baseline: str) -> dict[str, Any]:
    if other is None or name == baseline:
        return {"difference": None, "difference_low": None, "difference_high": None}
    found = difference(one, other)
    return {
        "difference": plain(one.value - other.value),
        "difference_low": plain(found.low),
        "difference_high": plain(found.high),
    }


def plain(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def decided_ms(rows: Sequence[Mapping[str, Any]], arm: str) -> int | None:
    """The first look from which on the arm's difference excludes 0. None: it does not."""
    since = None
    for row in rows:
        if row["arm"] == arm:
            low, high = row["difference_low"], row["difference_high"]
            outside = low is not None and (low > 0 or high < 0)
            since = (since or row["at_ms"]) if outside else None
    return since


def users_wanted(one: Estimate, other: Estimate) -> int | None:
    """Users of both arms that it would take until a difference as large as today's is decided. None: nobody knows."""
    return units_wanted(gap(one, other))


def units_wanted(found: Estimate) -> int | None:
    """The same of a difference that is an estimate of its own."""
    if not (found.said and found.value):
        return None
    low, high = 1, 1 << 40
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if half_width(middle, found.variance) < abs(found.value) else (middle + 1, high)
    return low
