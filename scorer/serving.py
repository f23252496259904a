"""What the scorer does for a request, without HTTP, Kafka or Redis: decode, look up, recall, rank, log, answer.

A request waits for one thing, the user's record. From there to its answer it runs in one go on the event loop, so no
change of the index or the model falls into it: those are made by other callbacks of the same loop, between requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.clock import EventClock
from millrace.contracts.events import Id, Impression
from millrace.contracts.hashing import mix, salt, value_hash
from millrace.contracts.intake import Intake
from millrace.contracts.modelstore import Announcement, Image
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.windows.features import FeatureBuilder
from scorer import wire
from scorer.index import ItemIndex
from scorer.rank import Features, Ranker, User
from scorer.recall import Lists, largest, make_lists, random_page, recall, taste_keys
from scorer.wire import RequestError

Rows = NDArray[np.intp]

_ARM = salt("scorer", "arm")
MODEL, CONTROL = "model", "control"


class Store(Protocol):
    """Where users are looked up; None: the store is away."""

    async def record(self, user_id: Id) -> dict[bytes, bytes] | None: ...


class Model(Protocol):
    """A model that scores and can be patched; see :class:`learner.model.ServingModel`."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def patch(self, delta: Image) -> None: ...


class Meters(Protocol):
    """Where it is counted; see :class:`scorer.figures.Figures`."""

    def error(self, what: str) -> None: ...

    def served(self, version: int, deltas: int, origins_ms: Sequence[int], now_ms: int) -> None: ...

    def unknown_user(self) -> None: ...


def arm_of(request_id: str, control_share: float) -> str:
    """The arm of a request: the same id always has the same one."""
    draw = int(mix(_ARM, np.array([value_hash(request_id)], np.uint64))[0]) / 2.0**64
    return CONTROL if draw < control_share else MODEL


class Serving:
    """One scorer.

    Args:
        store: the online store.
        send: takes an impression for the topic ``impressions``; must not block.
        meters: counts.
        wall: wall time in ms, for tracing and freshness.
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
    ) -> None:
        self.settings, self.schema, self.clock = settings, schema, clock
        self.builder, self.intake = FeatureBuilder(schema), Intake(schema)
        self.index = ItemIndex(self.builder)
        self.ranker = Ranker(self.builder, self.index, meters.error)
        self.lists = Lists()
        self.note: Announcement | None = None
        self.model: Model | None = None
        self.heard_ms = 0  # newest event that the stream has counted; 0: none yet
        self._store, self._send, self._meters, self._wall = store, send, meters, wall
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

    def patch(self, note: Announcement, delta: Image) -> None:
        """Applies the delta ``note`` to the model served. The caller has checked that it follows."""
        if self.model is None:
            raise RuntimeError("no model to patch")
        self.model.patch(delta)
        self.note = note
        self._meters.served(note.version, 1, note.origins, self._wall())

    async def refresh_lists(self) -> None:
        """Sorts recall's lists anew: hotness in bounded slices on the loop, the sorting in a thread."""
        index, now_ms = self.index, self.clock.at(self._wall())
        while index.refresh_hot(now_ms):
            await asyncio.sleep(0)
        columns = index.copies(self._grouped_by)
        rest = index.alive.copy(), index.born_ms.copy(), index.clicks_a_day.copy()
        self.lists = await asyncio.to_thread(make_lists, self.builder, columns, *rest)

    # -- requests ---------------------------------------------------------------------------------------------

    def not_ready(self) -> str:
        """Why requests cannot be answered yet; empty when they can."""
        if self.model is None:
            return "no model yet; start the learner, or check MILLRACE_DATA and the topic model.deltas"
        if not len(self.lists.living):
            return "no items yet; send the catalogue to the topic items"
        return ""

    async def recommend(self, body: bytes) -> wire.Page:
        """Answers POST /recommend. Raises RequestError for what the client did wrong."""
        asked = wire.decode(body, wire.Recommend)
        size = wire.check_size(asked.size, self.settings.page_limit)
        request_id, ts_ms = self._identify(asked, logged=True)
        self._check_ready()
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
        order = np.arange(len(rows)) if arm == CONTROL else largest(scores, size)
        page = self.ranker.placed(features, order, user, rows, ts_ms, asked.context)
        ids = [self.index.ids[row] for row in rows[order].tolist()]
        version = self._log(request_id, ts_ms, asked.user_id, arm, ids, scores[order], page, notes)
        placed = [wire.Placed(i, p, s) for p, (i, s) in enumerate(zip(ids, scores[order].tolist(), strict=True))]
        return wire.Page(request_id, version, arm, ts_ms, placed, notes)

    async def score(self, body: bytes) -> wire.Scores:
        """Answers POST /score. Raises RequestError for what the client did wrong."""
        asked = wire.decode(body, wire.Score)
        wire.check_items(asked.items)
        request_id, ts_ms = self._identify(asked, asked.log)
        self._check_ready()
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
            self._log(request_id, ts_ms, asked.user_id, MODEL, list(asked.items), scores, page, [])
        answer: list[float | None] = [None] * len(rows)
        for i, value in zip(known.tolist(), scores.tolist(), strict=True):
            answer[i] = value
        return wire.Scores(request_id, version, answer, unknown)

    # -- within -----------------------------------------------------------------------------------------------

    def _identify(self, asked: wire.Recommend | wire.Score, logged: bool) -> tuple[str, int]:
        wire.check_context(asked.context, self.schema)
        now_ms = self.clock.at(self._wall())
        oldest_ms = self._oldest_ms(now_ms) if logged else None
        ts_ms = wire.check_time(asked.ts_ms, now_ms, round(self.settings.ahead_minutes * 60_000), oldest_ms)
        return asked.request_id or uuid4().hex, ts_ms

    def _oldest_ms(self, now_ms: int) -> int:
        """An exposure of this time or before would be late for the label join, whose watermark follows the newest
        event (the clock, as long as none is known): a log that is played slower than the clock runs is in time."""
        s = self.settings
        newest_ms = min(self.heard_ms, now_ms) if self.heard_ms else now_ms
        return newest_ms - round((s.attribution_minutes + s.lateness_minutes) * 60_000 + s.disorder_seconds * 1000)

    def _check_ready(self) -> None:
        reason = self.not_ready()
        if reason:
            problem, remedy = reason.split("; ", 1)
            raise RequestError(problem, remedy, 503)

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
        self, user: User, rows: Rows, ts_ms: int, context: dict[str, Any]
    ) -> tuple[Features, NDArray[np.float32]]:
        assert self.model is not None
        features = self.ranker.features(user, rows, ts_ms, context)
        scores = self.model.score(features.cat, features.num)
        if not np.isfinite(scores).all():
            self._meters.error("scores")
            scores = np.where(np.isfinite(scores), scores, np.float32(0))
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
