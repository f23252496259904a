# shell
"""Bytes that cross Kafka for an exposure: events, impressions, samples and item tiles of the simulated shop.

What the roles would send is put into record batches by the clients' own builders: kafka-python's for the simulator and
the scorer, aiokafka's for the stream. A batch takes what comes within the linger of its first message, as far as it
has room. A producer whose earlier batch is still under way would wait longer and make fewer batches, so the figure is
an upper bound. "Before" is the same traffic as it was written once: arrays as they are, no compression, 16 KB a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np
from aiokafka.producer.message_accumulator import BatchBuilder
from kafka.record.memory_records import MemoryRecordsBuilder

from benchmarks.wireshop import Sent, Shop
from millrace.contracts.events import Impression, to_msgpack
from millrace.contracts.impressions import impression_bytes
from millrace.contracts.once import Rates
from millrace.contracts.samples import SampleBatch
from millrace.contracts.topics import EVENTS, FEATURES_ITEMS, IMPRESSIONS, SAMPLES
from millrace.processes.kafka import BATCH_BYTES, LINGER_MS, PAGE_LINGER_MS

TOPICS = (EVENTS, IMPRESSIONS, SAMPLES, FEATURES_ITEMS)
OLD_BATCH_BYTES, OLD_LINGER_MS = 16_384, 5
_ZSTD = 4  # Kafka's number for it
Form = Callable[[Sent], bytes]


def kafka_bytes(
    pages: int = 1500, speed: float = 240.0, seed: int = 0, users: int = 4000, days: int = 8, warm_pages: int = 200
) -> dict[str, Any]:
    """Measures a stretch of the demo's traffic.

    Args:
        pages: how many pages are seen while it is measured.
        speed: event seconds a second; at the demo's 240 the default shop shows some 1,200 exposures a second in the
            hour that is played.
        users, days: as :class:`Shop` takes them.
        warm_pages: are seen before: by then clicks and labels of earlier pages come too.

    Returns:
        ``kafka_bytes_an_exposure`` and ``before`` (bytes), ``ratio`` of the two, ``exposures``,
        ``exposures_a_second``, and by topic in ``topics``: ``bytes``, ``before`` (of an exposure),
        ``messages_a_batch``.
    """
    shop = Shop(seed, users, days, speed)
    shop.play(warm_pages)
    exposures, wall_ms = shop.exposures, shop.wall_ms
    shop.sent.clear()
    shop.play(pages)
    exposures, wall_ms = shop.exposures - exposures, shop.wall_ms - wall_ms
    rates, headers = Rates.of(shop.schema), shop.clock.headers
    topics: dict[str, dict[str, float]] = {}
    for topic in TOPICS:
        sent = [s for s in shop.sent if s.topic == topic]
        linger_ms = PAGE_LINGER_MS if topic == IMPRESSIONS else LINGER_MS
        now = [len(b) for b in batches(sent, lambda s: _now(s, rates), headers, _ZSTD, linger_ms, BATCH_BYTES)]
        old = [len(b) for b in batches(sent, _before, headers, 0, OLD_LINGER_MS, OLD_BATCH_BYTES)]
        topics[topic] = {
            "bytes": sum(now) / exposures,
            "before": sum(old) / exposures,
            "messages_a_batch": len(sent) / len(now),
        }
    after, before = (sum(t[name] for t in topics.values()) for name in ("bytes", "before"))
    return {
        "kafka_bytes_an_exposure": after,
        "before": before,
        "ratio": after / before,
        "exposures": exposures,
        "exposures_a_second": 1000 * exposures / wall_ms,
        "topics": topics,
    }


def batches(
    sent: Iterable[Sent], form: Form, headers: list[tuple[str, bytes]], compression: int, linger_ms: int, most: int
) -> list[bytes]:
    """The record batches in which messages of one topic would cross.

    Args:
        headers: of each event.
        compression: Kafka's number for it; 0 is none.
        most: bytes of a batch before compression. A larger message is a batch of its own.
    """
    lines: dict[int, list[Sent]] = defaultdict(list)
    for one in sent:
        lines[one.partition].append(one)
    done = []
    for line in lines.values():
        batch, began_ms = _Batch(line[0].role, compression, most), line[0].wall_ms
        for one in line:
            message = (one.wall_ms, one.key, form(one), headers if one.topic == EVENTS else [])
            if one.wall_ms > began_ms + linger_ms or not batch.add(*message):
                done.append(batch.close())
                batch, began_ms = _Batch(one.role, compression, most), one.wall_ms
                batch.add(*message)  # the first one always has room
        done.append(batch.close())
    return done


class _Batch:
    """A record batch as the client of a role builds it."""

    def __init__(self, role: str, compression: int, most: int) -> None:
        self._aio = role == "stream"
        self._builder: Any = (
            BatchBuilder(most, compression, is_transactional=False)
            if self._aio
            else (MemoryRecordsBuilder(2, compression, most))
        )

    def add(self, wall_ms: int, key: bytes | None, value: bytes, headers: list[tuple[str, bytes]]) -> bool:
        """Whether there was room."""
        return self._builder.append(timestamp=wall_ms, key=key, value=value, headers=headers) is not None

    def close(self) -> bytes:
        self._builder.close()
        return bytes(self._builder._build() if self._aio else self._builder.buffer())


def _now(one: Sent, rates: Rates | None) -> bytes:
    if isinstance(one.value, Impression):
        return impression_bytes(one.value, rates)
    return one.value.to_bytes(rates) if isinstance(one.value, SampleBatch) else one.value


def _before(one: Sent) -> bytes:
    if isinstance(one.value, Impression):
        return to_msgpack(one.value)
    return old_samples(one.value) if isinstance(one.value, SampleBatch) else one.value


def old_samples(batch: SampleBatch) -> bytes:
    """A batch in form 2, in which every column stood as it is."""
    used, page = np.unique(batch.page, return_inverse=True)
    columns = {name: np.ascontiguousarray(getattr(batch, name)).tobytes() for name in batch.__slots__[1:]}
    columns["page"] = page.astype("<i4").tobytes()
    request = [batch.request[i] for i in used.tolist()]
    return msgspec.msgpack.encode((2, request, batch.cat.shape[1], batch.num.shape[1], columns))
