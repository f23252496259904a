# shell
"""Whether a broker ages: a message there and back, memory, disk and processor time while a partition fills.

::

    producer ──► partition with N batches ──► consumer that waits at its end        N = 0, 20,000, 40,000, 100,000
        └──────────────── there and back ─────────────┘

Each batch holds one record, which is the worst case: brokers pay by the batch. Clients are kafka-python's, as the roles
have them, so the times are those of the whole way and not the broker's alone. ``python -m benchmarks.broker``
prints the figures of the embedded broker.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS
from millrace.processes.kafka import create_topics, make_producer, make_reader, wait_for_broker
from millrace.processes.memory import measured_bytes
from millrace.processes.services import EmbeddedBroker

STEPS = (0, 20_000, 40_000, 100_000)
TRIPS = 300
RECORD_BYTES = 300
IDLE_CONSUMERS = 10
IDLE_SECONDS = 5.0

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, system calls included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_SECONDS


def folder_mib(folder: Path) -> float:
    """Bytes of all files in a folder, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


class _Trips:
    """A consumer that waits at a partition's end, and a producer; :meth:`run` sends messages there and back."""

    def __init__(self, settings: Settings) -> None:
        self._producer = make_producer(settings, linger_ms=0, batch_size=1)
        self._consumer = make_reader(settings, EVENTS)
        self._place = TopicPartition(settings.topic(EVENTS), 0)
        self._consumer.seek_to_end(self._place)
        self._consumer.position(self._place)
        self._came = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._ended:
            if self._consumer.poll(timeout_ms=100):
                self._came.set()

    def fill(self, count: int, draw: random.Random) -> None:
        """Appends ``count`` batches."""
        for _ in range(count):
            self._producer.send(EVENTS, draw.randbytes(RECORD_BYTES), partition=0)
        self._producer.flush()
        self.run(20, draw)  # the consumer has caught up

    def run(self, trips: int, draw: random.Random) -> np.ndarray:
        """Milliseconds of each trip."""
        took = []
        for _ in range(trips):
            self._came.clear()
            started = time.perf_counter()
            self._producer.send(EVENTS, draw.randbytes(RECORD_BYTES), partition=0)
            self._came.wait(60)
            took.append((time.perf_counter() - started) * 1000)
            self._producer.flush()
        return np.array(took)

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        self._consumer.close()
        self._producer.close()


def ages(
    address: str, pid: int, folder: Path, steps: Sequence[int] = STEPS, trips: int = TRIPS, seed: int = 0
) -> list[dict[str, float]]:
    """The figures of a broker, one row for each number of batches.

    Args:
        address: its ``host:port``. It has no topics yet.
        pid: its process.
        folder: where it keeps its files.
        steps: numbers of batches in the partition, rising.

    Returns:
        Rows of ``batches``; ``there_and_back_ms`` and ``there_and_back_p99_ms``; ``resident_mib``; ``disk_mib``;
        ``fill_batches_a_second``; ``fill_cpu_us`` of the broker a batch while the partition was filled, the waiting
        consumer's fetches included; ``trip_cpu_us`` of the broker a trip: one append, and one fetch or a few.
    """
    settings = Settings(kafka=address, partitions=1)
    wait_for_broker(settings)
    create_topics(settings)
    draw = random.Random(seed)
    rows: list[dict[str, float]] = []
    lines = _Trips(settings)
    try:
        lines.run(20, draw)
        there = 0
        for step in steps:
            cpu, started = cpu_seconds(pid), time.perf_counter()
            if step > there:
                lines.fill(step - there, draw)
            added, there = max(step - there, 1), step
            fill_cpu, filled = cpu_seconds(pid) - cpu, time.perf_counter() - started
            cpu = cpu_seconds(pid)
            took = lines.run(trips, draw)
            rows.append(
                {
                    "batches": step,
                    "there_and_back_ms": round(float(np.median(took)), 2),
                    "there_and_back_p99_ms": round(float(np.percentile(took, 99)), 2),
                    "resident_mib": round(measured_bytes(pid) / 2**20, 1),
                    "disk_mib": round(folder_mib(folder), 1),
                    "fill_batches_a_second": round(added / filled) if step else 0,
                    "fill_cpu_us": round(fill_cpu / added * 1e6) if step else 0,
                    "trip_cpu_us": round((cpu_seconds(pid) - cpu) / trips * 1e6),
                }
            )
    finally:
        lines.close()
    return rows


def idle_share(address: str, pid: int, consumers: int = IDLE_CONSUMERS, seconds: float = IDLE_SECONDS) -> float:
    """The share of a core that a broker uses while consumers wait at the end of a topic, with waits of 50 ms."""
    settings = Settings(kafka=address, partitions=1)
    waiting: list[KafkaConsumer] = [make_reader(settings, EVENTS) for _ in range(consumers)]
    ended = threading.Event()

    def listen(consumer: Any) -> None:
        while not ended.is_set():
            consumer.poll(timeout_ms=100)

    for consumer in waiting:
        consumer.seek_to_end()
    threads = [threading.Thread(target=listen, args=(consumer,)) for consumer in waiting]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    cpu, started = cpu_seconds(pid), time.perf_counter()
    time.sleep(seconds)
    share = (cpu_seconds(pid) - cpu) / (time.perf_counter() - started)
    ended.set()
    for thread, consumer in zip(threads, waiting, strict=True):
        thread.join()
        consumer.close()
    return round(share, 3)


def embedded(folder: Path, steps: Sequence[int] = STEPS, trips: int = TRIPS) -> dict[str, Any]:
    """The figures of the embedded broker on a fresh folder.

    Returns:
        ``ages`` (see :func:`ages`), ``idle_share`` (see :func:`idle_share`), and ``restart_seconds``: from the start of
        the process on the folder with all of these batches until it answers.
    """
    with EmbeddedBroker(folder) as broker:
        assert broker.pid is not None
        rows = ages(broker.address, broker.pid, broker.folder, steps, trips)
        idle = idle_share(broker.address, broker.pid)
    started = time.perf_counter()
    with EmbeddedBroker(folder):
        restart = time.perf_counter() - started
    return {"ages": rows, "idle_share": idle, "restart_seconds": round(restart, 2)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        json.dump(embedded(Path(place)), sys.stdout, indent=1)
        print()
