# core
"""What became of a run over its time, drawn: memory of every process, click to served weights, throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from millrace.commands.loop.series import PROCESSES
from millrace.reports import grid, line

Column = Sequence[float | None]

_GIB = float(1 << 30)


def draw(report: Mapping[str, Any], path: Path) -> None:
    page: Mapping[str, Column] = report["page"]
    minute = [(at - report["began_wall_ms"]) / 60_000 for at in page["wall_ms"] if at is not None]
    figure, ((memory,), (served,), (rate,)) = grid(3, 1, (10, 9))
    held = [name for name in PROCESSES if any(page[f"memory_{name}"])]
    for i, name in enumerate(held):
        line(memory, i, minute, _scaled(page[f"memory_{name}"], _GIB), name, marker="")
    memory.plot(minute, _scaled(page["memory_total"], _GIB), color="black", lw=1.8, label="all together")
    memory.set_ylabel("resident memory, GiB")
    for i, (name, label) in enumerate((("click_to_served_p50_ms", "p50"), ("click_to_served_p99_ms", "p99"))):
        line(served, i, minute, _scaled(page[name], 1000.0), label, marker="")
    served.set_ylabel("click to served weights, s")
    for i, (name, label) in enumerate((("exposures_per_s", "exposures"), ("trained_per_s", "samples learnt from"))):
        line(rate, i, minute, _scaled(page[name], 1.0), label, marker="")
    rate.set_ylabel("a second")
    rate.set_xlabel("minutes since the shop opened")
    for axes in (memory, served, rate):
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path)


def _scaled(column: Column, by: float) -> list[float]:
    return [float("nan") if value is None else value / by for value in column]


def thirds(report: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """Medians of a column of the series in the first and in the last third of the traffic; None: nothing measured."""
    page: Mapping[str, Column] = report["page"]
    began, ended = report["began_wall_ms"], report["ended_wall_ms"]
    third = (ended - began) / 3

    def median(low: float, high: float) -> float | None:
        pairs = zip(page["wall_ms"], page[name], strict=True)
        found = sorted(v for at, v in pairs if at is not None and v is not None and low <= at <= high)
        return found[len(found) // 2] if found else None

    return median(began, began + third), median(ended - third, ended)
