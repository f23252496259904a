# core
"""What a page is in a log: its id, the slots on it, the times of actions, and lists where a row is a page."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from millrace.commands.guess.roles import ACTIONS, ColumnRole, Roles, choose, same_page
from millrace.commands.guess.samplecolumns import Column
from millrace.commands.guess.timeformats import TimeColumn
from millrace.contracts.logforms import LINE, LogColumns
from millrace.logs.faults import Faults
from millrace.logs.unrolled import unroll
from millrace.logs.values import as_text

_PAGE = {"request", "impression", "page", "slate", "query", "search", "view", "req", "imp"}
MOST_EXPOSURES = 300_000
"""Exposures that a guess is made from, of a log whose rows are pages."""
LIST_SEPARATORS = (" ", ",", "|", ";")
PAIRS = re.compile(r"^\S+-[01](\s\S+-[01])*$")


def request_role(columns: Mapping[str, Column], user: str, time: NDArray[np.int64], taken: set[str]) -> ColumnRole:
    """The page: rows of one value have one user and one time (a minute at most), and some values have several rows."""
    scores, whys = {}, {}
    users = columns[user].codes
    for name, column in columns.items():
        if name in taken or column.is_list or column.filled < 1 or column.is_wordy:
            continue
        if (column.is_numeric and not column.is_whole) or column.distinct < 3:
            continue
        codes = column.codes
        order = np.lexsort((time, codes))
        same = codes[order][1:] == codes[order][:-1]
        pairs = int(same.sum())
        if pairs < 20 or pairs < 0.2 * column.distinct:
            continue
        one_user = (users[order][1:] == users[order][:-1])[same].mean()
        close = (np.abs(np.diff(time[order])) <= 60_000)[same].mean()
        if one_user >= 0.999 and close >= 0.999:
            tokens = set(column.tokens)
            named = bool(tokens & _PAGE)
            scores[name] = 3.0 + 3.0 * named + min(np.log10(column.distinct), 6.0) / 10
            whys[name] = f"rows of one value have one user and one time; {len(codes) / column.distinct:.1f} rows each"
    return choose(scores, whys, 3.0)


def line_role(columns: Mapping[str, Column], taken: set[str]) -> ColumnRole:
    """The page where each row is one: a column of which each row has its own, by its name, or the only such number."""
    own = {n: c for n, c in columns.items() if n not in taken and c.distinct == len(c.codes) > 1}
    own = {n: c for n, c in own.items() if not (c.is_list or c.is_temporal or (c.is_numeric and not c.is_whole))}
    named = [n for n, c in own.items() if _PAGE & {*c.tokens}]
    if len(named) == 1:
        return ColumnRole(named[0], "by its name; each row has its own")
    ids = [n for n, c in own.items() if c.is_numeric]
    return ColumnRole(ids[0], "the only number of which each row has its own") if len(ids) == 1 else ColumnRole()


def pages_of(user: Column, item: Column, time: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """(n,) a number for each user and time, if many rows share theirs with other items: pages that have no id."""
    order = np.lexsort((time, user.codes))
    same = same_page(user, time)
    if same.sum() < max(20, 0.2 * len(time)) or (np.diff(item.codes[order]) != 0)[same].mean() < 0.9:
        return None
    pages = np.empty(len(time), np.int64)
    pages[order] = np.cumsum(np.r_[True, ~same])
    return pages


def position_role(columns: Mapping[str, Column], pages: NDArray[np.int64] | None, taken: set[str]) -> ColumnRole:
    """The slot on the page: small whole numbers, by its name, or because each page has 0, 1, 2 ... of it."""
    for name, column in columns.items():
        if name in taken or not column.is_whole or column.filled < 0.5 or column.is_list:
            continue
        numbers = column.numbers[column.there]
        if numbers.min() < 0 or numbers.max() > 10_000 or column.distinct < 2:
            continue
        joined = "_".join(column.tokens)
        called = re.fullmatch(r"(item_|page_|display_|list_|slot_|banner_|show_)*(position|pos|slot|rank)", joined)
        if called and numbers.max() <= 1000:
            return ColumnRole(name, f"by its name; {int(numbers.min())} to {int(numbers.max())}{_from_1(numbers)}")
        if pages is not None and column.filled == 1:
            order = np.lexsort((column.numbers, pages))
            same = np.diff(pages[order]) == 0
            steps = np.diff(column.numbers[order])[same]
            if same.sum() >= 50 and (steps == 1).mean() >= 0.99 and numbers.min() <= 1:
                return ColumnRole(name, f"each page has it in steps of one{_from_1(numbers)}")
    return ColumnRole()


def _from_1(numbers: NDArray[np.float64]) -> str:
    return "; it begins at 1, where a live page's begins at 0" if numbers.min() == 1 else ""


def action_times(
    columns: Mapping[str, Column],
    times: Mapping[str, TimeColumn],
    time: NDArray[np.int64],
    label: NDArray[np.bool_] | None,
) -> dict[str, str]:
    """Action -> column with its time: missing in most rows, never before the exposure, and called after an action."""
    found: dict[str, str] = {}
    for name, column in columns.items():
        stamp = times.get(name)
        if stamp is None or stamp.there.all():
            continue
        there = stamp.there
        if (stamp.ms[there] < time[there]).mean() > 0.01:
            continue
        kinds = [ACTIONS[token] for token in column.tokens if token in ACTIONS]
        if not kinds and label is not None and (there == label).mean() >= 0.999:
            kinds = ["click"]
        if kinds and kinds[-1] not in found:
            found[kinds[-1]] = name
    return found


def list_roles(columns: Mapping[str, Column]) -> tuple[ColumnRole, ColumnRole, ColumnRole, ColumnRole, str]:
    """(items, labels, clicked, pairs, the separator of lists in texts) of a log whose rows are pages.

    Pairs are texts ``N1-0 N2-1``. Labels are lists of 0 and 1, as long as the row's list of items. Clicked items are a
    list within the row's list of items.
    """
    none = ColumnRole()
    for name, column in columns.items():
        if column.is_text and column.distinct >= 2:
            texts = column.values.slice(0, 1000).to_pylist()
            if sum(bool(text and PAIRS.match(text)) for text in texts) >= 0.99 * len(texts):
                return none, none, none, ColumnRole(name, "item and label of each slot in one text"), " "
    lists = {n: c for n, c in columns.items() if c.is_list and not pa.types.is_nested(c.kind.value_type)}
    for separator in (None, *LIST_SEPARATORS):
        rows = {n: c.data.slice(0, 2000).to_pylist() for n, c in lists.items()}
        if separator is not None:
            rows = {n: _parted(c, separator) for n, c in columns.items() if c.is_text or c.is_numeric}
        # In texts, the lists of a page and not of an item, such as its tags: hardly any is there twice.
        own = {n for n in rows if separator is None or columns[n].distinct > 0.5 * columns[n].there.sum()}
        found = _of_lists({n: [v or [] for v in values] for n, values in rows.items()}, own)
        if found is not None:
            return *found, none, separator or " "
    return none, none, none, none, " "


def _parted(column: Column, separator: str) -> list[list[str]]:
    """The lists that its first texts are; a number is a list of it."""
    texts = as_text(column.data.slice(0, 2000)).to_pylist()
    return [[word for word in (text or "").split(separator) if word] for text in texts]


def _of_lists(
    rows: Mapping[str, list[list[object]]], own: set[str]
) -> tuple[ColumnRole, ColumnRole, ColumnRole] | None:
    """(items, labels, clicked) of columns of lists, where one of ``own`` has the items."""
    none = ColumnRole()
    for name, values in ((n, v) for n, v in rows.items() if n in own):
        sizes = [len(v) for v in values]
        if not values or np.mean(sizes) < 2:
            continue
        items = ColumnRole(name, "the items of the page")
        for other, others in rows.items():
            flat = {str(x) for v in others for x in v}
            if other != name and [len(v) for v in others] == sizes and flat and flat <= {"0", "1", "True", "False"}:
                return items, ColumnRole(other, "0 or 1 for each item"), none
        for other, others in rows.items():
            inside = [set(b) <= set(a) for a, b in zip(values, others, strict=True) if a and b]
            fewer = np.mean([len(b) for b in others]) < np.mean(sizes)
            if other != name and fewer and len(inside) >= 0.1 * len(values) and np.mean(inside) >= 0.98:
                return items, none, ColumnRole(other, "those that were clicked")
    return None


def unrolled(table: pa.Table, roles: Roles, item: str, label: str) -> tuple[pa.Table, NDArray[np.intp]]:
    """(the exposures of the sample's first pages with columns ``item`` and ``label``, the page of each), as the reader
    of logs makes them."""
    log = LogColumns(
        time="", user="", item=item, label=label, items=roles.item.name, labels=roles.labels.name,
        clicked=roles.clicked.name, pairs=roles.pairs.name, list_separator=roles.list_separator,
    )  # fmt: skip
    faults = Faults("the sample", skip_bad=True)
    faults.begin(np.arange(table.num_rows))
    shadowed = {item, label} & {*table.column_names} - {log.items, log.labels, log.clicked, log.pairs}
    rows, at = unroll(table.drop_columns(sorted(shadowed)), log, "", faults, 0)
    kept = faults.good[at] & (np.arange(len(at)) < MOST_EXPOSURES)
    return rows.drop_columns([LINE]).filter(pa.array(kept)), at[kept]
