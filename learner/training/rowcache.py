# core
"""The rows of what was learnt lately, for learning it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from millrace.basics.errors import SnapshotError
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Decided, Learnt

MOST_BYTES = 256 << 20
"""That are held where rows can be read again."""

ReadAgain = Callable[[Sequence[Learnt]], Iterator[SampleBatch]]
"""Reads the batches of micro-batches from ``samples``, in order. Raises SnapshotError where some are gone, BrokerError
where the broker does not give them."""


class RowCache:
    """Batches by the number of the decision that had them learnt, the newest ones. One thread.

    Args:
        again: reads older ones; None: all are held, since they cannot be read again.
    """

    def __init__(self, again: ReadAgain | None = None, most_bytes: int = MOST_BYTES) -> None:
        self.again, self.most_bytes = again, most_bytes
        self._held: OrderedDict[int, SampleBatch] = OrderedDict()
        self._bytes = 0

    def keep(self, n: int, batch: SampleBatch) -> None:
        self._held[n] = batch
        self._bytes += _size(batch)
        while self.again is not None and self._bytes > self.most_bytes:
            self._let_go(oldest=True)

    def forget(self, upto: int) -> None:
        """Batches up to a decision are not asked for any more."""
        while self._held and next(iter(self._held)) <= upto:
            self._let_go(oldest=True)

    def cut(self, to: int) -> None:
        """Batches behind a decision are not asked for any more."""
        while self._held and next(reversed(self._held)) > to:
            self._let_go(oldest=False)

    def _let_go(self, oldest: bool) -> None:
        self._bytes -= _size(self._held.popitem(last=not oldest)[1])

    @property
    def rows(self) -> int:
        """That are held."""
        return sum(map(len, self._held.values()))

    def batches(self, learnt: Sequence[Decided]) -> Iterator[SampleBatch]:
        """The batch of each of these decisions, in order. Errors as of :data:`ReadAgain`."""
        older = [d.what for d in learnt if isinstance(d.what, Learnt) and d.n not in self._held]
        if older and self.again is None:
            raise SnapshotError(f"{len(older)} micro-batches are not in memory any more", "an older model is taken")
        if older and self.again is not None:
            yield from self.again(older)
        for decided in learnt[len(older) :]:
            yield self._held[decided.n]


def _size(batch: SampleBatch) -> int:
    """Bytes, but for what all rows have alike."""
    return int(batch.cat.nbytes + batch.num.nbytes)
