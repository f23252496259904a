# shell
"""``millrace log delays``: how late a log's labels come, and what each attribution window and label policy costs.

Features are made once. Each window and policy whose labels come in another order is replayed, on all cores, one thread
each, from an empty model with one seed. The replays differ only in their labels, and final labels judge all of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np

from commands.delays.completeness import Curve, DelayedClicks, by_group, by_window, points, quantiles
from commands.delays.delaysreport import Trial, curve_plot, rows_of, trial_of, trials_plot, verdict_of
from commands.delays.trials import IMMEDIATE, Setting, digest, final_labels, open_features, samples_of, with_window
from commands.offline.slicing import MISSING, slice_of
from commands.offline.workers import pool
from commands.replay.logfeatures import Labels, LogRows
from commands.replay.logsamples import learn_through
from commands.replay.reading import Log, about, name_of_log, reading
from commands.replay.replayrun import BATCH_ROWS, THREADS
from commands.replay.stretches import Stretches, write_features
from learner.network.dense import threads
from learner.role.model_factory import model_of
from millrace.basics.clustered import parts_of, user_numbers
from millrace.basics.errors import LogError, SettingError
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY, policy_named
from millrace.logs import LogTable, read_log
from millrace.reports import make_folder, say, show, write_all
from millrace.reports.progress import Took, bars
from millrace.reports.spans import span_name

WINDOWS = (10_000, 60_000, 300_000, 900_000, 3_600_000, 86_400_000)
MOST_SLOTS = 20


def delays(
    log: Log,
    schema: Path,
    out: Path,
    *,
    windows: Sequence[int] = WINDOWS,
    policies: Sequence[str] = (),
    segments: Sequence[str] = (),
    spec: Mapping[str, Any] | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes report.json, run.json, report.html and plots to ``out``, and prints the verdict. Returns the report.

    Args:
        windows: attribution windows to try, in milliseconds. The schema's own is always tried too.
        policies: label policies to try (default: all). The present setting and "immediate" always run too.
        settings: the present setting's policy, observation window and lateness.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`; or the log has no times of its clicks.
        SettingError: an unknown policy, model or segment, no window above 0, or a folder that cannot be written.
    """
    took = Took()
    for name in policies:
        policy_named(name)
    if not windows or min(windows) < 1:
        raise SettingError("no attribution window above 0", "name some with --windows 10s,5min,1d")
    plan, now = load_schema(schema), settings or Settings()
    own_ms = _own_window(plan, schema)
    model_of(plan, dict(spec or {}), seed)  # an unknown one is an error before anything long begins
    with reading(log, plan, out, skip_bad, say=progress) as table:
        make_folder(out, "report.json")

        rows = LogRows(table, plan)
        labels = Labels(table, plan, rows)
        tried = tuple(sorted({*windows, own_ms}))
        longest_ms = tried[-1]
        timed = _timed(table, plan)
        clicks = DelayedClicks.of(rows.ts_ms, labels.acted_ms, labels.clicked & timed)
        curve = Curve(clicks, longest_ms)
        report, curves = _completeness(table, plan, clicks, curve, tried, segments)

        present = Setting(now.label_policy, own_ms)
        asked = [Setting(policy, ms) for policy in (policies or tuple(REGISTRY)) for ms in tried]
        chosen = list(dict.fromkeys([present, *asked, Setting(IMMEDIATE, longest_ms)]))
        trials, runs = _trials(
            table, log, schema, plan, rows, labels, chosen, longest_ms, now,
            (dict(spec or {}), seed, skip_bad), workers, progress,
        )  # fmt: skip
        report["outcomes"] = [
            {"outcome": plan.outcome[one.column].name, "share": row.pop("share_of_clicks")} | row
            for one in labels.of_events
            for row in quantiles(Curve(DelayedClicks.of_outcome(one), one.within_ms))
        ]
        verdict = verdict_of(curve, longest_ms, tried, trials, present)
        head: dict[str, Any] = {
            "verdict": verdict,
            "rows": rows.n,
            "positives": int(labels.clicked.sum()),
            "clicks_without_a_time": int((labels.clicked & ~timed).sum()),
            "clicks_after_the_longest_window": int(
                labels.clicked.sum() - final_labels(labels, rows.ts_ms, longest_ms).sum()
            ),
            "present_setting": present.name,
            "final_labels": f"clicked within {span_name(longest_ms)}",
        }
        report = head | {"settings": rows_of(trials, present)} | report
        run = about(log, plan, table) | took.run
        run |= {
            "seed": seed,
            "settings_tried": len(chosen),
            "replays": runs,
            "observation_seconds": now.observation_seconds,
            "lateness_minutes": now.lateness_minutes,
            "log_ends": str(np.datetime64(int(rows.ts_ms[0] + clicks.watched_ms[0]), "ms")),
        }
        plots = [curve_plot(curves, tried)] if curves else []
        if any(trial.setting != present for trial in trials):
            plots.append(trials_plot(trials, present))
        name = name_of_log(log)
        write_all(out, report | {"curves": curves}, run, plots, f"Delays of labels in {name}")
        if progress:
            say(verdict)
            show("How complete labels are", report["completeness"], ("waiting_time", "completeness", "at_risk"))
            if report["outcomes"]:
                show("How late outcomes come", report["outcomes"], ("outcome", "share", "waiting_time"))
            columns = ("policy", "window", "auc_over_present", "log_loss_over_present", "calibration")
            show(f"Settings against the present one ({present.name})", report["settings"], columns)
            print(f"report in {out}")
        return report


