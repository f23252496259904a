# shell
"""``millrace dev experiment judge``: are logged odds true, do bands hold at every look, what does exploring give?

- ``odds``: pages of a live scorer by each rule. A cell is an item in a slot below given items. Cells whose count lies
  within the 95% binomial bounds of its logged odds; the chi-square test of all, and it over its freedom (1 is true).
- ``bands``: tests of two arms in a simulated week, looked at each minute. Clicks come late and count within four hours,
  rates change, and the second arm's lift grows from nothing. The truth at a look is what those seen were expected to
  click. ``covered``: the band held it at all looks; ``decided``, ``naive``: it, or an ordinary one, decided at one.
- ``orders``: a better, an equal and a worse learner than one that learns from the pages that it draws, judged by these
  pages at twenty looks. The truth at a look is what both orders were expected to earn on the pages seen.
- ``twins``, ``learners``: closed loops (experiments/judgeloops.py).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from http.client import HTTPConnection
from importlib.resources import files
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from scipy import stats

from commands.judge.arms import Exposures, users_of
from commands.judge.orders import Judged, Shown, ordered
from commands.offline.intervals import interval
from commands.up.started import Started
from experiments.judgeloops import EQUAL, SHARES, STOPPED, learners, loop_report, twins
from experiments.runs import Call, Row, run_experiment
from millrace.basics.durations import DAY_MS, HOUR_MS, MINUTE_MS
from millrace.basics.errors import SettingError
from millrace.contracts.page_logs import decode_heading
from millrace.contracts.settings import Settings
from millrace.contracts.topics import PAGE_LOGS
from millrace.evidence.exploration import RULES
from millrace.evidence.sequences import NOTHING, Estimate, band, difference, ratio
from millrace.evidence.user_arms import Arm, ArmDraw
from millrace.processes.kafka import read_topics
from millrace.processes.wall import wall_ms

DrawnPage = tuple[tuple[Any, ...], list[float]]
ITEMS, SLOTS, HEAT, HORIZON_MS = 40, 3, 0.02, 4 * HOUR_MS
LEARNERS, LOGS, GOODS = ("better", "equal", "worse"), (300, 3000, 15_000), 30  # logs: pages
LIFTS = 0.0, 0.3  # of the second arm's clicks, in the mean of the week


def experiment_judge(
    out: Path,
    *,
    tests: int = 200,
    users: int = 3000,
    pages: int = 20_000,
    worlds: int = 5,
    equal: int = 10,
    shoppers: int = 400,
    judged: int = 1200,
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
        pages: of each rule; 0: no scorer is started.
        worlds: of each twin, and tests of a learner that is worse; 0: none is.
        equal: tests of equal learners.
        shoppers: who come on an average day of a twin.
        judged: who do while two learners are judged.
        candidates: of each page of a closed loop.
        seed: of the first test, and world.

    Raises:
        SettingError: one world, which gives no interval.
    """
    if worlds == 1:
        raise SettingError("one world gives no interval", "use --worlds 5 or more, or 0 for none")
    calls = judge_calls(tests, users, pages, seed)
    for n in range(max(worlds, equal)):  # world by world, so that what an ended run has written can be read
        own = [(twins, (seed + n, shoppers, candidates, twin)) for twin in (*SHARES, STOPPED)]
        calls += [*own, (learners, (seed + n, judged, candidates, STOPPED))] if n < worlds else []
        calls += [(learners, (seed + n, judged, candidates, EQUAL))] if n < equal else []
    how: dict[str, Any] = {"workers": workers, "progress": progress, "seed": seed}
    how |= {"shoppers": shoppers, "judged": judged, "candidates": candidates}
    return run_experiment(out, "Judging", calls, lambda rows: (make_report(rows), []), **how)


