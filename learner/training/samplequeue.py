# core
"""Samples that wait to be learnt, and late clicks that wait for company.

A late click says that an exposure which was learnt as a negative was clicked. Learnt beside negatives, the two cancel.
Where pages stop, as behind a scorer that is away, late clicks come alone for as long as clicks are waited for: a model
that learns nothing else believes that all is clicked, and serves worse until enough rows have come. So late clicks are
let through beside negatives, at most twice as many as there are usually to one; the rest waits. Other clicks are no
company: where pages begin again they are the first that is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.training.decisionlog import Places
from millrace.contracts.samples import CORRECTION, NEGATIVE, SampleBatch
from millrace.versions.image import Array

AT_ONCE_ROWS, AT_LEAST = 512, 8
"""As many late clicks as are usual for so many negatives may come at once, without any; or so many."""
MOST_WAITING = 16_384
"""Late clicks that wait; what is beyond is let through."""

_MEMORY_ROWS = 65_536.0  # negatives of which the usual share of late clicks is
_FIRST_ROWS = 256.0  # negatives and late clicks that it begins with
_TIMES = 2.0  # the usual share is let through

Times = NDArray[np.int64]


class MicroBatch(NamedTuple):
    """Samples on their way to a model that learns them together. B rows."""

    batch: SampleBatch
    places: Places  # (B, 3) where they lie on the topic
    joined_ms: Times  # (B,) when their samples were made

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> MicroBatch:
        return MicroBatch(self.batch.take(rows), self.places[rows], self.joined_ms[rows])

    @classmethod
    def concat(cls, parts: Sequence[MicroBatch]) -> MicroBatch:
        """At least one."""
        if len(parts) == 1:
            return parts[0]
        batches, places, joined = zip(*parts, strict=True)
        return cls(SampleBatch.concat(batches), np.concatenate(places), np.concatenate(joined))


class SampleQueue:
    """First in, first out. One thread.

    Attributes:
        rows: that wait.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._parts: deque[MicroBatch] = deque()

    def put(self, part: MicroBatch) -> None:
        if len(part.batch):
            self._parts.append(part)
            self.rows += len(part.batch)

    def head(self, rows: int) -> MicroBatch:
        """The parts that hold the first ``rows`` rows, which are there; at least one."""
        parts, found = list[MicroBatch](), 0
        for part in self._parts:
            parts.append(part)
            found += len(part.batch)
            if found >= rows:
                break
        return MicroBatch.concat(parts)

    def pop(self, rows: int) -> MicroBatch:
        """The first rows, as many as are asked for and there; at least one."""
        head = self.head(rows)
        gone = len(head.batch)
        while gone > 0:
            gone -= len(self._parts.popleft().batch)
        if len(head.batch) > rows:
            self._parts.appendleft(head.take(slice(rows, None)))
        self.rows -= min(rows, len(head.batch))
        return head.take(slice(0, rows))

    def clear(self) -> int:
        """Nothing waits any more: how many rows did."""
        rows, self.rows = self.rows, 0
        self._parts.clear()
        return rows

    def snapshot(self) -> dict[str, Array]:
        """What waits: nothing where nothing does."""
        if not self.rows:
            return {}
        whole = self.head(self.rows)
        return {
            "batch": np.frombuffer(whole.batch.to_bytes(), np.uint8),
            "places": whole.places.copy(),
            "joined": whole.joined_ms.copy(),
        }

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`, on an empty one."""
        if state:
            batch = SampleBatch.from_bytes(state["batch"].tobytes())
            self.put(MicroBatch(batch, state["places"].copy(), state["joined"].copy()))


class LateClickQueue:
    """Lets late clicks pass beside negatives. See the module's text. One thread.

    What it does depends on the rows that it is given, and on nothing else. Rows in which no late click is above its
    share pass as they are.
    """

    def __init__(self) -> None:
        self.waiting = SampleQueue()
        self._usual = np.full(2, _FIRST_ROWS)  # late clicks and negatives, lately
        self._room = float(AT_ONCE_ROWS)  # late clicks that may pass

    def through(self, part: MicroBatch) -> MicroBatch:
        """The rows that are to be learnt now, late clicks that have waited before them."""
        late = part.batch.kind == CORRECTION
        clicks, negatives = int(np.count_nonzero(late)), int(np.count_nonzero(part.batch.kind == NEGATIVE))
        self._usual *= min(1.0, _MEMORY_ROWS / (self._usual[1] + negatives))
        self._usual += clicks, negatives
        share = self._usual[0] / self._usual[1]
        most = max(AT_LEAST, share * AT_ONCE_ROWS)
        self._room += _TIMES * share * negatives
        if not self.waiting.rows and clicks <= self._room:
            self._room = min(self._room - clicks, most)
            return part
        self.waiting.put(part.take(late))
        passing = max(min(int(self._room), self.waiting.rows), self.waiting.rows - MOST_WAITING)
        self._room = min(max(self._room - passing, 0.0), most)
        rest = part.take(~late)
        return MicroBatch.concat([self.waiting.pop(passing), rest]) if passing else rest

    def snapshot(self) -> dict[str, Array]:
        return {"usual": np.append(self._usual, self._room), **self.waiting.snapshot()}

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`, on a fresh one; an empty state leaves it fresh."""
        if state:
            self._usual, self._room = state["usual"][:2].copy(), float(state["usual"][2])
            self.waiting.resume({name: array for name, array in state.items() if name != "usual"})
