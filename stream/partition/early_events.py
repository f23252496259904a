# core
"""Events that are dated ahead of the event clock, held until their time comes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

from stream.join.joined_pages import InputMessage

MOST_BYTES = 8 << 20
"""Of the events that a partition holds. Further ones count as from the future."""
_EACH_BYTES = 256  # what holding one takes besides


class EarlyEvents:
    """Events come out in the order of their times, then of their arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, InputMessage]] = []  # time, number
        self._number = self._bytes = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first_ms(self) -> int:
        """The time of the first one; 0: there is none."""
        return self._heap[0][0] if self._heap else 0

    def hold(self, ts_ms: int, message: InputMessage) -> bool:
        """Holds an event until its time comes. Returns whether there was room."""
        size = len(message.raw) + _EACH_BYTES
        if self._bytes + size > MOST_BYTES:
            return False
        self._number += 1
        self._bytes += size
        heappush(self._heap, (ts_ms, self._number, message))
        return True

    def until(self, until_ms: int) -> Iterator[tuple[int, InputMessage]]:
        """Releases the events whose time is at most ``until_ms``, each with its time."""
        while self._heap and self._heap[0][0] <= until_ms:
            ts_ms, _, message = heappop(self._heap)
            self._bytes -= len(message.raw) + _EACH_BYTES
            yield ts_ms, message

    def snapshot(self) -> list[tuple[int, InputMessage]]:
        return [(ts_ms, message) for ts_ms, _, message in sorted(self._heap)]

    def resume(self, state: Iterable[tuple[int, Any]]) -> None:
        for ts_ms, message in state:
            self.hold(ts_ms, InputMessage(*message))
