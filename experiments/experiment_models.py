# shell
"""``millrace dev experiment models`` and ``rounds``: compares the models, and ways of learning online, with intervals.

``models``  every model, trained on the first days in one pass, measured on training and on test days: once on raw
            statistics, as the original fed them, once on well-scaled inputs (``log1p``, mean 0, variance 1).
``rounds``  a model trained on the days before the target date, then kept up to date in six ways through the days after
            it: frozen, daily incremental rounds, micro-batches, replay and batch retraining each day, more epochs on
            the old data (:mod:`millrace.commands.offline.rounds`).

They run the original's models (:data:`ORIGINAL`) with the original's settings. They run every other model, the
default and the user's own, with the default's settings. Each row of a report says which (``settings``). Every run is
repeated with several seeds. Figures are means with 95% intervals (Student's t). Comparisons are paired by
seed. Where the world is known (a simulated log), the oracle's AUC is given too.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from experiments.runs import Row, of_models, of_rounds, run_experiment
from learner.custom.ownclass import is_own
from learner.evaluation.progressive import baseline_column
from learner.network.dense import threads
from learner.network.models import network_of
from learner.ranker.interfaces import Learning
from learner.role.model_factory import model_of
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import ORDER, auc, figures_of, known, log_loss
from millrace.commands.offline.compared import DEFAULT, INPUTS, KINDS, ORIGINAL, OWN, input_of, settings_of, spec_of
from millrace.commands.offline.dataset import Dataset, open_dataset, plain_schema, prepare, scaled
from millrace.commands.offline.epochs import learn, score
from millrace.commands.offline.intervals import DIGITS, interval, rounded
from millrace.commands.offline.rounds import days_of, figures, keep_up, ways_of
from millrace.commands.offline.synchronising import period_ms
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.reports import Plot, days_plot, interval_plot
from simulator.daylog import write_days

TRAIN_ROWS_SCORED = 200_000
"""A model's AUC on its training data is computed over at most this many rows, evenly spread."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run in one worker process."""

    kind: Literal["models", "rounds"]
    model: str
    inputs: str
    seed: int
    train: tuple[int, ...]  # days
    test: tuple[int, ...]
    cut: tuple[str, ...] = ()  # at whose times batches are cut


def _run(job: Job, folder: Path, days: tuple[str, ...], own: Schema) -> list[Row]:
    started = time.perf_counter()
    data = open_dataset(folder, plain_schema(own), days)
    num = input_of(data, job.inputs)
    assert num is not None
    with threads(1):
        model = model_of(own if job.inputs == OWN else data.schema, spec_of(job.model), job.seed)
        found = (_models if job.kind == "models" else _rounds)(job, data, model, num)
    return [asdict(job) | {"seconds": time.perf_counter() - started} | found]


