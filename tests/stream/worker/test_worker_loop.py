"""The stream role against a real broker and Redis: what comes out equals the pure core's answer, whatever happens to
the processes in between."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaConnectionError

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
    decode_event,
    decode_item_tiles,
    key_of,
    to_json,
    to_msgpack,
)
from millrace.contracts.itemtiles import unpack
from millrace.contracts.online_layout import PROFILE, RECENT, unpack_recent, window_keys
from millrace.contracts.samples import CORRECTION, NEGATIVE, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.processes.kafka import create_topics, make_producer, make_reader, read_all, wait_for_broker
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port, spawn, stop
from millrace.processes.wall import event_now_ms, wall_ms
from millrace.windows.tiles import counts_of
from stream.partition.partition import InputMessage, Partition, Policy
from stream.partition.partition_checkpoint import CheckpointStore
from stream.worker.faustio import Throttle
from stream.worker.logids import ends_of, ids_of_inputs
from stream.worker.rereader import PageLogReader
from tests.scenes.demo_kafka import apache_kafka
from tests.scenes.waiting import LONG, PATIENCE, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]

PARTITIONS = 2
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
SEND_MESSAGES = 100
ROUNDS = int(os.environ.get("MILLRACE_TEST_ROUNDS", "1"))
SCHEMA = shop_schema()

Sent = tuple[str, int, bytes]  # topic, partition, value
Worker = subprocess.Popen[bytes]
SampleKey = tuple[str, int, int, int]  # request, position, kind, actions


# ---------------------------------------------------------------------- what shoppers do


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


# ---------------------------------------------------------------------- what the core says


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


def answer(loop: Loop) -> Answer:
    """Replays all that was sent, in that order, through one partition object each."""
    settings = loop.settings
    offsets: Counter[tuple[str, int]] = Counter()
    messages: list[tuple[int, InputMessage]] = []
    for topic, number, value in loop.sent:
        messages.append((number, InputMessage(topic, offsets[topic, number], value)))
        offsets[topic, number] += 1
    out = Answer()
    for number in range(PARTITIONS):
        partition = Partition(number, SCHEMA, Policy.of(settings), PARTITIONS)
        step = partition.take([m for p, m in messages if p == number], event_now_ms(settings.event_clock()))
        assert step.samples is not None
        out.samples.update(rows_of(step.samples))
        out.dead.update((d.topic, d.partition, d.offset) for d in step.dead)
        out.pending += partition.pending
        changes = partition.changes()
        for user, entries in changes.users:
            out.users[str(user)] = dict(zip([k for k, _ in entries], counted([b for _, b in entries]), strict=True))
        out.recents |= {str(user): in_order(value) for user, value in changes.recents}
        if len(changes.coclicks.items):
            out.together.add(number)
        out.profiles |= {str(p.user_id): p.attributes for p in changes.profiles}
        keys = [(number, key) for key in changes.item_keys.tolist()]
        out.items |= dict(zip(keys, counted(list(changes.item_tiles)), strict=True))
    return out


# ---------------------------------------------------------------------- the processes


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
            worker.kill()
            worker.wait()
        self.reader.close()
        self.producer.close()
        self.store.stop()
        self.broker.stop()

    def worker(self) -> subprocess.Popen[bytes]:
        settings = msgspec.structs.replace(self.settings, metrics_port=free_port())
        environment = {**os.environ, **settings.environment(), "NUMBA_NUM_THREADS": "1"}
        log = self.folder / f"worker{len(self.workers)}.log"
        child = spawn([sys.executable, "-m", "commands", "run", "stream"], environment, log)
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

    def poll(self) -> Counter[SampleKey]:
        """All samples so far, how often each came."""
        for records in self.reader.poll(timeout_ms=50).values():
            for record in records:
                for key, body in rows_of(SampleBatch.from_bytes(record.value)):
                    self.samples[key] += 1
                    self.bodies.setdefault(key, set()).add(body)
        return self.samples

    def done(self, expected: Answer) -> None:
        """Waits for the last sample, then compares everything that a crash must not change."""
        until(lambda: self.poll().keys() >= expected.samples.keys(), "all samples came")
        assert self.samples.keys() == expected.samples.keys()
        assert self.bodies == {key: {body} for key, body in expected.samples.items()}
        until(lambda: self.redis_users() == as_lists(expected.users), "user windows are in Redis")
        until(lambda: self.redis_recents() == expected.recents, "last clicks are in Redis")
        until(lambda: self.coclicks().keys() >= expected.together, "co-clicks are published")
        until(lambda: self.redis_profiles() == expected.profiles, "profiles are in Redis")
        until(lambda: self.item_tiles() == as_lists({"": expected.items})[""], "item windows are published")
        until(lambda: self.dead_letters() >= expected.dead.keys(), "all dead letters came")
        assert self.dead_letters() == expected.dead.keys()

    def dead_letters(self) -> set[tuple[str, int, int]]:
        """What the dead letters are of: topic, partition, offset."""
        found: set[tuple[str, int, int]] = set()

        def read(record: Any) -> None:
            dead_letter = decode_dead_letter(record.value)
            found.add((dead_letter.topic, dead_letter.partition, dead_letter.offset))

        read_all(self.settings, "dead-letters", read)
        return found

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

        def read(record: Any) -> None:
            number, lists = coclicks.unpack(record.value)
            found.setdefault(number, set()).update(lists.items.tolist())

        read_all(self.settings, "features.coclicks", read)
        return found

    def redis_profiles(self) -> dict[str, Any]:
        found = {user: fields[PROFILE] for user, fields in self.hashes().items() if PROFILE in fields}
        return {user: msgspec.json.decode(raw) for user, raw in found.items()}

    def item_tiles(self) -> dict[Any, Any]:
        newest: dict[tuple[int, int], bytes] = {}

        def read(record: Any) -> None:
            message = decode_item_tiles(record.value)
            keys, tiles = unpack(message)
            newest.update({(message.partition, key): blob for key, blob in zip(keys.tolist(), tiles, strict=True)})

        read_all(self.settings, "features.items", read)
        found: dict[Any, Any] = as_lists({"": dict(zip(newest, counted(list(newest.values())), strict=True))})[""]
        return found


def in_order(raw: bytes) -> list[list[tuple[int, str]]]:
    """What a user did last. Two clicks of one time may come in any order."""
    return [sorted((past.ts_ms, str(past.item_id)) for past in pasts) for pasts in unpack_recent(raw)]


def as_lists(nested: dict[Any, dict[Any, Any]]) -> dict[Any, Any]:
    return {name: {k: v.tolist() for k, v in inner.items()} for name, inner in nested.items()}


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    running = Loop(tmp_path)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def steady(tmp_path: Path) -> Iterator[Loop]:
    """For what holds only while no worker is taken for dead, however long it has to wait for a core."""
    running = Loop(tmp_path, session_timeout_ms=20_000)
    try:
        yield running
    finally:
        running.close()


# ---------------------------------------------------------------------- the tests


@pytest.fixture
def beside(steady: Loop, tmp_path: Path) -> Iterator[Loop]:
    """Another loop on the broker and the Redis of ``steady``, with a prefix."""
    settings = steady.settings
    (tmp_path / "beside").mkdir()
    running = Loop(tmp_path / "beside", settings.kafka, settings.redis, session_timeout_ms=20_000, prefix="b-shop.")
    try:
        yield running
    finally:
        running.close()


@pytest.mark.slow
def test_an_undisturbed_run_says_what_the_core_says_and_once(steady: Loop, beside: Loop) -> None:
    """Beside it, another loop with the same users on the same broker and Redis, told apart by its prefix."""
    loop, worker, other = steady, steady.worker(), beside.worker()
    loop.ready(worker)
    beside.send(story(40, seed=11))
    until(lambda: math.isnan(loop.figure(worker, "millrace_watermark_seconds")), "there is no time before an event")
    loop.send(story(150, seed=1))
    expected = answer(loop)
    kinds = {kind for _, _, kind, _ in expected.samples}
    assert kinds == {0, 1, 2, 3}  # the story has negatives, positives, corrections and follow-ups
    assert expected.dead
    assert expected.pending == 4 * PARTITIONS
    loop.done(expected)
    for name, value in (
        ("samples_total", len(expected.samples)),
        ("pending_exposures", expected.pending),
        ("dead_letters_total", sum(expected.dead.values())),
        ("stream_lag", 0),
    ):
        until(lambda n=name, v=value: loop.figure(worker, f"millrace_{n}") == v, f"{name} is {value}")  # type: ignore[misc]
    assert set(loop.poll().values()) == {1}
    assert loop.figure(worker, "millrace_page_logs_recalled_total") > 0  # some clicks come an hour late
    assert loop.figure(worker, "millrace_page_logs_gone_total") == 0
    assert loop.figure(worker, "millrace_checkpoint_bytes_total") > 0
    assert stop(worker, PATIENCE) == 0
    assert (loop.folder / "worker0.log").read_text().count("\n") < 6  # calm
    beside.done(answer(beside))
    assert set(beside.poll().values()) == {1}
    assert loop.poll().keys() == expected.samples.keys()  # and nothing of it here
    assert loop.redis_users() == as_lists(expected.users)
    assert stop(other, PATIENCE) == 0


@pytest.mark.slow
def test_killed_workers_change_nothing(loop: Loop) -> None:
    """SIGKILL between any two moments: after the restart the same samples, windows and dead letters, some twice."""
    messages, rng = story(200, seed=2), random.Random(5)
    worker = loop.worker()
    chunk = len(messages) // (ROUNDS + 1)
    for number in range(ROUNDS):
        part = messages[number * chunk : (number + 1) * chunk]
        before = len(loop.poll())
        loop.send(part)
        loop.ready(worker)
        until(lambda before=before: len(loop.poll()) > before, "samples come")  # type: ignore[misc]
        time.sleep(rng.random() * 0.5)  # not to wait for something: the moment of the kill is what varies
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        worker = loop.worker()
    loop.send(messages[ROUNDS * chunk :])
    loop.ready(worker)
    loop.done(answer(loop))
    assert stop(worker, PATIENCE) == 0


def share(loop: Loop, first: Worker, second: Worker, messages: list[Sent]) -> None:
    """Sends in parts until the second takes something, then the rest. On a busy machine a member may miss its session
    and join again; whatever is sent meanwhile is the first's."""
    step = max(8, len(messages) // 6)

    def taken(*workers: Worker) -> float:
        return sum(loop.figure(worker, "millrace_events_total") for worker in workers)

    began = taken(second)
    for start in range(0, len(messages), step):
        loop.ready(first)
        loop.ready(second)
        by_both = taken(first, second)
        loop.send(messages[start : start + step])
        until(lambda n=by_both: taken(first, second) > n, "one of the two works")  # type: ignore[misc]
        if taken(second) > began:
            loop.send(messages[start + step :])
            return
    until(lambda: taken(second) > began, "the second took something")


@pytest.mark.slow
def test_workers_come_and_go(loop: Loop) -> None:
    """1 -> 2 -> 1: partitions move with their whole state, by good-bye and by SIGKILL."""
    messages = story(200, seed=3)
    first = loop.worker()
    chunk = len(messages) // (2 * ROUNDS + 1)
    at = 0
    loop.ready(first)
    for number in range(ROUNDS):
        loop.send(messages[at : at + chunk])
        second = loop.worker()
        until(lambda s=second: loop.figure(s, "millrace_window_keys") > 0, "the second took state over")  # type: ignore[misc]
        share(loop, first, second, messages[at + chunk : at + 2 * chunk])
        at += 2 * chunk
        if number % 2:
            second.kill()
            second.wait()
        else:
            assert stop(second, PATIENCE) == 0
    loop.send(messages[at:])
    loop.done(answer(loop))
    assert stop(first, PATIENCE) == 0


@pytest.mark.slow
def test_a_redis_that_lost_its_data_is_filled_again(loop: Loop) -> None:
    """From what the worker holds, in that life or in the next, and from the topic of profiles."""
    worker = loop.worker()
    loop.send(story(100, seed=7))
    expected = answer(loop)
    loop.ready(worker)
    loop.done(expected)
    flush(loop)
    until(lambda: loop.redis_users() == as_lists(expected.users), "user windows are back")
    until(lambda: loop.redis_profiles() == expected.profiles, "profiles are back")
    assert stop(worker, PATIENCE) == 0
    flush(loop)
    worker = loop.worker()
    until(lambda: loop.redis_users() == as_lists(expected.users), "user windows are back after a restart")
    until(lambda: loop.redis_profiles() == expected.profiles, "profiles are back after a restart")
    assert stop(worker, PATIENCE) == 0


def last_line(worker: Worker, loop: Loop) -> str:
    """What a worker says that ends by itself, with status 1 and without a traceback."""
    until(lambda: worker.poll() is not None, "the worker ended")
    assert worker.returncode == 1, loop.logs()
    assert "Traceback" not in loop.logs()
    return loop.logs().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("service", "busy"), [("broker", False), ("broker", True), ("store", False)])
