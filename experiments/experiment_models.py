# shell
"""``millrace dev experiment models`` and ``rounds``: compares the models, and ways of learning online, with intervals.

``models``  every model, trained on the first days in one pass, measured on training and on test days: once on raw
            statistics, as the original fed them, once on well-scaled inputs (``log1p``, mean 0, variance 1).
``rounds``  a model trained on the days before the target date, then kept up to date in six ways through the days after
            it: frozen, daily incremental rounds, micro-batches, replay and batch retraining each day, more epochs on
            the old data (:mod:`commands.offline.rounds`).

They run the original's models (:data:`ORIGINAL`) with the original's settings. They run every other model, the
default and the user's own, with the default's settings. Each row of a report says which (``settings``). Every run is
repeated with several seeds. Figures are means with 95% intervals (Student's t). Comparisons are paired by
seed. Where the world is known (a simulated log), the oracle's AUC is given too.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray

from commands.offline.compared import DEFAULT, INPUTS, KINDS, ORIGINAL, OWN, input_of, settings_of, spec_of
from commands.offline.dataset import Dataset, open_dataset, plain_schema, prepare, scaled
from commands.offline.epochs import learn, score
from commands.offline.follow import period_ms
from commands.offline.intervals import interval, rounded
from commands.offline.rounds import days_of, figures, keep_up, ways_of
from experiments.experiment_verdicts import of_models, of_rounds
from experiments.runs import Group, run_groups, runs_file
from learner.custom.ownclass import is_own
from learner.evaluation.progressive import baseline_column
from learner.network.models import network_of
from learner.ranker.verbs import Learning
from learner.role.model_factory import model_of
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import auc, grouped_auc, log_loss
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.reports import days_plot, interval_plot, surroundings, write_all
from simulator.daylog import write_days

TRAIN_ROWS_SCORED = 200_000
"""A model's AUC on its training data is computed over at most this many rows, evenly spread."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run in one worker process."""

    kind: str  # "models" or "rounds"
    model: str
    inputs: str
    seed: int
    train: tuple[int, ...]  # days
    test: tuple[int, ...]
    cut: tuple[str, ...] = ()  # at whose times batches are cut


# -- in a worker ---------------------------------------------------------------------------------------------

_data: Dataset
_schemas: dict[str, Schema]


def _open(folder: Path, schema: Schema, days: tuple[str, ...], own: Schema) -> None:
    global _data, _schemas
    torch.set_num_threads(1)
    _data = open_dataset(folder, schema, days)
    _schemas = dict.fromkeys(INPUTS, schema) | {OWN: own}


def _run(job: Job) -> list[dict[str, Any]]:
    started = time.perf_counter()
    model = model_of(_schemas[job.inputs], spec_of(job.model), job.seed)
    num = input_of(_data, job.inputs)
    assert num is not None
    found = _models(job, model, num) if job.kind == "models" else _rounds(job, model, num)
    return [asdict(job) | {"seconds": time.perf_counter() - started} | found]


