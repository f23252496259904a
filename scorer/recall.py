"""Recall: the candidates of one request, a few hundred to a thousand out of the whole catalogue.

A mixture, without duplicates, each part taking what the ones before it left::

    taste    40%   hot items of the groups that this user clicks in       (a group: items alike in the item columns of
                                                                           a window key such as user_id * category)
    hot      30%   hot items overall
    newest   10%   items born last, which have had no time to become hot
    random   rest  so that no item is out of reach, and the learner sees what nobody has clicked yet

All lists are sorted once, off the request path, by :func:`make_lists`, and swapped whole; a request only cuts heads
off them. What is drawn depends on the generator passed in, which is made from the request id, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.hashing import U64
from millrace.windows.features import FeatureBuilder

Rows = NDArray[np.intp]

TASTE, HOT, NEWEST = 0.4, 0.3, 0.1
GROUPS = 12
"""A user's taste is taken from at most this many groups."""
DEPTH = 2000
"""Lists are kept this long; no request takes more."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Living items alike in the item columns of one user-side window key, hottest first in each group.

    Group g is ``rows[starts[g] : starts[g + 1]]``; ``example[g]`` is one of its rows, from which a user's window key
    for the group is made.
    """

    key: int  # column of `keys`
    rows: Rows
    starts: NDArray[np.intp]  # (G + 1,)
    example: Rows  # (G,)
    columns: dict[str, U64]  # of the examples


@dataclass(frozen=True, slots=True)
class Lists:
    """What recall chooses from. Frozen: a newer one replaces it between two requests."""

    living: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    hot: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    newest: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    groups: tuple[Groups, ...] = ()


def taste_keys(builder: FeatureBuilder) -> list[int]:
    """Window keys of user columns and item columns, and nothing else: they say what a user likes."""
    schema, found = builder.schema, []
    item_sides = set(builder.needs("item")) - {builder.item_column}
    for k, key in enumerate(schema.windows.keys):
        users = [c for c in key.columns if c in builder.needs("user")]
        items = [c for c in key.columns if c in item_sides]
        if users and items and len(users) + len(items) == len(key.columns):
            found.append(k)
    return found


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
) -> Lists:
    """Sorts the catalogue. Called about once a second with copies of the index's columns, in a thread.

    Args:
        columns: item-side columns of all n rows.
        depth: length of the hot and newest lists.
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
    return Lists(living, hot, newest, tuple(groups))


def recall(
    lists: Lists, size: int, generator: np.random.Generator, liked: list[tuple[Groups, NDArray[np.float64]]]
) -> Rows:
    """Distinct rows of ``size`` living items, or of all when there are fewer.

    Args:
        liked: for each grouping, how much this user likes each of its groups (G,), 0 for not known.
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


def random_page(lists: Lists, size: int, generator: np.random.Generator) -> Rows:
    """Distinct living items in random order, all equally likely: the page of the control group."""
    size = min(size, len(lists.living))
    return lists.living[generator.choice(len(lists.living), size, replace=False)]


def _taste(groups: Groups, liking: NDArray[np.float64], size: int) -> Rows:
    """The heads of the groups a user likes, as long as the liking is great."""
    positive = int((liking > 0).sum())
    if not positive or not size:
        return np.empty(0, np.intp)
    best = largest(liking, min(GROUPS, positive))
    share = liking[best] / liking[best].sum()
    takes = np.ceil(share * size).astype(np.intp)
    starts, ends = groups.starts[best], groups.starts[best + 1]
    return np.concatenate([groups.rows[s : min(s + t, e)] for s, e, t in zip(starts, ends, takes, strict=True)])


def largest(values: NDArray[Any], count: int) -> Rows:
    """Positions of the ``count`` largest values, largest first; the earlier position first among equals."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: count - len(above)]
    picked = np.concatenate([above, equal])
    return picked[np.argsort(-values[picked], kind="stable")]


def _distinct(rows: Rows) -> Rows:
    """The rows without repetitions, in order of first appearance."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]
