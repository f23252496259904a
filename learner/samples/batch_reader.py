# core
"""Finds the samples of micro-batches again on the topic.

Messages are read in order, and held until the last act that needs them: few at a time, since micro-batches are in that
order too. An act's batch is its rows less those to be left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import SnapshotError
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Learnt, Span


class TopicMessage(NamedTuple):
    offset: int
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()


class SampleMessage(NamedTuple):
    """Samples to learn, and where they came from."""

    batch: SampleBatch
    offset: int
    joined_ms: int = 0  # wall time; 0: unknown


class TopicReading(Protocol):
    """A stretch of the topic that is being read in order."""

    def more(self) -> Sequence[TopicMessage]:
        """The next messages; none: all was read."""

    def close(self) -> None: ...


class Source(Protocol):
    def first(self) -> int:
        """The first offset that the topic has."""

    def open(self, wanted: range) -> TopicReading:
        """Begins to read these offsets."""


Decode = Callable[[TopicMessage], SampleBatch]
LeaveOut = Callable[[SampleBatch, Counter[str]], NDArray[np.bool_]]
"""Which rows of a batch are left out, (B,); counts under names of its own what it left out."""


def wanted_by(acts: Iterable[Learnt]) -> range:
    """The offsets that the acts need: from the first to the last.

    >>> wanted_by([Learnt((Span(7, 0, 3), Span(8, 0, 1))), Learnt((Span(10, 1, 2),))])
    range(7, 11)
    """
    offsets = [span.offset for span in _spans(acts)]
    return range(min(offsets), max(offsets) + 1) if offsets else range(0)


def _spans(acts: Iterable[Learnt]) -> Iterable[Span]:
    return (span for act in acts for span in act.spans)


class BatchReader:
    """Gives the batch of each act, in order: see :func:`learner.training.decisionlog.learn_again`.

    Attributes:
        left_out: rows of acts that were left out so far.
        by: how many rows were left out under each name.
    """

    def __init__(
        self,
        acts: Sequence[Learnt],
        source: Source,
        decode: Decode,
        leave_out: LeaveOut | None = None,
        tick: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._decode, self._leave_out, self._tick = decode, leave_out, tick
        self._uses = Counter(span.offset for span in _spans(acts))
        self._held: dict[int, TopicMessage | SampleBatch] = {}  # by offset; decoded: an act has had a part of it
        self._reading = source.open(wanted_by(acts))
        self.read = self.left_out = 0
        self.by: Counter[str] = Counter()

    def rows_of(self, act: Learnt) -> SampleBatch | None:
        """The rows of an act without those to be left out; None: none remain.

        Raises:
            SnapshotError: a message is not there any more, or is another one.
            SchemaError: it cannot be read.
        """
        self._fetch({span.offset for span in act.spans})
        pieces = [self._piece(span) for span in act.spans]
        if not pieces:
            return None
        batch = SampleBatch.concat(pieces)
        self.read += len(batch)
        self._tick(self.read)
        if self._leave_out is None:
            return batch
        out = self._leave_out(batch, self.by)
        if not out.any():
            return batch
        self.left_out += int(out.sum())
        return None if out.all() else batch.take(~out)

    def batches(self, acts: Iterable[Learnt]) -> Iterator[SampleBatch]:
        """The batches of acts, in order, but for those of which nothing is left. Errors as :meth:`rows_of`."""
        for act in acts:
            batch = self.rows_of(act)
            if batch is not None:
                yield batch

    def close(self) -> None:
        self._reading.close()

    def _fetch(self, needed: set[int]) -> None:
        missing = needed - self._held.keys()
        while missing:
            came = self._reading.more()
            if not came:
                raise SnapshotError(
                    f"message {min(missing)} of the samples is not there",
                    "name a --since after it; retention of the topic says how long samples are kept",
                )
            for message in came:
                if self._uses[message.offset] and message.offset not in self._held:
                    self._held[message.offset] = message
                    missing.discard(message.offset)

    def _piece(self, span: Span) -> SampleBatch:
        at = span.offset
        held = self._held[at]
        batch = self._decode(held) if isinstance(held, TopicMessage) else held
        self._uses[at] -= 1
        if self._uses[at]:
            self._held[at] = batch
        else:
            del self._held[at]
        if span.stop > len(batch):
            raise SnapshotError(
                f"message {span.offset} of the samples has {len(batch)} rows, not {span.stop}",
                "the topic is not the one that was learnt from: name its broker",
            )
        return batch.take(np.arange(span.first, span.stop))
