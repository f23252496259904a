# core
"""The body of an :class:`~millrace.contracts.events.ItemTiles` message: window keys of items, with a tile list each.

::

    keys    (n,) uint64     │ k0 │ k1 │ k2 │          little-endian
    sizes   (n,) uint32     │ 18 │  4 │ 30 │          bytes of each tile list, little-endian
    tiles   sum(sizes)      │ tiles of k0 ...│ k1 │ tiles of k2 ...      │

The stream packs; the scorer's index and the keeper of the shop's lists unpack. What a tile list holds is
``millrace/windows/tiles.py``'s to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from millrace.basics.hashing import U64
from millrace.contracts.events import MESSAGE_BYTES, BadEventError, ItemTiles

_ENTRY_BYTES = 12
"""A key and a size."""


def pack(
    partition: int, seq: int, event_ms: int, keys: U64, tiles: Sequence[bytes], most_bytes: int = MESSAGE_BYTES
) -> Iterator[ItemTiles]:
    """Messages that hold ``keys`` with their tile lists, in order, each of at most ``most_bytes`` (or of one key).

    Args:
        partition: of ``events``, where they were counted.
        seq: number of the first message; later ones count on.
        event_ms: event time of the newest event in these counts.
        keys: (n,) uint64 window keys.
        tiles: n packed tile lists.
    """
    start = size = 0
    for end, blob in enumerate(tiles):
        if size and size + len(blob) + _ENTRY_BYTES > most_bytes:
            yield _message(partition, seq, event_ms, keys[start:end], tiles[start:end])
            start, size, seq = end, 0, seq + 1
        size += len(blob) + _ENTRY_BYTES
    if size:
        yield _message(partition, seq, event_ms, keys[start:], tiles[start:])


def unpack(message: ItemTiles) -> tuple[U64, list[bytes]]:
    """The window keys, (n,) uint64, and the n packed tile lists of a message.

    Raises:
        BadEventError: ``malformed``: keys, sizes and tiles do not fit together.
    """
    n = len(message.keys) // 8
    if len(message.keys) != 8 * n or len(message.sizes) != 4 * n:
        problem = f"{len(message.keys)} bytes of keys and {len(message.sizes)} bytes of sizes do not fit"
        raise BadEventError("malformed", problem)
    ends = [0, *np.cumsum(np.frombuffer(message.sizes, "<u4"), dtype=np.int64).tolist()]
    if ends[-1] != len(message.tiles):
        raise BadEventError(
            "malformed", f"sizes of {ends[-1]} bytes and {len(message.tiles)} bytes of tiles do not fit"
        )
    return np.frombuffer(message.keys, "<u8"), [message.tiles[a:b] for a, b in pairwise(ends)]


def _message(partition: int, seq: int, event_ms: int, keys: U64, tiles: Sequence[bytes]) -> ItemTiles:
    return ItemTiles(
        partition=partition,
        seq=seq,
        event_ms=event_ms,
        keys=np.ascontiguousarray(keys, "<u8").tobytes(),
        sizes=np.fromiter(map(len, tiles), "<u4", len(tiles)).tobytes(),
        tiles=b"".join(tiles),
    )
