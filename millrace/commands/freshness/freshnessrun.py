# shell
"""``millrace log freshness``: what models and features would have gained by more or less frequent updates.

::

    log ─► features, live ──┬─► learner ─► never, daily, hourly, 15min, minute, batch        one process a seed
        │                   └─► retrained daily (--retrain)
        └► features, day-old ─┬► learner ─► the freshest                                     one process a seed
                              └► a nightly job: each day shuffled, at its end ─► never, daily

Day-old are window counts alone. What any job knows when it serves stays live: ages, the hour, attributes. The report is
bit-identical for the same log, schema, model, seeds and settings. Only run.json differs.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from learner.custom.ownclass import name_of
from learner.evaluation.progressive import baseline_column
from learner.ranker.interfaces import Learning
from learner.role.model_factory import model_of
from millrace.basics.errors import LogError, SettingError
from millrace.commands.freshness.freshnessreport import Setup, day_slices, hour_slices, report_of, value_slices
from millrace.commands.freshness.freshnesswords import BASELINE, DAY_OLD, LIVE, RETRAINED, named
from millrace.commands.freshness.measure import Measured, MeasuredScores, ScoredRows
from millrace.commands.offline import rounds
from millrace.commands.offline.compared import DEFAULT, OWN, input_of, spec_of
from millrace.commands.offline.dataset import Dataset, open_dataset, plain_schema, prepare, scaled
from millrace.commands.offline.epochs import Scores, learn, score
from millrace.commands.offline.synchronising import BATCH, DAILY, NEVER, SYNCS, period_ms, run_sync_plan, sync_plan
from millrace.commands.offline.workers import for_workers, pool
from millrace.commands.replay.reading import name_of_log
from millrace.contracts.schema import Schema, load_schema
from millrace.logs.frames import Log, log_parts
from millrace.reports import make_folder, say, show
from millrace.reports.lines import Tick
from millrace.reports.progress import Took, bars
from millrace.reports.result import Result
from millrace.reports.spans import listed


@dataclass(frozen=True, slots=True)
class Job:
    """One pass in one worker process: a learner on one kind of features, and the models that follow it. ``syncs`` of a
    nightly job are some of :data:`NIGHTLY`."""

    features: str
    seed: int
    model: str | type[Any]
    inputs: str
    syncs: tuple[str, ...]
    cut: tuple[str, ...]
    train_days: int
    retrain: bool
    out: Path  # folder for the scores

    @property
    def nightly(self) -> bool:
        return self.features == DAY_OLD and set(self.syncs) <= set(NIGHTLY)


def freshness(
    log: Log,
    schema: Schema | Path | str,
    out: Path | str | None = None,
    *,
    train_days: int | None = None,
    sync: str | Sequence[str] = ",".join(SYNCS),
    cut: str | Sequence[str] | None = None,
    retrain: bool = False,
    features: Literal["day-old", "live"] = "day-old",
    slices: str | Sequence[str] = "",
    seeds: int = 1,
    seed: int = 0,
    model: str | type[Any] = DEFAULT,
    inputs: Literal["own", "raw", "scaled"] = OWN,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Result:
    """Says what freshness is worth on a log: models that learn every minute, hour, day or never, and live features.

    Args:
        log, schema, seed, skip_bad: as of :func:`~millrace.commands.replay.replayrun.replay`.
        out: a folder for report.json, run.json, report.html and plots.
        train_days: days at the beginning of the log that every model learns first (default: half of them).
        sync: how often models take over what was learnt; batch: every micro-batch; also other parts of a day, as 5min.
        cut: at whose times micro-batches are cut (default: those of sync).
        retrain: also a model that is trained again on all data before each day: cost by the square of the days.
        features: also window features as a daily job makes them (day-old), or only live ones.
        slices: columns, with commas, by whose values figures are given too; also hour, weekday.
        seeds: models of each kind; figures are means over them.
        model: a name, module:Class, or default.
        inputs: numbers as the schema has them (own), or as in 'millrace dev experiment' (raw, scaled).
        workers: processes (default: one for each core); 0: all in this one.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`; or one user alone, or one class.
        SettingError: too few days, an unknown model, synchronisation or slice, or a folder that cannot be written; or
            ``model`` is a class of a notebook or function, which worker processes cannot import.
    """
    took = Took()
    plan, parts, place = load_schema(schema), log_parts(log), None if out is None else Path(out)
    old = features == "day-old" and plan.layout.K > 0  # without windows nothing can be a day old
    sync = _checked(listed(sync), seeds)
    cuts = tuple(sync if cut is None else listed(cut))
    for name in cuts:
        period_ms(name)
    model = for_workers(model, workers)
    model_of(plan, spec_of(model), seed)  # an unknown name is an error before anything long begins
    if place is not None:
        make_folder(place, "report.json")
    with tempfile.TemporaryDirectory(prefix="millrace-freshness-") as folder, bars(progress) as tick:
        tick("features", 0, 1)
        given = plain_schema(plan)
        data = prepare(parts, given, Path(folder), _MANY, day_old=old, slices=listed(slices), skip_bad=skip_bad)
        features_seconds = took.seconds
        train = _train_days(len(data.days), train_days, name_of_log(parts))
        rows = data.rows(range(train, len(data.days)))
        _check_rows(data, rows)
        if inputs == "scaled":
            scaled(data, data.rows(range(train)))
        tick("features", 1, 1)
        fresh, reference = _compared(sync)
        few = [s for s in sync if s in (NEVER, reference, fresh)]
        passes = [(LIVE, sync)]
        if old:
            split = (tuple(s for s in few if (s in NIGHTLY) is night) for night in (True, False))
            passes += [(DAY_OLD, own) for own in split if own]
        jobs = [
            Job(kind, s, model, inputs, own, cuts, train, retrain and kind == LIVE, Path(folder) / f"{i}-{s}")
            for s in range(seed, seed + seeds)
            for i, (kind, own) in enumerate(passes)
        ]
        found = _all(jobs, data, plan, workers, tick)
        schedule = sync_plan(_days(data, train), data.ts_ms, sync, cuts, plan.utc_offset_ms)
        models = _models(jobs, found, data, rows)
        ranked = _rows(data, rows)
        days, hours, values = day_slices(data, rows), hour_slices(data, rows), value_slices(data, rows)
        places = {f"day {k}": v for k, v in days.items()} | {f"hour {k}": v for k, v in hours.items()}
        places |= {f"{column} {value}": v for (column, value), v in values.items()}
        measured = Measured(ranked, models, places, tick)
        setup = Setup(data, schedule, rows, train, sync, fresh, reference, cuts, old, seeds)
        report, plots = report_of(setup, measured, days, hours, values)
        notes = list(data.notes)
    ones = [f for f, job in zip(found, jobs, strict=True) if job.features == LIVE]
    run = took.run | {
        "features_seconds": round(features_seconds, 1),
        "passes": [
            {"features": job.features, "seed": job.seed} | f["seconds"] for job, f in zip(jobs, found, strict=True)
        ],
        "models_together_over_one": round(float(np.mean([f["over_one"] for f in ones])), 3),
        "log": ", ".join(str(part) for part in parts),
        "schema": plan.source,
        "schema_id": plan.id,
        "model": name_of(model),
        "spec": ones[0]["spec"],
        "inputs": inputs,
        "seeds": list(range(seed, seed + seeds)),
        "notes": notes,
    }

    def print_it() -> None:
        say(report["verdict"])
        shown = ("model", "staleness_minutes", "auc", "auc_gain", "page_auc", "page_auc_gain")
        show("", report["models"], [key for key in shown if key in report["models"][0]])

    return Result(report, run, f"Freshness on {name_of_log(parts)}", lambda: plots, print_it).written(place)


NIGHTLY = (NEVER, DAILY)
"""What a nightly job can do on day-old features: it learns a day when it is over, all of it, as a batch job does."""

_MANY = 1 << 30
"""Frozen features are wanted of all days: which are tested on is known when the log has been read."""


def _checked(sync: Sequence[str], seeds: int) -> tuple[str, ...]:
    for name in sync:
        period_ms(name)
    if len(set(sync)) < 2:
        raise SettingError(f"--sync {','.join(sync)}", "name two models or more to compare")
    if seeds < 1:
        raise SettingError(f"{seeds} seeds", "use --seeds 1 or more")
    rank = {NEVER: -2.0, DAILY: -1.0, BATCH: math.inf}
    return tuple(sorted(set(sync), key=lambda s: rank[s] if s in rank else 1.0 / (period_ms(s) or 1)))


def _compared(sync: Sequence[str]) -> tuple[str, str]:
    """(the fresh model, the one that it is compared with): every minute and every day where both are there."""
    fresh = "minute" if "minute" in sync else sync[-1]
    return fresh, DAILY if DAILY in sync and fresh != DAILY else sync[0]


def _train_days(days: int, wanted: int | None, log: object) -> int:
    if days < 2:
        raise SettingError(f"the log '{log}' has one local day alone", "give a log of two days or more")
    train = days // 2 if wanted is None else wanted
    if not 0 < train < days:
        raise SettingError(f"--train-days {train} of a log with {days} days", f"use 1 to {days - 1}")
    return train


def _check_rows(data: Dataset, rows: slice) -> None:
    clicks = float(np.sum(data.label[rows]))
    n = rows.stop - rows.start
    if not 0 < clicks < n:
        raise LogError(
            f"the {n} exposures after the training days have {'no' if not clicks else 'nothing but'} clicks",
            "give a log with both labels there, or other --train-days",
        )
    users = len(np.unique(data.user[rows]))
    if users < 2:
        raise LogError(
            f"the {n} exposures after the training days are of {users} user", "name the users' column as log.user"
        )


def _days(data: Dataset, train: int) -> list[slice]:
    return [data.rows((d,)) for d in range(train, len(data.days))]


def _rows(data: Dataset, rows: slice) -> ScoredRows:
    def codes(values: NDArray[Any]) -> NDArray[np.intp]:
        return np.unique(np.asarray(values[rows]), return_inverse=True)[1]

    return ScoredRows(np.array(data.label[rows]), codes(data.user), codes(data.group))


def _models(
    jobs: Sequence[Job], found: Sequence[Mapping[str, Any]], data: Dataset, rows: slice
) -> dict[str, MeasuredScores]:
    """All models by name, from the rarest synchronisation on; the retrained one and the baseline last."""
    out: dict[str, MeasuredScores] = {}
    for kind in (LIVE, DAY_OLD):
        own = [job for job in jobs if job.features == kind]
        for sync in dict.fromkeys(s for job in own for s in job.syncs):
            out[named(kind, sync)] = _scores([job.out / f"{sync}.npy" for job in own if sync in job.syncs])
    again = [job.out / "retrained.npy" for job in jobs if job.retrain]
    if again:
        out[RETRAINED] = _scores(again)
    column = baseline_column(data.schema)
    if column is not None:
        rate = np.ascontiguousarray(data.num[rows, column])
        fixed = rate if data.frozen is None else np.ascontiguousarray(data.frozen[rows, column])
        seeds = len({job.seed for job in jobs})
        out[BASELINE] = MeasuredScores([rate] * seeds, [fixed] * seeds)
    return out


def _scores(files: Sequence[Path]) -> MeasuredScores:
    """Of a model, by seed; those that may be compared within a group lie beside them, where they are others."""
    p, starts = [np.load(file) for file in files], [file.with_suffix(".start.npy") for file in files]
    return MeasuredScores(p, [np.load(s) if s.exists() else own for s, own in zip(starts, p, strict=True)])


# -- in a worker ---------------------------------------------------------------------------------------------

_data: Dataset
_schema: Schema


def _open(folder: Path, given: Schema, days: tuple[str, ...], own: Schema) -> None:
    global _data, _schema
    torch.set_num_threads(1)
    _data, _schema = open_dataset(folder, given, days), own


def _run(job: Job) -> dict[str, Any]:
    """Writes each model's scores of the days after the training to ``job.out``; how long it took."""
    num = input_of(_data, job.inputs, "day_old" if job.features == DAY_OLD else "num")
    assert num is not None
    frozen = input_of(_data, job.inputs, "frozen")
    if frozen is not None and job.features == DAY_OLD:
        frozen = num  # they hold through the day as it is
    days, train = _days(_data, job.train_days), _data.rows(range(job.train_days))
    schema = _schema if job.inputs == OWN else _data.schema
    model = model_of(schema, spec_of(job.model), job.seed)
    job.out.mkdir(parents=True)
    untrained = model.snapshot() if job.retrain else None
    began = time.perf_counter()
    if job.nightly:
        _save_nightly(job, model, num, days)
        return {"seconds": {"nightly_seconds": round(time.perf_counter() - began, 2)}}
    learn(model, _data, train, num)
    training = time.perf_counter() - began
    plan = sync_plan(days, _data.ts_ms, job.syncs, job.cut, _schema.utc_offset_ms)
    found = run_sync_plan(model, _data, num, plan, frozen=frozen, clock=time.perf_counter)
    for sync, p in found.scores.items():
        np.save(job.out / f"{sync}.npy", p)
    for sync, p in found.at_start.items():
        np.save(job.out / f"{sync}.start.npy", p)
    # One model alone: it learns as often as the learner does, and scores with every version.
    alone = training + found.learn_seconds + found.score_seconds[job.syncs[-1]]
    together = training + found.learn_seconds + found.shared_seconds
    seconds: dict[str, Any] = {
        "training_seconds": round(training, 2),
        "learning_seconds": round(found.learn_seconds, 2),
        "scoring_seconds": {name: round(s, 2) for name, s in found.score_seconds.items()},
        "all_scoring_seconds": round(found.shared_seconds, 2),
    }
    if untrained is not None:
        began = time.perf_counter()
        model.resume(*untrained)
        # On the first day it is the trained model, as every other: nothing has come since the training.
        first = days[0].stop - days[0].start
        live = [found.scores[job.syncs[0]][:first]]
        fixed = [p[:first] for name, p in found.at_start.items() if name == job.syncs[0]]
        for day in rounds.retrained(model, _data, num, train, days, np.random.default_rng(job.seed)):
            live.append(score(model, _data, day, num))
            if frozen is not None:
                fixed.append(score(model, _data, day, frozen))
        np.save(job.out / "retrained.npy", np.concatenate(live))
        if fixed:
            np.save(job.out / "retrained.start.npy", np.concatenate(fixed))
        seconds["retraining_seconds"] = round(time.perf_counter() - began, 2)
    return {"seconds": seconds, "over_one": together / alone, "spec": dict(model.spec)}


def _save_nightly(job: Job, model: Learning, num: NDArray[np.float32], days: Sequence[slice]) -> None:
    """Writes the scores of a nightly job's models: of that of the first of ``days``, and of each day's own."""
    before = [_data.rows((d,)) for d in range(job.train_days)]
    ready = rounds.nightly(model, _data, num, [*before, *days], np.random.default_rng(job.seed))
    first = next(day for day in ready if day == days[0])
    scores: dict[str, list[Scores]] = {NEVER: [score(model, _data, slice(first.start, days[-1].stop), num)]}
    scores[DAILY] = [scores[NEVER][0][: first.stop - first.start], *(score(model, _data, day, num) for day in ready)]
    for sync in job.syncs:
        np.save(job.out / f"{sync}.npy", np.concatenate(scores[sync]))


def _all(jobs: Sequence[Job], data: Dataset, own: Schema, workers: int | None, tick: Tick) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = [{}] * len(jobs)
    with pool(workers, _open, (data.folder, data.schema, data.days, own)) as processes:
        futures = {processes.submit(_run, job): i for i, job in enumerate(jobs)}
        for done, future in enumerate(as_completed(futures), 1):
            results[futures[future]] = future.result()
            tick("learning and scoring", done, len(jobs))
    return results
