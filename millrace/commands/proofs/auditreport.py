# core
"""What a leak audit says: its verdict, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import LeakError
from millrace.commands.proofs.leak_audit import LABEL, Audit, Leak
from millrace.contracts.samples import KIND_NAMES
from millrace.reports import MAIN, QUIET, SECOND, Plot, canvas, lines_canvas, say, show

_BARS = 120
_NAMED = 20  # leaks that are drawn


def time_text(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat(timespec="milliseconds")


def verdict_of(found: Audit) -> str:
    n, labels = len(found.cuts), sum(cut["labels"] for cut in found.cuts)
    times = f"{n} random time{'s' if n > 1 else ''}"
    if found.leaks:
        first = found.leaks[0]
        more = f" and {len(found.leaks) - 1} more" if len(found.leaks) > 1 else ""
        said = f"Leak: '{first.name}'{more} changed when everything after {times} was altered."
    else:
        most = max(cut["exposures"] for cut in found.cuts)
        whose = f"up to {most:,} of {found.rows:,} exposures"
        said = f"No leak: nothing that was known at {times} depends on what comes after ({whose} compared each)."
    return said if labels else f"{said} No label was known before {'them' if n > 1 else 'it'}, so none was compared."


def report_of(found: Audit) -> dict[str, Any]:
    times = [
        {"altered_after": time_text(c["cut_ms"])} | {k: v for k, v in c.items() if k != "cut_ms"} for c in found.cuts
    ]
    return {
        "verdict": verdict_of(found),
        "rows": found.rows,
        "compared": times,
        "leaks": [_row(k) for k in found.leaks],
    }


def plots_of(found: Audit, ts_ms: NDArray[np.int64]) -> list[Plot]:
    """``ts_ms``: times of the log's exposures, ascending."""
    return [*([_leaks_plot(found)] if found.leaks else []), _times_plot(found, ts_ms)]


def print_report(report: Mapping[str, Any]) -> None:
    show("compared", report["compared"])
    if report["leaks"]:
        show("what differs", report["leaks"])
    say(report["verdict"])


def error_of(found: Audit) -> LeakError | None:
    if not found.leaks:
        return None
    first = found.leaks[0]
    names = ", ".join(f"'{leak.name}' ({leak.count:,})" for leak in found.leaks[:8])
    return LeakError(
        f"{len(found.leaks)} names differ before a cut: {names}; '{first.name}' first in row {first.row} at "
        f"{time_text(first.ts_ms)}: {first.value} became {first.altered} when all after {time_text(first.cut_ms)} "
        "changed",
        "they use what is not known yet at that time; docs/how-to/trust-a-replay.md says what each name means",
    )


def _row(leak: Leak) -> dict[str, Any]:
    values = {"as_it_is": _value(leak, leak.value), "with_another_future": _value(leak, leak.altered)}
    return {"name": leak.name, "differing": leak.count, "first_row": leak.row, "time": time_text(leak.ts_ms)} | values


def _value(leak: Leak, value: Any) -> str:
    """A value as text; of a label, the samples that are learnt before the time."""
    if leak.name != LABEL:
        return str(value)
    return (
        ", ".join(f"{KIND_NAMES[kind]}, known {time_text(known_ms)[11:23]}" for kind, known_ms in value) or "no label"
    )


def _leaks_plot(found: Audit) -> Plot:
    shown = found.leaks[:_NAMED]
    figure, axes = lines_canvas([leak.name for leak in shown])
    axes.barh(range(len(shown)), [leak.count for leak in shown], color=SECOND, height=0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("differing values, all times together")
    left = f" The first {_NAMED} of {len(found.leaks)}." if len(found.leaks) > _NAMED else ""
    caption = "What changed though it was known already. Of a feature, the first rows that differ are counted."
    return Plot("leaks", caption + left, figure)


def _times_plot(found: Audit, ts_ms: NDArray[np.int64]) -> Plot:
    figure, axes = canvas()
    counts, edges = np.histogram(ts_ms, _BARS)
    at = [np.datetime64(int(edge), "ms") for edge in edges]
    axes.stairs(counts, at, fill=True, color=QUIET, alpha=0.5)
    top = 1.1 * max(1, int(counts.max()))
    axes.set_ylim(0, top)
    for number, cut in enumerate(found.cuts):
        label = "altered after" if not number else None
        axes.axvline(np.datetime64(cut["cut_ms"], "ms"), color=MAIN, lw=1.2, label=label)
    first = [np.datetime64(leak.ts_ms, "ms") for leak in found.leaks]
    if first:
        axes.plot(first, [0.96 * top] * len(first), "v", color=SECOND, ms=6, label="first difference of a name")
    axes.set_ylabel("exposures")
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axes.tick_params(axis="x", labelsize=8)
    return Plot("times", "The log's exposures by time (UTC), and the times after which everything was altered.", figure)
