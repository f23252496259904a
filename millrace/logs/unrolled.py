# core
"""A log with a row a page becomes one with a row an exposure: lists of candidates are unrolled.

::

    items            labels           clicked        pairs                     ->   item  label  slot  row
    [7, 9, 4]        [0, 1, 0]   or   [9]        or  "7-0 9-1 4-0"                  7     0      0     0
                                                                                    9     1      1     0
                                                                                    4     0      2     0

A list is a list of Arrow, or a text with a separator; the brackets and quotes of ``['a', 'b']`` are removed.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.contracts.logforms import LogColumns
from millrace.logs.faults import Faults
from millrace.logs.values import as_text, flat, is_text, missing


def unroll(table: pa.Table, log: LogColumns, path: str, faults: Faults, row: int) -> tuple[pa.Table, NDArray[np.intp]]:
    """(a row for each exposure, with item, label, slot and page; (n,) the row of ``table`` of each). ``table`` is the
    stretch that ``faults`` has begun; ``row`` is the number of rows of the log before it."""
    listed = log.items or log.pairs
    assert listed is not None
    items = _lists(table[listed], log)
    _lengths_fit(table, log, items, path, faults)
    empty = (_sizes(items) == 0) & faults.good
    faults.decide(f"rows of '{path}' without an item in '{listed}' are no page", listed, int(empty.sum()), "leave them")
    good = np.flatnonzero(faults.good & ~empty)
    take = pa.array(good)
    items = items.take(take)
    sizes = _sizes(items)
    parent = np.repeat(np.arange(len(good)), sizes)
    start = np.cumsum(sizes) - sizes
    slot = np.arange(len(parent)) - start[parent]
    values = pc.list_flatten(items)
    made: dict[str, pa.Array] = {}
    if log.pairs is not None:
        made[log.item], made[log.label] = _pairs(values, log, path, faults, good[parent])
    elif log.labels is not None:
        made[log.item], made[log.label] = values, pc.list_flatten(_lists(table[log.labels], log).take(take))
    else:
        assert log.clicked is not None
        clicked = _lists(table[log.clicked], log).take(take)
        made[log.item], made[log.label] = values, pa.array(_among(values, parent, clicked, log, path, faults))
    for name in log.along:
        made[name] = pc.list_flatten(_lists(table[name], log).take(take))
    used = {n for n in (log.items, log.labels, log.clicked, log.pairs) if n is not None}
    if log.position is not None and log.position not in table.column_names:
        made[log.position] = pa.array(slot.astype(np.int32))
    if log.request is not None and log.request not in table.column_names:
        made[log.request] = pa.array(good[parent] + row)
    rows = good[parent]
    kept = table.select([n for n in table.column_names if n not in used and n not in made]).take(pa.array(rows))
    for name, column in made.items():
        kept = kept.append_column(name, column)
    return kept, rows


def _lists(column: pa.ChunkedArray, log: LogColumns) -> pa.ListArray:
    """The column as lists; null is an empty list, one value a list of it."""
    column = flat(column)
    if is_text(column.type):
        text = pc.utf8_trim_whitespace(pc.replace_substring_regex(column, r"[\[\]()'\"]", ""))
        text = pc.if_else(pc.equal(text, ""), None, text)
        lists = pc.split_pattern(text, log.list_separator.strip() or " ")
        values = pc.utf8_trim_whitespace(pc.list_flatten(lists))
        sizes = _sizes(lists)
        kept = pc.not_equal(values, "").to_numpy(zero_copy_only=False)  # two spaces in a row are one
        if not kept.all():
            sizes = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[kept], minlength=len(sizes))
            values = values.filter(pa.array(kept))
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        sizes, values = _sizes(column), pc.list_flatten(column)
    else:
        there = ~missing(column)
        sizes, values = there.astype(np.int64), column.filter(pa.array(there))
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(sizes)].astype(np.int32)), values)


def _sizes(lists: pa.Array) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), np.int64)


def _lengths_fit(table: pa.Table, log: LogColumns, items: pa.ListArray, path: str, faults: Faults) -> None:
    listed = log.items or log.pairs
    for name in (*(() if log.labels is None else (log.labels,)), *log.along):
        sizes = _sizes(_lists(table[name], log))
        odd = (sizes != _sizes(items)) & faults.good
        if odd.any():
            first = int(np.argmax(odd))
            problem = (
                f"log '{path}': row {{row}} has {sizes[first]} values in '{name}' for {_sizes(items)[first]} items"
            )
            remedy = f"give '{name}' as many values as '{listed}' has"
            faults.mark("length", name, odd, str(sizes[first]), problem, remedy)


def _pairs(
    values: pa.Array, log: LogColumns, path: str, faults: Faults, origin: NDArray[np.intp]
) -> tuple[pa.Array, pa.Array]:
    """(items, labels) of texts like ``N12-1``: the label follows the last separator."""
    parts = pc.split_pattern(values, log.pair_separator, max_splits=1, reverse=True)
    whole = pc.equal(pc.list_value_length(parts), 2)
    items = pc.list_element(pc.if_else(whole, parts, pa.scalar(["", "0"], parts.type)), 0)
    said = pc.list_element(pc.if_else(whole, parts, pa.scalar(["", ""], parts.type)), 1)
    fit = pc.is_in(said, value_set=pa.array(["0", "1"], said.type)).to_numpy(zero_copy_only=False)
    if not fit.all():
        odd = np.zeros(len(faults.bad), bool)
        odd[origin[~fit]] = True
        value = values[int(np.argmax(~fit))].as_py()
        faults.mark("pair", log.pairs, odd, value, f"log '{path}': row {{row}} has the pair '{value}' in '{log.pairs}'",
                    f"write pairs like 'N12{log.pair_separator}1': item, '{log.pair_separator}', 0 or 1")  # fmt: skip
    label = pc.cast(pc.if_else(pa.array(fit), said, "0"), pa.int8())
    return items, label


def _among(
    items: pa.Array, parent: NDArray[np.intp], clicked: pa.ListArray, log: LogColumns, path: str, faults: Faults
) -> NDArray[np.int8]:
    """(n,) 1 where an item is in its row's list of clicked ones."""
    hits, owner = pc.list_flatten(clicked), np.repeat(np.arange(len(clicked)), _sizes(clicked))
    both = pa.concat_arrays([flat(as_text(items)), flat(as_text(hits))]).dictionary_encode()
    code = both.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    key = np.r_[parent, owner] * (len(both.dictionary) + 1) + code
    shown, hit = key[: len(parent)], key[len(parent) :]
    stray = int((~np.isin(hit, shown)).sum())
    faults.decide(
        f"clicked items of '{path}' that are not among their row's items are no exposures", log.clicked, stray,
        f"list them in '{log.items}' too, if they were shown",
    )  # fmt: skip
    return np.isin(shown, hit).astype(np.int8)
