# shell
"""``millrace log replay``: runs a log through windows, learner and progressive validation, as if it happened live.

::

    time ──────────────────────────────────────────────────────────────►
    exposures    e1 e2      e3 e4 e5        e6  e7 ...      features at the exposure, windows [ts - W, ts)
                  │  └──────────────┐ click                 label known when the label policy says so
    labels        └──────────┐      ▼
                             ▼   positive of e2
                     negative of e1                         trained on in micro-batches, in this order

A model scores each exposure before it may learn from it, and has learnt only from labels known at that moment. In a
log without action times, labels are known and clicks are counted at the exposure itself, and the exposure's own
features never see them. Bias fields (the position) read as missing when scoring, as when a page is ranked. Grouped AUC
compares only rows that were scored in one state (:mod:`millrace.commands.replay.grouped`).

The report is bit-identical for the same log, schema, model and seed. Only run.json differs between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.role.model_factory import model_of
from millrace.basics.errors import SettingError
from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.kept import KeptReplay
from millrace.commands.replay.logfeatures import clock, unfit
from millrace.commands.replay.logsamples import LabelSettings, ReplayModel, ReplayObserver, learns_by_page
from millrace.commands.replay.outcomefigures import OutcomeScores
from millrace.commands.replay.reading import about, name_of_log, reading, say_decisions
from millrace.commands.replay.replayreport import Baseline, make_report, print_report
from millrace.commands.replay.sidebyside import Runner, Timing
from millrace.commands.replay.steps import steps
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.logs import TS, LogTable
from millrace.logs.frames import Frame, Log, log_parts
from millrace.logs.imported import imported_of
from millrace.reports import Plot, calibration_plot, day_plot, make_folder
from millrace.reports.progress import Took, bars
from millrace.reports.result import Result, ResultRows

BATCH_ROWS = 256
THREADS = 1  # of torch: sums, and so the report, depend on how they are split between threads


class ReplayResult(Result):
    """The result of a replay, and the score of each exposure."""

    def __init__(self, scores: Callable[[], ResultRows], *result: Any) -> None:
        super().__init__(*result)
        self._scores = scores

    @property
    def scores(self) -> ResultRows:
        """A row an exposure, in the order of time: time, user, item, label, score and baseline, the item's smoothed
        click rate: it ranks, it is no probability (null without one in the schema)."""
        return self._scores()


def replay(
    log: Log,
    schema: Schema | Path | str,
    out: Path | str | None = None,
    *,
    seed: int = 0,
    model: str | type[Any] | None = None,
    label_policy: str | None = None,
    skip_bad: bool = False,
    spec: Mapping[str, Any] | None = None,
    batch_rows: int = BATCH_ROWS,
    progress: bool = True,
) -> ReplayResult:
    """Replays ``log`` as if it happened live: each exposure is scored before its label is learnt.

    Args:
        log: a path, several that are one log, or a frame of pandas, Polars, pyarrow or DuckDB (give a relation an
            order).
        out: a folder for report.json, run.json, report.html and plots.
        seed: of the model. The same seed gives the same report, bit for bit.
        model: its name, module:Class, or a class.
        label_policy: when labels are learnt (default: the setting's); "immediate": at the exposure.
        skip_bad: leaves out and counts bad rows, instead of an error.
        spec: values of the model that differ from the default, as ``{"width": 8}``.
        batch_rows: exposures that are learnt together.
        progress: a bar on a terminal.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
        SettingError: an unknown model, policy or value, or a folder that cannot be written.
    """
    took = Took()
    plan, parts, folder = load_schema(schema), log_parts(log), None if out is None else Path(out)
    labels, batch_rows = labels_of(label_policy)[0], batch_size(batch_rows)
    settings = dict(spec or {}) | ({"model": model} if model else {})
    timing = Timing()
    with threads(THREADS), ExitStack() as files:
        learner = model_of(plan, settings, seed)
        exposures = files.enter_context(reading(parts, plan, folder, skip_bad, say=False))
        if folder is not None:
            make_folder(folder, "report.json")
        read_seconds = took.seconds
        with bars(progress) as tick:
            n = exposures.table.num_rows
            groups = GroupedRows(exposures, plan)
            baseline = Baseline.of(plan, n)
            if baseline is not None:
                groups.watch(baseline.column)
            outcomes = OutcomeScores.of(plan, learner, n)
            kept = _kept(parts, plan, folder, learner, batch_rows, labels, skip_bad)
            p = run_log(
                exposures,
                plan,
                learner,
                batch_rows,
                lambda done: tick("replay", done, n),
                groups,
                labels,
                baseline,
                timing,
                outcomes,
                kept,
            )
            if outcomes is not None:
                outcomes.settle(exposures)
    ran, seconds = took.run, took.seconds
    report = make_report(exposures, plan, p, groups, baseline, outcomes)
    run = about(parts, plan, exposures) | ran
    run |= {
        "read_seconds": round(read_seconds, 3),
        "features_seconds": round(timing.features, 3),
        "scoring_seconds": round(timing.scoring, 3),
        "learning_seconds": round(timing.learning, 3),
        "waiting_seconds": round(timing.waiting, 3),
        "model_mb": learner.nbytes >> 20,
        "windows_mb": timing.windows_bytes >> 20,
        "rows_per_second": round(len(p) / max(seconds - read_seconds, 1e-9)),
        "seed": seed,
        "spec": learner.spec,
        "batch_rows": batch_rows,
        "label_policy": labels.policy,
        "observation_seconds": labels.observation_ms / 1000,
        "grouped_auc": groups.how,
        "notes": [*exposures.notes, *unfit(exposures, plan), *clock(exposures, plan)],
    }

    def plots() -> list[Plot]:
        return [day_plot(report["days"]), calibration_plot(p, exposures.table[exposures.label].to_numpy())]

    def say() -> None:
        say_decisions(exposures)
        print_report(report, run)

    def scores() -> ResultRows:
        table = exposures.table
        made = {"time": table[TS].cast(pa.timestamp("ms", "UTC")), "user": table[exposures.user]}
        made |= {"item": table[exposures.item], "label": table[exposures.label], "score": pa.array(p)}
        rates = pa.nulls(len(p), pa.float32()) if baseline is None else pa.array(baseline.scores)
        return ResultRows(pa.table(made | {"baseline": rates}))

    result = ReplayResult(scores, report, run, f"Replay of {name_of_log(parts)}", plots, say).written(folder)
    if kept is not None:
        kept.remove()
    return result


def batch_size(rows: int) -> int:
    if rows < 1:
        raise SettingError(f"batch_rows {rows}", "use 1 or more")
    return rows


def labels_of(policy: str | None) -> tuple[LabelSettings, Settings]:
    """When labels are learnt, by a policy's name and the settings: the setting's, if None; "immediate": each at its
    exposure, which no live loop can do. And the settings."""
    at_once = policy == "immediate"
    settings = load_settings({"label_policy": None if at_once else policy})
    labels = LabelSettings.of(settings)
    return replace(labels, policy=None) if at_once else labels, settings


def run_log(
    log: LogTable,
    schema: Schema,
    model: ReplayModel,
    batch_rows: int,
    tick: Callable[[int], None],
    groups: GroupedRows | None = None,
    how: LabelSettings | None = None,
    observer: ReplayObserver | None = None,
    timing: Timing | None = None,
    outcomes: OutcomeScores | None = None,
    kept: KeptReplay | None = None,
) -> NDArray[np.float32]:
    """Scores each exposure before ``model`` learns what was not known then. (n,) probabilities, in the log's order.

    Args:
        tick: takes the number of rows scored, after each batch.
        groups: is filled with scores of one state, for which some rows are scored again. The result is the same.
        observer: sees what is scored and learnt; the result is the same.
        outcomes: get the predictions of the schema's outcomes, made at the same time, and their labels.
        kept: the same run, as far as it came before.
    """
    how = replace(how or LabelSettings.of(Settings()), by_page=learns_by_page(model))
    n = log.table.num_rows
    p = np.empty(n, np.float32) if kept is None else kept.array("p", (n,))
    if kept is not None and groups is not None:
        groups.lie_in(kept.array)
    if kept is not None and outcomes is not None:
        outcomes.q = kept.array("q", outcomes.q.shape)
    made, timing = Stretches(log, schema, how, () if groups is None else groups.cuts), timing or Timing()
    runner = Runner(model, p, groups, observer, timing, outcomes, kept)
    with closing(runner.run(steps(log, schema, batch_rows, how, groups, made=made))) as run:
        for scored in run:
            tick(scored)
    timing.windows_bytes = made.nbytes
    return p


def _kept(
    log: Sequence[Path | Frame], schema: Schema, out: Path | None, model: object, batch_rows: int,
    labels: LabelSettings, skip_bad: bool,
) -> KeptReplay | None:  # fmt: skip
    """Where this replay is; None for a log that is no import, which might change unseen, or a model of one's own."""
    found = imported_of(log)
    if found is None or out is None or not isinstance(model, OnlineModel):
        return None
    how = (batch_rows, labels.policy, labels.observation_ms, skip_bad, model.spec, model.seed)
    return KeptReplay(out / "kept", model, found[0].key(schema, *how))
