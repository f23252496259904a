# shell
"""The model's versions in shared memory: staged as overlays, taken up by every worker, then folded into the base.

::

    install   base of a snapshot ─────────────► workers attach to it ─► "serves 1" ┐
    patch     delta ─► overlay ───────────────► workers look in it first ─► "serves 2" ┤
    fold      the oldest overlay that all workers serve ─► rows of the base, a slice at a time
              └──────────────► "folded": workers do without that overlay

``number`` counts installs and patches. A version counts as served, and its clicks are timed, when all workers report
its number. Only then is an overlay folded, so no reader looks for one of its rows in the base during the write.

Threads: the feed of models installs and patches; a thread of this module folds; link threads report workers' progress.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from learner.custom.ownserving import OwnWriter
from learner.serving.staging import ModelWriter
from millrace.basics.errors import SnapshotError, one_line
from millrace.processes.priority import step_back
from millrace.processes.shared import Pool
from millrace.versions.clicks import ClickHistogram
from millrace.versions.image import Image
from millrace.versions.versioning import Announcement, VersionClicks
from scorer.feeder.state import FeederState
from scorer.ipc.link import Packet, Receiver

log = structlog.get_logger("scorer")

MOST_STAGED = 16
"""Limit of unfolded overlays, at which the feed waits: a worker searches each of them for each row."""
FOLD_ROWS = 16384
"""Rows that are folded between two looks at workers' progress."""
WARN_AFTER_SECONDS = 5.0


Writer = ModelWriter | OwnWriter


class Staged(NamedTuple):
    number: int
    note: Announcement
    arrays: Mapping[str, Any]


class PendingVersion(NamedTuple):
    """A version that not all workers serve yet."""

    number: int
    note: Announcement
    deltas: int
    clicks: Sequence[VersionClicks]


