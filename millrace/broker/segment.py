# core
"""One file of record batches, and a sparse index of it in memory.

::

    file     |batch|batch|  batch  |b|b|b|b|   batch   |b|b|b| ...   as producers sent them
    index      ▲             ▲         ▲        ▲         ▲          an entry for 8 KiB at least: first offset,
                                                                     position, latest time up to the next entry

An offset is found by a binary search among the entries and a walk over the heads of at most 8 KiB of batches. An entry
takes 24 bytes, so the index is at most a three-hundredth of the file. It is rebuilt from the file at a start.

A failed fsync is never repeated on the same data: the system may have dropped the unwritten pages and would then report
success. The unsynced part is cut off (:meth:`Segment.cut`), and the broker ends.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from millrace.basics.atomic_files import sync_folder, write_whole
from millrace.broker.batches import HEAD_BYTES, PLACE, PLACE_BYTES, BatchHeader, checksum_fits, read_head

INDEX_BYTES = 8 * 1024
PIECE_BYTES = 1024 * 1024
SUFFIX = ".log"
DAMAGED = ".damaged"


class DamagedBytes(NamedTuple):
    """Damaged bytes of a file."""

    torn: int
    damaged: int


def file_name(base: int) -> str:
    """A segment's name is its first offset, so that names sort as offsets do."""
    return f"{base:020d}{SUFFIX}"


