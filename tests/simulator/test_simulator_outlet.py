"""The outlet's way with messages that no broker takes: told, counted, left out; all others are delivered."""

from __future__ import annotations

from typing import Any

from kafka.errors import KafkaError, MessageSizeTooLargeError

from simulator import simulator_metrics
from simulator.simulator_wire import SimulatorSender


class Future:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def add_callback(self, call: Any) -> None:
        if self.error is None:
            call(None)

    def add_errback(self, call: Any, *given: Any) -> None:
        if self.error is not None:
            call(*given, self.error)


class Producer:
    """Refuses what is larger than 100 bytes: at once, or (from 200 on) when the broker has seen it."""

    def __init__(self) -> None:
        self.tries: list[bytes] = []
        self.away = 2  # sends that fail because the broker is away

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Any) -> Future:
        self.tries.append(value[:1])
        if value[:1] == b"w" and self.away:
            self.away -= 1
            raise KafkaError
        if len(value) >= 200:
            return Future(MessageSizeTooLargeError())
        if len(value) > 100:
            raise MessageSizeTooLargeError
        return Future(None)

    def flush(self, timeout: float | None = None) -> None:
        pass

    def close(self, timeout: float | None = None) -> None:
        pass


def test_a_message_too_large_is_left_out_once_and_the_line_goes_on() -> None:
    producer = Producer()
    outlet = SimulatorSender(producer)
    before = simulator_metrics.REFUSED._value.get()
    for value in (b"a", b"b" * 150, b"c", b"d" * 250, b"w", b"e"):
        outlet.put("events", b"key", value)
    assert outlet.close() == 0, "nothing is left that could be delivered"
    assert producer.tries == [b"a", b"b", b"c", b"d", b"w", b"w", b"w", b"e"], "only an outage is tried again"
    assert simulator_metrics.REFUSED._value.get() - before == 2
