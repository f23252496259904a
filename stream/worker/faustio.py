# shell
"""Faust as Millrace uses it: a group consumer with one agent, which resumes where the checkpoints say.

Faust joins the group, assigns partitions, keeps heart-beats alive in its own thread and hands messages over. It must
not decide where reading resumes. So its acknowledgement of single messages is off (``acks=False``: it would
acknowledge an exception or a message of an older generation too). Offsets are committed explicitly after the
checkpoint that covers them. On assignment each partition is read from its checkpoint's offset.

The settings' prefix is added and removed here: a ``TP`` of :class:`StreamApp` has the name in
:mod:`millrace.contracts.topics`. Only Faust and the client use the name at the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from pathlib import Path
from typing import Any, cast

import faust
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.auth import CredentialsT
from mode.threads import WorkerThread
from yarl import URL

from millrace.connections.client_properties import OAUTH
from millrace.contracts.settings import Settings
from millrace.processes.async_kafka import async_options
from stream.join.topic_order import ReadTo
from stream.worker import headers
from stream.worker.turn import INPUTS

headers.install()
log = structlog.get_logger("stream")

GROUP = "millrace-stream"
FETCH_WAIT_MS, QUIET_WAIT_MS = 50, 500
"""How long the broker keeps a fetch that finds nothing; the second while nothing comes and nothing waits here. It
answers as soon as something comes to a partition of the fetch. But one that has unread messages, or is paused, is not
in the fetch. And an event waits for an answer that was given after it came (:mod:`stream.join.topic_order`)."""
QUIET_ANSWERS = 2
FETCH_BYTES = 4 * 1024 * 1024
RESUME_SECONDS = 86_400.0
"""How long Faust waits for the positions of an assignment, for which states are read. After that it would stop to look
for assignments, for ever and without a word."""
METADATA_MS = 5000
"""How often the broker is asked for its topics. One that has just started may know none, and the group's leader then
assigns nothing until the next answer. The client's default of five minutes is too long for that."""

Positions = Callable[[], Awaitable[Mapping[TP, int]]]


class Throttle(logging.Filter):
    """Passes the same line of a logger each five seconds at most: a broker that is away needs one
    line, not hundreds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.clock = clock
        self.said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = self.clock()
        if now - self.said.get(record.msg, -5.0) < 5.0:
            return False
        self.said[record.msg] = now
        return True


def calm_client() -> None:
    """Throttles the Kafka client's loggers (a logger's filter does not reach its children, so each is named)."""
    client = "aiokafka aiokafka.conn aiokafka.producer.sender aiokafka.consumer.fetcher"
    for name in (*client.split(), "aiokafka.consumer.group_coordinator"):
        logging.getLogger(name).addFilter(Throttle())


class _DaemonThread(WorkerThread):
    """A consumer thread that does not keep a failed process alive."""

    def __init__(self, service: Any, **kwargs: Any) -> None:
        super().__init__(service, **kwargs)
        self.daemon = True


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    Worker = _DaemonThread
    abstract = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handed: dict[tuple[str, int], int] = {}  # offset after the last message handed over, by partition

    async def on_start(self) -> None:
        await super().on_start()
        consumer = self._ensure_consumer()
        app = cast(StreamApp, self.consumer.app)
        wait_longer_when_quiet(consumer._fetcher, lambda: app.quiet)

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> Any:
        records = await super()._fetch_records(*args, **kwargs)
        for tp, found in records.items():
            if found:
                self.handed[tp] = found[-1].offset + 1
        return records

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # Faust fixes it at 1.5 s
        consumer._consumer_timeout = QUIET_WAIT_MS / 1000  # its routine looks so often when nothing happens
        conf: Any = self.app.conf
        conf._broker_request_timeout = RESUME_SECONDS  # the client has its own by now; the property would warn
        return consumer

    async def on_thread_stop(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # its own fetches, which wait for a broker that is away
            await super().on_thread_stop()


def wait_longer_when_quiet(fetcher: Any, quiet: Callable[[], bool]) -> None:
    """Has fetches of all partitions wait :data:`QUIET_WAIT_MS` while nothing comes. ``quiet``: whether nothing waits
    for an answer."""
    empty = 0  # answers without a message since the last one
    fetch, plan = fetcher._proc_fetch_request, fetcher._get_actions_per_node

    async def fetched(*args: Any) -> Any:
        nonlocal empty
        found = await fetch(*args)
        empty = 0 if found else empty + 1
        return found

    def planned(assignment: Any) -> Any:
        whole = not fetcher._records and not any(assignment.state_value(tp).paused for tp in assignment.tps)
        long = whole and empty >= QUIET_ANSWERS and quiet()
        fetcher._fetch_max_wait_ms = QUIET_WAIT_MS if long else FETCH_WAIT_MS
        return plan(assignment)

    fetcher._proc_fetch_request, fetcher._get_actions_per_node = fetched, planned


@types.coroutine
def _rest_of(started: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that was stepped by hand up to its first wait."""
    with contextlib.closing(started):
        while True:
            try:
                value = yield waits_for
            except (Exception, asyncio.CancelledError) as error:
                step: Callable[[Any], Any] = started.throw
                value = error
            else:
                step = started.send
            try:
                waits_for = step(value)
            except StopIteration:
                return


