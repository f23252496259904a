# shell
"""The contest behind ``millrace bench faust_tables``: a stream worker and its peer in turns, each with its own broker.

Prints one line a turn: the contestant's name and its exposures/s, taken between 10% and 90% of its pages, so that
neither start nor end counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

from millrace.bench.faust_tables import PAGE, PARTITIONS, START_MS, STEP_MS, pages
from millrace.contracts.clock import EventClock
from millrace.contracts.errors import MillraceError, ServiceError
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import EVENTS, IMPRESSIONS
from millrace.processes.kafka import create_topics, make_producer, wait_for_broker
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port, spawn, stop
from millrace.processes.wall import wall_ms

OURS, PEER = 8000, 1200  # pages each: about as many seconds
ROUNDS = 3


def preload(settings: Settings, count: int, impressions: bool) -> None:
    producer = make_producer(settings)
    for partition, impression, seen, click in pages(count):
        if impressions:
            producer.send(IMPRESSIONS, impression, partition=partition)
        producer.send(EVENTS, seen, partition=partition)
        if click:
            producer.send(EVENTS, click, partition=partition)
    producer.flush()
    producer.close()


def exposures_a_second(
    folder: Path, argv: list[str], count: int, impressions: bool, patience_s: float = 180.0
) -> float:
    """Runs one contestant over ``count`` preloaded pages and returns its rate."""
    with EmbeddedBroker(folder) as broker, EmbeddedRedis(folder) as store:
        settings = load_settings(
            {
                "kafka": broker.address,
                "redis": store.address,
                "data": str(folder / "data"),
                "partitions": PARTITIONS,
                "clock": EventClock(wall_ms(), START_MS + count * STEP_MS).encode(),
                "metrics_port": free_port(),
            },
            environ={},
        )
        wait_for_broker(settings)
        create_topics(settings)
        preload(settings, count, impressions)
        log = folder / "contestant.log"
        child = spawn([sys.executable, *argv], {**os.environ, **settings.environment()}, log)
        try:
            return watch(child, settings.metrics_port or 0, count, patience_s)
        finally:
            stop(child)


def watch(child: subprocess.Popen[bytes], port: int, count: int, patience_s: float) -> float:
    """Exposures a second between 10% and 90% of ``count`` pages, from the child's own counter."""
    seen: list[tuple[float, float]] = []
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.1)
        done = pages_done(port)
        if done and (not seen or done > seen[-1][1]):
            seen.append((time.monotonic(), done))
        if done >= count:
            times, marks = zip(*seen, strict=True)
            first, last = max(0.1 * count, marks[0]), max(0.9 * count, marks[0])
            took = float(np.interp(last, marks, times) - np.interp(first, marks, times))
            if took > 0:
                return float((last - first) * PAGE / took)
            break
    raise ServiceError(f"a contestant took {seen[-1:]} of {count} pages", "see contestant.log in the out folder")


def pages_done(port: int) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            text = response.read().decode()
    except OSError:
        return 0.0
    line = next((x for x in text.splitlines() if x.startswith('millrace_events_total{type="exposure"}')), " 0")
    return float(line.rsplit(" ", 1)[1])


def main(out: Path, rounds: int = ROUNDS) -> None:
    for number in range(rounds):
        folder = out / str(number)
        ours = exposures_a_second(folder / "ours", ["-m", "millrace", "stream"], OURS, True)
        print("kafka_worker", ours, flush=True)
        peer = exposures_a_second(folder / "peer", ["-m", "millrace.bench.faust_tables"], PEER, False)
        print("faust_tables", peer, flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except MillraceError as error:
        sys.exit(f"millrace: {error}")
