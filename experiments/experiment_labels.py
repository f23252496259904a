# shell
"""``millrace dev experiment labels``: every label policy against the bound, at real speed.

*Traffic* comes at real speed, also where it is dense: the world has as many shoppers as that needs
(simulator/daylog.py). *Start*: ``cold`` knows nothing, neither model nor windows. ``history`` has the day before: a
share of that day's shoppers, drawn by shopper to about ``history_rows`` exposures, so that some of them come back. The
model learns it with settled labels, and each policy goes on from that state. *The bound* learns every label at its
exposure, which no live loop can do.

A score is that of the model as it was at the exposure's time. For a figure f over a set of runs, f(policy) being the
mean over them::

    gap_closed        = (AUC(policy) - AUC(wait)) / (AUC(bound) - AUC(wait))    over the last quarter of the rows;
                                                                                no value where wait reaches the bound
    log_loss_ratio    = log loss(policy) / log loss(bound)                      over the first quarter
    calibration_error = calibration(policy) - calibration(bound)                over either

Policies are compared on the same exposures and with the same model seeds. Intervals are over worlds, whose figures are
means over their runs: Student's t; for gap and ratio a bootstrap that draws worlds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from experiments import outcome_labels
from experiments.runs import Row, interval_of, means, of_labels, quotient, run_experiment
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.training.trainer import BATCH_MS, BATCH_ROWS
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import figures_of, known
from millrace.commands.offline.dataset import truth_of
from millrace.commands.offline.intervals import DIGITS
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings, ReplayModel, learn_through
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY, policy_named
from millrace.logs import TS, LogTable, read_log
from simulator.daylog import write_traffic

WORLDS = (3, 7, 11, 19, 23)
RATES = (1.0, 20.0, 200.0)
STARTS = ("cold", "history")
BOUND, ORACLE, WAIT = "bound", "oracle", "wait"
TARGETS = {
    "gap_closed": ("at least 0.8", 0.8, math.inf),
    "log_loss_ratio": ("at most 1.03", -math.inf, 1.03),
    "early_calibration_error": ("within 0.05", -0.05, 0.05),
    "late_calibration_error": ("within 0.05", -0.05, 0.05),
}
"""What the default policy must reach: in words, at least, at most."""
FIGURES = ("late_auc", "early_log_loss", "early_calibration", "late_calibration")


class Traffic:
    """A log: first a history, then traffic, with features that the code that serves makes. n rows in all. ``first``:
    rows of the history, may be 0."""

    def __init__(self, log: LogTable, schema: Schema, first: int) -> None:
        self.first = first
        self.rows = LogRows(log, schema)
        self._labels = Labels(log, schema, self.rows)
        self.cat, self.num = Stretches(log, schema).of(np.arange(self.rows.n))  # (n, F), (n, N)

    def samples(self, policy: str, history: bool = False) -> KnownSamples:
        """The samples of the traffic, or of the history, in the order in which the policy makes them known."""
        own = None if policy == BOUND else policy_named(policy)
        made = KnownSamples.of(self.rows.ts_ms, self._labels, own, LabelSettings.of(Settings()).observation_ms)
        mine = (made.row < self.first) == history
        return made.take(mine)

    def learn_history(self, model: ReplayModel) -> None:
        """The history in full batches, with settled labels: no policy has a part in it."""
        settled = self.samples(BOUND, history=True)
        for start in range(0, self.first, BATCH_ROWS):
            part = slice(start, min(start + BATCH_ROWS, self.first))
            model.learn(settled.batch(part, self.rows, self.cat[part], self.num[part]))

    def live(self, model: ReplayModel, policy: str) -> NDArray[np.float32]:
        """Scores of the traffic, each by the model as it was at the exposure's time. (n - first,)"""
        samples = self.samples(policy)
        return learn_through(model, self.rows, self.cat, self.num, samples, BATCH_ROWS, round(BATCH_MS))[self.first :]


