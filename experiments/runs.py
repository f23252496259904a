# shell
"""The runs of an experiment, spread over processes. Each row is a line of ``runs.jsonl`` as soon as its run has ended,
so what was measured is there if a later run fails. What figures say in words: a difference counts where its 95%
interval leaves out 0."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import MillraceError
from millrace.basics.ranking_metrics import known
from millrace.commands.offline.intervals import DIGITS, interval
from millrace.commands.offline.workers import pool
from millrace.reports import Plot, make_folder, name_of, write_all
from millrace.reports.progress import Took, bars

Row = dict[str, Any]
Call = tuple[Callable[..., Sequence[Row]], tuple[Any, ...]]
"""A function of a module that returns rows, and its arguments: it may be called in another process."""


DRAWS = 2000  # of the bootstrap


class BenchError(MillraceError):
    """A benchmark or an experiment cannot run here, for instance because its peer is not installed."""


def run_calls(
    calls: Sequence[Call], keep: Callable[[Row], None], workers: int | None = None, progress: bool = True
) -> list[Row]:
    """The rows of all calls, in their order.

    Args:
        keep: takes each row as its call ends.
        workers: processes (default: one for each core); 0 runs in this one.
    """
    with pool(workers) as processes, bars(progress) as tick:
        futures = [processes.submit(function, *arguments) for function, arguments in calls]
        for done, future in enumerate(as_completed(futures), 1):
            for row in future.result():
                keep(row)
            tick("runs", done, len(futures))
        return [row for future in futures for row in future.result()]


def run_experiment(
    out: Path,
    title: str,
    calls: Sequence[Call],
    report_of: Callable[[list[Row]], tuple[dict[str, Any], Sequence[Plot]]],
    *,
    workers: int | None = None,
    progress: bool = True,
    **told: Any,
) -> dict[str, Any]:
    """Runs all calls, each row a line of ``out/runs.jsonl``, and writes the report. Raises SettingError where nothing
    can be written to ``out``.

    Args:
        report_of: makes report and plots of the rows of all calls.
        workers: as in :func:`run_calls`.
        told: what ``run.json`` says of how it was run.
    """
    took = Took()
    make_folder(out, "runs.jsonl")
    with (out / "runs.jsonl").open("w", encoding="utf-8") as lines:

        def keep(row: Row) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        report, plots = report_of(run_calls(calls, keep, workers, progress))
    write_all(out, report, took.run | told, plots, title)
    return report


def paired_ratio(top: NDArray[Any], bottom: NDArray[Any], draws: int, seed: int = 0) -> tuple[float, float, float]:
    """The ratio of two means over the same units, (n,) each, with its bootstrap interval: units are drawn with
    replacement, each with both figures (Efron and Tibshirani 1993, chapter 13). NaN where ``bottom`` is not above 0;
    no interval where it is not in some draw."""
    below = float(bottom.sum())
    if not below > 0:
        return math.nan, math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(top), size=(draws, len(top)))
    under = bottom[drawn].sum(1)
    low, high = np.percentile(top[drawn].sum(1) / under, [2.5, 97.5]) if (under > 0).all() else (math.nan, math.nan)
    return float(top.sum()) / below, float(low), float(high)


def means(runs: Sequence[Row], policy: str, name: str, worlds: Sequence[int]) -> NDArray[np.float64]:
    """The figure of a policy in each world, a mean over its runs; NaN where it has no value. (w,)"""
    own = [[r[name] for r in runs if (r["policy"], r["world"]) == (policy, w) and r[name] is not None] for w in worlds]
    return np.array([np.mean(values) if values else math.nan for values in own])


def interval_of(name: str, values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and interval over worlds that have a value; None without two of them."""
    sound = values[np.isfinite(values)]
    return {**interval(name, sound.tolist())} if len(sound) > 1 else {name: None, f"{name}_ci": None}


def quotient(name: str, top: NDArray[np.float64], bottom: NDArray[np.float64]) -> dict[str, float | None]:
    """The quotient of two means over worlds, (w,), with its interval. Without a value where ``bottom`` is not above 0:
    there is no gap that could be closed."""
    value, low, high = paired_ratio(top, bottom, DRAWS)
    named = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {n: known(v, DIGITS) for n, v in named.items()}


def differences(rows: Sequence[Row], name: str, key: str) -> str:
    """Rows by ``name``, the largest difference first, each with its interval."""
    known = sorted((r for r in rows if r.get(key) is not None), key=lambda r: -r[key])
    return ", ".join(f"{r[name]} {r[key]:+.4f} ± {r[f'{key}_ci']:.4f}" for r in known)


def of_models(rows: Sequence[Row], baseline: float | None) -> str:
    """``dev experiment models``. ``rows``: model, inputs, auc, auc_ci; ``baseline``: its AUC on the test days."""
    known = sorted((r for r in rows if r["auc"] is not None), key=lambda r: -r["auc"])
    if not known:
        return "The test days' labels are all alike, so models cannot be compared."
    best = [f"{r['model']} on {r['inputs']} inputs {r['auc']:.4f} ± {r['auc_ci']:.4f}" for r in known[:3]]
    return f"Of {len(rows)} models and inputs, the highest AUC on the test days: {', '.join(best)}.{_rate(baseline)}"


def of_rounds(ways: Sequence[Row], baseline: float | None) -> str:
    """``millrace dev experiment rounds``. ``ways``: model, inputs, way, auc, auc_over_frozen, each with _ci."""
    model, inputs = ways[0]["model"], ways[0]["inputs"]
    own = {r["way"]: r for r in ways if (r["model"], r["inputs"]) == (model, inputs)}
    frozen = own.pop("frozen")
    return (
        f"AUC over the frozen model {model} on {inputs} inputs ({frozen['auc']:.4f} ± {frozen['auc_ci']:.4f} over the "
        f"test days): {differences([*own.values()], 'way', 'auc_over_frozen')}.{_rate(baseline)}"
    )


def _rate(baseline: float | None) -> str:
    return "" if baseline is None else f" Ranking by each item's smoothed click rate alone has {baseline:.4f}."


def of_labels(report: Row) -> str:
    """``millrace dev experiment labels``: how many of its targets the default policy reaches."""
    verdicts = report["verdicts"]
    if not verdicts:
        return f"The default policy '{report['default']}' was not among those compared, so nothing is said of it."
    parts = []
    for v in verdicts:
        value = "unknown" if v["value"] is None else f"{v['value']:.4f}"
        reached = "unknown" if v["reached"] is None else "reached" if v["reached"] else "missed"
        parts.append(f"{name_of(v['figure'])} {value} ({v['target']}: {reached})")
    n = sum(bool(v["reached"]) for v in verdicts)
    return f"The default policy '{report['default']}' reaches {n} of {len(verdicts)} targets: {'; '.join(parts)}."
