# core
"""Re-ranking: what ranked items are ordered by in place of their scores, and pins.

An item's value is that of its logit, of its boosts, and of its likeness to the items that go before it::

    v = z + log b - d max(0, cos)        z: of the score; b: product of its boosts; cos: the largest; d: ``diversity``

With weights z is the logarithm of what the item is worth (:mod:`scorer.page.worth`).

Items are taken one after another, always the one with the largest v. As more are taken, no v rises: so this order is
that of v itself, and v is what chance draws by (:mod:`millrace.evidence.exploration`). Pinned items take no part in any
of this. They are put into the finished order, each into its slot. docs/internals/serving.md draws the way of a page.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from millrace.evidence.exploration import logits
from millrace.evidence.rerank import Rerank
from scorer.catalog.itemtable import ItemRows, ItemTable
from scorer.page import filterkernels as kernels
from scorer.page.page_arms import PageArm
from scorer.page.page_filters import Boosts, ItemFilters
from scorer.recall.candidate_lists import largest
from scorer.recall.nearest import Retrieval

Floats = NDArray[np.float32]
Places = NDArray[np.intp]

NO_ODDS: Floats = np.empty(0, np.float32)
VALUE, BOOST, LIKENESS, WORTH = range(4)
"""Of an item that may have been re-ranked: what it was ordered by, as a score is, NaN: it is pinned; logits that boosts
added; logits that likeness took, none above 0; what weights added to the logit."""
COLUMNS = 4


class PlacedItems(NamedTuple):
    """m items in the order of their page or list. It goes with them into the answer, its log, and a kept list."""

    order: Places  # (m,) positions among the items that were scored
    odds: Floats = NO_ODDS  # (m,) of each in its slot, given those above; (0,): nobody knows them
    ranking: Floats | None = None  # (m, 4) of VALUE, BOOST, LIKENESS, WORTH; None: they were ordered by their scores

    def at(self, some: Places | slice) -> PlacedItems:
        odds = self.odds[some] if len(self.odds) else self.odds
        return PlacedItems(self.order[some], odds, None if self.ranking is None else self.ranking[some])

    @property
    def ranking_bytes(self) -> bytes:
        return b"" if self.ranking is None else self.ranking.tobytes()


class Pins(NamedTuple):
    """The pinned items of one page."""

    slots: Places  # (P,) ascending
    rows: ItemRows  # (P,)

    @classmethod
    def of(cls, how: Rerank, size: int, items: ItemTable, passing: NDArray[np.bool_]) -> Self:
        """Those that may come on a page of ``size``. ``passing``: by index row."""
        of_slot = sorted((slot, item) for item, slot in _pinned(how, size).items())
        rows = items.rows_of([item for _, item in of_slot])
        there = np.flatnonzero(rows >= 0)
        there = there[passing[rows[there]]]
        return cls(np.array([slot for slot, _ in of_slot], np.intp)[there], rows[there])

    def put(self, rows: ItemRows) -> Places:
        """In which order to take ``rows``, so that those pinned stand in their slots, and the others around them as
        they are. Where there are too few others, the pinned ones come last. (m,)"""
        if not len(self.rows):
            return np.arange(len(rows))
        same = self.rows[:, None] == rows  # (P, m)
        there = same.any(axis=1)
        n, out = np.count_nonzero(there), np.empty(len(rows), np.intp)
        at = np.minimum(self.slots[there], len(rows) - n + np.arange(n))
        out[at] = same.argmax(axis=1)[there]
        out[np.delete(np.arange(len(rows)), at)] = np.flatnonzero(~same.any(axis=0))
        return out


def pins_off(how: Rerank, size: int, items: ItemTable, rows: ItemRows) -> list[str]:
    """The pinned items that are not among the ``rows`` of a page of ``size``."""
    named = list(_pinned(how, size))
    return [item for item, row in zip(named, items.rows_of(named).tolist(), strict=True) if row not in rows]


def _pinned(how: Rerank, size: int) -> dict[str, int]:
    return {item: slot for item, slot in (how.pins or {}).items() if slot < size}


class PageDraw(NamedTuple):
    """What a page is to have: ``size`` items of its own, ``most`` with the rest of its list, of so many as were
    ``there`` to be drawn from."""

    size: int
    most: int
    there: int
    capped: bool
    seed: tuple[int, int]
    ts_ms: int


class Reranker:
    """Re-ranking of one worker. ``arms``: how each arm does it."""

    def __init__(self, filters: ItemFilters, arms: Iterable[Rerank]) -> None:
        self._filters = filters
        self._boosts: dict[int, list[Boosts]] = {}
        for how in arms:
            self._boosts[id(how.boosts)] = filters.boosts(how.boosts or {})

    def place(
        self,
        how: Rerank,
        arm: PageArm,
        rows: ItemRows,
        scores: Floats,
        pins: Pins,
        passing: NDArray[np.bool_],
        wanted: PageDraw,
        retrieval: Retrieval | None,
        worth: NDArray[np.float64] | None = None,
    ) -> PlacedItems:
        """The scored items that pass, those pinned first. Without odds where nobody knows them: as under caps, which
        move what was drawn, and then all items are given, for caps to choose from.

        Args:
            rows: of the items that were scored, with their ``scores``. (n,)
            retrieval: what knows how alike items are; None: nothing does.
            worth: (n,) logarithms of what they are worth; None: there are no weights.
        """
        order = np.flatnonzero(passing)
        pinned = np.isin(rows[order], pins.rows)
        first, order = order[pinned], order[~pinned]
        first = first[pins.put(rows[first])]
        size, most = max(1, wanted.size - len(first)), wanted.most - len(first)
        ranking, odds = self._ranking(how, arm, rows, scores, order, most, wanted.ts_ms, retrieval, worth), NO_ODDS
        known = arm.exploration is not None and not wanted.capped
        if not arm.ranks:
            order = order[:most]
            if known and len(order) == min(most, wanted.there):  # drawn of so many, or popular
                left = wanted.there - np.arange(len(order))
                odds = (1 / left if arm.kind == "random" else np.ones(len(order))).astype(np.float32)
        else:
            value = scores if ranking is None else ranking[:, VALUE]
            order = order[largest(value[order], len(order) if wanted.capped or known else most)]
            if known and arm.exploration is not None:
                drawn = arm.exploration.draw(value[order], size, most, np.random.default_rng(wanted.seed))
                order, odds = order[drawn.order], drawn.odds
        if len(odds):
            odds = np.concatenate([np.ones(len(first), np.float32), odds])
        order = np.concatenate([first, order])
        return PlacedItems(order, odds, None if ranking is None else ranking[order])

    def _ranking(
        self,
        how: Rerank,
        arm: PageArm,
        rows: ItemRows,
        scores: Floats,
        order: Places,
        most: int,
        ts_ms: int,
        retrieval: Retrieval | None,
        worth: NDArray[np.float64] | None,
    ) -> Floats | None:
        """The ranking of the n items, of which those in ``order`` may come and are not pinned; None: the scores are.
        ``most`` items are unlike each other, and the others are unlike these. (n, 4)"""
        boosts = how.boosts if arm.ranks else None
        diversity = how.diversity if arm.ranks else None
        if not (boosts or diversity or how.pins) and worth is None:
            return None
        made = np.zeros((len(rows), COLUMNS), np.float32)
        made[:, VALUE] = np.nan
        z, value = logits(scores[order]), scores[order].astype(np.float64)
        if worth is not None:
            made[order, WORTH] = worth[order] - z
            z = worth[order]
        if boosts:
            table = self._boosts.get(id(boosts)) or self._filters.boosts(boosts)
            made[order, BOOST] = self._filters.boosted(table, rows[order], ts_ms)
        if diversity and retrieval is not None:
            near = np.zeros(len(order), np.float32)
            kernels.marginal(z + made[order, BOOST], retrieval.factors(rows[order]), diversity, most, near)
            made[order, LIKENESS] = -diversity * near
        added = made[order, BOOST].astype(np.float64) + made[order, LIKENESS]
        kept = (added == 0) & (worth is None)
        made[order, VALUE] = np.where(kept, value, 1 / (1 + np.exp(-(z + added))))
        return made