class Segment:
    """One segment file, made if missing. ``base``: least offset of its records. ``now_ms``: its last append.

    The newest segment of a log is open for appending. All others are opened for each read: that takes 10 µs and saves a
    descriptor for each.
    """

    def __init__(self, path: Path, base: int, now_ms: int) -> None:
        self.path, self.base = path, base
        self.size = 0
        self.end = base  # offset after its last record
        self.max_ms = -1  # latest time of its records, as producers gave it
        self.appended_ms = now_ms
        self._fd: int | None = None
        self._synced = 0  # bytes known to be on the disk; an earlier broker's may not be
        self._loaded = 0
        self._named = False  # its name is on the disk
        self._offsets, self._positions, self._times = array("q"), array("q"), array("q")

    def open(self) -> None:
        """Opens it for appending. Idempotent."""
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def load(self, seen: Callable[[BatchHeader], None], below: int | None = None) -> DamagedBytes:
        """Reads all batches, checks their checksums and makes the index. Only valid batches stay in the file.

        Other bytes move to a file beside this one: a torn end, left by a broker that was killed while it wrote (and so
        never acknowledged), and each damaged batch.

        Args:
            seen: called with the head of each valid batch in order.
            below: where the next file begins, if that bounds this one. A batch that reaches beyond it, or beyond the
                batch behind it, counts as damaged: the checksum does not cover a batch's offset.
        """
        data = self.path.read_bytes()
        self.appended_ms = os.stat(self.path).st_mtime_ns // 1_000_000
        valid: list[memoryview] = []
        damaged: list[memoryview] = []
        view, at, torn = memoryview(data), 0, 0
        while at < len(data):
            head = _whole(view, at)
            if head is None:
                damaged.append(view[at:])
                torn = len(damaged[-1]) if _is_torn(damaged[-1]) else 0
                break
            piece = view[at : at + head.size]
            at += head.size
            beyond = below is not None and head.last >= below
            if head.base < self.end or head.last_delta < 0 or beyond or self._leaps(head, view, at):
                damaged.append(piece)
                continue
            if not checksum_fits(piece, head):
                damaged.append(piece)
                if head.base == self.end and head.last_delta == head.records - 1:
                    self.end = head.last + 1  # its offsets are not given again: readers may be behind them
                continue
            valid.append(piece)
            self._note(head.base, head.last + 1, head.size, head.max_ms)
            seen(head)
        if damaged:
            aside = self.path.with_suffix(DAMAGED)
            earlier = aside.read_bytes() if aside.exists() else b""
            write_whole(aside, earlier, *damaged, durable=True)
            if len(damaged) == 1 and at + len(damaged[0]) == len(data):
                os.truncate(self.path, self.size)
            else:
                write_whole(self.path, *valid, durable=True)
        self._loaded = self.size
        return DamagedBytes(torn, sum(map(len, damaged)) - torn)

    def _leaps(self, head: BatchHeader, data: memoryview, at: int) -> bool:
        """Whether a batch skips offsets that the next batch, at ``at``, has: then its own offset is wrong."""
        follows = _whole(data, at)
        return head.base > self.end and follows is not None and self.end <= follows.base <= head.last

    def _note(self, base: int, end: int, size: int, max_ms: int) -> None:
        if not self._positions or self.size - self._positions[-1] >= INDEX_BYTES:
            self._offsets.append(base)
            self._positions.append(self.size)
            self._times.append(self.max_ms)
        self.max_ms = max(self.max_ms, max_ms)
        self._times[-1] = self.max_ms
        self.size += size
        self.end = end

    def append(self, prefix: bytes, rest: memoryview, base: int, end: int, max_ms: int, now_ms: int) -> None:
        """Writes one batch: ``prefix``, then ``rest``. Raises OSError when it cannot; then no part of it is in the
        file."""
        assert self._fd is not None
        size = len(prefix) + len(rest)
        try:
            written = os.writev(self._fd, (prefix, rest))
            while written < size:  # a full disk writes a part, then raises
                written += os.write(self._fd, (prefix + rest)[written:])
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self._note(base, end, size, max_ms)
        self.appended_ms = now_ms

    def sync(self) -> None:
        """Returns when earlier appends are on the disk. For a thread: appends may go on meanwhile. Raises OSError when
        they are not; then call :meth:`cut`, never sync again."""
        size = self.size  # later appends may be covered or not
        if size == self._synced:
            return
        if not self._named:
            sync_folder(self.path.parent)
            self._named = True
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._synced = size

    def cut(self) -> None:
        """Removes what this broker appended since the last sync. The segment is of no use afterwards.

        An earlier broker's part may hold acknowledged records. It stays, and is written again unless it was synced.
        Raises OSError when even this fails.
        """
        kept = max(self._synced, self._loaded)
        if kept < self.size:
            os.truncate(self.path, kept)
        if kept > self._synced:
            write_whole(self.path, self.path.read_bytes(), durable=True)

    def read(self, position: int, count: int) -> bytes:
        """At most ``count`` bytes from ``position``."""
        if self._fd is not None:
            return os.pread(self._fd, count, position)
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, count, position)
        finally:
            os.close(fd)

    def find(self, offset: int) -> int:
        """Position of the first batch that ends at ``offset`` or later; the file's size when there is none."""
        if offset >= self.end or not self._positions:
            return self.size
        entry = max(0, bisect_right(self._offsets, offset) - 1)
        position = self._positions[entry]
        heads = self.read(position, INDEX_BYTES + PLACE_BYTES)
        at = 0
        while at + PLACE_BYTES <= len(heads):
            base, length, last_delta = PLACE.unpack_from(heads, at)
            if base + last_delta >= offset:
                return position + at
            at += 12 + length
        return position + at  # compaction left a gap here: the batch behind it

    def fetch(self, offset: int, count: int) -> bytes:
        """Batches from the one that holds ``offset``: ``count`` bytes at most, but the first batch whole. The last
        batch may be cut: Kafka's clients expect this, and read it again."""
        position = self.find(offset)
        left = self.size - position
        if left <= 0:
            return b""
        data = self.read(position, min(max(count, PLACE_BYTES), left))
        _, length, _ = PLACE.unpack_from(data)
        if 12 + length > len(data):
            data = self.read(position, 12 + length)
        return data

    def since(self, time_ms: int) -> Iterator[bytes]:
        """Whole batches whose latest time is ``time_ms`` or later, in order."""
        entry = bisect_left(self._times, time_ms)
        position = self._positions[entry] if entry < len(self._times) else self.size
        while position < self.size:
            head = read_head(self.read(position, HEAD_BYTES))
            if head.max_ms >= time_ms:
                yield self.read(position, head.size)
            position += head.size

    def batches(self) -> Iterator[bytes]:
        """All its batches, in order, read in pieces, so that memory does not depend on its size."""
        piece, start, position = b"", 0, 0
        while position < self.size:
            at = position - start
            if at + HEAD_BYTES > len(piece) or at + read_head(piece, at).size > len(piece):
                piece, start, at = self.read(position, PIECE_BYTES), position, 0
                if read_head(piece).size > len(piece):
                    piece = self.read(position, read_head(piece).size)
            size = read_head(piece, at).size
            yield piece[at : at + size]
            position += size

    def remove(self) -> None:
        """Closes it, and deletes its file and the file of its damaged bytes."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(DAMAGED).unlink(missing_ok=True)


def _whole(data: memoryview, at: int) -> BatchHeader | None:
    """The head of the batch at ``at``, if it is plausible and the batch complete."""
    if at + HEAD_BYTES > len(data):
        return None
    head = read_head(data, at)
    can_be = head.magic == 2 and head.length >= HEAD_BYTES - 12
    return head if can_be and at + head.size <= len(data) else None


def _is_torn(rest: memoryview) -> bool:
    """Whether the last bytes of a file are the beginning of a batch."""
    if len(rest) < HEAD_BYTES:
        return True
    head = read_head(rest)
    return head.magic == 2 and head.size > len(rest)
