# shell
"""``millrace log delays``: how late a log's labels come, and what each attribution window and label policy costs.

Features are made once. Each window and policy whose labels come in another order is replayed, on all cores, one thread
each, from an empty model with one seed. The replays differ only in their labels, and final labels judge all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from learner.network.dense import threads
from learner.role.model_factory import model_of
from millrace.basics.clustered import parts_of, user_numbers
from millrace.basics.durations import span_name
from millrace.basics.errors import LogError, SettingError
from millrace.commands.delays.completeness import Curve, DelayedClicks, by_group, by_window, points, quantiles
from millrace.commands.delays.delaysreport import Trial, curve_plot, rows_of, trial_of, trials_plot, verdict_of
from millrace.commands.delays.trials import (
    IMMEDIATE,
    Setting,
    digest,
    final_labels,
    open_features,
    samples_of,
    with_window,
)
from millrace.commands.offline.slicing import MISSING, slice_of
from millrace.commands.offline.workers import for_workers, pool
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import learn_through
from millrace.commands.replay.reading import about, name_of_log, reading, say_decisions
from millrace.commands.replay.replayrun import BATCH_ROWS, THREADS
from millrace.commands.replay.stretches import Stretches, write_features
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.labels import REGISTRY, policy_named
from millrace.logs import LogTable
from millrace.logs.frames import Log, log_parts
from millrace.logs.sorting import laid, mapped
from millrace.reports import Plot, make_folder, say, show
from millrace.reports.progress import Took, bars
from millrace.reports.result import Result
from millrace.reports.spans import listed, span_ms

WINDOWS = "10s,1min,5min,15min,1h,1d"
MOST_SLOTS = 20


def delays(
    log: Log,
    schema: Schema | Path | str,
    out: Path | str | None = None,
    *,
    windows: str | Sequence[int] = WINDOWS,
    policies: str | Sequence[str] | None = None,
    segments: str | Sequence[str] | None = None,
    model: str | type[Any] | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    spec: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Result:
    """Says how late a log's labels come, and what each attribution window and label policy would cost or gain.

    Args:
        log, schema, model, seed, skip_bad, spec: as of :func:`~millrace.commands.replay.replayrun.replay`.
        out: a folder for report.json, run.json, report.html and plots.
        windows: attribution windows to try, with commas (numbers in a list: milliseconds), beside the schema's own.
            Labels of the longest are the final ones.
        policies: label policies to try, with commas (default: all), beside the present and immediate.
        segments: columns, with commas, by whose values completeness is shown too.
        settings: the present setting's policy, observation window and lateness (default: those of environment and
            file).
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`; or the log has no times of its clicks.
        SettingError: an unknown policy, model or segment, no window above 0, or a folder that cannot be written.
    """
    took = Took()
    named, by, spec = listed(policies), listed(segments), dict(spec or {})
    spec |= {"model": for_workers(model, workers)} if model else {}
    for name in named:
        policy_named(name)
    spans = [span_ms(one) if isinstance(one, str) else one for one in listed(windows)]
    if not spans or min(spans) < 1:
        raise SettingError("no attribution window above 0", "name some with --windows 10s,5min,1d")
    plan, parts, folder = load_schema(schema), log_parts(log), None if out is None else Path(out)
    now = settings or load_settings()
    own_ms = _own_window(plan)
    model_of(plan, spec, seed)  # an unknown one is an error before anything long begins
    with reading(parts, plan, folder, skip_bad, say=False) as table:
        if folder is not None:
            make_folder(folder, "report.json")
        rows = LogRows(table, plan)
        labels = Labels(table, plan, rows)
        tried = tuple(sorted({*spans, own_ms}))
        longest_ms = tried[-1]
        timed = _timed(table, plan)
        clicks = DelayedClicks.of(rows.ts_ms, labels.acted_ms, labels.clicked & timed)
        curve = Curve(clicks, longest_ms)
        report, curves = _completeness(table, plan, clicks, curve, tried, by)

        present = Setting(now.label_policy, own_ms)
        asked = [Setting(policy, ms) for policy in (named or tuple(REGISTRY)) for ms in tried]
        chosen = list(dict.fromkeys([present, *asked, Setting(IMMEDIATE, longest_ms)]))
        trials, runs = _trials(
            table, plan, rows, labels, chosen, longest_ms, now, (spec, seed), workers, progress
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
        run = about(parts, plan, table) | took.run
        run |= {
            "seed": seed,
            "settings_tried": len(chosen),
            "replays": runs,
            "observation_seconds": now.observation_seconds,
            "lateness_minutes": now.lateness_minutes,
            "log_ends": str(np.datetime64(int(rows.ts_ms[0] + clicks.watched_ms[0]), "ms")),
        }

    def plots() -> list[Plot]:
        drawn = [curve_plot(curves, tried)] if curves else []
        return drawn + ([trials_plot(trials, present)] if any(one.setting != present for one in trials) else [])

    def print_it() -> None:
        say_decisions(table)
        say(verdict)
        show("How complete labels are", report["completeness"], ("waiting_time", "completeness", "at_risk"))
        if report["outcomes"]:
            show("How late outcomes come", report["outcomes"], ("outcome", "share", "waiting_time"))
        columns = ("policy", "window", "auc_over_present", "log_loss_over_present", "calibration")
        show(f"Settings against the present one ({present.name})", report["settings"], columns)

    title = f"Delays of labels in {name_of_log(parts)}"
    return Result(report | {"curves": curves}, run, title, plots, print_it).written(folder)


def _own_window(plan: Schema) -> int:
    """The schema's attribution window (ms). Raises LogError if it has no times of the label's action."""
    action = plan.windows.labelling
    if plan.log is None or action not in plan.log.action_times:
        raise LogError(
            f"schema '{plan.source}' names no time for the label's action '{action}': how late it comes is unknown",
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
    plan: Schema,
    rows: LogRows,
    labels: Labels,
    chosen: Sequence[Setting],
    longest_ms: int,
    now: Settings,
    how: tuple[dict[str, Any], int],
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
        laid(folder / "log.arrow", iter([table.table]))
        with pool(workers, _open, (folder, replace(table, table=None), plan, how)) as processes:
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
_how: tuple[dict[str, Any], int]


def _open(folder: Path, log: LogTable, plan: Schema, how: tuple[dict[str, Any], int]) -> None:
    """``log``: without its rows, which lie in the folder."""
    global _plan, _rows, _labels, _folder, _how
    _plan, _folder, _how = plan, folder, how
    table = replace(log, table=mapped(folder / "log.arrow"))
    _rows = LogRows(table, _plan)
    _labels = Labels(table, _plan, _rows)


def _run(setting: Setting, waits: tuple[int, int, int], out: Path) -> None:
    spec, seed = _how
    with threads(THREADS):
        samples, _ = samples_of(setting, _labels, _rows.ts_ms, *waits)
        model = model_of(with_window(_plan, setting.window_ms), spec, seed)
        cat, num = open_features(_folder)
        np.save(out, learn_through(model, _rows, cat, num, samples, BATCH_ROWS))
