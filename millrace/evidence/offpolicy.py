# core
"""What pages would have earned in another order: off-policy estimators, for pages whose order was left to chance.

**What a log can say.** It has the features of items that were shown, and of no others. So it says nothing of recall,
nor of which items a model would have brought onto a page. It can say what *order* earns more. Judged are rows of m
items that came next to each other by chance: as a model would put these m. The items above stay as they were. The order
of m items by the model that served is judged in the same way, so the two are compared on the same pages.

**The propensity of an order.** Slot after slot an item is drawn of those left, with its strength theta over the sum of
all. The logged propensities give the strengths, whatever scores and temperature were, and the propensity of each
order::

    theta_k = o_k D_k     D_1 = 1,  D_(k+1) = D_k (1 - o_k)     o_k: propensity of item k in slot k, given those above
    P(s)    = product over k of theta_s(k) / (D_(m+1) + theta_s(k) + ... + theta_s(m)), over its sum over all orders s

This is the propensity of s given that these m items come, and given all above them. Any order of them has one: so a row
that was drawn has support, and one that was not drawn has none. A page as ranked, and the page's first slots until
chance has moved something, are not drawn: their propensities are those of a coin, too.

**Estimators.** A is the logged order, t the one that is judged, r_k the reward in slot k. Each gives a number a row;
their mean is the value of t. w_k is [A = t down to slot k] / P(A down to slot k), and u_k is [A_k = t_k] / P(A_k in
slot k). Estimates of rewards are q_k, of A_k, and v_k, of t_k. ::

    IPS          w_m (r_1 + ... + r_m)                     nothing is assumed
    SNIPS        the same over the mean of w_m             nothing; biased by less and less
    DM           v_1 + ... + v_m                           rewards are as estimated
    DRos         v + w (r - q), w = L w_m / (w_m^2 + L)    one of both; L below infinity trades bias for variance
    IIPS         sum of u_k r_k                            an item's reward does not depend on the other items
    RIPS         sum of w_k r_k                            it depends on those above alone
    cascade-DR   sum of w_k (r_k - q_k) + w_(k-1) v_k      the same; estimates spare variance, and may be wrong

Horvitz and Thompson (1952); Swaminathan and Joachims (2015, SNIPS); Dudik, Langford and Li (2011, doubly robust); Su,
Dimakopoulou, Krishnamurthy and Dudik (2020, DRos); Li and others (2018, IIPS); McInerney and others (2020, RIPS);
Kiyohara and others (2022, cascade-DR).

**A logging model that learns.** What it learns from a page changes the propensities of later pages, which are logged.
Given all that came before, each number's mean is the value on its page. So sums of numbers less values are a
martingale, and the bands of :mod:`millrace.evidence.sequences` hold at all looks together for the mean value of
the pages that came (Waudby-Smith, Wu, Ramdas, Karampatziakis and Mineiro 2022, "Anytime-valid off-policy inference for
contextual bandits"). They are asymptotic, and few rows of large weight are not yet normal: nothing is said below
:data:`LEAST_EFFECTIVE`.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Order = NDArray[np.intp]

LEAST_EFFECTIVE = 100
"""Rows by effective size before anything is said."""


class OrderOdds(NamedTuple):
    """Of the logged order of n rows, given which m items came."""

    above: Numbers  # (n, m) of the items down to each slot, in this order
    alone: Numbers  # (n, m) of each item in its slot


class Weights(NamedTuple):
    """Of n rows for one order that is judged: 0 where it is not the logged one, else 1 over the propensity."""

    above: Numbers  # (n, m) w_k
    alone: Numbers  # (n, m) u_k

    @property
    def whole(self) -> Numbers:
        """w_m. (n,)"""
        whole: Numbers = self.above[:, -1]
        return whole


def order_odds(odds: NDArray[np.floating]) -> OrderOdds:
    """The propensities of orders of m items, as the module's text has them. m is small: all m! orders are gone through.

    Args:
        odds: (n, m) of each item in its slot, given those above. Below 1 but in the last slot.

    >>> order_odds(np.array([[1 / 7, 1 / 6, 1 / 5]])).above.round(3)
    array([[0.333, 0.167, 0.167]])
    """
    o = np.asarray(odds, np.float64)
    n, m = o.shape
    left = np.cumprod(np.hstack([np.ones((n, 1)), 1 - o]), axis=1)  # (n, m + 1) D
    theta = o * left[:, :-1]
    orders = np.array(list(itertools.permutations(range(m))))  # (m!, m), as logged first
    each = theta[:, orders]  # (n, m!, m)
    sums = np.cumsum(each[..., ::-1], axis=2)[..., ::-1] + left[:, -1, None, None]
    chance = np.prod(each / sums, axis=2)
    chance /= chance.sum(1, keepdims=True)  # (n, m!)
    same = orders == np.arange(m)
    return OrderOdds(chance @ np.logical_and.accumulate(same, axis=1), chance @ same)


def weights(odds: OrderOdds, order: Order) -> Weights:
    """Of an order that is judged. ``order``: (n, m) the logged slot of the item that it puts into each slot. What it
    says of a row may not depend on the order that was logged: break ties by the items."""
    same = order == np.arange(order.shape[1])
    return Weights(np.logical_and.accumulate(same, axis=1) / odds.above, same / odds.alone)


def effective(w: Numbers) -> float:
    """How many rows of equal weight would tell as much: (sum w)^2 / sum w^2."""
    return float(w.sum() ** 2 / np.square(w).sum()) if w.any() else 0.0


# Each of the following gives a number a row, (n,), whose mean is the value. Rewards r, estimates q and v, weights w:
# of whole rows (n,), for the last two of slots (n, m).


def ips(w: Numbers, r: Numbers) -> Numbers:
    return w * r


def snips(w: Numbers, r: Numbers) -> Numbers:
    """Its mean is the ratio sum(w r) / sum(w); its squares are those of the linearised ratio."""
    if not w.any():
        return np.full_like(w, np.nan)
    value = (w * r).sum() / w.sum()
    linear: Numbers = value + w * (r - value) / w.mean()
    return linear


def dros(w: Numbers, r: Numbers, q: Numbers, v: Numbers, shrink: float = math.inf) -> Numbers:
    """``shrink``: L above. Infinity is plain doubly robust; 0 is the direct method, whose number is v."""
    return v + _shrunk(w, shrink) * (r - q)


def _shrunk(w: Numbers, shrink: float) -> Numbers:
    return w if math.isinf(shrink) else shrink * w / np.maximum(w * w + shrink, np.finfo(float).tiny)


def shrinkage(w: Numbers, r: Numbers, q: Numbers, v: Numbers) -> float:
    """L with the least estimated squared error, bias^2 + variance (Su et al. 2020, section 5, with the direct estimate
    of the bias): of 30 values from far below the smallest squared weight to far above the largest, and infinity."""
    there = w[w > 0]
    if not len(there):
        return 0.0
    low, high = np.quantile(there, [0.05, 0.95])
    grid: list[float] = [*np.geomspace((0.01 * low) ** 2, (100 * high) ** 2, 30).tolist(), math.inf]

    def error(shrink: float) -> float:
        bias = float(np.mean((_shrunk(w, shrink) - w) * (r - q)))
        return bias**2 + float(np.var(dros(w, r, q, v, shrink))) / len(w)

    return min(grid, key=error)


def slots(w: Numbers, r: Numbers) -> Numbers:
    """IIPS with the weights ``alone``, RIPS with ``above``."""
    earned: Numbers = (w * r).sum(1)
    return earned


def cascade_dr(above: Numbers, r: Numbers, q: Numbers, v: Numbers) -> Numbers:
    before = np.hstack([np.ones((len(above), 1)), above[:, :-1]])
    earned: Numbers = (above * (r - q) + before * v).sum(1)
    return earned
