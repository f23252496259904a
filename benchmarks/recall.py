# shell
"""``millrace bench recall``: what the learnt recall finds, against the mixture before and the most clicked items.

::

    a simulated shop of 100,000 living items, a fifth of its shoppers held out
      seven days of the previous recommender's pages ──► windows, last clicks, co-clicks, retrieval head
      the eighth day, hour by hour: 1,000 candidates before each user's first page, by each way, on one state
        ──► share of what the user clicks on that day; share of the 100 items that the oracle would show
    then times: one recall on one core; an approximate index, where usearch is installed; a learner with and without
    the head, in turns. Before all this: a dead item on the pages of a running scorer (:mod:`benchmarks.deaditem`)

Pages of the log were made by neither way of recalling, so their clicks favour neither. The seed is 7, which nothing was
tuned on. The details go to ``details.json``: what each source gave and found, what the most clicked items would have
found, intervals.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.deaditem import dead_item_seconds
from benchmarks.recallcost import HEAD, learner_cost
from benchmarks.recallmerit import BEFORE, NEW, POPULAR, Merit, by_source, measure, paired_ratio
from benchmarks.runner import Figure, Say, figure
from experiments.recallhistory import log_of, samples_of
from experiments.recallshop import RecallShop, params_of
from learner.network.dense import threads
from learner.network.models.spec import read_spec
from millrace.basics.errors import SettingError
from millrace.contracts.events import SOURCES
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from scorer.recall.approximate import Approximate, Builder, check_usearch
from scorer.recall.nearest import best
from simulator.daylog import day_table, parse_day
from simulator.dice import uniform
from simulator.world import World, start_of

MIXTURE = "the mixture before"
START = "2026-03-02"
WARM = 50
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
    cost_rows: int = 200_000  # that the learner learns with and without the head
    searched: int = 200  # queries that the approximate index is held against the exact one with
    deaths: int = 20  # of items of a running scorer; 0: none is started


def run(out: Path, say: Say, size: Size | None = None) -> list[Figure]:
    """The figures, as in the module's text; ``out/details.json``."""
    size = size or Size()
    figures = dead_item_seconds(say, out, size.deaths) if size.deaths else []
    with threads(1):
        shop, held_out, known = build(size, say)
        day = parse_day(START) + size.days
        table = day_table(shop.world, day)
        merit = measure(shop, table, day, held_out, known, size.candidates, size.stages, say, size.most_users)
        found, details = merit_figures(merit, size, say)
        figures = found + figures
        figures += speed_figures(shop, merit, size, say)
        figures += index_figures(shop, merit, size, say)
        figures += cost_figures(shop, size, say)
    details |= {
        "size": asdict(size),
        "living": int(shop.index.alive.sum()),
        "head_clicks": shop.head.clicks if shop.head else 0,
    }
    (out / "details.json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    return figures


def build(size: Size, say: Say) -> tuple[RecallShop, NDArray[np.bool_], NDArray[np.bool_]]:
    """The shop at the end of its history, which shoppers were held out of it, and which clicked in it. (N,) each"""
    schema, first = shop_schema(), parse_day(START)
    world = World(size.seed, size.users, params_of(size.items))
    held_out = uniform(size.seed, "bench.held_out", np.arange(world.shoppers.n)) < size.held_out
    known = np.zeros(world.shoppers.n, np.bool_)
    shop = RecallShop(world, schema, start_of(first), Settings(candidates=size.candidates), read_spec(HEAD))
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
        took = time.perf_counter() - began
        say(f"day {number - first + 1}: {table.num_rows:,} exposures, {clicked.sum():,} clicks, in {took:.1f} s")
    return shop, held_out, known


def merit_figures(merit: Merit, size: Size, say: Say) -> tuple[list[Figure], dict[str, Any]]:
    """Shares of clicked items and of the oracle's best, for known and new users, against the mixture before."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    rng = np.random.default_rng(size.seed)
    for what, shares in (("clicked", merit.clicked), ("oracle", merit.oracle)):
        for group, new_users in (("known", False), ("new", True)):
            value, other, popular = (merit.of(shares, way, new_users) for way in (NEW, BEFORE, POPULAR))
            found, over = paired_ratio(value, other, rng), paired_ratio(value, popular, rng)
            name = f"{what}_recall_{group}"
            one = figure(name, found.value, f"of {len(value)} users", MIXTURE, found.ratio)
            one["ratio_low"] = found.low
            figures.append(one)
            details[name] = {"before": asdict(found), "popular": asdict(over), "users": len(value)}
            say(
                f"{name}: {found.value:.4f}; {MIXTURE} {found.other:.4f}, ratio {found.ratio:.2f} "
                f"({found.low:.2f} to {found.high:.2f}); the most clicked {over.other:.4f}"
            )
    for group, new_users in (("known", False), ("new", True)):
        rows = details[f"sources_{group}"] = by_source(merit, SOURCES, new_users)
        for r in rows:
            say(
                f"{group} users, {r['source']}: {r['candidates']:.0f} candidates, "
                f"{r['clicked_recall']:.4f} of the clicked, {r['oracle_recall']:.4f} of the best"
            )
    return figures, details


def speed_figures(shop: RecallShop, merit: Merit, size: Size, say: Say) -> list[Figure]:
    """Milliseconds of one recall, all of it but reading the user; ways take turns."""
    users = [shop.user(int(u)) for u in merit.user[: size.timed]]
    ms: dict[str, list[float]] = {NEW: [], BEFORE: []}
    if not users:
        return []
    for i in range(WARM + size.timed):
        user, seed = users[i % len(users)], i
        for way, recall in ((NEW, shop.recall_new), (BEFORE, shop.recall_before)):
            began = time.perf_counter()
            recall(user, shop.now_ms, size.candidates, seed)
            if i >= WARM:
                ms[way].append(1000 * (time.perf_counter() - began))
    new, before = (np.array(ms[way]) for way in (NEW, BEFORE))
    figures = [
        figure("recall_ms", float(np.median(new)), "ms", MIXTURE, float(np.median(new) / np.median(before))),
        figure("recall_p99_ms", float(np.quantile(new, 0.99)), "ms"),
    ]
    say(f"one recall: {np.median(new):.2f} ms, p99 {np.quantile(new, 0.99):.2f}; before {np.median(before):.2f}")
    return figures


def index_figures(shop: RecallShop, merit: Merit, size: Size, say: Say) -> list[Figure]:
    """The share of the nearest items that the approximate index finds, in the shop's own vectors and for its own users.
    None where usearch is not installed, or nothing was learnt."""
    retrieval = shop.retrieval
    try:
        check_usearch()
    except SettingError as error:
        say(f"index_recall is left out: {error}")
        return []
    users = [shop.user(int(u)) for u in merit.user[: size.searched]]
    if retrieval is None or not users:
        return []
    n, k = len(retrieval), size.candidates // 2
    vectors = retrieval.vectors(np.arange(n))
    began = time.perf_counter()
    builder = Builder(vectors.shape[1], float(np.linalg.norm(vectors, axis=1).max(initial=0)))
    builder.add(0, vectors)
    index = Approximate(vectors.shape[1], builder.saved())
    took = time.perf_counter() - began
    shares, ms = [], []
    for user in users:
        query = shop.query_of(user, shop.now_ms)
        began = time.perf_counter()
        found = index.find(query, k)
        ms.append(1000 * (time.perf_counter() - began))
        shares.append(len(np.intersect1d(found, best(vectors @ query, k))) / min(k, n))
    recall, worst = float(np.mean(shares)), float(np.min(shares))
    say(
        f"usearch: {recall:.4f} of the nearest {k} of {n:,} (at least {worst:.2f}), {np.median(ms):.2f} ms, "
        f"built in {took:.1f} s"
    )
    return [figure("index_recall", recall, f"of {k}"), figure("index_search_ms", float(np.median(ms)), "ms")]


def cost_figures(shop: RecallShop, size: Size, say: Say) -> list[Figure]:
    """What the head costs the learner, on the shop's own samples at the learner's batch."""
    table = day_table(shop.world, parse_day(START)).slice(0, size.cost_rows)
    batches = list(samples_of(log_of([table], shop.schema), shop.schema))
    cost = learner_cost(shop.schema, batches, time.process_time)
    say(
        f"a learner: {cost.without:,.0f} rows/s without the head, {cost.with_head:,.0f} with it: "
        f"{cost.cost:.1%} (turns: {_range(cost.turns)})"
    )
    return [
        figure("learner_cost", cost.cost, "of its rows/s", "without the head", 1 - cost.cost),
        figure("learner_rows_with_head", cost.with_head, "rows/s"),
    ]


def _range(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"{low:.1%} to {high:.1%}, median {middle:.1%}"
