# shell
"""The thread that writes snapshots while the model learns on. At most four parts wait, so memory has a bound."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from learner.ranker.snapshot_slices import Part
from learner.training.learner_versions import Last, SnapshotFiles
from millrace.basics.errors import StoreError
from millrace.versions.modelstore import Announcement, ModelStore, Place

log = structlog.get_logger("learner")

Outcome = Announcement | StoreError
"""A snapshot that was written and announced, or why it was not."""

_WAITING = 4


@dataclass(frozen=True, slots=True)
class End:
    """The end of a snapshot, and what gives its ``follows`` and ``log``, which may wait."""

    last: Last
    where: Callable[[], dict[str, Any]]


class SnapshotWriter:
    """Writes the given parts in order, and reports the outcome of the snapshot. ``announce``: announces a snapshot to
    the scorers. ``forget_before``: receives the offset of ``model.deltas`` before which no message is needed."""

    def __init__(
        self,
        store: ModelStore,
        announce: Callable[[Announcement], None],
        forget_before: Callable[[int], None],
    ) -> None:
        self._store, self._announce, self._forget_before = store, announce, forget_before
        self._work: queue.Queue[Place | Part | End | None] = queue.Queue(_WAITING)
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether :meth:`give` would not wait."""
        return not self._work.full()

    def give(self, work: Place | Part | End) -> None:
        """Takes the version at which a snapshot begins; then its parts; then its end."""
        self._work.put(work)

    def outcome(self, wait_seconds: float = 0.0) -> Outcome | None:
        """The outcome of the given snapshot; None while that is open. A failure is reported at once."""
        try:
            return self._outcomes.get(timeout=wait_seconds) if wait_seconds else self._outcomes.get_nowait()
        except queue.Empty:
            return None

    def close(self, cancel: bool = False) -> None:
        """Ends the thread when it has written what was given; ``cancel``: after the current file."""
        if cancel:
            self._cancelled.set()
        while self._thread.is_alive():
            try:
                self._work.put(None, timeout=0.2)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _run(self) -> None:
        files: SnapshotFiles | None = None
        while (work := self._work.get()) is not None:
            if self._cancelled.is_set():
                continue
            try:
                if isinstance(work, Place):
                    files = SnapshotFiles(self._store, work)
                elif files is None:  # of a snapshot that has failed
                    continue
                elif isinstance(work, End):
                    self._end(files, work)
                    files = None
                else:
                    files.add(work)
            except StoreError as error:
                if files is not None:
                    files.give_up()
                files = None
                self._outcomes.put(error)
            except Exception as error:  # a bug must not end snapshots without a word
                files = None
                self._outcomes.put(StoreError(f"a snapshot failed ({type(error).__name__}: {error})", "report this"))

    def _end(self, files: SnapshotFiles, end: End) -> None:
        note = files.end(end.last, **end.where())
        if self._cancelled.is_set():
            return
        self._announce(note)
        self._outcomes.put(note)
        self.tidy(note.epoch)

    def tidy(self, epoch: int) -> None:
        """Removes what the newest two snapshots do not need. Logs a failure; the next snapshot retries."""
        try:
            self._store.prune(epoch=epoch)
            kept = self._store.snapshots()[:2]
        except StoreError as error:
            log.warning("old snapshots cannot be removed", error=str(error))
            return
        # Offsets of one log alone: by its id, or else because this very learner named both.
        if len(kept) == 2 and kept[1].log == kept[0].log and (kept[0].log or kept[1].epoch == kept[0].epoch):
            self._forget_before(min(note.follows for note in kept))
