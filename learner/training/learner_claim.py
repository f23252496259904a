# shell
"""Who is the learner: a process claims an epoch on the topic ``model.deltas``, and the first claim of it wins.

::

    start     read the topic to its end ── highest epoch e ──► claim e + 1 ──► read on to the first claim of e + 1
                                                                                │ our own: go on    │ another's: end
    running   before each publication, read what is new: a claim of a higher epoch ────────────────► end

The newest starter takes over, so that a lost learner can be replaced at once. Two learners under supervisors would
therefore fence each other for ever. Two things prevent this. A fenced process ends with a status of its own, by which a
supervisor leaves it alone. And it leaves a mark in its folder: at a later start it first listens for the learner that
fenced it, and ends again if that one is alive.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import structlog
from kafka import KafkaConsumer

from learner.training.publisher import Publisher
from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import BrokerError, FencedError, SnapshotError
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import REMEDY, make_reader, read_up
from millrace.versions.decisions import LogPart, decode_decisions
from millrace.versions.modellog import Assembler, Bad, Claimed, Decisions, Entry, Fence
from millrace.versions.versioning import MAX_EPOCH, Claim, Place

log = structlog.get_logger("learner")

HEARTBEAT_SECONDS = 5.0
"""The longest time in which a learner sends nothing."""

_LISTEN = 3
_REMEDY = "run one learner for a store; to let this one take over, stop the other"


class LearnerClaim:
    """The claim of the learner: what this process knows of the topic ``model.deltas``, and the epoch that it has won.
    ``claimant``: a name that no other process has. ``mark``: the file that marks this folder's learner as fenced.
    ``after``: decisions up to that one are not kept."""

    def __init__(self, settings: Settings, claimant: str, mark: Path, after: int = 0) -> None:
        self.claimant, self.epoch = claimant, -1
        self.newest = -1  # highest number of a version on the topic
        self.decided: list[LogPart] = []  # by learners that had the epoch then, until ours
        self._settings, self._mark, self._after = settings, mark, after
        self._fence, self._assembler = Fence(), Assembler()
        self._reader: KafkaConsumer = make_reader(settings, MODEL_DELTAS)
        self._reached = -1  # offset of the newest message read
        self._won = False
        self._last_sender: tuple[int, str] = (-1, "")  # the last sender

    def close(self) -> None:
        self._reader.close()

    def win(self, publisher: Publisher, store: Place, stop: threading.Event) -> bool:
        """Claims the epoch above all others, and returns when it is won; False where ``stop`` was set before a claim.
        ``store``: highest epoch and number in the store. Raises FencedError where another learner was faster, or the
        one that fenced this one before is still there, and BrokerError where the broker does not answer."""
        self._read_to_end()
        if self._mark.exists():
            self._listen(stop)
        if stop.is_set():
            return False
        epoch = max(self._fence.epoch, store.epoch) + 1
        if epoch > MAX_EPOCH:
            raise FencedError(f"epoch {epoch - 1} is the last there can be", "create the topic model.deltas again")
        claim = Claim(epoch, self.claimant)
        self._read_upto(publisher.claim(claim))
        self.epoch = epoch
        self._hold()
        self._won = True
        with contextlib.suppress(OSError):
            self._mark.unlink(missing_ok=True)
        log.info("epoch claimed", epoch=epoch, claimant=self.claimant)
        return True

    def check(self) -> None:
        """Reads what is new before a publication. Raises FencedError where another learner has taken over."""
        self._poll(0)
        self._hold()

    def check_at(self, offset: int) -> None:
        """Checks that nobody had taken over when the message at ``offset`` was written. Raises FencedError, or
        BrokerError where the broker does not give it."""
        self._read_upto(offset)
        self._hold()

    def _read_upto(self, offset: int) -> None:
        last_s = time.monotonic()
        while self._reached < offset:
            if self._poll(200):
                last_s = time.monotonic()
            elif time.monotonic() - last_s > self._settings.patience_seconds:
                raise BrokerError(f"broker '{self._settings.kafka}' does not give back what was sent", REMEDY)

    def _hold(self) -> None:
        fence = self._fence
        if (fence.epoch, fence.claimant) != (self.epoch, self.claimant):
            self._fenced(fence)

    def _fenced(self, fence: Fence) -> None:
        with contextlib.suppress(OSError):
            write_whole(self._mark, f"{fence.epoch} {fence.claimant}\n".encode(), durable=False)
        raise FencedError(f"learner '{fence.claimant}' has taken over with epoch {fence.epoch}", _REMEDY)

    def _listen(self, stop: threading.Event) -> None:
        """After this folder's learner was fenced: returns when the learner that has the epoch is silent."""
        fence, self._last_sender = self._fence, (-1, "")
        until = time.monotonic() + _LISTEN * HEARTBEAT_SECONDS
        log.warning("a learner of this folder was fenced; listening for the other", seconds=_LISTEN * HEARTBEAT_SECONDS)
        while time.monotonic() < until and not stop.is_set():
            self._poll(200)
            if self._last_sender == (fence.epoch, fence.claimant):
                self._fenced(fence)

    def _read_to_end(self) -> None:
        """Reads what the topic held at some moment after the start. Later messages are read behind the claim."""
        last_s = time.monotonic()
        while not read_up(self._reader):
            if self._poll(100):
                last_s = time.monotonic()
            elif time.monotonic() - last_s > self._settings.patience_seconds:
                raise BrokerError(f"broker '{self._settings.kafka}' gives no more of '{MODEL_DELTAS}'", REMEDY)

    def _poll(self, wait_ms: int) -> int:
        seen = 0
        for records in self._reader.poll(timeout_ms=wait_ms).values():
            for record in records:
                for entry in self._assembler.take(record.value):
                    self._take(entry)
                self._reached = record.offset
                seen += 1
        return seen

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Bad):
            # A version that was published in part has its number too.
            if entry.place is not None and entry.place.epoch == self._fence.epoch:
                self.newest = max(self.newest, entry.place.number)
            return
        if isinstance(entry, Claimed):
            self._fence.claims(entry.claim)
            self._last_sender = (entry.claim.epoch, entry.claim.claimant)
            return
        note = entry.note
        self._last_sender = (note.epoch, note.claimant)
        if not self._fence.admits(note.epoch, note.claimant):
            return
        if not isinstance(entry, Decisions):
            self.newest = max(self.newest, entry.note.version)
        if note.decisions and not self._won:
            try:
                part = decode_decisions(note.decisions)
                if part.decided and part.decided[-1].n > self._after:
                    self.decided.append(part)
            except SnapshotError as error:
                log.error("decisions cannot be read", epoch=note.epoch, why=error.problem)
