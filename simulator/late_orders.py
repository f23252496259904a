# core
"""Orders that come hours and weeks after the click, and returns: what a shopper buys, when, and its true chance.

::

    click ──► order, with the chance sigmoid(b + liking of the item + purse of the shopper - dearness) F(30 days)
                │   log-normal delay; a business buyer's order of a weekend comes on Monday
                └──► return, with a fixed chance, before 30 days after the click have passed

The draws have the keys of :mod:`simulator.reaction`. n clicked exposures.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, HOUR_MS
from simulator.dice import F64, normal, uniform
from simulator.params import UTC_OFFSET_MS, Params

I64 = NDArray[np.int64]
LAST_MS = 27 * DAY_MS
"""Later orders do not happen: with a weekend the last one comes within 30 days."""
OPEN_MS = 30 * DAY_MS - HOUR_MS
"""Goods are not returned later than this after the click."""


@dataclass(frozen=True)
class Orders:
    """Of n clicks. ``order_ms``, ``refund_ms``: Unix ms, 0: none. ``chance``: that it is ordered and kept."""

    order_ms: I64
    refund_ms: I64
    chance: F64


def order_chance(seed: int, p: Params, user: Any, item_id: I64, price_z: F64, price_level: Any) -> F64:
    """The chance that a clicked item is ordered within 30 days. (n,)"""
    odds = np.log(p.order_rate / (1 - p.order_rate))
    odds = odds + p.order_item * normal(seed, "order.item", item_id) + p.order_user * normal(seed, "order.user", user)
    odds = odds - p.order_dear * (price_z - price_level)
    within = NormalDist().cdf(np.log(LAST_MS / p.order_median_ms) / p.order_spread)
    out: F64 = within / (1.0 + np.exp(-odds))
    return out


def draw_orders(seed: int, p: Params, chance: F64, business: Any, click_ms: I64, keys: tuple[Any, ...]) -> Orders:
    """Draws what comes of n clicks.

    Args:
        chance: (n,) :func:`order_chance`.
        business: whether the shopper is a business buyer; one or (n,).
        click_ms: (n,)
        keys: user, day, session, page, position; each one or (n,).
    """
    limit = np.log(LAST_MS / p.order_median_ms) / p.order_spread
    within = NormalDist().cdf(limit)
    # The delay given that it ends in time: the normal quantile of a uniform share of what lies below the limit.
    z = np.array([NormalDist().inv_cdf(u) for u in within * (1e-9 + (1 - 2e-9) * uniform(seed, "order.delay", *keys))])
    order_ms = click_ms + (p.order_median_ms * np.exp(p.order_spread * z)).astype(np.int64) + 1
    weekday = ((order_ms + UTC_OFFSET_MS) // DAY_MS + 3) % 7  # 0: Monday
    order_ms = order_ms + np.where(np.asarray(business) & (weekday > 4), 7 - weekday, 0) * DAY_MS
    bought = uniform(seed, "order", *keys) < chance
    returned = bought & (uniform(seed, "return", *keys) < p.return_rate)
    left = click_ms + OPEN_MS - order_ms
    refund_ms = (
        order_ms + 1 + (uniform(seed, "return.delay", *keys) * np.minimum(left - 1, 10 * DAY_MS)).astype(np.int64)
    )
    return Orders(np.where(bought, order_ms, 0), np.where(returned, refund_ms, 0), chance * (1 - p.return_rate))
