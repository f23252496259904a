"""A connection by itself, with a broker and a socket that are lists: order, how much is held, what a fault costs."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, cast

import pytest

from millrace.broker.kafka_connection import AHEAD_BYTES, ClientConnection
from millrace.broker.kafka_wire import Malformed
from millrace.broker.server import Server

FRAME = struct.pack(">i", 20) + bytes(20)


class Line(asyncio.Transport):
    """A transport that notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.reading = True
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return "peer"


class Broker:
    """Takes requests, and answers when it is told to, or at once."""

    def __init__(self, at_once: bool = False) -> None:
        self.connections: set[ClientConnection] = set()
        self.taken: list[bytes] = []
        self.at_once = at_once
        self.fault: Exception | None = None

    def take(self, connection: ClientConnection, frame: memoryview) -> None:
        if self.fault is not None:
            raise self.fault
        self.taken.append(bytes(frame))
        if self.at_once:
            connection.answer([b"answer %d;" % len(self.taken)])


def opened(broker: Broker) -> tuple[ClientConnection, Line]:
    connection, line = ClientConnection(cast(Server, broker)), Line()
    connection.connection_made(line)
    return connection, line


def test_a_request_is_taken_when_the_one_before_it_was_answered() -> None:
    broker = Broker()
    connection, line = opened(broker)
    connection.data_received(FRAME * 3)
    assert len(broker.taken) == 1
    connection.answer([b"one"])
    assert len(broker.taken) == 2
    connection.answer([b"two"])
    connection.answer([b"three"])
    assert len(broker.taken) == 3
    assert line.written == [b"one", b"two", b"three"]


@pytest.mark.parametrize("size", [1, 3, 7, 24, 1000])
def test_frames_come_in_pieces_of_any_size(size: int) -> None:
    broker = Broker(at_once=True)
    connection, line = opened(broker)
    data = b"".join(struct.pack(">i", 10 + n) + bytes([n]) * (10 + n) for n in range(30))
    for at in range(0, len(data), size):
        connection.data_received(data[at : at + size])
    assert broker.taken == [bytes([n]) * (10 + n) for n in range(30)]
    assert len(line.written) == 30


def test_ten_thousand_requests_at_once_do_not_nest() -> None:
    broker = Broker(at_once=True)
    connection, _ = opened(broker)
    connection.data_received(FRAME * 10_000)
    assert len(broker.taken) == 10_000


@pytest.mark.parametrize("unread", [False, True])
def test_who_sends_ahead_of_its_answers_is_not_read_beyond_a_bound(unread: bool) -> None:
    """Whether an answer is still to come, or lies there because the client does not read it."""
    broker = Broker(at_once=unread)
    connection, line = opened(broker)
    if unread:
        connection.pause_writing()
    else:
        connection.data_received(FRAME)
    sent = 0
    while line.is_reading():
        connection.data_received(FRAME * 100)
        sent += 100 * len(FRAME)
        assert sent < 2 * AHEAD_BYTES
    broker.at_once = True
    if unread:
        connection.resume_writing()
    else:
        connection.answer([b"at last"])
    assert line.is_reading()
    assert len(broker.taken) == sent // len(FRAME) + (not unread)


@pytest.mark.parametrize("fault", [Malformed("no"), OSError(28, "full"), ZeroDivisionError("ours")])
def test_a_fault_costs_its_connection_and_goes_no_further(fault: Exception) -> None:
    broker = Broker()
    connection, line = opened(broker)
    broker.fault = fault
    connection.data_received(FRAME * 5)
    assert line.aborted
    broker.fault = None
    connection.data_received(FRAME)
    connection.answer([b"late"])
    assert (broker.taken, line.written) == ([], [])
    connection.connection_lost(None)
    assert not broker.connections


def test_an_answer_for_a_client_that_is_gone_is_dropped() -> None:
    broker = Broker()
    connection, line = opened(broker)
    connection.data_received(FRAME * 2)
    connection.connection_lost(None)
    connection.answer([b"late"])
    assert len(broker.taken) == 1
    assert line.written == []
