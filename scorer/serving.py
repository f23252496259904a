# core
"""What a worker does for a request, without HTTP, Kafka or Redis: decode, look up, recall, rank, log, answer.

A request waits for the user's record, for the list that its cursor names, and for counts of another hour. From there to
its page it runs in one go on the event loop, so no change of the shelf or the model falls into it: those are made by
other callbacks of the same loop, between requests. A page is made by the one model that serves at that moment.

Until there are a model and items, ``/recommend`` answers from the shop's lists in Redis (:mod:`scorer.listpage`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace
from numpy.typing import NDArray

from millrace.contracts.clock import EventClock
from millrace.contracts.events import CONTROL, LOGGED, MODEL, SOURCES, Id
from millrace.contracts.hashing import mix, salt, value_hash
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.versions.versioning import Announcement
from millrace.windows.features import FeatureBuilder
from scorer import wire
from scorer.candidates import Neighbours, Recaller, Retrieval, Sources
from scorer.listpage import ListPages, not_ready
from scorer.lookup import Meters, Store, look_up
from scorer.pagelog import PageLog
from scorer.rank import Model, Ranked, Ranker, User
from scorer.ranked import Cursor, RankedList, RankedLists
from scorer.recall import ASKED, CONTROLLED, CandidateLists, largest, random_page
from scorer.shelf import ItemRows, Shelf
from scorer.wire import RequestError

_ARM = salt("scorer", "arm")
_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000

AskCounts = Callable[[ItemRows, int], Awaitable[NDArray[Any] | None]]
"""Counts of items at another time than now, from the whole index; None: they are not to be had."""


class _Asked(NamedTuple):
    """Who asks for a page, and when and where it will be shown."""

    request_id: str
    user: User
    user_id: Id
    ts_ms: int
    context: dict[str, Any]
    notes: list[str]
    explain: bool = False


class _Scored(NamedTuple):
    """Items with their features and scores, by one version."""

    note: Announcement
    rows: ItemRows  # (n,)
    found: Ranked
    shown: NDArray[np.float32]  # (n,) scores for a client: 0, the last rank, where the model gave no number


def arm_of(request_id: str, control_share: float) -> str:
    """The arm of a request: the same id always has the same one."""
    draw = int(mix(_ARM, np.array([value_hash(request_id)], np.uint64))[0]) / 2.0**64
    return CONTROL if draw < control_share else MODEL


class Serving:
    """One worker's share in a scorer.

    Args:
        store: the online store.
        send: takes the log of a page, and copies what it keeps; must not block. False: it has no room.
        meters: counts.
        wall: wall time in ms, for tracing and freshness.
        new_id: makes a request id that nobody has used.
        ask_counts: see :data:`AskCounts`; None: the shelf's counts serve for all times.

    Raises:
        SettingError: the setting ``recall`` is no list of shares.
    """

    def __init__(
        self,
        settings: Settings,
        schema: Schema,
        clock: EventClock,
        store: Store,
        send: Callable[[PageLog], bool | None],
        meters: Meters,
        wall: Callable[[], int],
        new_id: Callable[[], str],
        ask_counts: AskCounts | None = None,
    ) -> None:
        self.settings, self.schema, self.clock = settings, schema, clock
        self.builder = FeatureBuilder(schema)
        self.shelf = Shelf(self.builder)
        self.ranker = Ranker(self.builder, self.shelf, meters.error)
        self.recaller = Recaller(settings, self.ranker)
        self.lists = CandidateLists()
        self.retrieval: Retrieval | None = None
        """The retrieval version that recall looks with; None: there is none yet."""
        self.neighbours: Neighbours | None = None
        """What is clicked along with what; None: not known yet."""
        self.ranked = RankedLists(store, settings.list_seconds, wall, meters.error)
        self.note: Announcement | None = None
        self.model: Model | None = None
        self.heard_ms = 0  # newest event that the stream has counted; 0: none yet
        self.to_read: dict[str, int] = {}
        """What has to be read from Kafka before pages are ranked, and how many messages that are (-1: not known yet).
        """
        self._store, self._send, self._meters, self._wall, self._new_id = store, send, meters, wall, new_id
        self._ask_counts = ask_counts
        self._list_pages = ListPages(store, self.builder, meters)

    # -- changes, between two requests ------------------------------------------------------------------------

    def install(self, note: Announcement, model: Model) -> None:
        """Serves ``model``, of version ``note``, from now on."""
        self.note, self.model = note, model

    def withdraw(self) -> None:
        """Serves no model until one is installed: pages are made of the shop's lists meanwhile."""
        self.note = self.model = None

    # -- requests ---------------------------------------------------------------------------------------------

    def not_ready(self) -> str:
        """Why pages cannot be ranked yet; empty when they can."""
        if self.to_read:
            left = ", ".join(f"{what} ({n if n >= 0 else 'unknown'})" for what, n in self.to_read.copy().items())
            return f"no up-to-date state yet, messages to read: {left}; ask again in a moment"
        if self.model is None:
            return "no model yet; start the learner, or check MILLRACE_DATA, MILLRACE_STORE and the topic model.deltas"
        if not len(self.lists.living):
            return "no items yet; send the catalogue to the topic items"
        return ""

    async def recommend(self, body: bytes) -> wire.RecommendAnswer:
        """Answers POST /recommend.

        Raises:
            RequestError: the client did something wrong, or there is nothing to make a page of yet.
        """
        asked = wire.decode(body, wire.RecommendRequest)
        size = wire.check_recommend(asked, self.settings.page_limit)
        cursor = None if asked.cursor is None else Cursor.of(asked.cursor, self.settings.page_limit)
        request_id, ts_ms = self._identify(asked, logged=True)
        reason = self.not_ready()
        if reason:
            return await self._list_pages.page(asked.user_id, size, ts_ms, reason)
        user, notes = await look_up(self._store, self.builder, self._meters, asked.user_id)
        page = _Asked(request_id, user, asked.user_id, ts_ms, asked.context, notes, asked.explain)
        if cursor is not None:
            answer = await self._part(page, cursor, size)
            if answer is not None:
                return answer
        length = asked.length if cursor is None else cursor.length
        return await self._page(page, size, length if length is not None and length > size else None)

    async def _page(self, page: _Asked, size: int, length: int | None) -> wire.RecommendAnswer:
        """A page, or the first part of a list of ``length`` items."""
        most = length or size
        arm = arm_of(page.request_id, self.settings.control_share)
        seed = value_hash(page.request_id)
        if arm == CONTROL:
            rows = random_page(self.lists, most, np.random.default_rng(seed))
            rows = rows[self.shelf.alive[rows]]  # gone since the lists were made
            sources, retrieval = np.full(len(rows), CONTROLLED, np.uint8), -1
        else:
            there = Sources(self.lists, self.retrieval, self.neighbours)
            size_recalled = max(self.settings.candidates, most)
            rows, sources, retrieval = self.recaller.page(there, page.user, page.ts_ms, size_recalled, most, seed)
        scored = await self._score(page, rows)
        order = np.flatnonzero(self.shelf.alive[rows])  # one may have gone while counts were waited for
        if arm != CONTROL:
            order = order[largest(scored.shown[order], most)]
        codes = sources[order].tobytes()
        answer = self._hand_out(page, arm, scored, order[:size], codes[:size], retrieval)
        if length is None:
            return answer
        self._meters.part("first")
        shown = len(answer.items)
        if shown == len(order):  # a small shop: this part is the last
            return answer
        list_id = self._new_id()
        ids = self._ids(rows[order])
        kept = RankedList(page.request_id, page.user_id, arm, self._wall(), page.context, ids, codes, retrieval)
        await self.ranked.put(list_id, kept)
        return replace(answer, cursor=Cursor(list_id, shown, shown, length).text)

    async def _part(self, page: _Asked, cursor: Cursor, size: int) -> wire.RecommendAnswer | None:
        """The next part of a list. None: there is none, and ``page.notes`` say why.

        Raises:
            RequestError: the list is another user's.
        """
        kept = await self.ranked.get(cursor.list_id)
        if kept is None:
            page.notes.append("the cursor's list is no longer kept: a new one from its beginning")
            self._meters.part("anew")
            return None
        if str(kept.user_id) != str(page.user_id):
            raise RequestError(
                f"cursor {cursor.text!r} was made for another user than {page.user_id!r}", "ask without a cursor"
            )
        rows = self.shelf.rows_of(kept.items[cursor.at :])
        left = np.flatnonzero(rows >= 0)
        left = left[self.shelf.alive[rows[left]]][:size]  # without those that are gone
        if not len(left):
            page.notes.append("nothing of the cursor's list is left: a new one from its beginning")
            self._meters.part("anew")
            return None
        mark = f"{value_hash(self._new_id()) & 0xFFFF:04x}"
        part = page._replace(request_id=f"{kept.request_id}.{cursor.slot}.{mark}", context=page.context or kept.context)
        scored = await self._score(part, rows[left])
        order = np.flatnonzero(self.shelf.alive[rows[left]])  # one may have gone while counts were waited for
        sources = kept.sources_of(cursor.at + left[order])
        answer = self._hand_out(part, kept.arm, scored, order, sources, kept.retrieval, cursor.slot)
        self._meters.part("next")
        at, slot = cursor.at + int(left[-1]) + 1, cursor.slot + len(order)
        if at == len(kept.items):
            return answer
        return replace(answer, cursor=Cursor(cursor.list_id, at, slot, cursor.length).text)

    async def score(self, body: bytes) -> wire.ScoreAnswer:
        """Answers POST /score.

        Raises:
            RequestError: the client did something wrong, or there is no model or no item yet.
        """
        return await self.score_items(wire.decode(body, wire.ScoreRequest))

    async def score_items(self, asked: wire.ScoreRequest) -> wire.ScoreAnswer:
        """The answer to a request that :func:`scorer.wire.decode` gave. Raises RequestError as :meth:`score` does."""
        wire.check_items(asked.items)
        request_id, ts_ms = self._identify(asked, asked.log)
        reason = self.not_ready()
        if reason:
            raise not_ready(reason)
        user, notes = await look_up(self._store, self.builder, self._meters, asked.user_id)
        page = _Asked(request_id, user, asked.user_id, ts_ms, asked.context, notes)
        rows = self.shelf.rows_of(asked.items)
        known = np.flatnonzero(rows >= 0)
        unknown = [asked.items[i] for i in np.flatnonzero(rows < 0).tolist()]
        scores: list[float | None] = [None] * len(rows)
        if unknown:
            logged = ", so the page is not logged: send no events about it" if asked.log else ""
            notes.append(f"{len(unknown)} of {len(rows)} items are not in the catalogue{logged}")
        if not len(known):
            version = self.note.version if self.note else -1
            return wire.ScoreAnswer(None if asked.log else request_id, version, scores, unknown, notes)
        scored = await self._score(page, rows[known])
        for i, value in zip(known.tolist(), scored.shown.tolist(), strict=True):
            scores[i] = value
        if asked.log and not unknown:
            sources = bytes([ASKED]) * len(rows)
            self._log(page, LOGGED, scored, np.arange(len(rows)), list(asked.items), sources, asked.offset)
        named = None if asked.log and unknown else request_id
        return wire.ScoreAnswer(named, scored.note.version, scores, unknown, notes)

    # -- within -----------------------------------------------------------------------------------------------

    def _identify(self, asked: wire.RecommendRequest | wire.ScoreRequest, logged: bool) -> tuple[str, int]:
        wire.check_context(asked.context, self.schema)
        now_ms = self.clock.at(self._wall())
        ahead_ms = round(self.settings.ahead_minutes * _MINUTE_MS)
        ts_ms = wire.check_time(asked.ts_ms, now_ms, ahead_ms, *self._oldest_ms(now_ms, logged))
        return asked.request_id or self._new_id(), ts_ms

    def _oldest_ms(self, now_ms: int, logged: bool) -> tuple[int, str]:
        """A page at this time or before is refused, and why. Times follow the newest event: a log that is played slower
        than the clock runs is in time. Until an event is known, the clock stands for it."""
        newest_ms, s = min(self.heard_ms, now_ms) if self.heard_ms else now_ms, self.settings
        if not logged:
            days = max(self.schema.windows.days, default=1)
            return newest_ms - days * _DAY_MS, f"beyond the longest window ({days} days), whose counts are gone"
        wait_ms = round((s.attribution_minutes + s.lateness_minutes) * _MINUTE_MS + s.disorder_seconds * 1000)
        return newest_ms - wait_ms, "too late for a label"

    async def _score(self, page: _Asked, rows: ItemRows) -> _Scored:
        """Features and scores of the items at ``rows``, by the model that serves now. Nothing waits after this."""
        counts = await self._counts(page, rows)
        note, model = self.note, self.model
        if note is None or model is None:  # withdrawn while the request waited
            raise not_ready(self.not_ready())
        found = self.ranker.rank(page.user, rows, page.ts_ms, page.context, model, counts)
        finite = np.isfinite(found.scores)
        if finite.all():
            return _Scored(note, rows, found, found.scores)
        self._meters.error("scores")
        return _Scored(note, rows, found, np.where(finite, found.scores, np.float32(0)))

    async def _counts(self, page: _Asked, rows: ItemRows) -> NDArray[Any] | None:
        """Counts of the items for a page of another hour than this one; None: those of the shelf."""
        if self._ask_counts is None or abs(page.ts_ms - self.clock.at(self._wall())) <= _HOUR_MS or not len(rows):
            return None
        counts = await self._ask_counts(rows, page.ts_ms)
        if counts is None:
            page.notes.append("counts of items are as of now, not of ts_ms: the whole index did not answer")
        return counts

    def _ids(self, rows: ItemRows) -> list[Id]:
        ids = self.shelf.ids
        return [ids[row] for row in rows.tolist()]

    def _hand_out(
        self,
        page: _Asked,
        arm: str,
        scored: _Scored,
        order: NDArray[np.intp],
        sources: bytes,
        retrieval: int,
        offset: int = 0,
    ) -> wire.RecommendAnswer:
        """Logs and answers the items ``order`` (positions in ``scored``), which recall found in ``sources`` by the
        version ``retrieval``; the first one has the slot ``offset``."""
        ids = self._ids(scored.rows[order])
        self._log(page, arm, scored, order, ids, sources, offset)
        self._meters.items(sources)
        shown = scored.shown[order].tolist()
        told = retrieval if page.explain else UNSET
        where = ([SOURCES[code] for code in sources],) if page.explain else ()
        items = list(map(wire.PlacedItem, ids, range(len(ids)), shown, *where))
        version = scored.note.version
        return wire.RecommendAnswer(
            page.request_id, version, arm, page.ts_ms, items, page.notes, offset, retrieval_version=told
        )

    def _log(
        self,
        page: _Asked,
        arm: str,
        scored: _Scored,
        order: NDArray[np.intp],
        ids: list[Id],
        sources: bytes,
        offset: int,
    ) -> None:
        """Hands the log of a page over. The page is worth more than its log; a loss is counted."""
        found, ts_ms = scored.found, page.ts_ms
        placed = self.ranker.placed(found, order, page.user, scored.rows, ts_ms, page.context, offset)
        log = PageLog(
            request_id=page.request_id,
            ts_ms=ts_ms,
            user_id=page.user_id,
            arm=arm,
            model_version=scored.note.version,
            schema_id=self.schema.id,
            items=ids,
            scores=found.scores[order],
            keys=placed.keys,
            cat=placed.cat,
            num=placed.num,
            served_ms=self._wall(),
            offset=offset,
            sources=sources,
        )
        try:
            if self._send(log) is False:
                page.notes.append("nothing is learnt from this page: its log is full")
        except Exception as error:
            self._meters.error("impressions")
            page.notes.append(f"nothing is learnt from this page: {str(error) or type(error).__name__}")
