# core
"""Which user each user-side window key of a partition belongs to. Pure.

It serves to refill a store that lost its data, and to delete the field of a key whose windows are all empty. A key
is a hash, so its user cannot be read from it; the user costs 12 bytes a key. A key made of attributes alone is
shared by users and belongs here to the first that changed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.events import Id

MERGE_KEYS = 65_536
"""New keys wait until there are this many, since a merge copies all keys once."""

ByUser = tuple[list[Id], list[int], U64]
"""Users; where each user's keys begin (and where the last user's end); all keys in that order."""


class Owners:
    """Arrays are replaced, never changed, so that :meth:`snapshot` copies only names."""

    def __init__(self) -> None:
        self._ids: list[Id] = []
        self._number: dict[str, int] = {}
        self._keys: U64 = np.zeros(0, np.uint64)  # (n,) ascending
        self._who: NDArray[np.int32] = np.zeros(0, np.int32)  # (n,)
        self._new: list[tuple[U64, NDArray[np.int32]]] = []
        self._waiting = 0

    def __len__(self) -> int:
        self._merge()
        return len(self._keys)

    def add(self, users: Sequence[Id], bounds: Sequence[int], keys: U64) -> None:
        """Notes that ``keys[bounds[i] : bounds[i + 1]]`` belong to ``users[i]``. Keys known already keep their user."""
        new = ~within(keys, self._keys)
        if not new.any():
            return
        place = np.repeat(np.arange(len(users)), np.diff(bounds))[new]
        known, place = np.unique(place, return_inverse=True)
        numbers = []
        for user in (users[i] for i in known.tolist()):
            number = self._number.setdefault(str(user), len(self._ids))
            if number == len(self._ids):
                self._ids.append(user)
            numbers.append(number)
        self._new.append((keys[new], np.array(numbers, np.int32)[place]))
        self._waiting += len(place)
        if self._waiting > MERGE_KEYS:
            self._merge()

    def all(self) -> ByUser:
        self._merge()
        return self._by_user(self._keys, self._who)

    def end(self, alive: U64) -> ByUser:
        """Forgets the keys that are not ``alive`` (n,), and users without a key left. Returns the forgotten keys."""
        self._merge()
        lives = within(self._keys, np.sort(alive))
        gone = self._by_user(self._keys[~lives], self._who[~lives])
        if len(gone[2]):
            left, who = np.unique(self._who[lives], return_inverse=True)
            self._ids = [self._ids[i] for i in left.tolist()]
            self._number = {str(user): number for number, user in enumerate(self._ids)}
            self._keys, self._who = self._keys[lives], who.astype(np.int32)
        return gone

    def forget(self, user: Id) -> U64:
        """Forgets a user. Returns the user's keys, which then belong to nobody."""
        self._merge()
        number = self._number.get(str(user))
        if number is None:
            return np.zeros(0, np.uint64)
        mine = self._who == number
        keys: U64 = self._keys[mine]
        # The last user takes the free number, so that the others keep theirs.
        last = len(self._ids) - 1
        who = self._who[~mine]
        who[who == last] = number
        del self._number[str(user)]
        moved = self._ids.pop()
        if number != last:
            self._ids[number] = moved
            self._number[str(moved)] = number
        self._keys, self._who = self._keys[~mine], who
        return keys

    def snapshot(self) -> tuple[list[Id], NDArray[np.int32], U64]:
        """The whole state: user ids, the index of each key's user (n,), keys (n,)."""
        self._merge()
        return list(self._ids), self._who, self._keys

    def resume(self, state: tuple[Sequence[Id], Any, Any]) -> None:
        ids, who, keys = state
        self._ids = list(ids)
        self._number = {str(user): number for number, user in enumerate(self._ids)}
        self._keys, self._who = np.array(keys, np.uint64), np.array(who, np.int32)

    def _by_user(self, keys: U64, who: NDArray[np.int32]) -> ByUser:
        order = np.argsort(who, kind="stable")
        users, sizes = np.unique(who, return_counts=True)
        return [self._ids[i] for i in users.tolist()], [0, *np.cumsum(sizes).tolist()], keys[order]

    def _merge(self) -> None:
        if not self._new:
            return
        keys, first = np.unique(np.concatenate([k for k, _ in self._new]), return_index=True)
        who = np.concatenate([w for _, w in self._new])[first]
        at = np.searchsorted(self._keys, keys)
        self._keys, self._who = np.insert(self._keys, at, keys), np.insert(self._who, at, who)
        self._new, self._waiting = [], 0


def within(keys: U64, ascending: U64) -> NDArray[np.bool_]:
    """Which of ``keys`` are in ``ascending``. (n,)"""
    if not len(ascending):
        return np.zeros(len(keys), np.bool_)
    at = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[at] == keys
    return found
