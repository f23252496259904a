# shell
"""What carries the loop over restarts: bytes, seconds, memory.

- Tables of five million rows, snapshots beside learning, memory, loading: :mod:`~benchmarks.parts.bench_tables`.
- A scorer from the start of its process (``millrace run serve``) to the first ``/readyz`` of status 200::

    store     a snapshot of 5,000,000 rows in parts                            (benchmarks/tools/modelwire.py)
              the item index: 100,000 items and their window keys              written by the first scorer
    broker    items          the catalogue
              features.items counts, then those of 1,000 keys a second for a minute
              model.deltas   one delta a second for a minute, behind the snapshot

  The first scorer has no index in the store, and reads the catalogue and all counts. It writes the index and ends. What
  came "since then" is put on the topics, and scorers are started one after the other.
- A stream of 5,000,000 keys that is killed ten times, each time when it has taken what had come, beside eight busy
  loops. ``stream_resumes_again`` counts partitions whose state was read more than once in a life of the process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.parts import bench_tables
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import PATIENCE_S, RunningRole
from benchmarks.tools.modelwire import made_loop
from benchmarks.tools.traffic import CORE_HOURS, HISTORY_DAYS, HOUR, ITEMS, T0, USERS, make
from millrace.basics.hashing import column_hash, kafka_partition
from millrace.basics.store import Store
from millrace.connections.redis_clients import redis_client
from millrace.contracts.clock import EventClock
from millrace.contracts.events import decode_event, key_of
from millrace.contracts.online_layout import FILLED, filled_key
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import PAGE_LOGS
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.processes.spawn import stop
from millrace.processes.wall import wall_ms
from stream.join.join import InputMessage
from stream.partition.journal import Journal
from stream.partition.partition import Partition, Policy
from stream.partition.partition_checkpoint import CheckpointStore

SINCE, ROWS_SINCE = 60, 2000


class Size(NamedTuple):
    """How much is measured."""

    rows: int = 5_000_000
    items: int = 100_000
    users: int = 1000
    starts: int = 5
    snapshot_s: float = 20.0
    keys: int = 5_000_000
    kills: int = 10
    pages: int = 200  # between two kills
    journal_pages: int = 20_000  # that the journals of the first start hold: half of what is replayed at most


SHORT = Size(20_000, 50, 30, 1, 1.0, 40_000, 1, 10, 100)


def run(out: Path, say: Say, size: Size) -> Iterator[Figure]:
    """All figures, each part's when it is done."""
    yield figure("snapshot_holds_up_ms", bench_tables.snapshot_holds_up(size.rows, size.snapshot_s), "ms")
    for name, value in bench_tables.memory(size.rows).items():
        yield figure(name, value, "s" if name.endswith("seconds") else "bytes/byte")
    yield from scorer_restart(out, size, say)
    yield from stream_restart(size, say)