def test_a_service_that_stays_away_is_one_line(tmp_path: Path, service: str, busy: bool) -> None:
    # Long enough that a busy machine is not taken for an outage before there is one.
    loop = Loop(tmp_path, outage_seconds=8.0)
    try:
        worker = loop.worker()
        loop.ready(worker)
        if busy:
            loop.send(story(30, seed=8))
            until(lambda: loop.figure(worker, "millrace_samples_total") > 0, "the worker works")
        for client in (loop.reader, loop.producer):
            client.close()  # they would go on trying, and leave sockets behind
        getattr(loop, service).stop()
        line = last_line(worker, loop)
        address = loop.settings.kafka if service == "broker" else loop.settings.redis
        assert line.startswith("millrace: ")
        assert f"'{address}'" in line
        assert ("MILLRACE_KAFKA" if service == "broker" else "MILLRACE_REDIS") in line
    finally:
        loop.close()


@pytest.mark.slow
def test_a_new_broker_is_read_from_its_beginning_with_the_state_of_the_old(loop: Loop) -> None:
    """The broker is new, the checkpoints are old: offsets begin again, a line says so, and pages that wait go on."""
    partition = Partition(0, SCHEMA, Policy.of(loop.settings))
    user = next(filter(lambda u: home(u) == 0, count()))
    seen = to_json(Exposure("before", "before", START_MS - HOUR_MS, user, [7]))
    partition.take([InputMessage("events", 499, seen)], NEWEST_MS)
    fresh = Partition(0, SCHEMA, Policy.of(loop.settings))
    CheckpointStore(loop.settings.place("checkpoints")).load(fresh).line.write([], partition.snapshot())
    loop.send([("events", 0, b"rubbish")] * 3)
    worker = loop.worker()
    loop.ready(worker)
    loop.send(story(60, seed=11))
    expected = answer(loop)
    expected.dead["events", 0, 499] += 1  # what waited for its page log, which the old broker took along
    loop.done(expected)
    assert stop(worker, PATIENCE) == 0
    assert "what the old events held from offset 500 on" in loop.logs()
    again = loop.worker()  # and from then on they are the topics that it reads
    loop.ready(again)
    assert stop(again, PATIENCE) == 0
    assert loop.logs().count("read from their beginning") == 1


