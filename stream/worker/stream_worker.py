# shell
"""The stream role: it connects Faust, the turns of its partitions and the outlet. It decides nothing.

::

    Faust agent ──► buffer ──► pump: what is due? (stream/worker/turn.py) ──► take, advance       now, in short pieces
                                                                  ├──► pause, resume      the consumer
                                                                  ├──► recall     a thread that reads page logs again
                                                                  └──► publish, checkpoint   the outlet's queue

    a thread of the worker that holds partition 0: items, features.items ──► the shop's lists in Redis

The worker waits out an infrastructure error, with a line in the log, while heart-beats go on (the consumer has its
own thread). After ``outage_seconds`` the process ends with one line, and the program that started it starts it
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from faust.types import TP

from millrace.basics.durations import utc
from millrace.basics.errors import BrokerError, MillraceError, ServiceError, one_line
from millrace.contracts import schemabook
from millrace.contracts.clock import EventClock
from millrace.contracts.schema import Schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, PAGE_LOGS
from millrace.processes.kafka import REMEDY, broker_error, open_broker
from millrace.processes.metrics import LOOP_TIMESTAMP, READY, serve_metrics
from millrace.processes.profiles import check_whole, publish_profiles
from millrace.processes.wall import event_now_ms
from stream.join.topic_order import Arrival
from stream.partition.partition import Partition, Policy, StepOutput
from stream.worker import stream_metrics
from stream.worker.alarms import Alarms
from stream.worker.faustio import StreamApp, calm_client, group_lost
from stream.worker.listkeeper import ListKeeper
from stream.worker.logids import ids_of_inputs
from stream.worker.problemlog import ProblemLog
from stream.worker.rereader import PageLogReader
from stream.worker.stream_output import WorkerOutput
from stream.worker.stream_warmup import calm_collector, warm_up
from stream.worker.takeover import Lines, TakeOver
from stream.worker.turn import (
    INPUTS,
    Advance,
    Checkpoint,
    Due,
    Now,
    Pace,
    Pause,
    Publish,
    Reads,
    Recall,
    ResetOffsets,
    Resume,
    Return,
    SetBack,
    Take,
    Turn,
    Turns,
    arrival,
)

log = structlog.get_logger("stream")

GATHER_SECONDS = 0.05  # how long a micro-batch may fill after its first message; a click waits half of it on average
BUFFER_MESSAGES = 4096  # the agent waits while more messages than this are not taken
LOOK_SECONDS, QUIET_LOOK_SECONDS = 0.1, 0.25  # the second while nothing waits
SILENT_SECONDS = 1.0  # after such a silence of the broker, its topics may be other ones
CLOSE_SECONDS = 11.0


class _Ended(Exception):
    """The worker has done all its work; its tasks end."""


class StreamWorker:
    """All methods run in one asyncio loop."""

    def __init__(self, settings: Settings, schema: Schema, clock: EventClock) -> None:
        self.settings, self.schema, self.clock = settings, schema, clock
        self.policy = Policy.of(settings)
        book = SchemaBook(settings.place(schemabook.PLACE))
        book.enter(schema)
        self._history = book.history()
        self.turns = Turns(Pace.of(settings), clock)
        self.app = StreamApp(settings, self.positions, settings.folder("faust"))
        self.app.feed(self.receive)
        self.app.on_partitions_revoked.connect(self.revoked)
        self.app.on_partitions_assigned.connect(self.assigned)
        self.outlet = WorkerOutput(settings, schema, self.app.commit_offsets, self._history)
        self.takeover = TakeOver(settings, self.outlet.checkpoints)
        self._assigned: Lines | None = None  # of the assignment that is ours
        self.recaller = PageLogReader(settings)
        self._tasks: set[asyncio.Task[None]] = set()  # in the background, of which nobody waits for the end
        self._was_silent = False  # the broker was silent, and has not been asked for its topics since
        self._logs: dict[str, str] = {}  # ids of the input topics, as of the last assignment
        self.lists = ListKeeper(settings, schema, clock, self.outlet.send_dead_letters)
        self.alarms, self.problems = Alarms(), ProblemLog()
        self.failure: BaseException | None = None
        self._buffer: list[Arrival] = []
        self._arrived, self._room, self._loaded = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._lock = asyncio.Lock()  # held by whoever changes the turns: the pump or a rebalance

    # ------------------------------------------------------------------ Faust's callbacks

    async def positions(self) -> dict[TP, int]:
        await self._loaded.wait()
        found = self.turns.positions() or {}  # given up meanwhile: there is nothing to read any more
        return {TP(topic, number): offset for (topic, number), offset in found.items()}

    async def receive(self, m: Any) -> None:
        """The agent's body: one Kafka message into the buffer, unless it belongs to an assignment that is over."""
        await self._room.wait()
        if m.generation_id != self.app.consumer_generation_id:
            return
        stamp_s = m.timestamp or 0.0
        value = m.value or b""
        key = (m.key or b"") if m.value is None else None
        topic, now_s = self.settings.logical(m.topic), time.time()
        self._buffer.append(arrival(m.partition, topic, m.offset, value, stamp_s, m.headers, self.clock, now_s, key))
        self._arrived.set()
        if len(self._buffer) >= BUFFER_MESSAGES:
            self._room.clear()

    async def revoked(self, *_: Any, **__: Any) -> None:
        """Called before partitions are revoked: their state becomes a checkpoint, and its offsets are committed."""
        with self._guarded("giving partitions up"):
            self._assigned = None
            self._loaded.clear()
            self.lists.active.clear()
            READY.set(0)
            async with self._lock:
                self._empty_buffer()
                await self._save_all()
                stream_metrics.forget(turn.number for turn in self.turns)
                for turn in self.turns:
                    self.takeover.hold(turn.given_up(), self.outlet.line(turn.number))
                self.turns.let_go()
                self.outlet.forget()

    async def assigned(self, *args: Any, **_: Any) -> None:
        """Called after partitions are assigned, before their first message: claims them. Their states are resumed in
        the background, and Faust waits for :meth:`positions` then."""
        with self._guarded("taking partitions over"):
            self._loaded.clear()
            async with self._lock:
                self._empty_buffer()
                self.turns.let_go()
                assigned = {self.app.logical(tp) for tp in args[1]}  # args[0] is the app
                by_topic = {t: {tp.partition for tp in assigned if tp.topic == t} for t in INPUTS}
                numbers = by_topic[EVENTS]
                if any(numbers != others for others in by_topic.values()):
                    raise BrokerError(
                        f"partitions of {', '.join(INPUTS)} come apart: {by_topic}", "give them equal counts"
                    )
                self.alarms.partitions = self.app.partitions_of(EVENTS)
                self._assigned = await asyncio.to_thread(self.takeover.claim, sorted(numbers))
                self._background(self._resume(self._assigned))

    async def _resume(self, lines: Lines) -> None:
        """Begins the turns of an assignment when its states are resumed, unless it is over by then."""
        with self._guarded("taking partitions over"):
            logs = await asyncio.to_thread(ids_of_inputs, self.settings)
            found = await self.takeover.resume(self._fresh, lines, logs, lambda: self._assigned is not lines)
            async with self._lock:
                if self._assigned is not lines:
                    return
                for number, (loaded, _) in found.items():
                    self.outlet.owns(number, loaded.line)
                self._logs = logs
                partitions = [loaded.partition for loaded, _ in found.values()]
                self.turns.begin(partitions, self._now(), {number: others for number, (_, others) in found.items()})
                self._loaded.set()
                if 0 in lines:
                    self.lists.active.set()
                READY.set(1)
                log.info("partitions", held=sorted(lines), resumed=[p.number for p in partitions if p.offsets])

    def _fresh(self, number: int) -> Partition:
        return Partition(number, self.schema, self.policy, self.alarms.partitions, settles=True, history=self._history)

    # ------------------------------------------------------------------ the pump

    async def pump(self) -> None:
        while True:
            self.app.quiet = not self._buffer and not self.turns.wait
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_LOOK_SECONDS if self.app.quiet else LOOK_SECONDS):
                    await self._arrived.wait()
                await asyncio.sleep(GATHER_SECONDS)
            async with self._lock:
                await self._round()

    async def _round(self) -> None:
        LOOP_TIMESTAMP.set(time.time())
        self.turns.arrived(self._empty_buffer(), self._now())
        for turn in self.turns:
            for due in turn.inbound(self._reads(turn), self._now()):
                await self._do(turn, due)
        await self.outlet.send_samples()
        reads = [(turn, self._reads(turn)) for turn in self.turns]
        self._check_broker([read for _, of in reads for read in of.values()])
        for turn, of in reads:
            for due in turn.outbound(of, self.turns.newest_ms, self._now()):
                await self._do(turn, due)
            stream_metrics.show(turn.partition, of)
        self._alarm()
        stream_metrics.WINDOW_KEYS.set(sum(len(turn.partition.windows) for turn in self.turns))

    async def _do(self, turn: Turn, due: Due) -> None:
        match due:
            case Take():
                await self._emit(turn, turn.partition.take(due.messages, event_now_ms(self.clock)))
                await asyncio.sleep(0)
            case Advance():
                await self._emit(turn, turn.partition.advance(due.until_ms))
            case SetBack():
                self._set_back(turn.partition)
            case ResetOffsets():
                await self._reset_offsets(turn, due.topics)
            case Recall():
                self._recall(turn, due)
            case Return():
                await self._emit(turn, turn.partition.returned(due.found))
                await asyncio.sleep(0)
            case Pause() | Resume():
                self.app.hold(TP(EVENTS, turn.number), isinstance(due, Pause))
            case Publish():
                self.outlet.publish(turn, due)
            case Checkpoint():
                await self.outlet.checkpoint(turn, due)

    async def _emit(self, turn: Turn, output: StepOutput) -> None:
        self.alarms.note(turn.number, output, self._now().steady_s)
        self.problems.note(output.dead, output.warnings)
        await self.outlet.emit(turn.number, output)

    def _set_back(self, partition: Partition) -> None:
        reached_ms = partition.watermark_ms
        partition.set_back()
        log.warning(
            "another event clock had moved the watermark ahead: it is set back",
            partition=partition.number,
            watermark=utc(reached_ms),
            event_clock=utc(event_now_ms(self.clock)),
            set_back_to=utc(partition.watermark_ms),
        )

    async def _reset_offsets(self, turn: Turn, topics: tuple[str, ...]) -> None:
        partition = turn.partition
        log.warning(
            "topics are others than those that were read: they are read from their beginning, with the state at hand",
            partition=partition.number,
            topics=", ".join(topics),
            not_known="; ".join(
                f"what the old {topic} held from offset {partition.offsets.get(topic, 0)} on" for topic in topics
            ),
            page_logs_gone_of_pages=len(partition.join.settled) if PAGE_LOGS in topics else 0,
        )
        await self._emit(turn, partition.reset_offsets(topics))
        self.outlet.owns_logs(turn.number, self._logs)

    def _recall(self, turn: Turn, due: Recall) -> None:
        """Reads in the background. The answer is dropped if the partition is lost meanwhile."""

        async def read() -> None:
            with self._guarded("reading page logs again"):
                found = await asyncio.to_thread(self.recaller.read, turn.number, due.wanted.values())
                answer = None if found is None else {r: found[at] for r, at in due.wanted.items() if at in found}
                turn.recalled(answer, self._now())

        self._background(read())

    async def _check_logs(self) -> None:
        """A broker that came back may be empty. Then offsets mean nothing: the next start begins again."""
        with self._guarded("asking for its topics"):
            ids = await asyncio.to_thread(ids_of_inputs, self.settings)
            others = [topic for topic in INPUTS if self._logs[topic] and ids[topic] and self._logs[topic] != ids[topic]]
            if others:
                raise BrokerError(
                    f"topics {', '.join(others)} of broker '{self.settings.kafka}' are other ones than those that were "
                    "read",
                    "start the role again: it goes on with its state and reads them from their beginning",
                )

    def _background(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _alarm(self) -> None:
        """Logs when most events cannot be used, and each kind of unusable or dubious message."""
        self.problems.write(self._now().steady_s)
        line = self.alarms.line([t.partition for t in self.turns], event_now_ms(self.clock), self._now().steady_s)
        if line is not None:
            log.warning(
                "most events cannot be learnt from as they should be",
                share=f"{line.share:.0%}",
                events=line.events,
                **line.counts,
                example=line.example,
                remedy=line.remedy,
            )

    async def _save_all(self) -> None:
        """Does what is due before the partitions are revoked, and returns when it is done."""
        for turn in self.turns:
            for due in turn.last(self._now()):
                await self._do(turn, due)
        await self.outlet.drained()

    def _empty_buffer(self) -> list[Arrival]:
        batch, self._buffer = self._buffer, []
        self._arrived.clear()
        self._room.set()
        return batch

    def _now(self) -> Now:
        return Now(time.monotonic(), time.time())

    def _reads(self, turn: Turn) -> Reads:
        return {topic: self.app.read_to(TP(topic, turn.number)) for topic in INPUTS}

    def _check_broker(self, reads: list[Any]) -> None:
        silent_s = self.turns.silent_s(reads, self._now())
        if silent_s > SILENT_SECONDS:
            self._was_silent = True
        elif self._was_silent and silent_s == 0 and self._logs:
            self._was_silent = False
            self._background(self._check_logs())
        if silent_s > self.settings.outage_seconds:
            raise BrokerError(f"broker '{self.settings.kafka}' has not answered for {silent_s:.0f} s", REMEDY)

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Ends the process with one line, where Faust would log a callback's exception and go on or crash."""
        try:
            yield
        except MillraceError as error:
            self.failure = self.failure or error
            self.turns.let_go()
            self._loaded.set()  # Faust waits no longer for positions: there are none, so whatever comes is dropped
        except Exception as error:
            self.failure = self.failure or expected(error, what, self.settings)
            raise

    async def give_up(self) -> None:
        """A last checkpoint of all partitions."""
        self._assigned = None
        async with self._lock:
            self._empty_buffer()
            await self._save_all()
            self.turns.let_go()


async def _work(worker: StreamWorker, stop: threading.Event) -> None:
    """Works until ``stop`` is set, then leaves a last checkpoint. Raises MillraceError when a service stays away."""
    settings = worker.settings
    await worker.outlet.open()
    worker.lists.start()
    failures: list[BaseException] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_as_expected(settings, worker.app.start(), "Faust"))
            tasks.create_task(_as_expected(settings, worker.pump(), "the pump"))
            tasks.create_task(_as_expected(settings, worker.outlet.run(), "the outlet"))
            tasks.create_task(_until(worker, stop))
    except BaseExceptionGroup as group:
        failures += [error for error in group.exceptions if not isinstance(error, _Ended)]
    finally:
        READY.set(0)
        worker.lists.end()
        lists = asyncio.to_thread(worker.lists.join, 5.0)
        for closing in (worker.app.leave(5.0), worker.outlet.close(), lists, asyncio.to_thread(worker.recaller.close)):
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await closing
            except Exception as error:
                log.warning("not closed cleanly", error=f"{type(error).__name__}: {error}")
    for other in failures[1:]:
        log.error("failed at the same time", error=one_line(other))
    if failures:
        raise failures[0]


