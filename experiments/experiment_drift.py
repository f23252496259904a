# shell
"""``millrace experiment drift``: false alarms of drift detectors on clean days, and their delay on planted changes.

One world is one log. Day by day::

    day 1            the model learns from nothing; no detector looks on
    day 2, 3, ...    clean days: each alarm is false
    middle day       halfway through its exposures, each of planted.CHANGES is planted, and the model lives through it

Scores are those of ``replay``: each exposure is scored before its label is learnt. A detector looks at them from the
second day on, also where a change comes later. The delay is the time from the change to the moment at which the first
alarm of a row after it could be known, so it has the wait for labels in it; ``exposures`` are those shown meanwhile.
The detectors and what they look at: :mod:`experiments.alarms`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from commands.offline.intervals import interval, rounded
from commands.offline.workers import pool
from commands.replay.logfeatures import Labels, LogRows
from commands.replay.run import BATCH_ROWS, THREADS, run_log
from experiments.alarms import LABEL, PAGES, SHUFFLED, WAYS, Judged, alarms
from experiments.planted import BLANK, CHANGES, NOTHING, Fork, Recorder, blank_columns, change
from experiments.verdicts import of_drift
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.errors import SettingError
from millrace.basics.merit import log_loss
from millrace.contracts.schema import Schema
from millrace.logs import LogTable, local_days, read_log
from millrace.reports import dots_plot, make_folder, write_all

HORIZON_ROWS = 100_000
"""Exposures after a change that the model lives through; an alarm after them does not count."""

MINUTE_MS = 60_000


def experiment_drift(
    logs: Sequence[Path],
    schema: Schema,
    out: Path,
    *,
    horizon_rows: int = HORIZON_ROWS,
    spec: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures drift detectors on ``logs``; writes report.json, run.json, runs.jsonl, report.html and plots to ``out``.

    Args:
        logs: one for each world, of at least three days without a change of their own.
        horizon_rows: exposures after a planted change.
        spec: overrides of the model's settings.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: no logs, a log of fewer than three days, or a horizon without rows.
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
    """
    if not logs or horizon_rows < 1:
        raise SettingError(f"{len(logs)} logs and a horizon of {horizon_rows} rows", "give at least one of each")
    started = time.perf_counter()
    make_folder(out, "runs.jsonl")
    results: list[dict[str, Any]] = [{}] * len(logs)
    jobs = [(log, schema, i, horizon_rows, dict(spec or {})) for i, log in enumerate(logs)]
    columns = (TextColumn("worlds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        pool(workers) as processes,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar,
        (out / "runs.jsonl").open("w", encoding="utf-8") as lines,
    ):
        task = bar.add_task("worlds", total=len(jobs))
        futures = {processes.submit(_world, *job): i for i, job in enumerate(jobs)}
        for future in as_completed(futures):
            found = results[futures[future]] = future.result()
            lines.writelines(json.dumps(row) + "\n" for row in [*found["clean"], *found["changes"]])
            lines.flush()
            bar.advance(task)
    report = _report(results, horizon_rows)
    report = {"verdict": of_drift(report, PAGES)} | report
    run = {"seconds": round(time.perf_counter() - started), "logs": [str(log) for log in logs], "horizon": horizon_rows}
    write_all(out, report, run, _plots(results), "Drift")
    return report


# -- one world -----------------------------------------------------------------------------------------------


def _world(path: Path, schema: Schema, world: int, horizon: int, spec: dict[str, Any]) -> dict[str, Any]:
    """The figures of one log: ``clean``, a row for each way, and ``changes``, a row for each change and way."""
    with threads(THREADS):
        log = read_log(path, schema)
        _, day = np.unique(np.array(local_days(log, schema)), return_inverse=True)
        starts = np.searchsorted(np.maximum.accumulate(day), np.arange(int(day.max()) + 2))
        days = len(starts) - 1
        if days < 3:
            raise SettingError(f"'{path}' has {days} days", "drift needs at least three: to learn, to look, to change")
        middle = days // 2
        recorder = Recorder(OnlineModel(schema, spec, world), int(starts[middle] + starts[middle + 1]) // 2)
        p = run_log(log, schema, recorder, BATCH_ROWS, recorder.tick)
        start, watched = recorder.start, int(starts[1])
        if start is None or start.row + horizon > len(p):
            raise SettingError(f"'{path}' ends less than {horizon} rows after the change", "give more days")
        found: dict[str, Any] = {"clean": [], "changes": [], "days": days - 1}
        clean = judged(log, schema, p).since(watched)
        for way in WAYS:
            count = len(alarms(way, clean, _rng(world, 0)).row)
            rate = count / (days - 1)
            found["clean"].append({"world": world, "way": way, "alarms": count, "alarms_a_day": rounded(rate)})
        for number, kind in enumerate(CHANGES):
            stop = start.row + horizon
            short = LogTable(log.table.slice(0, stop), log.user, log.item, log.label, stop, 0)
            planted = change(short, schema, kind, start.row, p[:stop], _rng(world, 1 + number))
            q = p[:stop]
            if kind != NOTHING:
                q = _fork(planted, schema, start, OnlineModel(schema, spec, world), kind, p)
            rows = judged(planted, schema, q)
            found["changes"] += _delays(rows, kind, world, watched, start.row, planted)
    return found


def _fork(
    log: LogTable, schema: Schema, start: Any, fresh: OnlineModel, kind: str, p: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The scores of a changed log: ``p`` up to the change, and then those of the model that lives through it. (n,)"""
    blank = blank_columns(schema) if kind == BLANK else np.empty(0, np.intp)
    first_ms = int(log.table["ts_ms"][start.row].as_py())
    fork = Fork(fresh, start, first_ms, blank)
    q = run_log(log, schema, fork, BATCH_ROWS, fork.tick)
    q[: start.row] = p[: start.row]
    return q


def judged(log: LogTable, schema: Schema, p: NDArray[np.float32]) -> Judged:
    """The rows of a log with their scores (n,) and labels: a click after the attribution window is none."""
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)
    clicked = labels.clicked & ~labels.late
    return Judged(p, clicked.astype(np.int8), rows.page, labels.known_ms, rows.ts_ms + labels.wait_ms)


def _delays(rows: Judged, kind: str, world: int, watched: int, first: int, log: LogTable) -> list[dict[str, Any]]:
    """A row for each way that the live loop could take; ``exposures`` and ``minutes`` are None without an alarm."""
    shown = log.table["ts_ms"].to_numpy()
    out = []
    for way in WAYS:
        if way == SHUFFLED:
            continue
        found = alarms(way, rows.since(watched), _rng(world, 0))
        later = found.at_ms >= shown[first] if way == LABEL else found.row + watched >= first
        after = np.flatnonzero(later)
        row: dict[str, Any] = {"world": world, "change": kind, "way": way, "exposures": None, "minutes": None}
        if len(after):
            at_ms = int(found.at_ms[after[0]])
            row["exposures"] = int(np.searchsorted(shown, at_ms, side="right")) - first
            row["minutes"] = rounded((at_ms - int(shown[first])) / MINUTE_MS)
        row["log_loss"] = rounded(log_loss(rows.p[first:], rows.label[first:]))
        out.append(row)
    return out


def _rng(world: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((world, purpose))


# -- all worlds ----------------------------------------------------------------------------------------------


def _report(results: Sequence[Mapping[str, Any]], horizon: int) -> dict[str, Any]:
    clean, changes = [], []
    for way in WAYS:
        own = [row for r in results for row in r["clean"] if row["way"] == way]
        rates = [row["alarms_a_day"] for row in own]
        row = {"way": way, "days": sum(r["days"] for r in results), "alarms": sum(r["alarms"] for r in own)}
        clean.append(row | (interval("alarms_a_day", rates) if len(rates) > 1 else {"alarms_a_day": rates[0]}))
    for kind in CHANGES:
        for way in (w for w in WAYS if w != SHUFFLED):
            own = [row for r in results for row in r["changes"] if (row["change"], row["way"]) == (kind, way)]
            seen = [row for row in own if row["minutes"] is not None]
            row = {
                "change": kind,
                "way": way,
                "log_loss": rounded(float(np.mean([row["log_loss"] for row in own]))),
                "worlds": len(own),
                "detected": len(seen),
            }
            for measure in ("exposures", "minutes"):
                values = [row[measure] for row in seen]
                row[f"median_{measure}"] = rounded(float(np.median(values))) if values else None
                row[f"most_{measure}"] = max(values) if values else None
            changes.append(row)
    return {"worlds": len(results), "exposures_after_a_change": horizon, "clean": clean, "changes": changes}


def _plots(results: Sequence[Mapping[str, Any]]) -> list[Any]:
    def values(key: str, measure: str, **wanted: str) -> list[float]:
        rows = [row for r in results for row in r[key] if all(row[k] == v for k, v in wanted.items())]
        return [row[measure] for row in rows if row[measure] is not None]

    false = {way: values("clean", "alarms_a_day", way=way) for way in WAYS}
    late = {kind: values("changes", "minutes", change=kind, way=PAGES) for kind in CHANGES}
    return [
        dots_plot("false_alarms", "False alarms on clean days: a dot a world.", false, "alarms a day"),
        dots_plot(
            "delay",
            f"From a planted change to the alarm, {PAGES}: a dot a world; worlds without an alarm have none.",
            late,
            "minutes",
        ),
    ]
