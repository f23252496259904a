# shell
"""Messages between the feeder and a worker over a Unix socket: a kind, some facts, and arrays.

::

    frame   head: lengths │ msgpack [kind, facts, arrays: name, dtype, shape, place, offset] │ small arrays, aligned
            + descriptors: one for each region of shared memory that an array lies in

Small arrays travel in the frame. Larger ones lie in shared memory, copied there once for all workers if necessary.
Received arrays are contiguous, aligned and writable like the sent ones, so compiled functions need no second
compilation. Nobody writes to shared arrays, except for page logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import struct
import threading
from array import array as Integers
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from millrace.basics.errors import one_line
from millrace.processes.shared import Pool, Region

log = structlog.get_logger("scorer")

Arrays = Mapping[str, NDArray[Any]]

INLINE = 65_536
"""A larger array goes through shared memory: a region takes each side longer than a copy of so little. What lies in
shared memory already is never copied, since its writer may go on."""
ALIGNED = 64
MOST_REGIONS = 250
"""The kernel takes at most 253 descriptors along with a message."""
READ_AHEAD = 32
"""Messages that a worker has read but not handled; more wait in the socket."""
_HEAD = struct.Struct("<QII")  # bytes of the body, bytes of its msgpack part, descriptors
_MOST_BODY = 64 << 20
_CHUNK = 1 << 18
_INLINE_PLACE = -1
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Handles(NamedTuple):
    """File descriptors for a worker."""

    link: int
    listener: int
    ring: int
    shares: int
    bell: int  # an eventfd that is written after each page in the ring


class Closed(Exception):
    """The other side has ended; or, with a text, what it sends is invalid."""


class LinkMessage(NamedTuple):
    kind: str
    facts: Any  # builtins: what msgpack gives
    arrays: dict[str, NDArray[Any]]
    regions: list[Region]  # that the arrays lie in


class Packet:
    """A message, encoded once for all receivers. ``pool`` knows the arrays in shared memory. Raises ValueError: the
    arrays lie in more regions than one message allows."""

    def __init__(self, kind: str, facts: Any = None, arrays: Arrays | None = None, pool: Pool | None = None) -> None:
        regions: list[Region] = []
        laid: list[tuple[str, str, list[int], int, int]] = []
        small: list[bytes] = []
        size = 0
        loose: list[tuple[str, NDArray[Any]]] = []
        for name, given in (arrays or {}).items():
            a = np.ascontiguousarray(given) if given.ndim else given
            found = pool.find(a) if pool is not None and a.nbytes else None
            if found is not None:
                region, offset = found
                if region not in regions:
                    regions.append(region)
                laid.append((name, a.dtype.str, list(a.shape), regions.index(region), offset))
            elif a.nbytes > INLINE:
                loose.append((name, a))
            else:
                laid.append((name, a.dtype.str, list(a.shape), _INLINE_PLACE, size))
                small.append(a.tobytes() + bytes(-a.nbytes % ALIGNED))
                size += len(small[-1])
        if loose:
            regions.append(_copied(loose, len(regions), laid))
        if len(regions) > MOST_REGIONS:
            raise ValueError(f"a message '{kind}' over {len(regions)} regions; at most {MOST_REGIONS} can be sent")
        text = _encode([kind, facts, laid])
        self.kind, self.regions = kind, regions
        padded = text + bytes(-len(text) % ALIGNED)
        self.data = _HEAD.pack(len(padded) + size, len(text), len(regions)) + padded + b"".join(small)

    def send(self, to: socket.socket) -> None:
        """Sends the whole message over a blocking socket. Raises OSError: the other side has ended."""
        fds = Integers("i", [region.fd for region in self.regions])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        sent = to.sendmsg([self.data], ancillary)
        to.sendall(memoryview(self.data)[sent:])


def _copied(
    loose: list[tuple[str, NDArray[Any]]], place: int, laid: list[tuple[str, str, list[int], int, int]]
) -> Region:
    """One region with copies of all these arrays; notes their places in ``laid``."""
    ends = np.cumsum([a.nbytes + -a.nbytes % ALIGNED for _, a in loose]).tolist()
    region = Region(ends[-1])
    for (name, a), end in zip(loose, ends, strict=True):
        offset = end - a.nbytes - -a.nbytes % ALIGNED
        region.array(a.shape, a.dtype, offset)[...] = a
        laid.append((name, a.dtype.str, list(a.shape), place, offset))
    return region


class Receiver(Protocol):
    def put(self, packet: Packet) -> None:
        """Sends a message after those before it, without waiting."""


class Inbox:
    """Assembles frames from a socket."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._have = bytearray()
        self._fds: deque[int] = deque()

    def read(self) -> list[LinkMessage]:
        """The messages that one read completes. Raises Closed: the other side has ended or sends no valid message;
        BlockingIOError: a non-blocking socket has nothing."""
        try:
            data, ancillary, flags, _ = self._source.recvmsg(_CHUNK, socket.CMSG_SPACE(4 * MOST_REGIONS))
        except (BlockingIOError, InterruptedError):
            raise
        except OSError:
            raise Closed from None
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = Integers("i")
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
                self._fds.extend(fds)
        if not data or flags & socket.MSG_CTRUNC:  # a lost descriptor would shift all later ones
            self.close()
            raise Closed("too many open files" if data else "")
        self._have += data
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def close(self) -> None:
        """Closes descriptors that came without their message."""
        while self._fds:
            os.close(self._fds.popleft())

    def _next(self) -> LinkMessage | None:
        if len(self._have) < _HEAD.size:
            return None
        size, text, count = _HEAD.unpack_from(self._have)
        if size > _MOST_BODY or text > size:
            raise Closed("what came is no message")
        if len(self._have) < _HEAD.size + size or len(self._fds) < count:
            return None
        body = np.frombuffer(self._have, np.uint8, size, _HEAD.size).copy()
        del self._have[: _HEAD.size + size]
        try:
            return _message(body, text, [Region.of_fd(self._fds.popleft()) for _ in range(count)])
        except Exception as error:  # no memory, no descriptors: none that follows may be taken without it
            self.close()
            raise Closed(one_line(error)) from error


