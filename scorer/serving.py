# core
"""What the scorer does for a request, without HTTP, Kafka or Redis: decode, look up, recall, rank, log, answer.

A request waits for one thing, the user's record. From there to its answer it runs in one go on the event loop, so no
change of the index or the model falls into it: those are made by other callbacks of the same loop, between requests.

Until there are a model and items, ``/recommend`` answers from the shop's lists in Redis (:mod:`scorer.listpage`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.clock import EventClock
from millrace.contracts.errors import StoreError
from millrace.contracts.events import CONTROL, LOGGED, MODEL, Id, Impression
from millrace.contracts.hashing import mix, salt, value_hash
from millrace.contracts.intake import Intake
from millrace.contracts.online import HOT, NEW
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.versions.image import Image
from millrace.versions.versioning import Announcement
from millrace.windows.features import FeatureBuilder
from millrace.windows.likings import taste_keys
from scorer import wire
from scorer.index import ItemIndex, ItemRows
from scorer.listpage import LISTS, liked_lists, mixed
from scorer.rank import Features, Ranker, User
from scorer.recall import CandidateLists, largest, make_lists, random_page, recall
from scorer.wire import RequestError

_ARM = salt("scorer", "arm")
INDEX_TOPICS = frozenset({"items", "item counts"})
"""What has to be read for the index, as :attr:`Serving.to_read` names it."""


class Store(Protocol):
    """Where users and the shop's lists are looked up; None: it is away. See :class:`scorer.store.OnlineReader`."""

    async def record(self, user_id: Id) -> dict[bytes, bytes] | None: ...

    async def list_keys(self) -> list[str] | None: ...

    async def lists(self, names: Sequence[str]) -> list[list[str]] | None: ...


