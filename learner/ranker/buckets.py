# core
"""The edges of quantile buckets, from a uniform sample of all rows seen; recomputed whenever the rows seen double.

A bucket therefore means a rank among past rows ("the upper tenth"), not a range of values: it keeps its meaning when
counts grow. The edges are a buffer of the network, so they are published and resumed with the weights, and a scorer
uses the learner's edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import mix, salt

Floats = NDArray[np.float32]

FIRST_ROWS = 64
"""Rows after which there are edges."""

SAMPLE_ROWS = 4096

_SALT = salt("reservoir")


class Reservoir:
    """A uniform sample of all rows seen (Vitter 1985, algorithm R): :data:`SAMPLE_ROWS` x C float32."""

    def __init__(self, columns: int) -> None:
        self.values: Floats = np.zeros((SAMPLE_ROWS if columns else 0, columns), np.float32)
        self.seen = 0
        self.due = FIRST_ROWS

    def add(self, rows: Floats) -> bool:
        """Takes rows (B, C) of finite numbers. Returns whether it is time to make new edges."""
        if not self.values.size or not len(rows):
            return False
        t = np.arange(self.seen, self.seen + len(rows), dtype=np.uint64)  # rows before each
        drawn = (mix(_SALT, t + np.uint64(1)) % (t + np.uint64(1))).astype(np.int64)
        place = np.where(t < SAMPLE_ROWS, t.astype(np.int64), drawn)
        chosen = place < SAMPLE_ROWS
        self.values[place[chosen]] = rows[
            chosen
        ]  # of several rows for one place the last stays, as if taken one by one
        self.seen += len(rows)
        if self.seen < self.due:
            return False
        while self.due <= self.seen:
            self.due *= 2
        return True

    def edges(self, buckets: int) -> Floats:
        """Quantiles ``1/Q .. (Q - 1)/Q`` of each column. (C, Q - 1)"""
        known = self.values[: min(self.seen, SAMPLE_ROWS)]
        found: Floats = np.quantile(known, np.arange(1, buckets) / buckets, axis=0).T.astype(np.float32)
        return found

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """The sample ``values`` (S, C), and ``counts``: rows seen, and rows at which edges are due."""
        return {"values": self.values.copy(), "counts": np.array([self.seen, self.due], np.int64)}

    def resume(self, state: dict[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`snapshot`. Raises ValueError where the sample is of other columns."""
        if state["values"].shape != self.values.shape:
            raise ValueError(f"a sample of shape {state['values'].shape} for buckets of shape {self.values.shape}")
        self.values = state["values"].copy()
        self.seen, self.due = (int(v) for v in state["counts"])
