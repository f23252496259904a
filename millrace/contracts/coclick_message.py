# core
"""Which items are clicked together: the message of the topic ``features.coclicks``, and what its counts are worth.

::

    form       u8            1
    partition  u16           of `events`, that they were counted in
    day        i32           event time in whole days: the newest day of these counts
    n, m       u32, u32      items, neighbours
    items      (n,) u64      value hashes
    sizes      (n,) u8       neighbours of each item, at most 16
    near       (m,) u64      value hashes of the neighbours, item by item
    counts     (m, 7) u16    [:, a]: common clicks on the day `day - a`              all little-endian

A message is absolute: the list of an item replaces what was said of this item in this partition before. The sum over
partitions is the count. A reader weighs the days by its own time, so no message is needed when a day ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.events import MESSAGE_BYTES, BadEventError

WINDOWS = (1, 3, 5, 7)
DAYS = WINDOWS[-1]
MOST = 16
"""Neighbours of an item."""
WEIGHTS = tuple(sum(105 // days for days in WINDOWS if age < days) for age in range(DAYS))
"""What a common click is worth by its age in days: its part of the mean over :data:`WINDOWS` of the clicks a day in
each, times 420. 105 is the least number that all the windows divide, so worths are compared as whole numbers."""

_FORM = 1
_HEAD = struct.Struct("<BHiII")
_ENTRY_BYTES = 8 + 2 * DAYS
_ITEM_BYTES = 9
_MOST_PARTITION = 1024  # as many as the settings allow
_LAST_DAY = 376_200  # the year 3000


class Lists(NamedTuple):
    """Items with their neighbours, each item's in one stretch."""

    day: int
    items: U64  # (n,)
    sizes: NDArray[np.uint8]  # (n,)
    near: U64  # (m,)
    counts: NDArray[np.uint16]  # (m, DAYS), [:, a] of the day `day - a`


def no_lists() -> Lists:
    """Lists of nothing."""
    none = np.zeros(0, np.uint64)
    return Lists(0, none, np.zeros(0, np.uint8), none, np.zeros((0, DAYS), np.uint16))


def pack(partition: int, lists: Lists, most_bytes: int = MESSAGE_BYTES) -> Iterator[bytes]:
    """Messages that hold these lists, in order, each of at most ``most_bytes`` (or of one item)."""
    ends = np.cumsum(lists.sizes, dtype=np.int64)
    bytes_to = ends * _ENTRY_BYTES + np.arange(1, len(ends) + 1) * _ITEM_BYTES
    start = 0
    while start < len(ends):
        before = int(bytes_to[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(bytes_to, before + most_bytes - _HEAD.size, "right")))
        a, b = int(ends[start - 1]) if start else 0, int(ends[stop - 1])
        yield b"".join(
            (
                _HEAD.pack(_FORM, partition, lists.day, stop - start, b - a),
                lists.items[start:stop].astype("<u8").tobytes(),
                lists.sizes[start:stop].astype("u1").tobytes(),
                lists.near[a:b].astype("<u8").tobytes(),
                lists.counts[a:b].astype("<u2").tobytes(),
            )
        )
        start = stop


def unpack(raw: bytes | None) -> tuple[int, Lists]:
    """The partition, and the lists of a message. The arrays are copies.

    Raises:
        BadEventError: ``malformed``: another form, or parts that do not fit together.
    """
    if raw is None or len(raw) < _HEAD.size:
        raise BadEventError("malformed", f"{len(raw or b'')} bytes are no lists of co-clicks")
    form, partition, day, n, m = _HEAD.unpack_from(raw)
    if form != _FORM:
        raise BadEventError("malformed", f"lists of co-clicks of form {form}, this version reads {_FORM}")
    if partition >= _MOST_PARTITION or not 0 <= day <= _LAST_DAY:
        raise BadEventError("malformed", f"co-clicks of partition {partition} and day {day}")
    if len(raw) != _HEAD.size + n * _ITEM_BYTES + m * _ENTRY_BYTES:
        raise BadEventError("malformed", f"{len(raw)} bytes for {n} items with {m} neighbours")
    at, parts = _HEAD.size, []
    for dtype, size in (("<u8", n), ("u1", n), ("<u8", m), ("<u2", m * DAYS)):
        parts.append(np.frombuffer(raw, dtype, size, at).astype(dtype[-2:]))
        at += parts[-1].nbytes
    items, sizes, near, counts = parts
    if sizes.sum(dtype=np.int64) != m or (n and sizes.max() > MOST):
        raise BadEventError("malformed", f"sizes that add up to {sizes.sum(dtype=np.int64)} for {m} neighbours")
    return partition, Lists(day, items, sizes, near, counts.reshape(m, DAYS))
