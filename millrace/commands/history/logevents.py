# core
"""A log as events in the order of time: pages that were seen, and actions on them.

::

    rows of the log      ts  request  slot  item   click_ms  purchase_ms
                         10  r1       0     a      14        -              page 0: (a, b) at 10
                         10  r1       1     b      -         -              acts:   a clicked at 14, d bought at 40
                         20  r2       5     d      31        40             page 1: (d) at 20

A page is what one request showed at one time: rows of one request, user and time, along their slots. A request with
rows of several times gives a page for each time, with names of their own (``r1#1``). In a log without requests each
row is a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.commands.replay.logfeatures import LogRows
from millrace.contracts.events import ACTIONS, CLICK, MAX_ITEMS, Id
from millrace.contracts.schema import Schema
from millrace.logs import LogTable

I64 = NDArray[np.int64]
Rows = NDArray[np.intp]


class LogEvents:
    """Pages and acts of a log. n rows, P pages, E acts.

    Args:
        life_ms: an action later than this after its exposure does not count, as in the live join.

    Attributes:
        order: (n,) rows, page after page, along each page.
        starts: (P + 1,) where each page begins in ``order``; then n.
        page_ms: (P,) ascending.
        page_of: (n,) the page of each row, and ``place_of`` its place on the page, from 0.
        act_ms: (E,) ascending; ``act_row`` and ``act_kind`` are the row and its kind of
            :data:`~millrace.contracts.events.ACTIONS`.
    """

    def __init__(self, log: LogTable, schema: Schema, rows: LogRows, life_ms: int) -> None:
        assert schema.log is not None
        self._rows, self._table = rows, log.table
        self._user, self._item = schema.log.user, schema.log.item
        n, slot = rows.n, rows.slots(np.arange(rows.n))
        user = rows.hashes(rows.builder.user_column, slice(0, n))
        named = schema.log.request is not None
        request = rows.named() if named else np.arange(n)
        self.order: Rows = np.lexsort((np.arange(n), slot, request, rows.ts_ms))
        a, b = self.order[:-1], self.order[1:]
        new = (rows.ts_ms[a] != rows.ts_ms[b]) | (request[a] != request[b]) | (user[a] != user[b])
        begins = np.r_[n > 0, new]
        first = np.flatnonzero(begins)
        within = np.arange(n) - np.repeat(first, np.diff(np.r_[first, n]))
        begins |= within % MAX_ITEMS == 0
        self.starts: Rows = np.r_[np.flatnonzero(begins), n]
        self.page_ms: I64 = rows.ts_ms[self.order[self.starts[:-1]]]
        self.page_of: Rows = np.empty(n, np.intp)
        self.place_of: Rows = np.empty(n, np.intp)
        sizes = np.diff(self.starts)
        self.page_of[self.order] = np.repeat(np.arange(len(sizes)), sizes)
        self.place_of[self.order] = np.arange(n) - np.repeat(self.starts[:-1], sizes)
        # The first page of a request has its name; later ones differ from it by their number.
        self._request = request[self.order[self.starts[:-1]]] if n else np.zeros(0, np.intp)
        by = np.argsort(self._request, kind="stable")
        again = np.r_[False, self._request[by][1:] == self._request[by][:-1]] if n else np.zeros(0, np.bool_)
        run = np.arange(len(by)) - np.maximum.accumulate(np.where(again, 0, np.arange(len(by))))
        self._number: I64 = np.empty(len(by), np.int64)
        self._number[by] = run
        self._named = named
        self._acts(log, schema, life_ms)

    def _acts(self, log: LogTable, schema: Schema, life_ms: int) -> None:
        assert schema.log is not None
        rows, never = self._rows, np.iinfo(np.int64).max
        times = {
            name: np.maximum(log.table[column].fill_null(never).to_numpy(), rows.ts_ms)
            for name, column in schema.log.action_times.items()
            if name in ACTIONS
        }
        labelling = schema.windows.labelling
        if labelling in ACTIONS[CLICK:]:
            # A label without a time counts when the wait for it is over, or at once where no action has a time.
            wait_ms = round(schema.log.attribution_minutes * 60_000) if schema.log.action_times else 0
            timed = times.get(labelling, np.full(rows.n, never))
            times[labelling] = np.where((rows.label == 1) & (timed == never), rows.ts_ms + wait_ms, timed)
        found = []
        for kind, name in enumerate(ACTIONS):
            if name in times:
                who = np.flatnonzero((times[name] < never) & (times[name] - rows.ts_ms < life_ms))
                found.append((times[name][who], who, np.full(len(who), kind)))
        at, who, kinds = (np.concatenate([f[i] for f in found] or [np.zeros(0, np.int64)]) for i in range(3))
        order = np.lexsort((kinds, who, at))
        self.act_ms: I64 = at[order].astype(np.int64)
        self.act_row: Rows = who[order].astype(np.intp)
        self.act_kind: I64 = kinds[order].astype(np.int64)

    @property
    def pages(self) -> int:
        return len(self.page_ms)

    @property
    def end_ms(self) -> int:
        """Time of the newest event; 0 where there is none."""
        return max(int(self.page_ms[-1]) if self.pages else 0, int(self.act_ms[-1]) if len(self.act_ms) else 0)

    def users(self, pages: slice) -> list[Id]:
        return self._ids(self._user, self.order[self.starts[:-1][pages]])

    def items(self, rows: Rows) -> list[Id]:
        return self._ids(self._item, rows)

    def names(self, pages: slice) -> list[str]:
        if self._named:
            names: Sequence[str] = self._rows.requests(self._request[pages])
        else:
            names = [f"log-{row}" for row in self._request[pages].tolist()]
        return [f"{name}#{k}" if k else name for name, k in zip(names, self._number[pages].tolist(), strict=True)]

    def _ids(self, column: str, rows: Rows) -> list[Any]:
        values: list[Any] = self._table[column].take(rows).to_pylist()
        return values
