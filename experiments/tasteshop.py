# core
"""A shop with visitors whose taste is known, so that a page's order can be judged by it.

::

    catalogue   5,000 items in 20 categories, in an order that says nothing of either, with a price each
    visitor     likes two categories that are his own       p(click | item) = LIKED in these, else OTHER;
                                                             half of it where the price is above the middle one
    page        items in their order ──► AUC of liked categories against others, their share of the first 20

An order by chance has an AUC of .5, whatever the taste; so has the catalogue's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SCHEMA = """\
name = "own-shop"
fields = [
  {name = "user_id", of = "user"},
  {name = "country", of = "user"},
  {name = "age", of = "user", kind = "numeric"},
  {name = "item_id", of = "item"},
  {name = "category", of = "item"},
  {name = "price", of = "item", kind = "numeric", transform = "log"},
]
[windows]
days = [1, 7]
keys = [{columns = ["item_id"]}, {columns = ["category"]}, {columns = ["user_id", "category"], parent = ["category"]}]
"""
"""Twelve lines. Country and age say nothing of a visitor's taste; a page that lacks its user lacks them."""

CATEGORIES, LIKES = 20, 2
LIKED, OTHER = 0.4, 0.02
COUNTRIES = ("at", "ch", "de", "fr", "it")
FIRST = 20
"""Items of a page that a visitor looks at."""


class Goods(NamedTuple):
    """The catalogue, in its own order."""

    ids: list[str]
    category: NDArray[np.intp]  # (n,)
    price: NDArray[np.float64]  # (n,)

    def attributes(self, n: int) -> dict[str, Any]:
        """What is sent of item n."""
        return {"category": f"c{self.category[n]:02}", "price": float(self.price[n])}


def catalogue(items: int, seed: int) -> Goods:
    """A made catalogue."""
    random = np.random.default_rng([seed, 1])
    price = np.asarray(np.exp(random.normal(3, 0.8, items)).round(2), np.float64)
    return Goods([f"item-{n:05}" for n in range(items)], random.integers(0, CATEGORIES, items), price)


class Taste:
    """Which categories each visitor likes, and how likely he clicks."""

    def __init__(self, goods: Goods, visitors: int, seed: int) -> None:
        random = np.random.default_rng([seed, 2])
        self.goods = goods
        self.likes = np.array([random.choice(CATEGORIES, LIKES, replace=False) for _ in range(visitors)])  # (v, LIKES)
        self._at = {item: n for n, item in enumerate(goods.ids)}
        self._cheap = goods.price <= np.median(goods.price)

    def attributes(self, visitor: int) -> dict[str, Any]:
        """What is sent of a visitor."""
        return {"country": COUNTRIES[visitor % len(COUNTRIES)], "age": 18 + visitor * 7 % 60}

    def places(self, items: Sequence[str]) -> NDArray[np.intp]:
        """Where items stand in the catalogue. (m,)"""
        return np.array([self._at[item] for item in items], np.intp)

    def liked(self, visitor: int, places: NDArray[np.intp]) -> NDArray[np.bool_]:
        """(m,)"""
        return np.isin(self.goods.category[places], self.likes[visitor])

    def chance(self, visitor: int, places: NDArray[np.intp]) -> NDArray[np.float64]:
        """The true probability of a click on each item. (m,)"""
        p = np.where(self.liked(visitor, places), LIKED, OTHER)
        return np.where(self._cheap[places], p, p / 2)


class Followed(NamedTuple):
    """How far an order follows the taste: means over visitors."""

    auc: float  # of liked against other categories, by place on the page; NaN where no page has both
    first: float  # share of the first items whose category is liked


def followed(taste: Taste, pages: Sequence[tuple[int, Sequence[str]]]) -> Followed:
    """Judges pages, each a visitor and the ids of his items in their order.

    >>> goods = Goods(["a", "b", "c", "d"], np.array([0, 1, 2, 3]), np.array([1.0, 1.0, 1.0, 1.0]))
    >>> taste = Taste(goods, 1, 0)
    >>> taste.likes[0] = [1, 2]
    >>> followed(taste, [(0, ["b", "c", "a", "d"])])
    Followed(auc=1.0, first=0.5)
    >>> followed(taste, [(0, ["a", "b", "c", "d"])])
    Followed(auc=0.5, first=0.5)
    """
    aucs, firsts = [], []
    for visitor, items in pages:
        liked = taste.liked(visitor, taste.places(items))
        firsts.append(liked[:FIRST].mean() if len(liked) else 0.0)
        wanted, others = int(liked.sum()), int((~liked).sum())
        if wanted and others:
            # Of each liked item, how many others come after it: the Mann-Whitney statistic.
            after = others - np.cumsum(~liked)
            aucs.append(float(after[liked].sum() / (wanted * others)))
    return Followed(float(np.mean(aucs)) if aucs else float("nan"), float(np.mean(firsts)) if firsts else 0.0)
