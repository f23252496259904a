# shell
"""``millrace dev bench safety``: what is served while samples are poisoned, and what the gate costs.

*served_auc_loss POISON*, *uncaught_auc_loss POISON*
    AUC of what is served, on clean rows, below that of a twin behind the same gate: the worst of consecutive windows.
    The first are claimed to be caught. Compared with what is lost without a gate.
*false_refusals*
    Share of stretches and snapshots that were refused where nothing is wrong; and by kind of world.
*drift_minutes*
    From a change of taste until what was learnt of it is served; *drift_not_served*: worlds that ended before that.
*gate_cost_rows*
    Share of the learner's rows a second that the gate takes. Two learners, one of them with a gate, take turns on the
    same messages at full speed, with deltas and micro-batches as often as a live one has them at that speed. CPU time
    of one thread; the median over turns of ``1 - rate with / rate without``, and what snapshots cost beside it: judging
    rows of all tables and held-out pages, over the seconds between two snapshots.

It has fewer worlds and days than ``millrace dev experiment safety``, which runs the same. KuaiRand's days are among the
clean ones where MILLRACE_TEST_LOG names a folder with them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tools.bench_figures import Figure, Say, figure
from experiments.experiment_safety import Plan, false_refusals, make_report, run_plan
from experiments.safety.safetyrun import Life
from experiments.safety.safetyworld import Shop, traffic, write_shop
from learner.gate.heldout import MOST_ROWS, Heldout
from learner.gate.model_checks import unsound_part
from learner.network.dense import threads
from learner.role.learnloop import PACE
from learner.training.trainer import BATCH_ROWS
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import read_log

DAYS, WORLDS, ROWS, WORKERS = 2, 3, 60_000, 2
WARM_ROWS, TURN_ROWS, MESSAGE_ROWS, TURNS = 49_152, 6144, 128, 9
"""A turn is as many rows as come between two deltas of a learner at full speed."""
_SCHEMA = Path(__file__).parents[1] / "examples" / "kuairand" / "schema.toml"
_NO_GATE = "no gate"


def run(out: Path, say: Say, plan: Plan | None = None) -> list[Figure]:
    """Runs it; see :mod:`benchmarks.runner`."""
    folder = os.environ.get("MILLRACE_TEST_LOG")
    logs = sorted(Path(folder).glob("log_*.parquet")) if folder and _SCHEMA.exists() else []
    if not logs:
        say("KuaiRand's days are left out: MILLRACE_TEST_LOG names no folder with the log")
    own: dict[str, Any] = {"log": logs[0], "schema": _SCHEMA} if logs else {}
    plan = plan or Plan(seeds=1, days=DAYS, worlds=WORLDS, rows=ROWS, **own)
    say(f"{plan.worlds} clean worlds of {plan.days} days, {plan.rows:,} rows behind a poison")
    report = make_report(run_plan(plan, lambda row: say(_line(row)), WORKERS, progress=False))
    say(report["verdict"])
    with tempfile.TemporaryDirectory(dir=out, prefix="cost-") as name, threads(1):
        return [*figures(report), gate_cost(Path(name), say)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """The figures of a report of the experiment."""
    out = []
    for row in report["poisons"]:
        name = "served" if row["claimed"] else "uncaught"
        lost, bare = row["most_auc_loss"], row["auc_loss_without_gate"]
        ratio = lost / bare if bare > 0 else None
        out.append(figure(f"{name}_auc_loss {row['poison']}", lost, "AUC", _NO_GATE, ratio))
    out.append(figure("false_refusals", false_refusals(report), "share"))
    out += [figure(f"false_refusals {row['world']}", row["share"], "share") for row in report["clean"]]
    minutes = [row["minutes"] for row in report["taste"]]
    out += [figure("drift_minutes", m, "min of event time") for m in minutes if m is not None]
    if None in minutes:
        out.append(figure("drift_not_served", minutes.count(None), "worlds"))
    return out


def _line(row: dict[str, object]) -> str:
    """What a job's row says, in a line."""
    shown = ("name", "auc_loss", "auc_loss_without_gate", "not_finite", "minutes", "candidates", "refused")
    return f"{row['kind']}: " + ", ".join(f"{name} {row[name]}" for name in shown if name in row)


