# shell
"""Page logs on their way out of a worker: a ring in memory that the worker shares with the feeder.

One side writes, one side reads, nobody waits. The memory survives the worker, so no answered page is lost, and the next
worker continues in it.

::

    memory   head │ lost pages, exposures │ tail │ records .................
             ──── writer ────────────────   reader

    record   sizes: of it, its head, keys, cat, scores, num │ head (msgpack) │ keys │ cat │ scores │ num
    0        no record begins here: go on at the beginning

``head`` and ``tail`` count all bytes ever written and read; a place is the count modulo the capacity. A reader that
waits sleeps on an eventfd, the bell.
"""

from __future__ import annotations

import os
import threading

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from millrace.contracts.events import PageLog

RING_BYTES = 64 * 1024 * 1024
"""For each worker: some forty logs of large pages (600 items), which is most of a second at 50 a second."""

_HEAD, _LOST_PAGES, _LOST_EXPOSURES = 0, 1, 2  # words of the writer's cache line
_TAIL = 16  # on a line of its own
_START = 256  # bytes before the first record
_PARTS = ("keys", "cat", "scores", "num")
_WORDS = 2 + len(_PARTS)  # before a record's head
_MEMORY_PAGE = 4096
_READY_BYTES = 4 * 1024 * 1024  # of memory that the system has given before the first page
_PART = 4  # of the memory, behind which an empty ring begins again

Memory = NDArray[np.uint8]


_NO_ARRAYS = dict.fromkeys(_PARTS, b"")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PageLog).decode


def _whole(size: int) -> int:
    return (size + 7) & ~7


def _words(memory: Memory) -> tuple[NDArray[np.uint64], Memory]:
    """The header's words, and the records' bytes. Raises ValueError: there is no space for a record."""
    if len(memory) < 2 * _START:
        raise ValueError(f"a ring of {len(memory)} bytes; give at least {2 * _START}")
    return memory[:_START].view(np.uint64), memory[_START : _START + (len(memory) - _START) // 8 * 8]


class RingWriter:
    """The worker's side, over zeroed shared bytes, or over those of an earlier writer. ``bell``: rung after each page;
    None: nobody waits."""

    def __init__(self, memory: Memory, bell: int | None = None) -> None:
        self._bell = bell
        self._header, self._bytes = _words(memory)
        self._bytes[:_READY_BYTES:_MEMORY_PAGE] |= 0  # given at the first touch: not while a client waits
        self._fence = threading.Lock()
        self._fence.acquire()

    def put(self, page: PageLog) -> bool:
        """Copies a page into the ring; its arrays may be any buffers of bytes. False: no space, and the page counts as
        lost."""
        parts = [_encode(replace(page, **_NO_ARRAYS)), *(getattr(page, name) for name in _PARTS)]
        sizes = [len(part) for part in parts]
        size = 8 * _WORDS + sum(map(_whole, sizes))
        at = self._room(size)
        if at is None:
            self._header[_LOST_PAGES] += np.uint64(1)
            self._header[_LOST_EXPOSURES] += np.uint64(len(page.items))
            return False
        place = at % len(self._bytes)
        record = self._bytes[place : place + size]
        record[: 8 * _WORDS].view(np.uint64)[:] = size, *sizes
        start = 8 * _WORDS
        for part, length in zip(parts, sizes, strict=True):
            record[start : start + length] = np.frombuffer(part, np.uint8)
            start += _whole(length)
        # The record must be in memory before the head shows it. A POSIX lock orders memory; processors that keep the
        # order of writes lose nothing by it.
        self._fence.release()
        self._fence.acquire()
        self._header[_HEAD] = at + size
        if self._bell is not None:
            os.eventfd_write(self._bell, 1)
        return True

    def _room(self, size: int) -> int | None:
        """Where ``size`` contiguous bytes begin; None: the reader has not freed enough. An empty ring begins
        again behind its first part, so the rest takes memory only while pages wait. What that leaves out is free when
        the reader has passed it."""
        capacity, head = len(self._bytes), int(self._header[_HEAD])
        free = capacity - (head - int(self._header[_TAIL]))
        place = head % capacity
        rest = capacity - place
        begins_again = free == capacity and place >= max(size, capacity // _PART)
        if size <= rest and not begins_again:
            return head if size <= free else None
        if rest + size > free:
            return None
        self._bytes[place : place + 8].view(np.uint64)[0] = 0
        return head + rest


class RingReader:
    """The feeder's side, for the lifetime of the memory, whichever worker writes."""

    def __init__(self, memory: Memory) -> None:
        self._header, self._bytes = _words(memory)
        self._at = int(self._header[_TAIL])
        self._lost = (0, 0)

    def take(self, most: int) -> list[PageLog]:
        """The next pages, at most so many. Their arrays are views of the ring: use them before :meth:`give_back`.
        Raises ValueError at an invalid record, and skips all that was written until now."""
        found: list[PageLog] = []
        head = int(self._header[_HEAD])
        while self._at < head and len(found) < most:
            try:
                size, page = self._record(head)
            except (ValueError, msgspec.MsgspecError) as error:
                if found:  # these are whole; the next call tells of what follows
                    break
                self._at = head
                raise ValueError(f"the ring holds no record where one should be ({error})") from None
            self._at += size
            if page is not None:
                found.append(page)
        return found

    @property
    def empty(self) -> bool:
        return self._at >= int(self._header[_HEAD])

    def give_back(self) -> None:
        self._header[_TAIL] = self._at

    def lost(self) -> tuple[int, int]:
        """Pages and exposures that found no space since the last call."""
        before = self._lost
        self._lost = int(self._header[_LOST_PAGES]), int(self._header[_LOST_EXPOSURES])
        return self._lost[0] - before[0], self._lost[1] - before[1]

    def _record(self, head: int) -> tuple[int, PageLog | None]:
        place = self._at % len(self._bytes)
        most = min(len(self._bytes) - place, head - self._at)
        size = int(self._bytes[place : place + 8].view(np.uint64)[0])
        if not size:
            return len(self._bytes) - place, None
        if size % 8 or not 8 * _WORDS <= size <= most:
            raise ValueError(f"{size} bytes of {most}")
        record = self._bytes[place : place + size]
        sizes = record[8 : 8 * _WORDS].view(np.uint64).tolist()
        if 8 * _WORDS + sum(map(_whole, sizes)) != size:
            raise ValueError(f"parts of {sizes} bytes in a record of {size}")
        parts, start = [], 8 * _WORDS
        for length in sizes:
            parts.append(record[start : start + length].data)
            start += _whole(length)
        return size, replace(_decode(parts[0]), **dict(zip(_PARTS, parts[1:], strict=True)))
