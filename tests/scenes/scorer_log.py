"""Kafka in memory, as far as feeds use it: topics that are written, cut at their head, lost and made again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kafka import TopicPartition

from scorer.feeder.kafka_feed import FeedConsumer, TopicSource


@dataclass(slots=True)
class Message:
    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(slots=True)
class Log:
    """One partition."""

    id: str
    messages: list[Message] = field(default_factory=list)
    end: int = 0

    def append(self, value: bytes | None, key: bytes | None = None) -> int:
        """The offset of the message."""
        self.messages.append(Message(self.end, key, value))
        self.end += 1
        return self.end - 1

    def cut(self, offset: int) -> None:
        """What came before ``offset`` is gone, as after DeleteRecords or by retention."""
        self.messages = [m for m in self.messages if m.offset >= offset]


class MemoryBroker(TopicSource):
    """Topics of one partition. ``fails`` is raised by whatever asks next, once."""

    def __init__(self) -> None:
        self.logs: dict[str, Log] = {}
        self.fails: Exception | None = None
        self.started: dict[str, int] = {}  # the offset that stands for a time, by topic
        self._numbers = itertools.count()

    def log(self, topic: str) -> Log:
        """The topic's log; made where there is none."""
        if topic not in self.logs:
            self.logs[topic] = Log(f"log-{next(self._numbers)}")
        return self.logs[topic]

    def lose(self, topic: str) -> None:
        """The topic is made again, and empty."""
        self.logs.pop(topic, None)

    def reader(self, topic: str, start: dict[int, int]) -> FeedConsumer:
        return MemoryReader(self, topic, start.get(0, 0))

    def since(self, topic: str, since_ms: int) -> dict[int, int]:
        self._maybe_fail()
        return {0: self.started[topic]} if topic in self.started else {}

    def log_id(self, topic: str) -> str:
        self._maybe_fail()
        return self.log(topic).id

    def _maybe_fail(self) -> None:
        error, self.fails = self.fails, None
        if error is not None:
            raise error


class MemoryReader:
    MOST = 50

    def __init__(self, broker: MemoryBroker, topic: str, start: int) -> None:
        self._broker, self._tp, self._at = broker, TopicPartition(topic, 0), start

    def poll(self, timeout_ms: int) -> Mapping[Any, list[Any]]:
        self._broker._maybe_fail()
        log = self._broker.log(self._tp.topic)
        if self._at > log.end:  # as auto_offset_reset says
            self._at = 0
        found = [m for m in log.messages if m.offset >= self._at][: self.MOST]
        self._at = found[-1].offset + 1 if found else log.end
        return {self._tp: found} if found else {}

    def assignment(self) -> set[Any]:
        return {self._tp}

    def position(self, partition: Any) -> int:
        return self._at

    def end_offsets(self, partitions: Any) -> dict[Any, int]:
        return {tp: self._broker.log(tp.topic).end for tp in partitions}

    def highwater(self, partition: Any) -> int:
        return self._broker.log(partition.topic).end

    def seek(self, partition: Any, offset: int) -> None:
        self._at = offset

    def close(self) -> None:
        pass


def caught_up(feed: Any, turns: int = 1000) -> None:
    """Has a feed, which is no thread here, take all that its topic holds."""
    if feed._reader is None:
        feed.start_up()
        feed._reader = feed._open()
    for _ in range(turns):
        if not feed.turn():
            return
    raise AssertionError(f"feed of {feed.topic} reads for ever")


__all__ = ["Log", "MemoryBroker", "Message", "caught_up"]
