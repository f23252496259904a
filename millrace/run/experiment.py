"""``millrace experiment``: what the models and what learning online are worth, with intervals.

``models``  every model, trained on the first days in one pass, measured on training and on test days: once on raw
            statistics, as the original fed them, once on well-scaled inputs (``log1p``, mean 0, variance 1).
``rounds``  a model trained on the days before the target date, then kept up in five ways through the days after it:
            frozen, daily incremental rounds, micro-batches, batch retraining each day, more epochs on the old data.

Every run is repeated with several seeds; figures are means with 95% intervals (Student's t), comparisons are paired
by seed. Where the world is known (a simulated log) the oracle's AUC is given beside them.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy import stats

from learner.model import OnlineModel
from learner.models import network_of
from learner.progressive import auc, grouped_auc, log_loss
from millrace.errors import SettingError
from millrace.run.dataset import Dataset, open_dataset, plain_schema, prepare, scaled
from millrace.run.report import curves_plot, interval_plot, write_report
from millrace.schema import Schema

BATCH_ROWS = 512
CURVE_POINTS = 60
TRAIN_ROWS_SCORED = 200_000
"""A model's AUC on its training data is taken over at most so many rows, evenly spread."""

ORIGINAL = ("logistic", "wide_deep", "pnn_inner", "pnn_outer", "pnn_group", "deepfm", "wide_resnet", "wide_resnet_bn")
DEFAULT = "default"
"""The model and settings that Millrace starts with; the others feed numbers as they come, as the original did."""

INPUTS = ("raw", "scaled")


@dataclass(frozen=True, slots=True)
class Job:
    """One run in one worker process."""

    kind: str  # "models" or a way of ``rounds``
    model: str
    inputs: str
    seed: int
    train: tuple[int, ...]  # days
    test: tuple[int, ...]
    epochs: int = 1


def spec_of(model: str) -> dict[str, Any]:
    """The settings of a compared model.

    The original's models take their numbers as they come, and nothing guards them: a batch that would throw them off is
    learnt all the same, as it was there. Its "batch norm" is that of Ioffe and Szegedy after each residual unit's
    addition. ``default`` is what Millrace starts with.
    """
    if model == DEFAULT:
        return {}
    plain = {"numerics": "none", "norm": "batch", "placement": "post", "momentum": 0.1, "averaging": 0.0}
    unguarded = {"max_loss": 1e30, "max_gradient": 1e30, "loss_ratio": 0.0}
    return {"model": model} | plain | unguarded


# -- in a worker ---------------------------------------------------------------------------------------------

_data: Dataset
_inputs: dict[str, NDArray[np.float32]]


def _open(folder: Path, schema: Schema, days: tuple[str, ...]) -> None:
    global _data, _inputs
    torch.set_num_threads(1)
    _data = open_dataset(folder, schema, days)
    _inputs = {"raw": _data.num, "scaled": np.load(folder / "scaled.npy", mmap_mode="r")}


def _run(job: Job) -> dict[str, Any]:
    started = time.perf_counter()
    model = OnlineModel(_data.schema, spec_of(job.model), job.seed)
    num = _inputs[job.inputs]
    figures = _models(job, model, num) if job.kind == "models" else _rounds(job, model, num)
    return {"job": job, "seconds": time.perf_counter() - started, **figures}


