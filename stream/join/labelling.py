# core
"""Labels the exposures of a page whose page log is here: rows to count, samples, dead letters. Pure.

::

                      ┌── click before exposure + attribution ──► POSITIVE
    matched, exposed ─┤
                      └── watermark reaches it without one ─────► NEGATIVE
                                                then a click ──► CORRECTION
                      collect, cart, purchase, once labelled ──► FOLLOW_UP
    the page, when no click is in time any more ───────────────► PAGE, if a model wants it (stream/join/page_again.py)

The figure shows the policy ``wait``. The label policy's promise for the exposure (:mod:`millrace.labels`) says when
clicks and exposures without one are labelled. The promise is part of the exposure's state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from msgspec import Struct

from millrace.basics.durations import span_name
from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.events import CLICK, EXPOSURE, Action, Id
from millrace.contracts.profile_warnings import ProfileWarning
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, PAGE, POSITIVE
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY, LabelPolicy, Promise, Traffic, Waits, is_early, policy_named
from stream.join.joined_pages import InputMessage, PagePart, PageState
from stream.join.outcome_book import OutcomeBook, ToFiles
from stream.join.page_again import rows_again
from stream.join.page_rows import Counted, LoggedPage, Runs, Sampled, runs_of
from stream.join.shown import ShownPages


class _Sender(Struct):
    """The user of an event that was read before. Reading this alone takes a tenth of the time."""

    user_id: Id


_sender = msgspec.json.Decoder(_Sender).decode


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to wait, in milliseconds of event time."""

    attribution_ms: int
    disorder_ms: int
    lateness_ms: int
    ahead_ms: int
    label: LabelPolicy = REGISTRY["wait"]
    observation_ms: int = 10_000
    sends_pages: bool = False  # whether pages are sent again, for a loss within them

    @property
    def waits(self) -> Waits:
        return Waits(self.attribution_ms, self.observation_ms, self.disorder_ms, self.lateness_ms)

    @property
    def life_ms(self) -> int:
        return self.waits.life_ms

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        w, label = Waits.of(settings), policy_named(settings.label_policy)
        waits = w.attribution_ms, w.disorder_ms, w.lateness_ms, MAX_AHEAD_MS
        return cls(*waits, label, w.observation_ms, settings.sends_pages and not label.final)


class Dead(NamedTuple):
    reason: str
    detail: str
    message: InputMessage
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
    recalled: int = 0  # settled pages whose page log was read again
    page_logs_gone: int = 0  # and those whose page log is gone
    warnings: list[ProfileWarning] = field(default_factory=list)  # warnings about accepted users
    files: ToFiles = field(default_factory=ToFiles)  # of outcomes that come late

    def refuse(self, reason: str, detail: str, message: InputMessage, exposures: int) -> None:
        """Makes a dead letter of a message that had been taken with so many exposures."""
        self.exposures += exposures
        self.dead.append(Dead(reason, detail, message, exposures))


