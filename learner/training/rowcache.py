# core
"""The rows of what was learnt lately, for learning it again."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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
        self._numbers: list[int] = []
        self._batches: list[SampleBatch] = []
        self._bytes = 0

    def keep(self, n: int, batch: SampleBatch) -> None:
        self._numbers.append(n)
        self._batches.append(batch)
        self._bytes += _size(batch)
        if self.again is not None and self._bytes > self.most_bytes:
            self._let_go(slice(0, 1 + len(self._batches) // 8))  # some at once: a list moves all that stay

    def forget(self, upto: int) -> None:
        """Batches up to a decision are not asked for any more."""
        self._let_go(slice(0, bisect_right(self._numbers, upto)))

    def cut(self, to: int) -> None:
        """Batches behind a decision are not asked for any more."""
        self._let_go(slice(bisect_right(self._numbers, to), None))

    def _let_go(self, part: slice) -> None:
        self._bytes -= sum(map(_size, self._batches[part]))
        del self._numbers[part], self._batches[part]

    @property
    def rows(self) -> int:
        """That are held."""
        return sum(map(len, self._batches))

    def batches(self, learnt: Sequence[Decided]) -> Iterator[SampleBatch]:
        """The batch of each of these decisions, in order. Errors as of :data:`ReadAgain`."""
        first = self._numbers[0] if self._numbers else None
        known = len(learnt) if first is None else bisect_left(learnt, first, key=lambda decided: decided.n)
        older = [decided.what for decided in learnt[:known] if isinstance(decided.what, Learnt)]
        if older and self.again is None:
            raise SnapshotError(f"{len(older)} micro-batches are not in memory any more", "an older model is taken")
        if older and self.again is not None:
            yield from self.again(older)
        for decided in learnt[known:]:
            yield self._batches[bisect_left(self._numbers, decided.n)]


def _size(batch: SampleBatch) -> int:
    """Bytes, but for what all rows have alike."""
    return int(batch.cat.nbytes + batch.num.nbytes)
