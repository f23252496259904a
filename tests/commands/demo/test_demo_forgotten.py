"""A run that outlasts the broker's retention is not called lossy: its end says what can no longer be checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition

from millrace.commands.demo.settle import forgotten
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, SAMPLES
from millrace.processes.kafka import create_topics, first_offsets, make_producer
from millrace.processes.services import EmbeddedBroker
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]


LIES = {EVENTS: 1, SAMPLES: 0}
"""In which partition messages are."""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with EmbeddedBroker(tmp_path) as broker:
        made = Settings(kafka=broker.address, partitions=2)
        create_topics(made)
        with contextlib.closing(make_producer(made)) as producer:
            for topic, partition in LIES.items():
                for _ in range(10):
                    producer.send(topic, b"message", partition=partition)
        yield made


def delete(settings: Settings, topic: str, before: int) -> None:
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=settings.brokers)) as admin:
        admin.delete_records({TopicPartition(topic, LIES[topic]): before})


def test_what_retention_deleted_of_the_run_is_named(settings: Settings) -> None:
    assert forgotten(settings, {}) == ""
    delete(settings, SAMPLES, 3)
    assert first_offsets(settings, SAMPLES) == {0: 3}
    assert forgotten(settings, {}) == "the first 3 messages of 'samples', partition 0"


def test_what_it_deleted_of_earlier_runs_is_not(settings: Settings) -> None:
    delete(settings, EVENTS, 6)
    delete(settings, SAMPLES, 3)
    assert forgotten(settings, {1: 6}) == ""
    assert forgotten(settings, {1: 4}) == "the first 2 messages of 'events', partition 1"
