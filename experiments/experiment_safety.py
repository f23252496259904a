# shell
"""``millrace dev experiment safety``: what is served while samples are poisoned, and what of clean ones is refused.

``poisons``  a day and a morning; then what producers, joins and people get wrong in samples, from ten o'clock on
             (:mod:`experiments.safety.poisons`). The AUC of what is served, on clean rows, against a twin that goes
             through the same without the poison, behind the same gate: the worst of consecutive windows; and the same
             without a gate. Some poisons are claimed to be caught, others are not.
``clean``    days from nothing, in worlds in which nothing is wrong: each refusal is a false one.
``taste``    half of the shoppers have another taste from noon on: minutes until it is served.

Each is a call in a process of its own. ``millrace dev bench safety`` runs the same with fewer worlds and days.
"""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import structlog
from cyclopts import Parameter

from commands.offline.intervals import interval, rounded
from experiments.runs import Call, Row, run_calls, runs_file, write_experiment
from experiments.safety.poisons import POISONS, Window
from experiments.safety.safetyrun import STRETCH_ROWS, Life, Log, Served, live, loss
from experiments.safety.safetyworld import BATCH_ROWS, Moment, Shop, traffic, write_shop
from learner.network.dense import threads
from millrace.basics.durations import HOUR_MS, MINUTE_MS
from millrace.basics.errors import SettingError
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.logs import read_log

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
    worlds: int = 3
    users: int = 4000
    rows: int = 190_000
    log: Path | None = None
    schema: Path | None = None

    def calls(self) -> Iterator[Call]:
        """Each run's call. The longest first."""
        users, first, schema, few = self.users, self.seed, shop_schema(), min(3, self.days)
        runs: list[tuple[Callable[..., Iterator[Row]], tuple[Any, ...]]] = [
            *((clean, ("clean days", Shop(seed, self.days, users))) for seed in range(first, first + self.worlds)),
            *((poisons, (Shop(seed, 2, users), self.rows)) for seed in range(first, first + self.seeds)),
            (clean, ("click rate times three", Shop(first, few, users, click_rate=0.3))),
            (clean, ("sale from noon", Shop(first, few, users, change="sale"))),
            *((taste, (Shop(seed, 2, users), min(self.rows, 100_000))) for seed in range(first, first + self.seeds)),
        ]
        yield from ((_do, (schema, *run)) for run in runs)
        if self.log is not None and self.schema is not None:
            yield _do, (load_schema(self.schema), clean, ("the log", self.log))


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
    began_s = time.monotonic()
    with runs_file(out) as keep:
        report = make_report(run_plan(plan, keep, workers, progress))
    given = {name: str(value) for name, value in asdict(plan).items() if value is not None}
    write_experiment(out, report, [], "Safety", began_s, plan=given)
    return report


def run_plan(plan: Plan, keep: Callable[[Row], None], workers: int | None = None, progress: bool = True) -> list[Row]:
    """The rows of all runs, in the order of the plan. ``keep`` takes each row when its call has ended."""
    return run_calls([*plan.calls()], keep, workers, progress)


def _do(schema: Schema, run: Callable[..., Iterator[Row]], args: tuple[Any, ...]) -> list[Row]:
    # What the gate says of each refusal is in the rows.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with TemporaryDirectory(prefix="millrace-safety-") as folder, threads(1), np.errstate(all="ignore"):
        return list(run(*args, schema, Path(folder)))


# -- runs ----------------------------------------------------------------------------------------------------


def _morning(shop: Shop, schema: Schema, folder: Path, at_ms: int, rows: int) -> tuple[Path, list[Moment]]:
    """The folder of a life up to a time, and the moments from then on, until so many rows are shown."""
    moments, life = traffic(read_log(write_shop(shop, folder / "log"), schema), schema), Life(schema, folder / "origin")
    # The moment that reaches the time is left out, in every branch alike.
    live(life, takewhile(lambda moment: not len(moment.shown_ms) or moment.shown_ms[-1] < at_ms, moments))
    after = list[Moment]()
    shown = 0
    while shown < rows and (moment := next(moments, None)) is not None:
        after.append(moment)
        shown += len(moment.shown_ms)
    return life.end(), after


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
    life = Life(schema, folder / "branch", origin, gate)
    served = live(life, moments, spoil)
    shutil.rmtree(folder / "branch")
    return life, served


def poisons(shop: Shop, rows: int, schema: Schema, folder: Path) -> Iterator[Row]:
    """A row for each poison. ``rows``: that are shown from the beginning of a poison on."""
    start_ms = shop.last_ms + 10 * HOUR_MS
    origin, moments = _morning(shop, schema, folder, start_ms, rows)
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
            "not_finite": life.scorer.not_finite + life.scorer.bad_numbers,
            "refused": life.log.by_check(),
            "first": life.log.refused[0].why if life.log.refused else "",
        }


