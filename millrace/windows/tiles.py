"""Sliding windows and decayed counts: one list of tiles a key, whole arrays at a time.

::

    age of a tile     younger than 1 day        up to 7 days           older
    its grain         1 hour | 1 hour | ..      6 hours | 6 hours ..   1 day | 1 day | ..    (merged as it ages)

    window of W days at ts:    [ floor((ts - W) / grain) * grain ............ ts )
                                 tail: aligned to the window's grain          head: exact

The grain of a window follows from its length: 1 hour up to a day, 6 hours up to seven days, a day beyond. A count thus
lies between the exact counts of W and of W + grain. An event costs one write a key, whatever the number of windows.

A count with half-life h is read off the same tiles, and costs no state::

    decayed(ts) = sum over the tiles that the longest window reaches of  count * 2^-((ts - middle of the tile) / h)

A tile here is what an event's hour has been merged into once no finer window needs it, whether it is merged yet or not.
So each event's weight is within a factor of 2^(+-grain / 2h) of 2^-((ts - t) / h), grain being that tile's (and within
2^-25 of an event, as weights are whole numbers of :data:`UNIT`). Events before the longest window W, whose weight is at
most 2^-(W / h), are left out. The newest tile's middle may be after ``ts``: an event of the present hour can count a
little more than 1.

A mean is a sum over a count: the columns after those of the actions hold sums (:func:`.features.steps`).

Packed form of a tile list (what Redis and ``features.items`` carry; little-endian)::

    byte 0      form, 1
    byte 1      A, the number of columns: actions, then sums
    bytes 2-3   n, the number of tiles, uint16
    then n times, oldest first, as LEB128 varints (7 bits a byte, low first, top bit = more follows):
                first hour of the tile since 1970, less that of the tile before (of 0 for the first)
                A counts or sums

An empty byte string and a list of n = 0 both mean "no events".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.errors import StoreError
from millrace.contracts.schema import MAX_COLUMNS, Windows
from millrace.windows import kernels
from millrace.windows.kernels import HOUR_MS, KEYS, NEWEST, USED

Array = NDArray[Any]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]

GRAINS_H = ((1, 1), (7, 6), (1 << 30, 24))
"""(longest window in days, grain in hours)."""

SLACK_H = 3
"""Tiles are merged this much later than they could be, so that a reader whose clock is behind the newest event by up to
three hours still gets every window by its definition."""

_TURNS = 32
"""Of sweeping that may be left out: after more, a list's 7 bits do not tell whether it is due."""

_EVER = -(1 << 40)  # "newest hour" of a store that has seen nothing
UNIT = 1 << 24
"""What an event of age 0 weighs in decayed counts."""

_REMEDY = "let the stream role of this version publish it again"


def grain_hours(days: int) -> int:
    """The grain of a window of ``days`` days, in hours: how far its tail may reach beyond its length."""
    return next(grain for longest, grain in GRAINS_H if days <= longest)


class _Spans:
    """What is read off a tile list: W windows, H half-lives. All lengths in hours."""

    def __init__(self, days: Sequence[int], half_lives: Sequence[float]) -> None:
        self.window: I64 = np.array([d * 24 for d in days], np.int64)  # (W,)
        self.window_grain: I64 = np.array([grain_hours(d) for d in days], np.int64)  # (W,)
        grains = sorted({1, *self.window_grain.tolist()})
        self.grain: I64 = np.array(grains, np.int64)  # (L,)
        pairs = list(zip(self.window.tolist(), self.window_grain.tolist(), strict=True))
        self.reach: I64 = np.array([max([w for w, g in pairs if g <= grain], default=0) for grain in grains], np.int64)
        # Past 25 half-lives a weight rounds to 0; a tile may be a day younger than its first hour.
        hours = [h * 24 for h in half_lives]
        self.ages = min(24 * days[-1] + 25, int(25 * max(hours)) + 25) if hours else 0
        age = (np.arange(2 * self.ages + 2) - 1) / 2
        weights = [np.round(UNIT * np.exp2(-age / h)) for h in hours]
        self.fade: I64 = np.array(weights, np.int64).reshape(len(hours), -1 if hours else 0)


_spans = lru_cache(maxsize=16)(_Spans)
"""Read-only and made anew for each request, were they not remembered."""


