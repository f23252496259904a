"""The stream's worker loop without Kafka: what it takes, sends and remembers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from millrace.basics.hashing import kafka_partition
from millrace.contracts import coclick_message as coclicks
from millrace.contracts.clock import EventClock
from millrace.contracts.events import (
    Click,
    Collect,
    Exposure,
    PageLog,
    Purchase,
    User,
    decode_dead_letter,
    decode_item_tiles,
    key_of,
    to_json,
    to_msgpack,
)
from millrace.contracts.itemtiles import unpack
from millrace.contracts.online_layout import PROFILE, RECENT, unpack_recent, window_keys
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.processes.kafka import create_topics, make_producer, make_reader, wait_for_broker
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port, spawn
from millrace.processes.wall import wall_ms
from millrace.windows.tiles import counts_of
from tests.scenes.topic_records import records
from tests.scenes.waiting import PATIENCE, until

PARTITIONS = 2
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
SEND_MESSAGES = 100
SCHEMA = shop_schema()
Sent = tuple[str, int, bytes]  # topic, partition, value
SampleKey = tuple[str, int, int, int]  # request, position, kind, actions


def home(user: int) -> int:
    """The partition of a user's messages."""
    return kafka_partition(key_of(user), PARTITIONS)


def story(pages: int, seed: int) -> list[Sent]:
    """Messages of ``pages`` pages in sending order, out of order within the disorder, with duplicates and rubbish; at
    the end a page per partition, hours later and without a click, so that every label but theirs is decided."""
    rng, arrays = random.Random(seed), np.random.default_rng(seed)
    events: list[tuple[float, Sent]] = []

    def send(user: int, topic: str, at_ms: float, value: bytes) -> None:
        events.append((at_ms, (topic, home(user), value)))

    def page(number: int, user: int, ts: int, clicks: float = 0.3) -> None:
        request, n = f"r{number}", 4
        items = rng.sample(range(50), n)
        keys = arrays.integers(1, 40, (n, SCHEMA.layout.K)).astype("<u8")
        keys[:, 0], keys[:, 3] = 1000 + user, keys[:, 3] + 10_000 * (1 + user)  # the user side is the user's own
        page_log = PageLog(
            request_id=request,
            ts_ms=ts - 500,
            user_id=user,
            arm="model",
            model_version=number // 10,
            schema_id=SCHEMA.id,
            items=list(items),
            scores=arrays.random(n).astype("<f4").tobytes(),
            keys=keys.tobytes(),
            cat=arrays.integers(1, 1 << 60, (n, SCHEMA.layout.F)).astype("<i8").tobytes(),
            num=arrays.random((n, SCHEMA.layout.N)).astype("<f4").tobytes(),
        )
        send(user, "page_logs", ts - 500, to_msgpack(page_log))
        seen = to_json(Exposure(f"e{number}", request, ts, user, list(items), 0, sent_ms=ts))
        send(user, "events", ts + rng.random() * 20_000, seen)
        if rng.random() < 0.1:
            send(user, "events", ts + 25_000, seen)
        if rng.random() < 0.1:
            send(user, "events", ts, b'{"type":"exposure","request_id":' + str(number).encode())
        for position in range(n):
            if rng.random() < clicks:
                at = ts + rng.randrange(1000, 20 * 60_000)
                late = at if rng.random() < 0.9 else at + HOUR_MS
                common = (user, items[position], position, late)
                send(user, "events", late + 10_000, to_json(Click(f"c{number}.{position}", request, late, *common)))
                if rng.random() < 0.3:
                    kind = rng.choice([Collect, Purchase])
                    send(user, "events", late + 15_000, to_json(kind(f"k{number}.{position}", request, late, *common)))

    for user in range(12):
        send(user, "users", START_MS, to_json(User(user, {"kind": "consumer", "age": 20 + user})))
    for number in range(pages):
        page(number, rng.randrange(12), START_MS + number * 20_000)
    last = START_MS + pages * 20_000
    for partition in range(PARTITIONS):
        page(pages + partition, next(filter(lambda u: home(u) == partition, count())), last + 8 * HOUR_MS, clicks=0)
    return [sent for _, sent in sorted(events, key=lambda e: e[0])]


@dataclass
class Answer:
    """The samples of the pure core over everything that the topics hold, and its windows."""

    samples: dict[SampleKey, tuple[bytes, ...]] = field(default_factory=dict)
    dead: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    users: dict[str, dict[int, np.ndarray[Any, Any]]] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    recents: dict[str, Any] = field(default_factory=dict)
    together: set[int] = field(default_factory=set)  # partitions that have co-clicks
    items: dict[tuple[int, int], np.ndarray[Any, Any]] = field(default_factory=dict)
    pending: int = 0


