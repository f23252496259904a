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
from scorer import pagekernels
from scorer.shelf import Arrays, ItemRows

Positions = NDArray[np.intp]
"""Positions in an array that is passed in."""
ListedRows = NDArray[np.int32]
"""Rows of the item index. Lists are copied to each process, so they are small."""

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
    rows: ListedRows
    starts: Positions  # (G + 1,)
    example: ListedRows  # (G,)
    parts: U64  # (G, columns of the key): hashes of the examples, 0 in the columns that are not the item's
    of_item: NDArray[np.int64]  # (columns of the key,): its own place, or -1 where the column is not the item's


@dataclass(frozen=True, slots=True)
class CandidateLists:
    """The items that recall chooses from. Frozen: newer lists replace them between two requests."""

    living: ListedRows = field(default_factory=lambda: np.empty(0, np.int32))
    hot: ListedRows = field(default_factory=lambda: np.empty(0, np.int32))
    newest: ListedRows = field(default_factory=lambda: np.empty(0, np.int32))
    groups: tuple[Groups, ...] = ()

    def arrays(self) -> Arrays:
        """Flat names for the way to another process."""
        out: Arrays = {"living": self.living, "hot": self.hot, "newest": self.newest}
        for g, groups in enumerate(self.groups):
            out[f"group/{g}/key"] = np.array([groups.key])
            for name in _GROUP_ARRAYS:
                out[f"group/{g}/{name}"] = getattr(groups, name)
        return out

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> CandidateLists:
        """The inverse of :meth:`arrays`."""
        groups: list[Groups] = []
        while f"group/{len(groups)}/key" in arrays:
            at = f"group/{len(groups)}"
            groups.append(Groups(int(arrays[f"{at}/key"][0]), *(arrays[f"{at}/{name}"] for name in _GROUP_ARRAYS)))
        return cls(arrays["living"], arrays["hot"], arrays["newest"], tuple(groups))


_GROUP_ARRAYS = ("rows", "starts", "example", "parts", "of_item")


def _grouping(builder: FeatureBuilder, k: int, columns: Mapping[str, U64], n: int) -> U64:
    """A label for each row: equal where the key's item columns are equal, 0 where one is missing. (n,)"""
    anyone = {name: np.array([1], np.uint64) for name in builder.needs("user")}
    labels: U64 = builder.keys({**columns, **anyone}, n)[:, k]
    return labels


def _parts(
    builder: FeatureBuilder, k: int, columns: Mapping[str, U64], rows: ListedRows
) -> tuple[U64, NDArray[np.int64]]:
    """What the items at ``rows`` put into key k: ``parts`` and ``of_item`` of :class:`Groups`."""
    names = builder.schema.windows.keys[k].columns
    parts, of_item = np.zeros((len(rows), len(names)), np.uint64), np.full(len(names), -1, np.int64)
    for p, name in enumerate(names):
        if name in columns:
            column = columns[name][rows]
            parts[:, p], of_item[p] = column if column.ndim == 1 else column[:, 0], p
    return parts, of_item


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
        labels = _grouping(builder, k, columns, len(alive))[living]
        order = np.lexsort((-clicks_a_day[living], labels))
        order = order[np.searchsorted(labels[order], 1) :]  # label 0: an attribute is missing
        rows, labels = living[order], labels[order]
        if not len(rows):
            continue
        starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(rows)]]).astype(np.intp)
        example = rows[starts[:-1]]
        groups.append(Groups(k, rows, starts, example, *_parts(builder, k, columns, example)))
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


def random_page(lists: CandidateLists, size: int, generator: np.random.Generator) -> ItemRows:
    """Distinct living items in random order, all equally likely: the page of the control group."""
    size = min(size, len(lists.living))
    return lists.living[generator.choice(len(lists.living), size, replace=False)].astype(np.intp)


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


def largest(values: NDArray[Any], count: int) -> Positions:
    """Positions of the ``count`` largest values, largest first. Of equal values the earlier comes first."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: count - len(above)]
    picked = np.concatenate([above, equal])
    return picked[np.argsort(-values[picked], kind="stable")]
