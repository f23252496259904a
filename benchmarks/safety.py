# shell
"""``millrace dev bench safety``: what is served while samples are poisoned, and what the gate costs.

*served_auc_loss POISON*, *uncaught_auc_loss POISON*
    AUC of what is served, on clean rows, below that of a twin behind the same gate: the worst of consecutive windows.
    The first are claimed to be caught. Compared with what is lost without a gate.
*false_refusals*
    Of what is clean, in 30 days of a world with a row a second.
*gate_cost_rows*
    Share of the learner's rows a second that the gate takes. Two learners, one with a gate, take turns on the same
    messages at full speed. CPU time of one thread; the median over turns of ``1 - rate with / rate without``, and by
    how much longer a snapshot takes that is judged, over the seconds between two.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import cpu_s
from experiments.experiment_safety import Plan, make_report
from experiments.runs import run_calls
from experiments.safety.safetyrun import Life, Pace
from experiments.safety.safetyworld import Shop, traffic, write_shop
from learner.network.dense import threads
from learner.role.learnloop import PACE
from learner.training.trainer import BATCH_ROWS
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import read_log

TURN_ROWS = 6144  # as many as come between two deltas of a learner at full speed
_NO_GATE = "no gate"


class Size(NamedTuple):
    """How much is run."""

    plan: Plan = Plan(seeds=1, rates=(1,), worlds=1, days=10, rows=60_000)
    users: int = 4000  # of the day on which the cost is measured
    warm_turns: int = 8
    turns: int = 9


SHORT = Size(Plan(rates=(1,), short=True), users=400, warm_turns=1, turns=1)


def run(out: Path, say: Say, size: Size) -> list[Figure]:
    """The figures, as in the module's text."""
    plan = size.plan
    report = make_report(run_calls([*plan.calls()], lambda row: say(str(row)), workers=2, progress=False))
    say(report["verdict"])
    with tempfile.TemporaryDirectory(dir=out, prefix="cost-") as name, threads(1):
        return [*figures(report), gate_cost(Path(name), size, say)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """The figures of a report of the experiment."""
    out = []
    for row in report["poisons"]:
        name = "served" if row["claimed"] else "uncaught"
        lost, bare = row["most_auc_loss"], row["auc_loss_without_gate"]
        ratio = lost / bare if bare > 0 else None
        out.append(figure(f"{name}_auc_loss {row['poison']}", lost, "AUC", _NO_GATE, ratio))
    out += [figure(f"false_refusals {row['world']}", row["in_30_days"], "in 30 days") for row in report["clean"]]
    return out


def gate_cost(folder: Path, size: Size, say: Say) -> Figure:
    """gate_cost_rows, as in the module's text."""
    schema = shop_schema()
    moments = traffic(read_log(write_shop(Shop(0, 1, size.users), folder / "log"), schema), schema)
    rows = SampleBatch.concat([moment.batch for moment in moments if moment.batch is not None])
    turn_batches = TURN_ROWS // BATCH_ROWS
    pace = Pace(turn_batches, turn_batches * round(PACE.dense_seconds / PACE.delta_seconds), 1 << 60)
    pair = {gate: Life(schema, folder / f"gate-{gate}", gate=gate, pace=pace) for gate in (True, False)}
    checks = pair[True].promotion.checks
    assert checks is not None
    checks.heldout.follows = False  # a row that is not learnt would make the gate look cheap
    # CPU seconds of each turn: of learning, of a snapshot.
    learning: dict[bool, list[float]] = {True: [], False: []}
    snapshots: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(size.warm_turns + size.turns):
        used = {True: 0.0, False: 0.0}
        parts = _parts(rows, turn * TURN_ROWS, (turn + 1) * TURN_ROWS, BATCH_ROWS)
        for order, message in enumerate(parts):
            for gate in (order % 2 == 0, order % 2 == 1):  # message by message: the machine's moods meet both alike
                used[gate] += cpu_s(partial(pair[gate].learn, message), time.process_time)
        for gate, life in pair.items():
            took = cpu_s(life.snapshot, time.process_time)
            if turn >= size.warm_turns:
                learning[gate].append(used[gate])
                snapshots[gate].append(took)
    lost = statistics.median(1 - b / a for a, b in zip(learning[True], learning[False], strict=True))
    judging_s = statistics.median(a - b for a, b in zip(snapshots[True], snapshots[False], strict=True))
    judging = judging_s / Settings().snapshot_seconds
    without = TURN_ROWS / statistics.median(learning[False])
    say(f"  {lost:.1%} of {without:,.0f} rows/s; a snapshot is judged in {judging_s:.2f} s: {judging:.1%}")
    return figure("gate_cost_rows", lost + judging, "share of rows/s", _NO_GATE, 1 - lost - judging)


def _parts(rows: SampleBatch, begin: int, end: int, size: int) -> list[SampleBatch]:
    """Rows as messages: each with its own pages alone, and arrays that cannot be written to."""
    own = (rows.take(slice(at, min(at + size, end))) for at in range(begin, end, size))
    return [SampleBatch.from_bytes(part.to_bytes()) for part in own]
