# core
"""Sliding windows and decayed counts: one list of tiles a key, whole arrays at a time.

::

    age of a tile     younger than 1 day        up to 7 days           older
    its grain         1 hour | 1 hour | ..      6 hours | 6 hours ..   1 day | 1 day | ..    (merged as it ages)

    window of length W at ts:  [ floor((ts - W) / grain) * grain ............ ts )
                                 tail: aligned to the window's grain          head: exact

A window's length gives its grain (:mod:`millrace.basics.durations`): 5 minutes up to an hour, 15 minutes up to six
hours, an hour up to a day, 6 hours up to seven days, a day beyond. So a count lies between the exact counts of W and
of W + grain. An event costs one write a key, whatever the number of windows. Tiles begin a *unit* wide: an hour, or
the finest grain of the windows where that is 5 or 15 minutes.

A count with half-life h is read off the same tiles and needs no state of its own::

    decayed(ts) = sum over the tiles that the longest window reaches of  count * 2^-((ts - middle of the tile) / h)

A tile here is what an event's unit merges into once no finer window needs the unit, merged yet or not. So the weight
of an event of time t is within a factor of 2^(+-grain / 2h) of 2^-((ts - t) / h), with the grain of its tile.
(Weights are whole numbers of :data:`UNIT`: an error of 2^-25 an event.) Events before the longest window W are left
out; their weight is 2^-(W / h) at most. The middle of the newest tile may be after ``ts``: an event of the present
unit can count a little more than 1.

A mean is a sum over a count: the columns after those of the actions hold sums (:func:`.features.steps`).

Packed form of a tile list, as Redis and ``features.items`` carry it (little-endian)::

    byte 0      form, which says the unit: 1 an hour, 2 fifteen minutes, 3 five minutes
    byte 1      A, the number of columns: actions, then sums
    bytes 2-3   n, the number of tiles, uint16
    then n times, oldest first, as LEB128 varints (7 bits a byte, low first, top bit = more follows):
                first unit of the tile since 1970, less that of the tile before (of 0 for the first)
                A counts or sums

An empty byte string and a list of n = 0 both mean "no events".

Two exposures (column 0) and a click (column 1) of one key, over a day and a week; a reader asks five hours later:

>>> import numpy as np
>>> hour_ms = 3_600_000
>>> key, noon_ms = np.array([7], np.uint64), 480_012 * hour_ms
>>> store = TileStore((1, 7), columns=2)
>>> store.add(np.repeat(key, 3), np.array([noon_ms - 72 * hour_ms, noon_ms, noon_ms + 1]), np.array([0, 0, 1]))
array([0])
>>> store.counts(key, noon_ms + 5 * hour_ms).tolist()  # [[[exposures, clicks] in a day, .. in a week]]
[[[1, 1], [2, 1]]]

``add`` reported that the key changed; it does so once a batch. Its packed list counts the same elsewhere:

>>> counts_of(store.export(key), noon_ms + 5 * hour_ms, (1, 7), 2).tolist()
[[[1, 1], [2, 1]]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics import durations
from millrace.basics.errors import StoreError
from millrace.contracts.schema import MAX_COLUMNS, Windows
from millrace.windows import tile_kernels
from millrace.windows.tile_kernels import BASE, KEYS, NEWEST, NO_UNIT, EventRows
from millrace.windows.tile_memory import HOURS, TileMemory, spans_of, unit_minutes

Array = NDArray[Any]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]

_TURNS_LEFT_OUT = 32
"""Turns of sweeping that may be left out. After more of them, a list's 7 bits do not tell whether it is due."""

_FORMS = {60: 1, 15: 2, 5: 3}
"""Form of a packed list by its unit in minutes."""

_U64, _I64, _U32, _U8 = np.dtype(np.uint64), np.dtype(np.int64), np.dtype(np.uint32), np.dtype(np.uint8)

_REMEDY = "let the stream role of this version publish it again"


