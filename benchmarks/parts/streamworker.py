# shell
"""A stream worker on Kafka: exposures a second of ``millrace run stream``, with a broker and a Redis of its own.

The pages are there before it starts. The figure is of what it takes between 10% and 90% of them, so that neither start
nor end counts.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.traffic import CORE_HOURS, HOUR, ITEMS, PAGE, T0, USERS, Stream, make
from commands.loop.monitor import RoleMetrics, fetch
from millrace.basics.errors import ServiceError
from millrace.contracts.clock import EventClock
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.processes.spawn import tail
from millrace.processes.wall import wall_ms

PATIENCE_S = 180.0


def worker(say: Say, pages: int, rounds: int) -> list[Figure]:
    """``kafka_worker``: the median of exposures/s over the rounds. Raises ServiceError where broker, Redis or worker
    did not start, or it did not take all pages in time."""
    stream = make(shop_schema(), pages, USERS, ITEMS, CORE_HOURS, seed=1)
    rates = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="millrace-worker-") as folder:
            rates.append(_rate(Path(folder), stream, pages))
        say(f"kafka_worker: {rates[-1]:,.0f} exposures/s")
    return [figure("kafka_worker", float(np.median(rates)), "exposures/s")]


def _rate(folder: Path, stream: Stream, pages: int) -> float:
    with EmbeddedBroker(folder / "broker") as broker, EmbeddedRedis(folder / "redis") as store:
        settings = Settings(
            kafka=broker.address,
            redis=store.address,
            data=str(folder / "data"),
            partitions=1,
            clock=EventClock(wall_ms(), T0 + round(CORE_HOURS * HOUR)).encode(),
            metrics_port=free_port(),
        )
        create_topics(settings)
        with closing(make_producer(settings)) as producer:
            for message in stream.messages:
                producer.send(message.topic, message.raw, partition=0)
            producer.flush()
        with RunningRole("stream", settings, settings.metrics_port or 0, folder, "/metrics") as role:
            # The last look at which there was nothing, then each that found more.
            seen, deadline = [(time.monotonic(), 0.0)], time.monotonic() + PATIENCE_S
            while seen[-1][1] < pages:
                if time.monotonic() > deadline:
                    what = f"the worker took {seen[-1][1]:.0f} of {pages} pages ({tail(role.log_path)})"
                    raise ServiceError(what, f"see {role.log_path}")
                time.sleep(0.1)
                done = _pages_done(settings.metrics_port or 0)
                if done > seen[-1][1]:
                    seen.append((time.monotonic(), done))
                elif len(seen) == 1:
                    seen = [(time.monotonic(), 0.0)]
            times, marks = zip(*seen, strict=True)
            took = float(np.interp(0.9 * pages, marks, times) - np.interp(0.1 * pages, marks, times))
            return 0.8 * pages * PAGE / took


def _pages_done(port: int) -> float:
    role = RoleMetrics()
    with suppress(OSError):
        role.update(fetch(f"http://127.0.0.1:{port}/metrics", 5.0))
    return role.total("millrace_events_total", type="exposure")