def rows_of(batch: SampleBatch) -> Iterator[tuple[SampleKey, tuple[bytes, ...]]]:
    for row, (request, position) in enumerate(batch.ids()):
        key = (request, position, int(batch.kind[row]), int(batch.actions[row]))
        columns = ("label", "weight", "cat", "num", "score", "user", "item", "ts_ms", "version", "origin_ms")
        yield key, tuple(getattr(batch, name)[row].tobytes() for name in columns)


def counted(blobs: list[bytes | None]) -> list[np.ndarray[Any, Any]]:
    return list(counts_of(blobs, NEWEST_MS, SCHEMA.windows.days, len(SCHEMA.windows.actions)))


NEWEST_MS = START_MS + 24 * HOUR_MS


class Loop:
    """A broker, Redis, the topics, and any number of stream workers."""

    def __init__(self, folder: Path, kafka: str = "", redis: str = "", **overrides: Any) -> None:
        """``kafka`` and ``redis`` name services that run already."""
        self.folder = folder
        self.broker, self.store = EmbeddedBroker(folder), EmbeddedRedis(folder)
        self.workers: dict[subprocess.Popen[bytes], Settings] = {}
        clock = EventClock(wall_ms(), NEWEST_MS)
        self.settings = load_settings(
            {
                "observation_seconds": 240,  # the story has clicks on both sides of it
                "kafka": kafka or self.broker.start(),
                "redis": redis or self.store.start(),
                "data": str(folder / "data"),
                "clock": clock.encode(),
                "partitions": PARTITIONS,
                "session_timeout_ms": 2000,
                "checkpoint_seconds": 0.3,
                "idle_seconds": 3600.0,
                **overrides,
            },
            environ={},
        )
        wait_for_broker(self.settings)
        create_topics(self.settings)
        self.producer = make_producer(self.settings)
        self.reader = make_reader(self.settings, "samples")
        self.sent: list[Sent] = []
        self.samples: Counter[SampleKey] = Counter()
        self.bodies: dict[SampleKey, set[tuple[bytes, ...]]] = {}

    def close(self) -> None:
        for worker in self.workers:
            self.gone(worker)
        self.reader.close()
        self.producer.close()
        self.store.stop()
        self.broker.stop()

    def gone(self, worker: subprocess.Popen[bytes]) -> None:
        """Kills a worker."""
        worker.kill()
        worker.wait()

    def worker(self, *program: str) -> subprocess.Popen[bytes]:
        """Starts a worker; ``program``: arguments for Python in place of the role's own."""
        settings = msgspec.structs.replace(self.settings, metrics_port=free_port())
        environment = {**os.environ, **settings.environment(), "NUMBA_NUM_THREADS": "1"}
        log = self.folder / f"worker{len(self.workers)}.log"
        child = spawn([sys.executable, *(program or ("-m", "millrace", "run", "stream"))], environment, log)
        self.workers[child] = settings
        return child

    def figure(self, worker: subprocess.Popen[bytes], name: str) -> float:
        """The sum of a metric of a worker, as of its last step; 0 while it serves none. To be waited for."""
        assert worker.poll() is None, self.logs()
        try:
            url = f"http://127.0.0.1:{self.workers[worker].metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=PATIENCE) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            return 0.0
        return sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith((name + " ", name + "{")))

    def logs(self) -> str:
        return "".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("worker*.log")))

    def ready(self, worker: subprocess.Popen[bytes]) -> None:
        until(lambda: self.figure(worker, "millrace_ready") == 1, "the worker is ready")

    def send(self, messages: list[Sent]) -> None:
        """Sends in order; pages reach the broker before what is seen and clicked an hour of event time later."""
        for start in range(0, len(messages), SEND_MESSAGES):
            part = messages[start : start + SEND_MESSAGES]
            sent = [self.producer.send(topic, value, key=b"k", partition=p) for topic, p, value in part]
            self.producer.flush()
            assert all(future.succeeded() for future in sent)
        self.sent += messages

    def send_by(self, clock: EventClock, event: bytes) -> None:
        """Sends an event by another run's clock to every partition. For the core's answer there is rubbish in its
        place: a dead letter, as that is to become."""
        for partition in range(PARTITIONS):
            self.producer.send("events", event, key=b"k", partition=partition, headers=clock.headers)
            self.sent.append(("events", partition, b"{"))
        self.producer.flush()

    def poll(self) -> Counter[SampleKey]:
        """All samples so far, how often each came."""
        for record in chain.from_iterable(self.reader.poll(timeout_ms=50).values()):
            for key, body in rows_of(SampleBatch.from_bytes(record.value)):
                self.samples[key] += 1
                self.bodies.setdefault(key, set()).add(body)
        return self.samples

    def done(self, expected: Answer) -> None:
        """Waits for the last sample, then compares everything that a crash must not change."""
        until(lambda: self.poll().keys() >= expected.samples.keys(), "all samples came")
        assert self.samples.keys() == expected.samples.keys()
        assert self.bodies == {key: {body} for key, body in expected.samples.items()}
        self.filled(expected)
        until(lambda: self.coclicks().keys() >= expected.together, "co-clicks are published")
        until(lambda: self.item_tiles() == as_lists({"": expected.items})[""], "item windows are published")
        until(lambda: self.dead_letters().keys() >= expected.dead.keys(), "all dead letters came")
        assert self.dead_letters().keys() == expected.dead.keys()

    def filled(self, expected: Answer) -> None:
        """Waits until Redis has all of every user."""
        until(lambda: self.redis_users() == as_lists(expected.users), "user windows are in Redis")
        until(lambda: self.redis_recents() == expected.recents, "last clicks are in Redis")
        until(lambda: self.redis_profiles() == expected.profiles, "profiles are in Redis")

    def dead_letters(self) -> dict[tuple[str, int, int], str]:
        """Reasons of the dead letters by what they are of: topic, partition, offset."""
        found = [decode_dead_letter(record.value) for record in records(self.settings, "dead-letters")]
        return {(one.topic, one.partition, one.offset): one.reason for one in found}

    def redis_users(self) -> dict[Any, Any]:
        found: dict[str, dict[int, Any]] = {}
        for user, fields in self.hashes().items():
            for other in (PROFILE, RECENT):
                fields.pop(other, None)
            keys = window_keys(fields).tolist()
            if keys:
                found[user] = dict(zip(keys, counted(list(fields.values())), strict=True))
        return as_lists(found)

    def hashes(self) -> dict[str, dict[bytes, Any]]:
        """All of Redis about each user."""
        start = self.settings.key("user:")
        with redis.Redis.from_url(f"redis://{self.settings.redis}") as client:
            return {n.decode().removeprefix(start): client.hgetall(n) for n in client.scan_iter(f"{start}*")}

    def redis_recents(self) -> dict[str, Any]:
        return {user: in_order(fields[RECENT]) for user, fields in self.hashes().items() if RECENT in fields}

    def coclicks(self) -> dict[int, set[int]]:
        """Items that have lists on the topic, by partition."""
        found: dict[int, set[int]] = {}

        for record in records(self.settings, "features.coclicks"):
            number, lists = coclicks.unpack(record.value)
            found.setdefault(number, set()).update(lists.items.tolist())
        return found

    def redis_profiles(self) -> dict[str, Any]:
        found = {user: fields[PROFILE] for user, fields in self.hashes().items() if PROFILE in fields}
        return {user: msgspec.json.decode(raw) for user, raw in found.items()}

    def item_tiles(self) -> dict[Any, Any]:
        newest: dict[tuple[int, int], bytes] = {}

        for record in records(self.settings, "features.items"):
            message = decode_item_tiles(record.value)
            keys, tiles = unpack(message)
            newest.update({(message.partition, key): blob for key, blob in zip(keys.tolist(), tiles, strict=True)})
        found: dict[Any, Any] = as_lists({"": dict(zip(newest, counted(list(newest.values())), strict=True))})[""]
        return found


def in_order(raw: bytes) -> list[list[tuple[int, str]]]:
    """What a user did last. Two clicks of one time may come in any order."""
    return [sorted((past.ts_ms, str(past.item_id)) for past in pasts) for pasts in unpack_recent(raw)]


def as_lists(nested: dict[Any, dict[Any, Any]]) -> dict[Any, Any]:
    return {name: {k: v.tolist() for k, v in inner.items()} for name, inner in nested.items()}


def flush(loop: Loop) -> None:
    with redis.Redis.from_url(f"redis://{loop.settings.redis}") as client:
        client.flushall()


STEADY = {"session_timeout_ms": 20_000}
"""For what holds only while no worker is taken for dead, however long it has to wait for a core."""
Loops = Callable[..., Loop]


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    """Makes loops, each in a folder of its own, and closes them: the settings that differ, and services that run."""
    with ExitStack() as stack:

        def make(kafka: str = "", redis: str = "", **overrides: Any) -> Loop:
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            loop = Loop(folder, kafka, redis, **overrides)
            stack.callback(loop.close)
            return loop

        yield make
