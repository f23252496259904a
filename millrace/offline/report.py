# core
"""Reports for people: one self-contained HTML page, and its plots as PNG files, beside the JSON."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from millrace.contracts.errors import SettingError

_INK, _QUIET, _MAIN, _SECOND = "#20303c", "#8a97a0", "#1f6f8b", "#d08c3e"

_MARKS = "osD^v<>"

LINEAR = 0.01
"""Differences up to this are drawn on a linear axis in :func:`blocks_plot`."""

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #20303c; background: #f7f8f8; margin: 0 }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.6rem; margin: 0 0 .25rem } h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem }
.lead { color: #5b6b76; margin: 0 0 1.5rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; background: #fff; font-variant-numeric: tabular-nums }
th, td { padding: .45rem .75rem; text-align: right; border-bottom: 1px solid #e4e8ea; white-space: nowrap }
th { font-weight: 600; color: #5b6b76; font-size: .85rem } th:first-child, td:first-child { text-align: left }
tr:last-child td { border-bottom: 0 } tr.total td { font-weight: 600 }
figure { margin: 0 0 1.5rem } img { max-width: 100%; height: auto; background: #fff; display: block }
figcaption { color: #5b6b76; font-size: .9rem; margin-top: .35rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; font-size: .9rem }
dt { color: #5b6b76 } dd { margin: 0; overflow-wrap: anywhere }
"""


@dataclass(frozen=True, slots=True)
class Plot:
    """``name`` gives the file ``name.png``; the caption says what the plot shows."""

    name: str
    caption: str
    figure: Figure


def make_folder(out: Path, first: str) -> None:
    """Makes the folder of a report, and in it the empty file ``first``: to find out before anything long begins.

    Raises:
        SettingError: it cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / first).touch()
    except OSError as error:
        raise SettingError(f"folder '{out}' cannot be written ({error.strerror})", "name another with --out") from None


def surroundings() -> dict[str, Any]:
    """What run.json says of the machine and the libraries."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("millrace", "numpy", "torch")},
    }


