# core
"""What the experiments' figures say, each in a few plain sentences: at the top of a page and in the terminal.

A difference counts as told where its 95% interval leaves out 0. Where intervals are not of differences, two figures
count as told apart if their intervals do not overlap, which asks for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from millrace.reports import name_of

Row = Mapping[str, Any]


def of_models(rows: Sequence[Row], baseline: float | None) -> str:
    """``dev experiment models``. ``rows``: model, inputs, auc, auc_ci; ``baseline``: its AUC on the test days."""
    known = sorted((r for r in rows if r["auc"] is not None), key=lambda r: -r["auc"])
    if not known:
        return "The test days' labels are all alike, so no model can be told from another."
    best = known[0]
    text = f"Of {len(rows)} models and inputs, {_model(best)} has the highest AUC on the test days,"
    text += f" {_figure(best, 'auc')}."
    alike = [r for r in known[1:] if r["auc"] + r["auc_ci"] >= best["auc"] - best["auc_ci"]]
    if alike:
        text += f" It cannot be told apart from {_listed([_model(r) for r in alike])}."
    elif len(known) > 1:
        text += f" The next is {_model(known[1])}, {_figure(known[1], 'auc')}."
    if baseline is not None:
        below = sum(r["auc"] - r["auc_ci"] <= baseline for r in known)
        text += f" Ranking by each item's smoothed click rate alone has {baseline:.4f}; "
        text += f"{below} of {len(known)} are not surely above it." if below else "all are above it."
    return text


def of_rounds(ways: Sequence[Row], baseline: float | None) -> str:
    """``millrace dev experiment rounds``. ``ways``: model, inputs, way, auc, auc_over_frozen, each with _ci."""
    first = (ways[0]["model"], ways[0]["inputs"])
    own = [r for r in ways if (r["model"], r["inputs"]) == first and r["way"] != "frozen"]
    frozen = next((r for r in ways if (r["model"], r["inputs"]) == first and r["way"] == "frozen"), None)
    told = [r for r in own if abs(r["auc_over_frozen"]) > r["auc_over_frozen_ci"]]
    gains = sorted((r for r in told if r["auc_over_frozen"] > 0), key=lambda r: -r["auc_over_frozen"])
    losses = [r for r in told if r["auc_over_frozen"] < 0]
    alike = [r["way"] for r in own if r not in told]
    start = "" if frozen is None else f" (AUC {_figure(frozen, 'auc')} over the test days)"
    parts = []
    if gains:
        parts.append("gain " + _listed([f"{_figure(r, 'auc_over_frozen')} ({r['way']})" for r in gains]))
    if losses:
        parts.append("lose " + _listed([f"{_lost(r)} ({r['way']})" for r in losses]))
    if alike:
        parts.append(f"make no difference that can be told ({_listed(alike)})")
    text = (
        f"Over the frozen model {first[0]} on {first[1]} inputs{start}, ways of keeping up {'; '.join(parts)}; in AUC."
    )
    if baseline is not None:
        text += f" Ranking by each item's smoothed click rate alone has {baseline:.4f}."
    return text


def of_labels(report: Row) -> str:
    """``millrace dev experiment labels``: how many of its targets the default policy reaches."""
    verdicts = report["verdicts"]
    if not verdicts:
        return f"The default policy '{report['default']}' was not among those compared, so nothing is said of it."
    told = [v for v in verdicts if v["reached"] is not None]
    parts = [f"{name_of(v['figure'])} {_plain(v['value'])} ({v['target']}: {_reached(v['reached'])})" for v in verdicts]
    reached = sum(v["reached"] for v in told)
    return f"The default policy '{report['default']}' reaches {reached} of {len(verdicts)} targets: {'; '.join(parts)}."


def _model(row: Row) -> str:
    return f"{row['model']} on {row['inputs']} inputs"


def _figure(row: Row, key: str) -> str:
    half = row.get(f"{key}_ci")
    return f"{row[key]:.4f}" + ("" if half is None else f" ± {half:.4f}")


def _lost(row: Row) -> str:
    return f"{-row['auc_over_frozen']:.4f} ± {row['auc_over_frozen_ci']:.4f}"


def _reached(value: bool | None) -> str:
    return "unknown" if value is None else "reached" if value else "missed"


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    """The names in a sentence; of many the first and how many more."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
