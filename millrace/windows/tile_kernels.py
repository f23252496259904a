# core
"""The compiled loops of the tile store.

::

    table (C, 2) uint64   open addressing, C a power of two:  [key, meta]   key 0 = empty
    meta                  offset 32 bits | words 16 bits | size class 8 bits | due 7 bits | changed 1 bit
    pool  (P,) uint64     the words of a key stand side by side, ascending
    word                  first unit 20 bits | group 2 bits | level 2 bits | five digits of 8 bits
    free  (classes,)      first free block of each size class or -1; a free block's first word: the next one + 1
    state (4,)            keys, pool words used, newest unit, base

Time is counted in *units*: hours, or 15 or 5 minutes where a window is of six hours or less. A *tick* is a unit's
number from the store's *base* on. 20 bits of hours reach from 1970, the base, to 2089; of finer units ten years or
more. When an event comes beyond them, the base moves up (:func:`rebase`), and tiles five years older than that
event, which no window reaches, are dropped. The base is a multiple of 128 days, so tiles and turns modulo 128 are
the same as from 1970.

A tile is one word while each of its counts is below 256: digit d of group g counts column 5 g + d. A greater count
overflows into a second word of the same unit: digits at level l (of four) are worth 256^l. Zero words are not
stored.

A tile is named by its first unit. Nothing stores whether it has been merged into 6 hours or a day: a window of grain
g asks for first units >= a multiple of g, and merging moves a first unit down to a multiple of the coarser grain
only when no window of a finer grain can reach it any more. So merging never changes a sum.

A decayed count weighs each word by its age. The age follows from the word's and the reader's unit alone:
:func:`_weights` uses the tile in which the word's events lie by now, merged or not. So merging never changes a
decayed count either. Weights are whole numbers of 2^-24, so a sum does not depend on the order of its terms, and the
sums of several stores add up to that of one store. Decayed counts are as of the reader's full unit;
:mod:`millrace.windows.features` applies the rest of the unit.

Most keys have nothing to merge for days. So an entry's ``due`` says at which turn of sweeping (modulo 128, at most
63 ahead) its list must be looked at. A sweep goes through the table in order and touches only the lists that are
due.

Symbols: n rows, K keys a row, W windows, H half-lives, A columns (actions, then the sums of means), M sums, L grains,
T tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.basics.probing import home_slot, place, vacate

Array = NDArray[Any]
KEYS, USED, NEWEST, BASE = 0, 1, 2, 3
NO_UNIT = -(1 << 40)
"""The newest unit of a store that has seen no event."""
AHEAD = 64  # keys looked up before they are worked on
DROPPED = -1
_FAR_TURNS = 63
_META = np.uint64(0xFFFF)
_EVEN, _ODD = np.uint64(0x00FF_00FF_00FF), np.uint64(0x00FF_00FF)  # digits 0, 2, 4 and, moved down by one, 1, 3
_LANE = np.uint64(0xFFFF)
_HIGH_BITS = np.uint64(0x80_8080_8080)  # a digit with its own needs two bytes as a varint
_BEFORE_ALL = np.int64(-(1 << 60))
DIGITS, LEVELS, GROUPS = 5, 4, 4
_LAST_WORD = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_MOST = np.int64(0xFFFF_FFFF)  # what four levels can hold
UNITS = 1 << 20
"""Units that words can name, from the base on."""


class Arena(NamedTuple):
    """A store's memory, and how its tiles merge. ``free`` and ``state`` are written in place; a store that grows gets a
    new arena with the same ``free`` and ``state``."""

    table: Array  # (C, 2) uint64
    shift: int  # 64 - log2 C: a key's hash shifted by it is its home in the table
    pool: Array  # (P,) uint64
    free: Array  # (classes,) int64
    state: Array  # (4,) int64; newest unit, like every unit within the store, from the base on
    caps: Array  # (classes,) int64, words of a block of each size class
    grain: Array  # (L,) int64, units, ascending, each a multiple of the one before
    reach: Array  # (L,) int64, units of the longest window whose grain is at most that
    slack: int  # units that merging waits for readers whose clock is behind
    early: int  # of them, those that the end of a key does not wait: all where units are hours, else none
    turn: int  # units between two turns of sweeping: lists are looked at, and keys end, at multiples of it only
    unit: int  # milliseconds
    end: int  # units since 1970 from which on no time can be named


class Spans(NamedTuple):
    """What is read off a list of tiles: W windows and H half-lives. Lengths are in units."""

    window: Array  # (W,) int64, ascending
    window_grain: Array  # (W,) int64
    grain: Array  # (L,) int64, as in the arena
    reach: Array  # (L,) int64, as in the arena
    fade: Array  # (H, 2 ages + 2) int64: weight at the age of (i - 1) / 2 units
    ages: int  # units after which an event weighs nothing; 0 without half-lives
    unit: int  # milliseconds


class EventRows(NamedTuple):
    """Events to count."""

    keys: Array  # (n, K) uint64
    ts_ms: Array  # (n,) int64
    column: Array  # (n,) int64
    amount: Array  # uint32; (n,) to be added to the column, or (n, M) to be added to the last M columns besides


@njit(inline="always")
def _offset(meta: Any) -> Any:
    return np.int64(meta >> np.uint64(32))


@njit(inline="always")
def _head(word: Any) -> Any:
    """Tick, group and level of a word. Words are ordered by it."""
    return np.int64(word >> np.uint64(40))


@njit(inline="always")
def _tick(word: Any) -> Any:
    return np.int64(word >> np.uint64(44))


@njit(inline="always")
def _first_word(tick: Any) -> Any:
    return _LAST_WORD if tick >= UNITS else np.uint64(max(tick, 0)) << np.uint64(44)


@njit(inline="always")
def _digit(word: Any, slot: Any) -> Any:
    return np.int64((word >> np.uint64(8 * slot)) & np.uint64(255))


@njit(inline="always")
def _words(meta: Any) -> Any:
    return np.int64((meta >> np.uint64(16)) & _META)


@njit(inline="always")
def _class(meta: Any) -> Any:
    return np.int64((meta >> np.uint64(8)) & np.uint64(0xFF))


@njit(inline="always")
def _flags(meta: Any) -> Any:
    return meta & np.uint64(0xFF)


@njit(inline="always")
def _pack(offset: Any, words: Any, cls: Any, flags: Any) -> Any:
    return (
        (np.uint64(offset) << np.uint64(32))
        | (np.uint64(words) << np.uint64(16))
        | (np.uint64(cls) << np.uint64(8))
        | np.uint64(flags)
    )


@compiled
def _find(table: Array, shift: Any, key: Any) -> Any:
    """The place of ``key`` in the table, or the empty place where it would stand."""
    return place(table[:, 0], home_slot(key, shift), key)


@njit(inline="always")
def _allocate(arena: Arena, cls: Any) -> Any:
    """The offset of a block of class ``cls``. The caller has made sure that the end of the pool has room."""
    offset = arena.free[cls]
    if offset >= 0:
        arena.free[cls] = np.int64(arena.pool[offset]) - 1
        return offset
    offset = arena.state[USED]
    arena.state[USED] += arena.caps[cls]
    return offset


@compiled
def _release(pool: Array, free: Array, offset: Any, cls: Any) -> None:
    pool[offset] = np.uint64(free[cls] + 1)
    free[cls] = offset


@compiled
def first_tick(tick: Any, now: Any, grain: Array, reach: Array) -> Any:
    """The first unit of the tile that ``tick`` belongs to at ``now``, or DROPPED when no window reaches it any more.

    ``grain`` and ``reach`` (L,) are the arena's. Units merge into the next grain once the finer windows have left
    all of it.
    """
    if tick >= now - reach[0]:  # nearly always, and a division is slow
        return tick
    last = len(grain) - 1
    out = tick
    for level in range(last):
        start = tick // grain[level + 1] * grain[level + 1]
        if start + grain[level + 1] > now - reach[level]:
            return out
        out = start
    if tick // grain[last] < (now - reach[last]) // grain[last]:
        return np.int64(DROPPED)
    return out


@compiled
def _add_up(pool: Array, start: Any, stop: Any, to: Any, tick: Any) -> Any:
    """Writes the sum of the words [start, stop) as one tile of ``tick``, from ``to`` on. Returns its number of words.

    There are never more than before, since a carry comes from two words at least. So ``to`` may be ``start``.
    """
    sums = np.zeros(GROUPS * DIGITS, np.int64)
    for j in range(start, stop):
        word = pool[j]
        head = _head(word)
        for slot in range(DIGITS):
            at = (head >> 2 & 3) * DIGITS + slot
            sums[at] = min(sums[at] + (_digit(word, slot) << (8 * (head & 3))), _MOST)
    left = 0
    for group in range(GROUPS):
        for level in range(LEVELS):
            digits = np.uint64(0)
            for slot in range(DIGITS):
                digits |= np.uint64(sums[group * DIGITS + slot] >> (8 * level) & 255) << np.uint64(8 * slot)
            if digits:
                pool[to + left] = np.uint64(tick << 4 | group << 2 | level) << np.uint64(40) | digits
                left += 1
    return left


@compiled
def _due(pool: Array, offset: Any, n: Any, now: Any, early: Any, every: Any, grain: Array, reach: Array) -> Any:
    """The first turn (modulo 128, one each ``every`` units) after ``now`` at which a list must merge, drop or end.

    It follows from :func:`first_tick`: of the tiles to be merged into the next grain, the oldest goes first.
    """
    last = len(grain) - 1
    turn = now // every
    newest = _tick(pool[offset + n - 1])
    at = (turn + _FAR_TURNS) * every
    at = min(at, (newest // grain[last] + 1) * grain[last] + reach[last] - early)  # a key ends
    at = min(at, (_tick(pool[offset]) // grain[last] + 1) * grain[last] + reach[last])
    j = offset + n
    for level in range(last):
        wide = grain[level + 1]
        left = (now - reach[level]) // wide * wide  # the finer windows have left everything before this unit
        while j > offset and _tick(pool[j - 1]) >= left:
            j -= 1
        if j < offset + n:
            at = min(at, (max(_tick(pool[j]), left) // wide + 1) * wide + reach[level])
    return max(turn + 1, -(-at // every)) & 127


@njit(inline="always")
def _sooner(due: Any, other: Any, turn: Any) -> Any:
    """The earlier of two turns modulo 128. The second is ahead of ``turn``, the first may be overdue."""
    left = (due - turn) & 127
    return other if (other - turn) & 127 < left <= _FAR_TURNS else due


@compiled
def _merge(pool: Array, offset: Any, n: Any, now: Any, grain: Array, reach: Array) -> Any:
    """Merges and drops tiles in place; returns how many words are left."""
    left, j, end = offset, offset, offset + n
    while j < end:
        own = _tick(pool[j])
        tick = first_tick(own, now, grain, reach)
        start = j
        same = True
        while j < end and (_tick(pool[j]) == own or first_tick(_tick(pool[j]), now, grain, reach) == tick):
            same = same and _tick(pool[j]) == own
            j += 1
        if tick == DROPPED:
            continue
        if not same:
            left += _add_up(pool, start, j, left, tick)
        elif tick == own and left == start:
            left = j
        else:
            moved = np.uint64(own - tick) << np.uint64(44)
            for t in range(start, j):
                pool[left] = pool[t] - moved
                left += 1
    return left - offset


@compiled
def _words_up_to(pool: Array, offset: Any, n: Any, head: Any) -> Any:
    """How many of the ``n`` words have that head or a smaller one; nearly always all of them."""
    j = n
    while j > 0 and _head(pool[offset + j - 1]) > head:
        j -= 1
    return j


@njit(inline="always")
def _add(arena: Arena, key: Any, tick: Any, column: Any, amount: Any) -> Any:
    """Counts one event; returns whether the key was unchanged until now."""
    table, pool, state, caps = arena.table, arena.pool, arena.state, arena.caps
    grain, reach, early, every = arena.grain, arena.reach, arena.early, arena.turn
    now = state[NEWEST] - arena.slack
    tick = first_tick(tick, now, grain, reach)
    if tick == DROPPED:
        return False
    i = _find(table, arena.shift, key)
    group, bits = column // DIGITS, np.uint64(8 * (column % DIGITS))
    head = tick << 4 | group << 2
    value = np.int64(amount)
    if value == 0:
        return False
    if table[i, 0] == np.uint64(0):
        offset = _allocate(arena, 0)
        pool[offset] = np.uint64(head) << np.uint64(40)
        table[i, 0] = key
        table[i, 1] = _pack(offset, 1, 0, _due(pool, offset, 1, now, early, every, grain, reach) << 1)
        state[KEYS] += 1
    meta = table[i, 1]
    offset, n, cls = _offset(meta), _words(meta), _class(meta)
    due = np.int64(_flags(meta) >> np.uint64(1))
    for level in range(LEVELS):
        digit = value & 255
        if digit:
            j = _words_up_to(pool, offset, n, head)
            if j == 0 or _head(pool[offset + j - 1]) != head:
                if n == caps[cls]:
                    n = _merge(pool, offset, n, now, grain, reach)
                    if n == caps[cls]:
                        bigger = _allocate(arena, cls + 1)
                        for t in range(n):
                            pool[bigger + t] = pool[offset + t]
                        _release(pool, arena.free, offset, cls)
                        offset, cls = bigger, cls + 1
                    j = _words_up_to(pool, offset, n, head)
                if j == 0 or _head(pool[offset + j - 1]) != head:
                    for t in range(n, j, -1):
                        pool[offset + t] = pool[offset + t - 1]
                    pool[offset + j] = np.uint64(head) << np.uint64(40)
                    due = _sooner(due, _due(pool, offset + j, 1, now, early, every, grain, reach), now // every)
                    n += 1
                    j += 1
            at = offset + j - 1
            total = np.int64(pool[at] >> bits & np.uint64(255)) + digit
            if total > 255 and level == LEVELS - 1:  # too great a sum stays the greatest, it does not begin again
                total = np.int64(255)
            pool[at] = (pool[at] & ~(np.uint64(255) << bits)) | (np.uint64(total & 255) << bits)
            value += (total >> 8) << 8
        value >>= 8
        if value == 0:
            break
        head += 1
    table[i, 1] = _pack(offset, n, cls, due << 1 | 1)
    return (meta & np.uint64(1)) == np.uint64(0)


@njit(inline="always")
def _has_room(arena: Arena, width: Any) -> Any:
    """Whether any ``width`` keys can be added: they fill at most 70% of the table, and take a largest block each."""
    keys, used = arena.state[KEYS], arena.state[USED]
    return (keys + width) * 10 <= len(arena.table) * 7 and used + width * arena.caps[-1] <= len(arena.pool)


@compiled
def _prefetch(table: Array, shift: Any, pool: Array, keys: Array, start: Any, stop: Any, places: Array) -> Any:
    """Looks up the keys of the rows [start, stop) in advance, so that their cache misses overlap.

    Its result is not used: without it the compiler would leave the reads out.
    """
    width = keys.shape[1]
    for i in range(start, stop):
        for k in range(width):
            places[i - start, k] = _find(table, shift, keys[i, k])
    unneeded = np.uint64(0)
    for i in range(stop - start):
        for k in range(width):
            meta = table[places[i, k], 1]
            if meta != np.uint64(0):
                offset, n = _offset(meta), _words(meta)
                unneeded += pool[offset] + pool[offset + n - 1]
    return np.int64(unneeded & np.uint64(0xFFFF))


@compiled
def add_rows(arena: Arena, rows: EventRows, fresh: Array, cursor: Array) -> None:
    """Adds rows from ``cursor[0]`` on until all are added, there is no room, or a time is beyond this base's units.

    ``fresh[: cursor[1]]`` are the flat indices of the keys that had not changed before.
    """
    keys, ts_ms, column, amount, state = rows.keys, rows.ts_ms, rows.column, rows.amount, arena.state
    n, width = keys.shape
    unit, base = arena.unit, state[BASE]
    ahead = max(1, AHEAD // max(1, width))
    places = np.empty((ahead, width), np.int64)
    looked_up = cursor[0]
    while cursor[0] < n:
        if not _has_room(arena, width):
            return
        i = cursor[0]
        tick = ts_ms[i] // unit - base
        if UNITS <= tick < arena.end - base:
            return
        if i == looked_up:
            looked_up = min(i + ahead, n)
            cursor[2] += _prefetch(arena.table, arena.shift, arena.pool, keys, i, looked_up, places)
        nameable = 0 <= tick < UNITS
        if nameable:
            state[NEWEST] = max(state[NEWEST], tick)
        for k in range(width):
            if nameable and keys[i, k] != np.uint64(0) and _add(arena, keys[i, k], tick, column[i], amount[i]):
                fresh[cursor[1]] = i * width + k
                cursor[1] += 1
        cursor[0] += 1


@compiled
def _tails(ts_ms: Any, spans: Spans, base: Any, tails: Array) -> None:
    """``tails[w]``: the first unit that window w counts, ``floor((ts - W) / grain) * grain``."""
    window, unit = spans.window, spans.unit
    for w in range(len(window)):
        grain = spans.window_grain[w]
        tails[w] = (ts_ms - window[w] * unit) // (grain * unit) * grain - base


@compiled
def _sum_windows(pool: Array, offset: Any, n: Any, stop: Any, tails: Array, total: Array, out: Array) -> None:
    """Window sums of one list in one pass, newest word first: of the tiles that begin before the unit ``stop``. ``out``
    (W or more, A); ``total`` (20,) is scratch. The digits of group 0 are summed in lanes of 16 bits, split at each
    tail."""
    columns = out.shape[1]
    for a in range(len(total)):
        total[a] = 0
    end = _first_word(stop)
    j = offset + n - 1
    while j >= offset and pool[j] >= end:
        j -= 1
    for w in range(len(tails)):
        tail = _first_word(tails[w])
        while j >= offset and pool[j] >= tail:
            even, odd, even_1, odd_1 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)  # of levels 0 and 1
            full = max(offset, j - 254)  # 255 digits of 255 fill a lane
            while j >= full:
                word = pool[j]
                if word < tail:
                    break
                kind = _head(word) & 15
                if kind == 0:
                    even += word & _EVEN
                    odd += word >> np.uint64(8) & _ODD
                elif kind == 1:
                    even_1 += word & _EVEN
                    odd_1 += word >> np.uint64(8) & _ODD
                else:
                    for slot in range(DIGITS):
                        total[(kind >> 2) * DIGITS + slot] += _digit(word, slot) << (8 * (kind & 3))
                j -= 1
            for a in range(min(columns, DIGITS)):
                lane = np.uint64(16 * (a >> 1))
                if a & 1:
                    total[a] += np.int64(odd >> lane & _LANE) + (np.int64(odd_1 >> lane & _LANE) << 8)
                else:
                    total[a] += np.int64(even >> lane & _LANE) + (np.int64(even_1 >> lane & _LANE) << 8)
        for a in range(columns):
            out[w, a] = total[a]


@compiled
def _weights(tick: Any, grain: Array, reach: Array, fade: Array, out: Array) -> None:
    """``out`` (H, ages): the weight of an event at the full unit ``tick``, by how many units before it its word begins.

    ``grain``, ``reach`` and ``fade`` are those of :class:`Spans`. A tile of g units from f on is as old as its middle,
    ``tick - f - g / 2``; the tile of ``tick`` itself is half a unit below 0 old.
    """
    age = 0
    while age < out.shape[1]:
        first, wide = tick - age, np.int64(1)
        for level in range(len(grain) - 1):  # as in first_tick
            start = first // grain[level + 1] * grain[level + 1]
            if start + grain[level + 1] > tick - reach[level]:
                break
            first, wide = start, grain[level + 1]
        at = 2 * (tick - first) - wide + 1
        stop = min(tick - first + 1, out.shape[1])  # the units of one tile weigh the same
        for h in range(len(fade)):
            out[h, age:stop] = fade[h, at] if at < fade.shape[1] else 0
        age = stop


@compiled
def _sum_decayed(
    pool: Array, offset: Any, n: Any, tick: Any, newest: Any, tails: Array, weights: Array, out: Array
) -> None:
    """Adds the decayed counts of one list at ``tick`` to the H rows of ``out`` behind the windows', of units from the
    last of ``tails`` to ``newest``."""
    lives, ages = weights.shape
    first, tail = len(tails), tails[-1]
    for j in range(offset + n - 1, offset - 1, -1):
        word = pool[j]
        own = _tick(word)
        if own < tail or tick - own >= ages:
            return
        if own <= newest:
            kind = _head(word) & 15
            shift, start = 8 * (kind & 3), (kind >> 2) * DIGITS
            for slot in range(min(DIGITS, out.shape[1] - start)):
                count = _digit(word, slot) << shift
                if count:
                    for h in range(lives):
                        out[first + h, start + slot] += count * weights[h, tick - own]


@compiled
def _first_exposed(pool: Array, offset: Any, n: Any, tick: Any, newest: Any, tail: Any, spans: Spans) -> Any:
    """The first unit of the oldest tile with an exposure (column 0) that begins from ``tail`` to ``newest``, as it is
    at ``tick``, merged yet or not; -1: there is none."""
    for j in range(offset, offset + n):
        own = _tick(pool[j])
        if own > newest:
            break
        if own >= tail and _head(pool[j]) >> 2 & 3 == 0 and _digit(pool[j], 0):
            return first_tick(own, tick, spans.grain, spans.reach)
    return np.int64(-1)


@compiled
def count_rows(arena: Arena, spans: Spans, keys: Array, ts_ms: Array, out: Array) -> Any:
    """Reads each key's counts (n,) at its time (n,) into ``out`` (n, W + H, A), zeros on entry. A further row begins
    with the unit since 1970 of the key's first exposure in the longest window. Result as :func:`_prefetch`."""
    table, pool, fade = arena.table, arena.pool, spans.fade
    unit, base = arena.unit, arena.state[BASE]
    n = len(keys)
    weights = np.empty((len(fade), spans.ages), np.int64)
    weighed = _BEFORE_ALL
    tails = np.empty(len(spans.window), np.int64)
    tick = newest = np.int64(0)
    total = np.empty(GROUPS * DIGITS, np.int64)
    column = keys.reshape((n, 1))
    places = np.empty((AHEAD, 1), np.int64)
    unneeded = np.int64(0)
    for start in range(0, n, AHEAD):
        stop = min(start + AHEAD, n)
        unneeded += _prefetch(table, arena.shift, pool, column, start, stop, places)
        for i in range(start, stop):
            if i == 0 or ts_ms[i] != ts_ms[i - 1]:
                _tails(ts_ms[i], spans, base, tails)
                tick = ts_ms[i] // unit - base
                newest = tick - (ts_ms[i] == (tick + base) * unit)
            meta = table[places[i - start, 0], 1]
            if keys[i] != np.uint64(0) and meta != np.uint64(0):
                _sum_windows(pool, _offset(meta), _words(meta), newest + 1, tails, total, out[i])
                if len(fade):
                    if tick != weighed:
                        _weights(tick, spans.grain, spans.reach, fade, weights)
                        weighed = tick
                    _sum_decayed(pool, _offset(meta), _words(meta), tick, newest, tails, weights, out[i])
                if out.shape[1] > len(tails) + len(fade):
                    first = _first_exposed(pool, _offset(meta), _words(meta), tick, newest, tails[-1], spans)
                    out[i, -1, 0] = first + base if first >= 0 else 0
    return unneeded


