# shell
"""``millrace replay``: runs a log through windows, learner and progressive validation, as if it happened live.

::

    time ──────────────────────────────────────────────────────────────►
    exposures    e1 e2      e3 e4 e5        e6  e7 ...      features at the exposure, windows [ts - W, ts)
                  │  └──────────────┐ click                 label known when the label policy says so
    labels        └──────────┐      ▼
                             ▼   positive of e2
                     negative of e1                         trained on in micro-batches, in this order

Each exposure is scored by a model that has learnt only from labels known at that moment. Only then may the model learn
from the exposure. In a log without action times, labels are known and clicks are counted at the exposure itself. The
exposure's own features never see them. Bias fields (the position) read as missing when scoring, as when a page is
ranked. Grouped AUC compares only rows that were scored in one state (:mod:`millrace.offline.grouped`).

The report is bit-identical for the same log, schema, model and seed. All that differs between runs is in run.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from learner.dense import threads
from learner.model import OnlineModel
from millrace.contracts.merit import auc, calibration, grouped_auc, log_loss
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable, local_days, read_log
from millrace.offline.grouped import Groups
from millrace.offline.known import LabelSettings, Model, Samples
from millrace.offline.logfeatures import Labels, LogFeatures, LogRows, unfit
from millrace.offline.report import calibration_plot, day_plot, make_folder, write_report

BATCH_ROWS = 256
THREADS = 1  # of torch: sums, and so the report, depend on how they are split between threads
_DIGITS = 6


def replay(
    log: Path,
    schema: Path,
    out: Path,
    *,
    seed: int = 0,
    model: str | None = None,
    spec: Mapping[str, Any] | None = None,
    batch_rows: int = BATCH_ROWS,
    labels: LabelSettings | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Replays ``log``, writes report.json, run.json, report.html and plots to ``out``, prints a table; the report.

    Args:
        model: the model's name (default: the learner's default).
        spec: overrides of the model's settings.
        labels: when labels are learnt (default: as the settings' defaults say).
        progress: show a bar and the table.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
        SettingError: an unknown model or setting, or a folder that cannot be written.
    """
    started = datetime.now(UTC)
    clock = time.perf_counter()
    plan = load_schema(schema)
    labels = labels or LabelSettings.of(Settings())
    settings = dict(spec or {}) | ({"model": model} if model else {})
    with threads(THREADS):
        learner = OnlineModel(plan, settings, seed)
        exposures = read_log(log, plan)
        make_folder(out, "report.json")
        read_seconds = time.perf_counter() - clock
        with _bar(exposures.table.num_rows, progress) as tick:
            groups = Groups(exposures, plan)
            p = run_log(exposures, plan, learner, batch_rows, tick, groups, labels)
    seconds = time.perf_counter() - clock
    report = make_report(exposures, plan, p, groups)

    text = json.dumps(report, sort_keys=True, indent=1) + "\n"
    (out / "report.json").write_text(text, encoding="utf-8")
    run = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "read_seconds": round(read_seconds, 3),
        "rows_per_second": round(len(p) / max(seconds - read_seconds, 1e-9)),
        "log": str(log),
        "schema": str(schema),
        "schema_id": plan.id,
        "seed": seed,
        "spec": learner.spec,
        "batch_rows": batch_rows,
        "label_policy": labels.policy,
        "observation_seconds": labels.observation_ms / 1000,
        "grouped_auc": groups.how,
        "notes": [*exposures.notes, *unfit(exposures, plan)],
        "report_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("millrace", "numpy", "torch", "pyarrow")},
    }
    (out / "run.json").write_text(json.dumps(run, indent=1, default=str) + "\n", encoding="utf-8")
    plots = [day_plot(report["days"]), calibration_plot(p, exposures.table[exposures.label].to_numpy())]
    write_report(out, report, run, plots, title=f"Replay of {log.name}")
    if progress:
        _print(report, run, out)
    return report


