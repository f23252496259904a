# core
"""The order between two topics of one partition: an event goes on when the page logs before it have been taken. Pure.

While a worker catches up, Kafka delivers a thousand events at a time, but only a few page logs, which are fifty
times larger. Events that ran hours ahead would move the watermark past pages whose page log is unread, and those
pages would be lost. So an event waits until either

- a page log of a later Kafka time stamp was taken, or
- all page logs that the broker had when the event came were taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from stream.join.join import InputMessage

SETTLED_SECONDS = 1.0
"""The last offsets of a topic may have no message (a transaction's marker, a compacted message). When the end has not
moved for so long, no message is assumed to be on its way."""


class ReadTo(NamedTuple):
    """How far a partition of a topic has been read.

    ``position`` is the next offset that the consumer hands over. ``end`` is the high watermark at ``asked_s``
    (``time.time()``). They are equal when there was nothing more to read. ``handed`` is the offset after the last
    message that was handed over; that message may be in a queue, not yet taken.
    """

    position: int
    end: int
    asked_s: float
    handed: int


class Arrival(NamedTuple):
    partition: int
    stamp_s: float  # Kafka's time stamp
    came_s: float  # time.time() of its arrival here
    message: InputMessage


def drained(read: ReadTo | None, taken: int) -> bool:
    """Whether all messages of the topic were handed over and taken. ``taken``: the offset after the
    last message taken."""
    return read is not None and read.position >= read.end and taken >= min(read.handed, read.position)


def silent_until(reads: Sequence[tuple[ReadTo | None, int]], last_message_s: float) -> float:
    """Wall time up to which nothing has come, by the broker's last answers; ``last_message_s`` while anything waits.
    A partition is silent when the broker says so, not when we did not look at it.

    Args:
        reads: for each topic, how far it has been read, and the offset after the last message taken.
        last_message_s: wall time of the last message taken.
    """
    if not all(drained(read, taken) for read, taken in reads):
        return last_message_s
    return max(last_message_s, min(read.asked_s for read, _ in reads if read is not None))


class TopicOrder:
    def __init__(self) -> None:
        self._held: deque[Arrival] = deque()
        self._served_s = 0.0  # newest time stamp of a page log that was taken
        self._tail = (-1, -1)  # (position, handed) of the page logs when last looked at
        self._tail_since = 0.0  # since when they have not changed

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, event: Arrival) -> None:
        """An event came; :meth:`release` decides when it goes on."""
        self._held.append(event)

    def served(self, page_log: Arrival) -> None:
        """A page log was taken, or is about to be, before any event that :meth:`release` gives now."""
        self._served_s = max(self._served_s, page_log.stamp_s)

    def release(self, read: ReadTo | None, taken: int, now: float) -> list[InputMessage]:
        """The events that may go on, in the order in which they came.

        Args:
            read: how far the topic of page logs has been read; None before the broker's first answer.
            taken: the offset after the last page log taken, with those taken just before the events returned here.
            now: monotonic time, seconds.
        """
        none_before = self._none_before(read, taken, now)
        ready = []
        held = self._held
        while held and (held[0].stamp_s < self._served_s or held[0].came_s < none_before):
            ready.append(held.popleft().message)
        return ready

    def _none_before(self, read: ReadTo | None, taken: int, now: float) -> float:
        """The time (``time.time()``) before which all page logs have been taken."""
        if read is None:
            return 0.0
        tail = (read.position, read.handed)
        if tail != self._tail:
            self._tail, self._tail_since = tail, now
        # The consumer moves its position first and reports what it handed over a moment later. So only both together,
        # or both after a while, show that nothing is on its way.
        settled = taken >= read.position or now - self._tail_since > SETTLED_SECONDS
        return read.asked_s if settled and drained(read, taken) else 0.0
