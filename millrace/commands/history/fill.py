# core
"""The stream's partitions, as they would be if they had lived through a log.

::

    ──────────── long ago ────────────┬──── the last two lives of a page ────┬─► the live loop
    pages are counted without a join  │  page logs, exposures and actions    │
    (Partition.lived), a stretch of   │  as messages (Partition.take), with  │  silence: each label is given
    time at a time                    │  the features of the replay          │

A page of long ago gets no more labels and actions. It leaves only counts, its user's last clicks, and co-clicks, which
the partition's own code makes from the same window keys, equal to the bit. For younger pages the join has to know who
was shown what, so they come as messages.

When the log ends, its labels are given: an exposure without a click is a negative, as the model has learnt it
(:mod:`millrace.commands.replay.logsamples`). A later click on a page that lives is a correction as usual.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import kafka_partition
from millrace.commands.history.logevents import LogEvents, Rows
from millrace.commands.replay.logfeatures import LogRows
from millrace.contracts.events import (
    ACTIONS,
    CART,
    CLICK,
    COLLECT,
    EXPOSURE,
    LOGGED,
    Cart,
    Click,
    Collect,
    Exposure,
    Id,
    PageLog,
    Purchase,
    key_of,
    to_json,
)
from millrace.contracts.page_logs import PageView, page_log_bytes
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, PAGE_LOGS, USERS
from stream.join.page_rows import Counted, LoggedPage
from stream.partition.partition import InputMessage, Partition, Policy

STRETCH_EVENTS = 16_384
"""Pages and acts that are counted at a time."""
LIVES = 2
"""Page lives (the time in which an action on it may come) whose pages come as messages: the join remembers a page's
end for as long again."""


class RecentRows(NamedTuple):
    """What the replay made of the rows from ``first`` on."""

    first: int
    num: NDArray[np.float32]  # (n - first, N) as scored
    last: NDArray[np.int64]  # (n - first, L) the columns of cat that follow from the users' last actions
    scores: NDArray[np.float32]  # (n - first,)


def cut_ms(end_ms: int, policy: Policy) -> int:
    """The time (ms) from which pages come as messages, for a log that ends at ``end_ms``."""
    return end_ms - LIVES * policy.life_ms - policy.disorder_ms


def fill(
    events: LogEvents,
    rows: LogRows,
    schema: Schema,
    policy: Policy,
    partitions: int,
    recent: RecentRows | None,
    from_ms: int,
    tick: Callable[[int], None] = lambda pages: None,
) -> list[Partition]:
    """The partitions, with offsets of unread topics.

    Args:
        recent: features of the pages that come as messages; None: there are none.
        from_ms: the pages from then on come as messages (:func:`cut_ms`). 0: all of them, which is the plain way.
    """
    filling = _Filling(events, rows, schema, policy, partitions, recent)
    with _no_collector():
        return _filled(filling, events, from_ms, tick)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Turns the garbage collector off: nothing made here refers to itself, and the search would take a quarter of the
    time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _filled(filling: _Filling, events: LogEvents, from_ms: int, tick: Callable[[int], None]) -> list[Partition]:
    # All that happened, in the order of time; at one time exposures come first.
    P, E = events.pages, len(events.act_ms)
    when = np.concatenate([events.page_ms, events.act_ms])
    order = np.lexsort((np.arange(P + E), when))
    long_ago = int(np.searchsorted(when[order], from_ms))
    done = 0
    for start in range(0, long_ago, STRETCH_EVENTS):
        stretch = order[start : min(start + STRETCH_EVENTS, long_ago)]
        filling.count(stretch)
        done += int((stretch < P).sum())
        tick(done)
    for start in range(long_ago, P + E, STRETCH_EVENTS):
        stretch = order[start : start + STRETCH_EVENTS]
        filling.send(stretch, from_ms)
        done += int((stretch < P).sum())
        tick(done)
    return filling.end()


class _Filling:
    def __init__(
        self,
        events: LogEvents,
        rows: LogRows,
        schema: Schema,
        policy: Policy,
        partitions: int,
        recent: RecentRows | None,
    ) -> None:
        self._events, self._rows, self._schema, self._policy, self._recent = events, rows, schema, policy, recent
        self._partitions = [Partition(n, schema, policy, partitions) for n in range(partitions)]
        layout = schema.layout
        self._shape = (layout.F, layout.N, layout.K)
        self._numbers = bool(schema.windows.means)
        self._plain = [f.name for f in layout.plain_fields]
        self._homes: dict[Id, int] = {}
        self._pages: dict[int, tuple[int, LoggedPage]] = {}  # pages that may still be acted on: partition, page
        self._names: dict[int, str] = {}  # of those that came as messages
        self._forgot = 0  # pages before this one were let go
        self._offset = 0

    # -- long ago -----------------------------------------------------------------------------------------------

    def count(self, stretch: Rows) -> None:
        """Counts a stretch of events, given as numbers of pages, and beyond them of acts."""
        events, pages = self._events, self._events.pages
        seen = stretch[stretch < pages]
        if len(seen):
            self._make(slice(int(seen[0]), int(seen[-1]) + 1))
        counted: list[list[Counted]] = [[] for _ in self._partitions]
        for number in stretch.tolist():
            home, one = self._exposed(number) if number < pages else self._acted(number - pages)
            counted[home].append(one)
        for partition, of in zip(self._partitions, counted, strict=True):
            if of:
                partition.lived(of, of[-1].ts_ms)
        self._forget(int(events.page_ms[seen[-1]]) if len(seen) else 0)

    def _exposed(self, page: int) -> tuple[int, Counted]:
        home, logged = self._pages[page]
        return home, Counted(logged, ((0, logged.n),), logged.n, logged.ts_ms, EXPOSURE)

    def _acted(self, act: int) -> tuple[int, Counted]:
        events = self._events
        row = int(events.act_row[act])
        home, logged = self._pages[int(events.page_of[row])]
        place = int(events.place_of[row])
        return home, Counted(logged, ((place, place + 1),), 1, int(events.act_ms[act]), int(events.act_kind[act]))

    def _make(self, pages: slice) -> None:
        """Makes the pages: window keys, items, and what means are made of."""
        events, builder = self._events, self._rows.builder
        bounds = events.starts[pages.start : pages.stop + 1]
        rows = events.order[bounds[0] : bounds[-1]]
        n = len(rows)
        columns, plain = self._rows.columns(rows)
        keys = memoryview(np.ascontiguousarray(builder.keys(columns, n), "<u8").view(np.uint8).reshape(-1).data)
        hashed = self._rows.hashes(builder.item_column, rows).astype("<u8").tobytes()
        num = np.zeros((n, self._shape[1]), np.float32) if self._numbers else None
        if num is not None:
            for i, name in enumerate(self._plain):
                if name in plain:
                    num[:, i] = plain[name]
        f, width, k = self._shape
        longest = int(np.diff(bounds).max())
        nothing = memoryview(bytes(max(8 * f, 4 * width, 4) * longest))
        numbers = None if num is None else memoryview(num.view(np.uint8).reshape(-1).data)
        items, users = events.items(rows), events.users(pages)
        user_hashes = self._rows.hashes(builder.user_column, rows[bounds[:-1] - bounds[0]]).tolist()
        low = 0
        for at, user in enumerate(users):
            page, size = pages.start + at, int(bounds[at + 1] - bounds[at])
            high = low + size
            own = nothing[: 4 * width * size] if numbers is None else numbers[4 * width * low : 4 * width * high]
            served = PageView(
                "",
                int(events.page_ms[page]),
                user,
                LOGGED,
                0,
                self._schema.id,
                items[low:high],
                nothing[: 4 * size],
                keys[8 * k * low : 8 * k * high],
                nothing[: 8 * f * size],
                own,
            )
            logged = LoggedPage(served, b"", user_hashes[at], hashed[8 * low : 8 * high], self._shape)
            self._pages[page] = self._home(user), logged
            low = high

    def _home(self, user: Id) -> int:
        home = self._homes.get(user)
        if home is None:
            home = self._homes[user] = kafka_partition(key_of(user), len(self._partitions))
        return home

    def _forget(self, now_ms: int) -> None:
        end = int(np.searchsorted(self._events.page_ms, now_ms - self._policy.life_ms))
        for page in range(self._forgot, end):
            self._pages.pop(page, None)
        self._forgot = max(self._forgot, end)

    # -- of late ------------------------------------------------------------------------------------------------

    def send(self, stretch: Rows, from_ms: int) -> None:
        """Sends a stretch of events as messages, where they are of pages from ``from_ms`` on."""
        events, pages = self._events, self._events.pages
        seen = stretch[stretch < pages]
        due: list[list[InputMessage | Counted]] = [[] for _ in self._partitions]
        page_logs = self._page_logs(slice(int(seen[0]), int(seen[-1]) + 1)) if len(seen) else {}
        for number in stretch.tolist():
            if number < pages:
                home, messages = page_logs[number]
                due[home] += messages
                continue
            act = number - pages
            row = int(events.act_row[act])
            if events.page_ms[events.page_of[row]] < from_ms:
                home, one = self._acted(act)
                due[home].append(one)
            else:
                home, message = self._action(act, row)
                due[home].append(message)
        for partition, of in zip(self._partitions, due, strict=True):
            for is_message, some in groupby(of, lambda one: isinstance(one, InputMessage)):
                if is_message:
                    messages = [self._numbered(one) for one in some if isinstance(one, InputMessage)]
                    dead = partition.take(messages, events.end_ms).dead
                    if dead:
                        raise ValueError(f"a page of the log became a dead letter: {dead[0].reason}, {dead[0].detail}")
                else:
                    counted = [one for one in some if isinstance(one, Counted)]
                    partition.lived(counted, counted[-1].ts_ms)

    def _page_logs(self, pages: slice) -> dict[int, tuple[int, list[InputMessage]]]:
        events, builder, recent = self._events, self._rows.builder, self._recent
        assert recent is not None
        bounds = events.starts[pages.start : pages.stop + 1]
        rows = events.order[bounds[0] : bounds[-1]]
        n = len(rows)
        columns, _ = self._rows.columns(rows)
        keys, cat = builder.keys(columns, n), builder.cat(columns, n)
        cat[:, self._schema.layout.last_columns] = recent.last[rows - recent.first]
        num, scores = recent.num[rows - recent.first], recent.scores[rows - recent.first]
        items, users, names = events.items(rows), events.users(pages), events.names(pages)
        found = {}
        for at, user in enumerate(users):
            page, part = pages.start + at, slice(int(bounds[at] - bounds[0]), int(bounds[at + 1] - bounds[0]))
            name, ts_ms = names[at], int(events.page_ms[page])
            page_log = PageLog(
                name,
                ts_ms,
                user,
                LOGGED,
                0,
                self._schema.id,
                items[part],
                scores[part].tobytes(),
                keys[part].tobytes(),
                cat[part].tobytes(),
                num[part].tobytes(),
            )
            exposure = Exposure(f"{name}/e"[:200], name, ts_ms, user, items[part])
            self._names[page] = name
            found[page] = (
                self._home(user),
                [
                    InputMessage(PAGE_LOGS, 0, page_log_bytes(page_log), ts_ms),
                    InputMessage(EVENTS, 0, to_json(exposure), ts_ms),
                ],
            )
        return found

    def _action(self, act: int, row: int) -> tuple[int, InputMessage]:
        events = self._events
        page, place, kind = int(events.page_of[row]), int(events.place_of[row]), int(events.act_kind[act])
        user, item = events.users(slice(page, page + 1))[0], events.items(np.array([row]))[0]
        name, ts_ms = self._names[page], int(events.act_ms[act])
        what = {CLICK: Click, COLLECT: Collect, CART: Cart}.get(kind, Purchase)
        action = what(f"{name}/{place}/{ACTIONS[kind]}"[-200:], name, ts_ms, user, item, place)
        return self._home(user), InputMessage(EVENTS, 0, to_json(action), ts_ms)

    def _numbered(self, message: InputMessage) -> InputMessage:
        """The message with the next offset, since a partition skips offsets that it has read."""
        self._offset += 1
        return message._replace(offset=self._offset)

    def end(self) -> list[Partition]:
        policy, last_ms = self._policy, int(self._events.page_ms[-1]) if self._events.pages else 0
        until_ms = max(last_ms + policy.attribution_ms + 1, self._events.end_ms) + policy.disorder_ms
        for partition in self._partitions:
            if partition.newest_ms:
                partition.advance(until_ms)
            partition.reset_offsets([EVENTS, PAGE_LOGS, USERS])
        return self._partitions