class Labeller:
    """Times are watermarks that the caller gives.

    Attributes:
        pending: exposures that are neither labelled nor dead.
        held: actions whose exposure or page log is not here yet, over all pages.
    """

    def __init__(self, policy: Policy, shown: ShownPages | None, book: OutcomeBook | None = None) -> None:
        self.policy, self._shown_as, self._book = policy, shown, book
        self._life_ms, self._waits = policy.life_ms, policy.waits
        self.pending, self.held, self._traffic = 0, 0, Traffic()

    def promise(self, ts_ms: int) -> Promise[int]:
        """The policy's promise for an exposure of this time."""
        return self._traffic.promise(self.policy.label, self._waits, ts_ms)

    def match(self, page: PageState, part: PagePart, now_ms: int, out: Outcome) -> None:
        page_log = page.page_log
        assert page_log is not None
        assert part.items is not None
        assert part.message is not None
        whose = _sender(part.message.raw).user_id
        if whose != page_log.user_id and str(whose) != str(page_log.user_id):
            self.pending -= part.mask.bit_count()
            out.dead.append(Dead("wrong-user", _of_another(page, whose), part.message, part.mask.bit_count()))
            part.mask = 0
        elif part.ts_ms >= page_log.ts_ms + self._life_ms:
            self.pending -= part.mask.bit_count()
            detail = f"{span_name(part.ts_ms - page_log.ts_ms)} after its page log"
            out.dead.append(Dead("no-page-log", detail, part.message, part.mask.bit_count()))
            part.mask = 0
        end = part.offset + len(part.items)
        if part.slots or end > page_log.n or part.items != page_log.items[part.offset : end]:
            wrong = sum(
                1 << p
                for p, item in zip(part.places, part.items, strict=True)
                if part.mask >> p & 1 and (p >= page_log.n or str(item) != str(page_log.items[p]))
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
            if self._book is not None and "page" in self._book.kinds:
                self._open("page", page, part, runs_of(part.mask)[0], part.ts_ms)
        for event, message, came_ms in self._release(page, part.brought):
            self.attach(page, part, event, message, came_ms, now_ms, out)

    def attach_held(self, page: PageState, now_ms: int, out: Outcome) -> None:
        for event, message, came_ms in self._release(page, sum(part.brought for part in page.parts)):
            part = page.part_of(event.position)
            assert part is not None
            self.attach(page, part, event, message, came_ms, now_ms, out)

    def _release(
        self, page: PageState, mask: int, before_ms: float = math.inf
    ) -> Iterator[tuple[Action, InputMessage, int]]:
        """Held actions on positions of the mask that wait no longer, with the watermark when each came."""
        for key, found in list(page.held.items()):
            if mask >> found[0].position & 1 and found[0].ts_ms < before_ms:
                del page.held[key]
                self.held -= 1
                yield found

    def attach(
        self,
        page: PageState,
        part: PagePart,
        event: Action,
        message: InputMessage,
        came_ms: int,
        now_ms: int,
        out: Outcome,
    ) -> None:
        """An action whose exposure and page log are here. ``came_ms``: the watermark when it came, ``now_ms``: the
        present one.

        The result must not depend on whether the page log came before or after: after a crash the two topics are
        read in another order. So a click that came when its exposure's label was due is a correction.
        """
        position, kind, page_log = event.position, event.kind, page.page_log
        assert page_log is not None
        bit = 1 << position
        if event.user_id != page_log.user_id and str(event.user_id) != str(page_log.user_id):
            out.dead.append(Dead("wrong-user", _of_another(page, event.user_id), message, 0))
            return
        if position >= page_log.n or (
            page_log.items[position] != event.item_id and str(page_log.items[position]) != str(event.item_id)
        ):
            out.dead.append(Dead("wrong-item", f"item {event.item_id!r} was not at position {position}", message, 0))
            return
        if page.acted[kind] & bit:
            if self._book is not None:  # it may be another purchase
                self._book.act(event, message, False)
            out.duplicates += 1
            return
        if not part.mask & bit:  # the exposure is a dead letter itself
            out.dead.append(Dead("no-exposure", f"position {position} was not exposed", message, 0))
            return
        after_ms = event.ts_ms - part.ts_ms
        early = self._waits.too_early(after_ms)
        if early or after_ms >= self._life_ms:
            if self._book is not None and self._book.act(event, message, False):
                return
            reason, where = ("no-exposure", "before") if early else ("late", "after")
            out.dead.append(Dead(reason, f"{span_name(abs(after_ms))} {where} its exposure", message, 0))
            return
        page.acted[kind] |= bit
        if self._book is not None:
            if kind == CLICK:
                self._open("click", page, part, ((position, position + 1),), event.ts_ms)
            self._book.act(event, message, True)
        out.counted.append(Counted(self._shown(page, part), ((position, position + 1),), 1, event.ts_ms, kind))
        if kind == CLICK and max(after_ms, came_ms - part.ts_ms) < self.policy.attribution_ms:
            page.in_time |= bit
        if kind != CLICK:
            if page.labelled & bit:
                self._sample(page, part, bit, FOLLOW_UP, kind, event.sent_ms, out)
            else:
                page.waiting.append((position, kind, event.sent_ms))
        elif page.labelled & bit:
            self._sample(page, part, bit, CORRECTION, kind, event.sent_ms, out)
        elif is_early(part.promise, max(after_ms, 0), came_ms - part.ts_ms):
            if now_ms < part.clicks_ms:
                page.waiting.append((position, kind, event.sent_ms))
            else:
                self._label(page, part, bit, POSITIVE, kind, event.sent_ms, out)
        else:
            self._label(page, part, bit, NEGATIVE, EXPOSURE, 0, out)
            self._sample(page, part, bit, CORRECTION, kind, event.sent_ms, out)

    def label_clicks(self, page: PageState, part: PagePart, out: Outcome) -> None:
        if not part.mask & ~page.labelled & page.acted[CLICK]:
            return
        for position, kind, origin_ms in [w for w in page.waiting if w[1] == CLICK and part.mask >> w[0] & 1]:
            page.waiting.remove((position, kind, origin_ms))
            self._label(page, part, 1 << position, POSITIVE, CLICK, origin_ms, out)

    def label_rest(self, page: PageState, part: PagePart, out: Outcome) -> None:
        """Labels all exposures of the part that have no label yet."""
        self.label_clicks(page, part, out)
        rest = part.mask & ~page.labelled
        if rest:
            self._label(page, part, rest, NEGATIVE, EXPOSURE, 0, out)

    def send_again(self, page: PageState, exposed: int, out: Outcome) -> None:
        """Sends rows of a page among the positions ``exposed`` with final labels, part by part, clicked ones first."""
        page.sent_again = True
        clicked, others = rows_again(page, exposed)
        for part in page.parts:
            for mask, action in ((part.mask & clicked, CLICK), (part.mask & others, EXPOSURE)):
                if mask:
                    self._sample(page, part, mask, PAGE, action, 0, out)

    def _open(self, on: str, page: PageState, part: PagePart, runs: Runs, base_ms: int) -> None:
        assert self._book is not None
        shown = self._shown(page, part)
        self._book.open(on, page.request, runs, shown, base_ms, part.ts_ms, part.promise.code)

    def _label(
        self, page: PageState, part: PagePart, mask: int, kind: int, action: int, origin_ms: int, out: Outcome
    ) -> None:
        """Makes the one sample that labels an exposure, with the follow-ups that waited for the label."""
        self.pending -= mask.bit_count()
        page.labelled |= mask
        self._sample(page, part, mask, kind, action, origin_ms, out)
        if page.waiting:
            ready = [w for w in page.waiting if mask >> w[0] & 1]
            page.waiting = [w for w in page.waiting if not mask >> w[0] & 1]
            for position, later, origin in ready:
                self._sample(page, part, 1 << position, FOLLOW_UP, later, origin, out)

    def _shown(self, page: PageState, part: PagePart) -> LoggedPage:
        assert page.page_log is not None
        if part.slots is None or self._shown_as is None:
            return page.page_log
        if page.shown is None or not part.placed:  # each position has one part, so the parts share one copy
            rows = [(p, shown) for shown, p in enumerate(part.slots, part.offset) if part.mask >> p & 1]
            page.shown = self._shown_as.page(page.page_log, page.shown, *zip(*rows, strict=True))
            part.placed = True
        return page.shown

    def _sample(
        self, page: PageState, part: PagePart, mask: int, kind: int, action: int, origin_ms: int, out: Outcome
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

    def lose(self, page: PageState, part: PagePart, out: Outcome) -> None:
        """Makes dead letters of a part whose page log never came, and of its actions."""
        if part.message is None:
            return
        lost = part.mask.bit_count()
        self.pending -= lost
        detail = f"request {page.request!r} was never served"
        out.dead.append(Dead("no-page-log", detail, part.message, lost))
        for _, message, _ in self._release(page, part.mask):
            out.dead.append(Dead("no-page-log", detail, message, 0))
        part.mask, part.items, part.message = 0, None, None

    def give_up(self, page: PageState, before_ms: int, out: Outcome) -> None:
        """Makes dead letters of held actions whose exposure did not come within the lateness, or came too late."""
        for event, message, _ in self._release(page, ~sum(part.brought for part in page.parts), before_ms):
            detail = f"position {event.position} of request {page.request!r} was not exposed in time"
            out.dead.append(Dead("no-exposure", detail, message, 0))

    def forfeit(self, page: PageState, out: Outcome) -> None:
        """The page log is gone: makes dead letters of what waits for it."""
        detail = f"the page log of request {page.request!r} is no longer in its topic"
        for part in page.parts:
            if part.message is not None:
                lost = part.mask.bit_count()
                self.pending -= lost
                out.dead.append(Dead("page-log-gone", detail, part.message, lost))
                part.mask, part.items, part.message = 0, None, None
        for _, message, _ in self._release(page, sum(part.brought for part in page.parts)):
            out.dead.append(Dead("page-log-gone", detail, message, 0))

    # ------------------------------------------------------------------ state

    def snapshot(self) -> tuple[int, int, int]:
        return self.pending, self._traffic.began_ms, self._traffic.newest_ms

    def resume(self, state: tuple[int, int, int]) -> None:
        self.pending, *traffic = state
        self._traffic = Traffic(*traffic)


def _of_another(page: PageState, whose: Id) -> str:
    assert page.page_log is not None
    return f"user {whose!r} names request {page.request!r}, a page of user {page.page_log.user_id!r}"
