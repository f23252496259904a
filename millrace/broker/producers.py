# core
"""Idempotent producers: what of a partition each of them has written last, so that a repeated batch is written once.

A producer numbers its records by partition. The next batch must begin where the last one ended. One that begins with
the same number as one of the last five was sent again (a client has at most five on the way): it is acknowledged
with the offset that it has. Anything else came out of order and is refused. (KIP-98, "Idempotent Producer Guarantees".)

What is not known of a producer is believed: after a loss of the log's beginning, or when it was idle for long, its next
batch counts as its first, as in Kafka since 2.5.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from millrace.broker.batches import Head
from millrace.broker.codes import INVALID_PRODUCER_EPOCH, OUT_OF_ORDER_SEQUENCE_NUMBER, Refusal

IN_FLIGHT = 5
REMEMBERED = 4096
"""Producers a partition remembers: those that wrote last. A laptop's broker sees some dozens a day."""
_WRAP = 1 << 31


@dataclass(slots=True)
class _Writer:
    epoch: int
    recent: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=IN_FLIGHT))
    """(first number, last number, base offset) of its last batches."""


class Producers:
    """The producers of one partition."""

    def __init__(self) -> None:
        self._writers: OrderedDict[int, _Writer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._writers)

    def offset_of(self, head: Head) -> int | None:
        """The base offset that this batch has already; None: it is new, and next.

        Raises:
            Refusal: it is out of order, or of a producer that a newer one of the same id has replaced.
        """
        writer = self._writers.get(head.producer)
        if writer is None or head.producer < 0:
            return None
        if head.producer_epoch < writer.epoch:
            raise Refusal(INVALID_PRODUCER_EPOCH, f"epoch {head.producer_epoch} after {writer.epoch}")
        if head.producer_epoch > writer.epoch:
            if head.sequence:
                raise Refusal(OUT_OF_ORDER_SEQUENCE_NUMBER, f"a new epoch begins with {head.sequence}")
            return None
        last = _last(head)
        for first, end, offset in writer.recent:
            if (first, end) == (head.sequence, last):
                return offset
        expected = (writer.recent[-1][1] + 1) % _WRAP
        if head.sequence != expected:
            raise Refusal(OUT_OF_ORDER_SEQUENCE_NUMBER, f"number {head.sequence} where {expected} is next")
        return None

    def note(self, head: Head, base: int) -> None:
        """The batch was written at ``base``."""
        if head.producer < 0:
            return
        writer = self._writers.get(head.producer)
        if writer is None or writer.epoch != head.producer_epoch:
            writer = self._writers[head.producer] = _Writer(head.producer_epoch)
        writer.recent.append((head.sequence, _last(head), base))
        self._writers.move_to_end(head.producer)
        if len(self._writers) > REMEMBERED:
            self._writers.popitem(last=False)


def _last(head: Head) -> int:
    return (head.sequence + head.last_delta) % _WRAP
