# core
"""Plots of a freshness report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from millrace.commands.freshness.freshnesswords import DAY_OLD, LIVE
from millrace.reports import MAIN, QUIET, SECOND, Plot, canvas, distinct, line


def staleness_plot(rows: Sequence[Mapping[str, Any]], base: str) -> Plot:
    """Gain in AUC against the staleness of models. ``rows``: model, features, staleness_minutes (None: left out),
    gain, gain_ci."""
    figure, axes = canvas()
    figure.set_size_inches(8, 4.2)
    for i, features in enumerate((LIVE, DAY_OLD)):
        own = sorted(
            (r for r in rows if r["features"] == features and r["staleness_minutes"] is not None),
            key=lambda r: float(r["staleness_minutes"]),
        )
        if not own:
            continue
        at = [max(float(r["staleness_minutes"]), 1 / 60) for r in own]
        gains = [r["gain"] for r in own]
        halves = [r["gain_ci"] or 0.0 for r in own]
        line(axes, i, at, gains, f"{features} features", halves, "o")
        below = features == DAY_OLD
        merged: dict[float, list[str]] = {}
        for row, x in zip(own, at, strict=True):
            merged.setdefault(x, []).append(str(row["sync"]))
        for x, names in merged.items():
            gain = gains[at.index(x)]
            axes.annotate(
                " = ".join(names), (x, gain), xytext=(4, -13 if below else 7), textcoords="offset points", fontsize=8
            )
    axes.axhline(0, color=QUIET, lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("age of what the model has learnt, when it scores: mean, minutes")
    axes.set_ylabel(f"AUC over {base}")
    axes.legend(frameon=False, fontsize=9)
    caption = (
        f"Gain in AUC over '{base}' on live features against staleness, with 95% intervals over users. To the left: "
        "fresher weights."
    )
    if any(r["features"] == DAY_OLD for r in rows):
        caption += " The whole step is from a nightly job (day-old features) to the leftmost model on live features."
    return Plot("staleness", caption, figure)


def gains_plot(name: str, what: str, rows: Sequence[Mapping[str, Any]], where: str) -> Plot:
    """Gains in AUC with their intervals over the values of a column (days or hours). Where the rows have it, also the
    whole gain of fresh weights and features together."""
    figure, axes = canvas()
    own = [r for r in rows if r["auc_gain"] is not None and r["auc_gain_ci"] is not None]
    at = np.arange(len(own))
    with_whole = any(r.get("whole_gain_ci") is not None for r in own)
    for key, colour, label, aside in (
        ("auc_gain", MAIN, "learning alone", 0.0),
        ("whole_gain", SECOND, "learning and features", 0.15),
    ):
        if key == "whole_gain" and not with_whole:
            continue
        halves = [r[f"{key}_ci"] or 0.0 for r in own]
        axes.errorbar(at + aside, [r[key] for r in own], halves, fmt="o", ms=4, capsize=2, color=colour, label=label)
    if with_whole:
        axes.legend(frameon=False, fontsize=9)
    axes.axhline(0, color=QUIET, lw=0.8, ls=":")
    step = max(1, len(own) // 12)
    axes.set_xticks(at[::step], [str(r[where]) for r in own][::step])
    axes.set_ylabel("gain in AUC")
    axes.set_xlabel(where)
    caption = f"Gain in AUC by {where}: {what}"
    if with_whole:
        caption += "; learning and features together, over that job on day-old features"
    return Plot(name, f"{caption}. With 95% intervals over users.", figure)


def arms_plot(rows: Sequence[Mapping[str, Any]]) -> Plot:
    """AUC of each model by day. ``rows``: model, auc, auc_ci and day."""
    figure, axes = canvas()
    values, models = distinct(rows, "day"), distinct(rows, "model")
    for i, (model,) in enumerate(models):
        own = [r for r in rows if r["model"] == model]
        aside = 0.05 * (i - (len(models) - 1) / 2)
        at = [values.index((r["day"],)) + aside for r in own]
        line(axes, i, at, [r["auc"] for r in own], model, [r["auc_ci"] or 0.0 for r in own])
    axes.set_xticks(range(len(values)), [value for (value,) in values])
    axes.set_xlim(-0.4, len(values) - 0.6)
    axes.set_ylabel("AUC")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return Plot("auc_by_day", "AUC by day, with 95% intervals over users. Days also differ by themselves.", figure)
