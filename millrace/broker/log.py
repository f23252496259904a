# core
"""The log of one partition: segments in a folder; appends go to the newest.

::

    start                                                            end (high watermark)
      ▼                                                               ▼
    00..0000.log │ 00..0812.log │ 00..1655.log │ 00..2390.log ────────►
    └── the oldest go by age or size ┘             └ the newest, open

The folder holds the segments and, after a deletion by offset, the file ``start``. Index, producers' numbers and end are
read from the segments at a start. Times are arguments.

Retention counts from when the broker took a record, unlike Kafka, which counts from the record's time. Event time may
lie years back here, and such records must stay as long as any others.
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

import msgspec

from millrace.basics.atomic_files import write_whole
from millrace.basics.durations import DAY_MS
from millrace.broker.batches import LENGTH_AT, PREFIX, BatchHeader, Unreadable, admit, read_head, records_of
from millrace.broker.codes import KAFKA_STORAGE_ERROR, OFFSET_OUT_OF_RANGE, BrokerRefusal
from millrace.broker.producers import Producers
from millrace.broker.segment import SUFFIX, Segment, file_name

MIB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True):
    """Limits of a log. Topics override these by Kafka's names. ``Topics.bound`` covers all logs together."""

    message_bytes: int = 1_048_588  # as Kafka: 1 MiB and the batch's own head
    segment_bytes: int = 16 * MIB
    retention_bytes: int = -1  # of a partition; -1: no bound
    retention_ms: int = 7 * DAY_MS  # -1: no bound
    compact: bool = False  # the newest record of each key stays, and no bound holds
    tombstone_ms: int = DAY_MS  # how long a compacted log keeps a tombstone

    def of(self, config: Mapping[str, str]) -> Limits:
        """These limits, changed by a topic's settings. Raises ValueError with an unknown setting or an invalid
        value."""
        changed: dict[str, int | bool] = {}
        for name, text in config.items():
            if name == "cleanup.policy":
                if not set(text.split(",")) <= {"delete", "compact"}:
                    raise ValueError(f"cleanup.policy '{text}'")
                changed["compact"] = "compact" in text
            elif name in _NAMES:
                least = -1 if name.startswith("retention") else 1
                try:
                    value = int(text)
                except ValueError:
                    value = least - 1
                if value < least:
                    raise ValueError(f"{name} '{text}'")
                changed[_NAMES[name]] = value
            elif name not in _IGNORED:
                raise ValueError(f"{name} is not known to this broker")
        return msgspec.structs.replace(self, **changed)

    def as_configs(self) -> dict[str, str]:
        """By Kafka's names."""
        policy = {"cleanup.policy": "compact" if self.compact else "delete"}
        return policy | {name: str(getattr(self, field)) for name, field in _NAMES.items()}


_NAMES = {
    "max.message.bytes": "message_bytes",
    "segment.bytes": "segment_bytes",
    "retention.bytes": "retention_bytes",
    "retention.ms": "retention_ms",
    "delete.retention.ms": "tombstone_ms",
}
_IGNORED = {
    *("compression.type", "min.insync.replicas", "min.cleanable.dirty.ratio", "segment.ms", "message.timestamp.type"),
    *("flush.messages", "flush.ms", "max.compaction.lag.ms", "min.compaction.lag.ms", "file.delete.delay.ms"),
}
"""Settings of Kafka without effect here: this broker has no choice of replicas, flushing or compaction policy."""


