"""The broker with the clients that it is made for, over sockets: records, groups, topics, restarts, hostile bytes.

What clients rely on is one contract, which Apache Kafka is asked for, too (``either``): it says what is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as Place
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest
from kafka.protocol.producer import ProduceRequest, ProduceResponse

from millrace.contracts.settings import Settings
from millrace.processes.kafka import make_producer, make_reader
from millrace.processes.resident_memory import measured_bytes
from millrace.processes.services import EmbeddedBroker, tail
from tests.scenes.demo_kafka import ApacheKafka
from tests.scenes.record_batches import batch, flipped
from tests.scenes.waiting import PATIENCE, until

pytestmark = [
    pytest.mark.services,
    # Both clients leave a socket to the garbage collector when a connection breaks beneath them.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def left_to_the_collector() -> Iterator[None]:
    """What the clients leave is collected here, and not in the middle of another file's test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as server:
        yield server


class Server(Protocol):
    """A broker, whoever made it."""

    @property
    def address(self) -> str: ...


@pytest.fixture(scope="module", params=["ours", pytest.param("apache", marks=pytest.mark.kafka)])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Ours, and Apache's."""
    if request.param == "ours":
        yield request.getfixturevalue("broker")
    else:
        with ApacheKafka(tmp_path_factory.mktemp("apache") / "kafka") as server:
            yield server


def create(broker: Server, partitions: int = 1, **config: str) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    with admin(broker) as client:
        configs = {k.replace("_", "."): v for k, v in config.items()}
        client.create_topics({name: {"num_partitions": partitions, "replication_factor": 1, "configs": configs}})
    return name


@contextlib.contextmanager
def admin(broker: Server) -> Iterator[Any]:
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=[broker.address])) as client:
        yield client


def settings_of(broker: Server) -> Settings:
    return Settings(kafka=broker.address)


@contextlib.contextmanager
def producer(broker: Server, **options: Any) -> Iterator[Any]:
    with contextlib.closing(make_producer(settings_of(broker), **options)) as client:
        yield client


def send(broker: Server, topic: str, values: Iterable[bytes], partitions: int = 1, **options: Any) -> None:
    """Sends values to the partitions in turn, and sees that they are there."""
    with producer(broker) as client:
        sent = [client.send(topic, value, partition=n % partitions, **options) for n, value in enumerate(values)]
        for one in sent:
            one.get(PATIENCE)


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def read_all(broker: Server, topic: str, count: int = 0, end: int = -1) -> list[Any]:
    """The first ``count`` records of a topic; or all of its one partition up to the offset ``end``, however many."""
    found: list[Any] = []
    with contextlib.closing(make_reader(settings_of(broker), topic)) as consumer:

        def enough() -> bool:
            for records in consumer.poll(timeout_ms=100).values():
                found.extend(records)
            return len(found) >= count if end < 0 else bool(found) and found[-1].offset == end - 1

        until(enough, f"{count} records of {topic}, or offset {end - 1}", more=lambda: f"{len(found)} came")
    return found


# ------------------------------------------------------------------ records


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
async def test_what_is_sent_is_read_by_both_clients_in_order(compression: str | None, either: Server) -> None:
    topic, expected = create(either, 2), numbers(500)
    with producer(either, compression_type=compression) as client:
        for number, value in enumerate(expected):
            client.send(topic, value, key=b"k", partition=number % 2, headers=[("h", b"x")])
        client.flush()
    found = read_all(either, topic, 500)
    for partition in (0, 1):
        assert [r.value for r in found if r.partition == partition] == expected[partition::2]
    assert {(r.key, tuple(r.headers)) for r in found} == {(b"k", (("h", b"x"),))}
    consumer = AIOKafkaConsumer(bootstrap_servers=either.address, auto_offset_reset="earliest")
    consumer.assign([Place(topic, 0), Place(topic, 1)])
    await consumer.start()
    rows: list[Any] = []
    try:
        while len(rows) < 500:
            for some in (await consumer.getmany(timeout_ms=200)).values():
                rows.extend(some)
    finally:
        await consumer.stop()
    again = rows
    assert sorted((r.partition, r.offset, r.value) for r in again) == sorted(
        (r.partition, r.offset, r.value) for r in found
    )


