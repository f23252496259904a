# core
"""How many rows one user, item or id of a field may teach in an hour of event time.

::

    limits  {"user": 1000, "item": 20000}
    hour    09:00 ── counts by id ── 10:00 ── all begin at 0 again ──      hours by the gate's clock

A row beyond a limit is not learnt, and counts for no other limit. One who clicks for hours on everything teaches as
much as his limit, no more. Ids that are missing have no limit: many visitors share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from learner.gate.median_clock import MedianClock
from millrace.basics.errors import SettingError
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Array

HOUR_MS = 3_600_000
USER, ITEM = "user", "item"
MOST_IDS = 1_000_000
"""Ids that are counted in an hour, of each limit; those that come when there are so many have none."""

_MISSING = 0
_REMEDY = "name user, item or categorical fields of the schema"


class Quota:
    """Counts rows by id. One thread; :meth:`over` once for each row that may be learnt.

    Args:
        limits: rows an hour by what they are of: ``user``, ``item``, or a categorical field of the schema (each of its
            slots counts).
        clock: the gate's, which has met the rows that are asked about.

    Raises:
        SettingError: a limit is of no categorical field.
    """

    def __init__(self, schema: Schema, limits: Mapping[str, int], clock: MedianClock | None = None) -> None:
        self.limits, self.clock = dict(limits), clock or MedianClock()
        layout = schema.layout
        fields = {f.name: (c, c + f.slots) for f, c in zip(layout.cat_fields, layout.cat_starts, strict=True)}
        for name in self.limits:
            if name not in (USER, ITEM) and name not in fields:
                raise SettingError(f"teach_limits names '{name}', which is no categorical field", _REMEDY)
        self._columns = {name: span for name, span in fields.items() if name in self.limits}
        self._counts: dict[str, Counter[int]] = {name: Counter() for name in self.limits}
        self._hour = 0

    def over(self, batch: SampleBatch) -> NDArray[np.bool_]:
        """Rows beyond a limit; the others are counted. (B,)"""
        over = np.zeros(len(batch), np.bool_)
        if not len(batch) or not self.limits:
            return over
        hour = self.clock.now_ms // HOUR_MS
        if hour > self._hour:
            self._hour = hour
            for counts in self._counts.values():
                counts.clear()
        ids = {name: self._ids(batch, name) for name in self.limits}  # (B, slots) each
        keeps = [self._add(name, own.ravel().tolist()) for name, own in ids.items()]
        if all(keeps):
            return over
        for name, own in ids.items():  # some row may be beyond a limit: one by one
            self._take_back(name, own.ravel().tolist())
        names = [name for name, own in ids.items() for _ in range(own.shape[1])]
        rows = np.concatenate(list(ids.values()), axis=1).tolist()
        for i, row in enumerate(rows):
            taught = {(name, one) for name, one in zip(names, row, strict=True) if one != _MISSING}
            if any(self._counts[name][one] >= self.limits[name] for name, one in taught):
                over[i] = True
                continue
            for name, one in taught:
                if one in self._counts[name] or len(self._counts[name]) < MOST_IDS:
                    self._counts[name][one] += 1
        return over

    def snapshot(self) -> dict[str, Array]:
        """The hour, and ids (n,) and counts (n,) of each limit."""
        state: dict[str, Array] = {"hour": np.array([self._hour], np.int64)}
        for name, counts in self._counts.items():
            state[f"{name}/ids"] = np.fromiter(counts.keys(), np.uint64, len(counts))
            state[f"{name}/counts"] = np.fromiter(counts.values(), np.int64, len(counts))
        return state

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`. An empty state counts from 0, and so does a limit that was not there then.

        Raises:
            KeyError: an array is missing.
        """
        self._hour = int(state["hour"][0]) if state else 0
        for name in self.limits:
            self._counts[name].clear()
            if f"{name}/ids" in state:
                pairs = zip(state[f"{name}/ids"].tolist(), state[f"{name}/counts"].tolist(), strict=True)
                self._counts[name].update(dict(pairs))

    def _ids(self, batch: SampleBatch, name: str) -> NDArray[np.uint64]:
        if name == USER:
            return batch.user[:, None]
        if name == ITEM:
            return batch.item[:, None]
        first, stop = self._columns[name]
        return np.ascontiguousarray(batch.cat[:, first:stop]).view(np.uint64)

    def _add(self, name: str, ids: list[int]) -> bool:
        """Counts all of the ids. Whether that keeps the limit, and the bound on ids."""
        counts = self._counts[name]
        counts.update(ids)
        counts.pop(_MISSING, None)
        most = max(map(counts.__getitem__, ids))  # a missing id reads as 0
        return most <= self.limits[name] and len(counts) <= MOST_IDS

    def _take_back(self, name: str, ids: list[int]) -> None:
        counts = self._counts[name]
        counts.subtract(ids)
        for one in set(ids):
            if counts[one] <= 0:
                del counts[one]
