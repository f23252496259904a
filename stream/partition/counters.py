# core
"""A partition's counts: windows by key, what users did last, items that are clicked together. Pure.

::

    rows of pages ──► Counters.add ──┬─► TileStore ──┐
                                     ├─► Recents     ├─► changes(): what the readers do not know yet
                                     └─► CoClicks ───┘

When a user is forgotten, the windows of keys that contain the user's id are dropped at once, and so are the last
clicks. Later actions on pages made before count in no window of the user's. Windows that users share (of an age
band) stay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import HOUR_MS
from millrace.basics.hashing import U64
from millrace.contracts.coclick_message import Lists
from millrace.contracts.events import ACTIONS, CLICK, PURCHASE, Id, User
from millrace.contracts.schema import Schema
from millrace.windows.features import steps
from millrace.windows.tile_memory import SLACK_H
from millrace.windows.tiles import TilesSnapshot, TileStore
from stream.join.page_rows import Counted, LoggedPage, keys_of, numbers_of, rows_of
from stream.partition.changelog import ChangeLog
from stream.partition.coclick_counts import EARLIER, CoClicks, CoClicksSnapshot
from stream.partition.decoder import Decoder
from stream.partition.owners import ByUser, within
from stream.partition.recents import CLICKS, PURCHASES, Recents, UserRecent

Array = NDArray[Any]
_WHOLE_KEYS = 8192  # lists in each part of Counters.whole
_SWEEPS = 64  # slices in which the windows are swept

UserTiles = tuple[Id, list[tuple[int, bytes]]]
"""A user, with window keys and their packed tile lists; an empty list: the key has ended."""


@dataclass(slots=True)
class Changes:
    """Changes to publish. They are absolute new states, so publishing them twice changes nothing."""

    forgotten: dict[str, list[Id]]  # users whose published data is deleted first; guests of an unpublished profile
    users: list[UserTiles]
    profiles: list[User]
    item_keys: U64  # (n,)
    item_tiles: list[bytes]
    event_ms: int  # newest event in it
    recents: list[UserRecent]  # what users did last, empty where it has ended
    coclicks: Lists


class Whole(NamedTuple):
    """A part of a partition's users."""

    users: list[UserTiles]
    recents: list[UserRecent]