def clean(name: str, shop: Shop | Path, schema: Schema, folder: Path, batch_rows: int = BATCH_ROWS) -> Iterator[Row]:
    """One row: a life from nothing through a world or a log in which nothing is wrong.

    Args:
        name: what the world is called in reports.
        shop: a simulated one, or the path of a log.
        batch_rows: that are known at once. Few, where there is little traffic.
    """
    log = read_log(write_shop(shop, folder / "log") if isinstance(shop, Shop) else shop, schema)
    life = Life(schema, folder / "life")
    live(life, traffic(log, schema, batch_rows))
    yield {
        "kind": "clean",
        "name": name,
        "seed": shop.seed if isinstance(shop, Shop) else 0,
        "rows": life.log.rows,
        "candidates": round(life.log.candidates, 1),
        "refused": life.log.by_check(),
        "first": life.log.refused[0].why if life.log.refused else "",
        "longest_pause_minutes": rounded(_longest_pause(life.log)),
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


def taste(shop: Shop, rows: int, schema: Schema, folder: Path) -> Iterator[Row]:
    """One row: half of the shoppers have another taste from noon on. Minutes until what is learnt of it is served."""
    shop = replace(shop, change="taste")
    origin, moments = _morning(shop, schema, folder, shop.noon_ms, rows)
    life, served = _branch(schema, origin, folder, moments, True)
    _, bare = _branch(schema, origin, folder, moments, False)
    yield {
        "kind": "taste",
        "seed": shop.seed,
        "minutes": promoted_after(life.log, served, shop.noon_ms),
        "auc_loss_to_no_gate": rounded(loss(bare, served)),
        "refused": life.log.by_check(),
    }


def promoted_after(log: Log, served: Served, change_ms: int) -> float | None:
    """Minutes from a change until a version is out that has learnt a whole stretch of rows since, and behind which the
    gate has nothing against the change any more. None where there is none."""
    since = served.shown_ms[served.shown_ms >= change_ms]
    if len(since) < STRETCH_ROWS:
        return None
    last_ms = int(since[STRETCH_ROWS - 1])
    own = [r.event_ms for r in log.refused if change_ms <= r.event_ms < change_ms + MOST_DRIFT_MINUTES * MINUTE_MS]
    last_ms = max([last_ms, *own])
    later = [ms for ms in log.published_ms if ms >= last_ms]
    return rounded((min(later) - change_ms) / MINUTE_MS) if later else None


# -- all runs ------------------------------------------------------------------------------------------------


def make_report(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows of all runs say, and a verdict in words."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("poison", "clean", "taste")}
    report: dict[str, Any] = {
        "poisons": [_poison(name, own) for name, own in _by_name(kinds["poison"]).items()],
        "clean": [_clean(name, own) for name, own in _by_name(kinds["clean"]).items()],
        "taste": kinds["taste"],
    }
    return {"verdict": verdict(report)} | report


def _by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["name"] == name] for name in dict.fromkeys(row["name"] for row in rows)}


def _poison(name: str, own: Sequence[Row]) -> Row:
    losses = [row["auc_loss"] for row in own]
    return {
        "poison": name,
        "claimed": own[0]["claimed"],
        "worlds": len(own),
        "most_auc_loss": max(losses),
        **(interval("auc_loss", losses) if len(own) > 1 else {"auc_loss": losses[0]}),
        "auc_loss_without_gate": rounded(float(np.mean([r["auc_loss_without_gate"] for r in own]))),
        "not_finite": sum(r["not_finite"] for r in own),
        "refused_by": _checks(own),
    }


def _clean(name: str, own: Sequence[Row]) -> Row:
    candidates = sum(row["candidates"] for row in own)
    refused = sum(n for row in own for n in row["refused"].values())
    return {
        "world": name,
        "runs": len(own),
        "rows": sum(row["rows"] for row in own),
        "candidates": round(candidates),
        "refused": refused,
        "share": rounded(refused / candidates),
        "refused_by": _checks(own),
        "longest_pause_minutes": max(row["longest_pause_minutes"] for row in own),
    }


def _checks(rows: Sequence[Row]) -> str:
    return ", ".join(sorted({check for row in rows for check in row["refused"]}))


def false_refusals(report: Mapping[str, Any]) -> float:
    """Share of clean candidates that were refused, over all clean worlds together."""
    candidates = sum(row["candidates"] for row in report["clean"])
    return sum(row["refused"] for row in report["clean"]) / candidates if candidates else float("nan")


def verdict(report: Mapping[str, Any]) -> str:
    """In a few plain sentences."""
    parts = []
    claimed = [row for row in report["poisons"] if row["claimed"]]
    if claimed:
        worst = max(claimed, key=lambda row: row["most_auc_loss"])
        kept = sum(row["most_auc_loss"] <= MOST_LOSS for row in claimed)
        parts.append(
            f"Of {len(claimed)} poisons that the gate claims to catch, {kept} cost what is served at most {MOST_LOSS} "
            f"of AUC; the worst is {worst['poison']} with {worst['most_auc_loss']:.4f}."
        )
    parts.append(f"{sum(row['not_finite'] for row in report['poisons']):,} numbers that are not finite were served.")
    over = ", ".join(row["world"] for row in report["clean"] if row["share"] >= MOST_FALSE)
    which = f"; more than {MOST_FALSE:.0%} in {over}" if over else f", in no world {MOST_FALSE:.0%}"
    parts.append(f"Of what was clean {false_refusals(report):.2%} was refused{which}.")
    minutes = [row["minutes"] for row in report["taste"]]
    if minutes:
        served = [m for m in minutes if m is not None]
        after = f" after at most {max(served):.0f} minutes" if served else ""
        parts.append(f"A change of taste was served in {len(served)} of {len(minutes)} worlds{after}.")
    return " ".join(parts)
