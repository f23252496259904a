# core
"""Exposures of one partition until they are settled: the archive's label join. Pure.

::

    page log  ──┐
    exposure  ──┼─► page, an attribution window long ─► a row an exposure ─► some bytes, for what comes late or again
    actions   ──┘

The rules are those of the stream's label join (``stream/join/join.py``), with one label at the end in place of
samples:

- An exposure is settled when the watermark has passed it by the attribution window. One that came late waits for as
  long from the watermark at which it came.
- An action counts when its event time is less than the window after its exposure and at most the disorder before it,
  and it names the page's user and the item at its position. The first one of a kind gives the time. It may come before
  its exposure.
- An exposure is identified by the request and the position as answered. Duplicates change nothing.
- An exposure by another user, or of another item, than the page had is left out. An exposure without a page log is a
  row without a score. One that comes when its page is settled has its arm, version and place, but neither score nor
  features, and its item is not compared.
- Of a user's exposures those beyond ``limit`` in an hour of event time are marked, as the learner leaves them out
  (:mod:`learner.gate.quota`): whoever asks who earns more leaves out such a user.

The watermark is the newest event's time less the allowed disorder; one event dated ahead of the event clock does not
move it (:class:`~millrace.contracts.clock.Reached`). The caller moves it on in silence (:meth:`advance`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from millrace.basics.durations import HOUR_MS
from millrace.contracts.clock import Reached
from millrace.contracts.events import ACTIONS, CLICK, MAX_OFFSET, SOURCES, Action, Event, Exposure
from millrace.labels import Waits
from stream.archive.archive_columns import SettledRow
from stream.join.dropped import DroppedPages
from stream.join.joined_pages import to_bytes, to_mask

MOST_USERS = 250_000
"""Whose exposures are counted in an hour; those that come when there are so many have no limit."""


class Made(NamedTuple):
    """The part of a page log that the archive keeps."""

    user: str
    items: list[str]
    scores: bytes  # (n,) float32
    version: int
    arm: str
    offset: int
    sources: bytes  # (n,) codes, or none
    raw: bytes  # the whole message, where features are kept
    odds: bytes  # (n,) float32, or none
    ranked: bytes  # (n,) float32, or none

    @property
    def heading(self) -> Made:
        """What is kept for exposures that come when the page is settled. It has no items."""
        return self._replace(items=[], scores=b"", sources=b"", raw=b"", odds=b"", ranked=b"")


class ArchivedPart(NamedTuple):
    """The new positions of one exposure message."""

    due_ms: int
    ts_ms: int
    user: str
    user_raw: bytes | None
    mask: int
    shown: list[tuple[int, int, str, bytes | None]]  # position, slot, item, its attributes
    over: bool  # its user is beyond the limit


class ArchivedPage:
    """All that is known of a request."""

    __slots__ = ("actions", "exposed", "made", "parts", "until_ms")

    def __init__(self) -> None:
        self.made: Made | None = None
        self.parts: list[ArchivedPart] = []
        self.actions: list[tuple[int, int, str, str, int]] = []  # kind, position, item, user, time; as they came
        self.exposed = 0  # positions of the parts, as bits
        self.until_ms = 0


class ArchivedPages:
    """The pages of one partition.

    Attributes:
        rows: settled, not taken out yet.
        late: actions that came too late for their row, by type.
        left_out: exposures and actions in no row, by reason (late, wrong-user, wrong-item, no-exposure).
    """

    def __init__(self, waits: Waits, limit: int | None = None) -> None:
        self._waits, self._limit = waits, limit
        self._hour, self._exposed = 0, dict[str, int]()  # exposures of each user in this hour
        self.watermark_ms = 0
        self._reached = Reached(waits.disorder_ms)
        self.rows: list[SettledRow] = []
        self.late: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._pages: dict[str, ArchivedPage] = {}
        self._timers: list[tuple[int, str]] = []
        self._settled = DroppedPages()
        self._headings: OrderedDict[str, tuple[int, Made]] = OrderedDict()
        """Of pages that are gone, and when to forget them, ascending."""

    @property
    def newest_ms(self) -> int:
        return self._reached.newest_ms

    @property
    def pending(self) -> int:
        return sum(part.mask.bit_count() for page in self._pages.values() for part in page.parts)

    @property
    def due_ms(self) -> int | None:
        """The watermark at which something falls due; None: nothing waits."""
        return self._timers[0][0] if self._timers else None

    # ------------------------------------------------------------------ what comes in

    def see(self, event: Event, clock_ms: int) -> None:
        """Moves the time on by an event, before it is taken. ``clock_ms``: the event clock when it came to Kafka."""
        self._reached.see(event.ts_ms, clock_ms, event.user_id if isinstance(event, Exposure) else None)
        self.advance(self.newest_ms)

    def advance(self, now_ms: int) -> None:
        """Moves the watermark to this less the disorder."""
        if now_ms - self._waits.disorder_ms > self.watermark_ms:
            self.watermark_ms = now_ms - self._waits.disorder_ms
            self._expire()

    def expose(self, event: Exposure, user_raw: bytes | None, item_raws: Sequence[bytes | None]) -> None:
        request = event.request_id
        page = self._pages.get(request)
        known = (page.exposed if page else 0) | (self._settled.exposed(request) or 0)
        mask = event.mask & ~known
        if not mask:
            return
        if event.ts_ms + self._waits.life_ms <= self.watermark_ms:
            self.left_out["late"] += mask.bit_count()
            self._settled.add(request, mask, self.watermark_ms + self._waits.life_ms)
            return
        shown = [
            (place, event.offset + n if event.slots else place, str(item), raw)
            for n, (place, item, raw) in enumerate(zip(event.places, event.items, item_raws, strict=True))
            if mask >> place & 1
        ]
        page, user = self._keep(request, event.ts_ms), str(event.user_id)
        page.exposed |= mask
        over = self._over(user, mask.bit_count())
        page.parts.append(ArchivedPart(page.until_ms, event.ts_ms, user, user_raw, mask, shown, over))

    def act(self, event: Action) -> None:
        """An action: waits for the row of its exposure."""
        if (self._settled.exposed(event.request_id) or 0) >> event.position & 1:
            self.late[ACTIONS[event.kind]] += 1
            return
        action = event.kind, event.position, str(event.item_id), str(event.user_id), event.ts_ms
        page = self._keep(event.request_id, event.ts_ms)
        # One at another time is no repeat: the first may be too early for its exposure, which may come yet.
        near_ms = self._waits.disorder_ms
        if all(action[:4] != one[:4] or abs(action[4] - one[4]) > near_ms for one in page.actions):
            page.actions.append(action)

    def serve(self, request: str, made: Made, ts_ms: int) -> None:
        """A page log; the first of a request counts."""
        if self._settled.exposed(request) is not None and request not in self._pages:
            return
        page = self._keep(request, ts_ms)
        page.made = page.made or made

    def early(self) -> dict[str, list[int]]:
        """Exposures that wait for their label and how many of them have a click, by arm, as far as page logs came.
        Without users who are beyond their limit now."""
        found: dict[str, list[int]] = {}
        for page in self._pages.values():
            if page.made is None or not page.parts:
                continue
            clicks = [(at, when_ms) for kind, at, _, _, when_ms in page.actions if kind == CLICK]
            counts = found.setdefault(page.made.arm, [0, 0])
            for part in page.parts:
                if part.user == page.made.user and not part.over and not self._is_over(part.user):
                    counts[0] += len(part.shown)
                    clicked = {at for at, when_ms in clicks if not self._waits.too_early(when_ms - part.ts_ms)}
                    counts[1] += len(clicked.intersection(place for place, *_ in part.shown))
        return found

    # ------------------------------------------------------------------ rules

    def _over(self, user: str, exposed: int) -> bool:
        """Counts a user's exposures: whether he is beyond the limit."""
        if self._limit is None:
            return False
        hour = self.newest_ms // HOUR_MS
        if hour > self._hour:
            self._hour, self._exposed = hour, {}
        if user in self._exposed or len(self._exposed) < MOST_USERS:
            self._exposed[user] = self._exposed.get(user, 0) + exposed
        return self._is_over(user)

    def _is_over(self, user: str) -> bool:
        return self._limit is not None and self._exposed.get(user, 0) > self._limit

    def _keep(self, request: str, ts_ms: int) -> ArchivedPage:
        """The page, which stays for an attribution window from now or from ``ts_ms``, whichever is later."""
        page = self._pages.get(request)
        if page is None:
            page = self._pages[request] = ArchivedPage()
            _, page.made = self._headings.pop(request, (0, None))
        due_ms = max(ts_ms, self.watermark_ms) + self._waits.attribution_ms
        if due_ms > page.until_ms:
            page.until_ms = due_ms
            heappush(self._timers, (due_ms, request))
        return page

    def _expire(self) -> None:
        now, timers = self.watermark_ms, self._timers
        while timers and timers[0][0] <= now:
            _, request = heappop(timers)
            page = self._pages.get(request)
            if page is None:
                continue
            for part in [p for p in page.parts if p.due_ms <= now]:
                self._settle(request, page, part)
                page.parts.remove(part)
            if page.until_ms <= now:
                for _ in [a for a in page.actions if not page.exposed >> a[1] & 1]:
                    self.left_out["no-exposure"] += 1
                if page.made is not None:
                    self._headings[request] = now + self._waits.life_ms, page.made.heading
                del self._pages[request]
        self._settled.expire(now)
        while self._headings and next(iter(self._headings.values()))[0] <= now:
            self._headings.popitem(last=False)

    def _settle(self, request: str, page: ArchivedPage, part: ArchivedPart) -> None:
        self._settled.add(request, part.mask, self.watermark_ms + self._waits.life_ms)
        made = page.made
        if made and made.user != part.user:
            self.left_out["wrong-user"] += len(part.shown)
            return
        for position, slot, item, raw in part.shown:
            if made and made.items and (position >= len(made.items) or made.items[position] != item):
                self.left_out["wrong-item"] += 1
                continue
            times = self._times(page, part, position, item)
            if made is None:
                about: tuple[float | None, int | None, str | None, str | None, float | None] = (None,) * 5
            else:
                about = (
                    _at(made.scores, position),
                    made.version,
                    made.arm,
                    _source(made, position),
                    _at(made.odds, position),
                )
            place = min(MAX_OFFSET, slot + (made.offset if made else 0))
            self.rows.append(
                SettledRow(
                    *(part.ts_ms, request, position, place, part.user, item, part.user_raw, raw, times),
                    *about,
                    made,
                    _at(made.ranked, position) if made else None,
                    part.over,
                )
            )

    def _times(
        self, page: ArchivedPage, part: ArchivedPart, position: int, item: str
    ) -> tuple[int | None, int | None, int | None, int | None]:
        found: list[int | None] = [None] * (len(ACTIONS) - 1)
        for kind, at, of, user, when_ms in page.actions:
            if at != position or found[kind - 1] is not None:
                continue
            if user != part.user:
                self.left_out["wrong-user"] += 1
            elif of != item:
                self.left_out["wrong-item"] += 1
            elif self._waits.too_early(when_ms - part.ts_ms):
                self.left_out["no-exposure"] += 1
            elif when_ms - part.ts_ms >= self._waits.attribution_ms:
                self.late[ACTIONS[kind]] += 1
            else:
                found[kind - 1] = when_ms
        click, collect, cart, purchase = found
        return click, collect, cart, purchase

    # ------------------------------------------------------------------ state

    def snapshot(self) -> Any:
        """The whole state but ``rows``, as plain values that do not change afterwards."""
        pages = [
            (name, p.made, list(p.parts), list(p.actions), to_bytes(p.exposed), p.until_ms)
            for name, p in self._pages.items()
        ]
        parts = [(n, m, [(*q[:4], to_bytes(q.mask), *q[5:]) for q in ps], a, e, u) for n, m, ps, a, e, u in pages]
        hour = self._hour, list(self._exposed.items())
        settled, headings = self._settled.snapshot(), [(name, *of) for name, of in self._headings.items()]
        return self.watermark_ms, self.newest_ms, parts, settled, self._reached.snapshot(), hour, headings

    def resume(self, state: Any) -> None:
        """Restores what :meth:`snapshot` gave into new pages. Raises ValueError or TypeError for another state."""
        self.watermark_ms, newest_ms, pages, settled, reached, (self._hour, exposed), headings = state
        self._exposed = dict(map(tuple, exposed))
        self._headings.update((name, (until_ms, Made(*made))) for name, until_ms, made in headings)
        self._reached.resume(newest_ms, reached)
        for name, made, parts, actions, exposed, until_ms in pages:
            page = self._pages[name] = ArchivedPage()
            page.made = None if made is None else Made(*made)
            page.parts = [
                ArchivedPart(due, ts, user, raw, to_mask(mask), [tuple(s) for s in shown], over)
                for due, ts, user, raw, mask, shown, over in parts
            ]
            page.actions = [tuple(a) for a in actions]
            page.exposed, page.until_ms = to_mask(exposed), until_ms
            self._timers += [(due_ms, name) for due_ms in {until_ms, *(p.due_ms for p in page.parts)}]
        heapify(self._timers)
        self._settled.resume(settled)

    def repack(self, by: Callable[[str, bytes | None], bytes | None]) -> None:
        """Repacks waiting attributes: ``by(side, raw)`` gives those by the present schema."""
        for page in self._pages.values():
            page.parts = [
                part._replace(
                    user_raw=by("user", part.user_raw),
                    shown=[(position, slot, item, by("item", raw)) for position, slot, item, raw in part.shown],
                )
                for part in page.parts
            ]


def _at(packed: bytes, position: int) -> float | None:
    numbers = np.frombuffer(packed, "<f4")
    return float(numbers[position]) if position < len(numbers) else None


def _source(made: Made, position: int) -> str:
    code = made.sources[position] if made.items and len(made.sources) == len(made.items) else 0
    return SOURCES[code] if code < len(SOURCES) else SOURCES[0]
