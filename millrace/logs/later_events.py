# core
"""What came of exposures after their rows were written: the events of an archive, beside its exposures.

::

    events   purchase  user item page  day 3 ──► the row of this page and item
             order     user item       day 3 ──► the row of the user's last click on the item before it
             refund    user item       day 5 ──► the user's last purchase of the item before it did not happen
    click     after_row       9 min ──► the stream counted it when the row was written: of the row, as if that waited

The rules are those of the stream (``stream/join/outcome_book.py``), without its windows: whoever asks has those. Rows
are in the order in which events came. Of purchases, orders and refunds with one user and ``event_id`` the first counts;
without that column, of those that are the same. A page holds an item once, so user, page and item name a row. An event
takes 42 bytes of memory, a click too where purchases are looked for. Other events are read and not kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from millrace.basics.errors import LogError
from millrace.basics.hashing import U64, combine, salt
from millrace.contracts.events import ACTIONS, CLICK, EVENT_KINDS, PURCHASE, Order, Refund
from millrace.logs.log_files import files_of, named
from millrace.logs.values import hashes

I64 = NDArray[np.int64]

_NEVER = np.iinfo(np.int64).max
_OWNER, _ROW, _ID = (salt("later", name) for name in ("owner", "row", "id"))
_ONE, _DTYPES = np.uint64(1), (np.int8, np.bool_, np.uint64, np.uint64, np.int64, np.uint64, np.int64)
_COLUMNS = "type", "ts_ms", "user_id", "item_id", "request_id"


class LaterEvents:
    """Actions of some kinds, of all rows. Memory grows with their number.

    Args:
        folder: Parquet files with a row an event, as an archive's ``events``.
        actions: the kinds to look for however late they came, without the click.

    Raises:
        LogError: no such folder or files, or a file of it cannot be read or lacks a column.
    """

    def __init__(self, folder: Path, actions: Collection[str]) -> None:
        actions = set(actions)
        bought = {CLICK, PURCHASE, Order.kind, Refund.kind} if ACTIONS[PURCHASE] in actions else set()
        events = _read(files_of([folder]), bought | {ACTIONS.index(action) for action in actions})
        self._taken_back = np.empty(0, np.uint64)
        counted = events.take(events.after_row)
        self._counted = {action: _first(counted.of(kind)) for kind, action in enumerate(ACTIONS)}
        self._known = dict[str, tuple[U64, I64]]()
        for action in actions:
            came = events.of(ACTIONS.index(action))
            self._known[action] = _first(self._purchases(came, events) if action == ACTIONS[PURCHASE] else came)

    def times(self, action: str, own: Any, user: Any, page: Any, item: Any) -> pa.Array:
        """When an action came of each row, int64 ms, null: never. (n,) each; ``own``: what the row says of it."""
        row = _rows(hashes(user), hashes(page), hashes(item))
        came = pc.fill_null(own, _NEVER).to_numpy(zero_copy_only=False).astype(np.int64)
        if len(self._taken_back):
            came = np.where(np.isin(_moment(row, came), self._taken_back), _NEVER, came)
        return _earliest(came, row, self._known[action])

    def counted(self, action: str, own: Any, user: Any, page: Any, item: Any) -> Any:
        """When the stream counted an action of each row, as :meth:`times`: as the row says, or when it was written."""
        if not len(self._counted[action][0]):
            return own
        came = pc.fill_null(own, _NEVER).to_numpy(zero_copy_only=False).astype(np.int64)
        return _earliest(came, _rows(hashes(user), hashes(page), hashes(item)), self._counted[action])

    def _purchases(self, named: _Events, events: _Events) -> _Events:
        """Purchases that name a page, and orders at their clicks, without those that were taken back."""
        clicks, orders, refunds = (events.of(kind) for kind in (CLICK, Order.kind, Refund.kind))
        at = _last_before(clicks, orders)
        orders = orders._replace(row=np.append(clicks.row, np.uint64(0))[at])  # -1, the last one: of no row
        found = _joined([named, orders.take(at >= 0), refunds])
        found = found.take(np.argsort(found.at))
        again = np.ones(len(found.id), np.bool_)
        again[np.unique(found.id, return_index=True)[1]] = False
        is_refund = found.kind == Refund.kind
        refunds, both = found.take(is_refund & ~again), found.take(~is_refund)
        bought, gone = defaultdict[int, list[int]](list), again[~is_refund]  # a row may say what came again, too
        some = np.flatnonzero(np.isin(both.owner, refunds.owner) & ~gone)
        for n in some[np.argsort(both.ts_ms[some], kind="stable")].tolist():
            bought[int(both.owner[n])].append(n)
        for r in np.argsort(refunds.ts_ms, kind="stable").tolist():
            open_ones = bought[int(refunds.owner[r])]
            last = next((n for n in reversed(open_ones) if both.ts_ms[n] <= refunds.ts_ms[r]), None)
            if last is not None:
                open_ones.remove(last)
                gone[last] = True
        self._taken_back = _moment(both.row[gone], both.ts_ms[gone])
        return both.take(~gone)


class _Events(NamedTuple):
    """n events."""

    kind: NDArray[np.int8]
    after_row: NDArray[np.bool_]
    owner: U64  # the hash of user and item; 0: one is missing
    row: U64  # of user, page and item; 0: names no page
    ts_ms: I64
    id: U64
    at: I64  # of all events, in the order in which they came

    def of(self, kind: int) -> _Events:
        return self.take(self.kind == kind)

    def take(self, some: NDArray[np.bool_] | NDArray[np.intp]) -> _Events:
        columns: Any = (column[some] for column in self)
        return _Events(*columns)


def _joined(parts: Sequence[_Events]) -> _Events:
    columns: Any = map(np.concatenate, zip(*parts, strict=True))
    return _Events(*columns)


def _first(came: _Events) -> tuple[U64, I64]:
    """Rows ascending, and when it came first of each."""
    order = np.lexsort((came.ts_ms, came.row))
    row, ts_ms = came.row[order], came.ts_ms[order]
    first = np.r_[True, row[1:] != row[:-1]][: len(row)]
    return row[first], ts_ms[first]


def _earliest(came: I64, row: U64, known: tuple[U64, I64]) -> pa.Array:
    """The times ``came`` of rows (n,), or those that are ``known`` where they are earlier."""
    rows, ts_ms = known
    if len(rows):
        at = np.minimum(np.searchsorted(rows, row), len(rows) - 1)
        came = np.minimum(came, np.where((rows[at] == row) & (row != 0), ts_ms[at], _NEVER))
    return pa.array(came, mask=came == _NEVER)


def _read(files: Sequence[Path], kinds: Collection[int]) -> _Events:
    """All events of some kinds, and of others those that were counted when the row was written."""
    names = pa.array(EVENT_KINDS)
    none: Any = (np.empty(0, dtype) for dtype in _DTYPES)
    parts = [_Events(*none)]
    for path in files:
        with named(path), pq.ParquetFile(path) as file:
            lacking = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if lacking:
                raise LogError(f"'{path}' has no column '{lacking[0]}'", "name a table of events for log.events")
            table = file.read(columns=[*_COLUMNS, *({"event_id", "after_row"} & set(file.schema_arrow.names))])
        kind = pc.fill_null(pc.index_in(table["type"], value_set=names), -1).to_numpy()
        after_row = np.zeros(len(kind), np.bool_)
        if "after_row" in table.column_names:
            after_row = pc.fill_null(table["after_row"], False).to_numpy()
        some = np.isin(kind, list(kinds)) | after_row
        table, kind, after_row = table.filter(pa.array(some)), kind[some], after_row[some]
        user, item, page = (hashes(table[name]) for name in _COLUMNS[2:])
        owner, row, ts_ms = combine(_OWNER, user, item), _rows(user, page, item), table["ts_ms"].to_numpy()
        of_kind, of_ms = kind.astype(np.uint64) + _ONE, ts_ms.astype(np.uint64) + _ONE  # a 0 were a missing value
        id = combine(_ID, of_kind, of_ms, owner | _ONE, row | _ONE)
        if "event_id" in table.column_names:
            named_so = combine(_ID, user | _ONE, hashes(table["event_id"]))
            id = np.where(named_so, named_so, id)
        none = np.empty(len(kind), np.int64)
        parts.append(_Events(kind.astype(np.int8), after_row, owner, row, ts_ms, id, none))
    found = _joined(parts)
    return found._replace(at=np.arange(len(found.at)))


def _rows(user: U64, page: U64, item: U64) -> U64:
    return combine(_ROW, user | np.uint64(1), page, item)  # a guest's hash is 0


def _moment(row: U64, ts_ms: I64) -> U64:
    return combine(_ROW, row, ts_ms.astype(np.uint64) | np.uint64(1))


def _last_before(clicks: _Events, orders: _Events) -> NDArray[np.intp]:
    """Of each order the last click of its user on its item that is no later; -1: there is none."""
    n = len(clicks.row)
    owner, ts_ms = (np.concatenate([getattr(clicks, name), getattr(orders, name)]) for name in ("owner", "ts_ms"))
    ordered = np.arange(len(owner)) >= n
    order = np.lexsort((ordered, ts_ms, owner))  # at one time clicks come first
    last = np.maximum.accumulate(np.where(ordered[order], -1, np.arange(len(owner))))
    found = np.where(last >= 0, order[last], -1)
    found[(owner[found] != owner[order]) | (owner[order] == 0)] = -1
    out = np.empty(len(owner), np.intp)
    out[order] = found
    return out[n:]
