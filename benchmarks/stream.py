# shell
"""The stream's core: exposures a second, keys, memory; and a worker on Kafka, with a broker and a Redis of its own.

One traffic for all (:mod:`benchmarks.tools.traffic`). ``core`` takes 10,000 pages of a day, some five hundred an hour,
on top of a week that has been counted already: an empty store would make counting and reading look cheaper than they
are. For each exposure it does all that the loop does: decode exposures, page logs and clicks, join them, count under
four keys, write the sample with its features, pack what changed for the readers; and, as replay does, in chunks of its
size, read the point-in-time counts of all windows of all keys. ``core_cpu`` is the same in processor time: two commits
are compared by it in turns. The best of a few passes counts. ``core_outcomes`` is the join in processor time where a
purchase within 30 days of a click is an outcome, with its files written and read and all outcomes told; its ratio is
to the same without outcomes, pass by pass in turn. Each worker of ``kafka_worker`` has a partition
before pages are sent; it is of the pages that wait when all are on Kafka, from 10% to 90% of them.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.parts.pagestages import ORDER
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.traffic import CORE_HOURS, HISTORY_DAYS, HOUR, ITEMS, PAGE, T0, USERS, Stream, history, make
from millrace.basics.hashing import column_hash
from millrace.basics.store import Store
from millrace.contracts.clock import EventClock
from millrace.contracts.events import key_of
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.processes.wall import wall_ms
from millrace.windows.tiles import TileStore
from stream.join.join import InputMessage
from stream.partition.partition import Partition, Policy
from stream.worker.outcome_files import OutcomeFiles
from stream.worker.stream_warmup import calm_collector
from stream.worker.turn import PUBLISH_SECONDS

CHUNK = 8_192  # rows at a time in which replay reads the windows
TAKE = 500  # messages at a time, as the worker does
PATIENCE_S = 180.0  # for a worker to take all pages


class Size(NamedTuple):
    """How much is measured. What a figure's name says, such as a million keys, is of the default size."""

    pages: int = 10_000
    passes: int = 3
    keys: int = 1_000_000
    events: int = 10_000_000  # of a month
    worker_pages: int = 8000
    rounds: int = 3


SHORT = Size(pages=100, passes=1, keys=5_000, events=30_000, worker_pages=400, rounds=1)


