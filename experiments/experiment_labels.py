# shell
"""``millrace experiment labels``: every label policy against the bound, at real speed.

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

A real log runs in place of worlds, at its own times: its last rows are the traffic and those before are the history.
It has no action times, so its clicks are given some (:func:`~experiments.realspeed.with_made_delays`). Its
"worlds" are draws of these delays on the same exposures, so intervals tell nothing about other logs.

Figures are of the scores that pages would have been served with, in the order of exposure
(:mod:`experiments.labels_report`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from commands.offline.dataset import truth_of
from commands.offline.intervals import rounded
from commands.offline.workers import ended, pool
from commands.replay.known import LabelSettings
from experiments.labels_report import BOUND, ORACLE, figures, make_report
from experiments.realspeed import (
    MEDIAN_S,
    SCROLL_S,
    SPREAD,
    learn_history,
    live,
    open_samples,
    open_stretch,
    prepare,
    with_made_delays,
)
from experiments.verdicts import of_labels
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.errors import SettingError
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY, policy_named
from millrace.logs import TS, LogTable, read_log
from millrace.reports import LINEAR, Plot, blocks_plot, interval_plot, make_folder, surroundings, write_all

WORLDS = (3, 7, 11, 19, 23)
RATES = (1.0, 20.0, 200.0)
SEEDS = 5
ROWS = 80_000
HISTORY_ROWS = 60_000
STARTS = ("cold", "history")

RUN_SECONDS, RECORDED_SECONDS = 40.0, 360.0
"""About what a run of :data:`ROWS` takes one core, to say beforehand how long an experiment takes: in worlds, and in a
sparse log, where nearly each sample is a micro-batch."""

Write = Callable[[Path, int, float, int, int], Any]
"""Writes ``history.parquet`` and ``traffic.parquet`` to a folder: (folder, world, rate, rows, history rows)."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """A log whose first ``history`` rows are history. ``truth``: the traffic's true click probabilities, or NaN."""

    log: LogTable
    schema: Schema
    history: int
    truth: Any


class Source(Protocol):
    """Where traffic comes from. Sent to the workers, so that it must be picklable."""

    def traffic(self, folder: Path, world: int, rate: float) -> Traffic:
        """The traffic of a world at a rate; ``folder`` is there to write in."""
        ...


@dataclass(frozen=True, slots=True)
class Simulated:
    """Worlds."""

    write: Write
    schema: Schema
    rows: int
    history_rows: int

    def traffic(self, folder: Path, world: int, rate: float) -> Traffic:
        self.write(folder, world, rate, self.rows, self.history_rows)
        log = read_log(folder, self.schema)
        history = log.table.num_rows - self.rows
        times = log.table[TS].to_numpy()
        return Traffic(log, self.schema, history, truth_of(folder, self.schema, log.table.num_rows, times)[history:])


@dataclass(frozen=True, slots=True)
class Recorded:
    """A log without action times, with delays drawn by the world's number."""

    path: Path
    schema: Schema
    rows: int
    history_rows: int

    def traffic(self, folder: Path, world: int, rate: float) -> Traffic:
        log, schema = with_made_delays(read_log(self.path, self.schema), self.schema, world)
        total = log.table.num_rows
        if total <= self.rows:
            raise SettingError(
                f"{self.rows} rows of '{self.path}', which has {total}", "choose fewer, so that some are a history"
            )
        skipped = max(0, total - self.rows - self.history_rows)
        log = replace(log, table=log.table.slice(skipped))
        history = log.table.num_rows - self.rows
        return Traffic(log, schema, history, np.full(self.rows, np.nan, np.float32))


@dataclass(frozen=True, slots=True)
class Job:
    """One model's lives on one stretch, in one worker process."""

    world: int
    rate: str
    start: str
    seed: int
    rows: int


# -- in a worker ---------------------------------------------------------------------------------------------


def _prepare(
    source: Source, folder: Path, world: int, rate: float, names: Sequence[str], observation_ms: int
) -> dict[str, Any]:
    """Makes what the runs on a world and a rate read. What the parent must know of it, and the oracle's figures."""
    traffic = source.traffic(folder / "log", world, rate)
    policies = {name: None if name == BOUND else policy_named(name) for name in names}
    log, first = traffic.log, traffic.history
    cold = replace(log, table=log.table.slice(first))
    prepare(log, first, traffic.schema, folder / "history", policies, observation_ms)
    prepare(cold, 0, traffic.schema, folder / "cold", policies, observation_ms)
    shutil.rmtree(folder / "log", ignore_errors=True)
    label, ts_ms = cold.table[cold.label].to_numpy(), cold.table[TS].to_numpy()
    seconds = max(1, int(ts_ms[-1] - ts_ms[0])) / 1000
    known = bool(np.isfinite(traffic.truth).all())
    return {
        "schema": traffic.schema,
        "history": first,
        "measured_rate": rounded(len(ts_ms) / seconds),
        "click_rate": rounded(float(label.mean())),
        "oracle": figures(traffic.truth, label) if known else None,
    }


