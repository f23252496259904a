# core
"""A page of given items: their scores by the serving model, the answer, and its page log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from millrace.basics.hashing import mix, salt, value_hash
from millrace.contracts.clock import EventClock
from millrace.contracts.events import SOURCES, Id, PageLog
from millrace.evidence.rerank import Rerank
from millrace.versions.versioning import Announcement
from scorer.catalog.itemtable import ItemRows
from scorer.page import page_wire, score_reasons, worth
from scorer.page.page_arms import PageArm
from scorer.page.rank import Ranked, RankingModel
from scorer.page.reranking import VALUE, WORTH, PlacedItems
from scorer.page.worker_state import WorkerState
from scorer.users.userrecord import KnownUser, Meters

_SET = salt("scorer", "set")
AskCounts = Callable[[ItemRows, int], Awaitable[NDArray[Any] | None]]
"""Counts of items at another time than now, from the whole index; None: not available."""


class Asked(NamedTuple):
    """A page request: user, time and context."""

    request_id: str
    user: KnownUser
    user_id: Id
    ts_ms: int
    context: dict[str, Any]
    notes: list[str]
    explain: bool = False
    filters: page_wire.Filters | None = None
    rerank: Rerank = Rerank()
    what_if: bool = False  # nobody is shown it: it is neither logged nor counted

    @property
    def capped(self) -> bool:
        return self.filters is not None and bool(self.filters.caps)


class Scored(NamedTuple):
    note: Announcement
    rows: ItemRows  # (n,)
    found: Ranked
    shown: NDArray[np.float32]  # (n,) scores for a client: 0, the last rank, where the model gave no number
    model: RankingModel


class PageMaker:
    """See the module's text.

    Args:
        send: takes a page log without blocking, and copies what it keeps. False: no space.
        wall: wall time in ms.
        ask_counts: None: the table's counts serve for all times.
    """

    def __init__(
        self,
        held: WorkerState,
        clock: EventClock,
        send: Callable[[PageLog], bool | None],
        meters: Meters,
        wall: Callable[[], int],
        ask_counts: AskCounts | None,
    ) -> None:
        self._held, self._clock, self._meters = held, clock, meters
        self.send, self.wall, self.ask_counts = send, wall, ask_counts
        self._inputs = score_reasons.inputs_of(held.schema)

    @property
    def now_ms(self) -> int:
        return self._clock.at(self.wall())

    async def score(
        self,
        page: Asked,
        rows: ItemRows,
        among: NDArray[np.float32] | None = None,
        learner: str = "",
        outcomes: bool = False,
    ) -> Scored:
        """Features and scores of the items at ``rows``, by the model of ``learner`` that serves now. No await follows
        the counts. ``among``: the set that they are measured against; ``outcomes``: whether their probabilities are
        wanted, too (:meth:`~scorer.page.rank.Ranker.rank`)."""
        counts = await self._counts(page, rows)
        held = self._held.of(learner)
        note, model = held.note, held.model
        assert note is not None
        assert model is not None
        found = self._held.ranker.rank(page.user, rows, page.ts_ms, page.context, model, counts, among, outcomes)
        finite = np.isfinite(found.scores)
        if finite.all():
            return Scored(note, rows, found, found.scores, model)
        self._meters.error("scores")
        return Scored(note, rows, found, np.where(finite, found.scores, np.float32(0)), model)

    async def set_of(self, page: Asked, rows: ItemRows) -> NDArray[np.float32]:
        """The items at ``rows`` as a set that others are measured against."""
        counts = await self._counts(page, rows)
        return self._held.ranker.set_of(page.user, rows, page.ts_ms, page.context, counts)

    async def _counts(self, page: Asked, rows: ItemRows) -> NDArray[Any] | None:
        """Counts of the items for a page whose time differs from now by more than a unit of the tiles; None: the
        table's."""
        unit_ms = self._held.schema.windows.unit_ms
        if self.ask_counts is None or abs(page.ts_ms - self.now_ms) <= unit_ms or not len(rows):
            return None
        counts = await self.ask_counts(rows, page.ts_ms)
        if counts is None:
            page.notes.append("counts of items are as of now, not of ts_ms: the whole index did not answer")
        return counts

    def ids(self, rows: ItemRows) -> list[Id]:
        ids = self._held.items.ids
        return [ids[row] for row in rows.tolist()]

    def hand_out(
        self,
        page: Asked,
        arm: PageArm,
        scored: Scored,
        placed: PlacedItems,
        sources: bytes,
        retrieval: int,
        offset: int = 0,
    ) -> page_wire.RecommendAnswer:
        """Logs and answers items of ``scored``; the first one has the slot ``offset``. ``sources`` and ``retrieval``:
        where recall found them, by which version."""
        order = placed.order
        ids = self.ids(scored.rows[order])
        name = arm.name if arm.name != arm.made else ""
        if not page.what_if:
            self.log(page, arm.made, scored, placed, ids, sources, offset, name)
            self._meters.items(sources)
        shown = scored.shown[order].tolist()
        retrieved_by = retrieval if page.explain else UNSET
        where = ([SOURCES[code] for code in sources], self._reasons(page, scored, placed)) if page.explain else ()
        items = list(map(page_wire.PlacedItem, ids, range(len(ids)), shown, *where))
        version = scored.note.version
        named = None if page.what_if else page.request_id
        return page_wire.RecommendAnswer(
            named, version, arm.name, page.ts_ms, items, page.notes, offset, retrieval_version=retrieved_by
        )

    def _reasons(self, page: Asked, scored: Scored, placed: PlacedItems) -> list[list[page_wire.Reason] | UnsetType]:
        """The strongest inputs of each of the first items, and what re-ranking did to it."""
        order = placed.order
        first = order[: score_reasons.MOST_ITEMS]
        found = score_reasons.effects(scored.model, scored.found.cat[first], scored.found.numbers(first), self._inputs)
        moved = score_reasons.moved(len(first), placed.ranking)
        if page.rerank.weights and placed.ranking is not None and placed.ranking[: len(first), WORTH].any():
            parts = worth.terms(self._held.schema, scored.found, page.rerank.weights, first)
            if parts is not None:
                moved = [[*of, *more] for of, more in zip(moved, worth.effects(parts), strict=True)]
        reasons: list[list[page_wire.Reason] | UnsetType] = [
            [page_wire.Reason(name, effect) for name, effect in (*those, *by)]
            for those, by in zip(score_reasons.strongest(found, self._inputs), moved, strict=True)
        ]
        return reasons + [UNSET] * (len(order) - len(first))

    def log(
        self,
        page: Asked,
        arm: str,
        scored: Scored,
        items: PlacedItems,
        ids: list[Id],
        sources: bytes,
        offset: int,
        arm_name: str = "",
    ) -> None:
        """Sends the page log. A page is worth more than its log, so a loss is counted and not raised."""
        found, ts_ms, order = scored.found, page.ts_ms, items.order
        placed = self._held.ranker.placed(found, order, page.user, scored.rows, ts_ms, page.context, offset)
        log = PageLog(
            request_id=page.request_id,
            ts_ms=ts_ms,
            user_id=page.user_id,
            arm=arm,
            model_version=scored.note.version,
            schema_id=self._held.schema.id,
            items=ids,
            scores=_bytes(found.scores[order]),
            keys=_bytes(placed.keys),
            cat=_bytes(placed.cat),
            num=_bytes(placed.num),
            served_ms=self.wall(),
            offset=offset,
            sources=sources,
            user_missing=page.user.missing,
            among=found.among.tobytes() if keeps_set(page.request_id) else b"",
            odds=items.odds.tobytes(),
            arm_name=arm_name,
            ranked=UNSET if items.ranking is None else items.ranking[:, VALUE].tobytes(),
        )
        try:
            if self.send(log) is False:
                page.notes.append("nothing is learnt from this page: its log is full")
        except Exception as error:
            self._meters.error("page_logs")
            page.notes.append(f"nothing is learnt from this page: {str(error) or type(error).__name__}")


def keeps_set(request_id: str) -> bool:
    """Whether a page's log has the set of its candidates, for ``data parity``: one page in 100, by a hash."""
    return int(mix(_SET, np.array([value_hash(request_id)], np.uint64))[0]) % 100 == 0


def _bytes(array: NDArray[Any]) -> Any:
    """An array's bytes, not copied."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
