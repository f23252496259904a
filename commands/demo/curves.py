# core
"""What became of a run over its time, drawn: memory of every process, click to served weights, throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from commands.loop.series import PROCESSES

Column = Sequence[float | None]

_GIB = float(1 << 30)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draws the series of a demo's report into the picture ``path`` (PNG)."""
    page: Mapping[str, Column] = report["page"]
    minute = [(at - report["began_wall_ms"]) / 60_000 for at in page["wall_ms"] if at is not None]
    figure = Figure(figsize=(10, 9), layout="constrained")
    FigureCanvasAgg(figure)
    memory, served, rate = figure.subplots(3, 1, sharex=True)
    held = [(name, page[f"memory_{name}"]) for name in PROCESSES if any(page[f"memory_{name}"])]
    for name, column in held:
        memory.plot(minute, _scaled(column, _GIB), linewidth=1.2, label=name)
    memory.plot(minute, _scaled(page["memory_total"], _GIB), color="black", linewidth=1.8, label="all together")
    memory.set_ylabel("resident memory, GiB")
    for name, label in (("click_to_served_p50_ms", "p50"), ("click_to_served_p99_ms", "p99")):
        served.plot(minute, _scaled(page[name], 1000.0), linewidth=1.4, label=label)
    served.set_ylabel("click to served weights, s")
    for name, label in (("exposures_per_s", "exposures"), ("trained_per_s", "samples learnt from")):
        rate.plot(minute, _scaled(page[name], 1.0), linewidth=1.0, label=label)
    rate.set_ylabel("a second")
    rate.set_xlabel("minutes since the shop opened")
    for axes in (memory, served, rate):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)


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