def test_a_checkpoint_ahead_of_the_event_clock_is_one_line(loop: Loop) -> None:
    """History was played at a lapse, and the data folder is used again in real time."""
    ahead = to_json(Exposure("e", "r", NEWEST_MS + 9 * HOUR_MS, 7, [1]))
    partition = Partition(0, SCHEMA, Policy.of(loop.settings))
    partition.take([InputMessage("events", 0, ahead)], NEWEST_MS + 9 * HOUR_MS)
    fresh = Partition(0, SCHEMA, Policy.of(loop.settings))
    CheckpointStore(loop.settings.place("checkpoints")).load(fresh).line.write([], partition.snapshot())
    line = last_line(loop.worker(), loop)
    assert line.startswith("millrace: partition 0 has taken events up to 2023-11-16 07:13 UTC, ")
    assert re.search(r"ahead of the event clock \(2023-11-15 22:\d\d UTC\)", line)  # which goes on while it starts
    assert "MILLRACE_CLOCK" in line


@pytest.mark.slow
def test_users_in_a_partition_that_is_not_theirs_are_reported_at_once(steady: Loop) -> None:
    """Events come from a producer that takes the CRC-32 of the key, as librdkafka does by default. What it happens to
    place rightly is taken."""
    loop, moved, messages = steady, 0, list[Sent]()
    for topic, number, value in story(100, seed=9):
        if topic == "events" and b'"user_id"' in value:
            at = zlib.crc32(key_of(decode_event(value).user_id)) % PARTITIONS
            moved, number = moved + (at != number), at
        messages.append((topic, number, value))
    loop.send(messages)
    assert moved > 100
    worker = loop.worker()
    wrong = 'millrace_dead_letters_total{reason="wrong-partition"}'
    until(lambda: loop.figure(worker, wrong) == moved, "each is a dead letter")
    loop.done(answer(loop))
    until(lambda: "most events cannot be learnt from" in loop.logs(), "a line tells of it")
    assert "belongs to partition" in loop.logs()
    assert stop(worker, PATIENCE) == 0


