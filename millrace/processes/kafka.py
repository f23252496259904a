# shell
"""Kafka clients as Millrace uses them (`kafka-python`): made from the settings, with logged waits and checked topics.

All calls block: call them from threads or plain loops, never from an asyncio loop.

This module adds and removes the settings' prefix. Callers use the names of :mod:`millrace.contracts.topics`, also in
``record.topic``. A ``TopicPartition`` alone is the client's own and has the broker's name.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import AuthorizationError, KafkaError, KafkaTimeoutError, TopicAlreadyExistsError
from kafka.record.default_records import DefaultRecordBatch
from msgspec.structs import replace
from tenacity import Retrying

from millrace.basics.errors import BrokerError, one_line
from millrace.connections.kafka_hooks import LISTENER, TokenProvider
from millrace.connections.kafka_security import WHERE, security_of
from millrace.connections.kafka_tokens import TokenSource
from millrace.connections.refusals import no_tls, why
from millrace.contracts.settings import Settings
from millrace.contracts.topics import KEPT_DAYS, TOPICS, Topic, miscounted
from millrace.processes.patience import patience

log = structlog.get_logger("kafka")


class _Lenient(bytearray):
    """Bytes whose slices decode with U+FFFD where they are not UTF-8."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Lenient(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, "replace")


def read_any_header(batch: Any) -> None:
    """Makes a client's class of record batches read header names of any bytes.

    Kafka calls a header's name a string but checks nothing. Our clients raise at a name that is not UTF-8, each time
    that they read its batch, so one such message would block its partition for ever.
    """
    strict = batch._read_msg

    def read_msg(self: Any) -> Any:
        try:
            return strict(self)
        except UnicodeDecodeError:
            self._buffer = _Lenient(self._buffer)
            return strict(self)

    batch._read_msg = read_msg


read_any_header(DefaultRecordBatch)


class _Producer(KafkaProducer):  # type: ignore[misc]
    """Sends to topics by their names without the prefix."""

    def __init__(self, settings: Settings, **configs: Any) -> None:
        self._settings = settings
        super().__init__(**configs)

    def send(self, topic: str, *args: Any, **kwargs: Any) -> Any:
        return super().send(self._settings.topic(topic), *args, **kwargs)

    def partitions_for(self, topic: str) -> Any:
        return super().partitions_for(self._settings.topic(topic))


class _Reader(KafkaConsumer):  # type: ignore[misc]
    """Hands out records whose topic has its name without the prefix."""

    def __init__(self, settings: Settings, **configs: Any) -> None:
        self._settings = settings
        super().__init__(**configs)

    def poll(self, *args: Any, **kwargs: Any) -> Any:
        try:
            polled = super().poll(*args, **kwargs)
        except AuthorizationError as error:
            raise broker_error(f"broker '{self._settings.kafka}' does not let us read", error) from None
        if self._settings.prefix or self._settings.learner:
            logical = self._settings.logical
            return {tp: [r._replace(topic=logical(r.topic)) for r in records] for tp, records in polled.items()}
        return polled


BATCH_BYTES = 256 * 1024
"""Batch size of one partition before compression. The clients' default, 16 KB, is less than one page's log, so nothing
would ever be batched. A broker takes far more."""

LINGER_MS = 20
"""Time that a batch waits for more messages. A click waits three times on its way to the served model."""
PAGE_LINGER_MS = 100
"""The same for logs of pages: people click later than this, and an earlier click waits for its page's log."""

FETCH_WAIT_MS = 1000
"""How long a broker keeps a fetch that finds nothing. It answers as soon as something comes, so a longer wait delays no
message and wakes nobody. But other requests of the same consumer wait behind it: where a topic ends, for instance."""

REQUEST_BYTES = 1_000_000
"""The most bytes of a message: what a broker takes by default (message.max.bytes, 1,048,588), less some room. After a
message that the broker refuses for its size the client is unusable, so a larger one is never sent."""

REMEDY = "start Kafka there, or set MILLRACE_KAFKA to its host:port"


