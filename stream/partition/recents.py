# core
"""What each user of a partition clicked and bought last: item ids and event times. Pure.

::

    user     value of the field `recent` (millrace/contracts/online_layout.py)
    "ann"    [7, t3, "b1", t2, 7, t1]  [9, t2]        clicks, purchases; newest first, at most 16 of each
    "bob"    [...]                     []             in the order of the users' last messages

A user's state *is* the value in the store, some 300 bytes, so that a snapshot copies references. Users that changed
since the last publication have lists as well.

Users are at most :data:`MOST_USERS`: beyond, those silent for longest are dropped. So is a user whose actions
are all older than 30 days.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from millrace.basics.durations import HOUR_MS
from millrace.contracts.events import Id
from millrace.contracts.online_layout import MOST_RECENT, unpack_recent
from millrace.windows.lastactions import KEPT_MS

MOST_USERS = 1 << 17
"""Some 65 MB."""
AT_ONCE = 4096
"""Users dropped in one step, and given at a time."""
CLICKS, PURCHASES = range(2)

_LENGTH = 2 * MOST_RECENT
_decode = msgspec.msgpack.Decoder(tuple[list[Any], list[Any]]).decode
_encode = msgspec.msgpack.Encoder().encode

_Lists = tuple[list[Any], list[Any]]
"""Clicks and purchases: ``[item id, ts_ms, item id, ts_ms, ...]``."""
UserRecent = tuple[Id, bytes]
"""A user and the value of the field; empty: the field is deleted."""


class Recents:
    """One thread at a time.

    >>> recents = Recents()
    >>> recents.add("ann", CLICKS, 7, 1000)
    []
    >>> recents.add("ann", CLICKS, "b1", 2000, 5), recents.add("ann", CLICKS, 9, 1500, 5)  # it came late
    ([7, 1000], [7, 1000])
    >>> unpack_recent(dict(recents.changes())["ann"]).clicks[1]
    Past(item_id=9, ts_ms=1500)
    """

    def __init__(self, most_users: int = MOST_USERS) -> None:
        self._most = most_users
        self._held: dict[str, bytes] = {}  # packed values; those in _changed are older than their lists
        self._changed: dict[str, _Lists | None] = {}  # in order; None: as the value is, or ended
        self._swept_hour = -1

    def __len__(self) -> int:
        return len(self._held)

    def add(self, user_id: Id, what: int, item_id: Id, ts_ms: int, earlier: int = 0) -> list[Any]:
        """A user clicked (or bought) an item; call it a single time for each action.

        Args:
            earlier: how many of the user's earlier ones are returned.

        Returns:
            What the user had clicked (bought) before: ``[item id, ts_ms, ...]``, newest first.
        """
        user, held = str(user_id), self._held
        raw = held[user] = held.pop(user, b"")  # the last one now
        both = self._changed.get(user)
        if both is None:
            both = self._changed[user] = _decode(raw) if raw else ([], [])
            if len(held) > self._most:
                self._end(list(islice(held, max(1, self._most // 64))))
        flat, at = both[what], 0
        while at < len(flat) and flat[at + 1] > ts_ms:
            at += 2
        before = flat[at : at + 2 * earlier]
        flat[at:at] = (item_id, ts_ms)
        del flat[_LENGTH:]
        return before

    def sweep(self, now_ms: int) -> None:
        """Drops users without an action in the last 30 days; call it after each step with the newest event's time. It
        looks only at the users silent for longest, each hour."""
        hour = now_ms // HOUR_MS
        if hour <= self._swept_hour:
            return
        self._settle()
        limit_ms, gone = hour * HOUR_MS - KEPT_MS, []
        for user, raw in islice(self._held.items(), AT_ONCE):
            clicks, purchases = _decode(raw)
            if max([*clicks[1:2], *purchases[1:2]]) >= limit_ms:
                break
            gone.append(user)
        self._end(gone)
        if len(gone) < AT_ONCE:
            self._swept_hour = hour

    def forget(self, user_id: Id) -> list[Id]:
        """Deletes a user. Returns the items that the user had clicked."""
        user = str(user_id)
        raw = self._held.pop(user, None)
        if raw is None:
            return []
        both = self._changed.get(user) or (_decode(raw) if raw else ([], []))
        self._changed[user] = None
        return both[CLICKS][::2]

    def _end(self, users: Sequence[str]) -> None:
        for user in users:
            del self._held[user]
            self._changed[user] = None

    def _settle(self) -> None:
        for user, both in self._changed.items():
            if both is not None:
                self._held[user] = _encode(both)

    def changes(self) -> list[UserRecent]:
        self._settle()
        held = self._held
        changed: list[UserRecent] = [(user, held.get(user, b"")) for user in self._changed]
        self._changed = {}
        return changed

    def whole(self) -> Iterator[list[UserRecent]]:
        """All users with their fields, some thousand at a time."""
        self._settle()
        everyone: list[UserRecent] = list(self._held.items())
        for start in range(0, len(everyone), AT_ONCE):
            yield everyone[start : start + AT_ONCE]

    def snapshot(self) -> tuple[dict[str, bytes], list[str], int]:
        self._settle()
        return dict(self._held), list(self._changed), self._swept_hour

    def resume(self, state: tuple[Mapping[str, bytes], Sequence[str], int]) -> None:
        """Restores the state that :meth:`snapshot` gave. For a new object.

        Raises:
            StoreError: a user's field is damaged.
            ValueError, TypeError: it is no state.
        """
        held, changed, self._swept_hour = state
        for raw in held.values():
            unpack_recent(raw)
        self._held = dict(held)
        self._changed = {user: _decode(held[user]) if user in held else None for user in changed}
