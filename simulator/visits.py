# core
"""A day's page views in time order: who comes, when, and how far they scroll.

They depend on the seed and the day alone. A good page makes nobody look longer, so the click rates of two page policies
can be compared exposure by exposure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, HOUR_MS
from simulator.dice import F64, generator, normal_quantiles, uniform
from simulator.params import PAGE, UTC_OFFSET_MS, Params
from simulator.shoppers import Shoppers

I64 = NDArray[np.int64]
STEPS = 24  # number of quantiles that replace the day's random part in the mean over it

# Relative traffic of each local hour. Buyers keep office hours with a lunch break, and are flatter at the weekend;
# consumers come at lunch and in the evening.
WORKDAY = (2, 1, 1, 1, 1, 2, 5, 18, 50, 90, 100, 85, 50, 70, 95, 95, 90, 75, 40, 32, 32, 28, 16, 6)
WEEKEND = (4, 2, 1, 1, 1, 2, 5, 14, 35, 60, 70, 65, 50, 55, 65, 65, 60, 55, 50, 55, 55, 45, 28, 12)
CONSUMER = (12, 6, 3, 2, 2, 3, 8, 20, 30, 38, 42, 50, 62, 52, 42, 40, 42, 48, 58, 78, 95, 100, 75, 35)


@dataclass(frozen=True)
class Visits:
    """Page views of one day, arrays by row, ascending in ``start_ms``."""

    day: int
    user: I64  # index of the shopper
    session: I64  # number within the day
    page: I64  # 0, 1, ... within the session
    start_ms: I64
    size: I64  # how many items are looked through, at most those of a page
    shift: F64  # log-odds that each click on the page gains: who has seen much tires, long pages divide attention

    @property
    def n(self) -> int:
        return len(self.user)


def weekday(day: int) -> int:
    """0 is Monday; ``day`` counts from the Unix epoch, a Thursday."""
    return (day + 3) % 7


def make_visits(seed: int, shoppers: Shoppers, day: int, p: Params, median: float) -> Visits:
    """The page views of a local day; ``median`` is :func:`usual_depth`."""
    rng = generator(seed, "visits", day)
    n = shoppers.n
    comes = np.flatnonzero(rng.random(n) < shoppers.daily)
    depth = p.depth_user * shoppers.depth + p.depth_day * rng.standard_normal(n)
    depths = np.clip(np.round(median * np.exp(depth)), 1, p.depth_most)
    passer = rng.geometric(1.0 / p.passing_exposures, n)
    depths = np.where(rng.random(n) < p.passing, passer, depths)
    looked: I64 = depths[comes].astype(np.int64)  # (U,) exposures of each
    length = _lengths(seed, p, comes, day)  # (U, L)
    ends = np.cumsum(length, axis=1)
    pages: I64 = (ends < looked[:, None]).sum(axis=1) + 1  # (U,)

    owner = np.repeat(np.arange(len(comes)), pages)  # (P,)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(pages) - pages, pages)
    left = looked[owner] - (ends - length)[owner, nth]
    size = np.maximum(np.minimum(left, length[owner, nth]), p.view_least)
    # About one more session for every five pages.
    sessions = 1 + rng.poisson(0.2 * (pages - 1))
    turn = np.minimum((rng.random(len(owner)) * sessions[owner]).astype(np.int64), sessions[owner] - 1)
    order = np.lexsort((nth, turn, owner))
    owner, size, turn = owner[order], size[order], turn[order]
    fresh = np.r_[True, (owner[1:] != owner[:-1]) | (turn[1:] != turn[:-1])]
    session = np.cumsum(fresh) - 1
    first = np.flatnonzero(fresh)
    page = np.arange(len(owner)) - first[session]
    seen = np.cumsum(size) - size
    seen -= seen[first][session]  # (P,) items before, in the session
    shift = -p.tire * np.log1p(seen / PAGE) - p.crowd * np.log(size / PAGE)

    hour = _hours(rng.random(len(first)), shoppers.business[comes[owner[first]]], day)
    start = hour * HOUR_MS
    # The next page is asked for when this one is scrolled through: some 1.5 s an item, log-normal, with pauses.
    gap = size * p.glance_ms * np.exp(0.5 * rng.standard_normal(len(owner)))
    before = np.cumsum(gap) - gap
    within = before - before[first][session]
    last = np.r_[first[1:], len(owner)] - 1
    # Nobody scrolls past midnight: who would comes earlier, by twice as much. By as much all would end at one moment.
    overrun = np.maximum(0.0, start + within[last] + HOUR_MS / 60 - DAY_MS)
    at = np.maximum(0.0, (start - 2 * overrun)[session] + within)
    start_ms = day * DAY_MS - UTC_OFFSET_MS + at.astype(np.int64)
    order = np.argsort(start_ms, kind="stable")
    return Visits(day, comes[owner][order], session[order], page[order], start_ms[order], size[order], shift[order])


def _lengths(seed: int, p: Params, users: I64, day: int) -> I64:
    """How many items each page of users has, as many pages as the deepest may need. (U, L)"""
    least, most = p.page_sizes
    nth = np.arange(-(-p.depth_most // least))
    throw = uniform(seed, "page.length", users[:, None], day, nth) if most > least else np.zeros((len(users), len(nth)))
    out: I64 = np.round(least * (most / least) ** throw).astype(np.int64)
    return out


def usual_depth(shoppers: Shoppers, p: Params) -> float:
    """The median exposures a day of those who do not only pass by, such that the mean over all is ``p.exposures``."""
    target = (p.exposures - p.passing * p.passing_exposures) / (1.0 - p.passing)
    noise = np.exp(p.depth_day * normal_quantiles(STEPS))
    factor = np.exp(p.depth_user * shoppers.depth)[:, None] * noise  # (N, STEPS)
    weight = shoppers.daily / (STEPS * shoppers.daily.sum())
    low, high = 1.0, float(p.depth_most)
    for _ in range(16):
        middle = (low + high) / 2
        mean = float(weight @ np.clip(middle * factor, 1, p.depth_most).sum(axis=1))
        low, high = (middle, high) if mean < target else (low, middle)
    return (low + high) / 2


def _hours(throw: F64, business: NDArray[np.bool_], day: int) -> F64:
    """Local time of day in hours, by the rhythm of each kind of shopper."""
    out = np.empty(len(throw))
    for who, rhythm in ((business, WORKDAY if weekday(day) < 5 else WEEKEND), (~business, CONSUMER)):
        edges = np.r_[0.0, np.cumsum(rhythm)] / np.sum(rhythm)
        out[who] = np.interp(throw[who], edges, np.arange(25.0))
    return out