async def _carry_on(started: Coroutine[Any, Any, Any], waits_for: Any) -> None:
    await _rest_of(started, waits_for)


_HANDED_OVER = object()


class _Consumer(driver.Consumer):
    abstract = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        deliver = self.callback

        def quick(message: Any) -> Any:
            """Delivers without a separate task when there is nothing to wait for: the agent's queue has room."""
            delivery = cast(Coroutine[Any, Any, Any], deliver(message))
            try:
                waits_for = delivery.send(None)
            except StopIteration:
                return _HANDED_OVER
            return _carry_on(delivery, waits_for)

        self.callback = quick

    async def wait_first(self, *coros: Any, timeout: Any = None) -> Any:
        """Replaces Faust's version, which makes two tasks a message to give up a delivery when a rebalance starts."""
        if coros[0] is _HANDED_OVER:
            for coro in coros[1:]:
                coro.close()
            return None
        return await super().wait_first(*coros, timeout=timeout)

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Makes Faust resume from the checkpoints' offsets after a rebalance, not from the committed ones.

        The two differ after a crash between checkpoint and commit (the checkpoint is ahead: nothing is repeated),
        when a worker that had lost its partition wrote a late checkpoint (it is behind: nothing is skipped), and
        when the checkpoints were removed (everything is read again). Faust calls this during the assignment, and
        hands messages over when this returns. So it waits here until the state is loaded.
        """
        self.stop_flow()
        app = cast(StreamApp, self.app)
        positions = {app.at_broker(tp): offset for tp, offset in (await app.positions()).items()}
        assigned = self.assignment()
        targets = {cast(TP, tp): offset for tp, offset in positions.items() if tp in assigned}
        if targets:
            await self.seek_wait(targets)
        return {TP(*tp): offset for tp, offset in targets.items() if offset}


class _Transport(driver.Transport):
    Consumer = _Consumer


def group_lost(app: faust.App) -> BaseException | None:
    """Why aiokafka's consumer has left its group; None: it has not, or has not begun.

    A broker without a broker to name (one that its controller has fenced, say) ends aiokafka's task for the group
    while Faust has no partition yet: nothing would ever come, without any error.
    """
    consumer = getattr(getattr(app._consumer, "_thread", None), "_consumer", None)
    task = getattr(getattr(consumer, "_coordinator", None), "_coordination_task", None)
    return task.exception() if task is not None and task.done() and not task.cancelled() else None


def _credentials(options: Mapping[str, Any]) -> CredentialsT | None:
    """A client's options as Faust takes them. It hands them to its clients as they are."""
    protocol, mechanism = options.get("security_protocol", "PLAINTEXT"), options.get("sasl_mechanism")
    context = options.get("ssl_context")
    if mechanism == OAUTH:
        return faust.auth.OAuthCredentials(oauth_cb=options["sasl_oauth_token_provider"], ssl_context=context)
    if mechanism is not None:
        user, password = options["sasl_plain_username"], options["sasl_plain_password"]
        return faust.SASLCredentials(username=user, password=password, ssl_context=context, mechanism=mechanism)
    return faust.SSLCredentials(context) if protocol == "SSL" else None


