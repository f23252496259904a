# core
"""Messages that the intake has taken and Kafka does not have yet: by partition, in order, each event once. Pure.

::

    request ──► Parcel ──► admit ──┬─ refused, or an id that was kept before ──────────► verdict at once
                                   ├─ an id that is on its way ──► waits with it ─┐
                                   └─ new ──► lane (topic, partition) ──► take ───┴──► kept | refused | put back
                                                                          a batch for Kafka

A parcel holds a request's lines. It is done when each line has a verdict. A parcel stays when its client gives up:
its messages are on their way, and the client's next request finds them. So an event that is sent again after an
unknown answer is kept once, unless this process ended in between. Lines without a waiting client give way to new
ones, so repeated requests while the broker is away take no more memory than the first.

An id is remembered only when Kafka has the message: an id that was never kept is never called a duplicate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from millrace.contracts.events import BadEventError
from millrace.contracts.topics import EVENTS
from stream.intake.intake_wire import DUPLICATE, KEPT, OutMessage, Verdict, late
from stream.intake.recent_ids import IdMemory

Lane = tuple[str, int]
"""A logical topic and a partition of it."""
RECORD_BYTES = 128
"""Overhead of a record in a batch, at most."""
MOST_BYTES = 128 << 20
"""Messages on their way, all together: some thousand large ones fill the memory before they are many."""
_U64 = (1 << 64) - 1
_FEW = 8


class Parcel:
    """The lines of one request. ``verdicts`` has None for each line that is on its way; ``left`` counts those.
    ``gone``: the client waits no more. ``done`` is called once, when nothing is left, but not by
    :meth:`Keeper.admit`: check ``left``."""

    __slots__ = ("_done", "gone", "left", "verdicts")

    def __init__(self, done: Callable[[], None]) -> None:
        self.verdicts: list[Verdict | None] = []
        self.left = 0
        self.gone = False
        self._done = done

    def decide(self, index: int, verdict: Verdict) -> None:
        """Sets the verdict of a line that was on its way."""
        self.verdicts[index] = verdict
        self.left -= 1
        if not self.left:
            self._done()


class WaitingMessage:
    """A message on its way to Kafka, and the lines that wait for it, its own first."""

    __slots__ = ("_look_at", "hashed", "key", "lines", "note", "size", "ts_ms", "value")

    def __init__(self, message: OutMessage, hashed: int, lines: list[tuple[Parcel, int]]) -> None:
        self.key, self.value = message.key, message.value
        self.ts_ms = min(message.ts_ms, message.came_ms)  # no later than it came
        self.note = message.note
        self.hashed = hashed  # of the event id; 0: none
        self.lines = lines
        self.size = len(message.key) + len(message.value or b"") + RECORD_BYTES
        self._look_at = _FEW

    def join(self, parcel: Parcel, index: int) -> None:
        """Adds a line that waits for this message, in place of those without a waiting client."""
        if len(self.lines) >= self._look_at:
            self.lines[1:] = [line for line in self.lines[1:] if not line[0].gone]
            self._look_at = max(_FEW, 2 * len(self.lines))
        self.lines.append((parcel, index))


class Keeper:
    """One thread.

    Args:
        lane_of: the lane of a message's topic and key.
        hash_of: 64 bits of an event id.
        limit: messages that may be on their way.
        life_ms, disorder_ms: see :func:`stream.intake.intake_wire.late`.
    """

    def __init__(
        self,
        lane_of: Callable[[str, bytes], Lane],
        hash_of: Callable[[str], int],
        limit: int,
        life_ms: int,
        disorder_ms: int,
        memory: IdMemory | None = None,
    ) -> None:
        self._lane_of, self._hash_of, self._limit = lane_of, hash_of, limit
        self._life_ms, self._disorder_ms = life_ms, disorder_ms
        self._memory = IdMemory() if memory is None else memory
        self._lanes: dict[Lane, deque[WaitingMessage]] = {}
        self._on_way: dict[int, WaitingMessage] = {}  # by hash of the event id
        self._newest_ms: dict[Lane, int] = {}  # newest event kept, by partition of events
        self.waiting, self.bytes = 0, 0

    def has_room(self, lines: int) -> bool:
        """Whether so many lines can be taken. A request is always taken when nothing waits."""
        return not self.waiting or (self.waiting + lines <= self._limit and self.bytes < MOST_BYTES)

    def admit(self, parcel: Parcel, lines: Sequence[OutMessage | Verdict]) -> set[Lane]:
        """Takes a request's lines, some of them refused already; returns the lanes with new messages."""
        touched: set[Lane] = set()
        verdicts = parcel.verdicts
        for index, line in enumerate(lines):
            if isinstance(line, Verdict):
                verdicts.append(line)
                continue
            lane = self._lane_of(line.topic, line.key)
            hashed = self._hash_of(line.event_id) & _U64 or 1 if line.event_id else 0
            if hashed:
                if hashed in self._memory:
                    verdicts.append(DUPLICATE)
                    continue
                first = self._on_way.get(hashed)
                if first is not None:
                    first.join(parcel, index)
                    verdicts.append(None)
                    parcel.left += 1
                    continue
                why = late(line, self._newest_ms.get(lane, 0), self._life_ms, self._disorder_ms)
                if why is not None:
                    verdicts.append(refused(why))
                    continue
            one = WaitingMessage(line, hashed, [(parcel, index)])
            if hashed:
                self._on_way[hashed] = one
            of_line = [*(WaitingMessage(part, 0, []) for part in line.before), one]  # when the last is kept, all are
            self._lanes.setdefault(lane, deque()).extend(of_line)
            self.waiting += len(of_line)
            self.bytes += sum(part.size for part in of_line)
            verdicts.append(None)
            parcel.left += 1
            touched.add(lane)
        return touched

    def take(self, lane: Lane, most_bytes: int) -> list[WaitingMessage]:
        """The next batch of a lane, in order: at least one message if there is any. It is on its way until
        :meth:`kept`, :meth:`refuse` or :meth:`put_back`."""
        queue = self._lanes.get(lane)
        batch: list[WaitingMessage] = []
        while queue and ((most_bytes := most_bytes - queue[0].size) >= 0 or not batch):
            batch.append(queue.popleft())
        return batch

    def put_back(self, lane: Lane, batch: Sequence[WaitingMessage]) -> None:
        """It is unknown whether Kafka has the batch: it comes next again."""
        self._lanes.setdefault(lane, deque()).extendleft(reversed(batch))

    def kept(self, lane: Lane, batch: Sequence[WaitingMessage]) -> None:
        self.waiting -= len(batch)
        for one in batch:
            self.bytes -= one.size
            if one.hashed:
                self._memory.add(one.hashed)
                del self._on_way[one.hashed]
            if lane[0] == EVENTS and one.ts_ms > self._newest_ms.get(lane, 0):
                self._newest_ms[lane] = one.ts_ms
            verdict = Verdict("kept", note=one.note) if one.note else KEPT
            for parcel, index in one.lines:
                parcel.decide(index, verdict)
                verdict = DUPLICATE

    def refuse(self, one: WaitingMessage, why: BadEventError) -> None:
        """Kafka will never take this message."""
        self.waiting -= 1
        self.bytes -= one.size
        self._on_way.pop(one.hashed, None)
        for parcel, index in one.lines:
            parcel.decide(index, refused(why))

    def depth(self, lane: Lane) -> int:
        return len(self._lanes.get(lane, ()))


def refused(why: BadEventError) -> Verdict:
    return Verdict("refused", why.reason, why.detail)
