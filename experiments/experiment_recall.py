# shell
"""``millrace dev experiment recall``: what recall brings, in closed loop, with the same luck for each way of recalling.

::

    world (a seed) ──► seven days of the previous recommender ──► one model that learnt them ──┐ start "history"
          │                                                        untrained model, no counts ─┤ start "nothing"
          └──► the next day's visits ──► each arm goes through it by itself ◄──────────────────┘

Arms differ by how candidates are found and by nothing else. The same model ranks them and learns from what it showed:

- ``new``: the recall that serves.
- ``perfect``: the items that the shopper truly likes best. It says how much recall can bring beside this ranker.
- ``popular``: the most clicked items, which the others are compared with.

No page is random. From a start with nothing there are the catalogue and the shoppers' profiles, no count and an
untrained model. A ratio is of click rates, the arm's over that of ``popular``; its interval is over worlds, Student's t
on the logarithms of their ratios.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from msgspec import structs
from scipy import stats

from commands.offline.intervals import rounded
from experiments.recall import recallloop as loop
from experiments.recall.recallloop import DayLoop, Pupil, Recall, learn_days, start_shop
from experiments.recall.recallshop import RecallShop, params_of
from experiments.runs import Row, run_experiment
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.training.trainer import BATCH_ROWS
from millrace.basics.errors import SettingError
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from simulator.daylog import day_table, parse_day
from simulator.params import DEFAULT
from simulator.world import World

STARTS = ("history", "nothing")
NEW, PERFECT, POPULAR = "new", "perfect", "popular"
ARMS: Mapping[str, Callable[[RecallShop], Recall]] = {
    NEW: loop.new_recall,
    PERFECT: loop.perfect_recall,
    POPULAR: loop.popular_recall,
}
FIRST_DAY = parse_day("2026-03-02")  # of the history, a Monday
LARGE = 20_000
"""Items beyond which state is brought up to date less often: each step sorts the catalogue."""
WIDTH = 32  # of the retrieval head, as the role `learn` has it


def _run(seed: int, users: int, items: int, days: int, candidates: int, spec: Mapping[str, Any]) -> list[Row]:
    """The figures of all arms on one world, from both starts."""
    schema = shop_schema()
    world = World(seed, users, params_of(items) if items else DEFAULT)
    settings = structs.replace(Settings(), candidates=candidates)
    step_ms = loop.STEP_MS if items <= LARGE else 5 * loop.STEP_MS
    spec, number = {"retrieval_width": WIDTH, **spec}, FIRST_DAY + days
    out = []
    with threads(1):
        for start in STARTS:
            tables = [day_table(world, FIRST_DAY + k) for k in range(days)] if start == "history" else []
            model = OnlineModel(schema, spec, seed)
            state = (learn_days(model, tables) if tables else model).snapshot()
            for arm, recall_of in ARMS.items():
                clock = time.perf_counter()
                shop = start_shop(world, settings, number, tables)
                model = OnlineModel(schema, spec, seed)
                model.resume(*state)
                pupil = Pupil(model, BATCH_ROWS)
                pupil.renew(shop)
                found = DayLoop(world, shop, number, settings, recall_of(shop), pupil, step_ms).play()
                took = round(time.perf_counter() - clock, 1)
                out.append({"seed": seed, "start": start, "arm": arm, "seconds": took} | found)
    return out


def experiment_recall(
    out: Path,
    *,
    seeds: int = 5,
    seed: int = 0,
    users: int = 1500,
    items: int = 0,
    days: int = 7,
    candidates: int = Settings().candidates,
    spec: Annotated[Mapping[str, Any] | None, Parameter(parse=False)] = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare recall with a perfect one and with the most clicked items, in closed loop, with the same luck.

    Args:
        out: folder for the report.
        seeds: how many worlds, each with a model of its own.
        seed: of the first world.
        users: who come on an average day.
        items: about how many are on sale at a time; 0: the default world's, some 6,000.
        days: of history.
        candidates: of each page.
        spec: overrides of the model's settings.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: too few of something.
    """
    if min(seeds, users, days) < 1 or min(seed, items) < 0:
        what = f"{seeds} worlds from seed {seed}, {users} users, {items} items, {days} days of history"
        raise SettingError(what, "ask for at least one world, user and day, and for nothing below 0")
    scale = {"users": users, "items": items, "days": days, "candidates": candidates, "spec": dict(spec or {})}
    calls = [(_run, (world, *scale.values())) for world in range(seed, seed + seeds)]
    how: dict[str, Any] = {"workers": workers, "progress": progress, "first_seed": seed, **scale}
    return run_experiment(out, "Recall in closed loop", calls, lambda rows: (make_report(rows), []), **how)


# -- all worlds ----------------------------------------------------------------------------------------------


def make_report(runs: Sequence[Row]) -> dict[str, Any]:
    """A row for each start and arm, and a verdict. ``runs``: seed, start, arm, exposures, clicks."""
    of = {(r["seed"], r["start"], r["arm"]): r for r in runs}
    seeds, starts = (list(dict.fromkeys(r[name] for r in runs)) for name in ("seed", "start"))
    arms: list[Row] = []
    for start in starts:
        for arm in ARMS:
            pairs = [(of[s, start, arm], of[s, start, POPULAR]) for s in seeds]
            rates = [run["clicks"] / run["exposures"] for run, _ in pairs]
            row = {"start": start, "arm": arm, "worlds": len(seeds), "click_rate": rounded(float(np.mean(rates)))}
            if any(run["exposures"] != base["exposures"] for run, base in pairs):
                raise ValueError(f"the pages of '{arm}' are not the same as those of '{POPULAR}'")
            ratios = [run["clicks"] / base["clicks"] if base["clicks"] else math.nan for run, base in pairs]
            arms.append(row | over_worlds(ratios))
    return {"verdict": " ".join(_verdict(start, arms) for start in starts), "arms": arms}


def over_worlds(ratios: Sequence[float]) -> dict[str, float | None]:
    """The geometric mean of worlds' ratios with its interval, which for one world is that ratio alone. None where an
    arm had no click at all."""
    if not all(0 < r < math.inf for r in ratios):
        return {"ratio": None, "ratio_low": None, "ratio_high": None}
    logs = np.log(ratios)
    mean = float(logs.mean())
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else 0.0
    found = {"ratio": mean, "ratio_low": mean - half, "ratio_high": mean + half}
    return {name: rounded(math.exp(value)) for name, value in found.items()}


def _verdict(start: str, arms: Sequence[Row]) -> str:
    own = {row["arm"]: row for row in arms if row["start"] == start}
    ratio, low, high, worlds = (own[NEW][name] for name in ("ratio", "ratio_low", "ratio_high", "worlds"))
    if ratio is None:
        return f"Start with {start}: an arm had no click, so there is no ratio; ask for more users."
    found = "better" if low > 1 else "worse" if high < 1 else "no clear difference"
    how = f"95% over {worlds} worlds {low:.3f} to {high:.3f}: {found}" if worlds > 1 else "one world: no interval"
    best = own[PERFECT]["ratio"]
    most = "" if best is None else f" A perfect recall under the same ranker has {best:.3f} times."
    text = f"recall's click rate over a day is {ratio:.3f} times that of the most clicked items"
    return f"Start with {start}: {text} ({how}).{most}"
