# core
"""The label join of one partition: exposures, the impressions they were made from, and the actions on them.

::

                 impression ─┐                         ┌── click before exposure + attribution ──► POSITIVE
                             ├─► matched ──► exposed ──┤
    exposure (positions) ────┘      │                  └── watermark reaches it without one ─────► NEGATIVE
                                    │                                    then a click ──► CORRECTION
        window counts: exposures ◄──┤                  collect, cart, purchase, once labelled ──► FOLLOW_UP
                       actions   ◄──┘

The picture is of the policy ``wait``. When a click labels, and when an exposure without one does, is what the label
policy promised for the exposure (:mod:`millrace.labels`). The promise is part of the exposure's state.

The page holds what waits: exposures wait for the impression, actions for the exposure. The watermark ends the waiting:
an event that is then still unmatched becomes a dead letter. A page is dropped when the watermark passes
exposure + attribution + lateness. The join remembers for as long again which positions of the page were exposed.

Once all is said of a page, its impression need not lie here for the late click that seldom comes. Such a page is
*settled* (:mod:`stream.join.pages`): some bytes, with the Kafka offset of its impression. What still comes for it
waits, as it would for an impression that comes late; :attr:`LabelJoin.wanted` says what is to be read, and
:meth:`LabelJoin.recall` goes on. The samples are those of an impression that had stayed. Its lifetime ends as ever:
what waits then leaves with the page, and is done when the impression is read.

The events' own times and the watermark before each message decide everything. So batches and duplicates change neither
samples nor counts, and neither does disorder within the allowed bound under a promise without slack. (Two *different*
clicks on one position are one action; the first to arrive gives its time.) Where a promise has slack, a label does not
wait for what may still come out of order: a click that does is a correction then.

Sets of positions are integers used as bit masks: bit p is position p. A position is that of the answer; an exposure
may say that its items were shown elsewhere, which changes the rows that they are labelled and counted with
(:mod:`stream.join.shown`) and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from numpy.typing import NDArray

from millrace.contracts.doubts import Doubt
from millrace.contracts.events import CLICK, EXPOSURE, Action, Event, Exposure, Id
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, POSITIVE
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY, LabelPolicy, Promise, Waits, policy_named
from stream.join.pages import (
    GONE,
    UNKNOWN,
    Message,
    PageState,
    Part,
    page_of,
    peek,
    plain,
    settle,
    to_bytes,
    to_mask,
    unsettle,
    without_log,
)
from stream.join.rows import Counted, LoggedPage, Sampled, runs_of

__all__ = ["Dead", "LabelJoin", "Message", "Outcome", "Policy"]

Array = NDArray[Any]

LABEL, LIFE, HELD, SERVED, CLICKED, SETTLE = range(6)
"""Kinds of timer: a part's label, a part's end, held actions, an impression's or a page's end, the label of a part's
clicks, the moment at which a page may be settled."""


class _Sender(Struct):
    """Of an event that was read before: whose it is. Reading this alone takes a tenth of the time."""

    user_id: Id


_sender = msgspec.json.Decoder(_Sender).decode

AsShown = Callable[[LoggedPage, LoggedPage | None, Sequence[int], Sequence[int]], LoggedPage]


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to wait, in milliseconds of event time."""

    attribution_ms: int
    disorder_ms: int
    lateness_ms: int
    ahead_ms: int
    label: LabelPolicy = REGISTRY["wait"]
    observation_ms: int = 10_000

    @property
    def waits(self) -> Waits:
        """What the label policy reads."""
        return Waits(self.attribution_ms, self.observation_ms, self.disorder_ms)

    @property
    def life_ms(self) -> int:
        """From an exposure to the moment its page is dropped."""
        return self.attribution_ms + self.lateness_ms

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        waits = Waits.of(settings)
        return cls(
            waits.attribution_ms,
            waits.disorder_ms,
            round(settings.lateness_minutes * 60_000),
            round(settings.ahead_minutes * 60_000),
            policy_named(settings.label_policy),
            waits.observation_ms,
        )


class Dead(NamedTuple):
    reason: str
    detail: str
    message: Message
    exposures: int


