# core
"""The whole simulated shop: a pure function of the seed and event time.

A shopper clicks an item after a look at it, by the item's appeal (the examination hypothesis, Richardson et al. 2007,
Craswell et al. 2008)::

    P(click) = look(position) * sigmoid(b + a_u(t) + q_i(t) + s <x_u(t), y_i> - c (z_i - z_u)^2
                                        + m_kind log(min_order_i) + g [category_i is u's errand]
                                        + f 2^(-age_i(t) / h) + shift(page))

``x_u(t)`` drifts, ``q_i(t)`` rises and falls, and a shopper's errand (``mission``: the wanted category) changes every
few days. The terms with both u and i are not sums of effects of single fields, so a linear model on the fields stays
below the oracle's AUC. The last line is of feeds alone: items age in hours, and ``shift`` is what a page loses by its
length and by what was seen before it (:attr:`simulator.visits.Visits.shift`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, HOUR_MS
from simulator.catalogue import Catalogue, Inventory
from simulator.dice import F64, generator, normal, uniform
from simulator.late_orders import order_chance
from simulator.params import DEFAULT, PAGE, UTC_OFFSET_MS, Params
from simulator.shoppers import make_shoppers
from simulator.visits import Visits, make_visits, usual_depth

I64 = NDArray[np.int64]
UNKNOWN = -1
NEVER = 1e-6  # click probability of an item that the shop does not have
REFERENCE_DAYS = (20_003, 20_031, 20_061)
"""Local days (since 1970) whose pages set the mean click rate. They are arbitrary, a month apart, and never change."""

TRIES = 6
"""Draws for a slot until it has an item that is on sale and not on the page yet; then slots are filled in order."""


def day_of(ts_ms: int) -> int:
    """Local day (UTC+8), counted from the Unix epoch."""
    return (ts_ms + UTC_OFFSET_MS) // DAY_MS


def start_of(day: int) -> int:
    """Unix ms at which a local day begins."""
    return day * DAY_MS - UTC_OFFSET_MS


class Day:
    """The world on one local day: tastes, errands and fashions are constant within it. :meth:`World.day` makes it."""

    def __init__(self, world: World, number: int) -> None:
        p, shoppers, catalogue = world.params, world.shoppers, world.catalogue
        self.number, self.params = number, p
        self.start_ms = start_of(number)
        self.inventory: Inventory = catalogue.inventory(number)
        inventory = self.inventory
        self.seed, self.intercept = world.seed, world.intercept
        self.x: F64 = shoppers.settled + np.sqrt(p.drift_part) * shoppers.drift(number)  # (N, D)
        self.x *= p.taste / np.sqrt(self.x.shape[1])  # so that <x, y> has the deviation p.taste
        self.mission = shoppers.mission(number, world.preference)  # (N,)
        self.mission_parent = catalogue.parent_of[self.mission]
        self.parent = catalogue.parent_of[inventory.category]  # (n,)
        noon = self.start_ms + DAY_MS // 2
        age_days = np.maximum(0.0, (noon - inventory.born_ms) / DAY_MS)
        age_of_peak = age_days / inventory.peak_days
        fashion = p.fad * inventory.fad * age_of_peak * np.exp(1.0 - age_of_peak)
        staleness = p.stale * age_days / ((inventory.dies_ms - inventory.born_ms) / DAY_MS)
        self.appeal: F64 = (
            p.quality * inventory.quality
            + p.shop_quality * catalogue.shop_quality[inventory.shop]
            + p.season * catalogue.season(number)[inventory.category]
            + fashion
            - staleness
        )  # (n,) q_i(t)
        self.filler = uniform(world.seed, "filler", inventory.item_id) < p.filler_share  # (n,)
        self.appeal -= p.filler_loss * self.filler
        self.lots = np.log(inventory.min_order)
        mood = normal(world.seed, "mood", np.arange(shoppers.n), number)
        self.readiness = p.propensity * shoppers.propensity + p.mood * mood  # (N,) a_u(t)
        self.lot_effect = np.where(shoppers.business, p.bulk_business, p.bulk_consumer)  # (N,)
        self.price_level = shoppers.price_level
        self.look: F64 = (1.0 + np.arange(1000) / p.look_half) ** -p.look_power

    def rows(self, item_ids: I64) -> I64:
        """Rows of ``inventory`` for ids; :data:`UNKNOWN` for ids that the shop does not have."""
        ids = self.inventory.item_id
        at = np.minimum(np.searchsorted(ids, item_ids), len(ids) - 1)
        out: I64 = np.where(ids[at] == item_ids, at, UNKNOWN)
        return out

    def alive(self, ts_ms: int | I64, rows: I64 | slice = slice(None)) -> NDArray[np.bool_]:
        out: NDArray[np.bool_] = (self.inventory.born_ms[rows] <= ts_ms) & (ts_ms < self.inventory.dies_ms[rows])
        return out

    def affinity(self, user: int | I64, rows: I64, ts_ms: int | I64) -> F64:
        """Log-odds of a click given a look, without the page's shift. ``user`` and ``ts_ms``: one or (n,), like
        ``rows``. (n,)"""
        p = self.params
        category = self.inventory.category[rows]
        distance = self.inventory.price_z[rows] - self.price_level[user]
        score: F64 = (self.x[user] * self.inventory.vector[rows]).sum(axis=1)
        score += self.appeal[rows]
        score += self.readiness[user] + self.intercept
        score -= p.price * distance * distance
        score += self.lot_effect[user] * self.lots[rows]
        related = self.parent[rows] == self.mission_parent[user]
        score += p.mission_parent * related
        score += (p.mission - p.mission_parent) * (category == self.mission[user])
        if p.fresh:
            age_hours = np.maximum(0.0, (ts_ms - self.inventory.born_ms[rows]) / HOUR_MS)
            score += p.fresh * 2.0 ** (-age_hours / p.fresh_hours)
        return score

    def order_chance(self, user: int | I64, rows: I64) -> F64:
        """The true chance that a clicked item is ordered within 30 days, returned or not. Shapes as in
        :meth:`affinity`. (n,)"""
        goods = self.inventory
        level = self.price_level[user]
        return order_chance(self.seed, self.params, user, goods.item_id[rows], goods.price_z[rows], level)

    def click_probability(self, user: int | I64, rows: I64, position: I64, ts_ms: int | I64, shift: float | F64) -> F64:
        """True click probability of exposures. ``shift`` of their page, one or (n,); other shapes as in
        :meth:`affinity`. (n,)"""
        odds = self.affinity(user, rows, ts_ms) + shift
        out: F64 = self.look[np.minimum(position, 999)] / (1.0 + np.exp(-odds))
        if rows.min(initial=0) < 0:
            out = np.where(rows < 0, NEVER, out)
        return out


class PagePolicy:
    """Pages of the shop's previous recommender on one day: popular goods, goods of the shopper's preferred categories,
    random goods.

    The open loop shows these pages, and they calibrate the world's click rate. The recommender knows popularity and a
    buyer's usual categories, like an ordinary shop, but not the hidden taste vectors.
    """

    def __init__(self, world: World, day: Day) -> None:
        self._world, self._day = world, day
        inventory = day.inventory
        weight = np.exp(day.appeal)
        self._popular = np.cumsum(weight / weight.sum())  # (n,)
        # The same weights with the goods sorted by category: a category is an interval of the cumulative sum.
        self._by_category = np.argsort(inventory.category, kind="stable")
        lined = np.cumsum(weight[self._by_category])
        ends = np.searchsorted(inventory.category[self._by_category], np.arange(world.params.categories), side="right")
        self._lined = np.r_[0.0, lined]
        self._ends = self._lined[ends]
        self._starts = np.r_[0.0, self._ends[:-1]]
        self._filler = np.flatnonzero(day.filler)

    def pages(self, visits: Visits, views: I64) -> I64:
        """Rows of the day's goods for each of the page views ``views``, all distinct within a page; -1 behind a page
        that is shorter than the longest. (V, S)"""
        user, ts, size = visits.user[views], visits.start_ms[views], np.maximum(visits.size[views], PAGE)
        slot = np.arange(int(size.max(initial=PAGE)))
        there = slot < size[:, None]  # (V, S)
        rows = np.full(there.shape, -1)
        for attempt in range(TRIES):
            open_ = np.nonzero((rows < 0) & there)
            if not len(open_[0]):
                return rows
            v, k = open_
            keys = (visits.day, views[v], slot[k], attempt)
            rows[open_] = self._draw(user[v], size[v] > PAGE, keys)
            rows = np.where((rows >= 0) & self._day.alive(ts[:, None], rows), rows, -1)
            rows = _without_repeats(rows)
        for v in np.unique(np.nonzero((rows < 0) & there)[0]):
            on_sale = np.flatnonzero(self._day.alive(int(ts[v])))
            rest = np.setdiff1d(on_sale, rows[v])
            empty = np.flatnonzero((rows[v] < 0) & there[v])
            rows[v, empty[: len(rest)]] = rest[: len(empty)]
        return rows

    def _draw(self, user: I64, long: NDArray[np.bool_], keys: tuple[Any, ...]) -> I64:
        p, seed = self._world.params, self._world.seed
        which = uniform(seed, "page.source", *keys)
        throw = uniform(seed, "page.item", *keys)
        n = self._day.inventory.n
        out = np.minimum((throw * n).astype(np.int64), n - 1)
        popular = which < p.page_popular
        out[popular] = np.searchsorted(self._popular, throw[popular], side="right")
        preferred = (which >= p.page_popular) & (which < p.page_popular + p.page_preferred)
        wish = uniform(seed, "page.category", *keys)[preferred]
        category = (self._world.preference[user[preferred]] <= wish[:, None]).sum(axis=1)
        start, end = self._starts[category], self._ends[category]
        at = np.searchsorted(self._lined, start + throw[preferred] * (end - start), side="right") - 1
        out[preferred] = self._by_category[np.minimum(at, n - 1)]
        if p.page_filler and len(self._filler):
            filled = long & (uniform(seed, "page.filler", *keys) < p.page_filler)
            out[filled] = self._filler[(throw[filled] * len(self._filler)).astype(np.int64)]
        return np.minimum(out, n - 1)


class World:
    """The shop ``seed`` on any local day, with ``users`` visitors on an average one. Keeps the last three days asked
    for."""

    def __init__(self, seed: int, users: int = 4000, params: Params = DEFAULT) -> None:
        self.seed, self.params = seed, params
        self.shoppers = make_shoppers(seed, users, params)
        self.catalogue = Catalogue(seed, params)
        # An errand's category follows lasting taste and the category's share of new items.
        fit = self.shoppers.settled @ self.catalogue.category_vector.T / np.sqrt(self.shoppers.settled.shape[1])
        weight = self.catalogue.share * np.exp(2.0 * fit)  # (N, C)
        self.preference: F64 = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
        self.preference[:, -1] = 1.0
        self._depth = usual_depth(self.shoppers, params)
        self.intercept = 0.0
        self._days: OrderedDict[int, Day] = OrderedDict()
        self.intercept = self._solve_intercept()
        self._days.clear()

    def day(self, number: int) -> Day:
        known = self._days.get(number)
        if known is None:
            known = self._days[number] = Day(self, number)
            if len(self._days) > 3:
                self._days.popitem(last=False)
        return known

    def visits(self, number: int) -> Visits:
        return make_visits(self.seed, self.shoppers, number, self.params, self._depth)

    def _solve_intercept(self) -> float:
        """The intercept with which the previous recommender's pages are clicked at ``params.click_rate``."""
        affinities, looks = [], []
        for number in REFERENCE_DAYS:
            day, visits = self.day(number), self.visits(number)
            rng = generator(self.seed, "reference", number)
            views = rng.choice(visits.n, min(visits.n, 6000), replace=False)
            rows = PagePolicy(self, day).pages(visits, views)  # (V, S)
            at, position = np.nonzero(np.arange(rows.shape[1]) < visits.size[views][:, None])
            view = views[at]
            affinity = day.affinity(visits.user[view], rows[at, position], visits.start_ms[view])
            affinities.append(affinity + visits.shift[view])
            looks.append(day.look[position])
        odds, look = np.concatenate(affinities), np.concatenate(looks)
        low, high = -10.0, 5.0
        for _ in range(40):
            middle = (low + high) / 2
            rate = float((look / (1.0 + np.exp(-(odds + middle)))).mean())
            low, high = (middle, high) if rate < self.params.click_rate else (low, middle)
        return (low + high) / 2


def _without_repeats(rows: I64) -> I64:
    """The second and later occurrences of an item in a page become -1."""
    order = np.argsort(rows, axis=1, kind="stable")
    lined = np.take_along_axis(rows, order, axis=1)
    again = np.zeros(rows.shape, bool)
    again[:, 1:] = lined[:, 1:] == lined[:, :-1]
    repeated = np.zeros(rows.shape, bool)
    np.put_along_axis(repeated, order, again, axis=1)
    return np.where(repeated, -1, rows)