class PartitionLog:
    """One partition's log. One thread uses it, apart from what compaction reads. ``folder`` is made if missing;
    existing records are loaded. ``limits`` may be replaced at any time. ``now_ms``: the wall clock."""

    def __init__(self, folder: Path, limits: Limits, now_ms: int) -> None:
        self.folder, self.limits = folder, limits
        self.producers = Producers()
        self.torn_bytes = self.damaged_bytes = 0  # found at this start
        self.cleaned_to = 0  # compaction has seen all below this offset
        self.segments: list[Segment] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._load(now_ms)
        self.start = max(self.segments[0].base, self._read_start())
        newest = self.segments[-1]
        self.end = max(newest.end, self.start)  # of a file that lost its end, no offset below the start is given again
        if self.end > newest.end or (self.damaged_bytes and self.end > newest.base):
            self._roll(now_ms)  # if the damaged batch was the last, the name of the next file has the end

    def _load(self, now_ms: int) -> None:
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        reached = -1  # offset behind the batch before

        def seen(head: BatchHeader) -> None:
            nonlocal reached
            if reached not in (-1, head.base):
                self.producers = Producers()  # compaction or damage took batches: who wrote last is not known any more
            self.producers.note(head, head.base)
            reached = head.last + 1

        paths = sorted(self.folder.glob(f"*{SUFFIX}"))
        for path, behind in zip(paths, [*paths[1:], None], strict=False):
            base = int(path.stem)
            if self.segments and base < self.segments[-1].end:
                path.unlink()  # compacted into its predecessor; the broker ended before it was removed
                continue
            segment = Segment(path, base, now_ms)
            # A compacted file may go beyond the beginning of the next: a crash may have left its sources.
            loaded = segment.load(seen, int(behind.stem) if behind and not self.limits.compact else None)
            self.torn_bytes += loaded.torn
            self.damaged_bytes += loaded.damaged
            self.segments.append(segment)
        if not self.segments:
            self.segments.append(Segment(self.folder / file_name(0), 0, now_ms))
        if reached not in (-1, self.segments[-1].end):
            self.producers = Producers()
        self.segments[-1].open()

    def _read_start(self) -> int:
        try:
            return int((self.folder / "start").read_text())
        except (OSError, ValueError):
            return 0

    # ------------------------------------------------------------------ writing

    def append(self, data: memoryview, now_ms: int) -> int:
        """Takes one batch and returns the offset of its first record. Raises Refusal when it is invalid, too large or
        out of its producer's order, or cannot be written."""
        head = admit(data, self.limits.message_bytes)
        known = self.producers.offset_of(head)
        if known is not None:
            return known
        base = self.end
        end = base + head.last_delta + 1
        try:
            if self.segments[-1].size and self.segments[-1].size + len(data) > self._segment_bytes():
                self._roll(now_ms)
            prefix = PREFIX.pack(base, head.length, 0)
            self.segments[-1].append(prefix, data[LENGTH_AT + 4 :], base, end, head.max_ms, now_ms)
        except OSError as error:
            raise BrokerRefusal(KAFKA_STORAGE_ERROR, f"{self.folder}: {error.strerror}") from None
        self.producers.note(head, base)
        self.end = end
        return base

    def _segment_bytes(self) -> int:
        bound = self.limits.retention_bytes
        small = bound // 8 if bound > 0 and not self.limits.compact else self.limits.segment_bytes
        return max(1, min(self.limits.segment_bytes, small))

    def _roll(self, now_ms: int) -> None:
        fresh = Segment(self.folder / file_name(self.end), self.end, now_ms)
        fresh.open()
        self.segments[-1].close()
        self.segments.append(fresh)

    # ------------------------------------------------------------------ reading

    def fetch(self, offset: int, count: int) -> bytes:
        """Batches from the one that holds ``offset``: ``count`` bytes at most but at least one batch; empty at the end.
        Raises Refusal when the offset was deleted or does not exist yet."""
        if offset == self.end:
            return b""
        if not self.start <= offset < self.end:
            raise BrokerRefusal(OFFSET_OUT_OF_RANGE, f"offset {offset} outside of {self.start} to {self.end}")
        try:
            at = self._segment_of(offset)
            data = self.segments[at].fetch(offset, count)
            while not data and at + 1 < len(self.segments):  # compaction left a gap at the segment's end
                at += 1
                data = self.segments[at].fetch(offset, count)
        except OSError as error:
            raise BrokerRefusal(KAFKA_STORAGE_ERROR, f"{self.folder}: {error.strerror}") from None
        return data

    def _segment_of(self, offset: int) -> int:
        return max(0, bisect_right(self.segments, offset, key=lambda segment: segment.base) - 1)

    def offset_since(self, time_ms: int) -> tuple[int, int] | None:
        """(offset, its time in ms) of the first record of ``time_ms`` or later; None when there is none."""
        for segment in self.segments:
            if segment.max_ms < time_ms or segment.end <= self.start:
                continue
            for batch in segment.since(time_ms):
                head = read_head(batch)
                try:
                    for record in records_of(batch) if head.last >= self.start else ():
                        if record.time_ms >= time_ms and record.offset >= self.start:
                            return record.offset, record.time_ms
                except Unreadable:  # of a compression that is not read here: the batch's beginning is near enough
                    return max(head.base, self.start), head.max_ms
        return None

    def newest(self) -> tuple[int, int] | None:
        """(offset, time in ms) of the record with the latest time; None when there are no records."""
        latest = max((segment.max_ms for segment in self.segments), default=-1)
        return self.offset_since(latest) if latest >= 0 else None

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)

    # ------------------------------------------------------------------ forgetting

    def trim(self, offset: int) -> int:
        """Deletes the records before ``offset`` (-1: all), and returns the new start. Only whole segments free their
        space. Raises Refusal when there is no such offset yet."""
        wanted = self.end if offset == -1 else offset
        if not 0 <= wanted <= self.end:
            raise BrokerRefusal(OFFSET_OUT_OF_RANGE, f"offset {offset} is behind the end {self.end}")
        if wanted > self.start:
            self.start = wanted
            write_whole(self.folder / "start", str(wanted).encode(), durable=False)
            if wanted == self.end and self.segments[-1].size:
                self._roll(self.segments[-1].appended_ms)
            self._drop_before_start()
        return self.start

    def expire(self, now_ms: int) -> int:
        """Removes whole segments by age and size, nothing of a compacted log; returns the number of bytes."""
        if self.limits.compact:
            return 0
        before = self.size
        oldest_ms = now_ms - self.limits.retention_ms if self.limits.retention_ms >= 0 else -1
        newest = self.segments[-1]
        if newest.size and newest.appended_ms < oldest_ms:
            self._roll(now_ms)
        while len(self.segments) > 1:
            too_much = 0 <= self.limits.retention_bytes < self.size
            if self.segments[0].appended_ms >= oldest_ms and not too_much:
                break
            self.drop_oldest()
        return before - self.size

    @property
    def expires_ms(self) -> float:
        """When its oldest segment expires; infinite without a limit of age."""
        if self.limits.compact or self.limits.retention_ms < 0 or len(self.segments) < 2:
            return math.inf
        return self.segments[0].appended_ms + self.limits.retention_ms

    def drop_oldest(self) -> int:
        """Removes the oldest segment, never the newest; returns the number of bytes."""
        size = self.segments[0].size
        self.start = max(self.start, self.segments[0].end)
        self._drop_before_start()
        return size

    def _drop_before_start(self) -> None:
        while len(self.segments) > 1 and self.segments[1].base <= self.start:
            self.segments.pop(0).remove()

    def close(self) -> None:
        for segment in self.segments:
            segment.close()

    def sync(self) -> None:
        """Returns when all earlier appends are on the disk. For a thread: appends may go on meanwhile. Raises OSError
        when they are not; then :meth:`cut` the log and load it again."""
        for segment in list(self.segments):
            with contextlib.suppress(FileNotFoundError):  # retention has removed it meanwhile
                segment.sync()

    def cut(self, now_ms: int) -> None:
        """Removes what was appended since the last sync. Load the log again before you use it.

        Offsets are not given twice: readers may have seen them. The name of an empty file marks the end. Raises OSError
        when even this fails.
        """
        for segment in self.segments:
            with contextlib.suppress(FileNotFoundError):
                segment.cut()
        if self.end > self.segments[-1].base:
            self._roll(now_ms)
