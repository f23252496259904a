# core
"""Recall: the candidates of one request, a few hundred to a thousand items of the whole catalogue.

Several sources are merged without duplicates. Each has a share (setting ``recall``)::

    vectors    60%   items nearest to the user in the retrieval head's space                (scorer/recall/nearest.py)
    liked      10%   the hottest of the groups that this user clicks in    (a group: items alike in the item columns of
                                                                            a window key such as user_id * category)
    coclicked   5%   items that others clicked along with this user's last clicks           (neighbours.py)
    hot        20%   the hottest items of the shop; where few have been clicked yet, then those born last
    new         3%   items born last that have not had `new_exposures` exposures yet, a few of them drawn for each page
    random      2%   so that no item is out of reach, and the learner sees items that nobody has clicked yet

An item of several sources counts for the first of them in this order. The first four sources fill a shortage in
proportion to their shares. New and random items exceed their shares only where these four have no more: a young ranker
prefers unknown items, so a page would have nothing else. Just bought items come last. A shop no larger than the number
of candidates is ranked whole.

*Heat* is a click rate, shrunk towards the shop's own rate r where there are few exposures::

    heat = (clicks + s r) / (exposures + s)        s: 100 exposures of today

Clicks alone would favour whatever is shown much. Within a group, r is the group's rate, so an item without exposures
ranks in the middle of its group. Counts are the mean over windows of events a day (:mod:`millrace.windows.affinity`):
today counts most. s is large because the best of 100,000 rates is mostly luck where exposures are few.

:func:`make_lists` sorts all lists at once, off the request path, and replaces them as a whole. Random draws depend only
on the seed, which comes from the request id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import SettingError
from millrace.basics.hashing import U64
from millrace.contracts.events import SOURCES
from millrace.contracts.schema import Windows
from millrace.windows.affinity import smoothed_rate, taste_keys
from millrace.windows.features import FeatureBuilder
from scorer.catalog.item_index import Heat
from scorer.catalog.itemtable import Arrays, ItemRows
from scorer.recall import recallkernels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Positions = NDArray[np.intp]
ListedRows = NDArray[np.int32]
"""Rows of the item index. Each process has a copy of the lists, so they are small."""

VECTORS, LIKED, COCLICKED, HOT, NEW, RANDOM, WHOLE, CONTROLLED, ASKED, PINNED = range(1, len(SOURCES))
"""Codes of the sources, as :data:`millrace.contracts.events.SOURCES` names them."""
MIXED = SOURCES[VECTORS:WHOLE]
"""The sources that have shares, in order of precedence."""
FILLERS = HOT
"""Number of sources, from the first, that fill a shortage: not new and random items."""

GROUPS = 12
"""Limit of groups of each grouping that liked items come from."""
PRIOR = 100.0
"""Exposures of today that weigh as much as the expected rate of an item."""
DEPTH = 2000
NEW_EXPOSURES = 100  # after so many an item has had its chance, and is new no longer
NO_ROWS: ItemRows = np.empty(0, np.intp)
_NEW_SEED = 0x5851F42D4C957F2D  # so that new items are not drawn by the numbers that chance draws by
_ALL_BITS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Shares:
    """Each source's part of the candidates: (6,) in the order of :data:`MIXED`, adding up to 1."""

    of_source: F64

    @classmethod
    def of(cls, given: Mapping[str, float]) -> Shares:
        """The shares of the setting ``recall``; a source that is not named has none.

        Raises:
            SettingError: one is no source, or they do not add up to 1.

        >>> Shares.of({"vectors": 0.5, "hot": 0.5}).of_source.tolist()
        [0.5, 0.0, 0.0, 0.5, 0.0, 0.0]
        """
        for name in given.keys() - set(MIXED):
            raise SettingError(f"recall names '{name}', which is no source", f"the sources are {', '.join(MIXED)}")
        total = math.fsum(given.values())
        if not abs(total - 1) <= 1e-6:  # NaN too
            raise SettingError(f"recall {dict(given)} adds up to {total:g}", "have the shares add up to 1")
        return cls(np.array([given.get(name, 0.0) for name in MIXED]))


@dataclass(frozen=True, slots=True)
class HotGroups:
    """Living items alike in the item columns of one user-side window key, hottest first in each group.

    Group g is ``rows[starts[g] : starts[g + 1]]``. ``example[g]`` is one of its rows, for a user's window key of the
    group.
    """

    key: int  # column of `keys`
    rows: ListedRows
    starts: Positions  # (G + 1,)
    example: ListedRows  # (G,)
    parts: U64  # (G, columns of the key): hashes of the examples, 0 in the columns that are not the item's
    of_item: NDArray[np.int64]  # (columns of the key,): its own place, or -1 where the column is not the item's


