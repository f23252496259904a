# core
"""What a freshness report says in words: its one sentence, and the names of its models."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from millrace.contracts.clustered import FEW
from millrace.freshness.measure import Figure, Measured
from millrace.offline.follow import BATCH, DAILY, NEVER
from millrace.reports.spans import span_name

RETRAINED, BASELINE = "retrained daily", "item's smoothed rate"
LIVE, DAY_OLD = "live", "day-old"

_EVERY = {"hourly": "every hour", "minute": "every minute", DAILY: "every day", BATCH: "with every micro-batch"}
_UNITS = {"min": "minutes", "h": "hours"}


def named(features: str, sync: str) -> str:
    """The name of a model that synchronises so often, on such features."""
    return sync if features == LIVE else f"{sync}, {features} features"


def how_often(sync: str) -> str:
    """``minute``: every minute; ``never``: never again."""
    if sync == NEVER:
        return "never again"
    part = re.fullmatch(r"(\d+) ?(min|h)", sync)
    return _EVERY[sync] if part is None else f"every {part[1]} {_UNITS[part[2]]}"


def number(value: float) -> str:
    """A figure of AUC: .0021."""
    return f"{abs(value):.4f}".removeprefix("0")


@dataclass(frozen=True, slots=True)
class Late:
    """How many clicks came too late to be learnt from as early as they are here."""

    finest_ms: float  # between two synchronisations of the freshest model
    share: float  # of the clicks with a time, those that came later than that
    untimed: int  # clicks without a time

    @property
    def said(self) -> str:
        share = f"{100 * self.share:.1f}% of the clicks came later than {span_name(self.finest_ms)}"
        return f"taken as known right after the exposure, but {share}"


def verdict(found: Measured, fresh: str, reference: str, day_old: bool, late: Late | None = None) -> str:
    """One plain sentence: what learning as often as ``fresh`` is worth instead of ``reference``, and what live features
    are. A second one says so where clicks that come late make the first an upper bound."""
    said = _weights(found, fresh, reference)
    if day_old:
        said += "; " + _features(found.gap(fresh, named(DAY_OLD, fresh), "auc"))
    bound = (
        f" For learning this is an upper bound: labels are {late.said}." if late is not None and late.share > 0 else ""
    )
    return f"On this log {said}.{bound}"


def _weights(found: Measured, fresh: str, reference: str) -> str:
    auc, loss = found.gap(fresh, reference, "auc"), found.gain_percent(fresh, reference)
    who = f"a model that learns {how_often(fresh)} instead of {how_often(reference)}"
    if not math.isfinite(auc.half):
        return f"nothing can be said of {who}: {FEW}"
    if auc.none and loss.none:
        return f"{who} gives the same scores, so nobody can tell what that is worth"
    if not auc.shown and not loss.shown:
        return (
            f"no difference could be shown for {who} ({_signed(auc)} AUC); the smallest gain this log could have "
            f"shown is {number(auc.smallest)} AUC"
        )
    if auc.shown:
        said = f"{who} {_verb(auc)} {number(auc.value)} ± {number(auc.half)} AUC"
        if not loss.shown:
            return said + f", and no difference in log loss could be shown ({loss.value:+.2f}% ± {loss.half:.2f}%)"
        if (auc.value > 0) != (loss.value > 0):
            return said + f", but {_verb(loss)} {abs(loss.value):.2f}% ± {loss.half:.2f}% log loss"
        return said + f" and {abs(loss.value):.2f}% ± {loss.half:.2f}% log loss"
    return (
        f"{who} {_verb(loss)} {abs(loss.value):.2f}% ± {loss.half:.2f}% log loss, and no difference in AUC could be "
        f"shown ({_signed(auc)})"
    )


def _features(gap: Figure) -> str:
    who = "live window features instead of day-old ones"
    if not math.isfinite(gap.half):
        return f"nothing can be said of {who}"
    if gap.none:
        return f"{who} give the same scores"
    if gap.shown:
        return f"{who} {'gain' if gap.value > 0 else 'lose'} {number(gap.value)} ± {number(gap.half)} AUC"
    return (
        f"no difference could be shown for {who} ({_signed(gap)} AUC; the smallest it could have shown is "
        f"{number(gap.smallest)})"
    )


def _verb(figure: Figure) -> str:
    return "gains" if figure.value > 0 else "loses"


def _signed(figure: Figure) -> str:
    return f"{'+' if figure.value >= 0 else '-'}{number(figure.value)} ± {number(figure.half)}"
