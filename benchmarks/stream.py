# shell
"""The stream's core: exposures a second, against the per-event reference implementation; keys, memory, checkpoints.

One stream for all: the simulated shop's schema (its four window keys, six windows, five actions), pages of 20 for
4,000 users a day out of 5,000 items of 60 categories, a tenth of the exposures clicked, some of those bought; users and
items are drawn by popularity. ``core`` takes 10,000 pages of such a day, some five hundred an hour, as the default
shop has, on top of a week that has been counted already: an empty store would make counting and reading look cheaper
than they are, a month of the same pages would meet keys that nobody has touched for days. It does for each
exposure everything that the loop does: decode page, impression and clicks, join them, count exposure and clicks under
four keys, write the sample with its features, pack what changed for the readers; and, as replay does, in chunks of
its size, read the point-in-time counts of all windows of all keys. The reference does the same in plain Python, event
by event, on a tenth of the pages, users, items and history: the same density. ``core_cpu`` is the same passes in
processor time, for machines that are shared. They alternate, each from a fresh start; the best of a few passes counts.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import contest
from benchmarks.reference import ReferencePartition
from benchmarks.runner import Figure, Say, figure
from millrace.basics.hashing import column_hash, combine
from millrace.contracts.events import Click, Exposure, Impression, Purchase, to_json
from millrace.contracts.impressions import decode_impression, impression_bytes
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import IMPRESSIONS
from millrace.windows.tiles import TileStore
from stream.join.join import Message
from stream.partition.checkpoint import CheckpointStore
from stream.partition.partition import Partition, Policy
from stream.worker.warm import calm_collector

PAGE = 20
PAGES = 10_000
CORE_HOURS = 21.0
USERS, ITEMS, PER_CATEGORY = 4_000, 5_000, 84
HISTORY_DAYS = 7
CHUNK = 8_192  # rows at a time in which replay reads the windows
REFERENCE_EVERY = 10  # the reference gets every tenth page and a tenth of users and items: the same density
TAKE = 500  # messages at a time, as the worker does
OFTEN = 5  # ``core_published_often`` packs changes every so many takes, some fifteen times as often as the worker would
T0 = 20_000 * 86_400_000
HOUR = 3_600_000

Columns = tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8]]


class Size(NamedTuple):
    """How much is measured. What a figure's name says, such as a million keys, is of the default size."""

    pages: int = PAGES
    passes: int = 3
    keys: int = 1_000_000  # many; a hundredth are few
    events: int = 10_000_000  # of a month
    tile_events: int = 200_000
    ours: int = contest.OURS  # pages of the worker on Kafka
    peer: int = contest.PEER
    rounds: int = contest.ROUNDS


@dataclass
class Stream:
    """Messages in order of arrival, and the same exposures and actions as columns for :meth:`TileStore.run`."""

    messages: list[Message]
    exposures: int
    keys: NDArray[np.uint64]  # (n, K)
    ts_ms: NDArray[np.int64]
    action: NDArray[np.uint8]