def chunks(ts_ms: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of some ``CHUNK`` rows that keep rows of one time stamp together."""
    start = 0
    while start < len(ts_ms):
        stop = min(start + CHUNK, len(ts_ms))
        stop = int(np.searchsorted(ts_ms, ts_ms[stop - 1], "right"))
        yield slice(start, stop)
        start = stop


def take_all(partition: Partition, messages: Sequence[InputMessage], files: OutcomeFiles) -> int:
    """Everything the worker does but for input and output; returns the samples made. Changes are packed when the
    worker would, every ``PUBLISH_SECONDS`` by the clock, and at the end, when all outcomes are told, too."""
    made, every = 0, PUBLISH_SECONDS
    published = time.perf_counter()
    for start in range(0, len(messages), TAKE):
        output = partition.take(messages[start : start + TAKE], 1 << 60)
        made += 0 if output.samples is None else len(output.samples)
        list(files.do(0, output.files))
        if time.perf_counter() - published >= every:
            partition.changes()
            published = time.perf_counter()
    partition.changes()
    output = partition.advance(partition.newest_ms + (24 + 31 * 24 * bool(partition.schema.outcome)) * HOUR)
    list(files.do(0, output.files))
    return made + (0 if output.samples is None else len(output.samples))


def core(say: Say, size: Size) -> list[Figure]:
    """Exposures a second of the core, as in the module's text."""
    schema, policy = shop_schema(), Policy.of(Settings())
    ordering = replace(schema, outcome=(ORDER,))
    stream, ordered = (make(own, size.pages, USERS, ITEMS, CORE_HOURS, seed=1) for own in (schema, ordering))
    per_week = int(stream.exposures * 24 / CORE_HOURS) * HISTORY_DAYS
    week = TileStore.of(schema.windows)
    week.add(*history(schema, per_week, USERS, ITEMS, seed=9))
    week.sweep(T0, 0.0, 1.0)  # as a partition that lived through it has: it never meets a whole week at once
    lived = week.snapshot()

    def one(own: Schema, stream: Stream) -> tuple[float, float, float, float]:
        partition, reader = Partition(0, own, policy), TileStore.of(schema.windows)
        partition.windows.resume(lived)
        reader.resume(lived)
        partition.windows.export(partition.windows.keys(), settle=True)  # the week has been published
        with tempfile.TemporaryDirectory(prefix="millrace-outcomes-") as folder:
            files = OutcomeFiles(Store(folder), own, {})
            started, cpu = time.perf_counter(), time.process_time()
            made = take_all(partition, stream.messages, files)
            joined, joined_cpu = time.perf_counter(), time.process_time()
        for part in chunks(stream.ts_ms) if own is schema else ():
            reader.run(stream.keys[part], stream.ts_ms[part], stream.action[part])
        ended, ended_cpu = time.perf_counter(), time.process_time()
        assert made >= stream.exposures
        assert partition.pending == 0
        return joined - started, ended - joined, ended_cpu - cpu, joined_cpu - cpu

    one(schema, stream)  # compiles
    one(ordering, ordered)
    calm_collector()  # as the worker does; it also sets the messages aside, which are the benchmark's, not the core's
    best, best_cpu, pairs = (float("inf"), float("inf")), float("inf"), list[tuple[float, float]]()
    for turn in range(size.passes):
        say(f"core, pass {turn + 1} of {size.passes}")
        for _ in range(2):
            gc.collect()
            joined, read, cpu, joined_cpu = one(schema, stream)
            best, best_cpu = min(best, (joined, read), key=sum), min(best_cpu, cpu)
            gc.collect()
            pairs.append((joined_cpu, one(ordering, ordered)[3]))
    gc.unfreeze()
    n, unit, ratio = stream.exposures, "exposures/s of CPU time", median(plain / ours for plain, ours in pairs)
    return [
        figure("core", n / sum(best), "exposures/s"),
        figure("core_cpu", n / best_cpu, unit),
        figure("core_join", n / best[0], "exposures/s"),
        figure("core_windows", len(stream.ts_ms) / best[1], "rows/s"),
        figure("core_outcomes", n / min(ours for _, ours in pairs), unit, "without outcomes", ratio),
    ]


def bytes_per_key(say: Say, size: Size) -> list[Figure]:
    """Everything allocated over active keys, after 30 days: a million keys by popularity, each with one event at the
    least."""
    say("bytes a key")
    store = TileStore.of(shop_schema().windows)
    keys, rng = column_hash(np.arange(size.keys)), np.random.default_rng(4)
    for day in range(30):
        n, some = size.events // 30, keys[day::30]
        times = T0 + day * 24 * HOUR + np.sort(rng.integers(0, 24 * HOUR, n))
        store.add(keys[(len(keys) * rng.random(n) ** 3).astype(np.int64)], times, rng.integers(0, 5, n).astype("u1"))
        store.add(some, np.full(len(some), times[-1]), np.zeros(len(some), np.uint8))
        store.expire(int(times[-1]))
    return [figure("bytes_per_key", store.nbytes / len(store), "bytes")]


def worker(say: Say, pages: int, rounds: int) -> list[Figure]:
    """``kafka_worker``, and ``kafka_workers_2`` in a group that shares users: medians of exposures/s, in turns.
    Raises ServiceError where one did not start, or pages were not taken in time."""
    stream = make(shop_schema(), pages, USERS, ITEMS, CORE_HOURS, seed=1)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, found in rates.items():
            with tempfile.TemporaryDirectory(prefix="millrace-worker-") as folder:
                found.append(_rate(Path(folder), stream, pages, workers))
            say(f"{workers} on Kafka: {found[-1]:,.0f} exposures/s")
    one, two = (float(np.median(found)) for found in rates.values())
    return [
        figure("kafka_worker", one, "exposures/s"),
        figure("kafka_workers_2", two, "exposures/s", "one worker", two / one),
    ]


def _rate(folder: Path, stream: Stream, pages: int, workers: int) -> float:
    with ExitStack() as opened:
        broker = opened.enter_context(EmbeddedBroker(folder / "broker"))
        store = opened.enter_context(EmbeddedRedis(folder / "redis"))
        settings = Settings(
            kafka=broker.address,
            redis=store.address,
            data=str(folder / "data"),
            partitions=workers,
            clock=EventClock(wall_ms(), T0 + round(CORE_HOURS * HOUR)).encode(),
        )
        create_topics(settings)
        roles = [_role(replace(settings, metrics_port=free_port()), folder) for _ in range(workers)]
        for role in roles:
            opened.enter_context(role)
        deadline = time.monotonic() + PATIENCE_S
        while any(_held(role, workers) != 1 for role in roles):
            roles[0].pause(deadline, f"{workers} workers did not share {workers} partitions")
        seen = [(time.monotonic(), 0.0)]
        with closing(make_producer(settings)) as producer:
            for message, user in zip(stream.messages, stream.users, strict=True):
                producer.send(message.topic, message.raw, key_of(user))
            producer.flush()
        seen.append((time.monotonic(), sum(map(_pages_done, roles))))
        if seen[-1][1] < pages:  # what was taken while they were sent does not count, unless that was all
            del seen[0]
        while seen[-1][1] < pages:
            roles[0].pause(deadline, f"the workers took {seen[-1][1]:.0f} of {pages} pages")
            seen.append((time.monotonic(), sum(map(_pages_done, roles))))
        times, marks = zip(*seen, strict=True)
        took = np.interp([marks[0] + share * (pages - marks[0]) for share in (0.1, 0.9)], marks, times)
        return float(0.8 * (pages - marks[0]) * PAGE / (took[1] - took[0]))


def _role(settings: Settings, folder: Path) -> RunningRole:
    (own := folder / str(settings.metrics_port)).mkdir()
    return RunningRole("stream", settings, settings.metrics_port or 0, own, "/metrics")


def _pages_done(of: RunningRole) -> float:
    return of.metrics().total("millrace_events_total", type="exposure")


def _held(of: RunningRole, partitions: int) -> int:
    """How many partitions a worker has."""
    found = of.metrics()
    return sum(found.gauge("millrace_pending_exposures", partition=str(p)) is not None for p in range(partitions))


def run(out: Path, say: Say, size: Size) -> Iterator[Figure]:
    """All figures of the core, then that of a worker on Kafka; each part's when it is done."""
    for part in (core, bytes_per_key):
        yield from part(say, size)
    yield from worker(say, size.worker_pages, size.rounds)