# -- what the gate costs -------------------------------------------------------------------------------------


class _Learner:
    """A learner as the role has it, but for Kafka. Its share of held-out pages stays what it is set to: a row that is
    not learnt would make the gate look cheap."""

    def __init__(self, schema: Schema, folder: Path, gate: bool) -> None:
        self.settings = Settings()
        self.life = Life(schema, {}, folder, gate=gate, settings=self.settings)
        self.promotion = self.life.promotion
        self.life.trainer.batch_rows = BATCH_ROWS
        if self.promotion.checks is not None:
            self.promotion.checks.heldout.follows = False
        self._messages = 0

    def learn(self, message: SampleBatch) -> None:
        """Learns a message, as far as it fills a micro-batch."""
        self._messages += 1
        self.life.trainer.take(message, 0, 0, self._messages)
        while self.promotion.step() is not None:
            pass

    def delta(self, dense: bool) -> None:
        """Learns the rest, and makes a delta, which the scorer takes."""
        while self.promotion.step(drain=True) is not None:
            pass
        published = self.promotion.delta(self.life.model.newest_ms, dense, dense)
        if published is not None:
            self.life.scorer.take(published)


def gate_cost(folder: Path, say: Say, shop: Shop | None = None) -> Figure:
    """gate_cost_rows, as in the module's text."""
    schema = shop_schema()
    moments = traffic(read_log(write_shop(shop or Shop(0, 1), folder / "log"), schema), schema)
    rows = SampleBatch.concat([moment.batch for moment in moments if moment.batch is not None])
    say(f"what the gate costs: {len(rows):,} rows of one day")
    pair = {gate: _Learner(schema, folder / f"gate-{gate}", gate) for gate in (True, False)}
    settings = pair[True].settings
    dense_every = round(PACE.dense_seconds / PACE.delta_seconds)
    spent: dict[bool, list[float]] = {True: [], False: []}  # CPU seconds of each turn
    for number, end in enumerate(range(TURN_ROWS, WARM_ROWS + TURNS * TURN_ROWS + 1, TURN_ROWS)):
        used, dense = {True: 0.0, False: 0.0}, number % dense_every == 0
        for order, message in enumerate(_parts(rows, end - TURN_ROWS, end)):
            for gate in (order % 2 == 0, order % 2 == 1):  # message by message: the machine's moods meet both alike
                used[gate] += _cpu_s(partial(pair[gate].learn, message))
        for gate, learner in pair.items():
            used[gate] += _cpu_s(partial(learner.delta, dense))
            if end > WARM_ROWS:
                spent[gate].append(used[gate])
            learner.life.snapshot()
    lost = statistics.median(1 - b / a for a, b in zip(spent[True], spent[False], strict=True))
    judging_s = _judging_s(pair[True], rows)
    judging = judging_s / settings.snapshot_seconds
    without = TURN_ROWS / statistics.median(spent[False])
    say(f"  {lost:.1%} of {without:,.0f} rows/s; a snapshot is judged in {judging_s:.2f} s: {judging:.1%}")
    return figure("gate_cost_rows", lost + judging, "share of rows/s", _NO_GATE, 1 - lost - judging)


def _cpu_s(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _parts(rows: SampleBatch, begin: int, end: int) -> list[SampleBatch]:
    """Rows as messages: each with its own pages alone, and arrays that cannot be written to."""
    own = (rows.take(slice(at, min(at + MESSAGE_ROWS, end))) for at in range(begin, end, MESSAGE_ROWS))
    return [SampleBatch.from_bytes(part.to_bytes()) for part in own]


def _judging_s(learner: _Learner, rows: SampleBatch) -> float:
    """CPU seconds that judging a snapshot takes, with as many held-out rows as there ever are."""
    model, heldout = learner.life.model, Heldout(1.0, age_ms=0, follows=False)
    for batch in _parts(rows, 0, MOST_ROWS):
        heldout.take(replace(batch, ts_ms=np.minimum(batch.ts_ms, model.newest_ms)), model)
    slices = model.slices()
    parts = [*iter(slices.next, None)]
    slices.abandon()
    began = time.process_time()
    for part in parts:
        unsound_part(*part)
    heldout.judge(model)
    return time.process_time() - began