@dataclass(frozen=True, slots=True)
class CandidateLists:
    """The items that recall chooses from. Immutable: newer lists replace them between two requests."""

    living: ListedRows = field(default_factory=lambda: np.empty(0, np.int32))
    hot: ListedRows = field(default_factory=lambda: np.empty(0, np.int32))  # hottest first, then born last first
    new: ListedRows = field(default_factory=lambda: np.empty(0, np.int32))  # born last first
    groups: tuple[HotGroups, ...] = ()
    rate: float = 0.0  # clicks of the whole shop over its exposures

    def arrays(self) -> Arrays:
        """Flat names for transport to another process."""
        out: Arrays = {"living": self.living, "hot": self.hot, "new": self.new, "rate": np.array([self.rate])}
        for g, groups in enumerate(self.groups):
            out[f"group/{g}/key"] = np.array([groups.key])
            for name in _GROUP_ARRAYS:
                out[f"group/{g}/{name}"] = getattr(groups, name)
        return out

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> CandidateLists:
        groups: list[HotGroups] = []
        while f"group/{len(groups)}/key" in arrays:
            at = f"group/{len(groups)}"
            groups.append(HotGroups(int(arrays[f"{at}/key"][0]), *(arrays[f"{at}/{name}"] for name in _GROUP_ARRAYS)))
        return cls(arrays["living"], arrays["hot"], arrays["new"], tuple(groups), float(arrays["rate"][0]))


_GROUP_ARRAYS = ("rows", "starts", "example", "parts", "of_item")


class Allowed(NamedTuple):
    """The living items that pass a request's filters now (:mod:`scorer.page.page_filters`)."""

    mask: NDArray[np.bool_]  # (R,) by index row
    rows: ListedRows  # (n,) those that pass, ascending

    def of(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Those of the ``rows`` that pass, in their order."""
        known = rows[rows < len(self.mask)]
        passing: NDArray[Any] = known[self.mask[known]]
        return passing


class Candidates(NamedTuple):
    """Rows of the candidates, and their sources."""

    rows: ItemRows  # (n,) distinct
    sources: NDArray[np.uint8]  # (n,) codes


Liked = Sequence[tuple[HotGroups, F64]]
"""For each grouping, a user's affinity to each of its groups (G,)."""

# -- the lists, off the request path --------------------------------------------------------------------------------


def make_lists(
    builder: FeatureBuilder,
    columns: Mapping[str, U64],
    alive: NDArray[np.bool_],
    born_ms: NDArray[np.int64],
    heat: Heat,
    new_exposures: int = NEW_EXPOSURES,
    depth: int = DEPTH,
) -> CandidateLists:
    """Sorts the catalogue. Called about every second, in a thread, with copies of the index's columns.

    Args:
        columns, alive, born_ms, heat: of all n rows.
        new_exposures: an item with so many exposures in the longest window is no longer new.
        depth: length of the hot and the new list.
    """
    living = np.flatnonzero(alive).astype(np.int32)
    clicks, exposures = heat.clicks[living].astype(np.float64), heat.exposures[living].astype(np.float64)
    seen = exposures.sum()
    rate = clicks.sum() / seen if seen else 0.0
    windows = builder.schema.windows
    hot = living[hottest(clicks, smoothed_rate(clicks, exposures, rate, PRIOR, windows), born_ms[living], depth)]
    waits = living[heat.seen[living] < new_exposures]
    new = waits[largest(born_ms[waits], depth)]
    groups = []
    for k in taste_keys(builder):
        labels = group_labels(builder, k, columns, len(alive))[living]
        order, starts = _grouped(labels, clicks, exposures, rate, windows)
        if len(order):
            rows = living[order]
            example = rows[starts[:-1]]
            groups.append(HotGroups(k, rows, starts, example, *key_parts(builder, k, columns, example)))
    return CandidateLists(living, hot, new, tuple(groups), rate)


def hottest(clicks: F64, heat: F64, born_ms: NDArray[np.int64], count: int) -> Positions:
    """Positions of the ``count`` hottest of n items: those with clicks by ``heat``, then the others, born last first.
    They are the same others on all pages, so that what is learnt of them adds up."""
    clicked, others = np.flatnonzero(clicks > 0), np.flatnonzero(clicks <= 0)
    hot = clicked[largest(heat[clicked], count)]
    if len(hot) == count:
        return hot
    return np.concatenate([hot, others[largest(born_ms[others], count - len(hot))]])


def _grouped(labels: U64, clicks: F64, exposures: F64, rate: float, windows: Windows) -> tuple[Positions, Positions]:
    """The items group by group, hottest first in each, and where the groups begin; items with label 0 are in none."""
    order = np.argsort(labels, kind="stable")
    order = order[np.count_nonzero(labels == 0) :]
    if not len(order):
        return order, np.zeros(1, np.intp)
    labels, clicks, exposures = labels[order], clicks[order], exposures[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1]).astype(np.intp)
    sizes = np.diff(starts, append=len(order))
    own = smoothed_rate(np.add.reduceat(clicks, starts), np.add.reduceat(exposures, starts), rate, PRIOR, windows)
    heat = smoothed_rate(clicks, exposures, np.repeat(own, sizes), PRIOR, windows).astype(np.float32)
    # One sort by both: the group, then the bits of the heat; for numbers from 0 up these have the same order.
    group = np.repeat(np.arange(len(starts), dtype=np.uint64), sizes)
    key = (group << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - heat.view(np.uint32))
    return order[np.argsort(key, kind="stable")], np.append(starts, len(order))