def figures(p: NDArray[np.float32], y: NDArray[Any]) -> dict[str, float | None]:
    """The figures of scores p for labels y, (n,); None where there is no value. A score that is not finite counts as
    wrong."""
    parts = slice(0, len(y) // 4), slice(len(y) - len(y) // 4, len(y))
    early, late = (figures_of(p[part], y[part]) for part in parts)
    found = late["auc"], early["log_loss"], early["calibration"], late["calibration"]
    return {name: known(value, DIGITS) for name, value in zip(FIGURES, found, strict=True)}


def _run(
    world: int, rate: float, names: Sequence[str], seeds: int, rows: int, history_rows: int, spec: Mapping[str, Any]
) -> list[Row]:
    """The figures of all models, and of the oracle, in a world at a rate. ``names``: of policies, and the bound."""
    schema, head = shop_schema(), {"world": world, "rate": f"{rate:g}/s"}
    with TemporaryDirectory(prefix="millrace-labels-") as folder:
        write_traffic(Path(folder), world, rate, rows, history_rows)
        log = read_log(Path(folder), schema)
        first = log.table.num_rows - rows
        truth = truth_of(Path(folder), schema, log.table.num_rows, log.table[TS].to_numpy())[first:]
    out: list[Row] = []
    for start in STARTS:
        if start == "history":
            traffic = Traffic(log, schema, first)
        else:
            traffic = Traffic(replace(log, table=log.table.slice(first)), schema, 0)
        y = traffic.rows.label[traffic.first :]
        # The oracle is one more policy: it has no start and no seed, so it stands beside both.
        out.append(head | {"start": start, "seed": 0, "policy": ORACLE} | figures(truth, y))
        for seed in range(seeds):
            with threads(1):
                model = OnlineModel(schema, spec, seed)
                traffic.learn_history(model)
                state = model.snapshot()
                for name in names:
                    model = OnlineModel(schema, spec, seed)
                    model.resume(*state)
                    found = figures(traffic.live(model, name), y)
                    out.append(head | {"start": start, "seed": seed, "policy": name} | found)
    return out


def experiment_labels(
    out: Path,
    *,
    outcome: bool = False,
    worlds: Sequence[int] = WORLDS,
    rates: Sequence[float] = RATES,
    seeds: int = 5,
    rows: int = 80_000,
    history_rows: int = 60_000,
    policies: Sequence[str] = (),
    users: int = 300,
    spec: Annotated[Mapping[str, Any] | None, Parameter(parse=False)] = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare label policies at real speed, in simulated worlds of several rates of traffic. It takes hours.

    Args:
        out: folder for the report.
        outcome: compare the policies of an order that comes days after its click, at one rate and with one model a
            world (experiments/outcome_labels.py).
        worlds: seeds of the worlds.
        rates: exposures a second.
        seeds: of models, for each world, rate and start.
        rows: of traffic, in each run.
        history_rows: about how many exposures the history has.
        policies: names (default: all). The bound always runs too.
        users: of each world, with ``outcome``.
        spec: overrides of the model's settings.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: an unknown policy, or too few of something.
    """
    for name in policies:
        policy_named(name)
    if len(worlds) < 2 or not rates or seeds < 1:
        how_many = f"{len(worlds)} worlds, {len(rates)} rates and {seeds} seeds"
        raise SettingError(f"{how_many} give no interval", "ask for two worlds or more")
    if rows < 16 or history_rows < 1:
        raise SettingError(f"{rows} rows after a history of {history_rows}", "ask for at least 16 after at least 1")
    for some, what in ((worlds, "worlds"), (rates, "rates"), (policies, "policies")):
        if len(set(some)) < len(some):
            raise SettingError(f"{what} {', '.join(map(str, some))}", "name each once")
    names, default = tuple(policies or REGISTRY), Settings().label_policy
    own = ((BOUND, *names), seeds, rows, history_rows, dict(spec or {}))
    calls = [(_run, (*pair, *own)) for pair in product(worlds, rates)]
    how: dict[str, Any] = {"worlds": worlds, "spec": spec, "workers": workers, "progress": progress}
    if outcome:
        runs = [(outcome_labels.run_world, (world, users, dict(spec or {}))) for world in worlds]
        make, told, title = outcome_labels.make_report, outcome_labels.RULE.told, "Label policies of an outcome"
        return run_experiment(out, title, runs, lambda rows: (make(rows, told), []), users=users, **how)
    how |= {"seeds": seeds, "rows": rows}
    return run_experiment(out, "Label policies", calls, lambda runs: (make_report(runs, names, default), []), **how)


def make_report(runs: Sequence[Row], policies: Sequence[str], default: str) -> dict[str, Any]:
    """The tables of all runs, rows with ``world``, ``rate`` (its name), ``start``, ``policy``, ``seed`` and
    :func:`figures`. ``default``: the policy that the verdicts are on."""
    worlds = list(dict.fromkeys(r["world"] for r in runs))
    pooled: list[Row] = [{"policy": policy, **_closed(policy, runs, worlds)} for policy in policies]
    cells = []
    for rate, start in dict.fromkeys((r["rate"], r["start"]) for r in runs):
        here = [r for r in runs if (r["rate"], r["start"]) == (rate, start)]
        for policy in (BOUND, *policies, ORACLE):
            row: Row = {"policy": policy, "rate": rate, "start": start}
            for name in FIGURES:
                row |= interval_of(name, means(here, policy, name, worlds))
            more = means(here, policy, "late_auc", worlds) - means(here, BOUND, "late_auc", worlds)
            cells.append(row | interval_of("late_auc_over_bound", more))
    whole: Row = next((row for row in pooled if row["policy"] == default), {})
    verdicts = [
        {"figure": name, "value": (value := whole[name]), "target": target}
        | {"reached": None if value is None else least <= value <= most}
        for name, (target, least, most) in (TARGETS.items() if whole else ())
    ]
    made = {"default": default, "verdicts": verdicts, "pooled": pooled, "cells": cells}
    return {"verdict": of_labels(made)} | made


def _closed(policy: str, runs: Sequence[Row], worlds: Sequence[int]) -> dict[str, float | None]:
    """The module's three figures of a policy."""

    def of(name: str, of_policy: str = policy) -> NDArray[np.float64]:
        return means(runs, of_policy, name, worlds)

    wait = of("late_auc", WAIT)
    found = quotient("gap_closed", of("late_auc") - wait, of("late_auc", BOUND) - wait)
    found |= quotient("log_loss_ratio", of("early_log_loss"), of("early_log_loss", BOUND))
    for part in ("early", "late"):
        name = f"{part}_calibration"
        found |= interval_of(f"{name}_error", of(name) - of(name, BOUND))
    return found