def _run(
    job: Job,
    folder: Path,
    schema: Schema,
    history: int,
    names: Sequence[str],
    spec: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The figures of one model under each policy."""
    with threads(1):
        stretch = open_stretch(folder / job.start, schema, history if job.start == "history" else 0)
        first = OnlineModel(schema, spec, job.seed)
        learn_history(first, stretch)
        state = first.snapshot()
        label = np.array(stretch.label[stretch.history :])
        out = []
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
    schema: Schema,
    *,
    write: Write | None = None,
    log: Path | None = None,
    worlds: Sequence[int] = WORLDS,
    rates: Sequence[float] = RATES,
    seeds: int = SEEDS,
    rows: int = ROWS,
    history_rows: int = HISTORY_ROWS,
    policies: Sequence[str] = (),
    spec: Mapping[str, Any] | None = None,
    resume: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compares label policies; writes report.json, run.json, runs.jsonl, report.html and plots to ``out``.

    Args:
        write: writes the logs of a world; either this or ``log`` is given.
        log: a log without action times, in place of worlds; ``rates`` do not apply.
        worlds: seeds of the worlds, or of the delays that are made for ``log``.
        rates: exposures a second.
        seeds: of models, for each world, rate and start.
        rows: of traffic, in each run.
        history_rows: about how many exposures the history has.
        policies: names (default: all). The bound always runs too.
        spec: overrides of the model's settings.
        resume: keep the runs that ``runs.jsonl`` has. Whoever asks for it knows that they are of this code.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: an unknown policy, too few of something, or a log with action times or too few rows.
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
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
    names = (BOUND, *(policies or REGISTRY))
    how = LabelSettings.of(Settings())
    source: Source
    if log is not None:
        source, rates = Recorded(log, schema, rows, history_rows), (0.0,)
    elif write is not None:
        source = Simulated(write, schema, rows, history_rows)
    else:
        raise SettingError("neither worlds nor a log", "give one of them")
    groups = [(world, rate) for world in worlds for rate in rates]
    plan = _Plan(source, groups, seeds, names, how.observation_ms, dict(spec or {}), rows)
    started = time.perf_counter()
    runs, stretches = _all(plan, out, resume, workers, progress)
    made = time.perf_counter() - started
    made_of = make_report([*runs, *_oracles(stretches)], names[1:], rows, str(how.policy))
    report = {"verdict": of_labels(made_of)} | _about(stretches, rows, names, how, log) | made_of
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(made),
        "seconds_of_runs": round(sum(r["seconds"] for r in runs)),
        "runs": len(runs),
        "worlds": list(worlds),
        "log": None if log is None else str(log),
        "seeds": seeds,
        "observation_seconds": how.observation_ms / 1000,
        "spec": OnlineModel(schema, dict(spec or {}), 0).spec,
    } | surroundings()
    title = "Label policies" + ("" if log is None else f" on {log.name}, click delays made")
    write_all(out, report, run, _plots(report), title)
    return report


@dataclass(frozen=True, slots=True)
class _Plan:
    source: Source
    groups: Sequence[tuple[int, float]]  # world, rate
    seeds: int
    names: tuple[str, ...]
    observation_ms: int
    spec: dict[str, Any]
    rows: int

    def jobs(self, world: int, rate: float) -> list[Job]:
        return [Job(world, _rate(rate), start, seed, self.rows) for seed in range(self.seeds) for start in STARTS]


def _all(
    plan: _Plan, out: Path, resume: bool, workers: int | None, progress: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(all runs, what is known of each world and rate), both in the plan's order.

    Each job's runs are written to ``runs.jsonl`` as soon as it ends. A stretch is made while others are lived through,
    and its files are removed after its last run.
    """
    make_folder(out, "runs.jsonl")
    done = ended(out / "runs.jsonl", _key) if resume else {}
    order = [asdict(job) | {"policy": n} for g in plan.groups for job in plan.jobs(*g) for n in plan.names]
    todo = sum(_key(run) not in done for run in order)
    cores = max(1, (os.cpu_count() or 1) if workers is None else workers)
    if progress:
        each = RECORDED_SECONDS if isinstance(plan.source, Recorded) else RUN_SECONDS
        hours = todo * each * plan.rows / ROWS / cores / 3600
        print(
            f"{todo} runs of {plan.rows:,} exposures, about {hours:.1f} hours with {cores} processes", file=sys.stderr
        )
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stretches: dict[tuple[int, float], dict[str, Any]] = {}
    waiting = deque(plan.groups)
    busy: dict[Future[Any], tuple[tuple[int, float], Path, Job | None]] = {}
    left: dict[tuple[int, float], int] = {}
    with (
        tempfile.TemporaryDirectory(prefix="millrace-labels-") as folder,
        pool(workers) as processes,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar,
        (out / "runs.jsonl").open("a" if resume else "w", encoding="utf-8") as lines,
    ):
        task = bar.add_task("runs", total=len(order), completed=len(order) - todo)
        while waiting or busy:
            while waiting and len(busy) < 2 * cores:
                group = waiting.popleft()
                place = Path(folder) / f"{group[0]}-{_rate(group[1]).replace('/', '-')}"
                args = (plan.source, place, *group, plan.names, plan.observation_ms)
                busy[processes.submit(_prepare, *args)] = (group, place, None)
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                group, place, job = busy.pop(future)
                if job is None:
                    known = stretches[group] = future.result()
                    left[group] = 0
                    for new in plan.jobs(*group):
                        names = [n for n in plan.names if _key(asdict(new) | {"policy": n}) not in done]
                        if names:
                            left[group] += 1
                            own = (new, place, known["schema"], known["history"], names, plan.spec)
                            busy[processes.submit(_run, *own)] = (group, place, new)
                else:
                    results: list[dict[str, Any]] = future.result()
                    for found in results:
                        done[_key(found)] = found
                        lines.write(json.dumps(found) + "\n")
                        bar.advance(task)
                    lines.flush()
                    left[group] -= 1
                if not left[group]:
                    shutil.rmtree(place, ignore_errors=True)
    about = [{"world": w, "rate": _rate(r)} | stretches[w, r] for w, r in plan.groups]
    return [done[_key(run)] for run in order], about


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("world", "rate", "start", "seed", "policy", "rows"))


