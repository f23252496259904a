# core
"""What parity says: whether live and replay agree, and which features differ how often; its tables and plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.clustered import Gap
from millrace.basics.ranking_metrics import known
from millrace.commands.proofs.archived import Archived
from millrace.reports import SECOND, Plot, lines_canvas, say, show, write_all
from scorer.feeder.arithmetic import Choice

MOST_GAP = 0.001
"""By how much the two progressive AUCs may differ."""
_SHOWN = 12  # features that differ, in the terminal and on the page
Report = dict[str, Any]


def make_report(
    archived: Archived,
    cat: NDArray[np.int64],
    num: NDArray[np.float32],
    logged_auc: float,
    found: Gap,
    served: Sequence[Choice] = (),
) -> Report:
    """The figures as plain values.

    Args:
        cat, num: as replayed, (m, F) and (m, N).
        found: the progressive AUC of replayed features less ``logged_auc``, that of logged ones.
        served: what the loop's scorers have chosen to compute pages in.
    """
    layout, m, logged = archived.schema.layout, len(archived.logged), archived.logged
    wrong_cat, wrong_num = cat != logged.cat, _bits(num) != _bits(logged.num)
    differing = _differing(archived, layout.cat_names, wrong_cat, cat, logged.cat)
    differing += _differing(archived, layout.num_names, wrong_num, num, logged.num)
    equal = m - int(np.count_nonzero(wrong_cat.any(axis=1) | wrong_num.any(axis=1)))
    report = {
        "exposures": m,
        "without_logged_features": archived.without,
        "compares_candidates": layout.among_start < layout.N,
        "pages_with_candidates": len(logged.sets),
        "features": layout.F + layout.N,
        "equal": equal,
        "share_equal": equal / m,
        "share_values_equal": 1 - sum(one["values"] for one in differing) / (m * (layout.F + layout.N)),
        "auc_logged": known(logged_auc),
        "auc_replayed": known(logged_auc + found.value),
        "auc_gap": known(found.value),
        "auc_gap_half": known(found.half),
        "auc_agrees": math.isfinite(found.value) and abs(found.value) <= MOST_GAP,
        "served_in": sorted({choice.arithmetic for choice in served}),
        "score_error": max((choice.error[choice.arithmetic] for choice in served), default=None),
        "score_bound": max((choice.bound for choice in served), default=None),
        "differing": sorted(differing, key=lambda one: (-one["values"], one["feature"])),
    }
    return {"verdict": verdict_of(report)} | report


def verdict_of(report: Mapping[str, Any]) -> str:
    said = f"Of {report['exposures']:,} exposures replay makes {report['share_equal']:.1%} as the loop logged them"
    said += f", and {report['share_values_equal']:.2%} of all values, to the bit."
    if report["compares_candidates"]:
        said += (
            f" Numbers among candidates are made again for {report['pages_with_candidates']:,} pages whose candidates"
        )
        said += " the archive keeps, and taken as logged elsewhere."
    if report["differing"]:
        most = report["differing"][0]
        said += f" {len(report['differing'])} features differ, '{most['feature']}' most often."
    if report["served_in"]:
        said += (
            f" Scorers compute in {' and '.join(report['served_in'])}: scores deviate by {report['score_error']:.2%} of"
        )
        said += f" their spread from float32's, at most {report['score_bound']:.2%} are allowed."
    if report["auc_gap"] is None:
        return f"{said} Labels are all alike, so there is no AUC to compare."
    within = "within" if report["auc_agrees"] else "not within"
    half = "" if report["auc_gap_half"] is None else f" ± {report['auc_gap_half']:.4f}"
    return (
        f"{said} Progressive AUC: {report['auc_replayed']:.4f} of replayed features, {report['auc_logged']:.4f} of "
        f"logged ones: {report['auc_gap']:+.4f}{half}, {within} {MOST_GAP:g}."
    )


def write_parity(out: Path, report: Report, run: Mapping[str, Any]) -> None:
    page = {k: v for k, v in report.items() if k != "differing"} | {"differing": _shown(report)}
    write_all(out, report, run, _features_plot(report), "Live and replay: parity", page=page)


def print_parity(report: Mapping[str, Any]) -> None:
    if report["differing"]:
        rows = _shown(report)
        title = f"{len(report['differing'])} of {report['features']} features differ, the first {len(rows)}"
        show(title, rows)
    if report["without_logged_features"]:
        print(f"{report['without_logged_features']:,} exposures have no logged features: not compared")
    say(report["verdict"])


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def _differing(
    archived: Archived, names: tuple[str, ...], wrong: NDArray[np.bool_], made: NDArray[Any], logged: NDArray[Any]
) -> list[Report]:
    """Each feature with values that differ: how many, and the first: its exposure and both values."""
    found = []
    for c, name in enumerate(names):
        rows = np.flatnonzero(wrong[:, c])
        if len(rows):
            first = int(rows[0])
            request, position = archived.name(int(archived.logged.row[first]))
            one = {"feature": name, "values": len(rows), "share": len(rows) / len(wrong)}
            one |= {"request_id": request, "position": position}
            found.append(one | {"logged": logged[first, c].item(), "replayed": made[first, c].item()})
    return found


def _shown(report: Mapping[str, Any]) -> list[Report]:
    """The features that differ most often; values as texts, since cells round."""

    def text(value: float) -> str:
        return f"{value:.7g}" if isinstance(value, float) else str(value)

    return [
        one | {"logged": text(one["logged"]), "replayed": text(one["replayed"])} for one in report["differing"][:_SHOWN]
    ]


def _features_plot(report: Mapping[str, Any]) -> list[Plot]:
    if not report["differing"]:
        return []
    rows = report["differing"][:_SHOWN]
    figure, axes = lines_canvas([one["feature"] for one in rows])
    axes.barh(range(len(rows)), [100 * one["share"] for one in rows], color=SECOND, height=0.62)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of exposures whose value differs")
    return [Plot("features", f"The features that differ most often, {len(report['differing'])} in all.", figure)]