def flush(loop: Loop) -> None:
    with redis.Redis.from_url(f"redis://{loop.settings.redis}") as client:
        client.flushall()


@pytest.mark.slow
def test_a_silent_partition_follows_the_event_clock(tmp_path: Path) -> None:
    """Nothing comes after the exposure, and its negative still does."""
    clock = EventClock(wall_ms(), START_MS + 2 * HOUR_MS)
    loop = Loop(tmp_path, idle_seconds=0.3, clock=clock.encode())
    try:
        messages = [m for m in story(3, seed=4) if b"r0" in m[2] and (m[0] == "page_logs" or b'"exposure"' in m[2])]
        loop.send(messages)
        worker = loop.worker()
        until(lambda: len(loop.poll()) == 4, "the page's four negatives")
        assert {kind for _, _, kind, _ in loop.samples} == {NEGATIVE}
        assert stop(worker, PATIENCE) == 0
    finally:
        loop.close()


@pytest.mark.slow
def test_a_label_given_to_silence_stays_after_a_crash(tmp_path: Path) -> None:
    """A worker moves a silent partition on, gives negatives, and dies before its next checkpoint. A click that was on
    its way meanwhile must find its negative given: a correction, not a second label."""
    clock = EventClock(wall_ms(), START_MS + 2 * HOUR_MS)
    loop = Loop(tmp_path, idle_seconds=0.3, checkpoint_seconds=3.0, clock=clock.encode())
    try:
        page = [m for m in story(3, seed=4) if b"r0" in m[2]]
        click = next(m for m in page if b'"click"' in m[2])
        loop.send([m for m in page if m[0] == "page_logs" or b'"exposure"' in m[2]])
        first = loop.worker()
        until(lambda: len(loop.poll()) == 4, "the page's four negatives")
        first.kill()
        first.wait()
        loop.send([click])
        loop.worker()
        until(lambda: any(kind == CORRECTION for _, _, kind, _ in loop.poll()), "the click's correction")
        assert {kind for _, _, kind, _ in loop.samples} == {NEGATIVE, CORRECTION}
    finally:
        loop.close()


