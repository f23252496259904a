# shell
"""``millrace dev bench replay``: how fast a log is replayed, and that memory does not grow with it.

Logs of the simulator, of several lengths, each in a process of its own (``python -m benchmarks.replay FILE ...``):
exposures a second, and the peak of its anonymous memory, children included, without what the model's tables take.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.taken import anonymous_mb
from commands.replay.grouped import GroupedRows
from commands.replay.reading import reading
from commands.replay.replayrun import BATCH_ROWS, THREADS, run_log
from experiments.runs import BenchError
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
    """The figures, as in the module's text. Raises BenchError where a run failed."""
    size = size or Size()
    with tempfile.TemporaryDirectory(dir=out) as folder:
        log = write_days(folder, max(size.days), 7, users=size.users)
        rates: list[float] = []
        for days in size.days:
            command, peak = [sys.executable, "-m", "benchmarks.replay", *map(str, log[:days])], 0.0
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                while process.poll() is None:
                    peak = max(peak, anonymous_mb(process.pid))
                    time.sleep(0.1)
                printed = process.stdout.read() if process.stdout else ""
            if process.returncode:
                raise BenchError(f"the run of {days} days ended with status {process.returncode}", "see above")
            found = json.loads(printed.splitlines()[-1])
            beyond = peak - found["model_mb"]
            rates.append(found["rows"] / found["seconds"])
            say(f"{found['rows']:,} exposures: {rates[-1]:,.0f}/s; {peak:,.0f} MB, {beyond:,.0f} beyond the model's")
            yield figure(f"rate {days}d", rates[-1], "exposures/s", "the shortest log", rates[-1] / rates[0])
            yield figure(f"memory {days}d", beyond, "MB beyond the model's tables")


def main(log: Sequence[Path]) -> None:
    """Replays a log, prints JSON: rows, seconds, MB of the model's tables."""
    plan = shop_schema()
    with threads(THREADS), reading(log, plan, log[0].parent, say=False) as table:
        model = OnlineModel(plan, {}, 0)
        began = time.perf_counter()
        run_log(table, plan, model, BATCH_ROWS, lambda _: None, GroupedRows(table, plan))
        seconds = time.perf_counter() - began
    print(json.dumps({"rows": table.table.num_rows, "seconds": seconds, "model_mb": model.nbytes / 2**20}))


if __name__ == "__main__":
    main([*map(Path, sys.argv[1:])])
