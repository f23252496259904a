# shell
"""``millrace experiment safety``: what is served while samples and models are poisoned, behind the gate and without it.

``poisons``  what producers, joins and people get wrong in samples (:mod:`experiments.poisons`). The AUC of what is
             served, on clean rows, against a twin that lives through the same without the poison, behind the same gate:
             the worst of consecutive windows. Some poisons are claimed to be caught, others are not.
``slots``    one value of the model or of its optimisers is spoilt. Nothing that is not finite may be served.
``clean``    worlds in which nothing is wrong: each refusal is a false one.
``taste``    half of the shoppers have another taste from noon on: minutes until it is served.

``millrace bench safety`` runs the same with fewer worlds and days. All of it: :mod:`experiments.safetyjobs`.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from commands.offline.intervals import interval, rounded
from commands.offline.workers import pool
from experiments import safetyjobs
from experiments.poisons import POISONS
from experiments.safetyjobs import Row
from experiments.safetyworld import Shop
from learner.network.dense import threads
from millrace.basics.errors import SettingError
from millrace.contracts.schema import Schema, shop_schema
from millrace.reports import dots_plot, make_folder, surroundings, write_all

WORLDS = 3
"""Clean ones, of so many days each."""

MOST_LOSS, MOST_FALSE = 0.01, 0.01
"""What the gate promises: AUC lost to the twin, and refusals of what is clean."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run.

    Args:
        seeds: of the worlds that are poisoned, and of those whose taste changes.
        days: of each clean world.
        worlds: clean ones.
        users: shoppers of an average day.
        rows: shown from the beginning of a poison on.
        log: one of one's own in which nothing is wrong, with its schema.
        slot_seeds: how many of the seeds have their slots spoilt.
    """

    seeds: Sequence[int] = range(5)
    days: int = 10
    worlds: int = WORLDS
    users: int = 4000
    rows: int = 190_000
    slot_seeds: int = 1
    log: Path | None = None
    log_schema: Schema | None = None

    def jobs(self, schema: Schema) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Each run: the name of its function in :mod:`experiments.safetyjobs`, and its arguments. The longest
        first."""
        users, first = self.users, self.seeds[0]
        for seed in range(first, first + self.worlds):
            yield "clean", ("clean days", Shop(seed, self.days, users), schema)
        for seed in self.seeds:
            yield "poisons", (Shop(seed, 2, users), schema, self.rows)
        for seed in self.seeds[: self.slot_seeds]:
            yield "slots", (Shop(seed, 2, users), schema)
        few = min(3, self.days)
        yield "clean", ("click rate times three", Shop(first, few, users, click_rate=0.3), schema)
        yield "clean", ("sale from noon", Shop(first, few, users, change="sale"), schema)
        for seed in self.seeds:
            yield "taste", (Shop(seed, 2, users), schema, min(self.rows, 100_000))
        if self.log is not None:
            yield "clean", ("the log", self.log, self.log_schema)


