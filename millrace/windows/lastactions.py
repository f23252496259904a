# core
"""What a user did last, as features: the items of the last clicks and purchases, and how long ago each was.

::

    a user's clicks, newest first        the page's time, ts    last_clicks      last_clicks_age
    (c, ts + 1 s) (b, ts - 2 min) (a, ts - 3 days)         ──►  [b, a, 0, ...]   [1, 6, 0, ...]   0: nothing

A page knows what happened before its time and in the 30 days before it, and a click counts only once it has been
delivered. Live, the clicks come from Redis (:mod:`stream.partition.recents` keeps them); of a log, :class:`Acted`
remembers the same. :class:`LastActions` makes the columns of both, so they are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.basics.hashing import U64, column_hash, value_hash
from millrace.contracts.online_layout import MOST_RECENT, Past, Recent
from millrace.contracts.schema import LAST, Schema

I64 = NDArray[np.int64]

KEPT_MS = 30 * DAY_MS
EDGES_MS = MINUTE_MS * np.array([1, 5, 15, 60, 240, 1440, 3 * 1440, 7 * 1440])
"""Where the buckets of ages end."""
AGE_BUCKETS = len(EDGES_MS) + 1
BUCKET_HASHES = column_hash(np.arange(AGE_BUCKETS))
"""The value hashes of the buckets, the youngest first."""


class LastActions:
    """The columns of one schema. Stateless.

    Attributes:
        fields: (name, action, slots) of each field that the schema declares.
    """

    def __init__(self, schema: Schema) -> None:
        declared = {f.name: f.slots for f in schema.fields}
        self.fields = tuple((name, action, declared[name]) for name, action in LAST.items() if name in declared)
        self._aged = {name for name in LAST if f"{name}_age" in declared}

    def columns(self, name: str, items: U64, ms: I64, ts_ms: I64) -> dict[str, U64]:
        """A field and its ages, (n, slots) each.

        Args:
            items: (n, m) value hashes of the items, newest first; 0: none.
            ms: (n, m) when.
            ts_ms: (n,) the time of each page.
        """
        slots = next(s for field, _, s in self.fields if field == name)
        age = ts_ms[:, None] - ms
        known = (items != 0) & (age > 0) & (age <= KEPT_MS)
        if not known.all():  # to the left what is known
            order = np.argsort(~known, axis=1, kind="stable")
            items = np.take_along_axis(np.where(known, items, np.uint64(0)), order, axis=1)
            age, known = (np.take_along_axis(a, order, axis=1) for a in (age, known))
        found = {name: _cut(items, slots)}
        if name in self._aged:
            bucket = BUCKET_HASHES[np.searchsorted(EDGES_MS, age, side="right")]
            found[f"{name}_age"] = _cut(np.where(known, bucket, np.uint64(0)), slots)
        return found

    def of(self, recent: Recent, ts_ms: int) -> dict[str, U64]:
        """The columns (1, slots) of a page at ``ts_ms``, from what the online store has of its user."""
        pasts = {"click": recent.clicks, "purchase": recent.purchases}
        found: dict[str, U64] = {}
        for name, action, _ in self.fields:
            found |= self.columns(name, *_arrays(pasts[action]), np.array([ts_ms], np.int64))
        return found


def _arrays(pasts: Sequence[Past]) -> tuple[U64, I64]:
    items = np.array([[value_hash(past.item_id) for past in pasts]], np.uint64)
    return items, np.array([[past.ts_ms for past in pasts]], np.int64)


def _cut(array: NDArray[Any], slots: int) -> NDArray[Any]:
    """The first ``slots`` columns; zeros where there are fewer."""
    return np.pad(array[:, :slots], ((0, 0), (0, max(0, slots - array.shape[1]))))


class Acted:
    """The last actions of one kind of each user of a log, up to a time that only advances.

    >>> acted = Acted()
    >>> acted.add(np.array([7, 8, 7], "u8"), np.array([1, 2, 3], "u8"), np.array([1000, 2000, 3000]))
    >>> items, ms = acted.before(np.array([7, 7, 9], "u8"), np.array([3000, 3001, 9000]))
    >>> items[:, :3].tolist(), ms[1, :2].tolist()
    ([[1, 0, 0], [3, 1, 0], [0, 0, 0]], [3000, 1000])
    """

    def __init__(self) -> None:
        self._user: U64 = np.zeros(0, np.uint64)  # ascending; of each user in the order of time
        self._item: U64 = np.zeros(0, np.uint64)
        self._ms: I64 = np.zeros(0, np.int64)

    def add(self, user: U64, item: U64, ms: I64) -> None:
        """Adds actions (e,) in the order of time, none earlier than those before. From here on only pages are asked
        about that are later than all earlier actions: what these cannot know is dropped."""
        if not len(user):
            return
        kept = self._later() < MOST_RECENT
        kept &= self._ms >= self._ms.max(initial=0) - KEPT_MS
        users = np.concatenate([self._user[kept], user])
        order = np.argsort(users, kind="stable")
        self._user = users[order]
        self._item = np.concatenate([self._item[kept], item])[order]
        self._ms = np.concatenate([self._ms[kept], ms])[order]

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"user": self._user, "item": self._item, "ms": self._ms}

    def go_on(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._user, self._item, self._ms = arrays["user"], arrays["item"], arrays["ms"]

    def before(self, user: U64, ts_ms: I64) -> tuple[U64, I64]:
        """What users (n,) did last before times (n,): items and times, newest first. (n, 16) each"""
        users, first = np.unique(self._user, return_index=True)
        none = np.zeros((len(user), MOST_RECENT), np.int64)
        if not len(users) or not len(user):
            return none.astype(np.uint64), none
        number = np.minimum(np.searchsorted(users, user), len(users) - 1)
        least = min(int(self._ms.min()), int(ts_ms.min()))
        span = max(int(self._ms.max()), int(ts_ms.max())) - least + 1  # one number for a user and a time
        place = np.repeat(np.arange(len(users)), np.diff([*first, len(self._user)])) * span + (self._ms - least)
        at = np.searchsorted(place, number * span + (ts_ms - least), side="left")
        which = at[:, None] - 1 - np.arange(MOST_RECENT)
        there = (which >= first[number][:, None]) & (users[number] == user)[:, None]
        which = np.maximum(which, 0)
        return np.where(there, self._item[which], np.uint64(0)), np.where(there, self._ms[which], 0)

    def _later(self) -> I64:
        """How many later actions the user of each action has. (a,)"""
        last = np.searchsorted(self._user, self._user, side="right")
        return last - 1 - np.arange(len(self._user))
