# core
"""The plots of reports. Each function makes a :class:`Plot` of a report's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from millrace.reports.names import name_of

_INK, QUIET, MAIN, SECOND = "#20303c", "#8a97a0", "#1f6f8b", "#d08c3e"
"""Colours: text, background lines, and the first two lines."""

_MARKS = "osD^v<>"


@dataclass(frozen=True, slots=True)
class Plot:
    """``name`` gives the file ``name.png``; the caption says what the plot shows."""

    name: str
    caption: str
    figure: Figure


def day_plot(days: Sequence[Mapping[str, Any]]) -> Plot:
    """AUC, AUC of a page and the baseline's of each day, where known."""
    figure, axes = canvas()
    labels = [d["day"] for d in days]
    for key, colour in (("auc", MAIN), ("page_auc", SECOND), ("baseline_auc", QUIET)):
        values = [np.nan if d.get(key) is None else d[key] for d in days]
        if not np.isfinite(values).any():
            continue
        axes.plot(range(len(days)), values, marker="o", color=colour, label=name_of(key))
    axes.axhline(0.5, color=QUIET, lw=0.8, ls=":")
    step = max(1, len(days) // 10)
    axes.set_xticks(range(0, len(days), step), labels[::step])
    axes.set_ylabel("AUC")
    if axes.get_lines()[1:]:  # besides that of chance
        axes.legend(frameon=False)
    return Plot("auc", "AUC of each day, every exposure scored before its label was learnt. Dotted: chance.", figure)


def calibration_plot(p: NDArray[np.float32], y: NDArray[Any]) -> Plot:
    """Observed share of positives against predicted probability, in bins of equally many exposures."""
    figure, axes = canvas()
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, 20) if len(part)]
    predicted = [float(p[part].mean()) for part in parts]
    observed = [float(y[part].mean()) for part in parts]
    top = 1.05 * max([*predicted, *observed, 1e-3])
    axes.plot([0, top], [0, top], color=QUIET, lw=0.8, ls=":")
    axes.plot(predicted, observed, marker="o", color=MAIN)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("predicted")
    axes.set_ylabel("observed")
    caption = f"Calibration: {len(parts)} bins of equally many exposures. Dotted: predicted as observed."
    return Plot("calibration", caption, figure)


def interval_plot(caption: str, rows: Sequence[Mapping[str, Any]]) -> Plot:
    """Means and 95% intervals of the AUC, one line a row; rows of the same ``inputs`` share a colour."""
    figure, axes = lines_canvas([f"{r.get('way') or r['model']} ({r['inputs']})" for r in rows])
    colours = dict(zip(dict.fromkeys(r["inputs"] for r in rows), (MAIN, SECOND, _INK), strict=False))
    for i, row in enumerate(rows):
        axes.errorbar(row["auc"], i, xerr=row["auc_ci"], fmt="o", ms=4, color=colours[row["inputs"]], capsize=2)
    axes.set_xlabel(name_of("auc"))
    return Plot("auc", caption, figure)


def days_plot(caption: str, rows: Sequence[Mapping[str, Any]]) -> Plot:
    """AUC by day, and below it the AUC less that of "frozen": a line with 95% intervals for each way, a column of
    panels for each model and kind of input.

    ``rows``: model, inputs, way, day, auc, auc_over_frozen, both with _ci, and oracle_auc (a cross a day; None:
    unknown). The lower panels leave out a way that is further below frozen than any way is above it.
    """
    kinds, ways, days = distinct(rows, "model", "inputs"), distinct(rows, "way"), distinct(rows, "day")
    figure, panels = grid(2, len(kinds), (max(5, 4 * len(kinds)), 6))
    for (upper, lower), (model, inputs) in zip(panels.T, kinds, strict=True):
        upper.set_title(f"{model}, {inputs} inputs", fontsize=10)
        for i, (way,) in enumerate(ways):
            own = [r for r in rows if (r["model"], r["inputs"], r["way"]) == (model, inputs, way)]
            aside = 0.06 * (i - (len(ways) - 1) / 2)  # so that intervals do not cover each other
            at = [days.index((r["day"],)) + aside for r in own]
            for axes, measure in ((upper, "auc"), (lower, "auc_over_frozen")):
                line(axes, i, at, [r[measure] for r in own], way, [r[f"{measure}_ci"] for r in own])
        oracle = {r["day"]: r["oracle_auc"] for r in rows if r["oracle_auc"] is not None}
        if oracle:
            upper.plot([days.index((d,)) for d in oracle], list(oracle.values()), "x", color=QUIET, label="oracle")
        lower.set_xticks(range(len(days)), [day for (day,) in days], fontsize=8)
        lower.set_xlim(-0.4, len(days) - 0.6)
    low, high = ([r["auc_over_frozen"] + sign * r["auc_over_frozen_ci"] for r in rows] for sign in (-1, 1))
    top = max(high)
    bottom = min(end for end in low if end >= -top)
    panels[1, 0].set_ylim(bottom - 0.05 * (top - bottom) - 1e-4, top + 0.05 * (top - bottom) + 1e-4)
    panels[0, 0].set_ylabel("AUC")
    panels[1, 0].set_ylabel("AUC over frozen")
    legend_below(figure, panels)
    return Plot("auc_by_day", caption, figure)


# -- the house style ---------------------------------------------------------------------------------------------


def grid(down: int, across: int, size: tuple[float, float]) -> tuple[Figure, NDArray[Any]]:
    """An empty figure in inches, and its panels (down, across) in the house style. Panels share the x axis, and those
    side by side the y axis."""
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels: NDArray[Any] = figure.subplots(down, across, squeeze=False, sharex=True, sharey="row")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK)
        axes.grid(axis="y", color="#e4e8ea", lw=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def canvas() -> tuple[Figure, Any]:
    figure, panels = grid(1, 1, (8, 3.6))
    return figure, panels[0, 0]


def lines_canvas(texts: Sequence[str]) -> tuple[Figure, Any]:
    """A figure with a line for each text, from above: :func:`canvas` for intervals or bars that lie side by side."""
    figure, axes = canvas()
    figure.set_size_inches(8, 1.2 + 0.26 * len(texts))
    axes.set_yticks(range(len(texts)), texts)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e4e8ea", lw=0.8)
    return figure, axes


def line(
    axes: Any,
    number: int,
    at: Any,
    values: Sequence[float | None],
    label: str,
    halves: Sequence[float] | None = None,
    marker: str | None = None,
) -> None:
    """Draws a line in the colour and with the marks of its ``number``; None among its values: unknown. ``halves`` are
    half intervals. ``marker`` replaces the number's own; "": none."""
    known = np.array(values, np.float64)
    style = {"color": f"C{number}", "marker": _MARKS[number % len(_MARKS)] if marker is None else marker}
    axes.errorbar(at, known, halves, **style, ms=4, lw=1.1, capsize=2, label=label)


def legend_below(figure: Figure, panels: NDArray[Any]) -> None:
    found = {label: h for axes in panels.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def distinct(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    """The distinct values of some keys, in order of appearance."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
