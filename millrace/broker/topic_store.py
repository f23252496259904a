# core
"""The topics of a broker: names, ids, settings and logs, and the broker's own few facts, in a folder.

::

    FOLDER/broker.json                cluster id, next producer id, topics       replaced whole at each change
           logs/<name>.<id>/<number>/ a partition's log
           offsets                    committed offsets (offsets.py)

A topic's folder carries its id, which is new at each creation. So a topic that is deleted and created again never meets
its old records, even after a crash. A folder that ``broker.json`` does not name is a leftover and is removed.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import UNFIT, ServiceError
from millrace.broker import codes
from millrace.broker.codes import BrokerRefusal
from millrace.broker.log import Limits, PartitionLog

MAX_PARTITIONS = 1024
PRODUCER_BLOCK = 1000
"""Producer ids come in blocks, and only a block's begin is written: a crash skips some ids, and repeats none."""

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class _Saved(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    partitions: int
    config: dict[str, str]


class _State(msgspec.Struct, forbid_unknown_fields=True):
    cluster: str
    next_producer: int = 0
    topics: dict[str, _Saved] = {}


class BrokerTopic:
    """A topic and the logs of its partitions, by number."""

    def __init__(self, name: str, topic_id: str, config: dict[str, str], limits: Limits) -> None:
        self.name, self.id, self.config, self.limits = name, topic_id, config, limits
        self.logs: list[PartitionLog] = []


class Topics:
    """All topics of a folder, which is made if missing. Raises ServiceError when it belongs to another cluster, or its
    ``broker.json`` cannot be read.

    Args:
        cluster: the cluster's id; empty keeps that of the folder.
        defaults: limits of topics without own limits.
        now_ms: the wall clock.
    """

    def __init__(self, folder: Path, cluster: str, defaults: Limits, now_ms: int) -> None:
        self.folder, self.defaults = folder, defaults
        self._path = folder / "broker.json"
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._topics: dict[str, BrokerTopic] = {}
        self._given = self._block = 0
        state = self._read(cluster)
        self.cluster = state.cluster
        self._given = self._block = state.next_producer
        for name, saved in state.topics.items():
            self._open(name, saved.id, saved.partitions, saved.config, now_ms)
        used = {self._folder(topic) for topic in self._topics.values()}
        for leftover in set(self._logs.iterdir()) - used:
            shutil.rmtree(leftover, ignore_errors=True)
        self._save()

    def _read(self, cluster: str) -> _State:
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=_State)
            for saved in state.topics.values():
                self.defaults.of(saved.config)
        except FileNotFoundError:
            return _State(cluster or "millrace")
        except (OSError, *UNFIT) as error:
            raise ServiceError(f"'{self._path}' cannot be read ({error})", "remove the broker's folder") from None
        if cluster and state.cluster != cluster:
            raise ServiceError(
                f"folder '{self.folder}' belongs to cluster '{state.cluster}', not '{cluster}'", "name another folder"
            )
        there = [path.name.rpartition(".")[::2] for path in self._logs.iterdir()]
        for name, saved in state.topics.items():  # else what is the topic's would be taken for a leftover
            alike = [folder for folder in there if name == folder[0] or saved.id == folder[1]]
            if alike and (name, saved.id) not in alike:
                problem = (
                    f"'{self._path}' has the topic '{name}' with the id '{saved.id}', and its folder is {alike[0]}"
                )
                raise ServiceError(problem, "correct the file, or remove the broker's folder")
        return state

    def _save(self) -> None:
        topics = {t.name: _Saved(t.id, len(t.logs), t.config) for t in self._topics.values()}
        write_whole(self._path, msgspec.json.encode(_State(self.cluster, self._block, topics)), durable=True)

    def _folder(self, topic: BrokerTopic) -> Path:
        return self._logs / f"{topic.name}.{topic.id}"

    def _open(self, name: str, topic_id: str, partitions: int, config: dict[str, str], now_ms: int) -> BrokerTopic:
        topic = BrokerTopic(name, topic_id, config, self.defaults.of(config))
        self._topics[name] = topic
        folder = self._folder(topic)
        topic.logs = [PartitionLog(folder / str(number), topic.limits, now_ms) for number in range(partitions)]
        return topic

    def __iter__(self) -> Iterator[BrokerTopic]:
        return iter(list(self._topics.values()))

    def get(self, name: str) -> BrokerTopic | None:
        return self._topics.get(name)

    def log(self, name: str, number: int) -> PartitionLog:
        """The log of one partition. Raises Refusal when there is none."""
        topic = self._topics.get(name)
        if topic is None or not 0 <= number < len(topic.logs):
            raise BrokerRefusal(codes.UNKNOWN_TOPIC_OR_PARTITION, f"no partition {number} of topic '{name}'")
        return topic.logs[number]

    def bound(self, most_bytes: float) -> int:
        """Removes segments until all topics take no more than ``most_bytes``, and returns the number of bytes removed.

        Segments go in the order of their expiry by age, so all topics lose an equal part of their time. Compacted
        topics and each partition's newest segment stay.
        """
        logs = [log for topic in self._topics.values() for log in topic.logs]
        gone, over = 0, sum(log.size for log in logs) - most_bytes
        while gone < over and (log := min(logs, key=lambda log: log.expires_ms)).expires_ms < math.inf:
            gone += log.drop_oldest()
        return gone

    def check(self, name: str, partitions: int, config: dict[str, str]) -> None:
        """Raises Refusal when such a topic could not be created now."""
        if not _NAME.fullmatch(name) or name in {".", ".."}:
            raise BrokerRefusal(
                codes.INVALID_TOPIC, f"'{name[:250]}' is no topic name: 1 to 249 of letters, digits, '.', '_', '-'"
            )
        if name in self._topics:
            raise BrokerRefusal(codes.TOPIC_ALREADY_EXISTS, f"topic '{name}' exists")
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise BrokerRefusal(
                codes.INVALID_PARTITIONS, f"{partitions} partitions: between 1 and {MAX_PARTITIONS} can be"
            )
        try:
            self.defaults.of(config)
        except ValueError as error:
            raise BrokerRefusal(codes.INVALID_CONFIG, str(error)) from None

    def create(self, name: str, topic_id: str, partitions: int, config: dict[str, str], now_ms: int) -> BrokerTopic:
        """Makes a topic with empty logs. Raises Refusal as :meth:`check`, OSError when its files cannot be made."""
        self.check(name, partitions, config)
        try:
            topic = self._open(name, topic_id, partitions, config, now_ms)
            self._save()
        except OSError:  # a topic that no restart would find takes no records
            for log in self._topics.pop(name).logs:
                log.close()
            raise
        return topic

    def delete(self, name: str) -> Path:
        """Forgets a topic, and returns its folder for the caller to remove: that may take a while. Raises Refusal when
        there is none."""
        topic = self._topics.pop(name, None)
        if topic is None:
            raise BrokerRefusal(codes.UNKNOWN_TOPIC_OR_PARTITION, f"no topic '{name}'")
        self._save()
        for log in topic.logs:
            log.close()
        return self._folder(topic)

    def next_producer(self) -> int:
        if self._given == self._block:
            self._block += PRODUCER_BLOCK
            self._save()
        self._given += 1
        return self._given - 1

    def close(self) -> None:
        for topic in self._topics.values():
            for log in topic.logs:
                log.close()
