# core
"""Finds columns that look like outcomes of the exposure: known after it, not when it was chosen.

A model that is fed an outcome predicts the past. No test on a log can prove that a column is one. These three find
strong signs, each with its figures:

- *filled only with a click*: nearly all rows in which the column differs from its one value among rows without a click
  are clicks.
- *beyond any feature*: the column alone orders rows by label far better, as an AUC, than the best column of user or
  item. Categories count by the click rates of the other half of the rows.
- *by its name*: ``play_time``, ``scroll_percentage``, ``is_like`` and such. The reason says that this is no proof.

A column that is constant for each user or each item cannot be an outcome of one exposure, so the first two tests leave
it alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.basics.ranking_metrics import auc
from millrace.commands.guess.samplecolumns import Column

PURE = 0.98
"""Share of clicks among the rows with another value, from which on the column counts as filled only with a click."""
LEAST_ROWS, LEAST_GROUPS = 20, 8
"""Least evidence: rows, and users and items. Fewer may be one user who clicks everything."""
MOST_VALUES = 200
"""Numbers with more values are ordered by their size alone."""
HIGH, BEYOND, LEAST_AUC = 0.9, 0.08, 0.75
"""A single column's AUC that no honest feature has; or so far above the best honest one, and at least so high."""

_NAMES = {
    "play", "played", "watch", "watched", "dwell", "stay", "read", "scroll", "finish", "finished", "view", "viewed",
    "like", "liked", "follow", "followed", "comment", "commented", "forward", "share", "shared", "hate", "dislike",
    "click", "clicked", "clicks", "conversion", "converted", "purchase", "purchased", "bought", "order", "ordered",
    "cart", "collect", "favorite", "favourite", "reward", "outcome", "revenue", "gmv", "sale", "sales", "attribution",
    "rating", "label", "positive", "enter", "entered", "exit", "skip", "skipped", "cpo", "profit",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LeftOut:
    kind: str
    """``"only-with-label"``, ``"beyond"`` or ``"name"``."""
    why: str
    auc: float


def auc_of(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, ties in the middle; 0.5 where a class is absent.

    >>> auc_of(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, False, True, True]))
    0.875
    """
    return auc(score, label) if label.any() and not label.all() else 0.5


def single_auc(column: Column, label: NDArray[np.bool_], halves: NDArray[np.bool_]) -> float:
    """How well the column alone orders rows by label: an AUC of at least 0.5.

    Numbers count by their size, in either direction. Few numbers and all else count by each value's click rate in the
    other half of the rows, smoothed by 20 exposures, since a value that is seen one time says nothing.

    Args:
        halves: (n,) which half a row is in.
    """
    best = 0.5
    if column.is_numeric and not column.is_list:
        numbers = column.numbers
        score = np.where(np.isnan(numbers), np.nanmin(numbers) - 1, numbers)
        best = auc_of(score, label)
        best = max(best, 1 - best)
        if column.distinct > MOST_VALUES:
            return best
    codes = column.codes + 1
    score = np.zeros(len(label))
    for half in (False, True):
        learn, use = halves == half, halves != half
        shown = np.bincount(codes[learn], minlength=codes.max() + 1)
        clicks = np.bincount(codes[learn], label[learn], minlength=codes.max() + 1)
        rate = (clicks + 20 * label[learn].mean()) / (shown + 20) if learn.any() else np.zeros(codes.max() + 1)
        score[use] = rate[codes[use]]
    return max(best, auc_of(score, label))


def only_with_label(column: Column, label: NDArray[np.bool_], groups: list[NDArray[np.int64]]) -> str | None:
    """The reason, if the column has another value only with a click (or only without one); else None. The evidence
    must be spread over ``groups``: users and items, (n,) each."""
    for with_label in (True, False):
        side = label if with_label else ~label
        base = float(side.mean())
        if base > 0.9 or base == 0:
            continue
        codes = column.codes + 1  # missing is a value too
        rest = int(np.bincount(codes[~side]).argmax())
        speaks = codes != rest
        rows = int(speaks.sum())
        if rows < LEAST_ROWS or min((len(np.unique(g[speaks])) for g in groups), default=rows) < LEAST_GROUPS:
            continue
        pure = float(side[speaks].mean())
        # Without knowing the label, so many rows would be all of one label with the chance base ** rows.
        if pure >= PURE and pure > base and rows * np.log(base) < np.log(1e-9):
            what = "missing" if rest == 0 else f"{column.value(rest - 1)!r:.40}"
            word = "click" if with_label else "exposure without a click"
            share = float(speaks[side].mean())
            return (
                f"it is {what} but for {rows:,} rows, and {pure:.1%} of those are a {word} (of all rows, {base:.1%});"
                f" {share:.1%} of rows with a {word} have it"
            )
    return None


def named_outcome(column: Column) -> str | None:
    found = [token for token in column.tokens if token in _NAMES]
    counts = {
        "num", "nb", "number", "cnt", "count", "counts", "avg", "mean", "rate", "total", "since", "last", "previous",
        "history",
    }  # fmt: skip
    return found[0] if found and not counts & set(column.tokens) else None


def verdicts(
    columns: list[Column],
    label: NDArray[np.bool_],
    attributes: set[str],
    groups: list[NDArray[np.int64]],
    honest: list[Column],
    halves: NDArray[np.bool_],
) -> dict[str, LeftOut]:
    """Reasons why columns are left out, by name; the others may be features.

    Args:
        attributes: names of those that are constant for each user or item.
        honest: columns that are known before: ids, position, attributes. Their best AUC is the bound for a feature.
        halves: (n,) see :func:`single_auc`.
    """
    if not label.any() or label.all():
        return {}
    aucs = {c.name: single_auc(c, label, halves) for c in {c.name: c for c in (*columns, *honest)}.values()}
    best = max((aucs[c.name] for c in honest), default=0.5)
    first = max(honest, key=lambda c: aucs[c.name]).name if honest else None
    found: dict[str, LeftOut] = {}
    for column in columns:
        auc = aucs[column.name]
        if column.name not in attributes:
            why = only_with_label(column, label, groups)
            if why:
                found[column.name] = LeftOut("only-with-label", why, auc)
                continue
        limit = min(HIGH, max(LEAST_AUC, best + BEYOND)) if honest else HIGH
        if auc >= limit:
            than = f"; '{first}' has {best:.3f}, the best of those that are known before" if first else ""
            found[column.name] = LeftOut("beyond", f"alone it has an AUC of {auc:.3f}{than}", auc)
        elif column.name not in attributes and (word := named_outcome(column)):
            why = f"its name says '{word}'; nothing in the rows proves it (AUC {auc:.3f})"
            found[column.name] = LeftOut("name", why, auc)
    return found