def _rate(rate: float) -> str:
    """What a rate is called; 0 is a log's own."""
    return f"{rate:g}/s" if rate else "its own"


def _oracles(stretches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The oracle as one more policy; it has no start and no seed, so it stands beside both."""
    return [
        {"world": s["world"], "rate": s["rate"], "start": start, "seed": 0, "policy": ORACLE} | s["oracle"]
        for s in stretches
        if s["oracle"] is not None
        for start in STARTS
    ]


def _about(
    stretches: Sequence[Mapping[str, Any]], rows: int, names: Sequence[str], how: LabelSettings, log: Path | None
) -> dict[str, Any]:
    about: dict[str, Any] = {"rows_a_run": rows, "worlds": len({s["world"] for s in stretches})}
    if log is not None:
        about["click_delays"] = (
            f"made: log-normal with median {MEDIAN_S:g} s and spread {SPREAD:g}, and {SCROLL_S:g} s a position if any;"
        )
    traffic = [
        {
            "rate": rate,
            "measured_rate": rounded(float(np.mean([s["measured_rate"] for s in own]))),
            "history_rows": round(float(np.mean([s["history"] for s in own]))),
            "click_rate": rounded(float(np.mean([s["click_rate"] for s in own]))),
        }
        for rate in dict.fromkeys(s["rate"] for s in stretches)
        if (own := [s for s in stretches if s["rate"] == rate])
    ]
    return about | {"observation_seconds": how.observation_ms / 1000, "traffic": traffic}


def _over_bound(curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each policy's curve less the bound's of the same rate and start."""
    bound = {(c["rate"], c["start"]): np.array(c["curve"]) for c in curves if c["policy"] == BOUND}
    return [
        {**c, "curve": (np.array(c["curve"]) - bound[c["rate"], c["start"]]).tolist()}
        for c in curves
        if c["policy"] not in (BOUND, ORACLE)
    ]


def _plots(report: Mapping[str, Any]) -> list[Plot]:
    late = next(name for name in report["auc_over_bound"][0] if name.startswith("auc_") and name.endswith("+"))
    rows = [
        {"inputs": row["start"], "way": f"{row['policy']}, {row['rate']}", "auc_over_bound": row[late]}
        | {"auc_over_bound_ci": row.get(f"{late}_ci", 0.0)}
        for row in report["auc_over_bound"]
        if row[late] is not None
    ]
    return [
        interval_plot(
            "auc",
            "AUC over the last quarter of the rows less that of the bound: mean and 95% interval.",
            rows,
            "auc_over_bound",
        ),
        blocks_plot(
            "log_loss",
            "Log loss of served scores less that of the bound, through the traffic in stretches of equally many rows."
            f" The axis is linear to {LINEAR}, then logarithmic.",
            _over_bound(report["curves"]),
        ),
    ]
