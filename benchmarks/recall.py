# shell
"""``millrace dev bench recall``: what recall finds, against the most clicked items, and what it takes.

::

    a simulated shop of 100,000 living items, a fifth of its shoppers held out
      seven days of the previous recommender's pages ──► windows, last clicks, co-clicks, retrieval head
      the eighth day, hour by hour: 1,000 candidates before each user's first page, by either way, on one state
        ──► share of what the user clicks on that day; share of the 100 items that the oracle would show
    then the time of one recall, on one core

Pages of the log were made by neither way, so their clicks favour neither. The seed is 7, which nothing was tuned on.
The details go to ``details.json``.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.parts.recallshares import NEW, POPULAR, Merit, measure, paired_ratio
from benchmarks.tools.bench_figures import Figure, Say, figure
from experiments.recall.recallhistory import learn_days
from experiments.recall.recallloop import Pupil
from experiments.recall.recallshop import RecallShop, params_of
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from simulator.daylog import day_table, parse_day
from simulator.dice import uniform
from simulator.world import World, start_of

MOST_CLICKED = "the most clicked items"
START = "2026-03-02"
WARM, HEAD = 50, {"retrieval_width": 32}
"""Recalls that are not timed."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large and how long."""

    seed: int = 7
    items: int = 100_000  # living, about
    users: int = 4000  # on an average day
    days: int = 7  # of history
    held_out: float = 0.2  # of the shoppers
    candidates: int = 1000
    stages: int = 24  # of the day that is asked about
    most_users: int | None = None  # asked for in each stage
    timed: int = 1000  # recalls


def run(out: Path, say: Say, size: Size | None = None) -> list[Figure]:
    """The figures, as in the module's text; ``out/details.json``."""
    size = size or Size()
    with threads(1):
        shop, pupil, held_out, known = build(size, say)
        day = parse_day(START) + size.days
        table = day_table(shop.world, day)
        merit = measure(shop, pupil, table, day, held_out, known, size.candidates, size.stages, say, size.most_users)
        figures, details = merit_figures(merit, size, say)
        figures += speed_figures(shop, merit, size, say)
    details |= {
        "size": asdict(size),
        "living": int(shop.index.alive.sum()),
        "head_clicks": shop.retrieval.clicks if shop.retrieval else 0,
    }
    (out / "details.json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    return figures


def build(size: Size, say: Say) -> tuple[RecallShop, Pupil, NDArray[np.bool_], NDArray[np.bool_]]:
    """The shop at the end of its history, what learnt that, which shoppers were held out of it, and which clicked in
    it. (N,) each"""
    schema, first = shop_schema(), parse_day(START)
    world = World(size.seed, size.users, params_of(size.items))
    held_out = uniform(size.seed, "bench.held_out", np.arange(world.shoppers.n)) < size.held_out
    known = np.zeros(world.shoppers.n, np.bool_)
    shop = RecallShop(world, schema, start_of(first), Settings(candidates=size.candidates))
    model, tables = OnlineModel(schema, HEAD, 0), list[pa.Table]()
    say(f"{shop.index.alive.sum():,} items are on sale, {world.shoppers.n:,} shoppers, {held_out.sum():,} held out")
    for number in range(first, first + size.days):
        began = time.perf_counter()
        visits = world.visits(number)
        table = day_table(world, number, np.flatnonzero(~held_out[visits.user]))
        clicked = table["click"].to_numpy() == 1
        known[table["user_id"].to_numpy()[clicked] - 1] = True
        shop.take(table)
        shop.live(start_of(number + 1))
        shop.births_and_deaths(start_of(number + 1))
        tables.append(table)
        took = time.perf_counter() - began
        say(f"day {number - first + 1}: {table.num_rows:,} exposures, {clicked.sum():,} clicks, in {took:.1f} s")
    learn_days(model, tables)  # in one pass, so that its windows are those of the whole history
    return shop, Pupil(model, 1), held_out, known


def merit_figures(merit: Merit, size: Size, say: Say) -> tuple[list[Figure], dict[str, Any]]:
    """Shares of clicked items and of the oracle's best, for known and new users, against the most clicked items."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    rng = np.random.default_rng(size.seed)
    for what, shares in (("clicked", merit.clicked), ("oracle", merit.oracle)):
        for group, new_users in (("known", False), ("new", True)):
            value, other = (merit.of(shares, way, new_users) for way in (NEW, POPULAR))
            found = paired_ratio(value, other, rng)
            name = f"{what}_recall_{group}"
            one = figure(name, found.value, f"of {len(value)} users", MOST_CLICKED, found.ratio)
            one["ratio_low"] = found.low
            figures.append(one)
            details[name] = {"popular": asdict(found), "users": len(value)}
            say(
                f"{name}: {found.value:.4f}; {MOST_CLICKED} {found.other:.4f}, ratio {found.ratio:.2f} "
                f"({found.low:.2f} to {found.high:.2f})"
            )
    return figures, details


def speed_figures(shop: RecallShop, merit: Merit, size: Size, say: Say) -> list[Figure]:
    """Milliseconds of one recall, all of it but reading the user."""
    users = [shop.user(int(u)) for u in merit.user[: size.timed]]
    if not users:
        return []
    ms = []
    for i in range(WARM + size.timed):
        began = time.perf_counter()
        shop.recall(users[i % len(users)], shop.now_ms, size.candidates, i)
        ms.append(1000 * (time.perf_counter() - began))
    median, late = float(np.median(ms[WARM:])), float(np.quantile(ms[WARM:], 0.99))
    say(f"one recall: {median:.2f} ms, p99 {late:.2f}")
    return [figure("recall_ms", median, "ms"), figure("recall_p99_ms", late, "ms")]
