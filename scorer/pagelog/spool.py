# core
"""Packed page logs on disk, until Kafka has acknowledged them.

Each scorer of a machine has a folder with append-only segments. ::

    spool/0/  lock │ acknowledged │ 000000000007.log │ 000000000008.log ◄─ append
                          └─ the place before which all is acknowledged; older segments are deleted

A record survives any end of the process, but not a loss of power, because writes are not synced. A scorer that starts
adopts the files of dead ones. Records acknowledged just before a crash may be sent twice; readers know a page by its
request id.

Beyond the bound the newest pages are lost. Damage affects only the damaged records. :mod:`scorer.pagelog.spoolfile` has
the form of the files.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from millrace.basics.atomic_files import lock_of
from scorer.pagelog.spoolfile import (
    HEAD_BYTES,
    Position,
    RecordPlace,
    head_of,
    read_at,
    read_mark,
    read_on,
    segment,
    segments,
    write_mark,
)

SEGMENT_BYTES = 4 * 1024 * 1024
FULL, DISK, DAMAGED = "spool-full", "disk", "spool-damaged"
"""Reasons for lost pages."""

Lost = Callable[[str, int, int], None]
"""Called with a reason, lost pages, and their exposures (0 where unknown)."""


class Spool:
    """A queue of records in files. One thread calls :meth:`append` and :meth:`adopt`, another one all else; access to
    common attributes is atomic.

    Args:
        folder: of the spools of this machine's scorers; is made.
        most_bytes: limit on disk.
        lost: called with each loss by damage.
        segment_bytes: length at which a segment is closed.

    Raises OSError: the folder cannot be used.
    """

    def __init__(self, folder: Path, most_bytes: int, lost: Lost, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._most, self._lost = most_bytes, lost
        self._segment_bytes = min(segment_bytes, max(most_bytes // 8, 1))
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._lock = _own(folder)
        self._mark = os.open(self.folder / "acknowledged", os.O_RDWR | os.O_CREAT, 0o600)
        self._lengths = segments(self.folder)
        self._written, self._freed = sum(self._lengths.values()), 0
        self._next = read_mark(self._mark) or (0, 0)
        self._given: deque[tuple[Position, int]] = deque()  # in order; the first is not acknowledged
        self._acknowledged: set[Position] = set()  # of these
        # New segments come after the mark too, which may outlive its segment.
        self._number = max([self._next[0], *self._lengths])
        self._file: int | None = None
        self._free(self._next[0])
        self.adopt()

    def adopt(self) -> None:
        """Adopts records of dead scorers from the neighbouring folders, up to the limit. For the thread of
        :meth:`append`."""
        for other in sorted(p for p in self.folder.parent.iterdir() if p.name.isdecimal() and p != self.folder):
            with contextlib.suppress(OSError):  # a folder that we may not touch is nobody's loss but its own
                self._adopt(other)

    def append(self, key: bytes, value: bytes, exposures: int) -> str:
        """Writes a record. Returns why it was refused (the caller then counts it as lost); empty: it was written."""
        head = head_of(key, value, exposures)
        size = HEAD_BYTES + len(key) + len(value)
        if self.held_bytes + size > self._most:
            return FULL
        try:
            if self._file is None or self._lengths[self._number] >= self._segment_bytes:
                self._roll()
            assert self._file is not None
            written = os.writev(self._file, [head, key, value])
        except OSError:
            written = 0
        if written != size:
            self._cut_off()
            return DISK
        self._lengths[self._number] += size
        self._written += size
        return ""

    def next(self) -> RecordPlace | None:
        """The next record; None: there is none now. Skips damaged ones."""
        while True:
            found = read_on(self.folder, self._lengths, self._next)
            if found is None:
                return None
            self._given.append((found.at, found.end))
            self._next = found.at[0], found.end
            if found.key is not None:
                return found
            self._damaged(found)

    def again(self, at: Position) -> RecordPlace | None:
        """A record that :meth:`next` gave, for a retry. None: it has been damaged since."""
        found = read_at(self.folder, at, self._lengths.get(at[0], 0))
        if found.key is not None:
            return found
        self._damaged(found)
        return None

    def acknowledge(self, at: Position) -> None:
        """Marks the record at ``at`` as done: Kafka has it, or it counts as lost."""
        self._acknowledged.add(at)
        mark: Position | None = None
        while self._given and self._given[0][0] in self._acknowledged:
            done, end = self._given.popleft()
            self._acknowledged.discard(done)
            mark = done[0], end
        if mark is not None:
            with contextlib.suppress(OSError):  # a full disk: room is made by what follows, and a later mark holds
                write_mark(self._mark, mark)
            self._free(mark[0])

    @property
    def held_bytes(self) -> int:
        return self._written - self._freed

    @property
    def empty(self) -> bool:
        """Whether all records have been read and acknowledged."""
        number, start = self._next
        return not self._given and all(n < number or (n == number and self._lengths[n] <= start) for n in self._numbers)

    def close(self) -> None:
        """Unlocks the folder. Unacknowledged records stay for the next scorer that starts."""
        self._close_file()
        os.close(self._mark)
        os.close(self._lock)

    @property
    def _numbers(self) -> list[int]:
        return sorted(self._lengths)  # in one step: the other thread may add to it

    def _damaged(self, found: RecordPlace) -> None:
        self._lost(DAMAGED, 1, found.exposures)
        self.acknowledge(found.at)

    def _roll(self) -> None:
        self._close_file()
        number = self._number
        if self._lengths.get(number) != 0:  # an empty one is left where the disk took nothing
            number += 1
        self._file = os.open(segment(self.folder, number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._number = number
        self._lengths[number] = 0

    def _cut_off(self) -> None:
        """Removes a partial record after a full disk. If that fails too, a later scorer finds it damaged."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._lengths[self._number])
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _free(self, before: int) -> None:
        for number in self._numbers:
            if number < before:
                with contextlib.suppress(OSError):
                    segment(self.folder, number).unlink()
                self._freed += self._lengths.pop(number)

    def _adopt(self, other: Path) -> None:
        """Copies a dead scorer's records, then empties its folder, except for what finds no space."""
        lock = lock_of(other / "lock")
        if lock is None:
            return
        mark = os.open(other / "acknowledged", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lengths = segments(other)
            at = read_mark(mark) or (0, 0)
            while (found := read_on(other, lengths, at)) is not None:
                if found.key is None:
                    self._lost(DAMAGED, 1, found.exposures)
                elif self.append(found.key, found.value, found.exposures):
                    return
                at = found.at[0], found.end
                write_mark(mark, at)
            for number in lengths:
                segment(other, number).unlink()
        finally:
            os.close(mark)
            os.close(lock)


def _own(folder: Path) -> tuple[Path, int]:
    """The first folder without an owner, and the lock on it."""
    number = 0
    while True:
        own = folder / str(number)
        own.mkdir(exist_ok=True)
        lock = lock_of(own / "lock")
        if lock is not None:
            return own, lock
        number += 1
