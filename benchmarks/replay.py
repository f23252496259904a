# shell
"""``millrace dev bench replay``: replay side by side, against the model alone; and its memory.

Pairs take turns in one process, each on the same day of the simulator: the engine, and the model alone, whose batches
and rows to score were made before. Scores of both are equal to the bit, which is checked.

Then logs of two lengths, mapped from a file, each in a process of its own (``python -m benchmarks.replay FILE``):
the peak of its anonymous memory, children included, with what the model's tables take taken off.
:data:`LONG_ROWS` in the environment's ``MILLRACE_BENCH_REPLAY_ROWS`` shortens the longer one; the figures say how long
it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import anonymous_mb
from commands.replay.grouped import GroupedRows
from commands.replay.known import LabelSettings
from commands.replay.replayrun import BATCH_ROWS, THREADS, run_log
from commands.replay.sidebyside import Timing
from commands.replay.steps import Step, steps
from experiments.runs import BenchError
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import TS, LogTable
from simulator.daylog import day_table, parse_day
from simulator.world import World

DAY = "2026-03-02"
SEED, USERS = 7, 4000
ROUNDS = 5
SHORT_ROWS, LONG_ROWS = 1_000_000, 10_000_000

P = NDArray[np.float32]


def run(out: Path, say: Say) -> list[Figure]:
    """The figures: seconds of a day by each way, and rates and memory of the two long logs.

    Raises:
        BenchError: two ways give other scores.
    """
    plan = shop_schema()
    with tempfile.TemporaryDirectory(dir=out) as folder:
        return [*_pairs(Path(folder), plan, say), *_long(Path(folder), say)]


def _pairs(folder: Path, plan: Schema, say: Say) -> list[Figure]:
    write_long(folder / "day.arrow", parse_day(DAY), 1, SEED, USERS)
    log = table_of(folder / "day.arrow", plan)
    how, n = LabelSettings.of(Settings()), log.table.num_rows
    timing = Timing()
    with threads(THREADS):
        held = list(steps(log, plan, BATCH_ROWS, how, None))
        ways: dict[str, Callable[[], P]] = {
            "side by side": lambda: _beside(log, plan, how, timing),
            "model alone": lambda: _alone(held, plan, n),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        first: P | None = None
        for turn in range(ROUNDS + 1):  # the first is to warm up
            timing = Timing()
            for name, way in ways.items():
                began = time.perf_counter()
                p = way()
                took = time.perf_counter() - began
                if first is not None and not np.array_equal(first, p):
                    raise BenchError(f"'{name}' gives other scores", "report it as a defect")
                first = p
                if turn:
                    seconds[name].append(took)
            told = ", ".join(f"{name} {n / s[-1]:,.0f}/s" for name, s in seconds.items() if s)
            say(f"round {turn} of {ROUNDS}: {told or 'warm'}")
    beside, alone = (np.array(s) for s in seconds.values())
    say(f"seconds of the last run: features {timing.features:.1f}, scoring {timing.scoring:.1f}, learning")
    say(f"  {timing.learning:.1f}, the learner waited {timing.waiting:.1f}; the scores are equal to the bit")
    return [
        figure("day_rows", n, "exposures"),
        figure("day_side_by_side", float(np.median(n / beside)), "rows/s"),
        figure("day_seconds", float(np.median(beside)), "s", "model alone", float(np.median(beside / alone))),
    ]


def _beside(log: LogTable, plan: Schema, how: LabelSettings, timing: Timing) -> P:
    groups = GroupedRows(log, plan)
    return run_log(log, plan, OnlineModel(plan, {}, 0), BATCH_ROWS, lambda _: None, groups, how, timing=timing)


def _alone(held: list[Step], plan: Schema, n: int) -> P:
    """Training and predicting with features that are there."""
    model, p = OnlineModel(plan, {}, 0), np.empty(n, np.float32)
    for step in held:
        for rows, cat, num in step.shown:
            p[rows] = model.score(cat, num)
        if step.batch is not None:
            model.learn(step.batch)
    return p


def _long(folder: Path, say: Say) -> list[Figure]:
    longest = int(os.environ.get("MILLRACE_BENCH_REPLAY_ROWS", LONG_ROWS))
    figures: list[Figure] = []
    rates: list[float] = []
    for rows in (min(SHORT_ROWS, longest // 4), longest):
        path = folder / f"{rows}.arrow"
        days = -(-rows // 200_000)
        say(f"writing a log of {rows:,} exposures")
        write_long(path, parse_day(DAY), days, SEED, USERS, rows)
        command = [sys.executable, "-m", "benchmarks.replay", str(path)]
        peak = 0.0
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                peak = max(peak, anonymous_mb(process.pid))
                time.sleep(0.1)
            told = process.stdout.read() if process.stdout else ""
        path.unlink()
        if process.returncode:
            raise BenchError(f"the run of {rows:,} exposures ended with status {process.returncode}", "see above")
        found = json.loads(told.splitlines()[-1])
        beyond = peak - found["model_mb"]
        rates.append(found["rows"] / found["seconds"])
        say(f"{found['rows']:,} exposures: {rates[-1]:,.0f} rows/s; {peak:,.0f} MB, {beyond:,.0f} beyond the model's")
        ratio = rates[-1] / rates[0] if len(rates) > 1 else None
        against = "the shorter log" if ratio else None
        figures += [
            figure(f"log_{found['rows']}_rate", rates[-1], "rows/s", against, ratio),
            figure(f"log_{found['rows']}_memory", beyond, "MB beyond the model's tables"),
        ]
    return figures


def write_long(path: Path, first_day: int, days: int, seed: int, users: int, rows: int | None = None) -> None:
    """Writes days of a world as one Arrow file, a record batch a day; of the last day no more than ``rows`` allow."""
    world, plan = World(seed, users), shop_schema()
    left = rows
    with pa.OSFile(str(path), "wb") as sink:
        writer = None
        for number in range(first_day, first_day + days):
            table = day_table(world, number)
            table = table.select([name for name in table.column_names if name in _names(plan)])
            table = table if left is None else table.slice(0, left)
            writer = writer or pa.ipc.new_file(sink, table.schema)
            writer.write_table(table.combine_chunks())
            left = None if left is None else left - table.num_rows
            if left is not None and left <= 0:
                break
        if writer is not None:
            writer.close()


def table_of(path: Path, plan: Schema) -> LogTable:
    """The log, mapped."""
    assert plan.log is not None
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return LogTable(table, plan.log.user, plan.log.item, plan.log.label, table.num_rows, 0)


def _names(plan: Schema) -> set[str]:
    assert plan.log is not None
    log = plan.log
    named = {f.name for f in plan.fields} | {c for k in plan.windows.keys for c in k.columns}
    roles = {TS, log.user, log.item, log.label, log.request, log.position, *log.action_times.values()}
    return {name for name in named | roles if name is not None}


def main(path: Path) -> None:
    """Replays a log that is mapped from an Arrow file, prints JSON: rows, seconds, MB of the model's tables."""
    plan = shop_schema()
    log = table_of(path, plan)
    with threads(THREADS):
        model = OnlineModel(plan, {}, 0)
        began = time.perf_counter()
        run_log(log, plan, model, BATCH_ROWS, lambda _: None, GroupedRows(log, plan))
        seconds = time.perf_counter() - began
    print(json.dumps({"rows": log.table.num_rows, "seconds": seconds, "model_mb": model.nbytes / 2**20}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
