# shell
"""A stream worker against a peer (:mod:`benchmarks.faust_tables`) in turns, each with its own broker.

A turn's figure is exposures/s between 10% and 90% of its pages, so that neither start nor end counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.faust_tables import PAGE, PARTITIONS, START_MS, STEP_MS, pages
from benchmarks.runner import Figure, Say, figure
from millrace.basics.errors import ServiceError
from millrace.contracts.clock import EventClock
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
    seen = [(time.monotonic(), 0.0)]  # the last look at which there was nothing, then each that found more
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.1)
        done = pages_done(port)
        if done > seen[-1][1]:
            seen.append((time.monotonic(), done))
        elif len(seen) == 1:
            seen = [(time.monotonic(), 0.0)]
        if done >= count:
            times, marks = zip(*seen, strict=True)
            took = float(np.interp(0.9 * count, marks, times) - np.interp(0.1 * count, marks, times))
            return 0.8 * count * PAGE / took
    raise ServiceError(f"a contestant took {seen[-1:]} of {count} pages", "see contestant.log in the out folder")


def pages_done(port: int) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            text = response.read().decode()
    except OSError:
        return 0.0
    line = next((x for x in text.splitlines() if x.startswith('millrace_events_total{type="exposure"}')), " 0")
    return float(line.rsplit(" ", 1)[1])


def run(out: Path, say: Say, ours: int = OURS, peer: int = PEER, rounds: int = ROUNDS) -> list[Figure]:
    """``kafka_worker``: the median of exposures/s of one stream worker, its ratio to ``faust_tables`` measured in turns
    with it. ``turns.json`` in the folder has each turn as soon as it ends.

    Args:
        ours: pages of the worker.
        peer: pages of its peer.

    Raises:
        ServiceError: broker, Redis or a contestant did not start, or a contestant did not take all its pages in time.
    """
    rates: dict[str, list[float]] = {"kafka_worker": [], "faust_tables": []}
    for number in range(rounds):
        for name, argv, count in (
            ("kafka_worker", ["-m", "commands", "run", "stream"], ours),
            ("faust_tables", ["-m", "benchmarks.faust_tables"], peer),
        ):
            rate = exposures_a_second(out / str(number) / name, argv, count, impressions=name == "kafka_worker")
            rates[name].append(rate)
            (out / "turns.json").write_text(json.dumps(rates) + "\n", encoding="utf-8")
            say(f"{name}: {rate:,.0f} exposures/s")
    value, other = (median(found) for found in rates.values())
    return [figure("kafka_worker", value, "exposures/s", "faust_tables", value / other)]
