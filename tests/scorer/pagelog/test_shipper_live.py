"""Logs of pages from the ring to the topic of a real broker, whatever is killed meanwhile."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from millrace.contracts.events import key_of
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics
from millrace.processes.services import EmbeddedBroker, free_port
from scorer.pagelog.ring import RingReader, RingWriter
from scorer.pagelog.shipper import Shipper, open_spool
from tests.architecture import ROOT
from tests.scenes.page_logs import SCHEMA, Losses, made
from tests.scenes.topic_records import records
from tests.scenes.waiting import LONG, PATIENCE, until

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(LONG),
    # kafka-python leaves sockets of refused connections to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread of a test outlives it, but the one that starts processes, and no garbage is left to the next test."""
    before = {*threading.enumerate()}

    def left() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t not in before and t.name != "spawn"]

    yield
    until(lambda: not left(), "all threads end", more=lambda: str(left()))
    gc.collect()


def requests_at(settings: Settings) -> Counter[str]:
    found = [(record.key, decode_page_log(record.value)) for record in records(settings, "page_logs")]
    assert all(key == key_of(page_log.user_id) for key, page_log in found)
    return Counter(page_log.request_id for _, page_log in found)


def kill(broker: EmbeddedBroker) -> None:
    assert broker.process is not None
    broker.process.kill()
    broker.process.wait()


def test_a_broker_that_is_killed_costs_no_page_and_an_end_without_one_keeps_them_for_the_next_start(
    tmp_path: Path,
) -> None:
    """Pages are taken on while it is away, and it has all of them when it is back."""
    port, lost, numbers = free_port(), Losses(), count()

    def log(pages: int) -> None:
        for number in islice(numbers, pages):
            assert writers[number % 2].put(made(number))

    with EmbeddedBroker(tmp_path / "broker", port) as broker:
        settings = Settings(kafka=broker.address, data=str(tmp_path))
        create_topics(settings)
        spool = open_spool(settings, lost)
        shipper = Shipper(settings, SCHEMA, spool, lost)
        rings = [np.zeros(8 << 20, np.uint8) for _ in range(2)]
        writers = [RingWriter(memory, shipper.bell) for memory in rings]
        for memory in rings:
            shipper.add(RingReader(memory))
        shipper.start()
        log(20)
        until(lambda: spool.held_bytes > 0 and spool.empty, "the first pages are delivered")
        kill(broker)
        before = spool.held_bytes
        log(40)
        until(lambda: spool.held_bytes > before, "pages are taken on")
        assert not spool.empty
    with EmbeddedBroker(tmp_path / "broker", port) as broker:
        until(lambda: spool.empty, "the rest is delivered")
        assert set(requests_at(settings)) == {f"r{i}" for i in range(60)}
        kill(broker)
        log(30)
        shipper.end(0.2)
    spool = open_spool(settings, lost)
    left = []
    while (entry := spool.next()) is not None:
        left.append(decode_page_log(entry.value).request_id)
    assert len(left) == 30
    for n in range(2):  # each ring's in order
        assert [name for name in left if int(name[1:]) % 2 == n] == [f"r{i}" for i in range(60 + n, 90, 2)]
    spool.close()
    assert not lost.pages


SCORER = """
import sys, threading
import numpy as np
from millrace.contracts.settings import load_settings
from scorer.pagelog.ring import RingReader, RingWriter
from scorer.pagelog.shipper import Shipper, open_spool
from tests.scenes.page_logs import SCHEMA, made
settings, lost = load_settings(), print
spool = open_spool(settings, lost)
shipper = Shipper(settings, SCHEMA, spool, lost)
memory = np.zeros(8 << 20, np.uint8)
writer = RingWriter(memory, shipper.bell)
shipper.add(RingReader(memory))
shipper.start()
print("started", flush=True)
sys.stdin.readline()
for number in range(30):
    assert writer.put(made(number))
while memory[:8].view(np.uint64) != memory[128:136].view(np.uint64):
    pass  # the ring is not empty
print("drained", flush=True)
threading.Event().wait()
"""


@pytest.mark.slow
def test_what_a_killed_scorer_had_drained_is_delivered_by_the_next(tmp_path: Path) -> None:
    port, lost = free_port(), Losses()
    with EmbeddedBroker(tmp_path / "broker", port) as broker:
        settings = Settings(kafka=broker.address, data=str(tmp_path))
        create_topics(settings)
        environment = {**os.environ, **settings.environment()}
        command = [sys.executable, "-c", SCORER]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "started\n"
            kill(broker)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "drained\n"
            child.send_signal(signal.SIGKILL)
            child.wait(PATIENCE)
    with EmbeddedBroker(tmp_path / "broker", port):
        spool = open_spool(settings, lost)
        shipper = Shipper(settings, SCHEMA, spool, lost)
        shipper.start()
        until(lambda: spool.empty, "what it left is delivered")
        shipper.end()
        assert set(requests_at(settings)) == {f"r{i}" for i in range(30)}
    assert not lost.pages
