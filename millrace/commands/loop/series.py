# core
"""The run so far as a few hundred points, which the page draws and the terminal shows as a sparkline.

When the list is full, every second point is dropped and points are added half as often. So memory and the page's
payload are bounded however long the run, and the whole run stays visible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

PROCESSES = ("simulate", "stream", "learn", "serve", "intake", "archive", "broker", "redis", "demo", "up")
"""The processes of a run: roles, embedded services, and the program that watches over them."""

PAGE_ORDER = ("page_auc", "baseline_page_auc")
"""AUC of a page by the model and by the item's own click rate: of the model's pages, and of random ones."""

GAUGES = (
    "auc",
    "oracle_auc",
    "baseline_auc",
    *PAGE_ORDER,
    *(f"{name}_control" for name in PAGE_ORDER),
    "log_loss",
    "calibration",
    "auc_control",
    "log_loss_control",
    "calibration_control",
    "freshness_s",
    "click_to_served_p50_ms",
    "click_to_served_p99_ms",
    "served_version",
    "served_rows",
    "served_rows_control",
    "page_exposures_model",
    "page_clicks_model",
    "page_exposures_control",
    "page_clicks_control",
    *(f"memory_{name}" for name in PROCESSES),
    "memory_total",
)
RATES = {"exposures_per_s": "exposures", "samples_per_s": "samples", "trained_per_s": "trained"}
COLUMNS = ("wall_ms", "event_ms", *GAUGES, *RATES, "ctr_model", "ctr_control")

_RATE_MS = 5000.0

KeyFigures = Mapping[str, float | None]
"""The key figures of one moment, by name; None where nothing is known yet."""


class _Kept(msgspec.Struct, frozen=True):
    """The file of a series; columns by name, for another version may have others."""

    columns: tuple[str, ...]
    every: int
    points: list[list[float | None]]


class Series:
    """Points of a run, at most ``limit``. Click rates are over ``ctr_seconds``, since control pages are few."""

    def __init__(self, limit: int = 600, ctr_seconds: float = 30.0) -> None:
        self.points: list[tuple[float | None, ...]] = []
        self._limit = limit
        self._ctr_ms = ctr_seconds * 1000
        self._recent: deque[tuple[int, KeyFigures]] = deque()
        self._every = 1
        self._seen = 0

    def add(self, wall_ms: int, event_ms: int, figures: KeyFigures) -> None:
        """Takes in the figures of one moment; moments come in order."""
        self._recent.append((wall_ms, figures))
        while len(self._recent) > 2 and self._recent[1][0] <= wall_ms - max(self._ctr_ms, _RATE_MS):
            self._recent.popleft()
        self._seen += 1
        if self._seen % self._every:
            return
        rates = [self.rate(name) for name in RATES.values()]
        ctr = [self._arm(arm, figures) for arm in ("model", "control")]
        self.points.append((wall_ms, event_ms, *(figures.get(g) for g in GAUGES), *rates, *ctr))
        if len(self.points) > self._limit:
            del self.points[-2::-2]
            self._every *= 2

    def encoded(self) -> bytes:
        """The points, for :meth:`resume`."""
        return msgspec.json.encode({"columns": COLUMNS, "every": self._every, "points": list(self.points)})

    def resume(self, raw: bytes, now_ms: int) -> None:
        """Goes on from what :meth:`encoded` gave, with a gap in every line. Points of a time to come are left out.
        Raises ValueError, and nothing has changed, where that is no such file."""
        kept = msgspec.json.decode(raw, type=_Kept)
        at = {name: n for n, name in enumerate(kept.columns)}
        if {"wall_ms", "event_ms"} - at.keys() or kept.every < 1 or len(kept.points) > self._limit:
            raise ValueError(f"{len(kept.points)} points of {len(at)} columns, 1 in {kept.every}")
        points = list[tuple[float | None, ...]]()
        for n, point in enumerate(kept.points):
            wall_ms, event_ms = (point[at[name]] if len(point) == len(at) else None for name in COLUMNS[:2])
            if wall_ms is None or event_ms is None or (points and wall_ms <= (points[-1][0] or 0)):
                raise ValueError(f"point {n} has {len(point)} of {len(at)} columns, or no later time")
            if wall_ms <= now_ms:
                points.append(tuple(point[at[name]] if name in at else None for name in COLUMNS))
        if points:
            points.append((*((ms or 0) + 1 for ms in points[-1][:2]), *[None] * (len(COLUMNS) - 2)))
        self.points, self._every = points[-self._limit :], kept.every

    def rate(self, name: str) -> float | None:
        """Growth of a total per second, over the last seconds; None before there are two moments."""
        pair = self._over(_RATE_MS)
        if pair is None:
            return None
        (t0, old), (t1, new) = pair
        return max(0.0, (new.get(name) or 0.0) - (old.get(name) or 0.0)) / (t1 - t0) * 1000

    def _arm(self, arm: str, figures: KeyFigures) -> float | None:
        """The click rate to draw. A simulator sees its pages; else the learner reports that of settled exposures."""
        seen = figures.get("page_exposures_model") is not None
        return self.click_rate(arm) if seen else figures.get(f"click_rate_{arm}")

    def click_rate(self, arm: str) -> float | None:
        """Clicks per exposure of an arm's pages over the last half minute; None when it had no page."""
        pair = self._over(self._ctr_ms)
        if pair is None:
            return None
        (_, old), (_, new) = pair
        clicks, seen = (
            (new.get(f"page_{what}_{arm}") or 0.0) - (old.get(f"page_{what}_{arm}") or 0.0)
            for what in ("clicks", "exposures")
        )
        return clicks / seen if seen > 0 else None

    def _over(self, span_ms: float) -> tuple[tuple[int, KeyFigures], tuple[int, KeyFigures]] | None:
        if len(self._recent) < 2:
            return None
        newest = self._recent[-1]
        first = next(m for m in self._recent if m[0] >= newest[0] - span_ms)
        if first is newest:
            first = self._recent[-2]
        return (first, newest) if newest[0] > first[0] else None

    def column(self, name: str) -> list[float | None]:
        at = COLUMNS.index(name)
        return [point[at] for point in self.points]

    def last(self, *names: str) -> tuple[float, tuple[float | None, ...]] | None:
        """The values of columns at the newest point that has the first of them, and its wall time (ms)."""
        at = [COLUMNS.index(name) for name in names]
        for point in reversed(self.points):
            if point[at[0]] is not None:
                return point[0] or 0.0, tuple(point[n] for n in at)
        return None

    def columns(self) -> dict[str, list[float | None]]:
        return {name: self.column(name) for name in COLUMNS}
