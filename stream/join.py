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

The events' own times and the watermark before each message decide everything. So batches and duplicates change neither
samples nor counts, and neither does disorder within the allowed bound under a promise without slack. (Two *different*
clicks on one position are one action; the first to arrive gives its time.) Where a promise has slack, a label does not
wait for what may still come out of order: a click that does is a correction then.

Sets of positions are integers used as bit masks: bit p is position p.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import msgspec
from numpy.typing import NDArray

from millrace.contracts.events import CLICK, EXPOSURE, Action, Event, Exposure, Id, read_msgpack
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, POSITIVE
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY, LabelPolicy, Promise, Waits, policy_named
from stream.rows import Counted, LoggedPage, Sampled, Served, runs_of

Array = NDArray[Any]

LABEL, LIFE, HELD, SERVED, CLICKED = range(5)
"""Kinds of timer: a part's label, a part's end, held actions, an impression's end, the label of a part's clicks."""


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


class Message(NamedTuple):
    """One Kafka message of the partition. ``clock_ms`` is the event clock when it came to Kafka; None: not known."""

    topic: str
    offset: int
    raw: bytes
    clock_ms: int | None = None


class Part:
    """The positions that one exposure message was the first to bring."""

    __slots__ = ("brought", "items", "mask", "message", "offset", "promise", "ts_ms")

    def __init__(
        self, mask: int, ts_ms: int, offset: int, items: list[Id] | None, message: Message | None, promise: Promise
    ) -> None:
        self.brought = mask
        self.mask = mask  # without those that became dead letters
        self.ts_ms, self.offset = ts_ms, offset
        self.items, self.message = items, message  # until it is matched
        self.promise = promise

    @property
    def label_ms(self) -> int:
        """The watermark at which exposures without a click are negatives."""
        return self.ts_ms + self.promise.observe_ms - self.promise.slack_ms

    @property
    def clicks_ms(self) -> int:
        """The watermark before which clicks are kept waiting; 0 when none waits."""
        return self.ts_ms + self.promise.hold_ms - self.promise.slack_ms if self.promise.hold_ms else 0


class PageState:
    """All that is known about one request."""

    __slots__ = ("acted", "drop_ms", "exposed", "held", "impression", "labelled", "parts", "request", "waiting")

    def __init__(self, request: str) -> None:
        self.request = request
        self.impression: LoggedPage | None = None
        self.parts: list[Part] = []
        self.exposed = 0
        self.labelled = 0
        self.acted = [0, 0, 0, 0, 0]  # by action kind
        # Actions whose exposure or impression is not here yet, and the watermark when each came.
        self.held: dict[tuple[int, int, str], tuple[Action, Message, int]] = {}
        self.waiting: list[tuple[int, int, int]] = []  # (position, kind, origin) of actions that wait for the label
        self.drop_ms = 0


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


