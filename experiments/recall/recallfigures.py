# core
"""What the runs of ``millrace dev experiment recall`` come to: click rates, ratios with intervals, sources.

A run is one way of making pages (an *arm*) on one simulated day. All arms of a world meet the same visits with the same
luck, and pages are always filled, so every shopper has the same exposures in each arm::

    ratio = (clicks of the arm / its exposures) / (clicks of `popular` / its exposures)

The interval is over worlds: Student's t on the logarithms of the worlds' ratios.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from commands.offline.intervals import rounded

Run = Mapping[str, Any]

NEW, PERFECT, POPULAR, PREVIOUS = "new", "perfect", "popular", "previous"
ARMS = (NEW, PERFECT, POPULAR, PREVIOUS)
"""The recall that serves; as candidates, the items that the shopper truly likes best, which no recall can better; a
page of the most clicked items; the shop's previous recommender."""
BASE = POPULAR
"""The arm that the others are held against."""


class Tally:
    """Counts what is seen on a day, page by page.

    Args:
        pages: how many page views the day has; a page is *late* when half of them were before it.
    """

    def __init__(self, pages: int) -> None:
        self._half = pages // 2
        self._users: dict[int, list[int]] = {}  # exposures, clicks; of late pages: exposures, clicks
        self._sources: dict[str, list[int]] = {}  # exposures, clicks
        self._expected = 0.0
        self._bought = 0

    def page(
        self,
        view: int,
        user: int,
        clicked: NDArray[np.bool_],
        chance: NDArray[np.float64],
        bought: int,
        sources: Sequence[str],
    ) -> None:
        """One page as it was seen: whether each item was ``clicked``, the true ``chance`` of it, its source."""
        n, clicks = len(clicked), int(clicked.sum())
        own = self._users.setdefault(user, [0, 0, 0, 0])
        late = view >= self._half
        for k, value in enumerate((n, clicks, n * late, clicks * late)):
            own[k] += value
        for source, hit in zip(sources, clicked.tolist(), strict=True):
            of = self._sources.setdefault(source, [0, 0])
            of[0] += 1
            of[1] += hit
        self._expected += float(chance.sum())
        self._bought += bought

    def figures(self) -> dict[str, Any]:
        """JSON-able. ``by_user`` has for each shopper: index, exposures, clicks, late exposures, late clicks."""
        users = np.array([[u, *own] for u, own in sorted(self._users.items())], np.int64).reshape(-1, 5)
        _, exposures, clicks, late_exposures, late_clicks = users.sum(axis=0).tolist()
        return {
            "exposures": exposures,
            "clicks": clicks,
            "click_rate": _rate(clicks, exposures),
            "click_rate_late": _rate(late_clicks, late_exposures),
            "expected_rate": _rate(self._expected, exposures),
            "purchases": self._bought,
            "sources": dict(sorted(self._sources.items())),
            "by_user": users.T.tolist(),
        }