def run_log(
    log: LogTable,
    schema: Schema,
    model: Model,
    batch_rows: int,
    tick: Callable[[int], None],
    groups: Groups | None = None,
    how: LabelSettings | None = None,
) -> NDArray[np.float32]:
    """Scores each exposure before ``model`` learns what was not known then. (n,) probabilities, in the log's order

    Args:
        tick: is told the number of rows scored, after each batch.
        groups: is told what is scored in one state, and has scored what it needs besides; the result is the same.
        how: when labels are learnt (default: as the settings' defaults say).
    """
    how = how or LabelSettings.of(Settings())
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)
    features = LogFeatures(rows, labels, schema, () if groups is None else groups.cuts)
    samples = Samples.of(rows.ts_ms, labels, how.named, how.observation_ms)
    oldest, bias = samples.oldest(), schema.layout.bias_columns
    p = np.empty(rows.n, np.float32)
    scored = 0
    for start in range(0, len(samples.row), batch_rows):
        part = slice(start, min(start + batch_rows, len(samples.row)))
        # Exposures up to the time at which the batch was complete are scored without it.
        end = int(np.searchsorted(rows.ts_ms, samples.known_ms[part.stop - 1], side="right"))
        if groups is not None and end > scored:
            groups.before(slice(scored, end), features, model.score, bias)
        for first in range(scored, end, batch_rows):
            shown = np.arange(first, min(first + batch_rows, end))
            cat, num = features.of(shown)
            cat[:, bias] = 0
            p[shown] = model.score(cat, num)
        scored = max(scored, end)
        model.learn(samples.batch(part, rows, *features.of(samples.row[part])))
        features.forget(int(oldest[part.stop]))
        tick(scored)
    return p


def make_report(log: LogTable, schema: Schema, p: NDArray[np.float32], groups: Groups) -> dict[str, Any]:
    """``rows``, ``duplicates``, ``days`` and ``total``; figures rounded, None where one class is missing.

    Args:
        p: (n,) of the run that ``groups`` was told of.
    """
    y = log.table[log.label].to_numpy()
    q, group = groups.compared(p)
    days = np.array(local_days(log, schema))
    table = []
    for day in np.unique(days):
        on = days == day
        table.append({"day": str(day)} | _figures(p[on], y[on], q[on], group[on]))
    return {"rows": len(y), "duplicates": log.duplicates, "days": table, "total": _figures(p, y, q, group)}


def _figures(
    p: NDArray[np.float32], y: NDArray[np.int8], q: NDArray[np.float32], group: NDArray[np.intp]
) -> dict[str, Any]:
    """Of scores p (n,); the grouped AUC of scores q (n,), which are comparable within ``group`` (n,)."""
    figures = {
        "auc": auc(p, y),
        "grouped_auc": grouped_auc(q, y, group),
        "log_loss": log_loss(p, y),
        "calibration": calibration(p, y),
    }
    rounded = {k: round(v, _DIGITS) if math.isfinite(v) else None for k, v in figures.items()}
    return {"rows": len(y), "positives": int(y.sum())} | rounded


@contextmanager
def _bar(rows: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal. Yields a function that takes the number of rows done."""
    console = Console(stderr=True)
    columns = (TextColumn("replay"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not wanted) as bar:
        task = bar.add_task("replay", total=rows)
        yield lambda done: bar.update(task, completed=done)


def _print(report: Mapping[str, Any], run: Mapping[str, Any], out: Path) -> None:
    title = f"{report['rows']:,} exposures, {report['duplicates']:,} duplicates dropped"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for name in ("day", "rows", "positives", "AUC", "grouped AUC", "log loss", "calibration"):
        table.add_column(name, justify="left" if name == "day" else "right", no_wrap=True)
    for row in [*report["days"], {"day": "all days"} | report["total"]]:
        figures = (row[k] for k in ("auc", "grouped_auc", "log_loss", "calibration"))
        table.add_row(
            row["day"],
            f"{row['rows']:,}",
            f"{row['positives']:,}",
            *("–" if f is None else f"{f:.4f}" for f in figures),
        )
    console = Console()
    console.print(table)
    console.print(f"{run['rows_per_second']:,} rows/s; report in {out}", highlight=False)
