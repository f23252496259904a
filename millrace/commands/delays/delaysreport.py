# core
"""The report of ``millrace log delays``: tables, plots and verdict, computed from the figures.

Trials are compared with the *present* setting on the same exposures and final labels. Intervals are of 95% over users
(:mod:`millrace.basics.clustered`). The verdict on the best of k trials has a Bonferroni interval for k looks, because
the best of many is a little better by luck alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.clustered import FEW, PARTS, Gap, Parts, gap
from millrace.basics.durations import span_name
from millrace.basics.ranking_metrics import known
from millrace.commands.delays.completeness import FEWEST, Curve
from millrace.commands.delays.trials import IMMEDIATE, Setting
from millrace.commands.offline.intervals import DIGITS
from millrace.reports import MAIN, QUIET, Plot, canvas, lines_canvas


@dataclass(frozen=True, slots=True)
class Trial:
    setting: Setting
    figures: Mapping[str, float]
    gaps: Mapping[str, Gap]
    lost: int
    wait_s: float
    """Mean time from an exposure to its first label."""


def trial_of(
    setting: Setting,
    parts: Mapping[str, Parts],
    present: Mapping[str, Parts],
    y: NDArray[np.bool_],
    user: NDArray[np.intp],
    lost: int,
    wait_s: float,
) -> Trial:
    """The trial of a setting against the parts of the ``present`` one; y and ``user``: the rows' labels and users,
    (n,)."""
    gaps = {key: gap(parts[key], present[key], y, user) for key in PARTS}
    return Trial(setting, {key: of[0] for key, of in parts.items()}, gaps, lost, wait_s)


def rows_of(trials: Sequence[Trial], present: Setting) -> list[dict[str, Any]]:
    """The table of the trials, the present one without gaps and at the top."""
    out = []
    for trial in trials:
        now = trial.setting == present
        row: dict[str, Any] = {
            "policy": trial.setting.policy,
            "window": "–" if trial.setting.policy == IMMEDIATE else span_name(trial.setting.window_ms),
        }
        for key in ("auc", "log_loss"):
            found = trial.gaps[key]
            row[f"{key}_over_present"] = None if now else known(found.value, DIGITS)
            row[f"{key}_over_present_ci"] = None if now else known(found.half, DIGITS)
        row |= {key: known(trial.figures[key], DIGITS) for key in PARTS}
        row |= {"clicks_lost": trial.lost, "seconds_to_label": round(trial.wait_s, 1)}
        out.append(row)
    return out


def verdict_of(curve: Curve, asked_ms: int, windows: Sequence[int], trials: Sequence[Trial], present: Setting) -> str:
    sentences = [_of_labels(curve, asked_ms, windows)]
    now = next((t for t in trials if t.setting == present), None)
    if now is None or not math.isfinite(now.figures["auc"]):
        return " ".join([*sentences, "Nothing can be said of settings: the log's final labels are all alike."])
    named = f"the present setting ({present.name}; AUC {now.figures['auc']:.4f})"
    others = [t for t in trials if t.setting != present and t.setting.policy != IMMEDIATE]
    if others:
        sentences += [_of_best(others, "auc", 1, named, "AUC"), _of_best(others, "log_loss", -1, "it", "log loss")]
    bound = next((t for t in trials if t.setting.policy == IMMEDIATE), None)
    if bound is not None:
        sentences.append(_of_bound(bound.gaps["auc"]))
    return " ".join(sentences)


def _of_labels(curve: Curve, asked_ms: int, windows: Sequence[int]) -> str:
    half = curve.quantile_ms(0.5)
    if half is None:
        return "The log has no click with a time, so nothing can be said of how late labels come."
    parts = [
        f"{100 * c:.1f}% within {span_name(ms)}"
        for ms, c in zip(windows, curve.completeness(windows).tolist(), strict=True)
        if math.isfinite(c) and ms < curve.longest_ms
    ]
    whole = [said.startswith("100.0%") for said in parts]
    parts = parts[: whole.index(True) + 1] if True in whole else parts  # the rest says the same
    short = ""
    if curve.longest_ms < asked_ms:
        short = f" (fewer than {FEWEST} exposures were watched for {span_name(asked_ms)})"
    come = f", {', '.join(parts)}" if parts else ""
    within = span_name(curve.longest_ms)
    return f"Of the clicks within {within}{short}, half come within {span_name(half)}{come}."


def _of_best(others: Sequence[Trial], key: str, sign: int, named: str, word: str) -> str:
    """The best trial by one figure; ``sign`` is 1 where more is better."""
    best = max(others, key=lambda t: sign * t.gaps[key].value)
    found = best.gaps[key]
    looks = len(_alike(others))
    wide = found.half_of_best(looks)
    size, ends = abs(found.value), f"{abs(found.value):.4f} ± {wide:.4f}"
    many = f" (95% for the best of {looks})" if looks > 1 else ""
    if not math.isfinite(wide):
        return f"By {word} the best setting is {best.setting.name}, but {FEW}: no interval."
    better = sign * found.value > 0
    if better and size > wide:
        how = "gains" if key == "auc" else "saves"
        return f"By {word}, {best.setting.name} {how} {ends}{many} over {named}."
    if better:
        at_best = f"at best {best.setting.name}, {ends}{many}"
        return f"By {word}, no setting tried can be told apart from {named} as better: {at_best}."
    return f"By {word}, no setting tried is better than {named}."


def _alike(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Groups the trials of one policy whose figures are the same because their labels come alike."""
    out: dict[tuple[object, ...], list[Trial]] = {}
    for trial in trials:
        out.setdefault((trial.setting.policy, *trial.figures.values()), []).append(trial)
    return list(out.values())


