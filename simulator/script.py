# core
"""A log as a script to play: its users, its items, and page after page with the actions on it.

The rows of one page (``log.request``, or each row by itself) are cut into runs of consecutive positions, played as a
page each. First attributes of users and items are sent before the play, later changes when their page is played.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import column_hash
from millrace.contracts.events import Id, Item, User
from millrace.contracts.schema import DERIVED, Schema
from millrace.logs import TS, LogTable

I64 = NDArray[np.int64]
CHUNK_ROWS = 4096
CLICK_AFTER_MS = 1000  # delay of a click without a time in the log, after its exposure
ACTIONS = ("click", "collect", "cart", "purchase")


@dataclass(frozen=True, slots=True)
class PlayedPage:
    ts_ms: int
    user_id: Id
    items: list[Id]
    first_position: int  # slot of the first item on the page that the log knew
    context: dict[str, Any]  # of the first row
    times: list[tuple[int, int, int, int]]  # of each item: click, collect, cart, purchase; 0: not done
    users: list[User]  # attributes that changed with this page
    inventory: list[Item]


class Script:
    """A log, ready to play. Users of ``cast`` and items of ``stock`` must be known before the first page."""

    def __init__(self, log: LogTable, schema: Schema) -> None:
        assert schema.log is not None
        self._log, self._schema, self._columns = log.table, schema, schema.log
        names = set(log.table.column_names)
        ids = {schema.log.user, schema.log.item}
        self._of = {
            side: [f.name for f in schema.fields if f.of == side and f.name in names and f.name not in {*ids, *DERIVED}]
            for side in ("user", "item", "context")
        }
        self.ts_ms: I64 = log.table[TS].to_numpy()
        self.starts = self._runs()  # (P,) first row of each page, in the order of self._order
        new_user, self._user_changes = self._changes(schema.log.user, "user")
        new_item, self._item_changes = self._changes(schema.log.item, "item")
        self.cast: list[User] = self._users(new_user)
        self.stock: list[Item] = self._items(new_item)

    @property
    def pages(self) -> int:
        return len(self.starts)

    def scenes(self) -> Iterator[PlayedPage]:
        bounds = np.r_[self.starts, len(self.ts_ms)]
        step = 0
        while step < self.pages:
            # Whole pages, some thousand rows at a time: the log's cells become Python values only as they are played.
            end = int(np.searchsorted(bounds, bounds[step] + CHUNK_ROWS, side="right")) - 1
            end = min(max(end, step + 1), self.pages)
            rows = self._order[bounds[step] : bounds[end]]
            cells = self._cells(rows)
            for page in range(step, end):
                low, high = int(bounds[page] - bounds[step]), int(bounds[page + 1] - bounds[step])
                yield self._scene(rows[low:high], {name: cells[name][low:high] for name in cells})
            step = end

    def _runs(self) -> NDArray[np.intp]:
        n, c = len(self.ts_ms), self._columns
        self._order: NDArray[np.intp] = np.arange(n)
        self._position: I64 = np.zeros(n, np.int64)
        if c.position is not None:
            self._position = self._log[c.position].fill_null(0).to_numpy().astype(np.int64)
        if c.request is None:
            return np.arange(n)
        page = column_hash(_values(self._log[c.request])) ^ (column_hash(_values(self._log[c.user])) * np.uint64(3))
        _, first, page = np.unique(page, return_index=True, return_inverse=True)
        # By the page's first appearance, then along the page.
        self._order = np.lexsort((np.arange(n), self._position, first[page]))
        page, position = page[self._order], self._position[self._order]
        fresh = np.r_[True, page[1:] != page[:-1]]
        if c.position is not None:
            fresh[1:] |= position[1:] != position[:-1] + 1
        fresh |= np.arange(n) == 0
        return np.flatnonzero(fresh)

    def _changes(self, column: str, side: str) -> tuple[NDArray[np.intp], set[int]]:
        """(rows of first appearances, rows with other attributes than the appearance before)."""
        who = column_hash(_values(self._log[column]))
        look = np.zeros(len(who), np.uint64)
        with np.errstate(over="ignore"):
            for name in self._of[side]:
                look = look * np.uint64(0x9E3779B97F4A7C15) + column_hash(_values(self._log[name]))
        order = np.argsort(who, kind="stable")
        new = np.r_[True, who[order][1:] != who[order][:-1]]
        turn = np.r_[False, look[order][1:] != look[order][:-1]] & ~new
        return np.sort(order[new]), set(order[turn].tolist())

    def _users(self, rows: NDArray[np.intp]) -> list[User]:
        ids, table = self._pylist(self._columns.user, rows), self._records("user", rows)
        return [User(i, a) for i, a in zip(ids, table, strict=True)]

    def _items(self, rows: NDArray[np.intp]) -> list[Item]:
        ids, table = self._pylist(self._columns.item, rows), self._records("item", rows)
        born = np.zeros(len(rows), np.int64)
        if "age_days" in self._log.column_names:
            age = self._log["age_days"].take(rows).fill_null(0).to_numpy()
            # At least 0, which means unknown: a log's ages may reach back before 1970.
            born = np.maximum(self.ts_ms[rows] - np.round(age * DAY_MS).astype(np.int64), 0)
        return [Item(i, a, born_ms=b) for i, a, b in zip(ids, table, born.tolist(), strict=True)]

    def _pylist(self, column: str, rows: NDArray[np.intp]) -> list[Any]:
        values: list[Any] = self._log[column].take(rows).to_pylist()
        return values

    def _records(self, side: str, rows: NDArray[np.intp]) -> list[dict[str, Any]]:
        """Attributes of rows, absent ones left out."""
        columns = {name: self._pylist(name, rows) for name in self._of[side]}
        return [{n: c[k] for n, c in columns.items() if c[k] not in (None, "")} for k in range(len(rows))]

    def _cells(self, rows: NDArray[np.intp]) -> dict[str, list[Any]]:
        c = self._columns
        names = [c.user, c.item, c.label, *c.action_times.values(), *self._of["context"]]
        return {name: self._pylist(name, rows) for name in dict.fromkeys(names)}

    def _scene(self, rows: NDArray[np.intp], cells: dict[str, list[Any]]) -> PlayedPage:
        c = self._columns
        ts_ms = int(self.ts_ms[rows].min())
        times = []
        for k in range(len(rows)):
            times_of = {action: cells[name][k] or 0 for action, name in c.action_times.items()}
            if cells[c.label][k] == 1 and not times_of.get("click"):
                times_of["click"] = ts_ms + CLICK_AFTER_MS
            when = [max(times_of.get(a, 0), ts_ms + 1) if times_of.get(a, 0) else 0 for a in ACTIONS]
            times.append((when[0], when[1], when[2], when[3]))
        context = {n: cells[n][0] for n in self._of["context"] if cells[n][0] is not None}
        user_changes = [r for r in rows.tolist() if r in self._user_changes]
        item_changes = [r for r in rows.tolist() if r in self._item_changes]
        return PlayedPage(
            ts_ms,
            cells[c.user][0],
            cells[c.item],
            int(self._position[rows[0]]),
            context,
            times,
            self._users(np.array(user_changes)) if user_changes else [],
            self._items(np.array(item_changes)) if item_changes else [],
        )


def _values(column: Any) -> Any:
    """A column for hashing: numbers stay numbers, all else becomes objects."""
    return column.to_numpy(zero_copy_only=False) if hasattr(column, "combine_chunks") else column
