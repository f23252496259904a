"""What a partition's state says, in a form that can be compared."""

from __future__ import annotations

from typing import Any

import msgspec

from stream.join.join import InputMessage
from stream.partition.partition import Partition
from tests.scenes.arrivals import NOW
from tests.scenes.stream_world import HOUR, T0, rows


def form(partition: Partition) -> dict[str, Any]:
    """The state, without what depends on the phase of sweeps: owners of keys whose windows have ended."""
    head = msgspec.msgpack.decode(partition.snapshot().to_bytes())
    users, who, keys = head.pop("owners")
    alive = set(memoryview(head["tiles"]["keys"]).cast("Q"))
    owner = zip(memoryview(keys).cast("Q"), memoryview(who).cast("i"), strict=True)
    state: dict[str, Any] = head | {"owners": sorted((key, str(users[i])) for key, i in owner if key in alive)}
    return state


def out_of(partition: Partition, messages: list[InputMessage]) -> list[Any]:
    """What comes of these messages and of five hours of silence."""
    outputs = partition.take(messages, NOW), partition.advance(max(partition.newest_ms, T0) + 5 * HOUR)
    reported = [(sorted(rows(output.samples)), sorted(output.dead, key=str), output.counts) for output in outputs]
    return [reported, dict(partition.wanted), partition.pending]
