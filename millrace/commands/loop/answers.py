# core
"""What the live page answers first: whether the model learns, how fast, and when that is known which is not known yet.

An answer is a dictionary: ``value`` in a few words, empty where nothing is known; ``says``, in a sentence or two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from millrace.commands.loop.series import Series
from millrace.commands.loop.stage_times import ROLE_OF
from millrace.contracts.events import CONTROL, MODEL
from millrace.evidence.sequences import difference, mean_of

Figures = Mapping[str, float | None]
Answer = dict[str, Any]

STAGE = "click_stage_ms_"
"""Begins the name of a figure that is the mean time (ms) of a stage of the newest clicks."""
NO_BAND = "No band: no archive counts clicks by user."

_ROWS = "served_rows", "served_rows_control"
_JUDGED = ("auc", "page_auc", "log_loss", "calibration")
_CHARTS = {
    "click rate": ("ctr_model",),
    "rolling AUC, AUC of a page, log loss and calibration": _JUDGED,
    "click to served": ("click_to_served_p50_ms",),
    "freshness": ("freshness_s",),
}
"""What is drawn, as the page calls it, and its columns."""


def when(settles_s: float, started_ms: int, now_ms: int) -> str:
    """When settled labels are there, which takes ``settles_s`` from the first pages on. ``started_ms``: 0: not yet.

    >>> when(20.0, 0, 9), when(20.0, 1000, 1000), when(360.0, 60_000, 60_000), when(20.0, 1, 30_000)
    ('20 s after the first pages', 'in 20 s', 'in 6 minutes, at 00:07 UTC', 'with the next exposures that settle')
    """
    left_s = settles_s - (now_ms - started_ms) / 1000 if started_ms else settles_s
    if left_s <= 0:
        return "with the next exposures that settle"
    span = f"{math.ceil(left_s)} s" if left_s < 90 else f"{math.ceil(left_s / 60)} minutes"
    if not started_ms:
        return f"{span} after the first pages"
    return f"in {span}" + (f", at {_clock(now_ms + 1000 * left_s)} UTC" if left_s >= 90 else "")


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
        arms: rows of :func:`~millrace.commands.loop.monitor.arms_of`; they have the band.
        settled: when labels are settled (:func:`when`).
        simulated: whether a simulator sees the pages: then click rates do not wait for labels.
        control: whether some pages are random.
        archive: whether an archive counts clicks by user, which makes a band possible.
    """
    clicks = {row["arm"]: row for row in arms if row["outcome"] == "click"}
    names = "ctr_model", "ctr_control", *(("page_exposures_model", "page_exposures_control") if simulated else _ROWS)
    then = _before(series, *names)
    now = tuple(figures.get(name) for name in names)
    (rate, random, *rows), earlier = (now, "") if now[0] is not None or then is None else then
    other = next((arm for arm in clicks if arm != MODEL), "")
    mine, theirs = (clicks.get(arm, {}).get("mean_estimate") for arm in (MODEL, other))
    decided = False
    if control and rate is not None and random:
        other, beside, gain = CONTROL, "random ones", rate / random
        said = f"The model's pages are clicked at {rate:.1%}, random ones at {random:.1%}{earlier}."
        decided = _apart((rate, rows[0]), (random, rows[1]))
    elif mine is not None and theirs:
        beside, gain = f"those of arm {other}", mine / theirs
        said = f"A user clicks {mine:.2f} times on the model's pages, {theirs:.2f} on those of arm {other}."
    elif rate is not None:
        lacks = "No click on a random page is known yet." if control else "No page is random, to compare with."
        return {"value": f"{rate:.1%}", "says": f"of the model's pages are clicked{earlier}. {lacks}"}
    else:
        return {"value": "", "says": f"No click is known yet. Click rates come {_rates(settled, simulated)}."}
    more = _more(clicks, other)
    if more is not None:
        decided = more[1] > 0 or more[2] < 0
        band = f"That is {more[0]:+.2f} clicks a user ({more[1]:+.2f} to {more[2]:+.2f} with 95%)."
    else:
        band = "A band comes when enough users' horizons are over." if archive else NO_BAND
    words = f"{gain:.1f} times the clicks of {beside}" if gain >= 1 else f"only {gain:.2f} of the clicks of {beside}"
    return {"value": words if decided else "too early to tell", "says": f"{said} {band}"}


def _apart(*arms: tuple[float, float | None]) -> bool:
    """Whether click rates of so many exposures differ for certain even if all exposures were independent. Those of one
    user are not, so this is the least that is asked where no archive counts by user."""
    model, random = (mean_of(int(rows or 0), rate * (rows or 0), rate * (rows or 0)) for rate, rows in arms)
    return difference(model, random).decided


def _more(clicks: Mapping[str, Mapping[str, Any]], other: str) -> tuple[float, float, float] | None:
    """What a user clicks more on the model's pages than on those of ``other``, and its band; None: not known. The
    archive compares with random pages where there are any, else with the model's."""
    row, sign = (clicks.get(MODEL, {}), 1) if other == CONTROL else (clicks[other], -1)
    estimate, low, high = (row.get(f"more_{bound}") for bound in ("estimate", "low", "high"))
    if estimate is None or low is None or high is None:
        return None
    low, high = sorted((sign * low, sign * high))
    return sign * estimate, low, high


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
    within = "" if p99 is None else f"; 99 of 100 clicks take at most {p99 / 1000:.2f} s"
    says = f"is the median from a click to the weights that serve{within}{earlier}."
    return answer | {"value": f"{p50 / 1000:.2f} s", "says": says}


def awaited(series: Series, settled: str, *, simulated: bool) -> str:
    """What is not drawn yet, and when it comes; empty where everything is drawn."""
    comes = {
        "click rate": _rates(settled, simulated),
        "click to served": "with the first click that is learnt",
        "freshness": "with the first version that learnt",
    }
    lacking = [name for name, columns in _CHARTS.items() if not any(series.last(column) for column in columns)]
    said = "; ".join(f"{name} {comes.get(name, settled)}" for name in lacking)
    return f"Awaited: {said}." if said else ""


def _rates(settled: str, simulated: bool) -> str:
    return "with the first pages" if simulated else settled


def _before(series: Series, *columns: str) -> tuple[tuple[float | None, ...], str] | None:
    """The last values of columns of which the first was known, and of when they are, in words."""
    last = series.last(*columns)
    if last is None:
        return None
    wall_ms, values = last
    return values, f" (as of {_clock(wall_ms)} UTC)"


def _clock(ms: float) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M")
