# shell
"""``millrace dev experiment labels``: every label policy against the bound, at real speed.

::

    worlds x rates ──► logs ──► features, and the samples of each policy       made once (realspeed.py)
                                      │
    starts x seeds ────► a model ─────┴► lives through the traffic, once for each policy and the bound ──► report

*Traffic* comes at real speed, also where it is dense: the world has as many shoppers as that needs
(simulator/daylog.py). *Start*: ``cold`` knows nothing, neither model nor windows. ``history`` has the day before: a
share of that day's shoppers, drawn by shopper to about :data:`HISTORY_ROWS` exposures, so that some of them come back.
The model learns it with settled labels in full batches, once for each seed, and each policy goes on from that snapshot.
So policies differ in nothing but the traffic's samples. Traffic begins at noon of the next day, or at its midnight
where it does not fit into the afternoon (1 exposure a second). *The bound* learns every label at its exposure.

Figures are of the scores that pages would have been served with, in the order of exposure
(:mod:`experiments.labels_report`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from commands.offline.dataset import truth_of
from commands.offline.intervals import rounded
from commands.replay.known import LabelSettings
from experiments.experiment_verdicts import of_labels
from experiments.labels_report import BOUND, ORACLE, figures, make_report
from experiments.realspeed import learn_history, live, open_samples, open_stretch, prepare
from experiments.runs import Call, Group, Row, ended_runs, run_groups, runs_file
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.errors import SettingError
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY, policy_named
from millrace.logs import TS, read_log
from millrace.reports import Plot, interval_plot, surroundings, write_all
from simulator.daylog import write_traffic

WORLDS = (3, 7, 11, 19, 23)
RATES = (1.0, 20.0, 200.0)
SEEDS = 5
ROWS = 80_000
HISTORY_ROWS = 60_000
STARTS = ("cold", "history")


@dataclass(frozen=True, slots=True)
class Job:
    """One model's lives on one stretch."""

    world: int
    rate: str
    start: str
    seed: int
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run."""

    names: tuple[str, ...]  # of policies; the bound is the first
    seeds: int
    rows: int
    history_rows: int
    observation_ms: int
    spec: dict[str, Any]


# -- in a worker ---------------------------------------------------------------------------------------------


def _prepare(plan: Plan, folder: Path, world: int, rate: float) -> dict[str, Any]:
    """Makes what the runs on a world and a rate read. What the report says of it, and the oracle's figures."""
    schema = shop_schema()
    write_traffic(folder / "log", world, rate, plan.rows, plan.history_rows)
    log = read_log(folder / "log", schema)
    first, times = log.table.num_rows - plan.rows, log.table[TS].to_numpy()
    truth = truth_of(folder / "log", schema, log.table.num_rows, times)[first:]
    policies = {name: None if name == BOUND else policy_named(name) for name in plan.names}
    cold = replace(log, table=log.table.slice(first))
    prepare(log, first, schema, folder / "history", policies, plan.observation_ms)
    prepare(cold, 0, schema, folder / "cold", policies, plan.observation_ms)
    shutil.rmtree(folder / "log")
    label, seconds = cold.table[cold.label].to_numpy(), max(1, int(times[-1] - times[first])) / 1000
    return {
        "world": world,
        "rate": f"{rate:g}/s",
        "history": first,
        "measured_rate": rounded(len(label) / seconds),
        "click_rate": rounded(float(label.mean())),
        "oracle": figures(truth, label),
    }


def _run(job: Job, folder: Path, history: int, names: Sequence[str], spec: Mapping[str, Any]) -> list[Row]:
    """The figures of one model under each policy."""
    schema, out = shop_schema(), []
    with threads(1):
        stretch = open_stretch(folder / job.start, schema, history if job.start == "history" else 0)
        first = OnlineModel(schema, spec, job.seed)
        learn_history(first, stretch)
        state = first.snapshot()
        label = np.array(stretch.label[stretch.history :])
        for name in names:
            clock = time.perf_counter()
            model = OnlineModel(schema, spec, job.seed)
            model.resume(*state)
            p = live(model, stretch, open_samples(folder / job.start, name))
            seconds = round(time.perf_counter() - clock, 1)
            out.append(asdict(job) | {"policy": name, "seconds": seconds} | figures(p, label))
    return out


# -- the experiment ------------------------------------------------------------------------------------------


