# core
"""What the live page answers first: whether the model learns, how fast, and when that is known which is not known yet.

An answer is a dictionary: ``value`` in a few words, empty where nothing is known; ``says``, in a sentence or two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from commands.loop.series import Series
from commands.loop.stage_times import ROLE_OF
from millrace.contracts.events import CONTROL, MODEL

Figures = Mapping[str, float | None]
Answer = dict[str, Any]

STAGE = "click_stage_ms_"
"""Begins the name of a figure that is the mean time (ms) of a stage of the newest clicks."""
NO_BAND = "No band: no archive counts clicks by user."

_JUDGED = ("auc", "page_auc", "log_loss", "calibration")
_CHARTS = {
    "click rate": ("ctr_model",),
    "rolling AUC, AUC of a page, log loss and calibration": _JUDGED,
    "click to served": ("click_to_served_p50_ms",),
    "freshness": ("freshness_s",),
}
"""What is drawn, as the page calls it, and its columns."""


def when(left_s: float, now_ms: int) -> str:
    """When settled labels are there, ``left_s`` seconds from now.

    >>> when(20.4, 0), when(360.0, 0), when(-1.0, 0)
    ('in about 21 s', 'in about 6 minutes, at 00:06 UTC', 'with the next exposures that settle')
    """
    if left_s <= 0:
        return "with the next exposures that settle"
    if left_s < 90:
        return f"in about {int(left_s) + 1} s"
    return f"in about {left_s / 60:.0f} minutes, at {_clock(now_ms + 1000 * left_s)} UTC"


def learns(
    arms: Sequence[Mapping[str, Any]],
    figures: Figures,
    series: Series,
    settled: str,
    *,
    simulated: bool,
    control: bool,
    archive: bool,
) -> Answer:
    """Whether the model's pages are clicked more than random ones, or than those of another arm.

    Args:
        arms: rows of :func:`~commands.loop.monitor.arms_of`; they have the band.
        settled: when labels are settled (:func:`when`): click rates wait for it where no simulator sees the pages.
        control: whether some pages are random.
        archive: whether an archive counts clicks by user, which makes a band possible.
    """
    clicks = {row["arm"]: row for row in arms if row["outcome"] == "click"}
    then = _before(series, "ctr_model", "ctr_control")
    now = figures.get("ctr_model"), figures.get("ctr_control")
    rates, earlier = (now, "") if now[0] is not None or then is None else then
    other = next((arm for arm in clicks if arm != MODEL), "")
    mine, theirs = (clicks.get(arm, {}).get("mean_estimate") for arm in (MODEL, other))
    if control and rates[0] is not None and rates[1]:
        other, beside, gain = CONTROL, "random ones", rates[0] / rates[1]
        said = f"The model's pages are clicked at {rates[0]:.1%}, random ones at {rates[1]:.1%}{earlier}."
    elif mine is not None and theirs:
        beside, gain = f"those of arm {other}", mine / theirs
        said = f"A user clicks {mine:.2f} times on the model's pages, {theirs:.2f} on those of arm {other}."
    elif rates[0] is not None:
        lacks = "No click on a random page is known yet." if control else "No page is random, to compare with."
        return {"value": f"{rates[0]:.1%}", "says": f"of the model's pages are clicked{earlier}. {lacks}"}
    else:
        what = "The first pages are awaited" if simulated else f"Click rates come {settled}"
        return {"value": "", "says": f"{what}: nobody's clicks are known yet."}
    words = (
        f"{gain:.1f} times as many clicks as {beside}" if gain >= 1 else f"only {gain:.2f} of the clicks of {beside}"
    )
    return {"value": words, "says": f"{said} {_band(clicks, other) if archive else NO_BAND}"}


def _band(clicks: Mapping[str, Mapping[str, Any]], other: str) -> str:
    """The gain of a user, with its band. Arms are compared with random pages where there are any, else with the
    model's."""
    row, sign = (clicks.get(MODEL, {}), 1) if other == CONTROL else (clicks[other], -1)
    estimate, low, high = (row.get(f"more_{bound}") for bound in ("estimate", "low", "high"))
    if estimate is None or low is None or high is None:
        return "A band comes when enough users' horizons are over."
    low, high = sorted((sign * low, sign * high))
    decided = "decided" if low > 0 or high < 0 else "not decided yet"
    return f"That is {sign * estimate:+.2f} clicks a user ({low:+.2f} to {high:+.2f} with 95%): {decided}."


def fast(figures: Figures, series: Series) -> Answer:
    """How long a click takes until it changes what serves. ``stages``: name and mean ms of each, of the newest clicks;
    ``clicks``: how many clicks have come so far."""
    then = _before(series, "click_to_served_p50_ms", "click_to_served_p99_ms")
    now = figures.get("click_to_served_p50_ms"), figures.get("click_to_served_p99_ms")
    (p50, p99), earlier = (now, "") if now[0] is not None or then is None else then
    stages = [{"name": stage, "ms": figures.get(STAGE + stage)} for stage in ROLE_OF]
    answer = {"value": "", "stages": stages, "clicks": figures.get("clicks_served") or 0.0}
    if p50 is None:
        return answer | {"says": "The first click that is learnt is awaited."}
    within = "" if p99 is None else f", for 99 of 100 clicks {p99 / 1000:.2f} s"
    says = f"from a click to the weights that serve, as the median{within}{earlier}."
    return answer | {"value": f"{p50 / 1000:.2f} s", "says": says}


def awaited(series: Series, settled: str) -> str:
    """What is not drawn yet, and when it comes; empty where everything is drawn."""
    comes = {
        "click rate": settled,
        "click to served": "with the first click that is learnt",
        "freshness": "with the first version that learnt",
    }
    lacking = [name for name, columns in _CHARTS.items() if not any(series.last(column) for column in columns)]
    said = "; ".join(f"{name} {comes.get(name, settled)}" for name in lacking)
    return f"Awaited: {said}." if said else ""


def _before(series: Series, *columns: str) -> tuple[tuple[float | None, ...], str] | None:
    """The last values of columns of which the first was known, and of when they are, in words."""
    last = series.last(*columns)
    if last is None:
        return None
    wall_ms, values = last
    return values, f" (as of {_clock(wall_ms)} UTC)"


def _clock(ms: float) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M")
