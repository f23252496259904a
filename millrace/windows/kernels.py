"""The compiled loops of the tile store. One file, because numba's cache does not see a change in another file's callee.

::

    table (C, 2) uint64   open addressing, C a power of two:  [key, meta]   key 0 = empty
    meta                  offset 32 bits | words 16 bits | size class 8 bits | due 7 bits | changed 1 bit
    pool  (P,) uint64     a key's words stand side by side, ascending
    word                  first hour 20 bits | group 2 bits | level 2 bits | five digits of 8 bits
    free  (classes,)      first free block of each size class or -1; a free block's first word: the next one + 1
    state (3,)            keys, pool words used, newest hour

A tile is one word while each of its counts is below 256: digit d of group g counts action 5 g + d. A count beyond
overflows into a second word of the same hour, whose level says that its digits are worth 256 times as much (a count is
written to the base 256, so to say; there are four levels). Words that would be all zero are not there.

A tile is named by its first hour. Whether it is still an hour wide or has been merged into 6 hours or a day is never
stored: a window of grain g asks for first hours >= a multiple of g, and merging moves a first hour down to a multiple
of the coarser grain only once no window of a finer grain can reach it. So merging never changes a sum.

An exponentially decayed count weighs each word by an age that follows from two hours alone: the word's and the
reader's. From them :func:`_weights` derives the tile in which the word's events lie by now, merged already or not yet.
So merging never changes a decayed count either. Weights are whole numbers of 2^-24, hence sums do not depend on an
order, and those of several stores add up to that of one. Between two hours all of them fade alike, so the kernels
give decayed counts as of the reader's full hour, and :mod:`millrace.windows.features` applies the rest of the hour.

Most keys have nothing to merge for days. So an entry says when a sweep must look at its list again: ``due``, the number
of a turn of sweeping, modulo 128 and at most 63 turns ahead. A sweep reads the table in order, and the lists that are
due.

Symbols: n rows, K keys a row, W windows, H half-lives, A columns (actions, then sums for means), M sums, L grains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
HOUR_MS = 3_600_000
KEYS, USED, NEWEST = 0, 1, 2
AHEAD = 64  # keys looked up before they are worked on
DROPPED = -1
_FAR_TURNS = 63
_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)
_META = np.uint64(0xFFFF)
_EVEN, _ODD = np.uint64(0x00FF_00FF_00FF), np.uint64(0x00FF_00FF)  # digits 0, 2, 4 and, moved down by one, 1, 3
_LANE = np.uint64(0xFFFF)
_HIGH_BITS = np.uint64(0x80_8080_8080)  # a digit with its own needs two bytes as a varint
_BEFORE_ALL = np.int64(-(1 << 60))
DIGITS, LEVELS, GROUPS = 5, 4, 4
_LAST_WORD = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_MOST = np.int64(0xFFFF_FFFF)  # what four levels can hold
HOURS = 1 << 20
"""Hours since 1970 that a word can name: until the year 2089."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles on first use and keeps the code on disk; where no folder can be written to, compiles a process."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found nowhere to cache
        return njit(nogil=True)(function)


@njit(inline="always")
def _offset(meta: Any) -> Any:
    return np.int64(meta >> np.uint64(32))


@njit(inline="always")
def _head(word: Any) -> Any:
    """Hour, group and level of a word: what words are ordered by."""
    return np.int64(word >> np.uint64(40))


@njit(inline="always")
def _hour(word: Any) -> Any:
    return np.int64(word >> np.uint64(44))


@njit(inline="always")
def _first_word(hour: Any) -> Any:
    """Words of ``hour`` and later ones are at least this, those of earlier hours are smaller."""
    return _LAST_WORD if hour >= HOURS else np.uint64(max(hour, 0)) << np.uint64(44)


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
    """Due and changed."""
    return meta & np.uint64(0xFF)


@njit(inline="always")
def _pack(offset: Any, words: Any, cls: Any, flags: Any) -> Any:
    return (
        (np.uint64(offset) << np.uint64(32))
        | (np.uint64(words) << np.uint64(16))
        | (np.uint64(cls) << np.uint64(8))
        | np.uint64(flags)
    )


@_compiled
def _find(table: Array, shift: Any, key: Any) -> Any:
    """Where ``key`` stands in the table, or the empty place where it would."""
    mask = len(table) - 1
    i = np.int64((key * _FIBONACCI) >> np.uint64(shift))
    while table[i, 0] != key and table[i, 0] != np.uint64(0):
        i = (i + 1) & mask
    return i