class LabelJoin:
    """The join's state and its rules. It never reads a clock: the caller moves ``watermark_ms``.

    Call :meth:`expire` after every move of the watermark and before the next message: it decides which pages and
    events a message can still be matched with.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._life_ms = policy.life_ms
        self._waits = policy.waits
        self.watermark_ms = 0
        self._flow_ms = self._exposed_ms = 0  # when exposures began to flow, and the newest of them
        self.pages: dict[str, PageState] = {}
        self.pending = 0
        self._gone: dict[str, tuple[int, int]] = {}  # dropped page -> (forget at, exposed), in order of dropping
        self._forget: deque[tuple[int, str]] = deque()  # the same order; a page that was dropped twice is here twice
        self._timers: list[tuple[int, int, str, int]] = []  # due, kind, request, part

    @property
    def due_ms(self) -> int | None:
        """The watermark at which the next thing may fall due; None when nothing waits."""
        return self._timers[0][0] if self._timers else None

    # ------------------------------------------------------------------ what comes in

    def expose(self, event: Exposure, message: Message, out: Outcome) -> None:
        """An exposure message: new positions wait for their impression or are matched with it."""
        request, ts = event.request_id, event.ts_ms
        mask = ((1 << len(event.items)) - 1) << event.offset
        page = self.pages.get(request)
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
        page.parts.append(Part(mask, ts, event.offset, event.items, message, self._promise(ts)))
        self._keep(page, ts + self._life_ms, LIFE, len(page.parts) - 1)
        if page.impression is not None:
            self._match(page, len(page.parts) - 1, out)

    def serve(self, request: str, impression: LoggedPage, out: Outcome) -> None:
        """An impression: the exposures that wait for it are matched."""
        keep_ms = impression.ts_ms + self._life_ms
        page = self.pages.get(request)
        if page is None:
            if request in self._gone or keep_ms <= self.watermark_ms:
                out.unseen += request not in self._gone
                return
            page = self._page(request)
        if page.impression is not None:
            return
        page.impression = impression
        self._keep(page, keep_ms, SERVED)
        for index, part in enumerate(page.parts):
            if part.message is not None:
                self._match(page, index, out)

    def act(self, event: Action, message: Message, out: Outcome) -> None:
        """An action: attached to its exposure, or held until that comes."""
        page = self.pages.get(event.request_id)
        gone = self._gone.get(event.request_id)
        late = gone is not None and gone[1] >> event.position & 1
        if not late and not (page is not None and page.exposed >> event.position & 1):
            late = event.ts_ms + self.policy.lateness_ms < self.watermark_ms
        part = None if late or page is None else _part(page, event.position)
        if late or (part is not None and part.ts_ms + self._life_ms <= self.watermark_ms):
            out.dead.append(Dead("late", "its exposure is gone", message, 0))
            return
        if page is None:
            page = self._page(event.request_id)
        if page.impression is not None and part is not None:
            self._attach(page, part, event, message, self.watermark_ms, out)
            return
        key = (event.position, event.kind, str(event.item_id))
        if key in page.held:
            out.duplicates += 1
            return
        page.held[key] = (event, message, self.watermark_ms)
        self._keep(page, event.ts_ms + self.policy.lateness_ms + 1, HELD)

    def expire(self, out: Outcome) -> None:
        """Does everything that the watermark has made due, in the order in which it became due."""
        timers, now = self._timers, self.watermark_ms
        while timers and timers[0][0] <= now:
            _, kind, request, index = heappop(timers)
            page = self.pages.get(request)
            if page is None:
                continue
            if kind == LABEL:
                if page.impression is not None:
                    self._settle(page, page.parts[index], out)
            elif kind == CLICKED:
                if page.impression is not None:
                    self._clicks(page, page.parts[index], out)
            elif kind == LIFE:
                if page.impression is None:
                    self._lose(page, page.parts[index], out)
            elif kind == HELD:
                self._give_up(page, now - self.policy.lateness_ms, out)
            if page.drop_ms <= now:
                self._drop(page, out)
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
        heappush(self._timers, (until_ms, kind, page.request, index))
        page.drop_ms = max(page.drop_ms, until_ms)

    def _match(self, page: PageState, index: int, out: Outcome) -> None:
        """Part and impression are both here: count the exposures, label what can be labelled."""
        part, impression = page.parts[index], page.impression
        assert impression is not None
        assert part.items is not None
        assert part.message is not None
        if part.ts_ms >= impression.ts_ms + self._life_ms:
            self.pending -= part.mask.bit_count()
            detail = f"{part.ts_ms - impression.ts_ms} ms after its impression"
            out.dead.append(Dead("no-impression", detail, part.message, part.mask.bit_count()))
            part.mask = 0
        end = part.offset + len(part.items)
        if end > impression.n or part.items != impression.items[part.offset : end]:
            wrong = sum(
                1 << p
                for p, item in enumerate(part.items, part.offset)
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
            out.counted.append(Counted(impression, *runs_of(part.mask), part.ts_ms, EXPOSURE))
        if page.held:
            for key, (event, message, came_ms) in list(page.held.items()):
                if part.brought >> event.position & 1:
                    del page.held[key]
                    self._attach(page, part, event, message, came_ms, out)
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
        out.counted.append(Counted(impression, ((position, position + 1),), 1, event.ts_ms, kind))
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

    @staticmethod
    def _sample(page: PageState, part: Part, mask: int, kind: int, action: int, origin_ms: int, out: Outcome) -> None:
        assert page.impression is not None
        runs, n = runs_of(mask)
        out.sampled.append(
            Sampled(
                page.request,
                page.impression,
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
        """Nothing can come for the page any more. What its timers have left open is settled now."""
        for part in page.parts:
            if page.impression is None:
                self._lose(page, part, out)
            else:
                self._settle(page, part, out)
        self._give_up(page, self.watermark_ms, out)
        del self.pages[page.request]
        if page.exposed:
            _, known = self._gone.pop(page.request, (0, 0))
            self._bury(page.request, page.exposed | known)
        else:
            out.unseen += page.impression is not None

    # ------------------------------------------------------------------ state

    def snapshot(self) -> tuple[Any, ...]:
        """The whole state as plain values, which do not change afterwards. Cheap: no array is copied."""
        pages = [
            (
                p.request,
                None if p.impression is None else p.impression.raw,
                [
                    (_bytes(t.brought), _bytes(t.mask), t.ts_ms, t.offset, t.items, t.message, t.promise)
                    for t in p.parts
                ],
                _bytes(p.exposed),
                _bytes(p.labelled),
                [_bytes(m) for m in p.acted],
                [(message, came_ms) for _, message, came_ms in p.held.values()],
                list(p.waiting),
                p.drop_ms,
            )
            for p in self.pages.values()
        ]
        gone = [(request, at, _bytes(mask)) for request, (at, mask) in self._gone.items()]
        return (self.watermark_ms, self.pending, pages, gone, self._flow_ms, self._exposed_ms)

    def resume(self, state: Any, impression: Callable[[bytes], LoggedPage], decode: Callable[[bytes], Event]) -> None:
        """Restores the state that :meth:`snapshot` gave. For a new join; ``impression`` and ``decode`` read messages as
        before."""
        self.watermark_ms, self.pending, pages, gone, *flow = state
        self._flow_ms, self._exposed_ms = flow or (0, self.watermark_ms)  # none: before promises were kept
        self._gone = {request: (at, _mask(mask)) for request, at, mask in gone}
        self._forget = deque((at, request) for request, at, _ in gone)
        for request, served, parts, exposed, labelled, acted, held, waiting, drop_ms in pages:
            page = self._page(request)
            page.impression = None if served is None else impression(served)
            for brought, mask, ts, at, items, message, *promise in parts:
                promised = Promise(*promise[0]) if promise else REGISTRY["wait"].promise(self._waits, 0)
                part = Part(_mask(brought), ts, at, items, message and Message(*message), promised)
                part.mask = _mask(mask)
                page.parts.append(part)
            page.exposed, page.labelled, page.drop_ms = _mask(exposed), _mask(labelled), drop_ms
            page.acted = [_mask(m) for m in acted]
            page.waiting = [tuple(w) for w in waiting]
            for kept in held:
                message, came_ms = (Message(*kept[0]), kept[1]) if flow else (Message(*kept), 0)
                event = decode(message.raw)
                assert isinstance(event, Action)
                page.held[event.position, event.kind, str(event.item_id)] = (event, message, came_ms)
            self._timers.extend(self._timers_of(page))
        heapify(self._timers)

    def _timers_of(self, page: PageState) -> Iterator[tuple[int, int, str, int]]:
        policy, request = self.policy, page.request
        yield page.drop_ms, SERVED, request, 0  # the lifetimes of now may be shorter than those of its own time
        if page.impression is not None:
            yield page.impression.ts_ms + self._life_ms, SERVED, request, 0
        for event, _, _ in page.held.values():
            yield event.ts_ms + policy.lateness_ms + 1, HELD, request, 0
        for index, part in enumerate(page.parts):
            yield part.ts_ms + self._life_ms, LIFE, request, index
            if part.mask & ~page.labelled:
                yield part.label_ms, LABEL, request, index
                if self.watermark_ms < part.clicks_ms < part.label_ms:
                    yield part.clicks_ms, CLICKED, request, index


def _part(page: PageState, position: int) -> Part | None:
    """The part that brought the position."""
    for part in page.parts:
        if part.brought >> position & 1:
            return part
    return None


def _bytes(mask: int) -> bytes:
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _mask(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


_served = msgspec.msgpack.Decoder(Served).decode


def decode_served(raw: bytes) -> Served:
    """Raises BadEventError as :func:`~millrace.contracts.events.read_msgpack` does."""
    return read_msgpack(_served, raw)
