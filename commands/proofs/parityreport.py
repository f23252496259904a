# core
"""What parity says: its figures, verdict, tables and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.proofs.archived import Archived
from commands.proofs.causes import Cause, Compared
from commands.proofs.lag import spread
from millrace.basics.clustered import Gap
from millrace.basics.merit import known
from millrace.reports import MAIN, QUIET, SECOND, Plot, lines_canvas, say, show, write_all

MOST_GAP = 0.001
"""By how much the two progressive AUCs may differ."""
_NAMED = 12  # features without an explanation that are shown
TEXTS = {
    Cause.REPLAY: "none: equal as replayed",
    Cause.POSITION: "position: answered, not shown",
    Cause.PAGE_TIME: "page's time, not exposure's",
    Cause.LATE: "actions after attribution",
    Cause.TILE_BOUND: "tile bound: known already",
    Cause.UNSENT: "happened before, sent after it",
    Cause.FEED_LAG: "feed lag: newest events missing",
    Cause.PAGE_LOG: "feed lag, pages' logs reordered",
    Cause.UNIT_TURN: "the tile before or after",
    Cause.MISSING: "user not known yet",
    Cause.ATTRIBUTES: "attributes of another time",
    Cause.CONTEXT: "the request's own fields",
    Cause.UNEXPLAINED: "unexplained",
}
_COLOURS = {
    Cause.POSITION: "#b7c4cb",
    Cause.PAGE_TIME: "#8fa9b5",
    Cause.LATE: "#5f8ca0",
    Cause.TILE_BOUND: "#c9b79a",
    Cause.UNSENT: "#b49a6c",
    Cause.FEED_LAG: MAIN,
    Cause.PAGE_LOG: "#15495c",
    Cause.UNIT_TURN: "#7d6ba0",
    Cause.MISSING: "#6b9e78",
    Cause.ATTRIBUTES: "#9cc3a5",
    Cause.CONTEXT: "#d5d9b0",
    Cause.UNEXPLAINED: "#c2452d",
}
Report = dict[str, Any]


def present(found: Compared) -> list[Cause]:
    """The causes that explain any value, in their order."""
    tally = sum(np.bincount(causes.reshape(-1), minlength=len(Cause)) for causes in (found.cat_cause, found.num_cause))
    return [cause for cause in list(Cause)[1:] if np.asarray(tally)[cause]]


def make_report(archived: Archived, found: Compared, gaps: Mapping[Cause, Gap], auc: tuple[float, float]) -> Report:
    """The figures as plain values.

    Args:
        gaps: of progressive AUC, that are left with all causes up to each: REPLAY, and those that are present.
        auc: on the features as logged, and as replayed.
    """
    layout, m = archived.schema.layout, len(archived.pages)
    row_cause = np.maximum(found.cat_cause.max(axis=1, initial=0), found.num_cause.max(axis=1, initial=0))
    equal = int(np.count_nonzero(row_cause == 0))
    causes: list[Report] = []
    reached = equal
    for cause in present(found):
        in_cat, in_num = found.cat_cause == cause, found.num_cause == cause
        reached += int(np.count_nonzero(row_cause == cause))
        causes.append(
            {
                "cause": cause.name.lower(),
                "text": TEXTS[cause],
                "samples": int(np.count_nonzero(in_cat.any(axis=1) | in_num.any(axis=1))),
                "values": int(in_cat.sum() + in_num.sum()),
                "share_then_equal": None if cause is Cause.UNEXPLAINED else reached / m,
                "auc_gap_then": known(gaps[cause].value),
                "auc_gap_then_half": known(gaps[cause].half),
                "features": _tally(layout.cat_names, in_cat) | _tally(layout.num_names, in_num),
            }
        )
    gap = gaps[Cause.REPLAY]
    report = {
        "samples": m,
        "without_logged_features": archived.without,
        "events_without_sent_ms": archived.unsent,
        "features": layout.F + layout.N,
        "equal": equal,
        "share_equal": equal / m,
        "share_values_equal": 1 - sum(c["values"] for c in causes) / (m * (layout.F + layout.N)),
        "unexplained_samples": int(np.count_nonzero(row_cause == Cause.UNEXPLAINED)),
        "unexplained_values": sum(c["values"] for c in causes if c["cause"] == "unexplained"),
        "causes": causes,
        "unexplained": _unexplained(archived, found),
        "feed_lag": {side: spread(lags) for side, lags in found.lags_ms.items()},
        "auc_logged": known(auc[0]),
        "auc_replayed": known(auc[1]),
        "auc_gap": known(gap.value),
        "auc_gap_half": known(gap.half),
        "auc_agrees": math.isfinite(gap.value) and abs(gap.value) <= MOST_GAP,
    }
    return {"verdict": verdict_of(report)} | report


def verdict_of(report: Mapping[str, Any]) -> str:
    """Sentences for people."""
    m, un, values = report["samples"], report["unexplained_samples"], report["unexplained_values"]
    said = (
        f"Of {m:,} exposures replay makes {report['share_equal']:.1%} as the loop logged them, to the bit; "
        f"{1 - un / m:.1%} with the causes computed. "
    )
    if un:
        said += f"{un:,} exposures differ in {values:,} values that no cause explains. "
    if report["auc_gap"] is None:
        return f"{said}Labels are all alike, so there is no AUC to compare."
    within = "within" if report["auc_agrees"] else "not within"
    said += (
        f"Progressive AUC: {report['auc_replayed']:.4f} of replayed features, {report['auc_logged']:.4f} of logged "
        f"ones: {_interval(report['auc_gap'], report['auc_gap_half'])}, {within} {MOST_GAP:g}."
    )
    step = None if report["auc_agrees"] else main_step(report)
    if step is None:
        return said
    before, after, text = step
    part = "Most" if abs(before) - abs(after) > abs(report["auc_gap"]) / 2 else "The greatest part"
    return f"{said} {part} of that goes with '{text}': {before:+.4f} without this cause, {after:+.4f} with it."


def main_step(report: Mapping[str, Any]) -> tuple[float, float, str] | None:
    """(gap left before a cause, with it, its text) of the cause with which the greatest part of the AUC gap goes."""
    left = report["auc_gap"]
    steps = []
    for cause in report["causes"]:
        steps.append((abs(left) - abs(cause["auc_gap_then"]), left, cause["auc_gap_then"], cause["text"]))
        left = cause["auc_gap_then"]
    return max(steps)[1:] if steps else None


def write_parity(out: Path, report: Report, archived: Archived, found: Compared, run: Mapping[str, Any]) -> None:
    """Writes report.json, run.json, report.html and the plots."""
    plots = [_ladder_plot(report), _gaps_plot(report), _features_plot(archived, found)]
    lag = [
        {"feed": f"{side}s", "pages_that_lacked_events": lag["pages"]}
        | {"median_seconds": lag["p50_s"], "99_of_100_within_seconds": lag["p99_s"], "most_seconds": lag["most_s"]}
        for side, lag in report["feed_lag"].items()
        if lag["pages"]
    ]
    page = {"verdict": report["verdict"], "exposures": report["samples"], "features": report["features"]}
    page |= {"exposures_without_logged_features": report["without_logged_features"]}
    page |= {"events_without_sent_ms": report["events_without_sent_ms"]}
    page |= {"causes": _ladder(report), "features_by_key": _by_key(archived, found)}
    page |= {"feed_lag": lag, "unexplained": _named(report)}
    write_all(out, report, run, [plot for plot in plots if plot is not None], "Live and replay: parity", page=page)


def print_parity(report: Mapping[str, Any]) -> None:
    """The tables and the verdict."""
    show(
        f"{report['samples']:,} exposures, {report['features']} features each",
        _ladder(report),
        ["cause", "exposures", "values", "then_equal", "auc_gap_left"],
    )
    for side, lag in report["feed_lag"].items():
        if lag["pages"]:
            print(
                f"feed of {side}s: {lag['pages']:,} pages lacked events, the oldest sent {lag['p50_s']:.2f} s before "
                f"(median), {lag['p99_s']:.2f} s (99%), {lag['most_s']:.2f} s at most"
            )
    if report["without_logged_features"]:
        print(f"{report['without_logged_features']:,} exposures have no logged features: not compared")
    if report["events_without_sent_ms"]:
        print(f"{report['events_without_sent_ms']:,} events do not say when they were sent: their event time stands in")
    if report["unexplained"]:
        named = _named(report)
        show(f"unexplained: {len(report['unexplained'])} features, the first {len(named)}", named, list(named[0]))
    say(report["verdict"])


def _ladder(report: Mapping[str, Any]) -> list[Report]:
    """A row a cause."""

    def row(
        text: str, exposures: int, values: int, share: float | None, gap: float | None, half: float | None
    ) -> Report:
        equal = "" if share is None else f"{share:.1%}"
        left = "" if gap is None else _interval(gap, half)
        return {"cause": text, "exposures": exposures, "values": values, "then_equal": equal, "auc_gap_left": left}

    first = row(
        TEXTS[Cause.REPLAY], report["equal"], 0, report["share_equal"], report["auc_gap"], report["auc_gap_half"]
    )
    return [first] + [
        row(c["text"], c["samples"], c["values"], c["share_then_equal"], c["auc_gap_then"], c["auc_gap_then_half"])
        for c in report["causes"]
    ]


def _tally(names: tuple[str, ...], differs: NDArray[np.bool_]) -> dict[str, int]:
    """How many values differ, by the feature's name, most first."""
    counts: dict[str, int] = {}
    for name, n in zip(names, differs.sum(axis=0).tolist(), strict=True):
        if n:
            counts[name] = counts.get(name, 0) + n
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def _grouped(archived: Archived, found: Compared) -> dict[str, NDArray[np.int64]]:
    """How many values each cause has, by what features are of: a window key, or the field itself. (causes,)"""
    layout = archived.schema.layout
    out: dict[str, NDArray[np.int64]] = {}
    for names, causes in ((layout.cat_names, found.cat_cause), (layout.num_names, found.num_cause)):
        for c, name in enumerate(names):
            counts = np.bincount(causes[:, c], minlength=len(Cause))
            key = name.split(".", 1)[0] + (", windows" if "." in name else "")
            out[key] = out.get(key, 0) + counts
    return out