@pytest.mark.slow
def test_an_event_is_judged_by_the_clock_that_it_was_sent_by(steady: Loop) -> None:
    """Two runs on one Kafka, a day apart: what was from the future when it came is not taken when the second run, whose
    clock has come as far, reads it again. It would move the watermark past its neighbours."""
    loop, messages = steady, story(100, seed=8)
    half = len(messages) // 2
    loop.send(messages[:half])
    earlier = EventClock(wall_ms() - 60_000, START_MS, 1.0)
    ahead = to_json(Click("ahead", "nowhere", NEWEST_MS, 7, 1, 0))
    for number in range(PARTITIONS):
        loop.producer.send("events", ahead, key=b"k", partition=number, headers=earlier.headers)
        loop.sent.append(("events", number, b"{"))  # for the core's answer: a dead letter in its place
    loop.send(messages[half:])
    worker = loop.worker()
    loop.done(answer(loop))
    future = 'millrace_dead_letters_total{reason="future"}'
    until(lambda: loop.figure(worker, future) == PARTITIONS, "both were from the future")
    assert stop(worker, PATIENCE) == 0


@pytest.mark.slow
@pytest.mark.kafka
def test_apache_kafka_with_idempotent_producers(tmp_path: Path) -> None:
    with apache_kafka(tmp_path / "kafka") as address:
        loop = Loop(tmp_path, address)
        try:
            messages = story(120, seed=6)
            half = len(messages) // 2
            first = loop.worker()
            loop.ready(first)
            loop.send(messages[:half])
            second = loop.worker()
            until(lambda: loop.figure(second, "millrace_window_keys") > 0, "the second took state over")
            first.kill()
            first.wait()
            loop.send(messages[half:])
            loop.done(answer(loop))
            assert stop(second, PATIENCE) == 0
        finally:
            loop.close()


