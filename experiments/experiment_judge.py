# shell
"""``millrace dev experiment judge``: are logged odds true, and do bands hold at every look?

- ``odds``: pages drawn by each rule. A cell is an item in a slot below given items: the share of cells whose count lies
  within the binomial bounds of 95% of its logged odds, and the mean squared error of all (1 where odds are true).
- ``bands``: tests of two arms in a simulated week, looked at each minute. Users come by day and night, clicks come late
  and count within four hours, rates change, and the second arm's lift grows from nothing. So the truth at a look is the
  mean of what those seen were expected to click. ``covered``: tests whose band held it at all looks; ``decided`` and
  ``naive``: tests that the band, or an interval of 95% for one look, decided at some look.
- ``real``, with ``--log``: a table of real tests (columns as in Liu et al., NeurIPS 2021, the ASOS data), judged alike.
  Its looks are cumulative, and returning users change old means: nothing is guaranteed there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from commands.judge.arms import Exposures, users_of
from experiments.runs import Row, run_experiment
from millrace.basics.durations import DAY_MS, HOUR_MS, MINUTE_MS
from millrace.evidence.exploration import RULES, Exploration, Rule
from millrace.evidence.sequences import LEAST, Estimate, difference, ratio

_REAL = ("tests", "naive", "naive_at_the_end", "decided", "decided_at_the_end")
SLOTS, DRAWS, HORIZON_MS = 3, 1000, 4 * HOUR_MS
LIFTS = 0.0, 0.3  # of the second arm's clicks, in the mean of the week


def experiment_judge(
    out: Path,
    *,
    tests: int = 200,
    users: int = 3000,
    pages: int = 1000,
    log: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Try whether logged odds are true, and whether bands hold at every look.

    Args:
        out: folder for the report.
        tests: of each lift.
        users: of a test.
        pages: drawn a thousand times by each rule.
        log: a table of real tests, as Parquet.
        seed: of the first test.
    """
    calls: list[Any] = [(odds, (rule, pages, seed)) for rule in RULES] + ([(real, (log,))] if log else [])
    calls += [(bands, (seed + n, lift, users)) for lift in LIFTS for n in range(tests)]
    return run_experiment(
        out, "Judging", calls, lambda rows: (_report(rows), []), workers=workers, progress=progress, seed=seed
    )


def odds(rule: Rule, pages: int, seed: int) -> list[Row]:
    """One row: cells of pages of six candidates."""
    rng, how = np.random.default_rng(seed), Exploration(0.5, rule, 0.7)
    within, errors = 0, list[float]()
    for _ in range(pages):
        scores = np.sort(rng.beta(1, 8, 6).astype(np.float32))[::-1]
        seen, chance = defaultdict[tuple[int, ...], int](int), dict[tuple[int, ...], float]()
        for _ in range(DRAWS):
            drawn = how.draw(scores, SLOTS, SLOTS, rng)
            order = tuple(drawn.order.tolist())
            for k in range(SLOTS + 1):
                seen[order[:k]] += 1
            chance |= {order[: k + 1]: float(drawn.odds[k]) for k in range(SLOTS)}
        for cell, p in chance.items():
            n, count = seen[cell[:-1]], seen[cell]
            if min(n * p, n * (1 - p)) >= 5:  # enough to tell
                within += bool(stats.binom.ppf(0.025, n, p) <= count <= stats.binom.ppf(0.975, n, p))
                errors.append((count - n * p) ** 2 / (n * p * (1 - p)))
    shares = {"within": within / len(errors), "squared_error": np.mean(errors)}
    return [{"of": "odds", "rule": rule, "cells": len(errors)} | shares]


