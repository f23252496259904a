# shell
"""Visitors of the shop whose taste is known (:mod:`experiments.tasteshop`), over HTTP and at real speed.

::

    visits come at random moments ──► page ──► exposure ──► clicks by taste ──► a pause ──► the next page ...

They are honest: each looks at the first items of a page and clicks what he likes. A share of them are guests, of whom
the shop never told; a share of the visits is one heavy reader's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.runs import BenchError
from experiments.tasteshop import FIRST, Taste

if TYPE_CHECKING:
    from millrace_client import AsyncMillrace

READY_SECONDS = 300.0
HEAVY = 0
"""The visitor who is the heavy reader."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who comes, and how often."""

    visitors: int
    pages_per_s: float
    pages: float = 1.0  # of a visit, on average: a geometric distribution
    pause_s: float = 0.0  # between two pages of a visit, on average: an exponential one
    guests: float = 0.0  # share of visits by people of whom the shop never told
    heavy: float = 0.0  # share of visits by :data:`HEAVY`


class Looked(NamedTuple):
    """One page that a visitor looked at: n items."""

    arm: str
    guest: bool
    score: NDArray[np.float64]  # (n,), NaN where none was given
    chance: NDArray[np.float64]  # (n,), the true probability of a click
    clicked: NDArray[np.bool_]  # (n,)


class Visitors:
    """Everybody who comes.

    Args:
        shop: the client.
        seen: told each page that was looked at.
        seed: the same seed gives the same visits, and the same luck on the same page.
    """

    def __init__(
        self, shop: AsyncMillrace, taste: Taste, crowd: Crowd, seed: int, seen: Callable[[Looked], None]
    ) -> None:
        self._shop, self._taste, self._crowd, self._seed, self._seen = shop, taste, crowd, seed, seen
        self.unanswered = 0
        """Pages that did not come in the client's patience."""

    async def come(self, ending: asyncio.Event) -> None:
        """Visits until ``ending`` is set; those that have begun then end."""
        random = np.random.default_rng([self._seed, 3])
        due, number = time.monotonic(), 0
        visits: set[asyncio.Task[None]] = set()
        while not ending.is_set():
            due += random.exponential(self._crowd.pages / self._crowd.pages_per_s)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            visits.add(asyncio.create_task(self._visit(number, ending)))
            number += 1
            done = {visit for visit in visits if visit.done()}
            for visit in done:
                visit.result()
            visits -= done
        await asyncio.gather(*visits)
        await self._shop.flush()

    async def _visit(self, number: int, ending: asyncio.Event) -> None:
        crowd, random = self._crowd, np.random.default_rng([self._seed, 4, number])
        kind, visitor = random.random(), int(random.integers(crowd.visitors))
        guest = kind < crowd.guests
        if not guest and kind < crowd.guests + crowd.heavy:
            visitor = HEAVY
        who = f"guest-{number:06}" if guest else user(visitor)
        for page in range(int(random.geometric(1 / crowd.pages))):
            if page and crowd.pause_s:
                await asyncio.sleep(random.exponential(crowd.pause_s))
            if ending.is_set():
                return
            await self._page(who, visitor, guest, random.random(FIRST))

    async def _page(self, who: str, visitor: int, guest: bool, luck: NDArray[np.float64]) -> None:
        from millrace_client import Unavailable

        try:
            page = await self._shop.recommend(who, FIRST)
        except Unavailable:
            self.unanswered += 1
            return
        if not page.items:
            return
        await self._shop.exposure(page)
        chance = self._taste.chance(visitor, self._taste.places([str(item.item_id) for item in page.items]))
        clicked = luck[: len(chance)] < chance
        for place in np.flatnonzero(clicked).tolist():
            await self._shop.click(page, page.items[place])
        score = np.array([np.nan if item.score is None else item.score for item in page.items])
        self._seen(Looked(page.arm, guest, score, chance, clicked))


def user(visitor: int) -> str:
    """The id of a visitor whom the shop knows."""
    return f"user-{visitor:04}"


async def opened(shop: AsyncMillrace, taste: Taste, visitors: int) -> None:
    """Sends catalogue and visitors, and waits for a page of the model."""
    from millrace_client import Item, User

    born_ms, goods = time.time_ns() // 1_000_000, taste.goods
    await shop.put_items([Item(item, goods.attributes(n), born_ms) for n, item in enumerate(goods.ids)])
    await shop.put_users([User(user(v), taste.attributes(v)) for v in range(visitors)])
    await ready(shop)


async def ready(shop: AsyncMillrace) -> None:
    """Waits for a page of the model.

    Raises:
        BenchError: none came in time.
    """
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not await shop.ready():
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise BenchError(f"no page of a model within {READY_SECONDS:g} s", "see the folder 'logs' of a run") from None


def check_client() -> None:
    """Raises:
    BenchError: the client, a distribution of its own, is not installed.
    """
    try:
        import millrace_client  # noqa: F401
    except ImportError:
        raise BenchError("the package 'millrace-client' is not installed", "pip install ./client") from None
