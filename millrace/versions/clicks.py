# core
"""When the clicks of a version were sent: all of them, as counts in buckets of time.

A version names its clicks, so that a scorer can report how long a click took to reach it. A list of times would grow
with the traffic; buckets of 10 ms grow only with the span of the clicks, a second or two. After an outage the span is
hours: then the buckets get wider, and no click is left out. ::

    sent (ms)      1000 1004 1019 1031 1033        width_ms 10
    buckets         100  100  101  103  103        gaps    [100, 1, 2]     each to the bucket before, the first to 1970
                                                   counts  [  2, 1, 2]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from millrace.contracts.events import LAST_MS

WIDTH_MS = 10
MOST_BUCKETS = 2000
"""Some 12 KB of JSON. 2,000 buckets of 10 ms are 20 s."""

Step = Annotated[int, Meta(ge=0, le=2**53)]
Times = NDArray[np.int64]


class ClickHistogram(Struct, frozen=True):
    """Times at which clicks were sent (wall time), as the module describes them."""

    width_ms: Annotated[int, Meta(ge=1, le=2**53)] = WIDTH_MS
    gaps: Annotated[list[Step], Meta(max_length=MOST_BUCKETS)] = []
    counts: Annotated[list[Step], Meta(max_length=MOST_BUCKETS)] = []

    @classmethod
    def of(cls, sent_ms: Sequence[int] | Times, counts: Sequence[int] | Times | None = None) -> ClickHistogram:
        """Counts clicks sent at ``sent_ms`` (Unix ms, any order), ``counts`` at each (None: one)."""
        times = np.asarray(sent_ms, np.int64)
        weights = np.ones(len(times), np.int64) if counts is None else np.asarray(counts, np.int64)
        width = WIDTH_MS
        while True:
            buckets, place = np.unique(times // width, return_inverse=True)
            if len(buckets) <= MOST_BUCKETS:
                break
            width *= 2
        summed = np.zeros(len(buckets), np.int64)
        np.add.at(summed, place, weights)
        return cls(width, np.diff(buckets, prepend=0).tolist(), summed.tolist())

    @classmethod
    def merged(cls, many: Iterable[ClickHistogram]) -> ClickHistogram:
        found = [one for one in many if one.counts]
        if len(found) <= 1:
            return found[0] if found else cls()
        return cls.of(np.concatenate([one.sent_ms() for one in found]), np.concatenate([one.counts for one in found]))

    def sent_ms(self) -> Times:
        """The middle of each bucket (Unix ms), ascending, at most half of ``width_ms`` off. (n,)"""
        starts: Times = np.cumsum(np.asarray(self.gaps, np.int64)) * self.width_ms
        return starts + self.width_ms // 2

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def is_valid(self) -> bool:
        """Whether the three fields agree; those of a message from outside may not."""
        return len(self.gaps) == len(self.counts) and sum(self.gaps) * self.width_ms <= LAST_MS
