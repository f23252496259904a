# shell
"""The loop of a learner: samples in, versions out, for the learner that serves and for its shadow.

Snapshots are made beside learning: this thread copies a slice after each step,
:class:`~learner.training.writer.SnapshotWriter` writes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from learner.gate.gatestate import KEEP_SECONDS, keep_gate
from learner.gate.promotion import Checks, Promotion, Published
from learner.ranker.model import LearnReport
from learner.ranker.verbs import Slicing
from learner.role.samplereader import SampleReader
from learner.training.learner_versions import Build, FoundSnapshot, Progress, Versions
from learner.training.trainer import BATCH_MS, ClickCounts, Trainer
from learner.training.writer import End, SnapshotWriter
from millrace.basics.errors import SnapshotError, StoreError, one_line
from millrace.contracts.settings import Settings
from millrace.processes.metrics import LOOP_TIMESTAMP, READY
from millrace.processes.wall import wall_ms
from millrace.versions.modelstore import Announcement, ModelStore

log = structlog.get_logger("learner")


@dataclass(frozen=True, slots=True)
class LearnPace:
    """How often things are due."""

    batch_ms: float = BATCH_MS
    delta_seconds: float = 0.25
    dense_seconds: float = 5.0  # how often a delta carries the network's weights; rows go with each
    retrieval_seconds: float = 10.0  # how often one carries the retrieval head: recall lags ranking by so much


PACE = LearnPace()
"""Of the learner that serves."""

_POLL_MS = 250
"""At most, between two rounds; a poll returns as soon as samples come."""
_FAILURES = 3
"""The role ends after so many snapshots or deltas in succession that cannot be written. A disk may be full for a
moment; but a learner whose work is nowhere kept must not seem well."""

_LAST_SNAPSHOT_S = 600.0


class LoopOutput:
    """Receives what a loop does; this one ignores it. One thread, but for :meth:`snapshot` and :meth:`forget_before`,
    which the thread that writes snapshots calls.

    ::

        check            before each publication; an exception ends the loop
        delta            a version to send
        root, snapshot   one that lies in the store: without a delta before it, or behind its own
        lost             whether a delta was not delivered since the last call: a snapshot is due at once
        behind_newest    returns a function that gives ``follows`` and ``log`` of a snapshot of the newest version
        forget_before    messages of ``model.deltas`` before this offset are no longer needed
        learnt           a micro-batch was learnt or refused, in so many seconds
        held_up          copying a slice held learning up for so many seconds
        between          between two rounds of the loop, at a monotonic time: other work
        report           once a second: messages that are not read yet, by partition
    """

    def check(self) -> None: ...
    def delta(self, note: Announcement, body: bytes) -> None: ...
    def root(self, note: Announcement) -> None: ...
    def snapshot(self, note: Announcement) -> None: ...
    def lost(self) -> bool:
        return False

    def behind_newest(self) -> Callable[[], dict[str, Any]]:
        return dict

    def forget_before(self, offset: int) -> None: ...
    def learnt(self, report: LearnReport, clicks: list[ClickCounts], seconds: float) -> None: ...
    def held_up(self, seconds: float) -> None: ...
    def between(self, now: float) -> None: ...
    def report(self, lags: Mapping[int, int]) -> None: ...


@dataclass(slots=True)
class _Due:
    """When each periodic duty falls due next (monotonic seconds)."""

    delta: float
    dense: float
    retrieval: float
    snapshot: float
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
        self.promotion = Promotion(
            *(trainer, self.versions, store, Checks.of(settings, trainer.model.schema)),
            *(build, self.progress, self._behind_newest, self._settle),
        )
        self._copying: Slicing | None = None
        self._writing = False  # whether the outcome of a snapshot is still open
        self._failures = 0
        self._gate_kept = (True, 0.0)  # whether it let versions out when kept last, and when (monotonic seconds)
        # From run() on:
        self._writer: SnapshotWriter
        self._due: _Due

    def run(self, found: FoundSnapshot | None, stop: threading.Event) -> None:
        """Publishes the root, then learns until ``stop`` is set, and ends with a last snapshot of all that was read."""
        self.samples.open()
        try:
            root = self.promotion.start(found, wall_ms())
            self.output.check()
            self._send(root)
            self._writer = SnapshotWriter(self.store, self.output.snapshot, self.output.forget_before)
            try:
                READY.set(1)
                self._loop(stop)
                self._last_words()
            except BaseException:
                self._writer.close(cancel=True)
                raise
            finally:
                READY.set(0)
            self._writer.close()
        finally:
            self.samples.close()

    def _loop(self, stop: threading.Event) -> None:
        pace, trainer = self._pace, self.trainer
        now = time.monotonic()
        due = self._due = _Due(
            now + pace.delta_seconds,
            now + pace.dense_seconds,
            now + pace.retrieval_seconds,
            now + self.settings.snapshot_seconds,
            now + 1.0,
            now,
        )
        while not stop.is_set():
            LOOP_TIMESTAMP.set(time.time())
            for message in self.samples.poll(self._patience_ms()):
                trainer.take(message.batch, message.partition, message.joined_ms, message.offset)
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
            self.promotion.release_some()
            self.output.between(now)
            self._look_at_snapshots(now)
            if now >= due.report:
                self.report()
                due.report = now + 1.0

    def _patience_ms(self) -> float:
        """How long to wait for samples: until something of what came is due."""
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
            self.output.learnt(report, self.promotion.take_clicks(), time.perf_counter() - began)
            self._copy_slice()

    def progress(self) -> Progress:
        counts = dict(self.trainer.counts)
        extra = {"counts": counts, "columns": msgspec.to_builtins(self.trainer.model.columns), **self._extra()}
        return Progress(counts.get("trained", 0), self.samples.restart_offsets(), self.samples.logs, extra)

    def report(self) -> None:
        """Figures, and the gate's state where it is due."""
        self.output.report(self.samples.lags())
        publishing, kept_s = self._gate_kept
        if self.promotion.publishing != publishing or time.monotonic() - kept_s > KEEP_SECONDS:
            self._keep_gate()

    def _keep_gate(self) -> None:
        self._gate_kept = (self.promotion.publishing, time.monotonic())
        keep_gate(self.settings, self.promotion)

    # -- deltas ----------------------------------------------------------------------------------------------

    def publish(self, dense: bool = True, retrieval: bool = True) -> None:
        """The next delta, if something was learnt. If one is lost, a snapshot is due at once to repair that."""
        self.output.check()
        try:
            found = self.promotion.delta(wall_ms(), dense, retrieval)
        except StoreError as error:
            self._failed(error)
            self._due.snapshot = 0.0
            return
        except SnapshotError as error:
            log.error("a delta cannot be packed; a snapshot mends that", error=str(error))
            self._due.snapshot = 0.0
            return
        if found is not None:
            self._send(found)
        if self.output.lost():
            self._due.snapshot = 0.0

    def _send(self, found: Published) -> None:
        if found.body is None:
            self.output.root(found.note)
        else:
            self.output.delta(found.note, found.body)

    def _failed(self, error: StoreError) -> None:
        """Logs that the store refused something. Raises the error after :data:`_FAILURES` in succession."""
        self._failures += 1
        if self._failures >= _FAILURES:
            raise error
        log.error("the model store takes nothing; tried again with the next snapshot", error=one_line(error))

    # -- snapshots -------------------------------------------------------------------------------------------

    def _look_at_snapshots(self, now: float) -> None:
        """Begins a snapshot when it is due, or continues one; never of what the gate, or a person, holds back."""
        self._hear()
        if not self.promotion.publishing:
            self._give_up()
            return
        wanted = now >= self._due.snapshot or self.promotion.snapshot_wanted
        if not self._writing and wanted:
            self._due.snapshot = now + self.settings.snapshot_seconds
            if self.versions.snapshot_due and self.versions.root_newest:
                self.publish()
            if self.versions.snapshot_due and self.promotion.publishing and not self.versions.root_newest:
                self._begin()
        if self._copying is not None and self._copy_slice():
            self.learn(drain=True)  # so that the offsets match exactly what the weights have seen
            self._finish()

    def _hear(self, wait_seconds: float = 0.0) -> None:
        outcome = self._writer.outcome(wait_seconds)
        if outcome is None:
            return
        self._writing = False
        if isinstance(outcome, StoreError):
            self._give_up()
            self.promotion.written(None)
            self.versions.snapshot_lost()
            self._failed(outcome)
        else:
            self._failures = 0
            self.promotion.written(outcome)

    def _give_up(self) -> None:
        """Gives up the snapshot that is being copied. Its files go with the next."""
        if self._copying is not None:
            self._copying.abandon()
            self._copying, self._writing = None, False

    def _settle(self) -> None:
        """Before the model is replaced: gives up a snapshot that is being copied, and awaits one that has its end."""
        self._give_up()
        if self._writing:
            self._hear(_LAST_SNAPSHOT_S)

    def _behind_newest(self) -> dict[str, Any]:
        return self.output.behind_newest()()

    def _begin(self) -> None:
        self._copying = self.versions.begin()
        self._writing = True
        self._writer.give(self.versions.place)

    def _copy_slice(self, wait: bool = False) -> bool:
        """Copies one slice of the snapshot, if the writer has room for it. Returns whether only the end is left."""
        if self._copying is None or not (wait or self._writer.ready):
            return False
        began = time.perf_counter()
        part = self._copying.next()
        self.output.held_up(time.perf_counter() - began)
        if part is None:
            return True
        if self.promotion.passes(part):
            self._writer.give(part)
        return False

    def _finish(self) -> None:
        """Copies the rest, and ends the snapshot at a new version. Does nothing if the writer has no room now."""
        while self._copying is not None and self._writer.ready:
            if not self._copy_slice():
                continue
            self.publish()
            if self._copying is not None:  # the delta passed
                self._end(self._copying)

    def _end(self, slices: Slicing) -> bool:
        """The end of a snapshot, right behind a delta. Returns whether the gate let it pass."""
        if not self.promotion.publishing:
            self._give_up()
            return False
        began = time.perf_counter()
        last = self.promotion.finish(slices, wall_ms())
        self.output.held_up(time.perf_counter() - began)
        if last is None:
            return False
        self._writer.give(End(last, self.output.behind_newest()))
        self._copying = None
        return True

    def _last_words(self) -> None:
        """Learns what was read, and makes a last snapshot of it, without what is held back: that is read again."""
        self.learn(drain=True)
        self.publish()
        if self._writing and self._copying is None:
            self._hear(_LAST_SNAPSHOT_S)
        may = self.promotion.publishing and not self.versions.root_newest
        if may and self.versions.snapshot_due and self._copying is None:
            self._begin()
        while self._copying is not None and not self._copy_slice(wait=True):
            pass
        if self._copying is not None and self._end(self._copying):
            outcome = self._writer.outcome(_LAST_SNAPSHOT_S)
            if isinstance(outcome, StoreError):
                raise outcome
        self.report()
        self._keep_gate()
