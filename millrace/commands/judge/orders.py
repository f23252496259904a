# core
"""Would a model have put shown items into an order that earns more? From the exposures of an archive.

::

    page     A  B  C  F  D  X  E  K  ...         a model's page, with the scores that it was ranked by
    score   .9 .8 .7 .3 .6 .2 .5 .4
                         └ the first score above the one before it: something was drawn by now
                            └──row──┘            the next items came by chance alone, with the logged propensities

A page that was re-ranked (:mod:`scorer.page.reranking`) is drawn by what its items were ordered by, in place of their
scores. A pinned item stands in no row: it was not drawn, and the others were, around it.

A random page is drawn from its first slot on. :mod:`millrace.evidence.offpolicy` says what a row tells. Its numbers are
of :data:`SLOTS` slots, and a row is as long. For weights grow with the number of orders, and so does what is needed:
with three slots 6 rows tell as much as one of the order that is judged, with four 24.

A page counts where it was shown as it was answered, from its first item to the row's last. That so many were seen must
not depend on the order within the row, as it would where each item must be scrolled for. A list's later part has no
row: it was scored again, and its order is that of older scores.

Memory is bounded: of an arm with more rows than :data:`MOST_ROWS` every second user is left out by a bit of the hash,
and again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.commands.judge.arms import look_times, plain, units_wanted
from millrace.evidence import offpolicy
from millrace.evidence.offpolicy import LEAST_EFFECTIVE, effective
from millrace.evidence.sequences import LEAST, NOTHING, Estimate, band, ratio

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Places = NDArray[np.intp]

SLOTS = 3
"""m, of a row."""
MOST_ROWS = 1 << 18
"""Of an arm."""
CHIEF = "cascade_dr"
"""Of the estimators that which decides: it assumes little, and its variance is the least of those."""
_ABOVE = "items do not influence those above them"
ASSUMES = {
    "ips": "nothing",
    "snips": "nothing",
    "dm": "the served scores are right",
    "dros": "the served scores are nearly right",
    "iips": "items do not influence each other",
    "rips": _ABOVE,
    CHIEF: _ABOVE,
}
"""Estimators, and what must be true for them."""
_BIASED = "dm", "dros"  # no band: what they are wrong by is not known


class Shown(NamedTuple):
    """Exposures by page, then position. (n,) each"""

    ts_ms: Integers
    user: Integers  # any number, a hash where there may be more rows than MOST_ROWS
    page: Integers
    control: NDArray[np.bool_]  # of a random page
    position: Integers  # as answered
    slot: Integers  # as shown
    item: Integers
    odds: Numbers  # NaN: not logged
    score: NDArray[np.float32]
    ranked: NDArray[np.float32]  # what it was ordered by, nearly always the score; NaN: pinned to its slot
    reward: Numbers


def drawn(shown: Shown) -> Places:
    """Where rows lie among the exposures, one of a page at most. (R, m)"""
    n = len(shown.page)
    if not n:
        return np.empty((0, SLOTS), np.intp)
    starts = np.flatnonzero(np.diff(shown.page, prepend=shown.page[0] - 1))  # (P,)
    size = np.diff(starts, append=n)
    start = np.repeat(starts, size)
    at, pinned = np.arange(n) - start, np.isnan(shown.ranked)
    whole = (shown.position == at) & (shown.slot == at) & np.isfinite(shown.odds)
    until = np.minimum(np.minimum.reduceat(np.where(whole, n, at), starts), size)
    above = np.append(-1, np.maximum.accumulate(np.where(pinned, 0, np.arange(n)))[:-1])  # the last one not pinned
    moved = ~shown.control & (above >= start) & (shown.ranked > shown.ranked[above])
    since = np.minimum.reduceat(np.where(shown.control, 0, np.where(moved, at + 1, n)), starts)
    pins = np.append(0, np.cumsum(pinned))
    free = pins[np.minimum(np.arange(n) + SLOTS, n)] == pins[:-1]
    fits = free & (at >= np.repeat(since, size)) & (at + SLOTS <= np.repeat(until, size))
    first = np.minimum.reduceat(np.where(fits, np.arange(n), n), starts)
    where: Places = first[first < n][:, None] + np.arange(SLOTS)
    # Nothing is left to chance behind a swap, and where only one item was left.
    chosen = (shown.odds[where][:, :-1] < 1).all(1)
    return where[chosen]


def ordered(scores: Numbers, item: Integers) -> Places:
    """The slots of each row's items, best score first. Ties go by item: the logged order must not decide. (R, m)"""
    return np.lexsort((item, -scores))


def numbers_of(shown: Shown, where: Places, judged: Numbers) -> dict[str, tuple[Numbers, Numbers]]:
    """By estimator, each row's numbers for the order that is judged, and for that of the model that served; and by
    ``weight`` the weights of whole rows. ``judged``: scores by the model that is judged. (R, m)"""
    odds, r, item = offpolicy.order_odds(shown.odds[where]), shown.reward[where], shown.item[where]
    score = shown.score[where].astype(np.float64)
    rate = r.sum(0) / np.maximum(score.sum(0), np.finfo(float).tiny)  # of a slot, to the scores there
    q = score * rate

    def of(scores: Numbers) -> dict[str, Numbers]:
        order = ordered(scores, item)
        w, v = offpolicy.weights(odds, order), np.take_along_axis(score, order, 1) * rate
        row = w.whole, r.sum(1), q.sum(1), v.sum(1)
        return {
            "ips": offpolicy.ips(*row[:2]),
            "snips": offpolicy.snips(*row[:2]),
            "dm": row[3],
            "dros": offpolicy.dros(*row, offpolicy.shrinkage(*row)),
            "iips": offpolicy.slots(w.alone, r),
            "rips": offpolicy.slots(w.above, r),
            CHIEF: offpolicy.cascade_dr(w.above, r, q, v),
            "weight": w.whole,
        }

    of_judged, of_served = of(judged), of(shown.ranked[where].astype(np.float64))
    return {name: (of_judged[name], of_served[name]) for name in of_judged}


