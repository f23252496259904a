# core
"""Figures of models over rows of a log and over slices of them, with what each user adds to their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.basics.clustered import PARTS, Users, quantile, rank_parts
from millrace.basics.ranking_metrics import FIGURES, WITHIN, group_ranks
from millrace.reports.lines import Tick

ALL = "all"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MeasuredScores:
    """The n probabilities that one model gave on one kind of features, in each seed.

    ``within`` are the scores that may be compared within a group (:mod:`millrace.commands.replay.grouped`): the same,
    or those of the start of the day. Empty where there are none.
    """

    p: Sequence[NDArray[np.float32]]
    within: Sequence[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows that are scored. ``user`` and ``group`` count from 0."""

    y: NDArray[np.float32]  # (n,)
    user: NDArray[np.intp]  # (n,)
    group: NDArray[np.intp]  # (n,)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, and its error over logs of such users. NaN where there is none."""

    value: float
    error: float  # standard error
    freedom: float = math.inf  # how well the error itself is known: degrees of freedom of Student's t

    @property
    def half(self) -> float:
        return quantile(0.975, self.freedom) * self.error

    @property
    def smallest(self) -> float:
        """The smallest true gain that four in five such logs would have shown. NaN where figures do not differ between
        users."""
        return self.half + quantile(0.8, self.freedom) * self.error if self.error > 0 else math.nan

    @property
    def none(self) -> bool:
        """Whether the difference is zero for each user: the two models are the same."""
        return self.value == 0 and self.error == 0

    @property
    def shown(self) -> bool:
        return abs(self.value) > self.half


@dataclass(frozen=True, slots=True)
class _Kept:
    users: Users
    points: list[float]  # by seed
    parts: Floats  # (U,) what each user of the slice adds to the error, mean over seeds


class Measured:
    """Figures of several models over the same rows.

    Errors are sums over users (:mod:`millrace.basics.clustered`). The error of a difference between two models comes
    from each user's difference, not from the sum of two independent errors.

    Args:
        slices: rows of each slice by its name, (k,) ascending places; :data:`ALL` is always there.
    """

    def __init__(
        self,
        rows: ScoredRows,
        models: Mapping[str, MeasuredScores],
        slices: Mapping[str, NDArray[np.intp]],
        tick: Tick = lambda what, done, of: None,
    ) -> None:
        self.users = int(rows.user.max(initial=-1)) + 1
        self.slices = {ALL: np.arange(len(rows.y)), **slices}
        self._kept: dict[tuple[str, str, str], _Kept] = {}
        self._users = {where: Users.of(rows.y[own], rows.user[own]) for where, own in self.slices.items()}
        for done, (where, own) in enumerate(self.slices.items(), 1):
            # Numbers of the slice's own users: a log has more users than an hour has, and each takes 8 bytes a figure.
            user = np.unique(rows.user[own], return_inverse=True)[1]
            part = ScoredRows(rows.y[own], user, rows.group[own])
            for name, scored in models.items():
                self._measure(where, name, part, own, scored)
            tick("figures", done, len(self.slices))

    def _measure(self, where: str, name: str, part: ScoredRows, own: NDArray[np.intp], scored: MeasuredScores) -> None:
        y, group = part.y, part.group
        found: dict[str, list[tuple[float, Floats]]] = {m: [] for m in FIGURES}
        for p in (p[own] for p in scored.p):
            for measure, parts_of in PARTS.items():
                found[measure].append(parts_of(p, y))
        for q in (q[own] for q in scored.within):
            ranks = group_ranks(q, y, group)
            for measure in WITHIN:
                found[measure].append(rank_parts(ranks, measure, len(y)))
        for measure, seeds in found.items():
            if seeds:
                parts = np.mean([parts for _, parts in seeds], axis=0)
                sums = np.bincount(part.user, weights=parts).astype(np.float64)
                self._kept[where, name, measure] = _Kept(self._users[where], [point for point, _ in seeds], sums)

    def users_of(self, where: str) -> int:
        return self._users[where].count

    def figure(self, name: str, measure: str, where: str = ALL) -> Figure:
        kept = self._kept.get((where, name, measure))
        return Figure(math.nan, math.nan) if kept is None else _combined(kept.users, kept.points, kept.parts)

    def gap(self, name: str, other: str, measure: str, where: str = ALL) -> Figure:
        mine, theirs = self._kept.get((where, name, measure)), self._kept.get((where, other, measure))
        if mine is None or theirs is None:
            return Figure(math.nan, math.nan)
        points = [a - b for a, b in zip(mine.points, theirs.points, strict=True)]
        return _combined(mine.users, points, mine.parts - theirs.parts)

    def gain_percent(self, name: str, other: str, where: str = ALL) -> Figure:
        """By how many per cent a model's log loss is below that of another."""
        mine, theirs = self._kept.get((where, name, "log_loss")), self._kept.get((where, other, "log_loss"))
        if mine is None or theirs is None:
            return Figure(math.nan, math.nan)
        points = [100.0 * (1.0 - a / b) for a, b in zip(mine.points, theirs.points, strict=True)]
        a, b = float(np.mean(mine.points)), float(np.mean(theirs.points))
        return _combined(
            mine.users, points, 100.0 * (a / b * theirs.parts - mine.parts) / b
        )  # of a / b, to first order


def _combined(users: Users, points: Sequence[float], parts: Floats) -> Figure:
    """The mean over seeds. Its error combines two parts, the draw of users and the draw of seeds, with the degrees of
    freedom of Welch and Satterthwaite. ``parts``: what each user adds to the error, (U,)."""
    value = float(np.mean(points))
    if users.few:
        return Figure(value, math.nan)
    error, freedom = users.widen * math.sqrt(float(parts @ parts)), users.freedom
    if len(points) > 1:
        of_seeds = float(np.std(points, ddof=1)) / math.sqrt(len(points))
        known = error**4 / freedom + of_seeds**4 / (len(points) - 1)
        error = math.hypot(error, of_seeds)
        freedom = error**4 / known if known > 0 else freedom
    return Figure(value, error, freedom)
