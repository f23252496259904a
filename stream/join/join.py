# core
"""The label join of one partition: exposures, the page logs they were made from, and the actions on them.

::

                   page log ─┐
                             ├─► matched ──► Labeller: rows to count, samples, dead letters
                             (:mod:`stream.join.labelling`)
    exposure (positions) ────┘      ▲
                        actions ────┘

The page holds what waits: exposures for the page log, actions for the exposure. The watermark ends the waiting: an
event that is unmatched then becomes a dead letter. A page is dropped when the watermark passes exposure +
attribution + lateness. The join remembers for as long again which positions of the page were exposed.

When all labels of a page are given, it is *settled* (:mod:`stream.join.joined_pages`): some bytes, with the Kafka
offset of its page log in place of the page log. A late event for it waits: :attr:`LabelJoin.wanted` names the
page logs to be read again, and :meth:`LabelJoin.recall` goes on. The samples are those of a page that was not
settled. Its lifetime stays the same: events that wait at its end leave with the page, and are handled when the
page log is read.

The events' own times and the watermark before each message decide everything. So batches and duplicates change
neither samples nor counts, and neither does disorder within the allowed bound under a promise without slack. (Two
*different* clicks on one position are one action; the first to arrive gives its time.) Under a promise with slack, a
label does not wait for events out of order: such a click is a correction.

Sets of positions are bit masks: bit p is position p. A position is that of the answer; an exposure may say that its
items were shown elsewhere, which changes only the rows that are labelled and counted (:mod:`stream.join.shown`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from millrace.basics.durations import span_name
from millrace.contracts.events import Action, Event, Exposure, Order
from stream.join.dropped import DroppedPages
from stream.join.joined_pages import (
    GONE,
    UNKNOWN,
    InputMessage,
    PagePart,
    PageState,
    page_of,
    peek,
    plain,
    settle,
    unsettle,
    without_log,
)
from stream.join.labelling import Dead, Labeller, Outcome, Policy
from stream.join.outcome_book import OutcomeBook
from stream.join.page_again import final_labels
from stream.join.page_rows import LoggedPage
from stream.join.shown import ShownPages

__all__ = ["Dead", "InputMessage", "LabelJoin", "Outcome", "Policy"]

LABEL, LIFE, HELD, SERVED, CLICKED, AGAIN, SETTLE = range(7)
"""Kinds of timer: a part's label, a part's end, held actions, a page log's or a page's end, the label of a part's
clicks, the moment at which a page is sent again, and at which it may be settled."""
Timer = tuple[int, int, str, int]
"""The watermark at which it is due, its kind, a request, a part."""


class LabelJoin:
    """The join's state and its rules. It never reads a clock: the caller moves ``watermark_ms``.

    Call :meth:`expire` after every move of the watermark and before the next message: it decides which pages and
    events a message can be matched with.

    Args:
        policy: how long to wait.
        shown: makes pages as they were shown; None: the rows to count are as they were answered.
        settles: whether pages are settled. The caller then has to watch ``wanted`` and call :meth:`recall`.
        book: of outcomes that come late; None: no event is one.

    Attributes:
        wanted: the Kafka offset of each page log that something waits for, by request.
    """

    def __init__(
        self, policy: Policy, shown: ShownPages | None, settles: bool = False, book: OutcomeBook | None = None
    ) -> None:
        self.policy, self.settles, self.book = policy, settles, book
        self._labeller = Labeller(policy, shown, book)
        self._life_ms = policy.life_ms
        self.watermark_ms = 0
        self.pages: dict[str, PageState] = {}
        self.settled: dict[str, bytes] = {}
        self.wanted: dict[str, int] = {}
        self._leaving: dict[str, list[PageState]] = {}  # dropped while their page log was wanted
        self._dropped = DroppedPages()
        self._timers: list[Timer] = []  # a heap

    @property
    def due_ms(self) -> int | None:
        """The watermark at which the next timer is due; None: nothing waits."""
        due_ms = self._timers[0][0] if self._timers else None
        if self.book is not None and self.book.due_ms is not None:
            due_ms = min(self.book.due_ms, due_ms or self.book.due_ms)
        return due_ms

    @property
    def pending(self) -> int:
        return self._labeller.pending

    @property
    def held(self) -> int:
        """Actions that wait for their exposure or its page log."""
        return self._labeller.held

    @property
    def is_leaving(self) -> bool:
        """Whether dropped pages wait for their page log."""
        return bool(self._leaving)

    # ------------------------------------------------------------------ what comes in

    def expose(self, event: Exposure, message: InputMessage, out: Outcome) -> None:
        """An exposure message: new positions wait for their page log or are matched with it."""
        request, ts, mask = event.request_id, event.ts_ms, event.mask
        page = self.pages.get(request)
        if page is None and request in self.settled:
            if ts + self._life_ms > self.watermark_ms and not mask & ~peek(self.settled[request])[1]:
                out.duplicates += 1
                return
            page = self._wake(request)
        dropped = self._dropped.exposed(request)
        known = (0 if page is None else page.exposed) | (dropped or 0)
        everything, mask = mask, mask & ~known
        new = mask.bit_count()
        if ts + self._life_ms <= self.watermark_ms:
            out.exposures += new
            out.dead.append(Dead("late", f"{span_name(self.watermark_ms - ts)} behind the watermark", message, new))
            if page is not None:
                page.exposed |= mask
            if dropped is None:
                self._dropped.add(request, everything, self.watermark_ms + self._life_ms)
            else:
                self._dropped.widen(request, everything)
            return
        if not mask:
            out.duplicates += 1
            return
        if page is None:
            page = self.pages[request] = PageState(request)
        out.exposures += new
        self._labeller.pending += new
        page.exposed |= mask | known
        slots = event.slots if event.slots != list(range(event.offset, event.offset + len(event.items))) else None
        page.parts.append(PagePart(mask, ts, event.offset, event.items, message, self._labeller.promise(ts), slots))
        self._keep(page, ts + self._life_ms, LIFE, len(page.parts) - 1)
        if page.page_log is not None:
            self._match(page, len(page.parts) - 1, out)
            self._look_again(page, out)
        elif page.is_away:
            self._want(page, out)

    def serve(self, request: str, page_log: LoggedPage, out: Outcome, at: int = UNKNOWN) -> None:
        """A page log, at the Kafka offset ``at``: the exposures that wait for it are matched."""
        keep_ms = page_log.ts_ms + self._life_ms
        if request in self.settled:
            return
        page = self.pages.get(request)
        if page is None:
            dropped = self._dropped.exposed(request)
            if dropped is not None or keep_ms <= self.watermark_ms:
                out.unseen += dropped is None
                return
            page = self.pages[request] = PageState(request)
        if page.page_log is not None or page.is_away:
            return
        page.page_log, page.at = page_log, at
        page.drop_ms = max(page.drop_ms, keep_ms)
        self._settle_at(page, page_log.ts_ms)
        self._keep(page, keep_ms, SERVED)
        for index, part in enumerate(page.parts):
            if part.message is not None:
                self._match(page, index, out)
        self._look_again(page, out)

    def act(self, event: Action, message: InputMessage, out: Outcome) -> None:
        """An action: attached to its exposure, or held until that comes."""
        page = self.pages.get(event.request_id) or self._wake(event.request_id)
        late = (self._dropped.exposed(event.request_id) or 0) >> event.position & 1
        if not late and not (page is not None and page.exposed >> event.position & 1):
            late = event.ts_ms + self.policy.lateness_ms < self.watermark_ms
        part = None if late or page is None else page.part_of(event.position)
        gone = late or (part is not None and part.ts_ms + self._life_ms <= self.watermark_ms)
        if self.book is not None and (gone or part is None) and self.book.takes(event.kind):
            if self.book.knows(event):
                out.duplicates += 1
                return
            if self.book.act(event, message, False):
                return
        if gone:
            out.dead.append(Dead("late", "its exposure is gone", message, 0))
            return
        if page is None:
            page = self.pages[event.request_id] = PageState(event.request_id)
        if page.page_log is not None and part is not None:
            self._labeller.attach(page, part, event, message, self.watermark_ms, self.watermark_ms, out)
            return
        away = part is not None and page.is_away  # it waits for nothing that may never come
        if not away and page.holds(event):
            out.duplicates += 1
            return
        page.hold(event, message, self.watermark_ms)
        self._labeller.held += 1
        if away:
            self._want(page, out)
        else:
            self._keep(page, event.ts_ms + self.policy.lateness_ms + 1, HELD)

    def order(self, event: Order, message: InputMessage, out: Outcome) -> None:
        """A purchase that names no page, or a refund."""
        if self.book is None:
            out.dead.append(Dead("no-outcome", "the schema has no [[outcome]] of an event", message, 0))
        elif self.book.knows(event):
            out.duplicates += 1
        else:
            self.book.order(event, message)

    def recall(self, request: str, page_log: LoggedPage | None, out: Outcome) -> None:
        """The page log that was wanted, read again; None: it is gone. Unwanted ones are ignored."""
        if self.wanted.pop(request, None) is None:
            return
        out.recalled += page_log is not None
        out.page_logs_gone += page_log is None
        left = self._leaving.pop(request, [])
        for page in (*left, self.pages.get(request)):
            if page is None or not page.is_away:
                continue
            if page_log is None:
                page.at = GONE
                self._labeller.forfeit(page, out)
                continue
            page.page_log = page_log
            for index, part in enumerate(page.parts):
                if part.message is not None:
                    self._match(page, index, out)
            self._labeller.attach_held(page, self.watermark_ms, out)
            if page in left:
                for part in page.parts:
                    self._labeller.label_rest(page, part, out)
            else:
                self._settle_at(page, self.watermark_ms)  # more of the same visit may come

    def forget_log(self, out: Outcome) -> None:
        """The log of page logs was replaced: page logs that are not here are gone."""
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
        """Does everything that the watermark has made due, in that order."""
        timers, now = self._timers, self.watermark_ms
        while timers and timers[0][0] <= now:
            due, kind, request, index = heappop(timers)
            page = self.pages.get(request)
            if page is None:
                drop_ms, exposed = peek(self.settled[request]) if request in self.settled else (now + 1, 0)
                if drop_ms <= now:
                    del self.settled[request]
                    self._drop_of(request, exposed, True, out)
                continue
            if kind == LABEL and page.page_log is not None:
                self._labeller.label_rest(page, page.parts[index], out)
            elif kind == CLICKED and page.page_log is not None:
                self._labeller.label_clicks(page, page.parts[index], out)
            elif kind == LIFE and page.page_log is None and not page.is_away:
                self._labeller.lose(page, page.parts[index], out)
            elif kind == AGAIN:
                self._look_again(page, out)
            elif kind == HELD:
                self._labeller.give_up(page, now - self.policy.lateness_ms, out)
            if page.drop_ms <= now:
                self._drop(page, out)
            elif kind == SETTLE and due == page.settle_ms:
                self._rest(page)
        self._dropped.expire(now)
        if self.book is not None:
            out.dead += [Dead(*found, 0) for found in self.book.expire(now, out.files)]

    def set_back(self, to_ms: int) -> None:
        """Moves the watermark back, for another event clock. Pages dropped meanwhile are forgotten in time."""
        if to_ms < self.watermark_ms:
            self.watermark_ms = to_ms
            self._dropped.set_back(to_ms + self._life_ms)

    # ------------------------------------------------------------------ rules

    def _keep(self, page: PageState, until_ms: int, kind: int, index: int = 0) -> None:
        # A page that will settle has an earlier timer, and gets one for its end when it settles.
        if not page.settle_ms or kind == HELD:
            heappush(self._timers, (until_ms, kind, page.request, index))
        page.drop_ms = max(page.drop_ms, until_ms)

    def _rest(self, page: PageState) -> None:
        """Settles a page whose labels are all given; otherwise looks again later."""
        if page.can_settle:
            del self.pages[page.request]
            self.settled[page.request] = settle(page)
            heappush(self._timers, (page.drop_ms, SERVED, page.request, 0))
        else:
            self._settle_at(page, self.watermark_ms)

    def _settle_at(self, page: PageState, seen_ms: int) -> None:
        """Delays settling by an attribution window from then, or to the page's end."""
        due = min(seen_ms + max(1, self.policy.attribution_ms), page.drop_ms)
        if self.settles and page.at != UNKNOWN and due > page.settle_ms:
            page.settle_ms = due
            heappush(self._timers, (due, SETTLE, page.request, 0))

    def _wake(self, request: str) -> PageState | None:
        """Restores a settled page, without its page log; None: there is none."""
        raw = self.settled.pop(request, None)
        if raw is None:
            return None
        page = self.pages[request] = unsettle(request, raw)
        self._settle_at(page, self.watermark_ms)
        return page

    def _want(self, page: PageState, out: Outcome) -> None:
        if page.at == GONE:
            self._labeller.forfeit(page, out)
        else:
            self.wanted[page.request] = page.at

    def _match(self, page: PageState, index: int, out: Outcome) -> None:
        part = page.parts[index]
        self._labeller.match(page, part, self.watermark_ms, out)
        self._settle_at(page, part.ts_ms)
        due = part.label_ms
        if due <= self.watermark_ms:
            self._labeller.label_rest(page, part, out)
        elif part.mask & ~page.labelled:
            heappush(self._timers, (due, LABEL, page.request, index))
            if self.watermark_ms < part.clicks_ms < due:
                heappush(self._timers, (part.clicks_ms, CLICKED, page.request, index))

    def _look_again(self, page: PageState, out: Outcome) -> None:
        """Sends a page again once its labels are final; otherwise looks at it then."""
        if not self.policy.sends_pages or page.page_log is None or page.sent_again:
            return
        due_ms, exposed = final_labels(page, self.policy.attribution_ms)
        if due_ms <= self.watermark_ms:
            self._labeller.send_again(page, exposed, out)
        else:
            heappush(self._timers, (due_ms, AGAIN, page.request, 0))

    def _drop(self, page: PageState, out: Outcome) -> None:
        """Drops a page. Open labels are settled now, or when its page log has been read again."""
        for part in page.parts:
            if page.page_log is not None:
                self._labeller.label_rest(page, part, out)
            elif not page.is_away:
                self._labeller.lose(page, part, out)
        self._look_again(page, out)
        self._labeller.give_up(page, self.watermark_ms, out)
        del self.pages[page.request]
        if page.is_away and page.request in self.wanted:
            self._leaving.setdefault(page.request, []).append(page)
        else:
            self._labeller.held -= len(page.held)
        self._drop_of(page.request, page.exposed, page.page_log is not None or page.is_away, out)

    def _drop_of(self, request: str, exposed: int, served: bool, out: Outcome) -> None:
        if exposed:
            self._dropped.add(request, exposed, self.watermark_ms + self._life_ms)
        else:
            out.unseen += served

    # ------------------------------------------------------------------ state

    def snapshot(self) -> tuple[Any, ...]:
        """The whole state as plain values that do not change afterwards. Cheap: no array is copied."""
        pages = [plain(page) for page in self.pages.values()]
        leaving = [plain(page) for left in self._leaving.values() for page in left]
        settled, wanted = dict(self.settled), dict(self.wanted)
        return self.watermark_ms, self._labeller.snapshot(), self._dropped.snapshot(), pages, settled, leaving, wanted

    def resume(self, state: Any, page_log: Callable[[bytes], LoggedPage], decode: Callable[[bytes], Event]) -> None:
        """Restores :meth:`snapshot` into a new join; ``page_log`` and ``decode`` read messages as before."""
        self.watermark_ms, labels, dropped, pages, settled, leaving, wanted = state
        self._labeller.resume(labels)
        self._dropped.resume(dropped)
        for of in pages:
            page = page_of(of, page_log, decode)
            self._labeller.held += len(page.held)
            page.settle_ms *= self.settles  # otherwise it has the timers of a page that never settles
            self.pages[page.request] = page
            self._timers.extend(_timers_of(page, self.policy, self.settles, self.watermark_ms))
        self.settled, self.wanted = settled, wanted
        self._timers.extend((peek(raw)[0], SERVED, request, 0) for request, raw in settled.items())
        for of in leaving:
            page = page_of(of, page_log, decode)
            self._labeller.held += len(page.held)
            self._leaving.setdefault(page.request, []).append(page)
        heapify(self._timers)


def _timers_of(page: PageState, policy: Policy, settles: bool, watermark_ms: int) -> Iterator[Timer]:
    request = page.request
    yield page.drop_ms, SERVED, request, 0  # the present lifetimes may be shorter than the page's
    if page.page_log is not None:
        yield page.page_log.ts_ms + policy.life_ms, SERVED, request, 0
        if policy.sends_pages and not page.sent_again:
            yield final_labels(page, policy.attribution_ms)[0], AGAIN, request, 0
    if settles and page.settle_ms:
        yield page.settle_ms, SETTLE, request, 0
    for event, _, _ in page.held.values():
        yield event.ts_ms + policy.lateness_ms + 1, HELD, request, 0
    for index, part in enumerate(page.parts):
        yield part.ts_ms + policy.life_ms, LIFE, request, index
        if part.mask & ~page.labelled:
            yield part.label_ms, LABEL, request, index
            if watermark_ms < part.clicks_ms < part.label_ms:
                yield part.clicks_ms, CLICKED, request, index