def client_options(settings: Settings, provider: Callable[[TokenSource], Any] = TokenProvider) -> dict[str, Any]:
    """Where the brokers are, and how they let us in. ``provider``: hands tokens to the client's library.

    Raises BrokerError without an address, SettingError when the file of MILLRACE_KAFKA_CLIENT cannot be used.
    """
    security = security_of(settings)
    own = security.options(provider) if security is not None else {}
    return {"bootstrap_servers": settings.brokers, **own}


_UNTOLD = ("KafkaTimeoutError", "KafkaConnectionError")
"""What either client raises when it got no connection, whatever the reason."""


def broker_error(problem: str, error: BaseException) -> BrokerError:
    """An error of a client as ours, with cause and remedy where Kafka refused."""
    refusal = why(error, WHERE) or (LISTENER.heard if type(error).__name__ in _UNTOLD else None)
    cause, remedy = refusal or (one_line(error), REMEDY)
    return BrokerError(f"{problem} ({cause})", remedy)


@contextlib.contextmanager
def told(problem: str) -> Iterator[None]:
    """Makes a client's error a :func:`broker_error`."""
    with LISTENER.attentive():
        try:
            yield
        except (KafkaError, OSError) as error:
            raise broker_error(problem, error) from None


def make_admin(settings: Settings, seconds: float | None = None) -> KafkaAdminClient:
    """A client for topics. ``seconds``: to be answered in. Raises BrokerError when Kafka refuses or does not answer."""
    names = ("bootstrap_timeout_ms", "request_timeout_ms")
    times = {} if seconds is None else dict.fromkeys(names, round(1000 * seconds))
    with told(f"no client at '{settings.kafka}'"):
        return KafkaAdminClient(**client_options(settings), **times)


def wait_for_broker(settings: Settings, patience_seconds: float | None = None) -> None:
    """Waits for a broker that is away, with back-off and a log line a try. Raises BrokerError after
    ``patience_seconds`` (default: the settings'), and at once when it refuses us."""
    options = client_options(settings)
    seconds = settings.patience_seconds if patience_seconds is None else patience_seconds

    def ask() -> None:
        with LISTENER.attentive():
            try:
                KafkaAdminClient(**options, bootstrap_timeout_ms=2000, request_timeout_ms=4000).close()
            except KafkaError as error:
                if LISTENER.heard is None:
                    raise
                raise broker_error(f"broker '{settings.kafka}' refuses us", error) from None

    errors = (KafkaError, ValueError, OSError)
    aloud = partial(log.warning, "waiting for the broker", address=settings.kafka)
    try:
        Retrying(**patience(seconds, errors, aloud))(ask)
    except errors as error:
        problem = f"broker '{settings.kafka}' does not answer ({type(error).__name__}) after {seconds:g} s"
        likely = no_tls(WHERE) if LISTENER.hung_up else None
        if likely:
            raise BrokerError(f"{problem}, and ends the handshake: maybe {likely.cause}", likely.remedy) from None
        raise BrokerError(problem, REMEDY) from None


