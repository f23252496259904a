# shell
"""What carries the loop over restarts: bytes, seconds, memory.

- Tables of five million rows, snapshots beside learning, memory, loading: :mod:`~benchmarks.parts.bench_tables`.
- A scorer from the start of its process (``millrace run serve``) to the first ``/readyz`` of status 200::

    store     a snapshot of 5,000,000 rows in parts                            (benchmarks/tools/modelwire.py)
              the item index: 100,000 items and their window keys              written by the first scorer
    broker    items          the catalogue
              features.items counts, then those of 1,000 keys a second for a minute
              model.deltas   one delta a second for a minute, behind the snapshot

  The first scorer has no index in the store, and reads the catalogue and all counts. It writes the index and ends. What
  came "since then" is put on the topics, and scorers are started one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.parts import bench_tables
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.modelwire import made_loop
from millrace.basics.store import Store

SINCE, ROWS_SINCE = 60, 2000


class Size(NamedTuple):
    """How much is measured."""

    rows: int = 5_000_000
    items: int = 100_000
    users: int = 1000
    starts: int = 5
    snapshot_s: float = 20.0


SHORT = Size(20_000, 50, 30, 1, 1.0)


def run(out: Path, say: Say, size: Size | None = None) -> Iterator[Figure]:
    """All figures, each part's when it is done."""
    size = size or Size()
    yield figure("snapshot_holds_up_ms", bench_tables.snapshot_holds_up(size.rows, size.snapshot_s), "ms")
    for name, value in bench_tables.memory(size.rows).items():
        yield figure(name, value, "s" if name.endswith("seconds") else "bytes/byte")
    yield from scorer_restart(out, size, say)


def scorer_restart(out: Path, size: Size, say: Say) -> list[Figure]:
    """Seconds from the start of the process to ready: the median of some, and the first scorer's, without an index in
    the store. Raises ServiceError where a scorer ended, or was not ready within ten minutes."""
    with made_loop(out, size.items, size.users, size.rows, ROWS_SINCE, say) as made:
        settings = made.settings
        index = Store(settings.place("index"), writes=False)
        # The first writes the index as soon as it is ready; later ones find it young.
        first_settings = msgspec.structs.replace(settings, index_seconds=2.0)
        with RunningRole("serve", first_settings, settings.port, out, "/readyz") as scorer:
            first = scorer.start_seconds
            while not any(name.count("-") == 2 for name in index.names()):
                time.sleep(0.1)
        say(f"without an index in the store: ready after {first:.1f} s")
        for _ in range(SINCE):
            made.shop.publish_changes()
            made.model.delta()
        made.producer.flush()
        ready = []
        for n in range(size.starts):
            with RunningRole("serve", settings, settings.port, out, "/readyz") as scorer:
                ready.append(scorer.start_seconds)
            say(f"start {n + 1}: ready after {ready[-1]:.2f} s")
        return [
            figure("scorer_restart_seconds", sorted(ready)[len(ready) // 2], "s"),
            figure("scorer_restart_without_index_seconds", first, "s"),
        ]
