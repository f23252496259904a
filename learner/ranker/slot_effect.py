# core
"""What the slot of an item does to its clicks, learnt from slots that chance has filled.

    logit of a click on item i in slot k = t_i + b_k         t_i is served: pages are ranked free of b

Where a model's order fills the slots, the best items stand above, so what is learnt of slots there belongs to items in
part (Joachims and others 2017, "Unbiased learning-to-rank with biased feedback"). So b learns from drawn items alone:
those whose odds in their slot are below :data:`DRAWN`. One step of Adagrad a batch, with p by t and b together::

    g_k = sum over drawn rows in slot k of w (p - y)         G_k += g_k^2;  b_k -= RATE g_k / sqrt(G_k + 1)

Served scores have no slot, and are to have as many clicks as pages have. So b is relative to its mean over all n_k rows
in each slot, in clicks: ``sum_k n_k exp(b_k) = sum_k n_k``.

Rows without odds, as all are where nothing explores, are learnt with the wide weight of their ``position``, as in logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import column_hash, mix
from millrace.contracts.schema import Schema

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Slots = NDArray[np.intp]

SLOTS = 64
"""Later ones have no effect."""
DRAWN, RATE = 0.5, 0.1


class SlotEffect:
    """Of a schema with the bias field ``position``; of another it is never asked."""

    def __init__(self, schema: Schema) -> None:
        layout = schema.layout
        fields = [field for field in layout.cat_fields if field.name == "position" and field.bias]
        self._column = layout.cat_names.index("position") if fields else -1
        ids = mix(layout.field_salt(fields[0]), column_hash(np.arange(SLOTS))) if fields else np.zeros(0, np.uint64)
        self._order = np.argsort(ids.view(np.int64))
        self._ids = ids.view(np.int64)[self._order]
        self.weights, self.squares, self.rows = np.zeros((3, SLOTS + 1))  # b before its mean, G, n; the last: no slot

    def of(self, cat: Ids, odds: Floats) -> tuple[Ids, Slots | None]:
        """``cat`` (B, F) without the positions of rows whose odds are known, and the slots of these rows, SLOTS of the
        others. (B,) None: there are none."""
        known = odds > 0
        if self._column < 0 or not known.any():
            return cat, None
        column = cat[:, self._column]
        at = np.minimum(np.searchsorted(self._ids, column), SLOTS - 1)
        slots = np.where(known & (self._ids[at] == column), self._order[at], SLOTS)
        cat = cat.copy()
        cat[known, self._column] = 0
        return cat, slots

    def logits(self, slots: Slots) -> Floats:
        """b. (B,)"""
        b, rows = self.weights, self.rows[:SLOTS]
        level = np.log(rows @ np.exp(b[:SLOTS]) / rows.sum()) if rows.any() else 0.0
        found: Floats = np.where(slots < SLOTS, b[slots] - level, 0).astype(np.float32)
        return found

    def learn(self, slots: Slots, odds: Floats, slope: Floats) -> None:
        """``slope``: w (p - y). (B,)"""
        g = np.bincount(slots, np.where(odds < DRAWN, slope, 0), SLOTS + 1)
        g[SLOTS] = 0
        self.squares += g * g
        self.weights -= RATE * g / np.sqrt(self.squares + 1)
        self.rows += np.bincount(slots, minlength=SLOTS + 1)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Nothing until it has learnt."""
        state = {"weights": self.weights, "squares": self.squares, "rows": self.rows}
        return {name: array.copy() for name, array in state.items()} if self.rows.any() else {}

    def resume(self, state: Mapping[str, NDArray[Any]]) -> None:
        """What :meth:`snapshot` gave. Raises ValueError for arrays of another shape."""
        for name, array in state.items():
            if array.shape != (SLOTS + 1,):
                raise ValueError(f"{name} {array.shape}")
            setattr(self, name, np.array(array, np.float64))
