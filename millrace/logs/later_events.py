# core
"""What came of exposures after their rows were written: the events of an archive, beside its exposures.

::

    events   purchase  user item page  day 3 ──► the row of this page and item
             order     user item       day 3 ──► the row of the user's last click on the item before it
             refund    user item       day 5 ──► the user's last purchase of the item before it did not happen

The rules are those of the stream (``stream/join/outcome_book.py``), without its windows: whoever asks has those. A page
holds an item once, so user, page and item name a row. An event takes 24 bytes of memory, a click too where there are
orders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from millrace.basics.errors import LogError
from millrace.basics.hashing import U64, combine, salt
from millrace.contracts.events import ACTIONS, CLICK, PURCHASE
from millrace.logs.log_files import files_of, named
from millrace.logs.values import hashes

I64 = NDArray[np.int64]

_NEVER = np.iinfo(np.int64).max
_OWNER, _ROW = salt("later", "owner"), salt("later", "row")
_ORDER, _REFUND = "order", "refund"
_COLUMNS = "type", "ts_ms", "user_id", "item_id", "request_id"


class LaterEvents:
    """Actions of some kinds, of all rows. Memory grows with their number.

    Args:
        folder: Parquet files with a row an event, as an archive's ``events``.
        actions: the kinds to look for, without the click.

    Raises:
        LogError: no such folder or files, or a file of it cannot be read or lacks a column.
    """

    def __init__(self, folder: Path, actions: Collection[str]) -> None:
        files = files_of([folder])
        self._taken_back = np.empty(0, np.uint64)
        self._known: dict[str, tuple[U64, I64]] = {}  # by action: rows ascending, when it came first
        for action in sorted(set(actions)):
            _, row, ts_ms = _read(files, action)
            if action == ACTIONS[PURCHASE]:
                row, ts_ms = self._purchases(files, row, ts_ms)
            order = np.lexsort((ts_ms, row))
            row, ts_ms = row[order], ts_ms[order]
            first = np.r_[True, row[1:] != row[:-1]][: len(row)]
            self._known[action] = row[first], ts_ms[first]

    def times(self, action: str, own: Any, user: Any, page: Any, item: Any) -> pa.Array:
        """When an action came of each row, int64 ms, null: never. (n,) each; ``own``: what the row says of it."""
        row, (known, ts_ms) = _rows(hashes(user), hashes(page), hashes(item)), self._known[action]
        came = pc.fill_null(own, _NEVER).to_numpy(zero_copy_only=False).astype(np.int64)
        if len(self._taken_back):
            came = np.where(np.isin(_moment(row, came), self._taken_back), _NEVER, came)
        if len(known):
            at = np.minimum(np.searchsorted(known, row), len(known) - 1)
            came = np.minimum(came, np.where((known[at] == row) & (row != 0), ts_ms[at], _NEVER))
        return pa.array(came, mask=came == _NEVER)

    def _purchases(self, files: Sequence[Path], row: U64, ts_ms: I64) -> tuple[U64, I64]:
        """Purchases that name a page, orders at their clicks, without those that were taken back."""
        owner, _, _ = _read(files, ACTIONS[PURCHASE])
        ordered, _, ordered_ms = _read(files, _ORDER)
        if len(ordered):
            clicked, clicked_row, clicked_ms = _read(files, ACTIONS[CLICK])
            found = _last_before(clicked, clicked_ms, ordered, ordered_ms)
            ordered, ordered_ms, found = ordered[found >= 0], ordered_ms[found >= 0], found[found >= 0]
            owner, row = np.r_[owner, ordered], np.r_[row, clicked_row[found]]
            ts_ms = np.r_[ts_ms, ordered_ms]
        refunded, _, refunded_ms = _read(files, _REFUND)
        if not len(refunded):
            return row, ts_ms
        bought, gone = defaultdict[int, list[int]](list), np.zeros(len(row), np.bool_)
        some = np.flatnonzero(np.isin(owner, refunded))
        for n in some[np.argsort(ts_ms[some], kind="stable")].tolist():
            bought[int(owner[n])].append(n)
        for who, at_ms in sorted(
            set(zip(refunded.tolist(), refunded_ms.tolist(), strict=True)), key=lambda one: one[1]
        ):
            open_ones = [n for n in bought[who] if not gone[n] and ts_ms[n] <= at_ms]
            if open_ones:
                gone[[n for n in open_ones if ts_ms[n] == ts_ms[open_ones[-1]]]] = True
        self._taken_back = _moment(row[gone], ts_ms[gone])
        return row[~gone], ts_ms[~gone]


def _read(files: Sequence[Path], kind: str) -> tuple[U64, U64, I64]:
    """Of all events of a kind: the hash of user and item, that of user, page and item (0: names no page), the time."""
    parts = [(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))]
    for file in files:
        with named(file):
            lacking = [name for name in _COLUMNS if name not in pq.read_schema(file).names]
            if lacking:
                raise LogError(f"'{file}' has no column '{lacking[0]}'", "name a table of events for log.events")
            table = pq.read_table(file, columns=list(_COLUMNS), filters=[("type", "=", kind)])
        user, item, page = (hashes(table[name]) for name in _COLUMNS[2:])
        parts.append((combine(_OWNER, user, item), _rows(user, page, item), table["ts_ms"].to_numpy()))
    owner, row, ts_ms = (np.concatenate(column) for column in zip(*parts, strict=True))
    return owner, row, ts_ms


def _rows(user: U64, page: U64, item: U64) -> U64:
    return combine(_ROW, user | np.uint64(1), page, item)  # a guest's hash is 0


def _moment(row: U64, ts_ms: I64) -> U64:
    return combine(_ROW, row, ts_ms.astype(np.uint64) | np.uint64(1))


def _last_before(key: U64, ts_ms: I64, of: U64, at_ms: I64) -> NDArray[np.intp]:
    """Of each (of, at_ms) the last place of its key that is no later; -1: there is none."""
    both, times = np.r_[key, of], np.r_[ts_ms, at_ms]
    asks = np.arange(len(both)) >= len(key)
    order = np.lexsort((asks, times, both))  # at one time, what is asked for comes first
    last = np.maximum.accumulate(np.where(asks[order], -1, np.arange(len(both))))
    found = np.where(last >= 0, order[last], -1)
    found = np.where((found >= 0) & (both[found] == both[order]), found, -1)
    out = np.empty(len(both), np.intp)
    out[order] = found
    return out[len(key) :]