class TileStore:
    """Counts in W windows and with H half-lives of A columns (actions, then sums) for any number of keys.

    A partition of the stream calls ``add`` and ``export``, the scorer's index ``put`` and ``counts``, replay
    ``run``. One thread at a time. Key 0 is "missing": nothing is stored under it.

    Counts are uint32 (n, W, A) without half-lives and sums, else int64 (n, W + H, A). The last H rows are decayed
    counts in units of 2^-24 (:data:`UNIT`), *as of the full unit at or before* ``ts``:
    :meth:`millrace.windows.features.FeatureBuilder.num` multiplies them by 2^-(rest of the unit / h).

    Args:
        lengths: the windows' lengths, ascending: a number is days, a text a duration (``"15min"``, ``"6h"``).
        columns: A, at most 16.
        half_lives: in days, ascending.
        sums: how many of the columns are sums; they are the last ones.

    Raises:
        ValueError: a length is no duration or they do not ascend, there are too many columns, or the windows are too
            long for one list.
    """

    def __init__(
        self, lengths: Sequence[int | str], columns: int, half_lives: Sequence[float] = (), sums: int = 0
    ) -> None:
        self.lengths, self.half_lives = tuple(lengths), tuple(half_lives)
        wrong = durations.length_problem(durations.lengths_in_minutes(self.lengths))
        if wrong or not 1 <= columns <= MAX_COLUMNS:
            raise ValueError(f"windows {list(lengths)} of {columns} columns: ascending lengths and 1-16 columns")
        self.columns, self.sums = columns, sums
        self.dtype: type[np.integer[Any]] = np.int64 if half_lives or sums else np.uint32
        self._spans = spans_of(self.lengths, self.half_lives)
        try:
            self._memory = TileMemory(self._spans, columns)
        except ValueError as error:
            raise ValueError(f"{error}: up to {lengths[-1]}") from None
        self._unit_min = self._memory.unit_min
        self._swept: int | None = None  # turn of the last whole sweep

    @classmethod
    def of(cls, windows: Windows) -> TileStore:
        return cls(windows.durations, windows.columns, windows.half_lives, len(windows.means))

    @property
    def spans(self) -> int:
        return len(self.lengths) + len(self.half_lives)

    def __len__(self) -> int:
        return int(self._memory.arena.state[KEYS])

    @property
    def sweep_hours(self) -> int:
        """Hours between two turns of sweeping. Tiles merge and keys end at multiples of it, :data:`SLACK_H` later."""
        return self._memory.arena.turn * self._unit_min // durations.HOUR_MIN

    @property
    def nbytes(self) -> int:
        return self._memory.arena.table.nbytes + self._memory.arena.pool.nbytes

    @property
    def newest_unit(self) -> int | None:
        """Unit since 1970 of the newest event (or sweep), None before the first."""
        newest = int(self._memory.arena.state[NEWEST])
        return None if newest == NO_UNIT else newest + int(self._memory.arena.state[BASE])

    def add(self, keys: U64, ts_ms: I64, column: Array, amount: Array | int = 1) -> I64:
        """Counts events in any order. An event too old for every window is ignored.

        Args:
            keys: (n,) or (n, K): a row counts under each of its keys.
            ts_ms: (n,)
            column: (n,) the column each counts in.
            amount: (n,) or one for all, not negative.

        Returns:
            Flat indices into ``keys`` of those that had not changed since they were last exported with ``settle``.

        Raises:
            ValueError: the lengths differ, or the store has no such column; nothing is counted then.
        """
        keys = _contiguous(keys, _U64)
        n = len(keys)
        columns = self._checked(column)
        times = _contiguous(ts_ms, _I64)
        if not len(times) == len(columns) == n:
            raise ValueError(f"{n} keys, {len(times)} times, {len(columns)} columns")
        amounts = np.full(n, amount, np.uint32)
        width = 1 if keys.ndim == 1 else keys.shape[1]
        rows = EventRows(keys.reshape(n, width), times, columns, amounts)
        fresh = np.empty(keys.size, np.int64)
        cursor = np.zeros(3, np.int64)
        while True:
            tile_kernels.add_rows(self._memory.arena, rows, fresh, cursor)
            if cursor[0] == n:
                return fresh[: cursor[1]].copy()
            self._reach(int(times[cursor[0]]) // self._memory.arena.unit)
            self._memory.grow(width)

    def counts(self, keys: U64, ts_ms: I64 | int, first: bool = False) -> Array:
        """Counts in ``[ts - W, ts)`` and decayed counts of each key (n,), as (n, W + H, A); zeros for an unknown key.
        Allocates no key.

        With ``first`` there is one row more, (n, W + H + 1, A): its column 0 is the unit since 1970 at which the oldest
        tile of the longest window begins that has an exposure (column 0), 0 where there is none.

        The head is exact to the unit: an event in the unit of ``ts`` counts even if it is not before ``ts``. So ask
        at a time after the newest event. Replay uses :meth:`run`.
        """
        keys = _contiguous(keys, _U64)
        out = np.zeros((len(keys), self.spans + first, self.columns), self.dtype)
        tile_kernels.count_rows(self._memory.arena, self._spans, keys, np.full(len(keys), ts_ms, np.int64), out)
        return out

    def run(self, keys: U64, ts_ms: I64, column: Array, sums: Array | None = None, first: bool = False) -> Array:
        """Point-in-time counts of each row, then the row itself is added: (n, K, W + H, A), with ``first`` as
        :meth:`counts`.

        Row i sees exactly the rows before it with a *smaller* time: rows of one time stamp never see each other.

        Args:
            keys: (n, K)
            ts_ms: (n,) ascending.
            column: (n,) the column each row counts in.
            sums: (n, M) what the row adds to each of the M sums, nothing by default.

        Raises:
            ValueError: the times descend, the lengths differ, or the store has no such column; nothing is counted then.
                (From one call to the next the caller keeps the order, and ties together.)
        """
        keys = _contiguous(keys, _U64)
        times = _contiguous(ts_ms, _I64)
        columns = self._checked(column)
        n, width = keys.shape
        if not len(times) == len(columns) == n:
            raise ValueError(f"{n} keys, {len(times)} times, {len(columns)} columns")
        if n and np.any(times[1:] < times[:-1]):
            raise ValueError("the times of a run descend; sort the rows by time")
        added = np.zeros((n, 0), np.uint32) if sums is None else _contiguous(sums, _U32)
        if len(added) != n or (sums is not None and added.shape[1] != self.sums):
            raise ValueError(f"sums {added.shape} of {n} rows in a store with {self.sums} sums")
        out = np.zeros((n, width, self.spans + first, self.columns), self.dtype)
        rows = EventRows(keys, times, columns, added)
        cursor = np.zeros(3, np.int64)
        while True:
            tile_kernels.run_rows(self._memory.arena, self._spans, rows, out, cursor)
            if cursor[0] == n:
                return out
            self._reach(int(times[cursor[0]]) // self._memory.arena.unit)
            self._memory.grow(width)

    def export(self, keys: U64, settle: bool = False) -> list[bytes]:
        """The packed tile list of each key, merged as of the newest event; a list of n = 0 for an unknown key. With
        ``settle`` the keys count as published: :meth:`add` reports each of them again at its next change."""
        keys = _contiguous(keys, _U64)
        out: list[bytes] = []
        for start in range(0, len(keys), 65536):
            part = keys[start : start + 65536]
            sizes, places = self._sizes(part, settle=settle)
            packed, ends = self._packed(places, sizes)
            raw, stops = packed.tobytes(), ends.tolist()
            out += [raw[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True)]
        return out

    def settle(self, keys: U64) -> None:
        """What :meth:`export` with ``settle`` does to the store, without packing anything."""
        self._sizes(_contiguous(keys, _U64), settle=True)

    def put(self, keys: U64, blobs: Sequence[bytes]) -> None:
        """Replaces the lists of ``keys`` (n,) by packed ones; an empty list removes its key.

        Raises:
            StoreError: a list is damaged, or has another number of columns or another unit; nothing is replaced then.
        """
        sizes, tiles = _unpack(blobs, self.columns, self._unit_min)
        self._scatter(_contiguous(keys, _U64), sizes, tiles)

    def drop(self, keys: U64) -> None:
        """Removes ``keys`` (n,) and all that was counted under them."""
        keys = _contiguous(keys, _U64)
        self._scatter(keys, np.zeros(len(keys), np.int64), np.zeros((0, 1 + self.columns), np.uint32))

    def expire(self, now_ms: int) -> int:
        """Drops keys whose windows are all empty at ``now_ms`` and merges the other keys' tiles. Returns the number
        dropped."""
        return self._sweep(now_ms, 0.0, 1.0, every_list=True)

    def sweep(self, now_ms: int, start: float, stop: float) -> int:
        """:meth:`expire` for the part [start, stop) of the table, where 0 <= start < stop <= 1. It looks only at lists
        that have had something to merge or to drop since the last whole sweep, which ended with a part up to 1."""
        arena = self._memory.arena
        now = max(int(arena.state[NEWEST]), now_ms // arena.unit - int(arena.state[BASE]))
        turn: int = (now - arena.slack) // arena.turn
        found = self._sweep(now_ms, start, stop, every_list=self._swept is None or turn - self._swept > _TURNS_LEFT_OUT)
        if stop >= 1:
            self._swept = turn
        return found

    def _sweep(self, now_ms: int, start: float, stop: float, *, every_list: bool) -> int:
        arena = self._memory.arena
        size = len(arena.table)
        first, last = int(start * size), size if stop >= 1 else int(stop * size)
        return int(tile_kernels.sweep(arena, now_ms // arena.unit - int(arena.state[BASE]), first, last, every_list))

    def keys(self) -> U64:
        table = self._memory.arena.table
        found: U64 = table[table[:, 0] != 0, 0]
        return found

    def snapshot(self) -> TilesSnapshot:
        """The whole state now. Quick: it copies memory and packs nothing (:meth:`TilesSnapshot.arrays` does)."""
        return TilesSnapshot(self._twin())

    def resume(self, state: TilesSnapshot | Mapping[str, Array]) -> None:
        """Restores a snapshot, or its arrays, into a fresh store.

        Raises:
            ValueError: this store is not fresh, or its windows or columns differ from the snapshot's.
            StoreError: a tile list in the arrays is damaged, or has another number of columns or another unit.
        """
        if self.newest_unit is not None:
            raise ValueError(f"a store with {len(self)} keys cannot resume; resume a fresh one")
        if isinstance(state, TilesSnapshot):
            source = state._store
            if source._shape != self._shape:
                raise ValueError(f"a snapshot of a store {source._shape} for a store {self._shape}; make it alike")
            twin = source._twin()
            self._memory, self._swept = twin._memory, twin._swept
            return
        keys = _contiguous(state["keys"], _U64)
        packed, ends = _contiguous(state["packed"], _U8), _contiguous(state["ends"], _I64)
        sizes, tiles = _unpacked(packed, ends, self.columns, self._unit_min)
        words, caps = _words(sizes, tiles), self._memory.arena.caps
        if len(words) and words.max() > caps[-1]:
            raise self._too_long(words)
        self._memory.reserve(len(keys), int(caps[np.searchsorted(caps, words)].sum()) + int(caps[-1]))
        newest = int(state["newest"][0])
        self._reach(newest)
        self._scatter(keys, sizes, tiles)
        tile_kernels.set_changed(self._memory.arena, keys, _contiguous(state["changed"], _U8))
        self._memory.arena.state[NEWEST] = newest if newest == NO_UNIT else newest - self._memory.arena.state[BASE]

    @property
    def _shape(self) -> tuple[tuple[int | str, ...], int, tuple[float, ...], int]:
        return self.lengths, self.columns, self.half_lives, self.sums

    def _twin(self) -> TileStore:
        """An equal store that shares nothing with this one; as fast as memory is."""
        twin = TileStore(*self._shape)
        twin._memory.arena = self._memory.copy()
        twin._swept = self._swept
        return twin

    def _checked(self, column: Array) -> I64:
        columns = _contiguous(column, _I64)
        if len(columns) and (columns.min() < 0 or columns.max() >= self.columns):
            raise ValueError(f"column {columns.min()}..{columns.max()} of a store with {self.columns} columns")
        return columns

    def _sizes(self, keys: U64, *, settle: bool) -> tuple[I64, I64]:
        """(n,) tiles of each key, merged, and (n,) where it stands in the table."""
        sizes, places = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        tile_kernels.list_sizes(self._memory.arena, keys, settle, sizes, places)
        return sizes, places

    def _packed(self, places: I64, sizes: I64) -> tuple[Array, I64]:
        """The packed lists of what :meth:`_sizes` found, one after another, and (n,) where each ends."""
        out = np.empty(9 * len(sizes) + 5 * (1 + self.columns) * int(sizes.sum()), np.uint8)
        ends = np.empty(len(sizes), np.int64)
        tile_kernels.pack_lists(self._memory.arena, places, sizes, _FORMS[self._unit_min], self.columns, out, ends)
        return out[: ends[-1] if len(ends) else 0], ends

    def _scatter(self, keys: U64, sizes: I64, tiles: U32) -> None:
        if len(keys) != len(sizes):
            raise ValueError(f"{len(keys)} keys and {len(sizes)} tile lists")
        if len(tiles) and self._unit_min < durations.HOUR_MIN:
            self._reach(int(tiles[:, 0].max()))
            older = tiles[:, 0] < self._memory.arena.state[BASE]
            if older.any():  # no window reaches them
                of = np.repeat(np.arange(len(sizes)), sizes)[older]
                sizes, tiles = sizes - np.bincount(of, minlength=len(sizes)), np.ascontiguousarray(tiles[~older])
        words = _words(sizes, tiles)
        if len(words) and words.max() > self._memory.arena.caps[-1]:
            raise self._too_long(words)
        cursor = np.zeros(2, np.int64)
        while True:
            tile_kernels.scatter(self._memory.arena, keys, sizes, words, tiles, cursor)
            if cursor[0] == len(keys):
                return
            self._memory.grow(1)

    def _too_long(self, words: I64) -> StoreError:
        return StoreError(f"a list of {words.max()} words, more than windows of {list(self.lengths)} have", _REMEDY)

    def _reach(self, unit: int) -> None:
        if self._memory.reach(unit):
            self._swept = None  # an emptied list has no turn in its 7 bits


class TilesSnapshot:
    """A store's state at one moment, independent of the store. Another thread may pack it, one at a time."""

    def __init__(self, store: TileStore) -> None:
        self._store = store

    def arrays(self) -> dict[str, Array]:
        """The state as arrays, for a file: ``keys`` (n,) ascending; ``packed``, the packed lists one after another;
        ``ends`` (n,), where each of them ends; ``changed`` (n,); ``newest`` (1,). Equal contents give equal arrays."""
        store = self._store
        keys = np.sort(store.keys())
        sizes, places = store._sizes(keys, settle=False)
        full = sizes > 0
        changed = np.empty(len(keys), np.uint8)
        tile_kernels.changed_bits(store._memory.arena, keys, changed)
        packed, ends = store._packed(places[full], sizes[full])
        return {
            "keys": keys[full],
            "ends": ends,
            "packed": packed,
            "changed": changed[full],
            "newest": np.array([NO_UNIT if store.newest_unit is None else store.newest_unit], np.int64),
        }


def counts_of(
    blobs: Sequence[bytes | None],
    ts_ms: int,
    lengths: Sequence[int | str],
    columns: int,
    half_lives: Sequence[float] = (),
    sums: int = 0,
) -> Array:
    """What :meth:`TileStore.counts` gives, from packed lists: (n, W + H, A); zeros for None and empty lists.

    Raises:
        StoreError: a list is damaged, or has another number of columns or another unit.
    """
    lengths = tuple(lengths)
    wide = np.int64 if half_lives or sums else np.uint32
    out = np.zeros((len(blobs), len(lengths) + len(half_lives), columns), wide)
    present = [i for i, blob in enumerate(blobs) if blob]
    if present:
        sizes, tiles = _unpack([blob for blob in blobs if blob], columns, unit_minutes(lengths))
        spans = spans_of(lengths, tuple(half_lives))
        tile_kernels.sum_lists(spans, tiles, sizes, ts_ms, np.array(present, np.int64), out)
    return out


def _contiguous(values: Any, dtype: np.dtype[Any]) -> Array:
    """As a contiguous, aligned, writable array of that type: numba compiles again for any other kind of array."""
    if type(values) is np.ndarray and values.dtype is dtype and values.flags.carray:  # nearly always, and quick
        return values
    return np.require(values, dtype, ["C", "A", "W"])


def _words(sizes: I64, tiles: U32) -> I64:
    """(n,) words of the pool that each list takes."""
    words = np.empty(len(sizes), np.int64)
    tile_kernels.words_of(tiles, sizes, words)
    return words


def _unpack(blobs: Sequence[bytes], columns: int, unit_min: int) -> tuple[I64, U32]:
    """(n,) sizes and (T, 1 + A) tiles, which name units since 1970."""
    ends = np.fromiter(accumulate(map(len, blobs)), np.int64, len(blobs))
    return _unpacked(np.frombuffer(bytearray().join(blobs), np.uint8), ends, columns, unit_min)


def _unpacked(raw: Array, ends: I64, columns: int, unit_min: int) -> tuple[I64, U32]:
    sizes = np.empty(len(ends), np.int64)
    bad = tile_kernels.read_sizes(raw, ends, _FORMS[unit_min], columns, sizes)
    tiles = np.empty((0 if bad >= 0 else int(sizes.sum()), 1 + columns), np.uint32)
    if bad < 0:
        bad = tile_kernels.unpack(raw, ends, sizes, HOURS * durations.HOUR_MIN // unit_min, tiles)
    if bad >= 0:
        raise _damaged(raw[ends[bad - 1] if bad else 0 : ends[bad]].tobytes(), columns, unit_min)
    return sizes, tiles


def _damaged(blob: bytes, columns: int, unit_min: int) -> StoreError:
    other = next((unit for unit, form in _FORMS.items() if blob[:1] == bytes([form]) and unit != unit_min), None)
    if other is not None:
        problem = f"a tile list of {other} minutes, where this schema's windows have tiles of {unit_min}"
        return StoreError(problem, "let the stream role publish it again under this schema")
    return StoreError(f"{len(blob)} bytes ({blob[:8].hex()}..) are no tile list of {columns} columns", _REMEDY)
