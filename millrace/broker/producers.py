# core
"""Idempotent producers: each producer's last batches in a partition, so that a repeated batch is written only one time.

A producer numbers its records by partition. The next batch must begin where the last one ended. A batch that begins
like one of the last five was sent again (a client has at most five in flight): it is acknowledged with its old offset.
Any other batch is out of order and is refused. (KIP-98, "Idempotent Producer Guarantees".)

The next batch of an unknown producer counts as its first, as in Kafka since 2.5. A producer becomes unknown by a
loss of the log's beginning or by long idleness.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from millrace.broker.batches import BatchHeader
from millrace.broker.codes import INVALID_PRODUCER_EPOCH, OUT_OF_ORDER_SEQUENCE_NUMBER, BrokerRefusal

IN_FLIGHT = 5
REMEMBERED = 4096
"""Producers that a partition remembers, the latest ones. A laptop's broker sees some dozens a day."""
_WRAP = 1 << 31


@dataclass(slots=True)
class _Writer:
    epoch: int
    recent: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=IN_FLIGHT))
    """(first number, last number, base offset) of its last batches."""


class Producers:
    def __init__(self) -> None:
        self._writers: OrderedDict[int, _Writer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._writers)

    def offset_of(self, head: BatchHeader) -> int | None:
        """The base offset of a repeated batch; None for a new one. Raises Refusal when it is out of order, or of a
        producer that a newer one of the same id has replaced."""
        writer = self._writers.get(head.producer)
        if writer is None or head.producer < 0:
            return None
        if head.producer_epoch < writer.epoch:
            raise BrokerRefusal(INVALID_PRODUCER_EPOCH, f"epoch {head.producer_epoch} after {writer.epoch}")
        if head.producer_epoch > writer.epoch:
            if head.sequence:
                raise BrokerRefusal(OUT_OF_ORDER_SEQUENCE_NUMBER, f"a new epoch begins with {head.sequence}")
            return None
        last = _last(head)
        for first, end, offset in writer.recent:
            if (first, end) == (head.sequence, last):
                return offset
        expected = (writer.recent[-1][1] + 1) % _WRAP
        if head.sequence != expected:
            raise BrokerRefusal(OUT_OF_ORDER_SEQUENCE_NUMBER, f"number {head.sequence} where {expected} is next")
        return None

    def note(self, head: BatchHeader, base: int) -> None:
        """Records that the batch was written at ``base``."""
        if head.producer < 0:
            return
        writer = self._writers.get(head.producer)
        if writer is None or writer.epoch != head.producer_epoch:
            writer = self._writers[head.producer] = _Writer(head.producer_epoch)
        writer.recent.append((head.sequence, _last(head), base))
        self._writers.move_to_end(head.producer)
        if len(self._writers) > REMEMBERED:
            self._writers.popitem(last=False)


def _last(head: BatchHeader) -> int:
    return (head.sequence + head.last_delta) % _WRAP