def _own_window(plan: Schema, path: Path) -> int:
    """The schema's attribution window (ms). Raises LogError if it has no times of the label's action."""
    action = plan.windows.labelling
    if plan.log is None or action not in plan.log.action_times:
        raise LogError(
            f"schema '{path}' names no time for the label's action '{action}', so nobody can tell how late it comes",
            f'name its column under [log]: action_times = {{ {action} = "click_time" }}',
        )
    return max(1, round(plan.log.attribution_minutes * 60_000))


def _timed(table: LogTable, plan: Schema) -> Any:
    assert plan.log is not None
    return table.table[plan.log.action_times[plan.windows.labelling]].is_valid().to_numpy()


def _completeness(
    table: LogTable, plan: Schema, clicks: DelayedClicks, curve: Curve, tried: Sequence[int], segments: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the tables, the curves of the plot: all exposures, and those of the first slots)."""
    assert plan.log is not None
    report: dict[str, Any] = {"completeness": by_window(curve, tried), "waiting_times": quantiles(curve)}
    shown = {"all exposures": curve}
    if plan.log.position is not None:
        slots = table.table[plan.log.position].fill_null(-1).to_numpy().astype(np.int64)
        names = [*map(str, range(MOST_SLOTS)), f"{MOST_SLOTS} and on", MISSING]
        number = np.where(slots < 0, MOST_SLOTS + 1, np.minimum(slots, MOST_SLOTS)).astype(np.intp)
        report["by_slot"] = by_group(clicks, number, names, tried, "slot")
        known = [int(row["slot"]) for row in report["by_slot"] if row["slot"].isdigit()]
        for slot in sorted({known[0], known[len(known) // 2], known[-1]}) if len(known) > 1 else ():
            shown[f"slot {slot}"] = Curve(clicks.some(number == slot), max(tried))
    for segment in segments:
        found = slice_of(table, plan, segment)
        report[f"by_{segment}"] = by_group(clicks, found.code, found.values, tried, segment)
    return report, points(shown)


# -- the replays -----------------------------------------------------------------------------------------------


def _trials(
    table: LogTable,
    log: Log,
    schema: Path,
    plan: Schema,
    rows: LogRows,
    labels: Labels,
    chosen: Sequence[Setting],
    longest_ms: int,
    now: Settings,
    how: tuple[dict[str, Any], int, bool],
    workers: int | None,
    progress: bool,
) -> tuple[list[Trial], int]:
    """(the trials in the order asked for, how many replays that took): settings whose labels come alike share one."""
    y = final_labels(labels, rows.ts_ms, longest_ms)
    user = user_numbers(table.table[table.user])
    lateness_ms, observation_ms = round(now.lateness_minutes * 60_000), round(now.observation_seconds * 1000)
    waits = (longest_ms, lateness_ms, observation_ms)
    alike: dict[str, list[Setting]] = {}
    lost: dict[Setting, int] = {}
    wait_s: dict[Setting, float] = {}
    for setting in chosen:
        samples, lost[setting] = samples_of(setting, labels, rows.ts_ms, *waits)
        alike.setdefault(digest(samples), []).append(setting)
        first = np.full(rows.n, np.iinfo(np.int64).max)
        np.minimum.at(first, samples.row, samples.known_ms)
        wait_s[setting] = float((first - rows.ts_ms).mean()) / 1000
    with tempfile.TemporaryDirectory(prefix="millrace-delays-") as name, bars(progress) as tick:
        folder = Path(name)
        tick("features", 0, 1)
        write_features(Stretches(table, plan), folder)
        tick("features", 1, 1)
        with pool(workers, _open, (folder, log, schema, how)) as processes:
            jobs = [(own[0], waits, folder / f"p-{i}.npy") for i, own in enumerate(alike.values())]
            futures = [processes.submit(_run, *job) for job in jobs]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                tick("replays", done, len(jobs))
        base = parts_of(np.load(folder / "p-0.npy"), y)  # the present setting is the first
        trials: dict[Setting, Trial] = {}
        for i, settings in enumerate(alike.values()):
            parts = parts_of(np.load(folder / f"p-{i}.npy"), y)
            for setting in settings:
                trials[setting] = trial_of(setting, parts, base, y, user, lost[setting], wait_s[setting])
    return [trials[setting] for setting in chosen], len(alike)


_plan: Schema
_rows: LogRows
_labels: Labels
_folder: Path
_how: tuple[dict[str, Any], int, bool]


def _open(folder: Path, log: Log, schema: Path, how: tuple[dict[str, Any], int, bool]) -> None:
    global _plan, _rows, _labels, _folder, _how
    _plan, _folder, _how = load_schema(schema), folder, how
    spool = folder / f"log-{os.getpid()}"  # for a log that is larger than memory; removed with the folder
    spool.mkdir()
    table = read_log(log, _plan, skip_bad=how[2], spool=spool)
    _rows = LogRows(table, _plan)
    _labels = Labels(table, _plan, _rows)


def _run(setting: Setting, waits: tuple[int, int, int], out: Path) -> None:
    spec, seed, _ = _how
    with threads(THREADS):
        samples, _ = samples_of(setting, _labels, _rows.ts_ms, *waits)
        model = model_of(with_window(_plan, setting.window_ms), spec, seed)
        cat, num = open_features(_folder)
        np.save(out, learn_through(model, _rows, cat, num, samples, BATCH_ROWS))