def test_page_logs_are_read_again_by_their_offsets(loop: Loop) -> None:
    """Near ones and far ones, in one reading; one whose time is over and one that the log does not reach are told."""
    raws = [b"%d" % k for k in range(1000)]
    loop.send([("page_logs", 1, raw) for raw in raws])
    recaller = PageLogReader(loop.settings)
    try:
        wanted = [999, 3, 4, 4, 7, 640, 641, 1000, 5000]
        expected = {at: raws[at] if at < len(raws) else None for at in wanted}
        assert recaller.read(1, wanted) == expected
        assert recaller.read(0, [0]) == {0: None}
        admin = KafkaAdminClient(bootstrap_servers=loop.settings.brokers)
        admin.delete_records({TopicPartition("page_logs", 1): 600})
        admin.close()
        assert recaller.read(1, [3, 640, 999]) == {3: None, 640: raws[640], 999: raws[999]}
        assert all(ids_of_inputs(loop.settings).values())
        assert ends_of(loop.settings, ["page_logs", "events"], 1) == {"page_logs": 1000, "events": 0}
    finally:
        recaller.close()


def test_page_logs_that_cannot_be_read_are_distinguished_from_those_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(**_: Any) -> None:
        raise KafkaConnectionError

    monkeypatch.setattr("stream.worker.rereader.KafkaConsumer", away)
    recaller = PageLogReader(load_settings({"kafka": "127.0.0.1:1", "data": str(tmp_path)}, environ={}))
    assert recaller.read(1, [999]) is None
    recaller.close()


def test_a_client_that_repeats_itself_is_throttled() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])

    def passes(text: str) -> bool:
        return throttle.filter(logging.LogRecord("aiokafka", logging.WARNING, "", 0, text, ("node",), None))

    assert passes("no %s")
    assert not passes("no %s")
    assert passes("other %s")
    now[0] = 5.0
    assert passes("no %s")


def test_a_broker_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    code = "from stream.worker import stream_worker as worker; from millrace.processes import kafka\n"
    code += "from millrace.contracts.settings import load_settings\n"
    code += "worker.open_broker = lambda s: kafka.wait_for_broker(s, 0.2)\n"
    code += "import sys, threading; from millrace.basics.errors import MillraceError\n"
    code += "try: worker.run(load_settings(), threading.Event())\nexcept MillraceError as e: sys.exit(str(e))"
    settings = load_settings({"kafka": "127.0.0.1:1", "redis": "127.0.0.1:1", "data": str(tmp_path)}, environ={})
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **settings.environment()}, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"broker '127.0.0.1:1' does not answer" in done.stderr
    assert b"Traceback" not in done.stderr
