# core
"""What a page is in a log: its id, the slots on it, the times of actions, and lists where a row is a page."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from commands.guess.roles import ACTIONS, ColumnRole, Roles, choose
from commands.guess.samplecolumns import Column
from commands.guess.timeformats import TimeColumn

_PAGE = {"request", "impression", "page", "slate", "query", "search", "view", "req", "imp"}
MOST_EXPOSURES = 300_000
"""Exposures that a guess is made from, of a log whose rows are pages."""
PAIRS = re.compile(r"^\S+-[01](\s\S+-[01])*$")


def request_role(columns: Mapping[str, Column], user: str, time: NDArray[np.int64], taken: set[str]) -> ColumnRole:
    """The page: rows of one value have one user and one time (a minute at most), and some values have several rows."""
    scores, whys = {}, {}
    users = columns[user].codes
    for name, column in columns.items():
        if name in taken or column.is_list or column.filled < 1 or column.is_temporal:
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


def position_role(columns: Mapping[str, Column], request: str | None, taken: set[str]) -> ColumnRole:
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
            return ColumnRole(name, f"by its name; {int(numbers.min())} to {int(numbers.max())}")
        if request is not None and column.filled == 1:
            codes = columns[request].codes
            order = np.lexsort((column.numbers, codes))
            same = codes[order][1:] == codes[order][:-1]
            steps = np.diff(column.numbers[order])[same]
            if same.sum() >= 50 and (steps == 1).mean() >= 0.99 and numbers.min() <= 1:
                return ColumnRole(name, "each page has it in steps of one")
    return ColumnRole()


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


def list_roles(columns: Mapping[str, Column]) -> tuple[ColumnRole, ColumnRole, ColumnRole, ColumnRole]:
    """(items, labels, clicked, pairs) of a log whose rows are pages.

    Pairs are texts ``N1-0 N2-1``. Labels are lists of 0 and 1, as long as the row's list of items. Clicked items are a
    list within the row's list of items.
    """
    none = ColumnRole()
    for name, column in columns.items():
        if column.is_text and column.distinct >= 2:
            texts = column.values.slice(0, 1000).to_pylist()
            if sum(bool(text and PAIRS.match(text)) for text in texts) >= 0.99 * len(texts):
                return none, none, none, ColumnRole(name, "item and label of each slot in one text")
    lists = {n: c for n, c in columns.items() if c.is_list and not pa.types.is_nested(c.kind.value_type)}
    rows = {n: c.data.slice(0, 2000).to_pylist() for n, c in lists.items()}
    for name, values in rows.items():
        sizes = [len(v or ()) for v in values]
        if not values or np.mean(sizes) < 2:
            continue
        for other, others in rows.items():
            if other == name:
                continue
            flat = {x for v in others for x in (v or ())}
            if [len(v or ()) for v in others] == sizes and flat and flat <= {0, 1}:
                return ColumnRole(name, "the items of the page"), ColumnRole(other, "0 or 1 for each item"), none, none
        for other, others in rows.items():
            inside = [set(b) <= set(a) for a, b in zip(values, others, strict=True) if a and b]
            fewer = np.mean([len(b or ()) for b in others]) < np.mean(sizes)
            if other != name and fewer and len(inside) >= 0.3 * len(values) and np.mean(inside) >= 0.98:
                return (
                    ColumnRole(name, "the items of the page"),
                    none,
                    ColumnRole(other, "those that were clicked"),
                    none,
                )
    return none, none, none, none


def unrolled(table: pa.Table, roles: Roles, item: str, label: str) -> tuple[pa.Table, NDArray[np.intp]]:
    """(the exposures of the sample's first pages with columns ``item`` and ``label``, the page of each). Columns of
    lists as long as the items stay with the page. Where a page's lists differ in length, the shorter counts."""
    ids: list[object] = []
    labels: list[int] = []
    page: list[int] = []
    for row, slots in enumerate(_pages(table, roles)):
        if len(ids) + len(slots) > MOST_EXPOSURES:
            break
        for one, liked in slots:
            ids.append(one)
            labels.append(int(liked))
            page.append(row)
    at = np.array(page, np.intp)
    own = {roles.pairs.name, roles.item.name, roles.labels.name, roles.clicked.name}
    rest = table.select([n for n in table.column_names if n not in own | {item, label}]).take(pa.array(at))
    return rest.append_column(item, pa.array(ids)).append_column(label, pa.array(labels, pa.int8())), at


def _pages(table: pa.Table, roles: Roles) -> list[list[tuple[object, bool]]]:
    if roles.pairs.name is not None:
        out = []
        for text in table[roles.pairs.name].to_pylist():
            parted = [pair.rpartition("-") for pair in (text or "").split()]
            out.append([(one, liked == "1") for one, _, liked in parted])
        return out
    items = [v or [] for v in table[roles.item.name].to_pylist()]
    if roles.labels.name is not None:
        given = [v or [] for v in table[roles.labels.name].to_pylist()]
        return [[(one, bool(x)) for one, x in zip(a, b, strict=False)] for a, b in zip(items, given, strict=True)]
    clicked = [set(v or []) for v in table[roles.clicked.name].to_pylist()]
    return [[(one, one in liked) for one in row] for row, liked in zip(items, clicked, strict=True)]
