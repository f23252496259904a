"""Streams of events for tiles, and their windows by definition and counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from millrace.basics.durations import grain_minutes, unit_minutes
from millrace.windows.tiles import TileStore
from tests.scenes.reference_partition import tile_of
from tests.scenes.tile_changes import grain_hours

A = 3
Event = tuple[int, int, int]  # key, time, action
HOUR = 3_600_000
DAY = 24 * HOUR
T0 = 20_000 * DAY  # a midnight
DAYS = (1, 3, 5, 7, 15, 30)


def by_definition(events: list[Event], key: int, ts: int, days: tuple[int, ...] = DAYS) -> list[list[int]]:
    """What a window must count: tail aligned to its grain, head before ``ts``."""
    out = []
    for w in days:
        g = grain_hours(w) * HOUR
        row = [0] * A
        for k, t, a in events:
            if k == key and t // g >= (ts - w * DAY) // g and t < ts:
                row[a] += 1
        out.append(row)
    return out


def first_exposed(events: list[Event], key: int, ts: int, minutes: Sequence[int]) -> int:
    """The unit since 1970 at which the longest window's oldest tile with an exposure (action 0) begins; 0: none."""
    unit, grain = unit_minutes(minutes) * 60_000, grain_minutes(minutes[-1]) * 60_000
    tail = (ts - minutes[-1] * 60_000) // grain
    shown = [t for k, t, a in events if k == key and a == 0 and t < ts and t // grain >= tail]
    return tile_of(min(shown) // unit, ts, minutes)[0] if shown else 0


def twin(store: TileStore) -> TileStore:
    """An equal store, by way of a snapshot."""
    again = TileStore(store.lengths, store.columns, store.half_lives, store.sums)
    again.resume(store.snapshot())
    return again


def resumed(store: TileStore) -> TileStore:
    """An equal store, by way of a snapshot's arrays."""
    again = TileStore(store.lengths, store.columns, store.half_lives, store.sums)
    again.resume(store.snapshot().arrays())
    return again


def columns(events: list[Event]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8]]:
    k, t, a = zip(*events, strict=True) if events else ((), (), ())
    return np.array(k, np.uint64), np.array(t, np.int64), np.array(a, np.uint8)


# Steps between events: ties, minutes, an hour's edge, a day, weeks, more than every window.
step = st.one_of(
    st.just(0),
    st.integers(1, 90 * 60_000),
    st.sampled_from([HOUR - 1, HOUR, 6 * HOUR, DAY - 1, DAY, 8 * DAY, 16 * DAY, 40 * DAY]),
)


@st.composite
def streams(draw: Any, max_size: int = 120) -> list[Event]:
    """Events ascending in time from just before a midnight."""
    t = T0 - draw(st.integers(0, 2 * HOUR))
    events = []
    for dt, key, action in draw(
        st.lists(st.tuples(step, st.integers(1, 4), st.integers(0, A - 1)), min_size=1, max_size=max_size)
    ):
        t += dt
        events.append((key, t, action))
    return events


def exact(events: list[Event], key: int, ts: int, length_ms: int) -> NDArray[np.int64]:
    row = np.zeros(A, np.int64)
    for k, t, a in events:
        if k == key and ts - length_ms <= t < ts:
            row[a] += 1
    return row
