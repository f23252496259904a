# core
"""Users and items of a log, as messages of ``users`` and ``items`` in their last state.

A log has the attributes that the schema names, of users and items that were on a page. It does not tell which items
were taken off since, nor attributes that only the schema's filters need. The shop's own messages replace these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.commands.replay.logfeatures import LogRows
from millrace.contracts.events import Item, User
from millrace.contracts.schema import DERIVED, Schema, Side
from millrace.logs import LogTable


def users_of(log: LogTable, schema: Schema, rows: LogRows) -> list[User]:
    last = _last(rows, rows.builder.user_column)
    ids: list[Any] = log.table[log.user].take(last).to_pylist()
    return [User(one, a) for one, a in zip(ids, _attributes(log, schema, rows, "user", last), strict=True)]


def items_of(log: LogTable, schema: Schema, rows: LogRows) -> list[Item]:
    """Every item of the log. Where the log has ``age_days``, births follow from it."""
    last = _last(rows, rows.builder.item_column)
    ids: list[Any] = log.table[log.item].take(last).to_pylist()
    born = np.zeros(len(last), np.int64)
    if "age_days" in log.table.column_names:
        age = np.nan_to_num(log.table["age_days"].take(last).fill_null(0).to_numpy().astype(np.float64))
        # Nothing is born before 1970, whatever a log says; 0 means unknown.
        born = np.maximum(rows.ts_ms[last] - np.round(age * DAY_MS).astype(np.int64), 0)
    attributes = _attributes(log, schema, rows, "item", last)
    return [Item(one, a, born_ms=b) for one, a, b in zip(ids, attributes, born.tolist(), strict=True)]


def _last(rows: LogRows, column: str) -> NDArray[np.intp]:
    who = rows.hashes(column, slice(0, rows.n))
    _, from_end = np.unique(who[::-1], return_index=True)
    return np.sort(rows.n - 1 - from_end)


def _attributes(
    log: LogTable, schema: Schema, rows: LogRows, side: Side, which: NDArray[np.intp]
) -> list[dict[str, Any]]:
    ids = {log.user, log.item, rows.builder.user_column, rows.builder.item_column}
    names = [f.name for f in schema.fields if f.of == side and f.name not in {*ids, *DERIVED}]
    table = log.table
    columns = {name: table[name].take(which).to_pylist() for name in names if name in table.column_names}
    return [{n: c[k] for n, c in columns.items() if c[k] not in (None, "")} for k in range(len(which))]
