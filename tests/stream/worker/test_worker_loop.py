"""The stream role against a real broker and Redis: what comes out equals the pure core's answer, whatever happens to
the processes in between."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaConnectionError

from millrace.contracts.clock import EventClock
from millrace.contracts.events import (
    Click,
    Exposure,
    User,
    decode_event,
    key_of,
    to_json,
)
from millrace.contracts.samples import CORRECTION, NEGATIVE
from millrace.contracts.settings import load_settings
from millrace.processes.services import stop
from millrace.processes.wall import event_now_ms, wall_ms
from stream.partition.partition import InputMessage, Partition, Policy
from stream.partition.partition_checkpoint import CheckpointStore
from stream.worker.faustio import Throttle
from stream.worker.logids import ends_of, ids_of_inputs
from stream.worker.rereader import PageLogReader
from tests.scenes import worker_loop
from tests.scenes.demo_kafka import apache_kafka
from tests.scenes.waiting import LONG, PATIENCE, until
from tests.scenes.worker_loop import (
    HOUR_MS,
    NEWEST_MS,
    PARTITIONS,
    SCHEMA,
    START_MS,
    STEADY,
    Answer,
    Loop,
    Loops,
    Sent,
    as_lists,
    counted,
    flush,
    home,
    in_order,
    rows_of,
    story,
)

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]

loops = worker_loop.loops

ROUNDS = int(os.environ.get("MILLRACE_TEST_ROUNDS", "1"))

Worker = subprocess.Popen[bytes]


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


@pytest.fixture(params=[pytest.param(False, id="embedded"), pytest.param(True, id="kafka", marks=pytest.mark.kafka)])
def kafka(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of an Apache Kafka, or nothing: a loop starts the embedded broker."""
    with apache_kafka(tmp_path / "kafka") if request.param else nullcontext("") as address:
        yield address


@pytest.mark.slow
def test_an_undisturbed_run_says_what_the_core_says_and_once(loops: Loops) -> None:
    """Beside it, another loop with the same users on the same broker and Redis, told apart by its prefix."""
    loop = loops(**STEADY)
    beside = loops(loop.settings.kafka, loop.settings.redis, prefix="b-shop.", **STEADY)
    worker, other = loop.worker(), beside.worker()
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
def test_whatever_becomes_of_workers_and_redis_the_answer_is_the_cores(kafka: str, loops: Loops) -> None:
    """Some of it twice. SIGKILL between any two moments; partitions that move with their whole state to a second
    worker, and back when it is killed or says good-bye; a Redis that lost its data, in that life or before the next.

    Among the events are two of another run, which were hours ahead of that run's clock, a day behind ours. They are
    from the future whenever they are read: taken, they would move the watermark past their neighbours.
    """
    loop, messages, rng = loops(kafka), story(320, seed=2), random.Random(5)
    chunk, rest = len(messages) // (3 * ROUNDS + 1), iter(messages)
    ahead = to_json(Click("ahead", "nowhere", NEWEST_MS, 7, 1, 0))
    worker = loop.worker()
    for _ in range(ROUNDS):
        before = len(loop.poll())
        loop.send([*islice(rest, chunk)])
        loop.send_by(EventClock(wall_ms() - 60_000, START_MS, 1.0), ahead)
        loop.ready(worker)
        until(lambda before=before: len(loop.poll()) > before, "samples come")  # type: ignore[misc]
        time.sleep(rng.random() * 0.5)  # not to wait for something: the moment of the kill is what varies
        loop.gone(worker)
        worker = loop.worker()
        for is_killed in (True, False):
            second = loop.worker()
            until(lambda s=second: loop.figure(s, "millrace_window_keys") > 0, "the second took state over")  # type: ignore[misc]
            share(loop, worker, second, [*islice(rest, chunk)])
            if is_killed:
                loop.gone(second)
            else:
                assert stop(second, PATIENCE) == 0
    loop.send([*rest])
    expected = answer(loop)
    loop.done(expected)
    assert Counter(loop.dead_letters().values())["future"] == ROUNDS * PARTITIONS
    flush(loop)
    loop.filled(expected)
    assert stop(worker, PATIENCE) == 0
    flush(loop)
    worker = loop.worker()
    loop.filled(expected)
    assert stop(worker, PATIENCE) == 0


