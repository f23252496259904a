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

import numpy as np

from millrace.contracts.samples import SampleBatch
from millrace.versions.image import Array

PAGES, OF_ONE_USER = 15, 7
"""Newest pages whose median it is, and how many of them one user may have."""
ALONE = 16
"""Pages in a row of one user alone, behind which his word is taken: nobody else is there."""

_LOOKED_AT = 64  # newest pages of a message
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
        self._pages: list[tuple[int, int]] = []  # exposure and user of each, in the order in which they came
        self._alone = 0  # newest pages in a row that are of one user beyond his share

    def meet(self, batch: SampleBatch) -> None:
        """Samples came, whatever becomes of them."""
        if not len(batch):
            return
        ts_ms, user = batch.ts_ms, batch.user
        last = np.append((ts_ms[1:] != ts_ms[:-1]) | (user[1:] != user[:-1]), True)  # rows of their pages
        at = np.flatnonzero(last)[-_LOOKED_AT:]
        for page in zip(ts_ms[at].tolist(), user[at].tolist(), strict=True):
            self._add(page)
        times = sorted(ms for ms, _ in self._pages)
        self.now_ms = times[(len(times) - 1) // 2]

    def _add(self, page: tuple[int, int]) -> None:
        own = [i for i, (_, user) in enumerate(self._pages) if user == page[1]]
        if page[1] == _NOBODY or len(own) < OF_ONE_USER:
            self._alone = 0
        else:
            self._alone += 1
            del self._pages[own[0]]
            if self._alone >= ALONE:
                self._pages = [one for one in self._pages if one[1] == page[1]]
        self._pages = [*self._pages, page][-PAGES:]

    def snapshot(self) -> dict[str, Array]:
        """The newest pages: times (n,), users (n,)."""
        return {
            "times": np.array([ms for ms, _ in self._pages], np.int64),
            "users": np.array([user for _, user in self._pages], np.uint64),
            "clock": np.array([self.now_ms, self._alone], np.int64),
        }

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`; an empty state is a fresh clock.

        Raises:
            KeyError, ValueError: it is not of this form.
        """
        self.now_ms = self._alone = 0
        self._pages = []
        if state:
            self._pages = list(zip(state["times"].tolist(), state["users"].tolist(), strict=True))
            self.now_ms, self._alone = (int(v) for v in state["clock"])
