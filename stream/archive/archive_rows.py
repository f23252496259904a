# core
"""Turns records of the topics into rows of events and of labelled exposures. Pure.

::

    users, items ─► the last attributes of each, packed (bytes)      as an exposure finds them, they are in its row
    events ───────► ArchivedPages ──┬─► a row of the table of events
    page logs ────► ArchivedPages   └─► rows of the table of exposures

The last attributes of all users and items are in memory, some 100 to 300 bytes each. They are no part of the stored
state, since the topics are compacted and read from their beginning at each start.

Events that do not reach the stream's join (unreadable, from the future, in another user's partition) are counted here
and are in no table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import UNFIT, StoreError
from millrace.contracts.events import BadEventError, Event, Exposure, Item, Order, Purchase
from millrace.contracts.profile_reader import Intake
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, ITEMS, PAGE_LOGS, USERS
from millrace.labels import Waits
from stream.archive.archive_columns import EVENTS_SCHEMA, ArchiveColumns, SettledRow, text
from stream.archive.archive_pages import LABELS_AT_ONCE, ArchiveDecoder, ArchivedPages
from stream.archive.arm_figures import ArmFigure, ArmFigures
from stream.archive.logged import LoggedTable
from stream.join.join import InputMessage, Policy

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
        history: the schemas that were used one after another, as the stream has them.

    Attributes:
        counts: of what was left out, by reason: the stream's dead letters
            (:class:`~stream.archive.archive_pages.ArchivedPages`), ``no-features`` (exposures whose page was logged
            under another schema).
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
        history: tuple[Schema, ...] = (),
    ) -> None:
        self.arms = arms or ArmFigures(DAY_MS)
        self.arm_figures: list[ArmFigure] = []
        self.columns = ArchiveColumns(schema)
        self._logged = LoggedTable(schema)
        self._intake = Intake(schema)
        waited = waits.attribution_ms, waits.disorder_ms, waits.lateness_ms
        policy = Policy(*waited, ahead_ms, LABELS_AT_ONCE, waits.observation_ms)
        self._attribution_ms, self._partitions = waits.attribution_ms, partitions
        self.positions: dict[str, dict[int, int]] = {EVENTS: {}, PAGE_LOGS: {}}
        self.counts: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self._attributes: dict[str, dict[str, bytes]] = {"user": {}, "item": {}}
        self._pages = {}
        for number in range(partitions):
            decoder = ArchiveDecoder(schema, number, partitions, history, features)
            pages = ArchivedPages(policy, decoder, self._attributes, partial(self._joined, number), limit)
            pages.late, pages.left_out = self.late, self.counts
            self._pages[number] = pages
        self._events: list[tuple[Any, ...]] = []

    @property
    def rows(self) -> int:
        return len(self._events) + sum(len(pages.rows) for pages in self._pages.values())

    @property
    def pending(self) -> int:
        return sum(pages.pending for pages in self._pages.values())

    def due_ms(self, partition: int) -> int | None:
        """The event time at which something of the partition falls due; None: nothing waits there."""
        return self._pages[partition].due_ms

    def newest_ms(self, partition: int) -> int:
        return self._pages[partition].reached.newest_ms

    def take(self, record: TopicRecord) -> None:
        """Takes a message unless it is below the positions. Users and items have no position."""
        topic, number, offset, key, value, clock_ms = record
        if topic == USERS:
            self._user(number, key, value)
        elif topic == ITEMS:
            self._item(key, value)
        elif offset >= self.positions[topic].get(number, 0):
            self.positions[topic][number] = offset + 1
            self._pages[number].take(InputMessage(topic, offset, value or b""), clock_ms)

    def advance(self, partition: int, now_ms: int) -> None:
        """Moves on a silent partition's event time."""
        self._pages[partition].advance(now_ms)

    def reset_offsets(self, topic: str, partition: int | None = None, at: int = 0) -> None:
        """The topic (a partition of it) is another log than the one that was read: its offsets begin again, ``at``."""
        self.positions[topic] = {} if partition is None else self.positions[topic] | {partition: at}

    # ------------------------------------------------------------------ messages

    def _user(self, number: int, key: bytes | None, value: bytes | None) -> None:
        """Takes what the stream takes: a message that is a dead letter there is not used here either."""
        users, astray = self._attributes["user"], self._pages[number].decoder.astray
        if value is None:
            user = (key or b"").decode("utf-8", "replace")
            if not astray(user):
                users.pop(user, None)
            return
        try:
            found = self._intake.user(value)
        except BadEventError:
            return  # the stream keeps the attributes before it, too
        if not astray(found.user_id):
            users[str(found.user_id)] = self.columns.pack("user", found.attributes)

    def _item(self, key: bytes | None, value: bytes | None) -> None:
        items = self._attributes["item"]
        if value is None:
            items.pop((key or b"").decode("utf-8", "replace"), None)
            return
        try:
            item = self._intake.item(value)
        except BadEventError:
            return
        name = str(item.item_id)
        if isinstance(item, Item):
            items[name] = self.columns.pack("item", item.attributes, item.born_ms)
        elif name in items:
            items[name] = self.columns.with_changes("item", items[name], item.changes)

    def _joined(self, number: int, event: Event, offset: int, later: bool) -> None:
        self._events.append((*_flat(event, number, offset), later or None))
        if isinstance(event, Purchase | Order):
            self.arms.buy(number, event, self._attributes["item"].get(str(event.item_id)))

    # ------------------------------------------------------------------ out, and state

    def cut(self) -> WriteBatch:
        """Takes the rows out, with the state after them."""
        rows: list[SettledRow] = []
        for number, pages in self._pages.items():
            self.arms.take(number, pages.rows, pages.join.watermark_ms - self._attribution_ms)
            rows += pages.rows
            pages.rows = []
        newest_ms = max(pages.reached.newest_ms for pages in self._pages.values())
        self.arm_figures = self.arms.look(newest_ms, [pages.early_clicks() for pages in self._pages.values()])
        rows.sort(key=lambda row: row.ts_ms)
        events, self._events = self._events, []
        columns = zip(*events, strict=True) if events else [()] * len(EVENTS_SCHEMA)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, EVENTS_SCHEMA, strict=True)]
        features, lacking = self._logged.table(rows)
        if lacking:
            self.counts["no-features"] += lacking
        return WriteBatch(pa.table(arrays, EVENTS_SCHEMA), self.columns.table(rows), self._snapshot(), features)

    def _snapshot(self) -> dict[str, Any]:
        known: dict[str, dict[bytes | None, int]] = {"user": {}, "item": {}}  # many exposures find the same attributes

        def number(side: str, raw: bytes | None) -> int:
            return known[side].setdefault(raw, len(known[side]))

        return {
            "form": FORM,
            "positions": {topic: list(at.items()) for topic, at in self.positions.items()},
            "pages": [pages.snapshot(number) for pages in self._pages.values()],
            "attributes": {side: (self.columns.names(side), list(raws)) for side, raws in known.items()},
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
            known = {
                side: [self.columns.repack(side, names, raw) for raw in raws]
                for side, (names, raws) in state["attributes"].items()
            }
            for pages, kept in zip(self._pages.values(), state["pages"], strict=True):
                pages.resume(kept, known)
            self.arms.resume(state["bought"])
        except UNFIT as error:
            raise StoreError(f"the archive's state is damaged ({error})", _REMEDY) from None


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
