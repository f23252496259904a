# core
"""Whether a batch's loss has exploded, against the recent past.

The usual loss of a batch depends on its mix: a handful of clicks alone has some ten times the loss of a usual batch. So
there are two running means, of the losses of clicks and of other samples, weighted by the batch's own mix::

    expected = (W_1 m_1 + W_0 m_0) / (W_1 + W_0)          W: weights in the batch, m: running mean losses
    refused when loss > ratio * expected * (1 + 32 / B)    a small batch may be further off

Rows of items that were never learnt tell nothing. What a network says of such is a guess, and where all goods are new
from one second to the next, it is a wild one: an hour old, it gave them a loss of 7 to 28. One batch of them is the
cure, and was refused.

A refused batch moves the means too, but only as if it were at the bound. So after a lasting change of the world some
batches are refused (each of 512 rows raises the bound by half), and a burst of rubbish does not reach the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WARM_ROWS = 2000
"""Rows of a class before its mean counts."""

_CLASSES = 2
_MEMORY_ROWS = 10_000
_FEW_ROWS = 32


class LossGuard:
    """Running mean losses of samples without (0) and with (1) a click. A ``ratio`` of 0 refuses nothing."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.means = np.zeros(_CLASSES)
        self.rows = np.zeros(_CLASSES)

    def exploded(
        self, loss: NDArray[Any], weight: NDArray[Any], click: NDArray[np.bool_], vouched: bool = False
    ) -> bool:
        """Whether to refuse a batch with these losses, weights and clicks, all (B,). Moves the means in either case.
        ``vouched``: somebody says that the batch is right. It is not refused, and moves the means as far as it goes."""
        if not self.ratio or not len(loss):
            return False
        klass = click.view(np.uint8)  # 0: no click, 1: a click
        rows = np.bincount(klass, minlength=_CLASSES).astype(np.float64)
        weights = np.bincount(klass, weight, _CLASSES)
        sums = np.bincount(klass, loss * weight, _CLASSES)
        share = 1.0
        if not vouched and (self.rows[rows > 0] >= WARM_ROWS).all():
            bound = self.ratio * float(weights @ self.means) * (1 + _FEW_ROWS / rows.sum())
            share = min(1.0, bound / max(float(sums.sum()), 1e-12))
        for k in np.flatnonzero(rows):
            self.rows[k] = min(self.rows[k] + rows[k], _MEMORY_ROWS)
            pace = min(1.0, rows[k] / self.rows[k])
            self.means[k] += pace * (share * sums[k] / weights[k] - self.means[k])
        return share < 1.0

    def snapshot(self) -> NDArray[np.float64]:
        """Means and rows. (4,)"""
        return np.concatenate([self.means, self.rows])

    def resume(self, state: NDArray[np.float64]) -> None:
        """The inverse of :meth:`snapshot`. Raises ValueError where the state has another form."""
        if state.shape != (4,):
            raise ValueError(f"a guard's state of shape {state.shape}, not (4,)")
        self.means, self.rows = state[:2].copy(), state[2:].copy()
