# core
"""Compaction: only the newest record of each key stays. For topics that hold a state, such as users and items.

::

    before   | k1 k2 k3 | k1 k4 | k2 k3 |   open segment, left as it is
    after    |    k4 k2 k3, at their old offsets   |   open segment

All closed segments become one, written beside them and then renamed over the first. The others now begin below its end;
a load after a crash at this point removes them. A tombstone (a record with a key and no value) goes too when its
segment is so old that every reader has met it. Offsets never change; readers skip the gaps.

Batches that cannot be read (damaged, or an unsupported compression) stay whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from millrace.broker.batches import Unreadable, records_of, without
from millrace.broker.log import PartitionLog
from millrace.broker.segment import Segment

DIRTY_SHARE = 0.5  # share of new bytes in the closed segments at which a log is compacted


def due(log: PartitionLog) -> bool:
    closed = log.segments[:-1]
    dirty = sum(segment.size for segment in closed if segment.base >= log.cleaned_to)
    return log.limits.compact and dirty > 0 and dirty >= DIRTY_SHARE * sum(segment.size for segment in closed)


def _digest(key: bytes) -> bytes:
    """Sixteen bytes for a key, so that memory depends on the number of keys alone."""
    return blake2b(key, digest_size=16).digest()


def merge(closed: Sequence[Segment], tombstones_before_ms: int) -> Path:
    """Writes the compacted content of ``closed``, the log's closed segments in order, beside the first one. It changes
    nothing else, so a thread may run it. Tombstones go from segments that were last appended to before
    ``tombstones_before_ms``. Raises OSError."""
    newest: dict[bytes, int] = {}
    for segment in closed:
        for batch in segment.batches():
            try:
                newest.update((_digest(r.key), r.offset) for r in records_of(batch) if r.key is not None)
            except Unreadable:
                continue
    path = closed[0].path.with_suffix(".compact.tmp")
    try:
        with path.open("wb") as out:
            for segment in closed:
                drop_tombstones = segment.appended_ms < tombstones_before_ms
                for batch in segment.batches():
                    out.write(_kept(batch, newest, drop_tombstones))
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _kept(batch: bytes, newest: dict[bytes, int], drop_tombstones: bool) -> bytes:
    try:
        records = records_of(batch)
    except Unreadable:
        return batch
    kept = [
        record
        for record in records
        if record.key is None
        or (newest[_digest(record.key)] == record.offset and not (drop_tombstones and record.is_tombstone))
    ]
    if len(kept) == len(records):
        return batch
    return without(batch, kept, len(kept)) if kept else b""


def adopt(log: PartitionLog, closed: Sequence[Segment], path: Path, now_ms: int) -> bool:
    """Puts the merged file in the place of its source segments. Returns False when the log has changed meanwhile: the
    file is removed, and the next compaction tries again."""
    if list(log.segments[: len(closed)]) != list(closed):
        path.unlink(missing_ok=True)
        return False
    end = closed[-1].end
    appended_ms = closed[-1].appended_ms
    path.replace(closed[0].path)
    os.utime(closed[0].path, (appended_ms / 1000, appended_ms / 1000))
    merged = Segment(closed[0].path, closed[0].base, now_ms)
    merged.load(lambda head: None)
    log.segments[: len(closed)] = [merged]
    log.cleaned_to = end
    for segment in closed[1:]:
        segment.remove()
    return True