def listens(address: str, timeout_seconds: float) -> bool:
    """Whether anything listens at ``host:port``: quick where nothing does, while the client tries again."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout_seconds).close()
        return True
    return False


def cluster_id(address: str, timeout_seconds: float = 1.0) -> str:
    """Asks the embedded broker at ``host:port`` one time for its cluster's id. Raises OSError when nothing listens
    there or answers in time."""
    if not listens(address, timeout_seconds):
        raise ConnectionError("nothing listens there")
    try:
        with contextlib.closing(make_admin(Settings(kafka=address), timeout_seconds)) as admin:
            return str(admin.describe_cluster()["cluster_id"])
    except (KafkaError, BrokerError) as error:
        raise ConnectionError(one_line(error)) from None


def create_topics(settings: Settings) -> list[str]:
    """Creates the missing topics, and checks that the co-partitioned ones have equal counts. Returns the names of the
    created ones. Raises BrokerError when a topic has another number of partitions than it needs, or cannot be
    created."""
    with told(f"topics cannot be prepared at '{settings.kafka}'"), contextlib.closing(make_admin(settings)) as admin:
        present = {t["name"]: len(t["partitions"]) for t in admin.describe_topics()}
        topics = topics_of(settings)
        for fault in miscounted(topics, present, settings.partitions):
            raise BrokerError(*fault)
        missing = {
            name: {
                "num_partitions": t.partitions or settings.partitions,
                "replication_factor": -1,  # the broker's
                "configs": dict(t.config),
            }
            for name, t in topics.items()
            if name not in present
        }
        if missing:
            with contextlib.suppress(TopicAlreadyExistsError):  # another role was faster
                admin.create_topics(missing)
            admin.wait_for_topics(list(missing))
            log.info("topics created", topics=", ".join(missing), partitions=settings.partitions)
        return list(missing)


def topics_of(settings: Settings) -> dict[str, Topic]:
    """The topics of a loop with all its learners, by their names at the broker."""
    each = [replace(settings, learner=name) for name in ("", *settings.learners)]
    return {one.topic(topic.name): topic for one in each for topic in TOPICS}


def ensure_topics(settings: Settings) -> None:
    """Creates topics where some are missing, as ``millrace dev topics`` does; else does nothing. Raises BrokerError
    when they cannot be created, or existing topics have other partition counts than the missing ones need."""
    if not _ids(settings).keys() >= topics_of(settings).keys():
        create_topics(settings)


_NO_ID = "00000000-0000-0000-0000-000000000000"


def topic_ids(settings: Settings) -> dict[str, str]:
    """The id of each of our topics; empty where the broker gives none. Offsets are valid only for this id: a topic made
    again under the same name has another one. Raises BrokerError when the topics cannot be listed."""
    found = _ids(settings)
    return {t.name: found[name] for t in TOPICS if (name := settings.topic(t.name)) in found}


def _ids(settings: Settings) -> dict[str, str]:
    """By the broker's name of each topic that it has."""
    with told(f"topics at '{settings.kafka}' cannot be listed"), contextlib.closing(make_admin(settings)) as admin:
        found = {t["name"]: str(t.get("topic_id") or "") for t in admin.describe_topics()}
    return {name: "" if id == _NO_ID else id for name, id in found.items()}


def open_broker(settings: Settings) -> None:
    """For a role's start: waits for the broker and creates missing topics. Raises BrokerError when the settings'
    patience ends, or the topics cannot be prepared."""
    wait_for_broker(settings)
    ensure_topics(settings)


IDEMPOTENT = {
    "enable_idempotence": True,
    "acks": "all",
    "compression_type": "zstd",  # readers take any kind
    "max_request_size": REQUEST_BYTES,
}
"""Of an idempotent producer, by the names that both Kafka clients know."""


def make_producer(settings: Settings, **options: Any) -> KafkaProducer:
    """An idempotent producer of raw bytes."""
    base = {"linger_ms": LINGER_MS, "batch_size": BATCH_BYTES, **IDEMPOTENT, **client_options(settings)}
    with told(f"no producer at '{settings.kafka}'"):
        return _Producer(settings, **{**base, **options})


def know_topic(producer: Any, topic: str, settings: Settings) -> None:
    """Waits until the producer knows a topic's partitions. Then no later request waits for this, even on a busy machine
    with a short blocking time. Raises BrokerError when it does not know them in time."""
    aloud = partial(log.warning, "waiting for the broker to tell of a topic", topic=topic)
    try:
        # Each try blocks for as long as the producer may, so there is no pause between tries.
        tries = patience(settings.patience_seconds, KafkaTimeoutError, aloud, first_pause_seconds=0.0)
        Retrying(**tries)(producer.partitions_for, topic)
    except KafkaTimeoutError:
        raise BrokerError(
            f"broker '{settings.kafka}' tells nothing of topic '{topic}' for {settings.patience_seconds:g} s", REMEDY
        ) from None


def make_reader(settings: Settings, topic: str, start: dict[int, int] | None = None, **options: Any) -> KafkaConsumer:
    """A consumer of every partition of ``topic`` from ``start`` (missing: the beginning). It joins no group and commits
    nothing: the caller keeps the positions in its own snapshot. Its polls end when another thread closes it."""
    return read_topics(settings, {topic: start or {}}, **options)


def make_consumer(settings: Settings, **options: Any) -> KafkaConsumer:
    """A consumer in no group, of nothing yet. Raises BrokerError when Kafka refuses or does not answer."""
    base = {**client_options(settings), "group_id": None, "enable_auto_commit": False}
    with told(f"no consumer at '{settings.kafka}'"):
        return _Reader(settings, **{**base, **options})


