# core
"""Pages of the shop's previous recommender: popular goods, goods of the shopper's preferred categories, random goods.

The open loop shows these pages, and the world's click rate is calibrated on them. The recommender knows what an
ordinary shop knows, popularity and a buyer's usual categories, and nothing about the hidden taste vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.dice import uniform
from simulator.params import PAGE
from simulator.visits import Visits

if TYPE_CHECKING:
    from simulator.world import Day, World

I64 = NDArray[np.int64]
TRIES = 6
"""Draws for a slot until it has an item that is on sale and not on the page yet; then slots are filled in order."""


class PagePolicy:
    """The previous recommender on one day."""

    def __init__(self, world: World, day: Day) -> None:
        self._world, self._day = world, day
        goods = day.goods
        weight = np.exp(day.appeal)
        self._popular = np.cumsum(weight / weight.sum())  # (n,)
        # The same weights with the goods sorted by category: a category is an interval of the cumulative sum.
        self._by_category = np.argsort(goods.category, kind="stable")
        lined = np.cumsum(weight[self._by_category])
        ends = np.searchsorted(goods.category[self._by_category], np.arange(world.params.categories), side="right")
        self._lined = np.r_[0.0, lined]
        self._ends = self._lined[ends]
        self._starts = np.r_[0.0, self._ends[:-1]]

    def pages(self, visits: Visits, views: I64) -> I64:
        """Rows of the day's goods for each of the page views ``views``, all distinct within a page. (V, PAGE)"""
        user, ts = visits.user[views], visits.start_ms[views]
        rows = np.full((len(views), PAGE), -1)
        slot = np.arange(PAGE)
        for attempt in range(TRIES):
            open_ = np.nonzero(rows < 0)
            if not len(open_[0]):
                return rows
            v, k = open_
            keys = (visits.day, views[v], slot[k], attempt)
            rows[open_] = self._draw(user[v], keys)
            rows = np.where(self._day.alive(ts[:, None], rows), rows, -1)
            rows = _without_repeats(rows)
        for v in np.unique(np.nonzero(rows < 0)[0]):
            on_sale = np.flatnonzero(self._day.alive(int(ts[v])))
            rest = np.setdiff1d(on_sale, rows[v])
            empty = np.flatnonzero(rows[v] < 0)
            rows[v, empty] = rest[: len(empty)]
        return rows

    def _draw(self, user: I64, keys: tuple[Any, ...]) -> I64:
        """One item for each slot. (m,)"""
        p, seed = self._world.params, self._world.seed
        which = uniform(seed, "page.source", *keys)
        throw = uniform(seed, "page.item", *keys)
        n = self._day.goods.n
        out = np.minimum((throw * n).astype(np.int64), n - 1)
        popular = which < p.page_popular
        out[popular] = np.searchsorted(self._popular, throw[popular], side="right")
        preferred = (which >= p.page_popular) & (which < p.page_popular + p.page_preferred)
        wish = uniform(seed, "page.category", *keys)[preferred]
        category = (self._world.preference[user[preferred]] <= wish[:, None]).sum(axis=1)
        start, end = self._starts[category], self._ends[category]
        at = np.searchsorted(self._lined, start + throw[preferred] * (end - start), side="right") - 1
        out[preferred] = self._by_category[np.minimum(at, n - 1)]
        return np.minimum(out, n - 1)


def _without_repeats(rows: I64) -> I64:
    """The second and later occurrences of an item in a page become -1."""
    order = np.argsort(rows, axis=1, kind="stable")
    lined = np.take_along_axis(rows, order, axis=1)
    again = np.zeros(rows.shape, bool)
    again[:, 1:] = lined[:, 1:] == lined[:, :-1]
    repeated = np.zeros(rows.shape, bool)
    np.put_along_axis(repeated, order, again, axis=1)
    return np.where(repeated, -1, rows)
