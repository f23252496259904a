# core
"""What a freshness report says in words: its one sentence, and the names of its models."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from commands.freshness.measure import Figure, Measured
from commands.offline.follow import BATCH, DAILY, NEVER
from millrace.basics.clustered import FEW
from millrace.reports.spans import span_name

RETRAINED, BASELINE = "retrained daily", "item's smoothed rate"
LIVE, DAY_OLD = "live", "day-old"

_EVERY = {"hourly": "every hour", "minute": "every minute", DAILY: "every day", BATCH: "with every micro-batch"}
_UNITS = {"min": "minutes", "h": "hours"}


def named(features: str, sync: str) -> str:
    """The name of a model by its features and synchronisation."""
    return sync if features == LIVE else f"{sync}, {features} features"


def how_often(sync: str) -> str:
    if sync == NEVER:
        return "never again"
    part = re.fullmatch(r"(\d+) ?(min|h)", sync)
    return _EVERY[sync] if part is None else f"every {part[1]} {_UNITS[part[2]]}"


def number(value: float) -> str:
    return f"{abs(value):.4f}".removeprefix("0")


@dataclass(frozen=True, slots=True)
class Late:
    """Clicks that came too late to be learnt as early as in these runs."""

    finest_ms: float  # between two synchronisations of the freshest model
    share: float  # of the clicks with a time, those that came later than that
    untimed: int  # clicks without a time

    @property
    def said(self) -> str:
        share = f"{100 * self.share:.1f}% of the clicks came later than {span_name(self.finest_ms)}"
        return f"taken as known right after the exposure, but {share}"


def verdict(found: Measured, fresh: str, reference: str, day_old: bool, late: Late | None = None) -> str:
    """The report in plain sentences: the worth of learning as often as ``fresh`` on live features instead of as often
    as ``reference`` on day-old ones; then each of the two gains beyond the other. Without models on day-old features,
    the first is of learning alone. A last sentence says where late clicks make the gain of learning an upper bound."""
    learning = f"learning {how_often(fresh)} instead of {how_often(reference)}"
    weights = found.gap(fresh, reference, "auc"), found.gain_percent(fresh, reference)
    if day_old:
        said = _whole(found, fresh, reference) + f". Beyond live features, {_gain(learning, *weights)}"
        features = found.gap(fresh, named(DAY_OLD, fresh), "auc")
        said += f"; beyond that learning, {_gain('live window features instead of day-old ones', features, many=True)}"
    else:
        said = _gain(learning, *weights)
    bound = (
        f" For learning this is an upper bound: labels are {late.said}." if late is not None and late.share > 0 else ""
    )
    return f"On this log {said}.{bound}"


def whole(fresh: str, reference: str) -> tuple[str, str]:
    """(the live loop, what it is compared with), in words: weights and features, fresh or not."""
    job = "a nightly job" if reference == DAILY else "a job"
    return f"a live loop (learning {how_often(fresh)}, live window features)", (
        f"{job} (learning {how_often(reference)}, day-old features)"
    )


def _whole(found: Measured, fresh: str, reference: str) -> str:
    base = named(DAY_OLD, reference)
    return _gain(
        " instead of ".join(whole(fresh, reference)), found.gap(fresh, base, "auc"), found.gain_percent(fresh, base)
    )


def _gain(who: str, auc: Figure, loss: Figure | None = None, many: bool = False) -> str:
    """What ``who`` gains. ``many``: the words name several things."""
    if not math.isfinite(auc.half):
        return f"nothing can be said of {who}: {FEW}"
    if auc.none and (loss is None or loss.none):
        return f"{who} {'give' if many else 'gives'} the same scores, so nobody can tell what that is worth"
    if not auc.shown and (loss is None or not loss.shown):
        return (
            f"no difference could be shown for {who} ({_signed(auc)} AUC); the smallest gain this log could have "
            f"shown is {number(auc.smallest)} AUC"
        )
    own = f"{who} {_verb(auc, many)} {number(auc.value)} ± {number(auc.half)} AUC"
    if loss is None:
        return own
    percent = f"{abs(loss.value):.2f}% ± {loss.half:.2f}% log loss"
    if not auc.shown:
        return f"{who} {_verb(loss, many)} {percent}, and no difference in AUC could be shown ({_signed(auc)})"
    if not loss.shown:
        return own + f", and no difference in log loss could be shown ({loss.value:+.2f}% ± {loss.half:.2f}%)"
    if (auc.value > 0) != (loss.value > 0):
        return own + f", but {_verb(loss, many)} {percent}"
    return own + f" and {percent}"


def _verb(figure: Figure, many: bool) -> str:
    return ("gain" if figure.value > 0 else "lose") + ("" if many else "s")


def _signed(figure: Figure) -> str:
    return f"{'+' if figure.value >= 0 else '-'}{number(figure.value)} ± {number(figure.half)}"