def group_labels(builder: FeatureBuilder, k: int, columns: Mapping[str, U64], n: int) -> U64:
    """A label for each row: equal where the key's item columns are equal, 0 where one is missing. (n,)"""
    anyone = {name: np.array([1], np.uint64) for name in builder.needs("user")}
    labels: U64 = builder.keys({**columns, **anyone}, n)[:, k]
    return labels


def key_parts(
    builder: FeatureBuilder, k: int, columns: Mapping[str, U64], rows: ListedRows
) -> tuple[U64, NDArray[np.int64]]:
    """``parts`` and ``of_item`` of :class:`HotGroups`: what the items at ``rows`` contribute to key k."""
    names = builder.schema.windows.keys[k].columns
    parts, of_item = np.zeros((len(rows), len(names)), np.uint64), np.full(len(names), -1, np.int64)
    for p, name in enumerate(names):
        if name in columns:
            column = columns[name][rows]
            parts[:, p], of_item[p] = column if column.ndim == 1 else column[:, 0], p
    return parts, of_item


# -- a page's candidates --------------------------------------------------------------------------------------------


def recall(
    lists: CandidateLists,
    shares: Shares,
    size: int,
    seed: int,
    *,
    vectors: ItemRows = NO_ROWS,
    liked: Liked = (),
    coclicked: ItemRows = NO_ROWS,
    bought: ItemRows = NO_ROWS,
    alive: NDArray[np.bool_] | None = None,
    least: int | None = None,
    allowed: Allowed | None = None,
    born_ms: NDArray[np.int64] | None = None,
) -> Candidates:
    """``size`` distinct living items, or all when there are fewer; see the module's text.

    Args:
        seed: 64 bits, for all random draws.
        vectors: rows nearest to the user, best first; empty: there is no usable retrieval version.
        coclicked: rows, best first.
        bought: rows that come last, in this order; -1 where the item is unknown.
        alive: by row, as of now; replaces items that died since the lists were made. None: as in the lists.
        least: a shop that is ranked whole omits what was bought if at least so many items remain. Default: ``size``.
        allowed: items that may be candidates, as if the shop had no others. It takes the place of ``alive``.
        born_ms: by row; needed with ``allowed``.
    """
    living = lists.living
    if allowed is not None:
        living, alive = allowed.rows, allowed.mask
    elif alive is None:
        alive = np.zeros(int(living[-1]) + 1 if len(living) else 0, np.bool_)
        alive[living] = True
    late = np.array([row for row in dict.fromkeys(bought.tolist()) if row >= 0], np.intp)
    if len(living) <= size:
        return _whole(living[alive[living]].astype(np.intp), late, size if least is None else least)
    hot: NDArray[Any] = lists.hot
    new = lists.new
    if allowed is not None:
        new = allowed.of(new)
        hot = _hot_of(allowed, hot, born_ms, size) if shares.of_source[HOT - 1] else NO_ROWS
    given = (
        vectors,
        _liked(liked, size, allowed) if shares.of_source[LIKED - 1] else NO_ROWS,
        coclicked,
        hot,
        _new(new, size, seed) if shares.of_source[NEW - 1] else NO_ROWS,
    )
    starts = np.zeros(len(given) + 1, np.intp)
    np.cumsum([len(rows) for rows in given], out=starts[1:])
    rows, sources = np.empty(size, np.intp), np.empty(size, np.uint8)
    n = recallkernels.merge(
        np.concatenate(given, dtype=np.intp),
        starts,
        shares.of_source,
        FILLERS,
        living,
        alive,
        late,
        np.uint64(seed & _ALL_BITS),
        rows,
        sources,
    )
    return Candidates(rows[:n], sources[:n])


