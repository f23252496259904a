# core
"""How complete labels are by waiting time: the share of an exposure's clicks that has come t after it.

A log ends, so late clicks on its last exposures are missing. Therefore each exposure counts for as long as it was
watched (Kaplan and Meier 1958). With d(t) clicks after exactly t::

    watched    end of the log - time of the exposure; the end is the latest time in the log
    at risk    r(t)   exposures not clicked before t and watched at least t
    F(t)       1 - prod over t_i <= t of (1 - d(t_i) / r(t_i))      share of exposures clicked within t
    c(t)       F(t) / F(longest)                                    completeness: share of the clicks

Taking only exposures that are old enough gives the same in a long log, and nothing in a log shorter than the longest
window. The estimate assumes that the last exposures are clicked as late as the others. There is no figure beyond the
time for which fewer than :data:`FEWEST` exposures were watched; completeness is then relative to that time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import span_name
from millrace.basics.ranking_metrics import known
from millrace.commands.offline.intervals import DIGITS
from millrace.commands.replay.logfeatures import NEVER, EventOutcome

FEWEST = 100
"""Least exposures watched for a time, for a figure at that time."""

FEWEST_CLICKS = 20
"""A slot or segment with fewer has no figures."""

QUANTILES = (0.5, 0.8, 0.9, 0.95, 0.99)

POINTS = 60


@dataclass(frozen=True, slots=True)
class DelayedClicks:
    """When exposures were clicked, and how long they were watched. n exposures."""

    delay_ms: NDArray[np.int64]  # (n,) -1: not clicked while it was watched
    watched_ms: NDArray[np.int64]  # (n,) at least the delay

    @classmethod
    def of(cls, ts_ms: NDArray[np.int64], acted_ms: NDArray[np.int64], clicked: NDArray[np.bool_]) -> DelayedClicks:
        """``acted_ms``: times of the clicks, not before the exposure; read where ``clicked``."""
        end = max(int(ts_ms.max(initial=0)), int(acted_ms[clicked].max(initial=0)))
        return cls(np.where(clicked, acted_ms - ts_ms, -1), end - ts_ms)

    @classmethod
    def of_outcome(cls, one: EventOutcome) -> DelayedClicks:
        """The same of an outcome, from its click or exposure on."""
        base_ms, came_ms = one.base_ms[one.defined], one.came_ms[one.defined]
        return cls.of(base_ms, np.maximum(came_ms, base_ms), came_ms < NEVER)

    def some(self, rows: NDArray[Any]) -> DelayedClicks:
        return DelayedClicks(self.delay_ms[rows], self.watched_ms[rows])


class Curve:
    """F(t) and c(t) of some exposures. Labels count as complete after ``longest_ms``."""

    longest_ms: int
    """The reference time of completeness: less than asked for where too few exposures were watched that long."""

    def __init__(self, clicks: DelayedClicks, longest_ms: int, fewest: int = FEWEST) -> None:
        watched = np.sort(clicks.watched_ms)
        self._watched = watched
        n = len(watched)
        reach = int(watched[n - fewest]) if n >= fewest else int(watched[-1]) if n else 0
        self.longest_ms = min(longest_ms, reach)
        hit = clicks.delay_ms >= 0
        self.clicks = int((clicks.delay_ms[hit] <= self.longest_ms).sum())
        at, count = np.unique(clicks.delay_ms[hit], return_counts=True)
        # Leaves the set at risk: after its click, or when it is watched no longer.
        left = np.sort(np.where(hit, clicks.delay_ms, clicks.watched_ms))
        risk = n - np.searchsorted(left, at, side="left")
        with np.errstate(divide="ignore"):
            self._at, self._f = at, -np.expm1(np.cumsum(np.log1p(-count / np.maximum(risk, 1))))
        self._whole = float(self._clicked(np.array([self.longest_ms]))[0])

    def completeness(self, t_ms: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
        """c(t), (m,); NaN without a click, or where t is beyond what the log can tell."""
        t = np.asarray(t_ms, np.float64)
        if not self._whole:
            return np.full(len(t), np.nan)
        return np.where(t > self.longest_ms, np.nan, self._clicked(t) / self._whole)

    def quantile_ms(self, share: float) -> int | None:
        """The time within which this share of the clicks has come; None without a click."""
        if not self._whole:
            return None
        # The comparison must not fail by the last bit where the share is reached exactly.
        return int(self._at[np.searchsorted(self._f, share * self._whole * (1 - 1e-12), side="left")])

    def watched(self, t_ms: float) -> int:
        """Exposures that were watched for at least ``t_ms``."""
        return len(self._watched) - int(np.searchsorted(self._watched, t_ms, side="left"))

    def _clicked(self, t: NDArray[Any]) -> NDArray[np.float64]:
        places = np.searchsorted(self._at, t, side="right")
        return np.concatenate([[0.0], self._f])[places]


def by_window(curve: Curve, windows: Sequence[int]) -> list[dict[str, Any]]:
    found = curve.completeness(windows).tolist()
    return [
        {
            "waiting_time": span_name(ms),
            "seconds": ms / 1000,
            "completeness": known(c, DIGITS),
            "at_risk": curve.watched(ms),
        }
        for ms, c in zip(windows, found, strict=True)
    ]


def quantiles(curve: Curve) -> list[dict[str, Any]]:
    rows = []
    for share in QUANTILES:
        ms = curve.quantile_ms(share)
        found = (
            {"seconds": None, "waiting_time": None}
            if ms is None
            else {"seconds": ms / 1000, "waiting_time": span_name(ms)}
        )
        rows.append({"share_of_clicks": share, **found})
    return rows


def by_group(
    clicks: DelayedClicks, group: NDArray[np.integer[Any]], names: Sequence[str], windows: Sequence[int], key: str
) -> list[dict[str, Any]]:
    """A row for each group with exposures. ``group`` (n,) numbers each exposure's group, ``names`` is by number."""
    rows = []
    for number, name in enumerate(names):
        own = np.flatnonzero(group == number)
        if not len(own):
            continue
        curve = Curve(clicks.some(own), max(windows))
        row: dict[str, Any] = {key: name, "rows": len(own), "positives": curve.clicks}
        enough = curve.clicks >= FEWEST_CLICKS
        for ms, c in zip(windows, curve.completeness(windows).tolist(), strict=True):
            row[f"within_{span_name(ms)}"] = known(c, DIGITS) if enough else None
        for share in (0.5, 0.9):
            at = curve.quantile_ms(share) if enough else None
            row[f"{share:.0%}_come_within_s"] = None if at is None else at / 1000
        rows.append(row)
    return rows


def points(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Curves for a plot: ``name``, ``seconds``, ``completeness``."""
    out = []
    for name, curve in curves.items():
        first = max(100, curve.quantile_ms(0.01) or 100) / 2
        if curve.longest_ms <= first or not curve.clicks:
            continue
        t = np.geomspace(first, curve.longest_ms, POINTS)
        out.append(
            {
                "name": name,
                "seconds": (t / 1000).round(3).tolist(),
                "completeness": curve.completeness(t).round(5).tolist(),
            }
        )
    return out
