"""Topics: created by whoever comes first, once, with the counts that the settings name."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from millrace.basics.errors import BrokerError
from millrace.commands.cli import clidev
from millrace.commands.loop.monitor import fetch
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, TOPICS, TRUTH
from millrace.processes.kafka import (
    REQUEST_BYTES,
    create_topics,
    ensure_topics,
    know_topic,
    make_producer,
    read_all,
    wait_for_broker,
)
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port, spawn, stop
from tests.scenes.waiting import LONG, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    with EmbeddedBroker(tmp_path / "broker") as server:
        wait_for_broker(Settings(kafka=server.address))
        yield server.address


def counts(address: str) -> dict[str, int]:
    admin = KafkaAdminClient(bootstrap_servers=[address])
    try:
        return {t["name"]: len(t["partitions"]) for t in admin.describe_topics()}
    finally:
        admin.close()


def test_roles_that_start_together_create_the_topics_once(broker: str) -> None:
    settings = Settings(kafka=broker, partitions=3)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ensure_topics, [settings] * 4))
    assert counts(broker) == {t.name: t.partitions or 3 for t in TOPICS}


def test_what_is_there_stays_and_what_is_missing_must_fit_to_it(broker: str) -> None:
    create_topics(Settings(kafka=broker, partitions=3))
    ensure_topics(Settings(kafka=broker, partitions=5))  # nothing is missing: a role that does not care may start
    admin = KafkaAdminClient(bootstrap_servers=[broker])
    admin.delete_topics([TRUTH])
    admin.close()
    with pytest.raises(BrokerError, match="has 3 partitions where 5 are needed"):
        ensure_topics(Settings(kafka=broker, partitions=5))
    ensure_topics(Settings(kafka=broker, partitions=3))
    assert counts(broker)[TRUTH] == 1


@pytest.mark.slow
def test_roles_started_before_any_topic_is_there_work(broker: str, tmp_path: Path) -> None:
    """``millrace run stream``, ``learn`` and ``serve`` as somebody types them, in no order, with nothing prepared."""
    with EmbeddedRedis(tmp_path / "redis") as redis:
        children = []
        urls = {}
        try:
            for command in ("stream", "learn", "serve"):
                port = free_port()
                settings = Settings(
                    kafka=broker,
                    redis=redis.address,
                    data=str(tmp_path / "data"),
                    port=free_port(),
                    metrics_port=port,
                )
                argv = [sys.executable, "-m", "millrace", "run", command]
                clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
                children.append(spawn(argv, clean | settings.environment(), tmp_path / f"{command}.log"))
                urls[command] = f"http://127.0.0.1:{port}/metrics"

            def works(command: str, line: str) -> bool:
                assert all(child.poll() is None for child in children), {
                    c: (tmp_path / f"{c}.log").read_text() for c in urls
                }
                try:
                    return line in fetch(urls[command], 60.0).splitlines()
                except OSError:
                    return False

            until(lambda: works("stream", "millrace_ready 1.0"), "the stream works")
            until(lambda: works("learn", "millrace_ready 1.0"), "the learner works")
            until(lambda: works("serve", "millrace_served_version 0.0"), "the scorer serves the learner's model")
        finally:
            for child in children:
                stop(child, 20)
    assert counts(broker) == {t.name: t.partitions or 4 for t in TOPICS}


def test_a_broker_that_tells_late_of_a_topic_is_waited_for_and_one_that_never_does_is_named() -> None:
    class Producer:
        def __init__(self, late: int) -> None:
            self.late = late

        def partitions_for(self, topic: str) -> set[int]:
            self.late -= 1
            if self.late >= 0:
                raise KafkaTimeoutError
            return {0}

    late = Producer(3)
    know_topic(late, EVENTS, Settings(kafka="h:1"))
    assert late.late == -1
    with pytest.raises(BrokerError, match="'h:1' tells nothing of topic 'events'"):
        know_topic(Producer(1 << 60), EVENTS, Settings(kafka="h:1", patience_seconds=0.01))


def test_created_topics_are_named_as_json(
    broker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLRACE_PREFIX", "json.")
    for created in (sorted(f"json.{topic.name}" for topic in TOPICS), []):
        clidev.topics(kafka=broker, partitions=2, json=True)
        found = json.loads(capsys.readouterr().out)
        assert (sorted(found["created"]), found["partitions"]) == (created, 2)


def test_a_message_larger_than_a_broker_takes_is_never_sent_and_the_producer_goes_on(broker: str) -> None:
    settings = Settings(kafka=broker)
    create_topics(settings)
    producer = make_producer(settings)
    try:
        with pytest.raises(MessageSizeTooLargeError):
            producer.send(EVENTS, bytes(REQUEST_BYTES + 1))
        sent = producer.send(EVENTS, bytes(REQUEST_BYTES - 1000))
        producer.flush()
        assert sent.succeeded()
    finally:
        producer.close()
    found: list[Any] = []
    assert read_all(settings, EVENTS, lambda record: found.append(len(record.value))) == 1
    assert found == [REQUEST_BYTES - 1000]
