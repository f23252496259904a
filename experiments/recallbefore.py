# core
"""The mixture that recalled candidates before recall was learnt: what ``bench recall`` holds the new recall against.

::

    taste    40%   hot items of the groups that this user clicks in       (a group: items alike in the item columns of
                                                                           a window key such as user_id * category)
    hot      30%   hot items overall, by clicks a day
    newest   10%   items born last
    random   rest

Each part takes what the parts before it left. This is the former ``scorer/recall/recall.py``, kept as it was; it is not
served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.windows.features import FeatureBuilder
from millrace.windows.likings import taste_keys
from scorer.catalog import pagekernels
from scorer.catalog.shelf import ItemRows
from scorer.recall.recall import Groups, group_labels, key_parts, largest

ListedRows = NDArray[np.int32]
"""Rows of the item index."""

TASTE, HOT, NEWEST = 0.4, 0.3, 0.1
GROUPS = 12
"""The taste part comes from at most this many groups."""
DEPTH = 2000
"""Length of the hot and the newest list."""


@dataclass(frozen=True, slots=True)
class CandidateLists:
    """The items that recall chose from."""

    living: ListedRows
    hot: ListedRows
    newest: ListedRows
    groups: tuple[Groups, ...] = ()


def make_lists(
    builder: FeatureBuilder,
    columns: Mapping[str, U64],
    alive: NDArray[np.bool_],
    born_ms: NDArray[np.int64],
    clicks_a_day: NDArray[np.float32],
    depth: int = DEPTH,
) -> CandidateLists:
    """Sorts the catalogue. Called about once a second, in a thread, with copies of the index's columns.

    Args:
        columns: item-side columns of all n rows.
        alive: (n,)
        born_ms: (n,)
        clicks_a_day: (n,) the heat of each item.
        depth: length of the hot and the newest list.
    """
    living = np.flatnonzero(alive).astype(np.int32)
    hot = living[largest(clicks_a_day[living], depth)]
    hot = hot[clicks_a_day[hot] > 0]  # the rest is as cold as any other item
    newest = living[largest(born_ms[living], depth)]
    groups = []
    for k in taste_keys(builder):
        labels = group_labels(builder, k, columns, len(alive))[living]
        order = np.lexsort((-clicks_a_day[living], labels))
        order = order[np.searchsorted(labels[order], 1) :]  # label 0: an attribute is missing
        rows, labels = living[order], labels[order]
        if not len(rows):
            continue
        starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(rows)]]).astype(np.intp)
        example = rows[starts[:-1]]
        groups.append(Groups(k, rows, starts, example, *key_parts(builder, k, columns, example)))
    return CandidateLists(living, hot, newest, tuple(groups))


def recall(
    lists: CandidateLists, size: int, generator: np.random.Generator, liked: list[tuple[Groups, NDArray[np.float64]]]
) -> ItemRows:
    """The rows of ``size`` distinct living items, or of all when there are fewer.

    Args:
        liked: for each grouping, how much this user likes each of its groups (G,); 0 if that is not known.
    """
    living = lists.living
    if len(living) <= size:
        return living.astype(np.intp)
    parts = [_taste(groups, liking, round(TASTE * size / len(liked))) for groups, liking in liked]
    parts += [lists.hot[: round(HOT * size)], lists.newest[: round(NEWEST * size)]]
    chosen: ItemRows = pagekernels.distinct(np.concatenate(parts, dtype=np.intp), size)
    missing = size - len(chosen)
    if not missing:
        return chosen
    if len(living) > 4 * size:  # a draw rarely meets an item twice: draw some more than is needed
        drawn = living[generator.integers(0, len(living), 2 * missing + 16)]
        chosen = pagekernels.distinct(np.concatenate([chosen, drawn], dtype=np.intp), size)
        missing = size - len(chosen)
    if missing:
        free = np.ones(living[-1] + 1, np.bool_)
        free[chosen] = False
        left = living[free[living]]
        chosen = np.concatenate([chosen, generator.permutation(left)[:missing]])
    return chosen


def _taste(groups: Groups, liking: NDArray[np.float64], size: int) -> ListedRows:
    """The heads of the groups that a user likes, each as long as its share of the liking."""
    positive = int((liking > 0).sum())
    if not positive or not size:
        return np.empty(0, np.int32)
    best = largest(liking, min(GROUPS, positive))
    share = liking[best] / liking[best].sum()
    takes = np.ceil(share * size).astype(np.intp)
    starts, ends = groups.starts[best], groups.starts[best + 1]
    return np.concatenate([groups.rows[s : min(s + t, e)] for s, e, t in zip(starts, ends, takes, strict=True)])