def test_ends_and_beginnings_are_exact(either: Server) -> None:
    topic = create(either, 2)
    places = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    with producer(either, linger_ms=50) as client:
        for number in range(333):
            client.send(topic, b"%d" % number, partition=0, timestamp_ms=1_000_000 + number)
        client.flush()
    consumer = KafkaConsumer(bootstrap_servers=[either.address])
    try:
        assert consumer.end_offsets(places) == {places[0]: 333, places[1]: 0}
        assert consumer.beginning_offsets(places) == dict.fromkeys(places, 0)
        found = consumer.offsets_for_times({places[0]: 1_000_100, places[1]: 5})
        assert (found[places[0]].offset, found[places[0]].timestamp) == (100, 1_000_100)
        assert found[places[1]] is None
        with admin(either) as client:
            client.delete_records({places[0]: 200})
        assert consumer.beginning_offsets(places) == {places[0]: 200, places[1]: 0}
    finally:
        consumer.close()
    rows = read_all(either, topic, 133)
    assert [r.offset for r in rows] == list(range(200, 333))


def test_a_waiting_consumer_is_woken_by_a_producer(either: Server) -> None:
    """The consumer may wait for a minute; the test does not."""
    topic = create(either, 2)
    consumer = make_reader(
        settings_of(either),
        topic,
        fetch_max_wait_ms=55_000,
        request_timeout_ms=100_000,
        connections_max_idle_ms=200_000,
    )
    got: list[bytes] = []

    def listen() -> None:
        while not got:
            for records in consumer.poll(timeout_ms=60_000).values():
                got.extend(record.value for record in records)

    thread = threading.Thread(target=listen)
    thread.start()
    started = time.monotonic()
    send(either, topic, [b"wake"])
    thread.join(50)
    consumer.close()
    assert got == [b"wake"]
    assert time.monotonic() - started < 50, "it did not sit out its wait"


def test_both_idempotent_producers_write_each_record_once_through_broken_connections(either: Server) -> None:
    """A proxy between them and the broker drops every third answer, so that batches are sent again."""
    topic = create(either, 2)
    with Proxy(int(either.address.rpartition(":")[2])) as proxy:
        with contextlib.closing(
            KafkaProducer(
                bootstrap_servers=[f"127.0.0.1:{proxy.port}"],
                enable_idempotence=True,
                acks="all",
                retry_backoff_ms=10,
                reconnect_backoff_ms=10,
                linger_ms=2,
            )
        ) as client:
            proxy.drops_produce_answers = True
            sent = []
            for number in range(300):
                sent.append(client.send(topic, b"%d" % number, partition=0))
                if number % 10 == 9:
                    client.flush()
            assert [one.get(60).offset for one in sent] == list(range(300))
        assert proxy.dropped > 3
        before = proxy.dropped

        async def other() -> None:
            client = AIOKafkaProducer(
                bootstrap_servers=f"127.0.0.1:{proxy.port}",
                enable_idempotence=True,
                acks="all",
                retry_backoff_ms=10,
                linger_ms=2,
            )
            await client.start()
            try:
                for number in range(60):
                    await client.send_and_wait(topic, b"%d" % number, partition=1)
            finally:
                await client.stop()

        asyncio.run(other())
        assert proxy.dropped > before
    found = read_all(either, topic, 360)
    assert [r.value for r in found if r.partition == 0] == numbers(300)
    assert [r.value for r in found if r.partition == 1] == numbers(60)


