# shell
"""What checkpoints cost: bytes written over bytes that came, bytes of a settled page, seconds of the longest replay.

::

    pool of the shop's real pages ──► stamped anew, with clicks ──► one partition, as a worker drives it
                                                                       │ every checkpoint_seconds
                                                                       ▼
                                                             journals and bases: their bytes

The pages are the simulated shop's, ranked and logged by the scorer (:mod:`benchmarks.wireshop`), some hundred
different ones. They come again under other requests, at other times. Clicks come as in the shop's benchmark
(:mod:`benchmarks.stream`): a tenth of the exposures, after 22 seconds in the median, half a percent of them after
the attribution window. Nothing reads the wall clock but what is measured in seconds.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import msgspec
import numpy as np
import zstandard

from benchmarks.wireshop import Shop
from millrace.contracts.events import Click, Exposure, Impression, Purchase, to_json
from millrace.contracts.impressions import impression_bytes
from millrace.contracts.once import Rates
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, IMPRESSIONS
from stream.partition.checkpoint import LEVEL, CheckpointStore
from stream.partition.journal import Did, Journal
from stream.partition.partition import Message, Partition, Policy

T0 = 20_500 * 86_400_000 + 10 * 3_600_000
HOUR = 3_600_000
POOL = 400
"""Different pages. Between two of the same in one base lie some minutes of traffic."""

Say = Callable[[str], None]


def pool(items: int, pages: int = POOL, seed: int = 0) -> list[Impression]:
    """Pages of the simulated shop as the scorer logs them."""
    shop = Shop(seed, days=3)
    rng = np.random.default_rng(seed)

    async def ask() -> None:
        for k in range(pages):
            user = int(rng.integers(1, shop.world.shoppers.n + 1))
            asked = {"user_id": user, "ts_ms": shop.clock.at(0), "request_id": f"{k}", "size": items}
            await shop._serving.recommend(msgspec.json.encode(asked))

    asyncio.run(ask())
    return [sent.value for sent in shop.sent if isinstance(sent.value, Impression)]


@dataclass
class Traffic:
    """Messages of one partition in order of arrival, made as they are asked for."""

    pages: list[Impression]
    schema: Schema
    pages_a_second: float  # of event time
    seed: int = 0

    def __post_init__(self) -> None:
        self.came = 0  # pages
        self.topic: dict[int, bytes] = {}  # impressions by offset, which Kafka would hold
        self._rng, self._rates = np.random.default_rng(self.seed), Rates.of(self.schema)
        self._later: list[tuple[int, int, bytes]] = []  # when, order, message
        self._offset = {EVENTS: 0, IMPRESSIONS: 0}
        self._next_ms = float(T0)

    def until(self, to_ms: int) -> Iterator[Message]:
        """What comes before that event time."""
        while self._next_ms < to_ms:
            yield from self._due(int(self._next_ms))
            yield from self._page(int(self._next_ms))
            self._next_ms += 1000 / self.pages_a_second * float(self._rng.exponential())
        yield from self._due(to_ms)

    def quiet(self) -> None:
        """What was still to come never comes."""
        self._later.clear()

    def _page(self, ts_ms: int) -> Iterator[Message]:
        rng, drawn = self._rng, self.pages[int(self._rng.integers(len(self.pages)))]
        self.came += 1
        request, n, user = rng.bytes(16).hex(), len(drawn.items), drawn.user_id
        served = msgspec.structs.replace(drawn, request_id=request, ts_ms=ts_ms)
        message = self._message(IMPRESSIONS, impression_bytes(served, self._rates))
        self.topic[message.offset] = message.raw
        yield message
        exposure = Exposure(f"{request}/e", request, ts_ms + 300, user, drawn.items, 0, ts_ms + 300)
        yield self._message(EVENTS, to_json(exposure))
        for at in np.flatnonzero(rng.random(n) < 0.1).tolist():
            item, when = drawn.items[at], ts_ms + 300 + int(rng.lognormal(10, 1))
            self._add(when, to_json(Click(f"{request}/c{at}", request, when, user, item, at, when)))
            if rng.random() < 0.1:
                when += 60_000
                self._add(when, to_json(Purchase(f"{request}/p{at}", request, when, user, item, at, when)))

    def _add(self, when_ms: int, raw: bytes) -> None:
        self._later.append((when_ms, len(self._later), raw))

    def _due(self, to_ms: int) -> Iterator[Message]:
        due = sorted(one for one in self._later if one[0] < to_ms)
        if due:
            self._later = [one for one in self._later if one[0] >= to_ms]
        for _, _, raw in due:
            yield self._message(EVENTS, raw)

    def _message(self, topic: str, raw: bytes) -> Message:
        self._offset[topic] += 1
        return Message(topic, self._offset[topic] - 1, raw, None)


class Hands:
    """A partition as a worker drives it: takes, recalls, publishes, checkpoints."""

    def __init__(self, traffic: Traffic, settles: bool = True) -> None:
        self.traffic, self.settles = traffic, settles
        self.url = f"memory://checkpoints-{uuid.uuid4().hex}"
        self.store = CheckpointStore(self.url)
        loaded = self.store.load(self.fresh())
        self.partition, self.line = loaded.partition, loaded.line
        self.partition.journal = Journal()
        self.arrived = self.zstd = self.bases = self.checkpoints = self.recalled = 0
        self.now_ms = T0

    def fresh(self) -> Partition:
        """A new partition."""
        return Partition(0, self.traffic.schema, Policy.of(Settings()), settles=self.settles)

    def play(self, seconds: float) -> None:
        """Takes what comes in so many seconds of event time."""
        self.now_ms += round(seconds * 1000)
        self.partition.take(list(self.traffic.until(self.now_ms)), 1 << 60)
        if self.partition.wanted:
            found = {request: self.traffic.topic.get(at) for request, at in self.partition.wanted.items()}
            self.recalled += len(found)
            self.partition.returned(found)
        self.partition.changes()

    def save(self, base: bool | None = None) -> None:
        """A checkpoint; ``base``: with or without one, None: as is due."""
        journal = self.partition.journal
        assert journal is not None
        entries, arrived, read = journal.cut()
        due = self.line.wants_base(arrived + read, stops=False) if base is None else base
        self.line.write(entries, self.partition.snapshot() if due else None, dict(self.partition.offsets))
        self.checkpoints += 1
        self.bases += due
        self.arrived += arrived
        raws = [message.raw for did, *what in entries if did == Did.TAKE for message in what[1]]
        self.zstd += len(zstandard.ZstdCompressor(LEVEL).compress(b"".join(raws)))

    def close(self) -> None:
        """Removes the files."""
        fs, root = fsspec.core.url_to_fs(self.url)
        fs.rm(root, recursive=True)


def checkpoint_amplification(
    items: int = 10,
    pages_a_second: float = 1.0,
    speed: float = 1.0,
    hours: float = 2.0,
    warm_hours: float = 2.2,
    seed: int = 0,
    pages: list[Impression] | None = None,
) -> dict[str, Any]:
    """Bytes of checkpoints over bytes of messages, as they came to the partition.

    Args:
        items: on each page.
        pages_a_second: of one partition, by the wall clock. (One of four: a quarter of the loop's.)
        speed: event seconds a second of the wall; a checkpoint is due every ``checkpoint_seconds`` of the wall.
        hours: of event time that are measured.
        warm_hours: of event time before. After 2.1 the first pages are dropped: as many are kept from then on.
        pages: a pool of pages; made if there is none.

    Returns:
        ``checkpoint_amplification`` (bytes over bytes), ``against_zstd`` (the same over what zstd makes of the messages
        of each checkpoint together: less than any producer sends), ``bytes_a_second`` and ``arrived_bytes_a_second`` of
        the wall, ``bases``, ``base_bytes`` (of the last), ``settled``, ``recalled``, ``pages``.
    """
    traffic = Traffic(pages or pool(items, seed=seed), shop_schema(), pages_a_second / speed, seed)
    hands, every = Hands(traffic), Settings().checkpoint_seconds
    for _ in range(round(warm_hours * 3600 / speed / every)):
        hands.play(every * speed)
        hands.save()
    line = hands.line
    written, hands.arrived, hands.zstd, hands.bases, hands.checkpoints = line.written_bytes, 0, 0, 0, 0
    for _ in range(round(hours * 3600 / speed / every)):
        hands.play(every * speed)
        hands.save()
    written = line.written_bytes - written
    found = {
        "checkpoint_amplification": written / hands.arrived,
        "against_zstd": written / hands.zstd,
        "bytes_a_second": written / hands.checkpoints / every,
        "arrived_bytes_a_second": hands.arrived / hands.checkpoints / every,
        "bases": hands.bases,
        "base_bytes": line.base_bytes,
        "settled": hands.partition.settled,
        "recalled": hands.recalled,
        "pages": traffic.came,
    }
    hands.close()
    return found


def settled_page_bytes(
    items: int = 10, pages: int = 3000, seed: int = 0, pool_of: list[Impression] | None = None
) -> dict[str, Any]:
    """Bytes that one more settled page takes: in memory (tracemalloc, everything included), in a checkpoint, and in
    one after zstd; and what the same page takes with its impression in memory (``before``)."""
    drawn = pool_of or pool(items, seed=seed)
    out: dict[str, Any] = {}
    for name, settles in (("", True), ("_before", False)):
        hands = Hands(Traffic(drawn, shop_schema(), 4.0, seed), settles)
        hands.partition.journal = None
        hands.traffic.topic = _Nothing()
        _pages(hands, pages)
        sizes = []
        tracemalloc.start()
        for _ in range(2):
            gc.collect()
            body = hands.partition.snapshot().to_bytes()
            packed = len(zstandard.ZstdCompressor(LEVEL).compress(body))
            size = len(body)
            del body
            gc.collect()
            sizes.append((tracemalloc.get_traced_memory()[0], size, packed))
            _pages(hands, pages)
        tracemalloc.stop()
        for k, of in enumerate(("memory", "checkpoint", "zstd")):
            out[f"{of}{name}"] = (sizes[1][k] - sizes[0][k]) / pages
        hands.close()
    return {"settled_page_bytes": out["memory"], **out}


class _Nothing(dict[int, bytes]):
    """A topic that keeps nothing."""

    def __setitem__(self, key: int, value: bytes) -> None: ...


def _pages(hands: Hands, pages: int) -> None:
    """So many pages within some minutes of event time, and silence until they are settled (and none is dropped)."""
    last = hands.traffic.came + pages
    while hands.traffic.came < last:
        hands.play(10)
    hands.traffic.quiet()
    hands.partition.advance(hands.now_ms + 8 * 60_000)


def replay_seconds(
    items: int = 10, base_hours: float = 2.0, seed: int = 0, pages: list[Impression] | None = None
) -> dict[str, Any]:
    """How long the longest journal that is ever kept takes to be replayed, after a base of some hours of pages."""
    traffic = Traffic(pages or pool(items, seed=seed), shop_schema(), 4.0, seed)
    hands = Hands(traffic)
    for _ in range(round(base_hours * 360)):
        hands.play(10)
    hands.save(base=True)
    hands.line.base_bytes = 1 << 60  # however long the journals are beside it
    while not hands.line.wants_base(0, stops=False):
        for _ in range(10):
            hands.play(2)
            hands.save(base=False)
    size = hands.line.replay_bytes
    best = best_cpu = float("inf")
    for _ in range(2):
        started, cpu = time.perf_counter(), time.process_time()
        again = hands.store.load(hands.fresh()).partition
        best, best_cpu = min(best, time.perf_counter() - started), min(best_cpu, time.process_time() - cpu)
    assert again.offsets == hands.partition.offsets
    hands.close()
    return {
        "replay_seconds": best,
        "replay_cpu_seconds": best_cpu,  # for machines that are shared
        "journal_bytes": size,
        "checkpoints": hands.checkpoints,
    }