def write_all(out: Path, report: Mapping[str, Any], run: Mapping[str, Any], plots: Sequence[Plot], title: str) -> None:
    """Writes report.json, run.json, report.html and the plots. ``curves`` of a report are for its plots alone."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    write_report(out, {k: v for k, v in report.items() if k != "curves"}, run, plots, title)


def write_report(
    out: Path, report: Mapping[str, Any], run: Mapping[str, Any], plots: Sequence[Plot], title: str = "Report"
) -> None:
    """Writes ``report.html`` and each plot's PNG to the folder ``out``.

    Args:
        report: a list of dictionaries with the same keys becomes a table (a dictionary ``total`` beside ``days`` is its
            last row; ``x_ci`` beside ``x`` is half of its interval). Plain values form the line under the title.
        run: values that differ from run to run; listed at the end.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(_lead(report))}</p>']
    for name, value in report.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            total = report.get("total") if name == "days" else None
            parts.append(_table(name, value, total if isinstance(total, Mapping) else None))
    if plots:
        parts.append("<h2>Plots</h2>")
    for plot in plots:
        png = _png(plot.figure)
        (out / f"{plot.name}.png").write_bytes(png)
        image = base64.b64encode(png).decode()
        caption = html.escape(plot.caption)
        picture = f'<img alt="{caption}" src="data:image/png;base64,{image}">'
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    parts.append(f"<h2>This run</h2>{_facts(run)}")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def day_plot(days: Sequence[Mapping[str, Any]]) -> Plot:
    """AUC and grouped AUC of each day."""
    figure, axes = _figure()
    labels = [d["day"] for d in days]
    for key, colour, name in (("auc", _MAIN, "AUC"), ("grouped_auc", _SECOND, "grouped AUC")):
        values = [np.nan if d[key] is None else d[key] for d in days]
        axes.plot(range(len(days)), values, marker="o", color=colour, label=name)
    axes.axhline(0.5, color=_QUIET, lw=0.8, ls=":")
    step = max(1, len(days) // 10)
    axes.set_xticks(range(0, len(days), step), labels[::step])
    axes.set_ylabel("AUC")
    axes.legend(frameon=False)
    return Plot("auc", "AUC of each day, every exposure scored before its label was learnt. Dotted: chance.", figure)


def calibration_plot(p: NDArray[np.float32], y: NDArray[Any], bins: int = 20) -> Plot:
    """Observed share of positives against predicted probability, in bins of equally many exposures."""
    figure, axes = _figure()
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    predicted = [float(p[part].mean()) for part in parts]
    observed = [float(y[part].mean()) for part in parts]
    top = 1.05 * max([*predicted, *observed, 1e-3])
    axes.plot([0, top], [0, top], color=_QUIET, lw=0.8, ls=":")
    axes.plot(predicted, observed, marker="o", color=_MAIN)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("predicted")
    axes.set_ylabel("observed")
    caption = f"Calibration: {len(parts)} bins of equally many exposures. Dotted: predicted as observed."
    return Plot("calibration", caption, figure)


def interval_plot(name: str, caption: str, rows: Sequence[Mapping[str, Any]], measure: str) -> Plot:
    """Means and 95% intervals of ``measure``, one line a row; rows of the same ``inputs`` share a colour."""
    figure, axes = _figure()
    figure.set_size_inches(8, 1.2 + 0.26 * len(rows))
    colours = dict(zip(dict.fromkeys(r["inputs"] for r in rows), (_MAIN, _SECOND), strict=False))
    for i, row in enumerate(rows):
        half = row[f"{measure}_ci"]
        axes.errorbar(row[measure], i, xerr=half, fmt="o", ms=4, color=colours[row["inputs"]], capsize=2)
    axes.set_yticks(range(len(rows)), [f"{r.get('way') or r['model']} ({r['inputs']})" for r in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e4e8ea", lw=0.8)
    axes.set_xlabel(_words(measure))
    return Plot(name, caption, figure)


def days_plot(name: str, caption: str, rows: Sequence[Mapping[str, Any]]) -> Plot:
    """AUC by day, and below it the AUC less that of "frozen". Each way is a line with its 95% intervals. Each model and
    kind of input has a column of panels.

    ``rows``: model, inputs, way, day, auc, auc_over_frozen, both with _ci, and oracle_auc (None: not known; otherwise a
    cross a day). A way is left out of the lower panels if it is further below frozen than any way is above it.
    """
    kinds = list(dict.fromkeys((r["model"], r["inputs"]) for r in rows))
    ways = list(dict.fromkeys(r["way"] for r in rows))
    days = list(dict.fromkeys(r["day"] for r in rows))
    figure = Figure(figsize=(max(5, 4 * len(kinds)), 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(kinds), squeeze=False, sharex=True, sharey="row")
    measures = ("auc", "auc_over_frozen")
    for (upper, lower), (model, inputs) in zip(panels.T, kinds, strict=True):
        upper.set_title(f"{model}, {inputs} inputs", fontsize=10)
        for axes, measure in ((upper, measures[0]), (lower, measures[1])):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e4e8ea", lw=0.8)
            axes.set_axisbelow(True)
            for i, way in enumerate(ways):
                own = [r for r in rows if (r["model"], r["inputs"], r["way"]) == (model, inputs, way)]
                aside = 0.06 * (i - (len(ways) - 1) / 2)  # so that intervals do not cover each other
                at = [days.index(r["day"]) + aside for r in own]
                line = {"marker": _MARKS[i % len(_MARKS)], "ms": 4, "lw": 1.2, "capsize": 2}
                axes.errorbar(at, [r[measure] for r in own], [r[f"{measure}_ci"] for r in own], label=way, **line)
        oracle = {r["day"]: r["oracle_auc"] for r in rows if r["oracle_auc"] is not None}
        if oracle:
            upper.plot([days.index(d) for d in oracle], list(oracle.values()), "x", color=_QUIET, label="oracle")
        lower.set_xticks(range(len(days)), days, fontsize=8)
        lower.set_xlim(-0.4, len(days) - 0.6)
    spans = [(r[measures[1]] - r[f"{measures[1]}_ci"], r[measures[1]] + r[f"{measures[1]}_ci"]) for r in rows]
    top = max(high for _, high in spans)
    bottom = min(low for low, _ in spans if low >= -top)
    panels[1, 0].set_ylim(bottom - 0.05 * (top - bottom) - 1e-4, top + 0.05 * (top - bottom) + 1e-4)
    panels[0, 0].set_ylabel("AUC")
    panels[1, 0].set_ylabel("AUC over frozen")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return Plot(name, caption, figure)


def dots_plot(name: str, caption: str, values: Mapping[str, Sequence[float]], measure: str) -> Plot:
    """A line for each key, a dot for each of its values (not negative). The axis is linear to 1, then logarithmic."""
    figure, axes = _figure()
    figure.set_size_inches(8, 1.2 + 0.4 * len(values))
    for i, own in enumerate(values.values()):
        axes.plot(own, [i] * len(own), "o", ms=5, alpha=0.6, color=_MAIN)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.1)
    axes.grid(axis="x", color="#e4e8ea", lw=0.8)
    axes.set_xlabel(measure)
    return Plot(name, caption, figure)


def curves_plot(name: str, caption: str, curves: Sequence[Mapping[str, Any]]) -> Plot:
    """Loss curves, one panel for each kind of input. ``curves``: model, inputs, losses."""
    kinds = list(dict.fromkeys(c["inputs"] for c in curves))
    figure = Figure(figsize=(8, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{kind} inputs", fontsize=10)
        axes.grid(axis="y", color="#e4e8ea", lw=0.8)
        for curve in (c for c in curves if c["inputs"] == kind):
            at = np.linspace(0, 100, len(curve["losses"]))
            axes.plot(at, curve["losses"], lw=1.2, label=curve["model"])
        axes.set_xlabel("% of the training data")
    lowest = min(min(c["losses"]) for c in curves)
    panels[0].set_ylim(lowest * 0.9, lowest * 2.2)
    panels[0].set_ylabel("log loss")
    panels[-1].legend(frameon=False, fontsize=8, ncols=2)
    return Plot(name, caption, figure)


def blocks_plot(name: str, caption: str, rows: Sequence[Mapping[str, Any]]) -> Plot:
    """Curves of policies, a panel for each rate (down) and start (across). ``rows``: policy, rate, start, curve. The
    axis is linear to :data:`LINEAR`, then logarithmic."""
    rates = list(dict.fromkeys(r["rate"] for r in rows))
    starts = list(dict.fromkeys(r["start"] for r in rows))
    policies = list(dict.fromkeys(r["policy"] for r in rows))
    figure = Figure(figsize=(5 * len(starts), 1 + 2.4 * len(rates)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rates), len(starts), squeeze=False, sharex=True, sharey="row")
    for line, rate in zip(panels, rates, strict=True):
        for axes, start in zip(line, starts, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e4e8ea", lw=0.8)
            axes.set_title(f"{rate}, {start}", fontsize=10)
            for row in (r for r in rows if (r["rate"], r["start"]) == (rate, start)):
                i = policies.index(row["policy"])
                at = (np.arange(len(row["curve"])) + 0.5) * 100 / len(row["curve"])
                axes.plot(
                    at, row["curve"], marker=_MARKS[i % len(_MARKS)], ms=3, lw=1.1, color=f"C{i}", label=row["policy"]
                )
            axes.set_yscale("symlog", linthresh=LINEAR)
            axes.axhline(0, color=_QUIET, lw=0.8, ls=":")
        line[0].set_ylabel("log loss over bound")
    for axes in panels[-1]:
        axes.set_xlabel("% of the rows")
    labels = {label: h for axes in panels.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return Plot(name, caption, figure)


def hours_plot(name: str, caption: str, rows: Sequence[Mapping[str, Any]], measure: str) -> Plot:
    """Curves over the hours of a day, a panel for each start. ``rows``: start, arm, curve (24 values; None: nothing was
    seen in that hour)."""
    starts, arms = (list(dict.fromkeys(r[key] for r in rows)) for key in ("start", "arm"))
    figure = Figure(figsize=(5 * len(starts), 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(starts), squeeze=False, sharex=True, sharey=True)[0]
    for axes, start in zip(panels, starts, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e8ea", lw=0.8)
        axes.set_title(f"start with {start}", fontsize=10)
        for row in (r for r in rows if r["start"] == start):
            i, curve = arms.index(row["arm"]), np.array(row["curve"], np.float64)
            line = {"marker": _MARKS[i % len(_MARKS)], "ms": 3, "lw": 1.1, "color": f"C{i}"}
            axes.plot(np.arange(len(curve)) + 0.5, curve, label=row["arm"], **line)
        axes.set_xlabel("hour of the day")
        axes.set_xticks(range(0, 25, 6))
    panels[0].set_ylabel(measure)
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return Plot(name, caption, figure)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(8, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    axes.grid(axis="y", color="#e4e8ea", lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "millrace"})
    return buffer.getvalue()


def _lead(report: Mapping[str, Any]) -> str:
    plain = [(k, v) for k, v in report.items() if isinstance(v, str | int | float)]
    return " · ".join(f"{_cell(v)} {_words(k)}" for k, v in plain)


def _table(name: str, rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any] | None = None) -> str:
    columns = [c for c in rows[0] if not (c.endswith("_ci") and c.removesuffix("_ci") in rows[0])]
    head = "".join(f"<th>{html.escape(_words(c))}</th>" for c in columns)
    lines = [("<tr>", row) for row in rows]
    if total is not None:
        lines.append(('<tr class="total">', {columns[0]: "all days"} | dict(total)))
    body = "".join(
        start + "".join(f"<td>{html.escape(_figure_of(row, c))}</td>" for c in columns) + "</tr>"
        for start, row in lines
    )
    title = html.escape(_words(name).capitalize())
    return (
        f'<h2>{title}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure_of(row: Mapping[str, Any], column: str) -> str:
    """A cell's value, and half its 95% interval where the row has one (``column_ci``)."""
    half = row.get(f"{column}_ci")
    return _cell(row.get(column)) + ("" if half is None else f" ± {_cell(half)}")


def _facts(run: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{k} {text(v)}" for k, v in value.items())
        if isinstance(value, list | tuple):
            return ", ".join(text(v) for v in value) or "–"
        return str(value)

    items = "".join(f"<dt>{html.escape(_words(k))}</dt><dd>{html.escape(text(v))}</dd>" for k, v in run.items())
    return f"<dl>{items}</dl>"


def _words(name: str) -> str:
    return re.sub(r"\bauc\b", "AUC", name.replace("_", " "))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