@_compiled
def _allocate(pool: Array, free: Array, state: Array, caps: Array, cls: Any) -> Any:
    """A block of class ``cls``. The caller has made sure that the pool's tail has room."""
    offset = free[cls]
    if offset >= 0:
        free[cls] = np.int64(pool[offset]) - 1
        return offset
    offset = state[USED]
    state[USED] += caps[cls]
    return offset


@_compiled
def _release(pool: Array, free: Array, offset: Any, cls: Any) -> None:
    pool[offset] = np.uint64(free[cls] + 1)
    free[cls] = offset


@_compiled
def first_hour(hour: Any, now: Any, grain: Array, reach: Array) -> Any:
    """The first hour of the tile that ``hour`` belongs to at ``now``, or DROPPED when no window reaches it any more.

    ``grain`` (L,) hours, ascending, each a multiple of the one before; ``reach`` (L,) hours of the longest window
    whose grain is at most that. A block of the next grain may be merged once the finer windows have left it whole.
    """
    if hour >= now - reach[0]:  # almost always; dividing is slow
        return hour
    last = len(grain) - 1
    out = hour
    for level in range(last):
        start = hour // grain[level + 1] * grain[level + 1]
        if start + grain[level + 1] > now - reach[level]:
            return out
        out = start
    if hour // grain[last] < (now - reach[last]) // grain[last]:
        return np.int64(DROPPED)
    return out


