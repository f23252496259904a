# shell
"""Made-up visitors with a taste, who click at real speed: for a walk without a crowd, and to measure what is learnt.

::

    visitor ── recommend ──► page ── exposure of all of it ──► a click on what is liked (often) or not (seldom)

``python examples/shop-app/visitors.py --likes shoes --likes plants --seconds 60``: every other visitor likes shoes, the
others plants. Each ten seconds it prints how much of the pages was liked, beside the share in the whole catalogue.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from catalogue import CATEGORIES, Product, make
from millrace_client import AsyncMillrace, MillraceClientError, Page, Unavailable, User

PRINT_S = 10.0


@dataclass(frozen=True, slots=True)
class Taste:
    """What a visitor likes, and how often it is clicked when seen."""

    category: str
    below: float = float("inf")  # price, in euros
    liked: float = 0.5
    other: float = 0.02

    def likes(self, product: Product) -> bool:
        return product.category == self.category and product.price < self.below


@dataclass(slots=True)
class Tally:
    """What was seen and done so far; the shares are of model pages only."""

    pages: int = 0
    exposures: int = 0
    clicks: int = 0
    failed: int = 0
    liked: list[float] = field(default_factory=list)
    """Of each model page, the share that its visitor likes."""
    chance: float = 0.0
    """The same share of the whole catalogue, over all visitors."""

    def line(self, newest: int = 100) -> dict[str, float | int]:
        """Figures for people: liked shares over all pages and over the newest."""
        late = self.liked[-newest:]
        return {
            "pages": self.pages,
            "exposures": self.exposures,
            "clicks": self.clicks,
            "failed": self.failed,
            "liked": round(sum(late) / len(late), 3) if late else 0.0,
            "catalogue": round(self.chance, 3),
        }


class Crowd:
    """Visitors of a shop.

    Args:
        shop: a client.
        products: by id, as the shop sent them.
        tastes: dealt out to the visitors in turn.
        users: how many visitors there are; ``visitor-0`` ...
        size: items of a page.
    """

    def __init__(
        self,
        shop: AsyncMillrace,
        products: Mapping[str, Product],
        tastes: Sequence[Taste],
        users: int,
        size: int = 12,
        seed: int = 0,
    ) -> None:
        self.shop, self.products, self.tastes, self.users, self.size = shop, products, tastes, users, size
        self.dice = Random(seed)  # noqa: S311 - a taste, not a secret
        self.tally = Tally()
        on_sale = [one for one in products.values() if one.in_stock]
        self.tally.chance = sum(t.likes(one) for t in tastes for one in on_sale) / len(tastes) / len(on_sale)

    def taste_of(self, user: int) -> Taste:
        return self.tastes[user % len(self.tastes)]

    async def visit(self, user: int) -> None:
        """One page, looked at whole."""
        taste, tally = self.taste_of(user), self.tally
        try:
            page: Page = await self.shop.recommend(f"visitor-{user}", size=self.size, only={"in_stock": True})
        except Unavailable:
            tally.failed += 1
            return
        if not await self.shop.exposure(page):
            return
        known = [self.products.get(str(item.item_id)) for item in page.items]  # others may have sent items too
        likes = [one is not None and taste.likes(one) for one in known]
        tally.pages += 1
        tally.exposures += len(page.items)
        if page.arm == "model":
            tally.liked.append(sum(likes) / len(likes))
        for item, liked in zip(page.items, likes, strict=True):
            if self.dice.random() < (taste.liked if liked else taste.other):
                tally.clicks += 1
                await self.shop.click(page, item)

    async def come(self, rate: float, seconds: float) -> Tally:
        """Visits at random moments, ``rate`` a second on average, whatever the answers take."""
        visits: set[asyncio.Task[None]] = set()
        begin = at = time.monotonic()
        printed_s = begin
        while (at := at + self.dice.expovariate(rate)) < begin + seconds:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            visit = asyncio.create_task(self.visit(self.dice.randrange(self.users)))
            visits.add(visit)
            visit.add_done_callback(visits.discard)
            if at - printed_s > PRINT_S:
                printed_s = at
                print(json.dumps(self.tally.line()), flush=True)
        await asyncio.gather(*visits)
        await self.shop.flush()
        return self.tally


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Visitors with a taste, who click at real speed.")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--rate", type=float, default=5.0, help="pages a second, of all visitors together")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--likes", action="append", choices=sorted(CATEGORIES), help="a category; may be repeated")
    parser.add_argument("--below", type=float, default=float("inf"), help="likes only what costs less, in euros")
    parser.add_argument("--size", type=int, default=12, help="items of a page")
    parser.add_argument("--items", type=int, default=120, help="products in the catalogue, as for app.py")
    parser.add_argument("--send", action="store_true", help="send the catalogue and the users first")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


async def run(asked: argparse.Namespace, shop: AsyncMillrace) -> Tally:
    """What the command line asks for."""
    products = make(asked.items)
    if asked.send:
        await shop.put_items(one.item for one in products.values())
        await shop.put_users(User(f"visitor-{n}") for n in range(asked.users))
    tastes = [Taste(category, asked.below) for category in asked.likes or ["shoes"]]
    crowd = Crowd(shop, products, tastes, asked.users, asked.size, asked.seed)
    return await crowd.come(asked.rate, asked.seconds)


async def _main() -> None:
    async with AsyncMillrace() as shop:
        tally = await run(parsed(), shop)
    print(json.dumps(tally.line()), flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        try:
            asyncio.run(_main())
        except MillraceClientError as error:
            sys.exit(str(error))
