# shell
"""``millrace dev bench replay``: rows a second and memory of ``millrace log replay``, of pages and of pages of one row.

The log is a simulated day of the shop. *pages* has it as it is; in *rows* each exposure is a page of its own, a
millisecond after the one above it. Labels wait as settings say. The logs take turns, each turn in a fresh process;
before them, a short turn of each compiles. Figures are medians:

*LOG*
    Rows by the time on the clock, without reading the log and without the report: what the replay's run.json says.
*LOG cpu*
    Rows by the processor time of all threads, with reading and report. Other load changes it least.
*LOG peak*
    The process's resident memory at its highest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import millrace.contracts
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import cpu_s
from millrace.commands.replay.replayrun import replay
from millrace.processes.resident_memory import measured_bytes
from simulator.daylog import write_days

_SCHEMA = Path(millrace.contracts.__file__).with_name("shop.toml")
_WARM_ROWS = 2000


class Size(NamedTuple):
    """How much is measured."""

    users: int = 4000  # who come on the day: some 230,000 rows
    turns: int = 3


SHORT = Size(100, 1)


class Turn(NamedTuple):
    """Of one replay."""

    rows_a_second: float
    rows_a_cpu_second: float
    peak_bytes: float


def run(out: Path, say: Say, size: Size) -> Iterator[Figure]:
    """The figures, as in the module's text."""
    with TemporaryDirectory(prefix="millrace-replay-", dir=out) as made:
        folder = Path(made)
        (day,) = write_days(folder, 1, seed=1, users=size.users)
        pages = pq.read_table(day)
        taken: dict[str, list[Turn]] = {}
        for name, log in {"pages": pages, "rows": of_one_row(pages)}.items():
            pq.write_table(log, folder / f"{name}.parquet")
            pq.write_table(log.slice(0, _WARM_ROWS), folder / "warm.parquet")
            _apart(folder / "warm.parquet", folder)
            taken[name] = []
        for turn in range(size.turns):
            for name, own in taken.items():
                own.append(_apart(folder / f"{name}.parquet", folder))
                say(f"turn {turn + 1}, {name}: {own[-1].rows_a_second:,.0f} rows/s")
    for name, own in taken.items():
        speed, cpu, peak = (median(values) for values in zip(*own, strict=True))
        yield figure(name, speed, "rows/s")
        yield figure(f"{name} cpu", cpu, "rows/s of CPU")
        yield figure(f"{name} peak", peak / (1 << 20), "MiB")


def of_one_row(log: pa.Table) -> pa.Table:
    """The log, but each exposure has a request of its own, at a time of its own."""
    requests = pa.array([f"r{n}" for n in range(log.num_rows)])
    times = log["ts_ms"].to_numpy() + log["position"].to_numpy().astype(np.int64)
    for name, column in {"request_id": requests, "ts_ms": pa.array(times)}.items():
        log = log.set_column(log.schema.get_field_index(name), name, column)
    return log


def _apart(log: Path, folder: Path) -> Turn:
    """A replay in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_replayed, log, folder / "out").result()


def _replayed(log: Path, out: Path) -> Turn:
    spent = cpu_s(lambda: replay(log, _SCHEMA, out, progress=False), time.process_time)
    rate, rows = json.loads((out / "run.json").read_text())["rows_per_second"], pq.read_metadata(log).num_rows
    return Turn(rate, rows / spent, measured_bytes(peak=True))