def _by_key(archived: Archived, found: Compared) -> list[Report]:
    """A row for each of :func:`_grouped` of which any value differs."""
    rows = []
    for key, counts in _grouped(archived, found).items():
        differing = int(counts[1:].sum())
        if differing:
            main = Cause(1 + int(np.argmax(counts[1:])))
            share = f"{differing / int(counts.sum()):.1%}"
            row = {"features_of": key, "mostly": TEXTS[main], "differing": differing, "share": share}
            rows.append(row | {"unexplained": int(counts[Cause.UNEXPLAINED])})
    return sorted(rows, key=lambda row: -row["differing"])


def _unexplained(archived: Archived, found: Compared) -> list[Report]:
    """Each feature with unexplained values: how many, and the first."""
    layout, out = archived.schema.layout, []
    request, position = archived.schema.log.identity[:2] if archived.schema.log else ("", "")
    for names, causes, made, logged in (
        (layout.cat_names, found.cat_cause, found.cat, archived.pages.cat),
        (layout.num_names, found.num_cause, found.num, archived.pages.num),
    ):
        for c, name in enumerate(names):
            rows = np.flatnonzero(causes[:, c] == Cause.UNEXPLAINED)
            if len(rows):
                first = int(rows[0])
                at = int(archived.pages.row[first])
                out.append(
                    {
                        "feature": name,
                        "values": len(rows),
                        "request_id": str(archived.log.table[request][at]),
                        "position": int(archived.log.table[position][at].as_py()),
                        "logged": logged[first, c].item(),
                        "replayed": made[first, c].item(),
                    }
                )
    return sorted(out, key=lambda one: (-one["values"], one["feature"]))


