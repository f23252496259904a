# core
"""The rows of what was learnt lately, for learning it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields

from millrace.basics.errors import SnapshotError
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Decided, Learnt

MOST_BYTES = 256 << 20
"""That are held, of arrays."""

_COLUMNS = tuple(field.name for field in fields(SampleBatch))[1:]

ReadAgain = Callable[[Sequence[Learnt]], Iterator[SampleBatch]]
"""Reads the batches of micro-batches from ``samples``, in order. Raises SnapshotError where some are gone, BrokerError
where the broker does not give them."""


def _from_nowhere(learnt: Sequence[Learnt]) -> Iterator[SampleBatch]:
    raise SnapshotError(f"{len(learnt)} micro-batches are not in memory any more", "an older model is taken")


class RowCache:
    """Batches by the number of the decision that had them learnt, the newest ones. One thread.

    Attributes:
        again: reads older ones.
    """

    def __init__(self) -> None:
        self.again: ReadAgain = _from_nowhere
        self._held: dict[int, SampleBatch] = {}  # oldest first
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        return self._bytes

    def keep(self, n: int, batch: SampleBatch) -> None:
        self._held[n] = batch
        self._bytes += _size(batch)
        while self._bytes > MOST_BYTES:
            self._let_go([next(iter(self._held))])

    def forget(self, upto: int) -> None:
        """Batches up to a decision are not asked for any more."""
        self._let_go([n for n in self._held if n <= upto])

    def cut(self, to: int) -> None:
        """Batches behind a decision are not asked for any more."""
        self._let_go([n for n in self._held if n > to])

    def _let_go(self, numbers: Iterable[int]) -> None:
        self._bytes -= sum(_size(self._held.pop(n)) for n in numbers)

    def batches(self, learnt: Sequence[Decided]) -> Iterator[SampleBatch]:
        """The batch of each of these decisions, in order. Errors as of :data:`ReadAgain`."""
        older = [d.what for d in learnt if isinstance(d.what, Learnt) and d.n not in self._held]
        if older:
            yield from self.again(older)
        for decided in learnt[len(older) :]:
            yield self._held[decided.n]


def _size(batch: SampleBatch) -> int:
    return sum(getattr(batch, name).nbytes for name in _COLUMNS)
