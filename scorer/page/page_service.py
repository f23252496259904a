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

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MIN, MINUTE_MS, text_of
from millrace.basics.hashing import value_hash
from millrace.contracts.clock import MAX_AHEAD_MS, EventClock
from millrace.contracts.events import LOGGED, Id, PageLog
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from scorer.catalog.itemtable import ItemRows
from scorer.page import page_wire
from scorer.page.candidates import Recalled, Sources
from scorer.page.held import WorkerState
from scorer.page.listpage import ListPages, not_ready
from scorer.page.page_arms import PageArm, PageArms
from scorer.page.page_filters import ItemFilters
from scorer.page.page_wire import RequestError
from scorer.page.pagemaker import AskCounts, Asked, PageMaker, Scored
from scorer.page.ranked import LIST_SECONDS, Cursor, RankedList, RankedLists
from scorer.recall.candidate_lists import (
    ASKED,
    CONTROLLED,
    HOT,
    RANDOM,
    Allowed,
    largest,
    popular_page,
    random_page,
)
from scorer.users.userrecord import KnownUser, Meters, UserStore, look_up

PAGE_LIMIT = 600  # items of an answer, or of a ranked list
FILTERED = "f-"
"""Prefix of the ids of lists with filters, so a cursor shows that its expired list had some."""


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
        self.arms, self._secret = PageArms(settings, self.ranker), secret
        self.filters = ItemFilters(self.ranker)
        self.ranked = RankedLists(store, LIST_SECONDS, wall, meters.error)
        self._list_pages = ListPages(store, self.builder, meters, self.filters.passing)

    # -- requests ---------------------------------------------------------------------------------------------

    async def recommend(self, body: bytes) -> page_wire.RecommendAnswer:
        """Answers POST /recommend. Raises RequestError: an invalid request, or no source for a page."""
        asked = page_wire.decode(body, page_wire.RecommendRequest)
        size = page_wire.check_recommend(asked, PAGE_LIMIT)
        cursor = None if asked.cursor is None else Cursor.of(asked.cursor, PAGE_LIMIT)
        filters = self.filters.of(asked)
        request_id, ts_ms = self.identify(asked, logged=True)
        arm = self.arms.of(asked.user_id)
        reason = self.not_ready(arm.learner)
        if reason:
            if cursor is not None and cursor.list_id.startswith(FILTERED):
                raise not_ready(f"no part of a list with filters yet, since there is {reason}")
            return await self._list_pages.page(asked.user_id, size, ts_ms, reason, filters, asked.session)
        user, notes = await self.user_of(asked.user_id, asked.session)
        page = Asked(request_id, user, asked.user_id, ts_ms, asked.context, notes, asked.explain, filters)
        if cursor is not None:
            answer = await self._part(page, cursor, size)
            if not isinstance(answer, Asked):
                return answer
            page = answer
        length = asked.length if cursor is None else cursor.length
        return await self._page(page, arm, size, length if length is not None and length > size else None)

    async def _page(self, page: Asked, arm: PageArm, size: int, length: int | None) -> page_wire.RecommendAnswer:
        """A page, or the first part of a list of ``length`` items."""
        most = length or size
        seed = value_hash(page.request_id)
        allowed = self.allowed(page)
        if allowed is not None and not len(allowed.rows):
            return self._empty(page, arm)
        among, there = None, len(self.lists.living if allowed is None else allowed.rows)
        if arm.ranks:
            rows, sources, retrieval = self._recalled(page, arm, most, seed, allowed)
        else:
            if self.schema.among:  # a number among candidates means the same on all pages
                among = await self.maker.set_of(page, self._recalled(page, arm, most, seed, allowed).rows)
            rows = self._unranked(page, arm, size, most, seed, allowed)
            sources, retrieval = np.full(len(rows), CONTROLLED if arm.kind == "random" else HOT, np.uint8), -1
        scored = await self.maker.score(page, rows, among, arm.learner)
        order = np.flatnonzero(self.passing(page)[rows])  # one may have gone while counts were waited for
        order, odds = self._ordered(page, arm, scored, order, size, most, seed, there)
        shown, rest = order[:size], order[size:]
        ids, codes = self.maker.ids(rows[rest]), sources[rest].tobytes()
        if page.filters is not None and page.filters.caps and allowed is not None:
            first = self.filters.fitting(page.filters, rows[order], size)
            rest = np.delete(order, first)[: most - len(first)]
            ids, codes, shown = self.maker.ids(rows[rest]), sources[rest].tobytes(), order[first]
            scored, shown, sources = await self._filled_up(page, arm, scored, shown, sources, size, seed)
        if page.filters is not None:
            if not len(shown):
                return self._empty(page, arm)
            self._meters.filtered("full" if len(shown) == size else "short")
        first_codes = sources[shown].tobytes()
        answer = self.maker.hand_out(page, arm, scored, shown, first_codes, retrieval, odds=odds[: 4 * len(shown)])
        if length is None:
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
            items=[*self.maker.ids(scored.rows[shown]), *ids],
            sources=first_codes + codes,
            retrieval=retrieval,
            filters=page.filters,
            among=scored.found.among.tobytes(),
            odds=odds,
        )
        return await self._to_be_continued(answer, kept, len(shown), len(shown), length)

    def _ordered(
        self,
        page: Asked,
        arm: PageArm,
        scored: Scored,
        order: NDArray[np.intp],
        size: int,
        most: int,
        seed: int,
        there: int,
    ) -> tuple[NDArray[np.intp], bytes]:
        """The candidates ``order`` as the page has them, and the odds of each in its slot; none where they are not
        known, as under caps, which move what was drawn. A random page was drawn of so many items as were ``there``."""
        if not arm.ranks:
            if arm.exploration is None or page.capped or len(order) < min(most, there):
                return order, b""
            odds = 1 / (there - np.arange(len(order))) if arm.kind == "random" else np.ones(len(order))
            return order, odds.astype(np.float32).tobytes()
        if arm.exploration is None or page.capped:
            return order[largest(scored.shown[order], len(order) if page.capped else most)], b""
        order = order[largest(scored.shown[order], len(order))]
        drawn = arm.exploration.draw(scored.shown[order], size, most, np.random.default_rng((self._secret, seed)))
        return order[drawn.order], drawn.odds.tobytes()

    def _recalled(self, page: Asked, arm: PageArm, most: int, seed: int, allowed: Allowed | None) -> Recalled:
        """The candidates of a model's page."""
        there = Sources(self.lists, self.of(arm.learner).retrieval, self.neighbours)
        size = max(arm.candidates, most)
        return arm.recaller.page(there, page.user, page.ts_ms, size, most, seed, allowed)

    def _unranked(
        self, page: Asked, arm: PageArm, size: int, most: int, seed: int, allowed: Allowed | None
    ) -> ItemRows:
        """A page that the model does not order, and the rest of its list."""
        capped = allowed is not None and page.capped
        drawn = len(allowed.rows) if allowed is not None and capped else most
        if arm.kind == "random":
            rows = random_page(self.lists, drawn, np.random.default_rng(seed), allowed)
        else:
            rows = popular_page(self.lists, drawn, allowed, self.items.rows.born_ms, self.heat)
        rows = rows[self.items.alive[rows]]  # gone since the lists were made
        if page.filters is not None and capped:
            first = self.filters.fitting(page.filters, rows, size)
            rows = np.concatenate([rows[first], np.delete(rows, first)])[:most]
        return rows

    async def _filled_up(
        self,
        page: Asked,
        arm: PageArm,
        scored: Scored,
        shown: NDArray[np.intp],
        sources: NDArray[np.uint8],
        size: int,
        seed: int,
    ) -> tuple[Scored, NDArray[np.intp], NDArray[np.uint8]]:
        """Completes a page on which too few candidates fit under the caps: scores, order and sources with other items.
        Unchanged if it is full or nothing else fits."""
        filters, allowed = page.filters, self.allowed(page)  # again: counts may have been waited for
        if filters is None or allowed is None or len(shown) == size:
            return scored, shown, sources
        taken, hot = scored.rows[shown], self.lists.hot
        more = self.filters.fillers(filters, allowed, scored.rows, taken, hot, size, seed)
        if not len(more):
            return scored, shown, sources
        of_more = CONTROLLED if arm.kind == "random" else np.where(np.isin(more, hot), HOT, RANDOM)
        sources = np.concatenate([sources[shown], np.broadcast_to(of_more, len(more))]).astype(np.uint8)
        scored = await self.maker.score(page, np.concatenate([taken, more]), scored.found.among, arm.learner)
        left = np.flatnonzero(self.passing(page)[scored.rows])
        if arm.ranks:
            left = left[largest(scored.shown[left], len(left))]
        return scored, left[self.filters.fitting(filters, scored.rows[left], size)], sources

    async def _part(self, page: Asked, cursor: Cursor, size: int) -> page_wire.RecommendAnswer | Asked:
        """The next part of a list. For an expired list: how to make a new one, with a note that says why. Raises
        RequestError when the list is another user's, or when an expired list had filters, which are lost."""
        kept = await self.ranked.get(cursor.list_id)
        if kept is None:
            if cursor.list_id.startswith(FILTERED):
                problem = f"cursor {cursor.text!r} is of a list that is no longer kept, nor are its filters"
                raise RequestError(problem, "ask for a new list with the filters", 410)
            page.notes.append("the cursor's list is no longer kept: a new one from its beginning")
            self._meters.part("remade")
            return page
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
            page.notes.append("nothing of the cursor's list is left: a new one from its beginning")
            self._meters.part("remade")
            return page
        mark = f"{value_hash(self._new_id()) & 0xFFFF:04x}"
        part = page._replace(request_id=f"{kept.request_id}.{cursor.slot}.{mark}", context=page.context or kept.context)
        scored = await self.maker.score(part, rows[left], kept.set_of(len(self.schema.among)), arm.learner)
        order = np.flatnonzero(self.passing(part)[rows[left]])  # one may have gone while counts were waited for
        if kept.filters is not None and kept.filters.caps:  # or may be of another kind by now
            order = order[self.filters.fitting(kept.filters, rows[left[order]], size)]
        sources = kept.sources_of(cursor.at + left[order])
        odds = kept.odds_of(cursor.at + left[order])
        answer = self.maker.hand_out(part, arm, scored, order, sources, kept.retrieval, cursor.slot, odds)
        self._meters.part("next")
        slot = cursor.slot + len(order)
        if page.capped:  # what did not fit on this part comes later
            if not len(later):
                return answer
            places = np.concatenate([np.arange(cursor.at), cursor.at + left, cursor.at + later])
            return await self._to_be_continued(answer, kept.of(places), cursor.at + len(left), slot, cursor.length)
        at = cursor.at + int(left[-1]) + 1
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
            self.maker.log(page, LOGGED, scored, np.arange(len(rows)), list(asked.items), sources, asked.offset)
        named = None if asked.log and unknown else request_id
        return page_wire.ScoreAnswer(named, scored.note.version, scores, unknown, notes)

    async def user_of(self, user_id: Id, session: Id | None = None) -> tuple[KnownUser, list[str]]:
        """:func:`look_up` in the online store."""
        return await look_up(self._store, self.builder, self._meters, user_id, session)

    def identify(self, asked: page_wire.ListRequest | page_wire.ScoreRequest, logged: bool) -> tuple[str, int]:
        page_wire.check_context(asked.context, self.schema)
        now_ms = self.maker.now_ms
        ts_ms = page_wire.check_time(asked.ts_ms, now_ms, MAX_AHEAD_MS, *self._oldest_ms(now_ms, logged))
        return asked.request_id or self._new_id(), ts_ms

    def _oldest_ms(self, now_ms: int, logged: bool) -> tuple[int, str]:
        """Pages at or before this time are refused, and why. The limit follows the newest event, so a slowly played log
        is in time; the clock replaces it until the first event."""
        newest_ms, s = min(self.newest_counted_ms, now_ms) if self.newest_counted_ms else now_ms, self.settings
        if not logged:
            minutes = max(self.schema.windows.minutes, default=DAY_MIN)
            longest = f"{minutes // DAY_MIN} days" if minutes % DAY_MIN == 0 else text_of(minutes)
            return newest_ms - minutes * MINUTE_MS, f"beyond the longest window ({longest}), whose counts are gone"
        wait_ms = round((s.attribution_minutes + s.lateness_minutes) * MINUTE_MS + s.disorder_seconds * 1000)
        return newest_ms - wait_ms, "too late for a label"