def _models(job: Job, model: Learning, num: NDArray[np.float32]) -> dict[str, Any]:
    train, test = _data.rows(job.train), _data.rows(job.test)
    learn(model, _data, train, num)
    step = max(1, (train.stop - train.start) // TRAIN_ROWS_SCORED)
    p_train, p = score(model, _data, train, num, step), score(model, _data, test, num)
    y_train, y = np.array(_data.label[train][::step]), np.array(_data.label[test])
    frozen = input_of(_data, job.inputs, "frozen")
    q = p if frozen is None else score(model, _data, test, frozen)
    return {
        "train_auc": auc(p_train, y_train),
        "train_log_loss": log_loss(p_train, y_train),
        "auc": auc(p, y),
        "grouped_auc": grouped_auc(q, y, np.array(_data.group[test])),
        "log_loss": log_loss(p, y),
    }


def _rounds(job: Job, model: Learning, num: NDArray[np.float32]) -> dict[str, Any]:
    days = [_data.rows((day,)) for day in job.test]
    rng = np.random.default_rng(job.seed)
    scored = keep_up(model, _data, num, _data.rows(job.train), days, rng, job.cut)
    return {"ways": figures(scored, [np.array(_data.label[day]) for day in days])}


# -- the experiments -----------------------------------------------------------------------------------------


def experiment_models(
    log: Path,
    schema: Schema,
    out: Path,
    *,
    seeds: int,
    test_days: int,
    models: Sequence[str] = (),
    inputs: Sequence[str] = INPUTS,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compares the models on ``log``; writes report.json, run.json, runs.jsonl, report.html and plots to ``out``.

    Args:
        seeds: runs of each model and kind of input; 5 or more for useful intervals.
        test_days: the last days of the log, which no model is trained on.
        models: names from the registry and "default" (default: the original's and "default").
        inputs: kinds of input, "raw", "scaled" and "own", which is as the schema says (default: the first two).

    Raises:
        SettingError: too few days or seeds, an unknown model or unknown inputs.
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
    """
    chosen = _chosen(models, (*ORIGINAL, DEFAULT), inputs)
    with _prepared(log, schema, test_days, seeds, inputs) as (data, train, test):
        jobs = [Job("models", m, i, s, train, test) for s in range(seeds) for m in chosen for i in inputs]
        results = _all(jobs, data, schema, out, workers, progress)
        report = _models_report(results, chosen, inputs, data, train, test)
    caption = "AUC on the test days: mean and 95% interval over seeds."
    plots = [interval_plot("auc", caption, report["models"], "auc")]
    _write(out, report, results, plots, f"Models on {log.name}", log, seeds)
    return report


def experiment_rounds(
    log: Path,
    schema: Schema,
    out: Path,
    *,
    seeds: int,
    test_days: int,
    models: Sequence[str] = (),
    inputs: Sequence[str] = INPUTS,
    cut: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compares ways of keeping a model up to date through the last ``test_days`` days; as :func:`experiment_models`.

    The models (default: only "default") have the same settings as there. ``cut``: at which times the batches of the
    test days are cut, besides where a day begins (:data:`commands.offline.follow.SYNCS`).
    """
    for name in cut:
        period_ms(name)
    chosen = _chosen(models, (DEFAULT,), inputs)
    with _prepared(log, schema, test_days, seeds, inputs) as (data, train, test):
        own = [(s, m, i) for s in range(seeds) for m in chosen for i in inputs]
        jobs = [Job("rounds", m, i, s, train, test, tuple(cut)) for s, m, i in own]
        results = _all(jobs, data, schema, out, workers, progress)
        report = _rounds_report(results, chosen, inputs, data, train, test)
    plots = [
        days_plot(
            "auc_by_day",
            "AUC of each test day by way of keeping up, mean and 95% interval over seeds (crosses: the oracle); below, "
            "the same less frozen, where ways that are far worse leave the picture.",
            report["by_day"],
        ),
        interval_plot("auc", "AUC over the test days: mean and 95% interval over seeds.", report["ways"], "auc"),
    ]
    _write(out, report, results, plots, f"Rounds on {log.name}", log, seeds)
    return report


def _chosen(models: Sequence[str], otherwise: tuple[str, ...], inputs: Sequence[str]) -> tuple[str, ...]:
    """The models to compare. Raises SettingError for an unknown one or unknown inputs, before anything long begins."""
    if not inputs or not set(inputs) <= set(KINDS):
        raise SettingError(f"inputs {', '.join(inputs) or 'of no kind'}", f"use some of {', '.join(KINDS)}")
    for name in models:
        if name != DEFAULT and not is_own(name):
            network_of(name)
    return tuple(models) or otherwise


@contextmanager
def _prepared(
    log: Path, schema: Schema, test_days: int, seeds: int, inputs: Sequence[str]
) -> Iterator[tuple[Dataset, tuple[int, ...], tuple[int, ...]]]:
    if seeds < 2:
        raise SettingError(f"{seeds} seeds give no interval", "use --seeds 5 or more")
    with tempfile.TemporaryDirectory(prefix="millrace-experiment-") as folder:
        data = prepare(log, plain_schema(schema), Path(folder), test_days)
        n = len(data.days)
        if not 0 < test_days < n:
            raise SettingError(f"{test_days} test days of a log with {n}", "leave at least one day for training")
        train, test = tuple(range(n - test_days)), tuple(range(n - test_days, n))
        if "scaled" in inputs:
            scaled(data, data.rows(train))
        yield data, train, test


def _all(
    jobs: Sequence[Job], data: Dataset, schema: Schema, out: Path, workers: int | None, progress: bool
) -> list[dict[str, Any]]:
    """The results of all jobs, in their order: each job with one thread, in processes that hold the data open."""
    group = Group(lambda folder, prepared: [(_run, (job,)) for job in jobs])
    with runs_file(out) as keep:
        opened = (data.folder, data.schema, data.days, schema)
        return run_groups([group], keep, workers, progress, _open, opened)[0]


def _models_report(
    results: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    inputs: Sequence[str],
    data: Dataset,
    train: Sequence[int],
    test: Sequence[int],
) -> dict[str, Any]:
    measures = ("train_auc", "auc", "grouped_auc", "train_log_loss", "log_loss")
    rows = []
    for kind in inputs:
        mine = {m: [r for r in results if r["model"] == m and r["inputs"] == kind] for m in models}
        for model in models:
            row: dict[str, Any] = {"model": model, "inputs": kind, "settings": settings_of(model)}
            for measure in measures:
                values = [r[measure] for r in mine[model]]
                known = np.isfinite(values).all()  # grouped AUC is not, where no group has both classes
                row |= interval(measure, values) if known else {measure: None, f"{measure}_ci": None}
            if "wide_deep" in models and model != "wide_deep":
                for measure in ("train_auc", "auc"):
                    pairs = zip(mine[model], mine["wide_deep"], strict=True)
                    row |= interval(f"{measure}_over_wide_deep", [a[measure] - b[measure] for a, b in pairs])
            rows.append(row)
    compares = {"grouped_auc_compares": data.compares}
    about = _about(data, train, test)
    verdict = of_models(rows, about["baseline_auc"])
    return {"verdict": verdict} | about | compares | {"models": rows}


def _rounds_report(
    results: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    inputs: Sequence[str],
    data: Dataset,
    train: Sequence[int],
    test: Sequence[int],
) -> dict[str, Any]:
    names = [data.days[d] for d in test]
    oracle = [_oracle_auc(data, (d,)) for d in test]
    ways: list[dict[str, Any]] = []
    days: list[dict[str, Any]] = []
    for model in models:
        for kind in inputs:
            mine = [r["ways"] for r in results if (r["model"], r["inputs"]) == (model, kind)]
            head = {"model": model, "inputs": kind, "settings": settings_of(model)}
            ways += [head | row for row in ways_of(mine)]
            days += [head | row for row in days_of(mine, names, oracle)]
    about = _about(data, train, test)
    return {"verdict": of_rounds(ways, about["baseline_auc"])} | about | {"ways": ways, "by_day": days}


def _oracle_auc(data: Dataset, days: Sequence[int]) -> float | None:
    """The AUC of the true probabilities; None where the world is not known."""
    rows = data.rows(days)
    truth = np.array(data.truth[rows])
    return auc(truth, np.array(data.label[rows])) if np.isfinite(truth).all() else None


def _baseline_auc(data: Dataset, rows: slice) -> float | None:
    """The AUC of each item's smoothed click rate; None where the schema has none, or there is one class."""
    column = baseline_column(data.schema)
    found = math.nan if column is None else auc(np.array(data.num[rows, column]), np.array(data.label[rows]))
    return rounded(found) if math.isfinite(found) else None


def _about(data: Dataset, train: Sequence[int], test: Sequence[int]) -> dict[str, Any]:
    rows = data.rows(test)
    truth, y = np.array(data.truth[rows]), np.array(data.label[rows])
    oracle = _oracle_auc(data, test)
    return {
        "training_rows": data.rows(train).stop - data.rows(train).start,
        "test_rows": len(y),
        "training_days": ", ".join(data.days[d] for d in train),
        "test_days": ", ".join(data.days[d] for d in test),
        "click_rate": rounded(float(y.mean())),
        "baseline_auc": _baseline_auc(data, rows),
        "oracle_auc": None if oracle is None else rounded(oracle),
        "oracle_log_loss": None if oracle is None else rounded(log_loss(truth, y)),
    }


def _write(
    out: Path,
    report: dict[str, Any],
    results: Sequence[Mapping[str, Any]],
    plots: Any,
    title: str,
    log: Path,
    seeds: int,
) -> None:
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "log": str(log),
        "seeds": seeds,
        "runs": len(results),
        "seconds_of_runs": round(sum(r["seconds"] for r in results)),
    } | surroundings()
    write_all(out, report, run, plots, title)


# -- their commands ------------------------------------------------------------------------------------------


Experiment = Callable[..., dict[str, Any]]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class OnLog:
    """What the two are run on, and how often.

    Args:
        schema: Schema file of the log (default: the simulated shop's).
        simulated_days: Days of the simulated log.
        test_days: Days at the end that are only tested on, or lived through.
        seeds: Runs of each.
        seed: Seed of the simulated world.
        models: Models to compare (default: all; for rounds, the default model).
        inputs: Kinds of input: raw, scaled, and own, which is as the schema says.
    """

    schema: Path | None = None
    simulated_days: int = 8
    test_days: int = 1
    seeds: int = 5
    seed: int = 0
    models: tuple[str, ...] = ()
    inputs: tuple[str, ...] = INPUTS

    def run(
        self, experiment: Callable[..., dict[str, Any]], log: Path | None, out: Path, **more: Any
    ) -> dict[str, Any]:
        """Runs an experiment on the log, or on one that is written for it."""
        schema = load_schema(self.schema) if self.schema else shop_schema()
        own: dict[str, Any] = {"models": self.models, "inputs": self.inputs}
        with tempfile.TemporaryDirectory(prefix="millrace-log-") as folder:
            if log is None:
                log = Path(folder) / f"world-{self.seed}"
                write_days(log, days=self.simulated_days, seed=self.seed)
            return experiment(log, schema, out, seeds=self.seeds, test_days=self.test_days, **own, **more)


def models(log: Path | None = None, *, out: Path, on: OnLog | None = None) -> dict[str, Any]:
    """Compare all models, on raw and scaled inputs.

    Args:
        log: An exposure log (default: one that the simulator writes for this).
        out: Folder for the report.
    """
    return (on or OnLog()).run(experiment_models, log, out)


def rounds(log: Path | None = None, *, out: Path, on: OnLog | None = None, cut: tuple[str, ...] = ()) -> dict[str, Any]:
    """Compare ways of keeping one model up to date, from one start.

    Args:
        log: An exposure log (default: one that the simulator writes for this).
        out: Folder for the report.
        cut: At which times micro-batches are cut, as in 'millrace log freshness --sync' (default: where a day begins).
    """
    return (on or OnLog()).run(experiment_rounds, log, out, cut=cut)
