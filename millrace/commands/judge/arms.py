# core
"""Outcomes of users by arm, look after look, from the exposures of an archive.

::

    first page of a user ──────────── horizon ────────────► all that came of these pages until then, counted once
                 └ the user is in the arm of that page       at the first look after it

Users are the units: each is in one arm, by a hash of the id, and a user's pages are alike. A user counts for the same
span from the first page on, so an early one tells no more than a late one. The arm is that of the first page, whatever
arm later pages are of: to leave out users with pages of two arms would leave out those who come often. Rows of pages
that were only scored do not count.

Memory is bounded: where there are more users than :data:`MOST_USERS`, every second one is left out by a bit of the
hash, whatever the arm, and again, as in :mod:`stream.archive.arm_figures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.events import LOGGED
from millrace.evidence.sequences import ERROR, Estimate, band, difference, error_each, half_width, ratio

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_USERS = 1 << 20
MOST_PAGES = 1 << 21
"""Of the newest pages so many are known, and twice as many at most. Parts of a page that come later count as another
page."""


class Exposures(NamedTuple):
    """Exposures of an archive, n rows."""

    ts_ms: Integers
    user: Integers  # any number, a hash where there may be more than MOST_USERS
    page: Integers  # any number
    arm: NDArray[np.str_]
    outcome_ms: Integers  # when the outcome came; -1: never
    value: Numbers  # what the outcome counts

    def at(self, some: Any) -> Exposures:
        return Exposures(*(column[some] for column in self))


class UserOutcomes(NamedTuple):
    """Users whose horizon is over, in the order in which it ended. (u,) each"""

    until_ms: Integers
    arm: NDArray[np.str_]
    outcomes: Numbers
    pages: Numbers
    waiting: int  # users whose horizon is not over


class ArmUsers:
    """Users and their outcomes, from exposures part by part in the archive's order: nearly that of time."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._user, self._until_ms = np.empty(0, np.int64), np.empty(0, np.int64)  # (u,) ascending by user
        self._arm, self._outcomes, self._pages = np.empty(0, "<U1"), np.empty(0), np.empty(0)
        self._known = np.empty(0, np.int64), np.empty(0, np.int64)  # pages of before, newest pages
        self._newest_ms = 0
        self.first_ms = 0
        self.halvings = 0
        """Counted is one user in 2 to this power."""

    def take(self, rows: Exposures) -> None:
        """Counts a part."""
        mine = np.flatnonzero((rows.arm != LOGGED) & self._kept(rows.user))
        if not len(mine):
            return
        ts_ms, user, page, arm, came_ms, value = rows.at(mine[np.argsort(rows.ts_ms[mine], kind="stable")])
        self.first_ms = min(self.first_ms, int(ts_ms[0])) if self._newest_ms else int(ts_ms[0])
        self._newest_ms = max(self._newest_ms, int(ts_ms[-1]))
        own, first = np.unique(user, return_index=True)
        first = first[~np.isin(own, self._user, assume_unique=True)]  # each new user's first row
        self._put(user[first], ts_ms[first] + self._horizon_ms, arm[first])
        at = np.searchsorted(self._user, user)
        until_ms, n = self._until_ms[at], len(self._user)
        counts = np.flatnonzero(ts_ms < until_ms)
        came = np.flatnonzero((ts_ms < until_ms) & (came_ms >= 0) & (came_ms < until_ms))
        self._outcomes += np.bincount(at[came], value[came], n)
        pages, once = np.unique(page[counts], return_index=True)
        fresh = ~(np.isin(pages, self._known[0]) | np.isin(pages, self._known[1]))
        self._pages += np.bincount(at[counts[once[fresh]]], minlength=n)
        self._known = self._known[0], np.concatenate([self._known[1], pages[fresh]])
        if len(self._known[1]) > MOST_PAGES:
            self._known = self._known[1], np.empty(0, np.int64)
        while len(self._user) > MOST_USERS:
            self.halvings += 1
            self._take(np.flatnonzero(self._kept(self._user)))

    def _kept(self, user: Integers) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = user & ((1 << self.halvings) - 1) == 0
        return kept

    def _put(self, user: Integers, until_ms: Integers, arm: NDArray[np.str_]) -> None:
        self._user = np.concatenate([self._user, user])
        self._until_ms, self._arm = np.concatenate([self._until_ms, until_ms]), np.concatenate([self._arm, arm])
        self._outcomes, self._pages = (np.append(x, np.zeros(len(user))) for x in (self._outcomes, self._pages))
        self._take(np.argsort(self._user))

    def _take(self, some: NDArray[np.intp]) -> None:
        self._user, self._until_ms, self._arm = self._user[some], self._until_ms[some], self._arm[some]
        self._outcomes, self._pages = self._outcomes[some], self._pages[some]

    def found(self) -> UserOutcomes:
        # Outcomes are later than the last exposures that are settled, so they do not say how far the archive goes.
        over = np.flatnonzero(self._until_ms <= self._newest_ms)
        own = over[np.lexsort((self._user[over], self._until_ms[over]))]
        waiting = len(self._user) - len(own)
        return UserOutcomes(self._until_ms[own], self._arm[own], self._outcomes[own], self._pages[own], waiting)


def users_of(rows: Exposures, horizon_ms: int) -> UserOutcomes:
    """Each user's outcomes and pages within the horizon."""
    users = ArmUsers(horizon_ms)
    users.take(rows)
    return users.found()


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
    rows: list[dict[str, Any]] = []
    for at_ms, known in look_times(users.until_ms, every_ms):
        found = {name: estimate(users, known, name, by_page) for name in names}
        for name, one in found.items():
            other = None if name == baseline else found.get(baseline)
            rows.append({"at_ms": at_ms, "arm": name, **_row(one)} | _against(one, other, error_each(len(names))))
    return rows


def look_times(ts_ms: Integers, every_ms: int) -> Iterator[tuple[int, int]]:
    """Each look's time, and how many of some times, ascending, are known by then; the last one is at the last time."""
    first, last = int(ts_ms[0]), int(ts_ms[-1])
    for at_ms in (*range(first + every_ms, last, every_ms), last):
        yield at_ms, int(np.searchsorted(ts_ms, at_ms, side="right"))


def estimate(users: UserOutcomes, known: int, name: str, by_page: bool) -> Estimate:
    """What the first ``known`` users say of an arm."""
    mine = users.arm[:known] == name
    return ratio(users.outcomes[:known][mine], users.pages[:known][mine] if by_page else None)


def _row(one: Estimate) -> dict[str, Any]:
    low, high = band(one)
    return {"users": one.n, "value": plain(one.value), "low": plain(low), "high": plain(high)}


def _against(one: Estimate, other: Estimate | None, error: float) -> dict[str, Any]:
    if other is None:
        return {"difference": None, "difference_low": None, "difference_high": None}
    found = difference(one, other, error)
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


def units_wanted(found: Estimate, error: float = ERROR) -> int | None:
    """Users of both arms that it would take until a difference as large as today's is decided. None: nobody knows."""
    if not (found.said and found.value):
        return None
    low, high = 1, 1 << 40
    while low < high:
        middle = (low + high) // 2
        enough = half_width(middle, found.variance, error) < abs(found.value)
        low, high = (low, middle) if enough else (middle + 1, high)
    return low
