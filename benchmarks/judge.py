# shell
"""``millrace dev bench judge``: are odds, bands and off-policy estimates true, and what does drawing a page cost?

Parts of ``millrace dev experiment judge``, with fewer tests.

*odds RULE*
    Share of cells whose count lies within the 95% bounds of the logged odds, of a thousand pages, each drawn as often.
*covered LIFT*, *covered LEARNER*
    Share of tests whose band held the truth at all looks: of two arms; of a learner judged by logged pages.
*false_winners CASE*, *users_80 CASE*
    Share of tests of equal arms with a winner at one of a hundred looks, for cases of small arms and long tails; users
    after whom four of five tests name an arm that earns a fifth more.
*estimate_error LEARNER*
    What off-policy estimates say that a learner's order earns more, less what it truly does: the mean of all logs.
*real_naive*, *real_band*
    Of a shop's tests (the folder ``MILLRACE_TEST_ASOS``), those with a winner at some look by an interval for one look,
    and by band.
*draw_ms RULE*, *draw_page_ms*
    CPU of a draw with its odds; then of the mean page where 5% are drawn by ``softmax``. Of 1,000 candidates, over the
    same page as ranked.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import cpu_s
from experiments.experiment_judge import judge_calls, make_report, real
from experiments.runs import run_calls
from millrace.evidence.exploration import RULES, Exploration
from scorer.recall.candidate_lists import largest

CANDIDATES, PAGE = 1000, 20


class Size(NamedTuple):
    """How much is measured."""

    tests: int = 200
    users: int = 3000
    draws: int = 2000
    drawn: int = 1000  # pages, and how often each
    arms: int = 1000  # tests of equal arms


SHORT = Size(3, 400, 20, 100, 10)


def run(out: Path, say: Say, size: Size) -> Iterator[Figure]:
    """The figures, as in the module's text."""
    yield from draw_costs(size.draws)
    calls, tables = judge_calls(size.tests, size.users, size.arms, size.drawn), asos()
    if not tables:
        say("MILLRACE_TEST_ASOS names no folder with a table of real tests: they are left out")
    report = make_report(run_calls([*calls, *((real, (table,)) for table in tables)], lambda _: None, 1))
    say(report["verdict"])
    yield from figures(report)


def asos() -> list[Path]:
    """The table of the ASOS Digital Experiments Dataset, where there is one."""
    return sorted(Path(os.environ.get("MILLRACE_TEST_ASOS") or os.devnull).glob("*.parquet"))


def figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    """The figures of a report of the experiment."""
    for row in report["odds"]:
        yield figure(f"odds {row['rule']}", row["within"], f"of {row['cells']} cells")
    for row in (*report["bands"], *report["orders"]):
        of = row["learner"] if "learner" in row else f"lift {row['lift']:g}"
        yield figure(f"covered {of}", row["covered"] / row["tests"], f"of {row['tests']} bands")
    for row in report["winners"]:
        most = f"of {row['tests']} tests, at most {row['false_high']:.1%}"
        yield figure(f"false_winners {row['case']}", row["false"] / row["tests"], most)
        if row["users"]:
            yield figure(f"users_80 {row['case']}", row["users"], "users")
    for row in report["real"]:
        for name, of in {"naive": "naive", "band": "decided"}.items():
            yield figure(f"real_{name}", row[of], f"of {row['tests']} tests")
    for row in report["orders"]:
        unit, share = f"clicks a row (± {row['error_ci']:.2g})", row["error"] / abs(row["truth"])
        yield figure(f"estimate_error {row['learner']}", row["error"], unit, "truth", share)


def draw_costs(draws: int) -> Iterator[Figure]:
    """The cost of a draw by each rule, and of the mean page. They take turns."""
    scores = np.sort(np.random.default_rng(0).beta(1, 8, CANDIDATES).astype(np.float32))[::-1]
    own = {rule: Exploration(1.0, rule) for rule in RULES} | {"page": Exploration(0.05)}
    spent: dict[str, list[float]] = {name: [] for name in ("ranked", *own)}
    for n in range(draws):
        spent["ranked"].append(1000 * cpu_s(lambda: largest(scores, PAGE)))
        for name, how in own.items():
            chance = np.random.default_rng((0, n))
            spent[name].append(1000 * cpu_s(partial(how.draw, scores, PAGE, PAGE, chance)))
    ranked = statistics.mean(spent.pop("ranked"))
    for name, took in spent.items():
        ms = statistics.mean(took)
        yield figure("draw_page_ms" if name == "page" else f"draw_ms {name}", ms, "ms", "as ranked", ms / ranked)
