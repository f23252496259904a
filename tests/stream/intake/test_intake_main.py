"""The intake over a real socket, in this process: it is told to end while a request waits. And its bench's load."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from typing import Any

import msgspec
import pytest

from benchmarks.tools.openloop import Plan, event_ids, is_whole, requests_of
from millrace.basics.errors import PortError
from millrace.contracts.events import Click, decode_event
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.processes.httpserver import bind
from millrace.processes.services import free_port
from millrace.processes.tokens import Tokens
from stream.intake import intake_main, intake_producer
from stream.intake.intake_wire import LineReader, lines_of
from tests.scenes.apachekafka import listens
from tests.scenes.faulty_producer import Broker, Faulty, Producer
from tests.scenes.intake_desk import AHEAD_MS, click
from tests.scenes.waiting import PATIENCE, until


class Held(Producer):
    """Keeps nothing until it is let."""

    let = threading.Event()

    async def _sent(self, values: list[bytes]) -> None:
        while not self.let.is_set():
            await asyncio.sleep(0.001)
        await super()._sent(values)


class Slow(Faulty):
    async def _make(self) -> Any:
        self.broker.producers.append(Held(self.broker))
        return self.broker.producers[-1]


def test_an_intake_that_is_asked_to_end_answers_what_waits_and_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(kafka="127.0.0.1:1", intake_port=free_port(), intake_seconds=PATIENCE)
    broker, stop = Broker(), threading.Event()
    slow = Slow(broker)
    monkeypatch.setattr(intake_main, "IntakeProducer", lambda settings: slow)
    monkeypatch.setattr(intake_producer, "ensure_topics", lambda settings: None)
    reported: list[Any] = []

    def client() -> None:
        try:
            until(lambda: listens(settings.intake_port), "it listens")
            connection = http.client.HTTPConnection("127.0.0.1", settings.intake_port, timeout=PATIENCE)
            connection.request(
                "POST", "/events", msgspec.json.encode([click(1), click(2)]), {"Authorization": "Bearer t"}
            )
            until(lambda: slow.keeper.waiting == 2, "the request waits")
            stop.set()
            until(lambda: not listens(settings.intake_port), "it lets nobody in")
            Held.let.set()
            answer = connection.getresponse()
            reported.append((answer.status, msgspec.json.decode(answer.read())["kept"]))
            connection.close()
        finally:
            stop.set()
            Held.let.set()

    thread = threading.Thread(target=client)
    thread.start()
    with bind("intake", settings.host, settings.intake_port, "MILLRACE_INTAKE_PORT") as listener:
        reader = LineReader(shop_schema(), AHEAD_MS)
        asyncio.run(intake_main._run(settings, reader, Tokens(["t"]), listener, stop))
    thread.join(PATIENCE)
    assert reported == [(200, 2)]
    assert len(broker.log) == 2
    assert all(producer.stopped for producer in broker.producers)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortError, match=f"{port}.*MILLRACE_INTAKE_PORT"):
            intake_main.run(Settings(intake_port=port), threading.Event())


@pytest.mark.parametrize("size", [1, 3])
def test_the_load_is_of_events_that_the_intake_takes(size: int) -> None:
    plan = Plan(port=1, rate=50, seconds=1, seed=3, prefix="p", users=9, size=size, path="/events")
    reader, now_ms = LineReader(shop_schema(), AHEAD_MS), 1_772_323_200_000
    for number, request in enumerate(requests_of(plan, 50)):
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /events HTTP/1.1\r\n")
        assert b"Content-Length: %d" % len(body) in head
        found = [decode_event(reader.read("events", line, now_ms, now_ms).value) for line in lines_of(body)]
        assert [event.event_id for event in found] == event_ids(plan, number)
        assert all(isinstance(event, Click) and event.ts_ms == now_ms for event in found)
    assert is_whole(plan, 0, b'{"kept":%d,"duplicates":0}' % size)
    assert not is_whole(plan, 0, b'{"kept":%d,"duplicates":1}' % (size - 1))
