"""Streams of events for tiles, and their windows by definition and counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from millrace.basics.durations import grain_minutes, lengths_in_minutes, text_of, unit_minutes
from millrace.windows.tile_memory import UNIT
from millrace.windows.tiles import TileStore
from tests.scenes.reference_partition import age_units, tile_of

A = 3
Event = tuple[int, int, int]  # key, time, action
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
T0 = 20_000 * DAY  # a midnight
DAYS = (1, 3, 5, 7, 15, 30)
FEED = ("15min", "1h", "6h", "1d", "7d")
Lengths = tuple[int | str, ...]


def by_definition(
    events: list[Event], key: int, ts: int, lengths: Lengths = DAYS, head: int | None = None
) -> list[list[int]]:
    """What a window must count: tail aligned to its grain, head before ``ts``, or before ``head``."""
    out = []
    for minutes in lengths_in_minutes(lengths):
        g = grain_minutes(minutes) * MINUTE
        row = [0] * A
        for k, t, a in events:
            if k == key and t // g >= (ts - minutes * MINUTE) // g and t < (head or ts):
                row[a] += 1
        out.append(row)
    return out


def decayed(events: list[Event], key: int, ts: int, lengths: Lengths, lives: tuple[float, ...]) -> list[list[int]]:
    """By the definition: tiles of the longest window, each event at its tile's middle, as of the full unit."""
    minutes = lengths_in_minutes(lengths)
    unit, grain = unit_minutes(minutes) * MINUTE, grain_minutes(minutes[-1]) * MINUTE
    out = [[0] * A for _ in lives]
    for k, t, a in events:
        if k == key and t < ts and t // grain >= (ts - minutes[-1] * MINUTE) // grain:
            for row, life in zip(out, lives, strict=True):
                row[a] += round(UNIT * 2 ** -(age_units(t // unit, ts, minutes) / (DAY // unit * life)))
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


# Steps between events: ties, seconds, the edges of units and hours, days, weeks, more than every window.
step = st.one_of(
    st.just(0),
    st.integers(1, 20 * MINUTE),
    st.integers(1, 90 * MINUTE),
    st.sampled_from([5 * MINUTE - 1, 5 * MINUTE, 15 * MINUTE, HOUR - 1, HOUR, 6 * HOUR, DAY - 1, DAY]),
    st.sampled_from([DAY, 8 * DAY, 16 * DAY, 40 * DAY]),
)
mixtures: st.SearchStrategy[Lengths] = st.one_of(
    st.sampled_from([FEED, ("15min",), ("15min", "30d"), ("6h", "1d"), DAYS, (1,), (1, 30), (3, 40)]),
    st.lists(st.integers(1, 60), unique=True, min_size=1, max_size=3).map(lambda days: tuple(sorted(days))),
    st.builds(
        lambda short, long: tuple(text_of(m) for m in sorted({*short, *long})),
        st.sets(st.sampled_from([15, 20, 35, 60, 75, 120, 345, 360]), min_size=1, max_size=3),
        st.sets(st.sampled_from([420, 1440, 2 * 1440, 7 * 1440, 9 * 1440, 30 * 1440]), max_size=3),
    ),
)
"""Lengths of windows: minutes, hours and days, and days alone."""


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
