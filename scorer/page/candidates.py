# core
"""Candidates of one page: asks each source for this user, and :mod:`scorer.recall.candidate_lists` merges them.

::

    user ─ attributes, last clicks ──► retrieval.query ─► nearest ──► vectors ─┐
         ─ tile lists ───────────────► ranker.affinities ───────────► liked ───┤
         ─ last clicks ──────────────► neighbours.of ───────────────► coclicked┼─► recall ─► rows, sources
         ─ last purchases ───────────► bought ─────────────────────────────────┤
    lists ───────────────────────────────────────────────────────────► hot, new┘
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.contracts.online_layout import Past
from millrace.contracts.settings import Settings
from scorer.catalog.itemtable import ItemRows
from scorer.page.rank import Ranker
from scorer.recall.candidate_lists import COCLICKED, LIKED, NO_ROWS, VECTORS, Allowed, CandidateLists, Shares, recall
from scorer.recall.nearest import Retrieval
from scorer.recall.neighbours import Neighbours
from scorer.users.userrecord import KnownUser

LEAST_CLICKS = 1000  # that the retrieval head has to have learnt before it is used
ALL_NEIGHBOURS = 1 << 16
"""More neighbours than any user's last clicks have, because filters remove some."""


class Sources(NamedTuple):
    """A worker's recall sources at one moment."""

    lists: CandidateLists
    retrieval: Retrieval | None = None
    neighbours: Neighbours | None = None


class Recalled(NamedTuple):
    """Candidate rows of a page, with their sources."""

    rows: ItemRows  # (n,) distinct
    sources: NDArray[np.uint8]  # (n,)
    version: int  # of the retrieval head that was asked; -1: none was


class Recaller:
    """Recall of one worker. Raises SettingError: the setting ``recall`` is not a valid list of shares."""

    def __init__(self, settings: Settings, ranker: Ranker) -> None:
        self.shares = Shares.of(settings.recall)
        self._ranker = ranker
        self._bought_ms = round(settings.bought_days * DAY_MS)

    @staticmethod
    def ready(retrieval: Retrieval | None) -> bool:
        """Whether the retrieval head has learnt from enough clicks."""
        return retrieval is not None and retrieval.clicks >= LEAST_CLICKS

    def page(
        self,
        sources: Sources,
        user: KnownUser,
        ts_ms: int,
        size: int,
        least: int,
        seed: int,
        allowed: Allowed | None = None,
    ) -> Recalled:
        """Candidates for ``user`` at ``ts_ms``: ``size``, or all living items.

        Args:
            least: so many are wanted of a shop that is ranked whole.
            seed: of random draws: the same for the same request.
            allowed: items that pass the filters, or None. Sources search among these alone, so each can fill its share.
        """
        lists, retrieval, neighbours = sources
        items, share = self._ranker.items, self.shares.of_source
        bought, _ = self._rows([p for p in user.lately.purchases if ts_ms - p.ts_ms < self._bought_ms], ts_ms)
        vectors = coclicked = NO_ROWS
        liked: list[Any] = []
        version = -1
        if len(lists.living if allowed is None else allowed.rows) > size:
            clicked, age_ms = self._rows(user.lately.clicks, ts_ms)
            if retrieval is not None and self.ready(retrieval) and share[VECTORS - 1]:
                query = retrieval.query(self._ranker.user_ids(user), clicked, age_ms)
                near = (query, size) if allowed is None else (query, size, allowed.mask)
                vectors, version = retrieval.nearest(*near), retrieval.version[1]
            known = clicked[clicked >= 0]
            if neighbours is not None and len(known) and share[COCLICKED - 1]:
                coclicked = neighbours.of(known, size if allowed is None else ALL_NEIGHBOURS)
            if share[LIKED - 1]:
                liked = self._ranker.affinities(lists.groups, user, ts_ms)
        found = recall(
            lists, self.shares, size, seed,
            vectors=vectors, liked=liked, coclicked=coclicked, bought=bought[::-1], alive=items.alive, least=least,
            allowed=allowed, born_ms=items.rows.born_ms,
        )  # fmt: skip
        return Recalled(found.rows, found.sources, version)

    def _rows(self, pasts: Sequence[Past], ts_ms: int) -> tuple[ItemRows, NDArray[np.int64]]:
        """Index rows (-1: unknown) and ages of a user's actions before ``ts_ms``; later ones were unknown to such a
        page."""
        before = [p for p in pasts if p.ts_ms < ts_ms]
        rows = self._ranker.items.rows_of([p.item_id for p in before])
        return rows, ts_ms - np.array([p.ts_ms for p in before], np.int64)
