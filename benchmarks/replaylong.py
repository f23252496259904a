# shell
"""``python -m benchmarks.replaylong FILE``: replays a log that is mapped from an Arrow file; what it took.

The log is the simulator's, day after day, as the reader would give it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow as pa

from commands.replay.grouped import Groups
from commands.replay.report import make_report
from commands.replay.run import BATCH_ROWS, THREADS, run_log
from commands.replay.sidebyside import Timing
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.contracts.schema import Schema, shop_schema
from millrace.logs import TS, LogTable
from simulator.daylog import day_table
from simulator.world import World


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
    """Replays and prints one line of JSON: rows, seconds, and the MB of the model's tables."""
    plan = shop_schema()
    log, timing = table_of(path, plan), Timing()
    with threads(THREADS):
        model = OnlineModel(plan, {}, 0)
        began = time.perf_counter()
        groups = Groups(log, plan)
        p = run_log(log, plan, model, BATCH_ROWS, lambda _: None, groups, timing=timing)
        seconds = time.perf_counter() - began

    report = make_report(log, plan, p, groups)
    told = {"rows": log.table.num_rows, "seconds": seconds, "model_mb": model.nbytes / 2**20, "auc": report["total"]}
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
