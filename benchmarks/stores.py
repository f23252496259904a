# shell
"""What carries the loop over restarts: bytes, seconds, memory.

One module measures each part, and says how: :mod:`~benchmarks.parts.checkpoints` (what a checkpoint writes, a settled
page), :mod:`~benchmarks.parts.bench_tables` (five million rows: snapshots beside learning, memory, loading),
:mod:`~benchmarks.parts.restart` (a scorer from the start of its process to ready). ``millrace dev bench capacity`` has
the bytes on Kafka.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.parts import bench_tables, checkpoints, restart
from benchmarks.tools.bench_figures import Figure, Say, figure


def run(
    out: Path,
    say: Say,
    rows: int = bench_tables.ROWS,
    items: int = restart.ITEMS,
    hours: float = 2.0,
    starts: int = restart.STARTS,
) -> Iterator[Figure]:
    """All figures, each part's when it is done."""
    pool = checkpoints.pool(10)
    # A page a second in one partition of four, at real speed.
    found = checkpoints.checkpoint_amplification(hours=hours, warm_hours=1.1 * hours, pages=pool)
    say(f"pages of 10: {found['checkpoint_amplification']:.3f} bytes written a byte that came")
    yield figure("checkpoint_amplification", found["checkpoint_amplification"], "bytes/byte")
    yield figure("checkpoint_bytes_a_second", found["bytes_a_second"] * 4, "bytes/s")
    page = checkpoints.settled_page_bytes(pool_of=pool)
    yield figure("settled_page_bytes", page["memory"], "bytes")
    yield figure("settled_page_bytes_written", page["checkpoint"], "bytes")
    yield figure(
        "longest_replay_seconds", checkpoints.replay_seconds(base_hours=hours, pages=pool)["replay_seconds"], "s"
    )
    held = bench_tables.snapshot_holds_up(rows)
    say(f"a snapshot holds learning up for {held['snapshot_holds_up_ms']:.0f} ms at most")
    for name, value in held.items():
        yield figure(name, value, "ms")
    for name, value in bench_tables.memory(rows).items():
        yield figure(name, value, "s" if name.endswith("seconds") else "bytes/byte")
    started = restart.scorer_restart(rows, items, starts, say)
    for name in ("scorer_restart_seconds", "scorer_restart_without_index_seconds"):
        yield figure(name, started[name], "s")