class Proxy:
    """Stands between clients and the broker: tells them its own port, and breaks connections instead of every third
    answer to a Produce request."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.drops_produce_answers = False
        self.dropped = self.answers = 0
        self.port = 0

    def __enter__(self) -> Proxy:
        started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), daemon=True)
        self.thread.start()
        assert started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(30)

    async def _run(self, started: threading.Event) -> None:
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self.loop.create_task(self._pass(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self.ended.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self.target)
        own, there = struct.pack(">i", self.port), struct.pack(">i", self.target)
        try:
            while True:
                request = await self._frame(reader)
                ours.write(request)
                answer = await self._frame(theirs)
                if request[4:6] == b"\0\0":
                    self.answers += 1
                    if self.drops_produce_answers and self.answers % 3 == 0:
                        self.dropped += 1
                        return
                writer.write(answer.replace(there, own))  # the broker's port in Metadata
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            ours.close()

    async def _frame(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(4)
        return head + await reader.readexactly(int.from_bytes(head, "big"))


# ------------------------------------------------------------------ topics


ONE = {"num_partitions": 1, "replication_factor": 1}


def test_a_topic_that_is_created_again_has_another_id_and_no_old_records(either: Server) -> None:
    name = create(either)
    send(either, name, [b"old"])
    with admin(either) as client:
        first = client.describe_topics([name])[0]["topic_id"]
        with pytest.raises(TopicAlreadyExistsError):
            client.create_topics({name: ONE})
        client.delete_topics([name])
        with pytest.raises(UnknownTopicOrPartitionError):
            client.delete_topics([name])
        client.create_topics({name: ONE})
        assert client.describe_topics([name])[0]["topic_id"] != first
    with producer(either) as client:
        assert client.send(name, b"new").get(30).offset == 0
    assert [r.value for r in read_all(either, name, 1)] == [b"new"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("a/b", ONE),
        ("..", ONE),
        ("t", ONE | {"num_partitions": 0}),
        ("t", ONE | {"replication_factor": 3}),
        *(
            ("t", ONE | {"configs": {setting: value}})
            for setting, value in (("retention.ms", "soon"), ("no.such.setting", "1"), ("cleanup.policy", "sweep"))
        ),
    ],
)
def test_a_topic_that_cannot_be_is_refused(name: str, spec: dict[str, Any], either: Server) -> None:
    with admin(either) as client:
        with pytest.raises(KafkaError):
            client.create_topics({name: spec})
        assert name not in {t["name"] for t in client.describe_topics()}


def test_no_topic_has_more_partitions_than_we_hold(broker: EmbeddedBroker) -> None:
    with admin(broker) as client:
        with pytest.raises(KafkaError):
            client.create_topics({"t": ONE | {"num_partitions": 5000}})
        assert "t" not in {t["name"] for t in client.describe_topics()}


def test_a_deleted_topic_is_reported_to_who_waits_for_it(broker: EmbeddedBroker) -> None:
    name = create(broker)
    frame = fetch_frame(name, wait_ms=60_000)
    with contextlib.closing(connect(broker)) as line:
        line.sendall(frame)
        with admin(broker) as client:
            client.delete_topics([name])
        answer = receive(line)
    assert struct.pack(">ih", 0, 3) in answer, "UNKNOWN_TOPIC_OR_PARTITION for partition 0"


@pytest.mark.slow
def test_time_goes_by_and_what_is_old_goes_or_is_compacted(broker: EmbeddedBroker) -> None:
    """As the broker does it by itself: one topic by size, one by age, one by key."""
    by_size = create(broker, retention_bytes="80000")
    by_age = create(broker, retention_ms="1")
    by_key = create(broker, cleanup_policy="compact", segment_bytes="20000")
    with producer(broker, compression_type="zstd", linger_ms=0, batch_size=2000) as client:
        for number in range(3000):
            filling = random.Random(number).randbytes(100)
            for topic in (by_size, by_age):
                client.send(topic, filling)
            client.send(by_key, b"%d" % number + filling, key=b"k%d" % (number % 10))
        client.flush()
    consumer = KafkaConsumer(bootstrap_servers=[broker.address])
    places = {name: TopicPartition(name, 0) for name in (by_size, by_age, by_key)}
    try:
        until(lambda: consumer.beginning_offsets([places[by_age]])[places[by_age]] == 3000, "the old goes by age")
        until(lambda: consumer.beginning_offsets([places[by_size]])[places[by_size]] > 1000, "the old goes by size")
        start = consumer.beginning_offsets([places[by_size]])[places[by_size]]
        # One by one: the client leaves out a topic that it does not know yet when it knows another.
        assert [consumer.end_offsets([place])[place] for place in places.values()] == [3000] * 3
        until(lambda: _compacted(broker, by_key), "the keys are compacted")
    finally:
        consumer.close()
    assert [r.offset for r in read_all(broker, by_size, 3000 - start)] == list(range(start, 3000))
    newest = {}
    count = 0
    for record in read_all(broker, by_key, end=3000):
        newest[record.key] = record.offset
        count += 1
    assert newest == {b"k%d" % n: 2990 + n for n in range(10)}
    assert count < 1500


def _compacted(broker: EmbeddedBroker, topic: str) -> bool:
    return any("compacted" in line and topic in line for line in broker.log_path.read_text().split("\n"))


# ------------------------------------------------------------------ groups


class Worker:
    """A consumer of a group in a thread of its own."""

    def __init__(self, broker: Server, topic: str, group: str) -> None:
        self.assigned: set[int] = set()
        self.values: list[bytes] = []
        self._ended = threading.Event()
        self._dies = False
        self._made = (broker.address, topic, group)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()

    async def _run(self) -> None:
        address, topic, group = self._made
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=address,
            group_id=group,
            auto_offset_reset="earliest",
            session_timeout_ms=1000,
            heartbeat_interval_ms=100,
            rebalance_timeout_ms=5000,
            enable_auto_commit=False,
            fetch_max_wait_ms=50,
        )
        await consumer.start()
        while not self._ended.is_set():
            found = await consumer.getmany(timeout_ms=50)
            self.assigned = {place.partition for place in consumer.assignment()}
            self.values += [record.value for records in found.values() for record in records]
            if found:
                await consumer.commit()
        if self._dies:  # without a word to the group
            consumer._coordinator._maybe_leave_group = _nothing
        await consumer.stop()

    def end(self, *, silently: bool = False) -> None:
        self._dies = silently
        self._ended.set()
        self.thread.join(60)


async def _nothing() -> None:
    return


def test_workers_of_a_group_share_the_partitions_through_coming_leaving_and_dying(either: Server) -> None:
    topic = create(either, 4)
    group = f"g-{topic}"
    workers = [Worker(either, topic, group)]

    def shared() -> bool:
        parts = [number for worker in workers for number in worker.assigned]
        return sorted(parts) == [0, 1, 2, 3] and all(worker.assigned for worker in workers)

    try:
        until(shared, "one has all")
        workers.append(Worker(either, topic, group))
        until(shared, "two share")
        workers.append(Worker(either, topic, group))
        until(shared, "three share")
        workers.pop(1).end()
        until(shared, "two share what the third left")
        workers.pop(0).end(silently=True)
        until(shared, "one has all after the other fell silent")
        send(either, topic, numbers(40), 4)
        until(lambda: len(workers[0].values) == 40, "it reads all")
    finally:
        for worker in workers:
            worker.end()
    with admin(either) as client:
        offsets = client.list_group_offsets(group)[group]
        assert {place.partition: found.offset for place, found in offsets.items()} == dict.fromkeys(range(4), 10)
        assert client.describe_groups([group])[group]["group_state"] == "Empty"


def test_a_group_of_kafka_python_goes_on_where_it_committed(either: Server) -> None:
    topic = create(either, 2)
    send(either, topic, numbers(20))

    def take(count: int) -> list[bytes]:
        consumer = KafkaConsumer(
            topic,
            bootstrap_servers=[either.address],
            group_id=f"g-{topic}",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_poll_records=1,
        )
        found: list[bytes] = []
        try:
            while len(found) < count:
                # kafka-python 3.0.12 forgets a join that a short poll cuts off on a busy machine: it waits for ever.
                for records in consumer.poll(timeout_ms=60_000).values():
                    found += [record.value for record in records]
            consumer.commit()
        finally:
            consumer.close()
        return found

    assert take(7) + take(6) == numbers(13)


# ------------------------------------------------------------------ restarts


def killed(server: EmbeddedBroker) -> EmbeddedBroker:
    """The broker after a SIGKILL, started again on its folder and its port."""
    assert server.process is not None
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    server.again()
    return server


@pytest.mark.slow
@pytest.mark.parametrize("sync", [False, True])
def test_a_killed_broker_has_what_it_acknowledged_and_the_clients_go_on(sync: bool, tmp_path: Path) -> None:
    server = EmbeddedBroker(tmp_path, sync=sync)
    server.start()
    acknowledged: list[tuple[int, bytes]] = []
    try:
        topic = create(server)
        consumer = make_reader(settings_of(server), topic)
        seen: list[bytes] = []

        def read() -> bool:
            for records in consumer.poll(timeout_ms=50).values():
                seen.extend(record.value for record in records)
            return len(seen) == len(acknowledged)

        with contextlib.closing(consumer), producer(server, retry_backoff_ms=20, reconnect_backoff_ms=20) as client:
            for life in range(4):
                for number in range(100):
                    value = b"%d-%d" % (life, number)
                    acknowledged.append((client.send(topic, value).get(60).offset, value))
                until(read, "the consumer has read all")
                server = killed(server)
                open_sends = [client.send(topic, b"%d-late-%d" % (life, number)) for number in range(5)]
                acknowledged += [
                    (sent.get(60).offset, b"%d-late-%d" % (life, number)) for number, sent in enumerate(open_sends)
                ]
            until(read, "the consumer has read all")
        assert seen == [value for _, value in acknowledged]
        assert [offset for offset, _ in acknowledged] == list(range(420))
    finally:
        server.stop()


FAILING = """
import errno, os, sys
from pathlib import Path
from millrace.broker.__main__ import main
from millrace.basics.errors import MillraceError

