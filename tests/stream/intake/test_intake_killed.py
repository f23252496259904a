"""What the intake has acknowledged is there, whatever is killed: intake, broker and stream, at random moments.

::

    clients ── POST, the same again until there is an answer ──► intake ──► broker ──► stream ──► samples, counts
       │                                                           ✗          ✗          ✗
       └── every event they were told of: in the topic at least once, in the stream's account exactly once
"""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import pytest

from benchmarks.tools.bench_running import RunningRole
from millrace.contracts.events import decode_dead_letter, key_of
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, EVENTS, PAGE_LOGS, SAMPLES
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker, free_port, spawn, stop
from stream.join.join import Policy
from stream.partition.partition import Partition
from stream.partition.partition_checkpoint import CheckpointStore
from tests.scenes.demo_kafka import ApacheKafka, own_redis
from tests.scenes.stream_world import SCHEMA, TEXT, keys_of, page_log
from tests.scenes.topic_records import records
from tests.scenes.waiting import LONG, PATIENCE, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]

PARTITIONS, USERS, ITEMS, CLIENTS = 2, 12, 4, 3
PAGES, PAUSE = 300, 0.05
KILLS = (("intake",), ("broker",), ("stream",), ("broker", "intake"))
"""What is killed together: an intake with messages that no broker takes has acknowledged none of them."""
MOST_STARTS = 5
"""Starts of the stream that may meet no broker."""


class Broker(Protocol):
    @property
    def address(self) -> str: ...

    def start(self) -> Any: ...

    def kill(self) -> None: ...


class Embedded(EmbeddedBroker):
    """Comes back on its port, with what its folder holds."""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


@contextmanager
def embedded(folder: Path) -> Iterator[Broker]:
    with Embedded(folder, free_port()) as broker:
        yield broker


class Stream:
    """``millrace run stream``."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._log, self._saved = settings, folder / "stream.log", folder / "checkpoints"
        self._before = self._again = 0
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, **self._settings.environment()}
        self._before = self._checkpoints()
        self._child = spawn([sys.executable, "-m", "millrace", "run", "stream"], environment, self._log)

    def has_worked(self) -> bool:
        """Whether it has written a checkpoint since it was started."""
        self.check()
        return self._checkpoints() > self._before

    def _checkpoints(self) -> int:
        """The number of the newest in any partition."""
        return max((int(path.name.split("-")[1]) for path in self._saved.rglob("p*-*-*.*")), default=0)

    def check(self) -> None:
        """That nothing but a kill has ended it. One that finds no broker while it starts ends with one line, and is
        started again, as a supervisor does."""
        assert self._child is not None
        if self._child.poll() is not None:
            said = self._log.read_text()[-2000:]
            assert "start Kafka there" in said.splitlines()[-1], said
            assert self._again < MOST_STARTS, said
            self._again += 1
            self.start()

    def kill(self) -> None:
        until(self.has_worked, "the stream has done something to be killed in")
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    def end(self) -> None:
        if self._child is not None:
            assert stop(self._child, PATIENCE) == 0, self._log.read_text()[-2000:]


class Page:
    """A page, its exposure and a click on it, as one user's client sends them."""

    def __init__(self, number: int) -> None:
        self.request, self.user = f"page-{number}", number % USERS
        self.items = [(number + k) % 50 for k in range(ITEMS)]
        self.clicked = number % ITEMS

    def bodies(self) -> Iterator[list[dict[str, Any]]]:
        """Two requests: the exposure; the click, and the exposure once more."""
        now_ms = time.time_ns() // 1_000_000
        own = {"request_id": self.request, "user_id": self.user}
        seen = own | {"type": "exposure", "event_id": f"{self.request}-seen", "ts_ms": now_ms, "items": self.items}
        place = {"item_id": self.items[self.clicked], "position": self.clicked}
        click = own | {"type": "click", "event_id": f"{self.request}-click", "ts_ms": now_ms + 1} | place
        yield [seen]
        yield [click, seen]


class Clients:
    """Send pages, each of them one after another; what has no answer is sent again until it has one."""

    def __init__(self, port: int) -> None:
        self._port, self._lock, self._ended = port, threading.Lock(), threading.Event()
        self._numbers = iter(range(PAGES))
        self.acknowledged: set[str] = set()
        self.pages: list[Page] = []
        self.asked = self.unknown = 0
        self.odd: list[Any] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    @property
    def done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def until_kept(self, count: int) -> None:
        """Waits until they were told of so many events."""
        until(lambda: self.done or len(self.acknowledged) >= count, f"{count} events are kept")

    def until_all_have_asked(self) -> None:
        """Waits until each of them has begun a request from now on, and was answered or waits."""
        before = self.asked
        until(lambda: self.done or self.asked >= before + 2 * CLIENTS, "all clients have asked")

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                number = next(self._numbers, None)
                if number is None:
                    return
                page = Page(number)
                self.pages.append(page)
            for body in page.bodies():
                self._send(body)

    def _send(self, events: list[dict[str, Any]]) -> None:
        body, after = msgspec.json.encode(events), 0.05
        while not self._ended.wait(PAUSE):
            self.asked += 1
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
                try:
                    connection.request("POST", "/events", body)
                    answer = connection.getresponse()
                    status, reported = answer.status, msgspec.json.decode(answer.read())
                finally:
                    connection.close()
            except (OSError, http.client.HTTPException):  # killed before it answered: nobody knows
                self.unknown += 1
                self._ended.wait(after)
                continue
            if status == 200:
                with self._lock:
                    self.acknowledged |= {event["event_id"] for event in events}
                    self.odd += [verdict for verdict in reported["verdicts"] if verdict["status"] == "refused"]
                return
            if status not in (429, 503):
                self.odd.append((status, reported))
                return
            self._ended.wait(after)


