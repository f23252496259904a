# shell
"""The thread that keeps the shop's lists in Redis, laid out as :mod:`millrace.contracts.online_layout` says.

A changed list is replaced in one transaction. The worker that holds partition 0 keeps the lists, in a thread that
reads a little at a time. It logs, counts and repeats what fails, since nothing else depends on it.

The thread reads every item and all item tiles, from the beginning at each start. So it also writes the dead letters
of these topics. A file in the data folder has the offsets up to which dead letters were written, so that they are
not written again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer
from prometheus_client import Counter

from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import one_line
from millrace.connections.redis_clients import redis_client
from millrace.contracts.clock import EventClock, data_now_ms
from millrace.contracts.events import DeadLetter, Item, decode_item_tiles
from millrace.contracts.online_layout import LIST_NAMES, list_key
from millrace.contracts.profile_reader import Intake, no_item
from millrace.contracts.profile_warnings import ProfileChecks, ProfileWarning
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS
from millrace.processes.kafka import read_topics, read_up, topic_ids
from millrace.processes.wall import event_now_ms
from stream.worker.problemlog import ProblemLog
from stream.worker.shop_lists import Entries, ShopLists
from stream.worker.stream_metrics import WARNINGS
from stream.worker.turn import PUBLISH_SECONDS

log = structlog.get_logger("lists")

EVERY_PUBLICATIONS = 5
LISTS_AT_ONCE = 50
POLL_MS = 1000
PAUSE_SECONDS = 0.02
"""After each batch of messages: others have work to do."""

WRITTEN = Counter("millrace_lists_written_total", "Lists of the shop that had changed and were written.")
FAILURES = Counter("millrace_lists_errors_total", "Times that keeping the lists failed, or a message was skipped.")


class ListKeeper(threading.Thread):
    """It works while :attr:`active` is set. ``send`` delivers dead letters before it returns."""

    def __init__(
        self, settings: Settings, schema: Schema, clock: EventClock, send: Callable[[Sequence[DeadLetter]], None]
    ) -> None:
        super().__init__(name="lists", daemon=True)
        self.settings, self.schema, self.clock, self.send = settings, schema, clock, send
        self.dead = DeadOffsets(settings.folder("checkpoints") / "dead-items.json")
        self.problems = ProblemLog()
        self.active, self.ending = threading.Event(), threading.Event()
        self._reader: KafkaConsumer | None = None

    def end(self) -> None:
        """Asks it to end, from another thread."""
        self.ending.set()
        reader = self._reader
        if reader is not None:
            reader.close()  # ends a poll

    def run(self) -> None:
        said = False
        while not self.ending.is_set():
            if self.active.wait(0.5) and not self.ending.is_set():
                try:
                    self._keep()
                    said = False
                except Exception as error:  # the lists are no part of the loop
                    if self.ending.is_set():
                        return
                    FAILURES.inc()
                    if not said:
                        said = True
                        log.warning("lists interrupted; trying again", error=one_line(error))
                    self.ending.wait(5.0)

    def _keep(self) -> None:
        """Reads both topics from their beginning and writes the lists regularly, until another worker takes over."""
        lists, written = ShopLists(self.schema), dict[str, Entries]()
        intake, checks, written_to = Intake(self.schema), ProfileChecks(self.schema), self.dead.read()
        period = EVERY_PUBLICATIONS * PUBLISH_SECONDS
        ids = topic_ids(self.settings)
        reader = self._reader = read_topics(self.settings, {ITEMS: {}, FEATURES_ITEMS: {}}, max_poll_records=50)
        try:
            with redis_client(self.settings.redis, socket_timeout=5.0) as client:
                due = time.monotonic() + period
                while self.active.is_set() and not self.ending.is_set():
                    polled = reader.poll(timeout_ms=POLL_MS)
                    if not self.active.is_set():  # another worker keeps the lists by now and handles later messages
                        return
                    for records in polled.values():
                        warnings: list[ProfileWarning] = []
                        taken = [take(lists, intake, r, checks, warnings) for r in records]
                        self._warn(warnings)
                        # A topic that was made again has another id, and offsets that begin again.
                        place = f"{records[0].topic} {ids.get(records[0].topic, '')}".strip()
                        new = [one for one in taken if one is not None and one.offset >= written_to.get(place, 0)]
                        if new:  # after an interruption the topics are read again whole
                            FAILURES.inc(len(new))
                            self.problems.note(new)
                            self.send(new)
                            written_to[place] = new[-1].offset + 1
                            self.dead.write(written_to)
                    self.problems.write(time.monotonic())
                    if time.monotonic() >= due and read_up(reader):  # half a topic makes no list
                        write(client, lists.make(self._now(lists)), written, self.settings.prefix)
                        due = time.monotonic() + period
                    if polled:
                        self.ending.wait(PAUSE_SECONDS)
        finally:
            self._reader = None
            reader.close()

    def _warn(self, checks: Sequence[ProfileWarning]) -> None:
        for warning in checks:
            WARNINGS.labels(warning.kind).inc()
        self.problems.note((), checks)

    def _now(self, lists: ShopLists) -> int:
        after_newest_ms = lists.newest_ms + 1
        return max(after_newest_ms, data_now_ms(event_now_ms(self.clock), after_newest_ms))


def take(
    lists: ShopLists,
    intake: Intake,
    record: Any,
    checks: ProfileChecks | None = None,
    warnings: list[ProfileWarning] | None = None,
) -> DeadLetter | None:
    """Takes a message of either topic into the lists. One that cannot be used is returned as a dead letter.

    Args:
        checks: of items that are taken; their warnings are added to ``warnings``.
    """
    try:
        if record.topic == FEATURES_ITEMS:
            lists.count(decode_item_tiles(record.value))
        elif record.value is None:
            lists.remove(intake.removed(record.key))
        else:
            item = intake.item(record.value)
            if isinstance(item, Item):
                lists.put(item)
            elif not lists.change(item):
                raise no_item(item)
            if checks is not None and warnings is not None:
                warnings += checks.of_item(item, record.key)
    except Exception as error:  # unforeseen ones too: if one were raised, the same message would be read for ever
        detail = str(error) if isinstance(error, ValueError) else one_line(error)  # a BadEventError is a ValueError
        reason = "bad-item-tiles" if record.topic == FEATURES_ITEMS else "bad-item"
        raw = record.key if record.value is None else record.value
        return DeadLetter.of(reason, detail, record.topic, record.partition, record.offset, raw)
    return None


class DeadOffsets:
    """The file with the offset up to which each topic's (name and id) dead letters were written. A lost or damaged file
    reads as empty: dead letters are then written again, and readers recognise them by their offsets."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, int]:
        """The next offset by topic and its id (both topics have one partition)."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.MsgspecError):
            return {}

    def write(self, offsets: dict[str, int]) -> None:
        """Replaces the file. Not durably: see :mod:`millrace.basics.atomic_files`."""
        write_whole(self._path, msgspec.json.encode(offsets), durable=False)


def write(client: Any, lists: dict[str, Entries], written: dict[str, Entries], prefix: str = "") -> None:
    """Replaces the lists that differ from ``written``, each in one transaction, and deletes those that no longer exist.
    Keys have the ``prefix``; the members of the set of keys do not."""
    names = prefix + LIST_NAMES
    there: set[bytes] = client.smembers(names)
    if not there:
        written.clear()  # a Redis that is new, or lost its data
    changed = [(list_key(name), entries) for name, entries in lists.items() if written.get(name) != entries]
    for start in range(0, len(changed), LISTS_AT_ONCE):
        with client.pipeline(transaction=True) as transaction:
            for name, entries in changed[start : start + LISTS_AT_ONCE]:
                transaction.delete(prefix + name).zadd(prefix + name, entries).sadd(names, name)
            transaction.execute()
    gone = there - {list_key(name).encode() for name in lists}
    if gone:
        with client.pipeline(transaction=True) as transaction:
            transaction.delete(*(prefix.encode() + name for name in gone)).srem(names, *gone).execute()
    written.clear()
    written.update(lists)
    WRITTEN.inc(len(changed))