def _whole(rows: ItemRows, late: ItemRows, least: int) -> Candidates:
    if len(late):
        others = rows[~np.isin(rows, late)]
        if len(others) >= least:
            rows = others
    return Candidates(rows, np.full(len(rows), WHOLE, np.uint8))


def _hot_of(allowed: Allowed, hot: ListedRows, born_ms: NDArray[np.int64] | None, size: int) -> NDArray[Any]:
    """The hot items that pass; below ``size``, the others that pass follow, newest first, as in the list itself."""
    hot = allowed.of(hot)
    if len(hot) >= size or born_ms is None:
        return hot
    others = allowed.mask.copy()
    others[hot] = False
    rest = np.flatnonzero(others)
    return np.concatenate([hot, rest[largest(born_ms[rest], size - len(hot))]])


def random_page(
    lists: CandidateLists, size: int, generator: np.random.Generator, allowed: Allowed | None = None
) -> ItemRows:
    """Distinct living items in uniform random order: the page of the control group."""
    living = lists.living if allowed is None else allowed.rows
    size = min(size, len(living))
    return living[generator.choice(len(living), size, replace=False)].astype(np.intp)


def popular_page(
    lists: CandidateLists,
    size: int,
    allowed: Allowed | None,
    born_ms: NDArray[np.int64],
    heat: Callable[[ListedRows, float], tuple[F64, F64]],
) -> ItemRows:
    """The hottest living items, hottest first, for everybody. ``heat``: of items, their clicks a day and their smoothed
    rate, by the shop's rate. Asked where the shop's list has too few that are allowed."""
    hot = lists.hot if allowed is None else allowed.of(lists.hot)
    if allowed is not None and len(hot) < min(size, len(allowed.rows)):
        hot = allowed.rows[hottest(*heat(allowed.rows, lists.rate), born_ms[allowed.rows], size)]
    return hot[:size].astype(np.intp)


def newest_page(lists: CandidateLists, size: int, allowed: Allowed | None, born_ms: NDArray[np.int64]) -> ItemRows:
    """The living items born last, for everybody."""
    living = lists.living if allowed is None else allowed.rows
    return living[largest(born_ms[living], size)].astype(np.intp)


def _new(waiting: ListedRows, most: int, seed: int) -> ItemRows:
    """A uniform random choice of the new items, so the place in the list does not matter."""
    out = np.empty(min(most, len(waiting)), np.intp)
    recallkernels.shuffled(waiting, np.uint64((seed ^ _NEW_SEED) & _ALL_BITS), out)
    return out


def _liked(liked: Liked, most: int, allowed: Allowed | None = None) -> ItemRows:
    """The hottest items of the user's groups, interleaved by affinity. Groups without an allowed item are skipped."""
    heads: list[ListedRows] = []
    weights: list[F64] = []
    for groups, affinity in liked:
        positive = int((affinity > 0).sum())
        if not positive:
            continue
        best = largest(affinity, min(GROUPS, positive) if allowed is None else positive)
        starts, ends = groups.starts[best].tolist(), groups.starts[best + 1].tolist()
        if allowed is None:
            heads += [groups.rows[start : min(end, start + most)] for start, end in zip(starts, ends, strict=True)]
        else:
            taken = []
            for g, (start, end) in enumerate(zip(starts, ends, strict=True)):
                head = allowed.of(groups.rows[start:end])[:most]
                if len(head):
                    taken.append(g)
                    heads.append(head)
                if len(taken) == GROUPS:
                    break
            best = best[taken]
        weights.append(affinity[best] / affinity[best].sum())
    if not heads:
        return NO_ROWS
    starts = np.zeros(len(heads) + 1, np.intp)
    np.cumsum([len(head) for head in heads], out=starts[1:])
    out = np.empty(most, np.intp)
    n = recallkernels.interleave(np.concatenate(heads, dtype=np.intp), starts, np.concatenate(weights), out)
    return out[:n]


def largest(values: NDArray[Any], count: int) -> Positions:
    """Positions of the ``count`` largest values, largest first. Of equal values the earlier comes first."""
    if count >= len(values) or not count:
        return np.argsort(-values, kind="stable")[:count]
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: count - len(above)]
    picked = np.concatenate([above, equal])
    return picked[np.argsort(-values[picked], kind="stable")]