def bands(seed: int, lift: float, users: int) -> list[Row]:
    """One row: one test."""
    rng, week = np.random.default_rng(seed), 7 * DAY_MS
    at = np.sort(rng.random(4 * users) * week)
    at = at[rng.random(4 * users) < 0.25 + 0.25 * np.sin(2 * np.pi * at / DAY_MS)]  # day and night
    treated = rng.random(len(at)) < 0.3
    rate = 0.15 + 0.05 * np.sin(2 * np.pi * at / week)
    own = rate * np.where(treated, 1 + 2 * lift * at / week, 1)
    user = np.repeat(np.arange(len(at)), 1 + rng.poisson(1, len(at)))
    clicked = rng.random(len(user)) < rng.beta(2, 2 / own - 2)[user]
    delay = stats.lognorm(1.0, scale=20 * MINUTE_MS)
    came = np.where(clicked, at[user] + delay.rvs(len(user), random_state=rng), -1)
    arm = np.where(treated, "model", "control")[user]
    first_ms, came_ms = at[user].astype(np.int64), came.astype(np.int64)
    found = users_of(Exposures(first_ms, user, user, arm, came_ms, np.ones(len(user))), HORIZON_MS)
    y, mine = found.outcomes, found.arm == "model"
    gain = 2 * (rate * 2 * lift * at / week)[: len(y)] * float(delay.cdf(HORIZON_MS))
    truth = np.cumsum(gain) / np.arange(1, len(y) + 1)
    looks = np.arange(found.until_ms[0], found.until_ms[-1] + MINUTE_MS, MINUTE_MS)
    known = np.unique(np.searchsorted(found.until_ms, looks, side="right"))[1:].tolist()
    judged = [_judged(ratio(y[:k][mine[:k]]), ratio(y[:k][~mine[:k]]), float(truth[k - 1])) for k in known]
    covered, decided, naive = all(j[0] for j in judged), any(j[1] for j in judged), any(j[2] for j in judged)
    return [{"of": "bands", "lift": lift, "covered": covered, "decided": decided, "naive": naive}]


def real(log: Path) -> list[Row]:
    """A row for each metric of a table of real tests."""
    names = ("count_t", "mean_t", "variance_t", "count_c", "mean_c", "variance_c")
    table = pq.read_table(log).sort_by("time_since_start")
    tests: defaultdict[tuple[Any, ...], list[tuple[float, ...]]] = defaultdict(list)
    keys = zip(*(table[name].to_pylist() for name in ("metric_id", "experiment_id", "variant_id")), strict=True)
    for key, look in zip(keys, zip(*(table[name].to_pylist() for name in names), strict=True), strict=True):
        if None not in look and min(look[0], look[3]) >= LEAST:
            tests[key].append(look)
    rows: dict[Any, Row] = {}
    for (metric, *_), seen in tests.items():
        judged = [
            _judged(Estimate(w[1], int(w[0]), w[2], True), Estimate(w[4], int(w[3]), w[5], True), 0.0) for w in seen
        ]
        row = rows.setdefault(metric, {"of": "real", "metric": metric} | dict.fromkeys(_REAL, 0))
        found = 1, any(j[2] for j in judged), judged[-1][2], any(j[1] for j in judged), judged[-1][1]
        row |= {name: row[name] + int(yes) for name, yes in zip(_REAL, found, strict=True)}
    return [rows[metric] for metric in sorted(rows)]


def _judged(one: Estimate, other: Estimate, truth: float) -> tuple[bool, bool, bool]:
    """Whether the band holds the truth; whether the band, and an interval for one look, are decided."""
    band = difference(one, other)
    error = math.sqrt(one.variance / one.n + other.variance / other.n) if one.said and other.said else math.inf
    return band.low <= truth <= band.high, band.decided, abs(one.value - other.value) > 1.96 * error


def _report(rows: list[Row]) -> dict[str, Any]:
    drawn, judged, real_ones = ([row for row in rows if row["of"] == of] for of in ("odds", "bands", "real"))
    tests = []
    for lift in LIFTS:
        own = [row for row in judged if row["lift"] == lift]
        counts = {name: sum(row[name] for row in own) for name in ("covered", "decided", "naive")}
        tests.append({"lift": lift, "tests": len(own)} | counts)
    said = [f"{r['rule']}: {r['within']:.1%} of {r['cells']:,} cells within the bounds of 95%" for r in drawn]
    said += [
        f"lift {r['lift']:g}: {r['covered']} of {r['tests']} bands held the truth at all looks, {r['decided']} decided "
        f"({r['naive']} by an interval for one look)"
        for r in tests
    ]
    if real_ones:
        total = {name: sum(r[name] for r in real_ones) for name in _REAL}
        said.append(
            f"of {total['tests']} real tests {total['naive']} win at some naive look, {total['decided']} by band"
        )
    return {"verdict": "; ".join(said) + ".", "odds": drawn, "bands": tests, "real": real_ones}
