"""A header whose name is no text: both clients read its message, and those after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS
from millrace.processes.kafka import create_topics, make_producer, wait_for_broker
from millrace.processes.services import EmbeddedBroker
from stream.worker import headers
from tests.scenes.bad_messages import Bytes
from tests.scenes.topic_records import records

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as running:
        wait_for_broker(Settings(kafka=running.address))
        yield running.address


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("linger_ms", [0, 500], ids=["each in a batch", "all in one batch"])
def test_a_header_name_of_any_bytes(broker: str, linger_ms: int, compression: str | None) -> None:
    headers.install()
    settings = Settings(kafka=broker, partitions=2, prefix=f"{linger_ms}-{compression}.")
    create_topics(settings)
    producer = make_producer(settings, linger_ms=linger_ms, compression_type=compression)
    for i in range(6):
        named = [(Bytes("x"), b"v"), ("clock", b"1:2:3")] if i in (1, 4) else [("clock", b"1:2:3")]
        for partition in (0, 1):
            producer.send(EVENTS, b"%d" % i, headers=named if partition else [], partition=partition)
    producer.close()
    expected = sorted((p, b"%d" % i) for i in range(6) for p in (0, 1))
    found = records(settings, EVENTS)
    assert sorted((r.partition, r.value) for r in found) == expected
    assert {len(r.headers) for r in found if r.partition} == {1, 2}

    async def read() -> list[Any]:
        consumer = AIOKafkaConsumer(settings.prefix + EVENTS, bootstrap_servers=broker, auto_offset_reset="earliest")
        await consumer.start()
        taken: list[Any] = []
        try:
            while len(taken) < len(expected):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    taken += records
        finally:
            await consumer.stop()
        return taken

    taken = asyncio.run(asyncio.wait_for(read(), 250))
    assert sorted((r.partition, r.value) for r in taken) == expected
    assert {dict(r.headers).get("clock") for r in taken if r.partition} == {b"1:2:3"}