def experiment_labels(
    out: Path,
    *,
    worlds: Sequence[int] = WORLDS,
    rates: Sequence[float] = RATES,
    seeds: int = SEEDS,
    rows: int = ROWS,
    history_rows: int = HISTORY_ROWS,
    policies: Sequence[str] = (),
    spec: Annotated[Mapping[str, Any] | None, Parameter(parse=False)] = None,
    resume: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare label policies at real speed, in simulated worlds of several rates of traffic. It takes hours.

    Args:
        out: folder for the report.
        worlds: seeds of the worlds.
        rates: exposures a second.
        seeds: of models, for each world, rate and start.
        rows: of traffic, in each run.
        history_rows: about how many exposures the history has.
        policies: names (default: all). The bound always runs too.
        spec: overrides of the model's settings.
        resume: keep the runs that ``runs.jsonl`` has. Whoever asks for it knows that they are of this code.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: an unknown policy, or too few of something.
    """
    for name in policies:
        policy_named(name)
    if not worlds or not rates or seeds < 1 or len(worlds) * seeds < 2:
        raise SettingError(
            f"{len(worlds)} worlds, {len(rates)} rates and {seeds} seeds give no interval", "ask for more"
        )
    if rows < 16 or history_rows < 1:
        raise SettingError(f"{rows} rows after a history of {history_rows}", "ask for at least 16 after at least 1")
    for some, what in ((worlds, "worlds"), (rates, "rates"), (policies, "policies")):
        if len(set(some)) < len(some):
            raise SettingError(f"{what} {', '.join(map(str, some))}", "name each once")
    how, started = LabelSettings.of(Settings()), time.perf_counter()
    plan = Plan((BOUND, *(policies or REGISTRY)), seeds, rows, history_rows, how.observation_ms, dict(spec or {}))
    done = ended_runs(out, _key) if resume else {}
    pairs = [(world, rate) for world in worlds for rate in rates]
    with runs_file(out, resume) as keep:
        groups = [_group(plan, world, rate, done.keys()) for world, rate in pairs]
        new, stretches = run_groups(groups, keep, workers, progress)
    done |= {_key(row): row for row in new}
    jobs = [job for pair in pairs for job in _jobs(plan, *pair)]
    runs = [done[_key(asdict(job) | {"policy": name})] for job in jobs for name in plan.names]
    # The oracle is one more policy. It has no start and no seed, so it stands beside both.
    oracles = [
        {"world": s["world"], "rate": s["rate"], "start": start, "seed": 0, "policy": ORACLE} | s["oracle"]
        for s in stretches
        for start in STARTS
    ]
    made = make_report([*runs, *oracles], plan.names[1:], rows, str(how.policy))
    about = {
        "rows_a_run": rows,
        "worlds": len(worlds),
        "observation_seconds": how.observation_ms / 1000,
        "traffic": _traffic(stretches),
    }
    report = {"verdict": of_labels(made)} | about | made
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started),
        "seconds_of_runs": round(sum(r["seconds"] for r in runs)),
        "runs": len(runs),
        "worlds": list(worlds),
        "seeds": seeds,
        "spec": OnlineModel(shop_schema(), plan.spec, 0).spec,
    } | surroundings()
    write_all(out, report, run, [_plot(report)], "Label policies")
    return report


def _jobs(plan: Plan, world: int, rate: float) -> list[Job]:
    return [Job(world, f"{rate:g}/s", start, seed, plan.rows) for seed in range(plan.seeds) for start in STARTS]


def _group(plan: Plan, world: int, rate: float, done: Any) -> Group:
    """A world at a rate: the runs that are not done."""

    def runs(folder: Path, found: Mapping[str, Any]) -> list[Call]:
        calls: list[Call] = []
        for job in _jobs(plan, world, rate):
            names = [n for n in plan.names if _key(asdict(job) | {"policy": n}) not in done]
            if names:
                calls.append((_run, (job, folder, found["history"], names, plan.spec)))
        return calls

    return Group(runs, lambda folder: (_prepare, (plan, folder, world, rate)))


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("world", "rate", "start", "seed", "policy", "rows"))


def _traffic(stretches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the worlds of each rate."""
    names = {"measured_rate": "measured_rate", "history_rows": "history", "click_rate": "click_rate"}
    return [
        {"rate": rate} | {name: rounded(float(np.mean([s[of] for s in own]))) for name, of in names.items()}
        for rate in dict.fromkeys(s["rate"] for s in stretches)
        if (own := [s for s in stretches if s["rate"] == rate])
    ]


def _plot(report: Mapping[str, Any]) -> Plot:
    late = next(name for name in report["auc_over_bound"][0] if name.startswith("auc_") and name.endswith("+"))
    rows = [
        {"inputs": row["start"], "way": f"{row['policy']}, {row['rate']}", "auc_over_bound": row[late]}
        | {"auc_over_bound_ci": row.get(f"{late}_ci", 0.0)}
        for row in report["auc_over_bound"]
        if row[late] is not None
    ]
    caption = "AUC over the last quarter of the rows less that of the bound: mean and 95% interval."
    return interval_plot("auc", caption, rows, "auc_over_bound")