def judge_calls(tests: int, users: int, pages: int, seed: int = 0) -> list[Call]:
    """All but closed loops; see :func:`experiment_judge`."""
    calls: list[Call] = [(odds, (pages,))] if pages else []
    calls += [(bands, (seed + n, lift, users)) for lift in LIFTS for n in range(tests)]
    return calls + [(orders, (seed + n, learner, LOGS[n % 3])) for learner in LEARNERS for n in range(tests)]


def odds(pages: int) -> list[Row]:
    """A row for each rule: pages by a live scorer. A rule is an arm, and all its pages are one user's."""
    arms: dict[str, Arm] = {rule: Arm("model", 1 / len(RULES), explore=f"0.5,{rule},{HEAT}") for rule in RULES}
    env = Settings(arms=arms, control_share=0, schema=str(files("millrace.contracts") / "shop.toml")).environment()
    draw, drawn = ArmDraw(0, arms), defaultdict[str, list[DrawnPage]](list)
    users = {draw.of(user): user for user in range(100)}
    with TemporaryDirectory() as folder, Started(Path(folder, "data"), "--no-archive", env=env) as loop:
        where, ts_ms = loop.where(), wall_ms()
        intake, scorer = (HTTPConnection(where[name].removeprefix("http://")) for name in ("intake", "scorer"))
        for n in range(ITEMS):
            _answer(intake, "/items", item_id=n, attributes={"category": f"c{n}", "price": 1.5**n})
        while len(_answer(scorer, "/recommend", user_id=0, size=ITEMS).get("items", ())) < ITEMS:
            time.sleep(0.1)
        for n, rule in product(range(pages), RULES):
            _answer(scorer, "/recommend", user_id=users[rule], size=SLOTS, request_id=f"{rule} {n}", ts_ms=ts_ms)
        reader = read_topics(Settings(kafka=where["kafka"]), {PAGE_LOGS: {}})
        while sum(map(len, drawn.values())) < pages * len(RULES):
            for record in chain.from_iterable(reader.poll(1000).values()):
                log = decode_heading(record.value)
                if log.request_id.startswith(RULES):
                    drawn[log.arm_name].append((tuple(log.items), np.frombuffer(log.odds, np.float32).tolist()))
        for one in (intake, scorer, reader):
            one.close()
    return [{"of": "odds", "rule": rule, "pages": len(drawn[rule])} | cells(drawn[rule]) for rule in RULES]


def cells(pages: Iterable[DrawnPage]) -> Row:
    """How drawn pages of the same candidates, (items, odds) each, lie to their odds."""
    seen, chance = defaultdict[Any, int](int), dict[Any, float]()
    for items, odds_of in pages:
        for k in range(SLOTS + 1):
            seen[items[:k]] += 1
        chance |= {items[: k + 1]: p for k, p in enumerate(odds_of)}
    told = [(seen[c[:-1]], seen[c], p) for c, p in chance.items() if seen[c[:-1]] * min(p, 1 - p) >= 5]  # enough
    within = [stats.binom.ppf(0.025, n, p) <= count <= stats.binom.ppf(0.975, n, p) for n, count, p in told]
    chi2 = sum((count - n * p) ** 2 / (n * p) for n, count, p in told)
    freedom = sum(1 - p for *_, p in told)  # of all cells below the same items it is their number less 1
    found = {"within": np.mean(within), "squared_error": chi2 / freedom, "p": stats.chi2.sf(chi2, freedom)}
    return {"cells": len(told)} | {name: float(value) for name, value in found.items()}


def _answer(to: HTTPConnection, path: str, **body: Any) -> Any:
    to.request("POST", path, msgspec.json.encode(body), {"Content-Type": "application/json"})
    return msgspec.json.decode(to.getresponse().read())


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
    tests, judged = (_counts(rows, *of) for of in (("bands", "lift"), ("orders", "learner")))
    loops, worded = loop_report(rows)
    said = [
        f"{r['rule']}: {r['within']:.1%} of {r['cells']:,} cells within the bounds of 95%, p {r['p']:.2g}"
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
    return {"verdict": "; ".join(said + worded) + ".", "odds": drawn, "bands": tests, "orders": judged} | loops


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