class Counters:
    """One thread at a time.

    Attributes:
        log: changes that the readers do not know yet.
    """

    def __init__(self, schema: Schema, decoder: Decoder) -> None:
        layout, windows = schema.layout, schema.windows
        self._decoder, self._numbers, self._width = decoder, layout.N, layout.K
        self.tiles = TileStore.of(windows)
        self.recents, self.coclicks, self.log = Recents(), CoClicks(), ChangeLog()
        # For each mean: the column of its action, the column of its field in num, the size of a step.
        plain = [f.name for f in layout.plain_fields]
        self._means = [(windows.actions.index(m.action), plain.index(m.of), m.step) for m in windows.means]
        self._first_sum = len(windows.actions)
        self._column = [windows.actions.index(a) if a in windows.actions else -1 for a in ACTIONS]
        self._user_side = np.array([schema.key_side(k) == "user" for k in windows.keys], np.bool_)
        user, _ = schema.ids
        self._shared_side = self._user_side & np.array([user not in k.columns for k in windows.keys], np.bool_)
        self._shared: U64 = np.zeros(0, np.uint64)  # user-side keys of several users, ascending
        self._forgotten: dict[str, int] = {}  # users, and the event time at which each was: the oldest first
        self._swept_turn, self._sweep_hour, self._sweep_at = -1, 0, _SWEEPS
        self._ended = False  # whether a sweep has dropped any key

    # ------------------------------------------------------------------ counting

    def add(self, counted: Sequence[Counted]) -> int:
        """Counts rows, and notes clicks and purchases. Returns how many values were unfit for a mean."""
        unfit = self._count([c for c in counted if self._column[c.action] >= 0]) if self._width else 0
        self._remember(counted)
        return unfit

    def _count(self, chunks: Sequence[Counted]) -> int:
        """Counts rows under the window keys of their page log, and notes the changed keys for each reader."""
        if not chunks:
            return 0
        keys = keys_of(chunks, self._width)
        sizes = [c.n for c in chunks]
        if self._forgotten:
            theirs = np.repeat(np.array([self._is_forgotten(c.page_log) for c in chunks]), sizes)
            keys[theirs[:, None] & self._user_side] = 0  # no key
        times = np.repeat(np.array([c.ts_ms for c in chunks], np.int64), sizes)
        actions = np.repeat(np.array([self._column[c.action] for c in chunks], np.int64), sizes)
        fresh = self.tiles.add(keys, times, actions)
        unfit = 0
        for m, (action, number, step) in enumerate(self._means, self._first_sum):
            acted = np.flatnonzero(actions == action)
            if len(acted):  # the same keys were just counted for the actions, so they are noted as changed already
                values = numbers_of([c for c in chunks if self._column[c.action] == action], self._numbers)
                amounts, bad = steps(values[:, number], step)
                unfit += bad
                self.tiles.add(keys[acted], times[acted], np.full(len(acted), m), amounts)
        if len(fresh):
            self._note(chunks, sizes, keys.ravel(), fresh)
        return unfit

    def _note(self, chunks: Sequence[Counted], sizes: Sequence[int], keys: U64, fresh: NDArray[np.int64]) -> None:
        """Notes that ``keys[fresh]`` have changed; ``keys`` are those of all rows, one row after another."""
        rows, which = np.divmod(fresh, self._width)
        mine = self._user_side[which]
        self.log.add_items(keys[fresh[~mine]])
        if self._shared_side.any():
            shared = keys[fresh[self._shared_side[which]]]
            new = shared[~within(shared, self._shared)]
            if len(new):  # seldom: a merge copies them all
                self._shared = np.union1d(self._shared, new)
        owner = np.repeat(np.arange(len(chunks)), sizes)[rows[mine]]
        if len(owner):
            users, owner = np.unique(owner, return_inverse=True)
            self.log.add_users([chunks[i].page_log.user_id for i in users.tolist()], owner, keys[fresh[mine]])

    def _remember(self, counted: Sequence[Counted]) -> None:
        """Notes clicks and purchases as their users' last ones, and counts clicks with those before them."""
        recents = self.recents
        clicked: list[bytes] = []
        times: list[int] = []
        sizes: list[int] = []
        ids: list[Id] = []
        times_before: list[int] = []
        for page, runs, _, ts_ms, action in counted:
            if self._is_forgotten(page):
                if action == CLICK:
                    self._republish([page.items[runs[0][0]]])
                continue
            if action == CLICK:
                at = runs[0][0]
                before = recents.add(page.user_id, CLICKS, page.items[at], ts_ms, EARLIER)
                if before:
                    clicked.append(page.item[8 * at : 8 * at + 8])
                    times.append(ts_ms)
                    sizes.append(len(before) // 2)
                    ids += before[::2]
                    times_before += before[1::2]
            elif action == PURCHASE:
                recents.add(page.user_id, PURCHASES, page.items[runs[0][0]], ts_ms)
        if clicked:
            of_clicks = rows_of(clicked, "<u8"), np.array(times, np.int64), np.array(sizes, np.int64)
            others = rows_of([self._decoder.hashes(ids)], "<u8")
            self.coclicks.click(*of_clicks, others, np.array(times_before, np.int64))

    # ------------------------------------------------------------------ forgetting

    def forget(self, user: str, at_ms: int) -> None:
        """A user is deleted at ``at_ms`` of event time."""
        self._republish(self.recents.forget(user))
        mine = self.log.forget(user)
        shared = np.isin(mine, self._shared)
        self.tiles.settle(mine[shared])  # the user who changes one next is published with it
        self.tiles.drop(mine[~shared])
        self._forgotten.pop(user, None)
        self._forgotten[user] = at_ms

    def _is_forgotten(self, page: LoggedPage) -> bool:
        at_ms = self._forgotten.get(str(page.user_id)) if self._forgotten else None
        return at_ms is not None and page.ts_ms <= at_ms

    def _republish(self, items: Sequence[Id]) -> None:
        """Publishes the co-clicks of a forgotten user's items again. After a crash the tombstone may come before clicks
        that it followed the first time; readers know those clicks."""
        self.coclicks.republish(rows_of([self._decoder.hashes(items)], "<u8"))

    # ------------------------------------------------------------------ sweeping

    @property
    def is_sweeping(self) -> bool:
        return self._sweep_at < _SWEEPS

    def sweep(self, now_ms: int, pages_from_ms: int) -> None:
        """Merges tiles and ends keys that are due, in slices, so that no step takes long.

        Args:
            now_ms: the newest event.
            pages_from_ms: no page made before then is known any more.
        """
        while self._forgotten and (first := next(iter(self._forgotten.items())))[1] < pages_from_ms:
            del self._forgotten[first[0]]
        self.recents.sweep(now_ms)
        self.coclicks.sweep(now_ms)
        hour = now_ms // HOUR_MS
        turn = (hour - SLACK_H) // self.tiles.sweep_hours
        if turn > self._swept_turn and not self.is_sweeping:
            self._swept_turn, self._sweep_hour, self._sweep_at = turn, hour, 0
        if self.is_sweeping:
            at = self._sweep_at
            dropped = self.tiles.sweep(self._sweep_hour * HOUR_MS, at / _SWEEPS, (at + 1) / _SWEEPS)
            self._ended = self._ended or dropped > 0
            self._sweep_at += 1

    # ------------------------------------------------------------------ for the readers

    def changes(self, event_ms: int) -> Changes:
        """What changed since the last call. ``event_ms`` is the newest event."""
        log, items = self.log, self.log.item_keys()
        owners, bounds, user_keys = log.owned_keys()
        tiles = self.tiles.export(np.concatenate([items, user_keys]), settle=True)
        users = _lists_of(owners, bounds, user_keys, tiles[len(items) :])
        if self._ended and not self.is_sweeping:  # after each sweep: the last window of a key ends with a day
            self._ended = False
            alive = self.tiles.keys()
            owners, bounds, gone = log.owners.end(alive)
            self._shared = np.intersect1d(self._shared, alive)
            users += _lists_of(owners, bounds, gone, [b""] * len(gone))
        forgotten, profiles = log.forgotten, list(log.profiles.values())
        log.clear()
        recents, coclicks = self.recents.changes(), self.coclicks.changes()
        return Changes(forgotten, users, profiles, items, tiles[: len(items)], event_ms, recents, coclicks)

    def published(self) -> None:
        """Does to the state what :meth:`changes` did, for live keys. Nothing is packed."""
        items, (_, _, user_keys) = self.log.item_keys(), self.log.owned_keys()
        self.tiles.settle(np.concatenate([items, user_keys]))
        self.log.clear()
        self.recents.changes()
        self.coclicks.changes()

    def whole(self) -> Iterator[Whole]:
        """All user-side tile lists by user, and what users did last, some thousand at a time."""
        self.log.owned_keys()
        owners, bounds, keys = self.log.owners.all()
        start = 0
        while start < len(owners):
            end = max(start + 1, bisect_right(bounds, bounds[start] + _WHOLE_KEYS) - 1)
            part = keys[bounds[start] : bounds[end]]
            starts = [b - bounds[start] for b in bounds[start : end + 1]]
            yield Whole(_lists_of(owners[start:end], starts, part, self.tiles.export(part)), [])
            start = end
        for recents in self.recents.whole():
            yield Whole([], recents)

    # ------------------------------------------------------------------ state

    def snapshot(self) -> CountersSnapshot:
        users = self.log.user_keys()
        plain = {
            "profiles": list(self.log.profiles.values()),
            "sweep": (self._swept_turn, self._sweep_hour, self._sweep_at),
            "recents": self.recents.snapshot(),
            "forgotten": (list(self._forgotten.items()), dict(self.log.forgotten)),
        }
        items, owners, tiles = self.log.item_keys(), self.log.owners.snapshot(), self.tiles.snapshot()
        return CountersSnapshot(plain, users, owners, items, self._shared, tiles, self.coclicks.snapshot())

    def resume(self, state: CountersState, was: Schema | None) -> None:
        """Restores a state. For a new object.

        Args:
            was: the state's schema, where it is another one.

        Raises:
            ValueError, KeyError, TypeError, StoreError: it is no state.
        """
        if was is None or was.windows.keys:  # else nothing was counted, and time may have other units
            self.tiles.resume({name: np.frombuffer(state.tiles[name], dtype) for name, dtype in _ARRAYS.items()})
        if was is None:  # with other windows, turns have other numbers: the next sweep begins at once
            self._swept_turn, self._sweep_hour, self._sweep_at = state.sweep
        self.key_may_have_ended()
        users, bounds, keys = state.users
        self.log.add_users(users, np.repeat(np.arange(len(users)), np.diff(bounds)), np.frombuffer(keys, "<u8"))
        self.log.add_items(np.frombuffer(state.items, "<u8"))
        self.log.profiles = {str(user.user_id): user for user in state.profiles}
        ids, who, keys = state.owners
        self.log.owners.resume((ids, np.frombuffer(who, "<i4"), np.frombuffer(keys, "<u8")))
        self.recents.resume(state.recents)
        self.coclicks.resume(state.coclicks)
        forgotten, unsent = state.forgotten
        self._forgotten = dict(forgotten)
        self.log.forgotten = unsent
        self._shared = np.frombuffer(state.shared, "<u8")

    def key_may_have_ended(self) -> None:
        """Lets the next :meth:`changes` after a sweep look for ended keys that readers may have."""
        self._ended = True


class CountersState(msgspec.Struct):
    users: tuple[list[Id], list[int], memoryview]
    items: memoryview
    profiles: list[User]
    owners: tuple[list[Id], memoryview, memoryview]
    tiles: dict[str, memoryview]
    shared: memoryview
    sweep: tuple[int, int, int]
    recents: tuple[dict[str, bytes], list[str], int]
    coclicks: dict[str, Any]
    forgotten: tuple[list[tuple[str, int]], dict[str, list[Id]]]


@dataclass(slots=True)
class CountersSnapshot:
    values: dict[str, Any]
    users: ByUser
    owners: tuple[list[Id], NDArray[np.int32], U64]
    items: U64
    shared: U64
    tiles: TilesSnapshot
    coclicks: CoClicksSnapshot

    def plain(self) -> dict[str, Any]:
        """The fields of :class:`CountersState`. Any thread may call it."""
        arrays = self.tiles.arrays()
        users, bounds, keys = self.users
        owners, who, owned = self.owners
        return self.values | {
            "users": (users, bounds, _raw(keys, "<u8")),
            "items": _raw(self.items, "<u8"),
            "shared": _raw(self.shared, "<u8"),
            "owners": (owners, _raw(who, "<i4"), _raw(owned, "<u8")),
            "tiles": {name: _raw(arrays[name], dtype) for name, dtype in _ARRAYS.items()},
            "coclicks": self.coclicks.plain(),
        }


_ARRAYS = {"keys": "<u8", "ends": "<i8", "packed": "u1", "changed": "u1", "newest": "<i8"}


def _lists_of(users: Sequence[Id], bounds: Sequence[int], keys: U64, tiles: Sequence[bytes]) -> list[UserTiles]:
    """Keys with their lists by user; the keys of a user lie between two bounds."""
    lists = list(zip(keys.tolist(), tiles, strict=True))
    return [(user, lists[a:b]) for user, (a, b) in zip(users, pairwise(bounds), strict=True)]


def _raw(array: Array, dtype: str) -> memoryview:
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data
