# core
"""The memory of a tile store: its arena, how much of it there is, and from when on it counts time. Pure."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from millrace.basics import durations
from millrace.windows import tile_kernels
from millrace.windows.tile_kernels import BASE, KEYS, NO_UNIT, UNITS, USED, Arena, Spans

I64 = NDArray[np.int64]

SLACK_H = 3
"""Hours that merging waits, so that a reader whose clock is up to three hours behind still gets every
window exactly."""
UNIT = 1 << 24
"""The weight of an event of age 0 in decayed counts."""
HOURS = 1 << 20
"""Hours since 1970 that a store can name: until the year 2089."""
_BASES = 128 * durations.DAY_MIN
"""Minutes between two bases of a store; see :mod:`millrace.windows.tile_kernels`."""


@lru_cache(maxsize=16)
def unit_minutes(lengths: tuple[int | str, ...]) -> int:
    """The unit of tiles for windows of these lengths, in minutes."""
    return durations.unit_minutes(durations.lengths_in_minutes(lengths))


@lru_cache(maxsize=16)
def spans_of(lengths: tuple[int | str, ...], half_lives: tuple[float, ...]) -> Spans:
    """What is read off a tile list. Read-only, and remembered: each request needs it."""
    minutes = durations.lengths_in_minutes(lengths)
    unit = durations.unit_minutes(minutes)
    window = [m // unit for m in minutes]
    window_grain = [durations.grain_minutes(m) // unit for m in minutes]
    grain = sorted({1, *window_grain})
    if unit < durations.HOUR_MIN:  # every step between: a day is not kept in tiles of five minutes until it is over
        grain = [g // unit for _, g in durations.GRAINS_MIN if unit <= g <= unit * grain[-1]]
    reach = [max([w for w, g in zip(window, window_grain, strict=True) if g <= most], default=0) for most in grain]
    # Past 25 half-lives a weight rounds to 0; a tile may be a day younger than its first unit.
    day = durations.DAY_MIN // unit
    lives = [h * day for h in half_lives]
    ages = min(window[-1] + day + 1, int(25 * max(lives)) + day + 1) if lives else 0
    age = (np.arange(2 * ages + 2) - 1) / 2
    weights = [np.round(UNIT * np.exp2(-age / h)) for h in lives]
    fade: I64 = np.array(weights, np.int64).reshape(len(lives), -1 if lives else 0)
    return Spans(
        window=np.array(window, np.int64),
        window_grain=np.array(window_grain, np.int64),
        grain=np.array(grain, np.int64),
        reach=np.array(reach, np.int64),
        fade=fade,
        ages=ages,
        unit=unit * 60_000,
    )


class TileMemory:
    """The arena of one store, which grows with it.

    Raises:
        ValueError: the windows are too long for one list of so many columns.
    """

    def __init__(self, spans: Spans, columns: int) -> None:
        self.unit_min = spans.unit // 60_000
        grain, reach = spans.grain, spans.reach
        hour = durations.HOUR_MIN // self.unit_min
        slack = SLACK_H * hour
        # A merged list has no more tiles than this: one for each step of a grain within that grain's reach.
        most = int(sum(r // g for r, g in zip(reach, grain, strict=True))) + slack + 61
        most *= tile_kernels.LEVELS * -(-columns // tile_kernels.DIGITS)  # words
        if most >= 1 << 16:
            raise ValueError(f"windows of {columns} columns are too long for one list of tiles")
        caps = _size_classes(most)
        self.arena = Arena(
            table=np.zeros((1024, 2), np.uint64),
            shift=_shift(1024),
            pool=np.empty(1024 + 4 * int(caps[-1]), np.uint64),
            free=np.full(len(caps), -1, np.int64),
            state=np.array([0, 0, NO_UNIT, 0], np.int64),
            caps=caps,
            grain=grain,
            reach=reach,
            slack=slack,
            early=slack if hour == 1 else 0,
            turn=max(hour, int(grain[min(1, len(grain) - 1)])),
            unit=spans.unit,
            end=HOURS * hour,
        )

    def copy(self) -> Arena:
        """The arena as it is, apart from what happens later; as fast as memory is."""
        own = self.arena
        pool = own.pool[: own.state[USED]].copy()
        return own._replace(table=own.table.copy(), pool=pool, free=own.free.copy(), state=own.state.copy())

    def reach(self, unit: int) -> bool:
        """Moves the base up when a unit since 1970 cannot be named from it; whether it did."""
        arena = self.arena
        base = int(arena.state[BASE])
        if not UNITS <= unit - base < arena.end - base:
            return False
        every = _BASES // self.unit_min
        tile_kernels.rebase(arena, (unit - UNITS // 2) // every * every)
        return True

    def grow(self, width: int) -> None:
        """Makes room for any row of ``width`` keys; in proportion to what there is, so that copying stays cheap."""
        arena = self.arena
        keys, used = int(arena.state[KEYS]), int(arena.state[USED])
        if (keys + width) * 10 > len(arena.table) * 7:
            self.reserve(max(keys + width, keys * 5 // 4), 0)
        room = width * int(arena.caps[-1])
        if used + room > len(arena.pool):
            live = int(tile_kernels.live_words(self.arena))
            if live < used * 7 // 8:  # an eighth of the pool is blocks that lists have grown out of
                self.arena = self.arena._replace(pool=np.empty(live * 9 // 8 + room, np.uint64))
                tile_kernels.move_pool(arena.pool, self.arena)
            else:
                self.reserve(0, used * 9 // 8 + room)

    def reserve(self, keys: int, words: int) -> None:
        """Makes the table wide enough for ``keys`` keys, and the pool ``words`` words long."""
        old = self.arena
        size = len(old.table)
        while keys * 10 > size * 7:
            size *= 2
        if size > len(old.table):
            self.arena = self.arena._replace(table=np.zeros((size, 2), np.uint64), shift=_shift(size))
            tile_kernels.rehash(old.table, self.arena)
        if words > len(old.pool):
            pool = np.empty(words, np.uint64)
            used = int(old.state[USED])
            pool[:used] = old.pool[:used]
            self.arena = self.arena._replace(pool=pool)


def _shift(size: int) -> int:
    return 65 - size.bit_length()


def _size_classes(most: int) -> I64:
    """Block sizes in words: 1, 2, .. 8, 10, 12, 14, 16, 20, .. From 8 on each is at most a quarter above the last."""
    sizes = [1, 2, 3, 4, 5, 6, 7, 8]
    while sizes[-1] < most:
        sizes.append(sizes[-4] * 2)
    return np.array(sizes, np.int64)
