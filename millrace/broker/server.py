# shell
"""The broker's process: connections, the two requests that carry data, and periodic work.

Requests that wait: a fetch without data (until an append to one of its partitions, or its time), join and sync (until
the group answers), produce with sync (until the next fsync, which covers all that came meanwhile).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from millrace.basics.errors import ServiceError
from millrace.broker import compact, kafka_wire, request_kinds
from millrace.broker.call import Call
from millrace.broker.codes import INVALID_REQUIRED_ACKS, NONE, BrokerRefusal
from millrace.broker.group_calls import joined_answer, synced_answer
from millrace.broker.groups import Answers, Group, Joined
from millrace.broker.kafka_connection import ClientConnection, WaitingFetch
from millrace.broker.kafka_wire import Get, Got, Malformed, Placed, Request
from millrace.broker.log import Limits, PartitionLog
from millrace.broker.offsets import Offsets
from millrace.broker.topic_store import BrokerTopic, Topics

log = structlog.get_logger("broker")

HOUSEKEEPING_SECONDS = 5.0
FETCH_BYTES = 55 * 1024 * 1024  # limit of one answer, as Kafka's ``fetch.max.bytes``

Partition = tuple[str, int]
_Acknowledgement = tuple[ClientConnection, list[bytes], list[Partition]]


class Server:
    """The broker; :meth:`run` serves.

    Args:
        folder: for all its files.
        cluster: as in :class:`Topics`.
        limits: of topics without own limits.
        sync: whether a record is on the disk before it is acknowledged.
        disk_bytes: limit for all topics together; the oldest records go beyond it.
        clock: seconds of wall time.
    """

    def __init__(
        self,
        folder: Path,
        cluster: str,
        limits: Limits,
        sync: bool = False,
        disk_bytes: float = math.inf,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self.topics = Topics(folder, cluster, limits, self.now_ms())
        for topic in self.topics:
            for number, found in enumerate(topic.logs):
                if found.torn_bytes or found.damaged_bytes:
                    log.warning(
                        "damaged, and kept apart in its folder",
                        topic=topic.name,
                        partition=number,
                        torn_bytes=found.torn_bytes,
                        damaged_bytes=found.damaged_bytes,
                    )
        self.offsets = Offsets(folder / "offsets", sync)
        self.groups: dict[str, Group] = {}
        self.connections: set[ClientConnection] = set()
        self.waiting: dict[Partition, set[WaitingFetch]] = {}
        self.port = 0
        self.loop: asyncio.AbstractEventLoop
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._sync, self._disk_bytes = sync, disk_bytes
        self._unsynced: set[PartitionLog] = set()
        self._covered: list[_Acknowledgement] = []  # what waits for the next fsync
        self._syncing: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._failed: OSError | None = None

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    def steady_ms(self) -> int:
        return int(time.monotonic() * 1000)

    # ------------------------------------------------------------------ life

    async def run(self, host: str, port: int, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serves until SIGTERM or SIGINT. Raises OSError when the port cannot be bound, ServiceError when a sync
        fails."""
        self.loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._ended.set)
        server = await self.loop.create_server(lambda: ClientConnection(self), host, port, backlog=256)
        self.port = server.sockets[0].getsockname()[1]
        housekeeping = asyncio.create_task(self._housekeeping())
        ready(self.port)
        try:
            await self._ended.wait()
        finally:
            housekeeping.cancel()
            server.close()
            for connection in list(self.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            with contextlib.suppress(asyncio.CancelledError):
                await housekeeping
            self.topics.close()
        if self._failed is not None:
            raise ServiceError(
                f"the disk did not take records of '{self._failed.filename}' ({self._failed.strerror}); they were not"
                " acknowledged, and are cut off",
                "see that the disk works and has room, then start again: producers send them once more",
            )

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            for topic in self.topics:
                for number, found in enumerate(topic.logs):
                    try:
                        gone = found.expire(self.now_ms())
                        if gone:
                            log.info(
                                "retention", topic=topic.name, partition=number, removed_mib=round(gone / 2**20, 1)
                            )
                        if compact.due(found):
                            await self._compact(topic, number, found)
                    except FileNotFoundError:
                        continue  # deleted meanwhile
                    except Exception as error:  # one log's trouble is not the others'
                        what = f"{type(error).__name__}: {error}"
                        log.error("upkeep failed", topic=topic.name, partition=number, error=what)
            gone = self.topics.bound(self._disk_bytes)
            if gone:
                log.warning(
                    "the topics take all the disk that they may (MILLRACE_BROKER_GIB): the oldest records go before"
                    " their time, and what needs them later will miss them",
                    removed_mib=round(gone / 2**20, 1),
                )

    async def _compact(self, topic: BrokerTopic, number: int, found: PartitionLog) -> None:
        closed = list(found.segments[:-1])
        before = sum(segment.size for segment in closed)
        oldest = self.now_ms() - found.limits.tombstone_ms
        path = await asyncio.to_thread(compact.merge, closed, oldest)
        if self.topics.get(topic.name) is topic and compact.adopt(found, closed, path, self.now_ms()):
            after = found.segments[0].size
            log.info("compacted", topic=topic.name, partition=number, bytes=before, left=after)

    # ------------------------------------------------------------------ requests

    def take(self, connection: ClientConnection, frame: memoryview) -> None:
        """Serves one request, now or later. Raises Malformed when it is invalid or its version is unknown."""
        head = kafka_wire.read_request(frame)
        if (
            head.key == kafka_wire.FETCH
            and kafka_wire.FETCH_VERSIONS[0] <= head.version <= kafka_wire.FETCH_VERSIONS[1]
        ):
            self._fetch(connection, head, kafka_wire.read_get(frame, head.at, head.version))
        elif (
            head.key == kafka_wire.PRODUCE
            and kafka_wire.PRODUCE_VERSIONS[0] <= head.version <= kafka_wire.PRODUCE_VERSIONS[1]
        ):
            self._produce(connection, head, frame)
        else:
            self._call(connection, head, frame)

    def _call(self, connection: ClientConnection, head: Request, frame: memoryview) -> None:
        entry = request_kinds.CALLS.get(head.key)
        if entry is None or not entry.versions[0] <= head.version <= entry.versions[1]:
            if head.key == request_kinds.API_VERSIONS:
                connection.answer([request_kinds.encode(request_kinds.unsupported_version(), 0, head.correlation)])
                return
            raise Malformed(f"request {head.key} of version {head.version} is not known to this broker")
        request = request_kinds.decode(entry, head, frame)
        ticket = _Ticket(connection, head)
        answer = entry.handle(Call(self, request, head.version, head.client, ticket))
        if answer is not None:
            ticket.answer(answer)

    # ------------------------------------------------------------------ produce

    def _produce(self, connection: ClientConnection, head: Request, frame: memoryview) -> None:
        put = kafka_wire.read_put(frame, head.at)
        now_ms = self.now_ms()
        placed, grown = [], []
        for part in put.parts:
            code, base, start, why = NONE, -1, -1, ""
            try:
                if put.acks not in (-1, 0, 1):
                    raise BrokerRefusal(INVALID_REQUIRED_ACKS, f"acks of {put.acks}")
                found = self.topics.log(part.topic, part.partition)
                base = found.append(part.records, now_ms)
                start = found.start
                grown.append((part.topic, part.partition))
                if self._sync:
                    self._unsynced.add(found)
            except BrokerRefusal as refused:
                code, why = refused.code, refused.why
            placed.append(Placed(part.topic, part.partition, code, base, start, why))
        pieces = kafka_wire.put_answer(head.correlation, head.version, placed) if put.acks else []
        if self._sync and grown:
            self._covered.append((connection, pieces, grown))
            if self._syncing is None:
                self._syncing = asyncio.ensure_future(self._sync_all())
        else:
            self._acknowledge(connection, pieces, grown)

    def _acknowledge(self, connection: ClientConnection, pieces: list[bytes], grown: list[Partition]) -> None:
        connection.answer(pieces)
        for partition in grown:
            waiting = self.waiting.get(partition)
            for one in list(waiting or ()):
                one.look()

    async def _sync_all(self) -> None:
        while self._covered:
            covered, logs = self._covered, self._unsynced
            self._covered, self._unsynced = [], set()
            try:
                await asyncio.to_thread(_sync_logs, logs)
            except OSError as error:  # no more acknowledgements: clients notice the end of this process
                self._give_up(logs, error)
                return
            for acknowledgement in covered:
                self._acknowledge(*acknowledgement)
        self._syncing = None

    def _give_up(self, logs: set[PartitionLog], error: OSError) -> None:
        self._failed = error
        for one in logs:
            try:
                one.cut(self.now_ms())
            except OSError as failed:
                log.error("what is not on the disk cannot be cut off", folder=str(one.folder), error=str(failed))
        self._ended.set()

    # ------------------------------------------------------------------ fetch

    def _fetch(self, connection: ClientConnection, head: Request, get: Get) -> None:
        got, enough = self.read(get)
        if enough or get.max_wait_ms <= 0:
            connection.answer(kafka_wire.get_answer(head.correlation, head.version, got))
        else:
            WaitingFetch(self, connection, head, get, got)

    def read(self, get: Get) -> tuple[list[Got], bool]:
        got = []
        size, failed = 0, False
        most = min(get.max_bytes, FETCH_BYTES)
        for topic, partition, offset, max_bytes in get.parts:
            code, records, end, start = NONE, b"", -1, -1
            try:
                found = self.topics.log(topic, partition)
                end, start = found.end, found.start
                left = most - size
                if left > 0 or not size:
                    records = found.fetch(offset, min(max_bytes, max(left, 0)))
            except BrokerRefusal as refused:
                code, failed = refused.code, True
            size += len(records)
            got.append(Got(topic, partition, code, end, start, records))
        return got, failed or size >= max(get.min_bytes, 1)

    def forget_topic(self, topic: BrokerTopic) -> None:
        for partition in range(len(topic.logs)):
            for one in list(self.waiting.get((topic.name, partition), ())):
                one.look()

    # ------------------------------------------------------------------ groups

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(name))

    def settle(self, group: Group, answers: Answers) -> None:
        for ticket, answer in answers:
            assert isinstance(ticket, _Ticket)
            ticket.answer(joined_answer(answer) if isinstance(answer, Joined) else synced_answer(answer))
        timer = self._timers.pop(group.name, None)
        if timer is not None:
            timer.cancel()
        due_ms = group.next_ms()
        if due_ms is not None:
            seconds = max(0.0, (due_ms - self.steady_ms()) / 1000) + 0.001
            self._timers[group.name] = self.loop.call_later(seconds, self._tick, group)
        elif not group.members:
            self.groups.pop(group.name, None)  # its committed offsets stay

    def _tick(self, group: Group) -> None:
        self._timers.pop(group.name, None)
        before = set(group.members)
        answers = group.tick(self.steady_ms())
        for name in before - set(group.members):
            log.info("member is silent, the group goes on without it", group=group.name, member=name)
        self.settle(group, answers)


def _sync_logs(logs: set[PartitionLog]) -> None:
    for one in logs:
        try:
            one.sync()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(one.folder)) from None


class _Ticket:
    """A request that a group may answer later. Its connection may be gone by then."""

    def __init__(self, connection: ClientConnection, head: Request) -> None:
        self._connection, self._head = connection, head

    def answer(self, message: Any) -> None:
        self._connection.answer([request_kinds.encode(message, self._head.version, self._head.correlation)])
