# shell
"""Snapshots, made beside learning: the loop's thread copies a slice after each step, and a
:class:`~learner.training.writer.SnapshotWriter` writes it.

::

    due ─► begin ─ slice ─ slice ─ slice ─► copied ─► the next delta that ends a stretch ─► end ─► written
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from learner.promotion.promotion import Promotion
from learner.ranker.interfaces import Slicing
from learner.role.loopoutput import LoopOutput
from learner.training.writer import End, SnapshotWriter
from millrace.basics.errors import StoreError, one_line
from millrace.processes.wall import wall_ms

log = structlog.get_logger("learner")

_FAILURES = 3
"""The role ends after so many snapshots or deltas in succession that cannot be written. A disk may be full for a
moment; but a learner whose work is nowhere kept must not seem well."""
_LAST_S = 600.0
_WAITS = 10.0
"""Times between two snapshots for which one waits for the end of a stretch, where hardly any samples come."""


class LoopSnapshots:
    """One thread. Inside :meth:`begin` all others may be called.

    Attributes:
        copied: whether only the end of a snapshot is left, which is made behind a delta.
        asked: whether one is needed at once, to repair what followers lack.
    """

    def __init__(self, promotion: Promotion, every_seconds: float) -> None:
        self._promotion, self._versions, self._every_s = promotion, promotion.versions, every_seconds
        self._copying: Slicing | None = None
        self.copied = self.asked = False
        self._writing = False  # whether the outcome of one is still open
        self._failed = 0
        self._due_s = self._copied_s = 0.0
        self._output = LoopOutput()
        self._writer: SnapshotWriter  # from begin() on

    @contextmanager
    def begin(self, output: LoopOutput) -> Iterator[None]:
        """Begins a writer, and ends it when it has written what it was given."""
        self._output, self._due_s = output, time.monotonic() + self._every_s
        self._writer = SnapshotWriter(self._promotion.store, output.snapshot, output.forget_before)
        try:
            yield
        except BaseException:
            self._writer.close(cancel=True)
            raise
        self._writer.close()

    def ask(self) -> None:
        """One is due at once, and ends the stretch."""
        self.asked, self._due_s = True, 0.0

    @property
    def ends(self) -> bool:
        """Whether the end of one that is needed, or has waited for too long, is to end the stretch."""
        return self.copied and (self.asked or time.monotonic() > self._copied_s + _WAITS * self._every_s)

    def due(self, now: float) -> bool:
        wanted = now >= self._due_s or self._promotion.snapshot_wanted
        return wanted and not self._writing and self._promotion.publishing and self._versions.snapshot_due

    def look(self, now: float) -> None:
        """Begins a snapshot when it is due, or continues one; never of what the gate, or a person, holds back: then it
        is one that nobody sees, where memory asks for it. Raises StoreError if none can be written time and again, and
        BrokerError where decisions cannot be made durable."""
        self._hear()
        if not self._promotion.publishing:
            self._give_up()
            try:
                if not self._writing and self._promotion.write_private(wall_ms()):
                    log.info("a snapshot was made that nobody sees")
            except StoreError as error:
                self.failed(error)
            return
        if self.due(now) and not self._versions.root_newest:
            self._due_s = now + self._every_s
            self._begin()
        self.copy_slice()

    def _begin(self) -> None:
        self._copying = self._versions.begin()
        self.copied, self._writing = False, True
        self._writer.give(self._versions.place)

    def copy_slice(self, wait: bool = False) -> None:
        """Copies one slice, if the writer has room for it, until only the end is left."""
        if self._copying is None or self.copied or not (wait or self._writer.ready):
            return
        began = time.perf_counter()
        part = self._copying.next()
        self._output.held_up(time.perf_counter() - began)
        if part is None:
            self.copied, self._copied_s = True, time.monotonic()
        elif self._promotion.passes(part):
            self._writer.give(part)

    def end(self, wait: bool = False) -> bool:
        """Makes the end right behind a delta with all there is, where all of it was judged. Returns whether it did, and
        the gate let it pass."""
        promotion, slices = self._promotion, self._copying
        if slices is None or not self.copied or not (wait or self._writer.ready) or promotion.trainer.pending:
            return False
        if not (promotion.publishing and promotion.at_mark and self._versions.snapshot_ready):
            return False
        began = time.perf_counter()
        last = promotion.finish(slices, wall_ms())
        self._output.held_up(time.perf_counter() - began)
        if last is None:
            return False
        self._writer.give(End(last, self._output.behind_newest()))
        self._copying, self.copied, self.asked = None, False, False
        return True

    def last(self) -> None:
        """Makes a last one, of all that may be seen, and waits for it. Raises StoreError if it cannot be written."""
        if self._writing and self._copying is None:
            self._hear(_LAST_S)
        may = self._promotion.publishing and not self._versions.root_newest
        if may and self._versions.snapshot_due and self._copying is None:
            self._begin()
        while self._copying is not None and not self.copied:
            self.copy_slice(wait=True)
        if self.end(wait=True):
            outcome = self._writer.outcome(_LAST_S)
            if isinstance(outcome, StoreError):
                raise outcome

    def settle(self) -> None:
        """Before the model is replaced: gives up one that is being copied, and awaits one that has its end."""
        self._give_up()
        if self._writing:
            self._hear(_LAST_S)

    def _give_up(self) -> None:
        """Its files go with the next."""
        if self._copying is not None:
            self._copying.abandon()
            self._copying, self.copied, self._writing = None, False, False

    def _hear(self, wait_seconds: float = 0.0) -> None:
        outcome = self._writer.outcome(wait_seconds)
        if outcome is None:
            return
        self._writing = False
        if isinstance(outcome, StoreError):
            self._give_up()
            self._promotion.written(None)
            self._versions.snapshot_lost()
            self.failed(outcome)
        else:
            self._failed = 0
            self._promotion.written(outcome)

    def failed(self, error: StoreError) -> None:
        """Logs that the store refused something. Raises the error after :data:`_FAILURES` in succession."""
        self._failed += 1
        self._due_s = 0.0
        if self._failed >= _FAILURES:
            raise error
        log.error("the model store takes nothing; tried again with the next snapshot", error=one_line(error))
