# shell
"""Hours of a small shop at real speed, then of a demo with ten times the shoppers: what grows, drifts, is refused?

::

    millrace up, two pages a second   ──┐ every 15 s: memory, figures, bytes of folders and topics ──► looks.jsonl
    millrace demo, 40,000 shoppers    ──┘ at the end: who was sent, and who was taken in             ──► report

The first half hour of each does not count: kernels are compiled, tables filled, versions kept for an hour begin. What a
process grows by is a line through the means of ten stretches of the rest, with its 95% interval, in % a day.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.tools.bench_figures import Say
from benchmarks.tools.taken import folder_bytes, topic_bytes
from benchmarks.up import Size, begun, small_shop
from experiments.runs import BenchError
from millrace.commands.loop.monitor import fetch
from millrace.contracts.settings import Settings
from millrace.processes.services import free_port
from millrace.processes.spawn import LOG_BYTES, spawn, stop
from millrace.reports import MAIN, QUIET, SECOND, Plot, grid, write_all
from millrace.reports.plots import legend_below, line

LOOK_SECONDS, WARM_SECONDS = 15.0, 1800.0
STRETCHES, T_95 = 10, 2.306  # Student's t of ten stretches less the two numbers of a line
MORE = 10
"""Times the default shoppers of a demo."""
GROWTH = 2.0
"""% of its memory that a process may grow by in a day."""
WORSE: dict[str, Callable[[float, float], bool]] = {
    "auc": lambda first, last: first - last > 0.01,
    "calibration": lambda first, last: abs(last - 1) - abs(first - 1) > 0.05,
    "click_to_served_p50_ms": lambda first, last: last > 1.25 * first,
}
"""When a figure of the last third is worse than that of the first."""
DRAIN_SECONDS = 900.0
MIB, DAY_S, HOUR_S = 2**20, 86_400.0, 3600.0

Row = dict[str, Any]


class Look(NamedTuple):
    """A loop at one moment."""

    second: float
    phase: str
    memory: Mapping[str, float]  # bytes by process
    figures: Mapping[str, float | None]
    bytes: Mapping[str, int]  # by folder of the loop, and by topic
    refused: float


class Watch(threading.Thread):
    """Looks at a loop by its live page until it is told to end."""

    def __init__(self, loop: str, page: str, data: Path, kept: Path, say: Say) -> None:
        super().__init__(daemon=True)
        self.loop, self.looks = loop, list[Look]()
        self._page, self._data, self._kept, self._say = page, data, kept, say
        self._began, self._ending = time.monotonic(), threading.Event()

    def look(self) -> Look | None:
        """None: the page does not answer just now."""
        with suppress(OSError, ValueError):
            state = json.loads(fetch(f"{self._page}state.json", 10.0))
            figures = state["figures"]
            memory = {n.removeprefix("memory_"): v for n, v in figures.items() if n.startswith("memory_") and v}
            places = {path.name: folder_bytes(path) for path in self._data.iterdir() if path.is_dir()}
            places |= {f"topic {name}": size for name, size in topic_bytes(self._data / "broker").items()}
            refused = sum(check.get("refused", 0) for check in state["gate"]["verdicts"])
            return Look(time.monotonic() - self._began, state["phase"], memory, figures, places, refused)
        return None

    def run(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            if (look := self.look()) is not None:
                self.looks.append(look)
                with self._kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"loop": self.loop, **look._asdict()}) + "\n")
                if len(self.looks) % 20 == 0:
                    mib, auc = look.memory.get("total", 0) / MIB, look.figures.get("auc") or np.nan
                    self._say(f"{self.loop}, {look.second / 60:.0f} min: {mib:.0f} MiB, AUC {auc:.4f}")

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join()


def soak(out: Path, *, hours: float = 2.0, seed: int = 7) -> Row:
    """Run a small shop at real speed, then a demo with ten times the shoppers, and see what grows, drifts, is refused.

    Args:
        out: folder for the report, and for both loops.
        hours: of both together.
        seed: of both. Raises BenchError where nothing would be left after the first half hour of each.
    """
    seconds = hours * HOUR_S / 2
    if seconds <= 1.2 * WARM_SECONDS:
        raise BenchError(f"of {hours:g} hours each loop has half, and its first half hour does not count", "give 2")
    out = out.absolute()
    if (out / "looks.jsonl").exists():
        raise BenchError(f"folder '{out}' has a soak already", "name another with --out")
    out.mkdir(parents=True, exist_ok=True)
    watched, closed = list[Watch](), Row()
    for loop, run in {"shop": _shop, "demo": _demo}.items():
        watch, closed[loop] = run(out, seconds, seed)
        watched.append(watch)
    report = report_of({watch.loop: watch.looks for watch in watched}, closed, WARM_SECONDS)
    plots = [_plot(watch.loop, watch.looks) for watch in watched]
    write_all(out, report, {"hours": hours, "seed": seed}, plots, "A soak")
    return report


def _shop(out: Path, seconds: float, seed: int) -> tuple[Watch, bool]:
    """What was seen of the small shop, and whether each exposure was taken in and has its label."""
    with begun(out / "shop") as loop:
        with Watch("shop", loop.where()["page"], loop.data, out / "looks.jsonl", print) as watch:
            shown = asyncio.run(small_shop(loop, Size(small_seconds=seconds, rest_seconds=10.0), seed, print))[1]
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            last = watch.look()
            if last is not None and last.figures["taken_in"] == shown and not last.figures["pending"]:
                return watch, sum(last.figures[kind] or 0 for kind in ("positives", "negatives")) == shown
            time.sleep(1.0)
    return watch, False


def _demo(out: Path, seconds: float, seed: int) -> tuple[Watch, bool]:
    """What was seen of the demo, and whether it accounts for each exposure."""
    port, said = free_port(), out / "demo.json"
    said.unlink(missing_ok=True)
    flags = {
        "seconds": seconds,
        "seed": seed,
        "users": MORE * Settings().shoppers,
        "page-port": port,
        "data": out / "demo",
        "report": said,
    }
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    child = spawn([sys.executable, "-m", "millrace", "demo", *given], own, out / "demo.out")
    try:
        with Watch("demo", f"http://127.0.0.1:{port}/", out / "demo", out / "looks.jsonl", print) as watch:
            child.wait()
    finally:
        stop(child, DRAIN_SECONDS)
    if not said.exists():
        raise BenchError("the demo ended without a report", f"see {out / 'demo.out'}")
    return watch, bool(json.loads(said.read_text())["conserved"])


def report_of(looks: Mapping[str, Sequence[Look]], closed: Mapping[str, bool], warm_seconds: float) -> Row:
    """The report. What does not hold is in its verdict."""
    late = {
        loop: [look for look in found if look.second >= warm_seconds and look.phase == "running"]
        for loop, found in looks.items()
    }
    for loop, found in late.items():
        if len(found) < 2 * STRETCHES:
            raise BenchError(f"{len(found)} looks at the {loop} after its first half hour", "give more hours")
    memory = [row for loop, found in late.items() for row in _memory(loop, found)]
    figures = [row for loop, found in late.items() for row in _figures(loop, found)]
    places = [row for loop, found in late.items() for row in _places(loop, found)]
    refused = {loop: found[-1].refused for loop, found in looks.items()}
    wrong = [f"{row['process']} of the {row['loop']} grows" for row in memory if not row["flat"]]
    wrong += [f"{row['figure']} of the {row['loop']} is worse, or not known" for row in figures if not row["flat"]]
    wrong += [f"{row['place']} of the {row['loop']} is beyond its bound" for row in places if not row["within"]]
    wrong += [f"the gate of the {loop} refused {n:.0f} times" for loop, n in refused.items() if n]
    wrong += [f"the books of the {loop} are not closed" for loop, whole in closed.items() if not whole]
    minutes = {loop: found[-1].second / 60 for loop, found in looks.items()}
    return {
        "verdict": f"{'; '.join(wrong) or 'All is flat, within its bounds, and the books are closed'}.",
        "loops": [
            {"loop": loop, "minutes": minutes[loop], "refusals": refused[loop], "books_closed": closed[loop]}
            for loop in looks
        ],
        "memory": memory,
        "figures": figures,
        "places": places,
    }


def _memory(loop: str, looks: Sequence[Look]) -> Iterator[Row]:
    seconds = np.array([look.second for look in looks])
    for process in _processes(looks):
        held = np.array([look.memory.get(process, np.nan) for look in looks]) / MIB
        slope, half = growth(seconds, held)
        of = DAY_S * 100 / float(np.nanmean(held))  # MiB a second as % a day
        yield {
            "loop": loop,
            "process": process,
            "mib": float(np.nanmean(held)),
            "percent_a_day": slope * of,
            "percent_a_day_ci": half * of,
            "flat": (slope - half) * of <= GROWTH,
        }


def _processes(looks: Sequence[Look]) -> list[str]:
    """Those that most looks have seen: by the last, some may have ended."""
    seen = Counter(process for look in looks for process in look.memory)
    return [process for process, times in seen.items() if 2 * times > len(looks)]


def growth(seconds: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """By how much values grow a second, and half of its 95% interval: a line through the means of stretches, since one
    look is much like the next. (n,), (n,); NaN among values: not known."""
    known = np.isfinite(values)
    at, mean = (np.array([part.mean() for part in np.array_split(of[known], STRETCHES)]) for of in (seconds, values))
    (slope, _), errors = np.polyfit(at - at.mean(), mean, 1, cov=True)
    return float(slope), T_95 * float(np.sqrt(errors[0, 0]))


def _figures(loop: str, looks: Sequence[Look]) -> Iterator[Row]:
    third = len(looks) // 3
    for name, worse in WORSE.items():
        first, last = (
            np.array([value for look in part if (value := look.figures.get(name)) is not None])
            for part in (looks[:third], looks[-third:])
        )
        if not (len(first) and len(last)):
            yield {"loop": loop, "figure": name, "first": None, "last": None, "flat": False}
            continue
        began, ended = float(first.mean()), float(last.mean())
        yield {"loop": loop, "figure": name, "first": began, "last": ended, "flat": not worse(began, ended)}


def _places(loop: str, looks: Sequence[Look]) -> Iterator[Row]:
    """Folders and topics. Bounds are what is stated of them; archive and catalogue grow with what came."""
    first, last = looks[0], looks[-1]
    hours = (last.second - first.second) / HOUR_S
    logs = 2 * LOG_BYTES * len(last.memory)  # a log, and the moved part before it, a process
    bounds = {"broker": Settings().broker_gib * 2**30, "logs": logs}
    for place, held in sorted(last.bytes.items()):
        if not held:
            continue
        bound = bounds.get(place)
        yield {
            "loop": loop,
            "place": place,
            "mib": held / MIB,
            "mib_an_hour": (held - first.bytes.get(place, 0)) / MIB / hours,
            "bound_mib": None if bound is None else bound / MIB,
            "within": bound is None or held <= bound,
        }


def _plot(loop: str, looks: Sequence[Look]) -> Plot:
    """Memory and figures over time."""
    figure, panels = grid(3, 1, (8.0, 8.0))
    minutes = [look.second / 60 for look in looks]
    for number, process in enumerate(_processes(looks)):
        held = [value / MIB if (value := look.memory.get(process)) else None for look in looks]
        line(panels[0, 0], number, minutes, held, process, marker="")
    for axes, names in zip(panels[1:, 0], (("auc", "calibration"), ("click_to_served_p50_ms",)), strict=True):
        for name, colour in zip(names, (MAIN, SECOND), strict=False):
            axes.plot(minutes, [look.figures.get(name) or np.nan for look in looks], color=colour, label=name)
    for axes in panels[:, 0]:
        axes.axvline(WARM_SECONDS / 60, color=QUIET, lw=0.8, ls=":")
    panels[0, 0].set_ylabel("MiB")
    panels[2, 0].set_ylabel("ms")
    served = [value for look in looks if (value := look.figures.get("click_to_served_p50_ms"))]
    if served:  # the wait for the first labels would hide the rest
        panels[2, 0].set_ylim(0, 4 * float(np.median(served)))
    panels[2, 0].set_xlabel("minutes")
    legend_below(figure, panels)
    return Plot(
        loop, f"The {loop}: memory of each process, and figures. Dotted: what came before does not count.", figure
    )
