# shell
"""One client's connection, and a fetch that waits on it.

Requests of a connection are answered one at a time, in order, as in Kafka. Invalid bytes close their own connection
and affect no other.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from millrace.broker.kafka_wire import Get, Got, Malformed, Request, frame_size, get_answer

log = structlog.get_logger("broker")

LONGEST_WAIT_MS = 60_000
JOIN_BYTES = 64 * 1024
"""Pieces of an answer below this size are copied into one, which costs less than another system call."""
AHEAD_BYTES = 1024 * 1024  # bytes that a client may send before it has its answer


class Service(Protocol):
    """The broker, as a connection uses it."""

    connections: set[ClientConnection]
    waiting: dict[tuple[str, int], set[WaitingFetch]]  # fetches, by topic and partition
    loop: asyncio.AbstractEventLoop

    def take(self, connection: ClientConnection, frame: memoryview) -> None:
        """Serves one request, now or later."""

    def read(self, get: Get) -> tuple[list[Got], bool]:
        """Data for a fetch now, and whether it is enough for an answer."""


class ClientConnection(asyncio.Protocol):
    def __init__(self, broker: Service) -> None:
        self.broker = broker
        self.transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._busy = False  # a request has not been answered yet
        self._full = False  # the client does not read its answers
        self._paused = False  # we do not read its requests
        self.waiting: WaitingFetch | None = None
        self._in_loop = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.broker.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._data.clear()
        self.broker.connections.discard(self)
        if self.waiting is not None:
            self.waiting.end()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._go_on()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._busy:
            self._go_on()
        waits = self._busy or self._full
        if waits and len(self._data) > AHEAD_BYTES and self.transport is not None and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _go_on(self) -> None:
        """Takes requests until one has to wait. A request that is answered immediately does not call it again."""
        if self._in_loop:
            return
        self._in_loop = True
        try:
            while not self._busy and not self._full and self.transport is not None and len(self._data) >= 4:
                size = frame_size(self._data)
                if len(self._data) < 4 + size:
                    break
                frame = bytes(memoryview(self._data)[4 : 4 + size])
                del self._data[: 4 + size]
                self._busy = True
                self.broker.take(self, memoryview(frame))
        except Malformed as error:
            self.refuse(str(error))
        except OSError as error:  # the client asks again, elsewhere or later
            self.refuse(f"the disk: {error}")
        except Exception as error:  # a fault of ours costs this client its connection, and no other client anything
            log.exception("a request could not be served")
            self.refuse(f"{type(error).__name__}: {error}")
        finally:
            self._in_loop = False
        if self._paused and not self._busy and not self._full and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()

    def refuse(self, why: str) -> None:
        peer = self.transport.get_extra_info("peername") if self.transport is not None else None
        log.warning("connection closed", why=why, peer=str(peer))
        transport, self.transport = self.transport, None
        self._data.clear()
        if transport is not None:
            transport.abort()

    def answer(self, pieces: list[bytes]) -> None:
        """Sends the answer to the current request, and takes the next; without pieces, the request has no answer."""
        self._busy = False
        if self.transport is None:
            return
        if sum(map(len, pieces)) <= JOIN_BYTES:
            self.transport.write(b"".join(pieces))
        else:
            for piece in pieces:
                self.transport.write(piece)
        self._go_on()


class WaitingFetch:
    """A fetch that found too little."""

    def __init__(self, broker: Service, connection: ClientConnection, head: Request, get: Get, got: list[Got]) -> None:
        self._broker, self._connection, self._head, self._get = broker, connection, head, get
        self._got = got
        self.partitions = {(part.topic, part.partition) for part in get.parts}
        for partition in self.partitions:
            broker.waiting.setdefault(partition, set()).add(self)
        connection.waiting = self
        seconds = min(get.max_wait_ms, LONGEST_WAIT_MS) / 1000
        self._timer = broker.loop.call_later(seconds, self.finish)

    def look(self) -> None:
        """Checks for an answer after an append to one of its partitions."""
        self._got, enough = self._broker.read(self._get)
        if enough:
            self.finish()

    def finish(self) -> None:
        self.end()
        self._connection.answer(get_answer(self._head.correlation, self._head.version, self._got))

    def end(self) -> None:
        self._timer.cancel()
        self._connection.waiting = None
        for partition in self.partitions:
            waiting = self._broker.waiting.get(partition)
            if waiting is not None:
                waiting.discard(self)
                if not waiting:
                    del self._broker.waiting[partition]