def make(
    schema: Schema,
    pages: int,
    users: int,
    items: int,
    hours: float,
    seed: int,
    start_ms: int = T0,
    first: int = 0,
    offsets: Mapping[str, int] | None = None,
) -> Stream:
    """A stream over ``hours`` of event time; users and items are drawn by popularity.

    Requests are numbered from ``first``, messages from ``offsets`` (by topic) on.
    """
    rng = np.random.default_rng(seed)
    layout = schema.layout
    of_user = column_hash(np.arange(users))
    categories = -(-items // PER_CATEGORY)
    of_item, of_category = column_hash(np.arange(items)), column_hash(np.arange(categories))
    salts = [layout.key_salt(name) for name in layout.key_names]
    starts = np.sort(start_ms + (rng.random(pages) * hours * HOUR).astype(np.int64))
    events: list[tuple[int, int, str, bytes]] = []
    rows: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8]]] = []
    order = 0
    for i, t in enumerate(starts.tolist()):
        request, user = f"request-{first + i:09d}", int(users * rng.random() ** 2)
        shown = (items * rng.random(PAGE) ** 2).astype(np.int64)
        u, it, cat = of_user[user : user + 1], of_item[shown], of_category[shown % categories]
        keys = np.column_stack(
            [
                np.broadcast_to(combine(salts[0], u), PAGE),
                combine(salts[1], cat),
                combine(salts[2], it),
                combine(salts[3], u, cat),
            ]
        )
        served = Impression(
            request, t - 200, user, "model", 1, schema.id, shown.tolist(),
            rng.random(PAGE).astype("<f4").tobytes(), keys.astype("<u8").tobytes(),
            rng.integers(1, 1 << 62, (PAGE, layout.F)).astype("<i8").tobytes(),
            rng.random((PAGE, layout.N)).astype("<f4").tobytes(),
        )  # fmt: skip
        events.append((t - 200, order, "impressions", impression_bytes(served)))
        events.append((t, order + 1, "events", to_json(Exposure(f"e{i}", request, t, user, shown.tolist(), 0, t))))
        rows.append((keys, np.full(PAGE, t), np.zeros(PAGE, np.uint8)))
        order += 2
        for p in np.flatnonzero(rng.random(PAGE) < 0.1).tolist():
            at = t + int(rng.lognormal(10, 1))
            item = int(shown[p])
            events.append((at, order, "events", to_json(Click(f"c{i}-{p}", request, at, user, item, p, at))))
            rows.append((keys[p : p + 1], np.array([at]), np.ones(1, np.uint8)))
            order += 1
            if rng.random() < 0.1:
                at += 60_000
                events.append((at, order, "events", to_json(Purchase(f"p{i}-{p}", request, at, user, item, p, at))))
                rows.append((keys[p : p + 1], np.array([at]), np.full(1, 4, np.uint8)))
                order += 1
    events.sort(key=lambda e: e[:2])
    offsets = {"impressions": 0, "events": 0} | dict(offsets or {})
    messages = []
    for _, _, topic, raw in events:
        messages.append(Message(topic, offsets[topic], raw))
        offsets[topic] += 1
    k, ts, a = (np.concatenate(c) for c in zip(*rows, strict=True))
    by_time = np.argsort(ts, kind="stable")
    return Stream(messages, pages * PAGE, k[by_time], ts[by_time], a[by_time])