class VersionHost:
    """See the module's text."""

    def __init__(self, state: FeederState, pool: Pool) -> None:
        self.writer: Writer | None = None  # of what is served
        self.primary, self.meters, self._stop = state.primary, state.meters, state.stop
        self.pool, self.learner = pool, state.primary.settings.learner
        self._changed = threading.Condition(threading.RLock())
        self._workers: dict[Receiver, int] = {}  # up to which number each has come
        self._staged: deque[Staged] = deque()
        self._waiting: deque[PendingVersion] = deque()
        self._newest: Announcement | None = None  # sent to all workers
        self._number = self._base = 0
        self._published = (0, 0)  # of the writer: overlays folded, generation of its base
        self._broken = False  # an overlay may be staged that no worker has: this writer is never folded again

    # -- the feed of models -----------------------------------------------------------------------------------

    def install(self, note: Announcement, writer: Writer, deltas: int, clicks: Sequence[VersionClicks]) -> None:
        """Serves ``writer``, whose base is the whole version ``note``. ``deltas`` were applied after its snapshot."""
        with self._changed:
            self.writer, self._broken = writer, False
            self._staged.clear()
            self._base += 1
            self._published = writer.folded, writer.generation
            self._begins(note, deltas, clicks)
            self._broadcast(self._base_packet(note, 0))

    def patch(self, note: Announcement, delta: Image, clicks: Sequence[VersionClicks]) -> None:
        """Serves the delta ``note``. Waits, with a log line, while too many overlays are unfolded. Raises
        SnapshotError: the delta does not fit, and nothing changed; RuntimeError: no model is served."""
        with self._changed:
            self._wait_for_room()
            if self.writer is None or self._broken:
                raise RuntimeError("no model to patch")
            try:
                arrays = self.writer.stage(delta)
                packet = self._delta_packet(Staged(self._number + 1, note, arrays))
            except SnapshotError:
                raise
            except BaseException:
                self._broken = True
                raise
            self._begins(note, 1, clicks)
            self._staged.append(Staged(self._number, note, arrays))
            self._broadcast(packet)
            self._changed.notify_all()

    # -- workers ----------------------------------------------------------------------------------------------

    def add(self, worker: Receiver) -> None:
        """Sends a new worker the served version. Nothing is folded until it has caught up."""
        with self._changed:
            self._workers[worker] = 0
            if self.writer is not None and self._newest is not None:
                worker.put(self._base_packet(self._newest, len(self._staged)))
                for staged in self._staged:
                    worker.put(self._delta_packet(staged))

    def remove(self, worker: Receiver) -> None:
        with self._changed:
            self._workers.pop(worker, None)
            self._all_serve()

    def serves(self, worker: Receiver, number: int) -> None:
        with self._changed:
            if worker in self._workers:
                self._workers[worker] = number
                self._all_serve()

    def behind(self, worker: Receiver) -> int | None:
        """The number that a worker serves, if it is not the newest; else None."""
        with self._changed:
            reached = self._workers.get(worker, self._number)
            return reached if reached < self._number else None

    @property
    def unfolded(self) -> int:
        return len(self._staged)

    # -- folding ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        threading.Thread(target=self._run, name="fold", daemon=True).start()

    def fold(self, rows: int = FOLD_ROWS) -> bool:
        """Folds some rows, if an overlay may be folded; returns whether there was one."""
        with self._changed:
            if not self._foldable():
                return False
            try:
                self._fold(rows)
            except BaseException:  # nobody knows how far it came: workers keep their overlays, which hold
                self._broken = True
                raise
            return True

    def _fold(self, rows: int) -> None:
        assert self.writer is not None
        self.writer.fold(rows)
        folded, generation = self.writer.folded, self.writer.generation
        before, known = self._published
        if (folded, generation) == self._published:
            return
        for _ in range(folded - before):
            self._staged.popleft()
        self._published = folded, generation
        arrays = self.writer.base() if generation != known else None
        self._broadcast(
            Packet("folded", {"learner": self.learner, "base": self._base, "folded": folded}, arrays, self.pool)
        )
        self._changed.notify_all()

    def _run(self) -> None:
        step_back()
        while not self._stop.is_set():
            try:
                if not self.fold():
                    with self._changed:
                        if not self._foldable():
                            self._changed.wait(0.5)
            except Exception as error:
                self.meters.error("fold")
                log.error("the model's rows cannot be folded: it waits for a snapshot", error=one_line(error))

    def _foldable(self) -> bool:
        return (
            self.writer is not None
            and not self._broken
            and bool(self._staged)
            and all(number >= self._staged[0].number for number in self._workers.values())
        )

    # -- within -----------------------------------------------------------------------------------------------

    def _begins(self, note: Announcement, deltas: int, clicks: Sequence[VersionClicks]) -> None:
        self._number += 1
        self._newest = note
        self._waiting.append(PendingVersion(self._number, note, deltas, clicks))
        if not self._workers:
            self._all_serve()

    def _all_serve(self) -> None:
        reached = min(self._workers.values(), default=self._number)
        while self._waiting and self._waiting[0].number <= reached:
            served = self._waiting.popleft()
            self.primary.note = served.note
            self.meters.served(served.note.version, served.deltas, served.clicks, self.primary.wall())
        self._changed.notify_all()

    def _wait_for_room(self) -> None:
        said = False
        while len(self._staged) >= MOST_STAGED and not self._broken and not self._stop.is_set():
            if not self.fold() and not self._changed.wait(WARN_AFTER_SECONDS) and not said:
                said = True
                log.warning("versions wait: a worker does not take up the newest", staged=len(self._staged))

    def _base_packet(self, note: Announcement, overlays: int) -> Packet:
        assert self.writer is not None
        facts = {
            "learner": self.learner,
            "number": self._number - overlays,
            "base": self._base,
            "folded": self.writer.folded,
            "overlays": overlays,
            "note": _brief(note),
        }
        return Packet("base", facts, self.writer.base(), self.pool)

    def _delta_packet(self, staged: Staged) -> Packet:
        facts = {"learner": self.learner, "number": staged.number, "base": self._base, "note": _brief(staged.note)}
        return Packet("delta", facts, staged.arrays, self.pool)

    def _broadcast(self, packet: Packet) -> None:
        for worker in self._workers:
            worker.put(packet)


def _brief(note: Announcement) -> Announcement:
    """Without the files and the clicks, which workers do not need."""
    return msgspec.structs.replace(note, clicks=ClickHistogram(), parts=[], training=[])
