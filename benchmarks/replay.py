# shell
"""``millrace bench replay``: replay side by side, against the plain path and against the model alone; and its memory.

Pairs take turns in one process, each on the same day of the simulator: the plain path (one thread, arrays of the whole
log: :mod:`commands.replay.plain`, replay as it was), the engine, and the model alone, whose batches and rows to score
were made before. Scores of all three are equal to the bit, which is checked.

Then logs of two lengths, mapped from a file, each in a process of its own: the peak of its anonymous memory, children
included, with what the model's tables take taken off. :data:`LONG_ROWS` in the environment's
``MILLRACE_BENCH_REPLAY_ROWS`` shortens the longer one; the figures say how long it was.
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
from numpy.typing import NDArray

from benchmarks.memory import peak_anonymous_mb
from benchmarks.replaylong import table_of, write_long
from benchmarks.runner import BenchError, Figure, Say, figure
from commands.replay.grouped import Groups
from commands.replay.known import LabelSettings
from commands.replay.plain import run_plain
from commands.replay.run import BATCH_ROWS, THREADS, run_log
from commands.replay.sidebyside import Timing
from commands.replay.steps import Step, steps
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable
from simulator.daylog import parse_day

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
            "plain": lambda: _plain(log, plan, how),
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
                    raise BenchError(f"'{name}' gives other scores than the plain path", "report it as a defect")
                first = p
                if turn:
                    seconds[name].append(took)
            told = ", ".join(f"{name} {n / s[-1]:,.0f}/s" for name, s in seconds.items() if s)
            say(f"round {turn} of {ROUNDS}: {told or 'warm'}")
    plain, beside, alone = (np.array(s) for s in seconds.values())
    say(f"seconds of the last run: features {timing.features:.1f}, scoring {timing.scoring:.1f}, learning")
    say(f"  {timing.learning:.1f}, the learner waited {timing.waiting:.1f}; the scores are equal to the bit")
    return [
        figure("day_rows", n, "exposures"),
        figure("day_plain", float(np.median(n / plain)), "rows/s"),
        figure("day_side_by_side", float(np.median(n / beside)), "rows/s", "plain", float(np.median(plain / beside))),
        figure("day_seconds", float(np.median(beside)), "s", "model alone", float(np.median(beside / alone))),
    ]


def _plain(log: LogTable, plan: Schema, how: LabelSettings) -> P:
    groups = Groups(log, plan)
    return run_plain(log, plan, OnlineModel(plan, {}, 0), BATCH_ROWS, lambda _: None, groups, how)


def _beside(log: LogTable, plan: Schema, how: LabelSettings, timing: Timing) -> P:
    groups = Groups(log, plan)
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
        command = [sys.executable, "-m", "benchmarks.replaylong", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            peak = peak_anonymous_mb(process)
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