def experiment_safety(
    out: Path, plan: Plan | None = None, *, workers: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Runs the plan; writes report.json, run.json, runs.jsonl, report.html and a plot to ``out``.

    Raises:
        SettingError: nothing to run, or the folder cannot be written to.
        LogError, SchemaError: the plan's log cannot be read.
    """
    plan = plan or Plan()
    if not plan.seeds or plan.days < 2:
        raise SettingError(f"{len(plan.seeds)} seeds and {plan.days} days", "give at least one seed, and two days")
    started = time.perf_counter()
    make_folder(out, "runs.jsonl")
    with (out / "runs.jsonl").open("w", encoding="utf-8") as lines:

        def keep(row: Row) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        rows = run_plan(plan, out, keep, workers, progress)
    report = make_report(rows)
    run = {"seconds": round(time.perf_counter() - started), "plan": _told(plan), **surroundings()}
    page = {name: report[name] for name in ("poisons", "slots", "clean", "taste")}
    write_all(out, report, run, _plots(rows), "Safety", report["verdict"], page)
    return report


def run_plan(
    plan: Plan, folder: Path, keep: Callable[[Row], None], workers: int | None = None, progress: bool = True
) -> list[Row]:
    """The rows of all jobs, in the order of the plan.

    Args:
        folder: for working files, which are removed.
        keep: told each row when its job has ended.
    """
    schema = shop_schema()
    jobs = list(plan.jobs(schema))
    results: list[list[Row]] = [[]] * len(jobs)
    columns = (TextColumn("safety"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="safety-", dir=folder) as work,
        pool(workers, None if workers == 0 else _quiet) as processes,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar,
    ):
        task = bar.add_task("safety", total=len(jobs))
        futures = {processes.submit(_do, name, Path(work) / str(i), args): i for i, (name, args) in enumerate(jobs)}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            for row in future.result():
                keep(row)
            bar.advance(task)
    return [row for rows in results for row in rows]


def _quiet() -> None:
    """What the gate says of each refusal is in the rows."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _do(name: str, folder: Path, args: tuple[Any, ...]) -> list[Row]:
    folder.mkdir()
    with threads(1), np.errstate(all="ignore"):
        rows = list(getattr(safetyjobs, name)(*args, folder))
    shutil.rmtree(folder)
    return rows


def _told(plan: Plan) -> dict[str, Any]:
    return {
        "seeds": list(plan.seeds),
        "days": plan.days,
        "worlds": plan.worlds,
        "users": plan.users,
        "rows": plan.rows,
        "log": str(plan.log or ""),
    }


# -- all runs ------------------------------------------------------------------------------------------------


def make_report(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows of all jobs say, and a verdict in words."""
    report: dict[str, Any] = {
        "poisons": _poisons([row for row in rows if row["kind"] == "poison"]),
        "slots": _slots([row for row in rows if row["kind"] == "slot"]),
        "clean": _clean([row for row in rows if row["kind"] == "clean"]),
        "taste": [row for row in rows if row["kind"] == "taste"],
    }
    return {"verdict": verdict(report)} | report


def _poisons(rows: Sequence[Row]) -> list[Row]:
    out = []
    for poison in POISONS:
        own = [row for row in rows if row["name"] == poison.name]
        if not own:
            continue
        losses = [row["auc_loss"] for row in own]
        row = {"poison": poison.name, "claimed": poison.claimed, "worlds": len(own), "most_auc_loss": max(losses)}
        row |= interval("auc_loss", losses) if len(own) > 1 else {"auc_loss": losses[0]}
        row["auc_loss_without_gate"] = rounded(float(np.mean([r["auc_loss_without_gate"] for r in own])))
        row["not_finite"] = sum(r["not_finite"] for r in own)
        row["refused_by"] = ", ".join(sorted({check for r in own for check in r["refused"]}))
        out.append(row)
    return out


def _slots(rows: Sequence[Row]) -> list[Row]:
    out = []
    for name in dict.fromkeys(row["name"] for row in rows):
        behind = [row for row in rows if row["name"] == name and row["gate"]]
        bare = [row for row in rows if row["name"] == name and not row["gate"]]
        out.append(
            {
                "slot": name,
                "not_finite_served": sum(row["not_finite"] + row["bad_numbers"] for row in behind),
                "without_gate": sum(row["not_finite"] + row["bad_numbers"] for row in bare),
                "auc_loss": max(row["auc_loss"] for row in behind),
                "auc_loss_without_gate": max((row["auc_loss"] for row in bare), default=None),
                "refused_by": ", ".join(sorted({check for row in behind for check in row["refused"]})),
            }
        )
    return out


def _clean(rows: Sequence[Row]) -> list[Row]:
    out = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        candidates = sum(row["candidates"] for row in own)
        refused = sum(n for row in own for n in row["refused"].values())
        out.append(
            {
                "world": name,
                "runs": len(own),
                "rows": sum(row["rows"] for row in own),
                "candidates": round(candidates),
                "refused": refused,
                "refused_first_day": sum(row["refused_first_day"] for row in own),
                "share": rounded(refused / candidates),
                "refused_by": ", ".join(sorted({check for row in own for check in row["refused"]})),
                "longest_pause_minutes": max(row["longest_pause_minutes"] for row in own),
                "over_limit": sum(row["over_limit"] for row in own),
            }
        )
    return out


def false_refusals(report: Mapping[str, Any]) -> float:
    """Share of clean candidates that were refused, over all clean worlds together."""
    candidates = sum(row["candidates"] for row in report["clean"])
    return sum(row["refused"] for row in report["clean"]) / candidates if candidates else float("nan")


def verdict(report: Mapping[str, Any]) -> str:
    """In a few plain sentences."""
    claimed = [row for row in report["poisons"] if row["claimed"]]
    worst = max(claimed, key=lambda row: row["most_auc_loss"], default=None)
    served = sum(row["not_finite_served"] for row in report["slots"]) + sum(r["not_finite"] for r in report["poisons"])
    parts = []
    if worst is not None:
        kept = sum(row["most_auc_loss"] <= MOST_LOSS for row in claimed)
        parts.append(
            f"Of {len(claimed)} poisons that the gate claims to catch, {kept} cost what is served at most {MOST_LOSS} "
            f"of AUC; the worst is {worst['poison']} with {worst['most_auc_loss']:.4f}."
        )
    refused = sum(bool(row["refused_by"]) for row in report["slots"])
    parts.append(f"Of {len(report['slots'])} spoilt slots {refused} were refused.")
    parts.append(f"{served:,} numbers that are not finite were served.")
    over = [row["world"] for row in report["clean"] if row["share"] >= MOST_FALSE]
    parts.append(
        f"Of what was clean {false_refusals(report):.2%} was refused"
        + (f"; more than {MOST_FALSE:.0%} in {', '.join(over)}." if over else f", in no world {MOST_FALSE:.0%}.")
    )
    if report["taste"]:
        parts.append(_drifts([row["minutes"] for row in report["taste"]]))
    return " ".join(parts)


def _drifts(minutes: Sequence[float | None]) -> str:
    """After how long a change of taste was served; None: not while the world lasted."""
    served = [m for m in minutes if m is not None]
    never = f"in {len(minutes) - len(served)} of {len(minutes)} worlds"
    if not served:
        return f"A change of taste was not served {never}."
    rest = f"; {never} it was not" if len(served) < len(minutes) else ""
    return f"A change of taste was served after at most {max(served):.0f} minutes{rest}."


def _plots(rows: Sequence[Row]) -> list[Any]:
    losses: dict[str, list[float]] = {}
    for row in rows:
        if row["kind"] == "poison":
            losses.setdefault(row["name"], []).append(max(0.0, row["auc_loss"]))
            losses.setdefault(f"{row['name']}, no gate", []).append(max(0.0, row["auc_loss_without_gate"]))
    if not losses:
        return []
    caption = "AUC of what is served below the twin's, in the worst of consecutive windows: a dot a world."
    return [dots_plot("losses", caption, losses, "AUC lost")]
