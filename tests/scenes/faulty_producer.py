"""A producer and a broker in memory that fail as they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aiokafka.errors import KafkaConnectionError, KafkaError, OutOfOrderSequenceNumber

from millrace.contracts.settings import Settings
from stream.intake.intake_producer import IntakeProducer

Fault = Callable[[list[bytes]], KafkaError | None]


class Builder:
    def __init__(self) -> None:
        self.values: list[bytes] = []

    def append(self, *, timestamp: Any, key: bytes, value: bytes, headers: Any) -> None:
        self.values.append(value)

    def close(self) -> None:
        pass


class Client:
    async def force_metadata_update(self) -> bool:
        return True


class Producer:
    """In the place of aiokafka's: after a failure it takes nothing any more, as an idempotent one."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.client, self.failed, self.stopped = broker, Client(), False, False

    async def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def create_batch(self) -> Builder:
        return Builder()

    async def send_batch(self, builder: Builder, topic: str, *, partition: int) -> Coroutine[Any, Any, None]:
        return self._sent(builder.values)

    async def _sent(self, values: list[bytes]) -> None:
        await asyncio.sleep(0)
        if self.failed:
            raise OutOfOrderSequenceNumber
        error = self.broker.fault(values)
        if error is not None:
            self.failed = True
            raise error
        self.broker.log += values

    async def stop(self) -> None:
        self.stopped = True


class Broker:
    def __init__(self, fault: Fault = lambda values: None) -> None:
        self.fault, self.log, self.producers = fault, list[bytes](), list[Producer]()
        self.refuses = 0  # connections, from now on


class Faulty(IntakeProducer):
    """The outlet over such producers."""

    def __init__(self, broker: Broker, **settings: Any) -> None:
        super().__init__(Settings(kafka="127.0.0.1:1", **settings))
        self.broker = broker

    async def _make(self) -> Any:
        if self.broker.refuses:
            self.broker.refuses -= 1
            raise KafkaConnectionError
        self.broker.producers.append(Producer(self.broker))
        return self.broker.producers[-1]
