# core
"""What recall finds: shares of a day's clicked items and of the oracle's best, for each user, by way of recalling.

::

    the day, in stages ── shop.advance() ──► state of a scorer
      each user's first page ──► 1,000 candidates a way ──► share of the items that the user clicks on that day
                                                            share of the 100 living items that the user likes best

Known users clicked in the history; new ones are held out of it. Users without a click on the day are not asked for:
the first share does not exist for them. The candidates are asked for before the day's first page, so what was clicked
on that day was clicked later. Items that are born after the page are out of reach for every way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from experiments.recall.recallloop import Pupil
from experiments.recall.recallshop import RecallShop
from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import combine, salt
from simulator.world import Day, start_of

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
NEW, POPULAR = "new", "popular"
WAYS = (NEW, POPULAR)
BEST = 100
"""How many of the items that a user likes best are looked for."""
RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Merit:
    """Of n users, in the order in which they came."""

    user: I64  # (n,) index of the shopper
    held_out: NDArray[np.bool_]  # (n,)
    clicked: dict[str, F64]  # by way (n,): share of the day's clicked items among the candidates
    oracle: dict[str, F64]  # by way (n,): share of the oracle's best

    def of(self, shares: Mapping[str, F64], way: str, new_users: bool) -> F64:
        """The shares of one way for the new or the known users."""
        out: F64 = shares[way][self.held_out == new_users]
        return out


@dataclass(frozen=True, slots=True)
class Ratio:
    """Means over users, their ratio, and the ends of its 95% interval."""

    value: float
    other: float
    ratio: float
    low: float
    high: float


def paired_ratio(value: F64, other: F64, rng: np.random.Generator, resamples: int = RESAMPLES) -> Ratio:
    """The ratio of two means over the same users (n,), with its bootstrap interval: users are drawn with replacement,
    each with both figures (Efron and Tibshirani 1993, chapter 13). NaN without users, or where ``other`` is 0."""
    n = len(value)
    if not n or other.sum() == 0:
        mean = float(value.mean()) if n else float("nan")
        return Ratio(mean, float(other.mean()) if n else float("nan"), *[float("nan")] * 3)
    ratios = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(0, n, n)
        below = other[drawn].sum()
        ratios[i] = value[drawn].sum() / below if below else np.inf
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Ratio(float(value.mean()), float(other.mean()), float(value.sum() / other.sum()), float(low), float(high))


def best_items(day: Day, user: int, ts_ms: int, most: int = BEST) -> I64:
    """Ids of the items on sale at ``ts_ms`` that a shopper likes best, at most ``most``, in no order."""
    rows = np.flatnonzero(day.alive(ts_ms))
    liking = day.liking(user, rows)
    if len(rows) > most:
        rows = rows[np.argpartition(-liking, most)[:most]]
    ids: I64 = day.goods.item_id[rows]
    return ids


def measure(
    shop: RecallShop,
    pupil: Pupil,
    table: pa.Table,
    number: int,
    held_out: NDArray[np.bool_],
    known: NDArray[np.bool_],
    candidates: int,
    stages: int,
    say: Callable[[str], None],
    most_users: int | None = None,
) -> Merit:
    """Recalls for the first page of each user of a day.

    Args:
        shop: as it is when the day begins; it lives through the day.
        pupil: what makes its vectors; it learns nothing on the day.
        table: the day's log.
        number: the local day.
        held_out, known: (N,) by shopper.
        stages: into how many parts the day is cut; a scorer's state is as of the beginning of its part.
        most_users: of each part, at most so many are asked for.
    """
    day = shop.world.day(number)
    user, ts_ms, item = table["user_id"].to_numpy() - 1, table["ts_ms"].to_numpy(), table["item_id"].to_numpy()
    clicked = table["click"].to_numpy() == 1
    who, first = np.unique(user, return_index=True)
    asked = held_out[who] | known[who]
    who, first = who[asked], first[asked]
    order = np.argsort(user[clicked], kind="stable")
    buyers, starts = np.unique(user[clicked][order], return_index=True)
    items = np.split(item[clicked][order], starts[1:])
    wanted = {int(u): np.unique(i) for u, i in zip(buyers, items, strict=True)}
    shop.take(table)
    rows: list[tuple[int, dict[str, float], dict[str, float]]] = []
    edges = start_of(number) + np.arange(stages + 1) * (DAY_MS // stages)
    for stage in range(stages):
        shop.advance(int(edges[stage]))
        pupil.renew(shop)
        popular = shop.popular(candidates)
        here = (ts_ms[first] >= edges[stage]) & (ts_ms[first] < edges[stage + 1])
        mine = [(int(u), int(ts_ms[f])) for u, f in zip(who[here], first[here], strict=True) if int(u) in wanted]
        for shopper, at_ms in mine[:most_users]:
            rows.append((shopper, *_shares(shop, day, shopper, at_ms, wanted[shopper], popular, candidates)))
        say(f"part {stage + 1} of {stages} of the day: {len(rows):,} users so far")
    shop.live(start_of(number + 1))
    users = np.array([r[0] for r in rows], np.int64)
    return Merit(
        users,
        held_out[users],
        {way: np.array([r[1][way] for r in rows]) for way in WAYS},
        {way: np.array([r[2][way] for r in rows]) for way in WAYS},
    )


def _shares(
    shop: RecallShop, day: Day, shopper: int, ts_ms: int, wanted: I64, popular: NDArray[np.intp], candidates: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the clicked items and of the oracle's best by way."""
    user, seed = shop.user(shopper), int(combine(salt("bench", str(day.number)), np.array([shopper], np.uint64))[0])
    new, _ = shop.recall(user, ts_ms, candidates, seed)
    best = best_items(day, shopper, ts_ms)
    clicked, oracle = {}, {}
    for way, rows in ((NEW, new), (POPULAR, popular)):
        ids = shop.item_ids(rows)
        clicked[way] = float(np.isin(wanted, ids).mean())
        oracle[way] = float(np.isin(best, ids).mean())
    return clicked, oracle