@dataclass(slots=True)
class Outcome:
    """The results of some consecutive messages, in order."""

    sampled: list[Sampled] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    exposures: int = 0  # distinct exposures taken in
    duplicates: int = 0  # messages that brought nothing new
    late: int = 0  # events behind the watermark, used or not
    unseen: int = 0  # served pages of which nothing was exposed
    recalled: int = 0  # settled pages whose impression was read again
    lost: int = 0  # and those whose impression is gone
    doubts: list[Doubt] = field(default_factory=list)  # about users that were taken


class LabelJoin:
    """The join's state and its rules. It never reads a clock: the caller moves ``watermark_ms``.

    Call :meth:`expire` after every move of the watermark and before the next message: it decides which pages and
    events a message can still be matched with.

    Args:
        policy: how long to wait.
        settles: whether pages are settled. Then somebody has to look at ``wanted`` and call :meth:`recall`.
        as_shown: makes a page with some rows as they were shown, :meth:`stream.join.shown.Shown.page`. Without it a
            page that was shown in another order has the features of the order in which it was answered.

    Attributes:
        wanted: the Kafka offset of each impression that something waits for, by request.
    """

    def __init__(
        self,
        policy: Policy,
        settles: bool = False,
        as_shown: AsShown = lambda page, onto, answered, shown: page,
    ) -> None:
        self.policy, self.settles, self._as_shown = policy, settles, as_shown
        self._life_ms = policy.life_ms
        self._waits = policy.waits
        self.watermark_ms = 0
        self._flow_ms = self._exposed_ms = 0  # when exposures began to flow, and the newest of them
        self.pages: dict[str, PageState] = {}
        self.settled: dict[str, bytes] = {}
        self.wanted: dict[str, int] = {}
        self._leaving: dict[str, list[PageState]] = {}  # dropped while their impression was wanted
        self.pending = 0
        self._gone: dict[str, tuple[int, int]] = {}  # dropped page -> (forget at, exposed), in order of dropping
        self._forget: deque[tuple[int, str]] = deque()  # the same order; a page that was dropped twice is here twice
        self._timers: list[tuple[int, int, str, int]] = []  # due, kind, request, part

    @property
    def due_ms(self) -> int | None:
        """The watermark at which the next thing may fall due; None when nothing waits."""
        return self._timers[0][0] if self._timers else None

    @property
    def is_leaving(self) -> bool:
        """Whether pages that were dropped wait for their impression: something may still be said of them."""
        return bool(self._leaving)

    # ------------------------------------------------------------------ what comes in

    def expose(self, event: Exposure, message: Message, out: Outcome) -> None:
        """An exposure message: new positions wait for their impression or are matched with it."""
        request, ts = event.request_id, event.ts_ms
        mask = event.mask
        page = self.pages.get(request)
        if page is None and request in self.settled:
            if ts + self._life_ms > self.watermark_ms and not mask & ~peek(self.settled[request])[1]:
                out.duplicates += 1
                return
            page = self._wake(request)
        gone = self._gone.get(request)
        known = (0 if page is None else page.exposed) | (0 if gone is None else gone[1])
        everything, mask = mask, mask & ~known
        new = mask.bit_count()
        if ts + self._life_ms <= self.watermark_ms:
            out.exposures += new
            out.dead.append(Dead("late", f"{self.watermark_ms - ts} ms behind the watermark", message, new))
            if page is not None:
                page.exposed |= mask
            if gone is None:
                self._bury(request, everything)
            else:
                self._gone[request] = (gone[0], gone[1] | everything)
            return
        if not mask:
            out.duplicates += 1
            return
        if page is None:
            page = self._page(request)
        out.exposures += new
        self.pending += new
        page.exposed |= mask | known
        slots = event.slots if event.slots != list(range(event.offset, event.offset + len(event.items))) else None
        page.parts.append(Part(mask, ts, event.offset, event.items, message, self._promise(ts), slots))
        self._keep(page, ts + self._life_ms, LIFE, len(page.parts) - 1)
        if page.impression is not None:
            self._match(page, len(page.parts) - 1, out)
        elif page.is_away:
            self._want(page, out)

    def serve(self, request: str, impression: LoggedPage, out: Outcome, at: int = UNKNOWN) -> None:
        """An impression: the exposures that wait for it are matched. ``at`` is its offset in Kafka."""
        keep_ms = impression.ts_ms + self._life_ms
        if request in self.settled:
            return
        page = self.pages.get(request)
        if page is None:
            if request in self._gone or keep_ms <= self.watermark_ms:
                out.unseen += request not in self._gone
                return
            page = self._page(request)
        if page.impression is not None or page.is_away:
            return
        page.impression, page.at = impression, at
        page.drop_ms = max(page.drop_ms, keep_ms)
        self._settle_at(page, impression.ts_ms)
        self._keep(page, keep_ms, SERVED)
        for index, part in enumerate(page.parts):
            if part.message is not None:
                self._match(page, index, out)

    def act(self, event: Action, message: Message, out: Outcome) -> None:
        """An action: attached to its exposure, or held until that comes."""
        page = self.pages.get(event.request_id) or self._wake(event.request_id)
        gone = self._gone.get(event.request_id)
        late = gone is not None and gone[1] >> event.position & 1
        if not late and not (page is not None and page.exposed >> event.position & 1):
            late = event.ts_ms + self.policy.lateness_ms < self.watermark_ms
        part = None if late or page is None else page.part_of(event.position)
        if late or (part is not None and part.ts_ms + self._life_ms <= self.watermark_ms):
            out.dead.append(Dead("late", "its exposure is gone", message, 0))
            return
        if page is None:
            page = self._page(event.request_id)
        if page.impression is not None and part is not None:
            self._attach(page, part, event, message, self.watermark_ms, out)
            return
        if part is not None and page.is_away:  # it waits for nothing that may never come
            page.hold(event, message, self.watermark_ms)
            self._want(page, out)
        elif page.holds(event):
            out.duplicates += 1
        else:
            page.hold(event, message, self.watermark_ms)
            self._keep(page, event.ts_ms + self.policy.lateness_ms + 1, HELD)

    def recall(self, request: str, impression: LoggedPage | None, out: Outcome) -> None:
        """The impression that was wanted, read again; None: it is gone. Anything else does nothing."""
        if self.wanted.pop(request, None) is None:
            return
        out.recalled += impression is not None
        out.lost += impression is None
        left = self._leaving.pop(request, [])
        for page in (*left, self.pages.get(request)):
            if page is None or not page.is_away:
                continue
            if impression is None:
                page.at = GONE
                self._forfeit(page, out)
                continue
            page.impression = impression
            for index, part in enumerate(page.parts):
                if part.message is not None:
                    self._match(page, index, out)
            self._attach_held(page, out)
            if page in left:
                for part in page.parts:
                    self._settle(page, part, out)
            else:
                self._settle_at(page, self.watermark_ms)  # more of the same visit may come

    def forget_log(self, out: Outcome) -> None:
        """The log of impressions is another one from now on: those that are not here are gone."""
        for request in list(self.wanted):
            self.recall(request, None, out)
        self.settled = {request: without_log(raw) for request, raw in self.settled.items()}
        for page in self.pages.values():
            if page.is_away:
                page.at = GONE
            else:
                page.at, page.settle_ms = UNKNOWN, 0
                heappush(self._timers, (page.drop_ms, SERVED, page.request, 0))

    def expire(self, out: Outcome) -> None:
        """Does everything that the watermark has made due, in the order in which it became due."""
        timers, now = self._timers, self.watermark_ms
        while timers and timers[0][0] <= now:
            due, kind, request, index = heappop(timers)
            page = self.pages.get(request)
            if page is None:
                if request in self.settled:
                    self._drop_settled(request, out)
                continue
            if kind == LABEL:
                if page.impression is not None:
                    self._settle(page, page.parts[index], out)
            elif kind == CLICKED:
                if page.impression is not None:
                    self._clicks(page, page.parts[index], out)
            elif kind == LIFE:
                if page.impression is None and not page.is_away:
                    self._lose(page, page.parts[index], out)
            elif kind == HELD:
                self._give_up(page, now - self.policy.lateness_ms, out)
            if page.drop_ms <= now:
                self._drop(page, out)
            elif kind == SETTLE and due == page.settle_ms:
                self._rest(page)
        forget, gone = self._forget, self._gone
        while forget and forget[0][0] <= now:
            _, request = forget.popleft()
            if request in gone and gone[request][0] <= now:
                del gone[request]

    def set_back(self, to_ms: int) -> None:
        """Moves the watermark back, for another event clock. Pages that were buried meanwhile are forgotten in time."""
        if to_ms >= self.watermark_ms:
            return
        self.watermark_ms, last_ms = to_ms, to_ms + self._life_ms
        self._gone = {request: (min(at, last_ms), exposed) for request, (at, exposed) in self._gone.items()}
        self._forget = deque((min(at, last_ms), request) for at, request in self._forget)

    # ------------------------------------------------------------------ rules

    def _page(self, request: str) -> PageState:
        page = self.pages[request] = PageState(request)
        return page

    def _promise(self, ts_ms: int) -> Promise:
        """What the policy promises an exposure of this time. Traffic begins anew after an attribution window without
        exposures."""
        if ts_ms - self._exposed_ms > self.policy.attribution_ms:
            self._flow_ms = ts_ms
        self._exposed_ms = max(self._exposed_ms, ts_ms)
        return self.policy.label.promise(self._waits, max(0, ts_ms - self._flow_ms))

    def _bury(self, request: str, exposed: int) -> None:
        """Whatever still comes for the page will be late. After another lifetime the page is forgotten."""
        until_ms = self.watermark_ms + self._life_ms
        self._gone[request] = (until_ms, exposed)
        self._forget.append((until_ms, request))

    def _keep(self, page: PageState, until_ms: int, kind: int, index: int = 0) -> None:
        """Keeps the page at least until then."""
        if (
            not page.settle_ms or kind == HELD
        ):  # otherwise it has a timer before, and gets one for its end when it settles
            heappush(self._timers, (until_ms, kind, page.request, index))
        page.drop_ms = max(page.drop_ms, until_ms)

    def _rest(self, page: PageState) -> None:
        """Settles a page of which all is said for now; otherwise looks again later."""
        if page.can_settle:
            del self.pages[page.request]
            self.settled[page.request] = settle(page)
            heappush(self._timers, (page.drop_ms, SERVED, page.request, 0))
        else:
            self._settle_at(page, self.watermark_ms)

    def _settle_at(self, page: PageState, seen_ms: int) -> None:
        """The page stays as it is for an attribution window from then, or to its end."""
        due = min(seen_ms + max(1, self.policy.attribution_ms), page.drop_ms)
        if self.settles and page.at != UNKNOWN and due > page.settle_ms:
            page.settle_ms = due
            heappush(self._timers, (due, SETTLE, page.request, 0))

    def _wake(self, request: str) -> PageState | None:
        """A settled page as a page again, without its impression; None: there is none."""
        raw = self.settled.pop(request, None)
        if raw is None:
            return None
        page = self.pages[request] = unsettle(request, raw)
        self._settle_at(page, self.watermark_ms)
        return page

    def _want(self, page: PageState, out: Outcome) -> None:
        """Something waits for the page's impression, which is away."""
        if page.at == GONE:
            self._forfeit(page, out)
        else:
            self.wanted[page.request] = page.at

    def _forfeit(self, page: PageState, out: Outcome) -> None:
        """The impression is gone: what waits for it becomes dead letters."""
        detail = f"the impression of request {page.request!r} is no longer in its topic"
        for part in page.parts:
            if part.message is not None:
                lost = part.mask.bit_count()
                self.pending -= lost
                out.dead.append(Dead("impression-gone", detail, part.message, lost))
                part.mask, part.items, part.message = 0, None, None
        for key, (event, message, _) in list(page.held.items()):
            if page.part_of(event.position) is not None:
                del page.held[key]
                out.dead.append(Dead("impression-gone", detail, message, 0))

    def _attach_held(self, page: PageState, out: Outcome) -> None:
        """Attaches the held actions whose exposure is here."""
        for key, (event, message, came_ms) in list(page.held.items()):
            part = page.part_of(event.position)
            if part is not None:
                del page.held[key]
                self._attach(page, part, event, message, came_ms, out)

    def _match(self, page: PageState, index: int, out: Outcome) -> None:
        """Part and impression are both here: count the exposures, label what can be labelled."""
        part, impression = page.parts[index], page.impression
        assert impression is not None
        assert part.items is not None
        assert part.message is not None
        whose = _sender(part.message.raw).user_id
        if whose != impression.user_id and str(whose) != str(impression.user_id):
            self.pending -= part.mask.bit_count()
            out.dead.append(Dead("wrong-user", _of_another(page, whose), part.message, part.mask.bit_count()))
            part.mask = 0
        elif part.ts_ms >= impression.ts_ms + self._life_ms:
            self.pending -= part.mask.bit_count()
            detail = f"{part.ts_ms - impression.ts_ms} ms after its impression"
            out.dead.append(Dead("no-impression", detail, part.message, part.mask.bit_count()))
            part.mask = 0
        end = part.offset + len(part.items)
        if part.slots or end > impression.n or part.items != impression.items[part.offset : end]:
            wrong = sum(
                1 << p
                for p, item in zip(part.places, part.items, strict=True)
                if part.mask >> p & 1 and (p >= impression.n or str(item) != str(impression.items[p]))
            )
            if wrong:
                part.mask &= ~wrong
                lost = wrong.bit_count()
                self.pending -= lost
                detail = f"position {(wrong & -wrong).bit_length() - 1} of the page was another item"
                out.dead.append(Dead("wrong-item", detail, part.message, lost))
        part.items = part.message = None
        if part.mask:
            out.counted.append(Counted(self._shown(page, part), *runs_of(part.mask), part.ts_ms, EXPOSURE))
        if page.held:
            for key, (event, message, came_ms) in list(page.held.items()):
                if part.brought >> event.position & 1:
                    del page.held[key]
                    self._attach(page, part, event, message, came_ms, out)
        self._settle_at(page, part.ts_ms)
        due = part.label_ms
        if due <= self.watermark_ms:
            self._settle(page, part, out)
        elif part.mask & ~page.labelled:
            heappush(self._timers, (due, LABEL, page.request, index))
            if self.watermark_ms < part.clicks_ms < due:
                heappush(self._timers, (part.clicks_ms, CLICKED, page.request, index))

    def _attach(self, page: PageState, part: Part, event: Action, message: Message, came_ms: int, out: Outcome) -> None:
        """An action whose exposure and impression are here. ``came_ms``: the watermark when it came.

        What an impression that comes later finds must be what one that was there would have done: after a crash the two
        topics are read in another order. So a click that came when its exposure's label was due is a correction.
        """
        position, kind, impression = event.position, event.kind, page.impression
        assert impression is not None
        bit = 1 << position
        if event.user_id != impression.user_id and str(event.user_id) != str(impression.user_id):
            out.dead.append(Dead("wrong-user", _of_another(page, event.user_id), message, 0))
            return
        if position >= impression.n or (
            impression.items[position] != event.item_id and str(impression.items[position]) != str(event.item_id)
        ):
            out.dead.append(Dead("wrong-item", f"item {event.item_id!r} was not at position {position}", message, 0))
            return
        if page.acted[kind] & bit:
            out.duplicates += 1
            return
        if not part.mask & bit:  # the exposure is a dead letter itself
            out.dead.append(Dead("no-exposure", f"position {position} was not exposed", message, 0))
            return
        after_ms = event.ts_ms - part.ts_ms
        if after_ms >= self._life_ms:
            out.dead.append(Dead("late", f"{after_ms} ms after its exposure", message, 0))
            return
        page.acted[kind] |= bit
        out.counted.append(Counted(self._shown(page, part), ((position, position + 1),), 1, event.ts_ms, kind))
        if kind != CLICK:
            if page.labelled & bit:
                self._sample(page, part, bit, FOLLOW_UP, kind, event.sent_ms, out)
            else:
                page.waiting.append((position, kind, event.sent_ms))
        elif page.labelled & bit:
            self._sample(page, part, bit, CORRECTION, kind, event.sent_ms, out)
        elif max(after_ms, 0) < part.promise.observe_ms and came_ms < part.label_ms:
            if self.watermark_ms < part.clicks_ms:
                page.waiting.append((position, kind, event.sent_ms))
            else:
                self._label(page, part, bit, POSITIVE, kind, event.sent_ms, out)
        else:
            self._label(page, part, bit, NEGATIVE, EXPOSURE, 0, out)
            self._sample(page, part, bit, CORRECTION, kind, event.sent_ms, out)

    def _clicks(self, page: PageState, part: Part, out: Outcome) -> None:
        """Labels the part's exposures whose click has waited."""
        if not part.mask & ~page.labelled & page.acted[CLICK]:
            return
        for position, kind, origin_ms in [w for w in page.waiting if w[1] == CLICK and part.mask >> w[0] & 1]:
            page.waiting.remove((position, kind, origin_ms))
            self._label(page, part, 1 << position, POSITIVE, CLICK, origin_ms, out)

    def _settle(self, page: PageState, part: Part, out: Outcome) -> None:
        """Labels all exposures of the part that have no label yet."""
        self._clicks(page, part, out)
        rest = part.mask & ~page.labelled
        if rest:
            self._label(page, part, rest, NEGATIVE, EXPOSURE, 0, out)

    def _label(
        self, page: PageState, part: Part, mask: int, kind: int, action: int, origin_ms: int, out: Outcome
    ) -> None:
        """Makes the one sample that labels an exposure. Follow-ups that waited for the label are made with it."""
        self.pending -= mask.bit_count()
        page.labelled |= mask
        self._sample(page, part, mask, kind, action, origin_ms, out)
        if page.waiting:
            ready = [w for w in page.waiting if mask >> w[0] & 1]
            page.waiting = [w for w in page.waiting if not mask >> w[0] & 1]
            for position, later, origin in ready:
                self._sample(page, part, 1 << position, FOLLOW_UP, later, origin, out)

    def _shown(self, page: PageState, part: Part) -> LoggedPage:
        """The page's impression, for the part's rows as they were shown."""
        assert page.impression is not None
        if part.slots is None:
            return page.impression
        if page.shown is None or not part.placed:  # each position has one part, so the parts share one copy
            rows = [(p, shown) for shown, p in enumerate(part.slots, part.offset) if part.mask >> p & 1]
            page.shown = self._as_shown(page.impression, page.shown, *zip(*rows, strict=True))
            part.placed = True
        return page.shown

    def _sample(
        self, page: PageState, part: Part, mask: int, kind: int, action: int, origin_ms: int, out: Outcome
    ) -> None:
        runs, n = runs_of(mask)
        out.sampled.append(
            Sampled(
                page.request,
                self._shown(page, part),
                part.ts_ms,
                runs,
                n,
                kind,
                1 << EXPOSURE | 1 << action,
                origin_ms,
                part.promise.code,
            )
        )

    def _lose(self, page: PageState, part: Part, out: Outcome) -> None:
        """A part whose impression never came becomes a dead letter, with the actions on it."""
        if part.message is None:
            return
        lost = part.mask.bit_count()
        self.pending -= lost
        detail = f"request {page.request!r} was never served"
        out.dead.append(Dead("no-impression", detail, part.message, lost))
        for key, (event, message, _) in list(page.held.items()):
            if part.mask >> event.position & 1:
                del page.held[key]
                out.dead.append(Dead("no-impression", detail, message, 0))
        part.mask, part.items, part.message = 0, None, None

    def _give_up(self, page: PageState, before_ms: int, out: Outcome) -> None:
        """Held actions whose exposure did not come within the lateness become dead letters."""
        for key, (event, message, _) in list(page.held.items()):
            if event.ts_ms < before_ms and not page.exposed >> event.position & 1:
                del page.held[key]
                detail = f"position {event.position} of request {page.request!r} was not exposed"
                out.dead.append(Dead("no-exposure", detail, message, 0))

    def _drop(self, page: PageState, out: Outcome) -> None:
        """Nothing can come for the page any more. What its timers have left open is settled now, or when its impression
        has been read again."""
        for part in page.parts:
            if page.impression is not None:
                self._settle(page, part, out)
            elif not page.is_away:
                self._lose(page, part, out)
        self._give_up(page, self.watermark_ms, out)
        del self.pages[page.request]
        if page.is_away and page.request in self.wanted:
            self._leaving.setdefault(page.request, []).append(page)
        self._drop_of(page.request, page.exposed, page.impression is not None or page.is_away, out)

    def _drop_settled(self, request: str, out: Outcome) -> None:
        drop_ms, exposed = peek(self.settled[request])
        if drop_ms <= self.watermark_ms:
            del self.settled[request]
            self._drop_of(request, exposed, True, out)

    def _drop_of(self, request: str, exposed: int, served: bool, out: Outcome) -> None:
        if exposed:
            _, known = self._gone.pop(request, (0, 0))
            self._bury(request, exposed | known)
        else:
            out.unseen += served

    # ------------------------------------------------------------------ state

    def snapshot(self) -> tuple[Any, ...]:
        """The whole state as plain values, which do not change afterwards. Cheap: no array is copied."""
        pages = [plain(page) for page in self.pages.values()]
        leaving = [plain(page) for left in self._leaving.values() for page in left]
        # In an order that does not depend on which of a page's timers came first.
        gone = sorted((at, request, to_bytes(mask)) for request, (at, mask) in self._gone.items())
        flow = self._flow_ms, self._exposed_ms
        return (
            self.watermark_ms,
            self.pending,
            pages,
            [(r, at, m) for at, r, m in gone],
            *flow,
            dict(self.settled),
            leaving,
            dict(self.wanted),
        )

    def resume(self, state: Any, impression: Callable[[bytes], LoggedPage], decode: Callable[[bytes], Event]) -> None:
        """Restores the state that :meth:`snapshot` gave. For a new join; ``impression`` and ``decode`` read messages as
        before."""
        self.watermark_ms, self.pending, pages, gone, *later = state
        self._flow_ms, self._exposed_ms = later[:2] or (0, self.watermark_ms)  # none: before promises were kept
        settled, leaving, wanted = later[2:] or ({}, [], {})  # none: before pages were settled
        self._gone = {request: (at, to_mask(mask)) for request, at, mask in gone}
        self._forget = deque((at, request) for request, at, _ in gone)
        for of in pages:
            page = page_of(of, impression, decode, self._waits)
            page.settle_ms *= self.settles  # otherwise its timers are those of a page that never settles
            self.pages[page.request] = page
            self._timers.extend(self._timers_of(page))
        self.settled, self.wanted = settled, wanted
        self._timers.extend((peek(raw)[0], SERVED, request, 0) for request, raw in settled.items())
        for of in leaving:
            page = page_of(of, impression, decode, self._waits)
            self._leaving.setdefault(page.request, []).append(page)
        heapify(self._timers)

    def _timers_of(self, page: PageState) -> Iterator[tuple[int, int, str, int]]:
        policy, request = self.policy, page.request
        yield page.drop_ms, SERVED, request, 0  # the lifetimes of now may be shorter than those of its own time
        if page.impression is not None:
            yield page.impression.ts_ms + self._life_ms, SERVED, request, 0
        if self.settles and page.settle_ms:
            yield page.settle_ms, SETTLE, request, 0
        for event, _, _ in page.held.values():
            yield event.ts_ms + policy.lateness_ms + 1, HELD, request, 0
        for index, part in enumerate(page.parts):
            yield part.ts_ms + self._life_ms, LIFE, request, index
            if part.mask & ~page.labelled:
                yield part.label_ms, LABEL, request, index
                if self.watermark_ms < part.clicks_ms < part.label_ms:
                    yield part.clicks_ms, CLICKED, request, index


def _of_another(page: PageState, whose: Id) -> str:
    assert page.impression is not None
    return f"user {whose!r} names request {page.request!r}, a page of user {page.impression.user_id!r}"
