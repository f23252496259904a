# core
"""Items like one item: those with similar vectors, and those that others clicked along with it.

::

    similarity = cosine of the vectors  +  common clicks / (sqrt(clicks of one * clicks of the other) + 10)

Clicks are a day's. The second term is the cosine of two items over the users who click them (Sarwar et al., WWW 2001),
smaller where clicks are few: a single common click says little, and the most clicked items are clicked along with all.
Each term is 0 where it is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scorer.catalog.itemtable import ItemRows, ItemTable
from scorer.recall.candidate_lists import F64, Allowed, CandidateLists, ListedRows
from scorer.recall.nearest import Retrieval
from scorer.recall.neighbours import Neighbours

FEW = 10.0
"""Common clicks a day that weigh against noise."""


class Similar(NamedTuple):
    """n items, most similar first, with the terms of their similarity; NaN: not known."""

    rows: ItemRows  # (n,) distinct
    coclicked: F64  # (n,)
    vectors: F64  # (n,)


def similar(
    row: int,
    size: int,
    allowed: Allowed,
    neighbours: Neighbours | None,
    retrieval: Retrieval | None,
    clicks: Callable[[ItemRows], F64],
) -> Similar:
    """At most ``size`` allowed items like the one at ``row``, which is not allowed itself. Of equals, co-clicked ones
    come first, most common clicks first. ``clicks``: of items, a day.

    >>> along = Neighbours(np.array([0, 2], "i4"), np.array([3, 1], "i4"), np.array([8400, 420], "i4"))
    >>> everything = Allowed(np.ones(4, np.bool_), np.arange(4, dtype=np.int32))
    >>> found = similar(0, 5, everything, along, None, lambda rows: np.full(len(rows), 30.0))
    >>> found.rows.tolist(), found.coclicked.tolist()
    ([3, 1], [0.5, 0.025])
    """
    along, common = np.empty(0, np.intp), np.empty(0)
    if neighbours is not None:
        along, common = neighbours.counted(row)
        passing = np.isin(along, allowed.of(along))
        along, common = along[passing], common[passing]
    near, cosines = np.empty(0, np.intp), np.empty(0, np.float32)
    if retrieval is not None:
        near, cosines = retrieval.similar(row, size, allowed.mask, along)
    *theirs, own = clicks(np.append(along, row))
    rows = np.array(list(dict.fromkeys([*along.tolist(), *near.tolist()])), np.intp)
    coclicked = _parts(rows, along, common / (np.sqrt(own * np.array(theirs)) + FEW))
    vectors = _parts(rows, near, cosines)
    best = np.argsort(-(np.nan_to_num(coclicked) + np.nan_to_num(vectors)), kind="stable")[:size]
    return Similar(rows[best], coclicked[best], vectors[best])


def _parts(rows: ItemRows, of: ItemRows, values: NDArray[Any]) -> F64:
    """The value of each of ``rows``, from ``values`` of the items ``of``; NaN where it has none."""
    known = dict(zip(of.tolist(), values.tolist(), strict=True))
    return np.array([known.get(row, np.nan) for row in rows.tolist()], np.float64)


def same_group(lists: CandidateLists, items: ItemTable, row: int) -> tuple[str, ListedRows]:
    """Living items of the group of the item at ``row``, and the columns that make it, as ``category``: of the first
    grouping of :class:`HotGroups` that has it. Empty: none has it."""
    for groups in lists.groups:
        columns = np.flatnonzero(groups.of_item >= 0)
        names = [items.builder.schema.windows.keys[groups.key].columns[c] for c in columns.tolist()]
        own = items.rows.values[row, [items.form.value_names.index(name) for name in names]]
        for g in np.flatnonzero((groups.parts[:, columns] == own).all(axis=1)).tolist():
            return "*".join(names), groups.rows[groups.starts[g] : groups.starts[g + 1]]
    return "", np.empty(0, np.int32)
