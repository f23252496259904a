# shell
"""The loop of a learner: samples in, versions out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from learner.gate.checks import Checks
from learner.gate.quarantine import PLACE, Quarantine
from learner.promotion.promotion import Promotion, Published
from learner.promotion.replay import Replay
from learner.role.loopoutput import LoopOutput
from learner.role.loopsnapshots import LoopSnapshots
from learner.role.samplereader import SampleReader
from learner.samples.batch_reader import SampleMessage
from learner.training.learner_versions import Build, FoundSnapshot, Progress, Versions
from learner.training.trainer import BATCH_MS, Trainer
from millrace.basics.errors import BrokerError, SnapshotError, StoreError, one_line
from millrace.basics.store import Store
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.processes.kafka import held_offsets
from millrace.processes.metrics import LOOP_TIMESTAMP, READY
from millrace.processes.wall import wall_ms
from millrace.versions.decisions import LogPart
from millrace.versions.modelstore import ModelStore

log = structlog.get_logger("learner")


@dataclass(frozen=True, slots=True)
class LearnPace:
    """How often things are due."""

    batch_ms: float = BATCH_MS
    delta_seconds: float = 0.25
    dense_seconds: float = 5.0  # how often a delta carries the network's weights; rows go with each
    retrieval_seconds: float = 10.0  # how often one carries the retrieval head: recall lags ranking by so much


PACE = LearnPace()

_POLL_MS = 250
"""At most, between two rounds; a poll returns as soon as samples come."""
_TELL_SECONDS = 10.0
_COPY_SECONDS = 60.0


class _Stopped(Exception):
    """It is to stop, in the middle of work that is not worth its end."""


@dataclass(slots=True)
class _Due:
    """When each periodic duty falls due next (monotonic seconds)."""

    delta: float
    dense: float
    retrieval: float
    report: float
    batch: float


class LearnLoop:
    """Learns, publishes and keeps snapshots, until it is to stop.

    Args:
        settings: of this learner.
        store: where its snapshots go.
        build: makes the model of a snapshot.
        extra: what each version reports besides counts and columns.
        pace: default: :data:`PACE`.

    Attributes:
        output: set before :meth:`run`.
    """

    def __init__(
        self,
        settings: Settings,
        samples: SampleReader,
        trainer: Trainer,
        store: ModelStore,
        build: Build,
        extra: Callable[[], dict[str, Any]],
        pace: LearnPace | None = None,
    ) -> None:
        self._pace = PACE if pace is None else pace
        self.settings, self.samples, self.trainer, self.store, self._extra = settings, samples, trainer, store, extra
        self.output = LoopOutput()
        self.versions = Versions(trainer.model)
        schema = trainer.model.schema
        checks, quarantine = Checks.of(settings, schema), Quarantine(Store(settings.place(PLACE)), schema.id)
        self.promotion = Promotion(trainer, self.versions, store, checks, quarantine, build, self.progress)
        self._snapshots = LoopSnapshots(self.promotion, settings.snapshot_seconds)
        self.promotion.where = self._where
        self.promotion.durable = self._durable
        self.promotion.state.settle = self._snapshots.settle
        self.promotion.state.restorer.read_again = samples.again
        self._stop = threading.Event()
        self._tick_s = 0.0
        self.promotion.state.restorer.tick = self._tick
        self._in_flight: deque[tuple[int, int]] = deque()  # messages sent by then, and the newest decision in them
        self._copies_s = 0.0
        self._told_s = 0.0  # when it was said last that nothing can go out (monotonic seconds)
        self._due: _Due  # from run() on

    def run(
        self,
        found: FoundSnapshot | None,
        stop: threading.Event,
        decided: Sequence[LogPart] = (),
    ) -> None:
        """Goes on from a snapshot and what was decided since, publishes the root, then learns until ``stop`` is set,
        and ends with a last snapshot of all that was read."""
        self._stop = stop
        self.samples.open()
        try:
            self.promotion.state.quarantine.samples_log = self.samples.log
            self._replay(self.promotion.begin(found), decided)
            root = self.promotion.start(wall_ms())
            self.output.check()
            if root is not None:
                self._send(root)
            with self._snapshots.begin(self.output):
                READY.set(1)
                try:
                    self._loop(stop)
                    self._last_words()
                finally:
                    READY.set(0)
        except _Stopped:
            log.info("stopped in the middle of long work; it is done again at the next start")
        finally:
            self.samples.close()

    def rehearse(self, messages: Iterable[SampleMessage]) -> None:
        """Learns and publishes messages, and writes snapshots, as :meth:`run` does, but without a broker. For a loop
        that is thrown away: whatever another one does then is compiled, and does not happen for the first time."""
        self.promotion.begin(None)
        self.promotion.start(wall_ms())
        with self._snapshots.begin(self.output):
            self._snapshots.ask()
            for n, message in enumerate(messages):
                self.promotion.take(message.batch, message.joined_ms, message.offset)
                self.learn(drain=n % 2 > 0)
                self.publish()
                self._look_at_snapshots(time.monotonic())
            self.promotion.end_stretch()
            self.publish()
            self._snapshots.last()

    def _replay(self, possible: bool, parts: Sequence[LogPart]) -> None:
        """Does once more what was decided behind the snapshot, and reads on behind it."""
        state = self.promotion.state
        state.log.log = state.log.log or self.versions.claimant
        decided = [each for part in parts if part.log == state.log.log for each in part.decided]
        replay, began = Replay(state, self.store, self.samples, self._tick), time.monotonic()
        replay.run(decided, possible and self.samples.offset_holds)
        if decided:
            log.info("decisions done again", decisions=replay.done, seconds=round(time.monotonic() - began, 1))

    def _tick(self) -> None:
        """Between two steps of long work. Raises FencedError where another has taken over, or :class:`_Stopped`."""
        now = time.monotonic()
        if now < self._tick_s:
            return
        self._tick_s = now + 1.0
        LOOP_TIMESTAMP.set(time.time())
        if self._stop.is_set():
            raise _Stopped
        self.output.check()
        self.output.at_work(now)

    def _durable(self, part: LogPart) -> None:
        """Sends decisions, and waits until all is there that was sent."""
        if self.output.heard()[0]:
            self._snapshots.ask()
            self._send_again()
            part = self.promotion.state.log.take_unsent()
        if part.decided:
            self.output.decided(part)
        self.output.settled()

    def _loop(self, stop: threading.Event) -> None:
        pace, trainer = self._pace, self.trainer
        now = time.monotonic()
        due = self._due = _Due(
            now + pace.delta_seconds,
            now + pace.dense_seconds,
            now + pace.retrieval_seconds,
            now + 1.0,
            now,
        )
        while not stop.is_set():
            LOOP_TIMESTAMP.set(time.time())
            for message in self.samples.poll(self._patience_ms()) if self.promotion.takes else self._wait():
                self.promotion.take(message.batch, message.joined_ms, message.offset)
            now = time.monotonic()
            publish = now >= due.delta  # with all that has come: what waited for a full batch would wait for the next
            drain = bool(trainer.pending) and (publish or now >= due.batch)
            if self.learn(drain) or not trainer.pending:
                due.batch = time.monotonic() + pace.batch_ms / 1000
            if publish:
                now = time.monotonic()
                self.publish(dense=now >= due.dense, retrieval=now >= due.retrieval)
                due.delta = now + pace.delta_seconds
                due.dense = now + pace.dense_seconds if now >= due.dense else due.dense
                due.retrieval = now + pace.retrieval_seconds if now >= due.retrieval else due.retrieval
            while self.promotion.commands.learn_some() and time.monotonic() < due.delta:
                self._tick()
            self.output.between(now)
            self._look_at_snapshots(now)
            if now >= due.report:
                self.report()
                due.report = now + 1.0

    def _look_at_snapshots(self, now: float) -> None:
        try:
            if self._snapshots.due(now) and self.versions.root_newest:
                self.publish()
            self._snapshots.look(now)
        except BrokerError as error:
            self._tell(error)

    def _where(self) -> dict[str, Any]:
        return self.output.behind_newest()()

    def _wait(self) -> Sequence[SampleMessage]:
        """In place of samples, where none may be taken."""
        time.sleep(self._pace.delta_seconds)
        return ()

    def _patience_ms(self) -> float:
        """How long to wait for samples: until something of what came is due."""
        if self.promotion.state.standing.releasing:
            return 0.0
        due = min(self._due.delta, self._due.batch) if self.trainer.pending else self._due.delta
        return min(_POLL_MS, max(0.0, due - time.monotonic()) * 1000)

    def learn(self, drain: bool) -> bool:
        """Learns micro-batches that are due, with ``drain`` also a partial one; returns whether there was one."""
        learnt = False
        while True:
            began = time.perf_counter()
            report = self.promotion.step(drain)
            if report is None:
                return learnt
            learnt = True
            clicks, self.promotion.state.clicks = self.promotion.state.clicks, []
            self.output.learnt(report, clicks, time.perf_counter() - began)
            self._snapshots.copy_slice()

    def progress(self) -> Progress:
        counts = dict(self.trainer.counts)
        columns = msgspec.to_builtins(self.trainer.model.columns)
        extra = {"counts": counts, "columns": columns, "began": self.samples.began, **self._extra()}
        return Progress(counts.get("trained", 0), self.samples.offset, self.samples.log, extra)

    def report(self) -> None:
        """Figures, what is in quarantine, and copies of what of it the topic will lose."""
        self.output.report(self.samples.lag())
        quarantine, now = self.promotion.state.quarantine, time.monotonic()
        try:
            quarantine.write_list()
            if quarantine.rows and now >= self._copies_s + _COPY_SECONDS:
                self._copies_s = now
                self.promotion.commands.copy_some(held_offsets(self.settings, SAMPLES)[0])
        except (StoreError, BrokerError) as error:
            log.warning("quarantine cannot be looked after; tried again", error=one_line(error))

    # -- deltas ----------------------------------------------------------------------------------------------

    def publish(self, dense: bool = True, retrieval: bool = True) -> None:
        """The next delta, if something was learnt, and the end of a snapshot, if one waits for it. If a delta is lost,
        a snapshot is due at once to repair that."""
        self.output.check()
        lost, done = self.output.heard()
        if lost:
            self._snapshots.ask()
            self._send_again()
        while self._in_flight and self._in_flight[0][0] <= done:
            self.promotion.state.log.durable(self._in_flight.popleft()[1])
        try:
            if self._snapshots.ends:
                self.promotion.end_stretch()
            found = self.promotion.delta(wall_ms(), dense, retrieval, ends=self._snapshots.copied)
        except StoreError as error:
            self._snapshots.failed(error)
            return
        except BrokerError as error:
            self._tell(error)
            return
        except SnapshotError as error:
            if self.promotion.state.standing.back >= 0:  # there is no model to go back to
                self._tell(error)
                return
            log.error("a delta cannot be packed; a snapshot mends that", error=str(error))
            self._snapshots.ask()
            return
        if found is not None:
            self._send(found)
        elif unsent := self.promotion.take_unsent():
            self.output.decided(unsent)
        self._in_flight.append((self.output.sent, self.promotion.state.log.newest_sent))
        self._snapshots.end()

    def _send_again(self) -> None:
        self._in_flight.clear()
        self.promotion.state.log.send_again()

    def _tell(self, error: BrokerError | SnapshotError) -> None:
        if time.monotonic() >= self._told_s + _TELL_SECONDS:
            self._told_s = time.monotonic()
            log.error("nothing newer goes out; tried again", error=one_line(error))

    def _send(self, found: Published) -> None:
        if found.body is None:
            self.output.root(found.note)
        else:
            self.output.delta(found.note, found.body)

    def _last_words(self) -> None:
        """Learns what was read, and makes a last snapshot of it, without what is held back: that is read again."""
        self.learn(drain=True)
        self.promotion.end_stretch()
        self.publish()
        self._snapshots.last()
        self.report()
        try:
            self.promotion.make_durable()
        except BrokerError as error:
            log.warning("what was decided last is not durable: it is decided anew", error=one_line(error))
