# core
"""What time it is at the gate: the one clock of all of its checks.

::

    newest pages     10:04  10:05  10:04  11:03  10:05  11:04  10:06  ...      15, at most 7 of them of one user
                                            │ a client 59 minutes ahead
    in order         10:04  10:04  10:05  10:05 │10:06│ ...  11:03  11:04
                                                   └ the median: event time

Exposures carry the times that clients say. The newest one is that of the client whose clock is furthest ahead, so it is
no measure. The median is that of most clients, and a user of many pages is never the majority.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from millrace.basics.compiled import compiled
from millrace.contracts.samples import SampleBatch
from millrace.versions.image import Array, resume_state, state_of

PAGES, OF_ONE_USER = 15, 7
"""Newest pages whose median it is, and how many of them one user may have."""
ALONE = 16
"""Pages in a row of one user alone, behind which his word is taken: nobody else is there."""

_LOOKED_AT = 64  # newest pages of a message
_SAVED = ("now_ms", "_times", "_users", "_state")
_NOBODY = 0  # pages without a user: of many


class MedianClock:
    """Event time that one client cannot move. One thread; :meth:`meet` once for each message.

    After a pause of the stream it goes on when eight pages were met. It may go back by a little, and by much where
    samples are read again.

    Attributes:
        now_ms: the median exposure of the newest pages; 0 before the first.
    """

    def __init__(self) -> None:
        self.now_ms = 0
        self._times, self._users = np.zeros(PAGES, np.int64), np.zeros(PAGES, np.uint64)  # in the order of coming
        self._state = np.zeros(2, np.int64)  # pages, and how many of the newest are of one user beyond his share

    def meet(self, batch: SampleBatch) -> None:
        """Samples came, whatever becomes of them."""
        if len(batch):
            self.now_ms = meet(batch.ts_ms, batch.user, self._times, self._users, self._state)

    def snapshot(self) -> dict[str, Array]:
        """The newest pages, and what follows from them."""
        return state_of(self, _SAVED)

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`; an empty state is a fresh clock. Raises KeyError where an array is
        missing."""
        resume_state(self, _SAVED, state or MedianClock().snapshot())


@compiled
def meet(ts_ms: Any, user: Any, times: Any, users: Any, state: Any) -> Any:
    """Adds the newest pages of rows, (B,) each, to those that are known; the median of their times. Rows that follow
    each other with one time and user are one page."""
    first, pages = len(ts_ms) - 1, 1
    while first > 0 and pages + (ts_ms[first] != ts_ms[first - 1] or user[first] != user[first - 1]) <= _LOOKED_AT:
        first -= 1
        pages += ts_ms[first] != ts_ms[first + 1] or user[first] != user[first + 1]
    for b in range(first, len(ts_ms)):
        if b > first and ts_ms[b] == ts_ms[b - 1] and user[b] == user[b - 1]:
            continue
        n, own = state[0], 0
        for i in range(n):
            own += users[i] == user[b]
        gone = -1 if n < PAGES else 0  # which page goes for it
        if user[b] == _NOBODY or own < OF_ONE_USER:
            state[1] = 0
        else:
            state[1] += 1
            gone = 0
            while users[gone] != user[b]:
                gone += 1
        if gone >= 0:
            n -= 1
            for i in range(gone, n):
                times[i], users[i] = times[i + 1], users[i + 1]
        if state[1] >= ALONE:
            kept = 0
            for i in range(n):
                if users[i] == user[b]:
                    times[kept], users[kept] = times[i], users[i]
                    kept += 1
            n = kept
        times[n], users[n], state[0] = ts_ms[b], user[b], n + 1
    return np.sort(times[: state[0]])[(state[0] - 1) // 2]