def _of_bound(found: Gap) -> str:
    if not math.isfinite(found.half):
        return f"Nothing can be said of labels without any delay, which no loop can have: {FEW}."
    ends = f"{found.value:+.4f} ± {found.half:.4f} AUC"
    if not found.is_significant:
        return f"Labels without any delay, which no loop can have, would make no difference that can be told ({ends})."
    what = "gain" if found.value > 0 else "lose"
    return (
        f"Labels without any delay, which no loop can have, would {what} {abs(found.value):.4f} ± {found.half:.4f} AUC."
    )


def curve_plot(curves: Sequence[Mapping[str, Any]], windows: Sequence[int]) -> Plot:
    """Completeness against waiting time. ``curves``: name, seconds, completeness; the first is of all exposures."""
    figure, axes = canvas()
    for i, curve in enumerate(curves):
        style: dict[str, Any] = {"color": MAIN, "lw": 2.2, "zorder": 5} if i == 0 else {"lw": 1, "color": f"C{i % 10}"}
        axes.plot(curve["seconds"], curve["completeness"], label=curve["name"], **style)
    longest = max(curves[0]["seconds"])
    for ms in windows:
        if curves[0]["seconds"][0] < ms / 1000 <= longest * 1.001:
            axes.axvline(ms / 1000, color=QUIET, lw=0.8, ls=":")
            axes.text(ms / 1000, 0.02, f" {span_name(ms)}", color=QUIET, fontsize=8)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("seconds since the exposure")
    axes.set_ylabel("completeness")
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    caption = "Share of the clicks that have come by waiting time. Dotted: the attribution windows that were tried."
    return Plot("completeness", caption, figure)


def trials_plot(trials: Sequence[Trial], present: Setting) -> Plot:
    points = _alike([t for t in trials if t.setting != present and math.isfinite(t.gaps["auc"].value)])
    figure, axes = lines_canvas([_named(own, trials) for own in points])
    halves = []
    for i, (trial, *_) in enumerate(points):
        found = trial.gaps["auc"]
        colour = QUIET if trial.setting.policy == IMMEDIATE else MAIN
        halves.append(found.half if math.isfinite(found.half) else 0.0)
        axes.errorbar(found.value, i, xerr=halves[-1], fmt="o", ms=4, color=colour, capsize=2)
    axes.axvline(0, color=QUIET, lw=0.8, ls=":")
    _fit_scale(axes, [own[0].gaps["auc"].value for own in points], halves)
    axes.set_xlabel("AUC over present")
    caption = (
        f"AUC less that of the present setting ({present.name}): 95% intervals over users. Grey: labels at once. "
        "A scale with uneven steps is linear about 0 and logarithmic beyond."
    )
    return Plot("settings", caption, figure)


def _named(alike: Sequence[Trial], trials: Sequence[Trial]) -> str:
    """The settings of one point: ``es-dfm, 10 s to 1 day``; ``es-dfm, 10 s and 1 day`` where one between has other
    figures."""
    policy, windows = alike[0].setting.policy, sorted(trial.setting.window_ms for trial in alike)
    first, last = Setting(policy, windows[0]).name, span_name(windows[-1])
    if len(windows) == 1:
        return first
    between = [t for t in trials if t.setting.policy == policy and windows[0] < t.setting.window_ms < windows[-1]]
    if all(trial.figures == alike[0].figures for trial in between):
        return f"{first} to {last}"
    return f"{', '.join([first, *map(span_name, windows[1:-1])])} and {last}"


def _fit_scale(axes: Any, values: Sequence[float], halves: Sequence[float]) -> None:
    """Makes the scale logarithmic beyond some intervals' width where one setting is far worse than the others."""
    usual = max(float(np.median(halves)), 1e-4) if halves else 0.0
    if not values or max(abs(v) for v in values) < 20 * usual:
        return
    edge = 10.0 ** math.ceil(math.log10(2 * usual))
    least, most = min(values), max(values)
    steps = [edge * 10.0**k for k in range(8)]
    ticks = [-s for s in steps if -s >= 2 * least] + [0.0] + [s for s in steps if s <= max(2 * most, edge)]
    axes.set_xscale("symlog", linthresh=edge)
    axes.set_xlim(2 * min(least, -edge), 2 * max(most, edge))
    axes.set_xticks(sorted(ticks), [f"{t:g}" for t in sorted(ticks)])
    axes.minorticks_off()
