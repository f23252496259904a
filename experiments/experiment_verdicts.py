# core
"""What the experiments' figures say, each in a few plain sentences: at the top of a page and in the terminal.

A difference counts where its 95% interval leaves out 0. Where intervals are not of differences, two figures differ if
their intervals do not overlap, which asks for more.
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
        return "The test days' labels are all alike, so models cannot be compared."
    best = known[0]
    text = f"Of {len(rows)} models and inputs, {_model(best)} has the highest AUC on the test days,"
    text += f" {_figure(best, 'auc')}."
    alike = [r for r in known[1:] if r["auc"] + r["auc_ci"] >= best["auc"] - best["auc_ci"]]
    if alike:
        text += f" It is not clearly better than {_listed([_model(r) for r in alike])}."
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
    own = [r for r in ways if (r["model"], r["inputs"]) == first]
    frozen = next(r for r in own if r["way"] == "frozen")
    moved = sorted(
        (r for r in own if abs(r["auc_over_frozen"]) > r["auc_over_frozen_ci"]), key=lambda r: -r["auc_over_frozen"]
    )
    parts = []
    for does, sign in (("gain", 1), ("lose", -1)):
        some = [r for r in moved if sign * r["auc_over_frozen"] > 0]
        if some:
            sizes = [f"{abs(r['auc_over_frozen']):.4f} ± {r['auc_over_frozen_ci']:.4f} ({r['way']})" for r in some]
            parts.append(f"{does} {_listed(sizes)}")
    alike = [r["way"] for r in own if r not in (frozen, *moved)]
    if alike:
        parts.append(f"make no clear difference ({_listed(alike)})")
    text = (
        f"Over the frozen model {first[0]} on {first[1]} inputs (AUC {_figure(frozen, 'auc')} over the test days), "
        f"ways of keeping up {'; '.join(parts)}; in AUC."
    )
    if baseline is not None:
        text += f" Ranking by each item's smoothed click rate alone has {baseline:.4f}."
    return text


def of_labels(report: Row) -> str:
    """``millrace dev experiment labels``: how many of its targets the default policy reaches."""
    verdicts = report["verdicts"]
    if not verdicts:
        return f"The default policy '{report['default']}' was not among those compared, so nothing is said of it."
    parts = []
    for v in verdicts:
        value = "unknown" if v["value"] is None else f"{v['value']:.4f}"
        reached = "unknown" if v["reached"] is None else "reached" if v["reached"] else "missed"
        parts.append(f"{name_of(v['figure'])} {value} ({v['target']}: {reached})")
    n = sum(bool(v["reached"]) for v in verdicts)
    return f"The default policy '{report['default']}' reaches {n} of {len(verdicts)} targets: {'; '.join(parts)}."


def _model(row: Row) -> str:
    return f"{row['model']} on {row['inputs']} inputs"


def _figure(row: Row, key: str) -> str:
    return f"{row[key]:.4f} ± {row[f'{key}_ci']:.4f}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    """The names in a sentence; of many the first and how many more."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
