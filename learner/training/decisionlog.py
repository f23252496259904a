# core
"""The log of a learner's decisions, and learning what it names again.

::

    numbers     38    39    40    41    42    43    44    45
    log         Learnt Learnt Learnt Passed Learnt WentBack(41) Learnt ...
    line        ────── ────── ──────        (gone)              ──────     what the model in force has learnt

The *line* is what led to the model as it is: learning it again from a snapshot gives the model to the bit, since
learning depends on nothing else (:func:`learn_again`). Numbers never change: what is let go of the log, because a newer
snapshot has it, moves no other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from learner.ranker.interfaces import Learning
from millrace.basics.compiled import compiled
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Decided, Decision, Learnt, LogPart, Span

Places = NDArray[np.int64]
"""Where rows lie on ``samples``: offset and row within the message, (n, 2)."""


_NOTABLE = 200


class DecisionLog:
    """The decisions since the newest snapshot, and those that are not durable yet. One thread.

    Attributes:
        log: its name, which no other log has.
        newest: number of the newest decision; 0: there is none.
        read: the next offset of ``samples``.
        notable: the newest ones that say more than what was learnt, for people.
        again: whether decisions are done once more: they have numbers and messages already.
    """

    def __init__(self) -> None:
        self.log, self.newest, self.read, self.again = "", 0, 0, False
        self.notable: deque[Decided] = deque(maxlen=_NOTABLE)
        self._kept: list[Decided] = []  # the line, and what people want to know of
        self._unsent: list[Decided] = []
        self._sent: list[Decided] = []  # of which it is not known whether they are durable

    def append(self, what: Decision, ms: int) -> int:
        """Its number. ``ms``: event time."""
        self.newest += 1
        decided = Decided(self.newest, ms, what, self.read)
        if not self.again:
            self._unsent.append(decided)
        self._kept.append(decided)
        if not isinstance(what, Learnt):
            self.notable.append(decided)
        return self.newest

    # -- what led to the model -------------------------------------------------------------------------------

    def line(self, after: int, upto: int | None = None) -> list[Decided]:
        """What the model in force has learnt behind a decision, and up to another."""
        end = len(self._kept) if upto is None else bisect_right(self._kept, upto, key=_number)
        kept = self._kept[bisect_right(self._kept, after, key=_number) : end]
        return [decided for decided in kept if isinstance(decided.what, Learnt)]

    def cut(self, to: int) -> list[Decided]:
        """What was learnt behind a decision leaves the line, and is returned."""
        gone = self.line(to)
        numbers = {decided.n for decided in gone}
        self._kept = [decided for decided in self._kept if decided.n not in numbers]
        return gone

    def forget(self, upto: int) -> None:
        """A snapshot has all up to a decision, and nothing goes back behind it."""
        del self._kept[: bisect_right(self._kept, upto, key=_number)]

    @property
    def kept(self) -> LogPart:
        """What was decided since the newest snapshot: the line, and what people want to know of."""
        return LogPart(self.log, self._kept)

    def go_on(self, log: str, newest: int, read: int) -> None:
        """Goes on behind a snapshot that has decisions up to ``newest``, and samples before offset ``read``."""
        self.log, self.newest, self.read = log, newest, read
        self._kept, self._unsent, self._sent = [], [], []

    def at(self, n: int) -> None:
        """The next decision has the number ``n``."""
        self.newest = n - 1

    # -- sending ---------------------------------------------------------------------------------------------

    def take_unsent(self) -> LogPart:
        """Decisions that no message has taken yet: the caller's is the one."""
        part, self._unsent = self._unsent, []
        self._sent += part
        return LogPart(self.log, part)

    @property
    def unsent(self) -> list[Decided]:
        return self._unsent

    @property
    def newest_sent(self) -> int:
        """The newest decision that a message has taken; 0: all that were are durable."""
        return self._sent[-1].n if self._sent else 0

    def durable(self, upto: int) -> None:
        """All messages with decisions up to that one are there."""
        del self._sent[: bisect_right(self._sent, upto, key=_number)]

    @property
    def waiting(self) -> int:
        """Decisions that are not known to be durable."""
        return len(self._unsent) + len(self._sent)

    def send_again(self) -> None:
        """A message was lost: whatever may have been in it is unsent."""
        self._unsent, self._sent = self._sent + self._unsent, []


def _number(decided: Decided) -> int:
    return decided.n


def spans_of(places: Places) -> tuple[Span, ...]:
    """The same rows as runs.

    >>> [tuple(span) for span in spans_of(np.array([[7, 0], [7, 1], [7, 3], [8, 0]]))]
    [(7, 0, 2), (7, 3, 4), (8, 0, 1)]
    """
    return tuple(Span(*span) for span in runs(places).tolist())


@compiled
def runs(places: Places) -> Places:
    """Spans (S, 3) of rows (n, 2)."""
    spans = np.empty((len(places), 3), np.int64)
    n = 0
    for i in range(len(places)):
        if i == 0 or places[i, 0] != spans[n - 1, 0] or places[i, 1] != spans[n - 1, 2]:
            spans[n, :2] = places[i]
            n += 1
        spans[n - 1, 2] = places[i, 1] + 1
    return spans[:n]


def places_of(spans: Iterable[Span]) -> Places:
    """The inverse of :func:`spans_of`. (n, 2)"""
    runs = [
        np.column_stack([np.full(len(rows), s.offset), rows]) for s in spans for rows in (np.arange(s.first, s.stop),)
    ]
    return np.concatenate(runs).astype(np.int64) if runs else np.empty((0, 2), np.int64)


def same_rows(some: Places, others: Places) -> bool:
    """Whether both have the same rows, in whatever order."""
    return np.array_equal(some[np.lexsort(some.T)], others[np.lexsort(others.T)])


def among(places: Places, spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Which of the rows (n, 2) are in the spans. (n,)"""
    wanted = set(map(tuple, places_of(spans).tolist()))
    return np.array([tuple(place) in wanted for place in places.tolist()], np.bool_)


def rows_in(spans: Iterable[Span]) -> int:
    return sum(span.stop - span.first for span in spans)


def learn_again(model: Learning, acts: Iterable[Learnt], rows_of: Callable[[Learnt], SampleBatch | None]) -> int:
    """Repeats the acts on ``model``. Returns the rows learnt. ``rows_of``: what to keep of an act; None: nothing."""
    learnt = 0
    for act in acts:
        batch = rows_of(act) if act.spans else None
        if batch is not None and len(batch):
            learnt += model.learn(batch, bool(act.of)).rows
    return learnt
