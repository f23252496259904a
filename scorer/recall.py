# core
"""Recall: the candidates of one request, a few hundred to a thousand items out of the whole catalogue.

A mixture without duplicates. Each part takes what the parts before it left::

    taste    40%   hot items of the groups that this user clicks in       (a group: items alike in the item columns of
                                                                           a window key such as user_id * category)
    hot      30%   hot items overall
    newest   10%   items born last, which have had no time to become hot
    random   rest  so that no item is out of reach, and the learner sees items that nobody has clicked yet

:func:`make_lists` sorts all lists at once, off the request path, and they are replaced as a whole; a request only cuts
heads off them. What is drawn depends on nothing but the generator passed in, which is made from the request id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.hashing import U64
from millrace.windows.features import FeatureBuilder
from millrace.windows.likings import taste_keys
from scorer.index import ItemRows

Positions = NDArray[np.intp]
"""Positions in an array that is passed in."""

TASTE, HOT, NEWEST = 0.4, 0.3, 0.1
GROUPS = 12
"""The taste part comes from at most this many groups."""
DEPTH = 2000
"""Length of the hot and the newest list; no request takes more."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Living items alike in the item columns of one user-side window key, hottest first in each group.

    Group g is ``rows[starts[g] : starts[g + 1]]``. ``example[g]`` is one of its rows: a user's window key for the group
    is made from it.
    """

    key: int  # column of `keys`
    rows: ItemRows
    starts: Positions  # (G + 1,)
    example: ItemRows  # (G,)
    columns: dict[str, U64]  # of the examples


@dataclass(frozen=True, slots=True)
class CandidateLists:
    """The items that recall chooses from. Frozen: newer lists replace them between two requests."""

    living: ItemRows = field(default_factory=lambda: np.empty(0, np.intp))
    hot: ItemRows = field(default_factory=lambda: np.empty(0, np.intp))
    newest: ItemRows = field(default_factory=lambda: np.empty(0, np.intp))
    groups: tuple[Groups, ...] = ()


def _grouping(builder: FeatureBuilder, k: int, columns: Mapping[str, U64], n: int) -> U64:
    """A label for each row: equal where the key's item columns are equal, 0 where one is missing. (n,)"""
    anyone = {name: np.array([1], np.uint64) for name in builder.needs("user")}
    labels: U64 = builder.keys({**columns, **anyone}, n)[:, k]
    return labels


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
    living = np.flatnonzero(alive)
    hot = living[largest(clicks_a_day[living], depth)]
    hot = hot[clicks_a_day[hot] > 0]  # the rest is as cold as any other item
    newest = living[largest(born_ms[living], depth)]
    groups = []
    for k in taste_keys(builder):
        labels = _grouping(builder, k, columns, len(alive))[living]
        order = np.lexsort((-clicks_a_day[living], labels))
        order = order[np.searchsorted(labels[order], 1) :]  # label 0: an attribute is missing
        rows, labels = living[order], labels[order]
        if not len(rows):
            continue
        starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(rows)]]).astype(np.intp)
        example = rows[starts[:-1]]
        groups.append(Groups(k, rows, starts, example, {n: c[example] for n, c in columns.items()}))
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
        return living
    parts = [_taste(groups, liking, round(TASTE * size / len(liked))) for groups, liking in liked]
    parts += [lists.hot[: round(HOT * size)], lists.newest[: round(NEWEST * size)]]
    chosen = _distinct(np.concatenate(parts))[:size]
    missing = size - len(chosen)
    if not missing:
        return chosen
    if len(living) > 4 * size:  # a draw rarely meets an item twice: draw some more than is needed
        drawn = living[generator.integers(0, len(living), 2 * missing + 16)]
        chosen = _distinct(np.concatenate([chosen, drawn]))[:size]
        missing = size - len(chosen)
    if missing:
        free = np.ones(living[-1] + 1, np.bool_)
        free[chosen] = False
        left = living[free[living]]
        chosen = np.concatenate([chosen, generator.permutation(left)[:missing]])
    return chosen


def random_page(lists: CandidateLists, size: int, generator: np.random.Generator) -> ItemRows:
    """Distinct living items in random order, all equally likely: the page of the control group."""
    size = min(size, len(lists.living))
    return lists.living[generator.choice(len(lists.living), size, replace=False)]


def _taste(groups: Groups, liking: NDArray[np.float64], size: int) -> ItemRows:
    """The heads of the groups that a user likes, each as long as its share of the liking."""
    positive = int((liking > 0).sum())
    if not positive or not size:
        return np.empty(0, np.intp)
    best = largest(liking, min(GROUPS, positive))
    share = liking[best] / liking[best].sum()
    takes = np.ceil(share * size).astype(np.intp)
    starts, ends = groups.starts[best], groups.starts[best + 1]
    return np.concatenate([groups.rows[s : min(s + t, e)] for s, e, t in zip(starts, ends, takes, strict=True)])


def largest(values: NDArray[Any], count: int) -> Positions:
    """Positions of the ``count`` largest values, largest first. Of equal values the earlier comes first."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: count - len(above)]
    picked = np.concatenate([above, equal])
    return picked[np.argsort(-values[picked], kind="stable")]


def _distinct(rows: ItemRows) -> ItemRows:
    """The rows without repetitions, in order of first appearance."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]