def read_topics(settings: Settings, starts: Mapping[str, Mapping[int, int]], **options: Any) -> KafkaConsumer:
    """As :func:`make_reader`, of several topics: one connection, and one poll for all."""
    base: dict[str, Any] = {
        "auto_offset_reset": "earliest",
        "fetch_max_wait_ms": FETCH_WAIT_MS,
        "max_poll_records": 2000,
        "max_partition_fetch_bytes": 8 * 1024 * 1024,
    }
    consumer = make_consumer(settings, **{**base, **options})
    with told(f"no consumer at '{settings.kafka}'"):
        first: dict[TopicPartition, int | None] = {}
        for topic, start in starts.items():
            name = settings.topic(topic)
            partitions = consumer.partitions_for_topic(name)
            if not partitions:
                consumer.close()
                raise BrokerError(
                    f"topic '{name}' does not exist at '{settings.kafka}'",
                    "create the topics first ('millrace dev topics')",
                )
            first |= {TopicPartition(name, p): start.get(p) for p in sorted(partitions)}
        consumer.assign(list(first))
        for tp, offset in first.items():
            if offset is None:
                consumer.seek_to_beginning(tp)
            else:
                consumer.seek(tp, offset)
    return consumer


def first_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """The first offset that each partition still holds: above 0 where retention has deleted messages. Raises
    BrokerError when the broker does not answer."""
    return {partition: held.start for partition, held in held_offsets(settings, topic).items()}


def held_offsets(settings: Settings, topic: str) -> dict[int, range]:
    """The offsets that each partition holds. Raises BrokerError when the broker does not answer."""
    reader = contextlib.closing(make_reader(settings, topic))
    with told(f"offsets of topic '{topic}' cannot be asked for"), reader as consumer:
        assigned = consumer.assignment()
        first, end = consumer.beginning_offsets(assigned), consumer.end_offsets(assigned)
        return {tp.partition: range(first[tp], end[tp]) for tp in assigned}


def gone_before(topic: str, partition: int, expected: int | None, first: int) -> int:
    """Number of messages that a reader at ``expected`` lost, since the broker removed those before ``first``; logs them
    in one line. ``expected`` None: it begins, and loses nothing."""
    gone = max(0, first - expected) if expected is not None else 0
    if gone:
        log.warning(
            f"the broker has removed messages that were not read yet, and they are passed over: it keeps {KEPT_DAYS}"
            " days, or what MILLRACE_BROKER_GIB allows",
            topic=topic,
            partition=partition,
            messages=gone,
            expected=expected,
            found=first,
        )
    return gone


def lag_of(consumer: KafkaConsumer) -> dict[int, int]:
    """Messages not yet read, by partition, by the high watermark of the last fetch: ``end_offsets`` would cost a
    request each time."""
    assigned = list(consumer.assignment())
    return {tp.partition: max(0, (consumer.highwater(tp) or 0) - consumer.position(tp)) for tp in assigned}


def read_up(consumer: KafkaConsumer) -> bool:
    """Whether all messages that its partitions held at their last fetch were read. False before the first fetch of each
    partition."""
    ends = {tp: consumer.highwater(tp) for tp in consumer.assignment()}
    return all(end is not None and consumer.position(tp) >= end for tp, end in ends.items())


def read_all(settings: Settings, topic: str, visit: Callable[[Any], None]) -> int:
    """Visits every message that ``topic`` holds now, partition by partition in order, perhaps also newer ones; returns
    their number. Raises BrokerError when the broker stops answering."""
    reader = contextlib.closing(make_reader(settings, topic))
    with told(f"broker '{settings.kafka}' gives nothing of topic '{topic}'"), reader as consumer:
        ends = consumer.end_offsets(consumer.assignment())
        seen, last_s = 0, time.monotonic()
        while any(consumer.position(tp) < end for tp, end in ends.items()):
            polled = consumer.poll(timeout_ms=200)
            last_s = time.monotonic() if polled else last_s
            if time.monotonic() - last_s > settings.patience_seconds:
                raise BrokerError(f"broker '{settings.kafka}' gives no more of topic '{topic}'", REMEDY)
            for records in polled.values():
                for record in records:
                    visit(record)
                    seen += 1
        return seen
