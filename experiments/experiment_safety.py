# shell
"""``millrace dev experiment safety``: what is served while samples are poisoned, and what of clean ones is refused.

``poisons``  a day and a morning; then what producers, joins and people get wrong in samples, from ten o'clock on
             (:mod:`experiments.safety.poisons`). The AUC of what is served, on clean rows, against a twin that goes
             through the same without the poison, behind the same gate: the worst of consecutive windows; and the same
             without a gate. Some poisons are claimed to be caught, others are not.
``clean``    weeks from nothing at some rates, where nothing is wrong: nights, a sale, new goods, a burst of new users,
             pages whose user was not read, guests, clients with a wrong clock. Each refusal is a false one.

Each is a call in a process of its own. ``millrace dev bench safety`` runs the same with fewer worlds and days.
"""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import structlog
from cyclopts import Parameter

from experiments.runs import Call, Row, run_experiment
from experiments.safety.poisons import POISONS, Window
from experiments.safety.safetyrun import Life, Served, live, loss
from experiments.safety.safetyworld import BATCH_ROWS, Moment, Shop, clients, traffic, write_shop
from learner.network.dense import threads
from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.errors import SettingError
from millrace.commands.offline.intervals import interval, rounded
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.logs import TS, read_log
from millrace.processes.resident_memory import resident_bytes
from millrace.reports.lines import Lines
from simulator.params import DEFAULT

MOST_LOSS = 0.004
"""What the gate promises: AUC lost to the twin, by poisons that it claims to catch."""

Kind = Literal["clean", "taste", "poison"]
Rate = Literal[1, 10, 100, 1000]

_WORLDS: Mapping[int, tuple[int, int, tuple[int, int], float]] = {
    1: (64, 30, (0, 24), 1.0),
    10: (512, 30, (0, 24), 1.0),
    100: (512, 2, (0, 24), 1.0),
    1000: (512, 1, (10, 14), 0.3),
}
"""Of clean worlds by rows a second: rows known at once, days, hours of each and their share of a day's rows."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is run. Slices of a plan may be run one by one.

    Args:
        only: kinds of runs.
        seeds: how many worlds are poisoned, and of how many half of the shoppers change their taste.
        seed: of the first world.
        rates: rows a second of clean worlds.
        worlds: clean ones at 1 and at 10 rows a second; one at more.
        days: of a clean world (default: 30; 2 at 100 rows a second; four hours at 1000).
        hold: hours of clean worlds between which a person holds the model, as 9 33; memory is told.
        users: shoppers of an average day, of poisons and tastes.
        rows: shown from the beginning of a poison on.
        log: one of one's own in which nothing is wrong.
        schema: schema file of that log.
        short: little of each kind. It shows that it runs.
    """

    only: tuple[Kind, ...] = ("clean", "taste", "poison")
    seeds: int = 5
    seed: int = 0
    rates: tuple[Rate, ...] = (1, 10, 100, 1000)
    worlds: int = 5
    days: int | None = None
    hold: tuple[int, int] = (0, 0)
    users: int = 4000
    rows: int = 190_000
    log: Path | None = None
    schema: Path | None = None
    short: bool = False

    def calls(self) -> Iterator[Call]:
        """Each run's call."""
        if self.short:
            small = replace(self, seeds=1, rates=self.rates[:1], worlds=1, days=2, users=500, rows=9000, short=False)
            yield from small.calls()
            return
        schema, seeds = shop_schema(), range(self.seed, self.seed + self.seeds)
        held = partial(clean, hold=range(*self.hold))
        if "clean" in self.only:
            for rate in self.rates:
                worlds = range(self.seed, self.seed + (self.worlds if rate <= 10 else 1))
                yield from ((_do, (schema, held, *world_at(rate, seed, self.days))) for seed in worlds)
        if "taste" in self.only:
            shops = (Shop(seed, 2, self.users, change="taste") for seed in seeds)
            yield from ((_do, (schema, clean, "another taste", shop, BATCH_ROWS)) for shop in shops)
        if "poison" in self.only:
            yield from ((_do, (schema, poisons, Shop(seed, 2, self.users), self.rows)) for seed in seeds)
        if self.log is not None and self.schema is not None:
            yield _do, (load_schema(self.schema), clean, "the log", self.log, BATCH_ROWS)


