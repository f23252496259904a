"""A producer whose deliveries a test plans."""

from __future__ import annotations

from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.producer.future import FutureProduceResult, FutureRecordMetadata


class Producer:
    """Messages that are sent, each to be delivered by the test; or, with ``delivers``, by a flush."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.values: list[bytes] = []
        self.delivers, self.delivered = False, 0

    def flush(self, timeout: float) -> None:
        if not self.delivers:
            raise KafkaTimeoutError("no broker")
        for number in range(self.delivered, len(self.sent)):
            self.deliver(number, 10 + number)
        self.delivered = len(self.sent)

    def send(self, topic: str, value: bytes) -> Any:
        self.values.append(value)
        produced = FutureProduceResult(TopicPartition(topic, 0))
        future = FutureRecordMetadata(produced, 0, 0, None, 0, len(value), 0)
        self.sent.append((produced, future))
        return future

    def deliver(self, number: int, offset: int) -> None:
        self.sent[number][0].success((offset, -1, None))

    def fail(self, number: int) -> None:
        self.sent[number][0].failure(KafkaTimeoutError("no broker"))
