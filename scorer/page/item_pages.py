# core
"""Pages that the model does not order: items like one item, and popular items.

::

    similar ── vectors, co-clicks ──► merged ─┐ too few: popular ones of the item's group, then of the shop
    popular ── the shop's hot items ──────────┴─► filters ─► caps ─┬─ a user, and a model ──► scored, logged, answered
                                                                   └─ else ─────────────────► answered

A page that is logged has a request id and is learnt from, as one of ``/score`` with ``log``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from millrace.contracts.events import LOGGED, SOURCES
from millrace.contracts.schema import DERIVED
from millrace.evidence.rerank import PAGE_LIMIT
from scorer.catalog.itemtable import ItemRows
from scorer.page import page_wire
from scorer.page.candidates import Recaller
from scorer.page.listpage import LISTS, not_ready
from scorer.page.page_service import Serving
from scorer.page.page_wire import Filters, ListRequest, PlacedItem, Reason, RecommendAnswer, RequestError
from scorer.page.pagemaker import Asked
from scorer.page.reranking import PlacedItems
from scorer.recall.candidate_lists import COCLICKED, HOT, VECTORS, Allowed, ListedRows, popular_page
from scorer.recall.similar import same_group, similar
from scorer.users.userrecord import KnownUser

CLICK_RATE = "click_rate"
_TERMS = SOURCES[COCLICKED], SOURCES[VECTORS]


class _Found(NamedTuple):
    """Candidates in order, with the source of each and what was measured of it."""

    rows: ItemRows  # (n,)
    sources: NDArray[np.uint8]  # (n,)
    reasons: list[list[Reason]]

    def of(self, places: NDArray[np.intp]) -> _Found:
        return _Found(self.rows[places], self.sources[places], [self.reasons[place] for place in places.tolist()])


_Find = Callable[[Allowed, int, list[str]], _Found]
"""Candidates of those allowed, at most so many; adds to the notes."""


class ItemPages:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def similar(self, body: bytes) -> RecommendAnswer:
        """Answers POST /similar. Raises RequestError: an invalid request, or no items yet."""
        asked = page_wire.decode(body, page_wire.SimilarRequest)
        filters = self._serving.filters.of(asked) or Filters()
        filters = replace(filters, exclude=[*filters.exclude, asked.item_id])
        row = int(self._serving.items.rows_of([asked.item_id])[0])

        def find(allowed: Allowed, size: int, notes: list[str]) -> _Found:
            return self._similar(row, f"item {asked.item_id!r}", allowed, size, notes)

        return await self._page(asked, filters, find)

    async def popular(self, body: bytes) -> RecommendAnswer:
        """Answers POST /popular. Raises RequestError as :meth:`similar`."""
        asked = page_wire.decode(body, ListRequest)

        def find(allowed: Allowed, size: int, notes: list[str]) -> _Found:
            return self._popular(allowed, size, CLICK_RATE)

        return await self._page(asked, self._serving.filters.of(asked), find)

    def item(self, item_id: str) -> page_wire.ItemAnswer:
        """Answers GET /items/{id}. Raises RequestError (404) for an unknown item."""
        serving = self._serving
        items, neighbours, retrieval = serving.items, serving.neighbours, serving.retrieval
        row = int(items.rows_of([item_id])[0])
        if row < 0:
            raise RequestError(f"item '{item_id[:40]}' is not in the catalogue", "send it to the intake, or wait", 404)
        clicks, rate = serving.heat(np.array([row]), serving.lists.rate)
        names, born_ms = items.form.plain_names, int(items.rows.born_ms[row])
        return page_wire.ItemAnswer(
            item_id=serving.maker.ids(np.array([row]))[0],
            on_pages=bool(items.alive[row]),
            born_ms=born_ms,
            numbers={n: float(x) for n, x in zip(names, items.rows.plain[row], strict=True) if n not in DERIVED},
            clicks=float(clicks[0]),
            click_rate=float(rate[0]),
            coclicked=0 if neighbours is None else len(neighbours.counted(row)[0]),
            vector=retrieval is not None and retrieval.has(row),
        )

    # -- within -----------------------------------------------------------------------------------------------

    async def _page(self, asked: ListRequest, filters: Filters | None, find: _Find) -> RecommendAnswer:
        """A page of what is found, as far as filters and caps allow."""
        serving, user_id = self._serving, asked.user_id
        size = page_wire.check_size(asked.size, PAGE_LIMIT)
        request_id, ts_ms = serving.identify(asked, logged=True)
        reason = serving.not_ready()
        if reason and (serving.to_read or not len(serving.lists.living)):
            raise not_ready(reason)
        if user_id is None:
            if asked.session is not None or (filters is not None and filters.hide):
                raise RequestError("'session' and 'hide' need a user", "name the user as user_id, or leave them out")
            user, notes = KnownUser.of(serving.builder, "", {}), ["no user_id, so not logged: report no events of it"]
        else:
            user, notes = await serving.user_of(user_id, asked.session)
        page = Asked(request_id, user, user_id or "", ts_ms, asked.context, notes, filters=filters)
        allowed = serving.allowed(page) or Allowed(serving.items.alive, serving.lists.living)
        found = find(allowed, PAGE_LIMIT if page.capped else size, notes)
        found = found.of(np.flatnonzero(serving.passing(page)[found.rows]))
        if filters is not None:
            found = found.of(serving.filters.fitting(filters, found.rows, size))
        if not len(found.rows):
            notes.append(f"no item of the catalogue passes the filters ({filters}): an empty page, not logged")
        if user_id is None or reason or not len(found.rows):
            if user_id is not None and reason:
                notes.append(f"not logged, since there is {reason.split(';')[0]}: report no events of this page")
            return RecommendAnswer(None, -1, LISTS, ts_ms, self._placed(found, [None] * len(found.rows)), notes)
        scored = await serving.maker.score(page, found.rows)
        order = np.flatnonzero(serving.passing(page)[found.rows])  # one may have gone while counts were waited for
        found, scores = found.of(order), scored.shown[order].tolist()
        sources = found.sources.tobytes()
        serving.maker.log(page, LOGGED, scored, PlacedItems(order), serving.maker.ids(found.rows), sources, 0)
        return RecommendAnswer(request_id, scored.note.version, LOGGED, ts_ms, self._placed(found, scores), notes)

    def _placed(self, found: _Found, scores: Sequence[float | None]) -> list[PlacedItem]:
        ids = self._serving.maker.ids(found.rows)
        names = [SOURCES[code] for code in found.sources.tolist()]
        return list(map(PlacedItem, ids, range(len(ids)), scores, names, found.reasons))

    def _similar(self, row: int, name: str, allowed: Allowed, size: int, notes: list[str]) -> _Found:
        """Items like the one at ``row``; where they are too few, popular ones of its group, then of the shop."""
        serving, among = self._serving, "the shop"
        retrieval = serving.retrieval if Recaller.ready(serving.retrieval) else None
        like = similar(row, size, allowed, serving.neighbours, retrieval, lambda rows: serving.heat(rows, 0.0)[0])
        reasons: list[list[Reason]] = []
        for terms in zip(like.coclicked.tolist(), like.vectors.tolist(), strict=True):
            known = [Reason(name, term) for name, term in zip(_TERMS, terms, strict=True) if not math.isnan(term)]
            reasons.append(sorted(known, key=lambda reason: -reason.effect))
        sources = np.array([SOURCES.index(of[0].input) for of in reasons], np.uint8)
        parts = [_Found(like.rows, sources, reasons)]
        if row >= 0 and len(like.rows) < size:
            group, rows = same_group(serving.lists, serving.items, row)
            if group:
                among = f"the same {group}, then of the shop"
                parts.append(self._popular(_left(allowed, parts, rows), size - len(like.rows), group))
        lacking = size - sum(len(part.rows) for part in parts)
        if lacking:
            parts.append(self._popular(_left(allowed, parts), lacking, CLICK_RATE))
        if sum(len(part.rows) for part in parts) > len(like.rows):
            why = "not in the catalogue" if row < 0 else f"{len(like.rows)} items like it"
            notes.append(f"{name}: {why}; popular items of {among} fill the page")
        return _Found(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.sources for part in parts]),
            [reasons for part in parts for reasons in part.reasons],
        )

    def _popular(self, allowed: Allowed, size: int, measure: str) -> _Found:
        serving = self._serving
        rows = popular_page(serving.lists, size, allowed, serving.items.rows.born_ms, serving.heat)
        _, rates = serving.heat(rows, serving.lists.rate)
        return _Found(rows, np.full(len(rows), HOT, np.uint8), [[Reason(measure, rate)] for rate in rates.tolist()])


def _left(allowed: Allowed, taken: Sequence[_Found], group: ListedRows | None = None) -> Allowed:
    """The allowed items, of a ``group`` if one is given, that are not ``taken`` yet."""
    mask = allowed.mask.copy()
    if group is not None:
        mask[:] = False
        mask[allowed.of(group)] = True
    for part in taken:
        mask[part.rows] = False
    return Allowed(mask, np.flatnonzero(mask).astype(np.int32))
