# shell
"""``millrace dev bench replay``: how fast a log is replayed, and that memory does not grow with it.

Logs of the simulator, of several lengths, each in a process of its own: exposures a second, and the peak of its
anonymous memory, children included, without what the model's tables take.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.taken import anonymous_mb
from commands.replay.grouped import GroupedRows
from commands.replay.reading import reading
from commands.replay.replayrun import BATCH_ROWS, THREADS, run_log
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.contracts.schema import shop_schema
from simulator.daylog import write_days


class Size(NamedTuple):
    """How much is measured. A day of 4,000 users has some 225,000 exposures."""

    users: int = 4000
    days: tuple[int, ...] = (1, 4, 45)


SHORT = Size(30, (1, 2))


def run(out: Path, say: Say, size: Size | None = None) -> Iterator[Figure]:
    """The figures, as in the module's text."""
    size = size or Size()
    with tempfile.TemporaryDirectory(dir=out) as folder:
        log = write_days(folder, max(size.days), 7, users=size.users)
        rates: list[float] = []
        for days in size.days:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                replayed, peak = pool.submit(_replayed, log[:days]), 0.0
                while not replayed.done():
                    peak = max([peak, *(anonymous_mb(child.pid or 0) for child in active_children())])
                    time.sleep(0.1)
                rows, seconds, model_mb = replayed.result()
            rates.append(rows / seconds)
            say(f"{rows:,} exposures: {rates[-1]:,.0f}/s; {peak:,.0f} MB, {peak - model_mb:,.0f} beyond the model's")
            yield figure(f"rate {days}d", rates[-1], "exposures/s", "the shortest log", rates[-1] / rates[0])
            yield figure(f"memory {days}d", peak - model_mb, "MB beyond the model's tables")


def _replayed(log: Sequence[Path]) -> tuple[int, float, float]:
    """Rows, seconds, MB of the model's tables."""
    plan = shop_schema()
    with threads(THREADS), reading(log, plan, log[0].parent, say=False) as table:
        model = OnlineModel(plan, {}, 0)
        began = time.perf_counter()
        run_log(table, plan, model, BATCH_ROWS, lambda _: None, GroupedRows(table, plan))
        return table.table.num_rows, time.perf_counter() - began, model.nbytes / 2**20
