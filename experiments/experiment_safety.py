# shell
"""``millrace dev experiment safety``: what is served while samples are poisoned, and what of clean ones is refused.

``poisons``  a day and a morning; then what producers, joins and people get wrong in samples, from ten o'clock on
             (:mod:`experiments.safety.poisons`). The AUC of what is served, on clean rows, against a twin that lives
             through the same without the poison, behind the same gate: the worst of consecutive windows; and the same
             without a gate. Some poisons are claimed to be caught, others are not.
``clean``    days from nothing, in worlds in which nothing is wrong: each refusal is a false one.
``taste``    half of the shoppers have another taste from noon on: minutes until it is served.

Each is a job in a process of its own. ``millrace dev bench safety`` runs the same with fewer worlds and days.
"""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from cyclopts import Parameter

from commands.offline.intervals import interval, rounded
from experiments.runs import Call, Group, Row, run_groups, runs_file
from experiments.safety.poisons import POISONS, Window
from experiments.safety.safetyrun import (
    STRETCH_ROWS,
    WINDOW_ROWS,
    Life,
    Log,
    Served,
    live,
    loss,
    some,
    until,
)
from experiments.safety.safetyworld import Moment, Shop, traffic, write_shop
from learner.network.dense import threads
from millrace.basics.durations import HOUR_MS, MINUTE_MS
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import known
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.logs import LogTable, read_log
from millrace.reports import dots_plot, surroundings, write_all

WORLDS = 3
"""Clean ones, of so many days each."""
MOST_LOSS, MOST_FALSE = 0.01, 0.01
"""What the gate promises: AUC lost to the twin, and refusals of what is clean."""
MOST_DRIFT_MINUTES = 180
"""Refusals later than this after a change of taste are not of it."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is run.

    Args:
        seeds: how many worlds are poisoned, and how many change their taste.
        seed: of the first world.
        days: of each clean world.
        worlds: clean ones.
        users: shoppers of an average day.
        rows: shown from the beginning of a poison on.
        log: one of one's own in which nothing is wrong.
        schema: schema file of that log.
    """

    seeds: int = 5
    seed: int = 0
    days: int = 10
    worlds: int = WORLDS
    users: int = 4000
    rows: int = 190_000
    log: Path | None = None
    schema: Path | None = None

    def jobs(self, schema: Schema) -> Iterator[Call]:
        """Each run's function and arguments. The longest first."""
        users, first = self.users, self.seed
        for seed in range(first, first + self.worlds):
            yield clean, ("clean days", Shop(seed, self.days, users), schema)
        for seed in range(first, first + self.seeds):
            yield poisons, (Shop(seed, 2, users), schema, self.rows)
        few = min(3, self.days)
        yield clean, ("click rate times three", Shop(first, few, users, click_rate=0.3), schema)
        yield clean, ("sale from noon", Shop(first, few, users, change="sale"), schema)
        for seed in range(first, first + self.seeds):
            yield taste, (Shop(seed, 2, users), schema, min(self.rows, 100_000))
        if self.log is not None and self.schema is not None:
            yield clean, ("the log", self.log, load_schema(self.schema))