def history(
    schema: Schema, exposures: int, users: int, items: int, seed: int, days: int = HISTORY_DAYS, end_ms: int = T0
) -> Columns:
    """``days`` before ``end_ms`` as columns, keys drawn as :func:`make` draws them: keys (n, K), times, actions."""
    rng = np.random.default_rng(seed)
    salts = [schema.layout.key_salt(name) for name in schema.layout.key_names]
    user = np.repeat(column_hash((users * rng.random(exposures // PAGE) ** 2).astype(np.int64)), PAGE)
    shown = (items * rng.random(len(user)) ** 2).astype(np.int64)
    category = column_hash(shown % -(-items // PER_CATEGORY))
    keys = np.column_stack(
        [
            combine(salts[0], user),
            combine(salts[1], category),
            combine(salts[2], column_hash(shown)),
            combine(salts[3], user, category),
        ]
    )
    start = end_ms - days * 24 * HOUR
    ts_ms = np.repeat(np.sort(rng.integers(start, end_ms, len(user) // PAGE)), PAGE)
    clicked = np.flatnonzero(rng.random(len(user)) < 0.1)
    rows = np.concatenate([np.arange(len(user)), clicked])
    action = np.repeat(np.array([0, 1], np.uint8), [len(user), len(clicked)])
    order = np.argsort(ts_ms[rows], kind="stable")
    return keys[rows][order], ts_ms[rows][order], action[order]


def chunks(ts_ms: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of some ``CHUNK`` rows that keep rows of one time stamp together."""
    start = 0
    while start < len(ts_ms):
        stop = min(start + CHUNK, len(ts_ms))
        stop = int(np.searchsorted(ts_ms, ts_ms[stop - 1], "right"))
        yield slice(start, stop)
        start = stop


def take_all(partition: Partition, messages: Sequence[Message], often: int | None = None) -> int:
    """Everything the worker does but for input and output; returns the samples made.

    Changes are packed when the worker would, every ``publish_seconds`` by the clock, and at the end; or, with
    ``often``, every so many takes.
    """
    made, every = 0, Settings().publish_seconds
    published = time.perf_counter()
    for turn, start in enumerate(range(0, len(messages), TAKE)):
        output = partition.take(messages[start : start + TAKE], 1 << 60)
        made += 0 if output.samples is None else len(output.samples)
        if turn % often == often - 1 if often else time.perf_counter() - published >= every:
            partition.changes()
            published = time.perf_counter()
    partition.changes()
    output = partition.advance(partition.newest_ms + 24 * HOUR)
    return made + (0 if output.samples is None else len(output.samples))


def core(say: Say, size: Size) -> list[Figure]:
    schema, policy = shop_schema(), Policy.of(Settings())
    stream = make(schema, size.pages, USERS, ITEMS, CORE_HOURS, seed=1)
    per_week = int(stream.exposures * 24 / CORE_HOURS) * HISTORY_DAYS
    past = history(schema, per_week, USERS, ITEMS, seed=9)
    small = (USERS // REFERENCE_EVERY, ITEMS // REFERENCE_EVERY)
    few = make(schema, size.pages // REFERENCE_EVERY, *small, CORE_HOURS, seed=1)
    few_past = history(schema, per_week // REFERENCE_EVERY, *small, seed=9)
    week = TileStore(schema.windows.days, len(schema.windows.actions))
    week.add(*past)
    week.sweep(T0, 0.0, 1.0)  # as a partition that lived through it has: it never meets a whole week at once
    lived = week.snapshot()

    def fast(often: int | None = None) -> tuple[float, float, float]:
        partition, reader = Partition(0, schema, policy), TileStore.of(schema.windows)
        partition._tiles.resume(lived)
        reader.resume(lived)
        partition._tiles.export(partition._tiles.keys(), settle=True)  # the week has been published
        started, cpu = time.perf_counter(), time.process_time()
        made = take_all(partition, stream.messages, often)
        joined = time.perf_counter()
        for part in chunks(stream.ts_ms):
            reader.run(stream.keys[part], stream.ts_ms[part], stream.action[part])
        ended, cpu = time.perf_counter(), time.process_time() - cpu
        assert made >= stream.exposures
        assert partition.pending == 0
        return joined - started, ended - joined, cpu

    def slow() -> float:
        """The reference on fewer pages: it is linear in them. Reading windows as replay does is part of it too."""
        reference = ReferencePartition(schema, policy)
        for keys, ts, action in zip(*(c.tolist() for c in few_past), strict=True):
            for key in keys:
                tile = reference.windows.setdefault(key, {}).setdefault(ts // HOUR, [0] * len(schema.windows.actions))
                tile[action] += 1
        started = time.perf_counter()
        reference.take(few.messages, 1 << 60)
        reference.advance(reference.newest_ms + 24 * HOUR)
        for keys, ts in zip(few.keys.tolist(), few.ts_ms.tolist(), strict=True):
            for key in keys:
                reference.window(key, ts)
        return time.perf_counter() - started

    fast()  # compiles
    calm_collector()  # as the worker does; it also sets the messages aside, which are the benchmark's, not the core's
    best, best_cpu, best_slow, best_often = (float("inf"), float("inf")), float("inf"), float("inf"), float("inf")
    for turn in range(size.passes):
        say(f"core and reference, pass {turn + 1} of {size.passes}")
        for _ in range(2):
            gc.collect()
            joined, read, cpu = fast()
            best, best_cpu = min(best, (joined, read), key=sum), min(best_cpu, cpu)
        gc.collect()
        best_often = min(best_often, sum(fast(OFTEN)[:2]))
        gc.collect()
        best_slow = min(best_slow, slow())
    gc.unfreeze()
    n = stream.exposures
    rate, slow_rate = n / sum(best), few.exposures / best_slow
    return [
        figure("core", rate, "exposures/s", "reference", rate / slow_rate),
        figure("core_published_often", n / best_often, "exposures/s"),
        figure("core_cpu", n / best_cpu, "exposures/s of CPU time"),
        figure("reference", slow_rate, "exposures/s"),
        figure("core_join", n / best[0], "exposures/s"),
        figure("core_windows", len(stream.ts_ms) / best[1], "rows/s"),
    ]


def key_scaling(say: Say, size: Size) -> list[Figure]:
    """The same pages through two partitions, whose keys are drawn from 10 thousand and from a million, alternating.

    Without publishing: what that costs depends on how many different keys changed, not on how many there are. Two hours
    with one sweep; there is one in six.
    """
    schema, policy = shop_schema(), Policy.of(Settings())
    windows = schema.windows
    stream = make(schema, size.pages * 3 // 10, 2_000, 5_000, 2, seed=2, start_ms=T0 + 3 * 24 * HOUR)
    rng = np.random.default_rng(3)
    cases = {}
    for count in (size.keys // 100, size.keys):
        pool = column_hash(np.arange(count))
        store = TileStore(windows.days, len(windows.actions))
        for hour in (0, 24, 48, 71, 72, 73, 74):  # every key has the tiles that the pages will count in
            store.add(pool, np.full(count, T0 + hour * HOUR), np.zeros(count, np.uint8))
        store.sweep(T0 + 74 * HOUR, 0.0, 1.0)  # a partition that begins sweeps once: it finds nothing left to do
        messages = []
        for m in stream.messages:
            raw = m.raw
            if m.topic == IMPRESSIONS:
                served = decode_impression(raw)
                keys = pool[rng.integers(0, count, (len(served.items), schema.layout.K))]
                raw = impression_bytes(msgspec.structs.replace(served, keys=keys.astype("<u8").tobytes()))
            messages.append(m._replace(raw=raw))
        cases[count] = (store.snapshot(), messages)
    best = dict.fromkeys(cases, float("inf"))
    for turn in range(2 * size.passes):
        say(f"keys, pass {turn + 1} of {2 * size.passes}")
        for count, (tiles, messages) in cases.items():
            partition = Partition(0, schema, policy)
            partition._tiles.resume(tiles)
            partition._tiles.add(np.ones(1, np.uint64), np.array([T0 + 72 * HOUR]), np.zeros(1, np.uint8))  # makes room
            gc.collect()
            started = time.perf_counter()
            for start in range(0, len(messages), TAKE):
                partition.take(messages[start : start + TAKE], 1 << 60)
            best[count] = min(best[count], time.perf_counter() - started)
    few, many = (best[count] / stream.exposures * 1e6 for count in cases)
    return [figure("key_scaling", many / few, "time/time", "10 thousand keys", many / few)]


def tile_scaling(say: Say, size: Size) -> list[Figure]:
    """CPU time of :meth:`TileStore.add` an event, at a million keys over that at 10 thousand: hashing, look-up, tile
    creation, merging and growth included, publishing not.

    The same number of events in both, in batches of 2,000 rows of four keys as the join hands them over, at the same
    rate of events *a key*: a hundredth of the keys gets them over a hundred times the event time. Otherwise few keys
    would count in tiles that are there and many would begin one at nearly every event: two kinds of work.
    ``popular`` draws keys by popularity (the cube of a uniform number), as shops do, ``uniform`` is the hard case: only
    what belongs to 10 thousand keys fits into the processor's caches.
    """
    windows = shop_schema().windows
    n, width, batch = size.tile_events, 4, 2_000
    out = []
    for name, power in (("popular", 3), ("uniform", 1)):
        times: dict[int, list[float]] = {size.keys // 100: [], size.keys: []}
        for turn in range(size.passes):
            say(f"tiles of {name} keys, pass {turn + 1} of {size.passes}")
            for count, hours in ((size.keys // 100, 200), (size.keys, 2)):
                rng = np.random.default_rng(11)
                pool = column_hash(np.arange(count))
                store = TileStore(windows.days, len(windows.actions))
                for day in range(2):
                    store.add(pool, np.full(count, T0 - day * 24 * HOUR), np.zeros(count, np.uint8))
                keys = pool[(count * rng.random((n, width)) ** power).astype(np.int64)]
                ts = T0 + HOUR + np.sort(rng.integers(0, hours * HOUR, n))
                action = rng.integers(0, 2, n)
                gc.collect()
                started = time.process_time()
                for start in range(0, n, batch):
                    part = slice(start, start + batch)
                    store.add(keys[part], ts[part], action[part])
                times[count].append((time.process_time() - started) / n / width * 1e9)
        few, many = (float(np.median(t)) for t in times.values())
        out.append(figure(f"tile_scaling_{name}", many / few, "time/time", "10 thousand keys", many / few))
        out.append(figure(f"tile_ns_{name}", many, "ns of CPU a key and event at a million keys"))
    return out


def month(keys: NDArray[np.uint64], events: int, seed: int) -> TileStore:
    """A store with 30 days of events; each key has one at least, the rest fall by popularity."""
    windows = shop_schema().windows
    store = TileStore(windows.days, len(windows.actions))
    rng = np.random.default_rng(seed)
    for day in range(30):
        n = events // 30
        drawn = keys[(len(keys) * rng.random(n) ** 3).astype(np.int64)]
        times = T0 + day * 24 * HOUR + np.sort(rng.integers(0, 24 * HOUR, n))
        store.add(drawn, times, rng.integers(0, 5, n).astype(np.uint8))
        store.add(keys[day::30], np.full(len(keys[day::30]), times[-1]), np.zeros(len(keys[day::30]), np.uint8))
        store.expire(int(times[-1]))
    return store


def bytes_per_key(say: Say, size: Size) -> list[Figure]:
    """Everything allocated over active keys: a million by popularity; keys with an event in each hour of 30 days."""
    say("bytes a key")
    store = month(column_hash(np.arange(size.keys)), size.events, seed=4)
    usual = store.nbytes / len(store)
    windows = shop_schema().windows
    full = TileStore(windows.days, len(windows.actions))
    keys = column_hash(np.arange(size.keys // 50))
    for hour in range(30 * 24):
        full.add(keys, np.full(len(keys), T0 + hour * HOUR), np.zeros(len(keys), np.uint8))
    return [
        figure("bytes_per_key", usual, "bytes", "1 KiB", usual / 1024),
        figure("bytes_per_busiest_key", full.nbytes / len(full), "bytes", "1 KiB", full.nbytes / len(full) / 1024),
    ]


def checkpoints(say: Say, size: Size) -> list[Figure]:
    """A partition with a million keys and an hour of pages: freeze (holds the loop up), write in a thread, recover.

    These are whole states. What a checkpoint costs between two of them: :mod:`benchmarks.checkpoints`."""
    schema, policy = shop_schema(), Policy.of(Settings())
    partition = Partition(0, schema, policy)
    pages = make(schema, size.pages // 5, 20_000, 50_000, 0.4, seed=5, start_ms=T0 + 30 * 24 * HOUR)
    partition._tiles = month(column_hash(np.arange(size.keys)), size.events, seed=6)
    partition.take(pages.messages, 1 << 60)
    frozen_s = write_s = read_s = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(folder)
        line = store.load(Partition(0, schema, policy)).line
        for turn in range(size.passes):
            say(f"checkpoint, pass {turn + 1} of {size.passes}")
            started = time.perf_counter()
            frozen = partition.snapshot()
            frozen_s = min(frozen_s, time.perf_counter() - started)
            thread = threading.Thread(target=line.write, args=([], frozen))
            thread.start()
            thread.join()
            write_s = min(write_s, time.perf_counter() - started)
            started = time.perf_counter()
            again = store.load(Partition(0, schema, policy)).partition
            read_s = min(read_s, time.perf_counter() - started)
        assert again.window_keys == partition.window_keys
        base_bytes = line.base_bytes
    return [
        figure("checkpoint_seconds", write_s, "s", "2 s", write_s / 2),
        figure("checkpoint_holds_up_seconds", frozen_s, "s"),
        figure("recovery_seconds", read_s, "s", "5 s", read_s / 5),
        figure("checkpoint_bytes", base_bytes, "bytes"),
    ]


def run(out_dir: Path, progress: Say = print, size: Size | None = None) -> Iterator[Figure]:
    """All figures of the core, then those of a worker on Kafka; each part's when it is done."""
    size = size or Size()
    for part in (core, key_scaling, tile_scaling, bytes_per_key, checkpoints):
        yield from part(progress, size)
    yield from contest.run(out_dir / "kafka_worker", progress, size.ours, size.peer, size.rounds)
