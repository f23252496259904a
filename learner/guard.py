"""Whether a batch's loss has exploded, against the recent past.

What is expected of a batch depends on its mix: a handful of clicks alone has some ten times the loss of a usual batch,
and nothing is wrong. So running means are kept of clicks' and of other samples' losses, and a batch is held against
what they make of its own mix::

    expected = (W_1 m_1 + W_0 m_0) / (W_1 + W_0)          W: weights in the batch, m: running mean losses
    refused when loss > ratio * expected * (1 + 32 / B)    few rows may be further off

A batch that is refused moves the means too, but as if it were just at the bound: a world that has changed for good is
refused for some batches only (each of 512 rows raises the bound by half), a burst of rubbish leaves the weights alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WARM_ROWS = 2000
"""Rows of a class before its mean says anything."""

_MEMORY_ROWS = 10_000
_FEW_ROWS = 32


class LossGuard:
    """Running mean losses of samples without (0) and with (1) a click. A ``ratio`` of 0 refuses nothing."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.means = np.zeros(2)
        self.rows = np.zeros(2)

    def exploded(self, loss: NDArray[Any], weight: NDArray[Any], click: NDArray[np.bool_]) -> bool:
        """Whether a batch with these losses, all (B,), is to be refused; takes it into account in either case."""
        if not self.ratio:
            return False
        kind = click.view(np.uint8)
        rows = np.bincount(kind, minlength=2).astype(np.float64)
        weights = np.bincount(kind, weight, 2)
        sums = np.bincount(kind, loss * weight, 2)
        share = 1.0
        if (self.rows[rows > 0] >= WARM_ROWS).all():
            bound = self.ratio * float(weights @ self.means) * (1 + _FEW_ROWS / rows.sum())
            share = min(1.0, bound / max(float(sums.sum()), 1e-12))
        for k in np.flatnonzero(rows):
            self.rows[k] = min(self.rows[k] + rows[k], _MEMORY_ROWS)
            pace = min(1.0, rows[k] / self.rows[k])
            self.means[k] += pace * (share * sums[k] / weights[k] - self.means[k])
        return share < 1.0

    def state(self) -> NDArray[np.float64]:
        """Means and rows. (4,)"""
        return np.concatenate([self.means, self.rows])

    def resume(self, state: NDArray[np.float64]) -> None:
        """The inverse of :meth:`state`."""
        self.means, self.rows = state[:2].copy(), state[2:].copy()
