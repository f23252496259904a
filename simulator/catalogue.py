# core
"""The goods: a tree of categories, shops in them, and cohorts of items that arrive, come into fashion and leave.

A cohort holds the items born on one local day: a function of the seed and that day. The catalogue of a day is the union
of the cohorts that are still on sale. Goods have no brand.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.contracts.events import Item
from simulator.dice import F64, even_normal, even_uniform, generator
from simulator.params import UTC_OFFSET_MS, D, Params

I64 = NDArray[np.int64]
ORDER_STEPS = np.array([1, 2, 3, 5, 10, 20, 50, 100])
ID_STEP = 10_000  # ids are ``born day * ID_STEP + number``: unique without a list of all ids
GONE_DAYS = 2  # how long items stay known after their end: a page made just before may still show them


@dataclass(frozen=True)
class Inventory:
    """Items, arrays by row, ids ascending."""

    item_id: I64
    category: I64
    shop: I64
    price: F64
    price_z: F64  # log price, in deviations from the category's usual one
    min_order: I64
    born_ms: I64
    dies_ms: I64
    quality: F64  # deviate of the item itself
    fad: F64  # height of its fashion, mean 1
    peak_days: F64  # age at which fashion is highest
    vector: F64  # (n, D) unit variance

    @property
    def n(self) -> int:
        return len(self.item_id)

    def take(self, rows: NDArray[np.bool_]) -> Inventory:
        return Inventory(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class Catalogue:
    """Makes the goods of any day. Cohorts are kept, since neighbouring days share them."""

    def __init__(self, seed: int, p: Params) -> None:
        self.seed, self.p = seed, p
        rng = generator(seed, "catalogue")
        self.parent_of = np.arange(p.categories) * p.parents // p.categories  # (C,)
        parents = rng.standard_normal((p.parents, D))
        own = rng.standard_normal((p.categories, D))
        self.category_vector: F64 = (
            np.sqrt(p.parent_part) * parents[self.parent_of] + np.sqrt(p.category_part) * own
        )  # (C, D)
        share = 1.0 / (rng.permutation(p.categories) + 3.0)
        self.share: F64 = share / share.sum()  # (C,) of new items
        self.usual_price = rng.normal(3.0, 0.8, p.categories)  # log
        period = np.exp(rng.uniform(np.log(10), np.log(60), (3, p.categories)))
        self._tide = (2 * np.pi / period, rng.uniform(0, 2 * np.pi, (3, p.categories)))
        self.shop_quality = even_normal(rng, p.shops)
        # Shops keep to one parent category, in proportion to its trade.
        trade = np.bincount(self.parent_of, self.share, p.parents)
        self._shop_parent = np.sort(rng.choice(p.parents, p.shops, p=trade))
        self._shop_parent[: p.parents] = np.arange(p.parents)  # every parent category has a shop
        self._shops = [np.flatnonzero(self._shop_parent == k) for k in range(p.parents)]
        self._cohorts: OrderedDict[int, Inventory] = OrderedDict()

    def season(self, day: int) -> F64:
        """How much each category is in season on a day: mean 0, weighted by trade. (C,)"""
        frequency, phase = self._tide
        tide = np.sqrt(2.0 / 3.0) * np.cos(frequency * day + phase).sum(axis=0)
        out: F64 = tide - (self.share * tide).sum()
        return out

    def cohort(self, day: int) -> Inventory:
        known = self._cohorts.get(day)
        if known is not None:
            return known
        p, n = self.p, self.p.births
        rng = generator(self.seed, "cohort", day)
        category = rng.choice(p.categories, n, p=self.share)
        pick = rng.random(n)
        shop = np.array(
            [
                shops[int(u * len(shops))]
                for shops, u in zip((self._shops[k] for k in self.parent_of[category]), pick, strict=True)
            ]
        )
        price_z = even_normal(rng, n)
        price = np.round(np.exp(self.usual_price[category] + 0.55 * price_z), 2)
        # The cheaper a piece, the more of them one must take.
        step = np.clip(np.round(2.5 - 1.2 * price_z + 1.5 * rng.standard_normal(n)), 0, len(ORDER_STEPS) - 1)
        start = day * DAY_MS - UTC_OFFSET_MS
        born = start + np.sort(rng.integers(8 * 3_600_000, 22 * 3_600_000, n))
        life = np.clip(np.exp(np.log(p.life_days) + p.life_spread * even_normal(rng, n)), p.life_least, p.life_most - 1)
        inventory = Inventory(
            item_id=day * ID_STEP + np.arange(n),
            category=category,
            shop=shop,
            price=np.maximum(price, 0.1),
            price_z=price_z,
            min_order=ORDER_STEPS[step.astype(np.int64)],
            born_ms=born,
            dies_ms=born + (life * DAY_MS).astype(np.int64),
            quality=even_normal(rng, n),
            fad=-np.log1p(-even_uniform(rng, n)),
            peak_days=rng.uniform(1.0, 7.0, n),
            vector=self.category_vector[category] + np.sqrt(p.item_part) * rng.standard_normal((n, D)),
        )
        self._cohorts[day] = inventory
        if len(self._cohorts) > 2 * p.life_most:
            self._cohorts.popitem(last=False)
        return inventory

    def inventory(self, day: int) -> Inventory:
        """All items on sale at some time of a local day, and those that left in the ``GONE_DAYS`` before it."""
        start = day * DAY_MS - UTC_OFFSET_MS
        cohorts = [self.cohort(d) for d in range(day - self.p.life_most - GONE_DAYS, day + 1)]
        whole = Inventory(**{f.name: np.concatenate([getattr(c, f.name) for c in cohorts]) for f in fields(Inventory)})
        return whole.take(whole.dies_ms >= start - GONE_DAYS * DAY_MS)

    def item(self, inventory: Inventory, row: int, gone: bool = False) -> Item:
        """The item as a message of the ``items`` topic."""
        category = int(inventory.category[row])
        return Item(
            int(inventory.item_id[row]),
            {
                "parent_category": f"p{self.parent_of[category]}",
                "category": f"c{category}",
                "shop_id": int(inventory.shop[row]) + 1,
                "price_band": int(price_band(inventory.price_z[row : row + 1])[0]),
                "price": float(inventory.price[row]),
                "min_order": int(inventory.min_order[row]),
            },
            born_ms=int(inventory.born_ms[row]),
            gone=gone,
        )


def price_band(price_z: F64) -> I64:
    """The price band, 1 (cheap for its category) to 5: each holds about a fifth of the goods. (n,)"""
    out: I64 = np.digitize(price_z, (-0.84, -0.25, 0.25, 0.84)) + 1
    return out