class TileStore:
    """Counts in W windows and with H half-lives of A columns (actions, then sums) for any number of keys.

    Who calls what: a worker's partition ``add``s and ``export``s; the scorer's index ``put``s and asks ``counts``;
    replay calls ``run``, which does both. One thread at a time. Key 0 is "missing": nothing is kept of it.

    What is read is uint32 (n, W, A) where there are neither half-lives nor sums, else int64 (n, W + H, A); its last H
    rows are decayed counts in units of 2^-24 (:data:`UNIT`) *as of the full hour at or before* ``ts``:
    :meth:`millrace.windows.features.FeatureBuilder.num` multiplies them by 2^-(rest of the hour / h).

    Args:
        days: the windows' lengths in days, ascending.
        actions: A, at most 16.
        half_lives: in days, ascending.
        sums: how many of the A are sums, the last ones.
    """

    def __init__(self, days: Sequence[int], actions: int, half_lives: Sequence[float] = (), sums: int = 0) -> None:
        if not days or list(days) != sorted(set(days)) or days[0] < 1 or not 1 <= actions <= MAX_COLUMNS:
            raise ValueError(f"windows of {list(days)} days and {actions} actions: ascending days and 1-16 actions")
        self.days, self.half_lives = tuple(days), tuple(half_lives)
        self.actions, self.sums = actions, sums
        self.dtype: type[np.integer[Any]] = np.int64 if half_lives or sums else np.uint32
        self._spans = _spans(self.days, self.half_lives)
        self._grain, self._reach = self._spans.grain, self._spans.reach
        # More tiles than this no list has once it is merged: one for each grain step within that grain's reach.
        most = int(sum(r // g for r, g in zip(self._reach, self._grain, strict=True))) + 64
        most *= kernels.LEVELS * -(-actions // kernels.DIGITS)  # words
        if most >= 1 << 16:
            raise ValueError(f"windows up to {days[-1]} days of {actions} actions are too long for one list of tiles")
        self._caps = _size_classes(most)
        self._table: U64 = np.zeros((1024, 2), np.uint64)
        self._pool: U64 = np.empty(1024 + 4 * int(self._caps[-1]), np.uint64)
        self._free = np.full(len(self._caps), -1, np.int64)
        self._state = np.array([0, 0, _EVER], np.int64)
        self._swept: int | None = None  # turn of the last whole sweep

    @classmethod
    def of(cls, windows: Windows, arrays: Mapping[str, Array] | None = None) -> TileStore:
        """A store for a schema's windows, half-lives and means; with the state ``arrays`` (:meth:`to_arrays`)."""
        shape = (windows.days, windows.columns)
        rest = (windows.half_lives, len(windows.means))
        return cls(*shape, *rest) if arrays is None else cls.from_arrays(*shape, arrays, *rest)

    @property
    def spans(self) -> int:
        """W + H."""
        return len(self.days) + len(self.half_lives)

    def __len__(self) -> int:
        return int(self._state[KEYS])

    @property
    def sweep_hours(self) -> int:
        """How often a sweep finds something to do: tiles merge, and keys end, at multiples of this many hours (and
        ``SLACK_H`` beyond)."""
        return int(self._grain[min(1, len(self._grain) - 1)])

    @property
    def nbytes(self) -> int:
        """Bytes of everything allocated, used or not."""
        return self._table.nbytes + self._pool.nbytes

    @property
    def newest_hour(self) -> int | None:
        """Hour since 1970 of the newest event (or sweep), None before the first."""
        hour = int(self._state[NEWEST])
        return None if hour == _EVER else hour

    def add(self, keys: U64, ts_ms: I64, action: Array, amount: Array | int = 1) -> I64:
        """Counts events, in any order; one too old for every window is ignored.

        Args:
            keys: (n,) or (n, K): a row counts under each of its keys.
            ts_ms: (n,); action: (n,) column; amount: (n,) or one for all, not negative.

        Returns:
            Flat indices into ``keys`` of those that had not changed since they were last exported with ``settle``.
        """
        keys = _own(keys, np.uint64)
        n = len(keys)
        columns = self._columns(action)
        times = _own(ts_ms, np.int64)
        amounts = _own(np.broadcast_to(amount, n), np.uint32)
        if not len(times) == len(columns) == n:
            raise ValueError(f"{n} keys, {len(times)} times, {len(columns)} actions")
        fresh = np.empty(keys.size, np.int64)
        cursor = np.zeros(3, np.int64)
        while True:
            kernels.add_rows(
                *self._arena(), keys.reshape(n, -1) if n else keys.reshape(0, 1), times, columns, amounts, fresh, cursor
            )
            if cursor[0] == n:
                return fresh[: cursor[1]].copy()
            self._grow(1 if keys.ndim == 1 else keys.shape[1])

    def counts(self, keys: U64, ts_ms: I64 | int) -> Array:
        """Counts in ``[ts - W, ts)`` and decayed counts of each key, (n, W + H, A); zeros where nothing is known.
        Allocates no key.

        The head is exact to the tile: an event in the hour that contains ``ts`` counts even if it is not before
        ``ts``. So ask at a time after the newest event (a reader's clock is); replay uses :meth:`run`.
        """
        keys = _own(keys, np.uint64)
        out = np.zeros((len(keys), self.spans, self.actions), self.dtype)
        times = _own(np.broadcast_to(ts_ms, len(keys)), np.int64)
        spans = self._spans
        reading = (spans.window, spans.window_grain, spans.grain, spans.reach, spans.fade, spans.ages)
        kernels.count_rows(self._table, self._shift, self._pool, *reading, keys, times, out)
        return out

    def run(self, keys: U64, ts_ms: I64, action: Array, sums: Array | None = None) -> Array:
        """Point-in-time counts of each row, then the row itself: (n, K, W + H, A).

        Row i sees exactly the rows before it with a *smaller* time: rows of one time stamp never see each other.

        Args:
            keys: (n, K); ts_ms: (n,) ascending; action: (n,).
            sums: (n, M) what the row adds to each of the M sums, nothing by default.

        Raises:
            ValueError: the times descend. (Between two calls it is the caller who keeps order, and ties together.)
        """
        keys = _own(keys, np.uint64)
        times = _own(ts_ms, np.int64)
        columns = self._columns(action)
        n, width = keys.shape
        if not len(times) == len(columns) == n:
            raise ValueError(f"{n} keys, {len(times)} times, {len(columns)} actions")
        if n and np.any(times[1:] < times[:-1]):
            raise ValueError("the times of a run descend; sort the rows by time")
        added = np.zeros((n, 0), np.uint32) if sums is None else _own(sums, np.uint32)
        if len(added) != n or (sums is not None and added.shape[1] != self.sums):
            raise ValueError(f"sums {added.shape} of {n} rows in a store with {self.sums} sums")
        out = np.zeros((n, width, self.spans, self.actions), self.dtype)
        cursor = np.zeros(3, np.int64)
        reading = (self._spans.window, self._spans.window_grain, self._spans.fade, self._spans.ages)
        while True:
            kernels.run_rows(*self._arena(), *reading, keys, times, columns, added, out, cursor)
            if cursor[0] == n:
                return out
            self._grow(width)

    def export(self, keys: U64, settle: bool = False) -> list[bytes]:
        """The packed tile list of each key, merged as of the newest event; ``n = 0`` for one that is not known.

        With ``settle`` the keys count as published: the next event makes each of them ``fresh`` in :meth:`add` again.
        """
        keys = _own(keys, np.uint64)
        out: list[bytes] = []
        for start in range(0, len(keys), 65536):
            part = keys[start : start + 65536]
            sizes, places = self._sizes(part, settle=settle)
            packed, ends = self._packed(places, sizes)
            raw, stops = packed.tobytes(), ends.tolist()
            out += [raw[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True)]
        return out

    def put(self, keys: U64, blobs: Sequence[bytes]) -> None:
        """Replaces the lists of ``keys`` by packed ones; an empty list takes its key out.

        Raises:
            StoreError: a blob is damaged or of other actions; nothing is replaced then.
        """
        sizes, tiles = _unpack(blobs, self.actions)
        self._scatter(_own(keys, np.uint64), sizes, tiles)

    def expire(self, now_ms: int) -> int:
        """Drops keys whose windows are all empty at ``now_ms``, merges the tiles of the rest; returns how many went."""
        return self._sweep(now_ms, 0.0, 1.0, every_list=True)

    def sweep(self, now_ms: int, start: float, stop: float) -> int:
        """:meth:`expire` for a share of the keys: the part [start, stop) of the table, both between 0 and 1. Looks at
        the lists only that have something to merge or to drop since the last part up to 1."""
        turn = self._turn(now_ms)
        found = self._sweep(now_ms, start, stop, every_list=self._swept is None or turn - self._swept > _TURNS)
        if stop >= 1:
            self._swept = turn
        return found

    def _turn(self, now_ms: int) -> int:
        return (max(int(self._state[NEWEST]), now_ms // HOUR_MS) - SLACK_H) // self.sweep_hours

    def _sweep(self, now_ms: int, start: float, stop: float, *, every_list: bool) -> int:
        size = len(self._table)
        first, last = int(start * size), size if stop >= 1 else int(stop * size)
        return int(kernels.sweep(*self._arena(), now_ms // HOUR_MS, first, last, every_list))

    def keys(self) -> U64:
        """All keys, in no particular order."""
        found: U64 = self._table[self._table[:, 0] != 0, 0]
        return found

    def copy(self) -> TileStore:
        """A copy that shares nothing; as fast as memory is."""
        other = TileStore(self.days, self.actions, self.half_lives, self.sums)
        other._table, other._free, other._state = self._table.copy(), self._free.copy(), self._state.copy()
        other._pool, other._swept = self._pool[: self._state[USED]].copy(), self._swept
        return other

    def to_arrays(self) -> dict[str, Array]:
        """The whole state as arrays of its own: ``keys`` (n,), ``ends`` (n,) and ``packed``, the packed lists one
        after another and where each ends, ``changed`` (n,), ``newest`` (1,). Equal contents give equal arrays, whatever
        the order in which they came."""
        keys = np.sort(self.keys())
        sizes, places = self._sizes(keys, settle=False)
        full = sizes > 0
        changed = np.empty(len(keys), np.uint8)
        kernels.changed_bits(self._table, self._shift, keys, changed)
        packed, ends = self._packed(places[full], sizes[full])
        return {
            "keys": keys[full],
            "ends": ends,
            "packed": packed,
            "changed": changed[full],
            "newest": self._state[NEWEST : NEWEST + 1].copy(),
        }

    @classmethod
    def from_arrays(
        cls,
        days: Sequence[int],
        actions: int,
        arrays: Mapping[str, Array],
        half_lives: Sequence[float] = (),
        sums: int = 0,
    ) -> TileStore:
        """A store from :meth:`to_arrays`; ``days`` and ``actions`` as they were.

        Raises:
            StoreError: a tile list in it is damaged.
        """
        store = cls(days, actions, half_lives, sums)
        keys = _own(arrays["keys"], np.uint64)
        sizes, tiles = _unpacked(_own(arrays["packed"], np.uint8), _own(arrays["ends"], np.int64), actions)
        words = _words(sizes, tiles)
        store._reserve(len(keys), int(store._caps[np.searchsorted(store._caps, words)].sum()) + int(store._caps[-1]))
        store._scatter(keys, sizes, tiles)
        kernels.set_changed(store._table, store._shift, keys, _own(arrays["changed"], np.uint8))
        store._state[NEWEST] = arrays["newest"][0]
        return store

    @property
    def _shift(self) -> int:
        return 64 - (len(self._table).bit_length() - 1)

    def _arena(self) -> tuple[Any, ...]:
        return (
            self._table,
            self._shift,
            self._pool,
            self._free,
            self._state,
            self._caps,
            self._grain,
            self._reach,
            SLACK_H,
        )

    def _columns(self, action: Array) -> I64:
        columns = _own(action, np.int64)
        if len(columns) and (columns.min() < 0 or columns.max() >= self.actions):
            raise ValueError(f"action {columns.min()}..{columns.max()} of a store with {self.actions} actions")
        return columns

    def _sizes(self, keys: U64, *, settle: bool) -> tuple[I64, I64]:
        """(n,) tiles of each key, merged, and (n,) where it stands in the table."""
        sizes, places = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        table, pool, state = self._table, self._pool, self._state
        kernels.list_sizes(
            table, self._shift, pool, state, self._grain, self._reach, SLACK_H, keys, settle, sizes, places
        )
        return sizes, places

    def _packed(self, places: I64, sizes: I64) -> tuple[Array, I64]:
        """The packed lists of what :meth:`_sizes` found, one after another, and (n,) where each ends."""
        out = np.empty(9 * len(sizes) + 5 * (1 + self.actions) * int(sizes.sum()), np.uint8)
        ends = np.empty(len(sizes), np.int64)
        kernels.pack_lists(self._table, self._pool, places, sizes, self.actions, out, ends)
        return out[: ends[-1] if len(ends) else 0], ends

    def _scatter(self, keys: U64, sizes: I64, tiles: U32) -> None:
        if len(keys) != len(sizes):
            raise ValueError(f"{len(keys)} keys and {len(sizes)} tile lists")
        words = _words(sizes, tiles)
        if len(words) and words.max() > self._caps[-1]:
            raise StoreError(f"a list of {words.max()} words, more than windows of {self.days} days have", _REMEDY)
        cursor = np.zeros(2, np.int64)
        while True:
            kernels.scatter(*self._arena(), keys, sizes, words, tiles, cursor)
            if cursor[0] == len(keys):
                return
            self._grow(1)

    def _grow(self, width: int) -> None:
        """Makes room for a row of ``width`` keys, whatever they are; in proportion, so that copying stays cheap."""
        keys, used = int(self._state[KEYS]), int(self._state[USED])
        if (keys + width) * 10 > len(self._table) * 7:
            self._reserve(max(keys + width, keys * 5 // 4), 0)
        room = width * int(self._caps[-1])
        if used + room > len(self._pool):
            live = int(kernels.live_rows(self._table, self._caps))
            if live < used * 7 // 8:  # an eighth of the pool is blocks that lists have grown out of
                old, self._pool = self._pool, np.empty(live * 9 // 8 + room, np.uint64)
                kernels.move_pool(self._table, old, self._pool, self._free, self._state, self._caps)
            else:
                self._reserve(0, used * 9 // 8 + room)

    def _reserve(self, keys: int, words: int) -> None:
        size = len(self._table)
        while keys * 10 > size * 7:
            size *= 2
        if size > len(self._table):
            old, self._table = self._table, np.zeros((size, 2), np.uint64)
            kernels.rehash(old, self._table, self._shift)
        if words > len(self._pool):
            old_pool = self._pool
            self._pool = np.empty(words, np.uint64)
            used = int(self._state[USED])
            self._pool[:used] = old_pool[:used]


def counts_of(
    blobs: Sequence[bytes | None],
    ts_ms: int,
    days: Sequence[int],
    actions: int,
    half_lives: Sequence[float] = (),
    sums: int = 0,
) -> Array:
    """What :meth:`TileStore.counts` gives, straight from packed lists: (n, W + H, A); zeros for None and empty lists.

    Raises:
        StoreError: a blob is damaged or has another number of columns.
    """
    wide = np.int64 if half_lives or sums else np.uint32
    out = np.zeros((len(blobs), len(days) + len(half_lives), actions), wide)
    present = [i for i, blob in enumerate(blobs) if blob]
    if present:
        sizes, tiles = _unpack([blobs[i] or b"" for i in present], actions)
        s = _spans(tuple(days), tuple(half_lives))
        reading = (s.window, s.window_grain, s.grain, s.reach, s.fade, s.ages)
        kernels.sum_lists(tiles, sizes, ts_ms, *reading, np.array(present, np.int64), out)
    return out


def _own(values: Any, dtype: Any) -> Array:
    """As a contiguous, aligned, writable array of that type: numba compiles anew for any other kind of array."""
    return np.require(values, dtype, ["C", "A", "W"])


def _size_classes(most: int) -> I64:
    """Block sizes in words, each up to a quarter larger than the one before: 1, 2, .. 8, 10, 12, 14, 16, 20, .."""
    sizes = [1, 2, 3, 4, 5, 6, 7, 8]
    while sizes[-1] < most:
        sizes.append(sizes[-4] * 2)
    return np.array(sizes, np.int64)


def _words(sizes: I64, tiles: U32) -> I64:
    """(n,) words of the pool that each list takes."""
    words = np.empty(len(sizes), np.int64)
    kernels.words_of(tiles, sizes, words)
    return words


def _unpack(blobs: Sequence[bytes], actions: int) -> tuple[I64, U32]:
    """(n,) sizes and (T, 1 + A) tiles."""
    ends = np.cumsum([len(b) for b in blobs], dtype=np.int64)
    return _unpacked(np.frombuffer(b"".join(blobs), np.uint8).copy(), ends, actions)


def _unpacked(raw: Array, ends: I64, actions: int) -> tuple[I64, U32]:
    sizes = np.empty(len(ends), np.int64)
    bad = kernels.read_sizes(raw, ends, actions, sizes)
    tiles = np.empty((0 if bad >= 0 else int(sizes.sum()), 1 + actions), np.uint32)
    if bad < 0:
        bad = kernels.unpack(raw, ends, sizes, tiles)
    if bad >= 0:
        raise _damaged(raw[ends[bad - 1] if bad else 0 : ends[bad]].tobytes(), actions)
    return sizes, tiles


def _damaged(blob: bytes, actions: int) -> StoreError:
    return StoreError(
        f"{len(blob)} bytes ({blob[:8].hex()}..) are no tile list of {actions} actions",
        _REMEDY,
    )
