# shell
"""The thread that writes snapshots while the model learns on.

::

    learning   ── step ── copy a slice ── step ── copy ── ... ── delta ── the end of the copy ── step ── ...
                             │                       │                            │
    this thread              └► write, sync ─────────└► write, sync ──────────────└► last part, manifest, announce,
                                                                                     remove what is no longer needed
    at most four parts wait, so memory has a bound
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from learner.ranker.slices import Part
from learner.training.versions import Last, SnapshotFiles
from millrace.basics.errors import StoreError
from millrace.versions.modelstore import Announcement, ModelStore, Place

log = structlog.get_logger("learner")

Outcome = Announcement | StoreError
"""A snapshot that was written and announced, or why it was not."""

_WAITING = 4


@dataclass(frozen=True, slots=True)
class End:
    """The end of a snapshot, and what gives its ``follows`` and ``log``; that may wait."""

    last: Last
    where: Callable[[], dict[str, Any]]


class SnapshotWriter:
    """Writes the parts that it is given, in order, and says what became of the snapshot.

    Args:
        announce: tells the scorers of one.
        forget_before: is told the offset of ``model.deltas`` before which nobody needs anything.
    """

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
        """Whether a part can be given without waiting."""
        return not self._work.full()

    def give(self, work: Place | Part | End) -> None:
        """The version at which a snapshot begins; then its parts; then its end. Waits where it is not :attr:`ready`."""
        self._work.put(work)

    def outcome(self, wait_seconds: float = 0.0) -> Outcome | None:
        """What became of the snapshot that was given; None while that is open. A snapshot that failed is told of at
        once; the rest of its parts is passed over."""
        try:
            return self._outcomes.get(timeout=wait_seconds) if wait_seconds else self._outcomes.get_nowait()
        except queue.Empty:
            return None

    def close(self, cancel: bool = False) -> None:
        """Ends the thread when it has written what was given; ``cancel``: when it has written what it is writing."""
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
        """Removes what the newest two snapshots do not need, files and messages. Failing, it is told and tried again
        behind the next snapshot."""
        try:
            self._store.prune(epoch=epoch)
            kept = self._store.snapshots()[:2]
        except StoreError as error:
            log.warning("old snapshots cannot be removed", error=str(error))
            return
        # Offsets of one log alone: by its id, or else because this very learner named both.
        if len(kept) == 2 and kept[1].log == kept[0].log and (kept[0].log or kept[1].epoch == kept[0].epoch):
            self._forget_before(min(note.follows for note in kept))
