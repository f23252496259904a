# core
"""Outcomes of users by arm, look after look, from the exposures of an archive.

::

    first page of a user ──────────── horizon ────────────► all that came of his pages until then, counted once
                 └ he is in the arm of that page                 at the first look after it

Users are the units: each is in one arm, by a hash of the id, and his pages are alike. A user counts for the same span
from his first page on, so an early one tells no more than a late one. A user with pages of two arms (the setting
changed meanwhile) is left out and told. Rows of pages that were only scored are left out too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.events import LOGGED
from millrace.evidence.sequences import Estimate, band, difference, half_width, ratio

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
    left_out: int  # users with pages of two arms
    waiting: int  # users whose horizon is not over


def users_of(rows: Exposures, horizon_ms: int) -> UserOutcomes:
    """Each user's outcomes and pages within the horizon."""
    mine = rows.arm != LOGGED
    ts_ms, user, page, arm = rows.ts_ms[mine], rows.user[mine], rows.page[mine], rows.arm[mine]
    outcome_ms, value = rows.outcome_ms[mine], rows.value[mine]
    if not len(ts_ms):
        return UserOutcomes(*(np.empty(0, np.int64), np.empty(0, str), np.empty(0), np.empty(0)), 0, 0)
    n, end_ms = int(user.max()) + 1, int(max(ts_ms.max(), outcome_ms.max()))
    first_ms = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first_ms, user, ts_ms)
    there = first_ms < np.iinfo(np.int64).max
    until_ms = np.where(there, first_ms, 0) + horizon_ms
    names, code = np.unique(arm, return_inverse=True)
    arms = np.zeros((n, len(names)), bool)
    arms[user, code] = True
    both = arms.sum(axis=1) > 1
    over = there & (until_ms <= end_ms)
    counts = ts_ms < until_ms[user]
    came = counts & (outcome_ms >= 0) & (outcome_ms < until_ms[user])
    outcomes = np.bincount(user[came], value[came], n).astype(np.float64)
    _, once = np.unique(page[counts], return_index=True)
    pages = np.bincount(user[counts][once], minlength=n).astype(np.float64)
    own = np.flatnonzero(over & ~both)
    own = own[np.argsort(until_ms[own], kind="stable")]
    of = names[np.argmax(arms[own], axis=1)]
    return UserOutcomes(
        until_ms[own], of, outcomes[own], pages[own], int((both & there).sum()), int((there & ~over).sum())
    )


def looks(users: UserOutcomes, every_ms: int, by_page: bool, baseline: str) -> list[dict[str, Any]]:
    """A row for each look and arm: its value and band; against the baseline the difference and its band.

    Args:
        every_ms: from look to look.
        by_page: outcomes a page rather than a user.
        baseline: the arm that others are compared with.
    """
    if not len(users.until_ms):
        return []
    names = sorted(set(users.arm.tolist()), key=lambda name: (name != baseline, name))
    first, last = int(users.until_ms[0]), int(users.until_ms[-1])
    rows: list[dict[str, Any]] = []
    for at_ms in range(first + every_ms, last + every_ms, every_ms):
        known = int(np.searchsorted(users.until_ms, at_ms, side="right"))
        found = {name: estimate(users, known, name, by_page) for name in names}
        for name, one in found.items():
            rows.append({"at_ms": at_ms, "arm": name, **_row(one)} | _against(one, found.get(baseline), name, baseline))
    return rows


def estimate(users: UserOutcomes, known: int, name: str, by_page: bool) -> Estimate:
    """What the first ``known`` users say of an arm."""
    mine = users.arm[:known] == name
    return ratio(users.outcomes[:known][mine], users.pages[:known][mine] if by_page else None)


def _row(one: Estimate) -> dict[str, Any]:
    low, high = band(one)
    return {"users": one.n, "value": _plain(one.value), "low": _plain(low), "high": _plain(high)}


def _against(one: Estimate, other: Estimate | None, name: str, baseline: str) -> dict[str, Any]:
    if other is None or name == baseline:
        return {"difference": None, "difference_low": None, "difference_high": None}
    found = difference(one, other)
    return {
        "difference": _plain(one.value - other.value),
        "difference_low": _plain(found.low),
        "difference_high": _plain(found.high),
    }


def _plain(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


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
    gap = abs(one.value - other.value)
    n = one.n + other.n
    if not (one.said and other.said) or not gap:
        return None
    variance = n * (one.variance / one.n + other.variance / other.n)
    low, high = 1, 1 << 40
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if half_width(middle, variance) < gap else (middle + 1, high)
    return low
