# core
"""What a worker does for a request, without HTTP, Kafka or Redis: decode, look up, recall, rank, log, answer.

A request waits for the user's record, the list of its cursor, and counts of another time. After that it runs without an
await, so items and model change only between requests, and one model makes the whole page.

Filters apply before recall (:mod:`scorer.page.page_filters`), so a page is full where enough items pass. Caps apply
to the ranked candidates, best first. Until there are a model and items, :mod:`scorer.page.listpage` answers
``/recommend``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MIN, MINUTE_MS, text_of
from millrace.basics.hashing import value_hash
from millrace.contracts.clock import MAX_AHEAD_MS, EventClock
from millrace.contracts.events import LOGGED, Id, PageLog
from millrace.contracts.filter_attributes import bad_boost
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.evidence.rerank import PAGE_LIMIT, Rerank
from scorer.catalog.itemtable import ItemRows
from scorer.page import page_wire
from scorer.page.candidates import Sources
from scorer.page.listpage import ListPages, not_ready
from scorer.page.page_arms import PageArm, PageArms
from scorer.page.page_filters import ItemFilters
from scorer.page.page_wire import RequestError
from scorer.page.pagemaker import AskCounts, Asked, PageMaker, Scored
from scorer.page.ranked import LIST_SECONDS, Cursor, RankedList, RankedLists
from scorer.page.reranking import PageDraw, Pins, PlacedItems, Reranker, pins_off
from scorer.page.worker_state import WorkerState
from scorer.page.worth import log_worth, terms, unknown_weights
from scorer.recall.candidate_lists import (
    ASKED,
    CONTROLLED,
    HOT,
    NEW,
    PINNED,
    RANDOM,
    Allowed,
    newest_page,
    popular_page,
    random_page,
)
from scorer.users.userrecord import KnownUser, Meters, UserStore, look_up

_SOURCES = {"random": CONTROLLED, "popular": HOT, "newest": NEW}
FILTERED = "f-"
"""Prefix of the ids of lists with filters, so a cursor shows that its expired list had some."""


class PagePlan(NamedTuple):
    """A page, or the first part of a list, as it is decided before anything is recalled or scored."""

    page: Asked
    arm: PageArm
    allowed: Allowed | None  # None: no filters
    pins: Pins
    draw: PageDraw
    seed: int  # of random items; that of the draw has a secret besides

    def cut(self, placed: PlacedItems, rows: ItemRows, filters: ItemFilters) -> tuple[PlacedItems, PlacedItems]:
        """The items of the page, and those of the rest of its list. ``rows``: of the items that were scored."""
        size = self.draw.size
        if self.page.filters is not None and self.page.capped:
            first = filters.fitting(self.page.filters, rows[placed.order], size)
            others = np.delete(np.arange(len(placed.order)), first)
            return placed.at(first), placed.at(others[: self.draw.most - len(first)])
        placed = placed.at(self.pins.put(rows[placed.order]))
        return placed.at(slice(size)), placed.at(slice(size, None))


class Found(NamedTuple):
    """What is scored for a page."""

    rows: ItemRows  # (n,)
    sources: NDArray[np.uint8]  # (n,) codes
    retrieval: int  # version of recall; -1: none
    among: NDArray[np.float32] | None  # the set that they are measured against; None: they are the set


class PartPlan(NamedTuple):
    """The next part of a kept list, as it is decided before its items are scored."""

    page: Asked
    arm: PageArm
    kept: RankedList
    cursor: Cursor
    places: NDArray[np.intp]  # (n,) in the list, of this part's items
    rows: ItemRows  # (n,)
    later: NDArray[np.intp]  # (m,) in the list, of the items that may come on later parts


class Serving(WorkerState):
    """Request handling of one worker. Raises SettingError for an invalid setting ``recall`` or ``arms``.

    Args:
        store: the online store.
        send, wall, ask_counts: see :class:`~scorer.page.pagemaker.PageMaker`.
        meters: counts.
        new_id: makes a unique request id.
        secret: what pages drawn by chance depend on beside their request's id, so that no client draws its own.
    """

    def __init__(
        self,
        settings: Settings,
        schema: Schema,
        clock: EventClock,
        store: UserStore,
        send: Callable[[PageLog], bool | None],
        meters: Meters,
        wall: Callable[[], int],
        new_id: Callable[[], str],
        ask_counts: AskCounts | None = None,
        secret: int = 0,
    ) -> None:
        super().__init__(schema, meters.error, settings.served_learners)
        self.settings, self._store, self._meters, self._new_id = settings, store, meters, new_id
        self.maker = PageMaker(self, clock, send, meters, wall, ask_counts)
        self._secret, self.filters = secret, ItemFilters(self.ranker)
        self.rerank_by(settings.rerank)
        self.ranked = RankedLists(store, LIST_SECONDS, wall, meters.error)
        self._list_pages = ListPages(store, self.builder, meters, self.filters.passing)

    def rerank_by(self, how: Rerank) -> None:
        """From the next page on ``how`` is the settings' re-ranking."""
        self.settings = replace(self.settings, rerank=how)
        self.arms = PageArms(self.settings, self.ranker)
        self._reranker = Reranker(self.filters, self.arms.reranks)

    # -- requests ---------------------------------------------------------------------------------------------

    async def recommend(self, body: bytes) -> page_wire.RecommendAnswer:
        """Answers POST /recommend. Raises RequestError: an invalid request, or no source for a page."""
        asked = page_wire.decode(body, page_wire.RecommendRequest)
        size = page_wire.check_recommend(asked, PAGE_LIMIT)
        cursor = None if asked.cursor is None else Cursor.of(asked.cursor, PAGE_LIMIT)
        if asked.hide is UNSET and cursor is None and self.settings.hide:
            asked = replace(asked, hide=self.settings.hide.split(","))
        filters = self.filters.of(asked)
        rerank = asked.rerank or Rerank()
        if found := bad_boost(self.schema, rerank.boosts or {}):
            raise RequestError(f"boosts {found[0]}", found[1])
        if found := unknown_weights(self.schema, rerank.weights or {}):
            raise RequestError(f"weights {found[0]}", found[1])
        request_id, ts_ms = self.identify(asked, logged=True)
        arm = self.arms.of(asked.user_id)
        reason = self.not_ready(arm.learner)
        if reason:
            if cursor is not None and cursor.list_id.startswith(FILTERED):
                raise not_ready(f"no part of a list with filters yet, since there is {reason}")
            if asked.if_clicked is not None:
                raise not_ready(reason)
            return await self._list_pages.page(asked.user_id, size, ts_ms, reason, filters, asked.session)
        user, notes = await self.user_of(asked.user_id, asked.session)
        page = Asked(request_id, user, asked.user_id, ts_ms, asked.context, notes, asked.explain, filters, rerank)
        if asked.if_clicked is not None:
            page = self._as_if(page, asked.if_clicked)
        if cursor is not None:
            page, part = await self._plan_of_part(page, cursor, size)
            if part is not None:
                return await self._part(part)
        length = asked.length if cursor is None else cursor.length
        return await self._page(self._plan(page, arm, size, size if length is None else max(size, length)))

    def _as_if(self, page: Asked, clicked: list[Id]) -> Asked:
        """The page as if the user had just clicked these items. Raises RequestError for an unknown one."""
        rows = self.items.rows_of(clicked)
        for item in (clicked[i] for i in np.flatnonzero(rows < 0).tolist()):
            raise RequestError(f"if_clicked names {str(item)[:60]!r}, which is not in the catalogue", "leave it out")
        if clicked:
            user = self.ranker.as_if_clicked(page.user, clicked, rows, page.ts_ms, page.context)
            page = page._replace(user=user)
        return page._replace(what_if=True)

    def _plan(self, page: Asked, arm: PageArm, size: int, most: int) -> PagePlan:
        """``most``: items of the list whose first part it is; ``size``: it is a page of its own."""
        page = page._replace(rerank=page.rerank.over(arm.rerank))
        seed, allowed = value_hash(page.request_id), self.allowed(page)
        pins = Pins.of(page.rerank, size, self.items, self.passing(page))
        pool = self.lists.living if allowed is None else allowed.rows
        there = len(pool) - (int(np.isin(pool, pins.rows).sum()) if len(pins.rows) else 0)
        draw = PageDraw(size, most, there, page.capped, (self._secret, seed), page.ts_ms)
        return PagePlan(page, arm, allowed, pins, draw, seed)

    async def _page(self, plan: PagePlan) -> page_wire.RecommendAnswer:
        page, arm, size, most = plan.page, plan.arm, plan.draw.size, plan.draw.most
        if plan.allowed is not None and not len(plan.allowed.rows):
            return self._empty(page, arm)
        found = await self._found(plan)
        scored = await self.maker.score(page, found.rows, found.among, arm.learner, bool(_weights(page, arm)))
        shown, rest = plan.cut(self._placed(plan, scored, plan.draw), found.rows, self.filters)
        ids, codes, sources = self.maker.ids(found.rows[rest.order]), found.sources[rest.order].tobytes(), found.sources
        if page.capped:
            scored, shown, sources = await self._filled_up(plan, scored, shown, sources)
        off = pins_off(page.rerank, size, self.items, scored.rows[shown.order])
        if off:
            page.notes.append(f"pinned, but filtered, capped or not in the catalogue: {', '.join(off)[:200]}")
        if page.filters is not None:
            if not len(shown.order):
                return self._empty(page, arm)
            if not page.what_if:
                self._meters.filtered("full" if len(shown.order) == size else "short")
        first_codes = sources[shown.order].tobytes()
        answer = self.maker.hand_out(page, arm, scored, shown, first_codes, found.retrieval)
        if most == size:
            return answer
        self._meters.part("first")
        if not ids:  # a small shop: this part is the last
            return answer
        kept = RankedList(
            request_id=page.request_id,
            user_id=page.user_id,
            arm=arm.name,
            made_ms=self.maker.wall(),
            context=page.context,
            items=[*self.maker.ids(scored.rows[shown.order]), *ids],
            sources=first_codes + codes,
            retrieval=found.retrieval,
            filters=page.filters,
            among=scored.found.among.tobytes(),
            odds=shown.odds.tobytes() + rest.odds.tobytes(),
            ranking=shown.ranking_bytes + rest.ranking_bytes,
        )
        return await self._to_be_continued(answer, kept, len(shown.order), len(shown.order), most)

    async def _found(self, plan: PagePlan) -> Found:
        page, arm, most = plan.page, plan.arm, plan.draw.most
        among = recalled = None
        if arm.ranks or self.schema.among:
            there = Sources(self.lists, self.of(arm.learner).retrieval, self.neighbours)
            n = max(arm.candidates, most)
            recalled = arm.recaller.page(there, page.user, page.ts_ms, n, most, plan.seed, plan.allowed)
        if arm.ranks and recalled is not None:
            rows, sources, retrieval = recalled
        else:
            if recalled is not None:  # a number among candidates means the same on all pages
                among = await self.maker.set_of(page, recalled.rows)
            rows = self._unranked(plan)
            sources, retrieval = np.full(len(rows), _SOURCES[arm.kind], np.uint8), -1
        pins = plan.pins.rows
        if len(pins):
            more = pins[~np.isin(pins, rows)]
            if arm.ranks and self.schema.among and len(more):
                among = await self.maker.set_of(page, rows)
            rows, sources = np.concatenate([rows, more]), np.append(sources, np.full(len(more), PINNED, np.uint8))
            sources[np.isin(rows, pins)] = PINNED
        return Found(rows, sources, retrieval, among)

    def _placed(self, plan: PagePlan, scored: Scored, wanted: PageDraw) -> PlacedItems:
        """Of the scored items those that pass. One may have gone while counts were waited for."""
        page, arm = plan.page, plan.arm
        held = self.of(arm.learner).retrieval
        retrieval = held if arm.recaller.ready(held) else None
        note = "no vectors of items yet, so nothing is known of how alike they are"
        if retrieval is None and page.rerank.diversity and arm.ranks and note not in page.notes:
            page.notes.append(note)
        passing, worth = self.passing(page)[scored.rows], None
        if weights := _weights(page, arm):
            parts = terms(self.schema, scored.found, weights)
            worth = None if parts is None else log_worth(parts)
            note = "the model predicts no outcomes: ordered by clicks"
            if worth is None and note not in page.notes:
                page.notes.append(note)
        return self._reranker.place(
            page.rerank, arm, scored.rows, scored.shown, plan.pins, passing, wanted, retrieval, worth
        )

    def _unranked(self, plan: PagePlan) -> ItemRows:
        """A page that the model does not order, and the rest of its list."""
        page, arm, allowed, size, most = plan.page, plan.arm, plan.allowed, plan.draw.size, plan.draw.most
        capped = allowed is not None and page.capped
        drawn = len(allowed.rows) if allowed is not None and capped else most
        if arm.kind == "random":
            rows = random_page(self.lists, drawn, np.random.default_rng(plan.seed), allowed)
        elif arm.kind == "newest":
            rows = newest_page(self.lists, drawn, allowed, self.items.rows.born_ms)
        else:
            rows = popular_page(self.lists, drawn, allowed, self.items.rows.born_ms, self.heat)
        rows = rows[self.items.alive[rows]]  # gone since the lists were made
        if page.filters is not None and capped:
            first = self.filters.fitting(page.filters, rows, size)
            rows = np.concatenate([rows[first], np.delete(rows, first)])[:most]
        return rows

    async def _filled_up(
        self, plan: PagePlan, scored: Scored, shown: PlacedItems, sources: NDArray[np.uint8]
    ) -> tuple[Scored, PlacedItems, NDArray[np.uint8]]:
        """Completes a page on which too few candidates fit under the caps, with other items, and puts pinned ones into
        their slots: scores, order and sources."""
        page, arm, size = plan.page, plan.arm, plan.draw.size
        filters, allowed = page.filters, self.allowed(page)  # again: counts may have been waited for
        taken, hot = scored.rows[shown.order], self.lists.hot
        if filters is not None and allowed is not None and len(taken) < size:
            more = self.filters.fillers(filters, allowed, scored.rows, taken, hot, size, plan.seed)
            if len(more):
                of_more = CONTROLLED if arm.kind == "random" else np.where(np.isin(more, hot), HOT, RANDOM)
                sources = np.concatenate([sources[shown.order], np.broadcast_to(of_more, len(more))]).astype(np.uint8)
                rows, among = np.concatenate([taken, more]), scored.found.among
                scored = await self.maker.score(page, rows, among, arm.learner, bool(_weights(page, arm)))
                n = len(scored.rows)
                shown = self._placed(plan, scored, PageDraw(n, n, n, True, (0, 0), page.ts_ms))
                shown = shown.at(self.filters.fitting(filters, scored.rows[shown.order], size))
        return scored, shown.at(plan.pins.put(scored.rows[shown.order])), sources

    async def _plan_of_part(self, page: Asked, cursor: Cursor, size: int) -> tuple[Asked, PartPlan | None]:
        """The next part of a list. None where it has expired or nothing of it is left: the page is then that of a new
        list, with a note that says why. Raises RequestError when the list is another user's, or when an expired list
        had filters, which are lost."""
        kept = await self.ranked.get(cursor.list_id)
        if kept is None:
            if cursor.list_id.startswith(FILTERED):
                problem = f"cursor {cursor.text!r} is of a list that is no longer kept, nor are its filters"
                raise RequestError(problem, "ask for a new list with the filters", 410)
            return self._remade(page, "the cursor's list is no longer kept")
        if str(kept.user_id) != str(page.user_id):
            raise RequestError(
                f"cursor {cursor.text!r} was made for another user than {page.user_id!r}", "ask without a cursor"
            )
        page, arm = page._replace(filters=kept.filters), self.arms.named(kept.arm)
        rows = self.items.rows_of(kept.items[cursor.at :])
        left = np.flatnonzero(rows >= 0)
        left = left[self.passing(page)[rows[left]]]  # without those that are gone
        later = left[size:]
        if kept.filters is not None and kept.filters.caps:
            first = self.filters.fitting(kept.filters, rows[left], size)
            left, later = left[first], np.delete(left, first)
        left = left[:size]
        if not len(left) or self.of(arm.learner).model is None:
            return self._remade(page, "nothing of the cursor's list is left")
        mark = f"{value_hash(self._new_id()) & 0xFFFF:04x}"
        part = page._replace(request_id=f"{kept.request_id}.{cursor.slot}.{mark}", context=page.context or kept.context)
        return page, PartPlan(part, arm, kept, cursor, cursor.at + left, rows[left], cursor.at + later)

    def _remade(self, page: Asked, why: str) -> tuple[Asked, None]:
        page.notes.append(f"{why}: a new one from its beginning")
        self._meters.part("remade")
        return page, None

    async def _part(self, plan: PartPlan) -> page_wire.RecommendAnswer:
        page, arm, kept, cursor, places, rows, later = plan
        scored = await self.maker.score(page, rows, kept.set_of(len(self.schema.among)), arm.learner)
        order = np.flatnonzero(self.passing(page)[rows])  # one may have gone while counts were waited for
        if page.filters is not None and page.capped:  # or may be of another kind by now
            order = order[self.filters.fitting(page.filters, rows[order], len(rows))]
        placed, sources = kept.placed(order, places[order]), kept.sources_of(places[order])
        answer = self.maker.hand_out(page, arm, scored, placed, sources, kept.retrieval, cursor.slot)
        self._meters.part("next")
        slot = cursor.slot + len(order)
        if page.capped:  # what did not fit on this part comes later
            if not len(later):
                return answer
            kept = kept.of(np.concatenate([np.arange(cursor.at), places, later]))
            return await self._to_be_continued(answer, kept, cursor.at + len(places), slot, cursor.length)
        at = int(places[-1]) + 1
        if at == len(kept.items):
            return answer
        return replace(answer, cursor=Cursor(cursor.list_id, at, slot, cursor.length).text)

    async def _to_be_continued(
        self, answer: page_wire.RecommendAnswer, kept: RankedList, at: int, slot: int, length: int
    ) -> page_wire.RecommendAnswer:
        """Keeps the list, and adds a cursor for its place ``at`` to the answer."""
        list_id = self._new_id() if kept.filters is None else FILTERED + self._new_id()
        await self.ranked.put(list_id, kept)
        return replace(answer, cursor=Cursor(list_id, at, slot, length).text)

    def allowed(self, page: Asked) -> Allowed | None:
        if page.filters is None:
            return None
        return self.filters.allowed(page.filters, page.user, page.ts_ms)

    def passing(self, page: Asked) -> NDArray[np.bool_]:
        """By index row, whether an item lives and passes the filters."""
        allowed = self.allowed(page)
        return self.items.alive if allowed is None else allowed.mask

    def _empty(self, page: Asked, arm: PageArm) -> page_wire.RecommendAnswer:
        """A page without items: not a failure, and nothing to log."""
        note = self.of(arm.learner).note
        assert note is not None
        if not page.what_if:
            self._meters.filtered("empty")
        notes = [
            *page.notes,
            f"no item of the catalogue passes the filters ({page.filters}): an empty page, not logged",
        ]
        version = -1 if page.explain else UNSET
        return page_wire.RecommendAnswer(None, note.version, arm.name, page.ts_ms, [], notes, retrieval_version=version)

    async def score(self, body: bytes) -> page_wire.ScoreAnswer:
        """Answers POST /score. Raises RequestError: an invalid request, or no model or no item yet."""
        return await self.score_items(page_wire.decode(body, page_wire.ScoreRequest))

    async def score_items(self, asked: page_wire.ScoreRequest) -> page_wire.ScoreAnswer:
        """The answer to a decoded request. Raises RequestError as :meth:`score`."""
        page_wire.check_items(asked.items)
        self.arms.check_others(asked.arm, asked.log)
        request_id, ts_ms = self.identify(asked, asked.log)
        reason = self.not_ready()
        if reason:
            raise not_ready(reason)
        user, notes = await self.user_of(asked.user_id)
        page = Asked(request_id, user, asked.user_id, ts_ms, asked.context, notes)
        rows = self.items.rows_of(asked.items)
        known = np.flatnonzero(rows >= 0)
        unknown = [asked.items[i] for i in np.flatnonzero(rows < 0).tolist()]
        scores: list[float | None] = [None] * len(rows)
        if unknown:
            logged = ", so the page is not logged: send no events about it" if asked.log else ""
            notes.append(f"{len(unknown)} of {len(rows)} items are not in the catalogue{logged}")
        if not len(known):
            assert self.note is not None
            return page_wire.ScoreAnswer(None if asked.log else request_id, self.note.version, scores, unknown, notes)
        scored = await self.maker.score(page, rows[known])
        for i, value in zip(known.tolist(), scored.shown.tolist(), strict=True):
            scores[i] = value
        if asked.log and not unknown:
            sources = bytes([ASKED]) * len(rows)
            placed = PlacedItems(np.arange(len(rows)))
            self.maker.log(page, LOGGED, scored, placed, list(asked.items), sources, asked.offset, asked.arm)
        named = None if asked.log and unknown else request_id
        return page_wire.ScoreAnswer(named, scored.note.version, scores, unknown, notes)

    async def user_of(self, user_id: Id, session: Id | None = None) -> tuple[KnownUser, list[str]]:
        """:func:`look_up` in the online store."""
        return await look_up(self._store, self.builder, self._meters, user_id, session)

    def identify(self, asked: page_wire.ListRequest | page_wire.ScoreRequest, logged: bool) -> tuple[str, int]:
        page_wire.check_context(asked.context, self.schema)
        now_ms = self.maker.now_ms
        # The limit follows the newest event, so a slowly played log is in time; the clock replaces it until the first.
        newest_ms = min(self.newest_counted_ms or now_ms, now_ms)
        oldest_ms, why = _oldest_ms(newest_ms, logged, self.schema, self.settings)
        ts_ms = page_wire.check_time(asked.ts_ms, now_ms, MAX_AHEAD_MS, oldest_ms, why)
        return asked.request_id or self._new_id(), ts_ms


def _weights(page: Asked, arm: PageArm) -> dict[str, float]:
    """Of outcomes, where items are ordered by what they are worth; else none."""
    return (page.rerank.weights or {}) if arm.ranks else {}


def _oldest_ms(newest_ms: int, logged: bool, schema: Schema, s: Settings) -> tuple[int, str]:
    """Pages at or before this time are refused, and why. ``newest_ms``: of the events that were counted."""
    if not logged:
        minutes = max(schema.windows.minutes, default=DAY_MIN)
        longest = f"{minutes // DAY_MIN} days" if minutes % DAY_MIN == 0 else text_of(minutes)
        return newest_ms - minutes * MINUTE_MS, f"beyond the longest window ({longest}), whose counts are gone"
    wait_ms = round((s.attribution_minutes + s.lateness_minutes) * MINUTE_MS + s.disorder_seconds * 1000)
    return newest_ms - wait_ms, "too late for a label"