def last_line(worker: Worker, loop: Loop) -> str:
    """What a worker says that ends by itself, with status 1 and without a traceback."""
    until(lambda: worker.poll() is not None, "the worker ended")
    assert worker.returncode == 1, loop.logs()
    assert "Traceback" not in loop.logs()
    return loop.logs().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("service", "busy"), [("broker", False), ("broker", True), ("store", False)])
def test_a_service_that_stays_away_is_one_line(loops: Loops, service: str, busy: bool) -> None:
    # Long enough that a busy machine is not taken for an outage before there is one.
    loop = loops(outage_seconds=8.0)
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


_SLOW = """
import threading
from aiokafka.consumer.group_coordinator import GroupCoordinator
from millrace.contracts.settings import load_settings
from stream.partition.partition_checkpoint import CheckpointStore
from stream.worker.faustio import StreamApp
from stream.worker.stream_worker import run

beats = threading.Semaphore(0)
ask, load, init = GroupCoordinator._do_heartbeat, CheckpointStore.load, StreamApp.__init__

async def beat(self):
    answered = await ask(self)
    if answered:
        beats.release()
    return answered

def slow(self, *args, **kwargs):
    for _ in range(10):
        beats.acquire()
    return load(self, *args, **kwargs)

def impatient(self, *args):
    init(self, *args)
    self.conf.broker_request_timeout = 1.5

GroupCoordinator._do_heartbeat, CheckpointStore.load, StreamApp.__init__ = beat, slow, impatient
run(load_settings(), threading.Event())
"""


@pytest.mark.slow
def test_heart_beats_go_on_while_states_are_read(loops: Loops) -> None:
    """Each state takes ten heart-beats, of which six are a session, and both together longer than Faust waits."""
    loop = loops(session_timeout_ms=1000)
    worker = loop.worker("-c", _SLOW)
    loop.send(story(20, seed=3))
    loop.ready(worker)
    loop.done(answer(loop))
    assert loop.figure(worker, "millrace_partitions_resumed_total") == PARTITIONS
    assert loop.figure(worker, "millrace_partitions_awaited") == 0


def keep(loop: Loop, *taken: InputMessage, now_ms: int) -> None:
    """Writes the checkpoint of a partition 0 that has taken messages by ``now_ms``."""
    partition, fresh = (Partition(0, SCHEMA, Policy.of(loop.settings)) for _ in range(2))
    partition.take(taken, now_ms)
    CheckpointStore(loop.settings.place("checkpoints")).load(fresh).line.write([], partition.snapshot())


@pytest.mark.slow
def test_a_new_broker_is_read_from_its_beginning_with_the_state_of_the_old(loops: Loops) -> None:
    """The broker is new, the checkpoints are old: offsets begin again, a line says so, and pages that wait go on."""
    loop = loops()
    user = next(filter(lambda u: home(u) == 0, count()))
    seen = to_json(Exposure("before", "before", START_MS - HOUR_MS, user, [7]))
    keep(loop, InputMessage("events", 499, seen), now_ms=NEWEST_MS)
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


def test_a_checkpoint_ahead_of_the_event_clock_is_one_line(loops: Loops) -> None:
    """History was played at a lapse, and the data folder is used again in real time."""
    loop, ahead_ms = loops(), NEWEST_MS + 9 * HOUR_MS
    keep(loop, InputMessage("events", 0, to_json(Exposure("e", "r", ahead_ms, 7, [1]))), now_ms=ahead_ms)
    line = last_line(loop.worker(), loop)
    assert line.startswith("millrace: partition 0 has taken events up to 2023-11-16 07:13 UTC, ")
    assert re.search(r"ahead of the event clock \(2023-11-15 22:\d\d UTC\)", line)  # which goes on while it starts
    assert "MILLRACE_CLOCK" in line


@pytest.mark.slow
def test_users_in_a_partition_that_is_not_theirs_are_reported_at_once(loops: Loops) -> None:
    """Events come from a producer that takes the CRC-32 of the key, as librdkafka does by default. What it happens to
    place rightly is taken."""
    loop, moved, messages = loops(**STEADY), 0, list[Sent]()
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