@compiled
def run_rows(arena: Arena, spans: Spans, rows: EventRows, out: Array, cursor: Array) -> None:
    """Counts rows into ``out`` (n, K, W + H, A) or one row more, as :func:`count_rows`, and adds them. All
    rows of one time stamp are counted before any is added. It stops as :func:`add_rows` does. ``cursor``: how many rows
    are added, how many counted."""
    keys, ts_ms, column, sums = rows.keys, rows.ts_ms, rows.column, rows.amount
    table, pool, state, fade = arena.table, arena.pool, arena.state, spans.fade
    unit, base = arena.unit, state[BASE]
    n, width = keys.shape
    weights = np.empty((len(fade), spans.ages), np.int64)
    weighed = _BEFORE_ALL
    first_sum = out.shape[3] - sums.shape[1]
    tails = np.empty(len(spans.window), np.int64)
    total = np.empty(GROUPS * DIGITS, np.int64)
    one = np.uint32(1)
    ahead = max(1, AHEAD // max(1, width))
    places = np.empty((ahead, width), np.int64)
    looked_up = cursor[1]
    while cursor[0] < n:
        if cursor[0] == cursor[1]:
            ts = ts_ms[cursor[0]]
            _tails(ts, spans, base, tails)
            present = ts // unit - base
            if len(fade) and present != weighed:
                _weights(present, spans.grain, spans.reach, fade, weights)
                weighed = present
            i = cursor[0]
            while i < n and ts_ms[i] == ts:
                if i == looked_up:
                    looked_up = min(i + ahead, n)
                    cursor[2] += _prefetch(table, arena.shift, pool, keys, i, looked_up, places)
                for k in range(width):
                    if i > cursor[0] and keys[i, k] == keys[i - 1, k]:  # the rows of a page share its user
                        for w in range(out.shape[2]):
                            for a in range(out.shape[3]):
                                out[i, k, w, a] = out[i - 1, k, w, a]
                    elif keys[i, k] != np.uint64(0):
                        at = _find(table, arena.shift, keys[i, k])
                        if table[at, 0] != np.uint64(0):
                            meta = table[at, 1]
                            offset, words = _offset(meta), _words(meta)
                            _sum_windows(pool, offset, words, present + 2, tails, total, out[i, k])
                            if len(fade):
                                _sum_decayed(pool, offset, words, present, present, tails, weights, out[i, k])
                            if out.shape[2] > len(tails) + len(fade):
                                first = _first_exposed(pool, offset, words, present, present, tails[-1], spans)
                                out[i, k, -1, 0] = first + base if first >= 0 else 0
                i += 1
            cursor[1] = i
        while cursor[0] < cursor[1]:
            if not _has_room(arena, width):
                return
            i = cursor[0]
            tick = ts_ms[i] // unit - base
            if UNITS <= tick < arena.end - base:
                return
            nameable = 0 <= tick < UNITS
            if nameable:
                state[NEWEST] = max(state[NEWEST], tick)
            for k in range(width):
                if nameable and keys[i, k] != np.uint64(0):
                    _add(arena, keys[i, k], tick, column[i], one)
                    for m in range(sums.shape[1]):
                        if sums[i, m]:
                            _add(arena, keys[i, k], tick, first_sum + m, sums[i, m])
            cursor[0] += 1


@compiled
def rehash(old: Array, arena: Arena) -> None:
    """Moves every entry of the table ``old`` into the arena's empty table."""
    table = arena.table
    for i in range(len(old)):
        if old[i, 0] != np.uint64(0):
            at = _find(table, arena.shift, old[i, 0])
            table[at, 0] = old[i, 0]
            table[at, 1] = old[i, 1]


@compiled
def live_words(arena: Arena) -> Any:
    """Words of the pool that the lists would take, each in a block of the smallest class that fits."""
    table, caps = arena.table, arena.caps
    words = 0
    for i in range(len(table)):
        if table[i, 0] != np.uint64(0):
            words += caps[np.searchsorted(caps, _words(table[i, 1]))]
    return words


@compiled
def move_pool(old: Array, arena: Arena) -> None:
    """Moves every list from the pool ``old`` into the arena's empty pool, without holes, in blocks that fit."""
    table, pool, caps = arena.table, arena.pool, arena.caps
    at = 0
    for i in range(len(table)):
        if table[i, 0] != np.uint64(0):
            meta = table[i, 1]
            offset, n = _offset(meta), _words(meta)
            cls = np.searchsorted(caps, n)
            pool[at : at + n] = old[offset : offset + n]
            table[i, 1] = _pack(at, n, cls, _flags(meta))
            at += caps[cls]
    arena.free[:] = -1
    arena.state[USED] = at


@compiled
def rebase(arena: Arena, base: Any) -> None:
    """Counts units from a later ``base`` on and drops older tiles. An empty list keeps a zero tile
    until it is swept."""
    table, pool, state = arena.table, arena.pool, arena.state
    shift = base - state[BASE]
    for i in range(len(table)):
        meta = table[i, 1]
        if table[i, 0] != np.uint64(0):
            offset, n = _offset(meta), _words(meta)
            left = 0
            for j in range(offset, offset + n):
                if _tick(pool[j]) >= shift:
                    pool[offset + left] = pool[j] - (np.uint64(shift) << np.uint64(44))
                    left += 1
            if left == 0:
                pool[offset] = np.uint64(0)
            table[i, 1] = _pack(offset, max(left, 1), _class(meta), _flags(meta))
    state[BASE] = base
    if state[NEWEST] != NO_UNIT:
        state[NEWEST] -= shift


@compiled
def sweep(arena: Arena, tick: Any, start: Any, stop: Any, every_list: Any) -> Any:
    """Looks at the places [start, stop) of the table: at lists that are due, or at all. Drops keys that no window
    reaches at ``tick`` and merges the tiles of the others. Returns how many keys it dropped."""
    table, pool, free, state = arena.table, arena.pool, arena.free, arena.state
    caps, grain, reach, slack = arena.caps, arena.grain, arena.reach, arena.slack
    state[NEWEST] = max(state[NEWEST], tick)
    turn = (state[NEWEST] - slack) // arena.turn
    dropped = 0
    last = len(grain) - 1
    ends = (tick - slack + arena.early - reach[last]) // grain[last]  # a list without a tile from here on ends
    i = start
    while i < stop:
        if table[i, 0] == np.uint64(0):
            i += 1
            continue
        meta = table[i, 1]
        if not every_list and (turn - np.int64(_flags(meta) >> np.uint64(1))) & 127 > _FAR_TURNS:
            i += 1
            continue
        offset, n, cls = _offset(meta), _words(meta), _class(meta)
        newest = _tick(pool[offset + n - 1])
        left = 0
        if newest // grain[last] >= ends:
            left = _merge(pool, offset, n, state[NEWEST] - slack, grain, reach)
        if left == 0:
            _release(pool, free, offset, cls)
            vacate(table, i, arena.shift)
            state[KEYS] -= 1
            dropped += 1
            continue  # another entry may stand here now
        smaller = cls
        while smaller > 0 and caps[smaller - 1] >= left:
            smaller -= 1
        if smaller + 1 < cls and free[smaller] >= 0:  # the pool never grows here; a list does not move for one class
            to = _allocate(arena, smaller)
            pool[to : to + left] = pool[offset : offset + left]
            _release(pool, free, offset, cls)
            offset, cls = to, smaller
        due = _due(pool, offset, left, state[NEWEST] - slack, arena.early, arena.turn, grain, reach)
        table[i, 1] = _pack(offset, left, cls, np.uint64(due) << np.uint64(1) | meta & np.uint64(1))
        i += 1
    return dropped


@compiled
def list_sizes(arena: Arena, keys: Array, settle: Any, sizes: Array, places: Array) -> Any:
    """Merges the tiles of each key; ``sizes`` (n,): how many tiles are left, ``places`` (n,): where the key stands.
    With ``settle`` the keys are marked unchanged. Returns what :func:`_prefetch` does."""
    table, pool, state, grain, reach, slack = (
        arena.table, arena.pool, arena.state, arena.grain, arena.reach, arena.slack,
    )  # fmt: skip
    n = len(keys)
    column, at = keys.reshape((n, 1)), places.reshape((n, 1))
    unneeded = np.int64(0)
    for i in range(n):
        if i % AHEAD == 0:
            stop = min(i + AHEAD, n)
            unneeded += _prefetch(table, arena.shift, pool, column, i, stop, at[i:stop])
        sizes[i] = 0
        meta = table[places[i], 1]
        if keys[i] != np.uint64(0) and meta != np.uint64(0):
            offset, words, cls = _offset(meta), _words(meta), _class(meta)
            left = _merge(pool, offset, words, state[NEWEST] - slack, grain, reach)
            if left == 0:  # a list that fell empty keeps its first tile until it is swept
                pool[offset] = pool[offset] >> np.uint64(40) << np.uint64(40)
            before = np.int64(-1)
            for j in range(offset, offset + left):
                sizes[i] += _tick(pool[j]) != before
                before = _tick(pool[j])
            flags = _flags(meta) & np.uint64(0xFE) if settle else _flags(meta)
            table[places[i], 1] = _pack(offset, max(left, 1), cls, flags)
    return unneeded


@compiled
def words_of(tiles: Array, sizes: Array, words: Array) -> None:
    """``words`` (n,): how many words each list of ``tiles`` (T, 1 + A) takes."""
    row = 0
    nowhere = np.empty(0, np.uint64)
    for i in range(len(sizes)):
        words[i] = 0
        for _ in range(sizes[i]):
            words[i] += _write_words(tiles, row, 0, nowhere, 0)
            row += 1


@compiled
def _write_words(tiles: Array, row: Any, base: Any, pool: Array, to: Any) -> Any:
    """Writes tile ``row`` (units since 1970) as words from ``to`` on, unless ``pool`` is empty; returns its number of
    words."""
    n = 0
    columns = tiles.shape[1] - 1
    for group in range((columns + DIGITS - 1) // DIGITS):
        first = 1 + group * DIGITS
        for level in range(LEVELS):
            digits = np.uint64(0)
            for slot in range(min(DIGITS, columns + 1 - first)):
                digits |= np.uint64(np.int64(tiles[row, first + slot]) >> (8 * level) & 255) << np.uint64(8 * slot)
            if digits:
                if len(pool):
                    head = (np.int64(tiles[row, 0]) - base) << 4 | group << 2 | level
                    pool[to + n] = np.uint64(head) << np.uint64(40) | digits
                n += 1
    return n


@compiled
def scatter(arena: Arena, keys: Array, sizes: Array, words: Array, tiles: Array, cursor: Array) -> None:
    """Replaces the lists of ``keys`` (n,) by ``tiles`` (T, 1 + A), from key ``cursor[0]``, tile ``cursor[1]`` on, until
    the end or until there is no room. An empty list removes its key. Every tile is within this base's units.

    ``sizes`` (n,): tiles of each list; ``words`` (n,) come from :func:`words_of`.
    """
    table, pool, free, state, caps = arena.table, arena.pool, arena.free, arena.state, arena.caps
    base = state[BASE]
    while cursor[0] < len(keys):
        if not _has_room(arena, 1):
            return
        key, n, rows = keys[cursor[0]], words[cursor[0]], sizes[cursor[0]]
        cursor[0] += 1
        if key == np.uint64(0):
            cursor[1] += rows
            continue
        i = _find(table, arena.shift, key)
        if table[i, 0] != np.uint64(0):
            meta = table[i, 1]
            offset, cls = _offset(meta), _class(meta)
            if n == 0:
                _release(pool, free, offset, cls)
                vacate(table, i, arena.shift)
                state[KEYS] -= 1
                cursor[1] += rows
                continue
            if caps[cls] < n:
                _release(pool, free, offset, cls)
                offset = np.int64(-1)
        elif n == 0:
            cursor[1] += rows
            continue
        else:
            table[i, 0] = key
            state[KEYS] += 1
            offset, cls = np.int64(-1), np.int64(0)
        if offset < 0:
            cls = np.int64(0)
            while caps[cls] < n:
                cls += 1
            offset = _allocate(arena, cls)
        at = offset
        for row in range(cursor[1], cursor[1] + rows):
            at += _write_words(tiles, row, base, pool, at)
        cursor[1] += rows
        state[NEWEST] = max(state[NEWEST], _tick(pool[offset + n - 1]))
        due = _due(pool, offset, n, state[NEWEST] - arena.slack, arena.early, arena.turn, arena.grain, arena.reach)
        table[i, 1] = _pack(offset, n, cls, due << 1)


@compiled
def changed_bits(arena: Arena, keys: Array, out: Array) -> None:
    """``out`` (n,): 1 for each of the (present) keys that is marked as changed, else 0."""
    for i in range(len(keys)):
        out[i] = np.uint8(arena.table[_find(arena.table, arena.shift, keys[i]), 1] & np.uint64(1))


@compiled
def set_changed(arena: Arena, keys: Array, changed: Array) -> None:
    """Marks the (present) keys with ``changed`` 1 as changed."""
    for i in range(len(keys)):
        if changed[i]:
            arena.table[_find(arena.table, arena.shift, keys[i]), 1] |= np.uint64(1)


@compiled
def _write_varint(out: Array, at: Any, value: Any) -> Any:
    while value >= 128:
        out[at] = np.uint8((value & 127) | 128)
        value >>= 7
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@compiled
def pack_lists(arena: Arena, places: Array, sizes: Array, form: Any, columns: Any, out: Array, ends: Array) -> None:
    """The packed form (see ``windows/tiles.py``) of the lists that :func:`list_sizes` found, one after another.

    ``out`` has room for 9 bytes a list and 5 a number; ``ends`` (n,): where each list ends in it.
    """
    table, pool = arena.table, arena.pool
    at = 0
    counts = np.zeros(columns, np.int64)
    for i in range(len(places)):
        out[at] = form
        out[at + 1] = columns
        out[at + 2] = sizes[i] & 255
        out[at + 3] = sizes[i] >> 8
        at += 4
        if sizes[i]:
            meta = table[places[i], 1]
            j = _offset(meta)
            end = j + _words(meta)
            last = -arena.state[BASE]
            while j < end:
                word = pool[j]
                tick = _tick(word)
                at = _write_varint(out, at, tick - last)
                last = tick
                j += 1
                alone = j == end or _tick(pool[j]) != tick
                if alone and _head(word) & 15 == 0 and word & _HIGH_BITS == 0 and columns <= DIGITS:
                    for slot in range(columns):  # every count is one byte: nearly all tiles
                        out[at + slot] = np.uint8(word >> np.uint64(8 * slot) & np.uint64(255))
                    at += columns
                    continue
                counts[:] = 0
                j -= 1
                while j < end and _tick(pool[j]) == tick:
                    head = _head(pool[j])
                    first = (head >> 2 & 3) * DIGITS
                    for slot in range(min(DIGITS, columns - first)):
                        counts[first + slot] += _digit(pool[j], slot) << (8 * (head & 3))
                    j += 1
                for a in range(columns):
                    at = _write_varint(out, at, counts[a])
        ends[i] = at


@compiled
def read_sizes(raw: Array, ends: Array, form: Any, columns: Any, sizes: Array) -> Any:
    """``sizes`` (n,) from packed lists' headers. Returns -1, or the first list that is damaged or of another form."""
    start = np.int64(0)
    for i in range(len(ends)):
        length = ends[i] - start
        sizes[i] = 0
        if length < 0 or ends[i] > len(raw):
            return i
        if length:
            if length < 4 or raw[start] != form or raw[start + 1] != columns:
                return i
            sizes[i] = np.int64(raw[start + 2]) | np.int64(raw[start + 3]) << 8
            if sizes[i] * (1 + columns) > length - 4:  # so that a false header cannot cause an allocation
                return i
        start = ends[i]
    return -1


@compiled
def unpack(raw: Array, ends: Array, sizes: Array, stop: Any, out: Array) -> Any:
    """The inverse of :func:`pack_lists`: ``out`` (T, 1 + A). ``sizes`` come from :func:`read_sizes`; no tile begins at
    the unit ``stop`` or later. Returns -1, or the first list that is damaged."""
    at, row = 0, 0
    columns = out.shape[1] - 1
    for i in range(len(ends)):
        if ends[i] == at:  # no bytes at all are an empty list
            continue
        at += 4
        tick = np.int64(0)
        for _ in range(sizes[i]):
            for a in range(columns + 1):
                value, bits = np.int64(0), 0
                while True:
                    if at >= ends[i] or bits > 28:
                        return i
                    byte = np.int64(raw[at])
                    at += 1
                    value |= (byte & 127) << bits
                    bits += 7
                    if byte < 128:
                        break
                if a == 0:
                    if row and tick and value == 0:
                        return i
                    tick += value
                    value = tick
                    if tick >= stop:
                        return i
                if value > 0xFFFFFFFF:
                    return i
                out[row, a] = np.uint32(value)
            row += 1
        if at != ends[i]:
            return i
    return -1


@compiled
def sum_lists(spans: Spans, tiles: Array, sizes: Array, ts_ms: Any, present: Array, out: Array) -> None:
    """Reads packed lists' ``tiles`` (T, 1 + A), ``sizes`` (n,) each, as :func:`count_rows` reads a store's. List j goes
    to ``out[present[j]]``; ``out`` (.., W + H, A), zeros on entry."""
    window, fade, ages, unit = spans.window, spans.fade, spans.ages, spans.unit
    tails = np.empty(len(window), np.int64)
    _tails(ts_ms, spans, 0, tails)
    now = ts_ms // unit
    weights = np.empty((len(fade), ages), np.int64)
    _weights(now, spans.grain, spans.reach, fade, weights)
    first = 0
    for j in range(len(sizes)):
        for row in range(first, first + sizes[j]):
            tick = np.int64(tiles[row, 0])
            if tick * unit < ts_ms:
                for w in range(len(window)):
                    if tick >= tails[w]:
                        for a in range(tiles.shape[1] - 1):
                            out[present[j], w, a] += tiles[row, 1 + a]
                if tick >= tails[-1] and now - tick < ages:
                    for h in range(len(fade)):
                        for a in range(tiles.shape[1] - 1):
                            out[present[j], len(window) + h, a] += np.int64(tiles[row, 1 + a]) * weights[h, now - tick]
        first += sizes[j]