def _models(job: Job, model: OnlineModel, num: NDArray[np.float32]) -> dict[str, Any]:
    train, test = _data.rows(job.train), _data.rows(job.test)
    losses = _learn(model, train, num, job.epochs)
    step = max(1, (train.stop - train.start) // TRAIN_ROWS_SCORED)
    seen = np.arange(train.start, train.stop, step)
    p_train, p = _score(model, seen, num), _score(model, np.arange(test.start, test.stop), num)
    y = np.array(_data.label[test])
    return {
        "train_auc": auc(p_train, np.array(_data.label[seen])),
        "train_log_loss": log_loss(p_train, np.array(_data.label[seen])),
        "auc": auc(p, y),
        "grouped_auc": grouped_auc(p, y, np.array(_data.user[test])),
        "log_loss": log_loss(p, y),
        "losses": losses,
    }


def _rounds(job: Job, model: OnlineModel, num: NDArray[np.float32]) -> dict[str, Any]:
    """Day by day: score the day as the way of keeping up has it, then bring the model up to the end of that day."""
    train = _data.rows(job.train)
    _learn(model, train, num, job.epochs)
    scored = []
    for day in job.test:
        rows = _data.rows((day,))
        if job.kind == "micro-batches":
            scored.append(_progress(model, rows, num))
        else:
            scored.append(_score(model, np.arange(rows.start, rows.stop), num))
        if job.kind == "daily rounds":
            _learn(model, rows, num, 1)
        elif job.kind == "retrained daily":
            model = OnlineModel(_data.schema, spec_of(job.model), job.seed)
            _learn(model, slice(train.start, rows.stop), num, 1)
    test = _data.rows(job.test)
    p, y = np.concatenate(scored), np.array(_data.label[test])
    by_day = [auc(q, np.array(_data.label[_data.rows((d,))])) for q, d in zip(scored, job.test, strict=True)]
    return {"auc": auc(p, y), "log_loss": log_loss(p, y), "by_day": by_day}


def _learn(model: OnlineModel, rows: slice, num: NDArray[np.float32], epochs: int) -> list[float]:
    """One or more passes in time order; the mean loss of each of CURVE_POINTS stretches, before learning from them."""
    losses: list[float] = []
    for _ in range(epochs):
        losses.extend(model.learn(batch).loss for batch in _data.batches(rows, BATCH_ROWS, num))
    return [float(np.mean(part)) for part in np.array_split(losses, min(CURVE_POINTS, len(losses)))]


def _score(model: OnlineModel, rows: NDArray[np.intp], num: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = np.array_split(rows, max(1, len(rows) // 4096))
    return np.concatenate([model.score(np.array(_data.cat[part]), np.array(num[part])) for part in parts])


def _progress(model: OnlineModel, rows: slice, num: NDArray[np.float32]) -> NDArray[np.float32]:
    """Predict, then learn, batch by batch."""
    scored = []
    for batch in _data.batches(rows, BATCH_ROWS, num):
        scored.append(model.score(batch.cat, batch.num))
        model.learn(batch)
    return np.concatenate(scored)


# -- the experiments -----------------------------------------------------------------------------------------


def experiment_models(
    log: Path,
    schema: Schema,
    out: Path,
    *,
    seeds: int,
    test_days: int,
    models: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Compares the models on ``log``; writes report.json, run.json, report.html and plots to ``out``.

    Args:
        seeds: runs of each model and kind of input; 5 or more for intervals that mean something.
        test_days: the last days of the log, which no model is trained on.
        models: names out of the registry and "default" (default: all).

    Raises:
        SettingError: too few days or seeds, or an unknown model.
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
    """
    chosen = _chosen(models, (*ORIGINAL, DEFAULT))
    with _prepared(log, schema, test_days, seeds) as (data, train, test):
        jobs = [Job("models", m, i, s, train, test) for s in range(seeds) for m in chosen for i in INPUTS]
        results = _all(jobs, data, progress)
        report = _models_report(results, chosen, data, train, test)
    plots = [
        interval_plot("auc", "AUC on the test days: mean and 95% interval over seeds.", report["models"], "auc"),
        curves_plot(
            "loss", "Loss while training, before learning from each stretch: mean over seeds.", report["curves"]
        ),
    ]
    _write(out, report, results, plots, f"Models on {log.name}", log, seeds)
    return report


WAYS = ("frozen", "more epochs", "daily rounds", "retrained daily", "micro-batches")


def experiment_rounds(
    log: Path,
    schema: Schema,
    out: Path,
    *,
    seeds: int,
    test_days: int,
    models: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Compares ways of keeping a model up to date through the last ``test_days`` days; as :func:`experiment_models`."""
    chosen = _chosen(models, (DEFAULT,))
    with _prepared(log, schema, test_days, seeds) as (data, train, test):
        jobs = [
            Job(way, m, i, s, train, test, epochs=3 if way == "more epochs" else 1)
            for s in range(seeds)
            for m in chosen
            for i in INPUTS
            for way in WAYS
        ]
        results = _all(jobs, data, progress)
        report = _rounds_report(results, chosen, data, train, test)
    plots = [interval_plot("auc", "AUC over the test days: mean and 95% interval.", report["ways"], "auc")]
    _write(out, report, results, plots, f"Rounds on {log.name}", log, seeds)
    return report


def _chosen(models: Sequence[str], otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """The models to compare. Raises SettingError for an unknown one, before anything long begins."""
    for name in models:
        if name != DEFAULT:
            network_of(name)
    return tuple(models) or otherwise


@contextmanager
def _prepared(
    log: Path, schema: Schema, test_days: int, seeds: int
) -> Iterator[tuple[Dataset, tuple[int, ...], tuple[int, ...]]]:
    if seeds < 2:
        raise SettingError(f"{seeds} seeds give no interval", "use --seeds 5 or more")
    with tempfile.TemporaryDirectory(prefix="millrace-experiment-") as folder:
        data = prepare(log, plain_schema(schema), Path(folder))
        n = len(data.days)
        if not 0 < test_days < n:
            raise SettingError(f"{test_days} test days of a log with {n}", "leave at least one day for training")
        train, test = tuple(range(n - test_days)), tuple(range(n - test_days, n))
        scaled(data, data.rows(train))
        yield data, train, test


def _all(jobs: Sequence[Job], data: Dataset, progress: bool) -> list[dict[str, Any]]:
    """Runs the jobs on all cores, each with one thread; results in the jobs' order."""
    columns = (TextColumn("experiment"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _open, (data.folder, data.schema, data.days)) as pool,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar,
    ):
        task = bar.add_task("experiment", total=len(jobs))
        futures = {pool.submit(_run, job): i for i, job in enumerate(jobs)}
        results: list[dict[str, Any]] = [{}] * len(jobs)
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            bar.advance(task)
    return results


def _models_report(
    results: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    data: Dataset,
    train: Sequence[int],
    test: Sequence[int],
) -> dict[str, Any]:
    measures = ("train_auc", "auc", "grouped_auc", "train_log_loss", "log_loss")
    rows, curves = [], []
    for inputs in INPUTS:
        mine = {m: [r for r in results if r["job"].model == m and r["job"].inputs == inputs] for m in models}
        for model in models:
            row: dict[str, Any] = {"model": model, "inputs": inputs}
            for measure in measures:
                row |= _interval(measure, [r[measure] for r in mine[model]])
            if "wide_deep" in models and model != "wide_deep":
                for measure in ("train_auc", "auc"):
                    pairs = zip(mine[model], mine["wide_deep"], strict=True)
                    row |= _interval(f"{measure}_over_wide_deep", [a[measure] - b[measure] for a, b in pairs])
            rows.append(row)
            curve = np.mean([r["losses"] for r in mine[model]], 0)
            curves.append({"model": model, "inputs": inputs, "losses": [_round(v) for v in curve.tolist()]})
    return _about(data, train, test) | {"models": rows, "curves": curves}


def _rounds_report(
    results: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    data: Dataset,
    train: Sequence[int],
    test: Sequence[int],
) -> dict[str, Any]:
    rows = []
    for model in models:
        for inputs in INPUTS:
            of = {
                way: [r for r in results if (r["job"].model, r["job"].inputs, r["job"].kind) == (model, inputs, way)]
                for way in WAYS
            }
            for way in WAYS:
                row: dict[str, Any] = {"model": model, "inputs": inputs, "way": way}
                row |= _interval("auc", [r["auc"] for r in of[way]])
                row |= _interval("log_loss", [r["log_loss"] for r in of[way]])
                row |= _interval("auc_last_day", [r["by_day"][-1] for r in of[way]])
                gain = [a["auc"] - b["auc"] for a, b in zip(of[way], of["frozen"], strict=True)]
                row |= _interval("auc_over_frozen", gain)
                start = [a["by_day"][-1] - b["by_day"][0] for a, b in zip(of[way], of["frozen"], strict=True)]
                row |= _interval("last_day_over_start", start)
                rows.append(row)
    return _about(data, train, test) | {"ways": rows}


def _about(data: Dataset, train: Sequence[int], test: Sequence[int]) -> dict[str, Any]:
    rows = data.rows(test)
    truth, y = np.array(data.truth[rows]), np.array(data.label[rows])
    known = bool(np.isfinite(truth).all())
    return {
        "training_rows": data.rows(train).stop - data.rows(train).start,
        "test_rows": len(y),
        "training_days": ", ".join(data.days[d] for d in train),
        "test_days": ", ".join(data.days[d] for d in test),
        "click_rate": _round(float(y.mean())),
        "oracle_auc": _round(auc(truth, y)) if known else None,
        "oracle_log_loss": _round(log_loss(truth, y)) if known else None,
    }


def _interval(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and half-width of the 95% interval (Student's t) of some seeds' figures."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return {name: _round(mean), f"{name}_ci": _round(half)}


def _round(value: float) -> float:
    return round(value, 5)


def _write(
    out: Path,
    report: dict[str, Any],
    results: Sequence[Mapping[str, Any]],
    plots: Any,
    title: str,
    log: Path,
    seeds: int,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "log": str(log),
        "seeds": seeds,
        "runs": len(results),
        "seconds_of_runs": round(sum(r["seconds"] for r in results)),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("millrace", "numpy", "torch")},
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    write_report(out, {k: v for k, v in report.items() if k != "curves"}, run, plots, title)


Experiment = Callable[..., dict[str, Any]]
EXPERIMENTS: dict[str, Experiment] = {"models": experiment_models, "rounds": experiment_rounds}