def experiment_safety(
    out: Path, plan: Plan | None = None, *, workers: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """See what is served while samples are poisoned, and what the gate refuses where nothing is wrong.

    Args:
        out: folder for the report.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: nothing to run, or the folder cannot be written to.
        LogError, SchemaError: the plan's log cannot be read.
    """
    plan = plan or Plan()
    if (plan.log is None) != (plan.schema is None):
        raise SettingError("a log without a schema, or a schema without a log", "give both, or neither")
    if plan.seeds < 1 or plan.days < 2:
        raise SettingError(f"{plan.seeds} seeds and {plan.days} days", "give at least one seed, and two days")
    started = time.perf_counter()
    with runs_file(out) as keep:
        rows = run_plan(plan, keep, workers, progress)
    report = make_report(rows)
    given = {name: str(value) for name, value in asdict(plan).items() if value is not None}
    run = {"seconds": round(time.perf_counter() - started), "plan": given, **surroundings()}
    page = {name: report[name] for name in ("poisons", "clean", "taste")}
    losses: dict[str, list[float]] = {}
    for row in (row for row in rows if row["kind"] == "poison"):
        losses.setdefault(row["name"], []).append(max(0.0, row["auc_loss"]))
        losses.setdefault(f"{row['name']}, no gate", []).append(max(0.0, row["auc_loss_without_gate"]))
    caption = "AUC of what is served below the twin's, in the worst of consecutive windows: a dot a world."
    plots = [dots_plot("losses", caption, losses, "AUC lost")] if losses else []
    write_all(out, report, run, plots, "Safety", report["verdict"], page)
    return report


def run_plan(plan: Plan, keep: Callable[[Row], None], workers: int | None = None, progress: bool = True) -> list[Row]:
    """The rows of all jobs, in the order of the plan. ``keep`` hears of each row when its job has ended."""
    groups = [
        Group(lambda folder, _, job=job: [(_do, (job[0], (*job[1], folder)))])  # type: ignore[misc]
        for job in plan.jobs(shop_schema())
    ]
    return run_groups(groups, keep, workers, progress, None if workers == 0 else _quiet)[0]


def _quiet() -> None:
    """What the gate says of each refusal is in the rows."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _do(job: Callable[..., Iterator[Row]], args: tuple[Any, ...]) -> list[Row]:
    with threads(1), np.errstate(all="ignore"):
        return list(job(*args))


# -- jobs ----------------------------------------------------------------------------------------------------


def _log(shop: Shop, schema: Schema, folder: Path) -> LogTable:
    return read_log(write_shop(shop, folder / "log"), schema)


def _morning(shop: Shop, schema: Schema, folder: Path, at_ms: int) -> tuple[Path, Iterator[Moment], list[Moment], Log]:
    """A life up to a time, what comes then, and the moment that reaches it."""
    moments, over = traffic(_log(shop, schema, folder), schema), list[Moment]()
    life = Life(schema, {}, folder / "origin")
    live(life, until(moments, at_ms, over))
    return life.end(), moments, over, life.log


def _branch(
    schema: Schema,
    origin: Path,
    folder: Path,
    moments: list[Moment],
    gate: bool,
    spoil: Callable[[SampleBatch], SampleBatch] = lambda batch: batch,
) -> tuple[Life, Served]:
    """A life from an origin on, its files gone."""
    gc.collect()  # a gate and its trainer hold each other, and with them the model of the branch before
    life = Life(schema, {}, folder / "branch", origin, gate)
    served = live(life, moments, spoil)
    shutil.rmtree(folder / "branch")
    return life, served


def poisons(shop: Shop, schema: Schema, rows: int, folder: Path) -> Iterator[Row]:
    """A row for each poison.

    Args:
        rows: that are shown from the beginning of a poison on.
    """
    start_ms = shop.last_ms + 10 * HOUR_MS
    origin, rest, moments, before = _morning(shop, schema, folder, start_ms)
    moments += some(rest, rows)
    batches = [m.batch for m in moments if m.batch is not None]
    twins = {gate: _branch(schema, origin, folder, moments, gate)[1] for gate in (True, False)}
    for poison in POISONS:
        spoil = poison.during(Window.of(batches, schema, start_ms, poison.minutes))
        life, served = _branch(schema, origin, folder, moments, True, spoil)
        _, bare = _branch(schema, origin, folder, moments, False, spoil)
        yield {
            "kind": "poison",
            "name": poison.name,
            "claimed": poison.claimed,
            "seed": shop.seed,
            "auc_loss": rounded(loss(twins[True], served)),
            "auc_loss_without_gate": rounded(loss(twins[False], bare)),
            "by_window": [rounded(float(v)) for v in twins[True].aucs() - served.aucs()],
            "not_finite": life.scorer.not_finite + life.scorer.bad_numbers,
            "refused": life.log.by_check(),
            "refused_before": before.by_check(),
            "first": life.log.refused[0].why if life.log.refused else "",
            "quarantined": life.trainer.counts["quarantined"],
        }


def clean(name: str, shop: Shop | Path, schema: Schema, folder: Path) -> Iterator[Row]:
    """One row: a life from nothing through a world or a log in which nothing is wrong.

    Args:
        name: what the world is called in reports.
        shop: a simulated one, or the path of a log.
    """
    log = read_log(shop, schema) if isinstance(shop, Path) else _log(shop, schema, folder)
    life = Life(schema, {}, folder / "life")
    served = live(life, traffic(log, schema))
    first_day_ms = int(served.shown_ms[0]) + 24 * HOUR_MS
    yield {
        "kind": "clean",
        "name": name,
        "seed": shop.seed if isinstance(shop, Shop) else 0,
        "rows": life.log.rows,
        "candidates": round(life.log.candidates, 1),
        "refused": life.log.by_check(),
        "refused_first_day": sum(one.event_ms < first_day_ms for one in life.log.refused),
        "refusals": [list(one) for one in life.log.refused[:50]],
        "quarantined": life.trainer.counts["quarantined"],
        "over_limit": life.trainer.counts["over_limit"],
        "held_out": life.trainer.counts["held_out"],
        "longest_pause_minutes": rounded(_longest_pause(life.log)),
        "auc": [rounded(float(v)) for v in served.aucs(min(len(served.p), 4 * WINDOW_ROWS))],
    }


def _longest_pause(log: Log) -> float:
    """Minutes from a refusal to the next version, at most."""
    published = np.sort(np.array(log.published_ms))
    pauses = [0.0]
    for one in log.refused:
        later = published[np.searchsorted(published, one.event_ms, side="right") :]
        end = int(later[0]) if len(later) else int(published[-1])
        pauses.append((end - one.event_ms) / MINUTE_MS)
    return max(pauses)


def taste(shop: Shop, schema: Schema, rows: int, folder: Path) -> Iterator[Row]:
    """One row: half of the shoppers have another taste from noon on. Minutes until what is learnt of it is served."""
    shop = replace(shop, change="taste")
    origin, rest, moments, _ = _morning(shop, schema, folder, shop.noon_ms)
    moments += some(rest, rows)
    life, served = _branch(schema, origin, folder, moments, True)
    _, bare = _branch(schema, origin, folder, moments, False)
    yield {
        "kind": "taste",
        "seed": shop.seed,
        "minutes": minutes_of(promoted_after(life.log, served, shop.noon_ms)),
        "auc_loss_to_no_gate": rounded(loss(bare, served)),
        "refused": life.log.by_check(),
    }


def minutes_of(minutes: float) -> float | None:
    """A time as a row has it; None: it never came. JSON has no infinity."""
    return known(rounded(minutes))


def promoted_after(log: Log, served: Served, change_ms: int) -> float:
    """Minutes from a change until a version is out that has learnt a whole stretch of rows since, and behind which the
    gate has nothing against the change any more. Infinite where there is none."""
    since = served.shown_ms[served.shown_ms >= change_ms]
    if len(since) < STRETCH_ROWS:
        return float("inf")
    last_ms = int(since[STRETCH_ROWS - 1])
    own = [r.event_ms for r in log.refused if change_ms <= r.event_ms < change_ms + MOST_DRIFT_MINUTES * MINUTE_MS]
    last_ms = max([last_ms, *own])
    later = [ms for ms in log.published_ms if ms >= last_ms]
    return (min(later) - change_ms) / MINUTE_MS if later else float("inf")


# -- all runs ------------------------------------------------------------------------------------------------


def make_report(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows of all jobs say, and a verdict in words."""
    report: dict[str, Any] = {
        "poisons": _poisons([row for row in rows if row["kind"] == "poison"]),
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
        row["refused_by"] = _checks(own)
        out.append(row)
    return out


def _checks(rows: Sequence[Row]) -> str:
    return ", ".join(sorted({check for row in rows for check in row["refused"]}))


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
                "refused_by": _checks(own),
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
    parts = []
    if worst is not None:
        kept = sum(row["most_auc_loss"] <= MOST_LOSS for row in claimed)
        parts.append(
            f"Of {len(claimed)} poisons that the gate claims to catch, {kept} cost what is served at most {MOST_LOSS} "
            f"of AUC; the worst is {worst['poison']} with {worst['most_auc_loss']:.4f}."
        )
    parts.append(f"{sum(row['not_finite'] for row in report['poisons']):,} numbers that are not finite were served.")
    over = [row["world"] for row in report["clean"] if row["share"] >= MOST_FALSE]
    parts.append(
        f"Of what was clean {false_refusals(report):.2%} was refused"
        + (f"; more than {MOST_FALSE:.0%} in {', '.join(over)}." if over else f", in no world {MOST_FALSE:.0%}.")
    )
    minutes = [row["minutes"] for row in report["taste"]]
    served = [m for m in minutes if m is not None]
    never = f"in {len(minutes) - len(served)} of {len(minutes)} worlds"
    if served:
        rest = f"; {never} it was not" if len(served) < len(minutes) else ""
        parts.append(f"A change of taste was served after at most {max(served):.0f} minutes{rest}.")
    elif minutes:
        parts.append(f"A change of taste was not served {never}.")
    return " ".join(parts)
