"""A partition's checkpoints over hours of traffic, as a worker writes them, and pages to make it of.

The pages are the simulated shop's, some hundred different ones with the features that they would have had, again and
again under other requests; between two of the same in one base lie some minutes of traffic. Clicks come after 22
seconds in the median, half a percent of them after the attribution window.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from benchmarks.tools.traffic import HOUR, T0, make
from millrace.commands.replay.logfeatures import LogRows
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.events import PageLog
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, PAGE_LOGS
from millrace.logs import LogTable
from simulator.daylog import day_table
from simulator.world import World
from stream.partition.journal import Journal
from stream.partition.partition import InputMessage, Partition, Policy
from stream.partition.partition_checkpoint import CheckpointStore


def pool(items: int, pages: int = 400, seed: int = 0) -> list[PageLog]:
    """The first ``items`` of pages of the simulated shop, as a scorer would have logged them on its fourth day."""
    schema, world = shop_schema(), World(seed, 1000)
    assert schema.log is not None
    table = pa.concat_tables([day_table(world, 20_500 + day) for day in range(4)])
    log = LogTable(table, schema.log.user, schema.log.item, schema.log.label, table.num_rows, 0)
    rows = LogRows(log, schema)
    starts = np.flatnonzero(np.r_[True, rows.page[1:] != rows.page[:-1]])
    long = starts[np.diff(np.r_[starts, rows.n]) >= items][-pages:]
    at = (long[:, None] + np.arange(items)).reshape(-1)
    cat, num = Stretches(log, schema).of(at)
    keys = rows.builder.keys(rows.columns(at)[0], len(at))
    item, user = table["item_id"].to_numpy()[at], table["user_id"].to_numpy()[long]
    found = []
    for k, ts_ms in enumerate(rows.ts_ms[long].tolist()):
        own = slice(k * items, (k + 1) * items)
        scores = np.full(items, 0.1, "<f4").tobytes()
        features = keys[own].astype("<u8").tobytes(), cat[own].astype("<i8").tobytes(), num[own].astype("<f4").tobytes()
        found.append(PageLog(str(k), ts_ms, int(user[k]), "model", 1, schema.id, item[own].tolist(), scores, *features))
    return found


class Hands:
    """A partition as a worker drives it: takes, recalls, publishes, checkpoints."""

    def __init__(self, folder: Path, pages: Sequence[PageLog], pages_a_second: float) -> None:
        self.pages, self._an_hour = pages, round(3600 * pages_a_second)
        self.topic: dict[int, bytes] = {}  # page logs by offset, which Kafka would hold
        self._coming: list[tuple[int, InputMessage]] = []  # by event time
        self._hours, self._offsets = 0, {EVENTS: 0, PAGE_LOGS: 0}
        loaded = CheckpointStore(str(folder)).load(Partition(0, shop_schema(), Policy.of(Settings()), settles=True))
        self.partition, self.line = loaded.partition, loaded.line
        self.partition.journal = Journal()
        self.arrived = self.bases = self.checkpoints = 0
        self.now_ms = T0

    def play(self, seconds: float) -> None:
        """Takes what comes in so many seconds of event time."""
        self.now_ms += round(seconds * 1000)
        self.partition.take(list(self._arrivals()), 1 << 60)
        if self.partition.wanted:
            self.partition.returned({request: self.topic.get(at) for request, at in self.partition.wanted.items()})
        self.partition.changes()

    def _arrivals(self) -> Iterator[InputMessage]:
        """What comes until now, made an hour at a time."""
        while T0 + self._hours * HOUR < self.now_ms:
            n, hour = self._an_hour, self._hours
            made = make(shop_schema(), n, 1, 1, 1.0, hour, T0 + hour * HOUR, hour * n, self.pages)
            self._coming = sorted([*self._coming, *zip(made.message_ms, made.messages, strict=True)], key=itemgetter(0))
            self._hours += 1
        due = bisect_left(self._coming, self.now_ms, key=itemgetter(0))
        for _, message in self._coming[:due]:
            offset = self._offsets[message.topic]
            self._offsets[message.topic] += 1
            if message.topic == PAGE_LOGS:
                self.topic[offset] = message.raw
            yield message._replace(offset=offset)
        del self._coming[:due]

    def save(self) -> None:
        """A checkpoint, with a base where one is due."""
        journal = self.partition.journal
        assert journal is not None
        entries, arrived, read = journal.cut()
        due = self.line.wants_base(arrived + read, stops=False)
        self.line.write(entries, self.partition.snapshot() if due else None, dict(self.partition.offsets))
        self.checkpoints += 1
        self.bases += due
        self.arrived += arrived


def checkpoint_amplification(pages: Sequence[PageLog], hours: float, warm_hours: float) -> dict[str, float]:
    """Bytes of checkpoints over bytes of messages, as they came to one partition of four, a page of the pool a second,
    over ``hours`` of event time: ``checkpoint_amplification`` (bytes over bytes), ``bytes_a_second`` of all partitions,
    ``bases``, ``settled``. After 2.1 ``warm_hours`` the first pages are dropped: as many are kept from then on."""
    every, written = Settings().checkpoint_seconds, 0
    with TemporaryDirectory(prefix="millrace-checkpoints-") as folder:
        hands = Hands(Path(folder), pages, 1.0)
        for part in (warm_hours, hours):
            written, hands.arrived, hands.bases, hands.checkpoints = hands.line.written_bytes, 0, 0, 0
            for _ in range(round(part * 3600 / every)):
                hands.play(every)
                hands.save()
        written = hands.line.written_bytes - written
    return {
        "checkpoint_amplification": written / hands.arrived,
        "bytes_a_second": Settings().partitions * written / hands.checkpoints / every,
        "bases": hands.bases,
        "settled": len(hands.partition.join.settled),
    }
