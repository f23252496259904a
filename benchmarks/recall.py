# shell
"""``millrace dev bench recall``: what recall finds, against the most clicked items, on one state.

::

    a simulated shop of 100,000 living items, a fifth of its shoppers held out
      seven days of the previous recommender's pages ──► windows, last clicks, co-clicks, retrieval head
      the eighth day, hour by hour: 1,000 candidates before each user's first page, by either way, on one state
        ──► share of what the user clicks on that day; share of the 100 living items that the user likes best

Known users clicked in the history; new ones are held out of it. Users without a click on the day are not asked for.
Candidates are found before the day's first page, so what was clicked on that day was clicked later. Pages of the log
were made by neither way, so their clicks favour neither. The seed is 7, which nothing was tuned on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.tools.bench_figures import Figure, Say, figure
from experiments.recall.recallloop import FIRST_DAY, WIDTH, Pupil, learn_days
from experiments.recall.recallshop import RecallShop, params_of
from experiments.runs import paired_ratio
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import combine, salt
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from simulator.daylog import day_table
from simulator.dice import uniform
from simulator.world import Day, World, start_of

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
BEST = 100  # of the items that a user likes best are looked for
RESAMPLES = 4000


class Size(NamedTuple):
    """How large and how long."""

    seed: int = 7
    items: int = 100_000  # living, about
    users: int = 4000  # on an average day
    days: int = 7  # of history
    held_out: float = 0.2  # of the shoppers
    candidates: int = 1000
    stages: int = 24  # of the day that is asked about; a scorer's state is as of the beginning of its stage


SHORT = Size(seed=101, items=1000, users=120, days=2, candidates=100, stages=4)


class Found(NamedTuple):
    """What recall and the most clicked items have of what n users want, in the order in which they came."""

    user: I64  # (n,) index of the shopper
    new: NDArray[np.bool_]  # (n,) held out
    clicked: F64  # (n, 2) share of the day's clicked items among the candidates: by recall, by the most clicked
    best: F64  # (n, 2) share of the oracle's best, likewise


def run(out: Path, say: Say, size: Size) -> list[Figure]:
    """The figures, as in the module's text."""
    with threads(1):
        shop, pupil, held_out, known = build(size, say)
        found = measure(shop, pupil, size, held_out, known, say)
        return share_figures(found, size, say)


def build(size: Size, say: Say) -> tuple[RecallShop, Pupil, NDArray[np.bool_], NDArray[np.bool_]]:
    """The shop at the end of its history, what learnt that, which shoppers were held out of it, and which clicked in
    it. (N,) each"""
    world = World(size.seed, size.users, params_of(size.items))
    held_out = uniform(size.seed, "bench.held_out", np.arange(world.shoppers.n)) < size.held_out
    known = np.zeros(world.shoppers.n, np.bool_)
    shop = RecallShop(world, shop_schema(), start_of(FIRST_DAY), Settings(candidates=size.candidates))
    tables = list[pa.Table]()
    say(f"{shop.index.alive.sum():,} items are on sale, {world.shoppers.n:,} shoppers, {held_out.sum():,} held out")
    for number in range(FIRST_DAY, FIRST_DAY + size.days):
        visits = world.visits(number)
        table = day_table(world, number, np.flatnonzero(~held_out[visits.user]))
        clicked = table["click"].to_numpy() == 1
        known[table["user_id"].to_numpy()[clicked] - 1] = True
        shop.take(table)
        shop.live(start_of(number + 1))
        shop.births_and_deaths(start_of(number + 1))
        tables.append(table)
        say(f"day {number - FIRST_DAY + 1}: {table.num_rows:,} exposures, {clicked.sum():,} clicks")
    model = OnlineModel(shop_schema(), {"retrieval_width": WIDTH}, 0)
    return shop, Pupil(learn_days(model, tables), 1), held_out, known


def measure(
    shop: RecallShop, pupil: Pupil, size: Size, held_out: NDArray[np.bool_], known: NDArray[np.bool_], say: Say
) -> Found:
    """Recalls for the first page of each user of the day after the history, through which ``shop`` lives. ``pupil``
    makes its vectors and learns nothing. ``held_out``, ``known``: (N,) by shopper."""
    number = FIRST_DAY + size.days
    day, table = shop.world.day(number), day_table(shop.world, number)
    user, ts_ms, item = table["user_id"].to_numpy() - 1, table["ts_ms"].to_numpy(), table["item_id"].to_numpy()
    clicked = table["click"].to_numpy() == 1
    who, first = np.unique(user, return_index=True)
    asked = (held_out[who] | known[who]) & np.isin(who, user[clicked])
    who, first = who[asked], first[asked]
    shop.take(table)
    users, shares = list[int](), list[F64]()
    edges = start_of(number) + np.arange(size.stages + 1) * (DAY_MS // size.stages)
    for stage in range(size.stages):
        shop.advance(int(edges[stage]))
        pupil.renew(shop)
        popular = shop.item_ids(shop.popular(size.candidates))
        here = (ts_ms[first] >= edges[stage]) & (ts_ms[first] < edges[stage + 1])
        for shopper, at_ms in zip(who[here].tolist(), ts_ms[first[here]].tolist(), strict=True):
            wanted = np.unique(item[clicked & (user == shopper)])
            seed = int(combine(salt("bench", str(number)), np.array([shopper], np.uint64))[0])
            recalled = shop.item_ids(shop.recall(shop.user(shopper), at_ms, size.candidates, seed))
            best = best_items(day, shopper, at_ms)
            has = [[np.isin(ids, way).mean() for way in (recalled, popular)] for ids in (wanted, best)]
            users.append(shopper)
            shares.append(np.array(has))
        say(f"part {stage + 1} of {size.stages} of the day: {len(users):,} users so far")
    shop.live(start_of(number + 1))
    own, both = np.array(users, np.int64), np.array(shares)
    return Found(own, held_out[own], both[:, 0], both[:, 1])


def best_items(day: Day, user: int, ts_ms: int, most: int = BEST) -> I64:
    """Ids of the items on sale at ``ts_ms`` that a shopper likes best, at most ``most``, in no order."""
    rows = np.flatnonzero(day.alive(ts_ms))
    liking = day.affinity(user, rows, ts_ms)
    if len(rows) > most:
        rows = rows[np.argpartition(-liking, most)[:most]]
    ids: I64 = day.inventory.item_id[rows]
    return ids


def share_figures(found: Found, size: Size, say: Say) -> list[Figure]:
    """Shares of clicked items and of the oracle's best, for known and new users, against the most clicked items."""
    figures: list[Figure] = []
    for what, shares in (("clicked", found.clicked), ("oracle", found.best)):
        for group, rows in (("known", ~found.new), ("new", found.new)):
            value, other = shares[rows].T
            ratio, low, high = paired_ratio(value, other, RESAMPLES, size.seed)
            name, mean = f"{what}_recall_{group}", float(value.mean()) if len(value) else float("nan")
            one = figure(name, mean, f"of {len(value)} users", "the most clicked items", ratio)
            figures.append({**one, "ratio_low": low})
            say(f"{name}: {mean:.4f}, {ratio:.2f} times the most clicked items ({low:.2f} to {high:.2f})")
    return figures
