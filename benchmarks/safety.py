# shell
"""``millrace bench safety``: what is served while samples and models are poisoned, and what the gate costs.

*served_auc_loss POISON*, *uncaught_auc_loss POISON*
    AUC of what is served, on clean rows, below that of a twin behind the same gate: the worst of consecutive windows.
    The first are claimed to be caught. Compared with what is lost without a gate.
*served_auc_loss SLOT*, *not_finite_served SLOT*
    The same after a value of the model or of its optimisers was spoilt; and how many scores and published numbers were
    not finite. Compared with how many are without a gate.
*false_refusals*
    Share of stretches and snapshots that were refused where nothing is wrong; and by kind of world.
*drift_minutes*
    From a change of taste until what was learnt of it is served; *drift_not_served*: worlds that ended before that.
*gate_cost_rows*, *heldout_cost_auc*, *gate_click_to_served_ms*
    See :mod:`benchmarks.safetycost`.

It has fewer worlds and days than ``millrace experiment safety``, which runs the same. KuaiRand's days are among the
clean ones where MILLRACE_TEST_LOG names a folder with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.runner import Figure, Say, figure
from benchmarks.safetycost import cost
from experiments.experiment_safety import Plan, false_refusals, make_report, run_plan
from millrace.contracts.schema import load_schema

DAYS, WORLDS, ROWS = 2, 3, 60_000
WORKERS = 2
_SCHEMA = Path(__file__).parents[1] / "examples" / "kuairand" / "schema.toml"
_UNIT = "AUC"


def run(out: Path, say: Say) -> list[Figure]:
    """Runs it; see :mod:`benchmarks.runner`."""
    folder = os.environ.get("MILLRACE_TEST_LOG")
    logs = sorted(Path(folder).glob("log_*.parquet")) if folder and _SCHEMA.exists() else []
    if not logs:
        say("KuaiRand's days are left out: MILLRACE_TEST_LOG names no folder with the log")
    say(f"{WORLDS} clean worlds of {DAYS} days, {ROWS:,} rows behind a poison: 'millrace experiment safety' has more")
    schema = load_schema(_SCHEMA) if logs else None
    plan = Plan([0], DAYS, WORLDS, rows=ROWS, log=logs[0] if logs else None, log_schema=schema)
    report = make_report(run_plan(plan, out, lambda row: say(_line(row)), WORKERS, progress=False))
    say(report["verdict"])
    return [*figures(report), *cost(out, say)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """The figures of a report of the experiment."""
    out = []
    for row in report["poisons"]:
        name = "served" if row["claimed"] else "uncaught"
        lost, bare = row["most_auc_loss"], row["auc_loss_without_gate"]
        out.append(figure(f"{name}_auc_loss {row['poison']}", lost, _UNIT, "no gate", _ratio(lost, bare)))
    for row in report["slots"]:
        out.append(figure(f"served_auc_loss {row['slot']}", row["auc_loss"], _UNIT))
        served, bare = row["not_finite_served"], row["without_gate"]
        out.append(figure(f"not_finite_served {row['slot']}", served, "numbers", "no gate", _ratio(served, bare)))
    out.append(figure("false_refusals", false_refusals(report), "share"))
    out += [figure(f"false_refusals {row['world']}", row["share"], "share") for row in report["clean"]]
    minutes = [row["minutes"] for row in report["taste"]]
    out += [figure("drift_minutes", m, "min of event time") for m in minutes if m is not None]
    if None in minutes:
        out.append(figure("drift_not_served", minutes.count(None), "worlds"))
    return out


def _ratio(value: float, against: float) -> float | None:
    return value / against if against > 0 else None


def _line(row: dict[str, object]) -> str:
    """What a job's row says, in a line."""
    shown = ("name", "gate", "auc_loss", "auc_loss_without_gate", "not_finite", "minutes", "candidates", "refused")
    return f"{row['kind']}: " + ", ".join(f"{name} {row[name]}" for name in shown if name in row)
