# shell
"""``millrace dev bench NAME --out DIR``: runs a benchmark and writes what it measured.

``report.json`` is a list of ``{name, value, unit, against, ratio}``, some with ``ratio_low``. A ratio compares two
things measured in the same process tree, alternating, so that it survives a noisy machine; ``against`` names what the
value was divided by, ``ratio_low`` is the lower end of the ratio's 95% interval.
What identifies the run (host, versions, times) goes to ``run.json`` beside it.
"""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path

from benchmarks.tools.bench_figures import Figure, Say
from millrace.basics.errors import SettingError
from millrace.reports import surroundings

BENCHMARKS = (
    "capacity",
    "content",
    "intake",
    "judge",
    "learner",
    "peers",
    "recall",
    "replay",
    "safety",
    "scorer",
    "stores",
    "stream",
    "up",
)
"""Modules of this folder. Each has a ``run`` from a folder, ``say`` and a ``Size`` to figures, and a size ``SHORT``."""


def bench(name: str, out: Path, short: bool = False, say: Say = print) -> list[Figure]:
    """Runs the benchmark ``name``, writes ``out/report.json`` and ``out/run.json``, and returns the figures. Each is
    written as soon as it was measured; ``run.json`` follows when none has failed.

    With ``short`` it is small and soon over: that shows that it runs, and its figures say nothing. Raises SettingError:
    there is no such benchmark; BenchError: it cannot run here.
    """
    if name not in BENCHMARKS:
        raise SettingError(f"there is no benchmark '{name}'", f"choose one of {', '.join(BENCHMARKS)}")
    module = importlib.import_module(f"{__package__}.{name}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.json").unlink(missing_ok=True)
    started = time.time()
    figures: list[Figure] = []
    for found in module.run(out, say, module.SHORT if short else module.Size()):
        figures.append(found)
        _write(out / "report.json", figures)
    run = {"benchmark": name, "short": short, "seconds": round(time.time() - started, 1), **surroundings()}
    _write(out / "run.json", run)
    return figures


def table(figures: list[Figure]) -> str:
    """The figures as lines to read."""
    lines = []
    for f in figures:
        ratio = "" if f["ratio"] is None else f"   {f['ratio']:.2f} x {f['against']}"
        low = f" (at least {f['ratio_low']:.2f})" if "ratio_low" in f else ""
        lines.append(f"{f['name']:<22} {f['value']:>14,.4g} {f['unit']}{ratio}{low}")
    return "\n".join(lines)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
