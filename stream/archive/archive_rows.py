# core
"""Turns records of the topics into rows of events and of labelled exposures. Pure.

::

    users, items ─► the last attributes of each, packed (bytes)      as an exposure finds them, they are in its row
    events ───────► a row of the table of events ─► Pages ─► rows of the table of exposures
    page logs ────► Pages

The last attributes of all users and items are in memory, some 100 to 300 bytes each. They are no part of the stored
state, since the topics are compacted and read from their beginning at each start.

Events that the stream makes dead letters of (unreadable, from the future, in another user's partition) are counted
here and left out of the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import UNFIT, StoreError
from millrace.basics.hashing import kafka_partition
from millrace.contracts.events import BadEventError, Event, Exposure, Id, Item, Order, Purchase, decode_event, key_of
from millrace.contracts.page_logs import decode_heading
from millrace.contracts.profile_reader import Intake
from millrace.contracts.profile_warnings import SECONDS_MS
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, ITEMS, PAGE_LOGS, USERS
from millrace.labels import Waits
from stream.archive.archive_columns import EVENTS_SCHEMA, ArchiveColumns, SettledRow, text
from stream.archive.archive_pages import ArchivedPages, Made
from stream.archive.arm_figures import ArmFigure, ArmFigures
from stream.archive.logged import LoggedTable

FORM = 2
_REMEDY = "move the folder 'archive' away: a new one begins with what the topics still hold"


class TopicRecord(NamedTuple):
    """A message. ``clock_ms`` is the event clock when it came to Kafka."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    clock_ms: int


class WriteBatch(NamedTuple):
    """The rows to be written together, and the state after them."""

    events: pa.Table
    exposures: pa.Table
    state: dict[str, Any]
    features: pa.Table  # of these exposures, as logged; without rows where they are not kept


