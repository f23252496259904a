# core
"""Samples as one learner sees them: which pages are its own, and what their rows weigh.

::

    arm of a page      made by the model of                as the first learner    as the learner B
    model, or near     the first                           model                   other
    challenger         B                                   other                   model
    control, hits      chance, or a rule                   control, other          control, other

With ``learns_from`` *weighted* a row weighs ``min(1 / odds, MOST)``: as if each item that could stand in the slot had
been shown there as often, whoever made the page (truncated importance sampling: Ionides 2008). A row whose page says no
odds weighs 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import value_hash
from millrace.contracts.events import ARMS, MODEL, OTHER
from millrace.contracts.samples import SampleBatch
from millrace.contracts.settings import Settings

MOST = 10.0
"""The most that a row weighs."""
OWN = ARMS.index(MODEL)
_OTHER = ARMS.index(OTHER)


class Viewpoint(NamedTuple):
    """Of one learner.

    Attributes:
        arms: hashes of the names of its arms; None: it is the first, whose pages are the arm ``model``.
        diverted: whether it learns its own pages alone. One that serves no arm has none, and learns from all.
        weighted: whether rows are weighted by their odds.
    """

    arms: NDArray[np.uint64] | None = None
    diverted: bool = False
    weighted: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Of the learner that ``settings`` are of."""
        name = settings.learner
        arms = [value_hash(arm) for arm, one in settings.arms.items() if name and one.learner == name]
        return cls(
            np.array(arms, np.uint64) if name else None,
            settings.learns_from == "own" and (bool(arms) or not name),
            settings.learns_from == "weighted",
        )

    def seen(self, batch: SampleBatch) -> SampleBatch:
        """The samples, where own pages alone are of the arm ``model``, with their weights."""
        if self.arms is not None:
            arm = np.where(batch.arm == OWN, _OTHER, batch.arm)
            arm[np.isin(batch.arm_name, self.arms)] = OWN
            batch = replace(batch, arm=arm.astype(np.uint8))
        if self.weighted:
            with np.errstate(divide="ignore"):
                weighs = np.where(batch.odds > 0, np.minimum(1 / batch.odds, MOST), 1)
            batch = replace(batch, weight=(batch.weight * weighs).astype(np.float32))
        return batch
