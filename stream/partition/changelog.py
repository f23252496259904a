# core
"""Changes that the readers of a partition's windows do not know yet: keys, profiles, deleted users. Pure.

User-side keys are kept with their users, since a reader finds them by user.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.events import Id, User
from stream.partition.owners import ByUser, Owners

ChangedUsers = tuple[list[Id], NDArray[Any], U64]
"""Users; (n,) index of each key's user; (n,) keys."""


class ChangeLog:
    def __init__(self) -> None:
        self.owners = Owners()
        self.profiles: dict[str, User] = {}
        self.forgotten: dict[str, list[Id]] = {}
        self._users: list[ChangedUsers] = []
        self._items: list[U64] = []

    def add_items(self, keys: U64) -> None:
        if len(keys):
            self._items.append(keys)

    def add_users(self, users: list[Id], whose: NDArray[Any], keys: U64) -> None:
        if len(keys):
            self._users.append((users, whose, keys))

    def item_keys(self) -> U64:
        """Changed item-side keys, in the order in which they changed."""
        return np.concatenate([np.zeros(0, np.uint64), *self._items])

    def user_keys(self) -> ByUser:
        first: dict[str, Id] = {}
        number: dict[str, int] = {}
        whose: list[NDArray[Any]] = [np.zeros(0, np.int64)]
        for users, owner, _ in self._users:
            known = [number.setdefault(str(first.setdefault(str(u), u)), len(number)) for u in users]
            whose.append(np.array(known)[owner])
        by = np.concatenate(whose)
        order = np.argsort(by, kind="stable")
        bounds = [0, *np.cumsum(np.bincount(by, minlength=len(number))).tolist()]
        keys = np.concatenate([np.zeros(0, np.uint64), *(keys for _, _, keys in self._users)])[order]
        return list(first.values()), bounds, keys

    def owned_keys(self) -> ByUser:
        """Changed user-side keys, whose users are noted as their owners."""
        found = self.user_keys()
        self.owners.add(*found)
        return found

    def forget(self, user: str) -> U64:
        """Deletes a user. Returns all of the user's keys, of which nothing is published any more."""
        users, bounds, keys = self.owned_keys()
        at = next((i for i, one in enumerate(users) if str(one) == user), None)
        changed = keys[:0] if at is None else keys[bounds[at] : bounds[at + 1]]
        self._users = [_without(one, user) for one in self._users]
        profile = self.profiles.pop(user, None)
        # Nobody knows yet what such a profile says, so it is kept which guests the user was. A new list: a checkpoint
        # that is being written may have the other one.
        self.forgotten[user] = [*self.forgotten.get(user, ()), *(profile.sessions if profile else ())]
        return np.union1d(self.owners.forget(user), changed)

    def clear(self) -> None:
        """Called when the readers know everything."""
        self._users, self._items, self.profiles, self.forgotten = [], [], {}, {}


def _without(changed: ChangedUsers, user: str) -> ChangedUsers:
    users, whose, keys = changed
    kept = ~np.isin(whose, [i for i, one in enumerate(users) if str(one) == user])
    return users, whose[kept], keys[kept]