def _named(report: Mapping[str, Any]) -> list[Report]:
    """The first features without an explanation, as texts."""
    return [
        {k: f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in one.items()}
        for one in report["unexplained"][:_NAMED]
    ]


def _interval(gap: float, half: float | None) -> str:
    return f"{gap:+.4f}" + ("" if half is None else f" ± {half:.4f}")


# ---------------------------------------------------------------------- plots


def _rows_plot(texts: list[str]) -> tuple[Any, Any]:
    """An empty picture with a line for each text, wider than others: the texts are long."""
    figure, axes = lines_canvas(texts)
    figure.set_size_inches(10, 1.1 + 0.32 * len(texts))
    axes.tick_params(axis="y", labelsize=9)
    axes.set_ylim(len(texts) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    return figure, axes


def _ladder_plot(report: Mapping[str, Any]) -> Plot:
    """What each cause adds to the share of exposures that are equal."""
    shares = [report["share_equal"], *(c["share_then_equal"] for c in report["causes"])]
    texts = [TEXTS[Cause.REPLAY], *(c["text"] for c in report["causes"])]
    colours = [QUIET, *(_COLOURS[Cause[c["cause"].upper()]] for c in report["causes"])]
    figure, axes = _rows_plot(texts)
    reached = 0.0
    for n, (share, colour) in enumerate(zip(shares, colours, strict=True)):
        end = 1.0 if share is None else share
        axes.barh(n, 100 * (end - reached), left=100 * reached, color=colour, height=0.62)
        right = reached < 0.5  # of the bar's end, where there is room
        place = {"x": 100 * end + 1, "ha": "left"} if right and end < 0.85 else {"x": 100 * reached - 1, "ha": "right"}
        axes.text(place["x"], n, f"{end - reached:.1%}", va="center", ha=place["ha"], fontsize=9)
        reached = end
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of exposures: equal with all causes up to this one")
    return Plot(
        "causes", "How exposures become equal to the bit, cause by cause, and how many each cause adds.", figure
    )


def _gaps_plot(report: Mapping[str, Any]) -> Plot | None:
    """The AUC gap that is left."""
    rows = [(TEXTS[Cause.REPLAY], report["auc_gap"], report["auc_gap_half"])]
    rows += [(c["text"], c["auc_gap_then"], c["auc_gap_then_half"]) for c in report["causes"]]
    if report["auc_gap"] is None:
        return None
    figure, axes = _rows_plot([text for text, *_ in rows])
    axes.axvspan(-MOST_GAP, MOST_GAP, color="#e9f1ec", lw=0)
    axes.axvline(0, color=QUIET, lw=0.8, ls=":")
    for n, (_, gap, half) in enumerate(rows):
        axes.errorbar(gap, n, xerr=half or 0, fmt="o", ms=5, color=MAIN if abs(gap) <= MOST_GAP else SECOND, capsize=2)
    axes.set_xlabel("AUC of replayed features less that of logged ones")
    caption = (
        "The AUC gap that is left when the values of all causes up to this one are as logged, with 95% intervals over "
        f"users. Shaded: ±{MOST_GAP:g}. The cause with which the gap goes is where it comes from."
    )
    return Plot("gaps", caption, figure)


def _features_plot(archived: Archived, found: Compared) -> Plot | None:
    """Differing values by what features are of, stacked by cause."""
    grouped = {key: counts for key, counts in _grouped(archived, found).items() if counts[1:].any()}
    if not grouped:
        return None
    order = sorted(grouped, key=lambda key: -int(grouped[key][1:].sum()) / int(grouped[key].sum()))
    figure, axes = _rows_plot(order)
    figure.set_size_inches(10, 2.2 + 0.32 * len(order))
    left = np.zeros(len(order))
    for cause in present(found):
        share = np.array([100 * grouped[key][cause] / grouped[key].sum() for key in order])
        axes.barh(range(len(order)), share, left=left, color=_COLOURS[cause], height=0.62, label=TEXTS[cause])
        left += share
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of values that differ")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return Plot("features", "Which features differ, and why: those of a window key together, and each field.", figure)