def scorer_restart(out: Path, size: Size, say: Say) -> list[Figure]:
    """Seconds from the start of the process to ready: the median of some, and the first scorer's, without an index in
    the store. Raises ServiceError where a scorer ended, or was not ready within ten minutes."""
    with made_loop(out, size.items, size.users, size.rows, ROWS_SINCE, say) as made:
        settings = made.settings
        index = Store(settings.place("index"), writes=False)
        # The first writes the index as soon as it is ready; later ones find it young.
        first_settings = msgspec.structs.replace(settings, index_seconds=2.0)
        with RunningRole("serve", first_settings, settings.port, out, "/readyz") as scorer:
            first = scorer.start_seconds
            while not any(name.count("-") == 2 for name in index.names()):
                time.sleep(0.1)
        say(f"without an index in the store: ready after {first:.1f} s")
        for _ in range(SINCE):
            made.shop.publish_changes()
            made.model.delta()
        made.producer.flush()
        ready = []
        for n in range(size.starts):
            with RunningRole("serve", settings, settings.port, out, "/readyz") as scorer:
                ready.append(scorer.start_seconds)
            say(f"start {n + 1}: ready after {ready[-1]:.2f} s")
        return [
            figure("scorer_restart_seconds", sorted(ready)[len(ready) // 2], "s"),
            figure("scorer_restart_without_index_seconds", first, "s"),
        ]


BUSY_LOOPS = 8  # beside the stream, the broker and Redis


def stream_restart(size: Size, say: Say) -> list[Figure]:
    """Seconds from the start of the process until all that came has been taken: the median and the longest; and how
    often a partition's state was read again, over all starts. Raises ServiceError where that takes ten minutes."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory(prefix="millrace-restart-")))
        broker = opened.enter_context(EmbeddedBroker(folder / "broker"))
        redis = opened.enter_context(EmbeddedRedis(folder / "redis"))
        settings = Settings(
            kafka=broker.address,
            redis=redis.address,
            data=str(folder / "data"),
            clock=EventClock(wall_ms(), T0 + round(CORE_HOURS * HOUR)).encode(),
            metrics_port=free_port(),
        )
        create_topics(settings)
        producer = opened.enter_context(closing(make_producer(settings)))
        pages = size.pages * (size.kills + 1)
        made = make(shop_schema(), size.journal_pages + pages, USERS, ITEMS, CORE_HOURS, seed=1).messages
        before = len(made) * size.journal_pages // (size.journal_pages + pages)
        taken = _send(settings, producer, made[:before])
        for number in range(settings.partitions):  # Redis lives on, and holds their users
            redis_client(settings.redis).set(settings.key(filled_key(number)), FILLED)
            _counted(settings, number, size.keys // settings.partitions, taken[number])
        parts = [part.tolist() for part in np.array_split(np.arange(before, len(made)), size.kills + 1)]
        for _ in range(BUSY_LOOPS):
            opened.callback(stop, subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        took, again = list[float](), 0.0
        for n, part in enumerate(parts):
            again += _life(settings, folder, [made[i] for i in part], producer, took)
            say(
                f"start {n + 1} of a stream with {size.keys:,} keys: {took[-1]:.1f} s, {again:.0f} resumed again so far"
            )
    return [
        figure("stream_restart_seconds", median(took), "s"),
        figure("stream_restart_longest_seconds", max(took), "s"),
        figure("stream_resumes_again", again, "partitions"),
    ]


def _send(settings: Settings, producer: Any, messages: Sequence[InputMessage]) -> list[list[InputMessage]]:
    """Sends messages to their users' partitions; returns them by partition, as they are read there first."""
    of: list[list[InputMessage]] = [[] for _ in range(settings.partitions)]
    ends: Counter[tuple[str, int]] = Counter()
    for message in messages:
        about = decode_page_log(message.raw) if message.topic == PAGE_LOGS else decode_event(message.raw)
        number = kafka_partition(key_of(about.user_id), settings.partitions)
        producer.send(message.topic, message.raw, partition=number)
        of[number].append(message._replace(offset=ends[message.topic, number]))
        ends[message.topic, number] += 1
    producer.flush()
    return of


def _counted(settings: Settings, number: int, keys: int, taken: Sequence[InputMessage]) -> None:
    """Writes the checkpoints of a partition: ``keys`` keys, half of them of users, four each; then what was taken."""
    partition, fresh = (
        Partition(number, shop_schema(), Policy.of(settings), settings.partitions, settles=True) for _ in range(2)
    )
    rng, at = np.random.default_rng(number), np.sort(column_hash(np.arange(keys) + (number << 32)))
    for day in range(HISTORY_DAYS):  # each key with an event at the least
        some = np.r_[at[day::HISTORY_DAYS], rng.choice(at, keys // HISTORY_DAYS)]
        from_ms = T0 + (day - HISTORY_DAYS) * 24 * HOUR
        times = np.sort(rng.integers(from_ms, from_ms + 24 * HOUR, len(some)))
        partition.windows.add(some, times, rng.integers(0, 2, len(some)).astype(np.uint8))
    users = keys // 8
    partition.counters.log.owners.resume(
        (range(users), np.repeat(np.arange(users, dtype=np.int32), 4), at[: 4 * users])
    )
    partition.windows.export(partition.windows.keys(), settle=True)
    line = CheckpointStore(settings.place("checkpoints")).load(fresh).line
    line.write([], partition.snapshot())
    partition.journal = Journal()
    partition.take(taken, 1 << 60)
    line.write(partition.journal.cut()[0], None, dict(partition.offsets))


def _life(
    settings: Settings, folder: Path, messages: Sequence[InputMessage], producer: Any, took: list[float]
) -> float:
    """Sends ``messages``, starts a worker, waits until it has taken them, and kills it."""
    _send(settings, producer, messages)
    worker, began = RunningRole("stream", settings, settings.metrics_port or 0, folder, "/metrics"), time.monotonic()
    worker.start()
    try:
        due = sum(message.topic != PAGE_LOGS for message in messages)
        while (role := worker.metrics()).total("millrace_events_total") < due:
            worker.pause(began + PATIENCE_S, "the stream has not begun")
    finally:
        worker.kill()
    took.append(time.monotonic() - began)
    return role.total("millrace_partitions_resumed_total") - settings.partitions
