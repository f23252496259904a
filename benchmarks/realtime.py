# shell
"""A shop at real speed: is what the page shows true, and is what it learns of use?

``millrace demo`` runs for 15 minutes with the wall's clock, an untrained model, labels as late as in a shop, and
shoppers for some 20 exposures a second on a working day at nine. All else is as by default. From its report:

- ``metric_gap``: the AUC that the page showed last against the AUC recomputed from the topics, of the same exposures.
- ``calibration``: clicks predicted over clicks seen, of the scores that the model's pages were served with after the
  first five minutes, against settled labels. ``calibration_truth`` divides by the true click probabilities, which
  leaves out chance; ``calibration_twin`` is that of a twin that had every label at once.
- ``twin_auc`` beside ``served_auc``: the same for the AUC, over all settled exposures of model pages.
- ``ctr_ratio``: clicks per exposure of model pages over that of random pages, in the last five minutes of traffic.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tools.bench_figures import Figure, Say, figure
from experiments.runs import BenchError
from millrace.processes.spawn import spawn, tail

SHOPPERS = 16_000
"""Who come on an average day: 20 exposures a second in the shop's first hour, half of that over the whole day."""
OPENING_MINUTES = 5
LAST_MINUTES = 5.0
BEYOND_SECONDS = 600.0
"""A demo takes at most this long beside its traffic: start, draining, audit."""

Report = Mapping[str, Any]


class Size(NamedTuple):
    """How long is measured."""

    minutes: float = 15.0


SHORT = Size(0.5)


def run(out: Path, say: Say, size: Size | None = None) -> list[Figure]:
    """The figures of one run, and its report and logs in ``out``. Raises BenchError where the demo failed, or took far
    too long; its output says why."""
    return measure(play(out, (size or Size()).minutes, say))


def play(out: Path, minutes: float, say: Say) -> Report:
    """Runs the demo to its end and returns its report."""
    path, log = out.absolute() / "demo.json", out.absolute() / "demo.log"
    for old in (path, log):
        old.unlink(missing_ok=True)
    clean = {n: v for n, v in os.environ.items() if not n.startswith("MILLRACE_")}
    command = [sys.executable, "-m", "commands", "demo", "--speed", "1", "--seconds", f"{minutes * 60:g}"]
    command += ["--page-port", "0", "--twin", "--report", str(path)]  # no --data: nothing of an earlier run
    say(f"a shop at real speed, {minutes:g} minutes and one or two more; it says how it is in {log}")
    process = spawn(command, {**clean, "MILLRACE_SHOPPERS": str(SHOPPERS)}, log)
    try:
        status = process.wait(minutes * 60 + BEYOND_SECONDS)
    except subprocess.TimeoutExpired:
        raise BenchError(f"the demo did not end {BEYOND_SECONDS:g} s after its traffic", f"see {log}") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    last = tail(log, 1)
    if not path.exists() or (status and not last.startswith("not measured")):  # which a short demo says
        raise BenchError(f"the demo ended with status {status} ({last})", f"see {log}")
    report: Report = json.loads(path.read_text())
    return report


def measure(report: Report) -> list[Figure]:
    """The figures of a demo's report; one that was not measured is left out."""
    later = [m for m in report["minutes"] if m["arm"] == "model" and m["minute"] >= OPENING_MINUTES]
    clicks, predicted, expected, twin = (
        sum(m[n] or 0.0 for m in later) for n in ("clicks", "predicted", "expected", "twin")
    )
    rates = {arm: click_rate(report, arm, LAST_MINUTES) for arm in ("model", "control")}
    model, control = rates["model"], rates["control"]
    traffic_s = (report["ended_wall_ms"] - report["began_wall_ms"]) / 1000
    found: list[tuple[str, float | None, str]] = [
        ("metric_gap", report["metric_gap"], "AUC"),
        ("shown_auc", report["shown_auc"], "AUC"),
        ("recomputed_auc", report["recent"]["auc"], "AUC"),
        ("calibration", predicted / clicks if clicks else None, "predicted / clicked"),
        ("calibration_truth", predicted / expected if expected else None, "predicted / expected"),
        ("calibration_twin", twin / clicks if clicks and twin else None, "predicted / clicked"),
        ("served_auc", report["served_auc"], "AUC"),
        ("twin_auc", report["twin_auc"], "AUC"),
        ("ctr_model", model, "clicks / exposure"),
        ("ctr_control", control, "clicks / exposure"),
        ("exposures_per_s", report["exposures_sent"] / traffic_s, "1/s"),
        ("settled", report["settled"], "exposures"),
    ]
    figures = [figure(name, value, unit) for name, value, unit in found if value is not None]
    if model and control:
        figures.append(figure("ctr_ratio", model / control, "ratio", "ctr_control", model / control))
    return figures


def click_rate(report: Report, arm: str, minutes: float) -> float | None:
    """Clicks per exposure of an arm's pages in the last ``minutes`` of the traffic, by the simulator's own counts."""
    page = report["page"]
    end, begin = report["ended_wall_ms"], report["ended_wall_ms"] - minutes * 60_000
    within = [i for i, at in enumerate(page["wall_ms"]) if begin <= at <= end]
    if len(within) < 2:
        return None
    clicks, seen = (
        (page[f"page_{what}_{arm}"][within[-1]] or 0.0) - (page[f"page_{what}_{arm}"][within[0]] or 0.0)
        for what in ("clicks", "exposures")
    )
    return clicks / seen if seen else None