class Model(Protocol):
    """A model that scores and can be patched; see :class:`learner.model.ServingModel`."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def patch(self, delta: Image) -> None: ...


class Meters(Protocol):
    """Where it is counted; see :class:`scorer.meters.ScorerMeters`."""

    def error(self, what: str) -> None: ...

    def served(self, version: int, deltas: int, origins_ms: Sequence[int], now_ms: int) -> None: ...

    def unknown_user(self) -> None: ...

    def list_page(self) -> None: ...


def arm_of(request_id: str, control_share: float) -> str:
    """The arm of a request: the same id always has the same one."""
    draw = int(mix(_ARM, np.array([value_hash(request_id)], np.uint64))[0]) / 2.0**64
    return CONTROL if draw < control_share else MODEL


def _not_ready(reason: str) -> RequestError:
    problem, remedy = reason.split("; ", 1)
    return RequestError(problem, remedy, 503)


class Serving:
    """One scorer.

    Args:
        store: the online store.
        send: takes an impression for the topic ``impressions``; must not block.
        meters: counts.
        wall: wall time in ms, for tracing and freshness.
        new_id: makes a request id that nobody has used.
    """

    def __init__(
        self,
        settings: Settings,
        schema: Schema,
        clock: EventClock,
        store: Store,
        send: Callable[[Impression], None],
        meters: Meters,
        wall: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self.settings, self.schema, self.clock = settings, schema, clock
        self.builder, self.intake = FeatureBuilder(schema), Intake(schema)
        self.index = ItemIndex(self.builder)
        self.ranker = Ranker(self.builder, self.index, meters.error)
        self.lists = CandidateLists()
        self.note: Announcement | None = None
        self.model: Model | None = None
        self.heard_ms = 0  # newest event that the stream has counted; 0: none yet
        self.to_read: dict[str, int] = {}
        """What has to be read from Kafka before pages are ranked, and how many messages that are (-1: not known yet).
        The feeds fill it in."""
        self._store, self._send, self._meters, self._wall, self._new_id = store, send, meters, wall, new_id
        self._grouped_by = {
            name
            for k in taste_keys(self.builder)
            for name in schema.windows.keys[k].columns
            if name in self.builder.needs("item")
        }

    # -- changes, between two requests ------------------------------------------------------------------------

    def install(self, note: Announcement, model: Model, deltas: int, origins_ms: Sequence[int]) -> None:
        """Serves ``model``, of version ``note``, from now on. ``deltas`` were applied to it after its snapshot."""
        self.note, self.model = note, model
        self._meters.served(note.version, deltas, origins_ms, self._wall())

    def patch(self, note: Announcement, delta: Image, origins_ms: Sequence[int]) -> None:
        """Applies the delta ``note`` to the model served. The caller has checked that it follows and fits."""
        if self.model is None:
            raise RuntimeError("no model to patch")
        self.model.patch(delta)
        self.note = note
        self._meters.served(note.version, 1, origins_ms, self._wall())

    def withdraw(self) -> None:
        """Serves no model until one is installed: pages are made of the shop's lists meanwhile."""
        self.note = self.model = None

    def refresh_hot(self) -> bool:
        """Brings the hotness of a bounded slice of the index up to date; whether more of it has to wait."""
        return self.index.refresh_hot(self.clock.at(self._wall())) > 0

    def sorting(self) -> Callable[[], CandidateLists]:
        """What sorts recall's lists anew, from a copy of the index: any thread may call it. The result becomes
        ``lists``."""
        index = self.index
        columns = index.copies(self._grouped_by)
        rest = index.alive.copy(), index.born_ms.copy(), index.clicks_a_day.copy()
        return lambda: make_lists(self.builder, columns, *rest)

    @property
    def index_complete(self) -> bool:
        """Whether items and their counts have been read as far as they went when this scorer began."""
        return not self.to_read.keys() & INDEX_TOPICS

    @property
    def newest_ms(self) -> int | None:
        """Time of the newest exposure that the serving model has learnt from. None: it has learnt from none, which has
        no age."""
        return self.note.event_ms if self.note is not None and self.note.event_ms > 0 else None

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
        size = wire.check_size(asked.size, self.settings.page_limit)
        request_id, ts_ms = self._identify(asked, logged=True)
        reason = self.not_ready()
        if reason:
            return await self._from_lists(asked.user_id, size, ts_ms, reason)
        user, notes = await self._look_up(asked.user_id)
        arm = arm_of(request_id, self.settings.control_share)
        generator = np.random.default_rng(value_hash(request_id))
        lists = self.lists
        if arm == CONTROL:
            rows = random_page(lists, size, generator)
        else:
            liked = self.ranker.likings(lists.groups, user, ts_ms)
            rows = recall(lists, max(self.settings.candidates, size), generator, liked)
        rows = rows[self.index.alive[rows]]  # gone since the lists were made
        features, scores = self._score(user, rows, ts_ms, asked.context)
        shown = _numbers(scores)
        order = np.arange(len(rows)) if arm == CONTROL else largest(shown, size)
        page = self.ranker.placed(features, order, user, rows, ts_ms, asked.context)
        ids = [self.index.ids[row] for row in rows[order].tolist()]
        version = self._log(request_id, ts_ms, asked.user_id, arm, ids, scores[order], page, notes)
        placed = [wire.PlacedItem(i, p, s) for p, (i, s) in enumerate(zip(ids, shown[order].tolist(), strict=True))]
        return wire.RecommendAnswer(request_id, version, arm, ts_ms, placed, notes)

    async def score(self, body: bytes) -> wire.ScoreAnswer:
        """Answers POST /score.

        Raises:
            RequestError: the client did something wrong, or there is no model or no item yet.
        """
        asked = wire.decode(body, wire.ScoreRequest)
        wire.check_items(asked.items)
        request_id, ts_ms = self._identify(asked, asked.log)
        reason = self.not_ready()
        if reason:
            raise _not_ready(reason)
        user, _ = await self._look_up(asked.user_id)
        rows = self.index.rows_of(asked.items)
        known = np.flatnonzero(rows >= 0)
        unknown = [asked.items[i] for i in np.flatnonzero(rows < 0).tolist()]
        if not len(known):
            raise RequestError(
                f"no item of {unknown[:3]}{'…' if len(unknown) > 3 else ''} is in the catalogue",
                "send them to the topic items first",
                404,
            )
        features, scores = self._score(user, rows[known], ts_ms, asked.context)
        version = self.note.version if self.note else -1
        if asked.log:
            if unknown:
                raise RequestError(
                    f"a page with the unknown item {unknown[0]!r} cannot be logged", "leave out 'log', or the item"
                )
            page = self.ranker.placed(features, np.arange(len(rows)), user, rows, ts_ms, asked.context, asked.offset)
            self._log(request_id, ts_ms, asked.user_id, LOGGED, list(asked.items), scores, page, [])
        answer: list[float | None] = [None] * len(rows)
        for i, value in zip(known.tolist(), _numbers(scores).tolist(), strict=True):
            answer[i] = value
        return wire.ScoreAnswer(request_id, version, answer, unknown)

    # -- within -----------------------------------------------------------------------------------------------

    def _identify(self, asked: wire.RecommendRequest | wire.ScoreRequest, logged: bool) -> tuple[str, int]:
        wire.check_context(asked.context, self.schema)
        now_ms = self.clock.at(self._wall())
        oldest_ms = self._oldest_ms(now_ms) if logged else None
        ts_ms = wire.check_time(asked.ts_ms, now_ms, round(self.settings.ahead_minutes * 60_000), oldest_ms)
        return asked.request_id or self._new_id(), ts_ms

    def _oldest_ms(self, now_ms: int) -> int:
        """An exposure at this time or before is late for the label join, whose watermark follows the newest event: a
        log that is played slower than the clock runs is in time. Until an event is known, the clock stands for it."""
        s = self.settings
        newest_ms = min(self.heard_ms, now_ms) if self.heard_ms else now_ms
        return newest_ms - round((s.attribution_minutes + s.lateness_minutes) * 60_000 + s.disorder_seconds * 1000)

    async def _from_lists(self, user_id: Id, size: int, ts_ms: int, reason: str) -> wire.RecommendAnswer:
        """A page of the shop's lists, in the time before this scorer can make one of its own.

        No impression is logged, so the answer has no request id: events that named it would find nothing to join.

        Raises:
            RequestError: 503, with the ``reason``: there are no lists, or the store is away.
        """
        listed = await self._store.list_keys()
        if not listed:
            raise _not_ready(reason)
        user, notes = await self._look_up(user_id)
        liked = self._liked_lists(user, listed, ts_ms)
        found = await self._store.lists([HOT, *liked, NEW])
        items = mixed(size, found[0], found[1:-1], found[-1]) if found else []
        if not items:
            raise _not_ready(reason)
        self._meters.list_page()
        made = f"made of the shop's lists, since there is {reason.split(';')[0]}: report no events of this page"
        placed = [wire.PlacedItem(item, position, None) for position, item in enumerate(items)]
        return wire.RecommendAnswer(None, -1, LISTS, ts_ms, placed, [made, *notes])

    def _liked_lists(self, user: User, listed: Sequence[str], ts_ms: int) -> list[str]:
        try:
            return liked_lists(self.builder, listed, user.columns, user.tiles, ts_ms)
        except StoreError:  # the page goes without this user's likings
            self._meters.error("tiles")
            return []

    async def _look_up(self, user_id: Id) -> tuple[User, list[str]]:
        record = await self._store.record(user_id)
        user = User.of(self.builder, user_id, record or {})
        if user.damaged:
            self._meters.error("profile")
            return user, [f"the stored profile of user {user_id!r} is damaged: served without it"]
        if record is None:
            return user, ["the online store is away: served as a new user"]
        if not user.known:
            self._meters.unknown_user()
            return user, [f"user {user_id!r} is unknown: served as a new user"]
        return user, []

    def _score(
        self, user: User, rows: ItemRows, ts_ms: int, context: dict[str, Any]
    ) -> tuple[Features, NDArray[np.float32]]:
        """Features and scores of rows. A score may be no number: it is logged so, for the figures to count it."""
        assert self.model is not None
        features = self.ranker.features(user, rows, ts_ms, context)
        scores = self.model.score(features.cat, features.num)
        if not np.isfinite(scores).all():
            self._meters.error("scores")
        return features, scores

    def _log(
        self,
        request_id: str,
        ts_ms: int,
        user_id: Id,
        arm: str,
        ids: list[Id],
        scores: NDArray[np.float32],
        page: Features,
        notes: list[str],
    ) -> int:
        """Hands the impression to the producer; returns the version that made the page."""
        assert self.note is not None
        impression = Impression(
            request_id=request_id,
            ts_ms=ts_ms,
            user_id=user_id,
            arm=arm,
            model_version=self.note.version,
            schema_id=self.schema.id,
            items=ids,
            scores=scores.astype("<f4").tobytes(),
            keys=page.keys.astype("<u8").tobytes(),
            cat=page.cat.astype("<i8").tobytes(),
            num=page.num.astype("<f4").tobytes(),
            served_ms=self._wall(),
        )
        try:
            self._send(impression)
        except Exception as error:  # the page is worth more than its log; the loss is counted
            self._meters.error("impressions")
            notes.append(f"nothing is learnt from this page: {str(error) or type(error).__name__}")
        return self.note.version


def _numbers(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores for a client: 0, the last rank, where the model gave no number. (n,)"""
    return np.where(np.isfinite(scores), scores, np.float32(0))