class Archive:
    """One thread at a time.

    Args:
        ahead_ms: an event further ahead of the clock than this is from the future.
        partitions: of ``events``.
        features: whether the logged features of exposures are kept (:mod:`stream.archive.logged`).
        arms: counts the rows that are taken out.
        limit: exposures of a user in an hour; those beyond it are marked. None: all count.

    Attributes:
        counts: of what was left out, by reason: those of :class:`~stream.archive.archive_pages.ArchivedPages`,
            ``future``, ``seconds`` (times in the wrong unit), ``wrong-partition``, ``unusable``, ``no-features``
            (exposures whose page's log cannot be read, or is of another schema).
        late: actions that came too late for their row, by type.
        arm_figures: of the last cut.
    """

    def __init__(
        self,
        schema: Schema,
        waits: Waits,
        ahead_ms: int,
        partitions: int,
        features: bool = False,
        arms: ArmFigures | None = None,
        limit: int | None = None,
    ) -> None:
        self.arms = arms or ArmFigures(DAY_MS)
        self.arm_figures: list[ArmFigure] = []
        self.columns = ArchiveColumns(schema)
        self._logged, self._keeps_features = LoggedTable(schema), features
        self._intake = Intake(schema)
        self._waits, self._ahead_ms, self._partitions = waits, ahead_ms, partitions
        self.positions: dict[str, dict[int, int]] = {EVENTS: {}, PAGE_LOGS: {}}
        self.counts: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self._pages = {number: ArchivedPages(waits, limit) for number in range(partitions)}
        for pages in self._pages.values():
            pages.late, pages.left_out = self.late, self.counts
        self._events: list[tuple[Any, ...]] = []
        self._users: dict[str, bytes] = {}
        self._items: dict[str, bytes] = {}

    @property
    def rows(self) -> int:
        return len(self._events) + sum(len(pages.rows) for pages in self._pages.values())

    @property
    def pending(self) -> int:
        return sum(pages.pending for pages in self._pages.values())

    def due_ms(self, partition: int) -> int | None:
        """The event time at which something of the partition falls due; None: nothing waits there."""
        due_ms = self._pages[partition].due_ms
        return None if due_ms is None else due_ms + self._waits.disorder_ms

    def newest_ms(self, partition: int) -> int:
        return self._pages[partition].newest_ms

    def take(self, record: TopicRecord) -> None:
        """Takes a message unless it is below the positions. Users and items have no position."""
        topic, number, offset, key, value, clock_ms = record
        if topic == USERS:
            self._user(number, key, value)
        elif topic == ITEMS:
            self._item(key, value)
        elif offset >= self.positions[topic].get(number, 0):
            self.positions[topic][number] = offset + 1
            if topic == EVENTS:
                self._event(number, offset, value, clock_ms)
            else:
                self._page_log(number, value)

    def advance(self, partition: int, now_ms: int) -> None:
        """Moves on a silent partition's event time."""
        self._pages[partition].advance(now_ms)

    def reset_offsets(self, topic: str, partition: int | None = None, at: int = 0) -> None:
        """The topic (a partition of it) is another log than the one that was read: its offsets begin again, ``at``."""
        self.positions[topic] = {} if partition is None else self.positions[topic] | {partition: at}

    # ------------------------------------------------------------------ messages

    def _user(self, number: int, key: bytes | None, value: bytes | None) -> None:
        """Takes what the stream takes: a message that is a dead letter there is not used here either."""
        if value is None:
            user = (key or b"").decode("utf-8", "replace")
            if _home(user, self._partitions) == number:
                self._users.pop(user, None)
            return
        try:
            found = self._intake.user(value)
        except BadEventError:
            return  # the stream keeps the attributes before it, too
        if _home(found.user_id, self._partitions) == number:
            self._users[str(found.user_id)] = self.columns.pack("user", found.attributes)

    def _item(self, key: bytes | None, value: bytes | None) -> None:
        if value is None:
            self._items.pop((key or b"").decode("utf-8", "replace"), None)
            return
        try:
            item = self._intake.item(value)
        except BadEventError:
            return
        name = str(item.item_id)
        if isinstance(item, Item):
            self._items[name] = self.columns.pack("item", item.attributes, item.born_ms)
        elif name in self._items:
            self._items[name] = self.columns.with_changes("item", self._items[name], item.changes)

    def _event(self, number: int, offset: int, value: bytes | None, clock_ms: int) -> None:
        try:
            event: Event = decode_event(value)
        except BadEventError:
            self.counts["unusable"] += 1
            return
        if event.ts_ms > clock_ms + self._ahead_ms:
            self.counts["future"] += 1
            return
        if event.ts_ms < SECONDS_MS <= clock_ms:
            self.counts["seconds"] += 1
            return
        if _home(event.user_id, self._partitions) != number:
            self.counts["wrong-partition"] += 1
            return
        self._events.append(_flat(event, number, offset))
        pages = self._pages[number]
        pages.see(event, clock_ms)
        if isinstance(event, Purchase | Order):
            self.arms.buy(number, event, self._items.get(str(event.item_id)))
        if isinstance(event, Order):
            return  # of no page's row
        if isinstance(event, Exposure):
            items = self._items
            pages.expose(event, self._users.get(str(event.user_id)), [items.get(str(i)) for i in event.items])
        else:
            pages.act(event)

    def _page_log(self, number: int, value: bytes | None) -> None:
        try:
            found = decode_heading(value)
        except BadEventError:
            self.counts["unusable"] += 1
            return
        items = [str(item) for item in found.items]
        made = Made(
            str(found.user_id),
            items,
            bytes(found.scores)[: 4 * len(items)] if len(found.scores) >= 4 * len(items) else b"",
            found.model_version,
            found.arm_name or found.arm,
            found.offset,
            found.sources,
            value if self._keeps_features and value is not None else b"",
            found.odds if len(found.odds) == 4 * len(items) else b"",
            found.ranked if len(found.ranked) == 4 * len(items) else b"",
        )
        self._pages[number].serve(found.request_id, made, found.ts_ms)

    # ------------------------------------------------------------------ out, and state

    def cut(self) -> WriteBatch:
        """Takes the rows out, with the state after them."""
        rows: list[SettledRow] = []
        for number, pages in self._pages.items():
            self.arms.take(number, pages.rows, pages.watermark_ms - self._waits.attribution_ms)
            rows += pages.rows
            pages.rows = []
        newest_ms = max(pages.newest_ms for pages in self._pages.values())
        self.arm_figures = self.arms.look(newest_ms, [pages.early() for pages in self._pages.values()])
        rows.sort(key=lambda row: row.ts_ms)
        events, self._events = self._events, []
        columns = zip(*events, strict=True) if events else [()] * len(EVENTS_SCHEMA)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, EVENTS_SCHEMA, strict=True)]
        features, lacking = self._logged.table(rows)
        if lacking:
            self.counts["no-features"] += lacking
        return WriteBatch(pa.table(arrays, EVENTS_SCHEMA), self.columns.table(rows), self._snapshot(), features)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "form": FORM,
            "positions": {topic: list(at.items()) for topic, at in self.positions.items()},
            "names": {side: self.columns.names(side) for side in ("user", "item")},
            "pages": [pages.snapshot() for pages in self._pages.values()],
            "bought": self.arms.snapshot(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restores the state of a cut; attributes packed by another schema are carried over.

        Raises:
            StoreError: the state is of another version or number of partitions.
        """
        try:
            if state["form"] != FORM:
                raise StoreError(f"an archive of form {state['form']}, this version reads {FORM}", _REMEDY)
            if len(state["pages"]) != self._partitions:
                raise StoreError(f"an archive of {len(state['pages'])} partitions, not {self._partitions}", _REMEDY)
            self.positions = {topic: dict(map(tuple, at)) for topic, at in state["positions"].items()}
            for pages, kept in zip(self._pages.values(), state["pages"], strict=True):
                pages.resume(kept)
                pages.repack(lambda side, raw: self.columns.repack(side, state["names"][side], raw))
            self.arms.resume(state["bought"])
        except UNFIT as error:
            raise StoreError(f"the archive's state is damaged ({error})", _REMEDY) from None


@lru_cache(maxsize=1 << 17)
def _home(user: Id, partitions: int) -> int:
    return kafka_partition(key_of(user), partitions)


def _flat(event: Event, number: int, offset: int) -> tuple[Any, ...]:
    kind = type(event).__struct_config__.tag
    request = None if isinstance(event, Order) else event.request_id
    start = kind, event.event_id, request, event.ts_ms, text(event.user_id)
    if isinstance(event, Order):
        what: tuple[Any, ...] = (text(event.item_id), None, None, None, None)
    elif isinstance(event, Exposure):
        what = (None, None, [text(i) for i in event.items], event.offset, event.slots)
    else:
        what = (text(event.item_id), event.position, None, None, None)
    return (*start, *what, event.sent_ms or None, number, offset)
