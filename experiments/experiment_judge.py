# shell
"""``millrace dev experiment judge``: are logged odds true, do bands hold at every look, what does exploring give?

- ``odds``: many pages of a dozen candidates, each drawn as often by each rule, by the code that serves. A cell is an
  item in a slot below given items. Cells whose count lies within the 95% binomial bounds of its logged odds; the
  chi-square test of all, and it over its freedom (1 is true).
- ``real``: tests of a shop (ASOS; Liu et al., NeurIPS 2021): how many have a winner at some look, and at the last, by
  an interval for one look and by band. Looks are cumulative and users return, which changes what was counted of them
  before. So no guarantee holds there.
- ``bands``: tests of two arms in a simulated week, looked at each minute. Clicks come late and count within four hours,
  rates change, and the second arm's lift grows from nothing. The truth at a look is what those seen were expected to
  click. ``covered``: the band held it at all looks; ``decided``, ``naive``: it, or an ordinary one, decided at one.
- ``orders``: a better, an equal and a worse learner than one that learns from the pages that it draws, judged by these
  pages at twenty looks. The truth at a look is what both orders were expected to earn on the pages seen.
- ``winners``: arms that are equal or not, with long tails (experiments/judgearms.py).
- ``twins``, ``values``, ``learners``: closed loops (experiments/judgeloops.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from experiments.judgearms import arms_calls, arms_report
from experiments.judgeloops import EQUAL, SHARES, STOPPED, learners, loop_report, twins, value_report, values
from experiments.runs import Call, Row, run_experiment
from millrace.basics.durations import DAY_MS, HOUR_MS, MINUTE_MS
from millrace.basics.errors import SettingError
from millrace.commands.judge.arms import Exposures, users_of
from millrace.commands.judge.orders import Judged, Shown, ordered
from millrace.commands.offline.intervals import interval
from millrace.contracts.settings import Settings
from millrace.evidence.exploration import RULES, Exploration, Rule
from millrace.evidence.sequences import LEAST, NOTHING, Estimate, band, difference, ratio

DrawnPage = tuple[tuple[Any, ...], list[float]]
Cell = tuple[int, int, float]  # times that the items above were drawn, and it below them; its odds
CANDIDATES, SLOTS, HORIZON_MS = 12, 3, 4 * HOUR_MS
LEARNERS, LOGS, GOODS = ("better", "equal", "worse"), (300, 3000, 15_000), 30  # logs: pages
LIFTS = 0.0, 0.3  # of the second arm's clicks, in the mean of the week


def experiment_judge(
    out: Path,
    *,
    tests: int = 200,
    users: int = 3000,
    arms: int = 1000,
    draws: int = 1000,
    worlds: int = 5,
    equal: int = 10,
    valued: int = 5,
    shoppers: int = 400,
    judged: int = 2400,
    buyers: int = 600,
    candidates: int = Settings().candidates,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Try whether logged odds are true, whether bands hold at every look, and what exploring costs and gives.

    Args:
        out: folder for the report.
        tests: of each lift, and of each learner.
        users: of a test.
        arms: tests of each case of small arms; 0: none is.
        draws: pages, and how often each is drawn by each rule; 0: none is.
        worlds: of each twin, and tests of a learner that is worse; 0: none is.
        equal: tests of equal learners.
        valued: worlds in which pages are ranked by value; 0: none is.
        shoppers: who come on an average day of a twin.
        judged: who do while two learners are judged.
        buyers: who do where pages are ranked by value.
        candidates: of each page of a closed loop.
        seed: of the first test, and world.

    Raises:
        SettingError: one world, which gives no interval.
    """
    if 1 in (worlds, valued):
        raise SettingError("one world gives no interval", "use --worlds 5 or more, or 0 for none")
    calls = judge_calls(tests, users, arms, draws, seed)
    calls += [(values, (seed + n, buyers, candidates)) for n in range(valued)]
    for n in range(max(worlds, equal)):  # world by world, so that what an ended run has written can be read
        own = [(twins, (seed + n, shoppers, candidates, twin)) for twin in (*SHARES, STOPPED)]
        calls += [*own, (learners, (seed + n, judged, candidates, STOPPED))] if n < worlds else []
        calls += [(learners, (seed + n, judged, candidates, EQUAL))] if n < equal else []
    how: dict[str, Any] = {"workers": workers, "progress": progress, "seed": seed}
    how |= {"shoppers": shoppers, "judged": judged, "buyers": buyers, "candidates": candidates}
    return run_experiment(out, "Judging", calls, lambda rows: (make_report(rows), []), **how)


