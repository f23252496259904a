"""The compiled loops of the tile store. One file, because numba's cache does not see a change in another file's callee.

::

    table (C, 2) uint64   open addressing, C a power of two:  [key, meta]   key 0 = empty
    meta                  offset 32 bits | tiles 16 bits | size class 8 bits | 7 unused | changed 1 bit
    pool  (P, 1 + A) u32  a key's tiles stand side by side, oldest first:  [first hour, count of action 0, 1, ..]
    free  (classes,)      first free block of each size class or -1; a free block's first cell: the next one + 1
    state (3,)            keys, pool rows used, newest hour

A tile is named by its first hour. Whether it is still an hour wide or has been merged into 6 hours or a day is never
stored: a window of grain g asks for first hours >= a multiple of g, and merging moves a first hour down to a multiple
of the coarser grain only once no window of a finer grain can reach it. So merging never changes a sum.

Symbols: n rows, K keys a row, W windows, A actions, L grains.
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
_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)
_META = np.uint64(0xFFFF)


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
def _tiles(meta: Any) -> Any:
    return np.int64((meta >> np.uint64(16)) & _META)


@njit(inline="always")
def _class(meta: Any) -> Any:
    return np.int64((meta >> np.uint64(8)) & np.uint64(0xFF))


@njit(inline="always")
def _pack(offset: Any, tiles: Any, cls: Any, changed: Any) -> Any:
    return (
        (np.uint64(offset) << np.uint64(32))
        | (np.uint64(tiles) << np.uint64(16))
        | (np.uint64(cls) << np.uint64(8))
        | np.uint64(changed)
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
        free[cls] = np.int64(pool[offset, 0]) - 1
        return offset
    offset = state[USED]
    state[USED] += caps[cls]
    return offset


@_compiled
def _release(pool: Array, free: Array, offset: Any, cls: Any) -> None:
    pool[offset, 0] = np.uint32(free[cls] + 1)
    free[cls] = offset


@_compiled
def first_hour(hour: Any, now: Any, grain: Array, reach: Array) -> Any:
    """The first hour of the tile that ``hour`` belongs to at ``now``, or DROPPED when no window reaches it any more.

    ``grain`` (L,) hours, ascending, each a multiple of the one before; ``reach`` (L,) hours of the longest window
    whose grain is at most that. A block of the next grain may be merged once the finer windows have left it whole.
    """
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
def _merge(pool: Array, offset: Any, n: Any, now: Any, grain: Array, reach: Array) -> Any:
    """Merges and drops tiles in place; returns how many are left."""
    left = 0
    for j in range(offset, offset + n):
        hour = first_hour(np.int64(pool[j, 0]), now, grain, reach)
        if hour == DROPPED:
            continue
        if left and np.int64(pool[offset + left - 1, 0]) == hour:
            for a in range(1, pool.shape[1]):
                pool[offset + left - 1, a] += pool[j, a]
        else:
            to = offset + left
            pool[to, 0] = np.uint32(hour)
            for a in range(1, pool.shape[1]):
                pool[to, a] = pool[j, a]
            left += 1
    return left


@_compiled
def _place(pool: Array, offset: Any, n: Any, hour: Any) -> Any:
    """How many of the ``n`` tiles begin at or before ``hour``; almost always all of them."""
    j = n
    while j > 0 and np.int64(pool[offset + j - 1, 0]) > hour:
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
    if table[i, 0] == np.uint64(0):
        offset = _allocate(pool, free, state, caps, 0)
        pool[offset, :] = 0
        pool[offset, 0] = np.uint32(hour)
        pool[offset, 1 + action] = amount
        table[i, 0] = key
        table[i, 1] = _pack(offset, 1, 0, 1)
        state[KEYS] += 1
        return True
    meta = table[i, 1]
    offset, n, cls = _offset(meta), _tiles(meta), _class(meta)
    j = _place(pool, offset, n, hour)
    if j == 0 or np.int64(pool[offset + j - 1, 0]) != hour:
        if n == caps[cls]:
            n = _merge(pool, offset, n, now, grain, reach)
            if n == caps[cls]:
                bigger = _allocate(pool, free, state, caps, cls + 1)
                pool[bigger : bigger + n] = pool[offset : offset + n]
                _release(pool, free, offset, cls)
                offset, cls = bigger, cls + 1
            j = _place(pool, offset, n, hour)
        if j == 0 or np.int64(pool[offset + j - 1, 0]) != hour:
            for t in range(n, j, -1):
                pool[offset + t] = pool[offset + t - 1]
            pool[offset + j, :] = 0
            pool[offset + j, 0] = np.uint32(hour)
            n += 1
            j += 1
        table[i, 1] = _pack(offset, n, cls, 1)
    else:
        table[i, 1] = meta | np.uint64(1)
    pool[offset + j - 1, 1 + action] += amount
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
    used = np.uint32(0)
    for i in range(stop - start):
        for k in range(width):
            meta = table[places[i, k], 1]
            if meta != np.uint64(0):
                offset, n = _offset(meta), _tiles(meta)
                used += pool[offset, 0] + pool[offset + n - 1, 0]
    return used


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
        state[NEWEST] = max(state[NEWEST], hour)
        for k in range(width):
            key = keys[i, k]
            if key != np.uint64(0) and _add(
                table, shift, pool, free, state, caps, grain, reach, slack, key, hour, action[i], amount[i]
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
    """Window sums of one tile list in one pass, newest tile first. ``out`` (W, A), ``total`` (A,) is scratch."""
    total[:] = 0
    w = 0
    for j in range(offset + n - 1, offset - 1, -1):
        hour = np.int64(pool[j, 0])
        while w < len(tails) and hour < tails[w]:
            out[w] = total
            w += 1
        if w == len(tails):
            return
        if hour * HOUR_MS < ts_ms:
            for a in range(len(total)):
                total[a] += pool[j, 1 + a]
    for rest in range(w, len(tails)):
        out[rest] = total


@_compiled
def count_rows(
    table: Array, shift: Any, pool: Array, window: Array, window_grain: Array, keys: Array, ts_ms: Array, out: Array
) -> Any:
    """``out`` (n, W, A), zeros on entry. Returns what :func:`_touch` does."""
    n = len(keys)
    tails = np.empty(len(window), np.int64)
    total = np.empty(pool.shape[1] - 1, np.uint32)
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
                _sum(pool, _offset(meta), _tiles(meta), ts_ms[i], tails, total, out[i])
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
    keys: Array,
    ts_ms: Array,
    action: Array,
    out: Array,
    cursor: Array,
) -> None:
    """Rows of one time stamp are all counted, then all added. ``cursor``: rows added, rows counted."""
    n, width = keys.shape
    tails = np.empty(len(window), np.int64)
    total = np.empty(pool.shape[1] - 1, np.uint32)
    one = np.uint32(1)
    ahead = max(1, AHEAD // max(1, width))
    places = np.empty((ahead, width), np.int64)
    touched = cursor[1]
    while cursor[0] < n:
        if cursor[0] == cursor[1]:
            ts = ts_ms[cursor[0]]
            _tails(ts, window, window_grain, tails)
            i = cursor[0]
            while i < n and ts_ms[i] == ts:
                if i == touched:
                    touched = min(i + ahead, n)
                    cursor[2] += _touch(table, shift, pool, keys, i, touched, places)
                for k in range(width):
                    if keys[i, k] != np.uint64(0):
                        at = _find(table, shift, keys[i, k])
                        if table[at, 0] != np.uint64(0):
                            meta = table[at, 1]
                            _sum(pool, _offset(meta), _tiles(meta), ts + HOUR_MS, tails, total, out[i, k])
                i += 1
            cursor[1] = i
        while cursor[0] < cursor[1]:
            if not _room(table, pool, state, caps, width):
                return
            i = cursor[0]
            hour = ts_ms[i] // HOUR_MS
            state[NEWEST] = max(state[NEWEST], hour)
            for k in range(width):
                if keys[i, k] != np.uint64(0):
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
    """Pool rows that the lists would take in blocks of the smallest class that fits each."""
    rows = 0
    for i in range(len(table)):
        if table[i, 0] != np.uint64(0):
            rows += caps[np.searchsorted(caps, _tiles(table[i, 1]))]
    return rows


@_compiled
def move_pool(table: Array, old: Array, pool: Array, free: Array, state: Array, caps: Array) -> None:
    """Moves every list from ``old`` into the empty ``pool``, without holes, in blocks that fit."""
    at = 0
    for i in range(len(table)):
        if table[i, 0] != np.uint64(0):
            meta = table[i, 1]
            offset, n = _offset(meta), _tiles(meta)
            cls = np.searchsorted(caps, n)
            pool[at : at + n] = old[offset : offset + n]
            table[i, 1] = _pack(at, n, cls, meta & np.uint64(1))
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
) -> Any:
    """Drops keys that no window reaches at ``hour`` and merges the tiles of the others, in the places [start, stop)."""
    state[NEWEST] = max(state[NEWEST], hour)
    dropped = 0
    last = len(grain) - 1
    i = start
    while i < stop:
        if table[i, 0] == np.uint64(0):
            i += 1
            continue
        meta = table[i, 1]
        offset, n, cls = _offset(meta), _tiles(meta), _class(meta)
        newest = np.int64(pool[offset + n - 1, 0])
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
        table[i, 1] = _pack(offset, left, cls, meta & np.uint64(1))
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
) -> None:
    """Merges the tiles of each key; ``sizes`` (n,) how many are left, ``places`` (n,) where the key stands.

    With ``settle`` the keys are marked unchanged.
    """
    for i in range(len(keys)):
        places[i] = _find(table, shift, keys[i])
    for i in range(len(keys)):
        sizes[i] = 0
        meta = table[places[i], 1]
        if keys[i] != np.uint64(0) and meta != np.uint64(0):
            offset, n, cls = _offset(meta), _tiles(meta), _class(meta)
            left = _merge(pool, offset, n, state[NEWEST] - slack, grain, reach)
            if left == 0:  # a list that fell empty keeps its first tile until it is swept
                pool[offset, 1:] = 0
            sizes[i] = left
            table[places[i], 1] = _pack(offset, max(left, 1), cls, np.uint64(0) if settle else meta & np.uint64(1))


@_compiled
def gather(table: Array, pool: Array, places: Array, sizes: Array, out: Array) -> None:
    """Copies the tiles that :func:`list_sizes` found, one list after another, into ``out`` (T, 1 + A)."""
    at = 0
    for i in range(len(places)):
        if sizes[i]:
            offset = _offset(table[places[i], 1])
            out[at : at + sizes[i]] = pool[offset : offset + sizes[i]]
            at += sizes[i]


@_compiled
def scatter(
    table: Array,
    shift: Any,
    pool: Array,
    free: Array,
    state: Array,
    caps: Array,
    keys: Array,
    sizes: Array,
    tiles: Array,
    cursor: Array,
) -> None:
    """Replaces the tile lists of ``keys`` by ``tiles`` (T, 1 + A), from key ``cursor[0]``, tile ``cursor[1]`` on.

    Goes on until done or out of room. An empty list takes the key out.
    """
    while cursor[0] < len(keys):
        if not _room(table, pool, state, caps, 1):
            return
        key, n = keys[cursor[0]], np.int64(sizes[cursor[0]])
        cursor[0] += 1
        if key == np.uint64(0):
            cursor[1] += n
            continue
        i = _find(table, shift, key)
        if table[i, 0] != np.uint64(0):
            meta = table[i, 1]
            offset, cls = _offset(meta), _class(meta)
            if n == 0:
                _release(pool, free, offset, cls)
                _remove(table, shift, i)
                state[KEYS] -= 1
                continue
            if caps[cls] < n:
                _release(pool, free, offset, cls)
                offset = np.int64(-1)
        elif n == 0:
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
        pool[offset : offset + n] = tiles[cursor[1] : cursor[1] + n]
        cursor[1] += n
        table[i, 1] = _pack(offset, n, cls, 0)
        state[NEWEST] = max(state[NEWEST], np.int64(pool[offset + n - 1, 0]))


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
def pack(tiles: Array, sizes: Array, out: Array, ends: Array) -> None:
    """The packed form (see ``stream/tiles.py``) of each list, one after another; ``ends`` (n,) where each ends."""
    at, row = 0, 0
    actions = tiles.shape[1] - 1
    for i in range(len(sizes)):
        out[at] = 1
        out[at + 1] = actions
        out[at + 2] = sizes[i] & 255
        out[at + 3] = sizes[i] >> 8
        at += 4
        hour = np.int64(0)
        for _ in range(sizes[i]):
            at = _write_varint(out, at, np.int64(tiles[row, 0]) - hour)
            hour = np.int64(tiles[row, 0])
            for a in range(actions):
                at = _write_varint(out, at, np.int64(tiles[row, 1 + a]))
            row += 1
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
                if value > 0xFFFFFFFF:
                    return i
                out[row, a] = np.uint32(value)
            row += 1
        if at != ends[i]:
            return i
    return -1


@_compiled
def sum_lists(
    tiles: Array, sizes: Array, ts_ms: Any, window: Array, window_grain: Array, present: Array, out: Array
) -> None:
    """Window sums of tile lists outside a store; list j goes to ``out[present[j]]``. out (n, W, A), zeros on entry."""
    tails = np.empty(len(window), np.int64)
    total = np.empty(tiles.shape[1] - 1, np.uint32)
    _tails(ts_ms, window, window_grain, tails)
    row = 0
    for j in range(len(sizes)):
        if sizes[j]:
            _sum(tiles, row, sizes[j], ts_ms, tails, total, out[present[j]])
            row += sizes[j]