class StreamApp(faust.App):
    """The Faust app of one worker.

    Args:
        settings: addresses and time-outs.
        positions: awaited after each assignment for the next offset to read of each of its partitions.
        datadir: Faust makes this folder; it stays empty.

    Attributes:
        quiet: whether no message waits for the broker's next answer; the worker sets it.
    """

    def __init__(self, settings: Settings, positions: Positions, datadir: Path) -> None:
        session = settings.session_timeout_ms / 1000
        self.positions = positions
        self.quiet = True
        self.settings = settings
        super().__init__(
            settings.group(GROUP),
            broker=[URL(f"aiokafka://{server}") for server in settings.brokers],
            broker_credentials=_credentials(async_options(settings)),
            datadir=str(datadir),
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=FETCH_BYTES,
            consumer_metadata_max_age_ms=METADATA_MS,
            broker_session_timeout=session,
            broker_heartbeat_interval=session / 6,
            broker_request_timeout=max(session * 2, 40.0),
            broker_rebalance_timeout=60.0,
            stream_wait_empty=False,
            stream_buffer_maxsize=4096,
            # Faust's own watchdogs look at acknowledgements that we do not make.
            stream_processing_timeout=86_400.0,
            broker_commit_livelock_soft_timeout=86_400.0,
            key_serializer="raw",
            value_serializer="raw",
        )

    @property
    def _thread(self) -> _ConsumerThread:
        return cast(_ConsumerThread, cast(_Consumer, self.consumer)._thread)

    def at_broker(self, tp: TP) -> TopicPartition:
        return TopicPartition(self.settings.topic(tp.topic), tp.partition)

    def logical(self, tp: TP) -> TP:
        return TP(self.settings.logical(tp.topic), tp.partition)

    def _new_transport(self) -> _Transport:
        return _Transport(self.conf.broker_consumer, self)

    def feed(self, take: Callable[[Any], Awaitable[None]]) -> None:
        """Makes the one agent: hands every Kafka message (``faust.types.Message``, topic as at the
        broker) to ``take``."""
        inputs = map(self.settings.topic, INPUTS)
        topic = self.topic(*inputs, key_type=bytes, value_type=bytes, key_serializer="raw", acks=False)

        async def messages(stream: Any) -> None:
            stream = stream.noack()
            async for _ in stream:
                await take(stream.current_event.message)

        self.agent(topic, name="millrace.stream", concurrency=1)(messages)

    async def leave(self, patience_seconds: float) -> None:
        """Stops Faust and waits until the consumer's thread has left the group. Faust itself does not wait, and a
        member that ends without leaving keeps its partitions until its session ends."""
        await asyncio.wait_for(self.stop(), patience_seconds)
        worker = self._thread._thread
        if worker is not None:
            await asyncio.to_thread(worker.join, patience_seconds)

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Commits ``offsets`` (next to read) of partitions that are still assigned.

        Raises:
            aiokafka.errors.KafkaError: the broker did not take them.
        """
        thread = self._thread
        consumer = thread._ensure_consumer()

        async def commit() -> None:
            assigned = consumer.assignment()
            mine = {
                at: OffsetAndMetadata(offset, "")
                for tp, offset in offsets.items()
                if (at := self.at_broker(tp)) in assigned
            }
            if mine:
                await consumer.commit(mine)

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(commit(), thread.thread_loop))

    def hold(self, tp: TP, on: bool) -> None:
        """Stops (or resumes) fetching from a partition. Messages that were handed over already arrive. Faust's
        ``pause_partitions`` would lose messages that were fetched but not handed over."""
        consumer = self._thread._ensure_consumer()

        def switch() -> None:
            with contextlib.suppress(IllegalStateError):  # no longer assigned
                (consumer.pause if on else consumer.resume)(self.at_broker(tp))

        self._thread.thread_loop.call_soon_threadsafe(switch)

    def partitions_of(self, topic: str) -> int | None:
        """How many partitions a topic has by the broker; None: not known yet. Known when some of the
        topic is assigned."""
        consumer = self._thread._consumer
        found = consumer.partitions_for_topic(self.settings.topic(topic)) if consumer is not None else None
        return len(found) if found else None

    def read_to(self, tp: TP) -> ReadTo | None:
        """How far an input partition has been read, as of the last answer to a fetch; None before the first."""
        thread = self._thread
        consumer = thread._consumer
        subscription = consumer._subscription.subscription if consumer else None
        assignment = subscription.assignment if subscription else None
        at = self.at_broker(tp)
        state = assignment.state_value(at) if assignment else None
        if state is None or not state.has_valid_position or state.highwater is None:
            return None
        position = int(state.position)
        return ReadTo(position, int(state.highwater), (state.timestamp or 0) / 1000, thread.handed.get(at, 0))