fsync, mark = os.fsync, Path(sys.argv.pop(1))

def fails_once(fd):
    if mark.exists() and os.readlink(f"/proc/self/fd/{fd}").endswith(".log"):
        mark.unlink()
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    fsync(fd)

os.fsync = fails_once
try:
    main()
except MillraceError as error:
    sys.exit(f"millrace: {error}")
"""


class FailingBroker(EmbeddedBroker):
    """Its disk fails once when the file ``fails`` is there."""

    @property
    def fails(self) -> Path:
        return self.folder / "fails"

    def _argv(self, port: int) -> list[str]:
        python, _, _, *rest = super()._argv(port)
        return [python, "-c", FAILING, str(self.fails), *rest]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a descriptor's file in /proc")
def test_a_broker_whose_disk_fails_ends_in_one_line_and_what_it_acknowledged_is_there(tmp_path: Path) -> None:
    with FailingBroker(tmp_path, sync=True) as server:
        topic = create(server)
        with producer(server, retry_backoff_ms=20, reconnect_backoff_ms=20) as client:
            client.send(topic, b"before").get(60)
            server.fails.touch()
            sent = client.send(topic, b"after")
            assert server.process is not None
            assert server.process.wait(PATIENCE) == 1
            (line,) = [line for line in server.log_path.read_text().splitlines() if line.startswith("millrace: ")]
            assert f"{topic}" in line
            assert line.endswith(
                "see that the disk works and has room, then start again: producers send them once more"
            )
            server.again()
            assert sent.get(60).offset == 2, "1 was of what is cut off"
        assert [(r.offset, r.value) for r in read_all(server, topic, 2)] == [(0, b"before"), (2, b"after")]


@pytest.mark.slow
def test_topics_groups_and_producer_ids_outlive_the_broker(tmp_path: Path) -> None:
    server = EmbeddedBroker(tmp_path)
    server.start()
    try:
        topic = create(server, 2, retention_ms="86400000")
        with producer(server) as client:
            client.send(topic, b"a", partition=1).get(30)
            first = client._transaction_manager.producer_id_and_epoch.producer_id
        consumer = KafkaConsumer(bootstrap_servers=[server.address], group_id="g", enable_auto_commit=False)
        consumer.assign([TopicPartition(topic, 1)])
        consumer.seek(TopicPartition(topic, 1), 1)
        consumer.commit()
        consumer.close()
        with admin(server) as client:
            before = client.describe_topics([topic])
        server = killed(server)
        with admin(server) as client:
            assert client.describe_topics([topic]) == before
            found = client.list_group_offsets("g")["g"]
            assert found[TopicPartition(topic, 1)].offset == 1
        with producer(server) as client:
            assert client.send(topic, b"b", partition=1).get(30).offset == 1
            assert client._transaction_manager.producer_id_and_epoch.producer_id > first
    finally:
        server.stop()


# ------------------------------------------------------------------ what is no client


def connect(broker: EmbeddedBroker) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", broker.port), 30)
    line.settimeout(30)
    return line


def receive(line: socket.socket) -> bytes:
    """One answer; empty when the broker has closed the connection."""
    with contextlib.suppress(ConnectionResetError):
        head = line.recv(4, socket.MSG_WAITALL)
        if len(head) == 4:
            return line.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    return b""


def framed(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def fetch_frame(topic: str, wait_ms: int) -> bytes:
    name = struct.pack(">h", len(topic)) + topic.encode()
    part = struct.pack(">iqi", 0, 0, 1000)
    fields = struct.pack(">iiiib", -1, wait_ms, 1, 1000, 0) + struct.pack(">i", 1) + name + struct.pack(">i", 1) + part
    return framed(struct.pack(">hhih", 1, 4, 5, -1) + fields)


def works(broker: EmbeddedBroker) -> None:
    broker.check()
    assert broker.process is not None
    assert broker.process.poll() is None


ABSURD: dict[str, bytes] = {
    "a web browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "a negative length": struct.pack(">i", -5) + bytes(40),
    "a length of 2 GB": struct.pack(">i", 2**31 - 1) + bytes(40),
    "an empty frame": struct.pack(">i", 0) + bytes(40),
    "an unknown request": framed(struct.pack(">hhih", 999, 0, 1, -1)),
    "a version from the future": framed(struct.pack(">hhih", 3, 99, 1, -1)),
    "a version from the past": framed(struct.pack(">hhih", 0, 0, 1, -1)),
    "a client's name beyond the frame": framed(struct.pack(">hhih", 3, 1, 1, 32_000)),
    "a name that is not UTF-8": framed(struct.pack(">hhih", 3, 1, 1, 2) + b"\xff\xfe"),
    "a fetch of two milliard topics": framed(struct.pack(">hhih", 1, 4, 1, -1) + bytes(17) + b"\x7f\xff\xff\xff"),
    "a call of 5 MB": framed(struct.pack(">hhih", 3, 1, 1, -1) + bytes(5_000_000)),
    "tags in the head": framed(struct.pack(">hhih", 3, 12, 1, -1) + b"\x01\x00\x01x" + bytes(20)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", list(ABSURD))
def test_who_sends_what_is_no_request_loses_the_connection_and_nobody_else_does(
    what: str, broker: EmbeddedBroker
) -> None:
    before = broker.log_path.stat().st_size
    with contextlib.closing(connect(broker)) as good, contextlib.closing(connect(broker)) as bad:
        with contextlib.suppress(ConnectionError):
            bad.sendall(ABSURD[what])
        assert receive(bad) == b""
        request = MetadataRequest(version=1, topics=[])
        request.with_header(9)
        good.sendall(bytes(request.encode(header=True, framed=True)))
        assert receive(good)[:4] == struct.pack(">i", 9)
    with broker.log_path.open("rb") as file:
        file.seek(before)
        lines = file.read().decode().strip().split("\n")
    assert len(lines) == 1, lines
    assert "connection closed" in lines[0]
    works(broker)


def test_random_bytes_and_frames_end_connections_and_never_the_broker(broker: EmbeddedBroker) -> None:
    draw = random.Random(5)
    for number in range(300):
        with contextlib.closing(connect(broker)) as line, contextlib.suppress(ConnectionError):
            data = draw.randbytes(draw.randrange(200))
            if number % 3:  # a request that begins well
                key, version = (
                    draw.choice([0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18, 19, 20, 21, 22]),
                    draw.randrange(8),
                )
                data = framed(struct.pack(">hhih", key, version, number, -1) + data)
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            while line.recv(65_536):
                pass
    works(broker)
    assert "Traceback" not in broker.log_path.read_text()


def test_connections_that_end_in_the_middle_of_anything_leave_nothing_behind(broker: EmbeddedBroker) -> None:
    topic = create(broker)
    for _ in range(50):
        line = connect(broker)
        line.sendall(fetch_frame(topic, wait_ms=60_000))
        line.close()
        line = connect(broker)
        line.sendall(fetch_frame(topic, wait_ms=60_000)[:20])
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()
    assert broker.pid is not None
    until(lambda: len(os.listdir(f"/proc/{broker.pid}/fd")) < 60, "the connections are closed")
    send(broker, topic, [b"x"])
    works(broker)


def test_a_client_that_asks_with_a_newer_version_of_the_first_question_is_given_the_versions(
    broker: EmbeddedBroker,
) -> None:
    with contextlib.closing(connect(broker)) as line:
        line.sendall(framed(struct.pack(">hhih", 18, 77, 3, -1) + b"\0"))
        answer = ApiVersionsResponse.decode(receive(line)[4:], version=0)
        assert answer.error_code == 35
        (own,) = answer.api_keys
        assert own.api_key == ApiVersionsRequest.API_KEY
        line.sendall(framed(struct.pack(">hhih", 18, own.max_version, 4, -1) + b"\0\1\1\0"))
        assert receive(line)[:4] == struct.pack(">i", 4), "the connection lives"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: flipped(data, len(data) - 1), 2),
        (lambda data: data[:-3], 2),
        (lambda data: b"", 2),
        (lambda data: bytes(1_100_000), 10),
        (lambda data: data[:16] + b"\1" + data[17:], 43),
    ],
)
def test_a_bad_batch_beside_a_good_one_is_refused_alone(
    damage: Callable[[bytes], bytes], code: int, broker: EmbeddedBroker
) -> None:
    topic = create(broker, 2)
    good = batch([(b"k", b"v", 1)])
    kind = ProduceRequest.TopicProduceData
    request = ProduceRequest(
        version=8,
        transactional_id=None,
        acks=-1,
        timeout_ms=100,
        topic_data=[
            kind(
                name=topic,
                partition_data=[
                    kind.PartitionProduceData(index=0, records=damage(good)),
                    kind.PartitionProduceData(index=1, records=good),
                    kind.PartitionProduceData(index=7, records=good),
                ],
            )
        ],
    )
    request.with_header(1)
    with contextlib.closing(connect(broker)) as line:
        line.sendall(bytes(request.encode(header=True, framed=True)))
        answer = ProduceResponse.decode(receive(line)[4:], version=8)
    rows = answer.responses[0].partition_responses
    assert [(row.error_code, row.base_offset) for row in rows] == [(code, -1), (0, 0), (3, -1)]
    assert read_all(broker, topic, 1)[0].value == b"v"


def test_an_answer_that_nobody_reads_holds_up_no_one_else(broker: EmbeddedBroker) -> None:
    topic = create(broker)
    send(broker, topic, [bytes(900_000)] * 40)
    name = struct.pack(">h", len(topic)) + topic.encode()
    part = struct.pack(">iqi", 0, 0, 60_000_000)
    head = struct.pack(">hhih", 1, 4, 5, -1) + struct.pack(">iiiib", -1, 0, 1, 60_000_000, 0)
    frame = framed(head + struct.pack(">i", 1) + name + struct.pack(">i", 1) + part)
    lines = [connect(broker) for _ in range(3)]
    try:
        for line in lines:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.sendall(frame * 50)  # none of the 50 answers is ever read
        assert len(read_all(broker, topic, 40)) == 40
        assert broker.pid is not None
        assert measured_bytes(broker.pid) < 600 * 1024 * 1024, "one answer a connection is held, not fifty"
    finally:
        for line in lines:
            line.close()
    works(broker)


def test_a_taken_port_is_one_line(broker: EmbeddedBroker, tmp_path: Path) -> None:
    from millrace.processes.services import spawn

    argv = broker._argv(broker.port)
    argv[argv.index("--folder") + 1] = str(tmp_path / "other")
    child = spawn(argv, None, tmp_path / "log")
    assert child.wait(60) == 1
    assert f"port 127.0.0.1:{broker.port} cannot be bound" in tail(tmp_path / "log", 1)