def judge_calls(tests: int, users: int, arms: int, draws: int, seed: int = 0) -> list[Call]:
    """All but closed loops; see :func:`experiment_judge`."""
    calls: list[Call] = [(odds, (rule, draws, seed)) for rule in RULES if draws]
    calls += [(bands, (seed + n, lift, users)) for lift in LIFTS for n in range(tests)]
    calls += arms_calls(arms, seed)
    return calls + [(orders, (seed + n, learner, LOGS[n % 3])) for learner in LEARNERS for n in range(tests)]


def odds(rule: Rule, n: int, seed: int = 0) -> list[Row]:
    """One row: n pages, each drawn n times."""
    how, told = Exploration(0.5, rule), list[Cell]()
    for page in range(n):
        scores = np.sort(np.random.default_rng((seed, page)).beta(1, 8, CANDIDATES).astype(np.float32))[::-1]
        pages = (how.draw(scores, SLOTS, SLOTS, np.random.default_rng((seed, page, k))) for k in range(n))
        told += cells([(tuple(drawn.order.tolist()), drawn.odds.tolist()) for drawn in pages])
    return [{"of": "odds", "rule": rule, "pages": n * n} | fit(told)]


def cells(pages: Iterable[DrawnPage]) -> list[Cell]:
    """Of drawn pages of the same candidates, (items, odds) each: the cells that are expected often enough."""
    seen, chance = defaultdict[Any, int](int), dict[Any, float]()
    for items, odds_of in pages:
        for k in range(SLOTS + 1):
            seen[items[:k]] += 1
        chance |= {items[: k + 1]: p for k, p in enumerate(odds_of)}
    return [(seen[c[:-1]], seen[c], p) for c, p in chance.items() if seen[c[:-1]] * min(p, 1 - p) >= 5]


def fit(told: Sequence[Cell]) -> Row:
    """How cells lie to their odds."""
    within = [stats.binom.ppf(0.025, n, p) <= count <= stats.binom.ppf(0.975, n, p) for n, count, p in told]
    chi2 = sum((count - n * p) ** 2 / (n * p) for n, count, p in told)
    freedom = sum(1 - p for *_, p in told)  # of all cells below the same items it is their number less 1
    found = {"within": np.mean(within), "squared_error": chi2 / freedom, "p": stats.chi2.sf(chi2, freedom)}
    return {"cells": len(told)} | {name: float(value) for name, value in found.items()}


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


def real(table: Path) -> list[Row]:
    """A row for each test in a table of looks: whether it has a winner."""
    looks = defaultdict[Any, list[tuple[bool, bool]]](list)
    for row in pq.read_table(table).sort_by("time_since_start").to_pylist():
        own, other = (Estimate(row[f"mean_{a}"], row[f"count_{a}"], row[f"variance_{a}"], math.inf) for a in "tc")
        if None not in (*own, *other) and min(own.n, other.n) >= LEAST:
            key = row["experiment_id"], row["variant_id"], row["metric_id"]
            looks[key].append(_judged(own, other, 0.0)[1:])
    names = "decided", "naive", "decided_last", "naive_last", "vanish"
    every = (([any(kind) for kind in zip(*one, strict=True)], one[-1]) for one in looks.values())
    return [
        {"of": "real"} | dict(zip(names, (*some, *last, some[1] and not some[0]), strict=True)) for some, last in every
    ]