def test_a_deleted_user_is_deleted_as_the_guest_too(loops: Loops) -> None:
    """The guest may be in another partition: the stream sends the deletion there."""
    loop, user = loops(**STEADY), 7
    guests = [next(n for n in range(100, 200) if home(n) == where) for where in range(PARTITIONS)]
    people = [User(user, {"kind": "x"}, [*guests]), User(99, {}), *(User(guest, {}) for guest in guests)]
    loop.send([("users", home(int(one.user_id)), to_json(one)) for one in people])
    worker = loop.worker()
    there = {str(one.user_id) for one in people}
    until(lambda: loop.redis_profiles().keys() == there, "all are known")
    loop.producer.send(loop.settings.topic("users"), None, key=key_of(user), partition=home(user))
    loop.producer.flush()
    until(lambda: loop.hashes().keys() == {"99"}, "the user and what the user was as a guest are gone")
    for guest in guests:  # linked and deleted before anything is published of either
        loop.send([("users", home(guest), to_json(User(guest, {})))])
    until(lambda: len(loop.redis_profiles()) == 1 + len(guests), "the guests are known again")
    loop.send([("users", home(user), to_json(User(user, {}, [*guests])))])
    loop.producer.send(loop.settings.topic("users"), None, key=key_of(user), partition=home(user))
    loop.producer.flush()
    until(lambda: loop.hashes().keys() == {"99"}, "what the user was as a guest is gone")
    assert stop(worker, PATIENCE) == 0


@pytest.mark.slow
def test_a_silent_partition_follows_the_event_clock_and_its_labels_stay_after_a_crash(loops: Loops) -> None:
    """Nothing comes after the exposure, and its negative still does: a worker moves a silent partition on, gives
    negatives, and dies before its next checkpoint. A click that was on its way meanwhile must find its negative given:
    a correction, not a second label."""
    clock = EventClock(wall_ms(), START_MS + 2 * HOUR_MS)
    loop = loops(idle_seconds=0.3, checkpoint_seconds=3.0, clock=clock.encode())
    page = [m for m in story(3, seed=4) if b"r0" in m[2]]
    click = next(m for m in page if b'"click"' in m[2])
    loop.send([m for m in page if m[0] == "page_logs" or b'"exposure"' in m[2]])
    first = loop.worker()
    until(lambda: len(loop.poll()) == 4, "the page's four negatives")
    loop.gone(first)
    loop.send([click])
    second = loop.worker()
    until(lambda: any(kind == CORRECTION for _, _, kind, _ in loop.poll()), "the click's correction")
    assert {kind for _, _, kind, _ in loop.samples} == {NEGATIVE, CORRECTION}
    assert stop(second, PATIENCE) == 0


def test_page_logs_are_read_again_by_their_offsets(loops: Loops) -> None:
    """Near ones and far ones, in one reading; one whose time is over and one that the log does not reach are told."""
    loop, raws = loops(), [b"%d" % k for k in range(1000)]
    loop.send([("page_logs", 1, raw) for raw in raws])
    with closing(PageLogReader(loop.settings)) as recaller:
        wanted = [999, 3, 4, 4, 7, 640, 641, 1000, 5000]
        expected = {at: raws[at] if at < len(raws) else None for at in wanted}
        assert recaller.read(1, wanted) == expected
        assert recaller.read(0, [0]) == {0: None}
        with closing(KafkaAdminClient(bootstrap_servers=loop.settings.brokers)) as admin:
            admin.delete_records({TopicPartition("page_logs", 1): 600})
        assert recaller.read(1, [3, 640, 999]) == {3: None, 640: raws[640], 999: raws[999]}
        assert all(ids_of_inputs(loop.settings).values())
        assert ends_of(loop.settings, ["page_logs", "events"], 1) == {"page_logs": 1000, "events": 0}


def test_page_logs_that_cannot_be_read_are_distinguished_from_those_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **options: Any) -> None:
        raise KafkaConnectionError

    monkeypatch.setattr("stream.worker.rereader.make_consumer", away)
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
