# shell
"""Arms of ``millrace dev experiment judge`` that tempt a band: a small control, clicks and prices with long tails.

Who clicks much comes seldom. Until then the mean of a small arm and its variance are both too low, and an equal arm
looks better. Each case is judged by the code of the product at :data:`LOOKS` looks: by that of ``millrace judge``, or
by the archive's own figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.runs import Call, Row
from millrace.basics.durations import HOUR_MS
from millrace.commands.judge.arms import UserOutcomes, looks
from stream.archive.arm_figures import OUTCOMES, ArmFigures

Numbers = NDArray[np.float64]
Draw = Callable[[np.random.Generator, Numbers], tuple[Numbers, Numbers]]
"""Outcomes and pages of users, from a factor of each one's outcomes. (n,) all"""
LOOKS, BETTER = 100, 0.2  # a better arm earns a fifth more


def _clicks(rng: np.random.Generator, rate: Numbers) -> tuple[Numbers, Numbers]:
    return rng.poisson(rate * rng.lognormal(0, 1.5, len(rate))).astype(float), np.ones(len(rate))


def _values(rng: np.random.Generator, rate: Numbers) -> tuple[Numbers, Numbers]:
    return rate * rng.lognormal(0, 1.5, len(rate)), np.ones(len(rate))


def _pages(rng: np.random.Generator, rate: Numbers) -> tuple[Numbers, Numbers]:
    pages = (1 + rng.poisson(rng.lognormal(0, 1.5, len(rate)))).astype(np.float64)
    return rng.poisson(pages * rate * rng.beta(1, 5, len(rate))).astype(float), pages


def _worth(rng: np.random.Generator, rate: Numbers) -> tuple[Numbers, Numbers]:
    bought = rng.poisson(0.1 * rate)
    prices = rng.lognormal(0, 1.0, int(bought.sum()))
    worth = np.bincount(np.repeat(np.arange(len(rate)), bought), prices, len(rate)).astype(np.float64)
    return worth, np.ones(len(rate))


class Case(NamedTuple):
    """Arms of a test; with the first the others are compared."""

    shares: Sequence[float]
    draw: Draw
    users: int  # of a test of equal arms
    users_better: int  # of one in which the second arm is better
    live: bool = False


CASES = {
    "control 10%": Case((0.1, 0.9), _clicks, 30_000, 80_000),
    "control 10%, all have a value": Case((0.1, 0.9), _values, 30_000, 80_000),
    "control 2%": Case((0.02, 0.98), _clicks, 100_000, 300_000),
    "six arms": Case((0.1, *[0.18] * 5), _clicks, 30_000, 120_000),
    "by page": Case((0.1, 0.9), _pages, 30_000, 60_000),
    "worth": Case((0.1, 0.9), _worth, 40_000, 240_000),
    "live": Case((0.1, 0.9), _clicks, 30_000, 80_000, live=True),
}


def arms_calls(tests: int, seed: int = 0) -> list[Call]:
    """So many tests of each case with equal arms, and a tenth as many with a better one."""
    sizes = {0.0: tests, BETTER: tests // 10}
    return [(winners, (seed + n, case, lift)) for lift, some in sizes.items() for case in CASES for n in range(some)]


def winners(seed: int, case: str, lift: float) -> list[Row]:
    """One row: one test. ``named``: the users after whom an arm was named first."""
    of, rng = CASES[case], np.random.default_rng((seed, list(CASES).index(case)))
    users = of.users_better if lift else of.users
    arm = np.searchsorted(np.cumsum(of.shares)[:-1], rng.random(users), side="right")
    outcomes, pages = of.draw(rng, np.where(arm == 1, 1 + lift, 1.0))
    every = users // LOOKS
    if of.live:
        found = _live(arm, outcomes, every)
    else:
        names = np.array([f"{n}" for n in range(len(of.shares))])[arm]
        told = UserOutcomes(np.arange(1, users + 1), names, outcomes, pages, 0)
        rows = [row for row in looks(told, every, case == "by page", "0") if row["difference_low"] is not None]
        found = [(row["at_ms"], row["difference_low"], row["difference_high"]) for row in rows]
    named = [(at, low > 0) for at, low, high in found if low > 0 or high < 0]
    row: Row = {"of": "winners", "case": case, "lift": lift, "decided": bool(named)}
    return [row | {"more": any(more for _, more in named), "named": named[0][0] if named else None}]


def _live(arm: NDArray[np.intp], outcomes: Numbers, every: int) -> list[tuple[int, float, float]]:
    """Look by look, how many users there are, and the band of the archive's figures."""
    at = np.arange(every, len(arm) + 1, every)
    sums = [[np.cumsum(np.where(arm == a, x, 0))[at - 1].tolist() for x in (1, outcomes, outcomes**2)] for a in (0, 1)]
    found = list[tuple[int, float, float]]()
    for k, users in enumerate(at.tolist()):
        figures = ArmFigures(HOUR_MS)
        state = list(figures.snapshot())
        state[4] = {f"{a}": [[x[k] for x in of], *[(0, 0, 0)] * (len(OUTCOMES) - 1)] for a, of in enumerate(sums)}
        figures.resume(state)
        found += [(users, *one.more_band) for one in figures.look(users)]
    return found


def arms_report(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """By case, also in words: tests of equal arms that have a winner, the upper end of their share's 95% interval
    (Clopper and Pearson), and the users after whom four of five tests have named the better arm."""
    table, said = list[Row](), list[str]()
    for case in CASES:
        equal, better = (
            [r for r in rows if r["of"] == "winners" and r["case"] == case and r["lift"] == lift]
            for lift in (0.0, BETTER)
        )
        if not equal:
            continue
        n, false = len(equal), sum(r["decided"] for r in equal)
        high = float(stats.beta.ppf(0.975, false + 1, n - false)) if false < n else 1.0
        after = sorted(r["named"] if r["more"] else math.inf for r in better)
        users = after[math.ceil(0.8 * len(after)) - 1] if after else math.inf
        table.append({"case": case, "tests": n, "false": false, "false_high": high})
        table[-1]["users"] = None if math.isinf(users) else users
        said.append(f"{case}: of {n} tests of equal arms {false} have a winner (at most {high:.1%})")
        if better:
            said[-1] += f", an arm that earns a fifth more has {users:,.0f} users when four of five tests name it"
    return table, said
