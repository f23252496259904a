# core
"""The exposures of one partition until their rows are written: the stream's label join, told as rows. Pure.

::

    messages ──► EventGate, LabelJoin ──┬─► counted: exposures, actions ──► open rows ── an attribution window ──► rows
                                        └─► dead letters ──► left out, by reason

Gate and join are the stream's own (:mod:`stream.partition.event_gate`, :mod:`stream.join.join`). So an exposure has a
row, and an action a time in it, if the stream counts it. What the stream makes a dead letter of is left out.

- A row is open from the moment at which the stream counts the exposure, with what is known of user and item then. It is
  written when the watermark has passed the exposure by the attribution window. One that is counted late waits for as
  long from the watermark at which it is, but no longer than the join takes actions for it.
- Its label is 1 if the click's own time is within the attribution window. A later click that comes before the row is
  written has its time in the row. An action that is counted after that, such as the click that corrects a 0, is marked
  among the events.
- Of a user's exposures those beyond ``limit`` in an hour of event time are marked, as the learner leaves them out
  (:mod:`learner.gate.quota`): whoever asks who earns more leaves out such a user.

The join holds page logs without their features, since only the message tells those. When the rows of a page are
written, it settles the page as the stream does, and the page log is packed: an exposure that comes later has a row
without features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

import msgspec
import numpy as np

from millrace.basics.durations import HOUR_MS
from millrace.contracts.events import (
    ACTIONS,
    CLICK,
    EXPOSURE,
    MAX_OFFSET,
    SOURCES,
    Action,
    Event,
    Id,
    Order,
    decode_event,
)
from millrace.contracts.page_logs import PageView, decode_served, page_log_bytes
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS
from millrace.labels import REGISTRY
from stream.archive.archive_columns import SettledRow
from stream.join.join import InputMessage, LabelJoin, Outcome, Policy
from stream.join.joined_pages import PageState
from stream.join.page_rows import Counted, LoggedPage
from stream.partition.decoder import Decoder
from stream.partition.event_gate import Counts, EventGate

MOST_USERS = 250_000
"""Whose exposures are counted in an hour; those that come when there are so many have no limit."""
MOST_IDS = 250_000
"""Of items that are in memory one time each, however many pages hold them."""
LABELS_AT_ONCE = REGISTRY["fake-negative-weighted"]
"""Under this policy the join gives each label when it counts the exposure, so nothing waits in it for labels, which the
archive makes by the times."""
Attributes = Mapping[str, Mapping[str, bytes]]
"""The last attributes of users and items, packed, by side and id."""


class ArchivedPage(LoggedPage):
    """The log of a page without its features; ``message`` has them, where they are kept."""

    __slots__ = ("about", "message")

    def __init__(self, served: PageView, items: list[Id], message: bytes) -> None:
        none = dict.fromkeys(("keys", "cat", "num", "among"), b"") | {"schema_id": ""}
        # Scores are copied, since a view would keep the whole message.
        self.about = msgspec.structs.replace(served, items=items, scores=bytes(served.scores), **none)
        super().__init__(self.about, message, 0, b"", (0, 0, 0))
        self.odds = served.odds

    @property
    def packed(self) -> bytes:
        return page_log_bytes(self.about)

    @property
    def raw(self) -> bytes:
        return self.message or self.packed

    @raw.setter
    def raw(self, message: bytes) -> None:
        self.message = message


class ArchiveDecoder(Decoder):
    """Reads the page logs that the stream reads. ``features``: whether messages are kept."""

    def __init__(
        self, schema: Schema, number: int, partitions: int, history: tuple[Schema, ...], features: bool
    ) -> None:
        super().__init__(schema, number, partitions, history)
        self._features = features
        self._ids: dict[Id, Id] = {}  # pages hold the same items again and again

    def page(self, raw: bytes) -> tuple[str, LoggedPage]:
        served = self.served(raw)
        LoggedPage(served, raw, 0, b"", self.shape)  # raises for arrays of another shape
        return served.request_id, self.kept(served, raw)

    def again(self, raw: bytes) -> LoggedPage:
        """A page by its :attr:`ArchivedPage.raw`."""
        served = decode_served(raw)
        return self.kept(served, raw if served.cat or served.num else b"")

    def kept(self, served: PageView, raw: bytes) -> LoggedPage:
        if len(self._ids) > MOST_IDS:
            self._ids.clear()
        items = [self._ids.setdefault(item, item) for item in served.items]
        return ArchivedPage(served, items, raw if self._features else b"")


class ArchiveJoin(LabelJoin):
    """Keeps the page logs of settled pages, packed. A page with open rows is not settled.

    Attributes:
        logs: by request, of pages that are settled or were.
        open: by request, rows that are not written yet. The owner's.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy, None, settles=True)
        self.logs: dict[str, bytes] = {}
        self.open: dict[str, list[OpenRows]] = {}

    def _rest(self, page: PageState) -> None:
        if page.request in self.open:  # as where the page log came late: its rows wait for longer than its labels
            self._settle_at(page, self.watermark_ms)
            return
        kept = page.page_log
        super()._rest(page)
        if page.request in self.settled and isinstance(kept, ArchivedPage):
            self.logs[page.request] = kept.packed


