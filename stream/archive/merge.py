# core
"""Records of several topics in the order in which they came to Kafka, partition by partition. Pure.

::

    users/0        5 ─ 9                  ┐
    items/0        1 ─ 7 ─ 12             ├─► 1 5 7 9 10 ...   by Kafka's time stamp
    events/0       10 ─ 11                │
    page_logs/0    (nothing, at its end)  ┘                    an empty line that is not at its end: all wait for it

So a page's page log comes before its exposure, and attributes are those of the time, even when an archive reads a
week in a minute. Within a partition the log's order holds, whatever the time stamps say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

from millrace.contracts.topics import EVENTS, ITEMS, PAGE_LOGS, USERS

Line = tuple[str, int]
"""A topic and a partition."""

_ORDER = {USERS: 0, ITEMS: 1, PAGE_LOGS: 2, EVENTS: 3}  # at the same time stamp


class Merge:
    """``lines``: all that are read."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._waiting: dict[Line, deque[Any]] = {line: deque() for line in lines}
        self._heads: list[tuple[int, int, Line]] = []

    def put(self, line: Line, records: Iterable[Any]) -> None:
        """Adds records of a line, in its order. Each has a ``timestamp``."""
        waiting = self._waiting[line]
        empty = not waiting
        waiting.extend(records)
        if empty and waiting:
            self._head(line)

    def waiting(self, line: Line) -> int:
        return len(self._waiting[line])

    def ready(self, at_end: Collection[Line]) -> Iterator[Any]:
        """Takes out the records that may go on. ``at_end``: the lines that are read to their end."""
        short = {line for line, waiting in self._waiting.items() if not waiting and line not in at_end}
        while self._heads and not short:
            line = heappop(self._heads)[2]
            waiting = self._waiting[line]
            record = waiting.popleft()
            if waiting:
                self._head(line)
            elif line not in at_end:
                short.add(line)
            yield record

    def _head(self, line: Line) -> None:
        heappush(self._heads, (self._waiting[line][0].timestamp, _ORDER[line[0]], line))