def _message(body: NDArray[np.uint8], text: int, regions: list[Region]) -> LinkMessage:
    """The message of a frame's body, of which the first ``text`` bytes are msgpack."""
    kind, facts, laid = _decode(body[:text].data)
    arrays = {}
    for name, dtype, shape, place, offset in laid:
        if place == _INLINE_PLACE:
            length = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            start = text + -text % ALIGNED + offset
            arrays[name] = body[start : start + length].view(dtype).reshape(shape)
        else:
            arrays[name] = regions[place].array(tuple(shape), dtype, offset)
    return LinkMessage(kind, facts, arrays, regions)


class FeederLink:
    """The feeder's end, with a thread that sends and one that listens. Sending never blocks. The listener calls
    ``on_message`` with each message, and ``ended`` once, when the worker has closed its end."""

    def __init__(
        self, end: socket.socket, on_message: Callable[[LinkMessage], None], ended: Callable[[], None]
    ) -> None:
        self._socket, self._on_message, self._ended = end, on_message, ended
        self._queue: queue.SimpleQueue[Packet | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._hear)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, packet: Packet) -> None:
        self._queue.put(packet)

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def close(self) -> None:
        """Ends the link after all queued messages, or when the other side is gone. The worker then ends."""
        self._queue.put(None)

    def _send(self) -> None:
        try:
            while (packet := self._queue.get()) is not None:
                packet.send(self._socket)
                del packet  # its shared memory may be of no use to anybody else
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:  # the other side is gone, or does not get what was put: either way this link has ended
            if not isinstance(error, ConnectionError):
                log.error("a worker does not get what it is sent: its link ends", error=one_line(error))
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _hear(self) -> None:
        inbox = Inbox(self._socket)
        try:
            while True:
                for message in inbox.read():
                    self._on_message(message)
        except Closed:
            pass
        finally:
            inbox.close()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # a send that waits for the other side ends
            self._queue.put(None)
            self._threads[0].join()
            self._socket.close()
            self._ended()


class WorkerLink:
    """A worker's end, on its event loop: one message a turn of the loop, between two requests. Calls ``on_message``
    with each, and ``ended`` once, when the feeder has ended."""

    def __init__(
        self, end: socket.socket, on_message: Callable[[LinkMessage], None], ended: Callable[[], None]
    ) -> None:
        end.setblocking(False)
        self._socket, self._on_message, self._ended = end, on_message, ended
        self._inbox = Inbox(end)
        self._got: deque[LinkMessage] = deque()
        self._out = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = self._paused = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._readable)

    def send(self, kind: str, facts: Any = None, arrays: Arrays | None = None) -> None:
        """Sends a small message. The socket takes the rest when it is ready. A link that is closed takes nothing."""
        if self._socket.fileno() < 0:
            return
        packet = Packet(kind, facts, arrays)
        if packet.regions:
            raise ValueError(f"a worker's message '{kind}' is too large")
        self._out += packet.data
        self._writable()

    def close(self) -> None:
        """Ends the link. Messages that have come and were not taken are let go."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._loop = None
        self._got.clear()
        self._inbox.close()
        self._socket.close()

    def _readable(self) -> None:
        try:
            self._got.extend(self._inbox.read())
        except (BlockingIOError, InterruptedError):
            return
        except Closed as closed:
            if str(closed):
                log.error("the feeder's messages cannot be taken: the worker ends", reason=str(closed))
            assert self._loop is not None
            self._loop.remove_reader(self._socket.fileno())
            self._ended()
            return
        if len(self._got) > READ_AHEAD:
            assert self._loop is not None
            self._loop.remove_reader(self._socket.fileno())
            self._paused = True
        self._take_soon()

    def _take_soon(self) -> None:
        if self._got and not self._due and self._loop is not None:
            self._due = True
            self._loop.call_soon(self._take)

    def _take(self) -> None:
        self._due = False
        if self._got:
            self._on_message(self._got.popleft())
        if self._paused and not self._got and self._loop is not None:
            self._paused = False
            self._loop.add_reader(self._socket.fileno(), self._readable)
        self._take_soon()

    def _writable(self) -> None:
        assert self._loop is not None
        try:
            sent = self._socket.send(self._out)
            del self._out[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # the reader sees that the feeder is gone
            self._out.clear()
        if self._out:
            self._loop.add_writer(self._socket.fileno(), self._writable)
        else:
            self._loop.remove_writer(self._socket.fileno())