@_compiled
def _add_up(pool: Array, start: Any, stop: Any, to: Any, hour: Any) -> Any:
    """Writes the sum of the words [start, stop) as one tile of ``hour`` to ``to`` on; returns how many words it takes.

    Never more than there were: a carry comes of two words at least. So ``to`` may be ``start``.
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
                pool[to + left] = np.uint64(hour << 4 | group << 2 | level) << np.uint64(40) | digits
                left += 1
    return left


@njit(inline="always")
def _every(grain: Array) -> Any:
    """Hours between two turns of sweeping: nothing merges or ends but at a multiple of this."""
    return grain[min(1, len(grain) - 1)]


@_compiled
def _due(pool: Array, offset: Any, n: Any, now: Any, slack: Any, grain: Array, reach: Array) -> Any:
    """The turn after that of ``now`` at which a list has something to merge or to drop, or ends, modulo 128.

    By :func:`first_hour`: of the tiles that a grain's block takes up next, the oldest is the first to go.
    """
    every, last = _every(grain), len(grain) - 1
    turn = now // every
    newest = _hour(pool[offset + n - 1])
    at = (turn + _FAR_TURNS) * every
    at = min(at, (newest // grain[last] + 1) * grain[last] + reach[last] - slack)  # merging waits for the slack only
    at = min(at, (_hour(pool[offset]) // grain[last] + 1) * grain[last] + reach[last])
    j = offset + n
    for level in range(last):
        wide = grain[level + 1]
        left = (now - reach[level]) // wide * wide  # what the finer windows have left is before this
        while j > offset and _hour(pool[j - 1]) >= left:
            j -= 1
        if j < offset + n:
            at = min(at, (max(_hour(pool[j]), left) // wide + 1) * wide + reach[level])
    return max(turn + 1, -(-at // every)) & 127


@njit(inline="always")
def _sooner(due: Any, other: Any, turn: Any) -> Any:
    """The earlier of two turns modulo 128, the second of which is ahead of ``turn``; the first may be overdue."""
    left = (due - turn) & 127
    return other if (other - turn) & 127 < left <= _FAR_TURNS else due


@_compiled
def _merge(pool: Array, offset: Any, n: Any, now: Any, grain: Array, reach: Array) -> Any:
    """Merges and drops tiles in place; returns how many words are left."""
    left, j, end = offset, offset, offset + n
    while j < end:
        own = _hour(pool[j])
        hour = first_hour(own, now, grain, reach)
        start = j
        same = True
        while j < end and (_hour(pool[j]) == own or first_hour(_hour(pool[j]), now, grain, reach) == hour):
            same = same and _hour(pool[j]) == own
            j += 1
        if hour == DROPPED:
            continue
        if not same:
            left += _add_up(pool, start, j, left, hour)
        elif hour == own and left == start:
            left = j
        else:
            moved = np.uint64(own - hour) << np.uint64(44)
            for t in range(start, j):
                pool[left] = pool[t] - moved
                left += 1
    return left - offset


@_compiled
def _place(pool: Array, offset: Any, n: Any, head: Any) -> Any:
    """How many of the ``n`` words have that head or a smaller one; almost always all of them."""
    j = n
    while j > 0 and _head(pool[offset + j - 1]) > head:
        j -= 1
    return j


@_compiled
def _add(
    table: Array,
    shift: Any,
    pool: Array,
    free: Array,
    state: Array,
    caps: Array,
    grain: Array,
    reach: Array,
    slack: Any,
    key: Any,
    hour: Any,
    action: Any,
    amount: Any,
) -> Any:
    """Counts one event; returns whether the key was unchanged until now."""
    now = state[NEWEST] - slack
    hour = first_hour(hour, now, grain, reach)
    if hour == DROPPED:
        return False
    i = _find(table, shift, key)
    group, bits = action // DIGITS, np.uint64(8 * (action % DIGITS))
    head = hour << 4 | group << 2
    value = np.int64(amount)
    if value == 0:
        return False
    if table[i, 0] == np.uint64(0):
        offset = _allocate(pool, free, state, caps, 0)
        pool[offset] = np.uint64(head) << np.uint64(40)
        table[i, 0] = key
        table[i, 1] = _pack(offset, 1, 0, _due(pool, offset, 1, now, slack, grain, reach) << 1)
        state[KEYS] += 1
    meta = table[i, 1]
    offset, n, cls = _offset(meta), _words(meta), _class(meta)
    due = np.int64(_flags(meta) >> np.uint64(1))
    for level in range(LEVELS):
        digit = value & 255
        if digit:
            j = _place(pool, offset, n, head)
            if j == 0 or _head(pool[offset + j - 1]) != head:
                if n == caps[cls]:
                    n = _merge(pool, offset, n, now, grain, reach)
                    if n == caps[cls]:
                        bigger = _allocate(pool, free, state, caps, cls + 1)
                        for t in range(n):
                            pool[bigger + t] = pool[offset + t]
                        _release(pool, free, offset, cls)
                        offset, cls = bigger, cls + 1
                    j = _place(pool, offset, n, head)
                if j == 0 or _head(pool[offset + j - 1]) != head:
                    for t in range(n, j, -1):
                        pool[offset + t] = pool[offset + t - 1]
                    pool[offset + j] = np.uint64(head) << np.uint64(40)
                    due = _sooner(due, _due(pool, offset + j, 1, now, slack, grain, reach), now // _every(grain))
                    n += 1
                    j += 1
            at = offset + j - 1
            total = np.int64(pool[at] >> bits & np.uint64(255)) + digit
            if total > 255 and level == LEVELS - 1:  # a sum too great stays great, it does not begin anew
                total = np.int64(255)
            pool[at] = (pool[at] & ~(np.uint64(255) << bits)) | (np.uint64(total & 255) << bits)
            value += (total >> 8) << 8
        value >>= 8
        if value == 0:
            break
        head += 1
    table[i, 1] = _pack(offset, n, cls, due << 1 | 1)
    return (meta & np.uint64(1)) == np.uint64(0)


@_compiled
def _room(table: Array, pool: Array, state: Array, caps: Array, width: Any) -> Any:
    """Whether ``width`` keys can be added whatever they are: at most 70% of the table, a largest block each."""
    return (state[KEYS] + width) * 10 <= len(table) * 7 and state[USED] + width * caps[-1] <= len(pool)


@_compiled
def _touch(table: Array, shift: Any, pool: Array, keys: Array, start: Any, stop: Any, places: Array) -> Any:
    """Looks the keys of rows [start, stop) up before they are worked on, so that their cache misses overlap.

    Returns a sum that nobody needs, to keep the compiler from leaving the reads out.
    """
    width = keys.shape[1]
    for i in range(start, stop):
        for k in range(width):
            places[i - start, k] = _find(table, shift, keys[i, k])
    used = np.uint64(0)
    for i in range(stop - start):
        for k in range(width):
            meta = table[places[i, k], 1]
            if meta != np.uint64(0):
                offset, n = _offset(meta), _words(meta)
                used += pool[offset] + pool[offset + n - 1]
    return np.int64(used & np.uint64(0xFFFF))


@_compiled
def add_rows(
    table: Array,
    shift: Any,
    pool: Array,
    free: Array,
    state: Array,
    caps: Array,
    grain: Array,
    reach: Array,
    slack: Any,
    keys: Array,
    ts_ms: Array,
    action: Array,
    amount: Array,
    fresh: Array,
    cursor: Array,
) -> None:
    """Adds rows from ``cursor[0]`` on until done or out of room.

    ``fresh[: cursor[1]]``: flat indices of the keys that had not changed before.
    """
    n, width = keys.shape
    ahead = max(1, AHEAD // max(1, width))
    places = np.empty((ahead, width), np.int64)
    touched = cursor[0]
    while cursor[0] < n:
        if not _room(table, pool, state, caps, width):
            return
        i = cursor[0]
        if i == touched:
            touched = min(i + ahead, n)
            cursor[2] += _touch(table, shift, pool, keys, i, touched, places)
        hour = ts_ms[i] // HOUR_MS
        nameable = 0 <= hour < HOURS
        if nameable:
            state[NEWEST] = max(state[NEWEST], hour)
        for k in range(width):
            key = keys[i, k]
            if (
                nameable
                and key != np.uint64(0)
                and _add(table, shift, pool, free, state, caps, grain, reach, slack, key, hour, action[i], amount[i])
            ):
                fresh[cursor[1]] = i * width + k
                cursor[1] += 1
        cursor[0] += 1


@_compiled
def _tails(ts_ms: Any, window: Array, window_grain: Array, tails: Array) -> None:
    """``tails[w]``: first hour that window w still counts, ``floor((ts - W) / grain) * grain``."""
    for w in range(len(window)):
        grain = window_grain[w]
        tails[w] = (ts_ms - window[w] * HOUR_MS) // (grain * HOUR_MS) * grain


@_compiled
def _sum(pool: Array, offset: Any, n: Any, ts_ms: Any, tails: Array, total: Array, out: Array) -> None:
    """Window sums of one list in one pass, newest word first. ``out`` (W, A) or longer, ``total`` (20,) is scratch.

    The digits of group 0 are added up side by side, in lanes of 16 bits, and taken apart at the end of each window.
    """
    actions = out.shape[1]
    for a in range(len(total)):
        total[a] = 0
    end = _first_word(ts_ms // HOUR_MS + (ts_ms % HOUR_MS > 0))  # tiles before this hour count
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
            for a in range(min(actions, DIGITS)):
                lane = np.uint64(16 * (a >> 1))
                if a & 1:
                    total[a] += np.int64(odd >> lane & _LANE) + (np.int64(odd_1 >> lane & _LANE) << 8)
                else:
                    total[a] += np.int64(even >> lane & _LANE) + (np.int64(even_1 >> lane & _LANE) << 8)
        for a in range(actions):
            out[w, a] = total[a]


@_compiled
def _weights(hour: Any, grain: Array, reach: Array, fade: Array, out: Array) -> None:
    """``out`` (H, ages): what an event counts at the full hour ``hour``, by how many hours its word's is before.

    ``fade`` (H, ages in half hours): ``fade[h, i]`` is the weight at the age of (i - 1) / 2 hours. A tile of g hours
    from f on is as old as its middle, ``hour - f - g / 2``: half an hour below 0 for that of ``hour`` itself.
    """
    for age in range(out.shape[1]):
        first, wide = hour - age, np.int64(1)
        for level in range(len(grain) - 1):  # as first_hour
            start = first // grain[level + 1] * grain[level + 1]
            if start + grain[level + 1] > hour - reach[level]:
                break
            first, wide = start, grain[level + 1]
        at = 2 * (hour - first) - wide + 1
        for h in range(len(fade)):
            out[h, age] = fade[h, at] if at < fade.shape[1] else 0


@_compiled
def _decay(pool: Array, offset: Any, n: Any, hour: Any, newest: Any, tail: Any, weights: Array, out: Array) -> None:
    """Adds the decayed counts of one list, of the words from ``tail`` to ``newest`` at ``hour``, to the last H rows of
    ``out``."""
    lives, ages = weights.shape
    first = len(out) - lives
    for j in range(offset + n - 1, offset - 1, -1):
        word = pool[j]
        own = _hour(word)
        if own < tail or hour - own >= ages:
            return
        if own <= newest:
            kind = _head(word) & 15
            shift, start = 8 * (kind & 3), (kind >> 2) * DIGITS
            for slot in range(min(DIGITS, out.shape[1] - start)):
                count = _digit(word, slot) << shift
                if count:
                    for h in range(lives):
                        out[first + h, start + slot] += count * weights[h, hour - own]


@_compiled
def count_rows(
    table: Array,
    shift: Any,
    pool: Array,
    window: Array,
    window_grain: Array,
    grain: Array,
    reach: Array,
    fade: Array,
    ages: Any,
    keys: Array,
    ts_ms: Array,
    out: Array,
) -> Any:
    """``out`` (n, W + H, A), zeros on entry. Returns what :func:`_touch` does."""
    n = len(keys)
    weights = np.empty((len(fade), ages), np.int64)
    weighed = _BEFORE_ALL
    tails = np.empty(len(window), np.int64)
    total = np.empty(GROUPS * DIGITS, np.int64)
    column = keys.reshape((n, 1))
    places = np.empty((AHEAD, 1), np.int64)
    used = np.int64(0)
    for start in range(0, n, AHEAD):
        stop = min(start + AHEAD, n)
        used += _touch(table, shift, pool, column, start, stop, places)
        for i in range(start, stop):
            if i == 0 or ts_ms[i] != ts_ms[i - 1]:
                _tails(ts_ms[i], window, window_grain, tails)
            meta = table[places[i - start, 0], 1]
            if keys[i] != np.uint64(0) and meta != np.uint64(0):
                _sum(pool, _offset(meta), _words(meta), ts_ms[i], tails, total, out[i])
                if len(fade):
                    hour = ts_ms[i] // HOUR_MS
                    if hour != weighed:
                        _weights(hour, grain, reach, fade, weights)
                        weighed = hour
                    newest = hour - (ts_ms[i] % HOUR_MS == 0)
                    _decay(pool, _offset(meta), _words(meta), hour, newest, tails[-1], weights, out[i])
    return used


@_compiled
def run_rows(
    table: Array,
    shift: Any,
    pool: Array,
    free: Array,
    state: Array,
    caps: Array,
    grain: Array,
    reach: Array,
    slack: Any,
    window: Array,
    window_grain: Array,
    fade: Array,
    ages: Any,
    keys: Array,
    ts_ms: Array,
    action: Array,
    sums: Array,
    out: Array,
    cursor: Array,
) -> None:
    """Rows of one time stamp are all counted, then all added. ``cursor``: rows added, rows counted.

    ``sums`` (n, M) is what a row adds to each of the last M columns.
    """
    n, width = keys.shape
    weights = np.empty((len(fade), ages), np.int64)
    weighed = _BEFORE_ALL
    first_sum = out.shape[3] - sums.shape[1]
    tails = np.empty(len(window), np.int64)
    total = np.empty(GROUPS * DIGITS, np.int64)
    one = np.uint32(1)
    ahead = max(1, AHEAD // max(1, width))
    places = np.empty((ahead, width), np.int64)
    touched = cursor[1]
    while cursor[0] < n:
        if cursor[0] == cursor[1]:
            ts = ts_ms[cursor[0]]
            _tails(ts, window, window_grain, tails)
            present = ts // HOUR_MS
            if len(fade) and present != weighed:
                _weights(present, grain, reach, fade, weights)
                weighed = present
            i = cursor[0]
            while i < n and ts_ms[i] == ts:
                if i == touched:
                    touched = min(i + ahead, n)
                    cursor[2] += _touch(table, shift, pool, keys, i, touched, places)
                for k in range(width):
                    if i > cursor[0] and keys[i, k] == keys[i - 1, k]:  # a page's rows share its user
                        for w in range(out.shape[2]):
                            for a in range(out.shape[3]):
                                out[i, k, w, a] = out[i - 1, k, w, a]
                    elif keys[i, k] != np.uint64(0):
                        at = _find(table, shift, keys[i, k])
                        if table[at, 0] != np.uint64(0):
                            meta = table[at, 1]
                            _sum(pool, _offset(meta), _words(meta), ts + HOUR_MS, tails, total, out[i, k])
                            if len(fade):
                                _decay(
                                    pool,
                                    _offset(meta),
                                    _words(meta),
                                    present,
                                    present,
                                    tails[-1],
                                    weights,
                                    out[i, k],
                                )
                i += 1
            cursor[1] = i
        while cursor[0] < cursor[1]:
            if not _room(table, pool, state, caps, width):
                return
            i = cursor[0]
            hour = ts_ms[i] // HOUR_MS
            nameable = 0 <= hour < HOURS
            if nameable:
                state[NEWEST] = max(state[NEWEST], hour)
            for k in range(width):
                if nameable and keys[i, k] != np.uint64(0):
                    _add(
                        table,
                        shift,
                        pool,
                        free,
                        state,
                        caps,
                        grain,
                        reach,
                        slack,
                        keys[i, k],
                        hour,
                        action[i],
                        one,
                    )
                    for m in range(sums.shape[1]):
                        if sums[i, m]:
                            _add(
                                table,
                                shift,
                                pool,
                                free,
                                state,
                                caps,
                                grain,
                                reach,
                                slack,
                                keys[i, k],
                                hour,
                                first_sum + m,
                                sums[i, m],
                            )
            cursor[0] += 1


@_compiled
def rehash(old: Array, table: Array, shift: Any) -> None:
    """Moves every entry of ``old`` into the empty ``table``."""
    for i in range(len(old)):
        if old[i, 0] != np.uint64(0):
            at = _find(table, shift, old[i, 0])
            table[at, 0] = old[i, 0]
            table[at, 1] = old[i, 1]


@_compiled
def live_rows(table: Array, caps: Array) -> Any:
    """Pool words that the lists would take in blocks of the smallest class that fits each."""
    rows = 0
    for i in range(len(table)):
        if table[i, 0] != np.uint64(0):
            rows += caps[np.searchsorted(caps, _words(table[i, 1]))]
    return rows


@_compiled
def move_pool(table: Array, old: Array, pool: Array, free: Array, state: Array, caps: Array) -> None:
    """Moves every list from ``old`` into the empty ``pool``, without holes, in blocks that fit."""
    at = 0
    for i in range(len(table)):
        if table[i, 0] != np.uint64(0):
            meta = table[i, 1]
            offset, n = _offset(meta), _words(meta)
            cls = np.searchsorted(caps, n)
            pool[at : at + n] = old[offset : offset + n]
            table[i, 1] = _pack(at, n, cls, _flags(meta))
            at += caps[cls]
    free[:] = -1
    state[USED] = at


@_compiled
def _remove(table: Array, shift: Any, hole: Any) -> None:
    """Empties place ``hole``, shifting followers back, so that no tombstone is ever needed."""
    mask = len(table) - 1
    j = hole
    while True:
        j = (j + 1) & mask
        if table[j, 0] == np.uint64(0):
            break
        home = np.int64((table[j, 0] * _FIBONACCI) >> np.uint64(shift))
        if ((j - home) & mask) >= ((j - hole) & mask):
            table[hole, 0] = table[j, 0]
            table[hole, 1] = table[j, 1]
            hole = j
    table[hole, 0] = np.uint64(0)
    table[hole, 1] = np.uint64(0)


@_compiled
def sweep(
    table: Array,
    shift: Any,
    pool: Array,
    free: Array,
    state: Array,
    caps: Array,
    grain: Array,
    reach: Array,
    slack: Any,
    hour: Any,
    start: Any,
    stop: Any,
    every_list: Any,
) -> Any:
    """Drops keys that no window reaches at ``hour`` and merges the tiles of the others, in the places [start, stop):
    of the lists that are due, or of all."""
    state[NEWEST] = max(state[NEWEST], hour)
    turn = (state[NEWEST] - slack) // _every(grain)
    dropped = 0
    last = len(grain) - 1
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
        newest = _hour(pool[offset + n - 1])
        left = 0
        if newest // grain[last] >= (hour - reach[last]) // grain[last]:
            left = _merge(pool, offset, n, state[NEWEST] - slack, grain, reach)
        if left == 0:
            _release(pool, free, offset, cls)
            _remove(table, shift, i)
            state[KEYS] -= 1
            dropped += 1
            continue  # another entry may stand here now
        smaller = cls
        while smaller > 0 and caps[smaller - 1] >= left:
            smaller -= 1
        if smaller + 1 < cls and free[smaller] >= 0:  # never grows the pool; one class of slack against flapping
            to = _allocate(pool, free, state, caps, smaller)
            pool[to : to + left] = pool[offset : offset + left]
            _release(pool, free, offset, cls)
            offset, cls = to, smaller
        due = _due(pool, offset, left, state[NEWEST] - slack, slack, grain, reach)
        table[i, 1] = _pack(offset, left, cls, np.uint64(due) << np.uint64(1) | meta & np.uint64(1))
        i += 1
    return dropped


@_compiled
def list_sizes(
    table: Array,
    shift: Any,
    pool: Array,
    state: Array,
    grain: Array,
    reach: Array,
    slack: Any,
    keys: Array,
    settle: Any,
    sizes: Array,
    places: Array,
) -> Any:
    """Merges the tiles of each key; ``sizes`` (n,) how many tiles are left, ``places`` (n,) where the key stands.

    With ``settle`` the keys are marked unchanged. Returns what :func:`_touch` does.
    """
    n = len(keys)
    column, at = keys.reshape((n, 1)), places.reshape((n, 1))
    used = np.int64(0)
    for i in range(n):
        if i % AHEAD == 0:
            stop = min(i + AHEAD, n)
            used += _touch(table, shift, pool, column, i, stop, at[i:stop])
        sizes[i] = 0
        meta = table[places[i], 1]
        if keys[i] != np.uint64(0) and meta != np.uint64(0):
            offset, words, cls = _offset(meta), _words(meta), _class(meta)
            left = _merge(pool, offset, words, state[NEWEST] - slack, grain, reach)
            if left == 0:  # a list that fell empty keeps its first tile until it is swept
                pool[offset] = pool[offset] >> np.uint64(40) << np.uint64(40)
            before = np.int64(-1)
            for j in range(offset, offset + left):
                sizes[i] += _hour(pool[j]) != before
                before = _hour(pool[j])
            flags = _flags(meta) & np.uint64(0xFE) if settle else _flags(meta)
            table[places[i], 1] = _pack(offset, max(left, 1), cls, flags)
    return used


@_compiled
def words_of(tiles: Array, sizes: Array, words: Array) -> None:
    """``words`` (n,): how many each list of ``tiles`` (T, 1 + A) takes."""
    row = 0
    nowhere = np.empty(0, np.uint64)
    for i in range(len(sizes)):
        words[i] = 0
        for _ in range(sizes[i]):
            words[i] += _write_words(tiles, row, nowhere, 0)
            row += 1


@_compiled
def _write_words(tiles: Array, row: Any, pool: Array, to: Any) -> Any:
    """Writes tile ``row`` as words from ``to`` on, if ``pool`` is not empty; returns how many there are."""
    n = 0
    actions = tiles.shape[1] - 1
    for group in range((actions + DIGITS - 1) // DIGITS):
        first = 1 + group * DIGITS
        for level in range(LEVELS):
            digits = np.uint64(0)
            for slot in range(min(DIGITS, actions + 1 - first)):
                digits |= np.uint64(np.int64(tiles[row, first + slot]) >> (8 * level) & 255) << np.uint64(8 * slot)
            if digits:
                if len(pool):
                    head = np.int64(tiles[row, 0]) << 4 | group << 2 | level
                    pool[to + n] = np.uint64(head) << np.uint64(40) | digits
                n += 1
    return n


@_compiled
def scatter(
    table: Array,
    shift: Any,
    pool: Array,
    free: Array,
    state: Array,
    caps: Array,
    grain: Array,
    reach: Array,
    slack: Any,
    keys: Array,
    sizes: Array,
    words: Array,
    tiles: Array,
    cursor: Array,
) -> None:
    """Replaces the tile lists of ``keys`` by ``tiles`` (T, 1 + A), from key ``cursor[0]``, tile ``cursor[1]`` on.
    ``words`` (n,) come from :func:`words_of`.

    Goes on until done or out of room. An empty list takes the key out.
    """
    while cursor[0] < len(keys):
        if not _room(table, pool, state, caps, 1):
            return
        key, n, rows = keys[cursor[0]], words[cursor[0]], sizes[cursor[0]]
        cursor[0] += 1
        if key == np.uint64(0):
            cursor[1] += rows
            continue
        i = _find(table, shift, key)
        if table[i, 0] != np.uint64(0):
            meta = table[i, 1]
            offset, cls = _offset(meta), _class(meta)
            if n == 0:
                _release(pool, free, offset, cls)
                _remove(table, shift, i)
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
            offset = _allocate(pool, free, state, caps, cls)
        at = offset
        for row in range(cursor[1], cursor[1] + rows):
            at += _write_words(tiles, row, pool, at)
        cursor[1] += rows
        state[NEWEST] = max(state[NEWEST], _hour(pool[offset + n - 1]))
        table[i, 1] = _pack(offset, n, cls, _due(pool, offset, n, state[NEWEST] - slack, slack, grain, reach) << 1)


@_compiled
def changed_bits(table: Array, shift: Any, keys: Array, out: Array) -> None:
    for i in range(len(keys)):
        out[i] = np.uint8(table[_find(table, shift, keys[i]), 1] & np.uint64(1))


@_compiled
def set_changed(table: Array, shift: Any, keys: Array, changed: Array) -> None:
    """Marks the (present) keys with ``changed`` 1 as changed."""
    for i in range(len(keys)):
        if changed[i]:
            table[_find(table, shift, keys[i]), 1] |= np.uint64(1)


@_compiled
def _write_varint(out: Array, at: Any, value: Any) -> Any:
    while value >= 128:
        out[at] = np.uint8((value & 127) | 128)
        value >>= 7
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@_compiled
def pack_lists(table: Array, pool: Array, places: Array, sizes: Array, actions: Any, out: Array, ends: Array) -> None:
    """The packed form (see ``windows/tiles.py``) of the lists that :func:`list_sizes` found, one after another.

    ``out`` has room for 9 bytes a list and 5 a number; ``ends`` (n,) where each ends.
    """
    at = 0
    counts = np.zeros(actions, np.int64)
    for i in range(len(places)):
        out[at] = 1
        out[at + 1] = actions
        out[at + 2] = sizes[i] & 255
        out[at + 3] = sizes[i] >> 8
        at += 4
        if sizes[i]:
            meta = table[places[i], 1]
            j = _offset(meta)
            end = j + _words(meta)
            last = np.int64(0)
            while j < end:
                word = pool[j]
                hour = _hour(word)
                at = _write_varint(out, at, hour - last)
                last = hour
                j += 1
                alone = j == end or _hour(pool[j]) != hour
                if alone and _head(word) & 15 == 0 and word & _HIGH_BITS == 0 and actions <= DIGITS:
                    for slot in range(actions):  # every count is one byte: nearly all tiles
                        out[at + slot] = np.uint8(word >> np.uint64(8 * slot) & np.uint64(255))
                    at += actions
                    continue
                counts[:] = 0
                j -= 1
                while j < end and _hour(pool[j]) == hour:
                    head = _head(pool[j])
                    first = (head >> 2 & 3) * DIGITS
                    for slot in range(min(DIGITS, actions - first)):
                        counts[first + slot] += _digit(pool[j], slot) << (8 * (head & 3))
                    j += 1
                for a in range(actions):
                    at = _write_varint(out, at, counts[a])
        ends[i] = at


@_compiled
def read_sizes(raw: Array, ends: Array, actions: Any, sizes: Array) -> Any:
    """``sizes`` (n,) from the headers of packed lists. Returns -1, or the first list that is damaged."""
    start = np.int64(0)
    for i in range(len(ends)):
        length = ends[i] - start
        sizes[i] = 0
        if length < 0 or ends[i] > len(raw):
            return i
        if length:
            if length < 4 or raw[start] != 1 or raw[start + 1] != actions:
                return i
            sizes[i] = np.int64(raw[start + 2]) | np.int64(raw[start + 3]) << 8
            if sizes[i] * (1 + actions) > length - 4:  # so that a lying header cannot make us allocate
                return i
        start = ends[i]
    return -1


@_compiled
def unpack(raw: Array, ends: Array, sizes: Array, out: Array) -> Any:
    """The inverse of :func:`pack`; ``sizes`` come from the headers. Returns -1, or the first list that is damaged."""
    at, row = 0, 0
    actions = out.shape[1] - 1
    for i in range(len(ends)):
        if ends[i] == at:  # nothing at all reads as an empty list
            continue
        at += 4
        hour = np.int64(0)
        for _ in range(sizes[i]):
            for a in range(actions + 1):
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
                    if row and hour and value == 0:
                        return i
                    hour += value
                    value = hour
                    if hour >= HOURS:
                        return i
                if value > 0xFFFFFFFF:
                    return i
                out[row, a] = np.uint32(value)
            row += 1
        if at != ends[i]:
            return i
    return -1


@_compiled
def sum_lists(
    tiles: Array,
    sizes: Array,
    ts_ms: Any,
    window: Array,
    window_grain: Array,
    grain: Array,
    reach: Array,
    fade: Array,
    ages: Any,
    present: Array,
    out: Array,
) -> None:
    """Window sums of tile lists outside a store; list j goes to ``out[present[j]]``. out (n, W + H, A), zeros on
    entry."""
    tails = np.empty(len(window), np.int64)
    _tails(ts_ms, window, window_grain, tails)
    now = ts_ms // HOUR_MS
    weights = np.empty((len(fade), ages), np.int64)
    _weights(now, grain, reach, fade, weights)
    first = 0
    for j in range(len(sizes)):
        for row in range(first, first + sizes[j]):
            hour = np.int64(tiles[row, 0])
            if hour * HOUR_MS < ts_ms:
                for w in range(len(window)):
                    if hour >= tails[w]:
                        for a in range(tiles.shape[1] - 1):
                            out[present[j], w, a] += tiles[row, 1 + a]
                if hour >= tails[-1] and now - hour < ages:
                    for h in range(len(fade)):
                        for a in range(tiles.shape[1] - 1):
                            out[present[j], len(window) + h, a] += np.int64(tiles[row, 1 + a]) * weights[h, now - hour]
        first += sizes[j]