@pytest.mark.parametrize(
    "kind", [pytest.param(embedded, id="embedded"), pytest.param(ApacheKafka, id="kafka", marks=pytest.mark.kafka)]
)
@pytest.mark.slow
def test_what_was_acknowledged_is_there_once(
    tmp_path: Path, kind: Callable[[Path], AbstractContextManager[Broker]]
) -> None:
    schema = tmp_path / "schema.toml"
    schema.write_text(TEXT)
    draw = random.Random(7)
    with kind(tmp_path / "broker") as broker, own_redis(tmp_path / "redis") as redis:
        settings = Settings(
            kafka=broker.address, redis=redis, data=str(tmp_path), schema=str(schema), partitions=PARTITIONS,
            intake_port=free_port(), metrics_port=0, intake_seconds=2.0, session_timeout_ms=2000,
            label_policy="wait", attribution_minutes=0.05, disorder_seconds=1.0, idle_seconds=1.0,
            checkpoint_seconds=0.3, outage_seconds=PATIENCE, patience_seconds=PATIENCE,
        )  # fmt: skip
        assert settings.load_schema().id == SCHEMA.id
        create_topics(settings)
        serve(settings)
        stream, intake = Stream(settings, tmp_path), RunningRole("intake", settings, settings.intake_port, tmp_path)
        stream.start()
        with intake, Clients(settings.intake_port) as clients:
            roles: dict[str, Any] = {"intake": intake, "broker": broker, "stream": stream}
            until(stream.has_worked, "events have come through")
            for victims in draw.sample(KILLS, len(KILLS)):
                clients.until_kept(len(clients.acknowledged) + draw.randrange(60))
                for victim in victims:
                    roles[victim].kill()
                    if victim != victims[-1]:
                        clients.until_all_have_asked()
                for victim in victims:
                    roles[victim].start()
            until(lambda: clients.done, "every page was sent")
            assert intake.end() == 0, intake.log_path.read_text()[-2000:]
        assert clients.odd == []
        assert clients.unknown > 0, "no kill came between a question and its answer"
        expected = {f"{page.request}-{what}" for page in clients.pages for what in ("seen", "click")}
        assert (len(clients.pages), clients.acknowledged) == (PAGES, expected)

        def labelled() -> bool:
            stream.check()
            return account(settings)[0].keys() == exposed(clients)

        until(labelled, "every exposure has its label", every=0.5)
        stream.end()
        found = Counter(msgspec.json.decode(value)["event_id"] for value in values(settings, EVENTS))
        assert found.keys() == expected
        labels, clicks = account(settings)
        assert {len(kinds) for kinds in labels.values()} == {1}, "one label each"
        assert clicks == {(page.request, page.clicked) for page in clients.pages}
        assert not [decode_dead_letter(value) for value in values(settings, DEAD_LETTERS)]
        assert counted(settings, clients.pages) == (PAGES * ITEMS, PAGES)


def serve(settings: Settings) -> None:
    """Logs all pages, as the scorer would have."""
    now_ms = time.time_ns() // 1_000_000
    producer = make_producer(settings)
    for page in map(Page, range(PAGES)):
        logged = page_log(page.request, now_ms, page.items, page.user)
        producer.send(PAGE_LOGS, logged, key_of(page.user))
    producer.flush()
    producer.close()


def values(settings: Settings, topic: str) -> list[bytes]:
    return [record.value for record in records(settings, topic)]


def exposed(clients: Clients) -> set[tuple[str, int]]:
    return {(page.request, place) for page in clients.pages for place in range(ITEMS)}


def account(settings: Settings) -> tuple[dict[tuple[str, int], set[int]], set[tuple[str, int]]]:
    """From the samples: the label that each exposure was given, and which were clicked. The same sample may be there
    again after a crash."""
    labels: dict[tuple[str, int], set[int]] = {}
    clicks: set[tuple[str, int]] = set()
    for raw in values(settings, SAMPLES):
        batch = SampleBatch.from_bytes(raw)
        for place, kind in zip(batch.ids(), batch.kind.tolist(), strict=True):
            if kind in (NEGATIVE, POSITIVE):
                labels.setdefault(place, set()).add(kind)
            if kind in (POSITIVE, CORRECTION):
                clicks.add(place)
    return labels, clicks


def counted(settings: Settings, pages: list[Page]) -> tuple[int, int]:
    """Exposures and clicks that the windows of users and items hold, from the stream's checkpoints."""
    store, policy = CheckpointStore(settings.place("checkpoints")), Policy.of(settings)
    pairs = {(page.user, item) for page in pages for item in page.items}
    keys = np.concatenate([keys_of(user, [item])[:, 1] for user, item in sorted(pairs)])
    later_ms = time.time_ns() // 1_000_000 + 3_600_000
    total = np.zeros(2, np.int64)
    for number in range(PARTITIONS):
        partition = store.load(Partition(number, SCHEMA, policy, PARTITIONS, settles=True)).partition
        total += partition.windows.counts(keys, later_ms)[:, 0, :2].sum(0).astype(np.int64)
    return int(total[0]), int(total[1])