def world_at(rate: int, seed: int, days: int | None = None) -> tuple[str, Shop, int]:
    """The clean world of so many rows a second: as :func:`clean` takes it."""
    size, usual, hours, share = _WORLDS[rate]
    users = round(rate * (hours[1] - hours[0]) * HOUR_MS / 1000 / (DEFAULT.exposures * share))
    return f"{rate} rows/s", Shop(seed, days or usual, users, change="all", hours=hours), size


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
    given = {name: str(value) for name, value in asdict(plan).items() if value is not None}
    how: dict[str, Any] = {"workers": workers, "progress": progress, "plan": given}
    return run_experiment(out, "Safety", [*plan.calls()], lambda rows: (make_report(rows), []), **how)


def _do(schema: Schema, run: Callable[..., Iterator[Row]], *args: Any) -> list[Row]:
    # What the gate says of each refusal is in the rows.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with TemporaryDirectory(prefix="millrace-safety-") as folder, threads(1), np.errstate(all="ignore"):
        return list(run(*args, schema, Path(folder)))


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
    life.snapshot()  # its folder is an origin for others from now on
    return life.folder, after


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
    start_ms = shop.day_ms(shop.days - 1) + 10 * HOUR_MS
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
        }


def clean(
    name: str, shop: Shop | Path, size: int, schema: Schema, folder: Path, hold: Sequence[int] = ()
) -> Iterator[Row]:
    """One row: a life from nothing through a world or a log in which nothing is wrong.

    Args:
        name: what the world is called in reports.
        shop: a simulated one, or the path of a log.
        size: rows that are known at once. Few, where there is little traffic.
        hold: hours in which a person holds the model; ``held_mb`` is memory, without files, at the end of each.
    """
    log = read_log(write_shop(shop, folder / "log") if isinstance(shop, Shop) else shop, schema, spool=folder)
    seed, life = shop.seed if isinstance(shop, Shop) else 0, Life(schema, folder / "life", serves=False)
    tick, ts_ms = Lines(lambda line: print(line, file=sys.stderr), time.monotonic), log.table[TS]
    first_ms, of_ms, held_mb = ts_ms[0].as_py(), ts_ms[-1].as_py() - ts_ms[0].as_py(), dict[int, int]()

    def told() -> Iterator[Moment]:
        for moment in traffic(log, schema, size):
            yield moment
            if moment.batch is None:
                continue
            hour = (int(moment.batch.ts_ms[-1]) - first_ms) // HOUR_MS
            if (hour in hold) != life.promotion.state.standing.held:
                (life.promotion.commands.hold if hour in hold else life.promotion.commands.promote)()
            if hour in hold:
                held_mb[hour] = (resident_bytes(name="RssAnon:") or 0) >> 20
            tick(f"{name}, seed {seed}, {len(life.log.refused)} refused: hours", hour, of_ms // HOUR_MS)

    live(life, told(), clients(shop, schema) if isinstance(shop, Shop) else lambda batch: batch)
    yield {
        "kind": "clean",
        "name": name,
        "seed": seed,
        "rows": life.log.rows,
        "days": rounded(of_ms / DAY_MS),
        "refused": life.log.by_check(),
        "when": [f"day {1 + (ms - first_ms) / DAY_MS:.2f}: {why}" for ms, why in life.log.refused[:20]],
        "held_mb": held_mb,
    }


def make_report(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows of all runs say, and a verdict in words."""
    report: dict[str, Any] = {
        "poisons": [_poison(name, own) for name, own in _by_name(rows, "poison").items()],
        "clean": [_clean(name, own) for name, own in _by_name(rows, "clean").items()],
    }
    return {"verdict": verdict(report)} | report


def _by_name(rows: Sequence[Row], kind: Kind) -> dict[str, list[Row]]:
    names = dict.fromkeys(row["name"] for row in rows if row["kind"] == kind)
    return {name: [row for row in rows if row["name"] == name] for name in names}


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
    days, refused = sum(row["days"] for row in own), sum(n for row in own for n in row["refused"].values())
    return {
        "world": name,
        "runs": len(own),
        "rows": sum(row["rows"] for row in own),
        "days": rounded(days),
        "refused": refused,
        "in_30_days": rounded(30 * refused / days),
        "refused_by": _checks(own),
        "held_mb": [*own[0]["held_mb"].values()],
    }


def _checks(rows: Sequence[Row]) -> str:
    return ", ".join(sorted({check for row in rows for check in row["refused"]}))


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
    parts += [
        f"{row['refused']} refusals of what is clean in {row['days']:.4g} days, {row['world']}."
        + (f" Held for {len(mb)} hours: {mb[0]} to {mb[-1]} MB." if (mb := row["held_mb"]) else "")
        for row in report["clean"]
    ]
    return " ".join(parts)