@dataclass(slots=True)
class OpenRows:
    """The exposures of one message that were counted."""

    page: ArchivedPage
    ts_ms: int
    due_ms: int  # the watermark at which they are written
    user_raw: bytes | None
    over: bool  # its user is beyond the limit
    positions: Sequence[int]  # as answered
    slots: Sequence[int]
    item_raws: list[bytes | None]
    times: dict[int, list[int | None]] = field(default_factory=dict)  # of click, collect, cart, purchase, by position


class ArchivedPages(EventGate):
    """The pages of one partition.

    Args:
        attributes: as they are now.
        joined: is told each event that reaches the join, with its offset, and whether it is an action that was counted
            after its row was written.
        limit: exposures of a user in an hour that are not marked; None: none is marked.

    Attributes:
        rows: written from now on, not taken out yet.
        late: actions that came too late for their row, by type.
        left_out: other dead letters, by reason: exposures, or else messages.
    """

    def __init__(
        self,
        policy: Policy,
        decoder: ArchiveDecoder,
        attributes: Attributes,
        joined: Callable[[Event, int, bool], None],
        limit: int | None = None,
    ) -> None:
        super().__init__(policy, decoder, join := ArchiveJoin(policy))
        self._logs, self._open = join.logs, join.open
        self._again, self._attributes, self._joined, self._limit = decoder.again, attributes, joined, limit
        self._hour, self._exposed = 0, dict[str, int]()  # exposures of each user in this hour
        self.rows: list[SettledRow] = []
        self.late: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._due: list[tuple[int, str]] = []  # a heap: the watermark at which rows of a request are written

    @property
    def pending(self) -> int:
        """Exposures without a row yet."""
        return self.join.pending + sum(len(part.positions) for parts in self._open.values() for part in parts)

    @property
    def due_ms(self) -> int | None:
        """The event time at which something falls due; None: nothing waits."""
        marks = [at_ms for at_ms in (self.join.due_ms, *[at_ms for at_ms, _ in self._due[:1]]) if at_ms is not None]
        found = [at_ms + self.policy.disorder_ms for at_ms in marks] + [self.early.first_ms] * bool(self.early)
        return min(found, default=None)

    # ------------------------------------------------------------------ what comes in

    def take(self, message: InputMessage, clock_ms: int) -> None:
        """Takes an event or a page log. ``clock_ms``: the event clock when it came to Kafka."""
        outcome, counts = Outcome(), Counts()
        if message.topic == EVENTS:
            self._event(message, clock_ms, clock_ms + self.policy.ahead_ms, outcome, counts)
        else:
            self._page_log(message, outcome, counts)
        self._leave_out(outcome)

    def advance(self, now_ms: int) -> None:
        """Moves a silent partition's time on."""
        outcome = Outcome()
        self._release(now_ms, outcome)
        self._move(now_ms, outcome)
        self._leave_out(outcome)

    def early_clicks(self) -> dict[str, list[int]]:
        """Exposures whose row is open, and how many of them have a click, by arm. Without users who are beyond their
        limit now."""
        found: dict[str, list[int]] = {}
        for part in (part for parts in self._open.values() for part in parts):
            if not part.over and not self._is_over(str(part.page.user_id)):
                counts = found.setdefault(_arm(part.page), [0, 0])
                counts[0] += len(part.positions)
                counts[1] += sum(times[CLICK - 1] is not None for times in part.times.values())
        return found

    # ------------------------------------------------------------------ rules

    def _join_in(self, event: Event, message: InputMessage, outcome: Outcome) -> None:
        later = False
        if not isinstance(event, Order):  # it is of no page's row
            super()._join_in(event, message, outcome)
            for request in list(self.join.wanted):
                self.join.recall(request, self._again(self._logs[request]), outcome)
            later = self._note(outcome)
        self._joined(event, message.offset, later)

    def _page_log(self, message: InputMessage, outcome: Outcome, counts: Counts) -> None:
        super()._page_log(message, outcome, counts)
        self._note(outcome)

    def _move(self, to_ms: int, outcome: Outcome) -> None:
        while self._due and self._due[0][0] <= to_ms - self.policy.disorder_ms:  # before the join settles their pages
            due_ms, request = heappop(self._due)
            parts = self._open.pop(request, [])
            for part in parts:
                if part.due_ms <= due_ms:
                    self._write(request, part)
            left = [part for part in parts if part.due_ms > due_ms]
            if left:
                self._open[request] = left
        super()._move(to_ms, outcome)

    def _note(self, outcome: Outcome) -> bool:
        """Notes what the join has counted, one message's. Returns whether that is an action whose row was written."""
        late = self.late.total()
        for one in outcome.counted:
            if one.action == EXPOSURE:
                self._begin(one)
                continue
            ((position, _),) = one.runs
            page = one.page_log
            assert isinstance(page, ArchivedPage)
            parts = self._open.get(page.about.request_id, [])
            part = next((part for part in parts if position in part.positions), None)
            if part is None:
                self.late[ACTIONS[one.action]] += 1
            else:
                part.times.setdefault(position, [None] * (len(ACTIONS) - 1))[one.action - 1] = one.ts_ms
        outcome.counted = []
        return self.late.total() > late

    def _begin(self, one: Counted) -> None:
        page, positions = one.page_log, _positions(one)
        assert isinstance(page, ArchivedPage)
        request, user, items = page.about.request_id, str(page.user_id), self._attributes["item"]
        part, slots = self.join.pages[request].part_of(positions[0]), positions
        if part is not None and part.slots is not None:
            shown = dict(zip(part.slots, range(part.offset, part.offset + len(part.slots)), strict=True))
            positions = sorted(positions, key=shown.__getitem__)
            slots = [shown[p] for p in positions]
        item_raws = [items.get(str(page.items[p])) for p in positions]
        over, user_raw = self._over(user, one.n), self._attributes["user"].get(user)
        waits_ms = max(one.ts_ms, self.join.watermark_ms) + self.policy.attribution_ms
        due_ms = min(waits_ms, one.ts_ms + self.policy.life_ms)
        rows = OpenRows(page, one.ts_ms, due_ms, user_raw, over, positions, slots, item_raws)
        self._open.setdefault(request, []).append(rows)
        heappush(self._due, (due_ms, request))

    def _over(self, user: str, exposed: int) -> bool:
        """Counts a user's exposures: whether he is beyond the limit."""
        if self._limit is None:
            return False
        hour = self.reached.newest_ms // HOUR_MS
        if hour > self._hour:
            self._hour, self._exposed = hour, {}
        if user in self._exposed or len(self._exposed) < MOST_USERS:
            self._exposed[user] = self._exposed.get(user, 0) + exposed
        return self._is_over(user)

    def _is_over(self, user: str) -> bool:
        return self._limit is not None and self._exposed.get(user, 0) > self._limit

    def _leave_out(self, outcome: Outcome) -> None:
        for dead in outcome.dead:
            event = decode_event(dead.message.raw) if dead.reason == "late" else None
            if isinstance(event, Action):
                self.late[ACTIONS[event.kind]] += 1
            else:
                self.left_out[dead.reason] += dead.exposures or 1

    def _write(self, request: str, part: OpenRows) -> None:
        page, about = part.page, part.page.about
        scores, odds, ranked = (_numbers(raw, page.n) for raw in (bytes(about.scores), about.odds, about.ranked))
        for position, slot, item_raw in zip(part.positions, part.slots, part.item_raws, strict=True):
            click, collect, cart, purchase = part.times.get(position, (None,) * 4)
            self.rows.append(
                SettledRow(
                    ts_ms=part.ts_ms,
                    request=request,
                    position=position,
                    slot=min(MAX_OFFSET, slot + about.offset),
                    user=str(page.user_id),
                    item=str(page.items[position]),
                    user_raw=part.user_raw,
                    item_raw=item_raw,
                    times=(click, collect, cart, purchase),
                    score=scores[position],
                    version=about.model_version,
                    arm=_arm(page),
                    source=_source(about, position),
                    odds=odds[position],
                    log=page.message,
                    ranked=ranked[position],
                    over_limit=part.over,
                    late_click=click is not None and click - part.ts_ms >= self.policy.attribution_ms,
                )
            )

    # ------------------------------------------------------------------ state

    def snapshot(self, number: Callable[[str, bytes | None], int]) -> Any:
        """The whole state but ``rows``, as plain values that do not change afterwards. ``number(side, raw)`` stands for
        attributes."""
        for request in self._logs.keys() - self.join.settled.keys() - self.join.pages.keys():
            del self._logs[request]
        parts = []
        for request, part in ((request, part) for request, of in self._open.items() for part in of):
            user, items = number("user", part.user_raw), [number("item", raw) for raw in part.item_raws]
            times = [(at, *own) for at, own in part.times.items()]
            positions, slots = list(part.positions), list(part.slots)
            parts.append((request, part.ts_ms, part.due_ms, user, part.over, positions, slots, items, times))
        reached = self.reached.newest_ms, self.reached.snapshot()
        hour = self._hour, list(self._exposed.items())
        return self.join.snapshot(), dict(self._logs), self.early.snapshot(), reached, hour, parts

    def resume(self, state: Any, known: Mapping[str, Sequence[bytes | None]]) -> None:
        """Restores what :meth:`snapshot` gave into new pages; ``known`` has the attributes by side and number. Raises
        ValueError or TypeError for another state."""
        join, logs, early, reached, (self._hour, exposed), parts = state
        self.join.resume(join, self._again, decode_event)
        self._logs.update(logs)
        self.early.resume(early)
        self.reached.resume(*reached)
        self._exposed = dict(map(tuple, exposed))
        for request, ts_ms, due_ms, user, over, positions, slots, items, times in parts:
            page = self.join.pages[request].page_log  # it does not settle before its rows are written
            assert isinstance(page, ArchivedPage)
            user_raw, item_raws = known["user"][user], [known["item"][n] for n in items]
            part = OpenRows(page, ts_ms, due_ms, user_raw, over, positions, slots, item_raws)
            part.times = {at: list(own) for at, *own in times}
            self._open.setdefault(request, []).append(part)
            self._due.append((due_ms, request))
        heapify(self._due)


def _positions(one: Counted) -> Sequence[int]:
    return range(*one.runs[0]) if len(one.runs) == 1 else [p for a, b in one.runs for p in range(a, b)]


def _arm(page: ArchivedPage) -> str:
    return page.about.arm_name or page.about.arm


def _numbers(packed: bytes, n: int) -> list[float] | list[None]:
    """(n,) float32; None each where there are none."""
    found: list[float] = np.frombuffer(packed, "<f4").tolist() if len(packed) == 4 * n else []
    return found or [None] * n


def _source(about: PageView, position: int) -> str:
    code = about.sources[position] if len(about.sources) == len(about.items) else 0
    return SOURCES[code] if code < len(SOURCES) else SOURCES[0]