def over_worlds(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of worlds' ratios with its interval (Student's t on logarithms), which for one world is that
    ratio alone. NaN where an arm had no click at all."""
    if not all(0 < r < math.inf for r in ratios):
        return math.nan, math.nan, math.nan
    logs = np.log(ratios)
    mean = float(logs.mean())
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else 0.0
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def make_report(runs: Sequence[Run]) -> dict[str, Any]:
    """The tables of all runs, and a verdict for each start. ``runs``: figures with ``seed``, ``start`` and ``arm``."""
    of = {(r["seed"], r["start"], r["arm"]): r for r in runs}
    seeds, starts = (list(dict.fromkeys(r[name] for r in runs)) for name in ("seed", "start"))
    rates: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    sources: list[dict[str, Any]] = []
    for start in starts:
        for arm in ARMS:
            mine = {s: of[s, start, arm] for s in seeds if (s, start, arm) in of}
            if not mine:
                continue
            head = {"start": start, "arm": arm}
            measures = ("click_rate", "click_rate_late", "expected_rate", "purchases")
            rates.append(head | {"worlds": len(mine)} | {n: _mean(list(mine.values()), n) for n in measures})
            sources += [head | row for row in _sources(list(mine.values()))]
            pairs = [(run, of[s, start, BASE]) for s, run in mine.items() if (s, start, BASE) in of]
            if arm == BASE or not pairs:
                continue
            row: dict[str, Any] = dict(head)
            for late, name in ((False, "ratio"), (True, "ratio_late")):
                row |= _interval(name, *over_worlds([_quotient(a, b, late) for a, b in pairs]))
            ratios.append(row)
    return {
        "verdicts": [v for start in starts if (v := _verdict(start, ratios, rates))],
        "click_rates": rates,
        f"over_{BASE}": ratios,
        "sources": sources,
    }


def _verdict(start: str, ratios: Sequence[Run], rates: Sequence[Run]) -> str:
    of = {r["arm"]: r for r in ratios if r["start"] == start}
    if NEW not in of:
        return ""
    found = of[NEW]
    low, high = found["ratio_low"], found["ratio_high"]
    if low is None:
        return f"Start with {start}: an arm had no click, so there is no ratio; ask for more users."
    worlds = next(r["worlds"] for r in rates if (r["start"], r["arm"]) == (start, NEW))
    if worlds < 2:
        way, said = "one world alone, so no interval over worlds", ""
    else:
        way = "better" if low > 1 else "worse" if high < 1 else "no difference that can be told"
        said = f", 95% over {worlds} worlds {low:.3f} to {high:.3f}"
    rest = ", ".join(f"{r['arm']} {r['click_rate']:.4f}" for r in rates if r["start"] == start)
    late = "unknown" if found["ratio_late"] is None else f"{found['ratio_late']:.3f}"
    best = of.get(PERFECT, {}).get("ratio")
    most = "" if best is None else f" A perfect recall under the same ranker has {best:.3f} times."
    return (
        f"Start with {start}: recall's click rate over a day is {found['ratio']:.3f} times that of the most clicked"
        f" items{said} ({late} over its second half): {way}.{most} Click rates: {rest}."
    )


def _interval(name: str, middle: float, low: float, high: float) -> dict[str, float | None]:
    """A ratio and its interval as a report has them; None where there is no number."""
    named = {name: middle, f"{name}_low": low, f"{name}_high": high}
    return {n: rounded(value) if math.isfinite(value) else None for n, value in named.items()}


def _sources(mine: Sequence[Run]) -> list[dict[str, Any]]:
    """Shares of exposures and clicks, and the click rate, of each source over all of some runs."""
    names = sorted({name for run in mine for name in run["sources"]})
    total = np.array([np.sum([run["sources"].get(name, (0, 0)) for run in mine], axis=0) for name in names])
    whole = total.sum(axis=0)
    return [
        {
            "source": name,
            "exposures": int(of[0]),
            "clicks": int(of[1]),
            "share_of_exposures": _rate(of[0], whole[0]),
            "share_of_clicks": _rate(of[1], whole[1]),
            "click_rate": _rate(of[1], of[0]),
        }
        for name, of in zip(names, total, strict=True)
    ]


def _mean(runs: Sequence[Run], name: str) -> float | None:
    values = [r[name] for r in runs if r[name] is not None]
    return rounded(float(np.mean(values))) if values else None


def _rate(part: Any, whole: Any) -> float | None:
    return rounded(float(part) / float(whole)) if whole else None


def _quotient(arm: Run, base: Run, late: bool) -> float:
    """The arm's click rate over the base's.

    Raises:
        ValueError: the two were not seen by the same shoppers.
    """
    if arm["by_user"][0] != base["by_user"][0]:
        raise ValueError("shoppers who are not the same cannot be compared")
    row = 3 if late else 1
    (shown, clicked), (base_shown, base_clicked) = (
        np.sum(run["by_user"][row : row + 2], axis=1) for run in (arm, base)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(clicked) / shown / (np.float64(base_clicked) / base_shown))
