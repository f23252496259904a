# core
"""Window counts as a reader saw them: events become visible in some order, and a reader asks in between.

::

    visible    e1   e2 e3      e4   e5        by event time, or by the wall: when an event can have been counted
    asks            |               |
    counts     of {e1}         of {e1 .. e3}, read at a time of its own, by the window code that serves and replays

So a hypothesis about what a scorer knew is an order of events and a time to read at, and each is computed, not argued.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.schema import Windows
from millrace.windows.tiles import TileStore

Counts = NDArray[np.integer[Any]]


class Events(NamedTuple):
    """e events in the order in which they become visible."""

    visible: NDArray[np.int64]  # (e,) ascending; in what unit, the hypothesis says
    ts_ms: NDArray[np.int64]
    action: NDArray[np.uint8]
    keys: U64  # (e, K)
    sums: NDArray[np.uint32]  # (e, M) what each adds to the sum of each mean

    def part(self, which: slice | NDArray[np.intp]) -> Events:
        """Some of them."""
        columns: list[Any] = [column[which] for column in self]
        return Events(*columns)

    @classmethod
    def sorted(cls, *columns: NDArray[Any]) -> Events:
        """From columns in any order."""
        events = cls(*columns)
        return events.part(np.argsort(events.visible, kind="stable"))


class Asked(NamedTuple):
    """What one reader asked together."""

    rows: NDArray[np.intp]  # (r,)
    counts: Counts  # (r, K, S, C)
    store: TileStore  # as it was then: it may be read at another time too


def count(store: TileStore, windows: Windows, events: Events) -> None:
    """Counts events, as a partition of the stream does."""
    store.add(events.keys, events.ts_ms, events.action)
    for m, mean in enumerate(windows.means):
        some = np.flatnonzero(events.action == windows.actions.index(mean.action))
        column = np.full(len(some), len(windows.actions) + m)
        store.add(events.keys[some], events.ts_ms[some], column, events.sums[some, m])


def views(
    windows: Windows, events: Events, asks: NDArray[np.int64], reads_ms: NDArray[np.int64], keys: U64
) -> Iterator[Asked]:
    """What each reader saw: the events that were visible *before* it asked.

    Args:
        asks: (m,) when each row is asked for, in the unit of ``events.visible``.
        reads_ms: (m,) the event time at which its windows are read.
        keys: (m, K) its window keys; 0: none.
    """
    store = TileStore.of(windows)
    order = np.lexsort([reads_ms, asks])
    changes = np.flatnonzero(np.diff(asks[order]) | np.diff(reads_ms[order])) + 1
    at = 0
    for rows in np.split(order, changes):
        if not len(rows):
            continue
        stop = int(np.searchsorted(events.visible, asks[rows[0]], side="left"))
        if stop > at:
            count(store, windows, events.part(slice(at, stop)))
            at = stop
        yield Asked(rows, read(store, keys[rows], int(reads_ms[rows[0]])), store)


def read(store: TileStore, keys: U64, at_ms: int) -> Counts:
    """Counts of keys (r, K) at a time. (r, K, S, C)"""
    counts = store.counts(keys.reshape(-1), at_ms)
    return counts.reshape(*keys.shape, *counts.shape[1:])
