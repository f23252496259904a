# core
"""A shopper's reaction to a page: clicks, the actions that follow them, and the times of both.

The random draws depend on user, day, session, page and position, not on the item: two policies that show different
items meet the same draws (common random numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.dice import F64, normal, uniform
from simulator.params import Params

I64 = NDArray[np.int64]
NEVER_MS = 0  # in arrays of times: no such action


@dataclass(frozen=True)
class Reaction:
    """Times (Unix ms) of the actions on each exposure; 0: none. Arrays (n,)."""

    click_ms: I64
    collect_ms: I64
    cart_ms: I64
    purchase_ms: I64

    def times(self, row: int) -> tuple[int, int, int, int]:
        """All four of one exposure."""
        return (
            int(self.click_ms[row]),
            int(self.collect_ms[row]),
            int(self.cart_ms[row]),
            int(self.purchase_ms[row]),
        )


def react(
    seed: int, p: Params, chance: F64, business: Any, ts_ms: Any, position: I64, keys: tuple[Any, ...]
) -> Reaction:
    """Draws the reactions to ``n`` exposures.

    Args:
        chance: (n,) true click probability.
        business: whether the shopper is a business buyer; one or (n,).
        ts_ms: when the page was seen; one or (n,).
        position: (n,) slot on the page, from 0.
        keys: user, day, session, page; each one or (n,).
    """
    n = len(chance)
    click = np.zeros((4, n), np.int64)
    hit = np.flatnonzero(uniform(seed, "click", *keys, position) < chance)
    if not len(hit):
        return Reaction(*click)
    at: tuple[Any, ...] = tuple(k[hit] if np.ndim(k) else k for k in (*keys, position))
    kind = np.where(business[hit] if np.ndim(business) else business, 0, 1)
    seen = (ts_ms[hit] if np.ndim(ts_ms) else ts_ms) + position[hit] * p.glance_ms

    def delay(what: str, median: float, spread: float) -> F64:
        out: F64 = median * np.exp(spread * normal(seed, what + ".delay", *at)) + 1.0
        return out

    def done(what: str, rates: tuple[float, float]) -> NDArray[np.bool_]:
        out: NDArray[np.bool_] = uniform(seed, what, *at) < np.array(rates)[kind]
        return out

    clicked = seen + delay("click", p.click_median_ms, p.click_spread)
    limit = (ts_ms[hit] if np.ndim(ts_ms) else ts_ms) + p.horizon_ms
    clicked = np.minimum(clicked, limit)
    collected = clicked + delay("collect", p.cart_median_ms, p.cart_spread)
    carted = clicked + delay("cart", p.cart_median_ms, p.cart_spread)
    bought = carted + delay("purchase", p.purchase_median_ms, p.purchase_spread)
    collects = done("collect", p.collect_rate) & (collected <= limit)
    carts = done("cart", p.cart_rate) & (carted <= limit)
    buys = carts & done("purchase", p.purchase_rate) & (bought <= limit)
    click[0, hit] = clicked
    for row, (happens, when) in enumerate(((collects, collected), (carts, carted), (buys, bought)), 1):
        click[row, hit] = np.where(happens, when, NEVER_MS)
    return Reaction(*click)
