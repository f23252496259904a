# shell
"""The broker's topic ids and the ends of partitions at a take-over, for :func:`stream.worker.turn.other_logs`.

A broker that is away is waited for, with a line a try, as long as a running worker waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import structlog
from kafka import TopicPartition
from tenacity import Retrying

from millrace.basics.errors import BrokerError
from millrace.contracts.settings import Settings
from millrace.processes.kafka import make_consumer, told, topic_ids
from millrace.processes.patience import patience
from stream.worker.turn import INPUTS

log = structlog.get_logger("stream")
T = TypeVar("T")


def ids_of_inputs(settings: Settings) -> dict[str, str]:
    """The id of each input topic; "" where the broker gives none. Blocks. Raises BrokerError if the
    broker stays away."""
    ids = _insist(settings, lambda: topic_ids(settings))
    return {topic: ids.get(topic, "") for topic in INPUTS}


def ends_of(settings: Settings, topics: Iterable[str], partition: int) -> dict[str, int]:
    """Where a partition of these topics ends. Blocks. Raises BrokerError if the broker stays away."""

    def ask() -> dict[str, int]:
        made = contextlib.closing(make_consumer(settings))
        with told(f"no ends of topics from '{settings.kafka}'"), made as consumer:
            ends = consumer.end_offsets([TopicPartition(settings.topic(topic), partition) for topic in topics])
        return {settings.logical(tp.topic): end for tp, end in ends.items()}

    return _insist(settings, ask)


def _insist(settings: Settings, ask: Callable[[], T]) -> T:
    aloud = partial(log.warning, "waiting for the broker to tell of its topics")
    return Retrying(**patience(settings.outage_seconds, BrokerError, aloud))(ask)
