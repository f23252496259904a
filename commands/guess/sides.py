# core
"""Whom a column belongs to: constant for each user, for each item, or neither.

Of all pairs of neighbouring rows of one group, the share that disagrees is compared with the share that disagrees
between rows of any groups, ``1 - sum p_v^2``. An attribute of the group has next to none of the latter; a column that
is nearly constant anyway has little of both, so that it does not pass for an attribute by being dull.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commands.guess.columns import Column

LEAST_DIFFERENT = 10
"""So many pairs of one group would have to differ by chance: a column that is rarely another tells nothing."""
MOST = 0.02
"""An attribute of a group differs within it at most this part of how often it differs between groups."""


@dataclass(frozen=True, slots=True)
class Held:
    """How a column changes within groups."""

    pairs: int
    within: float
    """Share of pairs of one group that differ."""
    between: float
    """Share of pairs of any rows that would differ by chance."""

    @property
    def ratio(self) -> float:
        """0: constant in each group. 1: it does not know the groups."""
        return self.within / self.between if self.between else 1.0

    @property
    def is_attribute(self) -> bool:
        return self.pairs * self.between >= LEAST_DIFFERENT and self.ratio <= MOST


def held(column: Column, groups: NDArray[np.int64]) -> Held:
    """How ``column`` changes within the groups (n,) of rows; rows without a group or a value are left out."""
    rows = np.flatnonzero((groups >= 0) & column.there)
    if len(rows) < 2:
        return Held(0, 0.0, 0.0)
    order = rows[np.argsort(groups[rows], kind="stable")]
    same = groups[order][1:] == groups[order][:-1]
    pairs = int(same.sum())
    differ = column.codes[order][1:] != column.codes[order][:-1]
    share = column.counts / max(column.counts.sum(), 1)
    return Held(pairs, float((differ & same).sum() / max(pairs, 1)), float(1 - (share**2).sum()))
