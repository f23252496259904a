# core
"""The minutes whose exposures were refused: what follows an exposure goes where the exposure went.

::

    minute      10:01   10:02   10:03   10:04   10:05       exposures of it that the model has learnt,
    counts       61 0    58 0     1 60    0 59   64 2       and those that were refused
                                  │ a click that comes at 10:31, or an outcome a week later
                                  └─► quarantine: the model would learn a click of what it never learnt was shown

Counts, not the oldest and newest time of what was refused: a client whose clock is an hour off is in the minutes of
others, who are more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.contracts.samples import SampleBatch
from millrace.versions.image import Array, resume_state, state_of

KEPT_MINUTES = 32 * DAY_MS // MINUTE_MS
"""An outcome may come a month after its exposure."""

_LEARNT, _REFUSED = 0, 1  # columns of the counts
_SAVED = ("_minute", "_counts")
_EXPOSURES = 2  # kinds below it: as millrace.contracts.samples has them


class RefusedMinutes:
    """One thread. What is asked for is event time, as rows have it."""

    def __init__(self) -> None:
        self._minute, self._counts = np.zeros(KEPT_MINUTES, np.int64), np.zeros((KEPT_MINUTES, 2), np.int32)
        self._of: dict[int, Array] = {}  # of what may be gone back behind: exposures by minute, by decision
        warm_up()

    def learnt(self, n: int, batch: SampleBatch, released: bool = False) -> None:
        """By decision ``n`` the model was given rows. ``released``: of quarantine."""
        self._of[n] = found = by_minute(batch.ts_ms, batch.kind)
        add(found, self._minute, self._counts, _LEARNT, 1)
        if released:
            add(found, self._minute, self._counts, _REFUSED, -1)

    def refused(self, batch: SampleBatch) -> None:
        """Rows went to quarantine."""
        add(by_minute(batch.ts_ms, batch.kind), self._minute, self._counts, _REFUSED, 1)

    def went_back(self, numbers: Iterable[int]) -> None:
        """What was learnt by these decisions never happened."""
        for found in (self._of.pop(n) for n in numbers if n in self._of):
            self._unlearn(found)

    def left_out(self, batch: SampleBatch) -> None:
        """The model is one that was learnt again without these rows."""
        self._unlearn(by_minute(batch.ts_ms, batch.kind))

    def _unlearn(self, found: Array) -> None:
        add(found, self._minute, self._counts, _LEARNT, -1)
        add(found, self._minute, self._counts, _REFUSED, 1)

    def rolled_back(self, then: Mapping[str, Array]) -> None:
        """The model is a snapshot's, with what was known then: all that came since is as if it had been refused."""
        known = RefusedMinutes()
        known.resume(then)
        newer = known._minute > self._minute  # as where a model was adopted between that knew of none
        self._minute[newer], self._counts[newer] = known._minute[newer], known._counts[newer]
        learnt = np.where(known._minute == self._minute, known._counts[:, _LEARNT], 0)
        self._counts[:, _REFUSED] += self._counts[:, _LEARNT] - learnt
        self._counts[:, _LEARNT], self._of = learnt, {}

    def forget(self, upto: int) -> None:
        """Nothing goes back behind a decision."""
        self._of = {n: found for n, found in self._of.items() if n > upto}

    def of(self, ts_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether more exposures of each time's minute were refused than learnt. (n,)"""
        minutes = ts_ms // MINUTE_MS
        at = minutes % KEPT_MINUTES
        found: NDArray[np.bool_] = (self._minute[at] == minutes) & (
            self._counts[at, _REFUSED] > self._counts[at, _LEARNT]
        )
        return found

    def snapshot(self) -> dict[str, Array]:
        """The counts, some 700 kB. Of what is behind a snapshot is known what is done again."""
        return state_of(self, _SAVED)

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`; an empty state is a fresh one. Raises KeyError where an array is missing."""
        self._of = {}
        resume_state(self, _SAVED, state or RefusedMinutes().snapshot())


@cache
def warm_up() -> None:
    """Compiles what is called, once a process: for arrays of messages, which cannot be written to, too."""
    ts_ms, kind = np.ones(1, np.int64), np.zeros(1, np.uint8)
    for writeable in (True, False):
        ts_ms.flags.writeable = kind.flags.writeable = writeable
        add(by_minute(ts_ms, kind), np.zeros(1, np.int64), np.zeros((1, 2), np.int32), 0, 1)


@compiled
def by_minute(ts_ms: Any, kind: Any) -> Any:
    """Runs of exposures of one minute: the minute, and how many. (k, 2)"""
    found, n = np.zeros((len(ts_ms), 2), np.int64), 0
    for b in range(len(ts_ms)):
        if kind[b] >= _EXPOSURES:
            continue
        minute = ts_ms[b] // MINUTE_MS
        if n == 0 or found[n - 1, 0] != minute:
            found[n, 0] = minute
            n += 1
        found[n - 1, 1] += 1
    return found[:n].copy()


@compiled
def add(found: Any, minute: Any, counts: Any, column: int, sign: int) -> None:
    """Adds exposures by minute (k, 2) to a column of the counts. A slot is of the newest minute that was counted."""
    for k in range(len(found)):
        at = found[k, 0] % len(minute)
        if found[k, 0] < minute[at]:
            continue
        if found[k, 0] > minute[at]:
            minute[at] = found[k, 0]
            counts[at] = 0
        counts[at, column] += sign * found[k, 1]
