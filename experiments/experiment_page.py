# shell
"""``millrace dev experiment page``: what a model gains that sees its page, part by part.

::

    a world's days (simulator/params.py) or a log of one's own, replayed once an arm: an exposure is scored before its
    label is learnt; figures are of the last day

Arms differ by schema and settings alone: today's model, one more for each of :data:`PARTS`, and all of them together.
Differences are paired by seed, of world and model both. ``way_closed`` is of pages longer than the shop's: how far the
AUC of a page comes from .5 towards the oracle's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from commands.offline.dataset import truth_of
from commands.offline.intervals import interval
from commands.replay.grouped import GroupedRows
from commands.replay.replayreport import Baseline
from commands.replay.replayrun import BATCH_ROWS, run_log
from experiments.runs import Call, Row, differences, run_experiment
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import FIGURES, auc, calibration, log_loss, within
from millrace.contracts.schema import Schema, parse_schema
from millrace.logs import TS, read_log
from simulator.daylog import write_days
from simulator.params import PAGE, WORLDS

TODAY, ALL, RATE, ORACLE = "today", "all", "item's rate", "oracle"
FIRST_DAY = "2026-03-02"
HOURS = 'lengths = ["1h", "6h", "1d", "3d"]\nhalf_lives = ["6h"]'
"""Windows of a feed, in place of the shop's days."""
_NUMBERS = [f"item_id.{action}.{{{span}}}" for action in ("exposure", "click_rate") for span in ("short", "long")]
_LAST = '[[fields]]\nname = "last_clicks"\nof = "user"\nslots = 16\n'
PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "among": ("".join(f'[[among]]\nnumber = "{name}"\n' for name in _NUMBERS), {}),
    "page term": ("", {"page_weight": 1.0}),
    "attention": (_LAST + 'pool = "attention"\n' + _LAST.replace("clicks", "clicks_age") + "width = 4\n", {}),
}
"""What an arm has that today's model has not: lines of its schema, with windows to fill in, and settings."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is run.

    Args:
        worlds: whose order is measured.
        log: one of one's own in their place.
        schema: schema file of that log.
        parts: of the model, each by itself and then all.
        seeds: runs of each.
        seed: the first.
        days: of each world; the last one is measured.
        users: who come on an average day.
    """

    worlds: tuple[str, ...] = ("shop", "feed", "confounded")
    log: Path | None = None
    schema: Path | None = None
    parts: tuple[str, ...] = tuple(PARTS)
    seeds: int = 5
    seed: int = 0
    days: int = 4
    users: int = 800

    def arms(self, world: str) -> Iterator[tuple[str, Schema, dict[str, Any]]]:
        """Name, schema and settings of each arm."""
        shop = resources.files("millrace.contracts").joinpath("shop.toml") if self.schema is None else self.schema
        text, spans = shop.read_text(encoding="utf-8"), {"short": "1d", "long": "7d"}
        if self.schema is None and world != "shop":
            text, spans = text.replace("days = [1, 3, 5, 7, 15, 30]", HOURS), {"short": "1h", "long": "1d"}
        every = {ALL: self.parts} if len(self.parts) > 1 else {}
        for arm, names in ({TODAY: ()} | {name: (name,) for name in self.parts} | every).items():
            schema = parse_schema("\n".join([text, *(PARTS[name][0].format(**spans) for name in names)]))
            yield arm, schema, {key: value for name in names for key, value in PARTS[name][1].items()}

    def calls(self) -> Iterator[Call]:
        worlds = [self.log.name] if self.log else self.worlds
        yield from ((order, (self, world, self.seed + k)) for k in range(self.seeds) for world in worlds)


