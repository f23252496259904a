# core
"""How many rows one user, item or id of a field may teach in an hour of event time.

::

    limits  {"user": 1000, "item": 20000}
    hour    09:00 ── counts by id ── 10:00 ── all begin at 0 again ──      hours by the gate's clock

A row beyond a limit is not learnt, and counts for no other limit. One who clicks for hours on everything teaches as
much as his limit, no more. Ids that are missing have no limit: many visitors share them.

Of a user all rows count, as they come, learnt or not: who is beyond the limit is no visitor, and figures leave him out
too. Of an item those count that are learnt: what is beyond its limit was shown to people, and figures keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.gate.median_clock import MedianClock
from millrace.basics.compiled import compiled
from millrace.basics.durations import HOUR_MS
from millrace.basics.errors import SettingError
from millrace.basics.probing import home_of, place
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Array

USER, ITEM = "user", "item"
MOST_IDS = 250_000
"""Ids that are counted in an hour, of each limit; those that come when there are so many have none."""

_LEAST_BITS = 12  # of a table's slots: twice as many as ids, at least; more as they come
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
        widths = [stop - first for first, stop in (self._columns.get(name, (0, 1)) for name in self.limits)]
        self._of = np.repeat(np.arange(len(widths)), widths)  # the limit of each column of ids
        self._most = np.array([*self.limits.values()], np.int64)
        self._hour = 0
        self._clear()
        self._teach(np.zeros((0, 1), np.uint64))  # compiles it

    def over(self, batch: SampleBatch, counts: bool = True) -> NDArray[np.bool_]:
        """Rows beyond a limit; the others are counted, unless they were before. (B,)"""
        if not len(batch) or not self.limits:
            return np.zeros(len(batch), np.bool_)
        hour = self.clock.now_ms // HOUR_MS
        if hour > self._hour:
            self._hour = hour
            self._clear()
        return self._teach(np.concatenate([self._ids(batch, name) for name in self.limits], axis=1), counts)

    def _teach(self, ids: NDArray[np.uint64], counts: bool = True) -> NDArray[np.bool_]:
        self._room -= ids.size
        if self._room < 0:
            self._make_room(ids.size)
        over = np.zeros(len(ids), np.bool_)
        teach(ids, self._of, self._most, self._table, self._used, MOST_IDS, counts, over)
        return over

    def _make_room(self, more: int) -> None:
        """Half of the slots stay free if so many ids come."""
        used = int(self._used.max(initial=0))
        slots = 2 * min(used + more, MOST_IDS)
        if slots > self._table.shape[1]:
            state = self.snapshot()
            self._clear(slots.bit_length())
            self._enter(state)
        self._room = self._table.shape[1] // 2 - used - more

    def snapshot(self) -> dict[str, Array]:
        """The hour, and ids (n,) and counts (n,) of each limit."""
        state: dict[str, Array] = {"hour": np.array([self._hour], np.int64)}
        for name, table in zip(self.limits, self._table, strict=True):
            ids, counts = table[table[:, 0] > 0].T
            order = np.argsort(ids)  # not that of slots, which a table of another size has elsewhere
            state[f"{name}/ids"], state[f"{name}/counts"] = ids[order], counts[order].astype(np.int64)
        return state

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`. An empty state counts from 0, and so does a limit that was not there then.

        Raises:
            KeyError: an array is missing.
        """
        self._hour = int(state["hour"][0]) if state else 0
        self._clear()
        self._make_room(max((len(ids) for name, ids in state.items() if name.endswith("/ids")), default=0))
        self._enter(state)

    def _enter(self, state: Mapping[str, Array]) -> None:
        for number, name in enumerate(self.limits):
            if f"{name}/ids" in state:
                ids = state[f"{name}/ids"]
                self._used[number] = len(ids)
                put(ids, state[f"{name}/counts"], self._table[number])

    def _ids(self, batch: SampleBatch, name: str) -> NDArray[np.uint64]:
        if name == USER:
            return batch.user[:, None]
        if name == ITEM:
            return batch.item[:, None]
        first, stop = self._columns[name]
        return np.ascontiguousarray(batch.cat[:, first:stop]).view(np.uint64)

    def _clear(self, bits: int = _LEAST_BITS) -> None:
        self._table = np.zeros((len(self.limits), 1 << bits, 2), np.uint64)  # of each limit ids with counts
        self._used = np.zeros(len(self.limits), np.int64)  # ids
        self._room = 0  # for so many ids, at least, half of the slots stay free


@compiled
def slot(one: Any, table: Array) -> Any:
    """Where an id is in a table (S, 2), or would be; half of the slots are free at least. S is a power of 2."""
    return place(table[:, 0], home_of(one, len(table)), one)


@compiled
def put(ids: Array, counts: Array, table: Array) -> None:
    """Enters ids (n,) that a table (S, 2) does not have, with their counts (n,)."""
    for i in range(len(ids)):
        at = slot(ids[i], table)
        table[at, 0], table[at, 1] = ids[i], counts[i]


@compiled
def teach(
    ids: Array, of: Array, limits: Array, table: Array, used: Array, most: int, counts: bool, over: Array
) -> None:
    """Counts the ids of rows, (B, C), that are not beyond a limit, if it ``counts``; says which are, (B,).

    Args:
        of: the limit that each column is of, (C,).
        limits: (L,)
        table: ids of each limit with their counts, (L, S, 2).
        used: ids of each, (L,); at most ``most``.
    """
    at = np.zeros(len(of), np.int64)
    for b in range(len(ids)):
        for c in range(len(of)):
            at[c] = slot(ids[b, c], table[of[c]])
            over[b] |= ids[b, c] != 0 and table[of[c], at[c], 1] >= limits[of[c]]
        for c in range(len(of) if counts and not over[b] else 0):
            again = ids[b, c] == 0
            for before in range(c):
                again |= of[before] == of[c] and ids[b, before] == ids[b, c]
            row = table[of[c], slot(ids[b, c], table[of[c]]) if c and of[c - 1] == of[c] else at[c]]
            if again or (row[0] == 0 and used[of[c]] >= most):
                continue
            used[of[c]] += row[0] == 0
            row[0] = ids[b, c]
            row[1] += np.uint64(1)
