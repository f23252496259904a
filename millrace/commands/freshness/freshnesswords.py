# core
"""What a freshness report says in words: its one sentence, and the names of its models."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from millrace.basics.clustered import FEW
from millrace.basics.durations import span_name
from millrace.commands.freshness.measure import Figure, Measured
from millrace.commands.offline.synchronising import BATCH, DAILY, NEVER

RETRAINED, BASELINE = "retrained daily", "item's smoothed rate"
NO_PAGES = "The log has no pages, so nothing is said of their order"
LIVE, DAY_OLD = "live", "day-old"
FROZEN = "window counts frozen at midnight, all else live"

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


def verdict(
    found: Measured, fresh: str, reference: str, day_old: bool, late: Late | None = None, pages: bool = True
) -> str:
    """The report in plain sentences: the worth of learning as often as ``fresh`` on live features instead of as often
    as ``reference`` on day-old ones; then each of the two gains beyond the other. Without models on day-old features,
    the first is of learning alone. Then what learning adds to the order within pages, the unit of serving, if the log
    has them. A last sentence says where late clicks make the gain of learning an upper bound."""
    learning = f"learning {how_often(fresh)} instead of {how_often(reference)}"

    def gain(who: str, one: str, other: str, loss: bool = True, many: bool = False) -> str:
        return _gain(who, found.gap(one, other, "auc"), found.gain_percent(one, other) if loss else None, many)

    if day_old:
        said = gain(" instead of ".join(whole(fresh, reference)), fresh, named(DAY_OLD, reference))
        said += f". Beyond live features, {gain(learning, fresh, reference)}"
        features = gain("live window features instead of day-old ones", fresh, named(DAY_OLD, fresh), False, True)
        said += f"; beyond that learning, {features}"
    else:
        said = gain(learning, fresh, reference)
    order = found.gap(fresh, reference, "page_auc")
    if not pages or math.isnan(order.value):
        said += f". {'No page has a click and an exposure without one' if pages else NO_PAGES}"
    else:
        said += f". Within pages, {_gain(learning, order, what='AUC of a page')}"
    bound = (
        f" For learning this is an upper bound: labels are {late.said}." if late is not None and late.share > 0 else ""
    )
    return f"On this log {said}.{bound}"


def whole(fresh: str, reference: str) -> tuple[str, str]:
    """(the live loop, what it is compared with), in words: weights and features, fresh or not."""
    job = "a nightly job" if reference == DAILY else "a job"
    return f"a live loop (learning {how_often(fresh)}, live window features)", (
        f"{job} (learning {how_often(reference)}, {FROZEN})"
    )


def _gain(who: str, auc: Figure, loss: Figure | None = None, many: bool = False, what: str = "AUC") -> str:
    """What ``who`` gains. ``many``: the words name several things. ``what``: the name of the figure ``auc``."""
    if not math.isfinite(auc.half):
        return f"nothing can be said of {who}: {FEW}"
    if auc.none and (loss is None or loss.none):
        return f"{who} {'give' if many else 'gives'} the same scores, so nobody can tell what that is worth"
    if not auc.shown and (loss is None or not loss.shown):
        return (
            f"no difference could be shown for {who} ({_signed(auc)} {what}); the smallest gain this log could have "
            f"shown is {number(auc.smallest)} {what}"
        )
    own = f"{who} {_verb(auc, many)} {number(auc.value)} ± {number(auc.half)} {what}"
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
