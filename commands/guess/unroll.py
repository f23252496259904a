# core
"""Rows that are pages, taken apart into exposures for the guess: one row an item, the page's own columns repeated."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from commands.guess.roles import Roles

MOST = 300_000
"""Exposures that a guess is made from."""


def unrolled(table: pa.Table, roles: Roles, item: str, label: str) -> tuple[pa.Table, NDArray[np.intp]]:
    """(the exposures of the sample's first pages with columns ``item`` and ``label``, the page of each).

    Columns of lists as long as the items stay with the page. Pages whose lists differ in length give what both have.
    """
    ids: list[object] = []
    labels: list[int] = []
    page: list[int] = []
    for row, slots in enumerate(_pages(table, roles)):
        if len(ids) + len(slots) > MOST:
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
