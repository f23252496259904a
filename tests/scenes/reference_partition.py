"""The reference implementation of the label join and the windows: event by event, in plain Python, short and slow.

It keeps one dictionary entry for each exposure, one for each action, and one for each window key and unit of time.
Tests assert that :class:`~stream.partition.partition.Partition` gives the same samples, dead letters and counts. It
never forgets an exposure, so its memory grows for as long as it runs.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from millrace.basics.durations import DAY_MIN, GRAINS_MIN, HOUR_MIN, grain_minutes, unit_minutes
from millrace.contracts.clock import PAGES
from millrace.contracts.events import (
    ACTIONS,
    CLICK,
    Action,
    BadEventError,
    Event,
    Exposure,
    PageLog,
    decode_event,
)
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, PAGE, POSITIVE
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, PAGE_LOGS
from millrace.labels import Promise
from millrace.windows.tile_memory import UNIT
from stream.join.join import InputMessage, Policy
from stream.join.page_again import drawn

MINUTE_MS = 60_000
EXPOSED, LABELLED, LOST = 0, 1, 2  # the states of an exposure: without a label yet, with one, never to have one
_LABEL, _DROP, _HELD, _CLICK = range(4)  # what is due: a label, an exposure's end, an action's end, a click's label
Id = tuple[str, int]
"""An exposure's identity: its page's request id and its position on the page."""


class Row(NamedTuple):
    """One sample. ``features`` are the bytes of its row of ``cat``, then of ``num``, then of its score."""

    request: str
    position: int
    kind: int
    actions: int
    ts_ms: int
    origin_ms: int
    user: str
    item: str
    version: int
    features: bytes


class Served:
    """A page log with its arrays: keys (n, K), cat (n, F), num (n, N), scores (n,)."""

    def __init__(self, page_log: PageLog, schema: Schema) -> None:
        n, layout = len(page_log.items), schema.layout
        self.page_log = page_log
        self.keys = np.frombuffer(page_log.keys, "<u8").reshape(n, layout.K)
        self.cat = np.frombuffer(page_log.cat, "<i8").reshape(n, layout.F)
        self.num = np.frombuffer(page_log.num, "<f4").reshape(n, layout.N)
        self.scores = np.frombuffer(page_log.scores, "<f4").reshape(n)


class Seen:
    """One exposure, and what has become of it."""

    def __init__(self, ts_ms: int, user: str, item: str, promise: Promise[int]) -> None:
        self.ts_ms, self.user, self.item, self.state = ts_ms, user, item, EXPOSED
        self.served: Served | None = None
        self.acted: set[int] = set()
        self.promise = promise
        self.click: Action | None = None  # one that waits to label the exposure
        self.in_time: Action | None = None  # within the attribution window
        self.follow_ups: list[Action] = []

    @property
    def label_ms(self) -> int:
        """The watermark at which it is a negative, if there is no click."""
        return self.ts_ms + self.promise.observe_ms - self.promise.slack_ms


class ReferencePartition:
    """Takes the messages that a :class:`~stream.partition.partition.Partition` takes, and says what it must come to.

    Features are as logged: a schema that has the position among them is not for pages that were shown in another order.

    Args:
        schema: names the fields, the windows and their keys.
        policy: the durations of the join, in milliseconds of event time.
    """

    def __init__(self, schema: Schema, policy: Policy) -> None:
        self.schema, self.policy = schema, policy
        self.newest_ms = self.watermark_ms = 0
        self.samples: list[Row] = []
        self.dead: list[tuple[str, int]] = []  # reason, exposures lost
        self.counts: Counter[str] = Counter()
        self.windows: dict[int, dict[int, list[int]]] = {}
        self._seen: dict[Id, Seen] = {}
        self._served: dict[str, Served] = {}
        self._sent_again: set[str] = set()
        self._positions: dict[str, list[int]] = {}
        self._held: dict[Id, list[tuple[Action, int]]] = {}  # with the watermark when it came
        self._flow_ms = self._exposed_ms = 0
        self._due: list[tuple[int, int, Id]] = []  # a heap: the watermark at which it is due, what, whose
        self._ahead: list[tuple[int, int, Event]] = []  # held until their time comes, with their number
        self._pages: list[tuple[str, int]] = []  # exposures: the newest of each user, in the order of their coming

    @property
    def pending(self) -> int:
        """How many exposures have no label yet."""
        return sum(seen.state == EXPOSED for seen in self._seen.values())

    @property
    def held(self) -> int:
        """How many actions wait for their exposure or its page log."""
        return sum(map(len, self._held.values()))

    def take(self, messages: Iterable[InputMessage], now_ms: int) -> None:
        """Takes messages in their order. ``now_ms`` is the event time that bounds what is from the future."""
        for message in messages:
            if message.topic == EVENTS:
                clock_ms = now_ms if message.clock_ms is None else min(now_ms, message.clock_ms)
                self._event(message.raw, clock_ms)
            elif message.topic == PAGE_LOGS:
                self._serve(message.raw)

    def advance(self, now_ms: int) -> None:
        """Moves the watermark to where an event of ``now_ms`` would move it; it never moves back."""
        self._release(now_ms)
        self._move(now_ms)

    def _move(self, now_ms: int) -> None:
        self.watermark_ms = max(self.watermark_ms, now_ms - self.policy.disorder_ms)
        self._expire()
        for request in self._served:
            self._send_again(request)

    def window(self, key: int, ts_ms: int) -> list[list[int]]:
        """Counts and sums of one key as the tiles define them, (W + H, A + M): W windows, then H half-lives, each with
        a count for each of A actions and a sum for each of M means. Decayed ones are as of the full hour."""
        w = self.schema.windows
        unit_ms, out = w.unit_ms, []
        for minutes in w.minutes:
            grain_ms = grain_minutes(minutes) * MINUTE_MS
            tail_ms = (ts_ms - minutes * MINUTE_MS) // grain_ms * grain_ms
            row = [0] * w.columns
            for unit, counts in self.windows.get(key, {}).items():
                if tail_ms <= unit * unit_ms < ts_ms:
                    row = [a + b for a, b in zip(row, counts, strict=True)]
            out.append(row)
        per_day = DAY_MIN * MINUTE_MS // unit_ms
        for life in w.half_lives:  # ``tail_ms`` is now that of the longest window
            row = [0] * w.columns
            for unit, counts in self.windows.get(key, {}).items():
                if tail_ms <= unit * unit_ms < ts_ms:
                    weight = round(UNIT * 2 ** -(age_units(unit, ts_ms, w.minutes) / (per_day * life)))
                    row = [a + b * weight for a, b in zip(row, counts, strict=True)]
            out.append(row)
        return out

    def _send_again(self, request: str) -> None:
        """Sends a page again, if its labels are final: its clicked rows, and some others."""
        page_log, wait_ms = self._served[request].page_log, self.policy.attribution_ms
        due_ms = page_log.ts_ms + wait_ms
        clicked: list[int] = []
        others: list[int] = []
        for ts_ms, p in sorted((self._seen[request, p].ts_ms, p) for p in self._positions.get(request, [])):
            if ts_ms >= due_ms:
                break
            seen = self._seen[request, p]
            due_ms = max(due_ms, ts_ms + wait_ms)
            if seen.state == LABELLED or (seen.state == EXPOSED and seen.served is not None):
                (clicked if seen.in_time is not None else others).append(p)
        if due_ms > self.watermark_ms or not self.policy.sends_pages or request in self._sent_again:
            return
        self._sent_again.add(request)
        if clicked and others:
            for p in clicked:
                self._sample((request, p), PAGE, self._seen[request, p].in_time)
            others.sort()
            for k in drawn(request, len(others)):
                self._sample((request, others[k]), PAGE, None)

    def _event(self, raw: bytes, clock_ms: int) -> None:
        try:
            event = decode_event(raw)
        except BadEventError as error:
            self.dead.append((error.reason, 0))
            return
        if event.ts_ms > clock_ms + self.policy.ahead_ms:
            lost = len(event.items) if isinstance(event, Exposure) else 0
            self.counts["exposures"] += lost
            self.dead.append(("future", lost))
            return
        self.counts[f"events.{ACTIONS[event.kind]}"] += 1
        self._release(clock_ms)
        if isinstance(event, Exposure):
            user = str(event.user_id)
            self._pages = [*((u, at) for u, at in self._pages if u != user), (user, event.ts_ms)][-PAGES:]
        if event.ts_ms > max(self.newest_ms, clock_ms + self.policy.disorder_ms):
            most_ms = sorted((at for _, at in self._pages), reverse=True)[PAGES // 2 : PAGES // 2 + 1]
            self.newest_ms, before_ms = max(self.newest_ms, *most_ms, 0), self.newest_ms
            if event.ts_ms > self.newest_ms:
                self.counts["ahead"] += 1
                self._ahead.append((event.ts_ms, sum(self.counts.values()), event))
                if self.newest_ms > before_ms:
                    self._release(clock_ms)
                    self._move(self.newest_ms)
                return
        self.counts["late"] += event.ts_ms < self.watermark_ms
        self._take(event)

    def _release(self, clock_ms: int) -> None:
        """Takes what was held and is not ahead any more."""
        for one in sorted(self._ahead):
            if one[0] <= max(self.newest_ms, clock_ms):
                self._ahead.remove(one)
                self._take(one[2])

    def _take(self, event: Event) -> None:
        if event.ts_ms > self.newest_ms:
            self.newest_ms = event.ts_ms
        self._move(event.ts_ms)
        if isinstance(event, Exposure):
            self._expose(event)
        else:
            assert isinstance(event, Action)
            self._act(event)

    def _expose(self, event: Exposure) -> None:
        new = [
            (p, str(item))
            for p, item in zip(event.places, event.items, strict=True)
            if (event.request_id, p) not in self._seen
        ]
        late = event.ts_ms + self.policy.life_ms <= self.watermark_ms
        self.counts["exposures"] += len(new)
        if new and not late:
            if event.ts_ms - self._exposed_ms > self.policy.attribution_ms:
                self._flow_ms = event.ts_ms
            self._exposed_ms = max(self._exposed_ms, event.ts_ms)
        promise = self.policy.label.promise(self.policy.waits, max(0, event.ts_ms - self._flow_ms))
        for p, item in new:
            identity = (event.request_id, p)
            seen = self._seen[identity] = Seen(event.ts_ms, str(event.user_id), item, promise)
            if late:
                seen.state = LOST
                continue
            self._positions.setdefault(event.request_id, []).append(p)
            heapq.heappush(self._due, (event.ts_ms + promise.hold_ms - promise.slack_ms, _CLICK, identity))
            heapq.heappush(self._due, (seen.label_ms, _LABEL, identity))
            heapq.heappush(self._due, (event.ts_ms + self.policy.life_ms, _DROP, identity))
            if event.request_id in self._served:
                self._match(identity)
        if late:
            self.dead.append(("late", len(new)))
        elif not new:
            self.counts["duplicates"] += 1

    def _serve(self, raw: bytes) -> None:
        try:
            page_log = decode_page_log(raw)
            if page_log.schema_id != self.schema.id:
                raise ValueError("schema")
            served = Served(page_log, self.schema)
        except ValueError:
            self.dead.append(("bad-page-log", 0))
            return
        self.counts["page_logs"] += 1
        if page_log.request_id in self._served:
            return
        self._served[page_log.request_id] = served
        for p in self._positions.get(page_log.request_id, []):
            if self._seen[page_log.request_id, p].state == EXPOSED:
                self._match((page_log.request_id, p))
        self._send_again(page_log.request_id)

    def _match(self, identity: Id) -> None:
        seen, served = self._seen[identity], self._served[identity[0]]
        items = served.page_log.items
        if seen.user != str(served.page_log.user_id):
            seen.state = LOST
            self.dead.append(("wrong-user", 1))
        elif identity[1] >= len(items) or str(items[identity[1]]) != seen.item:
            seen.state = LOST
            self.dead.append(("wrong-item", 1))
        else:
            seen.served = served
            self._count(served, identity[1], seen.ts_ms, 0)
        for action, came_ms in self._held.pop(identity, []):
            self._attach(action, came_ms)
        if seen.label_ms <= self.watermark_ms:
            self._settle(identity)

    def _act(self, event: Action) -> None:
        identity = (event.request_id, event.position)
        seen = self._seen.get(identity)
        if seen is None or (seen.state == EXPOSED and seen.served is None):
            if seen is None and event.ts_ms + self.policy.lateness_ms < self.watermark_ms:
                self.dead.append(("late", 0))
                return
            held = self._held.setdefault(identity, [])
            same = event.kind, str(event.item_id), str(event.user_id)
            if any((h.kind, str(h.item_id), str(h.user_id)) == same for h, _ in held):
                self.counts["duplicates"] += 1
                return
            held.append((event, self.watermark_ms))
            heapq.heappush(self._due, (event.ts_ms + self.policy.lateness_ms + 1, _HELD, identity))
        elif seen.ts_ms + self.policy.life_ms <= self.watermark_ms:
            self.dead.append(("late", 0))
        else:
            self._attach(event, self.watermark_ms)

    def _attach(self, event: Action, came_ms: int) -> None:
        identity = (event.request_id, event.position)
        seen, served = self._seen[identity], self._served[event.request_id]
        items = served.page_log.items
        if str(event.user_id) != str(served.page_log.user_id):
            self.dead.append(("wrong-user", 0))
        elif event.position >= len(items) or str(items[event.position]) != str(event.item_id):
            self.dead.append(("wrong-item", 0))
        elif event.kind in seen.acted:
            self.counts["duplicates"] += 1
        elif seen.state == LOST or event.ts_ms < seen.ts_ms - self.policy.disorder_ms:
            self.dead.append(("no-exposure", 0))
        elif event.ts_ms - seen.ts_ms >= self.policy.life_ms:
            self.dead.append(("late", 0))
        else:
            seen.acted.add(event.kind)
            self._count(served, event.position, event.ts_ms, event.kind)
            after_ms = max(event.ts_ms, came_ms) - seen.ts_ms
            if event.kind == CLICK and after_ms < self.policy.attribution_ms:
                seen.in_time = event
            if event.kind != CLICK:
                if seen.state == LABELLED:
                    self._sample(identity, FOLLOW_UP, event)
                else:
                    seen.follow_ups.append(event)
            elif seen.state == LABELLED:
                self._sample(identity, CORRECTION, event)
            elif max(event.ts_ms - seen.ts_ms, 0) < seen.promise.observe_ms and came_ms < seen.label_ms:
                seen.click = event
                hold_ms = seen.promise.hold_ms
                if not hold_ms or seen.ts_ms + hold_ms - seen.promise.slack_ms <= self.watermark_ms:
                    self._settle(identity)
            else:
                self._label(identity, NEGATIVE)
                self._sample(identity, CORRECTION, event)

    def _expire(self) -> None:
        while self._due and self._due[0][0] <= self.watermark_ms:
            _, what, identity = heapq.heappop(self._due)
            seen = self._seen.get(identity)
            if what in (_LABEL, _CLICK):
                assert seen is not None
                if what == _LABEL or seen.click is not None:
                    self._settle(identity)
            elif what == _DROP:
                assert seen is not None
                if seen.state == EXPOSED and seen.served is None:
                    seen.state = LOST
                    self.dead.append(("no-page-log", 1))
                    for _ in self._held.pop(identity, []):
                        self.dead.append(("no-page-log", 0))
            elif seen is None or seen.state == LOST:  # a held action whose exposure did not come in time
                limit = self.watermark_ms - self.policy.lateness_ms
                for held in [h for h in self._held.get(identity, []) if h[0].ts_ms < limit]:
                    self._held[identity].remove(held)
                    self.dead.append(("no-exposure", 0))

    def _settle(self, identity: Id) -> None:
        """Labels the exposure, if it was served and has no label yet."""
        seen = self._seen[identity]
        if seen.state == EXPOSED and seen.served is not None:
            self._label(identity, NEGATIVE if seen.click is None else POSITIVE, seen.click)

    def _label(self, identity: Id, kind: int, action: Action | None = None) -> None:
        seen = self._seen[identity]
        seen.state = LABELLED
        self._sample(identity, kind, action)
        for later in seen.follow_ups:
            self._sample(identity, FOLLOW_UP, later)
        seen.follow_ups = []

    def _sample(self, identity: Id, kind: int, action: Action | None) -> None:
        request, p = identity
        seen = self._seen[identity]
        assert seen.served is not None
        served, of = seen.served, seen.served.page_log
        features = served.cat[p].tobytes() + served.num[p].tobytes() + served.scores[p].tobytes()
        actions = 1 | (0 if action is None else 1 << action.kind)
        origin = 0 if action is None or kind == PAGE else action.sent_ms
        self.samples.append(
            Row(request, p, kind, actions, seen.ts_ms, origin, str(of.user_id), seen.item, of.model_version, features)
        )

    def _count(self, served: Served, position: int, ts_ms: int, kind: int) -> None:
        names: Any = self.schema.windows.actions
        if ACTIONS[kind] not in names:
            return
        column, plain = names.index(ACTIONS[kind]), self.schema.layout.plain_fields
        unit = ts_ms // self.schema.windows.unit_ms
        for key in served.keys[position].tolist():
            if key:
                tile = self.windows.setdefault(key, {}).setdefault(unit, [0] * self.schema.windows.columns)
                tile[column] += 1
                for m, mean in enumerate(self.schema.windows.means, len(names)):
                    if mean.action == ACTIONS[kind]:
                        value = float(served.num[position, [f.name for f in plain].index(mean.of)])
                        if math.isfinite(value):
                            tile[m] += min(max(round(value / mean.step), 0), (1 << 24) - 1)


def age_units(unit: int, ts_ms: int, minutes: Sequence[int]) -> float:
    """Units between the middle of the tile that holds an event's ``unit`` and the full unit before ``ts_ms``."""
    first, wide = tile_of(unit, ts_ms, minutes)
    return ts_ms // (unit_minutes(minutes) * MINUTE_MS) - first - wide / 2


def tile_of(unit: int, ts_ms: int, minutes: Sequence[int]) -> tuple[int, int]:
    """(first unit, units) of the tile that holds an event's ``unit`` as it is read at ``ts_ms``.

    Args:
        unit: units since 1970.
        ts_ms: the reader's event time.
        minutes: the lengths of the windows, which say when tiles are merged.
    """
    wide_min = unit_minutes(minutes)
    now, first, wide = ts_ms // (wide_min * MINUTE_MS), unit, 1
    grains = sorted({wide_min, *map(grain_minutes, minutes)})
    if wide_min < HOUR_MIN:  # then tiles grow step by step
        grains = [g for _, g in GRAINS_MIN if wide_min <= g <= grains[-1]]
    for fine, coarse_min in pairwise(grains):
        # So many minutes back, windows read ``fine`` tiles.
        reach = max([m for m in minutes if grain_minutes(m) <= fine], default=0) // wide_min
        coarse = coarse_min // wide_min
        if unit // coarse * coarse + coarse > now - reach:
            break
        first, wide = unit // coarse * coarse, coarse
    return first, wide