def order(plan: Plan, world: str, seed: int) -> list[Row]:
    """The figures of each arm, of the item's rate and of the oracle, on the last day of a world or log."""
    out: list[Row] = []
    with TemporaryDirectory(prefix="millrace-page-") as folder, threads(1):
        where = plan.log or Path(folder)
        if plan.log is None:
            write_days(where, plan.days, seed, FIRST_DAY, plan.users, world=world)
        for arm, schema, spec in plan.arms(world):
            log = read_log(where, schema)
            groups, rate = GroupedRows(log, schema), Baseline.of(schema, log.table.num_rows)
            model = OnlineModel(schema, spec, seed)
            scores = {arm: run_log(log, schema, model, BATCH_ROWS, lambda _: None, groups, None, rate)}
            if arm == TODAY:
                truth = truth_of(where, schema, log.table.num_rows, log.table[TS].to_numpy())
                scores |= ({RATE: rate.scores} if rate else {}) | ({ORACLE: truth} if np.isfinite(truth).all() else {})
            last, y = groups.day == groups.day.max(), log.table[log.label].to_numpy()
            page = None if groups.page is None else groups.group[last]
            head: Row = {"world": world, "seed": seed}
            out += [head | {"arm": n} | figures(p[last], y[last], page, n != RATE) for n, p in scores.items()]
    return out


def figures(p: NDArray[Any], y: NDArray[Any], page: NDArray[Any] | None, chances: bool = True) -> dict[str, float]:
    """The figures of scores p, (n,), without those that have no value; ``long_page_auc`` too. ``chances``: whether they
    are probabilities."""
    found = {"auc": auc(p, y)} | ({"log_loss": log_loss(p, y), "calibration": calibration(p, y)} if chances else {})
    if page is not None:
        long = np.bincount(page)[page] > PAGE
        found |= within(p, y, page) | {"long_page_auc": within(p[long], y[long], page[long])["page_auc"]}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def experiment_page(
    out: Path, plan: Plan | None = None, *, workers: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Compare today's model with one that sees its page, part by part.

    Args:
        out: folder for the report.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: an unknown world or part, too few seeds, a log without a schema.
        LogError, SchemaError: the log cannot be read.
    """
    plan = plan or Plan()
    unknown = {*plan.worlds} - WORLDS.keys() | {*plan.parts} - PARTS.keys()
    if unknown:
        known = f"worlds {', '.join(WORLDS)}, parts {', '.join(PARTS)}"
        raise SettingError(f"there is no {', '.join(sorted(unknown))}", f"choose of {known}")
    if plan.seeds < 2 or (plan.log is None) != (plan.schema is None):
        raise SettingError(f"{plan.seeds} seeds, log {plan.log}, schema {plan.schema}", "give two seeds, both or none")
    how: dict[str, Any] = {"workers": workers, "progress": progress, "plan": str(plan)}
    return run_experiment(out, "The order of pages", [*plan.calls()], lambda rows: (make_report(rows), []), **how)


def make_report(rows: Sequence[Row]) -> dict[str, Any]:
    """A row for each world and arm: figures, and differences to today's model, with their intervals over seeds."""
    table = list[Row]()
    for world in dict.fromkeys(row["world"] for row in rows):
        runs = {(r["arm"], r["seed"]): r for r in rows if r["world"] == world}
        for arm in dict.fromkeys(arm for arm, _ in runs):
            pairs = [(r, runs[TODAY, seed], runs.get((ORACLE, seed), {})) for (a, seed), r in runs.items() if a == arm]
            row: Row = {"world": world, "arm": arm}
            for name in (*FIGURES, "long_page_auc"):
                if all(name in r for pair in pairs for r in pair[:2]):
                    row |= interval(name, [own[name] for own, _, _ in pairs])
                    row |= interval(f"{name}_over_today", [own[name] - base[name] for own, base, _ in pairs])
            if all("long_page_auc" in r for own, _, best in pairs for r in (own, best)):
                way = [(own["long_page_auc"] - 0.5) / (best["long_page_auc"] - 0.5) for own, _, best in pairs]
                row |= interval("way_closed", way)
            table.append(row)
    return {"verdict": verdict(table), "order": table}


def verdict(table: Sequence[Row]) -> str:
    """What each arm gains over today's, in the order of pages where the log has them, else in AUC."""
    said = []
    for world in dict.fromkeys(row["world"] for row in table):
        own = {row["arm"]: row for row in table if row["world"] == world}
        today, best = own.pop(TODAY), own.pop(ORACLE, {})
        own.pop(RATE, None)
        key, name = ("page_auc", "AUC of a page") if "page_auc" in today else ("auc", "AUC")
        oracle = f" (oracle {best[key]:.4f})" if key in best else ""
        more = differences([*own.values()], "arm", f"{key}_over_today")
        said.append(f"On {world}, {name} today is {today[key]:.4f}{oracle}; {more or 'nothing is compared with it'}.")
    return " ".join(said)
