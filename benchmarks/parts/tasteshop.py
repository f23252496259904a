# shell
"""A shop with visitors whose taste is known, so that a page's order can be judged by it; and its visitors, over HTTP.

::

    catalogue   5,000 items in 20 categories, in an order that says nothing of either, with a price each
    visitor     likes two categories that are his own       p(click | item) = LIKED in these, else OTHER
    page        items in their order ──► AUC of liked categories against others, their share of the first 20
    visits      come at random moments: page ──► exposure ──► clicks by taste

An order by chance has an AUC of .5, whatever the taste; so has the catalogue's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.runs import BenchError
from millrace.basics.ranking_metrics import auc

if TYPE_CHECKING:
    from millrace_client import AsyncMillrace

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
READY_SECONDS = 300.0
HEAVY, HEAVY_SHARE, GUESTS = 0, 0.05, 0.03
"""The visitor who comes most of all, his share of pages, and that of people of whom the shop was not told."""


class Taste:
    """The catalogue, which categories each visitor likes, and how likely he clicks."""

    def __init__(self, items: int, visitors: int, seed: int) -> None:
        random = np.random.default_rng([seed, 1])
        self.price = np.exp(random.normal(3, 0.8, items)).round(2)  # (items,)
        self.ids, self.category = [f"item-{n:05}" for n in range(items)], random.integers(0, CATEGORIES, items)
        random = np.random.default_rng([seed, 2])
        self.likes = np.array([random.choice(CATEGORIES, LIKES, replace=False) for _ in range(visitors)])  # (v, LIKES)
        self._at = {item: n for n, item in enumerate(self.ids)}

    def places(self, items: Sequence[str]) -> NDArray[np.intp]:
        """Where items stand in the catalogue. (m,)"""
        return np.array([self._at[item] for item in items], np.intp)

    def liked(self, visitor: int, places: NDArray[np.intp]) -> NDArray[np.bool_]:
        """(m,)"""
        return np.isin(self.category[places], self.likes[visitor])


class Followed(NamedTuple):
    """How far an order follows the taste: means over visitors."""

    auc: float  # of liked against other categories, by place on the page; NaN where no page has both
    first: float  # share of the first items whose category is liked


def followed(taste: Taste, pages: Sequence[tuple[int, Sequence[str]]]) -> Followed:
    """Judges pages, each a visitor and the ids of his items in their order."""
    liked = [taste.liked(visitor, taste.places(items)) for visitor, items in pages]
    aucs = [auc(-np.arange(len(one)), one) for one in liked if 0 < one.sum() < len(one)]
    firsts = [one[:FIRST].mean() if len(one) else 0.0 for one in liked]
    return Followed(float(np.mean(aucs)) if aucs else float("nan"), float(np.mean(firsts)) if firsts else 0.0)


class Visitors:
    """Everybody who comes to a shop, one page a visit. They are honest: each looks at the first items and clicks what
    he likes. The same seed gives the same visits, and the same luck on the same page."""

    def __init__(self, shop: AsyncMillrace, taste: Taste, pages_per_s: float, seed: int) -> None:
        self._shop, self._taste, self._pages_per_s = shop, taste, pages_per_s
        self._random = np.random.default_rng([seed, 3])
        self.pages = self.exposures = self.clicks = self.unanswered = 0

    async def come(self, ending: asyncio.Event) -> None:
        """Visits until ``ending`` is set; those that have begun then end."""
        due, random = time.monotonic(), self._random
        async with asyncio.TaskGroup() as visits:
            while not ending.is_set():
                due += random.exponential(1 / self._pages_per_s)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                visitor = HEAVY if random.random() < HEAVY_SHARE else int(random.integers(len(self._taste.likes)))
                who = f"guest-{due}" if random.random() < GUESTS else user(visitor)
                visits.create_task(self._visit(who, visitor, random.random(FIRST)))
        await self._shop.flush()

    async def _visit(self, who: str, visitor: int, luck: NDArray[np.float64]) -> None:
        from millrace_client import Unavailable

        try:
            page = await self._shop.recommend(who, FIRST)
        except Unavailable:
            self.unanswered += 1
            return
        self.pages += 1
        await self._shop.exposure(page)
        self.exposures += len(page.items)
        liked = self._taste.liked(visitor, self._taste.places([str(item.item_id) for item in page.items]))
        for place in np.flatnonzero(luck[: len(liked)] < np.where(liked, LIKED, OTHER)).tolist():
            await self._shop.click(page, page.items[place])
            self.clicks += 1


def user(visitor: int) -> str:
    """The id of a visitor."""
    return f"user-{visitor:04}"


async def opened(shop: AsyncMillrace, taste: Taste) -> None:
    """Sends catalogue and visitors, and waits for a page of the model. Raises BenchError where none came in time."""
    from millrace_client import Item, User

    def item(n: int) -> dict[str, Any]:
        return {"category": f"c{taste.category[n]:02}", "price": float(taste.price[n])}

    def who(n: int) -> dict[str, Any]:
        return {"country": COUNTRIES[n % len(COUNTRIES)], "age": 18 + n * 7 % 60}

    born_ms = time.time_ns() // 1_000_000
    await shop.put_items([Item(name, item(n), born_ms) for n, name in enumerate(taste.ids)])
    await shop.put_users([User(user(n), who(n)) for n in range(len(taste.likes))])
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not await shop.ready():
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise BenchError(f"no page of a model within {READY_SECONDS:g} s", "see the folder 'logs' of a run") from None