def _models(job: Job, data: Dataset, model: Learning, num: NDArray[np.float32]) -> dict[str, Any]:
    train, test = data.rows(job.train), data.rows(job.test)
    learn(model, data, train, num)
    step = max(1, (train.stop - train.start) // TRAIN_ROWS_SCORED)
    p_train, p = score(model, data, train, num, step), score(model, data, test, num)
    y_train, y = np.array(data.label[train][::step]), np.array(data.label[test])
    frozen = input_of(data, job.inputs, "frozen")
    q = p if frozen is None else score(model, data, test, frozen)
    return {
        "train_auc": auc(p_train, y_train),
        "train_log_loss": log_loss(p_train, y_train),
        **figures_of(p, y, np.array(data.group[test]), compared=q, keys=data.figures),
    }


def _rounds(job: Job, data: Dataset, model: Learning, num: NDArray[np.float32]) -> dict[str, Any]:
    days = [data.rows((day,)) for day in job.test]
    rng = np.random.default_rng(job.seed)
    scored = keep_up(model, data, num, data.rows(job.train), days, rng, job.cut)
    return {"ways": figures(scored, [np.array(data.label[day]) for day in days])}


def experiment(
    kind: Literal["models", "rounds"],
    log: Path,
    schema: Schema,
    out: Path,
    on: OnLog,
    *,
    cut: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compares models, or ways of keeping them up to date, on ``log``. ``cut``: of rounds, at which times the batches
    of the test days are cut, besides where a day begins (:data:`millrace.commands.offline.synchronising.SYNCS`).

    Raises:
        SettingError: too few days or seeds, an unknown model or unknown inputs.
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
    """
    for name in cut:
        period_ms(name)
    for name in on.models:
        if name != DEFAULT and not is_own(name):
            network_of(name)
    inputs = on.inputs
    if not inputs or not set(inputs) <= set(KINDS):
        raise SettingError(f"inputs {', '.join(inputs) or 'of no kind'}", f"use some of {', '.join(KINDS)}")
    chosen = tuple(on.models) or ((*ORIGINAL, DEFAULT) if kind == "models" else (DEFAULT,))
    if on.seeds < 2:
        raise SettingError(f"{on.seeds} seeds give no interval", "use --seeds 5 or more")
    with tempfile.TemporaryDirectory(prefix="millrace-experiment-") as folder:
        data = prepare(log, plain_schema(schema), Path(folder), on.test_days)
        n = len(data.days)
        if not 0 < on.test_days < n:
            raise SettingError(f"{on.test_days} test days of a log with {n}", "leave at least one day for training")
        train, test = tuple(range(n - on.test_days)), tuple(range(n - on.test_days, n))
        if "scaled" in inputs:
            scaled(data, data.rows(train))
        jobs = [Job(kind, m, i, s, train, test, tuple(cut)) for s, m, i in product(range(on.seeds), chosen, inputs)]
        about = _about(data, train, test)

        def report_of(results: list[Row]) -> tuple[dict[str, Any], list[Plot]]:
            if kind == "models":
                rows = _model_rows(results, chosen, inputs)
                caption = "AUC on the test days: mean and 95% interval over seeds."
                made = {"grouped_auc_compares": data.compares, "models": rows}
                head = {"verdict": of_models(rows, about["baseline_auc"])}
                return head | about | made, [interval_plot(caption, rows)]
            rows, days = _way_rows(results, chosen, inputs, data, test)
            caption = "AUC of each test day by way, mean and 95% interval over seeds (crosses: the oracle); "
            caption += "below, the same less frozen, where ways that are far worse leave the picture."
            over = "AUC over the test days: mean and 95% interval over seeds."
            plots = [days_plot(caption, days), interval_plot(over, rows)]
            head = {"verdict": of_rounds(rows, about["baseline_auc"])}
            return head | about | {"ways": rows, "by_day": days}, plots

        calls = [(_run, (job, data.folder, data.days, schema)) for job in jobs]
        title, how = f"{kind.capitalize()} on {log.name}", {"log": log, "seeds": on.seeds}
        return run_experiment(out, title, calls, report_of, workers=workers, progress=progress, **how)


def _model_rows(results: Sequence[Row], models: Sequence[str], inputs: Sequence[str]) -> list[Row]:
    measures = [key for key in ("train_auc", *ORDER, "train_log_loss", "log_loss") if key in results[0]]
    rows = []
    for kind in inputs:
        mine = {m: [r for r in results if r["model"] == m and r["inputs"] == kind] for m in models}
        for model in models:
            row: Row = {"model": model, "inputs": kind, "settings": settings_of(model)}
            for measure in measures:
                values = [r[measure] for r in mine[model]]
                known = np.isfinite(values).all()  # grouped AUC is not, where no group has both classes
                row |= interval(measure, values) if known else {measure: None, f"{measure}_ci": None}
            if "wide_deep" in models and model != "wide_deep":
                for measure in ("train_auc", "auc"):
                    pairs = zip(mine[model], mine["wide_deep"], strict=True)
                    row |= interval(f"{measure}_over_wide_deep", [a[measure] - b[measure] for a, b in pairs])
            rows.append(row)
    return rows


def _way_rows(
    results: Sequence[Row], models: Sequence[str], inputs: Sequence[str], data: Dataset, test: Sequence[int]
) -> tuple[list[Row], list[Row]]:
    """The ways over all test days, and by day."""
    names = [data.days[d] for d in test]
    oracle = [_oracle_auc(data, (d,)) for d in test]
    ways: list[Row] = []
    days: list[Row] = []
    for model in models:
        for kind in inputs:
            mine = [r["ways"] for r in results if (r["model"], r["inputs"]) == (model, kind)]
            head = {"model": model, "inputs": kind, "settings": settings_of(model)}
            ways += [head | row for row in ways_of(mine)]
            days += [head | row for row in days_of(mine, names, oracle)]
    return ways, days


def _oracle_auc(data: Dataset, days: Sequence[int]) -> float | None:
    """The AUC of the true probabilities; None where the world is not known."""
    rows = data.rows(days)
    truth = np.array(data.truth[rows])
    return auc(truth, np.array(data.label[rows])) if np.isfinite(truth).all() else None


def _about(data: Dataset, train: Sequence[int], test: Sequence[int]) -> dict[str, Any]:
    rows = data.rows(test)
    truth, y = np.array(data.truth[rows]), np.array(data.label[rows])
    oracle, column = _oracle_auc(data, test), baseline_column(data.schema)
    # Of each item's smoothed click rate; not where the schema has none, or there is one class.
    baseline = math.nan if column is None else auc(np.array(data.num[rows, column]), y)
    return {
        "training_rows": data.rows(train).stop - data.rows(train).start,
        "test_rows": len(y),
        "training_days": ", ".join(data.days[d] for d in train),
        "test_days": ", ".join(data.days[d] for d in test),
        "click_rate": rounded(float(y.mean())),
        "baseline_auc": known(baseline, DIGITS),
        "oracle_auc": None if oracle is None else rounded(oracle),
        "oracle_log_loss": None if oracle is None else rounded(log_loss(truth, y)),
    }


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
        self, kind: Literal["models", "rounds"], log: Path | None, out: Path, cut: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Runs an experiment on the log, or on one that is written for it."""
        schema = load_schema(self.schema) if self.schema else shop_schema()
        with tempfile.TemporaryDirectory(prefix="millrace-log-") as folder:
            if log is None:
                log = Path(folder) / f"world-{self.seed}"
                write_days(log, days=self.simulated_days, seed=self.seed)
            return experiment(kind, log, schema, out, self, cut=cut)


def models(log: Path | None = None, *, out: Path, on: OnLog | None = None) -> dict[str, Any]:
    """Compare all models, on raw and scaled inputs.

    Args:
        log: An exposure log (default: one that the simulator writes for this).
        out: Folder for the report.
    """
    return (on or OnLog()).run("models", log, out)


def rounds(log: Path | None = None, *, out: Path, on: OnLog | None = None, cut: tuple[str, ...] = ()) -> dict[str, Any]:
    """Compare ways of keeping one model up to date, from one start.

    Args:
        log: An exposure log (default: one that the simulator writes for this).
        out: Folder for the report.
        cut: At which times micro-batches are cut, as in 'millrace log freshness --sync' (default: where a day begins).
    """
    return (on or OnLog()).run("rounds", log, out, cut)
