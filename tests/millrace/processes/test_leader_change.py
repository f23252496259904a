"""A leader is killed while clients work: they wait for another one, lose nothing, and say nothing of refusals."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS
from millrace.processes.async_kafka import make_async_producer
from millrace.processes.kafka import make_admin, make_producer, make_reader, open_broker
from tests.scenes.left_sockets import LEFT
from tests.scenes.left_sockets import collected as collected
from tests.scenes.three_brokers import three_brokers
from tests.scenes.waiting import LONG, PATIENCE, until

pytestmark = [pytest.mark.services, pytest.mark.kafka, pytest.mark.slow, LEFT, pytest.mark.timeout(LONG)]


def test_a_leader_that_is_killed_costs_no_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with three_brokers(tmp_path / "kafka") as nodes:
        addresses = ",".join(node.address for node in nodes.values())
        settings = Settings(kafka=addresses, partitions=1, patience_seconds=1e9, outage_seconds=3600.0)
        open_broker(settings)

        def leader() -> int:
            with contextlib.closing(make_admin(settings)) as admin:
                (topic,) = admin.describe_topics([EVENTS])
            (partition,) = topic["partitions"]
            assert len(partition["replica_nodes"]) == 3  # without a word in any setting
            return int(partition["leader_id"])

        async def in_a_loop(kill: int) -> list[bytes]:
            producer = make_async_producer(settings, request_timeout_ms=3_600_000)
            await producer.start()
            values = [b"loop %d" % number for number in range(200)]
            for number, value in enumerate(values):
                if number == 100:
                    nodes[kill].kill()
                await producer.send_and_wait(EVENTS, value)
            await producer.stop()
            return values

        first = leader()
        with (
            contextlib.closing(make_producer(settings, delivery_timeout_ms=3_600_000)) as producer,
            contextlib.closing(make_reader(settings, EVENTS)) as reader,
        ):
            before = [producer.send(EVENTS, b"before %d" % number) for number in range(100)]
            for one in before:
                one.get(PATIENCE)
            values = asyncio.run(in_a_loop(first))
            for one in [producer.send(EVENTS, b"after %d" % number) for number in range(100)]:
                one.get(PATIENCE)
            values += [b"%s %d" % (word, number) for word in (b"before", b"after") for number in range(100)]
            found: list[bytes] = []

            def all_found() -> bool:
                found.extend(r.value for records in reader.poll(timeout_ms=100).values() for r in records)
                return len(found) >= len(values)

            until(all_found, "all messages are read", more=lambda: f"{len(found)} of {len(values)}")
            assert sorted(found) == sorted(values)
        assert leader() != first
        assert "refuses" not in capsys.readouterr().out
