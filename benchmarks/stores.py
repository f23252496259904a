# shell
"""What carries the loop between processes: bytes, seconds, memory. Some fifteen minutes on two cores.

One module measures each part, and says how: :mod:`~benchmarks.checkpoints` (what a checkpoint writes, a settled
page), :mod:`~benchmarks.tables` (five million rows: snapshots beside learning, memory, loading),
:mod:`~benchmarks.restart` (a scorer from the start of its process to ready), :mod:`~benchmarks.deltabytes` and
:mod:`~benchmarks.wirebytes` (bytes on Kafka), :mod:`~benchmarks.broker` (whether the embedded broker ages). The
details of each go to ``details.json`` beside the report.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import broker, checkpoints, deltabytes, restart, tables, wirebytes
from benchmarks.runner import Figure, figure

Say = Callable[[str], None]
Figures = list[Figure]

LARGE_PAGE = 600


def run(out_dir: Path, progress: Say = print) -> Iterator[Figure]:
    """All figures, each part's when it is done. What a figure is held against, where nothing was measured beside it, is
    in docs/results.md."""
    details: dict[str, Any] = {}
    parts: list[tuple[str, Callable[[Say], tuple[Figures, Any]]]] = [
        ("checkpoints", _checkpoints),
        ("bytes on Kafka", _kafka),
        ("bytes of versions", _deltas),
        ("five million rows", _tables),
        ("a scorer that starts", _restart),
        ("the embedded broker", _broker),
    ]
    for number, (name, measure) in enumerate(parts, 1):
        progress(f"{number} of {len(parts)}: {name}")
        found, about = measure(progress)
        details[name] = about
        (out_dir / "details.json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
        yield from found


def _checkpoints(progress: Say) -> tuple[Figures, Any]:
    pool = checkpoints.pool(10)
    # Four pages a second in four partitions, at real speed; then pages as large as the limit, fewer of them.
    small = checkpoints.checkpoint_amplification(10, pages=pool)
    progress(f"pages of 10: {small['checkpoint_amplification']:.3f} bytes written a byte that came")
    large = checkpoints.checkpoint_amplification(LARGE_PAGE, pages_a_second=0.2, hours=1.0, warm_hours=1.0)
    progress(f"pages of {LARGE_PAGE}: {large['checkpoint_amplification']:.3f}")
    page = checkpoints.settled_page_bytes(10, pool_of=pool)
    replay = checkpoints.replay_seconds(10, pages=pool)
    figures = [
        figure("checkpoint_amplification", small["checkpoint_amplification"], "bytes/byte"),
        figure("checkpoint_amplification_zstd", small["against_zstd"], "bytes/byte"),
        figure("checkpoint_amplification_600", large["checkpoint_amplification"], "bytes/byte"),
        figure("checkpoint_bytes_a_second", small["bytes_a_second"] * 4, "bytes/s"),
        figure(
            "settled_page_bytes",
            page["memory"],
            "bytes",
            "with its impression in memory",
            page["memory"] / page["memory_before"],
        ),
        figure(
            "settled_page_bytes_written",
            page["checkpoint"],
            "bytes",
            "with its impression in memory",
            page["checkpoint"] / page["checkpoint_before"],
        ),
        figure("longest_replay_seconds", replay["replay_seconds"], "s"),
    ]
    return figures, {"pages of 10": small, f"pages of {LARGE_PAGE}": large, "a settled page": page, "replay": replay}


def _kafka(progress: Say) -> tuple[Figures, Any]:
    found = wirebytes.kafka_bytes()
    progress(f"{found['kafka_bytes_an_exposure']:.0f} bytes an exposure")
    return [
        figure(
            "kafka_bytes_an_exposure",
            found["kafka_bytes_an_exposure"],
            "bytes",
            "without zstd, numbers as often as they come",
            found["ratio"],
        )
    ], found


def _deltas(progress: Say) -> tuple[Figures, Any]:
    found = deltabytes.delta_bytes(say=progress)
    against = "all dense weights each second, without zstd"
    return [figure("delta_bytes_a_second", found["delta_bytes_a_second"], "bytes/s", against, found["ratio"])], found


def _tables(progress: Say) -> tuple[Figures, Any]:
    held = tables.snapshot_holds_up()
    progress(f"a snapshot holds learning up for {held['snapshot_holds_up_ms']:.0f} ms at most")
    memory = tables.memory()
    loading, others = tables.loading(), tables.single_calls()
    figures = [
        figure(name, held[name], "ms")
        for name in ("snapshot_holds_up_ms", "snapshot_holds_up_p99_ms", "snapshot_holds_up_cpu_ms")
    ]
    worst = max(memory["learner memory_ratio"], memory["scorer memory_ratio"])
    figures.append(figure("memory_ratio", worst, "bytes/byte", "the tables", worst))
    for name in ("loading", "a snapshot", "growth"):
        peak = max(v for n, v in memory.items() if n.endswith(f"peak of {name}"))
        label = f"memory_peak_{name.removeprefix('a ')}"
        figures.append(figure(label, peak, "bytes/byte", "the tables", peak))
    return figures, {"snapshot": held, "memory": memory, "loading": loading, "other calls": others}


def _restart(progress: Say) -> tuple[Figures, Any]:
    found = restart.scorer_restart(progress=progress)
    seconds, before = found["scorer_restart_seconds"], found["scorer_restart_without_index_seconds"]
    against = "without the item index in the store"
    return [figure("scorer_restart_seconds", seconds, "s", against, seconds / before)], found


def _broker(progress: Say) -> tuple[Figures, Any]:
    with tempfile.TemporaryDirectory(prefix="millrace-broker-") as folder:
        found = broker.embedded(Path(folder))
    young, old = found["ages"][0], found["ages"][-1]
    progress(f"a message there and back: {young['there_and_back_ms']} ms, then {old['there_and_back_ms']}")
    ratio = old["there_and_back_ms"] / young["there_and_back_ms"]
    return [
        figure("broker_trip_ms", old["there_and_back_ms"], "ms", "with an empty partition", ratio),
        figure("broker_resident_mib", old["resident_mib"], "MiB"),
        figure("broker_restart_seconds", found["restart_seconds"], "s"),
    ], found