def orders(seed: int, learner: str, pages: int) -> list[Row]:
    """One row: a learner judged by so many pages."""
    rng = np.random.default_rng((seed, LEARNERS.index(learner)))
    rate, taste, user = rng.beta(1, 8, GOODS), rng.gamma(4, 0.25, pages // 2), rng.integers(pages // 2, size=pages)
    clicks, shown, place = np.ones(GOODS), np.full(GOODS, 9.0), 1 / np.arange(1, SLOTS + 1)
    parts, gains = list[Any](), list[Any]()
    for part in np.array_split(np.arange(pages), 10):
        chance = np.minimum(taste[user[part], None] * rate * rng.gamma(1, 1, (len(part), GOODS)), 1)
        served, equal = (np.broadcast_to(c / shown, chance.shape) for c in (clicks, rng.poisson(clicks)))
        other = {"better": chance, "equal": equal, "worse": rng.random(chance.shape)}[learner]
        item = np.argsort(-np.log(served) - rng.gumbel(size=chance.shape), axis=1)
        left = np.cumsum(np.take_along_axis(served, item, 1)[:, ::-1], axis=1)[:, : -SLOTS - 1 : -1]
        item = item[:, :SLOTS]
        own, score, judged = (np.take_along_axis(x, item, 1) for x in (chance, served, other))
        came = rng.random(item.shape) < own * place
        parts.append((item, score / left, score, score, came * 1.0, judged))
        gains.append(np.subtract(*(np.take_along_axis(own, ordered(x, item), 1) @ place for x in (judged, score))))
        clicks += np.bincount(item.ravel(), came.ravel(), GOODS)
        shown += np.bincount(item.ravel(), minlength=GOODS)
    *columns, judged = (np.concatenate(column) for column in zip(*parts, strict=True))
    page = np.repeat(np.arange(pages), SLOTS)
    exposures = Shown(page, user[page], page, page < 0, page, page, *(column.ravel() for column in columns))
    found = Judged.of(exposures, np.arange(len(page)).reshape(judged.shape), judged)
    truth = np.cumsum(np.concatenate(gains)) / np.arange(1, pages + 1)
    looks = [(band(found.difference(known=k)), float(truth[k - 1])) for k in range(pages // 20, pages + 1, pages // 20)]
    more = [b.low > 0 for b, _ in looks if b.decided]
    row: Row = {"of": "orders", "learner": learner, "covered": all(b.low <= value <= b.high for b, value in looks)}
    row |= {"truth": float(truth[-1]), "error": found.difference().value - float(truth[-1])}
    return [row | {"more": any(more), "less": not all(more), "refused": looks[-1][0] == NOTHING}]


def _judged(one: Estimate, other: Estimate, truth: float) -> tuple[bool, bool, bool]:
    """Whether the band holds the truth; whether the band, and an interval for one look, are decided."""
    band = difference(one, other)
    error = math.sqrt(one.variance / one.n + other.variance / other.n) if one.said and other.said else math.inf
    return band.low <= truth <= band.high, band.decided, abs(one.value - other.value) > 1.96 * error


def make_report(rows: list[Row]) -> dict[str, Any]:
    drawn = [row for row in rows if row["of"] == "odds"]
    grouped = ("bands", "lift"), ("orders", "learner"), ("real", "of")
    tests, judged, real_ones = (_counts(rows, *of) for of in grouped)
    (loops, worded), (sold, worth), (small, named) = loop_report(rows), value_report(rows), arms_report(rows)
    loops |= {"values": sold}
    said = [
        f"{r['rule']}: of {r['pages']:,} pages {r['within']:.1%} of {r['cells']:,} cells are within the bounds of 95%, "
        f"chi-square over its freedom {r['squared_error']:.3f}, p {r['p']:.2g}"
        for r in drawn
    ]
    said += [
        f"lift {r['lift']:g}: {r['covered']} of {r['tests']} bands held the truth at all looks, {r['decided']} decided "
        f"({r['naive']} by an interval for one look)"
        for r in tests
    ]
    said += [
        f"{r['learner']} learner: {r['covered']} of {r['tests']} bands held the truth at all looks, {r['more']} say "
        f"more, {r['less']} less, {r['refused']} logs cannot say; the estimate's error is {r['error']:+.4f} ± "
        f"{r['error_ci']:.4f} of {r['truth']:+.4f} clicks a row"
        for r in judged
    ]
    said += [
        f"of {r['tests']} real tests {r['naive']} have a winner at some look by an interval for one look, "
        f"{r['decided']} by band: {r['vanish']} vanish (last look {r['naive_last']}, {r['decided_last']}); looks "
        "are cumulative, so no guarantee holds there"
        for r in real_ones
    ]
    report = {"odds": drawn, "bands": tests, "winners": small, "orders": judged, "real": real_ones}
    return {"verdict": "; ".join(said + named + worded + worth) + "."} | report | loops


def _counts(rows: list[Row], of: str, by: str) -> list[Row]:
    """A row for each value of ``by``: how many tests there were, of how many each answer is yes, figures' means."""
    own = [row for row in rows if row["of"] == of]
    yes, figures = (
        ([n for n, value in own[0].items() if isinstance(value, kind) and n != by] for kind in (bool, float))
        if own
        else ((), ())
    )
    groups = {value: [row for row in own if row[by] == value] for value in dict.fromkeys(row[by] for row in own)}
    return [
        {by: v, "tests": len(g)}
        | {name: sum(r[name] for r in g) for name in yes}
        | {key: value for name in figures for key, value in interval(name, [r[name] for r in g]).items()}
        for v, g in groups.items()
    ]