async def _as_expected(settings: Settings, task: Coroutine[Any, Any, None], what: str) -> None:
    try:
        await task
    except asyncio.CancelledError:
        me = asyncio.current_task()
        if me is None or me.cancelling():
            raise
        # Something that the task awaited was cancelled, not the task. The group would take it for a normal end.
        raise expected(None, what, settings) from None
    except Exception as error:
        failure = expected(error, what, settings)
        if failure is error:
            raise
        raise failure from error


async def _until(worker: StreamWorker, stop: threading.Event) -> None:
    """Ends the group of tasks: once all is saved after ``stop``, or when Faust or one of its callbacks failed."""
    saving: asyncio.Task[None] | None = None
    try:
        while saving is None or not saving.done():
            if worker.failure is not None:
                raise worker.failure
            if worker.app.crashed:
                raise expected(worker.app.crash_reason, "Faust", worker.settings)
            if (why := group_lost(worker.app)) is not None:
                raise expected(why, "the consumer group", worker.settings)
            if stop.is_set() and saving is None:
                saving = asyncio.create_task(worker.give_up())
            await asyncio.sleep(QUIET_LOOK_SECONDS)
        await saving
    finally:
        if saving is not None:
            saving.cancel()
    raise _Ended


def expected(error: BaseException | None, what: str, settings: Settings) -> BaseException:
    """``error`` as an expected failure where it is one. A bug keeps its traceback."""
    if isinstance(error, KafkaError):
        return broker_error(f"broker '{settings.kafka}' failed {what}", error)
    if isinstance(error, OSError):
        return ServiceError(f"{what} failed ({error})", "see the log above; the role can be started again")
    return error or ServiceError(f"{what} ended by itself", "see the log above; the role can be started again")


def run(settings: Settings, stop: threading.Event) -> None:
    """The role, until ``stop`` is set.

    Raises:
        MillraceError: the schema, the broker, Redis or the checkpoints cannot be used.
    """
    check_whole(settings)
    schema, clock = settings.load_schema(), settings.event_clock()
    calm_client()
    serve_metrics("stream", settings.metrics_port, settings.host)
    warm_up(schema, Policy.of(settings))
    calm_collector()
    open_broker(settings)
    publish_profiles(settings)

    async def main() -> None:
        await _work(StreamWorker(settings, schema, clock), stop)

    try:
        asyncio.run(main())
    except MillraceError:
        raise
    except (KafkaError, OSError) as error:
        raise expected(error, "the stream role", settings) from None