class ArmPages:
    """Exposures of one arm, taken part by part: how many there are, and their drawn rows."""

    def __init__(self) -> None:
        self.pages = self.exposures = self.pinned = self.rows = self._halvings = 0
        self._kept: list[tuple[Shown, Numbers]] = []  # the exposures of rows, and their (R, m) scores

    def take(self, shown: Shown, where: Places, judged: Numbers) -> None:
        """``judged``: scores of the rows at ``where`` by the model that is judged. (R, m) each"""
        self.pages += len(np.unique(shown.page))
        self.exposures += len(shown.page)
        self.pinned += int(np.isnan(shown.ranked).sum())
        self.rows += len(where)
        self._keep(shown, where, judged)
        while sum(len(judged) for _, judged in self._kept) > MOST_ROWS:
            self._halvings += 1
            kept, self._kept = self._kept, []
            for of_rows, scores in kept:
                self._keep(of_rows, np.arange(scores.size).reshape(scores.shape), scores)

    def _keep(self, shown: Shown, where: Places, judged: Numbers) -> None:
        mine = shown.user[where[:, 0]] & ((1 << self._halvings) - 1) == 0
        of_rows = Shown(*(column[where[mine].ravel()] for column in shown))
        self._kept.append((of_rows, judged[mine]))

    def judged(self) -> Judged:
        columns = zip(*(of_rows for of_rows, _ in self._kept), strict=True)
        scores = np.concatenate([scores for _, scores in self._kept])
        where = np.arange(scores.size).reshape(scores.shape)
        return Judged.of(Shown(*map(np.concatenate, columns)), where, scores)


class Judged(NamedTuple):
    """What R rows, in order of time, say of two orders."""

    ts_ms: Integers  # (R,)
    user: Integers  # (R,)
    numbers: Mapping[str, tuple[Numbers, Numbers]]  # (R,) each, as numbers_of has them

    @classmethod
    def of(cls, shown: Shown, where: Places, judged: Numbers) -> Judged:
        by_time = np.argsort(shown.ts_ms[where[:, 0]], kind="stable")
        where, first = where[by_time], where[by_time, 0]
        return cls(shown.ts_ms[first], shown.user[first], numbers_of(shown, where, judged[by_time]))

    def effective(self, known: int | None = None) -> float:
        """The effective size of the first ``known`` rows (default: all): for the order that has less."""
        return min(effective(w[:known]) for w in self.numbers["weight"])

    def difference(self, name: str = CHIEF, known: int | None = None) -> Estimate:
        """What the order that is judged earns more a row. Units are users, for a user's pages are alike."""
        judged, served = self.numbers[name]
        own = np.unique(self.user[:known], return_inverse=True)[1]
        found = ratio(np.bincount(own, (judged - served)[:known]), np.bincount(own))
        return found if self.effective(known) >= LEAST_EFFECTIVE else found._replace(effective=0.0)

    def table(self, arm: str) -> list[dict[str, Any]]:
        """A row for each estimator."""
        made = []
        for name, assumed in ASSUMES.items():
            found = self.difference(name)
            low, high = NOTHING if name in _BIASED else band(found)
            judged, served = (float(one.mean()) if len(one) else math.nan for one in self.numbers[name])
            told = {"judged": judged, "served": served, "difference": found.value, "low": low, "high": high}
            made.append({"arm": arm, "estimator": name, "assumes": assumed} | {k: plain(x) for k, x in told.items()})
        return made

    def looks(self, arm: str, every_ms: int) -> list[dict[str, Any]]:
        """The difference and its band from look to look, as :func:`millrace.commands.judge.arms.looks` has them."""
        if not len(self.ts_ms):
            return []
        seen = []
        for at_ms, known in look_times(self.ts_ms, every_ms):
            found = self.difference(known=known)
            told = zip(("difference", "difference_low", "difference_high"), (found.value, *band(found)), strict=True)
            seen.append({"at_ms": at_ms, "arm": arm} | {name: plain(x) for name, x in told})
        return seen

    def verdict(self, named: str, unit: str, pages: int) -> str:
        """What is said of one arm. ``pages``: all that were shown, drawn or not."""
        n, found, (low, high) = len(self.ts_ms), self.difference(), band(self.difference())
        if not found.said:
            size = self.effective()
            wanted = math.ceil(LEAST_EFFECTIVE * max(n / size if size else 0.0, math.factorial(SLOTS)))
            there = f"{n:,} of {pages:,} pages have a randomised row, with an effective sample size of {size:.0f}"
            also = f", from an effective number of {LEAST} users" if size >= LEAST_EFFECTIVE else ""
            share = f": {wanted * pages // n:,} pages as these" if n else ""
            more = f"It takes some {wanted:,} such rows{share}; MILLRACE_EXPLORE draws more"
            return f"{named}: this log cannot say. {there}, and {LEAST_EFFECTIVE} are needed{also}. {more}."
        between = f"({low:.4g} to {high:.4g})"
        if band(found).decided:
            more = "more" if found.value > 0 else "less"
            earned = f"{abs(found.value):.4g} {unit} {more} than the served order"
            return f"{named}: this model's order earns {earned} {between}."
        users = units_wanted(found)
        later = f" A difference like this would be decided with some {users:,} users." if users else ""
        return f"{named}: not decided with {n:,} rows of {found.n:,} users {between} {unit}.{later}"
