# core
"""Figures of models over rows of a log and over slices of them, each with its draws of users."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from commands.freshness import bootstrap
from commands.freshness.bootstrap import Floats, Weights, standard_error
from millrace.basics.clustered import Users, quantile
from millrace.basics.merit import auc, calibration, grouped_auc, log_loss
from millrace.reports.lines import Tick

ALL = "all"
"""The name of all rows."""

MEASURES = ("auc", "grouped_auc", "log_loss", "calibration")


@dataclass(frozen=True, slots=True)
class Scored:
    """What one model and features gave, in each seed: n probabilities.

    ``within`` are the scores that may be compared within a group (:mod:`commands.replay.grouped`): the same, or those
    of the start of the day. Empty where there are none.
    """

    p: Sequence[NDArray[np.float32]]
    within: Sequence[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that are scored. ``user`` and ``group`` count from 0."""

    y: NDArray[np.float32]  # (n,)
    user: NDArray[np.intp]  # (n,)
    group: NDArray[np.intp]  # (n,)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, and how far it may be from that of another log of the same users' kind. NaN where there is none."""

    value: float
    error: float  # standard error
    freedom: float = math.inf  # how well the error itself is known: degrees of freedom of Student's t

    @property
    def half(self) -> float:
        """Half of the 95% interval."""
        return quantile(0.975, self.freedom) * self.error

    @property
    def smallest(self) -> float:
        """The smallest true gain that four in five such logs would have shown. NaN without a spread: figures that are
        the same in every draw do not tell."""
        return self.half + quantile(0.8, self.freedom) * self.error if self.error > 0 else math.nan

    @property
    def none(self) -> bool:
        """Whether it is zero in every draw: the two that are compared are one."""
        return self.value == 0 and self.error == 0

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.value) > self.half


@dataclass(slots=True)
class _Kept:
    users: Users
    points: list[float]  # by seed
    draws: list[Floats] = field(default_factory=list)  # blocks, mean over seeds


Gap = Callable[[Floats | float, Floats | float], Floats | float]


class Measured:
    """Figures of several models over the same rows and draws.

    Args:
        rows: the rows.
        models: by name.
        slices: rows of each slice by its name, (k,) ascending places; :data:`ALL` is always there.
        measures: which of :data:`MEASURES` of which slices; all of all otherwise.
    """

    def __init__(
        self,
        rows: Rows,
        models: Mapping[str, Scored],
        slices: Mapping[str, NDArray[np.intp]],
        draws: int,
        seed: int,
        tick: Tick = lambda what, done, of: None,
    ) -> None:
        self.users = int(rows.user.max(initial=-1)) + 1
        self.slices = {ALL: np.arange(len(rows.y)), **slices}
        self._kept: dict[tuple[str, str, str], _Kept] = {}
        self._users = {where: Users.of(rows.y[own], rows.user[own]) for where, own in self.slices.items()}
        blocks = bootstrap.drawn(self.users, draws, seed)
        for number, weights in enumerate(blocks):
            for done, (where, own) in enumerate(self.slices.items(), 1):
                part = Rows(rows.y[own], rows.user[own], rows.group[own])
                for name, scored in models.items():
                    self._measure(where, name, part, own, scored, weights, number == 0)
                tick("draws of users", done, len(self.slices))

    def _measure(
        self, where: str, name: str, part: Rows, own: NDArray[np.intp], scored: Scored, weights: Weights, first: bool
    ) -> None:
        y, user, group = part.y, part.user, part.group
        draws: dict[str, list[Floats]] = {m: [] for m in MEASURES}
        points: dict[str, list[float]] = {m: [] for m in MEASURES}
        for p in (p[own] for p in scored.p):
            draws["auc"].append(bootstrap.auc_draws(p, y, user, weights))
            draws["log_loss"].append(bootstrap.log_loss_draws(p, y, user, weights))
            draws["calibration"].append(bootstrap.calibration_draws(p, y, user, weights))
            if first:
                points["auc"].append(auc(p, y))
                points["log_loss"].append(log_loss(p, y))
                points["calibration"].append(calibration(p, y))
        for q in (q[own] for q in scored.within):
            draws["grouped_auc"].append(bootstrap.grouped_auc_draws(q, y, group, user, weights))
            if first:
                points["grouped_auc"].append(grouped_auc(q, y, group))
        for measure in MEASURES:
            if draws[measure]:
                kept = self._kept.setdefault((where, name, measure), _Kept(self._users[where], points[measure]))
                kept.draws.append(np.mean(draws[measure], 0))

    def users_of(self, where: str) -> int:
        """The users of a slice."""
        return self._users[where].count

    def figure(self, name: str, measure: str, where: str = ALL) -> Figure:
        """A model's own figure."""
        kept = self._kept.get((where, name, measure))
        if kept is None:
            return Figure(math.nan, math.nan)
        return _combined(kept.users, kept.points, np.concatenate(kept.draws))

    def gap(self, name: str, other: str, measure: str, where: str = ALL) -> Figure:
        """A model's figure less that of another."""
        return self._paired(name, other, measure, where, lambda a, b: a - b)

    def gain_percent(self, name: str, other: str, where: str = ALL) -> Figure:
        """By how many per cent a model's log loss is below that of another."""
        return self._paired(name, other, "log_loss", where, lambda a, b: 100.0 * (1.0 - a / b))

    def _paired(self, name: str, other: str, measure: str, where: str, of: Gap) -> Figure:
        mine, theirs = self._kept.get((where, name, measure)), self._kept.get((where, other, measure))
        if mine is None or theirs is None:
            return Figure(math.nan, math.nan)
        points = [float(of(a, b)) for a, b in zip(mine.points, theirs.points, strict=True)]
        draws = of(np.concatenate(mine.draws), np.concatenate(theirs.draws))
        return _combined(mine.users, points, np.asarray(draws))


def _combined(users: Users, points: Sequence[float], draws: Floats) -> Figure:
    """The mean over seeds. Its error has two parts, which users the log has and which seeds were drawn; each is known
    as well as its number allows, and both together as Welch and Satterthwaite have it."""
    value = float(np.mean(points))
    if users.few:
        return Figure(value, math.nan)
    error, freedom = users.widen * standard_error(draws), users.freedom
    if len(points) > 1:
        of_seeds = float(np.std(points, ddof=1)) / math.sqrt(len(points))
        known = error**4 / freedom + of_seeds**4 / (len(points) - 1)
        error = math.hypot(error, of_seeds)
        freedom = error**4 / known if known > 0 else freedom
    return Figure(value, error, freedom)
